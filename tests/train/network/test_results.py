import numpy as np
import pytest
from scipy.special import expit

from inference.scoring import COMBINATIONS, combine
from train.network.results import CHOSEN, choose, fit, nested_scores
from utils import InputError, partial_auc

TABULAR = np.array([-6.0, -2.0, -4.0, -5.0])
FUSION = np.array([-7.0, -1.0, -4.5, np.nan])
SEEN = np.array([True, True, True, False])
WEIGHTS = {
    "with_image": {"intercept": 0.5, "tabular": 0.25, "network": 0.75},
    "without_image": {"intercept": -1.0, "tabular": 0.8},
}
BLEND = {"kind": "blend"} | WEIGHTS


# What the kernel does


def test_fusion_alone_leaves_lesions_without_image_their_tabular_score():
    assert combine({"kind": "network"}, TABULAR, FUSION, SEEN).tolist() == [-7.0, -1.0, -4.5, -5.0]


def test_an_average_of_ranks_is_the_logit_of_the_mean_rank():
    found = combine({"kind": "rank_average"}, TABULAR, FUSION, SEEN)
    np.testing.assert_allclose(expit(found), np.array([1 + 1, 4 + 4, 3 + 3, 2 + 2]) / 2 / 5)


def test_a_blend_weighs_both_logits_where_there_is_an_image():
    expected = [0.5 - 6 / 4 - 7 * 0.75, 0.5 - 2 / 4 - 0.75, 0.5 - 1 - 4.5 * 0.75, -1 - 5 * 0.8]
    np.testing.assert_allclose(combine(BLEND, TABULAR, FUSION, SEEN), expected)


@pytest.mark.parametrize("how", [{"kind": "rank_average"}, BLEND, {"kind": "network"}])
def test_one_lesion_is_enough(how):
    one = np.array([-3.0])
    assert np.isfinite(combine(how, one, one - 1, np.array([True]))).all()


def test_an_unknown_combination_is_named():
    with pytest.raises(InputError, match="combines the scores by 'stacking', this code knows fusion, rank average, blend"):
        combine({"kind": "stacking"}, TABULAR, FUSION, SEEN)


# What training chooses


def made(rows, tabular_noise, fusion_noise, seed=0):
    """Lesions in three folds, with two scores of different quality."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-2, 2, rows)
    labels = (rng.random(rows) < expit(truth)).astype(int)
    scores = [truth + rng.normal(0, noise, rows) for noise in (tabular_noise, fusion_noise)]
    return labels, np.arange(rows) % 3, *scores, np.ones(rows, dtype=bool)


def test_a_blend_of_two_half_good_scores_is_better_than_either_and_is_chosen():
    data = made(30_000, 2.0, 2.0)
    labels, _, tabular, fusion, seen = data
    scores = nested_scores(*data)
    reached = {name: partial_auc(labels, values) for name, values in scores.items()}
    assert reached["blend"] > reached["network"] + 0.005
    how = choose(labels, tabular, fusion, seen, scores)
    assert how["kind"] in ("blend", "rank_average")  # equally good scores want equal weights: both are
    assert reached[how["kind"]] == max(reached[kind] for kind in COMBINATIONS)
    assert f"{how['kind']} {reached[how['kind']]:.4f}" in how["why"]
    assert reached[CHOSEN] == pytest.approx(reached[how["kind"]], abs=0.002)
    blend = fit("blend", labels, tabular, fusion, seen)["with_image"]
    assert blend["tabular"] == pytest.approx(blend["network"], rel=0.1)


def test_a_fusion_that_says_all_is_used_alone():
    labels, _, tabular, fusion, seen = data = made(30_000, 50.0, 0.0)
    scores = nested_scores(*data)
    how = choose(labels, tabular, fusion, seen, scores)
    assert how["kind"] in ("network", "blend")
    assert partial_auc(labels, scores["rank_average"]) < partial_auc(labels, scores["network"]) - 0.01
    blend = fit("blend", labels, tabular, fusion, seen)["with_image"]
    assert blend["network"] == pytest.approx(1, abs=0.05)
    assert blend["tabular"] == pytest.approx(0, abs=0.01)


def test_no_label_of_a_fold_touches_its_own_scores():
    labels, fold, tabular, fusion, seen = made(3_000, 2.0, 1.0)
    before = nested_scores(labels, fold, tabular, fusion, seen)
    flipped = np.where(fold == 1, 1 - labels, labels)
    after = nested_scores(flipped, fold, tabular, fusion, seen)
    for name in COMBINATIONS:
        np.testing.assert_array_equal(before[name][fold == 1], after[name][fold == 1])
    assert (before["blend"][fold != 1] != after["blend"][fold != 1]).all()


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_lesions_without_image_are_on_the_scale_of_the_others(kind):
    """Half of the images taken away cost no more than half of what the images give, and a little for the mixture."""
    labels, _, tabular, fusion, seen = made(60_000, 2.0, 1.0)
    how = fit(kind, labels, tabular, fusion, seen)
    half = np.random.default_rng(1).random(len(labels)) < 0.5
    whole, without = (partial_auc(labels, combine(how, tabular, fusion, some)) for some in (seen, ~seen))
    mixed = partial_auc(labels, combine(how, tabular, fusion, half))
    assert whole > without + 0.01
    assert mixed > (whole + without) / 2 - 0.003


def test_lesions_without_image_take_no_part_in_the_weights_of_the_image():
    labels, fold, tabular, fusion, seen = made(3_000, 2.0, 1.0)
    seen[::5] = False
    before = fit("blend", labels, tabular, fusion, seen)
    after = fit("blend", labels, tabular, np.where(seen, fusion, 1e6), seen)
    assert before == after
    scores = nested_scores(labels, fold, tabular, np.where(seen, fusion, tabular), seen)
    assert scores[CHOSEN].min() > 0
    assert scores[CHOSEN].max() <= 1


def test_the_fusion_alone_keeps_its_ranks_and_becomes_calibrated():
    labels, _, tabular, fusion, seen = made(60_000, 2.0, 1.0)
    found = combine(fit("network", labels, tabular, fusion, seen), tabular, fusion, seen)
    assert np.array_equal(np.argsort(found), np.argsort(fusion))
    assert expit(found).mean() == pytest.approx(labels.mean(), rel=0.01)
    top = found > np.quantile(found, 0.9)
    assert expit(found[top]).mean() == pytest.approx(labels[top].mean(), rel=0.05)


def test_a_score_that_is_worse_than_guessing_is_not_turned_round():
    labels, _, tabular, fusion, seen = made(3_000, 1.0, 1.0)
    assert fit("network", labels, tabular, -fusion, seen)["with_image"]["network"] == 1
    assert fit("blend", labels, -tabular, fusion, seen)["without_image"]["tabular"] == 1
