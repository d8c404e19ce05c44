import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pretended_training import pretend

from evaluation.studies.compare import (
    MeanPauc,
    Study,
    Variant,
    compare_networks,
    compare_splits,
    markdown_table,
    own_artifacts,
    refuse_fixed,
    signed,
    split_folds,
    train_variant,
)
from inference.files import sha256_of
from inference.schema import ID, PATIENT, TARGET
from train.manifest import read_manifest, record_stage
from utils import Estimate, InputError, bootstrap_scores

ONE = Variant("one", ("--epochs", "2"), {"options": ["two"]})


@pytest.fixture
def study(synthetic_data, artifacts, tmp_path):
    return Study(synthetic_data, artifacts, tmp_path / "study")


@pytest.fixture
def three(monkeypatch):
    """Three variants, whose trainings are pretended."""
    pretend(monkeypatch, [])
    return [Variant(name, ("--epochs", "2"), {"options": name}) for name in ("first", "second", "third")]


def test_the_mean_over_splits_is_paired_on_the_same_resamples():
    rng = np.random.default_rng(0)
    labels, patients, noise = np.arange(60) % 5 == 0, np.arange(60) // 4, rng.normal(size=(2, 60))
    table, means = compare_splits(labels, patients, {"base": list(noise), "better": [split + labels for split in noise]})
    assert list(table.scores) == ["base 0", "base 1", "better 0", "better 1"]
    assert means["base"].values == tuple(table.scores[f"base {number}"].pauc.value for number in (0, 1))
    draws = {name: (table.paucs[f"{name} 0"] + table.paucs[f"{name} 1"]) / 2 for name in means}
    found = means["better"].minus(means["base"])
    assert found.value == pytest.approx(np.mean(means["better"].values) - np.mean(means["base"].values))
    assert [found.low, found.high] == pytest.approx(np.percentile(draws["better"] - draws["base"], [2.5, 97.5]))
    assert MeanPauc.of([(table, "base 1")]).estimate == table.scores["base 1"].pauc


def test_the_folds_of_a_split_have_no_holdout(metadata):
    fold = split_folds(metadata, 3, 1)
    assert set(fold) == {0, 1, 2}
    assert metadata.groupby(fold)[PATIENT].unique().explode().is_unique


def test_own_artifacts_are_folds_and_tabular_logits_alone(artifacts, tmp_path):
    own = own_artifacts(artifacts, tmp_path / "own")
    assert {path.name for path in own.iterdir()} == {"folds.csv", "oof_tabular.csv", "manifest.json"}
    for name in ("folds.csv", "oof_tabular.csv"):
        assert sha256_of(own / name) == sha256_of(artifacts / name) == read_manifest(own)["files"][name]
    assert read_manifest(own)["folds"] == read_manifest(artifacts)["folds"]
    record_stage(own, "network", {"of": "a training"}, [])
    own_artifacts(artifacts, own)
    assert read_manifest(own)["network"] == {"of": "a training"}  # an existing manifest is kept


def test_artifacts_of_another_training_are_not_mixed_in(artifacts, tmp_path):
    other = shutil.copytree(artifacts, tmp_path / "other")
    own_artifacts(artifacts, tmp_path / "own")
    (tmp_path / "own" / "folds.csv").write_text("other")
    with pytest.raises(InputError, match=r"own/folds\.csv is from another training .*give another --out"):
        own_artifacts(other, tmp_path / "own")


def test_a_finished_training_is_kept_with_its_request_and_time(study, monkeypatch):
    commands, folder, clock = [], study.out / "one", iter([100.0, 190.0])
    pretend(monkeypatch, commands)
    # The module's name alone: threads of a cluster that another test started read the clock, too.
    monkeypatch.setattr("evaluation.studies.compare.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert train_variant(study, ONE) == 90
    assert commands == [["--data", str(study.data), "--artifacts", str(folder), "--epochs", "2"]]
    finished = json.loads((folder / "seconds.json").read_text())
    assert (finished["request"], finished["seconds"]) == ({"options": ["two"]}, 90.0)
    assert train_variant(study, ONE) == 90
    assert len(commands) == 1
    with pytest.raises(InputError, match=r"one holds a training with other options \(.*'two'.*\); give another --out"):
        train_variant(study, Variant("one", ("--epochs", "3"), {"options": ["three"]}))


def test_a_finished_training_on_data_of_other_content_is_refused(study, monkeypatch, tmp_path):
    pretend(monkeypatch, [])
    data = shutil.copytree(study.data, tmp_path / "data")
    weights = tmp_path / "own.weights.h5"
    weights.write_text("1")
    study = replace(study, data=data, more=(f"--weights={weights}",))
    train_variant(study, ONE)
    named = {weights: "--weights", data / "train-metadata.csv": "--data: train", data / "train-image.hdf5": "--data: images"}
    for path, name in named.items():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"2")
        with pytest.raises(InputError, match=f"another content of {name}"):
            train_variant(study, ONE)
        path.write_bytes(content)
    train_variant(study, ONE)
    monkeypatch.chdir(tmp_path)
    train_variant(replace(study, data=Path("data"), more=("--weights", "own.weights.h5")), ONE)


