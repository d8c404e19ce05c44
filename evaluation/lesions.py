"""The lesions that the submission is most wrong about: malignant ones scored low, benign ones scored high, as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from evaluation.grad_cam import heat_maps, readable_crops, side_by_side
from evaluation.html import SCALE, Section, jpeg_of
from evaluation.measures import FINAL, TABULAR
from inference.artifacts import best_network, load_manifest
from inference.images import find_images
from inference.schema import HOSPITAL, ID, PATIENT, TARGET
from train.folds import HOLDOUT
from train.lesions import open_images
from utils import InputError

EACH = 8  # lesions of each kind
SIDE = 256  # of a crop on the page, pixels
MINUS = "\N{MINUS SIGN}"
#: Heading, CSS class of a card, and name of the two kinds of lesions.
KINDS = (
    ("Hardest malignant lesions", "malignant", "malignant lesions with the lowest scores"),
    ("Top false alarms", "benign", "benign lesions with the highest scores"),
)


@dataclass(frozen=True)
class Card:
    """A lesion as the page shows it.

    Attributes:
        isic_id: its name.
        lines: scores, ranks and metadata, a text each.
        picture: JPEG bytes; empty where the image cannot be read.
        has_heat: whether the picture has a heat map right of the crop.
    """

    isic_id: str
    lines: list[str]
    picture: bytes
    has_heat: bool


def lesion_section(rows: pd.DataFrame, parts: pd.DataFrame, data: Path, artifacts: Path) -> Section:
    """Both kinds of lesions as cards, with crop, heat map, scores and metadata.

    Args:
        rows: labelled rows, as ``read_metadata`` gives them.
        parts: logits ``tabular`` and ``final``, and ``image_scored``, one row for each of ``rows``.
        data: competition folder with the images.
        artifacts: artifact folder with the networks.
    """
    chosen = most_wrong(rows[TARGET].to_numpy(), parts[FINAL].to_numpy())
    both = np.concatenate(chosen)
    ids, parts = rows[ID].iloc[both].tolist(), parts.reset_index(drop=True)
    crops, note = crops_of(data, ids)
    maps: dict[str, np.ndarray] = {}
    if crops:
        scored = parts.iloc[both].assign(**{ID: ids}).query("image_scored == 1")
        maps, note = heat_of(scored, data, artifacts)
    ranks = ranks_of(rows, parts[FINAL].to_numpy())
    kinds = []
    for (heading, kind, words), positions in zip(KINDS, chosen, strict=True):
        cards = []
        for place in positions:
            isic_id = rows[ID].iat[place]
            crop, heat = crops.get(isic_id), maps.get(isic_id)
            lines = [*score_lines(parts.iloc[place], ranks.iloc[place], heat), *metadata_lines(rows.iloc[place])]
            pixels = crop if heat is None or crop is None else side_by_side(crop, heat)
            picture = b"" if pixels is None else jpeg_of(pixels)
            cards.append(Card(str(isic_id), lines, picture, heat is not None))
        total = int((rows[TARGET] == (kind == "malignant")).sum())
        kinds.append({"heading": heading, "kind": kind, "words": words, "cards": cards, "total": total})
    return Section("Where the submission is most wrong", "report/lesions.html", {"note": note, "kinds": kinds})


def most_wrong(y_true: np.ndarray, y_score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the malignant lesions with the lowest scores, and of the benign ones with the highest, worst first.

    Args:
        y_true: 0 benign, 1 malignant, shape (rows,).
        y_score: shape (rows,).

    Returns:
        Two arrays of at most ``EACH`` positions.
    """
    rising = np.argsort(y_score, kind="stable")
    malignant = y_true[rising] == 1
    return rising[malignant][:EACH], rising[~malignant][::-1][:EACH]


