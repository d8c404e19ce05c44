"""The report's charts as SVG: ROC curves with their band, calibration, scores by class, groups.

They stand on white cards that stay white in the dark look. Dashes and markers carry what colours carry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from evaluation.html import chart
from evaluation.measures import BEST, SENSITIVITIES, Band, Calibration, OperatingPoint
from train.charts import BLUE, GREY, PURPLE, SKY, VERMILION, styled_axes
from utils import MIN_TPR, Estimate, ScoreTable

WIDTH, HEIGHT = 4.4, 4.0  # of a chart, in inches of 72 SVG units
REGION = f"above {100 * MIN_TPR:.0f} % true-positive rate"
# The submission's line is broad, as the others often coincide with it.
SUBMISSION_LINE: dict[str, Any] = {"color": SKY, "linewidth": 5.5, "zorder": 1.8}
BEST_LINE: dict[str, Any] = {"color": "#6b6b6b", "linestyle": "--", "zorder": 1.9}
OTHER_LINES: tuple[dict[str, Any], ...] = (
    {"color": VERMILION},
    {"color": "#004d7a", "linestyle": ":", "linewidth": 2.2},
    {"color": "#007a59", "linestyle": (0, (8, 2, 2, 2))},
    {"color": PURPLE, "linestyle": (0, (4, 1.5))},
)
DASHED: dict[str, Any] = {"color": GREY, "linestyle": ":", "linewidth": 1.2}
HISTOGRAM_BINS = 32
LOWEST = 1e-6  # the lowest probability on the axes of a calibration chart
GROUP_LINE = 0.235  # height of a line in a chart of groups, inches


# The ROC curve


def roc_charts(
    table: ScoreTable, y_true: ArrayLike, scores: Mapping[str, ArrayLike], headline: str, band: Band
) -> list[Markup]:
    """The whole ROC curves, and their scored part enlarged.

    Args:
        table: their pAUCs.
        y_true: 0 benign, 1 malignant, shape (rows,).
        scores: name -> finite numbers of shape (rows,); "best possible" is dashed and grey.
        headline: the score whose line is broad.
        band: of the headline's curve.
    """
    others = iter(OTHER_LINES * (1 + len(scores) // len(OTHER_LINES)))
    lines = {name: SUBMISSION_LINE if name == headline else BEST_LINE if name == BEST else next(others) for name in scores}
    curves = [(roc_curve(y_true, scores[name])[:2], line) for name, line in lines.items()]
    names = [f"{name}, {table.scores[name].pauc.value:.4f}" for name in scores]
    charts = []
    for title, floor in (("Whole ROC curve", 0.0), ("Scored part, enlarged", MIN_TPR)):
        with styled_axes(WIDTH, HEIGHT) as (figure, axes):
            axes.grid(alpha=0.6)
            axes.set(title=title, xlabel="false-positive rate (benign lesions flagged)")
            axes.set(ylabel="true-positive rate (malignant lesions found)")
            axes.set(xlim=(-0.015, 1.015), ylim=(floor - 0.015 * (1 - floor), 1 + 0.015 * (1 - floor)))
            axes.axhspan(MIN_TPR, 1, color="#fff1c2", zorder=0)
            around = np.concatenate([band.low, band.high[::-1]]), np.concatenate([band.rates, band.rates[::-1]])
            axes.fill(*around, color=SKY, alpha=0.35, linewidth=0, zorder=1)
            axes.plot((0, 1), (0, 1), **DASHED)
            drawn = [axes.plot(*points, gid=f"curve {number}", **line)[0] for number, (points, line) in enumerate(curves)]
            if not floor:
                axes.legend(drawn, names, loc="lower right")
        meaning = f"The same curves {REGION}." if floor else f"Partial AUC: {'; '.join(names)}."
        charts.append(chart(figure, f"{title}. {meaning}", list(scores)))
    return charts


# Calibration


def calibration_charts(calibrations: Mapping[str, Calibration]) -> list[Markup]:
    """Observed against predicted rates of each score's bins, all on the same logarithmic axes."""
    shown = [rate for each in calibrations.values() for part in each.bins for rate in (part.predicted, part.observed.value)]
    low = 10 ** np.floor(np.log10(max(LOWEST, min((rate for rate in shown if rate > 0), default=LOWEST)) / 1.5))
    return [_calibration_chart(name, each, low) for name, each in calibrations.items()]


