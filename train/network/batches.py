"""The batches that a network is trained on: decoded by the kernel's own code, with what training needs beside the crops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from inference.images import ImageStore, image_batches
from train.network.augmentation import DRAWS

#: When images are only checked, they are shrunk to this many pixels and handed on this many at a time.
CHECK_SIZE, CHECK_BATCH = 8, 256


def readable_images(store: ImageStore, isic_ids: np.ndarray) -> np.ndarray:
    """Which lesions have an image that can be decoded, bool of shape (lesions,); every image is decoded once to know."""
    readable = np.zeros(len(isic_ids), dtype=bool)
    with tqdm(total=len(isic_ids), desc="checking images", unit="image") as bar:
        for positions, _ in image_batches(store, isic_ids.tolist(), CHECK_SIZE, CHECK_BATCH):
            readable[positions.numpy()] = True
            bar.update(len(positions))
    return readable


class JoinedImages:
    """The images of two stores as one; the first that holds an isic_id gives its image."""

    def __init__(self, *stores: ImageStore) -> None:
        self._stores = stores

    def read(self, isic_id: str) -> bytes:
        """The JPEG bytes of one lesion; empty when there are none or they cannot be read."""
        return next((store.read(isic_id) for store in self._stores if isic_id in store), b"")


@dataclass(frozen=True)
class Sequence:
    """What a training sees, in its order; arrays of shape (rows,)."""

    isic_ids: np.ndarray
    #: Further inputs of the network, by name.
    inputs: Mapping[str, np.ndarray]
    #: Labels or classes.
    targets: np.ndarray
    #: What each row counts in the loss.
    weights: np.ndarray


def training_batches(
    store: ImageStore | JoinedImages,
    rows: Sequence,
    image_size: int,
    batch_size: int,
    *,
    seed: int = 0,
    first_step: int = 0,
    mixup: float = 0.0,
):
    """The crops in the given order with what training needs beside them.

    Args:
        store: the images.
        rows: who comes in, one after the other.
        image_size: pixels.
        batch_size: crops per batch.
        seed: of the random numbers for augmentation and mixup. A batch's depend on the seed and on its number only.
        first_step: the number of the first batch, where an interrupted training goes on.
        mixup: parameter of the Beta distribution by which each crop, with its inputs and target, is mixed with its
            neighbour in the batch (Zhang et al. 2018, mixup); 0 for none.

    Returns:
        A ``tf.data.Dataset`` of ({"crop": uint8 (batch, size, size, 3), "draws": float32 (batch, DRAWS), name: float32
        (batch, 1)}, targets float32 (batch, 1), weights float32 (batch,)). Lesions without a readable image are left out.
    """
    import tensorflow as tf

    beside = {name: tf.constant(values[:, None], tf.float32) for name, values in rows.inputs.items()}
    targets, weights = tf.constant(rows.targets[:, None], tf.float32), tf.constant(rows.weights, tf.float32)

    def join(step, batch):
        positions, crops = batch
        inputs = {"crop": crops} | {name: tf.gather(values, positions) for name, values in beside.items()}
        batch = inputs, tf.gather(targets, positions), tf.gather(weights, positions)
        key = tf.stack([tf.constant(seed, tf.int64), step])
        inputs, target, weight = mixed(*batch, mixup, key) if mixup else batch
        draws = tf.random.stateless_uniform((tf.shape(positions)[0], DRAWS), key)
        return inputs | {"draws": draws}, target, weight

    batches = image_batches(store, rows.isic_ids.tolist(), image_size, batch_size)
    return batches.enumerate(first_step).map(join).prefetch(2)


def mixed(inputs: dict, target, weight, alpha: float, key):
    """Each row of a batch mixed with the row before it, in shares drawn from Beta(``alpha``, ``alpha``)."""
    import tensorflow as tf

    rows = tf.shape(target)[0]
    one, other = (
        tf.random.stateless_gamma((rows, 1), tf.stack([key[0], key[1] + shift]), alpha) for shift in (1 << 40, 1 << 41)
    )
    share = tf.math.divide_no_nan(one, one + other)

    def mix(values):
        values = tf.cast(values, tf.float32)
        part = tf.reshape(share, [-1] + [1] * (len(values.shape) - 1))
        return part * values + (1 - part) * tf.roll(values, 1, axis=0)

    mixtures = {name: mix(values) for name, values in inputs.items()}
    return mixtures | {"crop": tf.cast(tf.round(mixtures["crop"]), tf.uint8)}, mix(target), mix(weight)
