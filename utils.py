"""Small shared things of the local side: the metric, its bootstrap, seeding, logging.

The metric is the one of the ISIC 2024 competition: the area of the ROC curve above 80 % true-positive rate, 0 to 0.20.
Everything is computed from one idea. Walk through the distinct scores of the malignant lesions from the lowest up: every
step gives away a share of the malignant lesions and is worth the share of benign lesions that lie below it. Weights of
rows enter as plain sums, so a bootstrap resample costs one pass over rows that were sorted once.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

MIN_TPR = 0.80  # the competition scores the ROC curve above this true-positive rate
TOP_K = 15  # the competition's second measure looks at this many lesions of each patient
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap: a 95 % interval


class InputError(ValueError):
    """Bad input, told in one sentence: the file, column or row, what was found there, and the mend.

    Commands print the sentence and exit with status 2.
    """


# The metric


class _Ranking:
    """Labelled scores, sorted once, from which the ROC area follows for any whole-number weights of the groups of rows."""

    def __init__(self, labels: NDArray[np.bool_], scores: NDArray[np.float64], groups: NDArray[np.intp]) -> None:
        malignant, benign = np.flatnonzero(labels), np.flatnonzero(~labels)
        benign = benign[np.argsort(scores[benign], kind="stable")]
        levels, self._level_of_malignant = np.unique(scores[malignant], return_inverse=True)
        self._groups_of_malignant = groups[malignant]
        self._groups_of_benign = groups[benign]
        self._benign_below = np.searchsorted(scores[benign], levels, side="left")
        self._benign_up_to = np.searchsorted(scores[benign], levels, side="right")

    def areas(self, weights: NDArray[np.int64], *min_tprs: float) -> list[float]:
        """Area above each of ``min_tprs``, where a row of group g counts ``weights[g]`` times."""
        benign = np.concatenate(([0], np.cumsum(weights[self._groups_of_benign])))
        malignant = np.bincount(self._level_of_malignant, weights[self._groups_of_malignant], len(self._benign_below))
        step = malignant / malignant.sum()  # malignant share given away at this score: 1 - TPR grows by it
        reached = (np.cumsum(malignant) - malignant) / malignant.sum()  # 1 - TPR before the step
        specificity = benign[self._benign_below] / benign[-1]
        rise = benign[self._benign_up_to] / benign[-1] - specificity  # benign lesions tied with malignant ones
        areas = []
        for min_tpr in min_tprs:
            # The part of each step that lies in the scored region; ties are a straight line, as in scikit-learn.
            part = np.clip(np.divide(1.0 - min_tpr - reached, step, out=np.zeros_like(step), where=step > 0), 0.0, 1.0)
            areas.append(float(np.sum(step * part * (specificity + rise * part / 2.0))))
        return areas


def _checked(labels: ArrayLike, scores: ArrayLike, name: str = "scores") -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels as booleans and scores as float64, both of shape (rows,), or an InputError in one sentence."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise InputError(f"labels have shape {labels.shape} and {name} {scores.shape}; give one of each per row.")
    known = pd.Series(labels).isin((0, 1)).to_numpy()
    if not known.all():
        row = int(np.argmin(known))
        raise InputError(f"labels must be 0 (benign) or 1 (malignant), but row {row} is {labels.tolist()[row]!r}; mend it.")
    try:
        scores = scores.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers ({error}); give one number per row.") from error
    broken = ~np.isfinite(scores)
    if broken.any():
        row = int(np.argmax(broken))
        raise InputError(
            f"{name}: {int(broken.sum())} of {len(scores)} are not finite, the first ({scores[row]}) at row {row}."
        )
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        raise InputError(f"all {len(labels)} labels are of one class; a ROC curve needs malignant and benign rows.")
    return labels, scores


def _codes_of(patients: ArrayLike, rows: int) -> NDArray[np.intp]:
    """Patients numbered 0, 1, ... in the order of their first rows, shape (rows,)."""
    patients = np.asarray(patients)
    if patients.shape != (rows,):
        raise InputError(f"patients have shape {patients.shape} and labels ({rows},); give one patient per row.")
    codes, _ = pd.factorize(patients)
    if (codes < 0).any():
        raise InputError(f"patients: row {int(np.argmin(codes))} is missing; give every row a patient.")
    return codes


def partial_auc(labels: ArrayLike, scores: ArrayLike, min_tpr: float = MIN_TPR) -> float:
    """The competition's metric: area of the ROC curve above ``min_tpr`` true-positive rate, 0 to ``1 - min_tpr``.

    Equal to the official "ISIC pAUC-aboveTPR" (flip labels and scores, ``roc_curve``, straight line to the false-positive
    rate ``1 - min_tpr``, trapezoid), on ties too. A constant score has 0.02, guessing 0.02 on average, the best 0.20.

    Args:
        labels: 0 benign, 1 malignant, shape (rows,).
        scores: finite numbers, higher for more suspicious, any scale, shape (rows,).
        min_tpr: where the scored region begins, at least 0 and below 1.

    Raises:
        InputError: one class only, other labels than 0 and 1, scores that are not finite, or different lengths.
    """
    if not 0.0 <= min_tpr < 1.0:
        raise InputError(f"min_tpr is {min_tpr}; give a true-positive rate of at least 0 and below 1.")
    labels, scores = _checked(labels, scores)
    ranking = _Ranking(labels, scores, np.zeros(len(labels), np.intp))
    return ranking.areas(np.ones(1, np.int64), min_tpr)[0]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area of the whole ROC curve, 0 to 1; arguments and errors as in ``partial_auc``."""
    return partial_auc(labels, scores, min_tpr=0.0)


