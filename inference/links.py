"""Links: a linked file or folder is what it points to, wherever folders are searched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def dangling_link(path: Path) -> str:
    """A sentence's end about the first link in ``path`` that leads nowhere, or in a circle; empty where none does."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            return f"leads nowhere: {part} is a link to {part.readlink()}, which does not exist"
    return ""


def walk_links(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """``os.walk`` in the order of names and through links, each folder once: links may lead back or to one place.

    As with ``os.walk``, subfolders that are taken from the list are passed over.
    """
    known = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        place = os.path.realpath(folder)
        if place in known:
            subfolders.clear()
        else:
            known.add(place)
            yield Path(folder), subfolders, sorted(names)
