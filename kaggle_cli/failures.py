"""Why a run or a submission failed: the end of its log, and the likely reasons from it and from what Kaggle says.

Kaggle's API often leaves the reason blank. Nothing is decided here: the log is shown, the reasons are what it points to.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from kaggle_cli import client as cli
from utils import log

LOG_LINES = 25
MOST_REASONS = 3
#: After which Kaggle stops a session.
SESSION_HOURS = 12.0
#: Lines by which Kaggle's own tools end every log, also after an error: conversion to HTML, and the debugger's warnings.
TOOL_LINES = re.compile(r"\[NbConvertApp\]|/(?:mistune|nbconvert|traitlets)\b|Debugger warning|PYDEVD_|frozen_modules")
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Reason:
    """A kind of failure: its name, how a log or Kaggle's message shows it, and what to do."""

    name: str
    pattern: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """A likely reason, and the line that points to it."""

    reason: Reason
    line: str

    def __str__(self) -> str:
        """The reason, the line, and what to do."""
        return f"{self.reason.name.replace('_', ' ')} ({self.line[:160]!r}): {self.reason.remedy}"


@dataclass(frozen=True)
class RunLog:
    """The lines of a run's log, without progress bars and those of Kaggle's tools, and the seconds that it covers."""

    lines: tuple[str, ...]
    seconds: float


#: A line has the first reason that fits, so a particular one stands before a general one.
REASONS = (
    Reason(
        "quota",
        r"Maximum (?:weekly|batch) .*(?:quota|session)|Accelerator Quota Exceeded",
        "wait until it is reset or another run of yours has ended (make status shows what is left), then push again",
    ),
    Reason(
        "no_internet",
        r"[Nn]ame resolution|Name or service not known|NameResolutionError|gaierror|NewConnectionError|Max retries exceeded|"
        r"Could not resolve host|Network is unreachable|<urlopen error|Failed to establish a new connection",
        "the run has no internet; attach what it downloads as a dataset (a training: --weights-dataset)",
    ),
    Reason(
        "gpu_memory",
        r"CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|ResourceExhaustedError|RESOURCE_EXHAUSTED|OOM when allocating",
        "the GPU's memory is too small; train with a smaller --batch-size or --image-size",
    ),
    Reason(
        "disk",
        r"more disk space than|No space left on device|Errno 28",
        "a run may write 20 GB; let it keep fewer files in /kaggle/working",
    ),
    Reason(
        "memory",
        r"allocate more memory|MemoryError|Unable to allocate|bad_alloc|[Oo]ut of memory|(?:^|\s)Killed(?:\s|$)|SIGKILL|"
        r"[Ee]xit code:? -?(?:9|137)\b|DeadKernelError|Kernel died|Exceeded Allowed Compute",
        "the memory was not enough: the hidden test has half a million lesions, the public one three; use smaller batches",
    ),
    Reason(
        "time",
        r"max allowed execution|CellTimeoutError|Timeout waiting for|timed out while it was being executed|Notebook Timeout|"
        r"time cap exceeded|\(timeout exceeded\)",
        f"a session may take {SESSION_HOURS:g} hours; look in the log for what took them, and whether a GPU was used",
    ),
    Reason(
        "missing_package",
        r"ModuleNotFoundError|No module named|ImportError|cannot import name",
        "Kaggle's image lacks this package or has another version of it; requirements.txt has the versions that work",
    ),
    Reason(
        "wrong_mount",
        r"No such file or directory.*/kaggle/input|FileNotFoundError.*/kaggle/input|folders? below .*; attach",
        "an input is not attached, or not where it is looked for: the push lists the inputs, the log what is mounted",
    ),
    Reason(
        "file_name",
        r"Submission CSV Not Found|left no submission\.csv|[Cc]ould not find .*(?:submission|output) file",
        "the run has to leave a file of exactly the name submission.csv in /kaggle/working",
    ),
    Reason(
        "row_count",
        r"must have [\d,]+ rows|Submission Scoring Error|(?:Unexpected|Required) [Cc]olumn|does not hold the \d+ ids|"
        r"Evaluation Exception|no finite number",
        "the submission needs the ids of sample_submission.csv, each once, and the columns isic_id,target",
    ),
    Reason(
        "gpu",
        r"no CUDA-capable device|CUDA_ERROR_\w+|CUDA error|CUDNN_STATUS|cuInit|no kernel image is available|"
        r"Could not find cuda drivers|Cannot dlopen some GPU libraries",
        "the GPU cannot be used: check that the kernel has the accelerator GPU T4 x2 (machine_shape)",
    ),
    Reason(
        "error",
        r"^(?:[\w.]+\.)?\w*(?:Error|Exception|SystemExit|Interrupt)\b(?::|$)|^error: |Notebook Threw Exception",
        "the script stopped with this error; correct its cause",
    ),
    Reason(
        "stopped",
        r"cancel_\w+",
        "the run was stopped, by its time limit or on kaggle.com; push again",
    ),
    Reason("kaggle", r"Kaggle Error", "a fault of Kaggle; run the same command again"),
)
BY_NAME = {reason.name: reason for reason in REASONS}
#: What a submission fails by although the run on the public test, of three lesions, went well.
HIDDEN_TEST = ("time", "memory", "row_count")


