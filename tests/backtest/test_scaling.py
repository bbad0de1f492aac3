"""Positions brought to a size, one strategy or several: against the same wishes carried out on an account written apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from math import inf

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_orders import Conditions, Holding, OrdersAccount
from scripted import DAY, MINUTE, PLAIN, START, frame, terms

from btcbot.backtest.backtester import Backtester
from btcbot.core.jit import F8
from btcbot.engine.limits import RiskLimits
from btcbot.market.bars import time_ms
from btcbot.market.profile import BrokerProfile
from btcbot.strategies.arrays import Sizing, TargetArrays, target_positions

FREE = RiskLimits(max_lots=1e6, max_drawdown=inf, max_daily_loss=inf, max_spread_bps=inf, max_decision_age=inf)
COSTS = {"spread_bps": 2, "slippage_bps": 1, "commission_per_lot": 0.25, "swap_long": -12.5, "swap_short": 3.0, "leverage": 50}
UNIT = Decimal("0.1")  # lots of a position of 1


def conditions(profile: BrokerProfile) -> Conditions:
    """Return what the account written apart reads."""
    symbol = profile.symbol
    return Conditions(
        digits=2,
        contract_size=Decimal(1),
        volume_min=Decimal("0.01"),
        volume_max=Decimal(100),
        volume_step=Decimal("0.01"),
        stops_level=0,
        freeze_level=0,
        calc_mode="cfd_leverage",
        leverage=Decimal(50),
        margin_initial=Decimal(0),
        margin_rate_long=Decimal(1),
        margin_rate_short=Decimal(1),
        margin_rate_pending=Decimal(0),
        margin_hedged=None,
        hedged_use_leg=False,
        stop_out_level=Decimal(50),
        is_stop_out_in_money=False,
        commission_per_lot=Decimal(str(symbol.commission_per_lot)),
        commission_bps=Decimal(0),
        commission_entry=True,
        commission_exit=True,
        swap_mode="interest_current",
        swap_long=Decimal(str(symbol.swap_long)),
        swap_short=Decimal(str(symbol.swap_short)),
        swap_days=(1, 1, 1, 1, 1, 1, 1),
        slippage_ppm=100,
        spread_points=0,
        spread_ppm=200,
        initial_deposit=Decimal(10_000),
        is_netting=profile.margin_mode == "netting",
        limit_orders=200,
        limit_positions=200,
        volume_limit=Decimal(0),
        gtc_mode="gtc",
        is_fifo=False,
        is_hedge_prohibited=False,
    )


def market(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """Return a random walk with gaps of minutes and of days."""
    minutes = np.cumsum(rng.choice([1, 1, 2, 30, DAY], count, p=[0.5, 0.4, 0.04, 0.04, 0.02]))
    price, bars = 10_000, {}
    for minute in minutes.tolist():
        first, last = (max(2_000, price + int(rng.normal(0, 30))) for _ in range(2))
        high, low = max(first, last) + int(abs(rng.normal(0, 30))), min(first, last) - int(abs(rng.normal(0, 30)))
        bars[int(minute)] = (first / 100, high / 100, low / 100, last / 100, int(rng.choice([0, 3, 40])))
        price = last
    return frame(bars)


@dataclass
class Wisher:
    """A strategy that sends its own requests."""

    account: OrdersAccount
    magic: int
    positions: F8
    stop: int  # points, 0 for none
    take: int
    wanted: float = 0.0
    changes: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def held(self) -> list[Holding]:
        """Its positions, the oldest first."""
        return [p for p in self.account.positions if p.magic == self.magic]

    def leave(self, wanted: float) -> None:
        """Close what is too much, the oldest first."""
        side, lots = int(np.sign(wanted)), UNIT * Decimal(str(abs(wanted)))
        for position in [p for p in self.held if p.side != side]:
            assert self.account.close(position.ticket, position.lots, self.magic) == 10009
        excess = sum((p.lots for p in self.held), Decimal(0)) - lots
        for position in self.held:
            if (part := min(excess, position.lots)) > 0:
                assert self.account.close(position.ticket, part, self.magic) == 10009
                excess -= part

    def levels(self, side: int) -> tuple[int, int]:
        """Return the stop and the target of an entry at the quote of now."""
        quote = self.account.ask if side > 0 else self.account.bid
        return (quote - side * self.stop if self.stop else 0), (quote + side * self.take if self.take else 0)

    def guard(self, wanted: float) -> None:
        """Take the new target over, and the new stop where it is tighter."""
        for position in self.held:
            sl, tp = self.levels(position.side)
            is_tighter = sl and (not position.sl or position.side * (sl - position.sl) > 0)
            self.account.modify(position.ticket, sl if is_tighter else position.sl, tp)

    def enter(self, wanted: float) -> None:
        """Buy or sell what is missing."""
        side, missing = int(np.sign(wanted)), UNIT * Decimal(str(abs(wanted))) - sum((p.lots for p in self.held), Decimal(0))
        if missing > 0:
            sl, tp = self.levels(side)
            if self.held:
                stops = [p.sl for p in self.held if p.sl]
                sl, tp = (max(side * s for s in stops) * side if stops else 0), self.held[-1].tp
            self.account.open(side, missing, sl, tp, self.magic)


def carried_out(bars: pd.DataFrame, profile: BrokerProfile, wishes: list[tuple[F8, int, int]]) -> list[tuple[object, ...]]:
    """Play the wishes on the account written apart, and return its deals."""
    prices = (bars[["open", "high", "low", "close"]].to_numpy() * 100).round().astype(int)
    rows = [(int(t), *map(int, p), int(s)) for t, p, s in zip(time_ms(bars.index), prices, bars["spread"], strict=True)]
    midnights = [(START + k * DAY * MINUTE, 1) for k in range(1, 200)]
    account = OrdersAccount(conditions(profile), rows, MINUTE, midnights)
    strategies = [Wisher(account, magic, *wish) for magic, wish in enumerate(wishes)]
    for bar in range(1, len(rows)):
        account.advance()
        decided = [s for s in strategies if s.positions[bar - 1] != (s.positions[bar - 2] if bar > 1 else 0.0)]
        for step in (Wisher.leave, Wisher.guard, Wisher.enter):
            for strategy in decided:
                step(strategy, float(strategy.positions[bar - 1]))
    account.advance()
    return [
        (d.time_ms, d.side, d.entry, d.position_id, d.reason, float(d.lots), d.points, float(d.profit), float(d.commission), float(d.swap))
        for d in account.deals
    ]


@pytest.mark.parametrize("mode", ["netting", "hedging", "two strategies", "three strategies"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_deals_are_those_of_the_same_wishes_on_an_account_written_apart(mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    profile = terms(PLAIN, margin_mode="netting" if mode == "netting" else "hedging", **COSTS)
    bars, wishes, targets = market(rng, 90), list[tuple[F8, int, int]](), list[TargetArrays]()
    for k in range({"two strategies": 2, "three strategies": 3}.get(mode, 1)):
        values = rng.choice([-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4.7], 90, p=[0.05, 0.1, 0.05, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1])
        values = np.repeat(values, rng.integers(1, 6, 90))[:90]
        stop, take = (int(rng.choice([0, 90, 400])) for _ in range(2))
        wishes.append((values, stop, take))
        sizing = Sizing(lots=float(UNIT), stop=stop / 100 or np.nan, take_profit=take / 100 or np.nan, is_scaled=True)
        targets.append(target_positions(bars, values, sizing=sizing, name=str(k)))
    run = Backtester(profile, FREE).run(targets if len(targets) > 1 else targets[0], bars)
    deals = run.deals
    ours = list(
        zip(
            time_ms(pd.DatetimeIndex(deals["time"])).tolist(),
            np.where(deals["side"] == "buy", 1, -1).tolist(),
            (deals["entry"] == "out").astype(int).tolist(),
            deals["position"].tolist(),
            deals["reason"].map({"expert": 3, "sl": 4, "tp": 5, "so": 6}).tolist(),
            deals["volume"].tolist(),
            (deals["price"] * 100).round().astype(int).tolist(),
            *(deals[name].tolist() for name in ("profit", "commission", "swap")),
            strict=True,
        )
    )
    assert ours == carried_out(bars, profile, wishes)
    assert len(ours) > 5
    trades, booked = run.trades, deals.groupby("position")[["profit", "commission", "swap"]].sum().sum(axis=1).round(2)
    np.testing.assert_allclose(trades["net"], booked[trades["position"]], atol=1e-9)
    realised = deals.groupby("position")["profit"].sum()[trades["position"]].to_numpy()
    assert (trades["mae"] <= np.minimum(realised, 0) + 1e-9).all()
    assert (trades["mfe"] >= np.maximum(realised, 0) - 1e-9).all()
    assert ((trades["worst"] <= trades["net"]) & (trades["net"] <= trades["best"])).all()
    np.testing.assert_allclose(run.by_strategy["net"].sum(), deals[["profit", "commission", "swap"]].to_numpy().sum(), atol=1e-6)
