"""Links: a linked file or folder is what it points to, wherever folders are searched; one that leads nowhere is an error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from utils import InputError

#: Folders of the competition's 401,059 separate images: no input is in them, and listing them takes long.
IMAGE_FOLDERS = ("train-image", "test-image")


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
