"""Bars and ticks of any range, read piece by piece, in UTC.

The terminal refuses what is longer than its limit ("max bars in chart"), so bars are asked for in windows below it. Ticks are asked for
from a whole second on, because the package drops the fraction: each page overlaps the second in which the last one ended, and what
was there before is left out. A page that fits inside one second would never get on, so the next one is twice as long.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from btcbot.core.errors import BtcbotError
from btcbot.market.clock import ServerClock, clock_changes, offset_ms, server_clock, to_utc
from btcbot.terminal.contract import C, Rows, SymbolInfo, TerminalInfo, timeframe_ms
from btcbot.terminal.wire import Json
from mt5_server.gate import Gate
from mt5_server.problems import taken, terminal_refusal
from mt5_server.refusal import Refusal
from mt5_server.shapes import finite

I8 = NDArray[np.int64]
Ambiguous = Literal["raise", "earliest", "latest"]
WINDOW: Final = 50_000  # bars
PAGE: Final = 50_000  # ticks
LARGEST_PAGE: Final = 4_000_000
MONTH_S: Final = 31 * 86_400
LAST_SECOND: Final = 2**31 - 1  # what the package takes
PATIENCE: Final = (0.1, 0.2, 0.4, 0.8)  # s: the first request for a symbol may fail while its history is downloaded
NOT_READY: Final = frozenset({C.RES_E_FAIL})
EOS: Final = b"\xff\xff\xff\xff\x00\x00\x00\x00"
FLAGS: Final = {"all": C.COPY_TICKS_ALL, "info": C.COPY_TICKS_INFO, "trade": C.COPY_TICKS_TRADE}


def clock_of(gate: Gate) -> ServerClock:
    """Return the trade server's clock, or refuse: a time whose rule nobody knows is not guessed."""
    if gate.clock_rule is None:
        said = "Nobody said by which rule the trade server's clock runs: start mt5-server with --clock, for example --clock NY+7."
        raise Refusal(409, "clock-unresolved", said)
    return server_clock(gate.clock_rule)


def utc_of(clock: ServerClock, server_ms: I8, ambiguous: Ambiguous) -> I8:
    """Return UTC for times of the server's clock."""
    try:
        return np.asarray(to_utc(clock, server_ms, ambiguous))
    except BtcbotError as error:
        if "came twice" in str(error) or "ambiguous" in str(error):
            said = f"{error} Here: ask with ambiguous=earliest or ambiguous=latest."
            raise Refusal(409, "clock-ambiguous", said, clock=clock.rule) from None
        raise Refusal(409, "clock-unresolved", str(error), clock=clock.rule) from None


def server_span(clock: ServerClock, start: int, end: int) -> tuple[int, int]:
    """Return server times, in ms, between which all of `start` to `end` (UTC, excluded) lies."""
    try:
        edges = [start, end, *(int(change) + side for change in clock_changes(clock, start, end) for side in (-1, 0))]
        offsets = [int(offset_ms(clock, edge)) for edge in edges]
    except BtcbotError as error:
        raise Refusal(409, "clock-unresolved", str(error), clock=clock.rule) from None
    return start + min(offsets), end + max(offsets)


@dataclass(frozen=True, slots=True)
class Rule:
    """The symbol and what the terminal allows."""

    digits: int
    maxbars: int


def symbol_rule(gate: Gate, symbol: str) -> Rule:
    """Return what is known of `symbol`, after it was put into Market Watch."""
    found, terminal = gate.batch([("symbol_info", [symbol], {}), ("terminal_info", [], {})])
    if found.value is None and found.error[0] in (C.RES_E_NOT_FOUND, C.RES_E_INVALID_PARAMS):
        raise no_such_symbol(symbol)
    info = cast(SymbolInfo, taken(found, "symbol_info"))
    if not info.select:
        gate.batch([("symbol_select", [symbol, True], {})])
    return Rule(info.digits, max(2, cast(TerminalInfo, taken(terminal, "terminal_info")).maxbars))


def no_such_symbol(symbol: str) -> Refusal:
    """Return what is said about a symbol that the broker doesn't have."""
    return Refusal(404, "no-such-symbol", f"The broker has no symbol {symbol[:40]!r}: GET /v1/symbols lists them.")


def rows_of(gate: Gate, name: str, *arguments: object) -> Rows:
    """Return bars or ticks, with patience while the terminal downloads them."""
    for pause in (*PATIENCE, None):
        answer = gate.batch([(name, arguments, {})])[0]
        if answer.raised is None and answer.value is not None:
            return cast(Rows, answer.value)
        if pause is None or answer.raised is not None or answer.error[0] not in NOT_READY:
            break
        time.sleep(pause)
    if answer.raised is None and answer.error[0] in NOT_READY:
        said = "The terminal has no history for that yet: it is downloading, or there is none. Ask again."
        raise Refusal(503, "history-not-ready", said, {"Retry-After": "2"}, call=name, code=answer.error[0], text=answer.error[1])
    taken(answer, name)
    raise terminal_refusal(name, *answer.error)


@dataclass(frozen=True, slots=True)
class Range:
    """What is asked for."""

    symbol: str
    start: int | None  # UTC ms
    end: int | None  # UTC ms, excluded
    ambiguous: Ambiguous


Piece = tuple[Rows, I8]  # rows of the terminal, and their UTC


def newest_bar(gate: Gate, symbol: str, timeframe: int) -> int | None:
    """Return the opening of the newest bar in server seconds, None where there is none."""
    rows = rows_of(gate, "copy_rates_from_pos", symbol, timeframe, 0, 1)
    return int(rows["time"][-1]) if len(rows) else None


