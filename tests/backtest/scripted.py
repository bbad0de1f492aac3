"""Markets of a few bars, strategies that want what a test says, and ledgers one can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from btcbot.backtest.backtester import Backtester, Result, deal_frame
from btcbot.core.jit import F8, I8, kernel
from btcbot.engine import account as engine
from btcbot.engine.bars import bar_open_nb, bar_rest_nb, tick_nb
from btcbot.engine.conditions import account_params, volume_steps
from btcbot.engine.deals import close_nb, modify_nb, open_nb
from btcbot.engine.limits import RiskLimits
from btcbot.engine.lots import SCALED, SIZE_LOTS, SIZE_RISK
from btcbot.engine.risk import BREAK_EVEN, N_TARGET, SIZE, SIZE_RULE, STOP, TAKE_PROFIT, TARGET_ID, TARGET_SIDE, TIME_LIMIT, TRAILING
from btcbot.market.bars import TIME, time_index, time_ms
from btcbot.market.profile import BrokerProfile, SymbolSpec
from btcbot.strategies.base import Strategy

MINUTE = 60_000
START = 1_704_067_200_000  # 2024-01-01 00:00 UTC, a Monday
HOUR, DAY = 60, 1440  # in minutes

# No costs: a test names those that it is about. A lot is one coin, a point 0.01; 1 lot at 100.00 holds a margin of 10.00.
PLAIN = BrokerProfile("plain", "Plain", symbol=SymbolSpec(), leverage=10, deposit=10_000.0)

Prices = tuple[float, float, float, float] | tuple[float, float, float, float, int]  # open, high, low, close of the bid, spread in points


def flat(price: float, spread: int = 0) -> Prices:
    """Return a bar that stays at one price."""
    return price, price, price, price, spread


def terms(profile: BrokerProfile = PLAIN, **changes: Any) -> BrokerProfile:
    """Return `profile` with some conditions changed, be they the account's or the symbol's."""
    of_account = {name: value for name, value in changes.items() if name in BrokerProfile.__dataclass_fields__}
    of_symbol = {name: value for name, value in changes.items() if name not in of_account}
    return replace(profile, symbol=replace(profile.symbol, **of_symbol), **of_account)


def frame(bars: Sequence[Prices] | Mapping[int, Prices]) -> pd.DataFrame:
    """Return minute bars, one after the other or at the minutes named."""
    timed = dict(bars) if isinstance(bars, Mapping) else dict(enumerate(bars))
    rows = np.array([(*bar, 0)[:5] for bar in timed.values()], np.float64)
    columns = dict(zip(("open", "high", "low", "close"), rows.T[:4], strict=True))
    times = START + np.array(list(timed), np.int64) * MINUTE
    return pd.DataFrame(columns | {"tick_volume": 1, "spread": rows[:, 4].astype(np.int32), "real_volume": 0}, time_index(times))


@kernel
def scripted_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    """Write the last target of the script whose id, the time of a bar, has come."""
    for i in range(block.shape[0]):
        out[i, TARGET_SIDE] = 0.0
        for k in range(0, params.shape[0], N_TARGET):
            if params[k + TARGET_ID] <= block[i, TIME]:
                out[i] = params[k : k + N_TARGET]


def want(
    minute: int,
    side: int,
    lots: float = 1.0,
    *,
    risk: float | None = None,
    stop: float = np.nan,
    take: float = np.nan,
    trailing: float = np.nan,
    break_even: float = np.nan,
    minutes: float = np.nan,
    scaled: bool = False,
) -> F8:
    """Return what a strategy wants after the bar of that minute: a side, a size, and distances in units of price."""
    target = np.full(N_TARGET, np.nan)
    target[[TARGET_ID, TARGET_SIDE]] = START + minute * MINUTE, side
    target[[SIZE_RULE, SIZE]] = (SIZE_LOTS, lots) if risk is None else (SIZE_RISK, risk)
    target[SIZE_RULE] += SCALED * scaled
    target[[STOP, TAKE_PROFIT, TRAILING, BREAK_EVEN, TIME_LIMIT]] = stop, take, trailing, break_even, minutes * MINUTE
    return target


def script(*targets: F8) -> Strategy:
    """Return the strategy that wants these targets, oldest first."""
    values = np.concatenate(targets) if targets else np.zeros(0)
    return Strategy("script", scripted_nb, {str(k): value for k, value in enumerate(values.tolist())}, 0, 0, 0)


def trade(
    bars: Sequence[Prices] | Mapping[int, Prices],
    *targets: F8,
    profile: BrokerProfile = PLAIN,
    limits: RiskLimits | None = None,
    **changes: Any,
) -> Result:
    """Run the backtester over `bars`; the strategy wants `targets`, the broker's conditions are `profile` with the `changes`."""
    result = Backtester(terms(profile, **changes), limits).run(script(*targets), frame(bars))
    assert result.dropped_bars == 0, "the cleaner keeps a bar of this test from the strategy"
    return result


