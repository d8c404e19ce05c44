"""CatBoost fold models -> the tabular logit of each lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostError, Pool

from inference.artifacts import Manifest, checked_file
from inference.schema import MISSING
from utils import InputError

#: A model and its prior correction: the shift of its raw score to logits at the natural prevalence.
FoldModels = list[tuple[CatBoostClassifier, float]]


def load_models(folder: Path, manifest: Manifest, stage: str = "tabular") -> tuple[FoldModels, list[str]]:
    """A stage's fold models.

    Returns:
        The usable models, and one sentence per model that is left out.

    Raises:
        InputError: no model is usable.
    """
    models, complaints = [], []
    for entry in manifest.get(stage, {"models": []})["models"]:
        try:
            model = CatBoostClassifier().load_model(str(checked_file(folder, manifest, entry["file"])))
            models.append((model, float(entry["prior_correction"])))
        except (InputError, CatBoostError) as error:
            complaints.append(f"{stage} model {entry['file']} left out: {error}")
    if not models:
        raise InputError(f"no usable {stage} model in {folder}: {'; '.join(complaints) or 'the manifest names none'}.")
    return models, complaints


def select_features(features: pd.DataFrame, names: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """The model's columns in the model's order; one that the table lacks is unknown for every lesion."""
    absent = {name: MISSING if name in categories else np.float32(np.nan) for name in names if name not in features}
    return features.assign(**absent)[list(names)]


def unseen_values(features: pd.DataFrame, known: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Category column -> number of lesions with a value that training did not have; columns without any are absent."""
    counts = {name: int((~features[name].isin(values)).sum()) for name, values in known.items()}
    return {name: count for name, count in counts.items() if count}


def tabular_logits(
    models: Sequence[tuple[CatBoostClassifier, float]], features: pd.DataFrame, categories: Sequence[str]
) -> np.ndarray:
    """Mean logits over the models.

    Args:
        models: pairs of model and prior correction, as ``load_models`` gives them.
        features: exactly the models' columns, in their order (``select_features``).
        categories: which of the columns are categorical; values unseen in training are allowed.

    Returns:
        Shape (rows,), float64, natural logits.
    """
    if not len(features):
        return np.zeros(0)
    pool = Pool(features, cat_features=list(categories))
    return np.mean([model.predict(pool, prediction_type="RawFormulaVal") + shift for model, shift in models], axis=0)
