"""ResNet50 + tabular logits, per fold -> fold networks, out-of-fold logits, manifest.

    python -m train.fusion --data data/isic-2024-challenge --artifacts artifacts --weights imagenet

A network gets CatBoost's out-of-fold logit together with the crop, and learns a correction that starts at zero
(``inference.network``). ``--inputs image`` trains the same network without the tabular logit, ``--inputs tabular`` without
the crop, for comparison: they write oof_image_only.csv or oof_tabular_only.csv and nothing that the kernel uses. Every epoch
and every finished fold is saved, so the same command continues where it was interrupted; once finished, it does nothing.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.artifacts import FOLDS, OOF_TABULAR, load_manifest
from inference.files import sha256_of, write_json
from inference.images import find_images
from inference.network import NetworkConfig
from inference.run_log import versions
from inference.schema import ID, PATIENT, TARGET
from inference.scoring import NETWORK, TABULAR
from scale.parallel import Files, Progress, in_own_process, run_tasks, workers
from terminal import run_command
from train.code_version import code_version
from train.lesions import open_images, read_lesions
from train.manifest import is_current, stage
from train.network.config import INPUTS, RANDOM_DEFAULTS, RunConfig, TrainingConfig, flag, parse_fusion_options
from train.network.fold import LOGS, PRETRAINED, FoldFiles, Training, refuse_too_few_groups, train_backbone, train_fold
from train.network.imagenet_weights import initial_weights_file
from train.network.model import be_deterministic, leave_gpus_to_tasks
from train.network.pretraining import read_archive
from train.network.results import (
    SINGLE_INPUT,
    Scale,
    common_scales,
    record_fusion,
    record_single_input,
    write_history,
)
from utils import InputError, log

#: The options and input files of the training in a folder of an unfinished one.
SETTINGS = "settings.json"


def train_fusion(arguments: list[str] | None = None) -> int:
    """Trains one network per fold; writes the artifacts only when all folds are finished."""
    run, config = parse_fusion_options(arguments)
    with stage(run.artifacts, section_of(config), files_read(run, config)) as current, workers(run.jobs, run.cluster):
        if current.is_done(what_decides_networks(config), part_of(run, config), again=run.restart):
            return 0
        if not in_own_process():
            leave_gpus_to_tasks()
        be_deterministic(config.deterministic)
        training = read_training(run, config)
        if config.auxiliary:
            refuse_too_few_groups(training)
        folder = unfinished_folder(run, training)
        train_folds(training, folder)
        rows, scales = gather_out_of_fold(training, folder)
        write_history(folder, run.logs, training.name)
        if config.inputs == "fusion":
            record_fusion(current, training, rows[training.lesions.in_folds], folder, scales)
        else:
            record_single_input(current, training, rows)
        shutil.rmtree(folder)
    return 0


def section_of(config: TrainingConfig) -> str:
    """The section of the manifest that a training writes."""
    return SINGLE_INPUT[config.inputs][0] if config.inputs in SINGLE_INPUT else "network"


def networks_are_current(run: RunConfig, config: TrainingConfig) -> bool:
    """Whether the command would find the networks there, and do nothing."""
    decisive, reads = what_decides_networks(config), files_read(run, config)
    return is_current(run.artifacts, section_of(config), decisive, reads, part_of(run, config))


def part_of(run: RunConfig, config: TrainingConfig) -> str:
    """The network's name, where it is one of several; as ``Stage.is_done`` takes it."""
    return run.name if config.inputs == "fusion" else ""


def what_decides_networks(config: TrainingConfig) -> dict[str, Any]:
    """What decides the networks besides inputs and code, for ``Stage.is_done``."""
    return {"config": asdict(config), "versions": versions()}


def files_read(run: RunConfig, config: TrainingConfig) -> list[Path]:
    """The files that may not change while the networks train."""
    tables = [run.data / "train-metadata.csv", run.artifacts / FOLDS, run.artifacts / OOF_TABULAR]
    return [*tables, *own_weights(config), *filter(None, [find_images(run.data, "train"), run.archives])]


def own_weights(config: TrainingConfig) -> list[Path]:
    """The file of ``--weights``, if one is given."""
    return [] if config.weights in ("imagenet", "none") else [Path(config.weights)]


def read_training(run: RunConfig, config: TrainingConfig) -> Training:
    """Lesions, images and archive, and the network's configuration, which standardises the tabular logits.

    Raises:
        InputError: as ``read_lesions`` and ``read_archive``.
    """
    images = open_images(run.data)
    lesions = read_lesions(run.data, run.artifacts, images, config.missing_images)
    if config.batch_size > lesions.in_folds.sum():
        raise InputError(f"--batch-size {config.batch_size} is more than all {lesions.in_folds.sum()} lesions; give fewer.")
    with_image = int((lesions.in_folds & lesions.has_image).sum())
    log(f"{int(lesions.in_folds.sum()):,} lesions, {with_image:,} with an image in {images.path}")
    archive = read_archive(run.archives, lesions) if run.archives else None
    if archive:
        malignant = int(archive.labels.sum())
        log(f"{len(archive.labels):,} archive lesions with an image, {malignant:,} malignant: {config.archives_mode}")
    tabular, prevalence = lesions.tabular[lesions.in_folds], lesions.labels[lesions.in_folds].mean()
    network = NetworkConfig(
        image_size=config.image_size,
        backbone=config.backbone,
        feature_dropout=config.dropout,
        head_units=config.head_units,
        views=config.views,
        inputs=INPUTS[config.inputs],
        tabular_mean=float(tabular.mean()),
        tabular_std=float(tabular.std()) if np.ptp(tabular) else 1.0,  # rounding gives equal logits a deviation
        base_logit=float(np.log(prevalence / (1 - prevalence))),
    )
    initial = initial_weights_file(config.backbone, config.weights)
    return Training(
        config, network, initial, lesions, images.path, run.logs.resolve(), archive, cache=run.cache, name=run.name
    )


