"""One page to look at a competition folder by: what it holds, what tells malignant lesions, and what will hurt.

    python -m evaluation.explore --data data/isic-2024-challenge --out exploration

Writes index.html, which needs nothing beside it. Any folder in the competition's layout will do: without a test split,
without the columns of the body scan, with images for some lesions or for none.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.explore.charts import draw_correlations, draw_density, draw_duckling, draw_rates, draw_single, draw_sizes
from evaluation.explore.folder import Folder, read_folder
from evaluation.explore.gallery import gallery, sampled, side_by_side
from evaluation.explore.tables import (
    DEALT,
    chance_distance,
    column_table,
    correlations,
    duckling_columns,
    duckling_patients,
    far_from_own,
    kind_of,
    rate_tables,
    shift_table,
    single_columns,
    strongest_pairs,
)
from evaluation.explore.warnings import Finding, find_warnings
from evaluation.html import fact_table, row_of, table_of, write_page
from inference.features import SMALLEST_NORM
from inference.images import ImageStore, find_images
from inference.schema import HOSPITAL, PATIENT, TARGET, TRAIN_ONLY
from utils import add_seed_option, log, run_command

PAGE = "index.html"
#: Crops in each gallery, patients in the "ugly duckling" picture, crops of each of them, columns in the charts of the
#: strongest ones and of their distributions.
CROPS, DUCKLINGS, DUCKLING_CROPS, STRONGEST, DENSITIES = 24, 6, 12, 20, 6
#: Fewer test rows than this tell nothing about a shift.
FEW_TEST_ROWS = 30
#: A table whose row names have more letters than this has no room beside a chart.
LONG_NAME = 30
NONE = "-"


def number(value: float, form: str = ",.0f") -> str:
    """A number in that form, or a dash where there is none."""
    return NONE if pd.isna(value) else format(value, form)


def percent(share: float, digits: int = 1) -> str:
    """A share as "12.3 %", or a dash."""
    return NONE if pd.isna(share) else f"{100 * share:.{digits}f} %"


def note(text: str) -> str:
    """Small print; ``text`` is HTML."""
    return f'<p class="note">{text}</p>'


def subheading(text: str) -> str:
    """The heading of a part of a section; plain text."""
    return f'<h3 style="font-size:1rem;margin:1.6rem 0 .6rem">{escape(text)}</h3>'


def warnings_section(findings: list[Finding]) -> str:
    """What will hurt, as a list."""
    if not findings:
        return "<p>Nothing was found of what is looked for.</p>"
    items = (f"<li><strong>{escape(each.title)}.</strong> {escape(each.text)}</li>" for each in findings)
    return '<ul class="warning" style="margin:.5rem 0;padding-left:2rem">' + "\n".join(items) + "</ul>"


def overview(folder: Folder) -> dict[str, str]:
    """Counts by name."""
    train, test, images = folder.train, folder.test, folder.images
    malignant, patients = int(train[TARGET].sum()), train[PATIENT].nunique()
    with_malignant = train.loc[train[TARGET] == 1, PATIENT].nunique()
    facts = {
        "lesions": f"{len(train):,}",
        "malignant": f"{malignant:,} ({percent(malignant / len(train), 2)})",
        "patients": f"{patients:,}, {with_malignant:,} of them with a malignant lesion",
        "hospitals": f"{train[HOSPITAL].nunique():,}" if HOSPITAL in train else f"unknown: no column {HOSPITAL}",
        "lesions with an image": f"{images.present.sum():,}" + (f", in {images.source}" if images.source else ""),
        "columns": f"{train.shape[1]}, {sum(name in TRAIN_ONLY for name in train)} of them only for training",
    }
    if test is None:
        return facts | {"test split": "none"}
    in_train = f", {(~test[PATIENT].isin(train[PATIENT])).sum():,} of patients that train has not"
    return facts | {"test split": f"{len(test):,} lesions{in_train}; {folder.test_images:,} with an image"}


def columns_section(train: pd.DataFrame, test: pd.DataFrame | None) -> str:
    """Every column: kind, unit, missing values, what it holds."""
    rows = [
        row_of(
            row.column,
            [
                f"{row.kind}, train only" if row.column in TRAIN_ONLY else row.kind,
                number(row.missing),
                percent(row.share),
                percent(row.test_share),
                f"{row.distinct:,}",
                f"{row.values}" + (f"; {row.unit}" if row.unit else ""),
            ],
        )
        for row in column_table(train, test).itertuples()
    ]
    heads = ("column", "kind", "missing", "missing, train", "missing, test", "distinct", "values")
    return table_of("Columns and their missing values", heads, rows, "sortable")


def shift_section(train: pd.DataFrame, test: pd.DataFrame | None) -> str:
    """How far test differs from train, column by column."""
    if test is None:
        return "<p>The folder has no test-metadata.csv, so there is nothing to compare train with.</p>"
    chance = chance_distance(len(train), len(test))
    few = (
        f'<p class="warning">Test has {len(test):,} rows only: the distances below are mostly chance, and only what lies '
        "outside train's range altogether can be told from them. The hidden test of the competition has some 500,000 rows, "
        "from two more hospitals.</p>"
        if len(test) < FEW_TEST_ROWS
        else ""
    )
    rows = [
        row_of(
            row.column,
            [row.kind, number(row.distance, ".3f"), row.train, row.test, percent(row.train_share), percent(row.test_share)],
        )
        for row in shift_table(train, test).itertuples()
    ]
    heads = ("column", "kind", "distance", "train", "test", "missing, train", "missing, test")
    table = table_of("Distance between train and test per column", heads, rows, "sortable")
    explained = (
        "0: alike, 1: nothing in common. Numbers: Kolmogorov-Smirnov statistic; categories: total variation distance. "
        f"Two samples of one distribution, of {len(train):,} and {len(test):,} independent lesions, differ by up to "
        f"{chance:.3f} (Kolmogorov-Smirnov) 19 times out of 20; lesions of one patient resemble each other, so more than "
        "that can still be chance."
    )
    return few + table + note(explained)


def beside(drawing: str, table: str, wide: bool = False) -> str:
    """A chart and its table side by side, on a narrow screen, or for a ``wide`` table, one below the other."""
    left, right = "flex:4 1 18rem;min-width:0;max-width:36rem", f"flex:5 1 {'100%' if wide else '20rem'};min-width:0"
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:1rem 1.5rem;align-items:start">'
        f'<div style="{left}">{drawing}</div><div style="{right}">{table}</div></div>'
    )


def card(drawings: str, caption: str = "") -> str:
    """Charts on a white card, in dark mode too; the caption is text."""
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="panels">{drawings}</div>{told}</figure>'


def rates_section(train: pd.DataFrame) -> str:
    """Malignancy rate by site, sex, age, hospital, tile type and the number of the patient's lesions."""
    overall, parts = train[TARGET].mean(), []
    digits = 2 if overall > 0.01 else 3
    heads = ("group", "rate (95 % interval)", "malignant", "lesions", "patients")
    for title, table in rate_tables(train).items():
        rows = [
            row_of(
                row.group,
                [
                    f"{percent(row.rate, digits)} ({100 * row.low:.{digits}f} to {100 * row.high:.{digits}f})",
                    f"{row.malignant:,}",
                    f"{row.lesions:,}",
                    f"{row.patients:,}",
                ],
            )
            for row in table.itertuples()
        ]
        kind = "numbers sortable"
        parts.append(subheading(f"By {title}"))
        drawing = card(draw_rates(title, table, overall))
        wide = table["group"].str.len().max() > LONG_NAME
        parts.append(beside(drawing, table_of(f"Malignancy rate by {title}", heads, rows, kind), wide))
    sizes = train.groupby(PATIENT).size().to_numpy()
    spread = {
        "patients": f"{len(sizes):,}",
        "median": f"{np.median(sizes):,.0f} lesions",
        "quarter to three quarters": " to ".join(f"{edge:,.0f}" for edge in np.percentile(sizes, (25, 75))),
        "most": f"{sizes.max():,}",
        f"with {SMALLEST_NORM} or more": f"{(sizes >= SMALLEST_NORM).sum():,} patients",
    }
    if len(sizes):
        parts.append(subheading("Lesions per patient"))
        parts.append(beside(card(draw_sizes(sizes)), fact_table(spread, "Lesions per patient")))
    parts.append(
        note(
            "Intervals by Wilson's formula, as if lesions were independent. Lesions of one patient are not, so the true "
            "intervals are wider; do not over-read small groups. A rate tells how this folder was collected, not a person's "
            "risk."
        )
    )
    return "\n".join(parts)


