import json

import pytest

from inference.artifacts import FORMAT, MANIFEST, checked_file, load_manifest
from train.manifest import record_stage
from utils import InputError

STAGES = ["folds", "tabular", "network", "image_only"]


@pytest.fixture
def folder(tmp_path):
    """An artifact folder in which every stage has run once."""
    for stage in STAGES:
        record(tmp_path, stage, "first")
    return tmp_path


def record(folder, stage, run):
    """Records a stage with one file; returns the manifest."""
    (folder / f"{stage}.csv").write_text(f"{stage} {run}")
    return record_stage(folder, stage, {"run": run}, [f"{stage}.csv"])


def test_every_stage_has_its_section_and_its_files(folder):
    manifest = load_manifest(folder)
    assert manifest["format"] == FORMAT
    assert [manifest[stage] for stage in STAGES] == [{"run": "first"}] * 4
    assert set(manifest["files"]) == {f"{stage}.csv" for stage in STAGES}
    for name in manifest["files"]:
        assert checked_file(folder, manifest, name) == folder / name
    assert {"python", "tensorflow", "keras", "catboost"} <= set(manifest["versions"])


@pytest.mark.parametrize(
    ("stage", "dropped"),
    [
        ("folds", {"tabular", "network", "image_only"}),
        ("tabular", {"network"}),
        ("network", set()),
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
