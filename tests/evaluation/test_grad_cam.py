import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

from evaluation import grad_cam
from evaluation.grad_cam import (
    caption,
    choose_lesions,
    class_activation,
    default_layer,
    draw_sheet,
    heat_maps,
    main,
    read_crops,
    side_by_side,
    spread,
    tapped,
)
from inference.artifacts import FORMAT
from inference.backbones import PREPROCESSED, efficientnet_lite
from inference.images import ImageStore, decode_crop
from inference.network import NetworkConfig, build_network
from inference.schema import ID, read_metadata
from train.folds import HOLDOUT
from train.lesions import open_images
from utils import InputError

pytestmark = pytest.mark.integration

#: The last layers of ResNet50's stages, the last stage first.
STAGES = ("conv5_block3_out", "conv4_block6_out", "conv3_block4_out", "conv2_block3_out")
TABULAR = np.array([-6.0, -0.5, 2.0])


def moved(image_size, inputs=("crop", "tabular"), **config):
    """A network that has moved away from where it starts: its correction and its head let some units pass and some rest."""
    tf.keras.utils.set_random_seed(0)
    config = {"head_units": 8, "tabular_mean": -4.0, "tabular_std": 2.0} | config
    network = build_network(NetworkConfig(image_size, inputs=inputs, **config))
    width = network.get_layer("correction").kernel.shape[0]
    network.get_layer("correction").set_weights([np.linspace(-0.3, 0.5, width)[:, None], np.array([0.2])])
    return network


def crops_of(image_size, rows=3):
    return np.random.default_rng(1).integers(0, 256, (rows, image_size, image_size, 3), dtype="uint8")


@pytest.fixture(scope="module")
def fusion():
    return moved(32)


@pytest.fixture(scope="module")
def wide():
    """A fusion whose last feature maps have more than one cell."""
    return moved(64)


