"""Shared by all packages: the metric, its bootstrap over patients, seeding, printing.

The metric is that of the ISIC 2024 competition: the area under the ROC curve above 80 % true-positive rate, 0 to 0.20. It
is a sum over the distinct scores of malignant lesions: the share of malignant lesions at a score, times the share of benign
lesions below it. Weights of rows enter as plain sums, so a bootstrap resample costs one pass over rows sorted once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

MIN_TPR = 0.80  # the competition scores the ROC curve above this true-positive rate
TOP_K = 15  # the competition's second measure looks at this many lesions of each patient
INTERVAL = (2.5, 97.5)  # percentiles of a 95 % bootstrap interval


class InputError(ValueError):
    """Bad input, in one sentence: the option, file, column or row, what was found there, and what to do.

    Commands print the sentence and exit with status 2 (``terminal.run_command``).
    """


# The metric


class _Ranking:
    """Scores sorted once, from which the ROC area follows for any whole-number weights of the groups of rows."""

    def __init__(self, y_true: NDArray[np.bool_], y_score: NDArray[np.float64], codes: NDArray[np.intp]) -> None:
        malignant, benign = np.flatnonzero(y_true), np.flatnonzero(~y_true)
        benign = benign[np.argsort(y_score[benign], kind="stable")]
        levels: NDArray[np.float64]
        levels, self._level_of_malignant = np.unique(y_score[malignant], return_inverse=True)
        self._group_of_malignant = codes[malignant]
        self._group_of_benign = codes[benign]
        self._benign_below = np.searchsorted(y_score[benign], levels, side="left")
        self._benign_up_to = np.searchsorted(y_score[benign], levels, side="right")

    def areas(self, weights: NDArray[np.int64], *min_tprs: float) -> list[float]:
        """Area above each of ``min_tprs``, where a row of group g counts ``weights[g]`` times."""
        benign = np.concatenate(([0], np.cumsum(weights[self._group_of_benign])))
        malignant = np.bincount(self._level_of_malignant, weights[self._group_of_malignant], len(self._benign_below))
        step = malignant / malignant.sum()  # 1 - TPR grows by it at this score
        reached = (np.cumsum(malignant) - malignant) / malignant.sum()  # 1 - TPR before the step
        specificity = benign[self._benign_below] / benign[-1]
        rise = benign[self._benign_up_to] / benign[-1] - specificity  # benign lesions tied with malignant ones
        areas = []
        for min_tpr in min_tprs:
            # The part of each step in the scored region; ties are a straight line, as in scikit-learn.
            part = np.clip(np.divide(1.0 - min_tpr - reached, step, out=np.zeros_like(step), where=step > 0), 0.0, 1.0)
            areas.append(float(np.sum(step * part * (specificity + rise * part / 2.0))))
        return areas


def _checked(y_true: ArrayLike, y_score: ArrayLike, name: str = "y_score") -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels as booleans and scores as float64, both of shape (rows,); raises InputError where they are no such thing."""
    y_true, y_score = np.asarray(y_true), np.asarray(y_score)
    if y_true.ndim != 1 or y_true.shape != y_score.shape:
        raise InputError(f"y_true has shape {y_true.shape} and {name} {y_score.shape}; give one of each per row.")
    known = pd.Series(y_true).isin((0, 1)).to_numpy()
    if not known.all():
        row = int(np.argmin(known))
        raise InputError(f"y_true must be 0 (benign) or 1 (malignant), row {row} is {y_true.tolist()[row]!r}; correct it.")
    try:
        y_score = y_score.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers ({error}); give one number per row.") from error
    broken = ~np.isfinite(y_score)
    if broken.any():
        row = int(np.argmax(broken))
        count = f"{int(broken.sum())} of {len(y_score)}"
        raise InputError(f"{name}: {count} are not finite, the first ({y_score[row]}) at row {row}; give finite scores.")
    y_true = y_true.astype(bool)
    if y_true.all() or not y_true.any():
        raise InputError(f"all {len(y_true)} labels are of one class; a ROC curve needs malignant and benign rows.")
    return y_true, y_score


def _codes_of(groups: ArrayLike, rows: int) -> NDArray[np.intp]:
    """Groups numbered 0, 1, ... in the order of their first rows, shape (rows,)."""
    groups = np.asarray(groups)
    if groups.shape != (rows,):
        raise InputError(f"groups have shape {groups.shape} and y_true ({rows},); give one patient per row.")
    codes, _ = pd.factorize(groups)
    if (codes < 0).any():
        raise InputError(f"groups: row {int(np.argmin(codes))} is missing; give every row a patient.")
    return codes


