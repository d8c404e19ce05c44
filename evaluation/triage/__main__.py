"""A page per patient: the lesions in order of score, each with crop, scores, SHAP values and where the networks look.

    python -m evaluation.triage --data data/isic-2024-challenge --artifacts artifacts --out triage

Out of fold, a lesion has the scores of oof_fusion.csv and is explained by the models and the network that have not seen its
patient; a lesion of the holdout is scored and explained by the mean of all. A ranking for a competition, no medical device.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier
from PIL import Image
from tqdm import tqdm

from evaluation.grad_cam import BATCH, heat_maps, read_crops, refuse_without_networks, side_by_side
from evaluation.html import jpeg_of
from evaluation.studies.explain import Explanation, explain, load_fold_models, model_features
from evaluation.triage.page import Driver, Lesion, Patient, write_index, write_patient
from inference.artifacts import MANIFEST, OOF_FUSION, Manifest, checked_file, load_manifest
from inference.features import SITE, build_features
from inference.files import sha256_of
from inference.images import ImageStore, image_batches
from inference.network import Ensemble, NetworkConfig, build_network, devices, load_state, network_logits
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, TRAIN_ONLY, read_metadata
from inference.tabular import tabular_logits
from train.folds import HOLDOUT, read_folds
from train.lesions import open_images, refuse_train_only
from utils import InputError, add_data_options, log, run_command

#: Lesions of a patient that have a card, and of those the ones with a heat map; malignant ones have both wherever they rank.
#: A card takes some 8 kB.
LISTED, HEATED = 500, 30
#: Features that a card names.
DRIVERS = 6
#: Width and height of a crop on the page, pixels: about what the camera's crops have.
SHOWN = 128

Models = list[tuple[int, CatBoostClassifier]]


# Which patients


def read_scores(metadata: pd.DataFrame, artifacts: Path, manifest: Manifest) -> pd.DataFrame:
    """Every lesion's fold and, outside of the holdout, its out-of-fold scores.

    Returns:
        Rows as in ``metadata``: ``isic_id``, ``patient_id``, ``target``, ``fold``; ``tabular``, ``logits`` and
        ``image_scored`` of oof_fusion.csv, NaN in the holdout.

    Raises:
        InputError: a stage before this one has not run, or ran on other rows.
    """
    scores = metadata[[ID, PATIENT, TARGET]].assign(fold=read_folds(artifacts, metadata))
    path = checked_file(artifacts, manifest, OOF_FUSION)
    oof = pd.read_csv(path, dtype={ID: "str"}).set_index(ID)[["tabular", "network", "image_scored"]].reindex(scores[ID])
    scores[list(oof)] = oof.to_numpy()
    if scores.loc[scores["fold"] != HOLDOUT, "network"].isna().any():
        raise InputError(f"{path} lacks rows of {artifacts}/folds.csv; run train.fusion again.")
    return scores


def choose_patients(scores: pd.DataFrame, count: int) -> dict[str, str]:
    """The patients that the fusion is most wrong about, out of fold.

    Half of them have a malignant lesion, those with the lowest-scored one first; half have none, those with the
    highest-scored lesion first. Where there are too few of one kind, more are of the other.

    Args:
        scores: as ``read_scores`` gives them.
        count: of patients, at most.

    Returns:
        patient_id -> why.
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


def asked_patients(scores: pd.DataFrame, patients: list[str]) -> dict[str, str]:
    """The patients of ``--patient``, each with why it has a page. Raises InputError where there is no such patient."""
    known = set(scores[PATIENT])
    for patient in patients:
        if patient not in known:
            raise InputError(f"--patient {patient!r} is no patient_id of train-metadata.csv; give one that stands there.")
    return dict.fromkeys(patients, "asked for by --patient")


# Their lesions: scores, order, what drives them


