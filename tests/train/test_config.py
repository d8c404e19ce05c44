import argparse

import pytest

from train.config import NEGATIVES_PER_POSITIVE, PARAMETERS, SEEDS, Recipe, add_recipe_options, read_parameters, recipe_of
from utils import InputError


def asked(*arguments):
    """The recipe of a command line."""
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    return recipe_of(parser.parse_args(arguments))


def test_without_options_it_is_the_default_recipe():
    assert asked() == Recipe(PARAMETERS) == Recipe(PARAMETERS, SEEDS, NEGATIVES_PER_POSITIVE, 0)


def test_options_change_it(tmp_path):
    path = tmp_path / "params.json"
    path.write_text('{"depth": 6}')
    recipe = asked("--seeds", "7", "--seed", "3", "--negatives-per-positive", "2.5", "--params", str(path))
    assert recipe == Recipe(PARAMETERS | {"depth": 6}, seeds=7, negatives_per_positive=2.5, seed=3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--seeds", "0"], "--seeds 0 is too few; give 1 or more"),
        (["--negatives-per-positive", "0"], "--negatives-per-positive 0 is too few; give more than 0"),
        (["--negatives-per-positive", "nan"], "--negatives-per-positive nan is too few"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        asked(*wrong)


def test_parameters_of_a_file_take_the_place_of_the_defaults(tmp_path):
    assert read_parameters(None) == PARAMETERS
    path = tmp_path / "params.json"
    path.write_text('{"depth": 6, "border_count": 32}')
    assert read_parameters(path) == PARAMETERS | {"depth": 6, "border_count": 32}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{depth: 6}", r"params\.json cannot be read .*give a JSON file of CatBoost parameters"),
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[6]", r"params\.json holds a list; give an object"),
        (b"6", "holds a int; give an object"),
    ],
)
def test_files_without_parameters_are_refused_in_one_sentence(tmp_path, content, sentence):
    (tmp_path / "params.json").write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        read_parameters(tmp_path / "params.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_parameters_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"params\.json cannot be read"):
        read_parameters(tmp_path / "params.json")
