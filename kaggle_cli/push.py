"""Pushes kernel.py to Kaggle, waits for its run on the public test, and checks the submission.csv that it left.

    python -m kaggle_cli.push --data data/isic-2024-challenge --output kaggle-output

The artifacts come from the dataset of `make publish`, pinned to its version, or straight from a training on Kaggle.
kernel-metadata.json keeps its OWNER placeholders: the completed one is in a staging folder. The fetched files, and which
version they are of, stay in --output, where `make submit` finds them.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from evaluation.dry_run import checked_submission
from inference import build_kernel
from inference.artifacts import load_manifest
from inference.build_kernel import ROOT
from inference.files import write_json
from inference.options import Parser, count, output_folder
from inference.schema import TARGET, read_scores
from inference.submission import COMPETITION, SAMPLE
from kaggle_cli import client, kernels
from kaggle_cli.data import download_command
from kaggle_cli.failures import explain
from kaggle_cli.publish import READY, look_up
from kaggle_cli.train_remote import training_kernel
from scale.artifact_folder import staged_folder
from terminal import run_command
from utils import InputError, log, log_summary

#: In --output, besides the run's files: which kernel and version they came from.
RECORD = "push.json"
SUBMISSION, RUN = "submission.csv", "run.json"


def published_dataset(owner: str, *, pin: bool, dry_run: bool) -> str:
    """The dataset with the artifacts, with its version if ``pin``.

    Raises:
        InputError: there is no dataset, or it is being processed.
    """
    dataset = f"{owner}/{kernels.dataset_slug()}"
    if dry_run:
        return f"{dataset}/VERSION" if pin else dataset
    found = look_up(dataset)
    if found is None:
        raise InputError(f"there is no dataset {dataset}; run: make publish")
    if found.state != READY or not found.version:
        raise InputError(f"the dataset {dataset} is {found.state!r}, not {READY!r}; run make publish, it waits for it.")
    return f"{dataset}/{found.version}" if pin else dataset


def check_training(kernel: str, part: int) -> None:
    """Raises InputError unless the training kernel's last run left artifacts with networks."""
    state, _ = kernels.state_of(kernel)
    if state != kernels.DONE:
        again = f"run: make train-on-kaggle PART={part}"
        raise InputError(f"the run of {kernel} is {state!r}, not {kernels.DONE!r}; wait for it, or {again}")
    with tempfile.TemporaryDirectory(prefix="kaggle-manifest-") as folder:
        kernels.fetch_output(kernel, Path(folder), r"^manifest\.json$")
        if "network" not in load_manifest(Path(folder)):
            raise InputError(f"{kernel} has not trained all networks yet; run: make train-on-kaggle PART={part + 1}")


def public_test_ids(data: Path) -> list[str]:
    """The ids of the public test's sample submission: of the data folder, or else of the one file fetched for it."""
    if (data / SAMPLE).is_file():
        return read_scores(data / SAMPLE, [TARGET]).index.tolist()
    with tempfile.TemporaryDirectory(prefix="kaggle-sample-") as folder:
        client.call(*download_command(SAMPLE, Path(folder)))
        fetched = next((path for path in Path(folder).iterdir() if path.name.startswith(SAMPLE)), None)
        if fetched is None:
            raise InputError(f"the CLI left no {SAMPLE}; run make data, then the same command again.")
        return read_scores(fetched, [TARGET]).index.tolist()


