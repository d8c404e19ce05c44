"""The columns of the competition's files: names, kinds, units, and which exist only in train.

The order is the one in which the competition ships them. ``TRAIN_ONLY`` columns hold the diagnosis or come from it
(``lesion_id`` alone marks every malignant lesion and 5 % of the benign ones), so no feature may be made of them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inference.tables import Reading, lines_of, read_csv_file
from utils import InputError


@dataclass(frozen=True)
class Column:
    """One column: ``kind`` is "id", "label", "number" or "category"; ``unit`` is "" where there is none."""

    name: str
    kind: str
    unit: str = ""
    train_only: bool = False


ID = "isic_id"
PATIENT = "patient_id"
TARGET = "target"
HOSPITAL = "attribution"
#: What a missing category is called in the feature table. CatBoost takes no NaN in a categorical column.
MISSING = "missing"

COLUMNS = (
    Column(ID, "id"),
    Column(TARGET, "label", train_only=True),
    Column(PATIENT, "id"),
    Column("age_approx", "number", "years, multiples of 5"),
    Column("sex", "category"),
    Column("anatom_site_general", "category"),
    Column("clin_size_long_diam_mm", "number", "mm"),
    Column("image_type", "category"),
    Column("tbp_tile_type", "category"),
    Column("tbp_lv_A", "number", "CIELAB a* inside the lesion"),
    Column("tbp_lv_Aext", "number", "CIELAB a* of the skin around it"),
    Column("tbp_lv_B", "number", "CIELAB b* inside"),
    Column("tbp_lv_Bext", "number", "CIELAB b* outside"),
    Column("tbp_lv_C", "number", "chroma inside, sqrt(A^2 + B^2)"),
    Column("tbp_lv_Cext", "number", "chroma outside"),
    Column("tbp_lv_H", "number", "hue inside, atan2(B, A) in degrees"),
    Column("tbp_lv_Hext", "number", "hue outside, degrees"),
    Column("tbp_lv_L", "number", "CIELAB L* inside"),
    Column("tbp_lv_Lext", "number", "CIELAB L* outside"),
    Column("tbp_lv_areaMM2", "number", "mm^2"),
    Column("tbp_lv_area_perim_ratio", "number", "perimeter^2 / area"),
    Column("tbp_lv_color_std_mean", "number", "CIELAB"),
    Column("tbp_lv_deltaA", "number", "A - Aext"),
    Column("tbp_lv_deltaB", "number", "B - Bext"),
    Column("tbp_lv_deltaL", "number", "L - Lext"),
    Column("tbp_lv_deltaLB", "number", "CIELAB contrast"),
    Column("tbp_lv_deltaLBnorm", "number", "CIELAB contrast"),
    Column("tbp_lv_eccentricity", "number", "0 to 1"),
    Column("tbp_lv_location", "category"),
    Column("tbp_lv_location_simple", "category"),
    Column("tbp_lv_minorAxisMM", "number", "mm"),
    Column("tbp_lv_nevi_confidence", "number", "0 to 100"),
    Column("tbp_lv_norm_border", "number", "0 to 10"),
    Column("tbp_lv_norm_color", "number", "0 to 10"),
    Column("tbp_lv_perimeterMM", "number", "mm"),
    Column("tbp_lv_radial_color_std_max", "number", "CIELAB"),
    Column("tbp_lv_stdL", "number", "CIELAB"),
    Column("tbp_lv_stdLExt", "number", "CIELAB"),
    Column("tbp_lv_symm_2axis", "number", "0 to 1"),
    Column("tbp_lv_symm_2axis_angle", "number", "degrees, multiples of 5"),
    Column("tbp_lv_x", "number", "mm in body coordinates"),
    Column("tbp_lv_y", "number", "mm in body coordinates"),
    Column("tbp_lv_z", "number", "mm in body coordinates"),
    Column(HOSPITAL, "category"),
    Column("copyright_license", "category"),
    Column("lesion_id", "id", train_only=True),
    Column("iddx_full", "category", train_only=True),
    Column("iddx_1", "category", train_only=True),
    Column("iddx_2", "category", train_only=True),
    Column("iddx_3", "category", train_only=True),
    Column("iddx_4", "category", train_only=True),
    Column("iddx_5", "category", train_only=True),
    Column("mel_mitotic_index", "category", train_only=True),
    Column("mel_thick_mm", "number", "mm", train_only=True),
    Column("tbp_lv_dnn_lesion_confidence", "number", "0 to 100", train_only=True),
)

TRAIN_COLUMNS = tuple(column.name for column in COLUMNS)
TEST_COLUMNS = tuple(column.name for column in COLUMNS if not column.train_only)
TRAIN_ONLY = frozenset(column.name for column in COLUMNS if column.train_only)
NUMBERS = tuple(column.name for column in COLUMNS if column.kind == "number" and not column.train_only)
CATEGORIES = tuple(column.name for column in COLUMNS if column.kind == "category" and not column.train_only)
#: Columns that are read as text: 007 is not 7.
TEXT_COLUMNS = {column.name: "str" for column in COLUMNS if column.kind in ("id", "category")}
#: Measured by the 3D total-body system: a file has the whole block or, as the earlier archives, none of it.
BODY_SCAN = tuple(name for name in TEST_COLUMNS if name.startswith("tbp_lv_"))


def read_metadata(path: Path, *, labelled: bool) -> pd.DataFrame:
    """Reads and checks a metadata file for training: anything doubtful is refused.

    Args:
        path: a CSV file shaped as ``train-metadata.csv`` or ``test-metadata.csv``.
        labelled: whether the ``target`` column must be there, all 0 or 1.

    Returns:
        One row per lesion, in the order of the file: numbers as float64, categories and ids as str or NaN, ``target`` as
        int64. Columns that the schema does not know are left out.

    Raises:
        InputError: the file is missing or is no CSV, or a row is longer or shorter than the header; a column is missing,
            renamed or there twice; an isic_id is duplicated; an isic_id or patient_id is empty; a number is no number; a
            label is not 0 or 1.
    """
    frame = read_table(path)
    required = [ID, PATIENT] + ([TARGET] if labelled else [])
    _check_columns(frame, required, path.name)
    frame = frame[[name for name in TRAIN_COLUMNS if name in frame and (labelled or name != TARGET)]].copy()
    for name in (ID, PATIENT):
        _refuse_rows(frame, frame[name].isna(), name, path, "is empty; give every lesion one")
    _refuse_rows(frame, frame[ID].duplicated(), ID, path, "occurs twice; keep one row per lesion")
    if labelled:
        labels = pd.to_numeric(frame[TARGET], errors="coerce")
        _refuse_rows(frame, ~labels.isin([0, 1]), TARGET, path, "is not 0 (benign) or 1 (malignant)")
        frame[TARGET] = labels.astype("int64")
    for name in NUMBERS:
        if name in frame:
            numbers = pd.to_numeric(frame[name], errors="coerce")
            wrong = ~np.isfinite(numbers.astype("float64")) & frame[name].notna()
            _refuse_rows(frame, wrong, name, path, "is no number; correct or empty it")
            frame[name] = numbers.astype("float64")
    return frame


def read_metadata_leniently(path: Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """Reads test metadata for the kernel, which must score every file: as ``repaired`` gives it.

    Raises:
        InputError: the file is missing, is no CSV, or has no isic_id column.
    """
    counts: Counter[str] = Counter()
    frame, repairs = repaired(read_csv_file(path, Reading(TEXT_COLUMNS, repairs=counts)), path.name)
    return frame, dict(counts) | repairs


def repaired(frame: pd.DataFrame, file_name: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Test metadata, repaired where it cannot be used as it is, and the repairs counted.

    A cell that is no number becomes missing, a lesion without a patient_id becomes its own patient, of a duplicated isic_id
    the first row stays, a row without an isic_id is left out.

    Args:
        frame: ids and categories as text, numbers in whatever type.
        file_name: where it is from, for an error.

    Returns:
        The rows, as ``read_metadata`` gives them, with every column of ``TEST_COLUMNS`` (missing ones all empty), and
        how often each repair was made, by name; repairs that were not needed are absent.

    Raises:
        InputError: there is no isic_id column.
    """
    if ID not in frame:
        raise InputError(f"{file_name} has no column {ID!r}; its columns are {_listed(frame.columns)}.")
    repairs = {"columns_missing": sum(name not in frame for name in TEST_COLUMNS)}
    frame = frame.reindex(columns=list(TEST_COLUMNS))
    keep = frame[ID].notna()
    repairs["rows_without_isic_id"] = int((~keep).sum())
    duplicated = keep & frame[ID].duplicated()
    repairs["duplicated_isic_id"] = int(duplicated.sum())
    frame = frame[keep & ~duplicated].reset_index(drop=True)
    alone = frame[PATIENT].isna()
    repairs["rows_without_patient_id"] = int(alone.sum())
    frame[PATIENT] = frame[PATIENT].astype(object).where(~alone, "alone:" + frame[ID].astype(str))
    cells = 0
    for name in NUMBERS:
        numbers = pd.to_numeric(frame[name], errors="coerce").astype("float64")
        numbers = numbers.where(np.isfinite(numbers))
        cells += int((numbers.isna() & frame[name].notna()).sum())
        frame[name] = numbers
    repairs["cells_not_numeric"] = cells
    return frame, {name: count for name, count in repairs.items() if count}


def read_scores(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads ``columns`` of a table with one row per lesion: folds, out-of-fold logits, a submission, true scores.

    Returns:
        The columns in the order asked for, indexed by isic_id (str), rows in the order of the file.

    Raises:
        InputError: the file is missing or no CSV, lacks isic_id or a column, or has an isic_id twice.
    """
    frame = read_table(path)
    for name in (ID, *columns):
        if name not in frame:
            raise InputError(f"{path} has no column {name!r}; its columns are {_listed(frame.columns)}.")
    _refuse_rows(frame, frame[ID].isna(), ID, path, "is empty; correct the row")
    _refuse_rows(frame, frame[ID].duplicated(), ID, path, "occurs twice; keep one row per lesion")
    return frame.set_index(ID)[list(columns)]


def read_table(path: Path) -> pd.DataFrame:
    """Reads a CSV file whose values are not checked: ids and categories as text, other columns as pandas infers them.

    Raises:
        InputError: the file is missing or no CSV, or a row is longer or shorter than the header.
    """
    return read_csv_file(path, Reading(TEXT_COLUMNS))


def _check_columns(frame: pd.DataFrame, required: Iterable[str], file_name: str) -> None:
    """Refuses a missing column, naming the one that looks like it under another name."""
    needed = list(required)
    if any(name in frame for name in BODY_SCAN):
        needed += [name for name in TEST_COLUMNS if name not in needed]
    absent = [name for name in needed if name not in frame]
    if not absent:
        return
    strangers = [str(name) for name in frame.columns if name not in TRAIN_COLUMNS]
    by_lower = {name.lower(): name for name in strangers}
    lookalike = difflib.get_close_matches(absent[0].lower(), by_lower, n=1, cutoff=0.75)
    advice = f"rename {by_lower[lookalike[0]]!r} to it" if lookalike else "restore it from the competition's file"
    more = f" (and {len(absent) - 1} more: {_listed(absent[1:])})" if len(absent) > 1 else ""
    raise InputError(f"{file_name} has no column {absent[0]!r}{more}; {advice}.")


def _refuse_rows(frame: pd.DataFrame, bad: pd.Series, name: str, path: Path, complaint: str) -> None:
    """Raises for the first row where ``bad`` is true, by the line that an editor shows."""
    if not bad.any():
        return
    position = int(np.flatnonzero(bad.to_numpy())[0])
    value = frame[name].iloc[[position]].tolist()[0]  # a Python number, which shows as it is written
    lesion = frame[ID].iloc[position]
    line = lines_of(path)[position]
    raise InputError(
        f"{path.name} line {line} ({ID} {lesion}): {name} {value!r} {complaint} ({int(bad.sum())} such rows in all)."
    )


def _listed(names: Iterable[str], at_most: int = 5) -> str:
    """The first few names in quotes, for an error sentence."""
    names = [repr(str(name)) for name in names]
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")
