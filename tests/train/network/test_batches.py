import numpy as np
import pytest

from inference.images import ImageStore
from inference.schema import ID, TARGET
from train.network.augmentation import DRAWS
from train.network.batches import JoinedImages, Sequence, training_batches


@pytest.fixture
def store(synthetic_data):
    store = ImageStore(synthetic_data / "train-image.hdf5")
    yield store
    store.close()


def sequence(metadata, order):
    """Lesions in this order; opinion and weight tell which lesion it is."""
    ids, labels = metadata[ID].to_numpy(dtype=object), metadata[TARGET].to_numpy()
    return Sequence(ids[order], {"tabular": order / 10}, labels[order], order + 1.0)


def gathered(batches):
    """All batches as one: inputs by name, targets, weights."""
    found = [({k: v.numpy() for k, v in inputs.items()}, t.numpy(), w.numpy()) for inputs, t, w in batches]
    inputs = {name: np.concatenate([each[0][name] for each in found]) for name in found[0][0]}
    return inputs, np.concatenate([each[1] for each in found]), np.concatenate([each[2] for each in found])


def test_batches_carry_what_belongs_to_their_own_lesion(store, metadata):
    order = np.arange(12)[::-1]
    rows = sequence(metadata, order)
    rows.isic_ids[[2, 5]] = "ISIC_9999999"  # no image
    seen = np.delete(order, [2, 5])
    found = list(training_batches(store, rows, 32, 4))
    assert [len(targets) for _, targets, _ in found] == [4, 4, 2]
    inputs, targets, weights = gathered(found)
    assert inputs["crop"].shape == (10, 32, 32, 3)
    assert inputs["tabular"].shape == targets.shape == (10, 1)
    np.testing.assert_allclose(inputs["tabular"][:, 0], seen / 10, rtol=1e-6)
    np.testing.assert_allclose(weights, seen + 1)
    assert targets[:, 0].tolist() == metadata[TARGET].to_numpy()[seen].tolist()


def test_draws_differ_by_row_batch_and_seed(store, metadata):
    rows = sequence(metadata, np.arange(8))
    draws = gathered(training_batches(store, rows, 32, 4, seed=1))[0]["draws"]
    other = gathered(training_batches(store, rows, 32, 4, seed=2))[0]["draws"]
    assert draws.shape == (8, DRAWS)
    assert (draws >= 0).all()
    assert (draws < 1).all()
    assert len(np.unique(np.concatenate([draws, other]))) == 16 * DRAWS


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_training_that_goes_on_sees_what_it_would_have_seen(store, metadata, mixup):
    order = np.arange(20) % 7
    whole = gathered(training_batches(store, sequence(metadata, order), 32, 4, seed=3, mixup=mixup))
    rest = gathered(training_batches(store, sequence(metadata, order[8:]), 32, 4, seed=3, first_step=2, mixup=mixup))
    for name, values in rest[0].items():
        np.testing.assert_array_equal(values, whole[0][name][8:])
    np.testing.assert_array_equal(rest[1], whole[1][8:])


def test_mixup_mixes_crop_opinion_label_and_weight_in_the_same_share(store, metadata):
    rows = sequence(metadata, np.arange(6))
    plain, _, _ = gathered(training_batches(store, rows, 32, 6))
    inputs, targets, weights = gathered(training_batches(store, rows, 32, 6, mixup=0.4))
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
    np.testing.assert_allclose(weights, share * rows.weights + (1 - share) * rows.weights[before], atol=1e-4)


def test_two_stores_are_read_as_one(store, metadata, tmp_path):
    isic_id = metadata[ID][0]
    of_folder, hidden = (store.read(other) for other in metadata[ID][1:3])
    (tmp_path / "ISIC_0000001.jpg").write_bytes(of_folder)
    (tmp_path / f"{isic_id}.jpg").write_bytes(hidden)
    joined = JoinedImages(store, ImageStore(tmp_path))
    assert joined.read(isic_id) == store.read(isic_id) != hidden
    assert joined.read("ISIC_0000001") == of_folder
    assert joined.read("ISIC_0000002") == b""
