"""HDF5 of JPEG bytes -> decoded, resized batches.

Training and the kernel decode with the same ``decode_crop``, so a pixel that the network learned from is the pixel that it
is asked about. A lesion without a readable image simply does not come out: the caller sees whom it has not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from inference.files import InputError

#: Images read from the file before they are handed to the decoder; about 3 MB of JPEG.
CHUNK = 1024
#: Images decoded side by side.
DECODERS = 16
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
            self._file = None if path.is_dir() else h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path} cannot be opened as HDF5 ({error}); fetch it again.") from error

    def __contains__(self, isic_id: str) -> bool:
        """Whether the file itself holds an image of this lesion, readable or not."""
        if not PLAIN_ID.fullmatch(isic_id):
            return False
        if self._file is None:
            return (self.path / f"{isic_id}.jpg").is_file()
        # An external or soft link could point out of the file: only what the file itself holds counts.
        return isinstance(self._file.get(isic_id, getlink=True), h5py.HardLink)

    def read(self, isic_id: str) -> bytes:
        """The JPEG bytes of one lesion; empty when there are none or they cannot be read."""
        try:
            if isic_id not in self:
                return b""
            if self._file is None:
                return (self.path / f"{isic_id}.jpg").read_bytes()
            dataset = self._file[isic_id]
            if dataset.external or dataset.is_virtual:  # bytes that lie in another file
                return b""
            value = dataset[()]
            if isinstance(value, np.ndarray | np.void):
                return value.tobytes()
            return bytes(value) if isinstance(value, bytes) else b""
        except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, MemoryError):
            return b""

    def close(self) -> None:
        """Closes the HDF5 file; harmless for a folder."""
        if self._file is not None:
            self._file.close()


def find_images(competition: Path, split: str) -> Path | None:
    """Where a competition folder keeps the images of ``split`` ("train" or "test"): the HDF5 file, else the folder."""
    for candidate in (competition / f"{split}-image.hdf5", competition / f"{split}-image" / "image"):
        if candidate.exists():
            return candidate
    return None


def decode_crop(jpeg, image_size: int):
    """One JPEG as a square crop: uint8 tensor of shape (image_size, image_size, 3).

    ``INTEGER_ACCURATE`` gives Pillow's pixels exactly (TensorFlow's default differs by up to 3 levels).
    """
    import tensorflow as tf

    pixels = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    crop = tf.image.resize(pixels, (image_size, image_size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(crop), 0.0, 255.0), tf.uint8)


def image_batches(store: ImageStore, isic_ids: Sequence[str], image_size: int, batch_size: int):
    """Decoded crops in the order of ``isic_ids``, read in the background while the network works.

    Returns:
        A ``tf.data.Dataset`` of (positions, crops): int64 of shape (batch,), indices into ``isic_ids``; uint8 of shape
        (batch, image_size, image_size, 3). Lesions whose image is missing or unreadable are left out.
    """
    import tensorflow as tf

    def chunks() -> Iterator[tuple[np.ndarray, list[bytes]]]:
        for start in range(0, len(isic_ids), CHUNK):
            found = [(i, store.read(isic_ids[i])) for i in range(start, min(start + CHUNK, len(isic_ids)))]
            found = [(i, jpeg) for i, jpeg in found if jpeg]
            yield np.array([i for i, _ in found], dtype="int64"), np.array([jpeg for _, jpeg in found], dtype=object)

    def decoded(position, jpeg):
        # A dataset of one image, so that only an error of its decoder is passed over. Behind the whole chain,
        # ignore_errors would ask a broken reader again and again.
        one = tf.data.Dataset.from_tensors((position, jpeg))
        return one.map(lambda i, jpeg: (i, decode_crop(jpeg, image_size))).ignore_errors()

    signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.string))
    return (
        tf.data.Dataset.from_generator(chunks, output_signature=signature)
        .unbatch()
        .interleave(decoded, cycle_length=DECODERS, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
