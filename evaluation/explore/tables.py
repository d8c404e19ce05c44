"""The numbers of an exploration: pure functions from metadata to small tables.

Rows are as ``folder.read_folder`` gives them. The schema defines which columns are numbers and which categories; a column
that it does not know has the type that pandas read.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import binomtest, ks_2samp

from inference.features import SMALLEST_NORM, group_codes, group_sizes, standard_scores
from inference.schema import COLUMNS, HOSPITAL, ID, MISSING, PATIENT, TARGET, TEST_COLUMNS, TRAIN_ONLY
from scale.progress import SLOW, Bar
from utils import auc, partial_auc

KINDS = {column.name: column.kind for column in COLUMNS}
UNITS = {column.name: column.unit for column in COLUMNS}
#: Categories with more values than this name single lesions rather than kinds of them.
MOST_VALUES = 1000
#: Patients are split into so many groups; a category is scored by its malignancy rate in the other groups.
PATIENT_GROUPS = 5
#: So many lesions of the overall rate are added to a category, so that a rare one does not get an extreme rate.
PRIOR = 20
#: Columns in the correlation map at most.
MAPPED = 30
#: The two columns of the "ugly duckling" picture: the first two of these that there are. A malignant lesion is mostly the
#: patient's larger one, and of another hue.
DUCKLING_COLUMNS = (
    "clin_size_long_diam_mm",
    "tbp_lv_H",
    "tbp_lv_minorAxisMM",
    "tbp_lv_deltaLBnorm",
    "tbp_lv_color_std_mean",
)
#: Title -> column by which malignancy rates are listed.
GROUPINGS = {
    "site": "anatom_site_general",
    "sex": "sex",
    "age in years": "age_approx",
    "hospital": HOSPITAL,
    "tile type": "tbp_tile_type",
    "image type": "image_type",
}
AGE_BANDS = ("under 20", *(f"{age} to {age + 9}" for age in range(20, 80, 10)), "80 and over")
SIZE_BANDS = {"1": 1, "2 to 9": 2, "10 to 49": 10, "50 to 199": 50, "200 to 999": 200, "1000 and more": 1000}
#: Critical value of the two-sample Kolmogorov-Smirnov statistic at 5 %, times sqrt(1/n + 1/m) (Smirnov 1948).
SMIRNOV = 1.358


def kind_of(frame: pd.DataFrame, name: str) -> str:
    """ "id", "label", "number" or "category"."""
    if name in KINDS:
        return KINDS[name]
    return "number" if pd.api.types.is_numeric_dtype(frame[name]) else "category"


def summary(values: pd.Series, kind: str) -> str:
    """A column in a few words: the median and range of numbers, the most common of other values."""
    values = values.dropna()
    if values.empty:
        return "nothing"
    if kind == "number":
        low, middle, high = (f"{value:.4g}" for value in (values.min(), values.median(), values.max()))
        return f"median {middle} ({low} to {high})"
    counts = values.value_counts()
    if counts.iloc[0] == 1:
        return "each value once"
    return f"{counts.index[0]} ({100 * counts.iloc[0] / len(values):.1f} %)"


def column_table(train: pd.DataFrame, test: pd.DataFrame | None) -> pd.DataFrame:
    """One row per column of train, in its order, then those that only test has.

    Returns:
        ``column``, ``kind``, ``unit``; ``missing`` rows of train and their ``share``, 0 to 1 (NaN where train lacks the
        column); ``test_share`` (NaN where test lacks it); ``distinct`` values and ``values`` in words.
    """
    test = train.iloc[:0, :0] if test is None else test  # no columns
    rows = []
    for name in dict.fromkeys([*train, *test]):
        values = train[name] if name in train else test[name]
        kind = kind_of(train if name in train else test, name)
        missing = train[name].isna().sum() if name in train else np.nan
        shares = [frame[name].isna().mean() if name in frame else np.nan for frame in (train, test)]
        rows.append((name, kind, UNITS.get(name, ""), missing, *shares, values.nunique(), summary(values, kind)))
    columns = ["column", "kind", "unit", "missing", "share", "test_share", "distinct", "values"]
    return pd.DataFrame(rows, columns=columns)


def total_variation(first: pd.Series, second: pd.Series) -> float:
    """Half the sum of the differences between the shares of each category, 0 (alike) to 1 (none shared)."""
    shares = pd.concat([each.value_counts(normalize=True) for each in (first, second)], axis=1).fillna(0.0)
    return float((shares.iloc[:, 0] - shares.iloc[:, 1]).abs().sum() / 2)


def shift_table(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """How far each column that both splits have differs between them, the most different first. Missing values are left out.

    Returns:
        ``column``, ``kind``; ``distance`` 0 to 1 (numbers: Kolmogorov-Smirnov statistic; categories: total variation
        distance; NaN where a split has no value); ``train``, ``test``: the values in words; ``train_share``,
        ``test_share``: the missing ones, 0 to 1.
    """
    rows = []
    for name in (name for name in train if name in test):
        kind, both = kind_of(train, name), (train[name], test[name])
        if kind not in ("number", "category"):
            continue
        first, second = (values.dropna() for values in both)
        distance = np.nan
        if len(first) and len(second):
            ks = kind == "number"
            distance = ks_2samp(first, second, method="asymp").statistic if ks else total_variation(first, second)
        words, missing = (summary(values, kind) for values in both), (values.isna().mean() for values in both)
        rows.append((name, kind, float(distance), *words, *missing))
    columns = ["column", "kind", "distance", "train", "test", "train_share", "test_share"]
    return pd.DataFrame(rows, columns=columns).sort_values("distance", ascending=False, kind="stable", ignore_index=True)


def chance_distance(first: int, second: int) -> float:
    """The Kolmogorov-Smirnov statistic that two samples of one distribution exceed once in twenty times, if independent."""
    return min(1.0, SMIRNOV * float(np.sqrt(1 / first + 1 / second)))


def age_bands(ages: pd.Series) -> pd.Series:
    """The band of ``AGE_BANDS`` of each age in years; NaN where unknown."""
    return pd.cut(ages, [-np.inf, *range(20, 90, 10), np.inf], right=False, labels=list(AGE_BANDS)).astype(object)


def size_bands(train: pd.DataFrame) -> pd.Series:
    """The band of ``SIZE_BANDS`` of how many lesions each lesion's patient has."""
    sizes = train.groupby(PATIENT, dropna=False)[ID].transform("size")
    return pd.cut(sizes, [*SIZE_BANDS.values(), np.inf], right=False, labels=list(SIZE_BANDS)).astype(object)


