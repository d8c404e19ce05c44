"""Artifacts whose networks are small, for the tests of the kernel that are not about ResNet50."""

import json
import shutil
from unittest import mock

import pytest
from small_network import a_network, small_backbone

from inference.artifacts import MANIFEST, checked_file, fold_network_file, load_manifest
from inference.files import sha256_of


@pytest.fixture(scope="session")
def small_artifacts(trained, tabular_only, shared_folder):
    """The artifacts of ``trained`` with two networks of a small backbone; the final logits are the networks' means."""

    def make(folder):
        manifest = load_manifest(trained.artifacts)
        for name in tabular_only.glob("*.cbm"):
            shutil.copy(checked_file(trained.artifacts, manifest, name.name), folder)
        for fold in (0, 1):
            network = a_network()
            network.get_layer("correction").bias.assign([fold + 0.5])
            network.save_weights(folder / fold_network_file(fold))
            manifest["files"][fold_network_file(fold)] = sha256_of(folder / fold_network_file(fold))
        manifest["network"]["settings"] |= {"head_units": 8, "tabular_mean": 0.0, "tabular_std": 1.0}
        manifest["network"]["combination"] = {"kind": "network"}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return shared_folder("small_artifacts", make)


@pytest.fixture(scope="module")
def small_networks():
    """The kernel builds its networks around the small backbone."""
    with mock.patch("keras.applications.ResNet50", small_backbone):
        yield
