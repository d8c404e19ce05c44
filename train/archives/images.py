"""Images of the archives: found by name, made small, hashed, packed into one HDF5 file.

Every image becomes one small file in a work folder, with a sidecar beside it that tells its hashes. Both are written in one
step, so that an interrupted run goes on where it stopped, and neither the order nor the number of processes changes a byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from inference.files import replacing
from inference.images import ImageStore, find_images
from inference.schema import ID, PATIENT, read_metadata_leniently
from scale.parallel import stream_tasks, workers
from train.archives.tables import FILE_NAMES, PAD, image_id_of
from train.synthetic.__main__ import write_scalar
from utils import InputError

DEPTH = 8  # folders below --root that are looked into; unpacked archives are 2 to 4 deep
SIZE = 256  # short side of an image, in pixels
JPEG_QUALITY = 95
HASH_SIDE = 16  # the perceptual hash has 16 x 16 bits; 64 bits, its usual length, do not tell dermoscopic images apart
THUMBNAIL = 32  # side of the picture by which two images are compared in full colour
CHUNK = 16  # images that a process converts at a time
COMPETITION_CHUNK = 1024  # images of the competition that a process hashes at a time
EXTENSIONS = (".jpg", ".jpeg", ".png")
MASK = re.compile(r"_(superpixels|segmentation|attribute_\w+)$", re.IGNORECASE)
#: The zips in which the publishers ship what is read here, by year. (2018: HAM10000 as on Harvard's Dataverse, too.)
ZIPS = {
    "2016": r"ISBI2016_ISIC_Part3_(Training|Test)_(Data|GroundTruth).*",
    "2017": r"ISIC-2017_(Training|Validation|Test_v2)_(Data|Part3_GroundTruth).*",
    "2018": r"ISIC2018_Task3_(Training|Validation|Test)_(Input|GroundTruth).*|HAM10000_images_part_[12]|dataverse_files",
    "2019": r"ISIC_2019_Training_(Input|GroundTruth|Metadata)",
    "2020": r"ISIC_2020_Training_(JPEG|GroundTruth).*",
    PAD: r"imgs_part_[123]|zr7vgbcyr2.*|PAD-UFES-20.*",
}


# Finding


@dataclass
class Survey:
    """What lies below a folder: official files and images by name, zips, all as paths."""

    tables: dict[str, list[Path]] = field(default_factory=dict)  # by official name
    images: dict[str, list[Path]] = field(default_factory=dict)  # by image id
    zips: list[Path] = field(default_factory=list)


def survey(root: Path, skip: Sequence[Path] = ()) -> Survey:
    """Looks through ``root`` once, without hidden files, masks and the folders ``skip``.

    Raises:
        InputError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise InputError(f"--root is {root}, which is no folder; name the one that holds the archives.")
    official = {name.lower(): name for name in FILE_NAMES}
    left_out = {path.resolve() for path in skip}
    found = Survey()
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        deep = len(here.relative_to(root).parts) >= DEPTH
        folders[:] = [
            name
            for name in sorted(folders)
            if not deep and not name.startswith((".", "__MACOSX")) and (here / name).resolve() not in left_out
        ]
        for name in sorted(names):
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
    """A picture ready for training: its JPEG bytes, its perceptual hash, and the pixels that the original had."""

    jpeg: bytes
    phash: bytes
    pixels: int


def convert(content: bytes, size: int) -> Converted:
    """Makes the short side ``size`` pixels, upright and RGB; never enlarges.

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
        # The decoder may leave out what is far finer than asked for, as long as twice the size remains.
        image.draft(None, (2 * round(image.width * factor), 2 * round(image.height * factor)))
    image.load()
    picture = ImageOps.exif_transpose(image).convert("RGB")
    # Before it is made small, so that a small --size does not blur what tells two images apart.
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
    """What is known of the images of several ids, in one order; an id whose image is corrupt is left out.

    ``sha256`` is of the file as it was found, shape (images,); ``phash`` uint64 of shape (images, 4); ``pixels`` int64.
    ``corrupt`` names the files that cannot be read, whether or not another one stood in.
    """

    ids: list[str]
    sha256: list[str]
    phash: NDArray[np.uint64]
    pixels: NDArray[np.int64]
    corrupt: list[Path]


def convert_all(images: Mapping[str, Sequence[Path]], work: Path, size: int, jobs: int) -> Hashed:
    """Converts every image into ``work``, or finds it there from a run that was interrupted.

    Args:
        images: files by image id. Of several the largest is taken, of equal ones the first; a corrupt one is passed over.
        work: the folder for them.
        size: short side in pixels.
        jobs: processes.
    """
    plan = {image_id: _candidates(paths) for image_id, paths in sorted(images.items())}
    todo = [item for item in plan.items() if _sidecar(work, *item) is None]
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    _side_by_side(_convert_chunk, [(chunk, work, size) for chunk in chunks], jobs, "images", len(todo))
    ids, sha256, phash, pixels, corrupt = [], [], [], [], []
    for image_id, candidates in plan.items():
        told = _sidecar(work, image_id, candidates) or {"corrupt": []}
        corrupt += [Path(name) for name in told["corrupt"]]
        if "sha256" in told:
            ids.append(image_id)
            sha256.append(told["sha256"])
            phash.append(told["phash"])
            pixels.append(told["pixels"])
    bits = np.frombuffer(bytes.fromhex("".join(phash)), np.uint64).reshape(-1, 4)
    return Hashed(ids, sha256, bits, np.array(pixels, np.int64), corrupt)


def _candidates(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of every file of one image, the largest first."""
    states = [(str(path), path.stat()) for path in paths]
    return sorted(
        ((name, state.st_size, state.st_mtime_ns) for name, state in states),
        key=lambda candidate: (-candidate[1], candidate[0]),
    )


