import json

import h5py
import numpy as np
import pytest
from small_network import small_backbone

from inference.backbones import backbone_of
from inference.network import NetworkConfig, build_network
from train.network import self_supervised
from train.network.checkpoint import Checkpoint
from train.network.self_supervised import PROJECTION, Plan, pretrain_without_labels, settings_of, spread, unlikeness
from utils import InputError


@pytest.fixture
def command(synthetic_data, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    own = ["--backbone", "resnet50", "--image-size", "32", "--epochs", "2", "--batch-size", "16"]
    return ["--data", str(synthetic_data), "--out", str(tmp_path / "own.weights.h5"), *own]


def weights_of(path):
    """The arrays of a weights file by their places in it."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_an_interrupted_training_ends_as_an_uninterrupted_one(command, eager, tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.weights.h5"
    pretrain_without_labels(command)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    whole = weights_of(path)
    backbone = backbone_of(build_network(NetworkConfig(32)))
    backbone.load_weights(path)  # as train.fusion --weights does
    assert any(np.array_equal(backbone.get_weights()[0], array) for array in whole.values())
    path.unlink()
    save = Checkpoint.save

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", save_and_stop)
        pretrain_without_labels(command)
    assert not path.exists()
    capsys.readouterr()
    pretrain_without_labels([*command, "--cache", str(tmp_path / "cache")])
    assert equal(weights_of(path), whole)
    printed = capsys.readouterr().out
    assert "epoch 1 of 2" not in printed
    assert "epoch 2 of 2" in printed


def test_a_checkpoint_is_of_the_same_crops_weights_code_and_versions(tmp_path, monkeypatch):
    plan, crops, weights = Plan(), {"a": 1, "b": 2}, tmp_path / "w.weights.h5"
    weights.write_text("1")
    base = settings_of(plan, crops, str(weights))
    assert settings_of(plan, dict(crops), str(weights)) == base == json.loads(json.dumps(base))
    for other in ({"a": 1, "b": 3}, {"a": 1, "c": 2}, {"b": 2, "a": 1}, {"a": 1}):
        assert settings_of(plan, other, str(weights)) != base
    weights.write_text("2")
    assert settings_of(plan, crops, str(weights)) != base
    for name in ("code_version", "versions"):
        with monkeypatch.context() as patch:
            before = settings_of(plan, crops, "none")
            patch.setattr(self_supervised, name, lambda *_: {"keras": "3.0.0"})
            assert settings_of(plan, crops, "none") != before


def test_equal_projections_end_the_training(command, eager, monkeypatch):
    monkeypatch.setattr(self_supervised, "COLLAPSED", 2)
    with pytest.raises(InputError, match="all crops have the same projection"):
        pretrain_without_labels(command)


def test_what_cannot_be_trained_is_refused(command, tmp_path):
    with pytest.raises(InputError, match=r"another ending than \.weights\.h5"):
        pretrain_without_labels([*command, "--out", str(tmp_path / "own.h5")])
    with pytest.raises(InputError, match="--batch-size 61 is more than all 60 crops"):
        pretrain_without_labels([*command, "--batch-size", "61"])


@pytest.mark.integration
def test_the_loss_is_the_cosine_of_predictions_and_projections_of_the_other_view():
    import keras

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 8, PROJECTION)).astype("float32")
    pairs = np.stack([3 * other, other, 2 * one, one], axis=1)
    assert np.array(unlikeness(None, pairs)) == pytest.approx(-np.ones(8), abs=1e-5)
    crossed = np.stack([one, other, other, one], axis=1)
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert np.array(unlikeness(None, crossed)) == pytest.approx(-cosine, abs=1e-5)
    assert float(spread(None, pairs)) == pytest.approx(1, abs=0.1)
    assert float(spread(None, keras.ops.ones((8, 4, PROJECTION)))) == pytest.approx(0, abs=1e-6)
