import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_context import slow_outliers, slow_rank, slow_score

from inference import features as context
from inference.features import (
    group_codes,
    group_sizes,
    groups_of,
    outlier_scores,
    percentile_ranks,
    standard_scores,
)


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
        patch.setattr(context, "CELLS", cells_at_once)
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


def test_lesions_that_are_all_alike_stand_out_from_nothing():
    points = np.full((40, 12), 0.1) * 3  # whose distances are not exactly 0 when multiplied out
    assert (outlier_scores(points, np.zeros(40, int), 20) == 1).all()
    mostly_alike = np.append(points, [[5.0] * 12], axis=0)
    assert (outlier_scores(mostly_alike, np.zeros(41, int), 20) == 1).all()  # no scale to measure the odd one by


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
