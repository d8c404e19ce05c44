"""The batches that a network is trained on: decoded by the kernel's own code, with what training needs beside the crops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.network.augmentation import DRAWS
from train.network.crop_cache import crop_batches
from train.network.known_images import JoinedImages, KnownImages

#: Of the crops of a batch, those that mixup mixes; the others stay whole lesions, as the kernel gets them.
MIXED_SHARE = 0.5


@dataclass(frozen=True)
class TrainingData:
    """All that a network is trained on, epoch after epoch, in order.

    Args:
        images: of the lesions.
        isic_ids: the lesion of each row, shape (epochs * steps * batch_size,).
        inputs: further inputs of the model, name -> shape (rows,).
        targets: labels or classes, shape (rows,); or, of shape (rows, 1 + groups), labels and, behind them, 1 for the
            diagnosis group of a row and 0 for the others.
        sample_weight: of each row in the loss, shape (rows,).
        steps: batches per epoch.
        image_size: pixels.
        batch_size: crops per batch.
        seed: of the random numbers for augmentation and mixup. A batch's depend on the seed and on its number only.
        mixup: parameter of the Beta distribution by which a crop, with its inputs and target, is mixed with its neighbour
            in the batch (Zhang et al. 2018, mixup); 0 for none.
        cache: folder of decoded crops (``train.network.crop_cache``); None to decode in every epoch. Same batches.
    """

    images: KnownImages | JoinedImages
    isic_ids: np.ndarray
    inputs: Mapping[str, np.ndarray]
    targets: np.ndarray
    sample_weight: np.ndarray
    steps: int
    image_size: int
    batch_size: int
    seed: int = 0
    mixup: float = 0.0
    cache: Path | None = None

    @property
    def groups(self) -> int:
        """How many diagnosis groups the targets have."""
        return self.targets.shape[1] - 1 if np.ndim(self.targets) == 2 else 0


def training_batches(data: TrainingData, first_epoch: int = 0):
    """The batches from the beginning of ``first_epoch`` on.

    Returns:
        A ``tf.data.Dataset`` of ({"crop": uint8 (batch, size, size, 3), "draws": float32 (batch, DRAWS), name: float32
        (batch, 1)}, targets float32 (batch, 1) or (batch, 1 + groups), weights float32 (batch,)). Lesions without a readable
        image are left out.
    """
    import tensorflow as tf

    first_step = first_epoch * data.steps
    rows = slice(first_step * data.batch_size, None)
    beside = {name: tf.constant(values[rows, None], tf.float32) for name, values in data.inputs.items()}
    targets = tf.constant(data.targets.reshape(len(data.targets), -1)[rows], tf.float32)
    weights = tf.constant(data.sample_weight[rows], tf.float32)

    def join(step, batch):
        positions, crops = batch
        inputs = {"crop": crops} | {name: tf.gather(values, positions) for name, values in beside.items()}
        target, weight = tf.gather(targets, positions), tf.gather(weights, positions)
        key = tf.stack([tf.constant(data.seed, tf.int64), step])
        if data.mixup:
            inputs, target, weight = mixed(inputs, target, weight, data.mixup, key)
        draws = tf.random.stateless_uniform((tf.shape(positions)[0], DRAWS), key)
        return inputs | {"draws": draws}, target, weight

    batches = crop_batches(data.images, data.isic_ids[rows].tolist(), data.image_size, data.batch_size, data.cache)
    return batches.enumerate(first_step).map(join).prefetch(2)


def mixed(inputs: dict, target, weight, alpha: float, key):
    """Half of a batch's rows, each mixed with the row before it, in shares drawn from Beta(``alpha``, ``alpha``)."""
    import tensorflow as tf

    rows = tf.shape(target)[0]
    one, other = (
        tf.random.stateless_gamma((rows, 1), tf.stack([key[0], key[1] + shift]), alpha) for shift in (1 << 40, 1 << 41)
    )
    share = tf.math.divide_no_nan(one, one + other)
    chosen = tf.random.stateless_uniform((rows, 1), tf.stack([key[0], key[1] + (1 << 42)])) < MIXED_SHARE
    share = tf.where(chosen, share, 1.0)

    def mix(values):
        values = tf.cast(values, tf.float32)
        part = tf.reshape(share, [-1] + [1] * (len(values.shape) - 1))
        return part * values + (1 - part) * tf.roll(values, 1, axis=0)

    mixtures = {name: mix(values) for name, values in inputs.items()}
    return mixtures | {"crop": tf.cast(tf.round(mixtures["crop"]), tf.uint8)}, mix(target), mix(weight)
