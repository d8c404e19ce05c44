import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from small_network import small_backbone

from inference.artifacts import best_network, checked_file, load_manifest, networks_of
from inference.backbones import backbone_layer_name
from inference.files import sha256_of
from inference.images import ImageStore, image_batches
from inference.network import Ensemble, NetworkConfig, build_network, load_network, network_logits
from inference.run_log import versions
from inference.schema import ID, TARGET, read_metadata
from train.fusion import read_training, train_fusion, unfinished_folder
from train.network import fold
from train.network.checkpoint import Checkpoint
from train.network.config import parse_fusion_options
from utils import InputError, bootstrap_scores

SMALL = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16"]


def command(data, artifacts, *more):
    """The command line of a small training."""
    return ["--data", str(data), "--artifacts", str(artifacts), *SMALL, *more]


@pytest.fixture
def artifacts(trained, tmp_path):
    """A copy of the trained artifacts to write into."""
    return shutil.copytree(trained.artifacts, tmp_path / "artifacts")


@pytest.fixture
def small(monkeypatch):
    """Two convolutions in place of ResNet50, for what is not about ResNet50."""
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)


@pytest.fixture
def untrained(small, monkeypatch):
    """Networks are built and scored but not fitted; a list of the inputs of each."""
    inputs = []

    def fit(network, *_):
        inputs.append([tensor.name for tensor in network.inputs])
        return []

    monkeypatch.setattr("train.network.fold.fit", fit)
    return inputs


# What training leaves


def test_every_row_outside_the_holdout_has_out_of_fold_logits(trained):
    oof = pd.read_csv(trained.artifacts / "oof_fusion.csv")
    assert list(oof) == [ID, TARGET, "fold", "tabular", "network", "image_scored", "final", "network_fusion"]
    folds = pd.read_csv(trained.artifacts / "folds.csv").query("fold >= 0")
    assert oof[ID].tolist() == folds[ID].tolist()
    assert np.isfinite(oof["network"]).all()
    assert oof["image_scored"].all()
    tabular = pd.read_csv(trained.artifacts / "oof_tabular.csv")
    np.testing.assert_allclose(oof["tabular"], tabular["tabular"], rtol=1e-8)
    assert (oof["network"] != oof["tabular"]).all()
    assert (oof["network_fusion"] == oof["network"]).all()


def test_the_manifest_describes_the_networks(trained):
    manifest = load_manifest(trained.artifacts)
    assert list(networks_of(manifest)) == ["fusion"]
    network = best_network(manifest)
    assert network["weights"] == ["fusion_fold0.weights.h5", "fusion_fold1.weights.h5"]
    for name in [*network["weights"], "oof_fusion.csv"]:
        assert manifest["files"][name] == sha256_of(trained.artifacts / name)
    oof = pd.read_csv(trained.artifacts / "oof_tabular.csv")["tabular"]
    assert network["settings"]["tabular_mean"] == pytest.approx(oof.mean())
    assert network["settings"]["tabular_std"] == pytest.approx(oof.std(ddof=0))
    assert network["training"]["learning_rate"] == 0.003
    assert manifest["network"]["trained_on"] == {"lesions": len(oof), "images": len(oof)}
    low, high = network["interval"]
    assert low <= network["pauc"] <= high
    assert network["pauc"] == manifest["network"]["scores"]["network"]["pauc"]


def test_the_folder_is_flat_and_holds_no_pickle(trained):
    assert {path.suffix for path in trained.artifacts.iterdir()} == {".cbm", ".csv", ".h5", ".json"}
    assert all(path.is_file() for path in trained.artifacts.iterdir())


def test_weights_files_hold_weights_only(trained):
    with h5py.File(trained.artifacts / "fusion_fold0.weights.h5") as file:
        assert "optimizer" not in file
    parameters = build_network(NetworkConfig(32)).count_params()
    assert (trained.artifacts / "fusion_fold0.weights.h5").stat().st_size < 4.1 * parameters


def test_the_manifest_has_the_combination_with_its_reason_and_the_scores(trained):
    network = load_manifest(trained.artifacts)["network"]
    assert network["combination"]["kind"] in ("network", "blend", "tabular")
    assert network["combination"]["kind"] in network["combination"]["reason"]
    assert set(network["scores"]) == {"tabular", "network", "blend", "final"}
    assert network["scores"]["tabular"]["difference_to_tabular"] == [0, 0, 0]
    low, high = network["scores"]["final"]["interval"]
    assert low <= network["scores"]["final"]["pauc"] <= high


