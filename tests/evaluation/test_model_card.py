import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from evaluation.dry_run import TRAINED_ON, rows_to_score
from evaluation.groups import SKIN_TONE, skin_tone_angles
from evaluation.model_card import characteristics, cost_of, main, read_options, sources_of
from inference.build_kernel import ROOT
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, read_metadata
from utils import InputError, auc, bootstrap_scores, partial_auc, top_k_retrieval

HEADINGS = (
    *("Intended use", "What it must not be used for", "Training data", "Results"),
    "Results by hospital, sex, age and skin tone",
    *("Calibration", "Limits", "Energy and time", "Versions", "TRIPOD+AI"),
)


def arguments(trained, report, out):
    return ["--data", str(trained.data), "--artifacts", str(trained.artifacts), "--report", str(report), "--out", str(out)]


@pytest.fixture(scope="session")
def card(trained, report_folder, shared_folder):
    """The model card of ``trained`` and its dry run."""

    def make(folder):
        assert main([*arguments(trained, report_folder, folder / "card.md"), "--watts", "100"]) == 0

    return (shared_folder("card", make) / "card.md").read_text(encoding="utf-8")


@pytest.fixture
def scored(trained, report_folder):
    """The held-out rows with their submitted score."""
    rows = rows_to_score(trained.data, trained.artifacts, "holdout")
    return rows.assign(score=pd.read_csv(report_folder / "submission.csv")[TARGET].to_numpy())


def table_below(card, heading):
    """First cell -> the other cells, of the first table below a heading."""
    lines = card.partition(f"# {heading}\n")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert len({len(row) for row in rows}) == 1, rows
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_sections_are_there_and_nothing_is_left_open(card):
    assert tuple(re.findall("^## (.+)$", card, re.M)) == HEADINGS
    assert not re.search(r"\{[{%]|None|nan\b|Undefined", card)
    assert "synthetic dataset" in card
    assert "No diagnosis" in card
    assert "\n\n\n" not in card


def test_the_scores_are_those_of_the_submission(card, scored):
    y_true, score = scored[TARGET], scored["score"]
    final = table_below(card, "Results")["final"]
    measured = bootstrap_scores(y_true, scored[PATIENT], {"final": score}).scores["final"]
    assert final[0] == f"{partial_auc(y_true, score):.4f}"
    assert final[1] == f"{measured.pauc.low:.4f} to {measured.pauc.high:.4f}"
    assert final[2] == f"{auc(y_true, score):.4f}"
    assert final[4] == f"{top_k_retrieval(y_true, score, scored[PATIENT]):.3f}"
    assert f"on {len(scored)} lesions ({y_true.sum()} malignant) of\n{scored[PATIENT].nunique()} patients" in card


def test_every_group_has_its_counts_and_its_score(card, scored):
    ages = pd.cut(scored["age_approx"], [0, 40, 50, 60, 70, 200], right=False).astype(str)
    ages = ages.map({"[0, 40)": "under 40", "[70, 200)": "70 and older"}).fillna(
        ages.str.replace(r"\[(\d+), (\d+)\)", lambda found: f"{found[1]} to {int(found[2]) - 1}", regex=True)
    )
    ages = ages.where(scored["age_approx"].notna(), "unknown")
    divisions = {"Hospital": scored[HOSPITAL], "Sex": scored["sex"].fillna("unknown"), "Age": ages}
    shown = 0
    for name, values in divisions.items():
        found = table_below(card, name)
        assert set(found) == set(values)
        for group, part in scored.groupby(values):
            cells = found[group]
            assert cells[0] == str(len(part))
            assert cells[1] == str(part[TARGET].sum())
            affected = part.loc[part[TARGET] == 1, PATIENT].nunique()
            assert cells[2] == f"{affected} of {part[PATIENT].nunique()}"
            if part[TARGET].sum() < 5 or affected < 3:
                assert cells[3] == "too few"
            else:
                assert cells[3] == f"{partial_auc(part[TARGET], part['score']):.4f}"
                shown += 1
    assert shown
    tones = table_below(card, SKIN_TONE.capitalize())
    assert sum(int(cells[0]) for cells in tones.values()) == len(scored)
    assert "atan2" in card
    assert "tbp_lv_Lext" in card


def test_calibration_is_observed_over_expected(card, scored, report_folder):
    logits = pd.read_csv(report_folder / "scores.csv").set_index(ID).loc[scored[ID], "tabular"]
    expected = (1 / (1 + np.exp(-logits))).sum()
    assert table_below(card, "Calibration")["tabular"][0] == f"{scored[TARGET].sum() / expected:.2f}"


def test_training_data_versions_and_energy_are_of_the_files(card, trained, report_folder, scored):
    manifest = json.loads((trained.artifacts / "manifest.json").read_text())
    rows = table_below(card, "Training data")
    metadata = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    assert sum(int(cells[1]) for cells in rows.values()) == manifest["tabular"]["trained_on"]["lesions"]
    licences = metadata.groupby(HOSPITAL)["copyright_license"].first()
    assert {name: cells[0] for name, cells in rows.items()} == {name: licences[name] for name in rows}
    assert table_below(card, "Versions")["trained with"] == list(manifest["versions"].values())
    seconds = sum(json.loads((report_folder / "run.json").read_text())["seconds"].values())
    cost = table_below(card, "Energy and time")
    history = pd.read_csv(trained.artifacts.with_name("artifacts-logs") / "fusion-history.csv")
    hours = history["seconds"].sum() / 3600
    assert cost["training of the networks"][0].startswith(f"{hours:.2f} h in {len(history)} epochs")
    assert cost["kernel"][0].startswith(f"{seconds:.1f} s for {len(scored)} lesions")
    assert f"{100 * hours / 1000:.3g} kWh" in cost["energy"][0]


