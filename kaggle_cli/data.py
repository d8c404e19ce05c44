"""Downloads the competition's files into the folder that training reads.

    python -m kaggle_cli.data --data data/isic-2024-challenge

Five files, one by one: the archive of the whole competition holds every crop twice, as a JPEG and inside the HDF5 file. A
download that was interrupted goes on where it stopped, a file that is there in full stays. A file appears under its name
only when it is whole.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path

import h5py
import pandas as pd

from inference.schema import ID
from inference.submission import COMPETITION, SAMPLE, TEST_METADATA
from kaggle_cli import client as cli
from utils import InputError, log, run_command

RULES = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
TRAIN = ("train-metadata.csv", "train-image.hdf5")
TEST = (TEST_METADATA, "test-image.hdf5")
#: Small ones first: rules that were not accepted are told before a gigabyte is waited for.
FILES = (SAMPLE, *TEST, *TRAIN)
#: The competition lists its 401,059 JPEG files too, 200 on a page. What is not on the first pages has no listed size.
PAGES = 3
#: Where the CLI downloads to, below the data folder; it keeps there what it needs to go on after an interruption.
UNFINISHED = ".unfinished-download"


def listed_sizes() -> dict[str, int]:
    """Name -> bytes of the competition's files on the first pages of its list."""
    sizes, token = {}, []
    for _ in range(PAGES):
        output = cli.call("competitions", "files", COMPETITION, "--csv", "--page-size", "200", *token, show=False)
        sizes |= {row["name"]: int(row["size"]) for row in cli.table(output, "name")}
        more = re.search(r"^Next Page Token = (\S+)", output, re.MULTILINE)
        if not more or set(FILES) <= set(sizes):
            break
        token = ["--page-token", more[1]]
    return {name: sizes[name] for name in FILES if name in sizes}


def is_whole(path: Path, size: int | None) -> bool:
    """Whether a file is there with the listed size; without a listed size, whether it is there: only whole ones are."""
    return path.is_file() and size in (None, path.stat().st_size)


def download_command(name: str, folder: Path) -> list[str]:
    """The CLI's arguments for one file."""
    return ["competitions", "download", COMPETITION, "-f", name, "-p", str(folder)]


def fetch(name: str, data: Path, size: int | None) -> None:
    """Downloads one file, unpacks it if it comes packed, checks its size, and puts it in its place.

    Raises:
        InputError: what came is not the file.
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
        raise InputError(f"{packed.name} came broken ({error}) and was removed; run make data again.") from error
    if not plain.is_file():
        raise InputError(f"the CLI said nothing was wrong and left no {name} in {unfinished}; run make data again.")
    if not is_whole(plain, size):
        found = plain.stat().st_size
        plain.unlink()
        raise InputError(f"{name} came with {found:,} bytes, Kaggle lists {size:,}; it was removed, run make data again.")
    plain.replace(data / name)


def checked(data: Path) -> str:
    """Opens the files and says what they hold.

    Raises:
        InputError: one cannot be read, or images and metadata are of different lesions.
    """
    parts = []
    for metadata, images in (TRAIN, TEST):
        try:
            rows = len(pd.read_csv(data / metadata, usecols=[ID]))
            with h5py.File(data / images) as file:
                crops = len(file)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{data}/{metadata} or {images} cannot be read ({error}); remove both, run make data."
            ) from error
        if rows != crops:
            raise InputError(
                f"{data}/{metadata} has {rows:,} lesions and {images} {crops:,} images; remove both and run make data again."
            )
        parts.append(f"{rows:,} {metadata.split('-')[0]} lesions with their image")
    return ", ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Downloads what is missing, checks all."""
    parser = argparse.ArgumentParser(description="Downloads the competition's files with the Kaggle CLI")
    parser.add_argument("--data", type=Path, default=Path("data") / COMPETITION, metavar="DIR", help="into (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    options = parser.parse_args(arguments)
    if options.dry_run:
        log(f"dry run: nothing is fetched; into {options.data} these would be, unless they are there:")
        for name in FILES:
            log(f"$ {cli.command_line(*download_command(name, options.data / UNFINISHED))}")
        return 0
    log(f"into {options.data}: {', '.join(FILES)}; the competition's rules must have been accepted at {RULES}")
    try:
        sizes = listed_sizes()
        for name in FILES:
            size = sizes.get(name)
            told = f"{size:,} bytes" if size is not None else "size not among the first listed, checked by the CLI alone"
            if is_whole(options.data / name, size):
                log(f"{name}: is there ({told})")
            else:
                log(f"{name}: {told}")
                fetch(name, options.data, size)
    except cli.KaggleError as error:
        if error.code == 403:
            raise InputError(f"accept the competition's rules at {RULES}, then run make data again ({error})") from error
        raise
    if (options.data / UNFINISHED).is_dir():
        for left in (options.data / UNFINISHED).iterdir():
            left.unlink()
        (options.data / UNFINISHED).rmdir()
    log(f"{options.data}: {checked(options.data)}; next: python -m train.folds --data {options.data} --artifacts artifacts")
    return 0


if __name__ == "__main__":
    run_command(main)
