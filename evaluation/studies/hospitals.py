"""Leave-one-hospital-out: what the model is worth in a new hospital, and what to do with the hospital column.

    python -m evaluation.studies.hospitals --data data/isic-2024-challenge --out hospitals --seeds 3

Two of the hospitals of the hidden test do not occur in training. Three treatments of the column are compared on the same
rows, folds and seeds: "with" it; "without" it; "blanked": it reads ``MISSING`` in a random half of the training rows and
wherever a scored row names a hospital that training has not, so that the model is trained on rows without one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation.studies.compare import MeanPauc, markdown_table, split_folds, write_text
from inference.files import write_csv
from inference.options import Parser, count, existing_folder, output_folder
from inference.schema import HOSPITAL, MISSING, PATIENT, TARGET
from inference.tabular import tabular_logits
from scale.output_folder import output_set
from scale.parallel import Progress, run_tasks, workers
from terminal import run_command
from train.config import TabularConfig, add_tabular_options, read_config
from train.cross_validation import categories_of, sample_negatives, train_model
from train.lesions import read_rows
from utils import Estimate, InputError, ScoreTable, bootstrap_scores, log_summary

TABLE, TEXT = "hospitals.csv", "hospitals.md"
TREATMENTS = ("with", "without", "blanked")
#: The share of training rows without their hospital in the treatment "blanked".
BLANKED = 0.5
#: Hospitals with fewer malignant lesions have a pAUC of their own and are left out of the mean over hospitals.
FEW = 5
#: The last rows of the table, below the hospitals.
MEAN, POOLED, WITHIN = "mean over hospitals", "pooled", "within hospitals"
UNKNOWN = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Part:
    """Rows that are scored together, and the rows whose models score them; both are positions, shape (rows of it,)."""

    name: str
    train: np.ndarray
    score: np.ndarray


def hospital_parts(metadata: pd.DataFrame) -> list[Part]:
    """One part per hospital, by name. Rows of its patients are in no training set, also those from other hospitals.

    Raises:
        InputError: the rows name fewer than two hospitals.
    """
    hospitals = sorted(metadata[HOSPITAL].dropna().unique()) if HOSPITAL in metadata else []
    if len(hospitals) < 2:
        raise InputError(
            f"train-metadata.csv names {len(hospitals)} hospitals in {HOSPITAL!r}; leaving one out needs two or more."
        )
    parts = []
    for name in hospitals:
        inside = (metadata[HOSPITAL] == name).to_numpy()
        own_patients = metadata[PATIENT].isin(metadata.loc[inside, PATIENT]).to_numpy()
        parts.append(Part(name, np.flatnonzero(~own_patients), np.flatnonzero(inside)))
    return parts


def fold_parts(metadata: pd.DataFrame, folds: int, seed: int) -> list[Part]:
    """One part per patient-grouped fold: the ordinary cross-validation, in which each hospital is in the training rows."""
    fold = split_folds(metadata, folds, seed)
    return [Part(f"fold {k}", np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]


def treated(features: pd.DataFrame, treatment: str, blank: np.ndarray | pd.Series) -> pd.DataFrame:
    """The columns under a treatment; "blanked" sets the hospital of the rows ``blank``, bool (rows,), to ``MISSING``."""
    if treatment == "without":
        return features.drop(columns=HOSPITAL)
    if treatment == "blanked":
        return features.assign(**{HOSPITAL: features[HOSPITAL].mask(blank, MISSING)})
    return features


def score_parts(
    features: pd.DataFrame, labels: np.ndarray, parts: list[Part], config: TabularConfig, desc: str = "CatBoost"
) -> dict[str, np.ndarray]:
    """Trains ``config.seeds`` models per part and treatment; each scores the rows that its part keeps out of training.

    Args:
        features: with the column ``attribution``, shape (rows, columns).
        labels: 0/1, shape (rows,).
        parts: the rows to train on and to score.
        config: parameters, seeds and sampling; a part's negatives are the same for all treatments.
        desc: heads the progress bar.

    Returns:
        Treatment -> logits, mean over seeds, shape (rows,); NaN in rows that no part scores.

    Raises:
        InputError: the training rows of a part are of one class.
    """
    for part in parts:
        if len(set(labels[part.train])) < 2:
            raise InputError(f"without {part.name!r} all rows are of one class, and nothing can be trained; give more rows.")
    tasks, shares = list(itertools.product(range(len(parts)), TREATMENTS, range(config.seeds))), []

    def given():
        for number, treatment, seed in tasks:
            part, rng = parts[number], np.random.default_rng([config.seed, number, seed])
            kept, share = sample_negatives(labels[part.train], config.negatives_per_positive, rng)
            kept = part.train[kept]
            shares.append(share)
            blank = rng.permutation(len(kept)) < round(BLANKED * len(kept))
            rows = treated(features.iloc[kept], treatment, blank)
            yield rows, labels[kept], config.parameters, config.seed + 1000 * number + seed

    models = run_tasks(train_model, given(), len(tasks), progress=Progress(desc, "model"))
    scores = {treatment: np.full(len(labels), np.nan) for treatment in TREATMENTS}
    for logits in scores.values():
        logits[np.concatenate([part.score for part in parts])] = 0.0
    for (number, treatment, _), share, model in zip(tasks, shares, models, strict=True):
        part = parts[number]
        scored, known = features.iloc[part.score], features[HOSPITAL].iloc[part.train]
        scored = treated(scored, treatment, ~scored[HOSPITAL].isin(known))
        logits = tabular_logits([(model, float(np.log(share)))], scored, categories_of(scored))
        scores[treatment][part.score] += logits / config.seeds
    return scores


def measure(metadata: pd.DataFrame, rows: np.ndarray, scores: Mapping[str, np.ndarray], seed: int = 0) -> ScoreTable | None:
    """The scores of some rows, shape of ``rows`` (positions); None where their labels are of one class."""
    labels = metadata[TARGET].to_numpy()[rows]
    if len(set(labels)) < 2:
        return None
    patients = metadata[PATIENT].to_numpy()[rows]
    return bootstrap_scores(labels, patients, {name: values[rows] for name, values in scores.items()}, seed=seed)


def columns_of(tables: Sequence[ScoreTable]) -> dict[str, float]:
    """Columns of ``tabulate``: mean pAUC of each treatment over tables of other rows, and its paired difference to "with".

    Args:
        tables: each resampled on its own; where there is none, the columns are NaN.
    """
    means = {name: MeanPauc.of([(table, name) for table in tables]) for name in TREATMENTS if tables}
    columns: dict[str, float] = {}
    for name in TREATMENTS:
        found = means[name].estimate if tables else UNKNOWN
        columns |= {f"{name}_pauc": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    for name in TREATMENTS[1:]:
        found, column = means[name].minus(means[TREATMENTS[0]]) if tables else UNKNOWN, f"{name}_minus_with"
        columns |= {column: found.value, f"{column}_low": found.low, f"{column}_high": found.high}
    return columns


def tabulate(
    metadata: pd.DataFrame, parts: list[Part], left_out: Mapping[str, np.ndarray], within: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The table of the study.

    Args:
        metadata: rows, with labels and patients.
        parts: the hospitals.
        left_out: treatment -> logits by models that were not trained on the row's hospital, shape (rows,).
        within: treatment -> ordinary out-of-fold logits, shape (rows,).

    Returns:
        One row per hospital, then the mean over hospitals, pooled, and within hospitals. Columns: ``hospital``,
        ``lesions``, ``malignant``, ``note``; per treatment ``<it>_pauc``, ``_low``, ``_high``; per treatment but "with" its
        paired difference to it, ``<it>_minus_with``, ``_low``, ``_high``.
    """
    labels, lines, enough = metadata[TARGET].to_numpy(), [], []

    def add(name: str, rows: np.ndarray, note: str, tables: Sequence[ScoreTable | None]) -> None:
        line = {"hospital": name, "lesions": len(rows), "malignant": int(labels[rows].sum()), "note": note}
        lines.append(line | columns_of([table for table in tables if table]))

    for number, part in enumerate(parts):
        table = measure(metadata, part.score, left_out, seed=number)  # hospitals are resampled each on its own
        few = labels[part.score].sum() < FEW
        if table and not few:
            enough.append(table)
        note = "one class only: no pAUC" if table is None else f"fewer than {FEW} malignant" if few else ""
        add(part.name, part.score, note, [table])
    rows = np.sort(np.concatenate([part.score for part in parts]))
    add(MEAN, rows, f"of {len(enough)} hospitals", enough)
    add(POOLED, rows, "each hospital left out of its models' training", [measure(metadata, rows, left_out)])
    add(WITHIN, rows, "out of fold, all hospitals in training", [measure(metadata, rows, within)])
    return pd.DataFrame(lines)


