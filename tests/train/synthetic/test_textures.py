"""The random fields of the synthetic crops: shape, scale, and the same numbers from the same source."""

import numpy as np
import pytest

from train.synthetic.textures import TILE, axis, band_field, smooth_fields, texture_field


@pytest.mark.parametrize("size", [61, 131, 239])
def test_fields_have_mean_zero_and_their_variance(size):
    rng = np.random.default_rng(0)
    fields = {
        "smooth": smooth_fields(size, 10, 20, rng),
        "band": np.array([band_field(size, 9, rng) for _ in range(20)]),
        "skin": np.array([texture_field("skin", size, rng) for _ in range(20)]),
        "colour": np.array([texture_field("colour", size, rng) for _ in range(20)]),
    }
    for name, field in fields.items():
        assert field.shape == (20, size, size)
        assert field.dtype == np.float32
        assert abs(field.mean()) < 0.4, name
        assert field.var() == pytest.approx(0.38 if name == "band" else 1.0, rel=0.3), name


def test_same_source_same_field_and_a_window_cannot_be_written_to():
    first, second, other = (texture_field("skin", 131, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == second).all()
    assert not (first == other).all()
    with pytest.raises(ValueError, match="read-only"):
        first += 1.0
    assert texture_field("skin", TILE, np.random.default_rng(0)).shape == (TILE, TILE)


def test_axis_is_in_millimetres_from_the_middle():
    assert axis(3).tolist() == [-5.0, 0.0, 5.0]
