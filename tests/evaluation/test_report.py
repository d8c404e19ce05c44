import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from html_page import Page
from scipy.special import expit

from evaluation.html import Section
from evaluation.report import Scored, write_report
from inference.schema import PATIENT, TARGET
from utils import MIN_TPR, InputError, bootstrap_scores, partial_auc

FACTS = {"rows": "400", "commands": "make dry-run\nmake report"}


@pytest.fixture
def run():
    """Labels, patients and scores as a dry run has them."""
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10 == 0).astype(int)
    tabular, network = rng.normal(size=(2, 400)) + np.outer((1, 3), labels)
    scores = {"tabular": tabular, "image only": network, "final": tabular + network, "best possible": labels}
    return labels, np.arange(400) // 8, scores


def page_of(path, labels, patients, scores, title="Dry run", facts=FACTS, samples=50, **more):
    table = bootstrap_scores(labels, patients, scores, samples=samples)
    scored = Scored(pd.DataFrame({TARGET: np.asarray(labels).astype(int), PATIENT: patients}), scores, **more)
    rows = [list(fact) for fact in facts.items()]
    sections = [Section("Facts", "report/making.html", {"facts": facts, "files": rows})] if facts else []
    write_report(path / "report.html", title, table, scored, sections)
    return (path / "report.html").read_text(encoding="utf-8"), table


def plots_of(page):
    """The SVG elements of the two charts of ROC curves, the first of the page: the whole curves, the scored part."""
    return [ElementTree.fromstring(plot) for plot in re.findall(r"<svg[^>]*role=.*?</svg>", page, re.DOTALL)][:2]


def curve_in(plot, name, floor):
    """The points of a curve as false-positive and true-positive rates, read back from where they are drawn."""
    curve = next(group for group in plot.iter("g") if group.findtext("title") == name)
    points = np.array(re.findall(r"[ML] (\S+) (\S+)", curve.find("path").get("d")), dtype=float)
    box = next(plot.iter("clipPath")).find("rect")  # the axes, which reach 1.5 % beyond the rates on every side
    left, top, width, height = (float(box.get(name)) for name in ("x", "y", "width", "height"))
    across, up = (points[:, 0] - left) / width, 1 - (points[:, 1] - top) / height
    return across * 1.03 - 0.015, floor + (1 - floor) * (up * 1.03 - 0.015)


def test_the_headline_and_the_table_hold_the_scores(tmp_path, run):
    page, table = page_of(tmp_path, *run)
    pauc = table.scores["final"].pauc
    read = Page(page)
    text = "".join(read.words).replace("\xa0", " ")
    text = " ".join(text.split())
    assert f"The submission reaches a pAUC of {pauc.value:.4f} (95 % interval {pauc.low:.4f} to {pauc.high:.4f})" in text
    assert "on 400 lesions of 50 patients, 40 of them malignant; the best possible on these rows is 0.2000." in text
    row = next(row for row in read.rows if row[0] == "tabular")
    assert row[1] == f"{partial_auc(run[0], run[2]['tabular']):.4f}"
    assert len(row) == 7
    assert ["commands", "make dry-run\nmake report"] in read.rows


def test_differences_are_paired_and_read_in_words(tmp_path, run):
    page, table = page_of(tmp_path, *run)
    rows = {row[0]: row[1:] for row in Page(page).rows}
    apart = table.difference("final", "tabular")
    assert rows["final − tabular"][:2] == [f"{apart.value:+.4f}", f"{apart.low:+.4f} to {apart.high:+.4f}"]  # noqa: RUF001
    assert rows["final − tabular"][2] == "higher"  # noqa: RUF001
    assert rows["final − best possible"][2] == "lower"  # noqa: RUF001


def test_equal_scores_are_the_same_in_every_resample(tmp_path, run):
    labels, patients, scores = run
    page, _ = page_of(tmp_path, labels, patients, {"tabular": scores["tabular"], "final": scores["tabular"]})
    rows = {row[0]: row[1:] for row in Page(page).rows}
    assert rows["final − tabular"][2] == "the same in every resample"  # noqa: RUF001


def test_one_score_of_any_name_is_enough(tmp_path, run):
    labels, patients, scores = run
    page, _ = page_of(tmp_path, labels, patients, {"tabular": scores["tabular"]}, facts={})
    text = "".join(Page(page).words)
    assert "The score tabular reaches a pAUC" in text
    assert "Paired differences" not in text


def test_every_value_is_escaped(tmp_path, run):
    labels, patients, scores = run
    evil = "<script>alert('x')</script>&\""
    page, _ = page_of(tmp_path, labels, patients, {evil: scores["tabular"]}, title=evil, facts={evil: evil})
    assert "<script" not in page
    read = Page(page)
    assert "script" not in read.tags
    assert [evil, evil] in read.rows


def test_the_page_needs_nothing_from_outside(tmp_path, run):
    page, _ = page_of(tmp_path, *run)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//|@import|url\((?!#)|<script|<link|<img|<iframe", page)
    attributes = Page(page).attributes
    names = {name for _, name, _ in attributes}
    assert "src" not in names
    links = [value for _, name, value in attributes if name in ("href", "xlink:href")]
    assert links
    assert set(links) <= {f"#{value}" for _, name, value in attributes if name == "id"}  # only to parts of the page
    assert not any(name.startswith("on") for name in names)


