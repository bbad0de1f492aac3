"""Sizes: what is at risk is never above what was asked for, whatever the symbol; tick value, margin and profit are the terminal's."""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from btcbot.core.errors import BtcbotError
from btcbot.core.jit import I8
from btcbot.engine.account import ASK, BALANCE, N_POSITIONS, new_account, new_deals, set_quote_nb
from btcbot.engine.conditions import slipped_nb
from btcbot.engine.deals import close_nb, open_nb
from btcbot.engine.limits import RiskLimits, moment
from btcbot.engine.lots import SIZE_FRACTION, SIZE_LOTS, SIZE_RISK
from btcbot.engine.risk import (
    INTENT_SL,
    INTENT_TP,
    INTENT_VOLUME,
    N_TARGET,
    OPEN_POSITION,
    SIZE,
    SIZE_RULE,
    STOP,
    TAKE_PROFIT,
    TARGET_ID,
    TARGET_SIDE,
    RiskManager,
    no_positions,
)
from btcbot.market.clock import utc_ms
from btcbot.market.profile import PROFILES, BrokerProfile, broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.terminal.contract import C
from btcbot.terminal.twin import Twin

CENT = Decimal("0.01")


def asked(risk: RiskManager, side: int, rule: float, size: float, stop: float, bid: int, ask: int, equity: int) -> I8:
    """Return what a manager without a past sends for a new target."""
    target = np.full(N_TARGET, np.nan)
    target[[TARGET_ID, TARGET_SIDE, SIZE_RULE, SIZE, STOP, TAKE_PROFIT]] = 1, side, rule, size, stop, 2 * stop
    bar: I8 = np.array([0, bid, bid, bid, bid, 0])
    return risk.decide(target, bar, moment(60_000, bid, ask, 0, equity), no_positions())


@st.composite
def brokers(draw: st.DrawFn) -> BrokerProfile:
    """A broker's account with random rules of its symbol."""
    base = broker_profile(draw(st.sampled_from(sorted(PROFILES))))
    step = draw(st.sampled_from([0.01, 0.1, 1.0]))
    symbol = replace(
        base.symbol,
        digits=draw(st.integers(0, 3)),
        contract_size=draw(st.sampled_from([0.01, 1.0, 10.0])),
        volume_step=step,
        volume_min=step * draw(st.integers(1, 3)),
        volume_max=step * draw(st.sampled_from([10, 10_000])),
        stops_level=draw(st.sampled_from([0, 1, 5_000])),
        commission_per_lot=draw(st.sampled_from([0.0, 7.0])),
        commission_bps=draw(st.sampled_from([0.0, 5.0])),
        slippage_bps=draw(st.sampled_from([0.0, 0.5, 20.0])),
        liquidity=0.0,
        volume_limit=0.0,
    )
    return replace(base, symbol=symbol, leverage=draw(st.sampled_from([1, 20, 500])))


