"""The metadata of the SLICE-3D twin: patients, their lesions, the columns of the body scanner, and which are malignant.

A lesion's numbers come from one Gaussian vector, the sum of a patient's part and the lesion's own. The vector has the
correlations of the published data, and each of its entries is carried to its column through that column's published
quantiles. What the scanner computes (differences, chroma, hue, perimeter) is computed here too.

The logits of malignancy are known for every row: a lesion part that its own columns tell, a context part that only
comparing it with the patient's other lesions tells, and a texture part that only the image tells.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from inference.schema import HOSPITAL, PATIENT, TARGET, TRAIN_COLUMNS

Floats = NDArray[np.float64]

#: Hospital: patients and lesions in the competition's train file, licence, and skin lightness in standard deviations (the
#: hospitals' cameras and lighting differ). The last one occurs in the test files only.
HOSPITALS = {
    "Memorial Sloan Kettering Cancer Center": (398, 129_068, "CC-BY", 0.8),
    "Department of Dermatology, Hospital Clínic de Barcelona": (163, 105_724, "CC-BY-NC", -0.75),
    "University Hospital of Basel": (230, 65_218, "CC-BY-NC", -0.1),
    "Frazer Institute, The University of Queensland, Dermatology Research Centre": (176, 51_768, "CC-BY", 0.35),
    "ACEMID MIA": (44, 28_665, "CC-0", -0.7),
    "ViDIR Group, Department of Dermatology, Medical University of Vienna": (15, 12_640, "CC-BY-NC", -0.65),
    "Department of Dermatology, University of Athens, Andreas Syggros Hospital of Skin and Venereal Diseases, "
    "Alexander Stratigos, Konstantinos Liopyris": (16, 7_976, "CC-BY", -0.7),
    "FNQH Cairns": (0, 0, "CC-BY", 0.0),
}
UNSEEN_HOSPITAL = "FNQH Cairns"
WHITE_TILES = {"Memorial Sloan Kettering Cancer Center": 0.89}  # share of '3D: white', elsewhere '3D: XP'

#: Lesions per patient in the 1,042 published patients: share of patients, lesions.
LESIONS_PER_PATIENT = (
    (0.0005, 0.012, 0.05, 0.212, 0.25, 0.428, 0.50, 0.579, 0.686, 0.75, 0.90, 0.95, 0.99, 0.9995),
    (1.0, 5.0, 25.0, 100.0, 115.0, 200.0, 241.5, 300.0, 400.0, 477.5, 823.0, 1123.0, 2158.0, 9184.0),
)
#: Published lesions by their patient's age and sex; None where the file is empty.
AGES = {
    15: 624, 20: 1742, 25: 3433, 30: 10346, 35: 11037, 40: 30480, 45: 22969, 50: 47455, 55: 53795, 60: 53417,
    65: 53780, 70: 38255, 75: 30378, 80: 21096, 85: 8847, None: 2798,
}  # fmt: skip
SEXES = {"male": 265_546, "female": 123_996, None: 11_517}
UNKNOWN_SITE = 5_756 / 401_059  # the site is missing for all lesions of a patient or for none
SECOND_VISIT = 0.1  # share of patients whose lesions carry two ages, five years apart

#: tbp_lv_location: anatom_site_general, tbp_lv_location_simple, published lesions, then mean and standard deviation of
#: x, y and z in mm (medians and 16-84 % half-widths of the 4,800 benign rows that can be had freely).
LOCATIONS = {
    "Torso Back Top Third": ("posterior torso", "Torso Back", 71_112, -8, 113, 1360, 115, 134, 44),
    "Torso Front Top Half": ("anterior torso", "Torso Front", 63_350, 15, 127, 1300, 148, -38, 68),
    "Torso Back Middle Third": ("posterior torso", "Torso Back", 46_185, -13, 129, 1120, 96, 133, 48),
    "Left Leg - Lower": ("lower extremity", "Left Leg", 27_428, -226, 56, 293, 125, 80, 46),
    "Right Leg - Lower": ("lower extremity", "Right Leg", 25_208, 233, 53, 289, 120, 77, 46),
    "Torso Front Bottom Half": ("anterior torso", "Torso Front", 24_360, -16, 129, 1014, 104, -62, 68),
    "Left Leg - Upper": ("lower extremity", "Left Leg", 23_673, -164, 57, 624, 94, 33, 64),
    "Right Leg - Upper": ("lower extremity", "Right Leg", 23_034, 155, 63, 630, 97, 24, 67),
    "Right Arm - Upper": ("upper extremity", "Right Arm", 22_972, 284, 73, 1324, 114, 73, 55),
    "Left Arm - Upper": ("upper extremity", "Left Arm", 22_816, -288, 72, 1341, 95, 79, 52),
    "Head & Neck": ("head/neck", "Head & Neck", 12_046, -2, 68, 1574, 97, -34, 74),
    "Left Arm - Lower": ("upper extremity", "Left Arm", 11_939, -403, 49, 1096, 131, 15, 62),
    "Right Arm - Lower": ("upper extremity", "Right Arm", 10_636, 403, 62, 1100, 147, 6, 60),
    "Torso Back Bottom Third": ("posterior torso", "Torso Back", 4_596, -45, 154, 904, 81, 136, 53),
    "Left Leg": ("lower extremity", "Left Leg", 1_974, 200, 73, 371, 165, 52, 57),
    "Right Leg": ("lower extremity", "Right Leg", 1_711, -142, 140, 438, 209, 55, 61),
    "Left Arm": ("upper extremity", "Left Arm", 1_593, 327, 50, 1272, 155, 56, 45),
    "Right Arm": ("upper extremity", "Right Arm", 601, -300, 70, 1209, 78, 68, 66),
    "Torso Front": ("anterior torso", "Torso Front", 60, 15, 127, 1200, 148, -38, 68),
    "Torso Back": ("posterior torso", "Torso Back", 9, -8, 113, 1200, 148, 134, 44),
    "Unknown": (None, "Unknown", 0, 20, 247, 1145, 400, 50, 90),
}
SITE_HABIT = 40.0  # Dirichlet concentration of a patient's own distribution over locations around the published one
BODY_LIMITS = ((-624.9, 614.5), (-1052.0, 1887.8), (-291.9, 319.4))  # published minimum and maximum of x, y, z in mm

#: Column (tbp_lv_ in front): share of the variance that is between patients, then its quantiles at QUANTILE_LEVELS.
#: Minimum, quartiles and maximum are the organisers' published ones of the 401,059 rows, the others those of 4,800 benign
#: rows. The shares are as measured there for colours, and raised to 0.3 for size and colour variation (measured: 0.1), so
#: that comparing a lesion with its patient's others pays at the twin's smaller sizes as it does in the real file.
QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 1.0)
MEASURED = {
    "Lext": (0.50, 17.70, 23.9, 30.6, 34.6, 42.27, 51.43, 60.50, 67.1, 70.0, 75.0, 82.6, 98.59),
    "Aext": (0.40, -9.08, 7.57, 9.41, 10.5, 12.47, 14.71, 17.14, 19.4, 21.0, 24.2, 27.7, 37.02),
    "Bext": (0.40, 9.24, 17.5, 19.9, 21.3, 23.85, 26.70, 29.68, 32.8, 35.1, 39.1, 42.4, 48.37),
    "deltaL": (0.35, -38.76, -19.9, -15.6, -13.6, -10.68, -8.13, -6.40, -5.17, -4.61, -3.89, -3.30, -1.59),
    "deltaA": (0.35, -13.82, 0.32, 1.72, 2.38, 3.413, 4.644, 6.274, 8.07, 9.25, 13.6, 22.8, 32.14),
    "deltaB": (0.35, -18.09, -4.78, -2.52, -1.49, 0.111, 1.594, 2.851, 3.97, 4.59, 6.02, 7.54, 12.64),
    "areaMM2": (0.30, 0.432, 2.21, 2.82, 3.25, 4.110, 5.686, 9.120, 16.0, 23.1, 50.0, 108.0, 334.15),
    "area_perim_ratio": (0.25, 10.76, 13.4, 14.0, 14.4, 15.43, 17.42, 21.01, 25.8, 29.7, 38.4, 48.5, 87.21),
    "eccentricity": (0.10, 0.028, 0.339, 0.459, 0.529, 0.657, 0.768, 0.853, 0.905, 0.925, 0.945, 0.964, 0.975),
    "deltaLBnorm": (0.30, 3.001, 4.55, 4.79, 5.03, 5.748, 6.946, 8.748, 10.8, 12.2, 15.3, 18.3, 30.49),
    "color_std_mean": (0.30, 0.0, 0.0, 0.0, 0.275, 0.575, 0.931, 1.412, 1.98, 2.42, 3.53, 5.29, 9.953),
    "radial_color_std_max": (0.30, 0.0, 0.0, 0.0, 0.194, 0.564, 0.902, 1.335, 1.89, 2.31, 3.40, 5.35, 11.49),
    "norm_color": (0.30, 0.0, 0.0, 0.0, 0.761, 1.729, 2.765, 4.120, 5.80, 6.99, 9.65, 10.0, 10.0),
    "norm_border": (0.25, 0.589, 1.19, 1.51, 1.70, 2.144, 2.997, 4.358, 5.85, 6.90, 8.76, 9.96, 10.0),
    "stdL": (0.30, 0.268, 0.727, 0.915, 1.08, 1.457, 2.187, 3.475, 5.09, 6.05, 8.50, 11.2, 17.56),
    "stdLExt": (0.30, 0.636, 1.24, 1.45, 1.59, 1.835, 2.150, 2.531, 2.95, 3.29, 4.07, 5.30, 25.53),
    "symm_2axis": (0.20, 0.052, 0.112, 0.147, 0.168, 0.211, 0.282, 0.382, 0.481, 0.541, 0.660, 0.743, 0.977),
    "nevi_confidence": (0.35, 0.0, 1.7e-9, 1.7e-5, 8.2e-4, 0.110, 14.41, 87.79, 98.3, 99.5, 99.94, 99.999, 100.0),
}
#: Correlation of the normal scores of the MEASURED columns in the same 4,800 rows, in per cent, row by row.
CORRELATIONS = """
 12
 48  38
