import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, picture
from PIL import Image

from train.archives import dedup
from train.archives.dedup import (
    CONTRADICTORY,
    IN_COMPETITION,
    MAX_BITS,
    MAX_LEVELS,
    choose_copies,
    components,
    equal_pairs,
    merge_years,
    person_names,
    similar_pairs,
    sort_out,
)
from train.archives.images import Competition, Hashed, convert, thumbnail
from train.archives.tables import COLUMNS

NO_PAIRS = np.zeros((0, 2), np.intp)


def row(image_id, year, target, group="", **fields):
    known = {"file": f"{year}.csv", "line": 2, "age_approx": np.nan, "image_type": "dermoscopic", **fields}
    return {**dict.fromkeys(COLUMNS, ""), "image_id": image_id, "year": year, "target": target, "class": group, **known}


def merged(*rows):
    return merge_years(pd.DataFrame(rows, columns=list(COLUMNS)))


# Years


@pytest.mark.parametrize(
    ("labels", "wins"),
    [
        ([("2016", 0, ""), ("2019", 0, "nevus")], "2019"),  # a class beats none
        ([("2017", 0, "nevus"), ("2020", 0, "")], "2017"),  # also an earlier one
        ([("2018", np.nan, ""), ("2016", 1, "")], "2016"),  # known beats unknown
        ([("2017", 1, "melanoma"), ("2019", 1, "melanoma")], "2019"),  # else the later year
    ],
)
def test_the_most_specific_label_wins(labels, wins):
    rows = [row("a", year, target, group) for year, target, group in labels]
    for order in (rows, rows[::-1]):
        result = merged(*order)
        assert result["year"].tolist() == [wins]
        assert not result["contradictory"].any()


def test_fields_are_filled_from_the_latest_year_that_has_them():
    result = merged(
        row("a", "2018", 0, "nevus", lesion_id="HAM_1", age_approx=40.0, sex="male"),
        row("a", "2019", 0, "nevus", age_approx=45.0),
        row("a", "2017", 0, "", sex="female", site_word="back"),
        row("b", "2017", 0, "nevus"),
    )
    assert result["image_id"].tolist() == ["a", "b"]
    first = result.iloc[0]
    assert (first["lesion_id"], first["age_approx"], first["sex"], first["site_word"]) == ("HAM_1", 45.0, "male", "back")
    assert (result.iloc[1]["lesion_id"], result.iloc[1]["sex"]) == ("", "")
    assert np.isnan(result.iloc[1]["age_approx"])


def test_years_that_disagree_are_contradictory_and_an_open_label_agrees_with_all():
    result = merged(row("a", "2016", 0), row("a", "2019", 1, "melanoma"), row("b", "2018", np.nan), row("b", "2019", 1))
    assert result["contradictory"].tolist() == [True, False]


# Persons

IDS = st.sampled_from(["", "1", "2", "3", "4"])
IMAGES = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12)


def linked(people, pairs):
    """The sets of images that are linked, by growing them one after the other."""
    groups = [{number} for number in range(len(people))]
    links = [set(pair) for pair in pairs]
    for kind in (0, 1):
        for name in {person[kind] for person in people} - {""}:
            links.append({number for number, person in enumerate(people) if person[kind] == name})
    for link in links:
        touched = [group for group in groups if group & link]
        groups = [group for group in groups if not group & link] + [set().union(*touched)]
    return {frozenset(group) for group in groups}


@settings(deadline=None, max_examples=60)
@given(IMAGES, st.data())
def test_persons_are_exactly_the_linked_images(people, data):
    number = st.integers(0, len(people) - 1)
    pairs = data.draw(st.lists(st.tuples(number, number), max_size=4))
    patients, lesions = zip(*people, strict=True)
    component = components(len(people), [patients, lesions], np.array(pairs, np.intp).reshape(-1, 2))
    found = {frozenset(np.flatnonzero(component == code).tolist()) for code in set(component.tolist())}
    assert found == linked(people, pairs)


