"""The kernel as Kaggle runs it, in a process that cannot import the repository; and its fall-backs, in this process."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest

from evaluation.dry_run import checked_submission
from inference import submission
from inference.artifacts import best_network, fold_network_file, load_manifest
from inference.build_kernel import ROOT
from inference.files import sha256_of
from inference.images import ImageStore, decode_crop
from inference.network import NetworkConfig, build_network, load_network
from inference.run_log import Run
from inference.schema import ID, PATIENT, TARGET
from inference.scoring import NETWORK, STACKING, TABULAR
from inference.submission import find_artifacts, find_competition, main, read_sample
from utils import InputError


@pytest.fixture
def competition(mounted, tmp_path):
    """A copy of the test folder, to damage."""
    return shutil.copytree(mounted, tmp_path / "competition")


def run_in_process(competition, artifacts, tmp_path, *more):
    """Scores a folder by calling main; returns submission, per-lesion scores and run.json."""
    output = tmp_path / "out" / "submission.csv"
    where = ["--competition", str(competition), "--artifacts", str(artifacts), "--output", str(output)]
    assert main([*where, "--scores", str(output.with_name("scores.csv")), *more]) == 0
    return (
        pd.read_csv(output),
        pd.read_csv(output.with_name("scores.csv")).set_index(ID),
        json.loads(output.with_name("run.json").read_text()),
    )


def replace_image(path, isic_id, content):
    """Puts other bytes in the place of a lesion's image; None takes it away."""
    with h5py.File(path, "r+") as file:
        del file[isic_id]
        if content is not None:
            file.create_dataset(isic_id, data=np.bytes_(content) if content else h5py.Empty("S1"))


# Equal to training


def test_the_built_kernel_scores_as_the_training_code_does(kernel_run, trained_scores):
    submission = pd.read_csv(kernel_run.working / "submission.csv")
    assert submission[ID].tolist() == trained_scores.index.tolist()
    logits = np.log(submission[TARGET] / (1 - submission[TARGET]))
    np.testing.assert_allclose(logits, trained_scores, rtol=0, atol=1e-5)
    facts = json.loads((kernel_run.working / "run.json").read_text())
    assert facts["image_scored"] == facts["lesions"] == len(submission)
    assert facts["fallbacks"] == {}
    assert "FALL-BACK" not in (kernel_run.working / "log").read_text()


def test_the_classic_mounts_are_found(small_artifacts, small_networks, mounted, tmp_path):
    shutil.copytree(mounted, tmp_path / "input" / "isic-2024-challenge")
    shutil.copytree(small_artifacts, tmp_path / "input" / "slice-3d-fusion-artifacts")
    output = tmp_path / "submission.csv"
    assert main(["--input-root", str(tmp_path / "input"), "--output", str(output)]) == 0
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["image_scored"] == facts["lesions"] == len(pd.read_csv(output))
    assert facts["fallbacks"] == {}


@pytest.fixture(scope="module")
def trained_scores(trained):
    """The holdout's logits by the functions that training calls, from the rows of train-metadata.csv."""
    from inference.features import build_features
    from inference.images import find_images
    from inference.schema import read_metadata
    from inference.scoring import combine
    from inference.tabular import load_models, select_features, tabular_logits
    from train.lesions import Lesions
    from train.network.fold import score_rows
    from train.network.known_images import KnownImages, image_digests
    from train.stacking import stacking_features

    manifest = load_manifest(trained.artifacts)
    metadata = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    fold = pd.read_csv(trained.artifacts / "folds.csv")["fold"].to_numpy()
    models, _ = load_models(trained.artifacts, manifest)
    features = select_features(build_features(metadata), manifest["tabular"]["features"], manifest["tabular"]["categories"])
    tabular = tabular_logits(models, features, manifest["tabular"]["categories"])
    store = ImageStore(find_images(trained.data, "train"))
    every = np.ones(len(metadata), dtype=bool)
    digests = image_digests(store, metadata[ID].to_numpy())
    lesions = Lesions(metadata[ID].to_numpy(), None, None, fold, tabular, digests, None)
    images = KnownImages(store, lesions.isic_ids, lesions.image_digests)
    from train.network.config import TrainingConfig

    options = TrainingConfig(image_size=32)
    rows = np.flatnonzero(fold == -1)
    networks = [
        load_network(
            NetworkConfig.from_dict(best_network(manifest)["settings"]), trained.artifacts / f"fusion_fold{k}.weights.h5"
        )
        for k in (0, 1)
    ]
    network = np.mean([score_rows(network, lesions, rows, images, options) for network in networks], axis=0)
    scores = pd.DataFrame({TABULAR: tabular[rows], NETWORK: network, "fusion": network}).assign(
        patient_id=metadata[PATIENT].to_numpy()[rows]
    )
    last = manifest["stacking"]
    models, _ = load_models(trained.artifacts, manifest, "stacking")
    features = select_features(stacking_features(scores, last["networks"], None), last["features"], last["categories"])
    scores[STACKING] = tabular_logits(models, features, last["categories"])
    return pd.Series(combine(last["combination"], scores, every[rows]), index=metadata[ID].iloc[rows])


