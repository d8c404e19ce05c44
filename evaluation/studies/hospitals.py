"""Leave-one-hospital-out: what the model is worth in a hospital that it has never seen, and what to do with its column.

    python -m evaluation.studies.hospitals --data data/isic-2024-challenge --out hospitals --seeds 3

Two of the hospitals of the hidden test do not occur in training. Three treatments of the column are compared on the same
rows, folds and seeds: "with" it; "without" it; "blanked": it reads ``MISSING`` in a random half of the training rows and
wherever a scored row names a hospital that training has not, so that an unseen hospital is something the model has met.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inference.files import replacing, write_csv
from inference.schema import HOSPITAL, MISSING, PATIENT, TARGET
from inference.tabular import tabular_logits
from scale.parallel import run_tasks, workers
from train.config import Recipe, add_recipe_options, recipe_of
from train.cross_validation import categories_of, sample_negatives, train_model
from train.folds import assign_folds
from train.lesions import read_rows
from utils import INTERVAL, Estimate, InputError, ScoreTable, bootstrap_scores, log, run_command

TREATMENTS = ("with", "without", "blanked")
#: The share of training rows without their hospital in the treatment "blanked".
BLANKED = 0.5
#: The pAUC of fewer malignant lesions is told and left out of the mean over hospitals.
FEW = 5

#: The name of a line of the table -> treatment -> its estimate, or None where there is one class only.
Lines = dict[str, dict[str, Estimate | None]]


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
        seen = metadata[PATIENT].isin(metadata.loc[inside, PATIENT]).to_numpy()
        parts.append(Part(name, np.flatnonzero(~seen), np.flatnonzero(inside)))
    return parts


def fold_parts(metadata: pd.DataFrame, folds: int, seed: int) -> list[Part]:
    """One part per patient-grouped fold: the ordinary cross-validation, in which each hospital is known to the models."""
    fold = assign_folds(metadata, folds, np.zeros(len(metadata), dtype=bool), seed)
    return [Part(f"fold {k}", np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]


def treat_training(features: pd.DataFrame, treatment: str, rng: np.random.Generator) -> pd.DataFrame:
    """The columns of training rows under a treatment; a random ``BLANKED`` of the rows lose their hospital in "blanked"."""
    if treatment == "without":
        return features.drop(columns=HOSPITAL)
    if treatment == "blanked":
        blank = rng.permutation(len(features)) < round(BLANKED * len(features))
        return features.assign(**{HOSPITAL: features[HOSPITAL].mask(blank, MISSING)})
    return features


def treat_scoring(features: pd.DataFrame, treatment: str, known: pd.Series) -> pd.DataFrame:
    """The columns of scored rows under a treatment; in "blanked" a hospital that is not among ``known`` is ``MISSING``."""
    if treatment == "without":
        return features.drop(columns=HOSPITAL)
    if treatment == "blanked":
        return features.assign(**{HOSPITAL: features[HOSPITAL].where(features[HOSPITAL].isin(known), MISSING)})
    return features


def score_parts(
    features: pd.DataFrame, labels: np.ndarray, parts: list[Part], recipe: Recipe, desc: str = "CatBoost"
) -> dict[str, np.ndarray]:
    """Trains ``recipe.seeds`` models per part and treatment; each scores the rows that its part keeps out of training.

    Args:
        features: with the column ``attribution``, shape (rows, columns).
        labels: 0/1, shape (rows,).
        parts: the rows to train on and to score.
        recipe: parameters, seeds and sampling; a part's negatives are the same for all treatments.
        desc: heads the progress bar.

    Returns:
        Treatment -> logits, mean over seeds, shape (rows,); NaN in rows that no part scores.

    Raises:
        InputError: the training rows of a part are of one class.
    """
    for part in parts:
        if len(set(labels[part.train])) < 2:
            raise InputError(f"without {part.name!r} all rows are of one class, and nothing can be trained; give more rows.")
    tasks, shares = list(itertools.product(range(len(parts)), TREATMENTS, range(recipe.seeds))), []

    def given():
        for number, treatment, seed in tasks:
            part, rng = parts[number], np.random.default_rng([recipe.seed, number, seed])
            kept, share = sample_negatives(labels[part.train], recipe.negatives_per_positive, rng)
            kept = part.train[kept]
            shares.append(share)
            rows = treat_training(features.iloc[kept], treatment, rng)
            yield rows, labels[kept], recipe.parameters, recipe.seed + 1000 * number + seed

    models = run_tasks(train_model, given(), len(tasks), desc=desc, unit="model")
    scores = {treatment: np.full(len(labels), np.nan) for treatment in TREATMENTS}
    for part in parts:
        for treatment in TREATMENTS:
            scores[treatment][part.score] = 0.0
    for (number, treatment, _), share, model in zip(tasks, shares, models, strict=True):
        part = parts[number]
        scored = treat_scoring(features.iloc[part.score], treatment, features[HOSPITAL].iloc[part.train])
        logits = tabular_logits([(model, float(np.log(share)))], scored, categories_of(scored))
        scores[treatment][part.score] += logits / recipe.seeds
    return scores


def measure(metadata: pd.DataFrame, rows: np.ndarray, scores: Mapping[str, np.ndarray], seed: int = 0) -> ScoreTable | None:
    """The scores of some rows, shape of ``rows`` (positions); None where their labels are of one class."""
    labels = metadata[TARGET].to_numpy()[rows]
    if len(set(labels)) < 2:
        return None
    patients = metadata[PATIENT].to_numpy()[rows]
    return bootstrap_scores(labels, patients, {name: values[rows] for name, values in scores.items()}, seed=seed)


def estimates(table: ScoreTable | None) -> tuple[dict[str, Estimate | None], dict[str, Estimate]]:
    """pAUC of each treatment, and its paired difference to "with"; empty where there is no table."""
    if table is None:
        return dict.fromkeys(TREATMENTS), {}
    differences = {name: table.difference(name, TREATMENTS[0]) for name in TREATMENTS[1:]}
    return {name: table.scores[name].pauc for name in TREATMENTS}, differences


def mean_over(tables: list[ScoreTable]) -> tuple[dict[str, Estimate | None], dict[str, Estimate]]:
    """The mean pAUC over tables of disjoint rows, each resampled on its own, and its paired differences to "with"."""
    if not tables:
        return estimates(None)
    draws = {name: np.mean([table.paucs[name] for table in tables], axis=0) for name in TREATMENTS}
    values = {name: float(np.mean([table.scores[name].pauc.value for table in tables])) for name in TREATMENTS}

    def interval(value: float, drawn: np.ndarray) -> Estimate:
        return Estimate(value, *(float(end) for end in np.percentile(drawn, INTERVAL)))

    base = TREATMENTS[0]
    return (
        {name: interval(values[name], draws[name]) for name in TREATMENTS},
        {name: interval(values[name] - values[base], draws[name] - draws[base]) for name in TREATMENTS[1:]},
    )


def tabulate(
    metadata: pd.DataFrame, parts: list[Part], left_out: Mapping[str, np.ndarray], within: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The table of the study.

    Args:
        metadata: rows, with labels and patients.
        parts: the hospitals.
        left_out: treatment -> logits by models that never saw the row's hospital, shape (rows,).
        within: treatment -> ordinary out-of-fold logits, shape (rows,).

    Returns:
        One row per hospital, then the mean over hospitals, pooled, and within hospitals. Columns: ``hospital``,
        ``lesions``, ``malignant``, ``note``; per treatment ``<it>_pauc``, ``_low``, ``_high``; per treatment but "with" its
        paired difference to it, ``<it>_minus_with``, ``_low``, ``_high``.
    """
    labels, lines, tables = metadata[TARGET].to_numpy(), [], []

    def add(name: str, rows: np.ndarray, note: str, found: dict[str, Estimate | None], change: dict[str, Estimate]) -> None:
        line = {"hospital": name, "lesions": len(rows), "malignant": int(labels[rows].sum()), "note": note}
        columns = {f"{each}_pauc": (each, found.get(each)) for each in TREATMENTS}
        columns |= {f"{each}_minus_with": (each, change.get(each)) for each in TREATMENTS[1:]}
        for column, (each, estimate) in columns.items():
            short = each if column.endswith("_pauc") else column
            shown = estimate or Estimate(math.nan, math.nan, math.nan)
            line |= {column: shown.value, f"{short}_low": shown.low, f"{short}_high": shown.high}
        lines.append(line)

    for number, part in enumerate(parts):
        table = measure(metadata, part.score, left_out, seed=number)  # hospitals are resampled each on its own
        few = labels[part.score].sum() < FEW
        note = "one class only: no pAUC" if table is None else f"fewer than {FEW} malignant" if few else ""
        if table is not None and not few:
            tables.append(table)
        add(part.name, part.score, note, *estimates(table))
    rows = np.sort(np.concatenate([part.score for part in parts]))
    add("mean over hospitals", rows, f"of {len(tables)} hospitals", *mean_over(tables))
    for name, note, scores in (
        ("pooled", "all hospitals, each unseen", left_out),
        ("within hospitals", "out of fold, hospitals seen", within),
    ):
        add(name, rows, note, *estimates(measure(metadata, rows, scores)))
    return pd.DataFrame(lines)


