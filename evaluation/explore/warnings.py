"""Things in a competition folder that will hurt whoever trains on it: leaks, repetitions, gaps, a test unlike train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from evaluation.explore.folder import Folder
from evaluation.explore.tables import kind_of
from inference.features import SMALLEST_NORM
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, TRAIN_COLUMNS, TRAIN_ONLY

#: A single column with this pAUC (guessing 0.02, the best 0.20) knows the answer rather than the lesion.
TOO_GOOD = 0.18
#: Two columns with a rank correlation beyond this say the same.
SAME = 0.995
#: A larger share of test's numbers beyond train's lowest and highest is not chance.
OUTSIDE = 0.01
#: Fewer malignant lesions than this leave wide intervals.
FEW_MALIGNANT = 100


@dataclass(frozen=True)
class Finding:
    """One thing that will hurt: what it is in a few words, then what was found and what to do about it."""

    title: str
    text: str


def find_warnings(folder: Folder, single: pd.DataFrame, rho: pd.DataFrame) -> list[Finding]:
    """All warnings of a folder, the worst kinds first.

    Args:
        folder: as ``read_folder`` gives it.
        single: of ``explore_tables.single_columns``.
        rho: of ``explore_tables.correlations``.
    """
    return [
        *leaks(folder, single),
        *repeated_ids(folder),
        *repeated_images(folder),
        *patients_astray(folder),
        *missing_images(folder),
        *broken_cells(folder),
        *empty_columns(folder),
        *new_in_test(folder),
        *numbers_astray(folder),
        *thin_data(folder),
        *redundant(rho),
    ]


def listed(names: Iterable[str], at_most: int = 8) -> str:
    """The first few names, and how many more there are."""
    names = list(map(str, names))
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def leaks(folder: Folder, single: pd.DataFrame) -> list[Finding]:
    """Columns that only train has, and columns that tell the label almost perfectly."""
    found = []
    train, test = folder.train, folder.test
    perfect = single[single["pauc"] >= TOO_GOOD].drop_duplicates("column")
    if len(perfect):
        told = [f"{row.column} ({row.pauc:.4f} by its {_part(row.what)})" for row in perfect.itertuples()]
        found.append(
            Finding(
                "Columns that tell the label",
                f"{listed(told, 12)}: alone they reach a pAUC of {TOO_GOOD} or more, of at most 0.20. They come from the "
                "diagnosis; make no feature of them, nor of whether they are filled.",
            )
        )
    absent = TRAIN_ONLY if test is None else set(train) - set(test)
    only = [name for name in train if name in absent and name != TARGET]
    if only:
        why = "the competition's test file lacks them" if test is None else "test-metadata.csv lacks them"
        found.append(Finding("Columns only in train", f"{listed(only, 12)}: {why}, so a model cannot use them."))
    strange = [name for name in train if name not in TRAIN_COLUMNS]
    if strange:
        text = f"{listed(strange)}: the competition has no such columns, and training leaves them out."
        found.append(Finding("Columns of another file", text))
    return found


def _part(what: str) -> str:
    """ "value" or "gaps", by which a column tells the label."""
    return "value" if what == "value" else "gaps"


def repeated_ids(folder: Folder) -> list[Finding]:
    """isic_ids that occur more than once, in a split or in both, and empty ones."""
    found = []
    ids = folder.train[ID]
    repeated = ids[ids.duplicated() & ids.notna()]
    if len(repeated):
        text = f"{len(repeated):,} rows repeat an earlier isic_id, the first {repeated.iloc[0]}; training refuses them."
        found.append(Finding("Repeated isic_id", text + " Keep one row per lesion."))
    if empty := int(ids.isna().sum()):
        found.append(Finding("Rows without isic_id", f"{empty:,} rows of train; training refuses them."))
    if folder.test is None:
        return found
    both = set(ids.dropna()) & set(folder.test[ID].dropna())
    if both:
        text = f"{len(both):,} isic_ids, the first {min(both)}: a score on these test rows would be no score."
        found.append(Finding("Lesions both in train and in test", text))
    return found


def repeated_images(folder: Folder) -> list[Finding]:
    """Lesions whose images are the same bytes; worse where patients or labels differ, which folds cannot keep together."""
    same = folder.images.same
    table = pd.DataFrame(
        {"same": same, "patient": folder.train[PATIENT], "label": folder.train[TARGET], "lesion": folder.train[ID]}
    )
    table = table[(same >= 0) & table["same"].duplicated(keep=False).to_numpy()]
    if table.empty:
        return []
    groups = table.groupby("same")
    across, both = int((groups["patient"].nunique() > 1).sum()), int((groups["label"].nunique() > 1).sum())
    first = groups["lesion"].apply(list).iloc[0]
    return [
        Finding(
            "Duplicate images",
            f"{len(table):,} lesions share {groups.ngroups:,} images byte for byte, for example {listed(first, 3)}; "
            f"{across:,} of these images belong to several patients, so that patient-grouped folds tear them apart, and "
            f"{both:,} are called both benign and malignant. Keep one of each.",
        )
    ]


def patients_astray(folder: Folder) -> list[Finding]:
    """Patients seen in two hospitals, patients of both splits, rows without a patient."""
    found, train, test = [], folder.train, folder.test
    if empty := int(train[PATIENT].isna().sum()):
        text = f"{empty:,} rows of train; folds are made by patient, and training refuses them."
        found.append(Finding("Rows without patient_id", text))
    if HOSPITAL in train:
        hospitals = train.groupby(PATIENT)[HOSPITAL].nunique()
        many = hospitals[hospitals > 1]
        if len(many):
            text = (
                f"{len(many):,} patients, the first {many.index[0]}: a hospital kept out (--holdout-hospital) would share "
                "them with training. Check that they are one person each."
            )
            found.append(Finding("Patients in two hospitals", text))
    if test is not None:
        both = set(train[PATIENT].dropna()) & set(test[PATIENT].dropna())
        if both:
            text = f"{len(both):,} patients, the first {min(both)}: their test lesions score better than a new patient's."
            found.append(Finding("Patients both in train and in test", text))
    return found


def missing_images(folder: Folder) -> list[Finding]:
    """Rows without an image."""
    found, images = [], folder.images
    if not images.source:
        text = "The folder has neither train-image.hdf5 nor train-image/image: the network has nothing to learn from."
        found.append(Finding("No images", text))
    elif not images.present.all():
        absent, labels = ~images.present, folder.train[TARGET].to_numpy()
        text = (
            f"{absent.sum():,} of {len(absent):,} rows of train, {int(labels[absent].sum()):,} of them malignant, have "
            f"no readable one in {images.source}; training refuses them unless --missing-images pass is given."
        )
        found.append(Finding("Rows without an image", text))
    if folder.test is not None and folder.test_images < len(folder.test):
        absent = len(folder.test) - folder.test_images
        text = f"{absent:,} of {len(folder.test):,}; the kernel gives them their tabular score."
        found.append(Finding("Test rows without an image", text))
    return found


def broken_cells(folder: Folder) -> list[Finding]:
    """Numbers that are text."""
    if not folder.garbled:
        return []
    told = listed(f"{name} ({count:,})" for name, count in folder.garbled.items())
    return [Finding("Cells that are no number", f"{told}: taken as missing here; training refuses them.")]


def empty_columns(folder: Folder) -> list[Finding]:
    """Columns that hold nothing, or one value only."""
    found, train = [], folder.train
    distinct = {name: train[name].nunique() for name in train if name not in (ID, PATIENT, TARGET)}
    empty = [name for name, count in distinct.items() if count == 0]
    # A column with gaps and one value still tells who has it.
    constant = [name for name, count in distinct.items() if count == 1 and train[name].notna().all()]
    if empty:
        found.append(Finding("Empty columns", f"{listed(empty)}."))
    if constant and len(train) > 1:
        told = listed(f"{name} ({train[name].iloc[0]})" for name in constant)
        found.append(Finding("Constant columns", f"{told}: they tell no lesion from another."))
    return found


def new_in_test(folder: Folder) -> list[Finding]:
    """Categories that test has and train has not, and columns that only test has."""
    found, train, test = [], folder.train, folder.test
    if test is None:
        return []
    more = [name for name in test if name not in train]
    if more:
        found.append(Finding("Columns only in test", f"{listed(more)}: no model can have learned from them."))
    for name in (name for name in test if name in train and kind_of(train, name) == "category"):
        new = test[name].dropna()
        new = new[~new.isin(train[name])]
        if len(new):
            text = f"{name}: {listed(sorted(set(new.astype(str))), 4)}, in {len(new):,} of {len(test):,} rows of test."
            found.append(Finding("Categories never seen in train", text))
    return found


def numbers_astray(folder: Folder) -> list[Finding]:
    """Numbers of test outside train's range, and columns that are copies of each other in one split only."""
    found, train, test = [], folder.train, folder.test
    if test is None:
        return []
    names = [name for name in test if name in train and kind_of(train, name) == "number"]
    names = [name for name in names if train[name].notna().any()]
    outside = {name: int(((test[name] < train[name].min()) | (test[name] > train[name].max())).sum()) for name in names}
    told = [f"{name} ({count:,} of {len(test):,} rows)" for name, count in outside.items() if count > OUTSIDE * len(test)]
    if told:
        text = f"{listed(told)}: outside everything that a model will have learned from."
        found.append(Finding("Numbers of test outside train's range", text))
    for first, second in sorted(copies(test, names) - copies(train, names)):
        text = f"{second} equals {first} in every row of test, but not in train: one of them is filled wrongly."
        found.append(Finding("Copied column in test", text))
    return found


