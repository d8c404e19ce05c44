import shutil

import pandas as pd
import pytest
from pretended_training import pretend, without_networks

from evaluation.studies.compare import as_markdown, compare, own_artifacts, read_done, refuse_fixed, told, train_variant
from inference.files import sha256_of
from inference.schema import ID, PATIENT, TARGET
from train.manifest import read_manifest, record_stage
from utils import Estimate, InputError, bootstrap_scores


@pytest.fixture
def artifacts(synthetic_data, tmp_path):
    return without_networks(synthetic_data, tmp_path / "artifacts")


@pytest.fixture
def folders(synthetic_data, artifacts, tmp_path, monkeypatch):
    """The folders of three trained variants, "first", "second" and "third"."""
    pretend(monkeypatch, [])
    folders = {name: tmp_path / "study" / name for name in ("first", "second", "third")}
    for name, folder in folders.items():
        train_variant(name, folder, synthetic_data, artifacts, ["--epochs", "2"], {"options": name})
    return folders


def test_own_artifacts_are_folds_and_tabular_scores_alone(artifacts, tmp_path):
    own = own_artifacts(artifacts, tmp_path / "own")
    assert {path.name for path in own.iterdir()} == {"folds.csv", "oof_tabular.csv", "manifest.json"}
    for name in ("folds.csv", "oof_tabular.csv"):
        assert sha256_of(own / name) == sha256_of(artifacts / name) == read_manifest(own)["files"][name]
    assert read_manifest(own)["folds"] == read_manifest(artifacts)["folds"]
    record_stage(own, "network", {"of": "a training"}, [])
    own_artifacts(artifacts, own)
    assert read_manifest(own)["network"] == {"of": "a training"}  # once there, it is not made anew


def test_artifacts_of_another_training_are_not_mixed_in(artifacts, tmp_path):
    other = shutil.copytree(artifacts, tmp_path / "other")
    own_artifacts(artifacts, tmp_path / "own")
    (tmp_path / "own" / "folds.csv").write_text("other")
    with pytest.raises(InputError, match=r"own/folds\.csv is from another training .*give another --out"):
        own_artifacts(other, tmp_path / "own")


def test_a_finished_training_is_kept_with_its_request_and_time(synthetic_data, artifacts, tmp_path, monkeypatch, capsys):
    asked, folder, clock = [], tmp_path / "one", iter([100.0, 190.0])
    pretend(monkeypatch, asked)
    monkeypatch.setattr("evaluation.studies.compare.time.monotonic", lambda: next(clock))
    train_variant("one", folder, synthetic_data, artifacts, ["--epochs", "2"], {"options": ["two"]})
    assert asked == [["--data", str(synthetic_data), "--artifacts", str(folder), "--epochs", "2"]]
    assert read_done(folder) == {"request": {"options": ["two"]}, "seconds": 90.0}
    train_variant("one", folder, synthetic_data, artifacts, ["--epochs", "2"], {"options": ["two"]})
    assert len(asked) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "one: kept from an earlier run"
    with pytest.raises(InputError, match=r"one holds a training with other options \(.*'two'.*\); give another --out"):
        train_variant("one", folder, synthetic_data, artifacts, ["--epochs", "3"], {"options": ["three"]})


def test_a_training_that_fails_is_not_taken_for_finished(synthetic_data, artifacts, tmp_path, monkeypatch):
    def fail(arguments):
        raise InputError("no images")

    monkeypatch.setattr("evaluation.studies.compare.train_fusion", fail)
    with pytest.raises(InputError, match="no images"):
        train_variant("one", tmp_path / "one", synthetic_data, artifacts, [], {})
    asked = []
    pretend(monkeypatch, asked)
    train_variant("one", tmp_path / "one", synthetic_data, artifacts, [], {})
    assert len(asked) == 1


def test_a_kept_training_must_be_of_the_same_tabular_scores(synthetic_data, artifacts, folders):
    (artifacts / "oof_tabular.csv").write_text("other")
    record_stage(artifacts, "tabular", {}, ["oof_tabular.csv"])
    with pytest.raises(InputError, match=r"first/oof_tabular\.csv is from another training"):
        train_variant("first", folders["first"], synthetic_data, artifacts, ["--epochs", "2"], {"options": "first"})


def test_all_are_compared_on_the_lesions_that_every_network_has_seen(artifacts, folders):
    third = pd.read_csv(folders["third"] / "oof_fusion.csv")
    third.loc[7, "image_scored"] = 0
    third.iloc[::-1].to_csv(folders["third"] / "oof_fusion.csv", index=False)  # the order of rows does not matter
    table = compare(folders)
    assert list(table.scores) == ["tabular", "first", "second", "third"]
    oof = third.drop([3, 7])
    patients = pd.read_csv(artifacts / "folds.csv").set_index(ID)[PATIENT].loc[oof[ID]]
    scores = {"tabular": oof["tabular"]} | {name: oof["tabular"] + n * oof[TARGET] for n, name in enumerate(folders, 1)}
    assert table == bootstrap_scores(oof[TARGET], patients, scores)
    assert table.rows == len(oof) == len(third) - 2


def test_the_markdown_tells_scores_differences_and_minutes(folders):
    table = compare(folders)
    seconds = {"first": 90.0, "second": 30.0, "third": 6.0}
    lines = as_markdown(table, seconds, columns={"epochs": {"first": "2", "third": "7"}}).splitlines()
    assert lines[0].startswith(
        f"{table.rows} lesions with an image, {table.malignant} malignant, {table.patients} patients;"
    )
    assert lines[2] == "| variant | epochs | pAUC | 95 % interval | less first, paired | minutes |"
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [row[0] for row in cells] == ["tabular alone", *folders]
    assert [row[1] for row in cells] == ["", "2", "", "7"]
    for row, score in zip(cells, table.scores.values(), strict=True):
        assert row[2:4] == [f"{score.pauc.value:.4f}", f"{score.pauc.low:.4f} to {score.pauc.high:.4f}"]
    assert [row[4] for row in cells] == ["", "", *(told(table.difference(name, "first")) for name in ("second", "third"))]
    assert [row[5] for row in cells] == ["", "1.5", "0.5", "0.1"]
    assert as_markdown(table, seconds, label="archives", against="without").splitlines()[2:4] == [
        "| archives | pAUC | 95 % interval | less without, paired | minutes |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]


def test_a_difference_shows_its_signs():
    assert told(Estimate(0.00124, -0.0003, 0.01)) == "+0.0012 [-0.0003, +0.0100]"


@pytest.mark.parametrize("word", ["--inputs", "--inputs=image", "--inp", "--epochs=3", "--epoc"])
def test_what_a_study_decides_is_refused_in_every_spelling(word):
    with pytest.raises(InputError, match=rf"^--epochs and --inputs are what .* leave them out \(given: '{word}'\)\.$"):
        refuse_fixed(["--weights", "none", word, "3"], ("--epochs", "--inputs"))


def test_other_options_pass():
    refuse_fixed(
        ["--image-size", "32", "--weights=none", "epochs", "--", "-3", "--archives-epochs", "3"], ("--epochs", "--inputs")
    )
