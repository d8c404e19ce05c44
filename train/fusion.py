"""ResNet50 + tabular log-odds, per fold -> fold networks, out-of-fold log-odds, manifest.

    python -m train.fusion --data data/isic-2024-challenge --artifacts artifacts --weights imagenet

The network is given CatBoost's out-of-fold log-odds together with the crop and learns a correction that starts at zero
(``inference.network``). ``--inputs image`` trains the same network without CatBoost's opinion, ``--inputs tabular`` without
the crop, for comparison: they write oof_image.csv or oof_opinion.csv and nothing that the kernel uses. Every epoch and every
finished fold is kept, so the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import load_manifest
from inference.files import InputError, replacing
from inference.images import ImageStore, image_batches
from inference.network import Ensemble, devices, load_network, network_log_odds
from train.batches import Sequence, training_batches
from train.checkpoint import Checkpoint
from train.curves import write_history
from train.fitting import (
    BACKBONE,
    Plan,
    augmented,
    fit,
    phases_of,
    shifted_loss,
    starting_network,
    with_source,
)
from train.folds import HOLDOUT
from train.fusion_options import INPUTS, chosen, flag, imbalance_of, parse
from train.fusion_results import record_alone, record_fusion
from train.hardware import be_deterministic, distribution, precision
from train.lesions import Lesions, open_images, read_lesions
from train.pretraining import Archive, Pool, draw_pool, pool_of, pretrain_backbone, read_archive
from train.tabular import OOF as OOF_TABULAR
from utils import run_command, say, set_seed, write_csv, write_json

#: The backbone's weights after it has learned from archives, in the hidden folder of an unfinished training.
PRETRAINED = "backbone.weights.h5"
#: What the training in that folder was asked for.
SETTINGS = "settings.json"


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


def train_fold(
    network,
    lesions: Lesions,
    number: int,
    store: ImageStore,
    archive: Archive | None,
    options: argparse.Namespace,
    checkpoint: Checkpoint,
    strategy,
) -> list[dict]:
    """Trains ``network`` on the rows of the other folds, and on the lesions of ``archive`` that join them, if any.

    Returns:
        The history, as ``train.fitting.fit`` gives it.
    """
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
    logs = options.logs / "tensorboard" / f"{options.inputs}-fold{number}"
    return fit(network, wrap, batches_from, plan, f"fold {number}", checkpoint, logs, strategy)


def score_rows(network, lesions: Lesions, rows: np.ndarray, store: ImageStore, options: argparse.Namespace) -> np.ndarray:
    """Log-odds of ``rows`` (positions) by the code that the kernel runs; NaN where no image could be read."""
    log_odds = np.full(len(rows), np.nan)
    batches = image_batches(store, lesions.isic_ids[rows].tolist(), options.image_size, options.batch_size)
    for positions, scores in network_log_odds(Ensemble(network, places=devices()[:1]), batches, lesions.tabular[rows]):
        log_odds[positions] = scores
    return log_odds


def unfinished_folder(options: argparse.Namespace, manifest: dict, archive: Archive | None = None) -> Path:
    """The hidden folder where a training keeps what it has done so far.

    Raises:
        InputError: there is one of a training with other options or other inputs.
    """
    folder = options.artifacts / f".{options.inputs}-training"
    asked = chosen(options) | {name: manifest["files"][name] for name in ("folds.csv", OOF_TABULAR)}
    asked |= {"archives": archive.sha256 if archive else "none"}
    if options.restart and folder.is_dir():
        shutil.rmtree(folder)
    if (folder / SETTINGS).is_file():
        known = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        other = [name for name in asked if known.get(name) != asked[name]]
        if other:
            told = ", ".join(f"{flag(name) if name in vars(options) else name} {known.get(name)!s:.20}" for name in other)
            raise InputError(
                f"{folder} holds an unfinished training with {told}, now asked for otherwise; give the same, or --restart."
            )
    write_json(folder / SETTINGS, asked)
    return folder


def pretrained_backbone(kept: Path, archive: Archive, options: argparse.Namespace) -> Path:
    """The weights of a backbone that has learned from the archive, for all folds: no patient of theirs is in it."""
    weights = kept / PRETRAINED
    if not weights.is_file():
        set_seed(options.seed)
        with replacing(weights) as temporary:
            pretrain_backbone(archive, temporary, options)
    return weights


def train_or_reload(
    number: int,
    kept: Path,
    settings: dict,
    lesions: Lesions,
    store: ImageStore,
    archive: Archive | None,
    options: argparse.Namespace,
) -> pd.Series:
    """Log-odds of the fold's own rows and of the holdout, by row position; trains the fold unless ``kept`` has it.

    While it is trained, a fold has its checkpoint there; finished, its history, weights and, written last, its scores.
    """
    scores, weights = kept / f"fold{number}.csv", kept / f"fold{number}.weights.h5"
    if scores.is_file():
        say(f"fold {number}: kept from an earlier run")
        return pd.read_csv(scores, index_col="row")["log_odds"]
    checkpoint, strategy = Checkpoint(kept / f"checkpoint{number}.weights.h5"), distribution()
    pretrained = options.archives_mode == "pretrain"
    with precision(options.precision), strategy.scope():
        backbone = pretrained_backbone(kept, archive, options) if pretrained else None
        set_seed(options.seed + number)
        network = starting_network(settings, "none" if pretrained else options.weights)
        if pretrained:
            network.get_layer(BACKBONE).load_weights(backbone)
    with precision(options.precision):
        joining = None if pretrained else archive
        history = train_fold(network, lesions, number, store, joining, options, checkpoint, strategy)
    with replacing(weights) as temporary:
        network.save_weights(temporary)
    write_csv(kept / f"history{number}.csv", pd.DataFrame(history).assign(fold=number))
    # Scored as the kernel will: the network rebuilt from the settings, in float32, with the weights from the file.
    network = load_network(settings, weights)
    asked = (lesions.fold == number) | ((lesions.fold == HOLDOUT) & (options.inputs == "image"))
    rows = np.flatnonzero(asked & lesions.has_image)
    log_odds = score_rows(network, lesions, rows, store, options)
    result = pd.Series(log_odds, index=pd.Index(rows, name="row"), name="log_odds").dropna()
    write_csv(scores, result.reset_index())
    checkpoint.remove()
    return result


def main(arguments: list[str] | None = None) -> int:
    """Trains one network per fold; writes the artifacts only when all folds are there."""
    options = parse(arguments)
    be_deterministic(options.deterministic)
    store = open_images(options.data)
    lesions = read_lesions(options.data, options.artifacts, store, options.missing_images)
    trained = lesions.fold != HOLDOUT
    say(f"{int(trained.sum()):,} lesions, {int((trained & lesions.has_image).sum()):,} with an image in {store.path}")
    archive = read_archive(options.archives, lesions) if options.archives else None
    if archive:
        malignant = int(archive.labels.sum())
        say(f"{len(archive.labels):,} archive lesions with an image, {malignant:,} malignant: {options.archives_mode}")

    manifest = load_manifest(options.artifacts)
    settings = {
        "image_size": options.image_size,
        "inputs": INPUTS[options.inputs],
        "tabular_mean": float(lesions.tabular[trained].mean()),
        "tabular_std": float(lesions.tabular[trained].std()) or 1.0,
        "base_log_odds": float(np.log(lesions.labels[trained].mean() / (1 - lesions.labels[trained].mean()))),
    }
    kept = unfinished_folder(options, manifest, archive)
    folds = int(lesions.fold.max()) + 1
    log_odds, votes = np.zeros(len(trained)), np.zeros(len(trained))
    for number in range(folds):
        scores = train_or_reload(number, kept, settings, lesions, store, archive, options)
        log_odds[scores.index] += scores.to_numpy()
        votes[scores.index] += 1
    seen = votes > 0
    log_odds[seen] /= votes[seen]
    write_history(kept, options.logs, options.inputs)
    if options.inputs == "fusion":
        record_fusion(options, settings, lesions, np.where(seen, log_odds, lesions.tabular), seen, kept)
    else:
        record_alone(options, settings, lesions, log_odds, seen)
    shutil.rmtree(kept)
    return 0


if __name__ == "__main__":
    run_command(main)
