"""What a run of the main path will take, stage by stage: rows, steps, time, memory, disk; and what will not fit.

Nothing is written. A stage that will find its files there takes no time.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from evaluation import dry_run
from evaluation.main_path import forecast
from evaluation.main_path.estimates import (
    START,
    Estimate,
    estimate_dry_run,
    estimate_folds,
    estimate_network,
    estimate_stacking,
    estimate_tabular,
    recipe_of,
    rows_of,
)
from evaluation.main_path.probes import measure_network, measure_tabular, sample_of
from evaluation.main_path.stages import STAGES, Command, MainPath, commands, duration
from inference.artifacts import FOLDS, artifact_path
from inference.build_kernel import ROOT, build_kernel
from inference.images import find_images
from inference.schema import read_metadata
from scale.artifact_folder import fingerprints
from train.folds import FoldOptions, parse_fold_options
from train.fusion import networks_are_current
from train.leaks import ColumnChoice
from train.manifest import read_manifest
from train.network.config import parse_fusion_options
from train.stacking import stack_is_current
from train.tabular import TabularOptions, models_are_current, parse_tabular_options
from utils import InputError, text_table


@dataclass(frozen=True)
class Plan:
    """The estimates of all stages, what they are to fit into, and the forecast for Kaggle.

    Args:
        stages: in their order.
        recipes: of the networks, for the forecast.
        decoded: crops/s that one core decodes, for each network.
    """

    stages: Sequence[Estimate]
    recipes: Sequence[forecast.Recipe]
    decoded: Sequence[float]


def make_plan(path: MainPath) -> Plan:
    """Measures, a minute at most, and estimates.

    Raises:
        InputError: the data or an option cannot be used.
    """
    folds = parse_fold_options(arguments_of(path, "folds")[0])
    tabular = parse_tabular_options(arguments_of(path, "tabular")[0])
    networks = [parse_fusion_options(words) for words in arguments_of(path, "fusion")]
    started = time.perf_counter()
    metadata = read_metadata(path.data / "train-metadata.csv", labelled=True)
    rows = rows_of(metadata, folds, time.perf_counter() - started)
    images = find_images(path.data, "train")
    if images is None:
        raise InputError(f"{path.data} has neither train-image.hdf5 nor train-image/image; fetch the images.")
    done = done_of(path, folds, tabular, networks)
    if all(done):
        return Plan([Estimate(command.title, rows.all, done=True) for command in commands(path)], [], [])
    sample = sample_of(metadata)
    speed = measure_tabular(sample, tabular.config.parameters, folds.choice)
    del metadata
    speeds = [measure_network(sample, images, config) for _, config in networks]
    found: dict[str, list[Estimate]] = {
        "folds": [estimate_folds(rows, speed)],
        "tabular": [estimate_tabular(rows, speed, tabular)],
        "fusion": [
            estimate_network(rows, own, config, keeps_crops=run.cache is not None)
            for own, (run, config) in zip(speeds, networks, strict=True)
        ],
        "stacking": [estimate_stacking(rows, speed)],
        "kernel": [Estimate("kernel", 0, seconds=START)],
        "dry run": [estimate_dry_run(rows, speed, speeds, tabular, networks)],
    }
    modules, stages = {module: stage for stage, module in STAGES.items()}, []
    for command, is_done in zip(commands(path), done, strict=True):
        estimates = found.get(modules[command.module])
        own = estimates.pop(0) if estimates else Estimate("", rows.all, "not estimated")
        stages.append(replace(own, title=command.title, done=is_done))
    recipes = [recipe_of(rows, config) for _, config in networks]
    return Plan(stages, recipes, [own.decoded for own in speeds])


def arguments_of(path: MainPath, stage: str) -> list[list[str]]:
    """The arguments of a stage, once for each time that it runs."""
    return [list(command.arguments) for command in commands(path) if command.module == STAGES[stage]]


def done_of(path: MainPath, folds: FoldOptions, tabular: TabularOptions, networks: Sequence[tuple]) -> list[bool]:
    """For each command, whether it will find its files there; after one that will not, none will."""
    checks: dict[str, list[Callable[[], bool]]] = {
        "train.folds": [lambda: folds_are_current(folds)],
        "train.tabular": [lambda: models_are_current(tabular)],
        "train.fusion": [partial(networks_are_current, run, config) for run, config in networks],
    }
    found: list[bool] = []
    stale: set[str] = set()  # modules of commands that will not find their files there
    for command in commands(path):
        own = checks.get(command.module)
        read = {"train.fusion": {"train.folds", "train.tabular"}, STAGES["kernel"]: set()}.get(command.module, stale)
        is_done = not stale & read and (own.pop(0)() if own else other_is_current(command))
        found.append(is_done)
        if not is_done and command.module != STAGES["kernel"]:
            stale.add(command.module)
    return found


def folds_are_current(folds: FoldOptions) -> bool:
    """Whether folds of the same rows and options are there; a share of the holdout is not compared."""
    manifest = read_manifest(folds.artifacts)
    known, source = manifest.get("folds"), folds.data / "train-metadata.csv"
    if not known or not artifact_path(folds.artifacts, FOLDS).is_file():
        return False
    same = (known["folds"], known["seed"], known["holdout_hospital"]) == (folds.folds, folds.seed, folds.holdout_hospital)
    same &= ColumnChoice.recorded(manifest) == folds.choice
    return same and manifest["made_from"]["folds"] == {source.name: fingerprints([source])[str(source)]}


def other_is_current(command: Command) -> bool:
    """Whether the stack's models or the dry run's report are there, or kernel.py is up to date; else it is not known."""
    if command.module == STAGES["kernel"]:
        kernel = ROOT / "kernel.py"
        return kernel.is_file() and kernel.read_text(encoding="utf-8") == build_kernel()
    try:
        if command.module == STAGES["stacking"]:
            return stack_is_current(list(command.arguments))
        if command.module != STAGES["dry run"]:
            return False
        return dry_run.is_done(dry_run.read_options(list(command.arguments)))
    except InputError:
        return False


# In words


def plan_lines(plan: Plan, folder: Path) -> list[str]:
    """The plan as a table, the forecast and the warnings; ``folder`` is where the artifacts will lie."""
    head = ["stage", "rows", "steps", "time", "memory", "disk"]
    body = []
    for each in plan.stages:
        cells = ["done", "", ""] if each.done else [duration(each.seconds), f"{each.memory:.1f} GB", f"{each.disk:.2f} GB"]
        body.append([each.title, f"{each.rows:,}" if each.rows else "", each.steps, *cells])
    todo = [each for each in plan.stages if not each.done]
    total = [
        sum(each.seconds for each in todo),
        max([each.memory for each in todo], default=0.0),
        sum(each.disk for each in todo),
    ]
    body.append(["all", "", "", duration(total[0]), f"{total[1]:.1f} GB", f"{total[2]:.2f} GB"])
    return [text_table([head, *body]), *kaggle_lines(plan), *warnings(total[1], total[2], folder)]


def warnings(memory: float, disk: float, folder: Path) -> list[str]:
    """What will not fit into this machine, GB."""
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())
    free, available = shutil.disk_usage(existing).free / 1e9, available_memory()
    lines = []
    if disk > free:
        lines.append(f"WARNING: {disk:.1f} GB are to be written, {free:.1f} GB are free in {existing}")
    if available is not None and memory > available:
        lines.append(f"WARNING: a stage will hold {memory:.1f} GB, {available:.1f} GB of memory are available")
    return lines


def available_memory() -> float | None:
    """Memory that processes can still get, GB; None where the system does not report it."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024 / 1e9
    except (OSError, ValueError, IndexError):
        return None


