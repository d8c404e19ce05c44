from pathlib import Path

import pandas as pd
import pytest

from train.archives.diagnoses import CLASSES, GROUPS, IDDX_3, LABELS, class_of, diagnosis_groups, diagnosis_of, label_of
from utils import InputError

WORDS = [(year, word) for year, words in LABELS.items() for word in words]
MALIGNANT = {
    *(("2016", "malignant"), ("2016", "1.0"), ("2017", "melanoma"), ("2018", "MEL"), ("2018", "BCC")),
    *(("2019", "MEL"), ("2019", "BCC"), ("2019", "SCC"), ("2020", "melanoma")),
    *(("pad-ufes-20", "MEL"), ("pad-ufes-20", "BCC"), ("pad-ufes-20", "SCC")),
}
OPEN = {("2018", "AKIEC"), ("2019", "UNK")}


def test_what_is_malignant_and_what_stays_open():
    assert {key for key in WORDS if LABELS[key[0]][key[1]].target == 1} == MALIGNANT
    assert {key for key in WORDS if LABELS[key[0]][key[1]].target is None} == OPEN


@pytest.mark.parametrize(("year", "word"), WORDS)
def test_class_and_target_agree(year, word):
    label = LABELS[year][word]
    assert label.group in CLASSES
    if label.group:
        assert label.target == (label.group not in ("nevus", "other"))
    assert class_of(label.diagnosis) == label.group
    assert bool(label.diagnosis) or label.group == ""


def test_a_diagnosis_means_one_thing_in_all_years():
    meanings = {}
    for words in (*LABELS.values(), IDDX_3):
        for label in words.values():
            if label.diagnosis:
                meanings.setdefault(label.diagnosis, set()).add((label.target, label.group))
    assert all(len(meaning) == 1 for meaning in meanings.values())


def test_actinic_keratosis_is_benign_and_other_in_every_archive():
    for year, word in (("2019", "AK"), ("pad-ufes-20", "ACK")):
        assert (LABELS[year][word].target, LABELS[year][word].group) == (0, "other")


def test_the_class_of_an_unnamed_diagnosis_is_open():
    assert class_of("") == class_of("wart") == ""


@pytest.mark.parametrize(
    ("word", "diagnosis", "group"),
    [
        ("Melanoma in situ", "melanoma", "melanoma"),
        ("Squamous cell carcinoma, NOS", "squamous cell carcinoma", "squamous cell carcinoma"),
        ("Nevus", "nevus", "nevus"),
        ("Solar or actinic keratosis", "actinic keratosis", "other"),
        ("Angiofibroma", "angiofibroma", "other"),
        ("Porokeratosis", "porokeratosis", ""),
    ],
)
def test_the_diagnosis_of_slice3d(word, diagnosis, group):
    assert diagnosis_of(word) == diagnosis
    assert class_of(diagnosis) == group


def test_an_unknown_word_is_refused_with_its_file_and_line():
    with pytest.raises(InputError, match=r"truth\.csv line 7: 'wart' is no diagnosis of 2019"):
        label_of("2019", "wart", Path("truth.csv"), 7)


def test_a_group_is_the_class_or_benign_without_a_diagnosis():
    rows = {
        ("melanoma", None, None): "melanoma",
        ("melanoma", "Nevus", "Benign"): "melanoma",
        (None, "Squamous cell carcinoma in situ", "Malignant"): "squamous cell carcinoma",
        (None, "Scar", "Benign"): "other",
        (None, None, "Benign"): "benign",
        ("a rare one", None, "Benign"): "",
        (None, "a rare one", "Benign"): "",
        (None, None, "Malignant"): "",
        (None, None, "Indeterminate"): "",
        (None, None, None): "",
    }
    table = pd.DataFrame(list(rows), columns=["diagnosis", "iddx_3", "iddx_1"], dtype=object)
    assert [GROUPS[number] for number in diagnosis_groups(table)] == list(rows.values())
    assert [GROUPS[number] for number in diagnosis_groups(table[["diagnosis"]])] == ["melanoma", "melanoma"] + 8 * [""]
    assert {GROUPS[number] for number in diagnosis_groups(pd.DataFrame(index=range(3)))} == {""}
