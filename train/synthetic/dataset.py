"""The files of a synthetic dataset: tables, labels drawn from known probabilities, rendered images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from inference.files import write_csv
from inference.schema import ID, TARGET, TEST_COLUMNS
from scale.output_folder import output_set
from scale.parallel import stream_tasks
from train.image_files import write_image_file
from train.synthetic.bank import Bank, bank_rows, turned
from train.synthetic.images import RENDER_COLUMNS, render
from train.synthetic.malignancy import malignancy
from train.synthetic.metadata import (
    add_diagnoses,
    choose_hospitals,
    choose_lesion_counts,
    draw_ids,
    make_patients,
    make_rows,
)
from train.synthetic.published import TEST_HOSPITALS
from utils import InputError, partial_auc

PATIENTS, LESIONS, PREVALENCE = 1_042, 401_059, 0.00098  # the competition's train file
SAMPLE_SCORE = 0.3  # in the competition's sample_submission.csv
MOST_LESIONS = 5_000_000  # ids have seven digits
IMAGES = ("all", "bank", "none")  # rendered for each lesion, drawn from a bank of rendered ones, metadata only
TRUTH = "truth.csv"  # which no other competition folder has
FILES = (
    *("train-metadata.csv", "train-image.hdf5", "test-metadata.csv", "test-image.hdf5"),
    *("sample_submission.csv", TRUTH),
)
#: Share of the patient in the variance of the texture that a crop shows. So a crop compared with the patient's others shows
#: more than it does alone: the best possible score needs both.
STYLE = 0.15
CHUNK = 128  # lesions that a process renders at a time


@dataclass(frozen=True)
class DatasetConfig:
    """Size of the train file, mean probability of malignancy, and start of all random numbers.

    ``test_lesions`` are of other patients, with as many lesions each as the train file's; None for the competition's three
    public ones.
    """

    patients: int = PATIENTS
    lesions: int = LESIONS
    prevalence: float = PREVALENCE
    seed: int = 0
    test_lesions: int | None = None

    @property
    def test_patients(self) -> int:
        """How many patients the test file has."""
        if self.test_lesions is None:
            return len(TEST_HOSPITALS)
        return max(1, round(self.test_lesions * self.patients / self.lesions))


@dataclass(frozen=True)
class Tables:
    """The train rows (55 columns) with their truth, the test rows, and the texture strength that the images show.

    Rows are in the order of their ids, as the competition's are, so that a patient's lesions are scattered. The texture,
    standard normal and independent of every column, has one value per row: the lesion's own, which decides about malignancy,
    and the style of the patient's skin in the share ``STYLE``.
    """

    train: pd.DataFrame
    truth: pd.DataFrame
    test: pd.DataFrame
    train_texture: NDArray[np.float64]
    test_texture: NDArray[np.float64]


def write_dataset(out: Path, config: DatasetConfig, images: str = "all") -> str:
    """Writes the folder, with ``images`` of ``IMAGES``, and returns a line that sums it up.

    The same configuration gives the same bytes in every CSV file and image, whichever workers render them.

    Raises:
        InputError: there are fewer lesions than patients, or ``out`` cannot be written to.
    """
    if config.lesions < config.patients:
        raise InputError(
            f"--lesions {config.lesions} is less than --patients {config.patients}; give each patient one or more."
        )
    start = time.perf_counter()
    with output_set(out, FILES, marks=[TRUTH]) as staging:
        tables = make_tables(config)
        train, test = tables.train, tables.test
        write_csv(staging / "train-metadata.csv", train, float_format=None)
        write_csv(staging / "test-metadata.csv", test[list(TEST_COLUMNS)], float_format=None)
        write_csv(staging / "sample_submission.csv", test[[ID]].assign(**{TARGET: SAMPLE_SCORE}), float_format=None)
        write_csv(staging / TRUTH, tables.truth, float_format=None)
        rendering = time.perf_counter()
        if images != "none":
            bank = make_bank(train, tables.train_texture, config.seed) if images == "bank" else None
            write_images(staging / "train-image.hdf5", train, tables.train_texture, config.seed, bank)
            write_images(staging / "test-image.hdf5", test, tables.test_texture, config.seed, bank)
    end = time.perf_counter()
    target = train[TARGET].to_numpy()
    best = f"{partial_auc(target, tables.truth['logit']):.4f}" if 0 < target.sum() < len(target) else "undefined (one class)"
    speed = f", {(len(train) + len(test)) / (end - rendering):.0f} images/s" if images != "none" else ""
    return (
        f"{out}: {len(train)} lesions of {config.patients} patients, {target.sum()} malignant, best possible pAUC {best}, "
        f"{end - start:.1f} s{speed}"
    )


def make_tables(config: DatasetConfig) -> Tables:
    """All rows, their truth and their images' texture strength, drawn from ``config.seed``."""
    rng = np.random.default_rng(config.seed)
    lesions, tests = config.lesions, config.test_lesions
    ids = draw_ids("ISIC_", lesions + (len(TEST_HOSPITALS) if tests is None else tests), rng)
    counts = choose_lesion_counts(config.patients, lesions, rng)
    hospitals = choose_hospitals(counts, rng)
    if tests is None:
        test_counts, test_hospitals = np.ones(len(TEST_HOSPITALS), int), list(TEST_HOSPITALS)
    else:
        test_counts = choose_lesion_counts(config.test_patients, tests, rng)
        test_hospitals = choose_hospitals(test_counts, rng)
    patients = make_patients(np.append(counts, test_counts), hospitals + test_hospitals, rng)
    rows = make_rows(patients, rng)
    own = rng.standard_normal(len(rows))
    test_order = np.arange(lesions, len(rows)) if tests is None else rng.permutation(np.arange(lesions, len(rows)))
    order = np.append(rng.permutation(lesions), test_order)
    rows = rows.iloc[order].reset_index(drop=True)
    owner = np.repeat(np.arange(len(patients)), patients["lesions"])[order]
    # Numbers of its own: the tables stay as they were drawn before there was a style.
    style = np.random.default_rng([config.seed, len(patients)]).standard_normal(len(patients))[owner]
    shown = np.sqrt(1.0 - STYLE) * own + np.sqrt(STYLE) * style
    train, test = rows[:lesions], rows[lesions:].reset_index(drop=True)
    train_ids = np.sort(ids[:lesions])
    truth = malignancy(train, own[:lesions], config.prevalence)
    target = (rng.random(lesions) < truth["probability"]).to_numpy(np.int64)
    return Tables(
        train=add_diagnoses(train.assign(**{ID: train_ids}), target, rng),
        truth=truth.assign(**{ID: train_ids})[[ID, *truth]],
        test=test.assign(**{ID: np.sort(ids[lesions:])}),
        train_texture=shown[:lesions],
        test_texture=shown[lesions:],
    )


