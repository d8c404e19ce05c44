"""What the earlier archives are worth to the network: without them, pretrained on them, and trained together with them.

    python -m train.archives_study --data data/isic-2024-challenge --artifacts artifacts --archives data/archives \
        --out archives-study --weights imagenet

The three networks are trained on the same folds, seeds and tabular log-odds; all further options go to ``train.fusion``.
A training that is finished is kept in --out, so the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import checked_file, load_manifest
from inference.files import InputError, replacing, sha256_of
from inference.schema import ID, TARGET
from train.folds import FOLDS
from train.fusion import main as train_fusion
from train.manifest import record_stage
from train.pretraining import MODES
from train.tabular import OOF as OOF_TABULAR
from utils import ScoreTable, add_data_options, bootstrap_scores, format_table, run_command, say, write_json

#: Without archives, and the ways to learn from them.
WAYS = ("none", *MODES)
OOF_FUSION, SECONDS = "oof_fusion.csv", "seconds.json"


def own_artifacts(artifacts: Path, folder: Path) -> Path:
    """Makes ``folder`` an artifact folder with the folds and the tabular scores of ``artifacts``; networks come later.

    Raises:
        InputError: a stage has not run, or ``folder`` is of other folds or tabular scores.
    """
    manifest = load_manifest(artifacts)
    sources = [checked_file(artifacts, manifest, name) for name in (FOLDS, OOF_TABULAR)]
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        copy = folder / source.name
        if copy.is_file() and sha256_of(copy) != sha256_of(source):
            raise InputError(f"{copy} is from another training than {source}; give another --out.")
        shutil.copyfile(source, copy)
    if not (folder / "manifest.json").is_file():
        record_stage(folder, "folds", manifest["folds"], [FOLDS])
        record_stage(folder, "tabular", {"copied from": "the --artifacts of this study"}, [OOF_TABULAR])
    return folder


def read_done(folder: Path) -> dict:
    """What a finished training left beside its artifacts: the ``request`` and the ``seconds`` it took."""
    return json.loads((folder / SECONDS).read_text(encoding="utf-8"))


def train_way(way: str, data: Path, artifacts: Path, archives: Path, folder: Path, more: list[str]) -> None:
    """Trains the networks of one way in its own folder, unless they are there; how long it took lies beside them."""
    request = {"options": more, "archives": sha256_of(archives / "train-metadata.csv") if way != "none" else None}
    done = folder / SECONDS
    if done.is_file():
        known = read_done(folder)
        if known["request"] != request:
            raise InputError(f"{folder} holds a training with other options ({known['request']}); give another --out.")
        say(f"{way}: kept from an earlier run")
        return
    own_artifacts(artifacts, folder)
    say(f"{way}:")
    started = time.monotonic()
    learned = [] if way == "none" else ["--archives", str(archives), "--archives-mode", way]
    train_fusion(["--data", str(data), "--artifacts", str(folder), *learned, *more])
    write_json(done, {"request": request, "seconds": time.monotonic() - started})


def compare(folders: Mapping[str, Path], patients: pd.Series) -> tuple[ScoreTable, int]:
    """The ways' out-of-fold scores side by side, on the lesions whose image a network has seen, and how many those are.

    Args:
        folders: way -> its artifact folder.
        patients: patient_id by isic_id.
    """
    tables = {way: pd.read_csv(folder / OOF_FUSION, dtype={ID: "str"}) for way, folder in folders.items()}
    base = tables[WAYS[0]]
    seen = np.logical_and.reduce([table["image_seen"] == 1 for table in tables.values()])
    scores = {"tabular": base.loc[seen, "tabular"].to_numpy()}
    scores |= {way: table.loc[seen, "log_odds"].to_numpy() for way, table in tables.items()}
    return bootstrap_scores(base.loc[seen, TARGET], patients.loc[base.loc[seen, ID]], scores), int(seen.sum())


def as_markdown(table: ScoreTable, seconds: Mapping[str, float]) -> str:
    """The comparison as Markdown: pAUC with its interval, and the paired difference to the training without archives."""
    lines = [
        f"{table.rows:,} lesions with an image, {table.malignant:,} malignant, {table.patients:,} patients; out of fold, "
        f"{table.samples:,} resamples of patients.",
        "",
        "| archives | pAUC | 95 % interval | less without, paired | minutes |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, score in table.scores.items():
        change = ""
        if name in MODES:
            gain = table.difference(name, WAYS[0])
            change = f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        minutes = f"{seconds[name] / 60:.1f}" if name in seconds else ""
        shown = "tabular alone" if name == "tabular" else name
        lines.append(
            f"| {shown} | {score.pauc.value:.4f} | {score.pauc.low:.4f} to {score.pauc.high:.4f} | {change} | {minutes} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Trains the three ways and writes archives.md."""
    parser = argparse.ArgumentParser(
        description="Fusion without, pretrained on and joined by earlier archives, on the same folds -> archives.md",
        epilog="Further options go to train.fusion (see there): --weights, --image-size, --epochs, ...",
    )
    add_data_options(parser)
    parser.add_argument("--archives", type=Path, required=True, metavar="DIR", help="folder written by train.archives")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for archives.md and the trainings")
    options, more = parser.parse_known_args(arguments)
    if {"--archives-mode", "--inputs"} & {word.split("=")[0] for word in more}:
        raise InputError("--archives-mode and --inputs are what this study varies or fixes; leave them out.")
    if not (options.archives / "train-metadata.csv").is_file():
        raise InputError(f"{options.archives} has no train-metadata.csv; make it with train.archives.")
    folders = {way: options.out / way for way in WAYS}
    for way, folder in folders.items():
        train_way(way, options.data, options.artifacts, options.archives, folder, more)
    folds = pd.read_csv(folders[WAYS[0]] / FOLDS, dtype="str")
    table, seen = compare(folders, folds.set_index(ID)["patient_id"])
    seconds = {way: read_done(folder)["seconds"] for way, folder in folders.items()}
    text = as_markdown(table, seconds)
    with replacing(options.out / "archives.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(format_table(table))
    gains = [table.difference(way, WAYS[0]) for way in MODES]
    told = ", ".join(
        f"{way} {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" for way, gain in zip(MODES, gains, strict=True)
    )
    say(f"{options.out / 'archives.md'}: {seen:,} lesions; less without archives: {told} pAUC")
    return 0


if __name__ == "__main__":
    run_command(main)
