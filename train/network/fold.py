"""One fold's training, a task of its own: build the network, fit it on the other folds, save it, score the fold itself.

During its training a fold keeps a checkpoint in the folder of the unfinished training. Afterwards it leaves its history, its
weights and, written last, its out-of-fold logits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import FUSION
from inference.backbones import backbone_of
from inference.files import replacing, write_csv
from inference.images import ImageStore, image_batches
from inference.network import Ensemble, NetworkConfig, devices, load_network, network_logits
from scale.parallel import Files
from train.archives.diagnoses import GROUPS
from train.folds import HOLDOUT
from train.lesions import Lesions
from train.network.batches import TrainingData
from train.network.checkpoint import Checkpoint, save_weights
from train.network.config import TrainingConfig
from train.network.fit import Plan, corrected_loss, fit, phases_of, with_group_loss
from train.network.known_images import KnownImages, as_input_errors
from train.network.model import be_deterministic, distribution, precision, starting_network
from train.network.pretraining import Archive, draw_epoch, join_archive, pretrain_backbone
from train.network.sampling import GROUP_LESIONS, frequent_groups
from utils import InputError, log, set_seed

#: The weights of a backbone that was pretrained on the archives, in the folder of an unfinished training.
PRETRAINED = "backbone.weights.h5"
#: Where a fold's TensorBoard files lie below its folder, while that is on a machine of its own.
LOGS = "logs"


@dataclass(frozen=True)
class Training:
    """What all folds of a training share.

    Args:
        config: all that decides the training besides its data.
        network: what each fold's network is built from.
        lesions: all of them; ``lesions.fold`` assigns them to folds.
        initial: weights, as ``train.network.model.starting_network`` takes them.
        images: of the lesions, as ``ImageStore`` takes it.
        logs: folder for TensorBoard.
        archive: lesions of the ISIC archives, if any are used.
        backbone: weights that were pretrained on ``archive``, if they were.
        cache: folder of decoded crops, if they are kept.
        name: of the network.
    """

    config: TrainingConfig
    network: NetworkConfig
    initial: str
    lesions: Lesions
    images: Path
    logs: Path
    archive: Archive | None = None
    backbone: Path | None = None
    cache: Path | None = None
    name: str = FUSION

    @property
    def reads(self) -> list[Path]:
        """The files that a fold's training reads."""
        weights = [] if self.initial in ("imagenet", "none") else [Path(self.initial)]
        archive = [self.archive.images] if self.archive else []
        return [self.images, *weights, *archive, *([self.backbone] if self.backbone else [])]

    @property
    def images_sha256(self) -> str:
        """Of all images that are read, whatever file they lie in."""
        digests = [self.lesions.image_digests, *([self.archive.image_digests] if self.archive else [])]
        return hashlib.sha256(np.concatenate(digests).astype("uint64").tobytes()).hexdigest()

    @property
    def groups_sha256(self) -> str:
        """Of the diagnosis groups of all lesions; those of an archive are in ``Archive.sha256``."""
        return hashlib.sha256(self.lesions.groups.astype("int64").tobytes()).hexdigest()

    def where(self, files: Files) -> Training:
        """The same with the paths of the machine where ``files`` lie."""
        weights = Path(self.initial)
        return replace(
            self,
            initial=str(files[weights]) if weights in files.places else self.initial,
            images=files[self.images],
            logs=files.folder / LOGS if files.elsewhere else self.logs,
            archive=self.archive and replace(self.archive, images=files[self.archive.images]),
            backbone=self.backbone and files[self.backbone],
            cache=None if files.elsewhere else self.cache,
        )


class FoldFiles:
    """The files of a fold in the folder of an unfinished training."""

    def __init__(self, folder: Path, fold: int) -> None:
        self.checkpoint = folder / f"checkpoint{fold}.weights.h5"  # removed when the fold is finished
        self.weights = folder / f"fold{fold}.weights.h5"
        self.history = folder / f"history{fold}.csv"  # one row per epoch
        self.scores = folder / f"fold{fold}.csv"  # out-of-fold logits by row position; written last


