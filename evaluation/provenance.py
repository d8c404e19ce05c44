"""How a dry run ran and what made its report: time, memory, fall-backs, versions, hashes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.html import Section
from inference.artifacts import MANIFEST, artifact_path, load_manifest
from inference.files import sha256_of
from inference.images import find_images
from inference.run_log import versions

#: Facts of run.json that have a place of their own on the page, or name folders that no longer exist.
PLACED = {"competition", "artifacts", "versions", "seconds", "fallbacks", "notes", "lesions", "image_scored"}


@dataclass(frozen=True)
class Stage:
    """A stage of the kernel: its seconds, and how many lesions it went through; None where that means nothing."""

    name: str
    seconds: float
    lesions: int | None = None


def kernel_section(run: Mapping[str, Any], seconds: float, isolation: str) -> Section:
    """How the kernel ran.

    Args:
        run: run.json.
        seconds: of the whole process, its start included.
        isolation: what kept it from the network.
    """
    lesions, scored, spent = run.get("lesions", 0), run.get("image_scored", 0), run.get("seconds", {})
    counts = {"images": scored, "tabular": lesions}
    stages = [Stage(name, duration, counts.get(name)) for name, duration in spent.items()]
    stages += [Stage("start and end", max(0.0, seconds - sum(spent.values()))), Stage("all", seconds, lesions)]
    facts = {
        "lesions with an image score": f"{scored:,} of {lesions:,}",
        "isolation": isolation,
        "fall-backs": "\n".join(f"{_words(reason)}: {count:,}" for reason, count in run.get("fallbacks", {}).items()),
        "notes": "\n".join(run.get("notes", [])),
    }
    facts |= {_words(name): _formatted(value) for name, value in run.items() if name not in PLACED}
    facts = {name: value or "none" for name, value in facts.items()}
    return Section("How the kernel ran", "report/kernel.html", {"facts": facts, "stages": stages})


def making_section(arguments: Sequence[str], rows: str, run: Mapping[str, Any], files: Mapping[str, Path]) -> Section:
    """Everything that made the page: command, rows, versions, and the SHA-256 of every file.

    Args:
        arguments: of the dry run.
        rows: which were scored, in words.
        run: run.json.
        files: "data" and "artifacts", the folders; "kernel", the file that ran.
    """
    data, artifacts, kernel = (files[name] for name in ("data", "artifacts", "kernel"))
    manifest, images = load_manifest(artifacts), find_images(data, "train")
    facts = {
        "command": shlex.join(["python", "-m", "evaluation.dry_run", *arguments]),
        "rows": rows,
        "versions in the kernel": _formatted(run.get("versions", {})),
        "versions here": _formatted(versions()),
        "artifact format": str(manifest["format"]),
        "folds": json.dumps(_rounded(manifest.get("folds", {}))).strip("{}").replace('"', "") or "unknown",
    }
    named = {kernel.name: kernel, "train-metadata.csv": data / "train-metadata.csv"}
    named[MANIFEST] = artifact_path(artifacts, MANIFEST)
    hashed = [_file_row(name, path) for name, path in named.items()]
    expected = manifest.get("files", {})
    hashed += [_file_row(name, artifact_path(artifacts, name), value) for name, value in expected.items()]
    if images is not None and images.is_file():
        hashed.append((images.name, _size(images), "not hashed: the images are large"))
    return Section("What made this page", "report/making.html", {"facts": facts, "files": hashed})


def _words(key: str) -> str:
    """A JSON key as words."""
    return key.replace("_gb", ", GB").replace("_", " ")


def _rounded(value: Any) -> Any:
    """A value of a JSON file, its numbers with four digits after the point."""
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _formatted(value: Any) -> str:
    """A value of run.json in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(name)} {_formatted(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _file_row(name: str, path: Path, expected: str = "") -> tuple[str, str, str]:
    """A file's name, size and hash; for an artifact, whether the hash is the manifest's."""
    if not path.is_file():
        return name, "", "missing"
    actual = sha256_of(path)
    compared = ", as in the manifest" if expected == actual else f"; in the manifest: {expected}" if expected else ""
    return name, _size(path), actual + compared


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
