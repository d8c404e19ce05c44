from dataclasses import replace

import numpy as np
import pytest

from inference.images import ImageStore
from inference.schema import ID, TARGET
from train.network.augmentation import DRAWS
from train.network.batches import TrainingData, training_batches
from train.network.known_images import KnownImages, digest_of

pytestmark = pytest.mark.integration


@pytest.fixture
def store(synthetic_data):
    store = ImageStore(synthetic_data / "train-image.hdf5")
    yield store
    store.close()


@pytest.fixture
def data(store, metadata):
    """``data(order, **more)``: lesions in this order; tabular logit and weight identify the lesion."""
    ids, labels = metadata[ID].to_numpy(dtype=object), metadata[TARGET].to_numpy()

    def make(order, batch_size=4, steps=2, **more):
        given = {"images": store, "steps": steps, "image_size": 32, "batch_size": batch_size} | more
        return TrainingData(
            isic_ids=ids[order],
            inputs={"tabular": order / 10},
            targets=labels[order],
            sample_weight=order + 1.0,
            **given,
        )

    return make


def gathered(batches):
    """All batches as one: inputs by name, targets, weights."""
    found = [({k: v.numpy() for k, v in inputs.items()}, t.numpy(), w.numpy()) for inputs, t, w in batches]
    inputs = {name: np.concatenate([each[0][name] for each in found]) for name in found[0][0]}
    return inputs, np.concatenate([each[1] for each in found]), np.concatenate([each[2] for each in found])


def test_batches_carry_what_belongs_to_their_own_lesion(data, metadata):
    order = np.arange(12)[::-1]
    rows = data(order)
    rows.isic_ids[[2, 5]] = "ISIC_9999999"  # no image
    kept = np.delete(order, [2, 5])
    found = list(training_batches(rows))
    assert [len(targets) for _, targets, _ in found] == [4, 4, 2]
    inputs, targets, weights = gathered(found)
    assert inputs["crop"].shape == (10, 32, 32, 3)
    assert inputs["tabular"].shape == targets.shape == (10, 1)
    np.testing.assert_allclose(inputs["tabular"][:, 0], kept / 10, rtol=1e-6)
    np.testing.assert_allclose(weights, kept + 1)
    assert targets[:, 0].tolist() == metadata[TARGET].to_numpy()[kept].tolist()


def test_draws_differ_by_row_batch_and_seed(data):
    draws = gathered(training_batches(data(np.arange(8), seed=1)))[0]["draws"]
    other = gathered(training_batches(data(np.arange(8), seed=2)))[0]["draws"]
    assert draws.shape == (8, DRAWS)
    assert (draws >= 0).all()
    assert (draws < 1).all()
    assert len(np.unique(np.concatenate([draws, other]))) == 16 * DRAWS


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_batches_from_a_later_epoch_are_those_of_the_whole_training(data, mixup):
    rows = data(np.arange(20) % 7, seed=3, mixup=mixup)
    whole, rest = gathered(training_batches(rows)), gathered(training_batches(rows, first_epoch=1))
    for name, values in rest[0].items():
        np.testing.assert_array_equal(values, whole[0][name][8:])
    np.testing.assert_array_equal(rest[1], whole[1][8:])


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_batches_from_the_cache_are_those_without(data, store, metadata, tmp_path, mixup):
    import tensorflow as tf

    digests = [0, *(digest_of(store.read(isic_id)) for isic_id in metadata[ID][1:])]  # the first has no readable image
    images = KnownImages(store, metadata[ID], np.array(digests, dtype="uint64"))
    rows = data(np.arange(1, 24) % 9 + 1, images=images, seed=3, mixup=mixup)
    rows.isic_ids[[2, 5]] = "ISIC_9999999"
    for epoch in (1, 0):
        plain, cached = (list(training_batches(each, epoch)) for each in (rows, replace(rows, cache=tmp_path)))
        assert len(plain) == len(cached) == 6 - 2 * epoch
        for one, other in zip(plain, cached, strict=True):
            for ours, theirs in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)


def test_mixup_mixes_crop_tabular_logit_label_and_weight_in_the_same_share(data):
    rows = data(np.arange(6), batch_size=6, mixup=0.4)
    plain, _, _ = gathered(training_batches(data(np.arange(6), batch_size=6)))
    inputs, targets, weights = gathered(training_batches(rows))
    before = np.roll(np.arange(6), 1)
    own, other = rows.inputs["tabular"], rows.inputs["tabular"][before]
    share = (inputs["tabular"][:, 0] - other) / (own - other)
    assert (share > -1e-6).all()
    assert (share < 1 + 1e-6).all()
    assert np.ptp(share) > 0.1
    crops = plain["crop"].astype("float64")
    part = share[:, None, None, None]
    np.testing.assert_allclose(inputs["crop"], part * crops + (1 - part) * crops[before], atol=0.51)
    np.testing.assert_allclose(targets[:, 0], share * rows.targets + (1 - share) * rows.targets[before], atol=1e-5)
    expected = share * rows.sample_weight + (1 - share) * rows.sample_weight[before]
    np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_mixup_mixes_the_diagnosis_group_too_and_an_unknown_one_has_no_share(data):
    rows = data(np.arange(6), batch_size=6, mixup=0.4)
    groups = np.array([[1, 0], [0, 1], [0, 0], [1, 0], [0, 0], [0, 1]])
    both = replace(rows, targets=np.column_stack([rows.targets, groups]))
    assert (rows.groups, both.groups) == (0, 2)
    inputs, targets, _ = gathered(training_batches(both))
    before = np.roll(np.arange(6), 1)
    own, other = rows.inputs["tabular"], rows.inputs["tabular"][before]
    share = ((inputs["tabular"][:, 0] - other) / (own - other))[:, None]
    assert np.ptp(share) > 0.1
    np.testing.assert_allclose(targets, share * both.targets + (1 - share) * both.targets[before], atol=1e-5)
    np.testing.assert_array_equal(targets[:, :1], gathered(training_batches(rows))[1])