def train_backbone(files: Files, training: Training) -> None:
    """Pretrains a backbone on the archive; writes ``PRETRAINED`` into the folder of ``files``."""
    training = training.where(files)
    config = training.config
    be_deterministic(config.deterministic)
    set_seed(config.seed)
    with replacing(files.folder / PRETRAINED) as weights, precision(config.precision), distribution().scope():
        start = training.network, training.initial
        assert training.archive
        pretrain_backbone(training.archive, weights, config, start, training.cache)


def train_fold(files: Files, fold: int, training: Training) -> None:
    """Trains the network of a fold and scores its out-of-fold rows; writes ``FoldFiles`` into the folder of ``files``.

    Continues from a checkpoint there. Any later task with the same arguments gives the same bytes.
    """
    training, own = training.where(files), FoldFiles(files.folder, fold)
    config = training.config
    be_deterministic(config.deterministic)
    rows = rows_of_fold(training.lesions, fold, with_holdout=config.inputs == "image")
    images = KnownImages(ImageStore(training.images), training.lesions.isic_ids, training.lesions.image_digests)
    labels = training.lesions.labels[rows.train]
    log(f"Fold {fold}: {len(labels):,} training lesions, {int(labels.sum()):,} malignant; {len(rows.score):,} to score")
    with precision(config.precision):
        with distribution().scope():
            set_seed(config.seed + fold)
            network = starting_network(training.network, "none" if training.backbone else training.initial)
            if training.backbone:
                backbone = backbone_of(network)
                assert backbone  # of a network that takes crops
                backbone.load_weights(training.backbone)
        data = training_data(training, fold, rows.train, images)
        logs = training.logs / "tensorboard" / f"{training.name}-fold{fold}"
        history = fit(network, data, plan_of(config, fold, labels), Checkpoint(own.checkpoint), logs)
    save_weights(network, own.weights)
    write_csv(own.history, pd.DataFrame(history).assign(fold=fold))
    # Scored as in the kernel: the network built from its configuration, in float32, with the weights of the file.
    network = load_network(training.network, own.weights)
    logits = score_rows(network, training.lesions, rows.score, images, config)
    scores = pd.Series(logits, index=pd.Index(rows.score, name="row"), name="network")
    write_csv(own.scores, scores.reset_index())
    own.checkpoint.unlink(missing_ok=True)
    images.close()


@dataclass(frozen=True)
class FoldRows:
    """Positions of lesions with an image, int64 of shape (rows,); no patient is in both.

    Args:
        train: the network is trained on them: all other folds.
        score: the network scores them: the fold itself, out of fold.
    """

    train: np.ndarray
    score: np.ndarray


def rows_of_fold(lesions: Lesions, fold: int, with_holdout: bool) -> FoldRows:
    """The rows of a fold's training.

    Args:
        lesions: all of them.
        fold: its number.
        with_holdout: whether the network also scores the holdout.

    Raises:
        InputError: the training rows are of one class; no lesion of the fold has an image.
    """
    train = np.flatnonzero((lesions.fold != fold) & lesions.in_folds & lesions.has_image)
    labels = lesions.labels[train]
    if not 0 < labels.sum() < len(labels):
        raise InputError(f"outside fold {fold} there are {labels.sum()} malignant of {len(labels)} lesions with an image.")
    score = (lesions.fold == fold) | ((lesions.fold == HOLDOUT) & with_holdout)
    own = lesions.fold == fold
    if not (own & lesions.has_image).any():
        raise InputError(
            f"none of the {int(own.sum())} lesions of fold {fold} has a readable image; fetch the images again."
        )
    return FoldRows(train, np.flatnonzero(score & lesions.has_image))