def rate_table(groups: pd.Series, labels: pd.Series, patients: pd.Series, order: tuple[str, ...] = ()) -> pd.DataFrame:
    """Malignancy rate of each group with its 95 % interval by Wilson's formula, which takes lesions as independent.

    Args:
        groups: of each lesion, shape (rows,); where NaN the group is ``MISSING``, the last one.
        labels: 0 or 1, shape (rows,).
        patients: shape (rows,).
        order: the groups in their own order; otherwise the largest comes first.

    Returns:
        ``group``, ``lesions``, ``patients``, ``malignant``; ``rate``, ``low`` and ``high``, 0 to 1.
    """
    names = groups.astype(object).where(groups.notna(), MISSING).astype(str)
    lesions = pd.DataFrame({"group": names.to_numpy(), "label": labels.to_numpy(), "patient": patients.to_numpy()})
    table = lesions.groupby("group", as_index=False).agg(
        lesions=("label", "size"), patients=("patient", "nunique"), malignant=("label", "sum")
    )
    table["rate"] = table["malignant"] / table["lesions"]
    counts = zip(table["malignant"], table["lesions"], strict=True)
    intervals = [binomtest(int(malignant), int(size)).proportion_ci(method="wilson") for malignant, size in counts]
    table["low"], table["high"] = [each.low for each in intervals], [each.high for each in intervals]
    places = {name: place for place, name in enumerate(order)} | {MISSING: np.inf}
    table["place"] = table["group"].map(places).fillna(len(order))
    return table.sort_values(["place", "lesions"], ascending=[True, False], ignore_index=True).drop(columns="place")


