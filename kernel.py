"""ISIC 2024 (SLICE-3D) submission kernel: CatBoost on metadata, a network on the crop, submission.csv.

    python kernel.py [--competition DIR] [--artifacts DIR] [--output FILE]

On Kaggle it runs without arguments and without a network connection. It reads the competition's files and an artifact folder
that this project's training wrote. Built by `python -m inference.build_kernel`: edit the modules below and build again.

Contents (line numbers):
       75  utils.py
      145  terminal.py
      306  inference/files.py
      458  inference/options.py
      612  inference/tables.py
      948  inference/schema.py
     1096  inference/features.py
     1442  inference/artifacts.py
     1523  inference/tabular.py
     1585  inference/images.py
     1844  inference/backbones.py
     2084  inference/network.py
     2383  inference/run_log.py
     2523  inference/scoring.py
     2882  inference/submission.py
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the imports run: no traceback

import argparse
import codecs
import contextlib
import csv
import errno
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata as installed
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TextIO

import h5py
import numpy as np
import pandas as pd
from catboost import CatBoostClassifier, CatBoostError, Pool
from scipy.stats import rankdata

if TYPE_CHECKING:
    import keras


# ===========================================================================================================================
# utils.py
# ===========================================================================================================================


class InputError(ValueError):
    """Bad input, in one sentence: the option, file, column or row, what was found there, and what to do.

    Commands print the sentence and exit with status 2 (``terminal.run_command``).
    """


@dataclass
class Output:
    """How this process prints; ``terminal.set_verbosity`` sets it."""

    #: -1 errors and the last line only, 0 the log, 1 seconds and what libraries say as well.
    verbosity: int = 0
    #: The last line, held back until the command ends, where verbosity is -1.
    held: str = ""
    started: float = field(default_factory=time.monotonic)
    #: What a line is printed inside: progress bars make way for it.
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


OUTPUT = Output()
STYLES = {"error": "31", "warning": "33", "summary": "1"}
WARNING = re.compile(r"\b(WARNING|FALL-BACK)\b")


def uses_colour(stream: TextIO) -> bool:
    """Whether lines may have colours: on a terminal, unless NO_COLOR is set; with FORCE_COLOR everywhere."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def print_line(text: str, style: str = "", stream: TextIO | None = None) -> None:
    """Prints a line at once, whatever the verbosity; one that cannot be written is lost.

    Args:
        text: without a newline at its end.
        style: of ``STYLES``, or none.
        stream: standard output if not given.
    """
    stream = stream or sys.stdout
    with contextlib.suppress(OSError, ValueError), OUTPUT.around():
        print(f"\033[{STYLES[style]}m{text}\033[0m" if style and uses_colour(stream) else text, file=stream, flush=True)


def log(text: str, elapsed: float | None = None, style: str = "") -> None:
    """Prints a line about what happens, without a time stamp unless verbose: two runs can be compared.

    Args:
        text: a line, or lines such as a table.
        elapsed: seconds to print before it.
        style: of ``STYLES``; by default a line with the word WARNING or FALL-BACK is a warning.
    """
    lines = "\n" in text
    if elapsed is None and OUTPUT.verbosity > 0 and not lines:
        elapsed = time.monotonic() - OUTPUT.started
    text = text if elapsed is None else f"[{elapsed:7.1f} s] {text}"
    if OUTPUT.verbosity < 0:
        OUTPUT.held = text
    else:
        print_line(text, style or ("warning" if not lines and WARNING.search(text) else ""))


# ===========================================================================================================================
# terminal.py
# ===========================================================================================================================


def set_verbosity(verbosity: int) -> None:
    """Sets what this process prints, as ``utils.Output`` says; before TensorFlow is imported, or what that prints stays."""
    OUTPUT.verbosity = verbosity
    if verbosity < 0:
        warnings.simplefilter("ignore")
    if verbosity > 0:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        logging.getLogger("tensorflow").setLevel(logging.INFO)


class _LossyOutput(io.FileIO):
    """A file descriptor whose reader may go away or whose disk may be full: what cannot be written is lost."""

    def write(self, data: Any) -> int:
        """Writes what it can of bytes or a memoryview of them; never fails."""
        with contextlib.suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def guard_process() -> None:
    """Makes this process print whatever its streams can take, and no traceback: not of a thread, not of an ignored error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the number; else a data file would, and get the log
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - as long as the process
        elif stream is getattr(sys, f"__{name}__"):
            raw, at_once = _LossyOutput(stream.fileno(), "w", closefd=False), stream.line_buffering or stream.write_through
            lossy = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=at_once)
            setattr(sys, name, lossy)
    logging.raiseExceptions = False
    logging.setLogRecordFactory(lambda *given, **_: logging.LogRecord(*(*given[:6], None, *given[7:8])))  # no traceback
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None
    threading.excepthook = _note_thread


def _note_thread(failed: threading.ExceptHookArgs) -> None:
    if isinstance(failed.exc_value, Exception) and not sys.is_finalizing():
        _complain(f"warning: a thread stopped: {refusal(failed.exc_value) or _defect(failed.exc_value)}", "warning")


def _complain(sentence: str, style: str = "") -> None:
    print_line(sentence, style, sys.stderr)


#: What to do about errors of the operating system.
ADVICE = {
    "free disk space": (errno.ENOSPC, errno.EDQUOT),
    "free memory, or choose fewer --jobs or smaller batches": (errno.ENOMEM,),
    "raise the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
    "choose a place that you may read and write": (errno.EACCES, errno.EPERM, errno.EROFS),
    "correct the path": (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
#: Modules and classes of errors that mean a file, a disk, a process or a server; by name, because their import takes long.
REFUSING = re.compile(
    r"(_?catboost|pandas\.errors|pyarrow|h5py|dask|distributed|joblib|concurrent\.futures|optuna|sqlalchemy|sqlite3|jinja2"
    r"|requests|urllib3|http\.client|subprocess|zipfile|tarfile|zlib|_lzma|_csv|json\.decoder|PIL)\b"
    r"|tensorflow.*\.(ResourceExhausted|NotFound|PermissionDenied|Unavailable|DataLoss)Error"
)


def refusal(error: BaseException) -> str | None:
    """One sentence for an error that a user can correct: bad input, or a no of the system or of a library; else None."""
    kind, text = type(error).__name__, " ".join(map(str.strip, str(error).splitlines()))
    names = [f"{each.__module__}.{each.__name__}" for each in type(error).__mro__]
    if isinstance(error, InputError):
        return text or kind
    if isinstance(error, MemoryError) or (kind == "ResourceExhaustedError" and "No space left" not in text):
        return f"the memory is not enough ({text or kind}); free memory, or choose fewer --jobs or smaller batches."
    if isinstance(error, OSError):
        paths = " -> ".join(str(path) for path in (error.filename, error.filename2) if path is not None)
        what = f"{paths}: {error.strerror}" if paths else text or kind
        advice = next((advice for advice, numbers in ADVICE.items() if error.errno in numbers), "correct that")
        return f"{what}; {advice}, and run the same command again."
    # h5py raises Python's own classes: the module of the code decides.
    names += [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    foreseen = isinstance(error, UnicodeError | ImportError) or text == "can't start new thread"
    if foreseen or any(map(REFUSING.match, names[:-1])) or names[-1].startswith("h5py"):
        return f"{kind}: {text[:600]}; correct that, and run the same command again."
    return None


def _defect(error: BaseException) -> str:
    """One sentence for an error of this program; its traceback goes into a file."""
    try:
        number, path = tempfile.mkstemp(".log", "traceback-")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(traceback.format_exception(error))
        where = f"its traceback is in {path}"
    except OSError as failed:
        where = f"its traceback could not be written ({failed.strerror or failed})"
    text = " ".join(str(error).split())[:600]
    return f"{type(error).__name__}: {text}; this is a defect of the program, please report it; {where}."


def origin(error: BaseException) -> str:
    """Where an error and those that led to it come from: file, line and function of each, the latest first."""
    places: list[str] = []
    cause: BaseException | None = error
    while cause:
        last = traceback.extract_tb(cause.__traceback__)[-1:]
        places += [f"in {each.name}, {each.filename} line {each.lineno} ({type(cause).__name__})" for each in last]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return ", after one ".join(places) or "nowhere"


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """The entry point of every command: runs it and exits, with at most one sentence and no traceback, whatever happened.

    The status is 0 or what ``main`` returns; 2 for what a user can correct; 1 for a defect, with the traceback in a file
    that the sentence names; 130 after Ctrl-C and 143 after SIGTERM, which is raised as Ctrl-C is: libraries clean up.
    """
    terminated = []

    def terminate(number: int, frame: Any) -> NoReturn:
        terminated.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    OUTPUT.held = ""
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as ``interrupts`` and kernel.py leave it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        guard_process()
        status = main()
        if OUTPUT.held:
            print_line(OUTPUT.held, "summary")
    except SystemExit:
        raise
    except BaseException as error:
        logging.disable()  # what libraries say as they clean up is not the reason
        warnings.simplefilter("ignore")
        cause: BaseException | None = error
        while cause and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause:
            _complain("stopped")
            status = 143 if terminated else 130
        else:
            if OUTPUT.verbosity > 0:
                log(f"raised {origin(error)}")
            sentence = refusal(error)
            _complain(f"error: {sentence or _defect(error)}", "error")
            status = 2 if sentence else 1
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)


# ===========================================================================================================================
# inference/files.py
# ===========================================================================================================================

"""Writing files as a whole or not at all, their SHA-256, and links.

Every module writes through ``replacing``, so that a reader never gets half a file; what cannot be written is an InputError.
Wherever folders are searched, a linked file or folder is what it points to; a link that leads nowhere is an error.
"""

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


# ===========================================================================================================================
# inference/options.py
# ===========================================================================================================================

"""Types of command-line options: what no command can use is refused before anything is read, naming option, value and range.

A number is written in decimal digits only; ``int`` and ``float`` also take " 5 ", "1_000", "nan" and digits of any script.
"""

#: Of counts without a limit of their own: what a 32-bit integer holds.
MOST = 2**31 - 1
WHOLE_NUMBER = r"[+-]?[0-9]{1,30}"
DECIMAL_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"


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


def positive_number(high: float) -> Number:
    """A number above zero."""
    return Number(0, high, above=True)


#: Crops that are in memory at a time.
crop_count = count(1, 65_536)


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


existing_folder = PathType("folder", exists=True)
output_file = PathType("file", exists=False)


def refuse_same_file(outputs: Mapping[str, Path | None]) -> None:
    """Raises InputError where two of the files that a command writes, by what names them, are one."""
    known: dict[Path, str] = {}
    for name, path in outputs.items():
        other = known.setdefault(path.resolve(), name) if path else name
        if other != name:
            raise InputError(f"{other} and {name} are both {path}, and one would replace the other; give another path.")


# ===========================================================================================================================
# inference/tables.py
# ===========================================================================================================================

"""One reader for every CSV file: encodings, row lengths, quotes and line numbers by the same rules everywhere.

A file in UTF-8 whose every line has as many cells as its header goes to pandas' fast parser. Any other is read line by line:
the encoding follows the byte order mark; blank lines and lines of commas only are no rows; empty cells beyond the header's
are no cells. What is still wrong is refused, in a sentence with the line that an editor shows. Where the caller counts
repairs it is repaired: a cell that cannot be decoded is empty, a long row is cut, a short one filled with empty cells.
"""

#: Bytes that are scanned at a time.
SCAN_BLOCK = 1 << 24
#: Lines that a quoted cell may span: a quote that is never closed must not swallow the file.
MOST_QUOTED_LINES = 100
#: What stands for a byte that cannot be decoded: a lone surrogate, which no valid text holds.
UNDECODED = "\udcff"
_COMMA, _NEWLINE, _RETURN, _QUOTE = b',\n\r"'
_SEPARATORS = np.isin(np.arange(256), (_COMMA, _NEWLINE))


def _undecoded(error: UnicodeError) -> tuple[str, int]:
    """The error handler of ``codecs``: a byte that cannot be decoded becomes ``UNDECODED``."""
    if isinstance(error, UnicodeDecodeError):
        return UNDECODED, error.end
    raise error


codecs.register_error("undecoded", _undecoded)


@dataclass(frozen=True)
class Reading:
    """How a CSV file is read.

    Args:
        dtype: pandas' ``dtype``: the columns that stay text.
        header: whether the first line names the columns.
        keep_default_na: whether words such as NA are missing values.
        columns: those to read; None for all.
        repairs: counts what was repaired; None refuses it.
    """

    dtype: Any = field(default_factory=dict)
    header: bool = True
    keep_default_na: bool = True
    columns: frozenset[str] | None = None
    repairs: Counter[str] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of ``pandas.read_csv``."""
        wanted = self.columns
        chosen = {"usecols": lambda name: name in wanted} if wanted is not None else {}
        header = {"header": 0 if self.header else None, "keep_default_na": self.keep_default_na}
        return {"dtype": self.dtype, "low_memory": False, "index_col": False} | header | chosen


class Record(NamedTuple):
    """A row as it stands in the file: its first line, its cells, and whether a quote in it is never closed."""

    line: int
    cells: list[str]
    open_quote: bool = False
    cut: bool = False


def read_csv_file(path: Path, reading: Reading) -> pd.DataFrame:
    """The whole file.

    Raises:
        InputError: the file is missing or empty; without ``reading.repairs``, a row, cell or column is wrong.
    """
    return next(csv_chunks(path, reading, None))


def csv_chunks(path: Path, reading: Reading, rows: int | None) -> Iterator[pd.DataFrame]:
    """The file, at most ``rows`` rows at a time; errors as in ``read_csv_file``."""
    try:
        encoding = encoding_of(path)
        header = _header_of(path, encoding, reading)
        if _is_regular(path, encoding, len(header)):
            frames = pd.read_csv(path, encoding=encoding, chunksize=rows, **reading.options)
            yield from [frames] if rows is None else frames
        else:
            yield from _repaired_chunks(path, header, reading, rows)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        refuse_dangling(path)
        raise InputError(f"{path.name} is not in {path.parent}; give the folder that holds it.") from error
    except pd.errors.ParserError as error:
        raise InputError(f"{path} cannot be read as CSV ({str(error).strip().splitlines()[0]}); fetch it again.") from error


def encoding_of(path: Path) -> str:
    """The encoding by the byte order mark; UTF-8 without one."""
    with path.open("rb") as file:
        start = file.read(3)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig" if start == codecs.BOM_UTF8 else "utf-8"


