"""Which lesions an epoch sees, and the batches it sees them in.

All malignant lesions and a fresh draw of benign ones every epoch: over the epochs the network meets far more of the benign
lesions than it could learn from at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from inference.images import ImageStore, image_batches

#: When images are only checked, they are shrunk to this many pixels and handed on this many at a time.
CHECK_SIZE, CHECK_BATCH = 8, 256


def draw_epoch(labels: np.ndarray, per_positive: float, rng: np.random.Generator) -> np.ndarray:
    """Positions of one epoch's lesions, shuffled: all malignant ones, ``per_positive`` times as many benign ones.

    Args:
        labels: 0/1, shape (rows,).
        per_positive: benign lesions per malignant one; all of them when there are fewer.
        rng: draws and shuffles.
    """
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    drawn = rng.choice(negatives, negatives_drawn(labels, per_positive), replace=False)
    return rng.permutation(np.concatenate([positives, drawn]))


def negatives_drawn(labels: np.ndarray, per_positive: float) -> int:
    """How many benign lesions an epoch draws, at least one."""
    return max(1, min(int((labels == 0).sum()), round(per_positive * int((labels == 1).sum()))))


def prior_shift(labels: np.ndarray, per_positive: float) -> float:
    """By how much the draw raises the log-odds: ln(benign lesions / benign lesions drawn).

    The loss adds it to the network's log-odds, so that what the network learns are log-odds at the natural prevalence, on
    the scale of the tabular score (King and Zeng 2001, Logistic Regression in Rare Events Data).
    """
    return math.log(int((labels == 0).sum()) / negatives_drawn(labels, per_positive))


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


def training_batches(
    store: ImageStore | JoinedImages,
    isic_ids: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    targets: np.ndarray,
    image_size: int,
    batch_size: int,
):
    """The crops in the given order with what training needs beside them.

    Args:
        store: the images.
        isic_ids: of shape (rows,).
        inputs: further inputs of the network by name, shape (rows,) each.
        targets: labels or classes, shape (rows,).
        image_size: pixels.
        batch_size: crops per batch.

    Returns:
        A ``tf.data.Dataset`` of ({"crop": uint8 (batch, size, size, 3), name: float32 (batch, 1)}, float32 (batch, 1)).
        Lesions without a readable image are left out.
    """
    import tensorflow as tf

    beside = {name: tf.constant(values[:, None], tf.float32) for name, values in inputs.items()}
    labels = tf.constant(targets[:, None], tf.float32)

    def join(positions, crops):
        return {"crop": crops} | {name: tf.gather(values, positions) for name, values in beside.items()}, tf.gather(
            labels, positions
        )

    return image_batches(store, isic_ids.tolist(), image_size, batch_size).map(join).prefetch(2)