-55   7 -29
 47 -20  31 -64
 35 -14  17   3  32
  4 -17  -3 -36  20 -14
-20  17 -11  42 -44 -16  14
 -7  11   1  29 -22  -2 -29  53
 11 -24   5 -86  51 -12  41 -42 -32
 21 -17   8 -66  38 -17  73 -16 -34  66
 19 -14   7 -60  34 -15  69 -16 -35  60  93
 20 -16   8 -64  37 -17  72 -16 -35  64  98  98
-21  22  -9  52 -48 -10 -12  89  50 -52 -31 -30 -31
 35 -15  19 -90  54 -10  44 -37 -32  86  78  71  76 -47
 27  22   9 -25   1 -15  10  26   7   8  15  15  15  24  11
-19  23  -6  52 -45  -4 -32  70  40 -53 -42 -39 -41  93 -49  18
 15 -30  13 -59  50  13  37 -50 -36  64  48  43  46 -60  59 -17 -61
"""

#: Variance of the three parts of the logits of malignancy over lesions, set so that at the competition's size and
#: prevalence the best possible pAUC is about 0.18 with the image, 0.15 without it, and 0.12 from the lesion part alone.
LESION_VARIANCE, CONTEXT_VARIANCE, TEXTURE_VARIANCE = 1.0, 1.9, 2.9
#: Weights of the standardised columns within a part: directions and proportions as the malignant differ in the real file.
LESION_WEIGHTS = {
    "hue": -0.30, "skin_hue": -0.45, "deltaB": -0.15, "size": 0.20, "age": 0.25, "head": 0.30, "white": 0.25,
}  # fmt: skip
CONTEXT_WEIGHTS = {"hue": -0.7, "size": 0.5, "variation": 0.25}
OUTLIER = 3.0  # standard deviations beyond which a signal counts no further

#: Diagnoses as iddx_full writes them. Malignant: as often as among the 393 published ones. Benign and indeterminate: the
#: organisers publish 675 and 114, 443 of them nevi; how they divide further is a guess.
MALIGNANT_DIAGNOSES = {
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma": 13,
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma::Basal cell carcinoma, Nodular": 96,
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma::Basal cell carcinoma, Superficial": 49,
    "Malignant adnexal epithelial proliferations - Follicular::Basal cell carcinoma::Basal cell carcinoma, Infiltrating": 5,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ": 42,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ::Melanoma in situ, Lentigo maligna type": 15,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ::Melanoma in situ, associated with a nevus": 12,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma in situ::Melanoma in situ, Superficial spreading": 10,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive": 13,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, Superficial spreading": 43,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, Associated with a nevus": 7,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, Nodular": 1,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma Invasive::Melanoma Invasive, On chronically sun-exposed "
    "skin or lentigo maligna melanoma": 5,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma, NOS": 8,
    "Malignant melanocytic proliferations (Melanoma)::Melanoma metastasis": 1,
    "Malignant epidermal proliferations::Squamous cell carcinoma in situ": 50,
    "Malignant epidermal proliferations::Squamous cell carcinoma in situ::Squamous cell carcinoma in situ, "
    "Bowens disease": 1,
    "Malignant epidermal proliferations::Squamous cell carcinoma, Invasive": 15,
    "Malignant epidermal proliferations::Squamous cell carcinoma, Invasive::Squamous cell carcinoma, Invasive, "
    "Keratoacanthoma-type": 5,
    "Malignant epidermal proliferations::Squamous cell carcinoma, NOS": 2,
}
BENIGN_DIAGNOSES = {
    "Benign::Benign melanocytic proliferations::Nevus": 240,
    "Benign::Benign melanocytic proliferations::Nevus::Nevus, Atypical, Dysplastic, or Clark": 125,
    "Benign::Benign melanocytic proliferations::Nevus::Nevus, NOS, Compound": 40,
    "Benign::Benign melanocytic proliferations::Nevus::Nevus, NOS, Junctional": 38,
    "Benign::Benign melanocytic proliferations::Lentigo::Lentigo NOS": 10,
    "Benign::Benign epidermal proliferations::Seborrheic keratosis": 60,
    "Benign::Benign epidermal proliferations::Lichen planus like keratosis": 25,
    "Benign::Benign epidermal proliferations::Pigmented benign keratosis": 8,
    "Benign::Benign soft tissue proliferations - Fibro-histiocytic::Dermatofibroma": 10,
    "Benign::Benign soft tissue proliferations - Vascular::Hemangioma": 5,
    "Indeterminate::Indeterminate melanocytic proliferations::Atypical intraepithelial melanocytic proliferation": 60,
    "Indeterminate::Indeterminate epidermal proliferations::Solar or actinic keratosis": 54,
}
BIOPSIED_BENIGN = 789 / 400_666  # the 675 biopsied benign and 114 indeterminate lesions
FOLLOWED_BENIGN = 0.054  # share of benign lesions that have a lesion_id
MITOSES = {"0/mm^2": 20, "<1/mm^2": 17, "1/mm^2": 3, "2/mm^2": 2, "3/mm^2": 2, "4/mm^2": 1, ">4/mm^2": 4}
THICKNESSES_MM = {0.2: 8, 0.3: 14, 0.4: 13, 0.5: 8, 0.6: 6, 0.8: 4, 1.0: 3, 1.4: 2, 2.2: 1, 5.0: 1}
#: Quantiles of tbp_lv_dnn_lesion_confidence among 4,800 benign and 315 malignant rows.
CONFIDENCE_LEVELS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
BENIGN_CONFIDENCE = (5.5e-7, 40.9, 55.8, 79.2, 93.4, 99.67, 99.995, 99.99996, 100.0)
MALIGNANT_CONFIDENCE = (2.3e-6, 3e-6, 5e-5, 0.16, 3.15, 86.0, 99.68, 99.995, 100.0)


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
    rows["copyright_license"] = rows[HOSPITAL].map({name: values[2] for name, values in HOSPITALS.items()})
    rows = pd.concat([rows, _places(patients, patient, rng), _measurements(patients, patient, rng)], axis=1)
    return rows.copy()


def make_patients(lesions: NDArray[np.int64], hospitals: list[str], rng: np.random.Generator) -> pd.DataFrame:
    """One row per patient: who they are and the patient's share of every latent number, weighted to fit over lesions.

    Args:
        lesions: lesions of each patient, shape (patients,).
        hospitals: hospital of each patient.
        rng: the source of everything drawn.
    """
    count = len(lesions)
    patients = pd.DataFrame({PATIENT: _ids("IP_", count, rng), HOSPITAL: hospitals, "lesions": lesions})
    patients["age_approx"] = np.array(_spread(AGES, lesions, rng), dtype=float)
    patients["sex"] = _spread(SEXES, lesions, rng)
    white = np.array([WHITE_TILES.get(name, 0.005) for name in hospitals])
    patients["tbp_tile_type"] = np.where(rng.random(count) < white, "3D: white", "3D: XP")
    patients["unknown_site"] = _spread({True: UNKNOWN_SITE, False: 1.0 - UNKNOWN_SITE}, lesions, rng)
    patients["second_visit"] = rng.random(count) < SECOND_VISIT
    latent = rng.standard_normal((count, len(MEASURED))) @ _correlation_root().T
    lightness = np.array([HOSPITALS[name][3] for name in hospitals])
    latent[:, list(MEASURED).index("Lext")] += lightness / 0.6
    for column, name in enumerate(MEASURED):
        patients[name] = _normal_scores(latent[:, column], lesions)
    return patients


def choose_hospitals(lesions: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """A hospital for each patient in the published shares; who has many lesions is rather where the mean is high."""
    known = [name for name, values in HOSPITALS.items() if values[0]]
    shares = np.array([HOSPITALS[name][0] for name in known], dtype=float)
    drawn = np.repeat(np.arange(len(known)), _whole_shares(shares, len(lesions)))
    usual = np.log([HOSPITALS[name][1] / HOSPITALS[name][0] for name in known])
    by_burden = drawn[np.argsort(usual[drawn] + rng.standard_normal(len(drawn)))]
    chosen = np.empty(len(lesions), dtype=int)
    chosen[np.argsort(lesions + rng.random(len(lesions)))] = by_burden
    return [known[index] for index in chosen]


def choose_lesion_counts(patients: int, lesions: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Lesions per patient, at least 1 each and ``lesions`` in all, in the published proportions; shape (patients,)."""
    shares, counts = LESIONS_PER_PATIENT
    share = (rng.permutation(patients) + rng.random(patients)) / patients
    usual = np.exp(np.interp(_to_normal(share), _to_normal(np.array(shares)), np.log(counts)))
    return 1 + _whole_shares(usual, lesions - patients)


