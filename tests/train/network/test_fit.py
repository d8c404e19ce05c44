from dataclasses import replace

import numpy as np
import pytest
from small_network import UnchangedImages, a_network

from inference.backbones import backbone_of
from inference.network import NetworkConfig, build_network
from train.network.augmentation import DRAWS
from train.network.batches import TrainingData
from train.network.checkpoint import Checkpoint
from train.network.config import TrainingConfig
from train.network.fit import (
    WARM_UP,
    Phase,
    Plan,
    adamw,
    corrected_loss,
    fit,
    phases_of,
    refuse_idle,
    seed_dropout,
    tensorboard,
    with_group_loss,
)
from train.network.model import augmented, with_source
from utils import InputError

pytestmark = pytest.mark.integration

# The loss


def test_the_loss_adds_the_prior_correction():
    y_true, logits = np.array([[1.0], [0.0]], "float32"), np.array([[-1.0], [-2.0]], "float32")
    probability = 1 / (1 + np.exp(-(logits + 1.5)))
    expected = -np.log(np.where(y_true == 1, probability, 1 - probability))[:, 0]
    np.testing.assert_allclose(corrected_loss(1.5)(y_true, logits).numpy(), expected, rtol=1e-5)


def test_labels_are_smoothed_towards_both_sides():
    y_true, logits = np.array([[1.0], [0.0]], "float32"), np.array([[-1.0], [-2.0]], "float32")
    probability, soft = 1 / (1 + np.exp(-logits)), np.array([[0.95], [0.05]])
    expected = -(soft * np.log(probability) + (1 - soft) * np.log(1 - probability))[:, 0]
    np.testing.assert_allclose(corrected_loss(0.0, label_smoothing=0.1)(y_true, logits).numpy(), expected, rtol=1e-5)


def test_the_focal_loss_weighs_hard_lesions_more():
    y_true, logits = np.array([[1.0], [1.0], [0.0]], "float32"), np.array([[3.0], [-3.0], [-1.0]], "float32")
    right = 1 / (1 + np.exp(-np.where(y_true == 1, logits, -logits)))
    expected = (-np.log(right) * (1 - right) ** 2)[:, 0]
    np.testing.assert_allclose(corrected_loss(0.0, gamma=2.0)(y_true, logits).numpy(), expected, rtol=1e-4)


def test_the_group_loss_is_the_cross_entropy_of_known_groups():
    import keras
    import tensorflow as tf

    logits = np.array([[0.3, 1.0, -1.0, 0.5], [0.3, 1.0, -1.0, 0.5], [0.3, 0.2, 0.1, 0.0]], "float32")
    y_true = np.array([[1, 0, 0, 1], [0, 0.25, 0, 0], [0, 0, 0, 0]], "float32")  # known, mixed with unknown, unknown
    likely = np.log(np.exp(logits[:, 1:]) / np.exp(logits[:, 1:]).sum(axis=1, keepdims=True))
    alone = corrected_loss(0.7, label_smoothing=0.1)
    outputs = tf.Variable(logits)
    with tf.GradientTape() as tape:
        found = with_group_loss(alone, 0.5)(y_true, outputs)
    main = keras.ops.convert_to_numpy(alone(y_true[:, :1], logits[:, :1]))
    groups = np.array([-likely[0, 2], -0.25 * likely[1, 0], 0])
    np.testing.assert_allclose(found, main + 0.5 * groups, rtol=1e-5)
    gradient = tape.gradient(found, outputs).numpy()[:, 1:]
    share = y_true[:, 1:].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, 0.5 * (share * np.exp(likely) - y_true[:, 1:]), atol=1e-6)


# The optimizer


CONFIG = TrainingConfig(weight_decay=0.02)


def small_model():
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])


