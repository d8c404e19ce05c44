import json

import pandas as pd
import pytest
from pretended_training import pretend, without_networks

from evaluation.dry_run import main as dry_run
from evaluation.studies.archives import WAYS, main
from evaluation.studies.compare import as_markdown, compare
from inference.files import sha256_of
from inference.schema import ID
from train.folds import make_folds
from train.fusion import train_fusion
from train.manifest import read_manifest
from train.tabular import train_tabular
from utils import InputError, bootstrap_scores

NETWORK = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16", "--archives-epochs", "1"]


@pytest.fixture
def artifacts(synthetic_data, tmp_path):
    return without_networks(synthetic_data, tmp_path / "artifacts")


@pytest.fixture
def command(synthetic_data, artifacts, archive_folder, tmp_path):
    """A study's command line."""
    where = ["--data", str(synthetic_data), "--artifacts", str(artifacts), "--archives", str(archive_folder)]
    return [*where, "--out", str(tmp_path / "study")]


def test_three_trainings_on_the_same_folds_make_the_table(command, artifacts, archive_folder, tmp_path, monkeypatch, capsys):
    asked = []
    pretend(monkeypatch, asked)
    assert main([*command, *NETWORK]) == 0
    study = tmp_path / "study"
    assert [arguments[arguments.index("--artifacts") + 1] for arguments in asked] == [str(study / way) for way in WAYS]
    assert "--archives" not in asked[0]
    for way, arguments in zip(WAYS[1:], asked[1:], strict=True):
        assert arguments[4:8] == ["--archives", str(archive_folder), "--archives-mode", way]
    assert all(arguments[-len(NETWORK) :] == NETWORK for arguments in asked)
    for way in WAYS:
        for name in ("folds.csv", "oof_tabular.csv"):
            assert sha256_of(study / way / name) == sha256_of(artifacts / name)
    text = (study / "archives.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:]
    assert rows == ["tabular alone", "none", "pretrain", "joint"]
    assert "| archives | pAUC | 95 % interval | less without, paired | minutes |" in text.splitlines()
    assert "less without archives: pretrain +" in capsys.readouterr().out.splitlines()[-1]
    main([*command, *NETWORK])  # all is kept
    assert len(asked) == 3
    with pytest.raises(InputError, match=r"none holds a training with other options .*give another --out"):
        main([*command, *NETWORK, "--seed", "3"])


def test_the_table_is_of_lesions_that_a_network_has_seen(command, artifacts, tmp_path, monkeypatch):
    pretend(monkeypatch, [])
    main([*command, *NETWORK])
    folders = {way: tmp_path / "study" / way for way in WAYS}
    folds = pd.read_csv(artifacts / "folds.csv").set_index(ID)
    table = compare(folders)
    oof = pd.read_csv(folders["joint"] / "oof_fusion.csv").drop(3)
    assert len(oof) == table.rows
    expected = bootstrap_scores(oof["target"], folds["patient_id"].loc[oof[ID]], {"joint": oof["network"]})
    assert table.scores["joint"] == expected.scores["joint"]
    text = as_markdown(table, dict.fromkeys(WAYS, 90.0), label="archives", against="without")
    gain = table.difference("joint", "none")
    assert f"| {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] | 1.5 |" in text.splitlines()[-1]


@pytest.mark.parametrize("more", [["--archives-mode", "joint"], ["--inputs", "image"]])
def test_what_the_study_decides_cannot_be_asked_for(command, more):
    with pytest.raises(InputError, match="leave them out"):
        main([*command, *more])


def test_an_archive_folder_must_be_one(command, tmp_path):
    command[command.index("--archives") + 1] = str(tmp_path)
    with pytest.raises(InputError, match=r"has no train-metadata\.csv; make it with train\.archives"):
        main(command)


def test_the_whole_pipeline_runs_on_an_archive_folder_by_itself(archive_folder, eager, tmp_path):
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
    assert not {"diagnosis", "source", "target", "lesion_id"} & set(features)  # they tell the label
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    holdout = pd.read_csv(artifacts / "folds.csv").query("fold == -1")
    assert run["scored by image"] == len(holdout)
