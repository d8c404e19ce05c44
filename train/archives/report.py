"""The report of a conversion: what was kept and what was left out, per year and class, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from train.archives.dedup import CONTRADICTORY, REPEATED, REPEATED_IN_YEAR, UNKNOWN, SortedOut
from train.archives.diagnoses import CLASSES
from train.archives.images import Hashed, Survey

REPORT = "archives-report.json"
COUNTS = ("rows", "with_image", "malignant", "benign", "unknown", "kept")


def make_report(rows: pd.DataFrame, result: SortedOut, found: Survey, hashed: Hashed, root: Path) -> dict[str, Any]:
    """Counts per year and class, and the names of images worth a look.

    A row of the ground truth is kept, or left out for one reason: rows = kept + sum of left_out.

    Args:
        rows: all rows of the ground truth.
        result: what was decided for every image.
        found: the files below ``root``.
        hashed: the readable images.
        root: the folder of the archives.
    """
    rows = rows.assign(reason=_reasons(rows, result.rows), has_image=rows["image_id"].isin(found.images))
    years: dict[str, Any] = {}
    for year in rows["year"].unique():
        of_year = rows[rows["year"] == year]
        unmapped = of_year[(of_year["site_word"] != "") & (of_year["anatom_site_general"] == "")]
        years[year] = {
            "all": _counts(of_year),
            "classes": {
                name or UNKNOWN: _counts(of_year[of_year["class"] == name])
                for name in CLASSES
                if (of_year["class"] == name).any()
            },
            "unmapped_sites": count_words(unmapped["site_word"]),
        }
    kept = result.kept
    contradictory = rows[rows["reason"] == CONTRADICTORY].sort_values(["image_id", "year"])
    unlabelled = sorted(set(found.images) - set(rows["image_id"]))
    folders = [found.images[image_id][0].parent.relative_to(root).as_posix() for image_id in unlabelled]
    return {
        "kept": {
            "lesions": len(kept),
            "malignant": int(kept["target"].sum()),
            "patients": kept["person"].nunique(),
            "lesions_of_competition_patients": int(kept["in_competition"].sum()),
        },
        "years": years,
        "images_without_ground_truth": count_words(pd.Series(folders, dtype=str)),
        "corrupt": [path.relative_to(root).as_posix() for path in hashed.corrupt],
        "contradictory": [
            f"{row.image_id} of {row.year}: {'unknown' if row.target != row.target else f'{row.target:g}'}"
            for row in contradictory.itertuples()
        ],
        "exact_duplicates": result.exact,
        "near_duplicates": result.near,
    }


def _reasons(rows: pd.DataFrame, decided: pd.DataFrame) -> pd.Series:
    """Why each row of the ground truth is left out: its image's reason, or that another row of the image was taken."""
    taken = decided.set_index("image_id").loc[rows["image_id"]].reset_index()
    own = (taken["year"] == rows["year"]) & (taken["file"] == rows["file"]) & (taken["line"] == rows["line"])
    repeated = ~own & ~taken["contradictory"]
    same_year = rows["year"] == taken["year"]
    return taken["reason"].mask(repeated & same_year, REPEATED_IN_YEAR).mask(repeated & ~same_year, REPEATED)


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    """The counts of some rows of one year."""
    kept = rows["reason"] == ""
    return {
        "rows": len(rows),
        "with_image": int(rows["has_image"].sum()),
        "malignant": int((rows["target"] == 1).sum()),
        "benign": int((rows["target"] == 0).sum()),
        "unknown": int(rows["target"].isna().sum()),
        "kept": int(kept.sum()),
        "left_out": count_words(rows.loc[~kept, "reason"]),
    }


def count_words(words: pd.Series) -> dict[str, int]:
    """How often each word occurs, the most frequent first, equally frequent ones in alphabetical order."""
    counts = words.value_counts()
    return {str(word): int(counts[word]) for word in sorted(counts.index, key=lambda word: (-counts[word], word))}


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts in one line."""
    return ", ".join(f"{word.replace('_', ' ')} {count:,}" for word, count in counts.items())


def format_report(report: Mapping[str, Any]) -> Iterator[str]:
    """The report in lines: a GitHub table of years and classes, and what else needs attention."""
    table = [["year", "class", *(name.replace("_", " ") for name in COUNTS), "left out"]]
    for year, of_year in report["years"].items():
        for name, counts in (("all", of_year["all"]), *of_year["classes"].items()):
            table.append([year, name, *(f"{counts[count]:,}" for count in COUNTS), format_counts(counts["left_out"])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    pads = [str.ljust, str.ljust, *[str.rjust] * len(COUNTS), str.ljust]
    table.insert(1, [pad(":" if pad is str.rjust else "-", width, "-") for pad, width in zip(pads, widths, strict=True)])
    for line in table:
        yield f"| {' | '.join(pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True))} |"
    for year, of_year in report["years"].items():
        if of_year["unmapped_sites"]:
            yield f"{year}: sites without a word of the competition: {format_counts(of_year['unmapped_sites'])}"
    for name in ("corrupt", "contradictory"):
        if report[name]:
            more = f" and {len(report[name]) - 10} more, see {REPORT}" if len(report[name]) > 10 else ""
            yield f"{name}: {', '.join(report[name][:10])}{more}"
    if report["images_without_ground_truth"]:
        folders = ", ".join(f"{folder} {count:,}" for folder, count in report["images_without_ground_truth"].items())
        yield f"images without a row in the ground truth of these years: {folders}"
    if "2018" in report["years"] and "2019" not in report["years"] and report["years"]["2018"]["all"]["unknown"]:
        yield "2018: AKIEC is benign or malignant; ISIC_2019_Training_GroundTruth.csv has which: use 2019, or --unknown"
    shared = report["kept"]["lesions_of_competition_patients"]
    if shared:
        yield f"{shared:,} lesions are of patients of the competition: keep a patient on one side of a fold"
