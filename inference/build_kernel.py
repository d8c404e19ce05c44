"""Joins modules into one plain-text Python file: kernel.py, and the training script for Kaggle.

    python -m inference.build_kernel                                 write kernel.py
    python -m inference.build_kernel --check                         exit 2 when kernel.py is out of date
    python -m inference.build_kernel --training train_kernel.py      write the training script with default options

Each module becomes a section under a banner, its text unchanged: docstring, comments, order. Imports are merged at the top,
those between the modules dropped, and so is the ``if __name__ == "__main__"`` of all modules but the last. Of ``utils`` only
the definitions that the other modules import are taken.
"""

from __future__ import annotations

import argparse
import ast
import pprint
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inference.files import replacing
from utils import InputError, log, run_command

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 125
#: The modules of kernel.py, each after those that it imports.
KERNEL = (
    "utils",
    "inference.files",
    "inference.schema",
    "inference.features",
    "inference.artifacts",
    "inference.tabular",
    "inference.images",
    "inference.network",
    "inference.run_log",
    "inference.scoring",
    "inference.submission",
)
#: The modules of the training script, each after those that it imports.
TRAINING = (
    "utils",
    "inference.files",
    "inference.schema",
    "inference.features",
    "inference.artifacts",
    "inference.tabular",
    "inference.images",
    "inference.network",
    "inference.run_log",
    "inference.scoring",
    "scale.parallel",
    "train.manifest",
    "train.archives.diagnoses",
    "train.charts",
    "train.network.augmentation",
    "train.network.batches",
    "train.folds",
    "train.config",
    "train.cross_validation",
    "train.lesions",
    "train.tabular",
    "train.network.sampling",
    "train.network.config",
    "train.network.checkpoint",
    "train.network.model",
    "train.network.fit",
    "train.network.pretraining",
    "train.network.fold",
    "train.network.results",
    "train.fusion",
    "kaggle_cli.entrypoint",
)
#: Modules of which only the definitions that others import are taken.
LIBRARIES = ("utils",)

KERNEL_HEADER = '''"""ISIC 2024 (SLICE-3D) submission kernel: CatBoost on metadata, ResNet50 on the crop, one submission.csv.

Built by `python -m inference.build_kernel`; edit the modules named below and build again. The file needs the Kaggle image,
the competition's files and one artifact folder written by this project's training; it opens no network connection.
On Kaggle it is run without arguments:

    python kernel.py [--competition DIR] [--artifacts DIR] [--output FILE]

Contents (line numbers):
{contents}
"""
'''
TRAINING_HEADER = '''"""ISIC 2024 (SLICE-3D) training on Kaggle's GPUs: folds, CatBoost, ResNet50, into an artifact folder.

Built by `python -m inference.build_kernel --training FILE`; edit the modules named below and build again. On Kaggle it is
run without arguments; SETTINGS and HOURS at its end are the options of the stages and the time after which it stops.

Contents (line numbers):
{contents}
"""
'''
TRAINING_FOOTER = """

#: Options of the stages, and hours after which to stop.
SETTINGS = {settings}
HOURS = {hours!r}

if __name__ == "__main__":
    run_command(lambda: main(SETTINGS, HOURS, sys.argv[1:]))
"""


@dataclass
class Module:
    """A module taken apart.

    Args:
        name: dotted.
        sections: top-level statements other than imports: (names bound, names used, text with the comments above).
        docstring: source text of the module's docstring.
        bindings: name bound by an import -> import statement.
        needs: names taken from other modules of the project, by module.
        typing_only: import statements that only type checkers read.
    """

    name: str
    docstring: str = ""
    sections: list[tuple[set[str], set[str], str]] = field(default_factory=list)
    bindings: dict[str, str] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)
    typing_only: set[str] = field(default_factory=set)

    @property
    def path(self) -> str:
        """Path of the source file from the repository's root."""
        return f"{self.name.replace('.', '/')}.py"

    @property
    def defines(self) -> set[str]:
        """Names bound at the top level, imports aside."""
        return set().union(*(names for names, _, _ in self.sections))


