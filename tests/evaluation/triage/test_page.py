import re

import numpy as np
from triage_cards import Cards

from evaluation.triage.cards import Card, Driver
from evaluation.triage.page import Patient, score_in_words, write_patient


def card(**changed):
    given = {"isic_id": "ISIC_1", "place": 1, "malignant": True, "tabular": -1.0, "network": 0.5, "site": "head/neck"}
    given |= {"known": ", 3.0 mm", "drivers": [Driver("sex", "male", 0.4), Driver("age", "7", -0.8)]}
    return Card(**(given | {"start": -3.0, "others": 2.4, "crop": b"JPEG", "description": "Crop."} | changed))


def patient(name="IP_1", labels=(1, 0), network=(0.5, -1.0)):
    labels, network = np.array(labels), np.array(network)
    return Patient(name, "Age: 50.", "asked for", "by all", labels, network - 0.5, network)


def test_scores_in_words():
    assert score_in_words(0.0) == "+0.00 (50.0\N{NO-BREAK SPACE}%)"
    assert score_in_words(-6.0) == "-6.00 (0.25\N{NO-BREAK SPACE}%)"
    assert score_in_words(-20.0) == "-20.00 (below 0.01\N{NO-BREAK SPACE}%)"


def test_file_names_are_safe_and_differ():
    assert patient("IP_0000123").page == "IP_0000123.html"
    odd = ["../../etc/passwd", "a b", "a/b", "index", "INDEX", "", "\u00e4", ".hidden", "x" * 300, "a\nb"]
    names = [patient(name).page for name in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_-]+-[0-9a-f]{12}\.html|-[0-9a-f]{12}\.html", name), name
        assert len(name) < 110


def test_text_from_the_data_stays_text(tmp_path):
    nasty = "<script>alert(1)</script>\"'&"
    odd = card(isic_id=nasty, site=nasty, known=nasty, description=nasty, drivers=[Driver(nasty, nasty, 0.1)])
    write_patient(tmp_path / "page.html", patient(nasty), [odd], {nasty: nasty})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1  # the page's own
    assert "alert(1)" not in page.split("<script>")[1]
    shown = Cards(tmp_path / "page.html").cards[0]
    assert shown["data-site"] == shown["alt"] == nasty and nasty in shown["text"]


def test_a_card_shows_the_parts_of_its_score(tmp_path):
    cards = [card(), card(isic_id="ISIC_2", place=2, malignant=False, network=-1.0, crop=b"")]
    write_patient(tmp_path / "page.html", patient(labels=(1, 0, 0), network=(0.5, -1, -2)), cards, {"command": "x"})
    first, second = Cards(tmp_path / "page.html").cards
    assert (first["data-score"], first["data-tabular"], first["data-change"]) == ("0.5", "-1", "1.5")
    assert (first["data-label"], second["data-label"], second["data-change"]) == ("malignant", "benign", "")
    assert "start -3.00, the features below -0.40, all others +2.40" in first["text"]
    assert "sex = male: +0.40" in first["text"] and "age = 7: -0.80" in first["text"]
    assert "no image scored" in second["text"] and "no image scored" not in first["text"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    bars = re.findall(r'<path fill="(#\w+)" d="M0 1h(\S+)v6H0z"', page)[:2]
    assert bars == [("#d55e00", "50.0"), ("#0072b2", "-100.0")]
    assert "no medical device" in page
    assert "Of 3 lesions 2 are shown" in page
    assert "3 lesions, 1 of them malignant: place 1 by score." in page
