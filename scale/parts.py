"""Parts of whole patients, and the scores of a part: the tasks of ``scale.batch_scoring``.

Patient context compares a lesion with the patient's others, so a patient is never divided. Each input file is split on its
own into pieces, by a hash of the patient; the pieces of a part, of all files, are scored together by the kernel's own
functions. Both tasks can be repeated: every file that they write is whole or absent, and the same when a task runs again.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from inference.artifacts import Manifest, load_manifest
from inference.files import replacing, write_json
from inference.images import ImageStore
from inference.network import Ensemble
from inference.run_log import Run, peak_memory
from inference.schema import COLUMNS, ID, PATIENT, TEST_COLUMNS, repaired
from inference.scoring import RANK_AVERAGE, combine, correct_by_image, load_fold_networks, score_tabular
from scale.parallel import Files
from utils import InputError

#: Rows of an input file that are in memory at a time.
CHUNK = 100_000
#: Suffixes of input files.
KINDS = (".parquet", ".csv")
TEXT = {column.name: "str" for column in COLUMNS if column.kind in ("id", "category")}


def input_files(source: Path) -> list[Path]:
    """The Parquet or CSV files of the input: ``source`` itself, or those in the folder, in the order of their names.

    Raises:
        InputError: there are none, or of both kinds.
    """
    files = [source] if source.is_file() else sorted(path for path in source.glob("*") if path.suffix in KINDS)
    kinds = sorted({path.suffix for path in files})
    if len(kinds) != 1 or kinds[0] not in KINDS:
        found = f"{' and '.join(kinds)} files" if kinds else "no .parquet and no .csv file"
        raise InputError(f"--input {source} has {found}; give files of one of the two kinds.")
    return files


def chunks(path: Path) -> Iterator[pd.DataFrame]:
    """The test columns of an input file, ``CHUNK`` rows at a time: ids and categories as text.

    Raises:
        InputError: it cannot be read, or has no id column.
    """
    try:
        if path.suffix == ".csv":
            wanted = {"dtype": TEXT, "usecols": lambda name: name in TEST_COLUMNS, "low_memory": False}
            frames = iter(pd.read_csv(path, chunksize=CHUNK, **wanted))
        else:
            file = pq.ParquetFile(path)
            columns = [name for name in TEST_COLUMNS if name in file.schema_arrow.names]
            frames = (batch.to_pandas() for batch in file.iter_batches(CHUNK, columns=columns))
        for frame in frames:
            for name in (ID, PATIENT):
                if name not in frame:
                    raise InputError(f"{path} has no column {name!r}; add it.")
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
    """Writes the rows of input file ``number`` into the folders of their parts; returns how many it has."""
    done = files.folder / f"split-{number:05d}.json"
    if not done.is_file():
        rows = 0
        for chunk, frame in enumerate(chunks(files[path])):
            rows += len(frame)
            for part, piece in frame.groupby(part_of(frame, parts)):
                with replacing(folder_of(files.folder, part) / f"{number:05d}-{chunk:05d}.parquet") as temporary:
                    piece.to_parquet(temporary, index=False)
        write_json(done, {"rows": rows})
    return json.loads(done.read_text(encoding="utf-8"))["rows"]


def score_part(files: Files, part: int, artifacts: Path, images: Path | None, batch_size: int) -> None:
    """Scores the patients of a part; writes report-<part>.json and scores-<part>.parquet, a row per lesion.

    Columns: isic_id, patient_id, ``tabular``, ``network`` and ``final`` logits, ``image_scored``, ``probability``. Where
    scores are combined by their ranks, ``final`` and ``probability`` follow when all parts are there: ``needs_all_parts``.
    """
    manifest, run = load_manifest(files[artifacts]), Run()
    frame = pd.concat([pd.read_parquet(piece) for piece in pieces_of(files.folder, part)], ignore_index=True)
    with contextlib.redirect_stdout(io.StringIO()):  # the kernel's log lines, once per part, would be too many
        rows, repairs = repaired(frame, f"part {part}")
        tabular = score_tabular(rows, files[artifacts], manifest, run)
        network, image_scored = tabular.copy(), np.zeros(len(rows), dtype=bool)
        if images and "network" in manifest:

            def load():
                return networks(files[artifacts]), ImageStore(files[images])

            network, image_scored = correct_by_image(rows, tabular, load, manifest, batch_size, run)
    scores = rows[[ID, PATIENT]].assign(tabular=tabular, network=network, image_scored=image_scored)
    if not (images and needs_all_parts(manifest)):
        scores = with_final(scores, manifest, with_images=images is not None)
    fallbacks = {reason: count for reason, count in run.fallbacks.items() if reason != "lesions_without_image_score"}
    report = {"lesions": len(rows), "image_scored": int(image_scored.sum()), "seconds": round(run.elapsed, 1)}
    report |= {"fallbacks": fallbacks | repairs, "peak_memory_gb": peak_memory()}
    write_json(files.folder / f"report-{part:05d}.json", report)
    with replacing(scores_of(files.folder, part)) as temporary:
        scores.to_parquet(temporary, index=False)


def reports(folder: Path) -> list[dict[str, Any]]:
    """The reports of all scored parts."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("report-*.json"))]


def folder_of(folder: Path, part: int) -> Path:
    """The folder of a part's pieces, and of nothing else: finding them takes the same time however many parts there are."""
    return folder / f"part-{part:05d}"


def pieces_of(folder: Path, part: int) -> list[Path]:
    """The pieces of a part, in the order of the input files and of their rows."""
    return sorted(folder_of(folder, part).glob("[0-9]*.parquet"))


def scores_of(folder: Path, part: int) -> Path:
    """The file with the scores of a part."""
    return folder / f"scores-{part:05d}.parquet"


def needs_all_parts(manifest: Manifest) -> bool:
    """Whether a lesion's final score depends on all lesions: an average of ranks does."""
    return manifest.get("network", {}).get("combination", {}).get("kind") == RANK_AVERAGE


def with_final(scores: pd.DataFrame, manifest: Manifest, *, with_images: bool) -> pd.DataFrame:
    """The scores with ``final`` and ``probability``, combined as the kernel does; tabular where there are no images."""
    final = scores["tabular"].to_numpy()
    if with_images and "network" in manifest:
        how = manifest["network"]["combination"]
        final = combine(how, final, scores["network"].to_numpy(), scores["image_scored"].to_numpy())
    return scores.assign(final=final, probability=1.0 / (1.0 + np.exp(-np.clip(final, -700, 700))))


@lru_cache(maxsize=1)
def networks(artifacts: Path) -> Ensemble:
    """The fold networks, loaded once per process."""
    return load_fold_networks(artifacts, load_manifest(artifacts), Run())
