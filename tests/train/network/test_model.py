import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from small_network import a_network, small_backbone

from inference.backbones import PREPROCESSED
from inference.network import NetworkConfig, build_network
from train.network.augmentation import DRAWS
from train.network.config import UNFREEZE
from train.network.model import (
    augmented,
    distribution,
    input_names,
    precision,
    starting_network,
    unfreeze,
    with_groups,
    with_source,
)
from utils import InputError

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def resnet():
    """The network with ResNet50, untrained; its weights stay as they are."""
    return build_network(NetworkConfig(32))


def some_batch(archive=(0, 1, 0, 1)):
    """Four random crops, those of an archive where ``archive`` is 1."""
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    draws = rng.random((4, DRAWS)).astype("float32")
    beside = {"tabular": np.full((4, 1), -2.0, "float32"), "archive": np.array(archive, "float32")[:, None]}
    return {"crop": crops, "draws": draws} | beside


# Trainable stages


@pytest.mark.parametrize("choice", sorted(UNFREEZE))
def test_only_the_chosen_stages_are_trainable(resnet, choice):
    unfreeze(resnet, choice, from_scratch=False)
    trainable = {layer.name for layer in resnet.get_layer("resnet50").layers if layer.trainable and layer.weights}
    stages = {name.split("_")[0] for name in trainable}
    expected = {"none": set(), "conv5": {"conv5"}, "conv4": {"conv4", "conv5"}}
    assert stages == expected.get(choice, {"conv1", "conv2", "conv3", "conv4", "conv5"})


def test_frozen_batch_norms_keep_their_statistics():
    network, batch = a_network(), some_batch()
    inputs = {name: batch[name] for name in ("crop", "tabular")}
    norm = network.get_layer("resnet50").get_layer("conv5_bn")
    before = norm.moving_mean.numpy().copy()
    unfreeze(network, "none", from_scratch=False)
    network(inputs, training=True)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), before)
    unfreeze(network, "conv5", from_scratch=False)
    network(inputs, training=True)
    assert np.abs(norm.moving_mean.numpy() - before).max() > 0
    unfreeze(network, "conv5", from_scratch=False, batch_norm="frozen")
    assert not norm.trainable
    assert network.get_layer("resnet50").get_layer("conv5_conv").trainable


def test_over_several_devices_batch_norms_use_the_whole_batch(resnet):
    norm = resnet.get_layer("resnet50").get_layer("conv5_block3_3_bn")
    unfreeze(resnet, "all", from_scratch=True, replicas=2)
    assert norm.synchronized
    assert norm.momentum == 0.9
    unfreeze(resnet, "all", from_scratch=True, replicas=1)
    assert not norm.synchronized


# The model that is fitted


def test_before_the_first_step_the_fitted_model_is_the_tabular_model(resnet):
    model, batch = augmented(resnet), some_batch()
    inputs = {name: batch[name] for name in ("crop", "tabular", "draws")}
    np.testing.assert_array_equal(model(inputs, training=True).numpy(), batch["tabular"])


def test_the_source_moves_the_logits_outside_of_the_network_only(resnet):
    import keras

    offset = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="archive_offset")
    model, batch = with_source(augmented(resnet), offset), some_batch()
    np.testing.assert_array_equal(model(batch).numpy(), batch["tabular"])  # it starts at zero
    model.get_layer("archive_offset").set_weights([np.array([[1.5]], "float32")])
    np.testing.assert_allclose(model(batch).numpy()[:, 0], [-2.0, -0.5, -2.0, -0.5])
    inputs = {name: batch[name] for name in ("crop", "tabular")}
    np.testing.assert_array_equal(resnet(inputs).numpy(), batch["tabular"])
    assert "archive" not in {tensor.name for tensor in resnet.inputs}


