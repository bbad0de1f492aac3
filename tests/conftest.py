"""What several test modules share."""

import os

import pytest


@pytest.fixture(scope="session")
def rounds() -> int:
    """Return how many seeded cases a long comparison runs: a sample here, many under `make parity ROUNDS=...`."""
    return int(os.environ.get("BTCBOT_ROUNDS", "20"))
