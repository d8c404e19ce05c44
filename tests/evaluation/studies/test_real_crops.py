import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_release import make_release
from small_network import small_backbone

from evaluation.studies import real_crops
from evaluation.studies.image_share import SHARES
from evaluation.studies.real_crops import (
    FIXED,
    RECIPE,
    Request,
    last_value,
    main,
    make_folders,
    make_stages,
    trainings_of,
    with_sources,
)
from evaluation.studies.real_fusion import rescored
from evaluation.studies.real_recipe import (
    ARCHIVES,
    FACTORS,
    NETWORKS,
    PRETRAIN,
    SHORT,
    SYNTHETIC,
    UNLABELLED,
    UNLABELLED_IMAGENET,
)
from inference.artifacts import checked_file
from inference.images import ImageStore
from inference.schema import ID, PATIENT, TARGET
from train.manifest import read_manifest, record_stage
from train.network.config import parse_fusion_options
from utils import InputError, bootstrap_scores

SMALL = ["--backbone", "resnet50", "--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "16"]
RELEASED, OTHERS = 45, 15


@pytest.fixture(scope="session")
def made_release(synthetic_data, shared_folder):
    """The release of some lesions of ``synthetic_data``; the others have a crop there only."""
    return shared_folder("release", lambda folder: make_release(synthetic_data, folder / "root", RELEASED)) / "root"


@pytest.fixture(autouse=True)
def tabular(monkeypatch):
    """Replaces train.tabular: a constant logit where the features are the hospital, else the label and noise."""

    def stand_in(arguments):
        folder = Path(arguments[arguments.index("--artifacts") + 1])
        manifest = read_manifest(folder)
        if "tabular" in manifest:
            return
        rows = pd.read_csv(folder / "folds.csv")
        noise = np.random.default_rng(0).normal(scale=3, size=len(rows)) + rows[TARGET]
        logits = -1.5 if manifest["folds"]["features"]["columns"] else noise
        rows[[ID, TARGET, "fold"]].assign(tabular=logits).to_csv(folder / "oof_tabular.csv", index=False)
        record_stage(folder, "tabular", {}, ["oof_tabular.csv"])

    monkeypatch.setattr(real_crops, "train_tabular", stand_in)


@pytest.fixture
def commands(monkeypatch):
    """The commands of train.fusion, which is replaced: its logits are the better the later it is called."""
    commands = []

    def train(arguments):
        commands.append(arguments)
        folder = Path(last_value(arguments, "--artifacts"))
        oof = pd.read_csv(folder / "oof_tabular.csv")
        noise = np.random.default_rng(len(commands)).normal(size=len(oof))
        oof.assign(network=noise + oof[TARGET] * len(commands)).to_csv(folder / "oof_image_only.csv", index=False)

    monkeypatch.setattr("evaluation.studies.compare.train_fusion", train)
    return commands


@pytest.fixture
def command(made_release, tmp_path):
    return ["--root", str(made_release), "--out", str(tmp_path / "out")]


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]


def trained_with(arguments):
    """The options of a training behind those of the recipe and of the folders."""
    return arguments[4 + len((*RECIPE, *SHORT)) : arguments.index("--cache")]


# The folders


def test_the_folders_have_all_crops_and_those_of_train(made_release, tmp_path):
    out = tmp_path / "out"
    make_folders(made_release, out, with_train=True)
    split = pd.read_csv(made_release / "split.csv")
    tables = {name: pd.read_csv(out / name / "train-metadata.csv", dtype=str) for name in ("all", "train")}
    assert len(tables["all"]) == RELEASED
    assert list(tables["train"][ID]) == list(split.loc[split["split"] == "train", ID])
    assert tables["train"].equals(tables["all"][tables["all"][ID].isin(tables["train"][ID])].reset_index(drop=True))
    assert all(isic_id in ImageStore(out / "train" / "train-image.hdf5") for isic_id in tables["train"][ID])
    assert sorted(path.name for path in out.iterdir()) == ["all", "train"]


