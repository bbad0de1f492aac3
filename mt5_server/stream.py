"""Ticks and trade events as they happen, for programs that would otherwise poll (server-sent events).

The package pushes nothing, so one thread looks: at the quotes of the symbols that somebody listens to, at positions, orders and new
deals. What differs from the look before is an event. A look without a value (None) says nothing: nobody's position is closed because
the terminal didn't answer.

The newest events are kept in a ring, so that a client that lost its connection goes on where it was (`Last-Event-ID`). A client that
is so slow that the ring has passed it is dropped. Each stream has a thread of the web server of its own, and there are only so many:
the threads that answer everything else are not among them.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, NamedTuple, cast

from btcbot.market.clock import ServerClock
from btcbot.terminal.contract import C, Rows, StructSequence, Tick, TradeDeal, TradeOrder, TradePosition
from btcbot.terminal.wire import Answer, Call, Json, dumps
from mt5_server.gate import Gate
from mt5_server.history import LAST_SECOND, clock_of
from mt5_server.refusal import Refusal
from mt5_server.shapes import as_objects, finite, utc_list

_log = logging.getLogger(__name__)
RING: Final = 10_000  # events
LOOK_S: Final = 0.25
BEAT_S: Final = 10.0
WAIT_S: Final = 1.0  # at most, until a stream looks whether its client may still listen
LINGER_S: Final = 120.0  # the thread goes on looking for so long when nobody listens: a client may come back
LONGEST_S: Final = 600.0  # a stream ends then; who listens connects again
MOST_TICKS: Final = 2_000  # of one look
DEALS_BACK_S: Final = 300  # how far a deal may lag behind in history
PATIENCE_S: Final = 30.0  # for an order that left the list to show up in history
STATES: Final = {
    C.ORDER_STATE_FILLED: "order.filled",
    C.ORDER_STATE_PARTIAL: "order.filled",
    C.ORDER_STATE_CANCELED: "order.cancelled",
    C.ORDER_STATE_EXPIRED: "order.expired",
    C.ORDER_STATE_REJECTED: "order.rejected",
}
Topic = Literal["ticks", "trades"]


class Event(NamedTuple):
    """One event: its number, its kind, what it is about, and its data."""

    number: int
    kind: str
    symbol: str
    data: bytes


@dataclass(slots=True)
class Seen:
    """What the last look showed; None where it has shown nothing yet."""

    positions: dict[int, TradePosition] | None = None
    orders: dict[int, TradeOrder] | None = None
    deals: set[int] | None = None
    ticks: dict[str, tuple[int, int]] = field(default_factory=dict)  # the newest second of a symbol, and its ticks known
    leaving: dict[int, tuple[TradeOrder, float]] = field(default_factory=dict)  # orders that history doesn't show yet
    server_s: int = 0
    is_up: bool | None = None


class Hub:
    """Look at the terminal while somebody listens, and tell who does what changed."""

    def __init__(
        self,
        gate: Gate,
        streams: int = 16,
        on_drop: Callable[[], object] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
        look_s: float = LOOK_S,
    ):
        self._gate, self._streams, self._on_drop, self._monotonic, self._look_s = gate, streams, on_drop, monotonic, look_s
        self._changed = threading.Condition()
        self._ring: deque[Event] = deque(maxlen=RING)
        self._number = 0
        self._listeners = 0
        self._symbols: Counter[str] = Counter()
        self._linger: dict[str, float] = {}  # symbols nobody listens to any more, and until when they are looked at
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._seen = Seen()
        self._id = gate.server[:8]

    @property
    def listeners(self) -> int:
        """Return how many streams there are."""
        return self._listeners

    # ---- looking

    def _run(self) -> None:
        quiet_since: float | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, self._look_s)
                if self._is_closed:
                    return
                quiet_since = None if self._listeners else quiet_since or self._monotonic()
                if quiet_since is not None and self._monotonic() - quiet_since > LINGER_S:
                    # What happens from now on is seen by nobody, so nobody may go on from before it.
                    self._thread, self._seen = None, Seen()
                    self._ring.clear()
                    self._number += 1
                    return
            try:
                self.look()
            except Refusal as error:
                _log.warning("A look for the streams failed: %s", error)
            except Exception as error:
                _log.error("A look for the streams failed", exc_info=error)

    def look(self) -> None:
        """Look once, and tell what changed."""
        with self._changed:
            now = self._monotonic()
            self._linger = {name: until for name, until in self._linger.items() if until > now}
            symbols = sorted(name for name in {*self._symbols, *self._linger} if name)
        since = max(1, self._seen.server_s - DEALS_BACK_S)
        calls: list[Call] = [("symbol_info_tick", [name], {}) for name in symbols]
        calls += [("positions_get", [], {}), ("orders_get", [], {}), ("history_deals_get", [since, LAST_SECOND], {})]
        *quotes, positions, orders, deals = self._gate.batch(calls)
        self._tell_state(positions)
        clock = clock_of(self._gate)
        self._look_at_ticks(clock, symbols, quotes)
        self._look_at_deals(clock, deals)
        self._look_at_orders(clock, orders)
        self._look_at_positions(clock, positions)

    def _tell(self, kind: str, symbol: str, data: Json) -> None:
        with self._changed:
            self._number += 1
            self._ring.append(Event(self._number, kind, symbol, dumps(data)))
            self._changed.notify_all()

    def _tell_struct(self, clock: ServerClock, kind: str, item: StructSequence, **more: Json) -> None:
        found = as_objects(clock, [item])[0]
        self._tell(kind, str(found.get("symbol", "")), found | more)

    def _tell_state(self, answer: Answer) -> None:
        is_up = answer.value is not None
        if is_up != self._seen.is_up and not (is_up and self._seen.is_up is None):
            self._tell("terminal", "", {"up": is_up, "code": answer.error[0], "text": answer.error[1]})
        self._seen.is_up = is_up

    def _look_at_ticks(self, clock: ServerClock, symbols: Sequence[str], quotes: Sequence[Answer]) -> None:
        for symbol, answer in zip(symbols, quotes, strict=True):
            if not isinstance(tick := answer.value, Tick) or not tick.time_msc:
                continue
            self._seen.server_s = max(self._seen.server_s, tick.time)
            known = self._seen.ticks.get(symbol)
            if known is not None and known[1] == tick.time_msc:
                continue
            rows = self._ticks_since(symbol, known, tick)
            skipped = max(0, len(rows) - MOST_TICKS)
            rows = rows[skipped:]
            for row, utc in zip(rows, utc_list(clock, [cast(int, row[0]) for row in rows]), strict=True):
                server, bid, ask, last, volume, flags = map(finite, row)
                data: dict[str, Json] = {"symbol": symbol, "time": utc, "server_time": server, "bid": bid, "ask": ask}
                data |= {"last": last, "volume": volume, "flags": flags}
                self._tell("tick", symbol, data | ({"skipped": skipped} if skipped else {}))
                skipped = 0
            self._seen.ticks[symbol] = (tick.time_msc // 1000, tick.time_msc)

    def _ticks_since(self, symbol: str, known: tuple[int, int] | None, tick: Tick) -> list[list[Json]]:
        """Return what came after the tick that is known; the newest alone where the terminal can't say more."""
        newest: list[list[Json]] = [[tick.time_msc, tick.bid, tick.ask, tick.last, tick.volume_real, tick.flags]]
        if known is None:
            return newest
        answer = self._gate.batch([("copy_ticks_range", [symbol, known[0], tick.time + 1, C.COPY_TICKS_ALL], {})])[0]
        if answer.value is None or answer.raised is not None:
            return newest
        rows = cast(Rows, answer.value)
        rows = rows[(rows["time_msc"] > known[1]) & (rows["time_msc"] <= tick.time_msc)]
        names = ("time_msc", "bid", "ask", "last", "volume_real", "flags")
        return [list(row) for row in zip(*(rows[name].tolist() for name in names), strict=True)] or newest

    def _look_at_deals(self, clock: ServerClock, answer: Answer) -> None:
        if answer.value is None:
            return
        deals = cast(tuple[TradeDeal, ...], answer.value)
        if self._seen.deals is not None:
            for deal in deals:
                if deal.ticket not in self._seen.deals:
                    self._tell_struct(clock, "deal", deal)
        self._seen.deals = {deal.ticket for deal in deals} | (self._seen.deals or set())
        self._seen.server_s = max([self._seen.server_s, *(deal.time for deal in deals)])

    def _look_at_orders(self, clock: ServerClock, answer: Answer) -> None:
        if answer.value is None:
            return
        now, before = {order.ticket: order for order in cast(tuple[TradeOrder, ...], answer.value)}, self._seen.orders
        if before is not None:
            for ticket, order in now.items():
                if ticket not in before:
                    self._tell_struct(clock, "order.placed", order)
                elif _settings_of(order) != _settings_of(before[ticket]):
                    self._tell_struct(clock, "order.modified", order)
            gone = {ticket: (order, self._monotonic()) for ticket, order in before.items() if ticket not in now}
            self._seen.leaving |= gone
        self._seen.orders = now
        for ticket, (order, since) in list(self._seen.leaving.items()):
            found = self._gate.batch([("history_orders_get", [], {"ticket": ticket})])[0].value
            done = cast("tuple[TradeOrder, ...]", found or ())
            if done:
                self._tell_struct(clock, STATES.get(done[-1].state, "order.gone"), done[-1])
            elif self._monotonic() - since > PATIENCE_S:
                self._tell_struct(clock, "order.gone", order)
            else:
                continue
            del self._seen.leaving[ticket]

    def _look_at_positions(self, clock: ServerClock, answer: Answer) -> None:
        if answer.value is None:
            return
        now = {position.identifier: position for position in cast(tuple[TradePosition, ...], answer.value)}
        before, self._seen.positions = self._seen.positions, now
        if before is None:
            return
        for identifier, position in now.items():
            if identifier not in before:
                self._tell_struct(clock, "position.opened", position)
            elif _settings_of(position) != _settings_of(before[identifier]):
                self._tell_struct(clock, "position.modified", position)
        for identifier, position in before.items():
            if identifier not in now:
                deals = self._gate.batch([("history_deals_get", [], {"position": identifier})])[0].value
                shown = as_objects(clock, cast("tuple[TradeDeal, ...]", deals or ()))
                self._tell_struct(clock, "position.closed", position, deals=cast(Json, shown))

    # ---- listening

    def listen(
        self,
        symbols: Sequence[str],
        topics: frozenset[str],
        last_id: str | None,
        is_live: Callable[[], bool] = lambda: True,
    ) -> Iterator[bytes]:
        """Return the stream of one client: text, or empty where its thread may look whether the client is still there."""
        clock_of(self._gate)
        with self._changed:
            if self._is_closed or self._listeners >= self._streams:
                said = f"{self._streams} streams are open, and no more are served: close one, or raise --streams."
                raise Refusal(503, "too-many-streams", said, {"Retry-After": "5"})
            self._listeners += 1
            self._symbols.update(symbols)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stream looks", daemon=True)
                self._thread.start()
        return _Stream(self._events(frozenset(symbols), topics, last_id, is_live), lambda: self._leave(symbols))

    def _leave(self, symbols: Sequence[str]) -> None:
        with self._changed:
            self._listeners -= 1
            self._symbols.subtract(symbols)
            for name in symbols:
                if self._symbols[name] <= 0:
                    del self._symbols[name]
                    self._linger[name] = self._monotonic() + LINGER_S

    def _resume(self, last_id: str | None) -> tuple[int, str | None]:
        """Return the number of the last event the client knows, and why it must read the state anew, if so."""
        with self._changed:
            if last_id is None:
                return self._number, None
            front, _, number = last_id.partition("-")
            if front != self._id or not number.isdecimal() or len(number) > 18 or int(number) > self._number:
                return self._number, "restarted"
            oldest = self._ring[0].number if self._ring else self._number + 1
            return (int(number), None) if int(number) >= oldest - 1 else (self._number, "gap")

    def _events(self, symbols: frozenset[str], topics: frozenset[str], last_id: str | None, is_live: Callable[[], bool]) -> Iterator[bytes]:
        last, why = self._resume(last_id)
        reset = b'id: %s-%d\nevent: reset\ndata: {"reason":"%s"}\n\n' % (self._id.encode(), last, (why or "").encode())
        yield b"retry: 1000\n\n" + (b"" if why is None else reset)
        began = beaten = self._monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has_news, last), WAIT_S)
                if self._is_closed:
                    return
                oldest = self._ring[0].number if self._ring else self._number + 1
                if last < oldest - 1:
                    self._on_drop()
                    return
                first = len(self._ring) - (self._number - last)
                fresh = [self._ring[place] for place in range(first, len(self._ring))]
                last = self._number
            wanted = [event for event in fresh if _is_wanted(event, symbols, topics)]
            now = self._monotonic()
            if wanted:
                yield b"".join(self._text(event) for event in wanted)
                beaten = now
            elif now - beaten >= BEAT_S:
                yield b": beat\n\n"
                beaten = now
            if now - began > LONGEST_S or not is_live():
                return

    def _has_news(self, known: int) -> bool:
        return self._is_closed or self._number > known

    def _text(self, event: Event) -> bytes:
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (self._id.encode(), event.number, event.kind.encode(), event.data)

    def close(self) -> None:
        """End all streams."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class _Stream(Iterator[bytes]):
    """An iterator that says when it is left, however that happens, even before the first piece was taken."""

    def __init__(self, events: Iterator[bytes], leave: Callable[[], None]):
        self._events, self._leave = events, leave
        self._is_left = threading.Lock()

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """Leave the stream."""
        if self._is_left.acquire(blocking=False):
            self._leave()


def _is_wanted(event: Event, symbols: frozenset[str], topics: frozenset[str]) -> bool:
    if event.kind == "tick":
        return "ticks" in topics and event.symbol in symbols
    if event.kind == "terminal":
        return True
    return "trades" in topics and (not symbols or not event.symbol or event.symbol in symbols)


def _settings_of(item: TradePosition | TradeOrder) -> tuple[object, ...]:
    """Return what a person or a program can change; prices and profits move by themselves."""
    if isinstance(item, TradePosition):
        return item.ticket, item.type, item.volume, item.price_open, item.sl, item.tp
    return item.state, item.type, item.volume_current, item.price_open, item.price_stoplimit, item.sl, item.tp, item.time_expiration
