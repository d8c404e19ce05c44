import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import grad_cam
from evaluation.grad_cam import (
    caption,
    choose_lesions,
    class_activation,
    draw_sheet,
    heat_maps,
    main,
    read_crops,
)
from inference.artifacts import FORMAT
from inference.images import ImageStore, decode_crop
from inference.schema import ID, read_metadata
from train.folds import HOLDOUT
from train.lesions import open_images
from utils import InputError


def crops_of(image_size, rows=3):
    return np.random.default_rng(1).integers(0, 256, (rows, image_size, image_size, 3), dtype="uint8")


# The sheets


def test_the_most_wrong_lesions_with_an_image_are_chosen():
    oof = pd.DataFrame(
        [
            ["a", 1, 0, -1.0, -3.0, 1],
            ["b", 1, 1, -9.0, -9.0, 0],
            ["c", 1, 1, -1.5, -5.0, 1],
            ["d", 0, 0, 1.0, 2.0, 1],
            ["f", 0, 1, 1.0, 4.0, 1],
            ["e", 0, 1, 1.0, 4.0, 1],
            ["g", 0, 0, 9.0, 9.0, 0],
            ["h", 1, 0, 0.0, 0.5, 1],
        ],
        columns=[ID, "target", "fold", "tabular", "network", "image_scored"],
    )
    chosen = choose_lesions(oof, 2)
    assert list(chosen) == [ID, "target", "fold", "tabular", "network", "sheet", "rank"]
    assert chosen[ID].tolist() == ["c", "a", "e", "f"]
    assert chosen["sheet"].tolist() == ["hardest_malignant"] * 2 + ["top_false_alarms"] * 2
    assert chosen["rank"].tolist() == [1, 2, 1, 2]
    assert choose_lesions(oof, 50)[ID].tolist() == ["c", "a", "h", "e", "f", "d"]
    with pytest.raises(InputError, match=r"oof_fusion\.csv has no malignant lesion whose image was seen"):
        choose_lesions(oof[oof["target"] == 0], 2)


def test_a_caption_says_what_is_known():
    lesion = pd.Series({"rank": 3, ID: "ISIC_7", "tabular": -4.118, "network": 0.5})
    known = pd.Series({"age_approx": 55.0, "sex": "male", "anatom_site_general": "head/neck"})
    lines = ["3   ISIC_7", "logits -4.12 \N{RIGHTWARDS ARROW} +0.50", "age 55, male, head/neck"]
    assert caption(lesion, known, True).splitlines() == lines
    assert caption(lesion, known.drop("sex").replace(55.0, np.nan), True).splitlines() == [*lines[:2], "head/neck"]
    assert caption(lesion, pd.Series(dtype="object"), False).splitlines() == [lines[0], lines[1] + "   (no place raises it)"]


def test_a_sheet_grows_with_its_lesions(tmp_path):
    heights = []
    for count in (1, 3, 4):
        path = tmp_path / f"{count}.png"
        draw_sheet(path, "heading", "explanation", crops_of(32, count), np.zeros((count, 32, 32)), ["$a_$\nb"] * count)
        heights.append(Image.open(path).height)
    assert heights[0] == heights[1] < heights[2]


# The command


