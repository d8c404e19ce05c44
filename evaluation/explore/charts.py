"""The charts of an exploration, as SVG, each with a description that a screen reader reads aloud.

What a colour means, a shape, a hatch or a line means as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from evaluation.explore.tables import UNITS
from evaluation.html import chart
from inference.schema import TARGET
from train.charts import BLUE, GREY, INK, VERMILION, styled_axes

WIDTH = 4.6  # of a panel, in inches of 72 SVG units: as wide as a phone
#: Dots of benign lesions drawn for one patient at most; more only cover each other and make the page heavy.
DOTS = 1500
BINS = 40
#: A legend above the plot, at its left edge.
LEGEND_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "borderaxespad": 0.2}


def axis_name(name: str) -> str:
    """A column's name, and its unit in a few words below it."""
    return f"{name}\n{UNITS.get(name, '').split(',')[0]}".strip()


def wrapped(name: str, width: int = 30) -> str:
    """A long name in two lines, the rest of it left out."""
    return "\n".join(textwrap.wrap(name, width, max_lines=2, placeholder=" ..."))


def draw_rates(title: str, table: pd.DataFrame, overall: float) -> Markup:
    """Malignancy rate and interval of each group, as dots with lines.

    Args:
        title: what the lesions are grouped by.
        table: of ``tables.rate_table``.
        overall: rate of all lesions, 0 to 1, drawn dashed.
    """
    rows = np.arange(len(table))
    names = [wrapped(name) for name in table["group"]]
    lines = sum(1 + name.count("\n") for name in names)
    with styled_axes(WIDTH, 1.0 + 0.2 * lines + 0.1 * len(names)) as (figure, axes):
        axes.axvline(100 * overall, color=INK, linestyle="--", linewidth=1, label=f"all lesions, {100 * overall:.3g} %")
        axes.hlines(rows, 100 * table["low"], 100 * table["high"], color=BLUE, linewidth=2.2)
        axes.plot(100 * table["rate"], rows, "o", color=BLUE, markersize=6, clip_on=False)
        axes.set_yticks(rows, names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=-2.5 * table["high"].max())
        axes.set_xlabel("malignant, % (bars: 95 % interval)")
        axes.grid(axis="x")
        axes.legend(**LEGEND_ABOVE)
    rates = "; ".join(f"{row.group} {100 * row.rate:.2f} %" for row in table.itertuples())
    return chart(figure, f"Malignancy rate by {title}, with 95 % intervals: {rates}. The table beside it has the numbers.")


def draw_sizes(sizes: np.ndarray) -> Markup:
    """Histogram of the lesions per patient on a logarithmic scale; ``sizes`` of shape (patients,)."""
    edges = np.unique(np.round(np.geomspace(1, sizes.max() + 1, 25)))
    with styled_axes(WIDTH, 2.8) as (figure, axes):
        axes.hist(sizes, bins=edges.tolist(), color=BLUE, edgecolor="white", linewidth=0.7)
        axes.set_xscale("log")
        ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000) if tick <= sizes.max()]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
        axes.set(xlabel="lesions of the patient (logarithmic)", ylabel="patients")
        axes.grid(axis="y")
    middle = f"median {np.median(sizes):,.0f}, from {sizes.min():,} to {sizes.max():,}"
    return chart(figure, f"Histogram of the lesions per patient, {len(sizes):,} patients: {middle}.")


def draw_single(single: pd.DataFrame) -> Markup:
    """pAUC of single columns as bars; those that no model may use are hatched. ``single``: rows of ``single_columns``."""
    rows, usable = np.arange(len(single)), single["usable"].to_numpy(dtype=bool)
    bars: Sequence[tuple[np.ndarray, str, dict[str, Any]]] = (
        (usable, "usable", {"color": BLUE, "edgecolor": BLUE}),
        (~usable, "not for a model", {"color": "#f3c9a8", "edgecolor": VERMILION, "hatch": "///"}),
    )
    with styled_axes(WIDTH, 1.1 + 0.25 * len(rows)) as (figure, axes):
        for chosen, label, style in bars:
            if chosen.any():
                axes.barh(rows[chosen], single["pauc"][chosen], height=0.7, label=label, linewidth=0.6, **style)
        axes.axvline(0.02, color=INK, linestyle="--", linewidth=1, label="guessing, 0.02")
        names = single["column"] + np.where(single["what"] == "value", "", " (is filled)")
        axes.set_yticks(rows, names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 0.2)
        axes.set_xlabel("pAUC (best 0.20)")
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=3, frameon=False, columnspacing=1)
    scores = "; ".join(f"{name} {pauc:.4f}" for name, pauc in zip(names, single["pauc"], strict=True))
    return chart(figure, f"pAUC of the strongest single columns: {scores}.")


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Edges of a histogram's bars: ``BINS`` equal ones, the outermost values left out, or a bar for each of few values."""
    few = np.unique(values)
    if len(few) <= BINS:
        between = (few[1:] + few[:-1]) / 2
        half = np.diff(few).min() / 2 if len(few) > 1 else 0.5
        return np.concatenate([[few[0] - half], between, [few[-1] + half]])
    low, high = np.quantile(values, [0.002, 0.998])
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def draw_density(train: pd.DataFrame, name: str) -> Markup:
    """How a number is distributed among benign (filled) and malignant lesions (line), each to a sum of 100 %."""
    values, labels = train[name], train[TARGET]
    edges, medians = bin_edges(values.dropna().to_numpy()), []
    classes: Sequence[tuple[int, str, dict[str, Any]]] = (
        (0, "benign", {"fill": True, "color": "#c3c9cf"}),
        (1, "malignant", {"fill": False, "color": VERMILION, "linewidth": 1.8}),
    )
    with styled_axes(WIDTH, 2.7) as (figure, axes):
        for label, word, style in classes:
            chosen = values[(labels == label) & values.notna()]
            counts = np.histogram(chosen.clip(edges[0], edges[-1]), edges)[0]
            axes.stairs(100 * counts / max(len(chosen), 1), edges, label=word, **style)
            medians.append(f"{word} median {chosen.median():.4g}")
        axes.set_xlabel(axis_name(name), linespacing=1.4)
        axes.set_ylabel("% of the class")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.legend(ncols=2, **LEGEND_ABOVE)
    return chart(figure, f"Distribution of {name} among benign and malignant lesions: {', '.join(medians)}.")


