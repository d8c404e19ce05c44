import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from inference.artifacts import FOLDS, checked_file, load_manifest
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, read_metadata
from train.folds import HOLDOUT, assign_folds, holdout_by_hospital, holdout_by_share, make_folds, read_folds
from train.manifest import record_stage
from utils import InputError

ROOT = Path(__file__).resolve().parents[2]
HOSPITALS = ["Hospital Clínic de Barcelona", "University Hospital of Basel", "University of Athens", "ACEMID MIA"]


@pytest.fixture
def clinic():
    """2,000 made lesions of 120 patients of very different sizes; 3 % are malignant."""
    rng = np.random.default_rng(0)
    patient = np.sort(rng.choice(120, 2000, p=rng.dirichlet(np.full(120, 0.7))))
    return pd.DataFrame(
        {
            ID: [f"ISIC_{row:07d}" for row in range(2000)],
            PATIENT: [f"IP_{number:03d}" for number in patient],
            TARGET: (rng.random(2000) < 0.03).astype(int),
            HOSPITAL: np.array(HOSPITALS)[patient % 4],
        }
    )


@pytest.fixture
def no_holdout(clinic):
    return np.zeros(len(clinic), dtype=bool)


def run(data, artifacts, *options):
    return make_folds(["--data", str(data), "--artifacts", str(artifacts), *options])


# Assigning


def test_no_patient_is_on_both_sides_of_a_fold(clinic, no_holdout):
    fold = assign_folds(clinic, 5, no_holdout, seed=0)
    assert fold.dtype == "int64"
    assert set(fold) == {0, 1, 2, 3, 4}
    assert (clinic.assign(fold=fold).groupby(PATIENT)["fold"].nunique() == 1).all()


def test_malignant_lesions_are_spread_evenly(clinic, no_holdout):
    fold = assign_folds(clinic, 5, no_holdout, seed=0)
    malignant = np.bincount(fold, clinic[TARGET])
    lesions = np.bincount(fold)
    assert malignant.max() - malignant.min() <= 2
    assert lesions.max() < 1.2 * lesions.min()


def test_same_seed_same_folds(clinic, no_holdout):
    fold = assign_folds(clinic, 5, no_holdout, seed=3)
    assert np.array_equal(fold, assign_folds(clinic, 5, no_holdout, seed=3))
    assert not np.array_equal(fold, assign_folds(clinic, 5, no_holdout, seed=4))


def test_the_holdout_is_in_no_fold(clinic):
    holdout = holdout_by_share(clinic, 0.2, seed=0)
    fold = assign_folds(clinic, 4, holdout, seed=0)
    assert np.array_equal(fold == HOLDOUT, holdout)
    assert (clinic.assign(fold=fold).groupby(PATIENT)["fold"].nunique() == 1).all()


def test_too_few_patients_with_a_malignant_lesion_are_refused(clinic, no_holdout):
    clinic[TARGET] = clinic[PATIENT].isin(clinic[PATIENT].unique()[:3]).astype(int)
    with pytest.raises(InputError, match=r"^--folds 5 takes .* there are 3; lower --folds"):
        assign_folds(clinic, 5, no_holdout, seed=0)
    with pytest.raises(InputError, match=r"^--holdout 0\.2 takes 5 .* there are 3; give --holdout 0"):
        holdout_by_share(clinic, 0.2, seed=0)
    with pytest.raises(InputError, match=r"^--folds 3 takes .* there are 2 outside the holdout;"):
        assign_folds(clinic, 3, (clinic[PATIENT] == clinic[PATIENT].iloc[0]).to_numpy(), seed=0)


def test_a_fold_that_cannot_be_scored_is_refused_before_anything_is_trained():
    rows = pd.DataFrame({PATIENT: ["a", "b", "c", "c"], TARGET: [1, 1, 0, 0]})  # of two folds one has no benign lesion
    with pytest.raises(InputError, match=r"^--folds: part "):
        for seed in range(10):
            fold = assign_folds(rows, 2, np.zeros(4, dtype=bool), seed)
            assert (rows.groupby(fold)[TARGET].nunique() == 2).all()


