import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.studies.compare import split_folds
from evaluation.studies.hospitals import (
    BLANKED,
    FEW,
    TREATMENTS,
    Part,
    as_markdown,
    conclusion,
    fold_parts,
    hospital_parts,
    main,
    score_parts,
    tabulate,
    treated,
)
from inference.features import build_features
from inference.schema import HOSPITAL, MISSING, PATIENT, TARGET
from inference.tabular import tabular_logits
from train.config import TabularConfig
from train.cross_validation import categories_of, cross_validate, sample_negatives, train_model
from utils import InputError, partial_auc

SMALL = {"iterations": 8, "depth": 3, "learning_rate": 0.3}
CONFIG = TabularConfig(SMALL, seeds=1)


@pytest.fixture
def three(metadata):
    """``synthetic_data`` with three hospitals, A, B and C, that matter: lesions of B are malignant twice as often."""
    metadata[HOSPITAL] = np.array(["A", "B", "C"], dtype=object)[pd.factorize(metadata[PATIENT])[0] % 3]
    rng = np.random.default_rng(0)
    metadata[TARGET] = (rng.random(len(metadata)) < np.where(metadata[HOSPITAL] == "B", 0.6, 0.3)).astype(int)
    return metadata


def scored(metadata, parts, labels=None, config=CONFIG):
    labels = metadata[TARGET].to_numpy() if labels is None else labels
    return score_parts(build_features(metadata), labels, parts, config)


def test_a_hospital_is_scored_without_any_row_of_its_patients(three):
    """A patient of A and B is trained on for neither; the rows are scored once, each with its own hospital."""
    shared = three[PATIENT] == three.loc[three[HOSPITAL] == "A", PATIENT].iloc[0]
    three.loc[np.flatnonzero(shared)[:2], HOSPITAL] = "B"
    three.loc[three.index[-1], HOSPITAL] = np.nan
    parts = hospital_parts(three)
    assert [part.name for part in parts] == ["A", "B", "C"]
    for part in parts:
        assert (three[HOSPITAL].iloc[part.score] == part.name).all()
        assert not set(three[PATIENT].iloc[part.score]) & set(three[PATIENT].iloc[part.train])
    assert not shared.iloc[np.concatenate([parts[0].train, parts[1].train])].any()
    assert shared.iloc[parts[2].train].any()
    assert sorted(np.concatenate([part.score for part in parts])) == list(range(len(three) - 1))


def test_labels_of_a_hospital_do_not_reach_its_own_scores(three):
    parts, labels = hospital_parts(three), three[TARGET].to_numpy()
    before = scored(three, parts)
    after = scored(three, parts, np.where(three[HOSPITAL] == "A", 1 - labels, labels))
    inside = (three[HOSPITAL] == "A").to_numpy()
    for treatment in TREATMENTS:
        np.testing.assert_array_equal(after[treatment][inside], before[treatment][inside])
        assert (after[treatment][~inside] != before[treatment][~inside]).any()


def test_within_hospitals_with_the_column_is_the_ordinary_cross_validation(three):
    config = TabularConfig(SMALL, seeds=2, negatives_per_positive=1, seed=5)
    scores = scored(three, fold_parts(three, 2, 7), config=config)
    fold = split_folds(three, 2, 7)
    expected = cross_validate(build_features(three), three[TARGET].to_numpy(), fold, config, progress=False).logits
    np.testing.assert_allclose(scores["with"], expected, rtol=1e-12)


