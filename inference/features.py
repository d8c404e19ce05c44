"""Metadata rows -> feature table: each lesion by itself, then relative to the patient's others (the "ugly duckling" sign).

Training and the kernel call the same ``build_features``. A lesion's features depend on the rows of its own patient only,
so they are the same whether the patient comes alone or among a thousand others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from inference.schema import CATEGORIES, MISSING, NUMBERS, PATIENT

#: Categories that help: ``image_type`` is constant and ``copyright_license`` is a function of the hospital.
MODEL_CATEGORIES = tuple(name for name in CATEGORIES if name not in ("image_type", "copyright_license"))

#: Name -> (columns, formula). Sources: the public notebooks of the competition and its prize winners; columns that only
#: repeat another one (C, H, area_perim_ratio and the deltas are functions of others already) are left out.
ENGINEERED: dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]] = {
    "size_ratio": (("tbp_lv_minorAxisMM", "clin_size_long_diam_mm"), lambda minor, size: minor / size),
    "hue_contrast": (("tbp_lv_H", "tbp_lv_Hext"), lambda h, h_ext: h - h_ext),
    "color_difference": (
        ("tbp_lv_deltaA", "tbp_lv_deltaB", "tbp_lv_deltaL"),
        lambda d_a, d_b, d_l: np.sqrt(d_a**2 + d_b**2 + d_l**2),
    ),
    "border_complexity": (("tbp_lv_norm_border", "tbp_lv_symm_2axis"), lambda border, symm: border + symm),
    "color_uniformity": (
        ("tbp_lv_color_std_mean", "tbp_lv_radial_color_std_max"),
        lambda mean, radial: mean / (radial + 1e-5),
    ),
    "position_distance": (("tbp_lv_x", "tbp_lv_y", "tbp_lv_z"), lambda x, y, z: np.sqrt(x**2 + y**2 + z**2)),
    "perimeter_to_area": (("tbp_lv_perimeterMM", "tbp_lv_areaMM2"), lambda perimeter, area: perimeter / area),
    "visibility": (("tbp_lv_deltaLBnorm", "tbp_lv_norm_color"), lambda contrast, color: contrast + color),
    "symmetry_border": (("tbp_lv_symm_2axis", "tbp_lv_norm_border"), lambda symm, border: symm * border),
    "color_consistency": (("tbp_lv_stdL", "tbp_lv_Lext"), lambda std, l_ext: std / l_ext),
    "size_age": (("clin_size_long_diam_mm", "age_approx"), lambda size, age: size * age),
    "hue_color_std": (("tbp_lv_H", "tbp_lv_color_std_mean"), lambda h, std: h * std),
    "severity": (
        ("tbp_lv_norm_border", "tbp_lv_norm_color", "tbp_lv_eccentricity"),
        lambda border, color, ecc: (border + color + ecc) / 3,
    ),
    "color_contrast_index": (
        ("tbp_lv_deltaA", "tbp_lv_deltaB", "tbp_lv_deltaL", "tbp_lv_deltaLBnorm"),
        lambda d_a, d_b, d_l, norm: d_a + d_b + d_l + norm,
    ),
    "size_for_age": (("clin_size_long_diam_mm", "age_approx"), lambda size, age: size / age),
    "orientation": (("tbp_lv_y", "tbp_lv_x"), lambda y, x: np.arctan2(y, x)),
    "color_variance_ratio": (("tbp_lv_color_std_mean", "tbp_lv_stdLExt"), lambda std, std_ext: std / std_ext),
    "border_color": (("tbp_lv_norm_border", "tbp_lv_norm_color"), lambda border, color: border * color),
    "size_contrast_ratio": (("clin_size_long_diam_mm", "tbp_lv_deltaLBnorm"), lambda size, norm: size / norm),
    "nevi_confidence_for_age": (("tbp_lv_nevi_confidence", "age_approx"), lambda nevi, age: nevi / age),
    "color_asymmetry": (("tbp_lv_radial_color_std_max", "tbp_lv_symm_2axis"), lambda radial, symm: radial * symm),
    "color_range": (
        ("tbp_lv_deltaL", "tbp_lv_deltaA", "tbp_lv_deltaB"),
        lambda d_l, d_a, d_b: np.abs(d_l) + np.abs(d_a) + np.abs(d_b),
    ),
    "shape_color": (("tbp_lv_eccentricity", "tbp_lv_color_std_mean"), lambda ecc, std: ecc * std),
}

#: Columns that are compared with the patient's other lesions: hue, colour, contrast, size and border, those by which the
#: organisers' paper and the prize winners found the ugly duckling.
CONTEXT = (
    "tbp_lv_H",
    "tbp_lv_Hext",
    "tbp_lv_L",
    "tbp_lv_A",
    "tbp_lv_B",
    "tbp_lv_deltaB",
    "tbp_lv_deltaLBnorm",
    "tbp_lv_stdL",
    "tbp_lv_color_std_mean",
    "tbp_lv_norm_color",
    "tbp_lv_norm_border",
    "tbp_lv_nevi_confidence",
    "clin_size_long_diam_mm",
    "tbp_lv_areaMM2",
    "tbp_lv_minorAxisMM",
    "tbp_lv_perimeterMM",
    "hue_contrast",
    "color_difference",
)
#: The space of the outlier score: of CONTEXT, those that do not repeat each other (area and perimeter follow from the two
#: diameters) and that are measured, not estimated by a network.
OUTLIER_SPACE = (
    "tbp_lv_H",
    "tbp_lv_L",
    "tbp_lv_A",
    "tbp_lv_B",
    "tbp_lv_deltaB",
    "tbp_lv_deltaLBnorm",
    "tbp_lv_stdL",
    "tbp_lv_color_std_mean",
    "tbp_lv_norm_border",
    "clin_size_long_diam_mm",
    "tbp_lv_minorAxisMM",
    "hue_contrast",
)
#: Groups of fewer lesions have no context features: they are no norm to differ from.
SMALLEST_NORM = 20
SITE = "anatom_site_general"
#: Neighbours that a lesion's distance is averaged over, as in the competition winner's local outlier factor.
NEIGHBOURS = 30
#: How many of the patient's lesions have all scores.
SCORED_LESIONS = "scored_lesions"
#: Squared distances computed at once (9,000 lesions of one patient have 81 million). OpenBLAS computes a product of so few,
#: over a dozen columns, in one thread; with more, its threads wait for each other at each of the thousand patients: five
#: times the processor time on two busy cores.
CELLS = 1 << 14
#: A squared distance below this share of the squared length is float32's rounding of two equal lesions.
ROUNDING = 4e-6


def build_features(metadata: pd.DataFrame) -> pd.DataFrame:
    """The feature table of every lesion.

    Args:
        metadata: rows as ``read_metadata`` gives them, or some of their columns. Those that only train has are not used.

    Returns:
        One row per lesion, same order and index. Numbers are float32 (NaN where unknown), categories str (``MISSING``
        where unknown). Features whose columns are absent from ``metadata`` are absent; without patient_id, those that
        compare with the patient's other lesions.
    """
    numbers = {name: metadata[name].to_numpy("float64") for name in NUMBERS if name in metadata}
    numbers |= engineered_features(numbers)
    features = numbers | (context_features(numbers, metadata) if PATIENT in metadata else {})
    table = pd.DataFrame({name: finite_float32(values) for name, values in features.items()}, index=metadata.index)
    for name in MODEL_CATEGORIES:
        if name in metadata:
            table[name] = metadata[name].astype(object).fillna(MISSING).astype(str)
    return table


def engineered_features(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The formulas of ``ENGINEERED`` whose columns exist; infinite where a divisor is zero, which becomes NaN later."""
    with np.errstate(all="ignore"):
        return {
            name: formula(*(numbers[column] for column in columns))
            for name, (columns, formula) in ENGINEERED.items()
            if all(column in numbers for column in columns)
        }


