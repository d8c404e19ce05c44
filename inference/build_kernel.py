"""Joins modules into one plain-text Python file: kernel.py, and the training script for Kaggle.

    python -m inference.build_kernel                                 write kernel.py
    python -m inference.build_kernel --check                         exit 2 when kernel.py is out of date
    python -m inference.build_kernel --training train_kernel.py      write the training script with default options

Each module becomes a section under a banner, its text unchanged: docstring, comments, order. Imports are merged at the top,
those between the modules dropped. Definitions that the file does not use are left out.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from inference.files import replacing
from inference.options import Parser, output_file
from terminal import run_command
from utils import InputError, log_summary

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 125
#: The modules of kernel.py, each after those that it imports.
KERNEL = (
    "utils",
    "terminal",
    "inference.files",
    "inference.options",
    "inference.tables",
    "inference.schema",
    "inference.features",
    "inference.artifacts",
    "inference.tabular",
    "inference.images",
    "inference.backbones",
    "inference.network",
    "inference.run_log",
    "inference.scoring",
    "inference.submission",
)
#: The modules of the training script, each after those that it imports.
TRAINING = (
    "utils",
    "terminal",
    "inference.files",
    "inference.options",
    "inference.tables",
    "inference.schema",
    "inference.features",
    "inference.artifacts",
    "inference.tabular",
    "inference.images",
    "inference.backbones",
    "inference.network",
    "inference.run_log",
    "inference.scoring",
    "scale.progress",
    "scale.parallel",
    "scale.artifact_folder",
    "train.code_version",
    "train.manifest",
    "train.archives.diagnoses",
    "train.charts",
    "train.network.augmentation",
    "train.network.known_images",
    "train.network.crop_cache",
    "train.network.batches",
    "train.leaks",
    "train.folds",
    "train.config",
    "train.cross_validation",
    "train.lesions",
    "train.tabular",
    "train.network.sampling",
    "train.network.config",
    "train.network.checkpoint",
    "train.network.imagenet_weights",
    "train.network.model",
    "train.network.fit",
    "train.network.pretraining",
    "train.network.fold",
    "train.combination",
    "train.network.results",
    "train.fusion",
    "train.stacking",
    "kaggle_cli.entrypoint",
)
#: Modules of which a few definitions are taken only; their docstring describes the others.
LIBRARIES = ("utils", "terminal")

KERNEL_HEADER = '''"""ISIC 2024 (SLICE-3D) submission kernel: CatBoost on metadata, a network on the crop, submission.csv.

    python kernel.py [--competition DIR] [--artifacts DIR] [--output FILE]

On Kaggle it runs without arguments and without a network connection. It reads the competition's files and an artifact folder
that this project's training wrote. Built by `python -m inference.build_kernel`: edit the modules below and build again.

Contents (line numbers):
{contents}
"""
'''
TRAINING_HEADER = '''"""ISIC 2024 (SLICE-3D) training on Kaggle's GPUs: folds, CatBoost, networks, last stage.

On Kaggle it runs without arguments; its last line has the options of the stages and the hours after which it stops. Built by
`python -m inference.build_kernel --training FILE`: edit the modules below and build again.

Contents (line numbers):
{contents}
"""
'''
#: Stands between ``__future__`` and the other imports, which take seconds; as ``interrupts`` does for the packages.
EARLY = """import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the imports run: no traceback

"""
TRAINING_FOOTER = """

if __name__ == "__main__":
    run_part({settings}, hours={hours!r})
"""


@dataclass(frozen=True)
class Section:
    """A top-level statement other than an import.

    Args:
        binds: names that it defines.
        uses: names in it.
        text: its source, with the comments above it.
        gap: blank lines before that.
    """

    binds: frozenset[str]
    uses: frozenset[str]
    text: str
    gap: int


@dataclass(frozen=True)
class Module:
    """A module taken apart.

    Args:
        name: dotted.
        docstring: its source text.
        sections: in their order.
        imports: name bound -> import statement for it alone; of the standard library and packages.
        typing_only: the same, of imports under ``if TYPE_CHECKING``.
        needs: module of the project -> names imported from it.
    """

    name: str
    docstring: str
    sections: tuple[Section, ...]
    imports: dict[str, str]
    typing_only: dict[str, str]
    needs: dict[str, set[str]]

    @property
    def path(self) -> str:
        """Path of the source file from the repository's root."""
        return path_of(self.name)

    @property
    def binds(self) -> set[str]:
        """Names defined at the top level."""
        return set().union(*(section.binds for section in self.sections))

    @property
    def uses(self) -> set[str]:
        """Names used anywhere in the sections."""
        return set().union(*(section.uses for section in self.sections))


def path_of(name: str) -> str:
    """Path of a module's source file from the repository's root."""
    return f"{name.replace('.', '/')}.py"