def bars(gate: Gate, clock: ServerClock, asked: Range, timeframe: int, after: int | None = None, window: int = WINDOW) -> Iterator[Piece]:
    """Yield the bars of a range in order; `after` is the opening of the last one that is known, in server seconds."""
    rule = symbol_rule(gate, asked.symbol)
    newest = newest_bar(gate, asked.symbol, timeframe)
    if newest is None:
        return
    length = MONTH_S if timeframe == C.TIMEFRAME_MN1 else timeframe_ms(timeframe) // 1000
    first, last = server_span(clock, asked.start or 0, min(asked.end or (newest + 86_400) * 1000, (newest + 86_400) * 1000))
    step = max(1, min(window, rule.maxbars - 1))
    begin, stop = max(1, -(-first // 1000), (after or 0) + 1), min((last - 1) // 1000, newest, LAST_SECOND)
    while begin <= stop:
        until = min(begin + step * length - 1, stop)
        rows = rows_of(gate, "copy_rates_range", asked.symbol, timeframe, begin, until)
        if len(rows):
            utc = utc_of(clock, rows["time"] * 1000, asked.ambiguous)
            yield _within(rows, utc, asked)
        begin = until + 1


def newest_bars(gate: Gate, clock: ServerClock, asked: Range, timeframe: int, count: int) -> Piece:
    """Return the newest bars, the unfinished one last."""
    rule = symbol_rule(gate, asked.symbol)
    rows = rows_of(gate, "copy_rates_from_pos", asked.symbol, timeframe, 0, min(count, rule.maxbars - 1))
    return rows, utc_of(clock, rows["time"] * 1000, asked.ambiguous)


def ticks(
    gate: Gate, clock: ServerClock, asked: Range, flags: int, after: tuple[int, int] | None = None, page: int = PAGE
) -> Iterator[Piece]:
    """Yield the ticks of a range in order; `after`: the server's time of the last one known, and how many of it are."""
    symbol_rule(gate, asked.symbol)
    last = LAST_SECOND * 1000 if asked.end is None else server_span(clock, asked.end, asked.end)[1]
    start = server_span(clock, asked.start or 0, asked.start or 0)[0] if after is None else after[0]
    second, known, size = max(1, start // 1000), 0, page
    while second * 1000 <= last:
        rows = rows_of(gate, "copy_ticks_from", asked.symbol, second, size, flags)
        if not len(rows):
            return
        is_full, ended = len(rows) >= size, int(rows["time_msc"][-1]) // 1000
        if after is not None:
            if is_full and size < LARGEST_PAGE and int(rows["time_msc"][-1]) <= after[0]:  # the page ends before the place is reached
                size *= 2
                continue
            known, after = int((rows["time_msc"] < after[0]).sum()) + after[1], None
        fresh = rows[known:]
        if is_full and ended == second and len(rows) >= LARGEST_PAGE:
            raise Refusal(502, "terminal-failed", f"The terminal returns {len(rows)} ticks of one second: no page gets past it.")
        size = min(size * 2, LARGEST_PAGE) if ended == second else page
        second, known = ended, max(known if ended == second else 0, int((rows["time_msc"] // 1000 == ended).sum()))
        if len(fresh):
            yield _within(fresh, utc_of(clock, fresh["time_msc"], asked.ambiguous), asked)
        if not is_full:
            return


def _within(rows: Rows, utc: I8, asked: Range) -> Piece:
    """Leave out what lies outside: the server's clock may show the same time for moments inside and outside of the range."""
    if asked.start is None and asked.end is None:
        return rows, utc
    keep = (utc >= (asked.start or 0)) & (utc < (asked.end if asked.end is not None else np.iinfo(np.int64).max))
    return (rows, utc) if keep.all() else (rows[keep], utc[keep])


# ---- as JSON and as Arrow

BAR_COLUMNS: Final = ("open", "high", "low", "close", "tick_volume", "spread", "real_volume")
TICK_COLUMNS: Final = ("bid", "ask", "last", "volume", "volume_real", "flags")


def _finite(column: NDArray[np.generic]) -> list[Json]:
    values = cast("list[Json]", column.tolist())
    return values if column.dtype.kind != "f" or np.isfinite(column).all() else [finite(value) for value in values]


def as_json(piece: Piece, columns: tuple[str, ...], raw: str, factor: int) -> list[dict[str, Json]]:
    """Return rows as objects; `raw` is the column of the server's time, of which `factor` milliseconds make one."""
    rows, utc = piece
    names = ("time", "server_time", *columns)
    values = [utc.tolist(), (rows[raw] * factor).tolist(), *(_finite(rows[name]) for name in columns)]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def schema(dtype: np.dtype[np.void], columns: tuple[str, ...], about: dict[str, str]) -> pa.Schema:
    """Return the columns of an Arrow stream."""
    head = [("time", pa.timestamp("ms", "UTC")), ("server_time", pa.timestamp("ms"))]
    return pa.schema([*head, *((name, pa.from_numpy_dtype(dtype[name])) for name in columns)], metadata=about)


def as_arrow(piece: Piece, columns: tuple[str, ...], raw: str, factor: int, wanted: pa.Schema) -> bytes:
    """Return rows as one record batch of an Arrow stream."""
    rows, utc = piece
    server = np.ascontiguousarray(rows[raw]) if factor == 1 else rows[raw] * factor
    arrays = [pa.array(utc).cast(wanted.field(0).type), pa.array(server).cast(wanted.field(1).type)]
    arrays += [pa.array(np.ascontiguousarray(rows[name])) for name in columns]
    batch = pa.RecordBatch.from_arrays(arrays, schema=wanted)
    return cast(bytes, batch.serialize().to_pybytes())