def single_section(train: pd.DataFrame, single: pd.DataFrame) -> str:
    """The strongest columns with their pAUC, and the distributions of the strongest numbers."""
    if single.empty:
        return "<p>All labels are of one class, so no column can be scored.</p>"
    rows = [
        row_of(
            row.column if row.what == "value" else f"{row.column}, is filled",
            [f"{row.pauc:.4f}", f"{row.auc:.4f}", row.direction, "yes" if row.usable else "no"],
        )
        for row in single.itertuples()
    ]
    heads = ("column", "pAUC", "AUC", "direction", "usable")
    table = table_of("pAUC of each column by itself", heads, rows, "numbers sortable")
    usable = single[single["usable"] & (single["what"] == "value")]
    numbers = [row.column for row in usable.itertuples() if kind_of(train, row.column) == "number"][:DENSITIES]
    drawings = card(draw_single(single.head(STRONGEST)))
    if numbers:
        caption = (
            "Grey: benign lesions; line: malignant ones. Each adds up to 100 %; the outermost 0.2 % at each end are drawn "
            "in the last bins."
        )
        drawings += subheading("The strongest numbers, benign and malignant")
        drawings += card("".join(draw_density(train, name) for name in numbers), caption)
    explained = (
        "pAUC is the competition's metric, the area of the ROC curve above 80 % true-positive rate: the best is 0.20, "
        "guessing 0.02. A number is taken in the direction (which values are more suspicious) in which its pAUC is higher, "
        "and that was picked on these very rows; the median stands where it is unknown. A category is scored by its "
        f"malignancy rate among other patients ({DEALT} groups of them). A model cannot use what the competition's test "
        "file lacks. A column of low pAUC can still be of use beside others."
    )
    return note(explained) + beside(drawings, table)


