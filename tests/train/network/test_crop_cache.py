import errno
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest

from inference.images import ImageStore, image_batches
from inference.schema import ID
from train.network import crop_cache
from train.network.crop_cache import CropCache, crop_batches, log_once
from train.network.known_images import JoinedImages, KnownImages, as_input_errors, digest_of
from utils import InputError

pytestmark = pytest.mark.integration

COUNT, SIZE = 24, 32


@pytest.fixture
def isic_ids(metadata):
    return metadata[ID].to_numpy(dtype=object)[:COUNT].tolist()


@pytest.fixture
def folder(synthetic_data, isic_ids, tmp_path):
    """A folder of JPEG files to harm."""
    folder, store = tmp_path / "image", ImageStore(synthetic_data / "train-image.hdf5")
    folder.mkdir()
    for isic_id in isic_ids:
        (folder / f"{isic_id}.jpg").write_bytes(store.read(isic_id))
    store.close()
    return folder


class CountingImages(KnownImages):
    """Images of a folder that counts those that were read; after ``left`` of them Ctrl-C is pressed."""

    def __init__(self, folder, isic_ids, left=None):
        self.count, self.left, store = 0, left, ImageStore(folder)
        super().__init__(store, isic_ids, np.array([digest_of(store.read(each)) for each in isic_ids], dtype="uint64"))

    def read(self, isic_id):
        self.count += 1
        if self.count == self.left:
            raise RuntimeError("stopped")
        return super().read(isic_id)


def gathered(batches):
    """The sizes of all batches, and all positions and crops."""
    found = [(positions.numpy(), crops.numpy()) for positions, crops in batches]
    return [len(positions) for positions, _ in found], *(np.concatenate(each) for each in zip(*found, strict=True))


