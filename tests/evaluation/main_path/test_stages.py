import json
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest
from eager import without_graphs
from project_commands import entry_of
from small_network import small_backbone

from evaluation import dry_run
from evaluation.dry_run import Outcome
from evaluation.main_path import stages
from evaluation.main_path.__main__ import main, read_options
from evaluation.main_path.stages import Command, commands, duration, execute
from inference.artifacts import load_manifest
from inference.run_log import peak_memory
from inference.submission import main as run_submission
from terminal import run_command
from utils import InputError

NETWORK = "--weights none --image-size 32 --epochs 1 --batch-size 16"
TITLES = ["folds", "tabular", "fusion", "stacking", "kernel", "dry run"]


class Path:
    """A main path whose commands run in this process, its network a small one.

    Attributes:
        folder: with "artifacts" and all that is written beside it.
        started: modules of the commands that ran.
    """

    def __init__(self, data, folder, patch):
        self.data, self.folder, self.started = data, folder, []
        patch.setattr(stages, "execute", self.execute)
        patch.setattr(dry_run, "run_kernel", self.run_kernel)
        patch.setattr("keras.applications.ResNet50", small_backbone)

    def execute(self, words):
        self.started.append(words[0])
        try:
            return entry_of(words[0])(list(words[1:])) or 0, 0.5
        except InputError as error:
            print(error)
            return 2, 0.5

    @staticmethod
    def run_kernel(kernel, competition, artifacts, report, more=()):
        files = ["--output", str(report / "submission.csv"), "--scores", str(report / "scores.csv")]
        assert run_submission(["--competition", str(competition), "--artifacts", str(artifacts), *files, *more]) == 0
        return Outcome(1.0, "none", json.loads((report / "run.json").read_text()))

    def arguments(self, folds="--folds 2 --holdout 0.25", tabular="", network=NETWORK, more=()):
        words = ["--data", str(self.data), "--artifacts", str(self.folder / "artifacts"), *more]
        few = f"--seeds 1 --params {self.folder / 'few_trees.json'}"
        return [*words, "--folds", folds, "--tabular", f"{few} {tabular}", "--stacking", few, "--fusion", network]

    def run(self, **options):
        """Title -> whether the stage did anything."""
        path, _ = read_options(self.arguments(**options))
        return {outcome.title: outcome.ran for outcome in stages.run_stages(path)}


@pytest.fixture(scope="module")
def finished(synthetic_data, shared_folder):
    """A folder in which the main path has run once, and printed.txt."""

    def make(folder):
        (folder / "few_trees.json").write_text('{"iterations": 5}')
        with pytest.MonkeyPatch.context() as patch, without_graphs():
            path = Path(synthetic_data, folder, patch)
            assert path.run() == {**dict.fromkeys(TITLES, True), "kernel": False}

    return shared_folder("main-path", make)


@pytest.fixture
def path(finished, synthetic_data, tmp_path, monkeypatch, eager):
    """A copy of ``finished``, to run again."""
    folder = shutil.copytree(finished, tmp_path / "path")
    (tmp_path / "path" / "few_trees.json").write_text('{"iterations": 5}')
    return Path(synthetic_data, folder, monkeypatch)


def test_nothing_is_done_twice(path):
    before = {name: file.read_bytes() for name, file in files_of(path.folder)}
    assert path.run() == dict.fromkeys(TITLES, False)
    assert "evaluation.dry_run" not in path.started
    assert {name: file.read_bytes() for name, file in files_of(path.folder)} == before


def files_of(folder):
    return [(str(file.relative_to(folder)), file) for file in folder.rglob("*") if file.is_file()]


def test_another_network_is_trained_and_scored_but_nothing_before_it(path):
    assert path.run(network=f"{NETWORK} --seed 1") == {
        "folds": False,
        "tabular": False,
        "fusion": True,
        "stacking": True,
        "kernel": False,
        "dry run": True,
    }


def test_other_models_take_the_place_of_networks_on_request_only(path, capsys):
    before = load_manifest(path.folder / "artifacts")
    with pytest.raises(SystemExit) as status:
        path.run(tabular="--seed 1")
    assert status.value.code == 2
    assert "--replace" in capsys.readouterr().out
    assert load_manifest(path.folder / "artifacts") == before
    assert "train.fusion" not in path.started
    done = path.run(tabular="--seed 1", more=["--replace"])
    assert done == dict.fromkeys(TITLES, True) | {"folds": False, "kernel": False}
    assert path.run(tabular="--seed 1", more=["--replace"]) == dict.fromkeys(TITLES, False)


def test_a_lost_report_is_made_again(path):
    shutil.rmtree(path.folder / "artifacts-report")
    assert path.run() == dict.fromkeys(TITLES, False) | {"dry run": True}


