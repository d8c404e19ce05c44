"""Combining scores, and the kernel's answer to failing networks; the networks are replaced by arrays."""

import numpy as np
import pandas as pd
import pytest
from catboost import CatBoostClassifier, Pool

from inference.features import build_features, logit_features
from inference.files import sha256_of
from inference.run_log import Run
from inference.schema import ID, PATIENT
from inference.scoring import (
    BLOCKS,
    ImageOptions,
    Networks,
    combine,
    combine_stages,
    in_blocks,
    most_suspicious,
    score_images,
)
from utils import InputError

ROWS = pd.DataFrame({ID: [f"ISIC_{number:07d}" for number in range(10)], PATIENT: ["IP_1"] * 6 + ["IP_2"] * 4})
TABULAR = np.linspace(-1, -8, 10)  # the first row is scored first
ONE = {"network": {"networks": {"fusion": {}}, "combination": {"kind": "network"}}}
TWO = {"network": {"networks": {"best": {}, "weak": {}}, "combination": {"kind": "network"}}}


class Store:
    """Stands for an image file; ``file`` is the order of the rows in it."""

    def __init__(self, file=range(10)):
        self.file = list(file)

    def places(self, isic_ids):
        return np.array([self.file.index(ROWS[ID].tolist().index(isic_id)) for isic_id in isic_ids])


class Positions:
    """Stands for a tensor."""

    def __init__(self, positions):
        self.positions = positions

    def numpy(self):
        return np.array(self.positions)


