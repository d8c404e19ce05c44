"""Shows on one screen where things stand on Kaggle: dataset versions, kernels, submissions, what is left, the next step.

    python -m kaggle_cli.status --output kaggle-output

It changes nothing, here or on Kaggle, and waits for nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.options import Parser, output_folder
from inference.submission import COMPETITION
from kaggle_cli import client, kernels
from kaggle_cli.submit import read_record
from kaggle_cli.train_remote import training_kernel
from terminal import run_command
from utils import InputError, print_line

#: Lines of versions and of submissions.
MOST = 4
#: Parts of a training that are looked for.
PARTS = 3


def lines_of_dataset(dataset: dict[str, Any] | None) -> list[str]:
    """State, and the newest versions."""
    if not dataset:
        return ["none"]
    versions = [f"version {number}, {date}: {notes}" for number, date, notes in dataset["versions"][:MOST]]
    return [f"{dataset['name']}: {dataset['state']}, version {dataset['version']}", *versions]


def line_of_kernel(kernel: dict[str, Any]) -> str:
    """State, version, last run, inputs."""
    message = f" ({kernel['message']})" if kernel["message"] else ""
    inputs = f", inputs {', '.join(kernel['inputs'])}" if kernel["inputs"] else ""
    return f"{kernel['name']}: {kernel['state']}{message}, version {kernel['version']}, run {kernel['last_run']}{inputs}"


def line_of_submission(row: dict[str, Any]) -> str:
    """State, scores, and the reason of a failure where Kaggle gives one."""
    reason = f" ({row['reason'] or 'Kaggle gives no reason'})" if row["status"] == "error" else ""
    scores = f"public {row['public'] or '-'}, private {row['private'] or '-'}"
    return f"{row['ref']}, {row['date']} ({row['description']}): {row['status']}{' '.join(reason.splitlines())}, {scores}"


def line_of_allowance(left: dict[str, Any]) -> str:
    """What may still be submitted today and run this week."""
    parts = []
    if left["submissions"] is not None:
        parts.append(f"{left['submissions']} submissions today")
    if left["gpu_hours"]:
        rest, total = left["gpu_hours"]
        parts.append(f"{rest:.1f} of {total:.1f} GPU hours until {left['reset']}")
    return ", ".join(parts) or "not known"


def checked_version(output: Path) -> tuple[str, int] | None:
    """Kernel and version that `make push` has checked last; None if none."""
    try:
        return read_record(output)
    except InputError:
        return None


def next_step(state: dict[str, Any], submission_kernel: str, checked: tuple[str, int] | None) -> str:
    """The make target that comes next.

    Args:
        state: as ``api.main`` prints it.
        submission_kernel: slug of the submission kernel.
        checked: kernel and version that was checked.
    """
    dataset = state["dataset"]
    kernel = next((each for each in state["kernels"] if each["name"].endswith(f"/{submission_kernel}")), None)
    if kernel is None:
        return "make push" if dataset and dataset["state"] == "ready" else "make publish"
    this = (kernel["name"], kernel["version"])
    fetch = f'make push OPTIONS="--fetch {kernel["version"]}"'
    if kernel["state"] in kernels.FAILED:
        return f"{fetch} shows the log; correct the cause, then make push"
    if kernel["state"] != kernels.DONE or checked != this:
        return fetch
    rows = [row for row in state["submissions"] or [] if row["description"] == f"{this[0]} version {this[1]}"]
    if not rows:
        return "make submit"
    return "make score" if rows[0]["status"] == "pending" else "nothing: the newest version is submitted"


def screen(state: dict[str, Any], submission_kernel: str, checked: tuple[str, int] | None) -> str:
    """The screen's text; the kernel that ran last comes first."""
    ran = sorted(state["kernels"], key=lambda each: each["last_run"], reverse=True)
    sections = {
        "account": [state["owner"]],
        "dataset": lines_of_dataset(state["dataset"]),
        "kernels": [line_of_kernel(each) for each in ran] or ["none"],
        "checked": [f"{checked[0]} version {checked[1]}" if checked else "none"],
        "submissions": [line_of_submission(row) for row in (state["submissions"] or [])[:MOST]] or ["none"],
        "left": [line_of_allowance(state["allowance"])],
        "next": [next_step(state, submission_kernel, checked)],
    }
    return "\n".join(
        f"{title if number == 0 else '':<12} {line}"
        for title, lines in sections.items()
        for number, line in enumerate(lines)
    )


def main(arguments: list[str] | None = None) -> int:
    """Asks Kaggle and prints the screen."""
    parser = Parser(description="Shows on one screen where things stand on Kaggle")
    parser.add_argument("--output", type=output_folder, default=Path("kaggle-output"), metavar="DIR", help="of make push")
    options = parser.parse_args(arguments)
    submission_kernel = kernels.read_metadata().id.split("/")[1]
    trainings = [training_kernel(part) for part in range(1, PARTS + 1)]
    state = client.ask(COMPETITION, kernels.dataset_slug(), submission_kernel, *trainings)
    print_line(screen(state, submission_kernel, checked_version(options.output)))
    return 0


if __name__ == "__main__":
    run_command(main)
