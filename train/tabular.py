"""CatBoost per fold and seed -> fold models, out-of-fold logits, manifest.

    python -m train.tabular --data data/isic-2024-challenge --artifacts artifacts

Each lesion's out-of-fold logits come from models that saw no lesion of its patient; they are what the fusion network is
trained on. The number of trees is fixed: nothing is chosen on the rows that are reported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from inference.artifacts import OOF_TABULAR
from inference.files import replacing, write_csv
from inference.schema import ID, TARGET
from scale.parallel import workers
from train.config import add_recipe_options, recipe_of
from train.cross_validation import FoldModel, categories_of, cross_validate
from train.folds import HOLDOUT, read_folds
from train.lesions import read_rows
from train.manifest import record_stage
from utils import add_data_options, bootstrap_scores, fold_mean, format_table, log, run_command


def summary(logits: np.ndarray) -> dict[str, float]:
    """Where logits lie: mean, standard deviation, median."""
    return {"mean": float(logits.mean()), "std": float(logits.std()), "median": float(np.median(logits))}


def check_scale(out_of_fold: np.ndarray, fold_mean_scores: np.ndarray) -> None:
    """Says when the holdout's fold-mean logits do not lie where the out-of-fold ones do.

    The network learns from out-of-fold logits and is given fold means at test: a shift between them would be taken for
    an opinion.
    """
    trained, given = summary(out_of_fold), summary(fold_mean_scores)
    shift, spread = (given["mean"] - trained["mean"]) / trained["std"], given["std"] / trained["std"]
    verdict = "same scale" if abs(shift) < 0.25 and 0.75 < spread < 1.33 else "WARNING: not the same scale"
    log(f"holdout fold-mean against out-of-fold logits: shifted {shift:+.2f} sd, spread x{spread:.2f}: {verdict}")


def save_models(models: list[FoldModel], artifacts: Path) -> list[dict]:
    """Writes tabular_*.cbm, all of them after all are trained; returns what the manifest says of each."""
    entries = []
    for each in models:
        entries.append({"file": f"tabular_fold{each.fold}_seed{each.seed}.cbm", "prior_correction": each.prior_correction})
        with replacing(artifacts / entries[-1]["file"]) as temporary:
            each.model.save_model(str(temporary))
    return entries


def train_tabular(arguments: list[str] | None = None) -> int:
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
    log(f"{len(features):,} lesions, {features.shape[1]} features, {len(categories_of(features))} of them categories")
    with workers(options.jobs, options.cluster):
        models, logits = cross_validate(features, labels, fold, recipe)
    trained = fold != HOLDOUT
    if not trained.all():
        check_scale(logits[trained], logits[~trained])
    entries = save_models(models, options.artifacts)
    table = bootstrap_scores(labels[trained], rows.patients[trained], {"tabular": logits[trained]})
    mean, deviation = fold_mean(labels[trained], logits[trained], fold[trained])
    scored = rows.metadata.loc[trained, [ID, TARGET]]
    write_csv(options.artifacts / OOF_TABULAR, scored.assign(fold=fold[trained], tabular=logits[trained]))
    pauc = table.scores["tabular"].pauc
    content = {
        "models": entries,
        "features": list(features),
        "categories": categories_of(features),
        "known": {name: sorted(features.loc[trained, name].unique()) for name in categories_of(features)},
        "parameters": recipe.parameters,
        "negatives_per_positive": recipe.negatives_per_positive,
        "out_of_fold": summary(logits[trained]),
        "trained_on": {"lesions": int(trained.sum()), "malignant": int(labels[trained].sum())},
        "scores": {"pauc": pauc.value, "interval": [pauc.low, pauc.high], "fold_mean": mean, "fold_sd": deviation},
    }
    record_stage(options.artifacts, "tabular", content, [entry["file"] for entry in entries] + [OOF_TABULAR])
    log(format_table(table))
    log(
        f"{len(models)} models in {options.artifacts}: out-of-fold pAUC {pauc.value:.4f} "
        f"[{pauc.low:.4f}, {pauc.high:.4f}] pooled, fold mean {mean:.4f} sd {deviation:.4f}"
    )
    return 0


if __name__ == "__main__":
    run_command(train_tabular)
