"""Where the networks look: Grad-CAM heat maps over crops (Selvaraju and others 2017, arXiv:1610.02391). A local tool.

    python -m evaluation.grad_cam --data data/isic-2024-challenge --artifacts artifacts --out grad_cam

Writes hardest_malignant.png, top_false_alarms.png and grad_cam.csv: the lesions with the worst out-of-fold logits, each crop
beside its heat map by the network of its fold. A heat map is warm where the crop raises the logit; it shows nothing of what
lowers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from evaluation.html import SCALE
from inference.artifacts import OOF_FUSION, Manifest, best_network, checked_file, load_manifest
from inference.backbones import PREPROCESSED, backbone_of, stage_of
from inference.files import write_csv
from inference.images import ImageStore, image_batches
from inference.network import NetworkConfig, load_network
from inference.options import Parser, add_data_options, count, output_folder
from inference.schema import ID, TARGET, read_metadata, read_scores
from inference.tables import id_mismatch
from scale.output_folder import output_set
from scale.progress import Bar
from terminal import run_command
from train.charts import new_figure, save_png
from train.folds import HOLDOUT
from train.lesions import open_images
from utils import InputError, log, log_summary

if TYPE_CHECKING:
    import keras

#: A backbone's stages, the last first: its feature maps mean most, those of the first are finest.
STAGES = (5, 4, 3, 2)
#: Backbone's layer -> the centre of a cell in its share of the crop, from 0, the first pixel, to 1, the last one; others: 1.
CENTRES = {"resnet50": 0.0, "resnet50v2": 0.0, "convnext_tiny": 0.5}
#: With fewer cells across, a heat map does not separate a lesion from the skin around it.
FEWEST_CELLS = 4
#: Crops that go through the network at once.
BATCH = 16
#: White between a crop and its heat map, as a share of the crop's width.
SEAM = 0.03
#: Share of the crop that is hidden at its warmest place.
OPACITY = 0.6
COLOURS = "inferno"
#: Sheet -> target, name and end of the logits of its lesions.
SHEETS = {"hardest_malignant": (1, "malignant", "lowest"), "top_false_alarms": (0, "benign", "highest")}
TABLE = "grad_cam.csv"
FILES = (*(f"{sheet}.png" for sheet in SHEETS), TABLE)
#: A sheet of more lesions would be taller than a PNG of Matplotlib can be.
MOST_LESIONS = 300
COLUMNS = 3


# Grad-CAM of one network


def present_backbone(network: keras.Model) -> keras.Model:
    """The network's backbone. Raises InputError where it has none because it takes no crop."""
    inputs = [tensor.name for tensor in network.inputs]
    if "crop" not in inputs:
        raise InputError(f"network {network.name!r} has the inputs {', '.join(inputs)} and no crop; choose one that has.")
    return backbone_of(network)


def feature_maps(backbone: keras.Model) -> dict[str, keras.KerasTensor]:
    """The feature maps of a backbone's layers and sums, (batch, n, n, channels), by name, in the order of computation."""
    outputs = {each.name: each.output for each in backbone.operations}
    return {name: output for name, output in outputs.items() if len(output.shape) == 4}


def stage_layers(backbone: keras.Model) -> list[str]:
    """The last layer of each of ``STAGES``."""
    last = {stage_of(backbone, name): name for name in feature_maps(backbone)}
    return [last[stage] for stage in STAGES if stage in last]


def default_layer(network: keras.Model) -> str:
    """The last layer of the last stage of the network's backbone whose feature maps have at least 4 x 4 cells.

    That is conv5 for crops of 97 pixels and more, conv4 from 49 pixels on, and conv3 below.

    Raises:
        InputError: the network takes no crop.
    """
    backbone = present_backbone(network)
    maps = feature_maps(backbone)
    return next(name for name in stage_layers(backbone) if min(maps[name].shape[1:3]) >= FEWEST_CELLS)


