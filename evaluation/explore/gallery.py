"""Crops of an exploration's page: a sample of each class, and patients whose malignant lesion lies among their others."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from evaluation.html import picture
from inference.images import JPEG_START, MOST_PIXELS, ImageStore
from inference.schema import ID, PATIENT, TARGET

#: Bytes of an image that is shown as it is; crops have some 3,000, photographs up to millions.
MOST_BYTES = 40_000
#: Larger ones are shown with their longer side so many pixels long.
SIDE = 256
WORDS = ("benign", "malignant")


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


def told(lesion: pd.Series) -> str:
    """What is known of a lesion: age, sex, site, diameter."""
    words = []
    for name, form in (
        ("age_approx", "age {:.0f}"),
        ("sex", "{}"),
        ("anatom_site_general", "{}"),
        ("clin_size_long_diam_mm", "{:.1f} mm"),
    ):
        value = lesion.get(name)
        if pd.notna(value):
            words.append(form.format(value))
    return ", ".join(words)


def card(lesion: pd.Series, content: bytes, kind: str) -> str:
    """One lesion of a gallery: its picture, its id and what is known of it."""
    word, facts = WORDS[int(lesion[TARGET])], told(lesion)
    described = f"Crop of the {word} lesion {lesion[ID]}" + (f": {facts}" if facts else "")
    marked = ' class="malignant"' if lesion[TARGET] == 1 else ""
    image = picture(content, described, kind, 128)
    return f"<li{marked}>{image}<br><strong>{escape(str(lesion[ID]))}</strong><br>{word}<br>{escape(facts)}</li>"


def gallery(rows: pd.DataFrame, store: ImageStore, most: int, name: str) -> str:
    """Cards of the first ``most`` of ``rows`` whose image can be read, as a list called ``name``; "" where there is none."""
    cards = []
    for _, lesion in rows.iterrows():
        if len(cards) == most:
            break
        if shown := shown_image(store.read(lesion[ID])):
            cards.append(card(lesion, *shown))
    columns = "grid-template-columns:repeat(auto-fill,minmax(9rem,1fr))"
    return f'<ul class="cards" aria-label="{escape(name)}" style="{columns}">' + "".join(cards) + "</ul>" if cards else ""


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
        patients: whom to look at, in this order.
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
