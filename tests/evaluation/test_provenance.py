import json

import pytest

from evaluation.provenance import kernel_section, making_section
from inference.artifacts import FORMAT
from inference.files import sha256_of

RUN = {
    "competition": "/somewhere/else",
    "artifacts": "/somewhere/too",
    "versions": {"python": "3.11.7", "keras": "3.13.2"},
    "fold_networks": 5,
    "peak_memory_gb": 2.345,
    "tabular_logits": {"median": -3.87882, "training_median": -3.7},
    "lesions": 1500,
    "image_scored": 1400,
    "fallbacks": {"lesions_without_image_score": 100},
    "notes": ["100 of 1,500 keep their <tabular> score."],
    "seconds": {"tabular": 0.5, "images": 28.0, "writing": 0.1},
}


def test_the_run_s_facts_are_those_of_run_json():
    page = kernel_section(RUN, 30.0, "network namespace without a network").html()
    assert '<th scope="row">images</th><td>28.0</td><td>50</td>' in page
    assert '<th scope="row">tabular</th><td>0.5</td><td>3,000</td>' in page
    assert '<th scope="row">start and end</th><td>1.4</td><td></td>' in page
    assert '<th scope="row">all</th><td>30.0</td><td>50</td>' in page
    for expected in (
        "1,400 of 1,500",
        "network namespace without a network",
        "lesions without image score: 100",
        "100 of 1,500 keep their &lt;tabular&gt; score.",
        "2.345",
        "median -3.879, training median -3.7",
    ):
        assert f"<td>{expected}</td>" in page
    assert "/somewhere" not in page  # folders that are gone by then


def test_a_run_without_fall_backs_has_none():
    page = kernel_section(RUN | {"fallbacks": {}, "notes": []}, 30.0, "none").html()
    assert '<th scope="row">fall-backs</th><td>none</td>' in page
    assert '<th scope="row">notes</th><td>none</td>' in page


def test_an_empty_run_json_can_be_shown():
    assert "0 of 0" in kernel_section({}, 1.0, "none").html()


@pytest.fixture
def folders(tmp_path):
    """Data, artifacts whose manifest names three files, and a kernel."""
    data, artifacts = tmp_path / "data", tmp_path / "artifacts"
    for folder in (data, artifacts):
        folder.mkdir()
    (data / "train-metadata.csv").write_text("isic_id\n")
    (data / "train-image.hdf5").write_bytes(bytes(2_000_000))
    (artifacts / "a.cbm").write_text("a model")
    (artifacts / "changed.csv").write_text("changed")
    files = {"a.cbm": sha256_of(artifacts / "a.cbm"), "changed.csv": "0" * 64, "gone.csv": "1" * 64}
    manifest = {"format": FORMAT, "files": files, "folds": {"folds": 5, "seed": 0}}
    (artifacts / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "kernel.py").write_text("pass\n")
    return data, artifacts, tmp_path / "kernel.py"


def test_everything_that_made_the_page_is_named(folders):
    files = dict(zip(("data", "artifacts", "kernel"), folders, strict=True))
    page = making_section(["--data", "my data", "--rows", "all"], "all: 1,500 lesions", RUN, files).html()
    data, artifacts, kernel = folders
    assert "python -m evaluation.dry_run --data &#39;my data&#39; --rows all" in page
    assert "all: 1,500 lesions" in page
    assert "python 3.11.7, keras 3.13.2" in page
    assert "folds: 5, seed: 0" in page
    for path in (kernel, data / "train-metadata.csv", artifacts / "manifest.json"):
        assert sha256_of(path) in page
    assert f"{sha256_of(artifacts / 'a.cbm')}, as in the manifest" in page
    assert f"{sha256_of(artifacts / 'changed.csv')}; in the manifest: {'0' * 64}" in page
    assert '<th scope="row">gone.csv</th><td></td><td>missing</td>' in page
    assert '<th scope="row">train-image.hdf5</th><td>2.0 MB</td>' in page