def tapped(network: keras.Model, layer: str) -> Callable:
    """The network as a function that also returns feature maps from inside its backbone.

    Args:
        network: fusion or image only, of ``inference.network.build_network``.
        layer: a layer of its backbone.

    Returns:
        A function of crops, uint8 (rows, size, size, 3), and tabular logits, float32 (rows, 1), which the image-only network
        ignores. It returns three tensors: the feature maps, (rows, height, width, channels); the derivative of each row's
        logit by them, same shape; and the logits, float32 (rows, 1).

    Raises:
        InputError: the network takes no crop, or its backbone has no feature maps of that name.
    """
    import keras
    import tensorflow as tf

    backbone, inputs = present_backbone(network), {tensor.name: tensor for tensor in network.inputs}
    maps = feature_maps(backbone).get(layer)
    if maps is None:
        names = ", ".join(stage_layers(backbone))
        raise InputError(f"the network's backbone has no feature maps {layer!r}; choose one of {names}.")
    # Layers inside the nested backbone are no tensors of the network, so the network is run in parts around it.
    centre = keras.Model(inputs["crop"], network.get_layer(PREPROCESSED).output)
    with_maps = keras.Model(backbone.input, [maps, backbone.output])
    named = {each.name: each for each in network.layers}

    def head(features, tabular):
        if "tabular" in inputs:
            features = named["crop_and_tabular_logit"]([features, named["standardised_tabular_logit"](tabular)])
        correction = named["correction"](named["head"](features) if "head" in named else features)
        return named["final_logits"]([tabular, correction]) if "tabular" in inputs else correction

    def run(crops, tabular):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            centred = centre(crops)
            tape.watch(centred)
            found, features = with_maps(centred, training=False)
            logits = head(features, tabular)
        return found, tape.gradient(logits, found), logits

    return run


def spread(cells: np.ndarray, size: int, centre: float = 0.0) -> np.ndarray:
    """Feature maps over the crop, bilinear between the centres of their cells' receptive fields.

    Cell i of Keras's ResNet50 is centred on pixel i * stride, because each of its strides takes the first of two. That is
    the corner of the cell's share of the crop: a plain resize, which puts the cell in the middle of its share, would shift
    the heat down and right by half a cell. With TensorFlow's "same" padding a stride takes the last of two, where the number
    of pixels is even: EfficientNet's cells are centred on the other corner. ConvNeXt's strides take both: the share's
    own centre.

    Args:
        cells: shape (rows, n, n).
        size: of the crop, pixels; the stride is the power of two that makes n cells of it.
        centre: of a cell in its share of the crop, from 0 to 1: ``CENTRES``.

    Returns:
        Shape (rows, size, size); constant beyond the centres of the first and the last cells.
    """
    count = cells.shape[1]
    stride = 2 ** math.ceil(math.log2(size / count))
    at = np.clip((np.arange(size) - (stride - 1) * centre) / stride, 0, count - 1)
    share = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(count))).astype(cells.dtype)
    return share @ cells @ share.T


def scaled(maps: np.ndarray) -> np.ndarray:
    """Each map, shape (rows, size, size), divided by its maximum; one without a value above 0 is returned as zeros."""
    warmest = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, warmest, out=np.zeros_like(maps), where=warmest > 0)


