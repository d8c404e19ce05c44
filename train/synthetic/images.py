"""Renders one synthetic lesion: a crop of 15 x 15 mm of skin with the lesion in its middle, as JPEG bytes.

The lesion has the size, shape, border, colours and colour variation of its metadata. What only the picture shows is the
texture: how strongly skin and lesion are mottled.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from train.synthetic.textures import FIELD_MM, Floats, axis, band_field, smooth_fields, texture_field

Colour = tuple[float, float, float]  # red, green, blue in grey levels, 0 to 255

#: The columns of a lesion that ``render`` reads.
RENDER_COLUMNS = (
    *(f"tbp_lv_{name}" for name in ("L", "A", "B", "Lext", "Aext", "Bext")),
    *(f"tbp_lv_{name}" for name in ("areaMM2", "eccentricity", "norm_border", "symm_2axis_angle", "color_std_mean")),
)
#: Side of a crop in pixels: the competition's smallest and largest, and quantiles of 197 of its crops.
SIZE_LEVELS = (0.0, 0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99, 1.0)
SIZES_PX = (61.0, 91.0, 107.0, 125.0, 131.0, 139.0, 155.0, 169.0, 239.0)
JPEG_QUALITY = 75  # gives the quantisation tables of the competition's files

#: Red-brown mottles with wavelengths of 2 to 5 mm, of which 32 pixels show enough: knots across the crop, and standard
#: deviation in grey levels of green, exactly MOTTLE_CONTRAST * exp(MOTTLE_GROWTH * texture). The skew makes
#: dark ones stand out.
MOTTLE_KNOTS, MOTTLE_CONTRAST, MOTTLE_GROWTH, MOTTLE_SKEW = 9, 5.5, 0.9, 0.4
COLOUR_LIMITS = (24.0, 230.0)  # grey levels of skin and lesion
BLOTCH_KNOTS, BORDER_KNOTS, PATCH_KNOTS = 4, 10, 24
#: What one grey level of a layer adds to red, green and blue.
MOTTLE_GAIN, RED_GAIN, YELLOW_GAIN = (0.3, 1.0, 0.9), (0.5, -0.5, -0.5), (0.0, 0.0, -1.0)
#: Standard deviations in grey levels, medians over crops: fine relief of the skin, redness and yellowness. Of the lesion:
#: patches, per square root of color_std_mean, and changes of the contrast to the skin as a share of it.
RELIEF, REDNESS, YELLOWNESS, PATCHES, CLOUDS = 5.4, 1.4, 2.6, 3.4, 0.22
SOFTNESS = (0.7, 1.6)  # of the lesion's border
HAIRY, LIGHT_HAIRED, HAIRS = 0.55, 0.15, 18.0  # shares of crops with hairs, and of light ones among them; hairs of a crop


def render(lesion: Mapping[str, float], texture: float, rng: np.random.Generator) -> bytes:
    """JPEG bytes of one crop.

    Args:
        lesion: the columns of ``RENDER_COLUMNS``.
        texture: latent strength of the mottles, standard normal over lesions.
        rng: source of all random numbers of this image.
    """
    size = _draw_size(rng)
    skin, inside = _colours(lesion)
    clouds = texture_field("colour", size, rng)
    (wobble,) = smooth_fields(size, BORDER_KNOTS, 1, rng)
    layers = np.empty((5, size, size), np.float32)
    mask, mottles, grey, redness, yellowness = layers
    _lesion_mask(lesion, wobble, clouds, float(rng.uniform(*SOFTNESS)), out=mask)
    _mottles(texture, rng, out=mottles)
    relief, red, yellow = (RELIEF, REDNESS, YELLOWNESS) * np.exp(rng.normal(0.0, 0.25, 3))
    np.multiply(texture_field("skin", size, rng), np.float32(relief), out=grey)
    grey += _lighting(size, rng)
    grey += _neighbours(size, rng)
    patches = band_field(size, PATCH_KNOTS, rng)
    patches *= np.float32(PATCHES * math.sqrt(lesion["tbp_lv_color_std_mean"]))
    patches *= mask
    grey += patches
    clouds = clouds * np.float32(CLOUDS)
    clouds += np.float32(1.0)
    mask *= clouds
    np.multiply(texture_field("colour", size, rng), np.float32(red), out=redness)
    np.multiply(texture_field("colour", size, rng), np.float32(yellow), out=yellowness)
    gains = np.column_stack([np.subtract(inside, skin), MOTTLE_GAIN, np.ones(3), RED_GAIN, YELLOW_GAIN]).astype(np.float32)
    levels = gains @ layers.reshape(5, -1)
    levels += np.array(skin, np.float32)[:, None]
    np.clip(levels, 0.0, 255.0, out=levels)
    pixels = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        pixels[:, :, channel] = levels[channel].reshape(size, size)
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


def _lesion_mask(lesion: Mapping[str, float], wobble: Floats, clouds: Floats, softness: float, out: Floats) -> None:
    """How much of each pixel is lesion, 0 to 1, into ``out``.

    It is an ellipse whose border ``wobble`` bends, ``clouds`` fray and ``softness`` widens.
    """
    roundness = math.sqrt(1.0 - min(lesion["tbp_lv_eccentricity"], 0.99) ** 2)
    semi_major = math.sqrt(lesion["tbp_lv_areaMM2"] / (math.pi * roundness))
    angle = math.radians(lesion["tbp_lv_symm_2axis_angle"])
    mm = axis(len(wobble))
    along = (mm * np.float32(math.cos(angle) / semi_major))[None, :] + (mm * np.float32(math.sin(angle) / semi_major))[
        :, None
    ]
    semi_minor = semi_major * roundness
    across = (mm * np.float32(-math.sin(angle) / semi_minor))[None, :] + (mm * np.float32(math.cos(angle) / semi_minor))[
        :, None
    ]
    along *= along
    across *= across
    along += across
    distance = np.sqrt(along, out=along)  # 1 on the ellipse
    radius = math.sqrt(semi_major * semi_minor)
    bend_mm = (0.03 + 0.022 * lesion["tbp_lv_norm_border"]) * min(radius, 2.5)
    wobble *= np.float32(bend_mm / radius)
    wobble += np.float32(1.0)
    distance *= wobble
    distance -= np.float32(1.0)
    distance *= np.float32(radius)
    distance += clouds * np.float32(0.12 * softness * min(radius, 2.0))
    softness_mm = softness * (0.3 + 0.1 * radius)
    distance *= np.float32(-0.5 / softness_mm)
    distance += np.float32(0.5)
    inside = np.clip(distance, 0.0, 1.0, out=distance)
    np.multiply(inside, np.float32(-2.0), out=out)
    out += np.float32(3.0)
    out *= inside
    out *= inside


def _mottles(texture: float, rng: np.random.Generator, out: Floats) -> None:
    """Mottles all over the crop, in grey levels of mean 0, into ``out``; ``texture`` sets their standard deviation."""
    field = band_field(len(out), MOTTLE_KNOTS, rng)
    field *= np.float32(-MOTTLE_SKEW)
    np.exp(field, out=field)  # dark ones stand out more than light ones
    field -= field.mean()
    flat = field.ravel()
    deviation = math.sqrt(float(flat @ flat) / field.size)
    np.multiply(field, np.float32(-MOTTLE_CONTRAST * math.exp(MOTTLE_GROWTH * texture) / deviation), out=out)


def _lighting(size: int, rng: np.random.Generator) -> Floats:
    """Uneven light, in grey levels around 0."""
    mm = axis(size) / np.float32(FIELD_MM / 2.0)
    (light,) = smooth_fields(size, BLOTCH_KNOTS, 1, rng)
    light *= np.float32(rng.uniform(1.5, 7.0))
    tilt = rng.normal(0.0, 4.0, 2).astype(np.float32)
    light += (tilt[0] * mm)[None, :]
    light += (tilt[1] * mm)[:, None]
    return light


def _neighbours(size: int, rng: np.random.Generator) -> Floats:
    """A few smaller dark or light spots elsewhere on the skin, in grey levels."""
    mm = axis(size)
    count = min(int(rng.geometric(0.35)) - 1, 8)
    x, y = rng.uniform(-7.5, 7.5, (2, count, 1)).astype(np.float32)
    radius = rng.uniform(0.2, 0.6, (count, 1)).astype(np.float32)
    depth = rng.normal(-12.0, 10.0, (count, 1)).astype(np.float32)
    rows = depth * np.exp(-(((mm - y) / radius) ** 2))
    return rows.T @ np.exp(-(((mm - x) / radius) ** 2))


def _draw_hairs(image: Image.Image, skin: Colour, rng: np.random.Generator) -> None:
    """Draws thin dark or light curves across the crop, in roughly one direction."""
    side = 2 * image.width
    cover = Image.new("L", (side, side))
    draw = ImageDraw.Draw(cover)
    count = int(min(1.0 + rng.exponential(HAIRS), 90.0))
    angle, bend = rng.normal((rng.uniform(0.0, 2.0 * math.pi), 0.0), (0.4, 0.8), (count, 2)).T[:, :, None]
    reach = np.linspace(0.0, 1.0, 8) * rng.uniform(0.2, 0.8, (count, 1))
    turns = angle + bend * reach
    start = rng.uniform(-0.2, 1.0, (2, count, 1))
    x, y = side * (start + reach * (np.cos(turns), np.sin(turns)))
    strength = rng.integers(60, 250, count).tolist()
    for points, level in zip(np.stack([x, y], axis=2).reshape(count, -1).tolist(), strength, strict=True):
        draw.line(points, fill=level, width=2)
    darkness = rng.uniform(1.15, 1.4) if rng.random() < LIGHT_HAIRED else rng.uniform(0.35, 0.75)
    image.paste(tuple(min(int(darkness * level), 255) for level in skin), None, cover.reduce(2))


def _colours(lesion: Mapping[str, float]) -> tuple[Colour, Colour]:
    """Skin and lesion in grey levels, from their CIELAB columns.

    The crops are lighter, less yellow and richer in contrast than the scanner's columns; the numbers are fits to the
    pixels of 197 of the competition's crops.
    """
    delta = {name: lesion[f"tbp_lv_{name}"] - lesion[f"tbp_lv_{name}ext"] for name in "LAB"}
    lightness = 21.0 + 0.75 * lesion["tbp_lv_Lext"]
    a, b = lesion["tbp_lv_Aext"] - 1.0, lesion["tbp_lv_Bext"] - 8.0
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
