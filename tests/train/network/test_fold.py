import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_network import small_backbone

from inference.files import sha256_of
from inference.images import ImageStore
from inference.network import NetworkConfig
from inference.schema import ID, PATIENT, TARGET
from scale.parallel import Files
from train.archives.diagnoses import GROUPS
from train.folds import HOLDOUT
from train.lesions import Lesions
from train.network.checkpoint import Checkpoint
from train.network.config import TrainingConfig
from train.network.fold import (
    FoldFiles,
    Training,
    plan_of,
    refuse_too_few_groups,
    rows_of_fold,
    train_fold,
    training_data,
)
from train.network.known_images import digest_of
from train.network.pretraining import read_archive
from utils import InputError

CONFIG = TrainingConfig(weights="none", image_size=32, head_epochs=1, epochs=2, batch_size=16, negatives_per_positive=2)


@pytest.fixture
def lesions(metadata, synthetic_data):
    """The rows of the synthetic dataset: three folds and a holdout; the first lesion has no image."""
    count, store = len(metadata), ImageStore(synthetic_data / "train-image.hdf5")
    digests = [0, *(digest_of(store.read(isic_id)) for isic_id in metadata[ID][1:])]
    return Lesions(
        isic_ids=metadata[ID].to_numpy(),
        patients=metadata[PATIENT].to_numpy(),
        labels=metadata[TARGET].to_numpy(),
        fold=np.arange(count) % 4 - 1,
        tabular=np.linspace(-4, 0, count),
        image_digests=np.array(digests, dtype="uint64"),
        groups=np.where(metadata[TARGET] == 1, GROUPS.index("melanoma"), np.arange(count) % 5),
    )


@pytest.fixture
def training(lesions, synthetic_data, tmp_path):
    images = synthetic_data / "train-image.hdf5"
    return Training(CONFIG, NetworkConfig(32), "none", lesions, images, tmp_path / "logs")


# Rows


def test_a_fold_is_trained_on_the_other_folds_and_scored_out_of_fold(lesions):
    rows = rows_of_fold(lesions, 1, with_holdout=False)
    assert set(lesions.fold[rows.train]) == {0, 2}
    assert set(lesions.fold[rows.score]) == {1}
    assert len(rows.train) + len(rows.score) == (lesions.in_folds & lesions.has_image).sum()


def test_the_holdout_is_scored_on_request_and_never_trained_on(lesions):
    rows = rows_of_fold(lesions, 1, with_holdout=True)
    assert set(lesions.fold[rows.train]) == {0, 2}
    assert set(lesions.fold[rows.score]) == {1, HOLDOUT}
    assert 0 not in rows.score  # it has no image


def test_a_fold_with_training_rows_of_one_class_is_named(lesions):
    lesions.labels[lesions.fold != 1] = 0
    with pytest.raises(InputError, match="fold 1 "):
        rows_of_fold(lesions, 1, with_holdout=False)


