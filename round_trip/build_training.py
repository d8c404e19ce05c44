"""Writes the training script for Kaggle out of the rooms that it needs: one plain-text file.

    python -m round_trip.build_training --output train_kernel.py

kernel.py joins its rooms into one namespace, and two rooms must not define one name. Training's rooms may: each stage has
its ``main``. So each room becomes a function here, its text indented and otherwise as it is, imports and comments too, and
what the function defines becomes a module of the room's own name, which the rooms after it import as they always do. Nothing
is run from a string: a traceback, and TensorFlow's AutoGraph, find every line in the file that Kaggle shows.

Which rooms are needed is read from their imports, so there is no list to keep.
"""

from __future__ import annotations

import argparse
import ast
import pprint
from pathlib import Path
from typing import Any

from inference.build_kernel import ROOT, WIDTH
from inference.files import InputError, replacing
from utils import run_command, say

ENTRY = "round_trip.on_kaggle"
OURS = ("inference", "train", "round_trip", "utils")

HEADER = '''"""ISIC 2024 (SLICE-3D) training on Kaggle's GPUs: folds, CatBoost, ResNet50, into an artifact folder.

Built by `python -m round_trip.build_training` from these files, in this order:
{sources}.
Edit those and build again. Read it from the end: `main` in the last part, {entry}, tells the story.
"""

from __future__ import annotations

import sys
import types


def room(name):
    """Makes what the function below defines importable as the module of this name."""

    def register(text):
        sys.modules[name] = types.ModuleType(name, text.__doc__)
        vars(sys.modules[name]).update(text())
        package, _, last = name.rpartition(".")
        if package:
            setattr(sys.modules.setdefault(package, types.ModuleType(package)), last, sys.modules[name])
        return text

    return register
'''

FOOTER = """
# Options of the stages, and hours after which to stop.
SETTINGS = {settings}
HOURS = {hours!r}

if __name__ == "__main__":
    from {entry} import main
    from utils import run_command

    run_command(lambda: main(SETTINGS, HOURS, sys.argv[1:]))
"""


def path_of(room: str, root: Path) -> Path:
    """Where the text of a room lies."""
    return root / f"{room.replace('.', '/')}.py"


def rooms_imported(tree: ast.Module, root: Path) -> list[str]:
    """Names of our rooms that a room imports, anywhere in it, in their order there."""
    named = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            named += [name for name in inside if path_of(name, root).is_file()] or [node.module]
    return [name for name in named if name.split(".")[0] in OURS]


def in_order(entry: str, root: Path) -> dict[str, ast.Module]:
    """The room ``entry`` and all that it needs, each after those that it imports: name -> syntax tree.

    Raises:
        InputError: rooms import each other in a circle, or one is missing.
    """
    ordered: dict[str, ast.Module] = {}

    def visit(room: str, path: tuple[str, ...]) -> None:
        if room in path:
            raise InputError(f"rooms import each other in a circle: {' -> '.join([*path, room])}; move what they share.")
        if room in ordered:
            return
        if not path_of(room, root).is_file():
            raise InputError(f"{path[-1]} imports {room!r}, which is no file of the repository; mend the import.")
        tree = ast.parse(path_of(room, root).read_text(encoding="utf-8"))
        for needed in rooms_imported(tree, root):
            visit(needed, (*path, room))
        ordered[room] = tree

    visit(entry, ())
    return ordered


def as_function(room: str, text: str, tree: ast.Module) -> str:
    """The room's text as a function of its name that returns what it defines.

    Raises:
        InputError: the room has something that only a module can have.
    """
    lines: list[str | None] = text.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.Global) or (isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names)):
            raise InputError(
                f"{room} line {node.lineno} has {ast.unparse(node)!r}, which only a module can have; write it out."
            )
    for node in tree.body:
        if _is_for_a_module(node):
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    as_they_are = _inside_strings(tree)
    indented = [
        line if number in as_they_are or not line else f"    {line}"
        for number, line in enumerate(lines, start=1)
        if line is not None
    ]
    body = "\n".join(indented).strip("\n")
    return f'@room("{room}")\ndef {room.replace(".", "_")}():\n{body}\n\n    return locals()\n'


def _is_for_a_module(node: ast.stmt) -> bool:
    """Whether a statement stands in the file once (``__future__``) or starts the room as a command."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _inside_strings(tree: ast.Module) -> set[int]:
    """Numbers of the lines that begin inside a string, whose content indentation would change; docstrings may be."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docstrings
    ]
    return {number for node in strings for number in range(node.lineno + 1, node.end_lineno + 1)}


def build(settings: dict[str, list[str]], hours: float, root: Path = ROOT, entry: str = ENTRY) -> str:
    """The text of the training script.

    Args:
        settings: options of the stages "folds", "tabular" and "fusion".
        hours: after which the run stops.
        root: the repository.
        entry: the room that tells the story.

    Raises:
        InputError: a room is missing or cannot be put into one file.
    """
    rooms = in_order(entry, root)
    sources = ",\n".join(f"{room.replace('.', '/')}.py" for room in rooms)
    entry_file = f"{entry.replace('.', '/')}.py"
    parts = [HEADER.format(sources=sources, entry=entry_file)]
    for room, tree in rooms.items():
        rule = "# " + "=" * (WIDTH - 2)
        text = path_of(room, root).read_text(encoding="utf-8")
        parts.append(f"\n{rule}\n# {room.replace('.', '/')}.py\n{rule}\n\n\n{as_function(room, text, tree)}")
    shown: Any = pprint.pformat(settings, width=WIDTH - 10, sort_dicts=False)
    parts.append(FOOTER.format(settings=shown, hours=hours, entry=entry))
    text = "\n".join(parts)
    compile(text, "train_kernel.py", "exec")  # a syntax error is told here and not on Kaggle
    return text


def main(arguments: list[str] | None = None) -> int:
    """Writes the script with default options, for a look; `make train-on-kaggle` builds its own."""
    parser = argparse.ArgumentParser(description="Builds the training script for Kaggle")
    parser.add_argument("--output", type=Path, default=Path("train_kernel.py"), metavar="FILE", help="(%(default)s)")
    options = parser.parse_args(arguments)
    text = build({"folds": [], "tabular": [], "fusion": []}, hours=11)
    with replacing(options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"{options.output}: {len(text.splitlines()):,} lines of {text.count('@room(')} rooms")
    return 0


if __name__ == "__main__":
    run_command(main)
