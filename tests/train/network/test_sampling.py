import math

import numpy as np
import pytest
from scipy.special import expit, logit

from train.archives.diagnoses import GROUPS
from train.network.sampling import GROUP_LESIONS, IMBALANCE_MODES, Imbalance, frequent_groups

LABELS = (np.arange(1000) % 50 == 0).astype(int)  # 20 malignant lesions


def drawn(mode, per_positive, seed=0):
    return Imbalance(mode, per_positive).draw(LABELS, np.random.default_rng(seed))


@pytest.mark.parametrize(("per_positive", "benign"), [(1, 20), (3, 60), (0.5, 10), (2.33, 47), (49, 980), (1000, 980)])
def test_undersampling_keeps_all_malignant_lesions_and_the_requested_number_of_benign_ones(per_positive, benign):
    epoch = drawn("undersample", per_positive)
    assert len(set(epoch.tolist())) == len(epoch) == 20 + benign
    assert set(np.flatnonzero(LABELS)) <= set(epoch.tolist())


@pytest.mark.parametrize(("per_positive", "malignant"), [(1, 980), (3, 327), (49, 20), (1000, 20)])
def test_oversampling_keeps_all_benign_lesions_and_repeats_malignant_ones_evenly(per_positive, malignant):
    epoch = drawn("oversample", per_positive)
    times = np.bincount(epoch, minlength=1000)
    assert (times[LABELS == 0] == 1).all()
    assert times[LABELS == 1].sum() == malignant
    assert np.ptp(times[LABELS == 1]) <= 1


@pytest.mark.parametrize("mode", ["class-weight", "focal"])
def test_class_weights_and_focal_loss_use_every_lesion_once(mode):
    assert sorted(drawn(mode, 3)) == list(range(1000))


def test_class_weights_count_malignant_lesions_as_if_there_were_more():
    weights = Imbalance("class-weight", 7).weights(LABELS)
    assert weights.mean() == pytest.approx(1)
    assert weights[LABELS == 0].sum() / weights[LABELS == 1].sum() == pytest.approx(7)
    for mode in ("undersample", "oversample", "focal"):
        assert (Imbalance(mode, 7).weights(LABELS) == 1).all()


def test_benign_lesions_are_drawn_anew_every_epoch_until_all_were_used():
    epochs = [drawn("undersample", 5, seed) for seed in range(100)]
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    assert set(np.concatenate(epochs).tolist()) == set(range(1000))


@pytest.mark.parametrize("mode", IMBALANCE_MODES)
def test_an_epoch_is_shuffled_and_the_same_for_the_same_seed(mode):
    epoch = drawn(mode, 5, 3)
    assert np.array_equal(epoch, drawn(mode, 5, 3))
    half = len(epoch) // 2
    parts = LABELS[epoch[:half]].sum(), LABELS[epoch[half:]].sum()
    assert min(parts) > 4  # malignant lesions stand neither all in front nor all behind


def test_the_prior_correction_is_zero_where_the_odds_are_unchanged():
    for mode in IMBALANCE_MODES:
        assert Imbalance(mode, 1000).prior_correction(LABELS) == 0
    assert Imbalance("undersample", 7).prior_correction(LABELS) == pytest.approx(math.log(49 / 7))
    assert Imbalance("oversample", 7).prior_correction(LABELS) == pytest.approx(math.log(49 / 7))
    assert Imbalance("class-weight", 7).prior_correction(LABELS) == pytest.approx(math.log(49 / 7))
    assert Imbalance("focal", 7).prior_correction(LABELS) == 0


@pytest.mark.parametrize("mode", ["undersample", "oversample", "class-weight"])
def test_the_prior_correction_leads_back_to_natural_logits(mode):
    """Rows with known logits: in the loss, their logits are higher by the prior correction."""
    rng = np.random.default_rng(0)
    logits = rng.choice([-5.0, -4.0, -3.0], 400_000)
    labels = (rng.random(400_000) < expit(logits)).astype(int)
    imbalance = Imbalance(mode, 1.5)
    epoch, weights, correction = imbalance.draw(labels, rng), imbalance.weights(labels), imbalance.prior_correction(labels)
    assert correction > 2.5
    for value in (-5.0, -4.0, -3.0):
        rows = epoch[logits[epoch] == value]
        assert logit(np.average(labels[rows], weights=weights[rows])) - correction == pytest.approx(value, abs=0.1)


def test_frequent_groups_have_enough_lesions_and_a_name():
    counts = {"melanoma": GROUP_LESIONS, "nevus": GROUP_LESIONS - 1, "": 500, "benign": 100}
    groups = np.concatenate([np.full(count, GROUPS.index(name)) for name, count in counts.items()])
    assert [GROUPS[number] for number in frequent_groups(groups)] == ["melanoma", "benign"]
    assert len(frequent_groups(groups[:0])) == 0