def read_module(name: str, root: Path, ours: Sequence[str], *, is_last: bool) -> Module:
    """Parses a module.

    Args:
        name: dotted.
        root: the repository.
        ours: names of the modules that go into the file, up to this one.
        is_last: keep ``if __name__ == "__main__"``.

    Raises:
        InputError: the file is missing, or imports a module of the project in a way that one file cannot express.
    """
    module = Module(name)
    path = root / module.path
    if not path.is_file():
        raise InputError(f"{module.path} is listed in inference/build_kernel.py and missing; correct the list.")
    text = path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    packages = {each.split(".")[0] for each in (*KERNEL, *TRAINING, *ours)}
    for node in ast.walk(tree):
        _refuse_unmergeable(node, module, packages, ours, at_top=node in tree.body)
    end = 0
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            _take_import(node, module, packages)
        elif _is_test_of(node, "TYPE_CHECKING"):
            module.typing_only |= {ast.unparse(inner) for inner in node.body}
        elif node is tree.body[0] and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            module.docstring = "\n".join(lines[: node.end_lineno])
        elif is_last or not _is_test_of(node, "__name__"):
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]) - 1
            while first > end and (not lines[first - 1].strip() or lines[first - 1].startswith("#")):
                first -= 1  # with the comments and blank lines above
            used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            module.sections.append((_names_bound(node), used, "\n".join(lines[first : node.end_lineno])))
        end = node.end_lineno
    return module


def _refuse_unmergeable(node: ast.AST, module: Module, packages: set[str], ours: Sequence[str], *, at_top: bool) -> None:
    if isinstance(node, ast.Import):
        wrong = any(alias.name.split(".")[0] in packages for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        project = node.level > 0 or node.module.split(".")[0] in packages
        wrong = project and (not at_top or node.module not in ours or any(alias.asname for alias in node.names))
    else:
        return
    if wrong:
        raise InputError(
            f"{module.path} line {node.lineno}: {ast.unparse(node)!r} cannot be merged; import at the top, by "
            "'from module import name', from a module listed before it in inference/build_kernel.py."
        )


def _is_test_of(node: ast.stmt, name: str) -> bool:
    """Whether a statement is ``if TYPE_CHECKING`` or ``if __name__ == ...``."""
    return isinstance(node, ast.If) and any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node.test))


def _take_import(node: ast.Import | ast.ImportFrom, module: Module, packages: set[str]) -> None:
    if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in packages:
        module.needs.setdefault(node.module, set()).update(alias.name for alias in node.names)
        return
    for alias in node.names:
        single = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)
        module.bindings[alias.asname or alias.name] = ast.unparse(single)


def _names_bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def keep_needed(module: Module, needed: set[str]) -> None:
    """Drops the sections and imports of ``module`` that the definitions named in ``needed`` do not use."""
    kept: set[str] = set()
    wanted = set(needed)
    while wanted:
        name = wanted.pop()
        kept.add(name)
        for names, used, _ in module.sections:
            if name in names:
                wanted |= (used & module.defines) - kept
    module.sections = [section for section in module.sections if section[0] & kept]
    used = set().union(*(used for _, used, _ in module.sections))
    module.bindings = {name: text for name, text in module.bindings.items() if name.split(".")[0] in used | {"annotations"}}


def refuse_collisions(modules: Sequence[Module]) -> None:
    """Raises InputError where two modules bind one name to different things."""
    owners: dict[str, tuple[str, str]] = {}
    for module in modules:
        bound = {name: f"{module.name}.{name}" for name in module.defines} | module.bindings
        for name, meaning in sorted(bound.items()):
            path, before = owners.setdefault(name, (module.path, meaning))
            if before != meaning:
                raise InputError(f"{name!r} is bound in {path} and in {module.path}; rename one of them.")


