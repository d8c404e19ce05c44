import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from inference.features import build_features
from inference.schema import PATIENT, TARGET
from train.config import TabularConfig
from train.cross_validation import FIXED_PARAMETERS, categories_of, cross_validate, sample_negatives, train_model
from train.folds import HOLDOUT
from utils import InputError

SMALL = {"iterations": 12, "depth": 3, "learning_rate": 0.3}


def test_sampling_keeps_all_malignant_rows_and_a_share_of_the_benign_ones():
    labels = (np.arange(1000) % 40 == 0).astype(int)
    kept, share = sample_negatives(labels, 7.8, np.random.default_rng(0))
    assert (np.diff(kept) > 0).all()
    assert labels[kept].sum() == 25
    assert len(kept) == 25 + 195
    assert share == 195 / 975
    assert np.array_equal(kept, sample_negatives(labels, 7.8, np.random.default_rng(0))[0])
    assert not np.array_equal(kept, sample_negatives(labels, 7.8, np.random.default_rng(1))[0])
    kept, share = sample_negatives(labels, 100, np.random.default_rng(0))
    assert (len(kept), share) == (1000, 1)


def test_the_share_brings_logits_back_to_the_natural_prevalence():
    labels = (np.random.default_rng(0).random(100_000) < 0.01).astype(int)
    kept, share = sample_negatives(labels, 3, np.random.default_rng(1))
    assert logit(labels[kept].mean()) + np.log(share) == pytest.approx(logit(labels.mean()), abs=1e-3)


@pytest.mark.parametrize("wrong", [{"depht": 6}, {"depth": 60}, {"iterations": "many"}, {"random_seed": 3}])
def test_parameters_unknown_to_catboost_are_refused_in_one_sentence(metadata, wrong):
    features = build_features(metadata)[["age_approx", "sex"]]
    with pytest.raises(InputError, match=r"CatBoost refuses to train \(") as caught:
        train_model(features, metadata[TARGET].to_numpy(), SMALL | wrong, seed=0)
    assert "\n" not in str(caught.value)


def test_fixed_parameters_cannot_be_changed(metadata):
    features = build_features(metadata)[["age_approx", "sex"]]
    model = train_model(features, metadata[TARGET].to_numpy(), SMALL | {"loss_function": "RMSE", "verbose": True}, seed=0)
    assert {name: model.get_params()[name] for name in FIXED_PARAMETERS} == FIXED_PARAMETERS


@pytest.fixture
def folds(metadata):
    """Two folds and a holdout by patient."""
    patient = pd.factorize(metadata[PATIENT])[0]
    return np.array([0, 1, HOLDOUT])[patient % 3]


def test_every_row_is_scored_by_models_trained_without_its_fold(metadata, folds):
    features, labels = build_features(metadata), metadata[TARGET].to_numpy()
    result = cross_validate(features, labels, folds, TabularConfig(SMALL, seeds=2), progress=False)
    models = result.models
    assert [(each.fold, each.seed) for each in models] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    raw = np.array([each.model.predict(features, prediction_type="RawFormulaVal") for each in models])
    raw += np.array([each.prior_correction for each in models])[:, None]
    expected = np.select([folds == 0, folds == 1], [raw[:2].mean(axis=0), raw[2:].mean(axis=0)], raw.mean(axis=0))
    np.testing.assert_allclose(result.logits, expected, rtol=1e-9)


def test_labels_of_a_fold_do_not_reach_its_own_scores(metadata, folds):
    features, labels = build_features(metadata), metadata[TARGET].to_numpy()
    config = TabularConfig(SMALL, seeds=1)
    before = cross_validate(features, labels, folds, config, progress=False).logits
    turned = np.where(folds == 0, 1 - labels, labels)
    after = cross_validate(features, turned, folds, config, progress=False).logits
    np.testing.assert_array_equal(after[folds == 0], before[folds == 0])
    assert (after[folds == 1] != before[folds == 1]).any()


def test_categories_are_found_by_name(metadata):
    features = build_features(metadata)
    assert categories_of(features) == [name for name in features if features[name].dtype == object]
