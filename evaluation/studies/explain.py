"""What the CatBoost models learned: feature importance and SHAP values, as a table and two figures.

    python -m evaluation.studies.explain --data data/isic-2024-challenge --artifacts artifacts --out explained

A SHAP value is a feature's share, in logits, of the distance between a lesion's score and the model's mean score; a lesion's
SHAP values and that mean add up to its score (Lundberg and others 2018, arXiv:1802.03888). Each lesion is explained by the
models that were trained without its patient, so the values show what the models use on new patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostError, Pool
from matplotlib.cm import ScalarMappable

from inference.artifacts import Manifest, checked_file, fold_of_tabular_model, load_manifest
from inference.files import write_csv
from inference.options import Parser, add_data_options, add_seed_option, count, output_folder
from scale.output_folder import output_set
from scale.progress import Bar
from terminal import run_command
from train.charts import BLUE, GREY, INK, VERMILION, clean_axes, new_figure, save_png
from train.folds import HOLDOUT, read_folds
from train.lesions import read_rows
from utils import InputError, log_summary, text_table

FILES = ("features.csv", "features.png", "shap.png")
BARS, STRIPS = 25, 15
#: A dot's greatest distance from its row's middle, in rows.
SPREAD = 0.38
#: At most so many lesions are drawn; more dots only cover each other.
DRAWN = 6000


@dataclass(frozen=True)
class Explanation:
    """SHAP values of some lesions.

    Attributes:
        features: the models' columns in their order, shape (rows, features).
        categories: which of them are categorical.
        shap: logits, shape (rows, features), mean over the lesion's models.
        expected: the models' mean score, shape (rows,). ``shap.sum(axis=1) + expected`` is the raw score.
        importance: PredictionValuesChange, a model's to 100, mean over all models, shape (features,).
    """

    features: pd.DataFrame
    categories: list[str]
    shap: np.ndarray
    expected: np.ndarray
    importance: np.ndarray


def load_fold_models(folder: Path, manifest: Manifest) -> list[tuple[int, CatBoostClassifier]]:
    """The models that the manifest names, each with the fold that it was trained without.

    Raises:
        InputError: there is none, or a file is missing, differs from the trained one, or is no model.
    """
    entries = manifest.get("tabular", {}).get("models", [])
    if not entries:
        raise InputError(f"{folder} has no CatBoost models; run: python -m train.tabular --data DIR --artifacts {folder}")
    models = []
    for entry in entries:
        fold = fold_of_tabular_model(entry["file"])
        if fold is None:
            raise InputError(f"{folder}: the name {entry['file']!r} holds no fold; train again with this version.")
        try:
            model = CatBoostClassifier().load_model(str(checked_file(folder, manifest, entry["file"])))
        except CatBoostError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{folder / entry['file']} is no CatBoost model ({reason}); train again.") from error
        models.append((fold, model))
    return models


def sample_rows(labels: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All malignant rows and random benign ones, ``rows`` in all or fewer.

    Args:
        labels: 0/1, shape (all rows,).
        rows: at most so many.
        seed: draws the benign rows.

    Returns:
        Positions, ascending, and weights that give the benign rows their natural share again, both of shape (drawn rows,).

    Raises:
        InputError: ``rows`` is too small for the malignant rows and a benign one.
    """
    malignant, benign = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    keep = min(len(benign), rows - len(malignant))
    if keep < min(1, len(benign)) or keep < 0:
        raise InputError(f"--rows {rows} cannot hold the {len(malignant)} malignant lesions and benign ones; give more.")
    drawn = np.sort(np.concatenate([malignant, np.random.default_rng(seed).choice(benign, keep, replace=False)]))
    return drawn, np.where(labels[drawn] == 1, 1.0, len(benign) / max(keep, 1))