def test_all_27_items_are_answered(card):
    items = table_below(card, "TRIPOD+AI")
    assert list(items) == [str(number) for number in range(1, 28)]
    assert all(len(answer) > 3 for _, answer in items.values())


def test_the_committed_card_is_of_this_template(card):
    committed = (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert tuple(re.findall("^## (.+)$", committed, re.M)) == HEADINGS
    for heading in HEADINGS[:2]:
        prose = [text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] for text in (committed, card)]
        assert prose[0] == prose[1]


def test_the_same_files_give_the_same_card_and_a_card_of_all_rows_warns(trained, report_folder, card, tmp_path):
    given = [*arguments(trained, report_folder, tmp_path / "card.md"), "--watts", "100"]
    assert main(given) == 0
    command = re.compile("<!-- Written by: .*")
    assert command.sub("", (tmp_path / "card.md").read_text(encoding="utf-8")) == command.sub("", card)
    assert TRAINED_ON not in card


@pytest.mark.parametrize("change", ["no scores", "other rows", "other models", "other networks", "broken run"])
def test_a_report_of_something_else_is_refused(trained, report_folder, tmp_path, change):
    report = shutil.copytree(report_folder, tmp_path / "report")
    run = json.loads((report / "run.json").read_text())
    if change == "no scores":
        (report / "scores.csv").unlink()
    elif change == "other rows":
        pd.read_csv(report / "submission.csv").iloc[1:].to_csv(report / "submission.csv", index=False)
    elif change == "other models":
        run["tabular_logits"]["training_median"] += 1e-6
    elif change == "other networks":
        table = pd.read_csv(report / "scores.csv")
        table.assign(network=-table["network"], stacking=-table["stacking"]).to_csv(report / "scores.csv", index=False)
    (report / "run.json").write_text("{" if change == "broken run" else json.dumps(run))
    with pytest.raises(InputError, match="dry_run"):
        main(arguments(trained, report, tmp_path / "card.md"))
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize("name", [PATIENT, TARGET])
def test_rows_with_another_patient_or_label_are_refused(trained, report_folder, tmp_path, name):
    table = pd.read_csv(trained.data / "train-metadata.csv", dtype=str)
    table.loc[7, name] = str(1 - int(table.loc[7, name])) if name == TARGET else "IP_0000001"
    table.to_csv(tmp_path / "train-metadata.csv", index=False)
    with pytest.raises(InputError, match=f"another {name} for 1 lesions"):
        main(["--data", str(tmp_path), *arguments(trained, report_folder, tmp_path / "card.md")[2:]])


def test_rows_without_licence_sex_or_skin_have_a_table():
    rows = pd.DataFrame({ID: ["a", "b"], PATIENT: ["p", "q"], TARGET: [0, 1]})
    assert sources_of(rows) == [
        {"hospital": "not given", "licence": "not given", "lesions": 2, "malignant": 1, "patients": 2}
    ]
    counts = {name: values for name, *values in characteristics(rows, rows[:1])}
    assert counts["malignant"] == ["1 (50.00%)", "0 (0.00%)"]


def test_the_skin_angle_is_one_per_patient(trained):
    rows = read_metadata(trained.data / "train-metadata.csv", labelled=True)
    shown = {name: value for name, value, _ in characteristics(rows, rows)}["skin angle of patients, degrees"]
    low, middle, high = np.percentile(skin_tone_angles(rows)[rows.drop_duplicates(PATIENT).index], (25, 50, 75))
    assert shown == f"{middle:.0f} ({low:.0f} to {high:.0f})"


def test_what_was_not_measured_stays_open(trained):
    options = read_options(["--data", str(trained.data), "--artifacts", str(trained.data), "--report", str(trained.data)])
    cost = cost_of(options, ["fusion"], {})
    assert (cost["hours"], cost["watts"], cost["training_kwh"], cost["kernel_wh_per_1000"]) == (None, None, None, None)


def test_the_cost_is_of_all_networks_or_not_recorded(tmp_path):
    for name in ("data", "artifacts", "artifacts-logs"):
        (tmp_path / name).mkdir()
    for name, seconds in (("fusion", "3600\n1800"), ("second", "900")):
        (tmp_path / "artifacts-logs" / f"{name}-history.csv").write_text(f"seconds\n{seconds}\n")
    where = ["--data", str(tmp_path / "data"), "--artifacts", str(tmp_path / "artifacts"), "--report", str(tmp_path)]
    options = read_options([*where, "--watts", "100"])
    cost = cost_of(options, ["second", "fusion"], {})
    assert (cost["hours"], cost["epochs"], cost["training_kwh"]) == (1.75, 3, 0.175)
    assert cost["history"] == "second-history.csv, fusion-history.csv"
    cost = cost_of(options, ["second", "third"], {})
    assert (cost["hours"], cost["training_kwh"], cost["history"]) == (None, None, "third-history.csv")