def partial_auc(y_true: ArrayLike, y_score: ArrayLike, min_tpr: float = MIN_TPR) -> float:
    """The competition's metric: area under the ROC curve above ``min_tpr`` true-positive rate, 0 to ``1 - min_tpr``.

    Equal to the official "ISIC pAUC-aboveTPR" (flip labels and scores, ``roc_curve``, straight line to the false-positive
    rate ``1 - min_tpr``, trapezoid), on ties too. A constant score has 0.02, guessing 0.02 on average, the best 0.20.

    Args:
        y_true: 0 benign, 1 malignant, shape (rows,).
        y_score: finite numbers, higher for more suspicious, any scale, shape (rows,).
        min_tpr: where the scored region begins, at least 0 and below 1.

    Raises:
        InputError: one class only, other labels than 0 and 1, scores that are not finite, or different lengths.
    """
    if not 0.0 <= min_tpr < 1.0:
        raise InputError(f"min_tpr is {min_tpr}; give a true-positive rate of at least 0 and below 1.")
    y_true, y_score = _checked(y_true, y_score)
    ranking = _Ranking(y_true, y_score, np.zeros(len(y_true), np.intp))
    return ranking.areas(np.ones(1, np.int64), min_tpr)[0]


def auc(y_true: ArrayLike, y_score: ArrayLike) -> float:
    """Area under the whole ROC curve, 0 to 1; arguments and errors as in ``partial_auc``."""
    return partial_auc(y_true, y_score, min_tpr=0.0)


def _retrieval_per_group(
    y_true: NDArray[np.bool_], y_score: NDArray[np.float64], codes: NDArray[np.intp], k: int
) -> NDArray[np.float64]:
    """Share of each group's malignant lesions among its k highest scores, shape (groups,); NaN if there are none."""
    order = np.lexsort((y_true, -y_score, codes))  # within a group: highest first, and benign first among equals
    counts = np.bincount(codes)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(codes)) - first[codes[order]]
    found = np.bincount(codes[order], y_true[order] & (rank < k))
    malignant = np.bincount(codes, y_true)
    return np.divide(found, malignant, out=np.full(len(counts), np.nan), where=malignant > 0)


def top_k_retrieval(y_true: ArrayLike, y_score: ArrayLike, groups: ArrayLike, k: int = TOP_K) -> float:
    """Share of a patient's malignant lesions among the patient's k highest scores, mean over patients who have any.

    The competition's second measure (its k is 15). Equal scores are ordered benign first, so a constant score is not
    flattered by the order of the rows.

    Raises:
        InputError: as ``partial_auc``, or a row without a patient.
    """
    y_true, y_score = _checked(y_true, y_score)
    return float(np.nanmean(_retrieval_per_group(y_true, y_score, _codes_of(groups, len(y_true)), k)))


def fold_mean(y_true: ArrayLike, y_score: ArrayLike, folds: ArrayLike) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; NaN for one fold) of the partial AUC of each fold, ``folds`` of shape (rows,).

    Raises:
        InputError: as ``partial_auc``, naming the fold.
    """
    y_true, y_score, folds = np.asarray(y_true), np.asarray(y_score), np.asarray(folds)
    if not y_true.shape == y_score.shape == folds.shape:
        raise InputError(f"y_true, y_score and folds have shapes {y_true.shape}, {y_score.shape}, {folds.shape}.")
    values = []
    for fold in np.unique(folds):
        try:
            values.append(partial_auc(y_true[folds == fold], y_score[folds == fold]))
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
    """Measures of one score: partial AUC (0 to 0.20), AUC (0 to 1) and top-15 retrieval (0 to 1)."""

    pauc: Estimate
    auc: Estimate
    top15: Estimate


@dataclass(frozen=True)
class ScoreTable:
    """Measures by name of score, on the same rows and the same resamples of patients."""

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


def resampled_weights(y_true: ArrayLike, codes: ArrayLike, samples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draws as many groups as there are, with replacement, and yields how often each was drawn, shape (groups,).

    Args:
        y_true: 0 or 1 (or booleans), shape (rows,).
        codes: the group of each row as 0, 1, ..., shape (rows,).
        samples: how many resamples to yield; one that lacks a class is drawn again.
        seed: same seed, same resamples.
    """
    rng = np.random.default_rng(seed)
    malignant, lesions = np.bincount(codes, y_true), np.bincount(codes)
    for _ in range(samples):
        weights = np.zeros(len(lesions), np.int64)
        while not 0 < weights @ malignant < weights @ lesions:
            weights = np.bincount(rng.integers(len(lesions), size=len(lesions)), minlength=len(lesions))
        yield weights