class Given:
    """Stands for an ensemble: the crops are the logits, to which it adds ``more``."""

    def __init__(self, views=1, more=0.0, error=None):
        self.views, self.more, self.error = views, more, error

    def logits(self, crops, tabular):
        if self.error:
            raise self.error
        return np.asarray(crops) + self.more

    def halve_views(self):
        before, self.views = self.views, max(1, self.views // 2)
        return self.views < before


@pytest.fixture
def scored(monkeypatch):
    """Calls ``score_images`` with images that are these batches: (positions, logits), or an exception to raise."""

    def call(batches, run=None, manifest=ONE, ensembles=None, share=1.0):
        def replayed(*_):
            for batch in batches:
                if isinstance(batch, BaseException):
                    raise batch
                yield Positions(batch[0]), (np.array(batch[1], dtype="float64"),)

        monkeypatch.setattr("inference.scoring.image_batches", replayed)
        run, ensembles = run or Run(), ensembles or {"fusion": Given()}
        networks = Networks(ensembles, dict.fromkeys(ensembles, 32), run.fall_back)
        options = ImageOptions(4, share)
        found = score_images(ROWS, TABULAR, lambda: (networks, Store()), manifest, options, run)
        return found, run

    return call


def test_lesions_with_a_crop_are_scored_and_the_others_are_not(scored):
    found, run = scored([([0, 1, 2], [1.0, 2.0, 3.0]), ([4, 5, 6, 7, 8, 9], [5.0] * 6)])
    np.testing.assert_array_equal(found["fusion"], [1, 2, 3, np.nan, 5, 5, 5, 5, 5, 5])
    assert run.fallbacks == {"lesions_without_image_score": 1}


def test_output_that_is_not_finite_is_not_taken(scored):
    found, run = scored([(range(10), [np.nan, np.inf, -np.inf, *range(7)])])
    np.testing.assert_array_equal(found["fusion"], [np.nan] * 3 + [*range(7)])
    assert run.fallbacks == {"network_output_not_finite": 3, "lesions_without_image_score": 3}


@pytest.mark.parametrize("error", [RuntimeError("cuDNN is gone\nand more"), MemoryError("no memory"), InputError("broken")])
def test_networks_that_stop_leave_the_scores_they_have(scored, error, capsys):
    found, run = scored([([0, 1], [1.0, 2.0]), error])
    np.testing.assert_array_equal(found["fusion"], [1, 2] + [np.nan] * 8)
    assert run.fallbacks == {"network_stopped": 1, "lesions_without_image_score": 8}
    assert f"{type(error).__name__}: {str(error).splitlines()[0]}; the rest keeps" in capsys.readouterr().out


@pytest.mark.parametrize(("budget", "reason"), [(3600, "SIGTERM was received"), (0.0, "time budget of 0 h")])
def test_what_is_not_reached_in_time_is_not_scored(scored, budget, reason, capsys):
    run = Run(time_budget=budget)

    def batches():
        run.interrupted = "SIGTERM was received" if "SIGTERM" in reason else ""
        yield [0, 1], [1.0, 2.0]
        raise AssertionError("a batch too many")

    found, run = scored(batches(), run)
    np.testing.assert_array_equal(found["fusion"], [1, 2] + [np.nan] * 8)
    assert run.fallbacks == {"images_not_reached": 8, "lesions_without_image_score": 8}
    assert reason in capsys.readouterr().out


def late(monkeypatch, *answers):
    """Forecasts that are late, or not, in this order."""
    lateness = iter(answers)
    monkeypatch.setattr(
        "inference.run_log.Forecast.late", property(lambda _: next(lateness), lambda *_: None), raising=False
    )


BATCHES = [([2 * step, 2 * step + 1], [1.0, 2.0]) for step in range(5)]


def test_with_little_time_further_crops_have_fewer_views(scored, monkeypatch):
    late(monkeypatch, True, True, False, False, True)
    ensembles = {"best": Given(views=8), "weak": Given(views=1)}
    found, run = scored(BATCHES, Run(time_budget=3600), TWO, ensembles)
    assert found.notna().all(axis=None)
    assert ensembles["best"].views == 2
    assert run.fallbacks == {"views_reduced": 2}


def test_with_still_less_time_the_weakest_network_is_left_out(scored, monkeypatch):
    late(monkeypatch, True, True, True, False, True)
    ensembles = {"best": Given(views=2), "weak": Given(more=10.0)}
    found, run = scored(BATCHES, Run(time_budget=3600), TWO, ensembles)
    assert found["best"].tolist() == [1.0, 2.0] * 5
    np.testing.assert_array_equal(found["weak"], [11, 12] * 2 + [np.nan] * 6)
    assert run.fallbacks == {"views_reduced": 1, "networks_left_out": 1}


def test_a_network_that_fails_leaves_the_others_at_work(scored, capsys):
    ensembles = {"best": Given(error=RuntimeError("cuDNN is gone\nand more")), "weak": Given()}
    found, run = scored(BATCHES, Run(), TWO, ensembles)
    assert found["best"].isna().all()
    assert found["weak"].tolist() == [1.0, 2.0] * 5
    assert run.fallbacks == {"networks_stopped": 1}
    assert "best: RuntimeError: cuDNN is gone;" in capsys.readouterr().out


def test_a_network_whose_files_are_broken_has_no_logits(scored):
    found, run = scored(BATCHES, Run(), TWO, {"weak": Given()})
    assert list(found) == ["best", "weak"]
    assert found["best"].isna().all()
    assert found["weak"].notna().all()
    assert run.fallbacks == {}  # load_networks counts the files


def test_each_network_has_crops_of_its_size():
    ensembles = {"a": Given(), "b": Given(more=1.0), "c": Given(more=2.0)}
    networks = Networks(ensembles, {"a": 64, "b": 32, "c": 64}, Run().fall_back)
    assert networks.sizes == (64, 32)
    assert networks.logits((np.array([10.0]), np.array([20.0])), np.zeros((1, 1))).tolist() == [[10, 21, 12]]


def test_networks_that_failed_are_at_work_again_for_other_lesions():
    broken, whole, first, second = Given(error=ValueError("once")), Given(), Run(), Run()
    networks = Networks({"best": broken, "weak": whole}, {"best": 32, "weak": 32}, first.fall_back)
    crops = (np.array([10.0]),)
    assert np.isnan(networks.logits(crops, np.zeros((1, 1)))[0, 0])
    broken.error = None
    renewed = networks.renewed(second.fall_back)
    assert renewed.logits(crops, np.zeros((1, 1))).tolist() == [[10, 10]]
    assert (networks.at_work, renewed.at_work) == (1, 2)
    broken.note("accelerator_failed", 1, "the CPU computes")
    assert (first.fallbacks, second.fallbacks) == ({"networks_stopped": 1}, {"accelerator_failed": 1})


def test_a_signal_before_the_first_image_starts_no_network(scored, capsys):
    run = Run()
    run.interrupted = "SIGTERM was received"
    found, run = scored([AssertionError("a batch too many")], run)
    assert found["fusion"].isna().all()
    assert run.fallbacks["images_not_reached"] == 10
    assert "SIGTERM was received" in capsys.readouterr().out


def test_a_run_that_ends_just_in_time_has_missed_nothing(scored):
    found, run = scored([(range(10), range(10))], Run(time_budget=0.0))
    assert found["fusion"].tolist() == [*range(10)]
    assert run.fallbacks == {}


def test_without_a_network_nothing_is_scored(scored):
    found, run = scored([], manifest={})
    assert found.shape == (10, 0)
    assert run.fallbacks == {"no_network": 10}


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

    def decoded(store, isic_ids, sizes, batch_size):  # a lesion's crop is its number
        read.extend(isic_ids)
        for start in range(0, len(isic_ids), batch_size):
            places = range(len(isic_ids))[start : start + batch_size]
            yield Positions(places), (np.array([float(isic_ids[place][5:]) for place in places]),)

    monkeypatch.setattr("inference.scoring.image_batches", decoded)

    def found(run):
        networks = Networks({"fusion": Given()}, {"fusion": 32}, run.fall_back)
        return score_images(ROWS, tabular, lambda: (networks, Store(file)), ONE, ImageOptions(4), run)["fusion"]

    assert found(Run()).tolist() == [*range(10)]
    assert read == ROWS[ID].iloc[[0, 2, 6, 4, 8, 7, 3, 5, 9, 1]].tolist()
    assert np.flatnonzero(found(Run(time_budget=0.0)).notna()).tolist() == [0, 2, 4, 6]


def test_many_lesions_are_scored_in_blocks_larger_than_a_batch(monkeypatch):
    sizes = []
    monkeypatch.setattr("inference.scoring.in_blocks", lambda ranked, places, size: sizes.append(size) or ranked)
    monkeypatch.setattr("inference.scoring.image_batches", lambda *_: [])
    store = type("Zeros", (), {"places": lambda self, ids: np.zeros(len(ids), int)})()
    for count in (30, 3_000):
        rows = pd.DataFrame({ID: [f"ISIC_{number:07d}" for number in range(count)]})
        networks = Networks({"fusion": Given()}, {"fusion": 32}, Run().fall_back)
        score_images(rows, np.zeros(count), lambda networks=networks: (networks, store), ONE, ImageOptions(4), Run())
    assert sizes == [4, 3_000 // BLOCKS]


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.2, 2), (0.5, 5), (1.0, 10)])
def test_a_share_on_purpose_is_a_fact_and_no_fall_back(scored, share, count):
    found, run = scored([(range(count), np.arange(count) + 1.0)], share=share)
    np.testing.assert_array_equal(found["fusion"], [*range(1, count + 1)] + [np.nan] * (10 - count))
    assert run.fallbacks == {}
    assert run.facts.get("image_share") == ({"share": share, "lesions": count} if share < 1 else None)


