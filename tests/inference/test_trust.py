"""What the kernel never does: reach the network, unpickle, run text, open a file that the manifest does not name."""

import ast
import json
import shutil
import subprocess
import sys

import pytest

from evaluation.dry_run import without_network
from inference.artifacts import checked_file, load_manifest
from inference.build_kernel import ROOT
from utils import InputError

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


@pytest.fixture(scope="module")
def watched(trained, mounted, tmp_path_factory):
    """The kernel in a process without a network, with strange files among its artifacts: (event, what) of all it did."""
    folder = tmp_path_factory.mktemp("watched")
    artifacts = shutil.copytree(trained.artifacts, folder / "artifacts")
    shutil.copy(artifacts / "fusion_fold0.weights.h5", artifacts / "fusion_fold7.weights.h5")
    shutil.copy(artifacts / "tabular_fold0_seed0.cbm", artifacts / "tabular_fold7_seed0.cbm")
    (artifacts / "model.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    (folder / "watched.py").write_text(WATCHED)
    command = [*without_network()[0], sys.executable, "-I", str(folder / "watched.py"), str(ROOT / "kernel.py")]
    command += [str(folder / "events.json"), "--competition", str(mounted), "--artifacts", str(artifacts)]
    subprocess.run([*command, "--output", str(folder / "submission.csv")], check=True, cwd=folder, capture_output=True)
    assert json.loads((folder / "run.json").read_text())["fallbacks"] == {}
    return artifacts, json.loads((folder / "events.json").read_text())


def test_nothing_is_asked_of_a_network(watched):
    calls = {
        event for event, _ in watched[1] if event.partition(".")[0] in ("socket", "urllib", "http", "ftplib", "smtplib")
    }
    assert calls <= {"socket.__new__", "socket.bind"}  # urllib3 checks on import whether IPv6 exists; no connection is made


def test_nothing_is_unpickled_and_no_program_is_started(watched):
    assert not {event for event, _ in watched[1]} & {"pickle.find_class", "os.system", "os.exec"}
    started = {what for event, what in watched[1] if event == "subprocess.Popen"}
    assert started <= {"uname", "lscpu"}  # the standard library's platform and NumPy ask for the machine


def test_only_files_that_the_manifest_names_are_opened(watched):
    artifacts, events = watched
    opened = {what.rpartition("/")[2] for event, what in events if event == "open" and what.startswith(str(artifacts))}
    manifest = load_manifest(artifacts)
    assert "fusion_fold0.weights.h5" in opened
    assert opened <= {"manifest.json", *manifest["files"]}


@pytest.mark.parametrize("name", ["../secret.cbm", "/etc/passwd", "sub/model.cbm", ""])
def test_a_manifest_cannot_name_a_file_of_another_folder(tmp_path, name):
    """The artifact folder is flat: a name with a path in it is refused even where the hash is right."""
    with pytest.raises(InputError, match="only files named there are opened"):
        checked_file(tmp_path, {"files": {name: "0" * 64}}, name)


def test_the_code_has_no_lambda_layer_and_loads_no_saved_model():
    tree = ast.parse((ROOT / "kernel.py").read_text(encoding="utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"Lambda", "load_model_from_json", "from_config", "model_from_json", "TFSMLayer", "py_function"}
    assert not attributes & {"get_file", "urlopen", "urlretrieve", "system", "popen", "Popen"}
    loaders = [node.func.value for node in ast.walk(tree) if is_call_of(node, "load_model")]
    assert [ast.unparse(loader) for loader in loaders] == ["CatBoostClassifier()"]


def is_call_of(node, name):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
