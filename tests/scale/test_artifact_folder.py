import errno
import os
import shutil
import subprocess
import sys

import pytest
from failing_files import stop_everywhere, stopping_at

from inference.artifacts import COMMITTED
from scale import artifact_folder
from scale.artifact_folder import HOLDER, fingerprint, locked, staged_folder
from utils import InputError

ROOT = artifact_folder.Path(artifact_folder.__file__).resolve().parent.parent
OLD = {"page.html": "old", "images/1.png": "old", "images/2.png": "old", "notes.txt": "the user's", "other/x": "the user's"}
NEW = {"page.html": "new", "images/1.png": "new", "images/3.png": "new", "extra/deep/y": "new"}
AFTER = {**NEW, "notes.txt": "the user's", "other/x": "the user's"}
OWNED = ("*.html", "images/*", "extra")


def write(folder, content):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_new(folder):
    with staged_folder(folder, OWNED) as staging:
        write(staging, NEW)


# A folder that is written whole


def test_new_content_takes_the_place_of_the_old_and_a_users_files_stay(tmp_path):
    write_new(write(tmp_path, OLD))
    assert content_of(tmp_path) == AFTER


def test_nothing_is_removed_that_no_pattern_names(tmp_path):
    with staged_folder(write(tmp_path, OLD)) as staging:
        write(staging, NEW)
    assert content_of(tmp_path) == OLD | NEW


@pytest.mark.parametrize("error", [InputError("wrong"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), MemoryError()])
def test_after_an_error_the_folder_is_as_before(tmp_path, error):
    for folder, before in ((write(tmp_path / "old", OLD), OLD), (tmp_path / "none", None)):
        with pytest.raises(type(error)), staged_folder(folder, OWNED) as staging:
            write(staging, NEW)
            raise error
        assert folder.exists() == (before is not None)
        assert not before or content_of(folder) == before


@pytest.mark.parametrize(
    ("before", "new"),
    [
        ({"a": "file"}, {"a/b": "in a folder"}),
        ({"a/b": "in a folder", "a/c": "too"}, {"a": "file"}),
        ({"a/b/c": "old"}, {"a/b/c": "new", "a/b/d": "new"}),
        ({}, {".hidden": "new", "ä ö'\"": "new"}),
        ({"a": "old"}, {}),
    ],
)
def test_files_and_folders_change_places(tmp_path, before, new):
    with staged_folder(write(tmp_path, before)) as staging:
        write(staging, new)
    kept = {name: text for name, text in before.items() if not new or name in new}
    assert content_of(tmp_path) == kept | new


@pytest.mark.parametrize("kind", ["here", "link", "new", "below a file", "dangling", "file"])
def test_where_a_folder_may_be(tmp_path, monkeypatch, kind):
    place, folder = tmp_path / "place", tmp_path / "folder"
    place.mkdir()
    if kind == "here":
        monkeypatch.chdir(place)
        folder = artifact_folder.Path()
    elif kind == "link":
        folder.symlink_to(place)
    elif kind == "new":
        folder = place = tmp_path / "a" / "b"
    elif kind == "dangling":
        folder.symlink_to(tmp_path / "nowhere")
    elif kind in ("file", "below a file"):
        folder.write_text("x")
        folder = folder / "a" if kind == "below a file" else folder
    if kind in ("here", "link", "new"):
        write_new(folder)
        assert content_of(place) == NEW
    else:
        with pytest.raises(InputError, match="choose another folder"):
            write_new(folder)


def test_killed_at_any_change_the_next_run_finds_the_old_or_the_new_content(tmp_path):
    found = []
    for _, folder in stop_everywhere(lambda number: write(tmp_path / str(number), OLD), write_new):
        with locked(folder):
            found.append(content_of(folder).keys() - {HOLDER} == AFTER.keys())
        assert content_of(folder) == (AFTER if found[-1] else OLD)
        shutil.rmtree(folder)
    assert found == sorted(found)  # one moment: old before, new after
    assert len(found) - 1 > sum(found) > 5


def test_with_a_disk_full_at_any_write_the_old_content_stays_and_nothing_is_left(tmp_path):
    found = []
    for _, folder in stop_everywhere(lambda number: write(tmp_path / str(number), OLD), write_new, full=True):
        found.append(content_of(folder))
        shutil.rmtree(folder)
    assert found[-1] == AFTER
    assert all(content in (OLD, AFTER) for content in found)


def test_a_swap_that_is_interrupted_is_finished_by_the_same_process(tmp_path, monkeypatch):
    calls = []

    def move(source, target, own=artifact_folder._move):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        own(source, target)

    monkeypatch.setattr(artifact_folder, "_move", move)
    with pytest.raises(KeyboardInterrupt):
        write_new(write(tmp_path, OLD))
    assert content_of(tmp_path) == AFTER
    assert not (tmp_path / COMMITTED).exists()


# The lock


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/train/fusion.py", "--data", "my data"])
    with (
        locked(tmp_path),
        pytest.raises(InputError, match=rf"process {os.getpid()} on .* since 20.*\(fusion --data 'my data'\)"),
        locked(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}'])
def test_a_damaged_note_about_the_holder_does_no_harm(tmp_path, content):
    (tmp_path / HOLDER).write_text(content)
    with locked(tmp_path):
        (tmp_path / HOLDER).write_text(content)
        with pytest.raises(InputError, match="in use by another process"), locked(tmp_path):
            pass


def test_a_full_disk_costs_the_note_only(tmp_path):
    with stopping_at(1, full=True), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_the_lock_of_a_killed_process_is_free_and_what_it_had_staged_is_removed(tmp_path):
    program = (
        "import sys, time, pathlib; from scale.artifact_folder import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match=f"process {process.pid} on "), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [HOLDER]


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(artifact_folder.fcntl, "flock", refuse)
    write_new(tmp_path)
    assert content_of(tmp_path) == NEW
    assert "No locks available" in capsys.readouterr().out


# Inputs


def test_a_fingerprint_is_of_the_content(tmp_path):
    write(tmp_path, {"a": "1", "b": "1", "c": "2", "folder/x": "1"})
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")
    assert fingerprint(tmp_path / "nothing") == "none"
    before = fingerprint(tmp_path / "folder")
    os.utime(tmp_path / "folder" / "x", ns=(0, 1))
    assert fingerprint(tmp_path / "folder") == before
    (tmp_path / "folder" / "x").write_text("2")
    assert fingerprint(tmp_path / "folder") != before
