"""How a training went, epoch by epoch: history.csv, and a figure of it."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from inference.files import replacing
from utils import write_csv

mpl.use("Agg")


def write_history(kept: Path, logs: Path, name: str) -> None:
    """Gathers the folds' histories into ``logs``/``name``-history.csv and draws ``name``-curves.png.

    Args:
        kept: folder with a ``history*.csv`` per fold.
        logs: folder to write into.
        name: of the training.
    """
    parts = [pd.read_csv(path) for path in sorted(kept.glob("history*.csv"))]
    history = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    if history.empty:
        return
    write_csv(logs / f"{name}-history.csv", history)
    with replacing(logs / f"{name}-curves.png") as temporary:
        draw(history, name).savefig(temporary, dpi=120)


def draw(history: pd.DataFrame, name: str) -> Figure:
    """Training loss of every fold by epoch, the learning rate below it, and how fast it went."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for fold, part in history.groupby("fold"):
        top.plot(part["epoch"], part["loss"], marker="o", markersize=3, label=f"fold {fold}")
    first = history[history["fold"] == history["fold"].iloc[0]]
    bottom.plot(first["epoch"], first["learning_rate"], color="black", marker="o", markersize=3)
    for epoch in first.loc[first["phase"] != first["phase"].shift(), "epoch"].iloc[1:]:
        top.axvline(epoch - 0.5, color="grey", linestyle=":")
        bottom.axvline(epoch - 0.5, color="grey", linestyle=":")
    phases = ", then ".join(dict.fromkeys(history["phase"]))
    speed, minutes = history["images_per_second"].median(), history["seconds"].sum() / 60
    top.set_title(f"{name}: {phases}; {speed:.0f} images/s, {minutes:.1f} min in all", fontsize=11)
    top.set_ylabel("training loss")
    top.legend(frameon=False)
    bottom.set_ylabel("learning rate at its end")
    bottom.set_xlabel("epoch")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure
