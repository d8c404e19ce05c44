"""Readers: the official ground truth and metadata files of each year -> one table.

Labels come from the ground truth alone: re-published metadata files have rewritten diagnoses. Lines are those that an editor
shows. Sites and sexes are given in the competition's words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from inference.files import sha256_of
from inference.images import PLAIN_ID
from inference.tables import Reading, id_mismatch, lines_of, read_csv_file
from train.archives.diagnoses import LABELS, label_of
from utils import InputError

YEARS = tuple(LABELS)
PAD = "pad-ufes-20"
#: The ground truth files of each year, as their publishers name them. Of the two of 2020 only the first that exists is read.
GROUND_TRUTH = {
    "2016": tuple(f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv" for part in ("Training", "Test")),
    "2017": tuple(f"ISIC-2017_{part}_Part3_GroundTruth.csv" for part in ("Training", "Validation", "Test_v2")),
    "2018": tuple(f"ISIC2018_Task3_{part}_GroundTruth.csv" for part in ("Training", "Validation", "Test")),
    "2019": tuple(f"ISIC_2019_{part}_GroundTruth.csv" for part in ("Training", "Test")),
    "2020": ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv"),
    PAD: ("metadata.csv",),
}
#: Columns of the image's name and its diagnosis in those files; None where every diagnosis has a column of its own.
TRUTH_COLUMNS: dict[str, tuple[str | int, str | int | None]] = {
    "2016": (0, 1),  # no header
    "2017": ("image_id", None),
    "2018": ("image", None),
    "2019": ("image", None),
    "2020": ("image_name", "diagnosis"),
    PAD: ("img_id", "diagnostic"),
}
DUPLICATES = "ISIC_2020_Training_Duplicates.csv"
HAM_METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata")
HAM_LESIONS = "ISIC2018_Task3_Training_LesionGroupings.csv"
#: SLICE-3D, the whole and its permissive part: the first words of the names of their files.
SLICE3D, RELEASES = "2024", ("ISIC_2024_Training", "ISIC_2024_Permissive_Training")
#: Every file name that the readers look for.
FILE_NAMES = (
    *(name for names in GROUND_TRUTH.values() for name in names),
    *(f"ISIC-2017_{part}_Data_metadata.csv" for part in ("Training", "Validation", "Test_v2")),
    *("ISIC_2019_Training_Metadata.csv", "ISIC_2019_Test_Metadata.csv"),
    *(DUPLICATES, *HAM_METADATA, HAM_LESIONS),
    *(f"{release}_{part}.csv" for release in RELEASES for part in ("GroundTruth", "Supplement")),
)

#: Columns of the table that describe a person or a lesion; "" or NaN is unknown.
FIELDS = ("patient_id", "lesion_id", "age_approx", "sex", "anatom_site_general", "site_word", "image_type")
COLUMNS = ("image_id", "year", "file", "line", "word", "diagnosis", "target", "class", *FIELDS)

_TORSO_FRONT, _TORSO_BACK, _LEG, _ARM, _HEAD = (
    *("anterior torso", "posterior torso", "lower extremity"),
    *("upper extremity", "head/neck"),
)
#: The competition's word for an archive's word (in small letters). Words that are not here have no counterpart: torso and
#: trunk are neither front nor back, and palms/soles may be of hand or foot.
SITES = {
    **{word: word for word in (_TORSO_FRONT, _TORSO_BACK, _LEG, _ARM, _HEAD)},
    **dict.fromkeys(("chest", "abdomen"), _TORSO_FRONT),
    "back": _TORSO_BACK,
    **dict.fromkeys(("face", "nose", "lip", "ear", "scalp", "neck"), _HEAD),
    **dict.fromkeys(("arm", "forearm", "hand"), _ARM),
    **dict.fromkeys(("thigh", "foot"), _LEG),
}
SEXES = ("male", "female")
_UNKNOWN_WORDS = ("", "unknown", "nan", "na", "n/a", "none")
#: Columns of the ground truth of 2019's test that hold no diagnosis.
_WEIGHTS = ("score_weight", "validation_weight")


def image_id_of(name: str) -> str:
    """The id of an image: its file's name without extension, and without 2019's mark of a smaller copy."""
    stem = name[:-4] if name[-4:].lower() in (".jpg", ".png") else name[:-5] if name.lower().endswith(".jpeg") else name
    return stem.removesuffix("_downsampled")


def one_file(found: Mapping[str, Sequence[Path]], name: str) -> Path | None:
    """The file of an official name, None if there is none; several with the same bytes count as one.

    Args:
        found: files by their official name.
        name: the official name.

    Raises:
        InputError: there are several that differ.
    """
    paths = sorted(found.get(name, ()))
    if len({sha256_of(path) for path in paths}) > 1:
        raise InputError(f"{paths[0]} and {paths[1]} have one name and differ; keep the official one.")
    return paths[0] if paths else None


def find_ground_truth(found: Mapping[str, Sequence[Path]], years: Sequence[str] | None) -> dict[str, list[Path]]:
    """The ground truth files of each year, in the order of ``YEARS``.

    Args:
        found: files by their official name.
        years: the years asked for; None for all that are there.

    Raises:
        InputError: a year asked for is not there, or no year at all; a file is there twice and differs.
    """
    # metadata.csv is a common name: only one with the columns of PAD-UFES-20 is its ground truth.
    named = list(found.get(GROUND_TRUTH[PAD][0], ()))
    own = [path for path in named if {"img_id", "diagnostic"} & set(_header(path))]
    found = {**found, GROUND_TRUTH[PAD][0]: own or (named if years and PAD in years else [])}
    truth: dict[str, list[Path]] = {}
    for year in YEARS:
        if years is not None and year not in years:
            continue
        paths = [path for name in GROUND_TRUTH[year] if (path := one_file(found, name))]
        if paths:
            truth[year] = paths[:1] if year == "2020" else paths
        elif years is not None:
            raise InputError(f"--years asks for {year}, but {GROUND_TRUTH[year][-1]} is nowhere below --root; fetch it.")
    if not truth:
        raise InputError(
            "no ground truth file is below --root, such as ISIC2018_Task3_Training_GroundTruth.csv; fetch one, or give "
            f"--years {SLICE3D} for the release of SLICE-3D."
        )
    return truth


def read_year(year: str, truth: Sequence[Path], found: Mapping[str, Sequence[Path]]) -> pd.DataFrame:
    """All rows of the ground truth files of a year.

    Args:
        year: one of ``YEARS``.
        truth: the year's ground truth files.
        found: files by their official name, among them the year's metadata.

    Returns:
        One row per line with the columns ``COLUMNS``: ``line`` int64, ``target`` and ``age_approx`` float64 (NaN where
        unknown), all others str ("" where unknown). ``word`` and ``site_word`` are the archive's diagnosis and site.

    Raises:
        InputError: a column is missing; a word is unknown; a number cannot be read; an id is empty, or labelled in two ways.
    """
    parts = []
    for path in truth:
        rows = _read_truth(year, path)
        fields = _read_fields(year, path, found)
        if fields is not None:
            if not rows["image_id"].isin(fields["image_id"]).any():
                differ = id_mismatch(str(path), rows["image_id"], "its metadata file", fields["image_id"])
                raise InputError(f"{differ}; fetch both files again.")
            rows = rows.merge(fields, on="image_id", how="left")
        labels = [label_of(year, word, path, line) for word, line in zip(rows["word"], rows["line"], strict=True)]
        rows = rows.assign(
            year=year,
            file=path.name,
            diagnosis=[label.diagnosis for label in labels],
            target=np.array([np.nan if label.target is None else label.target for label in labels], dtype="float64"),
            image_type="clinical" if year == PAD else "dermoscopic",
            **{"class": [label.group for label in labels]},
        ).reindex(columns=list(COLUMNS))
        text = [name for name in COLUMNS if name not in ("line", "target", "age_approx")]
        rows[text] = rows[text].fillna("").astype(object)
        rows["age_approx"] = rows["age_approx"].astype("float64")
        _refuse_two_labels(rows, path)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def read_duplicates(found: Mapping[str, Sequence[Path]]) -> list[tuple[str, str]]:
    """The published pairs of images of 2020 that are one photograph; empty without their file.

    Raises:
        InputError: the file lacks a column.
    """
    path = one_file(found, DUPLICATES)
    if path is None:
        return []
    table = _read(path, ("image_name_1", "image_name_2"))
    pairs = zip(table["image_name_1"], table["image_name_2"], strict=True)
    return [(image_id_of(first), image_id_of(second)) for first, second in pairs]


def fingerprint(paths: Sequence[Path]) -> str:
    """SHA-256 of the contents of files, in hexadecimal, whatever their order and their folders."""
    return hashlib.sha256("\n".join(sorted(f"{path.name} {sha256_of(path)}" for path in paths)).encode()).hexdigest()


# Ground truth


def _read_truth(year: str, path: Path) -> pd.DataFrame:
    """``image_id``, ``line`` and ``word``, the diagnosis, of every row of a ground truth file."""
    image, column = TRUTH_COLUMNS[year]
    table = _read(path, [name for name in (image, column) if isinstance(name, str)], header=year != "2016")
    if year == "2016" and table.shape[1] != 3:  # with the lines
        raise InputError(f"{path} has {table.shape[1] - 1} columns, not the 2 of image and diagnosis; fetch it again.")
    if column is None:
        needed = [word for word in LABELS[year] if word not in ("UNK", "neither")]
        _require(path, table, needed)
        others = [name for name in table.columns if name not in (image, "line", *_WEIGHTS)]
        words = needed if year == "2017" else others
        for word in words:
            label_of(year, word, path, 1)
        return _with_ids(path, table, image).assign(word=_marked(path, table, words, "neither" in LABELS[year]))
    rows = _with_ids(path, table, image).assign(word=table[column])
    if year == "2020":
        _require(path, table, ["target"])
        for word, target, line in zip(rows["word"], _numbers(path, table, "target"), rows["line"], strict=True):
            if target != label_of(year, word, path, line).target:
                raise InputError(f"{path} line {line}: target {target:g} contradicts diagnosis {word!r}; fetch it again.")
    return rows


def _marked(path: Path, table: pd.DataFrame, words: list[str], may_be_neither: bool) -> list[str]:
    """The name of the one column of each row that is 1, "neither" where none is."""
    marks = np.stack([_numbers(path, table, word) for word in words], axis=1)
    count = marks.sum(axis=1)
    wrong = ~np.isin(marks, (0.0, 1.0)).all(axis=1) | (count > 1) | ((count == 0) & (not may_be_neither))
    if wrong.any():
        row = int(np.argmax(wrong))
        cells = ", ".join(f"{word} {mark:g}" for word, mark in zip(words, marks[row], strict=True))
        raise InputError(f"{path} line {table['line'].iloc[row]}: {cells} is not one diagnosis; fetch the file again.")
    return np.where(count == 0, "neither", np.array(words)[np.argmax(marks, axis=1)]).tolist()


def _with_ids(path: Path, table: pd.DataFrame, column: str | int) -> pd.DataFrame:
    """``image_id`` and ``line`` of every row. Raises InputError for an id that cannot be a file name."""
    ids = [image_id_of(name) for name in table[column]]
    for image_id, line in zip(ids, table["line"], strict=True):
        if not PLAIN_ID.fullmatch(image_id):
            raise InputError(f"{path} line {line}: {image_id!r} is no image id; correct the line.")
    return pd.DataFrame({"image_id": ids, "line": table["line"]})


def _refuse_two_labels(rows: pd.DataFrame, path: Path) -> None:
    """Raises for the first image that one file labels in two ways."""
    first = rows.groupby("image_id")[["word", "line"]].transform("first")
    wrong = rows["word"] != first["word"]
    if wrong.any():
        row = int(np.argmax(wrong))
        image_id, word, line = rows.loc[rows.index[row], ["image_id", "word", "line"]]
        other, above = first.iloc[row]
        raise InputError(f"{path} line {line}: {image_id} is {word!r}, but {other!r} in line {above}; keep the right one.")


# Metadata


def _read_fields(year: str, truth: Path, found: Mapping[str, Sequence[Path]]) -> pd.DataFrame | None:
    """What is known of the persons and lesions of one ground truth file, by ``image_id``; None if there is no such file.

    Of an image that occurs twice, the first line counts.
    """
    if year == "2017":
        path = one_file(found, truth.name.replace("_Part3_GroundTruth", "_Data_metadata"))
        return path and _fields(path, "image_id", age="age_approximate", sex="sex")
    if year == "2018" and "_Training_" in truth.name:
        path = next((path for name in HAM_METADATA if (path := one_file(found, name))), None)
        if path:
            return _fields(path, "image_id", lesion="lesion_id", age="age", sex="sex", site="localization")
        path = one_file(found, HAM_LESIONS)
        return path and _fields(path, "image", lesion="lesion_id")
    if year == "2019":
        path = one_file(found, truth.name.replace("GroundTruth", "Metadata"))
        lesion = {"lesion": "lesion_id"} if "_Training_" in truth.name else {}  # the test's metadata has none
        return path and _fields(path, "image", age="age_approx", sex="sex", site="anatom_site_general", **lesion)
    if year == "2020":
        lesion = {"lesion": "lesion_id"} if "lesion_id" in _header(truth) else {}  # version 2 has it
        site = "anatom_site_general_challenge"
        return _fields(truth, "image_name", patient="patient_id", age="age_approx", sex="sex", site=site, **lesion)
    if year == PAD:
        rows = _fields(truth, "img_id", patient="patient_id", lesion="lesion_id", age="age", sex="gender", site="region")
        # Its lesion numbers start again for some patients: 617 of its 2,298 rows share one with another patient.
        both = (rows["patient_id"] != "") & (rows["lesion_id"] != "")
        return rows.assign(lesion_id=(rows["patient_id"] + "_" + rows["lesion_id"]).where(both, ""))
    return None


def _fields(path: Path, image: str, **columns: str) -> pd.DataFrame:
    """The fields of a metadata file, by ``image_id``.

    Args:
        path: the file.
        image: its column with the images' names.
        columns: its columns with patient, lesion, age, sex and site, as far as it has them.
    """
    table = _read(path, (image, *columns.values()))
    word = {kind: _known(table[column]) for kind, column in columns.items()}
    unknown = pd.Series("", index=table.index)
    sex, site = (word.get(kind, unknown).str.lower() for kind in ("sex", "site"))
    rows = _with_ids(path, table, image).drop(columns="line")
    rows = rows.assign(
        patient_id=word.get("patient", unknown),
        lesion_id=word.get("lesion", unknown),
        age_approx=_numbers(path, table, columns["age"]) if "age" in columns else np.nan,
        sex=sex.where(sex.isin(SEXES), ""),
        anatom_site_general=site.map(SITES).fillna(""),
        site_word=site,
    )
    return rows.drop_duplicates("image_id")


def _known(column: pd.Series) -> pd.Series:
    """The cells of a column, "" where the value is unknown."""
    return column.where(~column.str.lower().isin(_UNKNOWN_WORDS), "")


def _numbers(path: Path, table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as float64, NaN where unknown or not finite. Raises InputError for any other word."""
    known = _known(table[name])
    numbers = pd.to_numeric(known, errors="coerce").to_numpy("float64")
    wrong = np.isnan(numbers) & (known != "").to_numpy()
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{path} line {table['line'].iloc[row]}: {name} {known.iloc[row]!r} is no number; correct or empty it."
        )
    return np.where(np.isfinite(numbers), numbers, np.nan)


# Files


def _header(path: Path) -> list[str]:
    """The column names of a CSV file."""
    return list(_read(path, ()).columns)


def _read(path: Path, columns: Sequence[str], header: bool = True) -> pd.DataFrame:
    """A CSV file as text without outer spaces, "" where a cell is empty, with the column ``line``; without blank lines."""
    table = read_csv_file(path, Reading(str, header=header, keep_default_na=False))
    _require(path, table, columns)
    table = table.fillna("").apply(lambda column: column.str.strip())
    return table.assign(line=lines_of(path, header))


def _require(path: Path, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raises InputError for the first missing column."""
    for name in columns:
        if name not in table:
            there = ", ".join(map(str, table.columns[:8]))
            raise InputError(f"{path} has no column {name!r} (it has {there}); fetch the official file.")
