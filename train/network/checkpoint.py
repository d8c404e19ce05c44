"""What an interrupted training leaves: one file, replaced after every epoch, with all that is needed to continue."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py

from inference.files import replacing
from utils import InputError


class _Memory(io.BytesIO):
    """A file in memory with the name that Keras asks for."""

    def __str__(self) -> str:
        return "memory.weights.h5"


def save_weights(model, path: Path, **attributes: str) -> None:
    """Writes ``model``'s weights, and its optimizer if it is compiled, as a whole or not at all.

    HDF5 is written in memory first: on a full disk its library ends the process, where a plain write raises an error.

    Args:
        model: of Keras.
        path: ends in .weights.h5.
        attributes: of the HDF5 file.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    memory = _Memory()
    model.save_weights(memory)
    with h5py.File(memory, "r+") as file:
        file.attrs.update(attributes)
    with replacing(path) as temporary:
        temporary.write_bytes(memory.getbuffer())


class Checkpoint:
    """Weights, optimizer and history after the last finished epoch, in one file that is replaced as a whole.

    A process that is killed at any moment leaves the file of the epoch before or of this one, never a part of it. Without
    a path only the history is kept, in memory.

    Raises:
        InputError: the file is no checkpoint.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.history: list[dict] = []
        if path is None or not path.is_file():
            return
        try:
            with h5py.File(path, "r") as file:
                self.history = json.loads(file.attrs["history"])
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} is no checkpoint of a training ({error}); remove it, or give --restart.") from error

    @property
    def epochs(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    def save(self, model, record: dict) -> None:
        """Saves ``model`` with its optimizer after an epoch; ``record`` is the epoch's line of the history."""
        self.history.append(record)
        if self.path is None:
            return
        save_weights(model, self.path, history=json.dumps(self.history))

    def load(self, model) -> None:
        """Loads weights and optimizer into ``model``, which must be compiled and its optimizer built."""
        model.load_weights(self.path)
