"""Every fault of the table in docs/inference.md, injected: the submission is whole, and run.json counts what happened."""

import fcntl
import io
import json
import shutil
from contextlib import ExitStack
from unittest import mock

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_network import small_backbone

from evaluation.dry_run import checked_submission
from inference import submission
from inference.files import sha256_of
from inference.images import ImageStore
from inference.network import NetworkConfig, build_network
from inference.schema import ID, NUMBERS, PATIENT
from inference.submission import main

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("small_networks")]


@pytest.fixture
def competition(mounted, tmp_path):
    """A copy of the test folder, to damage."""
    return shutil.copytree(mounted, tmp_path / "competition")


@pytest.fixture
def artifacts(small_artifacts, tmp_path):
    """A copy of the artifacts, to damage; the final logits are the networks' logits."""
    return shutil.copytree(small_artifacts, tmp_path / "artifacts")


def edit_manifest(folder, edit):
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sign(folder, name):
    """Puts the SHA-256 of a file as it now is into the manifest."""
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: sha256_of(folder / name)}))


def read_table(folder):
    return pd.read_csv(folder / "test-metadata.csv", dtype="str", keep_default_na=False)


def scored(competition, artifacts, more=()):
    """Runs the kernel; a whole submission, each lesion's scores by isic_id, and run.json."""
    output = competition.parent / "out" / "submission.csv"
    where = ["--competition", str(competition), "--artifacts", str(artifacts), "--output", str(output)]
    assert main([*where, "--scores", str(output.with_name("scores.csv")), *more]) == 0
    asked = read_table(competition)[ID].tolist()
    if (competition / "sample_submission.csv").exists():
        asked = pd.read_csv(competition / "sample_submission.csv", dtype="str")[ID].tolist()
    submission = checked_submission(output, asked)
    scores = pd.read_csv(output.with_name("scores.csv"), dtype={ID: "str"}).set_index(ID)
    facts = json.loads(output.with_name("run.json").read_text())
    assert len(facts["notes"]) >= len(facts["fallbacks"])
    return submission, scores, facts


# Images