@settings(max_examples=300, deadline=None)
@given(
    brokers(),
    st.sampled_from([1, -1]),
    st.sampled_from([SIZE_LOTS, SIZE_RISK, SIZE_FRACTION]),
    st.floats(1e-4, 3.0),
    st.floats(1.0, 9_000.0),
    st.integers(0, 200),
    st.integers(1_000_00, 1_000_000_00),
    st.floats(1e-4, 0.5),
)
def test_a_stop_costs_at_most_what_was_asked_for(
    broker: BrokerProfile, side: int, rule: float, size: float, stop: float, spread: int, equity: int, most: float
) -> None:
    """Enter, be stopped out at the level, and look at the account: by the rule's share, by the limit, by margin, by the lot step."""
    try:
        risk = RiskManager(broker, RiskLimits(max_lots=float("inf"), max_spread_bps=1e9, max_risk=most))
    except BtcbotError:  # conditions with too many digits for whole numbers
        assume(False)
    bid = 30_000 * 10**broker.symbol.digits
    sent = asked(risk, side, rule, size, stop, bid, bid + spread, equity)
    if rule == SIZE_RISK:
        most = min(most, size)
    if not len(sent):
        assert risk.refusals["size"] == 1
        assume(False)
    order = sent[0]
    assert order[0] == OPEN_POSITION
    params, (account, positions), deals = risk.params, new_account(equity), new_deals(8)
    set_quote_nb(params, account, 0, bid, bid + spread)
    code = open_nb(params, account, positions, deals, side, order[INTENT_VOLUME], order[INTENT_SL], order[INTENT_TP], 1)
    assert code == 10009
    at_stop = order[INTENT_SL]
    set_quote_nb(params, account, 1, at_stop - (0 if side > 0 else spread), at_stop + (spread if side > 0 else 0))
    assert account[ASK] > 0
    close_nb(params, account, positions, deals, positions[0, 0], order[INTENT_VOLUME], 1)
    assert account[N_POSITIONS] == 0
    lost = equity - int(account[BALANCE])
    assert lost <= equity * most + 2  # of the commission of entry and exit, a cent each may be rounded up


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_money_is_the_terminals(name: str) -> None:
    """Margin, profit, stops and the amount at risk agree with `order_calc_*` to the cent, and these with decimal arithmetic."""
    broker = broker_profile(name)
    symbol, rng = broker.symbol, np.random.default_rng(5)
    bars = synthetic_bars(1, utc_ms("2024-01-02"), utc_ms("2024-01-02T02:00"))
    twin = Twin(bars, broker, start="2024-01-02T01:00")
    twin.initialize()
    info = twin.symbol_info(symbol.name)
    assert info is not None
    unit = 10**symbol.digits
    for side, rule in product((1, -1), (SIZE_RISK, SIZE_FRACTION, SIZE_LOTS)):
        for _ in range(20):
            risk = RiskManager(broker, RiskLimits(max_lots=float("inf"), max_spread_bps=1e9))
            bid, spread = int(rng.integers(5_000 * unit, 90_000 * unit)), int(rng.integers(0, 500))
            equity, stop = int(rng.integers(100_000, 10**9)), float(rng.uniform(0.5, 2_000))
            size = float(rng.uniform(0.001, 0.05)) if rule == SIZE_RISK else float(rng.uniform(0.05, 0.9))
            sent = asked(risk, side, rule, size, stop, bid, bid + spread, equity)
            if not len(sent):
                continue
            steps, sl, tp = int(sent[0, INTENT_VOLUME]), int(sent[0, INTENT_SL]), int(sent[0, INTENT_TP])
            quote, protect = (bid + spread, bid) if side > 0 else (bid, bid + spread)
            lots = round(steps * symbol.volume_step, 8)
            assert info.volume_min <= lots <= info.volume_max
            assert min(side * (protect - sl), side * (tp - protect)) >= info.trade_stops_level
            kind = C.ORDER_TYPE_BUY if side > 0 else C.ORDER_TYPE_SELL
            entry, at_stop = quote / unit, sl / unit
            profit = twin.order_calc_profit(kind, symbol.name, lots, entry, at_stop)
            margin = twin.order_calc_margin(kind, symbol.name, lots, slipped_nb(risk.params, side, quote) / unit)
            assert profit is not None
            assert margin is not None
            exact = Decimal(str(lots)) * Decimal(str(symbol.contract_size))
            moved = (side * exact * (Decimal(sl) - Decimal(quote)) / unit).quantize(CENT, ROUND_HALF_UP)
            if symbol.calc_mode == "cfd":
                assert Decimal(str(round(profit, 2))) == moved
            assert margin * 100 <= equity + 1
            if rule == SIZE_RISK:  # one step more would be past the share, or past another bound
                assert -profit * 100 <= equity * size + 1
            worth = float(exact) * entry
            if rule == SIZE_FRACTION and symbol.calc_mode == "cfd":
                assert worth * 100 <= equity * size + 1


def test_a_share_at_risk_is_used_up() -> None:
    """With no other bound in the way, one step more would cost more than the share: rounding takes less than a step."""
    broker = broker_profile("crypto-24x7")
    risk = RiskManager(replace(broker, leverage=1000), RiskLimits(max_lots=float("inf")))
    for equity in range(1_000_000, 2_000_000, 99_991):
        risk.state[:] = risk.new_state()
        steps = asked(risk, 1, SIZE_RISK, 0.01, 500.0, 3_000_000, 3_000_600, equity)[0, INTENT_VOLUME]
        loss = (500.0 + 30_006 * 1e-4 * 0.5 * 2) * steps / 100  # a lot of 1 BTC, slippage of half a basis point both ways
        assert loss <= equity / 100 * 0.01 < loss * (steps + 2) / steps
