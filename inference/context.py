"""Each lesion beside the other lesions of its group: sizes, standard scores, percentile ranks and a local-outlier score.

Arrays in, arrays out; which columns and groups are looked at is decided in ``features``. Every function gives a row the same
value whether its group comes alone or among a thousand others.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

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
        values: shape (rows, columns), float64; NaN is unknown and stays NaN.
        codes: shape (rows,), the group of each row.

    Returns:
        Shape (rows, columns). 0 where the group does not vary (one lesion, or all alike).
    """
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)[order]
    count = np.maximum(np.add.reduceat(known[order].astype("float64"), starts), 1)
    mean = np.add.reduceat(filled, starts) / count
    position = np.empty(len(codes), dtype=np.intp)
    position[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(codes))))
    # The second pass over the centred values keeps the variance exact where the mean is large beside it.
    centred = np.where(known, values - mean[position], 0.0)
    deviation = np.sqrt(np.add.reduceat((centred**2)[order], starts) / count)[position]
    scale = np.abs(mean)[position] * 1e-9 + 1e-9
    return np.where(known, np.where(deviation > scale, centred / np.maximum(deviation, scale), 0.0), np.nan)


def percentile_ranks(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(rank - 0.5) / known values of the group, ties sharing their mean rank: 0.5 for a lesion alone.

    Args:
        values: shape (rows, columns), float64; what is not finite is unknown, is not counted, and becomes NaN.
        codes: shape (rows,), the group of each row.

    Returns:
        Shape (rows, columns), float64.
    """
    by_column = np.ascontiguousarray(values.T)
    # By value, then stably by group: small integers are sorted by counting, which is several times faster.
    keys = codes.astype("uint16") if codes.max(initial=0) <= np.iinfo("uint16").max else codes
    order = np.argsort(by_column, axis=1)
    order = np.take_along_axis(order, np.argsort(keys[order], axis=1, kind="stable"), axis=1)
    sorted_values = np.take_along_axis(by_column, order, axis=1)
    known = np.isfinite(sorted_values)
    group = np.where(known, codes[order], -1)
    new_group = np.diff(group, axis=1, prepend=-2) != 0  # true at the start of a column
    new_value = new_group | (np.diff(sorted_values, axis=1, prepend=np.nan) != 0)
    group_start, group_size = _runs(new_group)
    tie_start, tie_size = _runs(new_value)
    shares = np.repeat(tie_start + tie_size / 2, tie_size) - np.repeat(group_start, group_size)
    shares /= np.repeat(group_size, group_size)
    ranks = np.empty(by_column.shape)
    np.put_along_axis(ranks, order, np.where(known, shares.reshape(known.shape), np.nan), axis=1)
    return ranks.T


def _runs(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the flat array where a run begins, and the runs' lengths."""
    starts = np.flatnonzero(begins)
    return starts, np.diff(np.append(starts, begins.size))


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
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    ends = np.cumsum(sizes)
    points = np.where(np.isfinite(points), points, 0.0)[order].astype("float32")
    # float32 takes 40 % off the time, at a cost of some 3e-7 of a score. One workspace for all: fresh memory for each block
    # takes longer than the sums in it.
    space = np.empty(max(CELLS, sizes.max(initial=0)), "float32")
    scores = np.ones(len(codes))
    for group in np.flatnonzero(sizes >= max(smallest, 2)):
        rows = slice(ends[group] - sizes[group], ends[group])
        distances = neighbour_distances(points[rows], space)
        median = np.median(distances)
        if median > 0:
            scores[order[rows]] = distances / median
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
