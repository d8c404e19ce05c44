"""`make data` with the real CLI against the stand-in."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from kaggle_stand_in import refuse, zipped

from kaggle_cli.data import FILES, UNFINISHED, check_files, main
from utils import InputError


@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    """The five files, by name: two training lesions, one of the test."""
    folder = tmp_path_factory.mktemp("competition")
    for part, isic_ids in (("train", ["ISIC_1", "ISIC_2"]), ("test", ["ISIC_3"])):
        pd.DataFrame({"isic_id": isic_ids, "age_approx": 50}).to_csv(folder / f"{part}-metadata.csv", index=False)
        with h5py.File(folder / f"{part}-image.hdf5", "w") as file:
            for isic_id in isic_ids:
                file.create_dataset(isic_id, data=np.bytes_(b"jpeg"))
    (folder / "sample_submission.csv").write_text("isic_id,target\nISIC_3,0.3\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def data(kaggle, competition, tmp_path):
    """The folder to download into; Kaggle has the five files."""
    kaggle.files = dict(competition)
    kaggle.packed = {"train-metadata.csv"}
    return tmp_path / "data"


def test_the_five_files_are_complete_and_nothing_else_stays(kaggle, competition, data, capfd):
    crops = {f"train-image/image/ISIC_{number}.jpg": b"jpeg" for number in range(250)}
    kaggle.files = dict(sorted((competition | crops).items()))  # two pages, train-metadata.csv on the last
    assert main(["--data", str(data)]) == 0
    assert {path.name: path.read_bytes() for path in data.iterdir()} == competition
    assert [body["fileName"] for body in kaggle.asked("DownloadDataFile")] == list(FILES)
    printed = capfd.readouterr().out
    assert "https://www.kaggle.com/competitions/isic-2024-challenge/rules" in printed
    assert "2 train lesions with their image, 1 test lesions with their image; next: python -m train.folds" in printed
    assert "100%" in printed  # the CLI's own bar
    # Again, with one file that is incomplete: only that one is fetched.
    kaggle.calls.clear()
    (data / "test-image.hdf5").write_bytes(b"half")
    assert main(["--data", str(data)]) == 0
    assert [body["fileName"] for body in kaggle.asked("DownloadDataFile")] == ["test-image.hdf5"]
    assert (data / "test-image.hdf5").read_bytes() == competition["test-image.hdf5"]


def test_an_interrupted_download_continues_where_it_stopped(kaggle, competition, data):
    put_all_but("train-image.hdf5", competition, data)
    # The CLI leaves this when it is interrupted: the bytes so far, and which file they are of.
    unfinished, whole = data / UNFINISHED, competition["train-image.hdf5"]
    unfinished.mkdir()
    (unfinished / "train-image.hdf5").write_bytes(whole[:1000])
    marker = {"validator": f'"{len(whole)}"', "size": len(whole)}
    (unfinished / "train-image.hdf5.kaggle-partial").write_text(json.dumps(marker))
    assert main(["--data", str(data)]) == 0
    assert kaggle.ranges == ["bytes=1000-"]
    assert (data / "train-image.hdf5").read_bytes() == whole
    assert not unfinished.exists()


@pytest.mark.parametrize("method", ["ListDataFiles", "DownloadDataFile"])
def test_rules_that_were_not_accepted_are_an_error_with_their_page(kaggle, data, method):
    kaggle.answers[method] = refuse(403, "Permission 'competitions.participate' was denied")
    with pytest.raises(InputError, match=r"accept the competition's rules at https://.*/rules, then run make data again"):
        main(["--data", str(data)])


def test_a_file_of_another_size_than_listed_is_removed(kaggle, competition, data):
    listed = [{"name": name, "totalBytes": len(content) + 1} for name, content in competition.items()]
    kaggle.answers["ListDataFiles"] = lambda body: {"files": listed}
    with pytest.raises(InputError, match=r"sample_submission\.csv has 26 bytes, Kaggle lists 27"):
        main(["--data", str(data)])
    assert not [path for path in data.rglob("*") if path.is_file()]


def put_all_but(name, competition, data):
    data.mkdir()
    for other, content in competition.items():
        if other != name:
            (data / other).write_bytes(content)


def test_a_broken_archive_is_removed(kaggle, competition, data, monkeypatch):
    put_all_but("train-metadata.csv", competition, data)
    broken = zipped("train-metadata.csv", competition["train-metadata.csv"])[:-30]
    monkeypatch.setattr(
        type(kaggle), "stored", lambda self, path: broken if ".zip" in path else competition[path.split("/")[1]]
    )
    with pytest.raises(InputError, match=r"train-metadata\.csv\.zip is broken"):
        main(["--data", str(data)])
    assert not list((data / UNFINISHED).glob("*.zip"))
    assert (data / "test-image.hdf5").is_file()  # the files before it stay


def test_images_and_metadata_of_different_lesions_are_refused(competition, tmp_path):
    for name, content in competition.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "train-image.hdf5").write_bytes(competition["test-image.hdf5"])
    with pytest.raises(InputError, match=r"2 of the 2 ids of .*train-metadata\.csv .* and 1 of the 1 ids of train-image"):
        check_files(tmp_path)
    (tmp_path / "train-image.hdf5").write_bytes(b"half")
    with pytest.raises(InputError, match=r"train-metadata\.csv or train-image\.hdf5 cannot be read"):
        check_files(tmp_path)


def test_a_dry_run_calls_nothing(kaggle, data, capsys):
    assert main(["--data", str(data), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("$ kaggle competitions download isic-2024-challenge -f ") == len(FILES)
    assert not kaggle.calls
    assert not data.exists()
