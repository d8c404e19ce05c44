"""Submits the kernel version that `make push` fetched and checked, and shows its score when Kaggle has computed it.

    python -m kaggle_cli.submit --output kaggle-output --message "fusion, five folds"

Kaggle runs that version again on the hidden test, half a million lesions. Stopping this command does not stop the run;
`--score` lists the submissions without making one.
"""

from __future__ import annotations

import json
from pathlib import Path

from inference.options import Parser, filled_text, output_folder
from inference.submission import COMPETITION
from kaggle_cli import client as cli
from kaggle_cli.failures import explain
from kaggle_cli.push import RECORD, SUBMISSION
from terminal import run_command
from utils import InputError, log, log_summary, print_line

PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/submissions"


def read_record(output: Path) -> tuple[str, int]:
    """Kernel and version that `make push` fetched and checked.

    Raises:
        InputError: there is no such record.
    """
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        return record["kernel"], int(record["version"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{output / RECORD} has no checked kernel version ({error}); run make push first.") from error


def submissions() -> dict[str, dict[str, str]]:
    """The newest submissions by their reference number, newest first."""
    output = cli.call("competitions", "submissions", COMPETITION, "--csv", "--page-size", "50", show=False)
    return {row["ref"]: row | {"status": row["status"].split(".")[-1].lower()} for row in cli.table(output, "ref")}


def one_line(row: dict[str, str]) -> str:
    """One submission in one line."""
    scores = f"public {row['publicScore'] or '-'}, private {row['privateScore'] or '-'}"
    return f"submission {row['ref']} ({row['description']}): {row['status']}, {scores}"


def reason_of(ref: str) -> str:
    """Why Kaggle could not score a submission, in its own words; empty where it leaves that blank or does not answer."""
    try:
        rows = cli.ask(COMPETITION)["submissions"] or []
    except cli.KaggleError as error:
        log(f"(no reason: {error})")
        return ""
    return next((row["reason"].strip() for row in rows if row["ref"] == ref), "")


def wait_for_score(kernel: str, before: set[str], message: str, wait: cli.Wait) -> None:
    """Waits for the score of the kernel's submission with ``message`` that is not among ``before``.

    Raises:
        InputError: Kaggle could not score it, after the likely reasons were shown; or the wait was too short.
    """
    found = {}

    def look() -> str | None:
        new = [row for ref, row in submissions().items() if ref not in before and row["description"] == message]
        if not new:
            return "not listed yet"
        found.update(new[0])
        if found["status"] == "error":
            reason = explain(kernel, reason_of(found["ref"]), is_submission=True)
            raise InputError(f"{one_line(found)} ({reason}); see {PAGE}, correct it and push again.")
        return None if found["status"] == "complete" else found["status"]

    cli.wait_for("score", look, wait, "Kaggle continues; look again with: make score")
    log_summary(one_line(found))


def submit(kernel: str, version: int, message: str, *, dry_run: bool) -> set[str]:
    """Submits a kernel version; returns the reference numbers of earlier submissions.

    Raises:
        InputError: Kaggle takes no submission from this account.
        KaggleError: the CLI failed.
    """
    command = ["competitions", "submit", COMPETITION, "-k", kernel, "-v", str(version), "-f", SUBMISSION, "-m", message]
    log(f"submit {kernel} version {version} to {COMPETITION}; Kaggle runs it again on the hidden test, which may take hours")
    if dry_run:
        log(f"dry run: $ {cli.command_line(*command)}")
        return set()
    try:
        before = set(submissions())
        cli.call(*command)
    except cli.KaggleError as error:
        if error.code == 403:
            page = f"https://www.kaggle.com/competitions/{COMPETITION}"
            raise InputError(
                f"Kaggle takes no submission from this account ({error}); accept the rules, and check whether late "
                f"submissions are open at {page}"
            ) from error
        raise
    return before


def main(arguments: list[str] | None = None) -> int:
    """Submits and waits for the score, or with --score lists the scores."""
    parser = Parser(description="Submits the pushed kernel version and shows its score")
    parser.add_argument("--output", type=output_folder, default=Path("kaggle-output"), metavar="DIR", help="of make push")
    parser.add_argument(
        "--message", type=filled_text, help="description in your list of submissions (default: kernel and version)"
    )
    parser.add_argument("--score", action="store_true", help="submit nothing; list the newest submissions")
    cli.add_options(parser, wait=720, poll=60)
    options = parser.parse_args(arguments)
    if options.score:
        rows = [] if options.dry_run else list(submissions().values())
        print_line("\n".join(one_line(row) for row in rows[:10]) or "no submission yet; next: make submit")
        return 0
    kernel, version = read_record(options.output)
    message = options.message or f"{kernel} version {version}"
    before = submit(kernel, version, message, dry_run=options.dry_run)
    if not options.dry_run:
        wait_for_score(kernel, before, message, cli.Wait(options.poll, options.wait))
    return 0


if __name__ == "__main__":
    run_command(main)
