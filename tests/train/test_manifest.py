import json
import shutil
from contextlib import suppress

import pytest
from failing_files import Killed, stop_everywhere, stopping_at
from pretended_stages import FILES, read_set, run_stage, values

from inference.artifacts import FORMAT, MANIFEST, checked_file, load_manifest
from inference.submission import main
from train.manifest import NETWORKS, record_stage, stage
from utils import InputError

STAGES = ["folds", "tabular", "network", "stacking", "image_only"]


@pytest.fixture
def folder(tmp_path):
    """An artifact folder in which every stage has run once."""
    for name in STAGES:
        record(tmp_path, name, "first")
    return tmp_path


def record(folder, name, run):
    """Records a stage with one file; returns the manifest."""
    (folder / f"{name}.csv").write_text(f"{name} {run}")
    return record_stage(folder, name, {"run": run}, [f"{name}.csv"])


def test_every_stage_has_its_section_and_its_files(folder):
    manifest = load_manifest(folder)
    assert manifest["format"] == FORMAT
    assert [manifest[stage] for stage in STAGES] == [{"run": "first"}] * 5
    assert set(manifest["files"]) == {f"{stage}.csv" for stage in STAGES}
    for name in manifest["files"]:
        assert checked_file(folder, manifest, name) == folder / name
    assert {"python", "tensorflow", "keras", "catboost"} <= set(manifest["versions"])


@pytest.mark.parametrize(
    ("stage", "dropped"),
    [
        ("folds", {"tabular", "network", "stacking", "image_only"}),
        ("tabular", {"network", "stacking"}),
        ("network", {"stacking"}),
        ("stacking", set()),
        ("image_only", set()),
    ],
)
def test_a_stage_drops_what_was_made_from_it_and_keeps_the_rest(folder, stage, dropped):
    manifest = record(folder, stage, "second")
    assert manifest == load_manifest(folder)
    assert {name for name in STAGES if name not in manifest} == dropped
    assert set(manifest["files"]) == {f"{name}.csv" for name in STAGES if name not in dropped}
    assert manifest[stage] == {"run": "second"}
    assert all(manifest[name] == {"run": "first"} for name in STAGES if name not in {stage, *dropped})
    for name in manifest["files"]:
        checked_file(folder, manifest, name)
    for name in dropped:
        with pytest.raises(InputError, match="does not name"):
            checked_file(folder, manifest, f"{name}.csv")


def test_files_that_a_stage_no_longer_writes_are_removed(folder):
    (folder / "other.csv").write_text("x")
    manifest = record_stage(folder, "image_only", {}, ["other.csv"])
    assert "other.csv" in manifest["files"]
    assert "image_only.csv" not in manifest["files"]


def test_a_file_changed_after_its_stage_is_not_recorded_by_the_next_stage(folder):
    (folder / "folds.csv").write_text("changed by hand")
    manifest = record(folder, "tabular", "second")
    with pytest.raises(InputError, match=r"folds\.csv has SHA-256"):
        checked_file(folder, manifest, "folds.csv")


def test_a_manifest_of_another_format_is_not_written_over(folder):
    (folder / MANIFEST).write_text(json.dumps({"format": "slice-3d-fusion/0"}))
    with pytest.raises(InputError, match="slice-3d-fusion/0"):
        record(folder, "tabular", "second")
    assert json.loads((folder / MANIFEST).read_text()) == {"format": "slice-3d-fusion/0"}


# A stage as a whole


@pytest.fixture
def trained_set(tmp_path):
    """``make(number)``: an artifact folder in which every pretended stage has run, and its input file."""

    def make(number=0):
        artifacts = tmp_path / f"artifacts{number}"
        artifacts.mkdir()
        data = tmp_path / "data.csv"
        data.write_text("first")
        for name in STAGES:
            run_stage(artifacts, name, 1, data)
        return artifacts

    return make


@pytest.mark.parametrize(
    ("stage_name", "lost"),
    [
        ("folds", {"tabular", "network", "stacking", "image_only"}),
        ("tabular", {"network", "stacking"}),
        ("network", {"stacking"}),  # made in minutes
        ("stacking", set()),
    ],
)
def test_networks_are_dropped_on_request_only(trained_set, tmp_path, capsys, stage_name, lost):
    artifacts, data = trained_set(), tmp_path / "data.csv"
    before = read_set(artifacts)
    if lost & set(NETWORKS):
        with pytest.raises(InputError, match="--replace") as caught:
            run_stage(artifacts, stage_name, 2, data)
        assert all(name in str(caught.value) for name in lost)
        assert all(file in str(caught.value) for name in lost for file in FILES[name])
        assert read_set(artifacts) == before
    assert run_stage(artifacts, stage_name, 2, data, replace=True)
    assert values(read_set(artifacts)) == {name: 1 for name in before if name not in lost} | {stage_name: 2}
    said = capsys.readouterr().out
    assert all(name in said for name in lost)
    gone = {file for name in lost for file in FILES[name]} | ({"b.cbm"} if stage_name == "tabular" else set())
    assert not gone & {path.name for path in artifacts.iterdir()}


