import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation.studies.compare import read_out_of_fold
from evaluation.studies.image_share import SHARES, as_markdown, main, name_of, share_scores
from inference.schema import PATIENT, TARGET
from utils import InputError, bootstrap_scores

NETWORK = {"kind": "network"}
TEN = pd.DataFrame({"tabular": np.linspace(-1, -10, 10), "network": np.full(10, 5.0), "image_scored": [1, 1, 0, *[1] * 7]})


@pytest.mark.parametrize(("share", "reached"), [(0.01, 1), (0.1, 1), (0.3, 2), (0.5, 4), (1.0, 9)])
def test_the_networks_score_the_highest_tabular_logits_that_have_an_image(share, reached):
    found = share_scores(TEN, NETWORK, share)
    assert (found == 5.0).sum() == reached
    assert (found[found != 5.0] == TEN["tabular"][found != 5.0]).all()
    assert found[0] == 5.0


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]


def test_the_table_says_how_much_of_the_gain_a_share_reaches():
    rng = np.random.default_rng(0)
    y_true, noise = np.arange(400) % 8 == 0, rng.normal(size=400)
    scores = {"tabular": noise, "50 %": noise + 0.5 * y_true, "100 %": noise + y_true}
    table = bootstrap_scores(y_true, np.arange(400) // 20, scores)
    tabular, half, whole = cells_of(as_markdown(table, [0.5, 1.0]))
    gain = [table.scores[name].pauc.value - table.scores["tabular"].pauc.value for name in ("50 %", "100 %")]
    assert [tabular[1], half[1], whole[1]] == ["0", "200", "400"]
    assert (half[5], whole[5]) == (f"{gain[0] / gain[1]:.0%}", "100%")
    assert half[6].startswith(f"{gain[0] - gain[1]:+.4f}")
    assert (tabular[4], tabular[5], whole[6]) == ("", "", "")


@pytest.mark.integration
def test_the_full_share_is_the_score_of_the_training(trained, tmp_path, capsys):
    assert main(["--artifacts", str(trained.artifacts), "--out", str(tmp_path / "study")]) == 0
    rows = cells_of((tmp_path / "study" / "image_share.md").read_text(encoding="utf-8"))
    assert [row[0] for row in rows] == ["tabular", *map(name_of, SHARES)]
    table, manifest = read_out_of_fold(trained.artifacts)
    how = manifest["network"]["combination"]
    scores = {"all": share_scores(table, how, 1.0), "tabular": table["tabular"]}
    expected = bootstrap_scores(table[TARGET], table[PATIENT], scores).scores
    assert [rows[0][2], rows[-1][2]] == [f"{expected[name].pauc.value:.4f}" for name in ("tabular", "all")]
    assert Image.open(tmp_path / "study" / "image_share.png").format == "PNG"
    assert str(tmp_path / "study" / "image_share.md") in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.integration
def test_artifacts_without_a_fusion_are_refused(trained, tmp_path):
    artifacts = shutil.copytree(trained.artifacts, tmp_path / "artifacts")
    manifest = json.loads((artifacts / "manifest.json").read_text())
    del manifest["network"]
    (artifacts / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"train\.fusion"):
        main(["--artifacts", str(artifacts), "--out", str(tmp_path / "study")])
    assert not (tmp_path / "study").exists()
