import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.network.fit import distribution, precision

ROOT = Path(__file__).resolve().parents[3]

#: Trains the same network on one and on two devices, and prints both loss curves. A process of its own, because devices
#: are made once per process.
TWO_DEVICES = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from small_network import a_network
from train.network.augmentation import DRAWS
from train.network.fit import Plan, augmented, fit, phases_of, shifted_loss
from train.network.fit import distribution
rng = np.random.default_rng(0)
inputs = {"crop": rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), "draws": rng.random((16, DRAWS)).astype("f4")}
inputs["tabular"] = rng.normal(-2, 1, (16, 1)).astype("f4")
labels = (rng.random((16, 1)) < 0.5).astype("f4")
batches = tf.data.Dataset.from_tensor_slices((inputs, labels, np.ones(16, "f4"))).batch(8)
plan = Plan(phases_of("all", 2, 1e-2), steps=2, batch_size=8, from_scratch=True, loss=shifted_loss(0.3), ema=0.5)
for devices in (None, ["CPU:0", "CPU:1"]):
    strategy = distribution(devices)
    with strategy.scope():
        network = a_network(dropout=0.0)
    history = fit(network, augmented, lambda epoch: batches, plan, "test", strategy=strategy)
    print("losses", strategy.num_replicas_in_sync, *[record["loss"] for record in history])
"""


def test_two_devices_learn_as_one_does():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
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

    from inference.network import NetworkConfig, build_network

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
