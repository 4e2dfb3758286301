"""What the tests of this room share."""

import pytest


@pytest.fixture
def smallest() -> dict:
    """What an experiment cannot do without."""
    return {
        "model": {"d_model": 64, "num_layers": 2, "attention": {"num_heads": 4}, "mlp": {"d_ff": 128}},
        "data": {"phases": [{"steps": 3}]},
    }
