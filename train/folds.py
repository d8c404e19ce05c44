"""Patient-grouped folds and the holdout, written once to folds.csv and read by every stage.

    python -m train.folds --data data/isic-2024-challenge --artifacts artifacts

No patient is on both sides of a fold, and malignant lesions are spread evenly over the folds (scikit-learn's
StratifiedGroupKFold). Holdout rows have fold -1: no stage trains on them, the dry run scores them. Rows whose missing
values and counts predict the label are refused (``train.leaks``); what the features may use instead is chosen here, recorded
in the manifest, and kept to by later stages.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from inference.artifacts import FOLDS, artifact_path
from inference.files import write_csv
from inference.options import Parser, add_data_options, add_seed_option, count, filled_text, share
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, read_metadata, read_scores
from inference.tables import id_mismatch
from terminal import run_command
from train.leaks import ColumnChoice, add_column_options, check_leaks
from train.manifest import READS, read_manifest, stage
from utils import InputError, log_summary, text_table

#: The fold of held-out rows.
HOLDOUT = -1


@dataclass(frozen=True)
class FoldOptions:
    """The command's options."""

    data: Path
    artifacts: Path
    seed: int
    folds: int
    holdout: float
    holdout_hospital: str | None
    choice: ColumnChoice
    replace: bool

    def holdout_of(self, metadata: pd.DataFrame) -> np.ndarray:
        """Which rows are held out, bool of shape (rows,)."""
        if self.holdout_hospital:
            return holdout_by_hospital(metadata, self.holdout_hospital)
        return holdout_by_share(metadata, self.holdout, self.seed)


def parse_fold_options(arguments: list[str] | None) -> FoldOptions:
    """The options of a command line."""
    parser = Parser(description="Patient-grouped folds and the holdout -> folds.csv")
    add_data_options(parser)
    add_seed_option(parser)
    parser.add_argument("--folds", type=count(2), default=5, help="cross-validation folds (default: %(default)s)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--holdout", type=share(high=0.5), default=0.2, help="share of rows held out (default: %(default)s)")
    group.add_argument("--holdout-hospital", type=filled_text, metavar="NAME", help="hold this whole hospital out instead")
    add_column_options(parser)
    parser.add_argument("--replace", action="store_true", help="where the folds are others, drop them and all models")
    options = vars(parser.parse_args(arguments))
    patients, columns, accept = (options.pop(name) for name in ("patients", "columns", "accept_leak"))
    return FoldOptions(**options, choice=ColumnChoice(patients, tuple(columns) if columns else None, accept))


def make_folds(arguments: list[str] | None = None) -> int:
    """Writes folds.csv and the manifest's section "folds"."""
    options = parse_fold_options(arguments)
    choice = options.choice
    source = options.data / "train-metadata.csv"
    with stage(options.artifacts, "folds", [source], options.replace) as current:
        metadata = read_metadata(source, labelled=True)
        holdout = options.holdout_of(metadata)
        fold = assign_folds(metadata, options.folds, holdout, options.seed)
        leaks = check_leaks(metadata, choice)
        table = metadata[[ID, PATIENT, TARGET]].assign(fold=fold)
        same_choice = ColumnChoice.recorded(read_manifest(options.artifacts)) == choice
        if not holds_folds(options.artifacts, table, options.replace) or not same_choice:
            current.refuse_loss()
            write_csv(current.folder / FOLDS, table)
            section: dict[str, Any] = {"folds": options.folds, "seed": options.seed, "holdout_rows": int(holdout.sum())}
            section |= {"holdout_hospital": options.holdout_hospital, "features": asdict(choice)}
            current.record(section | {"leaks": leaks.aucs | {"all together": leaks.together}})

    counts = metadata[~holdout].groupby(fold[~holdout])[TARGET].agg(["size", "sum"])
    log_summary(
        f"{options.artifacts / FOLDS}: {options.folds} folds of {counts['size'].min():,} to {counts['size'].max():,} "
        f"lesions ({counts['sum'].min()} to {counts['sum'].max()} malignant), holdout {int(holdout.sum()):,} "
        f"({int(metadata.loc[holdout, TARGET].sum())} malignant)",
        fold_table(table),
    )
    return 0


def fold_table(table: pd.DataFrame) -> str:
    """Patients, lesions and malignant lesions of each fold, as text; ``table``: the rows of folds.csv."""
    counts = table.groupby("fold").agg(patients=(PATIENT, "nunique"), lesions=(TARGET, "size"), malignant=(TARGET, "sum"))
    names = ["holdout" if fold == HOLDOUT else str(fold) for fold in counts.index]
    rows = [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, counts.to_numpy(), strict=True)]
    return text_table([["fold", *counts.columns], *rows])


