"""What the page of an exploration shows, as plain data: numbers in words, rows of tables, charts and crops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evaluation.explore.charts import (
    draw_correlations,
    draw_density,
    draw_patient,
    draw_rates,
    draw_single,
    draw_sizes,
)
from evaluation.explore.folder import Folder
from evaluation.explore.gallery import gallery, sampled, side_by_side
from evaluation.explore.tables import (
    PATIENT_GROUPS,
    chance_distance,
    column_table,
    duckling_columns,
    duckling_patients,
    far_from_own,
    kind_of,
    rate_tables,
    shift_table,
    strongest_pairs,
)
from evaluation.explore.warnings import Finding
from inference.features import SMALLEST_NORM
from inference.images import ImageStore
from inference.schema import HOSPITAL, PATIENT, TARGET, TRAIN_ONLY

#: Crops in each gallery; patients with a chart, patients with a gallery, and crops in it.
CROPS, CHARTED_PATIENTS, SHOWN_PATIENTS, PATIENT_CROPS = 24, 6, 3, 12
#: Columns in the chart of the strongest ones, and of their distributions.
STRONGEST, DENSITIES = 20, 6
#: With fewer test rows than this the distances between train and test are mostly chance.
FEW_TEST_ROWS = 30
#: A table whose row names have more letters than this stands below its chart, not beside it.
LONG_NAME = 30


@dataclass(frozen=True)
class Exploration:
    """A folder and what was computed of it: ``single`` of ``single_columns``, ``rho`` of ``correlations``."""

    folder: Folder
    single: pd.DataFrame
    rho: pd.DataFrame
    findings: list[Finding]


def page_content(exploration: Exploration, seed: int) -> dict[str, Any]:
    """The variables of templates/explore.html; ``seed`` draws the lesions that are shown.

    Raises:
        InputError: the images are no HDF5 file.
    """
    folder = exploration.folder
    train, test, source = folder.train, folder.test, folder.images.source
    store = ImageStore(source) if source else None
    content = {
        "lesions": len(train),
        "patients": train[PATIENT].nunique(),
        "malignant": int(train[TARGET].sum()),
        "findings": exploration.findings,
        "counts": counts(folder),
        "rates": rates(train),
        "sizes": patient_sizes(train),
        "single": strongest_columns(train, exploration.single),
        "ducklings": ugly_ducklings(train, seed),
        "patient_galleries": patient_galleries(folder, store, seed),
        "galleries": galleries(folder, store, seed),
        "correlations": correlated(exploration.rho),
        "shift": shift(train, test),
        "columns": columns(train, test),
        "smallest_norm": SMALLEST_NORM,
    }
    if store is not None:
        store.close()
    return content


def percent(share: float, digits: int = 1) -> str:
    """A share as "12.3 %", or a dash where there is none."""
    return "-" if pd.isna(share) else f"{100 * share:.{digits}f} %"


def counts(folder: Folder) -> dict[str, str]:
    """Counts by name."""
    train, test, images = folder.train, folder.test, folder.images
    malignant = int(train[TARGET].sum())
    with_malignant = train.loc[train[TARGET] == 1, PATIENT].nunique()
    facts = {
        "lesions": f"{len(train):,}",
        "malignant": f"{malignant:,} ({percent(malignant / len(train), 2)})",
        "patients": f"{train[PATIENT].nunique():,}, {with_malignant:,} of them with a malignant lesion",
        "hospitals": f"{train[HOSPITAL].nunique():,}" if HOSPITAL in train else f"unknown: no column {HOSPITAL}",
        "lesions with an image": f"{images.present.sum():,}" + (f", in {images.source.name}" if images.source else ""),
        "columns": f"{train.shape[1]}, {sum(name in TRAIN_ONLY for name in train)} of them only for training",
        "test split": "none",
    }
    if test is not None:
        new = (~test[PATIENT].isin(train[PATIENT])).sum()
        facts["test split"] = (
            f"{len(test):,} lesions, {new:,} of patients that train does not have; {folder.test_images:,} with an image"
        )
    return facts


def rates(train: pd.DataFrame) -> list[dict[str, Any]]:
    """Chart and table of the malignancy rate for each grouping."""
    overall = train[TARGET].mean()
    digits = 2 if overall > 0.01 else 3
    return [
        {
            "title": title,
            "chart": draw_rates(title, table, overall),
            "stacked": table["group"].str.len().max() > LONG_NAME,
            "rows": [
                (
                    row.group,
                    f"{percent(row.rate, digits)} ({100 * row.low:.{digits}f} to {100 * row.high:.{digits}f})",
                    f"{row.malignant:,}",
                    f"{row.lesions:,}",
                    f"{row.patients:,}",
                )
                for row in table.itertuples()
            ],
        }
        for title, table in rate_tables(train).items()
    ]


def patient_sizes(train: pd.DataFrame) -> dict[str, Any]:
    """Chart and counts of the lesions per patient; empty where no row has a patient."""
    sizes = train.groupby(PATIENT).size().to_numpy()
    if not len(sizes):
        return {}
    low, median, high = np.percentile(sizes, (25, 50, 75))
    facts = {
        "patients": f"{len(sizes):,}",
        "median": f"{median:,.0f} lesions",
        "quartiles": f"{low:,.0f} to {high:,.0f}",
        "most": f"{sizes.max():,}",
        f"with {SMALLEST_NORM} or more": f"{(sizes >= SMALLEST_NORM).sum():,} patients",
    }
    return {"chart": draw_sizes(sizes), "facts": facts}


def strongest_columns(train: pd.DataFrame, single: pd.DataFrame) -> dict[str, Any]:
    """Chart and table of the columns' pAUC, and the distributions of the strongest numbers; empty for one class."""
    if single.empty:
        return {}
    usable = single.loc[single["usable"] & (single["what"] == "value"), "column"]
    numbers = [name for name in usable if kind_of(train, name) == "number"][:DENSITIES]
    return {
        "chart": draw_single(single.head(STRONGEST)),
        "rows": [
            (
                row.column if row.what == "value" else f"{row.column}, is filled",
                f"{row.pauc:.4f}",
                f"{row.auc:.4f}",
                row.direction,
                "yes" if row.usable else "no",
            )
            for row in single.itertuples()
        ],
        "densities": [draw_density(train, name) for name in numbers],
        "patient_groups": PATIENT_GROUPS,
    }