def test_the_logs_have_history_curves_and_tensorboard(trained):
    logs = trained.artifacts.with_name("artifacts-logs")
    history = pd.read_csv(logs / "fusion-history.csv")
    assert history[["fold", "epoch", "phase"]].values.tolist() == [[0, 1, "stages"], [1, 1, "stages"]]
    assert (logs / "fusion-curves.png").stat().st_size > 10_000
    assert {path.name for path in (logs / "tensorboard").iterdir()} == {"fusion-fold0", "fusion-fold1"}


def test_the_scores_are_those_of_the_weights_in_the_folder(trained):
    """Out-of-fold scores come from the networks as the kernel will load them, to 1e-5."""
    config = NetworkConfig.from_dict(best_network(load_manifest(trained.artifacts))["settings"])
    oof = pd.read_csv(trained.artifacts / "oof_fusion.csv").query("fold == 1")
    network = load_network(config, trained.artifacts / "fusion_fold1.weights.h5")
    store = ImageStore(trained.data / "train-image.hdf5")
    batches = image_batches(store, oof[ID].tolist(), 32, 7)
    found = np.zeros(len(oof))
    for positions, logits in network_logits(Ensemble(network), batches, oof["tabular"].to_numpy()):
        found[positions] = logits
    np.testing.assert_allclose(found, oof["network"], atol=1e-5)


def test_the_corrections_of_all_networks_are_on_one_scale(trained):
    oof = pd.read_csv(trained.artifacts / "oof_fusion.csv")
    corrections = (oof["network"] - oof["tabular"]).groupby(oof["fold"])
    np.testing.assert_allclose(corrections.mean(), corrections.mean().mean(), atol=1e-6)
    np.testing.assert_allclose(corrections.std(ddof=0), corrections.std(ddof=0).mean(), atol=1e-6)
    assert corrections.std().min() > 0


# Interruption

#: Two phases, averaged weights and mixup: all that a checkpoint has to restore.
RICH = ["--head-epochs", "1", "--unfreeze", "conv5", "--ema", "0.5", "--mixup", "0.2"]


def stop_training(artifacts, data, monkeypatch, epochs=1):
    """Interrupts a training after so many epochs of all folds together; returns the folder that it left."""
    save, saved = Checkpoint.save, []

    def save_and_stop(self, model, record):
        save(self, model, record)
        saved.append(record)
        if len(saved) == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoint, "save", save_and_stop)
        train_fusion(command(data, artifacts, *RICH))
    return artifacts / ".fusion-training"


def test_an_interrupted_training_continues_and_ends_with_the_same_bytes(trained, tmp_path, small, monkeypatch):
    folders = {name: shutil.copytree(trained.artifacts, tmp_path / name) for name in ("whole", "interrupted")}
    for folder in folders.values():
        for path in folder.glob("fusion_*"):
            path.unlink()
    assert train_fusion(command(trained.data, folders["whole"], *RICH)) == 0

    unfinished, trained_folds = stop_training(folders["interrupted"], trained.data, monkeypatch, epochs=3), []
    assert not (folders["interrupted"] / "fusion_fold0.weights.h5").exists()
    assert (unfinished / "checkpoint1.weights.h5").is_file()
    assert (unfinished / "fold0.weights.h5").is_file()
    fit = fold.fit
    monkeypatch.setattr(fold, "fit", lambda *arguments: trained_folds.append(1) or fit(*arguments))
    assert train_fusion(command(trained.data, folders["interrupted"], *RICH)) == 0
    assert len(trained_folds) == 1  # it was stopped within the second fold
    for name in ("fusion_fold0.weights.h5", "fusion_fold1.weights.h5", "oof_fusion.csv"):
        assert sha256_of(folders["interrupted"] / name) == sha256_of(folders["whole"] / name)
    assert not unfinished.exists()


