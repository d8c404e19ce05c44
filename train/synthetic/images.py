"""Renders one synthetic lesion: a crop of 15 x 15 mm of skin with the lesion in its middle, as JPEG bytes.

The lesion has the size, shape, border, colours and colour variation of its metadata. One thing in the picture
depends on no column: the contrast of fine furrows of the skin. They cover lesion and skin alike, so that they survive
shrinking.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]  # red, green, blue in grey levels, 0 to 255

FIELD_MM = 15.0  # width and height of the skin in every crop of the competition
#: The columns of a lesion that ``render`` reads.
RENDER_COLUMNS = (
    *(f"tbp_lv_{name}" for name in ("L", "A", "B", "Lext", "Aext", "Bext")),
    *(f"tbp_lv_{name}" for name in ("areaMM2", "eccentricity", "norm_border", "symm_2axis_angle", "color_std_mean")),
)
#: Side of a crop in pixels: the competition's smallest and largest, and quantiles of 197 of its crops.
SIZE_LEVELS = (0.0, 0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99, 1.0)
SIZES_PX = (61.0, 91.0, 107.0, 125.0, 131.0, 139.0, 155.0, 169.0, 239.0)
JPEG_QUALITY = 75  # gives the quantisation tables of the competition's files

#: Furrows: wavelength in mm, and standard deviation in grey levels FURROW_CONTRAST * exp(FURROW_GROWTH * texture). The
#: competition's crops have 2.3 to 5.5 grey levels (10 to 90 %, 197 crops) near these wavelengths; these mostly have
#: more, so that a network learns them from a few thousand crops, random weights and four epochs.
FURROW_MM = (2.4, 3.2)
FURROW_CONTRAST, FURROW_GROWTH = 8.0, 0.6
COLOUR_LIMITS = (24.0, 230.0)  # grey levels of skin and lesion; the furrows need a margin on both sides
#: Smooth random fields, by their knots across the crop, and fine ones, which lack what is coarser than a few knots. None has
#: much power at the wavelengths of the furrows, 5 to 6 to a crop, whose contrast must stay readable.
BLOTCH_KNOTS, BORDER_KNOTS = 4, 10
PATCH_KNOTS, GRAIN_KNOTS = 24, 48
SHADE_GAIN = (0.85, 1.0, 1.05)  # red, green, blue: what is darker is browner
HAIRY = 0.4  # share of crops with hairs


def render(lesion: Mapping[str, float], texture: float, rng: np.random.Generator) -> bytes:
    """JPEG bytes of one crop.

    Args:
        lesion: the columns of ``RENDER_COLUMNS``.
        texture: latent strength of the furrows, standard normal over lesions.
        rng: source of all random numbers of this image.
    """
    size = _draw_size(rng)
    blotches, *folds = _smooth_fields(size, BLOTCH_KNOTS, 3, rng)
    (wobble,) = _smooth_fields(size, BORDER_KNOTS, 1, rng)
    patches = _fine_field(size, PATCH_KNOTS, rng)
    grain = _fine_field(size, GRAIN_KNOTS, rng)
    mask = _lesion_mask(lesion, wobble)
    skin, inside = _colours(lesion)
    shade = _furrows(texture, folds, rng)
    shade += _lighting(blotches, rng)
    shade += np.float32(rng.uniform(5.0, 11.0)) * grain
    shade += _neighbours(size, rng)
    patches *= mask * np.float32(3.0 * math.sqrt(lesion["tbp_lv_color_std_mean"]))
    shade += patches
    pixels = np.empty((size, size, 3), np.uint8)
    for channel, (outer, inner, gain) in enumerate(zip(skin, inside, SHADE_GAIN, strict=True)):
        levels = mask * np.float32(inner - outer)
        levels += shade * np.float32(gain)
        levels += np.float32(outer)
        pixels[:, :, channel] = np.clip(levels, 0.0, 255.0, out=levels)
    image = Image.fromarray(pixels)
    if rng.random() < HAIRY:
        _draw_hairs(image, skin, rng)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _draw_size(rng: np.random.Generator) -> int:
    """Side of a crop in pixels, nearly always odd, as the competition's are."""
    side = round(float(np.interp(rng.random(), SIZE_LEVELS, SIZES_PX)))
    return side if rng.random() < 0.03 else side | 1


