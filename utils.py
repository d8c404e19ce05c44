"""Shared by all packages: the metric, its bootstrap over patients, seeding, and what every command line needs.

The metric is that of the ISIC 2024 competition: the area under the ROC curve above 80 % true-positive rate, 0 to 0.20. It
is a sum over the distinct scores of malignant lesions: the share of malignant lesions at a score, times the share of benign
lesions below it. Weights of rows enter as plain sums, so a bootstrap resample costs one pass over rows sorted once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import logging
import math
import os
import random
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

MIN_TPR = 0.80  # the competition scores the ROC curve above this true-positive rate
TOP_K = 15  # the competition's second measure looks at this many lesions of each patient
INTERVAL = (2.5, 97.5)  # percentiles of a 95 % bootstrap interval


class InputError(ValueError):
    """Bad input, in one sentence: the option, file, column or row, what was found there, and what to do.

    Commands print the sentence and exit with status 2 (``run_command``).
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

    Importing Keras takes seconds: a stage without a network passes its seed to what it uses (CatBoost,
    ``numpy.random.default_rng``) instead.
    """
    seed %= 2**32  # a fold's number was added to it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from NumPy's global state must be repeatable too
    if importlib.util.find_spec("keras"):
        import keras

        keras.utils.set_random_seed(seed)


def log(text: str) -> None:
    """Prints one line at once, without a time stamp: two runs can be compared. A line that cannot be written is lost."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


class _LossyOutput(io.FileIO):
    """A file descriptor whose reader may go away or whose disk may be full: what cannot be written is lost."""

    def write(self, data: Any) -> int:
        """Writes what it can of bytes or a memoryview of them; never fails."""
        with contextlib.suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def guard_process() -> None:
    """Makes this process print whatever its streams can take, and no traceback: not of a thread, not of an ignored error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the number; else a data file would, and get the log
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - as long as the process
        elif stream is getattr(sys, f"__{name}__"):
            raw, at_once = _LossyOutput(stream.fileno(), "w", closefd=False), stream.line_buffering or stream.write_through
            lossy = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=at_once)
            setattr(sys, name, lossy)
    logging.raiseExceptions = False
    logging.setLogRecordFactory(lambda *given, **_: logging.LogRecord(*(*given[:6], None, *given[7:8])))  # no traceback
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None
    threading.excepthook = _note_thread


def _note_thread(failed: threading.ExceptHookArgs) -> None:
    if isinstance(failed.exc_value, Exception) and not sys.is_finalizing():
        _complain(f"warning: a thread stopped: {refusal(failed.exc_value) or _defect(failed.exc_value)}")


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)


#: What to do about errors of the operating system.
ADVICE = {
    "free disk space": (errno.ENOSPC, errno.EDQUOT),
    "free memory, or choose fewer --jobs or smaller batches": (errno.ENOMEM,),
    "raise the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "choose a place that you may read and write": (errno.EACCES, errno.EPERM, errno.EROFS),
    "correct the path": (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
#: Modules and classes of errors that mean a file, a disk, a process or a server; by name, because their import takes long.
REFUSING = re.compile(
    r"(_?catboost|pandas\.errors|pyarrow|h5py|dask|distributed|joblib|concurrent\.futures|optuna|sqlalchemy|sqlite3|jinja2"
    r"|requests|urllib3|http\.client|subprocess|zipfile|tarfile|zlib|_lzma|_csv|json\.decoder|PIL)\b"
    r"|tensorflow.*\.(ResourceExhausted|NotFound|PermissionDenied|Unavailable|DataLoss)Error"
)


def refusal(error: BaseException) -> str | None:
    """One sentence for an error that a user can correct: bad input, or a no of the system or of a library; else None."""
    kind, text = type(error).__name__, " ".join(map(str.strip, str(error).splitlines()))
    names = [f"{each.__module__}.{each.__name__}" for each in type(error).__mro__]
    if isinstance(error, InputError):
        return text or kind
    if isinstance(error, MemoryError) or (kind == "ResourceExhaustedError" and "No space left" not in text):
        return f"the memory is not enough ({text or kind}); free memory, or choose fewer --jobs or smaller batches."
    if isinstance(error, OSError):
        paths = " -> ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
        what = f"{paths}: {error.strerror}" if paths else text or kind
        advice = next((advice for advice, numbers in ADVICE.items() if error.errno in numbers), "correct that")
        return f"{what}; {advice}, and run the same command again."
    # h5py raises Python's own classes: the module of the code decides.
    names += [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    foreseen = isinstance(error, UnicodeError | ImportError) or text == "can't start new thread"
    if foreseen or any(map(REFUSING.match, names[:-1])) or names[-1].startswith("h5py"):
        return f"{kind}: {text[:600]}; correct that, and run the same command again."
    return None


def _defect(error: BaseException) -> str:
    """One sentence for an error of this program; its traceback goes into a file."""
    try:
        number, path = tempfile.mkstemp(".log", "traceback-")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
        where = f"its traceback is in {path}"
    except OSError as failed:
        where = f"its traceback could not be written ({failed.strerror or failed})"
    text = " ".join(str(error).split())[:600]
    return f"{type(error).__name__}: {text}; this is a defect of the program, please report it; {where}."


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """The door of every command: runs it and exits, with at most one sentence and no traceback, whatever happened.

    The status is 0 or what ``main`` returns; 2 for what a user can correct; 1 for a defect, with the traceback in a file
    that the sentence names; 130 after Ctrl-C and 143 after SIGTERM, which is raised as Ctrl-C is: libraries clean up.
    """
    terminated = []

    def terminate(number: int, frame: Any) -> NoReturn:
        terminated.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as ``interrupts`` and kernel.py leave it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        guard_process()
        status = main()
    except SystemExit:
        raise
    except BaseException as error:
        logging.disable()  # what libraries say as they clean up is not the reason
        warnings.simplefilter("ignore")
        cause: BaseException | None = error
        while cause and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause:
            _complain("stopped")
            status = 143 if terminated else 130
        else:
            sentence = refusal(error)
            _complain(f"error: {sentence or _defect(error)}")
            status = 2 if sentence else 1
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)
