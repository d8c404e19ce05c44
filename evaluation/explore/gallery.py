"""Crops on an exploration's page: a sample of each class, and a patient's malignant lesions beside their others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from inference.images import JPEG_START, MOST_PIXELS, ImageStore
from inference.schema import ID, PATIENT, TARGET
from utils import log

#: Bytes of an image that is shown as it is; crops have some 3,000, photographs up to millions.
MOST_BYTES = 40_000
#: Larger ones are shown with their longer side so many pixels long.
SIDE = 256
LABELS = ("benign", "malignant")
#: What a card says of a lesion, where the metadata have it.
KNOWN = {
    "age_approx": "age {:.0f}",
    "sex": "{}",
    "anatom_site_general": "{}",
    "clin_size_long_diam_mm": "{:.1f} mm",
}


@dataclass(frozen=True)
class Crop:
    """One lesion of a gallery: ``label`` is "benign" or "malignant", ``known`` its metadata in words, ``kind`` of image."""

    isic_id: str
    label: str
    known: str
    content: bytes
    kind: str


def shown_image(content: bytes) -> tuple[bytes, str] | None:
    """The bytes to show and their kind: as they are, made smaller where large; None where they cannot be read."""
    try:
        with Image.open(BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            image.load()
            if len(content) <= MOST_BYTES:
                return content, "jpeg" if content.startswith(JPEG_START) else "png"
            small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE))
            file = BytesIO()
            small.save(file, "JPEG", quality=88)
            return file.getvalue(), "jpeg"
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def gallery(rows: pd.DataFrame, store: ImageStore | None, most: int) -> list[Crop]:
    """The first ``most`` of ``rows`` whose image can be read, and a line on the others; none without a ``store``."""
    if store is None:
        return []
    crops: list[Crop] = []
    unreadable = []
    for _, lesion in rows.iterrows():
        if len(crops) == most:
            break
        if shown := shown_image(store.read(lesion[ID])):
            known = [form.format(lesion[name]) for name, form in KNOWN.items() if pd.notna(lesion.get(name))]
            crops.append(Crop(lesion[ID], LABELS[int(lesion[TARGET])], ", ".join(known), *shown))
        else:
            unreadable.append(lesion[ID])
    if unreadable:
        log(f"{len(unreadable):,} images are missing or broken and not shown, such as that of {unreadable[0]}")
    return crops


def sampled(train: pd.DataFrame, present: np.ndarray, label: int, seed: int) -> pd.DataFrame:
    """The rows of one class that have an image, each lesion once, shuffled."""
    rows = train[present & (train[TARGET] == label).to_numpy()].drop_duplicates(ID)
    return rows.sample(frac=1, random_state=seed)


def side_by_side(
    train: pd.DataFrame, present: np.ndarray, patients: Sequence[str], most: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Patient -> some of the patient's rows that have an image: up to two malignant ones first, then others.

    Patients whose images do not show both classes are left out.

    Args:
        train: all rows.
        present: which have an image, shape (rows,).
        patients: ids, in the order of the result.
        most: lesions per patient.
        seed: draws the lesions.
    """
    shown = {}
    for patient in patients:
        rows = train[present & (train[PATIENT] == patient).to_numpy()].drop_duplicates(ID).sample(frac=1, random_state=seed)
        malignant, others = rows[rows[TARGET] == 1].head(2), rows[rows[TARGET] == 0]
        if len(malignant) and len(others):
            shown[patient] = pd.concat([malignant, others.head(most - len(malignant))])
    return shown
