"""Measures the kernel: reading and decoding, the whole of its image stage, its start, and its growth in time and memory.

    python -m benchmarks.inference                    reading, decoding, image stage, start
    python -m benchmarks.inference --decoding         reading and decoding and nothing else
    python -m benchmarks.inference --growth           and time and memory from 2,000 to 50,000 images of 32 pixels, and
                                                      the memory of as many rows as the hidden test has

Prints one JSON line per figure. Ratios compare ways that take turns in one process, so that a busy machine slows all.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.report import add_networks, growth_exponent, progress, report, run_kernel, take_turns, train_small
from inference.backbones import BACKBONES, RESNET50
from inference.images import ImageStore, cores, decode_crop, image_batches
from inference.network import Ensemble, NetworkConfig, build_network, devices, network_logits
from inference.options import Parser, add_seed_option, count, image_size
from inference.schema import ID, TEST_COLUMNS
from terminal import run_command
from train.synthetic.dataset import DatasetConfig, write_dataset

TARGETS = {"reading": 1.0, "decoding": 0.85, "plain reader": 3.0, "image stage": 0.93}
TARGETS |= {"start": 20.0, "growth": 1.05, "memory": 3.0}
BATCH = 64
#: How often reading and decoding go through the images at a time, so that their start does not count.
REPEATS = 5
#: Lesions of the image stage, enough for its start not to count. It has one network: with more, decoding's share is smaller.
STAGE = 640
#: Images are measured from the first to the last of GROWTH; rows without one up to the size of the hidden test.
GROWTH, ROWS = (2_000, 10_000, 50_000), 511_474


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=count(60), default=1_500, help="of the synthetic dataset (default: %(default)s)")
    parser.add_argument("--image-size", type=image_size, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--networks", type=count(), default=5, help="folds, at the start (default: %(default)s)")
    parser.add_argument("--rounds", type=count(), default=3, help="in which the ways take turns (default: %(default)s)")
    parser.add_argument("--growth", action="store_true", help=f"also time {GROWTH[0]:,} to {GROWTH[-1]:,} images")
    parser.add_argument("--decoding", action="store_true", help="time reading and decoding and nothing else")
    parser.add_argument("--backbones", action="store_true", help="time the backbones and nothing else")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    if options.backbones:
        measure_backbones(options.images, options.image_size, options.rounds)
        return 0
    with tempfile.TemporaryDirectory() as name:
        data, artifacts, few_trees = (Path(name) / each for each in ("data", "artifacts", "few_trees.json"))
        progress("making a synthetic dataset")
        write_dataset(data, DatasetConfig(8, options.images, 0.1, options.seed))
        store = ImageStore(data / "train-image.hdf5")
        with h5py.File(store.path) as file:
            ids = sorted(file)
        measure_reading(store, ids * REPEATS, options.rounds)
        measure_decoding(store, ids * REPEATS, options.image_size, options.rounds)
        if options.decoding:
            store.close()
            return 0
        measure_images(store, ids[:STAGE], options.image_size, options.rounds)
        progress("training small artifacts")
        few_trees.write_text('{"iterations": 20}')  # the number of trees does not change these figures
        train_small(data, artifacts, 2, ["--seeds", "1", "--params", str(few_trees)])
        measure_start(store, artifacts, options.image_size, options.networks)
        if options.growth:
            measure_growth(store, artifacts, GROWTH, ROWS)
        store.close()
    return 0


def measure_reading(store: ImageStore, ids: list[str], rounds: int) -> None:
    """HDF5 to checked JPEG bytes, beside ``file[isic_id][()]``: why ``ImageStore`` uses h5py's low-level interface."""

    def plainly() -> int:
        with h5py.File(store.path) as file:
            return sum(1 for isic_id in ids if file[isic_id][()])

    found = take_turns({"store": lambda: sum(1 for isic_id in ids if store.read(isic_id)), "h5py": plainly}, rounds)
    beside = ("h5py's dataset[()]", found["h5py"])
    report("inference reading", found["store"], "images/s", len(ids), beside, TARGETS["reading"])


def measure_decoding(store: ImageStore, ids: list[str], size: int, rounds: int) -> None:
    """HDF5 to decoded batch, beside the same decoder on bytes in memory, and beside a plain reader."""
    import tensorflow as tf

    batches = image_batches(store, ids, size, BATCH)
    memory = tf.data.Dataset.from_tensor_slices([store.read(isic_id) for isic_id in ids])
    memory = memory.map(lambda jpeg: decode_crop(jpeg, size), cores()).batch(BATCH).prefetch(2)
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
    found = take_turns(ways, rounds)
    beside = ("the same decoder fed from memory", found["memory"])
    report("inference decoding", found["hdf5"], "images/s", len(ids), beside, TARGETS["decoding"])
    beside = ("h5py and Pillow, one by one", found["plain"])
    report("inference decoding", found["hdf5"], "images/s", len(ids), beside, TARGETS["plain reader"])