def lesion_ids(count: int, rng: np.random.Generator) -> NDArray[np.object_]:
    """``count`` different ids as the competition's lesions have, in random order."""
    return _ids("ISIC_", count, rng)


def malignancy(rows: pd.DataFrame, texture: Floats, prevalence: float) -> pd.DataFrame:
    """Logits of malignancy of each row, its three parts and the probability, whose mean is ``prevalence``.

    Args:
        rows: lesions as ``make_rows`` gives them.
        texture: the latent strength of the texture in each lesion's image, standard normal, shape (rows,).
        prevalence: mean probability, between 0 and 1.
    """
    signals = pd.DataFrame(
        {
            "hue": rows["tbp_lv_H"],
            "skin_hue": rows["tbp_lv_Hext"],
            "deltaB": rows["tbp_lv_deltaB"],
            "size": np.log(rows["tbp_lv_areaMM2"]),
            "variation": np.sqrt(rows["tbp_lv_color_std_mean"]),
            "age": rows["age_approx"].fillna(rows["age_approx"].mean()),
            "head": (rows["anatom_site_general"] == "head/neck").astype(float),
            "white": (rows["tbp_tile_type"] == "3D: white").astype(float),
        }
    )
    alone = (signals - signals.mean()) / (signals.std(ddof=0) + 1e-5)
    patient = signals.groupby(rows[PATIENT].to_numpy())
    among_own = ((signals - patient.transform("mean")) / (patient.transform("std", ddof=0) + 1e-5)).fillna(0.0)
    parts = pd.DataFrame(
        {
            "lesion_part": _scaled(_weighted(alone, LESION_WEIGHTS), LESION_VARIANCE, centre=True),
            "context_part": _scaled(_weighted(among_own, CONTEXT_WEIGHTS), CONTEXT_VARIANCE, centre=False),
            "texture_part": np.sqrt(TEXTURE_VARIANCE) * texture,
        }
    )
    relative = parts.sum(axis=1).to_numpy()
    logits = relative + _intercept(relative, prevalence)
    return pd.concat([pd.DataFrame({"probability": _sigmoid(logits), "logit": logits}), parts], axis=1)


