"""The story from test folder to submission.csv, with the fall-backs.

1. Find the competition folder and the artifact folder.   Without them there is nothing to do: exit 2.
2. Score every lesion by its metadata (CatBoost).         Without one usable model: exit 2.
3. Write that as submission.csv.                          From here on nothing can come home empty-handed.
4. Let the networks correct the lesions whose crop can be read; the others keep the tabular score. Combine both scores.
5. Write the final submission.csv, and run.json: what was scored how, what fell back and why, versions, seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata as installed
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import FORMAT, MANIFEST, Manifest, checked_file, load_manifest
from inference.combination import combine
from inference.features import build_features
from inference.files import InputError, replacing
from inference.images import ImageStore, find_images, image_batches
from inference.network import load_network, network_log_odds
from inference.schema import ID, TARGET, read_metadata_leniently
from inference.tabular import load_tabular_models, select_features, tabular_log_odds

COMPETITION = "isic-2024-challenge"
TEST_METADATA = "test-metadata.csv"
SAMPLE = "sample_submission.csv"
#: Folders below /kaggle/input that are looked into for the two inputs: the deepest mount known is models/*/*/*/*.
SEARCH_DEPTH = 5
BATCH_SIZE = 64


@dataclass
class Run:
    """What happened, for the log and for run.json."""

    started: float = field(default_factory=time.monotonic)
    facts: dict = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Prints one line with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:7.1f} s] {text}", flush=True)

    def fall_back(self, what: str, count: int, note: str) -> None:
        """Counts a step down and says so; never silent."""
        self.fallbacks[what] = self.fallbacks.get(what, 0) + count
        self.notes.append(note)
        self.say(f"FALL-BACK ({what}: {count}) {note}")

    def finish(self, stage: str) -> None:
        """Notes the seconds that ``stage`` took since the last one ended."""
        self.seconds[stage] = round(time.monotonic() - self.started - sum(self.seconds.values()), 3)

    def write(self, path: Path) -> None:
        """Writes run.json."""
        content = self.facts | {"fallbacks": self.fallbacks, "notes": self.notes, "seconds": self.seconds}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Runs the kernel; returns the exit status: 0 done, 2 bad input (one sentence on stderr)."""
    parser = argparse.ArgumentParser(description="Scores a test folder of the ISIC 2024 challenge; no arguments on Kaggle.")
    parser.add_argument("--competition", type=Path, help=f"folder with {TEST_METADATA} (default: found below --input-root)")
    parser.add_argument("--artifacts", type=Path, help=f"folder with {MANIFEST} (default: found below --input-root)")
    parser.add_argument("--output", type=Path, default=Path("submission.csv"), help="file to write (default: %(default)s)")
    parser.add_argument("--scores", type=Path, help="also write each lesion's tabular and final log-odds to this CSV file")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="crops at a time (default: %(default)s)")
    parser.add_argument("--input-root", type=Path, default=Path("/kaggle/input"), help="where Kaggle mounts inputs")
    options = parser.parse_args(arguments)
    try:
        if options.batch_size < 1:
            raise InputError(f"--batch-size {options.batch_size} is not a number of crops; give 1 or more.")
        score_folder(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def score_folder(options: argparse.Namespace) -> None:
    """From the options to the written submission."""
    run = Run()
    competition = options.competition or find_competition(options.input_root)
    artifacts = options.artifacts or find_artifacts(options.input_root)
    manifest = load_manifest(artifacts)
    run.facts = {"competition": str(competition), "artifacts": str(artifacts), "versions": versions()}
    run.say(f"test folder {competition}, artifacts {artifacts}, " + ", ".join(f"{k} {v}" for k, v in versions().items()))

    rows, repairs = read_metadata_leniently(competition / TEST_METADATA)
    for what, count in repairs.items():
        run.fall_back(what, count, f"{TEST_METADATA}: {what}: {count}, repaired.")
    tabular = score_tabular(rows, artifacts, manifest, run)
    order = submission_order(competition, rows, run)
    write_submission(options.output, order, rows[ID], tabular, manifest)
    run.say(f"{len(order):,} lesions have their tabular score; {options.output} is written and can only get better")
    run.finish("tabular")

    corrected, seen = correct_by_image(rows, tabular, competition, artifacts, manifest, options.batch_size, run)
    final = combine_scores(tabular, corrected, seen, manifest, run)
    run.finish("images")
    write_submission(options.output, order, rows[ID], final, manifest)
    if options.scores:
        write_scores(options.scores, rows[ID], tabular, final, seen)
    run.facts |= {"lesions": len(rows), "scored by image": int(seen.sum()), "submission rows": len(order)}
    run.finish("writing")
    run.write(options.output.with_name("run.json"))
    run.say(f"{options.output}: {len(order):,} rows, {int(seen.sum()):,} of {len(rows):,} lesions scored by image")


# --- finding the inputs -------------------------------------------------------------------------------------------------


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
        subfolders[:] = sorted(subfolders) if depth < SEARCH_DEPTH else []
        yield Path(folder)


def mounted(root: Path) -> str:
    """What lies directly below ``root``, for an error sentence."""
    if not root.is_dir():
        return "which does not exist"
    return "it holds " + (", ".join(sorted(path.name for path in root.iterdir())[:10]) or "nothing")


# --- scoring ------------------------------------------------------------------------------------------------------------


def score_tabular(rows: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run) -> np.ndarray:
    """Tabular log-odds of every lesion, float64 of shape (rows,); says how they lie beside those of training."""
    models, complaints = load_tabular_models(artifacts, manifest)
    for complaint in complaints:
        run.fall_back("tabular models left out", 1, complaint)
    settings = manifest["tabular"]
    features = select_features(build_features(rows), settings["features"], settings["categories"])
    log_odds = tabular_log_odds(models, features, settings["categories"])
    if len(log_odds):
        trained = settings["out_of_fold"]
        run.facts["tabular log-odds"] = {"median": float(np.median(log_odds)), "in training": trained["median"]}
        run.say(f"tabular log-odds: median {np.median(log_odds):.2f} (out of fold in training {trained['median']:.2f})")
    return log_odds


def correct_by_image(
    rows: pd.DataFrame,
    tabular: np.ndarray,
    competition: Path,
    artifacts: Path,
    manifest: Manifest,
    batch_size: int,
    run: Run,
) -> tuple[np.ndarray, np.ndarray]:
    """Lets the fold networks correct the tabular score where there is a crop.

    Returns:
        Final log-odds, float64 of shape (rows,), and whether each row was scored by its image, bool.
    """
    final, seen = tabular.copy(), np.zeros(len(rows), dtype=bool)
    if "network" not in manifest:
        run.fall_back("no network", len(rows), "the artifacts hold no network; every lesion keeps its tabular score.")
        return final, seen
    try:
        networks = load_fold_networks(artifacts, manifest, run)
        source = find_images(competition, "test")
        if source is None:
            raise InputError(f"{competition} has no test-image.hdf5")
        store = ImageStore(source)
        image_size = manifest["network"]["settings"]["image_size"]
        batches = image_batches(store, rows[ID].tolist(), image_size, batch_size)
        for positions, log_odds in network_log_odds(networks, batches, tabular):
            finite = np.isfinite(log_odds)
            final[positions[finite]], seen[positions[finite]] = log_odds[finite], True
    # Whatever breaks here, a tabular submission is better than none: this is the one place that catches everything.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        run.fall_back("network stopped", 1, f"{type(error).__name__}: {reason}; the rest keeps its tabular score.")
    unseen = int((~seen).sum())
    if unseen:
        run.fall_back("lesions without image score", unseen, f"{unseen:,} of {len(rows):,} keep their tabular score.")
    return final, seen


def combine_scores(tabular: np.ndarray, corrected: np.ndarray, seen: np.ndarray, manifest: Manifest, run: Run) -> np.ndarray:
    """The final score of every lesion, float64 (rows,): tabular and corrected log-odds as the manifest combines them."""
    if not seen.any():
        return tabular
    try:
        how = manifest["network"]["combination"]
        final = combine(how, tabular, corrected, seen)
    except (InputError, LookupError, TypeError) as error:
        run.fall_back("networks alone", int(seen.sum()), f"the scores could not be combined: {error}")
        return corrected
    run.facts["combination"] = how["kind"]
    return final


def load_fold_networks(artifacts: Path, manifest: Manifest, run: Run) -> list:
    """The fold networks whose files check out.

    Raises:
        InputError: none does.
    """
    networks = []
    for name in manifest["network"]["weights"]:
        try:
            networks.append(load_network(manifest["network"]["settings"], checked_file(artifacts, manifest, name)))
        except InputError as error:
            run.fall_back("fold networks left out", 1, str(error))
    if not networks:
        raise InputError("no fold network is usable")
    run.say(f"{len(networks)} fold networks loaded")
    return networks


# --- writing ------------------------------------------------------------------------------------------------------------


def submission_order(competition: Path, rows: pd.DataFrame, run: Run) -> list[str]:
    """The isic_ids to submit, in the order of sample_submission.csv, else of the metadata."""
    try:
        sample = pd.read_csv(competition / SAMPLE, dtype={ID: "str"})[ID].dropna().drop_duplicates().tolist()
    except (OSError, KeyError, ValueError) as error:
        run.fall_back("no sample submission", 1, f"{SAMPLE} is not usable ({error}); the order is that of {TEST_METADATA}.")
        return rows[ID].tolist()
    if set(sample) != set(rows[ID]):
        unknown = len(set(sample) - set(rows[ID]))
        run.fall_back("ids only in sample submission", unknown, f"{SAMPLE} and {TEST_METADATA} name different lesions.")
    return sample


def write_submission(path: Path, order: list[str], isic_ids: pd.Series, log_odds: np.ndarray, manifest: Manifest) -> None:
    """Probabilities in the given order; an id without metadata gets training's median, so that the file is complete."""
    scores = pd.Series(log_odds, index=isic_ids.to_numpy()).reindex(order)
    scores = scores.fillna(manifest["tabular"]["out_of_fold"]["median"]).to_numpy("float64")
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(scores, -700, 700)))
    with replacing(path) as temporary:
        pd.DataFrame({ID: order, TARGET: probabilities}).to_csv(temporary, index=False)


def write_scores(path: Path, isic_ids: pd.Series, tabular: np.ndarray, final: np.ndarray, seen: np.ndarray) -> None:
    """Each lesion's parts, for the dry run: log-odds, and whether the image was seen."""
    with replacing(path) as temporary:
        frame = pd.DataFrame({ID: isic_ids, "tabular": tabular, "fusion": final, "image_seen": seen.astype(int)})
        frame.to_csv(temporary, index=False)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the scores."""
    names = ("tensorflow", "keras", "catboost", "numpy", "pandas", "h5py")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
