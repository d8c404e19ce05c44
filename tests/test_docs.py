"""README and docs name only what exists: modules, make targets, options, files, names of the code, links.

A command's options come from its own --help, in this process: TensorFlow is not imported for that.
"""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from project_commands import PACKAGES, ROOT, commands, entry_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Beside the README; held to the same rules.
BESIDE = [ROOT / "CONTRIBUTING.md", ROOT / "MODEL_CARD.md"]
#: Studies that pass what they do not know on to another command.
PASSED_ON = dict.fromkeys((f"evaluation.studies.{name}" for name in ("archives", "imbalance", "real_crops")), "train.fusion")
#: Of other projects: options of their commands, files and names.
FOREIGN_OPTIONS = {"--nthreads", "--logdir"}
FOREIGN_NAMES = {"former.json", "imgs_part_1", "max_ctr_complexity"}
#: Words of this project's own dialect. Each may occur where it is meant literally.
PRIVATE = re.compile(r"(?<![a-z])(t[o]ld|t[e]lls?|t[w]ins?|m[e]nds?|r[o]oms?|o[p]inions?|s[t]ory)(?![a-z])", re.IGNORECASE)
MOST_PRIVATE = 12


@cache
def tracked() -> tuple[Path, ...]:
    """The files under version control that exist."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository: what belongs to the project is not known")
    return tuple(path for path in (ROOT / name for name in listed.stdout.splitlines()) if path.is_file())


@cache
def sources() -> str:
    """The text of all Python files but the tests, and of the Makefile."""
    code = [path for path in tracked() if path.suffix == ".py" and path.parts[len(ROOT.parts)] != "tests"]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*code, ROOT / "Makefile"])


@cache
def source_words() -> set[str]:
    return set(re.findall(r"\w+", sources()))


def module_file(name: str) -> Path | None:
    """The file of a module, a package's __init__.py; None where there is none."""
    base = ROOT / name.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def options_of(command: str) -> frozenset[str]:
    """The options that a command's --help lists."""
    entry = importlib.import_module("inference.submission").main if command == "kernel.py" else entry_of(command)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        entry(["--help"])
    own = frozenset(re.findall(r"^  (?:-\w, )?(--[a-z][\w-]*)", shown.getvalue(), re.M))
    return own | options_of(PASSED_ON[command]) if command in PASSED_ON else own


@cache
def all_options() -> frozenset[str]:
    return frozenset().union(*map(options_of, ["kernel.py", *commands()]))


@cache
def make_names() -> tuple[set[str], set[str]]:
    """The Makefile's targets and variables."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", text, re.M)), set(re.findall(r"\$[({](?:value |call q,)?(\w+)", text))


def code_of(text: str) -> tuple[list[str], list[str]]:
    """The lines of a page's code blocks, continued lines joined, and its inline code."""
    lines, prose, fenced = [], [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            if lines and lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1] + line.strip()
            else:
                lines.append(line.strip())
        else:
            prose.append(line)
    spans = re.findall(r"`([^`]+)`", "\n".join(prose))
    return lines, [re.sub(r"\s+", " ", span.replace("\\|", "|")) for span in spans]


def problems(text: str) -> list[str]:
    """What a page names that does not exist, in the words of the page."""
    lines, spans = code_of(text)
    lines = [line.removeprefix("$ ") for line in lines if not line.startswith("$ kaggle")]
    found = []
    for code in [*lines, *spans]:
        found += wrong_commands(code) + wrong_targets(code) + wrong_paths(code)
    for span in spans:
        found += wrong_names(span)
    return found


def wrong_commands(code: str) -> list[str]:
    """Commands that are none of the project, and options that they do not have."""
    code = code.split(" #")[0]
    given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
    found = re.search(rf"(?:python -m |^)((?:{'|'.join(PACKAGES)})(?:\.\w+)+)|python (kernel\.py)", code)
    command = found and (found[1] or found[2])
    if command and command != "kernel.py" and command not in commands():
        return [] if not code.startswith("python -m") and is_name(command) else [f"{code}: no command {command}"]
    if "python -m " in code and not command:
        return []  # of another project
    known = options_of(command) if command else all_options() | FOREIGN_OPTIONS
    return [f"{code}: no option {option}" for option in sorted(given - known)]


