"""`make push` and `make submit` with the real CLI against the stand-in; what was pushed is run, and scores."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from kaggle_stand_in import USER, refuse, standing_in

from evaluation.dry_run import without_network
from inference.build_kernel import ROOT
from inference.schema import TARGET
from inference.submission import main as run_kernel
from kaggle_cli import client, publish, push, submit
from kaggle_cli.kernels import read_metadata, wait_until_run
from kaggle_cli.push import RECORD
from utils import InputError

KERNEL = f"{USER}/slice-3d-fusion-kernel"
DATASET = f"{USER}/slice-3d-fusion-artifacts"
TEST_FILES = ("test-metadata.csv", "test-image.hdf5", "sample_submission.csv")
FAST = ["--poll", "0.05"]
RUN = {"fallbacks": {}, "notes": [], "image_scored": 2, "lesions": 2, "versions": {"python": "3.12.1"}}


def mount(data, artifacts, competition, dataset):
    """Copies the test files and the artifacts, name -> bytes, to where Kaggle mounts them."""
    competition.mkdir(parents=True)
    for name in TEST_FILES:
        shutil.copy(data / name, competition)
    dataset.mkdir(parents=True)
    for name, content in artifacts.items():
        (dataset / name).write_bytes(content)


def run_pushed(text, folder):
    """Runs a pushed text as Kaggle does; returns the files that it leaves, name -> bytes."""
    working = folder / "working"
    working.mkdir(parents=True)
    (folder / "script.py").write_text(text, encoding="utf-8")
    command = [*without_network()[0], sys.executable, "-I", str(folder / "script.py")]
    done = subprocess.run([*command, "--input-root", str(folder / "input")], cwd=working, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in working.iterdir()}


@pytest.fixture(scope="session")
def round_trip(trained, shared_folder):
    """Publish, push and submit, one after the other; the stand-in runs the pushed kernel on the published artifacts.

    ``.calls`` are those of the stand-in, ``.output`` is the folder of the push, ``.printed`` all that was printed.
    """

    def make(folder):
        output = folder / "kaggle-output"
        with pytest.MonkeyPatch.context() as patch, standing_in(folder, patch) as kaggle:
            printed = (folder / "printed.txt").open("w+", encoding="utf-8")
            patch.setattr("sys.stdout", printed)

            def run_on_the_stand_in(body):
                (text,) = (request["text"] for request in kaggle.pushed[KERNEL])
                artifacts = kaggle.datasets["slice-3d-fusion-artifacts"][0]["files"]
                root = folder / "kaggle" / "input"
                mount(trained.data, artifacts, root / "isic-2024-challenge", root / "slice-3d-fusion-artifacts")
                kaggle.output = run_pushed(text, folder / "kaggle")
                del kaggle.answers["GetKernelSessionStatus"]
                return {"status": "RUNNING"}

            kaggle.answers["GetKernelSessionStatus"] = run_on_the_stand_in
            kaggle.files = {"sample_submission.csv": (trained.data / "sample_submission.csv").read_bytes()}
            assert publish.main(["--artifacts", str(trained.artifacts), *FAST]) == 0
            assert push.main(["--data", str(folder / "no-data-here"), "--output", str(output), *FAST]) == 0
            kaggle.scores = ["PENDING"]
            assert submit.main(["--output", str(output), *FAST]) == 0
            printed.close()
            (folder / "calls.json").write_text(json.dumps(kaggle.calls))

    folder = shared_folder("round_trip", make)
    calls = json.loads((folder / "calls.json").read_text())
    printed = (
        (folder / "printed.txt")
        .read_text(encoding="utf-8")
        .replace(str(folder.with_name("unfinished-round_trip")), str(folder))
    )
    asked = {method: [body for name, body in calls if name == method] for method, _ in calls}
    return SimpleNamespace(asked=asked, output=folder / "kaggle-output", printed=printed)


def test_the_pushed_text_is_the_committed_kernel_byte_for_byte(round_trip):
    (request,) = round_trip.asked["SaveKernel"]
    assert request["text"].encode("utf-8") == (ROOT / "kernel.py").read_bytes()


def test_the_pushed_metadata_is_the_committed_one_with_name_and_version(round_trip):
    (request,) = round_trip.asked["SaveKernel"]
    del request["text"]
    assert request == {
        "slug": KERNEL,
        "newTitle": "SLICE-3D fusion kernel",
        "language": "python",
        "kernelType": "script",
        "isPrivate": True,
        "enableGpu": True,
        "enableTpu": False,
        "enableInternet": False,
        "machineShape": "NvidiaTeslaT4",
        "datasetDataSources": [f"{DATASET}/1"],
        "competitionDataSources": ["isic-2024-challenge"],
    }
    committed = json.loads((ROOT / "kernel-metadata.json").read_text())
    assert committed["id"] == "OWNER/slice-3d-fusion-kernel"
    assert USER not in json.dumps(committed)


def test_the_output_is_checked_printed_and_recorded(round_trip):
    submission = pd.read_csv(round_trip.output / "submission.csv")
    assert len(submission) > 0
    assert np.isfinite(submission[TARGET]).all()
    assert (
        f"{round_trip.output}/submission.csv: the {len(submission)} rows of sample_submission.csv, scores "
        in round_trip.printed
    )
    assert (
        f"image_scored {len(submission)} of {len(submission)}, fall-backs: none, versions: python 3." in round_trip.printed
    )
    assert f"{KERNEL} version 1 is checked; next: make submit" in round_trip.printed
    record = json.loads((round_trip.output / RECORD).read_text())
    assert record == {"kernel": KERNEL, "version": 1, "fallbacks": {}}


def test_that_version_is_submitted_and_its_score_is_shown(round_trip):
    (request,) = round_trip.asked["CreateCodeSubmission"]
    assert request == {
        "competitionName": "isic-2024-challenge",
        "kernelOwner": USER,
        "kernelSlug": "slice-3d-fusion-kernel",
        "kernelVersion": 1,
        "fileName": "submission.csv",
        "submissionDescription": f"{KERNEL} version 1",
    }
    assert "score: pending" in round_trip.printed
    assert f"submission 700 ({KERNEL} version 1): complete, public 0.17012, private 0.16234" in round_trip.printed


def test_the_kernel_gives_the_same_submission_in_the_new_mounts(round_trip, trained, tmp_path):
    artifacts = {path.name: path.read_bytes() for path in trained.artifacts.iterdir() if path.is_file()}
    root, output = tmp_path / "input", tmp_path / "submission.csv"
    mount(trained.data, artifacts, root / "competitions" / "isic-2024-challenge", root / "datasets" / DATASET)
    assert run_kernel(["--input-root", str(root), "--output", str(output)]) == 0
    assert output.read_bytes() == (round_trip.output / "submission.csv").read_bytes()


# Failures of push


@pytest.fixture
def kaggle(kaggle, monkeypatch):
    """A stand-in with a published dataset, and a run that leaves a good submission of two rows."""
    monkeypatch.setattr(client, "user_name", lambda dry_run=False: USER)
    kaggle.datasets["slice-3d-fusion-artifacts"] = [{"request": {}, "files": {}}, {"request": {}, "files": {}}]
    submission = b"isic_id,target\nISIC_1,0.1\nISIC_2,0.2\n"
    kaggle.output = {"submission.csv": submission, "run.json": json.dumps(RUN).encode()}
    kaggle.log = json.dumps([{"stream_name": "stderr", "time": 1.5, "data": "error: no manifest\n"}])
    return kaggle


@pytest.fixture
def go(tmp_path):
    """Pushes, with a data folder that asks for two ids; further arguments are added."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample_submission.csv").write_text("isic_id,target\nISIC_1,0.3\nISIC_2,0.3\n")
    where = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "output"), *FAST]
    return lambda *arguments: push.main([*where, *arguments])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            {"versionNumber": 3, "url": "x", "invalidDatasetSources": [DATASET]},
            "not valid dataset sources .*OPTIONS=--no-pin",
        ),
        ({"versionNumber": 3, "url": "x", "invalidCompetitionSources": ["isic-2024-challenge"]}, "not valid competition"),
        ({"error": "Maximum batch GPU session count of 2 reached."}, "Kernel push error: Maximum batch GPU session count"),
        ({"url": "x"}, "the push printed no version"),
        (409, "Conflict"),
    ],
    ids=["dataset", "competition", "error", "no version", "409"],
)
def test_a_push_that_kaggle_takes_in_part_or_not_is_a_failure(kaggle, go, answer, sentence):
    kaggle.answers["SaveKernel"] = refuse(409, "Conflict") if answer == 409 else lambda body: answer
    with pytest.raises(InputError, match=sentence):
        go()
    assert not kaggle.asked("GetKernelSessionStatus")