def kaggle_lines(plan: Plan) -> list[str]:
    """The forecast for the networks on each kind of session, with the competition's rows."""
    pairs = [pair for pair in zip(plan.recipes, plan.decoded, strict=True) if forecast.known(pair[0].backbone)]
    lines = []
    for gpu in forecast.GPUS:
        each = [forecast.forecast(recipe, gpu, "float32", decoded) for recipe, decoded in pairs]
        if not each:
            continue
        both = forecast.Forecast(sum(one.training for one in each), sum(one.kernel for one in each))
        lines.append(
            f"Kaggle, {gpu.name} (forecast): networks {both.training:.1f} h, kernel on {forecast.TEST_ROWS:,} lesions "
            f"{both.kernel:.1f} h of {forecast.HOURS:.0f} h, margin {both.margin:.1f}"
        )
        if both.kernel > forecast.HOURS:
            lines.append(
                f"WARNING: on {gpu.name} the kernel will not reach all lesions; choose fewer views, folds or pixels"
            )
        if both.training > forecast.HOURS:
            parts = math.ceil(both.training / forecast.HOURS)
            lines.append(f"WARNING: on {gpu.name} the training takes {parts} sessions (make train-on-kaggle PART=2)")
    memory = max([each.memory for each in plan.stages if not each.done], default=0.0)
    if memory > forecast.MEMORY:
        lines.append(f"WARNING: a stage will hold {memory:.1f} GB, a Kaggle session has {forecast.MEMORY:.0f} GB")
    return lines
