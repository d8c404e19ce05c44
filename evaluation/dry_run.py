"""Runs the BUILT kernel.py offline on labelled rows, and scores what it submits.

    python -m evaluation.dry_run --data data/isic-2024-challenge --artifacts artifacts --report report

The holdout becomes the folder that Kaggle would mount: test metadata without label and train-only columns, test images, a
sample submission. kernel.py runs on it in its own process, from an empty folder, without the repository and, where the
system allows it, without a network. What it writes is checked as Kaggle checks it and scored. A local tool.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from evaluation.lesions import lesion_sections
from evaluation.measures import BEST, FINAL, IMAGE, TABULAR
from evaluation.provenance import kernel_section, making_section
from evaluation.report import Scored, write_report
from inference.artifacts import checked_file, load_manifest
from inference.build_kernel import ROOT, build_kernel
from inference.images import ImageStore, find_images
from inference.schema import ID, PATIENT, TARGET, TEST_COLUMNS, read_metadata
from train.folds import HOLDOUT
from utils import Estimate, InputError, add_data_options, bootstrap_scores, format_table, log, run_command

SEEN = "rows that training has seen are among these: the scores below are too good; --rows holdout gives honest ones"


@dataclass(frozen=True)
class Outcome:
    """What a run of the kernel left, besides its files."""

    seconds: float
    isolation: str
    facts: dict


def rows_to_score(data: Path, artifacts: Path, which: str) -> pd.DataFrame:
    """Labelled rows, as ``read_metadata`` gives them: the holdout of folds.csv, or all.

    Raises:
        InputError: there is no holdout, or folds.csv is of other rows.
    """
    metadata = read_metadata(data / "train-metadata.csv", labelled=True)
    if which == "all":
        return metadata
    path = checked_file(artifacts, load_manifest(artifacts), "folds.csv")
    fold = pd.read_csv(path, dtype={ID: "str"}).set_index(ID)["fold"].reindex(metadata[ID]).to_numpy()
    if np.isnan(fold).any():
        raise InputError(f"{path} lacks rows of train-metadata.csv; give the --data that the artifacts were trained on.")
    if not (fold == HOLDOUT).any():
        raise InputError(f"{path} holds no rows out; run train.folds with --holdout, or give --rows all.")
    return metadata[fold == HOLDOUT].reset_index(drop=True)


def mount_test_folder(data: Path, isic_ids: list[str], folder: Path, lost: float = 0.0) -> None:
    """Writes the test folder that Kaggle would mount for these lesions, their metadata cells as published, as text.

    Args:
        data: the competition folder with the labelled rows.
        isic_ids: who comes into the test folder, in this order.
        folder: to write.
        lost: share of the images that are left out, drawn at random, the same ones each time.
    """
    folder.mkdir(parents=True)
    text = pd.read_csv(data / "train-metadata.csv", dtype=str, keep_default_na=False).set_index(ID, drop=False).loc[isic_ids]
    text[[name for name in TEST_COLUMNS if name in text]].to_csv(folder / "test-metadata.csv", index=False)
    pd.DataFrame({ID: isic_ids, TARGET: 0.3}).to_csv(folder / "sample_submission.csv", index=False)
    source = find_images(data, "train")
    with h5py.File(folder / "test-image.hdf5", "w") as file:
        if source is None:
            return
        store = ImageStore(source)
        kept = np.random.default_rng(0).random(len(isic_ids)) >= lost
        for isic_id in tqdm(np.array(isic_ids)[kept], desc="test images", unit="image"):
            jpeg = store.read(isic_id)
            if jpeg:
                file.create_dataset(isic_id, data=np.bytes_(jpeg))
        store.close()


def without_network() -> tuple[list[str], str]:
    """The command that takes the network away from a process, empty where the system allows none, and its description."""
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return command, "network namespace without a network"
    return [], "none: this system lets us make no network namespace"


def run_kernel(
    kernel: Path, competition: Path, artifacts: Path, report: Path, python: Path = Path(sys.executable)
) -> Outcome:
    """Runs a copy of the kernel from an empty folder; its submission.csv, run.json and scores.csv go to ``report``.

    Raises:
        InputError: the kernel ends with another status than 0.
    """
    prefix, isolation = without_network()
    with tempfile.TemporaryDirectory() as empty:
        copy = Path(shutil.copy(kernel, empty)) if kernel.parent != Path(empty) else kernel
        command = [*prefix, str(python.absolute()), "-I", str(copy), "--competition", str(competition.resolve())]
        command += ["--artifacts", str(artifacts.resolve()), "--output", str(report.resolve() / "submission.csv")]
        command += ["--scores", str(report.resolve() / "scores.csv")]
        log(f"kernel.py, isolation: {isolation}")
        start = time.monotonic()
        status = subprocess.run(command, cwd=empty, check=False).returncode
    if status != 0:
        raise InputError(f"kernel.py ended with status {status}; its last line above says why.")
    facts = json.loads((report / "run.json").read_text(encoding="utf-8"))
    return Outcome(time.monotonic() - start, isolation, facts)


def checked_submission(path: Path, isic_ids: list[str]) -> pd.Series:
    """The submitted scores by isic_id.

    Raises:
        InputError: the file is not what Kaggle accepts: columns, ids and their order, finite numbers.
    """
    submission = pd.read_csv(path, dtype={ID: "str"})
    if list(submission.columns) != [ID, TARGET]:
        raise InputError(f"{path} has the columns {list(submission.columns)}, not {[ID, TARGET]}; the kernel is broken.")
    if submission[ID].tolist() != isic_ids:
        raise InputError(f"{path} does not hold the {len(isic_ids)} ids of sample_submission.csv in their order.")
    scores = pd.to_numeric(submission[TARGET], errors="coerce")
    if not np.isfinite(scores).all():
        raise InputError(f"{path} holds {int((~np.isfinite(scores)).sum())} scores that are no finite number.")
    return pd.Series(scores.to_numpy("float64"), index=isic_ids)


def gather_scores(
    isic_ids: list[str], parts: pd.DataFrame, submission: pd.Series, data: Path, artifacts: Path
) -> dict[str, np.ndarray]:
    """Name -> scores: CatBoost and the submission, and where they are known the image alone and the truth."""
    scores = {TABULAR: parts[TABULAR]}
    manifest = load_manifest(artifacts)
    if "image_only" in manifest:
        image = pd.read_csv(checked_file(artifacts, manifest, "oof_image_only.csv"), dtype={ID: "str"}).set_index(ID)[
            "network"
        ]
        scores[IMAGE] = image.reindex(isic_ids).fillna(image.median())
    scores[FINAL] = submission
    if (data / "truth.csv").is_file():
        truth = pd.read_csv(data / "truth.csv", dtype={ID: "str"}).set_index(ID)["logit"]
        scores[BEST] = truth.reindex(isic_ids)
    return {name: values.to_numpy("float64") for name, values in scores.items()}


def described(difference: Estimate) -> str:
    """A paired difference with its interval."""
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def main(arguments: list[str] | None = None) -> int:
    """Mounts, runs, checks, scores; prints the table and writes the page."""
    parser = argparse.ArgumentParser(description="Runs the built kernel.py offline on labelled rows and scores it")
    add_data_options(parser)
    parser.add_argument("--rows", choices=("holdout", "all"), default="holdout", help="all: also rows that training saw")
    parser.add_argument(
        "--report", type=Path, default=Path("report"), metavar="DIR", help="what to write into (%(default)s)"
    )
    parser.add_argument(
        "--lose-images", type=float, default=0.0, metavar="SHARE", help="0 to 1, drawn at random: what if they were broken?"
    )
    parser.add_argument("--kernel", type=Path, default=ROOT / "kernel.py", metavar="FILE", help="the kernel (%(default)s)")
    options = parser.parse_args(arguments)
    if not options.kernel.is_file() or (
        options.kernel == ROOT / "kernel.py" and options.kernel.read_text(encoding="utf-8") != build_kernel()
    ):
        raise InputError(f"{options.kernel} is missing or out of date; run: python -m inference.build_kernel")
    if not 0 <= options.lose_images <= 1:
        raise InputError(f"--lose-images {options.lose_images} is no share of the images; give 0 to 1.")
    rows = rows_to_score(options.data, options.artifacts, options.rows)
    isic_ids = rows[ID].tolist()
    options.report.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as mount:
        competition = Path(mount) / "isic-2024-challenge"
        mount_test_folder(options.data, isic_ids, competition, options.lose_images)
        outcome = run_kernel(options.kernel, competition, options.artifacts, options.report)
    submission = checked_submission(options.report / "submission.csv", isic_ids)
    parts = pd.read_csv(options.report / "scores.csv", dtype={ID: "str"}).set_index(ID).reindex(isic_ids)
    scores = gather_scores(isic_ids, parts, submission, options.data, options.artifacts)
    table = bootstrap_scores(rows[TARGET].to_numpy(), rows[PATIENT].to_numpy(), scores)
    page, run = options.report / "index.html", outcome.facts
    logits = {name: parts[name].to_numpy("float64") for name in (TABULAR, FINAL)}
    command = sys.argv[1:] if arguments is None else arguments
    where = (options.data, options.artifacts)
    sections = {
        "Where the submission is most wrong": lesion_sections(rows, parts, *where),
        "How the kernel ran": kernel_section(run, outcome.seconds, outcome.isolation),
        "What made this page": making_section(command, options.rows, table, run, *where, options.kernel),
    }
    warnings = [SEEN] if options.rows == "all" else []
    if options.lose_images:
        warnings.append(
            f"of the images, {options.lose_images:.0%} drawn at random were withheld from the kernel: --lose-images"
        )
    warning = "; ".join(warnings)
    scored = Scored(rows, scores, logits, run.get("combination", ""), warning)
    write_report(page, "Dry run of the submission kernel", table, scored, sections)
    if warning:
        log(warning)
    log(f"\n{table.rows:,} lesions, {table.malignant:,} malignant, {table.patients:,} patients; 95 % patient bootstrap\n")
    log(format_table(table))
    log(f"\nfusion - tabular, paired: {described(table.difference(FINAL, TABULAR))} pAUC")
    log(f"submission {options.report / 'submission.csv'}, report {page}, artifacts {options.artifacts}")
    return 0


if __name__ == "__main__":
    run_command(main)
