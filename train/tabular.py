"""CatBoost per fold and seed -> fold models, out-of-fold logits, manifest.

    python -m train.tabular --data data/isic-2024-challenge --artifacts artifacts

A lesion's out-of-fold logit comes from models trained without any lesion of its patient; the fusion network is trained on
these logits. The number of trees is fixed: nothing is chosen on the rows that are reported. Models without signal are set to
the logit of the prevalence, for every lesion, so that a network that starts at their logit starts at none of their noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from catboost import CatBoostError

from inference.artifacts import FOLDS, OOF_TABULAR, tabular_model_file
from inference.files import replacing, write_csv
from inference.options import Parser, add_data_options
from inference.run_log import versions
from inference.schema import ID, TARGET
from scale.parallel import workers
from terminal import run_command
from train.config import TabularConfig, add_tabular_options, read_config
from train.cross_validation import CrossValidation, FoldModel, categories_of, cross_validate
from train.folds import HOLDOUT, read_folds
from train.leaks import ColumnChoice, check_leaks
from train.lesions import Rows, read_rows
from train.manifest import Stage, is_current, read_manifest, stage
from utils import InputError, bootstrap_scores, fold_mean, format_table, log, log_summary

#: The AUC of guessing. Where the patient bootstrap's 95 % interval of the out-of-fold AUC reaches down to it, the models
#: have shown no signal.
NO_SIGNAL = 0.5


@dataclass(frozen=True)
class TabularOptions:
    """The command's options, all but ``config`` without an effect on the models."""

    data: Path
    artifacts: Path
    config: TabularConfig
    replace: bool
    jobs: int
    cluster: str | None

    @property
    def reads(self) -> list[Path]:
        """The files that may not change while the models are trained."""
        return [self.data / "train-metadata.csv", self.artifacts / FOLDS]


def parse_tabular_options(arguments: list[str] | None) -> TabularOptions:
    """The options of a command line.

    Raises:
        InputError: an option cannot be used.
    """
    parser = Parser(description="CatBoost per fold and seed -> tabular_*.cbm, oof_tabular.csv, manifest.json")
    add_data_options(parser)
    add_tabular_options(parser)
    parser.add_argument(
        "--replace", action="store_true", help="where the models are out of date, drop the networks made from them too"
    )
    given = parser.parse_args(arguments)
    config = read_config(given.params, given.seeds, given.negatives_per_positive, given.seed)
    return TabularOptions(given.data, given.artifacts, config, given.replace, given.jobs, given.cluster)


def train_tabular(arguments: list[str] | None = None) -> int:
    """Trains folds x seeds models; writes tabular_*.cbm, oof_tabular.csv and the manifest's section "tabular"."""
    options = parse_tabular_options(arguments)
    config = options.config
    with stage(options.artifacts, "tabular", options.reads, options.replace) as current:
        choice = ColumnChoice.recorded(read_manifest(options.artifacts))
        if current.is_done(what_decides_models(config, choice)):
            return 0
        rows = read_rows(options.data, choice)
        fold = read_folds(options.artifacts, rows.metadata)
        check_leaks(rows.metadata, choice)
        categories = categories_of(rows.features)
        log(f"{len(rows.labels):,} lesions, {rows.features.shape[1]} features, {len(categories)} of them categories")
        with workers(options.jobs, options.cluster):
            result = cross_validate(rows.features, rows.labels, fold, config)
        record_tabular(current, rows, fold, result, config)
    return 0


def models_are_current(options: TabularOptions) -> bool:
    """Whether the command would find the models there, and do nothing."""
    decisive = what_decides_models(options.config, ColumnChoice.recorded(read_manifest(options.artifacts)))
    return is_current(options.artifacts, "tabular", decisive, options.reads)


def what_decides_models(config: TabularConfig, choice: ColumnChoice) -> dict[str, Any]:
    """What decides the models besides inputs and code, for ``Stage.is_done``."""
    return {"config": asdict(config), "features": asdict(choice), "versions": versions()}


