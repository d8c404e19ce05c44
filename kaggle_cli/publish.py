"""Publishes the artifact folder as a private Kaggle dataset: created the first time, a new version after that.

    python -m kaggle_cli.publish --artifacts artifacts

Only what the manifest names is sent, after every file was compared with its SHA-256, from a staging folder of links. A
publish that failed can simply be run again: files that arrived are not sent twice, and a version that is already there and
whole is recognised by its manifest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.artifacts import MANIFEST, Manifest, checked_file, load_manifest
from inference.files import sha256_of
from kaggle_cli import client as cli
from kaggle_cli.kernels import dataset_slug
from utils import InputError, log, run_command

TITLE = "SLICE-3D fusion artifacts"
#: What models trained on SLICE-3D are best treated as (README, Data).
LICENCE = "CC-BY-NC-4.0"
METADATA = "dataset-metadata.json"
#: What an artifact folder may hold; nothing of these runs code when it is opened.
SUFFIXES = (".cbm", ".weights.h5", ".csv", ".json")
READY, FAILED = "ready", ("failed", "deleted")


@dataclass(frozen=True)
class Published:
    """A dataset as Kaggle tells it."""

    state: str
    version: int


def checked_artifacts(folder: Path) -> tuple[Manifest, list[str]]:
    """The manifest, and the names of the files to publish, all of them compared with their SHA-256.

    Raises:
        InputError: the manifest or a file does not check out, or a name could not be published as it is.
    """
    manifest = load_manifest(folder)
    names = sorted(manifest.get("files", {}))
    if "tabular" not in manifest:
        raise InputError(f"{folder / MANIFEST} has no tabular models, so no kernel could use it; run train.tabular.")
    for name in names:
        if Path(name).name != name or name == MANIFEST or not name.endswith(SUFFIXES) or name.endswith("-metadata.json"):
            raise InputError(f"{folder / MANIFEST} names {name!r}; artifacts lie flat and end in {', '.join(SUFFIXES)}.")
        checked_file(folder, manifest, name)
    return manifest, names


def notes_of(manifest: Manifest, folder: Path) -> str:
    """What the dataset's list of versions says of this one."""
    scores = [
        f"{stage} pAUC {manifest[stage]['scores']['pauc']:.4f}" for stage in ("tabular", "network") if stage in manifest
    ]
    return f"manifest {sha256_of(folder / MANIFEST)[:12]}, out of fold: {', '.join(scores)}"


@contextmanager
def staged(folder: Path, names: list[str], dataset: str) -> Iterator[Path]:
    """A folder of links to what is published, and the dataset's metadata; removed afterwards.

    Its path is the same every time: by path, size and time the CLI recognises a file whose upload was interrupted.
    """
    staging = Path(tempfile.gettempdir()) / f"kaggle-publish-{sha256_of(folder / MANIFEST)[:16]}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        for name in [*names, MANIFEST]:
            (staging / name).symlink_to((folder / name).resolve())
        content = {"title": TITLE, "id": dataset, "licenses": [{"name": LICENCE}]}
        (staging / METADATA).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        yield staging
    finally:
        shutil.rmtree(staging)


def look_up(dataset: str) -> Published | None:
    """State and version of the dataset; None where this user has none of that name."""
    try:
        output = cli.call("datasets", "status", dataset, "--format", "json", show=False)
    except cli.KaggleError as error:
        if error.code in (403, 404):  # which of them differs: Kaggle does not tell what is private to others
            return None
        raise
    try:
        told = json.loads(output[output.index("{") :])
        return Published(str(told["status"]), int(told["current_version_number"] or 0))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"`kaggle datasets status {dataset}` said {cli.last_line(output)!r}; run the same again."
        ) from error


def wait_until_ready(dataset: str, newer_than: int, options: argparse.Namespace) -> int:
    """Waits until Kaggle has processed a version newer than ``newer_than``; returns its number.

    Raises:
        InputError: Kaggle could not process it, or ``--wait`` is over.
    """
    seen = []

    def look() -> str | None:
        found = look_up(dataset)
        if found is None:
            return "not listed yet"
        if found.state in FAILED:
            raise InputError(
                f"Kaggle ended with {found.state!r} for {dataset}; look at https://www.kaggle.com/datasets/{dataset}"
            )
        seen.append(found.version)
        return None if found.state == READY and found.version > newer_than else f"{found.state}, version {found.version}"

    cli.wait_for(f"dataset {dataset}", look, options, "run make publish again, it goes on waiting")
    return seen[-1]


