import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_context import slow_outliers, slow_rank, slow_score

from inference.features import (
    CONTEXT,
    ENGINEERED,
    MODEL_CATEGORIES,
    OUTLIER_SPACE,
    SCORED_LESIONS,
    SITE,
    SMALLEST_NORM,
    build_features,
    engineered_features,
    group_codes,
    group_sizes,
    groups_of,
    logit_features,
    outlier_scores,
    percentile_ranks,
    standard_scores,
)
from inference.schema import CATEGORIES, ID, MISSING, NUMBERS, PATIENT, TARGET, TEST_COLUMNS, TRAIN_ONLY, read_metadata

#: The engineered features again, as pandas expressions of the columns.
FORMULAS = {
    "size_ratio": "tbp_lv_minorAxisMM / clin_size_long_diam_mm",
    "hue_contrast": "tbp_lv_H - tbp_lv_Hext",
    "color_difference": "(tbp_lv_deltaA ** 2 + tbp_lv_deltaB ** 2 + tbp_lv_deltaL ** 2) ** 0.5",
    "border_complexity": "tbp_lv_norm_border + tbp_lv_symm_2axis",
    "color_uniformity": "tbp_lv_color_std_mean / (tbp_lv_radial_color_std_max + 1e-5)",
    "position_distance": "(tbp_lv_x ** 2 + tbp_lv_y ** 2 + tbp_lv_z ** 2) ** 0.5",
    "perimeter_to_area": "tbp_lv_perimeterMM / tbp_lv_areaMM2",
    "visibility": "tbp_lv_deltaLBnorm + tbp_lv_norm_color",
    "symmetry_border": "tbp_lv_symm_2axis * tbp_lv_norm_border",
    "color_consistency": "tbp_lv_stdL / tbp_lv_Lext",
    "size_age": "clin_size_long_diam_mm * age_approx",
    "hue_color_std": "tbp_lv_H * tbp_lv_color_std_mean",
    "severity": "(tbp_lv_norm_border + tbp_lv_norm_color + tbp_lv_eccentricity) / 3",
    "color_contrast_index": "tbp_lv_deltaA + tbp_lv_deltaB + tbp_lv_deltaL + tbp_lv_deltaLBnorm",
    "size_for_age": "clin_size_long_diam_mm / age_approx",
    "orientation": "arctan2(tbp_lv_y, tbp_lv_x)",
    "color_variance_ratio": "tbp_lv_color_std_mean / tbp_lv_stdLExt",
    "border_color": "tbp_lv_norm_border * tbp_lv_norm_color",
    "size_contrast_ratio": "clin_size_long_diam_mm / tbp_lv_deltaLBnorm",
    "nevi_confidence_for_age": "tbp_lv_nevi_confidence / age_approx",
    "color_asymmetry": "tbp_lv_radial_color_std_max * tbp_lv_symm_2axis",
    "color_range": "abs(tbp_lv_deltaL) + abs(tbp_lv_deltaA) + abs(tbp_lv_deltaB)",
    "shape_color": "tbp_lv_eccentricity * tbp_lv_color_std_mean",
}


def slow_features(metadata):
    """What ``build_features`` gives, one patient and one lesion at a time."""
    numbers = metadata[[name for name in NUMBERS if name in metadata]].astype("float64")
    for name, formula in FORMULAS.items():
        if all(column in numbers for column in ENGINEERED[name][0]):
            numbers[name] = numbers.eval(formula, engine="python")
    features = numbers.copy()
    sites = {"patient": metadata[[PATIENT]].astype(str)}
    if SITE in metadata:
        sites["site"] = metadata[[PATIENT, SITE]].astype(str)
    for group, keys in sites.items():
        for _, rows in metadata.groupby([keys[name] for name in keys]).groups.items():
            features.loc[rows, f"{group}_lesions"] = float(len(rows))
            for name in [name for name in CONTEXT if name in numbers]:
                values = numbers.loc[rows, name].tolist()
                few = len(rows) < SMALLEST_NORM
                features.loc[rows, f"{name}_z_{group}"] = [0.0 if few else slow_score(value, values) for value in values]
                if group == "patient":
                    ranks = [0.5 if few else slow_rank(value, values) for value in values]
                    features.loc[rows, f"{name}_rank_patient"] = ranks
            if group == "patient" and all(name in numbers for name in OUTLIER_SPACE):
                scores = [1.0] * len(rows)
                if len(rows) >= SMALLEST_NORM:
                    columns = [numbers.loc[rows, name].tolist() for name in OUTLIER_SPACE]
                    points = zip(*([slow_score(value, values) for value in values] for values in columns), strict=True)
                    scores = slow_outliers(list(points))
                features.loc[rows, "outlier_patient"] = scores
    features = features.astype("float32").replace([np.inf, -np.inf], np.nan)
    for name in MODEL_CATEGORIES:
        if name in metadata:
            features[name] = [MISSING if pd.isna(value) else str(value) for value in metadata[name]]
    return features


