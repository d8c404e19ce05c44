"""The table of labels: what the diagnosis words of every archive mean.

A label is a diagnosis in plain words, whether it is malignant, and one class of five. What a word leaves open is None in the
target and "" in the diagnosis or class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils import InputError

#: The five classes, in the order of the report; "" is an unknown class.
CLASSES = ("melanoma", "basal cell carcinoma", "squamous cell carcinoma", "nevus", "other", "")
#: The classes, and what SLICE-3D calls benign without a diagnosis.
GROUPS = (*CLASSES, "benign")
#: The columns that ``diagnosis_groups`` reads.
GROUP_COLUMNS = frozenset(("diagnosis", "iddx_3", "iddx_1"))


@dataclass(frozen=True)
class Label:
    """What a word means: ``target`` is 1 malignant, 0 benign or None, ``group`` one of ``CLASSES``."""

    diagnosis: str
    target: int | None
    group: str


MELANOMA = Label("melanoma", 1, "melanoma")
BCC = Label("basal cell carcinoma", 1, "basal cell carcinoma")
SCC = Label("squamous cell carcinoma", 1, "squamous cell carcinoma")
NEVUS = Label("nevus", 0, "nevus")
#: Benign, although it can turn into a carcinoma: SLICE-3D's own taxonomy calls it indeterminate, and its target is 0.
ACTINIC_KERATOSIS = Label("actinic keratosis", 0, "other")
SEBORRHEIC_KERATOSIS = Label("seborrheic keratosis", 0, "other")
BENIGN_KERATOSIS = Label("benign keratosis", 0, "other")  # solar lentigo, seborrheic or lichen-planus-like keratosis
DERMATOFIBROMA = Label("dermatofibroma", 0, "other")
VASCULAR = Label("vascular lesion", 0, "other")
SOLAR_LENTIGO = Label("solar lentigo", 0, "other")
LENTIGO = Label("lentigo", 0, "other")
LICHENOID_KERATOSIS = Label("lichenoid keratosis", 0, "other")
ATYPICAL = Label("atypical melanocytic proliferation", 0, "other")
ONLY_BENIGN = Label("", 0, "")
ONLY_MALIGNANT = Label("", 1, "")
UNKNOWN = Label("", None, "")

LABELS: dict[str, dict[str, Label]] = {
    # challenge.isic-archive.com/landing/2016/39: "benign" or "malignant" in the training file, 0.0 or 1.0 in the test file.
    "2016": {"benign": ONLY_BENIGN, "malignant": ONLY_MALIGNANT, "0.0": ONLY_BENIGN, "1.0": ONLY_MALIGNANT},
    # challenge.isic-archive.com/landing/2017/44: two columns of 0 and 1 for three diagnoses; neither is a nevus.
    "2017": {"melanoma": MELANOMA, "seborrheic_keratosis": SEBORRHEIC_KERATOSIS, "neither": NEVUS},
    # challenge.isic-archive.com/landing/2018/47 and Tschandl et al., https://doi.org/10.1038/sdata.2018.161
    "2018": {
        "MEL": MELANOMA,
        "NV": NEVUS,
        "BCC": BCC,
        # Actinic keratosis (benign) together with intraepithelial carcinoma, that is Bowen's disease (malignant). The ground
        # truth of 2019 splits the same 327 images into 130 AK and 197 SCC; by that of 2018 alone they stay open.
        "AKIEC": Label("actinic keratosis or intraepithelial carcinoma", None, ""),
        "BKL": BENIGN_KERATOSIS,
        "DF": DERMATOFIBROMA,
        "VASC": VASCULAR,
    },
    # challenge.isic-archive.com/landing/2019: UNK is "none of the others", which only the test images have.
    "2019": {
        "MEL": MELANOMA,
        "NV": NEVUS,
        "BCC": BCC,
        "AK": ACTINIC_KERATOSIS,
        "BKL": BENIGN_KERATOSIS,
        "DF": DERMATOFIBROMA,
        "VASC": VASCULAR,
        "SCC": SCC,
        "UNK": UNKNOWN,
    },
    # Rotemberg et al., https://doi.org/10.1038/s41597-021-00815-z. The column `target` is the label, and calls every lesion
    # of unknown diagnosis benign; the reader compares it with this table.
    "2020": {
        "melanoma": MELANOMA,
        "nevus": NEVUS,
        "seborrheic keratosis": SEBORRHEIC_KERATOSIS,
        "lentigo NOS": LENTIGO,
        "solar lentigo": SOLAR_LENTIGO,
        "lichenoid keratosis": LICHENOID_KERATOSIS,
        "cafe-au-lait macule": Label("cafe-au-lait macule", 0, "other"),
        "atypical melanocytic proliferation": ATYPICAL,
        "unknown": ONLY_BENIGN,
    },
    # Pacheco et al., https://doi.org/10.1016/j.dib.2020.106221: Bowen's disease is counted as SCC.
    "pad-ufes-20": {
        "BCC": BCC,
        "SCC": SCC,
        "MEL": MELANOMA,
        "ACK": ACTINIC_KERATOSIS,
        "NEV": NEVUS,
        "SEK": SEBORRHEIC_KERATOSIS,
    },
}

#: The words of SLICE-3D's column iddx_3. They give the diagnosis only: the label is in the ground truth.
IDDX_3 = {
    **dict.fromkeys(("Melanoma in situ", "Melanoma Invasive", "Melanoma metastasis", "Melanoma, NOS"), MELANOMA),
    **{f"Squamous cell carcinoma{kind}": SCC for kind in (" in situ", ", Invasive", ", NOS")},
    "Basal cell carcinoma": BCC,
    "Nevus": NEVUS,
    "Seborrheic keratosis": SEBORRHEIC_KERATOSIS,
    "Pigmented benign keratosis": BENIGN_KERATOSIS,
    "Lichen planus like keratosis": LICHENOID_KERATOSIS,
    "Solar or actinic keratosis": ACTINIC_KERATOSIS,
    "Solar lentigo": SOLAR_LENTIGO,
    "Lentigo NOS": LENTIGO,
    "Dermatofibroma": DERMATOFIBROMA,
    "Hemangioma": VASCULAR,
    **dict.fromkeys(("Atypical melanocytic neoplasm", "Atypical intraepithelial melanocytic proliferation"), ATYPICAL),
    **{
        word: Label(word.lower(), 0, "other")
        for word in (
            *("Angiofibroma", "Fibroepithelial polyp", "Hidradenoma", "Scar", "Verruca"),
            "Trichilemmal or isthmic-catagen or pilar cyst",
        )
    },
}


def label_of(year: str, word: str, path: Path, line: int) -> Label:
    """The label of one word of a ground truth file.

    Args:
        year: a key of ``LABELS``.
        word: the word as it stands in the file, or the column's name where the file marks a column.
        path: the file, for the error.
        line: the line in it, from 1.

    Raises:
        InputError: the table lacks the word.
    """
    try:
        return LABELS[year][word]
    except KeyError:
        known = ", ".join(LABELS[year])
        raise InputError(f"{path} line {line}: {word!r} is no diagnosis of {year} ({known}); correct the file.") from None


def class_of(diagnosis: str) -> str:
    """The class of five of a diagnosis as ``train-metadata.csv`` writes it; "" where it is open."""
    return _CLASS_OF.get(diagnosis, "")


def diagnosis_of(iddx_3: str) -> str:
    """The diagnosis of a word of the column iddx_3, as ``train-metadata.csv`` writes it."""
    return IDDX_3[iddx_3].diagnosis if iddx_3 in IDDX_3 else iddx_3.lower()


def diagnosis_groups(table: pd.DataFrame) -> np.ndarray:
    """The position in ``GROUPS`` of each row's diagnosis, int64 of shape (rows,); that of "" where it is open.

    Args:
        table: of text; those of ``GROUP_COLUMNS`` that it has are read.
    """
    columns = {name: table[name].fillna("") if name in table else pd.Series("", table.index) for name in GROUP_COLUMNS}
    groups = columns["diagnosis"].map(class_of)
    groups = groups.where(groups != "", columns["iddx_3"].map(lambda word: class_of(diagnosis_of(word))))
    unnamed = (columns["diagnosis"] == "") & (columns["iddx_3"] == "") & (columns["iddx_1"] == "Benign")
    return groups.mask(unnamed, "benign").map(GROUPS.index).to_numpy("int64")


_CLASS_OF = {label.diagnosis: label.group for words in (*LABELS.values(), IDDX_3) for label in words.values()}
