import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from eager import without_graphs
from triage_cards import Cards

from evaluation.studies.explain import load_fold_models
from evaluation.triage import scores as triage_scores
from evaluation.triage.__main__ import main
from inference.artifacts import best_network, load_manifest
from inference.features import build_features
from inference.images import decode_crop
from inference.network import Ensemble, NetworkConfig, load_network
from inference.schema import ID, read_metadata
from train.folds import HOLDOUT
from train.lesions import open_images
from train.manifest import record_stage
from utils import InputError

pytestmark = pytest.mark.integration


def options(trained, out, artifacts=None):
    return ["--data", str(trained.data), "--artifacts", str(artifacts or trained.artifacts), "--out", str(out)]


@pytest.fixture(scope="module")
def shown(trained, tmp_path_factory):
    """The pages of a small patient of each fold and of the holdout, folds.csv by isic_id, and those patients."""
    out = tmp_path_factory.mktemp("triage") / "out"
    folds = pd.read_csv(trained.artifacts / "folds.csv").set_index(ID)
    sizes = folds.groupby(["fold", "patient_id"]).size()
    patients = sizes[sizes > 3].groupby("fold").idxmin().str[1].tolist()
    with without_graphs(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(triage_scores, "HEATED", 2)
        assert main([*options(trained, out), "--patient", *patients]) == 0
    return out, folds, patients


def test_lesions_have_the_scores_of_models_trained_without_their_patient(trained, shown):
    out, folds, patients = shown
    artifacts, metadata = trained.artifacts, read_metadata(trained.data / "train-metadata.csv", labelled=True)
    assert {path.stem for path in out.iterdir()} == {*patients, "index"}
    oof = pd.read_csv(artifacts / "oof_fusion.csv").set_index(ID)
    manifest = load_manifest(artifacts)
    models, names = load_fold_models(artifacts, manifest), manifest["tabular"]["features"]
    features = build_features(metadata)[names].set_axis(metadata[ID])
    networks = [
        load_network(NetworkConfig.from_dict(best_network(manifest)["settings"]), artifacts / name)
        for name in best_network(manifest)["weights"]
    ]
    store = open_images(trained.data)
    assert patients[0] in set(folds.loc[folds["fold"] == HOLDOUT, "patient_id"])  # otherwise the mean of all is not tested
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
            batch = {"crop": crops, "tabular": tabular[:, None].astype("float32")}
            expected = tabular, np.mean([network(batch, training=False) for network in networks], axis=0)[:, 0]
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


def test_the_list_has_a_link_to_every_page_and_why(shown):
    out, _, patients = shown
    page = (out / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<a href="([^"]+)">', page) == [f"{patient_id}.html" for patient_id in patients]
    assert page.count("asked for by --patient") == len(patients) + 1
    assert "no medical device" in page and "python -m evaluation.triage" in page
    held_out = (out / f"{patients[0]}.html").read_text(encoding="utf-8")
    assert "the mean of all 2 CatBoost models and of all 2 networks" in held_out


def test_a_lesion_without_an_image_keeps_its_tabular_score(trained, tmp_path):
    """No image was scored: the pages have no pictures, and no network runs."""
    copy = shutil.copytree(trained.artifacts, tmp_path / "artifacts", copy_function=os.link)
    oof = pd.read_csv(copy / "oof_fusion.csv")
    (copy / "oof_fusion.csv").unlink()  # a link: writing into it would change the shared file
    oof.assign(network=oof["tabular"], image_scored=0).to_csv(copy / "oof_fusion.csv", index=False)
    network = load_manifest(copy)["network"]
    record_stage(copy, "network", network, [*best_network(load_manifest(copy))["weights"], "oof_fusion.csv"])
    assert main([*options(trained, tmp_path / "out", copy), "--patients", "2"]) == 0
    pages = [path for path in (tmp_path / "out").iterdir() if path.stem != "index"]
    assert len(pages) == 2
    for path in pages:
        cards = Cards(path).cards
        assert all(card["alt"] is None and card["data-change"] == "" for card in cards)
        assert [card["data-score"] for card in cards] == [card["data-tabular"] for card in cards]
    assert "none: no image was scored" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_bad_input_is_refused_in_one_sentence(trained, tmp_path):
    for option, value in (("--patients", "0"), ("--patient", "IP_nobody")):
        with pytest.raises(InputError, match=f"{option}.* .?{value}"):
            main([*options(trained, tmp_path / "out"), option, value])
    assert not (tmp_path / "out").exists()


def test_a_network_that_cannot_be_used_is_an_error_for_the_holdout(trained, tmp_path):
    copy = shutil.copytree(trained.artifacts, tmp_path / "artifacts")
    (copy / "fusion_fold1.weights.h5").write_bytes(b"broken")
    loaded = triage_scores.load_trained(copy)
    metadata = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    lesions = triage_scores.out_of_fold_scores(metadata, loaded).query("fold == @HOLDOUT").head(1)
    features = triage_scores.model_features(metadata, loaded).loc[lesions.index]
    with pytest.raises(InputError, match=r"fusion_fold1\.weights\.h5 has SHA-256"):
        triage_scores.score_holdout(lesions, features, loaded, open_images(trained.data))


def test_holdout_lesions_are_scored_in_as_many_views_as_the_manifest_says(trained, monkeypatch):
    asked, logits = [], Ensemble.logits

    def counted(ensemble, *given):
        asked.append(ensemble.views)
        return logits(ensemble, *given)

    loaded = triage_scores.load_trained(trained.artifacts)
    best_network(loaded.manifest)["settings"]["views"] = 4
    metadata = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    lesions = triage_scores.out_of_fold_scores(metadata, loaded).query("fold == @HOLDOUT").head(2)
    monkeypatch.setattr(Ensemble, "logits", counted)
    features = triage_scores.model_features(metadata, loaded).loc[lesions.index]
    triage_scores.score_holdout(lesions, features, loaded, open_images(trained.data))
    assert asked == [4]