def rate_tables(train: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Name of the grouping -> ``rate_table``, for every grouping whose column is there."""
    labels, patients, tables = train[TARGET], train[PATIENT], {}
    for title, name in GROUPINGS.items():
        if name in train and (name != "image_type" or train[name].nunique() > 1):
            bands = name == "age_approx"
            groups = age_bands(train[name]) if bands else train[name]
            tables[title] = rate_table(groups, labels, patients, AGE_BANDS if bands else ())
    return tables | {"lesions of the patient": rate_table(size_bands(train), labels, patients, tuple(SIZE_BANDS))}


def category_rates(values: pd.Series, labels: np.ndarray, patients: pd.Series) -> np.ndarray:
    """Each lesion's category as a number: that category's malignancy rate among other patients, shape (rows,).

    The patients are split into ``PATIENT_GROUPS`` groups, and a rate comes from the other groups, so that the lesion's own
    label is not in it. ``PRIOR`` lesions of the overall rate are added to each category.
    """
    codes = pd.factorize(values.astype(object).where(values.notna(), MISSING))[0]
    patient_groups = group_codes(patients.fillna(MISSING)) % PATIENT_GROUPS
    rates = np.zeros(len(labels))
    for group in np.unique(patient_groups):
        own, others = patient_groups == group, patient_groups != group
        if not others.any():
            return rates
        overall = labels[others].mean()
        count = np.bincount(codes[others], minlength=codes.max() + 1)
        malignant = np.bincount(codes[others], labels[others], minlength=codes.max() + 1)
        rates[own] = ((malignant + PRIOR * overall) / (count + PRIOR))[codes[own]]
    return rates


def single_columns(train: pd.DataFrame) -> pd.DataFrame:
    """pAUC and AUC of each column by itself, and of whether it is filled, the highest pAUC first.

    A number is taken in the direction in which its pAUC is higher, picked on these very rows, with the median where it is
    unknown; a category by ``category_rates``. Empty where all labels are of one class.

    Returns:
        ``column``; ``what``: "value", or "is filled" for columns with gaps; ``direction``, which is the more suspicious:
        "higher" or "lower", "filled" or "empty", for categories "by rate"; ``pauc``, 0 to 0.20; ``auc``, 0 to 1;
        ``usable``: the competition's test file has it.
    """
    labels, patients = train[TARGET].to_numpy(), train[PATIENT]
    rows = []

    def add(name: str, what: str, scores: np.ndarray, directions: tuple[str, ...]) -> None:
        found = [(partial_auc(labels, sign * scores), sign, word) for sign, word in zip((1, -1), directions, strict=False)]
        pauc, sign, word = max(found, key=lambda each: each[0])
        row = {"column": name, "what": what, "direction": word, "pauc": pauc, "auc": auc(labels, sign * scores)}
        rows.append(row | {"usable": name in TEST_COLUMNS})

    names = [name for name in train if name not in (ID, TARGET, PATIENT)] if 0 < labels.mean() < 1 else []
    for name in Bar(names, desc="single columns", unit="column", delay=SLOW):
        kind, values = kind_of(train, name), train[name]
        if values.notna().any() and values.isna().any():
            add(name, "is filled", values.notna().to_numpy("float64"), ("filled", "empty"))
        if values.nunique() < 2:
            continue
        if kind == "number":
            add(name, "value", values.fillna(values.median()).to_numpy("float64"), ("higher", "lower"))
        elif values.nunique() <= MOST_VALUES:
            add(name, "value", category_rates(values, labels, patients), ("by rate",))
    columns = ["column", "what", "direction", "pauc", "auc", "usable"]
    return (
        pd.DataFrame(rows, columns=columns)
        .astype({"usable": bool})
        .sort_values("pauc", ascending=False, kind="stable", ignore_index=True)
    )


def correlations(train: pd.DataFrame, most: int = MAPPED) -> pd.DataFrame:
    """Spearman's rank correlation of the numbers, those beside each other that move together.

    Columns that are constant or exist only in train are left out; of more than ``most`` those stay whose strongest
    correlation with another is strongest. Pairs are compared on the rows where both are known.

    Returns:
        A square table, index and columns alike; empty where fewer than two columns vary.
    """
    numbers = [name for name in train if kind_of(train, name) == "number" and name not in TRAIN_ONLY]
    names = [name for name in numbers if train[name].nunique() > 1]
    if len(names) < 2:
        return pd.DataFrame()
    # Ranked once: pandas' own "spearman" ranks anew for each pair. With gaps the ranks are those among all known values.
    rho = train[names].rank().corr().fillna(0.0)
    strength = rho.abs().to_numpy(copy=True)
    np.fill_diagonal(strength, 0.0)
    kept = sorted(np.argsort(-strength.max(axis=0), kind="stable")[:most])
    rho, strength = rho.iloc[kept, kept], strength[np.ix_(kept, kept)]
    apart = np.clip(1.0 - strength, 0.0, 1.0)
    np.fill_diagonal(apart, 0.0)
    order = leaves_list(linkage(squareform(apart, checks=False), "average", optimal_ordering=True))
    return rho.iloc[order, order]


def strongest_pairs(rho: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """``first``, ``second`` and ``rho`` of the pairs of a correlation table, the strongest first."""
    above = np.triu_indices(len(rho), 1)
    names = rho.columns.to_numpy()
    pairs = pd.DataFrame({"first": names[above[0]], "second": names[above[1]], "rho": rho.to_numpy()[above]})
    return pairs.loc[pairs["rho"].abs().sort_values(ascending=False, kind="stable").index].head(most).reset_index(drop=True)


def duckling_columns(train: pd.DataFrame) -> list[str]:
    """The two columns in which a patient's lesions are drawn; empty where there are not two that vary."""
    names = [name for name in DUCKLING_COLUMNS if name in train and train[name].nunique() > 1]
    return names[:2] if len(names) >= 2 else []


def duckling_patients(train: pd.DataFrame, most: int) -> list[str]:
    """Patients with a malignant lesion and at least ``SMALLEST_NORM`` lesions, those with the most lesions first."""
    patients = train.groupby(PATIENT)[TARGET].agg(["size", "max"])
    chosen = patients[(patients["max"] == 1) & (patients["size"] >= SMALLEST_NORM)]
    return chosen.sort_values("size", ascending=False, kind="stable").index[:most].tolist()


def far_from_own(train: pd.DataFrame, names: list[str], beyond: float = 2.0) -> dict[int, tuple[int, int]]:
    """How many lesions lie more than ``beyond`` standard deviations from their patient's mean in one of the columns or more.

    Returns:
        Label -> (how many, of how many lesions), over patients of at least ``SMALLEST_NORM`` lesions.
    """
    known = train[train[PATIENT].notna()]
    codes = group_codes(known[PATIENT])
    scores = standard_scores(known[names].to_numpy("float64"), codes)
    far = (np.abs(np.nan_to_num(scores)) > beyond).any(axis=1)
    large = group_sizes(codes) >= SMALLEST_NORM if len(known) else far
    labels = known[TARGET].to_numpy()
    return {
        label: (int((far & large & (labels == label)).sum()), int((large & (labels == label)).sum())) for label in (0, 1)
    }
