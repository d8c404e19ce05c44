"""The image network on real crops: the official permissive release of SLICE-3D (ISIC 2024), cross-validated.

    python -m evaluation.studies.real_crops --root data/isic-2024-permissive --out real-crops \\
        --competition data/isic-2024-challenge
    python -m evaluation.studies.real_crops --root data/isic-2024-permissive --out real-crops --factors size views

The first trains the recipe of ``evaluation.studies.real_recipe`` on all crops in three folds (final.md, and a complete
artifact folder), and measures what the network adds to the columns of the competition's table (rows.md). The second trains
the variants of two factors, on the crops that split.csv, beside the release, assigns to train, and writes a table for each.
Further options go to ``train.fusion``, behind the recipe's. A training that is finished is kept in --out, so the same
command continues where it was stopped.

Nearly all known patients and rows of metadata in that release are of biopsies, so whatever shows that a crop has them shows
its label. Known patients stay together in the folds, and the features see the hospital alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation.studies.compare import (
    Study,
    Variant,
    compare_splits,
    markdown_table,
    refuse_fixed,
    signed,
    size_of,
    train_once,
    train_variant,
    training_note,
    write_text,
)
from evaluation.studies.real_fusion import Columns, compare_columns_and_crops, final_table, rescored
from evaluation.studies.real_recipe import (
    ARCHIVES,
    FACTORS,
    NETWORKS,
    RECIPE,
    SHORT,
    SYNTHETIC,
    SYNTHETIC_SIZE,
    UNLABELLED,
    UNLABELLED_EPOCHS,
    UNLABELLED_IMAGENET,
)
from inference.artifacts import FOLDS, OOF_IMAGE_ONLY, artifact_path
from inference.files import write_csv
from inference.options import Parser, count, existing_folder, filled_text, output_folder, processes
from inference.schema import HOSPITAL, ID, PATIENT, TARGET, read_scores
from inference.tables import Reading, read_csv_file
from scale.artifact_folder import locked, staged_folder
from scale.parallel import stream_tasks, workers
from terminal import run_command
from train.archives.__main__ import ArchivesConfig, write_archives
from train.folds import make_folds
from train.manifest import link_or_copy
from train.network.config import parse_fusion_options
from train.network.self_supervised import pretrain_without_labels
from train.synthetic.dataset import TRUTH, DatasetConfig, write_dataset
from train.tabular import train_tabular
from utils import InputError, log, log_summary

METADATA, IMAGES, SPLIT = "train-metadata.csv", "train-image.hdf5", "split.csv"
#: Options of ``train.fusion`` that this study sets.
FIXED = ("--data", "--artifacts", "--inputs", "--name", "--seed", "--cache", "--logs", "--restart")
FOLD_COUNT = 3


@dataclass(frozen=True)
class Request:
    """What is asked for, and where it is.

    Args:
        root: the release.
        out: all that is made.
        more: options of ``train.fusion`` behind those of the recipe.
        archives: the files of the earlier archives, if the variants need them.
        seeds: of each variant.
        jobs: trainings at a time.
    """

    root: Path
    out: Path
    more: tuple[str, ...] = ()
    archives: Path | None = None
    seeds: int = 1
    jobs: int = 1

    @property
    def recipe(self) -> tuple[str, ...]:
        """The options of the final run."""
        return (*RECIPE, *self.more)

    @property
    def short_recipe(self) -> tuple[str, ...]:
        """The options that the variants of all factors share."""
        return (*RECIPE, *SHORT, *self.more)

    @property
    def cache(self) -> tuple[str, ...]:
        """The option for the folder of decoded crops, which all trainings share."""
        return ("--cache", str(self.out / "cache"))

    def study(self, crops: str) -> Study:
        """The trainings on the crops "all" or "train"."""
        return Study(self.out / crops, self.out / artifacts_of(crops), self.out / "networks", self.cache)


def artifacts_of(crops: str) -> str:
    """The artifact folder of a competition folder in --out; that of all crops is the one for the kernel."""
    return "artifacts" if crops == "all" else f"{crops}-artifacts"


# The competition folders


def make_folders(root: Path, out: Path, with_train: bool) -> None:
    """Makes the competition folder "all" of a release and, of the crops that its split.csv assigns to train, "train".

    Raises:
        InputError: as ``train.archives``; split.csv is missing, or differs from the one that "train" was made with.
    """
    with locked(out):
        log(write_archives(ArchivesConfig(root, ["2024"]), out / "all"))
        if not with_train:
            return
        table = read_csv_file(out / "all" / METADATA, Reading("str", keep_default_na=False))
        split = read_scores(root / SPLIT, ["split"])["split"]
        train = table[table[ID].isin(split.index[split == "train"])]
        if train.empty:
            raise InputError(f"{root / SPLIT} assigns no crop of the release to 'train'; use the one of this release.")
        folder = out / "train"
        if (folder / METADATA).is_file():
            known = read_csv_file(folder / METADATA, Reading("str", keep_default_na=False))[ID]
            if list(known) != list(train[ID]):
                raise InputError(f"{folder} was made with another {SPLIT}; give another --out.")
            return
        with staged_folder(folder) as staging:
            write_csv(staging / METADATA, train, float_format=None)
            link_or_copy(out / "all" / IMAGES, staging / IMAGES)


def make_stages(out: Path, crops: str) -> None:
    """Folds and tabular logits of a competition folder in ``out``, where they are missing."""
    where = ["--data", str(out / crops), "--artifacts", str(out / artifacts_of(crops))]
    # The hospital is given for all crops alike; other columns, and patients, for those of biopsies.
    make_folds([*where, "--folds", str(FOLD_COUNT), "--holdout", "0", "--patients", "own", "--columns", HOSPITAL])
    train_tabular(where)


# Variants


@dataclass(frozen=True)
class Trained:
    """A variant's training with one seed."""

    name: str
    seed: int
    variant: Variant
    views: int | None = None


