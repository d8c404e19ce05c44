"""Downloads the competition's files into the folder that training reads.

    python -m kaggle_cli.data --data data/isic-2024-challenge

Five files, one by one: the zip of the whole competition holds every crop twice, as a JPEG and inside the HDF5 file. An
interrupted download continues where it stopped, a complete file is kept. A file gets its name only when it is complete.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import h5py

from inference.options import Parser, output_folder
from inference.schema import read_scores
from inference.submission import COMPETITION, SAMPLE, TEST_METADATA
from inference.tables import id_mismatch
from kaggle_cli import client as cli
from scale.artifact_folder import locked
from terminal import run_command
from utils import InputError, log, log_summary

RULES = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
TRAIN = ("train-metadata.csv", "train-image.hdf5")
TEST = (TEST_METADATA, "test-image.hdf5")
#: Small ones first: rules that were not accepted are an error before a gigabyte is downloaded.
FILES = (SAMPLE, *TEST, *TRAIN)
#: The competition lists its 401,059 JPEG files too, 200 on a page. A file that is not on the first pages has no listed size.
PAGES = 3
#: Where the CLI downloads to, below the data folder; it keeps there what it needs to continue after an interruption.
UNFINISHED = ".unfinished-download"


def listed_sizes() -> dict[str, int]:
    """Name -> bytes of the competition's files on the first pages of its list."""
    sizes: dict[str, int] = {}
    token: list[str] = []
    for _ in range(PAGES):
        output = cli.call("competitions", "files", COMPETITION, "--csv", "--page-size", "200", *token, show=False)
        sizes |= {row["name"]: int(row["size"]) for row in cli.table(output, "name")}
        more = re.search(r"^Next Page Token = (\S+)", output, re.MULTILINE)
        if not more or set(FILES) <= set(sizes):
            break
        token = ["--page-token", more[1]]
    return {name: sizes[name] for name in FILES if name in sizes}


def is_complete(path: Path, size: int | None) -> bool:
    """Whether a file has the listed size; without a listed size, whether it exists: only complete ones do."""
    return path.is_file() and size in (None, path.stat().st_size)


def download_command(name: str, folder: Path) -> list[str]:
    """The CLI's arguments for one file."""
    return ["competitions", "download", COMPETITION, "-f", name, "-p", str(folder)]


def fetch(name: str, data: Path, size: int | None) -> None:
    """Downloads one file, unpacks it if it is a zip, checks its size, and moves it to its place.

    Raises:
        InputError: the download is broken, missing or of another size.
        KaggleError: the CLI failed.
    """
    unfinished = data / UNFINISHED
    packed, plain = unfinished / f"{name}.zip", unfinished / name
    try:
        cli.call(*download_command(name, unfinished))
        if packed.is_file():
            with zipfile.ZipFile(packed) as archive:
                archive.extract(name, unfinished)  # compares checksums
            packed.unlink()
    except (zipfile.BadZipFile, KeyError) as error:
        packed.unlink()
        raise InputError(f"{packed.name} is broken ({error}) and was removed; run make data again.") from error
    if not plain.is_file():
        raise InputError(f"the CLI reported no error and left no {name} in {unfinished}; run make data again.")
    if not is_complete(plain, size):
        found = plain.stat().st_size
        plain.unlink()
        raise InputError(f"{name} has {found:,} bytes, Kaggle lists {size:,}; it was removed, run make data again.")
    plain.replace(data / name)


def check_files(data: Path) -> str:
    """Opens the files and compares them; returns their numbers of lesions.

    Raises:
        InputError: one cannot be read, or images and metadata are of different lesions.
    """
    parts = []
    for metadata, images in (TRAIN, TEST):
        try:
            rows = read_scores(data / metadata, []).index
            with h5py.File(data / images) as file:
                crops = list(file)
        except (OSError, ValueError) as error:
            names = f"{data}/{metadata} or {images}"
            raise InputError(f"{names} cannot be read ({error}); remove both, run make data.") from error
        if set(rows) != set(crops):
            differ = id_mismatch(f"{data}/{metadata}", rows, images, crops)
            raise InputError(f"{differ}; remove both and run make data again.")
        parts.append(f"{len(rows):,} {metadata.split('-')[0]} lesions with their image")
    return ", ".join(parts)


def download(data: Path) -> None:
    """Downloads the files that are missing or incomplete."""
    try:
        sizes = listed_sizes()
        for name in FILES:
            size = sizes.get(name)
            shown = f"{size:,} bytes" if size is not None else "size not listed, checked by the CLI alone"
            if is_complete(data / name, size):
                log(f"{name}: complete ({shown})")
            else:
                log(f"{name}: {shown}")
                fetch(name, data, size)
    except cli.KaggleError as error:
        if error.code == 403:
            raise InputError(f"accept the competition's rules at {RULES}, then run make data again ({error})") from error
        raise
    shutil.rmtree(data / UNFINISHED, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Downloads the missing files and checks all of them."""
    parser = Parser(description="Downloads the competition's files with the Kaggle CLI")
    parser.add_argument(
        "--data", type=output_folder, default=Path("data") / COMPETITION, metavar="DIR", help="into (%(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    options = parser.parse_args(arguments)
    if options.dry_run:
        log(f"dry run: nothing is fetched; the downloads into {options.data}, unless the files are there:")
        for name in FILES:
            log(f"$ {cli.command_line(*download_command(name, options.data / UNFINISHED))}")
        return 0
    log(f"into {options.data}: {', '.join(FILES)}; the competition's rules must have been accepted at {RULES}")
    with locked(options.data):
        download(options.data)
        checked = check_files(options.data)
    log_summary(f"{options.data}: {checked}; next: python -m train.folds --data {options.data} --artifacts artifacts")
    return 0


if __name__ == "__main__":
    run_command(main)