def training_data(training: Training, fold: int, train: np.ndarray, images: KnownImages) -> TrainingData:
    """The rows of all epochs, and with them the lesions of the archive where those join.

    An epoch's draw depends on seed, fold and epoch only. It is filled up to whole batches from its own beginning.

    Args:
        training: what all folds share.
        fold: its number.
        train: positions of the lesions to draw from.
        images: of the lesions.
    """
    config, labels = training.config, training.lesions.labels[train]
    archive = None if training.backbone else training.archive  # an archive is pretrained on, or joins
    # The tabular model cannot score an archive's lesion, which has no body scan: it gets the logit of the prevalence.
    candidates = join_archive(training.lesions, images, archive, float(np.log(labels.mean() / (1 - labels.mean()))))
    steps = -(-len(draw_epoch(candidates, train, config.sampling, np.random.default_rng(0))) // config.batch_size)
    epochs = [
        draw_epoch(candidates, train, config.sampling, np.random.default_rng([config.seed, fold, epoch]))
        for epoch in range(config.head_epochs + config.epochs)
    ]
    rows = np.concatenate([np.resize(epoch, steps * config.batch_size) for epoch in epochs])
    weights = np.ones(len(candidates.labels))
    weights[train] = config.sampling.weights(labels)
    targets = candidates.labels
    if config.auxiliary:
        known = np.concatenate([candidates.groups[train], candidates.groups[candidates.archive]])
        of_group = candidates.groups[:, None] == groups_to_learn(known, fold)
        targets = np.column_stack([targets, of_group]).astype("float32")
    return TrainingData(
        images=candidates.images,
        isic_ids=candidates.isic_ids[rows],
        inputs={"tabular": candidates.tabular[rows]} | ({"archive": candidates.archive[rows]} if archive else {}),
        targets=targets[rows],
        sample_weight=weights[rows],
        steps=steps,
        image_size=config.image_size,
        batch_size=config.batch_size,
        seed=config.seed * 1000 + fold,
        mixup=config.mixup,
        cache=training.cache,
    )


def groups_to_learn(groups: np.ndarray, fold: int) -> np.ndarray:
    """The frequent diagnosis groups of a fold's training rows, positions in ``GROUPS``.

    Args:
        groups: of each training row, shape (rows,).
        fold: its number.

    Raises:
        InputError: there are fewer than two.
    """
    found = frequent_groups(groups)
    if len(found) < 2:
        names = ", ".join(GROUPS[number] for number in found) or "none"
        raise InputError(
            f"--auxiliary has nothing to learn: outside fold {fold}, of the groups by diagnosis, iddx_3 and iddx_1, only "
            f"those with {GROUP_LESIONS} lesions or more count ({names}), and two are needed; leave it out."
        )
    return found


def refuse_too_few_groups(training: Training) -> None:
    """Raises InputError where ``--auxiliary`` has nothing to learn in a fold; logs what there is."""
    lesions, joint = training.lesions, training.config.archives_mode == "joint"
    archive = training.archive.groups if training.archive and joint else np.zeros(0, "int64")
    for fold in lesions.folds:
        rows = rows_of_fold(lesions, fold, with_holdout=False).train
        found = groups_to_learn(np.concatenate([lesions.groups[rows], archive]), fold)
        log(f"Fold {fold}: diagnosis groups {', '.join(GROUPS[number] for number in found)}")


def plan_of(config: TrainingConfig, fold: int, labels: np.ndarray) -> Plan:
    """How a fold's network is fitted; ``labels`` of the training rows decide the prior correction."""
    correction = config.sampling.prior_correction(labels)
    loss = corrected_loss(correction, config.label_smoothing, config.sampling.focal_exponent())
    if config.auxiliary:
        loss = with_group_loss(loss, config.auxiliary)
    return Plan(f"fold {fold}", phases_of(config), loss, config)


def score_rows(network, lesions: Lesions, rows: np.ndarray, images: KnownImages, config: TrainingConfig) -> np.ndarray:
    """Logits of ``rows`` (positions of lesions with an image) by the code that the kernel runs, float64.

    Raises:
        InputError: an image cannot be read any more, or is another; a logit is not finite.
    """
    logits = np.full(len(rows), np.nan)
    batches = image_batches(images, lesions.isic_ids[rows].tolist(), config.image_size, config.batch_size)
    ensemble = Ensemble(network, places=devices()[:1], views=config.views)
    with as_input_errors(images):
        for positions, scores in network_logits(ensemble, batches, lesions.tabular[rows]):
            logits[positions] = scores
    images.refuse_changes()
    broken = ~np.isfinite(logits)
    if broken.any():
        raise InputError(
            f"the network gives no finite logit for {int(broken.sum()):,} of {len(rows):,} lesions, for example "
            f"{lesions.isic_ids[rows][broken][0]}; check the learning rate and the tabular logits, and give --restart."
        )
    return logits
