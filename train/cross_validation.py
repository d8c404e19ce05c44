"""CatBoost over folds and seeds: the one loop that the tabular stage, its studies and its tuning run.

Each lesion's out-of-fold logits come from models that saw no lesion of its patient. The number of trees is fixed: nothing
is chosen on the rows that are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostError, Pool

from inference.features import MODEL_CATEGORIES
from inference.tabular import tabular_logits
from scale.parallel import run_tasks, share_of_cores
from train.config import Recipe
from train.folds import HOLDOUT
from utils import InputError

#: Decided by the project, not by --params: they keep training deterministic and its folder clean.
FIXED = {"loss_function": "Logloss", "allow_writing_files": False, "verbose": False}


@dataclass(frozen=True)
class FoldModel:
    """One model, the fold that it has not seen, and the shift of its logits to the natural prevalence."""

    fold: int
    seed: int
    model: CatBoostClassifier
    prior_correction: float


def sample_negatives(labels: np.ndarray, per_positive: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """All malignant rows and a random part of the benign ones.

    Args:
        labels: 0/1, shape (rows,).
        per_positive: benign rows to keep for each malignant one; all when there are fewer.
        rng: draws them.

    Returns:
        Positions of the kept rows, ascending, and the share of benign rows kept. A model of these rows overstates the odds
        by 1 / share (King and Zeng 2001, Logistic Regression in Rare Events Data), so its logits are shifted by ln(share).
    """
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    keep = round(min(len(negatives), per_positive * len(positives)))
    kept = rng.choice(negatives, keep, replace=False)
    return np.sort(np.concatenate([positives, kept])), keep / len(negatives)


def draw(labels: np.ndarray, fold: np.ndarray, recipe: Recipe, number: int, seed: int) -> tuple[np.ndarray, float]:
    """Positions of the rows that model ``seed`` of fold ``number`` is trained on, and the share of benign rows kept."""
    rng = np.random.default_rng([recipe.seed, number, seed])
    train = np.flatnonzero((fold != number) & (fold != HOLDOUT))
    kept, share = sample_negatives(labels[train], recipe.negatives_per_positive, rng)
    return train[kept], share


def train_model(features: pd.DataFrame, labels: np.ndarray, parameters: dict, seed: int) -> CatBoostClassifier:
    """One CatBoost model with native categories.

    Raises:
        InputError: CatBoost refuses the parameters.
    """
    try:
        model = CatBoostClassifier(**({"thread_count": share_of_cores()} | parameters | FIXED), random_seed=seed)
        return model.fit(Pool(features, labels, cat_features=categories_of(features)))
    except (CatBoostError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"CatBoost refuses to train ({reason}); mend --params or the data.") from error


def categories_of(features: pd.DataFrame) -> list[str]:
    """The categorical columns of a feature table."""
    return [name for name in features if name in MODEL_CATEGORIES]


def cross_validate(
    features: pd.DataFrame, labels: np.ndarray, fold: np.ndarray, recipe: Recipe, progress: bool = True
) -> tuple[list[FoldModel], np.ndarray]:
    """Trains ``recipe.seeds`` models per fold.

    Args:
        features: the columns to train on, shape (rows, columns).
        labels: 0/1, shape (rows,).
        fold: 0, 1, ... or ``HOLDOUT``, shape (rows,).
        recipe: parameters, seeds and sampling.
        progress: whether to show a progress bar.

    Returns:
        The models, and logits of shape (rows,): out of fold, mean over seeds; in the holdout, mean over all models.
    """
    tasks = [(number, seed) for number in range(int(fold.max()) + 1) for seed in range(recipe.seeds)]
    draws = [draw(labels, fold, recipe, *task) for task in tasks]
    rows = (
        (features.iloc[kept], labels[kept], recipe.parameters, recipe.seed + 1000 * number + seed)
        for (number, seed), (kept, _) in zip(tasks, draws, strict=True)
    )
    trained = run_tasks(train_model, rows, len(tasks), desc="CatBoost", unit="model", progress=progress)
    models, logits, categories = [], np.zeros(len(labels)), categories_of(features)
    for (number, seed), (_, share), model in zip(tasks, draws, trained, strict=True):
        models.append(FoldModel(number, seed, model, float(np.log(share))))
        inside = fold == number
        pair = [(model, models[-1].prior_correction)]
        logits[inside] += tabular_logits(pair, features[inside], categories) / recipe.seeds
    held_out = fold == HOLDOUT
    pairs = [(each.model, each.prior_correction) for each in models]
    logits[held_out] = tabular_logits(pairs, features[held_out], categories)
    return models, logits
