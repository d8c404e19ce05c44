import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from small_network import small_backbone

from inference.images import ImageStore
from inference.network import NetworkConfig, build_network
from inference.schema import ID, PATIENT, TARGET
from train.archives.diagnoses import CLASSES
from train.lesions import Lesions
from train.network.config import TrainingConfig
from train.network.pretraining import draw_epoch, join_archive, pretrain_backbone, read_archive
from train.network.sampling import Imbalance
from utils import InputError


@pytest.fixture
def lesions(metadata):
    """The rows of the synthetic dataset as training reads them."""
    count = len(metadata)
    return Lesions(
        isic_ids=metadata[ID].to_numpy(),
        patients=metadata[PATIENT].to_numpy(),
        labels=metadata[TARGET].to_numpy(),
        fold=np.arange(count) % 2,
        tabular=np.linspace(-4, 0, count),
        image_digests=np.ones(count, dtype="uint64"),
        groups=np.zeros(count, dtype="int64"),
    )


@pytest.fixture
def archive(archive_folder, lesions):
    return read_archive(archive_folder, lesions)


pytestmark = pytest.mark.integration
#: Small, and of one epoch.
CONFIG = TrainingConfig(weights="none", image_size=32, archives_epochs=1, batch_size=16, learning_rate=0.003)
#: The network of the training that follows, and its initial weights.
START = NetworkConfig(32), "none"


# Reading


def test_the_archive_is_read_with_its_classes(archive_folder, archive):
    table = pd.read_csv(archive_folder / "train-metadata.csv").fillna({"diagnosis": ""})
    assert archive.isic_ids.tolist() == table["isic_id"].tolist()
    assert archive.labels.tolist() == table["target"].tolist()
    expected = {"melanoma": "melanoma", "basal cell carcinoma": "basal cell carcinoma", "nevus": "nevus", "": ""}
    names = [CLASSES[number] for number in archive.groups]
    assert names == [expected.get(word, "other") for word in table["diagnosis"]]


def test_a_lesion_without_a_readable_image_is_left_out(archive_folder, lesions, tmp_path):
    folder = shutil.copytree(archive_folder, tmp_path / "archives")
    table = pd.read_csv(folder / "train-metadata.csv")
    with h5py.File(folder / "train-image.hdf5", "r+") as file:
        del file[table["isic_id"][3]]
    found = read_archive(folder, lesions)
    assert found.isic_ids.tolist() == table["isic_id"].drop(3).tolist()
    assert found.labels.tolist() == table["target"].drop(3).tolist()
    assert len(found.groups) == len(table) - 1


@pytest.mark.parametrize("column", [ID, PATIENT])
def test_lesions_and_patients_of_the_competition_are_left_out(archive_folder, lesions, tmp_path, capsys, column):
    folder = shutil.copytree(archive_folder, tmp_path / "archives")
    table = pd.read_csv(folder / "train-metadata.csv")
    table.loc[7, column] = {ID: lesions.isic_ids, PATIENT: lesions.patients}[column][5]
    table.to_csv(folder / "train-metadata.csv", index=False)
    found = read_archive(folder, lesions)
    assert found.isic_ids.tolist() == table["isic_id"].drop(7).tolist()
    assert found.labels.tolist() == table["target"].drop(7).tolist()
    assert "1 archive lesions left out" in capsys.readouterr().out


def test_an_archive_of_one_class_or_without_diagnoses_is_refused(archive_folder, lesions, tmp_path):
    folder = shutil.copytree(archive_folder, tmp_path / "archives")
    table = pd.read_csv(folder / "train-metadata.csv")
    table.assign(target=1).to_csv(folder / "train-metadata.csv", index=False)
    with pytest.raises(InputError, match="40 malignant of 40"):
        read_archive(folder, lesions)
    table.drop(columns="diagnosis").to_csv(folder / "train-metadata.csv", index=False)
    with pytest.raises(InputError, match="'diagnosis'"):
        read_archive(folder, lesions)


@pytest.mark.parametrize("harm", [lambda path: os.truncate(path, 4000), Path.unlink])
def test_an_archive_that_changes_before_its_images_are_read_is_an_error(
    archive, archive_folder, tmp_path, monkeypatch, harm
):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    file = Path(shutil.copy(archive_folder / "train-image.hdf5", tmp_path))
    images = replace(archive, images=file).open_images()
    monkeypatch.setattr("train.network.pretraining.Archive.open_images", lambda _: images)
    harm(file)
    with pytest.raises(InputError, match=str(file)):
        pretrain_backbone(archive, tmp_path / "backbone.weights.h5", CONFIG, START)


