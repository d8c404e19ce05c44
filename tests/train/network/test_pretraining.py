import shutil
from argparse import Namespace

import h5py
import numpy as np
import pandas as pd
import pytest

from inference.images import ImageStore
from inference.network import NetworkConfig, build_network
from inference.schema import ID, PATIENT, TARGET
from train.archives.diagnoses import CLASSES
from train.lesions import Lesions
from train.network.pretraining import Archive, draw_pool, pool_of, pretrain_backbone, read_archive
from train.network.sampling import Imbalance
from utils import InputError


@pytest.fixture
def lesions(metadata):
    """The synthetic_data's rows as training has them."""
    count = len(metadata)
    return Lesions(
        isic_ids=metadata[ID].to_numpy(),
        patients=metadata[PATIENT].to_numpy(),
        labels=metadata[TARGET].to_numpy(),
        fold=np.arange(count) % 2,
        tabular=np.linspace(-4, 0, count),
        has_image=np.ones(count, dtype=bool),
    )


@pytest.fixture
def archive(archive_folder, lesions):
    return read_archive(archive_folder, lesions)


def options(**changed):
    """What `train.fusion` passes on, small."""
    given = {"weights": "none", "image_size": 32, "archives_labels": "malignant", "archives_epochs": 1, "batch_size": 16}
    return Namespace(**(given | {"learning_rate": 0.003, "negatives_per_positive": 1.0, "seed": 0} | changed))


# Reading


def test_the_archive_is_read_with_its_classes(archive_folder, archive):
    table = pd.read_csv(archive_folder / "train-metadata.csv").fillna({"diagnosis": ""})
    assert archive.isic_ids.tolist() == table["isic_id"].tolist()
    assert archive.labels.tolist() == table["target"].tolist()
    expected = {"melanoma": "melanoma", "basal cell carcinoma": "basal cell carcinoma", "nevus": "nevus", "": ""}
    names = [CLASSES[number] for number in archive.classes]
    assert names == [expected.get(word, "other") for word in table["diagnosis"]]


def test_a_lesion_without_a_readable_image_is_left_out(archive_folder, lesions, tmp_path):
    folder = shutil.copytree(archive_folder, tmp_path / "archives")
    table = pd.read_csv(folder / "train-metadata.csv")
    with h5py.File(folder / "train-image.hdf5", "r+") as file:
        del file[table["isic_id"][3]]
    found = read_archive(folder, lesions)
    assert found.isic_ids.tolist() == table["isic_id"].drop(3).tolist()
    assert found.labels.tolist() == table["target"].drop(3).tolist()
    assert len(found.classes) == len(table) - 1


@pytest.mark.parametrize("column", [ID, PATIENT])
def test_what_is_reported_is_not_learned_from(archive_folder, lesions, tmp_path, capsys, column):
    folder = shutil.copytree(archive_folder, tmp_path / "archives")
    table = pd.read_csv(folder / "train-metadata.csv")
    table.loc[7, column] = {ID: lesions.isic_ids, PATIENT: lesions.patients}[column][5]
    table.to_csv(folder / "train-metadata.csv", index=False)
    found = read_archive(folder, lesions)
    assert found.isic_ids.tolist() == table["isic_id"].drop(7).tolist()
    assert found.labels.tolist() == table["target"].drop(7).tolist()
    assert "1 archive lesions are of patients in --data, and are left out" in capsys.readouterr().out


def test_a_folder_that_teaches_nothing_is_refused(archive_folder, lesions, tmp_path):
    folder = shutil.copytree(archive_folder, tmp_path / "archives")
    table = pd.read_csv(folder / "train-metadata.csv")
    table.assign(target=1).to_csv(folder / "train-metadata.csv", index=False)
    with pytest.raises(InputError, match="has 40 malignant of 40 lesions to learn from; both are needed"):
        read_archive(folder, lesions)
    table.drop(columns="diagnosis").to_csv(folder / "train-metadata.csv", index=False)
    with pytest.raises(InputError, match="has no column 'diagnosis'"):
        read_archive(folder, lesions)


# Joining


def test_without_an_archive_an_epoch_is_drawn_from_the_own_rows_only(lesions, synthetic_data):
    pool = pool_of(lesions, ImageStore(synthetic_data / "train-image.hdf5"), None, opinion=-3.0)
    train = np.flatnonzero(lesions.fold == 0)
    epoch = draw_pool(pool, train, Imbalance(per_positive=2), np.random.default_rng(0))
    assert set(epoch) <= set(train)
    assert set(train[lesions.labels[train] == 1]) <= set(epoch)


def test_an_archive_joins_with_as_many_malignant_lesions_in_the_same_proportion(lesions, archive, synthetic_data):
    pool = pool_of(lesions, ImageStore(synthetic_data / "train-image.hdf5"), archive, opinion=-3.0)
    own = len(lesions.labels)
    np.testing.assert_array_equal(pool.tabular[own:], -3.0)
    np.testing.assert_array_equal(pool.tabular[:own], lesions.tabular)
    assert pool.isic_ids[own:].tolist() == archive.isic_ids.tolist()
    train = np.flatnonzero(lesions.fold == 0)
    malignant = int(lesions.labels[train].sum())
    rng = np.random.default_rng(1)
    epochs = [draw_pool(pool, train, Imbalance(per_positive=2), rng) for _ in range(30)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
        assert set(epoch[epoch < own]) <= set(train)
        joined = epoch[pool.archive[epoch]]
        assert pool.labels[joined].sum() == min(malignant, archive.labels.sum())
        assert (pool.labels[joined] == 0).sum() == min(2 * malignant, (archive.labels == 0).sum())
    assert set(np.concatenate(epochs)) == set(train) | set(range(own, len(pool.labels)))  # all in turn
    ends = np.sort(epochs[0][: len(epochs[0]) // 2])
    assert (ends < own).any() and (ends >= own).any()  # mixed
    for position in (0, own):  # each image from its own store
        assert pool.images.read(pool.isic_ids[position]).startswith(b"\xff\xd8")


def test_a_small_archive_gives_what_it_has(lesions, archive, synthetic_data):
    few = Archive(archive.isic_ids[:5], np.array([1, 0, 0, 0, 0]), archive.classes[:5], archive.images, archive.sha256)
    pool = pool_of(lesions, ImageStore(synthetic_data / "train-image.hdf5"), few, opinion=0.0)
    epoch = draw_pool(pool, np.arange(len(lesions.labels)), Imbalance(per_positive=3), np.random.default_rng(0))
    assert pool.labels[epoch[pool.archive[epoch]]].tolist().count(1) == 1
    assert pool.archive[epoch].sum() == 4


# Pretraining


@pytest.mark.parametrize("labels", ["malignant", "classes"])
def test_the_backbone_learns_and_fits_into_the_fusion_network(archive, eager, tmp_path, labels):
    path = tmp_path / "backbone.weights.h5"
    pretrain_backbone(archive, path, options(archives_labels=labels))
    network = build_network(NetworkConfig(32))
    backbone = network.get_layer("resnet50")
    before = [weight.copy() for weight in backbone.get_weights()]
    backbone.load_weights(path)
    changed = [np.abs(new - old).max() > 0 for new, old in zip(backbone.get_weights(), before, strict=True)]
    assert all(changed)


def test_classes_need_two_of_them(archive, tmp_path):
    one = Archive(archive.isic_ids, archive.labels, np.zeros_like(archive.classes), archive.images, archive.sha256)
    with pytest.raises(InputError, match="needs lesions of two classes or more; use --archives-labels malignant"):
        pretrain_backbone(one, tmp_path / "b.weights.h5", options(archives_labels="classes"))
