import numpy as np
import pytest
from small_network import a_network

from inference.network import NetworkConfig, build_network
from train.network.augmentation import DRAWS
from train.network.checkpoint import Checkpoint
from train.network.fit import (
    UNFREEZE,
    Phase,
    Plan,
    augmented,
    fit,
    phases_of,
    shifted_loss,
    starting_network,
    unfreeze,
    with_source,
)
from utils import InputError


def layers_that_learn(network):
    return {layer.name for layer in network.get_layer("resnet50").layers if layer.trainable and layer.weights}


@pytest.mark.parametrize("choice", sorted(UNFREEZE))
def test_only_the_chosen_stages_learn(choice):
    network = build_network(NetworkConfig(32))
    unfreeze(network, choice, from_scratch=False)
    stages = {name.split("_")[0] for name in layers_that_learn(network)}
    expected = {"none": set(), "conv5": {"conv5"}, "conv4": {"conv4", "conv5"}}
    assert stages == expected.get(choice, {"conv1", "conv2", "conv3", "conv4", "conv5"})


def test_frozen_batch_norms_keep_their_statistics():
    network = build_network(NetworkConfig(32))
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
    network = build_network(NetworkConfig(32))
    model = augmented(network)
    tabular = np.array([[-4.0], [0.5]], "float32")
    crops = np.random.default_rng(1).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    draws = np.random.default_rng(2).random((2, DRAWS)).astype("float32")
    asked = {"crop": crops, "tabular": tabular, "draws": draws}
    np.testing.assert_array_equal(model(asked, training=True).numpy(), tabular)


def test_over_several_devices_batch_norms_see_the_whole_batch():
    network = build_network(NetworkConfig(32))
    norm = network.get_layer("resnet50").get_layer("conv5_block3_3_bn")
    unfreeze(network, "all", from_scratch=True, replicas=2)
    assert norm.synchronized
    assert norm.momentum == 0.9
    unfreeze(network, "all", from_scratch=True, replicas=1)
    assert not norm.synchronized


def test_the_loss_counts_the_sampling_of_benign_lesions_in():
    labels, logits = np.array([[1.0], [0.0]], "float32"), np.array([[-1.0], [-2.0]], "float32")
    probability = 1 / (1 + np.exp(-(logits + 1.5)))
    expected = -np.log(np.where(labels == 1, probability, 1 - probability))[:, 0]
    np.testing.assert_allclose(shifted_loss(1.5)(labels, logits).numpy(), expected, rtol=1e-5)


def test_labels_are_smoothed_towards_both_sides():
    labels, logits = np.array([[1.0], [0.0]], "float32"), np.array([[-1.0], [-2.0]], "float32")
    probability, soft = 1 / (1 + np.exp(-logits)), np.array([[0.95], [0.05]])
    expected = -(soft * np.log(probability) + (1 - soft) * np.log(1 - probability))[:, 0]
    np.testing.assert_allclose(shifted_loss(0.0, smoothing=0.1)(labels, logits).numpy(), expected, rtol=1e-5)


def test_the_focal_loss_turns_to_the_hard_ones():
    labels, logits = np.array([[1.0], [1.0], [0.0]], "float32"), np.array([[3.0], [-3.0], [-1.0]], "float32")
    right = 1 / (1 + np.exp(-np.where(labels == 1, logits, -logits)))
    expected = (-np.log(right) * (1 - right) ** 2)[:, 0]
    np.testing.assert_allclose(shifted_loss(0.0, gamma=2.0)(labels, logits).numpy(), expected, rtol=1e-4)


def some_batch(rng, archive):
    """Four random crops, half of them from an archive and malignant by ``archive``."""
    crops = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    draws = rng.random((4, DRAWS)).astype("float32")
    beside = {"tabular": np.full((4, 1), -2.0, "float32"), "archive": np.array(archive, "float32")[:, None]}
    return {"crop": crops, "draws": draws} | beside


def test_the_source_moves_the_logits_outside_of_the_network_only():
    network = build_network(NetworkConfig(32))
    model = with_source(augmented(network))
    batch = some_batch(np.random.default_rng(0), [0, 1, 0, 1])
    np.testing.assert_array_equal(model(batch).numpy(), batch["tabular"])  # it starts at nothing
    model.get_layer("archive_offset").set_weights([np.array([[1.5]], "float32")])
    np.testing.assert_allclose(model(batch).numpy()[:, 0], [-2.0, -0.5, -2.0, -0.5])
    asked = {name: batch[name] for name in ("crop", "tabular")}
    np.testing.assert_array_equal(network(asked).numpy(), batch["tabular"])
    assert "archive" not in {tensor.name for tensor in network.inputs}


