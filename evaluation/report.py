"""One HTML page about a dry run: what the submission scores, where it fails, and how it was made. A local tool.

The page needs no network and no script, and its policy forbids both. The plots are SVG by Matplotlib, set into the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd
from numpy.typing import ArrayLike

from evaluation.curves import REGION, calibration_section, distribution_figure, examined_section, roc_figure
from evaluation.groups import divide, group_section, measure_groups
from evaluation.html import table_of, write_page
from evaluation.measures import BEST, FINAL, calibration, operating_points
from inference.schema import PATIENT, TARGET
from inference.scoring import RANK_AVERAGE
from utils import TOP_K, Estimate, ScoreTable

WIDTH = "68rem"  # of the page: the tables of the groups are wide


@dataclass(frozen=True)
class Scored:
    """What was scored and how.

    Attributes:
        rows: labelled rows, as ``read_metadata`` gives them; ``target`` and ``patient_id`` must be there.
        scores: name -> finite numbers of shape (rows,). "final" is the submission, the score of the headline, or the first
            one where there is no such name; "best possible" is drawn dashed and grey.
        logits: those of ``scores`` that tell logits of being malignant, in that scale, shape (rows,).
        combination: how the submission was combined; an average of ranks is no probability.
        warning: stands above all figures.
    """

    rows: pd.DataFrame
    scores: Mapping[str, ArrayLike]
    logits: Mapping[str, ArrayLike] = field(default_factory=dict)
    combination: str = ""
    warning: str = ""

    @property
    def headline(self) -> str:
        """The score that the page is about."""
        return FINAL if FINAL in self.scores else next(iter(self.scores))


def write_report(path: Path, title: str, table: ScoreTable, scored: Scored, sections: Mapping[str, str]) -> None:
    """Writes the page to ``path``.

    Args:
        path: the HTML file; it is replaced in one step.
        title: heading of the page.
        table: what ``utils.bootstrap_scores`` measured of ``scored.scores``, with its seed 0; other intervals on the page
            come of as many resamples.
        scored: the rows and their scores.
        sections: heading -> HTML of further sections, which follow in this order; empty ones are left out.

    Raises:
        InputError: ``path`` cannot be written.
    """
    parts = {name: html for name, html in (_measured(table, scored) | dict(sections)).items() if html}
    links = "\n".join(f'<a href="#part-{number}">{escape(name)}</a>' for number, name in enumerate(parts))
    told = [f'<h2 id="part-{number}">{escape(name)}</h2>\n{html}' for number, (name, html) in enumerate(parts.items())]
    warning = f'<p class="warning">{escape(scored.warning)}</p>\n' if scored.warning else ""
    body = f"""{warning}<p class="headline">{_headline(table, scored.headline)}</p>
<nav class="controls" aria-label="Parts of this page">
{links}
</nav>
"""
    write_page(path, title, body + "\n".join(told), WIDTH)


def _measured(table: ScoreTable, scored: Scored) -> dict[str, str]:
    """Heading -> HTML of the sections on what the scores reach."""
    rows, headline, samples = scored.rows, scored.headline, table.samples
    labels, patients = rows[TARGET].to_numpy(), rows[PATIENT].to_numpy()
    points, band = operating_points(labels, patients, scored.scores, headline, samples)
    divisions, absent = divide(rows)
    groups = measure_groups(rows, scored.scores[headline], divisions, samples)
    whole = table.scores[headline]
    return {
        "Scores": _score_table(table, headline) + _note(table),
        "Paired differences": _difference_table(table, headline),
        "ROC curves": roc_figure(table, labels, scored.scores, headline, band),
        "Number needed to examine": examined_section(points, headline, table.rows, table.malignant),
        "Groups": group_section(groups, absent, whole.pauc, whole.top15),
        "Calibration": _calibrated(scored, samples),
        "Scores by class": distribution_figure(labels, scored.logits, scored.scores, points) if scored.logits else "",
    }


def _calibrated(scored: Scored, samples: int) -> str:
    """The section on calibration: of every score that is logits; empty where none is."""
    named = {name: values for name, values in scored.logits.items() if name != BEST}
    note = ""
    if scored.combination == RANK_AVERAGE and named.pop(FINAL, None) is not None:
        note = "The submission is an average of ranks, which is no probability: it is left out."
    labels, patients = scored.rows[TARGET].to_numpy(), scored.rows[PATIENT].to_numpy()
    measured = {name: calibration(labels, patients, values, samples) for name, values in named.items()}
    return calibration_section(measured, note) if measured else ""


def _note(table: ScoreTable) -> str:
    """What the numbers of the score table mean."""
    return f"""
<p class="note">pAUC is the competition's metric, the area of the ROC curve {REGION}: the best
is 0.20, guessing 0.02. AUC is the whole area. Top-{TOP_K} is the share of a patient's malignant lesions among the patient's
{TOP_K} highest scored, mean over patients who have any. Intervals: {table.samples:,} resamples of whole patients.</p>"""


def _headline(table: ScoreTable, name: str) -> str:
    pauc = table.scores[name].pauc
    best = f"; the best possible on these rows is {table.scores[BEST].pauc.value:.4f}" if BEST in table.scores else ""
    whole = f"{table.rows:,} lesions of {table.patients:,} patients, {table.malignant:,} of them malignant"
    who = "The submission" if name == FINAL else f"The score <em>{escape(name)}</em>"
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
    return table_of("Paired differences of pAUC", heads, rows, "numbers last-words")


def _reading(apart: Estimate) -> str:
    """A difference in words; the two scores were measured on the same resamples, so an interval beside zero tells."""
    if apart.low == apart.high == 0:
        return "the same in every resample"
    if apart.low > 0 or apart.high < 0:
        return "higher" if apart.low > 0 else "lower"
    return "not told apart by these rows"
