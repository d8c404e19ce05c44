"""The submission's score in each group of lesions: hospitals, sites, sexes, ages, tiles and skin tones. For the report.

Within a group whole patients are resampled. A group too small for an interval gets counts only: the fewer the malignant
lesions, the less reliable a pAUC.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from evaluation.curves import GroupDot, group_chart
from evaluation.html import Section
from evaluation.measures import SAMPLES, estimate
from inference.schema import HOSPITAL, PATIENT, TARGET
from scale.progress import SLOW, Bar
from utils import TOP_K, Estimate, bootstrap_scores, resampled_weights

#: A group with fewer malignant lesions, or fewer patients who have one, gets no pAUC.
LEAST_MALIGNANT, LEAST_PATIENTS = 5, 3
#: With fewer patients who have a malignant lesion, a bootstrap interval tends to be too narrow.
MANY_PATIENTS = 10
UNKNOWN = "unknown"
SKIN_TONE = "skin tone (patient's median angle)"
SKIN_L, SKIN_B = "tbp_lv_Lext", "tbp_lv_Bext"
#: Name of the division -> the column whose values are its groups.
DIVISIONS = {"hospital": HOSPITAL, "body site": "anatom_site_general", "sex": "sex", "tile type": "tbp_tile_type"}
AGES = (-np.inf, 40, 50, 60, 70, np.inf)
AGE_NAMES = ("under 40", "40 to 49", "50 to 59", "60 to 69", "70 and older")
#: Chardon, Cretois and Hourseau 1991, from the darkest up: each group reaches to its angle, that angle included.
TONES = (-np.inf, -30, 10, 28, 41, 55, np.inf)
TONE_NAMES = (
    "dark, to \N{MINUS SIGN}30",
    "brown, to 10",
    "tan, to 28",
    "intermediate, to 41",
    "light, to 55",
    "very light, above 55",
)
LONGEST = 30  # letters of a group's name in the chart
#: The prefixes of hospitals' names in the chart, left out.
PREFIXES = ("ViDIR Group, ", "Department of Dermatology, ")


@dataclass(frozen=True)
class Group:
    """Lesions that have a value in common, and their scores; None where they are too few."""

    division: str
    name: str
    rows: int
    malignant: int
    patients: int
    affected: int  # patients with a malignant lesion
    pauc: Estimate | None = None
    top15: Estimate | None = None

    @property
    def reliable(self) -> bool:
        """Whether there are enough patients for the interval not to be too narrow."""
        return self.affected >= MANY_PATIENTS

    @property
    def short_name(self) -> str:
        """The name for the chart; of a hospital, without the words that several share."""
        name = self.name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        return textwrap.shorten(name, LONGEST, placeholder="\N{HORIZONTAL ELLIPSIS}")


def skin_tone_angles(rows: pd.DataFrame) -> pd.Series:
    """Individual typology angle of each patient's skin: atan2(L* - 50, b*), degrees, of the skin around the lesions.

    Light and shade move the angle from lesion to lesion, so each patient has one: the median of the lesions'.

    Args:
        rows: ``patient_id``, and L* and b* of the skin around the lesion.

    Returns:
        Shape (rows,), index as ``rows``; NaN where no lesion of the patient has both. Formula: Chardon and others 1991,
        International Journal of Cosmetic Science 13.
    """
    angle = np.degrees(np.arctan2(rows[SKIN_L] - 50, rows[SKIN_B]))
    return angle.groupby(rows[PATIENT]).transform("median")


def divide(rows: pd.DataFrame) -> tuple[dict[str, pd.Series], list[str]]:
    """Divides lesions into groups, in each way whose columns are there.

    Args:
        rows: as ``read_metadata`` gives them.

    Returns:
        Division -> the group's name of each row, ``UNKNOWN`` where it is not known; and a sentence on each division that is
        left out.
    """
    divisions, absent = {}, []
    for name, column in DIVISIONS.items():
        if column in rows and rows[column].notna().any():
            divisions[name] = rows[column].fillna(UNKNOWN)
        else:
            absent.append(f"{name}: the rows have no {column}.")
    if "age_approx" in rows and rows["age_approx"].notna().any():
        divisions["age"] = _cut(rows["age_approx"], AGES, AGE_NAMES, right=False)
    else:
        absent.append("age: the rows have no age_approx.")
    if SKIN_L in rows and SKIN_B in rows:
        divisions[SKIN_TONE] = _cut(skin_tone_angles(rows), TONES, TONE_NAMES, right=True)
    else:
        absent.append(f"skin tone: the rows have no {SKIN_L} and {SKIN_B}, which only the 3D body scan measures.")
    return divisions, absent


def _cut(values: pd.Series, edges: Sequence[float], names: Sequence[str], right: bool) -> pd.Series:
    """The name of the interval of each value, as ordered categories with ``UNKNOWN`` last."""
    cut = pd.cut(values, edges, right=right, labels=list(names))
    return cut.cat.add_categories(UNKNOWN).fillna(UNKNOWN)


def in_top(y_true: ArrayLike, y_score: ArrayLike, groups: ArrayLike) -> NDArray[np.bool_]:
    """Whether each lesion is among its patient's ``TOP_K`` highest scored, benign first among equals; shape (rows,).

    All lesions of the patient compete, whatever their group, as in ``utils.top_k_retrieval``.
    """
    table = pd.DataFrame({"patient": np.asarray(groups), "label": np.asarray(y_true), "score": np.asarray(y_score)})
    ranked = table.sort_values(["score", "label"], ascending=[False, True], kind="stable")
    return (ranked.groupby("patient").cumcount() < TOP_K).sort_index().to_numpy()


def measure_groups(
    rows: pd.DataFrame, scores: ArrayLike, divisions: dict[str, pd.Series], samples: int = SAMPLES, seed: int = 0
) -> list[Group]:
    """Counts of every group, and pAUC and top-15 retrieval where there are enough malignant lesions.

    Args:
        rows: ``target`` and ``patient_id``.
        scores: finite numbers, shape (rows,).
        divisions: as ``divide`` gives them.
        samples: resamples of each group's patients.
        seed: as in ``utils.bootstrap_scores``, which measures the pAUC.
    """
    scores, labels = np.asarray(scores, np.float64), rows[TARGET].to_numpy()
    patients = rows[PATIENT].to_numpy()
    retrieved = in_top(labels, scores, patients)
    members = []
    for division, names in divisions.items():
        known = names.cat.categories if isinstance(names.dtype, pd.CategoricalDtype) else sorted(set(names) - {UNKNOWN})
        ordered = [*(name for name in known if name != UNKNOWN), UNKNOWN]
        members += [(division, str(name), np.flatnonzero(names == name)) for name in ordered]
    groups = []
    for division, name, chosen in Bar(members, desc="groups", unit="group", delay=SLOW):
        if not len(chosen):
            continue
        y_true, own = labels[chosen], patients[chosen]
        affected = len(set(own[y_true == 1]))
        pauc = top15 = None
        if y_true.sum() >= LEAST_MALIGNANT and affected >= LEAST_PATIENTS and not y_true.all():
            pauc = bootstrap_scores(y_true, own, {name: scores[chosen]}, samples, seed).scores[name].pauc
            top15 = retrieval(y_true, own, retrieved[chosen], samples, seed)
        groups.append(Group(division, name, len(chosen), int(y_true.sum()), len(set(own)), affected, pauc, top15))
    return groups


def retrieval(
    y_true: NDArray[np.int64], groups: NDArray, retrieved: NDArray[np.bool_], samples: int = SAMPLES, seed: int = 0
) -> Estimate:
    """Share of a patient's malignant lesions here that are ``retrieved``, mean over patients who have any here.

    All arrays have shape (rows,); the resamples are those of ``utils.bootstrap_scores`` on these rows.
    """
    codes = pd.factorize(groups)[0]
    malignant, found = np.bincount(codes, y_true), np.bincount(codes, y_true * retrieved)
    has = malignant > 0
    shares = found[has] / malignant[has]
    drawn = (weights[has] for weights in resampled_weights(y_true, codes, samples, seed))
    draws = [weights @ shares / weights.sum() for weights in drawn]
    return estimate(shares.mean(), draws)


def group_section(groups: Sequence[Group], absent: Sequence[str], pauc: Estimate, top15: Estimate) -> Section:
    """What to know before reading, the charts, a table for each division, and what is left out.

    Args:
        groups: as ``measure_groups`` gives them.
        absent: sentences on divisions that are left out.
        pauc: of all rows, to compare.
        top15: of all rows, to compare.
    """
    charts = []
    if measured := [group for group in groups if group.pauc]:
        for title, name, overall in (("pAUC", "pauc", pauc), (f"Top-{TOP_K} retrieval", "top15", top15)):
            dots = [GroupDot(each.division, each.short_name, getattr(each, name), each.reliable) for each in measured]
            charts.append(group_chart(title, dots, overall))
    context = {
        "divisions": {name: [g for g in groups if g.division == name] for name in dict.fromkeys(g.division for g in groups)},
        "too_few": len(groups) - len(measured),
        "absent": absent,
        "charts": charts,
        "limits": {"malignant": LEAST_MALIGNANT, "patients": LEAST_PATIENTS, "reliable": MANY_PATIENTS, "top": TOP_K},
        "skin_tone": SKIN_TONE,
        "skin_columns": (SKIN_L, SKIN_B),
    }
    return Section("Groups", "report/groups.html", context)
