"""`make train-on-kaggle` with the real CLI against the stand-in."""

import json
from dataclasses import asdict

import pytest
from kaggle_stand_in import USER

from inference.artifacts import FORMAT
from inference.build_kernel import build_training
from kaggle_cli import client, push, train_remote
from kaggle_cli.entrypoint import REPORT, Settings
from train.network.config import MAIN_PATH_NETWORK
from utils import InputError

DEFAULT = asdict(Settings())
FAST = ["--poll", "0.05"]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Saves the call that asks the CLI for the user's name."""
    monkeypatch.setattr(client, "user_name", lambda dry_run=False: USER)


def leave(kaggle, part, **report):
    """Has the run of a part leave a report, and a manifest with networks if it is finished."""
    report = {"finished": False, "settings": DEFAULT, "folds": 2, "trouble": "", "stages": []} | report
    manifest = {"format": FORMAT, "files": {}, "tabular": {}} | ({"network": {}} if report["finished"] else {})
    files = {REPORT: json.dumps(report).encode(), "manifest.json": json.dumps(manifest).encode()}
    kaggle.outputs[f"{USER}/slice-3d-fusion-training-{part}"] = files


def test_a_training_in_two_parts_and_the_kernel_that_attaches_it(kaggle, tmp_path, capsys):
    settings = DEFAULT | {"fusion": [["--epochs", "8"], ["--name", "second"]], "weights_dataset": "somebody-else/weights"}
    leave(kaggle, 1, settings=settings, trouble="11 hours are over")
    dataset = ["--weights-dataset", "somebody-else/weights"]
    assert train_remote.main(["--fusion", "--epochs 8", "--fusion", "--name second", *dataset, *FAST]) == 0
    assert "11 hours are over, 2 fold networks\nnext: make train-on-kaggle PART=2" in capsys.readouterr().out
    (request,) = kaggle.pushed[f"{USER}/slice-3d-fusion-training-1"]
    assert request["text"] == build_training(settings, 11.0)
    assert request["newTitle"] == "SLICE-3D fusion training 1"
    assert request["enableInternet"] is False
    assert request["machineShape"] == "NvidiaTeslaT4"
    assert request["isPrivate"] is True
    assert request["competitionDataSources"] == ["isic-2024-challenge"]
    assert request["datasetDataSources"] == ["somebody-else/weights"]
    assert "kernelDataSources" not in request

    with pytest.raises(InputError, match="make train-on-kaggle PART=2"):
        push.main(["--source", "training", *FAST])
    leave(kaggle, 2, settings=settings, finished=True, folds=5)
    assert train_remote.main(["--part", "2", *FAST]) == 0
    assert "finished, 5 fold networks; next: make push SOURCE=training PART=2" in capsys.readouterr().out
    (request,) = kaggle.pushed[f"{USER}/slice-3d-fusion-training-2"]
    assert request["text"] == build_training(settings, 11.0)  # the options of part 1
    assert request["datasetDataSources"] == ["somebody-else/weights"]
    assert request["kernelDataSources"] == [f"{USER}/slice-3d-fusion-training-1"]

    with pytest.raises(InputError, match=r"left no submission\.csv"):  # the stand-in's run leaves nothing
        push.main(["--source", "training", "--part", "2", "--output", str(tmp_path / "output"), *FAST])
    (request,) = kaggle.pushed[f"{USER}/slice-3d-fusion-kernel"]
    assert request["kernelDataSources"] == [f"{USER}/slice-3d-fusion-training-2"]
    assert "datasetDataSources" not in request
    assert request["enableInternet"] is False
    with pytest.raises(InputError, match="make push SOURCE=training PART=2"):
        train_remote.main(["--part", "3", *FAST])


def test_a_training_without_options_has_the_network_of_the_main_path_and_the_internet(kaggle):
    leave(kaggle, 1, finished=True)
    assert train_remote.main(FAST) == 0
    (request,) = kaggle.pushed[f"{USER}/slice-3d-fusion-training-1"]
    assert request["text"] == build_training(DEFAULT, 11.0)
    assert DEFAULT["fusion"] == [list(MAIN_PATH_NETWORK)]
    assert request["enableInternet"] is True
    assert "datasetDataSources" not in request


def test_a_part_that_an_error_stopped_or_that_left_nothing_is_a_failure(kaggle, capsys):
    leave(kaggle, 1, trouble="RuntimeError: out of memory")
    kaggle.log = "the traceback"
    with pytest.raises(InputError, match=r"'RuntimeError: out of memory'.*make train-on-kaggle PART=2"):
        train_remote.main(["--fetch", *FAST])
    assert "the traceback" in capsys.readouterr().out
    kaggle.outputs.clear()
    with pytest.raises(InputError, match=r"left no training\.json"):
        train_remote.main(["--fetch", *FAST])
    assert not kaggle.pushed


def test_parts_and_options_that_do_not_fit_are_refused(kaggle):
    with pytest.raises(InputError, match="--part 2"):
        train_remote.main(["--part", "2", "--tabular", "--seeds 5"])
    with pytest.raises(InputError, match="leave out --weights-dataset"):
        train_remote.main(["--part", "2", "--weights-dataset", "somebody-else/weights"])
    with pytest.raises(InputError, match=r"--hours: '12'.*11\.75"):
        train_remote.main(["--hours", "12"])
    kaggle.statuses = [("ERROR", "")]
    with pytest.raises(InputError, match="slice-3d-fusion-training-1 is 'error', not 'complete'"):
        train_remote.main(["--part", "2"])


def test_a_dry_run_shows_the_metadata_and_a_dataset_of_weights_turns_the_internet_off(kaggle, monkeypatch, capsys):
    monkeypatch.undo()
    assert train_remote.main(["--dry-run", "--weights-dataset", "somebody-else/resnet50-weights"]) == 0
    printed = capsys.readouterr().out
    shown = json.loads(printed[printed.index("{\n") : printed.index("\n}") + 2])
    assert shown["id"] == "OWNER/slice-3d-fusion-training-1"
    assert shown["dataset_sources"] == ["somebody-else/resnet50-weights"]
    assert shown["enable_internet"] is False
    assert not kaggle.calls
