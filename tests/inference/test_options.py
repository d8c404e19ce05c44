import importlib
import math
import re
from pathlib import Path

import pytest

from inference import options
from inference.options import (
    Number,
    Parser,
    add_data_options,
    add_seed_option,
    address,
    count,
    existing_file,
    existing_folder,
    existing_path,
    filled_text,
    image_size,
    output_file,
    output_folder,
    positive_number,
    processes,
    refuse_same_file,
    seed,
    share,
    shell_words,
)
from kaggle_cli.entrypoint import Settings
from utils import InputError

ROOT = Path(__file__).resolve().parents[2]
#: What no number is, or only to Python.
NO_NUMBERS = [
    "",
    " ",
    " 5",
    "5 ",
    "\n5",
    "1_000",
    "0x10",
    "\u0663",
    "1,000",
    "nan",
    "inf",
    "-inf",
    "1e",
    "five",
    "5%",
    "--5",
    "9" * 5000,
]


def parsed(type_, value):
    """The value of ``--option`` by its type."""
    parser = Parser()
    parser.add_argument("--option", type=type_)
    return parser.parse_args([f"--option={value}"]).option


def refused(type_, value):
    """The sentence that refuses ``value``: it names the option, and is one line."""
    with pytest.raises(InputError, match=r"^--option: ") as caught:
        parsed(type_, value)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (count(), ["1", "+7", "007", "2147483647"], ["0", "-1", "2147483648", "1.0", "1e3", "."]),
        (count(2, 9), ["2", "9"], ["1", "10"]),
        (count(0), ["0"], ["-1"]),
        (seed, ["0", "4294967295"], ["-1", "4294967296", "5000000000"]),
        (image_size, ["32", "1024"], ["31", "1025", "1000000"]),
        (processes, ["1"], ["0", "100000"]),
        (share(), ["0", "1", "0.5", ".5", "1.", "1e-3", "-0"], ["-0.1", "1.01", "1e999"]),
        (share(high=0.5), ["0.5"], ["0.51"]),
        (positive_number(10), ["10", "1e-8", "3e-4"], ["0", "-1", "10.1", "1e999", "-1e-3"]),
        (Number(0, 1, below=True), ["0", "0.999"], ["1", "-0.1"]),
    ],
    ids=str,
)
def test_numbers(type_, good, bad):
    for value in good:
        found = parsed(type_, value)
        assert found == float(value)
        assert isinstance(found, int) == type_.whole
        assert math.isfinite(found)
    for value in [*bad, *NO_NUMBERS]:
        sentence = refused(type_, value)
        assert str(type_) in sentence
        assert repr(value)[:40] in sentence


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with a file, a folder, links to them, a dangling link and one that leads to itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "folder"))
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "-dash").mkdir()
    for name, target in {"to-file": "file", "to-folder": "folder", "gone": "nowhere", "circle": "circle"}.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


FILES, FOLDERS = ["file", "to-file"], [".", "folder", "folder/", "to-folder", "..", "~", "~/inner", "-dash"]
NEW = ["new", "new/deep", "to-folder/new", "folder/../new", "-new", "name with 'quotes' \u00fc $HOME"]
NEVER = ["", " ", "gone", "gone/below", "circle", "file/below", "x" * 300]


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (existing_file, FILES, [*FOLDERS, *NEW, "file/"]),
        (existing_folder, FOLDERS, [*FILES, *NEW]),
        (existing_path, [*FILES, *FOLDERS], NEW),
        (output_file, [*FILES, *NEW], [*FOLDERS, "new/", "new/."]),
        (output_folder, [*FOLDERS, *NEW, "new/"], FILES),
    ],
    ids=["existing_file", "existing_folder", "existing_path", "output_file", "output_folder"],
)
def test_paths(type_, good, bad, place):
    for value in good:
        found = parsed(type_, value)
        assert found.resolve() == Path(value).expanduser().resolve()
        assert not str(found).startswith("-")
    for value in [*bad, *NEVER]:
        assert repr(value)[:100] in refused(type_, value)