def test_a_run_that_fails_is_printed_with_its_log(kaggle, go, tmp_path, capsys):
    kaggle.statuses = [("QUEUED", ""), ("ERROR", "Your notebook tried to allocate more memory than is available.")]
    with pytest.raises(InputError, match=r"ended with 'error' \(Your notebook tried to allocate more memory"):
        go()
    assert "error: no manifest\n" in capsys.readouterr().out
    assert not (tmp_path / "output" / RECORD).exists()


@pytest.mark.parametrize(
    ("state", "data", "likely"),
    [
        ("ERROR", "OSError: [Errno -3] Temporary failure in name resolution\n", "no internet"),
        ("CANCEL_ACKNOWLEDGED", "image 9\n", "time, stopped"),
    ],
)
def test_a_run_that_fails_without_a_reason_has_that_of_its_log(kaggle, state, data, likely):
    kaggle.statuses = [(state, "")]
    kaggle.log = json.dumps([{"stream_name": "stderr", "time": 43_201.5 if "CANCEL" in state else 9.5, "data": data}])
    with pytest.raises(InputError, match=f"ended with {state.lower()!r} .Kaggle gives no reason, likely: {likely}.;"):
        wait_until_run(KERNEL, client.Wait(0, 1), "")


def test_a_run_that_takes_long_can_be_fetched_later(kaggle, go, tmp_path):
    kaggle.statuses = [("RUNNING", "")]
    with pytest.raises(InputError, match=r"is still running after --wait 0 .*kaggle_cli.push --fetch 1"):
        go("--wait", "0")
    kaggle.statuses = []
    assert go("--fetch", "1") == 0
    assert len(kaggle.asked("SaveKernel")) == 1
    assert json.loads((tmp_path / "output" / RECORD).read_text())["version"] == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("submission.csv", None, r"version 7 left no submission\.csv .*likely: error, file name"),
        ("run.json", None, r"version 7 left no run\.json"),
        ("submission.csv", b"", r"submission\.csv"),
        ("submission.csv", b"isic_id,target\nISIC_2,0.2\nISIC_1,0.1\n", "does not hold the 2 ids"),
        ("submission.csv", b"isic_id,target\nISIC_1,inf\nISIC_2,0.2\n", "1 scores that are no finite number"),
        ("run.json", b"<html>Not found</html>", r"run\.json is not what kernel\.py writes"),
    ],
    ids=["no submission", "no run.json", "empty", "wrong ids", "not finite", "an error page"],
)
def test_an_output_that_is_missing_or_wrong_is_a_failure(kaggle, tmp_path, name, content, sentence):
    kaggle.output |= {name: content}
    kaggle.output = {name: content for name, content in kaggle.output.items() if content is not None}
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / RECORD).write_text("{}")  # of a version before: not to be submitted by mistake
    (tmp_path / "sample_submission.csv").write_text("isic_id,target\nISIC_1,0.3\nISIC_2,0.3\n")
    with pytest.raises(InputError, match=sentence):
        push.fetch_and_check(KERNEL, 7, tmp_path, tmp_path / "output")
    assert not (tmp_path / "output" / RECORD).exists()


