"""The curves of the report's page: ROC with its band, lesions to examine, calibration, scores by class.

The plots are SVG by Matplotlib, on white cards that stay white in the dark look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from evaluation.html import chart, row_of, table_of
from evaluation.measures import BEST, SENSITIVITIES, Band, Calibration, OperatingPoint
from utils import MIN_TPR, ScoreTable

WIDTH, HEIGHT = 4.4, 4.0  # of a panel, in inches of 72 SVG units
REGION = f"above {100 * MIN_TPR:.0f} % true-positive rate"
# How curves are drawn, in Okabe and Ito's colours, which remain distinct in the common forms of colour blindness. Dashes
# differ as well, so that the colours need not be seen. The submission is broad, as the others often coincide with it.
SUBMISSION_LINE = {"color": "#56b4e9", "linewidth": 5.5, "zorder": 1.8}
BEST_LINE = {"color": "#6b6b6b", "linestyle": "--", "zorder": 1.9}
OTHER_LINES = (
    {"color": "#d55e00"},
    {"color": "#004d7a", "linestyle": ":", "linewidth": 2.2},
    {"color": "#007a59", "linestyle": (0, (8, 2, 2, 2))},
    {"color": "#9c3f73", "linestyle": (0, (4, 1.5))},
)
BLUE, RED = "#0072b2", "#d55e00"
STEPS = 32  # of a histogram
LOWEST = 1e-6  # probability that the calibration chart still shows in its place
SEAM = '\n<div class="panels">\n'


@contextmanager
def _axes(width: float = WIDTH, height: float = HEIGHT):
    """A figure and its axes, drawn as all of the page's are."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    no_frame = {"axes.spines.top": False, "axes.spines.right": False}
    style = {"text.color": "#333a42", "axes.edgecolor": "#57606a", "lines.linewidth": 1.8, "text.parse_math": False}
    with rc_context(style | no_frame):
        figure = Figure((width, height), layout="constrained")
        axes = figure.subplots()
        axes.tick_params(length=0)
        axes.grid(alpha=0.3)
        yield figure, axes


# The ROC curve


