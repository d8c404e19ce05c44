import os
import shutil

import h5py
import numpy as np
import pytest

from inference.images import ImageStore
from inference.schema import ID, TARGET
from train.network.batches import TrainingData, training_batches
from train.network.known_images import JoinedImages, KnownImages, as_input_errors, digest_of, image_digests
from utils import InputError

COUNT = 24  # lesions


@pytest.fixture
def isic_ids(metadata):
    return metadata[ID].to_numpy(dtype=object)[:COUNT]


@pytest.fixture
def file(synthetic_data, tmp_path):
    """An HDF5 file to harm."""
    return shutil.copy(synthetic_data / "train-image.hdf5", tmp_path / "train-image.hdf5")


@pytest.fixture
def folder(file, isic_ids, tmp_path):
    """A folder of JPEG files to harm."""
    folder, store = tmp_path / "image", ImageStore(file)
    folder.mkdir()
    for isic_id in isic_ids:
        (folder / f"{isic_id}.jpg").write_bytes(store.read(isic_id))
    store.close()
    return folder


class HarmedStore(ImageStore):
    """Harms its file before the image with this number is read."""

    def __init__(self, path, number, harm):
        super().__init__(path)
        self.left, self.harm = number, harm

    def read(self, isic_id):
        if self.left == 0:
            self.harm(self.path)
        self.left -= 1
        return super().read(isic_id)


def known(store, isic_ids):
    """Its images, all readable, without decoding them."""
    check = ImageStore(store.path)
    digests = np.array([digest_of(check.read(isic_id)) for isic_id in isic_ids], dtype="uint64")
    check.close()
    assert digests.all()
    return KnownImages(store, isic_ids, digests)


