"""Crops drawn from a bank: near the lesion's texture, pictures of the bank, a file of its own for each lesion."""

import io

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from inference.images import pixels_claimed
from train.synthetic import dataset
from train.synthetic.bank import Bank, bank_rows, turned, with_comment
from train.synthetic.dataset import DatasetConfig, make_tables, write_dataset

CONFIG = DatasetConfig(patients=8, lesions=60, prevalence=0.2, test_lesions=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("bank")
    write_dataset(out, CONFIG, images="bank")
    return out


def jpeg_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def picture():
    """Dark in one corner, so that no two placements are equal."""
    pixels = np.full((61, 61, 3), 200, np.uint8)
    pixels[:20, :40] = 40
    return jpeg_of(pixels)


def test_a_comment_changes_the_bytes_and_no_pixel(picture):
    commented = with_comment(picture, "ISIC_0000001")
    image = Image.open(io.BytesIO(commented))
    assert image.info["comment"] == b"ISIC_0000001"
    assert np.array_equal(image, Image.open(io.BytesIO(picture)))
    assert len(commented) == len(picture) + 16
    assert pixels_claimed(commented) == 61 * 61


def test_a_crop_is_turned_eight_ways(picture):
    found = turned(picture)
    assert found[0] == picture
    corners = {tuple(np.asarray(Image.open(io.BytesIO(each)))[[5, 5, -5, -5], [5, -5, 5, -5], 0] < 120) for each in found}
    lengths = {
        tuple((np.asarray(Image.open(io.BytesIO(each)))[..., 0] < 120).any(axis)[5:56].sum() for axis in (0, 1))
        for each in found
    }
    assert len(found) == 8
    assert len(corners) == 4
    assert len(lengths) == 2


def test_the_bank_is_spread_over_the_ranks_of_the_texture():
    texture = np.random.default_rng(0).standard_normal(1000)
    chosen = texture[bank_rows(texture, 11)]
    assert np.array_equal(chosen, np.sort(texture)[[0, 100, 200, 300, 400, 500, 599, 699, 799, 899, 999]])
    assert sorted(bank_rows(texture[:5], 11)) == [0, 1, 2, 3, 4]


def test_a_lesion_gets_a_crop_near_its_texture(picture):
    bank = Bank([[with_comment(picture, str(number))] for number in range(1000)], np.linspace(-3, 3, 1000))
    texture = np.array([-9.0, -1.0, 0.0, 2.0, 9.0] * 20)
    drawn = [Image.open(io.BytesIO(jpeg)) for jpeg in bank.crops(["ISIC_0000001"] * 100, texture, 0)]
    assert all(image.info["comment"] for image in drawn)
    jpegs = list(bank.crops([f"ISIC_{number:07d}" for number in range(100)], texture, 0))
    numbers = np.array([int(jpeg.split(b"\xff\xfe")[2][2:].split(b"\xff")[0]) for jpeg in jpegs])
    assert np.abs(bank.texture[numbers] - texture.clip(-3, 3)).max() <= 4.01 * 6 / 999
    assert len(set(numbers)) > 20
    assert len(set(jpegs)) == 100


def test_the_files_are_those_of_any_synthetic_dataset(folder):
    train, test = (pd.read_csv(folder / f"{name}-metadata.csv") for name in ("train", "test"))
    assert (len(train), len(test), test["patient_id"].nunique()) == (60, 40, 5)
    assert not set(train["isic_id"]) & set(test["isic_id"])
    assert not set(train["patient_id"]) & set(test["patient_id"])
    assert (folder / "truth.csv").is_file()
    jpegs = []
    for name, rows in (("train", train), ("test", test)):
        with h5py.File(folder / f"{name}-image.hdf5") as file:
            assert sorted(file) == rows["isic_id"].tolist()
            jpegs += [bytes(file[isic_id][()]) for isic_id in file]
    assert len(set(jpegs)) == 100
    pictures = {np.asarray(Image.open(io.BytesIO(jpeg))).tobytes() for jpeg in jpegs}
    assert 20 < len(pictures) <= 60 * 8


def test_one_configuration_gives_the_same_bytes(folder, tmp_path):
    write_dataset(tmp_path, CONFIG, images="bank")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_tables_do_not_depend_on_the_images(folder):
    tables = make_tables(CONFIG)
    assert pd.read_csv(folder / "train-metadata.csv")["isic_id"].tolist() == tables.train["isic_id"].tolist()
    assert np.allclose(pd.read_csv(folder / "truth.csv")["logit"], tables.truth["logit"])


def test_a_large_test_file_has_the_patients_that_its_lesions_make():
    assert DatasetConfig().test_patients == 3
    assert DatasetConfig(test_lesions=511_474).test_patients == 1_329
    assert DatasetConfig(patients=8, lesions=800, test_lesions=1).test_patients == 1
    assert len(dataset.make_tables(DatasetConfig(8, 60, 0.2, 0, 90)).test) == 90
