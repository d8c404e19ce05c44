"""The triage pages: a patient's lesions in order of score, each with what made it; and the list of the patients."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from scipy.special import expit

from evaluation.html import chart, fact_table, picture, table_of, write_page

#: Okabe and Ito's vermilion and blue: what raises a score, and what lowers it.
RAISES, LOWERS = "#d55e00", "#0072b2"
#: More dots are set into a chart as pixels, so that the page stays small.
MOST_DOTS = 1500
#: A patient_id that can be a file's name as it is; "index" is the list's own.
PLAIN_NAME = re.compile(r"(?!index$)[A-Za-z0-9][\w-]{0,80}", re.ASCII | re.IGNORECASE)
WARNING = """<p class="warning"><strong>This is no medical device.</strong> It ranks lesions for a competition. It has not
been examined for use on people, and must not be used to decide about anybody's skin.</p>"""
READING = """<p class="note">Tabular: the mean logits of the CatBoost models. Fusion: the mean logits of the networks,
which see the crop and the tabular logits; the tabular ones where no image was seen. A probability is what a logits says
by itself, 1 / (1 + exp(-logits)). Bars: SHAP values, by how much a feature moves this lesion's tabular logits; right
raises it, left lowers it, and all bars of the page have one scale. Right of a crop in colour the same in grey under its
Grad-CAM: yellow raises the fusion's logits most, grey does not; each on its own scale.</p>"""


@dataclass(frozen=True)
class Driver:
    """A feature, its value in words, and its SHAP value in tabular logits."""

    feature: str
    value: str
    shap: float


@dataclass(frozen=True)
class Lesion:
    """A lesion as its card shows it.

    Attributes:
        place: among the patient's lesions by fusion logits, from 1.
        malignant: its label.
        tabular: logits.
        fusion: logits; the tabular ones where no image was seen.
        seen: whether the networks saw its image.
        site: anatomical site, or "unknown".
        told: what else is known of it, in words.
        drivers: the strongest features, the strongest first.
        start: the models' mean score, logits. It, all drivers and ``others`` add up to ``tabular``.
        others: what all other features add, logits.
        crop: JPEG bytes; empty where no image was seen.
        described: what the crop's picture shows, for those who do not see it.
    """

    isic_id: str
    place: int
    malignant: bool
    tabular: float
    fusion: float
    seen: bool
    site: str
    told: str
    drivers: Sequence[Driver]
    start: float
    others: float
    crop: bytes
    described: str


@dataclass(frozen=True)
class Patient:
    """A patient, and where all the lesions lie.

    Attributes:
        patient_id: as in the metadata.
        told: age, sex and hospital, in words.
        why: why this patient has a page.
        scored_by: which models and networks made the scores.
        labels: 0/1 of all lesions in order of place, shape (lesions,).
        tabular: their logits, same shape.
        fusion: their logits, same shape.
    """

    patient_id: str
    told: str
    why: str
    scored_by: str
    labels: np.ndarray
    tabular: np.ndarray
    fusion: np.ndarray

    @property
    def page(self) -> str:
        """The name of the patient's file; an id that makes no safe name is spelt out as far as it does, with its hash."""
        if PLAIN_NAME.fullmatch(self.patient_id):
            return f"{self.patient_id}.html"
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", self.patient_id)[:80]
        return f"{plain}-{hashlib.sha256(self.patient_id.encode()).hexdigest()[:12]}.html"

    @property
    def places(self) -> list[int]:
        """The places of the malignant lesions, from 1."""
        return [int(place) + 1 for place in np.flatnonzero(self.labels == 1)]


# A patient's page