def test_a_record_by_paths_counts_where_the_content_is_the_same(study, monkeypatch):
    pretend(monkeypatch, [])
    train_variant(study, ONE)
    record = study.out / "one" / "seconds.json"
    known = json.loads(record.read_text())
    hashes = {f"elsewhere/{number}": sha256 for number, sha256 in enumerate(known["inputs"].values())}
    record.write_text(json.dumps(known | {"inputs": hashes}))
    assert train_variant(study, ONE) == known["seconds"]
    for less in (dict(list(hashes.items())[1:]), {"--weights": "0"} | hashes):
        record.write_text(json.dumps(known | {"inputs": less}))
        with pytest.raises(InputError, match="another content of --data"):
            train_variant(study, ONE)


def test_a_training_that_fails_is_not_taken_for_finished(study, monkeypatch):
    def fail(arguments):
        raise InputError("no images")

    monkeypatch.setattr("evaluation.studies.compare.train_fusion", fail)
    with pytest.raises(InputError, match="no images"):
        train_variant(study, ONE)
    commands = []
    pretend(monkeypatch, commands)
    train_variant(study, ONE)
    assert len(commands) == 1


def test_a_kept_training_must_be_of_the_same_tabular_logits(study, monkeypatch):
    pretend(monkeypatch, [])
    train_variant(study, ONE)
    (study.artifacts / "oof_tabular.csv").write_text("other")
    record_stage(study.artifacts, "tabular", {}, ["oof_tabular.csv"])
    with pytest.raises(InputError, match=r"one/oof_tabular\.csv is from another training"):
        train_variant(study, ONE)


def test_all_are_compared_on_the_lesions_whose_crop_every_network_scored(study, three):
    compare_networks(study, three)
    folders = [variant.folder(study) for variant in three]
    third = pd.read_csv(folders[2] / "oof_fusion.csv")
    third.loc[7, "image_scored"] = 0
    third.iloc[::-1].to_csv(folders[2] / "oof_fusion.csv", index=False)  # the order of rows does not matter
    found = compare_networks(study, three)
    assert list(found.table.scores) == ["tabular", "first", "second", "third"]
    oof = third.drop([3, 7])
    patients = pd.read_csv(study.artifacts / "folds.csv").set_index(ID)[PATIENT].loc[oof[ID]]
    networks = {each.name: oof["tabular"] + number * oof[TARGET] for number, each in enumerate(three, 1)}
    assert found.table == bootstrap_scores(oof[TARGET], patients, {"tabular": oof["tabular"]} | networks)
    assert found.table.rows == len(oof) == len(third) - 2


def test_the_markdown_shows_scores_differences_and_minutes(study, three, monkeypatch):
    clock = iter([0, 90, 0, 30, 0, 6])
    monkeypatch.setattr("evaluation.studies.compare.time", SimpleNamespace(monotonic=lambda: next(clock)))
    found = compare_networks(study, three)
    table = found.table
    lines = found.as_markdown(columns={"epochs": {"first": "2", "third": "7"}}).splitlines()
    assert f"{table.rows} lesions with an image, {table.malignant} malignant, {table.patients} patients" in lines[0]
    assert lines[2] == "| variant | epochs | pAUC | 95 % interval | minus first, paired | minutes |"
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [row[0] for row in cells] == ["tabular", "first", "second", "third"]
    assert [row[1] for row in cells] == ["", "2", "", "7"]
    for row, score in zip(cells, table.scores.values(), strict=True):
        assert row[2:4] == [f"{score.pauc.value:.4f}", f"{score.pauc.low:.4f} to {score.pauc.high:.4f}"]
    differences = [signed(table.difference(name, "first")) for name in ("second", "third")]
    assert [row[4] for row in cells] == ["", "", *differences]
    assert [row[5] for row in cells] == ["", "1.5", "0.5", "0.1"]


def test_trainings_by_other_code_or_versions_are_named_below_the_table(study, three):
    assert compare_networks(study, three).note == ""
    for variant, code, keras in zip(three, "aab", "334", strict=True):
        path = variant.folder(study) / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["made_with"]["network:fusion"] = {"code": code * 64}
        path.write_text(json.dumps(manifest | {"versions": {"keras": keras}}))
    found = compare_networks(study, three)
    assert " third: keras 4, code bbbbbbbb; the others: keras 3, code aaaaaaaa." in found.note
    assert found.as_markdown().endswith(found.note)
    assert compare_networks(study, three[:2]).note == ""


def test_a_difference_shows_its_signs():
    assert signed(Estimate(0.00124, -0.0003, 0.01)) == "+0.0012 [-0.0003, +0.0100]"


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_table(["name", "value"], [["a|b", "1"]]) == "| name | value |\n| --- | ---: |\n| a\\|b | 1 |"


@pytest.mark.parametrize("word", ["--inputs", "--inputs=image", "--inp", "--epochs=3", "--epoc"])
def test_what_a_study_sets_is_refused_in_every_spelling(word):
    with pytest.raises(InputError, match=rf"^'{word}' cannot be given: .* --epochs, --inputs "):
        refuse_fixed(["--weights", "none", word, "3"], ("--epochs", "--inputs"))


def test_other_options_pass():
    words = ["--image-size", "32", "--weights=none", "epochs", "--", "-3", "--archives-epochs", "3"]
    refuse_fixed(words, ("--epochs", "--inputs"))
