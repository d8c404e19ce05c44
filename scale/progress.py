"""The progress bar of all commands: drawn on a terminal, a line now and then in a log file, none with --quiet."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils import OUTPUT, print_line

BAR_FORMAT = (
    "{desc} {percentage:3.0f} % {bar:24} {n_fmt}/{total_fmt} {unit}s, {elapsed}, {remaining} left, {rate_fmt}{postfix}"
)
LINE_FORMAT = "{desc} {percentage:3.0f} % {n_fmt}/{total_fmt} {unit}s, {elapsed}, {remaining} left, {rate_fmt}{postfix}"
#: Seconds after which to show a bar of what is usually quick (argument ``delay``).
SLOW = 5
#: Where there is no terminal, a line is printed at every tenth and after MOST_SECONDS, but not within LEAST_SECONDS of the
#: start or of the line before.
LEAST_SECONDS, MOST_SECONDS = 30, 600


class Bar(tqdm):
    """tqdm's bar in this project's format; its arguments are tqdm's.

    Args:
        iterable: what to go through; without one, ``update`` is called.
        desc: what is done.
        unit: of what, in the singular.
    """

    #: Whether this process shows none: several at once would draw over each other.
    hidden = False

    def __init__(self, iterable: Iterable | None = None, *, desc: str, unit: str, **arguments: Any) -> None:
        self.plain = not sys.stderr.isatty()
        self._printed_at, self._printed, self._printed_any = time.monotonic(), arguments.get("initial", 0), False
        if Bar.hidden or OUTPUT.verbosity < 0:
            arguments["disable"] = True
        OUTPUT.around = _beside_bars
        if self.plain:
            arguments["file"] = io.StringIO()
        super().__init__(iterable, desc=desc, unit=unit, bar_format=BAR_FORMAT, dynamic_ncols=not self.plain, **arguments)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar, or prints its line where one is due."""
        if not self.plain:
            return super().display(msg, pos)
        waited = time.monotonic() - self._printed_at
        tenth = self.total and self.n - self._printed >= self.total / 10
        if waited >= (LEAST_SECONDS if tenth else MOST_SECONDS):
            self._print()
        return True

    def close(self) -> None:
        """Ends the bar; where it printed lines, with a last one."""
        if self.plain and self._printed_any and not self.disable and self.n != self._printed:
            self._print()
        super().close()

    def _print(self) -> None:
        self._printed_at, self._printed, self._printed_any = time.monotonic(), self.n, True
        print_line(self.format_meter(**self.format_dict | {"bar_format": LINE_FORMAT, "ncols": None}), stream=sys.stderr)


def _beside_bars() -> contextlib.AbstractContextManager:
    """Inside, a line can be printed: bars on the terminal are cleared and drawn again below it."""
    return Bar.external_write_mode() if getattr(Bar, "_instances", None) else contextlib.nullcontext()
