"""Publishes the artifact folder as a private Kaggle dataset: created the first time, a new version after that.

    python -m kaggle_cli.publish --artifacts artifacts

Only the files that the manifest names are sent, after each was compared with its SHA-256, from a staging folder of links. A
publish that failed can be run again: files that arrived are not sent twice, and a version that is complete on Kaggle is
recognised by its manifest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference.artifacts import MANIFEST, Manifest, artifact_path, checked_file, last_stage, load_manifest
from inference.files import sha256_of
from inference.options import Parser, existing_folder
from kaggle_cli import client as cli
from kaggle_cli.kernels import dataset_slug
from scale.artifact_folder import locked
from terminal import run_command
from utils import InputError, log, log_summary

TITLE = "SLICE-3D fusion artifacts"
#: The licence of SLICE-3D, whose models these are.
LICENCE = "CC-BY-NC-4.0"
METADATA = "dataset-metadata.json"
#: What an artifact folder may hold; none of these runs code when it is opened.
SUFFIXES = (".cbm", ".weights.h5", ".csv", ".json")
READY, FAILED = "ready", ("failed", "deleted")


@dataclass(frozen=True)
class Published:
    """State and newest version of a dataset on Kaggle."""

    state: str
    version: int


def checked_artifacts(folder: Path) -> tuple[Manifest, list[str]]:
    """The manifest, and the names of the files to publish, all of them compared with their SHA-256.

    Raises:
        InputError: the manifest or a file is not as trained, or a name cannot be published.
    """
    manifest = load_manifest(folder)
    names = sorted(manifest.get("files", {}))
    if "tabular" not in manifest:
        raise InputError(f"{folder / MANIFEST} has no tabular models, so no kernel could use it; run train.tabular.")
    for name in names:
        if Path(name).name != name or name == MANIFEST or not name.endswith(SUFFIXES) or name.endswith("-metadata.json"):
            raise InputError(f"{folder / MANIFEST} names {name!r}; artifacts lie flat and end in {', '.join(SUFFIXES)}.")
        checked_file(folder, manifest, name)
    return manifest, [*names, MANIFEST]


def version_notes(manifest: Manifest, folder: Path) -> str:
    """The notes of this version in the dataset's list of versions."""
    scores = [f"tabular pAUC {manifest['tabular']['scores']['pauc']:.4f}"]
    if last := last_stage(manifest):
        scores.append(f"final pAUC {last['scores']['final']['pauc']:.4f}")
    return f"manifest {sha256_of(artifact_path(folder, MANIFEST))[:12]}, out of fold: {', '.join(scores)}"


@contextmanager
def staged(folder: Path, names: list[str], dataset: str) -> Iterator[Path]:
    """A folder of links to the files, and the dataset's metadata; removed afterwards.

    Its path is the same every time for the same content of the same folder: by path, size and time the CLI recognises
    a file whose upload was interrupted.

    Raises:
        InputError: another process is publishing the same content of the same folder.
    """
    key = hashlib.sha256(f"{folder.resolve()}\0{sha256_of(artifact_path(folder, MANIFEST))}".encode()).hexdigest()
    with locked(Path(tempfile.gettempdir()) / f"kaggle-publish-{key[:16]}") as parent:
        staging = parent / "files"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            for name in names:
                (staging / name).symlink_to(artifact_path(folder, name).resolve())
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
        if error.code in (403, 404):  # Kaggle answers 403 for a private dataset and for one that does not exist
            return None
        raise
    try:
        status = json.loads(output[output.index("{") :])
        return Published(str(status["status"]), int(status["current_version_number"] or 0))
    except (ValueError, KeyError, TypeError) as error:
        printed = cli.last_line(output)
        raise InputError(f"`kaggle datasets status {dataset}` printed {printed!r}; run the same again.") from error


def wait_until_ready(dataset: str, newer_than: int, wait: cli.Wait) -> int:
    """Waits until Kaggle has processed a version newer than ``newer_than``; returns its number.

    Raises:
        InputError: Kaggle could not process it, or the wait was too short.
    """
    found: Published | None = None

    def look() -> str | None:
        nonlocal found
        found = look_up(dataset)
        if found is None:
            return "not listed yet"
        if found.state in FAILED:
            page = f"https://www.kaggle.com/datasets/{dataset}"
            raise InputError(f"Kaggle ended with {found.state!r} for {dataset}; look at {page}")
        return None if found.state == READY and found.version > newer_than else f"{found.state}, version {found.version}"

    cli.wait_for(f"dataset {dataset}", look, wait, "run make publish again, it continues to wait")
    assert found
    return found.version