def test_each_treatment_trains_and_scores_on_its_own_columns(three):
    """Trained here once more by hand, for one hospital."""
    part = hospital_parts(three)[1]
    features, labels = build_features(three), three[TARGET].to_numpy()
    config = TabularConfig(SMALL, seeds=1, negatives_per_positive=1, seed=3)
    scores = scored(three, [part], config=config)
    for treatment in TREATMENTS:
        rng = np.random.default_rng([3, 0, 0])
        kept, share = sample_negatives(labels[part.train], 1, rng)
        train, test = features.iloc[part.train[kept]].copy(), features.iloc[part.score].copy()
        if treatment == "without":
            train, test = train.drop(columns=HOSPITAL), test.drop(columns=HOSPITAL)
        if treatment == "blanked":
            blank = rng.permutation(len(kept)) < round(BLANKED * len(kept))
            train[HOSPITAL] = train[HOSPITAL].mask(blank, MISSING)
            test[HOSPITAL] = MISSING
        model = train_model(train, labels[part.train[kept]], SMALL, 3)
        expected = tabular_logits([(model, np.log(share))], test, categories_of(test))
        np.testing.assert_allclose(scores[treatment][part.score], expected, rtol=1e-12)
        assert np.isnan(np.delete(scores[treatment], part.score)).all()


def test_half_of_the_training_rows_and_new_hospitals_are_blanked(three, monkeypatch):
    given, features = [], build_features(three)
    part = hospital_parts(three)[1]  # B

    def train(rows, *_):
        given.append(rows)
        return train_model(rows, *_)

    monkeypatch.setattr("evaluation.studies.hospitals.train_model", train)
    score_parts(features, three[TARGET].to_numpy(), [part], replace(CONFIG, seeds=2, negatives_per_positive=np.inf))
    with_column, _, without, _, blanked, again = given
    lost = blanked[HOSPITAL] == MISSING
    assert lost.sum() == round(len(part.train) / 2)
    assert not lost.equals(again[HOSPITAL] == MISSING)
    others = [name for name in features if name != HOSPITAL]
    pd.testing.assert_series_equal(blanked.loc[~lost, HOSPITAL], features[HOSPITAL].iloc[part.train][~lost])
    pd.testing.assert_frame_equal(blanked[others], features[others].iloc[part.train])
    assert list(without) == others
    pd.testing.assert_frame_equal(with_column, features.iloc[part.train])


def test_a_treatment_leaves_the_table_given_as_it_was(three):
    features = build_features(three)
    before, blank = features.copy(), (features[HOSPITAL] == "B").to_numpy()
    shown = treated(features, "blanked", blank)[HOSPITAL]
    assert shown.tolist() == [MISSING if name == "B" else name for name in three[HOSPITAL]]
    assert HOSPITAL not in treated(features, "without", blank)
    pd.testing.assert_frame_equal(treated(features, "with", blank), before)
    pd.testing.assert_frame_equal(features, before)