def test_what_is_not_reached_of_a_share_is_counted_within_it(scored):
    found, run = scored([([0, 2], [1.0, 2.0]), ([3], [1.0])], Run(time_budget=0.0), share=0.6)
    assert found["fusion"].notna().sum() == 2
    assert run.fallbacks == {"images_not_reached": 3, "lesions_without_image_score": 4}


def test_no_row_is_no_error():
    networks = Networks({"fusion": Given()}, {"fusion": 32}, Run().fall_back)
    found = score_images(ROWS[:0], TABULAR[:0], lambda: (networks, Store()), ONE, ImageOptions(4, 0.5), Run())
    assert found.shape == (0, 1)


# Combining

FOUR = {"tabular": [-6.0, -2.0, -4.0, -5.0], "network": [-7.0, -1.0, -4.5, np.nan], "stacking": [-8.0, 0.0, -5.0, np.nan]}
SCORED = np.array([True, True, True, False])
WITHOUT = {"without_image": {"intercept": -1.0, "tabular": 0.8}}
BLEND = {"kind": "blend", "with_image": {"intercept": 0.5, "tabular": 0.25, "network": 0.75}} | WITHOUT
MEAN = {"kind": "mean", "with_image": {"intercept": 0.0, "tabular": 0.1, "network": 0.4, "stacking": 0.5}} | WITHOUT


