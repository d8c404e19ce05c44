"""Backbones: networks from a crop's pixels to its features, built in code, with the preprocessing that their weights expect.

``efficientnet-lite0`` to ``-lite2`` are EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, as in
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Their layers are named by resolution, as
those of ``keras.applications.ResNet50`` are: those of ``conv4`` compute at a sixteenth of the crop's.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import keras

RESNET50 = "resnet50"
#: Name -> multipliers of width and depth.
EFFICIENTNET_LITE = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}
BACKBONES = (RESNET50, *EFFICIENTNET_LITE)
#: ResNet50 was trained on BGR pixels less the ImageNet mean (keras.applications, "caffe" mode).
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
#: The layer of the network whose output the backbone gets.
PREPROCESSED = "preprocessed"
LITE_STEM, LITE_HEAD = 32, 1280
LITE_EPSILON = 1e-3  # of batch normalisation


class LiteStage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    resolution: str
    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


LITE_STAGES = (
    LiteStage("conv1", 1, 3, 1, 1, 16),
    LiteStage("conv2", 2, 3, 2, 6, 24),
    LiteStage("conv3", 2, 5, 2, 6, 40),
    LiteStage("conv4", 3, 3, 2, 6, 80),
    LiteStage("conv4", 3, 5, 1, 6, 112),
    LiteStage("conv5", 4, 5, 2, 6, 192),
    LiteStage("conv5", 1, 3, 1, 6, 320),
)


def backbone_features(name: str, pixels, weights: str | None):
    """The features of crops: their preprocessing and the backbone, pooled over the crop.

    Args:
        name: of ``BACKBONES``.
        pixels: Keras tensor, float32 (batch, size, size, 3), RGB from 0 to 255.
        weights: None for random ones, "imagenet" (ResNet50 only: Keras downloads them), or the path of a weights file.

    Returns:
        Keras tensor (batch, features); the backbone is a layer of the network, called ``backbone_layer_name(name)``.
    """
    import keras
    from keras import layers

    if name == RESNET50:
        bgr = keras.ops.flip(pixels, axis=-1)
        mean = [-level for level in IMAGENET_MEAN_BGR]
        centred = layers.Rescaling(1.0, offset=mean, name=PREPROCESSED, dtype="float32")(bgr)
        # Named here: Keras would count its inputs, and weights files keep the name.
        inputs = keras.Input(pixels.shape[1:], name="centred_pixels")
        backbone = keras.applications.ResNet50(
            include_top=False, weights=weights, input_tensor=inputs, pooling="avg", name=backbone_layer_name(name)
        )
        return backbone(centred)
    centred = layers.Rescaling(1 / 128, offset=-127 / 128, name=PREPROCESSED, dtype="float32")(pixels)
    backbone = efficientnet_lite(name, pixels.shape[1:])
    if weights is not None:
        backbone.load_weights(weights)
    return backbone(centred)


def backbone_layer_name(name: str) -> str:
    """The name of a backbone's layer in the network."""
    return name.replace("-", "_")


def backbone_of(network: keras.Model) -> keras.Model | None:
    """The backbone of a network of ``inference.network.build_network``; None where it takes no crop."""
    names = [backbone_layer_name(name) for name in BACKBONES]
    return next((layer for layer in network.layers if layer.name in names), None)


def efficientnet_lite(name: str, shape: tuple[int, int, int], classes: int = 0) -> keras.Model:
    """An EfficientNet-Lite with random weights.

    Args:
        name: key of ``EFFICIENTNET_LITE``.
        shape: of the crops, (size, size, 3).
        classes: with the classifier of this many classes; 0: pooled features, 1,280 of them.
    """
    import keras
    from keras import layers

    width, depth = EFFICIENTNET_LITE[name]

    def normalised(tensor, label: str, activation: bool = True):
        tensor = layers.BatchNormalization(epsilon=LITE_EPSILON, name=f"{label}_bn")(tensor)
        return layers.ReLU(6.0, name=f"{label}_relu")(tensor) if activation else tensor

    def convolution(tensor, filters: int, label: str, kernel: int = 1, stride: int = 1, activation: bool = True):
        layer = layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=f"{label}_conv")
        return normalised(layer(tensor), label, activation)

    inputs = keras.Input(shape, name="centred_pixels")
    tensor = convolution(inputs, LITE_STEM, "conv1_stem", 3, 2)
    number = 0
    for index, stage in enumerate(LITE_STAGES):
        filters = rounded_filters(stage.filters, width)
        # The first and the last stage keep their depth.
        repeats = stage.repeats if index in (0, len(LITE_STAGES) - 1) else ceil(depth * stage.repeats)
        for repeat in range(repeats):
            label, start = f"{stage.resolution}_block{number}", tensor
            if stage.expansion > 1:
                tensor = convolution(tensor, tensor.shape[-1] * stage.expansion, f"{label}_expand")
            stride = stage.stride if repeat == 0 else 1
            depthwise = layers.DepthwiseConv2D(stage.kernel, stride, "same", use_bias=False, name=f"{label}_depthwise_conv")
            tensor = normalised(depthwise(tensor), f"{label}_depthwise")
            tensor = convolution(tensor, filters, f"{label}_project", activation=False)
            if repeat > 0:
                tensor = layers.Add(name=f"{label}_add")([start, tensor])
            number += 1
    tensor = convolution(tensor, LITE_HEAD, "conv5_head")
    tensor = layers.GlobalAveragePooling2D(name="pooled")(tensor)
    if classes:
        tensor = layers.Dense(classes, name="classes")(tensor)
    return keras.Model(inputs, tensor, name=backbone_layer_name(name))


def rounded_filters(filters: int, width: float) -> int:
    """``filters`` times ``width``, to a multiple of 8, not more than a tenth below it; as TensorFlow's EfficientNet."""
    wanted = filters * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