def read_module(root: Path, name: str, earlier: Sequence[str], *, is_last: bool) -> Module:
    """Parses a module.

    Args:
        root: the repository.
        name: dotted.
        earlier: the modules before it in the list.
        is_last: keep ``if __name__ == "__main__"``.

    Raises:
        InputError: the file is missing, or imports a module of the project in a way that one file cannot express.
    """
    path = root / path_of(name)
    if not path.is_file():
        raise InputError(f"{path_of(name)} is listed in inference/build_kernel.py and missing; correct the list.")
    text = path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    packages = {module.split(".")[0] for module in (*KERNEL, *TRAINING, *earlier, name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _refuse_unmergeable(node, path_of(name), packages, earlier if node in tree.body else ())
    docstring, sections, end = "", [], 0
    imports: dict[str, str] = {}
    typing_only: dict[str, str] = {}
    needs: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in packages:
            needs.setdefault(node.module, set()).update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports |= _single_imports(node)
        elif _is_test_of(node, "TYPE_CHECKING"):
            for inner in node.body:
                typing_only |= _single_imports(inner) if isinstance(inner, ast.Import | ast.ImportFrom) else {}
        elif node is tree.body[0] and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstring = "\n".join(lines[: node.end_lineno])
        elif is_last or not _is_test_of(node, "__name__"):
            sections.append(_section(node, lines, end))
        end = node.end_lineno or end
    return Module(name, docstring, tuple(sections), imports, typing_only, needs)


def _refuse_unmergeable(node: ast.Import | ast.ImportFrom, path: str, packages: set[str], importable: Sequence[str]) -> None:
    """Raises InputError for an import from the project that is not ``from module import name`` of an earlier module."""
    if isinstance(node, ast.Import):
        wrong = any(alias.name.split(".")[0] in packages for alias in node.names)
    else:
        project = node.level > 0 or (node.module or "").split(".")[0] in packages
        wrong = project and (node.module not in importable or any(alias.asname for alias in node.names))
    if wrong:
        raise InputError(
            f"{path} line {node.lineno}: {ast.unparse(node)!r} cannot be merged; import at the top, by "
            "'from module import name', from a module listed before it in inference/build_kernel.py."
        )


def _is_test_of(node: ast.stmt, name: str) -> TypeGuard[ast.If]:
    """Whether a statement is ``if TYPE_CHECKING`` or ``if __name__ == ...``."""
    return isinstance(node, ast.If) and name in _names(node.test)


def _names(node: ast.AST) -> frozenset[str]:
    return frozenset(each.id for each in ast.walk(node) if isinstance(each, ast.Name))


def _single_imports(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Name bound -> an import statement that binds it alone."""
    found = {}
    for alias in node.names:
        single = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)
        found[alias.asname or alias.name] = ast.unparse(single)
    return found


def _section(node: ast.stmt, lines: list[str], end: int) -> Section:
    """A statement with the comments above it, which begin after line ``end``."""
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
    while first > end and (not lines[first - 1].strip() or lines[first - 1].startswith("#")):
        first -= 1
    text = lines[first : node.end_lineno]
    gap = next(at for at, line in enumerate(text) if line.strip())
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        binds = frozenset([node.name])
    else:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        binds = frozenset().union(*(_names(target) for target in targets))
    return Section(binds, _names(node), "\n".join(text[gap:]), gap)


def without_unused(modules: Sequence[Module], footer: str = "") -> list[Module]:
    """The modules without the definitions and imports that neither the last one nor ``footer`` uses in the end."""
    needed: dict[str, set[str]] = {module.name: set(_names(ast.parse(footer)) & module.binds) for module in modules}
    needed[modules[-1].name] |= modules[-1].binds
    kept = []
    for module in reversed(modules):
        wanted = needed[module.name] | set().union(*(each.uses for each in module.sections if not each.binds))
        used: set[str] = set()
        while wanted:
            used |= wanted
            wanted = set().union(*(each.uses for each in module.sections if each.binds & wanted)) & module.binds - used
        module = replace(module, sections=tuple(each for each in module.sections if not each.binds or each.binds & used))
        for source, names in module.needs.items():
            needed[source] |= names & module.uses
        keep = module.uses | {"annotations"}
        imports = {name: text for name, text in module.imports.items() if name.split(".")[0] in keep}
        typing_only = {name: text for name, text in module.typing_only.items() if name in keep}
        kept.append(replace(module, imports=imports, typing_only=typing_only))
    return kept[::-1]


def refuse_collisions(modules: Sequence[Module]) -> None:
    """Raises InputError where two modules bind one name to different things."""
    owners: dict[str, tuple[str, str]] = {}
    for module in modules:
        bound = {name: f"{module.name}.{name}" for name in module.binds} | module.imports
        for name, meaning in sorted(bound.items()):
            path, before = owners.setdefault(name, (module.path, meaning))
            if before != meaning:
                raise InputError(f"{name!r} is bound in {path} and in {module.path}; rename one of them.")


def merged_imports(modules: Sequence[Module]) -> str:
    """One import block, in the order of isort: ``__future__``, standard library, packages, what only type checkers read."""
    statements = set().union(*(module.imports.values() for module in modules))
    typing_only = set().union(*(module.typing_only.values() for module in modules))
    if typing_only:
        statements.add("from typing import TYPE_CHECKING")
    groups: list[list[str]] = [[], [], []]
    for statement in joined_imports(statements):
        package = statement.split()[1].split(".")[0]
        groups[0 if package == "__future__" else 1 if package in sys.stdlib_module_names else 2].append(statement)
    if typing_only:
        groups.append(["if TYPE_CHECKING:", *(f"    {statement}" for statement in joined_imports(typing_only))])
    return "\n\n".join("\n".join(group) for group in groups if group)


def joined_imports(statements: Iterable[str]) -> list[str]:
    """Import statements of one name each, sorted; those from one module in one statement, except for ``as``."""
    plain = [statement for statement in statements if statement.startswith("import")]
    members: dict[tuple[str, str], list[str]] = {}
    for statement in set(statements) - set(plain):
        source, name = statement.removeprefix("from ").split(" import ")
        members.setdefault((source, name if " as " in name else ""), []).append(name)
    lines = sorted(plain)
    for source, alias in sorted(members):
        names = sorted(members[source, alias], key=_isort_key)
        line = f"from {source} import {', '.join(names)}"
        wrapped = "".join(f"    {name},\n" for name in names)
        lines.append(line if len(line) <= WIDTH else f"from {source} import (\n{wrapped})")
    return lines


def _isort_key(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name.lower()


def bundle(names: Sequence[str], header: str, root: Path, footer: str = "") -> str:
    """The modules as one file.

    Args:
        names: of the modules, each after those that it imports; the last one is kept whole.
        header: docstring of the file; ``{contents}`` becomes the table of contents.
        root: the repository.
        footer: code for the end of the file.

    Raises:
        InputError: a module is missing, not needed or cannot be merged, or two modules bind one name.
    """
    modules = [read_module(root, name, names[:at], is_last=name == names[-1]) for at, name in enumerate(names)]
    modules = without_unused(modules, footer)
    unused = [module.path for module in modules if not module.binds]
    if unused:
        raise InputError(f"{', '.join(unused)}: nothing of it is used; take it from the list in inference/build_kernel.py.")
    refuse_collisions(modules)
    future = "from __future__ import annotations\n\n"
    start = f"{header}\n{merged_imports(modules).replace(future, future + EARLY)}\n"
    texts = [section_text(module) for module in modules]
    # The table of contents has a line per module: its length is known before the line numbers are.
    line = start.count("\n") + len(modules) - 1
    contents = []
    for module, text in zip(modules, texts, strict=True):
        contents.append(f"    {line + 4:5d}  {module.path}")
        line += text.count("\n")
    return "".join([start.replace("{contents}", "\n".join(contents)), *texts, footer])


def section_text(module: Module) -> str:
    """A module's part of the file: two blank lines, a banner, its docstring and its statements."""
    rule = "# " + "=" * (WIDTH - 2)
    docstring = f"\n{module.docstring}\n" if module.docstring and module.name not in LIBRARIES else ""
    parts = [f"\n\n{rule}\n# {module.path}\n{rule}\n{docstring}"]
    least = 1
    for section in module.sections:
        parts.append("\n" * max(section.gap, least) + section.text + "\n")
        # What stood between the two may be left out.
        least = 2 if isinstance(ast.parse(section.text).body[-1], ast.FunctionDef | ast.ClassDef) else 0
    return "".join(parts)


def build_kernel() -> str:
    """The text of kernel.py; raises InputError as ``bundle`` does."""
    return bundle(KERNEL, KERNEL_HEADER, ROOT)


def build_training(settings: dict[str, Any], hours: float) -> str:
    """The text of the training script.

    Args:
        settings: fields of ``kaggle_cli.entrypoint.Settings``.
        hours: after which the run stops.

    Raises:
        InputError: as ``bundle`` does.
    """
    footer = TRAINING_FOOTER.format(settings=json.dumps(settings), hours=hours)
    text = bundle(TRAINING, TRAINING_HEADER, ROOT, footer)
    compile(text, "train_kernel.py", "exec")  # a syntax error shows here and not on Kaggle
    return text


def main(arguments: list[str] | None = None) -> int:
    """Writes kernel.py or the training script, or with --check compares kernel.py."""
    parser = Parser(description="Builds kernel.py, or the training script for Kaggle, from their modules")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--check", action="store_true", help="write nothing; exit 2 when kernel.py is out of date")
    chosen.add_argument("--training", type=output_file, metavar="FILE", help="write the training script to FILE instead")
    options = parser.parse_args(arguments)
    path = options.training or ROOT / "kernel.py"
    text = build_training({}, hours=11) if options.training else build_kernel()
    current = path.read_text(encoding="utf-8") if path.is_file() else ""
    if options.check and current != text:
        raise InputError("kernel.py is not what inference/ builds; run: python -m inference.build_kernel")
    if current != text:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    modules = len(TRAINING if options.training else KERNEL)
    log_summary(
        f"{path.name}: {len(text.splitlines()):,} lines, {modules} modules, {'unchanged' if current == text else 'written'}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
