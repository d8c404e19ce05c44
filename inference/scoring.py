"""From rows and images to logits: CatBoost for all lesions, then the networks for those with an image, while time lasts.

Last, the image scores in the context of the patient, and the combination of all stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.artifacts import Manifest, checked_file, networks_of
from inference.features import build_features, context_logits, group_sizes, logit_features, patient_codes
from inference.images import ImageStore, SteadyImages, find_images, image_batches
from inference.network import CPU, Ensemble, NetworkConfig, build_network, devices, load_state
from inference.run_log import Forecast, Run
from inference.schema import ID, PATIENT
from inference.tabular import load_models, select_features, tabular_logits, unseen_values
from utils import InputError

#: The stages' logits, as columns of every table of scores.
TABULAR, NETWORK, IN_CONTEXT, STACKING, FINAL = "tabular", "network", "context", "stacking", "final"
#: A combination that leaves the networks' logits as they are.
AS_THEY_ARE = {
    "with_image": {"intercept": 0.0, NETWORK: 1.0},
    "without_image": {"intercept": 0.0, TABULAR: 1.0},
}
#: Lesions are scored by image in so many blocks, the highest tabular logits first; inside a block in the order of the file.
#: pAUC depends on the top of the ranking; a block of a twentieth keeps the reads of an HDF5 file near each other.
BLOCKS = 20
#: Share of the patient's lesions that must have all scores for the last stage, which compares them.
MOST_OF_THE_PATIENT = 0.9


@dataclass(frozen=True)
class ImageOptions:
    """How images are scored.

    Args:
        batch_size: crops at a time.
        share: of the lesions, above 0 to 1: those with the highest tabular logits; no image of the others is read.
    """

    batch_size: int
    share: float = 1.0


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
    how, image_scored = AS_THEY_ARE | dict(how), np.asarray(image_scored, dtype=bool)

    def weighted(weights: Mapping[str, float]) -> np.ndarray:
        total = np.full(len(image_scored), float(weights["intercept"]))
        for name in sorted(weights.keys() - {"intercept"}):
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


class Networks:
    """All networks of the artifacts, the best out of fold first; each is an ensemble of fold networks.

    Args:
        ensembles: by name.
        sizes: width and height of each one's crops, pixels.
        note: as ``Ensemble`` takes it.
    """

    def __init__(self, ensembles: Mapping[str, Ensemble], sizes: Mapping[str, int], note: Callable[[str, int, str], None]):
        self.names, self._at_work, self._note = tuple(ensembles), dict(ensembles), note
        self._made_of = ensembles, sizes
        #: Sizes that a crop is decoded to, each once.
        self.sizes = tuple(dict.fromkeys(sizes[name] for name in self.names))
        self._place = {name: self.sizes.index(sizes[name]) for name in self.names}

    def renewed(self, note: Callable[[str, int, str], None]) -> Networks:
        """The same networks, all at work again, for other lesions whose fall-backs are counted by another ``note``."""
        ensembles, sizes = self._made_of
        for ensemble in ensembles.values():
            ensemble.note = note
        return Networks(ensembles, sizes, note)

    @property
    def at_work(self) -> int:
        """How many networks score further crops."""
        return len(self._at_work)

    def logits(self, crops: Sequence[Any], tabular: np.ndarray) -> np.ndarray:
        """Logits float64 of shape (rows, networks), NaN of a network that is not at work any more.

        Args:
            crops: one tensor for each of ``sizes``, uint8 (rows, size, size, 3).
            tabular: tabular logits, float32 (rows, 1).
        """
        found = np.full((len(tabular), len(self.names)), np.nan)
        for column, name in enumerate(self.names):
            if name in self._at_work:
                try:
                    found[:, column] = self._at_work[name].logits(crops[self._place[name]], tabular)
                except Exception as error:
                    del self._at_work[name]
                    if not self._at_work:
                        raise
                    self._note("networks_stopped", 1, f"{name}: {first_line(error)}; the other networks go on.")
        return found

    def take_less_time(self) -> bool:
        """Half the views of each further crop, or where there is one view only, without the weakest network; else False."""
        reduced = [each.halve_views() for each in self._at_work.values()]
        if any(reduced):
            views = max(each.views for each in self._at_work.values())
            self._note("views_reduced", 1, f"the time is short: {views} view(s) of each further crop.")
        elif len(self._at_work) > 1:
            name, _ = self._at_work.popitem()
            self._note("networks_left_out", 1, f"the time is short: {name}, the weakest, scores no further crop.")
        else:
            return False
        return True


def first_line(error: Exception) -> str:
    """Type and first line of an error's text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def score_images(
    rows: pd.DataFrame,
    tabular: np.ndarray,
    load: Callable[[], tuple[Networks, ImageStore]],
    manifest: Manifest,
    options: ImageOptions,
    run: Run,
) -> pd.DataFrame:
    """Scores each lesion with a readable crop by all networks, the highest tabular logits first, until the time is up.

    Args:
        rows: of the test metadata.
        tabular: their logits, shape (rows,).
        load: opens networks and images. Whatever it raises becomes a fall-back, too.
        manifest: of the artifacts.
        options: batch size, and share of the lesions.
        run: for the log.

    Returns:
        Network logits, a float64 column for each network of the manifest; NaN where it has not scored the lesion.
    """
    names = list(networks_of(manifest))
    found = np.full((len(rows), len(names)), np.nan)
    if not names:
        run.fall_back("no_network", len(rows), "the artifacts hold no network; every lesion keeps its tabular score.")
        return pd.DataFrame(found, columns=names)
    reached, not_finite, ranked = 0, 0, most_suspicious(tabular, options.share)
    if options.share < 1:
        run.facts["image_share"] = {"share": options.share, "lesions": len(ranked)}
        run.log(f"of {len(rows):,} lesions the {len(ranked):,} with the highest tabular logits are scored by image")
    if run.interrupted:
        run.fall_back("images_not_reached", len(ranked), f"{run.interrupted}; no image is read.")
        return pd.DataFrame(found, columns=names)
    try:
        networks, store = load()
        columns = [names.index(name) for name in networks.names]
        size = max(options.batch_size, math.ceil(len(rows) / BLOCKS))
        order = in_blocks(ranked, store.places(rows[ID]), size)
        batches = image_batches(store, rows[ID].to_numpy()[order].tolist(), networks.sizes, options.batch_size)
        forecast = Forecast(run, len(order))
        for places, crops in batches:
            places = places.numpy()
            positions = order[places]
            logits = networks.logits(crops, tabular[positions, None].astype("float32"))
            if not reached:
                run.log("first batch scored")
                run.facts["seconds_to_first_batch"] = round(run.elapsed, 1)
            not_finite += int((np.isfinite(logits).sum(axis=1) < networks.at_work).sum())
            found[np.ix_(positions, columns)] = np.where(np.isfinite(logits), logits, np.nan)
            reached = int(places[-1]) + 1
            forecast.add(len(places))
            if reached < len(order) and run.reason_to_stop():
                left = len(order) - reached
                run.fall_back("images_not_reached", left, f"{run.reason_to_stop()}; no further image is read.")
                break
            if reached < len(order) and forecast.late and networks.take_less_time():
                forecast = Forecast(run, len(order) - reached)
    # Whatever breaks here, a tabular submission is better than none.
    except Exception as error:
        run.fall_back("network_stopped", 1, f"{first_line(error)}; the rest keeps its tabular score.")
    if not_finite:
        run.fall_back("network_output_not_finite", not_finite, f"{not_finite:,} lesions lack the score of a network.")
    left = int(np.isnan(found[ranked]).all(axis=1).sum())
    if left:
        run.fall_back("lesions_without_image_score", left, f"{left:,} of {len(ranked):,} keep their tabular score.")
    return pd.DataFrame(found, columns=names)


