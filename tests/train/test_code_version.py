import pytest

from train import code_version as module
from train.code_version import code_version, imported_modules

FILES = {
    "utils.py": "A = 1\n",
    "train/__init__.py": "",
    "train/one.py": '"""Text."""\nfrom utils import A\ndef f():\n    "Text."\n    from train.two import B\n    return B\n',
    "train/two.py": "import json\nfrom train import three\nB = 2  # a comment\n",
    "train/three.py": "import train.one\n",
    "train/other.py": "C = 3\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """``version()`` of train.one in a small project, whose files lie in ``version.root``."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "SOURCE", tmp_path / "train" / "code_version.py")

    def version(name="train.one"):
        code_version.cache_clear()
        return code_version(name)

    version.root = tmp_path
    yield version
    code_version.cache_clear()


def test_imports_are_followed(project):
    assert imported_modules("train.one") == {"train", "train.one", "train.two", "train.three", "utils"}
    assert imported_modules("train.other") == {"train.other"}


@pytest.mark.parametrize(
    ("file", "before", "after", "counts"),
    [
        ("utils.py", "A = 1", "A = 2", True),
        ("train/two.py", "B = 2", "B = 3", True),
        ("train/one.py", "return B", "return 2 * B", True),
        ("train/two.py", "a comment", "another", False),
        ("train/one.py", "Text.", "Other text.", False),
        ("train/one.py", "def f", "\n\ndef f", False),
        ("train/other.py", "C = 3", "C = 4", False),
    ],
)
def test_what_the_code_does_counts(project, file, before, after, counts):
    first, path = project(), project.root / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    assert (project() != first) == counts


def test_the_training_script_is_one_file(project, monkeypatch):
    script = project.root / "script.py"
    monkeypatch.setattr(module, "SOURCE", script)
    found = []
    for text in (
        "A = 1\nif __name__ == '__main__':\n    run(hours=1)\n",
        "A = 1\nif __name__ == '__main__':\n    run(hours=2)\n",
        "A = 2",
    ):
        script.write_text(text)
        found.append(project("train.tabular"))
    assert found[0] == found[1] != found[2]


def test_stages_differ_in_what_they_import():
    assert code_version("train.tabular") != code_version("train.fusion")
    assert "train.network.fit" in imported_modules("train.fusion") - imported_modules("train.tabular")
