"""Persons and copies: rows of several years become one row per image, of copies one stays, images of one person are linked.

A person is a connected component of images, linked by patient, lesion, published duplicates and equal content. Copies that
are left out still link: they may be the only evidence that two lesions are of one person.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from train.archives.images import Competition, Hashed
from train.archives.tables import FIELDS, YEARS

#: Why a row is left out.
REPEATED, REPEATED_IN_YEAR, CONTRADICTORY = "repeated_across_years", "repeated_in_year", "contradictory_labels"
IN_COMPETITION, UNKNOWN, NO_IMAGE, CORRUPT = "in_competition", "unknown", "no_image", "corrupt"
PUBLISHED, EXACT, NEAR = "published_duplicate", "exact_duplicate", "near_duplicate"

Pairs = NDArray[np.intp]  # shape (pairs, 2): positions of two images

#: Two images are copies if at most this many of the 256 bits of their perceptual hashes differ, and their thumbnails differ
#: by at most this many grey levels in the mean. Measured on the 5,984 images of HAM10000 at hand, all of different lesions.
#: Of 998 of them, copies (JPEG 60; half the size; 4:3; half the size, 4:3 and JPEG 60 at once) are at most 34 bits and 3.3
#: levels away; of 197 crops of SLICE-3D, which are smaller and smoother, 40 bits and 5.2 levels. Of 17.9 million pairs of
#: different lesions one is within 40 bits, but 36 levels away; none is within 80 bits and 6 levels.
MAX_BITS = 40
MAX_LEVELS = 6.0
#: Cells of the table of distances that are computed at a time; 8 bytes each.
BLOCK_CELLS = 4_000_000
#: Thumbnails that are kept for the next comparison; 6 KB each.
KEPT_THUMBNAILS = 4096


# Years


def merge_years(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per image out of the rows of all years.

    The most specific label wins: known before unknown, then one with a class before one without, then the later year. Every
    other field is taken from the latest year that has it.

    Args:
        rows: ground truth rows with the columns of ``train.archives.tables.COLUMNS``, in any order.

    Returns:
        The rows that gave the labels, in the order of their image_id, with their old index, their fields filled in, and the
        column ``contradictory``, bool: the years disagree whether the lesion is malignant.
    """
    year = rows["year"].map(YEARS.index)
    ranked = rows.assign(known=rows["target"].notna(), classed=rows["class"] != "", order=year)
    ranked = ranked.sort_values(
        ["image_id", "known", "classed", "order", "file", "line"],
        ascending=[True, False, False, False, True, True],
        kind="stable",
    )
    merged = ranked.drop_duplicates("image_id")[list(rows.columns)]
    # groupby().first() skips NaN, so a field comes from the first row that has one.
    latest = rows.assign(order=year).sort_values(["order", "file", "line"], ascending=[False, True, True], kind="stable")
    fields = latest[list(FIELDS)].where(latest[list(FIELDS)] != "").groupby(latest["image_id"]).first()
    for name in FIELDS:
        latest = fields[name].reindex(merged["image_id"]).to_numpy()
        merged[name] = latest if name == "age_approx" else pd.Series(latest, index=merged.index, dtype=object).fillna("")
    labels = rows.groupby("image_id")["target"].nunique()
    return merged.assign(contradictory=labels.reindex(merged["image_id"]).to_numpy() > 1)


# Persons


def components(count: int, keys: Sequence[Sequence[str]], pairs: Pairs) -> NDArray[np.intp]:
    """The component of each of ``count`` images: images that share a key or are a pair are linked.

    Args:
        count: images.
        keys: for each kind of key (patient, lesion) the key of every image, "" for none; kinds do not mix.
        pairs: linked images.

    Returns:
        Numbers 0, 1, ..., shape (count,).
    """
    if not count:
        return np.zeros(0, np.intp)
    ends, nodes = [pairs.reshape(-1, 2)], count
    for kind in keys:
        names = np.asarray(kind, dtype=object)
        images = np.flatnonzero(names != "")
        codes, found = pd.factorize(names[images])
        ends.append(np.stack([images, nodes + codes], axis=1))
        nodes += len(found)
    links = np.concatenate(ends)
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:count]


def person_names(component: NDArray[np.intp], rows: pd.DataFrame, preferred: Sequence[str]) -> list[str]:
    """A name for the person of every image: the alphabetically first patient's id, else lesion's, else image's.

    Args:
        component: as ``components`` gives it.
        rows: image_id, patient_id and lesion_id of every image, "" for none.
        preferred: for every image a patient's id that precedes all others, such as the competition's, "" for none.

    Returns:
        One name per image, equal exactly where the component is equal. A name that is taken by another component gets the
        kind of its id in front.
    """
    frame = pd.DataFrame({"component": component, "preferred": list(preferred)})
    frame[["patient", "lesion", "image"]] = rows[["patient_id", "lesion_id", "image_id"]].to_numpy(dtype=object)
    names: dict[int, str] = {}
    taken: set[str] = set()
    for kind in ("preferred", "patient", "lesion", "image"):
        there = frame[(frame[kind] != "") & ~frame["component"].isin(names)]
        for number, name in there.groupby("component")[kind].min().items():
            while name in taken:
                name = f"{kind}_{name}"
            names[int(number)] = name
            taken.add(name)
    return [names[number] for number in component.tolist()]


