"""Runs the built kernel.py offline on labelled rows, and scores its submission.

    python -m evaluation.dry_run --data data/isic-2024-challenge --artifacts artifacts --report report

The holdout becomes the folder that Kaggle would mount: test metadata without label and train-only columns, test images, a
sample submission. kernel.py runs on it in its own process, from an empty folder, without the repository and, where the
system allows it, without a network. Its submission is checked as Kaggle checks it, and scored. A local tool.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.lesions import lesion_section
from evaluation.measures import BEST, FINAL, IMAGE, NETWORK, STACKING, TABULAR
from evaluation.provenance import kernel_section, making_section
from evaluation.report import Scored, write_report
from inference.artifacts import FOLDS, MANIFEST, OOF_IMAGE_ONLY, checked_file, load_manifest
from inference.build_kernel import ROOT, build_kernel
from inference.files import write_json
from inference.images import ImageStore, find_images
from inference.options import Parser, add_data_options, existing_file, output_folder, positive_number, share
from inference.schema import ID, PATIENT, TARGET, TEST_COLUMNS, read_metadata, read_scores, read_table
from inference.scoring import IN_CONTEXT
from inference.tables import Reading, id_mismatch, read_csv_file
from scale.artifact_folder import fingerprints
from scale.output_folder import output_set
from terminal import run_command
from train.folds import HOLDOUT, read_folds
from train.image_files import write_image_file
from train.manifest import made_with
from utils import OUTPUT, Estimate, InputError, ScoreTable, bootstrap_scores, format_table, log, log_summary

PAGE, TITLE = "index.html", "Dry run of the submission kernel"
#: The scores, and what they were made with: ``is_done`` compares it. Reports of earlier versions have none.
RESULT = "result.json"
FILES = (PAGE, "submission.csv", "scores.csv", "run.json", RESULT)
TRAINED_ON = "These rows include rows that the models were trained on: the scores are too high; use --rows holdout"


@dataclass(frozen=True)
class Options:
    """The command's options."""

    data: Path
    artifacts: Path
    rows: str
    report: Path
    lose_images: float
    image_share: float
    kernel: Path

    @property
    def warning(self) -> str:
        """What makes the scores differ from those of a submission; empty if nothing does."""
        lost = f"{self.lose_images:.0%} of the images, drawn at random, were withheld from the kernel (--lose-images)"
        part = (
            f"the networks scored the {self.image_share:.0%} of the lesions with the highest tabular logits (--image-share)"
        )
        reasons = {TRAINED_ON: self.rows == "all", lost: self.lose_images > 0, part: self.image_share < 1}
        return "; ".join(reason for reason, applies in reasons.items() if applies)

    @property
    def kernel_options(self) -> list[str]:
        """Options that are passed on to the kernel; none, if they have its defaults: it may be an older one."""
        return ["--image-share", str(self.image_share)] if self.image_share < 1 else []


