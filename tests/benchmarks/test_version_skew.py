"""Comparing what the kernel scores under other package versions; `make skew` makes the real environments."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import version_skew
from benchmarks.version_skew import (
    ENVIRONMENTS,
    PACKAGES,
    Scored,
    as_markdown,
    environment,
    largest_differences,
    main,
    with_networks_alone,
)
from inference.artifacts import load_manifest
from utils import InputError


def scored(tabular, final, keras="3.13.2"):
    frame = pd.DataFrame({"tabular": tabular, "final": final, "probability": 1 / (1 + np.exp(-np.array(final)))})
    return Scored(frame, dict.fromkeys(("python", *PACKAGES), "1.0") | {"keras": keras})


ONE, OTHER = scored([-1.0, 2.0], [-1.5, 2.5]), scored([-1.0, 2.0], [-1.5, 2.50002], keras="3.15.1")


def test_the_largest_difference_of_any_lesion_counts():
    found = largest_differences(ONE, OTHER)
    assert found["tabular"] == 0
    assert found["final"] == pytest.approx(2e-5)
    assert 0 < found["probability"] < 2e-5


def test_the_table_names_versions_and_differences():
    lines = as_markdown({"Kaggle": ONE, "newest": OTHER}).splitlines()
    assert lines[0].startswith("| environment | python | tensorflow | keras |")
    assert lines[2].endswith("| reference | reference | reference |")
    assert "| 3.15.1 |" in lines[3]
    assert "| 0.0e+00 | 2.0e-05 |" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_every_environment_asks_for_every_package():
    for name, asked in ENVIRONMENTS.items():
        text = Path(asked[1]).read_text(encoding="utf-8") if asked[0] == "-r" else "\n".join(asked)
        assert all(package in text for package in PACKAGES), name


def test_an_environment_is_made_once_and_again_when_it_changes(monkeypatch, tmp_path):
    made = []

    class Done:
        returncode = 0

    def run(command, **_):
        made.append(command[2])
        (tmp_path / "newest" / "bin").mkdir(parents=True, exist_ok=True)
        return Done

    monkeypatch.setattr(version_skew.subprocess, "run", run)
    for _ in range(2):
        assert environment("newest", tmp_path) == tmp_path / "newest" / "bin" / "python"
    assert made == ["venv", "pip"]
    monkeypatch.setitem(ENVIRONMENTS, "newest", ("tensorflow==9",))
    environment("newest", tmp_path)
    assert made == ["venv", "pip"] * 2


@pytest.mark.integration
def test_an_environment_that_pip_cannot_install_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(ENVIRONMENTS, "newest", ("--no-index", "no-such-package-anywhere"))
    with pytest.raises(InputError, match=r"environment newest cannot be installed .*no-such-package-anywhere"):
        environment("newest", tmp_path)


def test_the_networks_alone_are_compared(trained, mounted, tmp_path):
    before = load_manifest(trained.artifacts)
    alone = load_manifest(with_networks_alone(trained.artifacts, tmp_path / "artifacts"))
    assert alone["network"]["combination"] == {"kind": "network"}
    assert "stacking" not in alone
    del before["stacking"]
    for manifest in (before, alone):
        del manifest["network"]["combination"]
    assert before == alone
    scores = version_skew.score_under(Path(sys.executable), mounted, tmp_path / "artifacts").scores
    assert (scores["final"] != scores["tabular"]).all()


def stand_in(monkeypatch, results):
    """Every environment is this Python; the kernel's scores in each are given."""
    given = iter(results)
    monkeypatch.setattr(version_skew, "environment", lambda name, folder: sys.executable)
    monkeypatch.setattr(version_skew, "score_under", lambda *_: next(given))


def test_equal_scores_make_a_table(trained, tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch, [ONE, OTHER, ONE])
    where = ["--data", str(trained.data), "--artifacts", str(trained.artifacts), "--out", str(tmp_path)]
    assert main(where) == 0
    assert (tmp_path / "skew.md").read_text(encoding="utf-8") in capsys.readouterr().out


def test_other_scores_are_refused(trained, tmp_path, monkeypatch):
    stand_in(monkeypatch, [ONE, scored([-1.0, 2.0], [-1.5, 2.6]), ONE])
    where = ["--data", str(trained.data), "--artifacts", str(trained.artifacts), "--out", str(tmp_path)]
    with pytest.raises(InputError, match=r"differ by up to 1\.0e-01"):
        main(where)


def test_the_real_kernel_is_scored_and_a_fall_back_refused(tabular_only, mounted):
    with pytest.raises(InputError, match="no_network"):
        version_skew.score_under(Path(sys.executable), mounted, tabular_only)