def trainings_of(request: Request, name: str, chosen: Sequence[str]) -> list[Trained]:
    """The trainings of a factor, with every seed: of all variants, or of the base and those that are chosen."""
    factor, found = FACTORS[name], []
    for number, (variant, options) in enumerate(factor.variants.items()):
        if number and chosen and variant not in chosen:
            continue
        for seed in range(request.seeds):
            views = int(options[-1]) if factor.views else None
            own = ("--inputs", "fusion") if factor.views else (*options, "--inputs", "image")
            text = "-".join(re.sub(r"[^\w.-]+", "-", word.strip("-")) for word in (own if factor.views else options))
            folder = f"{text or 'recipe'}-seed{seed}"
            words = (*request.short_recipe, *own, "--seed", str(seed))
            found.append(Trained(variant, seed, Variant(folder, words, {"options": list(words)}), views))
    return found


def with_sources(request: Request, trained: Trained) -> Trained:
    """The same with paths in its options; what they name is made where it is missing.

    Raises:
        InputError: the archives are needed and not given.
    """
    words = list(trained.variant.options)
    for place, word in enumerate(words):
        if word == ARCHIVES:
            words[place] = str(archive_folder(request))
        elif word == SYNTHETIC:
            words[place] = str(synthetic_folder(request))
        elif word in (UNLABELLED, UNLABELLED_IMAGENET):
            words[place] = str(unlabelled_weights(request, words, word.partition("-")[2]))
    return replace(trained, variant=replace(trained.variant, options=tuple(words)))


def archive_folder(request: Request) -> Path:
    """HAM10000 as ``train.archives`` writes it, made where it is missing."""
    if request.archives is None:
        raise InputError("--archives is missing, and a variant is pretrained on HAM10000; give it, or choose --variants.")
    folder = request.out / "ham10000"
    with workers(request.jobs):
        log(write_archives(ArchivesConfig(request.archives, ["2018"], "malignant"), folder))
    return folder


def synthetic_folder(request: Request) -> Path:
    """The synthetic dataset, made where it is missing."""
    folder = request.out / "synthetic"
    if not (folder / TRUTH).is_file():
        with workers(request.jobs):
            log(write_dataset(folder, DatasetConfig(*SYNTHETIC_SIZE)))
    return folder