def test_changed_code_is_named(path, capsys, monkeypatch):
    monkeypatch.setattr("train.manifest.code_version", lambda module: f"another {module}")
    with pytest.raises(SystemExit):
        path.run()
    assert "tabular is out of date, changed since: code" in capsys.readouterr().out


def test_a_network_beside_the_first_is_a_stage_of_its_own(path):
    done = path.run(more=["--fusion", f"{NETWORK} --inputs image"])
    assert list(done) == ["folds", "tabular", "fusion image", "fusion", "stacking", "kernel", "dry run"]
    assert [title for title, ran in done.items() if ran] == ["fusion image", "dry run"]


def test_the_command_prints_scores_places_and_the_next_step(path, capsys):
    assert main(path.arguments()) == 0
    printed = capsys.readouterr().out
    result = json.loads((path.folder / "artifacts-report" / "result.json").read_text())
    manifest = load_manifest(path.folder / "artifacts")
    stacked = manifest["network"]["scores"] | manifest["stacking"]["scores"]
    for rows, scores in (("out of fold", stacked), ("held out", result["scores"])):
        for name, score in scores.items():
            low, high = score["interval"]
            row = rf"\| {name}, {rows} +\| {score['pauc']:.4f} \| {low:.4f} to {high:.4f} \|"
            assert re.search(row, printed)
    assert "[6/6] dry run: unchanged" in printed
    assert str(path.folder / "artifacts-report" / "index.html") in printed
    assert printed.rstrip().endswith("make data train")  # the data are synthetic


def test_without_a_holdout_there_is_no_dry_run(path):
    shutil.rmtree(path.folder / "artifacts")
    shutil.rmtree(path.folder / "artifacts-report")
    done = path.run(folds="--folds 2 --holdout 0")
    assert done == dict.fromkeys(TITLES, True) | {"kernel": False, "dry run": False}
    assert not (path.folder / "artifacts-report").exists()


# Bad input


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fusion", "--epochs none"],
        ["--fusion", "--archives-mode joint"],
        ["--fusion", "--epochs '"],
        ["--fusion", "--epochs 1", "--fusion", "--epochs 2"],
        ["--epochs", "2"],
    ],
)
def test_bad_options_are_refused_before_anything_is_run(synthetic_data, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(stages, "execute", None)
    with pytest.raises(SystemExit) as status:
        run_command(lambda: main(["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a"), *arguments]))
    assert status.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_the_table_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "execute", None)
    with pytest.raises(InputError, match=r"train-metadata\.csv"):
        main(["--data", str(tmp_path)])


def test_every_stage_has_its_options(synthetic_data, tmp_path):
    where = ["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a"), "--report", str(tmp_path / "r")]
    path, _ = read_options([*where, "--folds", "--folds 3", "--tabular", "--seeds 2"])
    data, artifacts = where[:2], where[2:4]
    assert commands(path) == [
        Command("folds", "train.folds", (*data, *artifacts, "--folds", "3")),
        Command("tabular", "train.tabular", (*data, *artifacts, "--seeds", "2")),
        Command("fusion", "train.fusion", (*data, *artifacts, "--backbone", "efficientnet-lite0")),
        Command("stacking", "train.stacking", (*data, *artifacts)),
        Command("kernel", "inference.build_kernel", ()),
        Command("dry run", "evaluation.dry_run", (*data, *artifacts, *where[4:])),
    ]
    replacing = [command.arguments[-1] for command in commands(replace(path, replace=True))[:4]]
    assert replacing == ["--replace"] * 4


# Processes


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(code)``: makes a module "command" that ``execute`` finds."""
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "command.py").write_text


def test_a_command_has_its_status_and_its_memory(module):
    own = peak_memory()  # a process begins as a copy of the one that starts it
    module("import sys; held = bytearray(200_000_000); sys.exit(int(sys.argv[1]))")
    status, memory = execute(["command", "3"])
    assert status == 3
    assert 0.2 < memory < own + 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(module, tmp_path, number):
    catch = f"signal.signal({number:d}, lambda *_: sys.exit(77))"
    module(f"import signal, sys, time; {catch}; open('ready', 'w').close(); time.sleep(60)")

    def stop():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=stop)
    thread.start()
    assert execute(["command"])[0] == 77
    thread.join()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("status", "code", "lines"), [(130, 130, 1), (143, 143, 1), (2, 2, 2), (1, 1, 2), (-9, 2, 1)])
def test_a_stage_that_fails_ends_the_path(synthetic_data, tmp_path, monkeypatch, capsys, status, code, lines):
    monkeypatch.setattr(stages, "execute", lambda words: (status, 0.1))
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: main(["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a")]))
    assert caught.value.code == code
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == lines
    assert ("SIGKILL" in printed.err) == (status == -9)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3599.7, "1 h 0 min"), (90_000, "25 h 0 min")]
)
def test_durations_have_two_units(seconds, words):
    assert duration(seconds) == words
