import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import lesions as report_lesions
from evaluation.lesions import SIDE, heat_of, lesion_section, most_wrong, ranks_of
from inference.schema import ID, PATIENT, TARGET, read_metadata
from train.folds import HOLDOUT
from utils import InputError

MANIFEST = {"network": {"networks": {"fusion": {"weights": ["a.h5", "b.h5"], "settings": {"image_size": 32}}}}}


@pytest.fixture
def scored(metadata):
    """Rows of ``synthetic_data`` and random logits."""
    rng = np.random.default_rng(0)
    tabular, final = rng.normal(-3, 1, (2, len(metadata)))
    parts = pd.DataFrame({"tabular": tabular, "final": final, "image_scored": 1}, index=metadata[ID].to_numpy())
    return metadata, parts


@pytest.fixture
def heat(monkeypatch):
    """Networks that look at the upper left quarter; the tabular logits and crops that they were given."""
    given = []

    def look(chosen, crops, artifacts, manifest):
        assert (chosen["fold"] == HOLDOUT).all()  # by all networks
        given.append((crops, chosen["tabular"].to_numpy()))
        warm = np.zeros(crops.shape[:3], "float32")
        warm[:, :16, :16] = 1
        return warm, "conv3, 4 x 4 cells"

    monkeypatch.setattr(report_lesions, "load_manifest", lambda folder: MANIFEST)
    monkeypatch.setattr(report_lesions, "heat_maps", look)
    return given


def page_of(*arguments):
    return str(lesion_section(*arguments).html())


def pictures_in(page):
    """The pictures of a page, as RGB arrays."""
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_the_most_wrong_are_the_lowest_malignant_and_the_highest_benign():
    labels = np.array([1, 0, 1, 0, 1, 0])
    hardest, alarms = most_wrong(labels, np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.95]))
    assert hardest.tolist() == [2, 4, 0]
    assert alarms.tolist() == [5, 1, 3]


def test_ranks_count_from_the_highest_and_ties_share_the_last_place():
    rows = pd.DataFrame({PATIENT: list("aabb")})
    ranks = ranks_of(rows, np.array([0.5, 0.5, 0.9, 0.1]))
    assert ranks["all"].tolist() == [3, 3, 1, 4]
    assert ranks["patient"].tolist() == [2, 2, 1, 2]
    assert ranks["of"].tolist() == [2, 2, 2, 2]


def test_each_lesion_has_its_picture_scores_and_metadata(scored, heat, synthetic_data):
    rows, parts = scored
    page = page_of(rows, parts, synthetic_data, synthetic_data)
    hardest, alarms = most_wrong(rows[TARGET].to_numpy(), parts["final"].to_numpy())
    shown = re.findall(r"<strong>\d+\. (\S+)</strong>", page)
    assert shown == rows[ID].to_numpy()[[*hardest, *alarms]].tolist()
    assert page.count('<li class="malignant">') == page.count('<li class="benign">') == 8
    pictures = pictures_in(page)
    assert len(pictures) == 16
    assert pictures[0].shape == (SIDE, 2 * SIDE + round(0.03 * SIDE), 3)
    first = rows.iloc[hardest[0]]
    final = f"{parts['final'].iloc[hardest[0]]:+.2f}".replace("-", "\N{MINUS SIGN}")
    card = page[page.index(first[ID]) : page.index("</li>")]
    assert f" {final}, tabular" in card
    assert f"rank {(parts['final'] >= parts['final'].iloc[hardest[0]]).sum()} of all" in card
    for known in (first[PATIENT], first["sex"], f"{first['age_approx']:.0f} years", first["anatom_site_general"]):
        assert str(known) in card
    assert f'alt="Crop of the malignant lesion {first[ID]}, right of it the same crop under its heat map."' in page
    assert "mean over 2 fold networks" in page
    crops, tabular = heat[0]
    assert crops.shape == (16, 32, 32, 3)
    assert tabular.tolist() == parts["tabular"].to_numpy()[[*hardest, *alarms]].tolist()


def test_heat_lies_over_the_crop_where_the_network_looks(scored, heat, synthetic_data):
    picture = pictures_in(page_of(*scored, synthetic_data, synthetic_data))[0].astype(int)
    right = picture[:, -SIDE:]
    colour = np.ptp(right, axis=-1)  # grey where no heat is
    assert colour[: SIDE // 3, : SIDE // 3].mean() > 40
    assert colour[-SIDE // 3 :, -SIDE // 3 :].mean() < 8


def test_a_lesion_without_an_image_score_has_its_crop_alone(scored, heat, synthetic_data):
    rows, parts = scored
    parts["image_scored"] = (rows[TARGET] == 1).to_numpy().astype(int)
    page = page_of(rows, parts, synthetic_data, synthetic_data)
    widths = [picture.shape[1] for picture in pictures_in(page)]
    assert widths == [2 * SIDE + round(0.03 * SIDE)] * 8 + [SIDE] * 8
    assert page.count("no image score: the final score") == 8
    assert len(heat[0][0]) == 8


def test_artifacts_without_a_network_give_crops_and_a_sentence(scored, synthetic_data, monkeypatch):
    monkeypatch.setattr(report_lesions, "load_manifest", lambda folder: {})
    page = page_of(*scored, synthetic_data, synthetic_data)
    assert "the artifacts hold no network, so there is no heat map" in page
    assert {picture.shape for picture in pictures_in(page)} == {(SIDE, SIDE, 3)}


def test_networks_that_cannot_be_explained_leave_crops_and_the_reason(scored, heat, synthetic_data, monkeypatch):
    def refuse(*_):
        raise InputError("network 'tabular_only' has the inputs tabular and no crop; choose one that has.")

    monkeypatch.setattr(report_lesions, "heat_maps", refuse)
    page = page_of(*scored, synthetic_data, synthetic_data)
    assert "there is no heat map: network &#39;tabular_only&#39; has the inputs tabular and no crop" in page
    assert len(pictures_in(page)) == 16


def test_lesions_without_image_scores_need_no_networks(scored, heat, synthetic_data):
    rows, parts = scored
    page = page_of(rows, parts.assign(image_scored=0), synthetic_data, synthetic_data)
    assert heat == []
    assert "have scored none of these" in page
    nobody = parts.iloc[:0].assign(**{ID: []})
    assert heat_of(nobody, synthetic_data, synthetic_data)[0] == {}


def test_data_without_images_give_texts(scored, tmp_path):
    page = page_of(*scored, tmp_path, tmp_path)
    assert "The data hold no images" in page
    assert "<img" not in page
    assert page.count("<li") == 16


def test_missing_columns_are_left_out(scored, tmp_path):
    rows, parts = scored
    rows = rows[[ID, PATIENT, TARGET]].assign(sex=np.nan)
    page = page_of(rows, parts, tmp_path, tmp_path)
    assert not re.search(r"\bnan\b", page)
    assert "years" not in page


def test_metadata_are_escaped(scored, tmp_path):
    rows, parts = scored
    page = page_of(rows.assign(iddx_full="a::<script>alert(1)</script>"), parts, tmp_path, tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_real_lesions_are_shown(real_data, heat):
    rows = read_metadata(real_data / "train-metadata.csv", labelled=True)
    parts = pd.DataFrame({"tabular": -5.0, "final": -5.0, "image_scored": 0}, index=rows[ID].to_numpy())
    page = page_of(rows, parts, real_data, real_data)
    assert page.count("<li") == 16
    assert "years" in page
