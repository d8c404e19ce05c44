import numpy as np
import pytest
import tensorflow as tf

from evaluation import grad_cam as heat_map
from evaluation.grad_cam import STAGES, class_activation, default_layer, side_by_side, spread, tapped
from inference.network import NetworkConfig, build_network
from utils import InputError

TABULAR = np.array([-6.0, -0.5, 2.0])


def moved(image_size, inputs=("crop", "tabular")):
    """A network that has moved away from where it starts: its correction and its head let some units pass and some rest."""
    tf.keras.utils.set_random_seed(0)
    network = build_network(NetworkConfig(image_size, inputs=inputs, head_units=8, tabular_mean=-4.0, tabular_std=2.0))
    network.get_layer("correction").set_weights([np.linspace(-0.3, 0.5, 8)[:, None], np.array([0.2])])
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
    crops, opinion = crops_of(32), TABULAR[:, None].astype("float32")
    maps, derivative, logits = tapped(fusion, layer)(tf.constant(crops), tf.constant(opinion))
    expected = fusion({"crop": crops, "tabular": opinion}, training=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    assert np.abs(expected - opinion).min() > 0.01  # or the tabular logits alone would do as well
    assert (
        maps.shape == derivative.shape and maps.shape[1:3] == fusion.get_layer("resnet50").get_layer(layer).output.shape[1:3]
    )
    assert np.abs(derivative).max() > 0


def test_the_image_only_is_tapped_without_an_opinion():
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
    """A network built by hand: 4 x 4 cells see red and blue of their pixels; red raises the logits, blue lowers them."""
    layers = tf.keras.layers
    centred = tf.keras.Input((32, 32, 3))
    maps = layers.Conv2D(2, 1, strides=8, use_bias=False, name="conv3_block4_out")(centred)
    backbone = tf.keras.Model(centred, layers.GlobalAveragePooling2D()(maps), name="resnet50")
    crop = tf.keras.Input((32, 32, 3), name="crop", dtype="uint8")
    seen = backbone(layers.Rescaling(1 / 255, name="less_imagenet_mean")(crop))
    hidden = layers.Dropout(0.0, name="head_dropout")(layers.Dense(2, activation="relu", name="head")(seen))
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
    monkeypatch.setattr(heat_map, "BATCH", 2)
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


def test_a_cell_of_resnet50_looks_at_the_corner_of_its_share(wide):
    backbone = wide.get_layer("resnet50")
    maps = tf.keras.Model(backbone.input, backbone.get_layer("conv2_block3_out").output)
    crops = tf.constant(crops_of(64) - 128.0, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(crops)
        cell = tf.reduce_sum(maps(crops, training=False)[:, 8, 8] ** 2)
    share = np.abs(tape.gradient(cell, crops)).sum(axis=(0, 3))
    centre = [share.sum(axis=axis) @ np.arange(64) / share.sum() for axis in (0, 1)]
    np.testing.assert_allclose(centre, 8 * 4, atol=0.7)  # and not 33.5, the middle of pixels 32 to 35


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


def test_what_cannot_be_looked_at_is_refused_in_one_sentence(fusion):
    crops = crops_of(32)
    with pytest.raises(InputError, match=r"no feature maps 'conv9_out'; choose one of conv5_block3_out, "):
        class_activation(fusion, crops, TABULAR, "conv9_out")
    with pytest.raises(InputError, match="no feature maps 'avg_pool'"):
        class_activation(fusion, crops, TABULAR, "avg_pool")
    with pytest.raises(InputError, match=r"have the shape \(3, 64, 64, 3\), the network sees \(rows, 32, 32, 3\)"):
        class_activation(fusion, crops_of(64), TABULAR)
    with pytest.raises(InputError, match=r"3 crops came with tabular logits of shape \(2,\)"):
        class_activation(fusion, crops, TABULAR[:2])
    with pytest.raises(InputError, match=r"3 crops came with tabular logits of shape \(\)"):
        class_activation(fusion, crops, None)
    with pytest.raises(InputError, match="the network 'tabular_only' sees tabular and no crop"):
        class_activation(build_network(NetworkConfig(32, inputs=("tabular",))), crops, TABULAR)
