"""Limits hold against strategies that want too much, in the backtest and live; none keeps a position open."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from btcbot.backtest.backtester import Backtester
from btcbot.core.jit import F8, I8, kernel
from btcbot.data.certificates import CertificateFile
from btcbot.engine.account import POSITION_VOLUME, PRICE_OPEN, SIDE, TICKET
from btcbot.engine.limits import HALTED_AT, RiskLimits, moment
from btcbot.engine.lots import SCALED, SIZE_LOTS
from btcbot.engine.risk import (
    CLOSE,
    INTENT_VOLUME,
    KIND,
    N_TARGET,
    OPEN_POSITION,
    SIZE,
    SIZE_RULE,
    TARGET_ID,
    TARGET_SIDE,
    RiskManager,
    no_positions,
)
from btcbot.features.causality import certify
from btcbot.market.bars import TIME, time_ms
from btcbot.market.clock import utc_ms
from btcbot.market.profile import broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.base import Strategy
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.twin import Twin
from btcbot.trading.parity import compare_deals
from btcbot.trading.trader import Trader, deals_frame

BASE = broker_profile("crypto-24x7")
COSTS = replace(BASE.symbol, spread_points=0, spread_bps=0.0, swap_long=0.0, swap_short=0.0)  # commission and slippage stay
PROFILE = replace(BASE, symbol=COSTS, deposit=100_000.0)
GREEDS = ("always in", "flip each bar", "huge size", "martingale")
FREE = RiskLimits(max_lots=2, max_drawdown=float("inf"), max_daily_loss=float("inf"))
LIMITS = {
    "size": replace(FREE, max_lots=0.7),
    "worth": replace(FREE, max_lots=100, max_notional=25_000),
    "leverage": replace(FREE, max_lots=100, max_leverage=0.4),
    "margin level": replace(FREE, max_lots=100, min_margin_level=8.0),
    "drawdown": replace(FREE, max_drawdown=0.02, close_at_loss=True),
    "drawdown of the balance": replace(FREE, max_balance_drawdown=0.02, close_at_loss=True),
    "daily loss": replace(FREE, max_daily_loss=0.005, close_at_loss=True),
    "daily loss of the balance": replace(FREE, max_daily_loss=0.005, daily_reference="balance", close_at_loss=True),
    "daily loss of the larger": replace(FREE, max_daily_loss=0.005, daily_reference="larger", close_at_loss=True),
    "losses": replace(FREE, max_losses=2, cool_down=0.5),
    "orders": replace(FREE, max_orders=2),
    "maintenance": replace(FREE, maintenance=tuple((day, 1, 23.5) for day in range(0, 7, 2))),
}


@kernel
def greedy_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    """Want to be long for ever, to turn with each bar, to hold a million lots, or twice as much as before, by turns."""
    for i in range(block.shape[0]):
        number, greed = int(block[i, TIME]) // 60_000, params[0]
        out[i, TARGET_ID], out[i, TARGET_SIDE] = number, 1.0
        out[i, SIZE_RULE], out[i, SIZE] = SIZE_LOTS, 0.5
        if greed == 1.0:
            out[i, TARGET_SIDE] = 1.0 if number % 2 == 0 else -1.0
        elif greed == 2.0:
            out[i, SIZE_RULE], out[i, SIZE] = SCALED + SIZE_LOTS, 1e6
        elif greed == 3.0:
            out[i, TARGET_SIDE] = 1.0 if number // 12 % 2 == 0 else -1.0
            out[i, SIZE_RULE], out[i, SIZE] = SCALED + SIZE_LOTS, 0.01 * 2.0 ** (number % 12)


def greedy(greed: str) -> Strategy:
    """Return one of the strategies that want too much."""
    return Strategy("greedy", greedy_nb, {"greed": float(GREEDS.index(greed))}, n_float=0, n_int=0, warm_up=0)


def booked(money: float) -> float:
    """Whole cents; a half goes away from zero."""
    return float(np.sign(money) * np.floor(abs(money) * 100 + 0.5 + 1e-6) / 100)


class Book:
    """The account as the deals and the bars say, kept without the engine; each entry and each loss is held against the limits."""

    def __init__(self, limits: RiskLimits) -> None:
        self.limits, self.counts = limits, Counter[str]()
        self.money = self.peak = self.reference = PROFILE.deposit
        self.best = PROFILE.deposit  # balance
        self.streak, self.lost_at = 0, 0
        self.held, self.day, self.is_halted = dict[int, tuple[float, float]](), -1, False  # lots, negative when short, and price
        self.quote, self.costs = 0.0, 0.0  # at the last check, and what the deals there cost

    @property
    def lots(self) -> float:
        """What is held."""
        return sum(part for part, _ in self.held.values())

    def bar(self, time: int, quote: float, deals: list[tuple[str, str, int, float, float, float]]) -> None:
        """Look at the first tick of a bar, then at the deals made there."""
        limits, lots = self.limits, self.lots
        equity = self.money + sum(part * (quote - price) for part, price in self.held.values())
        if time // 86_400_000 != self.day:
            references = {"equity": equity, "balance": self.money, "larger": max(equity, self.money)}
            self.day, self.reference = time // 86_400_000, references[limits.daily_reference]
        self.peak, self.best = max(self.peak, equity), max(self.best, self.money)
        least = max(self.peak * (1 - limits.max_drawdown), self.best * (1 - limits.max_balance_drawdown))
        floor = max(least, self.reference * (1 - limits.max_daily_loss))
        self.is_halted = self.is_halted or equity < least - 0.05
        is_cooling = self.streak >= limits.max_losses and time - self.lost_at < limits.cool_down * 3_600_000
        weekday, hour = (time // 86_400_000 + 3) % 7, time % 86_400_000 / 3_600_000
        is_shut = any(day == weekday and begin <= hour < end for day, begin, end in limits.maintenance)
        is_past = self.is_halted or equity < floor - 0.05
        costs = sum(abs(price - quote) * volume - commission for _, _, _, volume, price, commission in deals)
        for side, entry, position, volume, price, commission in deals:
            change = volume if side == "buy" else -volume
            part, paid = self.held.pop(position, (0.0, price))
            if entry == "in":
                assert not is_past
                assert not is_cooling
                assert not is_shut
                assert self.lots * change >= 0
                self.held[position] = part + change, (paid * part + price * change) / (part + change)
                worth = abs(self.lots) * price
                margin = sum(abs(part) * paid for part, paid in self.held.values()) / PROFILE.leverage
                assert abs(self.lots) <= limits.max_lots + 1e-9
                assert worth <= limits.max_notional + 1e-6
                assert worth <= limits.max_leverage * equity + 0.05
                assert margin * limits.min_margin_level <= equity + 0.5
                assert len(self.held) <= limits.max_orders
            else:
                profit = booked(-change * (price - paid))
                self.money += profit
                if (gained := round(profit + commission, 2)) < 0:
                    self.streak, self.lost_at = self.streak + 1, time
                elif gained > 0:
                    self.streak = 0
                self.counts["cool-downs"] += self.streak == limits.max_losses
                if abs(part + change) > 1e-9:
                    self.held[position] = part + change, paid
            self.money += commission
            self.counts["entries" if entry == "in" else "exits"] += 1
        if is_past and lots and limits.close_at_loss:
            adverse = max(0.0, np.sign(lots) * (self.quote - quote)) * abs(lots)
            assert not self.held
            assert floor - self.money <= adverse + self.costs + costs + 0.1
            self.counts["losses"] += 1
        self.quote, self.costs = quote, costs

    def read(self, deals: pd.DataFrame, bars: pd.DataFrame) -> Counter[str]:
        """Go through a run."""
        at: dict[int, list[tuple[str, str, int, float, float, float]]] = {}
        columns = ["side", "entry", "position", "volume", "price", "commission"]
        for time, row in zip(time_ms(pd.DatetimeIndex(deals["time"])).tolist(), deals[columns].itertuples(index=False), strict=True):
            at.setdefault(time, []).append(tuple(row))
        for time, quote in zip(time_ms(bars.index).tolist(), bars["open"].tolist(), strict=True):
            self.bar(time, quote, at.pop(time, []))
        assert not at, "a deal was made between two checks"
        self.counts["bars"] += len(bars)
        return self.counts


def market(days: int) -> pd.DataFrame:
    """Return bars without a spread, so that the account's worth at a first tick can be told from the open alone."""
    return synthetic_bars(31, utc_ms("2024-01-01"), utc_ms("2024-01-02") + days * 86_400_000).assign(spread=0)


