"""The lesions that the submission is most wrong about, as pictures: malignant ones scored low, benign ones scored high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from evaluation.grad_cam import class_activation, side_by_side
from evaluation.html import jpeg_of, picture
from evaluation.measures import FINAL, TABULAR
from inference.artifacts import Manifest, checked_file, load_manifest
from inference.images import ImageStore, find_images, image_batches
from inference.network import NetworkConfig, load_network
from inference.schema import HOSPITAL, ID, PATIENT, TARGET
from utils import InputError

EACH = 8  # lesions of each kind
SIDE = 256  # of a crop on the page, pixels
ARROW, MINUS = "\N{RIGHTWARDS ARROW}", "\N{MINUS SIGN}"
#: What the page says of the two kinds: heading, CSS class of a card, what they are.
KINDS = (
    ("Hardest malignant lesions", "malignant", "malignant lesions with the lowest scores"),
    ("Top false alarms", "benign", "benign lesions with the highest scores"),
)


def most_wrong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the malignant lesions with the lowest scores, and of the benign ones with the highest, worst first.

    Args:
        labels: 0 benign, 1 malignant, shape (rows,).
        scores: shape (rows,).

    Returns:
        Two arrays of at most ``EACH`` positions.
    """
    rising = np.argsort(scores, kind="stable")
    malignant = labels[rising] == 1
    return rising[malignant][:EACH], rising[~malignant][::-1][:EACH]


def lesion_sections(rows: pd.DataFrame, parts: pd.DataFrame, data: Path, artifacts: Path) -> str:
    """HTML: both kinds of lesions as cards, with crop, heat map, scores and what the metadata say.

    Args:
        rows: labelled rows, as ``read_metadata`` gives them.
        parts: logits ``tabular`` and ``final``, and ``image_scored``, one row for each of ``rows``.
        data: competition folder with the images.
        artifacts: artifact folder with the networks.
    """
    chosen = most_wrong(rows[TARGET].to_numpy(), parts[FINAL].to_numpy())
    both = np.concatenate(chosen)
    crops, why = shown_crops(data, rows[ID].to_numpy()[both])
    maps, sentence = shown_maps(both, rows, parts, data, artifacts) if crops else ({}, why)
    ranks = ranks_of(rows, parts[FINAL].to_numpy())
    sections = [f"<p>{escape(sentence)}</p>"]
    for (heading, kind, what), positions in zip(KINDS, chosen, strict=True):
        cards = [
            _card(number, kind, rows.iloc[place], parts.iloc[place], ranks.iloc[place], crops, maps)
            for number, place in enumerate(positions, 1)
        ]
        among = int((rows[TARGET] == (kind == "malignant")).sum())
        sections.append(
            f'<h3 id="{kind}-lesions">{heading}</h3>\n<p>The {len(cards)} {what}, of {among:,}.</p>\n'
            '<ul class="cards" style="grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr))">\n'
            + "\n".join(cards)
            + "\n</ul>"
        )
    return "\n".join(sections)


# Pictures


