"""What the ISIC archives are worth to the network: without them, pretrained on them, and trained jointly with them.

    python -m evaluation.studies.archives --data data/isic-2024-challenge --artifacts artifacts --archives data/archives \
        --out archives-study --weights imagenet

The three networks are trained on the same folds, seeds and tabular logits; all further options go to ``train.fusion``.
A training that is finished is kept in --out, so the same command continues where it was stopped.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.studies.compare import FINISHED, Study, Variant, compare_networks, refuse_fixed, study_parser, write_text
from inference.files import sha256_of
from inference.options import existing_folder
from scale.output_folder import output_set
from terminal import run_command
from train.network.config import ARCHIVES_MODES
from utils import InputError, format_table, log_summary

#: The training without archives, the base of the comparison.
NONE = "none"
TABLE = "archives.md"


def archive_variants(archives: Path, more: list[str]) -> list[Variant]:
    """Without the archives, then each way to learn from them.

    Raises:
        InputError: ``archives`` is no folder of train.archives.
    """
    table = archives / "train-metadata.csv"
    if not table.is_file():
        raise InputError(f"{archives} has no train-metadata.csv; make it with train.archives.")
    variants = [Variant(NONE, (), {"options": more, "archives": None})]
    request = {"options": more, "archives": sha256_of(table)}
    for mode in ARCHIVES_MODES:
        variants.append(Variant(mode, ("--archives", str(archives), "--archives-mode", mode), request))
    return variants


def main(arguments: list[str] | None = None) -> int:
    """Trains the three variants and writes archives.md."""
    parser = study_parser("Fusion without, pretrained on and trained jointly with ISIC archives -> archives.md")
    parser.add_argument(
        "--archives", type=existing_folder, required=True, metavar="DIR", help="folder written by train.archives"
    )
    options, more = parser.parse_known_args(arguments)
    refuse_fixed(more, ("--archives-mode", "--inputs"))
    study = Study(options.data, options.artifacts, options.out, tuple(more))
    variants = archive_variants(options.archives, more)
    with output_set(study.out, [TABLE], marks=[f"{variants[0].folder(study).name}/{FINISHED}"]) as staging:
        found = compare_networks(study, variants)
        write_text(staging / TABLE, found.as_markdown("archives"))
    gains = ", ".join(f"{mode} {found.gain(mode)}" for mode in ARCHIVES_MODES)
    line = f"{study.out / TABLE}: {found.table.rows:,} lesions; minus {NONE}: {gains} pAUC"
    log_summary(line, format_table(found.table))
    return 0


if __name__ == "__main__":
    run_command(main)