def unfinished_folder(run: RunConfig, training: Training) -> Path:
    """The hidden folder where a training keeps its checkpoints and finished folds until all are finished.

    Raises:
        InputError: there is one of a training with other options or other inputs.
    """
    folder = run.artifacts / f".{training.name}-training"
    options, hashes = asdict(training.config), load_manifest(run.artifacts)["files"]
    settings = options | {FOLDS: hashes[FOLDS], OOF_TABULAR: hashes[OOF_TABULAR]}
    settings["images"] = training.images_sha256
    settings["archives"] = training.archive.sha256 if training.archive else "none"
    for path in own_weights(training.config):
        settings["initial_weights"] = sha256_of(path)
    if training.config.auxiliary:
        settings["diagnosis groups"] = training.groups_sha256
    settings |= versions() | {"code": code_version("train.fusion")}
    if run.restart and folder.is_dir():
        shutil.rmtree(folder)
    if (folder / SETTINGS).is_file():
        known = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        known = asdict(RANDOM_DEFAULTS) | known  # an option that is newer than the unfinished training
        other = [name for name in settings if known.get(name) != settings[name]]
        if other and run.replace:
            shutil.rmtree(folder)
        elif other:
            shown = ", ".join(f"{flag(name) if name in options else name} {known.get(name)!s:.20}" for name in other)
            raise InputError(f"{folder} holds an unfinished training with {shown}; give the same again, or --replace.")
    for left in folder.glob(".*"):  # half-written by a killed process
        left.unlink()
    write_json(folder / SETTINGS, settings)
    return folder


def train_folds(training: Training, folder: Path) -> None:
    """Trains the folds that ``folder`` does not hold, where ``scale.parallel.workers`` runs them; each writes into it.

    A backbone is pretrained once for all folds: the archive has no patient of theirs.
    """
    todo = []
    for fold in training.lesions.folds:
        if FoldFiles(folder, fold).scores.is_file():
            log(f"Fold {fold}: finished in an earlier run")
        else:
            todo.append(fold)
    if todo and training.config.archives_mode == "pretrain":
        backbone = folder / PRETRAINED
        if not backbone.is_file():
            run_tasks(train_backbone, [(training,)], 1, Files.of(training.reads, folder), Progress(show=False))
        training = replace(training, backbone=backbone)
    tasks = ((fold, training) for fold in todo)
    progress = Progress("folds", "fold", show=not in_own_process())  # in this process, each fold shows its own steps
    run_tasks(train_fold, tasks, len(todo), Files.of(training.reads, folder), progress)
    if (folder / LOGS).is_dir():  # of folds that were trained on another machine
        try:
            shutil.copytree(folder / LOGS, training.logs, dirs_exist_ok=True)
        except OSError as error:  # shutil's own among them
            log(f"{training.logs} has not all files for TensorBoard ({error})")


def gather_out_of_fold(training: Training, folder: Path) -> tuple[pd.DataFrame, list[Scale]]:
    """All lesions with the logits that the folds left: each lesion's own fold's, in the holdout the mean of all folds'.

    Returns:
        The lesions, as ``train.combination`` takes them, with patient_id, and the scale of each fold's network, which their
        logits have already.
    """
    lesions = training.lesions
    start = lesions.tabular if "tabular" in training.network.inputs else np.zeros(len(lesions.fold))
    scores = [pd.read_csv(FoldFiles(folder, fold).scores, index_col="row")["network"] for fold in lesions.folds]
    corrections = [logits - start[logits.index] for logits in scores]
    own = [each[lesions.fold[each.index] == fold] for fold, each in zip(lesions.folds, corrections, strict=True)]
    scales = common_scales(own)
    total, count = np.zeros(len(lesions.fold)), np.zeros(len(lesions.fold))
    for each, scale in zip(corrections, scales, strict=True):
        total[each.index] += start[each.index] + scale.of(each.to_numpy())
        count[each.index] += 1
    columns = {ID: lesions.isic_ids, PATIENT: lesions.patients, TARGET: lesions.labels, "fold": lesions.fold}
    network = np.where(count > 0, total / np.maximum(count, 1), lesions.tabular)
    return pd.DataFrame(columns | {TABULAR: lesions.tabular, NETWORK: network, "image_scored": count > 0}), scales


if __name__ == "__main__":
    run_command(train_fusion)
