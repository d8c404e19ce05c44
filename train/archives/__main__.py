"""Earlier ISIC archives (2016 to 2020) and PAD-UFES-20 -> one competition folder.

    python -m train.archives --root archives --out data/archives

Reads the official files wherever they lie below --root and writes train-metadata.csv, train-image.hdf5 and
archives-report.json. An image that several years have is one row, copies are left out, and patient_id is the same for all
images that may be one person's, so that train.folds keeps them together. Its columns:

    isic_id              the image's file name without extension
    target               1 malignant, 0 benign
    patient_id           the person: a patient's id where one is known, else a lesion's, else the image's
    lesion_id            the lesion, where it is known
    age_approx           years
    sex                  male or female
    anatom_site_general  in the competition's words
    diagnosis            in plain words; train.archive_diagnoses.class_of gives its class of five
    source               the archive that the label came from, "ISIC 2016" to "ISIC 2020" or "PAD-UFES-20"
    image_type           dermoscopic, or clinical (PAD-UFES-20: photographs by telephone)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from inference.files import write_json
from inference.images import find_images
from inference.schema import ID, PATIENT, TARGET
from train.archives.dedup import CONTRADICTORY, REPEATED, REPEATED_IN_YEAR, UNKNOWN, SortedOut, merge_years, sort_out
from train.archives.diagnoses import CLASSES
from train.archives.images import (
    SIZE,
    Hashed,
    Survey,
    check_zips,
    convert_all,
    pack,
    read_competition,
    survey,
    thumbnail,
    work_file,
)
from train.archives.tables import PAD, YEARS, find_ground_truth, fingerprint, read_duplicates, read_year
from train.synthetic.__main__ import write_table
from utils import InputError, log, run_command

METADATA, IMAGES, REPORT, WORK = "train-metadata.csv", "train-image.hdf5", "archives-report.json", ".archives"
#: What becomes of lesions of unknown target.
UNKNOWNS = {"leave-out": float("nan"), "malignant": 1.0, "benign": 0.0}
OUTPUT_COLUMNS = (
    *(ID, TARGET, PATIENT, "lesion_id", "age_approx", "sex", "anatom_site_general"),
    *("diagnosis", "source", "image_type"),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with the unpacked archives")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="competition folder to write")
    parser.add_argument(
        "--years", nargs="+", choices=YEARS, metavar="YEAR", help=f"of {', '.join(YEARS)} (default: all there)"
    )
    parser.add_argument(
        "--unknown",
        choices=UNKNOWNS,
        default="leave-out",
        help="lesions of which the archives do not tell whether they are malignant, as AKIEC of 2018 (default: %(default)s)",
    )
    parser.add_argument("--size", type=int, default=SIZE, help="short side of an image in pixels (default: %(default)s)")
    parser.add_argument(
        "--competition", type=Path, metavar="DIR", help="leave out what also occurs in this competition folder"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that convert images")
    log(write_archives(**vars(parser.parse_args(arguments))))
    return 0


def write_archives(
    root: Path,
    out: Path,
    years: Sequence[str] | None = None,
    unknown: str = "leave-out",
    size: int = SIZE,
    competition: Path | None = None,
    jobs: int = 1,
) -> str:
    """Writes the folder, prints what went into it, and returns a line that sums it up.

    The same inputs, whatever ``jobs`` and however often it was interrupted, give the same bytes.

    Raises:
        InputError: an argument is out of its range, an input is bad, ``out`` holds something else, or no image is left.
    """
    if size < 16 or jobs < 1:
        raise InputError(f"--size is {size} and --jobs is {jobs}; give at least 16 pixels and 1 process.")
    start = time.perf_counter()
    found = survey(root, [out] if competition is None else [out, competition])
    check_zips(found, years or YEARS)
    truth = find_ground_truth(found.tables, years)
    rows = pd.concat([read_year(year, paths, found.tables) for year, paths in truth.items()], ignore_index=True)
    request = {
        "root": str(root.resolve()),
        "years": list(truth),
        "unknown": unknown,
        "size": size,
        "archives": _fingerprint_of_archives(root, found),
        "competition": competition and _fingerprint_of_competition(competition),
    }
    work = out / WORK
    if _finished(out, request):
        shutil.rmtree(work, ignore_errors=True)
        return f"{out}: made from the same inputs before; nothing to do"
    write_json(work / "request.json", request)

    merged = merge_years(rows)
    merged["target"] = merged["target"].fillna(UNKNOWNS[unknown])
    images = {image_id: found.images[image_id] for image_id in merged["image_id"] if image_id in found.images}
    for year in truth:
        if not any(image_id in images for image_id in rows.loc[rows["year"] == year, "image_id"]):
            log(f"{year}: the ground truth is there, but none of its images; its rows are left out")
    if not images:
        raise InputError(f"{root} has none of the {len(merged)} images of its ground truth files; unpack them there.")
    hashed = convert_all(images, work / "images", size, jobs)
    result = sort_out(
        merged,
        images,
        hashed,
        read_competition(competition, work, jobs),
        read_duplicates(found.tables),
        lambda image_id: thumbnail(work_file(work / "images", image_id).read_bytes()),
    )
    kept = result.rows[result.rows["reason"] == ""]
    if kept.empty:
        raise InputError(
            f"no row of {root} is left ({_listed(_counted(result.rows['reason']))}); add images or ground truth."
        )
    report = {"request": request, **_report(rows, result, found, hashed, root)}
    pack(out / IMAGES, kept["image_id"], work / "images")
    write_table(out / METADATA, _output(kept))
    for line in _lines(report):
        log(line)
    write_json(out / REPORT, report)
    shutil.rmtree(work)
    return (
        f"{out}: {len(kept)} lesions of {kept['person'].nunique()} persons, {int(kept['target'].sum())} malignant; "
        f"{len(rows) - len(kept)} of {len(rows)} rows left out; {time.perf_counter() - start:.1f} s"
    )


# The folder that is written


def _fingerprint_of_archives(root: Path, found: Survey) -> str:
    """Changes with every table that is read, and with the name and size of every image."""
    tables = fingerprint([path for paths in found.tables.values() for path in paths])
    images = [path for paths in found.images.values() for path in paths]
    listed = sorted(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in images)
    return hashlib.sha256("\n".join([tables, *listed]).encode()).hexdigest()


def _fingerprint_of_competition(competition: Path) -> str:
    """Changes with the competition's metadata, and with the place and size of its images."""
    metadata = [competition / f"{split}-metadata.csv" for split in ("train", "test")]
    images = [path for split in ("train", "test") if (path := find_images(competition, split))]
    parts = [fingerprint([path for path in metadata if path.is_file()])]
    return hashlib.sha256("\n".join([*parts, *(f"{path} {path.stat().st_size}" for path in images)]).encode()).hexdigest()


