import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.network.augmentation import BRIGHTNESS, CUTOUT, DRAWS, augment

pytestmark = pytest.mark.integration
SIZE = 12
CROPS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def augmented(crops, **draws):
    """The augmented crops; draws by their number as "d0", all others in the middle."""
    drawn = np.full((len(crops), DRAWS), 0.5, "float32")
    for name, value in draws.items():
        drawn[:, int(name[1:])] = value
    return augment(crops, drawn).numpy()


def test_draws_in_the_middle_leave_the_crop_as_it_is():
    np.testing.assert_array_equal(augmented(CROPS), CROPS)


def test_flips_and_quarter_turns_are_the_eight_symmetries_of_the_square_to_the_pixel():
    found = set()
    for flips in np.ndindex(2, 2, 2):
        result = augmented(CROPS, **{f"d{i}": float(flip) for i, flip in enumerate(flips)})
        alike = [
            (turn, mirrored)
            for turn in range(4)
            for mirrored in (False, True)
            if np.array_equal(result, np.rot90(CROPS[:, :, ::-1] if mirrored else CROPS, turn, axes=(1, 2)))
        ]
        assert len(alike) == 1
        found.add(alike[0])
    assert len(found) == 8


def test_a_small_turn_and_zoom_leave_the_centre_where_it_is():
    crop = np.zeros((1, 33, 33, 3), "uint8")
    crop[:, 15:18, 15:18] = 200
    for number in (3, 4):
        for value in (0.0, 1.0):
            result = augmented(crop, **{f"d{number}": value})
            assert result[0, 16, 16, 0] == 200
            assert result[0, :10].max() == result[0, 23:].max() == 0
    larger, smaller = (int(augmented(crop, d4=value)[..., 0].sum()) for value in (0.0, 1.0))
    assert larger > crop[..., 0].sum() > smaller


def test_light_changes_by_a_little():
    grey = np.full((1, SIZE, SIZE, 3), 100, "uint8")
    assert augmented(grey, d5=1.0).mean() == pytest.approx(100 + 255 * BRIGHTNESS, abs=0.5)
    assert augmented(grey, d5=0.0).mean() == pytest.approx(100 - 255 * BRIGHTNESS, abs=0.5)
    np.testing.assert_array_equal(augmented(grey, d6=1.0, d7=0.0), grey)  # nothing to contrast with, no colour to saturate
    reddish = augmented(grey, d8=1.0)[0, 0, 0]
    assert reddish[0] > reddish[1] == reddish[2] == 100
    assert augmented(CROPS, d6=1.0).std() > CROPS.std() > augmented(CROPS, d6=0.0).std()


def test_half_of_the_crops_have_a_square_cut_out():
    crop = np.zeros((1, 40, 40, 3), "uint8")
    crop[:, ::2] = 200
    np.testing.assert_array_equal(augmented(crop, d11=0.5, d12=0.5, d13=1.0, d14=0.4), crop)
    cut = (augmented(crop, d11=0.5, d12=0.5, d13=1.0, d14=0.9) != crop).all(axis=3)[0]
    assert cut.sum() == (CUTOUT * 40) ** 2
    assert cut[14:26, 14:26].all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2 * DRAWS, max_size=2 * DRAWS))
def test_what_a_crop_becomes_depends_on_its_own_draws_only(numbers):
    draws = np.array(numbers, "float32").reshape(2, DRAWS)
    together = augment(CROPS[:2], draws).numpy()
    assert together.dtype == np.uint8
    assert together.shape == CROPS[:2].shape
    for row in range(2):
        np.testing.assert_array_equal(augment(CROPS[row : row + 1], draws[row : row + 1]).numpy()[0], together[row])