def read_log(output: str) -> RunLog:
    """Reads what the CLI prints as a log.

    Args:
        output: a JSON list of pieces with ``stream_name``, ``time`` in seconds and ``data``, one on each line; one piece on
            each line without a list; or text. The end may be cut off.
    """
    pieces = _pieces(output)
    text = COLOURS.sub("", "".join(str(piece["data"]) for piece in pieces))
    lines = (line.rstrip() for line in text.splitlines())
    shown = tuple(line for line in lines if line and "%|" not in line and not TOOL_LINES.search(line))
    times = [piece["time"] for piece in pieces if isinstance(piece.get("time"), int | float)]
    return RunLog(shown, max(times, default=0.0))


def _pieces(output: str) -> list[dict[str, Any]]:
    """The pieces of a log; text becomes pieces without a time."""
    whole = _json(output)
    if isinstance(whole, list) and all(isinstance(piece, dict) and "data" in piece for piece in whole):
        return whole
    pieces = []
    for line in output.splitlines():
        piece = _json(line.strip().lstrip("[,").rstrip("],"))
        pieces.append(piece if isinstance(piece, dict) and "data" in piece else {"data": f"{line}\n"})
    return [piece for piece in pieces if str(piece["data"]).strip() not in ("[", "]", "[]")]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def likely_reasons(run: RunLog, said: str = "", hint: str = "") -> list[Finding]:
    """The likely reasons, each once: by what Kaggle says, by the log from its end to its start, by the hint.

    Args:
        run: the log.
        said: Kaggle's own words; empty if it has none.
        hint: what else is known of the failure.
    """
    hours = run.seconds / 3600
    over = [f"(timeout exceeded) the log ends after {hours:.1f} hours"] if hours >= SESSION_HOURS - 0.1 else []
    found: dict[str, Finding] = {}
    for line in [*said.splitlines(), *over, *reversed(run.lines), hint]:
        reason = next((each for each in REASONS if re.search(each.pattern, line)), None)
        if reason and reason.name not in found:
            found[reason.name] = Finding(reason, line.strip())
    return list(found.values())[:MOST_REASONS]


def explain(kernel: str, said: str = "", hint: str = "", *, is_submission: bool = False) -> str:
    """Prints the end of the log of the kernel's latest run, and the likely reasons of a failure.

    Args:
        kernel: "owner/slug".
        said: what Kaggle says of the failure; empty where it leaves that blank.
        hint: what else is known of it; empty for a run of which only the failure is known.
        is_submission: a submission failed, after a run on the public test that went well.

    Returns:
        Kaggle's words in one line; where there are none, the names of the likely reasons.
    """
    run = fetched_log(kernel)
    which = ", of the public test: Kaggle gives out none of the hidden test" if is_submission else ""
    log(f"--- log of {kernel}{which}, last {min(LOG_LINES, len(run.lines))} of {len(run.lines)} lines")
    log("\n".join([*run.lines[-LOG_LINES:], "---"]))
    found = likely_reasons(run, said, hint)
    if is_submission and not said:
        known = {finding.reason.name for finding in found}
        found += [Finding(BY_NAME[name], "would show on the hidden test only") for name in HIDDEN_TEST if name not in known]
    elif not found and not hint and run.lines:
        found = [Finding(BY_NAME["memory"], "the log ends without an error, as that of a killed process does")]
    if found:
        log("likely reasons:" if said else "Kaggle gives no reason; likely ones:")
    for number, finding in enumerate(found, 1):
        log(f"{number}. {finding}")
    names = ", ".join(finding.reason.name.replace("_", " ") for finding in found)
    return "; ".join(said.splitlines()) or f"Kaggle gives no reason, likely: {names or 'not known'}"


def fetched_log(kernel: str) -> RunLog:
    """The log of the kernel's latest run; one that cannot be fetched must not hide the failure that it is for."""
    try:
        return read_log(cli.call("kernels", "logs", kernel, show=False))
    except cli.KaggleError as error:
        log(f"(no log: {error})")
        return RunLog((), 0.0)
