"""The pages in a real browser, headless Chromium by Selenium; skipped where there is none.

Screenshots go to the folder that the variable SCREENSHOTS names, else to the test's own.
"""

import base64
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from eager import without_graphs
from jinja2 import DictLoader
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from untrained_networks import make_artifacts

from evaluation import html
from evaluation.explore import __main__ as explore
from evaluation.html import ENVIRONMENT, STYLE, write_page
from evaluation.triage import __main__ as triage
from evaluation.triage import scores as triage_scores

pytestmark = pytest.mark.integration

#: The names of its program in Debian, Google's packages and Ubuntu.
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
DESKTOP, PHONE = (1200, 900), (390, 844)
#: Chromium's own limit of a picture's height, pixels.
TALLEST = 16000
LARGEST_PAGE = 15_000_000
PAGES = ("explore", "explore_real", "report", "triage_list", "triage_patient", "triage_real")


class Browser:
    """One Chromium for the whole module; `open` starts a page with empty logs."""

    def __init__(self, browser, driver):
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for option in OPTIONS:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.chrome = webdriver.Chrome(service=Service(driver), options=options)

    def open(self, path, size=DESKTOP, look="light"):
        """Opens a file, so wide and high, and waits until every picture in it is there."""
        self.resize(*size)
        features = [{"name": "prefers-color-scheme", "value": look}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.chrome.get("about:blank")
        self.requests(), self.complaints()
        self.chrome.get(Path(path).resolve().as_uri())
        self.run("for (const image of document.images) image.loading = 'eager'")
        for _ in range(100):
            if self.run("return [...document.images].every(image => image.complete)"):
                break
            time.sleep(0.1)

    def resize(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def run(self, script, *arguments):
        return self.chrome.execute_script(script, *arguments)

    def all(self, selector):
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def requests(self):
        """The addresses asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]

    def complaints(self):
        """The messages of the console since the last call."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]

    def photograph(self, path):
        """The page as far down as a picture goes; only its top without the variable SCREENSHOTS."""
        width, height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        height = min(height, TALLEST if "SCREENSHOTS" in os.environ else 2000)
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        asked = {"format": "png", "captureBeyondViewport": True, "optimizeForSpeed": True, "clip": clip}
        picture = self.chrome.execute_cdp_cmd("Page.captureScreenshot", asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture["data"]))


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("there is no Chromium with its chromedriver; apt-get install chromium chromium-driver to run this test")
    browser = Browser(program, driver)
    yield browser
    browser.chrome.quit()


# The pages


@pytest.fixture
def explore_page(exploration_folder):
    return exploration_folder / "index.html"


@pytest.fixture
def report_page(report_folder):
    return report_folder / "index.html"


@pytest.fixture
def triage_list_page(triage_folder):
    return triage_folder / "index.html"


@pytest.fixture
def triage_patient_page(triage_folder):
    """The largest."""
    return max(triage_folder.glob("*.html"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def explore_real_page(real_data, shared_folder):
    def make(folder):
        explore.main(["--data", str(real_data), "--out", str(folder)])

    return shared_folder("explore_real", make) / "index.html"


@pytest.fixture(scope="module")
def triage_real_page(real_data, shared_folder):
    """Of untrained networks, as a training would take too long here."""

    def make(folder):
        artifacts = make_artifacts(real_data, folder / "artifacts")
        where = ["--data", str(real_data), "--artifacts", str(artifacts), "--out", str(folder / "out")]
        with without_graphs(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(triage_scores, "HEATED", 4)
            triage.main([*where, "--patients", "1"])

    pages = shared_folder("triage_real", make) / "out"
    return next(path for path in pages.glob("*.html") if path.stem != "index")


@pytest.fixture(params=PAGES)
def page(request, browser):
    """The path of each page, in turn; a page of real data is skipped where there is none."""
    return request.param, request.getfixturevalue(f"{request.param}_page")


@pytest.fixture
def screenshots(tmp_path):
    return Path(os.environ.get("SCREENSHOTS", tmp_path))


# What every page must be


def test_a_page_asks_the_network_for_nothing_and_is_silent(browser, page, screenshots):
    name, path = page
    assert path.stat().st_size < LARGEST_PAGE
    for look in ("light", "dark"):
        browser.open(path, look=look)
        asked = browser.requests()
        assert path.resolve().as_uri() in asked
        assert [url[:80] for url in asked if not url.startswith(("file:", "data:"))] == []
        assert {url for url in asked if url.startswith("file:")} == {path.resolve().as_uri()}
        assert browser.complaints() == []
        browser.photograph(screenshots / f"{name}-{look}.png")
        assert (screenshots / f"{name}-{look}.png").stat().st_size > 10_000


def test_a_page_fits_on_a_phone(browser, page, screenshots):
    name, path = page
    browser.open(path, PHONE)
    width = browser.run("return document.documentElement.scrollWidth")
    wide = browser.run(
        "return [...document.body.querySelectorAll('*')].filter(each => each.getBoundingClientRect().right > innerWidth + 1"
        " && !each.closest('.wide')).slice(0, 5).map(each => each.outerHTML.slice(0, 120))"
    )
    assert width <= PHONE[0], wide
    browser.photograph(screenshots / f"{name}-phone.png")


def test_everything_has_a_name_that_can_be_read_aloud(browser, page):
    browser.open(page[1])
    assert browser.run("return [...document.images].filter(image => !image.alt.trim()).length") == 0
    assert browser.run("return [...document.images].filter(image => !image.naturalWidth).length") == 0
    assert (
        browser.run("return [...document.querySelectorAll('[role=img]')].filter(each => !each.ariaLabel?.trim()).length")
        == 0
    )
    silent = "return [...document.querySelectorAll('svg:not([role=img]):not([aria-hidden=true])')].length"
    assert browser.run(silent) == 0
    assert browser.run("return document.querySelectorAll('h1').length") == 1
    assert browser.run("return document.documentElement.lang") == "en"
    assert browser.run("return document.querySelectorAll('th:not([scope])').length") == 0
    unnamed = "return [...document.querySelectorAll('input, select')].filter(each => !each.labels.length && !each.ariaLabel)"
    assert browser.run(unnamed) == []
    untitled = "return [...document.querySelectorAll('button, a')].filter(each => !each.textContent.trim())"
    assert browser.run(untitled) == []
    assert (
        browser.run(
            "const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.length - new Set(ids).size"
        )
        == 0
    )


def test_every_control_is_reached_by_tab(browser, page):
    browser.open(page[1])
    controls = "a[href], button, input, select, summary, [tabindex]"
    browser.run(
        "window.reached = new Set(); document.addEventListener('focusin', event => window.reached.add(event.target));"
        "window.controls = [...document.querySelectorAll(arguments[0])].filter(each => each.checkVisibility())",
        controls,
    )
    presses = browser.run("return window.controls.length") + 5
    ActionChains(browser.chrome).send_keys(Keys.TAB * presses).perform()
    missed = browser.run(
        "return window.controls.filter(each => !window.reached.has(each)).map(e => e.outerHTML.slice(0, 99))"
    )
    assert missed == []


CONTRAST = """
const light = text => {
  const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = each => {
  for (; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
  return "rgb(255, 255, 255)";
};
const weak = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const each = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || each.closest("svg, script, style") || !each.checkVisibility()) continue;
  const [high, low] = [light(getComputedStyle(each).color), light(ground(each))].sort((a, b) => b - a);
  if ((high + 0.05) / (low + 0.05) < 4.5) weak.push(each.outerHTML.slice(0, 120));
}
return weak.slice(0, 5);
"""


@pytest.mark.parametrize("look", ["light", "dark"])
def test_text_stands_out(browser, page, look):
    browser.open(page[1], look=look)
    assert browser.run(CONTRAST) == []


# Sorting and filtering


def number(text):
    """A cell's number, as somebody reads it; None where it has none."""
    try:
        return float(text.replace(",", "").replace("%", "").split()[0])
    except (ValueError, IndexError):
        return None


def column_of(browser, table, column):
    return browser.run(
        "return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]].textContent.trim())", table, column
    )


def in_order(cells):
    """Whether numbers ascend, or words do where no cell begins with a number."""
    numbers = [found for found in map(number, cells) if found is not None]
    return numbers == sorted(numbers) if numbers else [cell.lower() for cell in cells] == sorted(map(str.lower, cells))


def test_a_heading_sorts_its_table(browser, page):
    browser.open(page[1])
    tables = browser.all("table.sortable")
    if page[0].startswith(("explore", "triage_list")):
        assert tables
    for table in tables[:5]:
        heads = table.find_elements(By.CSS_SELECTOR, "thead th")
        for column, head in list(enumerate(heads))[:2]:
            before = column_of(browser, table, column)
            button = head.find_element(By.TAG_NAME, "button")
            browser.run("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            up = column_of(browser, table, column)
            assert head.get_attribute("aria-sort") == "ascending"
            assert sorted(up) == sorted(before) and in_order(up), up
            button.send_keys(Keys.ENTER)
            down = column_of(browser, table, column)
            assert head.get_attribute("aria-sort") == "descending"
            known = [cell for cell in down if number(cell) is not None] or down
            assert sorted(down) == sorted(before) and in_order(known[::-1]), down
            assert len(table.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1
    assert browser.complaints() == []


def shown(browser, attribute):
    """An attribute of the visible cards, in their order."""
    return browser.run(
        "return [...document.querySelectorAll('#lesions > *')].filter(each => each.checkVisibility())"
        ".map(each => each.dataset[arguments[0]])",
        attribute,
    )


@pytest.mark.parametrize("name", ["triage_patient", "triage_real"])
def test_lesions_are_sorted_and_filtered(browser, request, name):
    browser.open(request.getfixturevalue(f"{name}_page"))
    controls = {each.get_attribute("data-key") or "sort": each for each in browser.all(".controls [data-for=lesions]")}
    assert set(controls) == {"sort", "site", "label", "text"}
    count = browser.all("[data-count=lesions]")[0]
    total = len(shown(browser, "score"))
    assert total > 1 and count.text == f"{total} of {total} shown"

    for option in Select(controls["sort"]).options:
        Select(controls["sort"]).select_by_value(option.get_attribute("value"))
        key, way = option.get_attribute("value").split()
        values = shown(browser, key)
        known = [value if key == "site" else float(value) for value in values if value]
        assert known == sorted(known, reverse=way == "down")
        assert values[: len(known)] == [value for value in values if value]  # what is unknown comes last, both ways
    Select(controls["sort"]).select_by_value("score down")

    for key in ("site", "label"):
        all_values = shown(browser, key)
        for value in set(all_values):
            Select(controls[key]).select_by_value(value)
            assert set(shown(browser, key)) == {value}
            assert count.text == f"{all_values.count(value)} of {total} shown"
        Select(controls[key]).select_by_value("")
    name_of_second = browser.all("#lesions h3")[1].text.split()[-1]
    controls["text"].send_keys(name_of_second.lower())
    assert [head.text.split()[-1] for head in browser.all("#lesions h3") if head.is_displayed()] == [name_of_second]
    controls["text"].send_keys(" and nothing else")
    assert count.text == f"0 of {total} shown"
    controls["text"].send_keys(Keys.CONTROL, "a")
    controls["text"].send_keys(Keys.DELETE)
    assert count.text == f"{total} of {total} shown"
    assert browser.complaints() == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_longest_score_stays_in_its_card(browser, triage_patient_page, size):
    browser.open(triage_patient_page, size)
    longest = "-20.67 (below 0.01\N{NO-BREAK SPACE}%)"
    browser.run(f"for (const score of document.querySelectorAll('.cards dd')) score.textContent = '{longest}'")
    wider = "return [...document.querySelectorAll('.cards > *')].filter(card => card.scrollWidth > card.clientWidth).length"
    assert browser.run("return document.querySelectorAll('.cards dd').length") > 0
    assert browser.run(wider) == 0


# The browser itself, and the policy


def write_own(path, title, settings, content, monkeypatch):
    """A page of base.html with the test's own content."""
    base = ENVIRONMENT.loader.get_source(ENVIRONMENT, "base.html")[0]
    own = f'{{% extends "base.html" %}}{settings}{{% block content %}}{content}{{% endblock %}}'
    loader = DictLoader({"base.html": base, "own.html": own})
    monkeypatch.setattr(html, "ENVIRONMENT", ENVIRONMENT.overlay(loader=loader))
    write_page(path, "own.html", title=title)


def test_requests_and_console_messages_are_noticed(browser, tmp_path):
    path = tmp_path / "asks.html"
    path.write_text("<img src='http://127.0.0.1:9/picture.png'><script>console.error('heard')</script>", encoding="utf-8")
    browser.open(path)
    assert "http://127.0.0.1:9/picture.png" in browser.requests()
    assert any("heard" in text for text in browser.complaints())


def test_the_policy_of_a_page_lets_no_other_script_run_and_nothing_be_fetched(browser, tmp_path, monkeypatch):
    content = (
        "<table class='sortable'><thead><tr><th scope='col'>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>"
        "<img src='http://127.0.0.1:9/picture.png' alt='not fetched' onerror='document.title = 1'>"
        "<script>document.title = 'taken over'</script>"
        "<p onclick='document.title = 2' id='here'>here</p>"
    )
    write_own(tmp_path / "page.html", "Safe", "{% set interactive = true %}", content, monkeypatch)
    browser.open(tmp_path / "page.html")
    browser.all("#here")[0].click()
    assert browser.chrome.title == "Safe"
    assert browser.all("th button")  # the page's own script has run
    assert any("Content Security Policy" in text for text in browser.complaints())
    browser.chrome.get("about:blank")


def test_the_dark_look_is_dark(browser, tmp_path, monkeypatch):
    assert "prefers-color-scheme: dark" in STYLE
    write_own(tmp_path / "page.html", "Looks", "", "<p>words</p>", monkeypatch)
    grounds = []
    for look in ("light", "dark"):
        browser.open(tmp_path / "page.html", look=look)
        grounds.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(13, 17, 23)"]
