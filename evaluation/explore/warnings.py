"""Problems in a competition folder that harm a training on it: leaks, repetitions, gaps, a test split unlike train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from evaluation.explore.folder import Folder
from evaluation.explore.tables import kind_of
from inference.features import SMALLEST_NORM
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, TRAIN_COLUMNS, TRAIN_ONLY
from train.leaks import LEAK_AUC, ColumnChoice, measure_leaks

#: A single column with this pAUC (guessing 0.02, the best 0.20) holds the diagnosis itself.
TOO_GOOD = 0.18
#: Two columns with a rank correlation beyond this are copies of each other.
SAME = 0.995
#: A larger share of test's numbers beyond train's lowest and highest is not chance.
OUTSIDE = 0.01
#: Fewer malignant lesions than this leave wide intervals.
FEW_MALIGNANT = 100


@dataclass(frozen=True)
class Finding:
    """One problem: its name, then what was found and what to do about it."""

    title: str
    text: str


def find_warnings(folder: Folder, single: pd.DataFrame, rho: pd.DataFrame) -> list[Finding]:
    """All warnings of a folder, the worst kinds first.

    Args:
        folder: as ``read_folder`` gives it.
        single: of ``tables.single_columns``.
        rho: of ``tables.correlations``.
    """
    return [
        *leaks(folder, single),
        *collection_leaks(folder.train),
        *repeated_ids(folder),
        *repeated_images(folder),
        *inconsistent_patients(folder),
        *missing_images(folder),
        *garbled_cells(folder),
        *empty_columns(folder.train),
        *new_in_test(folder),
        *numbers_out_of_range(folder),
        *thin_data(folder.train),
        *redundant(rho),
    ]


def listed(names: Iterable[str], at_most: int = 8) -> str:
    """The first few names, and how many more there are."""
    names = list(map(str, names))
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def leaks(folder: Folder, single: pd.DataFrame) -> Iterator[Finding]:
    """Columns that give the label away, columns that only train has, and columns that the competition does not have."""
    train, test = folder.train, folder.test
    perfect = single[single["pauc"] >= TOO_GOOD].drop_duplicates("column")
    if len(perfect):
        parts = {"value": "value", "is filled": "gaps"}
        names = [f"{row.column} ({row.pauc:.4f} by its {parts[row.what]})" for row in perfect.itertuples()]
        yield Finding(
            "Columns that give the label away",
            f"{listed(names, 12)}: alone they reach a pAUC of {TOO_GOOD} or more, of at most 0.20. They come from the "
            "diagnosis; make no feature of them, nor of whether they are filled.",
        )
    absent = TRAIN_ONLY if test is None else set(train) - set(test)
    only = [name for name in train if name in absent and name != TARGET]
    if only:
        why = "the competition's test file lacks them" if test is None else "test-metadata.csv lacks them"
        yield Finding("Columns only in train", f"{listed(only, 12)}: {why}, so a model cannot use them.")
    unknown = [name for name in train if name not in TRAIN_COLUMNS]
    if unknown:
        text = f"{listed(unknown)}: the competition has no such columns, and training leaves them out."
        yield Finding("Columns of another file", text)


def collection_leaks(train: pd.DataFrame) -> Iterator[Finding]:
    """Missing values and counts that predict the label, as ``train.folds`` measures them."""
    found = measure_leaks(train, ColumnChoice().of(train))
    if found.found:
        text = (
            f"AUC of a small tree, cross-validated by patient: {found.text}. Models would learn how rows were collected: "
            f"training refuses more than {LEAK_AUC}. Give train.folds {found.ways_out}."
        )
        yield Finding("Missing values and counts predict the label", text)


def repeated_ids(folder: Folder) -> Iterator[Finding]:
    """isic_ids that occur more than once, in a split or in both, and empty ones."""
    ids = folder.train[ID]
    repeated = ids[ids.duplicated() & ids.notna()]
    if len(repeated):
        text = f"{len(repeated):,} rows repeat an earlier isic_id, the first {repeated.iloc[0]}; training refuses them."
        yield Finding("Repeated isic_id", text + " Keep one row per lesion.")
    if empty := int(ids.isna().sum()):
        yield Finding("Rows without isic_id", f"{empty:,} rows of train; training refuses them.")
    if both := shared_by_splits(folder, ID):
        text = f"{len(both):,} isic_ids, the first {min(both)}: a score on these test rows is a score on training rows."
        yield Finding("Lesions both in train and in test", text)


def shared_by_splits(folder: Folder, column: str) -> set[str]:
    """The values of a column that train and test have in common."""
    return set() if folder.test is None else set(folder.train[column].dropna()) & set(folder.test[column].dropna())


def repeated_images(folder: Folder) -> Iterator[Finding]:
    """Lesions whose images are the same bytes; worse where patients or labels differ, which folds cannot keep together."""
    table = folder.train[[ID, PATIENT, TARGET]].assign(same=folder.images.same)
    table = table[(table["same"] >= 0) & table["same"].duplicated(keep=False)]
    if table.empty:
        return
    groups = table.groupby("same")
    across, both = int((groups[PATIENT].nunique() > 1).sum()), int((groups[TARGET].nunique() > 1).sum())
    first = groups[ID].apply(list).iloc[0]
    yield Finding(
        "Duplicate images",
        f"{len(table):,} lesions share {groups.ngroups:,} images byte for byte, for example {listed(first, 3)}; "
        f"{across:,} of these images belong to several patients, so patient-grouped folds separate them, and "
        f"{both:,} have both labels, benign and malignant. Keep one of each.",
    )


def inconsistent_patients(folder: Folder) -> Iterator[Finding]:
    """Rows without a patient, patients with two hospitals, patients of both splits."""
    train = folder.train
    if empty := int(train[PATIENT].isna().sum()):
        text = f"{empty:,} rows of train; folds are made by patient, and training refuses them."
        yield Finding("Rows without patient_id", text)
    if HOSPITAL in train:
        hospitals = train.groupby(PATIENT)[HOSPITAL].nunique()
        many = hospitals[hospitals > 1]
        if len(many):
            text = (
                f"{len(many):,} patients, the first {many.index[0]}: a hospital kept out (--holdout-hospital) would share "
                "them with training. Check that each is one person."
            )
            yield Finding("Patients in two hospitals", text)
    if both := shared_by_splits(folder, PATIENT):
        text = f"{len(both):,} patients, the first {min(both)}: their test lesions score better than a new patient's."
        yield Finding("Patients both in train and in test", text)


def missing_images(folder: Folder) -> Iterator[Finding]:
    """Rows without an image."""
    images = folder.images
    if images.source is None:
        text = "The folder has neither train-image.hdf5 nor train-image/image: the network has nothing to learn from."
        yield Finding("No images", text)
    elif not images.present.all():
        absent, labels = ~images.present, folder.train[TARGET].to_numpy()
        text = (
            f"{absent.sum():,} of {len(absent):,} rows of train, {int(labels[absent].sum()):,} of them malignant, have "
            f"no readable one in {images.source.name}; training refuses them unless --missing-images pass is given."
        )
        yield Finding("Rows without an image", text)
    if folder.test is not None and folder.test_images < len(folder.test):
        lacking = len(folder.test) - folder.test_images
        text = f"{lacking:,} of {len(folder.test):,}; the kernel gives them their tabular score."
        yield Finding("Test rows without an image", text)


def garbled_cells(folder: Folder) -> Iterator[Finding]:
    """Text where a number belongs."""
    if folder.garbled:
        names = listed(f"{name} ({count:,})" for name, count in folder.garbled.items())
        yield Finding("Cells that are no number", f"{names}: taken as missing here; training refuses them.")


def empty_columns(train: pd.DataFrame) -> Iterator[Finding]:
    """Columns that hold nothing, or one value only."""
    distinct = {name: train[name].nunique() for name in train if name not in (ID, PATIENT, TARGET)}
    if empty := [name for name, count in distinct.items() if count == 0]:
        yield Finding("Empty columns", f"{listed(empty)}.")
    # A column with gaps and one value still separates rows that have it from rows that do not.
    constant = [name for name, count in distinct.items() if count == 1 and train[name].notna().all()]
    if constant and len(train) > 1:
        names = listed(f"{name} ({train[name].iloc[0]})" for name in constant)
        yield Finding("Constant columns", f"{names}: every lesion has the same value.")


def new_in_test(folder: Folder) -> Iterator[Finding]:
    """Columns and categories that test has and train has not."""
    train, test = folder.train, folder.test
    if test is None:
        return
    more = [name for name in test if name not in train]
    if more:
        yield Finding("Columns only in test", f"{listed(more)}: no model can have learned from them.")
    for name in (name for name in test if name in train and kind_of(train, name) == "category"):
        new = test[name].dropna()
        new = new[~new.isin(train[name])]
        if len(new):
            text = f"{name}: {listed(sorted(set(new.astype(str))), 4)}, in {len(new):,} of {len(test):,} rows of test."
            yield Finding("Categories that train does not have", text)


def numbers_out_of_range(folder: Folder) -> Iterator[Finding]:
    """Numbers of test outside train's range, and columns that are copies of each other in one split only."""
    train, test = folder.train, folder.test
    if test is None:
        return
    names = [name for name in test if name in train and kind_of(train, name) == "number" and train[name].notna().any()]
    outside = {name: int(((test[name] < train[name].min()) | (test[name] > train[name].max())).sum()) for name in names}
    beyond = [f"{name} ({count:,} of {len(test):,} rows)" for name, count in outside.items() if count > OUTSIDE * len(test)]
    if beyond:
        yield Finding("Numbers of test outside train's range", f"{listed(beyond)}: no model has learned from such values.")
    for first, second in sorted(copies(test, names) - copies(train, names)):
        text = f"{second} equals {first} in every row of test, but not in train: one of them is filled wrongly."
        yield Finding("Copied column in test", text)