# Joining


def test_without_an_archive_an_epoch_is_drawn_from_the_own_rows_only(lesions, synthetic_data):
    candidates = join_archive(lesions, ImageStore(synthetic_data / "train-image.hdf5"), None, archive_logit=-3.0)
    train = np.flatnonzero(lesions.fold == 0)
    epoch = draw_epoch(candidates, train, Imbalance(per_positive=2), np.random.default_rng(0))
    assert set(epoch) <= set(train)
    assert set(train[lesions.labels[train] == 1]) <= set(epoch)


def test_an_archive_joins_with_as_many_malignant_lesions_in_the_same_proportion(lesions, archive, synthetic_data):
    candidates = join_archive(lesions, ImageStore(synthetic_data / "train-image.hdf5"), archive, archive_logit=-3.0)
    own = len(lesions.labels)
    np.testing.assert_array_equal(candidates.tabular[own:], -3.0)
    np.testing.assert_array_equal(candidates.tabular[:own], lesions.tabular)
    assert candidates.isic_ids[own:].tolist() == archive.isic_ids.tolist()
    train = np.flatnonzero(lesions.fold == 0)
    malignant = int(lesions.labels[train].sum())
    rng = np.random.default_rng(1)
    epochs = [draw_epoch(candidates, train, Imbalance(per_positive=2), rng) for _ in range(30)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
        assert set(epoch[epoch < own]) <= set(train)
        joined = epoch[candidates.archive[epoch]]
        assert candidates.labels[joined].sum() == min(malignant, archive.labels.sum())
        assert (candidates.labels[joined] == 0).sum() == min(2 * malignant, (archive.labels == 0).sum())
    assert set(np.concatenate(epochs)) == set(train) | set(range(own, len(candidates.labels)))  # all in turn
    ends = np.sort(epochs[0][: len(epochs[0]) // 2])
    assert (ends < own).any() and (ends >= own).any()  # mixed
    for position in (0, own):  # each image from its own store
        assert candidates.images.read(candidates.isic_ids[position]).startswith(b"\xff\xd8")


def test_a_small_archive_gives_what_it_has(lesions, archive, synthetic_data):
    few = replace(archive, isic_ids=archive.isic_ids[:5], labels=np.array([1, 0, 0, 0, 0]), groups=archive.groups[:5])
    few = replace(few, image_digests=archive.image_digests[:5])
    candidates = join_archive(lesions, ImageStore(synthetic_data / "train-image.hdf5"), few, archive_logit=0.0)
    epoch = draw_epoch(candidates, np.arange(len(lesions.labels)), Imbalance(per_positive=3), np.random.default_rng(0))
    assert candidates.labels[epoch[candidates.archive[epoch]]].tolist().count(1) == 1
    assert candidates.archive[epoch].sum() == 4


# Pretraining


@pytest.mark.parametrize("labels", ["malignant", "classes"])
def test_the_backbone_is_trained_and_fits_into_the_fusion_network(archive, eager, tmp_path, labels):
    path = tmp_path / "backbone.weights.h5"
    pretrain_backbone(archive, path, replace(CONFIG, archives_labels=labels), START)
    network = build_network(NetworkConfig(32))
    backbone = network.get_layer("resnet50")
    before = [weight.copy() for weight in backbone.get_weights()]
    backbone.load_weights(path)
    changed = [np.abs(new - old).max() > 0 for new, old in zip(backbone.get_weights(), before, strict=True)]
    assert all(changed)


@pytest.mark.parametrize("target", [0, 1])
def test_classes_need_malignant_and_benign_lesions(archive, tmp_path, target):
    groups = np.where(archive.labels == target, np.arange(len(archive.labels)) % 2, CLASSES.index(""))
    with pytest.raises(InputError, match="--archives-labels malignant"):
        pretrain_backbone(
            replace(archive, groups=groups), tmp_path / "b.weights.h5", replace(CONFIG, archives_labels="classes"), START
        )


def test_classes_need_two_of_them(archive, tmp_path):
    one = replace(archive, groups=np.zeros_like(archive.groups))
    with pytest.raises(InputError, match="--archives-labels malignant"):
        pretrain_backbone(one, tmp_path / "b.weights.h5", replace(CONFIG, archives_labels="classes"), START)
