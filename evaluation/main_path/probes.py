"""Short measurements on this machine, of which ``evaluation.main_path.plan`` makes its estimates: a minute in all at most.

Each runs the code that the stage runs, with its options, on a sample of the rows and crops, and writes nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from inference.features import build_features
from inference.images import ImageStore, image_batches
from inference.network import NetworkConfig
from inference.run_log import peak_memory
from inference.schema import ID, PATIENT, TARGET
from inference.tabular import tabular_logits
from train.cross_validation import categories_of, train_model
from train.leaks import ColumnChoice, measure_leaks
from train.lesions import Lesions
from train.network.config import INPUTS, TrainingConfig
from train.network.fit import batches_for, compiled_model, phases_of
from train.network.fold import Training, plan_of, score_rows, training_data
from train.network.known_images import KnownImages, image_digests
from train.network.model import precision, starting_network
from utils import bootstrap_scores, set_seed

#: The sample: whole patients up to so many rows, and crops.
ROWS, CROPS = 20_000, 512
#: Trees of the two fits whose difference is the time of a tree.
FEW_TREES, MORE_TREES = 5, 25
RESAMPLES = 20
#: Seconds of training steps, after the first, which traces them; and the most steps.
STEP_SECONDS, MOST_STEPS = 12.0, 20


@dataclass(frozen=True)
class TabularSpeed:
    """Seconds of the tabular side: per row of the leak measure, features, and one tree's scores; per row and tree of a fit.

    Args:
        leaks, features, scores, fit: seconds.
        row_bytes: of a row's features in memory.
        tree_bytes: of a tree in a model's file.
        bootstrap: seconds of a row of one score in one resample.
    """

    leaks: float
    features: float
    scores: float
    fit: float
    row_bytes: float
    tree_bytes: float
    bootstrap: float


@dataclass(frozen=True)
class NetworkSpeed:
    """Seconds of a network: until the first step and the first score are done, per step, per crop scored in all views.

    Args:
        start, step, score: seconds.
        check: seconds to read, decode and hash one image, all cores.
        decoded: crops/s that one core decodes, of its processor time.
        weights: number of the network's weights.
        memory: the most memory of this process so far, GB.
    """

    start: float
    step: float
    score: float
    check: float
    decoded: float
    weights: int
    memory: float


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def file_size(save: Callable[[str], object]) -> int:
    """Bytes of the file that ``save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        save(str(path))
        return path.stat().st_size


def sample_of(metadata: pd.DataFrame, rows: int = ROWS) -> pd.DataFrame:
    """Rows of whole patients drawn at random, those with a malignant lesion first; about ``rows`` of them."""
    patients = metadata.groupby(PATIENT, sort=False)[TARGET].agg(["size", "max"]).sample(frac=1, random_state=0)
    patients = patients.sort_values("max", ascending=False, kind="stable")
    chosen = patients.index[: max(1, int((patients["size"].cumsum() <= rows).sum()))]
    return metadata[metadata[PATIENT].isin(chosen)].reset_index(drop=True)


def measure_tabular(sample: pd.DataFrame, parameters: dict, choice: ColumnChoice) -> TabularSpeed:
    """The speed of the tabular stage on a sample with both classes, with CatBoost's ``parameters``."""
    usable = sample[choice.of(sample)]
    leaks, found = timed(lambda: measure_leaks(sample, choice.of(sample))), []
    features = timed(lambda: found.append(build_features(usable)))
    table, labels = found[0], sample[TARGET].to_numpy()
    models = []

    def fit(trees: int) -> float:
        return timed(lambda: models.append(train_model(table, labels, parameters | {"iterations": trees}, seed=0)))

    per_tree = (fit(MORE_TREES) - fit(FEW_TREES)) / (MORE_TREES - FEW_TREES)
    scores = timed(lambda: tabular_logits([(models[0], 0.0)], table, categories_of(table))) / MORE_TREES
    rows, rates = len(sample), np.random.default_rng(0).random(len(sample))
    return TabularSpeed(
        leaks=leaks / rows,
        features=features / rows,
        scores=scores / rows,
        fit=max(per_tree, 1e-9) / rows,
        row_bytes=table.memory_usage(deep=True).sum() / rows,
        tree_bytes=file_size(models[0].save_model) / MORE_TREES,
        bootstrap=timed(lambda: bootstrap_scores(labels, sample[PATIENT], {"": rates}, RESAMPLES)) / RESAMPLES / rows,
    )


