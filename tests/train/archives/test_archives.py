import io
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from pictures import picture
from PIL import Image

from inference.images import ImageStore
from inference.schema import read_metadata
from scale.parallel import workers
from train.archives import __main__ as archives
from train.archives import images as archive_images
from train.archives.__main__ import IMAGES, METADATA, OUTPUT_COLUMNS, WORK, ArchivesConfig, main, write_archives
from train.archives.report import REPORT
from train.folds import make_folds
from utils import InputError

ROOT = Path(__file__).resolve().parents[3]


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def one_hot(words, image_id, word):
    return ",".join([image_id, *("1.0" if word == other else "0.0" for other in words.split(","))])


W18, W19 = "MEL,NV,BCC,AKIEC,BKL,DF,VASC", "MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


def add_2018(root, *rows):
    """Rows of image, word, lesion; an image by the number in its id."""
    folder = root / "2018"
    write(
        folder / "ISIC2018_Task3_Training_GroundTruth.csv",
        f"image,{W18}",
        *(one_hot(W18, image_id, word) for image_id, word, _ in rows),
    )
    write(
        folder / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        *(f"{lesion},{image_id},x,histo,50.0,male,back" for image_id, _, lesion in rows),
    )
    for image_id, _, _ in rows:
        save(folder / "ISIC2018_Task3_Training_Input" / f"{image_id}.jpg", picture(int(image_id[5:])), quality=90)


def add_2019(root, *rows):
    """Rows of image, word, lesion, without images."""
    write(
        root / "2019" / "ISIC_2019_Training_GroundTruth.csv",
        f"image,{W19}",
        *(one_hot(W19, image_id, word) for image_id, word, _ in rows),
    )
    write(
        root / "2019" / "ISIC_2019_Training_Metadata.csv",
        "image,age_approx,anatom_site_general,lesion_id,sex",
        *(f"{image_id},45,palms/soles,{lesion},female" for image_id, _, lesion in rows),
    )


def add_2020(root, *rows):
    """Rows of image, patient, diagnosis, target; images as in 2018."""
    write(
        root / "2020" / "ISIC_2020_Training_GroundTruth.csv",
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target",
        *(f"{image_id},{patient},male,45.0,head/neck,{word},x,{target}" for image_id, patient, word, target in rows),
    )
    for image_id, *_ in rows:
        save(root / "2020" / "train" / f"{image_id}.jpg", picture(int(image_id[5:])), quality=90)


