"""Combining scores, and the kernel's answer to failing networks; the networks are replaced by arrays."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from inference.run_log import Run
from inference.schema import ID
from inference.scoring import COMBINATIONS, combine, combine_scores, correct_by_image
from utils import InputError

ROWS = pd.DataFrame({ID: [f"ISIC_{number:07d}" for number in range(10)]})
TABULAR = np.linspace(-8, -1, 10)
MANIFEST = {"network": {"settings": {"image_size": 32}, "weights": ["a"], "combination": {"kind": "network"}}}


@pytest.fixture
def corrected(monkeypatch):
    """Calls `correct_by_image` with networks that give these batches: (positions, logits), or an exception to raise."""

    def call(batches, run=None, manifest=MANIFEST, ensemble=None):
        def replayed(ensemble, images, tabular):
            for batch in batches:
                if isinstance(batch, BaseException):
                    raise batch
                yield np.array(batch[0]), np.array(batch[1], dtype="float64")

        monkeypatch.setattr("inference.scoring.image_batches", lambda *_: None)
        monkeypatch.setattr("inference.scoring.network_logits", replayed)
        run = run or Run()
        return *correct_by_image(ROWS, TABULAR, lambda: (ensemble, None), manifest, 4, run), run

    return call


def test_lesions_with_a_crop_are_scored_and_the_others_keep_their_score(corrected):
    final, image_scored, run = corrected([([0, 1, 2], [1.0, 2.0, 3.0]), ([4, 5, 6, 7, 8, 9], [5.0] * 6)])
    assert final.tolist() == [1, 2, 3, TABULAR[3], 5, 5, 5, 5, 5, 5]
    assert image_scored.tolist() == [True] * 3 + [False] + [True] * 6
    assert run.fallbacks == {"lesions_without_image_score": 1}


def test_output_that_is_not_finite_is_not_taken(corrected):
    final, _, run = corrected([(range(10), [np.nan, np.inf, -np.inf, *range(7)])])
    assert final.tolist() == [*TABULAR[:3], *range(7)]
    assert run.fallbacks == {"network_output_not_finite": 3, "lesions_without_image_score": 3}


@pytest.mark.parametrize("error", [RuntimeError("cuDNN is gone\nand more"), MemoryError("no memory"), InputError("broken")])
def test_networks_that_stop_leave_the_scores_they_have(corrected, error, capsys):
    final, _, run = corrected([([0, 1], [1.0, 2.0]), error])
    assert final.tolist() == [1, 2, *TABULAR[2:]]
    assert run.fallbacks == {"network_stopped": 1, "lesions_without_image_score": 8}
    assert f"{type(error).__name__}: {str(error).splitlines()[0]}; the rest keeps" in capsys.readouterr().out


@pytest.mark.parametrize(("budget", "reason"), [(3600, "SIGTERM was received"), (0.0, "time budget of 0 h")])
def test_what_is_not_reached_in_time_keeps_its_tabular_score(corrected, budget, reason, capsys):
    run = Run(time_budget=budget)

    def batches():
        run.interrupted = "SIGTERM was received" if "SIGTERM" in reason else ""
        yield [0, 1], [1.0, 2.0]
        raise AssertionError("a batch too many")

    final, _, run = corrected(batches(), run)
    assert final.tolist() == [1, 2, *TABULAR[2:]]
    assert run.fallbacks == {"images_not_reached": 8, "lesions_without_image_score": 8}
    assert reason in capsys.readouterr().out


class Views:
    """Stands for an ensemble that scores several views of a crop."""

    def __init__(self, views):
        self.views = views

    def halve_views(self):
        self.views = max(1, self.views // 2)
        return True


def test_with_little_time_further_crops_have_fewer_views(corrected, monkeypatch):
    lateness, ensemble = iter([True, True, False, False, True]), Views(8)
    monkeypatch.setattr(
        "inference.run_log.Forecast.late", property(lambda _: next(lateness), lambda *_: None), raising=False
    )
    batches = [([2 * step, 2 * step + 1], [1.0, 2.0]) for step in range(5)]
    _, image_scored, run = corrected(batches, Run(time_budget=3600), ensemble=ensemble)
    assert image_scored.all()
    assert ensemble.views == 2
    assert run.fallbacks == {"views_reduced": 2}


def test_a_signal_before_the_first_image_starts_no_network(corrected, capsys):
    run = Run()
    run.interrupted = "SIGTERM was received"
    final, image_scored, run = corrected([AssertionError("a batch too many")], run)
    assert final.tolist() == TABULAR.tolist()
    assert not image_scored.any()
    assert run.fallbacks["images_not_reached"] == 10
    assert "SIGTERM was received" in capsys.readouterr().out


def test_a_run_that_ends_just_in_time_has_missed_nothing(corrected):
    _, image_scored, run = corrected([(range(10), range(10))], Run(time_budget=0.0))
    assert image_scored.all()
    assert run.fallbacks == {}


def test_without_a_network_every_lesion_keeps_its_score(corrected):
    final, _, run = corrected([], manifest={})
    assert final.tolist() == TABULAR.tolist()
    assert run.fallbacks == {"no_network": 10}


# Combining

FOUR, NETWORK = np.array([-6.0, -2.0, -4.0, -5.0]), np.array([-7.0, -1.0, -4.5, np.nan])
SCORED = np.array([True, True, True, False])
BLEND = {
    "kind": "blend",
    "with_image": {"intercept": 0.5, "tabular": 0.25, "network": 0.75},
    "without_image": {"intercept": -1.0, "tabular": 0.8},
}


def test_the_network_alone_leaves_lesions_without_image_their_tabular_score():
    assert combine({"kind": "network"}, FOUR, NETWORK, SCORED).tolist() == [-7.0, -1.0, -4.5, -5.0]


def test_an_average_of_ranks_is_the_logit_of_the_mean_rank():
    found = combine({"kind": "rank_average"}, FOUR, NETWORK, SCORED)
    np.testing.assert_allclose(expit(found), np.array([1 + 1, 4 + 4, 3 + 3, 2 + 2]) / 2 / 5)


def test_a_blend_weighs_both_logits_where_there_is_an_image():
    expected = [0.5 - 6 / 4 - 7 * 0.75, 0.5 - 2 / 4 - 0.75, 0.5 - 1 - 4.5 * 0.75, -1 - 5 * 0.8]
    np.testing.assert_allclose(combine(BLEND, FOUR, NETWORK, SCORED), expected)


@pytest.mark.parametrize("how", [{"kind": "rank_average"}, BLEND, {"kind": "network"}])
def test_one_lesion_is_enough(how):
    one = np.array([-3.0])
    assert np.isfinite(combine(how, one, one - 1, np.array([True]))).all()


def test_an_unknown_combination_is_named():
    with pytest.raises(InputError, match=f"'stacking'.*{', '.join(COMBINATIONS)}"):
        combine({"kind": "stacking"}, FOUR, NETWORK, SCORED)


def test_scores_are_combined_as_the_manifest_says():
    run, image_scored = Run(), np.arange(10) % 2 == 0
    blend = {"kind": "blend", "with_image": {"intercept": 0.0, "tabular": 0.5, "network": 0.5}}
    found = combine_scores(TABULAR, TABULAR + 2, image_scored, {"network": {"combination": blend}}, run)
    np.testing.assert_allclose(found, TABULAR + image_scored)
    assert run.facts["combination"] == "blend"


def test_without_any_image_there_is_nothing_to_combine():
    assert combine_scores(TABULAR, TABULAR, np.zeros(10, dtype=bool), {}, Run()).tolist() == TABULAR.tolist()


@pytest.mark.parametrize(
    "network", [{}, {"combination": {"kind": "stacking"}}, {"combination": {"kind": "blend", "with_image": {}}}]
)
def test_a_combination_that_fails_leaves_the_network_logits(network, capsys):
    run = Run()
    found = combine_scores(TABULAR, TABULAR + 1, np.ones(10, dtype=bool), {"network": network}, run)
    assert found.tolist() == (TABULAR + 1).tolist()
    assert run.fallbacks == {"scores_not_combined": 10}
    assert "scores_not_combined" in capsys.readouterr().out
