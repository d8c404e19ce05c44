import h5py
import numpy as np
import pytest

from inference.images import ImageStore
from train.image_files import write_image_file

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