def _retrieval_per_patient(
    labels: NDArray[np.bool_], scores: NDArray[np.float64], codes: NDArray[np.intp], k: int
) -> NDArray[np.float64]:
    """Share of each patient's malignant lesions among the k highest scored, shape (patients,); NaN if there are none."""
    order = np.lexsort((labels, -scores, codes))  # within a patient: highest first, and benign first among equals
    counts = np.bincount(codes)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(codes)) - first[codes[order]]
    found = np.bincount(codes[order], labels[order] & (rank < k))
    malignant = np.bincount(codes, labels)
    return np.divide(found, malignant, out=np.full(len(counts), np.nan), where=malignant > 0)


def top_k_retrieval(labels: ArrayLike, scores: ArrayLike, patients: ArrayLike, k: int = TOP_K) -> float:
    """Share of a patient's malignant lesions among the patient's k highest scored, mean over patients who have any.

    The competition's second measure (its k is 15). Equal scores are ordered benign first, so a constant score is not
    flattered by the order of the rows.

    Raises:
        InputError: as ``partial_auc``, or a row without a patient.
    """
    labels, scores = _checked(labels, scores)
    return float(np.nanmean(_retrieval_per_patient(labels, scores, _codes_of(patients, len(labels)), k)))


def fold_mean(labels: ArrayLike, scores: ArrayLike, folds: ArrayLike) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; NaN for one fold) of the partial AUC of each fold, ``folds`` of shape (rows,).

    Raises:
        InputError: as ``partial_auc``, naming the fold.
    """
    labels, scores, folds = np.asarray(labels), np.asarray(scores), np.asarray(folds)
    if not labels.shape == scores.shape == folds.shape:
        raise InputError(f"labels, scores and folds have the shapes {labels.shape}, {scores.shape} and {folds.shape}.")
    values = []
    for fold in np.unique(folds):
        try:
            values.append(partial_auc(labels[folds == fold], scores[folds == fold]))
        except InputError as error:
            raise InputError(f"fold {fold}: {error}") from error
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


# Its bootstrap


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """What one score reaches: partial AUC (0 to 0.20), AUC (0 to 1) and top-15 retrieval (0 to 1)."""

    pauc: Estimate
    auc: Estimate
    top15: Estimate


@dataclass(frozen=True)
class ScoreTable:
    """Scores by name, measured on the same rows and the same resamples of patients."""

    scores: Mapping[str, Scores]
    rows: int
    malignant: int
    patients: int
    samples: int
    paucs: Mapping[str, NDArray[np.float64]] = field(repr=False, compare=False)  # per resample, shape (samples,)

    def difference(self, a: str, b: str) -> Estimate:
        """Partial AUC of ``a`` minus that of ``b``, its interval paired: both were measured on each resample."""
        value = self.scores[a].pauc.value - self.scores[b].pauc.value
        return _estimate(value, self.paucs[a] - self.paucs[b])


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(draws, INTERVAL)
    return Estimate(float(value), float(low), float(high))


def resampled_weights(labels: ArrayLike, codes: ArrayLike, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draws as many patients as there are, with replacement, and yields how often each was drawn, shape (patients,).

    Args:
        labels: 0 or 1 (or booleans), shape (rows,).
        codes: the patient of each row as 0, 1, ..., shape (rows,).
        samples: how many resamples to yield; one that lacks a class is drawn again.
        seed: same seed, same resamples.
    """
    rng = np.random.default_rng(seed)
    malignant, lesions = np.bincount(codes, labels), np.bincount(codes)
    for _ in range(samples):
        weights = np.zeros(len(lesions), np.int64)
        while not 0 < weights @ malignant < weights @ lesions:
            weights = np.bincount(rng.integers(len(lesions), size=len(lesions)), minlength=len(lesions))
        yield weights


