"""The official release of SLICE-3D (ISIC 2024) -> a competition folder; no Kaggle account is needed.

There are two, the whole and its permissive part (``RELEASES``). Each has a zip of JPEGs with metadata.csv beside them,
unpacked or not, a ground truth and a supplement. The columns become the competition's, and cells keep their text. Crops
keep their bytes and are copied one after the other.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.files import write_csv
from inference.images import PLAIN_ID, checked
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, TEST_COLUMNS, TRAIN_COLUMNS
from inference.tables import Reading, csv_chunks, id_mismatch, lines_of, read_csv_file
from train.archives.diagnoses import diagnosis_of
from train.archives.images import Survey
from train.archives.report import count_words
from train.archives.tables import FILE_NAMES, RELEASES, SLICE3D, image_id_of, one_file
from train.image_files import write_image_file
from utils import InputError, log

METADATA, LABEL, LICENCE = "metadata.csv", "malignant", "copyright_license"
#: Stems of the publisher's zips; browsers add to them.
ZIP = re.compile(rf"({'|'.join(RELEASES)})_(Input|GroundTruth|Supplement)\b.*", re.IGNORECASE)
#: The marker at the end of a whole JPEG, and how many last bytes are searched for it: some programs write on behind it.
JPEG_END, TAIL = b"\xff\xd9", 1024
#: What zipfile raises for a member that is damaged, encrypted, or packed in a way that Python does not know.
BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Release:
    """The files of a release.

    ``name`` is one of ``RELEASES``, ``labels`` are int64 by isic_id, ``metadata`` is None where there is none. Crops are
    loose (``images``, files by isic_id) or in a zip (``packed``, names by isic_id); some may have no label.
    """

    name: str
    truth: Path
    labels: pd.Series
    supplement: Path
    metadata: Path | None
    images: dict[str, list[Path]]
    packed: dict[Path, dict[str, str]]

    @property
    def survey(self) -> Survey:
        """The files that decide the result, as the other years have them."""
        tables = [path for path in (self.truth, self.supplement, self.metadata) if path]
        images = {isic_id: paths for isic_id, paths in self.images.items() if isic_id in self.labels.index}
        return Survey({path.name: [path] for path in tables}, images, list(self.packed))

    @property
    def crop_ids(self) -> set[str]:
        """The ids of all crops, with and without a label, whole or not."""
        return {*self.images, *(isic_id for names in self.packed.values() for isic_id in names)}

    def crops(self) -> Iterator[tuple[str, bytes]]:
        """The isic_id and the bytes of every crop, of a loose file before that of a zip; none where no copy is whole.

        Raises:
            InputError: a zip is damaged.
        """
        with contextlib.ExitStack() as stack:
            zips = [(stack.enter_context(zipfile.ZipFile(path)), names) for path, names in self.packed.items()]
            for isic_id in self.labels.index:
                for path in self.images.get(isic_id, ()):
                    with contextlib.suppress(OSError):
                        content = path.read_bytes()
                        if is_whole(content):
                            break
                else:
                    found = (_member(file, names[isic_id]) for file, names in zips if isic_id in names)
                    content = next(filter(is_whole, found), b"")
                if content:
                    yield isic_id, content


def is_whole(jpeg: bytes) -> bool:
    """Whether a JPEG has its beginning and its end: a broken unpacking leaves files without it."""
    return bool(checked(jpeg)) and JPEG_END in jpeg[-TAIL:]


# Finding


def find_release(found: Survey, work: Path) -> Release:
    """The release in the files ``found``: the whole one, where both are there.

    Args:
        found: the files below --root.
        work: a folder for the tables that are in a zip.

    Raises:
        InputError: a file is missing, wrong or cut off, or is there twice and differs; no crop has a label.
    """
    tables = {name: list(paths) for name, paths in found.tables.items()}
    packed: dict[Path, dict[str, str]] = {}
    for number, path in enumerate(path for path in found.zips if ZIP.fullmatch(path.stem)):
        packed[path] = _open_zip(path, tables, work / str(number) / path.stem)
    names = [name for name in RELEASES if f"{name}_GroundTruth.csv" in tables]
    if not names:
        either = " nor ".join(f"{name}_GroundTruth.csv" for name in RELEASES)
        raise InputError(f"--years asks for {SLICE3D}, but neither {either} is below --root; fetch one.")
    if len(names) > 1:
        log(f"{SLICE3D}: both releases are there; {names[0]}, which holds the other, is read")
    name = names[0]
    # metadata.csv is a common name: its columns decide, then the folder.
    named = [path for path in tables.get(METADATA, ()) if ID in next(csv_chunks(path, Reading(str), 1))]
    beside = [path for path in named if path.parent.name.lower().startswith(f"{name}_Input".lower())]
    tables[METADATA] = beside or named
    truth, supplement = (one_file(tables, f"{name}_{part}.csv") for part in ("GroundTruth", "Supplement"))
    if truth is None or supplement is None:  # the ground truth is there, or nothing would have this name
        raise InputError(f"{name}_Supplement.csv, which has the hospitals, is nowhere below --root; fetch it.")
    labels = read_truth(truth)
    release = Release(name, truth, labels, supplement, one_file(tables, METADATA), found.images, packed)
    if not labels.index.isin(release.crop_ids).any():
        differ = id_mismatch(str(truth), labels.index, "the crops below --root", release.crop_ids)
        raise InputError(f"{differ}; fetch {name}_Input.zip.")
    return release


def _open_zip(path: Path, tables: dict[str, list[Path]], work: Path) -> dict[str, str]:
    """The crops of a zip, name by isic_id. Its tables are unpacked into ``work`` and added to ``tables``."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no whole zip, so probably half-downloaded; fetch it again.")
    official = {name.lower(): name for name in FILE_NAMES}
    crops: dict[str, str] = {}
    with zipfile.ZipFile(path) as file:
        for member in file.namelist():
            name = member.rpartition("/")[2]
            if name.lower().endswith((".jpg", ".jpeg")) and not name.startswith("."):
                crops.setdefault(image_id_of(name), member)
            elif name.lower() in official:
                table = work / official[name.lower()]
                table.parent.mkdir(parents=True, exist_ok=True)
                with _refusing_damage(file, member), file.open(member) as source, table.open("wb") as target:
                    shutil.copyfileobj(source, target)
                tables.setdefault(table.name, []).append(table)
    return crops