# The holdout


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 0.4, 0.5])
def test_the_holdout_has_about_the_share_asked_for(clinic, share):
    holdout = holdout_by_share(clinic, share, seed=0)
    assert holdout.dtype == bool
    assert holdout.mean() == pytest.approx(share, abs=0.04)
    assert clinic[TARGET][holdout].sum() / clinic[TARGET].sum() == pytest.approx(share, abs=0.04)
    assert (clinic.assign(out=holdout).groupby(PATIENT)["out"].nunique() == 1).all()


def test_a_share_of_0_holds_no_row_out(clinic):
    assert not holdout_by_share(clinic, 0.0, seed=0).any()


@pytest.mark.parametrize("share", ["-0.1", "0.51", "1.0", "nan"])
def test_shares_out_of_range_are_refused(synthetic_data, tmp_path, share):
    with pytest.raises(InputError, match=f"--holdout: '{share}'"):
        run(synthetic_data, tmp_path, f"--holdout={share}")


def test_a_share_too_small_to_hold_a_malignant_lesion_names_its_own_option(clinic):
    with pytest.raises(InputError, match="--holdout"):
        holdout_by_share(clinic, 0.001, seed=0)


@pytest.mark.parametrize("name", ["University Hospital of Basel", "Basel", "hospital of basel"])
def test_a_hospital_is_found_by_a_part_of_its_name(clinic, name):
    assert np.array_equal(holdout_by_hospital(clinic, name), clinic[HOSPITAL] == "University Hospital of Basel")


def test_a_patient_of_two_hospitals_is_held_out_whole(clinic):
    patient = clinic.loc[clinic[HOSPITAL] == "ACEMID MIA", PATIENT].iloc[0]
    rows = clinic.index[clinic[PATIENT] == patient]
    clinic.loc[rows[0], HOSPITAL] = "University Hospital of Basel"
    assert holdout_by_hospital(clinic, "Basel")[rows].all()
    assert holdout_by_hospital(clinic, "ACEMID")[rows].all()


@pytest.mark.parametrize(("name", "number"), [("Vienna", 0), ("University", 2), ("hospital", 2)])
def test_an_unknown_or_ambiguous_hospital_is_refused_with_a_list(clinic, name, number):
    with pytest.raises(InputError, match=f"'{name}' fits {number} hospitals; give one of: ACEMID MIA; Hospital Cl"):
        holdout_by_hospital(clinic, name)


def test_a_whole_name_wins_over_names_that_contain_it(clinic):
    clinic.loc[clinic[HOSPITAL] == "University of Athens", HOSPITAL] = "ACEMID MIA North"
    assert np.array_equal(holdout_by_hospital(clinic, "ACEMID MIA"), clinic[HOSPITAL] == "ACEMID MIA")


def test_without_hospitals_none_can_be_held_out(clinic):
    with pytest.raises(InputError, match="needs the column 'attribution'"):
        holdout_by_hospital(clinic.drop(columns=HOSPITAL), "Basel")


# folds.csv


def test_the_command_writes_folds_that_are_read_back_in_any_order(synthetic_data, metadata, tmp_path, capsys):
    assert run(synthetic_data, tmp_path, "--folds", "2", "--holdout", "0.25") == 0
    fold = read_folds(tmp_path, metadata)
    assert set(fold) == {HOLDOUT, 0, 1}
    assert np.array_equal(read_folds(tmp_path, metadata.iloc[::-1]), fold[::-1])
    table = pd.read_csv(tmp_path / FOLDS)
    assert list(table) == [ID, PATIENT, TARGET, "fold"]
    assert table[ID].tolist() == metadata[ID].tolist()
    assert "2 folds of" in capsys.readouterr().out
    manifest = load_manifest(tmp_path)
    assert checked_file(tmp_path, manifest, FOLDS) == tmp_path / FOLDS
    assert manifest["folds"]["holdout_rows"] == (fold == HOLDOUT).sum()


def test_the_command_holds_a_hospital_out(synthetic_data, metadata, tmp_path):
    hospital = metadata.groupby(HOSPITAL)[PATIENT].nunique().idxmin()
    run(synthetic_data, tmp_path, "--folds", "2", "--holdout-hospital", hospital)
    fold = read_folds(tmp_path, metadata)
    assert np.array_equal(fold == HOLDOUT, metadata[HOSPITAL] == hospital)
    assert load_manifest(tmp_path)["folds"]["holdout_hospital"] == hospital


