"""The metadata of the synthetic dataset: patients, their lesions, the columns of the body scanner, and diagnoses.

A lesion's numbers come from one Gaussian vector, the sum of a patient's part and the lesion's own. The vector has the
correlations of the published data, and each of its entries is mapped to its column through that column's published
quantiles. What the scanner computes (differences, chroma, hue, perimeter) is computed here too.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from inference.schema import HOSPITAL, PATIENT, TARGET, TRAIN_COLUMNS
from train.synthetic import published

Floats = NDArray[np.float64]


def make_rows(patients: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """One row per lesion of ``patients``: the columns of the test file that are neither label nor id of the lesion.

    The rows come patient by patient; numbers are rounded to six decimals, and what the scanner derives from others is
    derived from the rounded ones.
    """
    patient = np.repeat(np.arange(len(patients)), patients["lesions"])
    rows = pd.DataFrame({name: patients[name].to_numpy()[patient] for name in (PATIENT, "age_approx", "sex")})
    later = patients["second_visit"].to_numpy()[patient] & (rng.random(len(rows)) < 0.5)
    rows["age_approx"] = np.minimum(rows["age_approx"] + 5.0 * later, 85.0)
    rows["image_type"] = "TBP tile: close-up"
    rows["tbp_tile_type"] = patients["tbp_tile_type"].to_numpy()[patient]
    rows[HOSPITAL] = patients[HOSPITAL].to_numpy()[patient]
    rows["copyright_license"] = rows[HOSPITAL].map({name: values[2] for name, values in published.HOSPITALS.items()})
    rows = pd.concat([rows, _places(patients, patient, rng), _measurements(patients, patient, rng)], axis=1)
    return rows.copy()


def make_patients(lesions: NDArray[np.int64], hospitals: list[str], rng: np.random.Generator) -> pd.DataFrame:
    """One row per patient: sex, age, hospital, and the patient's part of every latent number, standard normal over lesions.

    Args:
        lesions: lesions of each patient, shape (patients,).
        hospitals: hospital of each patient.
        rng: source of all random numbers.
    """
    count = len(lesions)
    patients = pd.DataFrame({PATIENT: draw_ids("IP_", count, rng), HOSPITAL: hospitals, "lesions": lesions})
    patients["age_approx"] = np.array(_spread(published.AGES, lesions, rng), dtype=float)
    patients["sex"] = _spread(published.SEXES, lesions, rng)
    white = np.array([published.WHITE_TILES.get(name, 0.005) for name in hospitals])
    patients["tbp_tile_type"] = np.where(rng.random(count) < white, "3D: white", "3D: XP")
    patients["unknown_site"] = _spread({True: published.UNKNOWN_SITE, False: 1.0 - published.UNKNOWN_SITE}, lesions, rng)
    patients["second_visit"] = rng.random(count) < published.SECOND_VISIT
    latent = rng.standard_normal((count, len(published.MEASURED))) @ _correlation_root().T
    lightness = np.array([published.HOSPITALS[name][3] for name in hospitals])
    latent[:, list(published.MEASURED).index("Lext")] += lightness / 0.6
    for column, name in enumerate(published.MEASURED):
        patients[name] = _normal_scores(latent[:, column], lesions)
    return patients


def choose_hospitals(lesions: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """A hospital for each patient in the published shares; patients with many lesions go where their mean is high."""
    known = [name for name, values in published.HOSPITALS.items() if values[0]]
    shares = np.array([published.HOSPITALS[name][0] for name in known], dtype=float)
    drawn = np.repeat(np.arange(len(known)), _whole_shares(shares, len(lesions)))
    usual = np.log([published.HOSPITALS[name][1] / published.HOSPITALS[name][0] for name in known])
    by_burden = drawn[np.argsort(usual[drawn] + rng.standard_normal(len(drawn)))]
    chosen = np.empty(len(lesions), dtype=int)
    chosen[np.argsort(lesions + rng.random(len(lesions)))] = by_burden
    return [known[index] for index in chosen]


def choose_lesion_counts(patients: int, lesions: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Lesions per patient, at least 1 each and ``lesions`` in all, in the published proportions; shape (patients,)."""
    shares, counts = published.LESIONS_PER_PATIENT
    share = (rng.permutation(patients) + rng.random(patients)) / patients
    usual = np.exp(np.interp(_to_normal(share), _to_normal(np.array(shares)), np.log(counts)))
    return 1 + _whole_shares(usual, lesions - patients)


