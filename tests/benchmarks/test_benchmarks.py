import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_network import a_network

from benchmarks import inference, scale, training
from benchmarks.tabular import growth_exponent, main
from utils import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_the_tabular_benchmark_prints_one_json_line_per_figure():
    command = [sys.executable, "-m", "benchmarks.tabular", "--lesions", "3000", "--models", "1", "--trees", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = {line["benchmark"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(figures) == ["tabular features", "tabular scores and ranks", "tabular memory", "tabular scores"]
    for figure in figures.values():
        assert list(figure) == ["benchmark", "lesions", "value", "unit", "ratio_to", "ratio", "target"]
        assert figure["lesions"] == 3000
        assert figure["value"] > 0
        assert figure["ratio"] > 0
    assert [figure["unit"] for figure in figures.values()] == ["s", "s", "GB", "s"]
    assert [figure["target"] for figure in figures.values()] == [15.0, None, 3.0, 30.0]
    assert figures["tabular memory"]["value"] < 3


def test_the_training_benchmark_compares_the_feed_and_the_optimizer(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.training.starting_network", lambda settings, weights: a_network())
    assert training.main(["--image-size", "32", "--batch-size", "4", "--steps", "2", "--rounds", "1"]) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [figure["benchmark"] for figure in figures] == ["training feed", "training optimizer"]
    assert [figure["target"] for figure in figures] == [0.95, 1.0]
    assert all(figure["value"] > 0 and figure["ratio"] > 0 and figure["lesions"] == 60 for figure in figures)


def test_the_inference_benchmark_compares_decoding_images_and_start(monkeypatch, capsys):
    """The kernel's own process is played: what it costs is measured by the command, not here."""
    facts = {"seconds": {"tabular": 1.0, "images": 4.0, "writing": 0.5}, "seconds to first batch": 3.0, "peak": 1.2}
    monkeypatch.setattr(inference, "build_network", lambda config: a_network())
    monkeypatch.setattr(inference, "run_kernel", lambda folder, artifacts, rows, images=None: facts)
    assert inference.main(["--images", "60", "--image-size", "32", "--networks", "2", "--rounds", "1", "--growth"]) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [figure["target"] for figure in figures] == [0.85, 3.0, 0.93, 20.0, 1.05, 3.0, 3.0]
    memory, plain, stage, start, growth, *peaks = figures
    assert memory["value"] == plain["value"] > 0
    assert stage["benchmark"] == "inference image stage"
    assert stage["ratio"] > 0
    assert start["value"] == 3.0
    assert growth["value"] == 0.0  # the same seconds for any number of images
    assert [peak["value"] for peak in peaks] == [1.2, 1.2]


def test_the_scale_benchmark_compares_two_sizes_and_the_kernel(monkeypatch, capsys):
    """The cluster and the kernel are played: what they cost is measured by the command, not here."""
    asked = []

    def score(folder, size, images, artifacts):
        asked.append((size, len(list((folder / f"archive{size}").glob("*.parquet")))))
        return size / 1_000, size / 1_000

    monkeypatch.setattr(scale, "IMAGES", 3)
    monkeypatch.setattr(scale, "make_artifacts", lambda folder, options: folder)
    monkeypatch.setattr(scale, "score", score)
    monkeypatch.setattr(scale, "difference", lambda *_: 3e-6)
    assert scale.main(["--sizes", "400", "800", "--lesions", "400"]) == 0
    assert asked == [(400, 1), (800, 2)]
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [figure["value"] for figure in figures] == [1000, 1000, 1, 0.8, 3]
    assert [figure["target"] for figure in figures] == [None, None, 1.05, 3.0, 10]
    assert figures[-1]["ratio"] == 0.3


@pytest.mark.parametrize("sizes", [["400"], ["400", "500"], ["200", "400"]])
def test_the_scale_benchmark_wants_two_multiples_of_its_twin(sizes):
    with pytest.raises(InputError, match="must be two or more multiples of --lesions 400"):
        scale.main(["--sizes", *sizes, "--lesions", "400"])


def test_the_growth_exponent_is_the_power_of_rows():
    assert growth_exponent((10, 100, 1000), [0.5, 5.0, 50.0]) == pytest.approx(1.0)
    assert growth_exponent((10, 100, 1000), [2.0, 200.0, 20_000.0]) == pytest.approx(2.0)


@pytest.mark.parametrize("option", ["--lesions", "--models", "--trees"])
def test_nothing_to_measure_is_refused(option):
    with pytest.raises(InputError, match=option):
        main([option, "0"])
