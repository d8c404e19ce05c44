"""The scores behind the triage pages: which patients have a page, and their lesions' logits and places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier

from evaluation.grad_cam import BATCH, refuse_without_networks
from evaluation.studies.explain import load_fold_models
from inference.artifacts import OOF_FUSION, Manifest, best_network, checked_file, load_manifest, networks_of
from inference.features import build_features
from inference.images import ImageStore
from inference.run_log import Run
from inference.schema import ID, PATIENT, TARGET, TRAIN_ONLY, read_scores
from inference.scoring import ImageOptions, Networks, load_networks, score_images
from inference.tables import id_mismatch
from inference.tabular import tabular_logits
from train.folds import HOLDOUT, read_folds
from train.lesions import refuse_train_only
from utils import InputError

#: Lesions of a patient that have a card, and of those the ones with a heat map; malignant ones have both at any place.
#: A card takes some 8 kB.
LISTED, HEATED = 500, 30
#: Fall-backs of the kernel that are errors here.
NETWORK_LOST = {"fold_networks_left_out", "networks_stopped", "network_stopped"}


@dataclass(frozen=True)
class Trained:
    """What training wrote.

    Attributes:
        folder: the artifact folder.
        manifest: its manifest.
        models: pairs of the fold that a CatBoost model was trained without, and the model.
    """

    folder: Path
    manifest: Manifest
    models: list[tuple[int, CatBoostClassifier]]

    @property
    def networks(self) -> list[str]:
        """The names of all networks' weights files."""
        return [name for section in networks_of(self.manifest).values() for name in section["weights"]]

    @property
    def image_size(self) -> int:
        """Width and height of the crops of the best network, whose heat maps are shown, pixels."""
        return best_network(self.manifest)["settings"]["image_size"]

    @property
    def categories(self) -> list[str]:
        """The categorical features."""
        return self.manifest["tabular"]["categories"]


def load_trained(artifacts: Path) -> Trained:
    """Loads the manifest and the CatBoost models.

    Raises:
        InputError: the folder has no manifest, no networks or no CatBoost models.
    """
    manifest = load_manifest(artifacts)
    refuse_without_networks(artifacts, manifest)
    return Trained(artifacts, manifest, load_fold_models(artifacts, manifest))


def out_of_fold_scores(metadata: pd.DataFrame, trained: Trained) -> pd.DataFrame:
    """Every lesion's fold and, outside of the holdout, its out-of-fold scores.

    Returns:
        Rows as in ``metadata``: ``isic_id``, ``patient_id``, ``target``, ``fold``; ``tabular``, ``network`` and
        ``image_scored`` of oof_fusion.csv, NaN in the holdout.

    Raises:
        InputError: a stage before this one has not run, or ran on other rows.
    """
    scores = metadata[[ID, PATIENT, TARGET]].assign(fold=read_folds(trained.folder, metadata))
    path = checked_file(trained.folder, trained.manifest, OOF_FUSION)
    known = read_scores(path, ["tabular", "network", "image_scored"])
    oof = known.reindex(scores[ID])
    scores[list(oof)] = oof.to_numpy()
    if scores.loc[scores["fold"] != HOLDOUT, "network"].isna().any():
        differ = id_mismatch("folds.csv", scores.loc[scores["fold"] != HOLDOUT, ID], path.name, known.index)
        raise InputError(f"{trained.folder}: {differ}; run train.fusion again.")
    return scores