def fetch_and_check(kernel: str, version: int, data: Path, output: Path) -> None:
    """Downloads the run's files into ``output`` and checks them; logs every fall-back of the kernel.

    Raises:
        InputError: a file is missing, or Kaggle would not accept the submission. The files stay.
    """
    with staged_folder(output, owned=[SUBMISSION, RUN]) as staging:
        (output / RECORD).unlink(missing_ok=True)  # until the check has passed there is nothing to submit
        kernels.fetch_output(kernel, staging)
        for name in (SUBMISSION, RUN):
            if not (staging / name).is_file():
                others = ", ".join(sorted(path.name for path in staging.iterdir() if path.name.endswith(".csv")))
                reason = explain(kernel, hint=f"the run left no {name}, of tables {others or 'none'}")
                raise InputError(
                    f"{kernel} version {version} left no {name} ({reason}); its log is above, correct it and push again."
                )
    ids = public_test_ids(data)
    scores = checked_submission(output / SUBMISSION, ids)
    try:
        facts = json.loads((output / RUN).read_text(encoding="utf-8"))
        fallbacks, versions = facts["fallbacks"], facts["versions"]
        for note in facts["notes"]:
            log(f"FALL-BACK on Kaggle: {note}")
        image_scored = f"{facts['image_scored']} of {facts['lesions']}"
    except (ValueError, KeyError) as error:
        raise InputError(f"{output / RUN} is not what kernel.py writes ({error}); push again.") from error
    counts = ", ".join(f"{reason}: {count}" for reason, count in fallbacks.items()) or "none"
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    log(f"{output / SUBMISSION}: the {len(ids)} rows of {SAMPLE}, scores {scores.min():.6f} to {scores.max():.6f}")
    log(f"image_scored {image_scored}, fall-backs: {counts}, versions: {packages}")
    write_json(output / RECORD, {"kernel": kernel, "version": version, "fallbacks": fallbacks})


def push_kernel(metadata: kernels.KernelMetadata, *, pin: bool, dry_run: bool) -> int:
    """Pushes kernel.py; returns the version.

    Raises:
        InputError: as ``kernels.push``; a pinned dataset that Kaggle does not attach is named with the option to try.
    """
    text = (ROOT / metadata.code_file).read_text(encoding="utf-8")
    try:
        return kernels.push(metadata, text, dry_run)
    except client.KaggleError as error:
        if "not valid dataset" in str(error) and pin:
            raise InputError(f"{error} If it is there and ready: make push OPTIONS=--no-pin") from error
        raise


def main(arguments: list[str] | None = None) -> int:
    """Compares kernel.py with its modules, pushes it, waits, fetches and checks the output."""
    parser = Parser(description="Pushes kernel.py, waits for its run and checks its output")
    parser.add_argument(
        "--data", type=output_folder, default=Path("data") / COMPETITION, metavar="DIR", help="competition folder"
    )
    parser.add_argument(
        "--output", type=output_folder, default=Path("kaggle-output"), metavar="DIR", help="into (%(default)s)"
    )
    parser.add_argument("--source", choices=("dataset", "training"), default="dataset", help="where the artifacts come from")
    parser.add_argument(
        "--part", type=count(high=1_000), default=1, help="of the training, with --source training (default: %(default)s)"
    )
    parser.add_argument("--no-pin", action="store_true", help="attach the dataset's newest version at the time of each run")
    parser.add_argument("--fetch", type=count(), metavar="VERSION", help="push nothing; wait for this version and fetch it")
    client.add_options(parser, wait=120)
    options = parser.parse_args(arguments)
    build_kernel.main(["--check"])
    owner, dry_run, version = client.user_name(options.dry_run), options.dry_run, options.fetch
    metadata = kernels.read_metadata().owned_by(owner)
    kernel, wait = metadata.id, client.Wait(options.poll, options.wait)
    if version is None:
        if options.source == "training":
            training = f"{owner}/{training_kernel(options.part)}"
            if not dry_run:
                check_training(training, options.part)
            metadata = replace(metadata, dataset_sources=[], kernel_sources=[training])
        else:
            dataset = published_dataset(owner, pin=not options.no_pin, dry_run=dry_run)
            metadata = replace(metadata, dataset_sources=[dataset])
        version = push_kernel(metadata, pin=not options.no_pin, dry_run=dry_run)
    if dry_run:
        for step in (("status", kernel), ("output", kernel, "-p", options.output)):
            log(f"$ {client.command_line('kernels', *step)}")
        return 0
    if options.fetch is None:
        time.sleep(options.poll)  # for a moment after a push Kaggle may report the state of the version before
    again = f"python -m kaggle_cli.push --fetch {version} --data {options.data} --output {options.output}"
    kernels.wait_until_run(kernel, wait, f"continue with: {again}")
    fetch_and_check(kernel, version, options.data, options.output)
    log_summary(f"{kernel} version {version} is checked; next: make submit")
    return 0


if __name__ == "__main__":
    run_command(main)
