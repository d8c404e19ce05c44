"""Runs the official Kaggle CLI, and turns the output of a failure into one sentence.

The CLI prints many failures and still ends with status 0: a source that could not be attached, a file that was not uploaded,
a dataset that was not created. Here each of them raises ``KaggleError``. Credentials are left to the CLI: they are neither
read nor printed here.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.options import Number, Parser
from utils import OUTPUT, InputError, log

#: Placeholder for the user's Kaggle name in committed files and in the output of a dry run.
OWNER = "OWNER"
LOGIN = (
    "Kaggle refuses the credentials; run `kaggle auth login`, or make a token at https://www.kaggle.com/settings/api and "
    "put it where the CLI looks for it (~/.kaggle/access_token), then run the same command again."
)
#: Failures that the CLI prints and ends with status 0, and what to do.
PRINTED = (
    (
        r"not valid (?:dataset|kernel|competition) sources? .*",
        "correct the source (is it ready?) and push again",
    ),
    (r"not valid tags .*", "remove the tag from the metadata"),
    (r"title does not resolve to the specified id", "make title and id the same words"),
    (r"Kernel push error: Maximum weekly .*quota.*", "it is reset once a week (make status shows when); then push again"),
    (r"Kernel push error: Maximum batch .*session.*", "wait until another run of yours has ended, then push again"),
    (r"Kernel push error: .*", "correct that and push again"),
    (r"Dataset (?:version )?creation error: .*", "correct that and publish again"),
    (r"Upload unsuccessful: .*", "run the same command again; files that arrived are not sent twice"),
    (r"Upload of .* expired.*", "run the same command again"),
    (r"Could not (?:find|submit to) competition.*", "check that the competition still takes submissions"),
    (r"User cancelled operation", "run the same command again"),
)
#: HTTP status, the server's words when the CLI prints no number, and what to do.
ANSWERS = (
    (403, r"denied|forbidden|accept .*rules|not allowed", "check the name, and the permissions of this account"),
    (404, r"not found|does not exist", "check the name"),
    (409, r"conflict|already (?:in use|exists)", "the name is in use; choose another name"),
    (429, r"too many requests|rate limit", "too many requests; run the same command again in some minutes"),
    (500, r"internal (?:server )?error|unavailable|bad gateway", "a fault of Kaggle; run the same command again later"),
)
UNREACHABLE = r"Max retries exceeded|Connection aborted|Connection refused|Read timed out|NameResolutionError|ProxyError"
#: Temporary errors in a row after which a wait gives up.
PATIENCE = 5


class KaggleError(InputError):
    """The CLI failed. ``code`` is the HTTP status behind it, 0 if Kaggle was not reached, None if none is known."""

    def __init__(self, sentence: str, code: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code

    @property
    def is_temporary(self) -> bool:
        """Whether the same call may succeed in a moment."""
        return self.code is not None and (self.code in (0, 429) or self.code >= 500)


def call(*arguments: str | Path, show: bool = True) -> str:
    """Runs ``kaggle`` with these arguments and returns all that it printed.

    Args:
        arguments: of the CLI, such as ``"kernels", "status", "somebody/kernel"``.
        show: unless --quiet, print the command and, as it comes, the CLI's output with its progress bars.

    Raises:
        KaggleError: it failed, whatever its exit status is.
    """
    words = [str(argument) for argument in arguments]
    show = show and OUTPUT.verbosity >= 0
    if show:
        log(f"$ {command_line(*words)}")
    return _run(["-m", "kaggle", "-W", *words], show)


def ask(*arguments: str) -> dict[str, Any]:
    """What the CLI does not print, by ``api.py``, which says what the arguments and the answer are.

    Raises:
        KaggleError: Kaggle refused, or was not reached.
    """
    output = _run(["-P", str(Path(__file__).with_name("api.py")), *arguments], show=False)
    return json.loads(output.splitlines()[-1])


def _run(words: list[str], show: bool) -> str:
    """Runs Python with these arguments; returns its output, or raises the failure in it."""
    # With VERBOSE the CLI would print the header that holds the token.
    environment = {name: value for name, value in os.environ.items() if name not in ("VERBOSE", "VERBOSE_OUTPUT")}
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment | {"PYTHONUNBUFFERED": "1"},
    )
    decoder, printed = codecs.getincrementaldecoder("utf-8")(errors="replace"), []
    assert isinstance(process.stdout, io.BufferedReader)  # a pipe
    with process:
        while chunk := process.stdout.read1(65536):
            printed.append(decoder.decode(chunk))
            if show:
                print(printed[-1], end="", flush=True)
    output = "".join(printed)
    if show and output and not output.endswith("\n"):
        log("")
    failure = failure_in(output, process.returncode)
    if failure:
        raise failure
    return output


def command_line(*arguments: str | Path) -> str:
    """The command as a user would type it."""
    return shlex.join(["kaggle", *(str(argument) for argument in arguments)])


def failure_in(output: str, status: int) -> KaggleError | None:
    """The failure that the CLI's output and exit status mean; None for a success."""
    for pattern, remedy in PRINTED:
        found = re.search(pattern, output)
        if found:
            return KaggleError(f"the Kaggle CLI printed {found[0][:300]!r}; {remedy}.")
    if status == 0:
        return None
    if "No module named kaggle" in output:
        return KaggleError("the Kaggle CLI is not installed; run: python -m pip install -r requirements-dev.txt")
    code = re.search(r"\b([45]\d\d) (?:Client|Server) Error", output)
    if "Authentication required" in output or (code and code[1] == "401"):
        return KaggleError(LOGIN, 401)
    line = last_line(output)
    if re.search(UNREACHABLE, output):
        return KaggleError(f"Kaggle cannot be reached ({line}); check the network, then run the same command again.", 0)
    number = int(code[1]) if code else next((number for number, words, _ in ANSWERS if re.search(words, output, re.I)), None)
    remedies = {known: remedy for known, _, remedy in ANSWERS}
    known = None if number is None else remedies.get(min(number, 500))
    if known:
        return KaggleError(f"Kaggle answered {line!r} ({number}); {known}.", number)
    return KaggleError(f"the Kaggle CLI ended with {line!r} (status {status}); correct that and run it again.", number)


