"""HDF5 of JPEG bytes -> decoded, resized batches.

Training and the kernel decode with the same ``decode_crop``. A lesion without a readable image is left out of the batches,
which carry positions: the caller knows which ones were scored.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from inference.files import content_state, refuse_dangling
from utils import InputError

#: Images that the decoder gets at a time, fewer where they have so many bytes; and how many times as many are read before.
CHUNK, CHUNK_BYTES, AHEAD = 256, 4_000_000, 4
#: An image that claims more pixels, or has more bytes, is broken, or meant to exhaust memory; crops have some 20,000 pixels,
#: photographs 20 million.
MOST_PIXELS, MOST_BYTES = 25_000_000, 100_000_000
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
#: An isic_id that is a name and not a path.
PLAIN_ID = re.compile(r"\w[\w.-]*")


class ImageReader(Protocol):
    """Whatever gives images by isic_id."""

    def read(self, isic_id: str) -> bytes:
        """The JPEG or PNG bytes of one lesion; empty when there are none."""


class ImageStore:
    """JPEG bytes by isic_id, out of the competition's HDF5 file or a folder of ``<isic_id>.jpg``.

    Raises:
        InputError: the file is no HDF5 file, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = None if path.is_dir() else open_hdf5(path)
        except OSError as error:
            raise InputError(f"{path} cannot be opened as HDF5 ({error}); fetch it again.") from error
        self._links = None if self._file is None else self._file.id.links
        self._descriptor = None if self._file is None else descriptor_of(self._file)

    def __contains__(self, isic_id: str) -> bool:
        """Whether the file itself holds an image of this lesion, readable or not."""
        if not PLAIN_ID.fullmatch(isic_id):
            return False
        try:
            if self._links is None:
                return (self.path / f"{isic_id}.jpg").is_file()
            # An external or soft link could point out of the file: only what the file itself holds counts.
            return self._links.get_info(isic_id.encode()).type == h5py.h5l.TYPE_HARD
        except (KeyError, RuntimeError, OSError):  # the last of a name that is too long
            return False

    def places(self, isic_ids: Iterable[str]) -> np.ndarray:
        """Where each lesion's image lies in the file, uint64 of shape (lesions,): reading in that order moves forwards.

        Zeros for a folder, and for a lesion without an image.
        """
        links = self._links
        if links is None:
            return np.zeros(len(list(isic_ids)), dtype="uint64")

        def place(isic_id: str) -> int:
            try:
                return links.get_info(isic_id.encode()).u if PLAIN_ID.fullmatch(isic_id) else 0
            except (KeyError, RuntimeError):
                return 0

        return np.fromiter(map(place, isic_ids), dtype="uint64")  # a damaged link can lead anywhere

    def names(self) -> Iterator[str]:
        """The ids of all images, readable or not."""
        yield from self._file if self._file is not None else (path.stem for path in self.path.glob("*.jpg"))

    def read(self, isic_id: str) -> bytes:
        """The JPEG or PNG bytes of one lesion; empty when there are none, they are neither, or too many."""
        try:
            if isic_id not in self:
                return b""
            if self._file is None:
                path = self.path / f"{isic_id}.jpg"
                return checked(path.read_bytes()) if path.stat().st_size <= MOST_BYTES else b""
            return self._read_dataset(self._file, isic_id)
        except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, MemoryError, OverflowError):
            return b""

    def _read_dataset(self, file: h5py.File, isic_id: str) -> bytes:
        """The image of a dataset: one string or opaque value, or an array; empty where it lies in another file.

        An image in one piece is read past HDF5, which takes half the time of its own reading.
        """
        dataset = h5py.h5d.open(file.id, isic_id.encode())
        place = dataset.get_offset()  # None unless the bytes lie in one piece in this file
        if place is not None and self._descriptor is not None:
            size = min(dataset.get_storage_size(), MOST_BYTES)
            image = os.pread(self._descriptor, size, place)
            if len(image) == size and checked(image):  # a string of variable length, say, has its address there
                return image.rstrip(b"\0")
        properties = dataset.get_create_plist()
        if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
            return b""
        if math.prod(dataset.shape) * dataset.dtype.itemsize > MOST_BYTES:  # compressed, it may be a small file
            return b""
        content = np.empty(dataset.shape, dataset.dtype)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, content)
        return checked(bytes(content.item()) if content.dtype.hasobject else content.tobytes().rstrip(b"\0"))

    def close(self) -> None:
        """Closes the HDF5 file; harmless for a folder, and a second time."""
        if self._file is not None:
            self._file.close()