def unlabelled_weights(request: Request, words: Sequence[str], start: str) -> Path:
    """Weights of the backbone that ``words`` name, trained on the crops of train without labels from ``start``."""
    size, backbone = (last_value(words, option) for option in ("--image-size", "--backbone"))
    path = request.out / f"unlabelled-{backbone}-{start}-{size}.weights.h5"
    if not path.is_file():
        own = ["--backbone", backbone, "--image-size", size, "--weights", start, "--epochs", str(UNLABELLED_EPOCHS)]
        own += ["--data", str(request.out / "train"), "--out", str(path), *request.cache]
        pretrain_without_labels(own)
    return path


def last_value(words: Sequence[str], option: str) -> str:
    """The value of an option, the last of them where it is given more than once."""
    return words[max(place for place, word in enumerate(words) if word == option) + 1]


# Tables


def compare_factor(request: Request, name: str, chosen: Sequence[str] = ()) -> str:
    """Trains the variants of a factor that are missing; a Markdown table of all of them, out of fold on train."""
    study, trainings = request.study("train"), []
    for trained in trainings_of(request, name, chosen):
        trainings.append(with_sources(request, trained))
        where = ["--data", str(study.data), "--artifacts", str(study.artifacts)]
        parse_fusion_options([*where, *trainings[-1].variant.options])  # a mistake ends the study before the first training
    variants = {trained.variant.name: trained.variant for trained in trainings}
    with workers(request.jobs):
        tasks = [(study, variant) for variant in variants.values()]
        seconds = dict(zip(variants, stream_tasks(train_variant, tasks), strict=True))
    truth = read_scores(artifact_path(study.artifacts, FOLDS), [PATIENT, TARGET])
    logits: dict[str, list[np.ndarray]] = {}
    minutes: dict[str, list[float]] = {}
    for trained in trainings:
        folder, took = trained.variant.folder(study), seconds[trained.variant.name]
        if trained.views:
            scores, took = rescored(study.data, folder, trained.views)
        else:
            scores = read_scores(artifact_path(folder, OOF_IMAGE_ONLY), ["network"])["network"]
        if not truth.index.isin(scores.index).all():
            raise InputError(
                f"{folder} has no score of {int((~truth.index.isin(scores.index)).sum())} crops; give another --out."
            )
        logits.setdefault(trained.name, []).append(scores.loc[truth.index].to_numpy())
        minutes.setdefault(trained.name, []).append(took / 60)
    note = training_note({variant: each.folder(study) for variant, each in variants.items()})
    return as_markdown(name, truth, logits, minutes) + note


def as_markdown(
    name: str, truth: pd.DataFrame, logits: Mapping[str, list[np.ndarray]], minutes: Mapping[str, list[float]]
) -> str:
    """A factor's table.

    Args:
        name: key of ``FACTORS``.
        truth: patient_id and target by isic_id.
        logits: variant -> out-of-fold logits of each seed, shape (rows,), in the order of ``truth``; the base first.
        minutes: variant -> of each seed.
    """
    table, means = compare_splits(truth[TARGET].to_numpy(), truth[PATIENT].to_numpy(), logits)
    base, rows = next(iter(logits)), []
    for variant, mean in means.items():
        aucs = [table.scores[f"{variant} {number}"].auc.value for number in range(len(mean.values))]
        rows.append(
            [
                variant,
                " ".join(FACTORS[name].variants[variant]),
                f"{mean.estimate.value:.4f} [{mean.estimate.low:.4f}, {mean.estimate.high:.4f}]",
                ", ".join(f"{value:.4f}" for value in mean.values),
                f"{np.mean(aucs):.4f}",
                "" if variant == base else signed(mean.minus(means[base])),
                f"{np.mean(minutes[variant]):.1f}",
            ]
        )
    seeds = len(means[base].values)
    head = ["variant", "options", "pAUC [95 % interval]", "by seed", "AUC", f"minus {base}, paired", "minutes"]
    measured = f"{size_of(table, 'crops')}; out of fold, {table.samples:,} resamples of patients; mean of {seeds} seed(s)."
    return f"{measured}\n\n{markdown_table(head, rows)}\n"