def test_fall_backs_on_kaggle_are_printed(kaggle, go, capsys):
    fallen = {"fallbacks": {"no_network": 2}, "notes": ["the artifacts hold no network"], "image_scored": 0}
    kaggle.output["run.json"] = json.dumps(RUN | fallen).encode()
    assert go() == 0
    printed = capsys.readouterr().out
    assert "FALL-BACK on Kaggle: the artifacts hold no network" in printed
    assert "image_scored 0 of 2, fall-backs: no_network: 2" in printed


def test_artifacts_that_are_missing_or_not_ready_are_an_error_before_anything_is_pushed(kaggle, go):
    kaggle.processing = ["BLOBS_RECEIVED"]
    with pytest.raises(InputError, match="is 'blobs_received', not 'ready'"):
        go()
    kaggle.datasets.clear()
    with pytest.raises(InputError, match=f"there is no dataset {DATASET}; run: make publish"):
        go()
    assert not kaggle.pushed


def test_an_outdated_kernel_is_not_pushed(go, monkeypatch):
    monkeypatch.setattr("inference.build_kernel.build_kernel", lambda: "another text")
    with pytest.raises(InputError, match=r"kernel\.py is"):
        go()


def test_a_dry_run_shows_the_metadata_and_calls_nothing(kaggle, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # the CLI is not asked for the user's name either
    assert push.main(["--dry-run"]) == 0
    printed = capsys.readouterr().out
    shown = json.loads(printed[printed.index("{\n") : printed.index("\n}") + 2])
    assert shown == asdict(read_metadata()) | {"dataset_sources": ["OWNER/slice-3d-fusion-artifacts/VERSION"]}
    assert "internet off" in printed
    assert not kaggle.calls


def test_a_name_in_the_committed_metadata_is_refused(tmp_path):
    (tmp_path / "kernel-metadata.json").write_text(
        json.dumps(asdict(read_metadata()) | {"id": "my-name/slice-3d-fusion-kernel"})
    )
    with pytest.raises(InputError, match="has the id 'my-name/slice-3d-fusion-kernel'"):
        read_metadata(tmp_path / "kernel-metadata.json")


# Failures of submit


@pytest.fixture
def pushed(tmp_path):
    """The output folder of a push that went well."""
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / RECORD).write_text(json.dumps({"kernel": KERNEL, "version": 4, "fallbacks": {}}))
    return folder


