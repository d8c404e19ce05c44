import numpy as np
import pytest

from inference.features import build_features
from inference.schema import ID, PATIENT, TARGET, TRAIN_ONLY
from train.lesions import read_rows, refuse_train_only
from utils import InputError


def test_the_rows_are_those_of_the_file_with_their_features(synthetic_data, metadata):
    rows = read_rows(synthetic_data)
    assert rows.metadata[ID].tolist() == metadata[ID].tolist()
    np.testing.assert_array_equal(rows.labels, metadata[TARGET])
    np.testing.assert_array_equal(rows.patients, metadata[PATIENT])
    assert rows.features.equals(build_features(metadata.drop(columns=list(TRAIN_ONLY), errors="ignore")))


def test_a_feature_of_the_label_is_refused_on_the_way(synthetic_data, monkeypatch):
    def leaking(metadata):
        return build_features(metadata).assign(target_mean=0.5)

    monkeypatch.setattr("train.lesions.build_features", leaking)
    with pytest.raises(InputError, match="feature 'target_mean' comes from 'target'"):
        read_rows(synthetic_data)


@pytest.mark.parametrize("column", sorted(TRAIN_ONLY))
def test_features_of_columns_that_only_train_has_are_refused(column):
    for name in (column, f"{column}_z_patient", f"{column}_count"):
        with pytest.raises(InputError, match=f"feature '{name}' comes from '{column}'"):
            refuse_train_only(["age_approx", name, "sex"])


def test_features_of_the_project_are_not_refused(metadata):
    refuse_train_only(list(build_features(metadata)))
    refuse_train_only([])
