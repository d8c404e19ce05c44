import json
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from pictures import encoded, picture

from inference.images import ImageStore
from inference.schema import TEST_COLUMNS, TRAIN_COLUMNS, TRAIN_ONLY, read_metadata
from train.archives.__main__ import ArchivesConfig, main, write_archives
from train.archives.images import survey
from train.archives.report import REPORT
from train.archives.slice3d import find_release, is_whole
from train.archives.tables import RELEASES
from train.folds import make_folds
from train.lesions import read_rows
from utils import InputError

WHOLE, PERMISSIVE = RELEASES
IDS = [f"ISIC_{number:07d}" for number in range(1, 9)]
#: Those whose rows are in the metadata; of two patients.
KNOWN = IDS[:5]
MALIGNANT = (IDS[1], IDS[5])
METADATA_COLUMNS = [name for name in TEST_COLUMNS if name not in ("isic_id", "patient_id")]
IDDX = {IDS[1]: "Melanoma in situ", IDS[2]: "Lichen planus like keratosis", IDS[5]: "Squamous cell carcinoma, Invasive"}


def crop(isic_id):
    return encoded(picture(int(isic_id[5:]), 40, 40))


def metadata_of(isic_ids, patient="IP"):
    """Text with the odd digits that a number would lose."""
    cells = [",".join(f"1.{number}0" for number in range(len(METADATA_COLUMNS) - 2)) + ",In metadata,CC-BY"] * len(isic_ids)
    rows = [f"{isic_id},{patient}_{int(isic_id[5:]) % 2},{row}" for isic_id, row in zip(isic_ids, cells, strict=True)]
    return "\n".join([",".join(["isic_id", "patient_id", *METADATA_COLUMNS]), *rows]) + "\n"


def supplement_of(isic_ids):
    names = [
        "attribution",
        "copyright_license",
        *(name for name in TRAIN_COLUMNS if name in TRAIN_ONLY and name != "target"),
    ]
    table = pd.DataFrame(index=pd.Index(isic_ids, name="isic_id"), columns=names)
    table["attribution"] = [f"Hospital, {int(isic_id[5:]) % 3}" for isic_id in isic_ids]
    table["copyright_license"] = ["CC-0" if isic_id == IDS[0] else "CC-BY" for isic_id in isic_ids]
    table["iddx_1"] = "Benign"
    table["iddx_3"] = [IDDX.get(isic_id) for isic_id in isic_ids]
    table["tbp_lv_dnn_lesion_confidence"] = "99.5"
    return table.to_csv()


def truth_of(isic_ids):
    return "\n".join(["isic_id,malignant", *(f"{name},{'1.0' if name in MALIGNANT else '0.0'}" for name in isic_ids)]) + "\n"


