"""Where a command meets its terminal: which error becomes which sentence and exit status, and what libraries print."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from utils import OUTPUT, InputError, log, print_line


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
