import csv
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from train.archives.__main__ import ArchivesConfig, write_archives
from train.archives.images import survey
from train.archives.tables import COLUMNS, GROUND_TRUTH, find_ground_truth, image_id_of, read_duplicates, read_year
from utils import InputError

SMALL = {  # official name -> content: every year, with the quirks of its files
    "ISBI2016_ISIC_Part3_Training_GroundTruth.csv": "ISIC_0000001,benign\nISIC_0000002,malignant\n",
    "ISBI2016_ISIC_Part3_Test_GroundTruth.csv": "ISIC_0000003,0.0\nISIC_0000004,1.0\n",
    "ISIC-2017_Training_Part3_GroundTruth.csv": (
        "image_id,melanoma,seborrheic_keratosis\nISIC_0000002,1.0,0.0\nISIC_0000005,0.0,1.0\nISIC_0000006,0.0,0.0\n"
    ),
    "ISIC-2017_Training_Data_metadata.csv": (
        "image_id,age_approximate,sex\nISIC_0000002,unknown,unknown\nISIC_0000005,55,female\n"
    ),
    "ISIC-2017_Test_v2_Part3_GroundTruth.csv": "image_id,melanoma,seborrheic_keratosis\nISIC_0000007,1,0\n",
    "ISIC2018_Task3_Training_GroundTruth.csv": (
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nISIC_0024307,0,0,0,1,0,0,0\n"
        "ISIC_0024308,0,0,0,0,0,0,1\n"
    ),
    "HAM10000_metadata": (
        "lesion_id,image_id,dx,dx_type,age,sex,localization\nHAM_0000001,ISIC_0024306,whatever,histo,80.0,male,scalp\n"
        "HAM_0000002,ISIC_0024307,whatever,histo,,unknown,trunk\nHAM_0000003,ISIC_0024308,whatever,histo,0.0,female,unknown\n"
    ),
    "ISIC_2019_Training_GroundTruth.csv": (
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nISIC_0000001_downsampled,0,1,0,0,0,0,0,0,0\n"
        "ISIC_0024307,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0\n"
    ),
    "ISIC_2019_Training_Metadata.csv": (
        "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_0000001_downsampled,30,palms/soles,,female\n"
        "ISIC_0024307,45,lateral torso,HAM_0000002,male\n"
    ),
    "ISIC_2019_Test_GroundTruth.csv": (
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,score_weight,validation_weight\n"
        "ISIC_0034321,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0,0.0,1.0\n"
    ),
    "ISIC_2019_Test_Metadata.csv": "image,age_approx,anatom_site_general,sex\nISIC_0034321,20,head/neck,male\n",
    "ISIC_2020_Training_GroundTruth_v2.csv": (
        "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
        "ISIC_0015719,IP_3075186,IL_0000001,female,45.0,torso,unknown,benign,0\n"
        "ISIC_0052212,IP_2842074,IL_0000002,,,lower extremity,melanoma,malignant,1\n"
    ),
    "ISIC_2020_Training_Duplicates.csv": "image_name_1,image_name_2\nISIC_0015719,ISIC_0052212\n",
    "metadata.csv": (
        "patient_id,lesion_id,age,gender,region,diagnostic,img_id\nPAT_46,881,55,FEMALE,LIP,SCC,PAT_46_881_939.png\n"
        "PAT_9,881,20,,THIGH,ACK,PAT_9_881_1.png\n"
    ),
}


@pytest.fixture
def root(tmp_path):
    for name, content in SMALL.items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture(scope="module")
def real_rows(real_archives):
    """The table of each real year."""
    tables = survey(real_archives).tables
    return {year: read_year(year, paths, tables) for year, paths in find_ground_truth(tables, None).items()}


def read(root, year):
    tables = survey(root).tables
    return read_year(year, find_ground_truth(tables, [year])[year], tables)


def cells(rows, *names):
    return rows[list(names)].astype(object).where(rows[list(names)].notna(), None).to_numpy().tolist()


# Each year


