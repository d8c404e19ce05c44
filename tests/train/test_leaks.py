import numpy as np
import pandas as pd
import pytest

from inference.artifacts import load_manifest
from inference.features import SITE, build_features
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, TEST_COLUMNS, TRAIN_COLUMNS, read_metadata
from inference.tabular import select_features
from train.folds import make_folds
from train.leaks import GAPS, HAS_PATIENT, HAS_ROW, LESIONS, ColumnChoice, measure_leaks
from train.lesions import read_rows
from train.tabular import train_tabular
from utils import InputError

ROWS = 600
#: What predicts the label -> its predictor.
LEAKS = {"row": HAS_ROW, "patient": HAS_PATIENT, "count": LESIONS, "gap": GAPS}


def made(leak=""):
    """Lesions of 60 patients in two hospitals, each tenth malignant; in one respect (of ``LEAKS``) the label shows."""
    rng, row = np.random.default_rng(0), np.arange(ROWS)
    malignant = rng.permutation(row) < ROWS // 10
    table = pd.DataFrame({ID: [f"ISIC_{number:07d}" for number in row], TARGET: malignant.astype(int)})
    table[PATIENT] = [f"IP_{number:07d}" for number in rng.integers(60, size=ROWS)]
    table["age_approx"] = rng.integers(4, 16, ROWS) * 5.0
    table["age_approx"] = table["age_approx"].where(rng.random(ROWS) < 0.9)
    table["sex"] = rng.choice(["male", "female"], ROWS)
    table[SITE] = rng.choice(["head/neck", "upper extremity"], ROWS)
    table[HOSPITAL] = rng.choice(["Basel", "Vienna"], ROWS)
    if leak == "row":
        table.loc[~malignant, ["age_approx", "sex", SITE]] = None
    elif leak == "patient":
        table.loc[malignant, PATIENT] = [f"IP_{number:07d}" for number in row[malignant]]
        table.loc[~malignant, PATIENT] = np.where(row % 2, table[ID], "alone:" + table[ID])[~malignant]
    elif leak == "count":
        table[PATIENT] = [
            f"IP_{number // 3 if sick else 1000 + number:07d}" for number, sick in zip(row, malignant, strict=True)
        ]
        table.loc[malignant, PATIENT] = [f"IP_{number // 3:07d}" for number in range(malignant.sum())]
    elif leak == "gap":
        table.loc[malignant, "age_approx"] = None
        table.loc[~malignant, "age_approx"] = 50.0
    return table


def folder_of(table, path):
    path.mkdir()
    table.to_csv(path / "train-metadata.csv", index=False)
    return path


def folds(data, artifacts, *options):
    return make_folds(["--data", str(data), "--artifacts", str(artifacts), "--folds", "2", *options])


def all_columns(table):
    return ColumnChoice().of(table)


# Measuring


def test_rows_of_one_collection_predict_nothing():
    leaks = measure_leaks(made(), all_columns(made()))
    assert not leaks.found
    assert set(leaks.aucs) == set(LEAKS.values())
    assert leaks.aucs[HAS_ROW] == leaks.aucs[HAS_PATIENT] == 0.5  # the same for all
    assert 0.4 < leaks.together < 0.6
    assert leaks.complete == ("sex", SITE, HOSPITAL)


@pytest.mark.parametrize("leak", LEAKS)
def test_each_predictor_is_found_by_itself(leak):
    leaks = measure_leaks(made(leak), all_columns(made(leak)))
    assert leaks.found
    assert leaks.aucs[LEAKS[leak]] == max(leaks.aucs.values()) > 0.98
    assert leaks.together > 0.98
    others = set(LEAKS.values()) - {LEAKS[leak]} - ({GAPS} if leak == "row" else set())
    assert all(leaks.aucs[name] < 0.6 for name in others)


@pytest.mark.parametrize("leak", LEAKS)
def test_a_predictor_that_features_cannot_see_is_none(leak):
    choice = ColumnChoice(columns=("sex", SITE, HOSPITAL), patients="own")
    if leak == "row":
        choice = ColumnChoice(columns=(PATIENT, HOSPITAL))
    assert not measure_leaks(made(leak), choice.of(made(leak))).found


def test_the_same_rows_and_seed_give_the_same_figures():
    table = made("count")
    assert measure_leaks(table, all_columns(table), seed=3) == measure_leaks(table, all_columns(table), seed=3)
    assert measure_leaks(table.assign(**{TARGET: 0}), all_columns(table)).together == 0.5  # of one class there is no AUC


# The way out


def test_the_chosen_columns_are_those_of_the_file_in_its_order():
    table = made()
    assert all_columns(table) == [PATIENT, "age_approx", "sex", SITE, HOSPITAL]
    assert ColumnChoice("own").of(table) == ["age_approx", "sex", SITE, HOSPITAL]
    assert ColumnChoice(columns=("sex", "age_approx")).of(table) == ["age_approx", "sex"]
    assert ColumnChoice("own", ("sex", PATIENT)).of(table) == ["sex"]
    for columns in (("target",), (ID,), ("tbp_lv_H",), ("Sex",)):
        with pytest.raises(InputError, match=f"--columns: '{columns[0]}'"):
            ColumnChoice(columns=columns).of(table)
    with pytest.raises(InputError, match="no column"):
        ColumnChoice("own", (PATIENT,)).of(table)


