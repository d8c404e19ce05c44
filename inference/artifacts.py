"""The artifact folder and its manifest: what training wrote, checked before use.

``manifest.json`` is the folder's index. A file that it does not name, or whose SHA-256 differs, is never opened.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from inference.files import sha256_of
from utils import InputError

#: Raised by one whenever a kernel of the older format could not read the newer.
FORMAT = "slice-3d-fusion/3"
MANIFEST = "manifest.json"
FOLDS = "folds.csv"
OOF_TABULAR = "oof_tabular.csv"
OOF_FUSION = "oof_fusion.csv"
OOF_IMAGE_ONLY = "oof_image_only.csv"
OOF_TABULAR_ONLY = "oof_tabular_only.csv"

Manifest = dict[str, Any]


def tabular_model_file(fold: int, seed: int) -> str:
    """Name of a CatBoost model's file."""
    return f"tabular_fold{fold}_seed{seed}.cbm"


def fold_of_tabular_model(name: str) -> int | None:
    """The fold in a name as ``tabular_model_file`` gives it; None for any other name."""
    found = re.fullmatch(r"tabular_fold(\d+)_seed\d+\.cbm", name)
    return int(found[1]) if found else None


def fold_network_file(fold: int) -> str:
    """Name of a fold network's weights file."""
    return f"fusion_fold{fold}.weights.h5"


def load_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder; the files that it names are checked one by one as they are opened.

    Raises:
        InputError: there is none, it is no JSON, or it is of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} has no {MANIFEST}; run train.tabular into it, or give the artifact folder.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); train or copy the artifacts again.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{path} has format {found!r}, this version reads {FORMAT!r}; train again.")
    return manifest


def checked_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The path of an artifact after a check of its SHA-256.

    Raises:
        InputError: the manifest does not name the file, or the file is missing or differs.
    """
    expected = manifest.get("files", {}).get(name)
    if expected is None or not name or Path(name).name != name:  # the folder is flat: a path would lead out of it
        raise InputError(f"{folder / MANIFEST} does not name {name!r}; only files named there are opened.")
    path = folder / name
    if not path.is_file():
        raise InputError(f"{name} is named in {MANIFEST} and missing in {folder}; copy the whole artifact folder.")
    actual = sha256_of(path)
    if actual != expected:
        raise InputError(
            f"{path} has SHA-256 {actual[:12]}..., {MANIFEST} has {expected[:12]}...; copy the artifacts again or retrain."
        )
    return path
