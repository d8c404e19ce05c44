import numpy as np

from evaluation.grad_cam import side_by_side
from evaluation.triage.cards import describe, value_in_words


def test_values_in_words():
    values = ("male", np.nan, 0.12345, 1234567.0, -3.0)
    assert [value_in_words(value) for value in values] == ["male", "unknown", "0.123", "1,234,567", "-3"]


def test_the_description_of_a_picture_names_its_warmest_place():
    heat = np.zeros((30, 30), dtype="float32")
    assert describe("L", None) == "Crop of L."
    assert "no place raises the logit" in describe("L", heat)
    heat[25:, 10:15] = 1.0
    assert describe("L", heat).endswith("warmest in the lower centre, more than half as warm on 3% of it.")
    crop = np.full((60, 60, 3), 200, dtype="uint8")
    both = side_by_side(crop, heat)
    assert both.shape == (60, 122, 3) and 0 <= both.min() <= both.max() <= 1
    np.testing.assert_allclose(both[:40, 62:], 200 / 255, atol=0.5)
    assert np.ptp(both[5, 70]) < 0.2 < np.ptp(both[57, 62 + 24])  # grey where there is no heat, coloured where there is
