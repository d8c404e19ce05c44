import errno
import json
import re
import shutil
from collections import Counter

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inference.schema import ID, PATIENT, repaired
from scale import batch_scoring, parts
from scale.artifact_folder import locked
from scale.batch_scoring import main, score_parts
from scale.parts import chunks, find_repeated, input_files, part_of
from train.stacking import train_stacking
from utils import InputError


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


@pytest.fixture
def score(scoring, tmp_path):
    """``score(*options)``: the command on ``scoring`` in three parts, into ``score.out``; later options replace earlier."""

    def run(*options):
        where = ["--input", str(scoring.tables), "--images", str(scoring.competition / "test-image.hdf5")]
        where += ["--artifacts", str(scoring.artifacts), "--out", str(run.out), "--parts", "3", "--batch-size", "16"]
        return main([*where, *map(str, options)])

    run.out = tmp_path / "out"
    return run


@pytest.mark.parametrize("place", ["here", "cluster"])
def test_scores_are_those_of_the_kernel(score, scoring, place, request):
    where = ["--cluster", request.getfixturevalue("two_workers")] if place == "cluster" else []
    assert score(*where) == 0
    found = scored(score.out)
    check_equal(found, scoring.kernel)
    assert found["image_scored"].sum() == len(found) - 3
    assert np.abs(found["final"] - found["tabular"]).max() > 0.1
    patients = [pd.read_parquet(path)[PATIENT].unique() for path in sorted(score.out.glob("scores-*.parquet"))]
    assert len(patients) > 1
    assert len(np.concatenate(patients)) == found[PATIENT].nunique()  # no patient is divided
    run = json.loads((score.out / "run.json").read_text())
    assert run["rows"] == run["lesions"] == len(found)
    assert run["image_scored"] == len(found) - 3
    assert run["peak_memory_gb"] > 0
    assert run["fallbacks"] == {}


def test_parquet_gives_the_same_scores_as_csv(score, scoring, tmp_path):
    (tmp_path / "parquet").mkdir()
    for path in scoring.tables.glob("*.csv"):
        pd.read_csv(path).to_parquet(tmp_path / "parquet" / f"{path.stem}.parquet")
    assert score("--input", tmp_path / "parquet") == 0
    check_equal(scored(score.out), scoring.kernel)


def test_the_combination_is_that_of_the_kernel(score, scoring, tmp_path):
    blended = shutil.copytree(scoring.artifacts, tmp_path / "artifacts")
    manifest = json.loads((blended / "manifest.json").read_text())
    weights = {"with_image": {"intercept": 0.5, "tabular": 0.25, "network": 0.75}}
    weights |= {"without_image": {"intercept": -1.0, "tabular": 2.0}}
    manifest["network"]["combination"] = {"kind": "blend"} | weights
    (blended / "manifest.json").write_text(json.dumps(manifest))
    assert score("--artifacts", blended) == 0
    found = scored(score.out)
    check_equal(found, scoring.by_kernel(scoring.competition, blended, tmp_path / "kernel"))
    expected = np.where(
        found["image_scored"], 0.5 + 0.25 * found["tabular"] + 0.75 * found["network"], 2 * found["tabular"] - 1
    )
    np.testing.assert_allclose(found["final"], expected)


def test_the_last_stage_has_the_scores_of_the_kernel(score, scoring, synthetic_data, tmp_path):
    stacked = shutil.copytree(scoring.artifacts, tmp_path / "artifacts")
    parameters = tmp_path / "few_trees.json"
    parameters.write_text(json.dumps({"iterations": 10, "depth": 3, "learning_rate": 0.3}))
    where = ["--data", str(synthetic_data), "--artifacts", str(stacked)]
    assert train_stacking([*where, "--seeds", "1", "--params", str(parameters), "--combine", "stacking"]) == 0
    assert score("--artifacts", stacked) == 0
    found, expected = scored(score.out), scoring.by_kernel(scoring.competition, stacked, tmp_path / "kernel")
    check_equal(found, expected)
    np.testing.assert_allclose(found["stacking"], expected["stacking"].loc[found.index], atol=1e-5)
    compared = found["stacking"].notna()
    assert 0 < compared.sum() < found["image_scored"].sum()  # some patients lack an image
    run = json.loads((score.out / "run.json").read_text())
    assert run["fallbacks"] == {"lesions_not_stacked": int((found["image_scored"].astype(bool) & ~compared).sum())}


