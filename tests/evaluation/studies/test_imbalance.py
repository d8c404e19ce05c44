import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pretended_training import pretend
from small_network import small_backbone

from evaluation.studies.compare import Comparison, signed
from evaluation.studies.imbalance import (
    EPOCHS,
    FIXED,
    VARIANTS,
    Length,
    Treatment,
    as_markdown,
    draw_figure,
    lengths_of,
    main,
    summary,
    training_labels,
    treatments_of,
)
from inference.schema import ID, TARGET
from train.network.config import parse_fusion_options
from train.network.sampling import IMBALANCE_MODES, Imbalance
from utils import InputError, bootstrap_scores

NETWORK = ["--weights", "none", "--image-size", "32", "--batch-size", "16"]
LABELS = (np.arange(1000) % 50 == 0).astype(int)  # 20 malignant lesions, 980 benign ones


@pytest.fixture
def command(synthetic_data, artifacts, tmp_path):
    """A study's command line."""
    return ["--data", str(synthetic_data), "--artifacts", str(artifacts), "--out", str(tmp_path / "study"), *NETWORK]


@pytest.fixture
def refused(command, monkeypatch):
    """Runs the command with further words, which must be refused before any training, and returns the sentence."""

    def run(*words):
        commands = []
        pretend(monkeypatch, commands)
        with pytest.raises(InputError) as caught:
            main([*command, *words])
        assert not commands
        return str(caught.value)

    return run


