"""CatBoost per fold and seed -> fold models, out-of-fold log-odds, manifest.

    python -m train.tabular --data data/isic-2024-challenge --artifacts artifacts

Each lesion's out-of-fold log-odds come from models that saw no lesion of its patient; they are what the fusion network is
trained on. The number of trees is fixed: nothing is chosen on the rows that are reported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from inference.files import replacing
from inference.schema import ID, TARGET
from inference.tasks import workers
from train.cross_validation import FoldModel, categories_of, cross_validate
from train.folds import HOLDOUT, read_folds
from train.manifest import record_stage
from train.recipe import add_recipe_options, recipe_of
from train.rows import read_rows
from utils import add_data_options, bootstrap_scores, fold_mean, format_table, run_command, say, write_csv

OOF = "oof_tabular.csv"


def summary(log_odds: np.ndarray) -> dict[str, float]:
    """Where log-odds lie: mean, standard deviation, median."""
    return {"mean": float(log_odds.mean()), "std": float(log_odds.std()), "median": float(np.median(log_odds))}


def check_scale(out_of_fold: np.ndarray, fold_mean_scores: np.ndarray) -> None:
    """Says when the holdout's fold-mean log-odds do not lie where the out-of-fold ones do.

    The network learns from out-of-fold log-odds and is given fold means at test: a shift between them would be taken for
    an opinion.
    """
    trained, given = summary(out_of_fold), summary(fold_mean_scores)
    shift, spread = (given["mean"] - trained["mean"]) / trained["std"], given["std"] / trained["std"]
    verdict = "same scale" if abs(shift) < 0.25 and 0.75 < spread < 1.33 else "WARNING: not the same scale"
    say(f"holdout fold-mean against out-of-fold log-odds: shifted {shift:+.2f} sd, spread x{spread:.2f}: {verdict}")


def save_models(models: list[FoldModel], artifacts: Path) -> list[dict]:
    """Writes tabular_*.cbm, all of them after all are trained; returns what the manifest says of each."""
    entries = []
    for each in models:
        entries.append({"file": f"tabular_fold{each.fold}_seed{each.seed}.cbm", "log_odds_shift": each.log_odds_shift})
        with replacing(artifacts / entries[-1]["file"]) as temporary:
            each.model.save_model(str(temporary))
    return entries


def main(arguments: list[str] | None = None) -> int:
    """Trains folds x seeds models; writes tabular_*.cbm, oof_tabular.csv and the manifest's tabular section."""
    parser = argparse.ArgumentParser(
        description="CatBoost per fold and seed -> tabular_*.cbm, oof_tabular.csv, manifest.json"
    )
    add_data_options(parser)
    add_recipe_options(parser)
    options = parser.parse_args(arguments)
    recipe = recipe_of(options)
    rows = read_rows(options.data)
    features, labels = rows.features, rows.labels
    fold = read_folds(options.artifacts, rows.metadata)
    say(f"{len(features):,} lesions, {features.shape[1]} features, {len(categories_of(features))} of them categories")
    with workers(options):
        models, log_odds = cross_validate(features, labels, fold, recipe)
    trained = fold != HOLDOUT
    if not trained.all():
        check_scale(log_odds[trained], log_odds[~trained])
    entries = save_models(models, options.artifacts)
    table = bootstrap_scores(labels[trained], rows.patients[trained], {"tabular": log_odds[trained]})
    mean, deviation = fold_mean(labels[trained], log_odds[trained], fold[trained])
    scored = rows.metadata.loc[trained, [ID, TARGET]]
    write_csv(options.artifacts / OOF, scored.assign(fold=fold[trained], log_odds=log_odds[trained]))
    pauc = table.scores["tabular"].pauc
    content = {
        "models": entries,
        "features": list(features),
        "categories": categories_of(features),
        "known": {name: sorted(features.loc[trained, name].unique()) for name in categories_of(features)},
        "parameters": recipe.parameters,
        "negatives_per_positive": recipe.negatives_per_positive,
        "out_of_fold": summary(log_odds[trained]),
        "trained_on": {"lesions": int(trained.sum()), "malignant": int(labels[trained].sum())},
        "scores": {"pauc": pauc.value, "interval": [pauc.low, pauc.high], "fold_mean": mean, "fold_sd": deviation},
    }
    record_stage(options.artifacts, "tabular", content, [entry["file"] for entry in entries] + [OOF])
    say(format_table(table))
    say(
        f"{len(models)} models in {options.artifacts}: out-of-fold pAUC {pauc.value:.4f} "
        f"[{pauc.low:.4f}, {pauc.high:.4f}] pooled, fold mean {mean:.4f} sd {deviation:.4f}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
