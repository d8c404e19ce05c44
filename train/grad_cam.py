"""Where the fusion network looks: heat maps over the crops that it is most wrong about, as two contact sheets.

    python -m train.grad_cam --data data/isic-2024-challenge --artifacts artifacts --out looked_at

The sheets show the malignant lesions with the lowest out-of-fold log-odds and the benign ones with the highest, each through
the eyes of the one network that has not seen its patient. A heat map is a Grad-CAM (Selvaraju and others 2017,
arXiv:1610.02391): it is warm where the crop holds what raises the log-odds, and says nothing of what lowers them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from inference.artifacts import Manifest, checked_file, load_manifest
from inference.files import InputError, replacing
from inference.heat_map import BATCH, SEAM, backbone_of, class_activation, default_layer, side_by_side
from inference.images import ImageStore, image_batches
from inference.network import load_network
from inference.schema import ID, TARGET, read_metadata
from train.folds import HOLDOUT
from train.fusion_results import OOF_FUSION
from train.lesions import open_images
from utils import add_data_options, run_command, say, write_csv

#: Sheet -> whose lesions it shows, as target and in words, and from which end of their log-odds.
SHEETS = {"hardest_malignant": (1, "malignant", "lowest"), "top_false_alarms": (0, "benign", "highest")}
#: More would be taller than a PNG of matplotlib can be.
MOST_LESIONS = 300
COLUMNS = 3
# Of a sheet, in inches: the width of a cell, its caption, the heading, and the space around cells.
CELL, CAPTION, HEADING, GAP = 3.9, 0.54, 0.95, 0.2


# Which lesions, and what the networks see in them


def refuse_without_networks(artifacts: Path, manifest: Manifest) -> None:
    """Raises InputError where ``artifacts``, whose manifest is given, has no networks."""
    if not manifest.get("network", {}).get("weights"):
        raise InputError(f"{artifacts} has no networks; run: python -m train.fusion --data DIR --artifacts {artifacts}")


def choose_lesions(oof: pd.DataFrame, lesions: int) -> pd.DataFrame:
    """The rows of the sheets, a sheet after the other, each from its most wrong lesion on.

    Args:
        oof: oof_fusion.csv.
        lesions: of each sheet at most.

    Returns:
        ``isic_id``, ``target``, ``fold``, ``tabular`` and ``log_odds`` as in ``oof``; ``sheet``, a key of ``SHEETS``; and
        ``rank`` in it, from 1.

    Raises:
        InputError: no image was seen of a malignant, or of a benign, lesion.
    """
    seen, chosen = oof[oof["image_seen"] == 1], []
    for sheet, (target, word, end) in SHEETS.items():
        ranked = seen[seen[TARGET] == target].sort_values(["log_odds", ID], ascending=[end == "lowest", True])
        if ranked.empty:
            raise InputError(f"{OOF_FUSION} has no {word} lesion whose image was seen; run train.fusion with the images.")
        first = ranked[[ID, TARGET, "fold", "tabular", "log_odds"]].head(lesions)
        chosen.append(first.assign(sheet=sheet, rank=np.arange(1, len(first) + 1)))
    return pd.concat(chosen, ignore_index=True)


def read_crops(store: ImageStore, isic_ids: Sequence[str], image_size: int) -> np.ndarray:
    """The lesions' crops, uint8 of shape (lesions, image_size, image_size, 3), decoded as for the network's own scores.

    Raises:
        InputError: a lesion has no readable image.
    """
    crops = np.zeros((len(isic_ids), image_size, image_size, 3), dtype="uint8")
    unread = np.ones(len(isic_ids), dtype=bool)
    for positions, decoded in image_batches(store, isic_ids, image_size, BATCH):
        crops[positions.numpy()], unread[positions.numpy()] = decoded.numpy(), False
    if unread.any():
        raise InputError(
            f"{store.path} has no readable image of {isic_ids[int(unread.argmax())]}, which the networks have seen "
            f"({int(unread.sum())} such lesions in all); give the --data that they were trained on."
        )
    return crops


def heat_maps(chosen: pd.DataFrame, crops: np.ndarray, artifacts: Path, manifest: Manifest) -> tuple[np.ndarray, str]:
    """Heat maps of the chosen lesions, each by the network of its fold, which has not seen it; of a holdout lesion by all.

    Args:
        chosen: ``fold``, which may be ``HOLDOUT``, and ``tabular`` of the lesions.
        crops: theirs, in the same order.
        artifacts: the folder of the networks.
        manifest: its manifest.

    Returns:
        As ``class_activation`` gives them, the mean of several networks' scaled again so that its warmest place is 1; and
        where in ResNet50 they were taken: the layer and its cells, in words.

    Raises:
        InputError: there is no network of a fold, or it is not the one that was trained.
    """
    names, maps, where = manifest["network"]["weights"], np.zeros(crops.shape[:3], dtype="float32"), ""
    fold = chosen["fold"].to_numpy()
    orphans = set(fold) - {HOLDOUT} - set(range(len(names)))
    if orphans:
        raise InputError(f"{OOF_FUSION} has lesions of fold {min(orphans)} and the manifest no network of it; train again.")
    rows_of = {number: np.flatnonzero((fold == number) | (fold == HOLDOUT)) for number in range(len(names))}
    with tqdm(total=sum(map(len, rows_of.values())), desc="heat maps", unit="lesion") as bar:
        for number, rows in rows_of.items():
            if not len(rows):
                continue
            network = load_network(manifest["network"]["settings"], checked_file(artifacts, manifest, names[number]))
            layer = default_layer(network)
            maps[rows] += class_activation(network, crops[rows], chosen["tabular"].to_numpy()[rows], layer)
            cells = backbone_of(network).get_layer(layer).output.shape[1]
            where = f"{layer}, {cells} x {cells} cells"
            bar.update(len(rows))
    warmest = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, warmest, out=np.zeros_like(maps), where=warmest > 0), where


# The sheets


def caption(lesion: pd.Series, metadata: pd.Series, lit: bool) -> str:
    """Lines on a lesion: its id, log-odds without and with the crop, and what is known of age, sex and site.

    Args:
        lesion: a row of ``choose_lesions``.
        metadata: the same lesion's row of the metadata; what it lacks is not spoken of.
        lit: whether its heat map is above zero anywhere.
    """
    known = {name: metadata.get(name) for name in ("age_approx", "sex", "anatom_site_general")}
    told = [f"age {value:.0f}" if name == "age_approx" else str(value) for name, value in known.items() if pd.notna(value)]
    dark = "" if lit else "   (no place raises it)"
    return "\n".join(
        [
            f"{lesion['rank']}   {lesion[ID]}",
            f"log-odds {lesion['tabular']:+.2f} \N{RIGHTWARDS ARROW} {lesion['log_odds']:+.2f}{dark}",
            *([", ".join(told)] if told else []),
        ]
    )


def draw_sheet(
    path: Path, heading: str, explanation: str, crops: np.ndarray, maps: np.ndarray, captions: Sequence[str]
) -> None:
    """One PNG of all lesions: a crop, its heat map and its caption in each cell, ``COLUMNS`` cells in a row.

    Args:
        path: the file.
        heading: what the sheet shows.
        explanation: how it was made, in small print.
        crops: uint8, shape (lesions, size, size, 3).
        maps: in [0, 1], shape (lesions, size, size).
        captions: a text for each lesion.
    """
    from matplotlib.figure import Figure

    picture = CELL / (2 + SEAM)
    lines = -(-len(crops) // COLUMNS)
    step = CAPTION + picture + GAP
    width, height = GAP + COLUMNS * (CELL + GAP), HEADING + lines * step
    figure = Figure(figsize=(width, height))
    figure.text(GAP / width, 1 - 0.18 / height, heading, fontsize=13, va="top")
    figure.text(GAP / width, 1 - 0.48 / height, explanation, fontsize=9, va="top", color="#57606a", linespacing=1.4)
    for number, (crop, heat, text) in enumerate(zip(crops, maps, captions, strict=True)):
        left = GAP + number % COLUMNS * (CELL + GAP)
        top = HEADING + number // COLUMNS * step
        axes = figure.add_axes((left / width, 1 - (top + CAPTION + picture) / height, CELL / width, picture / height))
        axes.imshow(side_by_side(crop, heat), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        above = 1 - (top + CAPTION - 0.06) / height
        figure.text(left / width, above, text, fontsize=9, va="bottom", linespacing=1.3, parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Writes hardest_malignant.png, top_false_alarms.png and grad_cam.csv."""
    parser = argparse.ArgumentParser(
        description="Where the fusion network looks -> hardest_malignant.png, top_false_alarms.png, grad_cam.csv"
    )
    add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the sheets and the table")
    parser.add_argument("--lesions", type=int, default=12, help="lesions on each sheet at most (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not 1 <= options.lesions <= MOST_LESIONS:
        raise InputError(f"--lesions {options.lesions} makes no sheet; give 1 to {MOST_LESIONS}.")
    manifest = load_manifest(options.artifacts)
    refuse_without_networks(options.artifacts, manifest)
    oof = pd.read_csv(checked_file(options.artifacts, manifest, OOF_FUSION), dtype={ID: "str"})
    chosen = choose_lesions(oof, options.lesions)
    crops = read_crops(open_images(options.data), chosen[ID].tolist(), manifest["network"]["settings"]["image_size"])
    metadata = read_metadata(options.data / "train-metadata.csv", labelled=True).set_index(ID).reindex(chosen[ID])
    maps, where = heat_maps(chosen, crops, options.artifacts, manifest)
    lit = maps.any(axis=(1, 2))
    explanation = (
        f"python -m train.grad_cam --lesions {options.lesions}.  Log-odds: tabular \N{RIGHTWARDS ARROW} with the crop, "
        f"by the network that has not seen the patient.\nRight of each crop its Grad-CAM ({where}), each on its own scale: "
        "yellow raises the log-odds most, grey does not."
    )
    for sheet, (target, word, end) in SHEETS.items():
        rows = np.flatnonzero(chosen["sheet"] == sheet)
        among = int(((oof["image_seen"] == 1) & (oof[TARGET] == target)).sum())
        heading = f"{word.capitalize()} lesions with the {end} out-of-fold log-odds: {len(rows)} of {among:,}"
        captions = [caption(chosen.iloc[row], metadata.iloc[row], lit[row]) for row in rows]
        draw_sheet(options.out / f"{sheet}.png", heading, explanation, crops[rows], maps[rows], captions)
    write_csv(options.out / "grad_cam.csv", chosen)
    shown = " and ".join(f"{(chosen['sheet'] == sheet).sum()} {word}" for sheet, (_, word, _) in SHEETS.items())
    say(
        f"{options.out}: {shown} lesions seen by {chosen['fold'].nunique()} networks, Grad-CAM at {where}; "
        f"in {int((~lit).sum())} of them no place raises the log-odds"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
