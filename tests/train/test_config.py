import pytest

from inference.options import Parser
from train.config import (
    NEGATIVES_PER_POSITIVE,
    PARAMETERS,
    SEEDS,
    TabularConfig,
    add_tabular_options,
    read_config,
    read_parameters,
)
from utils import InputError


def config_of(*arguments):
    """The configuration of a command line."""
    parser = Parser()
    add_tabular_options(parser)
    options = parser.parse_args(arguments)
    return read_config(options.params, options.seeds, options.negatives_per_positive, options.seed)


def test_without_options_it_is_the_default_configuration():
    assert config_of() == TabularConfig(PARAMETERS) == TabularConfig(PARAMETERS, SEEDS, NEGATIVES_PER_POSITIVE, 0)


def test_options_change_it(tmp_path):
    path = tmp_path / "params.json"
    path.write_text('{"depth": 6}')
    config = config_of("--seeds", "7", "--seed", "3", "--negatives-per-positive", "2.5", "--params", str(path))
    assert config == TabularConfig(PARAMETERS | {"depth": 6}, seeds=7, negatives_per_positive=2.5, seed=3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--seeds", "0"], "--seeds: '0'"),
        (["--negatives-per-positive", "0"], "--negatives-per-positive: '0'"),
        (["--negatives-per-positive", "nan"], "--negatives-per-positive: 'nan'"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        config_of(*wrong)


def test_parameters_of_a_file_replace_the_defaults(tmp_path):
    assert read_parameters(None) == PARAMETERS
    path = tmp_path / "params.json"
    path.write_text('{"depth": 6, "border_count": 32}')
    assert read_parameters(path) == PARAMETERS | {"depth": 6, "border_count": 32}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{depth: 6}", r"params\.json cannot be read "),
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[6]", r"params\.json holds a list"),
        (b"6", "holds a int"),
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
