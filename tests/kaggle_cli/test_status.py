"""The screen of `make status`, and the step that it names."""

import json

import pytest

from kaggle_cli import status
from kaggle_cli.push import RECORD
from kaggle_cli.status import next_step, screen

KERNEL = "slice-3d-fusion-kernel"
CHECKED = (f"me/{KERNEL}", 4)


def state(**changes):
    """The state after a version was pushed, run and checked; ``kernel`` and ``row`` change these."""
    kernel = {"name": f"me/{KERNEL}", "state": "complete", "message": "", "version": 4, "last_run": "2024-09-02 10:00"}
    kernel |= {"inputs": ["me/artifacts/3"]} | changes.pop("kernel", {})
    row = {"ref": "701", "date": "2024-09-02 10:00", "description": f"me/{KERNEL} version 4", "status": "complete"}
    row |= {"reason": "", "public": "0.17", "private": ""} | changes.pop("row", {})
    versions = [[number, "2024-09-01 09:00", f"notes {number}"] for number in range(9, 0, -1)]
    return {
        "owner": "me",
        "submissions": [row],
        "dataset": {"name": "me/artifacts", "state": "ready", "version": 9, "versions": versions},
        "kernels": [kernel],
        "allowance": {"submissions": 4, "gpu_hours": [21.5, 30.0], "reset": "2024-09-07 00:00"},
    } | changes


@pytest.mark.parametrize(
    ("changes", "checked", "step"),
    [
        ({"dataset": None, "kernels": []}, None, "make publish"),
        ({"kernels": []}, None, "make push"),
        ({"kernel": {"state": "running"}}, CHECKED, 'make push OPTIONS="--fetch 4"'),
        ({"kernel": {"version": 5}}, CHECKED, 'make push OPTIONS="--fetch 5"'),
        ({"submissions": None}, CHECKED, "make submit"),
        ({"row": {"status": "pending"}}, CHECKED, "make score"),
    ],
    ids=["nothing", "published", "running", "not checked", "not submitted", "pending"],
)
def test_the_next_step(changes, checked, step):
    assert next_step(state(**changes), KERNEL, checked) == step


def test_a_failed_run_and_a_scored_submission_have_no_target_alone():
    assert next_step(state(kernel={"state": "error"}), KERNEL, None).startswith('make push OPTIONS="--fetch 4"')
    assert next_step(state(), KERNEL, CHECKED).startswith("nothing")


def test_one_screen_even_where_much_is_there(monkeypatch, tmp_path, capsys):
    (tmp_path / RECORD).write_text(json.dumps({"kernel": CHECKED[0], "version": CHECKED[1], "fallbacks": {}}))
    full = state(row={"status": "error", "reason": "Evaluation Exception:\nSubmission must have 9 rows"})
    full["kernels"] += [full["kernels"][0] | {"name": f"me/training-{part}", "last_run": "2025-01-01"} for part in (1, 2, 3)]
    full["submissions"] *= 50
    monkeypatch.setattr(status.client, "ask", lambda *arguments: full)
    assert status.main(["--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    shown = {line.split()[0]: line for line in lines if line[0] != " "}
    assert list(shown) == ["account", "dataset", "kernels", "checked", "submissions", "left", "next"]
    assert "me/training-1" in shown["kernels"]  # ran last
    assert "version 4" in shown["checked"]
    assert "error (Evaluation Exception: Submission must have 9 rows)" in shown["submissions"]
    assert "21.5 of 30.0 GPU hours" in shown["left"]


def test_an_account_without_anything_has_a_screen():
    left = {"submissions": None, "gpu_hours": None, "reset": ""}
    shown = screen(state(dataset=None, kernels=[], submissions=None, allowance=left), KERNEL, None)
    assert shown.count("none") == 4
    assert "make publish" in shown
