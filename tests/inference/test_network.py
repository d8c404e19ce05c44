import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from small_network import small_backbone

from inference.backbones import PREPROCESSED
from inference.network import CPU, Ensemble, NetworkConfig, build_network, load_network, load_state, network_logits
from utils import InputError

pytestmark = pytest.mark.integration

SIZE = 32
FUSION = NetworkConfig(SIZE, head_units=8, tabular_mean=-5.0, tabular_std=1.5)
IMAGE_ONLY = NetworkConfig(SIZE, head_units=8, inputs=("crop",), base_logit=-6.5)


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype="uint8")


@pytest.fixture(scope="module")
def tabular():
    return np.array([-9.1, -0.3, 2.2, -5.0, 30.7])


@pytest.fixture(scope="module")
def fusion():
    """A fusion as it starts."""
    tf.keras.utils.set_random_seed(0)
    return build_network(FUSION)


def correcting(seed):
    """A fusion whose correction is not zero."""
    tf.keras.utils.set_random_seed(seed)
    network = build_network(FUSION)
    network.get_layer("correction").set_weights([np.full((8, 1), 0.1 * seed), np.array([0.5])])
    return network


@pytest.fixture(scope="module")
def moved():
    return correcting(seed=1)


@pytest.fixture(scope="module")
def small():
    """Two fusions with a small backbone, for the tests of the ensemble."""
    with mock.patch("keras.applications.ResNet50", small_backbone):
        return [correcting(seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def folds(small, tmp_path_factory):
    """The same two as the kernel has them: one network of their shape, and the weights of each."""
    with mock.patch("keras.applications.ResNet50", small_backbone):
        network, path, states = build_network(FUSION), tmp_path_factory.mktemp("folds") / "fold.weights.h5", []
    for trained in small:
        trained.save_weights(path)
        states.append(load_state(network, path))
    return network, states


def asked(network, crops, tabular=None):
    """Logits of a network for crops and tabular logits, float32 of shape (rows,)."""
    batch = {"crop": crops} if tabular is None else {"crop": crops, "tabular": tabular[:, None].astype("float32")}
    return network(batch, training=False).numpy()[:, 0]


def batches_of(crops, positions, batch_size=2):
    return tf.data.Dataset.from_tensor_slices((np.array(positions, "int64"), crops[: len(positions)])).batch(batch_size)


def test_the_fusion_starts_exactly_as_the_tabular_model(fusion, crops, tabular):
    assert np.array_equal(asked(fusion, crops, tabular), tabular.astype("float32"))
    assert np.array_equal(asked(fusion, np.zeros_like(crops), tabular), tabular.astype("float32"))


def test_a_network_that_has_moved_looks_at_crop_and_tabular_logit(moved, crops, tabular):
    correction = asked(moved, crops, tabular) - tabular
    assert np.abs(correction).min() > 0.01
    assert not np.allclose(correction, asked(moved, crops[::-1], tabular) - tabular, atol=1e-3)
    assert not np.allclose(correction, asked(moved, crops, tabular[::-1]) - tabular[::-1], atol=1e-3)


def test_pixels_go_in_as_resnet50_was_trained_on_them(fusion, crops):
    from keras.applications.resnet50 import preprocess_input

    centred = tf.keras.Model(fusion.inputs[0], fusion.get_layer(PREPROCESSED).output)
    np.testing.assert_allclose(centred(crops), preprocess_input(crops.astype("float32")), atol=1e-4)


def test_dropout_rests_when_scoring(moved, crops, tabular):
    assert np.array_equal(asked(moved, crops, tabular), asked(moved, crops, tabular))


def test_saved_weights_come_back_as_the_same_network(moved, crops, tabular, tmp_path):
    path = tmp_path / "fusion_fold0.weights.h5"
    moved.save_weights(path)
    tf.keras.utils.set_random_seed(99)
    again = load_network(FUSION, path)
    assert np.array_equal(asked(again, crops, tabular), asked(moved, crops, tabular))


@pytest.mark.parametrize("other", [{"head_units": 16}, {"inputs": ("crop",)}])
def test_weights_of_another_network_are_refused(moved, tmp_path, other):
    path = tmp_path / "fusion_fold0.weights.h5"
    moved.save_weights(path)
    with pytest.raises(InputError, match=r"fusion_fold0\.weights\.h5 does not fit the network of the manifest") as caught:
        load_network(replace(FUSION, **other), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no HDF5 file"])
def test_weights_that_are_no_hdf5_are_refused(tmp_path, content):
    path = tmp_path / "fusion_fold0.weights.h5"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fusion_fold0\.weights\.h5 does not fit"):
        load_network(FUSION, path)


@pytest.mark.parametrize("image_size", [16, 31])
def test_too_small_an_image_is_refused(image_size):
    with pytest.raises(InputError, match=f"image size {image_size} .* at least 32"):
        build_network(NetworkConfig(image_size))


def test_the_config_comes_back_from_json():
    assert NetworkConfig.from_dict(json.loads(json.dumps(FUSION.to_dict()))) == FUSION
    assert NetworkConfig.from_dict({"image_size": SIZE}) == NetworkConfig(SIZE)
    with pytest.raises(InputError, match="train again"):
        NetworkConfig.from_dict({"image_size": SIZE, "depth": 50})


def test_the_networks_logits_are_averaged_and_positions_kept(small, folds, crops, tabular):
    positions = [4, 0, 2, 1]  # lesion 3 has no crop
    found = list(network_logits(Ensemble(*folds), batches_of(crops, positions, batch_size=3), tabular))
    assert [len(logits) for _, logits in found] == [3, 1]
    assert np.concatenate([rows for rows, _ in found]).tolist() == positions
    logits_of_each = [asked(network, crops[:4], tabular[positions]) for network in small]
    assert not np.allclose(*logits_of_each)
    logits = np.concatenate([values for _, values in found])
    assert logits.dtype == "float64"
    np.testing.assert_allclose(logits, np.mean(logits_of_each, axis=0), rtol=1e-5, atol=1e-5)


def test_the_image_only_starts_at_the_logits_of_the_prevalence(crops, tabular):
    network = build_network(IMAGE_ONLY)
    assert [tensor.name for tensor in network.inputs] == ["crop"]
    assert np.array_equal(asked(network, crops), np.full(5, -6.5, "float32"))
    ((positions, logits),) = network_logits(Ensemble(network), batches_of(crops, [2, 0]), tabular)
    assert positions.tolist() == [2, 0]
    assert logits.tolist() == [-6.5, -6.5]  # and not the tabular ones


def test_the_tabular_only_starts_as_the_tabular_model(tabular):
    network = build_network(NetworkConfig(SIZE, inputs=("tabular",), tabular_mean=-5.0, tabular_std=1.5))
    assert [tensor.name for tensor in network.inputs] == ["tabular"]
    assert network.count_params() < 1000
    column = tabular[:, None].astype("float32")
    assert np.array_equal(network({"tabular": column}, training=False).numpy(), column)


def test_no_crop_gives_no_logit(folds, tabular):
    assert list(network_logits(Ensemble(*folds), [], tabular)) == []


# The ensemble: any number of crops, several devices, too little memory


def played(ensemble, place, most):
    """Lets ``ensemble`` run out of memory on ``place`` with more than ``most`` crops."""
    function = ensemble.functions[place]

    def run(crops, column):
        if len(crops) > most:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return function(crops, column)

    ensemble.functions[place] = run


def test_neither_a_second_fold_nor_a_smaller_last_batch_is_traced_anew(folds, crops, tabular, monkeypatch):
    network, traced = folds[0], []
    call = network.stateless_call
    monkeypatch.setattr(network, "stateless_call", lambda *arguments, **rest: traced.append(1) or call(*arguments, **rest))
    ensemble = Ensemble(*folds)
    for _ in network_logits(ensemble, batches_of(crops, [0, 1, 2, 3, 4], batch_size=2), tabular):
        pass
    assert len(traced) == 1


def test_too_little_memory_halves_the_batch_until_it_fits(folds, crops, tabular):
    column, notes = tabular[:, None].astype("float32"), []
    expected = Ensemble(*folds).logits(crops, column)
    ensemble = Ensemble(*folds, note=lambda *note: notes.append(note))
    played(ensemble, CPU, most=1)
    np.testing.assert_allclose(ensemble.logits(crops, column), expected, atol=1e-5)
    assert [text.split()[0] for _, _, text in notes] == ["5", "2"]
    ensemble.logits(crops, column)
    assert len(notes) == 2  # it has learned


def test_where_not_one_crop_fits_the_cpu_goes_on(folds, crops, tabular):
    column, notes = tabular[:, None].astype("float32"), []
    ensemble = Ensemble(*folds, ["CPU:0"], lambda *note: notes.append(note))  # by another name: an accelerator
    played(ensemble, "CPU:0", most=0)
    found = ensemble.logits(crops, column)
    np.testing.assert_allclose(found, Ensemble(*folds).logits(crops, column), atol=1e-5)
    assert {reason for reason, _, _ in notes} == {"accelerator_memory"}
    assert "CPU" in notes[-1][2]
    played(ensemble, CPU, most=0)
    with pytest.raises(MemoryError, match="memory of the CPU"):
        ensemble.logits(crops, column)


def test_an_accelerator_that_fails_leaves_the_rest_to_the_cpu(folds, crops, tabular):
    column, notes = tabular[:, None].astype("float32"), []
    ensemble = Ensemble(*folds, ["CPU:0"], lambda *note: notes.append(note))  # by another name: an accelerator

    def fail(*_):
        raise tf.errors.InternalError(None, None, "failed to create cublas handle\nand more")

    ensemble.functions = {"CPU:0": fail}
    np.testing.assert_allclose(ensemble.logits(crops, column), Ensemble(*folds).logits(crops, column), atol=1e-5)
    assert notes == [
        ("accelerator_failed", 1, "InternalError: failed to create cublas handle; the CPU computes from now on.")
    ]
    ensemble.functions = {CPU: fail}
    with pytest.raises(tf.errors.InternalError):
        ensemble.logits(crops, column)


def test_weights_that_do_not_fit_on_the_accelerator_stay_on_the_cpu(folds, crops, tabular, monkeypatch):
    column, notes, function_on = tabular[:, None].astype("float32"), [], Ensemble._function_on

    def full(self, place):
        if place != CPU:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return function_on(self, place)

    monkeypatch.setattr(Ensemble, "_function_on", full)
    ensemble = Ensemble(*folds, ["GPU:0", "GPU:1"], lambda *note: notes.append(note))
    np.testing.assert_allclose(ensemble.logits(crops, column), Ensemble(*folds).logits(crops, column), atol=1e-5)
    assert [reason for reason, _, _ in notes] == ["accelerator_failed"]


#: Scores seven crops on one device and on two. A process of its own, because devices are made once per process.
TWO_DEVICES = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from inference.network import Ensemble, NetworkConfig, build_network
rng = np.random.default_rng(0)
crops, column = rng.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8), rng.normal(-2, 1, (7, 1)).astype("f4")
places = ["/device:CPU:0", "/device:CPU:1"]
from unittest import mock
from small_network import small_backbone
with mock.patch("keras.applications.ResNet50", small_backbone):
    network = build_network(NetworkConfig(32))
network.get_layer("correction").set_weights([np.full((64, 1), 0.1), np.array([0.5])])
one, two = Ensemble(network), Ensemble(network, places=places)
asked = {place: [] for place in places}
def watched(place, function):
    def run(crops, column):
        result = function(crops, column)
        assert place in result.device, result.device
        asked[place].append(len(crops))
        return result
    return run
two.functions = {place: watched(place, function) for place, function in two.functions.items()}
np.testing.assert_allclose(two.logits(crops, column), one.logits(crops, column), atol=1e-5)
assert np.ptp(one.logits(crops, column) - column[:, 0]) > 0.01
print("shared", asked[places[0]], asked[places[1]])
"""


def test_two_devices_share_a_batch():
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "helpers")])}
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "shared [4] [3]" in done.stdout