def missing_there(dataset: str, folder: Path, names: list[str]) -> list[str]:
    """Which of ``names`` the dataset lacks; a size that differs is told, because Kaggle may count packed bytes."""
    output = cli.call("datasets", "files", dataset, "--csv", "--page-size", "200", show=False)
    sizes = {row["name"]: int(row["size"]) for row in cli.table(output, "name")}
    for name in names:
        here = (folder / name).stat().st_size
        if sizes.get(name, here) != here:
            log(f"note: Kaggle lists {name} with {sizes[name]:,} bytes, here it has {here:,}; the kernel compares SHA-256")
    return [name for name in names if name not in sizes]


def is_published(dataset: str, folder: Path, names: list[str]) -> bool:
    """Whether the dataset's current version holds this very manifest, and every file that it names."""
    with tempfile.TemporaryDirectory(prefix="kaggle-manifest-") as there:
        try:
            cli.call("datasets", "download", dataset, "-f", MANIFEST, "-p", there, "-o", "-q", show=False)
        except cli.KaggleError as error:
            if error.code == 404:
                return False
            raise
        copy = Path(there) / MANIFEST
        same = copy.is_file() and copy.read_bytes() == (folder / MANIFEST).read_bytes()
    return same and not missing_there(dataset, folder, names)


def main(arguments: list[str] | None = None) -> int:
    """Checks, sends, waits, checks what is there."""
    parser = argparse.ArgumentParser(description="Publishes the artifact folder as a private Kaggle dataset")
    parser.add_argument("--artifacts", type=Path, required=True, metavar="DIR", help="artifact folder to publish")
    cli.add_options(parser, wait=60)
    options = parser.parse_args(arguments)
    folder = options.artifacts
    manifest, names = checked_artifacts(folder)
    dataset = f"{cli.user_name(options.dry_run)}/{dataset_slug()}"
    megabytes = sum((folder / name).stat().st_size for name in [*names, MANIFEST]) / 1e6
    log(f"publish {folder} as the private dataset {dataset}: {len(names) + 1} files, {megabytes:,.1f} MB, all as manifested")
    if "network" not in manifest:
        log("note: there is no network among the artifacts; the kernel will score by metadata alone (run train.fusion)")
    if options.dry_run:
        log("\n".join(f"  {name}" for name in [*names, MANIFEST]))
        log(f"$ {cli.command_line('datasets', 'create', '-p', 'STAGING', '-t')}   # the first time; after that:")
        log(f"$ {cli.command_line('datasets', 'version', '-p', 'STAGING', '-t', '-m', notes_of(manifest, folder))}")
        return 0
    before = look_up(dataset)
    if before and before.state not in (READY, *FAILED):
        log("an earlier version is still being processed")
        before = Published(READY, wait_until_ready(dataset, 0, options))
    if before and before.state == READY and is_published(dataset, folder, [*names, MANIFEST]):
        log(f"{dataset} version {before.version} holds these very artifacts already; next: make push")
        return 0
    with staged(folder, names, dataset) as staging:
        if before is None:
            output = cli.call("datasets", "create", "-p", staging, "-t")
        else:
            output = cli.call("datasets", "version", "-p", staging, "-t", "-m", notes_of(manifest, folder))
    if "being created" not in output:
        raise InputError(f"the CLI did not say that {dataset} is being created ({cli.last_line(output)!r}); run it again.")
    version = wait_until_ready(dataset, before.version if before else 0, options)
    missing = missing_there(dataset, folder, [*names, MANIFEST])
    if missing:
        raise InputError(f"{dataset} version {version} lacks {', '.join(missing)}; run make publish again.")
    log(f"{dataset} version {version}: {len(names) + 1} files; next: make push")
    return 0


if __name__ == "__main__":
    run_command(main)
