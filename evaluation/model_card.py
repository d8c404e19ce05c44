"""Writes the model card: prose from a template, every figure from the manifest and the scores of a dry run.

    python -m evaluation.model_card --data demo/data --artifacts demo/artifacts --report demo/report

The report's folder is read, not scored again: a report of other rows or of other artifacts is refused. The same files give
the same card.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.dry_run import (
    TRAINED_ON,
    checked_submission,
    gather_scores,
    logits_of,
    paired_differences,
    read_parts,
    rows_to_score,
)
from evaluation.environment import HASH_DIGITS, public
from evaluation.groups import (
    AGE_NAMES,
    LEAST_MALIGNANT,
    LEAST_PATIENTS,
    MANY_PATIENTS,
    SKIN_B,
    SKIN_L,
    SKIN_TONE,
    TONE_NAMES,
    Group,
    divide,
    measure_groups,
    skin_tone_angles,
)
from evaluation.html import ENVIRONMENT
from evaluation.measures import FINAL, STACKING
from evaluation.report import Scored, measured_calibrations
from inference.artifacts import (
    MANIFEST,
    Manifest,
    artifact_path,
    best_network,
    last_stage,
    load_manifest,
    networks_of,
)
from inference.build_kernel import ROOT
from inference.files import replacing, sha256_of
from inference.options import Parser, add_data_options, existing_folder, output_file, positive_number
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, read_table
from inference.scoring import combine
from terminal import run_command
from train.folds import HOLDOUT, read_folds
from utils import TOP_K, InputError, ScoreTable, bootstrap_scores, format_table, log_summary

TEMPLATE = "model_card.md"
LICENCE = "copyright_license"
NOT_GIVEN = "not given"
#: Of a report's folder.
SCORES, SUBMISSION, RUN = "scores.csv", "submission.csv", "run.json"
#: Divisions of ``evaluation.groups`` that the card shows.
SHOWN = ("hospital", "sex", "age", SKIN_TONE)
#: Logits in scores.csv have nine digits.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    """The command's options; ``watts``: what the machine draws, None where it was not measured."""

    data: Path
    artifacts: Path
    report: Path
    out: Path
    watts: float | None


@dataclass(frozen=True)
class DryRun:
    """A dry run as its report's folder has it.

    Attributes:
        scored: the rows and their scores.
        table: their measures.
        run: run.json.
    """

    scored: Scored
    table: ScoreTable
    run: dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Writes the card."""
    options = read_options(arguments)
    command = ["python", "-m", "evaluation.model_card", *(sys.argv[1:] if arguments is None else arguments)]
    text = model_card(options) | {"command": public(shlex.join(command))}
    environment = ENVIRONMENT.overlay(autoescape=False)
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|")
    card = environment.get_template(TEMPLATE).render(**text)
    with replacing(options.out) as temporary:
        temporary.write_text(card.rstrip("\n") + "\n", encoding="utf-8")
    table = text["table"]
    final = table.scores[FINAL].pauc
    line = f"{options.out}: pAUC {final.value:.4f} [{final.low:.4f}, {final.high:.4f}] of {table.rows:,} lesions"
    log_summary(line, format_table(table))
    return 0


def read_options(arguments: list[str] | None) -> Options:
    """The checked options."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    add_data_options(parser)
    parser.add_argument(
        "--report", type=existing_folder, default=Path("report"), metavar="DIR", help="of evaluation.dry_run (%(default)s)"
    )
    parser.add_argument(
        "--out", type=output_file, default=ROOT / "MODEL_CARD.md", metavar="FILE", help="the card (%(default)s)"
    )
    parser.add_argument(
        "--watts", type=positive_number(1e6), help="what the machine draws in training, for its energy; not measured here"
    )
    return Options(**vars(parser.parse_args(arguments)))


