"""Pushes kernel.py to Kaggle, waits for its run on the public test, and checks the submission.csv that came back.

    python -m kaggle_cli.push --data data/isic-2024-challenge --output kaggle-output

The artifacts come from the dataset that `make publish` made, pinned to its version, or straight from a training run on
Kaggle. kernel-metadata.json keeps its OWNER placeholders: the completed one lies in a staging folder. What came back, and
which version it is of, stays in --output, where `make submit` finds it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import pandas as pd

from evaluation.dry_run import checked_submission
from inference import build_kernel
from inference.artifacts import load_manifest
from inference.build_kernel import ROOT
from inference.files import write_json
from inference.schema import ID
from inference.submission import COMPETITION, SAMPLE
from kaggle_cli import client, kernels
from kaggle_cli.data import download_command
from kaggle_cli.publish import READY, look_up
from kaggle_cli.train_remote import training_kernel
from utils import InputError, log, run_command

#: What --output holds besides the run's own files: which kernel and version they came from.
RECORD = "push.json"
SUBMISSION, RUN = "submission.csv", "run.json"


def artifact_sources(owner: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """The metadata fields that attach the artifacts, after a look at whether they are there and usable.

    Raises:
        InputError: there is no dataset, it is being processed, or the training run has not finished.
    """
    if options.source == "training":
        kernel = f"{owner}/{training_kernel(options.part)}"
        if not options.dry_run:
            check_training(kernel, options)
        return {"dataset_sources": [], "kernel_sources": [kernel]}
    dataset = f"{owner}/{kernels.dataset_slug()}"
    if options.dry_run:
        return {"dataset_sources": [dataset if options.no_pin else f"{dataset}/VERSION"], "kernel_sources": []}
    found = look_up(dataset)
    if found is None:
        raise InputError(f"there is no dataset {dataset}; run: make publish")
    if found.state != READY or not found.version:
        raise InputError(f"the dataset {dataset} is {found.state!r}, not {READY!r}; run make publish, it waits for it.")
    pinned = dataset if options.no_pin else f"{dataset}/{found.version}"
    return {"dataset_sources": [pinned], "kernel_sources": []}


def check_training(kernel: str, options: argparse.Namespace) -> None:
    """Raises InputError unless the training kernel's last run left artifacts with networks."""
    state, _ = kernels.state_of(kernel)
    again = f"run: make train-on-kaggle PART={options.part}"
    if state != kernels.DONE:
        raise InputError(f"the run of {kernel} is {state!r}, not {kernels.DONE!r}; wait for it, or {again}")
    with tempfile.TemporaryDirectory(prefix="kaggle-manifest-") as folder:
        kernels.fetch_output(kernel, Path(folder), r"^manifest\.json$")
        if "network" not in load_manifest(Path(folder)):
            raise InputError(f"{kernel} has not trained all networks yet; run: make train-on-kaggle PART={options.part + 1}")


def asked_ids(data: Path) -> list[str]:
    """The ids that the public test asks for: of the data folder, or else of the one file fetched for it."""
    if (data / SAMPLE).is_file():
        return pd.read_csv(data / SAMPLE, dtype={ID: "str"})[ID].tolist()
    with tempfile.TemporaryDirectory(prefix="kaggle-sample-") as folder:
        client.call(*download_command(SAMPLE, Path(folder)))
        fetched = next((path for path in Path(folder).iterdir() if path.name.startswith(SAMPLE)), None)
        if fetched is None:
            raise InputError(f"the CLI left no {SAMPLE}; run make data, then the same command again.")
        return pd.read_csv(fetched, dtype={ID: "str"})[ID].tolist()