def _lesion_mask(lesion: Mapping[str, float], wobble: Floats) -> Floats:
    """How much of each pixel is lesion, 0 to 1: an ellipse with a soft border that ``wobble`` bends."""
    roundness = math.sqrt(1.0 - min(lesion["tbp_lv_eccentricity"], 0.99) ** 2)
    semi_major = math.sqrt(lesion["tbp_lv_areaMM2"] / (math.pi * roundness))
    angle = math.radians(lesion["tbp_lv_symm_2axis_angle"])
    axis = _axis(len(wobble))
    along = (axis * np.float32(math.cos(angle) / semi_major))[None, :] + (axis * np.float32(math.sin(angle) / semi_major))[
        :, None
    ]
    semi_minor = semi_major * roundness
    across = (axis * np.float32(-math.sin(angle) / semi_minor))[None, :] + (axis * np.float32(math.cos(angle) / semi_minor))[
        :, None
    ]
    along *= along
    across *= across
    along += across
    distance = np.sqrt(along, out=along)  # 1 on the ellipse
    radius = math.sqrt(semi_major * semi_minor)
    bend_mm = (0.03 + 0.022 * lesion["tbp_lv_norm_border"]) * min(radius, 2.5)
    distance *= 1.0 + np.float32(bend_mm / radius) * wobble
    softness_mm = 0.3 + 0.1 * radius
    steepness = np.float32(radius / (2.0 * softness_mm))
    inside = np.clip((1.0 - distance) * steepness + np.float32(0.5), 0.0, 1.0)
    return inside * inside * (3.0 - 2.0 * inside)


def _furrows(texture: float, folds: list[Floats], rng: np.random.Generator) -> Floats:
    """Crossing furrows of random direction in grey levels around 0, bent by ``folds``; ``texture`` sets their contrast."""
    deviation = FURROW_CONTRAST * math.exp(FURROW_GROWTH * texture)
    axis = _axis(len(folds[0]))
    direction = rng.uniform(0.0, math.pi)
    crossing = direction + rng.uniform(0.8, 1.6)
    furrows = np.zeros_like(folds[0])
    for angle, share, bends in zip((direction, crossing), (0.92, math.sqrt(1.0 - 0.92**2)), folds, strict=True):
        frequency = 2.0 * math.pi / rng.uniform(*FURROW_MM)
        phase = np.float32(rng.uniform(0.0, 2.0 * math.pi))
        waves = (axis * np.float32(frequency * math.cos(angle)))[None, :] + np.float32(1.5) * bends
        waves += (axis * np.float32(frequency * math.sin(angle)) + phase)[:, None]
        furrows += np.float32(math.sqrt(2.0) * share * deviation) * np.sin(waves, out=waves)
    return furrows


def _lighting(blotches: Floats, rng: np.random.Generator) -> Floats:
    """Uneven light and blotchy skin, in grey levels around 0."""
    axis = _axis(len(blotches)) / np.float32(FIELD_MM / 2.0)
    tilt = rng.normal(0.0, 4.0, 2).astype(np.float32)
    light = blotches * np.float32(rng.uniform(1.5, 7.0))
    light += (tilt[0] * axis)[None, :]
    light += (tilt[1] * axis)[:, None]
    return light


def _neighbours(size: int, rng: np.random.Generator) -> Floats:
    """A few smaller dark or light spots elsewhere on the skin, in grey levels."""
    axis = _axis(size)
    count = min(int(rng.geometric(0.35)) - 1, 8)
    x, y = rng.uniform(-7.5, 7.5, (2, count, 1)).astype(np.float32)
    radius = rng.uniform(0.2, 0.6, (count, 1)).astype(np.float32)
    depth = rng.normal(-12.0, 10.0, (count, 1)).astype(np.float32)
    rows = depth * np.exp(-(((axis - y) / radius) ** 2))
    return rows.T @ np.exp(-(((axis - x) / radius) ** 2))


