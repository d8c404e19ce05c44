"""Artifacts with small networks, for the tests of the kernel that are not about ResNet50; and a run of the built kernel."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
from small_network import a_network, small_backbone

from evaluation.dry_run import without_network
from inference.artifacts import (
    MANIFEST,
    best_network,
    checked_file,
    fold_network_file,
    load_manifest,
    tabular_model_file,
)
from inference.build_kernel import ROOT
from inference.files import sha256_of


@pytest.fixture(scope="session")
def small_artifacts(trained, tabular_only, shared_folder):
    """The artifacts of ``trained`` with two networks of a small backbone; the final logits are the networks' means."""

    def make(folder):
        manifest = load_manifest(trained.artifacts)
        for name in tabular_only.glob("*.cbm"):
            shutil.copy(checked_file(trained.artifacts, manifest, name.name), folder)
        for fold in (0, 1):
            network = a_network()
            network.get_layer("correction").bias.assign([fold + 0.5])
            network.save_weights(folder / fold_network_file(fold))
            manifest["files"][fold_network_file(fold)] = sha256_of(folder / fold_network_file(fold))
        best_network(manifest)["settings"] |= {"head_units": 8, "tabular_mean": 0.0, "tabular_std": 1.0}
        manifest["network"]["combination"] = {"kind": "network"}
        del manifest["stacking"]
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return shared_folder("small_artifacts", make)


@pytest.fixture
def small_networks():
    """The kernel builds its networks around the small backbone."""
    with mock.patch("keras.applications.ResNet50", small_backbone):
        yield


#: Runs kernel.py and records the events of Python's audit hooks.
WATCHED = """
import json, runpy, sys
events = []
def note(event, arguments):
    if event in ("open", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec"):
        events.append([event, str(arguments[0])])
    elif event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")):
        events.append([event, str(arguments)])
sys.addaudithook(note)
kernel, report = sys.argv[1], sys.argv[2]
sys.argv = [kernel, *sys.argv[3:]]
try:
    runpy.run_path(kernel, run_name="__main__")
finally:
    with open(report, "w") as file:
        json.dump(events, file)
"""


@pytest.fixture(scope="session")
def kernel_run(trained, mounted, shared_folder):
    """The built kernel as Kaggle runs it: no arguments but where the mounts are, isolated, offline, from an empty folder.

    Among its artifacts are files that the manifest does not name. Has ``.artifacts``, ``.working`` (what it wrote) and
    ``.events``, (name, argument) of Python's audit hooks.
    """

    def make(folder):
        root, working = folder / "input", folder / "working"
        working.mkdir()
        shutil.copytree(mounted, root / "competitions" / "isic-2024-challenge")
        artifacts = shutil.copytree(trained.artifacts, root / "datasets" / "somebody" / "slice-3d-fusion-artifacts")
        shutil.copy(artifacts / fold_network_file(0), artifacts / fold_network_file(7))
        shutil.copy(artifacts / tabular_model_file(0, 0), artifacts / tabular_model_file(7, 0))
        (artifacts / "model.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
        (folder / "watched.py").write_text(WATCHED)
        command = [*without_network()[0], sys.executable, "-I", str(folder / "watched.py"), str(ROOT / "kernel.py")]
        command += [str(folder / "events.json"), "--input-root", str(root)]
        done = subprocess.run(command, cwd=working, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (working / "log").write_text(done.stdout)

    folder = shared_folder("kernel_run", make)
    artifacts = folder / "input" / "datasets" / "somebody" / "slice-3d-fusion-artifacts"
    events = json.loads((folder / "events.json").read_text())
    return SimpleNamespace(artifacts=artifacts, working=folder / "working", events=events)
