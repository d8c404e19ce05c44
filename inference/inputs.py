"""Where Kaggle has mounted the two inputs: the competition's files and the artifact folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from inference.artifacts import FORMAT, MANIFEST, load_manifest
from inference.files import InputError

COMPETITION = "isic-2024-challenge"
TEST_METADATA = "test-metadata.csv"
#: Folders below /kaggle/input that are looked into for the two inputs: the deepest mount known is models/*/*/*/*.
SEARCH_DEPTH = 5
#: Folders of the competition's 401,059 separate images: nothing of ours is in them, and listing them takes long.
IMAGE_FOLDERS = ("train-image", "test-image")


def find_competition(root: Path) -> Path:
    """The competition folder: Kaggle's classic mount, its new one, else wherever test-metadata.csv lies below ``root``.

    Raises:
        InputError: it is nowhere; the sentence lists what is mounted.
    """
    for folder in (root / COMPETITION, root / "competitions" / COMPETITION):
        if (folder / TEST_METADATA).is_file():
            return folder
    found = [folder for folder in folders_below(root) if (folder / TEST_METADATA).is_file()]
    if len(found) != 1:
        raise InputError(
            f"{TEST_METADATA} is in {len(found)} folders below {root} ({mounted(root)}); attach "
            f"the competition {COMPETITION} once, or give --competition."
        )
    return found[0]


def find_artifacts(root: Path) -> Path:
    """The one folder below ``root`` that holds a manifest of our format: a dataset, or a training kernel's output.

    Raises:
        InputError: there is none, or more than one.
    """
    found = [folder for folder in folders_below(root) if is_artifact_folder(folder)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} folders below {root} hold a {MANIFEST} of format {FORMAT} ({mounted(root)}); attach "
            "the artifact dataset once, or give --artifacts."
        )
    return found[0]


def is_artifact_folder(folder: Path) -> bool:
    """Whether the folder holds a manifest that this kernel can read."""
    try:
        load_manifest(folder)
    except (InputError, OSError):
        return False
    return True


def folders_below(root: Path) -> Iterable[Path]:
    """The folders at most ``SEARCH_DEPTH`` levels below ``root``, in a fixed order; files are not walked one by one."""
    for folder, subfolders, _ in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        subfolders[:] = sorted(set(subfolders) - set(IMAGE_FOLDERS)) if depth < SEARCH_DEPTH else []
        yield Path(folder)


def mounted(root: Path) -> str:
    """What lies directly below ``root``, for an error sentence."""
    if not root.is_dir():
        return "which does not exist"
    return "it holds " + (", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing")
