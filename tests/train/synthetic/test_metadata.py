"""The synthetic columns against what the organisers published of the real ones."""

import numpy as np
import pytest

from train.synthetic.dataset import DatasetConfig, make_tables
from train.synthetic.metadata import choose_lesion_counts
from train.synthetic.published import LOCATIONS

#: Published of the 401,059 rows: column -> q25, median, q75, minimum, maximum.
PUBLISHED = {
    "age_approx": (50, 60, 70, 5, 85),
    "clin_size_long_diam_mm": (2.84, 3.37, 4.38, 1.0, 28.4),
    "tbp_lv_A": (17.33, 19.80, 22.30, -2.49, 48.19),
    "tbp_lv_Aext": (12.47, 14.71, 17.14, -9.08, 37.02),
    "tbp_lv_B": (24.70, 28.17, 31.64, -0.73, 54.31),
    "tbp_lv_Bext": (23.85, 26.70, 29.68, 9.24, 48.37),
    "tbp_lv_C": (31.00, 34.82, 38.43, 3.05, 75.0),
    "tbp_lv_Cext": (27.66, 30.80, 33.96, 9.0, 60.0),
    "tbp_lv_H": (51.57, 55.04, 58.30, -10.0, 110.0),
    "tbp_lv_Hext": (57.30, 61.11, 64.91, 15.0, 130.98),
    "tbp_lv_L": (34.30, 42.34, 50.41, 4.22, 87.55),
    "tbp_lv_Lext": (42.27, 51.43, 60.50, 17.70, 98.59),
    "tbp_lv_areaMM2": (4.110, 5.686, 9.120, 0.432, 334.15),
    "tbp_lv_area_perim_ratio": (15.43, 17.42, 21.01, 10.76, 87.21),
    "tbp_lv_color_std_mean": (0.575, 0.931, 1.412, 0.0, 9.953),
    "tbp_lv_deltaA": (3.413, 4.644, 6.274, -13.82, 32.14),
    "tbp_lv_deltaB": (0.111, 1.594, 2.851, -18.09, 12.64),
    "tbp_lv_deltaL": (-10.68, -8.13, -6.40, -38.76, -1.59),
    "tbp_lv_deltaLB": (6.952, 8.700, 11.243, 2.953, 39.20),
    "tbp_lv_deltaLBnorm": (5.748, 6.946, 8.748, 3.001, 30.49),
    "tbp_lv_eccentricity": (0.657, 0.768, 0.853, 0.028, 0.975),
    "tbp_lv_minorAxisMM": (1.813, 2.265, 2.906, 0.274, 18.39),
    "tbp_lv_norm_border": (2.144, 2.997, 4.358, 0.589, 10.0),
    "tbp_lv_norm_color": (1.729, 2.765, 4.120, 0.0, 10.0),
    "tbp_lv_perimeterMM": (8.34, 10.02, 13.21, 2.58, 102.49),
    "tbp_lv_radial_color_std_max": (0.564, 0.902, 1.335, 0.0, 11.49),
    "tbp_lv_stdL": (1.457, 2.187, 3.475, 0.268, 17.56),
    "tbp_lv_stdLExt": (1.835, 2.150, 2.531, 0.636, 25.53),
    "tbp_lv_symm_2axis": (0.211, 0.282, 0.382, 0.052, 0.977),
    "tbp_lv_symm_2axis_angle": (40, 90, 130, 0, 175),
    "tbp_lv_x": (-147.0, -5.7, 140.5, -624.9, 614.5),
    "tbp_lv_y": (746.5, 1172.8, 1342.1, -1052.0, 1887.8),
    "tbp_lv_z": (-9.0, 68.0, 126.6, -291.9, 319.4),
}
#: Published standard deviations.
DEVIATIONS = {
    "clin_size_long_diam_mm": 1.743, "tbp_lv_A": 4.00, "tbp_lv_B": 5.28, "tbp_lv_L": 10.86, "tbp_lv_Lext": 12.10,
    "tbp_lv_H": 5.52, "tbp_lv_Hext": 5.63, "tbp_lv_deltaA": 2.643, "tbp_lv_deltaB": 2.216, "tbp_lv_deltaL": 3.463,
    "tbp_lv_areaMM2": 9.679, "tbp_lv_color_std_mean": 0.763, "tbp_lv_eccentricity": 0.144, "tbp_lv_norm_border": 1.725,
    "tbp_lv_minorAxisMM": 1.173, "tbp_lv_perimeterMM": 5.92, "tbp_lv_nevi_confidence": 41.5, "age_approx": 13.60,
}  # fmt: skip


