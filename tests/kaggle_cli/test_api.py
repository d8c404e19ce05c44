"""What the CLI does not print, asked of the stand-in by the real library."""

import pytest
from kaggle_stand_in import USER, refuse

from kaggle_cli.client import KaggleError, ask

COMPETITION, DATASET, KERNEL = "isic-2024-challenge", "slice-3d-fusion-artifacts", "slice-3d-fusion-kernel"
REASON = "ERROR: Unexpected Column: 'NotAnId' (Line 1, Column 1)\nERROR: Required column 'isic_id' could not be found"


def test_everything_is_asked_by_one_process(kaggle):
    kaggle.datasets[DATASET] = [{"request": {"versionNotes": notes}, "files": {}} for notes in ("first", "second")]
    kaggle.pushed[f"{USER}/{KERNEL}"] = [{"datasetDataSources": [f"{USER}/{DATASET}/2"]}]
    kaggle.statuses = [("ERROR", "Your notebook tried to allocate more memory than is available.")]
    kaggle.submissions = [{"ref": 9, "description": "mine", "status": "ERROR", "errorDescription": REASON}]
    kaggle.submissions.append({"ref": 8, "description": "mine", "status": "ERROR", "date": "2024-09-02T10:00:00.000Z"})
    answer = ask(COMPETITION, DATASET, KERNEL, "slice-3d-fusion-training-1")
    assert answer["owner"] == USER
    assert [(row["ref"], row["status"], row["reason"], row["date"]) for row in answer["submissions"]] == [
        ("9", "error", REASON, ""),
        ("8", "error", "", "2024-09-02 10:00"),
    ]
    assert answer["dataset"] == {
        "name": f"{USER}/{DATASET}",
        "state": "ready",
        "version": 2,
        "versions": [[2, "2024-09-02 10:00", "second"], [1, "2024-09-02 10:00", "first"]],
    }
    assert answer["kernels"] == [
        {
            "name": f"{USER}/{KERNEL}",
            "state": "error",
            "message": "Your notebook tried to allocate more memory than is available.",
            "version": 1,
            "last_run": "2024-09-02 10:00",
            "inputs": [f"{USER}/{DATASET}/2"],
        }
    ]
    assert answer["allowance"] == {"submissions": 4, "gpu_hours": [21.5, 30.0], "reset": "2024-09-02 10:00"}


def test_a_refusal_is_that_of_the_cli(kaggle):
    kaggle.answers["ListSubmissions"] = refuse(500)
    with pytest.raises(KaggleError, match="500 Server Error") as raised:
        ask(COMPETITION)
    assert raised.value.is_temporary
