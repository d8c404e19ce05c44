"""Writes a SLICE-3D twin: a competition folder of made lesions whose best possible score is known.

The folder has the files of the ISIC 2024 competition, in its columns, units, frequencies and HDF5 form, and beside them
truth.csv with the probability that each lesion was malignant. Its pAUC is the best that any model can reach. Part of
the probability is told by a lesion's own columns, part only by comparing it with the patient's other lesions, and part
only by the image. Nothing of a real patient is in it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from inference.files import replacing
from inference.schema import ID, TARGET, TEST_COLUMNS
from scale.parallel import stream_tasks, workers
from train.synthetic.images import RENDER_COLUMNS, render
from train.synthetic.metadata import (
    UNSEEN_HOSPITAL,
    add_diagnoses,
    choose_hospitals,
    choose_lesion_counts,
    lesion_ids,
    make_patients,
    make_rows,
    malignancy,
)
from utils import InputError, add_seed_option, log, partial_auc, run_command

PATIENTS, LESIONS, PREVALENCE = 1_042, 401_059, 0.00098  # the competition's train file
TEST_HOSPITALS = (  # of the three one-lesion patients of the competition's public test file
    "Memorial Sloan Kettering Cancer Center",
    "Frazer Institute, The University of Queensland, Dermatology Research Centre",
    UNSEEN_HOSPITAL,
)
SAMPLE_SCORE = 0.3  # in the competition's sample_submission.csv
CHUNK = 128  # lesions that a process renders at a time


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="competition folder to write")
    parser.add_argument("--patients", type=int, default=PATIENTS, help="patients (default: %(default)s)")
    parser.add_argument("--lesions", type=int, default=LESIONS, help="lesions of them all (default: %(default)s)")
    parser.add_argument(
        "--prevalence", type=float, default=PREVALENCE, help="mean probability of malignancy (default: %(default)s)"
    )
    parser.add_argument("--images", choices=("all", "none"), default="all", help="none: metadata only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that render images")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    log(write_twin(**vars(options)))
    return 0


def write_twin(
    out: Path,
    patients: int = PATIENTS,
    lesions: int = LESIONS,
    prevalence: float = PREVALENCE,
    images: str = "all",
    jobs: int = 1,
    seed: int = 0,
) -> str:
    """Writes the folder and returns a line that sums it up.

    The same arguments, whatever ``jobs``, give the same bytes in every CSV file and image.

    Raises:
        InputError: an argument is out of its range, or ``out`` cannot be written to.
    """
    _check(out, patients, lesions, prevalence, images, jobs, seed)
    start = time.perf_counter()
    train, truth, test, texture = make_tables(patients, lesions, prevalence, seed)
    write_table(out / "train-metadata.csv", train)
    write_table(out / "test-metadata.csv", test[list(TEST_COLUMNS)])
    write_table(out / "sample_submission.csv", test[[ID]].assign(**{TARGET: SAMPLE_SCORE}))
    write_table(out / "truth.csv", truth)
    rendering = time.perf_counter()
    if images == "all":
        write_images(out / "train-image.hdf5", train, texture[: len(train)], seed, jobs)
        write_images(out / "test-image.hdf5", test, texture[len(train) :], seed, 1)
    end = time.perf_counter()
    target = train[TARGET].to_numpy()
    best = f"{partial_auc(target, truth['logit']):.4f}" if 0 < target.sum() < len(target) else "undefined (one class)"
    speed = f", {len(train) / (end - rendering):.0f} images/s" if images == "all" else ""
    return (
        f"{out}: {len(train)} lesions of {patients} patients, {target.sum()} malignant, best possible pAUC {best}, "
        f"{end - start:.1f} s{speed}"
    )


def make_tables(
    patients: int, lesions: int, prevalence: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, NDArray[np.float64]]:
    """The train rows (55 columns), their truth, the three test rows, and every image's latent texture strength.

    Rows are in the order of their ids, as the competition's are, so that a patient's lesions lie scattered. The texture,
    standard normal, has shape (train rows + test rows,) and depends on no column.
    """
    rng = np.random.default_rng(seed)
    ids = lesion_ids(lesions + len(TEST_HOSPITALS), rng)
    counts = choose_lesion_counts(patients, lesions, rng)
    people = make_patients(
        np.append(counts, [1] * len(TEST_HOSPITALS)), [*choose_hospitals(counts, rng), *TEST_HOSPITALS], rng
    )
    rows = make_rows(people, rng)
    texture = rng.standard_normal(len(rows))
    order = np.append(rng.permutation(lesions), np.arange(lesions, len(rows)))
    rows = rows.iloc[order].reset_index(drop=True)
    train, test = rows[:lesions], rows[lesions:].reset_index(drop=True)
    train_ids = np.sort(ids[:lesions])
    truth = malignancy(train, texture[:lesions], prevalence)
    target = (rng.random(lesions) < truth["probability"]).to_numpy(np.int64)
    train = add_diagnoses(train.assign(**{ID: train_ids}), target, rng)
    truth.insert(0, ID, train_ids)
    return train, truth, test.assign(**{ID: np.sort(ids[lesions:])}), texture


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV file as the competition does: empty where missing, numbers with as many digits as they have."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_images(path: Path, rows: pd.DataFrame, texture: NDArray[np.float64], seed: int, jobs: int) -> None:
    """Writes one image per row as the competition does: HDF5, a scalar of JPEG bytes named by the lesion's id.

    Args:
        path: the HDF5 file.
        rows: metadata, with the columns of ``RENDER_COLUMNS``.
        texture: latent strength of the texture in each image, shape (rows,).
        seed: with a row's lesion id, the source of everything drawn for its image.
        jobs: processes that render; they do not change the images.
    """
    numbers = rows[list(RENDER_COLUMNS)].to_numpy(np.float32)
    ids = rows[ID].tolist()
    with (
        replacing(path) as temporary,
        h5py.File(temporary, "w") as file,
        tqdm(total=len(ids), desc=path.name, unit="image", disable=len(ids) < 1000) as bar,
    ):
        for first, jpegs in _rendered(ids, numbers, texture, seed, jobs):
            for lesion, jpeg in zip(ids[first : first + CHUNK], jpegs, strict=True):
                write_scalar(file, lesion, jpeg)
            bar.update(len(jpegs))


def write_scalar(file: h5py.File, name: str, jpeg: bytes) -> None:
    """``file[name] = numpy.bytes_(jpeg)`` by h5py's low-level calls, which take a third of the time."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(jpeg))
    kind.set_strpad(h5py.h5t.STR_NULLPAD)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_obj_track_times(False)  # no time of writing, as h5py's own assignment
    h5py.h5d.create(file.id, name.encode(), kind, space, plan).write(space, space, np.array(jpeg))