# Copies


def equal_pairs(sha256: Sequence[str]) -> Pairs:
    """Pairs that link every image to the first one of equal bytes."""
    codes, _ = pd.factorize(np.asarray(sha256, dtype=object))
    first = np.unique(codes, return_index=True)[1][codes]
    later = np.flatnonzero(first != np.arange(len(codes)))
    return np.stack([first[later], later], axis=1)


def similar_pairs(
    phash: NDArray[np.uint64],
    others: NDArray[np.uint64] | None,
    thumbnail: Callable[[int], NDArray[np.int16]],
    other_thumbnail: Callable[[int], NDArray[np.int16]] | None = None,
) -> Pairs:
    """Pairs of images that look the same: within ``MAX_BITS`` by hash, and then within ``MAX_LEVELS`` by thumbnail.

    Args:
        phash: perceptual hashes, shape (images, 4).
        others: the hashes to compare with, shape (others, 4); None: among themselves, each pair once.
        thumbnail: the thumbnail of an image by its position.
        other_thumbnail: that of the others; unused without them.

    Returns:
        Positions in ``phash`` and ``others``, in order. Memory does not grow with the number of images.
    """
    own = lru_cache(KEPT_THUMBNAILS)(thumbnail)
    foreign = own if other_thumbnail is None else lru_cache(KEPT_THUMBNAILS)(other_thumbnail)
    found = [
        (i, j) for i, j in _close_hashes(phash, others) if np.abs(own(i).astype(np.int32) - foreign(j)).mean() <= MAX_LEVELS
    ]
    return _pairs(found)


