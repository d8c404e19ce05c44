import csv

import numpy as np
import pandas as pd
import pytest

from inference.schema import (
    BODY_SCAN,
    CATEGORIES,
    ID,
    NUMBERS,
    PATIENT,
    TARGET,
    TEST_COLUMNS,
    TRAIN_COLUMNS,
    TRAIN_ONLY,
    read_metadata,
    read_metadata_leniently,
    read_scores,
)
from utils import InputError

#: The least that a train file can hold; line 4 is the third lesion.
SMALL = {
    ID: ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"],
    PATIENT: ["IP_1", "IP_1", "IP_2", "IP_3"],
    TARGET: ["0", "1", "0", "0"],
    "age_approx": ["60.0", "", "45.0", "NA"],
    "sex": ["female", "male", "NA", ""],
}


def write(folder, columns, **changed):
    """train-metadata.csv with some columns changed; None leaves a column out."""
    columns = {name: cells for name, cells in {**columns, **changed}.items() if cells is not None}
    path = folder / "train-metadata.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def text_of(path):
    """Every cell of a CSV file as it stands there."""
    return pd.read_csv(path, dtype="str", keep_default_na=False)


def header(path):
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(next(csv.reader(file)))


# The columns


def test_columns_are_those_of_the_competition_in_its_order(real_data):
    assert header(real_data / "train-metadata.csv") == TRAIN_COLUMNS
    assert header(real_data / "test-metadata.csv") == TEST_COLUMNS


def test_columns_are_those_of_the_synthetic_dataset_in_its_order(synthetic_data):
    assert header(synthetic_data / "train-metadata.csv") == TRAIN_COLUMNS
    assert header(synthetic_data / "test-metadata.csv") == TEST_COLUMNS


def test_every_test_column_has_one_kind_and_train_only_columns_are_in_none():
    assert len(TRAIN_COLUMNS) == 55
    assert len(TEST_COLUMNS) == 44
    assert sorted([ID, PATIENT, *NUMBERS, *CATEGORIES]) == sorted(TEST_COLUMNS)
    assert not TRAIN_ONLY & {*NUMBERS, *CATEGORIES, *BODY_SCAN}
    assert set(TRAIN_COLUMNS) - set(TEST_COLUMNS) == TRAIN_ONLY


# The strict reader


def test_the_real_files_are_read_as_they_stand(real_data):
    train = read_metadata(real_data / "train-metadata.csv", labelled=True)
    written = text_of(real_data / "train-metadata.csv")
    assert tuple(train.columns) == TRAIN_COLUMNS
    assert train[ID].tolist() == written[ID].tolist()
    assert train[TARGET].sum() == (written[TARGET] == "1").sum()
    for name in NUMBERS:
        assert train[name].dtype == "float64"
        assert train[name].isna().sum() == written[name].isin(["", "NA"]).sum()
    test = read_metadata(real_data / "test-metadata.csv", labelled=False)
    assert tuple(test.columns) == TEST_COLUMNS
    assert len(test) == 3


def test_numbers_become_numbers_and_missing_strings_become_missing(tmp_path):
    frame = read_metadata(write(tmp_path, SMALL), labelled=True)
    assert frame["age_approx"].dtype == "float64"
    assert np.array_equal(frame["age_approx"], [60, np.nan, 45, np.nan], equal_nan=True)
    assert frame["sex"].isna().tolist() == [False, False, True, True]
    assert frame[TARGET].dtype == "int64"
    assert frame[TARGET].tolist() == [0, 1, 0, 0]


def test_ids_and_categories_stay_text_even_when_they_look_like_numbers(tmp_path):
    path = write(tmp_path, SMALL, **{ID: ["0042", "0043", "0044", "1"], "sex": ["0", "1", "1", "0"]})
    frame = read_metadata(path, labelled=True)
    assert frame[ID].tolist() == ["0042", "0043", "0044", "1"]
    assert frame["sex"].tolist() == ["0", "1", "1", "0"]


def test_an_archive_without_any_body_scan_column_is_fine(tmp_path):
    frame = read_metadata(write(tmp_path, SMALL), labelled=True)
    assert list(frame.columns) == [ID, TARGET, PATIENT, "age_approx", "sex"]