def class_activation(
    network: keras.Model, crops: np.ndarray, tabular: np.ndarray | None, layer: str | None = None
) -> np.ndarray:
    """Grad-CAM: how much each place of a crop adds to the network's logit (Selvaraju and others 2017, equations 1 and 2).

    A channel's weight is the mean over the places of the derivative of the logit by its feature map; the heat is the
    weighted sum of the channels' feature maps, where it is above zero.

    Args:
        network: fusion or image only, of ``inference.network.build_network``.
        crops: of ``inference.images.image_batches``, uint8 of shape (rows, size, size, 3).
        tabular: tabular logits, shape (rows,); None for the image-only network.
        layer: where in the backbone the feature maps are taken; None for ``default_layer``.

    Returns:
        float32 of shape (rows, size, size), as ``scaled`` returns it: maps of two crops do not compare, and a crop of which
        no place raises the logit is 0 everywhere.

    Raises:
        InputError: as ``tapped``; the crops are not of the network's size; there is no tabular logit for each crop.
    """
    import tensorflow as tf

    run = tapped(network, layer or default_layer(network))
    centre = CENTRES.get(present_backbone(network).name, 1.0)
    inputs = {tensor.name: tensor for tensor in network.inputs}
    size = tuple(inputs["crop"].shape[1:])
    if crops.shape[1:] != size:
        raise InputError(f"crops have the shape {crops.shape}, the network takes (rows, {size[0]}, {size[1]}, 3); resize.")
    given = () if tabular is None else tabular.shape
    if "tabular" in inputs and given != (len(crops),):
        raise InputError(f"{len(crops)} crops came with tabular logits of shape {given}; give one to each.")
    tabular = np.zeros(len(crops)) if tabular is None else np.asarray(tabular)
    heat = np.zeros(crops.shape[:3], dtype="float32")
    for start in range(0, len(crops), BATCH):
        rows = slice(start, start + BATCH)
        found = run(tf.constant(crops[rows]), tf.constant(tabular[rows, None], tf.float32))
        maps, derivative = (tensor.numpy().astype("float32") for tensor in found[:2])
        weights = derivative.mean(axis=(1, 2))
        heat[rows] = spread(np.maximum(np.einsum("rc,rijc->rij", weights, maps), 0), size[0], centre)
    return scaled(heat)