def measure_network(sample: pd.DataFrame, images: Path, config: TrainingConfig) -> NetworkSpeed:
    """The speed of a network's training and scoring with its options, on crops of a sample with both classes.

    The weights are random ones: initial weights may be a download, and change no speed.

    Raises:
        InputError: no crop of the sample can be decoded.
    """
    config = replace(config, auxiliary=0.0)  # a second head takes hardly any time
    crops = sample.sort_values(TARGET, ascending=False, kind="stable")
    crops = pd.concat([crops[: CROPS // 4], crops[CROPS // 4 :].sample(frac=1, random_state=0)])[:CROPS]
    isic_ids, labels, store = crops[ID].to_numpy(), crops[TARGET].to_numpy(), ImageStore(images)
    digests: list[np.ndarray] = []
    check = timed(lambda: digests.append(image_digests(store, isic_ids))) / len(isic_ids)
    none = np.zeros(len(labels), dtype=int)
    lesions = Lesions(
        isic_ids=isic_ids,
        patients=crops[PATIENT].to_numpy(),
        labels=labels,
        fold=none,
        tabular=none.astype(float),
        image_digests=digests[0],
        groups=none,
    )
    known = KnownImages(store, isic_ids, lesions.image_digests)
    network = NetworkConfig(
        image_size=config.image_size,
        backbone=config.backbone,
        feature_dropout=config.dropout,
        head_units=config.head_units,
        views=config.views,
        inputs=INPUTS[config.inputs],
    )
    training = Training(config, network, "none", lesions, images, Path("unused"))
    started = time.perf_counter()
    set_seed(config.seed)
    rows = np.flatnonzero(lesions.has_image)
    with precision(config.precision):
        built = starting_network(network, "none")
        data = training_data(training, 0, rows, known)
        model = compiled_model(built, data, plan_of(config, 0, labels), phases_of(config)[-1])
    batches = iter(batches_for(model, data, 0))
    model.train_on_batch(*next(batches))
    start = time.perf_counter() - started
    steps: list[float] = []
    while len(steps) < min(MOST_STEPS, data.steps * config.epochs - 1) and sum(steps) < STEP_SECONDS:
        batch = next(batches)
        steps.append(timed(partial(model.train_on_batch, *batch)))
    few, many = rows[: config.batch_size], rows[: max(2, CROPS // (2 * config.views))]
    first = timed(lambda: score_rows(built, lesions, few, known, config))
    score = (timed(lambda: score_rows(built, lesions, many, known, config)) - first) / max(1, len(many) - len(few))
    return NetworkSpeed(
        start=start + first,
        step=float(np.median(steps)) if steps else start,
        score=max(score, 1e-6),
        check=check,
        decoded=decode_speed(store, isic_ids[rows], config.image_size),
        weights=built.count_params(),
        memory=peak_memory() or 0.0,
    )


def decode_speed(store: ImageStore, isic_ids: np.ndarray, image_size: int) -> float:
    """Crops per second of processor time, read from the image file and decoded as in training and kernel.

    Processor time does not depend on what else the machine does.
    """
    names = np.resize(isic_ids, 4 * len(isic_ids)).tolist()
    for _ in image_batches(store, names[:8], image_size, 8):  # traces
        pass
    with threadpool_limits(1):
        started, crops = time.process_time(), 0
        for positions, _ in image_batches(store, names, image_size, 256):
            crops += len(positions)
        return crops / max(time.process_time() - started, 1e-9)
