"""What each treatment of the rare malignant lesions is worth to the network, at about equal numbers of images.

    python -m evaluation.studies.imbalance --data data/isic-2024-challenge --artifacts artifacts --out imbalance-study \
        --weights imagenet

The networks are trained on the same folds, seeds and tabular logits; all further options go to ``train.fusion``. The
treatments differ in the number of images per epoch, so each has as many epochs as come closest to the same number of images,
and at least one. A training that is finished is kept in --out, so the same command continues where it was stopped.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.measures import TABULAR
from evaluation.studies.compare import (
    Comparison,
    Study,
    Variant,
    compare_networks,
    refuse_fixed,
    study_parser,
    write_text,
)
from inference.options import Number, count, filled_text
from inference.schema import TARGET, read_metadata
from scale.output_folder import output_set
from terminal import run_command
from train.charts import BLUE, INK, VERMILION, clean_axes, new_figure, save_png
from train.folds import HOLDOUT, read_folds
from train.network.config import LEAST_NEGATIVES, parse_fusion_options
from train.network.sampling import IMBALANCE_MODES, Imbalance
from utils import InputError, format_table, log, log_summary

TABLE, FIGURE = "imbalance.md", "imbalance.png"
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
#: Epochs of the first variant, whose number of images is that of all others.
EPOCHS = 60
#: Options that this study varies, or fixes for all variants.
FIXED = ("--epochs", "--imbalance", "--negatives-per-positive", "--focal-gamma", "--inputs")


@dataclass(frozen=True)
class Treatment:
    """A treatment of the rare malignant lesions; ``ratio`` is benign lesions per malignant one, or focal's gamma."""

    mode: str
    ratio: float

    @property
    def name(self) -> str:
        """As it is asked for, such as "undersample:3"; equal treatments have equal names."""
        return f"{self.mode}:{self.ratio!r}".removesuffix(".0")

    @property
    def imbalance(self) -> Imbalance:
        """What ``train.fusion`` makes of its options."""
        return Imbalance(self.mode, gamma=self.ratio) if self.mode == "focal" else Imbalance(self.mode, self.ratio)

    @property
    def options(self) -> list[str]:
        """Its options of ``train.fusion``."""
        ratio = "--focal-gamma" if self.mode == "focal" else "--negatives-per-positive"
        return ["--imbalance", self.mode, ratio, self.name.partition(":")[2]]


@dataclass(frozen=True)
class Length:
    """How long a variant is trained."""

    epochs: int
    images_per_epoch: int

    @property
    def images(self) -> int:
        """Images that the network of a fold is trained on, repetitions counted."""
        return self.epochs * self.images_per_epoch

    def __str__(self) -> str:
        """In words: "12 epochs of 500 images"."""
        return f"{self.epochs} {'epoch' if self.epochs == 1 else 'epochs'} of {self.images_per_epoch:,} images"


def treatments_of(texts: list[str]) -> list[Treatment]:
    """The treatments that ``texts`` name as MODE:RATIO, in that order.

    Raises:
        InputError: a text has another form, there is no such mode, the ratio is no such number, or two are equal.
    """
    treatments = []
    for text in texts:
        mode, _, ratio = text.partition(":")
        try:
            number = Number(LEAST_NEGATIVES, 1e9)(ratio)
        except ArgumentTypeError:
            number = 0
        if mode not in IMBALANCE_MODES or not number:
            raise InputError(
                f"--variants {text!r} is not of the form MODE:RATIO; give one of {', '.join(IMBALANCE_MODES)}, a colon and "
                f"a number of {LEAST_NEGATIVES} or more, as in undersample:3."
            )
        if Treatment(mode, number) in treatments:
            raise InputError(f"--variants {text!r} is given more than once; name every variant once.")
        treatments.append(Treatment(mode, number))
    return treatments


def training_labels(data: Path, artifacts: Path) -> np.ndarray:
    """Labels of the lesions that the network of fold 0 is trained on, 0/1, shape (rows,).

    Raises:
        InputError: train-metadata.csv cannot be used, folds.csv is missing or of other rows.
    """
    metadata = read_metadata(data / "train-metadata.csv", labelled=True)
    fold = read_folds(artifacts, metadata)
    return metadata[TARGET].to_numpy()[(fold != 0) & (fold != HOLDOUT)]


def lengths_of(treatments: list[Treatment], labels: np.ndarray, images: int | None) -> dict[str, Length]:
    """How long each variant is trained, by name: on about the same number of images, but for one epoch at least.

    Args:
        treatments: one or more.
        labels: of the lesions that a network is trained on, 0/1, shape (rows,), both present.
        images: how many; those of ``EPOCHS`` epochs of the first treatment, if not given.
    """
    drawn = {each.name: len(each.imbalance.draw(labels, np.random.default_rng(0))) for each in treatments}
    images = images or EPOCHS * drawn[treatments[0].name]
    return {name: Length(max(1, round(images / count)), count) for name, count in drawn.items()}


def summary(found: Comparison) -> str:
    """The variant with the highest pAUC, and its paired difference to the first one."""
    best = max(found.seconds, key=lambda name: found.table.scores[name].pauc.value)
    gain = f"minus {found.base} {found.gain(best)}" if best != found.base else "the first variant"
    return f"the best of {len(found.seconds)} variants is {best}, pAUC {found.table.scores[best].pauc.value:.4f}, {gain}"


