"""The whole main path by one command: folds, CatBoost, networks, kernel, dry run. What is unchanged is skipped.

    python -m evaluation.main_path --data data/isic-2024-challenge --artifacts artifacts --plan
    python -m evaluation.main_path --data data/isic-2024-challenge --artifacts artifacts

Each stage is a command that can be run by itself; this one runs them in order and says how long each took and what is where.
The same command continues after an interruption, within a stage too.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.main_path.plan import make_plan, plan_lines
from evaluation.main_path.stages import STAGES, WITH_OPTIONS, MainPath, run_stages
from evaluation.main_path.summary import closing_lines
from inference.options import Parser, existing_folder, output_folder, shell_words
from terminal import run_command
from train.network.config import MAIN_PATH_NETWORK, parse_fusion_options
from utils import InputError, log, log_summary


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages and prints the closing summary; or with --plan, what they will take."""
    path, only_plan = read_options(arguments)
    if only_plan:
        for line in plan_lines(make_plan(path), path.artifacts):
            log(line)
        return 0
    outcomes = run_stages(path)
    *lines, last = closing_lines(path, outcomes)
    for line in lines:
        log(line)
    log_summary(last)
    return 0


def read_options(arguments: list[str] | None) -> tuple[MainPath, bool]:
    """The run that a command line asks for, and whether only its plan is to be printed.

    Raises:
        InputError: an option cannot be used, also one of the networks: not only after hours of the stages before.
    """
    parser = Parser(description="Folds, CatBoost, networks, kernel, dry run: what is unchanged is skipped")
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument(
        "--artifacts", type=output_folder, default=Path("artifacts"), metavar="DIR", help="artifact folder (%(default)s)"
    )
    parser.add_argument("--report", type=output_folder, metavar="DIR", help="of the dry run (default: ARTIFACTS-report)")
    parser.add_argument("--plan", action="store_true", help="run nothing; measure, and print what each stage will take")
    parser.add_argument("--replace", action="store_true", help="drop what is out of date, networks too, and train again")
    group = parser.add_argument_group("options of the stages, each as one argument")
    for stage in WITH_OPTIONS:
        several = "; once for each network" if stage == "fusion" else ""
        group.add_argument(
            f"--{stage}", type=shell_words, action="append", metavar="'OPTIONS'", help=f"of {STAGES[stage]}{several}"
        )
    options = parser.parse_args(arguments)
    if not (options.data / "train-metadata.csv").is_file():
        raise InputError(f"{options.data} has no train-metadata.csv; give a competition folder, or fetch it by make data.")
    artifacts = options.artifacts.resolve() if options.artifacts.name in ("", "..") else options.artifacts
    report = options.report or artifacts.with_name(f"{artifacts.name}-report")
    given = {stage: getattr(options, stage) or [] for stage in WITH_OPTIONS}
    given["fusion"] = given["fusion"] or [MAIN_PATH_NETWORK]
    for words in given["fusion"]:
        parse_fusion_options(["--data", str(options.data), "--artifacts", str(artifacts), *words])
    return MainPath(options.data, artifacts, report, given, options.replace), options.plan


if __name__ == "__main__":
    run_command(main)
