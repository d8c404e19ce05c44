"""The project's commands: modules that end in ``run_command(...)``."""

import importlib
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("inference", "scale", "train", "evaluation", "kaggle_cli", "benchmarks")


@cache
def commands() -> dict[str, tuple[str, str]]:
    """What follows ``python -m`` -> the module that runs, and its function that takes the arguments."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            entry = re.search(r'^if __name__ == "__main__":\n    run_command\((\w+)', path.read_text("utf-8"), re.M)
            if entry:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                name = "kernel.py" if module == "inference.submission" else module.removesuffix(".__main__")
                found[name] = module, entry[1]
    return found


def entry_of(command: str):
    """The function that a command runs; it takes the arguments."""
    module, function = commands()[command]
    return getattr(importlib.import_module(module), function)
