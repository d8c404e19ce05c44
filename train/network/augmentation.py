"""Augmentation on the accelerator: every epoch gets another view of the same lesion.

A pure function of the crops and of random numbers, a row for each crop. So an interrupted training repeats the same views,
on one accelerator or several.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

#: Random numbers per crop, uniform in [0, 1]; 0.5 everywhere leaves the crop as it is.
DRAWS = 17


@dataclass(frozen=True)
class Augmentation:
    """How far a crop is changed at most; the draws are uniform up to that.

    Args:
        flips: whether a crop is mirrored and turned by quarters.
        turn: in degrees, to either side.
        zoom: smaller or larger by this share.
        shift: along each axis, as a share of the crop's width.
        brightness: as a share of 255 levels.
        contrast: as a share of itself, as are saturation and tint.
        saturation: towards grey, or away from it.
        tint: of each channel by itself.
        cutout: side of a square that is cut out of half of the crops, as a share of the crop's width.
    """

    flips: bool = True
    turn: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    tint: float = 0.0
    cutout: float = 0.0


_STRONG = Augmentation(True, 180.0, 0.3, 0.1, 0.15, 0.3, 0.3, 0.06, 0.0)
#: The choices of ``--augmentation``.
AUGMENTATIONS = {
    "none": Augmentation(flips=False),
    "flips": Augmentation(),
    "light": Augmentation(True, 15.0, 0.1, 0.0, 0.08, 0.1, 0.15, 0.04, 0.3),
    "geometry": replace(_STRONG, brightness=0.0, contrast=0.0, saturation=0.0, tint=0.0),
    "colour": replace(_STRONG, turn=0.0, zoom=0.0, shift=0.0),
    "strong": _STRONG,
    "strong-cutout": replace(_STRONG, cutout=0.4),
}


def augment(crops, draws, how: Augmentation):
    """Flips, turn, zoom and shift in one interpolation; then colours; then a square cut out.

    Args:
        crops: uint8 (batch, size, size, 3).
        draws: float32 (batch, ``DRAWS``).
        how: the limits.

    Returns:
        uint8, of the shape of ``crops``.
    """
    from keras import ops

    draw = [draws[:, i : i + 1] for i in range(DRAWS)]
    pixels = warp(ops.cast(crops, "float32"), draw[:7], how)
    pixels = change_colours(pixels, draw[7:13], how)
    if how.cutout:
        pixels = cut_out(pixels, draw[13:], how.cutout)
    return ops.cast(ops.clip(ops.round(pixels), 0.0, 255.0), "uint8")


def warp(pixels, draw, how: Augmentation):
    """One of the square's eight symmetries, turned, zoomed and shifted; edges are mirrored."""
    from keras import ops

    flip_x, flip_y, swap = (ops.cast(value > 0.5, "float32") * float(how.flips) for value in draw[:3])
    angle = (2 * draw[3] - 1) * math.radians(how.turn)
    zoom = ops.exp((2 * draw[4] - 1) * math.log(1 + how.zoom))
    shift_x, shift_y = ((2 * value - 1) * how.shift * pixels.shape[1] for value in draw[5:7])
    cos, sin = zoom * ops.cos(angle), zoom * ops.sin(angle)
    sign_x, sign_y = 1 - 2 * flip_x, 1 - 2 * flip_y
    cos_x, sin_x, cos_y, sin_y = sign_x * cos, sign_x * sin, sign_y * cos, sign_y * sin
    # Where a pixel of the result is looked up: (x, y) -> (a x + b y, c x + d y) about the centre, axes swapped for some.
    a, b = (1 - swap) * cos_x + swap * sin_y, (1 - swap) * -sin_x + swap * cos_y
    c, d = (1 - swap) * sin_y + swap * cos_x, (1 - swap) * cos_y + swap * -sin_x
    centre = (pixels.shape[1] - 1) / 2
    zero = ops.zeros_like(a)
    transform = [a, b, centre * (1 - a - b) + shift_x, c, d, centre * (1 - c - d) + shift_y, zero, zero]
    return ops.image.affine_transform(pixels, ops.concatenate(transform, axis=1), "bilinear", "reflect")


def change_colours(pixels, draw, how: Augmentation):
    """Brightness, contrast, saturation and tint."""
    from keras import ops

    bright, contrast, saturation, *tint = (ops.reshape(2 * value - 1, (-1, 1, 1, 1)) for value in draw)
    mean = ops.mean(pixels, axis=(1, 2, 3), keepdims=True)
    pixels = mean + (pixels - mean) * (1 + how.contrast * contrast) + 255 * how.brightness * bright
    grey = ops.mean(pixels, axis=3, keepdims=True)
    pixels = grey + (pixels - grey) * (1 + how.saturation * saturation)
    return pixels * (1 + how.tint * ops.concatenate(tint, axis=3))


def cut_out(pixels, draw, share: float):
    """A square of the crop's mean colour, its side at most ``share`` of the crop's, over half of the crops."""
    from keras import ops

    size = pixels.shape[1]
    row, column = (ops.reshape(value, (-1, 1, 1, 1)) * size for value in draw[:2])
    side = ops.reshape(draw[2] * ops.cast(draw[3] > 0.5, "float32"), (-1, 1, 1, 1)) * share * size
    axis = ops.arange(size, dtype="float32")
    rows = ops.abs(ops.reshape(axis, (1, -1, 1, 1)) + 0.5 - row) < side / 2
    columns = ops.abs(ops.reshape(axis, (1, 1, -1, 1)) + 0.5 - column) < side / 2
    return ops.where(ops.logical_and(rows, columns), ops.mean(pixels, axis=(1, 2), keepdims=True), pixels)
