"""The cards of the triage pages: a lesion's scores, the features that move them, its crop and its heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation.grad_cam import read_crops, side_by_side
from evaluation.html import jpeg_of
from inference.features import SITE
from inference.images import ImageStore
from inference.schema import ID, TARGET

#: Features that a card names.
DRIVERS = 6
#: Width and height of a crop on the page, pixels: about what the camera's crops have.
CROP_SIZE = 128


@dataclass(frozen=True)
class Driver:
    """A feature, its value in words, and its SHAP value in tabular logits."""

    feature: str
    value: str
    shap: float


@dataclass(frozen=True)
class Card:
    """A lesion as its card shows it.

    Attributes:
        place: among the patient's lesions by network logit, from 1.
        malignant: its label.
        tabular: logit.
        network: logit; the tabular one where no image was scored.
        site: anatomical site, or "unknown".
        known: its size and place on the body, in words.
        drivers: the strongest features, the strongest first.
        start: the models' mean score, logits. It, all drivers and ``others`` add up to ``tabular``.
        others: what all other features add, logits.
        crop: JPEG bytes; empty where no image was scored.
        description: what the crop's picture shows, read aloud.
    """

    isic_id: str
    place: int
    malignant: bool
    tabular: float
    network: float
    site: str
    known: str
    drivers: Sequence[Driver]
    start: float
    others: float
    crop: bytes
    description: str

    @property
    def driven(self) -> float:
        """What the drivers add together, logits."""
        return sum(driver.shap for driver in self.drivers)


def make_cards(
    rows: pd.DataFrame, features: pd.DataFrame, shap: np.ndarray, maps: Mapping[str, np.ndarray], store: ImageStore
) -> list[Card]:
    """The cards of a patient.

    Args:
        rows: of ``place_lesions`` with their metadata, in the order of the cards.
        features: theirs, shape (rows, features).
        shap: SHAP values, logits, same shape.
        maps: isic_id -> heat map of those that have one.
        store: of the crops.

    Raises:
        InputError: a lesion whose image was scored has no readable one.
    """
    with_crop = rows.loc[rows["image_scored"] == 1, ID].tolist()
    crops = dict(zip(with_crop, read_crops(store, with_crop, CROP_SIZE), strict=True))
    cards = []
    for position, (_, row) in enumerate(rows.iterrows()):
        crop, heat = crops.get(row[ID]), maps.get(row[ID])
        drivers, added = strongest(features.iloc[position], shap[position]), float(shap[position].sum())
        cards.append(
            Card(
                isic_id=row[ID],
                place=int(row["place"]),
                malignant=row[TARGET] == 1,
                tabular=float(row["tabular"]),
                network=float(row["network"]),
                site=str(row[SITE]) if pd.notna(row.get(SITE)) else "unknown",
                known=size_and_location(row),
                drivers=drivers,
                start=float(row["tabular"]) - added,
                others=added - sum(driver.shap for driver in drivers),
                crop=b"" if crop is None else jpeg_of(crop if heat is None else side_by_side(crop, heat)),
                description=describe(row[ID], heat),
            )
        )
    return cards


def strongest(features: pd.Series, shap: np.ndarray) -> list[Driver]:
    """The features of a lesion that move its score most, the first one most, with their values in words."""
    return [
        Driver(features.index[column], value_in_words(features.iloc[column]), float(shap[column]))
        for column in np.argsort(-np.abs(shap), kind="stable")[:DRIVERS]
    ]


def value_in_words(value: str | float) -> str:
    """A feature's value: a category as it is, a number to three digits, or "unknown"."""
    if isinstance(value, str):
        return value
    return "unknown" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size_and_location(row: pd.Series) -> str:
    """A lesion's size and place on the body as the end of a sentence, as far as the metadata have them."""
    size, location = row.get("clin_size_long_diam_mm"), row.get("tbp_lv_location")
    return (f", {size:.1f} mm" if pd.notna(size) else "") + (f", {location}" if pd.notna(location) else "")


def describe(isic_id: str, heat: np.ndarray | None) -> str:
    """What a lesion's picture shows, in words; ``heat`` is None where there is no heat map."""
    if heat is None:
        return f"Crop of {isic_id}."
    if not heat.any():
        return f"Crop of {isic_id}; right of it in grey, as no place raises the logit."
    row, column = (3 * np.array(np.unravel_index(int(heat.argmax()), heat.shape))) // np.array(heat.shape)
    where = f"{('upper', 'middle', 'lower')[row]} {('left', 'centre', 'right')[column]}"
    share = float((heat > 0.5).mean())
    return (
        f"Crop of {isic_id}; right of it its heat map: warmest in the {where}, more than half as warm on {share:.0%} of it."
    )