def measure_images(store: ImageStore, ids: list[str], size: int, rounds: int) -> None:
    """The whole image stage of one network, beside its bare forward pass on decoded crops in memory."""
    import tensorflow as tf

    network = build_network(NetworkConfig(size))
    ensemble = Ensemble(network, places=devices()[:1])
    tabular, batches = np.zeros(len(ids)), image_batches(store, ids, size, BATCH)
    decoded = [crops for _, crops in batches]
    forward = tf.function(lambda batch: network(batch, training=False), reduce_retracing=True)

    def bare() -> int:
        for crops in decoded:
            forward({"crop": crops, "tabular": tf.zeros((len(crops), 1))}).numpy()
        return len(ids)

    progress("tracing")
    bare()
    ways = {"stage": lambda: sum(len(rows) for rows, _ in network_logits(ensemble, batches, tabular)), "bare": bare}
    found = take_turns(ways, rounds)
    beside = ("its network's bare forward pass", found["bare"])
    report("inference image stage", found["stage"], "images/s", len(ids), beside, TARGETS["image stage"])


def measure_backbones(images: int, size: int, rounds: int) -> None:
    """Images per second of one network with each backbone, on crops in memory, beside ResNet50; the bytes of its weights."""
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype="uint8")
    tabular, ways, megabytes = np.zeros((BATCH, 1), "float32"), {}, {}
    for name in BACKBONES:
        progress(f"tracing {name}")
        network = build_network(NetworkConfig(size, backbone=name))
        ensemble = Ensemble(network, places=devices()[:1])
        ensemble.logits(crops, tabular)
        megabytes[name] = 4e-6 * network.count_params()
        ways[name] = lambda ensemble=ensemble: sum(
            len(ensemble.logits(crops, tabular)) for _ in range(max(1, images // BATCH))
        )
    found = take_turns(ways, rounds)
    for name in BACKBONES:
        beside = (f"{RESNET50}", found[RESNET50])
        report(f"inference {name}, {megabytes[name]:.0f} MB", found[name], "images/s", images, beside)


def score(store: ImageStore, artifacts: Path, rows: int, images: int | None = None) -> dict:
    """run.json of the built kernel on ``rows`` lesions, those of the synthetic dataset over and over.

    Args:
        store: images of the dataset; its metadata lies beside them.
        artifacts: of the kernel.
        rows: how many.
        images: so many of them have one; all, if not given.
    """
    progress(f"the kernel on {rows:,} rows, {rows if images is None else images:,} with an image")
    table = pd.read_csv(store.path.parent / "train-metadata.csv", dtype="str", keep_default_na=False)
    table = table.iloc[np.arange(rows) % len(table)][list(TEST_COLUMNS)]
    ids = [f"ISIC_{number:07d}" for number in range(rows)]

    def jpegs() -> Iterator[tuple[str, bytes]]:
        for isic_id, original in zip(ids[:images], table[ID][:images], strict=True):
            yield isic_id, store.read(original)

    with tempfile.TemporaryDirectory() as folder:
        return run_kernel(Path(folder), table.assign(**{ID: ids}), jpegs(), artifacts)


def measure_start(store: ImageStore, artifacts: Path, size: int, networks: int) -> None:
    """Seconds from the start of the process to the first scored batch, on three rows."""
    add_networks(artifacts, NetworkConfig(size), networks)
    run, name = score(store, artifacts, 3), f"inference start to first batch, {networks} networks"
    report(name, run["seconds_to_first_batch"], "s", 3, ("the whole run", sum(run["seconds"].values())), TARGETS["start"])


def measure_growth(store: ImageStore, artifacts: Path, growth: tuple[int, ...], rows: int) -> None:
    """How the time of scoring and the peak memory grow with the number of images and rows, one network of 32 pixels."""
    add_networks(artifacts, NetworkConfig(32), 1)
    runs = [score(store, artifacts, images) for images in growth]
    after_start = [run["seconds"]["tabular"] + run["seconds"]["images"] - run["seconds_to_first_batch"] for run in runs]
    exponent = growth_exponent(growth, after_start)
    report("inference growth", exponent, "exponent of images", growth[-1], ("exponent 1", 1.0), TARGETS["growth"])
    runs.append(score(store, artifacts, rows, growth[0]))
    first, images, without = (run.get("peak_memory_gb", math.nan) for run in (runs[0], *runs[-2:]))
    beside = (f"that of {growth[0]:,} images", first)
    report("inference memory, images", images, "GB", growth[-1], beside, TARGETS["memory"])
    report("inference memory, rows", without, "GB", rows, beside, TARGETS["memory"])


if __name__ == "__main__":
    run_command(main)
