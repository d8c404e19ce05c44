"""Image scores in the context of the patient, as features of a last CatBoost stage.

All winners of the ISIC 2024 challenge put the image networks' out-of-fold scores back into gradient-boosted trees. A score
relative to the patient's other lesions ("ugly duckling") knows more than the score alone. Training and the kernel call the
same ``logit_features``. The winner's quotient by the patient's mean is not among them: it divides by a number near zero.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from inference.features import finite_float32, group_codes, percentile_ranks, standard_scores

#: How many of the patient's lesions have all scores.
SCORED_LESIONS = "scored_lesions"


def logit_features(logits: pd.DataFrame, patients: pd.Series | None = None) -> pd.DataFrame:
    """The features of each stage's logits: by themselves, and relative to those of the patient's other lesions.

    Args:
        logits: a column for the tabular stage and for each network, float64; NaN where no network scored the lesion.
        patients: of the same rows, shape (rows,); None where they are unknown: every lesion is then compared with none.

    Returns:
        float32, index of ``logits``; for each column ``NAME_logit``, ``NAME_z_patient`` (standard score within the patient,
        0 where the patient's scores do not vary or there is one) and ``NAME_rank_patient`` (percentile rank, 0.5 for one
        alone), NaN where the logit is; and ``SCORED_LESIONS``.
    """
    codes = np.arange(len(logits)) if patients is None else group_codes(patients)
    values = logits.to_numpy("float64")
    scores, ranks = standard_scores(values, codes), percentile_ranks(values, codes)
    scored = np.isfinite(values).all(axis=1)
    features = {SCORED_LESIONS: np.bincount(codes, scored)[codes]}
    for i, name in enumerate(logits):
        features |= {f"{name}_logit": values[:, i], f"{name}_z_patient": scores[:, i], f"{name}_rank_patient": ranks[:, i]}
    return pd.DataFrame({name: finite_float32(column) for name, column in features.items()}, index=logits.index)