def explain(
    features: pd.DataFrame, fold: np.ndarray, models: list[tuple[int, CatBoostClassifier]], categories: list[str]
) -> Explanation:
    """Explains each lesion by the models trained without its fold; a holdout lesion by all models.

    Args:
        features: exactly the models' columns, in their order, shape (rows, features).
        fold: 0, 1, ... or ``HOLDOUT``, shape (rows,).
        models: pairs of the fold that a model was trained without, and the model.
        categories: which of the columns are categorical.

    Raises:
        InputError: no model has a row's fold.
    """
    orphans = set(np.unique(fold)) - {HOLDOUT} - {number for number, _ in models}
    if orphans:
        raise InputError(f"no model was trained without fold {min(orphans)}, though folds.csv names it; train again.")
    total, used = np.zeros((len(features), features.shape[1] + 1)), np.zeros(len(features))
    importance = np.zeros(features.shape[1])
    for number, model in Bar(models, desc="SHAP", unit="model"):
        importance += model.get_feature_importance(type="PredictionValuesChange") / len(models)
        rows = np.flatnonzero((fold == number) | (fold == HOLDOUT))
        if len(rows):
            pool = Pool(features.iloc[rows], cat_features=categories)
            scale, bias = model.get_scale_and_bias()
            # A model without signal (``train.tabular``) gives its bias alone; CatBoost explains no scaled model.
            total[rows] += (
                model.get_feature_importance(pool, type="ShapValues") if scale else [0.0] * features.shape[1] + [bias]
            )
            used[rows] += 1
    mean = total / used[:, None]
    return Explanation(features, categories, mean[:, :-1], mean[:, -1], importance)


def direction(values: np.ndarray, shap: np.ndarray, weights: np.ndarray) -> float:
    """Rank correlation of a number and its SHAP values, -1 to 1: above zero where more of it is more suspicious.

    All arguments have shape (rows,); rows of unknown value are left out. NaN where either does not vary.
    """
    known = np.isfinite(values)
    ranks = np.array([pd.Series(each[known]).rank().to_numpy() for each in (values, shap)])
    if known.sum() < 2 or (np.ptp(ranks, axis=1) == 0).any():
        return float("nan")
    covariance = np.cov(ranks, aweights=weights[known])
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def tabulate(explanation: Explanation, weights: np.ndarray) -> pd.DataFrame:
    """One row per feature, the one with the largest SHAP values first.

    Returns:
        ``feature``; ``importance`` (PredictionValuesChange, sums to 100); ``mean_abs_shap`` (logits); ``direction``
        (``direction``; NaN for categories). Means are over lesions at the natural prevalence.
    """
    features, shap = explanation.features, explanation.shap
    signs = [
        np.nan if name in explanation.categories else direction(features[name].to_numpy("float64"), shap[:, i], weights)
        for i, name in enumerate(features)
    ]
    size = np.average(np.abs(shap), axis=0, weights=weights)
    columns = {"feature": list(features), "importance": explanation.importance, "mean_abs_shap": size, "direction": signs}
    return pd.DataFrame(columns).sort_values("mean_abs_shap", ascending=False, kind="stable", ignore_index=True)


def draw_bars(path: Path, table: pd.DataFrame) -> None:
    """The first ``BARS`` features: mean |SHAP| beside CatBoost's importance, in one PNG."""
    top = table.head(BARS)
    figure = new_figure(10, 1.4 + 0.29 * len(top))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column, colour, label in (
        (left, "mean_abs_shap", BLUE, "mean |SHAP|, logits"),
        (right, "importance", VERMILION, "PredictionValuesChange, % of a model"),
    ):
        axes.barh(range(len(top)), top[column], color=colour, height=0.7)
        axes.set_xlabel(label)
        clean_axes(axes, "x")
        axes.spines["left"].set_visible(False)
    left.set_yticks(range(len(top)), top["feature"])
    left.set_ylim(len(top) - 0.4, -0.6)
    figure.suptitle(f"The {len(top)} features that move the score most, of {len(table)}", fontsize=12)
    save_png(figure, path)


def swarm(values: np.ndarray, rng: np.random.Generator, bins: int = 80) -> np.ndarray:
    """Offsets of dots across their row, shape (rows,), within ``SPREAD``: wide where many dots share a value."""
    low, high = values.min(), values.max()
    place = np.minimum(((values - low) / max(high - low, 1e-12) * bins).astype(int), bins - 1)
    crowd = np.bincount(place, minlength=bins)
    return rng.uniform(-SPREAD, SPREAD, len(values)) * np.sqrt(crowd[place] / crowd.max())


