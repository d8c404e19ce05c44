"""The main path at the competition's size, or a share of it, on a synthetic dataset: what each stage costs.

    python -m benchmarks.rehearsal --out rehearsal --share 0.1

401,059 training lesions and 511,474 test lesions with their crops are made; then the stages of the main path and the
kernel run as a user runs them, with a small network and few steps, on all rows. Wall-clock and CPU seconds, peak memory and
bytes written of each stage go to measurements.json. The same command continues an interrupted rehearsal; a share that is not
small begins with a rehearsal of a hundredth, from which its time is forecast. It refuses, with exit status 2, a stage that
needed more memory, or grew faster, than it may.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.process_cost import Cost, measured
from benchmarks.rehearsal_report import KERNEL, Record, Records, beyond_limits, tables
from evaluation.main_path.stages import STAGES, MainPath, commands
from inference.build_kernel import ROOT
from inference.images import cores
from inference.options import Number, Parser, output_folder
from inference.run_log import minutes
from terminal import run_command
from train.synthetic.dataset import LESIONS, PATIENTS, PREVALENCE
from utils import InputError, log, log_summary

TEST_LESIONS = 511_474  # of the competition's hidden test
#: Small datasets have so many patients and malignant lesions at least, or folds would have none.
FEWEST_PATIENTS, FEWEST_MALIGNANT = 20, 40
#: What is rehearsed before a larger share, for its forecast.
FIRST = 0.01
#: Seconds between two lines about the time left.
NEWS = 60.0
#: What two cores train in minutes; every lesion is decoded and scored once, few are trained on.
NETWORK = (
    *("--backbone", "efficientnet-lite0", "--weights", "none", "--image-size", "32", "--epochs", "2"),
    *("--batch-size", "64", "--learning-rate", "1e-3", "--negatives-per-positive", "20"),
)
ONE_SEED = ("--seeds", "1")
OPTIONS: dict[str, list[tuple[str, ...]]] = {
    "folds": [("--folds", "2")],
    "tabular": [ONE_SEED],
    "fusion": [NETWORK],
    "stacking": [ONE_SEED],
}


@dataclass(frozen=True)
class Step:
    """A stage of a rehearsal.

    Args:
        name: of the stage.
        rows: that it works on.
        command: its words.
        folder: of the rehearsal.
        resumes: whether the command continues where it was interrupted.
    """

    name: str
    rows: int
    command: tuple[str, ...]
    folder: Path
    resumes: bool = False

    @property
    def text(self) -> str:
        """The command as the records have it: the same whatever the folder."""
        return (
            " ".join(self.command).replace(sys.executable, "python").replace(f"{self.folder}/", "").replace(f"{ROOT}/", "")
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages and prints the tables; refuses stages that exceed their limits."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=output_folder, default=Path("rehearsal"), metavar="DIR", help="(%(default)s)")
    parser.add_argument(
        "--share",
        type=Number(0.001, 1),
        default=1.0,
        help="of 401,059 training and 511,474 test lesions (default: %(default)s)",
    )
    parser.add_argument("--report", action="store_true", help="print the tables of what was measured, and run nothing")
    options = parser.parse_args(arguments)
    records = Records(options.out / "measurements.json")
    if not options.report:
        for share in sorted({min(FIRST, options.share), options.share}):
            rehearse(steps_of(share, options.out), share, records)
    log(tables(records))
    if beyond := beyond_limits(records):
        raise InputError(f"{'; '.join(beyond)}; see {records.path}.")
    log_summary(f"{records.path}: every stage is within its limits")
    return 0


def steps_of(share: float, out: Path) -> list[Step]:
    """The stages of a rehearsal; each share has a folder of its own below ``out``."""
    train, test = round(LESIONS * share), round(TEST_LESIONS * share)
    folder = (out / f"share-{share:g}").resolve()
    size = {
        "--patients": max(FEWEST_PATIENTS, round(PATIENTS * share)),
        "--lesions": train,
        "--test-lesions": test,
        "--prevalence": max(PREVALENCE, FEWEST_MALIGNANT / train),
    }
    path, python = MainPath(folder / "data", folder / "artifacts", folder / "report", OPTIONS), (sys.executable, "-m")
    made = ("--out", str(path.data), "--images", "bank", *(str(word) for pair in size.items() for word in pair))
    where = ("--competition", str(path.data), "--artifacts", str(path.artifacts))
    output = ("--output", str(folder / "kernel" / "submission.csv"))
    return [
        Step("dataset", train + test, (*python, "train.synthetic", *made), folder),
        *(
            Step(each.title, train, (*python, each.module, *each.arguments), folder, each.module == STAGES["fusion"])
            for each in commands(path)
            if each.module != STAGES["kernel"]  # it builds the kernel.py that is there
        ),
        Step(KERNEL, test, (sys.executable, "-I", str(ROOT / "kernel.py"), *where, *output), folder),
    ]


def rehearse(steps: Sequence[Step], share: float, records: Records) -> None:
    """Runs the stages of a share from the first that is not measured yet.

    Raises:
        InputError: a stage failed; the same command continues with it.
    """
    done = 0
    while done < len(steps) and is_measured(steps[done], records.latest(share, steps[done].name)):
        done += 1
    left = records.forecast([(step.name, step.rows) for step in steps[done:]])
    time_left = "" if left is None else f", about {minutes(left)}"
    log(f"share {share:g}: {done} of {len(steps)} stages are measured, {len(steps) - done} to run{time_left}")
    for number in range(done, len(steps)):
        run_step(steps[number:], share, records)


def is_measured(step: Step, record: Record | None) -> bool:
    """Whether the record is of this very step, finished."""
    return record is not None and record.finished and record.command == step.text


def run_step(steps: Sequence[Step], share: float, records: Records) -> None:
    """Runs and records the first of the steps that are left.

    Raises:
        InputError: its command failed.
    """
    step, former = steps[0], records.latest(share, steps[0].name)
    before = Cost()
    if step.resumes and former and not former.finished and former.command == step.text:
        before = former.cost
    left = records.forecast([(each.name, each.rows) for each in steps])
    record = Record(share, step.name, step.rows, step.text, cores(), before)
    news = time.monotonic() + NEWS
    log(f"share {share:g}, {step.name}, {step.rows:,} rows: {step.text}")

    def watch(cost: Cost) -> None:
        nonlocal record, news
        record = replace(record, cost=before.and_then(cost))
        if time.monotonic() > news:
            news = time.monotonic() + NEWS
            records.add(record)
            time_left = "" if left is None else f", about {minutes(max(0.0, left - cost.seconds))} left in all"
            log(f"share {share:g}, {step.name}: {minutes(cost.seconds)}, {cost.peak_gb:.2f} GB{time_left}")

    try:
        status, cost = measured(step.command, ROOT, os.environ, watch)
        record = replace(record, cost=before.and_then(cost), finished=status == 0)
    finally:
        records.add(record)
    if status:
        raise InputError(f"{step.name} ended with status {status}; see above, and run the same command again.")
    log(f"share {share:g}, {step.name}: {minutes(cost.seconds)}, {cost.cpu_seconds:.0f} s of CPU, {cost.peak_gb:.2f} GB")


if __name__ == "__main__":
    run_command(main)
