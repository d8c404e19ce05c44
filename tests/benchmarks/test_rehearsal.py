"""The rehearsal: its stages at every share, what it skips and continues, and the same code at 0.002 of the full size."""

import json
import sys

import pandas as pd
import pytest

from benchmarks import rehearsal
from benchmarks.process_cost import Cost
from benchmarks.rehearsal import Step, main, rehearse, steps_of
from benchmarks.rehearsal_report import Record, Records
from utils import InputError

STAGES = ["dataset", "folds", "tabular", "fusion", "stacking", "dry run", "kernel"]


def words(step):
    return step.text.split()


def value(step, option):
    return words(step)[words(step).index(option) + 1]


def test_the_full_size_is_the_competitions(tmp_path):
    steps = steps_of(1.0, tmp_path)
    assert [step.name for step in steps] == STAGES
    assert [step.rows for step in steps] == [912_533, *[401_059] * 5, 511_474]
    assert [value(steps[0], name) for name in ("--patients", "--lesions", "--test-lesions")] == ["1042", "401059", "511474"]
    assert value(steps[0], "--prevalence") == "0.00098"


@pytest.mark.parametrize(("share", "lesions", "patients", "malignant"), [(0.1, 40_106, 104, 40), (0.002, 802, 20, 40)])
def test_a_share_has_patients_and_malignant_lesions_for_its_folds(tmp_path, share, lesions, patients, malignant):
    dataset = steps_of(share, tmp_path)[0]
    assert value(dataset, "--lesions") == str(lesions)
    assert value(dataset, "--patients") == str(patients)
    assert float(value(dataset, "--prevalence")) * lesions == pytest.approx(malignant, abs=1)


def test_a_command_is_recorded_without_this_machines_paths(tmp_path):
    texts = [step.text for step in steps_of(0.1, tmp_path)]
    assert all(text.startswith("python -") and str(tmp_path) not in text and sys.executable not in text for text in texts)
    assert texts[-1].startswith("python -I kernel.py --competition data --artifacts artifacts --output kernel/")
    assert texts == [step.text for step in steps_of(0.1, tmp_path / "elsewhere")]


@pytest.mark.parametrize("share", ["0", "1.5", "x", "0.0001"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(InputError, match="--share"):
        main(["--share", share])


def steps(tmp_path, *names, code="open('{}', 'a').write('x')", resumes=False):
    return [
        Step(name, 100, (sys.executable, "-c", code.format(tmp_path / name)), tmp_path, resumes=resumes) for name in names
    ]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.process_cost.PERIOD", 0.02)
    monkeypatch.setattr("benchmarks.process_cost.WATCHING", 1.0)
    return Records(tmp_path / "measurements.json")


def test_measured_stages_do_not_run_again_until_one_before_them_differs(tmp_path, kept):
    rehearse(steps(tmp_path, "one", "two"), 0.1, kept)
    rehearse(steps(tmp_path, "one", "two", "three"), 0.1, kept)
    assert [(tmp_path / name).read_text() for name in ("one", "two", "three")] == ["x", "x", "x"]
    rehearse(steps(tmp_path, "one", code="open('{}', 'a').write('y')") + steps(tmp_path, "two"), 0.1, kept)
    assert [(tmp_path / name).read_text() for name in ("one", "two", "three")] == ["xy", "xx", "x"]
    rehearse(steps(tmp_path, "two"), 0.2, kept)
    assert (tmp_path / "two").read_text() == "xxx"


def test_a_stage_that_fails_ends_the_rehearsal_and_runs_again(tmp_path, kept):
    failing = steps(tmp_path, "one", code="raise SystemExit(2)")
    with pytest.raises(InputError, match="one ended with status 2"):
        rehearse(failing + steps(tmp_path, "two"), 0.1, kept)
    assert not (tmp_path / "two").exists()
    assert not kept.latest(0.1, "one").finished
    rehearse(steps(tmp_path, "one", "two"), 0.1, kept)
    assert kept.latest(0.1, "two").finished


@pytest.mark.parametrize(("resumes", "seconds"), [(True, 1000), (False, 0)])
def test_the_cost_of_an_interrupted_stage_counts_where_it_continues(tmp_path, kept, resumes, seconds):
    (step,) = steps(tmp_path, "one", resumes=resumes)
    kept.add(Record(0.1, "one", 100, step.text, 1, Cost(1000.0, 900.0, 5.0, 1.0)))
    rehearse([step], 0.1, kept)
    found = kept.latest(0.1, "one")
    assert found.finished
    assert seconds < found.cost.seconds < seconds + 60
    assert (found.cost.peak_gb == 5.0) is resumes


def test_a_larger_share_begins_with_a_small_one_and_tells_the_time(tmp_path, monkeypatch, capsys, kept):
    monkeypatch.setattr(rehearsal, "steps_of", lambda share, out: steps(out, f"stage{share}"))
    assert main(["--out", str(tmp_path), "--share", "0.5"]) == 0
    assert sorted(path.name for path in tmp_path.glob("stage*")) == ["stage0.01", "stage0.5"]
    assert main(["--out", str(tmp_path), "--share", "0.005"]) == 0
    assert (tmp_path / "stage0.005").read_text() == "x"
    assert (tmp_path / "stage0.01").read_text() == "x"
    printed = capsys.readouterr().out
    assert "| stage0.5 | 100 |" in printed
    assert "measurements.json: " in printed.splitlines()[-1]


def test_more_memory_than_a_stage_may_take_is_refused(tmp_path, capsys, kept):
    kept.add(Record(0.1, "kernel", 100, "python", 1, Cost(1.0, 1.0, 3.5), finished=True))
    with pytest.raises(InputError, match=r"kernel of 100 rows took 3\.50 GB, more than 3; see .*measurements\.json"):
        main(["--out", str(tmp_path), "--report"])
    assert "| kernel | 100 |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.integration
def test_the_whole_path_at_a_five_hundredth(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--share", "0.002"]) == 0
    assert [each["stage"] for each in json.loads((tmp_path / "measurements.json").read_text())] == STAGES
    folder = tmp_path / "share-0.002"
    run = json.loads((folder / "kernel" / "run.json").read_text())
    assert run["lesions"] == run["image_scored"] == run["submission_rows"] == 1023
    assert run["fallbacks"] == {}
    assert len(pd.read_csv(folder / "kernel" / "submission.csv")) == 1023
    assert (folder / "report" / "index.html").is_file()
    kept = Records(tmp_path / "measurements.json")
    assert all(0 < kept.latest(0.002, name).cost.peak_gb < 3 for name in STAGES)