def as_markdown(table: pd.DataFrame) -> str:
    """What ``tabulate`` returns, as a Markdown table without a newline at its end."""
    changes = [f"{name}_minus_with" for name in TREATMENTS[1:]]
    head = ["hospital", "lesions", "malignant", *TREATMENTS, *(name.replace("_", " ") for name in changes), "note"]
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"]]
    for _, row in table.iterrows():
        cells = [str(row["hospital"]).replace("|", "\\|"), f"{row['lesions']:,}", f"{row['malignant']:,}"]
        for name in TREATMENTS:
            cells.append(_cell(row[f"{name}_pauc"], row[f"{name}_low"], row[f"{name}_high"], ""))
        for name in changes:
            cells.append(_cell(row[name], row[f"{name}_low"], row[f"{name}_high"], "+"))
        lines.append([*cells, row["note"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float, low: float, high: float, sign: str) -> str:
    return "" if math.isnan(value) else f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def conclusion(table: pd.DataFrame) -> str:
    """One line: the paired differences to "with", in unseen and in known hospitals."""
    rows = table.set_index("hospital")
    parts = []
    for name in TREATMENTS[1:]:
        column = f"{name}_minus_with"
        differences = [
            f"{short} {_cell(*rows.loc[line, [column, f'{column}_low', f'{column}_high']], '+') or 'unknown'}"
            for short, line in (
                ("unseen, mean", "mean over hospitals"),
                ("unseen, pooled", "pooled"),
                ("within", "within hospitals"),
            )
        ]
        parts.append(f"{name} - with: {', '.join(differences)}")
    return "; ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Trains, scores and writes hospitals.csv and hospitals.md."""
    parser = argparse.ArgumentParser(
        description="Leave-one-hospital-out with, without and with a blanked hospital column -> hospitals.csv, hospitals.md"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for hospitals.csv and hospitals.md")
    parser.add_argument("--folds", type=int, default=5, help="folds of the within-hospital score (default: %(default)s)")
    add_recipe_options(parser)
    options = parser.parse_args(arguments)
    if options.folds < 2:
        raise InputError(f"--folds {options.folds} is too few; give 2 or more.")
    recipe = recipe_of(options)
    rows = read_rows(options.data)
    metadata, features, labels = rows.metadata, rows.features, rows.labels
    hospitals, folds = hospital_parts(metadata), fold_parts(metadata, options.folds, options.seed)
    # The column is studied whether or not the model takes it by default.
    features[HOSPITAL] = metadata[HOSPITAL].astype(object).fillna(MISSING).astype(str)
    models = (len(hospitals) + len(folds)) * len(TREATMENTS) * options.seeds
    with workers(options.jobs, options.cluster):
        left_out = score_parts(features, labels, hospitals, recipe, "hospitals")
        within = score_parts(features, labels, folds, recipe, "folds")
    table = tabulate(metadata, hospitals, left_out, within)
    write_csv(options.out / "hospitals.csv", table)
    text = as_markdown(table)
    with replacing(options.out / "hospitals.md") as temporary:
        temporary.write_text(f"{text}\n\n{conclusion(table)}\n", encoding="utf-8")
    log(text)
    log(f"{options.out}: {models} models; pAUC {conclusion(table)}")
    return 0


if __name__ == "__main__":
    run_command(main)