# Always a valid submission


def test_a_lesion_without_a_readable_image_keeps_its_tabular_score(small_artifacts, small_networks, competition, tmp_path):
    ids = pd.read_csv(competition / "test-metadata.csv")[ID].tolist()
    good = h5py.File(competition / "test-image.hdf5")[ids[4]][()]
    harm = {ids[0]: None, ids[1]: b"", ids[2]: good[: len(good) // 2], ids[3]: b"no picture at all"}
    for isic_id, content in harm.items():
        replace_image(competition / "test-image.hdf5", isic_id, content)
    submission, scores, facts = run_in_process(competition, small_artifacts, tmp_path)
    assert submission[ID].tolist() == ids
    assert scores.loc[list(harm), "image_scored"].tolist() == [0, 0, 0, 0]
    assert (scores.loc[list(harm), "final"] == scores.loc[list(harm), "tabular"]).all()
    assert scores["image_scored"].sum() == len(ids) - 4
    assert (scores.loc[ids[4:], "final"] != scores.loc[ids[4:], "tabular"]).all()
    assert facts["fallbacks"] == {"lesions_without_image_score": 4}


def test_without_images_the_submission_is_tabular(small_artifacts, small_networks, competition, tmp_path):
    (competition / "test-image.hdf5").unlink()
    submission, scores, facts = run_in_process(competition, small_artifacts, tmp_path)
    assert (scores["final"] == scores["tabular"]).all()
    assert facts["fallbacks"] == {"network_stopped": 1, "lesions_without_image_score": len(submission)}


def test_a_changed_network_is_left_out_and_the_others_score(small_artifacts, small_networks, mounted, tmp_path):
    artifacts = shutil.copytree(small_artifacts, tmp_path / "artifacts")
    weights = artifacts / "fusion_fold0.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    _, scores, facts = run_in_process(mounted, artifacts, tmp_path)
    assert facts["fallbacks"] == {"fold_networks_left_out": 1}
    assert scores["image_scored"].all()
    assert any("fusion_fold0.weights.h5" in note and "SHA-256" in note for note in facts["notes"])


# Several networks

LITE = NetworkConfig(40, backbone="efficientnet-lite0", head_units=8)


@pytest.fixture(scope="module")
def two_networks(small_artifacts, tmp_path_factory):
    """The small artifacts, whose crops have 32 pixels, with a second network: another backbone, 40 pixels."""
    folder = shutil.copytree(small_artifacts, tmp_path_factory.mktemp("two") / "artifacts")
    manifest, network = load_manifest(folder), build_network(LITE)
    names = [fold_network_file(fold, "lite") for fold in (0, 1)]
    for bias, name in enumerate(names):
        network.get_layer("correction").set_weights([np.linspace(-0.4, 0.5, 8)[:, None], np.array([bias - 1.0])])
        network.save_weights(folder / name)
        manifest["files"][name] = sha256_of(folder / name)
    manifest["network"]["networks"]["lite"] = {"weights": names, "settings": LITE.to_dict(), "pauc": 0.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.usefixtures("eager", "small_networks")
def test_the_mean_of_two_networks_is_submitted_each_on_crops_of_its_own_size(two_networks, mounted, tmp_path):
    submission, scores, facts = run_in_process(mounted, two_networks, tmp_path)
    assert (facts["fallbacks"], facts["fold_networks"]) == ({}, 4)
    assert scores["image_scored"].all()
    store, some = ImageStore(mounted / "test-image.hdf5"), scores.index[:3]
    crops = np.stack([decode_crop(store.read(isic_id), 40) for isic_id in some])
    batch = {"crop": crops, "tabular": scores.loc[some, ["tabular"]].to_numpy("float32")}
    lite = [load_network(LITE, two_networks / fold_network_file(fold, "lite"))(batch, training=False) for fold in (0, 1)]
    np.testing.assert_allclose(scores.loc[some, "network_lite"], np.mean(lite, axis=0)[:, 0], atol=1e-5)
    assert (scores["network_fusion"] != scores["network_lite"]).all()
    np.testing.assert_allclose(scores["final"], scores[["network_fusion", "network_lite"]].mean(axis=1))
    np.testing.assert_allclose(submission[TARGET], 1 / (1 + np.exp(-scores.loc[submission[ID], "final"])))


@pytest.mark.usefixtures("eager", "small_networks")
@pytest.mark.parametrize("broken", [1, 2])
def test_broken_files_of_one_network_leave_the_rest(two_networks, mounted, tmp_path, broken):
    artifacts = shutil.copytree(two_networks, tmp_path / "artifacts")
    for fold in range(broken):
        (artifacts / fold_network_file(fold, "lite")).write_bytes(b"broken")
    _, scores, facts = run_in_process(mounted, artifacts, tmp_path)
    checked_submission(tmp_path / "out" / "submission.csv", pd.read_csv(mounted / "sample_submission.csv")[ID].tolist())
    assert (facts["fallbacks"], facts["fold_networks"]) == ({"fold_networks_left_out": broken}, 4 - broken)
    assert scores["image_scored"].all()
    left = ["network_fusion", "network_lite"][: 3 - broken]
    assert scores["network_lite"].isna().all() == (broken == 2)
    np.testing.assert_allclose(scores["final"], scores[left].mean(axis=1))


@pytest.mark.usefixtures("eager", "small_networks")
def test_two_networks_without_time_leave_the_rest_tabular(two_networks, mounted, tmp_path):
    _, scores, facts = run_in_process(mounted, two_networks, tmp_path, "--batch-size", "4", "--time-budget", "0.000001")
    checked_submission(tmp_path / "out" / "submission.csv", pd.read_csv(mounted / "sample_submission.csv")[ID].tolist())
    left = len(scores) - 4
    assert facts["fallbacks"] == {"images_not_reached": left, "lesions_without_image_score": left}
    reached = scores["image_scored"] == 1
    assert scores.loc[reached, ["network_fusion", "network_lite"]].notna().all(axis=None)
    assert scores.loc[~reached, ["network_fusion", "network_lite"]].isna().all(axis=None)
    assert scores["tabular"][reached].min() >= scores["tabular"][~reached].max()
    assert (scores["final"] == scores["tabular"])[~reached].all()
    assert (scores["final"] != scores["tabular"])[reached].all()


def test_no_usable_network_leaves_the_tabular_submission(tabular_only, mounted, tmp_path):
    _, scores, facts = run_in_process(mounted, tabular_only, tmp_path)
    assert (scores["final"] == scores["tabular"]).all()
    assert facts["fallbacks"]["no_network"] == len(scores)


def test_one_changed_tabular_model_is_left_out(tabular_only, mounted, tmp_path):
    artifacts = shutil.copytree(tabular_only, tmp_path / "artifacts")
    (artifacts / "tabular_fold1_seed0.cbm").write_bytes(b"broken")
    submission, _, facts = run_in_process(mounted, artifacts, tmp_path)
    assert facts["fallbacks"]["tabular_models_left_out"] == 1
    assert np.isfinite(submission[TARGET]).all()


def test_the_sample_submission_decides_rows_and_order(tabular_only, competition, tmp_path):
    ids = pd.read_csv(competition / "test-metadata.csv")[ID].tolist()
    asked = [*reversed(ids[1:]), "ISIC_0000000"]
    pd.DataFrame({ID: asked, TARGET: 0.3}).to_csv(competition / "sample_submission.csv", index=False)
    submission, _, facts = run_in_process(competition, tabular_only, tmp_path)
    assert submission[ID].tolist() == asked
    assert np.isfinite(submission[TARGET]).all()
    assert facts["fallbacks"]["ids_only_in_sample_submission"] == 1


def test_metadata_in_disorder_is_repaired_and_counted(tabular_only, competition, tmp_path):
    path = competition / "test-metadata.csv"
    rows = pd.read_csv(path, dtype=str)
    rows = rows.drop(columns="tbp_lv_H").assign(stranger="1")
    rows.loc[0, "tbp_lv_L"] = "dark"
    rows.loc[1, "tbp_lv_A"] = "inf"
    rows.loc[2, "patient_id"] = ""
    rows.loc[3, "attribution"] = "Another hospital"
    rows[rows.columns[::-1]].to_csv(path, index=False)
    submission, _, facts = run_in_process(competition, tabular_only, tmp_path)
    assert np.isfinite(submission[TARGET]).all()
    repairs = {"columns_missing": 1, "cells_not_numeric": 2, "rows_without_patient_id": 1}
    assert {name: facts["fallbacks"][name] for name in repairs} == repairs


def test_a_file_of_no_rows_gives_a_submission_of_no_rows(tabular_only, competition, tmp_path):
    for name in ("test-metadata.csv", "sample_submission.csv"):
        pd.read_csv(competition / name, nrows=0).to_csv(competition / name, index=False)
    submission, _, _ = run_in_process(competition, tabular_only, tmp_path)
    assert list(submission.columns) == [ID, TARGET]
    assert len(submission) == 0


def changing_table(monkeypatch, folder, times):
    """A folder of two lesions whose metadata is replaced so many times, each time after it was read."""
    path, counts = folder / "test-metadata.csv", iter(range(times))
    path.write_text("isic_id,age_approx\nold1,x\nold2,50\n")
    (folder / "sample_submission.csv").write_text("isic_id,target\nnew1,0.3\nnew2,0.3\n")
    read = submission.read_rows

    def changed(competition, run):
        rows = read(competition, run)
        if (number := next(counts, None)) is not None:
            path.write_text("isic_id,age_approx\nnew1,60\nnew2,50\n" + "\n" * number)
        return rows

    monkeypatch.setattr(submission, "read_rows", changed)


def test_tables_that_change_while_they_are_read_are_read_again(tmp_path, monkeypatch):
    changing_table(monkeypatch, tmp_path, times=1)
    run = Run()
    rows, order, states = submission.read_tables(tmp_path, run)
    assert rows[ID].tolist() == order == ["new1", "new2"]
    assert not {"cells_not_numeric", "ids_only_in_metadata"} & set(run.fallbacks)
    assert states == submission.input_states(tmp_path)


def test_tables_that_change_again_and_again_are_an_error(tmp_path, monkeypatch):
    changing_table(monkeypatch, tmp_path, times=100)
    with pytest.raises(InputError, match=f"changed while it was read, {submission.READINGS} times"):
        submission.read_tables(tmp_path, Run())


def test_the_public_test_of_the_competition(real_data, trained, tmp_path):
    submission, scores, facts = run_in_process(real_data, trained.artifacts, tmp_path)
    assert submission[ID].tolist() == pd.read_csv(real_data / "sample_submission.csv")[ID].tolist()
    assert np.isfinite(submission[TARGET]).all()
    assert scores["image_scored"].all()
    assert facts["fallbacks"] == {}


# Errors


def test_a_full_disk_leaves_the_tabular_submission(small_artifacts, mounted, tmp_path, monkeypatch):
    written, write = [], submission.write_submission

    def on_a_full_disk(path, *more):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, *more)

    monkeypatch.setattr("inference.submission.write_submission", on_a_full_disk)
    monkeypatch.setattr("inference.submission.score_images", lambda rows, tabular, *_: pd.DataFrame({"fusion": tabular}))
    output = tmp_path / "submission.csv"
    where = ["--competition", str(mounted), "--artifacts", str(small_artifacts), "--output", str(output)]
    assert main(where) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert "final_scores_not_written" in run["fallbacks"]
    assert "No space left on device" in run["notes"][-1]
    assert pd.read_csv(output)[TARGET].between(0, 1).all()


def rows_left_after(number, line, trained, mounted, tmp_path):
    """Runs the kernel until it logs ``line``, sends a signal, and checks that the submission is whole.

    Returns the fall-backs, and the number of rows.
    """
    output = tmp_path / "submission.csv"
    command = [sys.executable, "-I", str(ROOT / "kernel.py"), "--competition", str(mounted), "--batch-size", "4"]
    command += ["--artifacts", str(trained.artifacts), "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while line not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        log, complaints = process.communicate()
        assert process.wait() == 0
    assert "Traceback" not in complaints
    assert f"{signal.Signals(number).name} was received" in log
    asked = pd.read_csv(mounted / "sample_submission.csv")[ID].tolist()
    assert pd.read_csv(output)[ID].tolist() == asked
    return json.loads((tmp_path / "run.json").read_text())["fallbacks"], len(asked)


def test_sigterm_ends_the_kernel_with_the_scores_it_has(trained, mounted, tmp_path):
    fallbacks, rows = rows_left_after(signal.SIGTERM, "building the network", trained, mounted, tmp_path)
    left = {"images_not_reached": rows - 4, "lesions_without_image_score": rows - 4}
    assert fallbacks == left | {"lesions_not_stacked": 4}  # most of their patients' lesions lack a score


def test_ctrl_c_before_the_tabular_scores_ends_the_kernel_after_them(trained, mounted, tmp_path):
    fallbacks, rows = rows_left_after(signal.SIGINT, "test folder", trained, mounted, tmp_path)
    assert fallbacks == {"images_not_reached": rows}


@pytest.mark.parametrize("error", [ZeroDivisionError("1 / 0"), MemoryError(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("step", ["score_images", "combine_stages"])
def test_whatever_fails_after_the_tabular_stage_leaves_its_submission(
    tabular_only, mounted, tmp_path, monkeypatch, step, error
):
    def fail(*_):
        raise error

    monkeypatch.setattr(f"inference.submission.{step}", fail)
    submission, scores, facts = run_in_process(mounted, tabular_only, tmp_path)
    assert "final_scores_not_written" in facts["fallbacks"]
    assert facts["image_scored"] == 0
    assert (scores["final"] == scores["tabular"]).all()
    assert submission[TARGET].between(0, 1).all()


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_tabular_submission(tabular_only, mounted, tmp_path, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("inference.submission.score_images", interrupt)
    where = ["--competition", str(mounted), "--artifacts", str(tabular_only), "--output", str(tmp_path / "submission.csv")]
    with pytest.raises(KeyboardInterrupt):
        main(where)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert pd.read_csv(tmp_path / "submission.csv")[TARGET].between(0, 1).all()


def test_scores_that_cannot_be_written_cost_themselves_only(tabular_only, mounted, tmp_path):
    output = tmp_path / "submission.csv"
    (tmp_path / "scores.csv").mkdir()
    run = Run()
    submission.score_folder(submission.RunSettings(mounted, tabular_only, output, scores=tmp_path / "scores.csv"), run)
    assert run.fallbacks["scores_not_written"] == len(pd.read_csv(output))


def test_a_time_budget_of_nothing_is_refused(mounted):
    with pytest.raises(InputError, match="--time-budget: '0' "):
        main(["--competition", str(mounted), "--time-budget", "0"])


def test_no_metadata_no_artifacts_no_model_are_errors(tabular_only, mounted, tmp_path):
    output = ["--output", str(tmp_path / "submission.csv")]
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = shutil.copytree(tabular_only, tmp_path / "broken")
    for path in broken.glob("*.cbm"):
        path.write_bytes(b"broken")
    cases = {
        "test-metadata.csv is not in": ["--competition", str(empty), "--artifacts", str(tabular_only)],
        "has no manifest.json": ["--competition", str(mounted), "--artifacts", str(empty)],
        "no usable tabular model": ["--competition", str(mounted), "--artifacts", str(broken)],
        "attach the competition isic-2024-challenge": ["--artifacts", str(tabular_only), "--input-root", str(empty)],
        "attach the artifact dataset": ["--competition", str(mounted), "--input-root", str(empty)],
        "--batch-size: '0'": ["--competition", str(mounted), "--artifacts", str(tabular_only), "--batch-size", "0"],
    }
    for sentence, where in cases.items():
        with pytest.raises(InputError, match=re.escape(sentence)):
            main([*where, *output])
    assert not (tmp_path / "submission.csv").exists()


def test_two_artifact_folders_are_an_error_not_a_guess(tabular_only, mounted, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(tabular_only, tmp_path / "input" / name)
    with pytest.raises(InputError, match="2 folders"):
        main(["--competition", str(mounted), "--input-root", str(tmp_path / "input")])


def test_linked_inputs_are_found_and_links_in_a_circle_end(tabular_only, mounted, tmp_path):
    root = tmp_path / "input"
    root.mkdir()
    for name, target in {
        "data": mounted,
        "models": tabular_only,
        "again": tabular_only,
        "circle": root,
        "gone": "nowhere",
    }.items():
        (root / name).symlink_to(target)
    assert find_competition(root) == root / "data"
    assert find_artifacts(root) == root / "again"


def test_images_of_other_lesions_are_a_note_with_ids_of_both_sides(
    small_artifacts, small_networks, competition, tmp_path, capsys
):
    with h5py.File(competition / "test-image.hdf5", "w") as file:
        file["77"] = np.void(b"x")
    submission, scores, facts = run_in_process(competition, small_artifacts, tmp_path)
    assert facts["fallbacks"]["images_of_other_lesions"] == len(scores) == len(submission)
    assert "1 of the 1 ids of test-image.hdf5 (77) are not in test-metadata.csv" in capsys.readouterr().out


#: How sample_submission.csv may be written -> its bytes, and what is counted.
SAMPLES = {
    "commas": (b"isic_id,target\n007,0.3,\n8,0.3,\n", {}),
    "blank lines": (b"\nisic_id,target\n\n007,0.3\n,\n8,0.3\n\n", {}),
    "utf-8 with bom": (b"\xef\xbb\xbfisic_id,target\r\n007,0.3\r\n8,0.3\r\n", {}),
    "utf-16": ("isic_id,target\n007,0.3\n8,0.3\n".encode("utf-16"), {}),
    "an id twice": (b"isic_id,target\n007,0.3\n8,0.3\n007,0.3\n", {}),
    "a wrong byte": (b"isic_id,target\n007,0.3\n8,\xff\n\xe9,0.3\n", {"cells_not_decoded": 2}),
    "ids alone": (b"isic_id,target\n007\n8", {"rows_too_short": 2}),
    "too long": (b"isic_id,target\n007,0.3,x\n8,0.3\n", {"rows_too_long": 1}),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_ids_of_the_sample_submission_are_read_however_it_is_written(tmp_path, kind):
    content, counted = SAMPLES[kind]
    (tmp_path / "sample_submission.csv").write_bytes(content)
    assert read_sample(tmp_path / "sample_submission.csv") == (["007", "8"], counted)


@pytest.mark.parametrize("name", ["submission.csv", "run.json"])
def test_the_submission_is_not_replaced_by_the_scores(tabular_only, mounted, tmp_path, name):
    where = ["--competition", str(mounted), "--artifacts", str(tabular_only), "--output", str(tmp_path / "submission.csv")]
    with pytest.raises(InputError, match="--scores"):
        main([*where, "--scores", str(tmp_path / name)])
    assert list(tmp_path.iterdir()) == []
