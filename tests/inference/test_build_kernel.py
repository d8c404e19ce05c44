import ast
import sys

import pytest

from inference.build_kernel import ROOT, build_kernel, main
from utils import InputError

#: What the kernel may import besides the standard library: packages of the Kaggle image.
KAGGLE_PACKAGES = {"catboost", "h5py", "keras", "numpy", "pandas", "scipy", "tensorflow"}
#: Parts of the standard library that could reach out of the kernel or run what they read.
UNWANTED = {
    "ctypes",
    "ftplib",
    "http",
    "marshal",
    "multiprocessing",
    "pickle",
    "shelve",
    "socket",
    "ssl",
    "subprocess",
    "urllib",
}


@pytest.fixture(scope="module")
def tree():
    return ast.parse((ROOT / "kernel.py").read_text(encoding="utf-8"))


def test_the_committed_kernel_is_what_the_rooms_make():
    assert (ROOT / "kernel.py").read_bytes() == build_kernel().encode()
    assert main(["--check"]) == 0


def test_an_outdated_kernel_is_refused(monkeypatch, tmp_path):
    (tmp_path / "inference").mkdir()
    for name in ROOMS:
        text = (ROOT / "inference" / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / "inference" / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr("inference.build_kernel.ROOT", tmp_path)
    with pytest.raises(InputError, match=r"python -m inference\.build_kernel"):
        main(["--check"])
    assert main([]) == 0
    assert (tmp_path / "kernel.py").read_bytes() == (ROOT / "kernel.py").read_bytes()


def test_it_imports_only_the_standard_library_and_the_kaggle_image(tree):
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == KAGGLE_PACKAGES
    assert not imported & UNWANTED


def test_it_calls_nothing_that_runs_text(tree):
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}


def test_docstrings_comments_and_order_are_kept():
    kernel = (ROOT / "kernel.py").read_text(encoding="utf-8")
    places = []
    for name in ROOMS:
        room = (ROOT / "inference" / f"{name}.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(room), clean=False) in kernel
        comments = [line.strip() for line in room.splitlines() if line.strip().startswith("#")]
        assert all(comment in kernel for comment in comments)
        places.append(kernel.index(f"\n# inference/{name}.py\n"))
    assert places == sorted(places)


def test_every_definition_of_the_rooms_is_there_once(tree):
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))
    for room in ROOMS:
        text = (ROOT / "inference" / f"{room}.py").read_text(encoding="utf-8")
        assert {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)} <= set(names)


@pytest.fixture
def rooms(tmp_path):
    """A folder of empty rooms to write into."""
    for name in ROOMS:
        (tmp_path / f"{name}.py").write_text('"""Empty."""\n', encoding="utf-8")
    return tmp_path


def test_two_rooms_cannot_define_the_same_name(rooms):
    (rooms / "schema.py").write_text("WIDTH = 3\n")
    (rooms / "images.py").write_text("WIDTH: int = 4\n")
    with pytest.raises(InputError, match=r"'WIDTH' is defined in inference/schema\.py and images\.py"):
        build(rooms)


@pytest.mark.parametrize(
    "line",
    ["import inference.files", "from inference import files", "from inference.files import a as b", "from .files import a"],
)
def test_an_import_that_one_file_cannot_have_is_refused(rooms, line):
    (rooms / "schema.py").write_text(f'"""Room."""\n\n{line}\n')
    with pytest.raises(InputError, match=r"inference/schema\.py line 3"):
        build(rooms)


def test_imports_are_merged_and_those_of_rooms_go(rooms):
    (rooms / "files.py").write_text("from pathlib import Path\n\nimport numpy as np\n\nHERE = Path()\n")
    (rooms / "schema.py").write_text("import json\nfrom pathlib import Path, PurePath\n\nfrom inference.files import HERE\n")
    text = build(rooms)
    assert "import json\nfrom pathlib import Path, PurePath\n\nimport numpy as np\n" in text
    assert "inference.files import" not in text
    assert text.count("import Path") == 1
