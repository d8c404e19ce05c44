import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from inference.schema import ID, TARGET
from inference.scoring import FINAL, combine
from train.combination import OF_ALL, OF_NETWORKS, choose_combination, fit_combination, nested_scores
from utils import partial_auc


def made(rows, tabular_noise, network_noise, stacking_noise=1.0, seed=0):
    """Lesions in three folds, with three scores of different quality."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-2, 2, rows)
    noises = {"tabular": tabular_noise, "network": network_noise, "context": 50.0, "stacking": stacking_noise}
    table = pd.DataFrame({ID: np.arange(rows).astype(str), TARGET: (rng.random(rows) < expit(truth)).astype(int)})
    table = table.assign(fold=np.arange(rows) % 3, image_scored=1)
    return table.assign(**{name: truth + rng.normal(0, noise, rows) for name, noise in noises.items()})


def combined(how, rows):
    return combine(how, rows, rows["image_scored"])


def test_a_blend_of_two_half_good_scores_is_better_than_either_and_is_chosen():
    rows = made(20_000, 2.0, 2.0)
    combination = choose_combination(rows, OF_NETWORKS)
    how = combination.settings
    reached = {name: partial_auc(rows[TARGET], values) for name, values in combination.scores.items()}
    assert reached["blend"] > reached["network"] + 0.005
    assert how["kind"] == "blend"
    assert f"blend {reached['blend']:.4f}" in how["reason"]
    assert reached[FINAL] == pytest.approx(reached["blend"], abs=0.002)
    assert how["with_image"]["tabular"] == pytest.approx(how["with_image"]["network"], rel=0.1)


def test_a_network_that_knows_all_is_used_alone():
    rows = made(10_000, 50.0, 0.0)
    assert choose_combination(rows, OF_NETWORKS).settings["kind"] in ("network", "blend")
    blend = fit_combination("blend", rows)["with_image"]
    assert blend["network"] == pytest.approx(1, abs=0.05)
    assert blend["tabular"] == pytest.approx(0, abs=0.01)


def test_networks_that_know_nothing_are_not_used():
    rows = made(10_000, 1.0, 50.0, 50.0)
    combination = choose_combination(rows, OF_ALL)
    reached = {name: partial_auc(rows[TARGET], combination.scores[name]) for name in OF_ALL}
    assert reached["tabular"] > reached["network"] + 0.05
    assert reached["tabular"] > reached["stacking"] + 0.05
    assert combination.settings["kind"] in ("tabular", "blend", "context")


def test_the_last_stage_is_chosen_where_it_is_best_and_its_mean_with_the_blend_where_both_are_good():
    assert choose_combination(made(20_000, 3.0, 3.0, 0.3), OF_ALL).settings["kind"] == "stacking"
    rows = made(20_000, 2.0, 2.0, 1.2)
    combination = choose_combination(rows, OF_ALL)
    assert combination.settings["kind"] == "mean"
    weights, blend, stacking = (fit_combination(kind, rows)["with_image"] for kind in ("mean", "context", "stacking"))
    assert weights == {
        "intercept": pytest.approx((blend["intercept"] + stacking["intercept"]) / 2),
        "tabular": pytest.approx(blend["tabular"] / 2),
        "network": pytest.approx(blend["network"] / 2),
        "context": pytest.approx(blend["context"] / 2),
        "stacking": pytest.approx(stacking["stacking"] / 2),
    }


def test_a_network_is_better_where_the_patients_style_is_known():
    """The network reads the lesion and the patient's style; the context logit is without the style."""
    rows = made(20_000, 3.0, 0.5)
    style = np.random.default_rng(1).normal(0, 2, len(rows))
    rows = rows.assign(context=rows["network"], network=rows["network"] + style, stacking=rows["tabular"])
    combination = choose_combination(rows, OF_ALL)
    assert combination.settings["kind"] == "context"
    reached = {kind: partial_auc(rows[TARGET], combination.scores[kind]) for kind in ("blend", "context")}
    assert reached["context"] > reached["blend"] + 0.01
    weights = combination.settings["with_image"]
    assert abs(weights["network"]) < 0.05 * weights["context"]


