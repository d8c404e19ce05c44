"""A run's log, its fall-backs counted for run.json, and its time against the time budget."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from inference.files import write_json
from utils import InputError, log


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
