"""Estimates of the stages of the main path from what ``evaluation.main_path.probes`` measured.

Time is linear in rows, trees, steps and crops; memory is that of the measurement, plus what grows with the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation.main_path import forecast
from evaluation.main_path.probes import NetworkSpeed, TabularSpeed
from inference.run_log import peak_memory
from inference.schema import TARGET
from train.folds import FoldOptions, holdout_by_hospital
from train.network.config import TrainingConfig
from train.tabular import TabularOptions

#: Of a stage's process until it works, seconds; TensorFlow's import among them.
START, START_NETWORK = 3.0, 10.0
#: Resamples of the reported scores; scores in the tables of tabular and fusion.
RESAMPLES, TABULAR_SCORES, FUSION_SCORES = 1000, 1, 5
#: Features, their sorted copies and CatBoost's own table, as a multiple of the features.
FEATURE_COPIES = 3.0
#: Of the dry run beside its networks: the report with its heat maps, seconds; memory of kernel and report, GB.
REPORT_SECONDS, REPORT_MEMORY = 40.0, 2.0
#: Bytes of a row in the CSV files of a stage, and of a JPEG crop.
ROW_BYTES, CROP_BYTES = 60, 4_000
#: Copies of a network's weights: the network, its checkpoint with both moments of the optimizer.
WEIGHT_COPIES = 4


@dataclass(frozen=True)
class Estimate:
    """A stage to come.

    Args:
        title: of the stage.
        rows: that it reads or scores.
        steps: what it repeats, in words.
        seconds: in all.
        memory: the most at once, GB.
        disk: what it writes and keeps, GB.
        done: it will find its files there.
    """

    title: str
    rows: int
    steps: str = ""
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    done: bool = False


@dataclass(frozen=True)
class Rows:
    """Numbers of lesions: all, malignant, held out; folds; seconds and GB to read their table."""

    all: int
    malignant: int
    held_out: int
    folds: int
    seconds: float
    memory: float

    @property
    def inside(self) -> int:
        """Lesions in folds."""
        return self.all - self.held_out

    @property
    def labels(self) -> np.ndarray:
        """Labels of as many rows as one fold's training has, 0/1, malignant ones first."""
        share = (1 - self.held_out / self.all) * (1 - 1 / self.folds)
        labels = np.zeros(max(2, round(self.all * share)), dtype=int)
        labels[: max(1, round(self.malignant * share))] = 1
        return labels


def rows_of(metadata: pd.DataFrame, folds: FoldOptions, seconds: float) -> Rows:
    """The numbers of a table; a holdout by share has that share, about."""
    held_out = round(len(metadata) * folds.holdout)
    if folds.holdout_hospital:
        held_out = int(holdout_by_hospital(metadata, folds.holdout_hospital).sum())
    return Rows(len(metadata), int(metadata[TARGET].sum()), held_out, folds.folds, seconds, peak_memory() or 0.0)


def estimate_folds(rows: Rows, speed: TabularSpeed) -> Estimate:
    """Reading, folds, leaks."""
    seconds = START + 2 * rows.seconds + speed.leaks * rows.all
    return Estimate("folds", rows.all, f"{rows.folds} folds", seconds, rows.memory, ROW_BYTES * rows.all / 1e9)


def estimate_stacking(rows: Rows, speed: TabularSpeed) -> Estimate:
    """The table and its features once more; its small fits take less, its scores as many resamples as the fusion's."""
    seconds = START + 2 * rows.seconds + speed.features * rows.all
    seconds += FUSION_SCORES * RESAMPLES * rows.inside * speed.bootstrap
    memory = rows.memory + FEATURE_COPIES * speed.row_bytes * rows.all / 1e9
    return Estimate("stacking", rows.inside, "", seconds, memory, ROW_BYTES * rows.inside / 1e9)