def test_the_optimizer_is_adamw_of_loshchilov_and_hutter():
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(80, 5)).astype("float32"), rng.normal(size=(80, 1)).astype("float32")
    model, optimizer = small_model(), adamw(10, 0.05, CONFIG)
    rates = [float(optimizer._learning_rate(step)) for step in range(10)]
    weights = model.get_weights()
    first, second = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
    model.compile(optimizer=optimizer, loss="mse")
    for step, rate in enumerate(rates):
        rows = slice(8 * step, 8 * step + 8)
        gradients = gradients_of(model, weights, inputs[rows], targets[rows])
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            mean, square = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            weights[i] = weights[i] - rate * CONFIG.weight_decay * weights[i] - rate * mean / (np.sqrt(square) + 1e-7)
        model.set_weights(weights)  # gradients of the next step are taken there
    start = small_model()
    start.compile(optimizer=adamw(10, 0.05, CONFIG), loss="mse")
    start.fit(inputs, targets, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for found, expected in zip(start.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def gradients_of(model, weights, inputs, targets):
    """Gradients of the mean squared error at ``weights``."""
    import tensorflow as tf

    model.set_weights(weights)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(inputs) - targets) ** 2)
    return [gradient.numpy() for gradient in tape.gradient(loss, [v.value for v in model.trainable_variables])]


def test_the_rate_warms_up_and_decays_to_zero():
    import keras

    schedule = adamw(200, 0.01, CONFIG)._learning_rate
    rates = [float(keras.ops.convert_to_numpy(schedule(step))) for step in range(201)]
    assert int(np.argmax(rates)) == WARM_UP * 200
    assert max(rates) == pytest.approx(0.01)
    assert rates[0] == pytest.approx(0.0001)
    assert rates[200] == pytest.approx(0, abs=1e-8)


def test_the_backbone_learns_at_a_share_of_the_rate_and_gradients_are_clipped_together():
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(8, 5)).astype("float32"), 1000 * rng.normal(size=(8, 1)).astype("float32")
    moved = {}
    for share in (1.0, 0.25):
        model = small_model()
        before = model.get_weights()
        config = TrainingConfig(backbone_rate=share, weight_decay=0.0, clip_norm=1.0)
        model.compile(optimizer=adamw(10, 0.05, config, model.layers[0].trainable_variables), loss="mse")
        model.fit(inputs, targets, batch_size=8, epochs=1, verbose=0)
        moved[share] = [new - old for new, old in zip(model.get_weights(), before, strict=True)]
        norm = np.sqrt(sum(np.sum((value.numpy() / 0.1) ** 2) for value in model.optimizer._momentums))
        assert norm == pytest.approx(1.0, rel=1e-3)
    for index, share in enumerate((0.25, 0.25, 1.0, 1.0)):
        np.testing.assert_allclose(moved[0.25][index], share * moved[1.0][index], rtol=1e-3, atol=1e-7)


