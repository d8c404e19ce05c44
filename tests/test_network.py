import json

import numpy as np
import pytest
import tensorflow as tf

from inference.files import InputError
from inference.network import build_network, load_network, network_log_odds

SIZE = 32
FUSION = {"image_size": SIZE, "head_units": 8, "tabular_mean": -5.0, "tabular_std": 1.5}
ALONE = {"image_size": SIZE, "head_units": 8, "inputs": ["crop"], "base_log_odds": -6.5}


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
    return build_network(**FUSION)


@pytest.fixture(scope="module")
def moved():
    """Two fusions that have moved away from the tabular score."""
    networks = []
    for seed in (1, 2):
        tf.keras.utils.set_random_seed(seed)
        network = build_network(**FUSION)
        network.get_layer("correction").set_weights([np.full((8, 1), 0.1 * seed), np.array([0.5])])
        networks.append(network)
    return networks


def asked(network, crops, tabular=None):
    """Log-odds of a network for crops and tabular log-odds, float32 of shape (rows,)."""
    batch = {"crop": crops} if tabular is None else {"crop": crops, "tabular": tabular[:, None].astype("float32")}
    return network(batch, training=False).numpy()[:, 0]


def batches_of(crops, positions, batch_size=2):
    return tf.data.Dataset.from_tensor_slices((np.array(positions, "int64"), crops[: len(positions)])).batch(batch_size)


def test_the_fusion_starts_exactly_as_the_tabular_model(fusion, crops, tabular):
    assert np.array_equal(asked(fusion, crops, tabular), tabular.astype("float32"))
    assert np.array_equal(asked(fusion, np.zeros_like(crops), tabular), tabular.astype("float32"))


def test_a_network_that_has_moved_looks_at_crop_and_opinion(moved, crops, tabular):
    correction = asked(moved[0], crops, tabular) - tabular
    assert np.abs(correction).min() > 0.01
    assert not np.allclose(correction, asked(moved[0], crops[::-1], tabular) - tabular, atol=1e-3)
    assert not np.allclose(correction, asked(moved[0], crops, tabular[::-1]) - tabular[::-1], atol=1e-3)


def test_pixels_go_in_as_resnet50_was_trained_on_them(fusion, crops):
    from keras.applications.resnet50 import preprocess_input

    centred = tf.keras.Model(fusion.inputs[0], fusion.get_layer("less_imagenet_mean").output)
    np.testing.assert_allclose(centred(crops), preprocess_input(crops.astype("float32")), atol=1e-4)


def test_dropout_rests_when_scoring(moved, crops, tabular):
    assert np.array_equal(asked(moved[0], crops, tabular), asked(moved[0], crops, tabular))


def test_saved_weights_come_back_as_the_same_network(moved, crops, tabular, tmp_path):
    path = tmp_path / "fusion_fold0.weights.h5"
    moved[0].save_weights(path)
    settings = json.loads(json.dumps(FUSION | {"inputs": ("crop", "tabular")}))  # as the manifest keeps them
    tf.keras.utils.set_random_seed(99)
    again = load_network(settings, path)
    assert np.array_equal(asked(again, crops, tabular), asked(moved[0], crops, tabular))


@pytest.mark.parametrize("other", [{"head_units": 16}, {"inputs": ["crop"]}])
def test_weights_of_another_network_are_refused(moved, tmp_path, other):
    path = tmp_path / "fusion_fold0.weights.h5"
    moved[0].save_weights(path)
    with pytest.raises(InputError, match=r"fusion_fold0\.weights\.h5 does not fit the network of the manifest") as caught:
        load_network(FUSION | other, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no HDF5 file"])
def test_weights_that_are_no_hdf5_are_refused(tmp_path, content):
    path = tmp_path / "fusion_fold0.weights.h5"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fusion_fold0\.weights\.h5 does not fit"):
        load_network(FUSION, path)


@pytest.mark.parametrize("image_size", [16, 31])
def test_too_small_an_image_is_refused(image_size):
    with pytest.raises(InputError, match=f"image size {image_size} is too small for ResNet50; use at least 32"):
        build_network(image_size)


def test_the_networks_opinions_are_averaged_and_positions_kept(moved, crops, tabular):
    positions = [4, 0, 2, 1]  # lesion 3 has no crop
    found = list(network_log_odds(moved, batches_of(crops, positions, batch_size=3), tabular))
    assert [len(log_odds) for _, log_odds in found] == [3, 1]
    assert np.concatenate([rows for rows, _ in found]).tolist() == positions
    opinions = [asked(network, crops[:4], tabular[positions]) for network in moved]
    assert not np.allclose(*opinions)
    log_odds = np.concatenate([values for _, values in found])
    assert log_odds.dtype == "float64"
    np.testing.assert_allclose(log_odds, np.mean(opinions, axis=0), rtol=1e-5, atol=1e-5)


def test_the_image_alone_starts_at_the_log_odds_of_the_prevalence(crops, tabular):
    network = build_network(**ALONE)
    assert [tensor.name for tensor in network.inputs] == ["crop"]
    assert np.array_equal(asked(network, crops), np.full(5, -6.5, "float32"))
    ((positions, log_odds),) = network_log_odds([network], batches_of(crops, [2, 0]), tabular)
    assert positions.tolist() == [2, 0]
    assert log_odds.tolist() == [-6.5, -6.5]  # and not the tabular ones


def test_the_opinion_alone_starts_as_the_tabular_model(tabular):
    network = build_network(SIZE, inputs=("tabular",), tabular_mean=-5.0, tabular_std=1.5)
    assert [tensor.name for tensor in network.inputs] == ["tabular"]
    assert network.count_params() < 1000
    opinion = tabular[:, None].astype("float32")
    assert np.array_equal(network({"tabular": opinion}, training=False).numpy(), opinion)


def test_no_crop_no_opinion(moved, tabular):
    assert list(network_log_odds(moved, [], tabular)) == []
