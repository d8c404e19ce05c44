import json
import re
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from dask_cluster import cluster
from untrained_networks import make_artifacts

from evaluation.dry_run import mount_test_folder
from inference.schema import ID, PATIENT
from inference.submission import main as run_kernel
from scale import parts as archive_parts
from scale.batch_scoring import main
from scale.parts import chunks, input_files, part_of
from utils import InputError


@pytest.fixture(scope="module")
def artifacts(synthetic_data, tmp_path_factory):
    return make_artifacts(synthetic_data, tmp_path_factory.mktemp("made") / "artifacts")


@pytest.fixture(scope="module")
def mounted(synthetic_data, tmp_path_factory):
    """The synthetic_data as a test folder; three lesions have no image."""
    folder = tmp_path_factory.mktemp("mounted") / "competition"
    ids = pd.read_csv(synthetic_data / "train-metadata.csv", low_memory=False)[ID].tolist()
    mount_test_folder(synthetic_data, ids, folder)
    with h5py.File(folder / "test-image.hdf5", "r+") as file:
        for isic_id in ids[:3]:
            del file[isic_id]
    return folder


@pytest.fixture(scope="module")
def divided(mounted, tmp_path_factory):
    """The test folder's metadata in three CSV files, in which the patients lie scattered."""
    folder = tmp_path_factory.mktemp("divided")
    table = pd.read_csv(mounted / "test-metadata.csv", dtype="str", keep_default_na=False)
    for number in range(3):
        table.iloc[number::3].to_csv(folder / f"{number}.csv", index=False)
    return folder


def by_kernel(mounted, artifacts, folder):
    """What the kernel makes of the whole test folder: scores and probabilities by isic_id."""
    where = ["--competition", str(mounted), "--artifacts", str(artifacts)]
    assert run_kernel([*where, "--output", str(folder / "submission.csv"), "--scores", str(folder / "scores.csv")]) == 0
    scores = pd.read_csv(folder / "scores.csv").set_index(ID)
    return scores.join(pd.read_csv(folder / "submission.csv").set_index(ID)["target"])


def scored(folder):
    """The scores of all parts."""
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("scores-*.parquet"))]).set_index(ID)


def check_equal(found, expected):
    assert sorted(found.index) == sorted(expected.index)
    found = found.loc[expected.index]
    np.testing.assert_allclose(found["tabular"], expected["tabular"], atol=1e-6)
    np.testing.assert_allclose(found["final"], expected["final"], atol=1e-5)
    np.testing.assert_allclose(found["probability"], expected["target"], atol=1e-6)
    assert found["image_scored"].astype(int).tolist() == expected["image_scored"].tolist()


def command(divided, mounted, artifacts, out, *more):
    where = ["--input", str(divided), "--images", str(mounted / "test-image.hdf5"), "--artifacts", str(artifacts)]
    return [*where, "--out", str(out), "--parts", "3", "--batch-size", "16", *more]


@pytest.mark.parametrize("how", ["here", "cluster"])
def test_the_scores_are_the_kernels(divided, mounted, artifacts, tmp_path, how):
    out = tmp_path / "out"
    if how == "here":
        assert main(command(divided, mounted, artifacts, out)) == 0
    else:
        with cluster(2, tmp_path / "cluster") as (address, _):
            assert main(command(divided, mounted, artifacts, out, "--cluster", address)) == 0
    found = scored(out)
    check_equal(found, by_kernel(mounted, artifacts, tmp_path))
    assert found["image_scored"].sum() == len(found) - 3
    assert np.abs(found["final"] - found["tabular"]).max() > 0.1
    places = [pd.read_parquet(path)[PATIENT].unique() for path in sorted(out.glob("scores-*.parquet"))]
    assert len(places) > 1
    assert len(np.concatenate(places)) == found[PATIENT].nunique()  # nobody is divided
    run = json.loads((out / "run.json").read_text())
    assert run["rows"] == run["lesions"] == len(found)
    assert run["scored by image"] == len(found) - 3
    assert run["fallbacks"] == {}


def test_parquet_gives_the_same_scores_as_csv(divided, mounted, artifacts, tmp_path):
    (tmp_path / "parquet").mkdir()
    for path in divided.glob("*.csv"):
        pd.read_csv(path).to_parquet(tmp_path / "parquet" / f"{path.stem}.parquet")
    assert main(command(tmp_path / "parquet", mounted, artifacts, tmp_path / "out")) == 0
    check_equal(scored(tmp_path / "out"), by_kernel(mounted, artifacts, tmp_path))


def test_ranks_are_taken_among_all_parts(divided, mounted, artifacts, tmp_path):
    ranked = shutil.copytree(artifacts, tmp_path / "artifacts")
    manifest = json.loads((ranked / "manifest.json").read_text())
    manifest["network"]["combination"] = {"kind": "rank_average"}
    (ranked / "manifest.json").write_text(json.dumps(manifest))
    assert main(command(divided, mounted, ranked, tmp_path / "out")) == 0
    check_equal(scored(tmp_path / "out"), by_kernel(mounted, ranked, tmp_path))


