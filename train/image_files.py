"""Writes images as the competition ships them: one HDF5 file, a scalar of JPEG bytes for each lesion, named by its id."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inference.files import replacing
from scale.progress import SLOW, Bar


class _NewFile(io.FileIO):
    """A file to write; what the disk refuses is kept in ``error``: HDF5 crashes where a write fails as it closes."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of ``data``, a memoryview, unless the disk has refused something."""
        left = memoryview(data).cast("B")
        while len(left) and not self.error:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Sets the size, unless the disk has refused something."""
        try:
            return self.tell() if self.error else super().truncate(size)
        except OSError as error:
            self.error = error
            return self.tell()


def write_image_file(path: Path, images: Iterable[tuple[str, bytes]], count: int) -> None:
    """Writes ``count`` images, pairs of isic_id and JPEG bytes, in their order; memory does not grow with them.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    bar = Bar(images, desc=path.name, unit="image", total=count, delay=SLOW)
    with replacing(path) as temporary, _NewFile(temporary, "w+") as raw:
        with h5py.File(raw, "w") as file:
            for isic_id, jpeg in bar:
                file.create_dataset(isic_id, data=np.bytes_(jpeg))
                if raw.error:
                    break
        if raw.error:
            raise raw.error
