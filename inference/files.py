"""Whole files: one-sentence errors, replacing a file in one step, and SHA-256.

Nothing here knows what a file holds. Every room that reads or writes one says what went wrong through ``InputError`` and
writes through ``replacing``, so that a reader never meets half a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input, told in one sentence: the file, column or row, what was found there, and the mend.

    Commands print the sentence and exit with status 2.
    """


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; on success moves it over ``path``, on failure removes it.

    The temporary name keeps the suffixes of ``path`` because h5py, Keras and Pillow choose a format by them.

    Raises:
        InputError: the folder of ``path`` cannot be written to.
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
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of the bytes of ``path``, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
