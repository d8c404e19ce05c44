"""A competition folder as it is: every column and every row, and which lesions have an image of their own.

Training refuses doubtful rows (``schema.read_metadata``). Here they are read and counted, so that one run reports all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from inference.files import refuse_dangling
from inference.images import ImageStore, find_images
from inference.schema import COLUMNS, ID, PATIENT, TARGET, read_table
from inference.tables import lines_of
from scale.progress import SLOW, Bar
from utils import InputError

NUMERIC = [column.name for column in COLUMNS if column.kind == "number"]
#: Images are compared byte by byte until so many bytes have been read; all crops of the competition have some 1.2 GB.
MOST_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Images:
    """The images of a split.

    Attributes:
        source: the file or folder that holds them; None where there is none.
        present: which rows have one whose header can be read, shape (rows,).
        same: per row the number of its image: rows whose images are the same bytes share it, others have their own,
            -1 where there is no image or it was not compared; shape (rows,).
    """

    source: Path | None
    present: np.ndarray
    same: np.ndarray


@dataclass(frozen=True)
class Folder:
    """What a competition folder holds.

    Attributes:
        train: rows of train-metadata.csv, in its order, with all its columns: numbers float64, ids and categories str,
            ``target`` int64, columns that the schema does not know as pandas reads them.
        test: rows of test-metadata.csv in the same form; None where there is no such file.
        garbled: column -> how many cells of train hold text where the schema has a number; they count as missing.
        images: of the train rows.
        test_images: how many test rows have an image.
    """

    train: pd.DataFrame
    test: pd.DataFrame | None
    images: Images
    test_images: int = 0
    garbled: dict[str, int] = field(default_factory=dict)


def read_folder(data: Path) -> Folder:
    """Reads the metadata of both splits and looks through the images of train.

    Raises:
        InputError: train-metadata.csv is missing, is no CSV, has no row, or lacks the columns isic_id, patient_id or target;
            a label is not 0 or 1; an image file is no HDF5 file.
    """
    train, garbled = read_split(data / "train-metadata.csv", labelled=True)
    path = data / "test-metadata.csv"
    test = read_split(path, labelled=False)[0] if refuse_dangling(path).exists() else None
    test_images = 0
    if test is not None and (source := find_images(data, "test")):
        store = ImageStore(source)
        test_images = sum(lesion in store for lesion in test[ID].dropna())
        store.close()
    return Folder(train, test, read_images(data, train[ID]), test_images, garbled)


def read_split(path: Path, *, labelled: bool) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows of a metadata file, doubtful ones too, and per numeric column how many cells hold something else.

    Raises:
        InputError: as ``read_folder``.
    """
    frame = read_table(path)
    for name in (ID, PATIENT, *([TARGET] if labelled else [])):
        if name not in frame:
            columns = ", ".join(map(repr, frame.columns[:5]))
            raise InputError(f"{path.name} has no column {name!r} (it begins with {columns}); restore or rename it.")
    if frame.empty:
        raise InputError(f"{path.name} has no rows; fetch it again.")
    if labelled:
        labels = pd.to_numeric(frame[TARGET], errors="coerce")
        wrong = ~labels.isin([0, 1]).to_numpy()
        if wrong.any():
            row = int(np.argmax(wrong))
            line, value = lines_of(path)[row], frame[TARGET].tolist()[row]
            raise InputError(
                f"{path.name} line {line}: {TARGET} {value!r} is not 0 (benign) or 1 (malignant) "
                f"({int(wrong.sum())} such rows in all); correct it."
            )
        frame[TARGET] = labels.astype("int64")
    garbled = {}
    for name in (name for name in NUMERIC if name in frame):
        numbers = pd.to_numeric(frame[name], errors="coerce").astype("float64")
        numbers = numbers.where(np.isfinite(numbers))
        if count := int((numbers.isna() & frame[name].notna()).sum()):
            garbled[name] = count
        frame[name] = numbers
    return frame, garbled


def read_images(data: Path, isic_ids: pd.Series, most_bytes: int = MOST_BYTES) -> Images:
    """Looks for the image of every lesion of the train split and finds those that are the same bytes, by SHA-256.

    Args:
        data: the competition folder.
        isic_ids: of the rows, shape (rows,); an empty one has no image.
        most_bytes: after so many bytes the remaining images are only looked for.

    Raises:
        InputError: the image file is no HDF5 file.
    """
    source = find_images(data, "train")
    present, same = np.zeros(len(isic_ids), dtype=bool), np.full(len(isic_ids), -1)
    if source is None:
        return Images(None, present, same)
    store = ImageStore(source)
    numbers: dict[bytes, int] = {}  # SHA-256 -> number of the image
    first_rows: dict[str, int] = {}  # a repeated isic_id is the same image once, not a duplicate of it
    total = 0
    for row, lesion in enumerate(Bar(isic_ids.tolist(), desc="images", unit="image", delay=SLOW)):
        if pd.isna(lesion):
            continue
        if lesion in first_rows:
            present[row] = present[first_rows[lesion]]
        elif total >= most_bytes:
            present[row] = lesion in store
        elif content := store.read(lesion):
            present[row] = True
            total += len(content)
            same[row] = numbers.setdefault(hashlib.sha256(content).digest(), len(numbers))
        first_rows.setdefault(lesion, row)
    store.close()
    return Images(source, present, same)
