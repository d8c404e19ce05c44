from types import SimpleNamespace

import numpy as np
import pytest
from small_network import small_backbone

from evaluation.main_path import plan as module
from evaluation.main_path.__main__ import main, read_options
from evaluation.main_path.estimates import Estimate, Rows, estimate_network, estimate_tabular, steps_of
from evaluation.main_path.forecast import Recipe
from evaluation.main_path.plan import Plan, kaggle_lines, plan_lines
from evaluation.main_path.probes import NetworkSpeed, TabularSpeed, decode_speed, measure_network, measure_tabular, sample_of
from inference.schema import ID, PATIENT
from terminal import run_command
from train.folds import make_folds, parse_fold_options
from train.leaks import ColumnChoice
from train.lesions import open_images
from train.network.config import TrainingConfig
from train.tabular import parse_tabular_options

SLOW = NetworkSpeed(start=10, step=2.0, score=0.5, check=0.01, decoded=1000, weights=1_000_000, memory=1.5)
TABULAR = TabularSpeed(1e-6, 1e-5, 1e-7, 1e-8, 1000, 500, 1e-9)
ROWS = Rows(all=10_000, malignant=100, held_out=2_000, folds=4, seconds=1.0, memory=0.4)
CONFIG = TrainingConfig(epochs=3, batch_size=10, negatives_per_positive=2.0, image_size=64)


def test_steps_follow_the_sampling_of_a_folds_training_rows():
    assert ROWS.labels.sum() == 60  # three of four folds outside the holdout
    assert len(ROWS.labels) == 6_000
    assert steps_of(ROWS, CONFIG) == 3 * 18  # 60 malignant lesions and 120 benign ones


def test_the_time_of_a_network_is_that_of_its_parts():
    found = estimate_network(ROWS, SLOW, CONFIG, keeps_crops=True)
    parts = 4 * (10 + 54 * 2.0) + 8_000 * 0.5 + 10_000 * 0.01
    assert parts < found.seconds < parts + 20
    assert found.disk == pytest.approx((4 * 4 * 4e6 + 8_000 * 60 + 4 * 54 * 10 * 64 * 64 * 3) / 1e9)
    assert estimate_network(ROWS, SLOW, CONFIG, keeps_crops=False).disk < found.disk
    assert found.memory >= 1.5


def test_the_time_of_catboost_grows_with_models_and_trees(synthetic_data, tmp_path):
    def seconds(*options):
        where = ["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a")]
        return estimate_tabular(ROWS, TABULAR, parse_tabular_options([*where, *options])).seconds

    few, many = seconds("--seeds", "1"), seconds("--seeds", "3")
    assert many - few == pytest.approx(1000 * (8 * 6_000 * 1e-8 + (2 * 8_000 + 8 * 2_000) * 1e-7), rel=1e-6)