def model_card(options: Options) -> dict[str, Any]:
    """What the template names.

    Raises:
        InputError: as ``read_dry_run`` and ``read_folds``.
    """
    manifest = load_manifest(options.artifacts)
    dry_run = read_dry_run(options, manifest)
    scored, table = dry_run.scored, dry_run.table
    rows = rows_to_score(options.data, options.artifacts, "all")
    training = rows[read_folds(options.artifacts, rows) != HOLDOUT]
    divisions, absent = divide(scored.rows)
    divisions = {name: divisions[name] for name in SHOWN if name in divisions}
    absent = [sentence for sentence in absent if sentence.startswith(("hospital", "sex", "age", "skin tone"))]
    calibrations = measured_calibrations(scored, table.samples)
    return {
        "manifest": manifest,
        "manifest_hash": sha256_of(artifact_path(options.artifacts, MANIFEST))[:HASH_DIGITS],
        "training": best_network(manifest).get("training", {}),
        "weights": Path(best_network(manifest).get("training", {}).get("weights", "none")).name,
        "last": last_stage(manifest),
        "synthetic": (options.data / "truth.csv").is_file(),
        "run": dry_run.run,
        "warning": scored.warning,
        "table": table,
        "final": FINAL,
        "differences": paired_differences(table),
        "sources": sources_of(training),
        "characteristics": characteristics(training, scored.rows),
        "groups": grouped(measure_groups(scored.rows, scored.scores[FINAL], divisions, table.samples)),
        "absent": absent,
        "limits": {"malignant": LEAST_MALIGNANT, "patients": LEAST_PATIENTS, "reliable": MANY_PATIENTS, "top": TOP_K},
        "skin": {"division": SKIN_TONE, "columns": (SKIN_L, SKIN_B), "names": TONE_NAMES},
        "ages": AGE_NAMES,
        "calibrations": calibrations,
        "cost": cost_of(options, networks_of(manifest), dry_run.run),
    }


# The dry run


def read_dry_run(options: Options, manifest: Manifest) -> DryRun:
    """The rows, scores and run of a report's folder.

    Raises:
        InputError: a file of it is missing, or it is of other rows or artifacts than these.
    """
    report, again = options.report, "run evaluation.dry_run with this --data, --artifacts and --report again"
    missing = [name for name in (SCORES, SUBMISSION, RUN) if not (report / name).is_file()]
    if missing:
        raise InputError(f"{report} has no {missing[0]}; give the --report of evaluation.dry_run.")
    ids = read_table(report / SUBMISSION)[ID].tolist()
    rows = rows_to_score(options.data, options.artifacts, "all")
    every = len(ids) == len(rows)
    if not every:
        rows = rows_to_score(options.data, options.artifacts, "holdout")
    if rows[ID].tolist() != ids:
        raise InputError(f"{report / SUBMISSION} has {len(ids):,} lesions, not the {len(rows):,} of the holdout; {again}.")
    parts = read_parts(report / SCORES).reindex(ids)
    try:
        run = json.loads((report / RUN).read_text(encoding="utf-8"))
        median = run["tabular_logits"]["training_median"]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{report / RUN} cannot be used ({error}); {again}.") from error
    if median != manifest["tabular"]["out_of_fold"]["median"] or not is_combined(parts, run, manifest):
        raise InputError(f"{report} is of other artifacts than {options.artifacts}; {again}.")
    submission = checked_submission(report / SUBMISSION, ids)
    scores = gather_scores(parts, submission, options.data, options.artifacts)
    scored = Scored(rows, scores, logits_of(parts), warning_of(every, run))
    return DryRun(scored, bootstrap_scores(rows[TARGET].to_numpy(), rows[PATIENT].to_numpy(), scores), run)


def is_combined(parts: pd.DataFrame, run: dict[str, Any], manifest: Manifest) -> bool:
    """Whether the final logits are the manifest's combination of the others, as far as the run has combined them."""
    how, fallbacks = manifest.get("network", {}).get("combination"), run.get("fallbacks", {})
    if how is None or {"network_stopped", "scores_not_combined", "no_network"} & set(fallbacks):
        return True
    final = combine(how, parts, parts["image_scored"].to_numpy() == 1)
    if STACKING in parts and "stacking" in manifest:
        compared = parts[STACKING].notna().to_numpy()
        final = np.where(compared, combine(manifest["stacking"]["combination"], parts, compared), final)
    return np.allclose(final, parts[FINAL], atol=TOLERANCE)


def warning_of(every: bool, run: dict[str, Any]) -> str:
    """What makes these scores differ from a submission's; empty where nothing does."""
    fallbacks = ", ".join(f"{name} {count:,}" for name, count in run.get("fallbacks", {}).items())
    return "; ".join([TRAINED_ON] * every + [f"the kernel fell back: {fallbacks}"] * bool(fallbacks))


