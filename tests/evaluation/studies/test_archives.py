import json

import pandas as pd
import pytest
from pretended_training import pretend

from evaluation.dry_run import main as dry_run
from evaluation.studies.archives import main
from inference.files import sha256_of
from inference.schema import ID
from train.folds import make_folds
from train.fusion import train_fusion
from train.manifest import read_manifest
from train.tabular import train_tabular
from utils import InputError, bootstrap_scores

NETWORK = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16", "--archives-epochs", "1"]
WAYS = ["none", "pretrain", "joint"]


@pytest.fixture
def command(synthetic_data, artifacts, archive_folder, tmp_path):
    """A study's command line."""
    where = ["--data", str(synthetic_data), "--artifacts", str(artifacts), "--archives", str(archive_folder)]
    return [*where, "--out", str(tmp_path / "study")]


def test_three_trainings_on_the_same_folds_make_the_table(command, artifacts, archive_folder, tmp_path, monkeypatch, capsys):
    commands, study = [], tmp_path / "study"
    pretend(monkeypatch, commands)
    assert main([*command, *NETWORK]) == 0
    assert [arguments[arguments.index("--artifacts") + 1] for arguments in commands] == [str(study / way) for way in WAYS]
    assert "--archives" not in commands[0]
    for way, arguments in zip(WAYS[1:], commands[1:], strict=True):
        assert arguments[4:8] == ["--archives", str(archive_folder), "--archives-mode", way]
    assert all(arguments[-len(NETWORK) :] == NETWORK for arguments in commands)
    for way in WAYS:
        for name in ("folds.csv", "oof_tabular.csv"):
            assert sha256_of(study / way / name) == sha256_of(artifacts / name)
    lines = (study / "archives.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["archives", "pAUC", "95 % interval", "minus none, paired", "minutes"]
    assert [row[0] for row in rows[2:]] == ["tabular", *WAYS]
    folds = pd.read_csv(artifacts / "folds.csv").set_index(ID)
    oof = pd.read_csv(study / "joint" / "oof_fusion.csv").drop(3)  # the lesion without an image score
    networks = {"none": oof["tabular"] + oof["target"], "joint": oof["network"]}
    expected = bootstrap_scores(oof["target"], folds["patient_id"].loc[oof[ID]], networks)
    gain = expected.difference("joint", "none")
    assert rows[-1][1] == f"{expected.scores['joint'].pauc.value:.4f}"
    assert rows[-1][3] == f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    assert f"joint {rows[-1][3]}" in capsys.readouterr().out.splitlines()[-1]
    main([*command, *NETWORK])  # all is kept
    assert len(commands) == 3
    with pytest.raises(InputError, match=r"none holds a training with other options .*give another --out"):
        main([*command, *NETWORK, "--seed", "3"])


@pytest.mark.parametrize("more", [["--archives-mode", "joint"], ["--inputs", "image"]])
def test_what_the_study_sets_cannot_be_given(command, more):
    with pytest.raises(InputError, match="leave it out"):
        main([*command, *more])


def test_an_archive_folder_must_be_one(command, tmp_path):
    command[command.index("--archives") + 1] = str(tmp_path)
    with pytest.raises(InputError, match=r"has no train-metadata\.csv; make it with train\.archives"):
        main(command)


def test_the_main_path_runs_on_an_archive_folder_by_itself(archive_folder, eager, tmp_path):
    """Folds, tabular, fusion, kernel and dry run, with the columns that an archive has."""
    artifacts, parameters = tmp_path / "artifacts", tmp_path / "few_trees.json"
    parameters.write_text('{"iterations": 20}')
    where = ["--data", str(archive_folder), "--artifacts", str(artifacts)]
    make_folds([*where, "--folds", "2", "--holdout", "0.25"])
    train_tabular([*where, "--seeds", "1", "--params", str(parameters)])
    train_fusion([*where, "--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16"])
    assert dry_run([*where, "--report", str(tmp_path / "report")]) == 0
    features = read_manifest(artifacts)["tabular"]["features"]
    assert {"age_approx", "sex", "anatom_site_general", "patient_lesions"} <= set(features)
    assert not {"diagnosis", "source", "target", "lesion_id"} & set(features)  # they reveal the label
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    holdout = pd.read_csv(artifacts / "folds.csv").query("fold == -1")
    assert run["image_scored"] == len(holdout)