def test_unknown_columns_and_an_unasked_target_are_left_out(tmp_path):
    path = write(tmp_path, SMALL, colour=["red"] * 4)
    assert "colour" not in read_metadata(path, labelled=True)
    assert TARGET not in read_metadata(path, labelled=False)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({ID: None}, r"train-metadata\.csv has no column 'isic_id'; restore it"),
        ({PATIENT: None, "patientid": ["a"] * 4}, r"no column 'patient_id'; rename 'patientid' to it"),
        ({PATIENT: None, "Patient_ID": ["a"] * 4}, r"no column 'patient_id'; rename 'Patient_ID' to it"),
        ({TARGET: None}, "no column 'target'"),
        ({ID: None, TARGET: None}, r"no column 'isic_id' \(and 1 more: 'target'\)"),
        ({"tbp_lv_A": [1.0] * 4}, r"no column 'anatom_site_general' \(and 38 more: .*, \.\.\.\)"),
        ({ID: ["ISIC_1", "ISIC_2", "ISIC_1", "ISIC_1"]}, r"line 4 \(isic_id ISIC_1\): .*occurs twice.*\(2 such rows"),
        ({ID: ["ISIC_1", "", "ISIC_3", "ISIC_4"]}, r"line 3 .*isic_id nan is empty"),
        ({PATIENT: ["IP_1", "IP_1", "", "IP_3"]}, r"line 4 \(isic_id ISIC_3\): patient_id nan is empty"),
        ({TARGET: ["0", "1", "2", "0"]}, r"line 4 \(isic_id ISIC_3\): target 2 is not 0 \(benign\) or 1"),
        ({TARGET: ["0", "", "1", "0"]}, r"line 3 \(isic_id ISIC_2\): target nan is not 0"),
        ({TARGET: ["benign", "malignant", "1", "0"]}, r"line 2 \(isic_id ISIC_1\): target 'benign' is not 0"),
        (
            {"age_approx": ["60", "45", "sixty", "about 5"]},
            r"line 4 .*: age_approx 'sixty' is no number.*\(2 such rows in all\)",
        ),
    ],
)
def test_doubtful_files_are_refused_in_one_sentence(tmp_path, changed, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        read_metadata(write(tmp_path, SMALL, **changed), labelled=True)
    assert "\n" not in str(caught.value)


def test_a_renamed_body_scan_column_is_named(tmp_path, synthetic_data):
    columns = text_of(synthetic_data / "train-metadata.csv").rename(columns={"tbp_lv_areaMM2": "tbp_lv_area_MM2"})
    with pytest.raises(InputError, match="has no column 'tbp_lv_areaMM2'; rename 'tbp_lv_area_MM2' to it"):
        read_metadata(write(tmp_path, columns), labelled=True)


def test_a_missing_file_an_empty_file_and_no_csv_are_refused(tmp_path):
    path = tmp_path / "train-metadata.csv"
    with pytest.raises(InputError, match=r"train-metadata\.csv is not in .*; give the folder"):
        read_metadata(path, labelled=True)
    for content in (b"", b"\xff\xd8\xff\xe0 not text", b'isic_id,patient_id\n"never closed', b"a,b\n1,2\n1,2,3\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"train-metadata\.csv"):
            read_metadata(path, labelled=True)


def test_the_line_of_a_doubtful_row_is_that_of_an_editor(tmp_path):
    path = tmp_path / "train-metadata.csv"
    path.write_text('isic_id,patient_id,target,sex\n\nISIC_1,IP_1,0,"fe\nmale"\n,,,\nISIC_2,IP_1,5,male\n')
    with pytest.raises(InputError, match=r"line 6 \(isic_id ISIC_2\): target 5"):
        read_metadata(path, labelled=True)


# The lenient reader


def test_the_lenient_reader_reads_a_good_file_like_the_strict_one(synthetic_data):
    lenient, repairs = read_metadata_leniently(synthetic_data / "test-metadata.csv")
    assert repairs == {}
    pd.testing.assert_frame_equal(lenient, read_metadata(synthetic_data / "test-metadata.csv", labelled=False))


def test_every_repair_is_made_and_counted(tmp_path, synthetic_data):
    rows = text_of(synthetic_data / "train-metadata.csv").head(10)
    rows.loc[[0, 1], ID] = ""
    rows.loc[3, ID] = rows.loc[2, ID]
    rows.loc[[4, 5, 6], PATIENT] = ["", "NA", ""]
    rows.loc[[2, 4, 7, 8], "tbp_lv_H"] = ["red", "inf", "-inf", "1e999"]
    rows.loc[9, "tbp_lv_H"] = ""
    kept = rows.index[[2, 4, 5, 6, 7, 8, 9]]
    frame, repairs = read_metadata_leniently(write(tmp_path, rows, tbp_lv_A=None, tbp_lv_B=None))
    assert repairs == {
        "columns_missing": 2,
        "rows_without_isic_id": 2,
        "duplicated_isic_id": 1,
        "rows_without_patient_id": 3,
        "cells_not_numeric": 4,
    }
    assert tuple(frame.columns) == TEST_COLUMNS
    assert frame[ID].tolist() == rows.loc[kept, ID].tolist()
    assert frame[PATIENT].nunique() == rows.loc[[2, 7, 8, 9], PATIENT].nunique() + 3
    assert frame["tbp_lv_H"].isna().tolist() == [True, True, False, False, True, True, True]
    assert frame["tbp_lv_A"].isna().all()
    assert np.array_equal(frame["tbp_lv_L"], rows.loc[kept, "tbp_lv_L"].astype(float), equal_nan=True)
    assert all(frame[name].dtype == "float64" for name in NUMBERS)


def test_columns_may_be_reordered_missing_or_too_many(tmp_path, synthetic_data):
    rows = text_of(synthetic_data / "test-metadata.csv")
    expected, _ = read_metadata_leniently(synthetic_data / "test-metadata.csv")
    frame, repairs = read_metadata_leniently(write(tmp_path, rows[list(reversed(rows.columns))], tbp_lv_new=["1", "2", "3"]))
    pd.testing.assert_frame_equal(frame, expected)
    assert repairs == {}
    frame, repairs = read_metadata_leniently(write(tmp_path, {ID: rows[ID]}))
    assert frame[ID].tolist() == rows[ID].tolist()
    assert frame[PATIENT].is_unique
    assert repairs == {"columns_missing": 43, "rows_without_patient_id": 3}


@pytest.mark.parametrize("name", TEST_COLUMNS[1:])
def test_no_single_missing_or_garbled_column_stops_the_lenient_reader(tmp_path, synthetic_data, name):
    rows = text_of(synthetic_data / "test-metadata.csv")
    frame, repairs = read_metadata_leniently(write(tmp_path, rows, **{name: None}))
    assert (len(frame), repairs["columns_missing"]) == (3, 1)
    frame, repairs = read_metadata_leniently(write(tmp_path, rows, **{name: ["?", "", "True"]}))
    assert tuple(frame.columns) == TEST_COLUMNS
    assert repairs.get("cells_not_numeric", 0) == (2 if name in NUMBERS else 0)


def test_a_file_of_a_header_only_has_no_rows(tmp_path):
    frame, repairs = read_metadata_leniently(write(tmp_path, {name: [] for name in TEST_COLUMNS}))
    assert len(frame) == 0
    assert tuple(frame.columns) == TEST_COLUMNS
    assert repairs == {}


def test_without_isic_id_even_the_lenient_reader_gives_up(tmp_path):
    with pytest.raises(InputError, match="has no column 'isic_id'; its columns are 'patient_id', 'target'"):
        read_metadata_leniently(write(tmp_path, SMALL, **{ID: None}))


# Tables of scores


def test_scores_are_read_by_isic_id(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("isic_id,fold,network,other\n007,1,0.5,a\n0x1,0,,b\n")
    scores = read_scores(path, ["network", "fold"])
    assert scores.index.tolist() == ["007", "0x1"]
    assert scores.columns.tolist() == ["network", "fold"]
    assert scores["fold"].tolist() == [1, 0]
    np.testing.assert_array_equal(scores["network"], [0.5, np.nan])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "scores.csv is not in"),
        ("", "cannot be read as CSV"),
        ("id,network\n1,2\n", "has no column 'isic_id'; its columns are 'id', 'network'"),
        ("isic_id,tabular\n1,2\n", "has no column 'network'"),
        ("isic_id,network\n1,2\n2,0\n1,3\n", "line 4 .*occurs twice"),
    ],
)
def test_tables_that_hold_no_such_scores_are_refused(tmp_path, text, sentence):
    path = tmp_path / "scores.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_scores(path, ["network"])
