"""What holds for every backtest, whatever the market, the strategy and the broker: tried on small random ones."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import DAY, MINUTE, PLAIN, START, frame, script, terms, want

from btcbot.backtest import backtester
from btcbot.backtest.backtester import Backtester, Result
from btcbot.core.jit import F8
from btcbot.engine.limits import RiskLimits
from btcbot.engine.risk import TARGET_SIDE
from btcbot.market.bars import time_ms
from btcbot.market.profile import BrokerProfile
from btcbot.strategies.base import Strategy

NO_LIMITS = RiskLimits(max_lots=1e6, max_drawdown=inf, max_daily_loss=inf, max_spread_bps=inf, max_decision_age=inf)
SEEDS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Case:
    """A market, what a strategy wants in it, and a broker."""

    bars: pd.DataFrame
    targets: list[F8]
    profile: BrokerProfile

    def run(self, limits: RiskLimits | None = None) -> Result:
        """Run the backtester."""
        return Backtester(self.profile, limits).run(self.strategy, self.bars)

    @property
    def strategy(self) -> Strategy:
        """What wants the targets."""
        return script(*self.targets)


def case(seed: int, count: int = 80, lots: float = 0.37, **changes: Any) -> Case:
    """Return a random walk with gaps of minutes and of days, targets with stops of all kinds, and `PLAIN` with costs and the `changes`."""
    rng = np.random.default_rng(seed)
    minutes = np.cumsum(rng.choice([1, 1, 1, 1, 2, 30, DAY], count, p=[0.4, 0.2, 0.2, 0.1, 0.04, 0.04, 0.02]))
    scale, price, bars = float(rng.choice([3, 30, 200])), 10_000, {}
    for minute in minutes.tolist():
        first, last = (max(2_000, price + int(rng.normal(0, scale))) for _ in range(2))
        high, low = max(first, last) + int(abs(rng.normal(0, scale))), min(first, last) - int(abs(rng.normal(0, scale)))
        bars[int(minute)] = (first / 100, high / 100, low / 100, last / 100, int(rng.choice([0, 3, 40])))
        price = last
    targets = []
    for minute in sorted(rng.choice(minutes, count // 6, replace=False).tolist()):
        distances = (float(x) if rng.random() < 0.6 else np.nan for x in rng.uniform(0.05, 6, 4))
        rules = dict(zip(("stop", "take", "trailing", "break_even"), distances, strict=True))
        side = int(rng.choice([-1, 0, 1], p=[0.4, 0.2, 0.4]))
        targets.append(want(int(minute), side, lots * int(rng.integers(1, 4)), minutes=float(rng.choice([np.nan, 20])), **rules))
    costs = {"spread_bps": 2, "slippage_bps": 1, "commission_per_lot": 0.25, "swap_long": -12.5, "swap_short": 3.0, "leverage": 50}
    return Case(frame(bars), targets, terms(PLAIN, **(costs | changes)))


def cents(value: Fraction) -> int:
    """Round to whole cents, half away from zero."""
    size = (abs(value) * 200 + 1) // 2
    return int(size) if value >= 0 else -int(size)


def whole(values: Any) -> list[int]:
    """Return money in whole cents."""
    return [int(x) for x in np.rint(np.asarray(values) * 100)]


@settings(max_examples=25)
@given(seed=SEEDS)
def test_the_account_adds_up_at_every_bar(seed: int) -> None:
    """Deposit, booked deals, floating profit and swap not booked yet make the equity at each close, to the cent."""
    given_ = case(seed)
    run = given_.run()
    bars, spread = given_.bars, np.maximum(given_.bars["spread"], np.ceil(given_.bars["open"] * 100 * 200 / 1e6)).astype(int)
    booked = whole(run.deals["profit"] + run.deals["commission"] + run.deals["swap"])
    balance, held, waiting, at = 1_000_000, None, 0, 0
    for bar, (time, equity, ends) in enumerate(zip(bars.index, whole(run.equity), time_ms(bars.index) + MINUTE, strict=True)):
        while at < len(run.deals) and time_ms(run.deals["time"].iloc[at : at + 1].pipe(pd.DatetimeIndex))[0] < ends:
            deal = run.deals.iloc[at]
            balance, at = balance + booked[at], at + 1
            if deal["entry"] == "out" and time.date() == bars.index[bar - 1].date():
                assert round(deal["swap"] * 100) == waiting, "what was held back is booked"
            held, waiting = (deal if deal["entry"] == "in" else None), 0
        floating = 0
        if held is not None:
            side = 1 if held["side"] == "buy" else -1
            quote = Fraction(round(bars["close"].iloc[bar] * 100) + (0 if side > 0 else int(spread.iloc[bar])), 100)
            floating = cents(side * (quote - Fraction(str(held["price"]))) * Fraction(str(held["volume"])))
        swap = equity - balance - floating
        if held is None or time.date() == held["time"].date():
            assert swap == 0, "swap is charged at midnight alone"
        if bar and time.date() == bars.index[bar - 1].date() and held is not None and held["time"] < time:
            assert swap == waiting, "swap is charged at midnight alone"
        waiting = swap
        assert run.low[bar] <= equity / 100


@settings(max_examples=25)
@given(seed=SEEDS)
def test_no_trade_without_a_signal(seed: int) -> None:
    """An entry fills at the first tick after the bar of a target that wants its side, once at most; no target, no deal."""
    given_ = case(seed)
    run = given_.run()
    times = time_ms(given_.bars.index)
    following = {}
    for target in given_.targets:
        at = int(np.searchsorted(times, target[0])) + 1
        if at < len(times) and target[TARGET_SIDE] != 0:
            following[int(times[at])] = "buy" if target[TARGET_SIDE] > 0 else "sell"
    entries = run.deals[run.deals["entry"] == "in"]
    moments = time_ms(pd.DatetimeIndex(entries["time"])).tolist()
    assert len(set(moments)) == len(moments)
    assert all(following.get(moment) == side for moment, side in zip(moments, entries["side"], strict=True))
    for nothing in ([], [want((int(times[3]) - START) // MINUTE, 0)]):
        idle = Backtester(given_.profile).run(script(*nothing), given_.bars)
        assert (len(idle.deals), set(idle.equity), set(idle.low)) == (0, {10_000.0}, {10_000.0})


@settings(max_examples=20)
@given(seed=SEEDS, size=st.integers(1, 90))
def test_blocks_change_nothing(seed: int, size: int) -> None:
    """A history that is worked through in blocks of any size gives the same."""
    given_ = case(seed)
    whole_run = given_.run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backtester, "_CHUNK", size)
        run = given_.run()
    assert run.deals.equals(whole_run.deals)
    assert run.equity.equals(whole_run.equity)
    assert run.low.tolist() == whole_run.low.tolist()
    assert (run.refusals, run.exposure, run.halted_at) == (whole_run.refusals, whole_run.exposure, whole_run.halted_at)


@settings(max_examples=25)
@given(seed=SEEDS, factor=st.integers(2, 40))
def test_money_scales(seed: int, factor: int) -> None:
    """With `factor` times the deposit and the lots, the same deals make `factor` times the money.

    Exactly so for whole lots at cents a coin without swap. Otherwise an amount is at most half a cent off here and half a cent there.
    """
    for lots, swap, exact in ((1.0, 0.0, True), (0.37, -12.5, False)):
        changes: dict[str, Any] = {
            "volume_max": 1e5,
            "swap_long": swap,
            "swap_short": swap,
            "leverage": 500,
            "stop_out": 0.0,
            "margin_call": 0.0,
        }
        small = case(seed, lots=lots, **changes)
        large = case(seed, lots=lots * factor, **changes, deposit=small.profile.deposit * factor)
        one, many = (c.run(NO_LIMITS) for c in (small, large))
        same = ["time", "side", "entry", "reason", "price"]
        assert one.deals[same].equals(many.deals[same])
        assert np.rint(one.deals["volume"] * factor * 100).tolist() == np.rint(many.deals["volume"] * 100).tolist()
        for column in ("profit", "commission", "swap"):
            nights = 1 if column != "swap" else 10  # each night is rounded by itself
            bound = 0 if exact else (factor + 1) / 2 * nights
            apart = np.subtract(whole(many.deals[column]), np.multiply(whole(one.deals[column]), factor))
            assert np.abs(apart).max(initial=0) <= bound, column


@settings(max_examples=25)
@given(seed=SEEDS)
def test_the_future_changes_nothing(seed: int) -> None:
    """Deals and equity up to a bar don't depend on the bars after it."""
    given_ = case(seed)
    run, cut = given_.run(), 50
    early = Backtester(given_.profile).run(script(*given_.targets), given_.bars.iloc[:cut])
    until = given_.bars.index[cut]
    assert early.equity.equals(run.equity.iloc[:cut])
    assert early.deals.equals(run.deals[run.deals["time"] < until])


@settings(max_examples=25)
@given(seed=SEEDS)
def test_costs_only_cost(seed: int) -> None:
    """What the spread and the slippage of a deal cost is never a gain, commission neither."""
    costs = case(seed).run().deals[["spread_cost", "slippage_cost", "commission"]]
    assert costs.to_numpy().max(initial=0.0) <= 0
