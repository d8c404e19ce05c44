"""Metadata rows -> feature table: each lesion by itself, then beside the patient's other lesions (the "ugly duckling").

Training and the kernel call the same ``build_features``. A lesion's features depend on the rows of its own patient only,
so they are the same whether the patient comes alone or among a thousand others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from inference.context import group_codes, group_sizes, outlier_scores, percentile_ranks, standard_scores
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

#: Columns that are judged against the patient's other lesions: hue, colour, contrast, size and border, those by which the
#: organisers' paper and the prize winners found the odd one out.
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
#: The space in which a lesion may lie apart from the patient's others: of CONTEXT, those that do not repeat each other (the
#: area and the perimeter follow from the two diameters) and that are measured, not judged by a network.
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
#: Fewer lesions than this are no norm to stand out from.
SMALLEST_NORM = 20
SITE = "anatom_site_general"


def build_features(metadata: pd.DataFrame) -> pd.DataFrame:
    """The feature table of every lesion.

    Args:
        metadata: rows as ``read_metadata`` gives them. Columns that only train has are never looked at.

    Returns:
        One row per lesion, same order and index. Numbers are float32 (NaN where unknown), categories str (``MISSING``
        where unknown). Features whose columns are absent from ``metadata`` are absent.
    """
    numbers = {name: metadata[name].to_numpy("float64") for name in NUMBERS if name in metadata}
    numbers |= engineered_features(numbers)
    features = numbers | context_features(numbers, metadata)
    table = pd.DataFrame({name: finite_float32(values) for name, values in features.items()}, index=metadata.index)
    for name in MODEL_CATEGORIES:
        if name in metadata:
            table[name] = metadata[name].astype(object).fillna(MISSING).astype(str)
    return table


def engineered_features(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The formulas of ``ENGINEERED`` whose columns are there; division by zero gives infinity, made NaN at the end."""
    with np.errstate(all="ignore"):
        return {
            name: formula(*(numbers[column] for column in columns))
            for name, (columns, formula) in ENGINEERED.items()
            if all(column in numbers for column in columns)
        }


def context_features(numbers: dict[str, np.ndarray], metadata: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each lesion beside the patient's others: standard scores per patient and per body site; percentile ranks and how far
    the lesion lies from the others, per patient.

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


def finite_float32(values: np.ndarray) -> np.ndarray:
    """float32 with NaN for whatever is not finite there."""
    with np.errstate(over="ignore"):
        values = values.astype("float32")
    return np.where(np.isfinite(values), values, np.float32(np.nan))