def score_holdout(
    lesions: pd.DataFrame, features: pd.DataFrame, models: Models, store: ImageStore, artifacts: Path, manifest: Manifest
) -> pd.DataFrame:
    """Fills in the scores of the holdout's lesions: the mean of all models, corrected by the mean of all networks.

    Args:
        lesions: rows of ``read_scores``.
        features: theirs, as the models read them.
        models: of ``load_fold_models``.
        store: of the crops.
        artifacts: the folder of the networks.
        manifest: its manifest.

    Returns:
        ``lesions`` with ``tabular``, ``logits`` and ``image_scored`` in every row. A lesion without a readable image keeps
        its tabular score.
    """
    held = np.flatnonzero(lesions["fold"] == HOLDOUT)
    if not len(held):
        return lesions
    shifts = [float(entry["prior_correction"]) for entry in manifest["tabular"]["models"]]
    shifted = [(model, shift) for (_, model), shift in zip(models, shifts, strict=True)]
    tabular = tabular_logits(shifted, features.iloc[held], manifest["tabular"]["categories"])
    settings = manifest["network"]["settings"]
    network = build_network(NetworkConfig.from_dict(settings))
    states = [load_state(network, checked_file(artifacts, manifest, name)) for name in manifest["network"]["weights"]]
    ensemble = Ensemble(network, states, devices()[:1])
    fusion, seen = tabular.copy(), np.zeros(len(held))
    batches = image_batches(store, lesions[ID].iloc[held].tolist(), settings["image_size"], BATCH)
    with tqdm(total=len(held), desc="holdout", unit="lesion") as bar:
        for positions, logits in network_logits(ensemble, batches, tabular):
            fusion[positions], seen[positions] = logits, 1
            bar.update(len(positions))
    filled = lesions.copy()
    columns = [filled.columns.get_loc(name) for name in ("tabular", "network", "image_scored")]
    filled.iloc[held, columns] = np.column_stack([tabular, fusion, seen])
    return filled


def place_lesions(lesions: pd.DataFrame) -> pd.DataFrame:
    """Each lesion's place among its patient's by fusion logits, and what the page has of it.

    Returns:
        ``lesions`` in its own order with ``place``, from 1; ``listed``, whether it has a card; ``heated``, whether it has a
        heat map.
    """
    ordered = lesions.sort_values(["network", ID], ascending=[False, True])
    place = ordered.groupby(PATIENT).cumcount() + 1
    seen = ordered["image_scored"] == 1
    seen_place = seen.groupby(ordered[PATIENT]).cumsum()
    malignant = ordered[TARGET] == 1
    heated = seen & ((seen_place <= HEATED) | malignant)
    return lesions.assign(place=place, listed=(place <= LISTED) | malignant, heated=heated)


def strongest(features: pd.DataFrame, explanation: Explanation, row: int) -> list[Driver]:
    """The features that move a row's score most, the first one most, with their values in words."""
    shap = explanation.shap[row]
    order = np.argsort(-np.abs(shap), kind="stable")[:DRIVERS]
    values = [features.iat[row, column] for column in order]
    return [
        Driver(features.columns[column], value_in_words(value), float(shap[column]))
        for column, value in zip(order, values, strict=True)
    ]


def value_in_words(value: object) -> str:
    """A feature's value: a category as it is, a number to three digits, or "unknown"."""
    if isinstance(value, str):
        return value
    return "unknown" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# Pictures