@dataclass(frozen=True)
class Outcome:
    """A run of the kernel: seconds of its process, its isolation in words, and run.json."""

    seconds: float
    isolation: str
    facts: dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Mounts, runs, checks, scores; prints the table and writes the report."""
    options = read_options(arguments)
    made = made_of(options)
    with output_set(options.report, FILES, marks=FILES[:-1], title=TITLE) as staging:
        rows = rows_to_score(options.data, options.artifacts, options.rows)
        isic_ids = rows[ID].tolist()
        with tempfile.TemporaryDirectory() as mount:
            competition = Path(mount) / "isic-2024-challenge"
            mount_test_folder(options.data, isic_ids, competition, options.lose_images)
            outcome = run_kernel(options.kernel, competition, options.artifacts, staging, more=options.kernel_options)

        submission = checked_submission(staging / "submission.csv", isic_ids)
        parts = read_parts(staging / "scores.csv").reindex(isic_ids)
        scores = gather_scores(parts, submission, options.data, options.artifacts)
        table = bootstrap_scores(rows[TARGET].to_numpy(), rows[PATIENT].to_numpy(), scores)

        scored = Scored(rows, scores, logits_of(parts), options.warning)
        counts = f"{table.rows:,} lesions, {table.malignant:,} malignant, {table.patients:,} patients"
        files = {"data": options.data, "artifacts": options.artifacts, "kernel": options.kernel}
        sections = [
            lesion_section(rows, parts, options.data, options.artifacts),
            kernel_section(outcome.facts, outcome.seconds, outcome.isolation),
            making_section(
                sys.argv[1:] if arguments is None else arguments, f"{options.rows}: {counts}", outcome.facts, files
            ),
        ]
        write_report(staging / PAGE, TITLE, table, scored, sections)
        write_json(staging / RESULT, {"made_with": made} | result_of(table))
    log_scores(table, counts, options)
    return 0


def read_options(arguments: list[str] | None) -> Options:
    """The checked options.

    Raises:
        InputError: an option cannot be used, or the kernel is missing or out of date.
    """
    parser = Parser(description="Runs the built kernel.py offline on labelled rows and scores it")
    add_data_options(parser)
    parser.add_argument("--rows", choices=("holdout", "all"), default="holdout", help="all: also rows of the training")
    parser.add_argument(
        "--report", type=output_folder, default=Path("report"), metavar="DIR", help="folder to write (%(default)s)"
    )
    parser.add_argument(
        "--lose-images", type=share(), default=0.0, metavar="SHARE", help="0 to 1: withhold so many images, drawn at random"
    )
    parser.add_argument(
        "--image-share",
        type=positive_number(1),
        default=1.0,
        metavar="SHARE",
        help="above 0 to 1: of the lesions that the networks score, the highest tabular logits (default: %(default)s)",
    )
    parser.add_argument(
        "--kernel", type=existing_file, default=ROOT / "kernel.py", metavar="FILE", help="the kernel (%(default)s)"
    )
    options = Options(**vars(parser.parse_args(arguments)))
    own = options.kernel == ROOT / "kernel.py"
    if not options.kernel.is_file() or (own and options.kernel.read_text(encoding="utf-8") != build_kernel()):
        raise InputError(f"{options.kernel} is missing or out of date; run: python -m inference.build_kernel")
    return options


def made_of(options: Options) -> dict[str, str]:
    """What decides the outcome of a dry run, as ``train.manifest.made_with``."""
    images = find_images(options.data, "train")
    reads = [options.data / "train-metadata.csv", options.data / "truth.csv", options.artifacts / MANIFEST, options.kernel]
    decisive = {name: value for name, value in asdict(options).items() if not isinstance(value, Path)}
    return made_with("evaluation.dry_run", decisive, fingerprints([*reads, *filter(None, [images])]))


def is_done(options: Options) -> bool:
    """Whether the report is there of the same rows, artifacts, kernel, options and code."""
    try:
        known = json.loads((options.report / RESULT).read_text(encoding="utf-8"))["made_with"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return all((options.report / name).is_file() for name in FILES) and known == made_of(options)


def result_of(table: ScoreTable) -> dict[str, Any]:
    """The scores for result.json, by name: pAUC with its interval, AUC, top-15 retrieval; and the rows' counts."""
    scores = {
        name: {
            "pauc": score.pauc.value,
            "interval": [score.pauc.low, score.pauc.high],
            "auc": score.auc.value,
            "top15": score.top15.value,
        }
        for name, score in table.scores.items()
    }
    return {"rows": table.rows, "malignant": table.malignant, "patients": table.patients, "scores": scores}


