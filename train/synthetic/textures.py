"""Random fields that the synthetic crops are made of: smooth ones by their knots, and windows of tiles of fine texture."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FIELD_MM = 15.0  # width and height of the skin in every crop of the competition
TILE = 256  # side in pixels; no crop is larger
TILES = 24  # of each kind
TILE_PIXEL_MM = FIELD_MM / 131  # in a crop of the median size


@lru_cache(maxsize=256)
def axis(size: int) -> Floats:
    """Position of each pixel's centre in mm from the middle of the crop, shape (size,)."""
    return ((np.arange(size) + 0.5) / size * FIELD_MM - FIELD_MM / 2.0).astype(np.float32)


@lru_cache(maxsize=1024)
def _knot_weights(size: int, knots: int) -> Floats:
    """Weights of ``knots`` evenly spaced values at each pixel, shape (size, knots), that keep the variance."""
    position = (np.arange(size) + 0.5) / size * knots - 0.5
    weights = np.exp(-((position[:, None] - np.arange(knots)) ** 2) / (2.0 * 0.65**2))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def smooth_fields(size: int, knots: int, count: int, rng: np.random.Generator) -> Floats:
    """Smooth random fields of mean 0 and variance 1, shape (count, size, size)."""
    weights = _knot_weights(size, knots)
    return weights @ rng.standard_normal((count, knots, knots), dtype=np.float32) @ weights.T


def band_field(size: int, knots: int, rng: np.random.Generator) -> Floats:
    """A random field of mean 0 and variance 0.4, high-pass filtered: every knot less a quarter of its neighbours."""
    values = rng.standard_normal((knots + 2, knots + 2), dtype=np.float32)
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    weights = _knot_weights(size, knots)
    return weights @ (values[1:-1, 1:-1] - np.float32(0.25) * around) @ weights.T


def texture_field(kind: str, size: int, rng: np.random.Generator) -> Floats:
    """A random window of a random tile: mean about 0, variance about 1, a read-only array of shape (size, size)."""
    number, top, left, flip = rng.integers((TILES, TILE - size + 1, TILE - size + 1, 2)).tolist()
    return _tiles(kind)[number, top : top + size, left : left + size][:: -1 if flip else 1]


@lru_cache(maxsize=2)
def _tiles(kind: str) -> Floats:
    """The tiles of a kind ("skin" or "colour"), the same in every process, shape (TILES, TILE, TILE).

    Skin: fine relief, more or less in one direction. Colour: coarser, without direction.
    """
    rng = np.random.default_rng([len(kind), TILES])
    cycles = np.fft.fftfreq(TILE, TILE_PIXEL_MM)  # per mm
    frequency = np.maximum(np.hypot(cycles[:, None], cycles[None, : TILE // 2 + 1]), 0.05)
    direction = np.arctan2(cycles[:, None], cycles[None, : TILE // 2 + 1])
    tiles = np.empty((TILES, TILE, TILE), np.float32)
    for tile in tiles:
        if kind == "skin":
            amplitude = frequency ** rng.uniform(-0.8, -0.4) * np.exp(-((frequency / rng.uniform(1.7, 2.6)) ** 2))
            amplitude *= 1.0 - np.exp(-((frequency / 0.35) ** 2))
            along = np.cos(direction - rng.uniform(0.0, np.pi)) ** 2
            amplitude *= 1.0 + rng.exponential(1.2) * along**3
        else:
            amplitude = frequency**-1.25 * np.exp(-((frequency / 1.0) ** 2))
        amplitude[0, 0] = 0.0
        noise = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
        field = np.fft.irfft2(noise * amplitude, (TILE, TILE))
        tile[:] = field / field.std()
    tiles.flags.writeable = False
    return tiles
