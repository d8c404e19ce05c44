import json
import re
import signal

import pytest

from evaluation import environment
from evaluation.environment import environment_lines, main, pins, probe, public
from inference.artifacts import FORMAT
from inference.schema import read_metadata

NAMES = (
    *("project", "python", "packages", "pins", "system", "processor", "memory", "disk", "NVIDIA driver", "TensorFlow"),
    *("variables", "data, train", "data, test", "images, train", "images, test"),
    "artifacts",
)
STAGES = ("folds", "tabular", "network", "files")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """TensorFlow's import takes seconds."""
    monkeypatch.setattr(environment, "PROBE", "print('first'); print('imports')")


def facts(data, artifacts):
    return dict(line.split(": ", 1) for line in environment_lines(data, artifacts))


def test_the_lines_have_what_was_found(trained):
    found = facts(trained.data, trained.artifacts)
    assert tuple(found) == NAMES + STAGES
    rows = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    counts = f"160 rows, 55 columns, {rows['patient_id'].nunique()} patients, {rows['target'].sum()} malignant"
    assert found["data, train"] == f"data (synthetic): {counts}"
    assert found["images, train"].startswith("160 in train-image.hdf5")
    manifest = json.loads((trained.artifacts / "manifest.json").read_text())
    assert found["artifacts"].startswith(f"artifacts: {manifest['format']}, manifest.json ")
    assert "folds, tabular, network" in found["artifacts"]
    assert f"{len(manifest['tabular']['features'])} features" in found["tabular"]
    assert f"{manifest['tabular']['scores']['pauc']:.4f}" in found["tabular"]
    assert found["network"].startswith("fusion: 2 of resnet50, none weights, 32 pixels, 1 epochs")
    assert found["files"] == f"{len(manifest['files'])} named, all as in the manifest"
    assert found["TensorFlow"] == "imports"


def test_the_real_rows_are_counted(real_data, tmp_path):
    assert facts(real_data, tmp_path)["data, train"].endswith("5,115 rows, 55 columns, 728 patients, 315 malignant")


def test_nothing_there_is_said_and_the_status_is_0(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "no"), "--artifacts", str(tmp_path / "none")]) == 0
    printed = capsys.readouterr().out
    assert [line.split(": ")[0] for line in printed.splitlines()] == list(NAMES)
    assert str(tmp_path) not in printed
    assert "artifacts: none has no manifest.json" in printed


@pytest.mark.parametrize("content", ["", "[]", '{"format": 3}', json.dumps({"format": FORMAT, "files": 1, "folds": []})])
def test_a_broken_manifest_is_a_line(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    (tmp_path / "train-metadata.csv").write_text("")
    found = facts(tmp_path, tmp_path)
    assert tuple(found)[: len(NAMES)] == NAMES
    assert "not JSON" in found["artifacts"] or "format" in found["artifacts"] or "not known" in found["artifacts"]
    assert "not known" in found["data, train"]


def test_home_folders_and_keys_are_left_out(monkeypatch, tmp_path):
    home = tmp_path / "users" / "jane"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XLA_FLAGS", f"{home}/data:/home/john/data:/Users/jim/x")
    monkeypatch.setenv("TF_ENABLE_KEY", "0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    monkeypatch.setenv("TF_TOKEN_app", "secret")
    (home / "artifacts").mkdir(parents=True)
    (home / "artifacts" / "manifest.json").write_text("{")
    text = "\n".join(environment_lines(home / "data", home / "artifacts"))
    assert not re.search("jane|john|jim|0123456789abcdef|secret", text)
    assert "XLA_FLAGS=~/data:~/data:~/x" in text
    assert public("a\n b") == "a b"


def test_how_a_process_ends_is_a_fact():
    assert probe("import os, signal; os.kill(os.getpid(), signal.SIGILL)") == f"crashes ({signal.SIGILL.name})"
    assert probe("raise ImportError('no CUDA')") == "ImportError: no CUDA"


def test_differences_from_the_pins_are_named(monkeypatch):
    monkeypatch.setattr(environment, "package_versions", lambda names: dict.fromkeys(names, "0.1") | {"h5py": "3.16.0"})
    assert "keras 0.1 (==3.13.2)" in pins()
    assert "h5py" not in pins()
