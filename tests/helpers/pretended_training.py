"""Stand-ins for the stages before a study of networks, and for its trainings."""

import numpy as np
import pandas as pd

from inference.schema import ID, TARGET
from train.folds import HOLDOUT, make_folds
from train.manifest import record_stage


def without_networks(data, folder):
    """Makes ``folder`` an artifact folder with folds and made-up tabular logits, in no time."""
    make_folds(["--data", str(data), "--artifacts", str(folder), "--folds", "2", "--holdout", "0.25"])
    rows = pd.read_csv(folder / "folds.csv").query(f"fold != {HOLDOUT}")
    logits = np.random.default_rng(0).normal(scale=3, size=len(rows)) + rows[TARGET]
    rows[[ID, TARGET, "fold"]].assign(tabular=logits).to_csv(folder / "oof_tabular.csv", index=False)
    record_stage(folder, "tabular", {}, ["oof_tabular.csv"])
    return folder


def pretend(monkeypatch, commands):
    """Replaces train.fusion: adds its command to ``commands``, and writes logits shifted by the number of trainings."""

    def train(arguments):
        commands.append(arguments)
        folder = arguments[arguments.index("--artifacts") + 1]
        oof = pd.read_csv(f"{folder}/oof_tabular.csv")
        oof = oof.assign(network=oof["tabular"] + oof["target"] * len(commands), image_scored=(oof.index != 3).astype(int))
        oof.to_csv(f"{folder}/oof_fusion.csv", index=False)

    monkeypatch.setattr("evaluation.studies.compare.train_fusion", train)
