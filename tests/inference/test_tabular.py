import json

import numpy as np
import pandas as pd
import pytest
from catboost import CatBoostClassifier, Pool

from inference.artifacts import FORMAT, MANIFEST, load_manifest
from inference.features import MODEL_CATEGORIES, build_features
from inference.files import sha256_of
from inference.schema import MISSING, TARGET
from inference.tabular import load_models, select_features, tabular_logits
from utils import InputError

FILES = ["tabular_fold0_seed0.cbm", "tabular_fold1_seed0.cbm"]
SHIFTS = [-0.5, -1.5]
NAMES = ["clin_size_long_diam_mm", "tbp_lv_H", "sex", "tbp_lv_location"]
CATEGORIES = ["sex", "tbp_lv_location"]


@pytest.fixture
def features(metadata):
    return build_features(metadata)


@pytest.fixture
def folder(tmp_path, metadata, features):
    """An artifact folder of two small models."""
    for seed, name in enumerate(FILES):
        model = CatBoostClassifier(iterations=8, depth=3, random_seed=seed, verbose=False, allow_writing_files=False)
        model.fit(Pool(features[NAMES], metadata[TARGET], cat_features=CATEGORIES)).save_model(str(tmp_path / name))
    write_manifest(tmp_path)
    return tmp_path


def write_manifest(folder, **section):
    models = [{"file": name, "prior_correction": shift} for name, shift in zip(FILES, SHIFTS, strict=True)]
    files = {name: sha256_of(folder / name) for name in FILES}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files, "tabular": {"models": models} | section}))


def loaded(folder):
    return load_models(folder, load_manifest(folder))


def test_logits_are_the_mean_of_the_shifted_models(folder, features):
    models, complaints = loaded(folder)
    assert complaints == []
    logits = tabular_logits(models, features[NAMES], CATEGORIES)
    pool = Pool(features[NAMES], cat_features=CATEGORIES)
    probabilities = [CatBoostClassifier().load_model(str(folder / name)).predict_proba(pool)[:, 1] for name in FILES]
    expected = [np.log(p / (1 - p)) + shift for p, shift in zip(probabilities, SHIFTS, strict=True)]
    np.testing.assert_allclose(logits, np.mean(expected, axis=0))
    assert logits.dtype == "float64"
    assert logits.std() > 0


def test_categories_unseen_in_training_are_allowed(folder, features):
    strange = features[NAMES].assign(sex="other", tbp_lv_location="Moon")
    assert np.isfinite(tabular_logits(loaded(folder)[0], strange, CATEGORIES)).all()


def test_a_lesion_of_which_nothing_is_known_gets_a_score(folder, features):
    unknown = select_features(features[[]], NAMES, CATEGORIES)
    logits = tabular_logits(loaded(folder)[0], unknown, CATEGORIES)
    assert np.isfinite(logits).all()
    assert len(set(logits)) == 1


def test_no_lesion_no_score(folder, features):
    assert tabular_logits(loaded(folder)[0], features[NAMES].head(0), CATEGORIES).shape == (0,)


def test_features_are_selected_by_name_and_put_in_order(features):
    shuffled = features[np.random.default_rng(0).permutation(features.columns)]
    pd.testing.assert_frame_equal(select_features(shuffled, NAMES, CATEGORIES), features[NAMES])


def test_a_column_that_the_table_lacks_is_unknown_for_every_lesion(features):
    selected = select_features(features.drop(columns=["tbp_lv_H", "sex"]), NAMES, CATEGORIES)
    assert list(selected) == NAMES
    assert selected["tbp_lv_H"].isna().all()
    assert selected["tbp_lv_H"].dtype == "float32"
    assert (selected["sex"] == MISSING).all()
    assert set(CATEGORIES) <= set(MODEL_CATEGORIES)


def test_a_model_whose_hash_differs_is_not_opened(folder, features):
    (folder / FILES[0]).write_bytes((folder / FILES[1]).read_bytes())  # a perfectly good model, and not the one
    models, complaints = loaded(folder)
    assert len(models) == 1
    assert models[0][1] == SHIFTS[1]
    assert len(complaints) == 1
    assert f"tabular model {FILES[0]} left out" in complaints[0]
    assert "SHA-256" in complaints[0]
    assert np.isfinite(tabular_logits(models, features[NAMES], CATEGORIES)).all()


@pytest.mark.parametrize("content", [b"", b"no model", b"CBM1" + bytes(100)])
def test_a_corrupted_model_of_the_right_hash_is_left_out_with_a_complaint(folder, content):
    (folder / FILES[1]).write_bytes(content)
    write_manifest(folder)
    models, complaints = loaded(folder)
    assert [shift for _, shift in models] == SHIFTS[:1]
    assert len(complaints) == 1
    assert f"tabular model {FILES[1]} left out" in complaints[0]


def test_a_model_cut_short_is_left_out_with_a_complaint(folder):
    content = (folder / FILES[1]).read_bytes()
    (folder / FILES[1]).write_bytes(content[: len(content) // 2])
    write_manifest(folder)
    models, complaints = loaded(folder)
    assert (len(models), len(complaints)) == (1, 1)


def test_a_missing_model_is_left_out_with_a_complaint(folder):
    (folder / FILES[0]).unlink()
    models, complaints = loaded(folder)
    assert (len(models), len(complaints)) == (1, 1)
    assert "missing in" in complaints[0]


def test_without_one_usable_model_there_is_nothing_to_do(folder):
    for name in FILES:
        (folder / name).write_bytes(b"no model")
    with pytest.raises(InputError, match=rf"no usable tabular model in .*{FILES[0]} left out.*{FILES[1]} left out"):
        loaded(folder)
    with pytest.raises(InputError, match="the manifest names none"):
        load_models(folder, {"files": {}, "tabular": {"models": []}})


def test_artifacts_whose_tabular_stage_has_not_run_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no usable tabular model"):
        load_models(tmp_path, {"format": FORMAT, "files": {}, "folds": {}})  # what train.folds leaves
