"""Writes the manifest: the index of the artifact folder that ``inference.artifacts`` reads.

A stage replaces its own section and drops the sections of later stages that were made from it. So a manifest never
describes models that do not belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference.artifacts import FORMAT, MANIFEST, Manifest, load_manifest
from inference.files import sha256_of, write_json
from inference.run_log import versions

#: Stage -> the stages that it reads.
READS = {
    "folds": (),
    "tabular": ("folds",),
    "network": ("folds", "tabular"),
    "image_only": ("folds",),
    "tabular_only": ("folds", "tabular"),
}


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest, empty where no stage has run yet."""
    return load_manifest(folder) if (folder / MANIFEST).is_file() else {}


def record_stage(folder: Path, stage: str, section: dict, files: Sequence[str]) -> Manifest:
    """Writes ``section`` into the manifest, with the hashes of the ``files`` that the stage wrote.

    Args:
        folder: the artifact folder; the files lie in it.
        stage: a key of ``READS``, the section's name.
        section: JSON values only.
        files: names of the files that the stage wrote.

    Returns:
        The manifest as written.
    """
    manifest = read_manifest(folder)
    kept = [name for name in READS if name in manifest and name != stage and stage not in READS[name]]
    owners = {name: owner for name, owner in manifest.get("owners", {}).items() if owner in kept}
    hashes = {name: manifest["files"][name] for name in owners}
    hashes |= {name: sha256_of(folder / name) for name in files}
    owners |= dict.fromkeys(files, stage)
    renewed = {"format": FORMAT, "versions": versions(), "files": hashes, "owners": owners}
    renewed |= {name: manifest[name] for name in kept} | {stage: section}
    write_json(folder / MANIFEST, renewed)
    return renewed
