import json
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

from evaluation import dry_run
from evaluation.dry_run import (
    Outcome,
    checked_submission,
    gather_scores,
    logits_of,
    main,
    mount_test_folder,
    read_parts,
    rows_to_score,
    without_network,
)
from inference.artifacts import load_manifest
from inference.build_kernel import ROOT
from inference.schema import ID, PATIENT, TARGET, TEST_COLUMNS
from inference.submission import main as run_submission
from utils import InputError, bootstrap_scores, partial_auc


def test_the_mounted_folder_is_what_kaggle_would_mount(trained, tmp_path):
    rows = rows_to_score(trained.data, trained.artifacts, "holdout")
    folder = tmp_path / "competition"
    mount_test_folder(trained.data, rows[ID].tolist(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "sample_submission.csv",
        "test-image.hdf5",
        "test-metadata.csv",
    ]
    header = (folder / "test-metadata.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == list(TEST_COLUMNS)
    # Cells stay text: the kernel reads what training read, to the last digit.
    published = pd.read_csv(trained.data / "train-metadata.csv", dtype=str, keep_default_na=False).set_index(ID)
    mounted = pd.read_csv(folder / "test-metadata.csv", dtype=str, keep_default_na=False).set_index(ID)
    pd.testing.assert_frame_equal(mounted, published.loc[mounted.index, mounted.columns])
    with h5py.File(folder / "test-image.hdf5") as copy, h5py.File(trained.data / "train-image.hdf5") as original:
        assert sorted(copy) == sorted(rows[ID])
        assert all(copy[i][()] == original[i][()] and copy[i].dtype == original[i].dtype for i in copy)


def test_a_share_of_the_images_can_be_withheld(trained, tmp_path):
    ids, held = rows_to_score(trained.data, trained.artifacts, "all")[ID].tolist(), []
    for lost in (0.0, 0.5, 0.5, 1.0):
        mount_test_folder(trained.data, ids, tmp_path / str(len(held)), lost)
        with h5py.File(tmp_path / str(len(held)) / "test-image.hdf5") as file:
            held.append(set(file))
    whole, half, again, none = held
    assert whole == set(ids)
    assert none == set()
    assert half == again
    assert 0.3 * len(ids) < len(half) < 0.7 * len(ids)


def test_images_that_cannot_be_read_are_counted(trained, tmp_path, capsys):
    data, ids = shutil.copytree(trained.data, tmp_path / "data"), rows_to_score(trained.data, trained.artifacts, "all")[ID]
    with h5py.File(data / "train-image.hdf5", "r+") as file:
        del file[ids[3]], file[ids[5]]
    mount_test_folder(data, ids.tolist(), tmp_path / "competition")
    assert f"2 of {len(ids)} lesions" in capsys.readouterr().out


def test_rows_of_another_data_set_are_refused_with_both_counts_and_ids(trained, synthetic_data):
    counts = r"\d+ of the 160 ids of .*folds.csv \(ISIC_.* and \d+ of the 60 ids of train-metadata.csv \(ISIC_"
    with pytest.raises(InputError, match=counts):
        rows_to_score(synthetic_data, trained.artifacts, "holdout")


@pytest.mark.parametrize("name", [PATIENT, TARGET])
def test_rows_with_another_patient_or_label_are_refused(trained, tmp_path, name):
    table = pd.read_csv(trained.data / "train-metadata.csv", dtype=str)
    table.loc[7, name] = str(1 - int(table.loc[7, name])) if name == TARGET else "IP_0000001"
    table.to_csv(tmp_path / "train-metadata.csv", index=False)
    with pytest.raises(InputError, match=f"another {name} for 1 lesions"):
        rows_to_score(tmp_path, trained.artifacts, "holdout")


@pytest.fixture
def in_process(monkeypatch, eager):
    """The kernel runs in this process."""

    def run(kernel, competition, artifacts, report, more):
        files = ["--output", str(report / "submission.csv"), "--scores", str(report / "scores.csv")]
        assert run_submission(["--competition", str(competition), "--artifacts", str(artifacts), *files, *more]) == 0
        return Outcome(1.0, "none", json.loads((report / "run.json").read_text()))

    monkeypatch.setattr(dry_run, "run_kernel", run)


def test_lesions_whose_image_is_withheld_keep_their_tabular_score(trained, tmp_path, capsys, in_process):
    where = ["--data", str(trained.data), "--artifacts", str(trained.artifacts), "--report", str(tmp_path / "report")]
    assert main([*where, "--lose-images", "0.5"]) == 0
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    assert 0 < run["image_scored"] < run["lesions"]
    assert run["fallbacks"]["lesions_without_image_score"] == run["lesions"] - run["image_scored"]
    assert "50%" in capsys.readouterr().out
    assert re.search(r'class="warning">50% of the images', (tmp_path / "report" / "index.html").read_text(encoding="utf-8"))


def test_the_networks_score_a_share_of_the_lesions(trained, tmp_path, capsys, in_process):
    where = ["--data", str(trained.data), "--artifacts", str(trained.artifacts), "--report", str(tmp_path / "report")]
    assert main([*where, "--image-share", "0.25"]) == 0
    run = json.loads((tmp_path / "report" / "run.json").read_text())
    assert run["image_scored"] == run["image_share"]["lesions"] == round(run["lesions"] / 4)
    scores = pd.read_csv(tmp_path / "report" / "scores.csv").sort_values("tabular", ascending=False)
    alone = int((scores["image_scored"].eq(1) & scores["stacking"].isna()).sum())
    assert alone > 0
    assert run["fallbacks"] == {"lesions_not_stacked": alone}  # the others of their patients are not compared
    assert scores["image_scored"].is_monotonic_decreasing
    assert "--image-share" in capsys.readouterr().out
    assert re.search(r'class="warning">the networks scored the 25%', (tmp_path / "report" / "index.html").read_text("utf-8"))


@pytest.mark.parametrize("share", ["0", "1.01"])
def test_an_image_share_outside_of_0_to_1_is_refused(tmp_path, share):
    with pytest.raises(InputError, match=rf"--image-share.*{share}"):
        main(["--data", str(tmp_path), "--artifacts", str(tmp_path), "--image-share", share])


@pytest.mark.parametrize("share", ["-0.1", "1.5", "nan"])
def test_a_share_outside_of_0_to_1_is_refused(tmp_path, share):
    with pytest.raises(InputError, match=rf"--lose-images.*{share}.* 0 to 1"):
        main(["--data", str(tmp_path), "--artifacts", str(tmp_path), "--lose-images", share])


def test_holdout_rows_are_those_that_training_held_out(trained):
    rows = rows_to_score(trained.data, trained.artifacts, "holdout")
    folds = pd.read_csv(trained.artifacts / "folds.csv").set_index(ID)
    assert (folds.loc[rows[ID], "fold"] == -1).all()
    assert not set(rows[PATIENT]) & set(folds.loc[folds["fold"] >= 0, "patient_id"])
    assert len(rows_to_score(trained.data, trained.artifacts, "all")) == len(folds)


@pytest.fixture
def report(report_folder):
    """The report folder of a dry run, and what the command printed."""
    return report_folder, (report_folder / "printed.txt").read_text(encoding="utf-8")


def test_the_command_exits_with_2_on_bad_input(tmp_path):
    command = [sys.executable, "-m", "evaluation.dry_run", "--data", str(tmp_path), "--artifacts", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.match(r"error: .*train-metadata\.csv", done.stderr)


def test_the_table_is_the_metric_of_the_submission(trained, report):
    folder, printed = report
    rows = rows_to_score(trained.data, trained.artifacts, "holdout")
    submission = pd.read_csv(folder / "submission.csv").set_index(ID).loc[rows[ID], TARGET]
    scored = dict(re.findall(r"^\| (\w[\w ]*?) +\| +([\d.]+)", printed, flags=re.MULTILINE))
    assert list(scored) == ["tabular", "network", "stacking", "final", "best possible"]
    assert scored["final"] == f"{partial_auc(rows[TARGET], submission):.4f}"
    truth = pd.read_csv(trained.data / "truth.csv").set_index(ID).loc[rows[ID], "probability"]
    assert scored["best possible"] == f"{partial_auc(rows[TARGET], truth):.4f}"
    parts = pd.read_csv(folder / "scores.csv").set_index(ID).loc[rows[ID]]
    stacking = parts["stacking"].fillna(parts["network"])
    for name, logits in {"tabular": parts["tabular"], "network": parts["network"], "stacking": stacking}.items():
        assert scored[name] == f"{partial_auc(rows[TARGET], logits):.4f}"
        apart = bootstrap_scores(rows[TARGET], rows[PATIENT], {"final": submission, name: logits}).difference("final", name)
        assert f"final - {name}, paired: {apart.value:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}] pAUC" in printed


def test_where_the_last_stage_does_not_apply_it_has_the_network_logit(trained, tmp_path):
    ids = rows_to_score(trained.data, trained.artifacts, "holdout")[ID].tolist()[:3]
    table = pd.DataFrame({ID: ids, "tabular": [1.0, 2, 3], "network": [4.0, 5, 6], "final": 0.5, "image_scored": 1})
    table.to_csv(tmp_path / "scores.csv", index=False)
    parts = read_parts(tmp_path / "scores.csv")
    submission = pd.Series([0.1, 0.2, 0.3], index=ids)
    found = gather_scores(parts, submission, trained.data, trained.artifacts)
    assert list(found) == ["tabular", "network", "final", "best possible"]
    assert found["final"].tolist() == [0.1, 0.2, 0.3]
    table.assign(context=[7.0, np.nan, 9], stacking=[7.0, np.nan, 9]).to_csv(tmp_path / "scores.csv", index=False)
    parts = read_parts(tmp_path / "scores.csv")
    found = gather_scores(parts, submission, trained.data, trained.artifacts)
    assert list(found) == ["tabular", "network", "stacking", "final", "best possible"]
    assert found["stacking"].tolist() == logits_of(parts)["stacking"].tolist() == [7, 5, 9]
    assert list(logits_of(parts)) == ["tabular", "network", "stacking", "final"]


def test_the_page_names_what_it_was_made_of(trained, report):
    folder, printed = report
    page = (folder / "index.html").read_text(encoding="utf-8")
    isolation = without_network()[1]
    assert isolation in page
    assert isolation in printed
    facts = json.loads((folder / "run.json").read_text())
    assert facts["versions"]["tensorflow"] in page
    assert f"<td>{facts['peak_memory_gb']:,.4g}</td>" in page
    for name, expected in load_manifest(trained.artifacts)["files"].items():
        assert f'<th scope="row">{name}</th>' in page
        assert f"{expected}, as in the manifest" in page
    words = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", page)
    assert "http" not in words.replace("http://www.w3.org", "").replace("http-equiv", "")


def test_the_page_holds_what_the_command_prints(report):
    folder, printed = report
    page = (folder / "index.html").read_text(encoding="utf-8")
    for name, pauc, low, high, area in re.findall(
        r"^\| (\w[\w ]*?) +\| +([\d.]+) \| +([\d.]+) to ([\d.]+) \| +([\d.]+)", printed, flags=re.MULTILINE
    ):
        assert f'<th scope="row">{name}</th><td>{pauc}</td><td>{low} to {high}</td><td>{area}</td>' in page


def test_the_page_shows_lesions_with_heat_maps(trained, report):
    folder, _ = report
    page = (folder / "index.html").read_text(encoding="utf-8")
    rows = rows_to_score(trained.data, trained.artifacts, "holdout")
    shown = min(8, int(rows[TARGET].sum())) + min(8, int((rows[TARGET] == 0).sum()))
    assert page.count("right of it the same crop under its heat map") == shown
    assert "mean over 2 fold networks" in page
    assert len(page) < 15_000_000


def test_the_isolation_takes_the_network_away():
    prefix, _ = without_network()
    if not prefix:
        pytest.skip("this system allows no network namespace")
    look = "import socket; print([name for _, name in socket.if_nameindex()])"
    done = subprocess.run([*prefix, sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['lo']"


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({ID: ["a", "b"], "score": [0.1, 0.2]}, "has the columns"),
        ({ID: ["b", "a"], TARGET: [0.1, 0.2]}, "in their order"),
        ({ID: ["a"], TARGET: [0.1]}, "does not hold the 2 ids"),
        ({ID: ["a", "b"], TARGET: [0.1, np.inf]}, "holds 1 scores that are no finite number"),
        ({ID: ["a", "b"], TARGET: ["0.1", "high"]}, "holds 1 scores that are no finite number"),
    ],
)
def test_a_submission_that_kaggle_would_refuse_is_refused(tmp_path, table, complaint):
    pd.DataFrame(table).to_csv(tmp_path / "submission.csv", index=False)
    with pytest.raises(InputError, match=complaint):
        checked_submission(tmp_path / "submission.csv", ["a", "b"])


def test_a_kernel_that_fails_is_reported_with_its_status(trained, tmp_path):
    kernel = tmp_path / "kernel.py"
    kernel.write_text("raise SystemExit(3)\n")
    where = ["--data", str(trained.data), "--artifacts", str(trained.artifacts), "--report", str(tmp_path / "report")]
    with pytest.raises(InputError, match=r"kernel\.py ended with status 3"):
        main([*where, "--kernel", str(kernel)])


def test_without_a_holdout_there_is_nothing_to_score(trained, tmp_path):
    artifacts = shutil.copytree(trained.artifacts, tmp_path / "artifacts")
    folds = pd.read_csv(artifacts / "folds.csv")
    folds.assign(fold=folds["fold"].clip(lower=0)).to_csv(artifacts / "folds.csv", index=False)
    with pytest.raises(InputError, match="SHA-256"):  # not even read: it is not what training wrote
        rows_to_score(trained.data, artifacts, "holdout")
