"""Stages of the artifact folder, and its index, the manifest, which ``inference.artifacts`` reads.

A stage replaces its own files and drops those of later stages that were made from them, all at once
(``scale.artifact_folder``). So a folder never holds models that do not belong together.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inference.artifacts import FORMAT, MANIFEST, Manifest, artifact_path, checked_file, load_manifest
from inference.files import sha256_of, write_json
from inference.run_log import versions
from scale.artifact_folder import commit, fingerprints, locked, staging_folder
from train.code_version import code_version
from utils import InputError, log, log_summary

#: Stage -> the stages that it reads.
READS = {
    "folds": (),
    "tabular": ("folds",),
    "network": ("folds", "tabular"),
    "stacking": ("folds", "tabular", "network"),
    "image_only": ("folds",),
    "tabular_only": ("folds", "tabular"),
}
#: Stages that take hours; they are dropped on request only.
NETWORKS = ("network", "image_only", "tabular_only")
#: Stage -> the module that makes it, and whose code version is recorded.
MODULES = {"folds": "train.folds", "tabular": "train.tabular"} | dict.fromkeys(NETWORKS, "train.fusion")
MODULES["stacking"] = "train.stacking"


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest, empty where no stage has run yet."""
    return load_manifest(folder) if artifact_path(folder, MANIFEST).is_file() else {}


class Stage:
    """A stage at work: where it writes, and what its success does to the artifact folder.

    Attributes:
        artifacts: the artifact folder.
        folder: empty; the stage writes its files into it.
        dropped: later stages that are in the folder and were made from what this one replaces.
    """

    def __init__(self, artifacts: Path, name: str, folder: Path, reads: Iterable[Path], replace: bool) -> None:
        self.artifacts, self.folder = artifacts, folder
        self._name, self._part, self._replace = name, name, replace
        self._before = read_manifest(artifacts)
        self._reads = fingerprints(reads)
        self._made_with: dict[str, str] = {}
        self.dropped = [later for later, read in READS.items() if name in read and later in self._before]

    def is_done(self, options: Any, part: str = "", again: bool = False) -> bool:
        """Whether the folder holds what this stage would make: it once ran with the same ``options``, inputs and code.

        Args:
            options: all that decides the outcome besides inputs and code; as ``made_with``.
            part: of the stage, where each part of it is made by a run of its own, such as a network's name.
            again: it is to run in any case.

        Raises:
            InputError: it would make something else, and that would drop networks.
        """
        self._made_with = made_with(MODULES[self._name], options, self._reads)
        self._part = part_name(self._name, part)
        known = recorded(self._before, self._part)
        changed = changes(known, self._made_with)
        if not again and not changed and self._is_intact():
            log_summary(f"{self.artifacts}: {self._part} of the same inputs, options and code is there; nothing to do")
            return True
        if known and changed:
            log(f"{self.artifacts}: {self._part} is out of date, changed since: {', '.join(changed)}")
        self.refuse_loss()
        return False

    def refuse_loss(self) -> None:
        """Raises InputError if the stage would drop networks without ``replace``; logs what it will drop."""
        if not self.dropped:
            return
        lost = f"{', '.join(self.dropped)} ({', '.join(self._files_of(self.dropped)) or 'no file'})"
        if not self._replace and set(self.dropped) & set(NETWORKS):
            raise InputError(
                f"{self.artifacts} holds {lost}, trained on the {self._name} that this command replaces; give --replace "
                "to drop them, or another artifact folder."
            )
        log(f"{self.artifacts}: this drops {lost}, made from the {self._name} that is replaced")

    def record(self, section: dict) -> Manifest:
        """Checks the inputs again and swaps: the files in ``folder`` and ``section`` (JSON values) are the stage's now.

        Returns:
            The manifest as written.

        Raises:
            InputError: an input or the artifact folder has changed since the stage began.
        """
        renewed = self._renewed(section, sorted(path.name for path in self.folder.iterdir()))
        write_json(self.folder / MANIFEST, renewed)
        self._refuse_changed_inputs()
        gone = set(self._before.get("files", {})) - set(renewed["files"])
        commit(self.artifacts, self.folder, sorted(name for name in gone if Path(name).name == name))
        return renewed

    def _renewed(self, section: dict, files: Sequence[str]) -> Manifest:
        """The manifest with this stage and without those that it drops."""
        before, gone = self._before, {self._name, *self.dropped}
        kept = [name for name in READS if name in before and name not in gone]
        owners = {name: owner for name, owner in before.get("owners", {}).items() if owner in kept}
        hashes = {name: before["files"][name] for name in owners}
        hashes |= {name: sha256_of(self.folder / name) for name in files}
        owners |= dict.fromkeys(files, self._name)
        renewed = {"format": FORMAT, "versions": versions(), "files": hashes, "owners": owners}
        read = {Path(path).name: value for path, value in self._reads.items()}
        kept_parts = kept if self._part == self._name else [*kept, self._name]
        for title, own in (("made_with", self._made_with), ("made_from", read)):
            others = before.get(title, {}).items()
            others = {name: value for name, value in others if name.partition(":")[0] in kept_parts}
            renewed[title] = others | {self._part: own}
        return renewed | {name: before[name] for name in kept} | {self._name: section}

    def _refuse_changed_inputs(self) -> None:
        now = fingerprints(map(Path, self._reads))
        changed = [path for path, value in self._reads.items() if now[path] != value]
        if changed:
            raise InputError(f"{', '.join(changed)} changed meanwhile; nothing is recorded, run the same again.")
        if read_manifest(self.artifacts) != self._before:
            raise InputError(f"{self.artifacts / MANIFEST} changed meanwhile; nothing is recorded, run the same again.")

    def _files_of(self, stages: Sequence[str]) -> list[str]:
        return [name for name, owner in self._before.get("owners", {}).items() if owner in stages]

    def _is_intact(self) -> bool:
        try:
            for name in self._files_of([self._name]):
                checked_file(self.artifacts, self._before, name)
        except InputError:
            return False
        return True


