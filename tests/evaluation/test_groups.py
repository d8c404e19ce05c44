import numpy as np
import pandas as pd
import pytest

from evaluation.groups import (
    SKIN_TONE,
    UNKNOWN,
    Group,
    divide,
    group_section,
    in_top,
    measure_groups,
    skin_tone_angles,
)
from inference.schema import ID, PATIENT, TARGET, read_metadata
from utils import Estimate, bootstrap_scores, top_k_retrieval

WHOLE = Estimate(0.15, 0.14, 0.16)


def short(name):
    return Group("hospital", name, 1, 0, 1, 0).short_name


def made(rows=600, patients=20, seed=0):
    """Rows of two hospitals and two sites, with scores that mean something; a patient has one hospital."""
    rng = np.random.default_rng(seed)
    patient = np.sort(rng.integers(0, patients, rows))
    labels = (rng.random(rows) < 0.15).astype(int)
    table = pd.DataFrame(
        {
            TARGET: labels,
            PATIENT: [f"IP_{number}" for number in patient],
            "attribution": np.where(patient < 12, "A", "B"),
            "anatom_site_general": rng.choice(["leg", "head/neck"], rows),
            "age_approx": 30.0 + 5 * (patient % 10),
        }
    )
    return table, np.round(rng.normal(size=rows) + 1.5 * labels, 1)


def test_a_group_s_pauc_is_that_of_its_rows_alone():
    rows, scores = made()
    groups = measure_groups(rows, scores, {"hospital": rows["attribution"]}, samples=30)
    for group in groups:
        own = (rows["attribution"] == group.name).to_numpy()
        table = bootstrap_scores(rows[TARGET][own], rows[PATIENT][own], {"x": scores[own]}, samples=30)
        assert group.pauc == table.scores["x"].pauc
        # A patient's lesions all lie in one hospital, so the top 15 are the same within it.
        assert group.top15.value == pytest.approx(table.scores["x"].top15.value)
        assert [group.top15.low, group.top15.high] == pytest.approx(
            [table.scores["x"].top15.low, table.scores["x"].top15.high]
        )
        assert (group.rows, group.malignant, group.patients) == (own.sum(), table.malignant, table.patients)


def test_lesions_compete_with_all_of_their_patient():
    rows, scores = made()
    labels, patients = rows[TARGET].to_numpy(), rows[PATIENT].to_numpy()
    retrieved = in_top(labels, scores, patients)
    assert pd.Series(retrieved).groupby(patients).sum().max() == 15
    malignant = labels == 1
    mean = pd.Series(retrieved[malignant]).groupby(patients[malignant]).mean().mean()
    assert mean == pytest.approx(top_k_retrieval(labels, scores, patients))
    site = measure_groups(rows, scores, {"body site": rows["anatom_site_general"]}, samples=5)
    own = malignant & (rows["anatom_site_general"] == "leg").to_numpy()
    value = next(group for group in site if group.name == "leg").top15.value
    assert value == pytest.approx(pd.Series(retrieved[own]).groupby(patients[own]).mean().mean())


def test_a_small_group_gets_its_counts_alone():
    rows, scores = made()
    names = pd.Series("many", index=rows.index)
    names[rows.index[rows[TARGET] == 1][:4]] = "four malignant"
    one = rows[PATIENT] == rows[PATIENT][rows[TARGET] == 1].mode()[0]
    names[one] = "one patient"
    names[rows.index[(rows[TARGET] == 0) & ~one][:9]] = "none malignant"
    groups = {group.name: group for group in measure_groups(rows, scores, {"x": names}, samples=5)}
    assert groups["many"].pauc is not None
    for name in ("four malignant", "one patient", "none malignant"):
        assert groups[name].pauc is None
        assert groups[name].top15 is None
    assert groups["one patient"].malignant >= 5
    assert groups["none malignant"].rows == 9
    page = group_section(list(groups.values()), [], WHOLE, WHOLE).html()
    assert "3 of the 4 groups have fewer than 5 malignant" in page
    assert page.count("too few") == 3


