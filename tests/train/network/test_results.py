from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit

from inference.network import NetworkConfig, build_network, load_network
from inference.scoring import COMBINATIONS
from train.network.results import (
    FINAL,
    OutOfFold,
    Scale,
    choose_combination,
    common_scales,
    draw_history,
    fit_combination,
    nested_scores,
    save_scaled,
    write_history,
)
from utils import InputError, partial_auc


def out_of_fold(y_true, fold, tabular, network, image_scored):
    """Lesions of as many patients."""
    ids = np.arange(len(y_true)).astype(str)
    return OutOfFold(ids, ids, y_true, fold, tabular, network, image_scored)


#: Four lesions; no network scored the last one.
FOUR = out_of_fold(
    y_true=np.array([0, 1, 0, 0]),
    fold=np.array([0, 0, 1, 1]),
    tabular=np.array([-6.0, -2.0, -4.0, -5.0]),
    network=np.array([-7.0, -1.0, -4.5, np.nan]),
    image_scored=np.array([True, True, True, False]),
)
WEIGHTS = {
    "with_image": {"intercept": 0.5, "tabular": 0.25, "network": 0.75},
    "without_image": {"intercept": -1.0, "tabular": 0.8},
}
BLEND = {"kind": "blend"} | WEIGHTS


# What the kernel does


def test_the_network_alone_leaves_lesions_without_image_their_tabular_logit():
    assert FOUR.combined({"kind": "network"}).tolist() == [-7.0, -1.0, -4.5, -5.0]


def test_an_average_of_ranks_is_the_logit_of_the_mean_rank():
    found = FOUR.combined({"kind": "rank_average"})
    np.testing.assert_allclose(expit(found), np.array([1 + 1, 4 + 4, 3 + 3, 2 + 2]) / 2 / 5)


def test_a_blend_weighs_both_logits_where_there_is_an_image():
    expected = [0.5 - 6 / 4 - 7 * 0.75, 0.5 - 2 / 4 - 0.75, 0.5 - 1 - 4.5 * 0.75, -1 - 5 * 0.8]
    np.testing.assert_allclose(FOUR.combined(BLEND), expected)


@pytest.mark.parametrize("how", [{"kind": "rank_average"}, BLEND, {"kind": "network"}])
def test_one_lesion_is_enough(how):
    assert np.isfinite(FOUR.where(np.arange(4) == 0).combined(how)).all()


def test_an_unknown_combination_is_named():
    with pytest.raises(InputError, match=r"'stacking'.* network, rank_average, blend"):
        FOUR.combined({"kind": "stacking"})


# What training chooses


