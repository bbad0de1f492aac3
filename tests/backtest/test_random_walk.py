"""No comfort where there is none: on a random walk without drift a strategy loses its costs, no more and no less.

The price is a martingale, so what a position gains before costs is 0 on average, however the past chose its side, and wherever a stop
ends it at a price that was quoted. The net result of a fixed number of trades is then known beforehand: their costs. Over many seeds its
mean must lie within four standard errors of that; the tests show that half the costs, or a look at one bar of the future, lie far outside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scripted import MINUTE, PLAIN, START, terms

from btcbot.backtest import backtester
from btcbot.backtest.backtester import Backtester
from btcbot.core.jit import F8, I8, kernel
from btcbot.engine.account import BALANCE, DONE, N_POSITIONS, TICKET, new_account, new_deals
from btcbot.engine.bars import tick_nb
from btcbot.engine.conditions import account_params
from btcbot.engine.deals import close_nb, open_nb
from btcbot.engine.limits import RiskLimits
from btcbot.engine.lots import SIZE_LOTS
from btcbot.engine.risk import SIZE, SIZE_RULE, STOP, TAKE_PROFIT, TARGET_ID, TARGET_SIDE
from btcbot.market.bars import CLOSE, OPEN, TIME, time_index
from btcbot.market.profile import BrokerProfile
from btcbot.strategies.base import SignalStream, Strategy

pytestmark = pytest.mark.jit

SEEDS, FEW, BARS = 1000, 250, 61
TRADES = 10  # entries are decided at bars 1, 7 ... 55, exits four bars later
SPREAD, COMMISSION = 40, 0.30  # points; money a lot and deal
COST = SPREAD / 100 + 2 * COMMISSION  # of one lot, in and out
MOVE = 100.0  # points: standard deviation of a bar
BROKER = terms(PLAIN, commission_per_lot=COMMISSION, spread_points=SPREAD, leverage=500)
LIMITS = RiskLimits(max_drawdown=float("inf"), max_daily_loss=float("inf"), max_spread_bps=float("inf"))


@kernel
def follow_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    """Go with the last bar every six bars, and get out four bars later."""
    for i in range(block.shape[0]):
        phase = state_i[0] % 6
        if phase == 1 or phase == 5:
            state_f[0] = block[i, TIME]
            state_f[1] = 0.0 if phase == 5 else 1.0 if block[i, CLOSE] > block[i, OPEN] else -1.0
        out[i, TARGET_ID], out[i, TARGET_SIDE] = state_f[0], state_f[1]
        out[i, SIZE_RULE], out[i, SIZE], out[i, STOP], out[i, TAKE_PROFIT] = SIZE_LOTS, 1.0, params[0], params[1]
        state_i[0] += 1


FOLLOW = Strategy("follow", follow_nb, {"stop": float("nan"), "take_profit": float("nan")}, 2, 1, 0)


class Early(SignalStream):
    """A strategy that decides a bar too early: look-ahead."""

    def changes(self, block: F8) -> tuple[I8, F8]:
        """Return the targets of the bars that follow."""
        since, wanted = super().changes(block)
        return np.maximum(since - 1, 1), wanted


def walk(rng: np.random.Generator, ticks: int = 60) -> pd.DataFrame:
    """Return bars of a walk in whole points: its first tick, its extremes, its last."""
    steps = np.rint(rng.normal(0, MOVE / np.sqrt(ticks), (BARS, ticks)))
    path = 1_000_000 + np.cumsum(steps).reshape(BARS, ticks)
    opens = np.append(1_000_000, path[:-1, -1])
    highest, lowest = np.maximum(opens, path.max(axis=1)), np.minimum(opens, path.min(axis=1))
    prices = {"open": opens, "high": highest, "low": lowest, "close": path[:, -1]}
    times = time_index(START + np.arange(BARS, dtype=np.int64) * MINUTE)
    return pd.DataFrame({name: values / 100 for name, values in prices.items()} | {"tick_volume": ticks}, times)


def nets(profile: BrokerProfile, strategy: Strategy = FOLLOW, ticks: int = 2, seeds: int = FEW) -> Any:
    """Return the net result of each seed."""
    out = np.empty(seeds)
    for seed in range(seeds):
        run = Backtester(profile, LIMITS).run(strategy, walk(np.random.default_rng(seed), ticks))
        assert run.dropped_bars == 0
        assert len(run.deals) == 2 * TRADES
        out[seed] = run.equity.iloc[-1] - profile.deposit
    return out


def distance(results: Any, expected: float) -> float:
    """Return how many standard errors the mean of `results` is from `expected`."""
    return float((results.mean() - expected) / (results.std(ddof=1) / np.sqrt(len(results))))


def test_a_strategy_without_stops_loses_its_costs() -> None:
    """Ten trades cost ten times spread and commission; the deals say so, and so does the mean of what is left."""
    assert abs(distance(nets(BROKER, seeds=SEEDS), -TRADES * COST)) < 4


def test_half_the_costs_would_be_noticed() -> None:
    """The interval is narrow: an account that charges half is outside by far."""
    half = terms(BROKER, commission_per_lot=COMMISSION / 2, spread_points=SPREAD // 2)
    assert distance(nets(half), -TRADES * COST) > 8


def test_one_bar_of_look_ahead_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that knows the bar it is filled in earns its move: far outside, too."""
    monkeypatch.setattr(backtester, "SignalStream", Early)
    assert distance(nets(BROKER), -TRADES * COST) > 8