def _finished(out: Path, request: dict[str, Any]) -> bool:
    """Whether ``out`` is complete for this request; False where the work is to begin or to go on.

    Work goes on with other archives, too: each image that has been converted knows the file that it came from.

    Raises:
        InputError: ``out`` is no folder, or holds something else, or what another request made.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"--out is {out}, which is a file; name a folder.")
    strangers = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    finished = (out / REPORT).is_file()
    told_in = out / REPORT if finished else out / WORK / "request.json"
    if told_in.is_file():
        told = json.loads(told_in.read_text(encoding="utf-8"))
        told = told["request"] if finished else told
        other = [name for name in (request if finished else ("size", "competition")) if told.get(name) != request[name]]
        if other:
            raise InputError(f"{out} is of another run (different: {', '.join(other)}); remove it or name another --out.")
        if finished and {METADATA, IMAGES} <= strangers:
            return True
        strangers -= {METADATA, IMAGES, REPORT}
    if strangers:
        raise InputError(f"{out} holds other files, such as {min(strangers)}; name a new or an empty folder for --out.")
    return False


def _output(kept: pd.DataFrame) -> pd.DataFrame:
    """The rows as train-metadata.csv has them."""
    return pd.DataFrame(
        {
            ID: kept["image_id"],
            TARGET: kept["target"].astype("int64"),
            PATIENT: kept["person"],
            "source": ["PAD-UFES-20" if year == PAD else f"ISIC {year}" for year in kept["year"]],
            **{name: kept[name] for name in OUTPUT_COLUMNS if name in kept and name not in (TARGET, PATIENT)},
        }
    )[list(OUTPUT_COLUMNS)]


# The report


def _report(rows: pd.DataFrame, result: SortedOut, found: Survey, hashed: Hashed, root: Path) -> dict[str, Any]:
    """Counts per year and class, and the names of what a reader may want to look at.

    A row of the ground truth is kept, or left out for one reason: rows = kept + all that is left out.
    """
    merged = result.rows.set_index("image_id")
    source = merged.loc[rows["image_id"]].reset_index()  # of every row, the row that speaks for its image
    reason = source["reason"].to_numpy(dtype=object)
    own = (source["year"] == rows["year"]) & (source["file"] == rows["file"]) & (source["line"] == rows["line"])
    again = rows["year"].to_numpy() == source["year"].to_numpy()
    for number in (~own & ~source["contradictory"]).to_numpy().nonzero()[0]:
        reason[number] = REPEATED_IN_YEAR if again[number] else REPEATED
    rows = rows.assign(reason=reason, image=rows["image_id"].isin(found.images))
    years: dict[str, Any] = {}
    for year in rows["year"].unique():
        here = rows[rows["year"] == year]
        without_word = here[(here["site_word"] != "") & (here["anatom_site_general"] == "")]
        years[year] = {
            "all": _counts(here),
            "classes": {
                name or UNKNOWN: _counts(here[here["class"] == name]) for name in CLASSES if (here["class"] == name).any()
            },
            "sites without a competition word": _counted(without_word["site_word"]),
        }
    kept = result.rows[result.rows["reason"] == ""]
    contradictory = rows[rows["reason"] == CONTRADICTORY].sort_values(["image_id", "year"])
    unlabelled = sorted(image_id for image_id in found.images if image_id not in merged.index)
    folders = pd.Series(
        [found.images[image_id][0].parent.relative_to(root).as_posix() for image_id in unlabelled], dtype=str
    )
    return {
        "kept": {
            "lesions": len(kept),
            "malignant": int(kept["target"].sum()),
            "persons": kept["person"].nunique(),
            "lesions of persons in the competition": int(kept["in_competition"].sum()),
        },
        "years": years,
        "images without a row in the ground truth of these years": _counted(folders),
        "corrupt": [path.relative_to(root).as_posix() for path in hashed.corrupt],
        "contradictory": [
            f"{row.image_id} of {row.year}: {'unknown' if row.target != row.target else f'{row.target:g}'}"
            for row in contradictory.itertuples()
        ],
        "exact duplicates": result.exact,
        "near duplicates": result.near,
    }


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    """The counts of some rows of one year."""
    kept = rows["reason"] == ""
    return {
        "rows": len(rows),
        "with image": int(rows["image"].sum()),
        "malignant": int((rows["target"] == 1).sum()),
        "benign": int((rows["target"] == 0).sum()),
        "unknown": int(rows["target"].isna().sum()),
        "kept": int(kept.sum()),
        "left out": _counted(rows.loc[~kept, "reason"]),
    }


def _counted(words: pd.Series) -> dict[str, int]:
    """How often each word occurs, the most frequent first, equally frequent ones in alphabetical order."""
    counts = words.value_counts()
    return {str(word): int(counts[word]) for word in sorted(counts.index, key=lambda word: (-counts[word], word))}


def _listed(counts: Mapping[str, int]) -> str:
    """Counts in one line."""
    return ", ".join(f"{word} {count:,}" for word, count in counts.items())


def _lines(report: Mapping[str, Any]) -> Iterable[str]:
    """The report for a reader: a table of years and classes, and what else there is to say."""
    numbers = ("rows", "with image", "malignant", "benign", "unknown", "kept")
    table = [["year", "class", *numbers, "left out"]]
    for year, told in report["years"].items():
        for name, counts in (("all", told["all"]), *told["classes"].items()):
            table.append([year, name, *(f"{counts[number]:,}" for number in numbers), _listed(counts["left out"])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    pads = [str.rjust if name in numbers else str.ljust for name in table[0]]
    table.insert(1, [pad(":" if pad is str.rjust else "-", width, "-") for pad, width in zip(pads, widths, strict=True)])
    for line in table:
        yield f"| {' | '.join(pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True))} |"
    for year, told in report["years"].items():
        if told["sites without a competition word"]:
            yield f"{year}: sites without a competition word: {_listed(told['sites without a competition word'])}"
    for name in ("corrupt", "contradictory"):
        if report[name]:
            more = f" and {len(report[name]) - 10} more, see {REPORT}" if len(report[name]) > 10 else ""
            yield f"{name}: {', '.join(report[name][:10])}{more}"
    unlabelled = report["images without a row in the ground truth of these years"]
    if unlabelled:
        yield f"images without a row in the ground truth of these years: {_listed(unlabelled)}"
    if "2018" in report["years"] and "2019" not in report["years"] and report["years"]["2018"]["all"]["unknown"]:
        yield "2018: AKIEC is benign or malignant; ISIC_2019_Training_GroundTruth.csv tells which: use 2019, or --unknown"
    shared = report["kept"]["lesions of persons in the competition"]
    if shared:
        yield f"{shared:,} lesions are of persons who are in the competition, too: keep a person on one side of a fold"


if __name__ == "__main__":
    run_command(main)