def test_folders_are_kept_and_another_split_is_refused(made_release, tmp_path):
    root, out = shutil.copytree(made_release, tmp_path / "root"), tmp_path / "out"
    make_folders(root, out, with_train=True)
    files = [out / name / file for name in ("all", "train") for file in ("train-metadata.csv", "train-image.hdf5")]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    make_folders(root, out, with_train=True)
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files] == before
    split = pd.read_csv(root / "split.csv")
    split.iloc[1:].to_csv(root / "split.csv", index=False)
    with pytest.raises(InputError, match=r"made with another split\.csv"):
        make_folders(root, out, with_train=True)
    split.assign(split="val").to_csv(root / "split.csv", index=False)
    with pytest.raises(InputError, match="assigns no crop"):
        make_folders(root, out, with_train=True)


def test_only_the_factors_need_the_split(made_release, tmp_path):
    root = shutil.copytree(made_release, tmp_path / "root", ignore=shutil.ignore_patterns("split.csv"))
    make_folders(root, tmp_path / "out", with_train=False)
    with pytest.raises(InputError, match=r"split\.csv"):
        make_folders(root, tmp_path / "out", with_train=True)


def test_known_patients_stay_together_and_the_features_see_the_hospital_alone(made_release, tmp_path):
    make_folders(made_release, tmp_path, with_train=True)
    make_stages(tmp_path, "train")
    folds = pd.read_csv(tmp_path / "train-artifacts" / "folds.csv")
    assert set(folds["fold"]) == {0, 1, 2}
    assert folds[PATIENT].duplicated().any()
    assert folds.groupby(PATIENT)["fold"].nunique().eq(1).all()
    features = read_manifest(tmp_path / "train-artifacts")["folds"]["features"]
    assert (features["patients"], features["columns"]) == ("own", ["attribution"])


# The variants


@pytest.mark.parametrize("name", FACTORS)
def test_the_options_of_every_variant_are_those_of_train_fusion(name, tmp_path):
    (tmp_path / "weights").touch()
    (tmp_path / "synthetic").mkdir()
    paths = {ARCHIVES: str(tmp_path), SYNTHETIC: str(tmp_path / "synthetic")}
    paths |= dict.fromkeys((UNLABELLED, UNLABELLED_IMAGENET), str(tmp_path / "weights"))
    found = {}
    for trained in trainings_of(Request(tmp_path, tmp_path), name, []):
        words = [paths.get(word, word) for word in trained.variant.options]
        found[trained.name] = parse_fusion_options(["--data", str(tmp_path), "--artifacts", str(tmp_path / "a"), *words])
    assert list(found) == list(FACTORS[name].variants)
    if not FACTORS[name].views:
        assert len({repr(each) for each in found.values()}) == len(found)
        assert all(training.inputs == "image" for _, training in found.values())


def test_equal_options_have_one_folder_in_all_factors(tmp_path):
    trainings = [each for name in FACTORS for each in trainings_of(Request(tmp_path, tmp_path, seeds=2), name, [])]
    options = {}
    for trained in trainings:
        options.setdefault(trained.variant.name, set()).add(trained.variant.options)
    assert all(len(found) == 1 for found in options.values())
    assert len(options) == len({trained.variant.options for trained in trainings})


