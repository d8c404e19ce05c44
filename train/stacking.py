"""CatBoost on the logits of all stages in the context of the patient -> fold models, final combination, manifest.

    python -m train.stacking --data data/isic-2024-challenge --artifacts artifacts

The last stage. Its features are the out-of-fold logits of CatBoost and of every network, each by itself and relative to the
patient's other lesions (``inference.features``). A lesion's logits come from models and networks that were trained without
its patient. Which combination of the stages the kernel computes is chosen by nested cross-validation, or by ``--combine``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.artifacts import (
    OOF_FUSION,
    OOF_STACKING,
    Manifest,
    checked_file,
    load_manifest,
    network_column,
    networks_of,
    stacking_model_file,
)
from inference.features import context_logits, logit_features, patient_codes
from inference.files import write_csv
from inference.options import Number, Parser, add_data_options
from inference.run_log import versions
from inference.schema import ID, PATIENT, TARGET, read_scores
from inference.scoring import FINAL, IN_CONTEXT, NETWORK, STACKING, TABULAR
from scale.parallel import workers
from terminal import run_command
from train.combination import OF_ALL, choose_combination, difference_line, scores_section
from train.config import STACKING_PARAMETERS, TabularConfig, add_tabular_options, read_config
from train.cross_validation import categories_of, cross_validate
from train.folds import read_folds
from train.leaks import ColumnChoice
from train.lesions import Rows, read_rows
from train.manifest import Stage, is_current, read_manifest, stage
from train.tabular import save_models
from utils import InputError, bootstrap_scores, format_table, log, log_summary


@dataclass(frozen=True)
class StackingOptions:
    """The command's options.

    Args:
        data: competition folder.
        artifacts: artifact folder.
        config: of the models.
        columns: whether they see the features of the tabular stage, too.
        noise: of the networks' logits in training, in their standard deviations.
        combine: the combination for the kernel; None for the best out of fold.
        replace: as for the stages before; nothing is made from this one.
        jobs: processes.
        cluster: address of a Dask scheduler, or None.
    """

    data: Path
    artifacts: Path
    config: TabularConfig
    columns: bool
    noise: float
    combine: str | None
    replace: bool
    jobs: int
    cluster: str | None

    @property
    def reads(self) -> list[Path]:
        """The files that may not change while the models are trained."""
        return [self.data / "train-metadata.csv", self.artifacts / OOF_FUSION]


def parse_stacking_options(arguments: list[str] | None) -> StackingOptions:
    """The options of a command line.

    Raises:
        InputError: an option cannot be used.
    """
    parser = Parser(description="CatBoost on all stages' logits -> stacking_*.cbm, oof_stacking.csv, manifest.json")
    add_data_options(parser)
    add_tabular_options(parser)
    parser.add_argument("--columns", action="store_true", help="with the features of the tabular stage, too")
    parser.add_argument(
        "--noise",
        type=Number(0, 10),
        default=0.0,
        help="of the networks' logits in training, in their standard deviations (default: %(default)s)",
    )
    parser.add_argument("--combine", choices=OF_ALL, help="the combination for the kernel (default: the best out of fold)")
    parser.add_argument("--replace", action="store_true", help="accepted as by the stages before")
    given = vars(parser.parse_args(arguments))
    params, seeds, negatives, seed = (given.pop(name) for name in ("params", "seeds", "negatives_per_positive", "seed"))
    return StackingOptions(config=read_config(params, seeds, negatives, seed, STACKING_PARAMETERS), **given)


def train_stacking(arguments: list[str] | None = None) -> int:
    """Trains folds x seeds models; writes stacking_*.cbm, oof_stacking.csv and the manifest's section "stacking"."""
    options = parse_stacking_options(arguments)
    with stage(options.artifacts, "stacking", options.reads, options.replace) as current:
        manifest = read_manifest(options.artifacts)
        if not networks_of(manifest):
            raise InputError(f"{options.artifacts} holds no network; run train.fusion first.")
        decisive = what_decides_last_stage(options, manifest)
        if current.is_done(decisive):
            return 0
        rows = read_rows(options.data, ColumnChoice.recorded(manifest))
        with workers(options.jobs, options.cluster):
            record_stacking(current, rows, decisive["settings"], options.config)
    return 0


def stack_is_current(arguments: list[str] | None) -> bool:
    """Whether the command would find its models there, and do nothing."""
    options = parse_stacking_options(arguments)
    decisive = what_decides_last_stage(options, read_manifest(options.artifacts))
    return is_current(options.artifacts, "stacking", decisive, options.reads)


def what_decides_last_stage(options: StackingOptions, manifest: Manifest) -> dict[str, Any]:
    """What decides the models besides inputs and code, for ``Stage.is_done``; "settings" go into the manifest."""
    settings = {name: getattr(options, name) for name in ("columns", "noise", "combine")}
    settings["networks"] = list(networks_of(manifest))
    choice = ColumnChoice.recorded(manifest)
    settings["patients"] = choice.sees_patients
    return {
        "settings": settings,
        "config": asdict(options.config),
        "features": asdict(choice),
        "versions": versions(),
    }


