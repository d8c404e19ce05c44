import json
from dataclasses import asdict
from pathlib import Path

import pytest

from train.network.config import TrainingConfig, parse_fusion_options
from train.network.sampling import Imbalance
from utils import InputError

WHERE = ["--data", "d", "--artifacts", "some/artifacts"]


def training(*options):
    return parse_fusion_options([*WHERE, *options])[1]


def test_the_defaults_of_the_command_line_are_those_of_the_dataclass():
    assert training("--head-epochs", "0") == TrainingConfig()


def test_every_field_is_kept_by_json():
    config = training("--weights", "some.h5", "--mixup", "0.2", "--deterministic")
    assert TrainingConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_the_head_is_trained_first_where_the_backbone_is_pretrained():
    assert training().head_epochs == 1
    assert training("--weights", "none").head_epochs == 0
    assert training("--weights", "none", "--head-epochs", "2").head_epochs == 2


def test_logs_lie_beside_the_artifacts():
    assert parse_fusion_options(WHERE)[0].logs == Path("some/artifacts-logs")
    assert parse_fusion_options([*WHERE, "--logs", "elsewhere"])[0].logs == Path("elsewhere")


def test_folders_workers_and_a_restart_do_not_decide_the_results():
    aside = ["--data", "e", "--artifacts", "b", "--logs", "l", "--restart", "--jobs", "2"]
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
    "option",
    [
        "--epochs",
        "--batch-size",
        "--learning-rate",
        "--head-learning-rate",
        "--negatives-per-positive",
        "--focal-gamma",
        "--archives-epochs",
    ],
)
def test_an_option_out_of_range_is_named(option):
    with pytest.raises(InputError, match=f"{option} 0"):
        training(option, "0")


@pytest.mark.parametrize(
    ("option", "value"), [("--ema", "1"), ("--label-smoothing", "-0.1"), ("--mixup", "-1"), ("--head-epochs", "-1")]
)
def test_a_share_out_of_range_is_named(option, value):
    with pytest.raises(InputError, match=f"{option} {value}"):
        training(f"{option}={value}")


@pytest.mark.parametrize("half", [["--archives", "folder"], ["--archives-mode", "joint"]])
def test_archives_and_their_mode_go_together(half):
    with pytest.raises(InputError, match=r"--archives-mode.*pretrain, joint"):
        training(*half)


def test_archives_need_a_network_with_images():
    with pytest.raises(InputError, match="--inputs tabular"):
        training("--archives", "folder", "--archives-mode", "joint", "--inputs", "tabular")
