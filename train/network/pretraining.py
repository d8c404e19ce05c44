"""What the earlier archives teach the network: as a pretraining of its backbone, or as lesions that join the training.

Their lesions are photographs through a dermatoscope or with a camera, of lesions that somebody worried about: other pixels
and other odds than the tiles of a total-body scan. So they never touch the tabular model, and in joint training what their
selection does to the odds is learned beside the network (``fitting.with_source``).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inference.files import sha256_of
from inference.images import ImageStore
from inference.schema import ID, PATIENT, TARGET, read_metadata
from train.archives.diagnoses import CLASSES, class_of
from train.lesions import Lesions, open_images
from train.network.batches import JoinedImages, Sequence, readable_images, training_batches
from train.network.fit import BACKBONE, Plan, augmented, fit, phases_of, starting_network
from train.network.sampling import Imbalance, draw_epoch
from utils import InputError, log

ARCHIVES_MODES = ("pretrain", "joint")
#: What pretraining tells apart: malignant from benign, or the five classes.
ARCHIVES_LABELS = ("malignant", "classes")


@dataclass(frozen=True)
class Archive:
    """The lesions of an archive folder that may be learned from; arrays of shape (rows,)."""

    isic_ids: np.ndarray
    labels: np.ndarray
    #: Position in ``CLASSES``; the last one where the archive does not tell.
    classes: np.ndarray
    images: Path
    sha256: str


def read_archive(folder: Path, lesions: Lesions) -> Archive:
    """The archive in ``folder``, as ``train.archives`` writes it, without patients of ``lesions`` and unreadable images.

    ISIC 2020 and SLICE-3D share patients, under the same ids.

    Raises:
        InputError: the folder is wanting, or all lesions left are of one class.
    """
    path = folder / "train-metadata.csv"
    metadata = read_metadata(path, labelled=True)
    diagnoses = pd.read_csv(path, dtype="str")
    if "diagnosis" not in diagnoses:
        raise InputError(f"{path} has no column 'diagnosis'; make the folder with train.archives.")
    known = metadata[ID].isin(set(lesions.isic_ids)) | metadata[PATIENT].isin(set(lesions.patients))
    if known.any():
        log(f"{int(known.sum()):,} archive lesions are of patients in --data, and are left out: those are reported")
    store = open_images(folder)
    seen = readable_images(store, metadata[ID].to_numpy()) & ~known.to_numpy()
    labels = metadata[TARGET].to_numpy()[seen]
    if not 0 < labels.sum() < len(labels):
        raise InputError(
            f"{folder} has {int(labels.sum())} malignant of {len(labels)} lesions to learn from; both are needed."
        )
    classes = [CLASSES.index(class_of(word)) for word in diagnoses["diagnosis"].fillna("")[seen]]
    return Archive(metadata[ID].to_numpy()[seen], labels, np.array(classes), store.path, sha256_of(path))


def pretrain_backbone(archive: Archive, weights: Path, options: argparse.Namespace) -> None:
    """Trains a backbone on the archive and writes its weights.

    Args:
        archive: what it learns from.
        weights: the file to write, ``*.weights.h5``.
        options: of ``train.fusion``: ``weights`` (where ResNet50 starts), ``archives_labels``, ``archives_epochs``,
            ``image_size``, ``batch_size``, ``learning_rate``, ``negatives_per_positive``, ``seed``.
    """
    import keras

    store = ImageStore(archive.images)
    by_class = options.archives_labels == "classes"
    rows = np.flatnonzero(archive.classes < len(CLASSES) - 1) if by_class else np.arange(len(archive.labels))
    if by_class and len(set(archive.classes[rows])) < 2:
        raise InputError("--archives-labels classes needs lesions of two classes or more; use --archives-labels malignant.")
    labels = archive.labels[rows]
    start = float(np.log(labels.mean() / (1 - labels.mean())))
    network = starting_network({"image_size": options.image_size, "inputs": ["crop"], "base_logit": start}, options.weights)
    if by_class:
        hidden = network.get_layer("head_dropout").output
        network = keras.Model(network.input, keras.layers.Dense(len(CLASSES) - 1, name="classes")(hidden))
        targets, loss = archive.classes[rows], keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        targets, loss = labels, keras.losses.BinaryCrossentropy(from_logits=True)
    rng = np.random.default_rng([options.seed, len(rows)])
    ratio, batch_size = options.negatives_per_positive, options.batch_size
    epochs = [draw_epoch(labels, ratio, rng) for _ in range(options.archives_epochs)]
    steps = -(-len(epochs[0]) // batch_size)
    order = np.concatenate([np.resize(epoch, steps * batch_size) for epoch in epochs])
    seen = Sequence(archive.isic_ids[rows][order], {}, targets[order], np.ones(len(order)))

    def batches_from(epoch: int):
        return training_batches(store, seen, options.image_size, batch_size, seed=options.seed)

    plan = Plan(
        phases_of("all", options.archives_epochs, options.learning_rate),
        steps=steps,
        batch_size=batch_size,
        from_scratch=options.weights == "none",
        loss=loss,
        seed=options.seed,
    )
    fit(network, augmented, batches_from, plan, "archives")
    network.get_layer(BACKBONE).save_weights(weights)


@dataclass(frozen=True)
class Pool:
    """All that an epoch may be drawn from: the competition's lesions and, behind them, an archive's; arrays of (rows,)."""

    isic_ids: np.ndarray
    labels: np.ndarray
    tabular: np.ndarray
    archive: np.ndarray
    images: ImageStore | JoinedImages


def pool_of(lesions: Lesions, store: ImageStore, archive: Archive | None, opinion: float) -> Pool:
    """The lesions with those of ``archive``, to which the tabular model is taken to say ``opinion``, in logits."""
    own = np.zeros(len(lesions.labels), dtype=bool)
    if archive is None:
        return Pool(lesions.isic_ids, lesions.labels, lesions.tabular, own, store)
    return Pool(
        isic_ids=np.concatenate([lesions.isic_ids, archive.isic_ids]),
        labels=np.concatenate([lesions.labels, archive.labels]),
        tabular=np.concatenate([lesions.tabular, np.full(len(archive.labels), opinion)]),
        archive=np.concatenate([own, np.ones(len(archive.labels), dtype=bool)]),
        images=JoinedImages(store, ImageStore(archive.images)),
    )


def draw_pool(pool: Pool, train: np.ndarray, imbalance: Imbalance, rng: np.random.Generator) -> np.ndarray:
    """Positions of one epoch: what ``imbalance`` draws of the rows ``train``, and as many malignant lesions of the archive.

    Fewer where the archive has fewer. Benign ones join in the same proportion: with malignant ones alone the source would
    tell the label, and nothing be left to learn from the pixels.
    """
    own = train[imbalance.draw(pool.labels[train], rng)]
    if not pool.archive.any():
        return own
    malignant = np.flatnonzero(pool.archive & (pool.labels == 1))
    benign = np.flatnonzero(pool.archive & (pool.labels == 0))
    shown = int(pool.labels[own].sum())
    malignant = rng.choice(malignant, min(shown, len(malignant)), replace=False)
    benign = rng.choice(benign, max(1, min(len(benign), round((len(own) - shown) / shown * len(malignant)))), replace=False)
    return rng.permutation(np.concatenate([own, malignant, benign]))