def same(first, second):
    """Whether two feature tables have the same names, values and types, to the last bit."""
    return list(first) == list(second) and all(
        np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f") for name in first
    )


def clinic(sizes, seed, share_missing=0.05):
    """Made rows of one patient per size: few distinct values (ties), constant columns, missing and infinite cells."""
    rng = np.random.default_rng(seed)
    rows = sum(sizes)
    frame = pd.DataFrame(
        {
            ID: [f"ISIC_{row:07d}" for row in range(rows)],
            PATIENT: np.repeat([f"IP_{number}" for number in range(len(sizes))], sizes),
        }
    )
    for name in NUMBERS:
        values = rng.choice(np.round(rng.normal(20, 30, size=12), 1), rows)
        values = np.full(rows, 0.1) if rng.random() < 0.15 else values
        values = np.where(rng.random(rows) < share_missing, np.nan, values)
        frame[name] = np.where(rng.random(rows) < 0.02, rng.choice([np.inf, -np.inf, 0.0], rows), values)
    for name in CATEGORIES:
        frame[name] = rng.choice(np.array(["left", "right", "another place", np.nan], dtype=object), rows)
    return frame.iloc[rng.permutation(rows)].reset_index(drop=True)


some_patients = st.lists(
    st.sampled_from([1, 2, SMALLEST_NORM - 1, SMALLEST_NORM, SMALLEST_NORM + 5]), min_size=1, max_size=4
)


# The whole table


