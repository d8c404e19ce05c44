"""What a finished training leaves in the artifact folder: networks, out-of-fold logits, its section of the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from inference.artifacts import (
    OOF_FUSION,
    OOF_IMAGE_ONLY,
    OOF_TABULAR_ONLY,
    checked_file,
    fold_network_file,
    load_manifest,
    network_column,
    networks_of,
)
from inference.files import write_csv
from inference.network import NetworkConfig, load_network
from inference.schema import ID, PATIENT, TARGET, read_scores
from inference.scoring import FINAL, NETWORK, TABULAR
from train.charts import clean_axes, new_figure, save_png
from train.combination import OF_NETWORKS, choose_combination, difference_line, scores_section
from train.folds import HOLDOUT
from train.manifest import Stage, link_or_copy
from train.network.checkpoint import save_weights
from train.network.fold import FoldFiles, Training
from utils import InputError, bootstrap_scores, format_table, log, log_summary

#: Corrections that differ by less are the same but for rounding.
SMALLEST_DEVIATION = 1e-6
#: Of a network with one input: its section of the manifest, its file, and its name in tables.
SINGLE_INPUT = {
    "image": ("image_only", OOF_IMAGE_ONLY, "image only"),
    "tabular": ("tabular_only", OOF_TABULAR_ONLY, "tabular only"),
}


# One scale for all networks


@dataclass(frozen=True)
class Scale:
    """What is done to a network's correction: ``factor`` times it, plus ``offset``."""

    factor: float = 1.0
    offset: float = 0.0

    def of(self, corrections: np.ndarray) -> np.ndarray:
        """The scaled corrections, in the shape of ``corrections``."""
        return self.factor * corrections + self.offset


def common_scales(corrections: Sequence[np.ndarray]) -> list[Scale]:
    """Scales by which all networks' corrections get one mean and one standard deviation: the mean of the networks' own.

    Networks that stop at different points of a training differ in the mean and the spread of their logits. That harms the
    ranking where their scores are pooled, and lets one outweigh the others where they are averaged. No label is used.

    Args:
        corrections: of each network, out of fold: the network logit less the tabular logit, if it has one; shape (rows,).
    """
    means, deviations = ([float(summary(each)) for each in corrections] for summary in (np.mean, np.std))
    if min(deviations) < SMALLEST_DEVIATION:
        return [Scale() for _ in corrections]
    factors = [float(np.mean(deviations)) / deviation for deviation in deviations]
    middle = float(np.mean(means))
    return [Scale(factor, middle - factor * mean) for factor, mean in zip(factors, means, strict=True)]


def save_scaled(config: NetworkConfig, source: Path, target: Path, scale: Scale) -> None:
    """Writes the weights of a network whose corrections are scaled: its last layer does it."""
    network = load_network(config, source)
    last = network.get_layer("correction")
    kernel, bias = last.get_weights()
    last.set_weights([scale.factor * kernel, scale.of(bias)])
    save_weights(network, target)


# The artifact folder


def record_fusion(stage: Stage, training: Training, rows: pd.DataFrame, folder: Path, scales: Sequence[Scale]) -> None:
    """Puts the fold networks into the artifact folder beside those of other names, and records all, with the combination.

    Args:
        stage: of the artifact folder.
        training: what all folds shared.
        rows: all lesions outside the holdout, as ``train.combination`` takes them, with patient_id.
        folder: of the unfinished training, with the networks.
        scales: of the networks.
    """
    name, folds = training.name, training.lesions.folds
    files = [fold_network_file(fold, name) for fold in folds]
    alone = bootstrap_scores(rows[TARGET], rows[PATIENT], {name: rows["network"]}).scores[name].pauc
    networks, logits = other_networks(stage, name, rows)
    networks[name] = {
        "weights": files,
        "settings": training.network.to_dict(),
        "training": asdict(training.config),
        "pauc": alone.value,
        "interval": [alone.low, alone.high],
    }
    logits[name] = rows["network"]
    networks = dict(sorted(networks.items(), key=lambda item: -item[1]["pauc"]))
    rows = rows.assign(network=sum(logits.values()) / len(logits))
    combination = choose_combination(rows, OF_NETWORKS)
    columns = {network_column(each): logits[each] for each in networks}
    table = rows[[ID, TARGET, "fold", TABULAR, NETWORK]].assign(
        image_scored=rows["image_scored"].astype(int), final=combination.scores[FINAL], **columns
    )
    write_csv(stage.folder / OOF_FUSION, table)
    parts = columns if len(columns) > 1 else {}
    results = bootstrap_scores(rows[TARGET], rows[PATIENT], {TABULAR: rows[TABULAR]} | parts | combination.scores)
    with_image = training.lesions.in_folds & training.lesions.has_image
    section = {
        "networks": networks,
        "combination": combination.settings,
        "trained_on": {"lesions": len(rows), "images": int(with_image.sum())},
        "scores": scores_section(results),
    }
    for fold, file, scale in zip(folds, files, scales, strict=True):
        save_scaled(training.network, FoldFiles(folder, fold).weights, stage.folder / file, scale)
    stage.record(section)
    log(f"combination for the kernel: {combination.settings['kind']} ({combination.settings['reason']})")
    line = difference_line(results, FINAL, TABULAR)
    log_summary(f"{len(files)} networks {name!r} in {stage.artifacts}: {line}", format_table(results))


