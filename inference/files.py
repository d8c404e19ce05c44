"""Writing files as a whole or not at all, their SHA-256, and links.

Every module writes through ``replacing``, so that a reader never gets half a file; what cannot be written is an InputError.
Wherever folders are searched, a linked file or folder is what it points to; a link that leads nowhere is an error.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils import InputError

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Folders of the competition's 401,059 separate images: no input is in them, and listing them takes long.
IMAGE_FOLDERS = ("train-image", "test-image")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; on success moves it over ``path``, on failure removes it.

    The temporary name keeps the suffixes of ``path`` because h5py, Keras and Pillow choose a format by them.

    Raises:
        InputError: the folder of ``path`` cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}: {path.parent}); choose another folder.") from error
    try:
        yield temporary
        temporary.replace(path)
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose a folder that you may write to.") from error
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        raise InputError(f"{path} cannot be written ({error.strerror}); free some space and run the same again.") from error
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of the bytes of ``path``, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_images(path: Path) -> str:
    """SHA-256 of an image file, or of the names and contents of a folder of ``<isic_id>.jpg``, in hexadecimal."""
    if path.is_file():
        return sha256_of(path)
    listed = (f"{image.name} {sha256_of(image)}" for image in sorted(path.glob("*.jpg")))
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def content_state(path: Path | int) -> tuple[int, int] | None:
    """Size and time of the last change of a file, or of an open one by its descriptor; None where it is not found.

    Not its number: on a network file system, a file may have another one at another time.
    """
    try:
        found = os.fstat(path) if isinstance(path, int) else path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def write_csv(path: Path, frame: pd.DataFrame, float_format: str | None = "%.9g") -> None:
    """Writes ``frame`` without its index. Raises InputError if it cannot.

    Args:
        path: the file.
        frame: the table; a missing value becomes an empty cell.
        float_format: nine digits carry a float32 without loss; None writes as many digits as a number has.
    """
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, float_format=float_format, lineterminator="\n")


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` in its own order, NumPy numbers as numbers, NaN as null. Raises InputError if it cannot."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(content: Any) -> Any:
    """``content`` in the types of JSON, which has no NumPy, no paths and no NaN."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, np.ndarray | np.generic):
        return _plain(content.tolist())
    if isinstance(content, Path):
        return str(content)
    return None if isinstance(content, float) and not math.isfinite(content) else content


# Links


def dangling_link(path: Path) -> str:
    """A clause about the first link in ``path`` that leads nowhere, or in a circle; empty where none does."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            return f"{part} is a link to {part.readlink()}, which does not exist"
    return ""


def refuse_dangling(path: Path) -> Path:
    """The path itself, which need not exist; raises InputError where it is a link that leads nowhere."""
    if link := dangling_link(path):
        raise InputError(f"{link}; restore that, or remove the link.")
    return path


def walk_links(root: Path, depth: int | None = None, *, strict: bool = False) -> Iterator[tuple[Path, list[str], list[str]]]:
    """``os.walk`` in the order of names and through links, each folder once: links may lead back, or to one place.

    As with ``os.walk``, subfolders that are taken from the list are passed over.

    Args:
        root: where to begin.
        depth: how many levels below it; None for all.
        strict: raise for a folder that cannot be read and a link that leads nowhere, hidden ones excepted.

    Raises:
        InputError: a link leads nowhere.
        OSError: a folder cannot be read.
    """
    known = set()
    for name, subfolders, names in os.walk(root, followlinks=True, onerror=_raise if strict else None):
        folder, place = Path(name), os.path.realpath(name)
        subfolders.sort()
        if place in known:
            subfolders.clear()
            continue
        known.add(place)
        if strict:
            with os.scandir(folder) as entries:
                links = sorted(entry.name for entry in entries if entry.is_symlink() and not entry.name.startswith("."))
            for link in links:
                refuse_dangling(folder / link)
        if depth is not None and len(folder.relative_to(root).parts) >= depth:
            subfolders.clear()
        yield folder, subfolders, sorted(names)


def input_folders(root: Path, depth: int) -> Iterator[Path]:
    """The folders at most ``depth`` levels below ``root`` that may be an input, in a fixed order."""
    for folder, subfolders, _ in walk_links(root, depth):
        subfolders[:] = [name for name in subfolders if name not in IMAGE_FOLDERS]
        yield folder


def _raise(error: OSError) -> None:
    raise error