def side_by_side(crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A crop and, right of it, the same in grey under its heat: RGB float64 in [0, 1], (size, 2 * size + seam, 3).

    Args:
        crop: uint8, shape (size, size, 3).
        heat: in [0, 1], square, of any size.
    """
    from matplotlib import colormaps
    from PIL import Image

    if heat.shape != crop.shape[:2]:
        resized = Image.fromarray(heat.astype("float32")).resize((crop.shape[1], crop.shape[0]), Image.Resampling.BILINEAR)
        heat = np.clip(np.asarray(resized), 0, 1)
    plain = crop / 255.0
    # In grey, so that colour means heat; the more heat, the less of the crop.
    grey = np.repeat(plain.mean(axis=-1, keepdims=True), 3, axis=-1)
    share = OPACITY * heat[..., None]
    seam = np.ones((len(crop), max(1, round(SEAM * len(crop))), 3))
    return np.hstack([plain, seam, (1 - share) * grey + share * colormaps[COLOURS](heat)[..., :3]])


# Crops and heat maps by the networks of an artifact folder


def refuse_without_networks(artifacts: Path, manifest: Manifest) -> None:
    """Raises InputError where ``artifacts``, whose manifest is given, has no networks."""
    if not best_network(manifest).get("weights"):
        raise InputError(f"{artifacts} has no networks; run: python -m train.fusion --data DIR --artifacts {artifacts}")


def readable_crops(store: ImageStore, isic_ids: Sequence[str], image_size: int) -> dict[str, np.ndarray]:
    """isic_id -> crop, uint8 of shape (image_size, image_size, 3), decoded as for scoring.

    Those that cannot be read are left out; the log says how many.
    """
    crops: dict[str, np.ndarray] = {}
    for positions, decoded in image_batches(store, list(isic_ids), image_size, BATCH):
        crops |= {isic_ids[position]: crop for position, crop in zip(positions.numpy(), decoded.numpy(), strict=True)}
    if missing := [isic_id for isic_id in isic_ids if isic_id not in crops]:
        log(f"{len(missing):,} of {len(isic_ids):,} lesions have no readable image in {store.path}, such as {missing[0]}")
    return crops


def read_crops(store: ImageStore, isic_ids: Sequence[str], image_size: int) -> np.ndarray:
    """The lesions' crops, uint8 of shape (lesions, image_size, image_size, 3), decoded as for scoring.

    Raises:
        InputError: a lesion has no readable image.
    """
    crops = readable_crops(store, isic_ids, image_size)
    if missing := [isic_id for isic_id in isic_ids if isic_id not in crops]:
        raise InputError(
            f"{store.path} has no readable image of {missing[0]}, which a network has scored "
            f"({len(missing)} such lesions in all); give the --data of the training."
        )
    return np.array([crops[isic_id] for isic_id in isic_ids], np.uint8).reshape(-1, image_size, image_size, 3)


def heat_maps(chosen: pd.DataFrame, crops: np.ndarray, artifacts: Path, manifest: Manifest) -> tuple[np.ndarray, str]:
    """Heat maps of lesions, each by the network of its fold, which was not trained on it; of a holdout lesion by all.

    Args:
        chosen: ``fold``, which may be ``HOLDOUT``, and ``tabular`` of the lesions.
        crops: theirs, in the same order.
        artifacts: the folder of the networks.
        manifest: its manifest.

    Returns:
        As ``class_activation``, the mean of several networks' scaled again; and where in the backbone they were taken: the
        layer and its cells, in words.

    Raises:
        InputError: there is no network of a fold, or its file is not what training wrote.
    """
    trained, maps, where = best_network(manifest), np.zeros(crops.shape[:3], dtype="float32"), ""
    names = trained["weights"]
    fold, tabular = chosen["fold"].to_numpy(), chosen["tabular"].to_numpy()
    if orphans := set(fold) - {HOLDOUT} - set(range(len(names))):
        raise InputError(f"{OOF_FUSION} has lesions of fold {min(orphans)} and the manifest no network of it; train again.")
    rows_of = {name: np.flatnonzero((fold == number) | (fold == HOLDOUT)) for number, name in enumerate(names)}
    with Bar(total=sum(map(len, rows_of.values())), desc="heat maps", unit="lesion") as bar:
        for name, rows in rows_of.items():
            if len(rows):
                config = NetworkConfig.from_dict(trained["settings"])
                network = load_network(config, checked_file(artifacts, manifest, name))
                layer = default_layer(network)
                maps[rows] += class_activation(network, crops[rows], tabular[rows], layer)
                cells = feature_maps(present_backbone(network))[layer].shape[1]
                where = f"{layer}, {cells} x {cells} cells"
                bar.update(len(rows))
    return scaled(maps), where


# The sheets


def choose_lesions(oof: pd.DataFrame, lesions: int) -> pd.DataFrame:
    """The lesions of the sheets, sheet by sheet, each from its most wrong lesion on.

    Args:
        oof: oof_fusion.csv.
        lesions: of each sheet at most.

    Returns:
        ``isic_id``, ``target``, ``fold``, ``tabular`` and ``network`` as in ``oof``; ``sheet``, a key of ``SHEETS``; and
        ``rank`` in it, from 1.

    Raises:
        InputError: the network has scored no malignant, or no benign, lesion.
    """
    scored, chosen = oof[oof["image_scored"] == 1], []
    for sheet, (target, word, end) in SHEETS.items():
        ranked = scored[scored[TARGET] == target].sort_values(["network", ID], ascending=[end == "lowest", True])
        if ranked.empty:
            raise InputError(f"{OOF_FUSION} has no {word} lesion with an image score; run train.fusion with the images.")
        first = ranked[[ID, TARGET, "fold", "tabular", "network"]].head(lesions)
        chosen.append(first.assign(sheet=sheet, rank=np.arange(1, len(first) + 1)))
    return pd.concat(chosen, ignore_index=True)


def caption(lesion: pd.Series, metadata: pd.Series, warm: bool) -> str:
    """Lines on a lesion: its id, logits without and with the crop, and what is known of age, sex and site.

    Args:
        lesion: a row of ``choose_lesions``.
        metadata: the same lesion's row of the metadata; missing values are left out.
        warm: whether its heat map is above zero anywhere.
    """
    known = {name: metadata.get(name) for name in ("age_approx", "sex", "anatom_site_general")}
    words = [f"age {value:.0f}" if name == "age_approx" else str(value) for name, value in known.items() if pd.notna(value)]
    logits = f"logits {lesion['tabular']:+.2f} \N{RIGHTWARDS ARROW} {lesion['network']:+.2f}"
    lines = [f"{lesion['rank']}   {lesion[ID]}", logits if warm else f"{logits}   (no place raises it)", ", ".join(words)]
    return "\n".join(filter(None, lines))


def draw_sheet(
    path: Path, heading: str, explanation: str, crops: np.ndarray, maps: np.ndarray, captions: Sequence[str]
) -> None:
    """Writes one PNG of all lesions: a crop, its heat map and its caption in each cell, ``COLUMNS`` cells in a row.

    Args:
        path: the file.
        heading: the title.
        explanation: how the sheet was made, in small print.
        crops: uint8, shape (lesions, size, size, 3).
        maps: in [0, 1], shape (lesions, size, size).
        captions: a text for each lesion.
    """
    lines = -(-len(crops) // COLUMNS)
    figure = new_figure(12.5, 0.9 + 2.7 * lines)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=13)
    figure.supxlabel(explanation, x=0.01, ha="left", fontsize=9, linespacing=1.4)
    cells = figure.subplots(lines, COLUMNS, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for axes, crop, heat, text in zip(cells.flat, crops, maps, captions, strict=False):
        axes.imshow(side_by_side(crop, heat), interpolation="nearest")
        axes.set_title(text, loc="left", fontsize=9, linespacing=1.3, parse_math=False)
    save_png(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Writes hardest_malignant.png, top_false_alarms.png and grad_cam.csv."""
    parser = Parser(
        description="Where the fusion network looks -> hardest_malignant.png, top_false_alarms.png, grad_cam.csv"
    )
    add_data_options(parser)
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="folder for the sheets and the table"
    )
    parser.add_argument(
        "--lesions", type=count(high=MOST_LESIONS), default=12, help="lesions on each sheet at most (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    data, artifacts, out = options.data, options.artifacts, options.out
    with output_set(out, FILES) as staging:
        manifest = load_manifest(artifacts)
        refuse_without_networks(artifacts, manifest)
        columns = (TARGET, "fold", "tabular", "network", "image_scored")
        oof = read_scores(checked_file(artifacts, manifest, OOF_FUSION), columns).reset_index()
        chosen = choose_lesions(oof, options.lesions)
        crops = read_crops(open_images(data), chosen[ID].tolist(), best_network(manifest)["settings"]["image_size"])
        metadata = read_metadata(data / "train-metadata.csv", labelled=True).set_index(ID)
        if not chosen[ID].isin(metadata.index).all():
            differ = id_mismatch(OOF_FUSION, oof[ID], "train-metadata.csv", metadata.index)
            raise InputError(f"{differ}; give the --data that the artifacts were trained on.")
        metadata = metadata.reindex(chosen[ID])
        maps, where = heat_maps(chosen, crops, artifacts, manifest)
        warm = maps.any(axis=(1, 2))
        explanation = (
            "Logits: tabular \N{RIGHTWARDS ARROW} with the crop, by the network that was not trained on the patient. Right "
            f"of each crop its Grad-CAM ({where}),\neach on its own scale: yellow raises the logit most, grey does not. "
            f"{SCALE}"
        )
        for sheet, (target, word, end) in SHEETS.items():
            rows = np.flatnonzero(chosen["sheet"] == sheet)
            total = int(((oof["image_scored"] == 1) & (oof[TARGET] == target)).sum())
            heading = f"{word.capitalize()} lesions with the {end} out-of-fold logits: {len(rows)} of {total:,}"
            captions = [caption(chosen.iloc[row], metadata.iloc[row], warm[row]) for row in rows]
            draw_sheet(staging / f"{sheet}.png", heading, explanation, crops[rows], maps[rows], captions)
        write_csv(staging / TABLE, chosen)
    counts = chosen["sheet"].value_counts()
    log_summary(
        f"{out}: {' and '.join(f'{counts[sheet]} {word}' for sheet, (_, word, _) in SHEETS.items())} lesions, "
        f"{chosen['fold'].nunique()} networks, Grad-CAM at {where}; {int((~warm).sum())} lesions without a warm place"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
