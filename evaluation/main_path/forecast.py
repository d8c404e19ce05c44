"""How long training and kernel take on Kaggle, from published speeds of its GPUs: a forecast, nothing here was run there.

A network's forward pass is scaled from a published one on the same GPU: ResNet50's for networks of full convolutions,
EfficientNet-B0's for those of depthwise ones, by the ratio of multiply-adds and of pixels. ``docs/full-size.md`` has the
table, ``evaluation.main_path --plan`` warns by the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Rows of the competition, and the hours of one session.
TRAIN_ROWS, TRAIN_MALIGNANT, TEST_ROWS, HOURS = 401_059, 393, 511_474, 12.0
#: Of a Kaggle session, GB of 10^9 bytes: memory, and the working folder.
MEMORY, DISK = 29.0, 20.0
CORES = 4
#: The published speeds are of crops of so many pixels.
PUBLISHED_SIZE = 224
#: A crop costs at least this share of one of ``PUBLISHED_SIZE``: small ones do not fill a GPU.
LEAST_SHARE = 0.25
#: Speed of batches of 32, such as those of training, against large ones, in images/s: ResNet50 on a T4, EfficientNet-B0
#: on a V100, of the pages below.
SMALL_BATCH = {"full": 972.36 / 995.81, "light": 1768.05 / 5399.88}
#: A training step computes the forward pass and, at twice its cost, the backward pass.
PASSES_PER_STEP = 3.0
#: Of the test's rows by metadata alone, seconds on two cores: features and fifteen models (docs/benchmarks.md).
TABULAR_SECONDS = 35.0


@dataclass(frozen=True)
class Gpu:
    """A kind of session on Kaggle.

    Args:
        name: as Kaggle calls it.
        count: GPUs that it has.
        float32: images/s of one of them, ResNet50's forward pass at ``PUBLISHED_SIZE``.
        float16: the same in mixed precision.
    """

    name: str
    count: int
    float32: float
    float16: float


#: T4: https://github.com/NVIDIA/DeepLearningExamples/tree/master/TensorFlow/Classification/ConvNets/resnet50v1.5, "Inference
#: performance: NVIDIA T4", batch 128, TensorFlow without XLA. P100: three forward passes for each of the 219 images/s of
#: training in https://github.com/tensorflow/tensorflow/blob/5984ffefd320c5d71b801ee06079a51b91ea42c0/
#: tensorflow/docs_src/performance/benchmarks.md (one GPU, synthetic data, float32); it has no units for float16. Kaggle has
#: lent no P100 since September 2026.
GPUS = (Gpu("2 x T4", 2, 429.83, 995.81), Gpu("P100", 1, 3 * 219.0, 3 * 219.0))
#: EfficientNet-B0's forward pass against ResNet50's, both of NVIDIA on one V100 with TensorFlow: 2829.34 against 1348.52
#: images/s in float32, 5399.88 against 2742.14 in float16. The former are of
#: https://github.com/NVIDIA/DeepLearningExamples/tree/master/TensorFlow2/Classification/ConvNets/efficientnet_v1
DEPTHWISE = {"float32": 2829.34 / 1348.52, "float16": 5399.88 / 2742.14}
#: Multiply-adds of a crop of ``PUBLISHED_SIZE``, 10^9: of the networks whose speed is published, and of the backbones. Those
#: of EfficientNet-Lite: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
RESNET50_ADDS, EFFICIENTNET_B0_ADDS = 4.1, 0.39
FULL = {"resnet50": 4.1, "resnet50v2": 4.1, "convnexttiny": 4.5}
LIGHT = {
    "efficientnet-lite0": 0.407,
    "efficientnet-lite1": 0.631,
    "efficientnet-lite2": 0.899,
    "efficientnetb0": 0.39,
    "efficientnetv2b0": 0.72,
}


@dataclass(frozen=True)
class Recipe:
    """What decides the time of training and kernel.

    Args:
        backbone: one that is ``known``.
        image_size: pixels.
        views: of a crop, in scores.
        folds: networks.
        trained: crops that pass through a network in its training, all epochs together.
    """

    backbone: str
    image_size: int
    views: int
    folds: int
    trained: int


@dataclass(frozen=True)
class Forecast:
    """Hours on one kind of session.

    Args:
        training: of the networks of a recipe: steps, and the scores out of fold.
        kernel: on all test rows.
    """

    training: float
    kernel: float

    @property
    def fits(self) -> bool:
        """Whether each takes one session at most."""
        return max(self.training, self.kernel) <= HOURS

    @property
    def margin(self) -> float:
        """The session's hours as a multiple of the longer of both."""
        return HOURS / max(self.training, self.kernel)


def known(backbone: str) -> bool:
    """Whether there is a forecast for a backbone."""
    return backbone in FULL or backbone in LIGHT


def forward_rate(gpu: Gpu, backbone: str, image_size: int, precision: str) -> float:
    """Crops/s that pass forward through one network on one GPU.

    Args:
        gpu: the kind of GPU.
        backbone: one that is ``known``.
        image_size: pixels.
        precision: "float32" or "float16".
    """
    rate = getattr(gpu, precision)
    if backbone in FULL:
        rate *= RESNET50_ADDS / FULL[backbone]
    else:
        rate *= DEPTHWISE[precision] * EFFICIENTNET_B0_ADDS / LIGHT[backbone]
    return rate / max(LEAST_SHARE, (image_size / PUBLISHED_SIZE) ** 2)


def forecast(recipe: Recipe, gpu: Gpu, precision: str, decoded: float) -> Forecast:
    """Hours of a recipe's networks on a kind of session, all GPUs at work.

    Crops are decoded while the GPUs compute; the slower of both decides. In training a crop is decoded once, before it.

    Args:
        recipe: what is trained.
        gpu: the kind of session.
        precision: of the kernel and of scores out of fold, "float32" or "float16"; steps are always in mixed precision.
        decoded: crops/s that one core decodes at the recipe's size.
    """
    rate = gpu.count * forward_rate(gpu, recipe.backbone, recipe.image_size, precision)
    steps = PASSES_PER_STEP * recipe.folds * recipe.trained
    steps /= gpu.count * forward_rate(gpu, recipe.backbone, recipe.image_size, "float16")
    steps /= SMALL_BATCH["full" if recipe.backbone in FULL else "light"]
    decoding = CORES * decoded
    scores = max(TRAIN_ROWS * recipe.views / rate, TRAIN_ROWS / decoding)
    kernel = max(TEST_ROWS * recipe.views * recipe.folds / rate, TEST_ROWS / decoding)
    training = TRAIN_ROWS / decoding + steps + scores
    return Forecast(training / 3600, (kernel + TABULAR_SECONDS) / 3600)