def _member(file: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a crop in a zip."""
    with _refusing_damage(file, name):
        return file.read(name)


@contextlib.contextmanager
def _refusing_damage(file: zipfile.ZipFile, name: str) -> Iterator[None]:
    """Inside, a damaged zip is an InputError."""
    try:
        yield
    except BAD_ZIP as error:
        raise InputError(f"{file.filename} cannot be unpacked ({name}: {error}); fetch it again.") from error


# Reading


def read_truth(path: Path) -> pd.Series:
    """The labels of a ground truth, int64 by isic_id.

    Raises:
        InputError: a column is missing; an id is empty or there twice; a label is not 0 or 1.
    """
    table = _read(path, (LABEL,))
    labels = pd.to_numeric(table[LABEL], errors="coerce")
    _refuse_rows(path, table[LABEL], ~labels.isin([0, 1]), "is not 0.0 (benign) or 1.0 (malignant)")
    return labels.astype("int64").rename(TARGET)


def read_columns(release: Release) -> tuple[pd.DataFrame, dict[str, int]]:
    """All columns but isic_id and target, as text and in the competition's order, NaN where unknown.

    Returns:
        The table, indexed by isic_id in the order of the labels, and how many ids the metadata and the supplement lack.

    Raises:
        InputError: a column is missing; an id is empty, or there twice; the supplement has none of the ids.
    """
    isic_ids = release.labels.index
    columns = pd.DataFrame(
        index=isic_ids, columns=[name for name in TRAIN_COLUMNS if name not in (ID, TARGET)], dtype=object
    )
    lacking = {"metadata": len(isic_ids)}
    if release.metadata:
        metadata = _read(release.metadata, (PATIENT,))
        lacking["metadata"] = int((~isic_ids.isin(metadata.index)).sum())
        for name in metadata.columns.intersection(TEST_COLUMNS, sort=False):
            columns[name] = metadata[name].reindex(isic_ids)
        del metadata
    supplement = _read(release.supplement, (HOSPITAL, LICENCE))
    lacking["supplement"] = int((~isic_ids.isin(supplement.index)).sum())
    if lacking["supplement"] == len(isic_ids):
        differ = id_mismatch(str(release.truth), isic_ids, str(release.supplement), supplement.index)
        raise InputError(f"{differ}; fetch both files again.")
    for name in supplement.columns.difference([LABEL, TARGET]):  # the metadata has hospital and licence, too
        column = supplement[name].reindex(isic_ids)
        columns[name] = np.where(column.notna(), column, columns[name])
    return columns, lacking


def _read(path: Path, required: Sequence[str]) -> pd.DataFrame:
    """The columns of a table that the competition has, as text, indexed by isic_id; NaN where a cell is empty."""
    table = read_csv_file(path, Reading(str, columns=frozenset((*TRAIN_COLUMNS, LABEL))))
    for name in (ID, *required):
        if name not in table:
            raise InputError(f"{path} has no column {name!r}; fetch the official file.")
    isic_ids = table[ID]
    _refuse_rows(path, isic_ids, ~isic_ids.fillna("").map(lambda name: bool(PLAIN_ID.fullmatch(name))), "is no isic_id")
    _refuse_rows(path, isic_ids, isic_ids.duplicated(), "occurs twice")
    return table.set_index(ID)


def _refuse_rows(path: Path, column: pd.Series, wrong: pd.Series, complaint: str) -> None:
    """Raises InputError for the first row where ``wrong`` is true."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{path} line {lines_of(path)[row]}: {column.iloc[row]!r} in column {column.name!r} {complaint}; "
            "correct the line, or fetch the official file again."
        )


