"""Several trainings of the fusion on the same folds, seeds and tabular scores, side by side.

A study names its variants and says with which options of ``train.fusion`` each is trained. Every variant has a folder of its
own, an artifact folder with copies of the folds and the tabular scores; a training that is finished there is kept.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from inference.artifacts import FOLDS, OOF_FUSION, OOF_TABULAR, checked_file, load_manifest
from inference.files import sha256_of, write_json
from inference.schema import ID, PATIENT, TARGET
from train.fusion import train_fusion
from train.manifest import record_stage
from utils import Estimate, InputError, ScoreTable, bootstrap_scores, log

#: Beside the artifacts of a variant once it is trained: what was asked for, and how long it took.
SECONDS = "seconds.json"
#: The name of the score that all variants start from, and how it is shown.
TABULAR, TABULAR_SHOWN = "tabular", "tabular alone"


def refuse_fixed(more: Sequence[str], fixed: Sequence[str]) -> None:
    """Lets further options pass unless they name one that the study itself decides.

    Args:
        more: words of the command line that go on to ``train.fusion``.
        fixed: two or more options such as "--inputs", as they are typed in full.

    Raises:
        InputError: ``more`` has one of ``fixed``, in full or abbreviated as argparse allows, with or without "=".
    """
    for word in more:
        typed = word.split("=")[0]
        if len(typed) > 2 and typed.startswith("--") and any(name.startswith(typed) for name in fixed):
            names = f"{', '.join(fixed[:-1])} and {fixed[-1]}"
            raise InputError(f"{names} are what this study varies or fixes; leave them out (given: {word!r}).")


def own_artifacts(artifacts: Path, folder: Path) -> Path:
    """Makes ``folder`` an artifact folder with the folds and the tabular scores of ``artifacts``; networks come later.

    Raises:
        InputError: a stage has not run, or ``folder`` is of other folds or tabular scores.
    """
    manifest = load_manifest(artifacts)
    sources = [checked_file(artifacts, manifest, name) for name in (FOLDS, OOF_TABULAR)]
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        copy = folder / source.name
        if copy.is_file() and sha256_of(copy) != sha256_of(source):
            raise InputError(f"{copy} is from another training than {source}; give another --out.")
        shutil.copyfile(source, copy)
    if not (folder / "manifest.json").is_file():
        record_stage(folder, "folds", manifest["folds"], [FOLDS])
        record_stage(folder, "tabular", {"copied from": "the --artifacts of this study"}, [OOF_TABULAR])
    return folder


def read_done(folder: Path) -> dict:
    """What a finished training left beside its artifacts: the ``request`` and the ``seconds`` it took."""
    return json.loads((folder / SECONDS).read_text(encoding="utf-8"))


def train_variant(name: str, folder: Path, data: Path, artifacts: Path, options: Sequence[str], request: dict) -> None:
    """Trains the networks of one variant in its own folder, unless they are there; how long it took lies beside them.

    The time is that of the last sitting, where a training was interrupted and continued.

    Args:
        name: of the variant, to tell.
        folder: of the variant.
        data: competition folder.
        artifacts: whose folds and tabular scores it is trained on.
        options: of ``train.fusion``, without ``--data`` and ``--artifacts``.
        request: JSON values; a finished training is kept if this is what it was asked for.

    Raises:
        InputError: ``folder`` holds a training on other folds, tabular scores or with another request; as ``train.fusion``.
    """
    own_artifacts(artifacts, folder)
    done = folder / SECONDS
    if done.is_file():
        known = read_done(folder)
        if known["request"] != request:
            raise InputError(f"{folder} holds a training with other options ({known['request']}); give another --out.")
        log(f"{name}: kept from an earlier run")
        return
    log(f"{name}:")
    started = time.monotonic()
    train_fusion(["--data", str(data), "--artifacts", str(folder), *options])
    write_json(done, {"request": request, "seconds": time.monotonic() - started})


def compare(folders: Mapping[str, Path]) -> ScoreTable:
    """The tabular score, then the variants' out-of-fold scores, on the lesions whose image all networks have seen.

    Args:
        folders: variant -> its folder, all trained on the same folds; the first one is the base of the comparison.
    """
    tables = {name: pd.read_csv(folder / OOF_FUSION, dtype={ID: "str"}).set_index(ID) for name, folder in folders.items()}
    first = next(iter(folders))
    base = tables[first]
    tables = {name: table.loc[base.index] for name, table in tables.items()}
    seen = np.logical_and.reduce([table["image_scored"] == 1 for table in tables.values()])
    patients = pd.read_csv(folders[first] / FOLDS, dtype="str").set_index(ID)[PATIENT].loc[base.index]
    scores = {TABULAR: base[TABULAR][seen]} | {name: table["network"][seen] for name, table in tables.items()}
    return bootstrap_scores(base[TARGET][seen], patients[seen], scores)


def told(gain: Estimate) -> str:
    """A difference and its interval in words: "+0.0012 [-0.0003, +0.0027]"."""
    return f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def as_markdown(
    table: ScoreTable,
    seconds: Mapping[str, float],
    label: str = "variant",
    against: str | None = None,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The comparison as Markdown: pAUC with its interval, the paired difference to the base, and minutes.

    Args:
        table: of ``compare``.
        seconds: variant -> how long its training took; the first one is the base.
        label: heads the names.
        against: what the base is called in the heading of the differences; its name, if not given.
        columns: further columns to stand behind the names: heading -> variant -> text.
    """
    columns, base = columns or {}, next(iter(seconds))
    headings = [label, *columns, "pAUC", "95 % interval", f"less {against or base}, paired", "minutes"]
    lines = [
        f"{table.rows:,} lesions with an image, {table.malignant:,} malignant, {table.patients:,} patients; out of fold, "
        f"{table.samples:,} resamples of patients.",
        "",
        f"| {' | '.join(headings)} |",
        f"| --- |{' ---: |' * (len(headings) - 1)}",
    ]
    for name, score in table.scores.items():
        cells = [TABULAR_SHOWN if name == TABULAR else name]
        cells += [texts.get(name, "") for texts in columns.values()]
        cells += [f"{score.pauc.value:.4f}", f"{score.pauc.low:.4f} to {score.pauc.high:.4f}"]
        cells += [told(table.difference(name, base)) if name not in (TABULAR, base) else ""]
        cells += [f"{seconds[name] / 60:.1f}" if name in seconds else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