def test_other_options_or_other_inputs_are_refused_unless_it_is_restarted(trained, artifacts, untrained, monkeypatch):
    monkeypatch.setattr("train.fusion.train_folds", lambda *_: pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception):
        train_fusion(command(trained.data, artifacts))
    with pytest.raises(pytest.fail.Exception):  # folders and workers may change
        train_fusion(command(trained.data, artifacts, "--logs", str(artifacts / "elsewhere")))
    with pytest.raises(InputError, match=r"--seed 0.*--replace"):
        train_fusion(command(trained.data, artifacts, "--seed", "7"))
    manifest = load_manifest(artifacts)
    other = artifacts / "oof_tabular.csv"
    other.write_text(other.read_text() + "\n")
    manifest["files"]["oof_tabular.csv"] = sha256_of(other)
    (artifacts / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"oof_tabular\.csv.*--replace"):
        train_fusion(command(trained.data, artifacts))
    (artifacts / ".fusion-training" / "fold0.csv").write_text("row,network\n0,1\n")
    with pytest.raises(pytest.fail.Exception):
        train_fusion(command(trained.data, artifacts, "--seed", "7", "--replace"))
    left = artifacts / ".fusion-training" / "fold0.csv"
    assert not left.exists()
    for option, kept in (("--replace", True), ("--restart", False)):  # the same options again
        left.write_text("row,network\n0,1\n")
        with pytest.raises(pytest.fail.Exception):
            train_fusion(command(trained.data, artifacts, "--seed", "7", option))
        assert left.exists() == kept


def test_an_unfinished_training_of_other_versions_or_diagnosis_groups_is_refused(trained, artifacts, monkeypatch):
    run, config = parse_fusion_options(command(trained.data, artifacts, "--auxiliary", "0.3"))
    training = read_training(run, config)
    unfinished_folder(run, training)
    unfinished_folder(run, training)
    other = replace(training, lesions=replace(training.lesions, groups=training.lesions.groups[::-1]))
    with pytest.raises(InputError, match="unfinished training with diagnosis groups"):
        unfinished_folder(run, other)
    without = replace(config, auxiliary=0.0)
    unfinished_folder(replace(run, restart=True), replace(training, config=without))
    unfinished_folder(run, replace(other, config=without))
    monkeypatch.setattr("train.fusion.versions", lambda: versions() | {"keras": "3.0.0"})
    with pytest.raises(InputError, match=f"unfinished training with keras {versions()['keras']}"):
        unfinished_folder(run, replace(training, config=without))


def test_a_finished_training_is_not_repeated(trained, artifacts, untrained):
    assert train_fusion(command(trained.data, artifacts, "--learning-rate", "0.003")) == 0
    assert untrained == []
    assert train_fusion(command(trained.data, artifacts, "--learning-rate", "0.003", "--restart")) == 0
    assert train_fusion(command(trained.data, artifacts, "--seed", "1")) == 0
    assert len(untrained) == 4


#: The command in a process of its own; without graphs, because a training of a few steps is over before ResNet50 is traced.
RUN = "import sys, tensorflow as tf; tf.config.run_functions_eagerly(True); "
RUN += "from train.fusion import train_fusion; train_fusion(sys.argv[1:])"


def start(arguments):
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], cwd=root, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_process_continues_and_ends_with_the_same_bytes(trained, tmp_path, eager):
    folders = {name: shutil.copytree(trained.artifacts, tmp_path / name) for name in ("whole", "killed")}
    for folder in folders.values():
        for path in folder.glob("fusion_*"):
            path.unlink()
    arguments = {name: command(trained.data, folder, *RICH) for name, folder in folders.items()}

    process, unfinished = start(arguments["killed"]), folders["killed"] / ".fusion-training"
    while not (unfinished / "checkpoint1.weights.h5").exists():  # within the second fold
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folders["killed"] / "fusion_fold0.weights.h5").exists()
    first = (unfinished / "history0.csv").read_bytes()  # it has the seconds of every epoch
    assert start(arguments["killed"]).wait() == 0
    history = pd.read_csv(f"{folders['killed']}-logs/fusion-history.csv")
    again = pd.read_csv(io.BytesIO(first))
    assert history[history["fold"] == 0]["seconds"].tolist() == again["seconds"].tolist()  # not trained again

    assert train_fusion(arguments["whole"]) == 0
    for name in ("fusion_fold0.weights.h5", "fusion_fold1.weights.h5", "oof_fusion.csv"):
        assert sha256_of(folders["killed"] / name) == sha256_of(folders["whole"] / name)


# Several networks


@pytest.fixture
def two(trained, artifacts, untrained, monkeypatch):
    """Artifacts with a second network, lite, whose logits are the tabular ones: its backbone is small, and not fitted."""
    import keras

    def small_lite(name, shape, classes=0):
        return small_backbone(keras.Input(shape), backbone_layer_name(name))

    monkeypatch.setattr("inference.backbones.efficientnet_lite", small_lite)
    assert train_fusion(command(trained.data, artifacts, "--name", "lite", "--backbone", "efficientnet-lite0")) == 0
    return artifacts


