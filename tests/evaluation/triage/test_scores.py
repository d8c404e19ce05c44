import numpy as np
import pandas as pd

from evaluation.triage import scores
from evaluation.triage.scores import choose_patients, place_lesions
from inference.schema import ID, PATIENT, TARGET
from train.folds import HOLDOUT


def test_the_patients_with_the_largest_errors_are_chosen():
    table = pd.DataFrame(
        [
            ["a", "P1", 1, 0, -3.0],
            ["b", "P1", 1, 0, -9.0],
            ["c", "P2", 1, 1, -5.0],
            ["d", "P2", 0, 1, 8.0],
            ["e", "P3", 0, 0, 1.0],
            ["f", "P4", 0, 0, 2.0],
            ["g", "P4", 0, 0, -2.0],
            ["h", "P5", 1, HOLDOUT, np.nan],
            ["i", "P6", 1, 1, 3.0],
        ],
        columns=[ID, PATIENT, TARGET, "fold", "network"],
    )
    chosen = choose_patients(table, 4)
    assert list(chosen) == ["P1", "P2", "P4", "P3"]
    assert chosen["P1"] == "the malignant lesion b has only rank 8 of all 8 out-of-fold lesions"
    assert chosen["P4"] == "no lesion is malignant, and f has rank 3 of all 8 out-of-fold lesions: a false alarm"
    assert list(choose_patients(table, 3)) == ["P1", "P2", "P4"]
    assert list(choose_patients(table, 1)) == ["P1"]
    assert list(choose_patients(table, 99)) == ["P1", "P2", "P6", "P4", "P3"]
    assert list(choose_patients(table[table[TARGET] == 1], 2)) == ["P1", "P2"]
    assert list(choose_patients(table[table[PATIENT].isin(["P3", "P4"])], 2)) == ["P4", "P3"]


def test_the_first_lesions_and_every_malignant_one_have_cards_and_heat_maps(monkeypatch):
    monkeypatch.setattr(scores, "LISTED", 3)
    monkeypatch.setattr(scores, "HEATED", 1)
    lesions = pd.DataFrame(
        [
            ["a", "P", 0, 1.0, 1],
            ["b", "P", 0, 9.0, 0],
            ["c", "P", 1, -4.0, 1],
            ["d", "Q", 0, 3.0, 1],
            ["e", "P", 0, 0.0, 1],
            ["f", "P", 0, -1.0, 1],
            ["g", "P", 1, -5.0, 0],
        ],
        columns=[ID, PATIENT, TARGET, "network", "image_scored"],
    )
    placed = place_lesions(lesions).set_index(ID)
    assert placed["place"].to_dict() == {"a": 2, "b": 1, "c": 5, "d": 1, "e": 3, "f": 4, "g": 6}
    assert placed.index[placed["listed"]].tolist() == ["a", "b", "c", "d", "e", "g"]
    assert placed.index[placed["heated"]].tolist() == ["a", "c", "d"]
