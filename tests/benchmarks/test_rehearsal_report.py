"""Records of rehearsals: kept on disk, forecasts and limits by them."""

import json

import pytest

from benchmarks.process_cost import Cost
from benchmarks.rehearsal_report import Record, Records, beyond_limits, tables
from utils import InputError


def record(stage="fusion", rows=1000, cost=None, share=0.1, finished=True):
    return Record(share, stage, rows, "python -m x", 2, cost or Cost(10.0, 8.0, 1.0, 0.1), finished)


def records(path, *entries):
    kept = Records(path / "measurements.json")
    for entry in entries:
        kept.add(entry)
    return kept


def test_the_latest_record_of_a_stage_and_share_stays(tmp_path):
    records(tmp_path, record(finished=False), record(), record(share=1, rows=10_000))
    kept = Records(tmp_path / "measurements.json")
    assert kept.latest(0.1, "fusion") == record()
    assert kept.latest(0.1, "kernel") is None
    assert len(json.loads((tmp_path / "measurements.json").read_text())) == 2
    assert [each.rows for each in kept.finished("fusion")] == [1000, 10_000]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"cost": {}}]', '{"a": 1}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "measurements.json").write_text(text)
    with pytest.raises(InputError, match=r"measurements\.json"):
        Records(tmp_path / "measurements.json")


def test_a_forecast_needs_every_stage_and_is_in_proportion_or_on_a_line(tmp_path):
    kept = records(tmp_path, record())
    assert kept.forecast([("fusion", 5000)]) == 50
    assert kept.forecast([("fusion", 5000), ("kernel", 1)]) is None
    kept.add(record(share=0.2, rows=2000, cost=Cost(15.0)))
    assert kept.forecast([("fusion", 5000)]) == 15 + 3000 * 0.005
    kept.add(record(share=0.3, rows=3000, cost=Cost(500.0), finished=False))
    assert kept.forecast([("fusion", 5000), ("fusion", 2000)]) == 45
    kept.add(record(share=0.3, rows=3000, cost=Cost(1.0)))
    assert kept.forecast([("fusion", 30_000)]) == 1


def test_memory_and_growth_beyond_the_limits_are_named(tmp_path):
    fine = [record(rows=rows, share=rows / 1e6, cost=Cost(rows / 10, rows / 10, 5.9)) for rows in (1000, 10_000)]
    kept = records(tmp_path, *fine)
    assert beyond_limits(kept) == []
    kept.add(record("kernel", cost=Cost(1.0, 1.0, 3.1)))
    (sentence,) = beyond_limits(kept)
    assert sentence.startswith("kernel") and "3.10 GB" in sentence
    kept.add(record("tabular", cost=Cost(1.0, 1.0, 1.0)))
    kept.add(record("tabular", rows=10_000, share=1, cost=Cost(20.0, 20.0, 1.0)))  # steep, but short
    assert len(beyond_limits(kept)) == 1
    kept.add(record("tabular", rows=10_000, share=1, cost=Cost(100.0, 100.0, 1.0)))
    assert "power of 2.00" in beyond_limits(kept)[1]
    kept.add(record("tabular", rows=3000, share=0.5, cost=Cost(90.0, 90.0, 1.0)))  # too near to the largest
    assert "power of 2.00" in beyond_limits(kept)[1]


def test_the_tables_have_a_line_for_each_size_and_for_each_growth(tmp_path):
    kept = records(tmp_path, record(), record("folds", 50), record(rows=10_000, share=1, cost=Cost(100.0, 160.0, 2.0, 1.0)))
    lines = tables(kept).splitlines()
    assert "| fusion | 1,000 | 10 | 8 | 1.00 | 0.10 |" in lines
    assert "| fusion | 10,000 | 100 | 160 | 2.00 | 1.00 |" in lines
    assert "| fusion | 1,000 to 10,000 | 1.00 | 1.30 | 0.30 |" in lines
    assert sum(line.startswith("| folds") for line in lines) == 1
