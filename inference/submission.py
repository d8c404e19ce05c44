"""The story from test folder to submission.csv, with the fall-backs.

1. Find the competition folder and the artifact folder.   Without them there is nothing to do: exit 2.
2. Score every lesion by its metadata (CatBoost).         Without one usable model: exit 2.
3. Write that as submission.csv.                          From here on nothing can come home empty-handed.
4. Let the networks correct the lesions whose crop can be read; the others keep the tabular score. Combine both scores.
   Stop in time, or when told to (SIGTERM), with what is known.
5. Write the final submission.csv, and run.json: what was scored how, what fell back and why, versions, seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inference.artifacts import MANIFEST, load_manifest
from inference.files import InputError
from inference.inputs import TEST_METADATA, find_artifacts, find_competition
from inference.run_log import Run, hours, listening, versions
from inference.schema import ID, read_metadata_leniently
from inference.scoring import combine_scores, correct_by_image, load_fold_networks, open_test_images, score_tabular
from inference.writing import submission_order, write_scores, write_submission

BATCH_SIZE = 64
TIME_BUDGET = 11.0  # hours: Kaggle ends a run after 12


def main(arguments: list[str] | None = None) -> int:
    """Runs the kernel; returns the exit status: 0 done, 2 bad input (one sentence on stderr)."""
    parser = argparse.ArgumentParser(description="Scores a test folder of the ISIC 2024 challenge; no arguments on Kaggle.")
    parser.add_argument("--competition", type=Path, help=f"folder with {TEST_METADATA} (default: found below --input-root)")
    parser.add_argument("--artifacts", type=Path, help=f"folder with {MANIFEST} (default: found below --input-root)")
    parser.add_argument("--output", type=Path, default=Path("submission.csv"), help="file to write (default: %(default)s)")
    parser.add_argument("--scores", type=Path, help="also write each lesion's tabular and final log-odds to this CSV file")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="crops at a time (default: %(default)s)")
    parser.add_argument(
        "--time-budget", type=float, default=TIME_BUDGET, metavar="HOURS", help="images until then (default: %(default)s)"
    )
    parser.add_argument("--input-root", type=Path, default=Path("/kaggle/input"), help="where Kaggle mounts inputs")
    options = parser.parse_args(arguments)
    try:
        if options.batch_size < 1:
            raise InputError(f"--batch-size {options.batch_size} is not a number of crops; give 1 or more.")
        if not options.time_budget > 0:
            raise InputError(f"--time-budget {options.time_budget} is no time; give hours above zero.")
        run = Run(options.time_budget * 3600)
        with listening(run):
            score_folder(options, run)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def score_folder(options: argparse.Namespace, run: Run) -> None:
    """From the options to the written submission."""
    competition = options.competition or find_competition(options.input_root)
    artifacts = options.artifacts or find_artifacts(options.input_root)
    manifest = load_manifest(artifacts)
    run.facts = {"competition": str(competition), "artifacts": str(artifacts), "versions": versions()}
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    run.say(f"test folder {competition}, artifacts {artifacts}, {told}, {hours(run.time_budget)}")

    rows, repairs = read_metadata_leniently(competition / TEST_METADATA)
    for what, count in repairs.items():
        run.fall_back(what, count, f"{TEST_METADATA}: {what}: {count}, repaired.")
    tabular = score_tabular(rows, artifacts, manifest, run)
    order = submission_order(competition, rows, run)
    write_submission(options.output, order, rows[ID], tabular, manifest)
    run.say(f"{len(order):,} lesions have their tabular score; {options.output} is written and can only get better")
    run.finish("tabular")

    corrected, seen = correct_by_image(
        rows,
        tabular,
        lambda: load_fold_networks(artifacts, manifest, run),
        lambda: open_test_images(competition),
        manifest,
        options.batch_size,
        run,
    )
    final = combine_scores(tabular, corrected, seen, manifest, run)
    run.finish("images")
    try:
        write_submission(options.output, order, rows[ID], final, manifest)
        if options.scores:
            write_scores(options.scores, rows[ID], tabular, final, seen)
    except (InputError, OSError) as error:
        run.fall_back("final scores not written", len(order), f"{error}; {options.output} has the tabular scores.")
    run.facts |= {"lesions": len(rows), "scored by image": int(seen.sum()), "submission rows": len(order)}
    run.finish("writing")
    run.write(options.output.with_name("run.json"))
    run.say(f"{options.output}: {len(order):,} rows, {int(seen.sum()):,} of {len(rows):,} lesions scored by image")


if __name__ == "__main__":
    sys.exit(main())