def scale(minute: int, lots: float, **options: Any) -> F8:
    """Return the wish to hold `lots`, negative for a short position."""
    return want(minute, int(np.sign(lots)), abs(lots), scaled=True, **options)


def trade_together(
    bars: Sequence[Prices], *strategies: Sequence[F8], profile: BrokerProfile = PLAIN, limits: RiskLimits | None = None, **changes: Any
) -> Result:
    """Run several strategies, each with its targets, on one account."""
    result = Backtester(terms(profile, **changes), limits).run([script(*targets) for targets in strategies], frame(bars))
    assert result.dropped_bars == 0, "the cleaner keeps a bar of this test from a strategy"
    return result


def lines(deals: pd.DataFrame) -> list[str]:
    """Write each deal as a line, its time in seconds from the start; money that is 0 is left out."""
    out = []
    times = time_ms(pd.DatetimeIndex(deals["time"])) - START
    for time, deal in zip(times.tolist(), deals.to_dict("records"), strict=True):
        seconds = f"{time / 1000:.3f}".rstrip("0").rstrip(".")
        line = f"{seconds}s {deal['side']} {deal['volume']:g} at {deal['price']:.2f} {deal['reason'] if deal['entry'] == 'out' else 'in'}"
        out.append(line + "".join(f", {name} {deal[name]:.2f}" for name in ("profit", "commission", "swap") if deal[name] != 0))
    return out


def ledger(result: Result) -> list[str]:
    """Return the deals of a backtest as lines."""
    return lines(result.deals)


class Book:
    """An account driven request by request through the engine's kernels, in lots and prices."""

    def __init__(self, profile: BrokerProfile = PLAIN, nights: Sequence[tuple[int, int]] = (), **changes: Any):
        self.profile = terms(profile, **changes)
        self.params, self.unit = account_params(self.profile), 10**self.profile.symbol.digits
        self.account, self.positions = engine.new_account(round(self.profile.deposit * 100))
        self.deals = engine.new_deals(64)
        self.nights = np.array(nights, np.int64).reshape(-1, 2)  # time in ms, days of swap

    def points(self, price: float) -> int:
        """Return a price in points."""
        return round(price * self.unit)

    def tick(self, bid: float, ask: float | None = None, second: float = 0) -> Book:
        """Move the account to a real quote."""
        ask = bid if ask is None else ask
        state = self.params, self.account, self.positions, self.deals, self.nights
        tick_nb(*state, START + int(second * 1000), self.points(bid), self.points(ask), True)
        return self

    def bar(self, prices: Prices, minute: int = 0) -> Book:
        """Play a whole bar."""
        row = np.array([START + minute * MINUTE, *map(self.points, prices[:4]), (*prices, 0)[4]], np.int64)
        bar_open_nb(self.params, self.account, self.positions, self.deals, self.nights, row)
        bar_rest_nb(self.params, self.account, self.positions, self.deals, self.nights, row, MINUTE)
        return self

    def open(self, side: int, lots: float, sl: float = 0, tp: float = 0) -> int:
        """Deal at the market; return the return code."""
        state, step = (self.params, self.account, self.positions, self.deals), self.profile.symbol.volume_step
        return open_nb(*state, side, volume_steps(lots, step), self.points(sl), self.points(tp), 0)

    def close(self, ticket: int, lots: float) -> int:
        """Close a part of a position or all of it; return the return code."""
        steps = volume_steps(lots, self.profile.symbol.volume_step)
        return close_nb(self.params, self.account, self.positions, self.deals, ticket, steps, 0)

    def modify(self, ticket: int, sl: float, tp: float = 0) -> int:
        """Replace both stops of a position; return the return code."""
        return modify_nb(self.params, self.account, self.positions, ticket, self.points(sl), self.points(tp))

    @property
    def lines(self) -> list[str]:
        """The deals as lines."""
        return lines(deal_frame(self.deals[: self.account[engine.N_DEALS]], self.profile))

    @property
    def held(self) -> list[tuple[int, float]]:
        """Ticket and signed lots of each open position."""
        rows, step = self.positions[: self.account[engine.N_POSITIONS]], self.profile.symbol.volume_step
        return [(int(row[engine.TICKET]), round(float(row[engine.SIDE] * row[engine.POSITION_VOLUME] * step), 8)) for row in rows]

    @property
    def balance(self) -> float:
        """The balance in the account's currency."""
        return float(self.account[engine.BALANCE] / 100)

    @property
    def equity(self) -> float:
        """The equity in the account's currency."""
        return engine.equity_nb(self.params, self.account, self.positions) / 100

    @property
    def margin(self) -> float:
        """The margin in use in the account's currency."""
        return engine.used_margin_nb(self.params, self.account, self.positions) / 100
