"""submission.csv and the scores beside it; a file is replaced as a whole or stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import Manifest
from inference.files import replacing
from inference.inputs import TEST_METADATA
from inference.run_log import Run
from inference.schema import ID, TARGET

SAMPLE = "sample_submission.csv"


def submission_order(competition: Path, rows: pd.DataFrame, run: Run) -> list[str]:
    """The isic_ids to submit, in the order of sample_submission.csv, else of the metadata."""
    try:
        sample = pd.read_csv(competition / SAMPLE, dtype={ID: "str"})[ID].dropna().drop_duplicates().tolist()
    except (OSError, KeyError, ValueError) as error:
        run.fall_back("no sample submission", 1, f"{SAMPLE} is not usable ({error}); the order is that of {TEST_METADATA}.")
        return rows[ID].tolist()
    unknown, unasked = len(set(sample) - set(rows[ID])), len(set(rows[ID]) - set(sample))
    if unknown:
        run.fall_back("ids only in sample submission", unknown, f"{TEST_METADATA} lacks them; they get a median score.")
    if unasked:
        run.fall_back("ids only in metadata", unasked, f"{SAMPLE} does not ask for them; they are not submitted.")
    return sample


def write_submission(path: Path, order: list[str], isic_ids: pd.Series, log_odds: np.ndarray, manifest: Manifest) -> None:
    """Probabilities in the given order; an id without metadata gets training's median, so that the file is complete."""
    scores = pd.Series(log_odds, index=isic_ids.to_numpy()).reindex(order)
    scores = scores.fillna(manifest["tabular"]["out_of_fold"]["median"]).to_numpy("float64")
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(scores, -700, 700)))
    with replacing(path) as temporary:
        pd.DataFrame({ID: order, TARGET: probabilities}).to_csv(temporary, index=False)


def write_scores(path: Path, isic_ids: pd.Series, tabular: np.ndarray, final: np.ndarray, seen: np.ndarray) -> None:
    """Each lesion's parts, for the dry run: log-odds, and whether the image was seen."""
    with replacing(path) as temporary:
        frame = pd.DataFrame({ID: isic_ids, "tabular": tabular, "fusion": final, "image_seen": seen.astype(int)})
        frame.to_csv(temporary, index=False)
