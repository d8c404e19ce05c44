"""Which combination of the tabular and the fusion scores the kernel uses, and what it is worth: both by nested folds."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from inference.combination import AS_THEY_ARE, BLEND, COMBINATIONS, FUSION_ALONE, RANK_AVERAGE, combine
from utils import partial_auc

#: The name of the score whose kind of combination, too, was chosen without the fold that it is measured on.
CHOSEN = "chosen without the fold"


def fit(kind: str, labels: np.ndarray, tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """A combination with its weights, as ``inference.combination.combine`` reads it.

    The weights are those of logistic regressions without penalty on out-of-fold log-odds. Those of the fusion alone change
    no rank among lesions with an image, nor do those of the others among themselves: they bring both on one scale.

    Args:
        kind: one of ``COMBINATIONS``.
        labels: 0/1, both present where ``seen``, shape (rows,).
        tabular: out-of-fold log-odds, shape (rows,).
        fusion: likewise, where ``seen``.
        seen: bool, shape (rows,).
    """
    if kind == RANK_AVERAGE:
        return {"kind": kind}
    unseen = regression(labels, tabular=tabular)
    names = {"tabular": tabular[seen], "fusion": fusion[seen]} if kind == BLEND else {"fusion": fusion[seen]}
    found = {"seen": {"tabular": 0.0} | regression(labels[seen], **names), "unseen": unseen}
    if unseen["tabular"] <= 0 or (kind == FUSION_ALONE and found["seen"]["fusion"] <= 0):
        found = AS_THEY_ARE if kind == FUSION_ALONE else found | {"unseen": AS_THEY_ARE["unseen"]}  # worse than guessing
    return {"kind": kind} | found


def regression(labels: np.ndarray, **log_odds: np.ndarray) -> dict[str, float]:
    """Intercept and weights by name of a logistic regression without penalty."""
    model = LogisticRegression(penalty=None, max_iter=1000).fit(np.column_stack(list(log_odds.values())), labels)
    return {"intercept": float(model.intercept_[0])} | dict(zip(log_odds, map(float, model.coef_[0]), strict=True))


def nested_scores(
    labels: np.ndarray, fold: np.ndarray, tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray
) -> dict[str, np.ndarray]:
    """Every combination's scores out of fold, and those of the one that would have been chosen without the fold.

    A fold's blend is fitted on the other folds. The networks behind those folds' scores have seen the fold's lesions, as in
    every stacking of out-of-fold scores (Wolpert 1992, Stacked Generalization): two weights and a choice leak next to
    nothing of it.

    Args:
        labels: 0/1, shape (rows,).
        fold: 0, 1, ..., shape (rows,).
        tabular: out-of-fold log-odds, shape (rows,).
        fusion: likewise, where ``seen``.
        seen: bool, shape (rows,).

    Returns:
        Name -> shape (rows,): ``COMBINATIONS`` in log-odds, and ``CHOSEN`` as a percentile, 0 to 1, of its combination's
        scores, because folds that chose differently must share a scale.
    """
    scores = {kind: combine({"kind": kind}, tabular, fusion, seen) for kind in (FUSION_ALONE, RANK_AVERAGE)}
    scores[BLEND] = np.zeros(len(labels))
    chosen = np.zeros(len(labels), dtype=int)
    for number in np.unique(fold):
        inside = fold == number
        blend = fit(BLEND, labels[~inside], tabular[~inside], fusion[~inside], seen[~inside])
        scores[BLEND][inside] = combine(blend, tabular[inside], fusion[inside], seen[inside])
        others = {kind: scores[kind][~inside] for kind in (FUSION_ALONE, RANK_AVERAGE)}
        others[BLEND] = combine(blend, tabular[~inside], fusion[~inside], seen[~inside])
        chosen[inside] = np.argmax([partial_auc(labels[~inside], others[kind]) for kind in COMBINATIONS])
    percentiles = np.stack([rankdata(scores[kind]) / len(labels) for kind in COMBINATIONS])
    return scores | {CHOSEN: percentiles[chosen, np.arange(len(labels))]}


def choose(
    labels: np.ndarray, tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray, scores: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the kernel does, for the manifest: the best of ``nested_scores`` out of fold, its weights from all folds.

    Returns:
        As ``inference.combination.combine`` reads it, with the reason under "why".
    """
    paucs = {kind: partial_auc(labels, scores[kind]) for kind in COMBINATIONS}
    best = max(COMBINATIONS, key=paucs.__getitem__)  # the first of equals: the simplest
    how = fit(best, labels, tabular, fusion, seen)
    told = ", ".join(f"{kind} {paucs[kind]:.4f}" for kind in COMBINATIONS)
    return how | {"why": f"the highest pAUC out of fold, the blend by nested folds: {told}"}