def test_the_command_shows_each_lesion_by_the_network_that_has_not_seen_it(trained, tmp_path, capsys, monkeypatch):
    asked, drawn, real_draw = [], {}, draw_sheet

    def spy_on_networks(network, crops, tabular, layer=None):
        asked.append((network, crops, tabular))
        return class_activation(network, crops, tabular, layer)

    def spy_on_sheets(path, heading, explanation, crops, maps, captions):
        drawn[path.stem] = heading, crops, maps, captions
        real_draw(path, heading, explanation, crops, maps, captions)

    monkeypatch.setattr(grad_cam, "class_activation", spy_on_networks)
    monkeypatch.setattr(grad_cam, "draw_sheet", spy_on_sheets)
    out = tmp_path / "out"
    where = ["--data", str(trained.data), "--artifacts", str(trained.artifacts), "--out", str(out), "--lesions", "4"]
    assert main(where) == 0
    assert {path.name for path in out.iterdir()} == {"grad_cam.csv", "hardest_malignant.png", "top_false_alarms.png"}
    assert "4 malignant and 4 benign lesions seen by 2 networks" in capsys.readouterr().out.splitlines()[-1]

    # The table: the ends of oof_fusion.csv.
    oof, table = pd.read_csv(trained.artifacts / "oof_fusion.csv"), pd.read_csv(out / "grad_cam.csv")
    malignant, benign = (oof[oof["target"] == target].sort_values("network") for target in (1, 0))
    assert table[ID].tolist() == [*malignant[ID].head(4), *benign[ID].tail(4)[::-1]]
    assert table["sheet"].tolist() == ["hardest_malignant"] * 4 + ["top_false_alarms"] * 4
    assert table["rank"].tolist() == [1, 2, 3, 4] * 2
    columns = ["target", "fold", "tabular", "network"]
    pd.testing.assert_frame_equal(table[columns], oof.set_index(ID).loc[table[ID], columns].reset_index(drop=True))

    # The networks: only the fold's own gives its lesions the logits of oof_fusion.csv.
    assert set(table["fold"]) == {0, 1} and len(asked) == 2
    for fold, (_, crops, tabular) in enumerate(asked):
        for number, (other, _, _) in enumerate(asked):
            logits = other({"crop": crops, "tabular": tabular[:, None].astype("float32")}, training=False).numpy()[:, 0]
            same = np.allclose(logits, table.loc[table["fold"] == fold, "network"], atol=1e-3)
            assert same == (number == fold)

    # The sheets: each lesion's own crop, heat and caption, in the order of the table.
    store, metadata = open_images(trained.data), read_metadata(trained.data / "train-metadata.csv", labelled=True)
    metadata = metadata.set_index(ID)
    for sheet, rows in table.groupby("sheet", sort=False):
        heading, crops, maps, captions = drawn[sheet]
        assert heading.startswith("Malignant lesions" if sheet == "hardest_malignant" else "Benign lesions")
        assert heading.endswith(f": 4 of {(oof['target'] == rows['target'].iloc[0]).sum()}")
        for row, crop, heat, text in zip(rows.itertuples(), crops, maps, captions, strict=True):
            np.testing.assert_array_equal(crop, decode_crop(store.read(row.isic_id), 32))
            assert row.isic_id in text and f"age {metadata.loc[row.isic_id, 'age_approx']:.0f}" in text
            own = class_activation(asked[row.fold][0], crop[None], np.array([row.tabular]))
            np.testing.assert_allclose(heat, own[0], atol=1e-3)
        assert Image.open(out / f"{sheet}.png").width > 1500


def test_a_lesion_of_the_holdout_is_seen_by_all_networks(tmp_path, monkeypatch):
    """Networks stood in for by the heat that they give: the mean of both, its warmest place 1 again."""
    heat = {"one": np.array([[1.0, 0.0], [0.0, 0.5]]), "two": np.array([[0.0, 0.0], [0.5, 1.0]])}
    monkeypatch.setattr(grad_cam, "checked_file", lambda artifacts, manifest, name: name)
    monkeypatch.setattr(grad_cam, "load_network", lambda settings, name: name)
    monkeypatch.setattr(grad_cam, "default_layer", lambda network: "conv3")
    monkeypatch.setattr(grad_cam, "backbone_of", lambda network: SimpleNamespace(get_layer=lambda name: a_layer))
    monkeypatch.setattr(
        grad_cam, "class_activation", lambda network, crops, tabular, layer: heat[network] * tabular[:, None, None]
    )
    a_layer = SimpleNamespace(output=np.zeros((1, 4, 4, 8)))
    chosen = pd.DataFrame({"fold": [1, HOLDOUT, 0, HOLDOUT], "tabular": [1.0, 1.0, 1.0, 0.0]})
    manifest = {"network": {"weights": ["one", "two"], "settings": {}}}
    maps, where = heat_maps(chosen, np.zeros((4, 2, 2, 3), dtype="uint8"), tmp_path, manifest)
    assert where == "conv3, 4 x 4 cells"
    np.testing.assert_allclose(maps[0], heat["two"])
    np.testing.assert_allclose(maps[2], heat["one"])
    np.testing.assert_allclose(maps[1], [[2 / 3, 0], [1 / 3, 1]], rtol=1e-6)
    assert not maps[3].any()  # where no network sees anything, nothing is warm


# Bad input


def test_bad_options_and_folders_are_refused_in_one_sentence(tmp_path):
    where = ["--data", str(tmp_path), "--artifacts", str(tmp_path), "--out", str(tmp_path / "out")]
    for lesions in ("0", "301"):
        with pytest.raises(InputError, match=f"--lesions {lesions} makes no sheet; give 1 to 300"):
            main([*where, "--lesions", lesions])
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(InputError, match=r"has no networks; run: python -m train\.fusion"):
        main(where)
    assert not (tmp_path / "out").exists()


def test_a_lesion_without_an_image_or_a_network_is_refused(synthetic_data, metadata):
    store = ImageStore(synthetic_data / "train-image.hdf5")
    with pytest.raises(InputError, match=r"has no readable image of ISIC_none, which .* \(1 such lesions in all\); give"):
        read_crops(store, [metadata[ID][0], "ISIC_none"], 32)
    chosen = pd.DataFrame({"fold": [0, 2], "tabular": [0.0, 0.0]})
    with pytest.raises(InputError, match="has lesions of fold 2 and the manifest no network of it"):
        heat_maps(chosen, crops_of(32, 2), synthetic_data, {"network": {"weights": ["one", "two"]}})