def rows_to_score(data: Path, artifacts: Path, which: str) -> pd.DataFrame:
    """Labelled rows, as ``read_metadata`` gives them: the holdout of folds.csv, or all.

    Raises:
        InputError: there is no holdout, or folds.csv is of other rows, patients or labels.
    """
    metadata = read_metadata(data / "train-metadata.csv", labelled=True)
    if which == "all":
        return metadata
    path = checked_file(artifacts, load_manifest(artifacts), FOLDS)
    fold = read_folds(artifacts, metadata)
    if not (fold == HOLDOUT).any():
        raise InputError(f"{path} has no holdout; run train.folds with --holdout, or give --rows all.")
    return metadata[fold == HOLDOUT].reset_index(drop=True)


def mount_test_folder(data: Path, isic_ids: list[str], folder: Path, lost: float = 0.0) -> None:
    """Writes the test folder that Kaggle would mount for these lesions, their metadata cells as published, as text.

    Args:
        data: the competition folder with the labelled rows.
        isic_ids: the lesions of the test folder, in this order.
        folder: to write.
        lost: share of the images that are left out, drawn at random with a fixed seed.
    """
    folder.mkdir(parents=True)
    text = read_csv_file(data / "train-metadata.csv", Reading(str, keep_default_na=False))
    text = text.set_index(ID, drop=False).loc[isic_ids]
    text[[name for name in TEST_COLUMNS if name in text]].to_csv(folder / "test-metadata.csv", index=False)
    pd.DataFrame({ID: isic_ids, TARGET: 0.3}).to_csv(folder / "sample_submission.csv", index=False)
    source = find_images(data, "train")
    kept, unreadable = np.array(isic_ids)[np.random.default_rng(0).random(len(isic_ids)) >= lost], []

    def readable(source: Path) -> Iterator[tuple[str, bytes]]:
        store = ImageStore(source)
        for isic_id in kept:
            jpeg = store.read(isic_id)
            if jpeg:
                yield isic_id, jpeg
            else:
                unreadable.append(isic_id)
        store.close()

    write_image_file(folder / "test-image.hdf5", readable(source) if source else (), len(kept))
    if unreadable:
        log(f"{len(unreadable):,} of {len(kept):,} lesions have no readable image in {source}, such as {unreadable[0]}")


def without_network() -> tuple[list[str], str]:
    """The command prefix that runs a process without a network, empty where the system allows none; and a description."""
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
        return command, "network namespace without a network"
    return [], "none: this system allows no network namespace"


def run_kernel(
    kernel: Path,
    competition: Path,
    artifacts: Path,
    report: Path,
    python: Path = Path(sys.executable),
    more: Sequence[str] = (),
) -> Outcome:
    """Runs a copy of the kernel from an empty folder; it writes submission.csv, run.json and scores.csv to ``report``.

    Args:
        kernel: the built file.
        competition: the test folder.
        artifacts: the artifact folder.
        report: folder to write to.
        python: the interpreter.
        more: options of the kernel.

    Raises:
        InputError: the kernel ends with another status than 0.
    """
    prefix, isolation = without_network()
    with tempfile.TemporaryDirectory() as empty:
        copy = shutil.copy(kernel, empty)
        command = [*prefix, str(python.absolute()), "-I", copy, "--competition", str(competition.resolve())]
        command += ["--artifacts", str(artifacts.resolve()), "--output", str(report.resolve() / "submission.csv")]
        command += ["--scores", str(report.resolve() / "scores.csv"), *more]
        log(f"kernel.py, isolation: {isolation}")
        start = time.monotonic()
        output = subprocess.DEVNULL if OUTPUT.verbosity < 0 else None
        status = subprocess.run(command, cwd=empty, stdout=output, check=False).returncode
    if status != 0:
        raise InputError(f"kernel.py ended with status {status}; its last line above has the reason.")
    facts = json.loads((report / "run.json").read_text(encoding="utf-8"))
    return Outcome(time.monotonic() - start, isolation, facts)


