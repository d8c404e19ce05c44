"""Parts of whole patients, and the scores of a part: the tasks of ``scale.batch_scoring``.

Patient context compares a lesion with the patient's others, so a patient is never divided. Each input file is split on its
own into pieces, by a hash of the patient; the pieces of a part, of all files, are scored together by the kernel's own
functions. Both tasks can be repeated: every file that they write is whole or absent, and the same when a task runs again.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from inference.artifacts import MANIFEST, artifact_path, load_manifest
from inference.files import refuse_dangling, replacing, sha256_of, write_json
from inference.images import ImageStore
from inference.run_log import Run, peak_memory
from inference.schema import ID, PATIENT, TEST_COLUMNS, TEXT_COLUMNS, repaired
from inference.scoring import (
    FINAL,
    NETWORK,
    TABULAR,
    ImageOptions,
    Networks,
    combine_stages,
    load_networks,
    score_images,
    score_tabular,
)
from inference.tables import Reading, as_text, csv_chunks, id_mismatch
from scale.parallel import Files
from utils import InputError

#: Rows of an input file that are in memory at a time.
CHUNK = 100_000
#: In the folder of a run: the scores until all parts have theirs.
SCORED = ".scored"
#: Suffixes of input files.
KINDS = (".parquet", ".csv")
#: In the folder of a run: the rows whose isic_id an earlier row has. They are found among so many rows at a time.
REPEATED, IN_MEMORY = "repeated.parquet", 20_000_000


def input_files(source: Path) -> list[Path]:
    """The Parquet or CSV files of the input: ``source`` itself, or those in the folder, in the order of their names.

    Raises:
        InputError: there are none, or of both kinds.
    """
    files = [source] if source.is_file() else sorted(path for path in source.glob("*") if path.suffix in KINDS)
    for path in files:
        refuse_dangling(path)
    kinds = sorted({path.suffix for path in files})
    if len(kinds) != 1 or kinds[0] not in KINDS:
        found = f"{' and '.join(kinds)} files" if kinds else "no .parquet and no .csv file"
        raise InputError(f"--input {source} has {found}; give files of one of the two kinds.")
    return files


def chunks(path: Path, repairs: Counter[str]) -> Iterator[pd.DataFrame]:
    """The test columns of an input file, ``CHUNK`` rows at a time: ids and categories as text, by the kernel's rules.

    Args:
        path: the file.
        repairs: counts what was repaired.

    Raises:
        InputError: it cannot be read, or has no id column.
    """
    try:
        if path.suffix == ".csv":
            frames = csv_chunks(path, Reading(TEXT_COLUMNS, columns=frozenset(TEST_COLUMNS), repairs=repairs), CHUNK)
        else:
            frames = map(_frame_of, pq.ParquetFile(path).iter_batches(CHUNK, columns=_columns_of(path, repairs)))
        for frame in frames:
            for name in (ID, PATIENT):
                if name not in frame:
                    raise InputError(f"{path} has no column {name!r}; add it.")
            yield frame
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({str(error).strip().splitlines()[0]}); write it again.") from error


def rows_of(path: Path) -> int:
    """How many rows a Parquet file has. Raises InputError if it cannot be read."""
    try:
        return pq.read_metadata(path).num_rows
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read ({str(error).strip().splitlines()[0]}); write it again.") from error


def _columns_of(path: Path, repairs: Counter[str]) -> list[str]:
    """The test columns that a Parquet file has."""
    names = pq.read_schema(path).names
    repeated = sum(names.count(name) > 1 for name in TEST_COLUMNS)
    repairs.update({"duplicated_columns": repeated} if repeated else {})
    return [name for name in TEST_COLUMNS if name in names]


def _frame_of(batch: pa.RecordBatch) -> pd.DataFrame:
    """Rows of a Parquet file; of columns with one name the first."""
    names = batch.schema.names
    return pd.DataFrame({name: _column_of(batch.column(names.index(name)), name) for name in dict.fromkeys(names)})


def _column_of(column: pa.Array, name: str) -> pd.Series:
    """A column as a CSV file would give it: ids, categories and what is no number as text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type) and name in TEXT_COLUMNS:
        column = column.cast(pa.string())  # pandas would make floats of integers with missing ones
    is_number = any(kind(column.type) for kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean))
    values = pd.Series(column.to_pandas())
    return values if is_number and name not in TEXT_COLUMNS else as_text(values)


