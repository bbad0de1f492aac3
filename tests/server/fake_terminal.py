"""A terminal that does what a test tells it, and counts what it executed."""

from collections.abc import Callable, Sequence

import numpy as np

from btcbot.terminal.contract import RATES_DTYPE, OrderSendResult, Tick, exception_set, request_from

TOKEN = "a-token-of-the-tests-that-is-long-enough"
ORDER = {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0, "magic": 7, "comment": "test"}


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

    def initialize(self) -> bool:
        self.is_connected = True
        return True

    def shutdown(self) -> bool:
        self.is_connected = False
        return True

    def last_error(self) -> tuple[int, str]:
        return self.error

    def symbols_total(self) -> int:
        self.error = (1, "Success")
        return self.now

    def symbol_info_tick(self, symbol: str) -> Tick | None:
        self.error = (1, "Success") if symbol == "BTCUSD" else (-4, "Terminal: Not found")
        return Tick((self.now, 0.1 + 0.2, 1e-300, float("nan"), 0, 0, 6, 0.0)) if symbol == "BTCUSD" else None

    def copy_rates_from_pos(self, symbol: str, timeframe: int, start: int, count: int) -> np.ndarray | None:
        self.error = (1, "Success")
        if not isinstance(count, int):
            raise exception_set("copy_rates_from_pos", TypeError("'float' object cannot be interpreted as an integer"))
        if count == 0:
            self.error = (-2, "Terminal: Invalid params")
            return None
        rates = np.zeros(count, RATES_DTYPE)
        rates["close"] = np.arange(count) / 3
        return rates

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
