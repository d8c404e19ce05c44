"""Searches CatBoost's parameters with Optuna; a development tool, which the pipeline itself does without.

    python -m evaluation.studies.tune --data data/isic-2024-challenge --trials 40 --out params.json
    python -m train.tabular --data data/isic-2024-challenge --artifacts artifacts --params params.json

The best of many noisy scores is too high. So trials are compared on splits of the patients that serve for nothing else, and
the best trial is compared with the defaults once more on splits that the search did not use.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from evaluation.studies.compare import MeanPauc, compare_splits, signed, split_folds
from inference.files import write_csv, write_json
from inference.options import Parser, count, existing_folder, output_file, refuse_same_file
from inference.schema import ID, PATIENT, TARGET
from scale.parallel import workers
from scale.progress import Bar
from terminal import run_command
from train.config import TabularConfig, add_tabular_options, read_config
from train.cross_validation import cross_validate
from train.folds import HOLDOUT, read_folds
from train.lesions import Rows, read_rows
from utils import Estimate, InputError, log, log_summary, partial_auc

if TYPE_CHECKING:
    import optuna

#: Split seeds of the search, and those that are used only once its best trial is known.
SEARCH_SPLITS = (100, 101)
CONFIRM_SPLITS = (0, 1, 2)
STUDY = "tabular"
#: What the search varies, by name: the arguments of Optuna's ``suggest_int`` where there is a step, of ``suggest_float``
#: elsewhere. Symmetric trees have no min_data_in_leaf, and with scale_pos_weight the logits would not fit the prevalence.
SPACE: dict[str, dict] = {
    "iterations": {"low": 200, "high": 1000, "step": 50},
    "learning_rate": {"low": 0.01, "high": 0.1, "log": True},
    "depth": {"low": 3, "high": 7, "step": 1},
    "l2_leaf_reg": {"low": 1.0, "high": 50.0, "log": True},
    "subsample": {"low": 0.4, "high": 0.9},
    "rsm": {"low": 0.1, "high": 1.0, "log": True},
    "random_strength": {"low": 0.1, "high": 5.0, "log": True},
}


def load_optuna() -> Any:
    """The Optuna package, silent but for warnings.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError("evaluation.studies.tune needs Optuna; run: pip install -r requirements-dev.txt") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def read_searched(data: Path, artifacts: Path | None) -> Rows:
    """The labelled rows, without the holdout of the artifact folder where one is given."""
    rows = read_rows(data)
    if artifacts is None:
        return rows
    kept = read_folds(artifacts, rows.metadata) != HOLDOUT
    metadata, features = (table[kept].reset_index(drop=True) for table in (rows.metadata, rows.features))
    return Rows(metadata, features, rows.labels[kept], rows.patients[kept])


def default_point(parameters: dict) -> dict[str, float]:
    """Where the default parameters lie in ``SPACE``; a value beyond its bounds is moved to them."""
    limits = {name: min(max(parameters[name], how["low"]), how["high"]) for name, how in SPACE.items()}
    return {name: int(value) if "step" in SPACE[name] else float(value) for name, value in limits.items()}


def out_of_fold(table: Rows, parameters: dict, split: int, folds: int, config: TabularConfig) -> np.ndarray:
    """Out-of-fold logits, shape (rows,), on the patient-grouped split of that seed."""
    fold = split_folds(table.metadata, folds, split)
    config = replace(config, parameters=parameters)
    return cross_validate(table.features, table.labels, fold, config, progress=False).logits


