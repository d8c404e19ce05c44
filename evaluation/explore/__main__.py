"""One page about a competition folder: what it holds, which columns separate malignant lesions, and what is wrong with it.

    python -m evaluation.explore --data data/isic-2024-challenge --out exploration

Writes index.html, which needs nothing beside it. Any folder in the competition's layout will do: without a test split,
without the columns of the body scan, with images for some lesions or for none.
"""

from __future__ import annotations

from pathlib import Path

from evaluation.explore.folder import read_folder
from evaluation.explore.page import Exploration, page_content
from evaluation.explore.tables import correlations, single_columns
from evaluation.explore.warnings import find_warnings
from evaluation.html import write_page
from inference.options import Parser, add_seed_option, existing_folder, output_folder
from scale.output_folder import output_set
from terminal import run_command
from utils import log_summary

PAGE, TITLE = "index.html", "Exploration: "


def main(arguments: list[str] | None = None) -> int:
    """Writes the page."""
    description = "A competition folder at a glance -> index.html, a page without a server"
    parser = Parser(prog="python -m evaluation.explore", description=description)
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="competition folder to read")
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help=f"folder for {PAGE}")
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    with output_set(options.out, [PAGE], title=TITLE) as staging:
        exploration = explore(options.data)
        content = page_content(exploration, options.seed)
        write_page(staging / PAGE, "explore.html", title=f"{TITLE}{options.data.resolve().name}", **content)
    usable = exploration.single[exploration.single["usable"]]
    best = f"; strongest column {usable['column'].iloc[0]}, pAUC {usable['pauc'].iloc[0]:.4f}" if len(usable) else ""
    log_summary(
        f"{options.out / PAGE}: {content['lesions']:,} lesions of {content['patients']:,} patients, "
        f"{content['malignant']:,} malignant; "
        f"{len(exploration.findings)} warnings{best}"
    )
    return 0


def explore(data: Path) -> Exploration:
    """Reads a competition folder and computes what its page shows.

    Raises:
        InputError: as ``read_folder``.
    """
    folder = read_folder(data)
    single, rho = single_columns(folder.train), correlations(folder.train)
    return Exploration(folder, single, rho, find_warnings(folder, single, rho))


if __name__ == "__main__":
    run_command(main)
