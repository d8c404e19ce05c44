"""Measures the fitting of the network: whether the input pipeline keeps the accelerator busy.

    python -m benchmarks.training --data data/isic-2024-challenge --image-size 128 --backbone efficientnet-lite0

Without --data it makes a synthetic dataset. The same training steps are fed from the image file, from the cache of decoded
crops and from memory; they take turns in one process, so that a busy machine slows all. Prints JSON lines, medians of the
rounds: images per second, and the share of the steps' time in which they wait for a batch, a feed's start included.
"""

from __future__ import annotations

import functools
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.report import progress, report, take_turns, timed
from inference.backbones import BACKBONES, RESNET50
from inference.network import NetworkConfig
from inference.options import Parser, add_seed_option, count, crop_count, existing_folder, image_size
from inference.schema import ID, TARGET, read_metadata
from terminal import run_command
from train.lesions import open_images
from train.network.batches import TrainingData
from train.network.config import TrainingConfig
from train.network.fit import Phase, Plan, batches_for, compiled_model, corrected_loss
from train.network.known_images import KnownImages, image_digests
from train.network.model import precision, starting_network
from train.synthetic.dataset import DatasetConfig, write_dataset
from utils import set_seed

FEED_TARGET, WAIT_TARGET = 0.95, 0.05


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=existing_folder, metavar="DIR", help="competition folder (default: a synthetic dataset)"
    )
    parser.add_argument("--backbone", choices=BACKBONES, default=RESNET50, help="(default: %(default)s)")
    parser.add_argument("--image-size", type=image_size, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=crop_count, default=64, help="crops per step (default: %(default)s)")
    parser.add_argument("--steps", type=count(), default=10, help="of every measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=count(), default=5, help="in which the ways take turns (default: %(default)s)")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        data, lesions = options.data or Path(folder), max(60, options.steps * options.batch_size)
        if options.data is None:
            progress("making a synthetic dataset")
            write_dataset(data, DatasetConfig(8, lesions, 0.1, options.seed))
        epoch = training_data(data, options.steps, options.image_size, options.batch_size, options.seed)
        measure(replace(epoch, cache=Path(folder) / "cache"), options.backbone, options.rounds)
    return 0


def training_data(data: Path, steps: int, image_size: int, batch_size: int, seed: int) -> TrainingData:
    """All lesions of a competition folder, shuffled, repeated where they are too few for ``steps`` batches."""
    metadata, store = read_metadata(data / "train-metadata.csv", labelled=True), open_images(data)
    digests = image_digests(store, metadata[ID].to_numpy())
    images = KnownImages(store, metadata[ID], digests)
    metadata = metadata[digests != 0]
    count = max(steps * batch_size, len(metadata))
    order = np.resize(np.random.default_rng(seed).permutation(len(metadata)), count)
    return TrainingData(
        images=images,
        isic_ids=metadata[ID].to_numpy()[order],
        inputs={"tabular": np.zeros(count)},
        targets=metadata[TARGET].to_numpy()[order],
        sample_weight=np.ones(count),
        steps=steps,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
    )


def measure(data: TrainingData, backbone: str, rounds: int) -> None:
    """Images per second and waiting of ``data.steps`` steps, fed from the file, from ``data.cache`` and from memory."""
    import tensorflow as tf

    set_seed(data.seed)
    config = TrainingConfig(weights="none")
    plan = Plan("benchmark", (Phase("stages", "all", 0, 3 * rounds + 1, 1e-4),), corrected_loss(0.0), config)
    with precision("auto"):
        network = starting_network(NetworkConfig(data.image_size, backbone=backbone), "none")
        model = compiled_model(network, data, plan, plan.phases[0])
    file = batches_for(model, replace(data, cache=None), 0)
    seconds, cache = timed(lambda: batches_for(model, data, 0))
    progress(f"decoded {len(set(data.isic_ids)):,} crops into the cache in {seconds:.1f} s")
    memory = tf.data.Dataset.from_tensors(next(iter(file))).repeat().prefetch(2)
    feeds = {"memory": memory, "file": file, "cache": cache}
    waits: dict[str, list[float]] = {name: [] for name in feeds}

    def fit(name: str) -> int:
        began, waited = time.perf_counter(), 0.0
        batches = iter(feeds[name])
        for _ in range(data.steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            model.train_on_batch(*batch)
        waits[name].append(waited / (time.perf_counter() - began))
        return data.steps * data.batch_size

    progress("tracing")
    model.train_on_batch(*next(iter(memory)))
    found = take_turns({name: functools.partial(fit, name) for name in feeds}, rounds)
    lesions, beside = len(set(data.isic_ids)), ("the same step fed from memory", found["memory"])
    for name in ("file", "cache"):
        report(f"training feed, {name}", found[name], "images/s", lesions, beside, FEED_TARGET)
        wait = float(np.median(waits[name]))
        report(f"training wait, {name}", wait, "of the time", lesions, ("the whole step", 1.0), WAIT_TARGET)


if __name__ == "__main__":
    run_command(main)
