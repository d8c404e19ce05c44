"""HDF5 of JPEG bytes -> decoded, resized batches.

Training and the kernel decode with the same ``decode_crop``, so a pixel that the network learned from is the pixel that it
is asked about. A lesion without a readable image simply does not come out: the caller sees whom it has not seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from inference.files import InputError

#: Images read from the file before they are handed to the decoder; about 3 MB of JPEG.
CHUNK = 1024
#: A file that claims more pixels is broken, or wants our memory; crops have some 20,000, photographs up to 20 million.
MOST_PIXELS = 25_000_000
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
#: An isic_id that is a name and no path.
PLAIN_ID = re.compile(r"\w[\w.-]*")


class ImageStore:
    """JPEG bytes by isic_id, out of the competition's HDF5 file or a folder of ``<isic_id>.jpg``.

    Raises:
        InputError: the file is no HDF5 file, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = None if path.is_dir() else open_hdf5(path)
            self._bytes = None if self._file is None else os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path} cannot be opened as HDF5 ({error}); fetch it again.") from error

    def __contains__(self, isic_id: str) -> bool:
        """Whether the file itself holds an image of this lesion, readable or not."""
        if not PLAIN_ID.fullmatch(isic_id):
            return False
        if self._file is None:
            return (self.path / f"{isic_id}.jpg").is_file()
        # An external or soft link could point out of the file: only what the file itself holds counts.
        try:
            return self._file.id.links.get_info(isic_id.encode()).type == h5py.h5l.TYPE_HARD
        except (KeyError, RuntimeError):
            return False

    def read(self, isic_id: str) -> bytes:
        """The JPEG bytes of one lesion; empty when there are none or they cannot be read."""
        try:
            if isic_id not in self:
                return b""
            if self._file is None:
                return (self.path / f"{isic_id}.jpg").read_bytes()
            return self._read_dataset(isic_id)
        except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, MemoryError):
            return b""

    def _read_dataset(self, isic_id: str) -> bytes:
        """The bytes of a dataset that lies in the file itself.

        The competition's way, a fixed-length string in one piece, is read from its place in the file, past h5py, which
        takes several times as long; every other way by h5py.
        """
        dataset = h5py.h5d.open(self._file.id, isic_id.encode())
        kind, place = dataset.get_type(), dataset.get_offset()
        if kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str() and place is not None:
            return os.pread(self._bytes, dataset.get_storage_size(), place).rstrip(b"\0")
        dataset = h5py.Dataset(dataset)
        if dataset.external or dataset.is_virtual:  # bytes that lie in another file
            return b""
        value = dataset[()]
        if isinstance(value, np.ndarray | np.void):
            return value.tobytes()
        return bytes(value) if isinstance(value, bytes) else b""

    def close(self) -> None:
        """Closes the HDF5 file; harmless for a folder, and a second time."""
        if self._file is not None:
            self._file.close()
        if self._bytes is not None:
            os.close(self._bytes)
            self._bytes = None


def open_hdf5(path: Path) -> h5py.File:
    """The file for reading; where another process holds a lock on it, without asking for one: nobody writes what we read.

    Raises:
        OSError: it is no HDF5 file, or is cut off.
    """
    try:
        return h5py.File(path, "r")
    except OSError:
        return h5py.File(path, "r", locking=False)


def find_images(competition: Path, split: str) -> Path | None:
    """Where a competition folder keeps the images of ``split`` ("train" or "test"): the HDF5 file, else the folder."""
    for candidate in (competition / f"{split}-image.hdf5", competition / f"{split}-image" / "image"):
        if candidate.exists():
            return candidate
    return None


def decode_crop(image, image_size: int):
    """One JPEG, or PNG, as a square crop: uint8 tensor of shape (image_size, image_size, 3).

    ``INTEGER_ACCURATE`` gives Pillow's pixels exactly (TensorFlow's default differs by up to 3 levels). What is neither of
    the two, cannot be decoded, or claims more than ``MOST_PIXELS`` raises ``tf.errors.InvalidArgumentError``.
    """
    import tensorflow as tf

    most = tf.constant(MOST_PIXELS, tf.int64)
    with tf.control_dependencies([tf.debugging.assert_less_equal(pixels_claimed(image), most)]):
        pixels = tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")  # it decodes PNG as well
    crop = tf.image.resize(pixels, (image_size, image_size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(crop), 0.0, 255.0), tf.uint8)


def pixels_claimed(image):
    """How many pixels a JPEG or PNG says it has, int64, before memory is taken for them; anything else raises."""
    import tensorflow as tf

    def of_jpeg():
        return tf.reduce_prod(tf.cast(tf.io.extract_jpeg_shape(image), tf.int64)[:2])

    def of_png():
        is_png = tf.equal(tf.strings.substr(image, 0, len(PNG_START)), PNG_START)
        with tf.control_dependencies([tf.debugging.assert_equal(is_png, True)]):
            sides = tf.cast(tf.reshape(tf.io.decode_raw(tf.strings.substr(image, 16, 8), tf.uint8), (2, 4)), tf.int64)
        return tf.reduce_prod(tf.linalg.matvec(sides, tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)))

    is_jpeg = tf.equal(tf.strings.substr(image, 0, len(JPEG_START)), JPEG_START)
    return tf.cond(is_jpeg, of_jpeg, of_png)


def image_batches(store: ImageStore, isic_ids: Sequence[str], image_size: int, batch_size: int):
    """Decoded crops in the order of ``isic_ids``, read and decoded in the background while the network works.

    Returns:
        A ``tf.data.Dataset`` of (positions, crops): int64 of shape (batch,), indices into ``isic_ids``; uint8 of shape
        (batch, image_size, image_size, 3). Lesions whose image is missing or unreadable are left out. What else breaks in
        the reader raises at the end.
    """
    import tensorflow as tf

    broken: list[Exception] = []

    def chunks() -> Iterator[tuple[np.ndarray, list[bytes]]]:
        broken.clear()
        for start in range(0, len(isic_ids), CHUNK):
            try:
                found = [(i, store.read(isic_ids[i])) for i in range(start, min(start + CHUNK, len(isic_ids)))]
            except Exception as error:  # behind ignore_errors a reader that raises would be asked again and again
                broken.append(error)
                return
            found = [(i, image) for i, image in found if image]
            yield np.array([i for i, _ in found], dtype="int64"), np.array([image for _, image in found], dtype=object)

    def complaint() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if broken:
            raise broken[0]
        yield from ()

    positions = tf.TensorSpec((None,), tf.int64)
    images = tf.data.Dataset.from_generator(chunks, output_signature=(positions, tf.TensorSpec((None,), tf.string)))
    crops = images.unbatch().map(
        lambda i, image: (i, decode_crop(image, image_size)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    signature = (positions, tf.TensorSpec((None, image_size, image_size, 3), tf.uint8))
    end = tf.data.Dataset.from_generator(complaint, output_signature=signature)
    return crops.ignore_errors().batch(batch_size).concatenate(end).prefetch(tf.data.AUTOTUNE)