def as_markdown(found: Comparison, lengths: Mapping[str, Length], images: int, head_epochs: int) -> str:
    """The comparison as Markdown, with the notes that it takes to read it.

    Args:
        found: the scores.
        lengths: variant -> how long it was trained.
        images: how many each was to be trained on.
        head_epochs: of the head alone, before the ones counted.
    """
    columns = {
        "epochs": {name: f"{length.epochs}" for name, length in lengths.items()},
        "images per fold": {name: f"{length.images:,}" for name, length in lengths.items()},
    }
    notes = [f"The target is {images:,} images per fold for every variant, in whole epochs."]
    long = [name for name, length in lengths.items() if length.images_per_epoch > images]
    if long:
        notes.append(f"A single epoch has more than that with {', '.join(long)}: they were trained on more than the others.")
    if head_epochs:
        notes.append(f"The head alone was trained before, for --head-epochs {head_epochs}, which is not counted here.")
    notes.append("The best of several variants is overestimated on the lesions it was chosen on: measure it on others.")
    return f"{found.as_markdown(columns=columns)}\n{' '.join(notes)}\n"


def draw_figure(path: Path, found: Comparison, lengths: Mapping[str, Length]) -> None:
    """Every variant's pAUC with its interval, and the minutes of its training beside it, in one PNG."""
    table, names, rows = found.table, list(found.seconds), range(len(found.seconds))
    figure = new_figure(12, 1.9 + 0.46 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[5, 4])
    # On white, so that no line of the grid runs through the digits.
    beside = {"textcoords": "offset points", "fontsize": 9, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
    tabular = table.scores[TABULAR].pauc.value
    left.axvline(tabular, color=INK, linestyle="--", linewidth=1.2, label=f"{TABULAR}, {tabular:.4f}")
    for row, name in enumerate(names):
        pauc = table.scores[name].pauc
        left.plot([pauc.low, pauc.high], [row, row], color=BLUE, linewidth=2.2, solid_capstyle="butt")
        left.plot(pauc.value, row, "o", color=BLUE, markersize=7)
        left.annotate(f"{pauc.value:.4f}", (pauc.value, row), (0, 8), ha="center", **beside)
    left.set_xlabel("pAUC above 80 % true-positive rate, out of fold; bars: 95 % intervals")
    left.set_yticks(rows, names)
    left.set_ylim(len(names) - 0.4, -0.7)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    minutes = [found.seconds[name] / 60 for name in names]
    right.barh(rows, minutes, color=VERMILION, height=0.6)
    for row, name in enumerate(names):
        right.annotate(f"{minutes[row]:.1f}: {lengths[name]}", (minutes[row], row), (4, 0), va="center", **beside)
    right.set_xlim(0, 1.9 * max(minutes))  # space for the text behind the longest bar
    right.set_xlabel("minutes of training, all folds; epochs of one fold")
    for axes in (left, right):
        clean_axes(axes, "x")
        axes.spines["left"].set_visible(False)
    figure.suptitle(f"Rare malignant lesions: {table.malignant:,} of {table.rows:,} lesions with an image", fontsize=12)
    save_png(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Trains every variant and writes imbalance.md and imbalance.png."""
    parser = study_parser("Fusion with each treatment of rare malignant lesions -> imbalance.md, imbalance.png")
    parser.add_argument(
        "--variants",
        type=filled_text,
        nargs="+",
        default=list(VARIANTS),
        metavar="MODE:RATIO",
        help=f"the first is the base; modes: {', '.join(IMBALANCE_MODES)}; the ratio is --negatives-per-positive, or "
        f"--focal-gamma (default: {' '.join(VARIANTS)})",
    )
    parser.add_argument(
        "--images", type=count(), metavar="N", help=f"per fold and variant (default: {EPOCHS} epochs of the first variant)"
    )
    options, more = parser.parse_known_args(arguments)
    refuse_fixed(more, FIXED)
    treatments = treatments_of(options.variants)
    study = Study(options.data, options.artifacts, options.out, tuple(more))
    # Read here as well, so that a mistake in them ends the study before the first training.
    _, training = parse_fusion_options(["--data", str(study.data), "--artifacts", str(study.artifacts), *more])
    lengths = lengths_of(treatments, training_labels(study.data, study.artifacts), options.images)
    variants = []
    for treatment, length in zip(treatments, lengths.values(), strict=True):
        log(f"{treatment.name}: {length}")
        own = [*treatment.options, "--epochs", str(length.epochs)]
        variants.append(Variant(treatment.name, tuple(own), {"options": [*own, *more]}))
    with output_set(study.out, [TABLE, FIGURE]) as staging:
        found = compare_networks(study, variants)
        text = as_markdown(found, lengths, options.images or next(iter(lengths.values())).images, training.head_epochs)
        write_text(staging / TABLE, f"{text}\n    further options: {' '.join(more) or 'none'}\n")
        draw_figure(staging / FIGURE, found, lengths)
    log_summary(f"{study.out / TABLE}: {summary(found)}", format_table(found.table))
    return 0


if __name__ == "__main__":
    run_command(main)