def _rendered(
    ids: list[str], numbers: NDArray[np.float32], texture: NDArray[np.float64], seed: int, jobs: int
) -> Iterator[tuple[int, list[bytes]]]:
    """The first row and the JPEG bytes of each chunk, in order."""
    firsts = range(0, len(ids), CHUNK)
    parts = ((each[first : first + CHUNK] for each in (ids, numbers, texture)) for first in firsts)
    with workers(1 if len(firsts) == 1 else jobs):
        yield from zip(firsts, stream_tasks(_render_chunk, ((*part, seed) for part in parts)), strict=True)


def _render_chunk(ids: list[str], numbers: NDArray[np.float32], texture: NDArray[np.float64], seed: int) -> list[bytes]:
    """JPEG bytes of some rows; each has its own random numbers, so that chunks and processes do not matter."""
    jpegs = []
    with threadpool_limits(1):  # small matrix products: more threads would mostly wait for each other
        for lesion, row, strength in zip(ids, numbers, texture, strict=True):
            rng = np.random.default_rng([seed, int(lesion.removeprefix("ISIC_"))])
            jpegs.append(render(dict(zip(RENDER_COLUMNS, row.tolist(), strict=True)), float(strength), rng))
    return jpegs


def _check(out: Path, patients: int, lesions: int, prevalence: float, images: str, jobs: int, seed: int) -> None:
    """Refuses arguments out of their range, in one sentence."""
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out is {out}, but {folder} is a file; name a folder.")
    if patients < 1:
        raise InputError(f"--patients is {patients}; give at least 1.")
    if lesions < patients:
        raise InputError(f"--lesions is {lesions}, but each of the {patients} patients has at least one; give more lesions.")
    if lesions > 5_000_000:
        raise InputError(f"--lesions is {lesions}; ids have seven digits, so give at most 5000000.")
    if not 0.0 < prevalence < 0.5:
        raise InputError(f"--prevalence is {prevalence}; give a share above 0 and below 0.5.")
    if images not in ("all", "none"):
        raise InputError(f"--images is {images!r}; give 'all' or 'none'.")
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}; give at least 1.")
    if seed < 0:
        raise InputError(f"--seed is {seed}; give 0 or a positive whole number.")


if __name__ == "__main__":
    run_command(main)
