"""The artifact folder and its manifest: what training wrote, checked before use.

``manifest.json`` is the folder's index. A file that it does not name, or whose SHA-256 differs, is never opened.

A stage adds its files by one rename of a folder to ``.committed``; then they move out of it, the manifest last
(``scale.artifact_folder``). So a file is looked for in ``.committed`` first, and a reader has the whole old set or the whole
new one, also when the process that moved them was killed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from inference.files import refuse_dangling, sha256_of
from utils import InputError

#: Raised by one whenever a kernel of the older format could not read the newer.
FORMAT = "slice-3d-fusion/4"
MANIFEST = "manifest.json"
#: The sub-folder with those files of a finished stage that are not moved out yet.
COMMITTED = ".committed"
FOLDS = "folds.csv"
OOF_TABULAR = "oof_tabular.csv"
OOF_FUSION = "oof_fusion.csv"
OOF_STACKING = "oof_stacking.csv"
OOF_IMAGE_ONLY = "oof_image_only.csv"
OOF_TABULAR_ONLY = "oof_tabular_only.csv"
#: The network that ``train.fusion`` trains where it is given no ``--name``.
FUSION = "fusion"

Manifest = dict[str, Any]


def tabular_model_file(fold: int, seed: int) -> str:
    """Name of a CatBoost model's file."""
    return f"tabular_fold{fold}_seed{seed}.cbm"


def fold_of_tabular_model(name: str) -> int | None:
    """The fold in a name as ``tabular_model_file`` gives it; None for any other name."""
    found = re.fullmatch(r"tabular_fold(\d+)_seed\d+\.cbm", name)
    return int(found[1]) if found else None


def fold_network_file(fold: int, name: str = FUSION) -> str:
    """Name of a fold network's weights file; ``name`` is the network's."""
    return f"fusion_fold{fold}.weights.h5" if name == FUSION else f"fusion_{name}_fold{fold}.weights.h5"


def network_column(name: str) -> str:
    """The column of a network's logits in oof_fusion.csv; ``network`` is the mean over all networks."""
    return f"network_{name}"


def stacking_model_file(fold: int, seed: int) -> str:
    """Name of a file of the last stage."""
    return f"stacking_fold{fold}_seed{seed}.cbm"


def networks_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Name -> section ("weights", "settings", "training", "pauc") of every network, the best out of fold first."""
    return manifest.get("network", {}).get("networks", {})


def best_network(manifest: Manifest) -> dict[str, Any]:
    """The section of the first of ``networks_of``; empty without any."""
    return next(iter(networks_of(manifest).values()), {})


def last_stage(manifest: Manifest) -> dict[str, Any]:
    """The section with the "combination" and "scores" of the final logits; empty without any network."""
    return manifest.get("stacking") or manifest.get("network", {})


def artifact_path(folder: Path, name: str) -> Path:
    """Where the newest version of an artifact, or of the manifest, lies."""
    committed = folder / COMMITTED / name
    return committed if committed.is_file() else folder / name


def load_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder; the files that it names are checked one by one as they are opened.

    Raises:
        InputError: there is none, it is no JSON, or it is of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(_manifest_bytes(folder).decode("utf-8"))
    except FileNotFoundError as error:
        refuse_dangling(path)
        raise InputError(f"{folder} has no {MANIFEST}; run train.tabular into it, or give the artifact folder.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); train or copy the artifacts again.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(f"{path} has format {found!r}, this version reads {FORMAT!r}; train again.")
    return manifest


def _manifest_bytes(folder: Path) -> bytes:
    try:
        return (folder / COMMITTED / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # also when it has just moved out
        return (folder / MANIFEST).read_bytes()


def checked_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """The path of an artifact after a check of its SHA-256.

    Raises:
        InputError: the manifest does not name the file, or the file is missing, cannot be read, or differs.
    """
    expected = manifest.get("files", {}).get(name)
    if expected is None or not name or Path(name).name != name:  # the folder is flat: a path would lead out of it
        raise InputError(f"{folder / MANIFEST} does not name {name!r}; only files named there are opened.")
    try:
        hashes = {path: sha256_of(path) for path in (folder / COMMITTED / name, folder / name) if path.is_file()}
    except OSError as error:
        raise InputError(f"{folder / name} cannot be read ({error}); copy the artifacts again.") from error
    for path, actual in hashes.items():
        if actual == expected:
            return path
    if not hashes:
        refuse_dangling(folder / name)
        raise InputError(f"{name} is named in {MANIFEST} and missing in {folder}; copy the whole artifact folder.")
    if load_manifest(folder) != manifest:
        raise InputError(f"{folder} was trained anew while its files were read; run the same command again.")
    raise InputError(
        f"{folder / name} has SHA-256 {actual[:12]}..., {MANIFEST} has {expected[:12]}...; "
        "copy the artifacts again or retrain."
    )
