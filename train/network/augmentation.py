"""Augmentation on the accelerator: every epoch gets another view of the same lesion.

A pure function of the crops and of random numbers, a row for each crop. So an interrupted training repeats the same views,
on one accelerator or several.
"""

from __future__ import annotations

import math

#: Random numbers per crop, uniform in [0, 1]; 0.5 everywhere leaves the crop as it is.
DRAWS = 15
TURN = math.radians(15)  # at most
ZOOM = 0.1  # smaller or larger by at most this share
BRIGHTNESS = 0.08  # of 255 levels
CONTRAST, SATURATION, TINT = 0.1, 0.15, 0.04
CUTOUT = 0.3  # side of the square at most, as a share of the crop's; half of the crops have one


def augment(crops, draws):
    """Flips, quarter turns, a small turn and zoom in one interpolation; then colours; then a square cut out.

    Args:
        crops: uint8 (batch, size, size, 3).
        draws: float32 (batch, ``DRAWS``).

    Returns:
        uint8, of the shape of ``crops``.
    """
    from keras import ops

    draw = [draws[:, i : i + 1] for i in range(DRAWS)]
    pixels = warp(ops.cast(crops, "float32"), draw[:5])
    pixels = change_colours(pixels, draw[5:11])
    pixels = cut_out(pixels, draw[11:])
    return ops.cast(ops.clip(ops.round(pixels), 0.0, 255.0), "uint8")


def warp(pixels, draw):
    """One of the square's eight symmetries, turned by up to ``TURN`` and zoomed by up to ``ZOOM``; edges are mirrored."""
    from keras import ops

    flip_x, flip_y, swap = (ops.cast(value > 0.5, "float32") for value in draw[:3])
    angle = (2 * draw[3] - 1) * TURN
    zoom = ops.exp((2 * draw[4] - 1) * math.log(1 + ZOOM))
    cos, sin = zoom * ops.cos(angle), zoom * ops.sin(angle)
    sign_x, sign_y = 1 - 2 * flip_x, 1 - 2 * flip_y
    cos_x, sin_x, cos_y, sin_y = sign_x * cos, sign_x * sin, sign_y * cos, sign_y * sin
    # Where a pixel of the result is looked up: (x, y) -> (a x + b y, c x + d y) about the centre, axes swapped for some.
    a, b = (1 - swap) * cos_x + swap * sin_y, (1 - swap) * -sin_x + swap * cos_y
    c, d = (1 - swap) * sin_y + swap * cos_x, (1 - swap) * cos_y + swap * -sin_x
    centre = (pixels.shape[1] - 1) / 2
    zero = ops.zeros_like(a)
    transform = [a, b, centre * (1 - a - b), c, d, centre * (1 - c - d), zero, zero]
    return ops.image.affine_transform(pixels, ops.concatenate(transform, axis=1), "bilinear", "reflect")


def change_colours(pixels, draw):
    """Brightness, contrast, saturation and tint, each by a little."""
    from keras import ops

    bright, contrast, saturation, *tint = (ops.reshape(2 * value - 1, (-1, 1, 1, 1)) for value in draw)
    mean = ops.mean(pixels, axis=(1, 2, 3), keepdims=True)
    pixels = mean + (pixels - mean) * (1 + CONTRAST * contrast) + 255 * BRIGHTNESS * bright
    grey = ops.mean(pixels, axis=3, keepdims=True)
    pixels = grey + (pixels - grey) * (1 + SATURATION * saturation)
    return pixels * (1 + TINT * ops.concatenate(tint, axis=3))


def cut_out(pixels, draw):
    """A square of the crop's mean colour over half of the crops."""
    from keras import ops

    size = pixels.shape[1]
    row, column = (ops.reshape(value, (-1, 1, 1, 1)) * size for value in draw[:2])
    side = ops.reshape(draw[2] * ops.cast(draw[3] > 0.5, "float32"), (-1, 1, 1, 1)) * CUTOUT * size
    axis = ops.arange(size, dtype="float32")
    rows = ops.abs(ops.reshape(axis, (1, -1, 1, 1)) + 0.5 - row) < side / 2
    columns = ops.abs(ops.reshape(axis, (1, 1, -1, 1)) + 0.5 - column) < side / 2
    return ops.where(ops.logical_and(rows, columns), ops.mean(pixels, axis=(1, 2), keepdims=True), pixels)
