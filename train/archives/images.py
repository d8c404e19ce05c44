"""Images of the archives: found by name, made small, hashed, packed into one HDF5 file.

Every image becomes one small file in a work folder, with a JSON record of its hashes beside it. Both are written in one
step, so that an interrupted run continues where it stopped. Neither the order nor the number of processes changes a byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from inference.files import refuse_dangling, replacing, sha256_of, walk_links
from inference.images import ImageStore, find_images
from inference.schema import ID, PATIENT, read_metadata_leniently
from scale.parallel import Progress, run_tasks
from train.archives.tables import FILE_NAMES, PAD, image_id_of
from train.image_files import write_image_file
from utils import InputError

DEPTH = 8  # levels of folders below --root that are searched; unpacked archives have 2 to 4
SIZE = 256  # short side of an image, in pixels
JPEG_QUALITY = 95
HASH_SIDE = 16  # the perceptual hash has 16 x 16 bits; 64 bits, its usual length, do not separate dermoscopic images
THUMBNAIL = 32  # side in pixels of the picture by which two images are compared in colour
CHUNK = 16  # images that a process converts at a time
COMPETITION_CHUNK = 1024  # images of the competition that a process hashes at a time
EXTENSIONS = (".jpg", ".jpeg", ".png")
MASK = re.compile(r"_(superpixels|segmentation|attribute_\w+)$", re.IGNORECASE)
#: Names of the publishers' zips by year. (2018: HAM10000 as on Harvard's Dataverse, too.)
ZIPS = {
    "2016": r"ISBI2016_ISIC_Part3_(Training|Test)_(Data|GroundTruth).*",
    "2017": r"ISIC-2017_(Training|Validation|Test_v2)_(Data|Part3_GroundTruth).*",
    "2018": r"ISIC2018_Task3_(Training|Validation|Test)_(Input|GroundTruth).*|HAM10000_images_part_[12]|dataverse_files",
    "2019": r"ISIC_2019_Training_(Input|GroundTruth|Metadata)",
    "2020": r"ISIC_2020_Training_(JPEG|GroundTruth).*",
    PAD: r"imgs_part_[123]|zr7vgbcyr2.*|PAD-UFES-20.*",
}


# Finding


@dataclass(frozen=True)
class Survey:
    """The files below a folder: official tables by name, images by id, zips."""

    tables: dict[str, list[Path]] = field(default_factory=dict)
    images: dict[str, list[Path]] = field(default_factory=dict)
    zips: list[Path] = field(default_factory=list)


def survey(root: Path, skip: Sequence[Path] = ()) -> Survey:
    """Lists the files below ``root``, without hidden ones, masks and the folders ``skip``.

    Raises:
        InputError: a link leads nowhere.
    """
    official = {name.lower(): name for name in FILE_NAMES}
    left_out = {path.resolve() for path in skip}
    found = Survey()
    for here, folders, names in walk_links(root, DEPTH, strict=True):
        folders[:] = [
            name for name in folders if not name.startswith((".", "__MACOSX")) and (here / name).resolve() not in left_out
        ]
        for name in names:
            stem, extension = os.path.splitext(name)  # noqa: PTH122 - a Path for each of 100,000 names takes seconds
            if name.startswith("."):
                continue
            if extension.lower() in EXTENSIONS:
                if not MASK.search(stem):
                    found.images.setdefault(image_id_of(name), []).append(here / name)
            elif name.lower() in official:
                found.tables.setdefault(official[name.lower()], []).append(here / name)
            elif extension.lower() == ".zip":
                found.zips.append(here / name)
    return found


def check_zips(found: Survey, years: Sequence[str]) -> None:
    """Refuses zips that are cut off, and official ones of ``years`` of which nothing has been unpacked.

    Raises:
        InputError: there is such a zip.
    """
    for path in found.zips:
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path} is no whole zip, so probably half-downloaded; fetch it again.")
        if not any(re.fullmatch(ZIPS[year], path.stem, re.IGNORECASE) for year in years):
            continue
        with zipfile.ZipFile(path) as packed:
            names = [Path(name).name for name in packed.namelist()]
        there = {*found.tables, *(other.name for other in found.zips)}
        wanted = [name for name in names if name.lower().endswith((*EXTENSIONS, ".csv", ".zip"))]
        if wanted and not any(image_id_of(name) in found.images or name in there for name in wanted):
            raise InputError(f"{path} has not been unpacked ({wanted[0]} is nowhere below --root); unpack it there.")


# Converting


@dataclass(frozen=True)
class Converted:
    """An image ready for training: its JPEG bytes, its perceptual hash, and the pixels of the original."""

    jpeg: bytes
    phash: bytes
    pixels: int

    def record(self, content: bytes) -> dict:
        """The hashes as JSON keeps them; ``content`` are the bytes of the original file."""
        return {"sha256": hashlib.sha256(content).hexdigest(), "phash": self.phash.hex(), "pixels": self.pixels}


def convert(content: bytes, size: int) -> Converted:
    """Scales the short side down to ``size`` pixels, upright and RGB; never enlarges.

    A plain JPEG that is small enough already keeps its bytes.

    Raises:
        OSError, SyntaxError, ValueError: as Pillow, the file is no image or is cut off.
    """
    image = Image.open(io.BytesIO(content))
    pixels = image.width * image.height
    upright = image.getexif().get(0x0112, 1) == 1
    plain = image.format == "JPEG" and image.mode == "RGB" and upright
    factor = size / min(image.size)
    if factor < 1:
        # The decoder may skip detail far finer than needed, as long as twice the size remains.
        image.draft(None, (2 * round(image.width * factor), 2 * round(image.height * factor)))
    image.load()
    picture = ImageOps.exif_transpose(image).convert("RGB")
    # Before scaling: a small --size would blur the differences between two images.
    phash = np.packbits(imagehash.phash(picture, hash_size=HASH_SIDE).hash).tobytes()
    if factor < 1:
        short = min(picture.size)
        width, height = (max(size, round(side * size / short)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    elif plain:
        return Converted(content, phash, pixels)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return Converted(file.getvalue(), phash, pixels)


def thumbnail(jpeg: bytes) -> NDArray[np.int16]:
    """An image as int16 of shape (32, 32, 3), whatever its size and proportions."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    return np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0), np.int16)


