"""Artifacts with fold networks of random weights: enough for what shows scores and heat maps, in seconds."""

import json

import numpy as np
import pandas as pd

from inference.artifacts import checked_file, load_manifest
from inference.images import image_batches
from inference.network import build_network
from inference.schema import ID
from train.folds import make_folds
from train.lesions import open_images
from train.manifest import record_stage
from train.tabular import train_tabular

SIZE, FOLDS = 32, 2


def make_artifacts(data, folder):
    """Two folds, a holdout, one CatBoost model of few trees per fold, and networks that correct by chance."""
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    parameters = folder / "few_trees.json"
    parameters.write_text(json.dumps({"iterations": 10, "depth": 3, "learning_rate": 0.3}))
    where = ["--data", str(data), "--artifacts", str(folder)]
    make_folds([*where, "--folds", str(FOLDS), "--holdout", "0.25"])
    train_tabular([*where, "--seeds", "1", "--params", str(parameters)])
    oof = pd.read_csv(checked_file(folder, load_manifest(folder), "oof_tabular.csv"), dtype={ID: "str"})
    oof = oof.assign(network=lambda table: table["tabular"], image_scored=0)
    names = []
    for fold in range(FOLDS):
        keras.utils.set_random_seed(fold)
        network = build_network(SIZE, head_units=8)
        network.get_layer("correction").set_weights([np.linspace(-0.5, 0.6, 8)[:, None], np.array([0.3 * fold])])
        names.append(f"fusion_fold{fold}.weights.h5")
        network.save_weights(folder / names[-1])
        rows = np.flatnonzero(oof["fold"] == fold)
        for positions, crops in image_batches(open_images(data), oof[ID].iloc[rows].tolist(), SIZE, 64):
            at = rows[positions.numpy()]
            seen = {"crop": crops.numpy(), "tabular": oof["tabular"].to_numpy("float32")[at, None]}
            oof.loc[at, "network"] = network(seen, training=False).numpy()[:, 0].astype("float64")
            oof.loc[at, "image_scored"] = 1
    oof.to_csv(folder / "oof_fusion.csv", index=False)
    settings = {"image_size": SIZE, "inputs": ["crop", "tabular"], "head_units": 8}
    content = {"weights": names, "settings": settings, "combination": {"kind": "network"}}
    record_stage(folder, "network", content, [*names, "oof_fusion.csv"])
    return folder