CHOICES = [
    ColumnChoice("own"),
    ColumnChoice(columns=("age_approx", HOSPITAL)),
    ColumnChoice(columns=(PATIENT, "tbp_lv_H", "tbp_lv_Hext", "sex")),
    ColumnChoice("own", tuple(name for name in TEST_COLUMNS if name.startswith("tbp_lv_"))),
]


@pytest.mark.parametrize("choice", CHOICES, ids=["own", "columns", "with patients", "own, columns"])
def test_features_of_some_columns_are_the_kernels(synthetic_data, metadata, choice):
    """The kernel makes all features and takes those that the manifest names."""
    features = read_rows(synthetic_data, choice).features
    categories = [name for name in features if features[name].dtype == object]
    kernel = select_features(build_features(metadata[list(TEST_COLUMNS)]), list(features), categories)
    pd.testing.assert_frame_equal(features, kernel)
    of_patient = [name for name in features if name.endswith(("_patient", "_site", "_lesions"))]
    assert bool(of_patient) == (PATIENT in choice.of(metadata))
    used = {name for name in features if name in TEST_COLUMNS}
    assert used <= set(choice.of(metadata))


def test_folds_of_rows_that_leak_are_refused_until_the_leak_is_hidden(tmp_path, capsys):
    data, artifacts = folder_of(made("patient"), tmp_path / "data"), tmp_path / "artifacts"
    with pytest.raises(
        InputError, match=r"'has a known patient' alone .* AUC 1\.000, above 0\.75.*--patients own.*--accept"
    ):
        folds(data, artifacts)
    assert not artifacts.exists()
    folds(data, artifacts, "--patients", "own")
    section = load_manifest(artifacts)["folds"]
    assert section["features"] == {"patients": "own", "columns": None, "accept_leak": False}
    assert set(section["leaks"]) == {HAS_ROW, GAPS, "all together"}
    capsys.readouterr()
    folds(data, tmp_path / "accepted", "--accept-leak")
    assert "WARNING" in capsys.readouterr().out
    kept = [(path / "folds.csv").read_bytes() for path in (artifacts, tmp_path / "accepted")]
    assert kept[0] == kept[1]  # the choice is for the features: folds keep known patients together


def test_another_choice_drops_what_was_trained_and_the_same_does_not(tmp_path):
    data, artifacts = folder_of(made(), tmp_path / "data"), tmp_path / "artifacts"
    folds(data, artifacts)
    before = (artifacts / "manifest.json").read_bytes()
    folds(data, artifacts)
    assert (artifacts / "manifest.json").read_bytes() == before
    folds(data, artifacts, "--columns", "sex", HOSPITAL)
    assert load_manifest(artifacts)["folds"]["features"]["columns"] == ["sex", HOSPITAL]
    assert ColumnChoice.recorded(load_manifest(artifacts)) == ColumnChoice(columns=("sex", HOSPITAL))
    assert ColumnChoice.recorded({}) == ColumnChoice()


@pytest.mark.integration
def test_the_tabular_stage_refuses_a_leak_and_keeps_to_the_choice(tmp_path, monkeypatch):
    monkeypatch.setattr("train.tabular.NO_SIGNAL", 0.0)
    data, artifacts = folder_of(made("row"), tmp_path / "data"), tmp_path / "artifacts"
    (tmp_path / "few.json").write_text('{"iterations": 3}')
    folds(data, artifacts, "--columns", PATIENT, HOSPITAL, "--holdout", "0")
    tabular = ["--data", str(data), "--artifacts", str(artifacts), "--seeds", "1", "--params", str(tmp_path / "few.json")]
    train_tabular(tabular)
    assert load_manifest(artifacts)["tabular"]["features"] == ["patient_lesions", HOSPITAL]
    older = tmp_path / "older"  # of a version without this check
    older.mkdir()
    (older / "folds.csv").write_bytes((artifacts / "folds.csv").read_bytes())
    with pytest.raises(InputError, match=r"'has a row of metadata' .*--columns"):
        train_tabular([*tabular[:2], "--artifacts", str(older)])


# Real data


def test_the_competitions_rows_are_not_refused(real_data):
    metadata = read_metadata(real_data / "train-metadata.csv", labelled=True)
    leaks = measure_leaks(metadata, all_columns(metadata))
    assert max(leaks.aucs.values()) < 0.6 and leaks.together < 0.6


def test_the_permissive_release_is_refused_and_its_hospitals_are_not(real_data):
    source = real_data.parent / "isic-2024-permissive" / "ISIC_2024_Permissive_Training_"
    if not source.parent.is_dir():
        pytest.skip(f"there is no {source.parent}")
    labels, supplement = (pd.read_csv(f"{source}{name}.csv") for name in ("GroundTruth", "Supplement"))
    rows = pd.read_csv(f"{source}Input/metadata.csv").drop(columns=[HOSPITAL, "copyright_license"])
    table = labels.merge(supplement, on=ID).merge(rows, on=ID, how="left").rename(columns={"malignant": TARGET})
    table = table[[name for name in TRAIN_COLUMNS if name in table]].assign(**{PATIENT: table[PATIENT].fillna(table[ID])})
    leaks = measure_leaks(table, all_columns(table))
    assert leaks.aucs[HAS_ROW] == pytest.approx(0.992, abs=0.002)
    assert leaks.aucs[HAS_PATIENT] == pytest.approx(0.992, abs=0.002)
    assert leaks.aucs[LESIONS] == pytest.approx(0.838, abs=0.01)
    assert measure_leaks(table, ColumnChoice("own").of(table)).found
    assert not measure_leaks(table, ColumnChoice("own", (HOSPITAL,)).of(table)).found