def test_2016_has_only_benign_and_malignant(root):
    rows = read(root, "2016")
    assert tuple(rows.columns) == COLUMNS
    assert cells(rows, "image_id", "target", "class", "line") == [
        *(["ISIC_0000001", 0, "", 1], ["ISIC_0000002", 1, "", 2]),
        *(["ISIC_0000003", 0, "", 1], ["ISIC_0000004", 1, "", 2]),
    ]


def test_2017_without_either_mark_is_a_nevus(root):
    rows = read(root, "2017")
    assert cells(rows, "diagnosis", "target", "age_approx", "sex") == [
        ["melanoma", 1, None, ""],
        ["seborrheic keratosis", 0, 55, "female"],
        ["nevus", 0, None, ""],
        ["melanoma", 1, None, ""],
    ]


def test_2018_takes_labels_from_the_ground_truth_and_persons_from_ham10000(root):
    rows = read(root, "2018")
    assert cells(rows, "word", "target", "lesion_id", "age_approx", "sex", "anatom_site_general", "site_word") == [
        ["NV", 0, "HAM_0000001", 80, "male", "head/neck", "scalp"],
        ["AKIEC", None, "HAM_0000002", None, "", "", "trunk"],
        ["VASC", 0, "HAM_0000003", 0, "female", "", ""],
    ]


def test_2018_takes_lesions_from_the_groupings_where_ham10000_is_missing(root):
    (root / "HAM10000_metadata").unlink()
    (root / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(
        "image,lesion_id,diagnosis_confirm_type\nISIC_0024308,HAM_9,histopathology\n"
    )
    assert read(root, "2018")["lesion_id"].tolist() == ["", "", "HAM_9"]


def test_2019_strips_downsampled_and_has_unk(root):
    rows = read(root, "2019")
    assert cells(rows, "image_id", "word", "target", "class", "anatom_site_general", "site_word", "lesion_id") == [
        ["ISIC_0000001", "NV", 0, "nevus", "", "palms/soles", ""],
        ["ISIC_0024307", "SCC", 1, "squamous cell carcinoma", "", "lateral torso", "HAM_0000002"],
        ["ISIC_0034321", "UNK", None, "", "head/neck", "head/neck", ""],
    ]


def test_2020_has_patients_and_from_version_2_lesions(root):
    rows = read(root, "2020")
    assert cells(rows, "patient_id", "lesion_id", "target", "class", "age_approx") == [
        ["IP_3075186", "IL_0000001", 0, "", 45],
        ["IP_2842074", "IL_0000002", 1, "melanoma", None],
    ]
    assert read_duplicates(survey(root).tables) == [("ISIC_0015719", "ISIC_0052212")]


def test_2020_prefers_version_2_and_reads_version_1(root):
    first = root / "ISIC_2020_Training_GroundTruth.csv"
    first.write_text(
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
        "ISIC_1,IP_1,male,45.0,torso,unknown,benign,0\n"
    )
    assert len(read(root, "2020")) == 2
    (root / "ISIC_2020_Training_GroundTruth_v2.csv").unlink()
    assert cells(read(root, "2020"), "image_id", "patient_id", "lesion_id") == [["ISIC_1", "IP_1", ""]]


def test_pad_lesion_numbers_are_made_the_patients_own(root):
    rows = read(root, "pad-ufes-20")
    assert cells(rows, "image_id", "patient_id", "lesion_id", "sex", "anatom_site_general", "target", "image_type") == [
        ["PAT_46_881_939", "PAT_46", "PAT_46_881", "female", "head/neck", 1, "clinical"],
        ["PAT_9_881_1", "PAT_9", "PAT_9_881", "", "lower extremity", 0, "clinical"],
    ]


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("ISIC_0000001.jpg", "ISIC_0000001"),
        ("ISIC_0000001_downsampled.JPG", "ISIC_0000001"),
        ("ISIC_0000001_downsampled", "ISIC_0000001"),
        ("PAT_1_2_3.png", "PAT_1_2_3"),
        ("a.jpeg", "a"),
    ],
)
def test_ids_are_names_without_extension(name, image_id):
    assert image_id_of(name) == image_id


