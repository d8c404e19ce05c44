"""Leaks of how the rows were collected: what missing values and counts alone predict of the label.

Where known patients and filled rows are mostly those of biopsies, a model learns who was biopsied and fails on new lesions.
``measure_leaks`` fits small trees on such predictors alone. ``train.folds`` and ``train.tabular`` refuse rows whose label
they predict; ``ColumnChoice`` is the way out: it hides patients or columns from the features.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeRegressor

from inference.artifacts import Manifest
from inference.options import Parser, filled_text
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, TEST_COLUMNS
from utils import InputError, auc, log

#: Predictors that reach more are a leak. The competition's own rows reach 0.5.
LEAK_AUC = 0.75
HAS_ROW, GAPS, HAS_PATIENT, LESIONS = (
    "has a row of metadata",
    "which columns are empty",
    "has a known patient",
    "lesions of the patient",
)
#: Columns that the official releases give for every lesion, also for those without a row of metadata.
GIVEN_FOR_ALL = (HOSPITAL, "copyright_license")
#: Of the trees that measure: parts of the cross-validation, depth, fewest rows of a leaf.
TREE_PARTS, TREE_DEPTH, TREE_LEAF = 5, 4, 20


@dataclass(frozen=True)
class ColumnChoice:
    """Which columns of the metadata the tabular model's features may use; folds and intervals always see the patients.

    Args:
        patients: "known", or "own": each lesion is a patient of its own, which leaves no feature of the patient's lesions.
        columns: names, or None for all. Without patient_id among them, patients are "own".
        accept_leak: train even if missing values and counts predict the label.
    """

    patients: str = "known"
    columns: tuple[str, ...] | None = None
    accept_leak: bool = False

    @classmethod
    def recorded(cls, manifest: Manifest) -> ColumnChoice:
        """The choice that train.folds wrote into the manifest; the default where it wrote none."""
        choice = cls(**manifest.get("folds", {}).get("features", {}))
        return cls(choice.patients, tuple(choice.columns) if choice.columns else None, choice.accept_leak)

    @property
    def sees_patients(self) -> bool:
        """Whether features may compare a lesion with the patient's others."""
        return self.patients != "own" and (not self.columns or PATIENT in self.columns)

    def of(self, metadata: pd.DataFrame) -> list[str]:
        """The columns that features may use, in the order of ``metadata``; patient_id is one if they see the patients.

        Raises:
            InputError: a chosen column is absent or for training only; none is left.
        """
        usable = [name for name in metadata if name in TEST_COLUMNS and name != ID]
        for name in self.columns or ():
            if name not in usable:
                some = ", ".join(usable[:5]) + (", ..." if len(usable) > 5 else "")
                raise InputError(f"--columns: {name!r} is no column that models may use; train-metadata.csv has {some}.")
        chosen = [name for name in usable if not self.columns or name in self.columns]
        chosen = [name for name in chosen if name != PATIENT or self.patients != "own"]
        if not chosen:
            raise InputError(f"--columns {' '.join(self.columns or ())} leaves no column to the tabular model; name one.")
        return chosen


def add_column_options(parser: Parser) -> None:
    """Adds ``--patients``, ``--columns`` and ``--accept-leak``."""
    parser.add_argument(
        "--patients",
        choices=("known", "own"),
        default="known",
        help="own: for the features each lesion is a patient of its own; folds keep known patients together (%(default)s)",
    )
    parser.add_argument(
        "--columns",
        type=filled_text,
        nargs="+",
        metavar="NAME",
        help="columns that the tabular model may use, patient_id for features of the patient's lesions (default: all)",
    )
    parser.add_argument(
        "--accept-leak", action="store_true", help="train although missing values and counts alone predict the label"
    )


