"""What the studies of networks start from."""

import pytest
from pretended_training import without_networks


@pytest.fixture
def artifacts(synthetic_data, tmp_path):
    """Folds and made-up tabular logits of ``synthetic_data``."""
    return without_networks(synthetic_data, tmp_path / "artifacts")
