import json

import numpy as np
import pandas as pd
import pytest

from evaluation.studies.explain import (
    Explanation,
    direction,
    draw_bars,
    draw_strips,
    explain,
    load_fold_models,
    main,
    sample_rows,
    swarm,
    tabulate,
)
from inference.artifacts import load_manifest
from inference.features import build_features
from inference.schema import TARGET
from train.folds import HOLDOUT, make_folds, read_folds
from train.tabular import train_tabular
from utils import InputError


@pytest.fixture(scope="module")
def artifacts(synthetic_data, tmp_path_factory):
    """Two folds, two seeds, few trees, a holdout. Shared: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("explain")
    parameters, where = folder / "few.json", ["--data", str(synthetic_data), "--artifacts", str(folder / "artifacts")]
    parameters.write_text(json.dumps({"iterations": 15, "depth": 3, "learning_rate": 0.3}))
    make_folds([*where, "--folds", "2", "--holdout", "0.25"])
    train_tabular([*where, "--seeds", "2", "--params", str(parameters)])
    return folder / "artifacts"


@pytest.fixture
def explained(artifacts, metadata):
    """Features, folds, models, categories, and the explanation of all rows."""
    manifest = load_manifest(artifacts)
    models, tabular = load_fold_models(artifacts, manifest), manifest["tabular"]
    features, fold = build_features(metadata)[tabular["features"]], read_folds(artifacts, metadata)
    return features, fold, models, tabular["categories"], explain(features, fold, models, tabular["categories"])


def test_shap_values_and_the_mean_score_add_up_to_the_score_of_models_trained_without_the_row(explained):
    features, fold, models, _, explanation = explained
    raw = {
        number: np.mean([m.predict(features, prediction_type="RawFormulaVal") for f, m in models if f == number], axis=0)
        for number in (0, 1)
    }
    expected = np.select([fold == 0, fold == 1], [raw[0], raw[1]], (raw[0] + raw[1]) / 2)
    assert set(fold) == {HOLDOUT, 0, 1}
    np.testing.assert_allclose(explanation.shap.sum(axis=1) + explanation.expected, expected, atol=1e-9)
    assert np.abs(raw[0] - raw[1]).min() > 1e-6  # or the wrong model would do as well


def test_a_model_without_signal_has_its_bias_and_nothing_to_explain(explained):
    features, fold, models, categories, _ = explained
    constant = [(number, model.copy()) for number, model in models]
    for _, model in constant:
        model.set_scale_and_bias(0.0, -3.5)
    found = explain(features, fold, constant, categories)
    assert not found.shap.any() and (found.expected == -3.5).all()


def test_importance_is_the_mean_over_the_models(explained):
    features, _, models, _, explanation = explained
    assert explanation.importance.sum() == pytest.approx(100)
    expected = np.mean([model.get_feature_importance() for _, model in models], axis=0)
    np.testing.assert_allclose(explanation.importance, expected)
    assert models[0][1].feature_names_ == list(features)


def test_rows_do_not_change_each_others_explanation(explained):
    features, fold, models, categories, explanation = explained
    some = np.array([3, 17, 40, 59])
    part = explain(features.iloc[some], fold[some], models, categories)
    np.testing.assert_allclose(part.shap, explanation.shap[some], atol=1e-12)


def test_a_sample_holds_all_malignant_rows_and_weights_for_the_others():
    labels = (np.arange(1000) % 50 == 0).astype(int)
    rows, weights = sample_rows(labels, 118, 0)
    assert len(rows) == 118 and (np.diff(rows) > 0).all()
    assert labels[rows].sum() == 20
    assert weights[labels[rows] == 0].sum() == pytest.approx(980)
    assert (weights[labels[rows] == 1] == 1).all()
    assert np.array_equal(rows, sample_rows(labels, 118, 0)[0])
    assert not np.array_equal(rows, sample_rows(labels, 118, 1)[0])
    rows, weights = sample_rows(labels, 5000, 0)
    assert np.array_equal(rows, np.arange(1000)) and (weights == 1).all()
    with pytest.raises(InputError, match="--rows 20 cannot hold the 20 malignant lesions"):
        sample_rows(labels, 20, 0)


def test_the_direction_is_the_rank_correlation():
    values, ones = np.array([1.0, 2.0, 3.0, np.nan, 1000.0]), np.ones(5)
    assert direction(values, np.array([0.1, 0.2, 0.5, -9.0, 0.6]), ones) == pytest.approx(1)
    assert direction(values, np.array([0.6, 0.5, 0.2, -9.0, 0.1]), ones) == pytest.approx(-1)
    rng = np.random.default_rng(0)
    values, shap = rng.normal(size=(2, 200))
    expected = pd.Series(values).corr(pd.Series(values + shap), method="spearman")
    assert direction(values, values + shap, np.ones(200)) == pytest.approx(expected)
    assert np.isnan(direction(np.zeros(5), np.arange(5.0), ones))
    assert np.isnan(direction(np.full(5, np.nan), np.arange(5.0), ones))


def test_the_table_is_weighted_and_sorted():
    features = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [3.0, 2.0, 1.0], "c": ["x", "y", "x"]})
    shap = np.array([[0.1, -1.0, 0.0], [0.2, 0.0, 0.3], [0.3, 1.0, 0.0]])
    explanation = Explanation(features, ["c"], shap, np.zeros(3), np.array([20.0, 70.0, 10.0]))
    table = tabulate(explanation, np.array([1.0, 1.0, 2.0]))
    assert table["feature"].tolist() == ["b", "a", "c"]
    np.testing.assert_allclose(table["mean_abs_shap"], [3 / 4, 0.9 / 4, 0.3 / 4])
    np.testing.assert_allclose(table["importance"], [70, 20, 10])
    np.testing.assert_allclose(table["direction"], [-1, 1, np.nan])


def test_dots_spread_where_they_are_many():
    values = np.concatenate([np.zeros(500), [1.0]])
    offsets = swarm(values, np.random.default_rng(0))
    assert 0.3 < np.abs(offsets[:500]).max() <= 0.38
    assert np.abs(offsets[500]) < 0.02
    assert np.isfinite(swarm(np.zeros(3), np.random.default_rng(0))).all()


def test_figures_are_drawn_of_unknown_values_categories_and_few_features(tmp_path):
    features = pd.DataFrame({"known": [1.0, 2.0, 3.0, 4.0], "gone": [np.nan] * 4, "kind": list("xyxy")})
    shap = np.random.default_rng(0).normal(size=(4, 3))
    explanation = Explanation(features, ["kind"], shap, np.zeros(4), np.ones(3))
    table = tabulate(explanation, np.ones(4))
    draw_bars(tmp_path / "bars.png", table)
    draw_strips(tmp_path / "strips.png", table, explanation, np.array([0, 1, 0, 1]), 0)
    for name in ("bars.png", "strips.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
def test_the_command_writes_the_same_table_twice(synthetic_data, artifacts, tmp_path, capsys):
    where = ["--data", str(synthetic_data), "--artifacts", str(artifacts), "--rows", "40"]
    for name in ("one", "two"):
        assert main([*where, "--out", str(tmp_path / name)]) == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"features.csv", "features.png", "shap.png"}
    assert (tmp_path / "one" / "features.csv").read_bytes() == (tmp_path / "two" / "features.csv").read_bytes()
    table = pd.read_csv(tmp_path / "one" / "features.csv")
    assert set(table["feature"]) == set(load_manifest(artifacts)["tabular"]["features"])
    assert table["importance"].sum() == pytest.approx(100)
    assert table["mean_abs_shap"].is_monotonic_decreasing
    assert "40 lesions explained by 4 models" in capsys.readouterr().out.splitlines()[-1]


def test_bad_input_is_refused_in_one_sentence(synthetic_data, artifacts, tmp_path, metadata, explained):
    manifest = load_manifest(artifacts)
    with pytest.raises(InputError, match=r"has no CatBoost models; run: python -m train\.tabular"):
        load_fold_models(artifacts, manifest | {"tabular": {"models": []}})
    with pytest.raises(InputError, match="holds no fold"):
        load_fold_models(artifacts, manifest | {"tabular": {"models": [{"file": "other.cbm"}]}})
    features, fold, models, categories, _ = explained
    with pytest.raises(InputError, match="no model was trained without fold 1"):
        explain(features, fold, [each for each in models if each[0] == 0], categories)
    rows = str(int(metadata[TARGET].sum()))
    with pytest.raises(InputError, match=f"--rows {rows} cannot hold"):
        main(["--data", str(synthetic_data), "--artifacts", str(artifacts), "--out", str(tmp_path / "out"), "--rows", rows])
    assert not (tmp_path / "out").exists()


def test_models_of_other_features_are_refused(synthetic_data, artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr("train.lesions.build_features", lambda metadata: build_features(metadata).drop(columns="tbp_lv_H"))
    with pytest.raises(InputError, match="use 'tbp_lv_H', which this code does not make"):
        main(["--data", str(synthetic_data), "--artifacts", str(artifacts), "--out", str(tmp_path / "out")])
