import re
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.special import expit

from evaluation.curves import calibration_charts, class_charts
from evaluation.html import render
from evaluation.measures import Calibration, CalibrationBin, OperatingPoint, calibration, operating_points
from utils import Estimate


@pytest.fixture
def scored():
    """Labels, patients and logits of 800 lesions."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1.5, 1.5, 800)
    return (rng.random(800) < expit(logits)).astype(int), np.arange(800) // 20, logits


def calibration_page(calibrations):
    charts = calibration_charts(calibrations)
    return render("report/calibration.html", calibrations=calibrations, charts=charts)


def texts_of(page):
    """The words drawn in each chart."""
    drawings = re.findall(r"<svg.*?</svg>", page.replace("xlink:href", "href"), re.DOTALL)
    plots = [ElementTree.fromstring(drawing) for drawing in drawings]
    return [[text.text.strip() for text in plot.iter("text") if text.text] for plot in plots]


def test_lesions_to_examine_stand_in_the_table():
    points = {
        "<a>": [
            OperatingPoint(0.1, 1200, 80, Estimate(15, 12.346, 20)),
            OperatingPoint(0.05, 3000, 90, Estimate(33.333, 30, 40)),
        ]
    }
    page = render("report/examined.html", points=points, headline="<a>", rows=10_000, malignant=100)
    assert '<tr class="first"><th scope="row">&lt;a&gt;</th><td>15.00</td><td>12.35 to 20.00</td>' in page
    assert "<td>1,200 (12.0 %)</td><td>33.33</td><td>30.00 to 40.00</td><td>3,000 (30.0 %)</td>" in page
    assert "Without a score it is 100.0" in page


def test_every_calibration_bin_is_in_table_and_chart(scored):
    measured = calibration(*scored, samples=20)
    page = calibration_page({"tabular": measured, "final": measured})
    assert page.count("<svg") == 2
    for part in measured.bins:
        shown = [f"{100 * value:#.3g}".rstrip(".") for value in (part.predicted, part.observed.value)]
        row = f'<th scope="row">{shown[0]}</th><td>{shown[1]}</td>'
        assert page.count(row) == 2
    ratio = measured.observed_to_expected
    assert f"final: {ratio.value:.2f} malignant lesions observed for each one expected" in page
    assert f"{ratio.low:.2f} to {ratio.high:.2f}" in page


def test_a_bin_without_malignant_lesions_can_be_drawn():
    empty = CalibrationBin(50, 0, 1e-9, Estimate(0, 0, 0))
    full = CalibrationBin(10, 5, 0.4, Estimate(0.5, 0.2, 0.8))
    page = calibration_page({"tabular": Calibration([empty, full], Estimate(1.2, 1, 1.5))})
    assert '<th scope="row">1.00e-07</th><td>0.00</td>' in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_the_rare_class_has_its_axes(scored):
    labels, patients, logits = scored
    (drawn,) = texts_of("".join(calibration_charts({"tabular": calibration(labels, patients, logits - 6, samples=5)})))
    assert {"0.01 %", "100 %", "predicted probability", "observed rate"} <= set(drawn)


def test_distributions_mark_where_80_and_90_in_100_are_found(scored):
    labels, patients, logits = scored
    scores = {"tabular": logits, "final": expit(logits)}  # ranked alike, on two scales
    points, _ = operating_points(labels, patients, scores, "final", samples=2)
    page = "".join(class_charts(labels, dict.fromkeys(scores, logits), scores, points))
    for drawn in texts_of(page):
        assert {f"benign, {(labels == 0).sum()}", f"malignant, {(labels == 1).sum()}", "80 %", "90 %"} <= set(drawn)
    median = np.median(logits[labels == 1])
    assert f'aria-label="Logits of final by class; medians: benign {np.median(logits[labels == 0]):.2f}' in page
    assert f"malignant {median:.2f}" in page
    tabular, final = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    places = [re.findall(r'd="M (\S+) \S+ \nL \1 \S+ \n" clip-path[^>]*dasharray', plot) for plot in (tabular, final)]
    assert len(places[0]) >= 2
    assert places[0] == places[1]


def test_a_score_of_one_value_can_be_drawn():
    labels = np.array([0, 1, 0, 1])
    points, _ = operating_points(labels, np.arange(4), {"a": np.zeros(4)}, "a", samples=2)
    (drawn,) = class_charts(labels, {"a": np.zeros(4)}, {"a": np.zeros(4)}, points)
    assert "<svg" in drawn
