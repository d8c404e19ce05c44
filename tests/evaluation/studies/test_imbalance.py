import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pretended_training import pretend, without_networks

from evaluation.studies.compare import told
from evaluation.studies.imbalance import (
    EPOCHS,
    FIXED,
    VARIANTS,
    Course,
    Variant,
    courses_of,
    draw_figure,
    main,
    summary,
    training_labels,
    variant_of,
    variants_of,
    written,
)
from inference.schema import ID, TARGET
from train.network.config import imbalance_of, parse_fusion_options
from train.network.sampling import IMBALANCE_MODES, Imbalance
from utils import InputError, bootstrap_scores

NETWORK = ["--weights", "none", "--image-size", "32", "--batch-size", "16"]
LABELS = (np.arange(1000) % 50 == 0).astype(int)  # 20 malignant lesions, 980 benign ones


@pytest.fixture
def artifacts(synthetic_data, tmp_path):
    return without_networks(synthetic_data, tmp_path / "artifacts")


@pytest.fixture
def command(synthetic_data, artifacts, tmp_path):
    """A study's command line."""
    return ["--data", str(synthetic_data), "--artifacts", str(artifacts), "--out", str(tmp_path / "study"), *NETWORK]


@pytest.fixture
def refused(command, monkeypatch):
    """Runs the command with further words, which must be refused before any training, and returns the sentence."""

    def run(*words):
        asked = []
        pretend(monkeypatch, asked)
        with pytest.raises(InputError) as caught:
            main([*command, *words])
        assert not asked
        return str(caught.value)

    return run