@pytest.fixture(scope="module")
def train():
    return make_tables(DatasetConfig(patients=300, lesions=40_000, prevalence=0.01)).train


@pytest.mark.parametrize("name", PUBLISHED)
def test_quartiles_and_range_are_near_the_published_ones(train, name):
    low, middle, high, least, most = PUBLISHED[name]
    found = train[name].quantile([0.25, 0.5, 0.75]).to_numpy()
    assert found == pytest.approx([low, middle, high], abs=0.12 * (high - low))
    assert train[name].min() >= least
    assert train[name].max() <= most


@pytest.mark.parametrize("name", DEVIATIONS)
def test_standard_deviations_are_near_the_published_ones(train, name):
    assert train[name].std() == pytest.approx(DEVIATIONS[name], rel=0.12)


def test_identities_hold_to_rounding(train):
    lv = {name.removeprefix("tbp_lv_"): train[name].to_numpy() for name in train if name.startswith("tbp_lv_")}
    for channel in "LAB":
        assert np.allclose(lv[f"delta{channel}"], lv[channel] - lv[f"{channel}ext"], rtol=0, atol=1e-9)
    for where in ("", "ext"):
        a, b = lv[f"A{where}"], lv[f"B{where}"]
        assert np.allclose(lv[f"C{where}"], np.hypot(a, b), rtol=1e-12)
        assert np.allclose(lv[f"H{where}"], np.degrees(np.arctan2(b, a)), rtol=1e-12)
    assert np.allclose(lv["area_perim_ratio"], lv["perimeterMM"] ** 2 / lv["areaMM2"], rtol=1e-12)
    assert (lv["symm_2axis_angle"] % 5 == 0).all()
    assert (train["age_approx"].dropna() % 5 == 0).all()


@pytest.mark.parametrize(
    ("one", "other", "published"),
    [
        ("clin_size_long_diam_mm", "tbp_lv_perimeterMM", 0.965),
        ("tbp_lv_L", "tbp_lv_Lext", 0.960),
        ("tbp_lv_color_std_mean", "tbp_lv_norm_color", 0.965),
        ("tbp_lv_norm_color", "tbp_lv_radial_color_std_max", 0.959),
        ("tbp_lv_norm_border", "tbp_lv_symm_2axis", 0.924),
        ("tbp_lv_norm_border", "tbp_lv_area_perim_ratio", 0.921),
        ("tbp_lv_deltaL", "tbp_lv_deltaLB", -0.992),
    ],
)
def test_correlations_are_near_the_published_ones(train, one, other, published):
    assert train[one].corr(train[other]) == pytest.approx(published, abs=0.07)


def test_categories_have_the_published_shares(train):
    def share(name, value):
        return (train[name] == value).mean()

    assert share("sex", "male") == pytest.approx(0.662, abs=0.03)
    assert train["sex"].isna().mean() == pytest.approx(0.029, abs=0.02)
    assert train["age_approx"].isna().mean() == pytest.approx(0.007, abs=0.015)
    assert train["anatom_site_general"].isna().mean() == pytest.approx(0.014, abs=0.015)
    assert share("anatom_site_general", "posterior torso") == pytest.approx(0.304, abs=0.03)
    assert share("anatom_site_general", "head/neck") == pytest.approx(0.030, abs=0.015)
    assert share("tbp_tile_type", "3D: white") == pytest.approx(0.287, abs=0.08)
    assert (train["image_type"] == "TBP tile: close-up").all()
    assert share("iddx_1", "Malignant") == pytest.approx(0.01, abs=0.002)


