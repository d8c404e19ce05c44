import os

import pytest

from inference.links import dangling_link, walk_links


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