def merged_imports(modules: Sequence[Module]) -> str:
    """One import block: ``__future__``, the standard library, packages, what only type checkers read."""
    plain, members = set(), {}
    for statement in set().union(*(module.bindings.values() for module in modules)):
        if statement.startswith("import"):
            plain.add(statement)
        else:
            source, name = statement.removeprefix("from ").split(" import ")
            members.setdefault(source, set()).add(name)
    lines = sorted(plain) + [f"from {source} import {', '.join(sorted(members[source]))}" for source in sorted(members)]
    groups: dict[str, list[str]] = {"future": [], "standard": [], "packages": []}
    for line in lines:
        package = line.split()[1].split(".")[0]
        standard = "standard" if package in sys.stdlib_module_names else "packages"
        groups["future" if package == "__future__" else standard].append(line)
    typing_only = sorted(set().union(*(module.typing_only for module in modules)))
    if typing_only:
        groups["typing"] = ["if TYPE_CHECKING:", *(f"    {line}" for line in typing_only)]
    return "\n\n".join("\n".join(group) for group in groups.values() if group)


def bundle(names: Sequence[str], header: str, root: Path = ROOT) -> str:
    """The modules as one file.

    Args:
        names: of the modules, each after those that it imports; the last one holds ``main``.
        header: docstring of the file; ``{contents}`` becomes the table of contents.
        root: the repository.

    Raises:
        InputError: a module is missing or cannot be merged, or two modules bind one name.
    """
    modules = [read_module(name, root, names[: at + 1], is_last=name == names[-1]) for at, name in enumerate(names)]
    for module in modules:
        if module.name in LIBRARIES:
            keep_needed(module, set().union(*(each.needs.get(module.name, set()) for each in modules)))
    refuse_collisions(modules)
    rule = "# " + "=" * (WIDTH - 2)
    start = f"{header}\n{merged_imports(modules)}"
    sections = []
    for module in modules:
        body = "".join(f"\n{text}" for _, _, text in module.sections).strip("\n")
        title = [module.docstring] if module.docstring and module.name not in LIBRARIES else []
        sections.append("\n\n".join([f"\n\n{rule}\n# {module.path}\n{rule}", *title, body]))
    # The table of contents has a line per module, so that its own length is known before the line numbers are.
    line = start.count("\n") + len(modules) + 1
    contents = []
    for module, section in zip(modules, sections, strict=True):
        contents.append(f"    {line + 3:5d}  {module.path}")
        line += section.count("\n") + 1
    return "\n".join([start.replace("{contents}", "\n".join(contents)), *sections]) + "\n"


def build_kernel(root: Path = ROOT) -> str:
    """The text of kernel.py; raises InputError as ``bundle`` does."""
    return bundle(KERNEL, KERNEL_HEADER, root)


def build_training(settings: dict[str, list[str]], hours: float, root: Path = ROOT) -> str:
    """The text of the training script.

    Args:
        settings: options of the stages "folds", "tabular" and "fusion".
        hours: after which the run stops.
        root: the repository.

    Raises:
        InputError: as ``bundle`` does.
    """
    shown = pprint.pformat(settings, width=WIDTH - 10, sort_dicts=False)
    text = bundle(TRAINING, TRAINING_HEADER, root) + TRAINING_FOOTER.format(settings=shown, hours=hours)
    compile(text, "train_kernel.py", "exec")  # a syntax error shows here and not on Kaggle
    return text


def main(arguments: list[str] | None = None) -> int:
    """Writes kernel.py or the training script, or with --check compares kernel.py."""
    parser = argparse.ArgumentParser(description="Builds kernel.py, or the training script for Kaggle, from their modules")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--check", action="store_true", help="write nothing; exit 2 when kernel.py is out of date")
    chosen.add_argument("--training", type=Path, metavar="FILE", help="write the training script to FILE instead")
    options = parser.parse_args(arguments)
    path = options.training or ROOT / "kernel.py"
    text = build_training({"folds": [], "tabular": [], "fusion": []}, hours=11) if options.training else build_kernel()
    current = path.read_text(encoding="utf-8") if path.is_file() else ""
    if options.check and current != text:
        raise InputError("kernel.py is not what inference/ builds; run: python -m inference.build_kernel")
    if current != text:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    modules = len(TRAINING if options.training else KERNEL)
    log(f"{path.name}: {len(text.splitlines()):,} lines, {modules} modules, {'unchanged' if current == text else 'written'}")
    return 0


if __name__ == "__main__":
    run_command(main)