def add_diagnoses(rows: pd.DataFrame, target: NDArray[np.int64], rng: np.random.Generator) -> pd.DataFrame:
    """The rows with every column of the train file, in its order: target, diagnosis and what only pathology tells."""
    count = len(rows)
    malignant = target == 1
    full = np.full(count, "Benign", dtype=object)
    biopsied = ~malignant & (rng.random(count) < BIOPSIED_BENIGN)
    full[malignant] = np.array(["Malignant::" + name for name in _draw(MALIGNANT_DIAGNOSES, int(malignant.sum()), rng)])
    full[biopsied] = _draw(BENIGN_DIAGNOSES, int(biopsied.sum()), rng)
    columns: dict[str, object] = {TARGET: target, "iddx_full": full}
    levels, code = np.unique(full.astype(str), return_inverse=True)
    for depth in range(5):
        names = [level.split("::") for level in levels]
        columns[f"iddx_{depth + 1}"] = np.array([n[depth] if depth < len(n) else None for n in names], dtype=object)[code]
    followed = malignant | biopsied | (rng.random(count) < FOLLOWED_BENIGN - BIOPSIED_BENIGN)
    columns["lesion_id"] = np.where(followed, _ids("IL_", count, rng), None)
    invasive = np.array(["Melanoma Invasive" in level for level in levels])[code]
    thickness = np.array(_draw(THICKNESSES_MM, count, rng), dtype=float)
    columns["mel_thick_mm"] = np.where(invasive & (rng.random(count) < 0.93), thickness, np.nan)
    columns["mel_mitotic_index"] = np.where(invasive & (rng.random(count) < 0.78), _draw(MITOSES, count, rng), None)
    share = rng.random(count)
    confidence = np.where(
        malignant,
        np.interp(share, CONFIDENCE_LEVELS, MALIGNANT_CONFIDENCE),
        np.interp(share, CONFIDENCE_LEVELS, BENIGN_CONFIDENCE),
    )
    columns["tbp_lv_dnn_lesion_confidence"] = np.round(confidence, 6)
    return rows.assign(**columns)[list(TRAIN_COLUMNS)]


