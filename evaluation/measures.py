"""What the report's page measures beside the score table: operating points, the ROC curve's band, calibration.

All intervals are of the resamples of whole patients that ``utils.bootstrap_scores`` draws: same rows, same seed, same
resamples. Scores are sorted once; a resample then costs one pass over the benign rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from scale.progress import SLOW, Bar
from utils import INTERVAL, MIN_TPR, Estimate, resampled_weights

# The scores of a dry run, as tables name them; "final" is the submission.
TABULAR = "tabular"
IMAGE = "image only"
NETWORK = "network"  # the mean over all networks
STACKING = "stacking"
FINAL = "final"
BEST = "best possible"

SAMPLES = 1000  # default resamples, as in utils.bootstrap_scores
SENSITIVITIES = (0.8, 0.9)  # at which the number needed to examine is measured
#: True-positive rates at which the band is measured: finely where the competition scores.
RATES = np.concatenate([np.linspace(0.01, MIN_TPR, 80), np.linspace(MIN_TPR, 1, 101)[1:]])
BINS = 10  # of a calibration curve, at most
IN_A_BIN = 5  # malignant lesions in a bin on average, at least


@dataclass(frozen=True)
class OperatingPoint:
    """The highest threshold at which a score finds a share of the malignant lesions.

    Attributes:
        threshold: lesions of this score and higher are flagged.
        flagged: how many those are.
        found: how many of those are malignant.
        examined: lesions flagged for each malignant one found, with its interval.
    """

    threshold: float
    flagged: int
    found: int
    examined: Estimate


@dataclass(frozen=True)
class Band:
    """Pointwise 95 % interval of the false-positive rate at each true-positive rate; arrays of shape (rates,)."""

    rates: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationBin:
    """Lesions of like probability: how many, how likely malignant on average, and how many of them are."""

    rows: int
    malignant: int
    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """The bins from the least probable up, and malignant lesions observed for each one expected, over all rows."""

    bins: Sequence[CalibrationBin]
    observed_to_expected: Estimate


def estimate(value: float, draws: NDArray[np.float64] | Sequence[float]) -> Estimate:
    """A value with the 95 % interval of what it is on the resamples, shape (samples,)."""
    low, high = np.percentile(draws, INTERVAL)
    return Estimate(float(value), float(low), float(high))


class _SortedScores:
    """Labelled scores, sorted once: what a falling threshold flags, for any whole-number weights of the patients."""

    def __init__(self, y_true: NDArray[np.bool_], scores: NDArray[np.float64], codes: NDArray[np.intp]) -> None:
        malignant, benign = np.flatnonzero(y_true), np.flatnonzero(~y_true)
        benign = benign[np.argsort(-scores[benign], kind="stable")]
        falling, self._step_of_malignant = np.unique(-scores[malignant], return_inverse=True)
        self.levels = -falling
        self._codes_of_malignant, self._codes_of_benign = codes[malignant], codes[benign]
        self._above = np.searchsorted(-scores[benign], falling, side="left")
        self._down_to = np.searchsorted(-scores[benign], falling, side="right")

    def flagged(self, weights: NDArray[np.int64]) -> _Flagged:
        """Counts at each distinct score of a malignant lesion, the highest first; rows of patient c count ``weights[c]``
        times."""
        benign = np.concatenate(([0], np.cumsum(weights[self._codes_of_benign])))
        step = np.bincount(self._step_of_malignant, weights[self._codes_of_malignant], len(self.levels))
        return _Flagged(np.cumsum(step), benign[self._above], benign[self._down_to], benign[-1])


@dataclass(frozen=True)
class _Flagged:
    """Malignant lesions found down to each level, benign ones flagged above it and down to it, and all benign ones."""

    found: NDArray[np.float64]
    above: NDArray[np.int64]
    down_to: NDArray[np.int64]
    benign: int

    def at(self, rates: ArrayLike) -> NDArray[np.intp]:
        """The first level that finds each share of the malignant lesions, shape (rates,)."""
        # Less a billionth, because 0.9 * 10 may be above 9 in floating point.
        return np.searchsorted(self.found, np.asarray(rates) * self.found[-1] - 1e-9)

    def false_positive_rates(self, rates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ROC curve, read across at true-positive rates above 0; ties are a straight line, as in scikit-learn."""
        at = self.at(rates)
        before = np.where(at > 0, self.found[at - 1], 0.0)
        part = np.clip((rates * self.found[-1] - before) / (self.found[at] - before), 0, 1)
        return (self.above[at] + part * (self.down_to[at] - self.above[at])) / self.benign

    def examined(self, rates: ArrayLike) -> NDArray[np.float64]:
        """Lesions flagged for each malignant one found; a lesion whose score is the threshold is flagged."""
        at = self.at(rates)
        return 1.0 + self.down_to[at] / self.found[at]


