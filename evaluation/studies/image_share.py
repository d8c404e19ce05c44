"""How much of the full score the networks reach on a share of the lesions, those with the highest tabular logits.

    python -m evaluation.studies.image_share --artifacts artifacts --out image-share

The kernel scores these lesions first, and with --image-share no others. Here the out-of-fold logits of a training are
combined as the kernel combines them, with the networks' logits of the first lesions only; the others keep their tabular
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.measures import TABULAR
from evaluation.studies.compare import markdown_table, read_out_of_fold, signed, size_of, write_text
from inference.options import Parser, add_seed_option, existing_folder, output_folder, positive_number
from inference.schema import PATIENT, TARGET
from inference.scoring import combine, most_suspicious
from scale.output_folder import output_set
from terminal import run_command
from train.charts import BLUE, INK, clean_axes, new_figure, save_png
from utils import ScoreTable, bootstrap_scores, log_summary

TABLE, FIGURE = "image_share.md", "image_share.png"
SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)


def main(arguments: list[str] | None = None) -> int:
    """Writes image_share.md and image_share.png."""
    parser = Parser(description="pAUC by the share of lesions that the networks score -> image_share.md, image_share.png")
    parser.add_argument(
        "--artifacts", type=existing_folder, required=True, metavar="DIR", help="artifact folder with a trained fusion"
    )
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="folder for the table and the figure"
    )
    parser.add_argument(
        "--shares",
        type=positive_number(1),
        nargs="+",
        default=list(SHARES),
        metavar="SHARE",
        help=f"above 0 to 1 (default: {' '.join(map(str, SHARES))}); 1, all lesions, is always among them",
    )
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    shares = sorted({*options.shares, 1.0})
    with output_set(options.out, [TABLE, FIGURE]) as staging:
        rows, manifest = read_out_of_fold(options.artifacts)
        how = manifest["network"]["combination"]
        scores = {TABULAR: rows["tabular"].to_numpy()} | {name_of(share): share_scores(rows, how, share) for share in shares}
        table = bootstrap_scores(rows[TARGET].to_numpy(), rows[PATIENT].to_numpy(), scores, seed=options.seed)
        text = as_markdown(table, shares)
        write_text(staging / TABLE, text)
        draw_figure(staging / FIGURE, table, shares)
    log_summary(f"{options.out / TABLE}: {len(shares)} shares of {size_of(table)}", text)
    return 0


def share_scores(rows: pd.DataFrame, how: dict[str, Any], share: float) -> np.ndarray:
    """Final logits where the networks score so many of the lesions, shape (rows,)."""
    return combine(how, rows, reached(rows["tabular"].to_numpy(), share) & rows["image_scored"].to_numpy(bool))


def reached(tabular: np.ndarray, share: float) -> np.ndarray:
    """Whether each lesion is among those that the networks score, bool of shape (rows,)."""
    found = np.zeros(len(tabular), dtype=bool)
    found[most_suspicious(tabular, share)] = True
    return found


def name_of(share: float) -> str:
    """A share in percent: "5 %"."""
    return f"{100 * share:g} %"


def as_markdown(table: ScoreTable, shares: Sequence[float]) -> str:
    """The table as Markdown, one row per share behind that of the tabular score.

    Args:
        table: of the tabular score and each share by ``name_of``.
        shares: ascending, the last one 1.
    """
    full = table.difference(name_of(1.0), TABULAR).value
    rows = []
    for share in (0.0, *shares):
        name = name_of(share) if share else TABULAR
        pauc, gain = table.scores[name].pauc, table.difference(name, TABULAR)
        behind = [signed(gain), f"{gain.value / full:.0%}" if full > 0 else "", signed(table.difference(name, name_of(1.0)))]
        behind = behind if share else ["", "", behind[-1]]
        behind = behind if share < 1 else [*behind[:-1], ""]
        count = f"{max(1, round(share * table.rows)) if share else 0:,}"
        rows.append([name, count, f"{pauc.value:.4f}", f"{pauc.low:.4f} to {pauc.high:.4f}", *behind])
    head = (
        "scored by image",
        "lesions",
        "pAUC",
        "95 % interval",
        "minus tabular, paired",
        "of the gain",
        "minus 100 %, paired",
    )
    return f"{size_of(table)}, out of fold; 95 % patient bootstrap\n\n{markdown_table(head, rows)}\n"


def draw_figure(path: Path, table: ScoreTable, shares: Sequence[float]) -> None:
    """pAUC by share with its interval; the tabular score is the share 0."""
    names = [TABULAR, *map(name_of, shares)]
    percent = [0.0, *(100 * share for share in shares)]
    paucs = [table.scores[name].pauc for name in names]
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    axes.fill_between(percent, [each.low for each in paucs], [each.high for each in paucs], color=BLUE, alpha=0.15, lw=0)
    axes.plot(percent, [each.value for each in paucs], "o-", color=BLUE)
    axes.axhline(paucs[0].value, color=INK, linestyle="--", linewidth=1, label=f"{TABULAR}, {paucs[0].value:.4f}")
    axes.set_xlabel("lesions scored by the networks, %, the highest tabular logits first")
    axes.set_ylabel("pAUC above 80 % true-positive rate")
    axes.set_title(f"{size_of(table)}, out of fold; band: 95 % interval", fontsize=10)
    axes.legend(loc="lower right", frameon=False)
    clean_axes(axes)
    save_png(figure, path)


if __name__ == "__main__":
    run_command(main)