def last_line(output: str) -> str:
    """The last line that is neither empty nor a progress bar, at most 300 characters of it."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", output)]
    return next((line[:300] for line in reversed(lines) if line and "%|" not in line), "nothing")


def table(output: str, first_column: str) -> list[dict[str, str]]:
    """The rows of a CSV table among other lines of ``output``, from its header on."""
    lines = output.splitlines()
    start = next((number for number, line in enumerate(lines) if line.split(",")[0] == first_column), len(lines))
    return list(csv.DictReader(lines[start:]))


def user_name(dry_run: bool = False) -> str:
    """The user's Kaggle name, from the CLI's own configuration; in a dry run the word ``OWNER``.

    Raises:
        KaggleError: the CLI is not logged in.
    """
    if dry_run:
        log(f"dry run: nothing is sent or fetched; {OWNER} stands for your Kaggle name")
        return OWNER
    found = re.search(r"^- username: (\S+)", call("config", "view", show=False), re.MULTILINE)
    if not found or found[1] == "None":
        raise KaggleError(LOGIN, 401)
    return found[1]


@dataclass(frozen=True)
class Wait:
    """How a command waits for Kaggle: seconds between two looks, and the minutes after which it gives up."""

    poll: float
    minutes: float


def wait_for(what: str, look: Callable[[], str | None], wait: Wait, next_step: str) -> None:
    """Looks every ``wait.poll`` seconds until ``look`` returns None, and logs each change of the state that it returns.

    Args:
        what: what is waited for, for the log.
        look: returns the state, None when the wait is over. Temporary errors (429, 5xx, no network) are ignored.
        wait: how long.
        next_step: what to do when the wait was too short.

    Raises:
        InputError: the wait was too short.
        KaggleError: ``look`` failed for good.
    """
    start, logged, errors = time.monotonic(), None, 0
    while True:
        try:
            state, errors = look(), 0
        except KaggleError as error:
            errors += 1
            if not error.is_temporary or errors > PATIENCE:
                raise
            state = f"not known: {error}"
        minutes = (time.monotonic() - start) / 60
        if state is None:
            log(f"{what}: done after {minutes:.1f} min")
            return
        if state != logged:
            log(f"{what}: {state} ({minutes:.1f} min)")
            logged = state
        if minutes >= wait.minutes:
            raise InputError(f"{what} is still {state} after --wait {wait.minutes:g} minutes; {next_step}.")
        time.sleep(wait.poll)


def add_options(parser: Parser, wait: float, poll: float = 20) -> None:
    """Adds ``--dry-run``, ``--poll`` and ``--wait``, which mean the same in every command."""
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument(
        "--poll", type=Number(0, 86_400), default=poll, metavar="SECONDS", help="between looks (default: %(default)g)"
    )
    parser.add_argument(
        "--wait", type=Number(0, 100_000), default=wait, metavar="MINUTES", help="at most (default: %(default)g)"
    )
