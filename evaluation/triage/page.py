"""The triage pages: a patient's lesions in order of score, each with what made it; and the list of the patients."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.special import expit

from evaluation.html import chart, write_page
from evaluation.triage.cards import Card
from train.charts import BLUE, GREY, INK, VERMILION, styled_axes

#: More dots are set into a chart as pixels, so that the page stays small.
MOST_DOTS = 1500
#: A patient_id that can be a file's name as it is; "index" is the name of the list.
PLAIN_NAME = re.compile(r"(?!index$)[A-Za-z0-9][\w-]{0,80}", re.ASCII | re.IGNORECASE)
#: How the cards can be sorted: the value that page.js reads -> the words shown.
ORDERS = {
    "score down": "score, highest first",
    "score up": "score, lowest first",
    "tabular down": "tabular score, highest first",
    "tabular up": "tabular score, lowest first",
    "change down": "raised most by the image",
    "change up": "lowered most by the image",
    "site up": "site",
}


@dataclass(frozen=True)
class Patient:
    """A patient, and the scores of all the lesions.

    Attributes:
        patient_id: as in the metadata.
        known: age, sex and hospital, in words.
        why: why this patient has a page.
        scored_by: which models and networks made the scores.
        labels: 0/1 of all lesions in order of place, shape (lesions,).
        tabular: their tabular logits, same shape.
        network: their network logits, same shape.
    """

    patient_id: str
    known: str
    why: str
    scored_by: str
    labels: np.ndarray
    tabular: np.ndarray
    network: np.ndarray

    @property
    def page(self) -> str:
        """The name of the patient's file; an id that is no safe name is reduced to safe letters, and its hash is added."""
        if PLAIN_NAME.fullmatch(self.patient_id):
            return f"{self.patient_id}.html"
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", self.patient_id)[:80]
        return f"{plain}-{hashlib.sha256(self.patient_id.encode()).hexdigest()[:12]}.html"

    @property
    def places(self) -> list[int]:
        """The places of the malignant lesions, from 1."""
        return [int(place) + 1 for place in np.flatnonzero(self.labels == 1)]


def write_patient(path: Path, patient: Patient, cards: Sequence[Card], facts: Mapping[str, str]) -> None:
    """Writes a patient's page.

    Args:
        path: the HTML file; it is replaced in one step.
        patient: whose page it is.
        cards: in order of place; they may be fewer than the patient has lesions.
        facts: name -> value, how the page was made.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_page(
        path,
        "triage_patient.html",
        title=f"Triage of patient {patient.patient_id}",
        patient=patient,
        headline=headline(patient),
        chart=score_chart(patient),
        cards=cards,
        orders=ORDERS,
        sites=sorted({card.site for card in cards}),
        in_words=score_in_words,
        longest_bar=max((abs(driver.shap) for card in cards for driver in card.drivers), default=1.0),
        colours={"raises": VERMILION, "lowers": BLUE},
        facts=facts,
    )


def write_index(path: Path, patients: Sequence[Patient], chosen: str, facts: Mapping[str, str]) -> None:
    """Writes the page that lists the patients' pages, which lie beside it.

    Args:
        path: the HTML file; it is replaced in one step.
        patients: in the order of the list.
        chosen: how they were chosen, a sentence.
        facts: name -> value, how the pages were made.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_page(path, "triage_index.html", title="Triage: patients", patients=patients, chosen=chosen, facts=facts)


def headline(patient: Patient) -> str:
    """How many lesions the patient has, and the places of the malignant ones."""
    count, places = len(patient.labels), patient.places
    lesions = f"{count:,} lesion{'s' if count > 1 else ''}"
    if not places:
        return f"{lesions}, none of them malignant; the highest network logit is {patient.network[0]:+.2f}."
    listed = ", ".join(f"{place:,}" for place in places)
    return f"{lesions}, {len(places)} of them malignant: place{'s' if len(places) > 1 else ''} {listed} by score."


def score_in_words(logit: float) -> str:
    """A logit and its probability: "-4.36 (1.3 %)"."""
    share = 100 * float(expit(logit))
    shown = f"{share:.1f}" if share >= 1 else f"{share:.2f}" if share >= 0.01 else "below 0.01"
    return f"{logit:+.2f} ({shown}\N{NO-BREAK SPACE}%)"


def score_chart(patient: Patient) -> Markup:
    """The tabular against the network logits of all the patient's lesions, as SVG."""
    both = np.concatenate([patient.tabular, patient.network])
    ends = (both.min() - 0.3, both.max() + 0.3)
    malignant = patient.labels == 1
    dots: dict[str, Any] = {"marker": "o", "s": 24, "color": BLUE, "alpha": 0.6, "linewidths": 0, "zorder": 2}
    triangles: dict[str, Any] = {
        "marker": "^",
        "s": 70,
        "color": VERMILION,
        "edgecolors": INK,
        "linewidths": 0.8,
        "zorder": 3,
    }
    with styled_axes(4.8, 3.9) as (figure, axes):
        axes.plot(ends, ends, "--", color=GREY, linewidth=1, label="the image changes nothing", zorder=1)
        for rows, name, style in ((~malignant, "benign", dots), (malignant, "malignant", triangles)):
            if rows.any():
                style |= {"label": f"{name} ({rows.sum():,})", "rasterized": len(rows) > MOST_DOTS}
                axes.scatter(patient.tabular[rows], patient.network[rows], **style)
        axes.set(xlim=ends, ylim=ends, xlabel="tabular logit", ylabel="network logit")
        axes.grid()
        # Outside of the axes, where it hides no lesion.
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9, columnspacing=1, handletextpad=0.4)
    raised, lowered = (patient.network > patient.tabular).sum(), (patient.network < patient.tabular).sum()
    return chart(
        figure,
        f"Tabular against network logits of the lesions of patient {patient.patient_id}. {headline(patient)} "
        f"The image raises {raised:,} and lowers {lowered:,}.",
    )
