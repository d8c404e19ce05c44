"""Trainings in this process, in several processes, on a cluster, and with a worker killed in the middle: the same bytes."""

import shutil

import h5py
import numpy as np
import pytest
from dask_cluster import cluster
from small_network import small_backbone

from inference.artifacts import load_manifest
from train.folds import make_folds
from train.fusion import train_fusion
from train.tabular import train_tabular

pytestmark = pytest.mark.integration
NETWORK = ["--weights", "none", "--image-size", "32", "--epochs", "3", "--batch-size", "16", "--negatives-per-positive", "2"]

#: Run by a worker as it starts: a small backbone, and the first worker that has finished an epoch is killed.
PRELOAD = """
import os, signal
from pathlib import Path
import keras
from small_network import small_backbone
from train.network.checkpoint import Checkpoint

keras.applications.ResNet50 = small_backbone
Checkpoint.really_save = getattr(Checkpoint, "really_save", Checkpoint.save)  # Dask runs this file twice

def save_and_die(checkpoint, model, record):
    checkpoint.really_save(model, record)
    try:
        Path({killed!r}).touch(exist_ok=False)
    except FileExistsError:
        return
    Path({killed!r}).write_text(f"{{os.getpid()}} {{checkpoint.path}}")
    os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save = save_and_die
"""


@pytest.fixture(scope="module")
def begun(synthetic_data, tmp_path_factory):
    """Artifacts with folds and tabular scores, and the options of the tabular stage."""
    folder = tmp_path_factory.mktemp("begun")
    parameters = folder / "few_trees.json"
    parameters.write_text('{"iterations": 20}')
    where = ["--data", str(synthetic_data), "--artifacts", str(folder / "artifacts")]
    make_folds([*where, "--folds", "2", "--holdout", "0"])
    train_tabular([*where, "--seeds", "2", "--params", str(parameters)])
    return folder / "artifacts", ["--seeds", "2", "--params", str(parameters)]


@pytest.fixture
def artifacts(begun, tmp_path):
    """A copy of them to write into."""
    return shutil.copytree(begun[0], tmp_path / "artifacts")


def arrays(path):
    """All that a weights file holds, by name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("place", ["processes", "cluster"])
def test_tabular_models_are_the_same_wherever_they_are_trained(synthetic_data, begun, artifacts, place, request):
    kept, options = begun
    workers = ["--jobs", "2"] if place == "processes" else ["--cluster", request.getfixturevalue("two_workers")]
    train_tabular(["--data", str(synthetic_data), "--artifacts", str(artifacts), *options, *workers])
    assert (artifacts / "oof_tabular.csv").read_bytes() == (kept / "oof_tabular.csv").read_bytes()
    assert load_manifest(artifacts)["tabular"]["scores"] == load_manifest(kept)["tabular"]["scores"]


def test_a_worker_killed_while_it_trains_changes_nothing(synthetic_data, begun, artifacts, tmp_path, monkeypatch):
    whole = shutil.copytree(begun[0], tmp_path / "whole")
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    train_fusion(["--data", str(synthetic_data), "--artifacts", str(whole), *NETWORK])

    killed, preload = tmp_path / "killed", tmp_path / "preload.py"
    preload.write_text(PRELOAD.format(killed=str(killed)))
    with cluster(2, tmp_path / "cluster", preload) as (address, processes):
        train_fusion(["--data", str(synthetic_data), "--artifacts", str(artifacts), *NETWORK, "--cluster", address])
        dead = [process.pid for process in processes if process.poll() is not None]
    pid, checkpoint = killed.read_text().split()
    assert dead == [int(pid)]
    assert str(artifacts) in checkpoint  # where the other worker found it, one epoch old
    assert (artifacts / "oof_fusion.csv").read_bytes() == (whole / "oof_fusion.csv").read_bytes()
    for name in ("fusion_fold0.weights.h5", "fusion_fold1.weights.h5"):
        ours, theirs = arrays(artifacts / name), arrays(whole / name)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert not list(artifacts.glob(".*"))  # neither the unfinished training nor a mark
    names = sorted(path.name for path in (tmp_path / "artifacts-logs").iterdir())
    assert names == ["fusion-curves.png", "fusion-history.csv", "tensorboard"]
