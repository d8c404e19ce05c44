"""One HTML page about a dry run: what the submission scores, against what, and how it was made. A local tool.

The page needs no network and no script, and its policy forbids both. The plots are SVG written here: two panels of a ROC
curve are little to draw, and drawn by hand they carry their own titles, scale to a phone and stay small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from inference.files import replacing
from utils import MIN_TPR, TOP_K, Estimate, ScoreTable

# Names of scores that the page treats specially; all others are simply listed.
SUBMISSION = "submission"
TABULAR = "tabular"
FUSION = "fusion"
BEST = "best possible"

WIDTH, HEIGHT = 420, 380  # of a panel, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 58, 406, 30, 332  # edges of its plot
BAND = f"above {100 * MIN_TPR:.0f} % true-positive rate"
NEAR = 0.5  # SVG units; points of a curve as close as this are drawn as one


@dataclass(frozen=True)
class Line:
    """How a curve is drawn. Dashes differ as well as colours, so that the colours need not be seen."""

    colour: str
    width: float
    dashes: str = "none"


# Okabe and Ito's colours, which remain distinct in the common forms of colour blindness (jfly.uni-koeln.de/color).
SUBMISSION_LINE = Line("#56b4e9", 6)  # broad and beneath the others, which often coincide with it
BEST_LINE = Line("#6b6b6b", 1.8, "7 4")
OTHER_LINES = (
    Line("#d55e00", 1.8),
    Line("#004d7a", 1.8, "2 2.5"),
    Line("#007a59", 1.8, "10 3 2 3"),
    Line("#9c3f73", 1.8, "5 2"),
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
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0 0 .6rem; padding: 0 }
.legend svg { width: 2.4rem; height: .8rem; margin-right: .4rem }
svg text { font: 13px system-ui, sans-serif; fill: #333a42 }
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
        table: what ``utils.bootstrap_scores`` measured of ``scores``. "submission" is the score of the headline, or the
            first one where there is no such name; "best possible" is drawn dashed and grey.
        labels: 0 benign, 1 malignant, shape (rows,).
        scores: name -> finite numbers of shape (rows,), whose ROC curves are drawn.
        facts: name -> value, shown in this order: rows, hashes, versions, commands, ... Line breaks are kept.

    Raises:
        InputError: ``path`` cannot be written.
    """
    names = list(table.scores)
    headline = SUBMISSION if SUBMISSION in names else names[0]
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
    who = "The submission" if name == SUBMISSION else f"The score <em>{escape(name)}</em>"
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
    """The headline's score against every other, and fusion against tabular; empty where there is one score only."""
    pairs = [(headline, name) for name in table.scores if name != headline]
    if headline != FUSION and {FUSION, TABULAR} <= set(table.scores):
        pairs.append((FUSION, TABULAR))
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
    """A white card, in dark mode too, with a legend, the whole ROC curves and their scored part enlarged."""
    others = iter(OTHER_LINES * (1 + len(scores) // len(OTHER_LINES)))
    lines = {name: SUBMISSION_LINE if name == headline else BEST_LINE if name == BEST else next(others) for name in scores}
    order = sorted(scores, key=lambda name: (name != headline, name != BEST))  # the broad line lies beneath
    curves = {name: roc_curve(labels, scores[name]) for name in order}
    words = "; ".join(f"{name} {table.scores[name].pauc.value:.4f}" for name in scores)
    legend = "\n".join(
        f'<li><svg viewBox="0 0 48 16" aria-hidden="true"><path d="M0 8H48" {_stroke(lines[name])}/></svg>{escape(name)}, '
        f"{table.scores[name].pauc.value:.4f}</li>"
        for name in scores
    )
    return f"""<figure>
<ul class="legend">
{legend}
</ul>
<div class="panels">
{_panel("whole", "Whole ROC curve", f"Partial AUC: {words}.", curves, lines, 0.0)}
{_panel("part", "Scored part, enlarged", f"The same curves {BAND}.", curves, lines, MIN_TPR)}
</div>
<figcaption>The numbers are pAUC: the area under a curve inside the shaded band, {BAND}. Dotted: guessing.</figcaption>
</figure>"""


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Points (false-positive rate, true-positive rate) from (0, 0) to (1, 1), one per distinct score, shape (points, 2)."""
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # last row of each run of equal scores
    found = np.cumsum(labels[order])[last]
    points = np.column_stack(((last + 1 - found) / (~labels).sum(), found / labels.sum()))
    return np.vstack(([[0.0, 0.0]], points))


def _stroke(line: Line) -> str:
    return f'fill="none" stroke="{line.colour}" stroke-width="{line.width}" stroke-dasharray="{line.dashes}"'


def _panel(
    key: str,
    title: str,
    description: str,
    curves: Mapping[str, NDArray[np.float64]],
    lines: Mapping[str, Line],
    floor: float,
) -> str:
    """One plot: x is the false-positive rate from 0 to 1, y the true-positive rate from ``floor`` to 1."""

    def x(rate: float) -> float:
        return LEFT + rate * (RIGHT - LEFT)

    def y(rate: float) -> float:
        return BOTTOM - (rate - floor) / (1 - floor) * (BOTTOM - TOP)

    ticks = ""
    for rate in np.linspace(0, 1, 6):
        ticks += f'<text x="{x(rate):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{rate:.1f}</text>'
        ticks += f'<path d="M{x(rate):.1f} {BOTTOM}v5" stroke="#57606a"/>'
    for rate in np.linspace(floor, 1, 6 if floor == 0 else 5):
        ticks += f'<text x="{LEFT - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:.{1 if floor == 0 else 2}f}</text>'
        ticks += f'<path d="M{LEFT - 5} {y(rate):.1f}h5" stroke="#57606a"/>'
        ticks += f'<path d="M{LEFT} {y(rate):.1f}H{RIGHT}" stroke="#57606a" stroke-opacity=".18"/>'
    paths = ""
    for name, points in curves.items():
        way = _path(np.column_stack((x(points[:, 0]), y(points[:, 1]))))
        paths += f'<path d="{way}" {_stroke(lines[name])} stroke-linejoin="round"><title>{escape(name)}</title></path>\n'
    band = f'<rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{y(MIN_TPR) - TOP:.1f}" fill="#fff1c2"/>'
    free = f'x="{RIGHT - 8}" y="{y(0.04):.1f}" text-anchor="end"'  # where no curve better than guessing goes
    label = f"<text {free}>shaded: scored, {BAND}</text>" if floor < MIN_TPR else ""
    middle = (LEFT + RIGHT) / 2
    return f"""<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{key}-title {key}-description">
<title id="{key}-title">{escape(title)}</title>
<desc id="{key}-description">{escape(description)}</desc>
<clipPath id="{key}-plot"><rect x="{LEFT}" y="{TOP - 3}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP + 3}"/></clipPath>
{band}{ticks}{label}
<text x="{middle}" y="18" text-anchor="middle">{escape(title)}</text>
<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#57606a"/>
<g clip-path="url(#{key}-plot)">
<path d="M{x(0)} {y(0):.1f}L{x(1)} {y(1):.1f}" stroke="#57606a" stroke-dasharray="1 4"/>
{paths}</g>
<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">false-positive rate (benign lesions flagged)</text>
<text x="{-(TOP + BOTTOM) / 2}" y="13" transform="rotate(-90)" text-anchor="middle"
>true-positive rate (malignant lesions found)</text>
</svg>"""


def _path(points: NDArray[np.float64]) -> str:
    """SVG path through ``points`` of shape (points, 2), of which a run within one cell of NEAR x NEAR keeps its first."""
    cells = np.floor(points / NEAR)
    keep = np.append(True, (cells[1:] != cells[:-1]).any(axis=1))
    return "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points[keep])