def as_markdown(table: pd.DataFrame) -> str:
    """What ``tabulate`` returns, as a Markdown table without a newline at its end."""
    changes = [f"{name}_minus_with" for name in TREATMENTS[1:]]
    lines = []
    for _, row in table.iterrows():
        cells = [str(row["hospital"]), f"{row['lesions']:,}", f"{row['malignant']:,}"]
        cells += [cell(row, f"{name}_pauc", name, "") for name in TREATMENTS]
        lines.append([*cells, *(cell(row, name, name, "+") for name in changes), row["note"]])
    head = ["hospital", "lesions", "malignant", *TREATMENTS, *(name.replace("_", " ") for name in changes), "note"]
    return markdown_table(head, lines)


def cell(row: pd.Series, value: str, ends: str, sign: str) -> str:
    """A value of the table with the ends of its interval; empty where it is unknown."""
    numbers = row[[value, f"{ends}_low", f"{ends}_high"]]
    return "" if numbers.isna().any() else "{:{s}.4f} [{:{s}.4f}, {:{s}.4f}]".format(*numbers, s=sign)


def conclusion(table: pd.DataFrame) -> str:
    """One line: the paired differences to "with", in hospitals left out of training and in known ones."""
    rows, parts = table.set_index("hospital"), []
    for name in TREATMENTS[1:]:
        column = f"{name}_minus_with"
        found = [f"{line} {cell(rows.loc[line], column, column, '+') or 'unknown'}" for line in (MEAN, POOLED, WITHIN)]
        parts.append(f"{name} - with: {', '.join(found)}")
    return "; ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Trains, scores and writes hospitals.csv and hospitals.md."""
    parser = Parser(
        description="Leave-one-hospital-out with, without and with a blanked hospital column -> hospitals.csv, hospitals.md"
    )
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="folder for hospitals.csv and hospitals.md"
    )
    parser.add_argument(
        "--folds", type=count(2), default=5, help="folds of the within-hospital score (default: %(default)s)"
    )
    add_tabular_options(parser)
    options = parser.parse_args(arguments)
    config = read_config(options.params, options.seeds, options.negatives_per_positive, options.seed)
    with output_set(options.out, [TABLE, TEXT]) as staging, workers(options.jobs, options.cluster):
        rows = read_rows(options.data)
        metadata, features, labels = rows.metadata, rows.features, rows.labels
        hospitals, folds = hospital_parts(metadata), fold_parts(metadata, options.folds, options.seed)
        # The column is studied whether or not the model takes it by default.
        features[HOSPITAL] = metadata[HOSPITAL].astype(object).fillna(MISSING).astype(str)
        models = (len(hospitals) + len(folds)) * len(TREATMENTS) * options.seeds
        left_out = score_parts(features, labels, hospitals, config, "hospitals")
        within = score_parts(features, labels, folds, config, "folds")
        table = tabulate(metadata, hospitals, left_out, within)
        text = as_markdown(table)
        write_csv(staging / TABLE, table)
        write_text(staging / TEXT, f"{text}\n\n{conclusion(table)}")
    log_summary(f"{options.out}: {models} models; pAUC {conclusion(table)}", text)
    return 0


if __name__ == "__main__":
    run_command(main)
