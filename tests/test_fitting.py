import numpy as np
import pytest

from inference.files import InputError
from inference.network import build_network
from train.fitting import UNFREEZE, augmented, fit, shifted_loss, starting_network, unfreeze, with_source


def layers_that_learn(network):
    return {layer.name for layer in network.get_layer("resnet50").layers if layer.trainable and layer.weights}


@pytest.mark.parametrize("choice", sorted(UNFREEZE))
def test_only_the_chosen_stages_learn(choice):
    network = build_network(32)
    unfreeze(network, choice, from_scratch=False)
    stages = {name.split("_")[0] for name in layers_that_learn(network)}
    expected = {"none": set(), "conv5": {"conv5"}, "conv4": {"conv4", "conv5"}}
    assert stages == expected.get(choice, {"conv1", "conv2", "conv3", "conv4", "conv5"})


def test_frozen_batch_norms_keep_their_statistics():
    network = build_network(32)
    unfreeze(network, "none", from_scratch=False)
    norm = network.get_layer("resnet50").get_layer("conv5_block3_3_bn")
    before = norm.moving_mean.numpy().copy()
    crops = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    network({"crop": crops, "tabular": np.zeros((4, 1), "float32")}, training=True)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), before)
    unfreeze(network, "conv5", from_scratch=False)
    network({"crop": crops, "tabular": np.zeros((4, 1), "float32")}, training=True)
    assert np.abs(norm.moving_mean.numpy() - before).max() > 0


def test_before_the_first_step_the_trained_model_is_the_tabular_model():
    network = build_network(32)
    model = augmented(network)
    tabular = np.array([[-4.0], [0.5]], "float32")
    crops = np.random.default_rng(1).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(model({"crop": crops, "tabular": tabular}, training=True).numpy(), tabular)


def test_the_loss_counts_the_sampling_of_benign_lesions_in():
    labels, log_odds = np.array([[1.0], [0.0]], "float32"), np.array([[-1.0], [-2.0]], "float32")
    probability = 1 / (1 + np.exp(-(log_odds + 1.5)))
    expected = -np.log(np.where(labels == 1, probability, 1 - probability))[:, 0]
    np.testing.assert_allclose(shifted_loss(1.5)(labels, log_odds).numpy(), expected, rtol=1e-5)


def some_batch(rng, archive):
    """Four random crops, half of them from an archive and malignant by ``archive``."""
    crops = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    return {"crop": crops, "tabular": np.full((4, 1), -2.0, "float32"), "archive": np.array(archive, "float32")[:, None]}


def test_the_source_moves_the_log_odds_outside_of_the_network_only():
    network = build_network(32)
    model = with_source(augmented(network))
    batch = some_batch(np.random.default_rng(0), [0, 1, 0, 1])
    np.testing.assert_array_equal(model(batch).numpy(), batch["tabular"])  # it starts at nothing
    model.get_layer("archive_offset").set_weights([np.array([[1.5]], "float32")])
    np.testing.assert_allclose(model(batch).numpy()[:, 0], [-2.0, -0.5, -2.0, -0.5])
    asked = {name: batch[name] for name in ("crop", "tabular")}
    np.testing.assert_array_equal(network(asked).numpy(), batch["tabular"])
    assert "archive" not in {tensor.name for tensor in network.inputs}


def test_fitting_takes_the_inputs_it_needs_and_the_steps_it_was_given(eager):
    import tensorflow as tf

    rng = np.random.default_rng(1)
    batch, labels = some_batch(rng, [0, 1, 0, 1]), np.array([[0.0], [1.0], [0.0], [1.0]], "float32")
    network = build_network(32)
    unfreeze(network, "none", from_scratch=False)
    before = [weight.numpy().copy() for weight in network.get_layer("correction").weights]
    frozen = network.get_layer("resnet50").get_weights()
    dataset = tf.data.Dataset.from_tensors((batch, labels))
    model = augmented(network)
    fit(model, dataset, shifted_loss(0.0), steps=2, epochs=3, learning_rate=0.01, description="test")
    assert int(model.optimizer.iterations) == 6
    after = network.get_layer("correction").weights
    assert all(np.abs(new.numpy() - old).max() > 0 for new, old in zip(after, before, strict=True))
    for old, new in zip(frozen, network.get_layer("resnet50").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


# Where it starts


def test_weights_that_cannot_be_had_name_the_other_choices(tmp_path):
    settings = {"image_size": 32}
    with pytest.raises(InputError, match=r"is no file; give --weights PATH .* or --weights none"):
        starting_network(settings, str(tmp_path / "absent.h5"))
    (tmp_path / "broken.weights.h5").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"cannot be had .* or --weights none"):
        starting_network(settings, str(tmp_path / "broken.weights.h5"))


def test_imagenet_without_a_network_says_what_to_do(monkeypatch):
    def no_network(*_, **__):
        raise OSError("URL fetch failure: name resolution")

    monkeypatch.setattr("keras.src.applications.resnet.file_utils.get_file", no_network)
    with pytest.raises(
        InputError, match=r"'imagenet' cannot be had \(URL fetch failure.*--weights PATH .* or --weights none"
    ):
        starting_network({"image_size": 32}, "imagenet")