def copies(frame: pd.DataFrame, names: list[str]) -> set[tuple[str, str]]:
    """Pairs of those columns that are the same in every row and not constant."""
    values = [(name, frame[name].to_numpy()) for name in names if frame[name].nunique() > 1]
    return {(a, b) for (a, first), (b, second) in combinations(values, 2) if np.array_equal(first, second, equal_nan=True)}


def thin_data(train: pd.DataFrame) -> Iterator[Finding]:
    """Too few malignant lesions, one class only, hospitals without a malignant lesion, patients too small for a norm."""
    malignant = int(train[TARGET].sum())
    if malignant in (0, len(train)):
        word = "benign" if malignant == 0 else "malignant"
        yield Finding("One class only", f"All {len(train):,} lesions are {word}: there is nothing to learn.")
        return
    if malignant < FEW_MALIGNANT:
        text = f"{malignant:,}: every score measured on them has a wide interval; compare models by paired differences."
        yield Finding("Few malignant lesions", text)
    if HOSPITAL in train:
        counts = train.groupby(HOSPITAL)[TARGET].sum()
        none = counts[counts == 0].index
        if len(none):
            text = f"{listed(none, 4)}: no score can be measured there, and the hospital gives the label away."
            yield Finding("Hospitals without a malignant lesion", text)
    small = train.groupby(PATIENT)[PATIENT].transform("size") < SMALLEST_NORM
    if small.mean() > 0.5:
        text = (
            f"{100 * small.mean():.0f} % of the lesions belong to patients with fewer than {SMALLEST_NORM} lesions, where "
            "features that compare a lesion with the patient's others are neutral. The competition's patients have some 385 "
            "each."
        )
        yield Finding("Small patients", text)


def redundant(rho: pd.DataFrame) -> Iterator[Finding]:
    """Pairs of numbers of which one repeats the other."""
    above = np.triu(rho.abs().to_numpy(), 1) > SAME if len(rho) else np.zeros((0, 0), dtype=bool)
    if pairs := [f"{rho.columns[i]} and {rho.columns[j]}" for i, j in np.argwhere(above)]:
        yield Finding("Columns that repeat each other", f"{listed(pairs, 6)}: their rank correlation is beyond {SAME}.")
