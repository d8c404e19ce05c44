"""The files of a synthetic dataset: form, equal bytes of two runs, known best score, and refusal of bad arguments."""

import io
import resource
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from inference.schema import TEST_COLUMNS, TRAIN_COLUMNS, read_metadata
from scale.parallel import workers
from train.synthetic import dataset
from train.synthetic.__main__ import main
from train.synthetic.dataset import STYLE, DatasetConfig, make_tables, write_dataset, write_images
from train.synthetic.malignancy import TEXTURE_VARIANCE
from utils import InputError, partial_auc

SMALL = DatasetConfig(patients=8, lesions=40, prevalence=0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("dataset")
    write_dataset(out, SMALL)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_and_columns_are_the_competitions(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("train-metadata.csv", "train-image.hdf5", "test-metadata.csv", "test-image.hdf5"),
        *("sample_submission.csv", "truth.csv"),
    }
    assert tuple(pd.read_csv(folder / "train-metadata.csv", nrows=0)) == TRAIN_COLUMNS
    assert tuple(pd.read_csv(folder / "test-metadata.csv", nrows=0)) == TEST_COLUMNS
    train = read_metadata(folder / "train-metadata.csv", labelled=True)
    assert len(train) == 40
    assert train["isic_id"].is_monotonic_increasing
    sample = pd.read_csv(folder / "sample_submission.csv")
    test = read_metadata(folder / "test-metadata.csv", labelled=False)
    assert sample["isic_id"].tolist() == test["isic_id"].tolist()
    assert (sample["target"] == 0.3).all()


def test_test_patients_have_one_lesion_and_one_hospital_is_not_in_train(folder):
    train = read_metadata(folder / "train-metadata.csv", labelled=True)
    test = read_metadata(folder / "test-metadata.csv", labelled=False)
    assert len(test) == test["patient_id"].nunique() == 3
    assert not set(test["patient_id"]) & set(train["patient_id"])
    assert not set(test["isic_id"]) & set(train["isic_id"])
    assert "FNQH Cairns" in set(test["attribution"]) - set(train["attribution"])


def test_text_is_written_as_the_competition_does(folder):
    text = pd.read_csv(folder / "train-metadata.csv", dtype=str, keep_default_na=False)
    assert text["age_approx"].str.fullmatch(r"\d+\.0|").all()
    assert text["tbp_lv_symm_2axis_angle"].str.fullmatch(r"\d+").all()
    assert text["target"].isin(["0", "1"]).all()
    assert not text.isin(["nan", "None", "NA", "<NA>"]).any().any()
    assert (text["iddx_5"] == "").all()


@pytest.mark.parametrize("name", ["train", "test"])
def test_images_lie_in_hdf5_as_in_the_competitions_file(folder, name):
    ids = pd.read_csv(folder / f"{name}-metadata.csv")["isic_id"]
    with h5py.File(folder / f"{name}-image.hdf5") as file:
        assert sorted(file) == ids.tolist()
        for lesion in ids:
            data = file[lesion]
            assert data.shape == ()
            assert data.chunks is None
            assert data.dtype.kind == "S"
            assert not data.attrs
            jpeg = data[()]
            assert isinstance(jpeg, np.bytes_)
            assert len(jpeg) == data.dtype.itemsize
            assert Image.open(io.BytesIO(jpeg)).format == "JPEG"


REAL = Path(__file__).parents[4] / "shared" / "data" / "isic-2024-challenge" / "test-image.hdf5"


@pytest.mark.skipif(not REAL.exists(), reason="the competition's public test file is not here")
def test_hdf5_form_equals_the_real_files(folder):
    def form(path: Path) -> set:
        with h5py.File(path) as file:
            kinds = [(dataset, dataset.id.get_type()) for dataset in file.values()]
            return {
                (
                    dataset.shape,
                    str(kind.get_class()),
                    kind.get_strpad(),
                    kind.get_cset(),
                    dataset.id.get_create_plist().get_layout(),
                )
                for dataset, kind in kinds
            }

    assert form(folder / "test-image.hdf5") == form(REAL)


@pytest.mark.integration
def test_same_arguments_give_same_bytes_whatever_the_jobs(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK", 16)
    with workers(2):
        write_dataset(tmp_path, SMALL)
    again = contents(tmp_path)
    assert again == contents(folder)
    write_dataset(tmp_path, replace(SMALL, seed=1))
    other = contents(tmp_path)
    assert all(other[name] != again[name] for name in other)


def test_metadata_alone(tmp_path):
    summary = write_dataset(tmp_path, DatasetConfig(patients=3, lesions=3), images="none")
    assert not list(tmp_path.glob("*.hdf5"))
    assert "3 lesions of 3 patients" in summary
    truth = pd.read_csv(tmp_path / "truth.csv")
    assert (truth["context_part"] == 0.0).all()  # no other lesion to compare with


def test_truth_fits_the_labels_and_bounds_every_score():
    tables = make_tables(DatasetConfig(patients=200, lesions=20_000, prevalence=0.05))
    truth, texture, target = tables.truth, tables.train_texture, tables.train["target"].to_numpy()
    assert truth["probability"].mean() == pytest.approx(0.05)
    assert target.mean() == pytest.approx(0.05, abs=0.005)
    parts = truth[["lesion_part", "context_part", "texture_part"]]
    intercept = truth["logit"] - parts.sum(axis=1)
    assert np.ptp(intercept) < 1e-9
    assert np.allclose(1.0 / (1.0 + np.exp(-truth["logit"])), truth["probability"])
    own = truth["texture_part"] / np.sqrt(TEXTURE_VARIANCE)
    assert (own.mean(), own.std()) == pytest.approx((0, 1), abs=0.02)
    style = (texture - np.sqrt(1 - STYLE) * own).groupby(tables.train["patient_id"])
    assert style.std().max() < 1e-9  # what a crop shows beyond the lesion's own texture is the patient's
    assert style.first().var() == pytest.approx(STYLE, rel=0.4)
    assert np.var(texture) == pytest.approx(1, abs=0.1)
    best = partial_auc(target, truth["logit"])
    metadata = partial_auc(target, truth["lesion_part"] + truth["context_part"])
    lesion = partial_auc(target, truth["lesion_part"])
    assert best > metadata + 0.01 > lesion + 0.02
    by_decile = pd.Series(target).groupby(pd.qcut(truth["logit"], 10).cat.codes)
    expected = truth["probability"].groupby(pd.qcut(truth["logit"], 10).cat.codes).mean()
    assert np.allclose(by_decile.mean(), expected, atol=0.03)


def test_texture_is_independent_of_every_column():
    tables = make_tables(DatasetConfig(patients=100, lesions=20_000, prevalence=0.05))
    shown, own = pd.Series(tables.train_texture), tables.truth["texture_part"] / np.sqrt(TEXTURE_VARIANCE)
    numbers = tables.train[list(TEST_COLUMNS)].select_dtypes("number")
    # The style has one value per patient, as some columns have: chance is larger among a hundred values.
    for strength, style in ((own, 0.0), (shown, STYLE)):
        assert numbers.corrwith(strength).abs().max() < 0.03 + 3 * np.sqrt(style / 100)
        by_patient = strength.groupby(tables.train["patient_id"]).agg(["mean", "size"])
        assert (by_patient["mean"].abs() / np.sqrt(style + 1 / by_patient["size"])).max() < 5.0


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"prevalence": 0.0}, "--prevalence"),
        ({"prevalence": 0.5}, "--prevalence"),
        ({"prevalence": float("nan")}, "--prevalence"),
        ({"lesions": 7}, "--lesions"),
        ({"lesions": 10_000_000}, "--lesions"),
        ({"test-lesions": 0}, "--test-lesions"),
        ({"patients": 0}, "--patients"),
        ({"jobs": 0}, "--jobs"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_bad_arguments_are_refused_by_name(tmp_path, bad, word):
    arguments = asdict(SMALL) | {"test-lesions": 5, "jobs": 1} | bad
    arguments.pop("test_lesions")
    with pytest.raises(InputError, match=word):
        main(["--out", str(tmp_path / "new"), *(f"--{name}={value}" for name, value in arguments.items())])
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match="is a file"):
        main(["--out", str(tmp_path / "file"), "--patients=3", "--lesions=9"])
    with pytest.raises(InputError, match="file"):
        main(["--out", str(tmp_path / "file" / "below"), "--patients=3", "--lesions=9"])
    assert (tmp_path / "file").read_text() == "here"


def test_nothing_half_written_when_rendering_fails(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(dataset, "render", broken)
    with pytest.raises(RuntimeError):
        write_dataset(tmp_path, SMALL)
    assert not list(tmp_path.glob("*.hdf5"))
    assert not list(tmp_path.glob(".*"))


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "render", lambda *_: bytes([255]) * 100_000)
    tables = make_tables(DatasetConfig(patients=20, lesions=2_000, prevalence=0.05))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_images(tmp_path / "train-image.hdf5", tables.train, tables.train_texture, seed=0)  # 200 MB of images
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) / 1024 < 80  # MiB


def test_command_prints_one_line(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--patients=8", "--lesions=40", "--prevalence=0.2", "--jobs=1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "best possible pAUC" in printed
