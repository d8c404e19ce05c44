import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.studies.compare import MeanPauc, split_folds
from evaluation.studies.tune import (
    CONFIRM_SPLITS,
    SEARCH_SPLITS,
    SPACE,
    confirm,
    default_point,
    finished,
    main,
    open_study,
    read_searched,
    search,
    settings_of,
    verdict,
)
from inference.features import build_features
from inference.schema import ID, PATIENT, TARGET
from train.config import PARAMETERS, TabularConfig, read_parameters
from train.cross_validation import cross_validate
from train.folds import make_folds
from utils import Estimate, InputError, partial_auc

optuna = pytest.importorskip("optuna", reason="tuning needs the development requirements")
pytestmark = pytest.mark.integration
#: Few, small trees, or a search would take minutes.
DEFAULTS = PARAMETERS | {"iterations": 4, "depth": 2, "learning_rate": 0.3}
CONFIG = TabularConfig(DEFAULTS, seeds=1)


@pytest.fixture
def few_trees(monkeypatch):
    """Defaults and search space of models that train in milliseconds."""
    monkeypatch.setattr("train.config.PARAMETERS", DEFAULTS)
    monkeypatch.setitem(SPACE, "iterations", {"low": 2, "high": 8, "step": 2})
    monkeypatch.setitem(SPACE, "learning_rate", {"low": 0.1, "high": 0.5, "log": True})
    monkeypatch.setitem(SPACE, "depth", {"low": 1, "high": 3, "step": 1})


@pytest.fixture
def table(synthetic_data):
    return read_searched(synthetic_data, None)


def command(synthetic_data, out, trials, *more):
    return main(
        ["--data", str(synthetic_data), "--out", str(out), "--trials", str(trials), "--folds", "2", "--seeds", "1", *more]
    )


def values(study):
    return [(trial.value, trial.params) for trial in finished(study)]


def test_the_defaults_lie_in_the_space():
    point = default_point(PARAMETERS)
    assert set(point) == set(SPACE)
    assert {name: point[name] for name in PARAMETERS if name in point} == {n: v for n, v in PARAMETERS.items() if n in point}
    for name, how in SPACE.items():
        assert how["low"] <= point[name] <= how["high"]
        assert isinstance(point[name], int if "step" in how else float)
    assert not set(SEARCH_SPLITS) & set(CONFIRM_SPLITS)


def test_the_first_trial_is_the_defaults_and_scores_are_out_of_fold(few_trees, tmp_path, table):
    study = open_study(tmp_path / "s.sqlite", {})
    search(study, table, 3, 2, CONFIG)
    first, *others = finished(study)
    assert first.params == default_point(DEFAULTS)
    assert all(trial.params != first.params for trial in others)
    for trial in (first, others[-1]):
        expected = []
        for split in SEARCH_SPLITS:
            fold, config = split_folds(table.metadata, 2, split), TabularConfig(DEFAULTS | trial.params, 1)
            logits = cross_validate(table.features, table.labels, fold, config, progress=False).logits
            expected.append(partial_auc(table.labels, logits))
        assert trial.value == pytest.approx(np.mean(expected))
        assert [trial.user_attrs[f"pauc_split{split}"] for split in SEARCH_SPLITS] == pytest.approx(expected)


