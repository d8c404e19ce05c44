from contextlib import nullcontext

import numpy as np
import pytest
from failing_files import stopping_at

from train.network.checkpoint import Checkpoint
from utils import InputError

pytestmark = pytest.mark.integration


def compiled(seed=0):
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer, loss="mse")
    return model


@pytest.fixture
def trained_once(tmp_path):
    """A model after one epoch, and its checkpoint."""
    rng = np.random.default_rng(0)
    model, checkpoint = compiled(), Checkpoint(tmp_path / "checkpoint.weights.h5")
    model.fit(rng.normal(size=(16, 3)), rng.normal(size=(16, 1)), batch_size=4, verbose=0)
    checkpoint.save(model, {"epoch": 1, "loss": 0.5})
    return model, checkpoint


def test_weights_optimizer_and_history_are_loaded(trained_once):
    model, checkpoint = trained_once
    again, other = Checkpoint(checkpoint.path), compiled(seed=9)
    assert again.epochs == 1
    assert again.history == [{"epoch": 1, "loss": 0.5}]
    again.load(other)
    for expected, found in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(expected.numpy(), found.numpy())
    assert int(other.optimizer.iterations) == 4
    for expected, found in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(expected.numpy(), found.numpy())


def test_an_interrupted_save_leaves_the_epoch_before(trained_once, monkeypatch):
    model, checkpoint = trained_once

    def stopped(path):
        path.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save_weights", stopped)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(model, {"epoch": 2})
    assert Checkpoint(checkpoint.path).history == [{"epoch": 1, "loss": 0.5}]
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["checkpoint.weights.h5"]


def test_nothing_is_kept_without_a_path(trained_once):
    checkpoint = Checkpoint(None)
    checkpoint.save(trained_once[0], {"epoch": 1})
    assert checkpoint.epochs == 1


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.weights.h5"
    path.write_bytes(b"nothing of ours")
    with pytest.raises(InputError, match=r"checkpoint\.weights\.h5.* --restart"):
        Checkpoint(path)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_full_disk_leaves_the_checkpoint_before(trained_once, stop):
    model, checkpoint = trained_once
    before = checkpoint.path.read_bytes()
    with stopping_at(stop, full=True) as changes, pytest.raises(InputError) if stop < 3 else nullcontext():
        checkpoint.save(model, {"epoch": 2, "loss": 0.4})
    assert changes.stopped == (stop < 3)  # everything is made in memory, then written at once
    assert (checkpoint.path.read_bytes() == before) == (stop < 3)
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [checkpoint.path.name]
