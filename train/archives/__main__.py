"""ISIC archives (2016 to 2020) and PAD-UFES-20, or the official release of SLICE-3D (2024) -> one competition folder.

    python -m train.archives --root data/isic-archives --out data/archives

Reads the official files wherever they are below --root; writes train-metadata.csv, train-image.hdf5 and
archives-report.json. An image that several years have is one row, copies are left out, and patient_id is the same for all
images that may be of one person, so that train.folds keeps them together. The columns:

    isic_id              the image's file name without extension
    target               1 malignant, 0 benign
    patient_id           the person: a patient's id where one is known, else a lesion's, else the image's
    lesion_id            the lesion, where it is known
    age_approx           years
    sex                  male or female
    anatom_site_general  in the competition's words
    diagnosis            in plain words; train.archives.diagnoses.class_of gives its class of five
    source               the archive of the label, "ISIC 2016" to "ISIC 2020" or "PAD-UFES-20"
    image_type           dermoscopic, or clinical (PAD-UFES-20: photographs by telephone)

--years 2024 stands alone: the competition's own crops, with all its columns and, behind them, diagnosis.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from inference.files import sha256_of_images, write_csv, write_json
from inference.images import find_images
from inference.options import Parser, count, existing_folder, output_folder, processes
from inference.schema import ID, PATIENT, TARGET
from inference.tables import id_mismatch
from scale.artifact_folder import staged_folder
from scale.parallel import workers
from terminal import run_command
from train.archives.dedup import merge_years, sort_out
from train.archives.images import (
    SIZE,
    Competition,
    Survey,
    check_zips,
    convert_images,
    hash_files,
    pack,
    read_competition,
    survey,
    thumbnail,
    work_file,
)
from train.archives.report import REPORT, count_words, format_counts, format_report, make_report
from train.archives.slice3d import find_release, format_release, write_release
from train.archives.tables import PAD, SLICE3D, YEARS, find_ground_truth, fingerprint, read_duplicates, read_year
from utils import InputError, log, log_summary

METADATA, IMAGES, WORK = "train-metadata.csv", "train-image.hdf5", ".archives"
#: The target of lesions whose archives leave it open.
UNKNOWNS = {"leave-out": float("nan"), "malignant": 1.0, "benign": 0.0}
OUTPUT_COLUMNS = (
    *(ID, TARGET, PATIENT, "lesion_id", "age_approx", "sex", "anatom_site_general"),
    *("diagnosis", "source", "image_type"),
)


@dataclass(frozen=True)
class ArchivesConfig:
    """What becomes a competition folder.

    Args:
        root: folder of the unpacked archives.
        years: of ``YEARS``, None for all that are there; or ``SLICE3D`` alone, without the options that follow.
        unknown: a key of ``UNKNOWNS``.
        size: short side of an image in pixels.
        competition: folder of a competition whose lesions are left out.
    """

    root: Path
    years: Sequence[str] | None = None
    unknown: str = "leave-out"
    size: int = SIZE
    competition: Path | None = None


def main(arguments: list[str] | None = None) -> int:
    """Writes the folder; returns the exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--root", type=existing_folder, required=True, metavar="DIR", help="folder with the unpacked archives"
    )
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="competition folder to write")
    parser.add_argument(
        "--years",
        nargs="+",
        choices=(*YEARS, SLICE3D),
        metavar="YEAR",
        help=f"of {', '.join(YEARS)} (default: all there); or {SLICE3D}, the official release of SLICE-3D, alone",
    )
    parser.add_argument(
        "--unknown",
        choices=UNKNOWNS,
        default="leave-out",
        help="lesions whose archives leave open whether they are malignant, as AKIEC of 2018 (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=count(16, 4096), default=SIZE, help="short side of an image in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--competition", type=existing_folder, metavar="DIR", help="leave out what also occurs in this competition folder"
    )
    parser.add_argument("--jobs", type=processes, default=os.cpu_count() or 1, help="processes that convert images")
    options = parser.parse_args(arguments)
    config = ArchivesConfig(options.root, options.years, options.unknown, options.size, options.competition)
    with workers(options.jobs):
        log_summary(write_archives(config, options.out))
    return 0


def write_archives(config: ArchivesConfig, out: Path) -> str:
    """Writes the folder, logs its report, and returns a line that sums it up.

    The same inputs give the same bytes, whichever workers convert the images and however often the run was interrupted.

    Raises:
        InputError: an input is bad, ``out`` holds something else, or no image is left.
    """
    start = time.perf_counter()
    work = out / WORK
    with staged_folder(out) as staging:
        summary = _write_staged(config, out, staging)
    shutil.rmtree(work, ignore_errors=True)
    return f"{summary}; {time.perf_counter() - start:.1f} s"