def make_release(root, name=PERMISSIVE, packed=False, isic_ids=IDS, known=KNOWN):
    """A release as the site ships it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}_GroundTruth.csv").write_text(truth_of(isic_ids))
    (root / f"{name}_Supplement.csv").write_text(supplement_of(isic_ids))
    files = {"metadata.csv": metadata_of(known).encode(), "LICENSE.txt": b"", **{f"{i}.jpg": crop(i) for i in isic_ids}}
    if packed:
        with zipfile.ZipFile(root / f"{name}_Input.zip", "w") as file:
            for member, content in files.items():
                file.writestr(f"{name}_Input/{member}", content)
    else:
        (root / f"{name}_Input").mkdir()
        for member, content in files.items():
            (root / f"{name}_Input" / member).write_bytes(content)
    return root


@pytest.fixture
def root(tmp_path):
    return make_release(tmp_path / "root")


def converted(root, out):
    return write_archives(ArchivesConfig(root, ["2024"]), out)


def table_of(out):
    return pd.read_csv(out / "train-metadata.csv", dtype=str, keep_default_na=False).set_index("isic_id")


def report_of(out):
    return json.loads((out / REPORT).read_text())


def crops_of(out, isic_ids=IDS):
    store = ImageStore(out / "train-image.hdf5")
    try:
        return {isic_id: store.read(isic_id) for isic_id in isic_ids}
    finally:
        store.close()


# What is written


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_release_becomes_a_competition_folder(tmp_path, name, packed, capsys):
    make_release(tmp_path / "root" / "below", name, packed)
    out = tmp_path / "out"
    assert main(["--years", "2024", "--root", str(tmp_path / "root"), "--out", str(out), "--jobs", "1"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [REPORT, "train-image.hdf5", "train-metadata.csv"]
    table = table_of(out)
    assert (table.index.name, *table.columns) == (*TRAIN_COLUMNS, "diagnosis")
    assert table.index.tolist() == IDS
    assert table.index[table["target"] == "1"].tolist() == list(MALIGNANT)
    assert set(table["target"]) == {"0", "1"}
    assert table["tbp_lv_A"].tolist() == ["1.60"] * 5 + [""] * 3  # the text of the file
    assert table["patient_id"].tolist() == ["IP_1", "IP_0", "IP_1", "IP_0", "IP_1", *IDS[5:]]
    assert table["attribution"].tolist() == [f"Hospital, {number % 3}" for number in range(1, 9)]
    assert table["copyright_license"].tolist() == ["CC-0", *["CC-BY"] * 7]
    assert table["tbp_lv_dnn_lesion_confidence"].tolist() == ["99.5"] * 8
    assert table["diagnosis"].tolist() == ["", "melanoma", "lichenoid keratosis", "", "", "squamous cell carcinoma", "", ""]
    assert crops_of(out) == {isic_id: crop(isic_id) for isic_id in IDS}
    assert report_of(out)["release"] == name
    assert report_of(out)["licences"] == {"CC-BY": 7, "CC-0": 1}
    assert f"{out}: 8 lesions of 5 patients, 2 malignant, 8 with a crop" in capsys.readouterr().out.splitlines()[-1]


def test_the_stages_read_it(root, tmp_path):
    out = tmp_path / "out"
    converted(root, out)
    read_metadata(out / "train-metadata.csv", labelled=True)
    rows = read_rows(out)
    assert len(rows.features) == 8
    make_folds(["--data", str(out), "--artifacts", str(tmp_path / "artifacts"), "--folds", "2", "--holdout", "0"])
    folds = pd.read_csv(tmp_path / "artifacts" / "folds.csv").set_index("isic_id")["fold"]
    assert folds[IDS[0]] == folds[IDS[2]] == folds[IDS[4]]


def test_a_folder_and_its_zip_give_the_same_bytes(root, tmp_path):
    converted(root, tmp_path / "loose")
    converted(make_release(tmp_path / "other", packed=True), tmp_path / "packed")
    for name in ("train-metadata.csv", "train-image.hdf5"):
        assert (tmp_path / "loose" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


def test_all_rows_or_none_may_be_in_the_metadata(tmp_path):
    converted(make_release(tmp_path / "all", known=IDS), tmp_path / "out")
    assert table_of(tmp_path / "out")["patient_id"].nunique() == 2
    bare = make_release(tmp_path / "bare", packed=False)
    (bare / f"{PERMISSIVE}_Input" / "metadata.csv").unlink()
    converted(bare, tmp_path / "own")
    assert table_of(tmp_path / "own")["patient_id"].tolist() == IDS
    assert report_of(tmp_path / "own")["without_metadata"] == 8


def test_tables_may_be_in_zips(root, tmp_path):
    converted(root, tmp_path / "one")
    for part in ("GroundTruth", "Supplement"):
        path = root / f"{PERMISSIVE}_{part}.csv"
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as file:
            file.write(path, path.name)
        path.unlink()
    converted(root, tmp_path / "two")
    assert (tmp_path / "one" / "train-metadata.csv").read_bytes() == (tmp_path / "two" / "train-metadata.csv").read_bytes()


# Files that are there twice, or not at all


def test_a_loose_crop_that_is_cut_off_is_taken_from_the_zip(root, tmp_path):
    folder = root / f"{PERMISSIVE}_Input"
    make_release(tmp_path / "other", packed=True)
    shutil.move(tmp_path / "other" / f"{PERMISSIVE}_Input.zip", root)
    (folder / f"{IDS[0]}.jpg").write_bytes(crop(IDS[0])[:300])
    (folder / f"{IDS[1]}.jpg").unlink()
    (folder / f"{IDS[2]}.jpg").write_bytes(b"")
    converted(root, tmp_path / "out")
    assert crops_of(tmp_path / "out") == {isic_id: crop(isic_id) for isic_id in IDS}


def test_a_lesion_without_a_crop_stays_if_the_metadata_has_it(root, tmp_path, capsys):
    folder = root / f"{PERMISSIVE}_Input"
    (folder / f"{IDS[0]}.jpg").unlink()
    (folder / f"{IDS[1]}.jpg").write_bytes(crop(IDS[1])[:300])
    (folder / f"{IDS[6]}.jpg").unlink()
    (folder / f"{IDS[7]}.jpg").write_bytes(b"")
    (folder / "ISIC_9999999.jpg").write_bytes(crop(IDS[0]))
    converted(root, tmp_path / "out")
    assert table_of(tmp_path / "out").index.tolist() == IDS[:6]
    assert [isic_id for isic_id, content in crops_of(tmp_path / "out").items() if content] == IDS[2:6]
    report = report_of(tmp_path / "out")
    assert (report["rows"], report["left_out"], report["crops_without_label"]) == (8, 2, 1)
    assert report["broken_crops"] == [IDS[1], IDS[7]]
    assert f"broken crops: 2, the first {IDS[1]}, {IDS[7]}" in capsys.readouterr().out


def test_a_supplement_without_some_rows(root, tmp_path):
    (root / f"{PERMISSIVE}_Supplement.csv").write_text(supplement_of(IDS[1:7]))
    converted(root, tmp_path / "out")
    table = table_of(tmp_path / "out")
    assert table["attribution"].tolist()[::7] == ["In metadata", ""]
    assert table["iddx_1"].tolist() == ["", *["Benign"] * 6, ""]
    assert report_of(tmp_path / "out")["without_supplement"] == 2


def test_of_both_releases_the_whole_one_is_read(root, tmp_path):
    make_release(root, WHOLE, isic_ids=[*IDS, "ISIC_0000009"], known=IDS)
    converted(root, tmp_path / "out")
    table = table_of(tmp_path / "out")
    assert len(table) == 9
    assert table["patient_id"].nunique() == 3  # its own metadata
    assert report_of(tmp_path / "out")["release"] == WHOLE


def test_the_test_data_of_the_site_do_not_matter(root, tmp_path):
    test = root / "ISIC_2024_Test_Input"
    test.mkdir()
    (test / "metadata.csv").write_text(metadata_of(["ISIC_0000100"]))
    (root / "ISIC_2024_Test_Input.zip").write_bytes(b"PK half")
    converted(root, tmp_path / "out")
    assert table_of(tmp_path / "out").index.tolist() == IDS


def test_a_finished_folder_stays_and_other_inputs_are_refused(root, tmp_path):
    out = tmp_path / "out"
    converted(root, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "nothing to do" in converted(root, out)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (root / f"{PERMISSIVE}_Input" / f"{IDS[0]}.jpg").unlink()
    with pytest.raises(InputError, match="different: archives"):
        converted(root, out)


# Bad input


def rewrite(name, change):
    def spoil(root):
        path = root / name
        path.write_text(change(path.read_text()))

    return spoil


def damage(root):
    """A zip whose directory is whole, but not a crop in it."""
    shutil.rmtree(root / f"{PERMISSIVE}_Input")
    make_release(root, packed=True)
    path = root / f"{PERMISSIVE}_Input.zip"
    content = path.read_bytes()
    place = content.index(crop(IDS[3])) + 100
    path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])


TRUTH, SUPPLEMENT = f"{PERMISSIVE}_GroundTruth.csv", f"{PERMISSIVE}_Supplement.csv"
METADATA = f"{PERMISSIVE}_Input/metadata.csv"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: (root / TRUTH).unlink(), r"neither ISIC_2024_Training_GroundTruth\.csv nor ISIC_2024_Perm"),
        (lambda root: (root / SUPPLEMENT).unlink(), r"Permissive_Training_Supplement\.csv.* is nowhere"),
        (lambda root: (root / f"{PERMISSIVE}_Input.zip").write_bytes(b"PK"), "half-downloaded"),
        (damage, rf"Input\.zip cannot be unpacked \(.*{IDS[3]}\.jpg"),
        (lambda root: [path.unlink() for path in root.rglob("*.jpg")], "8 of the 8 ids of .*; fetch ISIC_2024_Permissive"),
        (rewrite(TRUTH, lambda text: text.replace("1.0", "0.5")), "line 3: '0.5' in column 'malignant' is not"),
        (rewrite(TRUTH, lambda text: text.replace("1.0", "")), "line 3: nan in column 'malignant' is not"),
        (rewrite(TRUTH, lambda text: text.replace("malignant", "label")), "no column 'malignant'"),
        (rewrite(TRUTH, lambda text: text + f"{IDS[0]},1.0\n"), f"line 10: '{IDS[0]}' in column 'isic_id' occurs twice"),
        (rewrite(TRUTH, lambda text: text + "../x,1.0\n"), r"line 10: '\.\./x' in column 'isic_id' is no"),
        (rewrite(SUPPLEMENT, lambda text: text.replace("attribution", "hospital")), "no column 'attribution'"),
        (rewrite(SUPPLEMENT, lambda text: text.replace("ISIC_", "ISIC-")), "ids of .*Supplement"),
        (
            rewrite(METADATA, lambda text: text.replace("patient_id", "p")),
            "no column 'patient_id'",
        ),
        (rewrite(METADATA, lambda text: text + "a,b\n"), "line 7 has 2 cells"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(root, tmp_path, spoil, sentence):
    spoil(root)
    with pytest.raises(InputError, match=sentence) as refused:
        converted(root, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_two_different_metadata_files_are_refused(root, tmp_path):
    copy = root / "again" / f"{PERMISSIVE}_Input"
    copy.mkdir(parents=True)
    (copy / "metadata.csv").write_text(metadata_of(KNOWN))
    converted(root, tmp_path / "out")
    (copy / "metadata.csv").write_text(metadata_of(KNOWN, "other"))
    with pytest.raises(InputError, match="have one name and differ"):
        converted(root, tmp_path / "two")


@pytest.mark.parametrize(
    "change", [{"years": ["2024", "2019"]}, {"size": 64}, {"unknown": "benign"}, {"competition": Path()}]
)
def test_it_goes_with_no_other_year_or_option(root, tmp_path, change):
    with pytest.raises(InputError, match="give it alone"):
        write_archives(ArchivesConfig(root, **{"years": ["2024"], **change}), tmp_path / "out")


def test_a_whole_jpeg_has_its_end():
    content = crop(IDS[0])
    assert is_whole(content)
    assert is_whole(content + b"\0" * 10)
    assert not any(is_whole(part) for part in (b"", content[:-2], content[10:], b"\xff\xd9"))


# Real files


def test_the_real_release(real_release, tmp_path):
    """Its tables whole, and of its crops the first fifty."""
    root = tmp_path / "root"
    name = f"{PERMISSIVE}_Input"
    (root / name).mkdir(parents=True)
    for table in (TRUTH, SUPPLEMENT, METADATA):
        (root / table).symlink_to(real_release / table)
    release = find_release(survey(real_release), tmp_path)
    crops = sorted(release.crop_ids)[:50]
    assert len(release.crop_ids) == len(release.labels)
    for isic_id in crops:
        (root / name / f"{isic_id}.jpg").symlink_to(release.images[isic_id][0])
    converted(root, tmp_path / "out")
    rows = read_metadata(tmp_path / "out" / "train-metadata.csv", labelled=True)
    report = report_of(tmp_path / "out")
    assert report["broken_crops"] == []
    assert report["kept"]["with_crop"] == 50
    assert report["rows"] == 8901
    assert set(crops) < set(rows["isic_id"])
    assert all(crops_of(tmp_path / "out", crops).values())
    known = rows[rows["patient_id"].str.startswith("IP_")]
    assert (len(known), int(known["target"].sum())) == (340, 213)
    diagnoses = table_of(tmp_path / "out")["diagnosis"]
    assert diagnoses.value_counts()[["melanoma", "basal cell carcinoma", "squamous cell carcinoma"]].tolist() == [73, 87, 53]
