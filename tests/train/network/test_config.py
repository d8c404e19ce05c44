import json
from dataclasses import asdict
from pathlib import Path

import pytest

from evaluation.studies.real_recipe import RECIPE
from train.network.config import TrainingConfig, parse_fusion_options
from train.network.sampling import Imbalance
from utils import InputError

WHERE = ["--data", "d", "--artifacts", "some/artifacts"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The current folder, with what these command lines name."""
    monkeypatch.chdir(tmp_path)
    for name in ("d", "e", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "some.h5").touch()


def training(*options):
    return parse_fusion_options([*WHERE, *options])[1]


def test_the_defaults_of_the_command_line_are_those_of_the_dataclass():
    assert training("--weights", "none") == TrainingConfig(weights="none")


def test_every_field_is_kept_by_json():
    config = training("--weights", "some.h5", "--mixup", "0.2", "--deterministic")
    assert TrainingConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("start", [(), ("--weights", "some.h5"), ("--backbone", "efficientnet-lite0")])
def test_the_defaults_for_pretrained_weights_are_the_recipe_for_real_crops(start):
    backbone = ("--backbone", training(*start).backbone)
    assert training(*start) == training(*RECIPE, *backbone, *start)
    assert training(*start, "--mixup", "0").mixup == 0
    assert training(*start).batch_norm == "frozen"


def test_logs_lie_beside_the_artifacts():
    assert parse_fusion_options(WHERE)[0].logs == Path("some/artifacts-logs")
    assert parse_fusion_options([*WHERE, "--logs", "elsewhere"])[0].logs == Path("elsewhere")


def test_decoded_crops_lie_beside_the_artifacts_elsewhere_or_nowhere():
    assert parse_fusion_options(WHERE)[0].cache == Path("some/artifacts-cache").resolve()
    assert parse_fusion_options([*WHERE, "--cache", "elsewhere"])[0].cache == Path("elsewhere").resolve()
    assert parse_fusion_options([*WHERE, "--cache", "none"])[0].cache is None


def test_the_artifact_folder_may_be_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir("folder")
    for name in (".", "../folder", "../d/.."):
        run, _ = parse_fusion_options(["--data", "../d", "--artifacts", name])
        assert run.logs.resolve() == Path(name).resolve().parent / f"{Path(name).resolve().name}-logs"


def test_folders_workers_and_a_restart_do_not_decide_the_results():
    aside = ["--data", "e", "--artifacts", "b", "--logs", "l", "--cache", "c", "--restart", "--jobs", "2"]
    run, config = parse_fusion_options(aside)
    assert config == training()
    assert (run.data, run.restart, run.jobs) == (Path("e"), True, 2)
    assert training("--seed", "7") != config


def test_sampling_has_the_ratio_and_the_focal_exponent():
    assert training("--imbalance", "oversample", "--negatives-per-positive", "3").sampling == Imbalance("oversample", 3)
    focal = training("--imbalance", "focal", "--focal-gamma", "1.5").sampling
    assert focal.focal_exponent() == 1.5
    assert training("--focal-gamma", "1.5").sampling.focal_exponent() == 0


@pytest.mark.parametrize(
    ("option", "values"),
    {
        "--epochs": "0 1e3 nan",
        "--batch-size": "0 1000000",
        "--learning-rate": "0 inf nan -1 1e9",
        "--head-learning-rate": "0 inf nan",
        "--negatives-per-positive": "0 nan 0.01 1e-320",
        "--focal-gamma": "0 inf",
        "--archives-epochs": "0",
        "--ema": "1 -0.1",
        "--label-smoothing": "1 -0.1",
        "--mixup": "-1 inf",
        "--auxiliary": "-1 101 nan",
        "--head-epochs": "-1 0.5",
        "--image-size": "0 31 1000000",
        "--seed": "-1 5000000000",
        "--jobs": "0",
        "--cluster": "localhost",
        "--weights": "nowhere.h5 folder",
        "--archives": "nowhere some.h5",
    }.items(),
)
def test_a_value_that_cannot_be_used_is_named(option, values):
    for value in values.split():
        with pytest.raises(InputError, match=f"{option}: '{value}' "):
            training(f"{option}={value}")


@pytest.mark.parametrize("half", [["--archives", "folder"], ["--archives-mode", "joint"]])
def test_archives_and_their_mode_go_together(half):
    with pytest.raises(InputError, match=r"--archives-mode.*pretrain, joint"):
        training(*half)


def test_archives_need_a_network_with_images():
    with pytest.raises(InputError, match="--inputs tabular"):
        training("--archives", "folder", "--archives-mode", "joint", "--inputs", "tabular")


def test_diagnosis_groups_are_learned_from_crops():
    assert training("--auxiliary", "0.3").auxiliary == 0.3
    with pytest.raises(InputError, match=r"--auxiliary.*--inputs tabular"):
        training("--auxiliary", "0.3", "--inputs", "tabular")
