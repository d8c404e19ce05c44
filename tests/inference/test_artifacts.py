import errno
import json

import pytest

from inference import artifacts
from inference.artifacts import FORMAT, MANIFEST, checked_file, fold_of_tabular_model, load_manifest, tabular_model_file
from inference.files import sha256_of
from utils import InputError


@pytest.fixture
def folder(tmp_path):
    """An artifact folder of one file."""
    (tmp_path / "model.cbm").write_bytes(b"trees")
    write(tmp_path, {"format": FORMAT, "files": {"model.cbm": sha256_of(tmp_path / "model.cbm")}})
    return tmp_path


def write(folder, manifest):
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_a_file_that_is_named_and_unchanged_is_given(folder):
    assert checked_file(folder, load_manifest(folder), "model.cbm") == folder / "model.cbm"


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{", b"[" * 100_000, b'{"format": ' + b"9" * 5_000 + b"}"])
def test_a_manifest_that_is_no_json_is_refused(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match="is not JSON") as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [[], FORMAT, {}, {"format": "slice-3d-fusion/2"}])
def test_an_older_folder_must_be_trained_again(folder, content):
    write(folder, content)
    with pytest.raises(InputError, match="train again") as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert FORMAT in str(caught.value)


def test_the_fold_of_a_tabular_model_is_in_its_name():
    assert fold_of_tabular_model(tabular_model_file(3, 12)) == 3
    assert fold_of_tabular_model("tabular_fold3.cbm") is None


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json; run train\.tabular into it"):
        load_manifest(tmp_path)
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        load_manifest(tmp_path / "nowhere")


def test_a_changed_file_is_refused(folder):
    (folder / "model.cbm").write_bytes(b"TREES")
    with pytest.raises(InputError, match=r"model\.cbm has SHA-256 .* manifest\.json has .*; copy the artifacts again"):
        checked_file(folder, load_manifest(folder), "model.cbm")


def test_a_file_that_cannot_be_read_is_refused(folder, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(artifacts, "sha256_of", fail)
    with pytest.raises(InputError, match=r"model\.cbm cannot be read \(.*Input/output error"):
        checked_file(folder, load_manifest(folder), "model.cbm")


def test_a_missing_file_is_refused(folder):
    (folder / "model.cbm").unlink()
    with pytest.raises(InputError, match=r"model\.cbm is named in manifest\.json and missing"):
        checked_file(folder, load_manifest(folder), "model.cbm")


@pytest.mark.parametrize("name", ["other.cbm", "../model.cbm", "manifest.json"])
def test_a_file_that_the_manifest_does_not_name_is_refused(folder, name):
    (folder / "other.cbm").write_bytes(b"trees")
    with pytest.raises(InputError, match="only files named there are opened"):
        checked_file(folder, load_manifest(folder), name)


def test_a_manifest_without_files_names_none(folder):
    write(folder, {"format": FORMAT})
    with pytest.raises(InputError, match=r"does not name 'model\.cbm'"):
        checked_file(folder, load_manifest(folder), "model.cbm")
