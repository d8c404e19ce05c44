"""What pushing any kernel takes: completed metadata in a staging folder, the push, its run, its log, its output."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from inference.build_kernel import ROOT
from kaggle_cli import client as cli
from utils import InputError, log

METADATA = "kernel-metadata.json"
#: States of a run (the CLI's ``KernelWorkerStatus``); in any other it is under way.
DONE = "complete"
FAILED = ("error", "cancel_requested", "cancel_acknowledged")
LOG_LINES = 25


def read_metadata(path: Path | None = None) -> dict[str, Any]:
    """The committed kernel-metadata.json, its ``OWNER`` placeholders still in it.

    Raises:
        InputError: it is missing or no JSON, or a name has been written into it.
    """
    path = path or ROOT / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it: git checkout {METADATA}") from error
    if not str(metadata.get("id", "")).startswith(f"{cli.OWNER}/"):
        raise InputError(f"{path} has the id {metadata.get('id')!r}; leave {cli.OWNER} there, it is filled in when pushing.")
    return metadata


def dataset_slug() -> str:
    """The slug of the artifact dataset, as kernel-metadata.json names it."""
    return read_metadata()["dataset_sources"][0].split("/")[1]


def completed(metadata: dict[str, Any], owner: str, **fields: Any) -> dict[str, Any]:
    """``metadata`` with ``fields`` in it and the user's name in the place of ``OWNER``.

    Raises:
        InputError: Kaggle would name the kernel otherwise than the id says: it makes the name from the title.
    """
    metadata = json.loads(json.dumps(metadata | fields).replace(f'"{cli.OWNER}/', f'"{owner}/'))
    slug = metadata["id"].split("/")[1]
    made = re.sub(r"[^a-z0-9]+", "-", metadata["title"].lower()).strip("-")
    if made != slug:
        raise InputError(f"the title {metadata['title']!r} becomes {made!r} on Kaggle and the id says {slug!r}; mend one.")
    return metadata


def described(metadata: dict[str, Any]) -> str:
    """One line for the person who is about to push."""
    sources = [*metadata["competition_sources"], *metadata["dataset_sources"], *metadata["kernel_sources"]]
    internet = "on" if metadata["enable_internet"] else "off"
    privacy = "private" if metadata["is_private"] else "PUBLIC"
    return f"{metadata['id']}: {privacy}, {metadata['machine_shape']}, internet {internet}, inputs {', '.join(sources)}"


def push(metadata: dict[str, Any], text: str, dry_run: bool) -> int:
    """Pushes ``text`` with ``metadata`` from a staging folder; Kaggle starts to run it. Returns the version, 0 in a dry run.

    Raises:
        KaggleError: the push failed, or a source or tag could not be attached.
        InputError: the CLI told no version.
    """
    log(f"push {described(metadata)}")
    if dry_run:
        log(
            f"$ {cli.command_line('kernels', 'push', '-p', 'STAGING')}   # with {metadata['code_file']} and this {METADATA}:"
        )
        log(json.dumps(metadata, indent=2))
        return 0
    with tempfile.TemporaryDirectory(prefix="kaggle-push-") as staging:
        Path(staging, METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        Path(staging, metadata["code_file"]).write_text(text, encoding="utf-8", newline="\n")
        output = cli.call("kernels", "push", "-p", staging)
    found = re.search(r"Kernel version (\d+) successfully pushed", output)
    if not found:
        raise InputError(
            f"the push told no version ({cli.last_line(output)!r}); look at https://www.kaggle.com/code/{metadata['id']}"
        )
    return int(found[1])


def state_of(kernel: str) -> tuple[str, str]:
    """State of the kernel's latest run, in small letters, and the failure message, if any."""
    output = cli.call("kernels", "status", kernel, show=False)
    state = re.search(r'has status "(?:\w+\.)?(\w+)"', output)
    if not state:
        raise InputError(
            f"`kaggle kernels status {kernel}` said {cli.last_line(output)!r}, which names no state; run it again."
        )
    message = re.search(r'Failure message: "(.*)"', output, re.DOTALL)
    return state[1].lower(), message[1].strip() if message else ""


def wait_until_run(kernel: str, options: argparse.Namespace, next_step: str) -> None:
    """Waits until the kernel's latest run has ended well.

    Raises:
        InputError: it ended otherwise, after the end of its log was shown; or ``--wait`` is over.
    """

    def look() -> str | None:
        state, message = state_of(kernel)
        if state in FAILED:
            show_log(kernel)
            told = f" ({message})" if message else ""
            raise InputError(
                f"{kernel} ended with {state!r}{told}; the end of its log stands above, mend it and push again."
            )
        return None if state == DONE else state

    cli.wait_for(f"run of {kernel}", look, options, next_step)


def show_log(kernel: str) -> None:
    """Prints the last lines of the run's log; a log that cannot be had must not hide why it was asked for."""
    try:
        log = cli.call("kernels", "logs", kernel, show=False)
    except cli.KaggleError as error:
        log = f"(no log: {error})"
    lines = readable(log).splitlines()
    log(f"--- log of {kernel}, last {min(LOG_LINES, len(lines))} of {len(lines)} lines")
    log("\n".join(lines[-LOG_LINES:]))
    log("---")


def readable(log: str) -> str:
    """Kaggle's log as text: it comes as a JSON list of pieces, or as text."""
    try:
        pieces = json.loads(log)
        return "".join(str(piece.get("data", "")) for piece in pieces)
    except (ValueError, AttributeError):
        return log


def fetch_output(kernel: str, folder: Path, pattern: str | None = None) -> None:
    """Downloads the files that the latest run left into ``folder``, over what is there."""
    chosen = ["--file-pattern", pattern] if pattern else []
    cli.call("kernels", "output", kernel, "-p", folder, "-o", "--page-size", "200", *chosen)
