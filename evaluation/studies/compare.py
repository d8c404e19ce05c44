"""What the studies share: mean pAUC with paired differences, Markdown tables, and trainings of the fusion side by side.

A study of networks names its variants and the options of ``train.fusion`` for each. All are trained on the same folds, seeds
and tabular logits. Every variant has an artifact folder of its own with copies of the folds and the tabular logits; a
training that is finished there is kept.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.measures import TABULAR
from inference.artifacts import (
    FOLDS,
    MANIFEST,
    OOF_FUSION,
    OOF_TABULAR,
    Manifest,
    artifact_path,
    checked_file,
    load_manifest,
    network_column,
    networks_of,
)
from inference.files import replacing, sha256_of, sha256_of_images, write_json
from inference.images import find_images
from inference.options import Parser, add_data_options, output_folder
from inference.schema import PATIENT, TARGET, read_scores
from inference.scoring import NETWORK
from inference.tables import id_mismatch
from train.folds import assign_folds
from train.fusion import own_weights, train_fusion
from train.manifest import NETWORKS, read_manifest, record_stage, recorded
from train.network.config import parse_fusion_options
from utils import INTERVAL, Estimate, InputError, ScoreTable, bootstrap_scores, log

#: Beside the artifacts of a finished variant: the request, and the seconds that the training took.
FINISHED = "seconds.json"
#: Of a hash, where it is shown.
CODE_DIGITS = 8


# Out-of-fold scores


def read_out_of_fold(artifacts: Path) -> tuple[pd.DataFrame, Manifest]:
    """The out-of-fold logits of a fusion by isic_id, with target, fold, patient_id and image_scored; and the manifest.

    The logits are "tabular", "network" (the mean of all networks) and that of each network in its ``network_column``.

    Raises:
        InputError: the artifacts hold no network, or their files are of different lesions.
    """
    manifest = load_manifest(artifacts)
    columns = [network_column(name) for name in networks_of(manifest)]
    if not columns:
        raise InputError(f"{artifacts} has no fusion; run: python -m train.fusion --data DIR --artifacts {artifacts}")
    names = [TARGET, "fold", TABULAR, NETWORK, "image_scored", *columns]
    rows = read_scores(checked_file(artifacts, manifest, OOF_FUSION), names)
    patients = read_scores(checked_file(artifacts, manifest, FOLDS), [PATIENT])[PATIENT].reindex(rows.index)
    if patients.isna().any():
        raise InputError(f"{artifacts / FOLDS} lacks lesions of {OOF_FUSION}; train again.")
    return rows.assign(**{PATIENT: patients}), manifest


# Mean scores and Markdown


@dataclass(frozen=True)
class MeanPauc:
    """pAUC of several measurements, such as of several splits, and their mean on each resample of patients (samples,)."""

    values: tuple[float, ...]
    draws: np.ndarray

    @classmethod
    def of(cls, measured: Sequence[tuple[ScoreTable, str]]) -> MeanPauc:
        """From one or more pairs of a table and the name of a score in it."""
        values = tuple(table.scores[name].pauc.value for table, name in measured)
        return cls(values, np.mean([table.paucs[name] for table, name in measured], axis=0))

    @property
    def estimate(self) -> Estimate:
        """The mean and its interval."""
        return _estimate(float(np.mean(self.values)), self.draws)

    def minus(self, base: MeanPauc) -> Estimate:
        """The difference of the means, with a paired interval."""
        return _estimate(float(np.mean(self.values) - np.mean(base.values)), self.draws - base.draws)


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.percentile(draws, INTERVAL)
    return Estimate(value, float(low), float(high))


def compare_splits(
    labels: np.ndarray, patients: np.ndarray, logits: Mapping[str, Sequence[np.ndarray]]
) -> tuple[ScoreTable, dict[str, MeanPauc]]:
    """Variants that were cross-validated on several splits, all measured on the same resamples of patients.

    Args:
        labels: 0/1, shape (rows,).
        patients: shape (rows,).
        logits: variant -> out-of-fold logits of each split, shape (rows,).

    Returns:
        The scores of all variants and splits; the mean over the splits by variant.
    """
    scores = {f"{name} {number}": split for name, splits in logits.items() for number, split in enumerate(splits)}
    table = bootstrap_scores(labels, patients, scores)
    means = {
        name: MeanPauc.of([(table, f"{name} {number}") for number in range(len(splits))]) for name, splits in logits.items()
    }
    return table, means


def split_folds(metadata: pd.DataFrame, folds: int, seed: int) -> np.ndarray:
    """Patient-grouped folds without a holdout, int64 of shape (rows,)."""
    return assign_folds(metadata, folds, np.zeros(len(metadata), dtype=bool), seed)


def signed(difference: Estimate) -> str:
    """A difference and its interval: "+0.0012 [-0.0003, +0.0027]"."""
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def size_of(table: ScoreTable, lesions: str = "lesions") -> str:
    """What a table was measured on, in a few words."""
    return f"{table.rows:,} {lesions}, {table.malignant:,} malignant, {table.patients:,} patients"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right, without a newline at its end."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, *rows)]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join(["---", *["---:"] * (len(head) - 1)]), *lines[1:]))


def write_text(path: Path, text: str) -> None:
    """Writes a text file as a whole, with a newline at its end."""
    with replacing(path) as temporary:
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


# Trainings of the fusion


@dataclass(frozen=True)
class Study:
    """Where a study reads and writes, and the options of ``train.fusion`` that all its variants share."""

    data: Path
    artifacts: Path
    out: Path
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A training of the fusion: its own options, and the JSON value that a finished training must match to be kept."""

    name: str
    options: tuple[str, ...]
    request: Mapping

    def folder(self, study: Study) -> Path:
        """Its artifact folder."""
        return study.out / self.name.replace(":", "-")