def bootstrap_scores(
    y_true: ArrayLike, groups: ArrayLike, y_scores: Mapping[str, ArrayLike], samples: int = 1000, seed: int = 0
) -> ScoreTable:
    """Partial AUC, AUC and top-15 retrieval of each score with 95 % percentile intervals, resampling whole patients.

    Lesions of one patient resemble each other, so resampling rows would give intervals that are too narrow.

    Args:
        y_true: 0 benign, 1 malignant, shape (rows,).
        groups: patient of each row, any type, shape (rows,).
        y_scores: name -> finite numbers of shape (rows,). All are measured on the same resamples.
        samples: resamples of the patients, at least 1.
        seed: same rows in the same order and same seed, same table.

    Raises:
        InputError: as ``partial_auc``, naming the score; a row without a patient; no score; no resample.
    """
    if not y_scores or samples < 1:
        raise InputError(f"{len(y_scores)} scores and {samples} resamples were asked for; give at least one of each.")
    checked = {name: _checked(y_true, y_score, f"scores of {name!r}") for name, y_score in y_scores.items()}
    truth = next(iter(checked.values()))[0]
    codes = _codes_of(groups, len(truth))
    rankings = {name: _Ranking(truth, y_score, codes) for name, (_, y_score) in checked.items()}
    retrieved = {name: _retrieval_per_group(truth, y_score, codes, TOP_K) for name, (_, y_score) in checked.items()}
    with_malignant = np.flatnonzero(~np.isnan(next(iter(retrieved.values()))))

    def measures(name: str, weights: NDArray[np.int64]) -> list[float]:
        top15 = np.average(retrieved[name][with_malignant], weights=weights[with_malignant])
        return [*rankings[name].areas(weights, MIN_TPR, 0.0), float(top15)]

    draws = {name: np.empty((samples, 3)) for name in y_scores}
    for sample, weights in enumerate(resampled_weights(truth, codes, samples, seed)):
        for name in y_scores:
            draws[name][sample] = measures(name, weights)
    once = np.ones(int(codes.max()) + 1, np.int64)
    return ScoreTable(
        scores={name: Scores(*map(_estimate, measures(name, once), draws[name].T)) for name in y_scores},
        rows=len(truth),
        malignant=int(truth.sum()),
        patients=len(once),
        samples=samples,
        paucs={name: draws[name][:, 0] for name in y_scores},
    )


# Seeding and printing


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and, where Keras is installed, Keras with its backend.

    Importing Keras takes seconds: a stage without a network passes its seed to what it uses (CatBoost,
    ``numpy.random.default_rng``) instead.
    """
    seed %= 2**32  # a fold's number was added to it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from NumPy's global state must be repeatable too
    if importlib.util.find_spec("keras"):
        import keras

        keras.utils.set_random_seed(seed)


@dataclass
class Output:
    """How this process prints; ``terminal.set_verbosity`` sets it."""

    #: -1 errors and the last line only, 0 the log, 1 seconds and what libraries say as well.
    verbosity: int = 0
    #: The last line, held back until the command ends, where verbosity is -1.
    held: str = ""
    started: float = field(default_factory=time.monotonic)
    #: What a line is printed inside: progress bars make way for it.
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


OUTPUT = Output()
STYLES = {"error": "31", "warning": "33", "summary": "1"}
WARNING = re.compile(r"\b(WARNING|FALL-BACK)\b")


def uses_colour(stream: TextIO) -> bool:
    """Whether lines may have colours: on a terminal, unless NO_COLOR is set; with FORCE_COLOR everywhere."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def print_line(text: str, style: str = "", stream: TextIO | None = None) -> None:
    """Prints a line at once, whatever the verbosity; one that cannot be written is lost.

    Args:
        text: without a newline at its end.
        style: of ``STYLES``, or none.
        stream: standard output if not given.
    """
    stream = stream or sys.stdout
    with contextlib.suppress(OSError, ValueError), OUTPUT.around():
        print(f"\033[{STYLES[style]}m{text}\033[0m" if style and uses_colour(stream) else text, file=stream, flush=True)


def log(text: str, elapsed: float | None = None, style: str = "") -> None:
    """Prints a line about what happens, without a time stamp unless verbose: two runs can be compared.

    Args:
        text: a line, or lines such as a table.
        elapsed: seconds to print before it.
        style: of ``STYLES``; by default a line with the word WARNING or FALL-BACK is a warning.
    """
    lines = "\n" in text
    if elapsed is None and OUTPUT.verbosity > 0 and not lines:
        elapsed = time.monotonic() - OUTPUT.started
    text = text if elapsed is None else f"[{elapsed:7.1f} s] {text}"
    if OUTPUT.verbosity < 0:
        OUTPUT.held = text
    else:
        print_line(text, style or ("warning" if not lines and WARNING.search(text) else ""))


def log_summary(text: str, table: str = "") -> None:
    """Logs how a command ends: a table, if there is one, and the line that --quiet leaves."""
    if table:
        log(f"\n{table}\n")
    log(text, style="summary")


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text that is a GitHub table as well, numbers to the right, without a newline at its end.

    Args:
        rows: cells; the first row has the column names, the first column names the rows.
    """
    rows = [[row[0].replace("|", "\\|"), *row[1:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_table(table: ScoreTable) -> str:
    """The scores as a ``text_table``."""
    rows = [["score", "pAUC", "95 % interval", "AUC", f"top-{TOP_K}"]]
    for name, row in table.scores.items():
        interval = f"{row.pauc.low:.4f} to {row.pauc.high:.4f}"
        rows.append([name, f"{row.pauc.value:.4f}", interval, f"{row.auc.value:.4f}", f"{row.top15.value:.3f}"])
    return text_table(rows)