def correlation_section(rho: pd.DataFrame) -> str:
    """The map, and the strongest pairs."""
    if rho.empty:
        return "<p>Fewer than two numbers vary, so there is nothing to correlate.</p>"
    rows = [row_of(f"{row.first}, {row.second}", [f"{row.rho:+.3f}"]) for row in strongest_pairs(rho).itertuples()]
    # The map keeps its size on a narrow screen and scrolls inside its card.
    drawing = f'<div style="min-width:44rem">{draw_correlations(rho)}</div>'
    return f"""<figure><div class="wide" role="region" aria-label="Correlation map" tabindex="0">{drawing}</div>
<figcaption>Spearman's rank correlation. The area of a square is the strength; blue and filled: both rise together; pale with
a frame: one falls as the other rises. Columns that move together stand beside each other.</figcaption></figure>
{subheading("The strongest pairs")}
{table_of("The strongest rank correlations", ("pair", "correlation"), rows, "numbers sortable")}"""


def duckling_section(folder: Folder, store: ImageStore | None, seed: int) -> str:
    """Patients with many lesions, one of them malignant: where it lies among the others, and how they look."""
    train = folder.train
    names, patients = duckling_columns(train), duckling_patients(train, DUCKLINGS)
    parts = []
    if names and patients:
        drawings = [draw_duckling(who, train[train[PATIENT] == who], names, seed) for who in patients]
        far = far_from_own(train, names)
        shares = {label: percent(count / max(total, 1)) for label, (count, total) in far.items()}
        caption = (
            f"Dots: benign lesions; triangles: malignant ones. The {len(patients)} patients with the most lesions of those "
            "who have a malignant one."
        )
        parts.append(
            f"{card(''.join(drawings), caption)}<p>Of all patients with {SMALLEST_NORM} lesions or more, {shares[1]} of the "
            f"{far[1][1]:,} malignant lesions and {shares[0]} of the {far[0][1]:,} benign ones lie more than two standard "
            "deviations from their patient's mean in one of these two columns or both.</p>"
        )
    else:
        lack = "measured columns" if not names else f"patients with a malignant lesion and {SMALLEST_NORM} lesions or more"
        parts.append(f"<p>The folder has no {lack}, so that no lesion can be drawn among the patient's others.</p>")
    if store is not None:
        several = train.groupby(PATIENT)[TARGET].agg(["size", "max"])
        several = several[(several["max"] == 1) & (several["size"] > 1)].sort_values("size", ascending=False, kind="stable")
        shown = side_by_side(train, folder.images.present, several.index[:50].tolist(), DUCKLING_CROPS, seed)
        for who in list(shown)[:3]:
            if cards := gallery(shown[who], store, DUCKLING_CROPS, f"Lesions of patient {who}"):
                parts.append(subheading(f"Patient {who}, side by side") + cards)
    return "\n".join(parts)