def make_bank(rows: pd.DataFrame, texture: NDArray[np.float64], seed: int) -> Bank:
    """Renders some of the rows, wherever ``scale.parallel.workers`` says; arguments as of ``write_images``."""
    chosen = bank_rows(texture)
    rows, texture = rows.iloc[chosen], texture[chosen]
    chunks = stream_tasks(turned_chunk, chunks_of(rows, texture, seed))
    return Bank([jpegs for chunk in chunks for jpegs in chunk], texture)


def write_images(path: Path, rows: pd.DataFrame, texture: NDArray[np.float64], seed: int, bank: Bank | None = None) -> None:
    """Writes one image per row into an HDF5 file, rendered wherever ``scale.parallel.workers`` says.

    Args:
        path: the HDF5 file.
        rows: metadata, with isic_id and the columns of ``RENDER_COLUMNS``.
        texture: latent strength of the texture in each image, shape (rows,).
        seed: with a row's isic_id, the source of all random numbers of its image.
        bank: to draw the images from; None to render each.
    """
    ids = rows[ID].tolist()
    if bank:
        jpegs = bank.crops(ids, texture, seed)
    else:
        jpegs = (jpeg for chunk in stream_tasks(render_chunk, chunks_of(rows, texture, seed)) for jpeg in chunk)
    write_image_file(path, zip(ids, jpegs, strict=True), len(ids))


def chunks_of(rows: pd.DataFrame, texture: NDArray[np.float64], seed: int) -> Iterator[tuple]:
    """Arguments of ``render_chunk``, for all rows."""
    ids, numbers = rows[ID].tolist(), rows[list(RENDER_COLUMNS)].to_numpy(np.float32)
    for start in range(0, len(ids), CHUNK):
        part = slice(start, start + CHUNK)
        yield ids[part], numbers[part], texture[part], seed


def turned_chunk(ids: list[str], numbers: NDArray[np.float32], texture: NDArray[np.float64], seed: int) -> list[list[bytes]]:
    """As ``render_chunk``; each crop ``turned``."""
    return [turned(jpeg) for jpeg in render_chunk(ids, numbers, texture, seed)]


def render_chunk(ids: list[str], numbers: NDArray[np.float32], texture: NDArray[np.float64], seed: int) -> list[bytes]:
    """JPEG bytes of some rows; each has its own random numbers, so that chunks and processes do not change them."""
    jpegs = []
    with threadpool_limits(1):  # more threads make the small matrix products slower
        for isic_id, row, strength in zip(ids, numbers, texture, strict=True):
            rng = np.random.default_rng([seed, int(isic_id.removeprefix("ISIC_"))])
            jpegs.append(render(dict(zip(RENDER_COLUMNS, row.tolist(), strict=True)), float(strength), rng))
    return jpegs
