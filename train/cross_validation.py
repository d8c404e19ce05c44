"""Cross-validation of CatBoost over folds and seeds; the tabular stage, its studies and its tuning all run it.

A lesion's out-of-fold logit comes from models trained without any lesion of its patient. The number of trees is fixed:
nothing is chosen on the rows that are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostError, Pool

from inference.features import MODEL_CATEGORIES
from inference.tabular import tabular_logits
from scale.parallel import Progress, run_tasks, share_of_cores
from train.config import TabularConfig
from train.folds import HOLDOUT
from utils import InputError

#: Not for --params to change: they keep training deterministic and the working folder clean.
FIXED_PARAMETERS = {"loss_function": "Logloss", "allow_writing_files": False, "verbose": False}


@dataclass(frozen=True)
class FoldModel:
    """A model trained without fold ``fold``; its logits plus ``prior_correction`` fit the natural prevalence."""

    fold: int
    seed: int
    model: CatBoostClassifier
    prior_correction: float


@dataclass(frozen=True)
class CrossValidation:
    """The models of every fold, and logits of shape (rows,): out of fold, or in the holdout the mean over all models."""

    models: list[FoldModel]
    logits: np.ndarray


def cross_validate(
    features: pd.DataFrame,
    labels: np.ndarray,
    fold: np.ndarray,
    config: TabularConfig,
    progress: bool = True,
    fitted: pd.DataFrame | None = None,
) -> CrossValidation:
    """Trains ``config.seeds`` models per fold and scores every row.

    Args:
        features: the columns to train on and to score, shape (rows, columns).
        labels: 0/1, shape (rows,).
        fold: 0, 1, ... or ``HOLDOUT``, shape (rows,).
        config: parameters, seeds and sampling.
        progress: whether to show a progress bar.
        fitted: the same columns with noise, to train on instead.
    """
    fitted = features if fitted is None else fitted
    tasks = [(number, seed) for number in range(int(fold.max()) + 1) for seed in range(config.seeds)]
    samples = [draw_training_rows(labels, fold, config, *task) for task in tasks]
    arguments = (
        (
            fitted.iloc[kept],
            labels[kept],
            config.parameters,
            config.seed + 1000 * number + seed,
        )
        for (number, seed), (kept, _) in zip(tasks, samples, strict=True)
    )
    trained = run_tasks(train_model, arguments, len(tasks), progress=Progress("CatBoost", "model", progress))
    models = [
        FoldModel(number, seed, model, float(np.log(share)))
        for (number, seed), (_, share), model in zip(tasks, samples, trained, strict=True)
    ]
    logits, categories = np.zeros(len(labels)), categories_of(features)
    for each in models:
        out_of_fold = fold == each.fold
        pair = [(each.model, each.prior_correction)]
        logits[out_of_fold] += tabular_logits(pair, features[out_of_fold], categories) / config.seeds
    held_out = fold == HOLDOUT
    pairs = [(each.model, each.prior_correction) for each in models]
    logits[held_out] = tabular_logits(pairs, features[held_out], categories)
    return CrossValidation(models, logits)


def draw_training_rows(
    labels: np.ndarray, fold: np.ndarray, config: TabularConfig, number: int, seed: int
) -> tuple[np.ndarray, float]:
    """Positions of the training rows of model ``seed`` of fold ``number``, and the share of benign rows kept."""
    rng = np.random.default_rng([config.seed, number, seed])
    train = np.flatnonzero((fold != number) & (fold != HOLDOUT))
    kept, share = sample_negatives(labels[train], config.negatives_per_positive, rng)
    return train[kept], share


def sample_negatives(labels: np.ndarray, per_positive: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """All malignant rows and a random part of the benign ones.

    Args:
        labels: 0/1, shape (rows,).
        per_positive: benign rows to keep for each malignant one; all where there are fewer.
        rng: source of the draw.

    Returns:
        Positions of the kept rows, ascending, and the share of benign rows kept. A model of these rows overstates the odds
        by 1 / share, so ln(share) is added to its logits (King and Zeng 2001, Logistic Regression in Rare Events Data).
    """
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    keep = round(min(len(negatives), per_positive * len(positives)))
    kept = rng.choice(negatives, keep, replace=False)
    return np.sort(np.concatenate([positives, kept])), keep / len(negatives)


def train_model(features: pd.DataFrame, labels: np.ndarray, parameters: dict, seed: int) -> CatBoostClassifier:
    """One CatBoost model with native categories.

    Raises:
        InputError: CatBoost refuses the parameters.
    """
    try:
        model = CatBoostClassifier(**({"thread_count": share_of_cores()} | parameters | FIXED_PARAMETERS), random_seed=seed)
        return model.fit(Pool(features, labels, cat_features=categories_of(features)))
    except (CatBoostError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"CatBoost refuses to train ({reason}); correct --params or the data.") from error


def categories_of(features: pd.DataFrame) -> list[str]:
    """The categorical columns of a feature table."""
    return [name for name in features if name in MODEL_CATEGORIES]