# Figures


def sources_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Hospitals and licences of labelled rows with their lesions, malignant ones and patients, the largest first."""
    names = {name: rows[name].fillna(NOT_GIVEN) if name in rows else NOT_GIVEN for name in (HOSPITAL, LICENCE)}
    grouped = rows[[ID, PATIENT, TARGET]].assign(**names).groupby([HOSPITAL, LICENCE])
    counts = grouped.agg(lesions=(ID, "size"), malignant=(TARGET, "sum"), patients=(PATIENT, "nunique")).reset_index()
    counts = counts.sort_values(["lesions", HOSPITAL], ascending=[False, True])
    return counts.rename(columns={HOSPITAL: "hospital", LICENCE: "licence"}).to_dict("records")


def characteristics(training: pd.DataFrame, scored: pd.DataFrame) -> list[tuple[str, str, str]]:
    """What the rows are, in training and in the rows that are scored: name and both values, in words."""
    first, second = describe(training), describe(scored)
    return [(name, first[name], second[name]) for name in first]


def describe(rows: pd.DataFrame) -> dict[str, str]:
    """Counts and distributions of labelled rows, in words."""
    malignant, patients = int(rows[TARGET].sum()), rows.drop_duplicates(PATIENT)
    facts = {
        "lesions": f"{len(rows):,}",
        "malignant": f"{malignant:,} ({malignant / max(1, len(rows)):.2%})",
        "patients": f"{len(patients):,}",
        "patients with a malignant lesion": f"{rows.loc[rows[TARGET] == 1, PATIENT].nunique():,}",
        "lesions per patient": quartiles(rows.groupby(PATIENT).size()),
    }
    if "age_approx" in rows:
        facts["age of patients, years"] = quartiles(patients["age_approx"])
    if "sex" in rows:
        known = patients["sex"].dropna()
        facts["female patients"] = f"{(known == 'female').mean():.0%} of {len(known):,} known" if len(known) else "unknown"
    if SKIN_L in rows and SKIN_B in rows:
        facts["skin angle of patients, degrees"] = quartiles(skin_tone_angles(rows)[patients.index])
    return facts


def quartiles(values: pd.Series) -> str:
    """Median and quartiles, and how many values are missing."""
    known = values.dropna()
    if known.empty:
        return "unknown"
    low, middle, high = np.percentile(known, (25, 50, 75))
    missing = f", {len(values) - len(known):,} unknown" if len(known) < len(values) else ""
    return f"{middle:.0f} ({low:.0f} to {high:.0f}){missing}"


def grouped(groups: list[Group]) -> dict[str, list[Group]]:
    """Division -> its groups."""
    return {name: [each for each in groups if each.division == name] for name in dict.fromkeys(g.division for g in groups)}


def cost_of(options: Options, networks: Iterable[str], run: dict[str, Any]) -> dict[str, Any]:
    """Hours of the networks' training where all histories are there, seconds of the kernel, and energy of given watts.

    Returns:
        ``hours`` and ``epochs`` of all networks and folds together, ``history`` (the files, or those that are missing),
        ``kernel_seconds``, ``lesions``, ``watts``, ``training_kwh``,
        ``kernel_wh_per_1000``; None for what is not known.
    """
    logs = options.artifacts.with_name(f"{options.artifacts.name}-logs")
    histories = [logs / f"{name}-history.csv" for name in networks]
    missing = [path for path in histories if not path.is_file()]
    hours = epochs = None
    if histories and not missing:
        table = pd.concat([read_table(path) for path in histories])
        hours, epochs = float(table["seconds"].sum()) / 3600, len(table)
    seconds, lesions, watts = float(sum(run.get("seconds", {}).values())), run.get("lesions", 0), options.watts
    return {
        "history": ", ".join(path.name for path in missing or histories) or "network",
        "hours": hours,
        "epochs": epochs,
        "kernel_seconds": seconds,
        "lesions": lesions,
        "watts": watts,
        "training_kwh": watts * hours / 1000 if watts and hours is not None else None,
        "kernel_wh_per_1000": watts * seconds / 3600 / lesions * 1000 if watts and lesions else None,
    }


if __name__ == "__main__":
    run_command(main)
