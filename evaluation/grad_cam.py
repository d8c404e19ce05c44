"""Where a network looks: a Grad-CAM heat map over each crop (Selvaraju and others 2017, arXiv:1610.02391). A local tool.

A heat map is warm where the crop holds what raises the logits, and says nothing of what lowers them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from utils import InputError

if TYPE_CHECKING:
    import keras
import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from inference.artifacts import OOF_FUSION, Manifest, checked_file, load_manifest
from inference.files import replacing, write_csv
from inference.images import ImageStore, image_batches
from inference.network import NetworkConfig, load_network
from inference.schema import ID, TARGET, read_metadata
from train.folds import HOLDOUT
from train.lesions import open_images
from utils import add_data_options, log, run_command

#: ResNet50's stages, from the one that knows best what it sees to the one that knows best where.
STAGES = ("conv5_block3_out", "conv4_block6_out", "conv3_block4_out", "conv2_block3_out")
#: With fewer cells across, a heat map cannot tell a lesion from the skin around it.
FEWEST_CELLS = 4
#: Crops that go through the network at once.
BATCH = 16
#: White between a crop and its heat map, as a share of the crop's width.
SEAM = 0.03
#: How much of the crop its warmest place hides.
OPACITY = 0.6
COLOURS = "inferno"


def backbone_of(network: keras.Model) -> keras.Model:
    """The network's ResNet50. Raises InputError where it has none because it sees no crop."""
    inputs = [tensor.name for tensor in network.inputs]
    if "crop" not in inputs:
        raise InputError(f"the network {network.name!r} sees {', '.join(inputs)} and no crop; ask one that sees the crop.")
    return network.get_layer("resnet50")


def default_layer(network: keras.Model) -> str:
    """The last stage of the network's ResNet50 whose feature maps have at least 4 x 4 cells.

    That is conv5 for crops of 97 pixels and more, conv4 from 49 pixels on, and conv3 below.

    Raises:
        InputError: the network sees no crop.
    """
    backbone = backbone_of(network)
    return next(stage for stage in STAGES if min(backbone.get_layer(stage).output.shape[1:3]) >= FEWEST_CELLS)


def tapped(network: keras.Model, layer: str) -> Callable:
    """The network, run so that feature maps from inside its ResNet50 come out beside the logits.

    Args:
        network: fusion or image alone, as ``inference.network.build_network`` makes them.
        layer: a layer of its ResNet50.

    Returns:
        A function of crops, uint8 (rows, size, size, 3), and tabular logits, float32 (rows, 1), which the image alone
        ignores. It gives three tensors: the feature maps, (rows, height, width, channels); the derivative of each row's
        logits by them, of the same shape; and the logits, float32 (rows, 1).

    Raises:
        InputError: the network sees no crop, or its ResNet50 has no feature maps of that name.
    """
    import keras
    import tensorflow as tf

    backbone, inputs = backbone_of(network), {tensor.name: tensor for tensor in network.inputs}
    maps = next((each.output for each in backbone.layers if each.name == layer), None)
    if maps is None or len(maps.shape) != 4:
        raise InputError(f"the network's ResNet50 has no feature maps {layer!r}; choose one of {', '.join(STAGES)}.")
    # What lies inside the nested ResNet50 is no tensor of the network, so the network is run in parts around it.
    centre = keras.Model(inputs["crop"], network.get_layer("less_imagenet_mean").output)
    look = keras.Model(backbone.input, [maps, backbone.output])
    named = {each.name: each for each in network.layers}

    def decide(seen, opinion):
        if "tabular" in inputs:
            seen = named["crop_and_tabular_logit"]([seen, named["standardised_tabular_logit"](opinion)])
        hidden = named["head_dropout"](named["head"](seen), training=False)
        correction = named["correction"](hidden)
        return named["final_logits"]([opinion, correction]) if "tabular" in inputs else correction

    def run(crops, opinion):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            centred = centre(crops)
            tape.watch(centred)
            found, seen = look(centred, training=False)
            logits = decide(seen, opinion)
        return found, tape.gradient(logits, found), logits

    return run


def spread(cells: np.ndarray, size: int) -> np.ndarray:
    """Feature maps over the crop, bilinear between the pixels that their cells look at.

    Cell i of Keras' ResNet50 looks at pixel i * stride and around it, for each of its strides takes the first of two.
    That is the corner of the cell's share of the crop: a plain resize, which puts the cell in the middle of its share, would
    move the heat down and right by half a cell.

    Args:
        cells: shape (rows, n, n).
        size: of the crop, pixels; the stride is the power of two that makes n cells of it.

    Returns:
        Shape (rows, size, size). Below and right of the last cells' pixels nothing more is known, and the heat stays theirs.
    """
    count = cells.shape[1]
    stride = 2 ** math.ceil(math.log2(size / count))
    at = np.minimum(np.arange(size) / stride, count - 1)
    share = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(count))).astype(cells.dtype)
    return share @ cells @ share.T


