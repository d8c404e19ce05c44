"""What a finished training leaves in the artifact folder: networks, out-of-fold logits, its section of the manifest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from inference.artifacts import OOF_FUSION, checked_file, load_manifest
from inference.files import replacing, write_csv
from inference.network import NetworkConfig
from inference.schema import ID, TARGET
from inference.scoring import AS_THEY_ARE, BLEND, COMBINATIONS, NETWORK_ALONE, RANK_AVERAGE, combine
from train.folds import HOLDOUT
from train.lesions import Lesions
from train.manifest import record_stage
from train.network.config import chosen
from utils import ScoreTable, bootstrap_scores, format_table, log, partial_auc

#: The name of the score whose kind of combination, too, was chosen without the fold that it is measured on.
CHOSEN = "chosen without the fold"


def fit(kind: str, labels: np.ndarray, tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """A combination with its weights, as ``inference.scoring.combine`` reads it.

    The weights are those of logistic regressions without penalty on out-of-fold logits. Those of the fusion alone change
    no rank among lesions with an image, nor do those of the others among themselves: they bring both on one scale.

    Args:
        kind: one of ``COMBINATIONS``.
        labels: 0/1, both present where ``seen``, shape (rows,).
        tabular: out-of-fold logits, shape (rows,).
        fusion: likewise, where ``seen``.
        seen: bool, shape (rows,).
    """
    if kind == RANK_AVERAGE:
        return {"kind": kind}
    unseen = regression(labels, tabular=tabular)
    names = {"tabular": tabular[seen], "network": fusion[seen]} if kind == BLEND else {"network": fusion[seen]}
    found = {"with_image": {"tabular": 0.0} | regression(labels[seen], **names), "without_image": unseen}
    if unseen["tabular"] <= 0 or (kind == NETWORK_ALONE and found["with_image"]["network"] <= 0):
        found = (
            AS_THEY_ARE if kind == NETWORK_ALONE else found | {"without_image": AS_THEY_ARE["without_image"]}
        )  # worse than guessing
    return {"kind": kind} | found


def regression(labels: np.ndarray, **logits: np.ndarray) -> dict[str, float]:
    """Intercept and weights by name of a logistic regression without penalty."""
    model = LogisticRegression(penalty=None, max_iter=1000).fit(np.column_stack(list(logits.values())), labels)
    return {"intercept": float(model.intercept_[0])} | dict(zip(logits, map(float, model.coef_[0]), strict=True))


def nested_scores(
    labels: np.ndarray, fold: np.ndarray, tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray
) -> dict[str, np.ndarray]:
    """Every combination's scores out of fold, and those of the one that would have been chosen without the fold.

    A fold's blend is fitted on the other folds. The networks behind those folds' scores have seen the fold's lesions, as in
    every stacking of out-of-fold scores (Wolpert 1992, Stacked Generalization): two weights and a choice leak next to
    nothing of it.

    Args:
        labels: 0/1, shape (rows,).
        fold: 0, 1, ..., shape (rows,).
        tabular: out-of-fold logits, shape (rows,).
        fusion: likewise, where ``seen``.
        seen: bool, shape (rows,).

    Returns:
        Name -> shape (rows,): ``COMBINATIONS`` in logits, and ``CHOSEN`` as a percentile, 0 to 1, of its combination's
        scores, because folds that chose differently must share a scale.
    """
    scores = {kind: combine({"kind": kind}, tabular, fusion, seen) for kind in (NETWORK_ALONE, RANK_AVERAGE)}
    scores[BLEND] = np.zeros(len(labels))
    chosen = np.zeros(len(labels), dtype=int)
    for number in np.unique(fold):
        inside = fold == number
        blend = fit(BLEND, labels[~inside], tabular[~inside], fusion[~inside], seen[~inside])
        scores[BLEND][inside] = combine(blend, tabular[inside], fusion[inside], seen[inside])
        others = {kind: scores[kind][~inside] for kind in (NETWORK_ALONE, RANK_AVERAGE)}
        others[BLEND] = combine(blend, tabular[~inside], fusion[~inside], seen[~inside])
        chosen[inside] = np.argmax([partial_auc(labels[~inside], others[kind]) for kind in COMBINATIONS])
    percentiles = np.stack([rankdata(scores[kind]) / len(labels) for kind in COMBINATIONS])
    return scores | {CHOSEN: percentiles[chosen, np.arange(len(labels))]}


def choose(
    labels: np.ndarray, tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray, scores: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the kernel does, for the manifest: the best of ``nested_scores`` out of fold, its weights from all folds.

    Returns:
        As ``inference.scoring.combine`` reads it, with the reason under "reason".
    """
    paucs = {kind: partial_auc(labels, scores[kind]) for kind in COMBINATIONS}
    best = max(COMBINATIONS, key=paucs.__getitem__)  # the first of equals: the simplest
    how = fit(best, labels, tabular, fusion, seen)
    told = ", ".join(f"{kind} {paucs[kind]:.4f}" for kind in COMBINATIONS)
    return how | {"reason": f"the highest pAUC out of fold, the blend by nested folds: {told}"}


#: What a network of one input leaves: a section of the manifest, and a file.
ALONE = {"image": ("image_only", "oof_image_only.csv"), "tabular": ("tabular_only", "oof_tabular_only.csv")}


