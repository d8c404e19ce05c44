"""The images of a training as they were when it began: one that cannot be read any more, or is another one, is an error.

``train.lesions`` decodes every image once before a training and keeps a digest of its bytes. From there on, the images must
stay as they are: a file that is cut, replaced or removed under a running training would leave its batches empty. The
kernel, which must always write a submission, counts unreadable images instead.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from inference.images import ImageStore, image_batches
from scale.progress import Bar
from utils import InputError

#: To check that images can be decoded, they are shrunk to this many pixels, this many at a time.
CHECK_SIZE, CHECK_BATCH = 8, 256
#: How many isic_ids an error names.
EXAMPLES = 3
RESUME = "put it back as it was and run the same command, which continues after the last finished epoch"


def digest_of(image: bytes) -> int:
    """64 bits of a hash of an image's bytes; 0 for no image."""
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little") if image else 0


def image_digests(store: ImageStore, isic_ids: np.ndarray) -> np.ndarray:
    """``digest_of`` each lesion's image, uint64 of shape (lesions,); 0 where none can be decoded; reads each image once.

    Raises:
        InputError: the file or folder changed meanwhile.
    """

    class Digested:
        """Remembers the digest of what was read and given to the decoder."""

        def __init__(self) -> None:
            self.found: dict[str, int] = {}

        def read(self, isic_id: str) -> bytes:
            image = store.read(isic_id)
            self.found[isic_id] = digest_of(image)
            return image

    images, digests, state = Digested(), np.zeros(len(isic_ids), dtype="uint64"), file_state(store.path)
    with Bar(total=len(isic_ids), desc="checking images", unit="image") as bar:
        for positions, _ in image_batches(images, isic_ids.tolist(), CHECK_SIZE, CHECK_BATCH):
            for position in positions.numpy():
                digests[position] = images.found[isic_ids[position]]
            bar.update(len(positions))
    if file_state(store.path) != state:
        raise InputError(f"{store.path} was changed or removed while its images were checked; run the same command again.")
    return digests


class KnownImages:
    """The images of a store whose digests are known.

    Args:
        store: to read from.
        isic_ids: str, shape (lesions,).
        digests: theirs, of ``image_digests``; 0 for a lesion without an image.
    """

    def __init__(self, store: ImageStore, isic_ids: Iterable[str], digests: np.ndarray) -> None:
        self._store = store
        self._state = file_state(store.path)
        self._digests = {isic_id: int(digest) for isic_id, digest in zip(isic_ids, digests, strict=True) if digest}
        self._lost: str | None = None
        self._lock = threading.Lock()  # tf.data reads in a thread of its own

    def __contains__(self, isic_id: str) -> bool:
        """Whether the lesion had a readable image."""
        return isic_id in self._digests

    @property
    def digests(self) -> dict[str, int]:
        """isic_id -> digest, of the lesions that had a readable image."""
        return self._digests

    def read(self, isic_id: str) -> bytes:
        """The JPEG bytes of one lesion, the same as when the training began.

        Raises:
            InputError: they cannot be read, or are others. What tf.data makes of it, ``as_input_errors`` turns back.
        """
        with self._lock:
            image = self._store.read(isic_id)
        if digest_of(image) != self._digests.get(isic_id, 0):
            self._lost = isic_id
            raise InputError(f"{self._store.path}: the image of {isic_id} is not what it was.")
        return image

    def refuse_changes(self) -> None:
        """Where the file or folder has changed, or an image could not be read: compares all images with what they were.

        Raises:
            InputError: the file is gone or no image file any more, or some images cannot be read or are others.
        """
        path, state = self._store.path, file_state(self._store.path)
        if state == self._state and self._lost is None:
            return
        with self._lock:
            # Closed first: while a file is open, HDF5 opens it again from what it has in memory.
            self._store.close()
            try:
                self._store = ImageStore(path)
            except InputError as error:
                raise InputError(f"{path} was changed or removed during this training; {RESUME} ({error})") from error
            found = {isic_id: digest_of(self._store.read(isic_id)) for isic_id in self._digests}
        unreadable = [isic_id for isic_id, digest in found.items() if not digest]
        others = [isic_id for isic_id, digest in found.items() if digest and digest != self._digests[isic_id]]
        if unreadable or others:
            raise InputError(
                f"{path} has changed during this training: of {len(found):,} images {len(unreadable):,} cannot be read any "
                f"more and {len(others):,} are others, for example {', '.join((unreadable + others)[:EXAMPLES])}; {RESUME}."
            )
        if self._lost is not None:
            raise InputError(
                f"{path}: the image of {self._lost} could not be read, but now it can; run the same command again."
            )
        self._state = state  # the same images in another file

    def close(self) -> None:
        """Closes the store."""
        self._store.close()


class JoinedImages:
    """The images of two stores as one; the first that holds an isic_id gives its image."""

    def __init__(self, *stores: KnownImages) -> None:
        self._stores = stores

    def read(self, isic_id: str) -> bytes:
        """The JPEG bytes of one lesion; empty when no store holds it."""
        return next((store.read(isic_id) for store in self._stores if isic_id in store), b"")

    @property
    def digests(self) -> dict[str, int]:
        """isic_id -> digest, of the lesions that any store holds."""
        return {isic_id: digest for store in reversed(self._stores) for isic_id, digest in store.digests.items()}

    def refuse_changes(self) -> None:
        """As of each store."""
        for store in self._stores:
            store.refuse_changes()


def file_state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to, or one in a folder is; None where it cannot be found."""
    try:
        found = path.stat()
        entries = [(entry.name, entry.stat()) for entry in os.scandir(path)] if path.is_dir() else []
    except OSError:
        return None
    inside = frozenset((name, entry.st_size, entry.st_mtime_ns) for name, entry in entries)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, hash(inside)


@contextmanager
def as_input_errors(images: KnownImages | JoinedImages) -> Iterator[None]:
    """Inside, TensorFlow reads ``images``: an image that it was refused ends as InputError, which tf.data does not pass on.

    Raises:
        InputError: as ``KnownImages.refuse_changes``.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError:
        images.refuse_changes()
        raise