def test_without_weights_the_networks_logits_stay_as_they_are():
    assert combine({"kind": "network"}, FOUR, SCORED).tolist() == [-7.0, -1.0, -4.5, -5.0]


def test_logits_are_weighed_where_there_is_an_image():
    expected = [0.5 - 6 / 4 - 7 * 0.75, 0.5 - 2 / 4 - 0.75, 0.5 - 1 - 4.5 * 0.75, -1 - 5 * 0.8]
    np.testing.assert_allclose(combine(BLEND, FOUR, SCORED), expected)
    expected = [-0.6 - 2.8 - 4, -0.2 - 0.4, -0.4 - 1.8 - 2.5, -1 - 5 * 0.8]
    np.testing.assert_allclose(combine(MEAN, FOUR, SCORED), expected)


@pytest.mark.parametrize("how", [MEAN, BLEND, {"kind": "network"}])
def test_one_lesion_is_enough(how):
    one = {name: logits[:1] for name, logits in FOUR.items()}
    assert np.isfinite(combine(how, one, SCORED[:1])).all()


def combined(logits, manifest, run=None, artifacts=None, rows=ROWS):
    return combine_stages(rows, TABULAR, pd.DataFrame(logits, dtype="float64"), artifacts, manifest, run or Run())


def test_scores_are_combined_as_the_manifest_says():
    run, image_scored = Run(), np.arange(10) % 2 == 0
    blend = {"kind": "blend", "with_image": {"intercept": 0.0, "tabular": 0.5, "network": 0.5}}
    found = combined({"fusion": np.where(image_scored, TABULAR + 2, np.nan)}, {"network": {"combination": blend}}, run)
    np.testing.assert_allclose(found["final"], TABULAR + image_scored)
    np.testing.assert_allclose(found["network"], TABULAR + 2 * image_scored)
    assert found["image_scored"].tolist() == [1, 0] * 5
    assert run.facts["combination"] == "blend"


def test_the_network_logit_is_the_mean_over_the_networks_that_scored_the_lesion():
    best, weak = TABULAR + 1, np.where(np.arange(10) < 5, TABULAR + 3, np.nan)
    found = combined({"best": best, "weak": weak}, TWO)
    np.testing.assert_allclose(found["final"], TABULAR + np.where(np.arange(10) < 5, 2, 1))


def test_without_any_image_there_is_nothing_to_combine():
    found = combined({"fusion": np.full(10, np.nan)}, {})
    assert found["final"].tolist() == TABULAR.tolist()
    assert not found["image_scored"].any()


@pytest.mark.parametrize(
    "network", [{}, {"combination": {}}, {"combination": {"kind": "blend", "with_image": {}}}, {"combination": 3}]
)
def test_a_combination_that_fails_leaves_the_network_logits(network, capsys):
    run = Run()
    found = combined({"fusion": TABULAR + 1}, {"network": network}, run)
    assert found["final"].tolist() == (TABULAR + 1).tolist()
    assert run.fallbacks == {"scores_not_combined": 10}
    assert "scores_not_combined" in capsys.readouterr().out


# The last stage