def write_patient(path: Path, patient: Patient, lesions: Sequence[Lesion], facts: Mapping[str, str]) -> None:
    """Writes a patient's page.

    Args:
        path: the HTML file; it is replaced in one step.
        patient: whose page it is.
        lesions: those that have a card, in order of place; they may be fewer than the patient has.
        facts: name -> value, how the page was made.

    Raises:
        InputError: ``path`` cannot be written.
    """
    longest = max((abs(driver.shap) for lesion in lesions for driver in lesion.drivers), default=1.0)
    cards = "\n".join(lesion_card(lesion, longest) for lesion in lesions)
    body = f"""<p><a href="index.html">All patients of these pages</a></p>
{WARNING}
<p class="headline">{escape(headline(patient))}</p>
<p>Why this patient: {escape(patient.why)}. {escape(patient.told)}</p>
<p>{escape(patient.scored_by)}</p>
<h2>The patient's lesions at a glance</h2>
<figure><div class="panels">{score_chart(patient)}</div>
<figcaption>Above the dashed line the image raises a lesion's score, below it lowers it.</figcaption></figure>
<h2>Lesions in order of score</h2>
{READING}
<p>{shown_in_words(len(lesions), len(patient.labels))}</p>
{controls(lesions)}
<p data-count="lesions" role="status"></p>
<ol class="cards" id="lesions" data-list>
{cards}
</ol>
<h2>How it was made</h2>
{fact_table(facts)}"""
    write_page(path, f"Triage of patient {patient.patient_id}", body, "75rem")


def headline(patient: Patient) -> str:
    """How many lesions the patient has, and the places of the malignant ones."""
    count, places = len(patient.labels), patient.places
    lesions = f"{count:,} lesion{'s' if count > 1 else ''}"
    if not places:
        return f"{lesions}, none of them malignant; the highest score is {patient.fusion[0]:+.2f} logits."
    listed = ", ".join(f"{place:,}" for place in places)
    return f"{lesions}, {len(places)} of them malignant: place{'s' if len(places) > 1 else ''} {listed} by score."


def shown_in_words(shown: int, lesions: int) -> str:
    """Which of the patient's lesions have a card."""
    if shown == lesions:
        return "All lesions of the patient are shown."
    return f"Of {lesions:,} lesions {shown:,} are shown: those with the highest scores, and every malignant one."


def controls(lesions: Sequence[Lesion]) -> str:
    """What sorts and filters the cards; labels say what each does."""
    sites = sorted({lesion.site for lesion in lesions})
    orders = {
        "score down": "score, highest first",
        "score up": "score, lowest first",
        "tabular down": "tabular score, highest first",
        "tabular up": "tabular score, lowest first",
        "change down": "raised most by the image",
        "change up": "lowered most by the image",
        "site up": "site",
    }
    sort = "".join(f'<option value="{key}">{words}</option>' for key, words in orders.items())
    places = "".join(f'<option value="{escape(site)}">{escape(site)}</option>' for site in sites)
    return f"""<div class="controls">
<label>Sort by <select data-for="lesions" data-sort>{sort}</select></label>
<label>Site <select data-for="lesions" data-key="site"><option value="">all</option>{places}</select></label>
<label>Label <select data-for="lesions" data-key="label"><option value="">all</option>
<option value="malignant">malignant</option><option value="benign">benign</option></select></label>
<label>Search <input type="search" data-for="lesions" data-key="text" placeholder="id, site, feature"></label>
</div>"""


def lesion_card(lesion: Lesion, longest: float) -> str:
    """A lesion: place, label, crop, both scores, and what drives the tabular one.

    Args:
        lesion: what to show.
        longest: the SHAP value, logits, whose bar takes all the room of its side.
    """
    label = "malignant" if lesion.malignant else "benign"
    change, below = lesion.fusion - lesion.tabular, sum(driver.shap for driver in lesion.drivers)
    changed = signed(change) if lesion.seen else "no image seen"
    seen = picture(lesion.crop, lesion.described) if lesion.crop else ""
    drivers = "\n".join(driver_item(driver, longest) for driver in lesion.drivers)
    return f"""<li class="{label}" data-score="{lesion.fusion:.6g}" data-tabular="{lesion.tabular:.6g}" \
data-change="{f"{change:.6g}" if lesion.seen else ""}" data-site="{escape(lesion.site)}" data-label="{label}">
<h3>{lesion.place:,}. {escape(lesion.isic_id)}</h3>
<p><strong>{label}</strong>, {escape(lesion.site)}{escape(lesion.told)}</p>
{seen}
<dl class="scores"><dt>fusion</dt><dd>{score_in_words(lesion.fusion)}</dd>
<dt>tabular</dt><dd>{score_in_words(lesion.tabular)}</dd><dt>image adds</dt><dd>{changed}</dd></dl>
<p class="note">Tabular: start {signed(lesion.start)}, the features below {signed(below)}, \
all others {signed(lesion.others)}.</p>
<ul class="bars">
{drivers}
</ul></li>"""