def combine_stages(
    rows: pd.DataFrame, tabular: np.ndarray, logits: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run
) -> pd.DataFrame:
    """The logits of every stage, combined as the manifest says.

    A lesion falls back from the last stage to the networks where one of them has not scored it or most of its patient's
    lesions, and from these to the tabular stage where none has scored it.

    Args:
        rows: of the test metadata.
        tabular: tabular logits, shape (rows,).
        logits: of ``score_images``.
        artifacts: folder of the last stage's models.
        manifest: of the artifacts.
        run: for the log.

    Returns:
        ``TABULAR``, ``NETWORK`` (the mean over networks; the tabular logit where there is none), ``FINAL`` and image_scored
        (0 or 1); with a last stage, ``IN_CONTEXT`` and ``STACKING``, NaN where it does not apply.
    """
    image_scored = logits.notna().any(axis=1).to_numpy()
    network = np.where(image_scored, logits.mean(axis=1), tabular)
    scores = pd.DataFrame({TABULAR: tabular, NETWORK: network, FINAL: network, "image_scored": image_scored.astype(int)})
    if not image_scored.any():
        return scores
    try:
        how = manifest["network"]["combination"]
        scores[FINAL], run.facts["combination"] = combine(how, scores, image_scored), how["kind"]
    except (LookupError, TypeError, ValueError) as error:
        count = int(image_scored.sum())
        run.fall_back("scores_not_combined", count, f"{first_line(error)}; the network logits are the final ones.")
    if "stacking" not in manifest:
        return scores
    try:
        compared, last = score_last_stage(rows, logits.assign(**{TABULAR: tabular}), artifacts, manifest, run)
        how = manifest["stacking"]["combination"]
        final = np.where(compared, combine(how, scores.assign(**last), compared), scores[FINAL])
        scores, run.facts["combination"] = scores.assign(**last, **{FINAL: final}), how["kind"]
    # Whatever breaks here: the networks' combination is there, and stays.
    except Exception as error:
        run.fall_back("stacking_stopped", int(image_scored.sum()), f"{first_line(error)}; the networks' scores are final.")
    return scores


