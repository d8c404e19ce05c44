"""Training on the ISIC archives: a pretraining of the backbone, or lesions that join every epoch.

They hold photographs of suspicious lesions, through a dermatoscope or with a camera: other pixels and other odds than the
tiles of a total-body scan. So they never reach the tabular model, and in joint training a weight beside the network learns
how their selection changes the odds (``train.network.model.with_source``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.backbones import backbone_of
from inference.files import sha256_of
from inference.images import ImageStore
from inference.network import NetworkConfig
from inference.schema import ID, PATIENT, TARGET, read_metadata
from inference.tables import Reading, id_mismatch, read_csv_file
from train.archives.diagnoses import CLASSES, diagnosis_groups
from train.lesions import Lesions, open_images
from train.network.batches import TrainingData
from train.network.checkpoint import save_weights
from train.network.config import TrainingConfig
from train.network.fit import Phase, Plan, fit
from train.network.known_images import JoinedImages, KnownImages, image_digests
from train.network.model import starting_network
from train.network.sampling import Imbalance
from utils import InputError, log


@dataclass(frozen=True)
class Archive:
    """The lesions of an archive folder that a training may use; arrays of shape (rows,)."""

    isic_ids: np.ndarray
    labels: np.ndarray
    #: Of ``train.archives.diagnoses.diagnosis_groups``.
    groups: np.ndarray
    images: Path
    sha256: str
    #: Of the images, as ``image_digests`` gives them.
    image_digests: np.ndarray

    def open_images(self) -> KnownImages:
        """The images, which must be what they were when the archive was read."""
        return KnownImages(ImageStore(self.images), self.isic_ids, self.image_digests)


def read_archive(folder: Path, lesions: Lesions) -> Archive:
    """The archive in ``folder``, without patients of ``lesions`` and unreadable images.

    ``train.archives`` writes it, or ``train.synthetic``. ISIC 2020 and SLICE-3D share patients, under the same ids.

    Raises:
        InputError: the folder is missing or wrong, or all lesions left are of one class.
    """
    path = folder / "train-metadata.csv"
    metadata = read_metadata(path, labelled=True)
    diagnoses = read_csv_file(path, Reading("str"))
    if not {"diagnosis", "iddx_3"} & set(diagnoses):
        raise InputError(f"{path} has no column 'diagnosis' or 'iddx_3'; make the folder with train.archives.")
    known = metadata[ID].isin(set(lesions.isic_ids)) | metadata[PATIENT].isin(set(lesions.patients))
    if known.any():
        log(f"{int(known.sum()):,} archive lesions left out: their patients are in --data")
    store = open_images(folder)
    if not any(isic_id in store for isic_id in metadata[ID]):
        differ = id_mismatch(str(path), metadata[ID], store.path.name, store.names())
        raise InputError(f"{differ}; make the folder with train.archives again.")
    digests = image_digests(store, metadata[ID].to_numpy())
    usable = (digests != 0) & ~known.to_numpy()
    labels = metadata[TARGET].to_numpy()[usable]
    if not 0 < labels.sum() < len(labels):
        raise InputError(f"{folder} has {int(labels.sum())} malignant of {len(labels)} usable lesions; use one with both.")
    groups = diagnosis_groups(diagnoses)[usable]
    return Archive(metadata[ID].to_numpy()[usable], labels, groups, store.path, sha256_of(path), digests[usable])


def pretrain_backbone(
    archive: Archive, weights: Path, config: TrainingConfig, start: tuple[NetworkConfig, str], cache: Path | None = None
) -> None:
    """Trains a backbone on the archive and writes its weights.

    Args:
        archive: its lesions are trained on.
        weights: the file to write, ``*.weights.h5``.
        config: of the training that follows; epochs and targets are those of its ``archives_...``.
        start: the network of the training that follows, and its initial weights as ``starting_network`` takes them.
        cache: folder of decoded crops, if they are kept.

    Raises:
        InputError: the targets are classes and there is only one, or their lesions are all malignant or all benign.
    """
    import keras

    by_class = config.archives_labels == "classes"
    rows = np.flatnonzero(archive.groups < len(CLASSES) - 1) if by_class else np.arange(len(archive.labels))
    labels = archive.labels[rows]
    if by_class and (len(set(archive.groups[rows])) < 2 or not 0 < labels.sum() < len(labels)):
        raise InputError(
            f"--archives-labels classes needs two classes or more, of malignant and benign lesions, and {int(labels.sum())} "
            f"of the {len(labels)} lesions with a class are malignant; use --archives-labels malignant."
        )
    base_logit = float(np.log(labels.mean() / (1 - labels.mean())))
    network = starting_network(replace(start[0], inputs=("crop",), base_logit=base_logit), start[1])
    if by_class:
        hidden = network.get_layer("correction").input
        network = keras.Model(network.input, keras.layers.Dense(len(CLASSES) - 1, name="classes")(hidden))
        targets, loss = archive.groups[rows], keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        targets, loss = labels, keras.losses.BinaryCrossentropy(from_logits=True)
    imbalance, rng = Imbalance("undersample", config.negatives_per_positive), np.random.default_rng([config.seed, len(rows)])
    epochs = [imbalance.draw(labels, rng) for _ in range(config.archives_epochs)]
    steps = -(-len(epochs[0]) // config.batch_size)
    order = np.concatenate([np.resize(epoch, steps * config.batch_size) for epoch in epochs])
    data = TrainingData(
        images=archive.open_images(),
        isic_ids=archive.isic_ids[rows][order],
        inputs={},
        targets=targets[order],
        sample_weight=np.ones(len(order)),
        steps=steps,
        image_size=config.image_size,
        batch_size=config.batch_size,
        seed=config.seed,
        cache=cache,
    )
    phases = [Phase("stages", "all", 0, config.archives_epochs, config.learning_rate)]
    fit(network, data, Plan("archives", phases, loss, replace(config, ema=0.0, backbone_rate=1.0)))
    save_weights(backbone_of(network), weights)


@dataclass(frozen=True)
class Candidates:
    """All lesions that an epoch may be drawn from: the competition's and, behind them, an archive's; arrays of (rows,)."""

    isic_ids: np.ndarray
    labels: np.ndarray
    tabular: np.ndarray
    groups: np.ndarray
    #: Which lesions are the archive's.
    archive: np.ndarray
    images: KnownImages | JoinedImages


def join_archive(lesions: Lesions, images: KnownImages, archive: Archive | None, archive_logit: float) -> Candidates:
    """The lesions with those of ``archive``, which get ``archive_logit`` as their tabular logit."""
    own = np.zeros(len(lesions.labels), dtype=bool)
    if archive is None:
        return Candidates(lesions.isic_ids, lesions.labels, lesions.tabular, lesions.groups, own, images)
    return Candidates(
        isic_ids=np.concatenate([lesions.isic_ids, archive.isic_ids]),
        labels=np.concatenate([lesions.labels, archive.labels]),
        tabular=np.concatenate([lesions.tabular, np.full(len(archive.labels), archive_logit)]),
        groups=np.concatenate([lesions.groups, archive.groups]),
        archive=np.concatenate([own, np.ones(len(archive.labels), dtype=bool)]),
        images=JoinedImages(images, archive.open_images()),
    )


def draw_epoch(candidates: Candidates, train: np.ndarray, imbalance: Imbalance, rng: np.random.Generator) -> np.ndarray:
    """Positions of one epoch: what ``imbalance`` draws of the rows ``train``, and as many malignant lesions of the archive.

    Fewer where the archive has fewer. Its benign lesions join in the same proportion: if only malignant ones joined, the
    source would give the label away.
    """
    own = train[imbalance.draw(candidates.labels[train], rng)]
    if not candidates.archive.any():
        return own
    malignant = np.flatnonzero(candidates.archive & (candidates.labels == 1))
    benign = np.flatnonzero(candidates.archive & (candidates.labels == 0))
    own_malignant = int(candidates.labels[own].sum())
    malignant = rng.choice(malignant, min(own_malignant, len(malignant)), replace=False)
    ratio = (len(own) - own_malignant) / own_malignant
    benign = rng.choice(benign, max(1, min(len(benign), round(ratio * len(malignant)))), replace=False)
    return rng.permutation(np.concatenate([own, malignant, benign]))
