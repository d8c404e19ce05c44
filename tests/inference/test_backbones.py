from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from small_network import a_network

from inference.backbones import (
    APPLICATIONS,
    BACKBONES,
    PREPROCESSED,
    backbone_layer_name,
    backbone_of,
    efficientnet_lite,
    rounded_filters,
    stage_of,
)
from inference.files import sha256_of
from inference.network import Ensemble, NetworkConfig, build_network, load_network, view
from train.network.config import UNFREEZE
from train.network.model import unfreeze
from utils import InputError

pytestmark = pytest.mark.integration
LITE = NetworkConfig(32, backbone="efficientnet-lite0", head_units=0, feature_dropout=0.5)


def trained(config):
    """A network with random weights whose correction is not zero."""
    tf.keras.utils.set_random_seed(0)
    network = build_network(config)
    last = network.get_layer("correction")
    last.set_weights([np.random.default_rng(0).normal(size=last.kernel.shape), np.array([0.1])])
    return network


# The published numbers of weights with 1,000 classes (4.7, 5.4 and 6.1 million): trainable, and the batch norms' statistics.
@pytest.mark.parametrize(("name", "weights"), [("lite0", 4694024), ("lite1", 5470344), ("lite2", 6150168)])
def test_the_networks_have_the_published_size(name, weights):
    assert efficientnet_lite(f"efficientnet-{name}", (64, 64, 3), classes=1000).count_params() == weights


def test_filters_are_rounded_as_in_efficientnet():
    assert [rounded_filters(filters, 1.1) for filters in (16, 24, 40, 80, 112, 192, 320)] == [16, 24, 48, 88, 120, 208, 352]
    assert [rounded_filters(filters, 1.0) for filters in (16, 24, 320)] == [16, 24, 320]
    assert rounded_filters(10, 1.1) == 16  # 8 would be more than a tenth less


def test_layers_are_named_by_resolution():
    backbone = efficientnet_lite("efficientnet-lite0", (64, 64, 3))
    sizes = {f"conv{level}": 64 >> level for level in range(1, 6)}
    for layer in backbone.layers:
        if len(layer.output.shape) == 4 and layer.name.startswith("conv") and "expand" not in layer.name:
            assert layer.output.shape[1] == sizes[layer.name[:5]], layer.name
    assert backbone.output.shape == (None, 1280)


def test_pixels_go_in_as_the_weights_expect_them():
    network = build_network(LITE)
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    centred = tf.keras.Model(network.inputs[0], network.get_layer(PREPROCESSED).output)
    np.testing.assert_allclose(centred(crops), (crops.astype("float32") - 127) / 128, atol=1e-6)


def preprocessing_of_keras(name, pixels):
    """Pixels as ``keras.applications`` gives them to a backbone's first convolution."""
    applications = tf.keras.applications
    if name in ("resnet50", "resnet50v2"):
        return {"resnet50": applications.resnet50, "resnet50v2": applications.resnet_v2}[name].preprocess_input(pixels)
    if name == "efficientnetb0":  # its layers hold these numbers in the file of ImageNet weights only
        return applications.imagenet_utils.preprocess_input(pixels, mode="torch")
    model = getattr(applications, APPLICATIONS[name].function)(include_top=False, weights=None, input_shape=(32, 32, 3))
    first = "stem_conv" if name == "efficientnetv2b0" else "convnext_tiny_stem"
    return tf.keras.Model(model.input, model.get_layer(first).input)(pixels).numpy()


@pytest.fixture(params=APPLICATIONS)
def network(request):
    """A network with each backbone of ``keras.applications``."""
    return trained(NetworkConfig(32, backbone=request.param))