def picture(mode="RGB", size=(40, 30), kind="JPEG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype="uint8")
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


BROKEN = {
    "missing in the file": None,
    "no bytes": b"",
    "a cut-off JPEG": picture()[:200],
    "no picture at all": b"<html>503 Service Unavailable</html>",
    "another format": picture(kind="GIF"),
}
UNUSUAL = {
    "PNG": picture(kind="PNG"),
    "CMYK": picture("CMYK"),
    "grey": picture("L"),
    "1 x 1": picture(size=(1, 1)),
    "4,000 x 4,000": picture(size=(4000, 4000)),
}


@pytest.fixture(scope="module")
def with_odd_images(small_artifacts, mounted, tmp_path_factory):
    """One run over all of them: which fault each lesion has, its scores, run.json."""
    competition = shutil.copytree(mounted, tmp_path_factory.mktemp("odd") / "competition")
    faults = dict(zip(read_table(competition)[ID], BROKEN | UNUSUAL, strict=False))
    with h5py.File(competition / "test-image.hdf5", "r+") as file:
        for isic_id, fault in faults.items():
            content = (BROKEN | UNUSUAL)[fault]
            del file[isic_id]
            if content is not None:
                file.create_dataset(isic_id, data=np.void(content) if content else h5py.Empty("S1"))
    with mock.patch("keras.applications.ResNet50", small_backbone):
        _, scores, facts = scored(competition, small_artifacts)
    return {fault: isic_id for isic_id, fault in faults.items()}, scores, facts


@pytest.mark.parametrize("fault", BROKEN)
def test_a_lesion_whose_image_cannot_be_read_keeps_its_tabular_score(with_odd_images, fault):
    lesion_with, scores, facts = with_odd_images
    row = scores.loc[lesion_with[fault]]
    assert row["image_scored"] == 0
    assert row["final"] == row["tabular"]
    assert facts["fallbacks"] == {"lesions_without_image_score": len(BROKEN)}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_image_is_scored_like_any_other(with_odd_images, kind):
    lesion_with, scores, facts = with_odd_images
    row = scores.loc[lesion_with[kind]]
    assert row["image_scored"] == 1
    assert row["final"] != row["tabular"]
    assert facts["image_scored"] == len(scores) - len(BROKEN)


@pytest.mark.parametrize("size", [0, 100, 5_000])
def test_a_cut_off_or_empty_image_file_leaves_the_tabular_submission(artifacts, competition, size):
    path = competition / "test-image.hdf5"
    path.write_bytes(path.read_bytes()[:size])
    _, scores, facts = scored(competition, artifacts)
    assert (scores["final"] == scores["tabular"]).all()
    assert facts["fallbacks"] == {"network_stopped": 1, "lesions_without_image_score": len(scores)}
    assert any("cannot be opened as HDF5" in note for note in facts["notes"])


def test_files_locked_by_another_process_are_read(artifacts, competition):
    files = [competition / "test-image.hdf5", *artifacts.glob("*.weights.h5")]
    with ExitStack() as locks:
        for path in files:
            fcntl.flock(locks.enter_context(path.open("rb")), fcntl.LOCK_EX)
        _, scores, facts = scored(competition, artifacts)
    assert facts["fallbacks"] == {}
    assert facts["fold_networks"] == len(files) - 1
    assert scores["image_scored"].all()


def test_an_image_file_that_is_written_to_during_the_run_gives_no_mixture(artifacts, competition, monkeypatch):
    path, more = competition / "test-image.hdf5", ["--batch-size", "4"]
    _, whole, _ = scored(competition, artifacts, more)
    with h5py.File(path) as file:
        images = {name: file[name][()] for name in file}
    read, count = ImageStore.read, iter(range(10_000))

    def harmed(self, isic_id):
        if next(count) == 9:
            with h5py.File(path.with_name("other.hdf5"), "w") as file:
                for name, image in zip(images, [*images.values()][::-1], strict=True):
                    file[name] = image
            path.write_bytes(path.with_name("other.hdf5").read_bytes())
        return read(self, isic_id)

    monkeypatch.setattr("inference.images.CHUNK", 4)
    monkeypatch.setattr(ImageStore, "read", harmed)
    _, scores, facts = scored(competition, artifacts, more)
    first = scores["image_scored"] == 1
    assert first.sum() == 8
    np.testing.assert_allclose(scores["final"][first], whole["final"][first], atol=1e-5)
    assert (scores["final"] == scores["tabular"])[~first].all()
    assert facts["fallbacks"] == {"network_stopped": 1, "lesions_without_image_score": len(scores) - 8}
    assert any("was changed while its images were read" in note for note in facts["notes"])


@pytest.mark.parametrize("name", ["test-metadata.csv", "sample_submission.csv", "test-image.hdf5"])
def test_files_that_change_before_the_first_image_leave_the_tabular_submission(artifacts, competition, monkeypatch, name):
    opened = submission.open_test_images

    def changing(folder):
        with (competition / name).open("ab") as file:
            file.write(b"\n")
        return opened(folder)

    monkeypatch.setattr(submission, "open_test_images", changing)
    _, scores, facts = scored(competition, artifacts)
    assert (scores["final"] == scores["tabular"]).all()
    assert facts["fallbacks"] == {"network_stopped": 1, "lesions_without_image_score": len(scores)}
    assert any("changed after its metadata was read" in note for note in facts["notes"])


# Metadata


def all_of(name, value):
    return lambda table: table.assign(**{name: value})


def first_rows(name, *values):
    def change(table):
        table.loc[table.index[: len(values)], name] = values
        return table

    return change


#: Fault -> what is done to the table, and what run.json counts.
TABLES = {
    "a column is missing": (lambda table: table.drop(columns="tbp_lv_H"), {"columns_missing": 1}),
    "a column too many": (lambda table: table.assign(stranger="1"), {}),
    "a column renamed": (lambda table: table.rename(columns={"tbp_lv_H": "tbp_lv_h"}), {"columns_missing": 1}),
    "another order": (lambda table: table[table.columns[::-1]], {}),
    "a column all empty": (all_of("tbp_lv_L", ""), {}),
    "every number empty": (lambda table: table.assign(**dict.fromkeys(NUMBERS, "")), {}),
    "NA strings": (first_rows("age_approx", "NA", "nan", "NULL", "None"), {}),
    "words where numbers belong": (first_rows("tbp_lv_L", "dark", "1,5"), {"cells_not_numeric": 2}),
    "infinite values": (first_rows("tbp_lv_A", "inf", "-inf", "1e400"), {"cells_not_numeric": 3}),
    "a duplicated isic_id": (lambda table: pd.concat([table, table[:2]]), {"duplicated_isic_id": 2}),
    "a patient with one lesion": (first_rows(PATIENT, "IP_0000001"), {}),
    "an empty patient_id": (first_rows(PATIENT, "", ""), {"rows_without_patient_id": 2}),
    "no patient_id at all": (lambda table: table.drop(columns=PATIENT), {"columns_missing": 1}),
    "every lesion of one patient": (all_of(PATIENT, "IP_0000001"), {}),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_table_in_disorder_is_scored_and_each_repair_counted(tabular_only, competition, fault):
    change, counted = TABLES[fault]
    change(read_table(competition)).to_csv(competition / "test-metadata.csv", index=False)
    submission, scores, facts = scored(competition, tabular_only)
    counts = {name: count for name, count in facts["fallbacks"].items() if name not in ("no_network", "no_images")}
    counts.pop("lesions_without_image_score", None)
    if fault == "no patient_id at all":
        counted = counted | {"rows_without_patient_id": len(submission)}
    assert counts == counted
    assert submission.nunique() > 1
    assert np.isfinite(scores["tabular"]).all()


@pytest.mark.parametrize("name", ["attribution", "anatom_site_general", "sex", "tbp_tile_type"])
def test_a_value_unseen_in_training_is_scored_and_counted(tabular_only, competition, name):
    table = read_table(competition)
    first_rows(name, "another value", "and another")(table).to_csv(competition / "test-metadata.csv", index=False)
    _, _, facts = scored(competition, tabular_only)
    assert facts["values_unseen_in_training"][name] == 2


def test_a_patient_with_nine_thousand_lesions_is_scored(tabular_only, competition):
    table = read_table(competition)
    many = table.iloc[np.arange(9_000) % len(table)].assign(**{PATIENT: "IP_0000001"})
    many[ID] = [f"ISIC_{number:07d}" for number in range(len(many))]
    many.to_csv(competition / "test-metadata.csv", index=False)
    (competition / "sample_submission.csv").unlink()
    submission, _, facts = scored(competition, tabular_only)
    assert len(submission) == 9_000
    assert facts["fallbacks"].pop("no_sample_submission") == 1


@pytest.mark.parametrize("rows", [0, 3])
def test_a_test_folder_of_no_or_three_rows(tabular_only, competition, rows):
    for name in ("test-metadata.csv", "sample_submission.csv"):
        pd.read_csv(competition / name, dtype="str", nrows=rows).to_csv(competition / name, index=False)
    submission, _, _ = scored(competition, tabular_only)
    assert len(submission) == rows


# The sample submission


def test_the_sample_submission_decides_the_order(tabular_only, competition):
    path = competition / "sample_submission.csv"
    pd.read_csv(path, dtype="str")[::-1].to_csv(path, index=False)
    before, scores, facts = scored(competition, tabular_only)
    assert before.index.tolist() == read_table(competition)[ID].tolist()[::-1]
    assert not {"ids_only_in_metadata", "ids_only_in_sample_submission"} & set(facts["fallbacks"])
    assert before.rank().reindex(scores.index).equals(scores["tabular"].rank())  # each score went to its own lesion


def test_ids_of_one_file_alone_are_counted(tabular_only, competition):
    path = competition / "sample_submission.csv"
    sample = pd.read_csv(path, dtype="str")
    strangers = pd.DataFrame({ID: ["ISIC_0000001", "ISIC_0000002"], "target": "0.3"})
    pd.concat([strangers, sample[3:]]).to_csv(path, index=False)
    submission, _, facts = scored(competition, tabular_only)
    assert facts["fallbacks"]["ids_only_in_sample_submission"] == 2
    assert facts["fallbacks"]["ids_only_in_metadata"] == 3
    assert submission.iloc[0] == submission.iloc[1]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"a,b\n1,2\n"], ids=["absent", "empty", "binary", "other"])