def choose_patients(scores: pd.DataFrame, count: int) -> dict[str, str]:
    """The patients with the largest errors of the networks, out of fold.

    Half of them have a malignant lesion, those with the lowest-scored one first; half have none, those with the
    highest-scored lesion first. Where there are too few of one kind, more are of the other.

    Args:
        scores: as ``out_of_fold_scores`` gives them.
        count: of patients, at most.

    Returns:
        patient_id -> why the patient has a page.
    """
    known = scores[scores["fold"] != HOLDOUT].sort_values(["network", ID], ascending=[False, True])
    known = known.assign(rank=np.arange(1, len(known) + 1))
    malignant = known[known[TARGET] == 1]
    missed = malignant[::-1].drop_duplicates(PATIENT)
    alarms = known[~known[PATIENT].isin(malignant[PATIENT])].drop_duplicates(PATIENT)
    of_alarms = min(count - min(-(-count // 2), len(missed)), len(alarms))
    among = f"of all {len(known):,} out-of-fold lesions"
    chosen = {
        row.patient_id: f"the malignant lesion {row.isic_id} has only rank {row.rank:,} {among}"
        for row in missed.head(count - of_alarms).itertuples()
    }
    return chosen | {
        row.patient_id: f"no lesion is malignant, and {row.isic_id} has rank {row.rank:,} {among}: a false alarm"
        for row in alarms.head(of_alarms).itertuples()
    }


def named_patients(scores: pd.DataFrame, patients: list[str]) -> dict[str, str]:
    """The patients of ``--patient``, each with why it has a page.

    Raises:
        InputError: there is no such patient.
    """
    unknown = [patient for patient in patients if patient not in set(scores[PATIENT])]
    if unknown:
        raise InputError(f"--patient {unknown[0]!r} is no patient_id of train-metadata.csv; give one of that file.")
    return dict.fromkeys(patients, "asked for by --patient")


def model_features(metadata: pd.DataFrame, trained: Trained) -> pd.DataFrame:
    """The CatBoost models' features of all lesions of some patients; those of other patients do not matter.

    Raises:
        InputError: the models use a feature that this code does not make.
    """
    features = build_features(metadata.drop(columns=list(TRAIN_ONLY), errors="ignore"))
    refuse_train_only(list(features))
    names = trained.manifest["tabular"]["features"]
    if unknown := [name for name in names if name not in features]:
        raise InputError(f"the models of {trained.folder} use {unknown[0]!r}, which this code does not make; train again.")
    return features[names]


def score_holdout(lesions: pd.DataFrame, features: pd.DataFrame, trained: Trained, store: ImageStore) -> pd.DataFrame:
    """Fills in the scores of the holdout's lesions: the mean over all CatBoost models, and over all networks of any name.

    Args:
        lesions: rows of ``out_of_fold_scores``.
        features: theirs, of ``model_features``.
        trained: the models and networks.
        store: of the crops.

    Returns:
        ``lesions`` with ``tabular``, ``network`` and ``image_scored`` in every row. A lesion without a readable image keeps
        its tabular logit.

    Raises:
        InputError: a network cannot be used.
    """
    held = np.flatnonzero(lesions["fold"] == HOLDOUT)
    if not len(held):
        return lesions
    shifts = [float(entry["prior_correction"]) for entry in trained.manifest["tabular"]["models"]]
    shifted = [(model, shift) for (_, model), shift in zip(trained.models, shifts, strict=True)]
    tabular = tabular_logits(shifted, features.iloc[held], trained.categories)
    run, manifest = Run(), trained.manifest

    def load() -> tuple[Networks, ImageStore]:
        return load_networks(trained.folder, manifest, run), store

    logits = score_images(lesions.iloc[held], tabular, load, manifest, ImageOptions(BATCH), run)
    if NETWORK_LOST & set(run.fallbacks):
        raise InputError(f"{trained.folder}: {run.notes[0]}")
    network = np.where(logits.notna().any(axis=1), logits.mean(axis=1), tabular)
    filled = lesions.copy()
    columns = [filled.columns.get_loc(name) for name in ("tabular", "network", "image_scored")]
    filled.iloc[held, columns] = np.column_stack([tabular, network, logits.notna().any(axis=1)])
    return filled


def place_lesions(lesions: pd.DataFrame) -> pd.DataFrame:
    """Each lesion's place among its patient's by network logit, and what the page shows of it.

    Returns:
        ``lesions`` in its own order with ``place``, from 1; ``listed``, whether it has a card; ``heated``, whether it has a
        heat map.
    """
    ordered = lesions.sort_values(["network", ID], ascending=[False, True])
    place = ordered.groupby(PATIENT).cumcount() + 1
    with_crop = ordered["image_scored"] == 1
    crop_place = with_crop.groupby(ordered[PATIENT]).cumsum()
    malignant = ordered[TARGET] == 1
    heated = with_crop & ((crop_place <= HEATED) | malignant)
    return lesions.assign(place=place, listed=(place <= LISTED) | malignant, heated=heated)
