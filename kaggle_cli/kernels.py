"""What pushing any kernel takes: its metadata with the user's name, the push, its run, its log, its output."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from inference.build_kernel import ROOT
from kaggle_cli import client as cli
from kaggle_cli.failures import explain
from utils import InputError, log

METADATA = "kernel-metadata.json"
#: States of a run (the CLI's ``KernelWorkerStatus``); in any other it has not ended.
DONE = "complete"
FAILED = ("error", "cancel_requested", "cancel_acknowledged")


@dataclass(frozen=True)
class KernelMetadata:
    """The content of kernel-metadata.json, in the words of the Kaggle CLI."""

    id: str
    title: str
    code_file: str
    language: str
    kernel_type: str
    is_private: bool
    enable_gpu: bool
    enable_tpu: bool
    enable_internet: bool
    machine_shape: str
    dataset_sources: list[str]
    competition_sources: list[str]
    kernel_sources: list[str]
    model_sources: list[str]

    def owned_by(self, owner: str) -> KernelMetadata:
        """The same with the user's name in the place of ``OWNER``.

        Raises:
            InputError: Kaggle would name the kernel otherwise than the id does: it makes the name from the title.
        """
        slug, made = self.id.split("/")[1], re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        if made != slug:
            raise InputError(f"the title {self.title!r} becomes {made!r} on Kaggle, but the id has {slug!r}; correct one.")
        return KernelMetadata(**json.loads(self.to_json().replace(f'"{cli.OWNER}/', f'"{owner}/')))

    def to_json(self) -> str:
        """The text of kernel-metadata.json."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        """One line for the user who is about to push."""
        sources = [*self.competition_sources, *self.dataset_sources, *self.kernel_sources]
        internet = "on" if self.enable_internet else "off"
        privacy = "private" if self.is_private else "PUBLIC"
        return f"{self.id}: {privacy}, {self.machine_shape}, internet {internet}, inputs {', '.join(sources)}"


def read_metadata(path: Path = ROOT / METADATA) -> KernelMetadata:
    """The committed kernel-metadata.json, its ``OWNER`` placeholders still in it.

    Raises:
        InputError: it is missing, no JSON or of other fields, or a name has been written into it.
    """
    try:
        metadata = KernelMetadata(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it: git checkout {METADATA}") from error
    if not metadata.id.startswith(f"{cli.OWNER}/"):
        raise InputError(f"{path} has the id {metadata.id!r}; leave {cli.OWNER} there, a push fills it in.")
    return metadata


def dataset_slug() -> str:
    """The slug of the artifact dataset, as kernel-metadata.json has it."""
    return read_metadata().dataset_sources[0].split("/")[1]


def push(metadata: KernelMetadata, text: str, dry_run: bool) -> int:
    """Pushes ``text`` with ``metadata`` from a staging folder; Kaggle starts to run it.

    Returns:
        The version, 0 in a dry run.

    Raises:
        KaggleError: the push failed, or a source or tag could not be attached.
        InputError: the CLI printed no version.
    """
    log(f"push {metadata}")
    if dry_run:
        command = cli.command_line("kernels", "push", "-p", "STAGING")
        log(f"$ {command}   # with {metadata.code_file} and this {METADATA}:\n{metadata.to_json()}")
        return 0
    with tempfile.TemporaryDirectory(prefix="kaggle-push-") as staging:
        Path(staging, METADATA).write_text(metadata.to_json() + "\n", encoding="utf-8")
        Path(staging, metadata.code_file).write_text(text, encoding="utf-8", newline="\n")
        output = cli.call("kernels", "push", "-p", staging)
    found = re.search(r"Kernel version (\d+) successfully pushed", output)
    if not found:
        page = f"https://www.kaggle.com/code/{metadata.id}"
        raise InputError(f"the push printed no version ({cli.last_line(output)!r}); look at {page}")
    return int(found[1])


def state_of(kernel: str) -> tuple[str, str]:
    """State of the kernel's latest run, in small letters, and its failure message, if any."""
    output = cli.call("kernels", "status", kernel, show=False)
    state = re.search(r'has status "(?:\w+\.)?(\w+)"', output)
    if not state:
        raise InputError(f"`kaggle kernels status {kernel}` printed no state ({cli.last_line(output)!r}); run it again.")
    message = re.search(r'Failure message: "(.*)"', output, re.DOTALL)
    return state[1].lower(), message[1].strip() if message else ""


def wait_until_run(kernel: str, wait: cli.Wait, next_step: str) -> None:
    """Waits until the kernel's latest run has succeeded.

    Raises:
        InputError: it failed, after the end of its log and the likely reasons were shown; or the wait was too short.
    """

    def look() -> str | None:
        state, message = state_of(kernel)
        if state in FAILED:
            reason = explain(kernel, message, "" if state == "error" else state)
            raise InputError(f"{kernel} ended with {state!r} ({reason}); its log is above, correct it and push again.")
        return None if state == DONE else state

    cli.wait_for(f"run of {kernel}", look, wait, next_step)


def fetch_output(kernel: str, folder: Path, pattern: str | None = None) -> None:
    """Downloads the files that the latest run left into ``folder``, over files of the same names."""
    chosen = ["--file-pattern", pattern] if pattern else []
    cli.call("kernels", "output", kernel, "-p", folder, "-o", "--page-size", "200", *chosen)