@pytest.mark.jit
def test_greed_in_the_backtest(rounds: int) -> None:
    """No strategy gets past a limit; `BTCBOT_ROUNDS=365` takes a year."""
    bars, start = market(min(max(rounds // 4, 5), 20) if rounds < 365 else 365), "2024-01-02"
    total: Counter[str] = Counter()
    for (name, limits), greed in product(LIMITS.items(), GREEDS):
        result = Backtester(PROFILE, limits).run(greedy(greed), bars, trade_from=start)
        counts = Book(limits).read(result.deals, bars[start:])
        assert counts["entries"] > 0, (name, greed)
        total += counts
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(total.items())))
    assert total["losses"] >= 20
    assert total["cool-downs"] >= 10


@pytest.mark.jit
def test_greed_live(rounds: int, tmp_path: Path) -> None:
    """The trader on the twin makes the same deals under the same limits, and they are within them."""
    bars = market(1)[: 1440 + 6 * rounds]
    total: Counter[str] = Counter()
    with CertificateFile(tmp_path / "certificates.sqlite") as certificates:
        for number, ((_, limits), greed) in enumerate(product(LIMITS.items(), GREEDS)):
            strategy = greedy(greed)
            if certificates.find(strategy.code_hash) is None:
                certificates.save(certify(strategy, bars[:1440]))
            twin = Twin(bars, PROFILE, start="2024-01-02")
            twin.initialize()
            with OrderJournal(tmp_path / f"{number}.sqlite") as journal:
                trader = Trader(twin, strategy, PROFILE, twin.clock, journal, limits=limits, certificates=certificates)
                trader.warm_up(bars[:1439])
                trader.run()
            live = deals_frame(twin.history_deals_get(1, 2**31 - 1), twin.clock)
            result = Backtester(PROFILE, limits).run(strategy, bars, trade_from="2024-01-02")
            assert compare_deals(live, result.deals).differing == 0
            assert trader.risk.refusals == result.refusals
            total += Book(limits).read(live, bars["2024-01-02":])
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(total.items())))
    assert total["entries"] > 100