def test_without_images_the_scores_are_tabular(divided, mounted, artifacts, tmp_path):
    options = ["--input", str(divided), "--artifacts", str(artifacts), "--out", str(tmp_path / "out")]
    assert main(options) == 0
    found, expected = scored(tmp_path / "out"), by_kernel(mounted, artifacts, tmp_path)
    np.testing.assert_allclose(found.loc[expected.index, "final"], expected["tabular"], atol=1e-6)
    assert not found["image_scored"].any()


def test_what_is_finished_is_not_done_again(divided, mounted, artifacts, tmp_path, monkeypatch, capsys):
    out, options = tmp_path / "out", command(divided, mounted, artifacts, tmp_path / "out")
    assert main(options) == 0
    whole = scored(out)
    first = capsys.readouterr().out
    told = re.compile(r"[\d.]+ GB")  # the most memory of this process only grows, whoever made it grow
    lost = sorted(out.glob("scores-*.parquet"))[1]
    lost.unlink()
    (out / "dealt-00002.json").unlink()
    next(out.glob("part-*/00002-*.parquet")).unlink()  # as if the splitting had been killed in the middle
    again = {path.name for path in out.glob("part-*/00002-*.parquet")}
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    asked, opened = [], []
    score, read = archive_parts.score_tabular, archive_parts.chunks
    monkeypatch.setattr(archive_parts, "score_tabular", lambda rows, *more: asked.append(len(rows)) or score(rows, *more))
    monkeypatch.setattr(archive_parts, "chunks", lambda path: opened.append(path.name) or read(path))
    assert main(options) == 0
    assert asked == [len(pd.read_parquet(lost))]
    assert opened == ["2.csv"]
    assert again
    assert {path: path.stat().st_mtime_ns for path in kept if path.name not in again} == {
        path: moment for path, moment in kept.items() if path.name not in again
    }
    pd.testing.assert_frame_equal(scored(out), whole)
    second = capsys.readouterr().out
    assert told.search(first)
    assert told.sub("", second) == told.sub("", first)


def test_another_question_is_refused_and_not_mixed(divided, mounted, artifacts, tmp_path):
    assert main(command(divided, mounted, artifacts, tmp_path / "out")) == 0
    with pytest.raises(InputError, match=r"out was begun with other --parts; give another --out, or remove it"):
        main([*command(divided, mounted, artifacts, tmp_path / "out"), "--parts", "2"])
    with pytest.raises(InputError, match=r"divided.* is not empty and holds nothing of this command"):
        main(command(divided, mounted, artifacts, divided))


def test_what_is_wrong_with_rows_is_repaired_and_counted(divided, mounted, artifacts, tmp_path):
    table = pd.read_csv(divided / "0.csv", dtype="str", keep_default_na=False)
    table.loc[0, "age_approx"] = "old"
    table.loc[1, PATIENT] = ""
    table = pd.concat([table, table.iloc[[2]]])
    (tmp_path / "archive").mkdir()
    table.to_csv(tmp_path / "archive" / "0.csv", index=False)
    assert main(["--input", str(tmp_path / "archive"), "--artifacts", str(artifacts), "--out", str(tmp_path / "out")]) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    counted = {"duplicated isic_id": 1, "rows without patient_id": 1, "cells that are no number": 1}
    assert run["fallbacks"] == counted
    assert run["lesions"] == run["rows"] - 1 == len(table) - 1


# Input


def test_a_patient_is_always_in_the_same_part():
    frame = pd.DataFrame({ID: ["a", "b", "c", "d"], PATIENT: ["p", None, "p", np.nan]})
    assert part_of(frame, 5).tolist() == [*part_of(frame[:2], 5), *part_of(frame[2:], 5)]
    assert part_of(frame, 5)[0] == part_of(frame, 5)[2]
    assert set(part_of(pd.DataFrame({ID: range(99), PATIENT: None}), 3)) == {0, 1, 2}  # without one, each is its own
    assert part_of(pd.DataFrame({ID: ["x"], PATIENT: ["IP_1"]}), 1_000).tolist() == [
        part_of(frame.assign(**{PATIENT: "IP_1"}), 1_000)[0]
    ]


def test_an_input_file_is_read_in_chunks_without_what_only_training_has(synthetic_data, monkeypatch):
    monkeypatch.setattr(archive_parts, "CHUNK", 25)
    read = list(chunks(synthetic_data / "train-metadata.csv"))
    assert [len(frame) for frame in read] == [25, 25, 10]
    assert "target" not in read[0]
    assert read[0][PATIENT].map(type).eq(str).all()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ((), "has no .parquet and no .csv file"),
        (("a.csv", "b.parquet"), "has files of the kinds .csv, .parquet; give"),
    ],
)
def test_an_input_of_no_or_two_kinds_is_refused(tmp_path, names, sentence):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=sentence):
        input_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.parquet", b"PAR1 broken", r"a\.parquet cannot be read .*; write it again"),
        ("a.csv", b"isic_id,age_approx\nx,5\n", r"a\.csv has no column 'patient_id'"),
        ("a.csv", b"", r"a\.csv cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        list(chunks(tmp_path / name))
