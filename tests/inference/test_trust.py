"""What the kernel never does: reach the network, unpickle, run text, open a file that the manifest does not name."""

import ast

import pytest

from inference.artifacts import checked_file, load_manifest
from inference.build_kernel import ROOT
from utils import InputError


@pytest.mark.integration
def test_nothing_is_asked_of_a_network(kernel_run):
    parts = ("socket", "urllib", "http", "ftplib", "smtplib")
    calls = {event for event, _ in kernel_run.events if event.partition(".")[0] in parts}
    assert calls <= {"socket.__new__", "socket.bind"}  # urllib3 checks on import whether IPv6 exists; it connects to nothing


@pytest.mark.integration
def test_nothing_is_unpickled_and_no_program_is_started(kernel_run):
    assert not {event for event, _ in kernel_run.events} & {"pickle.find_class", "os.system", "os.exec"}
    started = {what for event, what in kernel_run.events if event == "subprocess.Popen"}
    assert started <= {"uname", "lscpu"}  # the standard library's platform and NumPy ask for the machine


@pytest.mark.integration
def test_only_files_that_the_manifest_names_are_opened(kernel_run):
    names = [what.rpartition("/") for event, what in kernel_run.events if event == "open"]
    opened = {name for folder, _, name in names if folder.endswith(kernel_run.artifacts.name)}
    manifest = load_manifest(kernel_run.artifacts)
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
