import errno
import io

import h5py
import numpy as np
import pytest

from inference.images import ImageStore
from train import image_files
from train.image_files import write_image_file
from utils import InputError

JPEGS = {"ISIC_2": b"\xff\xd8\xff two \xff\xd9", "ISIC_1": b"\xff\xd8\xff one \xff\xd9"}


def test_images_are_scalars_of_bytes_named_by_their_ids(tmp_path):
    write_image_file(tmp_path / "new" / "train-image.hdf5", JPEGS.items(), 2)
    with h5py.File(tmp_path / "new" / "train-image.hdf5") as file:
        assert {name: bytes(file[name][()]) for name in file} == JPEGS
        assert all(file[name].shape == () and isinstance(file[name][()], np.bytes_) for name in file)
    store = ImageStore(tmp_path / "new" / "train-image.hdf5")
    assert all(name in store for name in JPEGS)
    store.close()


def test_nothing_is_left_where_the_images_end_with_an_error(tmp_path):
    def images():
        yield "ISIC_1", JPEGS["ISIC_1"]
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_image_file(tmp_path / "train-image.hdf5", images(), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [0, 1000, 5000, 40_000])
def test_a_disk_that_is_full_is_an_error_and_no_crash(tmp_path, monkeypatch, free):
    class SmallDisk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > free:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    class NewFile(image_files._NewFile, SmallDisk):
        pass

    monkeypatch.setattr(image_files, "_NewFile", NewFile)
    with pytest.raises(InputError, match="No space left"):
        write_image_file(tmp_path / "train-image.hdf5", ((f"ISIC_{number}", bytes(1000)) for number in range(100)), 100)
    assert list(tmp_path.iterdir()) == []
