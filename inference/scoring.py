"""From rows and images to logits: CatBoost first, then the networks where there is an image, as far as time allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit
from scipy.stats import rankdata

from inference.artifacts import Manifest, checked_file
from inference.features import build_features
from inference.images import ImageStore, find_images, image_batches
from inference.network import CPU, Ensemble, NetworkConfig, build_network, devices, load_state, network_logits
from inference.run_log import Forecast, Run
from inference.schema import ID
from inference.tabular import load_tabular_models, select_features, tabular_logits, unseen_values
from utils import InputError

#: The fusion networks alone; the mean of both ranks; weights for both logits.
NETWORK_ALONE, RANK_AVERAGE, BLEND = "network", "rank_average", "blend"
COMBINATIONS = (NETWORK_ALONE, RANK_AVERAGE, BLEND)
#: How logits become the final ones where nothing else is said.
AS_THEY_ARE = {
    "with_image": {"intercept": 0.0, "tabular": 0.0, "network": 1.0},
    "without_image": {"intercept": 0.0, "tabular": 1.0},
}


def combine(how: dict[str, Any], tabular: np.ndarray, fusion: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One score per lesion.

    Args:
        how: "kind" is one of ``COMBINATIONS``. For the fusion alone and for a blend, "with_image" has an intercept and weights of
            the tabular and the fusion logits, "without_image" an intercept and the weight of the tabular ones for lesions whose
            image no network has seen: both lead to logits on one scale. Where they are absent, ``AS_THEY_ARE``.
        tabular: tabular logits, shape (rows,).
        fusion: mean logits of the fusion networks, shape (rows,); read where ``seen`` only.
        seen: whether a network has seen the lesion's image, bool of shape (rows,).

    Returns:
        Shape (rows,), float64: logits, on one scale for lesions with and without an image. An average of ranks depends on
        the rows that it is made of; it comes as the logit of the average rank.

    Raises:
        InputError: ``how`` is none of these.
    """
    kind = how.get("kind")
    if kind == RANK_AVERAGE:
        single = np.where(seen, fusion, tabular)
        return logit((rankdata(tabular) + rankdata(single)) / (2 * (len(single) + 1)))
    if kind in (NETWORK_ALONE, BLEND):
        given, ungiven = ((AS_THEY_ARE | how)[name] for name in ("with_image", "without_image"))
        with_image = given["intercept"] + given["tabular"] * tabular + given["network"] * np.where(seen, fusion, 0.0)
        return np.where(seen, with_image, ungiven["intercept"] + ungiven["tabular"] * tabular)
    raise InputError(
        f"the manifest combines the scores by {kind!r}, this code knows {', '.join(COMBINATIONS)}; train again."
    )


def score_tabular(rows: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run) -> np.ndarray:
    """Tabular logits of every lesion, float64 of shape (rows,); says how they lie beside those of training."""
    models, complaints = load_tabular_models(artifacts, manifest)
    for complaint in complaints:
        run.fall_back("tabular models left out", 1, complaint)
    settings = manifest["tabular"]
    features = select_features(build_features(rows), settings["features"], settings["categories"])
    unseen = unseen_values(features, settings.get("known", {}))
    if unseen:
        run.facts["values unseen in training"] = unseen
        run.log(f"unseen in training, which CatBoost takes as they are: {unseen}")
    logits = tabular_logits(models, features, settings["categories"])
    if len(logits):
        trained = settings["out_of_fold"]
        run.facts["tabular logits"] = {"median": float(np.median(logits)), "in training": trained["median"]}
        run.log(f"tabular logits: median {np.median(logits):.2f} (out of fold in training {trained['median']:.2f})")
    return logits


def correct_by_image(
    rows: pd.DataFrame,
    tabular: np.ndarray,
    load_networks: Callable[[], Ensemble],
    open_images: Callable[[], ImageStore],
    manifest: Manifest,
    batch_size: int,
    run: Run,
) -> tuple[np.ndarray, np.ndarray]:
    """Lets the fold networks correct the tabular score where there is a crop, until time is up.

    Whatever ``load_networks`` and ``open_images`` raise becomes a fall-back, too.

    Returns:
        Corrected logits, float64 of shape (rows,), and whether each row was scored by its image, bool.
    """
    final, seen = tabular.copy(), np.zeros(len(rows), dtype=bool)
    if "network" not in manifest:
        run.fall_back("no network", len(rows), "the artifacts hold no network; every lesion keeps its tabular score.")
        return final, seen
    reached, unusable = 0, 0
    try:
        ensemble, image_size = load_networks(), manifest["network"]["settings"]["image_size"]
        batches = image_batches(open_images(), rows[ID].tolist(), image_size, batch_size)
        forecast = Forecast(run, len(rows))
        for positions, logits in network_logits(ensemble, batches, tabular):
            if not reached:
                run.log("first batch scored")
                run.facts["seconds to first batch"] = round(run.elapsed, 1)
            finite = np.isfinite(logits)
            final[positions[finite]], seen[positions[finite]] = logits[finite], True
            unusable += int((~finite).sum())
            reached = int(positions[-1]) + 1
            forecast.add(len(positions))
            if reached < len(rows) and run.reason_to_stop():
                left = len(rows) - reached
                run.fall_back("images not reached", left, f"{run.reason_to_stop()}; no further image is read.")
                break
    # Whatever breaks here, a tabular submission is better than none: this is the one place that catches everything.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        run.fall_back("network stopped", 1, f"{type(error).__name__}: {reason}; the rest keeps its tabular score.")
    if unusable:
        run.fall_back("network output not finite", unusable, f"{unusable:,} lesions keep their tabular score.")
    unseen = int((~seen).sum())
    if unseen:
        run.fall_back("lesions without image score", unseen, f"{unseen:,} of {len(rows):,} keep their tabular score.")
    return final, seen


def combine_scores(tabular: np.ndarray, corrected: np.ndarray, seen: np.ndarray, manifest: Manifest, run: Run) -> np.ndarray:
    """The final score of every lesion, float64 (rows,): tabular and corrected logits as the manifest combines them."""
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
    """The fold networks whose files check out, on every accelerator.

    Raises:
        InputError: none does.
    """
    import tensorflow as tf

    places = devices()
    run.log("building the network")
    with tf.device(CPU):
        network, states = build_network(NetworkConfig.from_dict(manifest["network"]["settings"])), []
        for name in manifest["network"]["weights"]:
            try:
                states.append(load_state(network, checked_file(artifacts, manifest, name)))
            except InputError as error:
                run.fall_back("fold networks left out", 1, str(error))
    if not states:
        raise InputError("no fold network is usable")
    run.log(f"{len(states)} fold networks loaded, on {', '.join(places)}")
    run.facts["fold networks"] = len(states)
    return Ensemble(network, states, places, run.fall_back)