def add_diagnoses(rows: pd.DataFrame, target: NDArray[np.int64], rng: np.random.Generator) -> pd.DataFrame:
    """The rows with every column of the train file, in its order: target, diagnosis and what comes from pathology."""
    count = len(rows)
    malignant = target == 1
    full = np.full(count, "Benign", dtype=object)
    biopsied = ~malignant & (rng.random(count) < published.BIOPSIED_BENIGN)
    names = _draw(published.MALIGNANT_DIAGNOSES, int(malignant.sum()), rng)
    full[malignant] = np.array(["Malignant::" + name for name in names])
    full[biopsied] = _draw(published.BENIGN_DIAGNOSES, int(biopsied.sum()), rng)
    columns: dict[str, object] = {TARGET: target, "iddx_full": full}
    levels, code = np.unique(full.astype(str), return_inverse=True)
    for depth in range(5):
        parts = [level.split("::") for level in levels]
        columns[f"iddx_{depth + 1}"] = np.array([p[depth] if depth < len(p) else None for p in parts], dtype=object)[code]
    followed = malignant | biopsied | (rng.random(count) < published.FOLLOWED_BENIGN - published.BIOPSIED_BENIGN)
    columns["lesion_id"] = np.where(followed, draw_ids("IL_", count, rng), np.array(None))
    invasive = np.array(["Melanoma Invasive" in level for level in levels])[code]
    thickness = np.array(_draw(published.THICKNESSES_MM, count, rng), dtype=float)
    columns["mel_thick_mm"] = np.where(invasive & (rng.random(count) < 0.93), thickness, np.nan)
    has_mitoses = invasive & (rng.random(count) < 0.78)
    columns["mel_mitotic_index"] = np.where(has_mitoses, _draw(published.MITOSES, count, rng), np.array(None))
    share = rng.random(count)
    confidence = np.where(
        malignant,
        np.interp(share, published.CONFIDENCE_LEVELS, published.MALIGNANT_CONFIDENCE),
        np.interp(share, published.CONFIDENCE_LEVELS, published.BENIGN_CONFIDENCE),
    )
    columns["tbp_lv_dnn_lesion_confidence"] = np.round(confidence, 6)
    return rows.assign(**columns)[list(TRAIN_COLUMNS)]


def _places(patients: pd.DataFrame, patient: NDArray[np.intp], rng: np.random.Generator) -> pd.DataFrame:
    """Site, location and body coordinates of each lesion; every patient has an own distribution over locations."""
    names = np.array(list(published.LOCATIONS), dtype=object)
    table = list(published.LOCATIONS.values())
    lesions = np.array([row[2] for row in table], dtype=float)
    habits = rng.standard_gamma(np.tile(published.SITE_HABIT * lesions / lesions.sum(), (len(patients), 1)))
    habits[patients["unknown_site"].to_numpy()] = names == "Unknown"
    reached = np.cumsum(habits / habits.sum(axis=1, keepdims=True), axis=1)[:, :-1]
    place = np.zeros(len(patient), dtype=np.intp)
    share = rng.random(len(patient))
    for column in reached.T:
        place += share >= column[patient]
    places = {
        "anatom_site_general": np.array([row[0] for row in table], dtype=object)[place],
        "tbp_lv_location": names[place],
        "tbp_lv_location_simple": np.array([row[1] for row in table], dtype=object)[place],
    }
    for axis, (low, high) in zip("xyz", published.BODY_LIMITS, strict=True):
        mean, deviation = np.array([row[3 + 2 * "xyz".index(axis) :][:2] for row in table], dtype=float)[place].T
        places[f"tbp_lv_{axis}"] = np.clip(mean + deviation * rng.standard_normal(len(patient)), low, high).round(4)
    return pd.DataFrame(places)


def _measurements(patients: pd.DataFrame, patient: NDArray[np.intp], rng: np.random.Generator) -> pd.DataFrame:
    """The body scanner's columns of each lesion; its identities are exact to rounding."""
    drawn = _drawn_measurements(patients, patient, rng)
    values: dict[str, NDArray[Any]] = dict(drawn)
    for channel, (low, high) in {"L": (4.22, 87.55), "A": (-2.49, 48.19), "B": (-0.73, 54.31)}.items():
        inside = np.clip(drawn[f"{channel}ext"] + drawn[f"delta{channel}"], low, high).round(6)
        values[channel] = inside
        values[f"delta{channel}"] = (inside - drawn[f"{channel}ext"]).round(6)
    for where in ("", "ext"):
        a, b = values[f"A{where}"], values[f"B{where}"]
        values[f"C{where}"] = np.hypot(a, b)
        values[f"H{where}"] = np.degrees(np.arctan2(b, a))
    count = len(patient)
    excess = np.exp(np.log(0.0165) + 0.6 * rng.standard_normal(count))  # measured: 1.0011 to 1.2, median 1.0165
    values["deltaLB"] = np.clip(np.hypot(values["deltaL"], values["deltaB"]) * (1.0 + excess), 2.953, 39.20).round(6)
    perimeter = np.sqrt(drawn["area_perim_ratio"] * drawn["areaMM2"])
    values["perimeterMM"] = np.clip(perimeter, 2.58, 102.49).round(6)
    values["area_perim_ratio"] = values["perimeterMM"] ** 2 / drawn["areaMM2"]
    roundness = np.sqrt(1.0 - drawn["eccentricity"] ** 2)
    # The scanner's axes are not those of an ellipse; these are least-squares fits to 4,800 published benign rows.
    log_perimeter, log_area, log_roundness = np.log(values["perimeterMM"]), np.log(drawn["areaMM2"]), np.log(roundness)
    log_minor = -0.604 + 0.529 * log_perimeter + 0.231 * log_area + 0.503 * log_roundness
    values["minorAxisMM"] = np.clip(np.exp(log_minor + 0.043 * rng.standard_normal(count)), 0.274, 18.39).round(6)
    log_major = np.log(values["minorAxisMM"]) - log_roundness
    log_longest = -0.242 + 0.137 * log_major + 0.262 * log_perimeter + 0.304 * log_area - 0.340 * log_roundness
    longest = np.exp(log_longest + 0.038 * rng.standard_normal(count))
    values["symm_2axis_angle"] = 5 * rng.integers(0, 36, count)
    columns = pd.DataFrame({f"tbp_lv_{name}": column for name, column in values.items()})
    columns["clin_size_long_diam_mm"] = np.clip(longest, 1.0, 28.4).round(2)
    return columns


