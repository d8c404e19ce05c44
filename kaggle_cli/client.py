"""The one place that runs the official Kaggle CLI, and turns what it prints into one sentence when it failed.

The CLI prints many failures and ends with status 0 all the same: a source that could not be attached, a file that was not
uploaded, a dataset that was not created. Here each of them is a ``KaggleError``. Credentials are the CLI's own affair: they
are neither read nor printed here.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from utils import InputError, log

#: Stands for the user's Kaggle name in committed files and in what a dry run prints.
OWNER = "OWNER"
LOGIN = (
    "Kaggle does not know you; run `kaggle auth login`, or make a token at https://www.kaggle.com/settings/api and put it "
    "where the CLI looks for it (~/.kaggle/access_token), then the same command again."
)
#: What the CLI prints about a failure that it ends with status 0, and the mend.
PRINTED = (
    (r"not valid (?:dataset|kernel|competition) sources? .*", "mend the source (is it there, ready, yours?) and push again"),
    (r"not valid tags .*", "take the tag out of the metadata"),
    (r"title does not resolve to the specified id", "make title and id the same words"),
    (r"Kernel push error: .*", "mend that and push again"),
    (r"Dataset (?:version )?creation error: .*", "mend that and publish again"),
    (r"Upload unsuccessful: .*", "run the same command again; files that are there already are not sent twice"),
    (r"Upload of .* expired.*", "run the same command again"),
    (r"Could not (?:find|submit to) competition.*", "check that the competition still takes submissions"),
    (r"User cancelled operation", "run the same command again"),
)
#: HTTP status, how the server words it when the CLI prints no number, and the mend.
ANSWERS = (
    (403, r"denied|forbidden|accept .*rules|not allowed", "check the name, and that this account may do it"),
    (404, r"not found|does not exist", "check the name"),
    (409, r"conflict|already (?:in use|exists)", "something of that name is there already; choose another name"),
    (429, r"too many requests|rate limit", "Kaggle asks for a pause; run the same command again in some minutes"),
    (500, r"internal (?:server )?error|unavailable|bad gateway", "Kaggle has trouble; run the same command again later"),
)
UNREACHABLE = r"Max retries exceeded|Connection aborted|Connection refused|Read timed out|NameResolutionError|ProxyError"
#: Passing troubles in a row that a wait outlasts before it gives up.
PATIENCE = 5


class KaggleError(InputError):
    """The CLI failed. ``code`` is the HTTP status behind it, 0 where Kaggle was not reached, None where none is known."""

    def __init__(self, sentence: str, code: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code

    @property
    def is_passing(self) -> bool:
        """Whether the same call may well succeed in a moment."""
        return self.code is not None and (self.code in (0, 429) or self.code >= 500)


def call(*arguments: str | Path, show: bool = True) -> str:
    """Runs ``kaggle`` with these arguments and returns all that it printed.

    Args:
        arguments: of the CLI, such as ``"kernels", "status", "somebody/kernel"``.
        show: print the command, and pass on what the CLI prints while it prints it, its progress bars too.

    Raises:
        KaggleError: it failed, whatever its exit status says.
    """
    words = [str(argument) for argument in arguments]
    if show:
        log(f"$ {command_line(*words)}")
    # VERBOSE would have the CLI print the header that holds the token.
    environment = {name: value for name, value in os.environ.items() if name not in ("VERBOSE", "VERBOSE_OUTPUT")}
    process = subprocess.Popen(
        [sys.executable, "-m", "kaggle", "-W", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment | {"PYTHONUNBUFFERED": "1"},
    )
    decoder, heard = codecs.getincrementaldecoder("utf-8")(errors="replace"), []
    with process:
        while chunk := process.stdout.read1(65536):
            heard.append(decoder.decode(chunk))
            if show:
                print(heard[-1], end="", flush=True)
    output = "".join(heard)
    if show and output and not output.endswith("\n"):
        log("")
    failure = failure_in(output, process.returncode)
    if failure:
        raise failure
    return output


def command_line(*arguments: str | Path) -> str:
    """The command as one would type it."""
    return shlex.join(["kaggle", *(str(argument) for argument in arguments)])


def failure_in(output: str, status: int) -> KaggleError | None:
    """What went wrong by what the CLI printed and its exit status; None if nothing did."""
    for pattern, mend in PRINTED:
        found = re.search(pattern, output)
        if found:
            return KaggleError(f"Kaggle's CLI says {shortened(found[0])!r}; {mend}.")
    if status == 0:
        return None
    if "No module named kaggle" in output:
        return KaggleError("the Kaggle CLI is not installed; run: python -m pip install -r requirements-dev.txt")
    code = re.search(r"\b([45]\d\d) (?:Client|Server) Error", output)
    if "Authentication required" in output or (code and code[1] == "401"):
        return KaggleError(LOGIN, 401)
    said = last_line(output)
    if re.search(UNREACHABLE, output):
        return KaggleError(f"Kaggle cannot be reached ({said}); check the network, then run the same command again.", 0)
    number = int(code[1]) if code else next((number for number, words, _ in ANSWERS if re.search(words, output, re.I)), None)
    mend = next((mend for known, _, mend in ANSWERS if number in (known, None) or number // 100 == 5 == known // 100), None)
    if number and mend:
        return KaggleError(f"Kaggle answered {said!r} ({number}); {mend}.", number)
    return KaggleError(
        f"Kaggle's CLI ended with {said!r} (status {status}); mend that and run the same command again.", number
    )


def last_line(output: str) -> str:
    """The last line that says something: no empty line, no progress bar."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", output)]
    return shortened(next((line for line in reversed(lines) if line and "%|" not in line), "nothing"))


def shortened(text: str, limit: int = 300) -> str:
    """At most ``limit`` characters of ``text``."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


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


def wait_for(what: str, look: Callable[[], str | None], options: argparse.Namespace, next_step: str) -> None:
    """Looks every ``--poll`` seconds until ``look`` returns None, and says each change of the state that it returns.

    Args:
        what: what is waited for, for the lines printed.
        look: returns the state, None once it has come. A passing trouble (429, 5xx, no network) is outlasted.
        options: with ``poll`` (seconds) and ``wait`` (minutes).
        next_step: what to do when the wait was too short.

    Raises:
        InputError: ``--wait`` is over.
        KaggleError: ``look`` failed for good.
    """
    start, said, troubles = time.monotonic(), None, 0
    while True:
        try:
            state, troubles = look(), 0
        except KaggleError as error:
            troubles += 1
            if not error.is_passing or troubles > PATIENCE:
                raise
            state = f"not known: {error}"
        minutes = (time.monotonic() - start) / 60
        if state is None:
            log(f"{what}: done after {minutes:.1f} min")
            return
        if state != said:
            log(f"{what}: {state} ({minutes:.1f} min)")
            said = state
        if minutes >= options.wait:
            raise InputError(f"{what} is still {state} after --wait {options.wait:g} minutes; {next_step}.")
        time.sleep(options.poll)


def add_options(parser: argparse.ArgumentParser, wait: float, poll: float = 20) -> None:
    """Adds ``--dry-run``, ``--poll`` and ``--wait``, which mean the same in every command."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--poll", type=float, default=poll, metavar="SECONDS", help="between looks (default: %(default)g)")
    parser.add_argument("--wait", type=float, default=wait, metavar="MINUTES", help="at most (default: %(default)g)")
