"""A terminal that does what a test tells it, and counts what it executed."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from btcbot.terminal.contract import (
    RATES_DTYPE,
    TICKS_DTYPE,
    AccountInfo,
    OrderCheckResult,
    OrderSendResult,
    StructSequence,
    SymbolInfo,
    TerminalInfo,
    Tick,
    TradeDeal,
    TradeOrder,
    TradePosition,
    exception_set,
    request_from,
)

TOKEN = "a-token-of-the-tests-that-is-long-enough"
ORDER = {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0, "magic": 7, "comment": "test"}
TEXT = {
    "symbol",
    "comment",
    "external_id",
    "name",
    "server",
    "currency",
    "company",
    "path",
    "description",
    "language",
    "data_path",
    "commondata_path",
}
Struct = TypeVar("Struct", bound=StructSequence)


def struct(kind: type[Struct], **fields: object) -> Struct:
    """Return a structure in which what isn't given is 0, or empty."""
    names = kind(range(kind.n_fields))._asdict()
    return kind([fields.get(name, "" if name in TEXT else 0) for name in names])


class FakeTerminal:
    """The functions of a terminal that the tests of the server call."""

    def __init__(self) -> None:
        self.error = (1, "Success")
        self.executed: list[dict[str, object]] = []
        self.before_order: Callable[[], object] = lambda: None  # runs before an order is executed
        self.after_order: Callable[[], object] = lambda: None  # runs after it was executed, before the answer
        self.retcode = 10009
        self.now = 0
        self.is_connected = False
        self.maxbars = 100_000
        self.second = 1_710_000_000  # of the newest tick
        self.rates = np.zeros(0, RATES_DTYPE)
        self.ticks = np.zeros(0, TICKS_DTYPE)
        self.positions: tuple[TradePosition, ...] = ()
        self.orders: tuple[TradeOrder, ...] = ()
        self.deals: tuple[TradeDeal, ...] = ()
        self.history: tuple[TradeOrder, ...] = ()
        self.asked: list[str] = []
        self.silent: dict[str, tuple[int, str]] = {}  # functions that answer None, and with which error

    def initialize(self) -> bool:
        self.is_connected = True
        return True

    def shutdown(self) -> bool:
        self.is_connected = False
        return True

    def last_error(self) -> tuple[int, str]:
        return self.error

    def _answer(self, name: str, value: object) -> object:
        self.asked.append(name)
        self.error = self.silent.get(name, (1, "Success"))
        return None if name in self.silent else value

    def version(self) -> object:
        return self._answer("version", (500, 5000, "1 Jan 2026"))

    def symbols_total(self) -> object:
        return self._answer("symbols_total", self.now)

    def symbols_get(self, group: str = "") -> object:
        names = [name for name in ("BTCUSD", "ETHUSD", "XRPUSD") if not group or name in group]
        return self._answer("symbols_get", tuple(struct(SymbolInfo, name=name) for name in names))

    def symbol_select(self, symbol: str, enable: bool = True) -> object:
        return self._answer("symbol_select", True)

    def terminal_info(self) -> object:
        return self._answer("terminal_info", struct(TerminalInfo, connected=True, trade_allowed=True, maxbars=self.maxbars))

    def account_info(self) -> object:
        info = struct(AccountInfo, login=1001, balance=10_000.0, equity=10_000.0, margin_mode=2, trade_allowed=True, trade_expert=True)
        return self._answer("account_info", info)

    def symbol_info(self, symbol: str) -> object:
        if symbol != "BTCUSD":
            self.error = (-4, "Terminal: Not found")
            return None
        info = struct(
            SymbolInfo,
            name=symbol,
            digits=2,
            point=0.01,
            time=self.second,
            volume_min=0.01,
            volume_max=10.0,
            volume_step=0.01,
            trade_contract_size=1.0,
            trade_tick_size=0.01,
            trade_tick_value=0.01,
            bid=1.0,
            ask=1.0,
        )
        return self._answer("symbol_info", info)

    def symbol_info_tick(self, symbol: str) -> object:
        found = symbol == "BTCUSD"
        second = self.second + self.now
        tick = Tick((second, 0.1 + 0.2, 1e-300, float("nan"), 0, second * 1000, 6, 0.0)) if found else None
        value = self._answer("symbol_info_tick", tick)
        if not found:
            self.error = (-4, "Terminal: Not found")
        return value

    def copy_rates_from_pos(self, symbol: str, timeframe: int, start: int, count: int) -> object:
        self.error = (1, "Success")
        if not isinstance(count, int):
            raise exception_set("copy_rates_from_pos", TypeError("'float' object cannot be interpreted as an integer"))
        if count == 0 or count >= self.maxbars:
            self.error = (-2, "Terminal: Invalid params")
            return None
        if len(self.rates):
            return self._answer("copy_rates_from_pos", self.rates[max(0, len(self.rates) - start - count) : len(self.rates) - start])
        rates = np.zeros(count, RATES_DTYPE)
        rates["close"] = np.arange(count) / 3
        return self._answer("copy_rates_from_pos", rates)

    def copy_rates_range(self, symbol: str, timeframe: int, first: int, last: int) -> object:
        value = self._answer(
            "copy_rates_range", None if last < first else self.rates[(self.rates["time"] >= first) & (self.rates["time"] <= last)]
        )
        if last < first or last - first >= 60 * self.maxbars:
            self.error, value = (-2, "Terminal: Invalid params"), None
        return value

    def copy_ticks_from(self, symbol: str, first: int, count: int, flags: int) -> object:
        return self._answer("copy_ticks_from", self.ticks[self.ticks["time_msc"] >= first * 1000][:count])

    def copy_ticks_range(self, symbol: str, first: int, last: int, flags: int) -> object:
        times = self.ticks["time_msc"]
        return self._answer("copy_ticks_range", self.ticks[(times >= first * 1000) & (times <= last * 1000)])

    def positions_get(self, symbol: str | None = None, group: str | None = None, ticket: int | None = None) -> object:
        return self._answer("positions_get", tuple(item for item in self.positions if ticket in (None, item.ticket)))

    def orders_get(self, symbol: str | None = None, group: str | None = None, ticket: int | None = None) -> object:
        return self._answer("orders_get", tuple(item for item in self.orders if ticket in (None, item.ticket)))

    def history_deals_get(self, *span: int, ticket: int | None = None, position: int | None = None) -> object:
        deals = (deal for deal in self.deals if not span or span[0] <= deal.time <= span[1])
        return self._answer("history_deals_get", tuple(deal for deal in deals if position in (None, deal.position_id)))

    def history_orders_get(self, *span: int, ticket: int | None = None, position: int | None = None) -> object:
        return self._answer("history_orders_get", tuple(order for order in self.history if ticket in (None, order.ticket)))

    def order_check(self, request: dict[str, object]) -> object:
        self.error = (1, "Success")
        checked = request_from(request)
        return OrderCheckResult((0, 10_000.0, 10_000.0, 0.0, 0.0, 10_000.0, 0.0, "Done", checked))

    def order_send(self, request: dict[str, object]) -> OrderSendResult | None:
        self.error = (1, "Success")
        checked = request_from(request)
        self.before_order()
        self.executed.append(request)
        number = len(self.executed)
        self.after_order()
        return OrderSendResult((self.retcode, number, number, 0.1, 1.0, 1.0, 1.0, "", number, 0, checked))


class FakeTwin(FakeTerminal):
    """The same with a clock that waits."""

    def advance(self, bars: int = 1, calls: Sequence[object] = ()) -> tuple[int, list[object]]:
        self.now += bars
        return bars, []

    def batch(self, calls: Sequence[object]) -> list[object]:
        raise NotImplementedError("the server calls the functions itself")
