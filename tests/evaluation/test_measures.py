import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_curve

from evaluation.measures import RATES, SENSITIVITIES, calibration, operating_points
from utils import INTERVAL, MIN_TPR, partial_auc, resampled_weights


def made(rows=300, patients=30, seed=0, ties=False):
    """Labels, patients and logits that mean something."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.5, rows)
    labels = (rng.random(rows) < expit(logits)).astype(int)
    return labels, rng.integers(0, patients, rows), np.round(logits) if ties else logits


def written_out(labels, codes, scores, weights):
    """The rows that a resample holds, each as often as its patient was drawn."""
    times = weights[codes]
    return np.repeat(labels, times), np.repeat(scores, times)


def first_threshold(labels, scores, rate):
    """By trying every score from the top: (threshold, flagged, found) once ``rate`` of the malignant rows is found."""
    for threshold in np.sort(np.unique(scores))[::-1]:
        flagged = scores >= threshold
        if labels[flagged].sum() >= rate * labels.sum() - 1e-9:
            return threshold, flagged.sum(), labels[flagged].sum()
    return None


@pytest.mark.parametrize("ties", [False, True])
def test_lesions_to_examine_are_those_of_the_first_threshold_that_finds_enough(ties):
    labels, patients, scores = made(ties=ties)
    points, _ = operating_points(labels, patients, {"a": scores, "b": -scores}, "a", samples=40)
    codes = np.unique(patients, return_inverse=True)[1]
    codes = np.unique(codes, return_index=True)[1].argsort().argsort()[codes]  # numbered in the order of the rows
    for number, rate in enumerate(SENSITIVITIES):
        point = points["a"][number]
        threshold, flagged, found = first_threshold(labels, scores, rate)
        assert (point.threshold, point.flagged, point.found) == (threshold, flagged, found)
        assert point.examined.value == flagged / found
        assert points["b"][number].examined.value > point.examined.value
        draws = []
        for weights in resampled_weights(labels, codes, 40, 0):
            _, flagged, found = first_threshold(*written_out(labels, codes, scores, weights), rate)
            draws.append(flagged / found)
        assert [point.examined.low, point.examined.high] == pytest.approx(np.percentile(draws, INTERVAL))


@pytest.mark.parametrize("ties", [False, True])
def test_the_band_is_where_95_in_100_resampled_curves_run(ties):
    labels, patients, scores = made(ties=ties)
    _, band = operating_points(labels, patients, {"a": scores}, "a", samples=40)
    codes = np.unique(patients, return_inverse=True)[1]
    codes = np.unique(codes, return_index=True)[1].argsort().argsort()[codes]
    curves = []
    for weights in resampled_weights(labels, codes, 40, 0):
        false, true, _ = roc_curve(*written_out(labels, codes, scores, weights), drop_intermediate=False)
        rates = RATES - 1e-12  # just before a level stretch, where the curve has two false-positive rates
        after = np.searchsorted(true, rates)
        share = (rates - true[after - 1]) / (true[after] - true[after - 1])
        curves.append(false[after - 1] + share * (false[after] - false[after - 1]))
    low, high = np.percentile(curves, INTERVAL, axis=0)
    np.testing.assert_allclose(band.low, low, atol=1e-9)
    np.testing.assert_allclose(band.high, high, atol=1e-9)


def test_the_area_above_the_band_s_curve_is_the_metric():
    labels, _, scores = made(rows=20_000, patients=1)
    _, band = operating_points(labels, np.zeros(len(labels)), {"a": scores}, "a", samples=1)
    scored = band.rates >= MIN_TPR - 1e-9  # one patient: the resample is the rows themselves
    area = np.trapezoid(1 - band.low[scored], band.rates[scored])
    assert area == pytest.approx(partial_auc(labels, scores), abs=1e-3)


def test_probabilities_that_come_true_are_calibrated():
    labels, patients, logits = made(rows=40_000, patients=4_000)
    measured = calibration(labels, patients, logits, samples=200)
    assert len(measured.bins) == 10
    assert sum(part.rows for part in measured.bins) == len(labels)
    assert sum(part.malignant for part in measured.bins) == labels.sum()
    assert measured.observed_to_expected.value == pytest.approx(labels.sum() / expit(logits).sum())
    assert measured.observed_to_expected.low < 1 < measured.observed_to_expected.high
    for part in measured.bins:
        assert part.observed.value == part.malignant / part.rows
        assert part.observed.low <= part.observed.value <= part.observed.high
        assert part.observed.value == pytest.approx(part.predicted, rel=0.15)
        assert part.rows * part.predicted == pytest.approx(expit(logits).sum() / 10, rel=0.02)


def test_a_score_that_is_too_sure_shows_it():
    labels, patients, logits = made(rows=5_000, patients=500)
    measured = calibration(labels, patients, logits + 2, samples=100)
    assert measured.observed_to_expected.high < 0.7
    assert all(part.observed.value < part.predicted for part in measured.bins)


def test_calibration_s_intervals_resample_whole_patients():
    labels, patients, logits = made(rows=200, patients=10)
    measured = calibration(labels, patients, np.zeros(200), samples=60)
    (part,) = measured.bins  # equal probabilities share a bin
    codes = np.unique(patients, return_inverse=True)[1]
    codes = np.unique(codes, return_index=True)[1].argsort().argsort()[codes]
    draws = [written_out(labels, codes, logits, w)[0].mean() for w in resampled_weights(labels, codes, 60, 0)]
    assert [part.observed.low, part.observed.high] == pytest.approx(np.percentile(draws, INTERVAL))


def test_few_malignant_lesions_make_few_bins():
    labels = np.zeros(500, int)
    labels[::45] = 1
    bins = calibration(labels, np.arange(500), np.linspace(-6, 0, 500), samples=20).bins
    assert len(bins) == labels.sum() // 5


def test_extreme_logits_are_measured_as_well():
    labels = np.array([0, 0, 1, 1, 0, 1])
    measured = calibration(labels, np.arange(6), np.array([-900.0, -800, 800, 900, -850, -700]), samples=30)
    assert sum(part.rows for part in measured.bins) == 6
    assert np.isfinite(measured.observed_to_expected.value)