def missing_on_kaggle(dataset: str, folder: Path, names: list[str]) -> list[str]:
    """Which of ``names`` the dataset lacks; a different size is only logged, because Kaggle may count packed bytes."""
    output = cli.call("datasets", "files", dataset, "--csv", "--page-size", "200", show=False)
    sizes = {row["name"]: int(row["size"]) for row in cli.table(output, "name")}
    for name in names:
        here = artifact_path(folder, name).stat().st_size
        if sizes.get(name, here) != here:
            log(f"note: Kaggle lists {name} with {sizes[name]:,} bytes, here it has {here:,}; the kernel compares SHA-256")
    return [name for name in names if name not in sizes]


def is_published(dataset: str, folder: Path, names: list[str]) -> bool:
    """Whether the dataset's current version holds this manifest, and every file that it names."""
    with tempfile.TemporaryDirectory(prefix="kaggle-manifest-") as fetched:
        try:
            cli.call("datasets", "download", dataset, "-f", MANIFEST, "-p", fetched, "-o", "-q", show=False)
        except cli.KaggleError as error:
            if error.code == 404:
                return False
            raise
        copy = Path(fetched) / MANIFEST
        same = copy.is_file() and copy.read_bytes() == artifact_path(folder, MANIFEST).read_bytes()
    return same and not missing_on_kaggle(dataset, folder, names)


def publish(dataset: str, folder: Path, names: list[str], notes: str, wait: cli.Wait) -> None:
    """Sends the files as a new dataset or a new version, unless Kaggle has them, and waits until they can be used.

    Raises:
        InputError: Kaggle did not take or could not process them, or a file is missing there.
        KaggleError: the CLI failed.
    """
    before = look_up(dataset)
    if before and before.state not in (READY, *FAILED):
        log("an earlier version is still being processed")
        before = Published(READY, wait_until_ready(dataset, 0, wait))
    if before and before.state == READY and is_published(dataset, folder, names):
        log_summary(f"{dataset} version {before.version} holds these artifacts already; next: make push")
        return
    with staged(folder, names, dataset) as staging:
        action = ["version", "-m", notes] if before else ["create"]
        output = cli.call("datasets", action[0], "-p", staging, "-t", *action[1:])
    if "being created" not in output:
        raise InputError(f"the CLI did not report that {dataset} is created ({cli.last_line(output)!r}); run it again.")
    version = wait_until_ready(dataset, before.version if before else 0, wait)
    missing = missing_on_kaggle(dataset, folder, names)
    if missing:
        raise InputError(f"{dataset} version {version} lacks {', '.join(missing)}; run make publish again.")
    log_summary(f"{dataset} version {version}: {len(names)} files; next: make push")


def main(arguments: list[str] | None = None) -> int:
    """Checks the artifacts and publishes them."""
    parser = Parser(description="Publishes the artifact folder as a private Kaggle dataset")
    parser.add_argument("--artifacts", type=existing_folder, required=True, metavar="DIR", help="artifact folder to publish")
    cli.add_options(parser, wait=60)
    options = parser.parse_args(arguments)
    folder = options.artifacts
    manifest, names = checked_artifacts(folder)
    notes = version_notes(manifest, folder)
    dataset = f"{cli.user_name(options.dry_run)}/{dataset_slug()}"
    megabytes = sum(artifact_path(folder, name).stat().st_size for name in names) / 1e6
    log(f"publish {folder} as the private dataset {dataset}: {len(names)} files, {megabytes:,.1f} MB, SHA-256 checked")
    if "network" not in manifest:
        log("note: the artifacts hold no network; the kernel will score by metadata alone (run train.fusion)")
    if options.dry_run:
        log("\n".join(f"  {name}" for name in names))
        log(f"$ {cli.command_line('datasets', 'create', '-p', 'STAGING', '-t')}   # the first time; after that:")
        log(f"$ {cli.command_line('datasets', 'version', '-p', 'STAGING', '-t', '-m', notes)}")
        return 0
    publish(dataset, folder, names, notes, cli.Wait(options.poll, options.wait))
    return 0


if __name__ == "__main__":
    run_command(main)
