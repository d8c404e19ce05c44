"""Trains on Kaggle's GPUs: pushes the training script, waits, and prints how far it came.

    python -m kaggle_cli.train_remote
    python -m kaggle_cli.train_remote --part 2

A session ends after 12 hours, so a training may take several parts. Each part is a private kernel of its own that attaches
the output of the part before; `make push SOURCE=training` attaches the output of a finished part, and nothing has to be
downloaded and uploaded again. Only here the internet is on, for the ImageNet weights, unless a dataset has them.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from inference.build_kernel import build_training
from inference.options import Parser, count, filled_text, positive_number, shell_words
from kaggle_cli import client, kernels
from kaggle_cli.entrypoint import REPORT, Settings, TrainingReport, read_report
from kaggle_cli.failures import explain
from terminal import run_command
from train.network.config import flag
from utils import InputError, log, log_summary

STAGES = ("folds", "tabular", "fusion", "stacking")
HOURS_PER_PART = 11.0
MOST_HOURS = 11.75


def training_kernel(part: int) -> str:
    """The slug of a part's kernel."""
    return f"slice-3d-fusion-training-{part}"


def fetched_report(kernel: str) -> TrainingReport:
    """training.json of the kernel's last run.

    Raises:
        InputError: it left none.
    """
    with tempfile.TemporaryDirectory(prefix="kaggle-training-") as folder:
        kernels.fetch_output(kernel, Path(folder), r"^training\.json$")
        if not (Path(folder) / REPORT).is_file():
            reason = explain(kernel, hint=f"the run left no {REPORT}")
            raise InputError(f"{kernel} left no {REPORT} ({reason}); its log is above, correct it and run that part again.")
        return read_report(Path(folder))


def settings_of_part_before(owner: str, part: int) -> Settings:
    """What the part before was trained with.

    Raises:
        InputError: that part has not ended, or has finished the training.
    """
    kernel = f"{owner}/{training_kernel(part - 1)}"
    state, _ = kernels.state_of(kernel)
    if state != kernels.DONE:
        raise InputError(f"{kernel} is {state!r}, not {kernels.DONE!r}; wait for it, or run that part again.")
    report = fetched_report(kernel)
    if report.finished:
        raise InputError(f"{kernel} has finished the training; next: make push SOURCE=training PART={part - 1}")
    return report.settings


def training_metadata(owner: str, part: int, weights_dataset: str) -> kernels.KernelMetadata:
    """kernel-metadata.json of a part: the submission kernel's with another name, other inputs and the internet."""
    metadata = replace(
        kernels.read_metadata(),
        id=f"{client.OWNER}/{training_kernel(part)}",
        title=f"SLICE-3D fusion training {part}",
        code_file="train_kernel.py",
        enable_internet=not weights_dataset,
        dataset_sources=[weights_dataset] if weights_dataset else [],
        kernel_sources=[f"{owner}/{training_kernel(part - 1)}"] if part > 1 else [],
    )
    return metadata.owned_by(owner)


def log_report(kernel: str, part: int) -> None:
    """Logs how far the last run of a part came, and the next step.

    Raises:
        InputError: an error stopped it, or it left no report.
    """
    report = fetched_report(kernel)
    if report.finished:
        log_summary(f"{kernel}: finished, {report.folds} fold networks; next: make push SOURCE=training PART={part}")
        return
    if report.trouble and "hours are over" not in report.trouble:
        explain(kernel, hint=report.trouble)
        raise InputError(
            f"{kernel} stopped by {report.trouble!r}; its log is above, what it trained is kept: correct the cause, "
            f"then make train-on-kaggle PART={part + 1}"
        )
    log(f"{kernel}: {report.trouble}, {report.folds} fold networks")
    log_summary(f"next: make train-on-kaggle PART={part + 1}")


def main(arguments: list[str] | None = None) -> int:
    """Builds and pushes the script of a part, waits for its run and prints how far it came."""
    parser = Parser(description="Trains on Kaggle's GPUs")
    parser.add_argument(
        "--part", type=count(high=1_000), default=1, help="2 continues what 1 left, and so on (default: %(default)s)"
    )
    for stage in STAGES:
        several = "; once for each network" if stage == "fusion" else ""
        parser.add_argument(
            f"--{stage}",
            type=shell_words,
            action="append" if several else "store",
            metavar="'OPTIONS'",
            help=f"of train.{stage}, as one argument{several}; part 1",
        )
    parser.add_argument(
        "--hours", type=positive_number(MOST_HOURS), default=HOURS_PER_PART, help="at most, of a part (default: %(default)g)"
    )
    parser.add_argument(
        "--weights-dataset",
        type=filled_text,
        metavar="OWNER/SLUG",
        help="a dataset with the backbone's file of ImageNet weights; the internet stays off; part 1",
    )
    parser.add_argument("--fetch", action="store_true", help="push nothing; wait for this part and print how far it came")
    client.add_options(parser, wait=13 * 60, poll=60)
    options = parser.parse_args(arguments)
    part = options.part
    given = {name: getattr(options, name) for name in (*STAGES, "weights_dataset") if getattr(options, name)}
    if part > 1 and given:
        raise InputError(f"--part {part} has the options of part 1; leave out {', '.join(map(flag, given))}.")
    settings = Settings(**given)
    owner = client.user_name(options.dry_run)
    kernel = f"{owner}/{training_kernel(part)}"
    if not options.fetch:
        if part > 1 and not options.dry_run:
            settings = settings_of_part_before(owner, part)
        text = build_training(asdict(settings), options.hours)
        log(f"the training script: {len(text.splitlines()):,} lines of plain text, options {asdict(settings)}")
        kernels.push(training_metadata(owner, part, settings.weights_dataset), text, options.dry_run)
    if options.dry_run:
        return 0
    wait = client.Wait(options.poll, options.wait)
    kernels.wait_until_run(kernel, wait, f"continue with: python -m kaggle_cli.train_remote --part {part} --fetch")
    log_report(kernel, part)
    return 0


if __name__ == "__main__":
    run_command(main)