def made(rows, tabular_noise, network_noise, seed=0):
    """Lesions in three folds, with two scores of different quality."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-2, 2, rows)
    y_true = (rng.random(rows) < expit(truth)).astype(int)
    tabular, network = (truth + rng.normal(0, noise, rows) for noise in (tabular_noise, network_noise))
    return out_of_fold(y_true, np.arange(rows) % 3, tabular, network, np.ones(rows, dtype=bool))


def test_a_blend_of_two_half_good_scores_is_better_than_either_and_is_chosen():
    rows = made(20_000, 2.0, 2.0)
    combination = choose_combination(rows)
    how = combination.settings
    reached = {name: partial_auc(rows.y_true, values) for name, values in combination.scores.items()}
    assert reached["blend"] > reached["network"] + 0.005
    assert how["kind"] in ("blend", "rank_average")  # equally good scores want equal weights: both are
    assert reached[how["kind"]] == max(reached[kind] for kind in COMBINATIONS)
    assert f"{how['kind']} {reached[how['kind']]:.4f}" in how["reason"]
    assert reached[FINAL] == pytest.approx(reached[how["kind"]], abs=0.002)
    blend = fit_combination("blend", rows)["with_image"]
    assert blend["tabular"] == pytest.approx(blend["network"], rel=0.1)


def test_a_network_that_knows_all_is_used_alone():
    rows = made(10_000, 50.0, 0.0)
    combination = choose_combination(rows)
    assert combination.settings["kind"] in ("network", "blend")
    network, ranks = (partial_auc(rows.y_true, combination.scores[kind]) for kind in ("network", "rank_average"))
    assert ranks < network - 0.01
    blend = fit_combination("blend", rows)["with_image"]
    assert blend["network"] == pytest.approx(1, abs=0.05)
    assert blend["tabular"] == pytest.approx(0, abs=0.01)


def test_a_tabular_logit_without_signal_leaves_the_networks_ranking():
    """``train.tabular`` then gives every lesion the logit of the prevalence."""
    rows = made(3_000, 2.0, 1.0)
    rows = replace(rows, tabular=np.full(len(rows.y_true), -3.710842))
    scores, alone = nested_scores(rows), partial_auc(rows.y_true, rows.network)
    for kind in COMBINATIONS:
        how = fit_combination(kind, rows)
        final = rows.combined(how)
        assert np.isfinite(final).all() and np.isfinite(scores[kind]).all()
        assert partial_auc(rows.y_true, final) == pytest.approx(alone)
        without = replace(rows, image_scored=np.zeros(len(rows.y_true), dtype=bool)).combined(how)
        assert np.ptp(without) == pytest.approx(0)
    assert scores.keys() == {*COMBINATIONS, FINAL}
    assert choose_combination(rows).settings["kind"] in COMBINATIONS


def test_no_label_of_a_fold_changes_its_own_scores():
    rows = made(3_000, 2.0, 1.0)
    before, inside = nested_scores(rows), rows.fold == 1
    after = nested_scores(replace(rows, y_true=np.where(inside, 1 - rows.y_true, rows.y_true)))
    for name in COMBINATIONS:
        np.testing.assert_array_equal(before[name][inside], after[name][inside])
    assert (before["blend"][~inside] != after["blend"][~inside]).all()


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_lesions_without_image_are_on_the_scale_of_the_others(kind):
    """Half of the images taken away cost no more than half of what the images give, and a little for the mixture."""
    rows = made(60_000, 2.0, 1.0)
    how = fit_combination(kind, rows)
    half = np.random.default_rng(1).random(len(rows.y_true)) < 0.5
    whole, without, mixed = (
        partial_auc(rows.y_true, replace(rows, image_scored=some).combined(how))
        for some in (rows.image_scored, ~rows.image_scored, half)
    )
    assert whole > without + 0.01
    assert mixed > (whole + without) / 2 - 0.003


def test_lesions_without_image_take_no_part_in_the_weights_of_the_image():
    rows = made(3_000, 2.0, 1.0)
    rows = replace(rows, image_scored=np.arange(3_000) % 5 > 0)
    other = replace(rows, network=np.where(rows.image_scored, rows.network, 1e6))
    assert fit_combination("blend", rows) == fit_combination("blend", other)
    scores = nested_scores(replace(rows, network=np.where(rows.image_scored, rows.network, rows.tabular)))
    assert scores[FINAL].min() > 0
    assert scores[FINAL].max() <= 1


def test_the_network_alone_keeps_its_ranks_and_becomes_calibrated():
    rows = made(60_000, 2.0, 1.0)
    found = rows.combined(fit_combination("network", rows))
    assert np.array_equal(np.argsort(found), np.argsort(rows.network))
    assert expit(found).mean() == pytest.approx(rows.y_true.mean(), rel=0.01)
    top = found > np.quantile(found, 0.9)
    assert expit(found[top]).mean() == pytest.approx(rows.y_true[top].mean(), rel=0.05)


def test_a_score_that_is_worse_than_guessing_is_not_turned_round():
    rows = made(3_000, 1.0, 1.0)
    assert fit_combination("network", replace(rows, network=-rows.network))["with_image"]["network"] == 1
    assert fit_combination("blend", replace(rows, tabular=-rows.tabular))["without_image"]["tabular"] == 1


# The history

RECORD = {"phase": "stages", "epoch": 1, "loss": 0.5, "learning_rate": 1e-3, "seconds": 60.5, "images_per_second": 40.5}


def a_history(fold):
    rows = [
        RECORD | {"phase": "head" if epoch == 1 else "stages", "epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 5)
    ]
    return pd.DataFrame(rows).assign(fold=fold)


def test_the_folds_histories_become_one_file_and_a_figure(tmp_path):
    folder, logs = tmp_path / "folder", tmp_path / "logs"
    folder.mkdir()
    for fold in (0, 1):
        a_history(fold).to_csv(folder / f"history{fold}.csv", index=False)
    write_history(folder, logs, "fusion")
    history = pd.read_csv(logs / "fusion-history.csv")
    pd.testing.assert_frame_equal(history, pd.concat([a_history(0), a_history(1)], ignore_index=True))
    with Image.open(logs / "fusion-curves.png") as picture:
        assert picture.size == (1200, 900)


def test_the_figure_has_every_fold_and_the_speed():
    figure = draw_history(pd.concat([a_history(0), a_history(1)], ignore_index=True), "fusion")
    top, bottom = figure.axes
    curves = {line.get_label(): list(line.get_ydata()) for line in top.lines if line.get_label().startswith("fold")}
    assert curves == {f"fold {fold}": [1 / epoch for epoch in range(1, 5)] for fold in (0, 1)}
    assert top.get_title() == "fusion: head, then stages; 40 images/s, 8.1 min in all"
    assert bottom.lines[0].get_ydata().tolist() == [1e-3] * 4


def test_folds_without_an_epoch_leave_no_history(tmp_path):
    pd.DataFrame(columns=["fold"]).to_csv(tmp_path / "history0.csv", index=False)
    write_history(tmp_path, tmp_path / "logs", "fusion")
    assert not (tmp_path / "logs").exists()


# One scale for all networks


def test_scaled_corrections_have_one_mean_and_spread_and_keep_their_order():
    rng = np.random.default_rng(0)
    corrections = [rng.normal(mean, spread, 50) for mean, spread in ((-5.0, 1.0), (-6.0, 2.0), (-5.5, 1.5))]
    scales = common_scales(corrections)
    scaled = [scale.of(each) for scale, each in zip(scales, corrections, strict=True)]
    np.testing.assert_allclose([each.mean() for each in scaled], np.mean([each.mean() for each in corrections]))
    np.testing.assert_allclose([each.std() for each in scaled], np.mean([each.std() for each in corrections]))
    for before, after in zip(corrections, scaled, strict=True):
        np.testing.assert_array_equal(np.argsort(before), np.argsort(after))
    assert common_scales([corrections[0]])[0].of(corrections[0]) == pytest.approx(corrections[0])


def test_networks_that_have_learned_nothing_are_left_alone():
    assert common_scales([np.zeros(5), np.arange(5.0)]) == [Scale(), Scale()]


@pytest.mark.integration
def test_the_last_layer_scales_the_corrections(tmp_path):
    config, rng = NetworkConfig(32, ("tabular",), head_units=4), np.random.default_rng(0)
    network = build_network(config)
    network.get_layer("correction").set_weights([rng.normal(size=(4, 1)), np.array([0.3])])
    network.save_weights(tmp_path / "one.weights.h5")
    tabular = rng.normal(-5, 2, (6, 1)).astype("float32")
    save_scaled(config, tmp_path / "one.weights.h5", tmp_path / "two.weights.h5", Scale(1.5, -0.2))
    found = load_network(config, tmp_path / "two.weights.h5")({"tabular": tabular}).numpy() - tabular
    expected = network({"tabular": tabular}).numpy() - tabular
    assert expected.std() > 0
    np.testing.assert_allclose(found, 1.5 * expected - 0.2, atol=1e-5)
