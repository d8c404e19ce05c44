import numpy as np
import pytest

from train.network.fit import WARM_UP, WEIGHT_DECAY, adamw


def small_model():
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])


def fitted(optimizer, **more):
    """Weights after 30 steps of a small regression."""
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(120, 5)), rng.normal(size=(120, 1))
    model = small_model()
    model.compile(optimizer=optimizer, loss="mse", **more)
    model.fit(inputs, targets, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model.get_weights()


def test_the_fused_update_is_keras_own_adamw():
    import keras

    fused = adamw(30, 0.05)
    schedule = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(fused._learning_rate))
    expected = fitted(keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY))
    found, start = fitted(fused), small_model().get_weights()
    for one, other, before in zip(expected, found, start, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert np.abs(one - before).max() > 0.01


def test_the_rate_warms_up_and_decays_to_nothing():
    import keras

    schedule = adamw(200, 0.01)._learning_rate
    rates = [float(keras.ops.convert_to_numpy(schedule(step))) for step in range(201)]
    assert int(np.argmax(rates)) == WARM_UP * 200
    assert max(rates) == pytest.approx(0.01)
    assert rates[0] == pytest.approx(0.0001)
    assert rates[200] == pytest.approx(0, abs=1e-8)


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
    model.compile(optimizer=adamw(10, 0.05, ema=0.9), loss="mse")
    model.fit(rng.normal(size=(40, 5)), rng.normal(size=(40, 1)), batch_size=8, epochs=2, verbose=0, callbacks=[watch])
    average = watch.after[0]
    for weights in watch.after[1:]:
        average = [0.9 * mean + 0.1 * weight for mean, weight in zip(average, weights, strict=True)]
    for found, expected, last in zip(model.get_weights(), average, watch.after[-1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.abs(expected - last).max() > 1e-3
