"""notebooks/walkthrough.py, cells in percent format -> walkthrough.ipynb, the notebook that people open.

    python -m evaluation.notebook              write the notebook, its cells without outputs
    python -m evaluation.notebook --run        run the cells first; what they print and draw is in the notebook
    python -m evaluation.notebook --check      exit 2 when the notebook's cells are not those of the script

The script is what to edit and to review. Its cells print, or draw with pyplot; they need no Jupyter to run.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from inference.files import replacing
from inference.options import Parser
from scale.progress import Bar
from terminal import run_command
from utils import InputError, log_summary

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "notebooks" / "walkthrough.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
MARK, MARKDOWN = "# %%", "# %% [markdown]"
#: Of pictures; of a figure of the width of a page that is about 700 pixels.
DPI = 75
COLOURS = 128


@dataclass(frozen=True)
class Cell:
    """A cell: "markdown" or "code", and its text."""

    kind: str
    source: str


def read_cells(text: str) -> list[Cell]:
    """The cells of a script in percent format; Markdown stands in comments.

    Raises:
        InputError: the text does not begin with a cell, or a Markdown cell has a line that is no comment.
    """
    cells: list[Cell] = []
    for part in f"\n{text}".split(f"\n{MARK}")[1:]:
        head, _, body = part.partition("\n")
        lines = body.strip("\n").splitlines()
        if head.strip() == "[markdown]":
            if wrong := [line for line in lines if not line.startswith("#")]:
                raise InputError(f"a Markdown cell has the line {wrong[0]!r}; begin it with '# '.")
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        cells.append(Cell("markdown" if head.strip() else "code", "\n".join(lines)))
    if not cells or not text.startswith(MARK):
        raise InputError(f"{SCRIPT} begins with no cell; write {MARK!r} above its first line.")
    return cells


def run_cells(cells: Sequence[Cell]) -> list[list[dict[str, Any]]]:
    """Runs the code cells one after another in this process; returns each cell's outputs in the notebook's form."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(Bar(cells, desc="cells", unit="cell"), 1):
        outputs: list[dict[str, Any]] = []
        if cell.kind == "code":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(cell.source, f"cell {number} of {SCRIPT.name}", "exec"), names)
            if text := printed.getvalue():
                outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
            outputs += [picture(pyplot.figure(figure)) for figure in pyplot.get_fignums()]
            pyplot.close("all")
        found.append(outputs)
    return found


def picture(figure: Any) -> dict[str, Any]:
    """A figure as an output: a PNG of few colours, which is small, in base64."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    data = {"image/png": base64.b64encode(content.getvalue()).decode("ascii")}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def notebook_of(cells: Sequence[Cell], outputs: Sequence[list[dict[str, Any]]] | None = None) -> str:
    """The notebook as JSON text, in format 4.5.

    Args:
        cells: in their order.
        outputs: of each cell; none if not given.
    """
    made = []
    for number, cell in enumerate(cells):
        content: dict[str, Any] = {"cell_type": cell.kind, "id": f"cell-{number + 1}", "metadata": {}}
        if cell.kind == "code":
            ran = outputs is not None
            content |= {"execution_count": number + 1 if ran else None, "outputs": outputs[number] if outputs else []}
        made.append(content | {"source": cell.source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def without_outputs(text: str) -> str:
    """A notebook's JSON text as if no cell had run."""
    content = json.loads(text)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
    return json.dumps(content, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Writes the notebook, or with --check compares it."""
    parser = Parser(description="notebooks/walkthrough.py -> walkthrough.ipynb")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--run", action="store_true", help="run the cells and keep what they print and draw")
    chosen.add_argument("--check", action="store_true", help="write nothing; exit 2 when the notebook is out of date")
    options = parser.parse_args(arguments)
    cells = read_cells(SCRIPT.read_text(encoding="utf-8"))
    if options.check:
        if not NOTEBOOK.is_file() or without_outputs(NOTEBOOK.read_text(encoding="utf-8")) != notebook_of(cells):
            raise InputError(f"{NOTEBOOK.name} is not what {SCRIPT.name} makes; run: python -m evaluation.notebook")
        text = NOTEBOOK.read_text(encoding="utf-8")
    else:
        text = notebook_of(cells, run_cells(cells) if options.run else None)
        with replacing(NOTEBOOK) as temporary:
            temporary.write_text(text, encoding="utf-8")
    log_summary(f"{NOTEBOOK.relative_to(ROOT)}: {len(cells)} cells, {len(text.encode()) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    run_command(main)
