import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from evaluation.html import SCRIPT, STYLE, chart, fact_table, jpeg_of, picture, row_of, table_of, write_page
from utils import InputError

NASTY = "<script>alert('1')</script> & \"quoted\""


def written(path, body, title="Title", **options):
    write_page(path / "page.html", title, body, **options)
    return (path / "page.html").read_text(encoding="utf-8")


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


def test_a_page_without_anything_to_sort_has_no_script_and_allows_none(tmp_path):
    page = written(tmp_path, "<p>words</p>")
    assert "<script" not in page
    assert policy_of(page) == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:"}


@pytest.mark.parametrize("body", [table_of("t", ("a",), [row_of("1", [])], "numbers sortable"), "<ul data-list></ul>"])
def test_the_policy_names_the_very_script_of_the_page(tmp_path, body):
    page = written(tmp_path, body)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert scripts == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy_of(page)["script-src"] == f"'sha256-{digest}'"
    assert policy_of(page)["default-src"] == "'none'"


def test_a_page_has_a_title_a_language_a_width_and_nothing_from_elsewhere(tmp_path):
    page = written(tmp_path, "<p>words</p>", title=NASTY, width="20rem")
    text = Text(page)
    assert page.startswith("<!DOCTYPE html>") and '<html lang="en">' in page
    assert text.text.count(NASTY) == 2  # title and heading
    assert [tag for tag, _ in text.tags].count("h1") == 1
    assert ("main", {"style": "max-width: 20rem"}) in text.tags
    assert not re.search(r"https?:|url\(|@import|src=|href=", page)
    assert "prefers-color-scheme: dark" in STYLE
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_is_told_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", "Title", "")


# What it holds


def test_a_table_is_named_and_scoped_and_reached_by_keyboard():
    table = table_of(NASTY, ("<em>a</em>", "b"), [row_of("x", ["1"]), row_of("y", ["2"], "first")], "numbers")
    tags = Text(table).tags
    assert tags[0] == ("div", {"class": "wide", "role": "region", "aria-label": NASTY, "tabindex": "0"})
    assert [attributes["scope"] for tag, attributes in tags if tag == "th"] == ["col", "col", "row", "row"]
    assert ("tr", {"class": "first"}) in tags and ("em", {}) in tags


def test_text_stays_text():
    assert Text(row_of(NASTY, [NASTY, "2"])).text == f"{NASTY}{NASTY}2"
    assert "<script" not in row_of(NASTY, [NASTY])
    facts = fact_table({NASTY: "one\ntwo", "b": NASTY}, NASTY)
    assert Text(facts).text.split("\n", 1)[0] == "factvalue"
    assert "one\ntwo" in facts and "<script" not in facts
    assert [tag for tag, _ in Text(facts).tags].count("tr") == 3


def test_a_picture_is_in_the_page_and_described():
    tags = Text(picture(b"bytes", NASTY, "png", 128)).tags
    ((tag, attributes),) = tags
    assert tag == "img" and attributes["alt"] == NASTY and attributes["width"] == "128"
    kind, data = attributes["src"].split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == b"bytes"
    assert "width" not in picture(b"", "x")


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
