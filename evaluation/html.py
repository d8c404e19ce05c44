"""Pages in one HTML file: no network, no server; readable by eye, ear, keyboard and phone, light or dark. A local tool.

Charts are Matplotlib's, set into the page as SVG. The little script there is only sorts and filters what the page holds; the
page's policy lets no other script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem }
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
svg text { font-family: system-ui, sans-serif !important }
img { max-width: 100%; height: auto }
.sortable th button { all: unset; cursor: pointer }
:is(button, input, select):focus-visible { outline: 2px solid #0969da; outline-offset: 2px }
.sortable th[aria-sort=ascending] button::after { content: " \\25b2" }
.sortable th[aria-sort=descending] button::after { content: " \\25bc" }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; margin: .8rem 0 }
.controls label { color: var(--soft); font-size: .9rem }
.controls input, .controls select { display: block; font: inherit; padding: .3rem .5rem; color: var(--ink);
  background: var(--page); border: 1px solid var(--soft); border-radius: .4rem; min-height: 2.3rem;
  max-width: 100% }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; padding: 0 }
.cards { list-style: none }
.cards > * { border: 1px solid var(--rule); border-radius: .6rem; padding: .8rem; min-width: 0; overflow-wrap: anywhere }
.cards .malignant { border: 2px solid #c8501e }
.cards h3 { font-size: 1rem; margin: 0 0 .4rem }
.scores { display: grid; grid-template-columns: 1fr auto; gap: 0 .8rem; margin: .5rem 0 }
.scores dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal }
.scores dt { white-space: nowrap }
.bars { list-style: none; margin: .4rem 0 0; padding: 0; font-size: .9rem }
.bars li { margin-bottom: .3rem }
.bars svg { display: block; width: 100%; height: .5rem }
.warning { border-left: .3rem solid #c8501e; padding-left: .8rem }
[hidden] { display: none !important }
@media (max-width: 34rem) {
  .facts thead { display: none }
  .facts th, .facts th:first-child, .facts td { display: block; width: auto; border: 0; padding: 0 }
  .facts td { border-bottom: 1px solid var(--rule); padding-bottom: .4rem; margin-bottom: .4rem }
}
"""

#: Sorts tables of class "sortable" by the column whose heading is pressed, numbers as numbers; and sorts and filters the
#: items of a list by its controls, which carry the list's id in data-for.
SCRIPT = r"""
"use strict";
// A number stands alone or before a blank, a per cent sign or a star: "3D: white" is a word.
const value = text => {
  const found = text.replace(/,/g, "").match(/^[+-]?\d*\.?\d+(e[+-]?\d+)?(?=$|[\s%*])/i);
  return found ? Number(found[0]) : text.toLowerCase();
};
// Way 1 is up, -1 down; what is no number stands behind the numbers both ways.
const order = (a, b, way) => typeof a === typeof b ? way * (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], of = row => value(row.cells[column].textContent.trim());
      body.append(...[...body.rows].sort((a, b) => order(of(a), of(b), down ? -1 : 1)));
    });
  });
}
for (const list of document.querySelectorAll("[data-list]")) {
  const controls = [...document.querySelectorAll(`[data-for="${list.id}"]`)], items = [...list.children];
  const count = document.querySelector(`[data-count="${list.id}"]`);
  const show = () => {
    let shown = 0;
    for (const item of items) {
      item.hidden = !controls.every(control => control.dataset.key === undefined || control.value === "" ||
        (control.type === "search" ? item.textContent.toLowerCase().includes(control.value.toLowerCase())
                                   : item.dataset[control.dataset.key] === control.value));
      shown += !item.hidden;
    }
    const sort = controls.find(control => control.dataset.sort !== undefined);
    if (sort) {
      const [key, way] = sort.value.split(" "), of = item => value(item.dataset[key] || "");
      list.append(...items.sort((a, b) => order(of(a), of(b), way === "down" ? -1 : 1)));
    }
    if (count) count.textContent = `${shown} of ${items.length} shown`;
  };
  for (const control of controls) for (const happens of ["input", "change"]) control.addEventListener(happens, show);
  show();
}
"""


def write_page(path: Path, title: str, body: str, width: str = "62rem") -> None:
    """Writes one self-contained page; it is replaced in one step.

    Args:
        path: the HTML file.
        title: of the page, and its heading.
        body: HTML that follows the heading.
        width: of the text, as CSS says it.

    Raises:
        InputError: ``path`` cannot be written.
    """
    # Only this very script may run, by its hash, and only if the page has something to sort or filter.
    script = SCRIPT if 'sortable"' in body or "data-list" in body else ""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    policy += f"; script-src 'sha256-{allowed}'" if script else ""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main style="max-width: {width}">
<h1>{escape(title)}</h1>
{body}
</main>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def table_of(caption: str, heads: Sequence[str], rows: Sequence[str], kind: str) -> str:
    """A table that scrolls sideways inside its own box on a narrow screen, and can be reached by keyboard there.

    Args:
        caption: read aloud.
        heads: HTML of the column headings.
        rows: HTML of the rows, ``<tr>`` and all.
        kind: CSS classes: "numbers" (all but the first column to the right), "facts", "sortable" last of all.
    """
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def row_of(head: str, cells: Sequence[str], kind: str = "") -> str:
    """A row of a table: its heading and its cells, all of them text."""
    inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    kind = f' class="{kind}"' if kind else ""
    return f'<tr{kind}><th scope="row">{escape(head)}</th>{inner}</tr>'


def fact_table(facts: Mapping[str, str], caption: str = "Facts about this run") -> str:
    """Names and values, line breaks kept."""
    return table_of(caption, ("fact", "value"), [row_of(str(name), [str(value)]) for name, value in facts.items()], "facts")


def picture(content: bytes, description: str, kind: str = "jpeg", width: int | None = None) -> str:
    """An image inside the page.

    Args:
        content: the bytes of a file of that kind.
        description: what it shows, for those who do not see it.
        kind: "jpeg" or "png".
        width: shown so wide, in pixels; its own width if not given.
    """
    size = f' width="{width}"' if width else ""
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{escape(description)}"{size} loading="lazy">'


def jpeg_of(pixels: np.ndarray) -> bytes:
    """RGB, uint8 or float in [0, 1], shape (height, width, 3), as a JPEG file."""
    from PIL import Image

    if pixels.dtype != np.uint8:
        pixels = np.round(255 * pixels).astype("uint8")
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=88, subsampling=0)
    return file.getvalue()


def chart(figure: Figure, description: str, names: Sequence[str] = ()) -> str:
    """A Matplotlib figure as SVG whose text stays text.

    Args:
        figure: of Matplotlib.
        description: what it shows, read aloud.
        names: what the parts with the gid "curve 0", "curve 1", ... are called.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # a dollar sign in a name from the data is one
        text.set_parse_math(False)
    # Ids depend on the salt and not on chance; what a curve deviates by less than half a point is left out.
    style = {"svg.fonttype": "none", "svg.hashsalt": description, "path.simplify_threshold": 0.5}
    file = StringIO()
    with rc_context(style):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    groups = [f"<g><title>{escape(name)}</title>" for name in names]
    drawing = file.getvalue().split("<svg", 1)[1].split(">", 1)[1]
    drawing = re.sub(r'<g id="curve (\d+)">', lambda found: groups[int(found[1])], drawing)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # nothing refers to them, and two charts may have the same
    width, height = figure.get_size_inches() * 72
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(description)}">{drawing}'
