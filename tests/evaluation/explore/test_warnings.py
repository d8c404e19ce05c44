from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.explore.folder import read_folder
from evaluation.explore.tables import correlations, single_columns
from evaluation.explore.warnings import copies, find_warnings, listed
from inference.schema import HOSPITAL, ID, PATIENT, TARGET


@pytest.fixture
def folder(synthetic_data):
    """synthetic_data as it is read; ``dataclasses.replace`` makes another one of it."""
    return read_folder(synthetic_data)


def warnings_of(folder):
    """Title -> text of every warning."""
    return {
        each.title: each.text for each in find_warnings(folder, single_columns(folder.train), correlations(folder.train))
    }


def changed(folder, **columns):
    """The folder with other columns in train."""
    return replace(folder, train=folder.train.assign(**columns))


def test_synthetic_data_has_the_leaks_of_the_competition_and_no_doubtful_rows(folder):
    found = warnings_of(folder)
    assert {"Columns that give the label away", "Columns only in train", "Few malignant lesions"} <= set(found)
    assert "iddx_1 (0.2000 by its value)" in found["Columns that give the label away"]
    assert "lesion_id" in found["Columns only in train"] and "target" not in found["Columns only in train"]
    doubtful = {"Repeated isic_id", "Duplicate images", "Patients in two hospitals", "Rows without an image"}
    assert not doubtful & set(found)
    assert "attribution: FNQH Cairns, in 1 of 3" in found["Categories that train does not have"]


def test_a_leak_under_any_name_is_found(folder):
    labels = folder.train[TARGET]
    number = warnings_of(changed(folder, secret=labels * 2.0 - 5))
    assert "secret (0.2000 by its value)" in number["Columns that give the label away"]
    assert "secret" in number["Columns of another file"]
    gaps = warnings_of(changed(folder, tbp_lv_H=folder.train["tbp_lv_H"].where(labels == 1)))
    assert "tbp_lv_H (0.2000 by its gaps)" in gaps["Columns that give the label away"]


def test_missing_values_and_counts_that_predict_the_label_are_reported(folder):
    title = "Missing values and counts predict the label"
    train = pd.concat([folder.train] * 5, ignore_index=True)
    train[ID] = [f"ISIC_{row:07d}" for row in range(300)]
    more = replace(folder, train=train, images=replace(folder.images, present=np.ones(300, bool), same=np.arange(300)))
    assert title not in warnings_of(more)
    found = warnings_of(changed(more, **{PATIENT: train[PATIENT].where(train[TARGET] == 1)}))
    assert "'has a known patient' 1.000" in found[title] and "--patients own" in found[title]


def test_repeated_ids_and_shared_ones_are_counted(folder):
    ids = folder.train[ID].copy()
    ids[1], ids[2] = ids[0], None
    found = warnings_of(changed(folder, **{ID: ids}))
    assert found["Repeated isic_id"].startswith(f"1 rows repeat an earlier isic_id, the first {ids[0]}")
    assert "1 rows" in found["Rows without isic_id"]
    both = replace(folder, test=folder.train.drop(columns=TARGET).head(2))
    assert "2 isic_ids" in warnings_of(both)["Lesions both in train and in test"]
    assert (
        "2 patients" in warnings_of(both)["Patients both in train and in test"] or folder.train[PATIENT][:2].nunique() == 1
    )


def test_duplicate_images_of_two_patients_and_of_both_labels_are_counted(folder):
    train = folder.train.assign(**{PATIENT: [f"p{i // 4}" for i in range(60)], TARGET: [1, 0, 0, 0, 0, 0] + [0, 1] * 27})
    same = np.arange(60)
    same[1], same[5] = same[0], same[3]  # of one patient with both labels; of two patients with one label
    images = replace(folder.images, same=same)
    text = warnings_of(replace(folder, train=train, images=images))["Duplicate images"]
    assert text.startswith("4 lesions share 2 images byte for byte, for example " + ", ".join(train[ID][:2]))
    assert "1 of these images belong to several patients" in text and "1 have both labels" in text


