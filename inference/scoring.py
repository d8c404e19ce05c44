"""From rows and images to logits: CatBoost for all lesions, then the networks for those with an image, while time lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.artifacts import Manifest, checked_file
from inference.features import build_features
from inference.images import ImageStore, find_images, image_batches
from inference.network import CPU, Ensemble, NetworkConfig, build_network, devices, load_state, network_logits
from inference.run_log import Forecast, Run
from inference.schema import ID
from inference.tabular import load_models, select_features, tabular_logits, unseen_values
from utils import InputError

#: The stages' logits, as columns of every table of scores.
TABULAR, NETWORK, STACKING = "tabular", "network", "stacking"
#: A combination that leaves the networks' logits as they are.
AS_THEY_ARE = {
    "with_image": {"intercept": 0.0, NETWORK: 1.0},
    "without_image": {"intercept": 0.0, TABULAR: 1.0},
}


def combine(how: Mapping[str, Any], scores: Mapping[str, Any], image_scored: np.ndarray) -> np.ndarray:
    """The final logit of each lesion: a weighted sum of the stages' logits.

    Args:
        how: "with_image" and "without_image", each with "intercept" and a weight for each stage by name. Both lead to logits
            on one scale. Where they are absent: ``AS_THEY_ARE``.
        scores: stage -> logits, shape (rows,); those of other stages than ``TABULAR`` are read where ``image_scored`` only.
        image_scored: whether the lesion's crop was scored, bool of shape (rows,).

    Returns:
        Float64 of shape (rows,).
    """
    how, image_scored = AS_THEY_ARE | how, np.asarray(image_scored, dtype=bool)

    def weighted(weights: Mapping[str, float]) -> np.ndarray:
        total = np.full(len(image_scored), float(weights["intercept"]))
        for name in weights.keys() - {"intercept"}:
            logits = np.asarray(scores[name], dtype="float64")
            total += weights[name] * (logits if name == TABULAR else np.where(image_scored, logits, 0.0))
        return total

    return np.where(image_scored, weighted(how["with_image"]), weighted(how["without_image"]))


def score_tabular(rows: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run) -> np.ndarray:
    """Tabular logits of every lesion, float64 of shape (rows,); logs their median beside that of training."""
    models, complaints = load_models(artifacts, manifest)
    for complaint in complaints:
        run.fall_back("tabular_models_left_out", 1, complaint)
    settings = manifest["tabular"]
    features = select_features(build_features(rows), settings["features"], settings["categories"])
    unseen = unseen_values(features, settings.get("known", {}))
    if unseen:
        run.facts["values_unseen_in_training"] = unseen
        run.log(f"categories with values unseen in training, scored by CatBoost as they are: {unseen}")
    logits = tabular_logits(models, features, settings["categories"])
    if len(logits):
        median, trained = float(np.median(logits)), settings["out_of_fold"]["median"]
        run.facts["tabular_logits"] = {"median": median, "training_median": trained}
        run.log(f"tabular logits: median {median:.2f} (out of fold in training {trained:.2f})")
    return logits


def correct_by_image(
    rows: pd.DataFrame,
    tabular: np.ndarray,
    load: Callable[[], tuple[Ensemble, ImageStore]],
    manifest: Manifest,
    batch_size: int,
    run: Run,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores each lesion with a readable crop by the fold networks, until the time is up.

    Args:
        rows: of the test metadata.
        tabular: their logits, shape (rows,).
        load: opens networks and images. Whatever it raises becomes a fall-back, too.
        manifest: of the artifacts.
        batch_size: crops at a time.
        run: for the log.

    Returns:
        Network logits, float64 of shape (rows,), the tabular ones where no network scored; and whether one did, bool.
    """
    network, image_scored = tabular.copy(), np.zeros(len(rows), dtype=bool)
    if "network" not in manifest:
        run.fall_back("no_network", len(rows), "the artifacts hold no network; every lesion keeps its tabular score.")
        return network, image_scored
    reached, not_finite = 0, 0
    if run.interrupted:
        run.fall_back("images_not_reached", len(rows), f"{run.interrupted}; no image is read.")
        return network, image_scored
    try:
        ensemble, store = load()
        image_size = manifest["network"]["settings"]["image_size"]
        batches = image_batches(store, rows[ID].tolist(), image_size, batch_size)
        forecast = Forecast(run, len(rows))
        for positions, logits in network_logits(ensemble, batches, tabular):
            if not reached:
                run.log("first batch scored")
                run.facts["seconds_to_first_batch"] = round(run.elapsed, 1)
            finite = np.isfinite(logits)
            network[positions[finite]], image_scored[positions[finite]] = logits[finite], True
            not_finite += int((~finite).sum())
            reached = int(positions[-1]) + 1
            forecast.add(len(positions))
            if reached < len(rows) and run.reason_to_stop():
                left = len(rows) - reached
                run.fall_back("images_not_reached", left, f"{run.reason_to_stop()}; no further image is read.")
                break
            if reached < len(rows) and forecast.late and ensemble.halve_views():
                run.fall_back("views_reduced", 1, f"the time is short: {ensemble.views} view(s) of each further crop.")
                forecast = Forecast(run, len(rows) - reached)
    # Whatever breaks here, a tabular submission is better than none.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        run.fall_back("network_stopped", 1, f"{type(error).__name__}: {reason}; the rest keeps its tabular score.")
    if not_finite:
        run.fall_back("network_output_not_finite", not_finite, f"{not_finite:,} lesions keep their tabular score.")
    left = int((~image_scored).sum())
    if left:
        run.fall_back("lesions_without_image_score", left, f"{left:,} of {len(rows):,} keep their tabular score.")
    return network, image_scored


def combine_scores(
    tabular: np.ndarray, network: np.ndarray, image_scored: np.ndarray, manifest: Manifest, run: Run
) -> np.ndarray:
    """The final logit of every lesion, float64 of shape (rows,), combined as the manifest says."""
    if not image_scored.any():
        return tabular
    try:
        how = manifest["network"]["combination"]
        final = combine(how, tabular, network, image_scored)
    except (InputError, LookupError, TypeError) as error:
        run.fall_back("scores_not_combined", int(image_scored.sum()), f"{error}; the network logits are the final ones.")
        return network
    run.facts["combination"] = how["kind"]
    return final


def open_test_images(competition: Path) -> ImageStore:
    """The images of the test lesions.

    Raises:
        InputError: there are none, or their file cannot be used.
    """
    source = find_images(competition, "test")
    if source is None:
        raise InputError(f"{competition} has no test-image.hdf5")
    return ImageStore(source)


def load_fold_networks(artifacts: Path, manifest: Manifest, run: Run) -> Ensemble:
    """The fold networks whose files match the manifest, on every accelerator.

    Raises:
        InputError: there is none.
    """
    import tensorflow as tf

    places = devices()
    run.log("building the network")
    with tf.device(CPU):
        config = NetworkConfig.from_dict(manifest["network"]["settings"])
        network, states = build_network(config), []
        for name in manifest["network"]["weights"]:
            try:
                states.append(load_state(network, checked_file(artifacts, manifest, name)))
            except InputError as error:
                run.fall_back("fold_networks_left_out", 1, str(error))
    if not states:
        raise InputError("no fold network is usable")
    run.log(f"{len(states)} fold networks loaded, on {', '.join(places)}")
    run.facts["fold_networks"] = len(states)
    return Ensemble(network, states, places, run.fall_back, config.views)
