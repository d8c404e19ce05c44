"""Initial weights of a backbone from crops without labels (SimSiam, Chen and He 2021, Exploring Simple Siamese Networks).

    python -m train.network.self_supervised --data data/isic-2024-challenge --out self-supervised.weights.h5 \
        --backbone efficientnet-lite0 --epochs 30
    python -m train.fusion --data ... --artifacts ... --backbone efficientnet-lite0 --weights self-supervised.weights.h5

Two augmented views of a crop pass the backbone and a projector; a predictor learns to give the projection of one from that
of the other. The labels are not read. The same command continues an interrupted training after its last epoch.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from inference.backbones import BACKBONES, RESNET50, backbone_of
from inference.files import sha256_of
from inference.network import NetworkConfig
from inference.options import (
    Parser,
    add_seed_option,
    count,
    crop_count,
    existing_folder,
    image_size,
    output_file,
    output_folder,
    positive_number,
)
from inference.run_log import versions
from inference.schema import ID, read_metadata
from terminal import run_command
from train.code_version import code_version
from train.lesions import open_images
from train.network.augmentation import AUGMENTATIONS, DRAWS, augment
from train.network.checkpoint import Checkpoint, save_weights
from train.network.config import MOST_EPOCHS, TrainingConfig, initial_weights
from train.network.crop_cache import crop_batches
from train.network.fit import adamw
from train.network.imagenet_weights import initial_weights_file
from train.network.known_images import KnownImages, as_input_errors, image_digests
from train.network.model import be_deterministic, starting_network, unfreeze
from utils import InputError, log, log_summary, set_seed

#: Widths of the projections and of the predictor's hidden layer.
PROJECTION, HIDDEN = 1024, 256
#: A spread of the projections below this means that all crops have the same one; 1 is that of random directions.
COLLAPSED = 0.1


@dataclass(frozen=True)
class Plan:
    """All that decides a training besides its crops. A field is an option."""

    backbone: str = RESNET50
    weights: str = "none"
    image_size: int = 128
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    augmentation: str = "strong"
    seed: int = 0


def pretrain_without_labels(arguments: list[str] | None = None) -> int:
    """Writes the weights file of a backbone."""
    parser = Parser(description="A backbone trained on crops without their labels -> a weights file for --weights PATH")
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="weights file to write, .weights.h5")
    parser.add_argument("--cache", type=output_folder, metavar="DIR", help="folder of decoded crops (default: none)")
    parser.add_argument("--backbone", choices=BACKBONES, help="(default: %(default)s)")
    parser.add_argument(
        "--weights", type=initial_weights, metavar="imagenet|none|PATH", help="to begin with (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=image_size, help="pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=count(high=MOST_EPOCHS), help="each has all crops once (default: %(default)s)")
    parser.add_argument("--batch-size", type=crop_count, help="crops per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=positive_number(10), help="its peak (default: %(default)s)")
    parser.add_argument("--augmentation", choices=tuple(AUGMENTATIONS), help="of each view (default: %(default)s)")
    add_seed_option(parser)
    parser.set_defaults(**asdict(Plan()))
    options = vars(parser.parse_args(arguments))
    data, out, cache = (options.pop(name) for name in ("data", "out", "cache"))
    if not out.name.endswith(".weights.h5"):
        raise InputError(f"--out {out} has another ending than .weights.h5, by which Keras knows weights; add it.")
    plan = Plan(**options)
    be_deterministic(False)
    store = open_images(data)
    isic_ids = read_metadata(data / "train-metadata.csv", labelled=False)[ID].to_numpy()
    digests = image_digests(store, isic_ids)
    images = KnownImages(store, isic_ids, digests)
    usable = isic_ids[digests != 0]
    if len(usable) < plan.batch_size:
        raise InputError(f"--batch-size {plan.batch_size} is more than all {len(usable)} crops of {data}; give fewer.")
    train_backbone_on_views(plan, images, usable, out, cache)
    images.close()
    log_summary(
        f"{out}: {plan.backbone} after {plan.epochs} epochs of {len(usable):,} crops, for train.fusion --weights {out}"
    )
    return 0


def train_backbone_on_views(plan: Plan, images: KnownImages, isic_ids: np.ndarray, out: Path, cache: Path | None) -> None:
    """Trains a backbone and writes its weights.

    Args:
        plan: how.
        images: of the crops.
        isic_ids: the crops, shape (crops,); one batch or more.
        out: the file.
        cache: folder of decoded crops, if they are kept.

    Raises:
        InputError: an image changes meanwhile; the projections of all crops become the same.
    """
    unfinished, steps = out.with_name(f".{out.name}.checkpoint.weights.h5"), len(isic_ids) // plan.batch_size
    checkpoint = Checkpoint(unfinished)
    initial = initial_weights_file(plan.backbone, plan.weights)
    settings = settings_of(plan, {isic_id: images.digests[isic_id] for isic_id in isic_ids}, initial)
    if checkpoint.history and checkpoint.history[-1]["settings"] != settings:
        checkpoint.history.clear()  # of another training
    set_seed(plan.seed)
    config = NetworkConfig(plan.image_size, ("crop",), backbone=plan.backbone, head_units=0)
    network = starting_network(config, initial)
    unfreeze(network, "all", from_scratch=plan.weights == "none")
    model = model_of_views(network, plan)
    optimizer = adamw(steps * plan.epochs, plan.learning_rate, TrainingConfig())
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer, loss=unlikeness, metrics=[spread], jit_compile=False)
    if checkpoint.epochs:
        checkpoint.load(model)
    for epoch in range(checkpoint.epochs, plan.epochs):
        order = np.random.default_rng([plan.seed, epoch]).permutation(isic_ids)[: steps * plan.batch_size]
        started = time.monotonic()
        with as_input_errors(images):
            batches = batches_of_views(
                plan, crop_batches(images, order.tolist(), plan.image_size, plan.batch_size, cache), epoch * steps
            )
            logs = model.fit(batches, epochs=1, steps_per_epoch=steps, verbose=0).history
        images.refuse_changes()
        found = {name: float(logs[name][-1]) for name in ("loss", "spread")}
        log(
            f"epoch {epoch + 1} of {plan.epochs}: similarity {-found['loss']:.4f}, spread {found['spread']:.3f}, "
            f"{time.monotonic() - started:.0f} s"
        )
        if not np.isfinite(found["loss"]) or found["spread"] < COLLAPSED:
            raise InputError(
                f"epoch {epoch + 1}: all crops have the same projection, or no numbers (spread {found['spread']:.3f}, "
                f"below {COLLAPSED}); give a lower --learning-rate or another --augmentation."
            )
        checkpoint.save(model, {"settings": settings} | found)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(backbone_of(network), out)
    unfinished.unlink(missing_ok=True)


def settings_of(plan: Plan, digests: dict[str, int], initial: str) -> dict[str, str | int | float]:
    """All that decides a training, as its checkpoint records it.

    Args:
        plan: how.
        digests: isic_id -> digest of the image, of the crops in their order.
        initial: weights, as ``initial_weights_file`` gives them.
    """
    crops = hashlib.sha256(json.dumps(list(digests.items())).encode()).hexdigest()
    weights = sha256_of(Path(initial)) if Path(initial).is_file() else initial
    code = code_version("train.network.self_supervised")
    return asdict(plan) | versions() | {"weights": weights, "crops": crops, "code": code}


def batches_of_views(plan: Plan, crops, first_step: int):
    """Crops with the random numbers of two views; they depend on the seed and on the number of the step only."""
    import tensorflow as tf

    def join(step, batch):
        _, pixels = batch
        draws = [
            tf.random.stateless_uniform((tf.shape(pixels)[0], DRAWS), tf.stack([tf.constant(plan.seed, tf.int64), number]))
            for number in (2 * step, 2 * step + 1)
        ]
        return {"crop": pixels, "first": draws[0], "second": draws[1]}, tf.zeros((tf.shape(pixels)[0], 1))

    return crops.enumerate(first_step).map(join).prefetch(2)


def model_of_views(network, plan: Plan):
    """From a crop and the draws of two views to predictions and projections.

    Args:
        network: of the crop alone, without a hidden layer; its backbone is shared.
        plan: the augmentation and the size.

    Returns:
        A model to float32 (batch, 4, PROJECTION): prediction of the second view's projection, that projection, and the same
        the other way round.
    """
    import keras
    from keras import layers, ops

    features = keras.Model(network.inputs, network.get_layer("correction").input)
    width = features.output.shape[-1]

    def dense(units: int, activation: str | None = None):
        return [layers.Dense(units, use_bias=False), layers.BatchNormalization(), *([layers.ReLU()] if activation else [])]

    projector = keras.Sequential([keras.Input((width,)), *dense(PROJECTION, "relu"), *dense(PROJECTION)], name="projector")
    predictor = keras.Sequential(
        [keras.Input((PROJECTION,)), *dense(HIDDEN, "relu"), layers.Dense(PROJECTION)], name="predictor"
    )
    crop = keras.Input((plan.image_size, plan.image_size, 3), dtype="uint8", name="crop")
    draws = {name: keras.Input((DRAWS,), dtype="float32", name=name) for name in ("first", "second")}
    how = AUGMENTATIONS[plan.augmentation]
    one, other = (projector(features(augment(crop, values, how))) for values in draws.values())
    pairs = [predictor(one), other, predictor(other), one]
    return keras.Model({"crop": crop, **draws}, ops.stack(pairs, axis=1))


def unlikeness(_, pairs):
    """Minus the cosine of predictions and projections, shape (batch,); the projections are taken as they are."""
    from keras import ops

    pairs = ops.normalize(pairs, axis=-1)
    projections = ops.stop_gradient(pairs[:, 1::2])
    return -ops.mean(ops.sum(pairs[:, ::2] * projections, axis=-1), axis=1)


def spread(_, pairs):
    """How far the directions of a batch's projections differ: 0 if they are all the same, 1 if they are random."""
    from keras import ops

    directions = ops.normalize(pairs[:, 1], axis=-1)
    return ops.mean(ops.std(directions, axis=0)) * PROJECTION**0.5


if __name__ == "__main__":
    run_command(pretrain_without_labels)
