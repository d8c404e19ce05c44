"""Configuration of the tabular model: CatBoost's parameters, models per fold, benign lesions per malignant one.

``train.tabular`` and its studies take it from the same options.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from inference.options import Parser, add_seed_option, count, existing_file, positive_number
from scale.parallel import add_worker_options
from utils import InputError

#: Models per fold; their logits are averaged.
SEEDS = 3
#: Benign training lesions for each malignant one.
NEGATIVES_PER_POSITIVE = 100
#: Found by `evaluation.studies.tune` on split seeds 100 and 101, confirmed on 0, 1 and 2 (docs/tabular.md).
PARAMETERS = {
    "iterations": 1000,
    "learning_rate": 0.035,
    "depth": 7,
    "l2_leaf_reg": 16.0,
    "bootstrap_type": "Bernoulli",
    "subsample": 0.75,
    "rsm": 0.16,
    "random_strength": 4.5,
}
#: Of the last stage, train.stacking: a dozen features instead of a hundred.
STACKING_PARAMETERS = {
    "iterations": 300,
    "learning_rate": 0.03,
    "depth": 4,
    "l2_leaf_reg": 16.0,
    "bootstrap_type": "Bernoulli",
    "subsample": 0.75,
}


@dataclass(frozen=True)
class TabularConfig:
    """Everything that decides a cross-validation besides its rows and folds.

    Args:
        parameters: CatBoost's, by name.
        seeds: models per fold.
        negatives_per_positive: benign training lesions for each malignant one.
        seed: start of all random numbers.
    """

    parameters: dict
    seeds: int = SEEDS
    negatives_per_positive: float = NEGATIVES_PER_POSITIVE
    seed: int = 0


def add_tabular_options(parser: Parser) -> None:
    """Adds ``--seed``, ``--seeds``, ``--params``, ``--negatives-per-positive``, ``--jobs`` and ``--cluster``."""
    add_seed_option(parser)
    parser.add_argument(
        "--seeds", type=count(high=1_000), default=SEEDS, help="CatBoost models per fold (default: %(default)s)"
    )
    parser.add_argument(
        "--params", type=existing_file, metavar="FILE", help="JSON file of CatBoost parameters over the defaults"
    )
    parser.add_argument(
        "--negatives-per-positive",
        type=positive_number(1e9),
        default=NEGATIVES_PER_POSITIVE,
        help="benign training lesions per malignant one (default: %(default)s)",
    )
    add_worker_options(parser)


def read_config(
    params: Path | None, seeds: int, negatives_per_positive: float, seed: int, defaults: dict = PARAMETERS
) -> TabularConfig:
    """The configuration from the values of ``add_tabular_options``; raises InputError as ``read_parameters`` does."""
    return TabularConfig(read_parameters(params, defaults), seeds, negatives_per_positive, seed)


def read_parameters(path: Path | None, defaults: dict = PARAMETERS) -> dict:
    """``defaults``, updated from a JSON file.

    Raises:
        InputError: the file is missing or holds no JSON object.
    """
    if path is None:
        return defaults
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--params {path} cannot be read ({error}); give a JSON file of CatBoost parameters.") from error
    if not isinstance(given, dict):
        raise InputError(f"--params {path} holds a {type(given).__name__}; give an object such as {{'depth': 6}}.")
    return defaults | given
