"""The measures by which synthetic crops are compared with real ones."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from evaluation.studies.synthetic_crops import FEWEST, SIDE, main, measures, montage, read_crops, separation_auc
from utils import InputError

AXIS = (np.arange(131) + 0.5) / 131 * 15.0 - 7.5  # mm


def crop(levels: np.ndarray) -> Image.Image:
    """A grey crop of levels of shape (side, side)."""
    return Image.fromarray(np.repeat(levels[:, :, None], 3, axis=2).astype(np.uint8))


def test_size_colour_and_sharpness():
    plain = measures(Image.new("RGB", (131, 131), (180, 140, 110)))
    assert plain["side, pixels"] == 131
    assert (plain["mean red"], plain["mean green"], plain["mean blue"]) == pytest.approx((180, 140, 110))
    assert plain["deviation of red less green"] == pytest.approx(0.0)
    noisy = measures(crop(150.0 + 20.0 * np.random.default_rng(0).standard_normal((131, 131))))
    assert noisy["sharpness, log10 of the Laplacian's variance"] > plain["sharpness, log10 of the Laplacian's variance"] + 2


def test_spectrum_finds_the_wavelength_and_the_stripes():
    stripes = measures(crop(150.0 + 20.0 * np.sin(2 * np.pi / 2.7 * AXIS)[None, :].repeat(131, axis=0)))
    assert stripes["texture of 1.9 to 3.75 mm"] == pytest.approx(20.0 / np.sqrt(2.0), rel=0.05)
    assert stripes["texture of 0.95 to 1.9 mm"] < 2.0
    assert stripes["stripes, share of the strongest direction"] > 0.5
    noise = measures(crop(150.0 + 20.0 * np.random.default_rng(0).standard_normal((131, 131))))
    assert noise["stripes, share of the strongest direction"] < 0.25


def test_lesion_has_its_area_contrast_and_border():
    radius = np.hypot(AXIS[:, None], AXIS[None, :])
    sharp, soft = (measures(crop(180.0 - 50.0 / (1.0 + np.exp((radius - 2.0) / width)))) for width in (0.05, 0.4))
    assert 10 ** sharp["lesion, log10 of mm2"] == pytest.approx(np.pi * 4.0, rel=0.15)
    assert sharp["lesion, darker than the skin"] == pytest.approx(50.0, abs=3.0)
    assert soft["border, width in mm"] > 1.5 * sharp["border, width in mm"]


def test_hair_is_a_thin_long_line():
    image = Image.new("RGB", (SIDE, SIDE), (180, 140, 110))
    assert measures(image)["hair, % of pixels in dark lines"] == 0.0
    ImageDraw.Draw(image).line((5, 10, 80, 70), fill=(60, 50, 40))
    found = measures(image)
    assert 0.5 < found["hair, % of pixels in dark lines"] < 2.5
    assert found["hair, % of pixels in light lines"] == 0.0


def test_trees_separate_only_what_differs():
    rng = np.random.default_rng(0)
    same, equal = (pd.DataFrame(rng.standard_normal((200, 3))) for _ in range(2))
    assert separation_auc(same, same + 3.0) > 0.99
    assert 0.35 < separation_auc(same, equal) < 0.65


def test_command_prints_a_table_and_draws_a_picture(tmp_path: Path, capsys):
    rng = np.random.default_rng(0)
    for name in ("real", "made"):
        (tmp_path / name).mkdir()
        for number in range(FEWEST):
            file = io.BytesIO()
            crop(rng.uniform(50, 200, (70, 70))).save(file, "JPEG")
            (tmp_path / name / f"ISIC_{number:07d}.jpg").write_bytes(file.getvalue())
    folders = ["--real", str(tmp_path / "real"), "--synthetic", str(tmp_path / "made")]
    assert main([*folders, "--montage", str(tmp_path / "both.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| measure | 20 real |")
    assert lines[-1].startswith("| classified as synthetic or real")
    assert Image.open(tmp_path / "both.png").size == (1440, 480)


def test_too_few_crops_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="20"):
        read_crops(tmp_path, 100, 0)


def test_montage_has_whole_rows():
    assert montage([Image.new("RGB", (10, 10))] * 13).size == (1440, 240)
