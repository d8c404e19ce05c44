"""Training on Kaggle: the one script, the run that it makes there, and `make train-on-kaggle` against the stand-in."""

import ast
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kaggle_stand_in import USER, standing_in

from evaluation.dry_run import without_network
from inference.artifacts import FORMAT, checked_file
from inference.build_kernel import ROOT
from inference.files import sha256_of
from inference.network import NetworkConfig, load_network
from kaggle_cli import client, entrypoint, push, train_remote
from kaggle_cli.entrypoint import BACKBONE_WEIGHTS, REPORT, OutOfTime, time_limit
from train.manifest import record_stage
from utils import InputError

NO_OPTIONS = {"folds": [], "tabular": [], "fusion": []}
FAST = ["--poll", "0.05"]

# The script


@pytest.fixture(scope="module")
def script():
    """The text, and its syntax tree."""
    text = build(NO_OPTIONS, 11)
    return text, ast.parse(text)


def test_every_room_is_in_the_script_as_it_is(script):
    text, tree = script
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    rooms = in_order("kaggle_cli.entrypoint", ROOT)
    assert {"utils", "inference.features", "train.folds", "train.tabular", "train.fusion"} < set(rooms)
    for room, original in rooms.items():
        there = functions[room.replace(".", "_")].body
        here = [
            node for node in original.body if "__future__" not in ast.unparse(node) and "__main__" not in ast.unparse(node)
        ]
        assert without_docstring_margins(there[:-1]) == without_docstring_margins(here), room
        assert ast.unparse(there[-1]) == "return locals()"
        lines = (ROOT / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines()
        assert all(f"\n    {line}\n" in text for line in lines if line.strip().startswith("#"))


def without_docstring_margins(nodes):
    """The nodes as text, with every docstring as `ast.get_docstring` cleans it."""
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = " ".join(node.value.value.split())
    return [ast.dump(node) for node in nodes]


def test_rooms_come_after_those_that_they_import(script):
    rooms = list(in_order("kaggle_cli.entrypoint", ROOT))
    assert rooms[-1] == "kaggle_cli.entrypoint"
    for earlier, later in (
        ("inference.files", "utils"),
        ("train.folds", "train.tabular"),
        ("train.tabular", "train.fusion"),
    ):
        assert rooms.index(earlier) < rooms.index(later)
    assert not {"kaggle_cli.client", "train.synthetic.__main__", "evaluation.dry_run"} & set(rooms)


def test_nothing_is_run_from_text_or_hidden(script):
    text, tree = script
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}
    assert not [word for word in ("base64", "zlib", "pickle", "marshal", "kaggle.json") if f"import {word}" in text]
    assert max(map(len, text.splitlines())) < 140


@pytest.mark.parametrize(
    ("rooms", "complaint"),
    [
        ({"train/a.py": "import train.b\n", "train/b.py": "import train.a\n"}, "train.a -> train.b -> train.a"),
        ({"train/a.py": "from train.gone import x\n"}, "train.a imports 'train.gone', which is no file"),
        ({"train/a.py": "def f():\n    global x\n    x = 1\n"}, "train.a line 2 has 'global x'"),
        ({"train/a.py": "from os import *\n"}, r"train.a line 1 has 'from os import \*'"),
    ],
)
def test_a_room_that_cannot_be_put_into_one_file_is_refused(tmp_path, rooms, complaint):
    for name, text in rooms.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=complaint):
        build(NO_OPTIONS, 11, tmp_path, "train.a")