def _draw_hairs(image: Image.Image, skin: Colour, rng: np.random.Generator) -> None:
    """Draws thin dark curves across the crop, in roughly one direction."""
    draw = ImageDraw.Draw(image)
    size = image.width
    direction = rng.uniform(0.0, 2.0 * math.pi)
    for _ in range(int(rng.integers(1, 14))):
        angle = direction + rng.normal(0.0, 0.5)
        steps = np.linspace(0.0, rng.uniform(0.25, 0.9) * size, 8)
        turns = angle + rng.normal(0.0, 1.2) * steps / size
        x = rng.uniform(-0.2, 1.0) * size + steps * np.cos(turns)
        y = rng.uniform(-0.2, 1.0) * size + steps * np.sin(turns)
        darkness = rng.uniform(0.55, 0.85)
        colour = tuple(int(darkness * level) for level in skin)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=1)


@lru_cache(maxsize=256)
def _axis(size: int) -> Floats:
    """Position of each pixel's centre in mm from the middle of the crop, shape (size,)."""
    return ((np.arange(size) + 0.5) / size * FIELD_MM - FIELD_MM / 2.0).astype(np.float32)


@lru_cache(maxsize=1024)
def _knot_weights(size: int, knots: int) -> Floats:
    """Weights of ``knots`` evenly spaced values at each pixel, shape (size, knots), that keep the variance."""
    position = (np.arange(size) + 0.5) / size * knots - 0.5
    weights = np.exp(-((position[:, None] - np.arange(knots)) ** 2) / (2.0 * 0.65**2))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def _smooth_fields(size: int, knots: int, count: int, rng: np.random.Generator) -> Floats:
    """Smooth random fields of mean 0 and variance 1, shape (count, size, size)."""
    weights = _knot_weights(size, knots)
    return weights @ rng.standard_normal((count, knots, knots), dtype=np.float32) @ weights.T


def _fine_field(size: int, knots: int, rng: np.random.Generator) -> Floats:
    """A random field of mean 0 and variance about 1, high-pass filtered: every knot less a quarter of its neighbours."""
    values = rng.standard_normal((knots + 2, knots + 2), dtype=np.float32)
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    weights = _knot_weights(size, knots)
    return weights @ (values[1:-1, 1:-1] - np.float32(0.25) * around) @ weights.T


def _colours(lesion: Mapping[str, float]) -> tuple[Colour, Colour]:
    """Skin and lesion in grey levels, from their CIELAB columns.

    The crops are lighter, less yellow and richer in contrast than the scanner's columns; the numbers are fits to the
    pixels of 197 of the competition's crops.
    """
    delta = {name: lesion[f"tbp_lv_{name}"] - lesion[f"tbp_lv_{name}ext"] for name in "LAB"}
    lightness = 21.0 + 0.75 * lesion["tbp_lv_Lext"]
    a, b = lesion["tbp_lv_Aext"] - 1.0, lesion["tbp_lv_Bext"] - 6.5
    skin = _grey_levels(lightness, a, b)
    return skin, _grey_levels(lightness + 1.5 * delta["L"], a + 1.2 * delta["A"], b + delta["B"] + 1.5)


def _grey_levels(lightness: float, a: float, b: float) -> Colour:
    """CIELAB (D65) to sRGB in grey levels, clipped at COLOUR_LIMITS."""
    y = (lightness + 16.0) / 116.0
    x, y, z = (
        white * (t**3 if t > 6.0 / 29.0 else (t - 4.0 / 29.0) * 108.0 / 841.0)
        for white, t in ((0.95047, y + a / 500.0), (1.0, y), (1.08883, y - b / 200.0))
    )
    linear = (
        3.2404542 * x - 1.5371385 * y - 0.4985314 * z,
        -0.9692660 * x + 1.8760108 * y + 0.0415560 * z,
        0.0556434 * x - 0.2040259 * y + 1.0572252 * z,
    )
    levels = (255.0 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1.0 / 2.4) - 0.055) for v in linear)
    red, green, blue = (min(max(level, COLOUR_LIMITS[0]), COLOUR_LIMITS[1]) for level in levels)
    return red, green, blue