def _header_of(path: Path, encoding: str, reading: Reading) -> list[str]:
    """The names of the columns; their numbers where the file has no header.

    Raises:
        InputError: the file is empty; without repairs, a name occurs twice or cannot be decoded.
    """
    with path.open(encoding=encoding, errors="undecoded", newline="") as file:
        first = next(_records(file, None), None)
    names = _without_empty_end(first.cells) if first else []
    if not first or not names:
        raise InputError(f"{path} cannot be read as CSV ({'its first line' if first else 'it'} is empty); fetch it again.")
    if not reading.header:
        return [str(number) for number in range(len(names))]
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if reading.repairs is not None:
        _count(reading.repairs, "duplicated_columns", len(twice))
    elif twice or first.open_quote or any(UNDECODED in name for name in names):
        wrong = f"has column {twice[0]!r} twice; keep one" if twice else "cannot be read as CSV; fetch it again"
        raise InputError(f"{path} line {first.line} {wrong}.")
    return [name.replace(UNDECODED, "\N{REPLACEMENT CHARACTER}") for name in names]


def _is_regular(path: Path, encoding: str, columns: int | None = None) -> bool:
    """Whether pandas' parser reads the file by the rules of this module; with ``columns``, if given, in every line."""
    if encoding == "utf-16":
        return False
    width, rest = columns, b""
    with path.open("rb") as file:
        file.seek(len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0)
        while block := file.read(SCAN_BLOCK):
            block = rest + block
            end = block.rfind(b"\n") + 1
            for _ in range(MOST_QUOTED_LINES):
                if block.count(b'"', 0, end) % 2 == 0:
                    break
                end = block.rfind(b"\n", 0, end - 1) + 1  # the last newline is in a cell
            if end == 0 and len(block) > 2 * SCAN_BLOCK:
                return False
            width, rest = _width_of(block[:end], width), block[end:]
            if width == 0:
                return False
    return _width_of(rest + b"\n" if rest else b"", width) != 0


def _width_of(block: bytes, width: int | None) -> int | None:
    """How many cells each line of ``block`` has; ``width`` where there is no line, 0 where they differ from it.

    Args:
        block: whole lines.
        width: of the lines before; None if there are none.
    """
    if b"\0" in block or block.count(b"\r") != block.count(b"\r\n"):
        return 0
    try:
        block.isascii() or block.decode("utf-8")
    except UnicodeDecodeError:
        return 0
    content = np.frombuffer(block, np.uint8)
    places = np.flatnonzero(_SEPARATORS[content])
    quotes = np.flatnonzero(content == _QUOTE) if b'"' in block else places[:0]
    if len(quotes):
        if len(quotes) % 2:
            return 0
        opening, closing = quotes[::2], quotes[1::2]
        plain = np.isin(content[opening - 1], (_COMMA, _NEWLINE, _QUOTE))
        plain &= np.isin(content[closing + 1], (_COMMA, _NEWLINE, _RETURN, _QUOTE))
        if not plain.all():
            return 0
        size = len(places) + 1
        edges = np.bincount(places.searchsorted(opening), minlength=size)
        edges -= np.bincount(places.searchsorted(closing), minlength=size)
        places = places[np.cumsum(edges)[:-1] == 0]
    at = np.flatnonzero(content[places] == _NEWLINE)
    cells, ends = np.diff(at, prepend=-1), places[at]
    length = np.diff(ends, prepend=-1) - 1 - (content[ends - 1] == _RETURN)
    cells, length = cells[length > 0], length[length > 0]
    if len(cells) == 0:
        return width
    width = int(cells[0]) if width is None else width
    # A line of commas only is shorter than it has cells.
    return width if (cells == width).all() and (length >= width).all() else 0


def _repaired_chunks(path: Path, header: list[str], reading: Reading, rows: int | None) -> Iterator[pd.DataFrame]:
    """The file by way of its rows, written anew as a regular CSV file: types are inferred as in any other."""
    records, first = _rows(path, encoding_of(path), reading), True
    while True:
        text = io.StringIO()
        writer = csv.writer(text)  # its default line end, "\r\n", makes it quote a cell with either
        if reading.header:
            writer.writerow(header)
        count = 0
        for record in records:
            writer.writerow(record.cells)
            count += 1
            if count == rows:
                break
        if count or first:
            text.seek(0)
            yield pd.read_csv(text, **reading.options) if count or reading.header else pd.DataFrame(columns=header)
        first = False
        if count != rows or rows is None:
            return


def _rows(path: Path, encoding: str, reading: Reading) -> Iterator[Record]:
    """The data rows, each as long as the header; raises InputError for a wrong one, or repairs and counts it."""
    with path.open(encoding=encoding, errors="undecoded", newline="") as file:
        first = next(_records(file, None), None)
    if first is None:
        return
    names = _without_empty_end(first.cells)
    with path.open(encoding=encoding, errors="undecoded", newline="") as file:
        records = _records(file, len(names))
        if reading.header:
            next(records)
        for record in records:
            if any(record.cells):
                yield _fitted(path, names, record, reading.repairs)


def _fitted(path: Path, names: list[str], record: Record, repairs: Counter[str] | None) -> Record:
    """A row as long as ``names``, its cells decoded."""
    cells, width = record.cells, len(names)
    if not any(cell.strip() for cell in cells[width:]):
        cells = cells[:width]
    wrong = [number for number, cell in enumerate(cells) if UNDECODED in cell]
    if repairs is None:
        where = f"{path} line {record.line}"
        if record.open_quote:
            raise InputError(f'{where}: a quote (") is never closed; close or remove it, or fetch the file again.')
        if record.cut and len(cells) < width:
            raise InputError(f"{where}: the file ends in the middle of this row; fetch it again.")
        if len(cells) != width:
            raise InputError(f"{where} has {len(cells)} cells, not {width}; correct the line, or fetch it again.")
        if wrong:
            name, byte = names[wrong[0]], cells[wrong[0]].index(UNDECODED) + 1
            raise InputError(
                f"{where}, column {name!r}: character {byte} is not UTF-8; correct it, or save the file as UTF-8."
            )
        return record._replace(cells=cells)
    _count(repairs, "rows_with_open_quote", int(record.open_quote))
    _count(repairs, "rows_too_short", int(len(cells) < width))
    _count(repairs, "rows_too_long", int(len(cells) > width))
    _count(repairs, "cells_not_decoded", len(wrong))
    if record.cut and 1 < len(cells) < width:
        cells = cells[:-1]  # it may be cut, too
    cells = ["" if UNDECODED in cell else cell for cell in cells[:width]]
    return record._replace(cells=cells + [""] * (width - len(cells)))


def _records(file: io.TextIOBase, width: int | None) -> Iterator[Record]:
    """The rows of a file that is opened with ``newline=""``, blank lines left out.

    Args:
        file: its lines.
        width: cells of a row; a quoted cell that spans lines is believed only where it makes a row of so many.
    """
    given_back: deque[tuple[int, str]] = deque()
    lines = enumerate(file, 1)

    def following() -> tuple[int, str] | None:
        return given_back.popleft() if given_back else next(lines, None)

    while (found := following()) is not None:
        number, text = found
        text, cut = text.replace("\0", UNDECODED), not text.endswith(("\n", "\r"))
        if not text.strip():
            continue
        if '"' not in text:
            yield Record(number, text.rstrip("\r\n").split(","), cut=cut)
            continue
        more: list[tuple[int, str]] = []
        cells = _cells_of(text, strict=False)
        while cells == [] and len(more) < MOST_QUOTED_LINES and (found := following()) is not None:
            more.append(found)
            if '"' in found[1]:
                cells = _cells_of(text + "".join(line for _, line in more), strict=True)
        if cells and (not more or width is None or len(_without_empty_end(cells)) <= width <= len(cells)):
            yield Record(number, cells, cut=cut if not more else not more[-1][1].endswith(("\n", "\r")))
            continue
        given_back.extendleft(reversed(more))
        cells = [cell.strip('"') for cell in text.rstrip("\r\n").split(",")]
        if width is not None and len(cells) != width:
            with contextlib.suppress(csv.Error):  # a cell of more than 131,072 characters
                cells = next(csv.reader([text.rstrip("\r\n")]))
        yield Record(number, cells, open_quote=True, cut=cut)


def _cells_of(text: str, *, strict: bool) -> list[str] | None:
    """The cells of a row; none where a quote is not closed yet, None where more lines cannot make it a row.

    Args:
        text: its lines.
        strict: refuse text between a closing quote and the next comma.
    """
    end = "\x01"
    try:
        *cells, last = next(csv.reader([text.rstrip("\r\n") + "," + end], strict=strict))
    except csv.Error as error:
        return [] if "unexpected end" in str(error) else None
    return cells if last == end else []


def _without_empty_end(cells: list[str]) -> list[str]:
    """The cells up to the last that is not blank."""
    end = len(cells)
    while end and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def _count(repairs: Counter[str], name: str, count: int) -> None:
    """Adds to a count; one that is zero stays absent."""
    if count:
        repairs[name] += count


def id_mismatch(left_name: str, left: Iterable[str], right_name: str, right: Iterable[str]) -> str:
    """How the ids of two tables differ: both counts, and three ids of each side; the first half of an error sentence.

    The ids shown are those that the other side lacks, where there are any: most often the two differ in their form.
    """
    sides = {left_name: list(dict.fromkeys(left)), right_name: list(dict.fromkeys(right))}
    parts = []
    for (name, ids), (other, others) in zip(sides.items(), reversed(sides.items()), strict=True):
        there = set(others)
        lacking = [isic_id for isic_id in ids if isic_id not in there]
        shown = ", ".join(map(str, (lacking or ids)[:3])) or "none"
        parts.append(f"{len(lacking):,} of the {len(ids):,} ids of {name} ({shown}) are not in {other}")
    return " and ".join(parts)


# ===========================================================================================================================
# inference/schema.py
# ===========================================================================================================================

"""The columns of the competition's files: names, kinds, units, and which exist only in train.

The order is the one in which the competition ships them. ``TRAIN_ONLY`` columns hold the diagnosis or come from it
(``lesion_id`` alone marks every malignant lesion and 5 % of the benign ones), so no feature may be made of them.
"""


@dataclass(frozen=True)
class Column:
    """One column: ``kind`` is "id", "label", "number" or "category"; ``unit`` is "" where there is none."""

    name: str
    kind: str
    unit: str = ""
    train_only: bool = False


ID = "isic_id"
PATIENT = "patient_id"
TARGET = "target"
HOSPITAL = "attribution"
#: What a missing category is called in the feature table. CatBoost takes no NaN in a categorical column.
MISSING = "missing"

COLUMNS = (
    Column(ID, "id"),
    Column(TARGET, "label", train_only=True),
    Column(PATIENT, "id"),
    Column("age_approx", "number", "years, multiples of 5"),
    Column("sex", "category"),
    Column("anatom_site_general", "category"),
    Column("clin_size_long_diam_mm", "number", "mm"),
    Column("image_type", "category"),
    Column("tbp_tile_type", "category"),
    Column("tbp_lv_A", "number", "CIELAB a* inside the lesion"),
    Column("tbp_lv_Aext", "number", "CIELAB a* of the skin around it"),
    Column("tbp_lv_B", "number", "CIELAB b* inside"),
    Column("tbp_lv_Bext", "number", "CIELAB b* outside"),
    Column("tbp_lv_C", "number", "chroma inside, sqrt(A^2 + B^2)"),
    Column("tbp_lv_Cext", "number", "chroma outside"),
    Column("tbp_lv_H", "number", "hue inside, atan2(B, A) in degrees"),
    Column("tbp_lv_Hext", "number", "hue outside, degrees"),
    Column("tbp_lv_L", "number", "CIELAB L* inside"),
    Column("tbp_lv_Lext", "number", "CIELAB L* outside"),
    Column("tbp_lv_areaMM2", "number", "mm^2"),
    Column("tbp_lv_area_perim_ratio", "number", "perimeter^2 / area"),
    Column("tbp_lv_color_std_mean", "number", "CIELAB"),
    Column("tbp_lv_deltaA", "number", "A - Aext"),
    Column("tbp_lv_deltaB", "number", "B - Bext"),
    Column("tbp_lv_deltaL", "number", "L - Lext"),
    Column("tbp_lv_deltaLB", "number", "CIELAB contrast"),
    Column("tbp_lv_deltaLBnorm", "number", "CIELAB contrast"),
    Column("tbp_lv_eccentricity", "number", "0 to 1"),
    Column("tbp_lv_location", "category"),
    Column("tbp_lv_location_simple", "category"),
    Column("tbp_lv_minorAxisMM", "number", "mm"),
    Column("tbp_lv_nevi_confidence", "number", "0 to 100"),
    Column("tbp_lv_norm_border", "number", "0 to 10"),
    Column("tbp_lv_norm_color", "number", "0 to 10"),
    Column("tbp_lv_perimeterMM", "number", "mm"),
    Column("tbp_lv_radial_color_std_max", "number", "CIELAB"),
    Column("tbp_lv_stdL", "number", "CIELAB"),
    Column("tbp_lv_stdLExt", "number", "CIELAB"),
    Column("tbp_lv_symm_2axis", "number", "0 to 1"),
    Column("tbp_lv_symm_2axis_angle", "number", "degrees, multiples of 5"),
    Column("tbp_lv_x", "number", "mm in body coordinates"),
    Column("tbp_lv_y", "number", "mm in body coordinates"),
    Column("tbp_lv_z", "number", "mm in body coordinates"),
    Column(HOSPITAL, "category"),
    Column("copyright_license", "category"),
    Column("lesion_id", "id", train_only=True),
    Column("iddx_full", "category", train_only=True),
    Column("iddx_1", "category", train_only=True),
    Column("iddx_2", "category", train_only=True),
    Column("iddx_3", "category", train_only=True),
    Column("iddx_4", "category", train_only=True),
    Column("iddx_5", "category", train_only=True),
    Column("mel_mitotic_index", "category", train_only=True),
    Column("mel_thick_mm", "number", "mm", train_only=True),
    Column("tbp_lv_dnn_lesion_confidence", "number", "0 to 100", train_only=True),
)
TEST_COLUMNS = tuple(column.name for column in COLUMNS if not column.train_only)
NUMBERS = tuple(column.name for column in COLUMNS if column.kind == "number" and not column.train_only)
CATEGORIES = tuple(column.name for column in COLUMNS if column.kind == "category" and not column.train_only)
#: Columns that are read as text: 007 is not 7.
TEXT_COLUMNS = {column.name: "str" for column in COLUMNS if column.kind in ("id", "category")}


