"""What several rooms' tests need: a small made competition folder, and the real one where it is there."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from eager import without_graphs

from evaluation.dry_run import mount_test_folder, rows_to_score
from inference.schema import ID, read_metadata
from train.folds import make_folds
from train.fusion import train_fusion
from train.synthetic.__main__ import main as synthesise
from train.tabular import train_tabular


@pytest.fixture
def eager():
    """A test without graphs."""
    with without_graphs():
        yield


@pytest.fixture(scope="session")
def twin(tmp_path_factory):
    """A competition folder of 60 made lesions of 8 patients, 12 of them malignant. Shared: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("twin") / "competition"
    synthesise(["--out", str(folder), "--patients", "8", "--lesions", "60", "--prevalence", "0.2", "--jobs", "1"])
    return folder


@pytest.fixture
def metadata(twin):
    """The twin's train rows, fresh for every test."""
    return read_metadata(twin / "train-metadata.csv", labelled=True)


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
    """The folder of the real earlier archives."""
    return real_folder("isic-archives", "ISIC_ARCHIVES", "2019")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The whole training, small: `.data` (a twin) and `.artifacts` (two folds, one seed, 32-px networks). Read only."""
    folder = tmp_path_factory.mktemp("trained")
    data, artifacts, parameters = folder / "data", folder / "artifacts", folder / "few_trees.json"
    parameters.write_text('{"iterations": 20}')
    synthesise(["--out", str(data), "--patients", "16", "--lesions", "160", "--prevalence", "0.2", "--jobs", "1"])
    where = ["--data", str(data), "--artifacts", str(artifacts)]
    make_folds([*where, "--folds", "2", "--holdout", "0.25"])
    train_tabular([*where, "--seeds", "1", "--params", str(parameters)])
    network = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16"]
    with without_graphs():
        train_fusion([*where, *network, "--learning-rate", "0.003"])
    return SimpleNamespace(data=data, artifacts=artifacts)


@pytest.fixture(scope="session")
def mounted(trained, tmp_path_factory):
    """The holdout as a test folder, and its rows."""
    folder = tmp_path_factory.mktemp("mounted") / "competition"
    rows = rows_to_score(trained.data, trained.artifacts, "holdout")
    mount_test_folder(trained.data, rows[ID].tolist(), folder)
    return folder


@pytest.fixture(scope="session")
def tabular_only(trained, tmp_path_factory):
    """The artifacts before the networks were trained: quick to score with."""
    folder = tmp_path_factory.mktemp("tabular_only")
    for path in trained.artifacts.glob("tabular_*.cbm"):
        shutil.copy(path, folder)
    manifest = json.loads((trained.artifacts / "manifest.json").read_text())
    del manifest["network"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def archive_folder(tmp_path_factory):
    """An archive folder as `train.archives` writes it: 40 made lesions of 8 other patients, 12 malignant. Read only."""
    folder = tmp_path_factory.mktemp("archive") / "archives"
    synthesise(
        ["--out", str(folder), "--patients", "8", "--lesions", "40", "--prevalence", "0.3", "--seed", "77", "--jobs", "1"]
    )
    made = read_metadata(folder / "train-metadata.csv", labelled=True)
    columns = ["isic_id", "target", "patient_id", "lesion_id", "age_approx", "sex", "anatom_site_general"]
    words = {0: ["nevus", "seborrheic keratosis", ""], 1: ["melanoma", "basal cell carcinoma"]}
    diagnosis = [words[target][row % len(words[target])] for row, target in enumerate(made["target"])]
    table = made[columns].assign(diagnosis=diagnosis, source="ISIC 2018", image_type="dermoscopic")
    table.to_csv(folder / "train-metadata.csv", index=False)
    return folder
