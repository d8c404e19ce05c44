"""Each lesion beside the other lesions of its group: sizes, standard scores, percentile ranks and a local-outlier score.

Arrays in, arrays out; which columns and groups are looked at is decided in ``features``. Every function gives a row the same
value whether its group comes alone or among a thousand others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import rankdata

#: Neighbours that a lesion's distance is averaged over, as the competition's winner had it for the local outlier factor.
NEIGHBOURS = 30
#: Squared distances held at once (where 9,000 lesions of one patient would have 81 million). A product of so few, over a
#: dozen columns, OpenBLAS does in one thread (up to 262,144 multiplications); with more, its threads wait for each other at
#: each of the thousand patients: five times the processor time on two busy cores.
CELLS = 1 << 14
#: A squared distance below this share of the squared length is float32's rounding of two lesions that are alike.
ROUNDING = 4e-6


def group_codes(keys: pd.Series) -> np.ndarray:
    """Integer codes 0..groups-1, one per row, in order of first appearance."""
    return pd.factorize(keys)[0]


def group_sizes(codes: np.ndarray) -> np.ndarray:
    """How many rows share each row's group, shape (rows,), float64."""
    return np.bincount(codes)[codes].astype("float64")


def standard_scores(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(value - group mean) / group standard deviation, column by column at once.

    Args:
        values: shape (rows, columns), float64; what is not finite is unknown and becomes NaN.
        codes: shape (rows,), the group of each row.

    Returns:
        Shape (rows, columns). 0 where the group does not vary (one lesion, or all alike).
    """
    known = np.isfinite(values)
    mean = _group_means(np.where(known, values, np.nan), codes)
    centred = np.where(known, values - mean, np.nan)
    # The second pass over the centred values keeps the variance exact where the mean is large beside it.
    with np.errstate(over="ignore"):  # of numbers that no scanner gives; their scores are 0
        deviation = np.sqrt(_group_means(centred**2, codes))
    scale = np.abs(mean) * 1e-9 + 1e-9
    return np.where(known, np.where(deviation > scale, centred / np.maximum(deviation, scale), 0.0), np.nan)


def _group_means(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The mean of each row's group, column by column, NaN not counted; shape of ``values``."""
    return pd.DataFrame(values).groupby(codes, sort=False).transform("mean").to_numpy()


def percentile_ranks(values: np.ndarray, codes: np.ndarray, smallest: int = 1) -> np.ndarray:
    """(rank - 0.5) / known values of the group, ties sharing their mean rank: 0.5 for a lesion alone.

    Args:
        values: shape (rows, columns), float64; what is not finite is unknown, is not counted, and becomes NaN.
        codes: shape (rows,), the group of each row.
        smallest: in groups of fewer rows every rank is 0.5.

    Returns:
        Shape (rows, columns), float64.
    """
    ranks = np.full(values.shape, 0.5)
    for rows in groups_of(codes, smallest):
        known = np.isfinite(values[rows])
        # Unknown values, taken for infinite, rank behind all known ones and change none of their ranks.
        places = rankdata(np.where(known, values[rows], np.inf), axis=0)
        ranks[rows] = np.where(known, (places - 0.5) / np.maximum(known.sum(axis=0), 1), np.nan)
    return ranks


def groups_of(codes: np.ndarray, smallest: int) -> Iterator[np.ndarray]:
    """The positions of each group's rows, for the groups of at least ``smallest``.

    Group by group, the work grows with the rows alone, where sorting all rows at once grows faster than they do.
    """
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    ends = np.cumsum(sizes)
    for group in np.flatnonzero(sizes >= max(smallest, 1)):
        yield order[ends[group] - sizes[group] : ends[group]]


def outlier_scores(points: np.ndarray, codes: np.ndarray, smallest: int) -> np.ndarray:
    """How lonely a lesion lies among its group's: its mean distance to its nearest others, by the group's median of that.

    The mean distance to the k nearest is the outlier weight of Angiulli and Pizzuti (2002, Fast outlier detection in high
    dimensional spaces). Unlike the local outlier factor it needs no choice among neighbours at equal distance, so it does
    not depend on the order of rows and has no division by zero where lesions are alike.

    Args:
        points: shape (rows, columns), standard scores within the group; what is not finite counts as the group's mean, 0.
        codes: shape (rows,), the group of each row.
        smallest: groups of fewer rows have no score.

    Returns:
        Shape (rows,), float64, at least 0: around 1 for an ordinary lesion, more for one that lies apart. 1 in a group that
        is too small, and in one whose median distance is 0, which has no scale.
    """
    points = np.where(np.isfinite(points), points, 0.0).astype("float32")
    # float32 takes 40 % off the time, at a cost of some 3e-7 of a score. One workspace for all: fresh memory for each block
    # takes longer than the sums in it.
    space = np.empty(max(CELLS, np.bincount(codes).max(initial=0)), "float32")
    scores = np.ones(len(codes))
    for rows in groups_of(codes, max(smallest, 2)):
        distances = neighbour_distances(points[rows], space)
        median = np.median(distances)
        if median > 0:
            scores[rows] = distances / median
    return scores


def neighbour_distances(points: np.ndarray, space: np.ndarray) -> np.ndarray:
    """Mean Euclidean distance of each point to its ``NEIGHBOURS`` nearest others, or to all when there are fewer.

    Args:
        points: shape (rows, columns), float32, finite, at least two rows.
        space: at least ``rows`` float32 to work in; more of it makes larger blocks.

    Returns:
        Shape (rows,), float64.
    """
    count = len(points)
    nearest = min(NEIGHBOURS, count - 1)
    lengths = np.einsum("ij,ij->i", points, points)
    doubled = np.ascontiguousarray(-2 * points.T)
    means = np.empty(count)
    step = len(space) // count
    for start in range(0, count, step):
        block = np.arange(start, min(start + step, count))
        squares = space[: len(block) * count].reshape(len(block), count)
        np.matmul(points[block], doubled, out=squares)  # |a - b|^2 - |a|^2 = |b|^2 - 2 a.b
        squares += lengths
        squares[block - start, block] = np.inf
        squares.partition(nearest - 1, axis=1)
        near = squares[:, :nearest] + lengths[block, None]
        near[near <= ROUNDING * lengths[block, None]] = 0.0
        means[block] = np.sqrt(near).mean(axis=1, dtype="float64")
    return means
