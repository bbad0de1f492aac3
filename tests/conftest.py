"""What several test modules share."""

import os
import signal

import coverage
import pytest
from hypothesis import settings

# What a property says holds however long it takes to try it: other programs run beside the tests.
settings.register_profile("btcbot", deadline=None)
settings.load_profile("btcbot")


@pytest.fixture(scope="session")
def rounds() -> int:
    """Return how many seeded cases a long comparison runs: a sample here, many under `make parity ROUNDS=...`."""
    return int(os.environ.get("BTCBOT_ROUNDS", "20"))


# A shell starts its background jobs with SIGINT ignored, and all their children inherit that. What is handled here is not inherited: the
# programs that the tests start hear the signal whatever started the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save what this process of pytest-xdist measured before it says that it is done: from then on it may be killed."""
    if hasattr(session.config, "workerinput") and (measured := coverage.Coverage.current()):
        measured.stop()
        measured.save()