def weights_of(manifest):
    """Name -> SHA-256 of the weights files of each network."""
    return {
        name: [manifest["files"][file] for file in section["weights"]] for name, section in networks_of(manifest).items()
    }


def check_mean(oof):
    np.testing.assert_allclose(oof["network"], oof[["network_fusion", "network_lite"]].mean(axis=1), rtol=1e-6)


def test_a_network_of_another_name_stays_beside_the_first(trained, two):
    before, manifest = load_manifest(trained.artifacts), load_manifest(two)
    networks = networks_of(manifest)
    assert set(networks) == {"fusion", "lite"}
    assert networks["fusion"] == networks_of(before)["fusion"]
    assert weights_of(manifest)["fusion"] == weights_of(before)["fusion"]
    assert networks["lite"]["weights"] == ["fusion_lite_fold0.weights.h5", "fusion_lite_fold1.weights.h5"]
    assert networks["lite"]["settings"]["backbone"] == networks["lite"]["training"]["backbone"] == "efficientnet-lite0"
    assert best_network(manifest)["pauc"] == max(section["pauc"] for section in networks.values())
    assert all(checked_file(two, manifest, name) for name in manifest["files"])
    assert {path.name for path in two.iterdir()} == {*manifest["files"], "manifest.json"}
    assert "stacking" not in manifest  # it was made of the first alone
    assert set(manifest["network"]["scores"]) == {"tabular", "network_fusion", "network_lite", "network", "blend", "final"}
    for name, section in networks.items():
        assert manifest["network"]["scores"][f"network_{name}"]["pauc"] == section["pauc"]
    oof, alone = (pd.read_csv(folder / "oof_fusion.csv") for folder in (two, trained.artifacts))
    assert set(oof) == {*alone, "network_lite"}
    np.testing.assert_allclose(oof["network_fusion"], alone["network"], rtol=1e-6)
    np.testing.assert_allclose(oof["network_lite"], oof["tabular"], atol=1e-5)
    check_mean(oof)


@pytest.mark.parametrize(("again", "kept"), [("fusion", "lite"), ("lite", "fusion")])
def test_a_network_that_is_trained_again_replaces_itself_alone(trained, two, again, kept):
    before, table = load_manifest(two), pd.read_csv(two / "oof_fusion.csv")
    assert train_fusion(command(trained.data, two, "--name", again, "--seed", "5")) == 0
    manifest, oof = load_manifest(two), pd.read_csv(two / "oof_fusion.csv")
    assert set(networks_of(manifest)) == {"fusion", "lite"}
    assert networks_of(manifest)[kept] == networks_of(before)[kept]
    assert weights_of(manifest)[kept] == weights_of(before)[kept]
    assert not set(weights_of(manifest)[again]) & set(weights_of(before)[again])
    training = networks_of(manifest)[again]["training"]
    assert (training["backbone"], training["seed"]) == ("resnet50", 5)
    np.testing.assert_allclose(oof[f"network_{kept}"], table[f"network_{kept}"], rtol=1e-6)
    np.testing.assert_allclose(oof[f"network_{again}"], oof["tabular"], atol=1e-5)
    check_mean(oof)


@pytest.mark.parametrize("name", ["", "Lite", "a_b", "../up", "-x", "x" * 41, "image", "network", "context", "fold"])
def test_a_name_that_files_and_columns_cannot_have_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="--name"):
        train_fusion(command(tmp_path, tmp_path, f"--name={name}"))


def test_a_network_to_compare_has_no_name(tmp_path):
    with pytest.raises(InputError, match=r"--inputs image .*--name"):
        train_fusion(command(tmp_path, tmp_path, "--inputs", "image", "--name", "lite"))


# Networks of one input