def _places(patients: pd.DataFrame, patient: NDArray[np.intp], rng: np.random.Generator) -> pd.DataFrame:
    """Site, location and body coordinates of each lesion; every patient has lesions in their own places."""
    names = np.array(list(LOCATIONS), dtype=object)
    table = list(LOCATIONS.values())
    published = np.array([row[2] for row in table], dtype=float)
    habits = rng.standard_gamma(np.tile(SITE_HABIT * published / published.sum(), (len(patients), 1)))
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
    for axis, (low, high) in zip("xyz", BODY_LIMITS, strict=True):
        mean, deviation = np.array([row[3 + 2 * "xyz".index(axis) :][:2] for row in table], dtype=float)[place].T
        places[f"tbp_lv_{axis}"] = np.clip(mean + deviation * rng.standard_normal(len(patient)), low, high).round(4)
    return pd.DataFrame(places)


def _measurements(patients: pd.DataFrame, patient: NDArray[np.intp], rng: np.random.Generator) -> pd.DataFrame:
    """What the body scanner measures of each lesion, with its identities exact to rounding."""
    drawn = _drawn_measurements(patients, patient, rng)
    values = dict(drawn)
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
    latent = rng.standard_normal((len(patient), len(MEASURED))) @ _correlation_root().T
    knots = np.append(np.insert(_to_normal(np.array(QUANTILE_LEVELS[1:-1])), 0, -4.75), 4.75)
    drawn = {}
    for index, (name, (between, *quantiles)) in enumerate(MEASURED.items()):
        score = np.sqrt(between) * patients[name].to_numpy()[patient] + np.sqrt(1.0 - between) * latent[:, index]
        drawn[name] = np.interp(score, knots, quantiles).round(6)
    return drawn