def draw_strips(path: Path, table: pd.DataFrame, explanation: Explanation, labels: np.ndarray, seed: int) -> None:
    """The first ``STRIPS`` features, a dot per lesion: SHAP value across, the feature's own value as colour."""
    rng, top, features = np.random.default_rng(seed), table.head(STRIPS), explanation.features
    drawn = sample_rows(labels, max(DRAWN, 2 * int(labels.sum())), seed)[0]
    figure = new_figure(10, 1.6 + 0.46 * len(top))
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for row, name in enumerate(top["feature"]):
        shap = explanation.shap[drawn, features.columns.get_loc(name)]
        height = row + swarm(shap, rng)
        grey = np.ones(len(drawn), dtype=bool)
        dots: dict[str, Any] = {"s": 7, "linewidths": 0, "rasterized": True, "zorder": 2}
        if name not in explanation.categories:
            # Ranks, and not the values: one extreme value would leave a single colour to all others.
            share = features[name].iloc[drawn].rank(pct=True).to_numpy()
            grey = np.isnan(share)
            shuffled = rng.permutation(np.flatnonzero(~grey))  # so that no value's dots always lie on top
            axes.scatter(shap[shuffled], height[shuffled], c=share[shuffled], cmap="viridis", vmin=0, vmax=1, **dots)
        axes.scatter(shap[grey], height[grey], c=GREY, **dots)
    axes.set_yticks(range(len(top)), [f"{name} *" if name in explanation.categories else name for name in top["feature"]])
    axes.set_ylim(len(top) - 0.5, -0.5)
    clean_axes(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("SHAP value, logits: left less suspicious, right more suspicious")
    axes.set_title(f"{len(drawn):,} lesions, each explained by models trained without its patient", fontsize=12)
    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=axes, ticks=[0, 0.5, 1], fraction=0.03, aspect=40, pad=0.02)
    bar.ax.set_yticklabels(["lowest", "median", "highest"])
    bar.outline.set_visible(False)  # type: ignore[operator]  # Matplotlib's stub makes it a mapping of spines
    figure.supxlabel("Colour: the feature's value, by rank among the lesions. Grey: unknown, or a category (*).", fontsize=9)
    save_png(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Writes features.csv, features.png and shap.png."""
    parser = Parser(
        description="Feature importance and SHAP values of trained CatBoost models -> features.csv, features.png, shap.png"
    )
    add_data_options(parser)
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="folder for the table and the figures"
    )
    parser.add_argument(
        "--rows",
        type=count(),
        default=20000,
        help="at most so many lesions, all malignant ones included (default: %(default)s)",
    )
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    with output_set(options.out, FILES) as staging:
        manifest = load_manifest(options.artifacts)
        models = load_fold_models(options.artifacts, manifest)
        lesions = read_rows(options.data)
        names = manifest["tabular"]["features"]
        unknown = [name for name in names if name not in lesions.features]
        if unknown:
            raise InputError(
                f"the models of {options.artifacts} use {unknown[0]!r}, which this code does not make of {options.data}; "
                "train again with train.tabular."
            )
        fold = read_folds(options.artifacts, lesions.metadata)
        # Drawn after the features are made of all lesions of each patient: a lesion's features depend on the others.
        rows, weights = sample_rows(lesions.labels, options.rows, options.seed)
        explanation = explain(lesions.features[names].iloc[rows], fold[rows], models, manifest["tabular"]["categories"])
        table = tabulate(explanation, weights)
        write_csv(staging / "features.csv", table)
        draw_bars(staging / "features.png", table)
        draw_strips(staging / "shap.png", table, explanation, lesions.labels[rows], options.seed)
    strongest = zip(table["feature"].head(10), table["mean_abs_shap"].head(10), strict=True)
    log_summary(
        f"{options.out}: {len(rows):,} lesions explained by {len(models)} models; first of {len(table)} features: "
        f"{', '.join(table['feature'].head(5))}; {int((table['mean_abs_shap'] == 0).sum())} are not used",
        text_table([["feature", "mean abs. SHAP"], *([name, f"{value:.4f}"] for name, value in strongest)]),
    )
    return 0


if __name__ == "__main__":
    run_command(main)
