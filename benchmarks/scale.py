"""Measures batch scoring on a cluster of two worker processes: growth of time and memory, and equality with the kernel.

    python -m benchmarks.scale                        500,000 and 5,000,000 synthetic lesions

The lesions are those of one synthetic dataset over and over, each time as other patients; 2,000 of them have an image. Dask
kills workers of more than 3 GB. Prints one JSON line per figure; the last is the largest difference of some patients' scores
to those of the built kernel.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.report import add_networks, growth_exponent, progress, report, run_kernel, timed, train_small
from inference.files import write_csv, write_json
from inference.images import ImageStore
from inference.network import NetworkConfig
from inference.options import Parser, add_seed_option, count
from inference.schema import ID, PATIENT, TEST_COLUMNS, read_scores
from scale.batch_scoring import main as score_batch
from scale.parallel import workers
from terminal import run_command
from train.config import PARAMETERS
from train.synthetic.dataset import DatasetConfig, make_tables, write_images
from utils import InputError

#: Patients and lesions of the dataset; patients that the kernel scores, too.
PATIENTS, LESIONS, COMPARED = 640, 250_000, 12
WORKERS, MEMORY = 2, "3GB"
#: Lesions that the artifacts are trained on: the time of scoring depends on the number of models and trees only.
TRAINED_ON = 3_000
IMAGE_SIZE = 64
TARGETS = {"growth": 1.05, "memory": 3.0, "difference": 10.0}


@dataclass(frozen=True)
class Inputs:
    """What is scored: test rows, their images, and the artifact folder to score with."""

    rows: pd.DataFrame
    images: Path
    artifacts: Path


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sizes", type=count(), nargs="+", default=[500_000, 5_000_000], help="lesions (default: %(default)s)"
    )
    parser.add_argument(
        "--lesions", type=count(), default=LESIONS, help="of the dataset, and of a file (default: %(default)s)"
    )
    parser.add_argument("--images", type=count(), default=2_000, help="lesions with an image (default: %(default)s)")
    parser.add_argument("--trees", type=count(), default=PARAMETERS["iterations"], help="of a model (default: %(default)s)")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    sizes, lesions = options.sizes, options.lesions
    if len(sizes) < 2 or any(size < lesions or size % lesions for size in sizes):
        raise InputError(f"--sizes {sizes} must be two or more multiples of --lesions {lesions}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"making {lesions:,} lesions and the artifacts")
        rows, images = make_lesions(folder, lesions, options.images, options.seed)
        inputs = Inputs(rows, images, make_artifacts(folder, options.trees, options.seed + 1))
        measure(folder, inputs, sizes)
    return 0


def make_lesions(folder: Path, lesions: int, images: int, seed: int) -> tuple[pd.DataFrame, Path]:
    """Test rows of synthetic lesions, and the file with the images of the first patients' lesions."""
    made = make_tables(DatasetConfig(max(1, PATIENTS * lesions // LESIONS), lesions, 0.001, seed))
    with_image = made.train.sort_values([PATIENT, ID]).head(images)
    with workers(WORKERS):
        write_images(folder / "images.hdf5", with_image, made.train_texture[with_image.index], seed)
    return made.train[list(TEST_COLUMNS)], folder / "images.hdf5"


def make_artifacts(folder: Path, trees: int, seed: int) -> Path:
    """Fifteen CatBoost models by the defaults of train.tabular, and one network."""
    rows = make_tables(DatasetConfig(30, TRAINED_ON, 0.1, seed)).train
    write_csv(folder / "data" / "train-metadata.csv", rows, float_format=None)
    write_json(folder / "trees.json", {"iterations": trees})
    train_small(folder / "data", folder / "artifacts", 5, ["--params", str(folder / "trees.json")])
    add_networks(folder / "artifacts", NetworkConfig(IMAGE_SIZE), 1)
    return folder / "artifacts"


def measure(folder: Path, inputs: Inputs, sizes: list[int]) -> None:
    """Scores a table of each size; reports speed, growth, memory, and the difference to the kernel."""
    runs, first = [], f"{sizes[0]:,} lesions"
    for size in sizes:
        write_parts(folder / f"lesions{size}", inputs.rows, size // len(inputs.rows))
        progress(f"scoring {size:,} lesions by {WORKERS} workers")
        runs.append(score(folder, size, inputs))
        report("scale speed", size / runs[-1][0], "lesions/s", size, (first, sizes[0] / runs[0][0]))
    seconds, peaks = zip(*runs, strict=True)
    exponent = growth_exponent(sizes, seconds)
    report("scale growth", exponent, "exponent of lesions", size, ("exponent 1", 1.0), TARGETS["growth"])
    report("scale memory", peaks[-1], "GB", size, (f"that of {first}", peaks[0]), TARGETS["memory"])
    progress(f"the kernel on {COMPARED} patients")
    found, target = 1e6 * difference(folder, size, inputs), TARGETS["difference"]
    report("scale difference to the kernel", found, "1e-6 logits", size, ("the target", target), target)


def write_parts(folder: Path, rows: pd.DataFrame, times: int) -> None:
    """The rows ``times`` over in as many Parquet files; each time but the first they are other lesions of other patients."""
    folder.mkdir()
    for number in range(times):
        other = {name: f"{number}-" + rows[name].astype(str) for name in (ID, PATIENT)} if number else {}
        rows.assign(**other).to_parquet(folder / f"{number:03d}.parquet", index=False)


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The address of a cluster of ``WORKERS`` processes of this machine, of ``MEMORY`` each."""
    from distributed import LocalCluster

    how = {"n_workers": WORKERS, "threads_per_worker": 1, "processes": True, "memory_limit": MEMORY}
    with LocalCluster(**how, dashboard_address=":0") as local:
        yield local.scheduler_address


def score(folder: Path, size: int, inputs: Inputs) -> tuple[float, float]:
    """Scores a table on a cluster; its seconds, and the most memory of a worker in GB.

    Raises:
        InputError: not all lesions were scored.
    """
    out = folder / f"scored{size}"
    command = ["--input", str(folder / f"lesions{size}"), "--images", str(inputs.images), "--out", str(out)]
    with cluster() as address, contextlib.redirect_stdout(sys.stderr):  # standard output is for figures
        command += ["--artifacts", str(inputs.artifacts), "--cluster", address]
        seconds, _ = timed(lambda: score_batch(command))
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    if run["lesions"] != size:
        raise InputError(f"{run['lesions']:,} of {size:,} lesions were scored.")
    return seconds, run["peak_memory_gb"]


def difference(folder: Path, size: int, inputs: Inputs) -> float:
    """The largest difference of final logits between batch scoring and the kernel, of some patients with images."""
    rows, store = pd.read_parquet(folder / f"lesions{size}" / "000.parquet"), ImageStore(inputs.images)
    with_image = rows[ID].map(store.__contains__)
    some = [table[PATIENT].unique()[: COMPARED // 2] for table in (rows[with_image], rows)]
    rows = rows[rows[PATIENT].isin(np.concatenate(some))]
    images = ((isic_id, store.read(isic_id)) for isic_id in rows[ID][with_image])
    run_kernel(folder / "kernel", rows, images, inputs.artifacts)
    store.close()
    kernel = read_scores(folder / "kernel" / "scores.csv", ["final"])["final"]
    scored = pd.concat(
        part[part[ID].isin(kernel.index)]
        for part in (pd.read_parquet(path, columns=[ID, "final"]) for path in (folder / f"scored{size}").glob("scores-*"))
    )
    return float((scored.set_index(ID)["final"].loc[kernel.index] - kernel).abs().max())


if __name__ == "__main__":
    run_command(main)
