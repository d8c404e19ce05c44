"""The labelled rows of a competition folder, with the features that a model may see of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inference.features import build_features
from inference.files import InputError
from inference.schema import PATIENT, TARGET, TRAIN_ONLY, read_metadata


@dataclass(frozen=True)
class Rows:
    """Lesions side by side: metadata and features (rows, columns), labels 0/1 and patients (rows,)."""

    metadata: pd.DataFrame
    features: pd.DataFrame
    labels: np.ndarray
    patients: np.ndarray


def read_rows(data: Path) -> Rows:
    """All rows of train-metadata.csv.

    Raises:
        InputError: the file is wanting (``read_metadata``), or a feature comes from a column that only train has.
    """
    metadata = read_metadata(data / "train-metadata.csv", labelled=True)
    features = build_features(metadata.drop(columns=list(TRAIN_ONLY), errors="ignore"))
    refuse_train_only(list(features))
    return Rows(metadata, features, metadata[TARGET].to_numpy(), metadata[PATIENT].to_numpy())


def refuse_train_only(names: list[str]) -> None:
    """Refuses features made of columns that exist only in train, also under a longer name ("lesion_id_count").

    Raises:
        InputError: naming the first such feature.
    """
    for name in names:
        for column in sorted(TRAIN_ONLY):
            if name == column or name.startswith(f"{column}_"):
                raise InputError(
                    f"feature {name!r} comes from {column!r}, which only train has and which tells the diagnosis."
                )
