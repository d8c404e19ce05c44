"""Combining scores, and the kernel's answer to failing networks; the networks are replaced by arrays."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from inference.run_log import Run
from inference.schema import ID
from inference.scoring import (
    BLOCKS,
    COMBINATIONS,
    ImageOptions,
    combine,
    combine_scores,
    correct_by_image,
    in_blocks,
    most_suspicious,
)
from utils import InputError

ROWS = pd.DataFrame({ID: [f"ISIC_{number:07d}" for number in range(10)]})
TABULAR = np.linspace(-1, -8, 10)  # the first row is scored first
MANIFEST = {"network": {"settings": {"image_size": 32}, "weights": ["a"], "combination": {"kind": "network"}}}


class Store:
    """Stands for an image file; ``file`` is the order of the rows in it."""

    def __init__(self, file=range(10)):
        self.file = list(file)

    def places(self, isic_ids):
        return np.array([self.file.index(ROWS[ID].tolist().index(isic_id)) for isic_id in isic_ids])


@pytest.fixture
def corrected(monkeypatch):
    """Calls `correct_by_image` with networks that give these batches: (positions, logits), or an exception to raise."""

    def call(batches, run=None, manifest=MANIFEST, ensemble=None, share=1.0):
        def replayed(ensemble, images, tabular):
            for batch in batches:
                if isinstance(batch, BaseException):
                    raise batch
                yield np.array(batch[0]), np.array(batch[1], dtype="float64")

        monkeypatch.setattr("inference.scoring.image_batches", lambda *_: None)
        monkeypatch.setattr("inference.scoring.network_logits", replayed)
        run = run or Run()
        return *correct_by_image(ROWS, TABULAR, lambda: (ensemble, Store()), manifest, ImageOptions(4, share), run), run

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


# The order of the lesions


def test_the_highest_tabular_logits_are_scored_first_and_a_block_in_the_order_of_the_file(monkeypatch):
    tabular = np.array([-3.0, -9.0, -1.0, -8.0, -2.0, -7.0, -4.0, -6.0, -5.0, -10.0])
    ranked = [2, 4, 0, 6, 8, 7, 5, 3, 1, 9]
    assert most_suspicious(tabular, 1.0).tolist() == ranked
    file = [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    places = Store(file).places(ROWS[ID])
    assert in_blocks(np.array(ranked), places, 4).tolist() == [0, 2, 6, 4, 8, 7, 3, 5, 9, 1]
    assert in_blocks(np.array(ranked), places, 10).tolist() == file
    assert in_blocks(np.array(ranked), np.zeros(10, int), 4).tolist() == [0, 2, 4, 6, 3, 5, 7, 8, 1, 9]
    read = []

    def decoded(store, isic_ids, image_size, batch_size):
        read.extend(isic_ids)
        return [slice(start, start + batch_size) for start in range(0, len(isic_ids), batch_size)]

    def scored(ensemble, batches, tabular):  # a network that adds 100 to the tabular logit
        for batch in batches:
            yield np.arange(len(tabular))[batch], tabular[batch] + 100

    monkeypatch.setattr("inference.scoring.image_batches", decoded)
    monkeypatch.setattr("inference.scoring.network_logits", scored)
    load = lambda: (None, Store(file))  # noqa: E731
    network, image_scored = correct_by_image(ROWS, tabular, load, MANIFEST, ImageOptions(4), Run())
    assert read == ROWS[ID].iloc[[0, 2, 6, 4, 8, 7, 3, 5, 9, 1]].tolist()
    assert network.tolist() == (tabular + 100).tolist()
    network, image_scored = correct_by_image(ROWS, tabular, load, MANIFEST, ImageOptions(4), Run(time_budget=0.0))
    assert np.flatnonzero(image_scored).tolist() == [0, 2, 4, 6]
    assert network.tolist() == np.where(image_scored, tabular + 100, tabular).tolist()


def test_many_lesions_are_scored_in_blocks_larger_than_a_batch(monkeypatch):
    sizes = []
    monkeypatch.setattr("inference.scoring.in_blocks", lambda ranked, places, size: sizes.append(size) or ranked)
    monkeypatch.setattr("inference.scoring.image_batches", lambda *_: None)
    monkeypatch.setattr("inference.scoring.network_logits", lambda *_: [])
    store = type("Zeros", (), {"places": lambda self, ids: np.zeros(len(ids), int)})()
    for count in (30, 3_000):
        rows = pd.DataFrame({ID: [f"ISIC_{number:07d}" for number in range(count)]})
        correct_by_image(rows, np.zeros(count), lambda: (None, store), MANIFEST, ImageOptions(4), Run())
    assert sizes == [4, 3_000 // BLOCKS]


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.2, 2), (0.5, 5), (1.0, 10)])
def test_a_share_on_purpose_is_a_fact_and_no_fall_back(corrected, share, count):
    network, image_scored, run = corrected([(range(count), np.arange(count) + 1.0)], share=share)
    assert network.tolist() == [*range(1, count + 1), *TABULAR[count:]]
    assert image_scored.sum() == count
    assert run.fallbacks == {}
    assert run.facts.get("image_share") == ({"share": share, "lesions": count} if share < 1 else None)


def test_what_is_not_reached_of_a_share_is_counted_within_it(corrected):
    _, image_scored, run = corrected([([0, 2], [1.0, 2.0]), ([3], [1.0])], Run(time_budget=0.0), share=0.6)
    assert image_scored.sum() == 2
    assert run.fallbacks == {"images_not_reached": 3, "lesions_without_image_score": 4}


def test_no_row_is_no_error(monkeypatch):
    monkeypatch.setattr("inference.scoring.image_batches", lambda *_: None)
    monkeypatch.setattr("inference.scoring.network_logits", lambda *_: [])
    rows, run = ROWS[:0], Run()
    network, image_scored = correct_by_image(rows, TABULAR[:0], lambda: (None, Store()), MANIFEST, ImageOptions(4, 0.5), run)
    assert len(network) == len(image_scored) == 0


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