def test_text_in_quotes_is_not_indented(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.py").write_text(
        'TEXT = """one\n  two\n"""\n\n\ndef main(settings, hours, arguments):\n    print(repr(TEXT), settings, hours)\n'
    )
    (tmp_path / "utils.py").write_text("def run_command(main):\n    main()\n")
    (tmp_path / "train" / "b.py").write_text("import utils\nfrom train.a import main\n")
    (tmp_path / "script.py").write_text(build(NO_OPTIONS, 2.5, tmp_path, "train.b"))
    command = [sys.executable, "-I", str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"'one\\n  two\\n' {NO_OPTIONS} 2.5\n"


# A run of it


def test_the_script_trains_what_the_repository_trains(trained, tmp_path):
    """The data and options of `trained` give its very folds and CatBoost; of the networks only the head learns."""
    parameters = str(trained.data.parent / "few_trees.json")
    network = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "64", "--unfreeze", "none"]
    settings = {
        "folds": ["--folds", "2", "--holdout", "0.25"],
        "tabular": ["--seeds", "1", "--params", parameters],
        "fusion": [*network, "--negatives-per-positive", "1"],
    }
    competition, working = tmp_path / "input" / "competitions" / "isic-2024-challenge", tmp_path / "working"
    competition.parent.mkdir(parents=True)
    competition.symlink_to(trained.data)
    working.mkdir()
    (tmp_path / "script.py").write_text(build(settings, 1.0), encoding="utf-8")
    command = [*without_network()[0], sys.executable, "-I", str(tmp_path / "script.py"), "--working", str(working)]
    where = ["--input-root", str(tmp_path / "input")]
    done = subprocess.run([*command, *where], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "folds, tabular, network, 2 fold networks: finished" in done.stdout
    report = json.loads((working / REPORT).read_text())
    assert (report["finished"], report["settings"], report["trouble"]) == (True, settings, "")
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (working, trained.artifacts))
    for name in ("folds.csv", "oof_tabular.csv"):
        assert ours["files"][name] == theirs["files"][name]
    assert set(ours["files"]) == set(theirs["files"])
    assert ours["network"]["settings"] == theirs["network"]["settings"]
    for name in ours["network"]["weights"]:
        load_network(NetworkConfig.from_dict(ours["network"]["settings"]), checked_file(working, ours, name))
    # Flat, and nothing that a kernel could not open: the output can be attached as it is.
    assert {path.name for path in working.iterdir()} == {*ours["files"], "manifest.json", "logs", REPORT}


# Its parts, with stages that do next to nothing


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Kaggle's folders, and stages that only record themselves; `fusion` can be replaced."""
    root, working = tmp_path / "input", tmp_path / "working"
    (root / "isic-2024-challenge").mkdir(parents=True)
    (root / "isic-2024-challenge" / "train-metadata.csv").write_text("isic_id\n")
    working.mkdir()
    done = []

    def stage(name, arguments):
        done.append(name)
        (working / f"{name}.csv").write_text(name)
        record_stage(working, "network" if name == "fusion" else name, {"weights": ["a", "b"]}, [f"{name}.csv"])

    for name, module in (("folds", entrypoint.folds), ("tabular", entrypoint.tabular), ("fusion", entrypoint.fusion)):
        monkeypatch.setattr(module, "main", lambda arguments, name=name: stage(name, arguments))

    def run(settings=NO_OPTIONS, hours=1.0):
        assert entrypoint.main(settings, hours, ["--input-root", str(root), "--working", str(working)]) == 0
        return json.loads((working / REPORT).read_text())

    def next_part():
        shutil.move(working, root / "notebooks" / USER / "slice-3d-fusion-training-1")
        working.mkdir()
        done.clear()

    (root / "notebooks" / USER).mkdir(parents=True)
    run.root, run.working, run.done, run.next_part = root, working, done, next_part
    return run


def train_one_fold_and(end):
    """A fusion stage that leaves one finished fold in its hidden folder."""

    def fusion(arguments):
        kept = Path(arguments[arguments.index("--artifacts") + 1]) / ".fusion-0123456789ab"
        kept.mkdir(exist_ok=True)
        (kept / "fold0.weights.h5").write_text("weights")
        (kept / "fold0.csv").write_text("row,logits\n")
        end()

    return fusion


def test_a_part_that_runs_out_of_time_is_continued_by_the_next(there, monkeypatch):
    whole = entrypoint.fusion.main
    monkeypatch.setattr(entrypoint.fusion, "main", train_one_fold_and(lambda: time.sleep(60)))
    report = there(hours=1 / 3600)
    assert report == {
        "finished": False,
        "settings": NO_OPTIONS,
        "folds": 1,
        "trouble": "0.000277778 hours are over",
        "stages": ["folds", "tabular"],
    }
    assert not [path for path in there.working.iterdir() if path.name.startswith(".")]
    there.next_part()
    seen = []
    monkeypatch.setattr(entrypoint.fusion, "main", lambda arguments: seen.append(there.working / ".fusion-0123456789ab"))
    assert there()["folds"] == 1
    assert there.done == []  # nothing is done twice
    assert (seen[0].with_name("unfinished") / "fusion-0123456789ab" / "fold0.weights.h5").read_text() == "weights"
    monkeypatch.setattr(entrypoint.fusion, "main", whole)
    shutil.rmtree(there.working)
    there.working.mkdir()
    assert there()["finished"] is True


