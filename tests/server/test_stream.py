"""Ticks and trade events as they happen: what is told, what a client that comes back hears, and who is dropped."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from fake_terminal import TOKEN, FakeTerminal, FakeTwin, struct
from flask.testing import FlaskClient
from test_reading import quotes, slug

from btcbot.terminal.contract import C, TradeDeal, TradeOrder, TradePosition
from mt5_server.gate import Gate
from mt5_server.refusal import Refusal
from mt5_server.stream import Hub

if TYPE_CHECKING:
    from mt5_server.parts import Parts

ALL = frozenset({"ticks", "trades"})
SECOND = 1_710_000_000


def parse(text: bytes) -> list[tuple[str, str, dict[str, Any]]]:
    """Return id, kind and data of each event."""
    found = []
    for block in text.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith((":", "retry")))
        if "event" in lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


class Listener:
    """A client of a hub whose looks are made by hand."""

    def __init__(self, hub: Hub, symbols: tuple[str, ...] = ("BTCUSD",), last: str | None = None, topics: frozenset[str] = ALL):
        self.stream = hub.listen(symbols, topics, last)
        self.heard = parse(next(self.stream))

    def hear(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return the next events."""
        fresh = parse(next(self.stream))
        self.heard += fresh
        return fresh

    def close(self) -> None:
        """Leave."""
        self.stream.close()


@pytest.fixture
def clock() -> list[float]:
    """Return the time, which a test sets."""
    return [1000.0]


@pytest.fixture
def hub(terminal: FakeTwin, clock: list[float]) -> Iterator[Hub]:
    """Return a hub that looks only when it is told to."""
    hub = Hub(Gate.local(terminal, "NY+7"), 3, monotonic=lambda: clock[0], look_s=1e6)
    yield hub
    hub.close()


def position(**fields: object) -> TradePosition:
    """Return a position."""
    return struct(TradePosition, **{"ticket": 5, "identifier": 5, "time": SECOND, "symbol": "BTCUSD", "volume": 0.1, **fields})


def order(**fields: object) -> TradeOrder:
    """Return an order."""
    return struct(TradeOrder, **{"ticket": 7, "time_setup": SECOND, "symbol": "BTCUSD", "volume_current": 0.1, **fields})


def test_ticks(hub: Hub, terminal: FakeTwin) -> None:
    listener = Listener(hub)
    hub.look()
    ((number, kind, data),) = listener.hear()
    assert number.endswith("-1")
    assert (kind, data["symbol"], data["server_time"]) == ("tick", "BTCUSD", terminal.second * 1000)
    assert data["time"] == data["server_time"] - 7_200_000
    hub.look()  # nothing new
    start = terminal.second * 1000
    terminal.now = 2
    terminal.ticks = quotes([start - 5, start, start + 700, start + 700, start + 2000])
    hub.look()
    assert [data["server_time"] - start for _, _, data in listener.hear()] == [700, 700, 2000]
    terminal.now, terminal.silent = 4, {"copy_ticks_range": (-7, "Terminal: Unsupported function")}
    hub.look()
    assert [data["server_time"] - start for _, _, data in listener.hear()] == [4000]


