"""The files that a command writes into a folder: all of an earlier run or all of this one, and nobody else's.

``staged_folder`` swaps whole sets and never removes what it does not know. Here it is also checked that files of the same
names, which a swap would replace, are of the same command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scale.artifact_folder import staged_folder
from utils import InputError

#: A page's title is in so many bytes at its beginning.
HEAD = 4096


@contextmanager
def output_set(folder: Path, names: Sequence[str], marks: Sequence[str] = (), title: str = "") -> Iterator[Path]:
    """Yields an empty folder; at the end of the block what was written there replaces, as a whole, what ``folder`` has.

    Args:
        folder: is made where it is not there; other files in it are left as they are.
        names: of all files that the command writes, or patterns of them.
        marks: all of these are there where the command has written; ``names``, if not given.
        title: how the title of every HTML page among them begins.

    Raises:
        InputError: ``folder`` has files of these names that this command did not write, or another run is at work there.
    """
    with staged_folder(folder, owned=names) as staging:
        refuse_others(folder, names, marks or names, title)
        yield staging


def refuse_others(folder: Path, names: Sequence[str], marks: Sequence[str], title: str = "") -> None:
    """Raises InputError where ``folder`` has files of these names that are not the command's own; as ``output_set``."""
    present = sorted({path for name in names for path in folder.glob(name) if not path.name.startswith(".")})
    others = [path for path in present if not path.is_file() or not has_title(path, title)]
    missing = [name for name in marks if not (folder / name).is_file()]
    if others or (present and missing):
        name = (others or present)[0].name
        raise InputError(f"{folder} has a {name!r} that this command did not write; move it away, or name another folder.")


def has_title(path: Path, title: str) -> bool:
    """Whether an HTML page has a title that begins so; true for all other files."""
    if path.suffix != ".html" or not title:
        return True
    with path.open("rb") as file:
        return f"<title>{title}".encode() in file.read(HEAD)