def test_averaged_weights_replace_the_last_ones_at_the_end():
    import keras

    class Weights(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.after = []

        def on_train_batch_end(self, batch, logs=None):
            self.after.append(self.model.get_weights())

    watch, model = Weights(), small_model()
    rng = np.random.default_rng(1)
    model.compile(optimizer=adamw(10, 0.05, TrainingConfig(ema=0.9)), loss="mse")
    model.fit(rng.normal(size=(40, 5)), rng.normal(size=(40, 1)), batch_size=8, epochs=2, verbose=0, callbacks=[watch])
    average = watch.after[0]
    for weights in watch.after[1:]:
        average = [0.9 * mean + 0.1 * weight for mean, weight in zip(average, weights, strict=True)]
    for found, expected, last in zip(model.get_weights(), average, watch.after[-1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.abs(expected - last).max() > 1e-3


# The loop


def random_rows(batches=2):
    """Inputs, labels and weights of random batches of four crops."""
    rng = np.random.default_rng(1)
    inputs = {
        "crop": rng.integers(0, 255, (batches, 4, 32, 32, 3), dtype=np.uint8),
        "draws": rng.random((batches, 4, DRAWS)).astype("float32"),
        "tabular": np.full((batches, 4, 1), -2.0, "float32"),
    }
    y_true = np.tile(np.array([[0.0], [1.0], [0.0], [1.0]], "float32"), (batches, 1, 1))
    return inputs, y_true, np.ones((batches, 4), "float32")


@pytest.fixture(scope="module")
def first_epochs():
    """Two random batches, repeated, in place of images; the list of the epochs that they were begun at."""
    import tensorflow as tf

    begun, batches = [], tf.data.Dataset.from_tensor_slices(random_rows())

    def training_batches(data, first_epoch):
        begun.append(first_epoch)
        return batches.repeat()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("train.network.fit.training_batches", training_batches)
        yield begun


DATA = TrainingData(UnchangedImages(), None, {}, None, None, steps=2, image_size=32, batch_size=4)


def a_plan(phases, **config):
    return Plan("test", phases, corrected_loss(0.0), TrainingConfig(**config))


def test_the_head_is_trained_before_the_stages():
    config = TrainingConfig(unfreeze="conv5", epochs=3, learning_rate=1e-4, head_epochs=2, head_learning_rate=1e-3)
    assert phases_of(config) == [Phase("head", "none", 0, 2, 1e-3), Phase("stages", "conv5", 2, 5, 1e-4)]
    assert phases_of(TrainingConfig(epochs=3, learning_rate=1e-4)) == [Phase("stages", "all", 0, 3, 1e-4)]
    config = TrainingConfig(unfreeze="none", epochs=3, head_epochs=2, head_learning_rate=1e-3)
    assert phases_of(config) == [Phase("head", "none", 0, 5, 1e-3)]


HEAD, STAGES = Phase("head", "none", 0, 2, 1e-2), Phase("stages", "conv5", 2, 4, 1e-3)


def test_a_phase_has_its_steps_and_leaves_frozen_stages_unchanged(first_epochs, monkeypatch):
    network, models, at_start = a_network(), [], []
    before = {layer.name: layer.get_weights() for layer in network.get_layer("resnet50").layers}
    head = network.get_layer("correction").get_weights()

    def watched(inner, augmentation):
        models.append(augmented(inner, augmentation))
        at_start.append(inner.get_layer("resnet50").get_layer("conv5_conv").get_weights())
        return models[-1]

    monkeypatch.setattr("train.network.fit.augmented", watched)
    history = fit(network, DATA, a_plan([HEAD, Phase("stages", "conv5", 2, 3, 1e-3)]))
    assert first_epochs[-2:] == [0, 2]
    assert [(record["phase"], record["epoch"]) for record in history] == [("head", 1), ("head", 2), ("stages", 3)]
    assert all(np.isfinite(record["loss"]) and record["images_per_second"] > 0 for record in history)
    assert [int(model.optimizer.iterations) for model in models] == [4, 2]
    for old, new in zip(before["conv5_conv"], at_start[1], strict=True):
        np.testing.assert_array_equal(old, new)  # unchanged when the second phase began
    after = {layer.name: layer.get_weights() for layer in network.get_layer("resnet50").layers}
    moved = {name for name in after if any((x != y).any() for x, y in zip(before[name], after[name], strict=True))}
    assert {name.split("_")[0] for name in moved} == {"conv5"}
    assert np.abs(network.get_layer("correction").get_weights()[0] - head[0]).max() > 0


@pytest.fixture(scope="module")
def uninterrupted(first_epochs):
    """Weights and history of a training with two phases and averaged weights."""
    network = a_network()
    history = fit(network, DATA, a_plan([HEAD, STAGES], ema=0.5))
    return network.get_weights(), history


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    first_epochs, uninterrupted, tmp_path, monkeypatch, stop_after
):
    plan, (weights, history) = a_plan([HEAD, STAGES], ema=0.5), uninterrupted
    path, save = tmp_path / "checkpoint.weights.h5", Checkpoint.save

    def save_and_stop(self, model, record):
        save(self, model, record)
        if self.epochs == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoint, "save", save_and_stop)
        fit(a_network(), DATA, plan, Checkpoint(path))
    parts = a_network()
    again = fit(parts, DATA, plan, Checkpoint(path))
    assert first_epochs[-1] == max(stop_after, 2)
    for one, other in zip(weights, parts.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    timing = ("seconds", "images_per_second")
    assert [{k: v for k, v in record.items() if k not in timing} for record in again] == [
        {k: v for k, v in record.items() if k not in timing} for record in history
    ]


def test_the_offset_of_archive_lesions_goes_on_in_the_second_phase(monkeypatch):
    import tensorflow as tf

    (inputs, *rest), at_start = random_rows(), []
    inputs["archive"] = np.tile(np.array([[0.0], [1.0], [1.0], [1.0]], "float32"), (2, 1, 1))
    batches = tf.data.Dataset.from_tensor_slices((inputs, *rest)).repeat()
    monkeypatch.setattr("train.network.fit.training_batches", lambda *_: batches)

    def watched(*arguments):
        model = with_source(*arguments)
        at_start.append(float(model.get_layer("archive_offset").get_weights()[0][0, 0]))
        return model

    monkeypatch.setattr("train.network.fit.with_source", watched)
    fit(a_network(), replace(DATA, inputs={"archive": inputs["archive"].ravel()}), a_plan([HEAD, STAGES]))
    assert at_start[0] == 0
    assert abs(at_start[1]) > 1e-3


# The second head


def grouped_rows():
    """``random_rows`` whose targets have two groups; the last lesion's is unknown."""
    inputs, y_true, weights = random_rows()
    groups = np.tile(np.array([[1, 0], [0, 1], [1, 0], [0, 0]], "float32"), (2, 1, 1))
    return inputs, np.concatenate([y_true, groups], axis=-1), weights


def test_the_second_head_teaches_the_backbone_and_leaves_no_weights(monkeypatch):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(grouped_rows()).repeat()
    monkeypatch.setattr("train.network.fit.training_batches", lambda *_: batches)
    data, found = replace(DATA, targets=grouped_rows()[1].reshape(-1, 3)), []
    for weight in (0.0, 0.5):
        plan = a_plan([Phase("stages", "conv5", 0, 1, 1e-2)])
        network = a_network()
        fit(network, data, replace(plan, loss=with_group_loss(plan.loss, weight)))
        found.append(network)
        assert network.output.shape == (None, 1)
        assert [weight.shape for weight in network.get_weights()] == [weight.shape for weight in a_network().get_weights()]
    without, with_it = (network.get_layer("resnet50").get_layer("conv5_conv").kernel for network in found)
    assert np.abs(with_it - without).max() > 1e-6


def test_dropout_draws_by_seed_epoch_and_layer(monkeypatch):
    from keras import Model, layers

    def dropping_backbone(input_tensor, name, **_):
        pooled = layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(layers.Dropout(0.5)(input_tensor)))
        return Model(input_tensor, pooled, name=name)

    monkeypatch.setattr("keras.applications.ResNet50", dropping_backbone)
    network = build_network(NetworkConfig(32))
    every = [layer for layer in (*backbone_of(network).layers, *network.layers) if hasattr(layer, "seed_generator")]

    def states(seed, epoch):
        seed_dropout(network, seed, epoch)
        return [tuple(layer.seed_generator.state.numpy().tolist()) for layer in every]

    first, others = states(7, 1), [*states(7, 2), *states(2**32 - 1, 1)]
    assert len(set(first)) == len(every) == 3
    for layer in every:
        layer.seed_generator.next()
    assert states(7, 1) == first
    assert not set(first) & set(others)


# What is no training


def spoil(rows, name):
    """Spoils the second epoch, two batches of four."""
    inputs, y_true, weights = rows
    if name == "a label that is no number":
        y_true[3, 0] = np.nan
    elif name == "a tabular logit that is no number":
        inputs["tabular"][2, 1] = np.nan
    elif name == "a loss without end":
        inputs["tabular"][3, 0] = np.inf
    elif name == "rows without weight":
        weights[2:] = 0.0


SPOILED = {
    "a label that is no number": "nan",
    "a tabular logit that is no number": "nan",
    "a loss without end": "nan|inf",
    "rows without weight": "0 in every step",
    "three batches of four": "1 of 2 steps",
}


@pytest.mark.parametrize("name", SPOILED)
def test_an_epoch_that_trains_nothing_is_an_error_and_the_last_good_one_stays(tmp_path, monkeypatch, eager, name):
    import tensorflow as tf

    rows = random_rows(4)
    spoil(rows, name)
    batches = tf.data.Dataset.from_tensor_slices(rows).take(3 if name == "three batches of four" else 4)
    monkeypatch.setattr("train.network.fit.training_batches", lambda *_: batches)
    with pytest.raises(InputError, match=f"test, epoch 2: .*({SPOILED[name]})"):
        fit(a_network(), DATA, a_plan([Phase("head", "none", 0, 2, 1e-2)]), Checkpoint(tmp_path / "one.weights.h5"))
    assert Checkpoint(tmp_path / "one.weights.h5").epochs == 1


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_without_a_single_image_is_an_error(monkeypatch, eager, epochs):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(random_rows()).take(0)
    monkeypatch.setattr("train.network.fit.training_batches", lambda *_: batches)
    with pytest.raises(InputError, match=r"epoch 1: .*0 of 2"):
        fit(a_network(), DATA, a_plan([Phase("head", "none", 0, epochs, 1e-2)]))


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, eager):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(random_rows(1))
    monkeypatch.setattr("train.network.fit.training_batches", lambda *_: batches)
    with pytest.raises(InputError, match="epoch 1: weights"):
        fit(a_network(), replace(DATA, steps=1), a_plan([Phase("head", "none", 0, 1, np.inf)]), Checkpoint(tmp_path / "one"))
    assert not (tmp_path / "one").exists()