def _correlation_root() -> Floats:
    """A matrix whose product with its transpose is the correlation of the MEASURED columns."""
    correlation = np.eye(len(MEASURED))
    for row, line in enumerate(CORRELATIONS.split("\n")[1:-1], start=1):
        correlation[row, :row] = correlation[:row, row] = np.array(line.split(), dtype=float) / 100.0
    sizes, axes = np.linalg.eigh(correlation)
    root = axes * np.sqrt(np.maximum(sizes, 1e-4))  # rounding to per cents leaves an eigenvalue or two just below zero
    return root / np.linalg.norm(root, axis=1, keepdims=True)


def _weighted(signals: pd.DataFrame, weights: dict[str, float]) -> Floats:
    """Weighted sum of the signals, each cut off at OUTLIER."""
    return signals[list(weights)].clip(-OUTLIER, OUTLIER).to_numpy() @ np.array(list(weights.values()))


def _scaled(part: Floats, variance: float, *, centre: bool) -> Floats:
    """``part`` stretched to a variance; not moved unless ``centre``, so that 0 keeps its meaning."""
    deviation = part.std()
    part = part - part.mean() if centre else part
    return part * (np.sqrt(variance) / deviation if deviation > 0 else 0.0)


def _intercept(relative: Floats, prevalence: float) -> float:
    """What to add to logits so that the mean probability is ``prevalence``, by bisection."""
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _sigmoid(relative + middle).mean() < prevalence else (low, middle)
    return (low + high) / 2.0


def _sigmoid(logits: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logits))


def _to_normal(share: Floats) -> Floats:
    """Standard normal quantiles of a short vector of shares."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(min(max(float(value), 1e-9), 1.0 - 1e-9)) for value in share])


def _normal_scores(values: Floats, weights: NDArray[np.int64]) -> Floats:
    """``values`` replaced, in their order, by standard normal quantiles such that they are standard normal over lesions.

    One patient can hold 2 % of the lesions; without the weights the marginals would depend on who that is.
    """
    order = np.argsort(values)
    scores = np.empty(len(values))
    scores[order] = _to_normal((np.cumsum(weights[order]) - weights[order] / 2.0) / weights.sum())
    return scores


def _spread(shares: dict, lesions: NDArray[np.int64], rng: np.random.Generator) -> list:
    """A category for each patient, such that the lesions have the given shares as nearly as whole patients allow."""
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


def _ids(prefix: str, count: int, rng: np.random.Generator) -> NDArray[np.object_]:
    """``count`` different ids of a prefix and seven digits."""
    return np.array([f"{prefix}{number:07d}" for number in rng.choice(10_000_000, count, replace=False)], dtype=object)