def draw_correlations(rho: pd.DataFrame) -> Markup:
    """A square for each pair: its area is the strength, blue and filled above zero, an empty vermilion frame below."""
    count = len(rho)
    with styled_axes(2.6 + 0.24 * count, 2.5 + 0.24 * count) as (figure, axes):
        column, row = np.meshgrid(np.arange(count), np.arange(count))
        values = rho.to_numpy().ravel()
        # Squares of 0.9 of a cell at a correlation of 1; a cell has 0.24 inches, or 17 points.
        sizes = np.abs(values) * (0.9 * 0.24 * 72) ** 2
        squares: Sequence[tuple[np.ndarray, dict[str, Any]]] = (
            (values >= 0.02, {"facecolors": BLUE, "linewidths": 0}),
            (values <= -0.02, {"facecolors": "#fde9dc", "edgecolors": VERMILION, "linewidths": 1.2}),
        )
        for chosen, style in squares:
            axes.scatter(column.ravel()[chosen], row.ravel()[chosen], s=0.85 * sizes[chosen], marker="s", **style)
        axes.set_xticks(range(count), rho.columns, rotation=90)
        axes.set_yticks(range(count), rho.index)
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), aspect="equal")
        axes.grid(linewidth=0.4)
    return chart(figure, f"Spearman correlation of {count} columns, as squares. The table below names the strongest pairs.")


def draw_patient(patient: str, lesions: pd.DataFrame, names: Sequence[str], seed: int) -> Markup:
    """One patient's lesions in two columns: benign ones as small dots, malignant ones as large triangles.

    Args:
        patient: its id, the title.
        lesions: the patient's rows.
        names: of the two columns, across and up.
        seed: draws ``DOTS`` benign lesions where there are more.
    """
    benign, malignant = lesions[lesions[TARGET] == 0], lesions[lesions[TARGET] == 1]
    drawn = benign.sample(DOTS, random_state=seed) if len(benign) > DOTS else benign
    shown = f"{len(benign):,} benign" if len(drawn) == len(benign) else f"{len(drawn):,} of {len(benign):,} benign"
    dots: dict[str, Any] = {"markersize": 5.5, "alpha": 0.7} if len(drawn) < 300 else {"markersize": 3.5, "alpha": 0.5}
    triangles: dict[str, Any] = {"markersize": 10, "markeredgecolor": "black", "markeredgewidth": 0.9}
    first, second = names
    with styled_axes(WIDTH, 3.5) as (figure, axes):
        axes.plot(drawn[first], drawn[second], "o", color=GREY, markeredgewidth=0, label=shown, **dots)
        label = f"{len(malignant)} malignant"
        axes.plot(malignant[first], malignant[second], "^", color=VERMILION, label=label, **triangles)
        axes.set_title(patient, loc="left", fontsize=10, pad=24)
        axes.set_xlabel(axis_name(first), linespacing=1.4)
        axes.set_ylabel(axis_name(second), linespacing=1.4)
        axes.grid()
        axes.legend(ncols=2, **LEGEND_ABOVE)
    places = [
        f"{100 * (benign[name] < value).mean():.0f} % of the benign ones have less {name}"
        for name in names
        for value in malignant[name].head(1)
    ]
    return chart(
        figure,
        f"Patient {patient}: {len(benign):,} benign lesions and {len(malignant)} malignant. First one: {', '.join(places)}.",
    )
