"""What each way of treating the rare malignant lesions is worth to the network, at about equal numbers of images.

    python -m evaluation.studies.imbalance --data data/isic-2024-challenge --artifacts artifacts --out imbalance-study \
        --weights imagenet

The networks are trained on the same folds, seeds and tabular logits; all further options go to ``train.fusion``. The ways
differ in how many images an epoch has, so each has as many epochs as come closest to the same number of images, and one at
least. A training that is finished is kept in --out, so the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from evaluation.studies.compare import (
    TABULAR,
    TABULAR_SHOWN,
    as_markdown,
    compare,
    read_done,
    refuse_fixed,
    told,
    train_variant,
)
from evaluation.studies.explain import BLUE, ORANGE
from inference.files import replacing
from inference.schema import TARGET, read_metadata
from train.folds import HOLDOUT, read_folds
from train.network.config import parse_fusion_options
from train.network.sampling import IMBALANCE_MODES, Imbalance
from utils import InputError, ScoreTable, add_data_options, format_table, log, run_command

VARIANTS = (
    "undersample:1",
    "undersample:3",
    "undersample:10",
    "oversample:1",
    "oversample:3",
    "class-weight:1",
    "class-weight:3",
    "focal:2",
)
#: Epochs of the first variant, whose images all others are given too.
EPOCHS = 60
#: What this study varies, or fixes for all variants.
FIXED = ("--epochs", "--imbalance", "--negatives-per-positive", "--focal-gamma", "--inputs")


@dataclass(frozen=True)
class Variant:
    """A way of treating the rare malignant lesions; ``ratio`` is benign lesions to a malignant one, or focal's gamma."""

    mode: str
    ratio: float

    @property
    def name(self) -> str:
        """As it is asked for, such as "undersample:3"; equal variants have equal names."""
        return f"{self.mode}:{self.ratio!r}".removesuffix(".0")

    @property
    def imbalance(self) -> Imbalance:
        """What ``train.fusion`` makes of its options."""
        return Imbalance(self.mode, gamma=self.ratio) if self.mode == "focal" else Imbalance(self.mode, self.ratio)

    @property
    def options(self) -> list[str]:
        """The options of ``train.fusion`` that ask for it."""
        ratio = "--focal-gamma" if self.mode == "focal" else "--negatives-per-positive"
        return ["--imbalance", self.mode, ratio, self.name.partition(":")[2]]


@dataclass(frozen=True)
class Course:
    """How long a variant is trained: so many epochs of ``length`` images each."""

    epochs: int
    length: int

    @property
    def images(self) -> int:
        """Images that the network of a fold is shown."""
        return self.epochs * self.length

    def __str__(self) -> str:
        """In words: "12 epochs of 500 images"."""
        return f"{self.epochs} {'epoch' if self.epochs == 1 else 'epochs'} of {self.length:,} images"


def variant_of(text: str) -> Variant:
    """The variant that ``text`` asks for as MODE:RATIO.

    Raises:
        InputError: it has another form, there is no such mode, or the ratio is no number above zero.
    """
    mode, _, ratio = text.partition(":")
    try:
        number = float(ratio)
    except ValueError:
        number = math.nan
    if mode not in IMBALANCE_MODES or not 0 < number < math.inf:
        raise InputError(
            f"--variants {text!r} is not of the form MODE:RATIO; give one of {', '.join(IMBALANCE_MODES)}, a colon and a number "
            "above zero, as in undersample:3."
        )
    return Variant(mode, number)


def variants_of(texts: list[str]) -> list[Variant]:
    """The variants that ``texts`` ask for, in that order.

    Raises:
        InputError: as ``variant_of``, or two are the same.
    """
    variants = [variant_of(text) for text in texts]
    for text, variant in zip(texts, variants, strict=True):
        if variants.count(variant) > 1:
            raise InputError(f"--variants {text!r} is asked for more than once; name every variant once.")
    return variants


