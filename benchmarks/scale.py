"""Measures the scoring of an archive on a cluster of two worker processes: growth of time, memory, and whether it is right.

    python -m benchmarks.scale                        500,000 and 5,000,000 made lesions

The lesions are those of one twin over and over, each time as other patients; 2,000 of them have an image. Dask kills workers
of more than 3 GB. Prints one JSON line per figure; the last is the largest difference of some patients' scores to those
of the built kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from benchmarks.report import progress, report
from benchmarks.tabular import growth_exponent
from inference.build_kernel import ROOT
from inference.network import NetworkConfig, build_network
from inference.schema import ID, PATIENT, TEST_COLUMNS
from scale.batch_scoring import main as score_archive
from train.folds import make_folds
from train.manifest import record_stage
from train.synthetic.__main__ import make_tables, write_images, write_scalar, write_table
from train.tabular import train_tabular
from utils import InputError, add_seed_option, run_command

SIZES = (500_000, 5_000_000)
#: Patients and lesions of the twin; lesions of a file; lesions with an image; patients that the kernel scores, too.
PATIENTS, LESIONS, FILE, IMAGES, COMPARED = 640, 250_000, 250_000, 2_000, 12
WORKERS, MEMORY = 2, "3GB"
#: The twin that the artifacts are trained on: how long scoring takes hangs on the number of models and trees.
TRAINED_ON = 3_000
IMAGE_SIZE = 64
TARGETS = {"growth": 1.05, "memory": 3.0, "difference": 10.0}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="lesions (default: 500000 5000000)")
    parser.add_argument("--lesions", type=int, default=LESIONS, help="of the twin, and of a file (default: %(default)s)")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    if len(options.sizes) < 2 or any(size < options.lesions or size % options.lesions for size in options.sizes):
        raise InputError(f"--sizes {options.sizes} must be two or more multiples of --lesions {options.lesions}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"making {options.lesions:,} lesions and the artifacts")
        rows, images = make_twin(folder, options)
        artifacts = make_artifacts(folder, options)
        seconds, peaks = [], []
        for size in options.sizes:
            write_archive(folder / f"archive{size}", rows, size // options.lesions)
            progress(f"scoring {size:,} lesions by {WORKERS} workers")
            took, peak = score(folder, size, images, artifacts)
            seconds.append(took)
            peaks.append(peak)
            told = {"lesions": size, "unit": "lesions/s"}
            first = f"{options.sizes[0]:,} lesions"
            report("scale speed", size / took, told, first, options.sizes[0] / seconds[0], None)
        told = {"lesions": size, "unit": "exponent of lesions"}
        report("scale growth", growth_exponent(options.sizes, seconds), told, "exponent 1", 1.0, TARGETS["growth"])
        report("scale memory", peaks[-1], told | {"unit": "GB"}, f"that of {first}", peaks[0], TARGETS["memory"])
        progress(f"the kernel on {COMPARED} patients")
        found = difference(folder, size, images, artifacts)
        told = {"lesions": size, "unit": "1e-6 logits"}
        report(
            "scale difference to the kernel", 1e6 * found, told, "the target", TARGETS["difference"], TARGETS["difference"]
        )
    return 0


def make_twin(folder: Path, options: argparse.Namespace) -> tuple[pd.DataFrame, Path]:
    """Test rows of made lesions, and the file with the images of the first ``IMAGES`` of them."""
    rows, _, _, texture = make_tables(max(1, PATIENTS * options.lesions // LESIONS), options.lesions, 0.001, options.seed)
    pictured, images = rows.sort_values([PATIENT, ID]).head(IMAGES), folder / "images.hdf5"
    write_images(images, pictured, texture[pictured.index], options.seed, jobs=WORKERS)
    return rows[list(TEST_COLUMNS)], images


def make_artifacts(folder: Path, options: argparse.Namespace) -> Path:
    """Fifteen CatBoost models by the recipe, and one network of random weights that corrects by chance."""
    rows, *_ = make_tables(30, TRAINED_ON, 0.1, options.seed + 1)
    write_table(folder / "data" / "train-metadata.csv", rows)
    where = ["--data", str(folder / "data"), "--artifacts", str(folder / "artifacts")]
    with contextlib.redirect_stdout(sys.stderr):
        make_folds([*where, "--folds", "5", "--holdout", "0"])
        train_tabular(where)
    network = build_network(NetworkConfig(IMAGE_SIZE))
    network.get_layer("correction").set_weights([np.linspace(-0.5, 0.6, 64)[:, None], np.array([0.3])])
    network.save_weights(folder / "artifacts" / "fusion_fold0.weights.h5")
    settings = NetworkConfig(IMAGE_SIZE).to_dict()
    content = {"weights": ["fusion_fold0.weights.h5"], "settings": settings, "combination": {"kind": "network"}}
    record_stage(folder / "artifacts", "network", content, content["weights"])
    return folder / "artifacts"


def write_archive(folder: Path, rows: pd.DataFrame, times: int) -> None:
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


def score(folder: Path, size: int, images: Path, artifacts: Path) -> tuple[float, float]:
    """Scores an archive on a cluster; its seconds, and the most memory of a worker in GB.

    Raises:
        InputError: not all lesions have come out.
    """
    out = folder / f"scored{size}"
    where = ["--input", str(folder / f"archive{size}"), "--images", str(images), "--artifacts", str(artifacts)]
    with cluster() as address, contextlib.redirect_stdout(sys.stderr):  # standard output is for figures
        started = time.monotonic()
        score_archive([*where, "--out", str(out), "--cluster", address])
        seconds = time.monotonic() - started
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    if run["lesions"] != size:
        raise InputError(f"{run['lesions']:,} of {size:,} lesions were scored.")
    return seconds, run["peak_memory_gb"]


def difference(folder: Path, size: int, images: Path, artifacts: Path) -> float:
    """The largest difference of logits between the archive's scores and the kernel's, of some patients with images."""
    rows = pd.read_parquet(folder / f"archive{size}" / "000.parquet")
    with h5py.File(images) as source:
        pictured = rows[ID].isin(set(source))
        patients = [*rows[PATIENT][pictured].unique()[: COMPARED // 2], *rows[PATIENT].unique()[: COMPARED // 2]]
        rows = rows[rows[PATIENT].isin(patients)]
        competition = folder / "competition"
        competition.mkdir()
        rows.to_csv(competition / "test-metadata.csv", index=False)
        with h5py.File(competition / "test-image.hdf5", "w") as file:
            for isic_id in rows[ID][rows[ID].isin(set(source))]:
                write_scalar(file, isic_id, source[isic_id][()])
    rows[[ID]].assign(target=0.3).to_csv(competition / "sample_submission.csv", index=False)
    command = [sys.executable, "-I", str(ROOT / "kernel.py"), "--competition", str(competition)]
    command += ["--artifacts", str(artifacts), "--scores", str(folder / "scores.csv")]
    command += ["--output", str(folder / "submission.csv")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    kernel = pd.read_csv(folder / "scores.csv").set_index(ID)["final"]
    parts = [
        pd.read_parquet(path, columns=[ID, "final"]) for path in sorted((folder / f"scored{size}").glob("scores-*.parquet"))
    ]
    ours = pd.concat([part[part[ID].isin(kernel.index)] for part in parts]).set_index(ID)["final"]
    shutil.rmtree(competition)
    return float((ours.loc[kernel.index] - kernel).abs().max())


if __name__ == "__main__":
    run_command(main)
