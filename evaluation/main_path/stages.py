"""The stages of the main path, each a command that runs in a process of its own, and how they run one after another.

A stage whose inputs, options and code are unchanged says so itself and does nothing; the dry run is not started then. A
process of its own returns all memory, that of GPUs too, and its peak can be measured.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from evaluation import dry_run
from inference.artifacts import MANIFEST
from inference.build_kernel import ROOT
from train.manifest import read_manifest
from utils import OUTPUT, InputError, log

#: Stages in their order, with their commands. Those of ``train`` take ``--data``, ``--artifacts``, ``--replace`` and options
#: of their own; "fusion" runs once for each network.
STAGES = {
    "folds": "train.folds",
    "tabular": "train.tabular",
    "fusion": "train.fusion",
    "stacking": "train.stacking",
    "kernel": "inference.build_kernel",
    "dry run": "evaluation.dry_run",
}
#: Stages that take options of their own.
WITH_OPTIONS = tuple(stage for stage, module in STAGES.items() if module.startswith("train."))
#: The option that a stage gets when this command was given it.
VERBOSITY = {-1: ["--quiet"], 1: ["--verbose"]}


@dataclass(frozen=True)
class MainPath:
    """What a run of the main path reads, writes and is given.

    Args:
        data: competition folder.
        artifacts: artifact folder.
        report: folder of the dry run's report.
        options: stage -> its options, as words, once for each time that it runs; a stage that is missing runs without.
        replace: drop what is out of date, such as networks that were trained on other models.
    """

    data: Path
    artifacts: Path
    report: Path
    options: Mapping[str, Sequence[Sequence[str]]]
    replace: bool = False


@dataclass(frozen=True)
class Command:
    """A stage as a command: its title in the log, its module, and the arguments."""

    title: str
    module: str
    arguments: tuple[str, ...]

    @property
    def line(self) -> str:
        """As it is typed."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


@dataclass(frozen=True)
class Outcome:
    """A stage that is finished: whether it did something, its seconds, and the most memory of its process, GB."""

    title: str
    ran: bool
    seconds: float
    memory: float = 0.0


def commands(path: MainPath) -> list[Command]:
    """The stages of a run, in their order.

    Raises:
        InputError: two networks have the same name.
    """
    where = ["--data", str(path.data), "--artifacts", str(path.artifacts)]
    found = []
    for stage, module in STAGES.items():
        if stage in WITH_OPTIONS:
            for words in path.options.get(stage) or [()]:
                arguments = (*where, *words, *["--replace"] * path.replace)
                found.append(Command(title_of(stage, words), module, arguments))
        else:
            arguments = (*where, "--report", str(path.report)) if stage == "dry run" else ()
            found.append(Command(stage, module, arguments))
    titles = [command.title for command in found]
    for title in titles:
        if titles.count(title) > 1:
            raise InputError(
                f"{title!r} is {titles.count(title)} times among the stages; give each network a name of its own."
            )
    return found


def title_of(stage: str, words: Sequence[str]) -> str:
    """The stage, and which network or inputs its options name."""
    named = [value for option, value in pairwise(words) if option in ("--name", "--inputs")]
    return " ".join([stage, *named])


def run_stages(path: MainPath) -> list[Outcome]:
    """Runs all stages; a stage that fails ends this process with its status, as it has said why.

    Raises:
        InputError: a stage was killed.
    """
    todo, outcomes = commands(path), []
    for number, command in enumerate(todo, 1):
        head, started = f"[{number}/{len(todo)}] {command.title}", time.monotonic()
        if reason := reason_to_skip(path, command):
            outcomes.append(Outcome(command.title, False, time.monotonic() - started))
            log(f"{head}: {reason}")
            continue
        log(f"{head}: {command.line}")
        before = _state(path)
        status, memory = execute([command.module, *command.arguments, *VERBOSITY.get(OUTPUT.verbosity, [])])
        if status < 0:
            killer = signal.Signals(-status).name
            raise InputError(f"{command.title} was killed by {killer}, perhaps for lack of memory; run the same again.")
        if status:
            if status not in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                log(f"{head}: ended with status {status}; the same command continues here")
            sys.exit(status)
        outcomes.append(Outcome(command.title, _state(path) != before, time.monotonic() - started, memory))
        last = outcomes[-1]
        log(f"{head}: {'done' if last.ran else 'unchanged'}, {duration(last.seconds)}, {memory:.1f} GB at most")
    return outcomes


def reason_to_skip(path: MainPath, command: Command) -> str:
    """Why a stage is not started, in words; empty where it is."""
    if command.module != STAGES["dry run"]:
        return ""
    if read_manifest(path.artifacts).get("folds", {}).get("holdout_rows") == 0:
        return "skipped, the folds have no holdout to score"
    if dry_run.is_done(dry_run.read_options(list(command.arguments))):
        return "unchanged, not started"
    return ""


def _state(path: MainPath) -> list[Any]:
    """Changes where a stage has written something."""
    files = path.artifacts / MANIFEST, ROOT / "kernel.py", path.report / dry_run.RESULT
    found = [each.stat() if each.is_file() else None for each in files]
    return [each and (each.st_ino, each.st_mtime_ns, each.st_size) for each in found]


def execute(words: Sequence[str]) -> tuple[int, float]:
    """Runs ``python -m`` with these words in a process group of its own; passes Ctrl-C and SIGTERM on to it.

    Returns:
        Its exit status, below 0 if a signal killed it; the most memory that it held, in GB.
    """
    received: list[int] = []
    process = None

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        if process:
            os.killpg(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen([sys.executable, "-m", *words], process_group=0)
        for number in received:  # before it was there
            os.killpg(process.pid, number)
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024 / 1e9


def duration(seconds: float) -> str:
    """Seconds in words of at most two units."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