class SteadyImages(ImageStore):
    """Images of a file that may not change: none is given that was read after the file was written to.

    A file that is replaced by another one, or removed, stays readable as it was: it is open.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._state = None if self._descriptor is None else content_state(self._descriptor)

    def read(self, isic_id: str) -> bytes:
        """As of ``ImageStore``; raises InputError where the file was written to."""
        image = super().read(isic_id)
        if self._descriptor is not None and content_state(self._descriptor) != self._state:
            raise InputError(f"{self.path} was changed while its images were read")
        return image


def descriptor_of(file: h5py.File) -> int | None:
    """The number of the open file, to read from it directly; None where HDF5 gives none."""
    try:
        return file.id.get_vfd_handle() if hasattr(os, "pread") else None
    except (RuntimeError, ValueError, NotImplementedError):
        return None


def open_hdf5(path: Path) -> h5py.File:
    """The file for reading; where another process holds a lock on it, without a lock: nothing is written here.

    Raises:
        OSError: it is no HDF5 file, or is cut off.
    """
    try:
        return h5py.File(path, "r")
    except OSError:
        return h5py.File(path, "r", locking=False)


def find_images(competition: Path, split: str) -> Path | None:
    """Where a competition folder keeps the images of ``split`` ("train" or "test"): the HDF5 file, else the folder.

    Raises:
        InputError: it is a link that leads nowhere.
    """
    for candidate in (competition / f"{split}-image.hdf5", competition / f"{split}-image" / "image"):
        if refuse_dangling(candidate).exists():
            return candidate
    return None


def checked(image: bytes) -> bytes:
    """The bytes of a JPEG or PNG; empty when they are neither, or claim ``MOST_PIXELS``."""
    return image if 0 < pixels_claimed(image) < MOST_PIXELS else b""


def pixels_claimed(image: bytes) -> int:
    """How many pixels a JPEG or PNG claims, before memory is taken for them; 0 for anything else.

    A JPEG's size is in its frame header, the first marker C0 to CF other than C4, C8 and CC (ITU-T T.81, table B.1).
    """
    if image.startswith(PNG_START):
        return math.prod(struct.unpack(">II", image[16:24])) if len(image) >= 24 else 0
    place = image.find(b"\xff", len(JPEG_START) - 1) if image.startswith(JPEG_START) else -1
    while 0 <= place <= len(image) - 9:
        marker = image[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return math.prod(struct.unpack(">HH", image[place + 5 : place + 9]))
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8  # markers without a length
        # Bytes that start no segment are skipped, as libjpeg does.
        place = image.find(b"\xff", place + 2 + (0 if alone else int.from_bytes(image[place + 2 : place + 4], "big")))
    return 0


def decode_crops(image, sizes: Sequence[int]) -> tuple:
    """One JPEG, or PNG, as a square crop of each size: uint8 tensors of shape (size, size, 3).

    ``INTEGER_ACCURATE`` gives Pillow's pixels exactly (TensorFlow's default differs by up to 3 levels). A pixel of the
    crop is the mean over its area of the image, in a third of the time of a bilinear resize with antialiasing. What cannot
    be decoded raises ``tf.errors.InvalidArgumentError``.
    """
    import tensorflow as tf

    pixels = tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")  # it decodes PNG as well
    crops = (tf.image.resize(pixels, (size, size), method=tf.image.ResizeMethod.AREA) for size in sizes)
    return tuple(tf.cast(tf.round(crop), tf.uint8) for crop in crops)


def decode_crop(image, image_size: int):
    """``decode_crops`` of one size: a uint8 tensor of shape (image_size, image_size, 3)."""
    return decode_crops(image, (image_size,))[0]


def image_batches(store: ImageReader, isic_ids: Sequence[str], image_size: int | Sequence[int], batch_size: int):
    """Decoded crops in the order of ``isic_ids``, read and decoded in the background while the network works.

    Args:
        store: of the images.
        isic_ids: the lesions.
        image_size: width and height of the crops, pixels; several sizes give each image, decoded once, in all of them.
        batch_size: crops at a time.

    Returns:
        A ``tf.data.Dataset`` of (positions, crops): int64 of shape (batch,), indices into ``isic_ids``; uint8 of shape
        (batch, image_size, image_size, 3), of several sizes a tuple of these. Lesions whose image is missing or unreadable
        are left out; other errors of the reader are raised.
    """
    import tensorflow as tf

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        positions, images, size = [], [], 0
        for i, isic_id in enumerate(isic_ids, 1):
            if image := store.read(isic_id):
                positions.append(i - 1)
                images.append(image)
                size += len(image)
            if len(images) == CHUNK or size > CHUNK_BYTES or i == len(isic_ids):
                yield np.array(positions, dtype="int64"), np.array(images, dtype=object)
                positions, images, size = [], [], 0

    def decoded(image):
        return decode_crop(image, image_size) if isinstance(image_size, int) else decode_crops(image, image_size)

    def crops_of(positions, images):
        pairs = tf.data.Dataset.from_tensor_slices((positions, images))
        crops = pairs.map(lambda i, image: (i, decoded(image)), 2 * cores(), deterministic=True)
        return crops.ignore_errors()  # of the decoder only: an error of the reader must be raised

    signature = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.string)
    read = tf.data.Dataset.from_generator(chunks, output_signature=signature).prefetch(AHEAD)
    batches = read.flat_map(crops_of).batch(batch_size).prefetch(2)
    # With its tuner, TensorFlow 2.20 can end as late again as the data took.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
