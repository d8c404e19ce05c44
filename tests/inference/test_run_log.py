import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.build_kernel import ROOT
from inference.run_log import Forecast, Run, peak_memory, stop_on_signal, versions


def test_a_fall_back_is_counted_noted_and_logged(capsys, tmp_path):
    run = Run()
    run.fall_back("lesions_without_image_score", 3, "3 of 9 keep their tabular score.")
    run.fall_back("lesions_without_image_score", 2, "2 more.")
    run.finish("tabular")
    run.facts["lesions"] = 9
    run.write(tmp_path / "run.json")
    assert "FALL-BACK (lesions_without_image_score: 3) 3 of 9 keep" in capsys.readouterr().out
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["fallbacks"] == {"lesions_without_image_score": 5}
    assert written["notes"] == ["3 of 9 keep their tabular score.", "2 more."]
    assert written["lesions"] == 9
    assert written["seconds"]["tabular"] >= 0


def test_there_is_a_reason_to_stop_once_the_time_is_up():
    assert Run().reason_to_stop() == ""
    assert Run(time_budget=3600).reason_to_stop() == ""
    late = Run(time_budget=3600)
    late.started -= 3601
    assert late.reason_to_stop() == "the time budget of 1 h is spent"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_noted_and_does_not_kill(name):
    run, number = Run(), getattr(signal, name)
    before = signal.getsignal(number)
    with stop_on_signal(run):
        os.kill(os.getpid(), number)
        assert run.reason_to_stop() == f"{name} was received"
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_is_not_only_noted():
    run = Run()
    with pytest.raises(KeyboardInterrupt), stop_on_signal(run):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert run.interrupted == "SIGTERM was received"


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not report memory")
def test_the_peak_memory_includes_what_was_freed(tmp_path):
    code = """
from inference.run_log import *
print(peak_memory())
bytearray(300_000_000)
Run().write(Path("run.json"))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    held = json.loads((tmp_path / "run.json").read_text())["peak_memory_gb"]
    assert 0.29 < held - float(done.stdout) < 0.4


def test_a_system_that_does_not_report_memory_stops_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("inference.run_log.Path.read_text", lambda *_, **__: "Name: python\n")
        assert peak_memory() is None
        Run().write(tmp_path / "run.json")
    assert "peak_memory" not in (tmp_path / "run.json").read_text()


def test_a_run_json_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    Run().write(tmp_path / "file" / "run.json")
    assert "run.json could not be written" in capsys.readouterr().out


def lines_of(capsys, total, batches, seconds_each, budget=float("inf"), after=2000):
    """What a forecast logs while batches come in, on a clock of its own."""
    run = Run(time_budget=budget)
    forecast = Forecast(run, total, after)
    for batch in batches:
        forecast._started -= batch * seconds_each
        run.started -= batch * seconds_each
        forecast.add(batch)
    return [line.split("] ")[1] for line in capsys.readouterr().out.splitlines()]


def test_the_forecast_has_the_time_left_and_the_budget(capsys):
    logged = lines_of(capsys, 511_474, [64] * 32, seconds_each=0.005, budget=12 * 3600)
    assert logged == ["2,048 of 511,474 images, 200/s: 42 min left of 12 h"]


def test_the_forecast_is_renewed_at_every_tenth_and_not_more_often(capsys):
    logged = lines_of(capsys, 50_000, [100] * 500, seconds_each=0.001)
    assert [line.split(" of")[0] for line in logged] == [
        f"{images:,}" for images in (2_000, 5_000, *range(10_000, 50_001, 5_000))
    ]
    assert logged[1].endswith("45 s left")


@pytest.mark.parametrize(("budget", "late"), [(99, True), (101, False), (float("inf"), False)])
def test_it_is_late_when_the_time_left_does_not_suffice(budget, late):
    run = Run(time_budget=budget)
    forecast = Forecast(run, 1000, 100)
    for batch, expected in ((99, False), (1, late), (1, False)):
        forecast._started -= 0.1 * batch
        run.started -= 0.1 * batch
        forecast.add(batch)
        assert forecast.late == expected


@pytest.mark.parametrize("total", [0, 1, 3])
def test_a_few_images_need_no_forecast_to_be_scored(capsys, total):
    assert len(lines_of(capsys, total, [1] * total, seconds_each=1.0)) <= 2 * total


def test_versions_are_those_that_the_scores_depend_on():
    assert set(versions()) == {"python", "tensorflow", "keras", "catboost", "numpy", "pandas", "h5py"}