# Bad input


@pytest.mark.parametrize(
    ("name", "old", "new", "year", "sentence"),
    [
        (
            "ISBI2016_ISIC_Part3_Training_GroundTruth.csv",
            "malignant",
            "bad",
            "2016",
            r"line 2: 'bad' is no diagnosis of 2016",
        ),
        ("ISBI2016_ISIC_Part3_Test_GroundTruth.csv", ",0.0", ",0.0,1", "2016", "cells|columns"),
        ("ISIC-2017_Training_Part3_GroundTruth.csv", "5,0.0,1.0", "5,1.0,1.0", "2017", r"line 3: melanoma 1, .* not one"),
        ("ISIC-2017_Training_Data_metadata.csv", "sex", "gender", "2017", r"metadata\.csv has no column 'sex'"),
        ("ISIC-2017_Training_Data_metadata.csv", "55", "old", "2017", r"line 3: age_approximate 'old' is no number"),
        ("ISIC2018_Task3_Training_GroundTruth.csv", "DF,", "WART,", "2018", r"GroundTruth\.csv has no column 'DF'"),
        (
            "ISIC2018_Task3_Training_GroundTruth.csv",
            "0,0,0,1,0,0,0",
            "0,0,0,0,0,0,0",
            "2018",
            r"line 3: .* not one diagnosis",
        ),
        (
            "ISIC2018_Task3_Training_GroundTruth.csv",
            "0,0,0,1,0,0,0",
            "0,0,0,2,0,0,0",
            "2018",
            r"line 3: .* not one diagnosis",
        ),
        ("ISIC_2019_Training_GroundTruth.csv", "UNK", "WART", "2019", r"line 1: 'WART' is no diagnosis of 2019"),
        ("ISIC_2020_Training_GroundTruth_v2.csv", "melanoma", "wart", "2020", r"line 3: 'wart' is no diagnosis of 2020"),
        ("ISIC_2020_Training_GroundTruth_v2.csv", "malignant,1", "malignant,0", "2020", r"line 3: target 0 contradicts"),
        ("ISIC_2020_Training_GroundTruth_v2.csv", "patient_id", "patient", "2020", r"v2\.csv has no column 'patient_id'"),
        ("metadata.csv", "diagnostic", "dx", "pad-ufes-20", r"metadata\.csv has no column 'diagnostic'"),
        ("metadata.csv", "SCC", "WART", "pad-ufes-20", r"line 2: 'WART' is no diagnosis of pad-ufes-20"),
        ("metadata.csv", "PAT_9_881_1.png", "../x.png", "pad-ufes-20", r"line 3: '\.\./x' is no image id"),
        (
            "metadata.csv",
            "PAT_9_881_1.png",
            "PAT_46_881_939.png",
            "pad-ufes-20",
            r"line 3: .* is 'ACK', but 'SCC' in line 2",
        ),
    ],
)
def test_bad_files_are_refused_with_file_line_and_word(root, name, old, new, year, sentence):
    path = root / name
    path.write_text(SMALL[name].replace(old, new, 1))
    with pytest.raises(InputError, match=sentence) as error:
        read(root, year)
    assert name in str(error.value)


def test_blank_lines_do_not_shift_the_lines_of_errors(root):
    path = root / "ISIC_2020_Training_GroundTruth_v2.csv"
    path.write_text(path.read_text().replace("ISIC_0052212", "\n\nISIC_0052212").replace(",melanoma", ",wart"))
    with pytest.raises(InputError, match="line 5: 'wart'"):
        read(root, "2020")


def test_byte_order_mark_and_quotes_do_not_matter(root):
    path = root / "ISIC_2019_Test_Metadata.csv"
    path.write_text(
        '\ufeff"image",age_approx,anatom_site_general,sex\n"ISIC_0034321",inf,Head/Neck, Male \n', encoding="utf-8"
    )
    rows = read(root, "2019")
    assert cells(rows.tail(1), "age_approx", "anatom_site_general", "sex") == [[None, "head/neck", "male"]]


