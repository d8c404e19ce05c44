"""Runs the BUILT kernel.py on the same lesions under other versions of its packages, and compares the scores.

    python -m benchmarks.version_skew --data skew/data --artifacts skew/artifacts --out skew

Kaggle changes its image without notice. Each environment is a virtual environment below --out, made once (some minutes) and
again when its requirements change. The first is the reference: the Kaggle image's versions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.dry_run import mount_test_folder, rows_to_score, run_kernel
from evaluation.studies.compare import markdown_table, write_text
from inference.artifacts import MANIFEST
from inference.build_kernel import ROOT
from inference.files import write_json
from inference.options import Parser, add_data_options, output_folder
from inference.schema import ID, TARGET, read_scores
from inference.scoring import NETWORK
from scale.progress import Bar
from terminal import run_command
from utils import InputError, log, log_summary

PACKAGES = ("tensorflow", "keras", "catboost", "numpy", "pandas", "h5py")
#: Name -> arguments of pip install; the first is the reference, the last has the oldest versions known to work.
ENVIRONMENTS = {
    "Kaggle": ("-r", str(ROOT / "requirements.txt")),
    "newest": (*PACKAGES, "scipy"),
    "oldest": (
        "tensorflow==2.16.2",
        "keras==3.4.1",
        "catboost==1.2.5",
        "numpy==1.26.4",
        "pandas==2.1.4",
        "h5py==3.11.0",
        "scipy==1.13.1",
    ),
}
#: Largest difference of a logit, or of a probability, that counts as the same score.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Scored:
    """The kernel's scores in one environment, indexed by isic_id, and the versions that it recorded."""

    scores: pd.DataFrame
    versions: dict[str, str]


def environment(name: str, folder: Path) -> Path:
    """The Python of the environment ``name`` below ``folder``; made if it is not there or its requirements have changed.

    Raises:
        InputError: pip cannot install it.
    """
    place, asked = folder / name.lower(), " ".join(ENVIRONMENTS[name])
    if asked.startswith("-r "):
        asked += "\n" + Path(ENVIRONMENTS[name][1]).read_text(encoding="utf-8")
    python, made_of = place / "bin" / "python", place / "made-of.txt"
    if made_of.is_file() and made_of.read_text(encoding="utf-8") == asked:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *ENVIRONMENTS[name]]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"the environment {name} cannot be installed ({reason}); correct its line in version_skew.py.")
    made_of.write_text(asked, encoding="utf-8")
    return python


def with_networks_alone(artifacts: Path, folder: Path) -> Path:
    """A copy of the artifacts whose submission is the networks' own logits.

    A combination may give the networks next to no weight.
    """
    copy = Path(shutil.copytree(artifacts, folder))
    manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    manifest.pop("stacking", None)
    if "network" in manifest:
        manifest["network"]["combination"] = {"kind": NETWORK}
    write_json(copy / MANIFEST, manifest)
    return copy


def score_under(python: Path, competition: Path, artifacts: Path) -> Scored:
    """Runs the built kernel with that Python.

    Raises:
        InputError: the kernel fails, or falls back on anything.
    """
    with tempfile.TemporaryDirectory() as name:
        outcome = run_kernel(ROOT / "kernel.py", competition, artifacts, Path(name), python)
        scores = read_scores(Path(name) / "scores.csv", ["tabular", "final"])
        submitted = read_scores(Path(name) / "submission.csv", [TARGET])[TARGET]
    if outcome.facts["fallbacks"]:
        raise InputError(f"under {python} the kernel fell back: {json.dumps(outcome.facts['fallbacks'])}; see its log.")
    return Scored(scores.assign(probability=submitted), outcome.facts["versions"])


def largest_differences(one: Scored, other: Scored) -> dict[str, float]:
    """The largest absolute difference of any lesion: "tabular" and "final" logits, and submitted "probability"."""
    names = ["tabular", "final", "probability"]
    return {name: float(np.abs(one.scores[name] - other.scores[name]).max()) for name in names}


def as_markdown(results: dict[str, Scored]) -> str:
    """Versions and differences, a row per environment; the first one is the reference."""
    reference = next(iter(results.values()))
    head = ["environment", "python", *PACKAGES, "tabular logits", "final logits", "probability"]
    rows = []
    for name, scored in results.items():
        differences = [f"{value:.1e}" for value in largest_differences(reference, scored).values()]
        shown = ["reference"] * len(differences) if scored is reference else differences
        rows.append([name, *(scored.versions[package] for package in ("python", *PACKAGES)), *shown])
    return markdown_table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    """Makes the environments, scores the holdout in each, writes skew.md; refuses scores that differ."""
    parser = Parser(description="Runs the built kernel.py under other package versions -> skew.md")
    add_data_options(parser)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="for the environments and the table")
    options = parser.parse_args(arguments)
    rows = rows_to_score(options.data, options.artifacts, "holdout")
    results = {}
    with tempfile.TemporaryDirectory() as mount:
        competition = Path(mount) / "isic-2024-challenge"
        artifacts = with_networks_alone(options.artifacts, Path(mount) / "artifacts")
        mount_test_folder(options.data, rows[ID].tolist(), competition)
        for name in Bar(ENVIRONMENTS, desc="environments", unit="environment"):
            results[name] = score_under(environment(name, options.out), competition, artifacts)
    table = as_markdown(results)
    write_text(options.out / "skew.md", table)
    log(f"\n{table}\n")
    reference = next(iter(results.values()))
    worst = max(max(largest_differences(reference, scored).values()) for scored in results.values())
    if not worst <= TOLERANCE:
        raise InputError(f"scores differ by up to {worst:.1e}, more than {TOLERANCE:.0e}; see {options.out / 'skew.md'}.")
    log_summary(
        f"{options.out / 'skew.md'}: {len(rows):,} lesions, {len(results)} environments, differences up to {worst:.1e}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