@dataclass(frozen=True)
class Comparison:
    """The tabular score and the variants' networks, and how long each training took; the first variant is the base.

    Args:
        table: the scores.
        seconds: by variant.
        note: of ``training_note``.
    """

    table: ScoreTable
    seconds: Mapping[str, float]
    note: str = ""

    @property
    def base(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.seconds))

    def gain(self, variant: str) -> str:
        """The paired difference of a variant to the base; empty for the base and for the tabular score."""
        return "" if variant in (TABULAR, self.base) else signed(self.table.difference(variant, self.base))

    def as_markdown(self, label: str = "variant", columns: Mapping[str, Mapping[str, str]] | None = None) -> str:
        """pAUC with its interval, the paired difference to the base, and minutes.

        Args:
            label: heads the names.
            columns: further columns beside the names: heading -> variant -> text.
        """
        columns, rows = columns or {}, []
        for name, score in self.table.scores.items():
            minutes = f"{self.seconds[name] / 60:.1f}" if name in self.seconds else ""
            pauc = [f"{score.pauc.value:.4f}", f"{score.pauc.low:.4f} to {score.pauc.high:.4f}"]
            rows.append([name, *(texts.get(name, "") for texts in columns.values()), *pauc, self.gain(name), minutes])
        head = [label, *columns, "pAUC", "95 % interval", f"minus {self.base}, paired", "minutes"]
        measured = (
            f"{size_of(self.table, 'lesions with an image')}; out of fold, {self.table.samples:,} resamples of patients."
        )
        return f"{measured}\n\n{markdown_table(head, rows)}\n{self.note}"


def study_parser(description: str) -> Parser:
    """A parser with ``--data``, ``--artifacts`` and ``--out``, whose unknown options go to ``train.fusion``."""
    parser = Parser(
        description=description,
        epilog="Further options go to train.fusion (see there): --weights, --image-size, --learning-rate, ...",
        allow_abbrev=False,  # or --image, short for the --image-size of train.fusion, would be taken for --images
    )
    add_data_options(parser)
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="folder for the results and the trainings"
    )
    return parser


def refuse_fixed(more: Sequence[str], fixed: Sequence[str]) -> None:
    """Refuses options of ``train.fusion`` that the study itself sets.

    Args:
        more: words of the command line that go on to ``train.fusion``.
        fixed: two or more options such as "--inputs", as they are typed in full.

    Raises:
        InputError: ``more`` has one of ``fixed``, in full or abbreviated as argparse allows, with or without "=".
    """
    for word in more:
        typed = word.split("=")[0]
        if len(typed) > 2 and typed.startswith("--") and any(name.startswith(typed) for name in fixed):
            raise InputError(f"{word!r} cannot be given: this study sets {', '.join(fixed)} itself; leave it out.")


def own_artifacts(artifacts: Path, folder: Path) -> Path:
    """Makes ``folder`` an artifact folder with the folds and the tabular logits of ``artifacts``.

    Raises:
        InputError: a stage has not run, or ``folder`` holds other folds or tabular logits.
    """
    manifest = load_manifest(artifacts)
    sources = [checked_file(artifacts, manifest, name) for name in (FOLDS, OOF_TABULAR)]
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        copy = folder / source.name
        if copy.is_file() and sha256_of(copy) != sha256_of(source):
            raise InputError(f"{copy} is from another training than {source}; give another --out.")
        if not copy.is_file():
            with replacing(copy) as temporary:
                shutil.copyfile(source, temporary)
    if not artifact_path(folder, MANIFEST).is_file():
        record_stage(folder, "folds", manifest["folds"], [FOLDS])
        record_stage(folder, "tabular", {"copied_from": "the --artifacts of this study"}, [OOF_TABULAR])
    return folder


