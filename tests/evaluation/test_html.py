import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from jinja2 import DictLoader, UndefinedError
from matplotlib.figure import Figure
from PIL import Image

from evaluation import html
from evaluation.html import ENVIRONMENT, SCRIPT, STYLE, Section, chart, data_uri, jpeg_of, render, write_page
from utils import Estimate, InputError

NASTY = "<script>alert('1')</script> & \"quoted\""
PAGES = {
    "words.html": '{% extends "base.html" %}{% block content %}<p>{{ words }}</p>{% endblock %}',
    "wide.html": '{% extends "base.html" %}{% set width = "20rem" %}{% set interactive = true %}',
}


@pytest.fixture
def pages(monkeypatch):
    """The macros and base.html, with two pages of the tests' own."""
    own = {name: ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0] for name in ("base.html", "macros.html")}
    monkeypatch.setattr(html, "ENVIRONMENT", ENVIRONMENT.overlay(loader=DictLoader(own | PAGES)))


def written(path, template, title="Title", **context):
    write_page(path / "page.html", template, title=title, **context)
    return (path / "page.html").read_text(encoding="utf-8")


def macro(name, *arguments, **named):
    return str(getattr(ENVIRONMENT.get_template("macros.html").module, name)(*arguments, **named))


def policy_of(page):
    found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)[1]
    return dict(part.strip().split(" ", 1) for part in found.split(";"))


class Text(HTMLParser):
    """The text of a page, and the tags in it."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text += text


# The page around it all


def test_a_page_without_anything_to_sort_has_no_script_and_allows_none(pages, tmp_path):
    page = written(tmp_path, "words.html", words="words")
    assert "<script" not in page
    assert policy_of(page) == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:"}


def test_the_policy_names_the_script_of_an_interactive_page(pages, tmp_path):
    page = written(tmp_path, "wide.html")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy_of(page)["script-src"] == f"'sha256-{digest}'"
    assert policy_of(page)["default-src"] == "'none'"


def test_a_page_has_a_title_a_language_a_width_and_nothing_from_elsewhere(pages, tmp_path):
    page = written(tmp_path, "wide.html", title=NASTY)
    text = Text(page)
    assert page.startswith("<!DOCTYPE html>") and '<html lang="en">' in page
    assert text.text.count(NASTY) == 2  # title and heading
    assert [tag for tag, _ in text.tags].count("h1") == 1
    assert ("main", {"style": "max-width: 20rem"}) in text.tags
    assert not re.search(r"https?:|url\(|@import|src=|href=", page)
    assert "prefers-color-scheme: dark" in STYLE
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_is_an_input_error(pages, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", "words.html", title="Title", words="")


def test_a_name_that_the_context_lacks_is_an_error(pages, tmp_path):
    with pytest.raises(UndefinedError, match="words"):
        written(tmp_path, "words.html")
    assert list(tmp_path.iterdir()) == []


def test_every_template_can_be_compiled():
    names = ENVIRONMENT.list_templates(extensions=["html"])
    assert {"base.html", "macros.html", "report/page.html"} <= set(names)
    for name in names:
        ENVIRONMENT.get_template(name)


# The parts of pages


def test_values_are_escaped_and_parts_are_not_escaped_again(pages):
    assert "&lt;script&gt;" in render("words.html", title="", words=NASTY)
    part = Section("Heading", "words.html", {"title": "", "words": NASTY}).html()
    assert "&lt;script&gt;" in render("words.html", title="", words=part) and "&amp;lt;" not in part


def test_a_table_is_named_and_scoped_and_reached_by_keyboard():
    table = macro("table", NASTY, ("<em>a</em>", "b"), [("x", 1), ("y", "2")], "numbers", first="y")
    tags = Text(table).tags
    assert tags[0] == ("div", {"class": "wide", "role": "region", "aria-label": NASTY, "tabindex": "0"})
    assert [attributes["scope"] for tag, attributes in tags if tag == "th"] == ["col", "col", "row", "row"]
    assert [attributes for tag, attributes in tags if tag == "tr"] == [{}, {}, {"class": "first"}]
    assert "<em>" not in table


def test_text_stays_text():
    assert Text(macro("row", (NASTY, NASTY, "2"))).text == f"{NASTY}{NASTY}2"
    assert "<script" not in macro("row", (NASTY, NASTY))
    facts = macro("facts", {NASTY: "one\ntwo", "b": NASTY}, NASTY)
    assert Text(facts).text.split()[0] == "factvalue"
    assert "one\ntwo" in facts and "<script" not in facts
    assert [tag for tag, _ in Text(facts).tags].count("tr") == 3


def test_a_picture_is_in_the_page_and_described():
    ((tag, attributes),) = Text(macro("picture", b"bytes", NASTY, "png", 128)).tags
    assert tag == "img" and attributes["alt"] == NASTY and attributes["width"] == "128"
    assert attributes["src"] == data_uri(b"bytes", "png") == "data:image/png;base64,Ynl0ZXM="
    assert "width" not in macro("picture", b"", "x")


def test_numbers_are_written_alike():
    cells = macro("estimated", Estimate(0.12345, -0.1, 1), 3, " *")
    assert cells == "<td>0.123</td><td>-0.100 to 1.000 *</td>"
    filters = ENVIRONMENT.filters
    assert (filters["thousands"](12345), filters["percent"](0.1234), filters["signed"](-0.001)) == (
        "12,345",
        "12.3 %",
        "+0.00",
    )


# Charts and pictures


def a_figure():
    figure = Figure((4, 3))
    axes = figure.subplots()
    for number in range(2):
        axes.plot([0, 1], [number, 1])[0].set_gid(f"curve {number}")
    axes.scatter([0, 1], [0, 1])
    axes.set_title("share $a_1 < b$")
    return figure


def test_a_chart_has_a_text_alternative_names_and_text_that_stays_text():
    drawn = chart(a_figure(), NASTY, ["first", "<second>"])
    plot = ElementTree.fromstring(drawn.replace("xlink:href", "href"))
    assert plot.get("role") == "img" and plot.get("aria-label") == NASTY
    assert plot.get("viewBox") == "0 0 288 216"
    assert [each.text for each in plot.iter("title")] == ["first", "<second>"]
    assert "share $a_1 < b$" in [each.text for each in plot.iter("text")]
    assert not [group for group in plot.iter("g") if group.get("id")]


def test_the_same_chart_is_the_same_bytes():
    assert chart(a_figure(), "words", ["a", "b"]) == chart(a_figure(), "words", ["a", "b"])


def test_two_charts_in_a_page_share_no_id():
    ids = [set(re.findall(r' id="([^"]+)"', chart(a_figure(), name, ["a", "b"]))) for name in ("one", "two")]
    assert ids[0] and not ids[0] & ids[1]


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_pixels_become_a_jpeg(kind):
    pixels = np.full((8, 6, 3), (200, 100, 50), dtype="uint8")
    with Image.open(io.BytesIO(jpeg_of(pixels if kind == "uint8" else pixels / 255))) as image:
        assert (image.format, image.size) == ("JPEG", (6, 8))
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 3