def part_name(stage: str, part: str = "") -> str:
    """The key of a stage, or of a part of it, in the manifest's "made_with"."""
    return f"{stage}:{part}" if part else stage


def recorded(manifest: Manifest, key: str) -> dict[str, str]:
    """What a stage, or a part of it, was made with; empty where it was not made."""
    known = manifest.get("made_with", {}).get(key)
    return known if isinstance(known, dict) else {}  # earlier versions recorded one hash


def changes(known: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Which of "options", "inputs" and "code" differ from what a stage was made with."""
    return [what for what, value in now.items() if known.get(what) != value]


def is_current(artifacts: Path, name: str, options: Any, reads: Iterable[Path], part: str = "") -> bool:
    """Whether ``Stage.is_done`` would find a stage done, damaged files aside; the folder need not be locked.

    Args:
        artifacts: the artifact folder.
        name: of the stage.
        options: as ``Stage.is_done`` takes them.
        reads: as ``stage`` takes them.
        part: as ``Stage.is_done`` takes it.
    """
    known = recorded(read_manifest(artifacts), part_name(name, part))
    return bool(known) and not changes(known, made_with(MODULES[name], options, fingerprints(reads)))


def made_with(module: str, options: Any, inputs: Mapping[str, str]) -> dict[str, str]:
    """What decides the outcome of a stage: SHA-256 of "options", "inputs" and "code", in hexadecimal.

    Args:
        module: the stage's, dotted.
        options: JSON values, or what ``str`` describes.
        inputs: path -> ``fingerprint``; the folders of the paths do not count.
    """
    hashes = {"options": options, "inputs": sorted((Path(path).name, value) for path, value in inputs.items())}
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in hashes.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()} | {"code": code_version(module)}


@contextmanager
def stage(artifacts: Path, name: str, reads: Iterable[Path] = (), replace: bool = False) -> Iterator[Stage]:
    """A stage from its lock to the removal of its staging folder; without ``Stage.record`` nothing changes.

    Args:
        artifacts: the artifact folder.
        name: a key of ``READS``, the section's name.
        reads: files and folders that the stage reads; a change of one of them until its end is an error.
        replace: drop networks that were made from what this stage replaces.

    Raises:
        InputError: another process changes the folder; an input changed.
    """
    with locked(artifacts), staging_folder(artifacts, name) as staging:
        yield Stage(artifacts, name, staging, reads, replace)


def record_stage(folder: Path, name: str, section: dict, files: Sequence[str]) -> Manifest:
    """Records a stage whose ``files`` lie in the artifact folder already; drops later stages as any stage does.

    Returns:
        The manifest as written.
    """
    with stage(folder, name, replace=True) as current:
        for file in files:
            link_or_copy(artifact_path(folder, file), current.folder / file)
        return current.record(section)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the file; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
