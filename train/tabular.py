"""CatBoost per fold and seed -> fold models, out-of-fold log-odds, manifest.

    python -m train.tabular --data data/isic-2024-challenge --artifacts artifacts

Each lesion's out-of-fold log-odds come from models that saw no lesion of its patient; they are what the fusion network is
trained on. The number of trees is fixed: nothing is chosen on the rows that are reported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from inference.features import build_features
from inference.files import InputError, replacing
from inference.schema import ID, TARGET, TRAIN_ONLY, read_metadata
from train.cross_validation import FoldModel, Recipe, categories_of, cross_validate
from train.folds import HOLDOUT, read_folds
from train.manifest import record_stage
from utils import add_data_options, add_seed_option, bootstrap_scores, fold_mean, format_table, run_command, say, write_csv

OOF = "oof_tabular.csv"
#: Models per fold, whose log-odds are averaged.
SEEDS = 3
#: Benign lesions that a model sees for each malignant one.
NEGATIVES_PER_POSITIVE = 100
#: Found by `train.tune` on split seeds 100 and 101, confirmed on 0, 1 and 2 (docs/tabular.md): deep trees that are kept
#: apart from each other, by few columns a level and much noise in the choice of splits.
PARAMETERS = {
    "iterations": 1000,
    "learning_rate": 0.035,
    "depth": 7,
    "l2_leaf_reg": 16.0,
    "bootstrap_type": "Bernoulli",
    "subsample": 0.75,
    "rsm": 0.16,
    "random_strength": 4.5,
}


def refuse_train_only(names: list[str]) -> None:
    """Refuses features made of columns that exist only in train, also under a longer name ("lesion_id_count").

    Raises:
        InputError: naming the first such feature.
    """
    for name in names:
        for column in sorted(TRAIN_ONLY):
            if name == column or name.startswith(f"{column}_"):
                raise InputError(
                    f"feature {name!r} comes from {column!r}, which only train has and which tells the diagnosis."
                )


def read_parameters(path: Path | None) -> dict:
    """``PARAMETERS``, with those of a JSON file in their place.

    Raises:
        InputError: the file is missing or holds no JSON object.
    """
    if path is None:
        return PARAMETERS
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--params {path} cannot be read ({error}); give a JSON file of CatBoost parameters.") from error
    if not isinstance(given, dict):
        raise InputError(f"--params {path} holds a {type(given).__name__}; give an object such as {{'depth': 6}}.")
    return PARAMETERS | given


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
    add_seed_option(parser)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="models per fold (default: %(default)s)")
    parser.add_argument("--params", type=Path, metavar="FILE", help="JSON file of CatBoost parameters over the defaults")
    parser.add_argument(
        "--negatives-per-positive",
        type=float,
        default=NEGATIVES_PER_POSITIVE,
        help="benign lesions per malignant one (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1 or not options.negatives_per_positive > 0:
        raise InputError("--seeds and --negatives-per-positive must be above zero.")
    recipe = Recipe(read_parameters(options.params), options.seeds, options.negatives_per_positive, options.seed)
    metadata = read_metadata(options.data / "train-metadata.csv", labelled=True)
    fold = read_folds(options.artifacts, metadata)
    labels = metadata[TARGET].to_numpy()
    features = build_features(metadata.drop(columns=list(TRAIN_ONLY), errors="ignore"))
    refuse_train_only(list(features))
    say(f"{len(features):,} lesions, {features.shape[1]} features, {len(categories_of(features))} of them categories")
    models, log_odds = cross_validate(features, labels, fold, recipe)
    trained = fold != HOLDOUT
    if not trained.all():
        check_scale(log_odds[trained], log_odds[~trained])
    entries = save_models(models, options.artifacts)
    rows = metadata.loc[trained]
    table = bootstrap_scores(labels[trained], rows["patient_id"].to_numpy(), {"tabular": log_odds[trained]})
    mean, deviation = fold_mean(labels[trained], log_odds[trained], fold[trained])
    write_csv(options.artifacts / OOF, rows[[ID, TARGET]].assign(fold=fold[trained], log_odds=log_odds[trained]))
    pauc = table.scores["tabular"].pauc
    content = {
        "models": entries,
        "features": list(features),
        "categories": categories_of(features),
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