def test_without_images_the_scores_are_tabular(scoring, tmp_path):
    where = ["--input", str(scoring.tables), "--artifacts", str(scoring.artifacts), "--out", str(tmp_path / "out")]
    assert main(where) == 0
    found = scored(tmp_path / "out")
    np.testing.assert_allclose(found.loc[scoring.kernel.index, "final"], scoring.kernel["tabular"], atol=1e-6)
    assert not found["image_scored"].any()


def test_finished_files_are_not_made_again(score, monkeypatch, capsys):
    out = score.out
    assert score() == 0
    whole = scored(out)
    first = capsys.readouterr().out
    memory = re.compile(r"[\d.]+ GB")  # the peak memory of this process only grows
    lost = sorted(out.glob("scores-*.parquet"))[1]
    lost.unlink()
    (out / "split-00002.json").unlink()
    next(out.glob("part-*/00002-*.parquet")).unlink()  # as if the splitting had been killed in the middle
    again = {path.name for path in out.glob("part-*/00002-*.parquet")}
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet") if path.name not in again}
    asked, opened = [], []
    score_tabular, read = parts.score_tabular, parts.chunks
    monkeypatch.setattr(parts, "score_tabular", lambda rows, *more: asked.append(len(rows)) or score_tabular(rows, *more))
    monkeypatch.setattr(parts, "chunks", lambda path, *more: opened.append(path.name) or read(path, *more))
    assert score() == 0
    assert asked == [len(pd.read_parquet(lost))]
    assert opened == ["2.csv"]
    assert again
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    pd.testing.assert_frame_equal(scored(out), whole)
    second = capsys.readouterr().out
    assert memory.search(first)
    assert memory.sub("", second) == memory.sub("", first)


def test_scores_are_in_the_folder_when_all_parts_are_scored(scoring, tmp_path, monkeypatch):
    """A disk that is full at the second part; then the same command goes on with that part."""
    out = tmp_path / "out"
    where = ["--input", str(scoring.tables), "--artifacts", str(scoring.artifacts), "--out", str(out), "--parts", "3"]
    asked, score_tabular = [], parts.score_tabular

    def full(rows, *more):
        asked.append(len(rows))
        if len(asked) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return score_tabular(rows, *more)

    monkeypatch.setattr(parts, "score_tabular", full)
    with pytest.raises(OSError, match="No space"):
        main(where)
    assert len(asked) == 2
    assert not list(out.glob("*scores-*")) and not (out / "run.json").exists()
    for folder in (out, out / ".scored", out / "part-00000"):
        (folder / ".123.scores-00002.parquet").write_bytes(b"PAR1")  # as after kill -9
    with locked(out), pytest.raises(InputError, match=r" on .* since "):
        main(where)
    assert main(where) == 0
    assert sum(asked) - asked[1] == len(scored(out)) == json.loads((out / "run.json").read_text())["rows"]
    assert not any(path.name.startswith(".") for path in out.rglob("*"))


def test_a_folder_of_other_settings_or_other_files_is_refused(score, scoring):
    assert score() == 0
    with pytest.raises(InputError, match=r"out was begun with other --parts"):
        score("--parts", "2")
    with pytest.raises(InputError, match=r"tables is not empty"):
        score("--out", scoring.tables)


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_folder_with_settings_of_something_else_is_refused(score, content):
    score.out.mkdir()
    (score.out / "settings.json").write_text(content)
    with pytest.raises(InputError, match=r"settings\.json is not of this command"):
        score()


def test_unusable_cells_and_rows_are_repaired_and_counted(scoring, tmp_path):
    table = pd.read_csv(scoring.tables / "0.csv", dtype="str", keep_default_na=False)
    table.loc[0, "age_approx"] = "old"
    table.loc[1, PATIENT] = ""
    table = pd.concat([table, table.iloc[[2]]])
    (tmp_path / "tables").mkdir()
    table.to_csv(tmp_path / "tables" / "0.csv", index=False)
    where = ["--input", str(tmp_path / "tables"), "--artifacts", str(scoring.artifacts), "--out", str(tmp_path / "out")]
    assert main(where) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert sorted(run["fallbacks"].values()) == [1, 1, 1]
    assert any("duplicated" in reason for reason in run["fallbacks"])
    assert run["lesions"] == run["rows"] - 1 == len(table) - 1


# Input


def test_the_input_may_be_linked_but_not_to_nowhere(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "one.csv").touch()
    (tmp_path / "files" / "linked.csv").symlink_to("../one.csv")
    (tmp_path / "folder").symlink_to("files")
    assert input_files(tmp_path / "folder") == [tmp_path / "folder" / "linked.csv"]
    (tmp_path / "one.csv").unlink()
    with pytest.raises(InputError, match=r"linked\.csv is a link to"):
        input_files(tmp_path / "folder")