def assert_same(one, other):
    for ours, theirs in zip(gathered(one), gathered(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def only_file(cache):
    (path,) = cache.iterdir()
    return path


def test_the_batches_are_those_of_the_decoder_and_an_image_is_read_once(folder, isic_ids, tmp_path):
    order = [isic_ids[row] for row in np.random.default_rng(0).integers(0, 20, 50)]
    order[3] = order[30] = "ISIC_9999999"  # no image
    images = CountingImages(folder, isic_ids)
    expected = image_batches(ImageStore(folder), order, SIZE, 8)
    assert gathered(expected)[0] == [8] * 6
    for _ in range(2):
        assert_same(crop_batches(images, order, SIZE, 8, tmp_path / "cache"), expected)
        assert images.count == len(set(order)) - 1
    assert_same(crop_batches(images, order, SIZE, 8, None), expected)
    assert images.count > len(order)


def test_trainings_of_the_same_images_share_a_file_that_holds_what_they_use(folder, isic_ids, tmp_path):
    cache, images = tmp_path / "cache", CountingImages(folder, isic_ids)
    for part in (isic_ids[:2], isic_ids[1:3]):
        crop_batches(images, part, 128, 2, cache)
    assert images.count == 3
    assert only_file(cache).stat().st_blocks * 512 < 10 * 128 * 128 * 3
    others = CountingImages(folder, isic_ids[::-1])  # the same in another order
    crop_batches(others, isic_ids[:3], 128, 2, cache)
    assert others.count == 0
    crop_batches(others, isic_ids[:3], 64, 2, cache)
    assert others.count == 3
    assert len(list(cache.iterdir())) == 2


def test_an_image_that_changes_has_no_crop(folder, isic_ids, tmp_path, monkeypatch):
    cache, changed = tmp_path / "cache", folder / f"{isic_ids[0]}.jpg"
    crop_batches(CountingImages(folder, isic_ids), isic_ids, SIZE, 8, cache)
    shutil.copy(folder / f"{isic_ids[1]}.jpg", changed)
    images = CountingImages(folder, isic_ids)
    assert_same(crop_batches(images, isic_ids, SIZE, 8, cache), image_batches(ImageStore(folder), isic_ids, SIZE, 8))
    assert images.count == COUNT - 1  # two lesions have the same image now
    monkeypatch.setattr(crop_cache, "decoder_version", lambda _: b"another decoder")
    crop_batches(images, isic_ids, SIZE, 8, cache)
    assert images.count == 2 * (COUNT - 1)


HARMS = {
    "cut": lambda path: os.truncate(path, 5 * SIZE * SIZE * 3 + 7),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "garbled": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() * 2),
    "a text": lambda path: path.write_text("no crops"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_file_is_made_again(folder, isic_ids, tmp_path, harm):
    cache, images = tmp_path / "cache", CountingImages(folder, isic_ids)
    crop_batches(images, isic_ids, SIZE, 8, cache)
    HARMS[harm](only_file(cache))
    assert_same(crop_batches(images, isic_ids, SIZE, 8, cache), image_batches(ImageStore(folder), isic_ids, SIZE, 8))


def test_a_crop_counts_when_its_checksum_is_written(folder, isic_ids, tmp_path, monkeypatch):
    monkeypatch.setattr(crop_cache, "FILL_BATCH", 4)
    monkeypatch.setattr("inference.images.CHUNK", 4)
    cache, stopped = tmp_path / "cache", CountingImages(folder, isic_ids, left=19)
    with pytest.raises(Exception, match="stopped"):
        crop_batches(stopped, isic_ids, SIZE, 8, cache)
    images = CountingImages(folder, isic_ids)
    assert_same(crop_batches(images, isic_ids, SIZE, 8, cache), image_batches(ImageStore(folder), isic_ids, SIZE, 8))
    assert 0 < images.count < COUNT


def test_two_trainings_may_fill_it_at_once(folder, isic_ids, tmp_path):
    class Meeting(CountingImages):
        """While it is read, another training fills the same file."""

        def read(self, isic_id):
            if self.count == 5:
                crop_batches(CountingImages(folder, isic_ids), isic_ids[::2], SIZE, 8, tmp_path / "cache")
            return super().read(isic_id)

    expected = image_batches(ImageStore(folder), isic_ids, SIZE, 8)
    assert_same(crop_batches(Meeting(folder, isic_ids), isic_ids, SIZE, 8, tmp_path / "cache"), expected)
    assert_same(crop_batches(CountingImages(folder, isic_ids), isic_ids, SIZE, 8, tmp_path / "cache"), expected)


def too_little_space(monkeypatch, cache):
    space = namedtuple("space", "free")(2 * COUNT * SIZE * SIZE * 3 - 1)
    monkeypatch.setattr(crop_cache.shutil, "disk_usage", lambda _: space)


def disk_that_fills(monkeypatch, cache):
    write = CropCache._write

    def full(self, slots, crops):
        write(self, slots[:3], crops[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CropCache, "_write", full)


@pytest.mark.parametrize("fault", [too_little_space, disk_that_fills, lambda _, cache: cache.write_text("a file")])
def test_without_space_crops_are_decoded_as_they_are_needed(folder, isic_ids, tmp_path, monkeypatch, capsys, fault):
    cache, images = tmp_path / "cache", CountingImages(folder, isic_ids)
    log_once.cache_clear()
    fault(monkeypatch, cache)
    for _ in range(2):
        batches = crop_batches(images, isic_ids, SIZE, 8, cache)
        assert_same(batches, image_batches(ImageStore(folder), isic_ids, SIZE, 8))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_images_that_cannot_be_decoded_are_left_out(folder, isic_ids, tmp_path):
    os.truncate(folder / f"{isic_ids[4]}.jpg", 400)
    images = CountingImages(folder, isic_ids)
    expected = image_batches(ImageStore(folder), isic_ids, SIZE, 8)
    assert sum(gathered(expected)[0]) == COUNT - 1
    assert_same(crop_batches(images, isic_ids, SIZE, 8, tmp_path / "cache"), expected)


def test_images_that_change_are_refused_as_without_a_cache(folder, isic_ids, tmp_path):
    images, path = CountingImages(folder, isic_ids), folder / f"{isic_ids[7]}.jpg"
    image = path.read_bytes()
    path.write_bytes(image[: len(image) // 2])
    with pytest.raises(InputError, match=isic_ids[7]), as_input_errors(images):
        crop_batches(images, isic_ids, SIZE, 8, tmp_path / "cache")
    path.write_bytes(image)
    images = CountingImages(folder, isic_ids)
    batches = crop_batches(images, isic_ids, SIZE, 8, tmp_path / "cache")
    path.write_bytes(image[::-1])  # changed in its place, and never read again by this training
    assert len(gathered(batches)[1]) == COUNT
    with pytest.raises(InputError, match=isic_ids[7]):
        images.refuse_changes()


def test_two_stores_are_one(folder, isic_ids, tmp_path):
    joined = JoinedImages(CountingImages(folder, isic_ids[:9]), CountingImages(folder, isic_ids[9:]))
    expected = image_batches(ImageStore(folder), isic_ids, SIZE, 8)
    assert_same(crop_batches(joined, isic_ids, SIZE, 8, tmp_path / "cache"), expected)


FILL = """
import sys
from pathlib import Path
import numpy as np
from inference.images import ImageStore
from train.network import crop_cache
from train.network.known_images import KnownImages, digest_of

crop_cache.FILL_BATCH = 8
store = ImageStore(Path(sys.argv[1]))
isic_ids = sorted(store.names())
images = KnownImages(store, isic_ids, np.array([digest_of(store.read(each)) for each in isic_ids], dtype="uint64"))
crop_cache.crop_batches(images, isic_ids, 128, 8, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_training_that_is_killed_leaves_no_wrong_crop(folder, isic_ids, tmp_path):
    store, cache = ImageStore(folder), tmp_path / "cache"
    for number in range(1000):
        pixels = store.read(isic_ids[number % COUNT]) + number.to_bytes(4, "big")  # bytes behind a JPEG's end
        (folder / f"ISIC_{number:07}.jpg").write_bytes(pixels)
    command = [sys.executable, "-c", FILL, str(folder), str(cache)]
    training = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (cache.is_dir() and sum(path.stat().st_blocks for path in cache.iterdir()) * 512 > 100 * 128 * 128 * 3):
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    training.kill()
    assert training.wait() < 0
    ids = sorted(store.names())
    images = CountingImages(folder, ids)
    assert_same(crop_batches(images, ids, 128, 64, cache), image_batches(store, ids, 128, 64))
    assert 0 < images.count < len(ids)
