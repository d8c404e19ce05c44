"""The synthetic images: form, likeness to their metadata, and the texture that only they show."""

import io

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from train.synthetic.images import RENDER_COLUMNS, render

PLAIN = {
    "tbp_lv_L": 40.0, "tbp_lv_A": 20.0, "tbp_lv_B": 28.0, "tbp_lv_Lext": 51.0, "tbp_lv_Aext": 15.0, "tbp_lv_Bext": 27.0,
    "tbp_lv_areaMM2": 9.0, "tbp_lv_eccentricity": 0.7, "tbp_lv_norm_border": 3.0, "tbp_lv_symm_2axis_angle": 45.0,
    "tbp_lv_color_std_mean": 1.0,
}  # fmt: skip
LOOKS = {
    "typical": {},
    "pale": {"tbp_lv_L": 80.0, "tbp_lv_Lext": 98.0, "tbp_lv_Aext": 5.0},
    "dark": {"tbp_lv_L": 5.0, "tbp_lv_Lext": 18.0, "tbp_lv_Bext": 40.0},
    "small": {"tbp_lv_areaMM2": 0.5},
    "large": {"tbp_lv_areaMM2": 100.0, "tbp_lv_norm_border": 9.0},
    "extreme": {"tbp_lv_areaMM2": 334.0, "tbp_lv_eccentricity": 0.975, "tbp_lv_norm_border": 10.0},
    "colourful": {"tbp_lv_areaMM2": 30.0, "tbp_lv_color_std_mean": 9.9},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the command: more threads make the small products slower."""
    with threadpool_limits(1):
        yield


def shown(look: dict, texture: float, seed: int) -> Image.Image:
    image = Image.open(io.BytesIO(render(PLAIN | look, texture, np.random.default_rng(seed))))
    image.load()
    return image


def mottle_contrast(image: Image.Image, side: int = 48) -> float:
    """Log of the median local power of red less green near wavelengths of 3.3 mm, at ``side`` pixels."""
    pixels = np.asarray(image.resize((side, side), Image.BILINEAR), dtype=float)
    redness = pixels[:, :, 0] - pixels[:, :, 1]
    mirrored = np.block([[redness, redness[:, ::-1]], [redness[::-1], redness[::-1, ::-1]]])
    cycles = np.fft.fftfreq(2 * side) * side
    radius = np.hypot(cycles[:, None], cycles[None, :])
    spectrum = np.fft.fft2(mirrored - mirrored.mean())
    power = np.fft.ifft2(spectrum / (1.0 + (np.abs(radius - 4.5) / 2.0) ** 8)).real[:side, :side] ** 2
    return float(np.log(np.median(power.reshape(4, 12, 4, 12).mean(axis=(1, 3)))))


@pytest.mark.parametrize("look", LOOKS)
def test_images_are_square_rgb_jpegs_of_the_published_sizes(look):
    for seed in range(10):
        image = shown(LOOKS[look], 0.0, seed)
        assert image.format == "JPEG"
        assert image.mode == "RGB"
        assert image.width == image.height
        assert 61 <= image.width <= 239


def test_sizes_and_bytes_are_near_the_published_ones():
    jpegs = [render(PLAIN, 0.0, np.random.default_rng(seed)) for seed in range(200)]
    widths = np.array([Image.open(io.BytesIO(jpeg)).width for jpeg in jpegs])
    assert 127 <= np.median(widths) <= 135
    assert (widths % 2 == 1).mean() > 0.9
    assert 1_800 < np.mean([len(jpeg) for jpeg in jpegs]) < 3_800


def test_same_source_same_bytes():
    first, second, other = (render(PLAIN, 0.3, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first == second != other


def test_more_columns_than_needed_are_fine_and_fewer_are_not():
    assert set(RENDER_COLUMNS) == set(PLAIN)
    assert render(PLAIN | {"age_approx": 60.0}, 0.0, np.random.default_rng(0))
    with pytest.raises(KeyError):
        render({}, 0.0, np.random.default_rng(0))


@pytest.mark.parametrize("look", LOOKS)
def test_texture_shows_in_every_lesion_after_shrinking(look):
    contrasts = [
        [mottle_contrast(shown(LOOKS[look], texture, seed)) for seed in range(12)] for texture in (-2.5, -1.0, 0.0, 1.0, 2.5)
    ]
    assert (np.diff(np.mean(contrasts, axis=1)) > 0.2).all()


def test_contrast_explains_the_texture():
    rng = np.random.default_rng(0)
    texture = rng.standard_normal(500)
    looks = [
        {
            "tbp_lv_areaMM2": float(np.exp(rng.normal(1.9, 0.6))),
            "tbp_lv_Lext": (skin := float(rng.uniform(25, 75))),
            "tbp_lv_L": skin - float(rng.uniform(4, 16)),
        }
        for _ in texture
    ]
    contrast = np.array(
        [mottle_contrast(shown(look, t, seed)) for seed, (look, t) in enumerate(zip(looks, texture, strict=True))]
    )
    fitted = np.polyval(np.polyfit(contrast, texture, 3), contrast)
    assert 1.0 - np.var(texture - fitted) / np.var(texture) > 0.88


def test_lesion_has_its_size_and_contrast():
    def darkness(look: dict) -> np.ndarray:
        """How much darker than the skin at the corners, mean over some crops, in grey levels."""
        crops = [np.asarray(shown(look, -2.5, seed).resize((60, 60)), dtype=float).mean(axis=2) for seed in range(12)]
        mean = np.mean(crops, axis=0)
        return mean[[0, 0, -1, -1], [0, -1, 0, -1]].mean() - mean

    small, large = darkness({"tbp_lv_areaMM2": 4.0}), darkness({"tbp_lv_areaMM2": 25.0})
    assert small[28:32, 28:32].mean() > 12
    pixel_mm2 = (15 / 60) ** 2
    assert (small > 0.5 * small[28:32, 28:32].mean()).sum() * pixel_mm2 == pytest.approx(4.0, rel=0.5)
    assert (large > 0.5 * large[28:32, 28:32].mean()).sum() * pixel_mm2 == pytest.approx(25.0, rel=0.4)
    assert darkness({"tbp_lv_L": 25.0})[28:32, 28:32].mean() > 1.5 * small[28:32, 28:32].mean()


def test_colour_follows_the_columns():
    def skin_colour(look: dict) -> np.ndarray:
        return np.mean([np.asarray(shown(look, 0.0, seed))[:20].mean(axis=(0, 1)) for seed in range(5)], axis=0)

    assert skin_colour({"tbp_lv_Lext": 70.0}).mean() > skin_colour({}).mean() + 20
    red = skin_colour({"tbp_lv_Aext": 25.0}) - skin_colour({})
    assert red[0] > 5 > -2 > red[1]
    yellow = skin_colour({"tbp_lv_Bext": 40.0}) - skin_colour({})
    assert yellow[2] < -10
