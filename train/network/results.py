"""What a finished training leaves in the artifact folder: networks, out-of-fold logits, its section of the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from inference.artifacts import OOF_FUSION, OOF_IMAGE_ONLY, OOF_TABULAR_ONLY, checked_file, fold_network_file, load_manifest
from inference.files import write_csv
from inference.network import NetworkConfig, load_network
from inference.schema import ID, TARGET, read_scores
from inference.scoring import AS_THEY_ARE, BLEND, COMBINATIONS, NETWORK_ALONE, RANK_AVERAGE, combine
from train.charts import clean_axes, new_figure, save_png
from train.folds import HOLDOUT
from train.manifest import Stage
from train.network.checkpoint import save_weights
from train.network.fold import FoldFiles, Training
from utils import InputError, ScoreTable, bootstrap_scores, format_table, log, log_summary, partial_auc

#: Corrections that differ by less are the same but for rounding.
SMALLEST_DEVIATION = 1e-6
#: The score of the nested choice: its combination, too, was chosen without the fold that it is measured on.
FINAL = "final"
#: Of a network with one input: its section of the manifest, its file, and its name in tables.
SINGLE_INPUT = {
    "image": ("image_only", OOF_IMAGE_ONLY, "image only"),
    "tabular": ("tabular_only", OOF_TABULAR_ONLY, "tabular only"),
}


@dataclass(frozen=True)
class OutOfFold:
    """Lesions with their out-of-fold logits, in the order of train-metadata.csv; arrays of shape (rows,).

    Args:
        isic_ids: str.
        patients: str.
        y_true: 0 benign, 1 malignant.
        fold: 0, 1, ..., or ``HOLDOUT``.
        tabular: tabular logits.
        network: network logits; the tabular ones where there is no network's.
        image_scored: whether a network scored the lesion, bool.
    """

    isic_ids: np.ndarray
    patients: np.ndarray
    y_true: np.ndarray
    fold: np.ndarray
    tabular: np.ndarray
    network: np.ndarray
    image_scored: np.ndarray

    def where(self, mask: np.ndarray) -> OutOfFold:
        """The rows where ``mask`` is true."""
        return OutOfFold(*(getattr(self, field.name)[mask] for field in fields(self)))

    def combined(self, how: dict[str, Any]) -> np.ndarray:
        """Final logits as the kernel computes them, shape (rows,)."""
        return combine(how, self.tabular, self.network, self.image_scored)


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


# The combination of tabular and network logits


@dataclass(frozen=True)
class Combination:
    """The combination for the kernel, and the out-of-fold scores that it was chosen by.

    Args:
        settings: as ``inference.scoring.combine`` reads it, with the reason.
        scores: of ``nested_scores``.
    """

    settings: dict[str, Any]
    scores: dict[str, np.ndarray]


def choose_combination(rows: OutOfFold) -> Combination:
    """The combination with the highest pAUC out of fold, fitted on all folds; of equals the first, which is simpler."""
    scores = nested_scores(rows)
    paucs = {kind: partial_auc(rows.y_true, scores[kind]) for kind in COMBINATIONS}
    best = max(COMBINATIONS, key=paucs.__getitem__)
    reason = f"highest pAUC out of fold, nested: {', '.join(f'{kind} {paucs[kind]:.4f}' for kind in COMBINATIONS)}"
    return Combination(fit_combination(best, rows) | {"reason": reason}, scores)


def nested_scores(rows: OutOfFold) -> dict[str, np.ndarray]:
    """Every combination's scores out of fold, and those of the combination chosen without the fold.

    A fold's blend is fitted on the other folds. The networks behind those folds' scores were trained on the fold's lesions,
    as in every stacking of out-of-fold scores (Wolpert 1992, Stacked Generalization): two weights and a choice leak next to
    nothing.

    Returns:
        Name -> shape (rows,): ``COMBINATIONS`` in logits, and ``FINAL`` as a percentile, 0 to 1, of its combination's
        scores, because folds with different choices must share a scale.
    """
    scores = {kind: rows.combined({"kind": kind}) for kind in (NETWORK_ALONE, RANK_AVERAGE)}
    scores[BLEND] = np.zeros(len(rows.y_true))
    chosen = np.zeros(len(rows.y_true), dtype=int)
    for fold in np.unique(rows.fold):
        inside = rows.fold == fold
        others = rows.where(~inside)
        blend = fit_combination(BLEND, others)
        scores[BLEND][inside] = rows.where(inside).combined(blend)
        known = {kind: scores[kind][~inside] for kind in (NETWORK_ALONE, RANK_AVERAGE)} | {BLEND: others.combined(blend)}
        chosen[inside] = np.argmax([partial_auc(others.y_true, known[kind]) for kind in COMBINATIONS])
    percentiles = np.stack([rankdata(scores[kind]) / len(rows.y_true) for kind in COMBINATIONS])
    return scores | {FINAL: percentiles[chosen, np.arange(len(rows.y_true))]}


def fit_combination(kind: str, rows: OutOfFold) -> dict[str, Any]:
    """A combination with its weights, as ``inference.scoring.combine`` reads it.

    The weights are those of logistic regressions without penalty on out-of-fold logits. For the network alone they change no
    rank among lesions with an image, nor among those without: they put both on one scale. A weight below zero would turn a
    score round; logits then stay as they are.

    Args:
        kind: one of ``COMBINATIONS``.
        rows: both classes present, also where ``image_scored``.
    """
    if kind == RANK_AVERAGE:
        return {"kind": kind}
    with_image = rows.where(rows.image_scored)
    names = ("tabular", "network") if kind == BLEND else ("network",)
    found = {"with_image": {"tabular": 0.0} | regression(with_image, names), "without_image": regression(rows, ("tabular",))}
    if kind == NETWORK_ALONE and min(found["with_image"]["network"], found["without_image"]["tabular"]) <= 0:
        found = AS_THEY_ARE
    elif found["without_image"]["tabular"] <= 0:
        found |= {"without_image": AS_THEY_ARE["without_image"]}
    return {"kind": kind} | found


def regression(rows: OutOfFold, names: tuple[str, ...]) -> dict[str, float]:
    """Intercept and weights, by name, of a logistic regression without penalty on the logits ``names``."""
    inputs = np.column_stack([getattr(rows, name) for name in names])
    model = LogisticRegression(penalty=None, max_iter=1000).fit(inputs, rows.y_true)
    return {"intercept": float(model.intercept_[0])} | dict(zip(names, map(float, model.coef_[0]), strict=True))


# The artifact folder


def record_fusion(stage: Stage, training: Training, rows: OutOfFold, folder: Path, scales: Sequence[Scale]) -> None:
    """Puts the fold networks into the artifact folder and records them, with the combination for the kernel.

    Args:
        stage: of the artifact folder.
        training: what all folds shared.
        rows: all lesions outside the holdout.
        folder: of the unfinished training, with the networks.
        scales: of the networks.
    """
    combination = choose_combination(rows)
    folds = training.lesions.folds
    names = [fold_network_file(fold) for fold in folds]
    table = pd.DataFrame({ID: rows.isic_ids, TARGET: rows.y_true, "fold": rows.fold, "tabular": rows.tabular})
    table = table.assign(network=rows.network, image_scored=rows.image_scored.astype(int), final=combination.scores[FINAL])
    write_csv(stage.folder / OOF_FUSION, table)
    results = bootstrap_scores(rows.y_true, rows.patients, {"tabular": rows.tabular} | combination.scores)
    with_image = training.lesions.in_folds & training.lesions.has_image
    section = {
        "weights": names,
        "settings": training.network.to_dict(),
        "training": asdict(training.config),
        "combination": combination.settings,
        "trained_on": {"lesions": len(rows.y_true), "images": int(with_image.sum())},
        "scores": scores_section(results),
    }
    for fold, name, scale in zip(folds, names, scales, strict=True):
        save_scaled(training.network, FoldFiles(folder, fold).weights, stage.folder / name, scale)
    stage.record(section)
    log(f"combination for the kernel: {combination.settings['kind']} ({combination.settings['reason']})")
    line = difference_line(results, FINAL, "tabular")
    log_summary(f"{len(names)} networks in {stage.artifacts}: {line}", format_table(results))


def scores_section(results: ScoreTable) -> dict[str, dict[str, Any]]:
    """The scores for the manifest, by name: pAUC, its interval, and the paired difference to the tabular score."""
    section = {}
    for name, score in results.scores.items():
        gain = results.difference(name, "tabular")
        section[name] = {
            "pauc": score.pauc.value,
            "interval": [score.pauc.low, score.pauc.high],
            "difference_to_tabular": [gain.value, gain.low, gain.high],
        }
    return section


def difference_line(results: ScoreTable, a: str, b: str) -> str:
    """The paired difference of two scores, in words."""
    gain = results.difference(a, b)
    return f"{a} - {b}, paired: {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] pAUC out of fold"


def record_single_input(stage: Stage, training: Training, rows: OutOfFold) -> None:
    """Records a network with one input, for comparison: its logits out of fold, the image's on the holdout too.

    No network is kept. Where the fusion is trained on the same folds, its network logits are compared with it.
    """
    _, name, title = SINGLE_INPUT[training.config.inputs]
    rows = rows.where(rows.image_scored)
    table = pd.DataFrame({ID: rows.isic_ids, TARGET: rows.y_true, "fold": rows.fold, "network": rows.network})
    write_csv(stage.folder / name, table)
    inside = rows.where(rows.fold != HOLDOUT)
    scores = {title: inside.network}
    fusion = recorded_network_logits(stage.artifacts).reindex(inside.isic_ids).to_numpy()
    if np.isfinite(fusion).all():
        scores["fusion network"] = fusion
    results = bootstrap_scores(inside.y_true, inside.patients, scores)
    content = {"settings": training.network.to_dict(), "training": asdict(training.config)}
    stage.record(content)
    if "fusion network" in scores:
        log(difference_line(results, "fusion network", title))
    line = f"{stage.artifacts / name}: {title}, network logits of {len(rows.y_true):,} lesions"
    log_summary(line, format_table(results))


def recorded_network_logits(artifacts: Path) -> pd.Series:
    """The fusion's out-of-fold network logits by isic_id, if the manifest names their file; else empty."""
    manifest = load_manifest(artifacts)
    if OOF_FUSION not in manifest["files"]:
        return pd.Series(dtype="float64")
    return read_scores(checked_file(artifacts, manifest, OOF_FUSION), ["network"])["network"]


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