@pytest.fixture
def root(tmp_path):
    """All six archives, small, with one of everything that is left out."""
    folder = tmp_path / "root"
    write(folder / "2016" / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv", "ISIC_16,benign", "ISIC_17,benign")
    save(folder / "2016" / "ISBI2016_ISIC_Part3_Training_Data" / "ISIC_16.jpg", picture(16), quality=90)
    write(
        folder / "2017" / "ISIC-2017_Training_Part3_GroundTruth.csv",
        *("image_id,melanoma,seborrheic_keratosis", "ISIC_16,0.0,0.0", "ISIC_17,1.0,0.0"),
    )
    save(folder / "2017" / "ISIC-2017_Training_Data" / "ISIC_17.jpg", picture(17), quality=90)
    save(folder / "2017" / "ISIC-2017_Training_Data" / "ISIC_99.jpg", picture(99), quality=90)  # no row
    add_2018(
        folder,
        *(("ISIC_1", "NV", "HAM_1"), ("ISIC_2", "NV", "HAM_1"), ("ISIC_3", "AKIEC", "HAM_3"), ("ISIC_4", "AKIEC", "HAM_4")),
        *(("ISIC_5", "MEL", "HAM_5"), ("ISIC_6", "BCC", "HAM_6"), ("ISIC_7", "BKL", "HAM_7")),
    )
    broken = folder / "2018" / "ISIC2018_Task3_Training_Input" / "ISIC_7.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    add_2019(folder, ("ISIC_3_downsampled", "SCC", "HAM_3"), ("ISIC_5", "MEL", "HAM_5"), ("ISIC_8", "NV", "BCN_8"))
    add_2020(
        folder,
        *(("ISIC_20", "IP_1", "unknown", 0), ("ISIC_21", "IP_1", "nevus", 0), ("ISIC_22", "IP_2", "melanoma", 1)),
        *(("ISIC_23", "IP_3", "nevus", 0), ("ISIC_24", "IP_4", "nevus", 0)),
    )
    write(folder / "2020" / "ISIC_2020_Training_Duplicates.csv", "image_name_1,image_name_2", "ISIC_20,ISIC_21")
    train = folder / "2020" / "train"
    (train / "ISIC_23.jpg").write_bytes((folder / "2018" / "ISIC2018_Task3_Training_Input" / "ISIC_1.jpg").read_bytes())
    save(train / "ISIC_24.jpg", picture(6, 120, 80), quality=60)  # looks like ISIC_6, which is malignant
    write(
        folder / "PAD" / "metadata.csv",
        "patient_id,lesion_id,age,gender,region,diagnostic,img_id",
        *("PAT_1,7,61,FEMALE,NOSE,BCC,PAT_1_7_1.png", "PAT_1,8,61,FEMALE,FOOT,ACK,PAT_1_8_1.png"),
    )
    for name, seed in (("PAT_1_7_1", 71), ("PAT_1_8_1", 81)):
        save(folder / "PAD" / "images" / "imgs_part_1" / "imgs_part_1" / f"{name}.png", picture(seed))
    return folder


def converted(root, out, **options):
    return write_archives(ArchivesConfig(root, **options), out)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(out):
    return pd.read_csv(out / METADATA, dtype=str, keep_default_na=False).set_index("isic_id")


def report_of(out):
    return json.loads((out / REPORT).read_text())


# What is written


def test_the_folder_is_a_competition_folder(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--root", str(root), "--out", str(out), "--size", "40", "--jobs", "1"]) == 0
    assert {path.name for path in out.iterdir()} == {METADATA, IMAGES, REPORT}
    assert tuple(pd.read_csv(out / METADATA, nrows=0)) == OUTPUT_COLUMNS
    rows = read_metadata(out / METADATA, labelled=True)
    store = ImageStore(out / IMAGES)
    for image_id in rows["isic_id"]:
        image = Image.open(io.BytesIO(store.read(image_id)))
        assert (image.format, min(image.size)) == ("JPEG", 40)
    store.close()
    with h5py.File(out / IMAGES) as file:
        assert sorted(file) == sorted(rows["isic_id"])
    assert f"{out}: {len(rows)} lesions of" in capsys.readouterr().out.splitlines()[-1]


def test_every_row_and_its_fields(root, tmp_path):
    converted(root, tmp_path / "out")
    fields = rows_of(tmp_path / "out")[["target", "patient_id", "lesion_id", "diagnosis", "source", "image_type"]]
    assert fields.to_dict("index") == {
        name: dict(zip(fields.columns, cells, strict=True))
        for name, cells in {
            "ISIC_16": ("0", "ISIC_16", "", "nevus", "ISIC 2017", "dermoscopic"),
            # ISIC_1, of lesion HAM_1, is a copy of IP_3's ISIC_23, so ISIC_2 of that lesion is IP_3's as well.
            "ISIC_2": ("0", "IP_3", "HAM_1", "nevus", "ISIC 2018", "dermoscopic"),
            "ISIC_23": ("0", "IP_3", "", "nevus", "ISIC 2020", "dermoscopic"),
            "ISIC_3": ("1", "HAM_3", "HAM_3", "squamous cell carcinoma", "ISIC 2019", "dermoscopic"),
            "ISIC_5": ("1", "HAM_5", "HAM_5", "melanoma", "ISIC 2019", "dermoscopic"),
            "ISIC_21": ("0", "IP_1", "", "nevus", "ISIC 2020", "dermoscopic"),
            "ISIC_22": ("1", "IP_2", "", "melanoma", "ISIC 2020", "dermoscopic"),
            "PAT_1_7_1": ("1", "PAT_1", "PAT_1_7", "basal cell carcinoma", "PAD-UFES-20", "clinical"),
            "PAT_1_8_1": ("0", "PAT_1", "PAT_1_8", "actinic keratosis", "PAD-UFES-20", "clinical"),
        }.items()
    }
    rows = rows_of(tmp_path / "out")
    assert rows.loc["ISIC_3", ["age_approx", "sex", "anatom_site_general"]].tolist() == ["45.0", "female", "posterior torso"]
    assert rows.loc["PAT_1_8_1", ["age_approx", "anatom_site_general"]].tolist() == ["61.0", "lower extremity"]


def test_the_report_says_why_each_row_is_left_out(root, tmp_path, capsys):
    converted(root, tmp_path / "out")
    report = report_of(tmp_path / "out")
    left_out = {year: counts["all"]["left_out"] for year, counts in report["years"].items()}
    assert left_out == {
        "2016": {"contradictory_labels": 1, "repeated_across_years": 1},
        "2017": {"contradictory_labels": 1},
        "2018": {
            **{"repeated_across_years": 2, "contradictory_labels": 1, "corrupt": 1},
            **{"exact_duplicate": 1, "unknown": 1},
        },
        "2019": {"no_image": 1},
        "2020": {"contradictory_labels": 1, "published_duplicate": 1},
        "pad-ufes-20": {},
    }
    for year in report["years"].values():
        for counts in (year["all"], *year["classes"].values()):
            assert counts["rows"] == counts["kept"] + sum(counts["left_out"].values())
            assert counts["rows"] == counts["malignant"] + counts["benign"] + counts["unknown"]
        for name in ("rows", "kept", "with_image"):
            assert year["all"][name] == sum(counts[name] for counts in year["classes"].values())
    assert report["corrupt"] == ["2018/ISIC2018_Task3_Training_Input/ISIC_7.jpg"]
    assert report["exact_duplicates"] == [["ISIC_1", "ISIC_23"]]
    assert report["near_duplicates"] == [["ISIC_24", "ISIC_6"]]
    assert report["images_without_ground_truth"] == {"2017/ISIC-2017_Training_Data": 1}
    assert report["years"]["2019"]["unmapped_sites"] == {"palms/soles": 3}
    assert report["years"]["2019"]["all"]["with_image"] == 2
    printed = capsys.readouterr().out
    assert "corrupt: 2018/ISIC2018_Task3_Training_Input/ISIC_7.jpg" in printed
    assert all(f"| {year}" in printed for year in report["years"])


def test_no_person_is_on_both_sides_of_a_fold(root, tmp_path):
    converted(root, tmp_path / "out")
    make_folds(
        ["--data", str(tmp_path / "out"), "--artifacts", str(tmp_path / "artifacts"), "--folds", "2", "--holdout", "0"]
    )
    folds = pd.read_csv(tmp_path / "artifacts" / "folds.csv").set_index("isic_id")["fold"]
    assert folds["ISIC_2"] == folds["ISIC_23"]
    assert folds["PAT_1_7_1"] == folds["PAT_1_8_1"]


def test_only_the_years_asked_for(root, tmp_path, capsys):
    converted(root, tmp_path / "out", years=["2018"])
    rows = rows_of(tmp_path / "out")
    assert set(rows.index) == {"ISIC_1", "ISIC_2", "ISIC_5", "ISIC_6"}
    assert set(rows["source"]) == {"ISIC 2018"}
    assert rows.loc[["ISIC_1", "ISIC_2"], "patient_id"].tolist() == ["HAM_1", "HAM_1"]
    assert report_of(tmp_path / "out")["years"]["2018"]["all"]["left_out"] == {"unknown": 2, "corrupt": 1}
    assert "AKIEC" in capsys.readouterr().out


def test_lesions_of_unknown_target_can_count_as_malignant(root, tmp_path):
    converted(root, tmp_path / "out", years=["2018"], unknown="malignant")
    rows = rows_of(tmp_path / "out")
    assert rows.loc[["ISIC_3", "ISIC_4"], "target"].astype(int).tolist() == [1, 1]
    assert rows.loc[["ISIC_1", "ISIC_5"], "target"].astype(int).tolist() == [0, 1]
    counts = report_of(tmp_path / "out")["years"]["2018"]["all"]
    assert (counts["unknown"], counts["left_out"]) == (2, {"corrupt": 1})


def test_a_year_without_images_is_logged_and_skipped(root, tmp_path, capsys):
    for image in (root / "PAD").rglob("*.png"):
        image.unlink()
    converted(root, tmp_path / "out")
    assert "pad-ufes-20: the ground truth is there, but none of its images" in capsys.readouterr().out
    assert report_of(tmp_path / "out")["years"]["pad-ufes-20"]["all"]["left_out"] == {"no_image": 2}


# Again, in parallel, interrupted


@pytest.mark.integration
def test_processes_change_no_byte(root, competition, tmp_path):
    for jobs in (1, 2):
        with workers(jobs):
            converted(root, tmp_path / str(jobs), size=40, competition=competition)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("stops_in", ["convert", "pack", "write_json"])
def test_an_interrupted_run_goes_on_and_ends_the_same(root, tmp_path, monkeypatch, stops_in):
    converted(root, tmp_path / "whole", size=40)
    out, done = tmp_path / "out", []
    module = archive_images if stops_in == "convert" else archives
    original = getattr(module, stops_in)

    def stop(*arguments):
        done.append(arguments)
        if len(done) == {"convert": 6, "pack": 1, "write_json": 2}[stops_in]:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, stops_in, stop)
    with pytest.raises(KeyboardInterrupt):
        converted(root, out, size=40)
    assert (out / WORK).is_dir()
    assert not (out / REPORT).exists()
    monkeypatch.undo()
    again = []
    convert = archive_images.convert
    monkeypatch.setattr(archive_images, "convert", lambda *arguments: again.append(1) or convert(*arguments))
    converted(root, out, size=40)
    readable = len(archive_images.survey(root).images) - 1  # one has no row
    assert len(again) == (readable - 5 if stops_in == "convert" else 0)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.integration
def test_a_killed_process_leaves_nothing_that_counts_as_complete(root, tmp_path):
    out = tmp_path / "out"
    code = (
        "import os, sys; from train.archives import __main__ as archives\n"
        "archives.pack = lambda *arguments: os.kill(os.getpid(), 9)\n"
        "archives.main(['--root', sys.argv[1], '--out', sys.argv[2], '--size', '40', '--jobs', '1'])"
    )
    status = subprocess.run([sys.executable, "-c", code, str(root), str(out)], cwd=ROOT, check=False).returncode
    assert status == -9
    assert WORK in {path.name for path in out.iterdir()}
    assert all(path.name.startswith(".") for path in out.iterdir())
    converted(root, out, size=40)
    converted(root, tmp_path / "whole", size=40)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_folder_is_left_as_it_is(root, tmp_path):
    out = tmp_path / "out"
    converted(root, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "nothing to do" in converted(root, out)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 50}, "different: size"),
        ({"years": ["2018"]}, "different: years"),
    ],
)
def test_another_request_for_the_same_folder_is_refused(root, tmp_path, change, sentence):
    converted(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=sentence):
        converted(root, tmp_path / "out", **change)
    assert contents(tmp_path / "out") == before


