"""The logit of malignancy of every synthetic lesion, known by construction.

It is the sum of a lesion part (its own columns), a context part (how they differ from the patient's other lesions) and a
texture part (only the image shows it).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from inference.schema import PATIENT

Floats = NDArray[np.float64]

#: Variance of the three parts of the logits of malignancy over lesions, set so that at the competition's size and
#: prevalence the best possible pAUC is about 0.18 with the image, 0.15 without it, and 0.12 from the lesion part alone.
LESION_VARIANCE, CONTEXT_VARIANCE, TEXTURE_VARIANCE = 1.0, 1.9, 2.9
#: Weights of the standardised columns within a part: directions and proportions as the malignant differ in the real file.
LESION_WEIGHTS = {
    "hue": -0.30, "skin_hue": -0.45, "deltaB": -0.15, "size": 0.20, "age": 0.25, "head": 0.30, "white": 0.25,
}  # fmt: skip
CONTEXT_WEIGHTS = {"hue": -0.7, "size": 0.5, "variation": 0.25}
OUTLIER = 3.0  # standard deviations at which a signal is clipped


def malignancy(rows: pd.DataFrame, texture: Floats, prevalence: float) -> pd.DataFrame:
    """Probability of malignancy of each row, with mean ``prevalence``; its logit and the logit's three parts.

    Args:
        rows: lesions as ``make_rows`` gives them.
        texture: the latent strength of the texture in each lesion's image, standard normal, shape (rows,).
        prevalence: mean probability, between 0 and 1.
    """
    signals = pd.DataFrame(
        {
            "hue": rows["tbp_lv_H"],
            "skin_hue": rows["tbp_lv_Hext"],
            "deltaB": rows["tbp_lv_deltaB"],
            "size": np.log(rows["tbp_lv_areaMM2"]),
            "variation": np.sqrt(rows["tbp_lv_color_std_mean"]),
            "age": rows["age_approx"].fillna(rows["age_approx"].mean()),
            "head": (rows["anatom_site_general"] == "head/neck").astype(float),
            "white": (rows["tbp_tile_type"] == "3D: white").astype(float),
        }
    )
    alone = (signals - signals.mean()) / (signals.std(ddof=0) + 1e-5)
    patient = signals.groupby(rows[PATIENT].to_numpy())
    among_own = ((signals - patient.transform("mean")) / (patient.transform("std", ddof=0) + 1e-5)).fillna(0.0)
    parts = pd.DataFrame(
        {
            "lesion_part": _scaled(_weighted(alone, LESION_WEIGHTS), LESION_VARIANCE, centre=True),
            "context_part": _scaled(_weighted(among_own, CONTEXT_WEIGHTS), CONTEXT_VARIANCE, centre=False),
            "texture_part": np.sqrt(TEXTURE_VARIANCE) * texture,
        }
    )
    relative = parts.sum(axis=1).to_numpy()
    logits = relative + _intercept(relative, prevalence)
    return pd.concat([pd.DataFrame({"probability": _sigmoid(logits), "logit": logits}), parts], axis=1)


def _weighted(signals: pd.DataFrame, weights: dict[str, float]) -> Floats:
    """Weighted sum of the signals, each clipped at OUTLIER."""
    return signals[list(weights)].clip(-OUTLIER, OUTLIER).to_numpy() @ np.array(list(weights.values()))


def _scaled(part: Floats, variance: float, *, centre: bool) -> Floats:
    """``part`` scaled to a variance, and shifted to mean 0 only if ``centre``."""
    deviation = part.std()
    part = part - part.mean() if centre else part
    return part * (np.sqrt(variance) / deviation if deviation > 0 else 0.0)


def _intercept(relative: Floats, prevalence: float) -> float:
    """The constant that gives the logits a mean probability of ``prevalence``, by bisection."""
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _sigmoid(relative + middle).mean() < prevalence else (low, middle)
    return (low + high) / 2.0


def _sigmoid(logits: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logits))
