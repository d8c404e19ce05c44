"""Backbones: networks from a crop's pixels to its features, built in code, with the preprocessing that their weights expect.

Most are those of ``keras.applications``. The preprocessing that some of them bring along is left out: here each has it in
the layer ``PREPROCESSED``, so that the network is the same with and without ImageNet weights.

``efficientnet-lite0`` to ``-lite2`` are EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, as in
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Their layers are named by resolution, as
those of ``keras.applications.ResNet50`` are: those of ``conv4`` compute at a sixteenth of the crop's resolution.
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


class Preprocessing(NamedTuple):
    """``scale`` times the pixels, from 0 to 255, plus ``offset``; both a number, or one of each channel."""

    scale: float | tuple[float, ...]
    offset: float | tuple[float, ...]
    bgr: bool = False


#: The modes of keras.applications.imagenet_utils.
CAFFE = Preprocessing(1.0, (-103.939, -116.779, -123.68), bgr=True)
TF = Preprocessing(1 / 127.5, -1.0)
TORCH = Preprocessing((1 / 58.395, 1 / 57.12, 1 / 57.375), (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225))
LITE = Preprocessing(1 / 128, -127 / 128)
#: Beginnings of layers' names: those that compute at a half of the crop's resolution, a fourth, ... and a 32nd.
Stages = tuple[tuple[str, ...], ...]
CONV_STAGES: Stages = (("conv1",), ("conv2",), ("conv3",), ("conv4",), ("conv5", "post"))
EFFICIENTNET_STAGES: Stages = (
    ("stem", "block1"),
    ("block2",),
    ("block3",),
    ("block4", "block5"),
    ("block6", "block7", "top"),
)
CONVNEXT_STAGES: Stages = (
    (),
    ("convnext_tiny_stem", "convnext_tiny_stage_0"),
    *((f"convnext_tiny_downsampling_block_{level}", f"convnext_tiny_stage_{level + 1}") for level in range(3)),
)


class Application(NamedTuple):
    """A backbone of ``keras.applications``.

    Args:
        function: there.
        name: by which it names files of ImageNet weights.
        preprocessing: that the weights expect.
        stages: of its layers.
        options: of the function, so that it brings no preprocessing along.
        first: the layer behind the preprocessing, where no option leaves that out.
    """

    function: str
    name: str
    preprocessing: Preprocessing
    stages: Stages
    options: tuple[tuple[str, bool], ...] = ()
    first: str | None = None


PLAIN = (("include_preprocessing", False),)
APPLICATIONS = {
    RESNET50: Application("ResNet50", "resnet50", CAFFE, CONV_STAGES),
    "resnet50v2": Application("ResNet50V2", "resnet50v2", TF, CONV_STAGES),
    "efficientnetv2b0": Application("EfficientNetV2B0", "efficientnetv2-b0", TORCH, EFFICIENTNET_STAGES, PLAIN),
    "efficientnetb0": Application("EfficientNetB0", "efficientnetb0", TORCH, EFFICIENTNET_STAGES, first="stem_conv_pad"),
    "convnexttiny": Application("ConvNeXtTiny", "convnext_tiny", TORCH, CONVNEXT_STAGES, PLAIN),
}
BACKBONES = (*APPLICATIONS, *EFFICIENTNET_LITE)
#: The layer of the network whose output the backbone gets.
PREPROCESSED = "preprocessed"
LITE_STEM, LITE_HEAD = 32, 1280
LITE_EPSILON = 1e-3  # of batch normalisation
#: The input of a backbone. Keras would count its inputs, and weights files keep the name.
INPUT = "centred_pixels"


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
        weights: None for random ones, "imagenet" (of ``APPLICATIONS``: Keras downloads them), or the path of a weights file.

    Returns:
        Keras tensor (batch, features); the backbone is a layer of the network, called ``backbone_layer_name(name)``.
    """
    import keras
    from keras import layers

    scale, offset, bgr = APPLICATIONS[name].preprocessing if name in APPLICATIONS else LITE
    pixels = keras.ops.flip(pixels, axis=-1) if bgr else pixels
    centred = layers.Rescaling(as_keras_takes(scale), offset=as_keras_takes(offset), name=PREPROCESSED, dtype="float32")(
        pixels
    )
    if name in APPLICATIONS:
        return application(name, pixels.shape[1:], weights)(centred)
    backbone = efficientnet_lite(name, pixels.shape[1:])
    if weights is not None:
        backbone.load_weights(weights)
    return backbone(centred)


def as_keras_takes(value: float | tuple[float, ...]) -> float | list[float]:
    """A number or a list, for the layer Rescaling."""
    return list(value) if isinstance(value, tuple) else value


def application(name: str, shape: tuple[int, int, int], weights: str | None) -> keras.Model:
    """A backbone of ``keras.applications``, from preprocessed crops to pooled features.

    Args:
        name: key of ``APPLICATIONS``.
        shape: of the crops, (size, size, 3).
        weights: as ``backbone_features`` takes them; a file is Keras's own of ImageNet weights, or ends in .weights.h5 and
            is of such a backbone.
    """
    import keras

    known = APPLICATIONS[name]
    # Keras's own files hold weights of its preprocessing, too: they are loaded before that is cut off.
    own = weights if weights and weights.endswith(".weights.h5") else None
    backbone = getattr(keras.applications, known.function)(
        include_top=False,
        weights=None if own else weights,
        input_tensor=keras.Input(shape, name=INPUT),
        pooling="avg",
        name=known.name,
        **dict(known.options),
    )
    if known.first:
        backbone = keras.Model(backbone.get_layer(known.first).input, backbone.output, name=known.name)
    # As names that Keras counts in a process do, those without one would change the bytes of weights files.
    before = INPUT
    for operation in backbone.operations:
        kind = operation.name.removesuffix("CLONE").rstrip("0123456789").rstrip("_").replace("_", "")
        if kind == type(operation).__name__.lower():
            operation.name = f"{before}_{kind}"
        elif isinstance(operation, keras.layers.InputLayer):
            operation.name = INPUT
        before = operation.name
    if own:
        backbone.load_weights(own)
    return backbone


def stage_of(backbone: keras.Model, layer: str) -> int | None:
    """The stage of a backbone's layer: from 1, at a half of the crop's resolution, to 5, at a 32nd; None for the input."""
    stages = next((known.stages for known in APPLICATIONS.values() if known.name == backbone.name), CONV_STAGES)
    return next((number for number, prefixes in enumerate(stages, 1) if prefixes and layer.startswith(prefixes)), None)


def backbone_layer_name(name: str) -> str:
    """The name of a backbone's layer in the network."""
    return APPLICATIONS[name].name if name in APPLICATIONS else name.replace("-", "_")


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

    inputs = keras.Input(shape, name=INPUT)
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