def training_labels(data: Path, artifacts: Path) -> np.ndarray:
    """Labels of the lesions that the network of fold 0 is trained on, 0/1, shape (rows,).

    Raises:
        InputError: train-metadata.csv cannot be used, folds.csv is missing or of other rows.
    """
    metadata = read_metadata(data / "train-metadata.csv", labelled=True)
    fold = read_folds(artifacts, metadata)
    return metadata[TARGET].to_numpy()[(fold != 0) & (fold != HOLDOUT)]


def courses_of(variants: list[Variant], labels: np.ndarray, images: int | None) -> dict[str, Course]:
    """How long each variant is trained, by name, to be shown about the same number of images, but one epoch at least.

    Args:
        variants: one or more.
        labels: of the lesions that a network is trained on, 0/1, shape (rows,), both present.
        images: how many; those of ``EPOCHS`` epochs of the first variant, if not given.
    """
    lengths = {variant.name: len(variant.imbalance.draw(labels, np.random.default_rng(0))) for variant in variants}
    images = images or EPOCHS * lengths[variants[0].name]
    return {name: Course(max(1, round(images / length)), length) for name, length in lengths.items()}


def train_all(
    variants: list[Variant], courses: Mapping[str, Course], options: argparse.Namespace, more: list[str]
) -> dict[str, Path]:
    """Trains every variant that is not yet there; their folders by name.

    Raises:
        InputError: as ``evaluation.studies.compare.train_variant``.
    """
    for name, course in courses.items():
        log(f"{name}: {course}")
    folders = {variant.name: options.out / variant.name.replace(":", "-") for variant in variants}
    for variant in variants:
        asked = [*variant.options, "--epochs", str(courses[variant.name].epochs), *more]
        train_variant(
            variant.name, folders[variant.name], options.data, options.artifacts, asked, request={"options": asked}
        )
    return folders


def summary(table: ScoreTable, names: list[str]) -> str:
    """Which of the variants ``names`` has the highest pAUC, and its paired difference to the first one."""
    best = max(names, key=lambda name: table.scores[name].pauc.value)
    gain = "the first variant" if best == names[0] else f"less {names[0]} {told(table.difference(best, names[0]))}"
    return f"the best of {len(names)} variants is {best}, pAUC {table.scores[best].pauc.value:.4f}, {gain}"


def written(
    table: ScoreTable,
    seconds: Mapping[str, float],
    courses: Mapping[str, Course],
    images: int,
    head_epochs: int,
    more: list[str],
) -> str:
    """The comparison as Markdown, with what has to be known to read it.

    Args:
        table: of ``evaluation.studies.compare.compare``.
        seconds: variant -> how long its training took; the first one is the base.
        courses: variant -> how long it was trained.
        images: how many each was to be shown.
        head_epochs: of the head alone, before the ones counted.
        more: the further options of ``train.fusion``.
    """
    columns = {
        "epochs": {name: f"{course.epochs}" for name, course in courses.items()},
        "images per fold": {name: f"{course.images:,}" for name, course in courses.items()},
    }
    notes = [f"Every variant was to be shown about {images:,} images per fold, in whole epochs."]
    long = [name for name, course in courses.items() if course.length > images]
    if long:
        notes.append(f"A single epoch has more than that with {', '.join(long)}: they were shown more than the others.")
    if head_epochs:
        notes.append(f"The head alone was trained before, for --head-epochs {head_epochs}, which is not counted here.")
    notes.append("The best of several variants is flattered by the lesions it was picked on: measure it on others.")
    asked = f"    further options: {' '.join(more) or 'none'}"
    return "\n".join([as_markdown(table, seconds, columns=columns), " ".join(notes), "", asked, ""])


