"""Random programs of calls give the same answers on a twin direct and through server and client, and the books balance after each.

`make test` runs a sample of 400 steps, `make parity` 10,000.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from btcbot.market.clock import utc_ms
from btcbot.market.profile import PROFILES
from btcbot.market.synthetic import synthetic_bars
from btcbot.terminal.contract import FUNCTIONS, C
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.remote import RemoteTerminal
from btcbot.terminal.twin import Twin
from mt5_server.app import create_app
from mt5_server.assembly import assemble
from mt5_server.auth import Auth, AuthSettings
from mt5_server.gate import Gate
from mt5_server.server import listen

STEPS = 50
TOKEN = "the-token-of-a-differential-test-run"
START, LIVE, END = "2024-03-05", "2024-03-05T12:00", "2024-03-08"  # Tuesday to Friday: a rollover each night, the triple one too
BARS = {digits: synthetic_bars(3, utc_ms(START), utc_ms(END), digits=digits) for digits in {p.symbol.digits for p in PROFILES.values()}}

TIMEFRAMES = [C.TIMEFRAME_M1, C.TIMEFRAME_M5, C.TIMEFRAME_H1, C.TIMEFRAME_D1, C.TIMEFRAME_W1, 7, 0, -1]
MOMENTS = [
    0,
    1,
    utc_ms(LIVE) // 1000,
    utc_ms(LIVE) // 1000 + 0.7,
    utc_ms(END) // 1000,
    2**31 - 1,
    2**31,
    datetime(2024, 3, 5, 11, tzinfo=UTC),
    "now",
    math.nan,
]
COUNTS = [0, 1, 5, 300, 99_999, 100_000, -1, 2.5, True, np.int64(3)]
ODD = ["", "EURUSD", "x" * 30, "BTC\0USD", 5, None]
CALLS: Counter[str] = Counter()  # compared calls of each function, and "steps"


def answer(call: Callable[..., object], last_error: Callable[[], tuple[int, str]], *given: object, **named: object) -> tuple[object, ...]:
    """Everything a program can see of a call."""
    try:
        value = call(*given, **named)
    except (SystemError, TypeError) as error:
        return type(error).__name__, str(error), repr(error.__cause__), last_error()
    shown = (value.dtype.descr, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)
    return type(value).__name__, shown, last_error()


class Differential(RuleBasedStateMachine):
    """The same calls on two equal twins, one of them behind a server."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize(name=st.sampled_from(sorted(PROFILES)))
    def connect(self, name: str) -> None:
        """Start both."""
        self.profile = PROFILES[name]
        bars = BARS[self.profile.symbol.digits]
        self.direct, behind = Twin(bars, self.profile, start=LIVE), Twin(bars, self.profile, start=LIVE)
        behind.initialize()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        journal = self.stack.enter_context(OrderJournal(folder / "server.sqlite3"))
        auth = self.stack.enter_context(Auth.open(AuthSettings(), TOKEN))
        parts = assemble(Gate.local(behind, str(self.profile.clock)), auth, journal, folder / "guard.sqlite3")
        server, url = listen(create_app(parts), "127.0.0.1", 0)
        serving = threading.Thread(target=server.serve, daemon=True)
        serving.start()
        self.stack.callback(serving.join)
        self.stack.callback(server.stop)
        self.remote = RemoteTerminal(url, TOKEN)
        self.stack.callback(self.remote.shutdown)
        self.both("symbols_total")
        self.both("initialize")
        self.symbol = self.profile.symbol.name

    def teardown(self) -> None:
        """Stop the server."""
        self.stack.close()

    def both(self, name: str, *given: object, **named: object) -> None:
        """Ask both, and compare."""
        CALLS[name] += 1
        one, other = (answer(getattr(terminal, name), terminal.last_error, *given, **named) for terminal in (self.direct, self.remote))
        assert one == other, f"{name}{given}{named}: direct {one}, remote {other}"

    # ---- calls that read

    @rule(name=st.sampled_from(["version", "terminal_info", "account_info", "symbols_total", "positions_total", "orders_total"]))
    def look(self, name: str) -> None:
        self.both(name)

    @rule(
        name=st.sampled_from(["symbol_info", "symbol_info_tick", "market_book_add", "market_book_get", "market_book_release"]),
        odd=st.sampled_from([None, *ODD]),
    )
    def of_symbol(self, name: str, odd: object) -> None:
        self.both(name, self.symbol if odd is None else odd)

    @rule(enable=st.sampled_from([True, False, 0, "yes"]))
    def select(self, enable: object) -> None:
        self.both("symbol_select", self.symbol, enable)
        self.both("symbol_select", self.symbol, True)

    @rule(mask=st.sampled_from(["*", "BTC*", "*USD*,!*m", "", "!*", "x" * 1998, 3]))
    def by_group(self, mask: object) -> None:
        for name in ("symbols_get", "positions_get", "orders_get"):
            self.both(name, group=mask)
        self.both("history_deals_get", 0, 2**31 - 1, group=mask)

    @rule(
        timeframe=st.sampled_from(TIMEFRAMES),
        moment=st.sampled_from(MOMENTS),
        until=st.sampled_from(MOMENTS),
        count=st.sampled_from(COUNTS),
    )
    def bars(self, timeframe: object, moment: object, until: object, count: object) -> None:
        self.both("copy_rates_from", self.symbol, timeframe, moment, count)
        self.both("copy_rates_from_pos", self.symbol, timeframe, count, 3)
        self.both("copy_rates_range", self.symbol, timeframe, moment, until)

    @rule(
        moment=st.sampled_from(MOMENTS),
        count=st.sampled_from(COUNTS),
        flags=st.sampled_from([C.COPY_TICKS_ALL, C.COPY_TICKS_INFO, C.COPY_TICKS_TRADE, 0, 99]),
    )
    def ticks(self, moment: object, count: object, flags: int) -> None:
        self.both("copy_ticks_from", self.symbol, moment, count, flags)
        begin = utc_ms(LIVE) // 1000
        self.both("copy_ticks_range", self.symbol, begin, begin + 120, flags)

    @rule(
        action=st.sampled_from([0, 1, 2, 5, 8, -1]),
        volume=st.sampled_from([0.01, 0.1, 0.0, -1.0, 1e9, math.nan, np.float32(0.5), 1, "1"]),
        price=st.sampled_from([60_000.0, 0.0, math.inf, 61_234]),
    )
    def calculate(self, action: int, volume: object, price: object) -> None:
        self.both("order_calc_margin", action, self.symbol, volume, price)
        self.both("order_calc_profit", action, self.symbol, volume, price, 60_500.0)

    @rule(moment=st.sampled_from(MOMENTS), until=st.sampled_from(MOMENTS))
    def history(self, moment: object, until: object) -> None:
        for name in ("history_deals_get", "history_orders_get", "history_deals_total", "history_orders_total"):
            self.both(name, moment, until)

    @rule(ticket=st.sampled_from([0, 1, 2, 3, 4, 5, 99, -1, 2.0, None]))
    def by_ticket(self, ticket: object) -> None:
        for name in ("positions_get", "orders_get", "history_deals_get", "history_orders_get"):
            self.both(name, ticket=ticket)
        self.both("history_deals_get", position=ticket)

    @rule(
        other=st.sampled_from([0, 0, 1, -1, "7"]),
        named=st.sampled_from([{}, {"password": "a word"}, {"server": ""}, {"server": "Elsewhere"}, {"timeout": 5}, {"portable": True}]),
    )
    def login(self, other: object, named: dict[str, object]) -> None:
        """Log in to the account that is there, and to one that isn't."""
        account = self.direct.account_info()
        self.both("login", account.login + other if isinstance(other, int) else other, **named)
        self.both("account_info")
        self.both("initialize", **named)
        self.both("initialize")

    @rule()
    def again(self) -> None:
        """A session that ends and begins anew."""
        self.both("shutdown")
        self.both("account_info")
        self.both("initialize")

    # ---- time

    @rule(bars=st.sampled_from([1, 1, 1, 5, 60, 700]))
    def advance(self, bars: int) -> None:
        assert self.direct.advance(bars)[0] == self.remote.advance(bars)[0]
        self.both("symbol_info_tick", self.symbol)

    # ---- orders

    def price(self, points: int) -> float:
        tick = self.direct.symbol_info_tick(self.symbol)
        return 0.0 if tick is None else round(tick.bid + points * self.profile.symbol.point, self.profile.symbol.digits)

    def sent(self, request: dict[str, Any]) -> None:
        """Check the request, then send it, on both."""
        self.both("order_check", request)
        self.both("order_send", request)

    @rule(
        side=st.sampled_from([0, 1]),
        volume=st.sampled_from([0.01, 0.02, 0.05, 0.1, 1.0, 0.015, 0.0, 1]),
        stop=st.sampled_from([0, 0, 3_000, 40_000]),
        aim=st.sampled_from([0, 0, 3_000, 40_000]),
        filling=st.sampled_from([0, 1, 2, 3]),
        magic=st.sampled_from([0, 7, 2**40, -1]),
        comment=st.sampled_from(["", "a test", "x" * 29, "x" * 30]),
    )
    def deal(self, side: int, volume: float, stop: int, aim: int, filling: int, magic: int, comment: str) -> None:
        sign = 1 if side == 0 else -1
        request = {
            "action": C.TRADE_ACTION_DEAL,
            "symbol": self.symbol,
            "volume": volume,
            "type": side,
            "type_filling": filling,
            "magic": magic,
        }
        request |= {"comment": comment, "price": self.price(0), "deviation": 100_000}
        request |= {"sl": self.price(-sign * stop) if stop else 0.0, "tp": self.price(sign * aim) if aim else 0.0}
        self.sent(request)

    @rule(
        kind=st.integers(2, 8),
        distance=st.sampled_from([-50_000, -5_000, -100, 0, 100, 5_000, 50_000]),
        limit=st.sampled_from([0, 200, -200]),
        volume=st.sampled_from([0.01, 0.1, 50.0]),
        time=st.sampled_from([0, 1, 2, 3]),
        ahead=st.sampled_from([-60, 3_600, 86_400]),
    )
    def pending(self, kind: int, distance: int, limit: int, volume: float, time: int, ahead: int) -> None:
        tick = self.direct.symbol_info_tick(self.symbol)
        request = {"action": C.TRADE_ACTION_PENDING, "symbol": self.symbol, "volume": volume, "type": kind, "price": self.price(distance)}
        request |= {"type_time": time, "type_filling": C.ORDER_FILLING_RETURN, "stoplimit": self.price(distance + limit)}
        self.sent(request | {"expiration": tick.time + ahead if tick and time >= 2 else 0})

    @precondition(lambda self: self.direct.positions_total())
    @rule(
        which=st.integers(0, 3),
        share=st.sampled_from([1.0, 0.5, 2.0]),
        data=st.sampled_from(["close", "stops", "same", "both"]),
        distance=st.sampled_from([3_000, 40_000]),
    )
    def change_position(self, which: int, share: float, data: str, distance: int) -> None:
        open_ones = self.direct.positions_get()
        position = open_ones[which % len(open_ones)]
        if data == "close":
            step = self.profile.symbol.volume_step
            volume = round(max(1, round(position.volume * share / step)) * step, 8)
            request = {
                "action": C.TRADE_ACTION_DEAL,
                "symbol": self.symbol,
                "position": position.ticket,
                "volume": volume,
                "type": 1 - position.type,
            }
            self.sent(request | {"type_filling": C.ORDER_FILLING_IOC, "price": self.price(0), "deviation": 100_000})
        elif data == "both":
            other = open_ones[(which + 1) % len(open_ones)].ticket
            self.sent({"action": C.TRADE_ACTION_CLOSE_BY, "position": position.ticket, "position_by": other})
        else:
            sign = 1 if position.type == 0 else -1
            levels = {"sl": position.sl, "tp": position.tp} if data == "same" else {"sl": self.price(-sign * distance), "tp": 0.0}
            self.sent({"action": C.TRADE_ACTION_SLTP, "symbol": self.symbol, "position": position.ticket, **levels})

    @precondition(lambda self: self.direct.orders_total())
    @rule(which=st.integers(0, 3), is_removal=st.booleans(), points=st.sampled_from([0, 500, -500]))
    def change_order(self, which: int, is_removal: bool, points: int) -> None:
        active = self.direct.orders_get()
        order = active[which % len(active)]
        if is_removal:
            self.sent({"action": C.TRADE_ACTION_REMOVE, "order": order.ticket})
            return
        price = round(order.price_open + points * self.profile.symbol.point, self.profile.symbol.digits)
        request = {"action": C.TRADE_ACTION_MODIFY, "order": order.ticket, "price": price, "stoplimit": order.price_stoplimit}
        self.sent(request | {"sl": order.sl, "tp": order.tp, "type_time": order.type_time, "expiration": order.time_expiration})

    @rule(
        request=st.sampled_from(
            [{}, {"action": 99}, {"action": 1.0}, {"action": 1, "symbol": "EURUSD", "volume": 0.1}, {"action": 8, "order": 77}, []]
        )
    )
    def nonsense(self, request: Any) -> None:
        self.sent(request)

    # ---- the books

    @invariant()
    def books(self) -> None:
        """Check money and volumes against the deals."""
        if not hasattr(self, "symbol"):
            return
        CALLS["steps"] += 1
        account, deals = self.direct.account_info(), self.direct.broker.all_deals()
        positions = self.direct.positions_get()
        assert round(account.balance * 100) == sum(round(money * 100) for d in deals for money in (d.profit, d.swap, d.commission, d.fee))
        floating = sum(round(p.profit * 100) + round(p.swap * 100) for p in positions)
        assert round(account.profit * 100) == floating
        assert round(account.equity * 100) == round((account.balance + account.credit) * 100) + floating
        assert round(account.margin_free * 100) == round(account.equity * 100) - round(account.margin * 100)
        assert (account.margin == 0) == (account.margin_level == 0) or account.equity <= 0
        net: defaultdict[int, float] = defaultdict(float)
        for d in deals:
            net[d.position_id] += {0: d.volume, 1: -d.volume}.get(d.type, 0.0)
        held = {p.identifier: p.volume if p.type == 0 else -p.volume for p in positions}
        assert {key: round(value, 8) for key, value in net.items() if round(value, 8)} == {key: round(v, 8) for key, v in held.items()}
        step = self.profile.symbol.volume_step
        assert all(abs(p.volume / step - round(p.volume / step)) < 1e-6 and p.volume > 0 for p in positions)


@pytest.mark.jit
@pytest.mark.parity
def test_direct_and_remote_agree(rounds: int) -> None:
    """Compare them over programs of 50 steps each."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    chosen = settings(max_examples=rounds * 3 // 5, stateful_step_count=STEPS, deadline=None, suppress_health_check=checks, print_blob=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", os.environ.get("TZ", "UTC"))
        CALLS.clear()
        run_state_machine_as_test(Differential, settings=chosen)
    print(f"\n{dict(CALLS)}")
    if rounds >= 500:
        assert CALLS["steps"] >= 10_000
        assert set(FUNCTIONS) <= {*CALLS, "last_error"}
