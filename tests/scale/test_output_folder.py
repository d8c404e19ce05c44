from pathlib import Path

import pytest

from scale.output_folder import output_set
from utils import InputError

PAGE = "<!DOCTYPE html><title>Pages: {}</title>"


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_set_replaces_the_one_before_as_a_whole(tmp_path):
    for kept in ({"a_csv": "1", "b_csv": "1"}, {"a_csv": "2"}):
        with output_set(tmp_path / "out", ["*.csv"], marks=["a.csv"]) as staging:
            write(staging, **kept)
            assert names(staging) == [name.replace("_", ".") for name in kept]
    assert names(tmp_path / "out") == ["a.csv"]
    assert (tmp_path / "out" / "a.csv").read_text() == "2"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"b_csv": ""}, "b.csv"),  # without the mark
        ({"a_csv": "", "x_html": "<title>My page</title>"}, "x.html"),
        ({"a_csv": "", "x_html": ""}, "x.html"),
    ],
)
def test_files_of_others_with_these_names_are_refused(tmp_path, files, named):
    write(tmp_path, **files)
    before = names(tmp_path)
    with pytest.raises(InputError, match=named), output_set(tmp_path, ["*.csv", "*.html"], ["a.csv"], "Pages"):
        pytest.fail("is not reached")
    assert names(tmp_path) == before


@pytest.mark.parametrize("files", [{}, {"notes_txt": ""}, {"a_csv": "", "x_html": PAGE.format("x"), "notes_txt": ""}])
def test_an_empty_folder_an_own_set_and_other_names_are_taken(tmp_path, files):
    write(tmp_path, **files)
    with output_set(tmp_path, ["*.csv", "*.html"], ["a.csv"], "Pages") as staging:
        write(staging, a_csv="new", y_html=PAGE.format("y"))
    assert names(tmp_path) == sorted(["a.csv", "y.html", *(["notes.txt"] if "notes_txt" in files else [])])


def test_a_folder_that_was_not_there_is_not_left_after_an_error(tmp_path):
    with pytest.raises(KeyError), output_set(tmp_path / "out", ["a.csv"]) as staging:
        write(staging, a_csv="")
        raise KeyError
    assert names(tmp_path) == []


def test_the_folder_may_be_a_link_or_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    for place in (tmp_path / "link", Path()):
        with output_set(place, ["a.csv"]) as staging:
            write(staging, a_csv=str(place))
        assert (tmp_path / "real" / "a.csv").read_text() == str(place)
    assert (tmp_path / "link").is_symlink()