def test_image_only_is_recorded_beside_the_fusion(trained, artifacts, untrained, capsys):
    assert train_fusion(command(trained.data, artifacts, "--inputs", "image")) == 0
    assert untrained == [["crop"], ["crop"]]
    manifest = load_manifest(artifacts)
    assert {"network", "image_only"} < set(manifest)
    assert manifest["files"]["oof_image_only.csv"] == sha256_of(artifacts / "oof_image_only.csv")
    alone = pd.read_csv(artifacts / "oof_image_only.csv")
    assert list(alone) == [ID, TARGET, "fold", "network"]
    assert alone[ID].tolist() == pd.read_csv(artifacts / "folds.csv")[ID].tolist()  # the holdout too
    rate = alone.query("fold >= 0")[TARGET].mean()
    np.testing.assert_allclose(alone["network"], np.log(rate / (1 - rate)), atol=1e-4)  # untrained: the base rate
    assert not list(artifacts.glob(".image*"))
    fusion = pd.read_csv(artifacts / "oof_fusion.csv")
    patients = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    scores = {"fusion": fusion["network"], "image": alone.set_index(ID)["network"][fusion[ID]]}
    table = bootstrap_scores(fusion[TARGET], patients.set_index(ID)["patient_id"][fusion[ID]], scores)
    assert f"- image only, paired: {table.difference('fusion', 'image').value:+.4f} [" in capsys.readouterr().out


def test_tabular_only_is_a_network_without_a_crop(trained, artifacts, untrained):
    assert train_fusion(command(trained.data, artifacts, "--inputs", "tabular")) == 0
    assert untrained == [["tabular"], ["tabular"]]
    assert "tabular_only" in load_manifest(artifacts)
    alone = pd.read_csv(artifacts / "oof_tabular_only.csv")
    tabular = pd.read_csv(artifacts / "oof_tabular.csv")
    assert alone[ID].tolist() == tabular[ID].tolist()
    np.testing.assert_allclose(alone["network"], tabular["tabular"], atol=1e-5)  # untrained: the tabular logit itself


# ISIC archives


def test_lesions_of_an_archive_join_the_training(trained, artifacts, archive_folder, small):
    before = pd.read_csv(artifacts / "oof_fusion.csv")["network"]
    archives = ["--archives", str(archive_folder), "--archives-mode", "joint"]
    assert train_fusion(command(trained.data, artifacts, *archives)) == 0
    after = pd.read_csv(artifacts / "oof_fusion.csv")["network"]
    assert np.isfinite(after).all()
    assert (after != before).all()
    network = best_network(load_manifest(artifacts))
    assert network["training"]["archives_mode"] == "joint"
    assert network["settings"]["inputs"] == ["crop", "tabular"]  # the kernel's network has no input for the source


def test_every_fold_starts_from_the_pretrained_backbone(trained, artifacts, archive_folder, small, monkeypatch):
    backbone, started = build_network(NetworkConfig(32)).get_layer("resnet50"), []

    def pretrain(archive, weights, config, *_):
        assert len(archive.labels) == 40
        backbone.save_weights(weights)

    def fit(network, data, *_):
        assert "archive" not in data.inputs  # its lesions do not join as well
        started.append(network.get_layer("resnet50").get_weights())
        return []

    monkeypatch.setattr("train.network.fold.pretrain_backbone", pretrain)
    monkeypatch.setattr("train.network.fold.fit", fit)
    archives = ["--archives", str(archive_folder), "--archives-mode", "pretrain"]
    assert train_fusion(command(trained.data, artifacts, *archives)) == 0
    assert len(started) == 2
    for weights in started:
        for expected, found in zip(backbone.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(expected, found)
    assert not list(artifacts.glob(".fusion*"))


# Bad input


def test_groups_that_are_too_small_are_refused_before_the_training(trained, artifacts, untrained, monkeypatch):
    monkeypatch.setattr("train.network.sampling.GROUP_LESIONS", 1000)
    with pytest.raises(InputError, match="--auxiliary"):
        train_fusion(command(trained.data, artifacts, "--auxiliary", "0.3"))
    assert not untrained
    assert not list(artifacts.glob(".fusion*"))


def test_a_lesion_without_image_is_refused_unless_it_may_pass(trained, artifacts, tmp_path, untrained):
    data = shutil.copytree(trained.data, tmp_path / "data")
    fold = pd.read_csv(artifacts / "folds.csv").set_index(ID)["fold"]
    missing, broken = fold[fold >= 0].index[:2]
    with h5py.File(data / "train-image.hdf5", "r+") as file:
        del file[missing]
        del file[broken]
        file[broken] = np.bytes_(b"no picture")
    before = (artifacts / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=rf"{missing}.* \(2 lesions .* --missing-images pass"):
        train_fusion(command(data, artifacts))
    assert (artifacts / "manifest.json").read_bytes() == before
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