def test_very_many_ticks(hub: Hub, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt5_server.stream.MOST_TICKS", 3)
    listener = Listener(hub)
    hub.look()
    listener.hear()
    terminal.now = 1
    terminal.ticks = quotes([terminal.second * 1000 + 100 * number for number in range(1, 11)])
    hub.look()
    assert [(data["bid"], data.get("skipped")) for _, _, data in listener.hear()] == [(7.0, 7), (8.0, None), (9.0, None)]


def test_positions(hub: Hub, terminal: FakeTwin) -> None:
    terminal.positions = (position(ticket=1, identifier=1),)
    listener = Listener(hub, topics=frozenset({"trades"}))
    hub.look()  # what was there before is no event
    terminal.positions += (position(),)
    hub.look()
    terminal.positions = (terminal.positions[0], position(sl=5.0, price_current=7.0))
    hub.look()
    terminal.positions = (terminal.positions[0], position(sl=5.0, price_current=8.0, profit=3.0, swap=1.0))
    hub.look()  # prices move by themselves
    terminal.silent = {"positions_get": (-10005, "IPC timeout"), "orders_get": (-10005, ""), "history_deals_get": (-10005, "")}
    hub.look()  # no value says nothing about positions
    terminal.silent, terminal.positions = {}, (terminal.positions[0],)
    terminal.deals = (struct(TradeDeal, ticket=9, position_id=5, time=SECOND, symbol="BTCUSD", entry=1),)
    hub.look()
    kinds = [kind for _, kind, _ in listener.hear()]
    assert kinds == ["position.opened", "position.modified", "terminal", "terminal", "deal", "position.closed"]
    closed = listener.heard[-1][2]
    assert (closed["ticket"], closed["deals"][0]["ticket"]) == ("5", "9")
    assert [data["up"] for _, kind, data in listener.heard if kind == "terminal"] == [False, True]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (C.ORDER_STATE_FILLED, "order.filled"),
        (C.ORDER_STATE_CANCELED, "order.cancelled"),
        (C.ORDER_STATE_EXPIRED, "order.expired"),
        (99, "order.gone"),
    ],
)
def test_orders(hub: Hub, terminal: FakeTwin, state: int, kind: str) -> None:
    listener = Listener(hub, topics=frozenset({"trades"}))
    hub.look()
    terminal.orders = (order(),)
    hub.look()
    terminal.orders = (order(price_open=3.0),)
    hub.look()
    terminal.orders = ()
    hub.look()  # history is late
    terminal.history = (order(state=state, time_done=SECOND),)
    hub.look()
    hub.look()
    assert [kind for _, kind, _ in listener.hear()] == ["order.placed", "order.modified", kind]


def test_an_order_that_history_never_shows(hub: Hub, terminal: FakeTwin, clock: list[float]) -> None:
    terminal.orders = (order(),)
    listener = Listener(hub, topics=frozenset({"trades"}))
    hub.look()
    terminal.orders = ()
    hub.look()
    clock[0] += 31
    hub.look()
    assert [kind for _, kind, _ in listener.hear()] == ["order.gone"]


