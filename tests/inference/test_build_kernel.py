import ast
import re
import sys

import pytest

from inference.build_kernel import KERNEL, LIBRARIES, ROOT, TRAINING, build_kernel, build_training, bundle, main, path_of
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


@pytest.fixture(scope="module", params=["kernel", "training"])
def built(request):
    """The list of modules and the file that they make."""
    if request.param == "kernel":
        return KERNEL, build_kernel()
    return TRAINING, build_training({"folds": ["--folds", "3"], "fusion": [["--epochs", "8"]]}, hours=2.5)


@pytest.fixture(scope="module")
def tree():
    return ast.parse((ROOT / "kernel.py").read_text(encoding="utf-8"))


def source_of(name):
    return (ROOT / path_of(name)).read_text(encoding="utf-8")


def definitions(text):
    return [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


# kernel.py


def test_the_committed_kernel_is_what_the_modules_make():
    assert (ROOT / "kernel.py").read_bytes() == build_kernel().encode()
    assert main(["--check"]) == 0


def test_an_outdated_kernel_is_refused_and_built_again(monkeypatch, tmp_path):
    for name in KERNEL:
        (tmp_path / path_of(name)).parent.mkdir(exist_ok=True)
        (tmp_path / path_of(name)).write_text(source_of(name), encoding="utf-8")
    monkeypatch.setattr("inference.build_kernel.ROOT", tmp_path)
    with pytest.raises(InputError, match=r"python -m inference\.build_kernel"):
        main(["--check"])
    assert not (tmp_path / "kernel.py").exists()
    assert main([]) == 0
    assert (tmp_path / "kernel.py").read_bytes() == (ROOT / "kernel.py").read_bytes()


def test_all_of_inference_is_in_the_list_but_the_builder():
    modules = {f"inference.{path.stem}" for path in (ROOT / "inference").glob("*.py")}
    assert set(KERNEL) == modules - {"inference.__init__", "inference.build_kernel"} | {"utils", "terminal"}


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


# Either file


def test_the_table_of_contents_has_the_line_of_each_module(built):
    names, text = built
    contents = re.findall(r"^ +(\d+)  (\S+\.py)$", ast.get_docstring(ast.parse(text), clean=False), re.MULTILINE)
    assert [path for _, path in contents] == [path_of(name) for name in names]
    lines = text.splitlines()
    assert [lines[int(line) - 1] for line, _ in contents] == [f"# {path}" for _, path in contents]


def test_definitions_are_those_of_the_modules_in_their_order_each_once(built):
    names, text = built
    found = [node.name for node in definitions(text)]
    assert len(found) == len(set(found))
    sources = [ast.get_source_segment(source_of(name), node) for name in names for node in definitions(source_of(name))]
    places = [text.index(source) for source in sources if source in text]
    assert places == sorted(places)
    assert len(places) == len(found)


def test_docstrings_and_comments_are_kept(built):
    names, text = built
    for name in [each for each in names if each not in LIBRARIES]:
        source = source_of(name)
        assert ast.get_docstring(ast.parse(source), clean=False) in text
    comments = [line for line in source_of(names[-1]).splitlines() if line.strip().startswith("#")]
    assert comments
    assert set(comments) <= set(text.splitlines())


def test_no_module_of_the_project_is_imported_and_nothing_twice(built):
    names, text = built
    packages = {name.split(".")[0] for name in names}
    bound = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert getattr(node, "module", node.names[0].name).split(".")[0] not in packages
            bound += [alias.asname or alias.name for alias in node.names]
    bound.remove("signal")  # which the code before the other imports needs
    assert len(bound) == len(set(bound))


def test_every_name_that_is_used_is_bound(built):
    tree = ast.parse(built[1])
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)}
    bound |= {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert used - bound <= set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__) | {"__file__"}


def test_the_training_script_ends_with_its_settings():
    text = build_training({"folds": ["--folds", "3"], "fusion": [["--epochs", "8"]]}, hours=2.5)
    call = ast.parse(text).body[-1].body[0].value
    assert ast.unparse(call.func) == "run_part"
    assert ast.literal_eval(call.args[0]) == {"folds": ["--folds", "3"], "fusion": [["--epochs", "8"]]}
    assert ast.literal_eval(call.keywords[0].value) == 2.5


# What cannot be one file


@pytest.fixture
def joined(tmp_path):
    """Writes modules "files", "schema" and "last" of the package inference, and joins them."""

    def join(
        files="A = 1\n",
        schema="B = 2\n",
        last="from inference.files import A\nfrom inference.schema import B\n\nC = A + B\n",
    ):
        (tmp_path / "inference").mkdir()
        for name, text in {"files": files, "schema": schema, "last": last}.items():
            (tmp_path / "inference" / f"{name}.py").write_text(text, encoding="utf-8")
        return bundle(["inference.files", "inference.schema", "inference.last"], '"""Contents:\n{contents}\n"""\n', tmp_path)

    return join


def test_imports_are_merged_and_those_between_modules_dropped(joined):
    text = joined(
        files="from pathlib import Path\n\nimport numpy as np\n\nA = np.array([Path()])\n",
        schema="import json\nfrom pathlib import Path, PurePath\n\nfrom inference.files import A\n\nB = json, PurePath(A)\n",
        last="from inference.schema import B\n\nC = B\n",
    )
    assert "import json\nfrom pathlib import Path, PurePath\n\nimport numpy as np\n" in text
    assert "inference.files import" not in text
    assert text.count("import Path") == 1


def test_what_is_not_used_is_left_out_with_its_imports(joined):
    text = joined(files="import json\n\nA = 1\n\n\ndef unused():\n    return helper()\n\n\ndef helper():\n    return json\n")
    assert "A = 1" in text
    assert "unused" not in text
    assert "helper" not in text
    assert "json" not in text


def test_statements_that_bind_nothing_are_kept(joined):
    text = joined(files="import os\n\nNAME = 'x'\nos.environ.setdefault(NAME, '1')\nA = 1\n")
    assert "NAME = 'x'\nos.environ.setdefault(NAME, '1')\nA = 1\n" in text
    assert "import os\n" in text


def test_two_modules_cannot_bind_one_name(joined):
    with pytest.raises(InputError, match=r"'X' is bound in inference/files\.py and in inference/schema\.py"):
        joined(files="X = 1\nA = X\n", schema="X: int = 2\nB = X\n")


def test_a_name_cannot_be_two_imports(joined):
    with pytest.raises(InputError, match="'join' is bound in"):
        joined(files="from os.path import join\n\nA = join\n", schema="from shlex import join\n\nB = join\n")


@pytest.mark.parametrize(
    "line",
    [
        "import inference.files",
        "from inference import files",
        "from inference.files import A as a",
        "from .files import A",
        "from inference.last import C",
        "def late():\n    from inference.files import A",
    ],
)
def test_an_import_that_one_file_cannot_have_is_refused(joined, line):
    with pytest.raises(InputError, match=r"inference/schema\.py line [34]"):
        joined(schema=f'"""Module."""\n\n{line}\n')


def test_a_module_that_is_missing_or_not_used_is_refused(joined, tmp_path):
    with pytest.raises(InputError, match=r"inference/schema\.py: nothing of it is used"):
        joined(last="from inference.files import A\n\nC = A\n")
    with pytest.raises(InputError, match=r"inference/absent\.py is listed .* and missing"):
        bundle(["inference.files", "inference.absent"], "", tmp_path)