def cells_of(line):
    """The cells of a table's line."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.fixture
def measured(monkeypatch):
    """Replaces the measurements; a list of what was measured."""
    calls = []
    monkeypatch.setattr(module, "measure_tabular", lambda *_: calls.append("tabular") or TABULAR)
    monkeypatch.setattr(module, "measure_network", lambda *_: calls.append("network") or SLOW)
    return calls


def test_the_plan_is_printed_and_nothing_is_written(synthetic_data, tmp_path, measured, capsys):
    before = sorted(synthetic_data.iterdir())
    where = ["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a" / "b")]
    assert main([*where, "--plan", "--folds", "--folds 2", "--fusion", "--weights none --epochs 2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [cells_of(line) for line in lines[2:9]]
    assert [row[0] for row in rows] == ["folds", "tabular", "fusion", "stacking", "kernel", "dry run", "all"]
    assert rows[2][1:3] == ["60", "2 x 2 steps"]
    assert sum(line.startswith("Kaggle, ") for line in lines) == 2
    assert measured == ["tabular", "network"]
    assert list(tmp_path.iterdir()) == []
    assert sorted(synthetic_data.iterdir()) == before


def test_every_network_has_its_line(synthetic_data, tmp_path, measured, capsys):
    where = ["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a")]
    assert main([*where, "--plan", "--fusion", "--weights none", "--fusion", "--weights none --inputs image"]) == 0
    assert "fusion image" in [cells_of(line)[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert measured == ["tabular", "network", "network"]


@pytest.mark.parametrize(
    ("missing", "done"),
    [
        ("", [True, True, True, True, True, True]),
        ("folds", [False, False, False, False, True, False]),
        ("models", [True, False, False, False, True, False]),
        ("networks", [True, True, False, False, True, False]),
        ("other", [True, True, True, False, False, False]),
    ],
)
def test_what_rests_on_a_stage_to_come_is_not_done(synthetic_data, tmp_path, monkeypatch, missing, done):
    for name in ("folds", "models", "networks"):
        monkeypatch.setattr(module, f"{name}_are_current", lambda *_, name=name: name != missing)
    monkeypatch.setattr(module, "other_is_current", lambda command: missing != "other")
    path, _ = read_options(["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a"), "--fusion", "--weights none"])
    assert module.done_of(path, None, None, [(None, None)]) == done


def test_folds_are_current_with_the_same_options_only(synthetic_data, tmp_path):
    where = ["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a"), "--folds", "2"]
    chosen = [*where, "--patients", "own", "--columns", "sex", "age_approx", "--accept-leak"]
    make_folds(chosen)
    assert module.folds_are_current(parse_fold_options(chosen))
    for less in (where, chosen[:-1], [*chosen[:-2], "--accept-leak"], [*where, *chosen[-4:]], [*chosen, "--seed", "1"]):
        assert not module.folds_are_current(parse_fold_options(less))


@pytest.mark.parametrize("option", [["--tabular", "--seeds none"], ["--folds", "--holdout 3"], ["--fusion", "--epochs x"]])
def test_bad_options_are_refused(synthetic_data, tmp_path, measured, option):
    where = ["--data", str(synthetic_data), "--artifacts", str(tmp_path / "a")]
    with pytest.raises(SystemExit) as status:
        run_command(lambda: main([*where, "--plan", *option]))
    assert status.value.code == 2
    assert measured == []


def some_plan(memory=1.0, disk=1.0, recipe=None):
    stages = [Estimate("folds", 10, done=True, memory=99.0, disk=99.0), Estimate("tabular", 10, "", 60.0, memory, disk)]
    return Plan(stages, [recipe] if recipe else [], [1000.0] if recipe else [])


def test_what_is_done_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 2.0)
    table, *lines = plan_lines(some_plan(), tmp_path)
    done, _, everything = map(cells_of, table.splitlines()[2:])
    assert done[3:] == ["done", "", ""]
    assert everything == ["all", "", "", "1 min 0 s", "1.0 GB", "1.00 GB"]
    assert not any("WARNING" in line for line in lines)


def test_what_does_not_fit_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 2.0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5e9))
    lines = plan_lines(some_plan(memory=3.0, disk=6.0), tmp_path / "not" / "there")
    assert [line for line in lines if line.startswith("WARNING: 6.0 GB")]
    assert [line for line in lines if "3.0 GB" in line and line.startswith("WARNING")]


@pytest.mark.parametrize(("size", "views", "warned"), [(64, 1, 0), (448, 8, 2)])
def test_a_recipe_too_large_for_kaggle_is_a_warning(size, views, warned):
    lines = kaggle_lines(some_plan(recipe=Recipe("resnet50", size, views, 5, 10_000)))
    assert sum(line.startswith("WARNING") for line in lines) == warned


def test_a_sample_has_whole_patients_and_malignant_lesions(metadata):
    sample = sample_of(metadata, rows=30)
    assert 0 < len(sample) <= 30
    assert sample["target"].sum() > 0
    counts = metadata[PATIENT].value_counts()
    assert all(counts[patient] == rows for patient, rows in sample[PATIENT].value_counts().items())


def test_the_tabular_side_is_measured(metadata):
    speed = measure_tabular(metadata, {"depth": 2}, ColumnChoice())
    assert all(np.isfinite(value) and value > 0 for value in vars(speed).values())


def test_a_network_is_measured_with_its_options(metadata, synthetic_data, monkeypatch, eager):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    config = TrainingConfig(weights="none", image_size=32, epochs=2, batch_size=8, views=2)
    speed = measure_network(metadata, synthetic_data / "train-image.hdf5", config)
    assert all(np.isfinite(value) and value > 0 for value in vars(speed).values())


def test_decoding_is_measured_in_processor_time(metadata, synthetic_data):
    assert 10 < decode_speed(open_images(synthetic_data), metadata[ID].to_numpy(), 32) < 1e6