def part_of(frame: pd.DataFrame, parts: int) -> np.ndarray:
    """The number of the part that each row belongs to, shape (rows,): the same for all rows of a patient, on any machine."""
    patients = frame[PATIENT].where(frame[PATIENT].notna(), "alone:" + frame[ID].astype(str)).astype(str)
    return (pd.util.hash_array(patients.to_numpy(object), categorize=False) % np.uint64(parts)).astype(int)


def split_file(files: Files, number: int, path: Path, sha256: str, parts: int) -> int:
    """Writes the rows of input file ``number`` into the folders of their parts; returns how many it has.

    The pieces have a column ``order`` besides: a row's place among all rows of all files.

    Raises:
        InputError: the file cannot be read, or its content is another than that of ``sha256``.
    """
    done = files.folder / f"split-{number:05d}.json"
    if not done.is_file():
        rows = 0
        repairs: Counter[str] = Counter()
        for chunk, frame in enumerate(chunks(files[path], repairs)):
            frame = frame.assign(order=(number << 40) + rows + np.arange(len(frame)))
            rows += len(frame)
            for part, piece in frame.groupby(part_of(frame, parts)):
                with replacing(folder_of(files.folder, part) / f"{number:05d}-{chunk:05d}.parquet") as temporary:
                    piece.to_parquet(temporary, index=False)
        if sha256_of(files[path]) != sha256:
            raise InputError(f"{path} was changed while it was read; run the command again with another --out.")
        write_json(done, {"rows": rows, "fallbacks": repairs})
    return json.loads(done.read_text(encoding="utf-8"))["rows"]


