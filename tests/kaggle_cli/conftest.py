"""The stand-in of Kaggle that the tests of kaggle_cli share."""

import pytest
from kaggle_stand_in import standing_in


def pytest_collection_modifyitems(items):
    """Marks the tests that run the Kaggle CLI as ``integration``."""
    for item in items:
        if "kaggle" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A stand-in that knows nothing yet; the real CLI talks to it."""
    with standing_in(tmp_path, monkeypatch) as stand_in:
        yield stand_in
