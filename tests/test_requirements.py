"""The pins of requirements files, pyproject.toml and locks are the same ones; modules import what they may count on."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
#: Packages whose modules have another name, and packages that those of the list bring with them.
MODULES = {
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
}
BROUGHT = {"joblib", "markupsafe", "packaging"}  # by scikit-learn, by Jinja2, by Keras
#: Modules that need an extra at their import, by their beginnings.
NEED_EXTRAS = ("scale.batch_scoring", "scale.parts", "evaluation.studies", "kaggle_cli", "benchmarks", "tests")


def pins(name: str) -> set[str]:
    """The requirements in a file, comments and the files that it includes left out."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {str(Requirement(line)) for line in lines if line.strip() and not line.startswith(("#", "-r"))}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked(version: str) -> dict[str, tuple[str, int]]:
    """Canonical name -> version and number of hashes, in the lock of a Python version."""
    text = (ROOT / "requirements" / f"py{version}.txt").read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"^(?=\w)", text, flags=re.M)[1:]:
        name, number = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", entry).groups()
        found[canonicalize_name(name)] = number, len(re.findall(r"^    --hash=sha256:[0-9a-f]{64}", entry, re.M))
    return found


def test_pyproject_has_the_pins_of_the_requirements_files():
    assert {str(Requirement(line)) for line in project()["dependencies"]} == pins("requirements.txt")
    extras = project()["optional-dependencies"]
    assert sorted(extras) == ["dev", "kaggle", "scale", "studies"]
    own = f"{project()['name']}[kaggle,scale,studies]"
    named = {line for lines in extras.values() for line in lines}
    assert own in extras["dev"]
    assert {str(Requirement(line)) for line in named - {own}} == pins("requirements-dev.txt")


@pytest.mark.parametrize("version", PYTHONS)
def test_the_lock_has_every_pin_and_hashes(version):
    found, here = locked(version), {"python_version": version}
    asked = [Requirement(line) for line in pins("requirements.txt") | pins("requirements-dev.txt")]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate(here)]
    names = [canonicalize_name(one.name) for one in asked]
    assert len(set(names)) == len(names) < len(found) / 2
    assert [f"=={found[name][0]}" for name in names] == [str(one.specifier) for one in asked]
    assert [name for name, (_, hashes) in found.items() if not hashes] == []


def test_there_is_one_lock_for_each_python():
    assert sorted(path.name for path in (ROOT / "requirements").iterdir()) == [f"py{version}.txt" for version in PYTHONS]
    assert project()["requires-python"] == ">=3.11,<3.14"


def imported(path: Path) -> set[str]:
    """The packages that a module imports when it is imported: lines without indentation, so none for type checkers only."""
    return set(re.findall(r"^(?:import|from) (\w+)", path.read_text(encoding="utf-8"), re.M))


def test_training_and_prediction_need_no_extras():
    base = {Requirement(line).name for line in pins("requirements.txt")}
    base = {MODULES.get(name, name.lower()) for name in base} | BROUGHT | set(sys.stdlib_module_names)
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    needed = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): more
        for path in [*ROOT.glob("*.py"), *(path for folder in ours for path in (ROOT / folder).rglob("*.py"))]
        if (more := imported(path) - base - ours)
    }
    assert {name: more for name, more in needed.items() if not name.startswith(NEED_EXTRAS)} == {}
    assert needed["scale.parts"] == {"pyarrow"}
