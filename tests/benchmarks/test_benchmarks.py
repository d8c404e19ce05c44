"""The benchmarks themselves, at tiny sizes: what they cost is measured by the commands, not here."""

import json

import h5py
import pandas as pd
import pytest

from benchmarks import inference, report, scale, tabular, training
from benchmarks.report import growth_exponent, run_kernel, take_turns
from inference.backbones import BACKBONES
from inference.images import ImageStore
from inference.schema import read_scores
from utils import InputError


@pytest.fixture
def figures(capsys):
    """``figures()``: the figures printed since the last call, by name; standard output holds nothing else."""

    def read():
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for line in lines:
            assert list(line) == ["benchmark", "lesions", "value", "unit", "ratio_to", "ratio", "target"]
        return lines

    return read


def names(figures):
    return [figure["benchmark"] for figure in figures]


@pytest.mark.integration
def test_the_tabular_benchmark_measures_time_and_memory(figures):
    assert tabular.main(["--lesions", "3000", "--models", "1", "--trees", "5"]) == 0
    found = figures()
    assert names(found) == [f"tabular {name}" for name in ("features", "scores and ranks", "memory", "scores")]
    assert [figure["lesions"] for figure in found] == [3000] * 4
    assert [figure["unit"] for figure in found] == ["s", "s", "GB", "s"]
    assert [figure["target"] for figure in found] == [15.0, None, 3.0, 30.0]
    assert all(figure["value"] > 0 and figure["ratio"] > 0 for figure in found)
    assert 0.02 < found[2]["value"] < 3


def test_the_growth_of_the_features_is_measured(figures, tmp_path, monkeypatch):
    monkeypatch.setattr(tabular, "alone", lambda work, *arguments: work(*arguments))  # memory is not measured here
    tabular.measure_growth(tmp_path / "rows.pkl", (500, 4000), 0)
    (found,) = figures()
    assert (found["benchmark"], found["lesions"], found["target"]) == ("tabular growth", 4000, 1.1)
    assert -0.5 < found["value"] < 1.5


def test_the_training_benchmark_compares_file_cache_and_memory(eager, figures):
    small = ["--image-size", "32", "--batch-size", "2", "--steps", "1", "--rounds", "1"]
    assert training.main([*small, "--backbone", "efficientnet-lite0"]) == 0
    found = figures()
    assert names(found) == [f"training {what}, {feed}" for feed in ("file", "cache") for what in ("feed", "wait")]
    assert [figure["target"] for figure in found] == [0.95, 0.05, 0.95, 0.05]
    assert all(figure["lesions"] == 60 and figure["value"] > 0 and figure["ratio"] > 0 for figure in found)
    assert all(figure["value"] < 1 for figure in found[1::2])


@pytest.mark.slow
def test_the_backbones_are_compared_with_resnet50(figures):
    assert inference.main(["--backbones", "--images", "64", "--image-size", "32", "--rounds", "1"]) == 0
    found = figures()
    assert [name.split(",")[0] for name in names(found)] == [f"inference {name}" for name in BACKBONES]
    assert names(found)[0].endswith("95 MB") and found[0]["ratio"] == 1.0


@pytest.mark.integration
def test_the_inference_benchmark_compares_reading_decoding_images_and_start(figures):
    assert inference.main(["--images", "60", "--image-size", "32", "--networks", "2", "--rounds", "1"]) == 0
    found = figures()
    kinds = ["reading", "decoding", "decoding", "image stage", "start to first batch, 2 networks"]
    assert names(found) == [f"inference {kind}" for kind in kinds]
    assert [figure["lesions"] for figure in found] == [300, 300, 300, 60, 3]
    assert [figure["target"] for figure in found] == [1.0, 0.85, 3.0, 0.93, 20.0]
    assert found[1]["value"] == found[2]["value"]
    assert all(figure["value"] > 0 and figure["ratio"] > 0 for figure in found)
    assert found[-1]["ratio"] < 1.1  # the first batch comes before the end; seconds are rounded


@pytest.mark.slow
@pytest.mark.integration
def test_the_growth_of_the_kernel_is_measured_in_images_and_in_rows(trained, tmp_path, figures):
    store = ImageStore(trained.data / "train-image.hdf5")
    report.train_small(trained.data, tmp_path, 2, ["--seeds", "1", "--params", str(few_trees(tmp_path))])
    inference.measure_growth(store, tmp_path, (400, 800), 1000)
    found = figures()
    assert names(found) == ["inference growth", "inference memory, images", "inference memory, rows"]
    assert [figure["lesions"] for figure in found] == [800, 800, 1000]
    assert 0 < found[0]["value"] < 2
    assert all(0.1 < figure["value"] < 3 for figure in found[1:])


def few_trees(folder):
    path = folder / "few_trees.json"
    path.write_text('{"iterations": 20}')
    return path


@pytest.mark.slow
@pytest.mark.integration
def test_the_scale_benchmark_compares_two_sizes_and_the_kernel(figures):
    assert scale.main(["--sizes", "400", "800", "--lesions", "400", "--images", "30", "--trees", "10"]) == 0
    found = figures()
    assert names(found) == [f"scale {name}" for name in ("speed", "speed", "growth", "memory", "difference to the kernel")]
    assert [figure["lesions"] for figure in found] == [400, 800, 800, 800, 800]
    assert [figure["target"] for figure in found] == [None, None, 1.05, 3.0, 10]
    assert found[0]["ratio"] == 1
    assert 0 < found[3]["value"] < 3
    assert 0 <= found[4]["value"] < 10  # 1e-6 logits


@pytest.mark.parametrize("sizes", [["400"], ["400", "500"], ["200", "400"]])
def test_the_scale_benchmark_needs_two_multiples_of_its_dataset(sizes):
    with pytest.raises(InputError, match="must be two or more multiples of --lesions 400"):
        scale.main(["--sizes", *sizes, "--lesions", "400"])


@pytest.mark.parametrize(
    ("command", "option"),
    [(tabular, "--lesions"), (tabular, "--models"), (tabular, "--trees"), (inference, "--networks"), (training, "--steps")],
)
def test_nothing_to_measure_is_refused(command, option):
    with pytest.raises(InputError, match=option):
        command.main([option, "0"])


def test_the_growth_exponent_is_the_power_of_the_size():
    assert growth_exponent((10, 100, 1000), [0.5, 5.0, 50.0]) == pytest.approx(1.0)
    assert growth_exponent((10, 100, 1000), [2.0, 200.0, 20_000.0]) == pytest.approx(2.0)


def test_ways_take_turns_and_the_median_counts(monkeypatch):
    seconds, order = iter([1, 1, 4, 1, 2, 1]), []
    monkeypatch.setattr(report, "timed", lambda way: (next(seconds), way()))
    ways = {name: lambda name=name: order.append(name) or 8 for name in ("one", "other")}
    assert take_turns(ways, 3) == {"one": 4, "other": 8}
    assert order == ["one", "other"] * 3


def test_the_kernel_is_run_on_the_rows_and_images_given(tabular_only, trained, mounted, tmp_path):
    rows = pd.read_csv(mounted / "test-metadata.csv", dtype="str", keep_default_na=False)
    run = run_kernel(tmp_path / "run", rows, [("ISIC_0000001", b"no image")], tabular_only)
    assert run["lesions"] == len(rows) == len(read_scores(tmp_path / "run" / "scores.csv", ["final"]))
    with h5py.File(tmp_path / "run" / "test-image.hdf5") as file:
        assert list(file) == ["ISIC_0000001"]