# Writing


def write_release(release: Release, table: Path, images: Path) -> dict[str, Any]:
    """Writes the competition folder's table and its HDF5 file.

    A lesion without a patient in the metadata is a patient of its own. A lesion without a crop stays if the metadata has
    its row.

    Args:
        release: the files.
        table: the CSV file to write.
        images: the HDF5 file to write.

    Returns:
        The report.

    Raises:
        InputError: a file is wrong or damaged; the disk is full.
    """
    columns, lacking = read_columns(release)
    isic_ids, there = release.labels.index, release.crop_ids
    written: set[str] = set()

    def noted() -> Iterator[tuple[str, bytes]]:
        for isic_id, content in release.crops():
            written.add(isic_id)
            yield isic_id, content

    write_image_file(images, noted(), len(there.intersection(isic_ids)))
    known, has_crop = columns[PATIENT].notna(), isic_ids.isin(written)
    columns[PATIENT] = np.where(known, columns[PATIENT], isic_ids)
    columns["diagnosis"] = columns["iddx_3"].map(diagnosis_of, na_action="ignore")
    columns.insert(0, TARGET, release.labels)
    kept = columns[known | has_crop]
    write_csv(table, kept.reset_index(names=ID))
    return {
        "release": release.name,
        "rows": len(columns),
        "kept": {
            "lesions": len(kept),
            "malignant": int(kept[TARGET].sum()),
            "patients": kept[PATIENT].nunique(),
            "lesions_of_known_patients": int(known.sum()),
            "with_crop": len(written),
        },
        "left_out": len(columns) - len(kept),
        "without_metadata": lacking["metadata"],
        "without_supplement": lacking["supplement"],
        "broken_crops": sorted(there.intersection(isic_ids) - written),
        "crops_without_label": len(there.difference(isic_ids)),
        "hospitals": count_words(kept[HOSPITAL]),
        "licences": count_words(kept[LICENCE]),
    }


def format_release(report: Mapping[str, Any]) -> Iterator[str]:
    """The report in lines."""
    kept = report["kept"]
    yield f"{report['release']}: {report['rows']:,} lesions in the ground truth, {kept['with_crop']:,} with a crop"
    for name in ("hospitals", "licences"):
        yield f"{name}: " + "; ".join(f"{word} {count:,}" for word, count in report[name].items())
    for name, consequence in (
        ("without_metadata", "a patient of their own each, columns empty"),
        ("without_supplement", "hospital and diagnosis empty, unless the metadata has them"),
        ("left_out", "neither a crop nor a row in the metadata"),
        ("crops_without_label", "not in the ground truth, left out"),
    ):
        if report[name]:
            yield f"{name.replace('_', ' ')}: {report[name]:,} ({consequence})"
    if report["broken_crops"]:
        yield f"broken crops: {len(report['broken_crops']):,}, the first {', '.join(report['broken_crops'][:3])}"
