"""`make publish` with the real CLI against the stand-in: the files sent, the refusals, and that it can be run again."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from kaggle_stand_in import USER, refuse

from inference.artifacts import FORMAT
from inference.files import sha256_of
from kaggle_cli import client as cli
from kaggle_cli.kernels import dataset_slug, read_metadata
from kaggle_cli.publish import METADATA, TITLE, main, staged
from utils import InputError

SLUG = "slice-3d-fusion-artifacts"
FAST = ["--poll", "0.05"]


@pytest.fixture
def known(monkeypatch):
    """Saves the call that asks the CLI for the user's name."""
    monkeypatch.setattr(cli, "user_name", lambda dry_run=False: USER)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """What this test finds or misses there is its own, whatever else runs on this machine."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def artifacts(tmp_path):
    """A small artifact folder, with things in it that are not for publishing."""
    folder = tmp_path / "artifacts"
    (folder / ".fusion-0123456789ab").mkdir(parents=True)
    (folder / ".fusion-0123456789ab" / "fold0.csv").write_text("row,logits\n0,1\n")
    (folder / "stray.txt").write_text("not named by the manifest")
    (folder / "folds.csv").write_text("isic_id,patient_id,target,fold\nISIC_1,IP_1,0,0\n")
    (folder / "tabular_fold0_seed0.cbm").write_bytes(bytes(range(256)) * 4000)
    (folder / "fusion_fold0.weights.h5").write_bytes(b"weights")
    write_manifest(folder, ["folds.csv", "tabular_fold0_seed0.cbm", "fusion_fold0.weights.h5"])
    return folder


def write_manifest(folder, names, **changed):
    content = {"format": FORMAT, "files": {name: sha256_of(folder / name) for name in names}}
    content |= {"tabular": {"scores": {"pauc": 0.1576}}, "network": {"scores": {"final": {"pauc": 0.1694}}}}
    (folder / "manifest.json").write_text(json.dumps(content | changed))


def named(folder):
    """What the manifest names, and itself: name -> bytes."""
    names = [*json.loads((folder / "manifest.json").read_text())["files"], "manifest.json"]
    return {name: (folder / name).read_bytes() for name in names}


def test_the_first_publish_creates_a_private_dataset_and_the_next_a_version(kaggle, artifacts, capfd):
    before = sorted(artifacts.rglob("*"))
    kaggle.processing = ["BLOBS_RECEIVED"]
    assert main(["--artifacts", str(artifacts), *FAST]) == 0
    (request,) = kaggle.asked("CreateDataset")
    expected = {"ownerSlug": USER, "slug": SLUG, "title": TITLE, "isPrivate": True, "licenseName": "CC-BY-NC-4.0"}
    assert request | expected == request
    assert kaggle.datasets[SLUG][0]["files"] == named(artifacts)
    assert sorted(artifacts.rglob("*")) == before
    assert not list(Path(tempfile.gettempdir()).glob("kaggle-publish-*"))
    printed = capfd.readouterr().out
    assert "private dataset somebody/slice-3d-fusion-artifacts: 4 files, 1.0 MB" in printed
    assert "100%" in printed  # the CLI's own bar
    assert "blobs_received" in printed
    assert f"{USER}/{SLUG} version 1: 4 files; next: make push" in printed

    (artifacts / "fusion_fold0.weights.h5").write_bytes(b"better weights")
    write_manifest(artifacts, ["folds.csv", "tabular_fold0_seed0.cbm", "fusion_fold0.weights.h5"])
    assert main(["--artifacts", str(artifacts), *FAST]) == 0
    (request,) = kaggle.asked("CreateDatasetVersion")
    assert request["datasetSlug"] == SLUG
    assert "out of fold: tabular pAUC 0.1576, final pAUC 0.1694" in request["body"]["versionNotes"]
    assert kaggle.datasets[SLUG][1]["files"] == named(artifacts)
    assert "version 2: 4 files; next: make push" in capfd.readouterr().out


def test_a_dataset_that_stays_in_processing_is_waited_for_by_the_next_run(kaggle, known, artifacts, capfd):
    kaggle.processing = ["BLOBS_RECEIVED"] * 3
    with pytest.raises(InputError, match="is still blobs_received, version 1 after --wait 0 minutes"):
        main(["--artifacts", str(artifacts), *FAST, "--wait", "0"])
    assert main(["--artifacts", str(artifacts), *FAST]) == 0
    printed = capfd.readouterr().out
    assert "an earlier version is still being processed" in printed
    assert "version 1 holds these artifacts already; next: make push" in printed
    assert len(kaggle.datasets[SLUG]) == 1


def test_a_file_that_did_not_arrive_is_a_failure_and_the_next_run_sends_it(kaggle, known, artifacts):
    kaggle.refuse_upload = {"fusion_fold0.weights.h5"}
    with pytest.raises(InputError, match=r"'Upload unsuccessful: fusion_fold0\.weights\.h5'"):
        main(["--artifacts", str(artifacts), *FAST])
    assert "fusion_fold0.weights.h5" not in kaggle.datasets[SLUG][0]["files"]  # the CLI made the dataset all the same
    kaggle.refuse_upload = set()
    assert main(["--artifacts", str(artifacts), *FAST]) == 0
    assert kaggle.datasets[SLUG][1]["files"] == named(artifacts)


def test_files_that_arrived_before_a_failure_are_not_sent_again(kaggle, known, artifacts):
    kaggle.answers["CreateDataset"] = refuse(500, "Internal error", times=1)
    with pytest.raises(InputError, match=r"Internal error"):
        main(["--artifacts", str(artifacts), *FAST])
    assert len(kaggle.blobs) == 4
    assert main(["--artifacts", str(artifacts), *FAST]) == 0
    assert len(kaggle.blobs) == 4
    assert kaggle.datasets[SLUG][0]["files"] == named(artifacts)


def test_equal_content_of_two_folders_is_published_at_once_and_one_folder_is_not(artifacts, tmp_path):
    other = shutil.copytree(artifacts, tmp_path / "other")
    names = [*named(artifacts)]
    with staged(artifacts, names, "somebody/x") as one, staged(other, names, "somebody/x") as two:
        assert sorted(path.name for path in one.iterdir()) == sorted([*names, METADATA])
        assert (one / "folds.csv").resolve() == (artifacts / "folds.csv").resolve()
        assert (two / "folds.csv").resolve() == (other / "folds.csv").resolve()
        with pytest.raises(InputError, match="is in use by process"), staged(artifacts, names, "somebody/x"):
            pass
        assert one.is_dir()
    with staged(artifacts, names, "somebody/x") as again:
        assert again == one  # by its path the CLI recognises an interrupted upload


def test_a_pause_that_kaggle_requests_is_kept(kaggle, known, artifacts, capfd):
    kaggle.answers["CreateDataset"] = refuse(429, "Too many requests", headers={"Retry-After": "0"}, times=2)
    assert main(["--artifacts", str(artifacts), *FAST]) == 0
    assert capfd.readouterr().out.count("Will retry in") == 2


def test_a_dataset_that_kaggle_does_not_create_or_cannot_process_is_a_failure(kaggle, known, artifacts):
    kaggle.answers["CreateDataset"] = lambda body: {"status": "Error", "error": "Title already in use"}
    with pytest.raises(InputError, match="Dataset creation error: Title already in use'"):
        main(["--artifacts", str(artifacts), *FAST])
    del kaggle.answers["CreateDataset"]
    kaggle.processing = ["FAILED"]
    with pytest.raises(InputError, match="ended with 'failed' for somebody/slice-3d-fusion-artifacts"):
        main(["--artifacts", str(artifacts), *FAST])


# Refused before anything is called


def test_a_file_that_differs_from_the_manifest_is_refused(artifacts):
    (artifacts / "fusion_fold0.weights.h5").write_bytes(b"other")
    with pytest.raises(InputError, match=r"fusion_fold0\.weights\.h5 has SHA-256"):
        main(["--artifacts", str(artifacts)])
    (artifacts / "fusion_fold0.weights.h5").unlink()
    with pytest.raises(InputError, match=r"fusion_fold0\.weights\.h5 is named in manifest\.json and missing"):
        main(["--artifacts", str(artifacts)])


def test_a_folder_without_usable_artifacts_is_refused(artifacts, tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        main(["--artifacts", str(tmp_path)])
    write_manifest(artifacts, ["folds.csv"], format="slice-3d-fusion/0")
    with pytest.raises(InputError, match="'slice-3d-fusion/0'"):
        main(["--artifacts", str(artifacts)])
    (artifacts / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": {}}))
    with pytest.raises(InputError, match="has no tabular models"):
        main(["--artifacts", str(artifacts)])


@pytest.mark.parametrize("name", ["sub/fold.csv", "../folds.csv", "model.pkl", "dataset-metadata.json", "stray.txt"])
def test_a_name_that_cannot_be_published_as_it_is_is_refused(artifacts, name):
    (artifacts / "sub").mkdir()
    for path in (artifacts / name, artifacts / "folds.csv"):
        path.write_text("content")
    write_manifest(artifacts, [name])
    with pytest.raises(InputError, match=r"names '.*'; artifacts lie flat"):
        main(["--artifacts", str(artifacts)])


def test_a_dry_run_lists_what_would_be_sent_and_calls_nothing(kaggle, artifacts, capsys):
    assert main(["--artifacts", str(artifacts), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "OWNER/slice-3d-fusion-artifacts" in printed
    assert "$ kaggle datasets create -p STAGING -t" in printed
    assert all(f"  {name}\n" in printed for name in named(artifacts))
    assert "stray" not in printed
    assert not kaggle.calls


def test_the_names_are_those_that_kaggle_makes_from_the_titles():
    assert dataset_slug() == SLUG == TITLE.lower().replace(" ", "-")
    assert read_metadata().owned_by(USER).id == f"{USER}/slice-3d-fusion-kernel"
    with pytest.raises(InputError, match="the title 'Another title' becomes 'another-title' on Kaggle"):
        replace(read_metadata(), title="Another title").owned_by(USER)