@pytest.mark.parametrize(("value", "link"), [("gone", "gone"), ("gone/below", "gone"), ("circle", "circle")])
@pytest.mark.parametrize("type_", [existing_file, existing_folder, existing_path, output_file, output_folder])
def test_a_dangling_link_is_named(type_, value, link, place):
    assert f"{link} is a link to" in refused(type_, value)


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (filled_text, ["a", " a b ", "0"], ["", " ", "\t"]),
        (
            address,
            ["tcp://host:8786", "host:1", "127.0.0.1:65535", "tls://[::1]:8786", "tcp://a-b.example.org:80"],
            [
                "",
                "localhost",
                "tcp://localhost",
                "host:",
                "host:0",
                "host:65536",
                ":8786",
                "tcp://:1",
                "ho st:1",
                "host:port",
                "::1",
            ],
        ),
    ],
    ids=["filled_text", "address"],
)
def test_texts(type_, good, bad):
    assert [parsed(type_, value) for value in good] == good
    for value in bad:
        assert repr(value) in refused(type_, value)


def test_shell_words():
    assert parsed(shell_words, "--seeds 2 --params 'my file'") == ["--seeds", "2", "--params", "my file"]
    assert parsed(shell_words, "") == []
    assert "it's" in refused(shell_words, "it's")


@pytest.mark.parametrize("value", ["-1", "-.5", "-1e-3", "-inf", "-nan", "-5%"])
def test_a_negative_number_is_a_value_that_the_sentence_names(value):
    parser = Parser()
    parser.add_argument("--option", type=share())
    with pytest.raises(InputError, match=f"^--option: '{value}' is no "):
        parser.parse_args(["--option", value])


def test_two_outputs_are_not_one_file(place):
    refuse_same_file({"--output": Path("new"), "--scores": None, "--storage": Path("folder/new")})
    for path in ("file", "./file", "to-file", "folder/../file"):
        with pytest.raises(InputError, match="--output and --scores are both "):
            refuse_same_file({"--output": Path("file"), "--scores": Path(path)})


def test_wrong_command_lines_are_input_errors():
    parser = Parser()
    parser.add_argument("--out", type=output_folder, required=True)
    for arguments, word in [([], "--out"), (["--out"], "--out"), (["--out", "o", "--nothing"], "--nothing")]:
        with pytest.raises(InputError, match=word):
            parser.parse_args(arguments)


def test_options_have_one_name_everywhere(place):
    parser = Parser()
    add_data_options(parser)
    add_seed_option(parser)
    given = ["--data", "folder", "--artifacts", "new"]
    assert vars(parser.parse_args(given)) == {"data": Path("folder"), "artifacts": Path("new"), "seed": 0}
    assert parser.parse_args([*given, "--seed", "5"]).seed == 5
    with pytest.raises(InputError, match="--artifacts"):
        parser.parse_args(["--data", "folder"])


@pytest.mark.parametrize(("words", "verbosity"), [([], 0), (["-q"], -1), (["--quiet"], -1), (["-v"], 1), (["--verbose"], 1)])
def test_every_parser_has_quiet_and_verbose(words, verbosity, monkeypatch):
    monkeypatch.setattr(options, "set_verbosity", set_to := [0].append)
    parser = Parser()
    assert vars(parser.parse_args(words)) == {}
    assert set_to.__self__[-1] == verbosity


def test_quiet_and_verbose_exclude_each_other():
    with pytest.raises(InputError, match="--verbose"):
        Parser().parse_args(["--quiet", "--verbose"])


class Built(Exception):
    """A command has built its parser."""


SOURCES = [
    path
    for package in ("inference", "scale", "train", "evaluation", "kaggle_cli", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def commands():
    """Each module that parses options, its function that does so, and the arguments of that."""
    for path in SOURCES:
        entry = re.search(r'^if __name__ == "__main__":\n    [\w.]+\((\w+)', path.read_text("utf-8"), re.M)
        if entry:
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), entry[1], ([],)
    yield "kaggle_cli.entrypoint", "main", (Settings(), 1.0, [])


@pytest.mark.parametrize(
    ("module", "function", "arguments"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_option_has_a_type_of_this_module(module, function, arguments, monkeypatch):
    built = []

    def parse(parser, *_):
        built.append(parser)
        raise Built

    monkeypatch.setattr(Parser, "parse_known_args", parse)
    with pytest.raises(Built):
        getattr(importlib.import_module(module), function)(*arguments)
    bare = []
    for action in built[0]._actions:
        takes_value = action.nargs != 0 and not action.choices
        own = getattr(action.type, "__module__", "") == options.__name__ or getattr(action.type, "__name__", "") in (
            "initial_weights",
            "network_name",
        )
        if takes_value and not own:
            bare.append(action.option_strings)
    assert not bare


def test_every_parser_is_of_this_module():
    found = [str(path.relative_to(ROOT)) for path in SOURCES if "ArgumentParser(" in path.read_text("utf-8")]
    assert found == []