def test_a_submission_that_kaggle_does_not_take_is_a_failure(kaggle, pushed):
    kaggle.answers["CreateCodeSubmission"] = refuse(403, "Permission 'competitions.submit' was denied")
    with pytest.raises(InputError, match=r"takes no submission from this account"):
        submit.main(["--output", str(pushed), *FAST])
    kaggle.answers["CreateCodeSubmission"] = refuse(400, "Submission not allowed: daily limit of 5 reached")
    with pytest.raises(InputError, match="daily limit of 5 reached"):
        submit.main(["--output", str(pushed), *FAST])


def test_a_submission_that_cannot_be_scored_is_a_failure(kaggle, pushed):
    old = {"ref": 1, "description": f"{KERNEL} version 4", "status": "COMPLETE", "publicScore": "0.1", "date": None}
    kaggle.submissions = [{name: value for name, value in old.items() if value}]  # an older one with the same words
    kaggle.scores = ["ERROR"]
    with pytest.raises(
        InputError, match=r"submission 701 .*: error, public -.*no reason, likely: error, time, memory, row "
    ):
        submit.main(["--output", str(pushed), *FAST])
    kaggle.submissions[0] |= {"errorDescription": "Evaluation Exception: Submission must have 9 rows"}
    kaggle.scores = ["ERROR"]
    assert submit.reason_of("701") == "Evaluation Exception: Submission must have 9 rows"


def test_without_a_checked_push_there_is_nothing_to_submit(tmp_path):
    with pytest.raises(InputError, match=r"push\.json"):
        submit.main(["--output", str(tmp_path)])


def test_scores_can_be_looked_at_later_and_a_dry_run_submits_nothing(kaggle, pushed, capsys):
    assert submit.main(["--output", str(pushed), "--dry-run", "--message", "two words"]) == 0
    printed = capsys.readouterr().out
    assert f"submit isic-2024-challenge -k {KERNEL} -v 4 -f submission.csv -m 'two words'" in printed
    assert not kaggle.calls
    assert submit.main(["--score"]) == 0
    assert "no submission yet" in capsys.readouterr().out
    kaggle.submissions = [
        {"ref": 9, "description": "mine", "status": "COMPLETE", "publicScore": "0.15", "privateScore": "0.14"}
    ]
    assert submit.main(["--score"]) == 0
    assert capsys.readouterr().out == "submission 9 (mine): complete, public 0.15, private 0.14\n"