def draw_figure(path: Path, table: ScoreTable, seconds: Mapping[str, float], courses: Mapping[str, Course]) -> None:
    """Every variant's pAUC with its interval, and the minutes of its training beside it, in one PNG.

    Args:
        path: the file to write.
        table: of ``evaluation.studies.compare.compare``.
        seconds: variant -> how long its training took, in the order of the rows.
        courses: variant -> how long it was trained.
    """
    names, rows = list(seconds), range(len(seconds))
    figure = Figure(figsize=(12, 1.9 + 0.46 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[5, 4])
    # On white, so that no line of the grid runs through the digits.
    beside = {"textcoords": "offset points", "fontsize": 9, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
    tabular = table.scores[TABULAR].pauc.value
    left.axvline(tabular, color="#444444", linestyle="--", linewidth=1.2, label=f"{TABULAR_SHOWN}, {tabular:.4f}")
    for row, name in enumerate(names):
        pauc = table.scores[name].pauc
        left.plot([pauc.low, pauc.high], [row, row], color=BLUE, linewidth=2.2, solid_capstyle="butt")
        left.plot(pauc.value, row, "o", color=BLUE, markersize=7)
        left.annotate(f"{pauc.value:.4f}", (pauc.value, row), (0, 8), ha="center", **beside)
    left.set_xlabel("pAUC above 80 % true-positive rate, out of fold; bars: 95 % intervals")
    left.set_yticks(rows, names)
    left.set_ylim(len(names) - 0.4, -0.7)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    minutes = [seconds[name] / 60 for name in names]
    right.barh(rows, minutes, color=ORANGE, height=0.6)
    for row, name in enumerate(names):
        shown = f"{minutes[row]:.1f}: {courses[name]}"
        right.annotate(shown, (minutes[row], row), (4, 0), va="center", **beside)
    right.set_xlim(0, 1.9 * max(minutes))  # room for what stands behind the longest bar
    right.set_xlabel("minutes of training, all folds; epochs of one fold")
    for axes in (left, right):
        axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(f"Rare malignant lesions: {table.malignant:,} of {table.rows:,} lesions with an image", fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Trains every variant and writes imbalance.md and imbalance.png."""
    parser = argparse.ArgumentParser(
        description="Fusion with each way of treating rare malignant lesions -> imbalance.md, imbalance.png",
        epilog="Further options go to train.fusion (see there): --weights, --image-size, --learning-rate, ...",
        allow_abbrev=False,  # or else --image, short for the --image-size of train.fusion, would be taken for --images
    )
    add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results and the trainings")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        metavar="MODE:RATIO",
        help=f"the first is the base; modes: {', '.join(IMBALANCE_MODES)}; the ratio is --negatives-per-positive, or --focal-gamma "
        f"(default: {' '.join(VARIANTS)})",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help=f"per fold and variant (default: {EPOCHS} epochs of the first variant)"
    )
    options, more = parser.parse_known_args(arguments)
    refuse_fixed(more, FIXED)
    variants = variants_of(options.variants)
    if options.images is not None and options.images < 1:
        raise InputError(f"--images {options.images} must be above zero.")
    where = ["--data", str(options.data), "--artifacts", str(options.artifacts)]
    head_epochs = parse_fusion_options(
        [*where, *more]
    ).head_epochs  # and whatever is wrong with them is said before hours of training
    courses = courses_of(variants, training_labels(options.data, options.artifacts), options.images)
    images = options.images or courses[variants[0].name].images
    folders = train_all(variants, courses, options, more)
    table = compare(folders)
    seconds = {name: read_done(folder)["seconds"] for name, folder in folders.items()}
    with replacing(options.out / "imbalance.md") as temporary:
        temporary.write_text(written(table, seconds, courses, images, head_epochs, more), encoding="utf-8")
    draw_figure(options.out / "imbalance.png", table, seconds, courses)
    log(format_table(table))
    log(f"{options.out / 'imbalance.md'}: {summary(table, list(folders))}")
    return 0


if __name__ == "__main__":
    run_command(main)