def test_networks_on_their_way_out_when_the_time_is_over_go_back(tmp_path):
    kept = tmp_path / ".fusion-0123456789ab"
    kept.mkdir()
    for name in ("fold0.csv", "fold1.csv", "fold1.weights.h5"):
        (kept / name).write_text(name)
    (tmp_path / "fusion_fold0.weights.h5").write_text("network 0")
    entrypoint.set_aside(tmp_path)
    waiting = tmp_path / "unfinished" / "fusion-0123456789ab"
    assert (waiting / "fold0.weights.h5").read_text() == "network 0"
    assert (waiting / "fold1.weights.h5").read_text() == "fold1.weights.h5"
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_a_part_after_the_last_one_does_nothing_but_hand_on(there):
    assert there()["finished"] is True
    assert there.done == ["folds", "tabular", "fusion"]
    there.next_part()
    assert there()["finished"] is True
    assert there.done == []
    assert (there.working / "fusion.csv").read_text() == "fusion"


def test_an_error_keeps_what_was_trained_and_is_told(there, monkeypatch, capsys):
    def fail():
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(entrypoint.fusion, "main", train_one_fold_and(fail))
    report = there()
    assert report["trouble"] == "RuntimeError: out of memory"
    assert report["folds"] == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_part_of_other_options_or_changed_files_is_not_taken_over(there):
    there()
    there.next_part()
    with pytest.raises(InputError, match=r"was trained with .* this part with .*--seeds.*; use the same"):
        there(NO_OPTIONS | {"tabular": ["--seeds", "2"]})
    (there.root / "notebooks" / USER / "slice-3d-fusion-training-1" / "tabular.csv").write_text("changed")
    with pytest.raises(InputError, match=r"tabular\.csv has SHA-256"):
        there()


def test_inputs_that_are_missing_or_there_twice_are_told(there):
    shutil.copytree(there.root / "isic-2024-challenge", there.root / "competitions" / "isic-2024-challenge")
    with pytest.raises(InputError, match=r"train-metadata\.csv is in 2 inputs"):
        there()
    shutil.rmtree(there.root)
    with pytest.raises(InputError, match="attach the competition"):
        there()


def test_attached_weights_are_used_from_a_path_that_stays(there, monkeypatch):
    (there.root / "weights").mkdir()
    (there.root / "weights" / BACKBONE_WEIGHTS).write_text("weights")
    given = []
    monkeypatch.setattr(entrypoint.fusion, "main", given.extend)
    there()
    path = Path(given[given.index("--weights") + 1])
    assert path.read_text() == "weights"
    assert there.root not in path.parents
    path.unlink()


def test_a_wrong_option_of_the_last_stage_ends_the_run_at_its_start(there):
    with pytest.raises(InputError, match="--epochs 0 must be above zero"):
        there(NO_OPTIONS | {"fusion": ["--epochs", "0"]})
    assert there.done == []


def test_the_alarm_is_off_after_the_block():
    with pytest.raises(OutOfTime), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)


# make train-on-kaggle


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "user_name", lambda dry_run=False: USER)
    with standing_in(tmp_path, monkeypatch) as stand_in:
        yield stand_in


def leaves(kaggle, part, **report):
    """Has the run of a part leave a report, and a manifest with networks if it is finished."""
    report = {"finished": False, "settings": NO_OPTIONS, "folds": 2, "trouble": ""} | report
    manifest = {"format": FORMAT, "files": {}, "tabular": {}} | ({"network": {}} if report["finished"] else {})
    files = {REPORT: json.dumps(report).encode(), "manifest.json": json.dumps(manifest).encode()}
    kaggle.outputs[f"{USER}/slice-3d-fusion-training-{part}"] = files