@pytest.mark.parametrize("settings", [{}, {"inputs": ("crop",), "head_units": 0, "feature_dropout": 0.5}])
def test_the_second_head_is_on_the_features_of_the_crop(settings):
    import keras

    with mock.patch("keras.applications.ResNet50", small_backbone):
        network = build_network(NetworkConfig(32, **settings))
    head, batch = keras.layers.Dense(3, name="groups"), some_batch()
    offset = keras.layers.Dense(4, use_bias=False, kernel_initializer="zeros", name="archive_offset")
    model = with_source(augmented(with_groups(network, head), "none"), offset)
    batch = {name: batch[name] for name in input_names(model)} | {"archive": np.zeros((4, 1), "float32")}
    found = model(batch).numpy()
    inputs = {name: batch[name] for name in input_names(network)}
    np.testing.assert_allclose(found[:, :1], network(inputs).numpy(), atol=1e-6)
    backbone, centre = network.get_layer("resnet50"), network.get_layer(PREPROCESSED).output
    features = backbone(keras.Model(network.inputs, centre)(inputs))
    np.testing.assert_allclose(found[:, 1:], head(features).numpy(), atol=1e-5)
    assert head.kernel.shape == (4, 3)  # the tabular logit is no feature
    model.get_layer("archive_offset").set_weights([np.array([[1.0, 2.0, 3.0, 4.0]], "float32")])
    moved = model(batch | {"archive": np.ones((4, 1), "float32")}).numpy()
    np.testing.assert_allclose(moved - found, np.tile([1.0, 2.0, 3.0, 4.0], (4, 1)), atol=1e-5)


# Initial weights


def test_weights_that_cannot_be_loaded_name_the_other_choices(tmp_path):
    config = NetworkConfig(32)
    with pytest.raises(InputError, match=r"absent\.h5.* --weights none"):
        starting_network(config, str(tmp_path / "absent.h5"))
    (tmp_path / "broken.weights.h5").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"broken\.weights\.h5.* --weights none"):
        starting_network(config, str(tmp_path / "broken.weights.h5"))


def test_imagenet_without_internet_names_the_other_choices(monkeypatch):
    def no_internet(*_, **__):
        raise OSError("URL fetch failure: name resolution")

    monkeypatch.setattr("keras.src.applications.resnet.file_utils.get_file", no_internet)
    with pytest.raises(InputError, match=r"'imagenet'.*URL fetch failure.*--weights PATH .* or --weights none"):
        starting_network(NetworkConfig(32), "imagenet")


# Hardware

#: Trains the same network on one and on two devices, and prints both loss curves. A process of its own, because devices
#: are made once per process.
TWO_DEVICES = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from small_network import UnchangedImages, a_network
from train.network import fit
from train.network.augmentation import DRAWS
from train.network.batches import TrainingData
from train.network.config import TrainingConfig
from train.network.model import distribution
rng = np.random.default_rng(0)
inputs = {"crop": rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), "draws": rng.random((16, DRAWS)).astype("f4")}
inputs["tabular"] = rng.normal(-2, 1, (16, 1)).astype("f4")
labels = (rng.random((16, 1)) < 0.5).astype("f4")
fit.training_batches = lambda *_: tf.data.Dataset.from_tensor_slices((inputs, labels, np.ones(16, "f4"))).batch(8)
data = TrainingData(UnchangedImages(), None, {}, None, None, steps=2, image_size=32, batch_size=8)
config = TrainingConfig(weights="none", ema=0.5, augmentation="light", mixup=0.0)
plan = fit.Plan("test", [fit.Phase("stages", "all", 0, 2, 1e-2)], fit.corrected_loss(0.3), config)
for devices in (None, ["CPU:0", "CPU:1"]):
    strategy = distribution(devices)
    with strategy.scope():
        network = a_network(dropout=0.0)
    history = fit.fit(network, data, plan)
    print("losses", strategy.num_replicas_in_sync, *[record["loss"] for record in history])
"""


def test_two_devices_give_the_losses_of_one():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers")))}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    curves = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("losses")]
    assert [curve[0] for curve in curves] == ["1", "2"]
    one, two = ([float(loss) for loss in curve[1:]] for curve in curves)
    assert len(one) == 2
    assert one[0] != one[1]
    assert one == pytest.approx(two, rel=1e-4)


def test_a_single_device_needs_no_strategy():
    assert distribution().num_replicas_in_sync == 1
    assert distribution(["CPU:0"]).num_replicas_in_sync == 1


def test_precision_holds_inside_only_and_keeps_head_and_output_in_float32():
    import keras

    with precision("mixed_float16") as name:
        assert name == "mixed_float16"
        network = build_network(NetworkConfig(32))
    assert keras.config.dtype_policy().name == "float32"
    assert network.get_layer("resnet50").get_layer("conv2_block1_1_conv").compute_dtype == "float16"
    for layer in ("standardised_tabular_logit", "crop_and_tabular_logit", "head", "correction", "final_logits"):
        assert network.get_layer(layer).compute_dtype == "float32"
    assert network.output.dtype == "float32"
    with precision("auto") as name:
        assert name == "float32"  # no GPU where the tests run
