import re
import shutil

import pandas as pd
import pytest
from html_page import Page

from evaluation.explore.__main__ import PAGE, main
from evaluation.explore.tables import rate_tables, single_columns
from inference.schema import PATIENT, TARGET, read_metadata
from utils import InputError


def explored(data, out):
    """The page of a folder, its text and its parsed form."""
    assert main(["--data", str(data), "--out", str(out)]) == 0
    text = (out / PAGE).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def page(exploration_folder):
    text = (exploration_folder / PAGE).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def folder(synthetic_data, tmp_path):
    """A copy of the metadata of synthetic_data that may be changed, without images."""
    shutil.copytree(synthetic_data, tmp_path / "copy", ignore=shutil.ignore_patterns("*.hdf5"))
    return tmp_path / "copy"


def test_the_page_has_every_section_and_needs_nothing_else(page):
    text, parsed = page
    headings = ["Warnings", "Counts", "Malignancy rates", "Strongest single columns", "Ugly ducklings", "Crops"]
    headings += ["Correlations", "Train and test", "All columns"]
    found = re.findall("<h2>(.*)</h2>", text)
    assert len(found) == len(headings) and all(map(str.startswith, found, headings))
    assert "default-src 'none'" in text
    fetched = [value for tag, name, value in parsed.attributes if name in ("src", "href", "xlink:href") and tag != "use"]
    assert fetched and all(value.startswith(("data:image/", "#")) for value in fetched)
    anchors = {value[1:] for tag, name, value in parsed.attributes if tag == "a" and name == "href"}
    assert anchors == {value for tag, name, value in parsed.attributes if tag == "section" and name == "id"}
    assert len(text) < 15_000_000


def test_pictures_have_descriptions_and_tables_headings(page):
    _, parsed = page
    assert parsed.tags.count("img") == len(
        [1 for tag, name, value in parsed.attributes if tag == "img" and name == "alt" and value]
    )
    assert parsed.tags.count("svg") == len(
        [1 for tag, name, _ in parsed.attributes if tag == "svg" and name == "aria-label"]
    )
    assert ("th", "scope", "row") in parsed.attributes and ("th", "scope", "col") in parsed.attributes
    assert ("table", "class", "sortable") in parsed.attributes


def test_the_figures_are_those_of_the_tables(page, metadata):
    _, parsed = page
    rows = {row[0]: row[1:] for row in parsed.rows if row}
    first = single_columns(metadata).set_index("column")
    assert rows["tbp_lv_H"]
    scored = next(row for row in parsed.rows if row[0] == "clin_size_long_diam_mm" and len(row) == 5)
    expected = first.loc["clin_size_long_diam_mm"]
    assert scored[1:] == [f"{expected['pauc']:.4f}", f"{expected['auc']:.4f}", expected["direction"], "yes"]
    torso = rate_tables(metadata)["site"].set_index("group").loc["posterior torso"]
    shown = f"{100 * torso['rate']:.2f} % ({100 * torso['low']:.2f} to {100 * torso['high']:.2f})"
    assert rows["posterior torso"][:3] == [shown, f"{torso['malignant']:.0f}", f"{torso['lesions']:.0f}"]
    malignant = int(metadata[TARGET].sum())
    assert rows["malignant"] == [f"{malignant} ({100 * malignant / 60:.2f} %)"]
    assert rows["lesions with an image"] == ["60, in train-image.hdf5"]


def test_a_small_test_split_is_marked(page):
    text, _ = page
    assert "Test has 3 rows only" in text


def test_the_same_folder_makes_the_same_page_and_the_last_line_has_its_counts(synthetic_data, tmp_path, capsys, page):
    assert explored(synthetic_data, tmp_path)[0] == page[0]
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert "60 lesions of 8 patients, 11 malignant" in line
    warnings = re.search(r"(\d+) warnings", line)[1]
    assert f"warnings: {warnings}." in page[0]
    metadata = read_metadata(synthetic_data / "train-metadata.csv", labelled=True)
    table = single_columns(metadata)
    best = table[table["usable"]].iloc[0]
    assert line.endswith(f"strongest column {best['column']}, pAUC {best['pauc']:.4f}")


def test_an_archive_folder_has_a_page_as_well(archive_folder, tmp_path):
    for name in ("test-metadata.csv", "test-image.hdf5"):
        assert (archive_folder / name).exists()
    data = tmp_path / "archive"
    shutil.copytree(archive_folder, data, ignore=shutil.ignore_patterns("test-*", "truth.csv", "sample*"))
    text, _ = explored(data, tmp_path / "out")
    assert "no test-metadata.csv" in text and "The folder has no measured columns" in text
    assert "diagnosis (0.2000 by its value)" in text


def test_a_patient_of_hostile_words_without_images_has_a_page_as_well(folder, tmp_path):
    table = pd.read_csv(folder / "train-metadata.csv")
    table[[PATIENT, "attribution"]] = ["<b>IP_1</b>", '<script>alert("x")</script>']
    table.to_csv(folder / "train-metadata.csv", index=False)
    text, parsed = explored(folder, tmp_path / "out")
    assert "img" not in parsed.tags
    assert "No malignant lesion has an image that can be read" in text and "<strong>No images.</strong>" in text
    assert "Patient &lt;b&gt;IP_1&lt;/b&gt;: 49 benign lesions and 11 malignant" in text
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text and "<b>" not in text


def test_one_lesion_has_a_page_as_well(folder, tmp_path):
    pd.read_csv(folder / "train-metadata.csv").head(1).to_csv(folder / "train-metadata.csv", index=False)
    text, _ = explored(folder, tmp_path / "out")
    assert "no column can be scored" in text and "<strong>1</strong> lesions" in text


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"train-metadata\.csv is not in"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
