from pathlib import Path

import pytest

from inference.files import InputError
from train.fusion_options import chosen, imbalance_of, parse

WHERE = ["--data", "d", "--artifacts", "some/artifacts"]


def test_the_head_learns_first_where_the_backbone_has_learned_before():
    assert parse(WHERE).head_epochs == 1
    assert parse([*WHERE, "--weights", "none"]).head_epochs == 0
    assert parse([*WHERE, "--weights", "none", "--head-epochs", "2"]).head_epochs == 2


def test_logs_lie_beside_the_artifacts():
    assert parse(WHERE).logs == Path("some/artifacts-logs")
    assert parse([*WHERE, "--logs", "elsewhere"]).logs == Path("elsewhere")


def test_folders_and_a_restart_do_not_decide_what_is_learned():
    same = chosen(parse(WHERE))
    assert chosen(parse(["--data", "e", "--artifacts", "b", "--logs", "l", "--restart"])) == same
    assert chosen(parse([*WHERE, "--seed", "7"])) != same
    assert {"epochs", "imbalance", "unfreeze", "precision", "mixup", "ema"} < set(same)


def test_the_imbalance_has_its_ratio():
    found = imbalance_of(parse([*WHERE, "--imbalance", "oversample", "--negatives-per-positive", "3"]))
    assert (found.mode, found.per_positive) == ("oversample", 3)
    assert imbalance_of(parse([*WHERE, "--imbalance", "focal", "--focal-gamma", "1"])).gamma == 1


@pytest.mark.parametrize(
    "option", ["--epochs", "--batch-size", "--learning-rate", "--negatives-per-positive", "--focal-gamma"]
)
def test_an_option_out_of_range_is_named(option):
    with pytest.raises(InputError, match=f"{option} 0.* must be above zero"):
        parse([*WHERE, option, "0"])


@pytest.mark.parametrize(
    ("option", "value"), [("--ema", "1"), ("--label-smoothing", "-0.1"), ("--mixup", "-1"), ("--head-epochs", "-1")]
)
def test_a_share_out_of_range_is_named(option, value):
    with pytest.raises(InputError, match=f"{option} {value}"):
        parse([*WHERE, f"{option}={value}"])


@pytest.mark.parametrize("half", [["--archives", "folder"], ["--archives-mode", "joint"]])
def test_archives_and_their_mode_go_together(half):
    with pytest.raises(InputError, match=r"go together; give both or none \(modes: pretrain, joint\)"):
        parse([*WHERE, *half])


def test_archives_teach_nothing_to_a_network_that_does_not_see():
    with pytest.raises(InputError, match="--inputs tabular sees nothing"):
        parse([*WHERE, "--archives", "folder", "--archives-mode", "joint", "--inputs", "tabular"])
