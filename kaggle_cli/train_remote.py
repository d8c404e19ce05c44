"""Trains on Kaggle's own GPUs: pushes the training script, waits, and says how far it came.

    python -m kaggle_cli.train_remote
    python -m kaggle_cli.train_remote --part 2

A session ends after 12 hours, so a training may take several parts. Each part is a private kernel of its own that attaches
the output of the one before; a finished part's output is what `make push SOURCE=training` attaches, and nothing has to be
downloaded and uploaded again. Only here the internet is on, for the ImageNet weights, unless a dataset brings them.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path
from typing import Any

from inference.build_kernel import build_training
from kaggle_cli import client, kernels
from kaggle_cli.entrypoint import REPORT, read_report
from utils import InputError, log, run_command

STAGES = ("folds", "tabular", "fusion")
HOURS = 11.0


def training_kernel(part: int) -> str:
    """The slug of a part's kernel."""
    return f"slice-3d-fusion-training-{part}"


def fetched_report(kernel: str) -> dict[str, Any]:
    """training.json of the kernel's last run.

    Raises:
        InputError: it left none.
    """
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        kernels.fetch_output(kernel, Path(folder), r"^training\.json$")
        if not (Path(folder) / REPORT).is_file():
            kernels.show_log(kernel)
            raise InputError(f"{kernel} left no {REPORT}; its log stands above, mend it and run that part again.")
        return read_report(Path(folder))


def settings_of(options: argparse.Namespace, owner: str) -> dict[str, list[str]]:
    """Options of the stages: as given for the first part, for a later one those of the part before.

    Raises:
        InputError: a later part is given options of its own, or the part before is not one to go on from.
    """
    given = {stage: shlex.split(getattr(options, stage)) for stage in STAGES}
    if options.part == 1:
        return given
    if any(given.values()):
        raise InputError(f"--part {options.part} goes on with the options of part 1; leave out {given}.")
    if options.dry_run:
        return given
    kernel = f"{owner}/{training_kernel(options.part - 1)}"
    state, _ = kernels.state_of(kernel)
    if state != kernels.DONE:
        raise InputError(f"{kernel} is {state!r}, not {kernels.DONE!r}; wait for it, or run that part again.")
    report = fetched_report(kernel)
    if report["finished"]:
        raise InputError(f"{kernel} has finished the training; next: make push SOURCE=training PART={options.part - 1}")
    return report["settings"]


def metadata_of(options: argparse.Namespace, owner: str) -> dict[str, Any]:
    """kernel-metadata.json of a part: as the submission kernel's, but for its name, its inputs and the internet."""
    earlier = [f"{owner}/{training_kernel(options.part - 1)}"] if options.part > 1 else []
    return kernels.completed(
        kernels.read_metadata(),
        owner,
        id=f"{client.OWNER}/{training_kernel(options.part)}",
        title=f"SLICE-3D fusion training {options.part}",
        code_file="train_kernel.py",
        enable_internet=options.weights_dataset is None,
        dataset_sources=[options.weights_dataset] if options.weights_dataset else [],
        kernel_sources=earlier,
    )


def main(arguments: list[str] | None = None) -> int:
    """Builds, pushes, waits, tells."""
    parser = argparse.ArgumentParser(description="Trains on Kaggle's GPUs")
    parser.add_argument("--part", type=int, default=1, help="2 goes on with what 1 left, and so on (default: %(default)s)")
    for stage in STAGES:
        parser.add_argument(f"--{stage}", default="", metavar="'OPTIONS'", help=f"of train.{stage}, as one argument; part 1")
    parser.add_argument(
        "--hours", type=float, default=HOURS, help="after which a part stops by itself (default: %(default)g)"
    )
    parser.add_argument(
        "--weights-dataset", metavar="OWNER/SLUG", help="a dataset with ResNet50's ImageNet weights; the internet stays off"
    )
    parser.add_argument("--fetch", action="store_true", help="push nothing; wait for this part and tell how far it came")
    client.add_options(parser, wait=13 * 60, poll=60)
    options = parser.parse_args(arguments)
    if options.part < 1 or not 0 < options.hours <= 11.75:
        raise InputError(f"--part {options.part} --hours {options.hours:g}: parts count from 1, hours go up to 11.75.")
    owner = client.user_name(options.dry_run)
    kernel = f"{owner}/{training_kernel(options.part)}"
    if not options.fetch:
        settings = settings_of(options, owner)
        text = build_training(settings, options.hours)
        log(f"the training script: {len(text.splitlines()):,} lines of plain text, options {settings}")
        kernels.push(metadata_of(options, owner), text, options.dry_run)
    if options.dry_run:
        return 0
    again = f"go on with: python -m kaggle_cli.train_remote --part {options.part} --fetch"
    kernels.wait_until_run(kernel, options, again)
    report = fetched_report(kernel)
    if report["finished"]:
        log(f"{kernel}: finished, {report['folds']} fold networks; next: make push SOURCE=training PART={options.part}")
        return 0
    if report["trouble"] and "hours are over" not in report["trouble"]:
        kernels.show_log(kernel)
        raise InputError(
            f"{kernel} stopped by {report['trouble']!r}; its log stands above, what it trained is kept: mend the cause, "
            f"then make train-on-kaggle PART={options.part + 1}"
        )
    log(f"{kernel}: {report['trouble']}, {report['folds']} fold networks")
    log(f"next: make train-on-kaggle PART={options.part + 1}")
    return 0


if __name__ == "__main__":
    run_command(main)