def other_networks(stage: Stage, name: str, rows: pd.DataFrame) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The networks of other names that the folder has: their sections, and their logits of ``rows``; they stay in it.

    A lesion that one network has not scored has its tabular logit, as it has in every network's column.
    """
    manifest = load_manifest(stage.artifacts)
    others = {other: section for other, section in networks_of(manifest).items() if other != name}
    if not others:
        return {}, {}
    table = read_scores(checked_file(stage.artifacts, manifest, OOF_FUSION), [network_column(other) for other in others])
    for section in others.values():
        for file in section["weights"]:
            link_or_copy(checked_file(stage.artifacts, manifest, file), stage.folder / file)
    return others, {other: table[network_column(other)].reindex(rows[ID]).to_numpy() for other in others}


def record_single_input(stage: Stage, training: Training, rows: pd.DataFrame) -> None:
    """Records a network with one input, for comparison: its logits out of fold, the image's on the holdout too.

    No network is kept. Where the fusion is trained on the same folds, its network logits are compared with it.
    """
    _, name, title = SINGLE_INPUT[training.config.inputs]
    rows = rows[rows["image_scored"]]
    write_csv(stage.folder / name, rows[[ID, TARGET, "fold", NETWORK]])
    inside = rows[rows["fold"] != HOLDOUT]
    scores = {title: inside[NETWORK]}
    fusion = recorded_network_logits(stage.artifacts).reindex(inside[ID]).to_numpy()
    if np.isfinite(fusion).all():
        scores["fusion network"] = fusion
    results = bootstrap_scores(inside[TARGET], inside[PATIENT], scores)
    content = {"settings": training.network.to_dict(), "training": asdict(training.config)}
    stage.record(content)
    if "fusion network" in scores:
        log(difference_line(results, "fusion network", title))
    log_summary(f"{stage.artifacts / name}: {title}, network logits of {len(rows):,} lesions", format_table(results))


def recorded_network_logits(artifacts: Path) -> pd.Series:
    """The fusion's out-of-fold network logits by isic_id, if the manifest names their file; else empty."""
    manifest = load_manifest(artifacts)
    if OOF_FUSION not in manifest["files"]:
        return pd.Series(dtype="float64")
    return read_scores(checked_file(artifacts, manifest, OOF_FUSION), [NETWORK])[NETWORK]


# The history


def write_history(folder: Path, logs: Path, name: str) -> None:
    """Joins the folds' histories in ``logs``/``name``-history.csv and draws ``name``-curves.png, where that can be written.

    Args:
        folder: with a ``history*.csv`` per fold.
        logs: folder to write into.
        name: of the training.
    """
    parts = [pd.read_csv(path) for path in sorted(folder.glob("history*.csv"))]
    history = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    if history.empty:
        return
    try:
        write_csv(logs / f"{name}-history.csv", history)
        save_png(draw_history(history, name), logs / f"{name}-curves.png")
    except (InputError, OSError) as error:
        log(f"{logs} has no history of this training ({error})")


def draw_history(history: pd.DataFrame, name: str) -> Figure:
    """Training loss of every fold by epoch, the learning rate below it, and the speed."""
    figure = new_figure(8, 6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for fold, part in history.groupby("fold"):
        top.plot(part["epoch"], part["loss"], marker="o", markersize=3, label=f"fold {fold}")
    first = history[history["fold"] == history["fold"].iloc[0]]
    bottom.plot(first["epoch"], first["learning_rate"], color="black", marker="o", markersize=3)
    for epoch in first.loc[first["phase"] != first["phase"].shift(), "epoch"].iloc[1:]:
        top.axvline(epoch - 0.5, color="grey", linestyle=":")
        bottom.axvline(epoch - 0.5, color="grey", linestyle=":")
    phases = ", then ".join(dict.fromkeys(history["phase"]))
    speed, minutes = history["images_per_second"].median(), history["seconds"].sum() / 60
    top.set_title(f"{name}: {phases}; {speed:.0f} images/s, {minutes:.1f} min in all", fontsize=11)
    top.set_ylabel("training loss")
    top.legend(frameon=False)
    bottom.set(xlabel="epoch", ylabel="learning rate at its end")
    for axes in (top, bottom):
        clean_axes(axes)
    return figure
