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
#: How log-odds become the final ones where nothing else is said.
AS_THEY_ARE = {"seen": {"intercept": 0.0, "tabular": 0.0, "fusion": 1.0}, "unseen": {"intercept": 0.0, "tabular": 1.0}}


def combine(how: dict[str, Any], tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One score per lesion.

    Args:
        how: "kind" is one of ``COMBINATIONS``. For the fusion alone and for a blend, "seen" has an intercept and weights of
            the tabular and the fusion log-odds, "unseen" an intercept and the weight of the tabular ones for lesions whose
            image no network has seen: both lead to log-odds on one scale. Where they are absent, ``AS_THEY_ARE``.
        tabular: tabular log-odds, shape (rows,).
        fusion: mean log-odds of the fusion networks, shape (rows,); read where ``seen`` only.
        seen: whether a network has seen the lesion's image, bool of shape (rows,).

    Returns:
        Shape (rows,), float64: log-odds, on one scale for lesions with and without an image. An average of ranks depends on
        the rows that it is made of; it comes as the logit of the average rank.

    Raises:
        InputError: ``how`` is none of these.
    """
    kind = how.get("kind")
    if kind == RANK_AVERAGE:
        single = np.where(seen, fusion, tabular)
        return logit((rankdata(tabular) + rankdata(single)) / (2 * (len(single) + 1)))
    if kind in (FUSION_ALONE, BLEND):
        given, ungiven = ((AS_THEY_ARE | how)[name] for name in ("seen", "unseen"))
        with_image = given["intercept"] + given["tabular"] * tabular + given["fusion"] * np.where(seen, fusion, 0.0)
        return np.where(seen, with_image, ungiven["intercept"] + ungiven["tabular"] * tabular)
    raise InputError(
        f"the manifest combines the scores by {kind!r}, this code knows {', '.join(COMBINATIONS)}; train again."
    )