def work_file(work: Path, image_id: str, extension: str = ".jpg") -> Path:
    """Where an image lies in the work folder; 256 folders, because one with 70,000 files is slow."""
    return work / hashlib.sha256(image_id.encode()).hexdigest()[:2] / f"{image_id}{extension}"


def _sidecar(work: Path, image_id: str, candidates: Sequence[tuple[str, int, int]]) -> dict | None:
    """What a run has noted of an image, None if it has not come to it or its files have changed since."""
    try:
        told = json.loads(work_file(work, image_id, ".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return told if told["files"] == [list(candidate) for candidate in candidates] else None


def _convert_chunk(chunk: Sequence[tuple[str, Sequence[tuple[str, int, int]]]], work: Path, size: int) -> int:
    """Converts some images; returns how many. The sidecar comes last: where it is, the image is whole."""
    for image_id, candidates in chunk:
        told: dict = {"files": candidates, "corrupt": []}
        for name, _, _ in candidates:
            try:
                content = Path(name).read_bytes()
                converted = convert(content, size)
            except BROKEN:
                told["corrupt"].append(name)
                continue
            told["sha256"] = hashlib.sha256(content).hexdigest()
            told["phash"], told["pixels"] = converted.phash.hex(), converted.pixels
            with replacing(work_file(work, image_id)) as temporary:
                temporary.write_bytes(converted.jpeg)
            break
        with replacing(work_file(work, image_id, ".json")) as temporary:
            temporary.write_text(json.dumps(told), encoding="utf-8")
    return len(chunk)


def _side_by_side(work: Callable[..., int], parts: Sequence[tuple], jobs: int, what: str, total: int) -> None:
    """Runs ``work`` on every part in ``jobs`` processes, with a bar; each returns how many of ``total`` it has done.

    Raises:
        InputError: the system ended one of the processes.
    """
    with tqdm(total=total, desc=what, unit="image", disable=total < 1000) as bar, workers(jobs):
        for done in stream_tasks(work, parts):
            bar.update(done)


# The competition's images


@dataclass(frozen=True)
class Competition:
    """What must not occur in the archives: the competition's lesions, and the hashes of those that have an image."""

    patients: dict[str, str]  # of every lesion, by isic_id; "" where there is none
    hashed: Hashed
    stores: list[Path]  # where the image of each hash lies

    def thumbnail(self, number: int) -> NDArray[np.int16]:
        """The thumbnail of an image by its position in ``hashed``."""
        store = ImageStore(self.stores[number])
        try:
            return thumbnail(store.read(self.hashed.ids[number]))
        finally:
            store.close()


def read_competition(folder: Path | None, work: Path, jobs: int) -> Competition:
    """Reads a competition folder, both its splits where they are there, and hashes its images.

    Args:
        folder: the folder; None for a competition without lesions.
        work: the folder in which the hashes wait for a run that is interrupted.
        jobs: processes.

    Raises:
        InputError: the folder has no metadata, or what it has cannot be read.
    """
    patients: dict[str, str] = {}
    told, stores = [], []
    for split in ("train", "test") if folder is not None else ():
        path, images = folder / f"{split}-metadata.csv", find_images(folder, split)
        if not path.is_file():
            continue
        rows = read_metadata_leniently(path)[0]
        isic_ids = rows[ID].tolist()
        named = [patient if not patient.startswith("alone:") else "" for patient in rows[PATIENT]]
        patients.update(zip(isic_ids, named, strict=True))
        if images is None:
            continue
        starts = range(0, len(isic_ids), COMPETITION_CHUNK)
        chunks = [(isic_ids[start : start + COMPETITION_CHUNK], work / f"{split}-{start:07d}.json") for start in starts]
        todo = [(images, ids, path) for ids, path in chunks if not path.is_file()]
        _side_by_side(_hash_chunk, todo, jobs, f"{split} images of the competition", sum(len(ids) for _, ids, _ in todo))
        told += [row for _, path in chunks for row in json.loads(path.read_text(encoding="utf-8"))]
        stores += [images] * (len(told) - len(stores))
    if folder is not None and not patients:
        raise InputError(f"--competition {folder} has no train-metadata.csv or test-metadata.csv with rows; mend it.")
    phash = np.frombuffer(bytes.fromhex("".join(row[2] for row in told)), np.uint64).reshape(-1, 4)
    pixels = np.array([row[3] for row in told], np.int64)
    return Competition(patients, Hashed([row[0] for row in told], [row[1] for row in told], phash, pixels, []), stores)


def _hash_chunk(images: Path, isic_ids: Sequence[str], path: Path) -> int:
    """Writes id, SHA-256, perceptual hash and pixels of some images; returns how many ids there were."""
    store, rows = ImageStore(images), []
    for isic_id in isic_ids:
        content = store.read(isic_id)
        try:
            converted = convert(content, SIZE)
        except BROKEN:
            continue
        rows.append((isic_id, hashlib.sha256(content).hexdigest(), converted.phash.hex(), converted.pixels))
    store.close()
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(rows), encoding="utf-8")
    return len(isic_ids)


# Packing


def pack(path: Path, image_ids: Iterable[str], work: Path) -> None:
    """Writes the images of the work folder as the competition does: HDF5, a scalar of JPEG bytes named by each id."""
    image_ids = list(image_ids)
    with (
        replacing(path) as temporary,
        h5py.File(temporary, "w") as file,
        tqdm(total=len(image_ids), desc=path.name, unit="image", disable=len(image_ids) < 1000) as bar,
    ):
        for image_id in image_ids:
            write_scalar(file, image_id, work_file(work, image_id).read_bytes())
            bar.update()
