"""ResNet50 + tabular logits, per fold -> fold networks, out-of-fold logits, manifest.

    python -m train.fusion --data data/isic-2024-challenge --artifacts artifacts --weights imagenet

The network is given CatBoost's out-of-fold logits together with the crop and learns a correction that starts at zero
(``inference.network``). ``--inputs image`` trains the same network without CatBoost's opinion, ``--inputs tabular`` without
the crop, for comparison: they write oof_image_only.csv or oof_tabular_only.csv and nothing that the kernel uses. Every epoch and every
finished fold is kept, so the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import OOF_TABULAR, load_manifest
from inference.files import write_json
from inference.network import NetworkConfig
from scale.parallel import Files, Progress, in_own_process, run_tasks, workers
from train.folds import HOLDOUT
from train.lesions import open_images, read_lesions
from train.network.config import INPUTS, chosen, flag, parse_fusion_options
from train.network.fit import be_deterministic, leave_gpus_to_tasks
from train.network.fold import LOGS, PRETRAINED, Training, train_backbone, train_fold
from train.network.pretraining import Archive, read_archive
from train.network.results import record_alone, record_fusion, write_history
from utils import InputError, log, run_command

#: What the training in that folder was asked for.
SETTINGS = "settings.json"


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


def scores_of(kept: Path, number: int) -> Path:
    """Where the logits of a fold lie once it is finished."""
    return kept / f"fold{number}.csv"


def train_folds(kept: Path, folds: Iterable[int], training: Training) -> None:
    """Trains the folds that ``kept`` has not, wherever ``scale.parallel.workers`` says; each leaves its files there.

    Where the backbone learns from an archive first, it does so once for all folds: no patient of theirs is in it.
    """
    todo = [number for number in folds if not scores_of(kept, number).is_file()]
    for number in folds:
        if number not in todo:
            log(f"fold {number}: kept from an earlier run")
    if todo and training.options.archives_mode == "pretrain":
        backbone = kept / PRETRAINED
        if not backbone.is_file():
            run_tasks(train_backbone, [(training,)], 1, Files.of(training.reads, kept), Progress(show=False))
        training = replace(training, backbone=backbone)
    tasks = ((number, training) for number in todo)
    progress = Progress("folds", "fold", show=not in_own_process())  # in this process, each fold shows its own steps
    run_tasks(train_fold, tasks, len(todo), Files.of(training.reads, kept), progress)
    if (kept / LOGS).is_dir():  # of folds that were trained on another machine
        shutil.copytree(kept / LOGS, training.logs, dirs_exist_ok=True)


def train_fusion(arguments: list[str] | None = None) -> int:
    """Trains one network per fold; writes the artifacts only when all folds are there."""
    options = parse_fusion_options(arguments)
    with workers(options.jobs, options.cluster):
        if not in_own_process():
            leave_gpus_to_tasks()
        return train(options)


def train(options: argparse.Namespace) -> int:
    """The story of ``main``, once it is known where the folds are trained."""
    be_deterministic(options.deterministic)
    store = open_images(options.data)
    lesions = read_lesions(options.data, options.artifacts, store, options.missing_images)
    trained = lesions.fold != HOLDOUT
    log(f"{int(trained.sum()):,} lesions, {int((trained & lesions.has_image).sum()):,} with an image in {store.path}")
    archive = read_archive(options.archives, lesions) if options.archives else None
    if archive:
        malignant = int(archive.labels.sum())
        log(f"{len(archive.labels):,} archive lesions with an image, {malignant:,} malignant: {options.archives_mode}")

    manifest = load_manifest(options.artifacts)
    settings = NetworkConfig(
        image_size=options.image_size,
        inputs=tuple(INPUTS[options.inputs]),
        tabular_mean=float(lesions.tabular[trained].mean()),
        tabular_std=float(lesions.tabular[trained].std()) or 1.0,
        base_logit=float(np.log(lesions.labels[trained].mean() / (1 - lesions.labels[trained].mean()))),
    )
    kept = unfinished_folder(options, manifest, archive)
    training = Training(options, settings, lesions, store.path, options.logs.resolve(), archive)
    folds = range(int(lesions.fold.max()) + 1)
    train_folds(kept, folds, training)
    logits, votes = np.zeros(len(trained)), np.zeros(len(trained))
    for number in folds:
        scores = pd.read_csv(scores_of(kept, number), index_col="row")["network"]
        logits[scores.index] += scores.to_numpy()
        votes[scores.index] += 1
    seen = votes > 0
    logits[seen] /= votes[seen]
    write_history(kept, options.logs, options.inputs)
    if options.inputs == "fusion":
        record_fusion(options, settings, lesions, np.where(seen, logits, lesions.tabular), seen, kept)
    else:
        record_alone(options, settings, lesions, logits, seen)
    shutil.rmtree(kept)
    return 0


if __name__ == "__main__":
    run_command(train_fusion)
