"""Decoded crops in a memory-mapped file: an image is decoded once, not in every epoch of every training.

The file holds one crop per distinct image, uint8 of shape (images, size, size, 3), and behind them a checksum of each. Its
name is a digest of the images, the size and the decoder, so trainings of the same images share it and changed images get
another file. It is sparse: only the crops that trainings use take space. A crop counts when its checksum, written after it,
is right: a training that was killed leaves crops that the next one uses, and several may fill the file at once, as they
write the same bytes. The folder may be deleted at any time; files of former images stay until then.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.images import decode_crop, image_batches
from scale.progress import Bar
from train.network.known_images import JoinedImages, KnownImages
from utils import log

#: The most of the free disk that the crops of one training may take.
FREE_SHARE = 0.5
#: Crops that are decoded before they are written.
FILL_BATCH = 256
#: Marks a checksum as written; the lower 32 bits are the crop's CRC-32.
WRITTEN = 1 << 32


def crop_batches(
    images: KnownImages | JoinedImages, isic_ids: Sequence[str], image_size: int, batch_size: int, cache: Path | None
):
    """``inference.images.image_batches`` of the same bytes, out of the folder ``cache`` unless it is None.

    Crops that the folder does not hold are decoded and written first, on all cores. Where they have no space or cannot
    be written, this is logged once and all are decoded as they are needed.

    Returns:
        A ``tf.data.Dataset`` of (positions, crops), as ``image_batches``.
    """
    if cache is not None and images.digests:
        try:
            return CropCache(cache, images, image_size).batches(isic_ids, batch_size)
        except OSError as error:
            log_once(f"Crops are decoded in every epoch: {cache} cannot hold them ({error.strerror or error})")
    return image_batches(images, isic_ids, image_size, batch_size)


class CropCache:
    """The crops of some images at one size, in a file.

    Args:
        folder: of the file; made if it is missing.
        images: whose crops the file has a place for; one or more.
        image_size: pixels.

    Raises:
        OSError: the file cannot be made or mapped.
    """

    def __init__(self, folder: Path, images: KnownImages | JoinedImages, image_size: int) -> None:
        self._images, self._image_size = images, image_size
        self._digests = images.digests
        self._contents = np.unique(np.fromiter(self._digests.values(), "uint64", len(self._digests)))
        key = hashlib.blake2b(self._contents.tobytes() + decoder_version(image_size), digest_size=12)
        self.path = folder / f"crops-{image_size}-{key.hexdigest()}.bin"
        shape = (len(self._contents), image_size, image_size, 3)
        self._crop_bytes, self._checksums_start = image_size * image_size * 3, int(np.prod(shape, dtype="int64"))
        folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:  # of the same size whoever makes it, and however often
            file.truncate(self._checksums_start + 8 * len(self._contents))
        self._crops = np.memmap(self.path, "uint8", "r", shape=shape)
        self._checksums = np.memmap(self.path, "<u8", "r", self._checksums_start, shape[:1])

    def batches(self, isic_ids: Sequence[str], batch_size: int):
        """As ``image_batches``: a ``tf.data.Dataset`` of (positions, crops), without lesions that have no readable image.

        Raises:
            OSError: crops are missing and have no space.
        """
        import tensorflow as tf

        digests = np.fromiter((self._digests.get(isic_id, 0) for isic_id in isic_ids), "uint64", len(isic_ids))
        slots = np.searchsorted(self._contents, digests).clip(max=len(self._contents) - 1)
        rows = np.flatnonzero(digests)
        used, first = np.unique(slots[rows], return_index=True)
        held = np.zeros(len(self._contents), dtype=bool)
        held[used] = self._filled(used, [isic_ids[row] for row in rows[first]])
        rows = rows[held[slots[rows]]]

        def gather():
            for start in range(0, len(rows), batch_size):
                positions = rows[start : start + batch_size]
                yield positions, self._crops[slots[positions]]

        size = self._image_size
        signature = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, size, size, 3), tf.uint8)
        options = tf.data.Options()
        options.autotune.enabled = False  # as in image_batches
        return tf.data.Dataset.from_generator(gather, output_signature=signature).prefetch(2).with_options(options)

    def _filled(self, slots: np.ndarray, isic_ids: Sequence[str]) -> np.ndarray:
        """Decodes what is missing of the lesions' crops; which are there afterwards, bool of shape (lesions,).

        Those that are not cannot be decoded.
        """
        with Bar(total=len(slots), desc="cached crops", unit="crop", leave=False) as bar:
            held = np.zeros(len(slots), dtype=bool)
            for number, slot in enumerate(slots):
                held[number] = self._checksums[slot] == checksum_of(self._crops[slot])
                bar.update(int(held[number]))
            missing = np.flatnonzero(~held)
            if not len(missing):
                return held
            needed, free = len(missing) * self._crop_bytes, shutil.disk_usage(self.path.parent).free
            if needed > FREE_SHARE * free:
                raise OSError(f"{needed / 1e9:.1f} GB is more than {FREE_SHARE:.0%} of the {free / 1e9:.1f} GB free")
            missing = np.array(sorted(missing, key=lambda number: isic_ids[number]))  # the order of most image files
            decoded = image_batches(self._images, [isic_ids[number] for number in missing], self._image_size, FILL_BATCH)
            for positions, crops in decoded:
                written = missing[positions.numpy()]
                self._write(slots[written], crops.numpy())
                held[written] = True
                bar.update(len(written))
        return held

    def _write(self, slots: np.ndarray, crops: np.ndarray) -> None:
        """Writes crops, then their checksums. Not through the map: on a full disk that ends the process by a signal."""
        with self.path.open("r+b") as file:
            for slot, crop in zip(slots.tolist(), crops, strict=True):
                file.seek(slot * self._crop_bytes)
                file.write(crop)
            file.flush()
            for slot, crop in zip(slots.tolist(), crops, strict=True):
                file.seek(self._checksums_start + 8 * slot)
                file.write(checksum_of(crop).to_bytes(8, "little"))


def checksum_of(crop: np.ndarray) -> int:
    """Of a crop that was written; never 0, which stands for a crop that was not."""
    return WRITTEN | zlib.crc32(crop.data)


@functools.cache
def decoder_version(image_size: int) -> bytes:
    """What changes with the decoder: TensorFlow's version, and the crop that it makes of a test picture."""
    import tensorflow as tf

    picture = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype="uint8").repeat(6, 0).repeat(6, 1)
    crop = decode_crop(tf.io.encode_jpeg(picture), image_size).numpy()
    return f"{tf.__version__} {image_size} {zlib.crc32(crop)}".encode()


@functools.cache
def log_once(text: str) -> None:
    """Prints a line, the first time."""
    log(text)