def test_the_same_settings_may_be_given_again_but_no_others(synthetic_data, tmp_path):
    run(synthetic_data, tmp_path, "--folds", "2", "--holdout", "0")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(synthetic_data, tmp_path, "--folds", "2", "--holdout", "0") == 0
    for options in (["--folds", "3", "--holdout", "0"], ["--folds", "2", "--holdout", "0.5"]):
        with pytest.raises(InputError, match=r"folds\.csv exists with other folds.*use a new artifact folder"):
            run(synthetic_data, tmp_path, *options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folds_of_other_rows_are_refused(synthetic_data, metadata, tmp_path):
    with pytest.raises(InputError, match=r"folds\.csv is missing; run: python -m train\.folds"):
        read_folds(tmp_path, metadata)
    run(synthetic_data, tmp_path, "--folds", "2", "--holdout", "0")
    for other in (metadata.iloc[1:], metadata.assign(**{ID: "ISIC_" + metadata.index.astype(str)})):
        with pytest.raises(InputError, match="use a new artifact folder for new data"):
            read_folds(tmp_path, other)


@pytest.mark.parametrize("name", [TARGET, PATIENT])
def test_folds_of_rows_with_another_label_or_patient_are_refused(synthetic_data, metadata, tmp_path, name):
    run(synthetic_data, tmp_path, "--folds", "2", "--holdout", "0")
    other = metadata.copy()
    other.loc[7, name] = 1 - other.loc[7, name] if name == TARGET else "IP_0000001"
    with pytest.raises(InputError, match=rf"another {name} for 1 lesions.*{other.loc[7, ID]}.*use a new artifact folder"):
        read_folds(tmp_path, other)


@pytest.mark.parametrize("folds", ["1", "0", "-3"])
def test_fewer_than_two_folds_are_refused(synthetic_data, tmp_path, folds):
    with pytest.raises(InputError, match=f"--folds: '{folds}'"):
        run(synthetic_data, tmp_path, "--folds", folds)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_the_command_exits_with_2_and_one_sentence(synthetic_data, tmp_path):
    where = ["--data", synthetic_data, "--artifacts", tmp_path]
    command = [sys.executable, "-m", "train.folds", *where, "--holdout-hospital", "Atlantis"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --holdout-hospital 'Atlantis' fits 0 hospitals; give one of: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_real_patients_and_their_folds(real_data, tmp_path):
    run(real_data, tmp_path)
    metadata = read_metadata(real_data / "train-metadata.csv", labelled=True)
    table = metadata.assign(fold=read_folds(tmp_path, metadata))
    assert (table.groupby(PATIENT)["fold"].nunique() == 1).all()
    malignant = table.groupby("fold")[TARGET].sum()
    assert malignant.index.tolist() == [HOLDOUT, 0, 1, 2, 3, 4]
    assert malignant.drop(HOLDOUT).max() - malignant.drop(HOLDOUT).min() <= 2
    assert malignant[HOLDOUT] == pytest.approx(0.2 * malignant.sum(), abs=2)
    assert load_manifest(tmp_path)["folds"]["holdout_rows"] == (table["fold"] == HOLDOUT).sum()


def test_other_folds_are_put_in_place_on_request(synthetic_data, metadata, tmp_path):
    run(synthetic_data, tmp_path, "--folds", "2", "--holdout", "0")
    (tmp_path / "n.h5").write_text("a network")
    for stage, files in (("tabular", []), ("network", ["n.h5"])):
        record_stage(tmp_path, stage, {}, files)
    other = ["--folds", "3", "--holdout", "0"]
    with pytest.raises(InputError, match="other folds, and tabular, network rest on them"):
        run(synthetic_data, tmp_path, *other)
    assert run(synthetic_data, tmp_path, *other, "--replace") == 0
    assert set(read_folds(tmp_path, metadata)) == {0, 1, 2}
    assert {"tabular", "network"}.isdisjoint(load_manifest(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {FOLDS, "manifest.json"}
