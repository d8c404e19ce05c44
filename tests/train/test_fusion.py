import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from inference.files import sha256_of
from inference.images import ImageStore, image_batches
from inference.network import Ensemble, NetworkConfig, build_network, load_network, network_logits
from inference.schema import ID, TARGET, read_metadata
from train.fusion import train_fusion, unfinished_folder
from train.network.config import parse_fusion_options
from train.network.pretraining import pool_of
from utils import InputError, bootstrap_scores

SMALL = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16"]
FEW = ["--negatives-per-positive", "1"]


def command(data, artifacts, *more):
    """The command line of a small training."""
    return ["--data", str(data), "--artifacts", str(artifacts), *SMALL, *more]


@pytest.fixture
def artifacts(trained, tmp_path):
    """A copy of the trained artifacts to write into."""
    return shutil.copytree(trained.artifacts, tmp_path / "artifacts")


# What training leaves


def test_every_row_outside_the_holdout_has_out_of_fold_logits(trained):
    oof = pd.read_csv(trained.artifacts / "oof_fusion.csv")
    folds = pd.read_csv(trained.artifacts / "folds.csv").query("fold >= 0")
    assert oof[ID].tolist() == folds[ID].tolist()
    assert np.isfinite(oof["network"]).all()
    assert oof["image_scored"].all()
    tabular = pd.read_csv(trained.artifacts / "oof_tabular.csv")
    np.testing.assert_allclose(oof["tabular"], tabular["tabular"], rtol=1e-8)
    assert (oof["network"] != oof["tabular"]).all()


def test_the_manifest_describes_the_networks(trained):
    manifest = json.loads((trained.artifacts / "manifest.json").read_text())
    network = manifest["network"]
    assert network["weights"] == ["fusion_fold0.weights.h5", "fusion_fold1.weights.h5"]
    for name in [*network["weights"], "oof_fusion.csv"]:
        assert manifest["files"][name] == sha256_of(trained.artifacts / name)
    oof = pd.read_csv(trained.artifacts / "oof_tabular.csv")["tabular"]
    assert network["settings"]["tabular_mean"] == pytest.approx(oof.mean())
    assert network["settings"]["tabular_std"] == pytest.approx(oof.std(ddof=0))


def test_the_folder_is_flat_and_holds_no_pickle(trained):
    assert {path.suffix for path in trained.artifacts.iterdir()} == {".cbm", ".csv", ".h5", ".json"}
    assert all(path.is_file() for path in trained.artifacts.iterdir())


def test_weights_files_hold_weights_only(trained):
    with h5py.File(trained.artifacts / "fusion_fold0.weights.h5") as file:
        assert "optimizer" not in file
    parameters = build_network(NetworkConfig(32)).count_params()
    assert (trained.artifacts / "fusion_fold0.weights.h5").stat().st_size < 4.1 * parameters


def test_the_manifest_says_how_the_scores_are_combined_and_why(trained):
    network = json.loads((trained.artifacts / "manifest.json").read_text())["network"]
    assert network["combination"]["kind"] in ("network", "rank_average", "blend")
    assert network["combination"]["why"].startswith("the highest pAUC out of fold")
    assert set(network["scores"]) == {"tabular", "network", "rank_average", "blend", "chosen without the fold"}
    assert network["scores"]["tabular"]["less tabular"] == [0, 0, 0]


def test_the_logs_tell_how_it_went(trained):
    logs = trained.artifacts.with_name("artifacts-logs")
    history = pd.read_csv(logs / "fusion-history.csv")
    assert history[["fold", "epoch", "phase"]].values.tolist() == [[0, 1, "stages"], [1, 1, "stages"]]
    assert (logs / "fusion-curves.png").stat().st_size > 10_000
    assert {path.name for path in (logs / "tensorboard").iterdir()} == {"fusion-fold0", "fusion-fold1"}


def test_the_scores_are_those_of_the_weights_in_the_folder(trained):
    """Out-of-fold scores come from the networks as the kernel will load them, to 1e-5."""
    manifest = json.loads((trained.artifacts / "manifest.json").read_text())
    oof = pd.read_csv(trained.artifacts / "oof_fusion.csv").query("fold == 1")
    network = load_network(
        NetworkConfig.from_dict(manifest["network"]["settings"]), trained.artifacts / "fusion_fold1.weights.h5"
    )
    store = ImageStore(trained.data / "train-image.hdf5")
    batches = image_batches(store, oof[ID].tolist(), 32, 7)
    found = np.zeros(len(oof))
    for positions, logits in network_logits(Ensemble(network), batches, oof["tabular"].to_numpy()):
        found[positions] = logits
    np.testing.assert_allclose(found, oof["network"], atol=1e-5)


# Interruption