def test_the_three_columns_of_a_place_agree(train):
    places = train[["anatom_site_general", "tbp_lv_location", "tbp_lv_location_simple"]].drop_duplicates()
    assert places["tbp_lv_location"].is_unique
    general = train["anatom_site_general"].fillna("")
    assert (train.loc[general == "head/neck", "tbp_lv_location_simple"] == "Head & Neck").all()
    assert (train.loc[general == "", "tbp_lv_location"] == "Unknown").all()
    assert set(places["tbp_lv_location"]) <= set(LOCATIONS)
    legs = train["tbp_lv_location_simple"].isin(["Left Leg", "Right Leg"])
    assert train.loc[legs, "tbp_lv_y"].mean() < 600 < train.loc[~legs, "tbp_lv_y"].mean()


def test_a_patient_has_one_hospital_and_a_hospital_one_licence(train):
    assert (train.groupby("patient_id")["attribution"].nunique() == 1).all()
    assert (train.groupby("patient_id")["sex"].nunique(dropna=False) == 1).all()
    assert (train.groupby("patient_id")["age_approx"].nunique(dropna=False) <= 2).all()
    assert (train.groupby("attribution")["copyright_license"].nunique() == 1).all()
    assert train["attribution"].nunique() == 7
    assert train["copyright_license"].value_counts().index[-1] == "CC-0"
    assert train["patient_id"].str.fullmatch(r"IP_\d{7}").all()
    assert train["isic_id"].str.fullmatch(r"ISIC_\d{7}").all()
    assert train["isic_id"].is_unique


def test_colours_and_sizes_differ_between_patients(train):
    for name in ("tbp_lv_Lext", "tbp_lv_H", "tbp_lv_deltaL", "tbp_lv_areaMM2", "tbp_lv_color_std_mean"):
        score = train[name].rank(pct=True)
        within = score.groupby(train["patient_id"]).transform("mean")
        assert 0.2 < within.var() / score.var() < 0.65, name


def test_lesions_per_patient_follow_the_published_quantiles():
    counts = choose_lesion_counts(1042, 401_059, np.random.default_rng(0))
    assert counts.sum() == 401_059
    assert counts.min() >= 1
    assert np.quantile(counts, [0.25, 0.5, 0.75, 0.9]) == pytest.approx([115, 241.5, 477.5, 823], rel=0.08)
    assert 5_000 < counts.max() < 15_000


@pytest.mark.parametrize(("patients", "lesions"), [(1, 1), (8, 8), (8, 40), (120, 6_000), (1042, 1043)])
def test_lesions_per_patient_shrink_in_proportion(patients, lesions):
    counts = choose_lesion_counts(patients, lesions, np.random.default_rng(0))
    assert len(counts) == patients
    assert counts.sum() == lesions
    assert counts.min() >= 1


def test_columns_of_pathology_fit_the_label(train):
    malignant = train["target"] == 1
    assert train.loc[malignant, "lesion_id"].notna().all()
    assert train.loc[~malignant, "lesion_id"].notna().mean() == pytest.approx(0.054, abs=0.005)
    assert train["lesion_id"].dropna().is_unique
    assert (train.loc[malignant, "iddx_1"] == "Malignant").all()
    assert train.loc[~malignant, "iddx_1"].isin(["Benign", "Indeterminate"]).all()
    steps = train[[f"iddx_{depth}" for depth in range(1, 6)]]
    joined = steps.fillna("").agg("::".join, axis=1).str.rstrip(":")
    assert (joined == train["iddx_full"]).all()
    invasive = train["iddx_3"] == "Melanoma Invasive"
    assert train.loc[~invasive, "mel_thick_mm"].isna().all()
    assert train.loc[~invasive, "mel_mitotic_index"].isna().all()
    assert train.loc[invasive, "mel_thick_mm"].notna().any()
    confidence = train.groupby("target")["tbp_lv_dnn_lesion_confidence"].mean()
    assert confidence[0] == pytest.approx(97.2, abs=1.5)
    assert confidence[1] == pytest.approx(81.4, abs=6.0)