def test_stops_inside_bars_flatter_nobody() -> None:
    """Of a bar only four prices are known: a stop fills at the extreme, the adverse one first. So the mean is worse than the costs."""
    strategy = Strategy("follow", follow_nb, {"stop": 1.5, "take_profit": 1.5}, 2, 1, 0)
    assert distance(nets(BROKER, strategy, ticks=60), -TRADES * COST) < -4


# Ticks: a stop fills at a price that was quoted, so it may end a trade wherever it likes.


@kernel
def play_nb(params: I8, account: I8, positions: I8, deals: I8, nights: I8, bids: I8, spread: int, stop: int, take: int) -> int:
    """Buy at each tick that finds no position, with a stop and a target; close at the last one. Return the number of entries."""
    entries, last = 0, bids.shape[0] - 1
    for i in range(bids.shape[0]):
        bid = bids[i]
        tick_nb(params, account, positions, deals, nights, 1000 * i, bid, bid + spread, True)
        if i < last and account[N_POSITIONS] == 0:
            entries += open_nb(params, account, positions, deals, 1, 100, bid - stop, bid + take, 0) == DONE
    if account[N_POSITIONS] > 0:
        close_nb(params, account, positions, deals, positions[0, TICKET], 100, 0)
    return entries


@pytest.mark.parametrize(("stop", "take"), [(150, 150), (60, 400), (400, 60)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_stops_on_ticks_cost_nothing_but_costs(stop: int, take: int, share: float) -> None:
    """Whatever stop and target: what is left after adding the costs of each trade is 0 on average, and isn't with half of them charged."""
    spread, commission = int(SPREAD * share), COMMISSION * share
    params = account_params(terms(BROKER, commission_per_lot=commission))
    nights, left = np.zeros((0, 2), np.int64), np.empty(SEEDS)
    for seed in range(SEEDS):
        bids = 1_000_000 + np.cumsum(np.rint(np.random.default_rng(seed).normal(0, 25, 400)).astype(np.int64))
        account, positions = new_account(10_000_000)
        entries = play_nb(params, account, positions, new_deals(1000), nights, bids, spread, stop, take)
        left[seed] = (account[BALANCE] - 10_000_000) / 100 + entries * COST
    assert abs(distance(left, 0)) < 4 if share == 1 else distance(left, 0) > 8
