"""The charts' one style: colours, frames, and how a figure is made and saved.

The colours are Okabe and Ito's, which remain distinct in the common forms of colour blindness; a line, a marker or a hatch
carries the same difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference.files import replacing

BLUE, VERMILION, SKY, GREEN, PURPLE = "#0072b2", "#d55e00", "#56b4e9", "#009e73", "#9c3f73"
INK, GREY, LIGHT_GREY = "#333a42", "#57606a", "#dddddd"
#: Matplotlib's settings inside ``styled_axes``.
CHART_STYLE = {
    "text.color": INK,
    "text.parse_math": False,  # a column's or a patient's name may hold a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LIGHT_GREY,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "font.size": 10,
}
PNG_DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` by ``height`` inches that lays itself out; it needs no window system."""
    return Figure((width, height), layout="constrained")


def clean_axes(axes: Axes, grid: Literal["x", "y", "both"] | None = "both") -> None:
    """Removes the frame above and to the right and the tick marks, and draws light grid lines.

    Args:
        axes: changed in place.
        grid: "x", "y", "both", or None for no grid lines.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=LIGHT_GREY, linewidth=0.7)


@contextmanager
def styled_axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``width`` by ``height`` inches with one plot; what is drawn inside the block has ``CHART_STYLE``."""
    with rc_context(CHART_STYLE):
        figure = new_figure(width, height)
        axes = figure.subplots()
        axes.tick_params(length=0)
        yield figure, axes


def save_png(figure: Figure, path: Path) -> None:
    """Writes ``figure`` to ``path`` as PNG; the file is replaced as a whole."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=PNG_DPI, format="png")