def read_metadata_leniently(path: Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """Reads test metadata for the kernel, which must score every file: as ``repaired`` gives it.

    Raises:
        InputError: the file is missing, is no CSV, or has no isic_id column.
    """
    counts: Counter[str] = Counter()
    frame, repairs = repaired(read_csv_file(path, Reading(TEXT_COLUMNS, repairs=counts)), path.name)
    return frame, dict(counts) | repairs


def repaired(frame: pd.DataFrame, file_name: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Test metadata, repaired where it cannot be used as it is, and the repairs counted.

    A cell that is no number becomes missing, a lesion without a patient_id becomes its own patient, of a duplicated isic_id
    the first row stays, a row without an isic_id is left out.

    Args:
        frame: ids and categories as text, numbers in whatever type.
        file_name: where it is from, for an error.

    Returns:
        The rows, as ``read_metadata`` gives them, with every column of ``TEST_COLUMNS`` (missing ones all empty), and
        how often each repair was made, by name; repairs that were not needed are absent.

    Raises:
        InputError: there is no isic_id column.
    """
    if ID not in frame:
        raise InputError(f"{file_name} has no column {ID!r}; its columns are {_listed(frame.columns)}.")
    repairs = {"columns_missing": sum(name not in frame for name in TEST_COLUMNS)}
    frame = frame.reindex(columns=list(TEST_COLUMNS))
    keep = frame[ID].notna()
    repairs["rows_without_isic_id"] = int((~keep).sum())
    duplicated = keep & frame[ID].duplicated()
    repairs["duplicated_isic_id"] = int(duplicated.sum())
    frame = frame[keep & ~duplicated].reset_index(drop=True)
    alone = frame[PATIENT].isna()
    repairs["rows_without_patient_id"] = int(alone.sum())
    frame[PATIENT] = frame[PATIENT].astype(object).where(~alone, "alone:" + frame[ID].astype(str))
    cells = 0
    for name in NUMBERS:
        numbers = pd.to_numeric(frame[name], errors="coerce").astype("float64")
        numbers = numbers.where(np.isfinite(numbers))
        cells += int((numbers.isna() & frame[name].notna()).sum())
        frame[name] = numbers
    repairs["cells_not_numeric"] = cells
    return frame, {name: count for name, count in repairs.items() if count}


def _listed(names: Iterable[str], at_most: int = 5) -> str:
    """The first few names in quotes, for an error sentence."""
    names = [repr(str(name)) for name in names]
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")


# ===========================================================================================================================
# inference/features.py
# ===========================================================================================================================

"""Metadata rows -> feature table: each lesion by itself, then relative to the patient's others (the "ugly duckling" sign).

Training and the kernel call the same ``build_features``. A lesion's features depend on the rows of its own patient only,
so they are the same whether the patient comes alone or among a thousand others.
"""

#: Categories that help: ``image_type`` is constant and ``copyright_license`` is a function of the hospital.
MODEL_CATEGORIES = tuple(name for name in CATEGORIES if name not in ("image_type", "copyright_license"))

#: Name -> (columns, formula). Sources: the public notebooks of the competition and its prize winners; columns that only
#: repeat another one (C, H, area_perim_ratio and the deltas are functions of others already) are left out.
ENGINEERED: dict[str, tuple[tuple[str, ...], Callable[..., np.ndarray]]] = {
    "size_ratio": (("tbp_lv_minorAxisMM", "clin_size_long_diam_mm"), lambda minor, size: minor / size),
    "hue_contrast": (("tbp_lv_H", "tbp_lv_Hext"), lambda h, h_ext: h - h_ext),
    "color_difference": (
        ("tbp_lv_deltaA", "tbp_lv_deltaB", "tbp_lv_deltaL"),
        lambda d_a, d_b, d_l: np.sqrt(d_a**2 + d_b**2 + d_l**2),
    ),
    "border_complexity": (("tbp_lv_norm_border", "tbp_lv_symm_2axis"), lambda border, symm: border + symm),
    "color_uniformity": (
        ("tbp_lv_color_std_mean", "tbp_lv_radial_color_std_max"),
        lambda mean, radial: mean / (radial + 1e-5),
    ),
    "position_distance": (("tbp_lv_x", "tbp_lv_y", "tbp_lv_z"), lambda x, y, z: np.sqrt(x**2 + y**2 + z**2)),
    "perimeter_to_area": (("tbp_lv_perimeterMM", "tbp_lv_areaMM2"), lambda perimeter, area: perimeter / area),
    "visibility": (("tbp_lv_deltaLBnorm", "tbp_lv_norm_color"), lambda contrast, color: contrast + color),
    "symmetry_border": (("tbp_lv_symm_2axis", "tbp_lv_norm_border"), lambda symm, border: symm * border),
    "color_consistency": (("tbp_lv_stdL", "tbp_lv_Lext"), lambda std, l_ext: std / l_ext),
    "size_age": (("clin_size_long_diam_mm", "age_approx"), lambda size, age: size * age),
    "hue_color_std": (("tbp_lv_H", "tbp_lv_color_std_mean"), lambda h, std: h * std),
    "severity": (
        ("tbp_lv_norm_border", "tbp_lv_norm_color", "tbp_lv_eccentricity"),
        lambda border, color, ecc: (border + color + ecc) / 3,
    ),
    "color_contrast_index": (
        ("tbp_lv_deltaA", "tbp_lv_deltaB", "tbp_lv_deltaL", "tbp_lv_deltaLBnorm"),
        lambda d_a, d_b, d_l, norm: d_a + d_b + d_l + norm,
    ),
    "size_for_age": (("clin_size_long_diam_mm", "age_approx"), lambda size, age: size / age),
    "orientation": (("tbp_lv_y", "tbp_lv_x"), lambda y, x: np.arctan2(y, x)),
    "color_variance_ratio": (("tbp_lv_color_std_mean", "tbp_lv_stdLExt"), lambda std, std_ext: std / std_ext),
    "border_color": (("tbp_lv_norm_border", "tbp_lv_norm_color"), lambda border, color: border * color),
    "size_contrast_ratio": (("clin_size_long_diam_mm", "tbp_lv_deltaLBnorm"), lambda size, norm: size / norm),
    "nevi_confidence_for_age": (("tbp_lv_nevi_confidence", "age_approx"), lambda nevi, age: nevi / age),
    "color_asymmetry": (("tbp_lv_radial_color_std_max", "tbp_lv_symm_2axis"), lambda radial, symm: radial * symm),
    "color_range": (
        ("tbp_lv_deltaL", "tbp_lv_deltaA", "tbp_lv_deltaB"),
        lambda d_l, d_a, d_b: np.abs(d_l) + np.abs(d_a) + np.abs(d_b),
    ),
    "shape_color": (("tbp_lv_eccentricity", "tbp_lv_color_std_mean"), lambda ecc, std: ecc * std),
}

#: Columns that are compared with the patient's other lesions: hue, colour, contrast, size and border, those by which the
#: organisers' paper and the prize winners found the ugly duckling.
CONTEXT = (
    "tbp_lv_H",
    "tbp_lv_Hext",
    "tbp_lv_L",
    "tbp_lv_A",
    "tbp_lv_B",
    "tbp_lv_deltaB",
    "tbp_lv_deltaLBnorm",
    "tbp_lv_stdL",
    "tbp_lv_color_std_mean",
    "tbp_lv_norm_color",
    "tbp_lv_norm_border",
    "tbp_lv_nevi_confidence",
    "clin_size_long_diam_mm",
    "tbp_lv_areaMM2",
    "tbp_lv_minorAxisMM",
    "tbp_lv_perimeterMM",
    "hue_contrast",
    "color_difference",
)
#: The space of the outlier score: of CONTEXT, those that do not repeat each other (area and perimeter follow from the two
#: diameters) and that are measured, not estimated by a network.
OUTLIER_SPACE = (
    "tbp_lv_H",
    "tbp_lv_L",
    "tbp_lv_A",
    "tbp_lv_B",
    "tbp_lv_deltaB",
    "tbp_lv_deltaLBnorm",
    "tbp_lv_stdL",
    "tbp_lv_color_std_mean",
    "tbp_lv_norm_border",
    "clin_size_long_diam_mm",
    "tbp_lv_minorAxisMM",
    "hue_contrast",
)
#: Groups of fewer lesions have no context features: they are no norm to differ from.
SMALLEST_NORM = 20
SITE = "anatom_site_general"
#: Neighbours that a lesion's distance is averaged over, as in the competition winner's local outlier factor.
NEIGHBOURS = 30
#: How many of the patient's lesions have all scores.
SCORED_LESIONS = "scored_lesions"
#: Squared distances computed at once (9,000 lesions of one patient have 81 million). OpenBLAS computes a product of so few,
#: over a dozen columns, in one thread; with more, its threads wait for each other at each of the thousand patients: five
#: times the processor time on two busy cores.
CELLS = 1 << 14
#: A squared distance below this share of the squared length is float32's rounding of two equal lesions.
ROUNDING = 4e-6


def build_features(metadata: pd.DataFrame) -> pd.DataFrame:
    """The feature table of every lesion.

    Args:
        metadata: rows as ``read_metadata`` gives them, or some of their columns. Those that only train has are not used.

    Returns:
        One row per lesion, same order and index. Numbers are float32 (NaN where unknown), categories str (``MISSING``
        where unknown). Features whose columns are absent from ``metadata`` are absent; without patient_id, those that
        compare with the patient's other lesions.
    """
    numbers = {name: metadata[name].to_numpy("float64") for name in NUMBERS if name in metadata}
    numbers |= engineered_features(numbers)
    features = numbers | (context_features(numbers, metadata) if PATIENT in metadata else {})
    table = pd.DataFrame({name: finite_float32(values) for name, values in features.items()}, index=metadata.index)
    for name in MODEL_CATEGORIES:
        if name in metadata:
            table[name] = metadata[name].astype(object).fillna(MISSING).astype(str)
    return table


def engineered_features(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The formulas of ``ENGINEERED`` whose columns exist; infinite where a divisor is zero, which becomes NaN later."""
    with np.errstate(all="ignore"):
        return {
            name: formula(*(numbers[column] for column in columns))
            for name, (columns, formula) in ENGINEERED.items()
            if all(column in numbers for column in columns)
        }


def context_features(numbers: dict[str, np.ndarray], metadata: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each lesion relative to the patient's others: standard scores per patient and body site; percentile ranks and an
    outlier score per patient.

    In a group of fewer than ``SMALLEST_NORM`` lesions every standard score is 0, every rank 0.5, every outlier score 1.
    """
    patient = group_codes(metadata[PATIENT])
    groups = {"patient": patient}
    if SITE in metadata:
        groups["site"] = group_codes(metadata[PATIENT].astype(str) + "\t" + metadata[SITE].astype(str))
    names = [name for name in CONTEXT if name in numbers]
    features: dict[str, np.ndarray] = {f"{group}_lesions": group_sizes(codes) for group, codes in groups.items()}
    if not names:
        return features
    values = np.column_stack([numbers[name] for name in names])
    values[~np.isfinite(values)] = np.nan
    for group, codes in groups.items():
        large = features[f"{group}_lesions"][:, None] >= SMALLEST_NORM
        scores = np.where(large, standard_scores(values, codes), 0.0)
        features |= {f"{name}_z_{group}": scores[:, i] for i, name in enumerate(names)}
    ranks = percentile_ranks(values, patient, SMALLEST_NORM)
    features |= {f"{name}_rank_patient": ranks[:, i] for i, name in enumerate(names)}
    if all(name in names for name in OUTLIER_SPACE):
        points = np.column_stack([features[f"{name}_z_patient"] for name in OUTLIER_SPACE])
        features["outlier_patient"] = outlier_scores(points, patient, SMALLEST_NORM)
    return features


def logit_features(logits: pd.DataFrame, patients: pd.Series | None = None) -> pd.DataFrame:
    """The features of the last stage: each stage's logits, and those relative to the patient's other lesions.

    All winners put image scores back into trees. The quotient of the score by the patient's mean, which the first of them
    used, is not here: it divides by a number near zero.

    Args:
        logits: the tabular logits and then a column for each network, float64; NaN where no network scored the lesion.
        patients: of the same rows, shape (rows,); None where they are unknown: every lesion is then compared with none.

    Returns:
        float32, index of ``logits``; NaN where a logit is. For each column ``NAME_logit``, ``NAME_z_patient`` (standard
        score within the patient, 0 where the patient's scores do not vary or there is one) and ``NAME_rank_patient``
        (percentile rank, 0.5 for one alone). For each network the same of its correction of the tabular logit, and
        ``NAME_context``, of ``context_logits``. ``SCORED_LESIONS``.
    """
    codes = patient_codes(len(logits), patients)
    tabular, *networks = (logits[name].to_numpy("float64") for name in logits)
    features = {SCORED_LESIONS: np.bincount(codes, logits.notna().all(axis=1))[codes]}
    for name, network in zip(logits.columns[1:], networks, strict=True):
        features[f"{name}_context"] = context_logits(network, tabular, codes)
    columns = {logits.columns[0]: tabular} | dict(zip(logits.columns[1:], networks, strict=True))
    columns |= {f"{name}_correction": columns[name] - tabular for name in logits.columns[1:]}
    values = np.column_stack(list(columns.values()))
    scores, ranks = standard_scores(values, codes), percentile_ranks(values, codes)
    for i, name in enumerate(columns):
        features |= {f"{name}_logit": values[:, i], f"{name}_z_patient": scores[:, i], f"{name}_rank_patient": ranks[:, i]}
    return pd.DataFrame({name: finite_float32(column) for name, column in features.items()}, index=logits.index)


def context_logits(network: np.ndarray, tabular: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Network logits less the mean correction of the patient's lesions: what the network finds beyond the patient's style.

    Args:
        network: logits of shape (rows,); NaN where no network scored the lesion.
        tabular: tabular logits of shape (rows,).
        codes: of ``patient_codes``.
    """
    return network - _group_means((network - tabular)[:, None], codes)[:, 0]


def patient_codes(rows: int, patients: pd.Series | None) -> np.ndarray:
    """``group_codes`` of the patients; each row a patient of its own where they are unknown."""
    return np.arange(rows) if patients is None else group_codes(patients)


def finite_float32(values: np.ndarray) -> np.ndarray:
    """float32 with NaN for whatever is not finite there."""
    with np.errstate(over="ignore"):
        values = values.astype("float32")
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def group_codes(keys: pd.Series) -> np.ndarray:
    """Integer codes 0..groups-1, one per row, in order of first appearance."""
    return pd.factorize(keys)[0]


def group_sizes(codes: np.ndarray) -> np.ndarray:
    """How many rows share each row's group, shape (rows,), float64."""
    return np.bincount(codes)[codes].astype("float64")


def standard_scores(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(value - group mean) / group standard deviation of each column.

    Args:
        values: shape (rows, columns), float64; what is not finite is unknown and becomes NaN.
        codes: shape (rows,), the group of each row.

    Returns:
        Shape (rows, columns). 0 where the group does not vary (one lesion, or all alike).
    """
    known = np.isfinite(values)
    mean = _group_means(np.where(known, values, np.nan), codes)
    centred = np.where(known, values - mean, np.nan)
    # Two passes keep the variance exact where it is small beside the mean.
    with np.errstate(over="ignore"):  # of absurdly large numbers; their scores are 0
        deviation = np.sqrt(_group_means(centred**2, codes))
    scale = np.abs(mean) * 1e-9 + 1e-9
    return np.where(known, np.where(deviation > scale, centred / np.maximum(deviation, scale), 0.0), np.nan)


def _group_means(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The mean of each row's group, column by column, NaN not counted; shape of ``values``."""
    return pd.DataFrame(values).groupby(codes, sort=False).transform("mean").to_numpy()


def percentile_ranks(values: np.ndarray, codes: np.ndarray, smallest: int = 1) -> np.ndarray:
    """(rank - 0.5) / known values of the group, ties sharing their mean rank: 0.5 for a lesion alone.

    Args:
        values: shape (rows, columns), float64; what is not finite is unknown, is not counted, and becomes NaN.
        codes: shape (rows,), the group of each row.
        smallest: in groups of fewer rows every rank is 0.5.

    Returns:
        Shape (rows, columns), float64.
    """
    ranks = np.full(values.shape, 0.5)
    for rows in groups_of(codes, smallest):
        known = np.isfinite(values[rows])
        # Unknown values as infinity rank behind all known ones and change none of their ranks.
        places = rankdata(np.where(known, values[rows], np.inf), axis=0)
        ranks[rows] = np.where(known, (places - 0.5) / np.maximum(known.sum(axis=0), 1), np.nan)
    return ranks


def groups_of(codes: np.ndarray, smallest: int) -> Iterator[np.ndarray]:
    """The positions of each group's rows, for the groups of at least ``smallest``.

    Group by group, the time grows linearly with the rows; sorting all rows at once grows faster.
    """
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    ends = np.cumsum(sizes)
    for group in np.flatnonzero(sizes >= max(smallest, 1)):
        yield order[ends[group] - sizes[group] : ends[group]]


def outlier_scores(points: np.ndarray, codes: np.ndarray, smallest: int) -> np.ndarray:
    """A lesion's mean distance to its nearest others of the group, divided by the group's median of that.

    The mean distance to the k nearest is the outlier weight of Angiulli and Pizzuti (2002, Fast outlier detection in high
    dimensional spaces). Unlike the local outlier factor it makes no choice among neighbours at equal distance: it does not
    depend on the order of rows, and equal lesions cause no division by zero.

    Args:
        points: shape (rows, columns), standard scores within the group; what is not finite counts as the group's mean, 0.
        codes: shape (rows,), the group of each row.
        smallest: groups of fewer rows get 1.

    Returns:
        Shape (rows,), float64, at least 0: around 1 for an ordinary lesion, more for an outlier. 1 in a group that is too
        small, and in one whose median distance is 0.
    """
    points = np.where(np.isfinite(points), points, 0.0).astype("float32")
    # float32 saves 40 % of the time and changes a score by some 3e-7. One workspace for all: allocating memory for each
    # block takes longer than the sums in it.
    space = np.empty(max(CELLS, np.bincount(codes).max(initial=0)), "float32")
    scores = np.ones(len(codes))
    for rows in groups_of(codes, max(smallest, 2)):
        distances = neighbour_distances(points[rows], space)
        median = np.median(distances)
        if median > 0:
            scores[rows] = distances / median
    return scores


def neighbour_distances(points: np.ndarray, space: np.ndarray) -> np.ndarray:
    """Mean Euclidean distance of each point to its ``NEIGHBOURS`` nearest others, or to all when there are fewer.

    Args:
        points: shape (rows, columns), float32, finite, at least two rows.
        space: workspace, at least ``rows`` float32; more of it makes larger blocks.

    Returns:
        Shape (rows,), float64.
    """
    count = len(points)
    nearest = min(NEIGHBOURS, count - 1)
    lengths = np.einsum("ij,ij->i", points, points)
    doubled = np.ascontiguousarray(-2 * points.T)
    means = np.empty(count)
    step = len(space) // count
    for start in range(0, count, step):
        block = np.arange(start, min(start + step, count))
        squares = space[: len(block) * count].reshape(len(block), count)
        np.matmul(points[block], doubled, out=squares)  # |a - b|^2 - |a|^2 = |b|^2 - 2 a.b
        squares += lengths
        squares[block - start, block] = np.inf
        squares.partition(nearest - 1, axis=1)
        near = squares[:, :nearest] + lengths[block, None]
        near[near <= ROUNDING * lengths[block, None]] = 0.0
        means[block] = np.sqrt(near).mean(axis=1, dtype="float64")
    return means


# ===========================================================================================================================
# inference/artifacts.py
# ===========================================================================================================================

"""The artifact folder and its manifest: what training wrote, checked before use.

``manifest.json`` is the folder's index. A file that it does not name, or whose SHA-256 differs, is never opened.

A stage adds its files by one rename of a folder to ``.committed``; then they move out of it, the manifest last
(``scale.artifact_folder``). So a file is looked for in ``.committed`` first, and a reader has the whole old set or the whole
new one, also when the process that moved them was killed.
"""

#: Raised by one whenever a kernel of the older format could not read the newer.
FORMAT = "slice-3d-fusion/4"
MANIFEST = "manifest.json"
#: The sub-folder with those files of a finished stage that are not moved out yet.
COMMITTED = ".committed"

Manifest = dict[str, Any]


def networks_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Name -> section ("weights", "settings", "training", "pauc") of every network, the best out of fold first."""
    return manifest.get("network", {}).get("networks", {})


def load_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder; the files that it names are checked one by one as they are opened.

    Raises:
        InputError: there is none, it is no JSON, or it is of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(_manifest_bytes(folder).decode("utf-8"))
    except FileNotFoundError as error:
        refuse_dangling(path)
        raise InputError(f"{folder} has no {MANIFEST}; run train.tabular into it, or give the artifact folder.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); train or copy the artifacts again.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{path} has format {found!r}, this version reads {FORMAT!r}; train again.")
    return manifest


def _manifest_bytes(folder: Path) -> bytes:
    try:
        return (folder / COMMITTED / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # also when it has just moved out
        return (folder / MANIFEST).read_bytes()


def checked_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The path of an artifact after a check of its SHA-256.

    Raises:
        InputError: the manifest does not name the file, or the file is missing, cannot be read, or differs.
    """
    expected = manifest.get("files", {}).get(name)
    if expected is None or not name or Path(name).name != name:  # the folder is flat: a path would lead out of it
        raise InputError(f"{folder / MANIFEST} does not name {name!r}; only files named there are opened.")
    try:
        hashes = {path: sha256_of(path) for path in (folder / COMMITTED / name, folder / name) if path.is_file()}
    except OSError as error:
        raise InputError(f"{folder / name} cannot be read ({error}); copy the artifacts again.") from error
    for path, actual in hashes.items():
        if actual == expected:
            return path
    if not hashes:
        refuse_dangling(folder / name)
        raise InputError(f"{name} is named in {MANIFEST} and missing in {folder}; copy the whole artifact folder.")
    if load_manifest(folder) != manifest:
        raise InputError(f"{folder} was trained anew while its files were read; run the same command again.")
    raise InputError(
        f"{folder / name} has SHA-256 {actual[:12]}..., {MANIFEST} has {expected[:12]}...; "
        "copy the artifacts again or retrain."
    )


# ===========================================================================================================================
# inference/tabular.py
# ===========================================================================================================================

"""CatBoost fold models -> the tabular logit of each lesion."""

#: A model and its prior correction: the shift of its raw score to logits at the natural prevalence.
FoldModels = list[tuple[CatBoostClassifier, float]]


def load_models(folder: Path, manifest: Manifest, stage: str = "tabular") -> tuple[FoldModels, list[str]]:
    """A stage's fold models.

    Returns:
        The usable models, and one sentence per model that is left out.

    Raises:
        InputError: no model is usable.
    """
    models, complaints = [], []
    for entry in manifest.get(stage, {"models": []})["models"]:
        try:
            model = CatBoostClassifier().load_model(str(checked_file(folder, manifest, entry["file"])))
            models.append((model, float(entry["prior_correction"])))
        except (InputError, CatBoostError) as error:
            complaints.append(f"{stage} model {entry['file']} left out: {error}")
    if not models:
        raise InputError(f"no usable {stage} model in {folder}: {'; '.join(complaints) or 'the manifest names none'}.")
    return models, complaints


def select_features(features: pd.DataFrame, names: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """The model's columns in the model's order; one that the table lacks is unknown for every lesion."""
    absent = {name: MISSING if name in categories else np.float32(np.nan) for name in names if name not in features}
    return features.assign(**absent)[list(names)]


def unseen_values(features: pd.DataFrame, known: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Category column -> number of lesions with a value that training did not have; columns without any are absent."""
    counts = {name: int((~features[name].isin(values)).sum()) for name, values in known.items()}
    return {name: count for name, count in counts.items() if count}


def tabular_logits(
    models: Sequence[tuple[CatBoostClassifier, float]], features: pd.DataFrame, categories: Sequence[str]
) -> np.ndarray:
    """Mean logits over the models.

    Args:
        models: pairs of model and prior correction, as ``load_models`` gives them.
        features: exactly the models' columns, in their order (``select_features``).
        categories: which of the columns are categorical; values unseen in training are allowed.

    Returns:
        Shape (rows,), float64, natural logits.
    """
    if not len(features):
        return np.zeros(0)
    pool = Pool(features, cat_features=list(categories))
    return np.mean([model.predict(pool, prediction_type="RawFormulaVal") + shift for model, shift in models], axis=0)


# ===========================================================================================================================
# inference/images.py
# ===========================================================================================================================

"""HDF5 of JPEG bytes -> decoded, resized batches.

Training and the kernel decode with the same ``decode_crop``. A lesion without a readable image is left out of the batches,
which carry positions: the caller knows which ones were scored.
"""

#: Images that the decoder gets at a time, fewer where they have so many bytes; and how many times as many are read before.
CHUNK, CHUNK_BYTES, AHEAD = 256, 4_000_000, 4
#: An image that claims more pixels, or has more bytes, is broken, or meant to exhaust memory; crops have some 20,000 pixels,
#: photographs 20 million.
MOST_PIXELS, MOST_BYTES = 25_000_000, 100_000_000
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
#: An isic_id that is a name and not a path.
PLAIN_ID = re.compile(r"\w[\w.-]*")


class ImageReader(Protocol):
    """Whatever gives images by isic_id."""

    def read(self, isic_id: str) -> bytes:
        """The JPEG or PNG bytes of one lesion; empty when there are none."""


class ImageStore:
    """JPEG bytes by isic_id, out of the competition's HDF5 file or a folder of ``<isic_id>.jpg``.

    Raises:
        InputError: the file is no HDF5 file, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = None if path.is_dir() else open_hdf5(path)
        except OSError as error:
            raise InputError(f"{path} cannot be opened as HDF5 ({error}); fetch it again.") from error
        self._links = None if self._file is None else self._file.id.links
        self._descriptor = None if self._file is None else descriptor_of(self._file)

    def __contains__(self, isic_id: str) -> bool:
        """Whether the file itself holds an image of this lesion, readable or not."""
        if not PLAIN_ID.fullmatch(isic_id):
            return False
        try:
            if self._links is None:
                return (self.path / f"{isic_id}.jpg").is_file()
            # An external or soft link could point out of the file: only what the file itself holds counts.
            return self._links.get_info(isic_id.encode()).type == h5py.h5l.TYPE_HARD
        except (KeyError, RuntimeError, OSError):  # the last of a name that is too long
            return False

    def places(self, isic_ids: Iterable[str]) -> np.ndarray:
        """Where each lesion's image lies in the file, uint64 of shape (lesions,): reading in that order moves forwards.

        Zeros for a folder, and for a lesion without an image.
        """
        links = self._links
        if links is None:
            return np.zeros(len(list(isic_ids)), dtype="uint64")

        def place(isic_id: str) -> int:
            try:
                return links.get_info(isic_id.encode()).u if PLAIN_ID.fullmatch(isic_id) else 0
            except (KeyError, RuntimeError):
                return 0

        return np.fromiter(map(place, isic_ids), dtype="uint64")  # a damaged link can lead anywhere

    def names(self) -> Iterator[str]:
        """The ids of all images, readable or not."""
        yield from self._file if self._file is not None else (path.stem for path in self.path.glob("*.jpg"))

    def read(self, isic_id: str) -> bytes:
        """The JPEG or PNG bytes of one lesion; empty when there are none, they are neither, or too many."""
        try:
            if isic_id not in self:
                return b""
            if self._file is None:
                path = self.path / f"{isic_id}.jpg"
                return checked(path.read_bytes()) if path.stat().st_size <= MOST_BYTES else b""
            return self._read_dataset(self._file, isic_id)
        except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError, MemoryError, OverflowError):
            return b""

    def _read_dataset(self, file: h5py.File, isic_id: str) -> bytes:
        """The image of a dataset: one string or opaque value, or an array; empty where it lies in another file.

        An image in one piece is read past HDF5, which takes half the time of its own reading.
        """
        dataset = h5py.h5d.open(file.id, isic_id.encode())
        place = dataset.get_offset()  # None unless the bytes lie in one piece in this file
        if place is not None and self._descriptor is not None:
            size = min(dataset.get_storage_size(), MOST_BYTES)
            image = os.pread(self._descriptor, size, place)
            if len(image) == size and checked(image):  # a string of variable length, say, has its address there
                return image.rstrip(b"\0")
        properties = dataset.get_create_plist()
        if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
            return b""
        if math.prod(dataset.shape) * dataset.dtype.itemsize > MOST_BYTES:  # compressed, it may be a small file
            return b""
        content = np.empty(dataset.shape, dataset.dtype)
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, content)
        return checked(bytes(content.item()) if content.dtype.hasobject else content.tobytes().rstrip(b"\0"))

    def close(self) -> None:
        """Closes the HDF5 file; harmless for a folder, and a second time."""
        if self._file is not None:
            self._file.close()


class SteadyImages(ImageStore):
    """Images of a file that may not change: none is given that was read after the file was written to.

    A file that is replaced by another one, or removed, stays readable as it was: it is open.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._state = None if self._descriptor is None else content_state(self._descriptor)

    def read(self, isic_id: str) -> bytes:
        """As of ``ImageStore``; raises InputError where the file was written to."""
        image = super().read(isic_id)
        if self._descriptor is not None and content_state(self._descriptor) != self._state:
            raise InputError(f"{self.path} was changed while its images were read")
        return image


def descriptor_of(file: h5py.File) -> int | None:
    """The number of the open file, to read from it directly; None where HDF5 gives none."""
    try:
        return file.id.get_vfd_handle() if hasattr(os, "pread") else None
    except (RuntimeError, ValueError, NotImplementedError):
        return None


def open_hdf5(path: Path) -> h5py.File:
    """The file for reading; where another process holds a lock on it, without a lock: nothing is written here.

    Raises:
        OSError: it is no HDF5 file, or is cut off.
    """
    try:
        return h5py.File(path, "r")
    except OSError:
        return h5py.File(path, "r", locking=False)


def find_images(competition: Path, split: str) -> Path | None:
    """Where a competition folder keeps the images of ``split`` ("train" or "test"): the HDF5 file, else the folder.

    Raises:
        InputError: it is a link that leads nowhere.
    """
    for candidate in (competition / f"{split}-image.hdf5", competition / f"{split}-image" / "image"):
        if refuse_dangling(candidate).exists():
            return candidate
    return None


def checked(image: bytes) -> bytes:
    """The bytes of a JPEG or PNG; empty when they are neither, or claim ``MOST_PIXELS``."""
    return image if 0 < pixels_claimed(image) < MOST_PIXELS else b""


def pixels_claimed(image: bytes) -> int:
    """How many pixels a JPEG or PNG claims, before memory is taken for them; 0 for anything else.

    A JPEG's size is in its frame header, the first marker C0 to CF other than C4, C8 and CC (ITU-T T.81, table B.1).
    """
    if image.startswith(PNG_START):
        return math.prod(struct.unpack(">II", image[16:24])) if len(image) >= 24 else 0
    place = image.find(b"\xff", len(JPEG_START) - 1) if image.startswith(JPEG_START) else -1
    while 0 <= place <= len(image) - 9:
        marker = image[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return math.prod(struct.unpack(">HH", image[place + 5 : place + 9]))
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8  # markers without a length
        # Bytes that start no segment are skipped, as libjpeg does.
        place = image.find(b"\xff", place + 2 + (0 if alone else int.from_bytes(image[place + 2 : place + 4], "big")))
    return 0


def decode_crops(image, sizes: Sequence[int]) -> tuple:
    """One JPEG, or PNG, as a square crop of each size: uint8 tensors of shape (size, size, 3).

    ``INTEGER_ACCURATE`` gives Pillow's pixels exactly (TensorFlow's default differs by up to 3 levels). A pixel of the
    crop is the mean over its area of the image, in a third of the time of a bilinear resize with antialiasing. What cannot
    be decoded raises ``tf.errors.InvalidArgumentError``.
    """
    import tensorflow as tf

    pixels = tf.io.decode_jpeg(image, channels=3, dct_method="INTEGER_ACCURATE")  # it decodes PNG as well
    crops = (tf.image.resize(pixels, (size, size), method=tf.image.ResizeMethod.AREA) for size in sizes)
    return tuple(tf.cast(tf.round(crop), tf.uint8) for crop in crops)


def decode_crop(image, image_size: int):
    """``decode_crops`` of one size: a uint8 tensor of shape (image_size, image_size, 3)."""
    return decode_crops(image, (image_size,))[0]


def image_batches(store: ImageReader, isic_ids: Sequence[str], image_size: int | Sequence[int], batch_size: int):
    """Decoded crops in the order of ``isic_ids``, read and decoded in the background while the network works.

    Args:
        store: of the images.
        isic_ids: the lesions.
        image_size: width and height of the crops, pixels; several sizes give each image, decoded once, in all of them.
        batch_size: crops at a time.

    Returns:
        A ``tf.data.Dataset`` of (positions, crops): int64 of shape (batch,), indices into ``isic_ids``; uint8 of shape
        (batch, image_size, image_size, 3), of several sizes a tuple of these. Lesions whose image is missing or unreadable
        are left out; other errors of the reader are raised.
    """
    import tensorflow as tf

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        positions, images, size = [], [], 0
        for i, isic_id in enumerate(isic_ids, 1):
            if image := store.read(isic_id):
                positions.append(i - 1)
                images.append(image)
                size += len(image)
            if len(images) == CHUNK or size > CHUNK_BYTES or i == len(isic_ids):
                yield np.array(positions, dtype="int64"), np.array(images, dtype=object)
                positions, images, size = [], [], 0

    def decoded(image):
        return decode_crop(image, image_size) if isinstance(image_size, int) else decode_crops(image, image_size)

    def crops_of(positions, images):
        pairs = tf.data.Dataset.from_tensor_slices((positions, images))
        crops = pairs.map(lambda i, image: (i, decoded(image)), 2 * cores(), deterministic=True)
        return crops.ignore_errors()  # of the decoder only: an error of the reader must be raised

    signature = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.string)
    read = tf.data.Dataset.from_generator(chunks, output_signature=signature).prefetch(AHEAD)
    batches = read.flat_map(crops_of).batch(batch_size).prefetch(2)
    # With its tuner, TensorFlow 2.20 can end as late again as the data took.
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ===========================================================================================================================
# inference/backbones.py
# ===========================================================================================================================

"""Backbones: networks from a crop's pixels to its features, built in code, with the preprocessing that their weights expect.

Most are those of ``keras.applications``. The preprocessing that some of them bring along is left out: here each has it in
the layer ``PREPROCESSED``, so that the network is the same with and without ImageNet weights.

``efficientnet-lite0`` to ``-lite2`` are EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6, as in
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Their layers are named by resolution, as
those of ``keras.applications.ResNet50`` are: those of ``conv4`` compute at a sixteenth of the crop's resolution.
"""

RESNET50 = "resnet50"
#: Name -> multipliers of width and depth.
EFFICIENTNET_LITE = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}


class Preprocessing(NamedTuple):
    """``scale`` times the pixels, from 0 to 255, plus ``offset``; both a number, or one of each channel."""

    scale: float | tuple[float, ...]
    offset: float | tuple[float, ...]
    bgr: bool = False


#: The modes of keras.applications.imagenet_utils.
CAFFE = Preprocessing(1.0, (-103.939, -116.779, -123.68), bgr=True)
TF = Preprocessing(1 / 127.5, -1.0)
TORCH = Preprocessing((1 / 58.395, 1 / 57.12, 1 / 57.375), (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225))
LITE = Preprocessing(1 / 128, -127 / 128)
#: Beginnings of layers' names: those that compute at a half of the crop's resolution, a fourth, ... and a 32nd.
Stages = tuple[tuple[str, ...], ...]
CONV_STAGES: Stages = (("conv1",), ("conv2",), ("conv3",), ("conv4",), ("conv5", "post"))
EFFICIENTNET_STAGES: Stages = (
    ("stem", "block1"),
    ("block2",),
    ("block3",),
    ("block4", "block5"),
    ("block6", "block7", "top"),
)
CONVNEXT_STAGES: Stages = (
    (),
    ("convnext_tiny_stem", "convnext_tiny_stage_0"),
    *((f"convnext_tiny_downsampling_block_{level}", f"convnext_tiny_stage_{level + 1}") for level in range(3)),
)


class Application(NamedTuple):
    """A backbone of ``keras.applications``.

    Args:
        function: there.
        name: by which it names files of ImageNet weights.
        preprocessing: that the weights expect.
        stages: of its layers.
        options: of the function, so that it brings no preprocessing along.
        first: the layer behind the preprocessing, where no option leaves that out.
    """

    function: str
    name: str
    preprocessing: Preprocessing
    stages: Stages
    options: tuple[tuple[str, bool], ...] = ()
    first: str | None = None


PLAIN = (("include_preprocessing", False),)
APPLICATIONS = {
    RESNET50: Application("ResNet50", "resnet50", CAFFE, CONV_STAGES),
    "resnet50v2": Application("ResNet50V2", "resnet50v2", TF, CONV_STAGES),
    "efficientnetv2b0": Application("EfficientNetV2B0", "efficientnetv2-b0", TORCH, EFFICIENTNET_STAGES, PLAIN),
    "efficientnetb0": Application("EfficientNetB0", "efficientnetb0", TORCH, EFFICIENTNET_STAGES, first="stem_conv_pad"),
    "convnexttiny": Application("ConvNeXtTiny", "convnext_tiny", TORCH, CONVNEXT_STAGES, PLAIN),
}
BACKBONES = (*APPLICATIONS, *EFFICIENTNET_LITE)
#: The layer of the network whose output the backbone gets.
PREPROCESSED = "preprocessed"
LITE_STEM, LITE_HEAD = 32, 1280
LITE_EPSILON = 1e-3  # of batch normalisation
#: The input of a backbone. Keras would count its inputs, and weights files keep the name.
INPUT = "centred_pixels"


class LiteStage(NamedTuple):
    """Blocks of one width; the first has the stride."""

    resolution: str
    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


LITE_STAGES = (
    LiteStage("conv1", 1, 3, 1, 1, 16),
    LiteStage("conv2", 2, 3, 2, 6, 24),
    LiteStage("conv3", 2, 5, 2, 6, 40),
    LiteStage("conv4", 3, 3, 2, 6, 80),
    LiteStage("conv4", 3, 5, 1, 6, 112),
    LiteStage("conv5", 4, 5, 2, 6, 192),
    LiteStage("conv5", 1, 3, 1, 6, 320),
)


def backbone_features(name: str, pixels, weights: str | None):
    """The features of crops: their preprocessing and the backbone, pooled over the crop.

    Args:
        name: of ``BACKBONES``.
        pixels: Keras tensor, float32 (batch, size, size, 3), RGB from 0 to 255.
        weights: None for random ones, "imagenet" (of ``APPLICATIONS``: Keras downloads them), or the path of a weights file.

    Returns:
        Keras tensor (batch, features); the backbone is a layer of the network, called ``backbone_layer_name(name)``.
    """
    import keras
    from keras import layers

    scale, offset, bgr = APPLICATIONS[name].preprocessing if name in APPLICATIONS else LITE
    pixels = keras.ops.flip(pixels, axis=-1) if bgr else pixels
    centred = layers.Rescaling(as_keras_takes(scale), offset=as_keras_takes(offset), name=PREPROCESSED, dtype="float32")(
        pixels
    )
    if name in APPLICATIONS:
        return application(name, pixels.shape[1:], weights)(centred)
    backbone = efficientnet_lite(name, pixels.shape[1:])
    if weights is not None:
        backbone.load_weights(weights)
    return backbone(centred)


def as_keras_takes(value: float | tuple[float, ...]) -> float | list[float]:
    """A number or a list, for the layer Rescaling."""
    return list(value) if isinstance(value, tuple) else value


def application(name: str, shape: tuple[int, int, int], weights: str | None) -> keras.Model:
    """A backbone of ``keras.applications``, from preprocessed crops to pooled features.

    Args:
        name: key of ``APPLICATIONS``.
        shape: of the crops, (size, size, 3).
        weights: as ``backbone_features`` takes them; a file is Keras's own of ImageNet weights, or ends in .weights.h5 and
            is of such a backbone.
    """
    import keras

    known = APPLICATIONS[name]
    # Keras's own files hold weights of its preprocessing, too: they are loaded before that is cut off.
    own = weights if weights and weights.endswith(".weights.h5") else None
    backbone = getattr(keras.applications, known.function)(
        include_top=False,
        weights=None if own else weights,
        input_tensor=keras.Input(shape, name=INPUT),
        pooling="avg",
        name=known.name,
        **dict(known.options),
    )
    if known.first:
        backbone = keras.Model(backbone.get_layer(known.first).input, backbone.output, name=known.name)
    # As names that Keras counts in a process do, those without one would change the bytes of weights files.
    before = INPUT
    for operation in backbone.operations:
        kind = operation.name.removesuffix("CLONE").rstrip("0123456789").rstrip("_").replace("_", "")
        if kind == type(operation).__name__.lower():
            operation.name = f"{before}_{kind}"
        elif isinstance(operation, keras.layers.InputLayer):
            operation.name = INPUT
        before = operation.name
    if own:
        backbone.load_weights(own)
    return backbone


def backbone_layer_name(name: str) -> str:
    """The name of a backbone's layer in the network."""
    return APPLICATIONS[name].name if name in APPLICATIONS else name.replace("-", "_")


def efficientnet_lite(name: str, shape: tuple[int, int, int], classes: int = 0) -> keras.Model:
    """An EfficientNet-Lite with random weights.

    Args:
        name: key of ``EFFICIENTNET_LITE``.
        shape: of the crops, (size, size, 3).
        classes: with the classifier of this many classes; 0: pooled features, 1,280 of them.
    """
    import keras
    from keras import layers

    width, depth = EFFICIENTNET_LITE[name]

    def normalised(tensor, label: str, activation: bool = True):
        tensor = layers.BatchNormalization(epsilon=LITE_EPSILON, name=f"{label}_bn")(tensor)
        return layers.ReLU(6.0, name=f"{label}_relu")(tensor) if activation else tensor

    def convolution(tensor, filters: int, label: str, kernel: int = 1, stride: int = 1, activation: bool = True):
        layer = layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=f"{label}_conv")
        return normalised(layer(tensor), label, activation)

    inputs = keras.Input(shape, name=INPUT)
    tensor = convolution(inputs, LITE_STEM, "conv1_stem", 3, 2)
    number = 0
    for index, stage in enumerate(LITE_STAGES):
        filters = rounded_filters(stage.filters, width)
        # The first and the last stage keep their depth.
        repeats = stage.repeats if index in (0, len(LITE_STAGES) - 1) else ceil(depth * stage.repeats)
        for repeat in range(repeats):
            label, start = f"{stage.resolution}_block{number}", tensor
            if stage.expansion > 1:
                tensor = convolution(tensor, tensor.shape[-1] * stage.expansion, f"{label}_expand")
            stride = stage.stride if repeat == 0 else 1
            depthwise = layers.DepthwiseConv2D(stage.kernel, stride, "same", use_bias=False, name=f"{label}_depthwise_conv")
            tensor = normalised(depthwise(tensor), f"{label}_depthwise")
            tensor = convolution(tensor, filters, f"{label}_project", activation=False)
            if repeat > 0:
                tensor = layers.Add(name=f"{label}_add")([start, tensor])
            number += 1
    tensor = convolution(tensor, LITE_HEAD, "conv5_head")
    tensor = layers.GlobalAveragePooling2D(name="pooled")(tensor)
    if classes:
        tensor = layers.Dense(classes, name="classes")(tensor)
    return keras.Model(inputs, tensor, name=backbone_layer_name(name))


def rounded_filters(filters: int, width: float) -> int:
    """``filters`` times ``width``, to a multiple of 8, not more than a tenth below it; as TensorFlow's EfficientNet."""
    wanted = filters * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


# ===========================================================================================================================
# inference/network.py
# ===========================================================================================================================

"""The fusion network: a backbone, ResNet50 by default, on the crop, beside the tabular logit.

    final logit = tabular logit + correction(crop, tabular logit)

The correction's last layer starts at zero: before the first training step the network is the tabular model. What is saved
are weights, and the network is built by this code: saved Keras models break between versions.
"""

# TensorFlow and Keras are imported where they are used: they take seconds, and the kernel must reach its tabular
# submission even where they cannot be imported. These settings are read at that first import.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow's default is oneDNN only on processors with AVX-512; it is several times faster on others, too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Each fold's network is traced anew, by design; TensorFlow would warn of it.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

SMALLEST_IMAGE = 32
#: The symmetries of a square.
MOST_VIEWS = 8
CPU = "/device:CPU:0"
#: Values of a network's trainable and other variables, each in the network's order.
State = tuple[list, list]


@dataclass(frozen=True)
class NetworkConfig:
    """What a network is built from; kept in the manifest as "settings".

    Args:
        image_size: width and height of the crops, pixels; at least 32.
        inputs: ("crop", "tabular") for the fusion; ("crop",) for the image alone; ("tabular",) for the tabular logit alone.
        tabular_mean: mean of the tabular logits in training; the head gets standardised ones.
        tabular_std: their standard deviation.
        backbone: of ``inference.backbones.BACKBONES``.
        feature_dropout: dropout rate of the backbone's features.
        head_units: width of the head's hidden layer; 0 for none.
        head_dropout: dropout rate of the hidden layer.
        base_logit: initial logit of a network without the input "tabular": that of the prevalence. Otherwise ignored.
        views: mirrored and turned views of each crop whose logits are averaged, 1 to 8.
    """

    image_size: int
    inputs: tuple[str, ...] = ("crop", "tabular")
    tabular_mean: float = 0.0
    tabular_std: float = 1.0
    backbone: str = RESNET50
    feature_dropout: float = 0.0
    head_units: int = 64
    head_dropout: float = 0.2
    base_logit: float = 0.0
    views: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"inputs": list(self.inputs)}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> NetworkConfig:
        """From what ``to_dict`` gave; raises InputError if it is anything else."""
        try:
            config = cls(**settings | {"inputs": tuple(settings.get("inputs", cls.inputs))})
            if config.backbone not in BACKBONES or config.views not in range(1, MOST_VIEWS + 1):
                raise TypeError(f"backbone {config.backbone!r}, views {config.views!r}")
        except TypeError as error:
            raise InputError(f"the network settings {settings} are not of this version ({error}); train again.") from error
        return config


def build_network(config: NetworkConfig, backbone_weights: str | None = None) -> keras.Model:
    """Builds the network, uncompiled.

    Args:
        config: what to build.
        backbone_weights: as ``inference.backbones.backbone_features`` takes them.

    Returns:
        A model from {"crop": uint8 (batch, image_size, image_size, 3), "tabular": float32 (batch, 1)} to logits,
        float32 of shape (batch, 1).

    Raises:
        InputError: the image size is below 32.
    """
    import keras
    from keras import layers

    if config.image_size < SMALLEST_IMAGE:
        raise InputError(
            f"image size {config.image_size} is too small for {config.backbone}; use at least {SMALLEST_IMAGE}."
        )
    inputs, features = {}, []
    if "crop" in config.inputs:
        shape = (config.image_size, config.image_size, 3)
        inputs["crop"] = keras.Input(shape, name="crop", dtype="uint8")
        pixels = layers.Rescaling(1.0, name="float_pixels", dtype="float32")(inputs["crop"])
        pooled = backbone_features(config.backbone, pixels, backbone_weights)
        if config.feature_dropout:
            pooled = layers.Dropout(config.feature_dropout, name="feature_dropout", dtype="float32")(pooled)
        features.append(pooled)
    if "tabular" in config.inputs:
        inputs["tabular"] = keras.Input((1,), name="tabular", dtype="float32")
        scale, offset = 1.0 / config.tabular_std, -config.tabular_mean / config.tabular_std
        standardised = layers.Rescaling(scale, offset=offset, name="standardised_tabular_logit", dtype="float32")
        features.append(standardised(inputs["tabular"]))
    # The head computes in float32 whatever the backbone does: its small corrections would drown in half precision.
    join = layers.Concatenate(name="crop_and_tabular_logit", dtype="float32")
    joined = join(features) if len(features) > 1 else features[0]
    hidden = joined
    if config.head_units:
        hidden = layers.Dense(config.head_units, activation="relu", name="head", dtype="float32")(hidden)
        hidden = layers.Dropout(config.head_dropout, name="head_dropout", dtype="float32")(hidden)
    bias = keras.initializers.Constant(0.0 if "tabular" in config.inputs else config.base_logit)
    last = layers.Dense(1, kernel_initializer="zeros", bias_initializer=bias, name="correction", dtype="float32")
    correction = last(hidden)
    if "tabular" not in config.inputs:
        return keras.Model(inputs, correction, name="image_only")
    logits = layers.Add(dtype="float32", name="final_logits")([inputs["tabular"], correction])
    return keras.Model(inputs, logits, name="fusion" if "crop" in config.inputs else "tabular_only")


def load_state(network: keras.Model, weights: Path) -> State:
    """Loads a file's weights into a network and returns copies of them, so that those of another file can follow.

    Raises:
        InputError: they do not fit the network.
    """
    _load_weights(network, weights)
    return _state_of(network)


def _load_weights(network: keras.Model, weights: Path) -> None:
    try:
        try:
            network.load_weights(weights)
        except OSError:  # a lock of another process, or a file system without locks: a copy has neither problem
            with tempfile.TemporaryDirectory() as folder:
                network.load_weights(shutil.copy(weights, folder))
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{weights.name} does not fit the network of the manifest ({reason}); train again.") from error


def _state_of(network: keras.Model) -> State:
    import tensorflow as tf

    trainable, others = ([tf.identity(variable.value) for variable in group] for group in _variables(network))
    return trainable, others


def _variables(network: keras.Model) -> tuple[list, list]:
    """A network's variables in the two groups that Keras's ``stateless_call`` asks for."""
    return network.trainable_variables, network.non_trainable_variables


def view(crops, number: int):
    """One of a square's eight symmetries, by the bits of ``number``; 0 leaves crops, (batch, size, size, 3), as they are."""
    import tensorflow as tf

    crops = tf.reverse(crops, [2]) if number & 1 else crops
    crops = tf.reverse(crops, [1]) if number & 2 else crops
    return tf.transpose(crops, (0, 2, 1, 3)) if number & 4 else crops


def devices() -> list[str]:
    """The accelerators of this machine by their logical names, or its CPU."""
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU")] or [CPU]


class Ensemble:
    """Fold networks as one function of a batch: the mean of their logits, on all accelerators.

    One network is built and traced, which takes seconds, and run with the weights of each fold in turn.

    Args:
        network: as ``build_network`` makes it.
        states: the weights of each fold, as ``load_state`` gives them; the network's own, if not given.
        places: logical devices that share a batch.
        note: called, as ``Run.fall_back`` is, when memory does not suffice: reason, count and a sentence.
        views: of each crop whose logits are averaged, the first ones of ``view``.
    """

    def __init__(
        self,
        network: keras.Model,
        states: Sequence[State] | None = None,
        places: Sequence[str] = (CPU,),
        note: Callable[[str, int, str], None] = lambda reason, count, text: None,
        views: int = 1,
    ) -> None:
        import tensorflow as tf

        self._network, self.note, self.views = network, note, views
        self._at_once: int | None = None  # crops that fit into memory, once they did not
        self._names = [tensor.name for tensor in network.inputs]
        self._one = self._traced()
        self._states = [_state_of(network)] if states is None else list(states)
        try:
            self.functions = {place: self._function_on(place) for place in places}
        except tf.errors.OpError as error:
            self._leave_accelerators(error)

    def _traced(self) -> Callable:
        """``_logits_of_one``, traced once: calling a tf.function would compare hundreds of weights with its signature."""
        import tensorflow as tf

        size = {tensor.name: tensor.shape[1:] for tensor in self._network.inputs}.get("crop", (None, None, 3))
        # Of any number of crops, so that the last, smaller batch is not traced anew.
        batch = tf.TensorSpec((None, *size), tf.uint8), tf.TensorSpec((None, 1), tf.float32)
        state = tuple([tf.TensorSpec(value.shape, value.dtype) for value in group] for group in _variables(self._network))
        return tf.function(self._logits_of_one).get_concrete_function(*batch, state)

    def halve_views(self) -> bool:
        """From here on half as many views of each crop; False where there is one only."""
        if self.views == 1:
            return False
        self.views //= 2
        self._one = self._traced()
        return True

    def _logits_of_one(self, crops, tabular, state: State):
        import tensorflow as tf

        # All views as one batch: the network is traced once, whatever their number.
        crops = tf.concat([view(crops, number) for number in range(self.views)], axis=0)
        inputs = {"crop": crops, "tabular": tf.tile(tabular, (self.views, 1))}
        logits = self._network.stateless_call(*state, {name: inputs[name] for name in self._names}, training=False)[0]
        return tf.reduce_mean(tf.reshape(logits, (self.views, -1, 1)), axis=0)

    def _function_on(self, place: str) -> Callable:
        """The mean of all folds' logits of (crops, tabular) on a device; what it returns may not be computed yet."""
        import tensorflow as tf

        with tf.device(place):
            states = [tf.nest.map_structure(tf.identity, state) for state in self._states]

        def mean(crops, tabular):
            with tf.device(place):
                return tf.add_n([self._one(crops, tabular, state) for state in states]) / len(states)

        return mean

    def logits(self, crops, tabular) -> np.ndarray:
        """Mean logits, float64 of shape (rows,), of crops uint8 (rows, size, size, 3) and tabular logits float32 (rows, 1).

        Where memory does not suffice, the batch is halved, down to one crop; then, and where an accelerator fails, the CPU
        computes.
        """
        import tensorflow as tf

        found, start = [], 0
        with tf.device(CPU):  # else the batch is divided on an accelerator, which may have failed
            crops, tabular = tf.convert_to_tensor(crops), tf.convert_to_tensor(tabular)
            while start < len(crops):
                rows = slice(start, min(start + (self._at_once or len(crops)), len(crops)))
                try:
                    found.append(self._shared(crops[rows], tabular[rows]))
                    start = rows.stop
                except tf.errors.ResourceExhaustedError:
                    self._take_less(rows.stop - start)
                except tf.errors.OpError as error:
                    if list(self.functions) == [CPU]:
                        raise
                    self._leave_accelerators(error)
        return np.concatenate(found).astype("float64")

    def _shared(self, crops, tabular) -> np.ndarray:
        """A batch that fits into memory: a part on each device, all started before the first one is waited for."""
        parts = np.array_split(np.arange(len(crops)), len(self.functions))
        results = []
        for function, part in zip(self.functions.values(), parts, strict=True):
            if len(part):
                rows = slice(part[0], part[-1] + 1)
                results.append(function(crops[rows], tabular[rows]))
        return np.concatenate([result.numpy() for result in results])[:, 0]

    def _leave_accelerators(self, error: Exception) -> None:
        """Changes to the CPU: a driver, a library or the memory of an accelerator failed."""
        self.functions = {CPU: self._function_on(CPU)}
        reason = (str(error).strip().splitlines() or [""])[0]
        self.note("accelerator_failed", 1, f"{type(error).__name__}: {reason}; the CPU computes from now on.")

    def _take_less(self, tried: int) -> None:
        """Halves the number of crops computed at once; after a single crop, changes to the CPU."""
        if tried > 1:
            self._at_once = tried // 2
            self.note("accelerator_memory", 1, f"{tried} crops did not fit; {self._at_once} at a time from now on.")
        elif list(self.functions) != [CPU]:
            self.functions = {CPU: self._function_on(CPU)}
            self.note("accelerator_memory", 1, "a single crop did not fit; the CPU computes from now on.")
        else:
            raise MemoryError("a single crop does not fit into the memory of the CPU")


# ===========================================================================================================================
# inference/run_log.py
# ===========================================================================================================================

"""A run's log, its fall-backs counted for run.json, and its time against the time budget."""


@dataclass
class Run:
    """What happened so far, and how long the run may take, in seconds."""

    time_budget: float = float("inf")
    started: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    #: Why to stop now; set by a signal.
    interrupted: str = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def reason_to_stop(self) -> str:
        """Why no further image may be read; empty while there is no reason."""
        if self.interrupted:
            return self.interrupted
        return f"the time budget of {hours(self.time_budget)} is spent" if self.elapsed > self.time_budget else ""

    def log(self, text: str) -> None:
        """Prints one line with the seconds since the start."""
        log(text, self.elapsed)

    def fall_back(self, reason: str, count: int, note: str) -> None:
        """Counts and logs a fall-back.

        Args:
            reason: its key in run.json, snake_case.
            count: lesions, files or events.
            note: a sentence on what was found and what is done instead.
        """
        self.fallbacks[reason] = self.fallbacks.get(reason, 0) + count
        self.notes.append(note)
        self.log(f"FALL-BACK ({reason}: {count}) {note}")

    def finish(self, stage: str) -> None:
        """Records the seconds since the end of the stage before."""
        self.seconds[stage] = round(self.elapsed - sum(self.seconds.values()), 3)

    def write(self, path: Path) -> None:
        """Writes run.json; a failure is logged only."""
        peak = peak_memory()
        content = self.facts | ({"peak_memory_gb": peak} if peak else {})
        content |= {"fallbacks": self.fallbacks, "notes": self.notes, "seconds": self.seconds}
        try:
            write_json(path, content)
        except (InputError, OSError) as error:
            self.log(f"{path} could not be written ({error})")


@contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end nothing: they are noted in ``run``, which then stops with the scores it has.

    A second Ctrl-C stops at once.
    """

    def note(number: int, frame: Any) -> None:
        run.interrupted = f"{signal.Signals(number).name} was received"
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Forecast:
    """Logs how long the remaining images will take: after the first ``after`` images, and at every tenth of them.

    ``late``, after each of these: whether that is more than is left of the time budget.
    """

    def __init__(self, run: Run, images: int, after: int = 2_000) -> None:
        self._run, self._images, self._next, self._done = run, images, min(after, max(1, images // 2)), 0
        self._started, self.late = time.monotonic(), False

    def add(self, images: int) -> None:
        """Counts images that have been scored."""
        self._done, self.late = self._done + images, False
        if self._done < self._next:
            return
        tenth = max(1, self._images // 10)
        self._next = max(self._done + 1, self._done - self._done % tenth + tenth)
        seconds = time.monotonic() - self._started
        left = seconds / self._done * max(0, self._images - self._done)
        budget = self._run.time_budget
        self.late = left > budget - self._run.elapsed
        of = "" if budget == float("inf") else f" of {hours(max(0.0, budget - self._run.elapsed))}"
        self._run.log(f"{self._done:,} of {self._images:,} images, {self._done / seconds:.0f}/s: {minutes(left)} left{of}")


def hours(seconds: float) -> str:
    """A duration in hours, two digits."""
    return f"{seconds / 3600:.2g} h"


def minutes(seconds: float) -> str:
    """A duration in minutes, or in seconds below two minutes."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def peak_memory() -> float | None:
    """The most memory that this process has held at once, in GB of 10^9 bytes; None where the system does not report it.

    Read from Linux's /proc: ``resource.getrusage`` would include the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9, 3)
    except (OSError, ValueError, IndexError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the scores depend on."""
    names = ("tensorflow", "keras", "catboost", "numpy", "pandas", "h5py")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            found[name] = "not installed"
    return found


# ===========================================================================================================================
# inference/scoring.py
# ===========================================================================================================================

"""From rows and images to logits: CatBoost for all lesions, then the networks for those with an image, while time lasts.

Last, the image scores in the context of the patient, and the combination of all stages.
"""

#: The stages' logits, as columns of every table of scores.
TABULAR, NETWORK, IN_CONTEXT, STACKING, FINAL = "tabular", "network", "context", "stacking", "final"
#: A combination that leaves the networks' logits as they are.
AS_THEY_ARE = {
    "with_image": {"intercept": 0.0, NETWORK: 1.0},
    "without_image": {"intercept": 0.0, TABULAR: 1.0},
}
#: Lesions are scored by image in so many blocks, the highest tabular logits first; inside a block in the order of the file.
#: pAUC depends on the top of the ranking; a block of a twentieth keeps the reads of an HDF5 file near each other.
BLOCKS = 20
#: Share of the patient's lesions that must have all scores for the last stage, which compares them.
MOST_OF_THE_PATIENT = 0.9


@dataclass(frozen=True)
class ImageOptions:
    """How images are scored.

    Args:
        batch_size: crops at a time.
        share: of the lesions, above 0 to 1: those with the highest tabular logits; no image of the others is read.
    """

    batch_size: int
    share: float = 1.0


def combine(how: Mapping[str, Any], scores: Mapping[str, Any], image_scored: np.ndarray) -> np.ndarray:
    """The final logit of each lesion: a weighted sum of the stages' logits.

    Args:
        how: "with_image" and "without_image", each with "intercept" and a weight for each stage by name. Both lead to logits
            on one scale. Where they are absent: ``AS_THEY_ARE``.
        scores: stage -> logits, shape (rows,); those of other stages than ``TABULAR`` are read where ``image_scored`` only.
        image_scored: whether the lesion's crop was scored, bool of shape (rows,).

    Returns:
        Float64 of shape (rows,).
    """
    how, image_scored = AS_THEY_ARE | dict(how), np.asarray(image_scored, dtype=bool)

    def weighted(weights: Mapping[str, float]) -> np.ndarray:
        total = np.full(len(image_scored), float(weights["intercept"]))
        for name in sorted(weights.keys() - {"intercept"}):
            logits = np.asarray(scores[name], dtype="float64")
            total += weights[name] * (logits if name == TABULAR else np.where(image_scored, logits, 0.0))
        return total

    return np.where(image_scored, weighted(how["with_image"]), weighted(how["without_image"]))


def score_tabular(rows: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run) -> np.ndarray:
    """Tabular logits of every lesion, float64 of shape (rows,); logs their median beside that of training."""
    models, complaints = load_models(artifacts, manifest)
    for complaint in complaints:
        run.fall_back("tabular_models_left_out", 1, complaint)
    settings = manifest["tabular"]
    features = select_features(build_features(rows), settings["features"], settings["categories"])
    unseen = unseen_values(features, settings.get("known", {}))
    if unseen:
        run.facts["values_unseen_in_training"] = unseen
        run.log(f"categories with values unseen in training, scored by CatBoost as they are: {unseen}")
    logits = tabular_logits(models, features, settings["categories"])
    if len(logits):
        median, trained = float(np.median(logits)), settings["out_of_fold"]["median"]
        run.facts["tabular_logits"] = {"median": median, "training_median": trained}
        run.log(f"tabular logits: median {median:.2f} (out of fold in training {trained:.2f})")
    return logits


def most_suspicious(tabular: np.ndarray, share: float) -> np.ndarray:
    """Positions of the highest tabular logits, the highest first; of ``share`` times all, and of one at least."""
    return np.argsort(-tabular, kind="stable")[: max(1, round(share * len(tabular)))]


def in_blocks(ranked: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Positions in blocks of ``size``, inside a block in the order of the file.

    Args:
        ranked: positions, the most important first, shape (lesions,).
        places: where each position's image lies, as ``ImageStore.places`` gives it; shape (rows,).
        size: positions of a block.

    Returns:
        The same positions, shape (lesions,).
    """
    return ranked[np.lexsort((ranked, places[ranked], np.arange(len(ranked)) // size))]


class Networks:
    """All networks of the artifacts, the best out of fold first; each is an ensemble of fold networks.

    Args:
        ensembles: by name.
        sizes: width and height of each one's crops, pixels.
        note: as ``Ensemble`` takes it.
    """

    def __init__(self, ensembles: Mapping[str, Ensemble], sizes: Mapping[str, int], note: Callable[[str, int, str], None]):
        self.names, self._at_work, self._note = tuple(ensembles), dict(ensembles), note
        self._made_of = ensembles, sizes
        #: Sizes that a crop is decoded to, each once.
        self.sizes = tuple(dict.fromkeys(sizes[name] for name in self.names))
        self._place = {name: self.sizes.index(sizes[name]) for name in self.names}

    def renewed(self, note: Callable[[str, int, str], None]) -> Networks:
        """The same networks, all at work again, for other lesions whose fall-backs are counted by another ``note``."""
        ensembles, sizes = self._made_of
        for ensemble in ensembles.values():
            ensemble.note = note
        return Networks(ensembles, sizes, note)

    @property
    def at_work(self) -> int:
        """How many networks score further crops."""
        return len(self._at_work)

    def logits(self, crops: Sequence[Any], tabular: np.ndarray) -> np.ndarray:
        """Logits float64 of shape (rows, networks), NaN of a network that is not at work any more.

        Args:
            crops: one tensor for each of ``sizes``, uint8 (rows, size, size, 3).
            tabular: tabular logits, float32 (rows, 1).
        """
        found = np.full((len(tabular), len(self.names)), np.nan)
        for column, name in enumerate(self.names):
            if name in self._at_work:
                try:
                    found[:, column] = self._at_work[name].logits(crops[self._place[name]], tabular)
                except Exception as error:
                    del self._at_work[name]
                    if not self._at_work:
                        raise
                    self._note("networks_stopped", 1, f"{name}: {first_line(error)}; the other networks go on.")
        return found

    def take_less_time(self) -> bool:
        """Half the views of each further crop, or where there is one view only, without the weakest network; else False."""
        reduced = [each.halve_views() for each in self._at_work.values()]
        if any(reduced):
            views = max(each.views for each in self._at_work.values())
            self._note("views_reduced", 1, f"the time is short: {views} view(s) of each further crop.")
        elif len(self._at_work) > 1:
            name, _ = self._at_work.popitem()
            self._note("networks_left_out", 1, f"the time is short: {name}, the weakest, scores no further crop.")
        else:
            return False
        return True


def first_line(error: Exception) -> str:
    """Type and first line of an error's text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def score_images(
    rows: pd.DataFrame,
    tabular: np.ndarray,
    load: Callable[[], tuple[Networks, ImageStore]],
    manifest: Manifest,
    options: ImageOptions,
    run: Run,
) -> pd.DataFrame:
    """Scores each lesion with a readable crop by all networks, the highest tabular logits first, until the time is up.

    Args:
        rows: of the test metadata.
        tabular: their logits, shape (rows,).
        load: opens networks and images. Whatever it raises becomes a fall-back, too.
        manifest: of the artifacts.
        options: batch size, and share of the lesions.
        run: for the log.

    Returns:
        Network logits, a float64 column for each network of the manifest; NaN where it has not scored the lesion.
    """
    names = list(networks_of(manifest))
    found = np.full((len(rows), len(names)), np.nan)
    if not names:
        run.fall_back("no_network", len(rows), "the artifacts hold no network; every lesion keeps its tabular score.")
        return pd.DataFrame(found, columns=names)
    reached, not_finite, ranked = 0, 0, most_suspicious(tabular, options.share)
    if options.share < 1:
        run.facts["image_share"] = {"share": options.share, "lesions": len(ranked)}
        run.log(f"of {len(rows):,} lesions the {len(ranked):,} with the highest tabular logits are scored by image")
    if run.interrupted:
        run.fall_back("images_not_reached", len(ranked), f"{run.interrupted}; no image is read.")
        return pd.DataFrame(found, columns=names)
    try:
        networks, store = load()
        columns = [names.index(name) for name in networks.names]
        size = max(options.batch_size, math.ceil(len(rows) / BLOCKS))
        order = in_blocks(ranked, store.places(rows[ID]), size)
        batches = image_batches(store, rows[ID].to_numpy()[order].tolist(), networks.sizes, options.batch_size)
        forecast = Forecast(run, len(order))
        for places, crops in batches:
            places = places.numpy()
            positions = order[places]
            logits = networks.logits(crops, tabular[positions, None].astype("float32"))
            if not reached:
                run.log("first batch scored")
                run.facts["seconds_to_first_batch"] = round(run.elapsed, 1)
            not_finite += int((np.isfinite(logits).sum(axis=1) < networks.at_work).sum())
            found[np.ix_(positions, columns)] = np.where(np.isfinite(logits), logits, np.nan)
            reached = int(places[-1]) + 1
            forecast.add(len(places))
            if reached < len(order) and run.reason_to_stop():
                left = len(order) - reached
                run.fall_back("images_not_reached", left, f"{run.reason_to_stop()}; no further image is read.")
                break
            if reached < len(order) and forecast.late and networks.take_less_time():
                forecast = Forecast(run, len(order) - reached)
    # Whatever breaks here, a tabular submission is better than none.
    except Exception as error:
        run.fall_back("network_stopped", 1, f"{first_line(error)}; the rest keeps its tabular score.")
    if not_finite:
        run.fall_back("network_output_not_finite", not_finite, f"{not_finite:,} lesions lack the score of a network.")
    left = int(np.isnan(found[ranked]).all(axis=1).sum())
    if left:
        run.fall_back("lesions_without_image_score", left, f"{left:,} of {len(ranked):,} keep their tabular score.")
    return pd.DataFrame(found, columns=names)


def combine_stages(
    rows: pd.DataFrame, tabular: np.ndarray, logits: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run
) -> pd.DataFrame:
    """The logits of every stage, combined as the manifest says.

    A lesion falls back from the last stage to the networks where one of them has not scored it or most of its patient's
    lesions, and from these to the tabular stage where none has scored it.

    Args:
        rows: of the test metadata.
        tabular: tabular logits, shape (rows,).
        logits: of ``score_images``.
        artifacts: folder of the last stage's models.
        manifest: of the artifacts.
        run: for the log.

    Returns:
        ``TABULAR``, ``NETWORK`` (the mean over networks; the tabular logit where there is none), ``FINAL`` and image_scored
        (0 or 1); with a last stage, ``IN_CONTEXT`` and ``STACKING``, NaN where it does not apply.
    """
    image_scored = logits.notna().any(axis=1).to_numpy()
    network = np.where(image_scored, logits.mean(axis=1), tabular)
    scores = pd.DataFrame({TABULAR: tabular, NETWORK: network, FINAL: network, "image_scored": image_scored.astype(int)})
    if not image_scored.any():
        return scores
    try:
        how = manifest["network"]["combination"]
        scores[FINAL], run.facts["combination"] = combine(how, scores, image_scored), how["kind"]
    except (LookupError, TypeError, ValueError) as error:
        count = int(image_scored.sum())
        run.fall_back("scores_not_combined", count, f"{first_line(error)}; the network logits are the final ones.")
    if "stacking" not in manifest:
        return scores
    try:
        compared, last = score_last_stage(rows, logits.assign(**{TABULAR: tabular}), artifacts, manifest, run)
        how = manifest["stacking"]["combination"]
        final = np.where(compared, combine(how, scores.assign(**last), compared), scores[FINAL])
        scores, run.facts["combination"] = scores.assign(**last, **{FINAL: final}), how["kind"]
    # Whatever breaks here: the networks' combination is there, and stays.
    except Exception as error:
        run.fall_back("stacking_stopped", int(image_scored.sum()), f"{first_line(error)}; the networks' scores are final.")
    return scores


def score_last_stage(
    rows: pd.DataFrame, logits: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The logits of the last stage, which compares each lesion with the patient's others.

    Args:
        rows: of the test metadata.
        logits: ``TABULAR`` and a column for each network, as ``score_images`` gives them.
        artifacts: folder of its models.
        manifest: of the artifacts.
        run: for the log.

    Returns:
        To which lesions it applies, bool of shape (rows,); and ``IN_CONTEXT`` and ``STACKING``, float64 of shape (rows,),
        NaN for the others.

    Raises:
        InputError: no model is usable.
    """
    settings = manifest["stacking"]
    models, complaints = load_models(artifacts, manifest, "stacking")
    for complaint in complaints:
        run.fall_back("stacking_models_left_out", 1, complaint)
    patients = rows.get(PATIENT) if settings["patients"] else None
    codes = patient_codes(len(rows), patients)
    used = logits[[TABULAR, *settings["networks"]]].set_axis(rows.index)
    scored = used.notna().all(axis=1).to_numpy()
    compared = scored & (np.bincount(codes, scored)[codes] >= MOST_OF_THE_PATIENT * group_sizes(codes))
    left = int((logits[settings["networks"]].notna().any(axis=1).to_numpy() & ~compared).sum())
    if left:
        run.fall_back("lesions_not_stacked", left, f"{left:,} lesions keep the networks' score.")
    network = used[settings["networks"]].mean(axis=1).where(scored).to_numpy()
    context = context_logits(network, used[TABULAR].to_numpy("float64"), codes)
    features = logit_features(used, patients)
    if settings["columns"]:
        features = features.join(build_features(rows))
    features = select_features(features[compared], settings["features"], settings["categories"])
    stacked = np.full(len(rows), np.nan)
    stacked[compared] = tabular_logits(models, features, settings["categories"])
    return compared, {IN_CONTEXT: np.where(compared, context, np.nan), STACKING: stacked}


def open_test_images(competition: Path) -> ImageStore:
    """The images of the test lesions.

    Raises:
        InputError: there are none, or their file cannot be used.
    """
    source = find_images(competition, "test")
    if source is None:
        raise InputError(f"{competition} has no test-image.hdf5")
    return SteadyImages(source)


def load_networks(artifacts: Path, manifest: Manifest, run: Run) -> Networks:
    """The networks whose files match the manifest, on every accelerator.

    Raises:
        InputError: there is none.
    """
    import tensorflow as tf

    places, ensembles, sizes = devices(), {}, {}
    for name, section in networks_of(manifest).items():
        run.log(f"building the network {name}")
        with tf.device(CPU):
            config = NetworkConfig.from_dict(section["settings"])
            network, states = build_network(config), []
            for file in section["weights"]:
                try:
                    states.append(load_state(network, checked_file(artifacts, manifest, file)))
                except InputError as error:
                    run.fall_back("fold_networks_left_out", 1, str(error))
        if states:
            ensembles[name] = Ensemble(network, states, places, run.fall_back, config.views)
            sizes[name] = config.image_size
            run.facts["fold_networks"] = run.facts.get("fold_networks", 0) + len(states)
    if not ensembles:
        raise InputError("no fold network is usable")
    run.log(f"{run.facts['fold_networks']} fold networks of {', '.join(ensembles)} loaded, on {', '.join(places)}")
    return Networks(ensembles, sizes, run.fall_back)


# ===========================================================================================================================
# inference/submission.py
# ===========================================================================================================================

"""From a test folder to submission.csv, with fall-backs.

1. Find the competition folder and the artifact folder.   Without them: exit status 2.
2. Score every lesion by its metadata (CatBoost).         Without a usable model: exit status 2.
3. Write these scores to submission.csv.                  From here on a valid submission exists.
4. Score the lesions whose crop can be read by the networks, compare them within each patient (the last stage), and combine
   all scores; the others keep the tabular score.
   The highest tabular logits come first. Stop when the time is up, or on SIGTERM or Ctrl-C, with the scores there are.
5. Write the final submission.csv, and run.json: how lesions were scored, fall-backs, versions, seconds.

Whatever fails after step 3 costs scores, not the submission.
"""

COMPETITION = "isic-2024-challenge"
TEST_METADATA = "test-metadata.csv"
SAMPLE = "sample_submission.csv"
TEST_IMAGES = "test-image.hdf5"
#: How often tables are read that change meanwhile.
READINGS = 3
INPUT_ROOT = Path("/kaggle/input")
BATCH_SIZE = 64
TIME_BUDGET = 11.0  # hours: Kaggle ends a run after 12
#: Levels below /kaggle/input that are searched for the two inputs: the deepest mount known is models/*/*/*/*.
SEARCH_DEPTH = 5


@dataclass(frozen=True)
class RunSettings:
    """What a run reads and writes; a competition or artifact folder that is None is searched below ``input_root``."""

    competition: Path | None = None
    artifacts: Path | None = None
    output: Path = Path("submission.csv")
    scores: Path | None = None
    batch_size: int = BATCH_SIZE
    image_share: float = 1.0
    input_root: Path = INPUT_ROOT


def score_folder(settings: RunSettings, run: Run) -> None:
    """Scores the lesions of the competition folder and writes the submission."""
    competition = settings.competition or find_competition(settings.input_root)
    artifacts = settings.artifacts or find_artifacts(settings.input_root)
    manifest = load_manifest(artifacts)
    run.facts = {"competition": str(competition), "artifacts": str(artifacts), "versions": versions()}
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    run.log(f"test folder {competition}, artifacts {artifacts}, {packages}, {hours(run.time_budget)}")

    rows, order, states = read_tables(competition, run)
    scores = pd.DataFrame({TABULAR: score_tabular(rows, artifacts, manifest, run)}, index=pd.Index(rows[ID]))
    without_row = manifest["tabular"]["out_of_fold"]["median"]  # of ids that the metadata lacks: the file is complete
    write_submission(settings.output, order, scores[TABULAR], without_row)
    run.log(f"{len(order):,} lesions have their tabular score; {settings.output} is written and valid")
    run.finish("tabular")

    def load():
        networks, images = load_networks(artifacts, manifest, run), open_test_images(competition)
        if input_states(competition) != states:
            raise InputError(f"{competition} was changed after its metadata was read; no image is scored")
        if len(rows) and not any(isic_id in images for isic_id in rows[ID]):
            note = id_mismatch(TEST_METADATA, rows[ID], images.path.name, images.names())
            run.fall_back("images_of_other_lesions", len(rows), f"{note}.")
        return networks, images

    tabular = scores[TABULAR].to_numpy()
    scores = scores.assign(network=tabular, final=tabular, image_scored=0)
    try:
        options = ImageOptions(settings.batch_size, settings.image_share)
        logits = score_images(rows, tabular, load, manifest, options, run)
        run.finish("images")
        found = combine_stages(rows, tabular, logits, artifacts, manifest, run).set_index(scores.index)
        run.finish("combination")
        write_submission(settings.output, order, found[FINAL], without_row)
        scores = found.join(logits.add_prefix("network_").set_index(scores.index))
    # Whatever breaks here: the submission with the tabular scores is there, and stays.
    except Exception as error:
        note = f"{type(error).__name__}: {error}; {settings.output} has the tabular scores."
        run.fall_back("final_scores_not_written", len(order), note)
    if settings.scores:
        try:
            write_csv(settings.scores, scores.reset_index(), float_format=None)
        except (InputError, OSError) as error:
            run.fall_back("scores_not_written", len(scores), f"{error}; {settings.output} is complete.")
    count = int(scores["image_scored"].sum())
    run.facts |= {"lesions": len(rows), "image_scored": count, "submission_rows": len(order)}
    run.finish("writing")
    run.write(settings.output.with_name("run.json"))
    run.log(f"{settings.output}: {len(order):,} rows, {count:,} of {len(rows):,} lesions scored by image")


def find_competition(root: Path) -> Path:
    """The competition folder: Kaggle's classic mount, its new one, else wherever test-metadata.csv lies below ``root``.

    Raises:
        InputError: it is nowhere, or in several folders; the sentence lists what is mounted.
    """
    for folder in (root / COMPETITION, root / "competitions" / COMPETITION):
        if (folder / TEST_METADATA).is_file():
            return folder
    found = [folder for folder in input_folders(root, SEARCH_DEPTH) if (folder / TEST_METADATA).is_file()]
    if len(found) != 1:
        raise InputError(
            f"{TEST_METADATA} is in {len(found)} folders below {root} ({mounted(root)}); attach "
            f"the competition {COMPETITION} once, or give --competition."
        )
    return found[0]


def find_artifacts(root: Path) -> Path:
    """The only folder below ``root`` with a manifest of this format: a dataset, or a training kernel's output.

    Raises:
        InputError: there is none, or more than one.
    """
    found = [folder for folder in input_folders(root, SEARCH_DEPTH) if is_artifact_folder(folder)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} folders below {root} hold a {MANIFEST} of format {FORMAT} ({mounted(root)}); attach "
            "the artifact dataset once, or give --artifacts."
        )
    return found[0]


def is_artifact_folder(folder: Path) -> bool:
    """Whether the folder holds a manifest that this version reads."""
    try:
        load_manifest(folder)
    except (InputError, OSError):
        return False
    return True


def mounted(root: Path) -> str:
    """What lies directly below ``root``, for an error sentence."""
    if not root.is_dir():
        return "which does not exist"
    return "it holds " + (", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing")


def input_states(competition: Path) -> list[tuple[int, int] | None]:
    """Sizes and times of the files that belong together: metadata, sample submission, images."""
    return [content_state(path) for path in (competition / TEST_METADATA, competition / SAMPLE, competition / TEST_IMAGES)]


def read_tables(competition: Path, run: Run) -> tuple[pd.DataFrame, list[str], list[tuple[int, int] | None]]:
    """The test metadata, the isic_ids to submit, and the ``input_states`` that they were read in.

    Raises:
        InputError: the files change again and again as they are read.
    """
    for _ in range(READINGS):
        run.fallbacks.clear()
        run.notes.clear()
        states, rows = input_states(competition), read_rows(competition, run)
        order = submission_order(competition, rows, run)
        if input_states(competition) == states:
            return rows, order, states
        run.log(f"{competition} was changed while it was read; reading it again")
    raise InputError(f"{competition} was changed while it was read, {READINGS} times; run the kernel when it is complete.")


def read_rows(competition: Path, run: Run) -> pd.DataFrame:
    """The test metadata, as ``read_metadata_leniently`` gives it; each repair is logged."""
    rows, repairs = read_metadata_leniently(competition / TEST_METADATA)
    for reason, count in repairs.items():
        run.fall_back(reason, count, f"{TEST_METADATA}: {reason.replace('_', ' ')}: {count}, repaired.")
    return rows


def submission_order(competition: Path, rows: pd.DataFrame, run: Run) -> list[str]:
    """The isic_ids to submit, in the order of sample_submission.csv, else of the metadata."""
    try:
        sample, repairs = read_sample(competition / SAMPLE)
    except Exception as error:  # the metadata has the ids too
        run.fall_back("no_sample_submission", 1, f"{SAMPLE} is not usable ({error}); the order is that of {TEST_METADATA}.")
        return rows[ID].tolist()
    for reason, count in repairs.items():
        run.fall_back(f"sample_submission_{reason}", count, f"{SAMPLE}: {reason.replace('_', ' ')}: {count}, repaired.")
    only_sample, only_rows = len(set(sample) - set(rows[ID])), len(set(rows[ID]) - set(sample))
    note = id_mismatch(SAMPLE, sample, TEST_METADATA, rows[ID]) if only_sample or only_rows else ""
    if only_sample:
        run.fall_back("ids_only_in_sample_submission", only_sample, f"{note}; those without metadata get a median score.")
    if only_rows:
        run.fall_back("ids_only_in_metadata", only_rows, f"{note}; those not asked for are not submitted.")
    return sample


def read_sample(path: Path) -> tuple[list[str], dict[str, int]]:
    """The ids of sample_submission.csv, each once, and how often each repair was made, by name.

    Raises:
        InputError: the file is missing or empty, or has no isic_id.
    """
    counts: Counter[str] = Counter()
    table = read_csv_file(path, Reading(TEXT_COLUMNS, repairs=counts))
    if ID not in table or table[ID].isna().all():
        raise InputError(f"it has no {ID}")
    return table[ID].dropna().drop_duplicates().tolist(), dict(counts)


def write_submission(path: Path, order: Sequence[str], logits: pd.Series, without_row: float) -> None:
    """Writes probabilities in the given order.

    Args:
        path: submission.csv.
        order: isic_ids.
        logits: by isic_id.
        without_row: logit of an id that ``logits`` lacks.
    """
    logits = logits.reindex(order).fillna(without_row).to_numpy("float64")
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits, -700, 700)))
    write_csv(path, pd.DataFrame({ID: order, TARGET: probabilities}), float_format=None)


def main(arguments: list[str] | None = None) -> int:
    """Runs the kernel."""
    parser = Parser(description="Scores a test folder of the ISIC 2024 challenge; no arguments on Kaggle.")
    parser.add_argument(
        "--competition", type=existing_folder, help=f"folder with {TEST_METADATA} (default: found below --input-root)"
    )
    parser.add_argument(
        "--artifacts", type=existing_folder, help=f"folder with {MANIFEST} (default: found below --input-root)"
    )
    parser.add_argument(
        "--output", type=output_file, default=Path("submission.csv"), help="file to write (default: %(default)s)"
    )
    parser.add_argument("--scores", type=output_file, help="also write each lesion's logits to this CSV file")
    parser.add_argument("--batch-size", type=crop_count, default=BATCH_SIZE, help="crops at a time (default: %(default)s)")
    parser.add_argument(
        "--image-share",
        type=positive_number(1),
        default=1.0,
        metavar="SHARE",
        help="above 0 to 1: score so many lesions by image, the highest tabular logits (default: %(default)s)",
    )
    parser.add_argument("--input-root", type=existing_folder, default=INPUT_ROOT, help="where Kaggle mounts inputs")
    parser.add_argument(
        "--time-budget",
        type=positive_number(1_000),
        default=TIME_BUDGET,
        metavar="HOURS",
        help="images until then (default: %(default)s)",
    )
    options = vars(parser.parse_args(arguments))
    output = options["output"]
    refuse_same_file({"--output": output, "run.json beside it": output.with_name("run.json"), "--scores": options["scores"]})
    run = Run(options.pop("time_budget") * 3600)
    with stop_on_signal(run):
        score_folder(RunSettings(**options), run)
    return 0


if __name__ == "__main__":
    run_command(main)
