import json

import numpy as np
import pytest

from evaluation.studies.ablation import main, measure, steps
from evaluation.studies.compare import split_folds
from inference.features import build_features
from inference.schema import HOSPITAL, TARGET
from train.config import TabularConfig
from train.cross_validation import cross_validate
from train.lesions import read_rows
from utils import InputError

SMALL = {"iterations": 5, "depth": 2, "learning_rate": 0.3}


@pytest.fixture
def parameters(tmp_path):
    path = tmp_path / "few_trees.json"
    path.write_text(json.dumps(SMALL))
    return path


def table_of(text):
    """The rows of the Markdown table, cells stripped."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]


def test_steps_add_columns_and_the_last_two_remove_some(metadata):
    features = build_features(metadata)
    columns = [[name for name in features if step.has(name)] for step in steps(TabularConfig(SMALL))]
    raw, engineered, context, sampled, full, without_hospital, without_context = map(set, columns)
    assert raw < engineered < context == sampled == full == set(features)
    assert full - without_hospital == {HOSPITAL}
    assert without_context == engineered
    assert not any(name.endswith(("_z_patient", "_z_site", "_rank_patient", "_lesions")) for name in engineered)


def test_only_the_sampling_and_the_seeds_differ_between_their_steps():
    configs = [step.config for step in steps(TabularConfig(SMALL, seeds=4, negatives_per_positive=7))]
    assert [(each.seeds, each.negatives_per_positive) for each in configs[:5]] == [(1, np.inf)] * 3 + [(1, 7), (4, 7)]
    assert configs[5] == configs[6] == configs[4]


def test_a_step_is_an_ordinary_cross_validation(synthetic_data):
    rows = read_rows(synthetic_data)
    folds = {seed: split_folds(rows.metadata, 2, seed) for seed in (0, 5)}
    measured = measure(steps(TabularConfig(SMALL))[2], rows, folds)
    assert measured.features == rows.features.shape[1]
    for seed, logits in zip(folds, measured.logits, strict=True):
        config = TabularConfig(SMALL, 1, np.inf, seed)
        expected = cross_validate(rows.features, rows.labels, folds[seed], config, progress=False)
        np.testing.assert_array_equal(logits, expected.logits)


@pytest.mark.integration
def test_the_command_writes_the_table_of_the_steps_asked_for(synthetic_data, metadata, parameters, tmp_path):
    out = tmp_path / "docs" / "ablation.md"
    command = ["--data", str(synthetic_data), "--out", str(out), "--params", str(parameters), "--folds", "2", "--seeds", "2"]
    assert main([*command, "--split-seeds", "0", "1", "--steps", "1", "5", "6"]) == 0
    text = out.read_text(encoding="utf-8")
    rows = table_of(text)
    assert [row[0] for row in rows] == ["raw columns", "+ 2 seeds: the full model", "full model - hospital column"]
    assert rows[0][4] == ""
    for row in rows:
        low, high = map(float, row[3].split(" to "))
        assert 0 <= low <= float(row[2]) <= high <= 0.2
    rows = f"60 lesions, {metadata[TARGET].sum()} malignant, 8 patients; 2 patient-grouped folds, split seeds 0, 1"
    assert rows in text
    assert "--folds 2 --seed 0 --seeds 2 --split-seeds 0 1 --params" in text
    assert "--steps 1 5 6" in text


def test_a_line_that_does_not_exist_is_refused(synthetic_data, tmp_path):
    with pytest.raises(InputError, match=r"--steps \[9\] .* lines are 1 to 7"):
        main(["--data", str(synthetic_data), "--out", str(tmp_path / "a.md"), "--steps", "9"])