def epoch_of(images, isic_ids, metadata):
    """How many rows one epoch of the training pipeline gives; its end is that of an epoch in ``fit``."""
    rows = np.arange(len(isic_ids))
    beside = {"inputs": {}, "targets": metadata[TARGET].to_numpy()[rows], "sample_weight": np.ones(len(rows))}
    data = TrainingData(images, isic_ids, steps=len(rows) // 4, image_size=32, batch_size=4, **beside)
    with as_input_errors(images):
        count = sum(len(targets) for _, targets, _ in training_batches(data))
    images.refuse_changes()
    return count


def other_images(path):
    """Writes a file with the same names and another content beside it."""
    other = path.with_name("other.hdf5")
    with h5py.File(path) as source, h5py.File(other, "w") as target:
        names = list(source)
        for name, taken in zip(names, names[1:] + names[:1], strict=True):
            target.create_dataset(name, data=source[taken][()])
    return other


def garble(path, number=20):
    """Writes over the middle of one image's JPEG bytes."""
    with h5py.File(path) as source:
        image = bytes(source[sorted(source)[number]][()])
    with path.open("r+b") as target:
        target.seek(path.read_bytes().index(image) + len(image) // 2)
        target.write(bytes(range(64)))


HARMS = {
    "cut to half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "removed": lambda path: path.unlink(),
    "replaced": lambda path: other_images(path).replace(path),
    "replaced by a text": lambda path: (path.unlink(), path.write_text("404: not found")),
    "written over": lambda path: path.write_bytes(other_images(path).read_bytes()),
    "one image garbled": garble,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.integration
@pytest.mark.parametrize("number", [0, 17])
@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_changes_while_it_is_read_is_an_error(file, isic_ids, metadata, monkeypatch, harm, number):
    monkeypatch.setattr("inference.images.CHUNK", 4)
    images = known(HarmedStore(file, number, HARMS[harm]), isic_ids)
    with pytest.raises(InputError, match=r"train-image\.hdf5"):
        epoch_of(images, isic_ids, metadata)


def jpeg_of(folder, number=-1):
    return sorted(folder.iterdir())[number]


FOLDER_HARMS = {
    "one cut": lambda folder: os.truncate(jpeg_of(folder), 100),
    "one removed": lambda folder: jpeg_of(folder).unlink(),
    "one replaced": lambda folder: shutil.copy(jpeg_of(folder, 0), jpeg_of(folder)),
    "one zeroed": lambda folder: jpeg_of(folder).write_bytes(bytes(1000)),
    "all removed": lambda folder: shutil.rmtree(folder),
    "renamed": lambda folder: folder.rename(folder.with_name("elsewhere")),
}


@pytest.mark.integration
@pytest.mark.parametrize("harm", FOLDER_HARMS)
def test_a_folder_that_changes_while_it_is_read_is_an_error(folder, isic_ids, metadata, harm):
    images = known(HarmedStore(folder, 5, FOLDER_HARMS[harm]), np.sort(isic_ids))
    with pytest.raises(InputError, match="/image"):
        epoch_of(images, np.sort(isic_ids), metadata)


@pytest.mark.integration
def test_the_sentence_counts_the_images_and_names_some(file, isic_ids):
    images = known(ImageStore(file), isic_ids)
    with h5py.File(file.with_name("less.hdf5"), "w") as target, h5py.File(file) as source:
        for isic_id in isic_ids[2:]:
            target.create_dataset(isic_id, data=source[isic_ids[2] if isic_id == isic_ids[3] else isic_id][()])
    file.with_name("less.hdf5").replace(file)
    with pytest.raises(
        InputError, match=rf"24 images 2 cannot .* 1 are others, .*{isic_ids[0]}, {isic_ids[1]}, {isic_ids[3]}"
    ):
        images.refuse_changes()


def test_the_same_images_in_another_file_are_no_change(file, isic_ids):
    images = known(ImageStore(file), isic_ids)
    shutil.copy(file, file.with_name("copy.hdf5"))
    file.with_name("copy.hdf5").replace(file)
    os.utime(file, (0, 0))
    images.refuse_changes()
    assert images.read(isic_ids[0])
    images.refuse_changes()


@pytest.mark.integration
def test_an_image_that_could_not_be_read_for_a_moment_is_an_error(file, isic_ids, metadata):
    class Unsteady(ImageStore):
        times = 0

        def read(self, isic_id):
            self.times += 1
            return b"" if self.times == 3 else super().read(isic_id)

    with pytest.raises(InputError, match=isic_ids[2]):
        epoch_of(known(Unsteady(file), isic_ids), isic_ids, metadata)


@pytest.mark.integration
def test_an_untouched_file_gives_every_row(file, isic_ids, metadata):
    assert epoch_of(known(ImageStore(file), isic_ids), isic_ids, metadata) == COUNT


@pytest.mark.integration
def test_digests_are_those_of_the_images_that_can_be_decoded(file, isic_ids):
    with h5py.File(file, "r+") as target:
        del target[isic_ids[1]]
        content = target[isic_ids[2]][()]
        del target[isic_ids[2]]
        target.create_dataset(isic_ids[2], data=np.bytes_(bytes(content)[:200]))
    store = ImageStore(file)
    digests = image_digests(store, isic_ids)
    assert np.flatnonzero(digests == 0).tolist() == [1, 2]
    assert digests[0] == digest_of(store.read(isic_ids[0]))
    assert len(set(digests.tolist())) == COUNT - 1


@pytest.mark.integration
@pytest.mark.parametrize("harm", ["cut to half", "removed", "replaced", "zeros"])
def test_a_file_that_changes_while_it_is_checked_is_an_error(file, isic_ids, harm):
    with pytest.raises(InputError, match=r"train-image\.hdf5"):
        image_digests(HarmedStore(file, 5, HARMS[harm]), isic_ids)


def test_two_stores_are_read_as_one(file, isic_ids, tmp_path):
    store = ImageStore(file)
    hidden, of_folder = (store.read(isic_id) for isic_id in isic_ids[1:3])
    (tmp_path / f"{isic_ids[0]}.jpg").write_bytes(hidden)
    (tmp_path / "ISIC_0000001.jpg").write_bytes(of_folder)
    joined = JoinedImages(known(store, isic_ids), known(ImageStore(tmp_path), [isic_ids[0], "ISIC_0000001"]))
    assert joined.read(isic_ids[0]) == store.read(isic_ids[0]) != hidden
    assert joined.read("ISIC_0000001") == of_folder
    assert joined.read("ISIC_0000002") == b""
    (tmp_path / "ISIC_0000001.jpg").unlink()
    with pytest.raises(InputError, match="ISIC_0000001"):
        joined.refuse_changes()
