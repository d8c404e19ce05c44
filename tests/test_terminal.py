"""The entry point of every command: error and exit status, --quiet and --verbose, output that cannot be written."""

import ast
import errno
import importlib
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from project_commands import PACKAGES, ROOT, commands

import terminal
import utils
from inference.options import Parser
from utils import InputError


def raising(error):
    raise error


def cleaning_up_fails():
    try:
        raise KeyboardInterrupt
    finally:
        raise OSError("cleaning up failed")


@pytest.fixture
def hooks(monkeypatch, tmp_path):
    """Undoes what ``run_command`` changes in its process; the folder that tracebacks go to."""
    for module, name in (
        (sys, "unraisablehook"),
        (sys, "excepthook"),
        (threading, "excepthook"),
        (logging, "raiseExceptions"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    logging.setLogRecordFactory(factory)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("main", "status", "message"),
    [
        (lambda: None, None, ""),
        (lambda: 0, 0, ""),
        (lambda: 3, 3, ""),
        (lambda: sys.exit(2), 2, ""),
        (lambda: raising(InputError("folds.csv has no column 'fold'.")), 2, "error: folds.csv has no column 'fold'.\n"),
        (lambda: raising(KeyboardInterrupt), 130, "stopped\n"),
        (cleaning_up_fails, 130, "stopped\n"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped\n"),
    ],
)
def test_run_command_turns_an_outcome_into_a_status(main, status, message, capsys, hooks):
    with pytest.raises(SystemExit) as caught:
        terminal.run_command(main)
    assert caught.value.code == status
    assert capsys.readouterr().err == message
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def error_of(module, name, *arguments):
    """An error of a library, imported when it is needed."""
    return getattr(importlib.import_module(module), name)(*arguments)


def tensorflow_error(name, text):
    """An error as TensorFlow's, without TensorFlow."""
    return type(name, (Exception,), {"__module__": "tensorflow.python.framework.errors_impl"})(text)


def open_with_h5py(path, name):
    with h5py.File(path, "w") as file:
        file[name]


REFUSED = {
    **{
        errno.errorcode[number]: lambda path, number=number: raising(OSError(number, os.strerror(number), str(path)))
        for number in (
            *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
            *(
                errno.ENAMETOOLONG,
                errno.EMFILE,
                errno.ENFILE,
                errno.EIO,
                errno.EBUSY,
                errno.ESTALE,
                errno.ELOOP,
                errno.EEXIST,
            ),
            *(errno.EPIPE, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ENOMEM, errno.EAGAIN, errno.ENODEV, errno.ENOTEMPTY),
        )
    },
    "an OSError of words alone": lambda path: raising(OSError("Unable to open file (truncated file)")),
    "no such file": lambda path: path.open(),
    "a folder for a file": lambda path: path.parent.open(),
    "a file for a folder": lambda path: (Path(__file__) / "x").mkdir(),
    "a name too long": lambda path: (path.parent / ("x" * 300)).touch(),
    "a null in a name": lambda path: raising(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")),
    "bytes that are no text": lambda path: b"\xff".decode("utf-8"),
    "memory": lambda path: raising(MemoryError()),
    "memory of NumPy": lambda path: np.empty(2**50),
    "memory of TensorFlow": lambda path: raising(tensorflow_error("ResourceExhaustedError", "OOM when allocating\n tensor")),
    "a file of TensorFlow": lambda path: raising(tensorflow_error("PermissionDeniedError", "logs; Permission denied")),
    "threads": lambda path: raising(RuntimeError("can't start new thread")),
    "a package": lambda path: importlib.import_module("no_such_package"),
    "no HDF5": lambda path: h5py.File(__file__),
    "an HDF5 without the data": lambda path: open_with_h5py(path, "image"),
    "pandas": lambda path: raising(pd.errors.ParserError("Expected 3 fields in line 4, saw 5")),
    "an empty table": lambda path: pd.read_csv(io.StringIO("")),
    "catboost": lambda path: error_of("catboost", "CatBoost").load_model(__file__),
    "pyarrow": lambda path: raising(error_of("pyarrow", "ArrowInvalid", "no Parquet magic bytes")),
    "joblib": lambda path: raising(error_of("joblib.externals.loky.process_executor", "TerminatedWorkerError", "killed")),
    "optuna": lambda path: raising(error_of("optuna.exceptions", "StorageInternalError", "locked")),
    "sqlite": lambda path: raising(error_of("sqlite3", "OperationalError", "database is locked")),
    "jinja": lambda path: raising(error_of("jinja2", "TemplateSyntaxError", "unexpected", 1)),
    "json": lambda path: json.loads("{"),
    "zip": lambda path: raising(error_of("zipfile", "BadZipFile", "not a zip file")),
    "a program": lambda path: subprocess.run(["false"], check=True),
}


@pytest.mark.parametrize("harm", REFUSED)
def test_what_a_user_can_correct_is_one_sentence_and_status_2(harm, capsys, hooks, tmp_path):
    with pytest.raises(SystemExit) as caught:
        terminal.run_command(lambda: REFUSED[harm](tmp_path / "lesions.hdf5"))
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert harm not in errno.errorcode.values() or "lesions.hdf5" in printed.err
    assert list(hooks.glob("traceback-*")) == []


@pytest.mark.parametrize(
    "defect", [ZeroDivisionError("1 / 0"), KeyError("fold"), AssertionError(), RecursionError(), ValueError()]
)
def test_a_defect_is_one_sentence_that_names_a_file_with_the_traceback(defect, capsys, hooks):
    with pytest.raises(SystemExit) as caught:
        terminal.run_command(lambda: raising(defect))
    printed, (path,) = capsys.readouterr().err, hooks.glob("traceback-*.log")
    assert caught.value.code == 1
    assert printed.count("\n") == 1
    assert str(path) in printed
    assert "in raising" in path.read_text(encoding="utf-8")


def test_a_defect_whose_traceback_cannot_be_written_shows_none(capsys, hooks, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(hooks / "missing"))
    with pytest.raises(SystemExit) as caught:
        terminal.run_command(lambda: 1 / 0)
    assert caught.value.code == 1
    assert "could not be written" in capsys.readouterr().err


def fails_after(error):
    """An error that another one led to."""
    try:
        raise error
    except ValueError as before:
        raise InputError("columns.csv is empty.") from before


@pytest.mark.parametrize(
    ("verbosity", "out", "err"),
    [
        (-1, "", "error: columns.csv is empty.\n"),
        (0, "reading\n", "error: columns.csv is empty.\n"),
        (1, r"in fails_after, .*test_terminal.py line \d+ \(InputError\), after one in fails_after, ", "error: columns"),
    ],
)
def test_an_error_shows_where_it_was_raised_with_verbose_only(verbosity, out, err, capsys, hooks):
    utils.OUTPUT.verbosity = verbosity

    def main():
        utils.log("reading")
        fails_after(ValueError("no columns"))

    with pytest.raises(SystemExit):
        terminal.run_command(main)
    printed = capsys.readouterr()
    assert re.search(out, printed.out) if verbosity > 0 else printed.out == out
    assert printed.err.startswith(err)


@pytest.mark.parametrize(("status", "printed"), [(0, "done\n"), (3, "done\n")])
def test_a_quiet_command_ends_with_its_last_line(status, printed, capsys, hooks):
    def main():
        Parser().parse_args(["--quiet"])
        utils.log("a table")
        utils.log_summary("done")
        return status

    with pytest.raises(SystemExit):
        terminal.run_command(main)
    assert capsys.readouterr() == (printed, "")


def test_verbose_lets_libraries_speak(monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    level = logging.getLogger("tensorflow").level
    try:
        terminal.set_verbosity(1)
        assert logging.getLogger("tensorflow").level == logging.INFO
    finally:
        logging.getLogger("tensorflow").setLevel(level)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert utils.OUTPUT.verbosity == 1


ENTRY = "__name__ == '__main__'"


def test_every_command_goes_through_the_door():
    entries = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path == ROOT / "kaggle_cli" / "api.py":  # run by client.ask, which reads its errors; nobody else runs it
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            entries += [
                ast.unparse(each.body) for each in tree.body if isinstance(each, ast.If) and ENTRY in ast.unparse(each.test)
            ]
    assert len(entries) == len(commands()) > 20
    assert {text.partition("(")[0] for text in entries} == {"run_command"}
    assert (ROOT / "kernel.py").read_text(encoding="utf-8").rstrip().endswith("run_command(main)")


@pytest.mark.parametrize("package", PACKAGES)
def test_ctrl_c_during_the_imports_of_a_command_shows_no_traceback(package):
    code = f"import signal, sys; sys.argv[0] = '-m'; import {package}; print(signal.getsignal(signal.SIGINT).name)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "SIG_DFL\n"


def test_ctrl_c_during_the_imports_of_the_kernel_shows_no_traceback():
    text = (ROOT / "kernel.py").read_text(encoding="utf-8")
    assert text.index("signal.signal(signal.SIGINT, signal.SIG_DFL)") < text.index("import argparse")


#: What a command does in a process of its own, after a line that not every console can print.
COMMAND = """
import logging, os, sys, terminal, threading, utils
from scale.progress import Bar

class Closing:
    def __del__(self):
        raise OSError(28, "No space left on device")

def main(what):
    utils.log("данные")
    if what == "lines":
        for number in Bar(range(2000), desc="lines", unit="line"):
            utils.log("x" * 100)
    elif what == "thread":
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    elif what == "closing":
        global at_exit
        at_exit = Closing()
        Closing()
    elif what == "logging":
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception("a library's words")
    elif what == "numbers":
        return sum(os.readlink(f"/proc/self/fd/{number}") == os.devnull for number in range(3))
    elif what == "defect":
        1 / 0
    open(sys.argv[2], "w").close()

terminal.run_command(lambda: main(sys.argv[1]))
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("what", "shell", "status"),
    [
        ("lines", "{} > /dev/null", 0),
        ("lines", "PYTHONIOENCODING=cp1252 {}", 0),
        ("lines", "PYTHONIOENCODING=ascii:strict {}", 0),
        ("lines", "{} | head -n 1", 0),
        ("lines", "{} 2>&1 | head -n 1", 0),
        ("lines", "{} > /dev/full", 0),
        ("lines", "{} > /dev/full 2> /dev/full", 0),
        ("lines", "PYTHONUNBUFFERED=1 {} > /dev/full", 0),
        ("lines", "{} >&-", 0),
        ("lines", "{} 2>&-", 0),
        ("numbers", "{} >&- 2>&- <&-", 3),
        ("thread", "{}", 0),
        ("closing", "{}", 0),
        ("logging", "{}", 0),
        ("defect", "{} 2>&-", 1),
    ],
)
def test_output_that_cannot_be_written_costs_the_output_only(what, shell, status, tmp_path):
    done = tmp_path / "done"
    command = shell.format(shlex.join([sys.executable, "-c", COMMAND, what, str(done)]))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert run.returncode == status
    assert done.exists() == (status == 0)
    for word in ("Traceback", "Exception ignored", "Logging error"):
        assert word not in run.stdout + run.stderr
