"""The report of a dry run: one HTML page on what the submission scores, where it fails, and how it was made. A local tool.

The page needs no network and no script, and its policy forbids both. Each section has a template in templates/report/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from numpy.typing import ArrayLike

from evaluation.curves import REGION, calibration_charts, class_charts, roc_charts
from evaluation.groups import divide, group_section, measure_groups
from evaluation.html import Section, write_page
from evaluation.measures import BEST, FINAL, SENSITIVITIES, Calibration, calibration, operating_points
from inference.schema import PATIENT, TARGET
from utils import TOP_K, ScoreTable


@dataclass(frozen=True)
class Scored:
    """The rows and their scores.

    Attributes:
        rows: labelled rows, as ``read_metadata`` gives them; ``target`` and ``patient_id`` must be there.
        scores: name -> finite numbers of shape (rows,). The headline is of "final", the submission, or of the first score
            where there is none of that name; "best possible" is dashed and grey in charts.
        logits: those of ``scores`` that are logits of being malignant, in that scale, shape (rows,).
        warning: stands above all figures.
    """

    rows: pd.DataFrame
    scores: Mapping[str, ArrayLike]
    logits: Mapping[str, ArrayLike] = field(default_factory=dict)
    warning: str = ""

    @property
    def headline(self) -> str:
        """The score that the page is about."""
        return FINAL if FINAL in self.scores else next(iter(self.scores))


def write_report(path: Path, title: str, table: ScoreTable, scored: Scored, sections: Sequence[Section]) -> None:
    """Writes the page to ``path``.

    Args:
        path: the HTML file; it is replaced in one step.
        title: heading of the page.
        table: what ``utils.bootstrap_scores`` measured of ``scored.scores``, with its seed 0; other intervals on the page
            are of as many resamples.
        scored: the rows and their scores.
        sections: follow those on the scores.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_page(
        path,
        "report/page.html",
        title=title,
        table=table,
        headline=scored.headline,
        warning=scored.warning,
        names={"final": FINAL, "best": BEST},
        sections=[*score_sections(table, scored), *sections],
    )


def score_sections(table: ScoreTable, scored: Scored) -> list[Section]:
    """The sections on the scores; one without content is left out."""
    rows, headline, samples = scored.rows, scored.headline, table.samples
    labels, patients = rows[TARGET].to_numpy(), rows[PATIENT].to_numpy()
    points, band = operating_points(labels, patients, scored.scores, headline, samples)
    divisions, absent = divide(rows)
    groups = measure_groups(rows, scored.scores[headline], divisions, samples)
    common = {"headline": headline, "region": REGION, "sensitivities": SENSITIVITIES, "samples": samples}
    differences = {name: table.difference(headline, name) for name in table.scores if name != headline}
    curves = roc_charts(table, labels, scored.scores, headline, band)
    counts = {"points": points, "rows": table.rows, "malignant": table.malignant}
    sections = [Section("Scores", "report/scores.html", common | {"table": table, "top": TOP_K})]
    if differences:
        sections.append(Section("Paired differences", "report/differences.html", common | {"differences": differences}))
    sections += [
        Section("ROC curves", "report/roc.html", common | {"charts": curves}),
        Section("Number needed to examine", "report/examined.html", common | counts),
        group_section(groups, absent, table.scores[headline].pauc, table.scores[headline].top15),
        *_calibration_section(scored, samples),
    ]
    if scored.logits:
        charts = class_charts(labels, scored.logits, scored.scores, points)
        sections.append(Section("Scores by class", "report/classes.html", common | {"charts": charts}))
    return sections


def measured_calibrations(scored: Scored, samples: int) -> dict[str, Calibration]:
    """Score -> its calibration, of every score that is logits."""
    logits = {name: values for name, values in scored.logits.items() if name != BEST}
    labels, patients = scored.rows[TARGET].to_numpy(), scored.rows[PATIENT].to_numpy()
    return {name: calibration(labels, patients, values, samples) for name, values in logits.items()}


def _calibration_section(scored: Scored, samples: int) -> list[Section]:
    """The section on calibration; none where no score is logits."""
    measured = measured_calibrations(scored, samples)
    if not measured:
        return []
    context = {"calibrations": measured, "charts": calibration_charts(measured)}
    return [Section("Calibration", "report/calibration.html", context)]
