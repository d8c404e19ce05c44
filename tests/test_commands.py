"""Every command refuses paths that it cannot use: one sentence, exit status 2, nothing written.

The commands are those that end in ``run_command(...)``; their options come from their parsers, in this process.
"""

import argparse
from functools import cache

import pytest
from project_commands import commands, entry_of

from inference.options import PathType
from terminal import run_command

#: Of an option that holds a path.
PATH_METAVARS = {"DIR", "FILE", "PATH"}
COMMANDS = sorted(commands())


class Parsed(Exception):
    """Ends a command where it would parse; holds its parser."""


@cache
def options_of(command):
    """The actions of a command's parser that take a value."""

    def stop(parser, *_):
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        entry_of(command)([])
    return [action for action in caught.value.args[0]._actions if action.option_strings and action.nargs != 0]


def paths_of(command):
    """The options that are paths."""
    return [action for action in options_of(command) if isinstance(action.type, PathType)]


def refused(command, arguments, capsys):
    """Runs a command that must end with 2; returns its sentence."""
    with pytest.raises(SystemExit) as status:
        run_command(lambda: entry_of(command)([str(argument) for argument in arguments]))
    printed = capsys.readouterr().err
    assert status.value.code == 2, printed
    assert "Traceback" not in printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_options_that_are_paths_have_a_type_that_checks_them(command):
    untyped = [each.dest for each in options_of(command) if each.metavar in PATH_METAVARS and each not in paths_of(command)]
    assert untyped == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if paths_of(command)])
def test_a_path_that_cannot_be_used_is_named_with_its_option(command, tmp_path, capsys):
    file, folder, missing = tmp_path / "file", tmp_path / "folder", tmp_path / "missing"
    file.touch()
    folder.mkdir()
    (tmp_path / "link").symlink_to(missing)
    for action in paths_of(command):
        wrong = [file / "below", tmp_path / "link", ""]
        wrong += [missing] * action.type.exists
        wrong += [file] * (action.type.kind == "folder") + [folder, "."] * (action.type.kind == "file")
        for value in wrong:
            flag = action.option_strings[-1]
            sentence = refused(command, [flag, value], capsys)
            assert flag in sentence
            assert str(value) in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]


def required_values(command, tmp_path):
    """A value for every option that the command requires, and for all folders to read: empty ones."""
    values = []
    for action in options_of(command):
        kind = action.type if isinstance(action.type, PathType) else None
        if kind is None:
            values += [action.option_strings[-1], "1"] * action.required
        elif kind.exists and kind.kind != "file":
            values += [action.option_strings[-1], tmp_path / "empty"]
        elif action.required or not kind.exists:
            values += [action.option_strings[-1], tmp_path / action.dest]
    return values


READING = [each for each in COMMANDS if any(action.required and action.type.exists for action in paths_of(each))]


@pytest.mark.parametrize("command", READING)
def test_an_empty_folder_is_refused_and_nothing_is_written(command, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    refused(command, required_values(command, tmp_path), capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
