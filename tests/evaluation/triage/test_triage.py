import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from eager import without_graphs
from untrained_networks import make_artifacts

from evaluation.studies.explain import load_fold_models
from evaluation.triage import __main__ as triage
from evaluation.triage.__main__ import choose_patients, describe, main, place_lesions, value_in_words, with_heat
from evaluation.triage.page import Driver, Lesion, Patient, score_in_words, signed, write_patient
from inference.artifacts import load_manifest
from inference.features import build_features
from inference.images import decode_crop
from inference.network import NetworkConfig, load_network
from inference.schema import ID, PATIENT, TARGET
from train.folds import HOLDOUT
from train.lesions import open_images
from train.manifest import record_stage
from utils import InputError


class Cards(HTMLParser):
    """The cards of a page: attributes, text, and what the picture is said to show."""

    def __init__(self, path):
        super().__init__()
        self.cards, self.inside = [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "li" and "data-score" in attributes:
            self.cards.append(attributes | {"text": "", "alt": None})
            self.inside = True
        if tag == "img":
            self.cards[-1]["alt"] = attributes["alt"]
        if tag == "h2":
            self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.cards[-1]["text"] += text


def lesion(**changed):
    given = {"isic_id": "ISIC_1", "place": 1, "malignant": True, "tabular": -1.0, "fusion": 0.5, "seen": True}
    given |= {"site": "head/neck", "told": ", 3.0 mm", "drivers": [Driver("sex", "male", 0.4), Driver("age", "7", -0.8)]}
    return Lesion(**(given | {"start": -3.0, "others": 2.4, "crop": b"", "described": ""} | changed))


def patient(name="IP_1", labels=(1, 0), fusion=(0.5, -1.0)):
    labels, fusion = np.array(labels), np.array(fusion)
    return Patient(name, "Age: 50.", "asked for", "by all", labels, fusion - 0.5, fusion)


# Which patients, and which of their lesions


def test_the_patients_that_the_fusion_is_most_wrong_about_are_chosen():
    scores = pd.DataFrame(
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
    chosen = choose_patients(scores, 4)
    assert list(chosen) == ["P1", "P2", "P4", "P3"]
    assert chosen["P1"] == "the malignant lesion b has only rank 8 of all 8 out-of-fold lesions"
    assert chosen["P4"] == "no lesion is malignant, and f has rank 3 of all 8 out-of-fold lesions: a false alarm"
    assert list(choose_patients(scores, 3)) == ["P1", "P2", "P4"]
    assert list(choose_patients(scores, 1)) == ["P1"]
    assert list(choose_patients(scores, 99)) == ["P1", "P2", "P6", "P4", "P3"]
    assert list(choose_patients(scores[scores[TARGET] == 1], 2)) == ["P1", "P2"]
    assert list(choose_patients(scores[scores[PATIENT].isin(["P3", "P4"])], 2)) == ["P4", "P3"]


def test_the_first_lesions_and_every_malignant_one_have_cards_and_heat_maps(monkeypatch):
    monkeypatch.setattr(triage, "LISTED", 3)
    monkeypatch.setattr(triage, "HEATED", 1)
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


# In words


def test_values_and_scores_in_words():
    assert [value_in_words(value) for value in ("male", np.nan, 0.12345, 1234567.0, -3.0)] == [
        "male",
        "unknown",
        "0.123",
        "1,234,567",
        "-3",
    ]
    assert score_in_words(0.0) == "+0.00 (50.0&nbsp;%)"
    assert score_in_words(-6.0) == "-6.00 (0.25&nbsp;%)"
    assert score_in_words(-20.0) == "-20.00 (below 0.01&nbsp;%)"
    assert (signed(-0.001), signed(-0.006)) == ("+0.00", "-0.01")


def test_a_picture_is_described_by_where_it_is_warm():
    heat = np.zeros((30, 30), dtype="float32")
    assert describe("L", None) == "Crop of L."
    assert "no place raises the logits" in describe("L", heat)
    heat[25:, 10:15] = 1.0
    assert describe("L", heat).endswith("warmest in the lower centre, more than half as warm on 3% of it.")
    crop = np.full((60, 60, 3), 200, dtype="uint8")
    both = with_heat(crop, heat)
    assert both.shape == (60, 122, 3) and 0 <= both.min() <= both.max() <= 1
    np.testing.assert_allclose(both[:40, 62:], 200 / 255, atol=0.5)
    assert np.ptp(both[5, 70]) < 0.2 < np.ptp(both[57, 62 + 24])  # grey where there is no heat, coloured where there is


# The page


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
    card = lesion(isic_id=nasty, site=nasty, told=nasty, drivers=[Driver(nasty, nasty, 0.1)])
    write_patient(tmp_path / "page.html", patient(nasty), [card], {nasty: nasty})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1  # the page's own
    assert "alert(1)" not in page.split("<script>")[1]
    card = Cards(tmp_path / "page.html").cards[0]
    assert card["data-site"] == nasty and nasty in card["text"]


def test_a_card_says_what_made_the_score(tmp_path):
    cards = [lesion(), lesion(isic_id="ISIC_2", place=2, malignant=False, fusion=-1.0, seen=False)]
    write_patient(tmp_path / "page.html", patient(labels=(1, 0, 0), fusion=(0.5, -1, -2)), cards, {"command": "x"})
    first, second = Cards(tmp_path / "page.html").cards
    assert (first["data-score"], first["data-tabular"], first["data-change"]) == ("0.5", "-1", "1.5")
    assert (first["data-label"], second["data-label"], second["data-change"]) == ("malignant", "benign", "")
    assert "start -3.00, the features below -0.40, all others +2.40" in first["text"]
    assert "sex = male: +0.40" in first["text"] and "age = 7: -0.80" in first["text"]
    assert "no image seen" in second["text"] and "no image seen" not in first["text"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    bars = re.findall(r'<path fill="(#\w+)" d="M0 1h(\S+)v6H0z"', page)[:2]
    assert bars == [("#d55e00", "50.0"), ("#0072b2", "-100.0")]
    assert "no medical device" in page
    assert "Of 3 lesions 2 are shown" in page
    assert "3 lesions, 1 of them malignant: place 1 by score." in page


# The command


@pytest.fixture(scope="module")
def artifacts(synthetic_data, tmp_path_factory):
    """Of the synthetic_data. Shared: read it, do not write into it."""
    return make_artifacts(synthetic_data, tmp_path_factory.mktemp("triage") / "artifacts")


@pytest.fixture(scope="module")
def shown(synthetic_data, artifacts, tmp_path_factory):
    """The pages of a patient of each fold and of the holdout, folds.csv by isic_id, and those patients."""
    out = tmp_path_factory.mktemp("triage") / "out"
    folds = pd.read_csv(artifacts / "folds.csv").set_index(ID)
    patients = folds.groupby("fold")["patient_id"].first().tolist()
    with without_graphs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(triage, "HEATED", 2)
        where = ["--data", str(synthetic_data), "--artifacts", str(artifacts), "--out", str(out)]
        assert main([*where, "--patient", *patients]) == 0
    return out, folds, patients


def test_every_lesion_has_the_scores_of_those_that_have_not_seen_its_patient(synthetic_data, artifacts, shown, metadata):
    out, folds, patients = shown
    assert {path.stem for path in out.iterdir()} == {*patients, "index"}
    oof = pd.read_csv(artifacts / "oof_fusion.csv").set_index(ID)
    manifest = load_manifest(artifacts)
    models, names = load_fold_models(artifacts, manifest), manifest["tabular"]["features"]
    features = build_features(metadata)[names].set_axis(metadata[ID])
    networks = [
        load_network(NetworkConfig.from_dict(manifest["network"]["settings"]), artifacts / name)
        for name in manifest["network"]["weights"]
    ]
    store = open_images(synthetic_data)
    assert patients[0] in set(folds.loc[folds["fold"] == HOLDOUT, "patient_id"])  # or the mean of all is not looked at
    for patient_id in patients:
        cards = Cards(out / f"{patient_id}.html").cards
        ids = [re.match(r"\s*[\d,]+\. (\S+)", card["text"])[1] for card in cards]
        assert sorted(ids) == sorted(folds.index[folds["patient_id"] == patient_id])
        scores = [float(card["data-score"]) for card in cards]
        assert scores == sorted(scores, reverse=True)
        fold = folds.loc[ids[0], "fold"]
        if fold != HOLDOUT:
            expected = oof.loc[ids, "tabular"].to_numpy(), oof.loc[ids, "network"].to_numpy()
        else:
            rows = features.loc[ids]
            tabular = np.mean([model.predict(rows, prediction_type="RawFormulaVal") for _, model in models], axis=0)
            crops = np.stack([decode_crop(store.read(isic_id), 32) for isic_id in ids])
            seen = {"crop": crops, "tabular": tabular[:, None].astype("float32")}
            expected = tabular, np.mean([network(seen, training=False) for network in networks], axis=0)[:, 0]
        np.testing.assert_allclose([float(card["data-tabular"]) for card in cards], expected[0], rtol=1e-4)
        np.testing.assert_allclose(scores, expected[1], rtol=1e-3, atol=1e-4)
        change = np.subtract(*expected[::-1])
        np.testing.assert_allclose([float(card["data-change"]) for card in cards], change, atol=2e-4)
        labels = ["malignant" if folds.loc[isic_id, "target"] else "benign" for isic_id in ids]
        assert [card["data-label"] for card in cards] == labels
        for card, isic_id in zip(cards, ids, strict=True):
            assert card["alt"].startswith(f"Crop of {isic_id}")
            warm = card["data-label"] == "malignant" or card in cards[:2]
            assert ("right of it" in card["alt"]) == warm
            start, below, others = map(
                float, re.search(r"start (\S+), the features below (\S+), all others (\S+)\.", card["text"]).groups()
            )
            assert start + below + others == pytest.approx(float(card["data-tabular"]), abs=0.02)
            drivers = [float(shap) for shap in re.findall(r": ([+-]\d+\.\d\d)", card["text"])]
            assert len(drivers) == 6 and sum(drivers) == pytest.approx(below, abs=0.04)
            assert np.abs(drivers).tolist() == sorted(np.abs(drivers), reverse=True)


def test_the_list_leads_to_every_page_and_says_why(shown):
    out, folds, patients = shown
    page = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="([^"]+)">', page) == [f"{patient_id}.html" for patient_id in patients]
    assert page.count("asked for by --patient") == len(patients) + 1
    assert "no medical device" in page and "python -m evaluation.triage" in page
    held = folds.loc[folds["fold"] == HOLDOUT, "patient_id"].iloc[0]
    assert "the mean of all 2 CatBoost models and of all 2 networks" in (out / f"{held}.html").read_text(encoding="utf-8")


def test_a_lesion_without_an_image_keeps_its_tabular_score(synthetic_data, artifacts, tmp_path, monkeypatch):
    """Nobody's image was seen: pages without pictures, and no network is asked."""
    copy = shutil.copytree(artifacts, tmp_path / "artifacts")
    oof = pd.read_csv(copy / "oof_fusion.csv")
    oof.assign(network=oof["tabular"], image_scored=0).to_csv(copy / "oof_fusion.csv", index=False)
    network = load_manifest(copy)["network"]
    record_stage(copy, "network", network, [*network["weights"], "oof_fusion.csv"])
    where = ["--data", str(synthetic_data), "--artifacts", str(copy), "--out", str(tmp_path / "out"), "--patients", "2"]
    assert main(where) == 0
    pages = [path for path in (tmp_path / "out").iterdir() if path.stem != "index"]
    assert len(pages) == 2
    for path in pages:
        cards = Cards(path).cards
        assert all(card["alt"] is None and card["data-change"] == "" for card in cards)
        assert [card["data-score"] for card in cards] == [card["data-tabular"] for card in cards]
    assert "none: no image was seen" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_bad_input_is_refused_in_one_sentence(synthetic_data, artifacts, tmp_path):
    where = ["--data", str(synthetic_data), "--artifacts", str(artifacts), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--patients 0 makes no page; give 1 or more"):
        main([*where, "--patients", "0"])
    with pytest.raises(InputError, match="--patient 'IP_nobody' is no patient_id of train-metadata"):
        main([*where, "--patient", "IP_nobody"])
    assert not (tmp_path / "out").exists()
