import pandas as pd
import pytest

from evaluation.studies.stages import main, score_stages
from inference.schema import TARGET
from utils import InputError, partial_auc


def test_every_stage_has_its_out_of_fold_score(trained, tmp_path):
    assert main(["--artifacts", str(trained.artifacts), "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "stages.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [cell[0] for cell in cells] == [
        "tabular",
        "network",
        "tabular + network (blend)",
        "combination without the last stage",
        "blend in context",
        "CatBoost on all logits",
        "mean of these two",
        "combination",
    ]
    oof = pd.read_csv(trained.artifacts / "oof_stacking.csv")
    for cell, name in ((cells[0], "tabular"), (cells[1], "network"), (cells[5], "stacking"), (cells[7], "final")):
        assert float(cell[1]) == pytest.approx(partial_auc(oof[TARGET], oof[name]), abs=5e-5)
    assert cells[0][4] == "" and cells[3][5] == ""


def test_without_networks_it_says_what_to_run(tabular_only):
    with pytest.raises(InputError, match=r"train\.fusion"):
        score_stages(tabular_only)