@pytest.mark.parametrize("year", GROUND_TRUTH)
def test_a_year_that_is_not_there_is_named_by_its_file(root, year):
    for name in GROUND_TRUTH[year]:
        (root / name).unlink(missing_ok=True)
    tables = survey(root).tables
    with pytest.raises(InputError, match=GROUND_TRUTH[year][-1].replace(".", r"\.")):
        find_ground_truth(tables, [year])
    assert list(find_ground_truth(tables, None)) == [other for other in GROUND_TRUTH if other != year]


def test_another_metadata_csv_is_not_pad(root):
    (root / "metadata.csv").write_text("a,b\n1,2\n")
    assert "pad-ufes-20" not in find_ground_truth(survey(root).tables, None)


def test_two_files_of_one_name_must_be_equal(root):
    name = "ISIC_2019_Training_GroundTruth.csv"
    (root / "copy").mkdir()
    (root / "copy" / name).write_text(SMALL[name])
    assert len(read(root, "2019")) == 3
    (root / "copy" / name).write_text(SMALL[name] + "ISIC_9,0,1,0,0,0,0,0,0,0\n")
    with pytest.raises(InputError, match="have one name and differ"):
        read(root, "2019")


# The real files, counted anew


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def one_hot(path):
    """Word -> number of rows, by the csv module alone."""
    header, *lines = lines_of(path)
    return Counter(header[1 + [float(cell) for cell in line[1:]].index(1.0)] for line in lines)


