"""Measures the fitting of the network: does the input pipeline keep the accelerator busy, and what does the optimizer cost.

    python -m benchmarks.training --data data/isic-2024-challenge --image-size 128

Without --data it makes a twin. Each figure compares two ways that take turns in one process, so that a busy machine slows
both. Prints one JSON line per figure, the median of the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import progress, report
from inference.images import ImageStore
from inference.schema import ID, TARGET, read_metadata
from train.lesions import open_images
from train.network.batches import Sequence, readable_images, training_batches
from train.network.fit import (
    WEIGHT_DECAY,
    adamw,
    augmented,
    input_names,
    precision,
    shifted_loss,
    starting_network,
    unfreeze,
)
from train.synthetic.dataset import DatasetConfig, write_dataset
from utils import InputError, add_seed_option, run_command, set_seed

TARGETS = {"feed": 0.95, "optimizer": 1.0}
LEARNING_RATE = 1e-4


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="competition folder (default: a twin, made for it)")
    parser.add_argument("--image-size", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="crops per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of every measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="in which the ways take turns (default: %(default)s)")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    if min(options.batch_size, options.steps, options.rounds) < 1:
        raise InputError("--batch-size, --steps and --rounds must be 1 or more.")
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder)
        if options.data is None:
            progress("making a twin")
            lesions = max(60, options.steps * options.batch_size)
            write_dataset(data, DatasetConfig(8, lesions, 0.1, options.seed))
        measure(data, options)
    return 0


def measure(data: Path, options: argparse.Namespace) -> None:
    """Reports both figures for the images of a competition folder."""
    metadata, store = read_metadata(data / "train-metadata.csv", labelled=True), open_images(data)
    metadata = metadata[readable_images(store, metadata[ID].to_numpy())]
    count = options.steps * options.batch_size
    order = np.resize(np.random.default_rng(options.seed).permutation(len(metadata)), count)
    labels = metadata[TARGET].to_numpy()[order]
    rows = Sequence(metadata[ID].to_numpy()[order], {"tabular": np.zeros(count)}, labels, np.ones(count))
    from_file = batches_of(store, rows, options)
    from_memory = in_memory(from_file)
    with precision("auto"):
        models = {name: compiled(name, options) for name in ("fused", "keras")}
    progress("tracing")
    for model in models.values():
        speed(model, from_memory, options)
    found = {"file": [], "memory": [], "keras": []}
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        found["memory"].append(speed(models["fused"], from_memory, options))
        found["file"].append(speed(models["fused"], from_file, options))
        found["keras"].append(speed(models["keras"], from_memory, options))
    median = {name: float(np.median(values)) for name, values in found.items()}
    told = {"lesions": len(metadata), "unit": "images/s"}
    beside = "the same step fed from memory"
    report("training feed", median["file"], told, beside, median["memory"], TARGETS["feed"])
    report("training optimizer", median["memory"], told, "Keras's own AdamW", median["keras"], TARGETS["optimizer"])


def batches_of(store: ImageStore, rows: Sequence, options: argparse.Namespace):
    """What ``train.fusion`` feeds, over and over."""
    names = ("crop", "tabular", "draws")
    batches = training_batches(store, rows, options.image_size, options.batch_size, seed=options.seed)
    return batches.map(lambda inputs, *rest: ({name: inputs[name] for name in names}, *rest)).repeat()


def in_memory(batches):
    """One of these batches, decoded, over and over."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors(next(iter(batches))).repeat().prefetch(2)


def compiled(optimizer: str, options: argparse.Namespace):
    """The fusion network ready to be fitted, every stage, by our optimizer or by Keras's."""
    import keras

    set_seed(options.seed)
    network = starting_network({"image_size": options.image_size}, "none")
    unfreeze(network, "all", from_scratch=True)
    model = augmented(network)
    chosen = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    if optimizer == "fused":
        chosen = adamw(options.steps * (2 * options.rounds + 1), LEARNING_RATE)
    chosen.build(model.trainable_variables)
    model.compile(optimizer=chosen, loss=shifted_loss(0.0), jit_compile=False)
    assert set(input_names(model)) == {"crop", "tabular", "draws"}
    return model


def speed(model, batches, options: argparse.Namespace) -> float:
    """Images per second of ``fit``."""
    start = time.perf_counter()
    model.fit(batches, steps_per_epoch=options.steps, verbose=0)
    return options.steps * options.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    run_command(main)
