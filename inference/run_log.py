"""What happens in a run: said as it happens, counted for run.json, and timed against the hours that are left."""

from __future__ import annotations

import json
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from inference.files import replacing
from utils import InputError


@dataclass
class Run:
    """What happened, for the log and for run.json; and how long it may take, in seconds."""

    time_budget: float = float("inf")
    started: float = field(default_factory=time.monotonic)
    facts: dict = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    #: Set from outside: why to come to an end now.
    told_to_stop: str = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def reason_to_stop(self) -> str:
        """Why no further image may be looked at; empty while there is none."""
        if self.told_to_stop:
            return self.told_to_stop
        return f"the time budget of {hours(self.time_budget)} is spent" if self.elapsed > self.time_budget else ""

    def log(self, text: str) -> None:
        """Prints one line with the seconds since the start."""
        print(f"[{self.elapsed:7.1f} s] {text}", flush=True)

    def fall_back(self, what: str, count: int, note: str) -> None:
        """Counts a step down and says so; never silent."""
        self.fallbacks[what] = self.fallbacks.get(what, 0) + count
        self.notes.append(note)
        self.log(f"FALL-BACK ({what}: {count}) {note}")

    def finish(self, stage: str) -> None:
        """Notes the seconds that ``stage`` took since the last one ended."""
        self.seconds[stage] = round(self.elapsed - sum(self.seconds.values()), 3)

    def write(self, path: Path) -> None:
        """Writes run.json; where that cannot be done, says so and goes on."""
        held = peak_memory()
        content = self.facts | ({"most memory, GB": held} if held else {})
        content |= {"fallbacks": self.fallbacks, "notes": self.notes, "seconds": self.seconds}
        try:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except (InputError, OSError) as error:
            self.log(f"{path} could not be written ({error})")


@contextmanager
def listening(run: Run) -> Iterator[None]:
    """Inside, SIGTERM does not kill: it is noted in ``run``, which then comes to its end with what it knows."""

    def note(number: int, frame: Any) -> None:
        run.told_to_stop = "SIGTERM was received"

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Forecast:
    """Says how long the images will still take: once that can be told, and at every further tenth of the way."""

    def __init__(self, run: Run, images: int, after: int = 2_000) -> None:
        self._run, self._images, self._next, self._done = run, images, min(after, max(1, images // 2)), 0
        self._started = time.monotonic()

    def add(self, images: int) -> None:
        """Notes that so many more have been scored."""
        self._done += images
        if self._done < self._next:
            return
        self._next = max(self._done + 1, self._done - self._done % max(1, self._images // 10) + max(1, self._images // 10))
        seconds = time.monotonic() - self._started
        left = seconds / self._done * max(0, self._images - self._done)
        budget = self._run.time_budget
        of = "" if budget == float("inf") else f" of {hours(max(0.0, budget - self._run.elapsed))}"
        self._run.log(f"{self._done:,} of {self._images:,} images, {self._done / seconds:.0f}/s: {minutes(left)} left{of}")


def hours(seconds: float) -> str:
    """A time in words, hours."""
    return f"{seconds / 3600:.2g} h"


def minutes(seconds: float) -> str:
    """A time in words, minutes, or seconds where it is short."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def peak_memory() -> float | None:
    """The most memory that this process has held at once, in GB of 10^9 bytes; None where the system does not say.

    From Linux' own account: ``resource.getrusage`` would also count what the process held that started this one.
    """
    try:
        account = Path("/proc/self/status").read_text(encoding="utf-8")
        return round(int(account.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9, 3)
    except (OSError, ValueError, IndexError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the scores."""
    names = ("tensorflow", "keras", "catboost", "numpy", "pandas", "h5py")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            found[name] = "not installed"
    return found