def shown_crops(data: Path, isic_ids: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    """isic_id -> crop, uint8 of shape (SIDE, SIDE, 3), of lesions with a readable image; and why there is none at all."""
    source = find_images(data, "train")
    if source is None:
        return {}, "The data hold no images, so the lesions are told in words alone."
    try:
        crops = read_crops(source, isic_ids, SIDE)
    except InputError as error:
        return {}, f"The lesions are told in words alone: {error}"
    return crops, "None of these lesions has a readable image."


def read_crops(source: Path, isic_ids: Sequence[str], size: int) -> dict[str, np.ndarray]:
    """isic_id -> crop, uint8 of shape (size, size, 3), decoded as for the networks; without those that cannot be read.

    Raises:
        InputError: ``source`` is no file of images.
    """
    store, crops = ImageStore(source), {}
    for positions, decoded in image_batches(store, list(isic_ids), size, max(1, len(isic_ids))):
        crops |= dict(zip((isic_ids[place] for place in positions.numpy()), decoded.numpy(), strict=True))
    store.close()
    return crops


def shown_maps(
    chosen: np.ndarray, rows: pd.DataFrame, parts: pd.DataFrame, data: Path, artifacts: Path
) -> tuple[dict[str, np.ndarray], str]:
    """isic_id -> heat map, shape (SIDE, SIDE), of the lesions at the positions ``chosen`` that a network has seen.

    Returns:
        The maps, and a sentence on what is shown, or on why there are none.
    """
    from PIL import Image

    try:
        manifest = load_manifest(artifacts)
        if not manifest.get("network", {}).get("weights"):
            return {}, "Shown is the crop; the artifacts hold no network, so there is no heat map."
        size = manifest["network"]["settings"]["image_size"]
        seen = chosen[parts["image_scored"].to_numpy()[chosen] == 1]
        crops = read_crops(find_images(data, "train"), rows[ID].to_numpy()[seen], size)
        seen = [place for place in seen if rows[ID].iat[place] in crops]
        if not seen:
            return {}, "Shown is the crop; the networks have seen none of these, so there is no heat map."
        stack = np.stack([crops[rows[ID].iat[place]] for place in seen])
        heat = mean_heat(artifacts, manifest, stack, parts[TABULAR].to_numpy()[seen])
    except (InputError, LookupError) as error:
        return {}, f"Shown is the crop; there is no heat map: {error}"
    maps = {
        rows[ID].iat[place]: np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        for place, each in zip(seen, heat, strict=True)
    }
    count = len(manifest["network"]["weights"])
    return maps, (
        "Left the crop, right where the networks look: Grad-CAM (Selvaraju and others 2017), the mean over "
        f"{'the ' + str(count) + ' fold networks, each' if count > 1 else 'the one network,'} scaled to its warmest place. "
        f"Yellow raises the logits most, grey does not. The networks see {size} x {size} pixels."
    )


def mean_heat(artifacts: Path, manifest: Manifest, crops: np.ndarray, tabular: np.ndarray) -> np.ndarray:
    """Grad-CAM of each crop, mean over the fold networks, float32 of shape (rows, size, size).

    Raises:
        InputError: a network is not the one that was trained, or sees no crop.
    """
    names, total = manifest["network"]["weights"], np.zeros(crops.shape[:3], dtype="float32")
    for name in tqdm(names, desc="heat maps", unit="network"):
        network = load_network(
            NetworkConfig.from_dict(manifest["network"]["settings"]), checked_file(artifacts, manifest, name)
        )
        total += class_activation(network, crops, tabular) / len(names)
    return total


# Cards


def ranks_of(rows: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Each lesion's place from the highest score down, 1, 2, ...: among ``all`` and among the ``of`` of its ``patient``.

    Lesions of one score share the last place that they take up together, as whoever examines from the top may meet them.
    """
    scored = pd.Series(scores, index=rows.index)
    by_patient = scored.groupby(rows[PATIENT])
    rank = {"ascending": False, "method": "max"}
    places = {"all": scored.rank(**rank), "patient": by_patient.rank(**rank), "of": by_patient.transform("size")}
    return pd.DataFrame(places).astype(int)


def _card(
    number: int,
    kind: str,
    row: pd.Series,
    part: pd.Series,
    rank: pd.Series,
    crops: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
) -> str:
    """One lesion: picture, scores, ranks, metadata."""
    isic_id = row[ID]
    lines = [
        f"logits {_signed(part[TABULAR])} {ARROW} {_signed(part[FINAL])}, tabular {ARROW} final; "
        f"probability {_chance(part[TABULAR])} {ARROW} {_chance(part[FINAL])}",
        f"rank {rank['all']:,} of all, {rank['patient']:,} of the patient's {rank['of']:,}",
        *(escape(line) for line in _told(row)),
    ]
    lit = isic_id in maps and maps[isic_id].any()
    lines += (
        [] if part["image_scored"] == 1 else ["the networks have not seen its image: the final score is of the metadata"]
    )
    lines += ["no place of the crop raises the logits"] if isic_id in maps and not lit else []
    shown = ""
    if isic_id in crops:
        mapped = isic_id in maps
        pixels = side_by_side(crops[isic_id], maps[isic_id]) if mapped else crops[isic_id] / 255.0
        also = ", right of it the same crop under its heat map" if mapped else ""
        shown = picture(jpeg_of(pixels), f"Crop of the {kind} lesion {isic_id}{also}.")
    told = "".join(f"<br>{line}\n" for line in lines)
    return f'<li class="{kind}">{shown}\n<div><strong>{number}. {escape(str(isic_id))}</strong>\n{told}</div></li>'


def _told(row: pd.Series) -> list[str]:
    """What is known of a lesion, a line each for the lesion, its diagnosis, its patient; what is missing is left out."""

    def known(name: str, form: str = "{}") -> list[str]:
        value: Any = row.get(name)
        return [form.format(value)] if pd.notna(value) and value != "" else []

    place = known("anatom_site_general") + known("tbp_lv_location", "({})")
    lesion = [" ".join(place)] if place else []
    lesion += known("clin_size_long_diam_mm", "{:.1f} mm") + known("tbp_tile_type")
    diagnosis = [str(name).rpartition("::")[2] for name in known("iddx_full")] + known("mel_thick_mm", "{} mm thick")
    patient = known("sex") + known("age_approx", "{:.0f} years") + known(PATIENT)
    return [", ".join(line) for line in (lesion, diagnosis, patient, known(HOSPITAL)) if line]


def _signed(value: float) -> str:
    """A number with its sign, and a minus that is one."""
    return f"{value:+.2f}".replace("-", MINUS)


def _chance(logits: float) -> str:
    """A probability in per cent."""
    return f"{100 * expit(logits):.2g}\N{NO-BREAK SPACE}%"