def test_without_a_usable_sample_submission_the_metadata_decides(tabular_only, competition, content):
    path = competition / "sample_submission.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    output = competition.parent / "submission.csv"
    assert main(["--competition", str(competition), "--artifacts", str(tabular_only), "--output", str(output)]) == 0
    checked_submission(output, read_table(competition)[ID].tolist())
    facts = json.loads(output.with_name("run.json").read_text())
    assert facts["fallbacks"]["no_sample_submission"] == 1


# Artifacts


def test_a_network_whose_weights_do_not_fit_is_left_out(artifacts, competition):
    build_network(NetworkConfig(32, head_units=3)).save_weights(artifacts / "fusion_fold1.weights.h5")
    sign(artifacts, "fusion_fold1.weights.h5")
    _, scores, facts = scored(competition, artifacts)
    assert facts["fallbacks"] == {"fold_networks_left_out": 1}
    assert facts["fold_networks"] == 1
    assert scores["image_scored"].all()


def test_no_network_that_fits_leaves_the_tabular_submission(artifacts, competition):
    for name in ("fusion_fold0.weights.h5", "fusion_fold1.weights.h5"):
        (artifacts / name).write_bytes(b"no HDF5")
        sign(artifacts, name)
    _, scores, facts = scored(competition, artifacts)
    assert facts["fallbacks"]["fold_networks_left_out"] == 2
    assert (scores["final"] == scores["tabular"]).all()


