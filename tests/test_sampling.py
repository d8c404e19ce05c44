import math

import numpy as np
import pytest
from scipy.special import expit, logit

from inference.images import ImageStore
from inference.schema import ID, TARGET
from train.sampling import JoinedImages, draw_epoch, negatives_drawn, prior_shift, training_batches

LABELS = (np.arange(1000) % 50 == 0).astype(int)  # 20 malignant lesions


@pytest.mark.parametrize(("per_positive", "benign"), [(1, 20), (3, 60), (0.5, 10), (2.33, 47), (49, 980), (1000, 980)])
def test_an_epoch_has_all_malignant_lesions_and_as_many_benign_ones_as_asked(per_positive, benign):
    epoch = draw_epoch(LABELS, per_positive, np.random.default_rng(0))
    assert len(set(epoch.tolist())) == len(epoch) == 20 + benign
    assert set(np.flatnonzero(LABELS)) <= set(epoch.tolist())
    assert negatives_drawn(LABELS, per_positive) == benign


def test_benign_lesions_are_drawn_anew_every_epoch_until_all_were_seen():
    rng = np.random.default_rng(0)
    epochs = [draw_epoch(LABELS, 5, rng) for _ in range(100)]
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    assert set(np.concatenate(epochs).tolist()) == set(range(1000))


def test_an_epoch_is_shuffled_and_the_same_for_the_same_seed():
    epoch = draw_epoch(LABELS, 5, np.random.default_rng(3))
    assert np.array_equal(epoch, draw_epoch(LABELS, 5, np.random.default_rng(3)))
    halves = LABELS[epoch[:60]].sum(), LABELS[epoch[60:]].sum()
    assert min(halves) > 4  # malignant lesions stand neither all in front nor all behind


def test_the_shift_is_nothing_where_all_benign_lesions_are_drawn():
    assert prior_shift(LABELS, 49) == prior_shift(LABELS, 1000) == 0
    assert prior_shift(LABELS, 7) == pytest.approx(math.log(49 / 7))


def test_the_shift_leads_back_to_natural_log_odds():
    """Of rows with known probabilities, those that an epoch draws are malignant with log-odds raised by the shift."""
    rng = np.random.default_rng(0)
    log_odds = rng.choice([-5.0, -4.0, -3.0], 400_000)
    labels = (rng.random(400_000) < expit(log_odds)).astype(int)
    epoch = draw_epoch(labels, 1.5, rng)
    shift = prior_shift(labels, 1.5)
    assert shift > 2.5
    for value in (-5.0, -4.0, -3.0):
        drawn = labels[epoch][log_odds[epoch] == value].mean()
        assert logit(drawn) - shift == pytest.approx(value, abs=0.1)


def test_batches_carry_the_opinion_and_the_label_of_their_own_lesion(twin, metadata):
    store = ImageStore(twin / "train-image.hdf5")
    ids, labels = metadata[ID].to_numpy(dtype=object), metadata[TARGET].to_numpy()
    ids[[2, 5]] = "ISIC_9999999"  # no image
    seen = [row for row in range(12) if row not in (2, 5)]
    order = np.arange(12)[::-1]
    opinions = np.arange(12) / 10
    found = list(training_batches(store, ids[order], {"tabular": opinions[order]}, labels[order], 32, 4))
    assert [len(targets) for _, targets in found] == [4, 4, 2]
    assert found[0][0]["crop"].shape == (4, 32, 32, 3)
    tabular = np.concatenate([inputs["tabular"].numpy() for inputs, _ in found])
    targets = np.concatenate([targets.numpy() for _, targets in found])
    assert tabular.shape == targets.shape == (10, 1)
    np.testing.assert_allclose(tabular[:, 0], opinions[seen[::-1]], rtol=1e-6)
    assert targets[:, 0].tolist() == labels[seen[::-1]].tolist()
    store.close()


def test_two_stores_are_read_as_one(twin, metadata, tmp_path):
    first = ImageStore(twin / "train-image.hdf5")
    isic_id = metadata[ID][0]
    (tmp_path / "ISIC_0000001.jpg").write_bytes(b"of the folder")
    (tmp_path / f"{isic_id}.jpg").write_bytes(b"hidden by the first store")
    joined = JoinedImages(first, ImageStore(tmp_path))
    assert joined.read(isic_id) == first.read(isic_id)
    assert joined.read("ISIC_0000001") == b"of the folder"
    assert joined.read("ISIC_0000002") == b""
    first.close()
