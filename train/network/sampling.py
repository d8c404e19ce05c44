"""Which lesions an epoch has and what each weighs: four ways to train with one malignant lesion among a thousand.

Three of them change the odds in the loss by a known factor. The loss adds its logarithm, the prior correction, to the
network's logits, so that the network learns logits at the natural prevalence, on the scale of the tabular logits (King and
Zeng 2001, Logistic Regression in Rare Events Data).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from train.archives.diagnoses import GROUPS

#: A diagnosis group with fewer lesions is not learned.
GROUP_LESIONS = 20
IMBALANCE_MODES = ("undersample", "oversample", "class-weight", "focal")


@dataclass(frozen=True)
class Imbalance:
    """How rare malignant lesions are treated.

    undersample: all malignant lesions, ``per_positive`` times as many benign ones, drawn anew every epoch.
    oversample: all benign lesions, the malignant ones repeated until there are ``per_positive`` benign to each.
    class-weight: every lesion once; malignant ones weigh as much as if there were ``per_positive`` benign to each.
    focal: every lesion once; the focal loss with the exponent ``gamma`` (Lin et al. 2017, Focal Loss).
    """

    mode: str = "undersample"
    per_positive: float = 1.0
    gamma: float = 2.0

    def draw(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions of one epoch's lesions, shuffled, int64 of shape (rows of the epoch,).

        Args:
            labels: 0/1, shape (rows,), both present.
            rng: draws and shuffles.
        """
        positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        if self.mode == "undersample":
            negatives = rng.choice(negatives, self._negatives_in_epoch(labels), replace=False)
        elif self.mode == "oversample":
            times, rest = divmod(self._positives_in_loss(labels), len(positives))
            positives = np.concatenate([np.tile(positives, times), rng.choice(positives, rest, replace=False)])
        return rng.permutation(np.concatenate([positives, negatives]))

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """The weight of each lesion of ``labels`` in the loss, shape (rows,), with a mean of one over all of them."""
        weights = np.ones(len(labels))
        if self.mode == "class-weight":
            weights[labels == 1] = self._positives_in_loss(labels) / int((labels == 1).sum())
        return weights / weights.mean()

    def prior_correction(self, labels: np.ndarray) -> float:
        """How much higher the logits of the malignant class are in the loss than in ``labels``."""
        if self.mode == "undersample":
            return math.log(int((labels == 0).sum()) / self._negatives_in_epoch(labels))
        return math.log(self._positives_in_loss(labels) / int((labels == 1).sum()))

    def focal_exponent(self) -> float:
        """The exponent of the focal loss; 0 for binary cross-entropy."""
        return self.gamma if self.mode == "focal" else 0.0

    def _negatives_in_epoch(self, labels: np.ndarray) -> int:
        """How many benign lesions an undersampled epoch has, at least one."""
        return max(1, min(int((labels == 0).sum()), round(self.per_positive * int((labels == 1).sum()))))

    def _positives_in_loss(self, labels: np.ndarray) -> int:
        """How many malignant lesions an epoch has, or how many its malignant ones weigh, where all benign ones are in it."""
        positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
        return max(positives, round(negatives / self.per_positive)) if self.mode != "focal" else positives


def frequent_groups(groups: np.ndarray) -> np.ndarray:
    """The diagnosis groups that ``GROUP_LESIONS`` lesions or more have, ascending.

    Args:
        groups: positions in ``train.archives.diagnoses.GROUPS``, shape (rows,).
    """
    counts = np.bincount(groups, minlength=len(GROUPS))
    counts[GROUPS.index("")] = 0
    return np.flatnonzero(counts >= GROUP_LESIONS)