def class_activation(
    network: keras.Model, crops: np.ndarray, tabular: np.ndarray | None, layer: str | None = None
) -> np.ndarray:
    """Grad-CAM: how much each place of a crop adds to the network's logits (Selvaraju and others 2017, equations 1 and 2).

    A channel's weight is the mean over the places of the derivative of the logits by its feature map; the heat is the
    weighted sum of the channels' feature maps, where it is above zero.

    Args:
        network: fusion or image alone, as ``inference.network.build_network`` makes them.
        crops: as ``inference.images.image_batches`` gives them, uint8 of shape (rows, size, size, 3).
        tabular: tabular logits, shape (rows,); the image alone does not read them, and takes None.
        layer: where in ResNet50 the feature maps are taken; None for ``default_layer``.

    Returns:
        float32 of shape (rows, size, size). The warmest place of each crop is 1, so maps of two crops do not compare; a crop
        of which no place raises the logits is 0 all over.

    Raises:
        InputError: as ``tapped``; the crops are not of the network's size; there is no tabular logits for each crop.
    """
    import tensorflow as tf

    run = tapped(network, layer or default_layer(network))
    asked = {tensor.name: tensor for tensor in network.inputs}
    size = tuple(asked["crop"].shape[1:])
    if crops.shape[1:] != size:
        raise InputError(
            f"the crops have the shape {crops.shape}, the network sees (rows, {size[0]}, {size[1]}, 3); resize."
        )
    if "tabular" in asked and np.shape(tabular) != (len(crops),):
        raise InputError(f"{len(crops)} crops came with tabular logits of shape {np.shape(tabular)}; give one to each.")
    opinion = np.zeros(len(crops)) if tabular is None else np.asarray(tabular)
    heat = np.zeros(crops.shape[:3], dtype="float32")
    for start in range(0, len(crops), BATCH):
        rows = slice(start, start + BATCH)
        found = run(tf.constant(crops[rows]), tf.constant(opinion[rows, None], tf.float32))
        maps, derivative = (tensor.numpy().astype("float32") for tensor in found[:2])
        weights = derivative.mean(axis=(1, 2))
        heat[rows] = spread(np.maximum(np.einsum("rc,rijc->rij", weights, maps), 0), size[0])
    warmest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, warmest, out=np.zeros_like(heat), where=warmest > 0)


def side_by_side(crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A crop and, right of it, the same under its heat: RGB float64 in [0, 1], shape (size, 2 * size + seam, 3)."""
    from matplotlib import colormaps

    plain = crop / 255.0
    # In grey, so that colour means heat; the more heat, the less of the crop.
    grey = np.repeat(plain.mean(axis=-1, keepdims=True), 3, axis=-1)
    share = OPACITY * heat[..., None]
    seam = np.ones((len(crop), max(1, round(SEAM * len(crop))), 3))
    return np.hstack([plain, seam, (1 - share) * grey + share * colormaps[COLOURS](heat)[..., :3]])


#: Sheet -> whose lesions it shows, as target and in words, and from which end of their logits.
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
        ``isic_id``, ``target``, ``fold``, ``tabular`` and ``logits`` as in ``oof``; ``sheet``, a key of ``SHEETS``; and
        ``rank`` in it, from 1.

    Raises:
        InputError: no image was seen of a malignant, or of a benign, lesion.
    """
    seen, chosen = oof[oof["image_scored"] == 1], []
    for sheet, (target, word, end) in SHEETS.items():
        ranked = seen[seen[TARGET] == target].sort_values(["network", ID], ascending=[end == "lowest", True])
        if ranked.empty:
            raise InputError(f"{OOF_FUSION} has no {word} lesion whose image was seen; run train.fusion with the images.")
        first = ranked[[ID, TARGET, "fold", "tabular", "network"]].head(lesions)
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
            network = load_network(
                NetworkConfig.from_dict(manifest["network"]["settings"]), checked_file(artifacts, manifest, names[number])
            )
            layer = default_layer(network)
            maps[rows] += class_activation(network, crops[rows], chosen["tabular"].to_numpy()[rows], layer)
            cells = backbone_of(network).get_layer(layer).output.shape[1]
            where = f"{layer}, {cells} x {cells} cells"
            bar.update(len(rows))
    warmest = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, warmest, out=np.zeros_like(maps), where=warmest > 0), where


# The sheets


def caption(lesion: pd.Series, metadata: pd.Series, lit: bool) -> str:
    """Lines on a lesion: its id, logits without and with the crop, and what is known of age, sex and site.

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
            f"logits {lesion['tabular']:+.2f} \N{RIGHTWARDS ARROW} {lesion['logits']:+.2f}{dark}",
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
        f"python -m evaluation.grad_cam --lesions {options.lesions}.  Logits: tabular \N{RIGHTWARDS ARROW} with the crop, "
        f"by the network that has not seen the patient.\nRight of each crop its Grad-CAM ({where}), each on its own scale: "
        "yellow raises the logits most, grey does not."
    )
    for sheet, (target, word, end) in SHEETS.items():
        rows = np.flatnonzero(chosen["sheet"] == sheet)
        among = int(((oof["image_scored"] == 1) & (oof[TARGET] == target)).sum())
        heading = f"{word.capitalize()} lesions with the {end} out-of-fold logits: {len(rows)} of {among:,}"
        captions = [caption(chosen.iloc[row], metadata.iloc[row], lit[row]) for row in rows]
        draw_sheet(options.out / f"{sheet}.png", heading, explanation, crops[rows], maps[rows], captions)
    write_csv(options.out / "grad_cam.csv", chosen)
    shown = " and ".join(f"{(chosen['sheet'] == sheet).sum()} {word}" for sheet, (_, word, _) in SHEETS.items())
    log(
        f"{options.out}: {shown} lesions seen by {chosen['fold'].nunique()} networks, Grad-CAM at {where}; "
        f"in {int((~lit).sum())} of them no place raises the logits"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