def signed(logits: float) -> str:
    """A difference of logits with its sign; none is "+0.00"."""
    return f"{round(logits, 2) + 0.0:+.2f}"


def score_in_words(logits: float) -> str:
    """A logits and its probability, as HTML: "-4.36 (1.3 %)"."""
    share = 100 * float(expit(logits))
    told = f"{share:.1f}" if share >= 1 else f"{share:.2f}" if share >= 0.01 else "below 0.01"
    return f"{logits:+.2f} ({told}&nbsp;%)"


def driver_item(driver: Driver, longest: float) -> str:
    """A feature's name, value and signed SHAP value, and a bar from the middle to the right, or to the left."""
    length = 100 * driver.shap / longest
    colour = RAISES if driver.shap > 0 else LOWERS
    return (
        f"<li>{escape(driver.feature)} = {escape(driver.value)}: <strong>{signed(driver.shap)}</strong>"
        '<svg viewBox="-100 0 200 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<path fill="{colour}" d="M0 1h{length:.1f}v6H0z"/><path stroke="#808080" d="M0 0v8"/></svg></li>'
    )


def score_chart(patient: Patient) -> str:
    """The tabular against the fusion logits of all the patient's lesions, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure((4.8, 3.9), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([patient.tabular, patient.fusion])
    ends = (both.min() - 0.3, both.max() + 0.3)
    axes.plot(ends, ends, "--", color="#57606a", linewidth=1, label="the image changes nothing", zorder=1)
    malignant = patient.labels == 1
    pixels = {"rasterized": len(malignant) > MOST_DOTS}
    dots = (
        (~malignant, {"marker": "o", "s": 24, "color": LOWERS, "alpha": 0.6, "linewidths": 0, "zorder": 2}),
        (malignant, {"marker": "^", "s": 70, "color": RAISES, "edgecolors": "#1b1f24", "linewidths": 0.8, "zorder": 3}),
    )
    for (rows, how), name in zip(dots, ("benign", "malignant"), strict=True):
        if rows.any():
            axes.scatter(patient.tabular[rows], patient.fusion[rows], label=f"{name} ({rows.sum():,})", **how, **pixels)
    axes.set(xlim=ends, ylim=ends, xlabel="tabular logits", ylabel="fusion logits")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    # Outside of the axes, where it hides no lesion.
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9, columnspacing=1, handletextpad=0.4)
    raised, lowered = (patient.fusion > patient.tabular).sum(), (patient.fusion < patient.tabular).sum()
    return chart(
        figure,
        f"Tabular against fusion logits of the lesions of patient {patient.patient_id}. {headline(patient)} "
        f"The image raises {raised:,} and lowers {lowered:,}.",
    )


# The list of the patients


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
    rows = [
        f'<tr><th scope="row"><a href="{escape(patient.page)}">{escape(patient.patient_id)}</a></th>'
        f"<td>{len(patient.labels):,}</td><td>{len(patient.places):,}</td>"
        f"<td>{patient.places[0] if patient.places else '-'}</td><td>{patient.places[-1] if patient.places else '-'}</td>"
        f'<td>{patient.fusion[0]:+.2f}</td><td class="words" style="white-space: normal; min-width: 16rem">'
        f"{escape(patient.why)}</td></tr>"
        for patient in patients
    ]
    heads = ("patient", "lesions", "malignant", "best place", "worst place", "highest score", "why this patient")
    body = f"""{WARNING}
<p>{escape(chosen)}</p>
{table_of("Patients with a page", heads, rows, "numbers last-words sortable")}
<p class="note">Best and worst place: of the patient's malignant lesions, among the patient's own by fusion logits, from 1.
Highest score: fusion logits. A heading sorts the table.</p>
<h2>How it was made</h2>
{fact_table(facts)}"""
    write_page(path, "Triage: patients", body)