def context_features(numbers: dict[str, np.ndarray], metadata: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each lesion relative to the patient's others: standard scores per patient and body site; percentile ranks and an
    outlier score per patient.

    In a group of fewer than ``SMALLEST_NORM`` lesions every standard score is 0, every rank 0.5, every outlier score 1.
    """
    patient = group_codes(metadata[PATIENT])
    groups = {"patient": patient}
    if SITE in metadata:
        groups["site"] = group_codes(metadata[PATIENT].astype(str) + "\t" + metadata[SITE].astype(str))
    names = [name for name in CONTEXT if name in numbers]
    features: dict[str, np.ndarray] = {f"{group}_lesions": group_sizes(codes) for group, codes in groups.items()}
    if not names:
        return features
    values = np.column_stack([numbers[name] for name in names])
    values[~np.isfinite(values)] = np.nan
    for group, codes in groups.items():
        large = features[f"{group}_lesions"][:, None] >= SMALLEST_NORM
        scores = np.where(large, standard_scores(values, codes), 0.0)
        features |= {f"{name}_z_{group}": scores[:, i] for i, name in enumerate(names)}
    ranks = percentile_ranks(values, patient, SMALLEST_NORM)
    features |= {f"{name}_rank_patient": ranks[:, i] for i, name in enumerate(names)}
    if all(name in names for name in OUTLIER_SPACE):
        points = np.column_stack([features[f"{name}_z_patient"] for name in OUTLIER_SPACE])
        features["outlier_patient"] = outlier_scores(points, patient, SMALLEST_NORM)
    return features


def logit_features(logits: pd.DataFrame, patients: pd.Series | None = None) -> pd.DataFrame:
    """The features of the last stage: each stage's logits, and those relative to the patient's other lesions.

    All winners put image scores back into trees. The quotient of the score by the patient's mean, which the first of them
    used, is not here: it divides by a number near zero.

    Args:
        logits: the tabular logits and then a column for each network, float64; NaN where no network scored the lesion.
        patients: of the same rows, shape (rows,); None where they are unknown: every lesion is then compared with none.

    Returns:
        float32, index of ``logits``; NaN where a logit is. For each column ``NAME_logit``, ``NAME_z_patient`` (standard
        score within the patient, 0 where the patient's scores do not vary or there is one) and ``NAME_rank_patient``
        (percentile rank, 0.5 for one alone). For each network the same of its correction of the tabular logit, and
        ``NAME_context``, of ``context_logits``. ``SCORED_LESIONS``.
    """
    codes = patient_codes(len(logits), patients)
    tabular, *networks = (logits[name].to_numpy("float64") for name in logits)
    features = {SCORED_LESIONS: np.bincount(codes, logits.notna().all(axis=1))[codes]}
    for name, network in zip(logits.columns[1:], networks, strict=True):
        features[f"{name}_context"] = context_logits(network, tabular, codes)
    columns = {logits.columns[0]: tabular} | dict(zip(logits.columns[1:], networks, strict=True))
    columns |= {f"{name}_correction": columns[name] - tabular for name in logits.columns[1:]}
    values = np.column_stack(list(columns.values()))
    scores, ranks = standard_scores(values, codes), percentile_ranks(values, codes)
    for i, name in enumerate(columns):
        features |= {f"{name}_logit": values[:, i], f"{name}_z_patient": scores[:, i], f"{name}_rank_patient": ranks[:, i]}
    return pd.DataFrame({name: finite_float32(column) for name, column in features.items()}, index=logits.index)


def context_logits(network: np.ndarray, tabular: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Network logits less the mean correction of the patient's lesions: what the network finds beyond the patient's style.

    Args:
        network: logits of shape (rows,); NaN where no network scored the lesion.
        tabular: tabular logits of shape (rows,).
        codes: of ``patient_codes``.
    """
    return network - _group_means((network - tabular)[:, None], codes)[:, 0]


def patient_codes(rows: int, patients: pd.Series | None) -> np.ndarray:
    """``group_codes`` of the patients; each row a patient of its own where they are unknown."""
    return np.arange(rows) if patients is None else group_codes(patients)


def finite_float32(values: np.ndarray) -> np.ndarray:
    """float32 with NaN for whatever is not finite there."""
    with np.errstate(over="ignore"):
        values = values.astype("float32")
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def group_codes(keys: pd.Series) -> np.ndarray:
    """Integer codes 0..groups-1, one per row, in order of first appearance."""
    return pd.factorize(keys)[0]


def group_sizes(codes: np.ndarray) -> np.ndarray:
    """How many rows share each row's group, shape (rows,), float64."""
    return np.bincount(codes)[codes].astype("float64")


def standard_scores(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(value - group mean) / group standard deviation of each column.

    Args:
        values: shape (rows, columns), float64; what is not finite is unknown and becomes NaN.
        codes: shape (rows,), the group of each row.

    Returns:
        Shape (rows, columns). 0 where the group does not vary (one lesion, or all alike).
    """
    known = np.isfinite(values)
    mean = _group_means(np.where(known, values, np.nan), codes)
    centred = np.where(known, values - mean, np.nan)
    # Two passes keep the variance exact where it is small beside the mean.
    with np.errstate(over="ignore"):  # of absurdly large numbers; their scores are 0
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
        # Unknown values as infinity rank behind all known ones and change none of their ranks.
        places = rankdata(np.where(known, values[rows], np.inf), axis=0)
        ranks[rows] = np.where(known, (places - 0.5) / np.maximum(known.sum(axis=0), 1), np.nan)
    return ranks


def groups_of(codes: np.ndarray, smallest: int) -> Iterator[np.ndarray]:
    """The positions of each group's rows, for the groups of at least ``smallest``.

    Group by group, the time grows linearly with the rows; sorting all rows at once grows faster.
    """
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    ends = np.cumsum(sizes)
    for group in np.flatnonzero(sizes >= max(smallest, 1)):
        yield order[ends[group] - sizes[group] : ends[group]]


def outlier_scores(points: np.ndarray, codes: np.ndarray, smallest: int) -> np.ndarray:
    """A lesion's mean distance to its nearest others of the group, divided by the group's median of that.

    The mean distance to the k nearest is the outlier weight of Angiulli and Pizzuti (2002, Fast outlier detection in high
    dimensional spaces). Unlike the local outlier factor it makes no choice among neighbours at equal distance: it does not
    depend on the order of rows, and equal lesions cause no division by zero.

    Args:
        points: shape (rows, columns), standard scores within the group; what is not finite counts as the group's mean, 0.
        codes: shape (rows,), the group of each row.
        smallest: groups of fewer rows get 1.

    Returns:
        Shape (rows,), float64, at least 0: around 1 for an ordinary lesion, more for an outlier. 1 in a group that is too
        small, and in one whose median distance is 0.
    """
    points = np.where(np.isfinite(points), points, 0.0).astype("float32")
    # float32 saves 40 % of the time and changes a score by some 3e-7. One workspace for all: allocating memory for each
    # block takes longer than the sums in it.
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
        space: workspace, at least ``rows`` float32; more of it makes larger blocks.

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