def _drawn_measurements(patients: pd.DataFrame, patient: NDArray[np.intp], rng: np.random.Generator) -> dict[str, Floats]:
    """The MEASURED columns, each through its own quantiles from the sum of the patient's and the lesion's latent number."""
    latent = rng.standard_normal((len(patient), len(published.MEASURED))) @ _correlation_root().T
    knots = np.append(np.insert(_to_normal(np.array(published.QUANTILE_LEVELS[1:-1])), 0, -4.75), 4.75)
    drawn = {}
    for index, (name, (between, *quantiles)) in enumerate(published.MEASURED.items()):
        score = np.sqrt(between) * patients[name].to_numpy()[patient] + np.sqrt(1.0 - between) * latent[:, index]
        drawn[name] = np.interp(score, knots, quantiles).round(6)
    return drawn


def _correlation_root() -> Floats:
    """A matrix whose product with its transpose is the correlation of the MEASURED columns."""
    correlation = np.eye(len(published.MEASURED))
    for row, line in enumerate(published.CORRELATIONS.split("\n")[1:-1], start=1):
        correlation[row, :row] = correlation[:row, row] = np.array(line.split(), dtype=float) / 100.0
    sizes, axes = np.linalg.eigh(correlation)
    root = axes * np.sqrt(np.maximum(sizes, 1e-4))  # rounding to per cents leaves an eigenvalue or two just below zero
    return root / np.linalg.norm(root, axis=1, keepdims=True)


def _to_normal(share: Floats) -> Floats:
    """Standard normal quantiles of a short vector of shares."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(min(max(float(value), 1e-9), 1.0 - 1e-9)) for value in share])


def _normal_scores(values: Floats, weights: NDArray[np.int64]) -> Floats:
    """``values`` replaced, in their order, by standard normal quantiles such that they are standard normal over lesions.

    One patient can have 2 % of the lesions; without the weights the marginals would depend on that patient's draw.
    """
    order = np.argsort(values)
    scores = np.empty(len(values))
    scores[order] = _to_normal((np.cumsum(weights[order]) - weights[order] / 2.0) / weights.sum())
    return scores


def _spread(shares: dict, lesions: NDArray[np.int64], rng: np.random.Generator) -> list:
    """A category for each patient; the lesions have the given shares as nearly as whole patients allow."""
    order = rng.permutation(len(lesions))
    middle = np.empty(len(lesions))
    middle[order] = (np.cumsum(lesions[order]) - lesions[order] / 2.0) / lesions.sum()
    edges = np.cumsum(list(shares.values())) / sum(shares.values())
    categories = list(shares)
    return [categories[index] for index in np.minimum(np.searchsorted(edges, middle), len(categories) - 1)]


def _whole_shares(shares: Floats, total: int) -> NDArray[np.int64]:
    """``total`` divided in proportion to ``shares`` into whole numbers, the largest remainders rounded up."""
    exact = shares / shares.sum() * total
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _draw(weights: dict, count: int, rng: np.random.Generator) -> NDArray[np.object_]:
    """``count`` keys drawn in proportion to their weights."""
    keys = np.array(list(weights), dtype=object)
    share = np.array(list(weights.values()), dtype=float)
    return keys[rng.choice(len(keys), size=count, p=share / share.sum())]


def draw_ids(prefix: str, count: int, rng: np.random.Generator) -> NDArray[np.object_]:
    """``count`` different ids of a prefix and seven digits."""
    return np.array([f"{prefix}{number:07d}" for number in rng.choice(10_000_000, count, replace=False)], dtype=object)
