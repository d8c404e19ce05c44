"""The official release of SLICE-3D made of a competition folder, with a split beside it."""

import numpy as np
import pandas as pd

from inference.images import ImageStore, find_images
from inference.schema import ID, TARGET, TEST_COLUMNS, TRAIN_ONLY

NAME = "ISIC_2024_Permissive_Training"


def make_release(data, root, lesions):
    """The first ``lesions`` of ``data``: every malignant one has metadata, and every fifth benign one; split.csv beside."""
    table = pd.read_csv(data / "train-metadata.csv", low_memory=False).iloc[:lesions]
    crops, store = root / f"{NAME}_Input", ImageStore(find_images(data, "train"))
    crops.mkdir(parents=True)
    for isic_id in table[ID]:
        (crops / f"{isic_id}.jpg").write_bytes(store.read(isic_id))
    store.close()
    known = table[(table[TARGET] == 1) | (table.index % 5 == 0)]
    known[[name for name in TEST_COLUMNS if name in known]].to_csv(crops / "metadata.csv", index=False)
    truth = pd.DataFrame({ID: table[ID], "malignant": table[TARGET].astype(float)})
    truth.to_csv(root / f"{NAME}_GroundTruth.csv", index=False)
    supplement = [ID, "attribution", "copyright_license", *(name for name in table if name in TRAIN_ONLY and name != TARGET)]
    table[supplement].to_csv(root / f"{NAME}_Supplement.csv", index=False)
    split = np.where(np.arange(lesions) % 6 == 5, "val", "train")
    pd.DataFrame({ID: table[ID], "split": split}).to_csv(root / "split.csv", index=False)
    return root