def table_of(**scores):
    """A score table of forty lesions of ten patients; each score is random but for what it adds to malignant lesions."""
    rng = np.random.default_rng(0)
    labels, noise = np.arange(40) % 4 == 0, rng.normal(size=40)
    return bootstrap_scores(labels, np.arange(40) // 4, {name: noise + gain * labels for name, gain in scores.items()})


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
def test_train_fusion_understands_what_a_variant_asks_for(text, imbalance):
    variant = variant_of(text)
    assert variant.name == text
    assert variant.imbalance == imbalance
    assert imbalance_of(parse_fusion_options(["--data", "d", "--artifacts", "a", *variant.options])) == imbalance


def test_the_default_variants_are_of_all_modes():
    assert {variant.mode for variant in variants_of(list(VARIANTS))} == set(IMBALANCE_MODES)
    assert [variant.name for variant in variants_of(list(VARIANTS))] == list(VARIANTS)


@pytest.mark.parametrize(
    "text",
    ["foo", "foo:1", "focal", "focal:", ":3", "undersample:0", "undersample:-1", "undersample:x", "focal:nan", "focal:inf"],
)
def test_a_malformed_variant_is_refused(text, refused):
    sentence = refused("--variants", "undersample:1", text)
    assert sentence.startswith(f"--variants {text!r} is not of the form MODE:RATIO; give one of undersample, oversample, ")


def test_a_variant_is_asked_for_once(refused):
    assert "'undersample:1' is asked for more than once" in refused("--variants", "undersample:1", "undersample:1.0")
    assert variants_of(["focal:2", "focal:3"]) == [Variant("focal", 2.0), Variant("focal", 3.0)]


@pytest.mark.parametrize("option", FIXED)
def test_what_the_study_decides_cannot_be_asked_for(option, refused):
    value = {"--imbalance": "focal", "--inputs": "image"}.get(option, "3")
    for words in ([option, value], [f"{option}={value}"]):
        sentence = refused(*words)
        assert sentence.startswith("--epochs, --imbalance, --negatives-per-positive, --focal-gamma and --inputs are what")
        assert sentence.endswith(f"leave them out (given: {words[0]!r}).")


def test_the_number_of_images_is_above_zero(refused):
    assert refused("--images", "0") == "--images 0 must be above zero."


def test_further_options_are_checked_before_any_training(refused):
    assert refused("--batch-size", "0") == "--batch-size 0 must be above zero."


def test_variants_are_shown_about_the_same_number_of_images():
    variants = variants_of(["undersample:1", "undersample:3", "oversample:7", "class-weight:1", "focal:2"])
    courses = courses_of(variants, LABELS, None)
    assert courses["undersample:1"] == Course(EPOCHS, 40)
    assert courses["undersample:3"] == Course(EPOCHS // 2, 80)
    assert courses["oversample:7"] == Course(2, 1120)
    assert courses["class-weight:1"] == courses["focal:2"] == Course(2, 1000)
    assert courses_of(variants, LABELS, 480)["oversample:7"] == Course(1, 1120)  # in one epoch more than the others in all
    courses = courses_of(variants, LABELS, 2700)
    assert [(course.epochs, course.images) for course in courses.values()] == [
        (68, 2720),
        (34, 2720),
        (2, 2240),
        (3, 3000),
        (3, 3000),
    ]


def test_epochs_are_counted_in_the_lesions_that_fold_0_is_trained_on(synthetic_data, artifacts):
    folds = pd.read_csv(artifacts / "folds.csv")
    rows = folds[folds["fold"] == 1]  # of two folds and a holdout
    assert 0 < len(rows) < len(folds)
    labels = pd.read_csv(synthetic_data / "train-metadata.csv", low_memory=False).set_index("isic_id")["target"]
    assert sorted(training_labels(synthetic_data, artifacts)) == sorted(labels.loc[rows[ID]])


def test_every_variant_is_trained_on_the_same_folds_and_told(
    command, synthetic_data, artifacts, tmp_path, monkeypatch, capsys
):
    asked, study = [], tmp_path / "study"
    pretend(monkeypatch, asked)
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
    assert asked == [
        ["--data", str(synthetic_data), "--artifacts", str(folder), *way, *NETWORK]
        for folder, way in zip(folders, ways, strict=True)
    ]
    text, out = (study / "imbalance.md").read_text(encoding="utf-8"), capsys.readouterr().out.splitlines()
    assert "| variant | epochs | images per fold | pAUC | 95 % interval | less undersample:1, paired | minutes |" in text
    rows = cells_of(text)
    assert [row[:2] for row in rows] == [
        ["tabular alone", ""],
        ["undersample:1", str(EPOCHS)],
        ["class-weight:3", epochs],
        ["focal:2", epochs],
    ]
    assert [row[2] for row in rows[1:3]] == [f"{EPOCHS * drawn:,}", f"{int(epochs) * len(labels):,}"]
    oof = pd.read_csv(folders[2] / "oof_fusion.csv").drop(3)
    patients = pd.read_csv(artifacts / "folds.csv").set_index(ID)["patient_id"].loc[oof[ID]]
    expected = bootstrap_scores(
        oof[TARGET], patients, {name: oof["tabular"] + n * oof[TARGET] for name, n in (("base", 1), ("best", 3))}
    )
    difference = told(expected.difference("best", "base"))  # the stand-in adds most to the variant trained last
    assert rows[3][5] == difference
    assert f"further options: {' '.join(NETWORK)}\n" in text
    assert out[-1] == (
        f"{study / 'imbalance.md'}: the best of 3 variants is focal:2, pAUC {expected.scores['best'].pauc.value:.4f}, "
        f"less undersample:1 {difference}"
    )
    assert Image.open(study / "imbalance.png").format == "PNG"


def test_the_same_command_keeps_what_is_trained_and_another_is_refused(command, tmp_path, monkeypatch):
    asked = []
    pretend(monkeypatch, asked)
    main([*command, "--variants", "undersample:1", "focal:2"])
    first = (tmp_path / "study" / "imbalance.md").read_text(encoding="utf-8")
    main([*command, "--variants", "undersample:1", "focal:2"])
    assert len(asked) == 2
    assert (tmp_path / "study" / "imbalance.md").read_text(encoding="utf-8") == first
    main([*command, "--variants", "undersample:1", "focal:2", "undersample:0.5"])  # one more beside them
    assert asked[2][asked[2].index("--negatives-per-positive") + 1] == "0.5"
    assert len(asked) == 3
    for other in (["--seed", "3"], ["--images", "500"]):
        with pytest.raises(InputError, match=r"undersample-1 holds a training with other options .*give another --out"):
            main([*command, "--variants", "undersample:1", "focal:2", *other])
    assert len(asked) == 3


def test_a_short_image_size_is_not_taken_for_the_number_of_images(command, monkeypatch):
    asked = []
    pretend(monkeypatch, asked)
    main([*command, "--variants", "undersample:1", "--image", "64"])
    assert asked[0][-2:] == ["--image", "64"]
    assert asked[0][asked[0].index("--epochs") + 1] == str(EPOCHS)


def test_the_notes_tell_who_was_shown_more_and_what_is_not_counted():
    table, seconds = table_of(tabular=0, a=1, b=2), {"a": 60.0, "b": 120.0}
    courses = {"a": Course(13, 47), "b": Course(1, 601)}  # 611 images of a are over the mark too, by rounding
    text = written(table, seconds, courses, 600, 1, ["--weights", "imagenet"])
    assert "shown about 600 images per fold" in text
    assert "A single epoch has more than that with b: they" in text
    assert "--head-epochs 1, which is not counted" in text
    assert "further options: --weights imagenet\n" in text
    text = written(table, seconds, courses | {"b": Course(1, 600)}, 600, 0, [])
    assert "A single epoch" not in text
    assert "--head-epochs" not in text
    assert "further options: none\n" in text


def test_the_summary_names_the_best_variant():
    table = table_of(tabular=5, a=0, b=2, c=1)
    value = table.scores["b"].pauc.value
    difference = told(table.difference("b", "a"))
    assert value > table.scores["c"].pauc.value > table.scores["a"].pauc.value
    assert summary(table, ["a", "b", "c"]) == f"the best of 3 variants is b, pAUC {value:.4f}, less a {difference}"
    assert summary(table, ["b", "c"]) == f"the best of 2 variants is b, pAUC {value:.4f}, the first variant"


def test_the_figure_shows_every_variant_its_interval_and_its_minutes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: drawn.append(figure) or path.touch())
    table = table_of(**{"tabular": 0.5, "undersample:1": 1, "focal:2": 2})
    courses = {"undersample:1": Course(12, 1000), "focal:2": Course(1, 12345)}
    draw_figure(tmp_path / "imbalance.png", table, {"undersample:1": 90.0, "focal:2": 180.0}, courses)
    left, right = drawn[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["undersample:1", "focal:2"]
    tabular, *lines = left.lines
    assert list(tabular.get_xdata()) == [table.scores["tabular"].pauc.value] * 2
    for row, name in enumerate(courses):
        pauc = table.scores[name].pauc
        assert list(lines[2 * row].get_xdata()) == [pauc.low, pauc.high]
        assert list(lines[2 * row + 1].get_xdata()) == [pauc.value]
        assert list(lines[2 * row + 1].get_ydata()) == [row]
    assert [bar.get_width() for bar in right.patches] == [1.5, 3.0]
    assert [text.get_text() for text in right.texts] == ["1.5: 12 epochs of 1,000 images", "3.0: 1 epoch of 12,345 images"]