def bootstrap_scores(
    labels: ArrayLike, patients: ArrayLike, scores: Mapping[str, ArrayLike], samples: int = 1000, seed: int = 0
) -> ScoreTable:
    """Partial AUC, AUC and top-15 retrieval of each score with 95 % percentile intervals, resampling whole patients.

    Lesions of one patient resemble each other, so resampling rows would give intervals that are too narrow.

    Args:
        labels: 0 benign, 1 malignant, shape (rows,).
        patients: patient of each row, any type, shape (rows,).
        scores: name -> finite numbers of shape (rows,). All are measured on one set of resamples.
        samples: resamples of the patients, at least 1.
        seed: same rows in the same order and same seed, same table.

    Raises:
        InputError: as ``partial_auc``, naming the score; a row without a patient; no score; no resample.
    """
    if not scores or samples < 1:
        raise InputError(f"{len(scores)} scores and {samples} resamples were asked for; give at least one of each.")
    checked = {name: _checked(labels, values, f"scores of {name!r}") for name, values in scores.items()}
    truth = next(iter(checked.values()))[0]
    codes = _codes_of(patients, len(truth))
    rankings = {name: _Ranking(truth, values, codes) for name, (_, values) in checked.items()}
    retrieved = {name: _retrieval_per_patient(truth, values, codes, TOP_K) for name, (_, values) in checked.items()}
    with_malignant = np.flatnonzero(~np.isnan(next(iter(retrieved.values()))))

    def measures(name: str, weights: NDArray[np.int64]) -> list[float]:
        top15 = np.average(retrieved[name][with_malignant], weights=weights[with_malignant])
        return [*rankings[name].areas(weights, MIN_TPR, 0.0), float(top15)]

    draws = {name: np.empty((samples, 3)) for name in scores}
    for sample, weights in enumerate(resampled_weights(truth, codes, samples, seed)):
        for name in scores:
            draws[name][sample] = measures(name, weights)
    once = np.ones(int(codes.max()) + 1, np.int64)
    return ScoreTable(
        scores={name: Scores(*map(_estimate, measures(name, once), draws[name].T)) for name in scores},
        rows=len(truth),
        malignant=int(truth.sum()),
        patients=len(once),
        samples=samples,
        paucs={name: draws[name][:, 0] for name in scores},
    )


def format_table(table: ScoreTable) -> str:
    """The table in aligned plain text that is a GitHub table as well, without a newline at its end."""
    lines = [["score", "pAUC", "95 % interval", "AUC", f"top-{TOP_K}"]]
    for name, row in table.scores.items():
        interval = f"{row.pauc.low:.4f} to {row.pauc.high:.4f}"
        reached = [f"{row.pauc.value:.4f}", interval, f"{row.auc.value:.4f}", f"{row.top15.value:.3f}"]
        lines.append([name.replace("|", "\\|"), *reached])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Seeding, commands and their output


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and, where Keras is installed, Keras with its backend.

    Keras is imported here and not above, because that takes seconds: a stage without a network need not call this, and
    hands its seed to what it uses (CatBoost, ``numpy.random.default_rng``).
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from NumPy's global state must be repeatable too
    if importlib.util.find_spec("keras"):
        import keras

        keras.utils.set_random_seed(seed)


def log(text: str) -> None:
    """One line on standard output, at once, without a time stamp: two runs can be compared line by line."""
    print(text, flush=True)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits: 0 or what it returns; 2 with one sentence for an InputError; 130 when stopped by Ctrl-C."""
    try:
        status = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        status = 130
    sys.exit(status)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--data`` and ``--artifacts``, which mean the same in every command."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument("--artifacts", type=Path, required=True, metavar="DIR", help="artifact folder of this training")


def add_seed_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--seed``, which means the same in every command."""
    parser.add_argument("--seed", type=int, default=0, help="start of all random numbers (default: %(default)s)")