def score_last_stage(
    rows: pd.DataFrame, logits: pd.DataFrame, artifacts: Path, manifest: Manifest, run: Run
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The logits of the last stage, which compares each lesion with the patient's others.

    Args:
        rows: of the test metadata.
        logits: ``TABULAR`` and a column for each network, as ``score_images`` gives them.
        artifacts: folder of its models.
        manifest: of the artifacts.
        run: for the log.

    Returns:
        To which lesions it applies, bool of shape (rows,); and ``IN_CONTEXT`` and ``STACKING``, float64 of shape (rows,),
        NaN for the others.

    Raises:
        InputError: no model is usable.
    """
    settings = manifest["stacking"]
    models, complaints = load_models(artifacts, manifest, "stacking")
    for complaint in complaints:
        run.fall_back("stacking_models_left_out", 1, complaint)
    patients = rows.get(PATIENT) if settings["patients"] else None
    codes = patient_codes(len(rows), patients)
    used = logits[[TABULAR, *settings["networks"]]].set_axis(rows.index)
    scored = used.notna().all(axis=1).to_numpy()
    compared = scored & (np.bincount(codes, scored)[codes] >= MOST_OF_THE_PATIENT * group_sizes(codes))
    left = int((logits[settings["networks"]].notna().any(axis=1).to_numpy() & ~compared).sum())
    if left:
        run.fall_back("lesions_not_stacked", left, f"{left:,} lesions keep the networks' score.")
    network = used[settings["networks"]].mean(axis=1).where(scored).to_numpy()
    context = context_logits(network, used[TABULAR].to_numpy("float64"), codes)
    features = logit_features(used, patients)
    if settings["columns"]:
        features = features.join(build_features(rows))
    features = select_features(features[compared], settings["features"], settings["categories"])
    stacked = np.full(len(rows), np.nan)
    stacked[compared] = tabular_logits(models, features, settings["categories"])
    return compared, {IN_CONTEXT: np.where(compared, context, np.nan), STACKING: stacked}


def open_test_images(competition: Path) -> ImageStore:
    """The images of the test lesions.

    Raises:
        InputError: there are none, or their file cannot be used.
    """
    source = find_images(competition, "test")
    if source is None:
        raise InputError(f"{competition} has no test-image.hdf5")
    return SteadyImages(source)


def load_networks(artifacts: Path, manifest: Manifest, run: Run) -> Networks:
    """The networks whose files match the manifest, on every accelerator.

    Raises:
        InputError: there is none.
    """
    import tensorflow as tf

    places, ensembles, sizes = devices(), {}, {}
    for name, section in networks_of(manifest).items():
        run.log(f"building the network {name}")
        with tf.device(CPU):
            config = NetworkConfig.from_dict(section["settings"])
            network, states = build_network(config), []
            for file in section["weights"]:
                try:
                    states.append(load_state(network, checked_file(artifacts, manifest, file)))
                except InputError as error:
                    run.fall_back("fold_networks_left_out", 1, str(error))
        if states:
            ensembles[name] = Ensemble(network, states, places, run.fall_back, config.views)
            sizes[name] = config.image_size
            run.facts["fold_networks"] = run.facts.get("fold_networks", 0) + len(states)
    if not ensembles:
        raise InputError("no fold network is usable")
    run.log(f"{run.facts['fold_networks']} fold networks of {', '.join(ensembles)} loaded, on {', '.join(places)}")
    return Networks(ensembles, sizes, run.fall_back)
