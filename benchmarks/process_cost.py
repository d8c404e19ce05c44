"""What a command costs: wall-clock and CPU seconds, peak memory of all its processes together, bytes written to disk."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Seconds between two looks at the processes, at least; looks take no more than this share of the time.
PERIOD, WATCHING = 0.5, 0.02


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock and CPU, GB (10^9 bytes) of memory at the peak, GB written."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_gb: float = 0.0
    written_gb: float = 0.0

    def and_then(self, later: Cost) -> Cost:
        """Of both, one after the other."""
        return Cost(
            self.seconds + later.seconds,
            self.cpu_seconds + later.cpu_seconds,
            max(self.peak_gb, later.peak_gb),
            self.written_gb + later.written_gb,
        )


def measured(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], watch: Callable[[Cost], None]
) -> tuple[int, Cost]:
    """Runs a command on Linux and waits for it; ends it where this process is interrupted meanwhile.

    Memory is the sum over the command and its children of their proportional set sizes, at its highest: pages that several
    of them share count once, and pages of mapped files count while they are in memory. A peak between two looks is found
    at the second where one process has it alone (its "high water mark").

    Args:
        command: its words.
        folder: to run it in.
        environment: of the process.
        watch: called after each look with the cost so far.

    Returns:
        The exit status, negative for a signal, and the cost.
    """
    own, started, so_far, pid = psutil.Process(), time.monotonic(), Cost(), 0
    written = own.io_counters().write_bytes
    child = subprocess.Popen(command, cwd=folder, env=environment)
    ended = os.pidfd_open(child.pid)
    try:
        while not pid:
            look = time.monotonic()
            so_far = looked_at(child.pid, so_far, started)
            watch(so_far)
            select.select([ended], [], [], max(PERIOD, (time.monotonic() - look) / WATCHING))
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    finally:
        os.close(ended)
        if not pid:
            child.terminate()
            child.wait()
    child.returncode = os.waitstatus_to_exitcode(status)
    cost = Cost(
        time.monotonic() - started,
        usage.ru_utime + usage.ru_stime,
        so_far.peak_gb,  # ru_maxrss would include the memory of this process, which the command began as
        (own.io_counters().write_bytes - written) / 1e9,  # with those of children that have ended
    )
    return child.returncode, cost


def looked_at(pid: int, so_far: Cost, started: float) -> Cost:
    """The cost of a process that still runs; those of its children that ended are in its own CPU seconds and bytes.

    Args:
        pid: its number.
        so_far: its cost at the look before.
        started: its start by ``time.monotonic``.
    """
    cpu_seconds, memory, highest, written = 0.0, 0, 0, 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError, LookupError):
                status = Path(f"/proc/{each.pid}/status").read_text(encoding="utf-8")
                highest = max(highest, 1024 * int(status.partition("VmHWM:")[2].split()[0]))
                memory += each.memory_full_info().pss
                cpu_seconds += sum(each.cpu_times()[:4])
                written += each.io_counters().write_bytes
    return Cost(
        time.monotonic() - started,
        max(so_far.cpu_seconds, cpu_seconds),
        max(so_far.peak_gb, highest / 1e9, memory / 1e9),
        max(so_far.written_gb, written / 1e9),
    )
