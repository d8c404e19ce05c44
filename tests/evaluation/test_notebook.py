import argparse
import ast
import base64
import importlib
import json
import re

import pytest
from project_commands import PACKAGES, ROOT, entry_of

from evaluation import notebook
from evaluation.notebook import NOTEBOOK, SCRIPT, Cell, main, notebook_of, read_cells, run_cells, without_outputs
from utils import InputError

PROJECT = (*PACKAGES, "utils", "terminal")


@pytest.fixture(scope="module")
def cells():
    return read_cells(SCRIPT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def committed():
    return NOTEBOOK.read_text(encoding="utf-8")


def test_the_notebook_is_what_the_script_makes(cells, committed):
    assert without_outputs(committed) == notebook_of(cells)
    assert 8 <= len(cells) <= 15
    assert cells[0].kind == "markdown"


def test_its_outputs_are_small_and_name_no_place_of_a_machine(committed):
    outputs = [each for cell in json.loads(committed)["cells"] for each in cell.get("outputs", ())]
    assert {each["output_type"] for each in outputs} <= {"stream", "display_data"}
    assert len(committed) < 400_000
    printed = "".join("".join(each.get("text", ())) for each in outputs)
    assert not re.search(r"(?<![\w.])/(?!s\b)[a-z]+/|Traceback", printed)


def test_what_its_cells_import_exists(cells):
    for cell in cells:
        if cell.kind == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PROJECT:
                    module = importlib.import_module(node.module)
                    assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


class Parsed(Exception):
    """A command's options could be parsed."""


def test_the_commands_that_it_runs_take_their_options(cells, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    assigned = {
        target.id: node
        for node in ast.parse(cells[1].source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    names = {}
    exec(compile(ast.Module([assigned["small"], assigned["steps"]], []), "steps", "exec"), names)
    stages = ["folds", "tabular", "fusion", "stacking"]
    assert list(names["steps"]) == ["train.synthetic", *(f"train.{stage}" for stage in stages)]

    parse = argparse.ArgumentParser.parse_known_args

    def stop(parser, *arguments):
        _, rest = parse(parser, *arguments)
        raise Parsed(rest)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    for module, options in names["steps"].items():
        with pytest.raises(Parsed) as caught:
            entry_of(module)(["--quiet", *options.format(demo=tmp_path).split()])
        assert caught.value.args == ([],)


SMALL = """# %% [markdown]
# # Title
#
# text

# %%
import matplotlib.pyplot as plt

x = 2

# %%
print(x * 3)
plt.figure(figsize=(1, 1))
plt.show()
"""


def test_a_script_becomes_cells():
    found = read_cells(SMALL)
    assert [cell.kind for cell in found] == ["markdown", "code", "code"]
    assert found[0].source == "# Title\n\ntext"
    assert found[1].source.endswith("x = 2")


@pytest.mark.parametrize("text", ["x = 1\n", "", "# %% [markdown]\n# text\nx = 1\n"])
def test_a_script_without_cells_is_refused(text):
    with pytest.raises(InputError, match="# "):
        read_cells(text)


def test_running_keeps_what_cells_print_and_draw():
    cells = read_cells(SMALL)
    outputs = run_cells(cells)
    assert [len(each) for each in outputs] == [0, 0, 2]
    assert outputs[2][0]["text"] == ["6\n"]
    assert base64.b64decode(outputs[2][1]["data"]["image/png"]).startswith(b"\x89PNG")
    text = notebook_of(cells, outputs)
    assert json.loads(text)["cells"][2]["execution_count"] == 3
    assert without_outputs(text) == notebook_of(cells)


def test_a_cell_that_fails_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        run_cells([Cell("code", "1 / 0")])


def test_check_refuses_a_notebook_of_another_script(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.setattr(notebook, "SCRIPT", tmp_path / "walkthrough.py")
    monkeypatch.setattr(notebook, "NOTEBOOK", tmp_path / "walkthrough.ipynb")
    (tmp_path / "walkthrough.py").write_text(SMALL, encoding="utf-8")
    with pytest.raises(InputError, match=r"python -m evaluation\.notebook"):
        main(["--check"])
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "walkthrough.py").write_text(SMALL.replace("x = 2", "x = 3"), encoding="utf-8")
    with pytest.raises(InputError):
        main(["--check"])
    assert (ROOT / "notebooks" / "walkthrough.ipynb").is_file()
