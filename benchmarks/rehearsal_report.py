"""What rehearsals have measured: the records on disk, forecasts from them, and the tables of docs/full-size.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.process_cost import Cost
from benchmarks.report import growth_exponent
from evaluation.studies.compare import markdown_table
from inference.files import write_json
from utils import InputError

#: The stage that Kaggle runs; all others are of the training.
KERNEL = "kernel"
#: GB of memory that a stage may take.
MEMORY = {"training": 6.0, KERNEL: 3.0}
#: The power of its rows that the time of a stage may grow with, measured between sizes that are so many times apart,
#: where the larger one takes so many CPU seconds: below, its start counts more than its rows.
GROWTH, APART, LONG = 1.05, 5.0, 60.0


@dataclass(frozen=True)
class Record:
    """A stage of a rehearsal: its share of the full size, its rows, and what it cost; ``finished`` if nothing is left."""

    share: float
    stage: str
    rows: int
    command: str
    cores: int
    cost: Cost
    finished: bool = False


class Records:
    """The records of a file, the latest of every stage of a share; each that is added is written at once.

    Raises:
        InputError: the file is none of a rehearsal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[tuple[float, str], Record] = {}
        if not path.is_file():
            return
        try:
            for entry in json.loads(path.read_text(encoding="utf-8")):
                record = Record(**entry | {"cost": Cost(**entry["cost"])})
                self._records[record.share, record.stage] = record
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise InputError(f"{path} is no file of a rehearsal ({error}); move it away.") from error

    def add(self, record: Record) -> None:
        """Puts a record in the place of the stage's former one."""
        self._records[record.share, record.stage] = record
        write_json(self.path, [asdict(each) for each in self._records.values()])

    def latest(self, share: float, stage: str) -> Record | None:
        """The record of a stage, finished or not."""
        return self._records.get((share, stage))

    def finished(self, stage: str) -> list[Record]:
        """The finished records of a stage, by their rows."""
        return sorted((each for each in self._records.values() if each.stage == stage and each.finished), key=rows_of)

    @property
    def stages(self) -> list[str]:
        """The names of all stages, in the order of their first record."""
        return list(dict.fromkeys(stage for _, stage in self._records))

    def forecast(self, stages: Sequence[tuple[str, int]]) -> float | None:
        """Seconds that stages of so many rows will take, by the two largest sizes of each; None where one is unknown.

        A straight line through both, for the start of a stage does not grow; in proportion to the rows where that would
        be less than nothing, or only one size is known.
        """
        total = 0.0
        for stage, rows in stages:
            known = self.finished(stage)[-2:]
            if not known:
                return None
            last = known[-1]
            slope = last.cost.seconds / last.rows
            if len(known) == 2 and known[0].rows < last.rows:
                slope = max(0.0, (last.cost.seconds - known[0].cost.seconds) / (last.rows - known[0].rows))
            total += max(0.0, last.cost.seconds + slope * (rows - last.rows))
        return total


def rows_of(record: Record) -> int:
    """Its rows, to sort by."""
    return record.rows


def tables(records: Records) -> str:
    """Markdown: what each stage cost at each size, and the powers of the rows that time and memory grow with."""
    costs = []
    for stage in records.stages:
        for each in records.finished(stage):
            seconds = (f"{value:,.0f}" for value in (each.cost.seconds, each.cost.cpu_seconds))
            gigabytes = (f"{value:.2f}" for value in (each.cost.peak_gb, each.cost.written_gb))
            costs.append((stage, f"{each.rows:,}", *seconds, *gigabytes))
    growth = []
    for stage in records.stages:
        pair = largest_two(records, stage)
        if pair:
            sizes = [each.rows for each in pair]
            found = (exponent(pair, name) for name in ("seconds", "cpu_seconds", "peak_gb"))
            growth.append((stage, " to ".join(f"{size:,}" for size in sizes), *(f"{power:.2f}" for power in found)))
    heads = ("stage", "rows", "seconds", "CPU seconds", "peak memory, GB", "written, GB")
    text = markdown_table(heads, costs)
    if growth:
        text += "\n\n" + markdown_table(("stage", "rows", "seconds", "CPU seconds", "peak memory"), growth)
    return text


def beyond_limits(records: Records) -> list[str]:
    """A sentence about each stage that took more memory, or grows faster with its rows, than it may."""
    sentences = []
    for stage in records.stages:
        limit = MEMORY.get(stage, MEMORY["training"])
        for each in records.finished(stage):
            if each.cost.peak_gb > limit:
                sentences.append(f"{stage} of {each.rows:,} rows took {each.cost.peak_gb:.2f} GB, more than {limit:g}")
        pair = largest_two(records, stage)
        if pair and pair[1].cost.cpu_seconds >= LONG and exponent(pair, "cpu_seconds") > GROWTH:
            power = exponent(pair, "cpu_seconds")
            sentences.append(f"the CPU seconds of {stage} grow with the rows to the power of {power:.2f}, not {GROWTH:g}")
    return sentences


def largest_two(records: Records, stage: str) -> list[Record]:
    """The finished record with the most rows, and before it the next that is far enough from it; empty if there is none."""
    known = records.finished(stage)
    smaller = [each for each in known if each.rows * APART <= known[-1].rows]
    return [smaller[-1], known[-1]] if smaller else []


def exponent(pair: Sequence[Record], name: str) -> float:
    """The power of the rows that a part of the cost grows with."""
    values = [max(getattr(each.cost, name), 1e-3) for each in pair]
    return growth_exponent([each.rows for each in pair], values)
