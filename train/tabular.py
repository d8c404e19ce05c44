"""CatBoost per fold and seed -> fold models, out-of-fold logits, manifest.

    python -m train.tabular --data data/isic-2024-challenge --artifacts artifacts

A lesion's out-of-fold logit comes from models trained without any lesion of its patient; the fusion network is trained on
these logits. The number of trees is fixed: nothing is chosen on the rows that are reported.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inference.artifacts import OOF_TABULAR, tabular_model_file
from inference.files import replacing, write_csv
from inference.options import Parser, add_data_options
from inference.schema import ID, TARGET
from scale.parallel import workers
from train.config import add_tabular_options, read_config
from train.cross_validation import FoldModel, categories_of, cross_validate
from train.folds import HOLDOUT, read_folds
from train.lesions import read_rows
from train.manifest import record_stage
from utils import bootstrap_scores, fold_mean, format_table, log, run_command


def train_tabular(arguments: list[str] | None = None) -> int:
    """Trains folds x seeds models; writes tabular_*.cbm, oof_tabular.csv and the manifest's section "tabular"."""
    parser = Parser(description="CatBoost per fold and seed -> tabular_*.cbm, oof_tabular.csv, manifest.json")
    add_data_options(parser)
    add_tabular_options(parser)
    options = parser.parse_args(arguments)
    config = read_config(options.params, options.seeds, options.negatives_per_positive, options.seed)

    rows = read_rows(options.data)
    fold = read_folds(options.artifacts, rows.metadata)
    categories = categories_of(rows.features)
    log(f"{len(rows.labels):,} lesions, {rows.features.shape[1]} features, {len(categories)} of them categories")
    with workers(options.jobs, options.cluster):
        result = cross_validate(rows.features, rows.labels, fold, config)

    train = fold != HOLDOUT  # here result.logits are out of fold, elsewhere the mean over all models
    labels, out_of_fold = rows.labels[train], result.logits[train]
    if not train.all():
        compare_scales(out_of_fold, result.logits[~train])
    models = save_models(result.models, options.artifacts)
    oof = rows.metadata.loc[train, [ID, TARGET]].assign(fold=fold[train], tabular=out_of_fold)
    write_csv(options.artifacts / OOF_TABULAR, oof)

    table = bootstrap_scores(labels, rows.patients[train], {"tabular": out_of_fold})
    mean, deviation = fold_mean(labels, out_of_fold, fold[train])
    pauc = table.scores["tabular"].pauc
    section = {
        "models": models,
        "features": list(rows.features),
        "categories": categories,
        "known": {name: sorted(rows.features.loc[train, name].unique()) for name in categories},
        "parameters": config.parameters,
        "negatives_per_positive": config.negatives_per_positive,
        "out_of_fold": describe_logits(out_of_fold),
        "trained_on": {"lesions": int(train.sum()), "malignant": int(labels.sum())},
        "scores": {"pauc": pauc.value, "interval": [pauc.low, pauc.high], "fold_mean": mean, "fold_sd": deviation},
    }
    record_stage(options.artifacts, "tabular", section, [model["file"] for model in models] + [OOF_TABULAR])
    log(format_table(table))
    log(
        f"{len(models)} models in {options.artifacts}: out-of-fold pAUC {pauc.value:.4f} "
        f"[{pauc.low:.4f}, {pauc.high:.4f}] pooled, fold mean {mean:.4f} sd {deviation:.4f}"
    )
    return 0


def compare_scales(out_of_fold: np.ndarray, holdout: np.ndarray) -> None:
    """Logs whether the holdout's fold-mean logits have the location and spread of the out-of-fold ones.

    The network is trained on out-of-fold logits and gets fold means at test; a shift between them would bias its correction.
    """
    first, second = describe_logits(out_of_fold), describe_logits(holdout)
    shift, spread = (second["mean"] - first["mean"]) / first["std"], second["std"] / first["std"]
    verdict = "same scale" if abs(shift) < 0.25 and 0.75 < spread < 1.33 else "WARNING: not the same scale"
    log(f"holdout fold-mean against out-of-fold logits: shifted {shift:+.2f} sd, spread x{spread:.2f}: {verdict}")


def save_models(models: list[FoldModel], artifacts: Path) -> list[dict]:
    """Writes tabular_*.cbm and returns their entries for the manifest."""
    entries = []
    for each in models:
        entries.append({"file": tabular_model_file(each.fold, each.seed), "prior_correction": each.prior_correction})
        with replacing(artifacts / entries[-1]["file"]) as temporary:
            each.model.save_model(str(temporary))
    return entries


def describe_logits(logits: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and median."""
    return {"mean": float(logits.mean()), "std": float(logits.std()), "median": float(np.median(logits))}


if __name__ == "__main__":
    run_command(train_tabular)
