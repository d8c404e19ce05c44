"""The recipe for real crops and what ``evaluation.studies.real_crops`` varies of it, as options of ``train.fusion``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Options of ``train.fusion``.
RECIPE = (
    *("--backbone", "efficientnet-lite0", "--weights", "imagenet", "--image-size", "128", "--batch-norm", "frozen"),
    *("--dropout", "0.5", "--head-units", "0", "--head-epochs", "0", "--epochs", "100", "--batch-size", "48"),
    *("--learning-rate", "3e-4", "--weight-decay", "0.05", "--clip-norm", "1", "--augmentation", "strong"),
    *("--mixup", "0.4", "--label-smoothing", "0.05", "--ema", "0.99", "--negatives-per-positive", "2", "--views", "8"),
)
#: Behind the recipe for the factors: a quarter of its time, so that all of them can be compared.
SHORT = ("--image-size", "96", "--epochs", "40", "--ema", "0.97", "--views", "1")
#: Stand for paths in the options of a variant: the earlier archives as a folder of ``train.archives``, and weights of the
#: variant's backbone that were trained on the crops without labels, from random weights or those of ImageNet.
ARCHIVES, UNLABELLED, UNLABELLED_IMAGENET = "ARCHIVES", "UNLABELLED-none", "UNLABELLED-imagenet"
#: Stands for a synthetic dataset of so many patients and lesions, that share of them malignant, from this seed.
SYNTHETIC, SYNTHETIC_SIZE = "SYNTHETIC", (150, 10_000, 0.1, 1)
PRETRAIN = ("--archives", ARCHIVES, "--archives-mode", "pretrain")
#: A start from random weights needs batch norms that are trained.
RANDOM = ("--weights", "none", "--batch-norm", "trainable", "--learning-rate", "1e-3")
RESNET50 = ("--backbone", "resnet50", "--batch-norm", "trainable")
#: The networks of the final run: options behind the recipe's. Other crops and another seed err differently.
NETWORKS = {
    "fusion": (),
    "pixels-96": ("--image-size", "96", "--seed", "1"),
    "benign-8": ("--negatives-per-positive", "8", "--epochs", "40", "--seed", "2"),
    "cutout": ("--augmentation", "strong-cutout", "--image-size", "96", "--seed", "3"),
}
#: Of the training without labels; an epoch has each crop once.
UNLABELLED_EPOCHS = 30


@dataclass(frozen=True)
class Factor:
    """What is varied: variant -> options behind the recipe's, the base first.

    ``views``: the variants differ in the views of a crop at test only, so all are scored with the networks of one training.
    """

    variants: Mapping[str, tuple[str, ...]]
    views: bool = False


def _varied(option: str, base: str, *values: str) -> Factor:
    """A factor of one option; ``base`` is its value in ``RECIPE`` and ``SHORT``."""
    return Factor({base: ()} | {value: (option, value) for value in values})


FACTORS = {
    "start": Factor(
        {
            "ImageNet": (),
            "random": RANDOM,
            "self-supervised": ("--weights", UNLABELLED, "--batch-norm", "trainable"),
            "self-supervised from ImageNet": ("--weights", UNLABELLED_IMAGENET),
            "HAM10000 from ImageNet": PRETRAIN,
            "HAM10000 from random": (*RANDOM, *PRETRAIN),
            "HAM10000 in every epoch": ("--archives", ARCHIVES, "--archives-mode", "joint"),
            "synthetic crops from random": (*RANDOM, "--archives", SYNTHETIC, "--archives-mode", "pretrain"),
        }
    ),
    "size": _varied("--image-size", "96", "64", "128", "160"),
    "augmentation": Factor(
        {"strong": ()}
        | {name: ("--augmentation", name) for name in ("none", "flips", "light", "geometry", "colour", "strong-cutout")}
        | {"strong, no mixup": ("--mixup", "0")}
    ),
    "sampling": Factor(
        {"2 benign, 40 epochs": ()}
        | {f"{ratio} benign": ("--negatives-per-positive", ratio) for ratio in ("1", "4", "8")}
        | {f"{epochs} epochs": ("--epochs", epochs) for epochs in ("20", "80", "160")}
    ),
    "unfreeze": Factor(
        {
            "all": (),
            "conv5": ("--unfreeze", "conv5"),
            "conv4 and conv5": ("--unfreeze", "conv4"),
            "head first": ("--head-epochs", "5"),
            "trainable batch norms": ("--batch-norm", "trainable"),
            "backbone 0.3 of the rate": ("--backbone-rate", "0.3", "--learning-rate", "9e-4"),
            "backbone 0.1 of the rate": ("--backbone-rate", "0.1", "--learning-rate", "3e-3"),
        }
    ),
    "regularisation": Factor(
        {
            "label smoothing 0.05, dropout 0.5, weight decay 0.05": (),
            "no label smoothing": ("--label-smoothing", "0"),
            "label smoothing 0.1": ("--label-smoothing", "0.1"),
            "no dropout": ("--dropout", "0"),
            "dropout 0.3": ("--dropout", "0.3"),
            "weight decay 0.0001": ("--weight-decay", "1e-4"),
        }
    ),
    "auxiliary": _varied("--auxiliary", "0", "0.1", "0.3", "1"),
    "average": _varied("--ema", "0.97", "0", "0.9", "0.99"),
    "views": Factor({number: ("--views", number) for number in ("1", "2", "4", "8")}, views=True),
    "backbone": Factor(
        {
            "EfficientNet-Lite0": (),
            "EfficientNet-Lite1": ("--backbone", "efficientnet-lite1"),
            "EfficientNet-Lite2": ("--backbone", "efficientnet-lite2"),
            "ResNet50, random": (*RESNET50, *RANDOM),
        }
    ),
    "resnet50": Factor(
        {
            "random": (*RESNET50, *RANDOM),
            "self-supervised": (*RESNET50, "--weights", UNLABELLED),
            "HAM10000": (*RESNET50, *RANDOM, *PRETRAIN),
        }
    ),
    "seeds": Factor({"the recipe": ()}),
}