def test_the_page_can_be_read_aloud(tmp_path, run):
    page, _ = page_of(tmp_path, *run)
    attributes = Page(page).attributes
    assert ("html", "lang", "en") in attributes
    assert ("th", "scope", "col") in attributes
    assert ("th", "scope", "row") in attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    whole, part = plots_of(page)
    assert whole.get("aria-label").startswith("Whole ROC curve. Partial AUC: tabular, 0.")
    assert part.get("aria-label") == "Scored part, enlarged. The same curves above 80 % true-positive rate."
    for plot in (whole, part):
        assert sorted(title.text for title in plot.iter("title")) == sorted(run[2])
        assert {"false-positive rate (benign lesions flagged)", "0.0", "1.0"} <= {
            text.text.strip() for text in plot.iter("text")
        }


def test_both_charts_show_the_curve_whose_area_is_the_metric(tmp_path):
    rng = np.random.default_rng(1)
    labels = rng.random(300) < 0.2
    scores = rng.integers(0, 12, 300)
    page, _ = page_of(tmp_path, labels, np.arange(300), {"score": scores})
    whole, part = plots_of(page)
    false, true = curve_in(whole, "score", 0.0)
    assert [false[0], true[0], false[-1], true[-1]] == pytest.approx([0, 0, 1, 1], abs=1e-5)
    area = np.sum(np.diff(true) * (1 - (false[1:] + false[:-1]) / 2))
    assert area == pytest.approx(partial_auc(labels, scores, 0.0), abs=1e-5)
    false, true = curve_in(part, "score", MIN_TPR)
    rates = np.linspace(MIN_TPR, 1, 2001)
    area = np.trapezoid(1 - np.interp(rates, true, false), rates)
    assert area == pytest.approx(partial_auc(labels, scores), abs=1e-4)


def test_the_curve_of_a_perfect_score_goes_through_the_corner(tmp_path):
    labels = np.array([0, 0, 1, 1])
    page, _ = page_of(tmp_path, labels, [1, 2, 3, 4], {"perfect": labels}, samples=5)
    for plot, floor in zip(plots_of(page), (0.0, MIN_TPR), strict=True):
        false, true = curve_in(plot, "perfect", floor)
        assert false[-2:] == pytest.approx([0, 1], abs=1e-5)
        assert true[-2:] == pytest.approx([1, 1], abs=1e-5)


def test_the_same_run_gives_the_same_page(tmp_path, run):
    assert page_of(tmp_path, *run)[0] == page_of(tmp_path, *run)[0]


def test_names_are_drawn_as_they_are_written(tmp_path, run):
    labels, patients, scores = run
    names = ["_hidden", "$x^2$", "<b>&amp;", "two\nlines"]
    page, _ = page_of(tmp_path, labels, patients, dict.fromkeys(names, scores["tabular"]))
    whole, _ = plots_of(page)
    drawn = " ".join("".join(text.itertext()) for text in whole.iter("text"))
    for name in ("_hidden", "$x^2$", "<b>&amp;", "two"):
        assert name in drawn


def test_100_000_lesions_make_a_small_page(tmp_path):
    rng = np.random.default_rng(2)
    labels = rng.random(100_000) < 0.02
    scores = {f"score {number}": rng.normal(size=100_000) + labels for number in range(6)}
    page, _ = page_of(tmp_path, labels, np.arange(100_000) // 100, scores, samples=2)
    assert len(page) < 300_000


def test_a_folder_that_cannot_be_written_is_named(tmp_path, run, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InputError, match=r"report\.html cannot be written"):
        page_of(tmp_path, *run)
    assert list(tmp_path.iterdir()) == []


def test_the_page_links_to_each_of_its_parts(tmp_path, run):
    page, _ = page_of(tmp_path, *run)
    links = re.findall(r'<a href="#part-\d+">(.*?)</a>', page)
    assert links == re.findall(r'<h2 id="part-\d+">(.*?)</h2>', page)
    assert links == ["Scores", "Paired differences", "ROC curves", "Number needed to examine", "Groups", "Facts"]


def test_calibration_and_distributions_are_of_the_scores_that_are_logits(tmp_path, run):
    labels, patients, scores = run
    logits = {"tabular": scores["tabular"], "final": scores["final"]}
    scores = {"tabular": scores["tabular"], "final": expit(scores["final"])}
    read = Page(page_of(tmp_path, labels, patients, scores, logits=logits)[0])
    text = "".join(read.words)
    assert "Scores by class" in text
    assert f"tabular: {labels.sum() / expit(logits['tabular']).sum():.2f} malignant lesions observed for each one" in text
    assert "final: " in text


def test_every_stage_has_its_paired_difference_and_its_calibration(tmp_path, run):
    labels, patients, scores = run
    logits = {"tabular": scores["tabular"], "network": scores["image only"], "stacking": -scores["tabular"]}
    logits |= {"final": scores["final"]}
    page, table = page_of(tmp_path, labels, patients, logits, logits=logits)
    read = Page(page)
    rows = {row[0]: row[1:] for row in read.rows}
    for name in ("tabular", "network", "stacking"):
        apart = table.difference("final", name)
        assert rows[f"final − {name}"][:2] == [f"{apart.value:+.4f}", f"{apart.low:+.4f} to {apart.high:+.4f}"]  # noqa: RUF001
        ratio = labels.sum() / expit(logits[name]).sum()
        assert f"{name}: {ratio:.2f} malignant lesions observed for each one" in "".join(read.words)


def test_a_warning_stands_above_the_figures(tmp_path, run):
    page, _ = page_of(tmp_path, *run, warning="too good & <high>")
    assert page.index("too good &amp; &lt;high&gt;") < page.index('class="headline"')


def test_the_submission_s_curve_has_a_band(tmp_path, run):
    page, _ = page_of(tmp_path, *run)
    assert "pointwise 95&nbsp;% interval of the false-positive rate of final, from 50 resamples" in " ".join(page.split())
    for plot in plots_of(page):
        assert "#56b4e9; opacity: 0.35" in ElementTree.tostring(plot, encoding="unicode")
