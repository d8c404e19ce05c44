"""Folders that change as a whole: a lock, a staging folder, and one rename by which the new content becomes valid.

1. ``locked`` takes a lock on the folder, finishes what a killed process had committed, and removes what it had only staged.
2. New content is written into a staging folder inside the folder, so on the same file system.
3. One rename of the staging folder to ``.committed`` is the commit: before it nothing has changed, after it all has.
4. The files move out of ``.committed``, the manifest last. Killed here, the next ``locked`` continues; until then the
   readers of ``inference.artifacts`` look into ``.committed`` first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from inference.artifacts import COMMITTED, MANIFEST
from inference.files import dangling_link, sha256_of
from utils import InputError, log

#: Who holds the lock, for the sentence of a second run. The lock itself is the kernel's, and ends with its process.
HOLDER = ".lock.json"
STAGING = ".staging-slice3d"
#: In a staging folder: the files that the swap removes.
REMOVED = ".removed.json"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Inside, no other process changes ``folder`` (returned), and it is as the last finished command left it.

    The folder is made if it is missing, and removed again if nothing is written into it. The lock of a process that has
    died is free.

    Raises:
        InputError: another process holds the lock, or the folder cannot be made or opened.
    """
    made = _made(folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder} cannot be opened ({error.strerror}); choose another folder.") from error
    try:
        _lock(descriptor, folder)
        finish_swap(folder)
        for left in folder.glob(f"{STAGING}-*"):
            shutil.rmtree(left)
        _write_holder(folder)
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                (folder / HOLDER).unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # it is no longer empty
                    folder.rmdir()
    finally:
        os.close(descriptor)  # and with it the lock


def _made(folder: Path) -> bool:
    """Makes the folder; False if it is there already."""
    if folder.is_dir():
        return False
    if dangling_link(folder):
        raise InputError(f"{folder} {dangling_link(folder)}; choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from error
    return True


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{folder} is in use by {_holder(folder)}; wait for it, or give another folder.") from error
    except OSError as error:
        log(f"{folder} cannot be locked ({error.strerror}): let no other command write into it")


def _holder(folder: Path) -> str:
    """The process that holds the lock, in words."""
    try:
        known = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']} since {known['since']} ({known['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _write_holder(folder: Path) -> None:
    """Says who holds the lock; the lock does not depend on it, so a full disk does not matter here."""
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    program = Path(sys.argv[0])
    command = shlex.join([program.parent.name if program.stem == "__main__" else program.stem, *sys.argv[1:]])
    content = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}
    with contextlib.suppress(OSError):
        (folder / HOLDER).write_text(json.dumps(content) + "\n", encoding="utf-8")


@contextlib.contextmanager
def staging_folder(folder: Path, name: str) -> Iterator[Path]:
    """A new, empty sub-folder of the locked ``folder``, removed at the end unless ``commit`` has taken it.

    Raises:
        InputError: ``folder`` cannot be written to.
    """
    staging = folder / f"{STAGING}-{name}"
    try:
        staging.mkdir()
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}); choose another folder.") from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def staged_folder(path: Path, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a folder to write into; at the end of the block its content moves into ``path``, or after an error nothing.

    Args:
        path: the output folder; made if it is missing.
        owned: patterns below ``path`` of what earlier runs of the same command wrote. What fits them and is not written
            again is removed; everything else in ``path`` stays.

    Raises:
        InputError: another process writes into ``path``, or it cannot be written to.
    """
    with locked(path), staging_folder(path, "output") as staging:
        yield staging
        found = {entry.relative_to(path) for pattern in owned for entry in path.glob(pattern)}
        inside = {name for name in found if name.parts[0] != staging.name}
        commit(path, staging, sorted(str(name) for name in inside if not os.path.lexists(staging / name)))


def commit(folder: Path, staging: Path, removed: Sequence[str] = ()) -> None:
    """Makes the content of ``staging`` that of ``folder``; the rename in the middle is the moment.

    Args:
        folder: locked.
        staging: in it.
        removed: entries of ``folder`` to remove, as relative paths.
    """
    (staging / REMOVED).write_text(json.dumps(list(removed)), encoding="utf-8")
    for path in staging.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _to_disk(path)
    staging.rename(folder / COMMITTED)
    try:
        finish_swap(folder)
    except BaseException:  # Ctrl-C among others: what is committed should also be in its place
        finish_swap(folder)
        raise


def _to_disk(path: Path) -> None:
    """Waits until the file is written: a full disk may show only here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        os.close(descriptor)


def finish_swap(folder: Path) -> None:
    """Moves the files of a committed stage to their places; may be repeated after it was stopped anywhere."""
    committed = folder / COMMITTED
    if (committed / REMOVED).is_file():  # it goes last: without it, everything is in its place
        first = [entry for entry in sorted(committed.iterdir()) if entry.name not in (MANIFEST, REMOVED)]
        for entry in first:
            _move(entry, folder / entry.name)
        for name in json.loads((committed / REMOVED).read_text(encoding="utf-8")):
            _remove(folder / name)
        if (committed / MANIFEST).is_file():
            _move(committed / MANIFEST, folder / MANIFEST)
        (committed / REMOVED).unlink()
    if committed.is_dir():
        committed.rmdir()


def _move(source: Path, target: Path) -> None:
    """Moves a file, or merges a folder into one that is there."""
    if source.is_dir() and not source.is_symlink() and target.is_dir() and not target.is_symlink():
        for entry in sorted(source.iterdir()):
            _move(entry, target / entry.name)
        source.rmdir()
        return
    if target.exists() and source.samefile(target):  # a rename between two names of one file does nothing
        _remove(source)
        return
    if source.is_dir() or target.is_dir():  # a folder takes the place of a file, or a file that of a folder
        _remove(target)
    source.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file; of a folder, of the names and contents of all files in it; "none" where nothing is."""
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        return "none"
    digest = hashlib.sha256()
    for entry in sorted(path.rglob("*")):
        if entry.is_file():
            digest.update(f"{entry.relative_to(path)} {sha256_of(entry)}\n".encode())
    return digest.hexdigest()


def fingerprints(paths: Iterable[Path]) -> dict[str, str]:
    """Path -> ``fingerprint``."""
    return {str(path): fingerprint(path) for path in paths}
