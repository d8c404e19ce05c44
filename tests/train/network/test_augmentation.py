import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.network.augmentation import AUGMENTATIONS, DRAWS, Augmentation, augment

pytestmark = pytest.mark.integration
SIZE = 12
LIGHT = AUGMENTATIONS["light"]
CROPS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def augmented(crops, how=LIGHT, **draws):
    """The augmented crops; draws by their number as "d0", all others in the middle."""
    drawn = np.full((len(crops), DRAWS), 0.5, "float32")
    for name, value in draws.items():
        drawn[:, int(name[1:])] = value
    return augment(crops, drawn, how).numpy()


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_draws_in_the_middle_leave_the_crop_as_it_is(name):
    np.testing.assert_array_equal(augmented(CROPS, AUGMENTATIONS[name]), CROPS)


def test_without_augmentation_no_draw_changes_the_crop():
    draws = np.random.default_rng(1).random((len(CROPS), DRAWS)).astype("float32")
    np.testing.assert_array_equal(augment(CROPS, draws, AUGMENTATIONS["none"]).numpy(), CROPS)


def test_a_shift_moves_the_crop_by_a_share_of_its_width():
    crop = np.zeros((1, 20, 20, 3), "uint8")
    crop[:, 10, 10] = 200
    assert augmented(crop, Augmentation(shift=0.2), d5=1.0)[0, 10, 6, 0] == 200
    assert augmented(crop, Augmentation(shift=0.2), d6=0.0)[0, 14, 10, 0] == 200


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
    assert augmented(grey, d7=1.0).mean() == pytest.approx(100 + 255 * LIGHT.brightness, abs=0.5)
    assert augmented(grey, d7=0.0).mean() == pytest.approx(100 - 255 * LIGHT.brightness, abs=0.5)
    np.testing.assert_array_equal(augmented(grey, d8=1.0, d9=0.0), grey)  # nothing to contrast with, no colour to saturate
    reddish = augmented(grey, d10=1.0)[0, 0, 0]
    assert reddish[0] > reddish[1] == reddish[2] == 100
    assert augmented(CROPS, d8=1.0).std() > CROPS.std() > augmented(CROPS, d8=0.0).std()


def test_half_of_the_crops_have_a_square_cut_out():
    crop = np.zeros((1, 40, 40, 3), "uint8")
    crop[:, ::2] = 200
    np.testing.assert_array_equal(augmented(crop, d13=0.5, d14=0.5, d15=1.0, d16=0.4), crop)
    cut = (augmented(crop, d13=0.5, d14=0.5, d15=1.0, d16=0.9) != crop).all(axis=3)[0]
    assert cut.sum() == (LIGHT.cutout * 40) ** 2
    assert cut[14:26, 14:26].all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2 * DRAWS, max_size=2 * DRAWS))
def test_what_a_crop_becomes_depends_on_its_own_draws_only(numbers):
    draws = np.array(numbers, "float32").reshape(2, DRAWS)
    together = augment(CROPS[:2], draws, AUGMENTATIONS["strong-cutout"]).numpy()
    assert together.dtype == np.uint8
    assert together.shape == CROPS[:2].shape
    for row in range(2):
        alone = augment(CROPS[row : row + 1], draws[row : row + 1], AUGMENTATIONS["strong-cutout"]).numpy()
        np.testing.assert_array_equal(alone[0], together[row])
