"""How the tabular and the fusion log-odds become one score: as training found best out of fold, and the manifest says."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logit
from scipy.stats import rankdata

from inference.files import InputError

#: The fusion networks alone; the mean of both ranks; weights for both log-odds.
FUSION_ALONE, RANK_AVERAGE, BLEND = "fusion", "rank average", "blend"
COMBINATIONS = (FUSION_ALONE, RANK_AVERAGE, BLEND)


def combine(how: dict[str, Any], tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One score per lesion.

    Args:
        how: "kind" is one of ``COMBINATIONS``; a blend has "intercept" and the weights "tabular" and "fusion" beside it.
        tabular: tabular log-odds, shape (rows,).
        fusion: mean log-odds of the fusion networks, shape (rows,); read where ``seen`` only.
        seen: whether a network has seen the lesion's image, bool of shape (rows,).

    Returns:
        Shape (rows,), float64: log-odds, on one scale for lesions with and without an image. An average of ranks depends on
        the rows that it is made of; it comes as the logit of the average rank.

    Raises:
        InputError: ``how`` is none of these.
    """
    single = np.where(seen, fusion, tabular)
    kind = how.get("kind")
    if kind == FUSION_ALONE:
        return single
    if kind == RANK_AVERAGE:
        return logit((rankdata(tabular) + rankdata(single)) / (2 * (len(single) + 1)))
    if kind == BLEND:
        blended = how["intercept"] + how["tabular"] * tabular + how["fusion"] * single
        return np.where(seen, blended, tabular)
    raise InputError(
        f"the manifest combines the scores by {kind!r}, this code knows {', '.join(COMBINATIONS)}; train again."
    )
