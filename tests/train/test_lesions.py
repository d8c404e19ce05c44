import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from inference.artifacts import MANIFEST, OOF_TABULAR
from inference.features import build_features
from inference.files import sha256_of
from inference.schema import ID, PATIENT, TARGET, TRAIN_ONLY
from train.archives.diagnoses import GROUPS
from train.lesions import open_images, read_lesions, read_rows, refuse_train_only
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


def test_lesions_have_the_group_of_their_diagnosis(trained):
    lesions = read_lesions(trained.data, trained.artifacts, open_images(trained.data), "refuse")
    words = pd.read_csv(trained.data / "train-metadata.csv")["iddx_3"].fillna("benign").str.lower()
    groups = {"benign": words == "benign", "melanoma": words.str.startswith("melanoma")}
    for group, expected in groups.items():
        assert expected.any()
        np.testing.assert_array_equal(lesions.groups == GROUPS.index(group), expected)


# Tables of other lesions

#: What is of other lesions -> the sentence, with both counts and ids of each side.
OTHERS = {
    "images": r"160 of the 160 ids of train-metadata.csv \(ISIC_.* and 2 of the 2 ids of .*train-image.hdf5 \(1, 2\)",
    "some images": r"80 of the 160 ids of train-metadata.csv \(ISIC_.* and 0 of the 80 ids of .*train-image.hdf5 \(ISIC_",
    "folds": r"160 of the 160 ids of .*folds.csv \(ISIC_.* and 160 of the 160 ids of train-metadata.csv \(10, 11, 12\)",
    "logits": r"\d+ of the \d+ ids of the folds of .*folds.csv \(ISIC_.* and 2 of the 2 ids of oof_tabular.csv \(1, 2\)",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_of_other_lesions_is_refused_with_both_counts_and_ids(trained, tmp_path, kind):
    data, artifacts = shutil.copytree(trained.data, tmp_path / "data"), shutil.copytree(trained.artifacts, tmp_path / "out")
    table = pd.read_csv(data / "train-metadata.csv", dtype="str", keep_default_na=False)
    if kind == "images":
        with h5py.File(data / "train-image.hdf5", "w") as file:
            file["1"] = file["2"] = np.void(b"x")
    elif kind == "some images":
        with h5py.File(data / "train-image.hdf5", "r+") as file:
            for isic_id in table[ID][::2]:
                del file[isic_id]
    elif kind == "folds":
        table.assign(**{ID: [str(10 + row) for row in range(len(table))]}).to_csv(data / "train-metadata.csv", index=False)
    else:
        (artifacts / OOF_TABULAR).write_text("isic_id,tabular\n1,0.5\n2,0.5\n")
        manifest = json.loads((artifacts / MANIFEST).read_text())
        manifest["files"][OOF_TABULAR] = sha256_of(artifacts / OOF_TABULAR)
        (artifacts / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=OTHERS[kind]):
        read_lesions(data, artifacts, open_images(data), "refuse")
