"""What the page of an exploration shows, as plain data: tables, charts and crops."""

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
from evaluation.explore.gallery import Crop, gallery, sampled, side_by_side
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
    folder, single, rho = exploration.folder, exploration.single, exploration.rho
    train, test, source = folder.train, folder.test, folder.images.source
    store = ImageStore(source) if source else None
    overall = train[TARGET].mean()
    content = {
        "lesions": len(train),
        "patients": train[PATIENT].nunique(),
        "malignant": int(train[TARGET].sum()),
        "findings": exploration.findings,
        "counts": counts(folder),
        "rates": [
            {"title": title, "table": table, "chart": draw_rates(title, table, overall)}
            for title, table in rate_tables(train).items()
        ],
        "rate_digits": 2 if overall > 0.01 else 3,
        "long_name": LONG_NAME,
        "sizes": patient_sizes(train),
        "single": single,
        "single_chart": draw_single(single.head(STRONGEST)) if len(single) else None,
        "densities": [draw_density(train, name) for name in strongest_numbers(train, single)],
        "patient_groups": PATIENT_GROUPS,
        "ducklings": ugly_ducklings(train, seed),
        "patient_galleries": patient_galleries(folder, store, seed),
        "galleries": galleries(folder, store, seed),
        "correlations": strongest_pairs(rho) if len(rho) else None,
        "correlation_map": draw_correlations(rho) if len(rho) else None,
        "shift": None if test is None else shift_table(train, test),
        "chance": None if test is None else chance_distance(len(train), len(test)),
        "test_rows": 0 if test is None else len(test),
        "few_test_rows": FEW_TEST_ROWS,
        "columns": column_table(train, test),
        "train_only": TRAIN_ONLY,
        "smallest_norm": SMALLEST_NORM,
    }
    if store is not None:
        store.close()
    return content


def counts(folder: Folder) -> dict[str, str]:
    """Counts by name."""
    train, test, images = folder.train, folder.test, folder.images
    malignant = train[train[TARGET] == 1]
    found = {
        "lesions": f"{len(train):,}",
        "malignant": f"{len(malignant):,} ({100 * len(malignant) / len(train):.2f} %)",
        "patients": f"{train[PATIENT].nunique():,}, {malignant[PATIENT].nunique():,} of them with a malignant lesion",
        "hospitals": f"{train[HOSPITAL].nunique():,}" if HOSPITAL in train else f"unknown: no column {HOSPITAL}",
        "lesions with an image": f"{images.present.sum():,}" + (f", in {images.source.name}" if images.source else ""),
        "columns": f"{train.shape[1]}, {sum(name in TRAIN_ONLY for name in train)} of them only for training",
        "test split": "none",
    }
    if test is not None:
        new = (~test[PATIENT].isin(train[PATIENT])).sum()
        found["test split"] = (
            f"{len(test):,} lesions, {new:,} of patients that train does not have; {folder.test_images:,} with an image"
        )
    return found


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


def strongest_numbers(train: pd.DataFrame, single: pd.DataFrame) -> list[str]:
    """The usable numbers with the highest pAUC."""
    usable = single.loc[single["usable"] & (single["what"] == "value"), "column"]
    return [name for name in usable if kind_of(train, name) == "number"][:DENSITIES]


def ugly_ducklings(train: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Charts of patients' lesions in two columns, and how many lie far from their patient's mean; or what is ``lacking``."""
    names, patients = duckling_columns(train), duckling_patients(train, CHARTED_PATIENTS)
    if not names:
        return {"lacking": "measured columns"}
    if not patients:
        return {"lacking": f"patients with a malignant lesion and {SMALLEST_NORM} lesions or more"}
    charts = [draw_patient(patient, train[train[PATIENT] == patient], names, seed) for patient in patients]
    return {"charts": charts, "far": far_from_own(train, names)}


def patient_galleries(folder: Folder, store: ImageStore | None, seed: int) -> dict[str, list[Crop]]:
    """Patient -> crops, of patients with several lesions, a malignant one among them; those with the most lesions first."""
    patients = folder.train.groupby(PATIENT)[TARGET].agg(["size", "max"])
    patients = patients[(patients["max"] == 1) & (patients["size"] > 1)].sort_values("size", ascending=False, kind="stable")
    shown = side_by_side(folder.train, folder.images.present, patients.index[:50].tolist(), PATIENT_CROPS, seed)
    return {patient: gallery(rows, store, PATIENT_CROPS) for patient, rows in list(shown.items())[:SHOWN_PATIENTS]}


def galleries(folder: Folder, store: ImageStore | None, seed: int) -> list[dict[str, Any]]:
    """A sample of malignant and of benign crops."""
    found = []
    for label, word in ((1, "malignant"), (0, "benign")):
        rows = sampled(folder.train, folder.images.present, label, seed)
        found.append({"label": word, "with_image": len(rows), "crops": gallery(rows, store, CROPS)})
    return found