def test_paths_in_the_options_are_made_when_they_are_needed(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(real_crops, "write_archives", lambda config, out: made.append((config.years, out)) or "")
    monkeypatch.setattr(real_crops, "pretrain_without_labels", lambda words: made.append(words))
    request = Request(tmp_path, tmp_path / "out", archives=tmp_path / "archives")
    found = {each.name: each for each in trainings_of(request, "start", [])}
    words = with_sources(request, found["HAM10000 from ImageNet"]).variant.options
    assert last_value(words, "--archives") == str(tmp_path / "out" / "ham10000")
    assert made == [(["2018"], tmp_path / "out" / "ham10000")]
    weights = Path(last_value(with_sources(request, found["self-supervised"]).variant.options, "--weights"))
    assert [last_value(made[1], option) for option in ("--out", "--weights")] == [str(weights), "none"]
    backbone = last_value(RECIPE, "--backbone")
    assert last_value(made[1], "--backbone") == backbone
    (tmp_path / "out").mkdir()
    weights.touch()
    with_sources(request, found["self-supervised"])
    assert len(made) == 2
    monkeypatch.setattr(real_crops, "write_dataset", lambda out, config: made.append((out, config.lesions)) or "")
    words = with_sources(request, found["synthetic crops from random"]).variant.options
    assert made[2:] == [(Path(last_value(words, "--archives")), 10_000)]
    with pytest.raises(InputError, match="--archives is missing"):
        with_sources(Request(tmp_path, tmp_path), found["HAM10000 from random"])
    assert PRETRAIN[1] in found["HAM10000 from random"].variant.request["options"]  # the same wherever the folder lies


# The tables


def test_a_factor_is_trained_with_every_seed_and_compared(command, commands, tmp_path):
    assert main([*command, "--factors", "size", "--variants", "64", "160", "--seeds", "2", *SMALL]) == 0
    words = [["--image-size", "64"], ["--image-size", "160"]]
    runs = [[], [], words[0], words[0], words[1], words[1]]
    expected = [[*SMALL, *own, "--inputs", "image", "--seed", seed] for own, seed in zip(runs, "010101", strict=True)]
    assert [trained_with(each) for each in commands] == expected
    assert {last_value(each, "--data") for each in commands} == {str(tmp_path / "out" / "train")}
    rows = cells_of((tmp_path / "out" / "size.md").read_text(encoding="utf-8"))
    assert [row[:2] for row in rows] == [["96", ""], *([own[1], " ".join(own)] for own in words)]
    folds = pd.read_csv(tmp_path / "out" / "train-artifacts" / "folds.csv")
    networks = tmp_path / "out" / "networks"
    logits = {str(s): pd.read_csv(networks / f"image-size-64-seed{s}" / "oof_image_only.csv")["network"] for s in (0, 1)}
    table = bootstrap_scores(folds[TARGET], folds[PATIENT], logits)
    paucs, aucs = ([getattr(table.scores[s], name).value for s in "01"] for name in ("pauc", "auc"))
    assert rows[1][2].split()[0] == f"{np.mean(paucs):.4f}"
    assert rows[1][3] == f"{paucs[0]:.4f}, {paucs[1]:.4f}"
    assert rows[1][4] == f"{np.mean(aucs):.4f}"
    assert rows[0][5] == ""
    gain = np.mean(paucs) - float(rows[0][2].split()[0])
    assert float(rows[1][5].split()[0]) == pytest.approx(gain, abs=2e-4)


def test_a_variant_that_other_code_has_trained_is_named_below_the_table(command, commands, tmp_path):
    command += ["--factors", "size", "--variants", "64", *SMALL]
    main(command)
    assert "code" not in (tmp_path / "out" / "size.md").read_text(encoding="utf-8")
    path = tmp_path / "out" / "networks" / "image-size-64-seed0" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["made_with"]["image_only"] = {"code": "b" * 64}
    path.write_text(json.dumps(manifest))
    main(command)
    text = (tmp_path / "out" / "size.md").read_text(encoding="utf-8")
    assert "image-size-64-seed0: code bbbbbbbb; the others: code unknown." in text


def test_what_is_trained_is_kept_for_all_factors(command, commands, tmp_path):
    main([*command, "--factors", "size", *SMALL])
    assert len(commands) == 4
    main([*command, "--factors", "size", "average", "seeds", *SMALL])
    assert len(commands) == 7  # their base is the recipe too
    assert [len(cells_of((tmp_path / "out" / f"{name}.md").read_text())) for name in ("size", "average", "seeds")] == [
        4,
        4,
        1,
    ]
    with pytest.raises(InputError, match="training with other options"):
        main([*command, "--factors", "size", *SMALL, "--epochs", "2"])


@pytest.mark.parametrize("option", FIXED)
def test_what_the_study_sets_cannot_be_given(option, command, commands, tmp_path):
    with pytest.raises(InputError, match=f"'{option}' cannot be given"):
        main([*command, "--factors", "size", option, "3"])
    assert not (tmp_path / "out").exists()


def test_a_variant_that_no_factor_has_is_refused(command, commands):
    with pytest.raises(InputError, match="'65' is none of the --factors"):
        main([*command, "--factors", "size", "average", "--variants", "64", "65"])
    with pytest.raises(InputError, match="--archives is missing"):
        main([*command, "--factors", "start", "--variants", "HAM10000 from random", *SMALL])
    assert commands == []


def test_views_are_scored_with_the_networks_of_one_training(command, commands, tmp_path, monkeypatch):
    scored = []

    def stand_in(data, folder, views):
        scored.append((folder.name, views))
        oof = pd.read_csv(folder / "oof_image_only.csv").set_index(ID)
        return oof["network"] + views * oof[TARGET], 60.0 * views

    monkeypatch.setattr(real_crops, "rescored", stand_in)
    main([*command, "--factors", "views", "--variants", "2", *SMALL])
    (folder,) = {name for name, _ in scored}
    assert [views for _, views in scored] == [1, 2]
    assert [(last_value(each, "--inputs"), Path(last_value(each, "--artifacts")).name) for each in commands] == [
        ("fusion", folder)
    ]
    rows = cells_of((tmp_path / "out" / "views.md").read_text(encoding="utf-8"))
    assert [[row[0], row[1], row[-1]] for row in rows] == [["1", "--views 1", "1.0"], ["2", "--views 2", "2.0"]]


# The final run, with networks


def test_the_final_run_leaves_tables_and_artifacts_and_is_kept(command, synthetic_data, eager, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    command += ["--competition", str(synthetic_data), *SMALL, "--views", "1"]
    out, artifacts = tmp_path / "out", tmp_path / "out" / "artifacts"
    assert main(command) == 0
    texts = {name: (out / name).read_text(encoding="utf-8") for name in ("final.md", "rows.md")}
    manifest = read_manifest(artifacts)
    networks = manifest["network"]["networks"]
    assert set(networks) == set(NETWORKS) == {"fusion", "pixels-96", "benign-8", "cutout"}
    assert networks["fusion"]["weights"] == [f"fusion_fold{fold}.weights.h5" for fold in range(3)]
    assert (networks["pixels-96"]["settings"]["image_size"], networks["pixels-96"]["training"]["seed"]) == (96, 1)
    assert all(checked_file(artifacts, manifest, name) for name in manifest["files"])
    oof, folds = (pd.read_csv(artifacts / name) for name in ("oof_fusion.csv", "folds.csv"))
    columns = {"mean of the networks": "network"} | {f"network {name}": f"network_{name}" for name in networks}
    own = [f"network_{name}" for name in NETWORKS]
    np.testing.assert_allclose(oof["network"], oof[own].mean(axis=1), atol=1e-6)
    table = bootstrap_scores(oof[TARGET], folds[PATIENT], {name: oof[column] for name, column in columns.items()})
    assert len(oof) == RELEASED
    assert [row[:3] for row in cells_of(texts["final.md"])] == [
        [name, *(f"{each.value:.4f} [{each.low:.4f}, {each.high:.4f}]" for each in (score.pauc, score.auc))]
        for name, score in table.scores.items()
    ]
    rows = cells_of(texts["rows.md"])
    names = ["tabular", "network", "tabular and network", "both in context", "stacking", "mean of these and stacking"]
    assert [row[1] for row in rows[:6]] == names
    sizes = [f"all: {RELEASED + OTHERS} rows", f"crops of the release: {RELEASED} rows", f"other crops: {OTHERS} rows"]
    assert [row[0].split(",")[0] for row in rows[:18:6]] == sizes
    assert rows[-len(SHARES) - 1][:2] == ["tabular", "0"] and rows[-1][:2] == ["100 %", str(RELEASED + OTHERS)]
    scores, _ = rescored(out / "all", artifacts, 1)
    assert scores[oof[ID]].to_numpy() == pytest.approx(oof["network"].to_numpy(), abs=1e-5)
    assert (rescored(out / "all", artifacts, 2)[0] != scores).any()
    seconds = [(artifacts / f"{name}-seconds.json").read_text() for name in NETWORKS]
    main(command)
    assert [(artifacts / f"{name}-seconds.json").read_text() for name in NETWORKS] == seconds
    assert {name: (out / name).read_text(encoding="utf-8") for name in texts} == texts
