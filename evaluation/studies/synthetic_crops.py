"""Compares synthetic crops with real ones, measure by measure, in a Markdown table.

    python -m evaluation.studies.synthetic_crops --real isic-2024-permissive/ISIC_2024_Permissive_Training_Input \\
        --synthetic demo/data

Colour, lesion, hair, sharpness and the spectrum of the texture of every crop, at SIDE pixels. A cell has the 10, 50 and
90 % quantiles over crops. The distance of Kolmogorov and Smirnov to the real crops is 0 for the same distribution and 1 for
no overlap. The last line is the out-of-fold AUC of boosted trees that classify crops as synthetic or real by all these
measures: 0.5 is chance, 1 is always right.
"""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from threadpoolctl import threadpool_limits

from evaluation.studies.compare import markdown_table
from inference.files import replacing
from inference.images import ImageStore, find_images
from inference.options import Parser, add_seed_option, count, existing_folder, output_file
from terminal import run_command
from utils import InputError, print_line

Floats = NDArray[np.float64]

SIDE = 96  # pixels at which every crop is measured
FIELD_MM = 15.0  # side of a crop
PIXEL_MM = FIELD_MM / SIDE
BANDS_MM = (7.5, 3.75, 1.9, 0.95, 0.5, 0.32)  # edges of the bands of the spectrum, by wavelength
STRIPES_MM = (3.75, 1.9)  # the band whose directions are compared
SECTORS = 12  # of the half circle of directions
HAIR_LEVELS, HAIR_MM = 12.0, 2.5  # a thin line is so much darker or lighter than its sides, and at least so long
FEWEST, SHOWN = 20, 60  # crops of a folder: needed, and drawn into the picture


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", type=existing_folder, required=True, metavar="DIR", help="folder of JPEGs")
    parser.add_argument(
        "--synthetic", type=existing_folder, required=True, nargs="+", metavar="DIR", help="folders of train.synthetic"
    )
    parser.add_argument("--crops", type=count(FEWEST), default=2000, help="drawn from each folder (default: %(default)s)")
    parser.add_argument("--montage", type=output_file, metavar="PNG", help=f"a picture of {SHOWN} crops of each folder")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    folders = [options.real, *options.synthetic]
    crops = [read_crops(folder, options.crops, options.seed) for folder in folders]
    if options.montage is not None:
        with replacing(options.montage) as temporary:
            montage([crop for some in crops for crop in some[:SHOWN]]).save(temporary, "PNG")
    real, *others = (pd.DataFrame([measures(crop) for crop in some]) for some in crops)
    print_line(comparison(real, {str(folder): other for folder, other in zip(options.synthetic, others, strict=True)}))
    return 0


def read_crops(folder: Path, most: int, seed: int) -> list[Image.Image]:
    """At most ``most`` crops of a competition folder or a folder of JPEGs, drawn at random.

    Raises:
        InputError: fewer than FEWEST crops are there.
    """
    store = ImageStore(find_images(folder, "train") or folder)
    names = sorted(store.names())
    if len(names) < FEWEST:
        raise InputError(f"{folder} has {len(names)} crops; give a folder of at least {FEWEST}.")
    chosen = np.random.default_rng(seed).permutation(len(names))[:most]
    return [Image.open(io.BytesIO(store.read(names[index]))).convert("RGB") for index in chosen]


def measures(crop: Image.Image) -> dict[str, float]:
    """All measures of one crop, by name with unit."""
    pixels = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    found = {"side, pixels": float(crop.width)}
    for channel, name in enumerate(("red", "green", "blue")):
        found[f"mean {name}"] = float(pixels[:, :, channel].mean())
        found[f"deviation of {name}"] = float(pixels[:, :, channel].std())
    found["deviation of red less green"] = float((pixels[:, :, 0] - pixels[:, :, 1]).std())
    found["deviation of green less blue"] = float((pixels[:, :, 1] - pixels[:, :, 2]).std())
    found["sharpness, log10 of the Laplacian's variance"] = math.log10(ndimage.laplace(grey).var() + 1e-3)
    return found | _spectrum(grey) | _lesion(pixels, grey) | _hair(grey)


def _spectrum(grey: Floats) -> dict[str, float]:
    """Deviation in grey levels in each band of wavelengths, and the share of the strongest direction in STRIPES_MM."""
    window = np.hanning(SIDE + 2)[1:-1]
    window = np.outer(window, window) / np.sqrt((np.outer(window, window) ** 2).mean())
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2 / SIDE**4
    cycles = np.fft.fftfreq(SIDE, PIXEL_MM)  # per mm
    frequency = np.hypot(cycles[:, None], cycles[None, :])
    found = {}
    for long, short in itertools.pairwise(BANDS_MM):
        inside = (frequency >= 1 / long) & (frequency < 1 / short)
        found[f"texture of {short} to {long} mm"] = float(np.sqrt(power[inside].sum()))
    inside = (frequency >= 1 / STRIPES_MM[0]) & (frequency < 1 / STRIPES_MM[1])
    direction = np.arctan2(cycles[:, None], cycles[None, :])[inside] % np.pi
    sector = np.minimum((direction / np.pi * SECTORS).astype(int), SECTORS - 1)
    shares = np.bincount(sector, power[inside], SECTORS) / max(power[inside].sum(), 1e-9)
    return found | {"stripes, share of the strongest direction": float(shares.max())}


