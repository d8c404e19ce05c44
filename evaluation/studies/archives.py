"""What the earlier archives are worth to the network: without them, pretrained on them, and trained together with them.

    python -m evaluation.studies.archives --data data/isic-2024-challenge --artifacts artifacts --archives data/archives \
        --out archives-study --weights imagenet

The three networks are trained on the same folds, seeds and tabular logits; all further options go to ``train.fusion``.
A training that is finished is kept in --out, so the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.studies.compare import as_markdown, compare, read_done, refuse_fixed, told, train_variant
from inference.files import replacing, sha256_of
from train.network.pretraining import ARCHIVES_MODES
from utils import InputError, add_data_options, format_table, log, run_command

#: Without archives, and the ways to learn from them.
WAYS = ("none", *ARCHIVES_MODES)


def train_way(way: str, data: Path, artifacts: Path, archives: Path, folder: Path, more: list[str]) -> None:
    """Trains the networks of one way in its own folder, unless they are there.

    Raises:
        InputError: as ``evaluation.studies.compare.train_variant``.
    """
    learned = [] if way == "none" else ["--archives", str(archives), "--archives-mode", way]
    request = {"options": more, "archives": sha256_of(archives / "train-metadata.csv") if learned else None}
    train_variant(way, folder, data, artifacts, [*learned, *more], request)


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
    refuse_fixed(more, ("--archives-mode", "--inputs"))
    if not (options.archives / "train-metadata.csv").is_file():
        raise InputError(f"{options.archives} has no train-metadata.csv; make it with train.archives.")
    folders = {way: options.out / way for way in WAYS}
    for way, folder in folders.items():
        train_way(way, options.data, options.artifacts, options.archives, folder, more)
    table = compare(folders)
    seconds = {way: read_done(folder)["seconds"] for way, folder in folders.items()}
    with replacing(options.out / "archives.md") as temporary:
        temporary.write_text(as_markdown(table, seconds, label="archives", against="without"), encoding="utf-8")
    log(format_table(table))
    gains = ", ".join(f"{way} {told(table.difference(way, WAYS[0]))}" for way in ARCHIVES_MODES)
    log(f"{options.out / 'archives.md'}: {table.rows:,} lesions; less without archives: {gains} pAUC")
    return 0


if __name__ == "__main__":
    run_command(main)
