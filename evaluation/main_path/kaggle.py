"""Prints the forecast for Kaggle as a table: every backbone at several sizes, by the recipe for pretrained weights.

    python -m evaluation.main_path.kaggle --data data/isic-2024-challenge

Measured here is how fast a core decodes the crops of the data; the speeds of the GPUs are published ones
(``evaluation.main_path.forecast``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.main_path.estimates import Rows, recipe_of
from evaluation.main_path.forecast import GPUS, HOURS, TRAIN_MALIGNANT, TRAIN_ROWS, forecast, known
from evaluation.main_path.probes import decode_speed
from inference.backbones import BACKBONES
from inference.options import Parser, existing_folder
from inference.schema import ID, read_metadata
from terminal import run_command
from train.lesions import open_images
from train.network.config import PRETRAINED_DEFAULTS, TrainingConfig
from utils import InputError, log, text_table

SIZES = (64, 128, 160, 224)
#: Crops that are decoded to measure.
CROPS = 1_000
#: train.folds by default: folds, and the holdout as a share.
FOLDS, HOLDOUT = 5, 0.2


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints two tables in Markdown."""
    parser = Parser(description="Prints a forecast of hours on Kaggle for every backbone at several sizes")
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    data: Path = parser.parse_args(arguments).data
    store = open_images(data)
    with_crop = [isic_id for isic_id in read_metadata(data / "train-metadata.csv", labelled=True)[ID] if isic_id in store]
    if not with_crop:
        raise InputError(f"{data} has no crop of the lesions in train-metadata.csv; fetch the images.")
    chosen = np.random.default_rng(0).permutation(with_crop)[:CROPS]
    decoded = {size: decode_speed(store, chosen, size) for size in SIZES}
    speeds = ["crops/s of one core", *(f"{decoded[size]:,.0f}" for size in SIZES)]
    lines = [line(backbone, size, decoded[size]) for backbone in BACKBONES if known(backbone) for size in SIZES]
    log(text_table([["decoded, pixels", *map(str, SIZES)], speeds]) + "\n")
    log(text_table([head(), *lines]))
    return 0


def head() -> list[str]:
    """Of the table of hours."""
    return ["backbone", "pixels", *(f"{gpu.name}: {what}" for gpu in GPUS for what in ("training", "kernel", "margin"))]


def line(backbone: str, size: int, decoded: float) -> list[str]:
    """Hours of a backbone at a size; the margin is that of the slower of training and kernel."""
    defaults: dict[str, Any] = PRETRAINED_DEFAULTS
    config = TrainingConfig(**defaults | {"backbone": backbone, "image_size": size})
    recipe = recipe_of(Rows(TRAIN_ROWS, TRAIN_MALIGNANT, round(HOLDOUT * TRAIN_ROWS), FOLDS, 0.0, 0.0), config)
    cells = [backbone, str(size)]
    for gpu in GPUS:
        found = forecast(recipe, gpu, "float32", decoded)  # the precision of the kernel
        cells += [f"{hours:.1f} h" for hours in (found.training, found.kernel)]
        cells.append(f"{found.margin:.1f}" if found.fits else f"{found.margin:.1f}, more than {HOURS:.0f} h")
    return cells


if __name__ == "__main__":
    run_command(main)
