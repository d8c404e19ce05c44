"""What a score reaches in each group of lesions: hospitals, sites, sexes, ages, tiles and skin tones. For the report's page.

Within a group whole patients are resampled, and a group too small for an interval gets its counts alone: the fewer the
malignant lesions, the further a pAUC lies from what more of them would show.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from evaluation.html import chart, table_of
from evaluation.measures import SAMPLES, SLOW
from inference.schema import HOSPITAL, PATIENT, TARGET
from utils import INTERVAL, TOP_K, Estimate, bootstrap_scores, resampled_weights

#: Fewer than that in a group, and its pAUC is not told: malignant lesions, and patients who have one.
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
WIDTH, LINE = 4.4, 0.235  # of the chart and of a line in it, inches
DOT, OVERALL = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Group:
    """Lesions that have something in common, and what a score reaches on them; None where they are too few."""

    division: str
    name: str
    rows: int
    malignant: int
    patients: int
    affected: int  # patients with a malignant lesion
    pauc: Estimate | None = None
    top15: Estimate | None = None


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
    """The ways to divide lesions into groups, as far as the columns are there.

    Args:
        rows: as ``read_metadata`` gives them.

    Returns:
        Division -> the group's name of each row, ``UNKNOWN`` where it is not known; and a sentence on each left out.
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


def in_top(labels: ArrayLike, scores: ArrayLike, patients: ArrayLike) -> NDArray[np.bool_]:
    """Whether each lesion is among its patient's ``TOP_K`` highest scored, benign first among equals; shape (rows,).

    All lesions of the patient compete, of whatever group: that is what ``utils.top_k_retrieval`` counts as well.
    """
    table = pd.DataFrame({"patient": np.asarray(patients), "label": np.asarray(labels), "score": np.asarray(scores)})
    ranked = table.sort_values(["score", "label"], ascending=[False, True], kind="stable")
    return (ranked.groupby("patient").cumcount() < TOP_K).sort_index().to_numpy()


def measure_groups(
    rows: pd.DataFrame, scores: ArrayLike, divisions: dict[str, pd.Series], samples: int = SAMPLES, seed: int = 0
) -> list[Group]:
    """Counts, and where there are enough malignant lesions pAUC and top-15 retrieval, of every group.

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
    for division, name, chosen in tqdm(members, desc="groups", unit="group", delay=SLOW):
        if not len(chosen):
            continue
        of, whose = labels[chosen], patients[chosen]
        affected = len(set(whose[of == 1]))
        counts = (division, name, len(chosen), int(of.sum()), len(set(whose)), affected)
        if of.sum() < LEAST_MALIGNANT or affected < LEAST_PATIENTS or of.all():
            groups.append(Group(*counts))
            continue
        pauc = bootstrap_scores(of, whose, {name: scores[chosen]}, samples, seed).scores[name].pauc
        groups.append(Group(*counts, pauc, retrieval(of, whose, retrieved[chosen], samples, seed)))
    return groups


def retrieval(
    labels: NDArray[np.int64], patients: NDArray, retrieved: NDArray[np.bool_], samples: int = SAMPLES, seed: int = 0
) -> Estimate:
    """Share of a patient's malignant lesions here that are ``retrieved``, mean over patients who have any here.

    All arrays have shape (rows,); the resamples are those of ``utils.bootstrap_scores`` on these rows.
    """
    codes = pd.factorize(patients)[0]
    malignant, found = np.bincount(codes, labels), np.bincount(codes, labels * retrieved)
    has = malignant > 0
    shares = found[has] / malignant[has]
    drawn = (weights[has] for weights in resampled_weights(labels, codes, samples, seed))
    draws = [weights @ shares / weights.sum() for weights in drawn]
    return Estimate(float(shares.mean()), *map(float, np.percentile(draws, INTERVAL)))


# On the page


def group_section(groups: Sequence[Group], absent: Sequence[str], pauc: Estimate, top15: Estimate) -> str:
    """HTML: what to know before reading, the chart, a table for each division, and what is left out.

    Args:
        groups: as ``measure_groups`` gives them.
        absent: sentences on divisions that are left out.
        pauc: of all rows, to compare.
        top15: of all rows, to compare.
    """
    small = sum(group.pauc is None for group in groups)
    left_out = "".join(f"<li>{escape(sentence)}</li>" for sentence in absent)
    left_out = f"<p>Left out:</p>\n<ul>{left_out}</ul>" if left_out else ""
    few = (
        f"{small} of the {len(groups)} groups have fewer than {LEAST_MALIGNANT} malignant lesions, or fewer than "
        f"{LEAST_PATIENTS} patients who have one, and get counts alone: a ROC curve of so few says more of chance than of "
        "the score. "
    )
    if not groups:
        return left_out
    notes = f"""<p>The submission in parts of the rows. {few if small else ""}Hollow dots, and stars in the tables, mark