def test_a_finished_fold_is_not_trained_again(trained, artifacts, monkeypatch):
    options = parse_fusion_options(command(trained.data, artifacts))
    kept = unfinished_folder(options, json.loads((artifacts / "manifest.json").read_text()))
    fold = pd.read_csv(artifacts / "folds.csv")["fold"]
    for number in (0, 1):
        shutil.copy(artifacts / f"fusion_fold{number}.weights.h5", kept / f"fold{number}.weights.h5")
        pd.DataFrame(columns=["fold"]).to_csv(kept / f"history{number}.csv", index=False)
        rows = np.flatnonzero(fold == number)
        pd.DataFrame({"row": rows, "network": rows / 100}).to_csv(kept / f"fold{number}.csv", index=False)
    monkeypatch.setattr("train.network.fold.fit_fold", lambda *_: pytest.fail("a finished fold was trained again"))
    assert train_fusion(command(trained.data, artifacts)) == 0
    oof = pd.read_csv(artifacts / "oof_fusion.csv")
    np.testing.assert_allclose(oof["network"], np.flatnonzero(fold >= 0) / 100)
    assert not kept.exists()


def test_other_settings_or_other_inputs_are_refused_and_not_mixed(trained, artifacts):
    manifest = json.loads((artifacts / "manifest.json").read_text())
    kept = unfinished_folder(parse_fusion_options(command(trained.data, artifacts)), manifest)
    assert unfinished_folder(parse_fusion_options(command(trained.data, artifacts, "--logs", "elsewhere")), manifest) == kept
    with pytest.raises(InputError, match=r"holds an unfinished training with --seed 0, now asked .* or --restart"):
        train_fusion(command(trained.data, artifacts, "--seed", "7"))
    manifest["files"]["oof_tabular.csv"] = "0" * 64
    with pytest.raises(InputError, match=r"unfinished training with oof_tabular\.csv"):
        unfinished_folder(parse_fusion_options(command(trained.data, artifacts)), manifest)
    (kept / "fold0.csv").write_text("row,logits\n0,1\n")
    assert (
        unfinished_folder(parse_fusion_options(command(trained.data, artifacts, "--seed", "7", "--restart")), manifest)
        == kept
    )
    assert not (kept / "fold0.csv").exists()


#: The command in a process of its own; without graphs, because a training of a few steps is over before ResNet50 is traced.
RUN = "import sys, tensorflow as tf; tf.config.run_functions_eagerly(True); "
RUN += "from train.fusion import train_fusion; train_fusion(sys.argv[1:])"


def start(arguments):
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], cwd=root, env=environment, stderr=subprocess.DEVNULL)


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(trained, tmp_path, eager):
    arguments = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--head-epochs", "1", "--batch-size", "16"]
    arguments += ["--negatives-per-positive", "1", "--unfreeze", "conv5", "--ema", "0.5", "--mixup", "0.2"]
    folders = {}
    for name in ("whole", "killed"):
        folders[name] = shutil.copytree(trained.artifacts, tmp_path / name)
        for path in folders[name].glob("fusion_*"):
            path.unlink()
    where = {name: ["--data", str(trained.data), "--artifacts", str(folder)] for name, folder in folders.items()}

    process, kept = start([*where["killed"], *arguments]), folders["killed"] / ".fusion-training"
    while not (kept / "checkpoint1.weights.h5").exists():  # within the second fold
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folders["killed"] / "fusion_fold0.weights.h5").exists()
    first = (kept / "fold0.weights.h5").stat().st_mtime_ns
    assert start([*where["killed"], *arguments]).wait() == 0
    assert (folders["killed"] / "fusion_fold0.weights.h5").stat().st_mtime_ns == first  # not trained again

    assert train_fusion([*where["whole"], *arguments]) == 0
    for name in ("fusion_fold0.weights.h5", "fusion_fold1.weights.h5", "oof_fusion.csv"):
        assert sha256_of(folders["killed"] / name) == sha256_of(folders["whole"] / name)


# The image alone


def test_image_only_is_recorded_beside_the_fusion(trained, artifacts, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "train.network.fold.fit_fold", lambda network, *_: asked.append([i.name for i in network.inputs]) or []
    )
    assert train_fusion(command(trained.data, artifacts, "--inputs", "image")) == 0
    assert asked == [["crop"], ["crop"]]
    manifest = json.loads((artifacts / "manifest.json").read_text())
    assert "network" in manifest
    assert manifest["files"]["oof_image_only.csv"] == sha256_of(artifacts / "oof_image_only.csv")
    alone = pd.read_csv(artifacts / "oof_image_only.csv")
    assert alone[ID].tolist() == pd.read_csv(artifacts / "folds.csv")[ID].tolist()  # the holdout too
    rate = alone.query("fold >= 0")[TARGET].mean()
    np.testing.assert_allclose(alone["network"], np.log(rate / (1 - rate)), atol=1e-4)  # untrained: the base rate
    assert not list(artifacts.glob(".image*"))
    fusion = pd.read_csv(artifacts / "oof_fusion.csv")
    patients = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    scores = {"fusion": fusion["network"], "image": alone.set_index(ID)["network"][fusion[ID]]}
    table = bootstrap_scores(fusion[TARGET], patients.set_index(ID)["patient_id"][fusion[ID]], scores)
    assert f"fusion less image alone, paired: {table.difference('fusion', 'image').value:+.4f} [" in capsys.readouterr().out