def with_heat(crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A crop and, right of it, its heat map.

    Args:
        crop: uint8, shape (size, size, 3), of any size.
        heat: as ``class_activation`` gives it, of the network's size.

    Returns:
        As ``side_by_side``.
    """
    resized = Image.fromarray(heat.astype("float32")).resize(crop.shape[1::-1], Image.Resampling.BILINEAR)
    return side_by_side(crop, np.clip(np.asarray(resized), 0, 1))


def describe(isic_id: str, heat: np.ndarray | None) -> str:
    """What a lesion's picture shows, in words; ``heat`` is None where there is no heat map."""
    if heat is None:
        return f"Crop of {isic_id}."
    if not heat.any():
        return f"Crop of {isic_id}; right of it in grey, as no place raises the logits."
    row, column = (3 * np.array(np.unravel_index(int(heat.argmax()), heat.shape))) // np.array(heat.shape)
    where = f"{('upper', 'middle', 'lower')[row]} {('left', 'centre', 'right')[column]}"
    share = float((heat > 0.5).mean())
    return (
        f"Crop of {isic_id}; right of it its heat map: warmest in the {where}, more than half as warm on {share:.0%} of it."
    )


# The pages


def known_of(row: pd.Series) -> str:
    """A lesion's size and place on the body, as far as the metadata has them, for its card."""
    size, location = row.get("clin_size_long_diam_mm"), row.get("tbp_lv_location")
    return (f", {size:.1f} mm" if pd.notna(size) else "") + (f", {location}" if pd.notna(location) else "")


def told_of(rows: pd.DataFrame) -> str:
    """Age, sex and hospital of a patient, as far as the metadata has them."""
    told = []
    for name, word in (("age_approx", "Age"), ("sex", "Sex"), (HOSPITAL, "Hospital")):
        values = rows[name].dropna().unique() if name in rows else ()
        known = [f"{value:.0f}" if name == "age_approx" else str(value) for value in sorted(values)]
        told += [f"{word}: {', '.join(known)}."] if known else []
    return " ".join(told)


def scored_by(fold: int, models: Models, networks: int) -> str:
    """Which models and networks scored and explained a patient of that fold."""
    if fold == HOLDOUT:
        return (
            f"A patient of the holdout, which no training has seen: the mean of all {len(models)} CatBoost models "
            f"and of all {networks} networks."
        )
    count = sum(number == fold for number, _ in models)
    return (
        f"A patient of fold {fold}: scored and explained by the {count} CatBoost model{'s' if count > 1 else ''} and the "
        f"network that have not seen the patient."
    )


def lesions_of(
    rows: pd.DataFrame,
    features: pd.DataFrame,
    explanation: Explanation,
    maps: dict[str, np.ndarray],
    store: ImageStore,
) -> list[Lesion]:
    """The cards of a patient, in order of place.

    Args:
        rows: those of ``place_lesions`` that are listed, with the metadata, in order of place.
        features: theirs.
        explanation: theirs.
        maps: isic_id -> heat map of the heated ones.
        store: of the crops.

    Raises:
        InputError: a lesion whose image the networks have seen has no readable one.
    """
    seen = rows.loc[rows["image_scored"] == 1, ID].tolist()
    crops = dict(zip(seen, read_crops(store, seen, SHOWN), strict=True))
    cards = []
    for position, (_, row) in enumerate(rows.iterrows()):
        crop, heat = crops.get(row[ID]), maps.get(row[ID])
        drivers, shap = strongest(features, explanation, position), float(explanation.shap[position].sum())
        cards.append(
            Lesion(
                isic_id=row[ID],
                place=int(row["place"]),
                malignant=row[TARGET] == 1,
                tabular=float(row["tabular"]),
                fusion=float(row["network"]),
                seen=crop is not None,
                site=str(row[SITE]) if pd.notna(row.get(SITE)) else "unknown",
                told=known_of(row),
                drivers=drivers,
                start=float(row["tabular"]) - shap,
                others=shap - sum(driver.shap for driver in drivers),
                crop=b"" if crop is None else jpeg_of(crop if heat is None else with_heat(crop, heat)),
                described=describe(row[ID], heat),
            )
        )
    return cards


def page_facts(options: argparse.Namespace, arguments: list[str], manifest: Manifest, where: str) -> dict[str, str]:
    """What the pages say of how they were made."""
    combination = manifest["network"].get("combination", {}).get("kind", "network")
    return {
        "command": "python -m evaluation.triage " + shlex.join(arguments),
        "scores": f"out of fold those of {OOF_FUSION}; the kernel submits them combined: {combination}",
        "Grad-CAM": where or "none: no image was seen",
        "CatBoost models": str(len(manifest["tabular"]["models"])),
        "networks": str(len(manifest["network"]["weights"])),
        "versions in training": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        MANIFEST: f"SHA-256 {sha256_of(options.artifacts / MANIFEST)}",
    }


def main(arguments: list[str] | None = None) -> int:
    """Writes index.html and a page for each patient."""
    parser = argparse.ArgumentParser(
        description="A page per patient: the lesions in order of score, with crop, SHAP values and Grad-CAM -> HTML"
    )
    add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pages")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--patients",
        type=int,
        default=6,
        metavar="N",
        help="so many that the fusion is most wrong about, out of fold: misses and false alarms (default: %(default)s)",
    )
    which.add_argument("--patient", nargs="+", action="extend", metavar="ID", help="these, of the holdout too")
    options = parser.parse_args(arguments)
    if options.patients < 1:
        raise InputError(f"--patients {options.patients} makes no page; give 1 or more.")
    manifest = load_manifest(options.artifacts)
    refuse_without_networks(options.artifacts, manifest)
    models = load_fold_models(options.artifacts, manifest)
    store = open_images(options.data)
    metadata = read_metadata(options.data / "train-metadata.csv", labelled=True)
    scores = read_scores(metadata, options.artifacts, manifest)
    why = asked_patients(scores, options.patient) if options.patient else choose_patients(scores, options.patients)

    # A lesion's features rest on its own patient's lesions, so those of the others need not be made.
    inside = metadata[PATIENT].isin(list(why)).to_numpy()
    metadata, lesions = metadata[inside], scores[inside]
    features = build_features(metadata.drop(columns=list(TRAIN_ONLY), errors="ignore"))
    refuse_train_only(list(features))
    features = model_features(features, manifest, options.data, options.artifacts)
    lesions = place_lesions(score_holdout(lesions, features, models, store, options.artifacts, manifest))
    listed = lesions[lesions["listed"]].sort_values("place")
    features = features.loc[listed.index]
    explanation = explain(features, listed["fold"].to_numpy(), models, manifest["tabular"]["categories"])

    heated = listed[listed["heated"]]
    crops = read_crops(store, heated[ID].tolist(), manifest["network"]["settings"]["image_size"])
    maps, where = heat_maps(heated, crops, options.artifacts, manifest)
    heat_of = dict(zip(heated[ID], maps, strict=True))

    facts = page_facts(options, sys.argv[1:] if arguments is None else arguments, manifest, where)
    patients, largest = [], 0
    for patient_id, reason in tqdm(why.items(), desc="pages", unit="patient"):
        of_patient = lesions[lesions[PATIENT] == patient_id].sort_values("place")
        rows = np.flatnonzero(listed[PATIENT] == patient_id)
        known = metadata.loc[listed.index[rows]].drop(columns=[PATIENT, TARGET, ID])
        own = Explanation(explanation.shap[rows], explanation.expected[rows], explanation.importance)
        cards = lesions_of(listed.iloc[rows].join(known), features.iloc[rows], own, heat_of, store)
        patient = Patient(
            patient_id,
            told_of(metadata.loc[of_patient.index]),
            reason,
            scored_by(of_patient["fold"].iloc[0], models, len(manifest["network"]["weights"])),
            *(of_patient[name].to_numpy() for name in (TARGET, "tabular", "network")),
        )
        write_patient(options.out / patient.page, patient, cards, facts)
        largest = max(largest, (options.out / patient.page).stat().st_size)
        patients.append(patient)
    chosen = (
        "The patients were asked for by --patient."
        if options.patient
        else "The patients whom the fusion is most wrong about, out of fold: first those with a malignant "
        "lesion that ranks worst, then those with none whose highest lesion ranks best, which is a false alarm."
    )
    write_index(options.out / "index.html", patients, chosen, facts)
    log(
        f"{options.out / 'index.html'}: patients {len(patients)}, {len(listed):,} of {len(lesions):,} lesions shown, "
        f"{len(heated):,} with heat maps ({where or 'none'}); largest page {largest / 1e6:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
