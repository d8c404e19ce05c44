import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from catboost import CatBoostError

from inference.artifacts import OOF_TABULAR, checked_file, load_manifest
from inference.features import build_features
from inference.schema import ID, PATIENT, TARGET
from inference.tabular import load_models, select_features, tabular_logits
from train import tabular
from train.config import PARAMETERS
from train.cross_validation import sample_negatives, train_model
from train.folds import HOLDOUT, make_folds, read_folds
from train.manifest import record_stage
from train.tabular import compare_scales, describe_logits, train_tabular
from utils import InputError, partial_auc

pytestmark = pytest.mark.integration

SMALL = {"iterations": 12, "depth": 3, "learning_rate": 0.3}


def train(data, artifacts, *options):
    """Folds and tabular models, both small; the commands as a user gives them."""
    folder = ["--data", str(data), "--artifacts", str(artifacts)]
    make_folds([*folder, "--folds", "2", "--holdout", "0.25"])
    parameters = artifacts.with_name(f"{artifacts.name}-params.json")
    parameters.write_text(json.dumps(SMALL))
    return train_tabular([*folder, "--seeds", "1", "--params", str(parameters), "--negatives-per-positive", "2", *options])


@pytest.fixture(scope="module")
def artifacts(synthetic_data, tmp_path_factory):
    """An artifact folder after one training. Shared: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("tabular") / "artifacts"
    assert train(synthetic_data, folder) == 0
    return folder


@pytest.fixture
def manifest(artifacts):
    return load_manifest(artifacts)


@pytest.fixture
def oof(artifacts):
    return pd.read_csv(artifacts / OOF_TABULAR)


# Its parts


def test_another_scale_in_the_holdout_is_logged(capsys):
    scores = np.random.default_rng(0).normal(-5, 1, 1000)
    compare_scales(scores, scores[:300])
    assert capsys.readouterr().out.endswith("same scale\n")
    for other in (scores + 1, scores - 1, (scores + 5) * 2 - 5, (scores + 5) / 2 - 5):
        compare_scales(scores, other)
        assert "WARNING: not the same scale" in capsys.readouterr().out


# Models without signal


def test_models_without_signal_become_the_prior(synthetic_data, tmp_path, metadata, monkeypatch, capsys):
    monkeypatch.setattr(tabular, "NO_SIGNAL", 0.5)
    assert train(synthetic_data, tmp_path / "artifacts") == 0
    assert "no signal" in capsys.readouterr().out
    manifest, oof = load_manifest(tmp_path / "artifacts"), pd.read_csv(tmp_path / "artifacts" / OOF_TABULAR)
    section, rate = manifest["tabular"], oof[TARGET].mean()
    assert section["scores"]["auc_interval"][0] <= 0.5
    assert section["prior"] == pytest.approx(np.log(rate / (1 - rate)), abs=1e-6)
    assert (oof["tabular"] == section["prior"]).all()
    assert section["out_of_fold"]["median"] == section["prior"]
    models, _ = load_models(tmp_path / "artifacts", manifest)
    features = select_features(build_features(metadata), section["features"], section["categories"])
    assert (tabular_logits(models, features, section["categories"]) == section["prior"]).all()  # in the kernel, too


def test_models_with_signal_are_kept(trained):
    section = load_manifest(trained.artifacts)["tabular"]
    assert section["prior"] is None
    assert section["scores"]["auc_interval"][0] > 0.5


# The whole stage


def test_every_lesion_outside_the_holdout_has_an_out_of_fold_score(artifacts, metadata, oof):
    fold = read_folds(artifacts, metadata)
    assert (fold == HOLDOUT).any()
    rows = metadata[fold != HOLDOUT]
    assert oof[ID].tolist() == rows[ID].tolist()
    assert oof[TARGET].tolist() == rows[TARGET].tolist()
    assert oof["fold"].tolist() == fold[fold != HOLDOUT].tolist()
    assert np.isfinite(oof["tabular"]).all()
    assert oof["tabular"].std() > 0.1


def test_a_lesion_is_scored_by_models_trained_without_its_patient(artifacts, manifest, metadata, oof):
    """The models of the other folds, trained here again on the other folds, give the scores in the file."""
    fold = read_folds(artifacts, metadata)
    assert (metadata.assign(fold=fold).groupby(PATIENT)["fold"].nunique() == 1).all()
    features = build_features(metadata)
    labels = metadata[TARGET].to_numpy()
    for number in (0, 1):
        train_rows = np.flatnonzero(fold == 1 - number)
        kept, share = sample_negatives(labels[train_rows], 2, np.random.default_rng([0, number, 0]))
        kept = train_rows[kept]
        model = train_model(features.iloc[kept], labels[kept], PARAMETERS | SMALL, 1000 * number)
        expected = tabular_logits([(model, np.log(share))], features[fold == number], manifest["tabular"]["categories"])
        np.testing.assert_allclose(oof.loc[oof["fold"] == number, "tabular"], expected, rtol=1e-6)


def test_labels_of_a_patient_do_not_reach_the_patients_own_scores(synthetic_data, tmp_path, metadata, oof):
    """Every label of fold 0 turned over: the scores of fold 0 stay as they were, those of fold 1 do not."""
    other = tmp_path / "competition"
    other.mkdir()
    table = pd.read_csv(synthetic_data / "train-metadata.csv", dtype="str", keep_default_na=False)
    rows = table[ID].isin(oof.loc[oof["fold"] == 0, ID])
    table.loc[rows, TARGET] = table.loc[rows, TARGET].map({"0": "1", "1": "0"})
    table.to_csv(other / "train-metadata.csv", index=False)
    folder = tmp_path / "artifacts"
    folder.mkdir()
    fold = table[[ID, PATIENT, TARGET]].merge(oof[[ID, "fold"]], how="left").fillna({"fold": HOLDOUT}).astype({"fold": int})
    fold.to_csv(folder / "folds.csv", index=False)
    (tmp_path / "params.json").write_text(json.dumps(SMALL))
    options = ["--seeds", "1", "--params", str(tmp_path / "params.json"), "--negatives-per-positive", "2"]
    train_tabular(["--data", str(other), "--artifacts", str(folder), *options])
    again = pd.read_csv(folder / OOF_TABULAR)
    same = again["tabular"] == oof["tabular"]
    assert same[oof["fold"] == 0].all()
    assert not same[oof["fold"] == 1].all()


def test_the_manifest_names_every_file_with_its_hash(artifacts, manifest):
    written = {path.name for path in artifacts.iterdir()}
    assert set(manifest["files"]) == written - {"manifest.json"}
    assert {OOF_TABULAR, "folds.csv", "tabular_fold0_seed0.cbm", "tabular_fold1_seed0.cbm"} == set(manifest["files"])
    for name in manifest["files"]:
        assert checked_file(artifacts, manifest, name).is_file()


def test_the_manifest_has_features_parameters_rows_and_scores(artifacts, manifest, metadata, oof):
    tabular = manifest["tabular"]
    features = build_features(metadata)
    assert tabular["features"] == list(features)
    assert tabular["categories"] == [name for name in features if features[name].dtype == object]
    assert tabular["parameters"] == PARAMETERS | SMALL
    assert tabular["trained_on"] == {"lesions": len(oof), "malignant": oof[TARGET].sum()}
    assert tabular["scores"]["pauc"] == pytest.approx(partial_auc(oof[TARGET], oof["tabular"]))
    low, high = tabular["scores"]["interval"]
    assert low <= tabular["scores"]["pauc"] <= high
    assert tabular["out_of_fold"] == pytest.approx(describe_logits(oof["tabular"].to_numpy()), rel=1e-6)


def test_the_saved_models_score_as_they_did_in_training(artifacts, manifest, metadata, oof):
    models, complaints = load_models(artifacts, manifest)
    assert complaints == []
    settings = manifest["tabular"]
    features = select_features(build_features(metadata), settings["features"], settings["categories"])
    fold = read_folds(artifacts, metadata)
    for number, model in enumerate(models):
        scores = tabular_logits([model], features[fold == number], settings["categories"])
        np.testing.assert_allclose(scores, oof.loc[oof["fold"] == number, "tabular"], rtol=1e-6)


def test_a_second_training_gives_the_same_bytes(synthetic_data, artifacts, tmp_path):
    assert train(synthetic_data, tmp_path / "artifacts") == 0
    for name in (OOF_TABULAR, "folds.csv"):
        assert (tmp_path / "artifacts" / name).read_bytes() == (artifacts / name).read_bytes()
    (tmp_path / "artifacts" / OOF_TABULAR).write_text("damaged")
    assert train(synthetic_data, tmp_path / "artifacts") == 0  # into the same folder
    assert (tmp_path / "artifacts" / OOF_TABULAR).read_bytes() == (artifacts / OOF_TABULAR).read_bytes()


def test_several_seeds_are_averaged(synthetic_data, artifacts, tmp_path, metadata):
    train(synthetic_data, tmp_path / "artifacts", "--seeds", "2")
    manifest = load_manifest(tmp_path / "artifacts")
    models, _ = load_models(tmp_path / "artifacts", manifest)
    assert len(models) == 4
    oof = pd.read_csv(tmp_path / "artifacts" / OOF_TABULAR)
    fold = read_folds(tmp_path / "artifacts", metadata)
    features, categories = build_features(metadata), manifest["tabular"]["categories"]
    expected = tabular_logits(models[:2], features[fold == 0], categories)
    np.testing.assert_allclose(oof.loc[oof["fold"] == 0, "tabular"], expected, rtol=1e-6)


def test_folds_come_first(synthetic_data, tmp_path):
    with pytest.raises(InputError, match=r"folds\.csv is missing; run: python -m train\.folds"):
        train_tabular(["--data", str(synthetic_data), "--artifacts", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def with_network(artifacts, tmp_path):
    """A copy of ``artifacts`` with a network, of a kind."""
    folder = shutil.copytree(artifacts, tmp_path / "copy")
    (folder / "n.h5").write_text("hours of training")
    record_stage(folder, "network", {"weights": ["n.h5"]}, ["n.h5"])
    return folder


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_command_again_trains_nothing(synthetic_data, with_network, monkeypatch):
    before = content_of(with_network)
    monkeypatch.setattr(tabular, "cross_validate", None)
    assert train(synthetic_data, with_network) == 0
    assert train(synthetic_data, with_network, "--seed", "0", "--replace") == 0  # the default, and nothing to replace
    assert content_of(with_network) == before


@pytest.mark.parametrize("option", [("--seed", "1"), ("--seeds", "2"), ("--negatives-per-positive", "3")])
def test_other_models_take_the_place_of_networks_on_request_only(synthetic_data, with_network, option, monkeypatch):
    before = content_of(with_network)
    with pytest.raises(InputError, match=r"network \(n\.h5\).*--replace"), monkeypatch.context() as without_training:
        without_training.setattr(tabular, "cross_validate", None)
        train(synthetic_data, with_network, *option)
    assert content_of(with_network) == before
    if option[0] == "--seed":
        assert train(synthetic_data, with_network, *option, "--replace") == 0
        assert "network" not in load_manifest(with_network)
        assert not (with_network / "n.h5").exists()


def test_a_model_that_does_not_fit_on_the_disk_is_bad_input(synthetic_data, with_network, monkeypatch):
    def full(model, path):
        Path(path).write_bytes(b"half")
        raise CatBoostError("(Error 28: No space left on device) util/system/file.cpp:1080: can't write\nmore")

    before = content_of(with_network)
    monkeypatch.setattr("catboost.CatBoostClassifier.save_model", full)
    with pytest.raises(InputError, match="No space left on device"):
        train(synthetic_data, with_network, "--seed", "1", "--replace")
    assert content_of(with_network) == before