def test_an_interrupted_run_goes_on_with_more_archives_but_not_with_another_size(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(archives, "pack", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        converted(root, out)
    save(root / "2019" / "ISIC_8.jpg", picture(8))
    with pytest.raises(InputError, match="different: size"):
        converted(root, out, size=50)
    converted(root, out)
    converted(root, tmp_path / "whole")
    assert "ISIC_8" in rows_of(out).index
    assert contents(out) == contents(tmp_path / "whole")


def test_other_inputs_for_the_same_folder_are_refused(root, tmp_path):
    converted(root, tmp_path / "out")
    save(root / "2019" / "ISIC_8.jpg", picture(8))
    with pytest.raises(InputError, match="different: archives"):
        converted(root, tmp_path / "out")


# Copies of the competition


@pytest.fixture
def competition(root, tmp_path):
    """A competition that has ISIC_5 by id, ISIC_6 by bytes and ISIC_2 by looks, the last of the patient IP_77."""
    folder = tmp_path / "competition"
    write(
        folder / "train-metadata.csv",
        *("isic_id,patient_id,target", "ISIC_5,IP_76,0", "ISIC_500,IP_77,0", "ISIC_501,IP_77,0", "ISIC_502,IP_2,0"),
    )
    there = root / "2018" / "ISIC2018_Task3_Training_Input"
    images = folder / "train-image" / "image"
    save(images / "ISIC_500.jpg", picture(2, 60, 60), quality=60)
    (images / "ISIC_501.jpg").write_bytes((there / "ISIC_6.jpg").read_bytes())
    save(images / "ISIC_502.jpg", picture(502), quality=60)
    return folder


def test_what_the_competition_has_is_left_out(root, competition, tmp_path, capsys):
    converted(root, tmp_path / "out", competition=competition)
    rows = rows_of(tmp_path / "out")
    assert not {"ISIC_2", "ISIC_5", "ISIC_6", "ISIC_24"} & set(rows.index)
    years = report_of(tmp_path / "out")["years"]
    assert years["2018"]["all"]["left_out"]["in_competition"] == 2  # ISIC_2, ISIC_6
    assert years["2019"]["all"]["left_out"]["in_competition"] == 1  # ISIC_5
    assert years["2020"]["all"]["left_out"]["in_competition"] == 1  # ISIC_24, a copy of ISIC_6
    # ISIC_23 is linked to ISIC_2 over the lesion, and ISIC_2 is a picture of the competition's IP_77.
    assert rows.loc["ISIC_23", "patient_id"] == "IP_77"
    assert report_of(tmp_path / "out")["kept"]["lesions_of_competition_patients"] == 2  # ISIC_22 is IP_2's
    assert "2 lesions are of patients of the competition" in capsys.readouterr().out


def test_equal_bytes_are_found_whatever_the_size(root, competition, tmp_path):
    converted(root, tmp_path / "out", years=["2018"], size=16, competition=competition)
    assert "ISIC_6" not in rows_of(tmp_path / "out").index


def test_a_competition_may_have_hdf5_and_lie_inside_the_root(root, competition, tmp_path):
    with h5py.File(competition / "train-image.hdf5", "w") as file:
        for path in (competition / "train-image" / "image").iterdir():
            file[path.stem] = np.bytes_(path.read_bytes())
    converted(root, tmp_path / "one", competition=competition)
    inside = root / "competition"
    competition.rename(inside)
    converted(root, tmp_path / "two", competition=inside)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one[METADATA] == two[METADATA]
    assert one[IMAGES] == two[IMAGES]


# Bad input


@pytest.mark.parametrize(
    ("spoil", "options", "sentence"),
    [
        (lambda root: (root / "2019" / "ISIC_2019_Training_GroundTruth.csv").unlink(), {"years": ["2019"]}, "asks for 2019"),
        (lambda root: (root / "ISIC_2019_Training_Input.zip").write_bytes(b"PK"), {}, "half-downloaded"),
        (lambda root: [path.unlink() for path in root.rglob("*.jpg")], {"years": ["2018"]}, "of the 7 ids of the ground"),
        (lambda root: [path.write_bytes(b"") for path in root.rglob("*.jpg")], {"years": ["2020"]}, r"left \(corrupt 5\)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(root, tmp_path, spoil, options, sentence):
    spoil(root)
    with pytest.raises(InputError, match=sentence):
        converted(root, tmp_path / "out", **options)


def test_a_folder_with_something_else_is_refused(root, tmp_path, synthetic_data):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-metadata.csv").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files, such as train-metadata\.csv"):
        converted(root, tmp_path / "out")
    assert (tmp_path / "out" / "train-metadata.csv").read_text() == "mine"
    with pytest.raises(InputError, match=r"out/train-metadata\.csv cannot be made"):
        converted(root, tmp_path / "out" / "train-metadata.csv")


@pytest.mark.integration
def test_exit_status_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "train.archives", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no ground truth file is below --root")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