def fetch_and_check(kernel: str, version: int, data: Path, output: Path) -> None:
    """Brings the run's files home into ``output`` and checks them; tells every fall-back of the kernel.

    Raises:
        InputError: a file is missing, or the submission is not what Kaggle accepts. The files stay for a look.
    """
    (output / RECORD).unlink(missing_ok=True)  # until the check has passed there is nothing to submit
    with tempfile.TemporaryDirectory(prefix="kaggle-output-") as fetched:
        kernels.fetch_output(kernel, Path(fetched))
        output.mkdir(parents=True, exist_ok=True)
        for name in (SUBMISSION, RUN):
            if not (Path(fetched) / name).is_file():
                kernels.show_log(kernel)
                raise InputError(f"{kernel} version {version} left no {name}; its log stands above, mend it and push again.")
        for path in Path(fetched).iterdir():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, output / path.name)
    ids = asked_ids(data)
    try:
        scores = checked_submission(output / SUBMISSION, ids)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{output / SUBMISSION} is no CSV table ({error}); mend the kernel and push again.") from error
    try:
        facts = json.loads((output / RUN).read_text(encoding="utf-8"))
        fallbacks, notes, seen, lesions = (facts[name] for name in ("fallbacks", "notes", "scored by image", "lesions"))
    except (ValueError, KeyError) as error:
        raise InputError(f"{output / RUN} is not what kernel.py writes ({error}); push again.") from error
    for note in notes:
        log(f"FALL-BACK on Kaggle: {note}")
    told = ", ".join(f"{what}: {count}" for what, count in fallbacks.items()) or "none"
    log(f"{output / SUBMISSION}: the {len(ids)} rows asked for, scores {scores.min():.6f} to {scores.max():.6f}")
    log(f"scored by image {seen} of {lesions}, fall-backs: {told}, versions: {versions_of(facts)}")
    write_json(output / RECORD, {"kernel": kernel, "version": version, "fallbacks": fallbacks})


def versions_of(facts: dict) -> str:
    """What the kernel ran on."""
    return ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())


def main(arguments: list[str] | None = None) -> int:
    """Compares kernel.py, pushes, waits, fetches, checks."""
    parser = argparse.ArgumentParser(description="Pushes kernel.py, waits for its run and checks what came back")
    parser.add_argument("--data", type=Path, default=Path("data") / COMPETITION, metavar="DIR", help="competition folder")
    parser.add_argument("--output", type=Path, default=Path("kaggle-output"), metavar="DIR", help="into (%(default)s)")
    parser.add_argument("--source", choices=("dataset", "training"), default="dataset", help="where the artifacts come from")
    parser.add_argument(
        "--part", type=int, default=1, help="of the training on Kaggle, with --source training (%(default)s)"
    )
    parser.add_argument("--no-pin", action="store_true", help="attach the dataset's newest version, whichever it is then")
    parser.add_argument("--fetch", type=int, metavar="VERSION", help="push nothing; wait for this version and fetch it")
    client.add_options(parser, wait=120)
    options = parser.parse_args(arguments)
    build_kernel.main(["--check"])
    owner = client.user_name(options.dry_run)
    metadata = kernels.read_metadata()
    kernel = metadata["id"].replace(f"{client.OWNER}/", f"{owner}/")
    version = options.fetch
    if version is None:
        metadata = kernels.completed(metadata, owner, **artifact_sources(owner, options))
        text = (ROOT / metadata["code_file"]).read_text(encoding="utf-8")
        try:
            version = kernels.push(metadata, text, options.dry_run)
        except client.KaggleError as error:
            if "not valid dataset" in str(error) and not options.no_pin:
                raise InputError(f"{error} If it is there and ready: make push OPTIONS=--no-pin") from error
            raise
    if options.dry_run:
        for step in (("status", kernel), ("output", kernel, "-p", options.output)):
            log(f"$ {client.command_line('kernels', *step)}")
        return 0
    if options.fetch is None:
        time.sleep(options.poll)  # for a moment after a push Kaggle may still tell the state of the version before
    again = f"go on with: python -m kaggle_cli.push --fetch {version} --data {options.data} --output {options.output}"
    kernels.wait_until_run(kernel, options, again)
    fetch_and_check(kernel, version, options.data, options.output)
    log(f"{kernel} version {version} ran well; next: make submit")
    return 0


if __name__ == "__main__":
    run_command(main)
