import ast
import io
import math
import random
import re
import sys
import time
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc as area
from sklearn.metrics import roc_auc_score, roc_curve

import utils
from utils import InputError


def official(labels, scores, min_tpr=0.80):
    """The competition's metric as Kaggle publishes it ("ISIC pAUC-aboveTPR"), without its data frames."""
    v_gt = abs(np.asarray(labels) - 1)
    v_pred = -1.0 * np.asarray(scores)
    max_fpr = abs(1 - min_tpr)
    fpr, tpr, _ = roc_curve(v_gt, v_pred, sample_weight=None)
    stop = np.searchsorted(fpr, max_fpr, "right")
    x_interp = [fpr[stop - 1], fpr[stop]]
    y_interp = [tpr[stop - 1], tpr[stop]]
    tpr = np.append(tpr[:stop], np.interp(max_fpr, x_interp, y_interp))
    fpr = np.append(fpr[:stop], max_fpr)
    return area(fpr, tpr)


def scikit_learn(labels, scores, m=0.2):
    """The same through scikit-learn's partial AUC, with its McClish correction undone."""
    corrected = roc_auc_score(1 - np.asarray(labels), -np.asarray(scores), max_fpr=m)
    return 0.5 * m**2 + (m - 0.5 * m**2) / 0.5 * (corrected - 0.5)


