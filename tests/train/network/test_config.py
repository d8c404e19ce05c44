from pathlib import Path

import pytest

from train.network.config import chosen, imbalance_of, parse_fusion_options
from utils import InputError

WHERE = ["--data", "d", "--artifacts", "some/artifacts"]


def test_the_head_learns_first_where_the_backbone_has_learned_before():
    assert parse_fusion_options(WHERE).head_epochs == 1
    assert parse_fusion_options([*WHERE, "--weights", "none"]).head_epochs == 0
    assert parse_fusion_options([*WHERE, "--weights", "none", "--head-epochs", "2"]).head_epochs == 2


def test_logs_lie_beside_the_artifacts():
    assert parse_fusion_options(WHERE).logs == Path("some/artifacts-logs")
    assert parse_fusion_options([*WHERE, "--logs", "elsewhere"]).logs == Path("elsewhere")


def test_folders_and_a_restart_do_not_decide_what_is_learned():
    same = chosen(parse_fusion_options(WHERE))
    assert chosen(parse_fusion_options(["--data", "e", "--artifacts", "b", "--logs", "l", "--restart"])) == same
    assert chosen(parse_fusion_options([*WHERE, "--seed", "7"])) != same
    assert {"epochs", "imbalance", "unfreeze", "precision", "mixup", "ema"} < set(same)


def test_the_imbalance_has_its_ratio():
    found = imbalance_of(parse_fusion_options([*WHERE, "--imbalance", "oversample", "--negatives-per-positive", "3"]))
    assert (found.mode, found.per_positive) == ("oversample", 3)
    assert imbalance_of(parse_fusion_options([*WHERE, "--imbalance", "focal", "--focal-gamma", "1"])).gamma == 1


@pytest.mark.parametrize(
    "option", ["--epochs", "--batch-size", "--learning-rate", "--negatives-per-positive", "--focal-gamma"]
)
def test_an_option_out_of_range_is_named(option):
    with pytest.raises(InputError, match=f"{option} 0.* must be above zero"):
        parse_fusion_options([*WHERE, option, "0"])


@pytest.mark.parametrize(
    ("option", "value"), [("--ema", "1"), ("--label-smoothing", "-0.1"), ("--mixup", "-1"), ("--head-epochs", "-1")]
)
def test_a_share_out_of_range_is_named(option, value):
    with pytest.raises(InputError, match=f"{option} {value}"):
        parse_fusion_options([*WHERE, f"{option}={value}"])


@pytest.mark.parametrize("half", [["--archives", "folder"], ["--archives-mode", "joint"]])
def test_archives_and_their_mode_go_together(half):
    with pytest.raises(InputError, match=r"go together; give both or none \(modes: pretrain, joint\)"):
        parse_fusion_options([*WHERE, *half])


def test_archives_teach_nothing_to_a_network_that_does_not_see():
    with pytest.raises(InputError, match="--inputs tabular sees nothing"):
        parse_fusion_options([*WHERE, "--archives", "folder", "--archives-mode", "joint", "--inputs", "tabular"])
