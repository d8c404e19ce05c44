"""ResNet50 + tabular log-odds, per fold -> fold networks, out-of-fold log-odds, manifest.

    python -m train.fusion --data data/isic-2024-challenge --artifacts artifacts --weights imagenet

The network is given CatBoost's out-of-fold log-odds together with the crop and learns a correction that starts at zero
(``inference.network``). ``--inputs image`` trains the same network without CatBoost's opinion, for comparison: it writes
oof_image.csv and nothing that the kernel uses. A finished fold is kept, so the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from inference.artifacts import checked_file, load_manifest
from inference.files import InputError, replacing
from inference.images import ImageStore, find_images, image_batches
from inference.network import build_network, network_log_odds
from inference.schema import ID, PATIENT, TARGET, read_metadata
from train.folds import HOLDOUT, read_folds
from train.manifest import record_stage
from train.sampling import draw_epoch, prior_shift, readable_images, training_batches
from train.tabular import OOF as OOF_TABULAR
from utils import (
    add_data_options,
    add_seed_option,
    bootstrap_scores,
    format_table,
    run_command,
    say,
    set_seed,
    write_csv,
)

#: Which stages of ResNet50 learn: name prefixes of their layers. Frozen stages keep their batch-norm statistics too.
UNFREEZE = {"none": (), "conv5": ("conv5_",), "conv4": ("conv4_", "conv5_"), "all": ("conv", "bn")}
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class Lesions:
    """The rows that training goes through; arrays of shape (rows,)."""

    isic_ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    tabular: np.ndarray
    has_image: np.ndarray


def read_lesions(data: Path, artifacts: Path, store: ImageStore, missing_images: str) -> Lesions:
    """Labels, folds and out-of-fold log-odds side by side. Holdout rows have tabular log-odds 0, and nothing reads them.

    Raises:
        InputError: a stage before this one has not run, or ran on other rows; a lesion has no readable image and
            ``missing_images`` is "refuse".
    """
    metadata = read_metadata(data / "train-metadata.csv", labelled=True)
    fold = read_folds(artifacts, metadata)
    path = checked_file(artifacts, load_manifest(artifacts), OOF_TABULAR)
    scores = pd.read_csv(path, dtype={ID: "str"}).set_index(ID)["log_odds"].reindex(metadata[ID])
    if scores[fold != HOLDOUT].isna().any():
        raise InputError(f"{path} lacks rows of {artifacts}/folds.csv; run train.tabular again.")
    isic_ids = metadata[ID].to_numpy()
    has_image = readable_images(store, isic_ids)
    if missing_images == "refuse" and not has_image.all():
        first = isic_ids[~has_image][0]
        trouble = "holds an image that cannot be decoded" if first in store else "holds no image"
        raise InputError(
            f"{store.path} {trouble} for {first} ({int((~has_image).sum())} lesions without a readable image in all); "
            "fetch the images again, or give --missing-images pass to let those lesions keep their tabular score."
        )
    return Lesions(
        isic_ids=isic_ids,
        patients=metadata[PATIENT].to_numpy(),
        labels=metadata[TARGET].to_numpy(),
        fold=fold,
        tabular=scores.fillna(0.0).to_numpy(),
        has_image=has_image,
    )


def starting_network(settings: dict, weights: str):
    """The network before training; ``weights`` is "imagenet", "none" or the path of ResNet50 weights without top.

    Raises:
        InputError: the weights cannot be had or do not fit; the sentence names the other choices.
    """
    choices = "--weights PATH (resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5) or --weights none"
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise InputError(f"--weights {weights!r} is no file; give {choices}, or --weights imagenet to download it.")
    try:
        return build_network(**settings, backbone_weights=None if weights == "none" else weights)
    except InputError:
        raise
    except Exception as error:  # Keras passes on whatever urllib or h5py raise
        if weights == "none":
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"ResNet50 weights {weights!r} cannot be had ({reason}); give {choices}.") from error


def unfreeze(network, choice: str, from_scratch: bool) -> None:
    """Lets the head and the chosen stages learn; the rest is frozen, batch norms included.

    From random weights the batch norms follow the batches faster: a short training leaves Keras's default statistics, which
    remember a hundred steps, behind the weights.
    """
    for layer in network.get_layer("resnet50").layers:
        layer.trainable = layer.name.startswith(UNFREEZE[choice])
        if from_scratch and hasattr(layer, "momentum"):
            layer.momentum = 0.9


def training_model(network, steps: int, learning_rate: float, shift: float):
    """The network behind its augmentation, compiled: flips, small turns, brightness and contrast, on the accelerator.

    The inner network shares its weights and stays uncompiled, so that saving it saves weights only.
    """
    import keras
    from keras import layers

    augmentation = [
        layers.RandomFlip("horizontal_and_vertical"),
        layers.RandomRotation(0.08, fill_mode="reflect"),
        layers.RandomBrightness(0.08, value_range=(0, 255)),
        layers.RandomContrast(0.1, value_range=(0, 255)),
    ]
    inputs = {tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in network.inputs}
    crop = layers.Rescaling(1.0)(inputs["crop"])
    for layer in augmentation:
        crop = layer(crop)
    crop = keras.ops.cast(keras.ops.clip(keras.ops.round(crop), 0, 255), "uint8")
    model = keras.Model(inputs, network(inputs | {"crop": crop}))
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 100,
        max(1, steps - round(WARM_UP * steps)),
        warmup_target=learning_rate,
        warmup_steps=round(WARM_UP * steps),
    )

    def loss(labels, log_odds):
        return keras.losses.binary_crossentropy(labels, log_odds + shift, from_logits=True)

    optimizer = keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY)
    optimizer.build(model.trainable_variables)  # made in the first step, its variables would have that step traced twice
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    return model


def train_fold(network, lesions: Lesions, number: int, store: ImageStore, options: argparse.Namespace) -> None:
    """Trains ``network`` on the rows of the other folds for a fixed number of epochs."""
    import keras

    train = np.flatnonzero((lesions.fold != number) & (lesions.fold != HOLDOUT) & lesions.has_image)
    labels = lesions.labels[train]
    if not 0 < labels.sum() < len(labels):
        raise InputError(f"outside fold {number} there are {labels.sum()} malignant of {len(labels)} lesions with an image.")
    rng = np.random.default_rng([options.seed, number])
    rows = [train[draw_epoch(labels, options.negatives_per_positive, rng)] for _ in range(options.epochs)]
    steps = -(-len(rows[0]) // options.batch_size)
    rows = np.concatenate(rows)
    batches = training_batches(
        store, lesions.isic_ids[rows], lesions.labels[rows], lesions.tabular[rows], options.image_size, options.batch_size
    )
    names = [tensor.name for tensor in network.inputs]
    batches = batches.map(lambda inputs, targets: ({name: inputs[name] for name in names}, targets))
    unfreeze(network, options.unfreeze, from_scratch=options.weights == "none")
    shift = prior_shift(labels, options.negatives_per_positive)
    model = training_model(network, steps * options.epochs, options.learning_rate, shift)
    with tqdm(total=steps * options.epochs, desc=f"fold {number}", unit="step") as bar:
        progress = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: bar.update(),
            on_epoch_end=lambda epoch, logs: bar.set_postfix(loss=f"{logs['loss']:.4f}"),
        )
        # Repeated, because unreadable images could leave the last epoch short of batches.
        model.fit(batches.repeat(), epochs=options.epochs, steps_per_epoch=steps, callbacks=[progress], verbose=0)


def score_rows(network, lesions: Lesions, rows: np.ndarray, store: ImageStore, options: argparse.Namespace) -> np.ndarray:
    """Log-odds of ``rows`` (positions) by the code that the kernel runs; NaN where no image could be read."""
    log_odds = np.full(len(rows), np.nan)
    batches = image_batches(store, lesions.isic_ids[rows].tolist(), options.image_size, options.batch_size)
    for positions, scores in network_log_odds([network], batches, lesions.tabular[rows]):
        log_odds[positions] = scores
    return log_odds


def fingerprint(options: argparse.Namespace, manifest: dict) -> str:
    """Short hash of all that decides a fold's result: a fold kept under another one is not taken for this one's."""
    chosen = {name: str(value) for name, value in vars(options).items() if name not in ("data", "artifacts")}
    inputs = [manifest["files"]["folds.csv"], manifest["files"][OOF_TABULAR]]
    return hashlib.sha256(json.dumps([chosen, inputs], sort_keys=True).encode()).hexdigest()[:12]


def train_or_reload(
    number: int, kept: Path, settings: dict, lesions: Lesions, store: ImageStore, options: argparse.Namespace
) -> pd.Series:
    """Log-odds of the fold's own rows and of the holdout, by row position; trains the fold unless ``kept`` has it.

    A finished fold leaves two files in ``kept``: its weights and, written after them, its scores.
    """
    scores = kept / f"fold{number}.csv"
    if scores.is_file():
        say(f"fold {number}: kept from an earlier run")
        return pd.read_csv(scores, index_col="row")["log_odds"]
    set_seed(options.seed + number)
    network = starting_network(settings, options.weights)
    train_fold(network, lesions, number, store, options)
    asked = (lesions.fold == number) | ((lesions.fold == HOLDOUT) & (options.inputs == "image"))
    rows = np.flatnonzero(asked & lesions.has_image)
    log_odds = score_rows(network, lesions, rows, store, options)
    with replacing(kept / f"fold{number}.weights.h5") as temporary:
        network.save_weights(temporary)
    result = pd.Series(log_odds, index=pd.Index(rows, name="row"), name="log_odds").dropna()
    write_csv(scores, result.reset_index())
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="ResNet50 + tabular log-odds, per fold -> fusion_*.weights.h5, oof_fusion.csv"
    )
    add_data_options(parser)
    add_seed_option(parser)
    parser.add_argument("--inputs", choices=("fusion", "image"), default="fusion", help="image: without CatBoost's opinion")
    parser.add_argument("--weights", default="imagenet", metavar="imagenet|none|PATH", help="where ResNet50 starts")
    parser.add_argument(
        "--unfreeze", choices=tuple(UNFREEZE), default="all", help="stages that learn (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="fixed; the last weights are kept (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="crops per step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="its peak (default: %(default)s)")
    parser.add_argument(
        "--negatives-per-positive", type=float, default=10, help="benign lesions drawn each epoch (default: %(default)s)"
    )
    parser.add_argument(
        "--missing-images", choices=("refuse", "pass"), default="refuse", help="pass: such lesions keep their tabular score"
    )
    options = parser.parse_args(arguments)
    for name in ("epochs", "batch_size", "learning_rate", "negatives_per_positive"):
        if not getattr(options, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} must be above zero.")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Trains one network per fold; writes the artifacts only when all folds are there."""
    options = parse(arguments)
    source = find_images(options.data, "train")
    if source is None:
        raise InputError(
            f"{options.data} has neither train-image.hdf5 nor train-image/image; fetch the competition's images."
        )
    store = ImageStore(source)
    lesions = read_lesions(options.data, options.artifacts, store, options.missing_images)
    trained = lesions.fold != HOLDOUT
    say(f"{int(trained.sum()):,} lesions, {int((trained & lesions.has_image).sum()):,} with an image in {source}")

    manifest = load_manifest(options.artifacts)
    settings = {
        "image_size": options.image_size,
        "inputs": ["crop", "tabular"] if options.inputs == "fusion" else ["crop"],
        "tabular_mean": float(lesions.tabular[trained].mean()),
        "tabular_std": float(lesions.tabular[trained].std()) or 1.0,
        "base_log_odds": float(np.log(lesions.labels[trained].mean() / (1 - lesions.labels[trained].mean()))),
    }
    kept = options.artifacts / f".{options.inputs}-{fingerprint(options, manifest)}"
    folds = int(lesions.fold.max()) + 1
    log_odds, votes = np.zeros(len(trained)), np.zeros(len(trained))
    for number in range(folds):
        scores = train_or_reload(number, kept, settings, lesions, store, options)
        log_odds[scores.index] += scores.to_numpy()
        votes[scores.index] += 1
    seen = votes > 0
    log_odds[seen] /= votes[seen]
    finish = finish_fusion if options.inputs == "fusion" else finish_image_alone
    finish(options, settings, lesions, log_odds, seen, kept, folds)
    shutil.rmtree(kept)
    return 0


