"""One HTML page about a dry run: what the submission scores, against what, and how it was made. A local tool.

The page needs no network and no script, and its policy forbids both. The plots are SVG by Matplotlib, set into the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from inference.files import replacing
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

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --rule: #d0d7de; --strong: #eef4fb }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #a3adb8; --page: #0d1117; --rule: #3d444d; --strong: #16263a }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p { max-width: 44rem; margin: .5rem 0 }
.headline { font-size: 1.15rem; padding: .9rem 1.1rem; background: var(--strong); border-radius: .6rem; max-width: none }
.note { color: var(--soft); font-size: .9rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top }
th { font-weight: 600 }
thead th { color: var(--soft); font-size: .9rem; white-space: nowrap }
.numbers th + th, .numbers td { text-align: right; white-space: nowrap; padding-left: .6rem }
.numbers td.words { text-align: left }
.first > * { background: var(--strong) }
.facts { width: 100% }
.facts th:first-child { width: 12rem; padding-right: 1.2rem }
.numbers.told th:last-child { text-align: left }
.facts td { overflow-wrap: anywhere; white-space: pre-wrap }
figure { margin: 0; padding: 1rem; background: #ffffff; color: #1b1f24; border: 1px solid var(--rule); border-radius: .6rem }
figcaption { color: #57606a; font-size: .9rem }
.panels { display: flex; flex-wrap: wrap; gap: .5rem 1rem }
.panels svg { flex: 1 1 20rem; min-width: 0; max-width: 34rem; height: auto }
svg text { font-family: system-ui, sans-serif !important }
@media (max-width: 34rem) {
  .facts thead { display: none }
  .facts th, .facts td { display: block; width: auto; border: 0; padding: 0 }
  .facts td { border-bottom: 1px solid var(--rule); padding-bottom: .4rem; margin-bottom: .4rem }
}
"""


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
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="headline">{_headline(table, headline)}</p>
<h2>Scores</h2>
{_score_table(table, headline)}
<p class="note">pAUC is the competition's metric, the area of the ROC curve {BAND}: the best
is 0.20, guessing 0.02. AUC is the whole area. Top-{TOP_K} is the share of a patient's malignant lesions among the patient's
{TOP_K} highest scored, mean over patients who have any. Intervals: {table.samples:,} resamples of whole patients.</p>
{_difference_table(table, headline)}
<h2>ROC curves</h2>
{_figure(table, labels, scores, headline)}
<h2>How it was made</h2>
{_fact_table(facts)}
</main>
</body>
</html>
"""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _headline(table: ScoreTable, name: str) -> str:
    pauc = table.scores[name].pauc
    best = f"; the best possible on these rows is {table.scores[BEST].pauc.value:.4f}" if BEST in table.scores else ""
    whole = f"{table.rows:,} lesions of {table.patients:,} patients, {table.malignant:,} of them malignant"
    who = "The submission" if name == FUSION else f"The score <em>{escape(name)}</em>"
    reached = f"<strong>{pauc.value:.4f}</strong> (95&nbsp;% interval {pauc.low:.4f} to {pauc.high:.4f})"
    return f"{who} reaches a pAUC of {reached} on {whole}{best}."


def _table(caption: str, heads: Sequence[str], rows: Sequence[str], kind: str) -> str:
    """A table that scrolls sideways inside its own box on a narrow screen, and can be reached by keyboard there."""
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="wide" role="region" aria-label="{caption}" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


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
    return _table("Scores with their intervals", heads, rows, "numbers")


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
    return "<h2>Paired differences</h2>\n" + _table("Paired differences of pAUC", heads, rows, "numbers told")


def _reading(apart: Estimate) -> str:
    """A difference in words; the two scores were measured on the same resamples, so an interval beside zero tells."""
    if apart.low == apart.high == 0:
        return "the same in every resample"
    if apart.low > 0 or apart.high < 0:
        return "higher" if apart.low > 0 else "lower"
    return "not told apart by these rows"


def _fact_table(facts: Mapping[str, str]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>' for name, value in facts.items()
    ]
    return _table("Facts about this run", ("fact", "value"), rows, "facts")


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

    # Text stays text; ids depend on the salt and not on chance; what a curve deviates by less than half a point is left out.
    style = {"svg.fonttype": "none", "svg.hashsalt": title, "path.simplify_threshold": 0.5, "text.parse_math": False}
    no_frame = {"axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**style, "text.color": "#333a42", "axes.edgecolor": "#57606a", "lines.linewidth": 1.8, **no_frame}):
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
        file = StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))

    names = [f"<g><title>{escape(name)}</title>" for name in curves]
    drawing = file.getvalue().split("<svg", 1)[1].split(">", 1)[1]
    drawing = re.sub(r'<g id="curve (\d+)">', lambda found: names[int(found[1])], drawing)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # the same in both panels, and nothing refers to them
    label = escape(f"{title}. {description}")
    return f'<svg viewBox="0 0 {72 * WIDTH:g} {72 * HEIGHT:g}" role="img" aria-label="{label}">{drawing}'
