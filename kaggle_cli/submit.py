"""Submits the kernel version that `make push` fetched and checked, and shows its score when Kaggle gives it.

    python -m kaggle_cli.submit --output kaggle-output --message "fusion, five folds"

Kaggle runs that version again on the hidden test: about as long as half a million lesions take. Stopping this command stops
nothing there; `--score` looks at the submissions without making one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from inference.submission import COMPETITION
from kaggle_cli import client as cli
from kaggle_cli.push import RECORD, SUBMISSION
from utils import InputError, log, run_command

PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/submissions"


def read_record(output: Path) -> tuple[str, int]:
    """Kernel and version that `make push` fetched and found good.

    Raises:
        InputError: there is no such record.
    """
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        return record["kernel"], int(record["version"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{output / RECORD} tells no checked kernel version ({error}); run make push first.") from error


def submissions() -> dict[str, dict[str, str]]:
    """The newest submissions by their reference number, newest first."""
    output = cli.call("competitions", "submissions", COMPETITION, "--csv", "--page-size", "50", show=False)
    return {row["ref"]: row | {"status": row["status"].split(".")[-1].lower()} for row in cli.table(output, "ref")}


def told(row: dict[str, str]) -> str:
    """One submission in one line."""
    scores = ", ".join(
        f"{name} {row[field] or '-'}" for name, field in (("public", "publicScore"), ("private", "privateScore"))
    )
    return f"submission {row['ref']} ({row['description']}): {row['status']}, {scores}"


def wait_for_score(before: set[str], message: str, options: argparse.Namespace) -> None:
    """Waits for the score of the submission with ``message`` that is not among ``before``.

    Raises:
        InputError: Kaggle could not score it, or ``--wait`` is over.
    """
    mine = {}

    def look() -> str | None:
        new = [row for ref, row in submissions().items() if ref not in before and row["description"] == message]
        if not new:
            return "not listed yet"
        mine.update(new[0])
        if mine["status"] == "error":
            raise InputError(f"{told(mine)}; the reason stands at {PAGE}, mend it and push again.")
        return None if mine["status"] == "complete" else mine["status"]

    cli.wait_for("score", look, options, "it goes on there; look again with: make score")
    log(told(mine))


def main(arguments: list[str] | None = None) -> int:
    """Submits and waits for the score, or with --score lists the scores."""
    parser = argparse.ArgumentParser(description="Submits the pushed kernel version and shows its score")
    parser.add_argument("--output", type=Path, default=Path("kaggle-output"), metavar="DIR", help="of make push")
    parser.add_argument("--message", help="what your list of submissions says (default: kernel and version)")
    parser.add_argument("--score", action="store_true", help="submit nothing; list the newest submissions")
    cli.add_options(parser, wait=720, poll=60)
    options = parser.parse_args(arguments)
    if options.score:
        rows = [] if options.dry_run else list(submissions().values())
        log("\n".join(told(row) for row in rows[:10]) or "no submission yet; next: make submit")
        return 0
    kernel, version = read_record(options.output)
    message = options.message or f"{kernel} version {version}"
    command = ["competitions", "submit", COMPETITION, "-k", kernel, "-v", str(version), "-f", SUBMISSION, "-m", message]
    log(f"submit {kernel} version {version} to {COMPETITION}; Kaggle runs it again on the hidden test, which may take hours")
    if options.dry_run:
        log(f"dry run: $ {cli.command_line(*command)}")
        return 0
    try:
        before = set(submissions())
        cli.call(*command)
    except cli.KaggleError as error:
        if error.code == 403:
            raise InputError(
                f"Kaggle takes no submission from this account ({error}); accept the rules and see whether late "
                f"submissions are open at https://www.kaggle.com/competitions/{COMPETITION}"
            ) from error
        raise
    wait_for_score(before, message, options)
    return 0


if __name__ == "__main__":
    run_command(main)