def galleries_section(folder: Folder, store: ImageStore | None, seed: int) -> str:
    """A sample of malignant and of benign crops."""
    parts = []
    for label, word in ((1, "malignant"), (0, "benign")):
        cards = ""
        if store is not None:
            rows = sampled(folder.train, folder.images.present, label, seed)
            cards = gallery(rows, store, CROPS, f"{word.capitalize()} lesions")
            parts.append(subheading(f"{word.capitalize()}, of {len(rows):,} with an image"))
        parts.append(cards or f"<p>No {word} lesion has an image that can be read.</p>")
    return "\n".join(parts)


def page_of(folder: Folder, findings: list[Finding], single: pd.DataFrame, rho: pd.DataFrame, data: Path, seed: int) -> str:
    """The whole page below its heading."""
    source = find_images(data, "train")
    store = ImageStore(source) if source else None
    train, test = folder.train, folder.test
    malignant, patients = int(train[TARGET].sum()), train[PATIENT].nunique()
    sections = {
        "What will hurt": warnings_section(findings),
        "What there is": fact_table(overview(folder), "Counts"),
        "Malignancy rate": rates_section(train),
        "The strongest single columns": single_section(train, single),
        "The ugly duckling": duckling_section(folder, store, seed),
        "Crops": galleries_section(folder, store, seed),
        "Which numbers move together": correlation_section(rho),
        "Train and test": shift_section(train, test),
        "All columns": columns_section(train, test),
    }
    if store is not None:
        store.close()
    names = {title: f"part-{place}" for place, title in enumerate(sections)}
    contents = " &middot; ".join(f'<a href="#{name}">{title}</a>' for title, name in names.items())
    body = "\n".join(f'<section id="{names[title]}"><h2>{title}</h2>\n{html}</section>' for title, html in sections.items())
    return f"""<p class="headline"><strong>{len(train):,}</strong> lesions of <strong>{patients:,}</strong> patients,
<strong>{malignant:,}</strong> of them malignant; warnings: {len(findings)}.</p>
<nav aria-label="Contents"><p style="max-width:none">{contents}</p></nav>
{body}"""


def main(arguments: list[str] | None = None) -> int:
    """Writes the page."""
    parser = argparse.ArgumentParser(description="A competition folder at a glance -> index.html, a page without a server")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder for {PAGE}")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    folder = read_folder(options.data)
    train = folder.train
    single, rho = single_columns(train), correlations(train)
    findings = find_warnings(folder, single, rho)
    path = options.out / PAGE
    body = page_of(folder, findings, single, rho, options.data, options.seed)
    write_page(path, f"Exploration: {options.data.resolve().name}", body, width="76rem")
    usable = single[single["usable"]]
    best = f"; strongest column {usable['column'].iloc[0]}, pAUC {usable['pauc'].iloc[0]:.4f}" if len(usable) else ""
    log(
        f"{path}: {len(train):,} lesions of {train[PATIENT].nunique():,} patients, {int(train[TARGET].sum()):,} malignant; "
        f"{len(findings)} warnings{best}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
