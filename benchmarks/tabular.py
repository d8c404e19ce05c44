"""Measures the tabular model on synthetic rows: time and memory of the features, time of the fold models' scores, growth.

    python -m benchmarks.tabular                      511,474 lesions, as many as the hidden test has
    python -m benchmarks.tabular --growth             and how time grows from 50,000 to 1,000,000 lesions

Prints one JSON line per figure: its value and unit, the target, and a ratio to something measured in the same run, which a
busy or slow machine changes less than the seconds.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report import growth_exponent, progress, report, timed
from inference.features import (
    CONTEXT,
    SITE,
    build_features,
    engineered_features,
    group_codes,
    percentile_ranks,
    standard_scores,
)
from inference.options import Parser, add_seed_option, count
from inference.run_log import peak_memory
from inference.schema import NUMBERS, PATIENT, TARGET, TEST_COLUMNS
from inference.tabular import tabular_logits
from terminal import run_command
from train.config import PARAMETERS
from train.cross_validation import categories_of, train_model
from train.synthetic.dataset import LESIONS, PATIENTS, PREVALENCE, DatasetConfig, make_tables
from utils import InputError

TEST_LESIONS = 511_474
#: Benign rows that the models are trained on: the time of scoring depends on a model's trees, not on its training rows.
SAMPLE = 2_000
GROWTH = (50_000, 100_000, 200_000, 400_000, 1_000_000)
TARGETS = {"features": 15.0, "memory": 3.0, "scores": 30.0, "growth": 1.1}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lesions", type=count(500), default=TEST_LESIONS, help="rows (default: %(default)s)")
    parser.add_argument("--models", type=count(), default=15, help="fold models that score (default: %(default)s)")
    parser.add_argument(
        "--trees", type=count(), default=PARAMETERS["iterations"], help="of each model (default: %(default)s)"
    )
    parser.add_argument("--growth", action="store_true", help=f"also time the features of {GROWTH[0]} to {GROWTH[-1]} rows")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    lesions = options.lesions
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.pkl"
        progress(f"making {lesions} lesions")
        alone(write_rows, rows, lesions, options.seed)
        progress("features")
        features = alone(measure_features, rows)
        progress("standard scores and ranks, here and by pandas")
        context = alone(measure_context, rows)
        pandas = ("pandas scores and ranks", context["pandas"])
        report("tabular features", features["seconds"], "s", lesions, pandas, TARGETS["features"])
        report("tabular scores and ranks", context["arrays"], "s", lesions, pandas)
        metadata = ("the metadata in memory", features["metadata"])
        report("tabular memory", features["peak"], "GB", lesions, metadata, TARGETS["memory"])
        progress(f"training {options.models} models, then their scores")
        scores = alone(measure_scores, rows, options.models, options.trees)
        report("tabular scores", scores["seconds"], "s", lesions, ("features", scores["features"]), TARGETS["scores"])
        if options.growth:
            measure_growth(rows, GROWTH, options.seed)
    return 0


def measure_growth(rows: Path, growth: tuple[int, ...], seed: int) -> None:
    """How the time of the features grows with the lesions."""
    seconds = []
    for lesions in growth:
        progress(f"features of {lesions} lesions")
        alone(write_rows, rows, lesions, seed)
        seconds.append(alone(measure_features, rows)["seconds"])
    exponent = growth_exponent(growth, seconds)
    report("tabular growth", exponent, "exponent of rows", growth[-1], ("exponent 1", 1.0), TARGETS["growth"])


def alone(work: Callable, *arguments: Any) -> Any:
    """What the work returns in a process of its own, whose memory nothing else has raised."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def write_rows(path: Path, lesions: int, seed: int) -> None:
    """Writes a synthetic dataset's metadata with its labels, as many patients to the lesions as the competition has."""
    patients, prevalence = max(2, round(lesions * PATIENTS / LESIONS)), max(PREVALENCE, 50 / lesions)
    table = make_tables(DatasetConfig(patients, lesions, prevalence, seed)).train
    table[[*TEST_COLUMNS, TARGET]].to_pickle(path)


def measure_features(path: Path) -> dict[str, float]:
    """Seconds of ``build_features``, the peak memory of the process and the size of its metadata, both in GB."""
    metadata = pd.read_pickle(path)
    seconds, _ = timed(lambda: build_features(metadata))
    size = int(metadata.memory_usage(deep=True).sum()) / 1e9
    return {"seconds": seconds, "peak": peak_memory() or math.nan, "metadata": size}


def measure_context(path: Path) -> dict[str, float]:
    """Seconds of standard scores per patient and site and ranks per patient, by ``inference.features`` and by pandas."""
    metadata = pd.read_pickle(path)
    numbers = {name: metadata[name].to_numpy("float64") for name in NUMBERS}
    numbers |= engineered_features(numbers)
    frame = pd.DataFrame({name: numbers[name] for name in CONTEXT})
    site = group_codes(metadata[PATIENT] + "\t" + metadata[SITE].astype(str))
    values, patient = frame.to_numpy(), group_codes(metadata[PATIENT])

    def by_arrays() -> list[np.ndarray]:
        return [standard_scores(values, patient), standard_scores(values, site), percentile_ranks(values, patient)]

    def by_pandas() -> list[pd.DataFrame]:
        results = []
        for codes in (patient, site):
            groups = frame.groupby(codes)
            results.append((frame - groups.transform("mean")) / groups.transform("std", ddof=0))
        groups = frame.groupby(patient)
        return [*results, (groups.rank() - 0.5) / groups.transform("count")]

    (arrays, ours), (pandas, theirs) = timed(by_arrays), timed(by_pandas)
    for one, other in zip(ours, theirs, strict=True):
        # Where a group does not vary, ours are 0 and theirs are not finite or rounding.
        if not np.allclose(one, other, rtol=1e-6, atol=1e-6, equal_nan=True) and np.any(
            np.isfinite(other.to_numpy()) & (one != 0) & ~np.isclose(one, other, rtol=1e-6, atol=1e-6)
        ):
            raise InputError("pandas and inference.features disagree; these figures compare nothing.")
    return {"arrays": arrays, "pandas": pandas}


def measure_scores(path: Path, models: int, trees: int) -> dict[str, float]:
    """Seconds of ``tabular_logits`` over all rows, and of their features in the same process."""
    metadata = pd.read_pickle(path)
    seconds_of_features, features = timed(lambda: build_features(metadata))
    labels = metadata[TARGET].to_numpy()
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    sample = np.sort(np.append(positives[: SAMPLE // 4], negatives[:SAMPLE]))
    parameters = PARAMETERS | {"iterations": trees}
    trained = [(train_model(features.iloc[sample], labels[sample], parameters, seed), 0.0) for seed in range(models)]
    seconds, scores = timed(lambda: tabular_logits(trained, features, categories_of(features)))
    if not np.isfinite(scores).all():
        raise InputError("a score is not finite; these figures measure nothing.")
    return {"seconds": seconds, "features": seconds_of_features}


if __name__ == "__main__":
    run_command(main)
