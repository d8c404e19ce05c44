"""An archive of any size in parts of whole patients, and the scores of a part: the tasks of ``scale.batch_scoring``.

Patient context compares a lesion with its patient's others, so a patient must never be divided. Each input file is split on
its own into pieces, by a hash of the patient; the pieces of a part, of all files, are scored together by the kernel's own
functions. Both are restartable: every file that a task writes is there as a whole or not at all, and is the same when the
task runs again.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from inference.artifacts import Manifest, load_manifest
from inference.files import replacing
from inference.images import ImageStore
from inference.network import Ensemble
from inference.run_log import Run, peak_memory
from inference.schema import COLUMNS, ID, PATIENT, TEST_COLUMNS, repaired
from inference.scoring import RANK_AVERAGE, combine, correct_by_image, load_fold_networks, score_tabular
from scale.parallel import Files
from utils import InputError

#: Rows of an input file that are in memory at a time.
CHUNK = 100_000
#: What input files are called.
KINDS = (".parquet", ".csv")
TEXT = {column.name: "str" for column in COLUMNS if column.kind in ("id", "category")}
#: What happened in a part; how many rows an input file had, once all are dealt out.
TOLD, DEALT = "told-{:05d}.json", "dealt-{:05d}.json"


def input_files(source: Path) -> list[Path]:
    """The Parquet or CSV files of an archive: ``source`` itself, or those in the folder, in the order of their names.

    Raises:
        InputError: there are none, or of both kinds.
    """
    files = [source] if source.is_file() else sorted(path for path in source.glob("*") if path.suffix in KINDS)
    kinds = sorted({path.suffix for path in files})
    if len(kinds) != 1 or kinds[0] not in KINDS:
        found = f"files of the kinds {', '.join(kinds)}" if kinds else "no .parquet and no .csv file"
        raise InputError(f"--input {source} has {found}; give a file or a folder of the one kind or the other.")
    return files


def chunks(path: Path) -> Iterator[pd.DataFrame]:
    """The test columns of an input file, ``CHUNK`` rows at a time: ids and categories as text.

    Raises:
        InputError: it cannot be read, or lacks an id column.
    """
    try:
        if path.suffix == ".csv":
            how = {"dtype": TEXT, "usecols": lambda name: name in TEST_COLUMNS, "low_memory": False}
            frames = iter(pd.read_csv(path, chunksize=CHUNK, **how))
        else:
            file = pq.ParquetFile(path)
            columns = [name for name in TEST_COLUMNS if name in file.schema_arrow.names]
            frames = (batch.to_pandas() for batch in file.iter_batches(CHUNK, columns=columns))
        for frame in frames:
            for name in (ID, PATIENT):
                if name not in frame:
                    raise InputError(f"{path} has no column {name!r}; its lesions cannot be told apart.")
            yield frame.assign(**{name: as_text(frame[name]) for name in TEXT if name in frame})
    except (OSError, ValueError, pd.errors.ParserError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read ({str(error).strip().splitlines()[0]}); write it again.") from error


def as_text(column: pd.Series) -> pd.Series:
    """The values as str, the missing ones as None."""
    return column.astype("string").astype(object).where(column.notna(), None)


def part_of(frame: pd.DataFrame, parts: int) -> np.ndarray:
    """The number of the part that each row belongs to, shape (rows,): the same for all rows of a patient, on any machine."""
    patients = frame[PATIENT].where(frame[PATIENT].notna(), "alone:" + frame[ID].astype(str)).astype(str)
    return (pd.util.hash_array(patients.to_numpy(object), categorize=False) % np.uint64(parts)).astype(int)


def split_file(files: Files, number: int, path: Path, parts: int) -> int:
    """Deals the rows of input file ``number`` out to the folders of the parts; returns how many it has."""
    done = files.folder / DEALT.format(number)
    if not done.is_file():
        rows = 0
        for chunk, frame in enumerate(chunks(files[path])):
            rows += len(frame)
            for part, piece in frame.groupby(part_of(frame, parts)):
                with replacing(folder_of(files.folder, part) / f"{number:05d}-{chunk:05d}.parquet") as temporary:
                    piece.to_parquet(temporary, index=False)
        with replacing(done) as temporary:
            temporary.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return json.loads(done.read_text(encoding="utf-8"))["rows"]


def score_part(files: Files, part: int, artifacts: Path, images: Path | None, batch_size: int) -> None:
    """Scores the patients of a part; writes told-<part>.json, what happened, and scores-<part>.parquet, a row per lesion.

    Columns: isic_id, patient_id, ``tabular``, ``network`` and ``final`` logits, ``image_scored``, ``probability``.
    Where scores are combined by their ranks, the last two wait for all parts: ``scale.batch_scoring``.
    """
    started = time.monotonic()
    manifest, run = load_manifest(files[artifacts]), Run()
    frame = pd.concat([pd.read_parquet(piece) for piece in pieces_of(files.folder, part)], ignore_index=True)
    with contextlib.redirect_stdout(io.StringIO()):  # each part would tell what the kernel tells of a test folder
        rows, repairs = repaired(frame, f"part {part}")
        tabular = score_tabular(rows, files[artifacts], manifest, run)
        fusion, seen = tabular.copy(), np.zeros(len(rows), dtype=bool)
        if images and "network" in manifest:
            load, look = lambda: networks(files[artifacts]), lambda: ImageStore(files[images])
            fusion, seen = correct_by_image(rows, tabular, load, look, manifest, batch_size, run)
    scores = rows[[ID, PATIENT]].assign(tabular=tabular, network=fusion, image_scored=seen)
    if not (images and waits_for_all(manifest)):
        scores = with_final(scores, manifest, images is not None)
    fallbacks = {what: count for what, count in run.fallbacks.items() if what != "lesions without image score"}
    told = {"lesions": len(rows), "image_scored": int(seen.sum()), "seconds": round(time.monotonic() - started, 1)}
    told |= {"fallbacks": fallbacks | repairs, "most memory, GB": peak_memory()}
    with replacing(files.folder / TOLD.format(part)) as temporary:
        temporary.write_text(json.dumps(told), encoding="utf-8")
    with replacing(scores_of(files.folder, part)) as temporary:
        scores.to_parquet(temporary, index=False)


def folder_of(folder: Path, part: int) -> Path:
    """Where the pieces of a part lie: nothing else lies there, so that finding them takes as long however many parts are."""
    return folder / f"part-{part:05d}"


def pieces_of(folder: Path, part: int) -> list[Path]:
    """The pieces of a part, in the order of the input files and of their rows."""
    return sorted(folder_of(folder, part).glob("[0-9]*.parquet"))


def scores_of(folder: Path, part: int) -> Path:
    """The file with the scores of a part."""
    return folder / f"scores-{part:05d}.parquet"


def waits_for_all(manifest: Manifest) -> bool:
    """Whether a lesion's final score depends on all lesions, and not on its own alone."""
    return manifest.get("network", {}).get("combination", {}).get("kind") == RANK_AVERAGE


def with_final(scores: pd.DataFrame, manifest: Manifest, images: bool) -> pd.DataFrame:
    """The scores with ``logits`` and ``probability``, combined as the kernel combines them; without images, tabular."""
    logits = tabular = scores["tabular"].to_numpy()
    if images and "network" in manifest:
        how, seen = manifest["network"]["combination"], scores["image_scored"].to_numpy()
        logits = combine(how, tabular, scores["network"].to_numpy(), seen)
    return scores.assign(final=logits, probability=1.0 / (1.0 + np.exp(-np.clip(logits, -700, 700))))


@lru_cache(maxsize=1)
def networks(artifacts: Path) -> Ensemble:
    """The fold networks, loaded once per process."""
    return load_fold_networks(artifacts, load_manifest(artifacts), Run())