@pytest.mark.parametrize("layer", [*STAGES, "conv4_block2_2_conv"])
def test_the_tapped_network_is_the_network(fusion, layer):
    crops, tabular = crops_of(32), TABULAR[:, None].astype("float32")
    maps, derivative, logits = tapped(fusion, layer)(tf.constant(crops), tf.constant(tabular))
    expected = fusion({"crop": crops, "tabular": tabular}, training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    assert np.abs(expected - tabular).min() > 0.01  # or the tabular logits alone would do as well
    assert (
        maps.shape == derivative.shape and maps.shape[1:3] == fusion.get_layer("resnet50").get_layer(layer).output.shape[1:3]
    )
    assert np.abs(derivative).max() > 0


def test_the_image_only_network_is_tapped_without_tabular_logits():
    alone, crops = moved(32, inputs=["crop"]), crops_of(32)
    _, _, logits = tapped(alone, STAGES[-1])(tf.constant(crops), tf.zeros((3, 1)))
    np.testing.assert_allclose(logits, alone({"crop": crops}, training=False), rtol=1e-6)
    np.testing.assert_array_equal(class_activation(alone, crops, None), class_activation(alone, crops, TABULAR))


def test_frozen_weights_are_derived_as_well(fusion):
    crops = crops_of(32)
    expected = class_activation(fusion, crops, TABULAR)
    fusion.trainable = False
    try:
        np.testing.assert_array_equal(class_activation(fusion, crops, TABULAR), expected)
    finally:
        fusion.trainable = True


def test_behind_the_last_stage_it_is_the_class_activation_map(wide):
    # Of a network that takes the mean over the places, Grad-CAM is the map of Zhou and others (2016, arXiv:1512.04150): the
    # feature maps, weighted as what follows the mean weighs them. So the heat follows from the head's weights by hand.
    crops, layer = crops_of(64), "conv5_block3_out"
    maps, _, _ = tapped(wide, layer)(tf.constant(crops), tf.constant(TABULAR[:, None], tf.float32))
    maps = maps.numpy().astype("float64")
    kernel, bias = wide.get_layer("head").get_weights()
    joined = np.hstack([maps.mean(axis=(1, 2)), (TABULAR[:, None] + 4.0) / 2.0])
    active = joined @ kernel + bias > 0
    assert active.any() and not active.all()
    weights = (active * np.linspace(-0.3, 0.5, 8)) @ kernel[:-1].T
    heat = spread(np.maximum(np.einsum("rijc,rc->rij", maps, weights), 0), 64)
    assert (heat.max(axis=(1, 2)) > 0).any()
    expected = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(class_activation(wide, crops, TABULAR, layer), expected, atol=1e-4)


def test_before_the_last_stage_a_channel_weighs_its_mean_derivative(fusion):
    crops = crops_of(32)
    found = tapped(fusion, "conv3_block4_out")(tf.constant(crops), tf.constant(TABULAR[:, None], tf.float32))
    maps, derivative = (tensor.numpy().astype("float64") for tensor in found[:2])
    assert derivative.std(axis=(1, 2)).max() > 0  # unlike behind the last stage, where all places count alike
    places = [
        sum(row[..., c] * slope[..., c].mean() for c in range(512)) for row, slope in zip(maps, derivative, strict=True)
    ]
    heat = spread(np.maximum(places, 0), 32)
    assert (heat.max(axis=(1, 2)) > 0).any()
    expected = heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(class_activation(fusion, crops, TABULAR), expected, atol=1e-3)


def red_minus_blue():
    """A network built by hand: 4 x 4 cells of red and blue of their pixels; red raises the logits, blue lowers them."""
    layers = tf.keras.layers
    centred = tf.keras.Input((32, 32, 3))
    maps = layers.Conv2D(2, 1, strides=8, use_bias=False, name="conv3_block4_out")(centred)
    backbone = tf.keras.Model(centred, layers.GlobalAveragePooling2D()(maps), name="resnet50")
    crop = tf.keras.Input((32, 32, 3), name="crop", dtype="uint8")
    features = backbone(layers.Rescaling(1 / 255, name=PREPROCESSED)(crop))
    hidden = layers.Dropout(0.0, name="head_dropout")(layers.Dense(2, activation="relu", name="head")(features))
    network = tf.keras.Model({"crop": crop}, layers.Dense(1, name="correction")(hidden))
    backbone.get_layer("conv3_block4_out").set_weights([np.array([[1.0, 0], [0, 0], [0, 1]]).reshape(1, 1, 3, 2)])
    network.get_layer("head").set_weights([np.eye(2), np.full(2, 1.0)])
    network.get_layer("correction").set_weights([np.array([[1.0], [-1.0]]), np.zeros(1)])
    return network


def test_the_heat_is_where_the_network_finds_what_raises_the_logits():
    crops = np.zeros((3, 32, 32, 3), dtype="uint8")
    crops[:2, 16:24, 8:16, 0] = np.array([255, 40])[:, None, None]  # red, strong and weak
    crops[:, 0:8, 24:32, 2] = 255  # blue
    heat = class_activation(red_minus_blue(), crops, None, "conv3_block4_out")
    # Cells look at pixels 0, 8, 16 and 24: around the red one at (16, 8) the heat falls to nothing within eight pixels.
    rows, columns = np.mgrid[:32, :32]
    expected = np.maximum(1 - np.abs(rows - 16) / 8, 0) * np.maximum(1 - np.abs(columns - 8) / 8, 0)
    np.testing.assert_allclose(heat[0], expected, atol=1e-6)
    np.testing.assert_allclose(heat[1], expected, atol=1e-6)  # each crop on its own scale
    assert not heat[2].any()  # blue alone raises nothing
    swapped = class_activation(red_minus_blue(), crops[:1, ..., ::-1], None, "conv3_block4_out")
    assert np.unravel_index(swapped[0].argmax(), (32, 32)) == (0, 24)


def test_heat_maps_have_the_size_of_the_crops_and_end_at_1(fusion, monkeypatch):
    monkeypatch.setattr(grad_cam, "BATCH", 2)
    crops = crops_of(32)
    heat = class_activation(fusion, crops, TABULAR)
    assert heat.shape == (3, 32, 32) and heat.dtype == "float32"
    assert heat.min() >= 0
    assert set(heat.max(axis=(1, 2))) <= {0.0, 1.0} and heat.any()
    again = class_activation(fusion, crops[::-1], TABULAR[::-1])
    np.testing.assert_allclose(again[::-1], heat, atol=1e-4)  # rows do not change each other
    assert class_activation(fusion, crops[:0], TABULAR[:0]).shape == (0, 32, 32)


def test_a_network_that_has_learned_nothing_has_no_heat():
    assert not class_activation(build_network(NetworkConfig(32, head_units=8)), crops_of(32), TABULAR).any()


@pytest.mark.parametrize(("image_size", "layer"), [(48, STAGES[2]), (96, STAGES[1]), (97, STAGES[0])])
def test_the_last_stage_of_four_by_four_cells_is_taken(image_size, layer):
    assert default_layer(build_network(NetworkConfig(image_size, head_units=4))) == layer


@pytest.mark.parametrize(
    ("size", "count", "stride"), [(32, 4, 8), (33, 5, 8), (49, 4, 16), (64, 4, 16), (97, 4, 32), (64, 16, 4)]
)
def test_cells_are_spread_over_the_pixels_that_they_look_at(size, count, stride):
    rows, columns = np.mgrid[:count, :count]
    found = spread(np.stack([rows, columns]).astype("float32") * stride, size)
    rows, columns = np.mgrid[:size, :size]
    last = (count - 1) * stride
    np.testing.assert_allclose(found, np.minimum([rows, columns], last), atol=1e-4)


def test_the_tapped_network_may_have_another_backbone_and_no_hidden_layer():
    network, crops = moved(32, backbone="efficientnet-lite0", head_units=0, feature_dropout=0.5), crops_of(32)
    assert default_layer(network) == "conv3_block4_add"
    maps, _, logits = tapped(network, "conv3_block4_add")(tf.constant(crops), tf.constant(TABULAR[:, None], tf.float32))
    assert maps.shape == (3, 4, 4, 40)
    expected = network({"crop": crops, "tabular": TABULAR[:, None].astype("float32")}, training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet-lite0"])
def test_a_cell_looks_at_the_corner_of_its_share(wide, name):
    backbone = wide.get_layer("resnet50") if name == "resnet50" else efficientnet_lite(name, (64, 64, 3))
    layer = "conv2_block3_out" if name == "resnet50" else "conv2_block2_add"
    maps = tf.keras.Model(backbone.input, backbone.get_layer(layer).output)
    crops = tf.constant(crops_of(64) - 128.0, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(crops)
        cell = tf.reduce_sum(maps(crops, training=False)[:, 8, 8] ** 2)
    share = np.abs(tape.gradient(cell, crops)).sum(axis=(0, 3))
    centre = [share.sum(axis=axis) @ np.arange(64) / share.sum() for axis in (0, 1)]
    corner = 8 * 4 if name == "resnet50" else 8 * 4 + 3
    np.testing.assert_allclose(centre, corner, atol=0.7)  # and not 33.5, the middle of pixels 32 to 35
    cells = np.zeros((1, 16, 16), "float32")
    cells[0, 8, 8] = 1
    heat = spread(cells, 64, 0.0 if name == "resnet50" else 1.0)
    assert heat[0, corner, corner] == 1


def test_a_crop_stands_beside_its_heat():
    crop, heat = crops_of(32)[0], np.zeros((32, 32), dtype="float32")
    heat[10, 20] = 1
    picture = side_by_side(crop, heat)
    np.testing.assert_allclose(picture[:, :32], crop / 255)
    right = picture[:, -32:]
    coloured = np.ptp(right, axis=-1) > 1e-9
    assert coloured[10, 20] and coloured.sum() == 1  # grey where it is cold
    cold = heat == 0
    np.testing.assert_allclose(right[cold][:, 0], crop[cold].mean(axis=-1) / 255)


def test_networks_and_crops_that_do_not_fit_are_refused(fusion):
    crops = crops_of(32)
    with pytest.raises(InputError, match=r"no feature maps 'conv9_out'; choose one of conv5_block3_out, "):
        class_activation(fusion, crops, TABULAR, "conv9_out")
    with pytest.raises(InputError, match="no feature maps 'avg_pool'"):
        class_activation(fusion, crops, TABULAR, "avg_pool")
    with pytest.raises(InputError, match=r"have the shape \(3, 64, 64, 3\), the network takes \(rows, 32, 32, 3\)"):
        class_activation(fusion, crops_of(64), TABULAR)
    with pytest.raises(InputError, match=r"3 crops came with tabular logits of shape \(2,\)"):
        class_activation(fusion, crops, TABULAR[:2])
    with pytest.raises(InputError, match=r"3 crops came with tabular logits of shape \(\)"):
        class_activation(fusion, crops, None)
    with pytest.raises(InputError, match="network 'tabular_only' has the inputs tabular and no crop"):
        class_activation(build_network(NetworkConfig(32, inputs=("tabular",))), crops, TABULAR)


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
    with pytest.raises(InputError, match=r"oof_fusion\.csv has no malignant lesion with an image score"):
        choose_lesions(oof[oof["target"] == 0], 2)


def test_a_caption_holds_what_is_known():
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


def test_the_command_explains_each_lesion_by_the_network_that_was_not_trained_on_it(trained, tmp_path, capsys, monkeypatch):
    given, drawn, real_draw = [], {}, draw_sheet

    def spy_on_networks(network, crops, tabular, layer=None):
        given.append((network, crops, tabular))
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
    assert "4 malignant and 4 benign lesions, 2 networks" in capsys.readouterr().out.splitlines()[-1]

    # The table: the ends of oof_fusion.csv.
    oof, table = pd.read_csv(trained.artifacts / "oof_fusion.csv"), pd.read_csv(out / "grad_cam.csv")
    malignant, benign = (oof[oof["target"] == target].sort_values("network") for target in (1, 0))
    assert table[ID].tolist() == [*malignant[ID].head(4), *benign[ID].tail(4)[::-1]]
    assert table["sheet"].tolist() == ["hardest_malignant"] * 4 + ["top_false_alarms"] * 4
    assert table["rank"].tolist() == [1, 2, 3, 4] * 2
    columns = ["target", "fold", "tabular", "network"]
    pd.testing.assert_frame_equal(table[columns], oof.set_index(ID).loc[table[ID], columns].reset_index(drop=True))

    # The networks: only the fold's own gives its lesions the logits of oof_fusion.csv.
    assert set(table["fold"]) == {0, 1} and len(given) == 2
    for fold, (_, crops, tabular) in enumerate(given):
        for number, (other, _, _) in enumerate(given):
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
            own = class_activation(given[row.fold][0], crop[None], np.array([row.tabular]))
            np.testing.assert_allclose(heat, own[0], atol=1e-3)
        assert Image.open(out / f"{sheet}.png").width > 1500


def test_a_lesion_of_the_holdout_has_the_mean_map_of_all_networks(tmp_path, monkeypatch):
    """Networks replaced by their heat: the mean of both, its warmest place 1 again."""
    heat = {"one": np.array([[1.0, 0.0], [0.0, 0.5]]), "two": np.array([[0.0, 0.0], [0.5, 1.0]])}
    monkeypatch.setattr(grad_cam, "checked_file", lambda artifacts, manifest, name: name)
    monkeypatch.setattr(grad_cam, "load_network", lambda settings, name: name)
    monkeypatch.setattr(grad_cam, "default_layer", lambda network: "conv3")
    monkeypatch.setattr(grad_cam, "present_backbone", lambda network: SimpleNamespace(operations=[a_layer]))
    monkeypatch.setattr(
        grad_cam, "class_activation", lambda network, crops, tabular, layer: heat[network] * tabular[:, None, None]
    )
    a_layer = SimpleNamespace(name="conv3", output=np.zeros((1, 4, 4, 8)))
    chosen = pd.DataFrame({"fold": [1, HOLDOUT, 0, HOLDOUT], "tabular": [1.0, 1.0, 1.0, 0.0]})
    best, other = ({"weights": names, "settings": {"image_size": 32}} for names in (["one", "two"], ["three", "four"]))
    manifest = {"network": {"networks": {"best": best, "other": other}}}
    maps, where = heat_maps(chosen, np.zeros((4, 2, 2, 3), dtype="uint8"), tmp_path, manifest)
    assert where == "conv3, 4 x 4 cells"
    np.testing.assert_allclose(maps[0], heat["two"])
    np.testing.assert_allclose(maps[2], heat["one"])
    np.testing.assert_allclose(maps[1], [[2 / 3, 0], [1 / 3, 1]], rtol=1e-6)
    assert not maps[3].any()  # without heat of any network


# Bad input


def test_bad_options_and_folders_are_refused(tmp_path):
    where = ["--data", str(tmp_path), "--artifacts", str(tmp_path), "--out", str(tmp_path / "out")]
    for lesions in ("0", "301"):
        with pytest.raises(InputError, match=f"--lesions.*{lesions}.*1 to 300"):
            main([*where, "--lesions", lesions])
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(InputError, match=r"has no networks; run: python -m train\.fusion"):
        main(where)
    assert not (tmp_path / "out").exists()


def test_a_lesion_without_an_image_or_a_network_is_refused(synthetic_data, metadata, capsys):
    store = ImageStore(synthetic_data / "train-image.hdf5")
    with pytest.raises(InputError, match=r"has no readable image of ISIC_none, which .* \(1 such lesions in all\); give"):
        read_crops(store, [metadata[ID][0], "ISIC_none"], 32)
    assert "1 of 2 lesions" in capsys.readouterr().out
    chosen = pd.DataFrame({"fold": [0, 2], "tabular": [0.0, 0.0]})
    with pytest.raises(InputError, match="has lesions of fold 2 and the manifest no network of it"):
        heat_maps(
            chosen, crops_of(32, 2), synthetic_data, {"network": {"networks": {"fusion": {"weights": ["one", "two"]}}}}
        )
