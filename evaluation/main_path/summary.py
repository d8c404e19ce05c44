"""What is printed when the main path is finished: scores, where everything lies, the next step."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from evaluation.dry_run import PAGE, RESULT
from evaluation.main_path.stages import MainPath, Outcome, duration
from inference.artifacts import Manifest, load_manifest
from utils import text_table

#: The Makefile's own artifact folder.
ARTIFACTS = "artifacts"


def closing_lines(path: MainPath, outcomes: Sequence[Outcome]) -> list[str]:
    """The lines of the closing summary.

    Args:
        path: as it ran.
        outcomes: of its stages.
    """
    manifest, result = load_manifest(path.artifacts), dry_run_result(path)
    rows = [["score", "pAUC", "95 % interval"], *score_rows("out of fold", out_of_fold_scores(manifest))]
    if result:
        rows += score_rows("held out", result["scores"])
    size = sum((path.artifacts / name).stat().st_size for name in manifest["files"])
    lines = [
        "",
        text_table(rows),
        "",
        f"artifacts    {path.artifacts}: {len(manifest['files'])} files, {size / 1e6:,.0f} MB",
    ]
    if result:
        lines += [f"report       {path.report / PAGE}", f"submission   {path.report / 'submission.csv'}"]
    lines += [f"logs         {path.artifacts.with_name(path.artifacts.name + '-logs')}", "kernel       kernel.py"]
    shares = ", ".join(f"{each.title} {duration(each.seconds) if each.ran else 'unchanged'}" for each in outcomes)
    return [*lines, f"time         {duration(sum(each.seconds for each in outcomes))}: {shares}", next_step(path)]


def out_of_fold_scores(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Name -> "pauc" and "interval", from all stages that report scores; of equal names, those of the last stage."""
    found: dict[str, dict[str, Any]] = {}
    for stage, section in manifest.items():
        scores = section.get("scores") if isinstance(section, dict) else None
        for name, score in ({stage: scores} if scores and "pauc" in scores else scores or {}).items():
            found[name] = score
    return found


def score_rows(where: str, scores: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's rows for scores of the rows ``where``."""
    return [
        [f"{name}, {where}", f"{score['pauc']:.4f}", "{:.4f} to {:.4f}".format(*score["interval"])]
        for name, score in scores.items()
    ]


def dry_run_result(path: MainPath) -> dict[str, Any]:
    """The dry run's result.json; empty where there was none to run."""
    try:
        return json.loads((path.report / RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def next_step(path: MainPath) -> str:
    """The command that follows: a submission, or the real data after a synthetic dataset."""
    if (path.data / "truth.csv").is_file():
        return "next         make data train"
    other = [f"ARTIFACTS={path.artifacts}"] if str(path.artifacts) != ARTIFACTS else []
    return f"next         {shlex.join(['make', 'publish', 'push', 'submit', *other])}"