def _lesion(pixels: Floats, grey: Floats) -> dict[str, float]:
    """Area, contrast to the skin and softness of the border of what is darkest in the middle."""
    axis = (np.arange(SIDE) + 0.5) * PIXEL_MM - FIELD_MM / 2
    radius = np.hypot(axis[:, None], axis[None, :])
    smooth = ndimage.gaussian_filter(grey, 1.0)
    middle = smooth[radius < 0.75].mean()
    skin = np.median(smooth[(radius > 4.5) & (radius < 7.5)])
    labels, _ = ndimage.label(smooth < (middle + skin) / 2)
    inside = labels == labels[SIDE // 2, SIDE // 2] if middle < skin and labels[SIDE // 2, SIDE // 2] else radius < 0.75
    depth = np.where(
        inside, ndimage.distance_transform_edt(inside), 1 - ndimage.distance_transform_edt(~inside)
    )  # 1 first inside
    steps = np.clip(np.ceil(depth), -5, 4).astype(int) + 5
    profile = np.bincount(steps.ravel(), grey.ravel(), 10) / np.maximum(np.bincount(steps.ravel(), minlength=10), 1)
    drop = profile[1] - profile[8]  # from 5 pixels outside of the border to 3 inside
    steepest = max(float(-np.diff(profile[3:8]).min()), 0.1)  # grey levels per pixel
    opponent = pixels[:, :, 0] - pixels[:, :, 1]
    return {
        "lesion, log10 of mm2": math.log10(inside.sum() * PIXEL_MM**2),
        "lesion, darker than the skin": float(skin - middle),
        "lesion, red less green above the skin": float(opponent[radius < 0.75].mean() - np.median(opponent[radius > 4.5])),
        "border, width in mm": float(np.clip(drop / steepest, 0.0, 10.0)) * PIXEL_MM,
        "lesion, deviation inside": float(grey[inside].std()),
    }


def _hair(grey: Floats) -> dict[str, float]:
    """Share of pixels in dark and in light lines that are thin and long."""
    found = {}
    for name, levels in (("dark", grey), ("light", 255.0 - grey)):
        thin = ndimage.grey_closing(levels, (5, 5)) - levels > HAIR_LEVELS
        labels, lines = ndimage.label(thin, np.ones((3, 3)))
        boxes = ndimage.find_objects(labels)
        extent = [math.hypot(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
        long = np.array([False, *(length * PIXEL_MM > HAIR_MM for length in extent)]) if lines else np.array([False])
        found[f"hair, % of pixels in {name} lines"] = 100.0 * float(long[labels].mean())
    return found


def comparison(real: pd.DataFrame, synthetic: dict[str, pd.DataFrame]) -> str:
    """The table; ``real`` and each of ``synthetic`` have a row per crop and a column per measure."""
    rows = []
    for name in real:
        cells = [_quantiles(real[name])]
        for other in synthetic.values():
            cells += [_quantiles(other[name]), f"{ks_2samp(real[name], other[name]).statistic:.2f}"]
        rows.append([name, *cells])
    separation = ["classified as synthetic or real, AUC", ""]
    for other in synthetic.values():
        separation += [f"{separation_auc(real, other):.3f}", ""]
    head = ["measure", f"{len(real):,} real", *(cell for name in synthetic for cell in (name, "distance"))]
    return markdown_table(head, [*rows, separation])


def _quantiles(values: pd.Series) -> str:
    return " / ".join(f"{value:.3g}" for value in values.quantile([0.1, 0.5, 0.9]))


def separation_auc(real: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """Out-of-fold AUC of boosted trees that classify rows by the table they come from."""
    table, label = pd.concat([real, synthetic]).to_numpy(), np.repeat([0, 1], [len(real), len(synthetic)])
    trees = HistGradientBoostingClassifier(max_iter=100, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    with threadpool_limits(1):  # threads that wait for a busy core take longer than one
        probability = cross_val_predict(trees, table, label, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(label, probability))


def montage(crops: list[Image.Image], columns: int = 12, side: int = 120) -> Image.Image:
    """The crops in rows of ``columns``, in their order."""
    whole = Image.new("RGB", (columns * side, math.ceil(len(crops) / columns) * side))
    for index, crop in enumerate(crops):
        place = (index % columns * side, index // columns * side)
        whole.paste(crop.resize((side - 2, side - 2), Image.Resampling.LANCZOS), place)
    return whole


if __name__ == "__main__":
    run_command(main)