@given(some_patients, st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.6]))
@settings(max_examples=25, deadline=None, derandomize=True)
@pytest.mark.filterwarnings("ignore")
def test_features_are_those_of_the_slow_and_obvious_way(sizes, seed, share_missing):
    metadata = clinic(sizes, seed, share_missing)
    fast, slow = build_features(metadata), slow_features(metadata)
    assert sorted(fast) == sorted(slow)
    for name in fast:
        if name in MODEL_CATEGORIES:
            assert fast[name].tolist() == slow[name].tolist()
        else:
            assert fast[name].dtype == "float32"
            np.testing.assert_allclose(fast[name], slow[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_formula_is_known_to_the_slow_way():
    assert set(FORMULAS) == set(ENGINEERED)


def test_the_table_has_the_rows_and_the_index_of_the_metadata(metadata):
    chosen = metadata.iloc[[5, 3, 40]]
    assert build_features(chosen).index.tolist() == [5, 3, 40]


def test_nothing_in_the_table_is_infinite(metadata):
    metadata["clin_size_long_diam_mm"] = 0.0
    metadata["tbp_lv_areaMM2"] = 1e300
    features = build_features(metadata)
    assert not np.isinf(features.select_dtypes("number")).any(axis=None)
    assert features["size_ratio"].isna().all()
    assert features["tbp_lv_areaMM2"].isna().all()


@given(some_patients, st.integers(0, 10_000))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_the_order_of_rows_and_columns_does_not_matter(sizes, seed):
    metadata = clinic(sizes, seed)
    rng = np.random.default_rng(seed + 1)
    features = build_features(metadata)
    other_columns = build_features(metadata[rng.permutation(metadata.columns)])
    assert same(other_columns, features)
    other_rows = build_features(metadata.loc[rng.permutation(metadata.index)]).loc[metadata.index]
    for name in features.select_dtypes("number"):  # sums in another order differ in the last digits of a float64
        np.testing.assert_allclose(other_rows[name], features[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert other_rows[list(MODEL_CATEGORIES)].equals(features[list(MODEL_CATEGORIES)])


@given(st.lists(st.sampled_from([1, 7, SMALLEST_NORM, 40]), min_size=2, max_size=5), st.integers(0, 10_000))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_a_lesion_depends_on_its_own_patient_only(sizes, seed):
    metadata = clinic(sizes, seed)
    together = build_features(metadata)
    for _, rows in metadata.groupby(PATIENT):
        assert same(build_features(rows), together.loc[rows.index])


def test_the_same_patient_on_real_rows_alone_and_among_all(real_data):
    metadata = read_metadata(real_data / "train-metadata.csv", labelled=True)
    together = build_features(metadata)
    largest = metadata[PATIENT].value_counts().index[:5]
    assert metadata[PATIENT].eq(largest[0]).sum() >= SMALLEST_NORM
    for patient in largest:
        rows = metadata[metadata[PATIENT] == patient]
        assert same(build_features(rows), together.loc[rows.index])


def test_columns_that_only_train_has_never_reach_a_feature(metadata):
    features = build_features(metadata)
    bare = build_features(metadata[list(TEST_COLUMNS)])
    assert same(features, bare)
    planted = metadata.drop(columns=list(TRAIN_ONLY)).assign(
        **{name: metadata[TARGET] if name == TARGET else np.arange(len(metadata)).astype(str) for name in sorted(TRAIN_ONLY)}
    )
    assert same(build_features(planted), features)
    assert not set(features) & TRAIN_ONLY
    assert not set(features) & {ID, PATIENT}


def test_a_table_without_body_scan_has_the_features_that_its_columns_allow(metadata):
    features = build_features(metadata[[ID, PATIENT, "age_approx", "sex", SITE]])
    assert sorted(features) == sorted(["age_approx", "patient_lesions", "site_lesions", "sex", SITE])
    assert list(build_features(metadata[[ID, PATIENT]])) == ["patient_lesions"]


def test_a_patient_of_one_lesion_has_neutral_context(metadata):
    alone = metadata[~metadata[PATIENT].duplicated()]
    features = build_features(alone)
    assert (features.filter(like="_z_") == 0).all(axis=None)
    assert (features.filter(like="_rank_patient") == 0.5).all(axis=None)
    assert (features["outlier_patient"] == 1).all()
    assert (features["patient_lesions"] == 1).all()


def test_the_ugly_duckling_has_the_largest_outlier_score(metadata):
    rng = np.random.default_rng(0)
    rows = metadata.iloc[np.zeros(50, int)].reset_index(drop=True)
    for name in NUMBERS:
        rows[name] = 20 + rng.standard_normal(50)
    rows.loc[7, ["tbp_lv_H", "tbp_lv_L", "clin_size_long_diam_mm"]] = [26.0, 14.0, 26.0]
    scores = build_features(rows)["outlier_patient"]
    assert scores.idxmax() == 7
    assert scores.median() == 1


def test_the_outlier_score_is_defined_whatever_is_missing_or_infinite(metadata):
    rows = pd.concat([metadata] * 4, ignore_index=True).assign(**{PATIENT: "IP_1"})
    rows.loc[::3, list(OUTLIER_SPACE[:-1])] = np.nan
    rows.loc[1::3, list(OUTLIER_SPACE[:3])] = np.inf
    rows["tbp_lv_L"] = 3.0
    scores = build_features(rows)["outlier_patient"]
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()


def test_the_public_test_rows_are_finite_where_they_are_known(real_data):
    metadata = read_metadata(real_data / "test-metadata.csv", labelled=False)
    features = build_features(metadata)
    for name in NUMBERS:
        assert np.array_equal(np.isfinite(features[name]), metadata[name].notna())
    for name, (columns, _) in ENGINEERED.items():
        assert np.isfinite(features[name]).tolist() == metadata[list(columns)].notna().all(axis=1).tolist()
    assert np.isfinite(features.filter(regex="_z_|_rank_|_lesions|outlier")).all(axis=None)
    assert (features[list(MODEL_CATEGORIES)] != "").all(axis=None)


def test_no_rows_give_an_empty_table_of_the_same_columns(metadata):
    assert list(build_features(metadata.head(0))) == list(build_features(metadata))


# Its parts


def test_engineered_features_need_all_their_columns():
    numbers = {"clin_size_long_diam_mm": np.array([4.0, 0.0]), "age_approx": np.array([50.0, 0.0])}
    features = engineered_features(numbers)
    assert set(features) == {"size_age", "size_for_age"}
    assert features["size_age"].tolist() == [200.0, 0.0]


def test_codes_and_sizes_of_groups():
    codes = group_codes(pd.Series(["b", "a", "b", "c"]))
    assert codes.tolist() == [0, 1, 0, 2]
    assert group_sizes(codes).tolist() == [2.0, 1.0, 2.0, 1.0]


# Standard scores and ranks

columns_of_groups = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([math.nan, -1.0, 0.0, 0.1, 0.2, 3.0, 1e6, 1e6 + 1])),
    min_size=1,
    max_size=30,
)


@given(columns_of_groups)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_scores_and_ranks_within_groups(rows):
    codes, values = np.array([code for code, _ in rows]), np.array([value for _, value in rows])
    both = np.column_stack([values, -values])  # columns must not mix
    scores, ranks = standard_scores(both, codes), percentile_ranks(both, codes)
    groups = {code: values[codes == code].tolist() for code in set(codes.tolist())}
    expected = [slow_score(value, groups[code]) for code, value in rows]
    np.testing.assert_allclose(scores, np.column_stack([expected, np.negative(expected)]), rtol=1e-7, atol=1e-7)
    expected = np.array([slow_rank(value, groups[code]) for code, value in rows])
    np.testing.assert_allclose(ranks, np.column_stack([expected, 1 - expected]), rtol=1e-12)


def test_ranks_are_those_of_pandas():
    rng = np.random.default_rng(0)
    values, codes = rng.integers(0, 9, 500).astype(float), rng.integers(0, 12, 500)
    frame = pd.DataFrame({"value": values, "group": codes}).groupby("group")["value"]
    expected = (frame.rank() - 0.5) / frame.transform("size")
    np.testing.assert_allclose(percentile_ranks(values[:, None], codes)[:, 0], expected)


def test_a_constant_group_with_a_large_mean_has_no_spread():
    values = np.full((1000, 1), 0.1) * 1e6  # whose sum is not exact
    assert (standard_scores(values, np.zeros(1000, int)) == 0).all()


def test_small_groups_are_not_ranked():
    values = np.array([[1.0], [math.nan], [2.0], [5.0], [4.0], [3.0]])
    codes = np.array([0, 1, 0, 2, 2, 2])
    ranks = percentile_ranks(values, codes, 3)
    assert ranks[:3].tolist() == [[0.5], [0.5], [0.5]]
    assert np.array_equal(ranks[3:], percentile_ranks(values[3:], np.zeros(3, int)))


def test_groups_are_all_rows_of_those_large_enough():
    codes = np.array([2, 0, 2, 1, 2, 1])
    assert [rows.tolist() for rows in groups_of(codes, 2)] == [[3, 5], [0, 2, 4]]
    assert [rows.tolist() for rows in groups_of(codes, 1)] == [[1], [3, 5], [0, 2, 4]]
    assert list(groups_of(codes, 4)) == []


def test_what_is_not_finite_has_no_rank_and_is_not_counted():
    values = np.array([[1.0], [math.inf], [2.0], [-math.inf], [math.nan]])
    expected = [[0.25], [math.nan], [0.75], [math.nan], [math.nan]]
    assert np.array_equal(percentile_ranks(values, np.zeros(5, int)), expected, equal_nan=True)


# Outlier scores

cells = st.sampled_from([math.nan, math.inf, -2.0, -0.5, 0.0, 0.1, 1.0, 7.0])
some_points = st.lists(st.tuples(st.integers(0, 2), cells, cells, cells), min_size=1, max_size=70)


@given(some_points, st.sampled_from([1, 2, 8]), st.sampled_from([1, 50, 1 << 18]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_outlier_scores_are_those_of_the_slow_and_obvious_way(rows, smallest, cells_at_once):
    codes, points = np.array([row[0] for row in rows]), np.array([row[1:] for row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.features.CELLS", cells_at_once)
        scores = outlier_scores(points, codes, smallest)
    for code in set(codes.tolist()):
        inside = codes == code
        enough = inside.sum() >= max(2, smallest)
        expected = slow_outliers(points[inside]) if enough else np.ones(inside.sum())
        np.testing.assert_allclose(scores[inside], expected, rtol=1e-5, atol=1e-5)


@given(st.lists(st.sampled_from([1, 2, 25, 90]), min_size=2, max_size=5), st.integers(0, 10_000))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_groups_outlier_scores_depend_on_it_alone_and_not_on_the_order(sizes, seed):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = rng.standard_normal((len(codes), 12))
    together = outlier_scores(points, codes, 20)
    for code in range(len(sizes)):
        inside = codes == code
        assert np.array_equal(outlier_scores(points[inside], np.zeros(inside.sum(), int), 20), together[inside])
    order = rng.permutation(len(codes))
    np.testing.assert_allclose(outlier_scores(points[order], codes[order], 20), together[order], rtol=1e-5)


def test_equal_lesions_have_no_outlier():
    points = np.full((40, 12), 0.1) * 3  # whose distances are not exactly 0 when multiplied out
    assert (outlier_scores(points, np.zeros(40, int), 20) == 1).all()
    mostly_alike = np.append(points, [[5.0] * 12], axis=0)
    assert (outlier_scores(mostly_alike, np.zeros(41, int), 20) == 1).all()  # no scale to measure the outlier by


def test_a_lesion_farther_away_scores_higher():
    points = np.random.default_rng(0).standard_normal((60, 12))
    scores = []
    for distance in (0.0, 3.0, 6.0, 12.0):
        points[0] = distance / math.sqrt(12)
        scores.append(outlier_scores(points, np.zeros(60, int), 20)[0])
    assert scores == sorted(scores)
    assert scores[0] < 1 < scores[-1]


def test_no_rows_have_no_ranks_and_no_outlier_scores():
    none = np.zeros(0, int)
    assert percentile_ranks(np.zeros((0, 3)), none).shape == (0, 3)
    assert outlier_scores(np.zeros((0, 3)), none, 20).shape == (0,)


# Of the last stage


def test_logits_are_compared_with_those_of_the_patients_other_lesions():
    logits = pd.DataFrame({"tabular": [0.0, 2.0, 1.0, 5.0], "fusion": [1.0, 3.0, np.nan, -2.0]}, index=[7, 8, 9, 3])
    found = logit_features(logits, pd.Series(["a", "a", "a", "b"], index=logits.index))
    assert found.index.tolist() == [7, 8, 9, 3]
    assert found.dtypes.unique().tolist() == [np.dtype("float32")]
    expected = {
        SCORED_LESIONS: [2, 2, 2, 1],
        "fusion_context": [0, 2, np.nan, 5],
        "tabular_logit": [0, 2, 1, 5],
        "tabular_z_patient": [-np.sqrt(1.5), np.sqrt(1.5), 0, 0],
        "tabular_rank_patient": [1 / 6, 5 / 6, 0.5, 0.5],
        "fusion_logit": [1, 3, np.nan, -2],
        "fusion_z_patient": [-1, 1, np.nan, 0],
        "fusion_rank_patient": [0.25, 0.75, np.nan, 0.5],
        "fusion_correction_logit": [1, 1, np.nan, -7],
        "fusion_correction_z_patient": [0, 0, np.nan, 0],
        "fusion_correction_rank_patient": [0.5, 0.5, np.nan, 0.5],
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_without_patients_every_lesion_is_alone():
    found = logit_features(pd.DataFrame({"tabular": [1.0, 3.0]}))
    assert found.to_dict("list") == {
        SCORED_LESIONS: [1, 1],
        "tabular_logit": [1, 3],
        "tabular_z_patient": [0, 0],
        "tabular_rank_patient": [0.5, 0.5],
    }