def ugly_ducklings(train: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Charts of patients' lesions in two columns, and how many lie far from their patient's mean; or what is ``lacking``."""
    names, patients = duckling_columns(train), duckling_patients(train, CHARTED_PATIENTS)
    if not names:
        return {"lacking": "measured columns"}
    if not patients:
        return {"lacking": f"patients with a malignant lesion and {SMALLEST_NORM} lesions or more"}
    far = [
        {"lesions": total, "share": percent(count / max(total, 1))} for count, total in far_from_own(train, names).values()
    ]
    charts = [draw_patient(patient, train[train[PATIENT] == patient], names, seed) for patient in patients]
    return {"charts": charts, "benign": far[0], "malignant": far[1]}


def patient_galleries(folder: Folder, store: ImageStore | None, seed: int) -> list[dict[str, Any]]:
    """Crops of patients with several lesions, a malignant one among them, those with the most lesions first."""
    patients = folder.train.groupby(PATIENT)[TARGET].agg(["size", "max"])
    patients = patients[(patients["max"] == 1) & (patients["size"] > 1)].sort_values("size", ascending=False, kind="stable")
    shown = side_by_side(folder.train, folder.images.present, patients.index[:50].tolist(), PATIENT_CROPS, seed)
    chosen = list(shown.items())[:SHOWN_PATIENTS]
    return [{"patient": patient, "crops": gallery(rows, store, PATIENT_CROPS)} for patient, rows in chosen]


def galleries(folder: Folder, store: ImageStore | None, seed: int) -> list[dict[str, Any]]:
    """A sample of malignant and of benign crops."""
    found = []
    for label, word in ((1, "malignant"), (0, "benign")):
        rows = sampled(folder.train, folder.images.present, label, seed)
        found.append({"label": word, "with_image": len(rows), "crops": gallery(rows, store, CROPS)})
    return found


def correlated(rho: pd.DataFrame) -> dict[str, Any]:
    """The map of correlations and the strongest pairs; empty where fewer than two numbers vary."""
    if rho.empty:
        return {}
    pairs = [(f"{row.first}, {row.second}", f"{row.rho:+.3f}") for row in strongest_pairs(rho).itertuples()]
    return {"chart": draw_correlations(rho), "rows": pairs}


def shift(train: pd.DataFrame, test: pd.DataFrame | None) -> dict[str, Any]:
    """How far test differs from train, column by column; empty where there is no test split."""
    if test is None:
        return {}
    return {
        "test_rows": len(test),
        "few": len(test) < FEW_TEST_ROWS,
        "chance": chance_distance(len(train), len(test)),
        "rows": [
            (
                row.column,
                row.kind,
                "-" if pd.isna(row.distance) else f"{row.distance:.3f}",
                row.train,
                row.test,
                percent(row.train_share),
                percent(row.test_share),
            )
            for row in shift_table(train, test).itertuples()
        ],
    }


def columns(train: pd.DataFrame, test: pd.DataFrame | None) -> list[tuple[str, ...]]:
    """Every column: kind, missing values, distinct values, values and unit."""
    return [
        (
            row.column,
            f"{row.kind}, train only" if row.column in TRAIN_ONLY else row.kind,
            "-" if pd.isna(row.missing) else f"{row.missing:,.0f}",
            percent(row.share),
            percent(row.test_share),
            f"{row.distinct:,}",
            f"{row.values}; {row.unit}" if row.unit else row.values,
        )
        for row in column_table(train, test).itertuples()
    ]