def checked_submission(path: Path, isic_ids: list[str]) -> pd.Series:
    """The submitted scores by isic_id.

    Raises:
        InputError: Kaggle would not accept the file: columns, ids and their order, finite numbers.
    """
    submission = read_table(path)
    if list(submission.columns) != [ID, TARGET]:
        raise InputError(f"{path} has the columns {list(submission.columns)}, not {[ID, TARGET]}; the kernel is broken.")
    if submission[ID].tolist() != isic_ids:
        raise InputError(f"{path} does not hold the {len(isic_ids)} ids of sample_submission.csv in their order.")
    scores = pd.to_numeric(submission[TARGET], errors="coerce")
    if not np.isfinite(scores).all():
        raise InputError(f"{path} holds {int((~np.isfinite(scores)).sum())} scores that are no finite number.")
    return pd.Series(scores.to_numpy("float64"), index=isic_ids)


def read_parts(path: Path) -> pd.DataFrame:
    """The logits of every stage that the kernel wrote to scores.csv, and image_scored, by isic_id.

    Those of the last stage and the network logits in context, where there are any, are NaN where the stage does not apply.

    Raises:
        InputError: the file lacks one of them.
    """
    last = [IN_CONTEXT, STACKING] if STACKING in read_table(path) else []
    return read_scores(path, [TABULAR, NETWORK, *last, FINAL, "image_scored"])


def logits_of(parts: pd.DataFrame) -> dict[str, np.ndarray]:
    """The logits of ``read_parts`` by name, shape (rows,); where the last stage does not apply, it has the networks'."""
    names = [name for name in (TABULAR, NETWORK, STACKING, FINAL) if name in parts]
    return {name: parts[name].fillna(parts[NETWORK]).to_numpy("float64") for name in names}


def gather_scores(parts: pd.DataFrame, submission: pd.Series, data: Path, artifacts: Path) -> dict[str, np.ndarray]:
    """Name -> scores, shape (rows,): of every stage and final, and where they are known image only and best possible.

    Args:
        parts: of ``read_parts``.
        submission: by isic_id, rows as in ``parts``.
        data: the competition folder, which has truth.csv if it is synthetic.
        artifacts: the artifact folder; a lesion without an image-only score gets the median of the others.
    """
    stages, manifest, truth = logits_of(parts), load_manifest(artifacts), data / "truth.csv"
    scores = {TABULAR: stages.pop(TABULAR)}
    if "image_only" in manifest:
        image = read_scores(checked_file(artifacts, manifest, OOF_IMAGE_ONLY), ["network"])["network"]
        scores[IMAGE] = image.reindex(parts.index).fillna(image.median()).to_numpy("float64")
    scores |= stages | {FINAL: submission.to_numpy("float64")}
    if truth.is_file():
        best = read_scores(truth, ["logit"])["logit"]
        if not parts.index.isin(best.index).all():
            differ = id_mismatch("train-metadata.csv", parts.index, str(truth), best.index)
            raise InputError(f"{differ}; remove {truth.name}, or make both with train.synthetic again.")
        scores[BEST] = best.reindex(parts.index).to_numpy("float64")
    return scores


def paired_differences(table: ScoreTable) -> dict[str, Estimate]:
    """Stage -> the paired difference in pAUC of the submission to it."""
    return {name: table.difference(FINAL, name) for name in (TABULAR, NETWORK, STACKING) if name in table.scores}


def log_scores(table: ScoreTable, counts: str, options: Options) -> None:
    """Prints the warning, the table, the differences between stages and the summary line."""
    if options.warning:
        log(f"WARNING: {options.warning}")
    log(f"{counts}; 95 % patient bootstrap\n\n{format_table(table)}\n")
    for name, apart in paired_differences(table).items():
        log(f"final - {name}, paired: {apart.value:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}] pAUC")
    page = options.report / PAGE
    log_summary(f"submission {options.report / 'submission.csv'}, report {page}, artifacts {options.artifacts}")


if __name__ == "__main__":
    run_command(main)
