"""Artifacts with fold networks of random weights: made in seconds, enough for pages of scores and heat maps."""

import json

import numpy as np

from inference.artifacts import (
    FUSION,
    OOF_FUSION,
    OOF_TABULAR,
    checked_file,
    fold_network_file,
    load_manifest,
    network_column,
)
from inference.images import image_batches
from inference.network import NetworkConfig, build_network
from inference.schema import ID, TARGET, read_scores
from train.folds import make_folds
from train.lesions import open_images
from train.manifest import record_stage
from train.tabular import train_tabular

FOLDS = 2
CONFIG = NetworkConfig(32, head_units=8)


def make_artifacts(data, folder):
    """Two folds, a holdout, one CatBoost model of few trees per fold, and networks that correct by chance."""
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    parameters = folder / "few_trees.json"
    parameters.write_text(json.dumps({"iterations": 10, "depth": 3, "learning_rate": 0.3}))
    where = ["--data", str(data), "--artifacts", str(folder)]
    make_folds([*where, "--folds", str(FOLDS), "--holdout", "0.25"])
    train_tabular([*where, "--seeds", "1", "--params", str(parameters)])
    oof = read_scores(checked_file(folder, load_manifest(folder), OOF_TABULAR), [TARGET, "fold", "tabular"]).reset_index()
    oof = oof.assign(network=oof["tabular"], image_scored=0)
    names = []
    for fold in range(FOLDS):
        keras.utils.set_random_seed(fold)
        network = build_network(CONFIG)
        network.get_layer("correction").set_weights([np.linspace(-0.5, 0.6, 8)[:, None], np.array([0.3 * fold])])
        names.append(fold_network_file(fold))
        network.save_weights(folder / names[-1])
        rows = np.flatnonzero(oof["fold"] == fold)
        for positions, crops in image_batches(open_images(data), oof[ID].iloc[rows].tolist(), CONFIG.image_size, 64):
            at = rows[positions.numpy()]
            batch = {"crop": crops.numpy(), "tabular": oof["tabular"].to_numpy("float32")[at, None]}
            oof.loc[at, "network"] = network(batch, training=False).numpy()[:, 0].astype("float64")
            oof.loc[at, "image_scored"] = 1
    oof.assign(**{network_column(FUSION): oof["network"]}).to_csv(folder / OOF_FUSION, index=False)
    network = {"weights": names, "settings": CONFIG.to_dict(), "pauc": 0.0}
    content = {"networks": {FUSION: network}, "combination": {"kind": "network"}}
    record_stage(folder, "network", content, [*names, OOF_FUSION])
    return folder
