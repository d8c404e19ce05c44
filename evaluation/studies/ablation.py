"""What each part of the tabular model is worth: one cross-validation per step, on the same folds.

    python -m evaluation.studies.ablation --data data/isic-2024-challenge --out docs/ablation.md

Steps add up, from the raw columns to the full model of ``train.tabular``; the last two remove something from it. Every step
is measured out of fold on each split seed; pAUC is pooled over the folds and averaged over the split seeds. Intervals
resample patients, the same resamples for all steps, so that the difference to the step before is a paired one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from evaluation.studies.compare import MeanPauc, compare_splits, markdown_table, signed, size_of, split_folds, write_text
from inference.features import ENGINEERED, MODEL_CATEGORIES
from inference.options import Parser, count, existing_folder, output_file, seed
from inference.schema import HOSPITAL, NUMBERS
from scale.parallel import workers
from scale.progress import Bar
from terminal import run_command
from train.config import TabularConfig, add_tabular_options, read_config
from train.cross_validation import cross_validate
from train.lesions import Rows, read_rows
from utils import InputError, fold_mean, log_summary


@dataclass(frozen=True)
class Step:
    """One line of the table: its columns and its configuration."""

    name: str
    has: Callable[[str], bool]
    config: TabularConfig
    #: Whether it removes something from the full model, and is compared with that.
    removes: bool = False


@dataclass(frozen=True)
class Measured:
    """The results of one step, per split seed; logits of shape (rows,)."""

    features: int
    logits: list[np.ndarray]
    fold_means: list[float]
    seconds: float


def is_raw(name: str) -> bool:
    """A column as the competition ships it."""
    return name in NUMBERS or name in MODEL_CATEGORIES


def without_context(name: str) -> bool:
    """A column of the lesion itself, not of a comparison with the patient's other lesions."""
    return is_raw(name) or name in ENGINEERED


def any_column(name: str) -> bool:
    """Every feature of ``build_features``."""
    return True


def steps(config: TabularConfig) -> list[Step]:
    """The steps up to ``config``, and those that remove something from it."""
    single = replace(config, seeds=1, negatives_per_positive=np.inf)
    sampled = replace(single, negatives_per_positive=config.negatives_per_positive)
    return [
        Step("raw columns", is_raw, single),
        Step("+ engineered columns", without_context, single),
        Step("+ patient context", any_column, single),
        Step(f"+ at most {config.negatives_per_positive:g} benign per malignant", any_column, sampled),
        Step(f"+ {config.seeds} seeds: the full model", any_column, config),
        Step("full model - hospital column", lambda name: name != HOSPITAL, config, removes=True),
        Step("full model - patient context", without_context, config, removes=True),
    ]


def measure(step: Step, rows: Rows, folds: dict[int, np.ndarray]) -> Measured:
    """Cross-validates a step on every split seed."""
    started, logits = time.monotonic(), []
    features = rows.features[[name for name in rows.features if step.has(name)]]
    for split_seed, fold in folds.items():
        config = replace(step.config, seed=step.config.seed + split_seed)
        logits.append(cross_validate(features, rows.labels, fold, config, progress=False).logits)
    means = [fold_mean(rows.labels, *pair)[0] for pair in zip(logits, folds.values(), strict=True)]
    return Measured(features.shape[1], logits, means, time.monotonic() - started)


def as_markdown(results: list[tuple[Step, Measured]], means: dict[str, MeanPauc]) -> str:
    """The table; each step is compared with the last one before it that does not remove anything."""
    base, lines = None, []
    for step, measured in results:
        pauc = means[step.name].estimate
        change = signed(means[step.name].minus(base)) if base else ""
        cells = [f"{pauc.value:.4f}", f"{pauc.low:.4f} to {pauc.high:.4f}", change, f"{np.mean(measured.fold_means):.4f}"]
        lines.append([step.name, str(measured.features), *cells, f"{measured.seconds:.0f}"])
        base = base if step.removes else means[step.name]
    head = ["step", "features", "pAUC, pooled", "95 % interval", "minus the step before, paired", "fold mean", "seconds"]
    return markdown_table(head, lines)


def typed(options: argparse.Namespace) -> str:
    """The command that repeats the table."""
    words = [f"python -m evaluation.studies.ablation --data DIR --out {options.out.name}"]
    for name in ("folds", "seed", "seeds", "split_seeds", "params", "negatives_per_positive", "steps"):
        value = getattr(options, name)
        if value is not None:
            values = map(str, value) if isinstance(value, list) else [str(value)]
            words.append(f"--{name.replace('_', '-')} {' '.join(values)}")
    return " ".join(words)


def main(arguments: list[str] | None = None) -> int:
    """Measures every step and writes the table."""
    parser = Parser(description="What each part of the tabular model is worth -> a Markdown table")
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="Markdown file to write")
    parser.add_argument("--folds", type=count(2), default=5, help="cross-validation folds (default: %(default)s)")
    add_tabular_options(parser)
    parser.add_argument("--split-seeds", type=seed, nargs="+", default=[0, 1, 2], help="seeds of the folds (default: 0 1 2)")
    parser.add_argument("--steps", type=count(), nargs="+", metavar="N", help="only these lines of the table, 1 the first")
    options = parser.parse_args(arguments)
    chosen = steps(read_config(options.params, options.seeds, options.negatives_per_positive, options.seed))
    if options.steps and max(options.steps) > len(chosen):
        raise InputError(f"--steps {options.steps} names a line that does not exist; lines are 1 to {len(chosen)}.")
    chosen = [chosen[number - 1] for number in options.steps or range(1, len(chosen) + 1)]
    rows = read_rows(options.data)
    folds = {seed: split_folds(rows.metadata, options.folds, seed) for seed in options.split_seeds}
    with workers(options.jobs, options.cluster):
        results = [(step, measure(step, rows, folds)) for step in Bar(chosen, desc="ablation", unit="step")]
    table, means = compare_splits(rows.labels, rows.patients, {step.name: found.logits for step, found in results})
    measured = (
        f"{size_of(table)}; {options.folds} patient-grouped folds, split seeds {', '.join(map(str, folds))}; "
        f"{table.samples:,} resamples of patients."
    )
    text = f"{measured}\n\n{as_markdown(results, means)}\n\n    {typed(options)}"
    write_text(options.out, text)
    log_summary(f"{options.out}: {len(results)} steps on {len(folds)} split seeds", text)
    return 0


if __name__ == "__main__":
    run_command(main)