def test_the_skin_s_angle_is_the_formula_s_and_the_patient_s_median():
    rows = pd.DataFrame(
        {
            PATIENT: ["a", "a", "a", "b", "c"],
            "tbp_lv_Lext": [60.0, 70.0, 20.0, 50.0, np.nan],
            "tbp_lv_Bext": [10.0, 20.0, 10.0, 15.0, 15.0],
        }
    )
    assert skin_tone_angles(rows).tolist() == pytest.approx([45, 45, 45, 0, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("angle", "name"), [(56, "very light"), (55, "light"), (41, "intermediate"), (28, "tan"), (10, "brown"), (-31, "dark")]
)
def test_skin_tones_are_chardon_s(angle, name):
    radians = np.radians(angle)
    rows = pd.DataFrame(
        {PATIENT: ["a"], "tbp_lv_Lext": [50 + 20 * np.sin(radians) - 1e-9], "tbp_lv_Bext": [20 * np.cos(radians)]}
    )
    assert divide(rows)[0][SKIN_TONE][0].split(",")[0] == name


def test_ages_are_cut_at_their_names():
    rows = pd.DataFrame({PATIENT: list("abcde"), "age_approx": [35.0, 40.0, 65.0, 70.0, np.nan]})
    assert divide(rows)[0]["age"].tolist() == ["under 40", "40 to 49", "60 to 69", "70 and older", UNKNOWN]


def test_divisions_whose_columns_are_missing_are_left_out_and_listed():
    divisions, absent = divide(pd.DataFrame({PATIENT: ["a"], TARGET: [0], "sex": ["male"]}))
    assert list(divisions) == ["sex"]
    assert len(absent) == 5
    page = group_section([], absent, WHOLE, WHOLE).html()
    assert "skin tone: the rows have no tbp_lv_Lext and tbp_lv_Bext, which only the 3D body scan measures." in page
    assert "<svg" not in page


def test_a_missing_value_is_a_group_of_its_own_and_the_last():
    rows, scores = made()
    rows.loc[rows.index[::3], "attribution"] = None
    groups = measure_groups(rows, scores, {"hospital": divide(rows)[0]["hospital"]}, samples=5)
    assert [group.name for group in groups] == ["A", "B", UNKNOWN]
    assert sum(group.rows for group in groups) == len(rows)


def test_tables_and_charts_hold_the_same_values():
    groups = [
        Group("sex", "female", 1200, 60, 30, 12, Estimate(0.1512, 0.1401, 0.1633), Estimate(0.8, 0.7, 0.9)),
        Group("sex", "<male>", 900, 9, 5, 4, Estimate(0.1234, 0.1111, 0.1357), Estimate(0.75, 0.5, 1.0)),
    ]
    page = group_section(groups, [], WHOLE, WHOLE).html()
    assert "<td>12 of 30</td><td>0.1512</td><td>0.1401 to 0.1633</td><td>0.800</td><td>0.700 to 0.900</td>" in page
    assert "<td>0.1111 to 0.1357 *</td>" in page  # few patients
    assert "&lt;male&gt;" in page
    assert 'aria-label="pAUC of the submission by group, all rows 0.150. female 0.151; &lt;male&gt; 0.123."' in page
    assert page.count("<svg") == 2


def test_a_hospital_s_short_name_tells_it_apart():
    assert short("Department of Dermatology, Hospital Clínic de Barcelona") == "Hospital Clínic de Barcelona"
    assert short("ViDIR Group, Department of Dermatology, Medical University of Vienna") == "Medical University of Vienna"
    assert len(short("Frazer Institute, The University of Queensland, Dermatology Research Centre")) <= 30


def test_real_rows_fall_into_every_division(real_data):
    rows = read_metadata(real_data / "train-metadata.csv", labelled=True)
    divisions, absent = divide(rows)
    assert absent == []
    assert len(divisions) == 6
    for names in divisions.values():
        assert names.notna().all()
    tones = divisions[SKIN_TONE].groupby(rows[PATIENT]).nunique()
    assert (tones == 1).all()
    assert len(divisions["hospital"].unique()) == 7
    assert rows[ID].is_unique
