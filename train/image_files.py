"""Writes images as the competition ships them: one HDF5 file, a scalar of JPEG bytes for each lesion, named by its id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from inference.files import replacing


def write_image_file(path: Path, images: Iterable[tuple[str, bytes]], count: int) -> None:
    """Writes ``count`` images, pairs of isic_id and JPEG bytes, in their order; memory does not grow with them.

    Raises:
        InputError: the folder cannot be written to.
    """
    bar = tqdm(images, desc=path.name, unit="image", total=count, disable=count < 1000)
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for isic_id, jpeg in bar:
            file.create_dataset(isic_id, data=np.bytes_(jpeg))
