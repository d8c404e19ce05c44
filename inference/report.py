"""One HTML page about a dry run: what the submission scores, against what, and how it was made. A local tool.

The page needs no network and no script, and its policy forbids both. The plots are SVG by Matplotlib, set into the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from inference.pages import chart, fact_table, table_of, write_page
from utils import MIN_TPR, TOP_K, Estimate, ScoreTable

# What a dry run can score. The fusion is what was submitted.
TABULAR = "tabular"
IMAGE = "image alone"
FUSION = "fusion"
BEST = "best possible"

WIDTH, HEIGHT = 4.4, 4.0  # of a panel, in inches of 72 SVG units
BAND = f"above {100 * MIN_TPR:.0f} % true-positive rate"
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


def write_report(
    path: Path, title: str, table: ScoreTable, labels: ArrayLike, scores: Mapping[str, ArrayLike], facts: Mapping[str, str]
) -> None:
    """Writes the page to ``path``.

    Args:
        path: the HTML file; it is replaced in one step.
        title: heading of the page.
        table: what ``utils.bootstrap_scores`` measured of ``scores``. "fusion" is the score of the headline, or the first
            one where there is no such name; "best possible" is drawn dashed and grey.
        labels: 0 benign, 1 malignant, shape (rows,).
        scores: name -> finite numbers of shape (rows,), whose ROC curves are drawn.
        facts: name -> value, shown in this order: rows, hashes, versions, commands, ... Line breaks are kept.

    Raises:
        InputError: ``path`` cannot be written.
    """
    names = list(table.scores)
    headline = FUSION if FUSION in names else names[0]
    body = f"""<p class="headline">{_headline(table, headline)}</p>
<h2>Scores</h2>
{_score_table(table, headline)}
<p class="note">pAUC is the competition's metric, the area of the ROC curve {BAND}: the best
is 0.20, guessing 0.02. AUC is the whole area. Top-{TOP_K} is the share of a patient's malignant lesions among the patient's
{TOP_K} highest scored, mean over patients who have any. Intervals: {table.samples:,} resamples of whole patients.</p>
{_difference_table(table, headline)}
<h2>ROC curves</h2>
{_figure(table, labels, scores, headline)}
<h2>How it was made</h2>
{fact_table(facts)}"""
    write_page(path, title, body)


def _headline(table: ScoreTable, name: str) -> str:
    pauc = table.scores[name].pauc
    best = f"; the best possible on these rows is {table.scores[BEST].pauc.value:.4f}" if BEST in table.scores else ""
    whole = f"{table.rows:,} lesions of {table.patients:,} patients, {table.malignant:,} of them malignant"
    who = "The submission" if name == FUSION else f"The score <em>{escape(name)}</em>"
    reached = f"<strong>{pauc.value:.4f}</strong> (95&nbsp;% interval {pauc.low:.4f} to {pauc.high:.4f})"
    return f"{who} reaches a pAUC of {reached} on {whole}{best}."


def _score_table(table: ScoreTable, headline: str) -> str:
    rows = []
    for name, row in table.scores.items():
        cells = ""
        for estimate in (row.pauc, row.auc, row.top15):
            cells += f"<td>{estimate.value:.4f}</td><td>{estimate.low:.4f} to {estimate.high:.4f}</td>"
        first = ' class="first"' if name == headline else ""
        rows.append(f'<tr{first}><th scope="row">{escape(name)}</th>{cells}</tr>')
    heads = ["score"]
    for head in ("pAUC", "AUC", f"top-{TOP_K}"):
        heads += [head, "95 % interval"]
    return table_of("Scores with their intervals", heads, rows, "numbers")


def _difference_table(table: ScoreTable, headline: str) -> str:
    """The headline's score against every other; empty where there is one score only."""
    pairs = [(headline, name) for name in table.scores if name != headline]
    if not pairs:
        return ""
    rows = []
    for a, b in pairs:
        apart = table.difference(a, b)
        rows.append(
            f'<tr><th scope="row">{escape(a)} &minus; {escape(b)}</th><td>{apart.value:+.4f}</td>'
            f'<td>{apart.low:+.4f} to {apart.high:+.4f}</td><td class="words">{_reading(apart)}</td></tr>'
        )
    heads = ("pAUC of", "difference", "95 % interval", "reading")
    return "<h2>Paired differences</h2>\n" + table_of("Paired differences of pAUC", heads, rows, "numbers told")


def _reading(apart: Estimate) -> str:
    """A difference in words; the two scores were measured on the same resamples, so an interval beside zero tells."""
    if apart.low == apart.high == 0:
        return "the same in every resample"
    if apart.low > 0 or apart.high < 0:
        return "higher" if apart.low > 0 else "lower"
    return "not told apart by these rows"


def _figure(table: ScoreTable, labels: ArrayLike, scores: Mapping[str, ArrayLike], headline: str) -> str:
    """A white card, in dark mode too, with the whole ROC curves and their scored part enlarged."""
    others = iter(OTHER_LINES * (1 + len(scores) // len(OTHER_LINES)))
    lines = {name: SUBMISSION_LINE if name == headline else BEST_LINE if name == BEST else next(others) for name in scores}
    curves = {name: (*roc_curve(labels, scores[name])[:2], lines[name]) for name in scores}
    told = {name: f"{name}, {table.scores[name].pauc.value:.4f}" for name in scores}
    return f"""<figure>
<div class="panels">
{_panel("Whole ROC curve", f"Partial AUC: {'; '.join(told.values())}.", curves, 0.0, told)}
{_panel("Scored part, enlarged", f"The same curves {BAND}.", curves, MIN_TPR, {})}
</div>
<figcaption>The numbers are pAUC: the area under a curve inside the shaded band, {BAND}. Dotted: guessing.</figcaption>
</figure>"""


def _panel(title: str, description: str, curves: Mapping[str, Any], floor: float, legend: Mapping[str, str]) -> str:
    """One plot as SVG: x is the false-positive rate from 0 to 1, y the true-positive rate from ``floor`` to 1.

    Args:
        title: drawn, and read aloud.
        description: read aloud.
        curves: name -> false-positive rates, true-positive rates, how to draw the line.
        floor: where the true-positive rate begins.
        legend: name -> text beside its line; empty for no legend.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    no_frame = {"axes.spines.top": False, "axes.spines.right": False}
    style = {"text.color": "#333a42", "axes.edgecolor": "#57606a", "lines.linewidth": 1.8, "text.parse_math": False}
    with rc_context(style | no_frame):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, xlabel="false-positive rate (benign lesions flagged)")
        axes.set(ylabel="true-positive rate (malignant lesions found)")
        axes.set(xlim=(-0.015, 1.015), ylim=(floor - 0.015 * (1 - floor), 1 + 0.015 * (1 - floor)))
        axes.tick_params(length=0)
        axes.grid(alpha=0.3)
        axes.axhspan(MIN_TPR, 1, color="#fff1c2", zorder=0)
        axes.plot((0, 1), (0, 1), ":", color="#57606a", linewidth=1)
        drawn = {name: axes.plot(*points, **line)[0] for name, (*points, line) in curves.items()}
        for number, line in enumerate(drawn.values()):
            line.set_gid(f"curve {number}")
        if legend:
            axes.legend([drawn[name] for name in legend], legend.values(), loc="lower right")
    return chart(figure, f"{title}. {description}", list(curves))
