"""Fixtures that several packages share: small synthetic folders, a small training, and the real data where it is there.

Folders that take seconds to make are made once per test run and shared by all workers of pytest-xdist: read them, do not
write into them. A test that takes such a training, TensorFlow, a browser or a cluster has the marker ``integration``;
``make test-fast`` leaves those out. ``slow`` tests run in ``make test-all`` only.
"""

import fcntl
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from eager import without_graphs

import utils
from evaluation.dry_run import mount_test_folder, rows_to_score
from inference.schema import ID, read_metadata
from train.folds import make_folds
from train.fusion import train_fusion
from train.stacking import train_stacking
from train.synthetic.__main__ import main as make_synthetic
from train.tabular import train_tabular

#: Fixtures whose tests are ``integration`` tests.
INTEGRATION_FIXTURES = {"trained", "mounted", "tabular_only", "eager"}


def pytest_configure():
    """Lets Ctrl-C interrupt, also where the run was started in the background of a script, which ignores it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Marks the tests that use a training as ``integration``."""
    for item in items:
        if INTEGRATION_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def plain_output(monkeypatch):
    """Output as without --quiet and --verbose, whatever a test sets, and without colours."""
    monkeypatch.setattr(utils.OUTPUT, "verbosity", 0)
    monkeypatch.setattr(utils.OUTPUT, "held", "")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id):
    """``shared_folder(name, make)``: a folder that ``make(folder)`` fills once per test run, whichever worker asks first."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def shared(name, make):
        folder = base / f"shared-{name}"
        with (base / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                unfinished = base / f"unfinished-{name}"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return shared


@pytest.fixture(scope="session", autouse=True)
def logits_of_few_lesions_are_kept():
    """Lets ``train.tabular`` keep its models on the fixtures' few lesions, where none can show a signal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.tabular.NO_SIGNAL", 0.0)
        yield


@pytest.fixture
def eager():
    """A test without TensorFlow graphs: a training of a few steps takes seconds where tracing ResNet50 takes many."""
    with without_graphs():
        yield


@pytest.fixture(scope="session")
def synthetic_data(shared_folder):
    """A competition folder of 60 synthetic lesions of 8 patients, 12 of them malignant."""

    def make(folder):
        make_synthetic(["--out", str(folder), "--patients", "8", "--lesions", "60", "--prevalence", "0.2", "--jobs", "1"])

    return shared_folder("synthetic", make)


@pytest.fixture
def metadata(synthetic_data):
    """The train rows of ``synthetic_data``, fresh for every test."""
    return read_metadata(synthetic_data / "train-metadata.csv", labelled=True)


def real_folder(name, variable, must_hold):
    """A folder of real data: the one that ``variable`` names, else ../shared/data/``name`` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    folder = Path(os.environ.get(variable, beside))
    if not (folder / must_hold).exists():
        pytest.skip(f"there is no real data in {folder}; name its folder in {variable} to run this test")
    return folder


@pytest.fixture(scope="session")
def real_data():
    """The real competition folder."""
    return real_folder("isic-2024-challenge", "ISIC_DATA", "train-metadata.csv")


@pytest.fixture(scope="session")
def real_archives():
    """The folder of the real ISIC archives."""
    return real_folder("isic-archives", "ISIC_ARCHIVES", "2019")


@pytest.fixture(scope="session")
def real_release():
    """The folder of the real official release of SLICE-3D, permissive."""
    return real_folder("isic-2024-permissive", "ISIC_RELEASE", "ISIC_2024_Permissive_Training_GroundTruth.csv")


@pytest.fixture(scope="session")
def trained(shared_folder):
    """The main path, small: ``.data`` (160 synthetic lesions), ``.artifacts`` (two folds, one seed, 32 pixels)."""

    def make(folder):
        data, artifacts, parameters = folder / "data", folder / "artifacts", folder / "few_trees.json"
        parameters.write_text('{"iterations": 20}')
        make_synthetic(["--out", str(data), "--patients", "16", "--lesions", "160", "--prevalence", "0.2", "--jobs", "1"])
        where = ["--data", str(data), "--artifacts", str(artifacts)]
        make_folds([*where, "--folds", "2", "--holdout", "0.25"])
        train_tabular([*where, "--seeds", "1", "--params", str(parameters)])
        network = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16"]
        with without_graphs():
            train_fusion([*where, *network, "--learning-rate", "0.003"])
        train_stacking([*where, "--seeds", "1", "--params", str(parameters)])

    folder = shared_folder("trained", make)
    return SimpleNamespace(data=folder / "data", artifacts=folder / "artifacts")


@pytest.fixture(scope="session")
def mounted(trained, shared_folder):
    """The holdout of ``trained`` as a test folder."""

    def make(folder):
        rows = rows_to_score(trained.data, trained.artifacts, "holdout")
        mount_test_folder(trained.data, rows[ID].tolist(), folder / "competition")

    return shared_folder("mounted", make) / "competition"


@pytest.fixture(scope="session")
def tabular_only(trained, shared_folder):
    """The artifacts of ``trained`` before the networks: quick to score with."""

    def make(folder):
        for path in trained.artifacts.glob("tabular_*.cbm"):
            shutil.copy(path, folder)
        manifest = json.loads((trained.artifacts / "manifest.json").read_text())
        del manifest["network"], manifest["stacking"]
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return shared_folder("tabular_only", make)


@pytest.fixture(scope="session")
def archive_folder(shared_folder):
    """A folder as ``train.archives`` writes it: 40 synthetic lesions of 8 other patients, 12 malignant."""

    def make(folder):
        make_synthetic(
            [
                "--out",
                str(folder),
                "--patients",
                "8",
                "--lesions",
                "40",
                "--prevalence",
                "0.3",
                "--seed",
                "77",
                "--jobs",
                "1",
            ]
        )
        made = read_metadata(folder / "train-metadata.csv", labelled=True)
        columns = ["isic_id", "target", "patient_id", "lesion_id", "age_approx", "sex", "anatom_site_general"]
        words = {0: ["nevus", "seborrheic keratosis", ""], 1: ["melanoma", "basal cell carcinoma"]}
        diagnosis = [words[target][row % len(words[target])] for row, target in enumerate(made["target"])]
        table = made[columns].assign(diagnosis=diagnosis, source="ISIC 2018", image_type="dermoscopic")
        table.to_csv(folder / "train-metadata.csv", index=False)

    return shared_folder("archive", make)