def test_who_comes_back_goes_on(hub: Hub, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(hub)
    for terminal.now in range(3):
        hub.look()
    first, *rest = listener.hear()
    listener.close()
    assert hub.listeners == 0
    terminal.now = 3
    hub.look()  # the symbol is still looked at
    again = Listener(hub, last=first[0])
    assert [number for number, _, _ in again.hear()][:2] == [number for number, _, _ in rest]
    assert len(again.heard) == 3
    for last in ("nonsense", "00000000-1", f"{first[0].split('-')[0]}-999", f"{first[0].split('-')[0]}-{'9' * 30}", "-"):
        stranger = Listener(hub, last=last)
        ((_, kind, data),) = stranger.heard
        assert (kind, data) == ("reset", {"reason": "restarted"})
        stranger.close()
    hub._ring = type(hub._ring)(list(hub._ring)[-1:], maxlen=10)
    again.close()
    (reset,) = Listener(hub, last=first[0]).heard
    assert reset[2] == {"reason": "gap"}


def test_who_is_too_slow_is_dropped(terminal: FakeTwin) -> None:
    dropped: list[int] = []
    hub = Hub(Gate.local(terminal, "NY+7"), 3, lambda: dropped.append(1), look_s=1e6)
    hub._ring = type(hub._ring)(maxlen=2)
    listener = Listener(hub)
    for terminal.now in range(5):
        hub.look()
    with pytest.raises(StopIteration):
        listener.hear()
    assert dropped == [1]
    hub.close()


def test_each_hears_what_it_asked_for(hub: Hub, terminal: FakeTwin) -> None:
    ticks, trades = Listener(hub, topics=frozenset({"ticks"})), Listener(hub, ("ETHUSD",), topics=frozenset({"trades"}))
    everything = Listener(hub, (), topics=ALL)
    hub.look()
    terminal.positions = (position(), position(ticket=6, identifier=6, symbol="ETHUSD"))
    terminal.now = 1
    hub.look()
    assert {kind for _, kind, _ in ticks.hear()} == {"tick"}
    assert [(kind, data["symbol"]) for _, kind, data in trades.hear()] == [("position.opened", "ETHUSD")]
    assert [(kind, data["symbol"]) for _, kind, data in everything.hear()] == [("position.opened", "BTCUSD"), ("position.opened", "ETHUSD")]


def test_only_so_many(hub: Hub) -> None:
    listeners = [Listener(hub) for _ in range(3)]
    with pytest.raises(Refusal) as caught:
        Listener(hub)
    assert (caught.value.status, caught.value.type) == (503, "too-many-streams")
    listeners[0].close()
    listeners[0].close()  # counts once
    assert hub.listeners == 2
    Listener(hub)
    hub.close()
    with pytest.raises(StopIteration):
        listeners[1].hear()


def test_beats_and_an_end(hub: Hub, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    listener, is_live = Listener(hub), [True]
    monkeypatch.setattr("mt5_server.stream.WAIT_S", 0.001)
    threading.Timer(0.05, lambda: clock.__setitem__(0, clock[0] + 11)).start()
    assert next(listener.stream) == b": beat\n\n"
    clock[0] += 700
    with pytest.raises(StopIteration):
        while True:
            next(listener.stream)
    ended = hub.listen(("BTCUSD",), ALL, None, lambda: is_live[0])
    next(ended)
    is_live[0] = False  # its token was revoked
    with pytest.raises(StopIteration):
        next(ended)


def test_nobody_listens_for_a_while(terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt5_server.stream.LINGER_S", 0.05)
    hub = Hub(Gate.local(terminal, "NY+7"), look_s=0.005)
    listener = Listener(hub)
    first = listener.hear()[0][0]
    listener.close()
    deadline = time.monotonic() + 10
    while hub._thread is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert hub._thread is None
    (reset,) = Listener(hub, last=first).heard  # what happened meanwhile was seen by nobody
    assert reset[1] == "reset"
    hub.close()


def test_a_look_that_fails_is_not_the_last_one(terminal: FakeTwin, caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(Gate.local(terminal, "NY+7"), look_s=0.005)
    real: Callable[..., object] = terminal.orders_get

    def fail(**options: object) -> object:
        terminal.orders_get = real
        raise RuntimeError("no terminal does that")

    terminal.orders_get = fail
    listener = Listener(hub)
    assert listener.hear()[0][1] == "tick"
    assert "no terminal does that" in caplog.text
    hub.close()


def test_over_http(serve: Callable[..., str], terminal: FakeTwin) -> None:
    url = serve(terminal)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    streams = [requests.get(f"{url}/v1/stream?symbols=BTCUSD", headers=headers, stream=True, timeout=10) for _ in range(4)]
    assert [stream.status_code for stream in streams] == [200] * 4
    assert slug_of(requests.get(f"{url}/v1/stream", headers=headers, timeout=10)) == "too-many-streams"
    terminal.now += 1  # a stream that was opened after the first look has missed the tick before
    for stream in streams:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith(b"event:")) == b"event: tick"
    began = time.monotonic()
    assert requests.get(f"{url}/health", headers=headers, timeout=10).json()["streams"] == 4
    assert time.monotonic() - began < 2
    streams[0].close()
    assert np.isfinite(began)


def slug_of(answer: requests.Response) -> str:
    """Return the kind of a problem."""
    return str(answer.json()["type"]).rsplit(":", 1)[-1]


def test_a_stream_needs_a_clock(web: FlaskClient, parts: "Parts") -> None:
    parts.gate._channel.about["clock"] = None
    assert slug(web.get("/v1/stream"), 409) == "clock-unresolved"
    assert isinstance(parts.gate, Gate)
    assert issubclass(FakeTwin, FakeTerminal)
