"""The combination of the stages' logits into the final one, chosen by nested cross-validation.

Lesions come as a table with the columns of oof_fusion.csv: isic_id, target, fold, the out-of-fold logits ``tabular``,
``network`` and, after train.stacking, ``context`` and ``stacking``, and image_scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from inference.schema import TARGET
from inference.scoring import FINAL, IN_CONTEXT, NETWORK, STACKING, TABULAR, combine
from utils import ScoreTable, partial_auc

BLEND, BLEND_IN_CONTEXT, MEAN = "blend", "context", "mean"
#: Kind -> the logits that are weighed. ``MEAN`` is the mean of ``BLEND_IN_CONTEXT`` and the last stage.
WEIGHED = {
    "tabular": (TABULAR,),
    "network": (NETWORK,),
    BLEND: (TABULAR, NETWORK),
    BLEND_IN_CONTEXT: (TABULAR, NETWORK, IN_CONTEXT),
    "stacking": (STACKING,),
}
#: What can be chosen once the networks are there, and once the last stage is there, too; of equally good ones the first.
OF_NETWORKS = ("network", BLEND, "tabular")
OF_ALL = ("network", BLEND, BLEND_IN_CONTEXT, "stacking", MEAN, "tabular")


@dataclass(frozen=True)
class Combination:
    """The combination for the kernel, and the out-of-fold scores that it was chosen by.

    Args:
        settings: as ``inference.scoring.combine`` reads it, with the reason.
        scores: of ``nested_scores``.
    """

    settings: dict[str, Any]
    scores: dict[str, np.ndarray]


def choose_combination(rows: pd.DataFrame, kinds: Sequence[str], only: str | None = None) -> Combination:
    """The combination with the highest pAUC out of fold, fitted on all folds; ``only``, if given."""
    scores = nested_scores(rows, kinds)
    paucs = {kind: partial_auc(rows[TARGET], scores[kind]) for kind in kinds}
    best = only or max(kinds, key=paucs.__getitem__)
    found = ", ".join(f"{kind} {paucs[kind]:.4f}" for kind in kinds)
    reason = f"{'asked for' if only else 'highest pAUC out of fold'}, nested: {found}"
    return Combination({"kind": best, "reason": reason} | fit_combination(best, rows), scores)


def nested_scores(rows: pd.DataFrame, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Every combination's scores out of fold, and those of the combination chosen without the fold.

    A fold's weights are fitted on the other folds. The models behind those folds' scores were trained on the fold's lesions,
    as in every stacking of out-of-fold scores (Wolpert 1992, Stacked Generalization): a few weights and a choice leak next
    to nothing.

    Returns:
        Name -> shape (rows,): ``kinds`` in logits, and ``FINAL`` as a percentile, 0 to 1, of its combination's scores,
        because folds with different choices must share a scale.
    """
    scores = {kind: np.zeros(len(rows)) for kind in kinds}
    chosen = np.zeros(len(rows), dtype=int)
    for fold in rows["fold"].unique():
        inside = (rows["fold"] == fold).to_numpy()
        others, paucs = rows[~inside], []
        for kind in kinds:
            # A single score's weight would change no rank within the fold, only between folds.
            how = as_it_is(kind) if len(WEIGHED.get(kind, ())) == 1 else fit_combination(kind, others)
            scores[kind][inside] = combine(how, rows[inside], rows["image_scored"][inside])
            paucs.append(partial_auc(others[TARGET], combine(how, others, others["image_scored"])))
        chosen[inside] = np.argmax(paucs)
    percentiles = np.stack([rankdata(scores[kind]) / len(rows) for kind in kinds])
    return scores | {FINAL: percentiles[chosen, np.arange(len(rows))]}


def as_it_is(kind: str) -> dict[str, dict[str, float]]:
    """One stage's logits, unchanged; the tabular ones where there is no image score."""
    return {"with_image": {"intercept": 0.0, WEIGHED[kind][0]: 1.0}, "without_image": {"intercept": 0.0, TABULAR: 1.0}}


def fit_combination(kind: str, rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """A combination's intercepts and weights, as ``inference.scoring.combine`` reads them.

    They are those of logistic regressions without penalty on out-of-fold logits. For a single score they change no rank
    among lesions with an image, nor among those without: they put both on one scale. A weight below zero would turn a score
    round; logits then stay as they are.

    Args:
        kind: of ``OF_ALL``.
        rows: both classes present, also where ``image_scored``.
    """
    if kind == MEAN:
        blend, stacking = fit_combination(BLEND_IN_CONTEXT, rows), fit_combination("stacking", rows)
        total = Counter(blend["with_image"])
        total.update(stacking["with_image"])
        return blend | {"with_image": {name: value / 2 for name, value in total.items()}}
    names = WEIGHED[kind]
    absent = regression(rows, (TABULAR,))
    if absent[TABULAR] <= 0:
        absent = as_it_is("tabular")["without_image"]
    given = regression(rows[rows["image_scored"].astype(bool)], names)
    if len(names) == 1 and given[names[0]] <= 0:
        return as_it_is(kind)
    return {"with_image": given, "without_image": absent}


def regression(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Intercept and weights, by name, of a logistic regression without penalty on the logits ``names``."""
    model = LogisticRegression(penalty=None, max_iter=1000).fit(rows[list(names)].to_numpy("float64"), rows[TARGET])
    return {"intercept": float(model.intercept_[0])} | dict(zip(names, map(float, model.coef_[0]), strict=True))


def scores_section(results: ScoreTable) -> dict[str, dict[str, Any]]:
    """The scores for the manifest, by name: pAUC, its interval, and the paired difference to the tabular score."""
    section = {}
    for name, score in results.scores.items():
        gain = results.difference(name, TABULAR)
        section[name] = {
            "pauc": score.pauc.value,
            "interval": [score.pauc.low, score.pauc.high],
            "difference_to_tabular": [gain.value, gain.low, gain.high],
        }
    return section


def difference_line(results: ScoreTable, a: str, b: str) -> str:
    """The paired difference of two scores, in words."""
    gain = results.difference(a, b)
    return f"{a} - {b}, paired: {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] pAUC out of fold"