@pytest.mark.parametrize("changed", ["value", "input", "code", "file", "replace", "nothing"])
def test_the_same_stage_again_is_done_already(trained_set, tmp_path, changed, monkeypatch, capsys):
    artifacts, data = trained_set(), tmp_path / "data.csv"
    before = (artifacts / "manifest.json").read_bytes()
    if changed == "input":
        data.write_text("second")
    if changed == "file":
        (artifacts / FILES["network"][0]).write_text("damaged")
    if changed == "code":
        monkeypatch.setattr("train.manifest.code_version", lambda module: f"another {module}")
    again = run_stage(artifacts, "network", 2 if changed == "value" else 1, data, replace=changed == "replace")
    assert again == (changed != "nothing")
    why = {"value": "options", "input": "options, inputs", "code": "code"}  # a pretended stage's options quote its input
    assert (f"changed since: {why.get(changed)}\n" in capsys.readouterr().out) == (changed in why)
    assert changed != "nothing" or (artifacts / "manifest.json").read_bytes() == before
    read_set(artifacts)


def test_each_part_of_a_stage_is_done_by_itself(tmp_path):
    def run(part, options):
        with stage(tmp_path, "network") as current:
            if current.is_done(options, part):
                return False
            current.record({})
        return True

    assert [run("a", 1), run("b", 1), run("a", 1), run("b", 1)] == [True, True, False, False]
    assert [run("a", 2), run("b", 1), run("a", 1)] == [True, False, True]


def test_a_folder_of_an_earlier_version_is_trained_again(trained_set, tmp_path):
    artifacts = trained_set()
    manifest = load_manifest(artifacts)
    (artifacts / MANIFEST).write_text(json.dumps(manifest | {"made_with": {"network": "0123"}}))
    assert run_stage(artifacts, "network", 1, tmp_path / "data.csv")


def change_data(artifacts, data):
    data.write_text("changed")


def remove_data(artifacts, data):
    data.unlink()


def change_manifest(artifacts, data):
    manifest = load_manifest(artifacts)
    (artifacts / MANIFEST).write_text(json.dumps(manifest | {"tabular": {"of": "another training"}}))


@pytest.mark.parametrize("change", [change_data, remove_data, change_manifest])
def test_what_changed_while_a_stage_was_at_work_is_not_recorded(trained_set, tmp_path, change):
    artifacts, data = trained_set(), tmp_path / "data.csv"
    with pytest.raises(InputError, match="changed meanwhile"):
        run_stage(artifacts, "network", 2, data, meanwhile=lambda: change(artifacts, data))
    assert load_manifest(artifacts)["network"]["value"] == 1
    assert not [path for path in artifacts.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("full", [False, True])
def test_a_stage_that_is_stopped_at_any_change_leaves_one_whole_set(trained_set, tmp_path, full):
    data = tmp_path / "data.csv"
    found = []
    stops = stop_everywhere(trained_set, lambda folder: run_stage(folder, "tabular", 2, data, replace=True), full)
    for number, folder in stops:
        found.append(values(read_set(folder)))  # as a reader finds it who can repair nothing
        if number % 3 == 0 or full:
            run_stage(folder, "image_only", 2, data)
            assert values(read_set(folder)) == found[-1] | {"image_only": 2}
            assert {path.name for path in folder.iterdir()} == {*load_manifest(folder)["files"], MANIFEST}
        shutil.rmtree(folder)
    old, new = dict.fromkeys(STAGES, 1), {"folds": 1, "tabular": 2, "image_only": 1}
    moment = found.index(new)
    assert found[:moment] == [old] * moment
    assert set(map(str, found[moment:])) == {str(new)}
    assert moment > 4


def test_readers_that_began_before_a_swap_have_to_begin_again(trained_set, tmp_path):
    artifacts = trained_set()
    manifest = load_manifest(artifacts)
    run_stage(artifacts, "tabular", 3, tmp_path / "data.csv", replace=True)
    with pytest.raises(InputError, match="run the same command again"):
        checked_file(artifacts, manifest, "a.cbm")


def test_the_kernel_scores_with_one_whole_set_after_an_interrupted_swap(tabular_only, mounted, tmp_path):
    def submission(folder):
        where = ["--competition", str(mounted), "--artifacts", str(folder), "--output", str(tmp_path / "s.csv")]
        assert main(where) == 0
        return (tmp_path / "s.csv").read_bytes()

    def retrain(folder):
        """The models of the folds change places, and their logits grow by 2."""
        tabular = load_manifest(folder)["tabular"]
        models = tabular["models"]
        moved = [entry | {"prior_correction": entry["prior_correction"] + 2} for entry in models]
        with stage(folder, "tabular", replace=True) as current:
            for entry, source in zip(models, models[::-1], strict=True):
                shutil.copyfile(folder / source["file"], current.folder / entry["file"])
            current.record(tabular | {"models": moved})

    trained = shutil.copytree(tabular_only, tmp_path / "trained")
    before, found = submission(trained), []
    retrain(trained)
    after = submission(trained)
    assert before != after
    for stop in range(9, 40):  # before the commit, and the moves after it
        folder = shutil.copytree(tabular_only, tmp_path / f"stopped{stop}")
        with stopping_at(stop) as changes, suppress(Killed):
            retrain(folder)
        found.append(submission(folder))
        if not changes.stopped:
            break
    assert set(found) == {before, after}
    assert found == sorted(found, key=(before, after).index)