def finish_fusion(options, settings, lesions: Lesions, log_odds, seen, kept: Path, folds: int) -> None:
    """Moves the fold networks into the artifact folder and records them; the others keep the tabular score."""
    trained = lesions.fold != HOLDOUT
    final = np.where(seen, log_odds, lesions.tabular)
    names = [f"fusion_fold{number}.weights.h5" for number in range(folds)]
    for number, name in enumerate(names):
        (kept / f"fold{number}.weights.h5").replace(options.artifacts / name)
    table = pd.DataFrame({ID: lesions.isic_ids, TARGET: lesions.labels, "fold": lesions.fold, "tabular": lesions.tabular})
    table = table.assign(log_odds=final, image_seen=seen.astype(int))
    write_csv(options.artifacts / "oof_fusion.csv", table[trained])
    scores = {"tabular": lesions.tabular[trained], "fusion": final[trained]}
    results = bootstrap_scores(lesions.labels[trained], lesions.patients[trained], scores)
    gain = results.difference("fusion", "tabular")
    pauc = results.scores["fusion"].pauc
    content = {
        "weights": names,
        "settings": settings,
        "training": {name: str(value) for name, value in vars(options).items() if name not in ("data", "artifacts")},
        "combination": "mean of the fold networks' log-odds; lesions without an image keep their tabular log-odds",
        "trained_on": {"lesions": int(trained.sum()), "images": int((trained & lesions.has_image).sum())},
        "scores": {"pauc": pauc.value, "interval": [pauc.low, pauc.high], "gain": [gain.value, gain.low, gain.high]},
    }
    record_stage(options.artifacts, "network", content, [*names, "oof_fusion.csv"])
    say(format_table(results))
    say(
        f"{folds} networks in {options.artifacts}: fusion - tabular out of fold {gain.value:+.4f} "
        f"[{gain.low:+.4f}, {gain.high:+.4f}] pAUC"
    )


def finish_image_alone(options, settings, lesions: Lesions, log_odds, seen, kept: Path, folds: int) -> None:
    """Records the image's own opinion: out of fold, and the folds' mean on the holdout. The networks are not kept."""
    table = pd.DataFrame({ID: lesions.isic_ids, TARGET: lesions.labels, "fold": lesions.fold, "log_odds": log_odds})[seen]
    write_csv(options.artifacts / "oof_image.csv", table)
    inside = seen & (lesions.fold != HOLDOUT)
    results = bootstrap_scores(lesions.labels[inside], lesions.patients[inside], {"image alone": log_odds[inside]})
    record_stage(options.artifacts, "image_alone", {"settings": settings}, ["oof_image.csv"])
    say(format_table(results))
    say(f"{options.artifacts}/oof_image.csv: the image's own opinion of {int(seen.sum()):,} lesions")


if __name__ == "__main__":
    run_command(main)
