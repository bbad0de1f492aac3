"""What people and programs in other languages read: names, UTC with the server's time beside it, pages with cursors, Arrow for bulk."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Annotated, Any, Final, Literal, cast

import numpy as np
from flask import Response
from flask_openapi3.models.tag import Tag
from flask_openapi3.openapi import OpenAPI
from pydantic import ConfigDict, Field

from btcbot.market.clock import utc_ms
from btcbot.terminal.contract import (
    RATES_DTYPE,
    TICKS_DTYPE,
    TIMEFRAMES,
    AccountInfo,
    C,
    StructSequence,
    SymbolInfo,
    TerminalInfo,
    Tick,
    TradeDeal,
    TradeOrder,
    TradePosition,
)
from btcbot.terminal.wire import ARROW, Call, Json
from mt5_server import history
from mt5_server.auth import current
from mt5_server.cursors import cursor, place_of
from mt5_server.document import media
from mt5_server.history import LAST_SECOND, Piece, Range, clock_of, server_span
from mt5_server.model import Model
from mt5_server.parts import Parts, answer, wants_arrow
from mt5_server.problems import Problem, taken
from mt5_server.refusal import Refusal
from mt5_server.shapes import as_objects

TRADE_MODES: Final = {C.ACCOUNT_TRADE_MODE_DEMO: "demo", C.ACCOUNT_TRADE_MODE_CONTEST: "contest", C.ACCOUNT_TRADE_MODE_REAL: "real"}
MOST_ROWS: Final = 20_000_000
LEAST_PAGE: Final = 2_000  # ticks to ask the terminal for, however few are wanted
MARKET: Final = Tag(name="market", description="Bars, ticks and symbols.")
ACCOUNT: Final = Tag(name="account", description="The account, its positions, orders and deals.")
_MOMENT: Final = "UTC: milliseconds, or ISO 8601 such as 2024-03-10T07:00"

Timeframe = Literal[
    "M1", "M2", "M3", "M4", "M5", "M6", "M10", "M12", "M15", "M20", "M30", "H1", "H2", "H3", "H4", "H6", "H8", "H12", "D1", "W1", "MN1"
]
SymbolName = Annotated[str, Field(min_length=1, max_length=64, json_schema_extra={"example": "BTCUSD"})]
Limit = Annotated[int, Field(ge=1, le=1000)]
Cursor = Annotated[str | None, Field(max_length=200, description="`next` of the page before")]
Moment = Annotated[str | None, Field(max_length=40, description=_MOMENT, json_schema_extra={"example": "2024-03-10T07:00"})]
Twice = Annotated[
    Literal["raise", "earliest", "latest"], Field(description="Which of both moments a time is that came twice on the server's clock")
]
Ticket = Annotated[int | None, Field(ge=0, lt=2**64)]


class SymbolQuery(Model):
    """Which symbol."""

    symbol: SymbolName


class SymbolsQuery(Model):
    """Which symbols."""

    group: str | None = Field(None, max_length=1900, description="Mask such as *USD*,!EUR*")
    limit: Limit = 1000
    cursor: Cursor = None


class BarsQuery(Model):
    """Which bars: from <= time < to, or the newest where `from` is left out."""

    symbol: SymbolName
    timeframe: Timeframe = "M1"
    start: Moment = Field(None, alias="from")
    end: Moment = Field(None, alias="to")
    limit: int | None = Field(None, ge=1, le=MOST_ROWS, description="Rows; at most 10000 in JSON, where 1000 is the default")
    cursor: Cursor = None
    ambiguous: Literal["raise", "earliest", "latest"] = Field(
        "raise", description="Which of both a time is that came twice on the server's clock"
    )


class TicksQuery(Model):
    """Which ticks: from <= time < to."""

    symbol: SymbolName
    start: Moment = Field(alias="from")
    end: Moment = Field(None, alias="to")
    flags: Literal["all", "info", "trade"] = "all"
    limit: int | None = Field(None, ge=1, le=MOST_ROWS, description="Rows; at most 10000 in JSON, where 1000 is the default")
    cursor: Cursor = None
    ambiguous: Literal["raise", "earliest", "latest"] = Field(
        "raise", description="Which of both a time is that came twice on the server's clock"
    )


class PositionsQuery(Model):
    """Which positions."""

    symbol: str | None = Field(None, max_length=64)
    group: str | None = Field(None, max_length=1900)
    ticket: Ticket = None
    limit: Limit = 100
    cursor: Cursor = None


class OrdersQuery(PositionsQuery):
    """Which orders: those that wait, or those done between two moments."""

    history: bool = False
    start: Moment = Field(None, alias="from")
    end: Moment = Field(None, alias="to")
    position: Ticket = None


class DealsQuery(Model):
    """Which deals."""

    start: Moment = Field(None, alias="from")
    end: Moment = Field(None, alias="to")
    symbol: str | None = Field(None, max_length=64)
    position: Ticket = None
    order: Ticket = None
    limit: Limit = 100
    cursor: Cursor = None


class Page(Model):
    """A part of a list."""

    model_config = ConfigDict(extra="allow")
    clock: str = Field(description="Rule of the trade server's clock")
    next: str | None = Field(None, description="Cursor of the next page, null on the last one")


class Symbols(Model):
    """Names of symbols."""

    symbols: list[str]
    next: str | None = None


class SymbolShown(Model):
    """A symbol, and its newest quote."""

    clock: str
    symbol: dict[str, Any]
    tick: dict[str, Any] | None


class Bar(Model):
    """One bar, of bids."""

    time: int = Field(description="Opening, ms UTC")
    server_time: int = Field(description="Opening on the trade server's clock, ms")
    open: float
    high: float
    low: float
    close: float
    tick_volume: int
    spread: int = Field(description="Points; usually the smallest of the bar")
    real_volume: int


class Bars(Page):
    """Bars in order."""

    symbol: str
    timeframe: str
    bars: list[Bar]


class TickShown(Model):
    """One tick."""

    time: int = Field(description="ms UTC")
    server_time: int = Field(description="On the trade server's clock, ms")
    bid: float
    ask: float
    last: float
    volume: int
    volume_real: float
    flags: int


class Ticks(Page):
    """Ticks in order."""

    symbol: str
    ticks: list[TickShown]


class Positions(Page):
    """Open positions."""

    positions: list[dict[str, Any]]


class Orders(Page):
    """Orders."""

    orders: list[dict[str, Any]]


class Deals(Page):
    """Deals."""

    deals: list[dict[str, Any]]


class Account(Model):
    """The account and the state of its terminal."""

    clock: str | None
    account: dict[str, Any]
    terminal: dict[str, Any]


class StreamQuery(Model):
    """What to hear of."""

    symbols: str = Field("", max_length=1000, description="Names, with commas between; empty: no ticks, trades of all symbols")
    events: Literal["ticks", "trades", "ticks,trades", "trades,ticks"] = "ticks,trades"


class StreamHeaders(Model):
    """Where to go on."""

    last: str | None = Field(None, alias="Last-Event-ID", max_length=64, description="Of the last event that came")


def moment(text: str | None) -> int | None:
    """Return the milliseconds UTC that a parameter names."""
    if text is None:
        return None
    return utc_ms(int(text)) if text.isascii() and text.isdecimal() and len(text) < 20 else utc_ms(text)


def span(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    """Return both ends of a range."""
    first, last = moment(start), moment(end)
    if first is not None and last is not None and first >= last:
        raise Refusal(400, "bad-request", "The range is empty: `from` must be before `to`, which is excluded.")
    return first, last


def _most(limit: int | None) -> int:
    if limit is not None and limit > 10_000:
        raise Refusal(400, "bad-request", f"{limit} rows are too many for JSON: ask for at most 10000 a page, or Accept: {ARROW}.")
    return limit or 1000


EVENT: Final = {"type": "object", "properties": {name: {"type": "string"} for name in ("id", "event", "data")}}
BULK_ANSWER: Final[dict[str, Any]] = {ARROW: {"schema": {"type": "string", "format": "binary"}}}
Bars.model_config["openapi_extra"] = Ticks.model_config["openapi_extra"] = {"content": BULK_ANSWER}  # type: ignore[typeddict-unknown-key]  # flask-openapi3 reads it


def register(app: OpenAPI, parts: Parts) -> None:
    """Add the routes to `app`."""
    gate = parts.gate

    # ---- market

    @app.get("/v1/symbol", tags=[MARKET], responses={200: SymbolShown, 404: Problem, 409: Problem})
    def symbol(query: SymbolQuery) -> Response:
        """Return a symbol's specification and its newest quote."""
        clock = clock_of(gate)
        history.symbol_rule(gate, query.symbol)
        found, tick = gate.batch([("symbol_info", [query.symbol], {}), ("symbol_info_tick", [query.symbol], {})])
        info = as_objects(clock, [cast(SymbolInfo, taken(found, "symbol_info"))])[0]
        quote = as_objects(clock, [tick.value])[0] if isinstance(tick.value, Tick) and tick.value.time else None
        return answer({"clock": clock.rule, "symbol": info, "tick": quote})

    @app.get("/v1/symbols", tags=[MARKET], responses={200: Symbols, 409: Problem})
    def symbols(query: SymbolsQuery) -> Response:
        """List the broker's symbols."""
        question = ["symbols", query.group]
        place = place_of(query.cursor, question, 1) or [0]
        keywords = {} if query.group is None else {"group": query.group}
        found = cast("tuple[SymbolInfo, ...]", taken(gate.batch([("symbols_get", [], keywords)])[0], "symbols_get"))
        names = sorted(info.name for info in found)
        end = place[0] + query.limit
        return answer({"symbols": [*names[place[0] : end]], "next": cursor(question, end) if end < len(names) else None})

    @app.get("/v1/ohlcv", tags=[MARKET], responses={200: Bars, 404: Problem, 409: Problem})
    def ohlcv(query: BarsQuery) -> Response:
        """Return bars; with `Accept: application/vnd.apache.arrow.stream` the whole range while it is read."""
        clock = clock_of(gate)
        start, end = span(query.start, query.end)
        asked = Range(query.symbol, start, end, query.ambiguous)
        timeframe = TIMEFRAMES[query.timeframe]
        about = {"symbol": query.symbol, "timeframe": query.timeframe, "clock": clock.rule}
        if wants_arrow():
            pieces = history.bars(gate, clock, asked, timeframe) if start is not None else _newest_of(asked, timeframe, query.limit or 1000)
            return _arrow(pieces, RATES_DTYPE, history.BAR_COLUMNS, "time", 1000, about, query.limit or MOST_ROWS)
        limit = _most(query.limit)
        if start is None and end is None:
            piece = history.newest_bars(gate, clock, asked, timeframe, limit)
            return answer({**about, "bars": cast(Json, history.as_json(piece, history.BAR_COLUMNS, "time", 1000)), "next": None})
        question = ["bars", query.symbol, query.timeframe, start, end]
        place = place_of(query.cursor, question, 1) or [0]
        rows: list[dict[str, Json]] = []
        for piece in history.bars(gate, clock, asked, timeframe, place[0], min(limit + 1, history.WINDOW)):
            rows += history.as_json(piece, history.BAR_COLUMNS, "time", 1000)
            if len(rows) > limit:
                break
        return _page(about, "bars", rows, limit, question)

    def _page(about: dict[str, str], name: str, rows: list[dict[str, Json]], limit: int, question: Sequence[object]) -> Response:
        shown = rows[:limit]
        more = None
        if len(rows) > limit:
            more = cursor(question, cast(int, shown[-1]["server_time"]) // 1000)
        return answer({**about, name: cast(Json, shown), "next": more})

    def _newest_of(asked: Range, timeframe: int, count: int) -> Iterator[Piece]:
        yield history.newest_bars(gate, clock_of(gate), asked, timeframe, count)

    @app.get("/v1/ticks", tags=[MARKET], responses={200: Ticks, 404: Problem, 409: Problem})
    def ticks(query: TicksQuery) -> Response:
        """Return ticks; with `Accept: application/vnd.apache.arrow.stream` the whole range while it is read."""
        clock = clock_of(gate)
        start, end = span(query.start, query.end)
        asked, flags = Range(query.symbol, start, end, query.ambiguous), history.FLAGS[query.flags]
        question = ["ticks", query.symbol, query.flags, start, end]
        about = {"symbol": query.symbol, "clock": clock.rule}
        after = place_of(query.cursor, question, 2)
        known = None if after is None else (after[0], after[1])
        if wants_arrow():
            pieces = history.ticks(gate, clock, asked, flags, known)
            return _arrow(pieces, TICKS_DTYPE, history.TICK_COLUMNS, "time_msc", 1, about, query.limit or MOST_ROWS)
        limit = _most(query.limit)
        rows: list[dict[str, Json]] = []
        for found, utc in history.ticks(gate, clock, asked, flags, known, max(limit + 1, LEAST_PAGE)):
            left = limit + 1 - len(rows)
            rows += history.as_json((found[:left], utc[:left]), history.TICK_COLUMNS, "time_msc", 1)
            if len(rows) > limit:
                break
        shown, more = rows[:limit], None
        if len(rows) > limit:
            last = cast(int, shown[-1]["server_time"])
            same = sum(row["server_time"] == last for row in shown)
            more = cursor(question, last, same + (known[1] if known is not None and known[0] == last else 0))
        return answer({**about, "ticks": cast(Json, shown), "next": more})

    def _arrow(
        pieces: Iterator[Piece],
        dtype: np.dtype[np.void],
        columns: tuple[str, ...],
        raw: str,
        factor: int,
        about: dict[str, str],
        limit: int,
    ) -> Response:
        """Send record batches while they are read; the first is read before, so that what is refused is refused."""
        wanted = history.schema(dtype, columns, about)
        first = list(islice(pieces, 1))

        def body() -> Iterator[bytes]:
            left = limit
            yield wanted.serialize().to_pybytes()
            for rows, utc in chain(first, pieces):
                if len(rows):
                    yield history.as_arrow((rows[:left], utc[:left]), columns, raw, factor, wanted)
                left -= min(left, len(rows))
                if not left:
                    break
            yield history.EOS

        return Response(body(), content_type=ARROW)

    # ---- account

    @app.get("/v1/account", tags=[ACCOUNT], responses={200: Account, 409: Problem})
    def account() -> Response:
        """Return the account, and whether its terminal can trade."""
        found, terminal = gate.batch([("account_info", [], {}), ("terminal_info", [], {})])
        info = cast(AccountInfo, taken(found, "account_info"))
        where = cast(TerminalInfo, taken(terminal, "terminal_info"))
        shown: dict[str, Json] = {**cast(dict[str, Json], info._asdict())}
        shown["trade_mode_name"] = TRADE_MODES.get(info.trade_mode, "unknown")
        names = ("connected", "trade_allowed", "tradeapi_disabled", "ping_last", "maxbars", "build", "company", "name")
        state: dict[str, Json] = {name: cast(Json, getattr(where, name)) for name in names}
        return answer({"clock": gate.clock_rule, "account": shown, "terminal": state})

    def listed(name: str, items: Sequence[StructSequence], question: list[object], limit: int, place: int) -> Response:
        clock = clock_of(gate)
        later = [item for item in items if cast(int, getattr(item, "ticket", 0)) > place]
        later.sort(key=lambda item: cast(int, getattr(item, "ticket", 0)))
        shown = later[:limit]
        more = cursor(question, cast(int, getattr(shown[-1], "ticket", 0))) if len(later) > limit else None
        return answer({"clock": clock.rule, name: cast(Json, as_objects(clock, shown)), "next": more})

    @app.get("/v1/positions", tags=[ACCOUNT], responses={200: Positions, 409: Problem})
    def positions(query: PositionsQuery) -> Response:
        """List open positions."""
        question: list[object] = ["positions", query.symbol, query.group, query.ticket]
        place = place_of(query.cursor, question, 1) or [0]
        found = cast("tuple[TradePosition, ...]", taken(gate.batch([_by("positions_get", query)])[0], "positions_get"))
        return listed("positions", found, question, query.limit, place[0])

    @app.get("/v1/orders", tags=[ACCOUNT], responses={200: Orders, 409: Problem})
    def orders(query: OrdersQuery) -> Response:
        """List orders that wait, or with `history=true` those that are done."""
        start, end = span(query.start, query.end)
        question: list[object] = ["orders", query.symbol, query.group, query.ticket, query.history, query.position, start, end]
        place = place_of(query.cursor, question, 1) or [0]
        call = _by("orders_get", query) if not query.history else _past("history_orders_get", start, end, query.position, query.ticket)
        found = cast("tuple[TradeOrder, ...]", taken(gate.batch([call])[0], call[0]))
        if query.history and query.symbol is not None:
            found = tuple(order for order in found if order.symbol == query.symbol)
        return listed("orders", found, question, query.limit, place[0])

    @app.get("/v1/deals", tags=[ACCOUNT], responses={200: Deals, 409: Problem})
    def deals(query: DealsQuery) -> Response:
        """List deals, the oldest first."""
        start, end = span(query.start, query.end)
        question: list[object] = ["deals", query.symbol, query.position, query.order, start, end]
        place = place_of(query.cursor, question, 1) or [0]
        call = _past("history_deals_get", start, end, query.position, query.order)
        found = cast("tuple[TradeDeal, ...]", taken(gate.batch([call])[0], call[0]))
        if query.symbol is not None:
            found = tuple(deal for deal in found if deal.symbol == query.symbol)
        return listed("deals", found, question, query.limit, place[0])

    def _by(name: str, query: PositionsQuery) -> Call:
        if query.ticket is not None:
            return name, [], {"ticket": query.ticket}
        if query.symbol is not None:
            return name, [], {"symbol": query.symbol}
        return name, [], {} if query.group is None else {"group": query.group}

    def _past(name: str, start: int | None, end: int | None, position: int | None, ticket: int | None) -> Call:
        if ticket is not None:
            return name, [], {"ticket": ticket}
        if position is not None:
            return name, [], {"position": position}
        clock = clock_of(gate)
        first = 1 if start is None else max(1, server_span(clock, start, start + 1)[0] // 1000)
        last = LAST_SECOND if end is None else min(LAST_SECOND, -(-server_span(clock, end - 1, end)[1] // 1000))
        return name, [first, last], {}

    # ---- as it happens

    @app.get(
        "/v1/stream",
        tags=[MARKET],
        responses={
            200: media("text/event-stream", "Server-sent events", EVENT),
            404: Problem,
            409: Problem,
        },
    )
    def stream(header: StreamHeaders, query: StreamQuery) -> Response:
        """Send ticks and trade events as they happen."""
        names = list(dict.fromkeys(name for name in query.symbols.split(",") if name))
        if len(names) > 50:
            raise Refusal(400, "bad-request", f"{len(names)} symbols are too many for one stream: name at most 50.")
        for name in names:
            history.symbol_rule(gate, name)
        caller = current()
        events = parts.hub.listen(names, frozenset(query.events.split(",")), header.last, lambda: parts.auth.is_live(caller))
        return Response(events, content_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
