"""What networks that were cross-validated on crops give: their score, other views, and what they add to the columns.

The networks saw crops alone: their tabular logit was the same for all. They score a crop out of fold: with the network of
its own fold, or, for a crop that no fold has, with the mean of the networks that were trained without its patient.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.studies.compare import markdown_table, read_out_of_fold, signed, size_of
from evaluation.studies.image_share import SHARES, as_markdown, name_of, reached
from inference.artifacts import (
    FOLDS,
    OOF_FUSION,
    OOF_TABULAR,
    artifact_path,
    checked_file,
    fold_network_file,
    load_manifest,
    network_column,
    networks_of,
)
from inference.features import context_logits, group_codes, logit_features
from inference.files import write_csv
from inference.images import ImageStore, image_batches
from inference.network import Ensemble, NetworkConfig, devices, load_network, network_logits
from inference.schema import ID, PATIENT, TARGET, read_scores
from inference.scoring import IN_CONTEXT, NETWORK, STACKING, TABULAR
from train.combination import BLEND, BLEND_IN_CONTEXT, MEAN, nested_scores
from train.config import STACKING_PARAMETERS, TabularConfig
from train.cross_validation import cross_validate
from train.lesions import open_images
from utils import InputError, bootstrap_scores, fold_mean, log

#: Crops per step of the scoring.
BATCH = 64
COMBINATION, BOTH_IN_CONTEXT, STACKED = "tabular and network", "both in context", "mean of these and stacking"


def constant_logit(artifacts: Path) -> float:
    """The tabular logit that all lesions of a training had.

    Raises:
        InputError: they had several.
    """
    logits = read_scores(artifact_path(artifacts, OOF_TABULAR), [TABULAR])[TABULAR].unique()
    if len(logits) != 1:
        raise InputError(
            f"the tabular logits of {artifacts} differ between lesions, so its networks cannot score other crops alone; "
            "train them with --columns that know nothing of the label."
        )
    return float(logits[0])


def fold_logits(artifacts: Path, fold: int, images: ImageStore, isic_ids: Sequence[str], views: int = 0) -> np.ndarray:
    """Logits of crops by the networks of a fold, float64 of shape (crops,): their mean.

    Args:
        artifacts: of a training whose tabular logits are constant.
        fold: its number.
        images: holds the crops.
        isic_ids: the crops.
        views: of each crop; 0: as the network was trained with.

    Raises:
        InputError: a file is missing or changed; a crop cannot be read.
    """
    manifest, tabular = load_manifest(artifacts), np.full(len(isic_ids), constant_logit(artifacts))
    logits = np.full((len(isic_ids), len(networks_of(manifest))), np.nan)
    for column, (name, section) in enumerate(networks_of(manifest).items()):
        config = NetworkConfig.from_dict(section["settings"])
        network = load_network(config, checked_file(artifacts, manifest, fold_network_file(fold, name)))
        ensemble = Ensemble(network, places=devices()[:1], views=views or config.views)
        batches = image_batches(images, list(isic_ids), config.image_size, BATCH)
        for positions, scores in network_logits(ensemble, batches, tabular):
            logits[positions, column] = scores
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        first = np.asarray(isic_ids)[broken][0]
        raise InputError(f"{images.path} has no readable crop of {first}, or the network no finite logit; train again.")
    return logits.mean(axis=1)


def rescored(data: Path, artifacts: Path, views: int) -> tuple[pd.Series, float]:
    """Out-of-fold logits with so many views of each crop, by isic_id, and the seconds it took; kept in the folder."""
    path = artifacts / f"views-{views}.csv"
    if not path.is_file():
        fold, images = read_scores(artifact_path(artifacts, FOLDS), ["fold"])["fold"], open_images(data)
        parts = []
        for number in sorted(fold.unique()):
            isic_ids, started = fold.index[fold == number], time.monotonic()
            part = pd.DataFrame({ID: isic_ids, NETWORK: fold_logits(artifacts, number, images, isic_ids, views)})
            parts.append(part.assign(seconds=time.monotonic() - started))
        write_csv(path, pd.concat(parts))
        images.close()
    found = read_scores(path, [NETWORK, "seconds"])
    return found[NETWORK], float(found["seconds"].drop_duplicates().sum())


def final_table(artifacts: Path) -> str:
    """pAUC and AUC of the networks of an artifact folder, out of fold, in Markdown."""
    oof, manifest = read_out_of_fold(artifacts)
    columns = {"mean of the networks": NETWORK} | {f"network {name}": network_column(name) for name in networks_of(manifest)}
    table = bootstrap_scores(oof[TARGET], oof[PATIENT], {name: oof[column] for name, column in columns.items()})
    mean, deviation = fold_mean(oof[TARGET], oof[NETWORK], oof["fold"])
    rows: list[list[str]] = []
    for name, score in table.scores.items():
        difference = signed(table.difference("mean of the networks", name)) if rows else ""
        intervals = (f"{each.value:.4f} [{each.low:.4f}, {each.high:.4f}]" for each in (score.pauc, score.auc))
        rows.append([name, *intervals, difference])
    lines = [
        f"{size_of(table, 'crops')}; out of fold, {table.samples:,} resamples of patients.",
        markdown_table(["score", "pAUC [95 % interval]", "AUC [95 % interval]", "mean minus it, paired"], rows),
        f"Fold mean of the pAUC {mean:.4f}, sd {deviation:.4f}. Out of fold every crop has the scores of its fold's "
        "networks; what the mean of the folds' networks is worth, which the kernel computes, shows on other crops only.",
    ]
    return "\n\n".join(lines) + "\n"


# Columns and crops


@dataclass(frozen=True)
class Columns:
    """A competition folder with all columns, and the artifact folder with its out-of-fold tabular logits."""

    data: Path
    artifacts: Path

    def table(self) -> pd.DataFrame:
        """patient_id, target, fold and tabular logit by isic_id."""
        folds = read_scores(artifact_path(self.artifacts, FOLDS), [PATIENT, TARGET, "fold"])
        return folds.join(read_scores(artifact_path(self.artifacts, OOF_TABULAR), [TABULAR]), how="inner")


def network_scores(table: pd.DataFrame, data: Path, artifacts: Path) -> pd.Series:
    """Logits of the rows that have a crop, by networks that were trained without their patients, by isic_id.

    Args:
        table: rows with patient_id, indexed by isic_id.
        data: competition folder with crops of some of them.
        artifacts: of the networks.
    """
    oof = read_scores(artifact_path(artifacts, OOF_FUSION), [NETWORK])[NETWORK]
    known = read_scores(artifact_path(artifacts, FOLDS), [PATIENT, "fold"])
    scores = oof[oof.index.isin(table.index)]
    images = open_images(data)
    others = [isic_id for isic_id in table.index if isic_id in images and isic_id not in oof.index]
    fold_of = known.drop_duplicates(PATIENT).set_index(PATIENT)["fold"]
    own = table.loc[others, PATIENT].map(fold_of)  # the fold whose network was trained without the patient; NaN: all
    total, number = pd.Series(0.0, index=others), pd.Series(0, index=others)
    for fold in sorted(known["fold"].unique()):
        unseen = own.index[own.isna() | (own == fold)]
        if len(unseen):
            total[unseen] += fold_logits(artifacts, int(fold), images, list(unseen))
            number[unseen] += 1
    images.close()
    return pd.concat([scores, total / number])


def compare_columns_and_crops(columns: Columns, artifacts: Path) -> str:
    """Tabular logits against their combination with network logits, on the rows that have a crop, in Markdown.

    The combination is a logistic regression of both logits, fitted on the other folds of the tabular stage, whose patients
    are others. The last stage, CatBoost on both logits in the context of the patient's rows that have a crop, is trained on
    the same folds.
    """
    table = columns.table()
    network = network_scores(table, columns.data, artifacts)
    table = table.loc[table.index.isin(network.index)].assign(network=network)
    trained_on = read_scores(artifact_path(artifacts, FOLDS), ["fold"]).index
    features = logit_features(table[[TABULAR, NETWORK]], table[PATIENT])
    last = cross_validate(
        features, table[TARGET].to_numpy(), table["fold"].to_numpy(), TabularConfig(STACKING_PARAMETERS), progress=False
    )
    context = context_logits(table[NETWORK].to_numpy(), table[TABULAR].to_numpy(), group_codes(table[PATIENT]))
    table = table.assign(**{IN_CONTEXT: context, STACKING: last.logits, "image_scored": 1})
    scores = nested_scores(table, [BLEND, BLEND_IN_CONTEXT, MEAN])
    table = table.assign(**{COMBINATION: scores[BLEND], BOTH_IN_CONTEXT: scores[BLEND_IN_CONTEXT], STACKED: scores[MEAN]})
    inside = table.index.isin(trained_on)
    cells = []
    for name, part in (("all", table), ("crops of the release", table[inside]), ("other crops", table[~inside])):
        cells += part_of_table(name, part)
    head = ["rows", "score", "pAUC", "95 % interval", "AUC", "minus tabular, paired"]
    return f"Rows with columns and a crop, out of fold.\n\n{markdown_table(head, cells)}\n\n{shares_of_rows(table)}"


def shares_of_rows(table: pd.DataFrame) -> str:
    """How much of the combination's score is reached where the rows with the highest tabular logits have it, in Markdown."""
    tabular, both = table[TABULAR].to_numpy(), table[COMBINATION].to_numpy()
    scores = {name_of(share): np.where(reached(tabular, share), both, tabular) for share in SHARES}
    return as_markdown(bootstrap_scores(table[TARGET], table[PATIENT], {TABULAR: tabular} | scores), SHARES)


def part_of_table(name: str, part: pd.DataFrame) -> list[list[str]]:
    """The scores of some rows, and their paired differences to the tabular score; none where the rows are of one class."""
    if part[TARGET].nunique() < 2:
        log(f"{name}: {len(part)} rows of one class, left out")
        return []
    scores = {score: part[score].to_numpy() for score in (TABULAR, NETWORK, COMBINATION, BOTH_IN_CONTEXT, STACKING, STACKED)}
    table = bootstrap_scores(part[TARGET].to_numpy(), part[PATIENT].to_numpy(), scores)
    cells = []
    for score, found in table.scores.items():
        difference = "" if score == TABULAR else signed(table.difference(score, TABULAR))
        interval = f"{found.pauc.low:.4f} to {found.pauc.high:.4f}"
        size = f"{name}: {size_of(table, 'rows')}"
        cells.append([size, score, f"{found.pauc.value:.4f}", interval, f"{found.auc.value:.4f}", difference])
    return cells