@pytest.fixture(scope="module")
def made():
    """Four hospitals of ten patients with four lesions each: X has no malignant lesion, Y a few, Z and W more.

    The rows, two sets of scores, and the table of them. Read only.
    """
    rng = np.random.default_rng(0)
    hospital = np.repeat(["W", "X", "Y", "Z"], 40)
    malignant = np.concatenate([np.arange(40) % 4 == 0, np.zeros(40), np.arange(40) < 3, np.arange(40) % 5 == 0])
    patient = np.char.add(hospital, (np.arange(160) // 4).astype(str))
    metadata = pd.DataFrame({HOSPITAL: hospital, PATIENT: patient, TARGET: malignant.astype(int)})
    left_out = {name: malignant * 1.2 + rng.normal(size=160) for name in TREATMENTS}
    within = {name: malignant * 2.0 + rng.normal(size=160) for name in TREATMENTS}
    return metadata, left_out, within, tabulate(metadata, hospital_parts(metadata), left_out, within)


def test_the_table_holds_pauc_means_and_differences(made):
    metadata, left_out, within, table = made
    table = table.set_index("hospital")
    labels = metadata[TARGET].to_numpy()
    assert list(table.index) == ["W", "X", "Y", "Z", "mean over hospitals", "pooled", "within hospitals"]
    assert table["lesions"].tolist() == [40] * 4 + [160] * 3
    assert table["malignant"].tolist() == [10, 0, 3, 8, 21, 21, 21]
    for name in TREATMENTS:
        rows = {each: (metadata[HOSPITAL] == each).to_numpy() for each in "WYZ"}
        alone = {each: partial_auc(labels[inside], left_out[name][inside]) for each, inside in rows.items()}
        for each, value in alone.items():
            assert table.loc[each, f"{name}_pauc"] == pytest.approx(value)
        assert table.loc["mean over hospitals", f"{name}_pauc"] == pytest.approx((alone["W"] + alone["Z"]) / 2)
        assert table.loc["pooled", f"{name}_pauc"] == pytest.approx(partial_auc(labels, left_out[name]))
        assert table.loc["within hospitals", f"{name}_pauc"] == pytest.approx(partial_auc(labels, within[name]))
        known = table.drop(index="X")
        assert (known[f"{name}_low"] <= known[f"{name}_pauc"]).all() and (
            known[f"{name}_pauc"] <= known[f"{name}_high"]
        ).all()
    difference = known["blanked_pauc"] - known["with_pauc"]
    np.testing.assert_allclose(known["blanked_minus_with"], difference, atol=1e-12)
    assert (known["blanked_minus_with_low"] < known["blanked_minus_with_high"]).all()


def test_hospitals_with_few_malignant_lesions_or_none_are_marked(made):
    table = made[-1]
    notes = table.set_index("hospital")["note"]
    assert notes[["W", "X", "Y", "Z"]].tolist() == ["", "one class only: no pAUC", f"fewer than {FEW} malignant", ""]
    assert notes["mean over hospitals"] == "of 2 hospitals"
    lines = as_markdown(table).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3] == "| X | 40 | 0 |  |  |  |  |  | one class only: no pAUC |"
    row = table.iloc[0]
    assert f"{row['with_pauc']:.4f} [{row['with_low']:.4f}, {row['with_high']:.4f}]" in lines[2]
    assert conclusion(table).count("mean over hospitals") == 2 and "\n" not in conclusion(table)


def test_no_hospital_with_enough_malignant_lesions_leaves_the_mean_empty(made):
    metadata, left_out, within, _ = made
    rows = metadata[HOSPITAL].isin(["X", "Y"]).to_numpy()
    part = [{name: scores[rows] for name, scores in each.items()} for each in (left_out, within)]
    metadata = metadata[rows].reset_index(drop=True)
    table = tabulate(metadata, hospital_parts(metadata), *part).set_index("hospital")
    assert math.isnan(table.loc["mean over hospitals", "with_pauc"])
    assert "mean over hospitals unknown" in conclusion(table.reset_index())


@pytest.mark.integration
def test_the_command_writes_the_same_table_twice(synthetic_data, tmp_path, capsys):
    parameters = tmp_path / "few.json"
    parameters.write_text(json.dumps(SMALL))
    options = ["--data", str(synthetic_data), "--seeds", "1", "--folds", "2", "--params", str(parameters)]
    for name in ("one", "two"):
        assert main([*options, "--out", str(tmp_path / name)]) == 0
    for name in ("hospitals.csv", "hospitals.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    table = pd.read_csv(tmp_path / "one" / "hospitals.csv").set_index("hospital")
    assert {"mean over hospitals", "pooled", "within hospitals"} < set(table.index)
    assert table.loc["pooled", "lesions"] == 60
    assert f"{table.loc['pooled', 'with_pauc']:.4f} [" in (tmp_path / "one" / "hospitals.md").read_text()
    assert "18 models; pAUC without - with: mean over hospitals" in capsys.readouterr().out.splitlines()[-1]


def test_bad_input_is_refused_in_one_sentence(synthetic_data, three, tmp_path):
    with pytest.raises(InputError, match="--folds: '1'"):
        main(["--data", str(synthetic_data), "--out", str(tmp_path), "--folds", "1"])
    with pytest.raises(InputError, match="names 1 hospitals"):
        hospital_parts(three.assign(**{HOSPITAL: "A"}))
    with pytest.raises(InputError, match="names 0 hospitals"):
        hospital_parts(three.drop(columns=HOSPITAL))
    benign = np.flatnonzero(three[TARGET] == 0)
    with pytest.raises(InputError, match="without 'A' all rows are of one class"):
        scored(three, [Part("A", benign, np.arange(3))])
    assert list(tmp_path.iterdir()) == []
