"""From rows and images to logits: CatBoost for all lesions, then the networks for those with an image, while time lasts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit
from scipy.stats import rankdata

from inference.artifacts import Manifest, checked_file
from inference.features import build_features
from inference.images import ImageStore, SteadyImages, find_images, image_batches
from inference.network import CPU, Ensemble, NetworkConfig, build_network, devices, load_state, network_logits
from inference.run_log import Forecast, Run
from inference.schema import ID
from inference.tabular import load_tabular_models, select_features, tabular_logits, unseen_values
from utils import InputError

#: The final logit is: the network's; the logit of the mean rank of both scores; a weighted sum of both logits.
NETWORK_ALONE, RANK_AVERAGE, BLEND = "network", "rank_average", "blend"
COMBINATIONS = (NETWORK_ALONE, RANK_AVERAGE, BLEND)
#: Lesions are scored by image in so many blocks, the highest tabular logits first; inside a block in the order of the file.
#: pAUC depends on the top of the ranking; a block of a twentieth keeps the reads of an HDF5 file near each other.
BLOCKS = 20
#: Weights that leave the logits as they are.
AS_THEY_ARE = {
    "with_image": {"intercept": 0.0, "tabular": 0.0, "network": 1.0},
    "without_image": {"intercept": 0.0, "tabular": 1.0},
}


@dataclass(frozen=True)
class ImageOptions:
    """How images are scored.

    Args:
        batch_size: crops at a time.
        share: of the lesions, above 0 to 1: those with the highest tabular logits; no image of the others is read.
    """

    batch_size: int
    share: float = 1.0


def combine(how: dict[str, Any], tabular: np.ndarray, network: np.ndarray, image_scored: np.ndarray) -> np.ndarray:
    """The final logit of each lesion.

    Args:
        how: "kind" is one of ``COMBINATIONS``. The weights of the network alone and of a blend are "with_image" {intercept,
            tabular, network} and "without_image" {intercept, tabular}: both lead to logits on one scale. Where they are
            absent, ``AS_THEY_ARE``.
        tabular: tabular logits, shape (rows,).
        network: mean logits of the fold networks, shape (rows,); read where ``image_scored`` only.
        image_scored: whether a network scored the lesion's crop, bool of shape (rows,).

    Returns:
        Float64 of shape (rows,). Average ranks depend on all rows; they come as their logit.

    Raises:
        InputError: ``how`` is of an unknown kind.
    """
    kind = how.get("kind")
    if kind == RANK_AVERAGE:
        single = np.where(image_scored, network, tabular)
        return logit((rankdata(tabular) + rankdata(single)) / (2 * (len(single) + 1)))
    if kind in (NETWORK_ALONE, BLEND):
        given, absent = ((AS_THEY_ARE | how)[name] for name in ("with_image", "without_image"))
        network = np.where(image_scored, network, 0.0)
        with_image = given["intercept"] + given["tabular"] * tabular + given["network"] * network
        return np.where(image_scored, with_image, absent["intercept"] + absent["tabular"] * tabular)
    raise InputError(f"the manifest combines scores by {kind!r}, this version by {', '.join(COMBINATIONS)}; train again.")


def score_tabular(rows: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run) -> np.ndarray:
    """Tabular logits of every lesion, float64 of shape (rows,); logs their median beside that of training."""
    models, complaints = load_tabular_models(artifacts, manifest)
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


def most_suspicious(tabular: np.ndarray, share: float) -> np.ndarray:
    """Positions of the highest tabular logits, the highest first; of ``share`` times all, and of one at least."""
    return np.argsort(-tabular, kind="stable")[: max(1, round(share * len(tabular)))]


def in_blocks(ranked: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Positions in blocks of ``size``, inside a block in the order of the file.

    Args:
        ranked: positions, the most important first, shape (lesions,).
        places: where each position's image lies, as ``ImageStore.places`` gives it; shape (rows,).
        size: positions of a block.

    Returns:
        The same positions, shape (lesions,).
    """
    return ranked[np.lexsort((ranked, places[ranked], np.arange(len(ranked)) // size))]


def correct_by_image(
    rows: pd.DataFrame,
    tabular: np.ndarray,
    load: Callable[[], tuple[Ensemble, ImageStore]],
    manifest: Manifest,
    options: ImageOptions,
    run: Run,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores each lesion with a readable crop by the fold networks, the highest tabular logits first, until the time is up.

    Args:
        rows: of the test metadata.
        tabular: their logits, shape (rows,).
        load: opens networks and images. Whatever it raises becomes a fall-back, too.
        manifest: of the artifacts.
        options: batch size, and share of the lesions.
        run: for the log.

    Returns:
        Network logits, float64 of shape (rows,), the tabular ones where no network scored; and whether one did, bool.
    """
    network, image_scored = tabular.copy(), np.zeros(len(rows), dtype=bool)
    if "network" not in manifest:
        run.fall_back("no_network", len(rows), "the artifacts hold no network; every lesion keeps its tabular score.")
        return network, image_scored
    reached, not_finite, ranked = 0, 0, most_suspicious(tabular, options.share)
    if options.share < 1:
        run.facts["image_share"] = {"share": options.share, "lesions": len(ranked)}
        run.log(f"of {len(rows):,} lesions the {len(ranked):,} with the highest tabular logits are scored by image")
    if run.interrupted:
        run.fall_back("images_not_reached", len(ranked), f"{run.interrupted}; no image is read.")
        return network, image_scored
    try:
        ensemble, store = load()
        image_size = manifest["network"]["settings"]["image_size"]
        size = max(options.batch_size, math.ceil(len(rows) / BLOCKS))
        order = in_blocks(ranked, store.places(rows[ID]), size)
        batches = image_batches(store, rows[ID].to_numpy()[order].tolist(), image_size, options.batch_size)
        forecast = Forecast(run, len(order))
        for places, logits in network_logits(ensemble, batches, tabular[order]):
            positions = order[places]
            if not reached:
                run.log("first batch scored")
                run.facts["seconds_to_first_batch"] = round(run.elapsed, 1)
            finite = np.isfinite(logits)
            network[positions[finite]], image_scored[positions[finite]] = logits[finite], True
            not_finite += int((~finite).sum())
            reached = int(places[-1]) + 1
            forecast.add(len(places))
            if reached < len(order) and run.reason_to_stop():
                left = len(order) - reached
                run.fall_back("images_not_reached", left, f"{run.reason_to_stop()}; no further image is read.")
                break
            if reached < len(order) and forecast.late and ensemble.halve_views():
                run.fall_back("views_reduced", 1, f"the time is short: {ensemble.views} view(s) of each further crop.")
                forecast = Forecast(run, len(order) - reached)
    # Whatever breaks here, a tabular submission is better than none.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        run.fall_back("network_stopped", 1, f"{type(error).__name__}: {reason}; the rest keeps its tabular score.")
    if not_finite:
        run.fall_back("network_output_not_finite", not_finite, f"{not_finite:,} lesions keep their tabular score.")
    left = int((~image_scored[ranked]).sum())
    if left:
        run.fall_back("lesions_without_image_score", left, f"{left:,} of {len(ranked):,} keep their tabular score.")
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
    return SteadyImages(source)


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