def test_a_network_that_cannot_move_is_an_error(monkeypatch, eager):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(random_rows(1)).repeat()
    monkeypatch.setattr("train.network.fit.training_batches", lambda *_: batches)
    with pytest.raises(InputError, match="in every step"):
        fit(a_network(dropout=0.0), DATA, a_plan([Phase("head", "none", 0, 3, 0.0)]))


@pytest.mark.parametrize(
    ("losses", "before", "idle"),
    [
        ([0.7, 0.69], (), False),
        ([0.7, 0.7], (), False),  # two steps can agree by chance
        ([0.7, 0.7], (0.7,), True),
        ([0.7], (0.7,), False),
        ([0.7, 0.7, 0.7], (), True),
        ([0.7, 0.7, 0.7000001], (), True),  # float32's rounding
        ([0.7, 0.7, 0.70001], (), False),
        ([0.0], (), True),
        ([np.inf], (), True),
        ([0.7, np.nan], (), True),
        ([], (), True),
    ],
)
def test_a_loss_that_is_not_finite_or_constant_is_refused(losses, before, idle):
    steps = max(1, len(losses))
    if idle:
        with pytest.raises(InputError, match="epoch 4"):
            refuse_idle("fold 1, epoch 4", steps, losses, before)
    else:
        refuse_idle("fold 1, epoch 4", steps, losses, before)


# TensorBoard


def test_logs_that_cannot_be_written_stop_no_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "logs", tmp_path / "logs"):
        model = small_model()
        model.compile("sgd", "mse")
        history = model.fit(np.zeros((8, 5)), np.ones(8), epochs=2, verbose=0, callbacks=[tensorboard(folder)])
        assert len(history.epoch) == 2
    assert capsys.readouterr().out.count("\n") == 1
    assert list((tmp_path / "logs").rglob("events.*"))