def test_patients_in_two_hospitals_are_named(folder):
    hospitals = folder.train[HOSPITAL].copy()
    patient = folder.train[PATIENT].value_counts().index[0]
    hospitals[folder.train.index[folder.train[PATIENT] == patient][0]] = "Elsewhere"
    text = warnings_of(changed(folder, **{HOSPITAL: hospitals}))["Patients in two hospitals"]
    assert text.startswith(f"1 patients, the first {patient}")
    assert "Rows without patient_id" in warnings_of(changed(folder, **{PATIENT: [None, *folder.train[PATIENT][1:]]}))


def test_rows_without_an_image_are_counted_by_class(folder):
    present = np.ones(60, dtype=bool)
    malignant = np.flatnonzero(folder.train[TARGET] == 1)
    present[malignant[:2]] = False
    found = warnings_of(replace(folder, images=replace(folder.images, present=present), test_images=1))
    assert found["Rows without an image"].startswith("2 of 60 rows of train, 2 of them malignant")
    assert found["Test rows without an image"].startswith("2 of 3")
    none = replace(folder.images, source=None, present=np.zeros(60, dtype=bool))
    assert "No images" in warnings_of(replace(folder, images=none))


def test_empty_constant_and_garbled_columns_are_named(folder):
    found = warnings_of(changed(replace(folder, garbled={"age_approx": 3}), sex="male", tbp_lv_H=np.nan))
    assert "tbp_lv_H" in found["Empty columns"]
    assert "sex (male)" in found["Constant columns"]
    assert found["Cells that are no number"].startswith("age_approx (3)")


def test_a_test_split_unlike_train_is_reported(folder):
    test = pd.concat([folder.test] * 4, ignore_index=True).assign(later=1)
    test["tbp_lv_Lext"] = np.linspace(40, 50, len(test))
    test["tbp_lv_stdLExt"] = test["tbp_lv_Lext"]
    found = warnings_of(replace(folder, test=test))
    assert "tbp_lv_stdLExt equals tbp_lv_Lext in every row of test" in found["Copied column in test"]
    assert "tbp_lv_stdLExt (12 of 12 rows)" in found["Numbers of test outside train's range"]
    assert "later" in found["Columns only in test"]
    ordinary = folder.train.drop(columns=TARGET).head(20)
    found = warnings_of(replace(folder, test=ordinary))
    assert not {"Copied column in test", "Numbers of test outside train's range"} & set(found)


def test_the_public_test_file_repeats_a_column(real_data):
    found = warnings_of(read_folder(real_data))
    assert "tbp_lv_stdLExt equals tbp_lv_Lext" in found["Copied column in test"]
    assert found["Rows without an image"].startswith("4,918 of 5,115")


def test_one_class_and_hospitals_without_a_malignant_lesion_are_named(folder):
    assert "All 60 lesions are benign" in warnings_of(changed(folder, **{TARGET: 0}))["One class only"]
    hospitals = np.where(folder.train[TARGET] == 1, "A", "B")
    assert warnings_of(changed(folder, **{HOSPITAL: hospitals}))["Hospitals without a malignant lesion"].startswith("B:")


def test_columns_that_repeat_each_other_are_paired(folder):
    found = warnings_of(changed(folder, tbp_lv_x=-2 * folder.train["tbp_lv_H"]))
    assert "tbp_lv_H and tbp_lv_x" in found["Columns that repeat each other"] or (
        "tbp_lv_x and tbp_lv_H" in found["Columns that repeat each other"]
    )


def test_copies_are_equal_in_every_row_and_vary():
    frame = pd.DataFrame({"a": [1, 2, np.nan], "b": [1, 2, np.nan], "c": [1, 2, 3.0], "d": [1, 1, 1.0], "e": [1, 1, 1.0]})
    assert copies(frame, list(frame)) == {("a", "b")}


def test_long_lists_are_cut():
    assert listed("abc", 3) == "a, b, c"
    assert listed("abcd", 3) == "a, b, c and 1 more"