def _close_hashes(phash: NDArray[np.uint64], others: NDArray[np.uint64] | None) -> Iterator[tuple[int, int]]:
    """Positions of hashes within ``MAX_BITS``, block by block."""
    columns = phash if others is None else others
    if not len(columns):
        return
    words = np.ascontiguousarray(columns.T)
    rows = max(1, BLOCK_CELLS // len(columns))
    for start in range(0, len(phash), rows):
        block = phash[start : start + rows]
        first = start if others is None else 0  # what lies before has been compared
        distance = np.zeros((len(block), len(columns) - first), np.uint16)
        for word in range(words.shape[0]):
            distance += np.bitwise_count(block[:, word, None] ^ words[word, first:])
        for i, j in zip(*np.nonzero(distance <= MAX_BITS), strict=True):
            if others is not None or i < j:
                yield start + int(i), first + int(j)


def choose_copies(
    rows: pd.DataFrame, usable: NDArray[np.bool_], foreign: NDArray[np.bool_], links: Mapping[str, Pairs]
) -> NDArray[np.object_]:
    """Why each image is left out as a copy, "" where it stays; of copies the best described one stays.

    Args:
        rows: image_id, target, patient_id, lesion_id, class and pixels of every image.
        usable: which images could stay, shape (rows,); the others link only.
        foreign: which images occur in the competition, shape (rows,); none of their copies stays.
        links: pairs of copies by the name of their reason. Where several hold, the first names it.

    Returns:
        Reasons, shape (rows,): "" for all that are not usable.
    """
    everything = np.concatenate([np.zeros((0, 2), np.intp), *links.values()])
    copies = components(len(rows), [], everything)
    is_linked = {name: np.isin(np.arange(len(rows)), pairs) for name, pairs in links.items()}
    known = {f"has_{name}": (rows[name] != "").to_numpy() for name in ("patient_id", "lesion_id", "class")}
    candidates = rows.reset_index(drop=True).assign(copies=copies, **known)
    candidates = candidates[usable & (np.isin(np.arange(len(rows)), everything) | foreign)]
    best_first = candidates.sort_values([*known, "pixels", "image_id"], ascending=[False, False, False, False, True])
    reasons = np.full(len(rows), "", dtype=object)
    occurs = set(copies[foreign].tolist())
    for number, same in best_first.groupby("copies"):
        position = same.index.to_numpy()
        if number in occurs:
            reasons[position] = IN_COMPETITION
        elif same["target"].nunique() > 1:
            reasons[position] = CONTRADICTORY
        else:
            for left_out in position[1:]:
                reasons[left_out] = next(name for name, linked in is_linked.items() if linked[left_out])
    return reasons


# All together


@dataclass(frozen=True)
class SortedOut:
    """The decision for every image.

    ``rows`` are the merged rows with ``reason`` (why the image is left out, "" where it stays), ``person`` (the patient_id
    to write) and ``in_competition`` (whether that person is in the competition); ``exact`` and ``near`` are the pairs found
    by content.
    """

    rows: pd.DataFrame
    exact: list[tuple[str, str]]
    near: list[tuple[str, str]]

    @property
    def kept(self) -> pd.DataFrame:
        """The rows that stay."""
        return self.rows[self.rows["reason"] == ""]


def sort_out(
    merged: pd.DataFrame,
    images: Collection[str],
    hashed: Hashed,
    competition: Competition,
    duplicates: Sequence[tuple[str, str]],
    thumbnail: Callable[[str], NDArray[np.int16]],
) -> SortedOut:
    """Decides for every image whether it stays, and which person it belongs to.

    Args:
        merged: one row per image, as ``merge_years`` gives them.
        images: ids that have an image, readable or not.
        hashed: the readable images.
        competition: its lesions must not occur.
        duplicates: published pairs of one photograph.
        thumbnail: the thumbnail of a readable image by its id.
    """
    rows = merged.reset_index(drop=True)
    position = {image_id: number for number, image_id in enumerate(rows["image_id"])}
    place = np.array([position[image_id] for image_id in hashed.ids], dtype=np.intp)
    rows["pixels"] = 0
    rows.loc[place, "pixels"] = hashed.pixels

    published = [(position[one], position[two]) for one, two in duplicates if one in position and two in position]
    equal = equal_pairs(hashed.sha256)
    distinct = np.setdiff1d(np.arange(len(hashed.ids)), equal[:, 1])  # equal bytes need no second comparison
    near = similar_pairs(hashed.phash[distinct], None, lambda number: thumbnail(hashed.ids[distinct[number]]))
    links = {PUBLISHED: _pairs(published), EXACT: place[equal], NEAR: place[distinct[near]]}
    matches = _match_competition(rows, hashed, place, competition, thumbnail)

    foreign = np.isin(np.arange(len(rows)), matches["own"])
    conditions = [
        rows["contradictory"],
        rows["target"].isna(),
        ~rows["image_id"].isin(images),
        ~rows["image_id"].isin(hashed.ids),
    ]
    reason = np.select(conditions, [CONTRADICTORY, UNKNOWN, NO_IMAGE, CORRUPT], default="").astype(object)
    usable = reason == ""
    reason[usable] = choose_copies(rows, usable, foreign, links)[usable]

    # The competition's lesions take part in the linking, so that a copy of one gets that patient's id.
    others = pd.DataFrame({"image_id": matches["isic_id"].unique(), "lesion_id": ""})
    others["patient_id"] = others["image_id"].map(competition.patients)
    everyone = pd.concat([rows[["image_id", "patient_id", "lesion_id"]], others], ignore_index=True)
    other = len(rows) + pd.Index(others["image_id"]).get_indexer(matches["isic_id"])
    pairs = np.concatenate([*links.values(), np.stack([matches["own"].to_numpy(np.intp), other], axis=1)])
    component = components(len(everyone), [everyone["patient_id"], everyone["lesion_id"]], pairs)
    # A patient of the competition under several ids gets one of the competition's, by which train.fusion leaves them out.
    theirs = set(competition.patients.values())
    preferred = [name if name in theirs else "" for name in everyone["patient_id"]]
    person = person_names(component, everyone, preferred)[: len(rows)]
    named = [[(rows["image_id"][one], rows["image_id"][two]) for one, two in links[kind]] for kind in (EXACT, NEAR)]
    in_competition = pd.Series(person).isin(theirs).to_numpy()
    return SortedOut(rows.assign(reason=reason, person=person, in_competition=in_competition), *named)


def _match_competition(
    rows: pd.DataFrame,
    hashed: Hashed,
    place: NDArray[np.intp],
    competition: Competition,
    thumbnail: Callable[[str], NDArray[np.int16]],
) -> pd.DataFrame:
    """Which images occur in the competition, by id, bytes or looks: ``own`` (position in ``rows``) and ``isic_id``."""
    found = [(number, image_id) for number, image_id in enumerate(rows["image_id"]) if image_id in competition.patients]
    theirs = dict(zip(competition.hashed.sha256, competition.hashed.ids, strict=True))
    found += [(place[number], theirs[digest]) for number, digest in enumerate(hashed.sha256) if digest in theirs]
    near = similar_pairs(
        hashed.phash, competition.hashed.phash, lambda number: thumbnail(hashed.ids[number]), competition.thumbnail
    )
    found += [(place[one], competition.hashed.ids[two]) for one, two in near]
    return pd.DataFrame(found, columns=["own", "isic_id"])


def _pairs(pairs: Sequence[tuple[int, int]]) -> Pairs:
    """Pairs as an array, also when there are none."""
    return np.array(pairs, dtype=np.intp).reshape(-1, 2)