def is_name(dotted: str) -> bool:
    """Whether this is a module of the project, or a name that a module defines at its top level."""
    if module_file(dotted):
        return True
    module, _, name = dotted.rpartition(".")
    path = module_file(module)
    return path is not None and bool(re.search(rf"^(?:def |class |){name}\b", path.read_text("utf-8"), re.M))


def wrong_targets(code: str) -> list[str]:
    if not code.startswith("make "):
        return []
    targets, variables = make_names()
    words = shlex.split(code, comments=True)[1:]
    wrong = [word for word in words if "=" not in word and word not in targets]
    wrong += [word for word in words if "=" in word and word.partition("=")[0] not in variables]
    return [f"{code}: the Makefile has no {word}" for word in wrong]


def wrong_paths(code: str) -> list[str]:
    """Paths below the project's folders that do not exist."""
    folders = "|".join([*PACKAGES, "tests", "docs", r"\.ci"])
    paths = re.findall(rf"(?<![\w/.$-])(?:{folders})/[\w./*-]*", code)
    return [f"{code}: no {path}" for path in paths if not list(ROOT.glob(path.rstrip("/.")))]


def wrong_names(span: str) -> list[str]:
    """Files and names in inline code that occur nowhere in the project."""
    if re.fullmatch(r"[\w*-]+\.(?:py|md|toml|txt|svg|css|js)", span):
        return [] if any(path.match(span) for path in tracked()) else [f"no file {span}"]
    if re.fullmatch(r"[\w*-]+(?:\.\w+)?\.(?:csv|json|h5|hdf5|cbm|png|parquet|html)", span):
        parts = [part for part in (span, span.partition("-")[2]) if part]  # a name may be made of two parts
        return [] if span in FOREIGN_NAMES or any(part in sources() for part in parts) else [f"no code names {span}"]
    if re.fullmatch(r"[a-z]\w*(?:,[a-z]\w*)*", span):
        return [f"no code names {word}" for word in span.split(",") if word not in source_words() | FOREIGN_NAMES]
    return []


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    tracked()
    found = problems(page.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_what_does_not_exist_is_found():
    page = (
        "Run `python -m train.nothing`, `train.folds --nothing`, `make nothing`, `make demo NOTHING=1`, with `--nothing`,\n"
        "see `train/nothing.py`, `nothing.py`, `oof_nothing.csv`, `isic_id,not_a_column`.\n\n"
        "    python -m train.folds --folds 5 --nothing    # --not-this\n"
    )
    assert len(problems(page)) == 10, problems(page)
    page = (
        "Run `python -m train.folds --folds 5`, `make demo DEMO=elsewhere`, see `train/folds.py`, `folds.py`,\n"
        "`oof_fusion.csv`, `isic_id,target`.\n\n"
        "```sh\npython -m train.fusion --epochs 2 \\\n    --weights none\npython -m dask scheduler --anything\n```\n"
    )
    assert problems(page) == []


def test_help_does_not_import_tensorflow():
    imported = "tensorflow" in sys.modules
    assert all_options()
    assert imported or "tensorflow" not in sys.modules


def test_every_command_has_its_place_in_the_docs():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(commands()) > 15
    assert [command for command in commands() if command not in text] == []


def test_every_target_has_its_place_in_the_docs():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [target for target in sorted(make_names()[0]) if not re.search(rf"make (?:[\w-]+ )*{target}\b", text)] == []


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=lambda page: page.name)
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), f"{page.name}: no {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name}: {target.name} has no heading for {link}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name}" not in text] == []


def test_private_words_are_gone():
    places = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path.suffix in (".py", ".md") or path.name == "Makefile"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert len(places) <= MOST_PRIVATE, "\n".join([f"{len(places)} lines with private words:", *places])
