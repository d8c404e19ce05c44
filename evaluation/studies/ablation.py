"""What each part of the tabular model is worth: one cross-validation per step, on the same folds.

    python -m evaluation.studies.ablation --data data/isic-2024-challenge --out docs/ablation.md

Steps add up, from the raw columns to the recipe of ``train.tabular``; the last two take something away from it. Every step
is measured out of fold on each split seed; pAUC is pooled over the folds and averaged over the split seeds. Intervals
resample patients, the same resamples for all steps, so that the difference to the step before is a paired one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from inference.features import ENGINEERED, MODEL_CATEGORIES
from inference.files import replacing
from inference.schema import HOSPITAL, NUMBERS
from scale.parallel import workers
from train.config import Recipe, add_recipe_options, recipe_of
from train.cross_validation import cross_validate
from train.folds import assign_folds
from train.lesions import read_rows
from utils import INTERVAL, InputError, ScoreTable, bootstrap_scores, fold_mean, log, run_command


@dataclass(frozen=True)
class Step:
    """One line of the table: which columns, by which recipe."""

    name: str
    columns: Callable[[str], bool]
    recipe: Recipe


@dataclass(frozen=True)
class Measured:
    """What one step reached on every split seed; logits of shape (rows,) each."""

    features: int
    logits: list[np.ndarray]
    fold_means: list[float]
    seconds: float


def is_raw(name: str) -> bool:
    """A column as the competition ships it."""
    return name in NUMBERS or name in MODEL_CATEGORIES


def steps(recipe: Recipe) -> list[Step]:
    """The steps up to ``recipe`` and back from it."""
    single = replace(recipe, seeds=1, negatives_per_positive=np.inf)
    sampled = replace(single, negatives_per_positive=recipe.negatives_per_positive)
    return [
        Step("raw columns", is_raw, single),
        Step("+ engineered columns", lambda name: is_raw(name) or name in ENGINEERED, single),
        Step("+ patient context", lambda name: True, single),
        Step(f"+ at most {recipe.negatives_per_positive:g} benign per malignant", lambda name: True, sampled),
        Step(f"+ {recipe.seeds} seeds: the recipe", lambda name: True, recipe),
        Step("the recipe - hospital column", lambda name: name != HOSPITAL, recipe),
        Step("the recipe - patient context", lambda name: is_raw(name) or name in ENGINEERED, recipe),
    ]


def measure(step: Step, features: pd.DataFrame, labels: np.ndarray, folds: dict[int, np.ndarray]) -> Measured:
    """Cross-validates a step on every split seed."""
    started = time.monotonic()
    columns = [name for name in features if step.columns(name)]
    logits, means = [], []
    for seed, fold in folds.items():
        recipe = replace(step.recipe, seed=step.recipe.seed + seed)
        _, scores = cross_validate(features[columns], labels, fold, recipe, progress=False)
        logits.append(scores)
        means.append(fold_mean(labels, scores, fold)[0])
    return Measured(len(columns), logits, means, time.monotonic() - started)


def averaged(table: ScoreTable, step: Step, splits: int) -> tuple[float, np.ndarray]:
    """Mean pAUC of a step over its split seeds: of the rows as they are, and per resample of patients."""
    names = [f"{step.name} {split}" for split in range(splits)]
    value = float(np.mean([table.scores[name].pauc.value for name in names]))
    return value, np.mean([table.paucs[name] for name in names], axis=0)


def written(results: list[tuple[Step, Measured]], table: ScoreTable, folds: dict[int, np.ndarray], command: str) -> str:
    """The table as Markdown, with what it was made of and by which command."""
    lines = [
        f"{table.rows:,} lesions, {table.malignant:,} malignant, {table.patients:,} patients; {len(set(folds[min(folds)]))} "
        f"patient-grouped folds, split seeds {', '.join(map(str, folds))}; {table.samples:,} resamples of patients.",
        "",
        "| step | features | pAUC, pooled | 95 % interval | less the step before, paired | fold mean | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    base = None
    for step, measured in results:
        value, draws = averaged(table, step, len(folds))
        low, high = np.percentile(draws, INTERVAL)
        change = ""
        if base is not None:
            down, up = np.percentile(draws - base[1], INTERVAL)
            change = f"{value - base[0]:+.4f} [{down:+.4f}, {up:+.4f}]"
        lines.append(
            f"| {step.name} | {measured.features} | {value:.4f} | {low:.4f} to {high:.4f} | {change} "
            f"| {np.mean(measured.fold_means):.4f} | {measured.seconds:.0f} |"
        )
        if not step.name.startswith("the recipe"):  # what is taken away is compared with the recipe
            base = (value, draws)
    return "\n".join([*lines, "", f"    {command}", ""])


def main(arguments: list[str] | None = None) -> int:
    """Measures every step and writes the table."""
    parser = argparse.ArgumentParser(description="What each part of the tabular model is worth -> a Markdown table")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Markdown file to write")
    parser.add_argument("--folds", type=int, default=5, help="cross-validation folds (default: %(default)s)")
    add_recipe_options(parser)
    parser.add_argument("--split-seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the folds (default: 0 1 2)")
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="only these lines of the table, 1 the first")
    options = parser.parse_args(arguments)
    asked = steps(recipe_of(options))
    if options.steps and not all(1 <= number <= len(asked) for number in options.steps):
        raise InputError(f"--steps {options.steps} names a line that is not there; lines are 1 to {len(asked)}.")
    asked = [asked[number - 1] for number in options.steps or range(1, len(asked) + 1)]
    rows = read_rows(options.data)
    nobody = np.zeros(len(rows.labels), dtype=bool)
    folds = {seed: assign_folds(rows.metadata, options.folds, nobody, seed) for seed in dict.fromkeys(options.split_seeds)}
    with workers(options.jobs, options.cluster):
        results = [
            (step, measure(step, rows.features, rows.labels, folds)) for step in tqdm(asked, desc="ablation", unit="step")
        ]
    scores = {f"{step.name} {split}": logits for step, measured in results for split, logits in enumerate(measured.logits)}
    table = bootstrap_scores(rows.labels, rows.patients, scores)
    command = f"python -m evaluation.studies.ablation --data DIR --out {options.out.name}"
    for name in ("folds", "seed", "seeds", "split_seeds", "params", "negatives_per_positive", "steps"):
        value = getattr(options, name)
        if value is not None:
            command += f" --{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
    text = written(results, table, folds, command)
    with replacing(options.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    log(text)
    log(f"{options.out}: {len(results)} steps on {len(folds)} split seeds")
    return 0


if __name__ == "__main__":
    run_command(main)
