"""What the tests of scale share: one cluster per process, artifacts to score with, and what the kernel makes of them."""

from types import SimpleNamespace

import h5py
import pandas as pd
import pytest
from dask_cluster import cluster
from untrained_networks import make_artifacts

from evaluation.dry_run import mount_test_folder
from inference.schema import ID
from inference.submission import main as run_kernel

#: Fixtures whose tests start workers or TensorFlow.
HEAVY = {"two_workers", "scoring"}


def pytest_collection_modifyitems(items):
    for item in items:
        if HEAVY & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory):
    """The address of a cluster of two worker processes; a test that kills workers starts its own."""
    with cluster(2, tmp_path_factory.mktemp("cluster")) as (address, _):
        yield address


def by_kernel(competition, artifacts, folder):
    """What the kernel makes of the whole test folder: scores and probabilities by isic_id."""
    folder.mkdir(exist_ok=True)
    where = ["--competition", str(competition), "--artifacts", str(artifacts)]
    assert run_kernel([*where, "--output", str(folder / "submission.csv"), "--scores", str(folder / "scores.csv")]) == 0
    scores = pd.read_csv(folder / "scores.csv").set_index(ID)
    return scores.join(pd.read_csv(folder / "submission.csv").set_index(ID)["target"])


@pytest.fixture(scope="session")
def scoring(synthetic_data, shared_folder):
    """``.artifacts``; ``.competition``, a test folder in which three lesions have no image; its metadata in three CSV
    files, ``.tables``, over which the patients are scattered; and ``.kernel``, the kernel's scores."""

    def make(folder):
        make_artifacts(synthetic_data, folder / "artifacts")
        ids = pd.read_csv(synthetic_data / "train-metadata.csv", low_memory=False)[ID].tolist()
        mount_test_folder(synthetic_data, ids, folder / "competition")
        with h5py.File(folder / "competition" / "test-image.hdf5", "r+") as file:
            for isic_id in ids[:3]:
                del file[isic_id]
        table = pd.read_csv(folder / "competition" / "test-metadata.csv", dtype="str", keep_default_na=False)
        (folder / "tables").mkdir()
        for number in range(3):
            table.iloc[number::3].to_csv(folder / "tables" / f"{number}.csv", index=False)
        by_kernel(folder / "competition", folder / "artifacts", folder).to_pickle(folder / "kernel.pickle")

    folder = shared_folder("scoring", make)
    places = {name: folder / name for name in ("artifacts", "competition", "tables")}
    return SimpleNamespace(**places, kernel=pd.read_pickle(folder / "kernel.pickle"), by_kernel=by_kernel)