def test_real_counts_per_word(real_archives, real_rows):
    counted = {year: Counter(rows["word"]) for year, rows in real_rows.items()}
    parts = [
        lines_of(real_archives / "2016" / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv") for part in ("Training", "Test")
    ]
    assert counted["2016"] == Counter(line[1] for part in parts for line in part)
    parts = [
        lines_of(real_archives / "2017" / f"ISIC-2017_{part}_Part3_GroundTruth.csv")[1:]
        for part in ("Training", "Validation")
    ]
    names = {("1.0", "0.0"): "melanoma", ("0.0", "1.0"): "seborrheic_keratosis", ("0.0", "0.0"): "neither"}
    assert counted["2017"] == Counter(names[line[1], line[2]] for part in parts for line in part)
    assert counted["2018"] == one_hot(real_archives / "2018" / "ISIC2018_Task3_Training_GroundTruth.csv")
    assert counted["2019"] == one_hot(real_archives / "2019" / "ISIC_2019_Training_GroundTruth.csv")
    with (real_archives / "2020" / "ISIC_2020_Training_GroundTruth.csv").open(newline="") as file:
        assert counted["2020"] == Counter(row["diagnosis"] for row in csv.DictReader(file))
    with (real_archives / "pad-ufes-20" / "metadata.csv").open(newline="") as file:
        assert counted["pad-ufes-20"] == Counter(row["diagnostic"] for row in csv.DictReader(file))


def test_real_fields(real_archives, real_rows):
    rows = real_rows
    with (real_archives / "2018" / "HAM10000_metadata.csv").open(newline="") as file:
        ham = {row["image_id"]: row for row in csv.DictReader(file)}
    sites = Counter(row["localization"] for row in ham.values())
    site = Counter(rows["2018"]["anatom_site_general"])
    assert site["posterior torso"] == sites["back"]
    assert site["anterior torso"] == sites["chest"] + sites["abdomen"]
    assert site["head/neck"] == sites["face"] + sites["scalp"] + sites["ear"] + sites["neck"]
    assert site["lower extremity"] == sites["lower extremity"] + sites["foot"]
    assert site["upper extremity"] == sites["upper extremity"] + sites["hand"]
    assert site[""] == sites["trunk"] + sites["genital"] + sites["acral"] + sites["unknown"]
    assert rows["2018"]["lesion_id"].tolist() == [ham[image_id]["lesion_id"] for image_id in rows["2018"]["image_id"]]
    with (real_archives / "pad-ufes-20" / "metadata.csv").open(newline="") as file:
        pad = list(csv.DictReader(file))
    assert rows["pad-ufes-20"]["lesion_id"].nunique() == len({(row["patient_id"], row["lesion_id"]) for row in pad})
    assert rows["2020"]["patient_id"].nunique() == 2056
    assert np.isfinite(rows["2020"]["age_approx"]).sum() == 33126 - 68


def test_2019_splits_the_akiec_of_2018(real_rows):
    rows = {year: real_rows[year].set_index("image_id")["word"] for year in ("2018", "2019")}
    akiec = rows["2018"][rows["2018"] == "AKIEC"].index
    assert rows["2019"].loc[akiec].value_counts().to_dict() == {"SCC": 197, "AK": 130}


@pytest.mark.integration
def test_the_whole_on_real_archives(real_archives, tmp_path):
    """Every year's tables with 80 of the images of 2018 and all others, against counts by the csv module."""
    root = tmp_path / "root"
    for path in real_archives.rglob("*"):
        few = path.parent.name == "ISIC2018_Task3_Training_Input"
        if path.is_file() and (not few or int(path.stem[5:]) % 75 == 0):
            copy = root / path.relative_to(real_archives)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    write_archives(ArchivesConfig(root), tmp_path / "out")
    rows = pd.read_csv(tmp_path / "out" / "train-metadata.csv", dtype=str, keep_default_na=False).set_index("isic_id")
    report = json.loads((tmp_path / "out" / "archives-report.json").read_text())

    def lines(name):
        return lines_of(next(root.rglob(name)))

    targets = {}  # of each image, by year
    for part in ("Training", "Test"):
        for image_id, word in lines(f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv"):
            targets.setdefault(image_id, {})["2016"] = int(word in ("malignant", "1.0"))
    for part in ("Training", "Validation"):
        for image_id, melanoma, _ in lines(f"ISIC-2017_{part}_Part3_GroundTruth.csv")[1:]:
            targets.setdefault(image_id, {})["2017"] = int(float(melanoma))
    for year, name in (("2018", "ISIC2018_Task3_Training_GroundTruth.csv"), ("2019", "ISIC_2019_Training_GroundTruth.csv")):
        header, *rest = lines(name)
        for image_id, *marks in rest:
            word = header[1 + [float(mark) for mark in marks].index(1.0)]
            target = None if word == "AKIEC" else int(word in ("MEL", "BCC", "SCC"))
            targets.setdefault(image_id.removesuffix("_downsampled"), {})[year] = target
    header, *rest = lines("ISIC_2020_Training_GroundTruth.csv")
    for line in rest:
        targets.setdefault(line[0], {})["2020"] = int(line[header.index("target")])
    header, *rest = lines("metadata.csv")
    for line in rest:
        image_id = line[header.index("img_id")].removesuffix(".png")
        targets[image_id] = {"pad-ufes-20": int(line[header.index("diagnostic")] in ("BCC", "MEL", "SCC"))}

    known = {image_id: {target for target in labels.values() if target is not None} for image_id, labels in targets.items()}
    there = {path.stem.removesuffix("_downsampled") for path in root.rglob("*") if path.suffix in (".jpg", ".png")}
    expected = {image_id: known[image_id].copy().pop() for image_id in there & set(known) if len(known[image_id]) == 1}
    assert rows["target"].astype(int).to_dict() == expected
    assert report["exact_duplicates"] == report["near_duplicates"] == []
    for year, counts in report["years"].items():
        of_year = [labels[year] for labels in targets.values() if year in labels]
        counted = Counter(of_year)
        assert counts["all"]["rows"] == len(of_year)
        assert [counts["all"][name] for name in ("benign", "malignant", "unknown")] == [
            counted[0],
            counted[1],
            counted[None],
        ]
    contradictory = {image_id for image_id, labels in known.items() if len(labels) == 2}
    assert {line.split()[0] for line in report["contradictory"]} == contradictory
    ham = {line[1]: line[0] for line in lines("HAM10000_metadata.csv")[1:]}
    for image_id in set(ham) & set(rows.index):
        assert rows.loc[image_id, "lesion_id"] == rows.loc[image_id, "patient_id"] == ham[image_id]