def record_stacking(stage: Stage, rows: Rows, settings: dict[str, Any], config: TabularConfig) -> None:
    """Trains the models, writes them with their logits and the manifest's section, and logs the scores."""
    networks = settings["networks"]
    table, scored = read_logits(stage.artifacts, rows, networks)
    columns = rows.features.loc[table.index] if settings["columns"] else None
    noisy = with_noise(table, networks, settings["noise"], config.seed)
    features, fitted = (stacking_features(each, networks, columns, settings["patients"]) for each in (table, noisy))
    y_true, fold = table[TARGET].to_numpy(), table["fold"].to_numpy()
    if not all(0 < y_true[scored & (fold != each)].sum() < (scored & (fold != each)).sum() for each in np.unique(fold)):
        raise InputError("outside a fold, the lesions with an image score are of one class; make other folds.")
    log(f"{int(scored.sum()):,} lesions with all scores, {features.shape[1]} features of {', '.join([TABULAR, *networks])}")
    result = cross_validate(features[scored], y_true[scored], fold[scored], config, fitted=fitted[scored])
    codes = patient_codes(len(table), table[PATIENT] if settings["patients"] else None)
    network = table[NETWORK].where(scored).to_numpy()
    table[IN_CONTEXT] = context_logits(network, table[TABULAR].to_numpy(), codes)
    table.loc[scored, STACKING] = result.logits
    table.loc[~scored, [IN_CONTEXT, STACKING]] = table[TABULAR]
    combination = choose_combination(table, OF_ALL, settings["combine"])
    out = table[[ID, TARGET, "fold", TABULAR, NETWORK, IN_CONTEXT, STACKING, "image_scored"]]
    write_csv(stage.folder / OOF_STACKING, out.assign(final=combination.scores[FINAL]))
    scores = {TABULAR: table[TABULAR]} | combination.scores
    results = bootstrap_scores(y_true, table[PATIENT], scores)
    section = settings | {
        "models": save_models(result.models, stage.folder, stacking_model_file),
        "features": list(features),
        "categories": categories_of(features),
        "parameters": config.parameters,
        "negatives_per_positive": config.negatives_per_positive,
        "combination": combination.settings,
        "trained_on": {"lesions": int(scored.sum()), "malignant": int(y_true[scored].sum())},
        "scores": scores_section(results),
    }
    stage.record(section)
    log(f"combination for the kernel: {combination.settings['kind']} ({combination.settings['reason']})")
    line = f"{len(section['models'])} models in {stage.artifacts}: {difference_line(results, FINAL, TABULAR)}"
    log_summary(line, format_table(results))


def read_logits(artifacts: Path, rows: Rows, networks: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """The lesions outside the holdout with the out-of-fold logits of all stages.

    Args:
        artifacts: with oof_fusion.csv.
        rows: of train-metadata.csv.
        networks: their names.

    Returns:
        A table as ``train.combination`` takes it, with patient_id, and a column for each network, NaN where it has not
        scored the lesion; its index is the position in ``rows``. And whether the lesion has all scores, bool (rows,).

    Raises:
        InputError: as ``read_folds``: ``rows`` are not those that the artifacts were trained on.
    """
    read_folds(artifacts, rows.metadata)
    manifest = load_manifest(artifacts)
    names = [TARGET, "fold", TABULAR, NETWORK, "image_scored", *map(network_column, networks)]
    known = read_scores(checked_file(artifacts, manifest, OOF_FUSION), names)
    table = rows.metadata[[ID, PATIENT]]
    table = table[table[ID].isin(known.index)].join(known, on=ID).astype({"fold": int, TARGET: int, "image_scored": int})
    scored = table["image_scored"].to_numpy() == 1
    table = table.rename(columns={network_column(name): name for name in networks})
    table.loc[~scored, networks] = np.nan
    return table, scored


def stacking_features(
    table: pd.DataFrame, networks: list[str], columns: pd.DataFrame | None, patients: bool = True
) -> pd.DataFrame:
    """The features of the last stage, behind those of the tabular stage if they are given; ``patients``: it sees them."""
    features = logit_features(table[[TABULAR, *networks]], table[PATIENT] if patients else None)
    return features if columns is None else pd.concat([columns, features], axis=1)


def with_noise(table: pd.DataFrame, networks: list[str], noise: float, seed: int) -> pd.DataFrame:
    """The table with normal noise on the networks' logits, in standard deviations of each; the winner had 0.1."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((len(table), len(networks))) * table[networks].std().to_numpy()
    return table.assign(**dict(zip(networks, (table[networks] + noise * drawn).to_numpy().T, strict=True)))


if __name__ == "__main__":
    run_command(train_stacking)