groups with malignant lesions of fewer than {MANY_PATIENTS} patients: such an interval tends to be too narrow. Of twenty
intervals one misses the truth by chance alone, and a group may score lower because its lesions are harder, not because
the model treats it worse. Patients: those with a malignant lesion, of all.</p>"""
    tables = "\n".join(_division(name, groups) for name in dict.fromkeys(group.division for group in groups))
    tone = ""
    if any(group.division == SKIN_TONE for group in groups):
        tone = f"""<p class="note">Skin tone: the individual typology angle, atan2(L* &minus; 50, b*) in degrees, of the skin
around the lesions ({SKIN_L}, {SKIN_B}); groups after Chardon and others 1991. Each patient has one angle, the median of the
lesions', because light and shade move it from lesion to lesion. The names are those of a colorimeter's angles; this
camera's lie lower, so the groups tell skin pictured darker from skin pictured lighter and are no phototypes.</p>"""
    measured = [group for group in groups if group.pauc]
    return "\n".join(filter(None, (notes, _figure(measured, pauc, top15) if measured else "", tables, tone, left_out)))


def _division(division: str, groups: Sequence[Group]) -> str:
    """The table of one division."""
    rows = []
    for group in groups:
        if group.division == division:
            told = ["too few", "", "", ""]
            if group.pauc:
                star = "" if group.affected >= MANY_PATIENTS else " *"
                told = [f"{group.pauc.value:.4f}", f"{group.pauc.low:.4f} to {group.pauc.high:.4f}{star}"]
                told += [f"{group.top15.value:.3f}", f"{group.top15.low:.3f} to {group.top15.high:.3f}{star}"]
            counts = (f"{group.rows:,}", f"{group.malignant:,}", f"{group.affected:,} of {group.patients:,}")
            cells = "".join(f"<td>{cell}</td>" for cell in (*counts, *told))
            rows.append(f'<tr><th scope="row" style="min-width: 11rem">{escape(group.name)}</th>{cells}</tr>')
    heads = ("group", "lesions", "malignant", "patients", "pAUC", "95 % interval", f"top-{TOP_K}", "95 % interval")
    title = division[0].upper() + division[1:]
    return f"<h3>{escape(title)}</h3>\n" + table_of(f"The submission by {division}", heads, rows, "numbers")


def short_name(name: str) -> str:
    """A group's name for the chart; of a hospital, what tells it from the others."""
    for start in ("ViDIR Group, ", "Department of Dermatology, "):
        name = name.removeprefix(start)
    return textwrap.shorten(name, LONGEST, placeholder="\N{HORIZONTAL ELLIPSIS}")


def _figure(groups: Sequence[Group], pauc: Estimate, top15: Estimate) -> str:
    """Two charts on a white card: pAUC and top-15 of each group that is large enough."""
    told = [(group, group.pauc) for group in groups], [(group, group.top15) for group in groups]
    return f"""<figure>
<div class="panels">
{_dots("pAUC", told[0], pauc)}
{_dots(f"Top-{TOP_K} retrieval", told[1], top15)}
</div>
<figcaption>A dot is a group's value, its line the 95 % interval; dashed, with its interval shaded: all rows. Numbers in the
tables below.</figcaption>
</figure>"""


def _dots(title: str, estimates: Sequence[tuple[Group, Estimate]], overall: Estimate) -> str:
    """A dot and its interval for each group, below the name of its division."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines: list[tuple[str, Group | None, Estimate | None]] = []
    for group, estimate in estimates:
        if not lines or lines[-1][1] is None or lines[-1][1].division != group.division:
            lines.append((group.division.partition(" (")[0], None, None))
        lines.append((short_name(group.name), group, estimate))
    no_frame = {"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}
    with rc_context({"text.color": "#333a42", "axes.edgecolor": "#57606a", "text.parse_math": False} | no_frame):
        figure = Figure((WIDTH, 0.8 + LINE * len(lines)), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(overall.low, overall.high, color="#fbe3d5", zorder=0)
        axes.axvline(overall.value, color=OVERALL, linestyle="--", linewidth=1.4, zorder=1)
        for place, (_, group, estimate) in enumerate(lines):
            if estimate is None:
                continue
            face = DOT if group.affected >= MANY_PATIENTS else "white"
            axes.plot((estimate.low, estimate.high), (place, place), color=DOT, linewidth=1.6, zorder=2)
            axes.plot(estimate.value, place, "o", color=DOT, markerfacecolor=face, markersize=5.5, zorder=3)
        axes.set_yticks(range(len(lines)), [name for name, _, _ in lines])
        for label, (_, group, _) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("normal" if group else "bold")
        axes.set(title=title, ylim=(len(lines) - 0.4, -0.6))
        axes.tick_params(length=0)
        axes.grid(axis="x", alpha=0.3)
    values = "; ".join(f"{group.name} {estimate.value:.3f}" for group, estimate in estimates)
    return chart(figure, f"{title} of the submission by group, all rows {overall.value:.3f}. {values}.")
