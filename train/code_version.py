"""The version of the code that a stage runs: a hash of its module and of all modules of the project that it imports.

Comments and docstrings do not count, so that a corrected sentence makes no training out of date.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

#: This file; or the training script, which has all modules in it; of code that was not read from a file, none.
SOURCE = Path(globals().get("__file__", "")).absolute()


@functools.cache
def code_version(module: str) -> str:
    """SHA-256, in hexadecimal, of what a module and the modules that it imports do.

    Args:
        module: dotted name, such as ``train.tabular``; its imports inside of functions count too.
    """
    if SOURCE.name != "code_version.py":
        return _hash_of([_statements(SOURCE)] if SOURCE.is_file() else [])
    return _hash_of(_statements(_file_of(name)) for name in sorted(imported_modules(module)))


def imported_modules(module: str) -> set[str]:
    """The names of a module and of all modules of the project that it imports, in the end."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _imports(ast.parse(_file_of(name).read_bytes()))
    return found


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules of the project that the statements of a module import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from filter(_is_own, [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Import):
            yield from filter(_is_own, (alias.name for alias in node.names))


def _is_own(name: str) -> bool:
    return _file_of(name).is_file()


def _file_of(name: str) -> Path:
    """The file of a module, or of a package."""
    path = SOURCE.parents[1] / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _statements(path: Path) -> str:
    """The code of a file without comments, docstrings, and what runs it as a command."""
    tree = ast.parse(path.read_bytes())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _hash_of(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
