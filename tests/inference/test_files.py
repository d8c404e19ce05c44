import hashlib
import json
import math
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from inference.files import (
    dangling_link,
    input_folders,
    refuse_dangling,
    replacing,
    sha256_of,
    walk_links,
    write_csv,
    write_json,
)
from utils import InputError


def test_the_file_appears_whole_and_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "run.json"
    with replacing(path) as temporary:
        temporary.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert list(path.parent.iterdir()) == [path]


def test_the_temporary_name_keeps_folder_and_suffixes(tmp_path):
    with replacing(tmp_path / "fusion_fold0.weights.h5") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffixes[-2:] == [".weights", ".h5"]
        temporary.touch()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_stopping_by_hand_leaves_nothing_either(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "folds.csv") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write into any folder")
def test_a_folder_that_may_not_be_written_is_refused_in_one_sentence(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with (
            pytest.raises(InputError, match=r"folds\.csv cannot be written .*choose a folder"),
            replacing(tmp_path / "folds.csv") as temporary,
        ):
            temporary.write_text("x")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_file_in_the_place_of_the_folder_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "artifacts").write_text("I am no folder")
    with pytest.raises(InputError, match="cannot be written"), replacing(tmp_path / "artifacts" / "folds.csv") as temporary:
        temporary.write_text("x")


def test_a_folder_in_the_place_of_the_file_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "submission.csv").mkdir()
    with pytest.raises(InputError, match="cannot be written"), replacing(tmp_path / "submission.csv") as temporary:
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["submission.csv"]


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "weights").write_bytes(content)
    assert sha256_of(tmp_path / "weights") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_csv_keeps_every_float32(tmp_path):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32) * np.float32(1e-5)
    write_csv(tmp_path / "oof.csv", pd.DataFrame({"isic_id": [f"ISIC_{row:07d}" for row in range(1000)], "x": values}))
    assert np.array_equal(pd.read_csv(tmp_path / "oof.csv")["x"].to_numpy(np.float32), values)
    assert (tmp_path / "oof.csv").read_bytes().startswith(b"isic_id,x\nISIC_0000000,")
    assert [path.name for path in tmp_path.iterdir()] == ["oof.csv"]


def test_json_keeps_its_order_and_is_json(tmp_path):
    content = {
        "z": np.float32(0.5),
        "a": np.arange(2),
        "path": Path("x"),
        "sd": math.nan,
        "on": np.bool_(True),
        3: (1, None),
    }
    write_json(tmp_path / "new" / "run.json", content)
    text = (tmp_path / "new" / "run.json").read_text()
    assert text.startswith('{\n "z": 0.5,\n "a": [')
    assert text.endswith("}\n")
    assert json.loads(text) == {"z": 0.5, "a": [0, 1], "path": "x", "sd": None, "on": True, "3": [1, None]}


# Links


@pytest.fixture
def tree(tmp_path):
    """A folder with a linked folder, a link back, a second link to the same place, and a dangling link."""
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "file").touch()
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "a").symlink_to("../outside")
    (root / "b" / "back").symlink_to(root)
    (root / "again").symlink_to("../outside/deep")
    (root / "gone").symlink_to("nowhere")
    return root


def test_links_are_followed_and_each_folder_is_seen_once(tree):
    found = [folder.relative_to(tree).as_posix() for folder, _, _ in walk_links(tree)]
    assert found == [".", "a", "a/deep", "b"]


def test_names_are_in_order_and_folders_can_be_passed_over(tree):
    walked = walk_links(tree)
    folder, subfolders, names = next(walked)
    assert (folder, subfolders, names) == (tree, ["a", "again", "b"], ["gone"])
    subfolders.remove("a")
    assert [each.name for each, _, _ in walked] == ["again", "b"]


@pytest.mark.parametrize(
    ("path", "link"),
    [("gone", "gone"), ("gone/below", "gone"), ("circle", "circle"), ("a", ""), ("a/deep/file", ""), ("no", "")],
)
def test_a_link_that_leads_nowhere_is_named(tree, path, link):
    (tree / "circle").symlink_to("circle")
    found = dangling_link(tree / path)
    assert (f"{tree / link} is a link to" in found) if link else not found


def test_a_link_whose_target_comes_back_is_no_longer_dangling(tree, monkeypatch):
    (tree / "nowhere").mkdir()
    monkeypatch.chdir(tree)
    assert not dangling_link(tree / "gone")
    assert os.fspath(next(walk_links(tree / "gone"))[0]).endswith("gone")


def test_the_depth_is_counted_below_the_root(tree):
    assert [folder.name for folder, _, _ in walk_links(tree, 1)] == ["root", "a", "again", "b"]
    assert [folder.name for folder, _, _ in walk_links(tree, 0)] == ["root"]


def test_strictly_a_dangling_link_is_an_error_that_names_it(tree):
    with pytest.raises(InputError, match=r"gone is a link to nowhere"):
        list(walk_links(tree, strict=True))
    (tree / "gone").rename(tree / ".gone")
    assert len(list(walk_links(tree, strict=True))) == 4


def test_strictly_a_folder_that_cannot_be_read_is_an_error(tree, monkeypatch):
    (tree / "gone").unlink()
    scandir = os.scandir

    def refuse(path):
        if os.path.realpath(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(list(walk_links(tree))) == 3
    with pytest.raises(PermissionError, match="deep"):
        list(walk_links(tree, strict=True))


def test_folders_of_separate_images_are_no_inputs(tree):
    (tree / "b" / "test-image" / "image").mkdir(parents=True)
    assert [folder.name for folder in input_folders(tree, 5)] == ["root", "a", "deep", "b"]


def test_refuse_dangling_returns_any_other_path(tree):
    assert refuse_dangling(tree / "new") == tree / "new"
    with pytest.raises(InputError, match="gone is a link to"):
        refuse_dangling(tree / "gone" / "below")