def record_fusion(
    options: argparse.Namespace, settings: NetworkConfig, lesions: Lesions, logits: np.ndarray, seen: np.ndarray, kept: Path
) -> None:
    """Moves the fold networks into the artifact folder and records them, with the combination that the kernel will use.

    Args:
        options: of ``train.fusion``.
        settings: of ``inference.network.build_network``.
        lesions: all of them.
        logits: out of fold, shape (rows,); the tabular ones where no image was seen.
        seen: bool, shape (rows,).
        kept: folder with ``fold0.weights.h5`` and so on.
    """
    trained = lesions.fold != HOLDOUT
    folds = int(lesions.fold.max()) + 1
    names = [f"fusion_fold{number}.weights.h5" for number in range(folds)]
    labels, fold, tabular = lesions.labels[trained], lesions.fold[trained], lesions.tabular[trained]
    fusion, seen = logits[trained], seen[trained]
    combined = nested_scores(labels, fold, tabular, fusion, seen)
    how = choose(labels, tabular, fusion, seen, combined)
    table = pd.DataFrame({ID: lesions.isic_ids[trained], TARGET: labels, "fold": fold, "tabular": tabular})
    table = table.assign(network=fusion, image_scored=seen.astype(int), final=combined[CHOSEN])
    write_csv(options.artifacts / OOF_FUSION, table)
    results = bootstrap_scores(labels, lesions.patients[trained], {"tabular": tabular} | combined)
    content = {
        "weights": names,
        "settings": settings.to_dict(),
        "training": chosen(options),
        "combination": how,
        "trained_on": {"lesions": int(trained.sum()), "images": int((trained & lesions.has_image).sum())},
        "scores": figures(results),
    }
    for number, name in enumerate(names):
        (kept / f"fold{number}.weights.h5").replace(options.artifacts / name)
    record_stage(options.artifacts, "network", content, [*names, OOF_FUSION])
    gain = results.difference(CHOSEN, "tabular")
    log(format_table(results))
    log(f"the kernel will use: {how['kind']} ({how['why']})")
    log(
        f"{folds} networks in {options.artifacts}: {CHOSEN}, less tabular {gain.value:+.4f} "
        f"[{gain.low:+.4f}, {gain.high:+.4f}] pAUC out of fold"
    )


def figures(results: ScoreTable) -> dict[str, dict[str, list[float] | float]]:
    """pAUC with its interval, and the paired difference to the tabular score, by name, for the manifest."""
    told = {}
    for name, score in results.scores.items():
        gain = results.difference(name, "tabular")
        told[name] = {
            "pauc": score.pauc.value,
            "interval": [score.pauc.low, score.pauc.high],
            "difference_to_tabular": [gain.value, gain.low, gain.high],
        }
    return told


def record_alone(
    options: argparse.Namespace, settings: NetworkConfig, lesions: Lesions, logits: np.ndarray, seen: np.ndarray
) -> None:
    """Records one input's own opinion, to compare: out of fold, the image's on the holdout too. No network is kept.

    Where the fusion is trained already on the same folds, it is told beside it, with the paired difference.
    """
    stage, name = ALONE[options.inputs]
    table = pd.DataFrame({ID: lesions.isic_ids, TARGET: lesions.labels, "fold": lesions.fold, "network": logits})[seen]
    write_csv(options.artifacts / name, table)
    inside = seen & (lesions.fold != HOLDOUT)
    alone = f"{options.inputs} alone"
    scores = {alone: logits[inside]}
    fusion = recorded_fusion(options.artifacts).reindex(lesions.isic_ids[inside]).to_numpy()
    if np.isfinite(fusion).all():
        scores["fusion"] = fusion
    results = bootstrap_scores(lesions.labels[inside], lesions.patients[inside], scores)
    record_stage(options.artifacts, stage, {"settings": settings.to_dict(), "training": chosen(options)}, [name])
    log(format_table(results))
    if "fusion" in scores:
        gain = results.difference("fusion", alone)
        log(f"fusion less {alone}, paired: {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] pAUC out of fold")
    log(f"{options.artifacts / name}: the opinion of the {options.inputs} alone of {int(seen.sum()):,} lesions")


def recorded_fusion(artifacts: Path) -> pd.Series:
    """The fusion's out-of-fold logits by isic_id, as the manifest vouches for them; empty where there are none."""
    manifest = load_manifest(artifacts)
    if OOF_FUSION not in manifest["files"]:
        return pd.Series(dtype="float64")
    return pd.read_csv(checked_file(artifacts, manifest, OOF_FUSION), dtype={ID: "str"}).set_index(ID)["network"]


mpl.use("Agg")


def write_history(kept: Path, logs: Path, name: str) -> None:
    """Gathers the folds' histories into ``logs``/``name``-history.csv and draws ``name``-curves.png.

    Args:
        kept: folder with a ``history*.csv`` per fold.
        logs: folder to write into.
        name: of the training.
    """
    parts = [pd.read_csv(path) for path in sorted(kept.glob("history*.csv"))]
    history = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    if history.empty:
        return
    write_csv(logs / f"{name}-history.csv", history)
    with replacing(logs / f"{name}-curves.png") as temporary:
        draw(history, name).savefig(temporary, dpi=120)


def draw(history: pd.DataFrame, name: str) -> Figure:
    """Training loss of every fold by epoch, the learning rate below it, and how fast it went."""
    figure = Figure(figsize=(8, 6), layout="constrained")
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
    bottom.set_ylabel("learning rate at its end")
    bottom.set_xlabel("epoch")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure
