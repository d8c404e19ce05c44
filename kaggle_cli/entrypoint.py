"""The story of a training run on Kaggle: folds, CatBoost, networks, in order, as far as the session's hours allow.

1. Find the competition, and what the part before this one left, if any: it is copied to the working folder first.
2. Do what is not done yet. The working folder is the artifact folder: what a finished part leaves, a kernel can attach.
3. Stop in time. Finished fold networks of an unfinished training go from their hidden folder to one that Kaggle keeps.
4. Write training.json: finished or not, by which settings, what went wrong.

An error after the start does not fail the run, because Kaggle keeps only the output of runs that end well: it is written to
training.json, and `make train-on-kaggle` tells it. This room and all that it imports travel as one file
(``inference.build_kernel``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.artifacts import MANIFEST, checked_file, load_manifest
from inference.files import write_json
from inference.run_log import versions
from train.folds import make_folds
from train.fusion import train_fusion
from train.manifest import read_manifest
from train.network.config import parse_fusion_options
from train.tabular import train_tabular
from utils import InputError, log

REPORT = "training.json"
TRAIN_METADATA = "train-metadata.csv"
#: Where folds of an unfinished training wait for the next part: no dot before the names, Kaggle may not keep hidden folders.
WAITING = "unfinished"
#: ResNet50 without its top, as keras.applications names it; when it is attached, nothing is downloaded.
BACKBONE_WEIGHTS = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
#: Mounts lie at most this deep: notebooks/OWNER/SLUG. The competition's folder of 401,059 crops lies deeper.
DEPTH = 3


class OutOfTime(BaseException):
    """The hours of this part are over. No ``Exception``, so that nothing on the way takes it for a failure of its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises ``OutOfTime`` in the block when ``seconds`` are over."""

    def ring(number: int, frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def folders_with(name: str, root: Path, depth: int = DEPTH) -> list[Path]:
    """The folders at most ``depth`` levels below ``root`` that hold a file of this name."""
    found = [root] if (root / name).is_file() else []
    if depth:
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            found += folders_with(name, folder, depth - 1)
    return found


def the_one(name: str, root: Path) -> Path | None:
    """The folder below ``root`` with this file; None where there is none.

    Raises:
        InputError: there are several.
    """
    found = folders_with(name, root) if root.is_dir() else []
    if len(found) > 1:
        raise InputError(f"{name} is in {len(found)} inputs ({', '.join(map(str, found))}); attach one of them.")
    return found[0] if found else None


def take_over(before: Path, working: Path, settings: dict[str, list[str]]) -> None:
    """Copies what an earlier part left: the artifacts that its manifest names, and the folds that wait.

    Raises:
        InputError: that part was made by other settings, or its files are not those it wrote.
    """
    report = read_report(before)
    if report["settings"] != settings:
        raise InputError(f"{before} was trained with {report['settings']}, this part with {settings}; use the same.")
    if (before / MANIFEST).is_file():
        manifest = load_manifest(before)
        for name in manifest["files"]:
            shutil.copyfile(checked_file(before, manifest, name), working / name)
        shutil.copyfile(before / MANIFEST, working / MANIFEST)
    kept = sorted((before / WAITING).iterdir()) if (before / WAITING).is_dir() else []
    for folder in kept:
        shutil.copytree(folder, working / f".{folder.name}")
    log(f"taken over from {before}: {', '.join(stages_of(working)) or 'nothing'}, {finished_folds(working)} fold networks")


def read_report(folder: Path) -> dict[str, Any]:
    """training.json of a part.

    Raises:
        InputError: it is missing or not what this room writes.
    """
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        return {name: report[name] for name in ("finished", "settings", "folds", "trouble")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / REPORT} is not what training on Kaggle writes ({error}); run that part again."
        ) from error


def stages_of(working: Path) -> list[str]:
    """The stages that the manifest tells as done."""
    manifest = read_manifest(working)
    return [stage for stage in ("folds", "tabular", "network") if stage in manifest]


def finished_folds(working: Path) -> int:
    """How many fold networks are trained: their scores are written last."""
    named = read_manifest(working).get("network", {}).get("weights", [])
    kept = [path for folder in (working, working / WAITING) for path in folder.glob("*fusion-*/fold*.csv")]
    return len(named or kept)


def train(data: Path, working: Path, settings: dict[str, list[str]]) -> None:
    """Runs the stages that are not done yet."""
    where, done = ["--data", str(data), "--artifacts", str(working)], stages_of(working)
    if "folds" not in done:
        make_folds([*where, *settings["folds"]])
    if "tabular" not in done:
        train_tabular([*where, *settings["tabular"]])
    if "network" not in done:
        train_fusion([*where, "--logs", str(working / "logs"), *settings["fusion"]])


def main(settings: dict[str, list[str]], hours: float, arguments: list[str] | None = None) -> int:
    """Runs a part of the training; returns 0 also when time or an error stopped it: training.json tells.

    Args:
        settings: options of the three stages, by their names.
        hours: after which to stop.
        arguments: for tests; on Kaggle there are none.
    """
    start = time.monotonic()
    parser = argparse.ArgumentParser(description="Trains on Kaggle; no arguments there")
    parser.add_argument("--input-root", type=Path, default=Path("/kaggle/input"), help="where Kaggle mounts inputs")
    parser.add_argument("--working", type=Path, default=Path("/kaggle/working"), help="what Kaggle keeps")
    options = parser.parse_args(arguments)
    root, working = options.input_root, options.working
    data, before = the_one(TRAIN_METADATA, root), the_one(REPORT, root)
    if data is None:
        raise InputError(f"{TRAIN_METADATA} is in no folder below {root}; attach the competition.")
    if before:
        take_over(before, working, settings)
    settings_there = settings | {"fusion": [*settings["fusion"], *attached_weights(root)]}
    # A wrong option of the last stage is told now, not after an hour of CatBoost.
    parse_fusion_options(["--data", str(data), "--artifacts", str(working), *settings_there["fusion"]])
    log(f"competition {data}, {hours:g} hours, " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    trouble = ""
    try:
        with time_limit(hours * 3600 - (time.monotonic() - start)):
            train(data, working, settings_there)
    except OutOfTime:
        trouble = f"{hours:g} hours are over"
    except Exception as error:  # whatever it is: what was trained before it must be kept
        traceback.print_exc()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        trouble = f"{type(error).__name__}: {reason}"
    set_aside(working)
    report = {"finished": "network" in stages_of(working), "settings": settings, "folds": finished_folds(working)}
    write_json(working / REPORT, report | {"trouble": trouble, "stages": stages_of(working)})
    end = "finished" if report["finished"] else f"to be continued: {trouble}"
    log(f"{', '.join(stages_of(working))}, {report['folds']} fold networks: {end}")
    return 0


def set_aside(working: Path) -> None:
    """Moves the folds of an unfinished training from their hidden folder to one that Kaggle keeps."""
    for hidden in working.glob(".fusion-*"):
        for scores in hidden.glob("fold*.csv"):
            # Stopped while train.fusion moved its networks out, before the manifest named them: they go back.
            moved, weights = working / f"fusion_{scores.stem}.weights.h5", hidden / f"{scores.stem}.weights.h5"
            if moved.is_file() and not weights.is_file():
                moved.rename(weights)
        (working / WAITING).mkdir(exist_ok=True)
        hidden.rename(working / WAITING / hidden.name.removeprefix("."))


def attached_weights(root: Path) -> list[str]:
    """The option that takes the attached ImageNet weights, from a path that is the same in every part; none if none are."""
    folder = the_one(BACKBONE_WEIGHTS, root)
    if folder is None:
        return []
    return ["--weights", str(shutil.copy(folder / BACKBONE_WEIGHTS, tempfile.gettempdir()))]