#: What Pillow raises for files that are no images, cut off, too large to be one, or of broken EXIF.
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error),
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Hashed:
    """Hashes of the readable images of several ids, in one order.

    ``sha256`` is of the file as it was found, shape (images,); ``phash`` uint64 of shape (images, 4); ``pixels`` int64 of
    shape (images,). ``corrupt`` names the unreadable files, also those that another file of the same id replaces.
    """

    ids: list[str]
    sha256: list[str]
    phash: NDArray[np.uint64]
    pixels: NDArray[np.int64]
    corrupt: list[Path]

    @classmethod
    def of(cls, records: Mapping[str, dict], corrupt: Sequence[Path] = ()) -> Hashed:
        """From a record per id, with the keys "sha256", "phash" (in hexadecimal) and "pixels"."""
        rows = list(records.values())
        phash = np.frombuffer(bytes.fromhex("".join(record["phash"] for record in rows)), np.uint64).reshape(-1, 4)
        pixels = np.array([record["pixels"] for record in rows], np.int64)
        return cls(list(records), [record["sha256"] for record in rows], phash, pixels, list(corrupt))


def hash_files(paths: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of every file: what is done is decided by content, which a name, a size and a time do not show."""
    chunks = [(paths[start : start + CHUNK],) for start in range(0, len(paths), CHUNK)]
    found = run_tasks(_hash_files, chunks, len(chunks), progress=Progress("reading images", "chunk", len(paths) >= 1000))
    return dict(zip(paths, itertools.chain.from_iterable(found), strict=True))


def _hash_files(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of files, "" of those that cannot be read."""
    hashes = dict.fromkeys(paths, "")
    for path in paths:
        with contextlib.suppress(OSError):
            hashes[path] = sha256_of(path)
    return list(hashes.values())


def convert_images(
    images: Mapping[str, Sequence[Path]], work: Path, size: int, hashes: Mapping[Path, str] | None = None
) -> Hashed:
    """Converts every image into ``work``, or finds it there from an interrupted run.

    Args:
        images: files by image id. Of several the largest readable one is taken, of equally large ones the first.
        work: the folder for them.
        size: short side in pixels.
        hashes: of the files, as ``hash_files`` gives them; None: they are read for it.

    Raises:
        InputError: a file was changed since it was hashed.
    """
    hashes = hashes or hash_files([path for paths in images.values() for path in paths])
    plan = {image_id: _candidates(paths, hashes) for image_id, paths in sorted(images.items())}
    todo = [item for item in plan.items() if _read_record(work, *item) is None]
    tasks = [(todo[start : start + CHUNK], work, size) for start in range(0, len(todo), CHUNK)]
    run_tasks(_convert_chunk, tasks, len(tasks), progress=Progress("images", "chunk", len(todo) >= 1000))
    records: dict[str, dict] = {}
    for image_id, candidates in plan.items():
        record = _read_record(work, image_id, candidates)
        if record is None:
            raise InputError(f"{work_file(work, image_id)} was removed while images were read; run the same command again.")
        records[image_id] = record
    corrupt = [Path(name) for record in records.values() for name in record["corrupt"]]
    return Hashed.of({image_id: record for image_id, record in records.items() if "sha256" in record}, corrupt)


def _candidates(paths: Sequence[Path], hashes: Mapping[Path, str]) -> list[list]:
    """Path, size and SHA-256 of every file of one image, the largest first."""
    files = [[str(path), path.stat().st_size, hashes[path]] for path in paths]
    return sorted(files, key=lambda file: (-file[1], file[0]))


def work_file(work: Path, image_id: str, extension: str = ".jpg") -> Path:
    """The path of an image in the work folder; 256 folders, because one with 70,000 files is slow."""
    return work / hashlib.sha256(image_id.encode()).hexdigest()[:2] / f"{image_id}{extension}"


def _read_record(work: Path, image_id: str, candidates: list[list]) -> dict | None:
    """The record of an image, None if it is not converted yet or its files have changed since."""
    try:
        record = json.loads(work_file(work, image_id, ".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record if record["files"] == candidates else None


def _convert_chunk(chunk: Sequence[tuple[str, list[list]]], work: Path, size: int) -> None:
    """Converts some images. The record comes last: where it exists, the image is whole."""
    for image_id, candidates in chunk:
        record: dict = {"files": candidates, "corrupt": []}
        for name, _, sha256 in candidates:
            try:
                content = Path(name).read_bytes()
                converted = convert(content, size)
            except BROKEN:
                record["corrupt"].append(name)
                continue
            if hashlib.sha256(content).hexdigest() != sha256:
                raise InputError(f"{name} was changed while the archives were read; run the same command again.")
            record |= converted.record(content)
            with replacing(work_file(work, image_id)) as temporary:
                temporary.write_bytes(converted.jpeg)
            break
        with replacing(work_file(work, image_id, ".json")) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")


# The competition's images


@dataclass(frozen=True)
class Competition:
    """The competition's lesions, which must not occur in the archives, and the hashes of those that have an image."""

    patients: dict[str, str] = field(default_factory=dict)  # of every lesion, by isic_id; "" where unknown
    hashed: Hashed = field(default_factory=lambda: Hashed.of({}))
    stores: list[Path] = field(default_factory=list)  # of the image of each hash: an HDF5 file or a folder

    def thumbnail(self, number: int) -> NDArray[np.int16]:
        """The thumbnail of an image by its position in ``hashed``."""
        store = ImageStore(self.stores[number])
        try:
            return thumbnail(store.read(self.hashed.ids[number]))
        finally:
            store.close()


def read_competition(folder: Path, work: Path) -> Competition:
    """Reads a competition folder, both its splits where they exist, and hashes its images.

    Args:
        folder: the competition folder.
        work: the folder that keeps the hashes for an interrupted run.

    Raises:
        InputError: the folder has no metadata, or what it has cannot be read.
    """
    patients: dict[str, str] = {}
    records: dict[str, dict] = {}
    stores: list[Path] = []
    for split in ("train", "test"):
        metadata, images = folder / f"{split}-metadata.csv", find_images(folder, split)
        if not refuse_dangling(metadata).is_file():
            continue
        rows = read_metadata_leniently(metadata)[0]
        isic_ids = rows[ID].tolist()
        known = [patient if not patient.startswith("alone:") else "" for patient in rows[PATIENT]]
        patients.update(zip(isic_ids, known, strict=True))
        if images is None:
            continue
        starts = range(0, len(isic_ids), COMPETITION_CHUNK)
        chunks = [(isic_ids[start : start + COMPETITION_CHUNK], work / f"{split}-{start:07d}.json") for start in starts]
        todo = [(images, ids, path) for ids, path in chunks if not path.is_file()]
        progress = Progress(f"{split} images of the competition", "chunk", len(isic_ids) >= 1000)
        run_tasks(_hash_chunk, todo, len(todo), progress=progress)
        for _, path in chunks:
            records |= json.loads(path.read_text(encoding="utf-8"))
        stores += [images] * (len(records) - len(stores))
    if not patients:
        raise InputError(
            f"--competition {folder} has no train-metadata.csv or test-metadata.csv with rows; name its folder."
        )
    return Competition(patients, Hashed.of(records), stores)


def _hash_chunk(images: Path, isic_ids: Sequence[str], path: Path) -> None:
    """Writes the records of some images of the competition."""
    store, records = ImageStore(images), {}
    for isic_id in isic_ids:
        content = store.read(isic_id)
        with contextlib.suppress(*BROKEN):
            records[isic_id] = convert(content, SIZE).record(content)
    store.close()
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(records), encoding="utf-8")


def pack(path: Path, image_ids: Iterable[str], work: Path) -> None:
    """Writes the images of the work folder into one HDF5 file."""
    ids = list(image_ids)
    write_image_file(path, ((image_id, work_file(work, image_id).read_bytes()) for image_id in ids), len(ids))
