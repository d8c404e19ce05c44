"""Scores a table that is larger than memory: in parts of whole patients, by the kernel's functions, here or on a cluster.

    python -m scale.batch_scoring --input lesions --images images.hdf5 --artifacts artifacts --out scored --jobs 2

Reads Parquet or CSV files with the columns of test-metadata.csv. Writes scores-00000.parquet, ... with a row per lesion, and
run.json, all at once when the last part is scored. Finished parts are kept, so the same command continues where it was
stopped. Not part of the kernel.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from inference.artifacts import MANIFEST, artifact_path, load_manifest
from inference.files import sha256_of, sha256_of_images, write_json
from inference.images import ImageStore
from inference.options import Parser, count, crop_count, existing_folder, existing_path, output_folder
from inference.submission import BATCH_SIZE
from scale.artifact_folder import commit, locked
from scale.parallel import Files, Progress, add_worker_options, run_tasks, workers
from scale.parts import (
    SCORED,
    find_repeated,
    input_files,
    pieces_of,
    reading_repairs,
    refuse_other_images,
    reports,
    rows_of,
    score_part,
    scores_of,
    split_file,
)
from terminal import run_command
from utils import InputError, log_summary

#: Lesions of a part: their features take less than a gigabyte.
PART = 100_000
#: Bytes of a row of test-metadata.csv.
CSV_ROW = 450
#: In --out: the settings of the run, and its summary.
SETTINGS, RUN = "settings.json", "run.json"


def parts_for(files: list[Path]) -> int:
    """How many parts of about ``PART`` lesions the files make."""
    csv = sum(path.stat().st_size for path in files if path.suffix == ".csv")
    rows = csv / CSV_ROW + sum(rows_of(path) for path in files if path.suffix == ".parquet")
    return max(1, round(rows / PART))


def claim(out: Path, settings: dict) -> None:
    """Makes ``out`` the folder of a run with these settings.

    Raises:
        InputError: it holds a run with other settings, or other files.
    """
    if (out / SETTINGS).is_file():
        try:
            known = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
            other = [f"--{name}" for name in settings if known.get(name) != settings[name]]
        except (ValueError, AttributeError) as error:
            raise InputError(f"{out / SETTINGS} is not of this command; give another --out.") from error
        if other:
            raise InputError(f"{out} was begun with other {', '.join(other)}; give another --out, or remove it.")
    elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out} is not empty and was not made by this command; give another --out.")
    write_json(out / SETTINGS, settings)
    for pattern in (".[0-9]*", f"{SCORED}/.[0-9]*", "part-*/.[0-9]*"):  # half a file each, of a run that was killed
        for left in out.glob(pattern):
            left.unlink()


def contents(artifacts: Path, images: Path | None) -> dict[str, str | None]:
    """Hashes of what the scoring reads beside its input, by option."""
    of_images = sha256_of_images(images) if images else None
    return {"artifacts": sha256_of(artifact_path(artifacts, MANIFEST)), "images": of_images}


def refuse_changed(settings: dict[str, Any], artifacts: Path, images: Path | None) -> None:
    """Raises InputError where the artifacts or the images are others than before: the scores could be of both."""
    changed = [f"--{name}" for name, sha256 in contents(artifacts, images).items() if sha256 != settings[name]]
    if changed:
        raise InputError(f"{', '.join(changed)}: changed while the lesions were scored; run again with another --out.")


def score_parts(files: Files, parts: int, artifacts: Path, images: Path | None, batch_size: int) -> None:
    """Scores the parts that have no scores yet."""
    todo = [part for part in range(parts) if pieces_of(files.folder, part) and not scores_of(files.folder, part).is_file()]
    tasks = ((part, artifacts, images, batch_size) for part in todo)
    run_tasks(score_part, tasks, len(todo), files, Progress("scoring", "part"))


def summarize(out: Path, rows: int) -> str:
    """Writes run.json, beside the scores, from the reports of all parts; returns one line of it."""
    parts = reports(out)
    fallbacks = sum((Counter(part["fallbacks"]) for part in parts), reading_repairs(out))
    lesions, image_scored = (sum(part[name] for part in parts) for name in ("lesions", "image_scored"))
    memory = max((part["peak_memory_gb"] or 0 for part in parts), default=0)
    content = {"rows": rows, "lesions": lesions, "image_scored": image_scored, "parts": len(parts)}
    write_json(out / SCORED / RUN, content | {"peak_memory_gb": memory, "fallbacks": fallbacks})
    fallen = ", ".join(f"{reason} {count:,}" for reason, count in fallbacks.items())
    return (
        f"{out}: {lesions:,} lesions in {len(parts)} parts, {image_scored:,} image_scored, peak memory of a process "
        f"{memory:.2f} GB, fall-backs: {fallen or 'none'}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Splits the input into parts, scores them and writes run.json."""
    parser = Parser(
        description="Parquet or CSV files of any size -> scores-*.parquet, in parts of whole patients. "
        "The same command continues where it was stopped."
    )
    parser.add_argument(
        "--input", type=existing_path, required=True, metavar="PATH", help="Parquet or CSV file, or a folder of them"
    )
    parser.add_argument(
        "--images", type=existing_path, metavar="PATH", help="HDF5 file or folder of <isic_id>.jpg (default: none)"
    )
    parser.add_argument(
        "--artifacts", type=existing_folder, required=True, metavar="DIR", help="artifact folder to score with"
    )
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="folder for the scores")
    parser.add_argument(
        "--parts", type=count(high=1_000_000), help=f"number of parts (default: parts of about {PART:,} lesions)"
    )
    parser.add_argument("--batch-size", type=crop_count, default=BATCH_SIZE, help="crops at a time (default: %(default)s)")
    add_worker_options(parser)
    options = parser.parse_args(arguments)
    sources = input_files(options.input)
    load_manifest(options.artifacts)  # an error in it is found now, too
    if options.images:
        ImageStore(options.images).close()  # an error in it is found now, not after hours of scoring
    parts = options.parts or parts_for(sources)
    settings: dict[str, Any] = {
        "input": [[path.name, sha256_of(path)] for path in sources],
        **contents(options.artifacts, options.images),
        "parts": parts,
    }
    with locked(options.out):
        claim(options.out, settings)
        files = Files.of([*sources, options.artifacts, *([options.images] if options.images else [])], options.out)
        with workers(options.jobs, options.cluster):
            hashed = zip(sources, (sha256 for _, sha256 in settings["input"]), strict=True)
            tasks = ((number, path, sha256, parts) for number, (path, sha256) in enumerate(hashed))
            rows = run_tasks(split_file, tasks, len(sources), files, Progress("splitting", "file"))
            find_repeated(options.out, sum(rows))
            if options.images:
                refuse_other_images(options.out, options.images)
            score_parts(files, parts, options.artifacts, options.images, options.batch_size)
        refuse_changed(settings, options.artifacts, options.images)
        summary = summarize(options.out, sum(rows))
        commit(options.out, options.out / SCORED)
    log_summary(summary)
    return 0


if __name__ == "__main__":
    run_command(main)
