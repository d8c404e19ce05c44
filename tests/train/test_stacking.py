import json
import shutil

import numpy as np
import pandas as pd
import pytest
from catboost import CatBoostClassifier, Pool

from evaluation.dry_run import run_kernel
from inference.artifacts import load_manifest
from inference.build_kernel import ROOT
from inference.features import logit_features
from inference.files import sha256_of
from inference.schema import ID, PATIENT, TARGET, read_metadata
from train.combination import OF_ALL
from train.lesions import read_rows
from train.stacking import read_logits, stacking_features, train_stacking, with_noise
from utils import InputError

FEW_TREES = {"iterations": 5, "depth": 3}


@pytest.fixture
def artifacts(trained, tmp_path):
    """A copy of the trained artifacts to write into."""
    return shutil.copytree(trained.artifacts, tmp_path / "artifacts")


def command(trained, artifacts, *options):
    """The command line with few trees."""
    parameters = artifacts.with_name("params.json")
    parameters.write_text(json.dumps(FEW_TREES))
    return [
        "--data",
        str(trained.data),
        "--artifacts",
        str(artifacts),
        "--seeds",
        "1",
        "--params",
        str(parameters),
        *options,
    ]


def test_every_row_outside_the_holdout_has_logits_of_the_last_stage(trained):
    oof = pd.read_csv(trained.artifacts / "oof_stacking.csv")
    assert list(oof) == [ID, TARGET, "fold", "tabular", "network", "context", "stacking", "image_scored", "final"]
    fusion = pd.read_csv(trained.artifacts / "oof_fusion.csv")
    assert oof[ID].tolist() == fusion[ID].tolist()
    np.testing.assert_allclose(oof["network"], fusion["network"])
    assert np.isfinite(oof["stacking"]).all()


def test_the_manifest_describes_the_last_stage(trained):
    section = load_manifest(trained.artifacts)["stacking"]
    assert [entry["file"] for entry in section["models"]] == ["stacking_fold0_seed0.cbm", "stacking_fold1_seed0.cbm"]
    assert section["networks"] == ["fusion"]
    assert section["features"] == list(logit_features(pd.DataFrame({"tabular": [0.0], "fusion": [0.0]})))
    assert section["combination"]["kind"] in OF_ALL
    assert set(section["scores"]) == {*OF_ALL, "final"}


@pytest.mark.parametrize("options", [[], ["--columns"]])
def test_the_kernel_scores_as_training_does(trained, artifacts, tmp_path, options):
    """The kernel on the training's own rows: features, models and combination agree, given its mean network logits."""
    train_stacking(command(trained, artifacts, "--combine", "mean", *options))
    competition, report = tmp_path / "isic-2024-challenge", tmp_path / "report"
    competition.mkdir()
    report.mkdir()
    rows = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    pd.read_csv(trained.data / "train-metadata.csv", dtype=str).drop(columns=TARGET).to_csv(
        competition / "test-metadata.csv", index=False
    )
    shutil.copy(trained.data / "train-image.hdf5", competition / "test-image.hdf5")
    run_kernel(ROOT / "kernel.py", competition, artifacts, report)
    scores = pd.read_csv(report / "scores.csv").set_index(ID).loc[rows[ID]].reset_index()
    manifest = load_manifest(artifacts)
    section = manifest["stacking"]
    table = scores.rename(columns={"network_fusion": "fusion"}).assign(patient_id=rows[PATIENT])
    columns = read_rows(trained.data).features if options else None
    features = stacking_features(table, ["fusion"], columns)[section["features"]]
    pool = Pool(features, cat_features=section["categories"])
    models = [CatBoostClassifier().load_model(str(artifacts / entry["file"])) for entry in section["models"]]
    shifts = [entry["prior_correction"] for entry in section["models"]]
    predicted = [model.predict(pool, prediction_type="RawFormulaVal") for model in models]
    expected = np.mean([logits + shift for logits, shift in zip(predicted, shifts, strict=True)], axis=0)
    np.testing.assert_allclose(scores["stacking"], expected, atol=1e-6)
    style = (scores["network"] - scores["tabular"]).groupby(rows[PATIENT]).transform("mean")
    np.testing.assert_allclose(scores["context"], scores["network"] - style, atol=1e-6)
    weights = section["combination"]["with_image"]
    final = weights["intercept"] + sum(
        weights[name] * scores[name] for name in ("tabular", "network", "context", "stacking")
    )
    np.testing.assert_allclose(scores["final"], final, atol=1e-6)