def ranks_of(rows: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Each lesion's place from the highest score down, 1, 2, ...: among ``all`` and among the ``of`` of its ``patient``.

    Lesions of one score share the last of their places: examined from the top, each of them may be the last.
    """
    scored = pd.Series(scores, index=rows.index)
    by_patient = scored.groupby(rows[PATIENT])
    rank = {"ascending": False, "method": "max"}
    places = {"all": scored.rank(**rank), "patient": by_patient.rank(**rank), "of": by_patient.transform("size")}
    return pd.DataFrame(places).astype(int)


# Pictures


def crops_of(data: Path, isic_ids: list[str]) -> tuple[dict[str, np.ndarray], str]:
    """isic_id -> crop, uint8 of shape (SIDE, SIDE, 3), of lesions with a readable image; and why there is none at all."""
    if find_images(data, "train") is None:
        return {}, "The data hold no images, so there are no pictures."
    try:
        return readable_crops(open_images(data), isic_ids, SIDE), "None of these lesions has a readable image."
    except InputError as error:
        return {}, f"There are no pictures: {error}"


def heat_of(scored: pd.DataFrame, data: Path, artifacts: Path) -> tuple[dict[str, np.ndarray], str]:
    """isic_id -> heat map, in [0, 1] and of the networks' crop size, mean over the fold networks.

    Args:
        scored: ``isic_id`` and ``tabular`` of lesions that the networks have scored.
        data: the competition folder.
        artifacts: the artifact folder.

    Returns:
        The maps, and a sentence on the pictures, or on why there are no maps.
    """
    try:
        manifest = load_manifest(artifacts)
        names = best_network(manifest).get("weights")
        if not names:
            return {}, "The pictures are the crops; the artifacts hold no network, so there is no heat map."
        size = best_network(manifest)["settings"]["image_size"]
        crops = readable_crops(open_images(data), scored[ID].tolist(), size)
        scored = scored[scored[ID].isin(crops)].assign(fold=HOLDOUT)
        if scored.empty:
            return {}, "The pictures are the crops; the networks have scored none of these, so there is no heat map."
        maps, where = heat_maps(scored, np.stack([crops[isic_id] for isic_id in scored[ID]]), artifacts, manifest)
    except (InputError, LookupError) as error:
        return {}, f"The pictures are the crops; there is no heat map: {error}"
    of = f"the mean over {len(names)} fold networks, " if len(names) > 1 else ""
    return dict(zip(scored[ID], maps, strict=True)), (
        f"Left the crop, right of it where the networks look: Grad-CAM (Selvaraju and others 2017) at {where}, {of}scaled "
        f"to its warmest place. Yellow raises the logit most, grey does not. The networks take {size} x {size} pixels. "
        f"{SCALE}"
    )


# Texts


def score_lines(part: pd.Series, rank: pd.Series, heat: np.ndarray | None) -> list[str]:
    """A lesion's scores and ranks; and what its picture lacks."""
    logits = [f"{part[name]:+.2f}".replace("-", MINUS) for name in (TABULAR, FINAL)]
    chances = [f"{100 * expit(part[name]):.2g}\N{NO-BREAK SPACE}%" for name in (TABULAR, FINAL)]
    arrow = " \N{RIGHTWARDS ARROW} "
    lines = [
        f"logit {arrow.join(logits)}, tabular{arrow}final",
        f"probability {arrow.join(chances)}",
        f"rank {rank['all']:,} of all, {rank['patient']:,} of the patient's {rank['of']:,}",
    ]
    if part["image_scored"] != 1:
        lines.append("no image score: the final score is of the metadata alone")
    if heat is not None and not heat.any():
        lines.append("no place of the crop raises the logit")
    return lines


def metadata_lines(row: pd.Series) -> list[str]:
    """A line each for the lesion, its diagnosis, its patient and its hospital; missing values are left out."""

    def known(name: str, form: str = "{}") -> list[str]:
        value = row.get(name)
        return [form.format(value)] if pd.notna(value) and value != "" else []

    place = " ".join(known("anatom_site_general") + known("tbp_lv_location", "({})"))
    lesion = [place] if place else []
    lesion += known("clin_size_long_diam_mm", "{:.1f} mm") + known("tbp_tile_type")
    diagnosis = [name.rpartition("::")[2] for name in known("iddx_full")] + known("mel_thick_mm", "{} mm thick")
    patient = known("sex") + known("age_approx", "{:.0f} years") + known(PATIENT)
    return [", ".join(line) for line in (lesion, diagnosis, patient, known(HOSPITAL)) if line]