REFUSING = {
    "age": (RiskLimits(max_decision_age=0.01), {"now": 120_000}),
    "losses": (RiskLimits(max_losses=1), {"streak": 1, "lost_at": 1}),
    "orders": (RiskLimits(max_orders=1), {"orders": 5}),
    "maintenance": (RiskLimits(maintenance=((3, 0, 1),)), {}),
    "drawdown of the balance": (RiskLimits(max_drawdown=0.9, max_balance_drawdown=0.01), {"equity": 9_000_000}),
    "risk without a stop": (RiskLimits(max_risk=0.01), {}),
    "others": (RiskLimits(), {"others": 1_000}),
    "shrunk": (RiskLimits(max_drawdown=0.9, max_daily_loss=0.9, shrink_at=0.05), {"equity": 9_000_000}),
    "spread": (RiskLimits(max_spread_bps=0.01), {}),
    "gap": (RiskLimits(max_gap_bps=0.01), {"bid": 2_990_000}),
    "hours": (RiskLimits(trading_hours=(3, 4)), {}),
    "drawdown": (RiskLimits(max_drawdown=0.01), {"equity": 9_000_000}),
    "daily loss": (RiskLimits(max_daily_loss=0.01, max_drawdown=0.9), {"equity": 9_000_000}),
    "size": (RiskLimits(max_lots=0.001), {}),
    "worth": (RiskLimits(max_notional=1), {}),
    "leverage": (RiskLimits(max_leverage=1e-6), {}),
    "margin level": (RiskLimits(min_margin_level=1e9), {}),
}


@pytest.mark.parametrize("rule", REFUSING)
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("is_halted", [False, True])
def test_no_limit_keeps_a_position_open(rule: str, closes: bool, is_halted: bool) -> None:
    """Whatever is refused, in whatever state: an exit, a turn and a smaller size reduce, and nothing is opened."""
    limits, changes = REFUSING[rule]
    bar: I8 = np.array([0, 3_000_000, 3_001_000, 2_999_000, 3_000_000, 0])
    given = {"now": 60_000, "bid": 3_000_000, "ask": 3_000_600, "day": 0, "equity": 10_000_000, "used_margin": 9_990_000}
    for held, (wanted, size, is_scaled) in product((1, -1), ((0, 1.0, 0), (-1, 1.0, 0), (1, 0.2, 1), (-1, 0.2, 1), (0, 0.2, 1))):
        manager = RiskManager(PROFILE, replace(limits, close_at_loss=closes))
        idle = np.full(N_TARGET, np.nan)
        manager.decide(idle, bar, moment(**given), no_positions())  # the day's and the peak's equity
        manager.state[HALTED_AT] = is_halted
        own = no_positions(2)
        own[:, TICKET], own[:, SIDE], own[:, POSITION_VOLUME], own[:, PRICE_OPEN] = (7, 8), held, (30, 20), 3_000_000
        target = idle.copy()
        target[[TARGET_ID, TARGET_SIDE, SIZE_RULE, SIZE]] = 1, wanted * held, SIZE_LOTS + SCALED * is_scaled, size
        sent = manager.decide(target, bar, moment(**given | changes), own)
        closed = sum(row[INTENT_VOLUME] for row in sent if row[KIND] == CLOSE)
        assert not any(row[KIND] == OPEN_POSITION for row in sent)
        assert closed >= (30 if wanted == 1 else 50)
