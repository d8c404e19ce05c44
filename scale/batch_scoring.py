"""Scores an archive of any size: in parts of whole patients, by the kernel's functions, here or on a cluster.

    python -m scale.batch_scoring --input archive --images images.hdf5 --artifacts artifacts --out scored --jobs 2

Reads Parquet or CSV files with the columns of test-metadata.csv; writes scores-00000.parquet, ... with a row per lesion, and
run.json. What is finished is kept, so the same command continues where it was stopped. A local tool.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from inference.artifacts import MANIFEST, Manifest, load_manifest
from inference.files import replacing, sha256_of, write_json
from inference.images import ImageStore
from inference.submission import BATCH_SIZE
from scale.parallel import Files, add_worker_options, run_tasks, workers
from scale.parts import (
    input_files,
    pieces_of,
    score_part,
    scores_of,
    split_file,
    waits_for_all,
    with_final,
)
from utils import InputError, log, run_command

#: Lesions that a part is meant to have: their features fit into a part of a gigabyte.
PART = 100_000
#: A row of test-metadata.csv, in bytes.
CSV_ROW = 450
#: In --out: what was asked for, and what happened.
SETTINGS, RUN = "settings.json", "run.json"


def parts_for(files: list[Path]) -> int:
    """How many parts of about ``PART`` lesions the files make."""
    csv = sum(path.stat().st_size for path in files if path.suffix == ".csv")
    rows = csv / CSV_ROW + sum(pq.read_metadata(path).num_rows for path in files if path.suffix == ".parquet")
    return max(1, round(rows / PART))


def begin(out: Path, settings: dict) -> None:
    """Makes the folder ``out`` one of this run.

    Raises:
        InputError: it holds what another one has begun.
    """
    if (out / SETTINGS).is_file():
        known = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
        other = [name for name in settings if known.get(name) != settings[name]]
        if other:
            raise InputError(f"{out} was begun with other {', '.join(other)}; give another --out, or remove it.")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds nothing of this command; give another --out.")
    write_json(out / SETTINGS, settings)


def score_parts(files: Files, parts: int, artifacts: Path, images: Path | None, batch_size: int) -> None:
    """Scores the parts that have no scores yet."""
    todo = [part for part in range(parts) if pieces_of(files.folder, part)]
    todo = [part for part in todo if not scores_of(files.folder, part).is_file()]
    tasks = ((part, artifacts, images, batch_size) for part in todo)
    run_tasks(score_part, tasks, len(todo), files, desc="scoring", unit="part")


def combine_all(paths: list[Path], manifest: Manifest) -> None:
    """Combines the scores of all parts at once and writes each part anew, with its final scores."""
    if all("final" in pq.read_schema(path).names for path in paths):
        return
    names = ["tabular", "network", "image_scored"]  # without the ids, which would take most of the memory
    scores = pd.concat([pd.read_parquet(path, columns=names) for path in paths], ignore_index=True)
    final, start = with_final(scores, manifest, images=True)[["final", "probability"]], 0
    for path in paths:
        table = pd.read_parquet(path)
        rows = final.iloc[start : start + len(table)].set_axis(table.index)
        with replacing(path) as temporary:
            table.assign(**rows).to_parquet(temporary, index=False)
        start += len(table)


def main(arguments: list[str] | None = None) -> int:
    """Splits, scores, and sums up."""
    parser = argparse.ArgumentParser(
        description="Archive of any size -> scores-*.parquet, part by part of whole patients. "
        "The same command continues where it was stopped."
    )
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help="Parquet or CSV file, or a folder of them")
    parser.add_argument("--images", type=Path, metavar="PATH", help="HDF5 file or folder of <isic_id>.jpg (default: none)")
    parser.add_argument("--artifacts", type=Path, required=True, metavar="DIR", help="artifact folder to score with")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the scores")
    parser.add_argument("--parts", type=int, help=f"parts to divide into (default: of about {PART:,} lesions)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="crops at a time (default: %(default)s)")
    add_worker_options(parser)
    options = parser.parse_args(arguments)
    for name in ("parts", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} must be 1 or more.")
    sources, manifest = input_files(options.input), load_manifest(options.artifacts)
    if options.images:
        ImageStore(options.images).close()  # whatever is wrong with it is said before hours of scoring
    parts = options.parts or parts_for(sources)
    settings = {
        "--input": [[path.name, path.stat().st_size] for path in sources],
        "--artifacts": sha256_of(options.artifacts / MANIFEST),
        "--images": options.images and str(options.images.resolve()),
        "--parts": parts,
    }
    begin(options.out, settings)
    with workers(options.jobs, options.cluster):
        reads = [*sources, options.artifacts, *([options.images] if options.images else [])]
        files = Files.of(reads, options.out)
        inputs = ((number, path, parts) for number, path in enumerate(sources))
        rows = run_tasks(split_file, inputs, len(sources), files, desc="splitting", unit="file")
        score_parts(files, parts, options.artifacts, options.images, options.batch_size)
    paths = sorted(options.out.glob("scores-*.parquet"))
    if options.images and waits_for_all(manifest):
        combine_all(paths, manifest)
    log(summed_up(options.out, sum(rows)))
    return 0


def summed_up(out: Path, rows: int) -> str:
    """Writes run.json of all parts; one line of it."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("told-*.json"))]
    fallbacks: Counter[str] = Counter()
    for part in told:
        fallbacks.update(part["fallbacks"])
    content = {
        "rows": rows,
        "lesions": sum(part["lesions"] for part in told),
        "image_scored": sum(part["image_scored"] for part in told),
        "parts": len(told),
        "most memory of a process, GB": max((part["most memory, GB"] or 0 for part in told), default=0),
        "fallbacks": dict(fallbacks),
    }
    write_json(out / RUN, content)
    return (
        f"{out}: {content['lesions']:,} lesions in {len(told)} parts, {content['scored by image']:,} scored by image, "
        f"{content['most memory of a process, GB']:.2f} GB in a process at most; "
        f"fall-backs: {', '.join(f'{what} {count:,}' for what, count in fallbacks.items()) or 'none'}"
    )


if __name__ == "__main__":
    run_command(main)
