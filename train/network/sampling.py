"""Which lesions an epoch sees, and how much each counts: four ways to live with one malignant lesion among a thousand.

Three of them change the odds that the loss sees, by a factor that is known. The loss adds its logarithm to the network's
logits, so that what the network learns are logits at the natural prevalence, on the scale of the tabular score (King and
Zeng 2001, Logistic Regression in Rare Events Data).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

IMBALANCE_MODES = ("undersample", "oversample", "class-weight", "focal")


@dataclass(frozen=True)
class Imbalance:
    """What is done about rare malignant lesions.

    undersample: all malignant lesions, ``per_positive`` times as many benign ones, drawn anew every epoch.
    oversample: all benign lesions, the malignant ones repeated until there are ``per_positive`` benign to each.
    class-weight: every lesion once; malignant ones weigh as much as if there were ``per_positive`` benign to each.
    focal: every lesion once; the loss turns to the hard ones with the exponent ``gamma`` (Lin et al. 2017, Focal Loss).
    """

    mode: str = "undersample"
    per_positive: float = 1.0
    gamma: float = 2.0

    def draw(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions of one epoch's lesions, shuffled.

        Args:
            labels: 0/1, shape (rows,), both present.
            rng: draws and shuffles.
        """
        positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        if self.mode == "undersample":
            negatives = rng.choice(negatives, negatives_drawn(labels, self.per_positive), replace=False)
        elif self.mode == "oversample":
            times, rest = divmod(self._positives_shown(labels), len(positives))
            positives = np.concatenate([np.tile(positives, times), rng.choice(positives, rest, replace=False)])
        return rng.permutation(np.concatenate([positives, negatives]))

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """What each lesion of ``labels`` counts in the loss, shape (rows,), with a mean of one over all of them."""
        weights = np.ones(len(labels))
        if self.mode == "class-weight":
            weights[labels == 1] = self._positives_shown(labels) / int((labels == 1).sum())
        return weights / weights.mean()

    def shift(self, labels: np.ndarray) -> float:
        """By how much the logits that the loss sees are raised over the natural ones of ``labels``."""
        positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
        if self.mode == "undersample":
            return math.log(negatives / negatives_drawn(labels, self.per_positive))
        return math.log(self._positives_shown(labels) / positives)

    def _positives_shown(self, labels: np.ndarray) -> int:
        """How many malignant lesions an epoch shows, or is worth, where all benign ones are in it."""
        positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
        return max(positives, round(negatives / self.per_positive)) if self.mode != "focal" else positives


def draw_epoch(labels: np.ndarray, per_positive: float, rng: np.random.Generator) -> np.ndarray:
    """Positions of one epoch's lesions, shuffled: all malignant ones, ``per_positive`` times as many benign ones."""
    return Imbalance("undersample", per_positive).draw(labels, rng)


def negatives_drawn(labels: np.ndarray, per_positive: float) -> int:
    """How many benign lesions an epoch draws, at least one."""
    return max(1, min(int((labels == 0).sum()), round(per_positive * int((labels == 1).sum()))))