def roc_figure(
    table: ScoreTable, labels: ArrayLike, scores: Mapping[str, ArrayLike], headline: str, band: Band | None = None
) -> str:
    """A white card with the whole ROC curves and their scored part enlarged.

    Args:
        table: their pAUCs.
        labels: 0 benign, 1 malignant, shape (rows,).
        scores: name -> finite numbers of shape (rows,); "best possible" is drawn dashed and grey.
        headline: the score that is drawn broad.
        band: of the headline's curve.
    """
    others = iter(OTHER_LINES * (1 + len(scores) // len(OTHER_LINES)))
    lines = {name: SUBMISSION_LINE if name == headline else BEST_LINE if name == BEST else next(others) for name in scores}
    curves = {name: (*roc_curve(labels, scores[name])[:2], lines[name]) for name in scores}
    told = {name: f"{name}, {table.scores[name].pauc.value:.4f}" for name in scores}
    whole = f"Partial AUC: {'; '.join(told.values())}."
    banded = (
        f" Light blue: pointwise 95&nbsp;% interval of the false-positive rate of {escape(headline)}, from "
        f"{table.samples:,} resamples of whole patients."
    )
    return f"""<figure>{SEAM}{_panel("Whole ROC curve", whole, curves, 0.0, told, band)}
{_panel("Scored part, enlarged", f"The same curves {REGION}.", curves, MIN_TPR, {}, band)}
</div>
<figcaption>The numbers are pAUC: the area under a curve inside the yellow band, {REGION}.
Dotted: guessing.{banded if band else ""}</figcaption>
</figure>"""


def _panel(
    title: str,
    description: str,
    curves: Mapping[str, Any],
    floor: float,
    legend: Mapping[str, str],
    band: Band | None,
) -> str:
    """One plot as SVG: x is the false-positive rate from 0 to 1, y the true-positive rate from ``floor`` to 1.

    Args:
        title: drawn, and read aloud.
        description: read aloud.
        curves: name -> false-positive rates, true-positive rates, how to draw the line.
        floor: where the true-positive rate begins.
        legend: name -> text beside its line; empty for no legend.
        band: drawn below the curves.
    """
    with _axes() as (figure, axes):
        axes.set(title=title, xlabel="false-positive rate (benign lesions flagged)")
        axes.set(ylabel="true-positive rate (malignant lesions found)")
        axes.set(xlim=(-0.015, 1.015), ylim=(floor - 0.015 * (1 - floor), 1 + 0.015 * (1 - floor)))
        axes.axhspan(MIN_TPR, 1, color="#fff1c2", zorder=0)
        if band:
            around = np.concatenate([band.low, band.high[::-1]]), np.concatenate([band.rates, band.rates[::-1]])
            axes.fill(*around, color="#56b4e9", alpha=0.35, linewidth=0, zorder=1)
        axes.plot((0, 1), (0, 1), ":", color="#57606a", linewidth=1)
        drawn = {name: axes.plot(*points, **line)[0] for name, (*points, line) in curves.items()}
        for number, line in enumerate(drawn.values()):
            line.set_gid(f"curve {number}")
        if legend:
            axes.legend([drawn[name] for name in legend], legend.values(), loc="lower right")
    return chart(figure, f"{title}. {description}", list(curves))


# Lesions to examine


def examined_section(points: Mapping[str, Sequence[OperatingPoint]], headline: str, rows: int, malignant: int) -> str:
    """HTML: lesions flagged for each malignant one found, at ``SENSITIVITIES``, of every score."""
    lines = []
    for name, its in points.items():
        cells = []
        for point in its:
            examined = point.examined
            cells += [f"{examined.value:.2f}", f"{examined.low:.2f} to {examined.high:.2f}"]
            cells.append(f"{point.flagged:,} ({100 * point.flagged / rows:.1f} %)")
        lines.append(row_of(name, cells, "first" if name == headline else ""))
    heads = ["score"]
    for rate in SENSITIVITIES:
        heads += [f"at {100 * rate:.0f} %", "95 % interval", "flagged"]
    return f"""<p>Number needed to examine: lesions flagged for each malignant one found, once the threshold is so low that
80 or 90&nbsp;% of the malignant lesions are found. Without a score it is {rows / malignant:,.1f}, one in as many being
malignant. It grows as malignant lesions get rarer, so compare it on like rows only.</p>
{table_of("Number needed to examine at 80 % and 90 % sensitivity", heads, lines, "numbers")}"""


# Calibration


def calibration_section(calibrations: Mapping[str, Calibration], note: str = "") -> str:
    """HTML: observed against predicted rates, as a chart and a table for each score.

    Args:
        calibrations: name -> what was measured; "final" is the submission.
        note: a sentence on a score that is left out, and why.
    """
    told, tables = [], []
    for name, measured in calibrations.items():
        ratio = measured.observed_to_expected
        told.append(
            f"<li>{escape(name)}: {ratio.value:.2f} malignant lesions observed for each one expected (95&nbsp;% interval "
            f"{ratio.low:.2f} to {ratio.high:.2f}).</li>"
        )
        rows = [
            row_of(
                _percent(part.predicted),
                [
                    _percent(part.observed.value),
                    f"{_percent(part.observed.low)} to {_percent(part.observed.high)}",
                    f"{part.rows:,}",
                    f"{part.malignant:,}",
                ],
            )
            for part in measured.bins
        ]
        heads = ("predicted, %", "observed, %", "95 % interval", "lesions", "malignant")
        table = table_of(f"Calibration of {name}", heads, rows, "numbers")
        tables.append(f'<div style="min-width: 0">\n<h3>{escape(name)}</h3>\n{table}\n</div>')
    tables = "\n".join(tables)
    shown = [rate for each in calibrations.values() for part in each.bins for rate in (part.predicted, part.observed.value)]
    low = 10 ** np.floor(np.log10(max(LOWEST, min((rate for rate in shown if rate > 0), default=LOWEST)) / 1.5))
    return f"""<p>Of the lesions that a score gives one chance in a hundred, one in a hundred should be malignant. The bins
are quantiles of the malignant lesions that the score itself expects, so that the rare class fills each of them.</p>
<ul>{"".join(told)}</ul>
{f'<p class="note">{escape(note)}</p>' if note else ""}
<figure>{SEAM}{"".join(_calibration_chart(name, each, low) for name, each in calibrations.items())}
</div>
<figcaption>Both axes are logarithmic. On the dotted line predictions come true; below it the score is too sure of itself.
Lines: 95 % interval, whole patients resampled. A triangle at the edge: no malignant lesion in the bin.</figcaption>
</figure>
<div class="panels">
{tables}
</div>"""


def _percent(share: float) -> str:
    """A share in per cent, with as many places as the rare class needs."""
    return f"{100 * share:.3g}"


def _calibration_chart(name: str, measured: Calibration, low: float) -> str:
    """One plot: observed against predicted rates of a score's bins, both axes logarithmic from ``low`` to 1."""
    with _axes(height=3.6) as (figure, axes):
        axes.plot((low, 1), (low, 1), ":", color="#57606a", linewidth=1.2)
        for part in measured.bins:
            found = part.malignant > 0
            ends = np.maximum((part.observed.low, part.observed.high), low)
            across = max(part.predicted, low)
            axes.plot((across, across), ends, color=BLUE, linewidth=1.5)
            height = part.observed.value if found else low
            axes.plot(across, height, "o" if found else "v", color=BLUE, markersize=5.5, clip_on=False)
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


def distribution_figure(
    labels: ArrayLike,
    logits: Mapping[str, ArrayLike],
    scores: Mapping[str, ArrayLike],
    points: Mapping[str, Sequence[OperatingPoint]],
) -> str:
    """A white card with a plot for each score: the share of benign and of malignant lesions at each logits.

    Args:
        labels: 0 benign, 1 malignant, shape (rows,).
        logits: name -> of being malignant, shape (rows,).
        scores: name -> the same in the scale of ``points``, ranked alike, shape (rows,).
        points: name -> where 80 and 90 % of the malignant lesions are found, marked in the plot.
    """
    labels = np.asarray(labels).astype(bool)
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(each) for each in logits.values()]), STEPS)
    panels = []
    for name, values in logits.items():
        values, ranked = np.asarray(values), np.asarray(scores[name])
        marks = [values[ranked >= point.threshold].min() for point in points[name]]
        panels.append(_distribution(name, values[~labels], values[labels], edges, marks))
    return f"""<figure>{SEAM}{"".join(panels)}
</div>
<figcaption>Shares within each class, so that the rare class is seen. Right of a vertical line lie
{" and ".join(f"{100 * rate:.0f}" for rate in SENSITIVITIES)} % of the malignant lesions.</figcaption>
</figure>"""


