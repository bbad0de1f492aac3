"""What several test modules share."""

import os
import signal

import pytest


@pytest.fixture(scope="session")
def rounds() -> int:
    """Return how many seeded cases a long comparison runs: a sample here, many under `make parity ROUNDS=...`."""
    return int(os.environ.get("BTCBOT_ROUNDS", "20"))


# A shell starts its background jobs with SIGINT ignored, and all their children inherit that. What is handled here is not inherited: the
# programs that the tests start hear the signal whatever started the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