def test_the_same_command_again_has_nothing_to_do_and_another_choice_changes_the_combination(trained, artifacts, capsys):
    assert train_stacking(command(trained, artifacts)) == 0
    before = load_manifest(artifacts)
    capsys.readouterr()
    assert train_stacking(command(trained, artifacts)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert load_manifest(artifacts) == before
    for kind in OF_ALL:
        assert train_stacking(command(trained, artifacts, "--combine", kind)) == 0
        assert load_manifest(artifacts)["stacking"]["combination"]["kind"] == kind


def test_without_networks_it_says_what_to_run(trained, tabular_only, tmp_path):
    artifacts = shutil.copytree(tabular_only, tmp_path / "artifacts")
    with pytest.raises(InputError, match=r"train\.fusion"):
        train_stacking(command(trained, artifacts))


def test_other_data_is_refused(trained, synthetic_data, artifacts):
    with pytest.raises(InputError):
        train_stacking(["--data", str(synthetic_data), "--artifacts", str(artifacts)])


@pytest.mark.parametrize("name", [PATIENT, TARGET])
def test_rows_with_another_patient_or_label_are_refused(trained, tmp_path, name):
    table = pd.read_csv(trained.data / "train-metadata.csv", dtype=str)
    table.loc[7, name] = str(1 - int(table.loc[7, name])) if name == TARGET else "IP_0000001"
    table.to_csv(tmp_path / "train-metadata.csv", index=False)
    with pytest.raises(InputError, match=f"another {name} for 1 lesions"):
        read_logits(trained.artifacts, read_rows(tmp_path), ["fusion"])


def test_no_label_of_a_fold_changes_a_feature_of_its_rows(trained, artifacts):
    """Neither labels nor other folds' logits enter a lesion's features: only the logits of its own patient."""
    rows = read_rows(trained.data)
    table, scored = read_logits(artifacts, rows, ["fusion"])
    assert scored.all()
    inside = table["fold"] == 1
    other = table.assign(
        target=np.where(inside, 1 - table[TARGET], table[TARGET]),
        tabular=np.where(inside, table["tabular"], 0.5),
        fusion=np.where(inside, table["fusion"], -0.5),
    )
    before, after = (stacking_features(each, ["fusion"], None) for each in (table, other))
    pd.testing.assert_frame_equal(before[inside], after[inside])
    assert not before[~inside].equals(after[~inside])


def test_hidden_patients_are_hidden_from_the_last_stage(trained, artifacts):
    """``train.folds --patients own``: how many lesions a patient has can tell the label."""
    manifest = load_manifest(artifacts)
    manifest["folds"]["features"] = {"patients": "own", "columns": None, "accept_leak": False}
    (artifacts / "manifest.json").write_text(json.dumps(manifest))
    assert train_stacking(command(trained, artifacts)) == 0
    assert load_manifest(artifacts)["stacking"]["patients"] is False
    oof = pd.read_csv(artifacts / "oof_stacking.csv")
    np.testing.assert_allclose(oof["context"], oof["tabular"], atol=1e-6)
    table, _ = read_logits(artifacts, read_rows(trained.data), ["fusion"])
    assert (stacking_features(table, ["fusion"], None, patients=False)["scored_lesions"] == 1).all()


def test_noise_is_seeded_and_of_the_networks_only():
    table = pd.DataFrame({"tabular": np.zeros(20_000), "fusion": np.tile([0.0, 4.0], 10_000)})
    noisy = with_noise(table, ["fusion"], 0.1, seed=3)
    assert (noisy["tabular"] == 0).all()
    assert (noisy["fusion"] - table["fusion"]).std() == pytest.approx(0.2, rel=0.03)
    pd.testing.assert_frame_equal(noisy, with_noise(table, ["fusion"], 0.1, seed=3))
    pd.testing.assert_frame_equal(table, with_noise(table, ["fusion"], 0.0, seed=3))


def test_a_lesion_without_an_image_score_takes_no_part(trained, artifacts):
    manifest = load_manifest(artifacts)
    table = pd.read_csv(artifacts / "oof_fusion.csv")
    table.loc[:4, "image_scored"] = 0
    table.to_csv(artifacts / "oof_fusion.csv", index=False)
    manifest["files"]["oof_fusion.csv"] = sha256_of(artifacts / "oof_fusion.csv")
    (artifacts / "manifest.json").write_text(json.dumps(manifest))
    assert train_stacking(command(trained, artifacts)) == 0
    oof = pd.read_csv(artifacts / "oof_stacking.csv")
    assert (oof["stacking"] == oof["tabular"]).tolist()[:5] == [True] * 5
    assert load_manifest(artifacts)["stacking"]["trained_on"]["lesions"] == len(oof) - 5
