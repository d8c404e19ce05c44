"""What a finished training leaves in the artifact folder: networks, out-of-fold log-odds, its section of the manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import checked_file, load_manifest
from inference.schema import ID, TARGET
from train.combination import CHOSEN, choose, nested_scores
from train.folds import HOLDOUT
from train.fusion_options import chosen
from train.lesions import Lesions
from train.manifest import record_stage
from utils import ScoreTable, bootstrap_scores, format_table, say, write_csv

OOF_FUSION = "oof_fusion.csv"
#: What a network of one input leaves: a section of the manifest, and a file.
ALONE = {"image": ("image_alone", "oof_image.csv"), "tabular": ("opinion_alone", "oof_opinion.csv")}


def record_fusion(
    options: argparse.Namespace, settings: dict, lesions: Lesions, log_odds: np.ndarray, seen: np.ndarray, kept: Path
) -> None:
    """Moves the fold networks into the artifact folder and records them, with the combination that the kernel will use.

    Args:
        options: of ``train.fusion``.
        settings: of ``inference.network.build_network``.
        lesions: all of them.
        log_odds: out of fold, shape (rows,); the tabular ones where no image was seen.
        seen: bool, shape (rows,).
        kept: folder with ``fold0.weights.h5`` and so on.
    """
    trained = lesions.fold != HOLDOUT
    folds = int(lesions.fold.max()) + 1
    names = [f"fusion_fold{number}.weights.h5" for number in range(folds)]
    labels, fold, tabular = lesions.labels[trained], lesions.fold[trained], lesions.tabular[trained]
    fusion, seen = log_odds[trained], seen[trained]
    combined = nested_scores(labels, fold, tabular, fusion, seen)
    how = choose(labels, tabular, fusion, seen, combined)
    table = pd.DataFrame({ID: lesions.isic_ids[trained], TARGET: labels, "fold": fold, "tabular": tabular})
    table = table.assign(log_odds=fusion, image_seen=seen.astype(int), chosen=combined[CHOSEN])
    write_csv(options.artifacts / OOF_FUSION, table)
    results = bootstrap_scores(labels, lesions.patients[trained], {"tabular": tabular} | combined)
    content = {
        "weights": names,
        "settings": settings,
        "training": chosen(options),
        "combination": how,
        "trained_on": {"lesions": int(trained.sum()), "images": int((trained & lesions.has_image).sum())},
        "scores": figures(results),
    }
    for number, name in enumerate(names):
        (kept / f"fold{number}.weights.h5").replace(options.artifacts / name)
    record_stage(options.artifacts, "network", content, [*names, OOF_FUSION])
    gain = results.difference(CHOSEN, "tabular")
    say(format_table(results))
    say(f"the kernel will use: {how['kind']} ({how['why']})")
    say(
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
            "less tabular": [gain.value, gain.low, gain.high],
        }
    return told


def record_alone(
    options: argparse.Namespace, settings: dict, lesions: Lesions, log_odds: np.ndarray, seen: np.ndarray
) -> None:
    """Records one input's own opinion, to compare: out of fold, the image's on the holdout too. No network is kept.

    Where the fusion is trained already on the same folds, it is told beside it, with the paired difference.
    """
    stage, name = ALONE[options.inputs]
    table = pd.DataFrame({ID: lesions.isic_ids, TARGET: lesions.labels, "fold": lesions.fold, "log_odds": log_odds})[seen]
    write_csv(options.artifacts / name, table)
    inside = seen & (lesions.fold != HOLDOUT)
    alone = f"{options.inputs} alone"
    scores = {alone: log_odds[inside]}
    fusion = recorded_fusion(options.artifacts).reindex(lesions.isic_ids[inside]).to_numpy()
    if np.isfinite(fusion).all():
        scores["fusion"] = fusion
    results = bootstrap_scores(lesions.labels[inside], lesions.patients[inside], scores)
    record_stage(options.artifacts, stage, {"settings": settings, "training": chosen(options)}, [name])
    say(format_table(results))
    if "fusion" in scores:
        gain = results.difference("fusion", alone)
        say(f"fusion less {alone}, paired: {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] pAUC out of fold")
    say(f"{options.artifacts / name}: the opinion of the {options.inputs} alone of {int(seen.sum()):,} lesions")


def recorded_fusion(artifacts: Path) -> pd.Series:
    """The fusion's out-of-fold log-odds by isic_id, as the manifest vouches for them; empty where there are none."""
    manifest = load_manifest(artifacts)
    if OOF_FUSION not in manifest["files"]:
        return pd.Series(dtype="float64")
    return pd.read_csv(checked_file(artifacts, manifest, OOF_FUSION), dtype={ID: "str"}).set_index(ID)["log_odds"]