def test_a_patient_is_always_in_the_same_part():
    frame = pd.DataFrame({ID: ["a", "b", "c", "d"], PATIENT: ["p", None, "p", np.nan]})
    assert part_of(frame, 5).tolist() == [*part_of(frame[:2], 5), *part_of(frame[2:], 5)]
    assert part_of(frame, 5)[0] == part_of(frame, 5)[2]
    assert set(part_of(pd.DataFrame({ID: range(99), PATIENT: None}), 3)) == {0, 1, 2}  # without one, each is its own
    assert part_of(pd.DataFrame({ID: ["x"], PATIENT: ["IP_1"]}), 1_000).tolist() == [
        part_of(frame.assign(**{PATIENT: "IP_1"}), 1_000)[0]
    ]


def test_an_input_file_is_read_in_chunks_of_its_test_columns(synthetic_data, monkeypatch):
    monkeypatch.setattr(parts, "CHUNK", 25)
    read = list(chunks(synthetic_data / "train-metadata.csv", Counter()))
    assert [len(frame) for frame in read] == [25, 25, 10]
    assert "target" not in read[0]
    assert read[0][PATIENT].map(type).eq(str).all()


#: How the same rows may be written, and what is counted then.
WRITTEN = {
    "commas at the ends of rows": (lambda lines: [lines[0], *(line + "," for line in lines[1:])], {}),
    "blank lines": (lambda lines: ["", *(text for line in lines for text in (line, ""))], {}),
    "a row that is too long": (lambda lines: [*lines[:5], lines[5] + ",x", *lines[6:]], {"rows_too_long": 1}),
    "a cut row": (lambda lines: [*lines, lines[-1][:20]], {"rows_too_short": 1, "duplicated_isic_id": 1}),
    "a repeated row": (lambda lines: [*lines, lines[3]], {"duplicated_isic_id": 1}),
    "a row repeated for another patient": (
        lambda lines: [
            *lines,
            *(lines[1].replace(patient, f"P{n}") for n, patient in enumerate([lines[1].split(",")[1]] * 5)),
        ],
        {"duplicated_isic_id": 5},
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_same_rows_have_the_same_scores_however_they_are_written(scoring, tmp_path, kind, encoding):
    change, counted = WRITTEN[kind]
    lines = (scoring.tables / "0.csv").read_text().splitlines()
    tables = {"plain": lines, "changed": change(lines)}
    for name, content in tables.items():
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(content), encoding=encoding if name == "changed" else "utf-8")
        where = ["--input", str(path), "--artifacts", str(scoring.artifacts), "--out", str(tmp_path / name), "--parts", "4"]
        assert main(where) == 0
    plain, changed = (scored(tmp_path / name) for name in tables)
    np.testing.assert_array_equal(changed["final"].loc[plain.index], plain["final"])
    assert changed.index.is_unique
    assert json.loads((tmp_path / "changed" / "run.json").read_text())["fallbacks"] == counted


def test_a_corrected_input_of_equal_size_is_not_what_was_scored(score, scoring, tmp_path):
    tables, images = shutil.copytree(scoring.tables, tmp_path / "tables"), tmp_path / "images.hdf5"
    shutil.copy(scoring.competition / "test-image.hdf5", images)
    where = ["--input", tables, "--images", images]
    assert score(*where) == 0
    for path, option in ((tables / "1.csv", "--input"), (images, "--images")):
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(InputError, match=f"begun with other {option}"):
            score(*where)
        path.write_bytes(content)
    assert score(*where) == 0


def test_images_that_change_between_two_parts_give_no_scores(score, scoring, tmp_path, monkeypatch):
    images = tmp_path / "images.hdf5"
    shutil.copy(scoring.competition / "test-image.hdf5", images)
    summarized = []

    def replaced(*asked):
        content = images.read_bytes()
        images.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        return score_parts(*asked)

    monkeypatch.setattr(batch_scoring, "score_parts", replaced)
    monkeypatch.setattr(batch_scoring, "summarize", summarized.append)
    with pytest.raises(InputError, match="--images: changed while"):
        score("--images", images)
    assert not summarized and not list(score.out.glob("scores-*"))


def test_a_network_that_cannot_be_loaded_is_an_error(score, scoring, tmp_path):
    broken = shutil.copytree(scoring.artifacts, tmp_path / "broken")
    (broken / "fusion_fold1.weights.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"fusion_fold1\.weights\.h5"):
        score("--artifacts", broken)
    assert not list(score.out.glob("scores-*"))


def test_networks_are_loaded_once_for_a_content_of_the_artifacts(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(parts, "load_manifest", lambda folder: {})
    monkeypatch.setattr(parts, "load_networks", lambda *_: loaded.append(0) or len(loaded))
    assert [parts.networks(tmp_path, sha256) for sha256 in ("a", "a", "b")] == [1, 1, 2]
    parts.networks.cache_clear()


def test_images_of_other_lesions_are_refused_with_ids_of_both_sides(score, scoring, tmp_path):
    with h5py.File(tmp_path / "images.hdf5", "w") as file:
        file["77"] = np.void(b"x")
    with pytest.raises(
        InputError, match=r"of --input \(ISIC_\d+, ISIC_\d+, ISIC_\d+\) .* 1 of the 1 ids of .*images\.hdf5 \(77\)"
    ):
        score("--images", tmp_path / "images.hdf5")


#: Columns of ids in a Parquet file, and the ids that they are.
PARQUET_IDS = {
    "floats": (pa.array([7.0, None, 10.0]), ["7", None, "10"]),
    "integers": (pa.array([7, None, 2**60 + 1]), ["7", None, str(2**60 + 1)]),
    "text": (pa.array(["007", "", "7.0"]), ["007", None, "7.0"]),
    "bytes": (pa.array([b"007", None, b"IP_1"]), ["007", None, "IP_1"]),
    "dictionary": (pa.array(["007", None, "007"]).dictionary_encode(), ["007", None, "007"]),
}


@pytest.mark.parametrize("kind", PARQUET_IDS)
def test_ids_of_parquet_files_are_text(tmp_path, kind):
    values, texts = PARQUET_IDS[kind]
    table = pa.Table.from_arrays([values, values, pa.array(["1.5", "old", None])], names=[ID, PATIENT, "age_approx"])
    pq.write_table(table, tmp_path / "a.parquet")
    (frame,) = chunks(tmp_path / "a.parquet", Counter())
    assert frame[ID].tolist() == frame[PATIENT].tolist() == texts
    assert frame["age_approx"].tolist() == ["1.5", "old", None]


def test_columns_of_parquet_files_may_be_repeated_or_of_any_type(tmp_path):
    ids, lists = pa.array(["a", "b"]), pa.array([[1], None])
    table = pa.Table.from_arrays([ids, ids, lists, lists], names=[ID, PATIENT, "age_approx", ID])
    pq.write_table(table, tmp_path / "a.parquet")
    repairs = Counter()
    (frame,) = chunks(tmp_path / "a.parquet", repairs)
    assert repairs == {"duplicated_columns": 1}
    assert frame[ID].tolist() == ["a", "b"]
    assert repaired(frame, "a.parquet")[1]["cells_not_numeric"] == 1


def test_repeated_rows_are_found_in_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "IN_MEMORY", 3)
    rows = pd.DataFrame({ID: ["a", "b", "a", None, "c", "b", "a", None], "order": [5, 1, 2, 3, 4, 0, 6, 7]})
    for part in range(2):
        (tmp_path / f"part-{part:05d}").mkdir()
        rows[part::2].to_parquet(tmp_path / f"part-{part:05d}" / "00000-00000.parquet")
    find_repeated(tmp_path, len(rows))
    found = pd.read_parquet(tmp_path / parts.REPEATED)
    assert sorted(zip(found["part"], found["order"], strict=True)) == [(0, 5), (0, 6), (1, 1)]


@pytest.mark.parametrize(
    ("names", "found"),
    [((), "no .parquet and no .csv file"), (("a.csv", "b.parquet"), "has .csv and .parquet files")],
)
def test_an_input_of_no_or_two_kinds_is_refused(tmp_path, names, found):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=found):
        input_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.parquet", b"PAR1 broken", r"a\.parquet cannot be read .*; write it again"),
        ("a.csv", b"isic_id,age_approx\nx,5\n", r"a\.csv has no column 'patient_id'"),
        ("a.csv", b"", r"a\.csv cannot be read"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=found):
        list(chunks(tmp_path / name, Counter()))


def test_a_cut_parquet_file_is_named_before_anything_is_written(scoring, tmp_path):
    pd.read_csv(scoring.tables / "0.csv").to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"a\.parquet cannot be read"):
        main(["--input", str(tmp_path / "a.parquet"), "--artifacts", str(scoring.artifacts), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_numbers_below_one_are_refused(tmp_path):
    where = ["--input", str(tmp_path), "--artifacts", str(tmp_path), "--out", str(tmp_path / "out")]
    for flag in ("--parts", "--batch-size"):
        with pytest.raises(InputError, match=f"{flag}: '0'"):
            main([*where, flag, "0"])
