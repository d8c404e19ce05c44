"""Writes kernel.py out of the rooms of inference/: one plain-text file that needs nothing of this repository.

    python -m inference.build_kernel            write kernel.py
    python -m inference.build_kernel --check    only say whether kernel.py is what the rooms make

Each room's text is kept as it is, docstring, comments and order, below a banner with its name. Only its imports go: those
of other rooms are not needed in one file, all others are merged at the top. A local tool, not part of the kernel.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from inference.files import InputError, replacing
from utils import run_command, say

ROOT = Path(__file__).resolve().parent.parent
#: In an order in which each room uses only names of those before it.
ROOMS = (
    "files",
    "schema",
    "context",
    "features",
    "artifacts",
    "tabular",
    "images",
    "network",
    "combination",
    "run_log",
    "inputs",
    "writing",
    "scoring",
    "submission",
)
WIDTH = 125

HEADER = '''"""ISIC 2024 (SLICE-3D) submission kernel: CatBoost on the metadata, ResNet50 on the crop, one submission.csv.

Built by `python -m inference.build_kernel` from the files of inference/ in this order:
{sources}.
Edit those and build again; a test compares. The file needs the Kaggle image, the competition's files and one artifact
folder written by this project's training; it opens no network connection. On Kaggle it is run without arguments:

    python kernel.py [--competition DIR] [--artifacts DIR] [--output FILE]

Read it from the end: `main` in the last part, inference/submission.py, tells the story.
"""
'''


class Room:
    """One source file, taken apart: its text without imports, what it imports, what it defines."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.imports: set[str] = set()
        self.members: dict[str, set[str]] = {}
        self.typing_only: set[str] = set()
        self.defines: set[str] = set()
        tree = ast.parse(text)
        lines = text.splitlines()
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom) or _is_typing_only(node):
                self._take_import(node)
                for number in range(node.lineno - 1, node.end_lineno):
                    lines[number] = None
            else:
                self.defines |= _names_defined(node)
        self.text = _squeeze(lines)

    def _take_import(self, node: ast.stmt) -> None:
        if _cannot_be_merged(node):
            raise InputError(f"inference/{self.name}.py line {node.lineno}: import rooms as 'from inference.x import name'.")
        if isinstance(node, ast.If):
            self.typing_only |= {ast.unparse(inner) for inner in node.body}
        elif isinstance(node, ast.Import):
            self.imports |= {ast.unparse(ast.Import([alias])) for alias in node.names}
        else:
            self.members.setdefault(node.module, set()).update(ast.unparse(alias) for alias in node.names)


def _is_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _cannot_be_merged(node: ast.stmt) -> bool:
    """Whether names of another room would be reached through a module or under another name, which one file has not."""
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] == "inference" for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        ours = node.level > 0 or node.module.split(".")[0] == "inference"
        return ours and (node.level > 0 or node.module == "inference" or any(alias.asname for alias in node.names))
    return False


def _names_defined(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _squeeze(lines: list[str | None]) -> str:
    """The lines that are left; where imports went, no more than two blank lines stay."""
    kept: list[str] = []
    for line in lines:
        if line is not None and not (line == "" and kept[-2:] == ["", ""]):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def merged_imports(rooms: list[Room]) -> str:
    """One import block: the standard library, then packages, then what only type checkers read."""
    plain = set().union(*(room.imports for room in rooms))
    members: dict[str, set[str]] = {}
    for room in rooms:
        for module, names in room.members.items():
            if module.split(".")[0] != "inference":
                members.setdefault(module, set()).update(names)
    plain |= {f"from {module} import {', '.join(sorted(names))}" for module, names in members.items()}
    future = sorted(line for line in plain if line.startswith("from __future__"))
    rest = sorted(plain - set(future), key=lambda line: (not line.startswith("import"), line.lower()))
    standard = [line for line in rest if _package(line) in sys.stdlib_module_names]
    packages = [line for line in rest if line not in standard]
    blocks = ["\n".join(block) for block in (future, standard, packages) if block]
    typing_only = sorted(set().union(*(room.typing_only for room in rooms)))
    if typing_only:
        blocks.append("if TYPE_CHECKING:\n" + "\n".join(f"    {line}" for line in typing_only))
    return "\n\n".join(blocks)


def _package(import_line: str) -> str:
    return import_line.split()[1].split(".")[0]


def build(folder: Path) -> str:
    """The text of kernel.py.

    Args:
        folder: holds the files ``<room>.py``.

    Raises:
        InputError: two rooms define the same name, or one imports another in a way that cannot be merged.
    """
    rooms = [Room(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in ROOMS]
    owner: dict[str, str] = {}
    for room in rooms:
        for name in sorted(room.defines):
            if name in owner:
                raise InputError(
                    f"{name!r} is defined in inference/{owner[name]}.py and {room.name}.py; rename one of them."
                )
            owner[name] = room.name
    sources = ", ".join(f"{name}.py" for name in ROOMS)
    parts = [HEADER.format(sources=sources), merged_imports(rooms)]
    for room in rooms:
        rule = "# " + "=" * (WIDTH - 2)
        parts.append(f"\n\n{rule}\n# inference/{room.name}.py\n{rule}\n\n{room.text}")
    return "\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Writes kernel.py, or with --check compares it."""
    parser = argparse.ArgumentParser(description="Builds kernel.py out of inference/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 2 when kernel.py is out of date")
    options = parser.parse_args(arguments)
    text = build(ROOT / "inference")
    path = ROOT / "kernel.py"
    current = path.read_text(encoding="utf-8") if path.is_file() else ""
    if options.check and current != text:
        raise InputError("kernel.py is not what inference/ builds; run: python -m inference.build_kernel")
    if current != text:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    say(f"kernel.py: {len(text.splitlines())} lines of {len(ROOMS)} rooms, {'unchanged' if current == text else 'written'}")
    return 0


if __name__ == "__main__":
    run_command(main)
