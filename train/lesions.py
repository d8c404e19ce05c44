"""The lesions of a training: features for CatBoost; labels, folds, tabular logits and images for the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import FOLDS, OOF_TABULAR, checked_file, load_manifest
from inference.features import build_features
from inference.images import ImageStore, find_images
from inference.schema import ID, PATIENT, TARGET, TRAIN_ONLY, read_metadata, read_scores
from inference.tables import Reading, id_mismatch, read_csv_file
from train.archives.diagnoses import GROUP_COLUMNS, diagnosis_groups
from train.folds import HOLDOUT, read_folds
from train.leaks import ColumnChoice
from train.network.known_images import image_digests
from utils import InputError


@dataclass(frozen=True)
class Rows:
    """Lesions side by side: metadata and features (rows, columns), labels 0/1 and patients (rows,)."""

    metadata: pd.DataFrame
    features: pd.DataFrame
    labels: np.ndarray
    patients: np.ndarray


def read_rows(data: Path, choice: ColumnChoice | None = None) -> Rows:
    """All rows of train-metadata.csv, with the features of the columns that ``choice`` leaves; of all columns without one.

    Raises:
        InputError: the file is missing or wrong (``read_metadata``), or a feature comes from a column that only train has.
    """
    metadata = read_metadata(data / "train-metadata.csv", labelled=True)
    features = build_features(metadata[(choice or ColumnChoice()).of(metadata)])
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
                raise InputError(f"feature {name!r} comes from {column!r}, which leaks the diagnosis and is in train only.")


def open_images(folder: Path) -> ImageStore:
    """The images of a competition folder's train rows.

    Raises:
        InputError: it has none, or they are no HDF5 file.
    """
    source = find_images(folder, "train")
    if source is None:
        raise InputError(f"{folder} has neither train-image.hdf5 nor train-image/image; fetch the images.")
    return ImageStore(source)


@dataclass(frozen=True)
class Lesions:
    """All lesions of train-metadata.csv as the network's training needs them; arrays of shape (rows,)."""

    isic_ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    tabular: np.ndarray
    #: Of ``image_digests``; 0 for a lesion without a readable image.
    image_digests: np.ndarray
    #: Of ``train.archives.diagnoses.diagnosis_groups``.
    groups: np.ndarray

    @property
    def has_image(self) -> np.ndarray:
        """Which lesions have a readable image, bool of shape (rows,)."""
        return self.image_digests != 0

    @property
    def in_folds(self) -> np.ndarray:
        """Which lesions are not in the holdout, bool of shape (rows,)."""
        return self.fold != HOLDOUT

    @property
    def folds(self) -> range:
        """The numbers of the folds."""
        return range(int(self.fold.max()) + 1)


def read_lesions(data: Path, artifacts: Path, store: ImageStore, missing_images: str) -> Lesions:
    """Labels, folds and out-of-fold tabular logits side by side. Holdout rows have tabular logits 0, and nothing reads them.

    Raises:
        InputError: a stage before this one has not run, or ran on other rows; a lesion has no readable image and
            ``missing_images`` is "refuse".
    """
    table = data / "train-metadata.csv"
    metadata = read_metadata(table, labelled=True)
    fold = read_folds(artifacts, metadata)
    path = checked_file(artifacts, load_manifest(artifacts), OOF_TABULAR)
    isic_ids = metadata[ID].to_numpy()
    out_of_fold = read_scores(path, ["tabular"])["tabular"]
    tabular = out_of_fold.reindex(isic_ids)
    if tabular[fold != HOLDOUT].isna().any():
        differ = id_mismatch(f"the folds of {artifacts / FOLDS}", isic_ids[fold != HOLDOUT], path.name, out_of_fold.index)
        raise InputError(f"{differ}; run train.tabular again.")
    if not any(isic_id in store for isic_id in isic_ids):
        differ = id_mismatch("train-metadata.csv", isic_ids, str(store.path), store.names())
        raise InputError(f"{differ}; fetch the images of these lesions.")
    digests = image_digests(store, isic_ids)
    has_image = digests != 0
    if missing_images == "refuse" and not has_image.all():
        first = isic_ids[~has_image][0]
        found = f"{store.path} holds an image that cannot be decoded for {first}"
        if first not in store:
            found = id_mismatch("train-metadata.csv", isic_ids, str(store.path), store.names())
        raise InputError(
            f"{found} ({int((~has_image).sum())} lesions without a readable image in all); fetch the images again, "
            "or give --missing-images pass to let those lesions keep their tabular logit."
        )
    return Lesions(
        isic_ids=isic_ids,
        patients=metadata[PATIENT].to_numpy(),
        labels=metadata[TARGET].to_numpy(),
        fold=fold,
        tabular=tabular.fillna(0.0).to_numpy(),
        image_digests=digests,
        groups=diagnosis_groups(read_csv_file(table, Reading("str", columns=GROUP_COLUMNS | {ID}))),
    )