def assign_folds(metadata: pd.DataFrame, folds: int, holdout: np.ndarray, seed: int, option: str = "") -> np.ndarray:
    """The fold of every row, int64 of shape (rows,): 0..folds-1, or ``HOLDOUT`` where ``holdout`` is true.

    Args:
        metadata: the rows.
        folds: how many.
        holdout: which rows are left out, bool of shape (rows,).
        seed: of the order of the patients.
        option: what asks for so many, as it is typed; empty for --folds.

    Raises:
        InputError: there are fewer patients with a malignant lesion outside the holdout than folds.
    """
    fold = np.full(len(metadata), HOLDOUT, dtype="int64")
    rest = np.flatnonzero(~holdout)
    affected = metadata.iloc[rest].loc[lambda rows: rows[TARGET] == 1, PATIENT].nunique()
    if affected < folds:
        outside = " outside the holdout" if holdout.any() else ""
        advice = "give --holdout 0 (none) or another share" if option else "lower --folds or --holdout"
        raise InputError(
            f"{option or f'--folds {folds}'} takes {folds} or more patients with a malignant lesion, and there are "
            f"{affected}{outside}; {advice}."
        )
    labels, patient = metadata[TARGET].to_numpy()[rest], pd.factorize(metadata[PATIENT].iloc[rest])[0]
    # Patients are shuffled here: with shuffle=True scikit-learn before 1.8 stratifies nothing (its issue 32478).
    shuffled = np.random.default_rng(seed).permutation(patient.max() + 1)[patient]
    for number, (_, inside) in enumerate(StratifiedGroupKFold(folds).split(rest, labels, shuffled)):
        if len(set(labels[inside])) < 2:
            what = f"{option or '--folds'}: part {number + 1} of {folds}"
            raise InputError(f"{what} would be of one class only; give another --seed, or fewer.")
        fold[rest[inside]] = number
    return fold


def holdout_by_share(metadata: pd.DataFrame, share: float, seed: int) -> np.ndarray:
    """Which rows are held out, bool of shape (rows,): about ``share`` of them, whole patients, stratified by label.

    Raises:
        InputError: the share is too small, or too few patients have a malignant lesion.
    """
    if share == 0:
        return np.zeros(len(metadata), dtype=bool)
    part = Fraction(share).limit_denominator(20)  # 0.4: two of five folds
    if part == 0:
        raise InputError(f"--holdout {share} is too small a share; give 0 (none) or from 0.05 to 0.5.")
    nobody = np.zeros(len(metadata), dtype=bool)
    return assign_folds(metadata, part.denominator, nobody, seed, f"--holdout {share:g}") < part.numerator


def holdout_by_hospital(metadata: pd.DataFrame, name: str) -> np.ndarray:
    """Which rows are held out, bool of shape (rows,): all lesions of every patient of the hospital ``name``.

    Args:
        metadata: rows with the column ``attribution``.
        name: the hospital, or a part of its name that no other shares.

    Raises:
        InputError: no hospital or several have that name; the message lists all hospitals.
    """
    if HOSPITAL not in metadata:
        raise InputError(f"--holdout-hospital needs the column {HOSPITAL!r}, which train-metadata.csv lacks; use --holdout.")
    hospitals = sorted(metadata[HOSPITAL].dropna().unique())
    found = [hospital for hospital in hospitals if name.lower() in hospital.lower()]
    found = [name] if name in hospitals else found
    if len(found) != 1:
        raise InputError(f"--holdout-hospital {name!r} fits {len(found)} hospitals; give one of: {'; '.join(hospitals)}.")
    patients = metadata.loc[metadata[HOSPITAL] == found[0], PATIENT].unique()
    return metadata[PATIENT].isin(patients).to_numpy()


def holds_folds(artifacts: Path, table: pd.DataFrame, replace: bool) -> bool:
    """Whether the artifact folder has these folds already, and its manifest names them.

    Raises:
        InputError: it has other folds, and ``replace`` is false.
    """
    path = artifact_path(artifacts, FOLDS)
    if not path.is_file():
        return False
    if read_scores(path, [PATIENT, TARGET, "fold"]).reset_index().equals(table):
        return FOLDS in read_manifest(artifacts).get("files", {})
    if replace:
        return False
    made = [name for name in read_manifest(artifacts) if "folds" in READS.get(name, ())]
    resting = f"{', '.join(made)} rest on them" if made else "models may rest on them"
    raise InputError(
        f"{path} exists with other folds, and {resting}; use a new artifact folder, or give --replace to drop all that."
    )


def read_folds(artifacts: Path, metadata: pd.DataFrame) -> np.ndarray:
    """The fold of every row of ``metadata``, int64 of shape (rows,), matched by isic_id.

    Raises:
        InputError: folds.csv is missing, or was made from other rows, or rows with another patient or label.
    """
    path = artifact_path(artifacts, FOLDS)
    if not path.is_file():
        raise InputError(f"{path} is missing; run: python -m train.folds --data DIR --artifacts {artifacts}")
    known = read_scores(path, [PATIENT, TARGET, "fold"])
    if set(known.index) != set(metadata[ID]):
        differ = id_mismatch(str(path), known.index, "train-metadata.csv", metadata[ID])
        raise InputError(f"{differ}; give the --data of these folds, or use a new artifact folder for new data.")
    known = known.loc[metadata[ID]]
    for name in (PATIENT, TARGET):
        other = metadata[ID][known[name].to_numpy() != metadata[name].to_numpy()]
        if len(other):
            raise InputError(
                f"train-metadata.csv has another {name} for {len(other):,} lesions than {path}, such as {other.iloc[0]}; "
                "give the --data of these folds, or use a new artifact folder for new data."
            )
    return known["fold"].to_numpy("int64")


if __name__ == "__main__":
    run_command(make_folds)
