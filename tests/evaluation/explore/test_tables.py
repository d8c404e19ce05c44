import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from evaluation.explore.tables import (
    age_bands,
    category_rates,
    chance_distance,
    column_table,
    correlations,
    duckling_columns,
    duckling_patients,
    far_from_own,
    rate_table,
    rate_tables,
    shift_table,
    single_columns,
    size_bands,
    strongest_pairs,
    total_variation,
)
from inference.schema import ID, PATIENT, TARGET, TEST_COLUMNS
from utils import auc, partial_auc


def wilson(malignant, lesions, z=1.959963984540054):
    """The interval as Wilson (1927) wrote it."""
    share = malignant / lesions
    middle = (share + z**2 / (2 * lesions)) / (1 + z**2 / lesions)
    half = z / (1 + z**2 / lesions) * np.sqrt(share * (1 - share) / lesions + z**2 / (4 * lesions**2))
    return middle - half, middle + half


def test_a_rate_comes_with_wilsons_interval_and_its_counts():
    groups = pd.Series(["back"] * 40 + ["arm"] * 10 + [np.nan] * 5)
    labels = pd.Series([1] * 4 + [0] * 51)
    patients = pd.Series(np.arange(55) // 2)
    table = rate_table(groups, labels, patients).set_index("group")
    assert table.index.tolist() == ["back", "arm", "missing"]  # the largest first, the unknown last
    assert table["lesions"].tolist() == [40, 10, 5] and table["malignant"].tolist() == [4, 0, 0]
    assert table["patients"].tolist() == [20, 5, 3]
    assert table["rate"].tolist() == [0.1, 0.0, 0.0]
    for group, malignant, lesions in (("back", 4, 40), ("arm", 0, 10)):
        low, high = wilson(malignant, lesions)
        assert table.loc[group, "low"] == pytest.approx(max(low, 0), abs=1e-12)
        assert table.loc[group, "high"] == pytest.approx(high)


def test_groups_keep_an_order_of_their_own():
    ages = age_bands(pd.Series([85.0, 5.0, 19.9, 20.0, 79.0, np.nan, 45.0]))
    assert ages.tolist()[:5] == ["80 and over", "under 20", "under 20", "20 to 29", "70 to 79"]
    order = ("under 20", "20 to 29", "40 to 49", "70 to 79", "80 and over")
    table = rate_table(ages, pd.Series([0] * 7), pd.Series(range(7)), order)
    assert table["group"].tolist() == [*order, "missing"]


def test_every_grouping_counts_every_lesion(metadata):
    tables = rate_tables(metadata)
    expected = {"site", "sex", "age in years", "hospital", "tile type", "lesions of the patient"}
    assert set(tables) == expected
    for table in tables.values():
        assert table["lesions"].sum() == len(metadata) and table["malignant"].sum() == metadata[TARGET].sum()
    assert set(rate_tables(metadata[[ID, PATIENT, TARGET]])) == {"lesions of the patient"}


def test_patients_are_grouped_by_their_number_of_lesions():
    train = pd.DataFrame({PATIENT: ["a"] * 1 + ["b"] * 9 + ["c"] * 10, ID: range(20)})
    assert size_bands(train).tolist() == ["1"] + ["2 to 9"] * 9 + ["10 to 49"] * 10


def test_the_distance_of_categories_is_half_the_difference_of_their_shares():
    assert total_variation(pd.Series(list("aabb")), pd.Series(list("abcc"))) == pytest.approx(0.5)
    assert total_variation(pd.Series(list("ab")), pd.Series(list("abab"))) == 0
    assert total_variation(pd.Series(list("ab")), pd.Series(list("cd"))) == 1


def test_the_shift_of_each_column_is_measured_by_its_kind():
    rng = np.random.default_rng(0)
    train = pd.DataFrame({ID: [f"a{i}" for i in range(200)], "age_approx": rng.normal(size=200), "sex": ["male"] * 200})
    train["tbp_lv_H"] = np.nan
    test = pd.DataFrame({ID: [f"b{i}" for i in range(90)], "age_approx": rng.normal(size=90) + 1, "sex": ["female"] * 90})
    test["tbp_lv_H"] = 1.0
    train.loc[:19, "age_approx"] = np.nan
    table = shift_table(train, test).set_index("column")
    assert table.index.tolist() == ["sex", "age_approx", "tbp_lv_H"]  # the farthest first, the unknown last
    assert table.loc["sex", "distance"] == 1
    expected = ks_2samp(train["age_approx"].dropna(), test["age_approx"]).statistic
    assert table.loc["age_approx", "distance"] == pytest.approx(expected)
    assert table.loc["age_approx", "train_share"] == pytest.approx(0.1)
    assert np.isnan(table.loc["tbp_lv_H", "distance"])


def test_chance_alone_stays_below_its_distance_in_nineteen_of_twenty_draws():
    rng = np.random.default_rng(1)
    beyond = [ks_2samp(*np.split(rng.normal(size=300), [200])).statistic > chance_distance(200, 100) for _ in range(400)]
    assert 0.01 < np.mean(beyond) < 0.09
    assert chance_distance(1, 1) == 1


def test_columns_are_listed_with_their_gaps():
    train = pd.DataFrame({ID: ["x", "y", "z", "w"], TARGET: [0, 1, 0, 0], "sex": ["male", None, "male", "female"]})
    train["tbp_lv_H"] = [1.0, 2.0, 3.0, np.nan]
    train["own"] = [5, 5, 5, 5]
    table = column_table(train, train[[ID, "sex"]].assign(later=1).head(1)).set_index("column")
    assert table.index.tolist() == [ID, TARGET, "sex", "tbp_lv_H", "own", "later"]
    assert table.loc["sex", ["missing", "share", "test_share", "distinct"]].tolist() == [1, 0.25, 0.0, 2]
    assert table.loc["sex", "values"] == "male (66.7 %)"
    assert table.loc["tbp_lv_H", "values"] == "median 2 (1 to 3)"
    assert table.loc["own", "kind"] == "number" and np.isnan(table.loc["own", "test_share"])
    assert np.isnan(table.loc["later", "missing"])


def test_a_single_column_has_the_pauc_of_its_better_direction(metadata):
    table = single_columns(metadata)
    assert table["pauc"].is_monotonic_decreasing
    labels = metadata[TARGET]
    values = table[table["what"] == "value"].set_index("column")
    for name in ("tbp_lv_H", "clin_size_long_diam_mm", "age_approx"):
        scores = metadata[name].fillna(metadata[name].median())
        up, down = partial_auc(labels, scores), partial_auc(labels, -scores)
        assert values.loc[name, "pauc"] == max(up, down)
        assert values.loc[name, "direction"] == ("higher" if up >= down else "lower")
        assert values.loc[name, "auc"] == auc(labels, scores if up >= down else -scores)
    filled = table[table["what"] == "is filled"].set_index("column")
    assert filled.loc["lesion_id", "pauc"] == partial_auc(labels, metadata["lesion_id"].notna().astype(float))
    assert filled.loc["lesion_id", "direction"] == "filled"
    assert table.set_index("column")["usable"].to_dict() == {name: name in TEST_COLUMNS for name in table["column"]}
    assert not {ID, PATIENT, TARGET} & set(table["column"])


def test_one_class_has_no_strongest_column(metadata):
    assert single_columns(metadata.assign(target=0)).empty


def test_a_category_is_not_scored_by_the_patients_own_labels():
    rng = np.random.default_rng(2)
    values, patients = pd.Series(rng.choice(list("abc"), 300)), pd.Series(np.arange(300) // 10)
    labels = (rng.random(300) < 0.3).astype(int)
    rates = category_rates(values, labels, patients)
    changed = np.where(patients == 7, 1 - labels, labels)
    again = category_rates(values, changed, patients)
    np.testing.assert_array_equal(rates[patients == 7], again[patients == 7])
    assert (rates[patients == 8] != again[patients == 8]).any()
    rates = category_rates(pd.Series(np.where(labels, "x", "y")), labels, patients)
    assert partial_auc(labels, rates) == pytest.approx(0.2)


def test_a_category_of_one_patient_has_no_rate():
    assert not category_rates(pd.Series(list("abab")), np.array([0, 1, 0, 1]), pd.Series(["p"] * 4)).any()


def test_correlations_are_spearmans(metadata):
    rho = correlations(metadata)
    assert len(rho) == 30 and rho.index.tolist() == rho.columns.tolist()
    expected = metadata[rho.index.tolist()].corr(method="spearman")
    known = metadata[rho.index.tolist()].notna().all()
    complete = known.index[known]
    np.testing.assert_allclose(rho.loc[complete, complete], expected.loc[complete, complete], atol=1e-9)
    pairs = strongest_pairs(rho, 5)
    assert len(pairs) == 5 and pairs["rho"].abs().is_monotonic_decreasing
    off = rho.abs().to_numpy() - np.eye(len(rho))
    assert abs(pairs["rho"].iloc[0]) == pytest.approx(off.max())
    assert pairs["rho"].iloc[0] == rho.loc[pairs["first"].iloc[0], pairs["second"].iloc[0]]
    assert len(correlations(metadata, most=4)) == 4


def test_what_does_not_vary_correlates_with_nothing(metadata):
    assert correlations(metadata[[ID, PATIENT, TARGET, "age_approx"]]).empty
    assert "tbp_lv_H" not in correlations(metadata.assign(tbp_lv_H=1.0), most=99)
    assert "mel_thick_mm" not in correlations(metadata.assign(mel_thick_mm=np.arange(60.0)), most=99)


def test_the_ugly_duckling_needs_a_large_patient_with_a_malignant_lesion(metadata):
    assert duckling_columns(metadata) == ["clin_size_long_diam_mm", "tbp_lv_H"]
    assert duckling_columns(metadata.drop(columns="tbp_lv_H")) == ["clin_size_long_diam_mm", "tbp_lv_minorAxisMM"]
    assert duckling_columns(metadata[[ID, "age_approx"]]) == []
    train = pd.DataFrame({PATIENT: ["small"] * 19 + ["benign"] * 30 + ["large"] * 25 + ["larger"] * 26})
    train[TARGET] = 0
    train.loc[[0, 50, 80], TARGET] = 1
    assert duckling_patients(train, 5) == ["larger", "large"]
    assert duckling_patients(train, 1) == ["larger"]


def test_lesions_far_from_their_patients_mean_are_counted():
    train = pd.DataFrame(
        {PATIENT: ["a"] * 25 + ["b"] * 3, TARGET: [1] + [0] * 27, "x": [9.0] + [0.0, 1.0] * 12 + [50, 0, 0]}
    )
    assert far_from_own(train, ["x"]) == {0: (0, 24), 1: (1, 1)}
    assert far_from_own(train.assign(x=1.0), ["x"]) == {0: (0, 24), 1: (0, 1)}