def find_repeated(folder: Path, rows: int) -> None:
    """Writes ``REPEATED``, the ``part`` and ``order`` of every row whose isic_id an earlier row has: the first row counts.

    All ids at once could take more memory than there is, so they are compared in passes, by their hashes.

    Args:
        folder: with the pieces of all files.
        rows: how many there are in all.
    """
    if (folder / REPEATED).is_file():
        return
    passes, found = max(1, -(-rows // IN_MEMORY)), []
    for number in range(passes):
        keys = [_keys(piece, number, passes) for piece in _all_pieces(folder)]
        table = pd.concat(keys, ignore_index=True).sort_values("order") if keys else _keys(None, 0, 1)
        found.append(table[table["key"].duplicated()].drop(columns="key"))
    with replacing(folder / REPEATED) as temporary:
        pd.concat(found, ignore_index=True).to_parquet(temporary, index=False)


def _keys(piece: Path | None, number: int, passes: int) -> pd.DataFrame:
    """``key``, a hash of the isic_id, with ``part`` and ``order``, of the rows of a piece that a pass compares."""
    if piece is None:
        return pd.DataFrame({"key": [], "part": [], "order": []}, dtype="int64")
    rows = pd.read_parquet(piece, columns=[ID, "order"]).dropna(subset=ID)
    keys = pd.util.hash_array(rows[ID].to_numpy(object), categorize=False)
    rows = rows.assign(key=keys, part=int(piece.parent.name.removeprefix("part-")))[["key", "part", "order"]]
    return rows[keys % np.uint64(passes) == number]


def refuse_other_images(folder: Path, images: Path) -> None:
    """Raises InputError where no row has an image."""
    store = ImageStore(images)
    try:
        ids = _isic_ids(folder)
        first = next(ids, None)
        if first is not None and first not in store and not any(isic_id in store for isic_id in ids):
            differ = id_mismatch("--input", _isic_ids(folder), f"--images {images}", store.names())
            raise InputError(f"{differ}; give the images of these lesions.")
    finally:
        store.close()


def _isic_ids(folder: Path) -> Iterator[str]:
    """The ids of all rows, piece by piece."""
    for piece in _all_pieces(folder):
        yield from pd.read_parquet(piece, columns=[ID])[ID].dropna()


def _all_pieces(folder: Path) -> list[Path]:
    """The pieces of all parts."""
    return sorted(folder.glob("part-*/[0-9]*.parquet"))


def score_part(files: Files, part: int, artifacts: Path, images: Path | None, batch_size: int) -> None:
    """Scores the patients of a part; writes report-<part>.json and scores-<part>.parquet, a row per lesion.

    Columns: isic_id, patient_id, the logits of all stages and ``final``, ``image_scored``, ``probability``.
    """
    manifest, run = load_manifest(files[artifacts]), Run()
    frame = pd.concat([pd.read_parquet(piece) for piece in pieces_of(files.folder, part)], ignore_index=True)
    repeated = pd.read_parquet(files.folder / REPEATED, filters=[("part", "==", part)])["order"]
    frame = frame[~frame["order"].isin(repeated)]
    with contextlib.redirect_stdout(io.StringIO()):  # the kernel's log lines, once per part, would be too many
        rows, repairs = repaired(frame, f"part {part}")
        tabular = score_tabular(rows, files[artifacts], manifest, run)
        scores = pd.DataFrame({TABULAR: tabular, NETWORK: tabular, FINAL: tabular, "image_scored": 0})
        if images and "network" in manifest:
            loaded = networks(files[artifacts], sha256_of(artifact_path(files[artifacts], MANIFEST)))

            def load():
                return loaded.renewed(run.fall_back), ImageStore(files[images])

            logits = score_images(rows, tabular, load, manifest, ImageOptions(batch_size), run)
            scores = combine_stages(rows, tabular, logits, files[artifacts], manifest, run)
    probability = 1.0 / (1.0 + np.exp(-np.clip(scores[FINAL].to_numpy(), -700, 700)))
    scores = rows[[ID, PATIENT]].join(scores.set_index(rows.index)).assign(probability=probability)
    fallbacks = {reason: count for reason, count in run.fallbacks.items() if reason != "lesions_without_image_score"}
    report: dict[str, Any] = {
        "lesions": len(rows),
        "image_scored": int(scores["image_scored"].sum()),
        "seconds": round(run.elapsed, 1),
    }
    repairs |= {"duplicated_isic_id": len(repeated)} if len(repeated) else {}
    report |= {"fallbacks": fallbacks | repairs, "peak_memory_gb": peak_memory()}
    write_json(files.folder / f"report-{part:05d}.json", report)
    with replacing(scores_of(files.folder, part)) as temporary:
        scores.to_parquet(temporary, index=False)


def reports(folder: Path) -> list[dict[str, Any]]:
    """The reports of all scored parts."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("report-*.json"))]


def reading_repairs(folder: Path) -> Counter[str]:
    """What was repaired when the input files were read."""
    splits = (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("split-*.json"))
    return sum((Counter(split["fallbacks"]) for split in splits), Counter())


def folder_of(folder: Path, part: int) -> Path:
    """The folder of a part's pieces, and of nothing else: finding them takes the same time however many parts there are."""
    return folder / f"part-{part:05d}"


def pieces_of(folder: Path, part: int) -> list[Path]:
    """The pieces of a part, in the order of the input files and of their rows."""
    return sorted(folder_of(folder, part).glob("[0-9]*.parquet"))


def scores_of(folder: Path, part: int) -> Path:
    """The file with the scores of a part: in ``folder`` once all parts have theirs, in ``SCORED`` until then."""
    final = folder / f"scores-{part:05d}.parquet"
    return final if final.is_file() else folder / SCORED / final.name


@lru_cache(maxsize=1)
def networks(artifacts: Path, manifest_sha256: str) -> Networks:
    """All networks, loaded once per process and content of the artifact folder.

    Raises:
        InputError: one cannot be loaded: without it, scores would depend on the process.
    """
    run = Run()
    loaded = load_networks(artifacts, load_manifest(artifacts), run)
    if "fold_networks_left_out" in run.fallbacks:
        raise InputError("; ".join(run.notes))
    return loaded
