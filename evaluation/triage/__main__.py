"""A page per patient: the lesions in order of score, each with crop, scores, SHAP values and Grad-CAM heat map.

    python -m evaluation.triage --data data/isic-2024-challenge --artifacts artifacts --out triage

Out of fold, a lesion has the scores of oof_fusion.csv and is explained by the models and the network trained without its
patient; a lesion of the holdout is scored and explained by the mean of all. A ranking for a competition, no medical device.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation.grad_cam import heat_maps, read_crops
from evaluation.studies.explain import explain
from evaluation.triage.cards import make_cards
from evaluation.triage.page import Patient, write_index, write_patient
from evaluation.triage.scores import (
    Trained,
    choose_patients,
    load_trained,
    model_features,
    named_patients,
    out_of_fold_scores,
    place_lesions,
    score_holdout,
)
from inference.artifacts import MANIFEST, OOF_FUSION, artifact_path, last_stage, networks_of
from inference.files import sha256_of
from inference.images import ImageStore
from inference.options import Parser, add_data_options, count, filled_text, output_folder
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, read_metadata
from scale.output_folder import output_set
from scale.progress import Bar
from terminal import run_command
from train.folds import HOLDOUT
from train.lesions import open_images
from utils import log_summary, text_table

INDEX, TITLE = "index.html", "Triage"
BY_ERROR = (
    "The patients with the largest errors of the networks, out of fold: first those with a malignant lesion that ranks "
    "worst, then those without one whose highest lesion ranks best, which is a false alarm."
)


@dataclass(frozen=True)
class Lesions:
    """The lesions of the pages.

    Attributes:
        all: of the chosen patients, with their metadata, as ``place_lesions`` gives them.
        listed: those of them that have a card, in order of place.
        features: of the listed ones, shape (rows, features).
        shap: their SHAP values, logits, same shape.
        maps: isic_id -> heat map.
        layer: where in the backbone the heat maps were taken, in words; "" where there are none.
    """

    all: pd.DataFrame
    listed: pd.DataFrame
    features: pd.DataFrame
    shap: np.ndarray
    maps: dict[str, np.ndarray]
    layer: str


def main(arguments: list[str] | None = None) -> int:
    """Writes index.html and a page for each patient."""
    parser = Parser(
        prog="python -m evaluation.triage",
        description="A page per patient: the lesions in order of score, with crop, SHAP values and Grad-CAM -> HTML",
    )
    add_data_options(parser)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="folder for the pages")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--patients",
        type=count(),
        default=6,
        metavar="N",
        help="so many with the largest errors of the networks, out of fold: misses and false alarms (default: %(default)s)",
    )
    which.add_argument(
        "--patient", type=filled_text, nargs="+", action="extend", metavar="ID", help="these, of the holdout too"
    )
    options = parser.parse_args(arguments)

    with output_set(options.out, ["*.html"], marks=[INDEX], title=TITLE) as staging:
        trained, store = load_trained(options.artifacts), open_images(options.data)
        metadata = read_metadata(options.data / "train-metadata.csv", labelled=True)
        scores = out_of_fold_scores(metadata, trained)
        reasons = named_patients(scores, options.patient) if options.patient else choose_patients(scores, options.patients)
        # A lesion's features depend on the lesions of its patient only.
        rows = metadata[PATIENT].isin(list(reasons))
        lesions = explained_lesions(metadata[rows], scores[rows], trained, store)

        facts = page_facts(trained, lesions, sys.argv[1:] if arguments is None else arguments)
        patients, largest = [], 0
        for patient_id, why in Bar(reasons.items(), desc="pages", unit="patient"):
            patient = patient_of(lesions.all[lesions.all[PATIENT] == patient_id].sort_values("place"), why, trained)
            own = np.flatnonzero(lesions.listed[PATIENT] == patient_id)
            cards = make_cards(lesions.listed.iloc[own], lesions.features.iloc[own], lesions.shap[own], lesions.maps, store)
            write_patient(staging / patient.page, patient, cards, facts)
            largest = max(largest, (staging / patient.page).stat().st_size)
            patients.append(patient)
        chosen = "The patients were asked for by --patient." if options.patient else BY_ERROR
        write_index(staging / INDEX, patients, chosen, facts)
    rows = [[each.patient_id, f"{len(each.labels):,}", str(int(each.labels.sum())), each.page] for each in patients]
    log_summary(
        f"{options.out / INDEX}: patients {len(patients)}, {len(lesions.listed):,} of {len(lesions.all):,} lesions "
        f"shown, {len(lesions.maps):,} with heat maps ({lesions.layer or 'none'}); largest page {largest / 1e6:.1f} MB",
        text_table([["patient", "lesions", "malignant", "page"], *rows]),
    )
    return 0


def explained_lesions(metadata: pd.DataFrame, scores: pd.DataFrame, trained: Trained, store: ImageStore) -> Lesions:
    """Scores, places, SHAP values and heat maps of all lesions of some patients.

    Args:
        metadata: the patients' rows.
        scores: the same rows of ``out_of_fold_scores``.
        trained: the models and networks.
        store: of the crops.
    """
    features = model_features(metadata, trained)
    lesions = place_lesions(score_holdout(scores, features, trained, store))
    lesions = lesions.join(metadata.drop(columns=[ID, PATIENT, TARGET]))
    listed = lesions[lesions["listed"]].sort_values("place")
    features = features.loc[listed.index]
    shap = explain(features, listed["fold"].to_numpy(), trained.models, trained.categories).shap
    heated = listed[listed["heated"]]
    crops = read_crops(store, heated[ID].tolist(), trained.image_size)
    maps, layer = heat_maps(heated, crops, trained.folder, trained.manifest)
    return Lesions(lesions, listed, features, shap, dict(zip(heated[ID], maps, strict=True)), layer)


def patient_of(lesions: pd.DataFrame, why: str, trained: Trained) -> Patient:
    """A patient from all the patient's lesions in order of place."""
    return Patient(
        lesions[PATIENT].iloc[0],
        known_of(lesions),
        why,
        scored_by(lesions["fold"].iloc[0], trained),
        *(lesions[name].to_numpy() for name in (TARGET, "tabular", "network")),
    )


