import numpy as np
import pandas as pd
import pytest

from evaluation.studies import real_fusion
from evaluation.studies.image_share import SHARES, name_of
from evaluation.studies.real_fusion import (
    BOTH_IN_CONTEXT,
    COMBINATION,
    STACKED,
    Columns,
    compare_columns_and_crops,
    constant_logit,
    network_scores,
    part_of_table,
)
from inference.schema import ID, PATIENT, TARGET
from train.combination import nested_scores
from utils import InputError, auc, partial_auc

SCORES = ["tabular", "network", COMBINATION, BOTH_IN_CONTEXT, "stacking", STACKED]


@pytest.fixture
def folders(synthetic_data, metadata, tmp_path):
    """Artifact folders of 60 lesions with columns, and of networks that were trained on the first forty."""
    rng, patients = np.random.default_rng(0), metadata[PATIENT].unique()
    fold = metadata[PATIENT].map({patient: number % 3 for number, patient in enumerate(patients)})
    table = metadata[[ID, PATIENT, TARGET]].assign(fold=fold)
    for name, rows in (("columns", table), ("networks", table.iloc[:40])):
        (tmp_path / name).mkdir()
        rows.to_csv(tmp_path / name / "folds.csv", index=False)
        scores = rows.assign(tabular=rng.normal(size=len(rows)) + rows[TARGET], network=2.0 * rows[TARGET])
        if name == "networks":
            scores["tabular"] = -1.5
            scores.to_csv(tmp_path / name / "oof_fusion.csv", index=False)
        scores[[ID, TARGET, "fold", "tabular"]].to_csv(tmp_path / name / "oof_tabular.csv", index=False)
    return Columns(synthetic_data, tmp_path / "columns"), tmp_path / "networks"


@pytest.fixture
def scored(monkeypatch):
    """Fold -> the crops that its network scored; the logit is the fold's number."""
    scored = {}

    def stand_in(artifacts, fold, images, isic_ids):
        scored[fold] = set(isic_ids)
        return np.full(len(isic_ids), float(fold))

    monkeypatch.setattr(real_fusion, "fold_logits", stand_in)
    return scored


def test_no_network_scores_a_patient_that_it_was_trained_on(folders, scored):
    columns, networks = folders
    table = columns.table()
    found = network_scores(table, columns.data, networks)
    trained_on = pd.read_csv(networks / "folds.csv")
    oof = pd.read_csv(networks / "oof_fusion.csv").set_index(ID)["network"]
    assert set(found.index) == set(table.index)
    assert found[oof.index].equals(oof)
    for isic_id in table.index[40:]:
        patient = table.loc[isic_id, PATIENT]
        by = [fold for fold, crops in scored.items() if isic_id in crops]
        seen = trained_on[trained_on[PATIENT] == patient]["fold"].unique()
        assert by == (list(seen) if len(seen) else [0, 1, 2])
        assert found[isic_id] == np.mean(by)
    assert not set(oof.index) & set().union(*scored.values())


def test_the_combination_is_fitted_on_other_patients(folders, scored):
    columns, networks = folders
    table = columns.table()
    rows = table.assign(network=network_scores(table, columns.data, networks), image_scored=1)
    blend = nested_scores(rows, ["blend"])["blend"]
    lines = compare_columns_and_crops(columns, networks).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| all")]
    assert [cell[1] for cell in cells] == SCORES
    y_true = rows[TARGET]
    for cell, logits in zip(cells, (rows["tabular"], rows["network"], blend), strict=False):
        assert [float(cell[2]), float(cell[4])] == pytest.approx(
            [partial_auc(y_true, logits), auc(y_true, logits)], abs=5e-5
        )
    assert cells[0][5] == ""
    assert cells[2][5].startswith(f"{partial_auc(y_true, blend) - partial_auc(y_true, rows['tabular']):+.4f} [")
    shares = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[-len(SHARES) - 1 :]]
    assert [share[0] for share in shares] == ["tabular", *map(name_of, SHARES)]
    first = rows["tabular"].rank(ascending=False, method="first").to_numpy() <= 3  # 5 % of 60 rows
    a_few = np.where(first, blend, rows["tabular"])
    for share, logits in zip((shares[0], shares[1], shares[-1]), (rows["tabular"], a_few, blend), strict=True):
        assert float(share[2]) == pytest.approx(partial_auc(y_true, logits), abs=5e-5)


def test_rows_of_one_class_have_no_scores():
    part = pd.DataFrame({TARGET: [0, 0], PATIENT: ["a", "b"]}).assign(**dict.fromkeys(SCORES, 0.0))
    assert part_of_table("some", part) == []


def test_networks_that_need_tabular_logits_cannot_score_crops_alone(folders):
    columns, networks = folders
    assert constant_logit(networks) == -1.5
    with pytest.raises(InputError, match=r"tabular logits of .* differ"):
        constant_logit(columns.artifacts)
