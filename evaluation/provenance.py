"""What the report's page says of the run and of what made it: time, memory, fall-backs, versions, hashes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.html import fact_table, row_of, table_of
from inference.artifacts import MANIFEST, load_manifest
from inference.files import sha256_of
from inference.images import find_images
from inference.run_log import versions
from utils import ScoreTable

#: Facts of run.json that have a place of their own on the page, or lie in folders that are gone.
PLACED = {"competition", "artifacts", "versions", "seconds", "fallbacks", "notes", "lesions", "scored by image"}


def kernel_section(run: Mapping[str, Any], seconds: float, isolation: str) -> str:
    """HTML: how the kernel ran.

    Args:
        run: run.json.
        seconds: of the whole process, its start included.
        isolation: what kept it from the network.
    """
    stages, lesions = run.get("seconds", {}), run.get("lesions", 0)
    rows = [row_of(name, _pace(name, spent, run)) for name, spent in stages.items()]
    rows.append(row_of("starting and ending", _pace("", max(0.0, seconds - sum(stages.values())), run)))
    rows.append(row_of("all", _pace("all", seconds, run)))
    fallbacks, notes = run.get("fallbacks", {}), run.get("notes", [])
    facts = {
        "scored by image": f"{run.get('scored by image', 0):,} of {lesions:,} lesions",
        "isolation": isolation,
        "fall-backs": "\n".join(f"{what}: {count:,}" for what, count in fallbacks.items()) or "none",
        "notes": "\n".join(notes) or "none",
    }
    facts |= {name: _told(value) for name, value in run.items() if name not in PLACED}
    stages = table_of("Seconds of each stage", ("stage", "seconds", "lesions per second"), rows, "numbers")
    return f"{fact_table(facts, 'Facts about the kernel')}\n<h3>Run time</h3>\n{stages}"


def _pace(stage: str, seconds: float, run: Mapping[str, Any]) -> list[str]:
    """Seconds of a stage, and how many lesions a second where that tells anything."""
    done = {"images": run.get("scored by image", 0), "tabular": run.get("lesions", 0), "all": run.get("lesions", 0)}
    pace = f"{done[stage] / seconds:,.0f}" if done.get(stage) and seconds > 0 else ""
    return [f"{seconds:.1f}", pace]


def _told(value: Any) -> str:
    """A fact of run.json in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def making_section(
    command: Sequence[str], which: str, table: ScoreTable, run: Mapping[str, Any], data: Path, artifacts: Path, kernel: Path
) -> str:
    """HTML: everything that made the page: command, rows, versions, and the SHA-256 of every file.

    Args:
        command: arguments of the dry run.
        which: rows that were scored, "holdout" or "all".
        table: their counts.
        run: run.json.
        data: the competition folder.
        artifacts: the artifact folder.
        kernel: the kernel that ran.
    """
    manifest, images = load_manifest(artifacts), find_images(data, "train")
    facts = {
        "command": shlex.join(["python", "-m", "evaluation.dry_run", *command]),
        "rows": f"{which}: {table.rows:,} lesions, {table.malignant:,} malignant, {table.patients:,} patients",
        "versions in the kernel": _told(run.get("versions", {})),
        "versions here": _told(versions()),
        "artifact format": str(manifest["format"]),
        "folds": json.dumps(manifest.get("folds", {})).strip("{}").replace('"', "") or "not told",
    }
    files = {kernel.name: kernel, "train-metadata.csv": data / "train-metadata.csv", MANIFEST: artifacts / MANIFEST}
    rows = [_file_row(name, path, "") for name, path in files.items()]
    rows += [_file_row(name, artifacts / name, expected) for name, expected in manifest.get("files", {}).items()]
    if images is not None and images.is_file():
        rows.append(row_of(images.name, [_size(images), "not hashed: the images are large"]))
    hashes = table_of("Files with their hashes", ("file", "size", "SHA-256"), rows, "facts hashes")
    return f"{fact_table(facts)}\n<h3>Files</h3>\n{hashes}"


def _file_row(name: str, path: Path, expected: str) -> str:
    """A file's size and hash; for an artifact, whether the hash is the manifest's."""
    if not path.is_file():
        return row_of(name, ["", "missing"])
    actual = sha256_of(path)
    told = f"{actual}, as the manifest says" if expected == actual else actual
    return row_of(name, [_size(path), told if expected in ("", actual) else f"{actual}; the manifest says {expected}"])


def _size(path: Path) -> str:
    """A file's size in words."""
    size = path.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