def test_a_training_in_two_parts_and_its_way_into_the_submission_kernel(kaggle, tmp_path, capsys):
    settings = NO_OPTIONS | {"fusion": ["--epochs", "8"]}
    leaves(kaggle, 1, settings=settings, trouble="11 hours are over")
    assert train_remote.main(["--fusion", "--epochs 8", *FAST]) == 0
    assert "11 hours are over, 2 fold networks\nnext: make train-on-kaggle PART=2" in capsys.readouterr().out
    (request,) = kaggle.pushed[f"{USER}/slice-3d-fusion-training-1"]
    assert request["text"] == build(settings, 11.0)
    assert request["newTitle"] == "SLICE-3D fusion training 1"
    assert request["enableInternet"] is True
    assert request["machineShape"] == "NvidiaTeslaT4"
    assert request["isPrivate"] is True
    assert request["competitionDataSources"] == ["isic-2024-challenge"]
    assert "datasetDataSources" not in request
    assert "kernelDataSources" not in request

    with pytest.raises(InputError, match="has not trained all networks yet; run: make train-on-kaggle PART=2"):
        push.main(["--source", "training", *FAST])
    leaves(kaggle, 2, settings=settings, finished=True, folds=5)
    assert train_remote.main(["--part", "2", *FAST]) == 0
    assert "finished, 5 fold networks; next: make push SOURCE=training PART=2" in capsys.readouterr().out
    (request,) = kaggle.pushed[f"{USER}/slice-3d-fusion-training-2"]
    assert request["text"] == build(settings, 11.0)  # the options of part 1
    assert request["kernelDataSources"] == [f"{USER}/slice-3d-fusion-training-1"]

    with pytest.raises(InputError, match=r"left no submission\.csv"):  # the stand-in's run leaves nothing
        push.main(["--source", "training", "--part", "2", "--output", str(tmp_path / "output"), *FAST])
    (request,) = kaggle.pushed[f"{USER}/slice-3d-fusion-kernel"]
    assert request["kernelDataSources"] == [f"{USER}/slice-3d-fusion-training-2"]
    assert "datasetDataSources" not in request
    assert request["enableInternet"] is False
    with pytest.raises(InputError, match="has finished the training; next: make push SOURCE=training PART=2"):
        train_remote.main(["--part", "3", *FAST])


def test_a_part_that_stopped_by_an_error_or_left_nothing_is_a_failure(kaggle, capsys):
    leaves(kaggle, 1, trouble="RuntimeError: out of memory")
    kaggle.log = "the traceback"
    with pytest.raises(InputError, match=r"stopped by 'RuntimeError: out of memory'; .* then make train-on-kaggle PART=2"):
        train_remote.main(["--fetch", *FAST])
    assert "the traceback" in capsys.readouterr().out
    kaggle.outputs.clear()
    with pytest.raises(InputError, match=r"left no training\.json; its log stands above"):
        train_remote.main(["--fetch", *FAST])
    assert not kaggle.pushed


def test_parts_and_options_that_do_not_fit_are_refused(kaggle):
    with pytest.raises(InputError, match="--part 2 goes on with the options of part 1; leave out"):
        train_remote.main(["--part", "2", "--tabular", "--seeds 5"])
    with pytest.raises(InputError, match=r"hours go up to 11\.75"):
        train_remote.main(["--hours", "12"])
    kaggle.statuses = [("ERROR", "")]
    with pytest.raises(
        InputError, match="slice-3d-fusion-training-1 is 'error', not 'complete'; wait for it, or run that part"
    ):
        train_remote.main(["--part", "2"])


def test_a_dry_run_shows_the_metadata_and_with_a_dataset_of_weights_the_internet_is_off(kaggle, monkeypatch, capsys):
    monkeypatch.undo()
    assert train_remote.main(["--dry-run", "--weights-dataset", "somebody-else/resnet50-weights"]) == 0
    told = capsys.readouterr().out
    shown = json.loads(told[told.index("{\n") : told.index("\n}") + 2])
    assert shown["id"] == "OWNER/slice-3d-fusion-training-1"
    assert shown["dataset_sources"] == ["somebody-else/resnet50-weights"]
    assert shown["enable_internet"] is False
    assert not kaggle.calls


def test_the_script_can_be_written_for_a_look(tmp_path):
    from inference.build_training import main

    assert main(["--output", str(tmp_path / "train_kernel.py")]) == 0
    assert sha256_of(tmp_path / "train_kernel.py")