def test_the_rows_of_all_epochs_are_whole_batches_of_training_lesions(training):
    lesions, train = training.lesions, rows_of_fold(training.lesions, 1, with_holdout=False).train
    data = training_data(training, 1, train, ImageStore(training.images))
    malignant = int(lesions.labels[train].sum())
    assert data.steps == -(-3 * malignant // 16)
    assert len(data.isic_ids) == 3 * data.steps * 16
    assert set(data.isic_ids) <= set(lesions.isic_ids[train])
    position = {isic_id: row for row, isic_id in enumerate(lesions.isic_ids)}
    rows = np.array([position[isic_id] for isic_id in data.isic_ids])
    np.testing.assert_array_equal(data.targets, lesions.labels[rows])
    np.testing.assert_array_equal(data.inputs["tabular"], lesions.tabular[rows])
    assert list(data.inputs) == ["tabular"]
    epochs = rows.reshape(3, -1)
    assert (epochs[0] != epochs[1]).any()
    for epoch in epochs:
        assert set(train[lesions.labels[train] == 1]) <= set(epoch)
    again = training_data(training, 1, train, ImageStore(training.images))
    np.testing.assert_array_equal(again.isic_ids, data.isic_ids)
    other = training_data(training, 2, train, ImageStore(training.images))
    assert (other.isic_ids != data.isic_ids).any()


def test_archive_lesions_join_with_the_logit_of_the_prevalence(training, archive_folder):
    archive, lesions = read_archive(archive_folder, training.lesions), training.lesions
    train = rows_of_fold(lesions, 1, with_holdout=False).train
    images, joint = ImageStore(training.images), replace(training, archive=archive)
    data = training_data(joint, 1, train, images)
    joined = data.inputs["archive"]
    assert set(data.isic_ids[joined]) <= set(archive.isic_ids)
    assert set(data.isic_ids[~joined]) <= set(lesions.isic_ids[train])
    rate = lesions.labels[train].mean()
    np.testing.assert_allclose(data.inputs["tabular"][joined], np.log(rate / (1 - rate)))
    pretrained = training_data(replace(joint, backbone=Path("backbone.weights.h5")), 1, train, images)
    assert list(pretrained.inputs) == ["tabular"]  # a backbone was trained on the archive: it does not join as well


def test_the_plan_has_the_prior_correction_of_the_training_rows():
    labels = (np.arange(100) % 10 == 0).astype(int)
    plan = plan_of(CONFIG, 1, labels)  # an epoch has 10 malignant and 20 of 90 benign lesions
    logit = np.log(90 / 20)
    found = plan.loss(np.array([[1.0]], "float32"), np.array([[0.0]], "float32")).numpy()
    assert found[0] == pytest.approx(np.log1p(np.exp(-logit)), rel=1e-5)
    assert [phase.name for phase in plan.phases] == ["head", "stages"]


# The auxiliary head


@pytest.fixture
def few_suffice(monkeypatch):
    """A diagnosis group of three lesions is learned."""
    monkeypatch.setattr("train.network.sampling.GROUP_LESIONS", 3)


@pytest.mark.usefixtures("few_suffice")
def test_targets_have_the_groups_that_are_frequent_in_the_training_rows(training, archive_folder):
    lesions, config = training.lesions, replace(CONFIG, auxiliary=0.3)
    lesions.groups[:] = np.where(lesions.labels == 1, GROUPS.index("melanoma"), GROUPS.index("benign"))
    lesions.groups[lesions.fold == 1] = GROUPS.index("nevus")  # frequent in the fold itself alone
    lesions.groups[::7] = GROUPS.index("")
    train, images = rows_of_fold(lesions, 1, with_holdout=False).train, ImageStore(training.images)
    data = training_data(replace(training, config=config), 1, train, images)
    plain = training_data(training, 1, train, images)
    assert data.groups == 2
    np.testing.assert_array_equal(data.isic_ids, plain.isic_ids)
    position = {isic_id: row for row, isic_id in enumerate(lesions.isic_ids)}
    groups = lesions.groups[[position[isic_id] for isic_id in data.isic_ids]]
    named = [GROUPS.index("melanoma"), GROUPS.index("benign")]
    np.testing.assert_array_equal(data.targets, np.column_stack([plain.targets, groups[:, None] == named]))
    assert (data.targets[:, 1:].sum(axis=1) == 0).any()
    archive = read_archive(archive_folder, lesions)
    joint = training_data(replace(training, config=config, archive=archive), 1, train, images)
    joined = joint.inputs["archive"]
    assert set(joint.isic_ids[joined & (joint.targets[:, 1] == 1)]) <= set(archive.isic_ids[archive.groups == named[0]])


@pytest.mark.usefixtures("few_suffice")
def test_a_fold_with_one_frequent_group_is_refused_before_the_training(training):
    training = replace(training, config=replace(CONFIG, auxiliary=0.3))
    refuse_too_few_groups(training)
    training.lesions.groups[training.lesions.fold != 2] = GROUPS.index("nevus")
    with pytest.raises(InputError, match=r"fold 2.*\(nevus\)"):
        refuse_too_few_groups(training)
    training.lesions.groups[:] = GROUPS.index("")
    with pytest.raises(InputError, match=r"\(none\)"):
        refuse_too_few_groups(training)


# Training


@pytest.mark.integration
@pytest.mark.usefixtures("few_suffice")
@pytest.mark.parametrize("more", [{}, {"auxiliary": 0.3, "mixup": 0.4, "label_smoothing": 0.05}])
def test_an_interrupted_fold_continues_and_ends_with_the_same_bytes(training, tmp_path, monkeypatch, more):
    training = replace(training, config=replace(CONFIG, **more))
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    save, folders = Checkpoint.save, {name: tmp_path / name for name in ("whole", "interrupted")}
    for folder in folders.values():
        folder.mkdir()
    train_fold(Files.of(training.reads, folders["whole"]), 1, training)

    def save_and_stop(self, model, record):
        save(self, model, record)
        raise KeyboardInterrupt

    files, own = Files.of(training.reads, folders["interrupted"]), FoldFiles(folders["interrupted"], 1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoint, "save", save_and_stop)
        train_fold(files, 1, training)
    assert own.checkpoint.is_file()
    assert not own.weights.exists()
    train_fold(files, 1, training)
    assert not own.checkpoint.exists()
    for name in (own.weights.name, own.scores.name):
        assert sha256_of(folders["whole"] / name) == sha256_of(folders["interrupted"] / name)
    with h5py.File(own.weights) as file:
        names = []
        file.visit(names.append)
    assert any("dense" in name for name in names)
    assert not any("groups" in name or "dense_2" in name for name in names)


@pytest.fixture
def harmable(training, synthetic_data, tmp_path):
    """``training`` with an HDF5 file of its own, which can be harmed."""
    return replace(training, images=Path(shutil.copy(synthetic_data / "train-image.hdf5", tmp_path)))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.integration
@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_a_file_that_is_harmed_after_an_epoch_stops_the_fold_which_continues_once_it_is_back(
    harmable, tmp_path, monkeypatch, harm
):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    (tmp_path / "whole").mkdir()
    (tmp_path / "harmed").mkdir()
    if harm is cut:
        train_fold(Files.of(harmable.reads, tmp_path / "whole"), 1, harmable)
    content, own, save = harmable.images.read_bytes(), FoldFiles(tmp_path / "harmed", 1), Checkpoint.save

    def save_and_harm(self, model, record):
        save(self, model, record)
        harm(harmable.images)

    with monkeypatch.context() as patched, pytest.raises(InputError, match=r"train-image\.hdf5"):
        patched.setattr(Checkpoint, "save", save_and_harm)
        train_fold(Files.of(harmable.reads, own.checkpoint.parent), 1, harmable)
    assert Checkpoint(own.checkpoint).epochs == 1
    assert not own.weights.exists()
    if harm is cut:
        harmable.images.unlink()
        harmable.images.write_bytes(content)
        train_fold(Files.of(harmable.reads, own.checkpoint.parent), 1, harmable)
        assert sha256_of(own.scores) == sha256_of(tmp_path / "whole" / own.scores.name)


@pytest.mark.integration
def test_a_file_that_is_harmed_before_the_scoring_is_an_error(harmable, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    monkeypatch.setattr("train.network.fold.fit", lambda *_: cut(harmable.images) or [])
    with pytest.raises(InputError, match=r"train-image\.hdf5"):
        train_fold(Files.of(harmable.reads, tmp_path), 1, harmable)
    assert not FoldFiles(tmp_path, 1).scores.exists()


@pytest.mark.integration
def test_an_image_that_is_another_when_the_fold_begins_is_an_error(harmable, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    rows = rows_of_fold(harmable.lesions, 1, with_holdout=False)
    one, other = harmable.lesions.isic_ids[rows.train[harmable.lesions.labels[rows.train] == 1][:2]]
    with h5py.File(harmable.images, "r+") as file:
        content = file[other][()]
        del file[one]
        file.create_dataset(one, data=content)
    with pytest.raises(InputError, match=f"0 cannot .* 1 are others.*{one}"):
        train_fold(Files.of(harmable.reads, tmp_path), 1, harmable)


@pytest.mark.integration
def test_a_logit_that_is_not_finite_is_an_error(harmable, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    monkeypatch.setattr("train.network.fold.fit", lambda *_: [])
    row = rows_of_fold(harmable.lesions, 1, with_holdout=False).score[0]
    harmable.lesions.tabular[row] = np.nan
    with pytest.raises(InputError, match=f"1 of .*{harmable.lesions.isic_ids[row]}"):
        train_fold(Files.of(harmable.reads, tmp_path), 1, harmable)


def test_a_fold_without_an_image_is_named(lesions):
    lesions.image_digests[lesions.fold == 1] = 0
    with pytest.raises(InputError, match="lesions of fold 1 "):
        rows_of_fold(lesions, 1, with_holdout=True)


def test_the_hash_of_all_images_changes_with_one(training):
    before = training.images_sha256
    training.lesions.image_digests[5] += 1
    assert training.images_sha256 != before
