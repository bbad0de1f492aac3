"""A server in this process, and one behind a real port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fake_terminal import TOKEN, FakeTerminal, FakeTwin
from flask.testing import FlaskClient

from btcbot.terminal.journal import OrderJournal
from mt5_server.app import create_app
from mt5_server.auth import hash_token
from mt5_server.server import listen


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[OrderJournal]:
    """Return an empty journal."""
    with OrderJournal(tmp_path / "server.sqlite3") as journal:
        yield journal


@pytest.fixture
def terminal() -> FakeTwin:
    """Return a terminal with a clock that waits."""
    return FakeTwin()


@pytest.fixture
def web(terminal: FakeTwin, journal: OrderJournal) -> FlaskClient:
    """Return a client of the app that needs no port and sends the token."""
    client = create_app(terminal, hash_token(TOKEN), journal, "NY+7", now_ms=lambda: 1_710_054_000_000).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    return client


@contextmanager
def serving(terminal: FakeTerminal, journal: OrderJournal, certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """Serve `terminal` on a free port of this machine while the block runs."""
    server, url = listen(create_app(terminal, hash_token(TOKEN), journal, "NY+7"), "127.0.0.1", 0, certificate, key)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        server.stop()
        thread.join()


@pytest.fixture
def serve(journal: OrderJournal) -> Iterator[Callable[..., str]]:
    """Return a function that serves a terminal until the test ends."""
    with ExitStack() as stack:
        yield lambda terminal, *files: stack.enter_context(serving(terminal, journal, *files))