def comparison_of(seconds, **scores):
    """Scores of forty lesions of ten patients; each is random but for what it adds to malignant lesions."""
    rng = np.random.default_rng(0)
    labels, noise = np.arange(40) % 4 == 0, rng.normal(size=40)
    table = bootstrap_scores(labels, np.arange(40) // 4, {name: noise + gain * labels for name, gain in scores.items()})
    return Comparison(table, seconds)


def cells_of(text):
    """The rows of the Markdown table, cells stripped, without the heading."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(
    ("text", "imbalance"),
    [
        ("undersample:3", Imbalance("undersample", 3)),
        ("oversample:0.5", Imbalance("oversample", 0.5)),
        ("class-weight:12345678", Imbalance("class-weight", 12345678)),
        ("focal:2", Imbalance("focal", gamma=2)),
    ],
)
def test_the_options_of_a_treatment_are_those_of_train_fusion(text, imbalance):
    (treatment,) = treatments_of([text])
    assert treatment.name == text
    assert treatment.imbalance == imbalance
    assert (
        parse_fusion_options(["--data", ".", "--artifacts", "a", "--weights", "none", *treatment.options])[1].sampling
        == imbalance
    )


def test_the_default_variants_are_of_all_modes():
    treatments = treatments_of(list(VARIANTS))
    assert {treatment.mode for treatment in treatments} == set(IMBALANCE_MODES)
    assert [treatment.name for treatment in treatments] == list(VARIANTS)


@pytest.mark.parametrize(
    "text",
    [
        "foo",
        "foo:1",
        "focal",
        "focal:",
        ":3",
        "undersample:0",
        "undersample:-1",
        "undersample:x",
        "focal:nan",
        "focal:inf",
        "oversample:1e-320",
    ],
)
def test_a_malformed_variant_is_refused(text, refused):
    assert refused("--variants", "undersample:1", text).startswith(f"--variants {text!r} is not of the form MODE:RATIO; ")


def test_a_variant_is_named_once(refused):
    assert "'undersample:1.0' is given more than once" in refused("--variants", "undersample:1", "undersample:1.0")
    assert treatments_of(["focal:2", "focal:3"]) == [Treatment("focal", 2.0), Treatment("focal", 3.0)]


@pytest.mark.parametrize("option", FIXED)
def test_what_the_study_sets_cannot_be_given(option, refused):
    value = {"--imbalance": "focal", "--inputs": "image"}.get(option, "3")
    for words in ([option, value], [f"{option}={value}"]):
        assert refused(*words).startswith(f"{words[0]!r} cannot be given")


def test_the_number_of_images_is_above_zero(refused):
    assert refused("--images", "0").startswith("--images: '0'")


def test_further_options_are_checked_before_any_training(refused):
    assert refused("--batch-size", "0").startswith("--batch-size: '0'")


def test_variants_are_trained_on_about_the_same_number_of_images():
    treatments = treatments_of(["undersample:1", "undersample:3", "oversample:7", "class-weight:1", "focal:2"])
    lengths = lengths_of(treatments, LABELS, None)
    assert lengths["undersample:1"] == Length(EPOCHS, 40)
    assert lengths["undersample:3"] == Length(EPOCHS // 2, 80)
    assert lengths["oversample:7"] == Length(2, 1120)
    assert lengths["class-weight:1"] == lengths["focal:2"] == Length(2, 1000)
    assert lengths_of(treatments, LABELS, 480)["oversample:7"] == Length(1, 1120)  # one epoch is the least
    found = [(length.epochs, length.images) for length in lengths_of(treatments, LABELS, 2700).values()]
    assert found == [(68, 2720), (34, 2720), (2, 2240), (3, 3000), (3, 3000)]


def test_epochs_are_counted_in_the_lesions_that_fold_0_is_trained_on(synthetic_data, artifacts):
    folds = pd.read_csv(artifacts / "folds.csv")
    rows = folds[folds["fold"] == 1]  # of two folds and a holdout
    assert 0 < len(rows) < len(folds)
    labels = pd.read_csv(synthetic_data / "train-metadata.csv", low_memory=False).set_index("isic_id")["target"]
    assert sorted(training_labels(synthetic_data, artifacts)) == sorted(labels.loc[rows[ID]])


def test_every_variant_is_trained_on_the_same_folds(command, synthetic_data, artifacts, tmp_path, monkeypatch, capsys):
    commands, study = [], tmp_path / "study"
    pretend(monkeypatch, commands)
    command += ["--variants", "undersample:1", "class-weight:3", "focal:2"]
    assert main(command) == 0
    labels = training_labels(synthetic_data, artifacts)
    drawn = 2 * int(labels.sum())
    epochs = str(max(1, round(EPOCHS * drawn / len(labels))))
    ways = [
        ["--imbalance", "undersample", "--negatives-per-positive", "1", "--epochs", str(EPOCHS)],
        ["--imbalance", "class-weight", "--negatives-per-positive", "3", "--epochs", epochs],
        ["--imbalance", "focal", "--focal-gamma", "2", "--epochs", epochs],
    ]
    folders = [study / name for name in ("undersample-1", "class-weight-3", "focal-2")]
    assert commands == [
        ["--data", str(synthetic_data), "--artifacts", str(folder), *way, *NETWORK]
        for folder, way in zip(folders, ways, strict=True)
    ]
    text, out = (study / "imbalance.md").read_text(encoding="utf-8"), capsys.readouterr().out.splitlines()
    assert "| variant | epochs | images per fold | pAUC | 95 % interval | minus undersample:1, paired | minutes |" in text
    rows = cells_of(text)
    assert [row[:2] for row in rows] == [
        ["tabular", ""],
        ["undersample:1", str(EPOCHS)],
        ["class-weight:3", epochs],
        ["focal:2", epochs],
    ]
    assert [row[2] for row in rows[1:3]] == [f"{EPOCHS * drawn:,}", f"{int(epochs) * len(labels):,}"]
    oof = pd.read_csv(folders[2] / "oof_fusion.csv").drop(3)  # the lesion without an image score
    patients = pd.read_csv(artifacts / "folds.csv").set_index(ID)["patient_id"].loc[oof[ID]]
    networks = {name: oof["tabular"] + number * oof[TARGET] for name, number in (("base", 1), ("best", 3))}
    expected = bootstrap_scores(oof[TARGET], patients, networks)
    difference = signed(expected.difference("best", "base"))  # the stand-in adds most to the variant trained last
    assert rows[3][5] == difference
    assert f"further options: {' '.join(NETWORK)}\n" in text
    assert f"is focal:2, pAUC {expected.scores['best'].pauc.value:.4f}, minus undersample:1 {difference}" in out[-1]
    assert Image.open(study / "imbalance.png").format == "PNG"


def test_the_same_command_keeps_what_is_trained_and_another_is_refused(command, tmp_path, monkeypatch):
    commands = []
    pretend(monkeypatch, commands)
    main([*command, "--variants", "undersample:1", "focal:2"])
    first = (tmp_path / "study" / "imbalance.md").read_text(encoding="utf-8")
    main([*command, "--variants", "undersample:1", "focal:2"])
    assert len(commands) == 2
    assert (tmp_path / "study" / "imbalance.md").read_text(encoding="utf-8") == first
    main([*command, "--variants", "undersample:1", "focal:2", "undersample:0.5"])  # one more beside them
    assert commands[2][commands[2].index("--negatives-per-positive") + 1] == "0.5"
    assert len(commands) == 3
    for other in (["--seed", "3"], ["--images", "500"]):
        with pytest.raises(InputError, match=r"undersample-1 holds a training with other options .*give another --out"):
            main([*command, "--variants", "undersample:1", "focal:2", *other])
    assert len(commands) == 3


@pytest.mark.integration
def test_real_networks_are_trained_and_compared(command, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.applications.ResNet50", small_backbone)
    assert main([*command, "--variants", "focal:2", "--images", "1"]) == 0
    oof = pd.read_csv(tmp_path / "study" / "focal-2" / "oof_fusion.csv")
    assert oof["image_scored"].eq(1).all() and (oof["network"] != oof["tabular"]).all()
    settings = json.loads((tmp_path / "study" / "focal-2" / "manifest.json").read_text())["network"]["networks"]["fusion"]
    assert (settings["training"]["imbalance"], settings["training"]["epochs"]) == ("focal", 1)
    rows = cells_of((tmp_path / "study" / "imbalance.md").read_text(encoding="utf-8"))
    assert [row[:2] for row in rows] == [["tabular", ""], ["focal:2", "1"]]


def test_a_short_image_size_is_not_taken_for_the_number_of_images(command, monkeypatch):
    commands = []
    pretend(monkeypatch, commands)
    main([*command, "--variants", "undersample:1", "--image", "64"])
    assert commands[0][-2:] == ["--image", "64"]
    assert commands[0][commands[0].index("--epochs") + 1] == str(EPOCHS)


def test_the_notes_name_variants_with_more_images_and_epochs_not_counted():
    found = comparison_of({"a": 60.0, "b": 120.0}, tabular=0, a=1, b=2)
    lengths = {"a": Length(13, 47), "b": Length(1, 601)}  # 611 images of a are too many as well, by rounding
    text = as_markdown(found, lengths, 600, 1)
    assert "600 images per fold" in text
    assert "A single epoch has more than that with b: they" in text
    assert "--head-epochs 1, which is not counted" in text
    text = as_markdown(found, lengths | {"b": Length(1, 600)}, 600, 0)
    assert "A single epoch" not in text
    assert "--head-epochs" not in text


def test_the_summary_names_the_best_variant():
    found = comparison_of(dict.fromkeys("abc", 1.0), tabular=5, a=0, b=2, c=1)
    value = found.table.scores["b"].pauc.value
    assert value > found.table.scores["c"].pauc.value > found.table.scores["a"].pauc.value
    assert summary(found).endswith(f"is b, pAUC {value:.4f}, minus a {signed(found.table.difference('b', 'a'))}")
    found = Comparison(found.table, dict.fromkeys("bc", 1.0))
    assert summary(found).endswith(f"is b, pAUC {value:.4f}, the first variant")


def test_the_figure_shows_every_variant_its_interval_and_its_minutes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: drawn.append(figure) or path.touch())
    scores = {"tabular": 0.5, "undersample:1": 1, "focal:2": 2}
    found = comparison_of({"undersample:1": 90.0, "focal:2": 180.0}, **scores)
    lengths = {"undersample:1": Length(12, 1000), "focal:2": Length(1, 12345)}
    draw_figure(tmp_path / "imbalance.png", found, lengths)
    left, right = drawn[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["undersample:1", "focal:2"]
    tabular, *lines = left.lines
    assert list(tabular.get_xdata()) == [found.table.scores["tabular"].pauc.value] * 2
    for row, name in enumerate(lengths):
        pauc = found.table.scores[name].pauc
        assert list(lines[2 * row].get_xdata()) == [pauc.low, pauc.high]
        assert list(lines[2 * row + 1].get_xdata()) == [pauc.value]
        assert list(lines[2 * row + 1].get_ydata()) == [row]
    assert [bar.get_width() for bar in right.patches] == [1.5, 3.0]
    assert [text.get_text() for text in right.texts] == ["1.5: 12 epochs of 1,000 images", "3.0: 1 epoch of 12,345 images"]
