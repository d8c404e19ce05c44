"""Where a network looks: a Grad-CAM heat map over each crop (Selvaraju and others 2017, arXiv:1610.02391). A local tool.

A heat map is warm where the crop holds what raises the log-odds, and says nothing of what lowers them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from inference.files import InputError

if TYPE_CHECKING:
    import keras

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
    """The network, run so that feature maps from inside its ResNet50 come out beside the log-odds.

    Args:
        network: fusion or image alone, as ``inference.network.build_network`` makes them.
        layer: a layer of its ResNet50.

    Returns:
        A function of crops, uint8 (rows, size, size, 3), and tabular log-odds, float32 (rows, 1), which the image alone
        ignores. It gives three tensors: the feature maps, (rows, height, width, channels); the derivative of each row's
        log-odds by them, of the same shape; and the log-odds, float32 (rows, 1).

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
            seen = named["crop_and_opinion"]([seen, named["standardised_opinion"](opinion)])
        hidden = named["head_dropout"](named["head"](seen), training=False)
        correction = named["correction"](hidden)
        return named["log_odds"]([opinion, correction]) if "tabular" in inputs else correction

    def run(crops, opinion):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            centred = centre(crops)
            tape.watch(centred)
            found, seen = look(centred, training=False)
            log_odds = decide(seen, opinion)
        return found, tape.gradient(log_odds, found), log_odds

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
    """Grad-CAM: how much each place of a crop adds to the network's log-odds (Selvaraju and others 2017, equations 1 and 2).

    A channel's weight is the mean over the places of the derivative of the log-odds by its feature map; the heat is the
    weighted sum of the channels' feature maps, where it is above zero.

    Args:
        network: fusion or image alone, as ``inference.network.build_network`` makes them.
        crops: as ``inference.images.image_batches`` gives them, uint8 of shape (rows, size, size, 3).
        tabular: tabular log-odds, shape (rows,); the image alone does not read them, and takes None.
        layer: where in ResNet50 the feature maps are taken; None for ``default_layer``.

    Returns:
        float32 of shape (rows, size, size). The warmest place of each crop is 1, so maps of two crops do not compare; a crop
        of which no place raises the log-odds is 0 all over.

    Raises:
        InputError: as ``tapped``; the crops are not of the network's size; there is no tabular log-odds for each crop.
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
        raise InputError(f"{len(crops)} crops came with tabular log-odds of shape {np.shape(tabular)}; give one to each.")
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
