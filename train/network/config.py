"""The command line of train.fusion: what the network looks at, where it starts, which of it learns, from what, and how."""

from __future__ import annotations

import argparse
from pathlib import Path

from scale.parallel import add_worker_options
from train.network.fit import PRECISIONS, UNFREEZE
from train.network.pretraining import ARCHIVES_LABELS, ARCHIVES_MODES
from train.network.sampling import IMBALANCE_MODES, Imbalance
from utils import InputError, add_data_options, add_seed_option

#: The networks that can be trained, by what they see.
INPUTS = {"fusion": ["crop", "tabular"], "image": ["crop"], "tabular": ["tabular"]}
#: Options that do not decide what is learned: folders, what is done about an earlier training, and where it runs.
ASIDE = ("data", "artifacts", "archives", "logs", "restart", "jobs", "cluster")
ABOVE_ZERO = (
    "epochs",
    "batch_size",
    "learning_rate",
    "head_learning_rate",
    "negatives_per_positive",
    "focal_gamma",
    "archives_epochs",
)


def parse_fusion_options(arguments: list[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        InputError: one is out of its range, or two do not go together.
    """
    parser = argparse.ArgumentParser(
        description="ResNet50 + tabular logits, per fold -> fusion_*.weights.h5, oof_fusion.csv. "
        "The same command continues an interrupted training from its last epoch."
    )
    add_data_options(parser)
    add_seed_option(parser)
    parser.add_argument(
        "--inputs", choices=tuple(INPUTS), default="fusion", help="image, tabular: one of the two alone, to compare"
    )
    parser.add_argument(
        "--missing-images", choices=("refuse", "pass"), default="refuse", help="pass: such lesions keep their tabular score"
    )
    parser.add_argument("--restart", action="store_true", help="drop what an interrupted training has left")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="history, curves, TensorBoard (default: ARTIFACTS-logs)")

    start = parser.add_argument_group("network")
    start.add_argument("--weights", default="imagenet", metavar="imagenet|none|PATH", help="where ResNet50 starts")
    start.add_argument("--image-size", type=int, default=128, help="pixels (default: %(default)s)")
    start.add_argument("--unfreeze", choices=tuple(UNFREEZE), default="all", help="stages that learn (default: %(default)s)")
    start.add_argument("--head-epochs", type=int, help="before them, the head alone (default: 1, or 0 with --weights none)")

    steps = parser.add_argument_group("fitting")
    steps.add_argument("--epochs", type=int, default=60, help="fixed; the last weights are kept (default: %(default)s)")
    steps.add_argument("--batch-size", type=int, default=64, help="crops per step (default: %(default)s)")
    steps.add_argument("--learning-rate", type=float, default=3e-4, help="its peak (default: %(default)s)")
    steps.add_argument(
        "--head-learning-rate", type=float, default=1e-3, help="of the head alone, its peak (default: %(default)s)"
    )
    steps.add_argument("--ema", type=float, default=0.0, help="momentum of averaged weights (default: none)")
    steps.add_argument("--label-smoothing", type=float, default=0.0, help="0 to below 1 (default: none)")
    steps.add_argument("--mixup", type=float, default=0.0, metavar="ALPHA", help="of Beta(ALPHA, ALPHA) (default: none)")
    steps.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="auto: mixed_float16 on a GPU (default: %(default)s)"
    )
    steps.add_argument("--deterministic", action="store_true", help="equal bytes on a GPU, slower; a CPU always is")

    rare = parser.add_argument_group("rare malignant lesions")
    usual = Imbalance()
    rare.add_argument("--imbalance", choices=IMBALANCE_MODES, default=usual.mode, help="(default: %(default)s)")
    rare.add_argument(
        "--negatives-per-positive",
        type=float,
        default=usual.per_positive,
        help="benign per malignant one (default: %(default)s)",
    )
    rare.add_argument("--focal-gamma", type=float, default=usual.gamma, help="of --imbalance focal (default: %(default)s)")

    more = parser.add_argument_group("earlier archives")
    more.add_argument("--archives", type=Path, metavar="DIR", help="folder of train.archives to learn from too")
    more.add_argument(
        "--archives-mode", choices=ARCHIVES_MODES, help="the backbone learns on it first, or its lesions join every epoch"
    )
    more.add_argument(
        "--archives-labels",
        choices=ARCHIVES_LABELS,
        default="malignant",
        help="what pretraining tells apart (default: %(default)s)",
    )
    more.add_argument("--archives-epochs", type=int, default=8, help="of the pretraining (default: %(default)s)")
    add_worker_options(parser)
    return checked(parser.parse_args(arguments))


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options, once they make sense; those left open are filled in."""
    if (options.archives is None) != (options.archives_mode is None):
        modes = ", ".join(ARCHIVES_MODES)
        raise InputError(f"--archives and --archives-mode go together; give both or none (modes: {modes}).")
    if options.archives and "crop" not in INPUTS[options.inputs]:
        raise InputError("--archives teach the network to see, and --inputs tabular sees nothing; leave one out.")
    for name in ABOVE_ZERO:
        if not getattr(options, name) > 0:
            raise InputError(f"{flag(name)} {getattr(options, name)} must be above zero.")
    for name in ("ema", "label_smoothing"):
        if not 0 <= getattr(options, name) < 1:
            raise InputError(f"{flag(name)} {getattr(options, name)} must be at least 0 and below 1.")
    if options.head_epochs is None:
        options.head_epochs = 0 if options.weights == "none" else 1
    for name in ("mixup", "head_epochs"):
        if getattr(options, name) < 0:
            raise InputError(f"{flag(name)} {getattr(options, name)} must not be below zero.")
    if options.logs is None:
        options.logs = options.artifacts.with_name(options.artifacts.name + "-logs")
    return options


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def chosen(options: argparse.Namespace) -> dict[str, str]:
    """The options that decide what is learned."""
    return {name: str(value) for name, value in vars(options).items() if name not in ASIDE}


def imbalance_of(options: argparse.Namespace) -> Imbalance:
    """What the options say about rare malignant lesions."""
    return Imbalance(options.imbalance, options.negatives_per_positive, options.focal_gamma)