def _write_staged(config: ArchivesConfig, out: Path, staging: Path) -> str:
    """Does the work of ``write_archives``, into ``staging``; what an interrupted run continues with is in ``out``."""
    root, competition, work = config.root, config.competition, out / WORK
    if SLICE3D in (config.years or ()):
        return _write_slice3d(config, out, staging)
    found = survey(root, [out] if competition is None else [out, competition])
    check_zips(found, config.years or YEARS)
    truth = find_ground_truth(found.tables, config.years)
    rows = pd.concat([read_year(year, paths, found.tables) for year, paths in truth.items()], ignore_index=True)
    hashes = hash_files(sorted(path for paths in found.images.values() for path in paths))
    request = describe_request(config, list(truth), found, hashes)
    if is_finished(out, request):
        return f"{out}: made from the same inputs before; nothing to do"
    write_json(work / "request.json", request)

    merged = merge_years(rows)
    merged["target"] = merged["target"].fillna(UNKNOWNS[config.unknown])
    images = {image_id: found.images[image_id] for image_id in merged["image_id"] if image_id in found.images}
    for year in truth:
        if not any(image_id in images for image_id in rows.loc[rows["year"] == year, "image_id"]):
            log(f"{year}: the ground truth is there, but none of its images; its rows are left out")
    if not images:
        differ = id_mismatch("the ground truth files", merged["image_id"], f"the images below {root}", found.images)
        raise InputError(f"{differ}; unpack the images there.")
    hashed = convert_images(images, work / "images", config.size, hashes)
    result = sort_out(
        merged,
        images,
        hashed,
        read_competition(competition, work) if competition else Competition(),
        read_duplicates(found.tables),
        lambda image_id: thumbnail(work_file(work / "images", image_id).read_bytes()),
    )
    kept = result.kept
    if kept.empty:
        reasons = format_counts(count_words(result.rows["reason"]))
        raise InputError(f"no row of {root} is left ({reasons}); add images or ground truth.")
    report = {"request": request, **make_report(rows, result, found, hashed, root)}
    pack(staging / IMAGES, kept["image_id"], work / "images")
    write_csv(staging / METADATA, output_table(kept), float_format=None)
    for line in format_report(report):
        log(line)
    write_json(staging / REPORT, report)
    return (
        f"{out}: {len(kept)} lesions of {kept['person'].nunique()} patients, {int(kept['target'].sum())} malignant; "
        f"{len(rows) - len(kept)} of {len(rows)} rows left out"
    )


def _write_slice3d(config: ArchivesConfig, out: Path, staging: Path) -> str:
    """As ``_write_staged``, of the official release of 2024."""
    years = config.years or ()
    if set(years) != {SLICE3D} or replace(config, years=None) != ArchivesConfig(config.root):
        raise InputError(
            f"--years {' '.join(years)}: {SLICE3D} has the competition's crops, which stay as they are; give it "
            "alone, without --unknown, --size and --competition, and the other years another --out."
        )
    with TemporaryDirectory(prefix=".unpacked-", dir=staging) as unpacked:
        release = find_release(survey(config.root, [out]), Path(unpacked))
        found = release.survey
        hashes = hash_files(sorted([*found.zips, *(path for paths in found.images.values() for path in paths)]))
        request = describe_request(config, [SLICE3D], found, hashes)
        if is_finished(out, request):
            return f"{out}: made from the same inputs before; nothing to do"
        report = write_release(release, staging / METADATA, staging / IMAGES)
    for line in format_release(report):
        log(line)
    write_json(staging / REPORT, {"request": request, **report})
    kept = report["kept"]
    return (
        f"{out}: {kept['lesions']:,} lesions of {kept['patients']:,} patients, {kept['malignant']:,} malignant, "
        f"{kept['with_crop']:,} with a crop"
    )


def describe_request(config: ArchivesConfig, years: list[str], found: Survey, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """What decides the folder: the configuration, and fingerprints of the inputs; ``hashes`` are those of the images."""
    return {
        "root": str(config.root.resolve()),
        "years": years,
        "unknown": config.unknown,
        "size": config.size,
        "archives": _fingerprint_of_archives(config.root, found, hashes),
        "competition": config.competition and _fingerprint_of_competition(config.competition),
    }


def _fingerprint_of_archives(root: Path, found: Survey, hashes: Mapping[Path, str]) -> str:
    """Changes with every table that is read, and with the name and content of every image."""
    tables = fingerprint([path for paths in found.tables.values() for path in paths])
    listed = sorted(f"{path.relative_to(root).as_posix()} {sha256}" for path, sha256 in hashes.items())
    return hashlib.sha256("\n".join([tables, *listed]).encode()).hexdigest()


def _fingerprint_of_competition(competition: Path) -> str:
    """Changes with the competition's metadata, and with the path and content of its images."""
    metadata = [competition / f"{split}-metadata.csv" for split in ("train", "test")]
    images = [path for split in ("train", "test") if (path := find_images(competition, split))]
    parts = [fingerprint([path for path in metadata if path.is_file()])]
    return hashlib.sha256("\n".join([*parts, *(f"{path} {sha256_of_images(path)}" for path in images)]).encode()).hexdigest()


def is_finished(out: Path, request: dict[str, Any]) -> bool:
    """Whether ``out`` is complete for this request; False where the work begins or continues.

    An interrupted run continues with other archives, too: the record of each converted image names its files.

    Raises:
        InputError: ``out`` holds something else, or the result of another request.
    """
    others = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    finished = (out / REPORT).is_file()
    source = out / REPORT if finished else out / WORK / "request.json"
    if source.is_file():
        before = json.loads(source.read_text(encoding="utf-8"))
        before = before["request"] if finished else before
        changed = [name for name in (request if finished else ("size", "competition")) if before.get(name) != request[name]]
        if changed:
            raise InputError(f"{out} is of another run (different: {', '.join(changed)}); remove it or name another --out.")
        if finished and {METADATA, IMAGES} <= others:
            return True
        others -= {METADATA, IMAGES, REPORT}
    if others:
        raise InputError(f"{out} holds other files, such as {min(others)}; name a new or an empty folder for --out.")
    return False


def output_table(kept: pd.DataFrame) -> pd.DataFrame:
    """The rows as train-metadata.csv has them."""
    table = kept.drop(columns=["patient_id"]).rename(columns={"image_id": ID, "person": PATIENT})
    source = ["PAD-UFES-20" if year == PAD else f"ISIC {year}" for year in kept["year"]]
    return table.astype({TARGET: "int64"}).assign(source=source)[list(OUTPUT_COLUMNS)]


if __name__ == "__main__":
    run_command(main)
