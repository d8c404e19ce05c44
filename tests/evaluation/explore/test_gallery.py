from io import BytesIO

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation.explore.gallery import MOST_BYTES, SIDE, gallery, sampled, shown_image, side_by_side
from inference.images import ImageStore
from inference.schema import ID, PATIENT, TARGET


def image_bytes(kind="JPEG", size=(12, 9), noise=False):
    file = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    (Image.fromarray(pixels) if noise else Image.new("RGB", size)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def lesions():
    return pd.DataFrame(
        {
            ID: list("abcdef"),
            PATIENT: ["p", "p", "p", "q", "q", "r"],
            TARGET: [1, 0, 0, 0, 1, 1],
            "age_approx": [50.0, np.nan, 50, 60, 60, 70],
            "sex": ["male", None, "<b>", "female", "male", "male"],
        }
    )


@pytest.fixture
def store(tmp_path):
    """Images of a, b and c, and a broken one of d."""
    with h5py.File(tmp_path / "train-image.hdf5", "w") as file:
        for name in "abc":
            file[name] = np.bytes_(image_bytes())
        file["d"] = np.bytes_(image_bytes()[:-200])
    store = ImageStore(tmp_path / "train-image.hdf5")
    yield store
    store.close()


def test_small_images_are_shown_as_they_are_and_large_ones_made_smaller():
    assert shown_image(image_bytes()) == (image_bytes(), "jpeg")
    assert shown_image(image_bytes("PNG")) == (image_bytes("PNG"), "png")
    large = image_bytes(size=(900, 400), noise=True)
    assert len(large) > MOST_BYTES
    content, kind = shown_image(large)
    assert kind == "jpeg" and Image.open(BytesIO(content)).size == (SIDE, 114)


def test_what_cannot_be_read_is_not_shown():
    for content in (b"", b"no image", image_bytes()[:60], image_bytes("GIF")):
        assert shown_image(content) is None


def test_a_gallery_skips_missing_and_broken_images_and_counts_them(lesions, store, capsys):
    crops = gallery(lesions, store, 24)
    assert capsys.readouterr().out.startswith("3 images")
    assert [(crop.isic_id, crop.label, crop.known) for crop in crops] == [
        ("a", "malignant", "age 50, male"),
        ("b", "benign", ""),
        ("c", "benign", "age 50, <b>"),
    ]
    assert [crop.isic_id for crop in gallery(lesions, store, 2)] == ["a", "b"]
    assert gallery(lesions.tail(3), store, 24) == gallery(lesions, None, 24) == []


def test_a_sample_is_of_one_class_with_an_image_and_repeats_with_its_seed(lesions):
    present = np.array([True, True, True, False, True, False])
    assert set(sampled(lesions, present, 1, 0)[ID]) == {"a", "e"}
    many = pd.concat([lesions.assign(**{ID: [f"{i}{name}" for name in lesions[ID]]}) for i in range(20)])
    every = np.ones(len(many), dtype=bool)
    assert sampled(many, every, 0, 1).equals(sampled(many, every, 0, 1))
    assert not sampled(many, every, 0, 1).equals(sampled(many, every, 0, 2))


def test_patients_are_shown_with_the_malignant_lesion_first(lesions):
    shown = side_by_side(lesions, np.ones(6, dtype=bool), ["p", "q", "r"], 2, 0)
    assert list(shown) == ["p", "q"]  # r has no benign lesion
    assert shown["p"][ID].iloc[0] == "a" and len(shown["p"]) == 2
    assert side_by_side(lesions, np.array([False] + [True] * 5), ["p"], 2, 0) == {}