def test_an_interrupted_search_continues_with_the_same_trials(few_trees, tmp_path, table, monkeypatch):
    """Stopped in its third trial and again between two; the sampler's first ten trials are random, the others are not."""
    whole = open_study(tmp_path / "whole.sqlite", {})
    search(whole, table, 12, 2, CONFIG)
    calls = []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 6:  # two splits a trial
            raise KeyboardInterrupt
        return cross_validate(*arguments, **named)

    monkeypatch.setattr("evaluation.studies.tune.cross_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(open_study(tmp_path / "parts.sqlite", {}), table, 12, 2, CONFIG)
    assert len(finished(open_study(tmp_path / "parts.sqlite", {}))) == 2
    search(open_study(tmp_path / "parts.sqlite", {}), table, 11, 2, CONFIG)
    search(open_study(tmp_path / "parts.sqlite", {}), table, 12, 2, CONFIG)
    assert values(open_study(tmp_path / "parts.sqlite", {})) == values(whole)


def test_the_command_resumes_and_writes_the_same_files(few_trees, synthetic_data, tmp_path, capsys):
    out = tmp_path / "new" / "params.json"
    assert command(synthetic_data, out, 3) == 0
    files = [out, out.with_name("params-trials.csv")]
    before = [path.read_bytes() for path in files]
    printed = capsys.readouterr().out
    assert command(synthetic_data, out, 3) == 0
    assert [path.read_bytes() for path in files] == before
    assert capsys.readouterr().out == printed
    trials = pd.read_csv(files[1])
    assert len(trials) == 3 and trials["trial"].is_unique
    assert command(synthetic_data, out, 4) == 0
    pd.testing.assert_frame_equal(pd.read_csv(files[1]).head(3), trials)
    assert len(pd.read_csv(files[1])) == 4
    best = pd.read_csv(files[1]).sort_values("pauc", kind="stable").iloc[-1]
    written = json.loads(out.read_text())
    assert {name: written[name] for name in SPACE} == pytest.approx({name: best[name] for name in SPACE})
    assert read_parameters(out) == PARAMETERS | written
    assert set(written) == set(DEFAULTS) | set(SPACE)


def test_the_best_trial_is_confirmed_on_splits_that_the_search_did_not_use(few_trees, table):
    best = DEFAULTS | {"depth": 1, "iterations": 2}
    means = confirm(table, {"defaults": DEFAULTS, "best": best, "same": DEFAULTS}, 2, TabularConfig({}, 2))
    expected = []
    for split in CONFIRM_SPLITS:
        fold = split_folds(table.metadata, 2, split)
        logits = cross_validate(table.features, table.labels, fold, TabularConfig(best, 2), progress=False).logits
        expected.append(partial_auc(table.labels, logits))
    assert means["best"].values == pytest.approx(expected)
    difference = means["best"].minus(means["defaults"])
    assert difference.value == pytest.approx(np.mean(expected) - np.mean(means["defaults"].values))
    assert difference.low < difference.value < difference.high
    assert means["same"].minus(means["defaults"]) == Estimate(0, 0, 0)


def test_the_verdict_follows_the_interval():
    assert verdict(Estimate(0.002, 0.001, 0.003)) == "better than the defaults"
    assert verdict(Estimate(0.002, -0.001, 0.005)).startswith("NOT distinguishable")
    assert verdict(Estimate(-0.002, -0.003, -0.001)) == "WORSE than the defaults"


def test_the_summary_reports_whether_the_best_trial_is_better(few_trees, synthetic_data, tmp_path, monkeypatch, capsys):
    draws = np.linspace(0, 0.001, 1001)
    found = {"defaults": MeanPauc((0.15,) * 3, np.zeros(1001)), "best": MeanPauc((0.151,) * 3, 0.0005 + draws)}
    monkeypatch.setattr("evaluation.studies.tune.confirm", lambda *_: found)
    monkeypatch.setattr(
        "evaluation.studies.tune.out_of_fold", lambda table, parameters, *_: table.labels * parameters["rsm"]
    )
    monkeypatch.setattr("evaluation.studies.tune.partial_auc", lambda labels, scores: scores.max() / 10)
    command(synthetic_data, tmp_path / "p.json", 5)
    assert "is better than the defaults on new splits: +0.0010 [+0.0005, +0.0015]" in capsys.readouterr().out
    monkeypatch.setattr("evaluation.studies.tune.partial_auc", lambda labels, scores: 0.1)
    command(synthetic_data, tmp_path / "q.json", 3)
    assert "the defaults; none of 2 other trials was better" in capsys.readouterr().out


def test_trials_of_other_settings_are_not_mixed(few_trees, synthetic_data, tmp_path):
    out = tmp_path / "p.json"
    command(synthetic_data, out, 1)
    for more, named in ((["--seed", "1"], "--seed"), (["--negatives-per-positive", "1"], "--negatives-per-positive")):
        with pytest.raises(InputError, match=f"holds trials of other {named}, and scores would not compare"):
            command(synthetic_data, out, 2, *more)
        assert command(synthetic_data, out, 1, *more, "--storage", str(tmp_path / f"{named}.sqlite")) == 0


def test_settings_differ_with_rows_labels_and_features(table):
    same = settings_of(table, 5, CONFIG)
    assert same == settings_of(table, 5, CONFIG) == json.loads(json.dumps(same))
    for column in (ID, PATIENT, TARGET):
        other = table.metadata.assign(**{column: table.metadata[column].to_numpy()[::-1]})
        changed = settings_of(replace(table, metadata=other), 5, CONFIG)
        assert changed["rows"] != same["rows"]
    fewer = replace(table, features=table.features.iloc[:, 1:])
    assert settings_of(fewer, 5, CONFIG)["features"] != same["features"]
    corrected = table.features.assign(age_approx=table.features["age_approx"] + 5)
    assert settings_of(replace(table, features=corrected), 5, CONFIG)["rows"] != same["rows"]


def test_the_holdout_of_an_artifact_folder_is_left_out(synthetic_data, tmp_path, metadata):
    make_folds(["--data", str(synthetic_data), "--artifacts", str(tmp_path), "--folds", "2", "--holdout", "0.25"])
    folds = pd.read_csv(tmp_path / "folds.csv")
    table = read_searched(synthetic_data, tmp_path)
    assert table.metadata[ID].tolist() == folds.loc[folds["fold"] >= 0, ID].tolist()
    assert 0 < len(table.labels) < len(metadata)
    expected = build_features(metadata[metadata[ID].isin(table.metadata[ID])]).reset_index(drop=True)
    pd.testing.assert_frame_equal(table.features, expected)


def test_bad_input_is_refused_in_one_sentence(synthetic_data, tmp_path, monkeypatch):
    for option, value in {"--folds": "1", "--trials": "0"}.items():
        with pytest.raises(InputError, match=f"{option}: '{value}'"):
            command(synthetic_data, tmp_path / "p.json", 1, option, value)
    text = tmp_path / "text.sqlite"
    text.write_text("no database, " * 200)
    with pytest.raises(InputError, match=r"text\.sqlite cannot be used as an Optuna storage \(.*give another --storage"):
        command(synthetic_data, tmp_path / "p.json", 1, "--storage", str(text))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="needs Optuna; run: pip install -r requirements-dev"):
        command(synthetic_data, tmp_path / "p.json", 1)
    assert not (tmp_path / "p.json").exists()
