"""What all tests of the backtester share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from joblib.externals.loky import get_reusable_executor


@pytest.fixture(scope="module", autouse=True)
def _no_process_left() -> Iterator[None]:
    """End the processes that sweeps of functions keep for the next one: other tests fork, and a fork must not take their threads along."""
    yield
    get_reusable_executor().shutdown(wait=True)
