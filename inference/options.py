"""Types of command-line options: what no command can use is refused before anything is read, naming option, value and range.

A number is written in decimal digits only; ``int`` and ``float`` also take " 5 ", "1_000", "nan" and digits of any script.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from inference.files import dangling_link
from terminal import set_verbosity
from utils import InputError

#: Of counts without a limit of their own: what a 32-bit integer holds.
MOST = 2**31 - 1
WHOLE_NUMBER = r"[+-]?[0-9]{1,30}"
DECIMAL_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"
HOST_AND_PORT = r"([a-z]+://)?(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):([0-9]{1,5})/?"


class _Verbosity(argparse.Action):
    """Sets ``utils.OUTPUT`` and leaves nothing among the parsed options."""

    def __call__(self, *_: Any) -> None:
        set_verbosity(self.const)


class Parser(argparse.ArgumentParser):
    """argparse's parser with the options that all commands have: --quiet and --verbose.

    Its errors are InputErrors: one sentence without the usage, by the same door as all others.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        kept: dict[str, Any] = {"action": _Verbosity, "nargs": 0, "dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}
        chosen = self.add_mutually_exclusive_group()
        chosen.add_argument("-q", "--quiet", const=-1, help="print errors and the last line only", **kept)
        chosen.add_argument("-v", "--verbose", const=1, help="print seconds, and what libraries say", **kept)
        # argparse takes "-1e-3" and "-inf" for options; they are values, which a type refuses by its range.
        self._negative_number_matcher = re.compile(r"-(\.?[0-9]|inf|nan)")

    def error(self, message: str) -> NoReturn:
        """Raises the InputError."""
        sentence = message.removeprefix("argument ")
        raise InputError(sentence if sentence.endswith(".") else f"{sentence}; see --help.")


@dataclass(frozen=True)
class Number:
    """The type of an option that is a number in a range.

    Args:
        low: the range's lower end.
        high: its upper end.
        whole: refuse a decimal point and an exponent.
        above: refuse ``low`` itself.
        below: refuse ``high`` itself.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        """The range in words."""
        low, high = (f"{end:,}" if self.whole else f"{end:,g}" for end in (self.low, self.high))
        start = f"above {low}" if self.above else f"from {low}"
        end = f"to below {high}" if self.below else f"to {high}"
        return f"{'whole number' if self.whole else 'number'} {start} {end}"

    def __call__(self, text: str) -> float:
        """The number that ``text`` is."""
        if re.fullmatch(WHOLE_NUMBER if self.whole else DECIMAL_NUMBER, text):
            value = int(text) if self.whole else float(text)
            if (value > self.low if self.above else value >= self.low) and (
                value < self.high if self.below else value <= self.high
            ):
                return value
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no {self}; give one.")


def count(low: int = 1, high: int = MOST) -> Number:
    """How many: a whole number."""
    return Number(low, high, whole=True)


def share(low: float = 0, high: float = 1) -> Number:
    """A part of a whole."""
    return Number(low, high)


def positive_number(high: float) -> Number:
    """A number above zero."""
    return Number(0, high, above=True)


#: What NumPy's, Keras's and CatBoost's generators all take.
seed = count(0, 2**32 - 1)
#: Five halvings must leave a pixel, and a batch of the largest must fit into memory.
image_size = count(32, 1024)
#: Crops that are in memory at a time.
crop_count = count(1, 65_536)
#: Processes of one machine.
processes = count(1, 1024)


def is_unfinished(folder: Path) -> bool:
    """Whether a killed ``scale.artifact_folder.staged_folder`` left old and new files; readers of artifacts see the new."""
    committed = folder / ".committed"
    return committed.is_dir() and not any((each / "manifest.json").exists() for each in (committed, folder))


@dataclass(frozen=True)
class PathType:
    """The type of an option that is a path. A link is what it points to; a leading "~" is the home folder.

    Args:
        kind: "file", "folder", or "file or folder".
        exists: it must be there; else it may be made, and only what stands in its way is refused.
    """

    kind: str
    exists: bool

    def __call__(self, text: str) -> Path:
        """The path that ``text`` names; absolute where it begins with a dash, or it would be taken for an option."""
        path = Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user
        try:
            problem = self.problem(text, path)
        except (OSError, ValueError) as error:
            problem = f"cannot be used ({getattr(error, 'strerror', error)})"
        if problem:
            wanted = f"a {self.kind} that exists" if self.exists else f"a {self.kind} to write"
            raise argparse.ArgumentTypeError(f"{text!r:.200} {problem}; give {wanted}.")
        return path.absolute() if text.startswith("-") else path

    def problem(self, text: str, path: Path) -> str:
        """Why the path cannot be used; empty where it can."""
        if not text.strip():
            return "is empty, as a variable that is not set"
        if link := dangling_link(path):
            return f"leads nowhere, for {link}"
        if self.kind == "file" and (path.is_dir() or text.endswith(("/", "/.", "/..")) or text in (".", "..")):
            return "is a folder"
        if self.exists and not path.exists():
            return "does not exist"
        if self.kind == "folder" and path.exists() and not path.is_dir():
            return "is a file"
        if self.exists and is_unfinished(path):
            return "was being replaced when its command was killed, and the next run of that command finishes it"
        above = next((folder for folder in path.parents if folder.exists()), None)
        return f"cannot be made, for {above} is a file" if above and not above.is_dir() else ""


existing_file = PathType("file", exists=True)
existing_folder = PathType("folder", exists=True)
existing_path = PathType("file or folder", exists=True)
output_file = PathType("file", exists=False)
#: Made where it is not there.
output_folder = PathType("folder", exists=False)


def filled_text(text: str) -> str:
    """A text that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty, as a variable that is not set; give a text.")
    return text


def shell_words(text: str) -> list[str]:
    """The words of a text, divided and quoted as for a shell; it may be empty."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.60} cannot be divided into words ({error}); close it.") from error


def address(text: str) -> str:
    """The address of a server, with its port."""
    found = re.fullmatch(HOST_AND_PORT, text)
    if not found or not 1 <= int(found[3]) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r:.100} is no address with a port from 1 to 65535; give tcp://HOST:PORT.")
    return text


def refuse_same_file(outputs: Mapping[str, Path | None]) -> None:
    """Raises InputError where two of the files that a command writes, by what names them, are one."""
    known: dict[Path, str] = {}
    for name, path in outputs.items():
        other = known.setdefault(path.resolve(), name) if path else name
        if other != name:
            raise InputError(f"{other} and {name} are both {path}, and one would replace the other; give another path.")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--data`` and ``--artifacts``, which mean the same in every command."""
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument(
        "--artifacts", type=output_folder, required=True, metavar="DIR", help="artifact folder of this training"
    )


def add_seed_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--seed``, which means the same in every command."""
    parser.add_argument("--seed", type=seed, default=0, help="start of all random numbers (default: %(default)s)")