@settings(deadline=None, max_examples=60)
@given(IMAGES, st.randoms(use_true_random=False))
def test_names_keep_patients_and_lesions_together_whatever_the_order(people, random):
    rows = pd.DataFrame(people, columns=["patient_id", "lesion_id"], dtype=object)
    rows["image_id"] = [f"i{number}" for number in range(len(rows))]
    preferred = random.choices(["", "1"], k=len(rows))

    def named(order):
        some = rows.iloc[order].reset_index(drop=True)
        component = components(len(some), [some["patient_id"], some["lesion_id"]], NO_PAIRS)
        names = person_names(component, some, [preferred[number] for number in order])
        assert len({*zip(component.tolist(), names, strict=True)}) == len(set(names)) == component.max() + 1
        return dict(zip(some["image_id"], names, strict=True))

    names = named(list(range(len(rows))))
    for kind in ("patient_id", "lesion_id"):
        for _, same in rows[rows[kind] != ""].groupby(kind):
            assert len({names[image_id] for image_id in same["image_id"]}) == 1
    order = list(range(len(rows)))
    random.shuffle(order)
    again = named(order)
    if not any(preferred):  # a preferred name that two components share goes to one of them
        assert again == names


def test_a_person_is_named_by_patient_then_lesion_then_image():
    rows = pd.DataFrame(
        [["IP_2", "L1", "a"], ["IP_1", "L1", "b"], ["", "L2", "c"], ["", "", "d"], ["", "IP_1", "e"]],
        columns=["patient_id", "lesion_id", "image_id"],
    )
    component = components(5, [rows["patient_id"], rows["lesion_id"]], NO_PAIRS)
    assert person_names(component, rows, [""] * 5) == ["IP_1", "IP_1", "L2", "d", "lesion_IP_1"]
    assert person_names(component, rows, ["", "IP_9", "", "", ""])[:2] == ["IP_9", "IP_9"]


def test_a_person_with_a_patient_of_the_competition_among_its_ids_has_that_name():
    rows = merged(*(row(image, "2020", 0, patient_id=f"IP_{image}", lesion_id="L") for image in "abc"))
    found = sort_out(rows, [], Hashed.of({}), Competition({"ISIC_9": "IP_b"}), [], thumbnail).rows
    assert found["person"].tolist() == ["IP_b"] * 3
    assert found["in_competition"].all()


# Copies


def original(seed):
    return picture(seed, 120, 90)


def jpeg(image, quality=90):
    return encoded(image, quality=quality)


def hashes(contents):
    return np.frombuffer(b"".join(convert(content, 256).phash for content in contents), np.uint64).reshape(-1, 4)