# The final run


def train_final(request: Request) -> float:
    """Trains the networks on all crops, unless they are there; the artifact folder is complete then. The seconds it took."""
    study, seconds = request.study("all"), 0.0
    for name, options in NETWORKS.items():
        words = (*request.recipe, "--inputs", "fusion", "--name", name, *options)
        trained = with_sources(request, Trained(name, 0, Variant(f"all crops, {name}", words, {"options": list(words)})))
        seconds += train_once(study, trained.variant, study.artifacts, f"{name}-")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Writes final.md and rows.md, or the tables of the factors."""
    parser = Parser(
        description="The recipe on real crops -> final.md, artifacts, rows.md; with --factors, a table for each",
        epilog="Further options go to train.fusion, behind those of the recipe.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--root",
        type=existing_folder,
        required=True,
        metavar="DIR",
        help="the official release, with split.csv for --factors",
    )
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="results and trainings")
    parser.add_argument(
        "--competition", type=existing_folder, metavar="DIR", help="competition folder whose columns the network is added to"
    )
    parser.add_argument(
        "--archives",
        type=existing_folder,
        metavar="DIR",
        help="official files of HAM10000 (ISIC 2018), for variants with it",
    )
    parser.add_argument("--factors", nargs="+", choices=FACTORS, metavar="NAME", help=f"of {', '.join(FACTORS)}")
    parser.add_argument(
        "--variants", type=filled_text, nargs="+", metavar="NAME", help="of the factors, beside their bases (default: all)"
    )
    parser.add_argument("--seeds", type=count(1, 100), default=1, help="of each variant (default: %(default)s)")
    parser.add_argument("--final", action="store_true", help="the recipe on all crops, also with --factors")
    parser.add_argument("--jobs", type=processes, default=1, help="trainings at a time (default: %(default)s)")
    options, more = parser.parse_known_args(arguments)
    refuse_fixed(more, FIXED)
    chosen, factors = options.variants or [], options.factors or []
    for variant in chosen:
        if not any(variant in FACTORS[name].variants for name in factors):
            known = [each for name in factors for each in FACTORS[name].variants]
            raise InputError(f"--variants {variant!r} is none of the --factors; give one of: {'; '.join(known)}.")
    request = Request(options.root, options.out, tuple(more), options.archives, options.seeds, options.jobs)
    parse_fusion_options(["--data", str(options.root), "--artifacts", str(options.out), *request.recipe])
    make_folders(options.root, options.out, with_train=bool(factors))
    if factors:
        make_stages(options.out, "train")
    for name in factors:
        text = f"{compare_factor(request, name, chosen)}\n    the recipe: {' '.join(request.short_recipe)}\n"
        write_text(options.out / f"{name}.md", text)
        log_summary(f"{options.out / name}.md: {name}", text)
    if options.final or not factors:
        run_final(request, options.competition)
    return 0


def run_final(request: Request, competition: Path | None) -> None:
    """Trains the final networks; writes final.md and, for a competition folder, rows.md."""
    out, artifacts = request.out, request.study("all").artifacts
    make_stages(out, "all")
    seconds = train_final(request)
    text = f"{final_table(artifacts)}\n    {seconds / 60:.1f} minutes, the recipe: {' '.join(request.recipe)}\n"
    write_text(out / "final.md", text)
    log_summary(f"{out / 'final.md'}: the recipe on all crops", text)
    if competition:
        own = out / "columns-artifacts"
        where = ["--data", str(competition), "--artifacts", str(own)]
        make_folds([*where, "--holdout", "0"])
        train_tabular(where)
        text = compare_columns_and_crops(Columns(competition, own), artifacts)
        write_text(out / "rows.md", text)
        log_summary(f"{out / 'rows.md'}: rows with columns and a crop", text)


if __name__ == "__main__":
    run_command(main)