def open_study(storage: Path, settings: dict[str, Any]) -> optuna.Study:
    """The study in the SQLite file ``storage``, made where there is none.

    Args:
        storage: the file; its folder is made.
        settings: all that decides a trial's score besides its parameters. Trials of other settings cannot be compared.

    Raises:
        InputError: the file is no study, cannot be written, or holds trials of other settings.
    """
    optuna = load_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        storage.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=f"sqlite:///{storage}", study_name=STUDY, direction="maximize", load_if_exists=True
        )
        known = study.user_attrs.get("settings")
        if known is None:
            study.set_user_attr("settings", settings)
    except (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{storage} cannot be used as an Optuna storage ({reason}); give another --storage.") from error
    other = [name for name in settings if known is not None and known.get(name) != settings[name]]
    if other:
        raise InputError(
            f"{storage} holds trials of other {' and '.join(other)}, and scores would not compare; give another --storage."
        )
    return study


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that have a score, in the order of their numbers; an interrupted one has none."""
    return study.get_trials(deepcopy=False, states=[load_optuna().trial.TrialState.COMPLETE])


def search(study: optuna.Study, table: Rows, trials: int, folds: int, config: TabularConfig) -> None:
    """Runs trials until the study has ``trials`` finished ones; the first are the defaults.

    The sampler is seeded anew for each trial, by the number of finished ones before it: a search that was interrupted and
    continued draws what an uninterrupted one draws.
    """

    def objective(trial: optuna.Trial) -> float:
        suggested = {
            name: (trial.suggest_int if "step" in how else trial.suggest_float)(name, **how) for name, how in SPACE.items()
        }
        paucs = []
        for split in SEARCH_SPLITS:
            logits = out_of_fold(table, config.parameters | suggested, split, folds, config)
            paucs.append(partial_auc(table.labels, logits))
            trial.set_user_attr(f"pauc_split{split}", paucs[-1])
        return float(np.mean(paucs))

    samplers, done = load_optuna().samplers, len(finished(study))
    bar = Bar(range(done, trials), desc="trials", unit="trial", initial=done, total=max(trials, done))
    for number in bar:
        study.sampler = samplers.TPESampler(seed=(config.seed + number) % 2**32, multivariate=True)
        if number == 0:
            study.enqueue_trial(default_point(config.parameters))
        study.optimize(objective, n_trials=1)
        bar.set_postfix(best=f"{study.best_value:.4f}")


def confirm(table: Rows, sets: dict[str, dict], folds: int, config: TabularConfig) -> dict[str, MeanPauc]:
    """Scores parameter sets on ``CONFIRM_SPLITS``, all on the same resamples of patients.

    Args:
        table: the rows.
        sets: name -> CatBoost's parameters.
        folds: folds of each split.
        config: seeds per fold, sampling and seed; its parameters are not used.

    Returns:
        Name -> pooled out-of-fold pAUC of each split, and their mean.
    """
    logits: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for name, split in Bar(list(itertools.product(sets, CONFIRM_SPLITS)), desc="new splits", unit="split"):
        logits[name].append(out_of_fold(table, sets[name], split, folds, config))
    return compare_splits(table.labels, table.patients, logits)[1]


def verdict(difference: Estimate) -> str:
    """What the difference to the defaults amounts to, in words."""
    if difference.low > 0:
        return "better than the defaults"
    if difference.high < 0:
        return "WORSE than the defaults"
    return "NOT distinguishable from the defaults (the interval holds 0)"


def trial_table(study: optuna.Study) -> pd.DataFrame:
    """One row per finished trial: its number, mean pAUC, pAUC of each split, parameters."""
    rows = [{"trial": t.number, "pauc": t.value} | t.user_attrs | t.params for t in finished(study)]
    return pd.DataFrame(rows)


def settings_of(table: Rows, folds: int, config: TabularConfig) -> dict[str, Any]:
    """All that decides a trial's score besides what the search varies, small enough to be kept with the study."""
    rows = pd.concat([table.metadata[[ID, PATIENT, TARGET]], table.features.add_prefix("feature ")], axis=1)
    hashes = pd.util.hash_pandas_object(rows, index=False)
    return {
        "rows": hashlib.sha256(hashes.to_numpy().tobytes()).hexdigest(),
        "features": hashlib.sha256("\n".join(table.features).encode()).hexdigest(),
        "--folds": folds,
        "--seed": config.seed,
        "--negatives-per-positive": config.negatives_per_positive,
        "defaults": config.parameters,
    }


def main(arguments: list[str] | None = None) -> int:
    """Searches, confirms, and writes the parameter file and the table of trials."""
    parser = Parser(
        description="Optuna search of CatBoost's parameters -> a file for train.tabular --params. "
        "Trials have one model per fold, the confirmation --seeds. The same command continues an interrupted search."
    )
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument(
        "--artifacts",
        type=existing_folder,
        metavar="DIR",
        help="leave out the holdout rows of this folder's folds.csv (default: none)",
    )
    parser.add_argument(
        "--trials", type=count(), required=True, metavar="N", help="finished trials in all, with the defaults"
    )
    parser.add_argument(
        "--out",
        type=output_file,
        required=True,
        metavar="FILE",
        help="JSON parameter file to write, with NAME-trials.csv beside",
    )
    parser.add_argument(
        "--storage", type=output_file, metavar="FILE", help="SQLite file of the trials (default: --out as .sqlite)"
    )
    parser.add_argument("--folds", type=count(2), default=5, help="folds of each split (default: %(default)s)")
    add_tabular_options(parser)
    options = parser.parse_args(arguments)
    config = read_config(options.params, options.seeds, options.negatives_per_positive, options.seed)
    storage = options.storage or options.out.with_suffix(".sqlite")
    trials = options.out.with_name(f"{options.out.stem}-trials.csv")
    refuse_same_file({"--out": options.out, "--storage": storage, "the table of trials": trials})
    load_optuna()
    table = read_searched(options.data, options.artifacts)
    study = open_study(storage, settings_of(table, options.folds, config))
    with workers(options.jobs, options.cluster):
        search(study, table, options.trials, options.folds, replace(config, seeds=1))
    best = config.parameters | study.best_params
    write_csv(trials, trial_table(study))
    write_json(options.out, best)
    base = finished(study)[0]
    log(
        f"search, splits {SEARCH_SPLITS}: best trial {study.best_trial.number} pAUC {study.best_value:.4f}, "
        f"defaults {base.value:.4f}; this difference, of the best of {len(finished(study))}, is too high"
    )
    if study.best_trial.number == base.number:
        log_summary(
            f"{options.out}: the defaults; none of {len(finished(study)) - 1} other trials was better (all in {trials})"
        )
        return 0
    with workers(options.jobs, options.cluster):
        means = confirm(table, {"defaults": config.parameters, "best": best}, options.folds, config)
    for name, found in means.items():
        by_split = ", ".join(f"{value:.4f}" for value in found.values)
        log(f"new splits {CONFIRM_SPLITS}, {name}: pAUC {by_split}, mean {found.estimate.value:.4f}")
    difference = means["best"].minus(means["defaults"])
    log_summary(
        f"{options.out}: the best of {len(finished(study))} trials is {verdict(difference)} on new splits: "
        f"{signed(difference)} pAUC (all trials in {trials})"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
