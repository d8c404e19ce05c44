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
            scalar, properties = h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_obj_track_times(False)  # or equal images would give other bytes
            for isic_id, jpeg in bar:
                add_image(file.id, isic_id, jpeg, scalar, properties)
                if raw.error:
                    break
        if raw.error:
            raise raw.error


def add_image(
    file: h5py.h5f.FileID, isic_id: str, jpeg: bytes, scalar: h5py.h5s.SpaceID, properties: h5py.h5p.PropDCID
) -> None:
    """``file[isic_id] = np.bytes_(jpeg)`` by h5py's low-level interface, in 0.4 of the time."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(max(1, len(jpeg)))
    kind.set_strpad(h5py.h5t.STR_NULLPAD)
    dataset = h5py.h5d.create(file, isic_id.encode(), kind, scalar, properties)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(jpeg, kind.dtype), kind)
