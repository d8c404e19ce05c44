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
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import load_manifest
from inference.files import InputError, replacing
from inference.images import ImageStore, image_batches
from inference.network import network_log_odds
from inference.schema import ID, TARGET
from train.fitting import BACKBONE, UNFREEZE, augmented, fit, shifted_loss, starting_network, unfreeze, with_source
from train.folds import HOLDOUT
from train.lesions import Lesions, open_images, read_lesions
from train.manifest import record_stage
from train.pretraining import LABELS, MODES, Archive, draw_pool, pool_of, pretrain_backbone, read_archive
from train.sampling import prior_shift, training_batches
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

#: The backbone's weights after it has learned from archives, in the hidden folder of an unfinished training.
PRETRAINED = "backbone.weights.h5"


def train_fold(
    network, lesions: Lesions, number: int, store: ImageStore, archive: Archive | None, options: argparse.Namespace
) -> None:
    """Trains ``network`` on the rows of the other folds, and on the lesions of ``archive`` that join them, if any."""
    train = np.flatnonzero((lesions.fold != number) & (lesions.fold != HOLDOUT) & lesions.has_image)
    labels = lesions.labels[train]
    if not 0 < labels.sum() < len(labels):
        raise InputError(f"outside fold {number} there are {labels.sum()} malignant of {len(labels)} lesions with an image.")
    rng = np.random.default_rng([options.seed, number])
    # The tabular model cannot judge an archive's lesion, which has no body scan: all that it could say is the prevalence.
    pool = pool_of(lesions, store, archive, opinion=float(np.log(labels.mean() / (1 - labels.mean()))))
    epochs = [draw_pool(pool, train, options.negatives_per_positive, rng) for _ in range(options.epochs)]
    rows = np.concatenate(epochs)
    inputs = {"tabular": pool.tabular[rows], "archive": pool.archive[rows]}
    batches = training_batches(
        pool.images, pool.isic_ids[rows], inputs, pool.labels[rows], options.image_size, options.batch_size
    )
    unfreeze(network, options.unfreeze, from_scratch=options.weights == "none")
    model = augmented(network)
    fit(
        model if archive is None else with_source(model),
        batches,
        shifted_loss(prior_shift(labels, options.negatives_per_positive)),
        steps=-(-len(epochs[0]) // options.batch_size),
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        description=f"fold {number}",
    )


def score_rows(network, lesions: Lesions, rows: np.ndarray, store: ImageStore, options: argparse.Namespace) -> np.ndarray:
    """Log-odds of ``rows`` (positions) by the code that the kernel runs; NaN where no image could be read."""
    log_odds = np.full(len(rows), np.nan)
    batches = image_batches(store, lesions.isic_ids[rows].tolist(), options.image_size, options.batch_size)
    for positions, scores in network_log_odds([network], batches, lesions.tabular[rows]):
        log_odds[positions] = scores
    return log_odds


def chosen(options: argparse.Namespace) -> dict[str, str]:
    """The options that decide a result: all but the folders."""
    return {name: str(value) for name, value in vars(options).items() if name not in ("data", "artifacts", "archives")}


def fingerprint(options: argparse.Namespace, manifest: dict, archive: Archive | None = None) -> str:
    """Short hash of all that decides a fold's result: a fold kept under another one is not taken for this one's."""
    inputs = [manifest["files"]["folds.csv"], manifest["files"][OOF_TABULAR], archive.sha256 if archive else ""]
    return hashlib.sha256(json.dumps([chosen(options), inputs], sort_keys=True).encode()).hexdigest()[:12]


def train_or_reload(
    number: int,
    kept: Path,
    settings: dict,
    lesions: Lesions,
    store: ImageStore,
    archive: Archive | None,
    options: argparse.Namespace,
) -> pd.Series:
    """Log-odds of the fold's own rows and of the holdout, by row position; trains the fold unless ``kept`` has it.

    A finished fold leaves two files in ``kept``: its weights and, written after them, its scores. A pretrained backbone is
    there too, for all folds: no patient of theirs is in the archive.
    """
    scores = kept / f"fold{number}.csv"
    if scores.is_file():
        say(f"fold {number}: kept from an earlier run")
        return pd.read_csv(scores, index_col="row")["log_odds"]
    pretrained = options.archives_mode == "pretrain"
    if pretrained and not (kept / PRETRAINED).is_file():
        set_seed(options.seed)
        with replacing(kept / PRETRAINED) as temporary:
            pretrain_backbone(archive, temporary, options)
    set_seed(options.seed + number)
    network = starting_network(settings, "none" if pretrained else options.weights)
    if pretrained:
        network.get_layer(BACKBONE).load_weights(kept / PRETRAINED)
    train_fold(network, lesions, number, store, None if pretrained else archive, options)
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
    parser.add_argument("--archives", type=Path, metavar="DIR", help="folder of train.archives to learn from too")
    parser.add_argument(
        "--archives-mode", choices=MODES, help="the backbone learns on it first, or its lesions join every epoch"
    )
    parser.add_argument(
        "--archives-labels", choices=LABELS, default="malignant", help="what pretraining tells apart (default: %(default)s)"
    )
    parser.add_argument("--archives-epochs", type=int, default=8, help="of the pretraining (default: %(default)s)")
    parser.add_argument(
        "--missing-images", choices=("refuse", "pass"), default="refuse", help="pass: such lesions keep their tabular score"
    )
    options = parser.parse_args(arguments)
    if (options.archives is None) != (options.archives_mode is None):
        raise InputError(f"--archives and --archives-mode go together; give both or none (modes: {', '.join(MODES)}).")
    for name in ("epochs", "batch_size", "learning_rate", "negatives_per_positive", "archives_epochs"):
        if not getattr(options, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)} must be above zero.")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Trains one network per fold; writes the artifacts only when all folds are there."""
    options = parse(arguments)
    store = open_images(options.data)
    lesions = read_lesions(options.data, options.artifacts, store, options.missing_images)
    trained = lesions.fold != HOLDOUT
    say(f"{int(trained.sum()):,} lesions, {int((trained & lesions.has_image).sum()):,} with an image in {store.path}")
    archive = read_archive(options.archives, lesions) if options.archives else None
    if archive:
        malignant = int(archive.labels.sum())
        say(f"{len(archive.labels):,} archive lesions with an image, {malignant:,} malignant: {options.archives_mode}")

    manifest = load_manifest(options.artifacts)
    settings = {
        "image_size": options.image_size,
        "inputs": ["crop", "tabular"] if options.inputs == "fusion" else ["crop"],
        "tabular_mean": float(lesions.tabular[trained].mean()),
        "tabular_std": float(lesions.tabular[trained].std()) or 1.0,
        "base_log_odds": float(np.log(lesions.labels[trained].mean() / (1 - lesions.labels[trained].mean()))),
    }
    kept = options.artifacts / f".{options.inputs}-{fingerprint(options, manifest, archive)}"
    folds = int(lesions.fold.max()) + 1
    log_odds, votes = np.zeros(len(trained)), np.zeros(len(trained))
    for number in range(folds):
        scores = train_or_reload(number, kept, settings, lesions, store, archive, options)
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
        "training": {
            name: str(value) for name, value in vars(options).items() if name not in ("data", "artifacts", "archives")
        },
        "combination": "mean of the fold networks' log-odds; lesions without an image keep their tabular log-odds",
        "trained_on": {"lesions": int(trained.sum()), "images": int((trained & lesions.has_image).sum())},
        "scores": {"pauc": pauc.value, "interval": [pauc.low, pauc.high], "gain": [gain.value, gain.low, gain.high]},
    }
    for number, name in enumerate(names):
        (kept / f"fold{number}.weights.h5").replace(options.artifacts / name)
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