def estimate_tabular(rows: Rows, speed: TabularSpeed, options: TabularOptions) -> Estimate:
    """Features, fits, scores, resamples."""
    config = options.config
    trees, models = config.parameters.get("iterations", 1000), rows.folds * config.seeds
    labels = rows.labels
    fitted = min(len(labels), int(labels.sum() * (1 + config.negatives_per_positive)))
    scored = rows.inside * config.seeds + rows.held_out * models
    seconds = START + 2 * rows.seconds + (speed.leaks + speed.features) * rows.all
    seconds += trees * (models * fitted * speed.fit + scored * speed.scores)
    seconds += TABULAR_SCORES * RESAMPLES * rows.inside * speed.bootstrap
    memory = rows.memory + FEATURE_COPIES * speed.row_bytes * rows.all / 1e9
    disk = (models * trees * speed.tree_bytes + ROW_BYTES * rows.inside) / 1e9
    return Estimate("tabular", rows.all, f"{models} models of {trees:,} trees", seconds, memory, disk)


def steps_of(rows: Rows, config: TrainingConfig) -> int:
    """Steps of one fold's training, all epochs together."""
    drawn = len(config.sampling.draw(rows.labels, np.random.default_rng(0)))
    return (config.head_epochs + config.epochs) * math.ceil(drawn / config.batch_size)


def estimate_network(rows: Rows, speed: NetworkSpeed, config: TrainingConfig, keeps_crops: bool) -> Estimate:
    """Checked images, steps, scores out of fold, resamples."""
    steps, size = steps_of(rows, config), config.image_size**2 * 3
    scored = rows.inside + (rows.held_out * rows.folds if config.inputs == "image" else 0)
    seconds = START_NETWORK + 2 * rows.seconds + speed.check * rows.all
    seconds += rows.folds * (speed.start + steps * speed.step) + scored * speed.score
    crops = min(rows.inside, rows.folds * steps * config.batch_size)
    disk = rows.folds * WEIGHT_COPIES * 4 * speed.weights + ROW_BYTES * rows.inside + size * crops * keeps_crops
    memory = speed.memory + (steps * config.batch_size * ROW_BYTES + rows.all * ROW_BYTES) / 1e9
    return Estimate("fusion", rows.all, f"{rows.folds} x {steps:,} steps", seconds, memory, disk / 1e9)


def estimate_dry_run(
    rows: Rows,
    speed: TabularSpeed,
    speeds: Sequence[NetworkSpeed],
    tabular: TabularOptions,
    networks: Sequence[tuple],
) -> Estimate:
    """The kernel on the holdout: features, models, crops through the networks of all folds; and the report."""
    if not rows.held_out:
        return Estimate("dry run", 0, "no holdout: skipped")
    trees = tabular.config.parameters.get("iterations", 1000) * rows.folds * tabular.config.seeds
    shipped = [own for own, (_, config) in zip(speeds, networks, strict=True) if config.inputs == "fusion"]
    seconds = 2 * START_NETWORK + 3 * rows.seconds + REPORT_SECONDS
    seconds += rows.held_out * (speed.features + trees * speed.scores + rows.folds * sum(own.score for own in shipped))
    memory = max([REPORT_MEMORY + rows.memory, *(own.memory for own in shipped)])
    return Estimate(
        "dry run", rows.held_out, f"{rows.folds * len(shipped)} networks", seconds, memory, CROP_BYTES * rows.held_out / 1e9
    )


def recipe_of(rows: Rows, config: TrainingConfig) -> forecast.Recipe:
    """What the forecast for Kaggle needs to know of a network; of the competition's rows, in these folds."""
    share = rows.inside / rows.all
    full = Rows(forecast.TRAIN_ROWS, forecast.TRAIN_MALIGNANT, round(forecast.TRAIN_ROWS * (1 - share)), rows.folds, 0, 0)
    trained = steps_of(full, config) * config.batch_size
    return forecast.Recipe(config.backbone, config.image_size, config.views, rows.folds, trained)