def altered(image):
    """Copies of an image as they circulate."""
    width, height = image.size
    half = image.resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    return [jpeg(image, 60), jpeg(half), jpeg(image.resize((width * 4 // 3, height), Image.Resampling.BICUBIC))]


def test_equal_bytes_are_linked_to_the_first():
    assert equal_pairs(["x", "y", "x", "z", "x"]).tolist() == [[0, 2], [0, 4]]
    assert equal_pairs(["x", "y"]).shape == equal_pairs([]).shape == (0, 2)


@pytest.mark.parametrize("cells", [7, 4_000_000])
def test_copies_are_found_in_blocks_of_any_size(monkeypatch, cells):
    monkeypatch.setattr(dedup, "BLOCK_CELLS", cells)
    contents = [jpeg(original(seed)) for seed in range(12)] + altered(original(4)) + [jpeg(original(7), 60)]
    phash = hashes(contents)
    found = similar_pairs(phash, None, lambda number: thumbnail(contents[number]))
    assert found.tolist() == [[4, 12], [4, 13], [4, 14], [7, 15], [12, 13], [12, 14], [13, 14]]
    across = similar_pairs(
        phash[:12], phash[12:], lambda number: thumbnail(contents[number]), lambda number: thumbnail(contents[12 + number])
    )
    assert across.tolist() == [[4, 0], [4, 1], [4, 2], [7, 3]]


def test_equal_hashes_are_no_copies_if_the_colours_differ():
    image = original(1)
    red = Image.merge("RGB", [image.getchannel(0).point(lambda level: min(255, level + 40)), *image.split()[1:]])
    contents = [jpeg(image), jpeg(red)]
    phash = np.repeat(hashes(contents[:1]), 2, axis=0)
    assert similar_pairs(phash, None, lambda number: thumbnail(contents[number])).shape == (0, 2)


def test_nothing_is_similar_to_nothing():
    nothing = np.zeros((0, 4), np.uint64)
    assert similar_pairs(nothing, None, thumbnail).shape == (0, 2)
    assert similar_pairs(np.zeros((2, 4), np.uint64), nothing, thumbnail).shape == (0, 2)


def table(*rows):
    return pd.DataFrame(rows, columns=["image_id", "target", "patient_id", "lesion_id", "class", "pixels"])


@pytest.mark.parametrize(
    ("one", "two", "stays"),
    [
        (("", "L", "nevus", 9), ("P", "", "", 1), 1),  # a patient
        (("", "", "nevus", 9), ("", "L", "", 1), 1),  # then a lesion
        (("", "L", "", 9), ("", "L", "nevus", 1), 1),  # then a class
        (("P", "L", "nevus", 9), ("P", "L", "nevus", 10), 1),  # then the larger image
        (("P", "L", "nevus", 9), ("P", "L", "nevus", 9), 0),  # then the first id
    ],
)
def test_of_copies_the_best_described_stays(one, two, stays):
    rows = table(("a", 0.0, *one), ("b", 0.0, *two), ("c", 1.0, "", "", "", 1))
    links = {"exact_duplicate": NO_PAIRS, "near_duplicate": np.array([[0, 1]])}
    for order in ([0, 1, 2], [2, 1, 0]):
        there = np.argsort(order)
        pairs = {name: there[pair] for name, pair in links.items()}
        reasons = choose_copies(rows.iloc[order], np.ones(3, bool), np.zeros(3, bool), pairs)
        expected = {"a": "", "b": "", "c": "", "ab"[1 - stays]: "near_duplicate"}
        assert dict(zip(rows["image_id"].iloc[order], reasons, strict=True)) == expected


def test_copies_that_contradict_each_other_go_and_the_competitions_copies_go():
    rows = table(*[(name, float(name in "be"), "", "", "", 1) for name in "abcdef"])
    links = {"published_duplicate": np.array([[0, 1], [2, 3]]), "near_duplicate": np.array([[3, 5]])}
    foreign = np.array([False, False, False, False, False, True])
    reasons = choose_copies(rows, np.ones(6, bool), foreign, links)
    assert reasons.tolist() == [CONTRADICTORY, CONTRADICTORY, IN_COMPETITION, IN_COMPETITION, "", IN_COMPETITION]


def test_a_copy_that_cannot_stay_neither_stays_nor_contradicts():
    rows = table(("a", np.nan, "P", "L", "nevus", 9), ("b", 0.0, "", "", "", 1))
    reasons = choose_copies(rows, np.array([False, True]), np.zeros(2, bool), {"exact_duplicate": np.array([[0, 1]])})
    assert reasons.tolist() == ["", ""]


# The real images


@pytest.fixture(scope="module")
def real_images(real_archives):
    """The real images of 2018, whose lesions all differ."""
    return sorted((real_archives / "2018" / "ISIC2018_Task3_Training_Input").glob("*.jpg"))


def test_real_copies_are_found_and_real_lesions_are_not_merged(real_images):
    originals = [path.read_bytes() for path in real_images[::12]]
    copies = [copy for content in originals[:60] for copy in altered(Image.open(io.BytesIO(content)))]
    contents = originals + copies
    found = similar_pairs(hashes(contents), None, lambda number: thumbnail(contents[number]))
    shown = [*range(len(originals)), *(number // 3 for number in range(len(copies)))]
    assert all(shown[one] == shown[two] for one, two in found)
    assert len(found) == 60 * 6  # the original and its three copies, each with each


def test_the_thresholds_lie_where_they_were_measured():
    assert (MAX_BITS, MAX_LEVELS) == (40, 6.0)  # another number needs another measurement