def operating_points(
    y_true: ArrayLike,
    groups: ArrayLike,
    scores: Mapping[str, ArrayLike],
    banded: str,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[dict[str, list[OperatingPoint]], Band]:
    """Lesions to examine at ``SENSITIVITIES`` for every score, and the band of one score's ROC curve.

    Args:
        y_true: 0 benign, 1 malignant, both there, shape (rows,).
        groups: patient of each row, shape (rows,).
        scores: name -> finite numbers of shape (rows,).
        banded: the score whose band is measured.
        samples: resamples of the patients.
        seed: as in ``utils.bootstrap_scores``.

    Returns:
        Name -> a point for each of ``SENSITIVITIES``; and the band at ``RATES``.
    """
    y_true, codes = np.asarray(y_true).astype(bool), pd.factorize(np.asarray(groups))[0]
    ranked = {name: _SortedScores(y_true, np.asarray(values, np.float64), codes) for name, values in scores.items()}
    examined = {name: np.empty((samples, len(SENSITIVITIES))) for name in scores}
    rates = np.empty((samples, len(RATES)))
    resamples = Bar(
        resampled_weights(y_true, codes, samples, seed), desc="operating points", total=samples, unit="resample", delay=SLOW
    )
    for sample, weights in enumerate(resamples):
        for name, score in ranked.items():
            flagged = score.flagged(weights)
            examined[name][sample] = flagged.examined(SENSITIVITIES)
            if name == banded:
                rates[sample] = flagged.false_positive_rates(RATES)
    points = {name: _points(score, examined[name], len(np.unique(codes))) for name, score in ranked.items()}
    return points, Band(RATES, *np.percentile(rates, INTERVAL, axis=0))


def _points(score: _SortedScores, draws: NDArray[np.float64], patients: int) -> list[OperatingPoint]:
    """A score's points on the rows as they are; ``draws`` are theirs on the resamples, shape (samples, sensitivities)."""
    counts, points = score.flagged(np.ones(patients, np.int64)), []
    for number, at in enumerate(counts.at(SENSITIVITIES)):
        found, flagged = int(counts.found[at]), int(counts.found[at] + counts.down_to[at])
        examined = estimate(flagged / found, draws[:, number])
        points.append(OperatingPoint(float(score.levels[at]), flagged, found, examined))
    return points


def calibration(
    y_true: ArrayLike, groups: ArrayLike, logits: ArrayLike, samples: int = SAMPLES, seed: int = 0
) -> Calibration:
    """Observed rates of malignant lesions against predicted probabilities.

    The bins are quantiles not of the lesions but of the malignant ones that the score itself expects: of ten bins of equally
    many lesions, nine would hold none of a rare class. There are fewer bins where there are few malignant lesions.

    Args:
        y_true: 0 benign, 1 malignant, both there, shape (rows,).
        groups: patient of each row, shape (rows,).
        logits: of being malignant, finite, shape (rows,).
        samples: resamples of the patients.
        seed: as in ``utils.bootstrap_scores``.
    """
    y_true, codes = np.asarray(y_true).astype(bool), pd.factorize(np.asarray(groups))[0]
    probability = expit(np.asarray(logits, np.float64))
    place = _bins(probability, max(1, min(BINS, int(y_true.sum()) // IN_A_BIN)))
    count, patient_count = int(place.max()) + 1, int(codes.max()) + 1
    cell = codes * count + place
    # Of each patient in each bin: lesions, malignant ones, expected ones. A resample is then a product with them.
    rows, malignant, expected = (
        np.bincount(cell, weights, patient_count * count).reshape(patient_count, count)
        for weights in (None, y_true, probability)
    )
    rates, ratios = np.empty((samples, count)), np.empty(samples)
    for sample, weights in enumerate(resampled_weights(y_true, codes, samples, seed)):
        drawn_rows, drawn_malignant, drawn_expected = weights @ rows, weights @ malignant, weights @ expected
        # A resample without a lesion in a bin does not count for it.
        rates[sample] = np.divide(drawn_malignant, drawn_rows, out=np.full(count, np.nan), where=drawn_rows > 0)
        ratios[sample] = drawn_malignant.sum() / drawn_expected.sum()
    low, high = np.nanpercentile(rates, INTERVAL, axis=0)
    rows, malignant, expected = (each.sum(axis=0) for each in (rows, malignant, expected))
    observed = map(Estimate, (malignant / rows).tolist(), low.tolist(), high.tolist())
    counts = rows.astype(int).tolist(), malignant.astype(int).tolist(), (expected / rows).tolist()
    bins = list(map(CalibrationBin, *counts, observed))
    return Calibration(bins, estimate(malignant.sum() / expected.sum(), ratios))


def _bins(probability: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The bin of each row, 0, 1, ... from the least probable up, none of them empty; equal rows share one."""
    _, level_of = np.unique(probability, return_inverse=True)
    mass = np.bincount(level_of, probability)
    middle = (np.cumsum(mass) - mass / 2) / max(mass.sum(), math.ulp(0.0))
    place = np.minimum((middle * count).astype(int), count - 1)
    return np.unique(place, return_inverse=True)[1][level_of]