def known_of(lesions: pd.DataFrame) -> str:
    """Age, sex and hospital of a patient, as far as the metadata have them."""
    sentences = []
    for name, word in (("age_approx", "Age"), ("sex", "Sex"), (HOSPITAL, "Hospital")):
        values = sorted(lesions[name].dropna().unique()) if name in lesions else []
        words = [f"{value:.0f}" if name == "age_approx" else str(value) for value in values]
        sentences += [f"{word}: {', '.join(words)}."] if words else []
    return " ".join(sentences)


def scored_by(fold: int, trained: Trained) -> str:
    """Which models and networks scored and explained a patient of that fold."""
    if fold == HOLDOUT:
        return (
            f"A patient of the holdout, which is in no training: the mean of all {len(trained.models)} CatBoost models "
            f"and of all {len(trained.networks)} networks."
        )
    models, networks = sum(number == fold for number, _ in trained.models), len(networks_of(trained.manifest))
    return (
        f"A patient of fold {fold}: scored and explained by the {models} CatBoost model{'s' if models > 1 else ''} and the "
        f"{f'{networks} networks' if networks > 1 else 'network'} trained without this patient."
    )


def page_facts(trained: Trained, lesions: Lesions, arguments: list[str]) -> dict[str, str]:
    """How the pages were made."""
    manifest = trained.manifest
    combination = last_stage(manifest).get("combination", {}).get("kind", "network")
    return {
        "command": "python -m evaluation.triage " + shlex.join(arguments),
        "scores": f"out of fold those of {OOF_FUSION}",
        "final score of the kernel": combination,
        "Grad-CAM": lesions.layer or "none: no image was scored",
        "CatBoost models": str(len(trained.models)),
        "networks": str(len(trained.networks)),
        "versions in training": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        MANIFEST: f"SHA-256 {sha256_of(artifact_path(trained.folder, MANIFEST))}",
    }


if __name__ == "__main__":
    run_command(main)