def _calibration_chart(name: str, measured: Calibration, low: float) -> Markup:
    with styled_axes(WIDTH, 3.6) as (figure, axes):
        axes.grid()
        axes.plot((low, 1), (low, 1), **DASHED)
        for part in measured.bins:
            found, across = part.malignant > 0, max(part.predicted, low)
            axes.plot((across, across), np.maximum((part.observed.low, part.observed.high), low), color=BLUE, linewidth=1.5)
            height, marker = (part.observed.value, "o") if found else (low, "v")
            axes.plot(across, height, marker, color=BLUE, markersize=5.5, clip_on=False)
        axes.set(title=name, xlabel="predicted probability", ylabel="observed rate", xscale="log", yscale="log")
        axes.set(xlim=(0.7 * low, 1.4), ylim=(0.7 * low, 1.4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
        axes.minorticks_off()
    ratio = measured.observed_to_expected.value
    return chart(
        figure, f"Calibration of {name}: {ratio:.2f} malignant lesions observed for each one expected; table below."
    )


# Scores by class


def class_charts(
    y_true: ArrayLike,
    logits: Mapping[str, ArrayLike],
    scores: Mapping[str, ArrayLike],
    points: Mapping[str, Sequence[OperatingPoint]],
) -> list[Markup]:
    """The share of benign and of malignant lesions at each logit, a chart for each score.

    Args:
        y_true: 0 benign, 1 malignant, shape (rows,).
        logits: name -> of being malignant, shape (rows,).
        scores: name -> the same in the scale of ``points``, ranked alike, shape (rows,).
        points: name -> where 80 and 90 % of the malignant lesions are found, marked in the chart.
    """
    y_true = np.asarray(y_true).astype(bool)
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(each) for each in logits.values()]), HISTOGRAM_BINS)
    charts = []
    for name, values in logits.items():
        values, ranked = np.asarray(values), np.asarray(scores[name])
        marks = [values[ranked >= point.threshold].min() for point in points[name]]
        charts.append(_class_chart(name, (values[~y_true], values[y_true]), edges, marks))
    return charts


def _class_chart(name: str, by_class: Sequence[np.ndarray], edges: np.ndarray, marks: Sequence[float]) -> Markup:
    with styled_axes(WIDTH, 3.2) as (figure, axes):
        axes.grid()
        top, styles = 0.0, (("benign", BLUE, "-"), ("malignant", VERMILION, "--"))
        for values, (kind, colour, dash) in zip(by_class, styles, strict=True):
            share = np.histogram(values, edges)[0] / len(values)
            axes.stairs(share, edges, color=colour, alpha=0.18, fill=True)
            axes.stairs(share, edges, color=colour, linestyle=dash, label=f"{kind}, {len(values):,}")
            top = max(top, share.max())
        for mark, rate, side in zip(marks, SENSITIVITIES, ("left", "right"), strict=True):
            axes.axvline(mark, **(DASHED | {"linewidth": 1}))
            text: dict[str, Any] = {"ha": side, "va": "top", "fontsize": 8.5, "color": GREY}
            axes.annotate(f" {100 * rate:.0f} % ", (mark, 1.38 * top), **text)
        axes.set(title=name, xlabel="logit of being malignant", ylabel="share of the class", ylim=(0, 1.4 * top))
        axes.legend(loc="upper right")
    benign, malignant = map(np.median, by_class)
    return chart(figure, f"Logits of {name} by class; medians: benign {benign:.2f}, malignant {malignant:.2f}.")


# Groups


@dataclass(frozen=True)
class GroupDot:
    """A group's line in a chart: its division, its name, its value with interval, and whether that interval is reliable."""

    division: str
    name: str
    estimate: Estimate
    reliable: bool


def group_chart(title: str, dots: Sequence[GroupDot], overall: Estimate) -> Markup:
    """A dot and its interval for each group, below the name of its division."""
    lines: list[tuple[str, GroupDot | None]] = []
    for before, dot in zip((None, *dots), dots, strict=False):
        if before is None or before.division != dot.division:
            lines.append((dot.division.partition(" (")[0], None))
        lines.append((dot.name, dot))
    with styled_axes(WIDTH, 0.8 + GROUP_LINE * len(lines)) as (figure, axes):
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.axvspan(overall.low, overall.high, color="#fbe3d5", zorder=0)
        axes.axvline(overall.value, color=VERMILION, linestyle="--", linewidth=1.4, zorder=1)
        for place, (_, one) in enumerate(lines):
            if one:
                axes.plot((one.estimate.low, one.estimate.high), (place, place), color=BLUE, linewidth=1.6, zorder=2)
                face = BLUE if one.reliable else "white"
                axes.plot(one.estimate.value, place, "o", color=BLUE, markerfacecolor=face, markersize=5.5, zorder=3)
        axes.set_yticks(range(len(lines)), [name for name, _ in lines])
        for label, (_, one) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("normal" if one else "bold")
        axes.set(title=title, ylim=(len(lines) - 0.4, -0.6))
    values = "; ".join(f"{dot.name} {dot.estimate.value:.3f}" for dot in dots)
    return chart(figure, f"{title} of the submission by group, all rows {overall.value:.3f}. {values}.")
