"""A server in this process, and one behind a real port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_terminal import TOKEN, FakeTerminal, FakeTwin
from flask.testing import FlaskClient

from btcbot.terminal.journal import OrderJournal

if TYPE_CHECKING:
    from mt5_server.parts import Parts

NOW_MS = 1_710_054_000_000


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[OrderJournal]:
    """Return an empty journal."""
    with OrderJournal(tmp_path / "server.sqlite3") as journal:
        yield journal


@pytest.fixture
def terminal() -> FakeTwin:
    """Return a terminal with a clock that waits."""
    return FakeTwin()


def parts_of(
    terminal: FakeTerminal, journal: OrderJournal, clock: str | None = "NY+7", now_ms: Callable[[], int] = lambda: NOW_MS
) -> "Parts":
    """Put a server together around `terminal`; its guard is beside the journal."""
    from mt5_server.assembly import assemble
    from mt5_server.auth import Auth, AuthSettings
    from mt5_server.gate import Gate

    auth = Auth.open(AuthSettings(), TOKEN)
    return assemble(Gate.local(terminal, clock), auth, journal, journal.path.with_name("guard.sqlite3"), streams=4, now_ms=lambda: NOW_MS)


def client_of(parts: "Parts") -> FlaskClient:
    """Return a client of the app that needs no port and sends the token."""
    from mt5_server.app import create_app

    client = create_app(parts).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    return client


@pytest.fixture
def parts(terminal: FakeTwin, journal: OrderJournal) -> Iterator["Parts"]:
    """Return the parts of a server."""
    found = parts_of(terminal, journal)
    yield found
    found.hub.close()


@pytest.fixture
def web(parts: "Parts") -> FlaskClient:
    """Return a client of the app."""
    return client_of(parts)


@contextmanager
def serving(terminal: FakeTerminal, journal: OrderJournal, certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """Serve `terminal` on a free port of this machine while the block runs."""
    from mt5_server.app import create_app
    from mt5_server.server import listen

    parts = parts_of(terminal, journal)
    server, url = listen(create_app(parts), "127.0.0.1", 0, certificate, key, streams=2)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        parts.hub.close()
        server.stop()
        thread.join()


@pytest.fixture
def serve(journal: OrderJournal) -> Iterator[Callable[..., str]]:
    """Return a function that serves a terminal until the test ends."""
    with ExitStack() as stack:
        yield lambda terminal, *files: stack.enter_context(serving(terminal, journal, *files))
