import shutil
from io import BytesIO

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation.explore.folder import read_folder, read_images, read_split
from inference.schema import ID, PATIENT, TARGET
from utils import InputError


@pytest.fixture
def folder(synthetic_data, tmp_path):
    """A copy of synthetic_data that may be changed."""
    return shutil.copytree(synthetic_data, tmp_path / "competition")


def changed(folder, change, name="train-metadata.csv"):
    """Writes the metadata anew after ``change``, which is given all cells as text."""
    table = pd.read_csv(folder / name, dtype=str)
    change(table).to_csv(folder / name, index=False)
    return folder


def test_a_folder_is_read_as_it_is(synthetic_data, metadata):
    found = read_folder(synthetic_data)
    pd.testing.assert_frame_equal(found.train[metadata.columns.tolist()], metadata, check_dtype=False)
    assert len(found.test) == found.test_images == 3
    assert found.images.source == synthetic_data / "train-image.hdf5" and found.images.present.all()
    assert sorted(found.images.same) == list(range(60))
    assert found.garbled == {}


def test_an_archive_folder_keeps_its_own_columns_and_has_no_test(archive_folder):
    found = read_folder(archive_folder)
    assert {"diagnosis", "source"} < set(found.train)


def test_doubtful_rows_are_read_and_counted(folder):
    def spoil(table):
        table.loc[0, PATIENT], table.loc[1, ID], table.loc[2, ID] = None, None, table.loc[3, ID]
        table.loc[[4, 5], "age_approx"] = ["old", "inf"]
        return table

    found = read_folder(changed(folder, spoil))
    assert len(found.train) == 60
    assert found.garbled == {"age_approx": 2}
    assert found.train.loc[[4, 5], "age_approx"].isna().all()
    assert found.images.present.tolist() == [True, False] + [True] * 58
    assert found.images.same[3] == -1  # a repeated isic_id is not a duplicate image


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(columns=PATIENT), "no column 'patient_id'"),
        (lambda table: table.drop(columns=TARGET), "no column 'target'"),
        (lambda table: table.head(0), "has no rows"),
        (lambda table: table.assign(target=["2"] + ["0"] * 59), r"line 2: target 2 is not 0 .* \(1 such rows in all\)"),
        (lambda table: table.assign(target=["0"] * 59 + [None]), "line 61: target nan is not 0"),
    ],
)
def test_what_cannot_be_explored_is_refused_in_one_sentence(folder, change, words):
    with pytest.raises(InputError, match=words):
        read_split(changed(folder, change) / "train-metadata.csv", labelled=True)


@pytest.mark.parametrize("name", ["train-metadata.csv", "test-metadata.csv", "train-image.hdf5", "test-image.hdf5"])
def test_a_dangling_link_is_named(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("nowhere")
    with pytest.raises(InputError, match=f"{name} is a link to nowhere"):
        read_folder(folder)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"train-metadata\.csv is not in"):
        read_folder(tmp_path)
    (tmp_path / "train-metadata.csv").write_bytes(b"\xff\xfe\x00\x00a,b\n")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_folder(tmp_path)


def jpeg(grey):
    """A small JPEG of one colour."""
    file = BytesIO()
    Image.new("L", (8, 8), grey).save(file, "JPEG")
    return file.getvalue()


def test_images_of_the_same_bytes_are_found(tmp_path):
    with h5py.File(tmp_path / "train-image.hdf5", "w") as file:
        for name, content in {"a": jpeg(1), "b": jpeg(99), "c": jpeg(1), "d": jpeg(200), "gone": b"no image"}.items():
            file[name] = np.bytes_(content)
    ids = pd.Series(["a", "b", "c", "gone", "d"])
    images = read_images(tmp_path, ids)
    assert images.present.tolist() == [True, True, True, False, True]
    assert images.same.tolist() == [0, 1, 0, -1, 2]
    # What is left after so many bytes is only looked for, not into.
    few = read_images(tmp_path, ids, most_bytes=len(jpeg(1)) + 1)
    assert few.present.tolist() == [True] * 5
    assert few.same.tolist() == [0, 1, -1, -1, -1]


def test_a_folder_without_images_has_none(tmp_path):
    images = read_images(tmp_path, pd.Series(["a"]))
    assert images.source is None and not images.present.any()


def test_images_in_a_folder_of_files_count_as_well(tmp_path):
    (tmp_path / "train-image" / "image").mkdir(parents=True)
    (tmp_path / "train-image" / "image" / "a.jpg").write_bytes(jpeg(1))
    assert read_images(tmp_path, pd.Series(["a", "b", "../a"])).present.tolist() == [True, False, False]