@pytest.mark.parametrize("content", [b"", b"CBM1", b"no model"])
def test_a_corrupted_catboost_model_is_left_out(tabular_only, competition, tmp_path, content):
    folder = shutil.copytree(tabular_only, tmp_path / "copy")
    (folder / "tabular_fold0_seed0.cbm").write_bytes(content)
    sign(folder, "tabular_fold0_seed0.cbm")
    _, _, facts = scored(competition, folder)
    assert facts["fallbacks"]["tabular_models_left_out"] == 1


# Hardware and time


def test_too_little_memory_takes_smaller_batches(artifacts, competition, monkeypatch):
    import tensorflow as tf

    from inference.network import Ensemble

    really = Ensemble._shared

    def small(self, crops, tabular):
        if len(crops) > 8:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return really(self, crops, tabular)

    monkeypatch.setattr(Ensemble, "_shared", small)
    _, scores, facts = scored(competition, artifacts, ["--batch-size", "32"])
    assert scores["image_scored"].all()
    assert facts["fallbacks"] == {"accelerator_memory": 2}  # 32, 16, 8


def test_where_not_even_one_crop_fits_the_tabular_scores_stay(artifacts, competition, monkeypatch):
    import tensorflow as tf

    def never(self, crops, tabular):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr("inference.network.Ensemble._shared", never)
    _, scores, facts = scored(competition, artifacts)
    assert (scores["final"] == scores["tabular"]).all()
    assert facts["fallbacks"]["network_stopped"] == 1


def test_a_time_budget_that_is_nearly_spent_leaves_the_rest_tabular(artifacts, competition):
    _, scores, facts = scored(competition, artifacts, ["--batch-size", "4", "--time-budget", "0.000001"])
    assert scores["image_scored"].sum() == 4
    assert scores["tabular"][scores["image_scored"] == 1].min() >= scores["tabular"][scores["image_scored"] == 0].max()
    assert facts["fallbacks"]["images_not_reached"] == len(scores) - 4
    assert (scores["final"] == scores["tabular"])[scores["image_scored"] == 0].all()


def test_a_share_of_the_lesions_has_the_scores_of_the_whole_and_the_others_their_tabular_one(artifacts, competition):
    _, whole, _ = scored(competition, artifacts, ["--batch-size", "4"])
    _, scores, facts = scored(competition, artifacts, ["--batch-size", "4", "--image-share", "0.3"])
    first = scores["image_scored"] == 1
    assert whole["image_scored"].all()
    assert first.sum() == facts["image_share"]["lesions"] == round(0.3 * len(scores))
    assert facts["fallbacks"] == {}
    np.testing.assert_allclose(scores["final"][first], whole["final"][first], atol=1e-5)
    assert (scores["final"] == scores["tabular"])[~first].all()
    assert scores["tabular"][first].min() >= scores["tabular"][~first].max()


def test_output_that_is_not_finite_is_not_submitted(artifacts, competition, monkeypatch):
    from inference.network import Ensemble

    really = Ensemble._shared

    def partly_nan(self, crops, tabular):
        found = really(self, crops, tabular).copy()
        found[::2] = [np.nan, np.inf][len(found) % 2]
        return found

    monkeypatch.setattr(Ensemble, "_shared", partly_nan)
    _, scores, facts = scored(competition, artifacts)
    lost = int((scores["image_scored"] == 0).sum())
    assert 0 < lost < len(scores)
    assert facts["fallbacks"] == {"network_output_not_finite": lost, "lesions_without_image_score": lost}
