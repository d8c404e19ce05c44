"""Pages that several tests read, each made once per test run by its command."""

import contextlib
import io

import pytest
from eager import without_graphs

from evaluation import dry_run
from evaluation.explore import __main__ as explore
from evaluation.triage import __main__ as triage


def made_by(command, *arguments):
    """Runs a command in this process; what it prints goes to printed.txt of the folder, its last argument."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), without_graphs():
        assert command([str(argument) for argument in arguments]) in (0, None)
    (arguments[-1] / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")


@pytest.fixture(scope="session")
def report_folder(trained, shared_folder):
    """The report of a dry run of ``trained``: index.html, submission.csv, scores.csv, run.json, printed.txt."""

    def make(folder):
        made_by(dry_run.main, "--data", trained.data, "--artifacts", trained.artifacts, "--report", folder)

    return shared_folder("report", make)


@pytest.fixture(scope="session")
def exploration_folder(synthetic_data, shared_folder):
    """The exploration of ``synthetic_data``: index.html, printed.txt."""
    return shared_folder("exploration", lambda folder: made_by(explore.main, "--data", synthetic_data, "--out", folder))


@pytest.fixture(scope="session")
def triage_folder(trained, shared_folder):
    """The triage pages of two patients of ``trained``: index.html, a page per patient, printed.txt."""

    def make(folder):
        where = ("--data", trained.data, "--artifacts", trained.artifacts)
        made_by(triage.main, *where, "--patients", "2", "--out", folder)

    return shared_folder("triage", make)
