"""From a test folder to submission.csv, with fall-backs.

1. Find the competition folder and the artifact folder.   Without them: exit status 2.
2. Score every lesion by its metadata (CatBoost).         Without a usable model: exit status 2.
3. Write these scores to submission.csv.                  From here on a valid submission exists.
4. Score the lesions whose crop can be read by the networks, compare them within each patient (the last stage), and combine
   all scores; the others keep the tabular score.
   The highest tabular logits come first. Stop when the time is up, or on SIGTERM or Ctrl-C, with the scores there are.
5. Write the final submission.csv, and run.json: how lesions were scored, fall-backs, versions, seconds.

Whatever fails after step 3 costs scores, not the submission.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import FORMAT, MANIFEST, load_manifest
from inference.files import content_state, input_folders, write_csv
from inference.options import Parser, crop_count, existing_folder, output_file, positive_number, refuse_same_file
from inference.run_log import Run, hours, stop_on_signal, versions
from inference.schema import ID, TARGET, TEXT_COLUMNS, read_metadata_leniently
from inference.scoring import (
    FINAL,
    TABULAR,
    ImageOptions,
    combine_stages,
    load_networks,
    open_test_images,
    score_images,
    score_tabular,
)
from inference.tables import Reading, id_mismatch, read_csv_file
from terminal import run_command
from utils import InputError

COMPETITION = "isic-2024-challenge"
TEST_METADATA = "test-metadata.csv"
SAMPLE = "sample_submission.csv"
TEST_IMAGES = "test-image.hdf5"
#: How often tables are read that change meanwhile.
READINGS = 3
INPUT_ROOT = Path("/kaggle/input")
BATCH_SIZE = 64
TIME_BUDGET = 11.0  # hours: Kaggle ends a run after 12
#: Levels below /kaggle/input that are searched for the two inputs: the deepest mount known is models/*/*/*/*.
SEARCH_DEPTH = 5


@dataclass(frozen=True)
class RunSettings:
    """What a run reads and writes; a competition or artifact folder that is None is searched below ``input_root``."""

    competition: Path | None = None
    artifacts: Path | None = None
    output: Path = Path("submission.csv")
    scores: Path | None = None
    batch_size: int = BATCH_SIZE
    image_share: float = 1.0
    input_root: Path = INPUT_ROOT


def score_folder(settings: RunSettings, run: Run) -> None:
    """Scores the lesions of the competition folder and writes the submission."""
    competition = settings.competition or find_competition(settings.input_root)
    artifacts = settings.artifacts or find_artifacts(settings.input_root)
    manifest = load_manifest(artifacts)
    run.facts = {"competition": str(competition), "artifacts": str(artifacts), "versions": versions()}
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    run.log(f"test folder {competition}, artifacts {artifacts}, {packages}, {hours(run.time_budget)}")

    rows, order, states = read_tables(competition, run)
    scores = pd.DataFrame({TABULAR: score_tabular(rows, artifacts, manifest, run)}, index=pd.Index(rows[ID]))
    without_row = manifest["tabular"]["out_of_fold"]["median"]  # of ids that the metadata lacks: the file is complete
    write_submission(settings.output, order, scores[TABULAR], without_row)
    run.log(f"{len(order):,} lesions have their tabular score; {settings.output} is written and valid")
    run.finish("tabular")

    def load():
        networks, images = load_networks(artifacts, manifest, run), open_test_images(competition)
        if input_states(competition) != states:
            raise InputError(f"{competition} was changed after its metadata was read; no image is scored")
        if len(rows) and not any(isic_id in images for isic_id in rows[ID]):
            note = id_mismatch(TEST_METADATA, rows[ID], images.path.name, images.names())
            run.fall_back("images_of_other_lesions", len(rows), f"{note}.")
        return networks, images

    tabular = scores[TABULAR].to_numpy()
    scores = scores.assign(network=tabular, final=tabular, image_scored=0)
    try:
        options = ImageOptions(settings.batch_size, settings.image_share)
        logits = score_images(rows, tabular, load, manifest, options, run)
        run.finish("images")
        found = combine_stages(rows, tabular, logits, artifacts, manifest, run).set_index(scores.index)
        run.finish("combination")
        write_submission(settings.output, order, found[FINAL], without_row)
        scores = found.join(logits.add_prefix("network_").set_index(scores.index))
    # Whatever breaks here: the submission with the tabular scores is there, and stays.
    except Exception as error:
        note = f"{type(error).__name__}: {error}; {settings.output} has the tabular scores."
        run.fall_back("final_scores_not_written", len(order), note)
    if settings.scores:
        try:
            write_csv(settings.scores, scores.reset_index(), float_format=None)
        except (InputError, OSError) as error:
            run.fall_back("scores_not_written", len(scores), f"{error}; {settings.output} is complete.")
    count = int(scores["image_scored"].sum())
    run.facts |= {"lesions": len(rows), "image_scored": count, "submission_rows": len(order)}
    run.finish("writing")
    run.write(settings.output.with_name("run.json"))
    run.log(f"{settings.output}: {len(order):,} rows, {count:,} of {len(rows):,} lesions scored by image")


def find_competition(root: Path) -> Path:
    """The competition folder: Kaggle's classic mount, its new one, else wherever test-metadata.csv lies below ``root``.

    Raises:
        InputError: it is nowhere, or in several folders; the sentence lists what is mounted.
    """
    for folder in (root / COMPETITION, root / "competitions" / COMPETITION):
        if (folder / TEST_METADATA).is_file():
            return folder
    found = [folder for folder in input_folders(root, SEARCH_DEPTH) if (folder / TEST_METADATA).is_file()]
    if len(found) != 1:
        raise InputError(
            f"{TEST_METADATA} is in {len(found)} folders below {root} ({mounted(root)}); attach "
            f"the competition {COMPETITION} once, or give --competition."
        )
    return found[0]


def find_artifacts(root: Path) -> Path:
    """The only folder below ``root`` with a manifest of this format: a dataset, or a training kernel's output.

    Raises:
        InputError: there is none, or more than one.
    """
    found = [folder for folder in input_folders(root, SEARCH_DEPTH) if is_artifact_folder(folder)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} folders below {root} hold a {MANIFEST} of format {FORMAT} ({mounted(root)}); attach "
            "the artifact dataset once, or give --artifacts."
        )
    return found[0]


def is_artifact_folder(folder: Path) -> bool:
    """Whether the folder holds a manifest that this version reads."""
    try:
        load_manifest(folder)
    except (InputError, OSError):
        return False
    return True


def mounted(root: Path) -> str:
    """What lies directly below ``root``, for an error sentence."""
    if not root.is_dir():
        return "which does not exist"
    return "it holds " + (", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing")


def input_states(competition: Path) -> list[tuple[int, int] | None]:
    """Sizes and times of the files that belong together: metadata, sample submission, images."""
    return [content_state(path) for path in (competition / TEST_METADATA, competition / SAMPLE, competition / TEST_IMAGES)]


def read_tables(competition: Path, run: Run) -> tuple[pd.DataFrame, list[str], list[tuple[int, int] | None]]:
    """The test metadata, the isic_ids to submit, and the ``input_states`` that they were read in.

    Raises:
        InputError: the files change again and again as they are read.
    """
    for _ in range(READINGS):
        run.fallbacks.clear()
        run.notes.clear()
        states, rows = input_states(competition), read_rows(competition, run)
        order = submission_order(competition, rows, run)
        if input_states(competition) == states:
            return rows, order, states
        run.log(f"{competition} was changed while it was read; reading it again")
    raise InputError(f"{competition} was changed while it was read, {READINGS} times; run the kernel when it is complete.")


def read_rows(competition: Path, run: Run) -> pd.DataFrame:
    """The test metadata, as ``read_metadata_leniently`` gives it; each repair is logged."""
    rows, repairs = read_metadata_leniently(competition / TEST_METADATA)
    for reason, count in repairs.items():
        run.fall_back(reason, count, f"{TEST_METADATA}: {reason.replace('_', ' ')}: {count}, repaired.")
    return rows


def submission_order(competition: Path, rows: pd.DataFrame, run: Run) -> list[str]:
    """The isic_ids to submit, in the order of sample_submission.csv, else of the metadata."""
    try:
        sample, repairs = read_sample(competition / SAMPLE)
    except Exception as error:  # the metadata has the ids too
        run.fall_back("no_sample_submission", 1, f"{SAMPLE} is not usable ({error}); the order is that of {TEST_METADATA}.")
        return rows[ID].tolist()
    for reason, count in repairs.items():
        run.fall_back(f"sample_submission_{reason}", count, f"{SAMPLE}: {reason.replace('_', ' ')}: {count}, repaired.")
    only_sample, only_rows = len(set(sample) - set(rows[ID])), len(set(rows[ID]) - set(sample))
    note = id_mismatch(SAMPLE, sample, TEST_METADATA, rows[ID]) if only_sample or only_rows else ""
    if only_sample:
        run.fall_back("ids_only_in_sample_submission", only_sample, f"{note}; those without metadata get a median score.")
    if only_rows:
        run.fall_back("ids_only_in_metadata", only_rows, f"{note}; those not asked for are not submitted.")
    return sample


def read_sample(path: Path) -> tuple[list[str], dict[str, int]]:
    """The ids of sample_submission.csv, each once, and how often each repair was made, by name.

    Raises:
        InputError: the file is missing or empty, or has no isic_id.
    """
    counts: Counter[str] = Counter()
    table = read_csv_file(path, Reading(TEXT_COLUMNS, repairs=counts))
    if ID not in table or table[ID].isna().all():
        raise InputError(f"it has no {ID}")
    return table[ID].dropna().drop_duplicates().tolist(), dict(counts)


def write_submission(path: Path, order: Sequence[str], logits: pd.Series, without_row: float) -> None:
    """Writes probabilities in the given order.

    Args:
        path: submission.csv.
        order: isic_ids.
        logits: by isic_id.
        without_row: logit of an id that ``logits`` lacks.
    """
    logits = logits.reindex(order).fillna(without_row).to_numpy("float64")
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits, -700, 700)))
    write_csv(path, pd.DataFrame({ID: order, TARGET: probabilities}), float_format=None)


def main(arguments: list[str] | None = None) -> int:
    """Runs the kernel."""
    parser = Parser(description="Scores a test folder of the ISIC 2024 challenge; no arguments on Kaggle.")
    parser.add_argument(
        "--competition", type=existing_folder, help=f"folder with {TEST_METADATA} (default: found below --input-root)"
    )
    parser.add_argument(
        "--artifacts", type=existing_folder, help=f"folder with {MANIFEST} (default: found below --input-root)"
    )
    parser.add_argument(
        "--output", type=output_file, default=Path("submission.csv"), help="file to write (default: %(default)s)"
    )
    parser.add_argument("--scores", type=output_file, help="also write each lesion's logits to this CSV file")
    parser.add_argument("--batch-size", type=crop_count, default=BATCH_SIZE, help="crops at a time (default: %(default)s)")
    parser.add_argument(
        "--image-share",
        type=positive_number(1),
        default=1.0,
        metavar="SHARE",
        help="above 0 to 1: score so many lesions by image, the highest tabular logits (default: %(default)s)",
    )
    parser.add_argument("--input-root", type=existing_folder, default=INPUT_ROOT, help="where Kaggle mounts inputs")
    parser.add_argument(
        "--time-budget",
        type=positive_number(1_000),
        default=TIME_BUDGET,
        metavar="HOURS",
        help="images until then (default: %(default)s)",
    )
    options = vars(parser.parse_args(arguments))
    output = options["output"]
    refuse_same_file({"--output": output, "run.json beside it": output.with_name("run.json"), "--scores": options["scores"]})
    run = Run(options.pop("time_budget") * 3600)
    with stop_on_signal(run):
        score_folder(RunSettings(**options), run)
    return 0


if __name__ == "__main__":
    run_command(main)