def test_the_tabular_only_is_a_network_without_a_crop(trained, artifacts, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "train.network.fold.fit_fold", lambda network, *_: asked.append([i.name for i in network.inputs]) or []
    )
    assert train_fusion(command(trained.data, artifacts, "--inputs", "tabular")) == 0
    assert asked == [["tabular"], ["tabular"]]
    alone = pd.read_csv(artifacts / "oof_tabular_only.csv")
    tabular = pd.read_csv(artifacts / "oof_tabular.csv")
    assert alone[ID].tolist() == tabular[ID].tolist()
    np.testing.assert_allclose(alone["network"], tabular["tabular"], atol=1e-5)  # untrained: the tabular score itself


# Archives


def test_lesions_of_an_archive_join_the_training(trained, artifacts, archive_folder, eager):
    before = pd.read_csv(artifacts / "oof_fusion.csv")["network"]
    assert (
        train_fusion(command(trained.data, artifacts, "--archives", str(archive_folder), "--archives-mode", "joint", *FEW))
        == 0
    )
    after = pd.read_csv(artifacts / "oof_fusion.csv")["network"]
    assert np.isfinite(after).all()
    assert (after != before).all()
    network = json.loads((artifacts / "manifest.json").read_text())["network"]
    assert network["training"]["archives_mode"] == "joint"
    assert network["settings"]["inputs"] == ["crop", "tabular"]  # the kernel's network knows no source


def test_a_pretrained_backbone_starts_every_fold(trained, artifacts, archive_folder, monkeypatch):
    learned, started = build_network(NetworkConfig(32)).get_layer("resnet50"), []

    def pretrain(archive, weights, options):
        assert len(archive.labels) == 40
        learned.save_weights(weights)

    def joined(lesions, store, archive, opinion):
        assert archive is None  # its lesions have taught already
        return pool_of(lesions, store, archive, opinion)

    def train(network, *_):
        started.append(network.get_layer("resnet50").get_weights())
        return []

    monkeypatch.setattr("train.network.fold.pretrain_backbone", pretrain)
    monkeypatch.setattr("train.network.fold.pool_of", joined)
    monkeypatch.setattr("train.network.fold.fit", train)
    assert (
        train_fusion(command(trained.data, artifacts, "--archives", str(archive_folder), "--archives-mode", "pretrain")) == 0
    )
    assert len(started) == 2
    for weights in started:
        for expected, found in zip(learned.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(expected, found)
    assert not list(artifacts.glob(".fusion*"))


# Bad input


def test_a_lesion_without_image_is_refused_unless_it_may_pass(trained, artifacts, tmp_path, monkeypatch):
    data = shutil.copytree(trained.data, tmp_path / "data")
    fold = pd.read_csv(artifacts / "folds.csv").set_index(ID)["fold"]
    missing, broken = fold[fold >= 0].index[:2]
    with h5py.File(data / "train-image.hdf5", "r+") as file:
        del file[missing]
        del file[broken]
        file[broken] = np.bytes_(b"no picture")
    before = (artifacts / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=rf"holds no image for {missing} \(2 lesions .* --missing-images pass"):
        train_fusion(command(data, artifacts))
    assert (artifacts / "manifest.json").read_bytes() == before
    monkeypatch.setattr("train.network.fold.fit_fold", lambda *_: [])
    assert train_fusion(command(data, artifacts, "--missing-images", "pass")) == 0
    oof = pd.read_csv(artifacts / "oof_fusion.csv").set_index(ID)
    assert oof.loc[[missing, broken], "image_scored"].tolist() == [0, 0]
    assert (oof.loc[[missing, broken], "network"] == oof.loc[[missing, broken], "tabular"]).all()


def test_an_undecodable_image_is_named(trained, artifacts, tmp_path):
    data = shutil.copytree(trained.data, tmp_path / "data")
    isic_id = pd.read_csv(artifacts / "folds.csv")[ID][5]
    with h5py.File(data / "train-image.hdf5", "r+") as file:
        del file[isic_id]
        file[isic_id] = np.bytes_(b"\xff\xd8\xff\xe0 cut off")
    with pytest.raises(InputError, match=rf"cannot be decoded for {isic_id} \(1 lesions"):
        train_fusion(command(data, artifacts))


def test_a_changed_artifact_is_refused(trained, artifacts):
    path = artifacts / "oof_tabular.csv"
    path.write_text(path.read_text().replace("-", "", 1))
    with pytest.raises(InputError, match="SHA-256"):
        train_fusion(command(trained.data, artifacts))
