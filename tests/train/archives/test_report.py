import pandas as pd

from train.archives.report import count_words, format_counts, format_report


def counts(rows, kept, **left_out):
    numbers = {"with_image": rows, "malignant": 1, "benign": rows - 1, "unknown": 0}
    return {"rows": rows, "kept": kept, "left_out": left_out, **numbers}


def test_words_are_counted_from_the_most_frequent_and_equally_frequent_ones_by_name():
    assert list(count_words(pd.Series(["b", "c", "a", "c", "b", "d", "c"])).items()) == [
        ("c", 3),
        ("b", 2),
        ("a", 1),
        ("d", 1),
    ]
    assert count_words(pd.Series([], dtype=str)) == {}


def test_counts_are_listed_in_one_line():
    assert format_counts({"no_image": 1234, "corrupt": 1}) == "no image 1,234, corrupt 1"


def test_the_table_has_a_line_per_year_and_class_and_the_rest_follows():
    year = {
        "all": counts(1200, 1198, no_image=2),
        "classes": {"nevus": counts(1200, 1198, no_image=2)},
        "unmapped_sites": {},
    }
    report = {
        "years": {"2019": year},
        "corrupt": [f"{number}.jpg" for number in range(12)],
        "contradictory": [],
        "images_without_ground_truth": {"a_folder": 3},
        "kept": {"lesions_of_competition_patients": 4},
    }
    header, rule, *lines = format_report(report)
    assert header.split(" | ")[2].strip() == "rows"
    assert set(rule) == set("|-: ")
    assert [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[:2]] == [["2019", "all"], ["2019", "nevus"]]
    assert "1,198" in lines[0]
    assert "no image 2" in lines[0]
    corrupt, unlabelled, shared = lines[2:]
    assert "9.jpg and 2 more" in corrupt
    assert "a_folder 3" in unlabelled
    assert shared.startswith("4 lesions")