def clinic(patients, lesions, malignant_patients, seed, spread=0.0, malignant_each=2):
    """Labels, patient names and a score for a made clinic; ``spread`` is how much the lesions of a patient share."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), lesions)
    labels = (np.arange(patients * lesions) % lesions < malignant_each) & (of < malignant_patients)
    scores = rng.normal(size=len(of)) + 1.5 * labels + spread * rng.normal(size=patients)[of]
    return labels.astype(int), np.array([f"IP_{number:07d}" for number in of]), scores


# The metric

tied_scores = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=60)
free_scores = st.lists(st.tuples(st.integers(0, 1), st.floats(-1e6, 1e6)), min_size=2, max_size=60)


@given(tied_scores | free_scores)
@example([(1, 0), (0, 0)])
@example([(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (0, 1), (0, 2)])  # a step that ends exactly at 80 %
@settings(max_examples=300, deadline=None, derandomize=True)
def test_partial_auc_is_the_official_metric(rows):
    labels, scores = np.array([label for label, _ in rows]), np.array([float(score) for _, score in rows])
    assume(0 < labels.sum() < len(labels))
    assert utils.partial_auc(labels, scores) == pytest.approx(official(labels, scores), abs=1e-12)
    assert utils.partial_auc(labels, scores) == pytest.approx(scikit_learn(labels, scores), abs=1e-12)
    assert utils.partial_auc(labels, scores, 0.5) == pytest.approx(official(labels, scores, 0.5), abs=1e-12)
    assert utils.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_metric_is_none_of_the_wrong_formulas_in_circulation():
    """The example and the values of docs/metric.md."""
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.7, 0.25, 0.6, 0.8, 0.9])
    unswapped = roc_auc_score(labels, scores, max_fpr=0.2)
    standardised = roc_auc_score(1 - labels, -scores, max_fpr=0.2)
    values = [utils.partial_auc(labels, scores), unswapped, standardised, (1 + unswapped) / 2 * 0.2]
    assert values == pytest.approx([0.1, 0.7454, 0.7222, 0.1745], abs=5e-5)
    assert utils.partial_auc(labels, scores) == pytest.approx(scikit_learn(labels, scores), abs=1e-12)


def test_partial_auc_on_as_many_rows_as_a_hospital_has():
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.01
    scores = np.round(rng.normal(size=20_000) + 2 * labels, 2)
    assert utils.partial_auc(labels, scores) == pytest.approx(official(labels.astype(int), scores), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.0, 0.1, 0.2, 0.8, 0.9], 0.20),  # perfect
        ([0.5, 0.5, 0.5, 0.5, 0.5], 0.02),  # constant
        ([0.9, 0.8, 0.7, 0.1, 0.0], 0.00),  # upside down
        ([0.0, 0.1, 0.4, 0.3, 0.9], 0.2 * 2 / 3),  # one of three benign lesions above the lower malignant one
    ],
)
def test_partial_auc_of_known_rankings(scores, expected):
    assert utils.partial_auc([0, 0, 0, 1, 1], scores) == pytest.approx(expected, abs=1e-12)


@given(tied_scores)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_only_the_order_of_scores_counts(rows):
    labels, scores = np.array([label for label, _ in rows]), np.array([score for _, score in rows])
    assume(0 < labels.sum() < len(labels))
    assert utils.partial_auc(labels, 1 / (1 + np.exp(-scores))) == utils.partial_auc(labels, 7 * scores - 100)
    assert 0 <= utils.partial_auc(labels, scores) <= 0.2 + 1e-12


@pytest.mark.parametrize(
    ("labels", "scores", "sentence"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], "all 3 labels are of one class"),
        ([1, 1], [0.1, 0.2], "all 2 labels are of one class"),
        ([0, 1, 1], [0.1, math.nan, math.inf], r"2 of 3 are not finite, the first \(nan\) at row 1"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "row 2 is 2"),
        ([0, 1, math.nan], [0.1, 0.2, 0.3], "row 2 is nan"),
        (["0", "1"], [0.1, 0.2], "row 0 is '0'"),
        (pd.Series([0, 1, pd.NA], dtype="Int64"), [0.1, 0.2, 0.3], "row 2 is nan"),
        ([0, 1], [0.1, 0.2, 0.3], r"shape \(2,\) and y_score \(3,\)"),
        ([0, 1], ["low", "high"], "must be numbers.*'low'"),
    ],
)
def test_unusable_rows_are_refused_in_one_sentence(labels, scores, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        utils.partial_auc(labels, scores)
    assert "\n" not in str(caught.value)


def test_a_min_tpr_outside_the_curve_is_refused():
    with pytest.raises(InputError, match=r"min_tpr is 1\.0"):
        utils.partial_auc([0, 1], [0, 1], 1.0)


def test_top_k_retrieval_counts_per_patient_and_leaves_out_patients_without_malignant_lesions():
    patients = ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    labels = [1, 0, 0, 1, 0, 1, 0, 0, 0]
    scores = [9, 8, 7, 6, 3, 2, 1, 99, 98]  # a: ranks 1 and 4; b: rank 2; c has none
    assert utils.top_k_retrieval(labels, scores, patients, k=1) == pytest.approx((1 / 2 + 0) / 2)
    assert utils.top_k_retrieval(labels, scores, patients, k=2) == pytest.approx((1 / 2 + 1) / 2)
    assert utils.top_k_retrieval(labels, scores, patients, k=4) == 1
    shuffled = np.random.default_rng(0).permutation(9)
    mixed = [np.array(column)[shuffled] for column in (labels, scores, patients)]
    assert utils.top_k_retrieval(*mixed, k=2) == utils.top_k_retrieval(labels, scores, patients, k=2)


def test_top_k_retrieval_gives_ties_to_the_benign_lesions():
    assert utils.top_k_retrieval([1, 0, 0], [5, 5, 5], ["a"] * 3, k=2) == 0
    assert utils.top_k_retrieval([1, 0, 0], [5, 5, 5], ["a"] * 3, k=3) == 1


def test_top_k_retrieval_needs_every_patient():
    with pytest.raises(InputError, match="row 1 is missing"):
        utils.top_k_retrieval([1, 0], [1, 2], ["a", None])
    with pytest.raises(InputError, match=r"groups have shape \(1,\)"):
        utils.top_k_retrieval([1, 0], [1, 2], ["a"])


def test_fold_mean_is_mean_and_spread_of_the_folds():
    labels, _, scores = clinic(40, 20, 20, seed=1)
    folds = np.repeat(np.arange(40), 20) % 3
    each = [official(labels[folds == fold], scores[folds == fold]) for fold in range(3)]
    assert utils.fold_mean(labels, scores, folds) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    mean, spread = utils.fold_mean(labels, scores, np.zeros(len(labels)))
    assert mean == pytest.approx(official(labels, scores))
    assert math.isnan(spread)


def test_fold_mean_names_the_fold_that_it_cannot_score():
    with pytest.raises(InputError, match=r"^fold 7: all 2 labels are of one class"):
        utils.fold_mean([0, 1, 0, 0], [1, 2, 3, 4], [0, 0, 7, 7])


# Its bootstrap


def test_bootstrap_equals_repeating_the_rows_of_the_patients_drawn():
    labels, patients, first = clinic(12, 30, 4, seed=2, spread=0.5, malignant_each=6)
    scores = {"first": np.round(first, 1), "second": np.round(first + np.random.default_rng(3).normal(size=360), 1)}
    table = utils.bootstrap_scores(labels, patients, scores, samples=50, seed=4)
    codes = pd.factorize(patients)[0]
    slow = {name: [] for name in scores}
    for weights in utils.resampled_weights(labels, codes, 50, seed=4):
        assert weights.sum() == 12
        drawn = np.repeat(np.arange(12), weights)
        rows = np.concatenate([np.flatnonzero(codes == patient) for patient in drawn])
        copies = np.repeat(np.arange(len(drawn)), 30)  # a patient drawn twice is two patients
        for name, values in scores.items():
            found = utils.top_k_retrieval(labels[rows], values[rows], copies, k=15)
            slow[name].append((official(labels[rows], values[rows]), roc_auc_score(labels[rows], values[rows]), found))
    for name, values in scores.items():
        low, high = np.percentile(slow[name], (2.5, 97.5), axis=0)
        fast = table.scores[name]
        assert fast.top15.low < fast.top15.value < 1
        assert [fast.pauc.low, fast.auc.low, fast.top15.low] == pytest.approx(list(low))
        assert [fast.pauc.high, fast.auc.high, fast.top15.high] == pytest.approx(list(high))
        assert fast.pauc.value == pytest.approx(official(labels, values))
        assert fast.auc.value == pytest.approx(roc_auc_score(labels, values))
        assert fast.top15.value == pytest.approx(utils.top_k_retrieval(labels, values, patients))
    apart = np.array(slow["second"])[:, 0] - np.array(slow["first"])[:, 0]
    difference = table.difference("second", "first")
    assert [difference.low, difference.high] == pytest.approx(list(np.percentile(apart, (2.5, 97.5))))
    assert difference.value == pytest.approx(official(labels, scores["second"]) - official(labels, scores["first"]))


def test_same_seed_same_table():
    labels, patients, scores = clinic(30, 8, 10, seed=5)
    table = utils.bootstrap_scores(labels, patients, {"score": scores}, samples=40, seed=6)
    again = utils.bootstrap_scores(labels, patients, {"score": scores, "other": -scores}, samples=40, seed=6)
    other = utils.bootstrap_scores(labels, patients, {"score": scores}, samples=40, seed=7)
    assert table.scores["score"] == again.scores["score"]
    assert table.scores["score"].pauc.low != other.scores["score"].pauc.low
    assert (table.rows, table.malignant, table.patients, table.samples) == (240, 20, 30, 40)


def test_the_interval_covers_the_truth_as_often_as_its_level():
    truth = NormalDist().cdf(1.5 / math.sqrt(2))  # two normals 1.5 apart, one lesion in eight malignant
    covered = []
    for seed in range(1, 101):
        labels, patients, scores = clinic(200, 4, 50, seed=seed)
        interval = utils.bootstrap_scores(labels, patients, {"score": scores}, samples=200).scores["score"].auc
        covered.append(interval.low <= truth <= interval.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_the_paired_interval_of_a_difference_is_the_narrower_one():
    labels, patients, scores = clinic(100, 10, 30, seed=8)
    nearly = scores + 0.1 * np.random.default_rng(9).normal(size=len(scores))
    table = utils.bootstrap_scores(labels, patients, {"a": scores, "b": nearly}, samples=300)
    paired = table.difference("a", "b")
    unpaired = np.percentile(table.paucs["a"] - np.roll(table.paucs["b"], 1), (2.5, 97.5))
    assert paired.high - paired.low < 0.5 * (unpaired[1] - unpaired[0])
    assert table.difference("b", "a").value == -paired.value


def test_lesions_of_one_patient_are_not_independent():
    labels, patients, scores = clinic(60, 20, 20, seed=10, spread=2.0, malignant_each=8)
    by_patient = utils.bootstrap_scores(labels, patients, {"score": scores}, samples=300).scores["score"].pauc
    by_row = utils.bootstrap_scores(labels, np.arange(len(labels)), {"score": scores}, samples=300).scores["score"].pauc
    assert by_patient.high - by_patient.low > 1.5 * (by_row.high - by_row.low)


def test_resamples_without_both_classes_are_drawn_again():
    labels = np.array([1] + [0] * 19)  # of 20 patients one is malignant: a third of the draws miss that patient
    table = utils.bootstrap_scores(labels, np.arange(20), {"score": np.arange(20.0)}, samples=100)
    assert np.isfinite(table.paucs["score"]).all()


def test_bootstrap_names_the_score_that_it_cannot_use():
    with pytest.raises(InputError, match="scores of 'network': 1 of 2 are not finite"):
        utils.bootstrap_scores([0, 1], ["a", "b"], {"tabular": [0, 1], "network": [0, math.nan]})
    with pytest.raises(InputError, match="0 scores"):
        utils.bootstrap_scores([0, 1], ["a", "b"], {})
    with pytest.raises(InputError, match="0 resamples"):
        utils.bootstrap_scores([0, 1], ["a", "b"], {"tabular": [0, 1]}, samples=0)


def test_the_table_is_aligned_text_and_a_github_table():
    labels, patients, scores = clinic(30, 8, 10, seed=11)
    table = utils.bootstrap_scores(labels, patients, {"tabular": scores, "a|b": labels}, samples=20)
    lines = utils.format_table(table).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert lines[0].replace(" ", "") == "|score|pAUC|95%interval|AUC|top-15|"
    assert set(lines[1]) == set("| -:")
    assert [cell.strip() for cell in lines[3].split(" | ")] == ["| a\\|b", "0.2000", "0.2000 to 0.2000", "1.0000", "1.000 |"]


# Seeding and printing


def test_set_seed_repeats_python_numpy_and_keras(monkeypatch):
    seeds = []
    fake = SimpleNamespace(utils=SimpleNamespace(set_random_seed=seeds.append), __spec__=SimpleNamespace(name="keras"))
    monkeypatch.setitem(sys.modules, "keras", fake)
    draws = []
    for _ in range(2):
        utils.set_seed(12)
        draws.append((random.random(), np.random.random()))  # noqa: NPY002 - the global state is what is seeded
    assert draws[0] == draws[1]
    assert seeds == [12, 12]


def test_set_seed_works_without_keras(monkeypatch):
    monkeypatch.setattr(utils.importlib.util, "find_spec", lambda name: None)
    utils.set_seed(12)
    first = random.random()
    utils.set_seed(12)
    assert random.random() == first


def test_log_prints_the_line_and_nothing_else(capsys):
    utils.log("5 folds, 1,042 patients")
    utils.log_summary("WARNING: done", "| fold |")
    assert capsys.readouterr().out == "5 folds, 1,042 patients\n\n| fold |\n\nWARNING: done\n"


def test_quiet_holds_the_last_line_back(capsys):
    utils.OUTPUT.verbosity = -1
    utils.log("first")
    utils.log_summary("last", "| table |")
    utils.print_line("figure")
    assert capsys.readouterr().out == "figure\n"
    assert utils.OUTPUT.held == "last"


def test_verbose_lines_have_seconds_and_tables_have_none(capsys, monkeypatch):
    utils.OUTPUT.verbosity = 1
    monkeypatch.setattr(utils.OUTPUT, "started", time.monotonic() - 7)
    utils.log("line")
    utils.log("| a |\n| b |")
    utils.log("of a run", elapsed=12.34)
    assert capsys.readouterr().out == "[    7.0 s] line\n| a |\n| b |\n[   12.3 s] of a run\n"


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "0"}, False),
        (True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals(terminal, environment, coloured, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Stream(terminal)
    utils.print_line("text", "warning", stream)
    assert stream.getvalue() == ("\x1b[33mtext\x1b[0m\n" if coloured else "text\n")


def test_warnings_and_the_last_line_have_a_style(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for line in ("plain", "WARNING: few rows", "FALL-BACK (image: 1) no crop"):
        utils.log(line)
    utils.log_summary("done")
    codes = [re.findall(r"\x1b\[(\d+)m", line) for line in capsys.readouterr().out.splitlines()]
    assert codes == [[], ["33", "0"], ["33", "0"], ["1", "0"]]


def test_a_table_of_texts_is_aligned():
    table = utils.text_table([["fold", "lesions"], ["0", "1,042"], ["a|b", "7"]])
    assert table == "| fold | lesions |\n| ---- | ------: |\n| 0    |   1,042 |\n| a\\|b |       7 |"


def test_utils_imports_nothing_of_the_project():
    modules = list(ast.walk(ast.parse(Path(utils.__file__).read_text(encoding="utf-8"))))
    imported = {alias.name.split(".")[0] for node in modules if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in modules if isinstance(node, ast.ImportFrom)}
    root = Path(utils.__file__).parent
    assert not {name for name in imported if (root / name).is_dir() or (root / f"{name}.py").is_file()}
