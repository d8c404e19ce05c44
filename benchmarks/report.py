"""What the benchmarks share: JSON lines on standard output, progress on standard error, timing, runs of the kernel."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.artifacts import FUSION, fold_network_file
from inference.build_kernel import ROOT
from inference.files import write_csv
from inference.network import NetworkConfig, build_network
from inference.schema import ID, TARGET
from train.folds import make_folds
from train.image_files import write_image_file
from train.manifest import record_stage
from train.tabular import train_tabular
from utils import OUTPUT, print_line


def report(
    name: str, value: float, unit: str, lesions: int, ratio_to: tuple[str, float], target: float | None = None
) -> None:
    """Prints one figure.

    Args:
        name: of the figure.
        value: what was measured.
        unit: of the value.
        lesions: how many it was measured on.
        ratio_to: what the value is compared with, and that value, measured in the same run.
        target: of the value or the ratio, whichever the benchmark aims at; None for none.
    """
    reference, base = ratio_to
    line = {"benchmark": name, "lesions": lesions, "value": round(value, 4), "unit": unit}
    print_line(json.dumps(line | {"ratio_to": reference, "ratio": round(value / base, 4), "target": target}))


def progress(text: str) -> None:
    """Prints what is being measured on standard error, unless --quiet."""
    if OUTPUT.verbosity >= 0:
        print_line(text, stream=sys.stderr)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds, and what the work returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def take_turns(ways: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Images per second of each way, the median of the rounds; a way returns its number of images.

    The ways take turns, so that a busy machine slows all of them.
    """
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: {', '.join(ways)}")
        for name, way in ways.items():
            seconds, images = timed(way)
            speeds[name].append(images / seconds)
    return {name: float(np.median(values)) for name, values in speeds.items()}


def growth_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The power of ``sizes`` that ``seconds`` grow with: the slope of a straight line through their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def train_small(data: Path, artifacts: Path, folds: int, tabular_options: Sequence[str]) -> None:
    """Folds and CatBoost models of a competition folder; logs to standard error, since standard output is for figures."""
    where = ["--data", str(data), "--artifacts", str(artifacts)]
    with contextlib.redirect_stdout(sys.stderr):
        make_folds([*where, "--folds", str(folds), "--holdout", "0"])
        train_tabular([*where, *tabular_options])


def add_networks(artifacts: Path, config: NetworkConfig, count: int) -> None:
    """Adds ``count`` fold networks of the same random weights, which correct the tabular logit at random."""
    network, names = build_network(config), [fold_network_file(number) for number in range(count)]
    units = config.head_units
    network.get_layer("correction").set_weights([np.linspace(-0.5, 0.6, units)[:, None], np.array([0.3])])
    for name in names:
        network.save_weights(artifacts / name)
    network = {"weights": names, "settings": config.to_dict(), "pauc": 0.0}
    content = {"networks": {FUSION: network}, "combination": {"kind": "network"}}
    record_stage(artifacts, "network", content, names)


def run_kernel(folder: Path, rows: pd.DataFrame, images: Iterable[tuple[str, bytes]], artifacts: Path) -> dict:
    """Runs the built kernel in a process of its own; returns its run.json.

    Args:
        folder: new; takes the test folder, submission.csv, scores.csv and run.json.
        rows: as the competition's test-metadata.csv.
        images: isic_id and JPEG bytes of the rows that have an image.
        artifacts: of the kernel.
    """
    write_csv(folder / "test-metadata.csv", rows, float_format=None)
    write_csv(folder / "sample_submission.csv", rows[[ID]].assign(**{TARGET: 0.3}))
    write_image_file(folder / "test-image.hdf5", images, len(rows))
    command = [sys.executable, "-I", str(ROOT / "kernel.py"), "--competition", str(folder), "--artifacts", str(artifacts)]
    command += ["--output", str(folder / "submission.csv"), "--scores", str(folder / "scores.csv")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))