def test_a_combination_that_is_asked_for_is_taken():
    rows = made(3_000, 1.0, 50.0)
    chosen = choose_combination(rows, OF_ALL, "network").settings
    assert chosen["kind"] == "network"
    assert chosen["reason"].startswith("asked for")


def test_a_tabular_logit_without_signal_leaves_the_networks_ranking():
    """``train.tabular`` then gives every lesion the logit of the prevalence."""
    rows = made(3_000, 2.0, 1.0).assign(tabular=-3.710842)
    scores, alone = nested_scores(rows, OF_NETWORKS), partial_auc(rows[TARGET], rows["network"])
    for kind in ("network", "blend"):
        how = fit_combination(kind, rows)
        final = combined(how, rows)
        assert np.isfinite(final).all() and np.isfinite(scores[kind]).all()
        assert partial_auc(rows[TARGET], final) == pytest.approx(alone)
        assert np.ptp(combined(how, rows.assign(image_scored=0))) == pytest.approx(0)
    assert scores.keys() == {*OF_NETWORKS, FINAL}
    assert choose_combination(rows, OF_NETWORKS).settings["kind"] in ("network", "blend")


def test_no_label_of_a_fold_changes_its_own_scores():
    rows = made(3_000, 2.0, 1.0)
    before, inside = nested_scores(rows, OF_ALL), (rows["fold"] == 1).to_numpy()
    after = nested_scores(rows.assign(target=np.where(inside, 1 - rows[TARGET], rows[TARGET])), OF_ALL)
    for name in OF_ALL:
        np.testing.assert_array_equal(before[name][inside], after[name][inside])
    assert (before["blend"][~inside] != after["blend"][~inside]).all()


@pytest.mark.parametrize("kind", ["network", "blend", "context", "stacking", "mean"])
def test_lesions_without_image_are_on_the_scale_of_the_others(kind):
    """Half of the images taken away cost no more than half of what the images give, and a little for the mixture."""
    rows = made(60_000, 2.0, 1.0)
    how = fit_combination(kind, rows)
    half = np.random.default_rng(1).random(len(rows)) < 0.5
    whole, without, mixed = (
        partial_auc(rows[TARGET], combined(how, rows.assign(image_scored=some))) for some in (1, 0, half)
    )
    assert whole > without + 0.01
    assert mixed > (whole + without) / 2 - 0.003


def test_lesions_without_image_take_no_part_in_the_weights_of_the_image():
    rows = made(3_000, 2.0, 1.0)
    scored = np.arange(3_000) % 5 > 0
    rows = rows.assign(image_scored=scored.astype(int))
    other = rows.assign(network=np.where(scored, rows["network"], 1e6))
    assert fit_combination("blend", rows) == fit_combination("blend", other)
    scores = nested_scores(rows, OF_NETWORKS)
    assert scores[FINAL].min() > 0
    assert scores[FINAL].max() <= 1


def test_the_network_alone_keeps_its_ranks_and_becomes_calibrated():
    rows = made(60_000, 2.0, 1.0)
    found = combined(fit_combination("network", rows), rows)
    assert np.array_equal(np.argsort(found), np.argsort(rows["network"].to_numpy()))
    assert expit(found).mean() == pytest.approx(rows[TARGET].mean(), rel=0.01)
    top = found > np.quantile(found, 0.9)
    assert expit(found[top]).mean() == pytest.approx(rows[TARGET][top].mean(), rel=0.05)


def test_a_score_that_is_worse_than_guessing_is_not_turned_round():
    rows = made(3_000, 1.0, 1.0)
    assert fit_combination("network", rows.assign(network=-rows["network"]))["with_image"]["network"] == 1
    assert fit_combination("blend", rows.assign(tabular=-rows["tabular"]))["without_image"]["tabular"] == 1