# The loop


def some_batches(count=2):
    """Two batches of four crops, over and over, whatever the epoch."""
    import tensorflow as tf

    rng = np.random.default_rng(1)
    parts = [some_batch(rng, [0, 1, 0, 1]) for _ in range(count)]
    inputs = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    labels = np.tile(np.array([[0.0], [1.0], [0.0], [1.0]], "float32"), (count, 1, 1))
    return tf.data.Dataset.from_tensor_slices((inputs, labels, np.ones((count, 4), "float32")))


def a_plan(phases, **more):
    return Plan(phases, steps=2, batch_size=4, from_scratch=False, loss=shifted_loss(0.0), **more)


def test_the_head_learns_before_the_stages():
    assert phases_of("conv5", 3, 1e-4, 2, 1e-3) == [Phase("head", "none", 0, 2, 1e-3), Phase("stages", "conv5", 2, 5, 1e-4)]
    assert phases_of("all", 3, 1e-4) == [Phase("stages", "all", 0, 3, 1e-4)]
    assert phases_of("none", 3, 1e-4, 2, 1e-3) == [Phase("head", "none", 0, 5, 1e-3)]


def test_a_training_has_the_steps_it_was_given_and_freezes_what_it_should():
    network, frozen = a_network(), []
    before = {layer.name: layer.get_weights() for layer in network.get_layer("resnet50").layers}
    head = network.get_layer("correction").get_weights()
    models = []

    def wrap(inner):
        models.append(augmented(inner))
        frozen.append(inner.get_layer("resnet50").get_layer("conv5_conv").get_weights())
        return models[-1]

    history = fit(network, wrap, lambda epoch: some_batches(), a_plan(phases_of("conv5", 1, 1e-3, 2, 1e-2)), "test")
    assert [(record["phase"], record["epoch"]) for record in history] == [("head", 1), ("head", 2), ("stages", 3)]
    assert all(np.isfinite(record["loss"]) and record["images_per_second"] > 0 for record in history)
    assert [int(model.optimizer.iterations) for model in models] == [4, 2]
    for old, new in zip(before["conv5_conv"], frozen[1], strict=True):
        np.testing.assert_array_equal(old, new)  # still as it was when the second phase began
    after = {layer.name: layer.get_weights() for layer in network.get_layer("resnet50").layers}
    moved = {name for name in after if any((x != y).any() for x, y in zip(before[name], after[name], strict=True))}
    assert {name.split("_")[0] for name in moved} == {"conv5"}
    assert np.abs(network.get_layer("correction").get_weights()[0] - head[0]).max() > 0


def test_batches_are_asked_for_from_the_epoch_that_begins():
    asked = []

    def batches_from(epoch):
        asked.append(epoch)
        return some_batches()

    fit(a_network(), augmented, batches_from, a_plan(phases_of("none", 1, 1e-3, 1, 1e-2)), "test")
    assert asked == [0]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch, stop_after):
    phases = phases_of("conv5", 2, 1e-3, 2, 1e-2)
    whole = a_network()
    history = fit(whole, augmented, lambda epoch: some_batches(), a_plan(phases, ema=0.5), "test")

    path, save = tmp_path / "checkpoint.weights.h5", Checkpoint.save

    def save_and_stop(self, model, record):
        save(self, model, record)
        if self.epochs == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoint, "save", save_and_stop)
        fit(a_network(), augmented, lambda epoch: some_batches(), a_plan(phases, ema=0.5), "test", Checkpoint(path))
    parts = a_network()
    again = fit(parts, augmented, lambda epoch: some_batches(), a_plan(phases, ema=0.5), "test", Checkpoint(path))
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    timing = ("seconds", "images_per_second")
    assert [{k: v for k, v in record.items() if k not in timing} for record in again] == [
        {k: v for k, v in record.items() if k not in timing} for record in history
    ]


# Where it starts


def test_weights_that_cannot_be_had_name_the_other_choices(tmp_path):
    settings = NetworkConfig(32)
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
