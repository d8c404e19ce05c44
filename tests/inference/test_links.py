import os

import pytest

from inference.links import dangling_link, input_folders, refuse_dangling, walk_links
from utils import InputError


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