@dataclass(frozen=True)
class Leaks:
    """How well missing values and counts predict the label, out of fold.

    Args:
        aucs: predictor -> AUC, strongest first; 0.5 and below is nothing.
        together: AUC of all predictors together.
        complete: columns without a gap, which predict nothing.
    """

    aucs: dict[str, float]
    together: float
    complete: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether a predictor, or all together, reach more than ``LEAK_AUC``."""
        return max([self.together, *self.aucs.values()]) > LEAK_AUC

    @property
    def text(self) -> str:
        """The predictors and their AUC, strongest first."""
        parts = [f"{name!r} {value:.3f}" for name, value in self.aucs.items()]
        return f"{', '.join([*parts, f'all together {self.together:.3f}'])}"

    @property
    def ways_out(self) -> str:
        """The options that hide the predictors."""
        strong = [name for name, value in self.aucs.items() if value > LEAK_AUC] or list(self.aucs)
        ways = []
        if {HAS_PATIENT, LESIONS} & set(strong):
            ways.append("--patients own (the features see no patients; folds keep them together)")
        if {HAS_ROW, GAPS} & set(strong):
            filled = f", such as {' '.join(self.complete[:3])}" if self.complete else ""
            ways.append(f"--columns (those that are filled for both classes alike{filled})")
        return f"{' and '.join(ways)}, or --accept-leak"


def measure_leaks(rows: pd.DataFrame, columns: Collection[str], seed: int = 0) -> Leaks:
    """How well missing values and counts predict the label: trees on them alone, cross-validated by patient.

    Args:
        rows: with isic_id, patient_id and target. A patient_id that is missing, begins with "alone:" or is the isic_id is
            unknown, as ``train.archives`` and the kernel write it.
        columns: those that features may use; with patient_id if they see the patients.
        seed: divides the patients into parts.
    """
    patients, labels = rows[PATIENT].astype(str), rows[TARGET].to_numpy("float64")
    known = rows[PATIENT].notna() & ~patients.str.startswith("alone:") & (patients != rows[ID].astype(str))
    codes = pd.factorize(patients.where(known, "alone:" + rows[ID].astype(str)))[0]
    filled = rows[[name for name in columns if name != PATIENT]].notna()
    own = filled[[name for name in filled if name not in GIVEN_FOR_ALL]]
    predictors = {HAS_ROW: own.any(axis=1).to_numpy(), GAPS: filled.to_numpy()}
    if PATIENT in columns:
        predictors |= {HAS_PATIENT: known.to_numpy(), LESIONS: np.bincount(codes)[codes]}
    tables = {name: values.reshape(len(rows), -1).astype("float32") for name, values in predictors.items()}
    part = np.random.default_rng(seed).permutation(codes.max() + 1)[codes] % TREE_PARTS
    aucs = {name: tree_auc(table, labels, part) for name, table in tables.items()}
    together = tree_auc(np.concatenate(list(tables.values()), axis=1), labels, part)
    strongest_first = dict(sorted(aucs.items(), key=lambda item: -item[1]))
    return Leaks(strongest_first, together, tuple(name for name in filled if filled[name].all()))


def tree_auc(values: np.ndarray, labels: np.ndarray, part: np.ndarray) -> float:
    """Out-of-fold AUC of a small tree, 0 to 1.

    Args:
        values: float32, shape (rows, columns).
        labels: 0/1, shape (rows,).
        part: which part of the cross-validation a row belongs to, shape (rows,).
    """
    varies = (values != values[:1]).any(axis=0)
    if not varies.any() or len(set(labels)) < 2:
        return 0.5
    scores = np.zeros(len(labels))
    for number in np.unique(part):
        inside = part == number
        if not inside.all():
            tree = DecisionTreeRegressor(max_depth=TREE_DEPTH, min_samples_leaf=TREE_LEAF, random_state=0)
            scores[inside] = tree.fit(values[~inside][:, varies], labels[~inside]).predict(values[inside][:, varies])
    return auc(labels, scores)


def check_leaks(metadata: pd.DataFrame, choice: ColumnChoice) -> Leaks:
    """Measures the leaks of the columns that features may use, and logs them.

    Raises:
        InputError: they predict the label, and ``choice`` does not accept that.
    """
    leaks = measure_leaks(metadata, choice.of(metadata))
    if leaks.found and not choice.accept_leak:
        first, value = next(iter(leaks.aucs.items()))
        raise InputError(
            f"train-metadata.csv: {first!r} alone predicts the label with AUC {value:.3f}, above {LEAK_AUC} ({leaks.text}); "
            f"models would learn how the rows were collected; give train.folds {leaks.ways_out}."
        )
    verdict = "WARNING: a leak, accepted by --accept-leak" if leaks.found else f"no leak (that begins above {LEAK_AUC})"
    log(f"the label from missing values and counts alone, AUC: {leaks.text}: {verdict}")
    return leaks