def _distribution(name: str, benign: np.ndarray, malignant: np.ndarray, edges: np.ndarray, marks: Sequence[float]) -> str:
    """One plot of a score's logits by class."""
    with _axes(height=3.2) as (figure, axes):
        tops = []
        classes = (("benign", benign, BLUE, "-"), ("malignant", malignant, RED, "--"))
        for kind, values, colour, dash in classes:
            share = np.histogram(values, edges)[0] / len(values)
            axes.stairs(share, edges, color=colour, alpha=0.18, fill=True)
            axes.stairs(share, edges, color=colour, linewidth=1.8, linestyle=dash, label=f"{kind}, {len(values):,}")
            tops.append(share.max())
        for mark, rate, side in zip(marks, SENSITIVITIES, ("left", "right"), strict=True):
            axes.axvline(mark, color="#57606a", linewidth=1, linestyle=":")
            text = {"ha": side, "va": "top", "fontsize": 8.5, "color": "#57606a"}
            axes.annotate(f" {100 * rate:.0f} % ", (mark, 1.38 * max(tops)), **text)
        axes.set(title=name, xlabel="logits of being malignant", ylabel="share of the class", ylim=(0, 1.4 * max(tops)))
        axes.legend(loc="upper right")
    medians = f"benign {np.median(benign):.2f}, malignant {np.median(malignant):.2f}"
    return chart(figure, f"Logits of {name} by class; medians: {medians}.")