def record_tabular(stage: Stage, rows: Rows, fold: np.ndarray, result: CrossValidation, config: TabularConfig) -> None:
    """Writes tabular_*.cbm, oof_tabular.csv and the manifest's section, and logs the scores."""
    train = fold != HOLDOUT  # here result.logits are out of fold, elsewhere the mean over all models
    labels, out_of_fold = rows.labels[train], result.logits[train]
    if not train.all():
        compare_scales(out_of_fold, result.logits[~train])
    table = bootstrap_scores(labels, rows.patients[train], {"tabular": out_of_fold})
    mean, deviation = fold_mean(labels, out_of_fold, fold[train])
    pauc, auc = table.scores["tabular"].pauc, table.scores["tabular"].auc
    prior = None if auc.low > NO_SIGNAL else prior_logit(labels)
    trained = result.models
    if prior is not None:
        trained, out_of_fold = constant_models(trained, prior), np.full(len(labels), prior)
    categories = categories_of(rows.features)
    models = save_models(trained, stage.folder)
    oof = rows.metadata.loc[train, [ID, TARGET]].assign(fold=fold[train], tabular=out_of_fold)
    write_csv(stage.folder / OOF_TABULAR, oof)
    section = {
        "models": models,
        "features": list(rows.features),
        "categories": categories,
        "known": {name: sorted(rows.features.loc[train, name].unique()) for name in categories},
        "parameters": config.parameters,
        "negatives_per_positive": config.negatives_per_positive,
        "out_of_fold": describe_logits(out_of_fold),
        "trained_on": {"lesions": int(train.sum()), "malignant": int(labels.sum())},
        "scores": {
            "pauc": pauc.value,
            "interval": [pauc.low, pauc.high],
            "fold_mean": mean,
            "fold_sd": deviation,
            "auc": auc.value,
            "auc_interval": [auc.low, auc.high],
        },
        "prior": prior,
    }
    stage.record(section)
    if prior is not None:
        log(
            f"WARNING: no signal, out-of-fold AUC {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}] is not above {NO_SIGNAL}; "
            f"the tabular logit of every lesion is that of the prevalence, {prior:.4f}"
        )
    log_summary(
        f"{len(models)} models in {stage.artifacts}: out-of-fold pAUC {pauc.value:.4f} "
        f"[{pauc.low:.4f}, {pauc.high:.4f}] pooled, fold mean {mean:.4f} sd {deviation:.4f}",
        format_table(table),
    )


def prior_logit(labels: np.ndarray) -> float:
    """The logit of the share of malignant lesions among ``labels``, 0/1, with as many digits as oof_tabular.csv holds."""
    rate = labels.mean()
    return round(float(np.log(rate / (1 - rate))), 6)


def constant_models(models: list[FoldModel], prior: float) -> list[FoldModel]:
    """The models with ``prior`` as the logit of whatever lesion; they are changed in place. Their readers need not know."""
    for each in models:
        each.model.set_scale_and_bias(0.0, prior)
    return [replace(each, prior_correction=0.0) for each in models]


def compare_scales(out_of_fold: np.ndarray, holdout: np.ndarray) -> None:
    """Logs whether the holdout's fold-mean logits have the location and spread of the out-of-fold ones.

    The network is trained on out-of-fold logits and gets fold means at test; a shift between them would bias its correction.
    """
    first, second = describe_logits(out_of_fold), describe_logits(holdout)
    shift, spread = (second["mean"] - first["mean"]) / first["std"], second["std"] / first["std"]
    verdict = "same scale" if abs(shift) < 0.25 and 0.75 < spread < 1.33 else "WARNING: not the same scale"
    log(f"holdout fold-mean against out-of-fold logits: shifted {shift:+.2f} sd, spread x{spread:.2f}: {verdict}")


def save_models(
    models: list[FoldModel], folder: Path, file_of: Callable[[int, int], str] = tabular_model_file
) -> list[dict[str, Any]]:
    """Writes a file for each model, named by fold and seed, and returns their entries for the manifest."""
    entries: list[dict[str, Any]] = []
    for each in models:
        entries.append({"file": file_of(each.fold, each.seed), "prior_correction": each.prior_correction})
        path = folder / entries[-1]["file"]
        with replacing(path) as temporary:
            try:
                each.model.save_model(str(temporary))
            except CatBoostError as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"{path} cannot be written ({reason}); choose another folder or free space.") from error
    return entries


def describe_logits(logits: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and median."""
    return {"mean": float(logits.mean()), "std": float(logits.std()), "median": float(np.median(logits))}


if __name__ == "__main__":
    run_command(train_tabular)