def inputs_of(study: Study, variant: Variant) -> dict[str, str]:
    """SHA-256 of what a training reads besides folds and tabular logits, by the option that names it.

    Raises:
        InputError: as ``parse_fusion_options``.
    """
    where = ["--data", str(study.data), "--artifacts", str(study.artifacts)]
    run, config = parse_fusion_options([*where, *variant.options, *study.more])
    hashes = {}
    for path in own_weights(config):
        hashes["--weights"] = sha256_of(path)
    for option, folder in (("--data", run.data), ("--archives", run.archives)):
        if folder and (folder / "train-metadata.csv").is_file():
            hashes[f"{option}: train-metadata.csv"] = sha256_of(folder / "train-metadata.csv")
        if folder and (images := find_images(folder, "train")):
            hashes[f"{option}: images"] = sha256_of_images(images)
    return hashes


def other_inputs(known: Mapping[str, str], inputs: Mapping[str, str]) -> list[str]:
    """Which of ``inputs``, of ``inputs_of``, have another content in the record of a finished training.

    Earlier records have the paths as they were typed in place of the options: their content counts alone.
    """
    earlier = set() if any(name.startswith("--") for name in known) else set(known.values())
    return [name for name, sha256 in inputs.items() if known.get(name) != sha256 and sha256 not in earlier]


def train_variant(study: Study, variant: Variant) -> float:
    """Trains the networks of one variant in its own folder, unless they are there.

    Returns:
        The seconds that it took; of an interrupted training, since it was last continued.

    Raises:
        InputError: the folder holds a training on other folds, tabular logits or with another request; as ``train.fusion``.
    """
    return train_once(study, variant, own_artifacts(study.artifacts, variant.folder(study)))


def train_once(study: Study, variant: Variant, folder: Path, network: str = "") -> float:
    """As ``train_variant``, in an artifact folder that has folds and tabular logits; ``network`` is one of several there."""
    finished, inputs = folder / f"{network}{FINISHED}", inputs_of(study, variant)
    if finished.is_file():
        known = json.loads(finished.read_text(encoding="utf-8"))
        other = other_inputs(known.get("inputs", {}), inputs)
        if other:
            raise InputError(f"{folder} holds a training on another content of {', '.join(other)}; give another --out.")
        if known["request"] != variant.request:
            raise InputError(f"{folder} holds a training with other options ({known['request']}); give another --out.")
        log(f"{variant.name}: kept from an earlier run")
        return known["seconds"]
    log(f"{variant.name}:")
    started = time.monotonic()
    train_fusion(["--data", str(study.data), "--artifacts", str(folder), *variant.options, *study.more])
    seconds = time.monotonic() - started
    write_json(finished, {"request": variant.request, "inputs": inputs, "seconds": seconds})
    return seconds


def training_note(folders: Mapping[str, Path]) -> str:
    """A paragraph below a table of networks that not all were trained by the same code and library versions; else empty.

    Args:
        folders: the variants' artifact folders, by the name to show.
    """
    facts: dict[str, dict[str, str]] = {}
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        parts = [part for part in manifest.get("made_with", {}) if part.partition(":")[0] in NETWORKS]
        code = {recorded(manifest, part).get("code", "unknown")[:CODE_DIGITS] for part in parts}
        facts[name] = manifest.get("versions", {}) | {"code": ", ".join(sorted(code))}
    names = dict.fromkeys(name for own in facts.values() for name in own)
    differ = [name for name in names if len({own.get(name) for own in facts.values()}) > 1]
    made: dict[str, list[str]] = {}
    for variant, own in facts.items():
        made.setdefault(", ".join(f"{name} {own.get(name) or 'unknown'}" for name in differ), []).append(variant)
    if len(made) < 2:
        return ""
    most = max(made, key=lambda words: len(made[words]))
    others = "; ".join(f"{', '.join(variants)}: {words}" for words, variants in made.items() if words != most)
    return (
        f"\nNot all were trained by the same code and library versions. {others}; the others: {most}. "
        "A variant whose folder is deleted is trained again.\n"
    )


def compare_networks(study: Study, variants: Sequence[Variant]) -> Comparison:
    """Trains the variants that are missing; scores all out of fold, on the lesions whose crop every network scored."""
    seconds = {variant.name: train_variant(study, variant) for variant in variants}
    columns = [TARGET, "tabular", "network", "image_scored"]
    base, *others = (read_scores(variant.folder(study) / OOF_FUSION, columns) for variant in variants)
    for table, variant in zip(others, variants[1:], strict=True):
        if not base.index.isin(table.index).all():
            differ = id_mismatch(variants[0].name, base.index, variant.name, table.index)
            raise InputError(f"{study.out}: {differ}; give another --out.")
    tables = [base, *(table.loc[base.index] for table in others)]
    scored = np.logical_and.reduce([table["image_scored"] == 1 for table in tables])
    patients = read_scores(artifact_path(study.artifacts, FOLDS), [PATIENT]).loc[base.index, PATIENT]
    networks = {name: table["network"][scored] for name, table in zip(seconds, tables, strict=True)}
    table = bootstrap_scores(base[TARGET][scored], patients[scored], {TABULAR: base["tabular"][scored]} | networks)
    return Comparison(table, seconds, training_note({variant.name: variant.folder(study) for variant in variants}))