@pytest.fixture
def stacking(tmp_path):
    """``stacking(columns)``: a folder with a small model of the last stage, and its manifest."""

    def make(columns=False):
        rng = np.random.default_rng(0)
        rows = pd.DataFrame({ID: [f"ISIC_{i}" for i in range(60)], PATIENT: [f"IP_{i % 3}" for i in range(60)]})
        rows = rows.assign(age_approx=rng.integers(30, 80, 60).astype(float), sex=["male", "female"] * 30)
        logits = pd.DataFrame({"best": rng.normal(size=60), "weak": rng.normal(size=60), "tabular": rng.normal(size=60)})
        features = logit_features(logits[["tabular", "best", "weak"]], rows[PATIENT])
        if columns:
            features = features.join(build_features(rows))
        categories = [name for name in ("sex",) if name in features]
        model = CatBoostClassifier(iterations=5, depth=3, verbose=False, allow_writing_files=False)
        model.fit(Pool(features, logits["best"] > 0, cat_features=categories))
        model.save_model(str(tmp_path / "stacking_fold0_seed0.cbm"))
        manifest = TWO | {"files": {"stacking_fold0_seed0.cbm": sha256_of(tmp_path / "stacking_fold0_seed0.cbm")}}
        manifest["stacking"] = {
            "models": [{"file": "stacking_fold0_seed0.cbm", "prior_correction": -0.5}],
            "networks": ["best", "weak"],
            "features": list(features),
            "categories": categories,
            "columns": columns,
            "patients": True,
            "combination": {"kind": "stacking", "with_image": {"intercept": 0.25, "stacking": 2.0}} | WITHOUT,
        }
        expected = model.predict(Pool(features, cat_features=categories), prediction_type="RawFormulaVal") - 0.5
        return tmp_path, manifest, rows, logits, expected

    return make


@pytest.mark.parametrize("columns", [False, True])
def test_the_last_stage_compares_a_lesion_with_the_patients_others(stacking, columns):
    folder, manifest, rows, logits, expected = stacking(columns)
    run, rows = Run(), rows.set_axis(range(100, 160))
    found = combine_stages(rows, logits["tabular"].to_numpy(), logits[["best", "weak"]], folder, manifest, run)
    np.testing.assert_allclose(found["stacking"], expected, atol=1e-9)
    np.testing.assert_allclose(found["final"], 0.25 + 2 * expected, atol=1e-9)
    assert run.facts["combination"] == "stacking"
    assert run.fallbacks == {}


def test_a_patient_of_whom_too_little_is_scored_keeps_the_networks_score(stacking):
    """Patient 0 lacks three of 20 crops, patient 1 two of 20; of patient 2 the weak network has not scored one lesion."""
    folder, manifest, rows, logits, _ = stacking()
    logits.loc[[0, 3, 6, 1, 4], ["best", "weak"]] = np.nan
    logits.loc[2, "weak"] = np.nan
    run = Run()
    found = combine_stages(rows, logits["tabular"].to_numpy(), logits[["best", "weak"]], folder, manifest, run)
    stacked = found["stacking"].notna()
    assert not stacked[rows[PATIENT] == "IP_0"].any()
    assert np.flatnonzero(~stacked[rows[PATIENT] == "IP_1"]).tolist() == [0, 1]
    assert np.flatnonzero(~stacked[rows[PATIENT] == "IP_2"]).tolist() == [0]
    np.testing.assert_allclose(found["final"][stacked], 0.25 + 2 * found["stacking"][stacked])
    alone = ~stacked & (found["image_scored"] == 1)
    np.testing.assert_allclose(found["final"][alone], found["network"][alone])
    nothing = found["image_scored"] == 0
    np.testing.assert_allclose(found["final"][nothing], logits["tabular"][nothing])
    assert run.fallbacks == {"lesions_not_stacked": 17 + 1}


def test_a_last_stage_that_fails_leaves_the_networks_combination(stacking, capsys):
    folder, manifest, rows, logits, _ = stacking()
    (folder / "stacking_fold0_seed0.cbm").write_bytes(b"no model")
    run = Run()
    found = combine_stages(rows, logits["tabular"].to_numpy(), logits[["best", "weak"]], folder, manifest, run)
    np.testing.assert_allclose(found["final"], found["network"])
    assert "stacking" not in found
    assert run.fallbacks == {"stacking_stopped": 60}
    assert run.facts["combination"] == "network"
    assert "no usable stacking model" in capsys.readouterr().out
