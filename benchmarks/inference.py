"""Measures the kernel: decoding, the whole of its image stage, its start, and its growth in time and memory.

    python -m benchmarks.inference                    decoding, image stage, start
    python -m benchmarks.inference --growth           and time and memory from 2,000 to 50,000 images of 32 pixels, and
                                                      the memory of as many rows as the hidden test has

Prints one JSON line per figure. Ratios compare ways that take turns in one process, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.report import progress, report
from benchmarks.tabular import growth_exponent
from inference.build_kernel import ROOT
from inference.images import ImageStore, cores, decode_crop, image_batches
from inference.network import Ensemble, NetworkConfig, build_network, devices, network_logits
from inference.schema import ID, TEST_COLUMNS, read_metadata
from train.folds import make_folds
from train.manifest import record_stage
from train.synthetic.__main__ import write_twin
from train.tabular import train_tabular
from utils import InputError, add_seed_option, run_command

TARGETS = {"image stage": 0.93, "decoding": 0.85, "plain reader": 3.0, "start": 20.0, "growth": 1.05, "memory": 3.0}
GROWTH = (2_000, 10_000, 50_000)
#: Lesions of the hidden test; the kernel reads images until then, so few of them will do to see what rows cost.
ROWS, ROWS_WITH_IMAGE = 511_474, 2_000
BATCH = 64
#: How often decoding reads the twin in one go, so that its start does not count.
REPEATS = 5
#: Lesions of the image stage, enough for its start not to count. It has one network: the fewer networks, the more of the
#: time is decoding's.
STAGE = 640


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1_500, help="of the twin (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--networks", type=int, default=5, help="folds, at the start (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="in which the ways take turns (default: %(default)s)")
    parser.add_argument("--growth", action="store_true", help=f"also time {GROWTH[0]:,} to {GROWTH[-1]:,} images")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    if min(options.images // 60, options.networks, options.rounds) < 1:
        raise InputError("--images must be 60 or more, --networks and --rounds 1 or more.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress("making a twin")
        write_twin(folder / "data", patients=8, lesions=options.images, prevalence=0.1, seed=options.seed)
        store = ImageStore(folder / "data" / "train-image.hdf5")
        ids = read_metadata(folder / "data" / "train-metadata.csv", labelled=True)[ID].tolist()
        measure_decoding(store, ids * REPEATS, options)
        measure_images(store, ids[:STAGE], options)
        store.close()
        progress("training small artifacts")
        artifacts = small_artifacts(folder, options)
        measure_start(folder, artifacts, options)
        if options.growth:
            measure_growth(folder, options)
    return 0


def take_turns(ways: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Images per second of each way, the median of the rounds; a way returns how many images it did."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: {', '.join(ways)}")
        for name, way in ways.items():
            start = time.perf_counter()
            speeds[name].append(way() / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in speeds.items()}


def measure_decoding(store: ImageStore, ids: list[str], options: argparse.Namespace) -> None:
    """HDF5 to decoded batch, beside the same decoder on bytes in memory, and beside a plain reader."""
    import tensorflow as tf

    jpegs, size = [store.read(isic_id) for isic_id in ids], options.image_size
    memory = tf.data.Dataset.from_tensor_slices(jpegs)
    memory = memory.map(lambda jpeg: decode_crop(jpeg, size), cores()).batch(BATCH).prefetch(2)
    batches = image_batches(store, ids, size, BATCH)
    memory = memory.with_options(batches.options())

    def plainly() -> int:
        with h5py.File(store.path) as file:
            for isic_id in ids:
                np.asarray(Image.open(io.BytesIO(file[isic_id][()])).convert("RGB").resize((size, size)))
        return len(ids)

    ways = {
        "hdf5": lambda: sum(len(crops) for _, crops in batches),
        "memory": lambda: sum(map(len, memory)),
        "plain": plainly,
    }
    found = take_turns(ways, options.rounds)
    told = {"lesions": len(ids), "unit": "images/s"}
    report(
        "inference decoding", found["hdf5"], told, "the same decoder fed from memory", found["memory"], TARGETS["decoding"]
    )
    report("inference decoding", found["hdf5"], told, "h5py and Pillow, one by one", found["plain"], TARGETS["plain reader"])


def measure_images(store: ImageStore, ids: list[str], options: argparse.Namespace) -> None:
    """The whole image stage of one network, beside its bare forward pass on decoded crops in memory."""
    import tensorflow as tf

    network = build_network(NetworkConfig(options.image_size))
    ensemble = Ensemble(network, places=devices()[:1])
    tabular = np.zeros(len(ids))
    batches = image_batches(store, ids, options.image_size, BATCH)
    decoded = [(positions, crops) for positions, crops in batches]
    forward = tf.function(lambda batch: network(batch, training=False), reduce_retracing=True)

    def bare() -> int:
        for _, crops in decoded:
            forward({"crop": crops, "tabular": tf.zeros((len(crops), 1))}).numpy()
        return len(ids)

    progress("tracing")
    bare()
    ways = {"stage": lambda: sum(len(rows) for rows, _ in network_logits(ensemble, batches, tabular)), "bare": bare}
    found = take_turns(ways, options.rounds)
    told = {"lesions": len(ids), "unit": "images/s"}
    report(
        "inference image stage",
        found["stage"],
        told,
        "its network's bare forward pass",
        found["bare"],
        TARGETS["image stage"],
    )


def small_artifacts(folder: Path, options: argparse.Namespace) -> Path:
    """Artifacts with few trees and networks of random weights: how long they take hangs on neither."""
    parameters = folder / "few_trees.json"
    parameters.write_text('{"iterations": 20}')
    where = ["--data", str(folder / "data"), "--artifacts", str(folder / "artifacts")]
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for figures
        make_folds([*where, "--folds", "2", "--holdout", "0"])
        train_tabular([*where, "--seeds", "1", "--params", str(parameters)])
    names = [f"fusion_fold{number}.weights.h5" for number in range(options.networks)]
    for number, name in enumerate(names):
        if number:
            shutil.copy(folder / "artifacts" / names[0], folder / "artifacts" / name)
        else:
            build_network(NetworkConfig(options.image_size)).save_weights(folder / "artifacts" / name)
    settings = NetworkConfig(options.image_size).to_dict()
    content = {"weights": names, "settings": settings, "combination": {"kind": "network"}}
    record_stage(folder / "artifacts", "network", content, names)
    return folder / "artifacts"


def run_kernel(folder: Path, artifacts: Path, rows: int, images: int | None = None) -> dict:
    """run.json of the built kernel on ``rows`` lesions, those of the twin over and over; "peak" in GB beside it.

    Args:
        folder: holds the twin, and what is made here.
        artifacts: of the kernel.
        rows: how many.
        images: so many of them have one; all, if not given.
    """
    competition, out = folder / f"test{rows}", folder / f"out{rows}"
    competition.mkdir()
    table = pd.read_csv(folder / "data" / "train-metadata.csv", dtype="str", keep_default_na=False)
    table = table.iloc[np.arange(rows) % len(table)][list(TEST_COLUMNS)].copy()
    originals, table[ID] = table[ID].tolist(), [f"ISIC_{number:07d}" for number in range(rows)]
    table.to_csv(competition / "test-metadata.csv", index=False)
    with h5py.File(folder / "data" / "train-image.hdf5") as source, h5py.File(competition / "test-image.hdf5", "w") as file:
        for isic_id, original in zip(table[ID][:images], originals[:images], strict=True):
            file.create_dataset(isic_id, data=source[original][()])
    table[[ID]].assign(target=0.3).to_csv(competition / "sample_submission.csv", index=False)
    command = [sys.executable, "-I", str(ROOT / "kernel.py"), "--competition", str(competition)]
    command += ["--artifacts", str(artifacts), "--output", str(out / "submission.csv")]
    measured = (
        "import json, resource, subprocess, sys; subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL);"
        "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"
    )
    out.mkdir()
    subprocess.run([sys.executable, "-c", measured, str(out / "peak"), *command], check=True)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes, or kilobytes
    facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
    shutil.rmtree(competition)
    return facts | {"peak": int((out / "peak").read_text()) * unit / 1e9}


def measure_start(folder: Path, artifacts: Path, options: argparse.Namespace) -> None:
    """Seconds from the start of the process to the first scored batch, on three rows."""
    progress("the kernel on 3 rows")
    facts = run_kernel(folder, artifacts, 3)
    told = {"lesions": 3, "unit": "s"}
    total = sum(facts["seconds"].values())
    name = f"inference start to first batch, {options.networks} networks"
    report(name, facts["seconds_to_first_batch"], told, "the whole run", total, TARGETS["start"])


def measure_growth(folder: Path, options: argparse.Namespace) -> None:
    """How the image stage's time and the peak memory grow with the number of images, one network of 32 pixels."""
    small = argparse.Namespace(**vars(options) | {"image_size": 32, "networks": 1})
    shutil.rmtree(folder / "artifacts")
    artifacts = small_artifacts(folder, small)
    seconds, peaks = [], []
    for rows in GROWTH:
        progress(f"the kernel on {rows:,} rows")
        facts = run_kernel(folder, artifacts, rows)
        seconds.append(facts["seconds"]["images"] - facts["seconds_to_first_batch"] + facts["seconds"]["tabular"])
        peaks.append(facts["peak"])
    told = {"lesions": GROWTH[-1], "unit": "exponent of images"}
    report("inference growth", growth_exponent(GROWTH, seconds), told, "exponent 1", 1.0, TARGETS["growth"])
    told = {"lesions": GROWTH[-1], "unit": "GB"}
    report("inference memory, images", peaks[-1], told, f"that of {GROWTH[0]:,} images", peaks[0], TARGETS["memory"])
    progress(f"the kernel on {ROWS:,} rows, {ROWS_WITH_IMAGE:,} with an image")
    peak = run_kernel(folder, artifacts, ROWS, ROWS_WITH_IMAGE)["peak"]
    told = {"lesions": ROWS, "unit": "GB"}
    report("inference memory, rows", peak, told, f"that of {ROWS_WITH_IMAGE:,} rows", peaks[0], TARGETS["memory"])


if __name__ == "__main__":
    run_command(main)
