"""The training of one fold's network, from its draws of lesions to its out-of-fold logits: a task of its own.

While it is trained, a fold has its checkpoint in the folder of the unfinished training; finished, its history, its weights
and, written last, its scores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from inference.files import replacing, write_csv
from inference.images import ImageStore, image_batches
from inference.network import Ensemble, NetworkConfig, devices, load_network, network_logits
from scale.parallel import Files
from train.folds import HOLDOUT
from train.lesions import Lesions
from train.network.batches import Sequence, training_batches
from train.network.checkpoint import Checkpoint
from train.network.config import imbalance_of
from train.network.fit import (
    BACKBONE,
    Plan,
    augmented,
    be_deterministic,
    distribution,
    fit,
    phases_of,
    precision,
    shifted_loss,
    starting_network,
    with_source,
)
from train.network.pretraining import Archive, Pool, draw_pool, pool_of, pretrain_backbone
from utils import InputError, set_seed

#: The backbone's weights after it has learned from archives, in the hidden folder of an unfinished training.
PRETRAINED = "backbone.weights.h5"
#: Where a fold's TensorBoard files lie below its folder, while that is on a machine of its own.
LOGS = "logs"


@dataclass(frozen=True)
class Training:
    """What the folds of a training have in common.

    Args:
        options: of ``train.fusion``.
        settings: of the network, as ``build_network`` takes them.
        lesions: all of them; a fold's number says which are its own.
        images: of the lesions, as ``ImageStore`` takes it.
        logs: folder for TensorBoard.
        archive: lesions of earlier archives, if any join.
        backbone: weights that it starts from, if it has learned from the archive before.
    """

    options: argparse.Namespace
    settings: NetworkConfig
    lesions: Lesions
    images: Path
    logs: Path
    archive: Archive | None = None
    backbone: Path | None = None

    @property
    def reads(self) -> list[Path]:
        """The files that a fold is trained from."""
        given = [] if self.options.weights in ("imagenet", "none") else [Path(self.options.weights)]
        return [self.images, *given, *filter(None, [self.archive and self.archive.images, self.backbone])]

    def where(self, files: Files) -> Training:
        """The same where ``files`` lie."""
        options = argparse.Namespace(**vars(self.options))
        if Path(options.weights) in files.places:
            options.weights = str(files[Path(options.weights)])
        return replace(
            self,
            options=options,
            images=files[self.images],
            logs=files.folder / LOGS if files.elsewhere else self.logs,
            archive=self.archive and replace(self.archive, images=files[self.archive.images]),
            backbone=self.backbone and files[self.backbone],
        )


def train_backbone(files: Files, training: Training) -> None:
    """Lets a backbone learn from the archive; writes ``PRETRAINED`` into the folder of ``files``."""
    training = training.where(files)
    options = training.options
    be_deterministic(options.deterministic)
    set_seed(options.seed)
    with replacing(files.folder / PRETRAINED) as weights, precision(options.precision), distribution().scope():
        pretrain_backbone(training.archive, weights, options)


def train_fold(files: Files, number: int, training: Training) -> None:
    """Trains the network of a fold and scores the fold's own rows, in ``--inputs image`` the holdout, too.

    Writes history<number>.csv, fold<number>.weights.h5 and fold<number>.csv, the logits by row position, into the folder
    of ``files``; continues from a checkpoint there.
    """
    training = training.where(files)
    options, lesions = training.options, training.lesions
    be_deterministic(options.deterministic)
    store = ImageStore(training.images)
    weights = files.folder / f"fold{number}.weights.h5"
    checkpoint, strategy = Checkpoint(files.folder / f"checkpoint{number}.weights.h5"), distribution()
    with precision(options.precision), strategy.scope():
        set_seed(options.seed + number)
        network = starting_network(training.settings, "none" if training.backbone else options.weights)
        if training.backbone:
            network.get_layer(BACKBONE).load_weights(training.backbone)
    with precision(options.precision):
        history = fit_fold(network, number, store, training, checkpoint, strategy)
    with replacing(weights) as temporary:
        network.save_weights(temporary)
    write_csv(files.folder / f"history{number}.csv", pd.DataFrame(history).assign(fold=number))
    # Scored as the kernel will: the network rebuilt from the settings, in float32, with the weights from the file.
    network = load_network(training.settings, weights)
    asked = (lesions.fold == number) | ((lesions.fold == HOLDOUT) & (options.inputs == "image"))
    rows = np.flatnonzero(asked & lesions.has_image)
    logits = score_rows(network, lesions, rows, store, options)
    result = pd.Series(logits, index=pd.Index(rows, name="row"), name="network").dropna()
    write_csv(files.folder / f"fold{number}.csv", result.reset_index())
    checkpoint.remove()
    store.close()


def rows_from(epoch: int, pool: Pool, train: np.ndarray, number: int, steps: int, options: argparse.Namespace) -> Sequence:
    """What fold ``number`` sees from the beginning of ``epoch`` to the end of its training.

    An epoch's draw depends on seed, fold and epoch only. It is filled up to whole batches from its own beginning.
    """
    imbalance, drawn = imbalance_of(options), []
    for each in range(epoch, options.head_epochs + options.epochs):
        rows = draw_pool(pool, train, imbalance, np.random.default_rng([options.seed, number, each]))
        drawn.append(np.resize(rows, steps * options.batch_size))
    rows = np.concatenate([np.zeros(0, dtype="int64"), *drawn])
    weights = np.ones(len(pool.labels))
    weights[train] = imbalance.weights(pool.labels[train])
    inputs = {"tabular": pool.tabular[rows], "archive": pool.archive[rows]}
    return Sequence(pool.isic_ids[rows], inputs, pool.labels[rows], weights[rows])


def fit_fold(network, number: int, store: ImageStore, training: Training, checkpoint: Checkpoint, strategy) -> list[dict]:
    """Trains ``network`` on the rows of the other folds, and on the lesions of the archive that join them, if any.

    Returns:
        The history, as ``train.network.fit.fit`` gives it.
    """
    options, lesions = training.options, training.lesions
    archive = None if training.backbone else training.archive  # one that the backbone has learned from does not join
    train = np.flatnonzero((lesions.fold != number) & (lesions.fold != HOLDOUT) & lesions.has_image)
    labels = lesions.labels[train]
    if not 0 < labels.sum() < len(labels):
        raise InputError(f"outside fold {number} there are {labels.sum()} malignant of {len(labels)} lesions with an image.")
    # The tabular model cannot judge an archive's lesion, which has no body scan: all that it could say is the prevalence.
    pool = pool_of(lesions, store, archive, opinion=float(np.log(labels.mean() / (1 - labels.mean()))))
    imbalance = imbalance_of(options)
    steps = -(-len(draw_pool(pool, train, imbalance, np.random.default_rng(0))) // options.batch_size)

    def batches_from(epoch: int):
        return training_batches(
            pool.images,
            rows_from(epoch, pool, train, number, steps, options),
            options.image_size,
            options.batch_size,
            seed=options.seed * 1000 + number,
            first_step=epoch * steps,
            mixup=options.mixup,
        )

    plan = Plan(
        phases_of(options.unfreeze, options.epochs, options.learning_rate, options.head_epochs, options.head_learning_rate),
        steps=steps,
        batch_size=options.batch_size,
        from_scratch=options.weights == "none",
        loss=shifted_loss(
            imbalance.shift(labels), options.label_smoothing, options.focal_gamma if options.imbalance == "focal" else 0.0
        ),
        ema=options.ema,
        seed=options.seed,
    )
    wrap = augmented if archive is None else (lambda inner: with_source(augmented(inner)))
    logs = training.logs / "tensorboard" / f"{options.inputs}-fold{number}"
    return fit(network, wrap, batches_from, plan, f"fold {number}", checkpoint, logs, strategy)


def score_rows(network, lesions: Lesions, rows: np.ndarray, store: ImageStore, options: argparse.Namespace) -> np.ndarray:
    """Logits of ``rows`` (positions) by the code that the kernel runs; NaN where no image could be read."""
    logits = np.full(len(rows), np.nan)
    batches = image_batches(store, lesions.isic_ids[rows].tolist(), options.image_size, options.batch_size)
    for positions, scores in network_logits(Ensemble(network, places=devices()[:1]), batches, lesions.tabular[rows]):
        logits[positions] = scores
    return logits