def copies(frame: pd.DataFrame, names: list[str]) -> set[tuple[str, str]]:
    """Pairs of those columns that are the same in every row and not constant."""
    values = [(name, frame[name].to_numpy()) for name in names if frame[name].nunique() > 1]
    return {(a, b) for (a, first), (b, second) in combinations(values, 2) if np.array_equal(first, second, equal_nan=True)}


def thin_data(folder: Folder) -> list[Finding]:
    """Too few malignant lesions, one class only, hospitals without a malignant lesion, patients too small for a norm."""
    found, train = [], folder.train
    malignant = int(train[TARGET].sum())
    if malignant in (0, len(train)):
        word = "benign" if malignant == 0 else "malignant"
        return [Finding("One class only", f"All {len(train):,} lesions are {word}: there is nothing to tell apart.")]
    if malignant < FEW_MALIGNANT:
        text = f"{malignant:,}: every score measured on them has a wide interval; compare models by paired differences."
        found.append(Finding("Few malignant lesions", text))
    if HOSPITAL in train:
        counts = train.groupby(HOSPITAL)[TARGET].sum()
        none = counts[counts == 0].index
        if len(none):
            text = f"{listed(none, 4)}: no score can be measured there, and the hospital tells the label."
            found.append(Finding("Hospitals without a malignant lesion", text))
    small = train.groupby(PATIENT)[PATIENT].transform("size") < SMALLEST_NORM
    if small.mean() > 0.5:
        text = (
            f"{100 * small.mean():.0f} % of the lesions belong to patients with fewer than {SMALLEST_NORM} lesions, where "
            "features that compare a lesion with the patient's others are neutral. The competition's patients have some 385 "
            "each."
        )
        found.append(Finding("Small patients", text))
    return found


def redundant(rho: pd.DataFrame) -> list[Finding]:
    """Numbers of which one repeats another."""
    above = np.triu(rho.abs().to_numpy(), 1) > SAME if len(rho) else np.zeros((0, 0), dtype=bool)
    pairs = [f"{rho.columns[i]} and {rho.columns[j]}" for i, j in np.argwhere(above)]
    if not pairs:
        return []
    return [Finding("Columns that repeat each other", f"{listed(pairs, 6)}: their rank correlation is beyond {SAME}.")]
