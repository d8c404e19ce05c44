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
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import FORMAT, MANIFEST, Manifest, load_manifest
from inference.files import replacing
from inference.run_log import Run, hours, listening, versions
from inference.schema import ID, TARGET, read_metadata_leniently
from inference.scoring import combine_scores, correct_by_image, load_fold_networks, open_test_images, score_tabular
from utils import InputError

BATCH_SIZE = 64
TIME_BUDGET = 11.0  # hours: Kaggle ends a run after 12


def main(arguments: list[str] | None = None) -> int:
    """Runs the kernel; returns the exit status: 0 done, 2 bad input (one sentence on stderr)."""
    parser = argparse.ArgumentParser(description="Scores a test folder of the ISIC 2024 challenge; no arguments on Kaggle.")
    parser.add_argument("--competition", type=Path, help=f"folder with {TEST_METADATA} (default: found below --input-root)")
    parser.add_argument("--artifacts", type=Path, help=f"folder with {MANIFEST} (default: found below --input-root)")
    parser.add_argument("--output", type=Path, default=Path("submission.csv"), help="file to write (default: %(default)s)")
    parser.add_argument("--scores", type=Path, help="also write each lesion's tabular and final logits to this CSV file")
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
    run.log(f"test folder {competition}, artifacts {artifacts}, {told}, {hours(run.time_budget)}")

    rows, repairs = read_metadata_leniently(competition / TEST_METADATA)
    for what, count in repairs.items():
        run.fall_back(what, count, f"{TEST_METADATA}: {what}: {count}, repaired.")
    tabular = score_tabular(rows, artifacts, manifest, run)
    order = submission_order(competition, rows, run)
    write_submission(options.output, order, rows[ID], tabular, manifest)
    run.log(f"{len(order):,} lesions have their tabular score; {options.output} is written and can only get better")
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
            write_scores(options.scores, rows[ID], tabular, corrected, final, seen)
    except (InputError, OSError) as error:
        run.fall_back("final scores not written", len(order), f"{error}; {options.output} has the tabular scores.")
    run.facts |= {"lesions": len(rows), "image_scored": int(seen.sum()), "submission_rows": len(order)}
    run.finish("writing")
    run.write(options.output.with_name("run.json"))
    run.log(f"{options.output}: {len(order):,} rows, {int(seen.sum()):,} of {len(rows):,} lesions scored by image")


COMPETITION = "isic-2024-challenge"
TEST_METADATA = "test-metadata.csv"
#: Folders below /kaggle/input that are looked into for the two inputs: the deepest mount known is models/*/*/*/*.
SEARCH_DEPTH = 5
#: Folders of the competition's 401,059 separate images: nothing of ours is in them, and listing them takes long.
IMAGE_FOLDERS = ("train-image", "test-image")


def find_competition(root: Path) -> Path:
    """The competition folder: Kaggle's classic mount, its new one, else wherever test-metadata.csv lies below ``root``.

    Raises:
        InputError: it is nowhere; the sentence lists what is mounted.
    """
    for folder in (root / COMPETITION, root / "competitions" / COMPETITION):
        if (folder / TEST_METADATA).is_file():
            return folder
    found = [folder for folder in folders_below(root) if (folder / TEST_METADATA).is_file()]
    if len(found) != 1:
        raise InputError(
            f"{TEST_METADATA} is in {len(found)} folders below {root} ({mounted(root)}); attach "
            f"the competition {COMPETITION} once, or give --competition."
        )
    return found[0]


def find_artifacts(root: Path) -> Path:
    """The one folder below ``root`` that holds a manifest of our format: a dataset, or a training kernel's output.

    Raises:
        InputError: there is none, or more than one.
    """
    found = [folder for folder in folders_below(root) if is_artifact_folder(folder)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} folders below {root} hold a {MANIFEST} of format {FORMAT} ({mounted(root)}); attach "
            "the artifact dataset once, or give --artifacts."
        )
    return found[0]


def is_artifact_folder(folder: Path) -> bool:
    """Whether the folder holds a manifest that this kernel can read."""
    try:
        load_manifest(folder)
    except (InputError, OSError):
        return False
    return True


def folders_below(root: Path) -> Iterable[Path]:
    """The folders at most ``SEARCH_DEPTH`` levels below ``root``, in a fixed order; files are not walked one by one."""
    for folder, subfolders, _ in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        subfolders[:] = sorted(set(subfolders) - set(IMAGE_FOLDERS)) if depth < SEARCH_DEPTH else []
        yield Path(folder)


def mounted(root: Path) -> str:
    """What lies directly below ``root``, for an error sentence."""
    if not root.is_dir():
        return "which does not exist"
    return "it holds " + (", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing")


SAMPLE = "sample_submission.csv"


def submission_order(competition: Path, rows: pd.DataFrame, run: Run) -> list[str]:
    """The isic_ids to submit, in the order of sample_submission.csv, else of the metadata."""
    try:
        sample = pd.read_csv(competition / SAMPLE, dtype={ID: "str"})[ID].dropna().drop_duplicates().tolist()
    except (OSError, KeyError, ValueError) as error:
        run.fall_back("no sample submission", 1, f"{SAMPLE} is not usable ({error}); the order is that of {TEST_METADATA}.")
        return rows[ID].tolist()
    unknown, unasked = len(set(sample) - set(rows[ID])), len(set(rows[ID]) - set(sample))
    if unknown:
        run.fall_back("ids only in sample submission", unknown, f"{TEST_METADATA} lacks them; they get a median score.")
    if unasked:
        run.fall_back("ids only in metadata", unasked, f"{SAMPLE} does not ask for them; they are not submitted.")
    return sample


def write_submission(path: Path, order: list[str], isic_ids: pd.Series, logits: np.ndarray, manifest: Manifest) -> None:
    """Probabilities in the given order; an id without metadata gets training's median, so that the file is complete."""
    scores = pd.Series(logits, index=isic_ids.to_numpy()).reindex(order)
    scores = scores.fillna(manifest["tabular"]["out_of_fold"]["median"]).to_numpy("float64")
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(scores, -700, 700)))
    with replacing(path) as temporary:
        pd.DataFrame({ID: order, TARGET: probabilities}).to_csv(temporary, index=False)


def write_scores(
    path: Path, isic_ids: pd.Series, tabular: np.ndarray, network: np.ndarray, final: np.ndarray, seen: np.ndarray
) -> None:
    """Each lesion's parts, for the dry run: logits, and whether the image was seen."""
    with replacing(path) as temporary:
        frame = pd.DataFrame(
            {ID: isic_ids, "tabular": tabular, "network": network, "final": final, "image_scored": seen.astype(int)}
        )
        frame.to_csv(temporary, index=False)


if __name__ == "__main__":
    sys.exit(main())