def test_a_backbone_of_keras_gets_its_pixels_and_returns_with_its_weights_and_learns(network, tmp_path):
    name = next(name for name, known in APPLICATIONS.items() if known.name == backbone_of(network).name)
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    centred = tf.keras.Model(network.inputs[0], network.get_layer(PREPROCESSED).output)(crops).numpy()
    expected = preprocessing_of_keras(name, crops.astype("float32"))
    np.testing.assert_allclose(centred, expected, rtol=1e-5, atol=1e-5)

    # Others were built in this process: names that Keras counts would differ.
    paths = [tmp_path / f"{part}.weights.h5" for part in ("first", "second")]
    network.save_weights(paths[0])
    again = load_network(NetworkConfig(32, backbone=name), paths[0])
    again.save_weights(paths[1])
    assert sha256_of(paths[0]) == sha256_of(paths[1])
    batch = {"crop": crops, "tabular": np.full((2, 1), -5.0, "float32")}
    np.testing.assert_array_equal(again(batch, training=False), network(batch, training=False))

    backbone, learned = backbone_of(network), {}
    assert all(stage_of(backbone, layer.name) for layer in backbone.layers if layer.weights)
    for choice in UNFREEZE:
        unfreeze(network, choice, from_scratch=False)
        learned[choice] = len(backbone.trainable_variables)
    assert 0 == learned["none"] < learned["conv5"] < learned["conv4"] < learned["all"]
    with tf.GradientTape() as tape:
        logits = network(batch, training=False)
    variables = [variable.value for variable in backbone.trainable_variables]
    assert all(gradient is not None for gradient in tape.gradient(logits, variables))


def test_weights_of_keras_and_of_this_project_start_a_backbone(tmp_path):
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    whole = tf.keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    with h5py.File(tmp_path / "efficientnetb0_notop.h5", "w") as file:
        save_weights_to_hdf5_group(file, whole)
    config = NetworkConfig(32, backbone="efficientnetb0")
    first = backbone_of(build_network(config, str(tmp_path / "efficientnetb0_notop.h5")))
    np.testing.assert_array_equal(first.get_layer("stem_conv").kernel, whole.get_layer("stem_conv").kernel)
    np.testing.assert_array_equal(first.get_layer("top_conv").kernel, whole.get_layer("top_conv").kernel)
    first.save_weights(tmp_path / "own.weights.h5")
    second = backbone_of(build_network(config, str(tmp_path / "own.weights.h5")))
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_network_knows_its_backbone():
    assert backbone_of(build_network(LITE)).name == backbone_layer_name("efficientnet-lite0") == "efficientnet_lite0"
    assert backbone_of(build_network(NetworkConfig(32, ("tabular",)))) is None


def test_saved_weights_come_back_as_the_same_network(tmp_path):
    network = trained(LITE)
    network.save_weights(tmp_path / "fusion_fold0.weights.h5")
    crops = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    batch = {"crop": crops, "tabular": np.full((2, 1), -5.0, "float32")}
    again = load_network(NetworkConfig.from_dict(LITE.to_dict()), tmp_path / "fusion_fold0.weights.h5")
    np.testing.assert_array_equal(again(batch, training=False), network(batch, training=False))
    with pytest.raises(InputError, match="does not fit the network of the manifest"):
        load_network(NetworkConfig(32, head_units=0), tmp_path / "fusion_fold0.weights.h5")


@pytest.mark.parametrize("settings", [{"backbone": "efficientnet-b9"}, {"views": 9}, {"views": 0}, {"views": "all"}])
def test_settings_that_this_version_does_not_know_are_refused(settings):
    with pytest.raises(InputError, match="train again"):
        NetworkConfig.from_dict({"image_size": 32} | settings)


def test_views_are_the_eight_symmetries_and_their_logits_are_averaged():
    crops = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    views = [view(tf.constant(crops), number).numpy() for number in range(8)]
    assert len({each.tobytes() for each in views}) == 8
    np.testing.assert_array_equal(views[0], crops)
    for each in views:  # a symmetry keeps the centre's four pixels and the sum
        assert each.sum() == crops.sum()
    network, tabular = a_network(dropout=0.0), np.full((2, 1), -5.0, "float32")
    alone = Ensemble(network)
    expected = np.mean([alone.logits(each, tabular) for each in views[:4]], axis=0)
    np.testing.assert_allclose(Ensemble(network, views=4).logits(crops, tabular), expected, atol=1e-4)
    assert np.abs(alone.logits(crops, tabular) - expected).max() > 1e-3
    halved = Ensemble(network, views=8)
    assert halved.halve_views() and halved.views == 4
    np.testing.assert_allclose(halved.logits(crops, tabular), expected, atol=1e-4)
    assert not alone.halve_views()


def test_the_kernel_has_the_backbones():
    kernel = (Path(__file__).parents[2] / "kernel.py").read_text()
    assert all(f'"{name}"' in kernel for name in BACKBONES)
