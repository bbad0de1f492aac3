"""The trader on the twin, one bar at a time, against the backtester over the same bars: every deal, to the cent."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from breathing import breathing

from btcbot.backtest.backtester import Backtester
from btcbot.core.errors import BtcbotError
from btcbot.data.certificates import CertificateFile
from btcbot.data.files import longest_span, read_bars
from btcbot.engine.limits import RiskLimits
from btcbot.features.causality import certify
from btcbot.market.bars import time_ms, timeframe_ms
from btcbot.market.clock import to_server, utc_ms
from btcbot.market.profile import PROFILES, BrokerProfile
from btcbot.market.resample import resample_bars
from btcbot.market.sessions import in_sessions
from btcbot.market.synthetic import synthetic_bars
from btcbot.ops.session import Session, file_market
from btcbot.strategies.base import Strategy
from btcbot.strategies.rules import make_strategy
from btcbot.terminal.contract import C, TradeDeal
from btcbot.terminal.faults import plan_from_text
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.twin import Twin
from btcbot.trading.decisions import DecisionLog
from btcbot.trading.live import KillSwitch, LiveLoop
from btcbot.trading.parity import Parity, compare_deals, line_up
from btcbot.trading.trader import Trader, deals_frame

REAL = Path(__file__).parents[2] / "shared" / "data" / "bitfinex_btcusd_1m"
STRATEGIES = {
    "ma-crossover": {"fast": 30, "slow": 120, "atr": 60, "break_even": 6.0},
    "volatility-breakout": {"channel": 30, "atr": 60, "strength": 0.5, "hold": 120},
}
FAULTY = {
    "ma-crossover": {"fast": 10, "slow": 40, "atr": 60, "break_even": 3.0, "stop": 4.0, "trailing": 4.0, "take_profit": 8.0},
    "volatility-breakout": {"channel": 20, "atr": 20, "strength": 0.3, "hold": 60},
}
GREED = RiskLimits(max_lots=10_000, max_drawdown=1.0, max_daily_loss=1.0)  # none of them ever refuses an entry
LONG = 500  # Rounds from which on everything runs
Mode = Literal["hedging", "netting"]
MODES: tuple[Mode, Mode] = ("hedging", "netting")
needs_real = pytest.mark.skipif(not REAL.exists(), reason="the real bars are not beside this checkout")


def kinds(deals: Sequence[TradeDeal], stops: dict[int, float], length: int) -> Counter[str]:
    """Count what the broker's deals were; `stops` are those that positions were opened with, `length` that of a bar, in milliseconds."""
    seen, held, closed = Counter[str](), defaultdict[int, float](float), (0, -1)
    for deal in deals:
        if deal.type not in (C.DEAL_TYPE_BUY, C.DEAL_TYPE_SELL):
            continue
        level = re.fullmatch(r"\[(sl|tp) ([\d.]+)\]", deal.comment)
        if deal.entry == C.DEAL_ENTRY_IN:
            seen["reversal"] += closed == (deal.time_msc, deal.type)
            seen["addition"] += held[deal.position_id] > 0
            held[deal.position_id] += deal.volume
            continue
        held[deal.position_id] = round(held[deal.position_id] - deal.volume, 8)
        seen["partial close"] += held[deal.position_id] > 0
        closed = (deal.time_msc, deal.type) if deal.reason == C.DEAL_REASON_EXPERT else closed
        if deal.reason == C.DEAL_REASON_SO:
            seen["stop-out"] += 1
        elif deal.reason in (C.DEAL_REASON_SL, C.DEAL_REASON_TP):
            assert level, deal
            seen[level[1]] += 1
            seen["gap fill"] += deal.time_msc % length == 0  # the bar opened beyond it
            seen["trailing"] += level[1] == "sl" and float(level[2]) != stops[deal.position_id]
    return seen


def compare(
    bars: pd.DataFrame,
    start: str,
    strategy: Strategy,
    given: BrokerProfile,
    folder: Path,
    timeframe: str = "M1",
    limits: RiskLimits | None = None,
) -> Counter[str]:
    """Trade and backtest; return how often each thing was compared."""
    profile = replace(given, deposit=1_000_000.0 if "mini" in given.name else 100_000.0)  # its least volume is 0.1 BTC
    digits = profile.symbol.digits
    bars = bars.assign(**bars[["open", "high", "low", "close"]].round(digits))  # as they are stored on ingestion
    bars["spread"] = np.ceil(bars["spread"] * 10.0 ** (digits - 2)).astype(np.int32)  # the synthetic market's are in cents
    twin = Twin(bars, profile, timeframe, start=start)
    twin.initialize()
    with OrderJournal(folder / f"{strategy.name}-{profile.name}-{profile.margin_mode}.sqlite") as journal:
        with CertificateFile(folder / "certificates.sqlite") as certificates:
            if certificates.find(strategy.code_hash) is None:
                certificates.save(certify(strategy, bars.iloc[:10_000]))
            trader = Trader(
                twin,
                strategy,
                profile,
                twin.clock,
                journal,
                timeframe,
                limits,
                certificates=certificates,
                reconcile_every=499,
            )
        is_open = in_sessions(profile.symbol.sessions, twin.clock, time_ms(bars.index), timeframe_ms(timeframe))
        trader.warm_up(bars[is_open & (bars.index < pd.Timestamp(start, tz="UTC"))])
        began = time.monotonic()
        record = trader.run()
        seconds = time.monotonic() - began
        assert trader.execution.halted == ""  # reconciled every 499 bars: nothing was broken for long, whatever the broker's records lag
        counts = journal.count_by_outcome()
    deals = twin.history_deals_get(1, 2**31 - 1)
    live_frame = deals_frame(deals, twin.clock)
    result = Backtester(profile, limits).run(strategy, bars, timeframe, trade_from=start)
    frames = [frame.assign(time=to_server(twin.clock, time_ms(pd.DatetimeIndex(frame["time"])))) for frame in (live_frame, result.deals)]
    parity = compare_deals(*frames)  # in the server's time, which is all that the broker says: an hour of it comes twice each autumn
    assert parity.differing == 0, parity.rows.head(3).T.to_string()
    assert twin.account_info().equity == result.equity.iloc[-1]
    assert trader.risk.refusals == result.refusals
    assert counts["unknown"] == counts["intent"] == 0
    opened = {order.position_id: order.sl for order in reversed(twin.history_orders_get(1, 2**31 - 1)) if order.sl}
    seen = kinds(deals, opened, timeframe_ms(timeframe))
    seen["deals"], seen["swap"], seen["bars"] = parity.compared, sum(deal.swap != 0 for deal in deals), record.bars
    print(
        f"{strategy.name}, {profile.name}, {profile.margin_mode}, {timeframe}: {said(seen)}; {record.requests} round trips, {seconds:.0f} s"
    )
    return seen


def said(seen: Counter[str]) -> str:
    """Return counts in words."""
    return ", ".join(f"{name} {count}" for name, count in sorted(seen.items()) if count)


def has_all(total: Counter[str], least: int, names: Sequence[str]) -> None:
    """Refuse a comparison in which something hardly ever happened."""
    print(f"together: {said(total)}")
    assert not {name: total[name] for name in names if total[name] < least}


@pytest.mark.jit
@pytest.mark.parity
def test_synthetic_bars(rounds: int, tmp_path: Path) -> None:
    """Both strategies under every shipped profile on a sample of days; `make parity` takes more of them."""
    days = min(1 + rounds // 40, 60)
    bars = synthetic_bars(21, utc_ms("2024-01-03"), utc_ms("2024-01-05") + days * 86_400_000)
    total = Counter[str]()
    for (name, parameters), profile in itertools.product(STRATEGIES.items(), PROFILES.values()):
        total += compare(bars, "2024-01-05", make_strategy(name, **parameters), profile, tmp_path)
    has_all(total, 1, ("sl", "tp", "trailing", "swap", "reversal"))
    assert total["deals"] >= 100


@pytest.mark.jit
@pytest.mark.parity
@pytest.mark.parametrize("mode", MODES)
def test_positions_brought_to_a_size(mode: Mode, rounds: int, tmp_path: Path) -> None:
    """Additions and parts go through the terminal as the backtester books them, on both kinds of account."""
    bars, total = synthetic_bars(22, utc_ms("2024-01-02"), utc_ms("2024-01-05") + min(rounds // 20, 30) * 86_400_000), Counter[str]()
    for profile in PROFILES.values():
        total += compare(bars, "2024-01-04", breathing(), replace(profile, margin_mode=mode), tmp_path)
    has_all(total, 50 if rounds >= LONG else 1, ("sl", "trailing", "reversal", "partial close"))
    assert total["deals"] >= 200
    assert mode == "hedging" or total["addition"] > 0


@pytest.mark.jit
@pytest.mark.parity
def test_the_night_that_is_an_hour_longer(tmp_path: Path) -> None:
    """The server's clock goes back: its times come twice, and the trader still knows which bar is which."""
    bars = synthetic_bars(24, utc_ms("2024-10-26"), utc_ms("2024-10-27T06:00"))
    for name, parameters in STRATEGIES.items():
        total = compare(bars, "2024-10-26T12:00", make_strategy(name, **parameters), PROFILES["cfd-eet"], tmp_path)
        assert total["bars"] == int((bars.index >= pd.Timestamp("2024-10-26T12:00", tz="UTC")).sum()) - 1
        assert total["deals"] > 10


@pytest.mark.jit
@pytest.mark.parity
@pytest.mark.parametrize("mode", MODES)
def test_stop_outs(mode: Mode, rounds: int, tmp_path: Path) -> None:
    """All the margin there is and no stop: the broker closes, again and again."""
    days = min(1 + rounds // 50, 20)
    greedy = make_strategy("ma-crossover", fast=200, slow=800, atr=240, risk=50.0, stop=500.0, trailing=float("nan"))
    bars = synthetic_bars(23, utc_ms("2024-01-03"), utc_ms("2024-01-05") + days * 86_400_000)
    total = Counter[str]()
    for name in ("swapfree-utc", "ecn-ny7"):
        profile = replace(PROFILES[name], margin_mode=mode, leverage=400)
        total += compare(bars, "2024-01-04", greedy, profile, tmp_path, limits=GREED)
    has_all(total, 5 if rounds >= LONG else 1, ("stop-out",))


@needs_real
@pytest.mark.jit
@pytest.mark.parity
@pytest.mark.parametrize("name", STRATEGIES)
def test_real_bars(name: str, rounds: int, tmp_path: Path) -> None:
    """Two brokers, both kinds of account, real bars of five minutes: a crash, or all after the last long hole."""
    bars = read_bars(REAL) if rounds >= LONG else read_bars(REAL, start="2020-03-01", end="2020-03-18")
    span, total = longest_span(bars.bars, "M1"), Counter[str]()
    five = resample_bars(bars.bars[(time_ms(bars.bars.index) >= span.start) & (time_ms(bars.bars.index) < span.end)], "M5")
    start, strategy = str(five.index[600].date()), make_strategy(name, "M5", **STRATEGIES[name])
    for broker, mode in itertools.product(("crypto-24x7", "fiveday-eet"), MODES):
        total += compare(five, start, strategy, replace(PROFILES[broker], margin_mode=mode), tmp_path, "M5")
    often, least = ("sl", "tp", "trailing", "swap", "reversal"), 50 if rounds >= LONG else 1
    has_all(total, least, (*often, "gap fill") if rounds >= LONG else often)
    assert total["deals"] >= (1000 if rounds >= LONG else 100)


@needs_real
@pytest.mark.jit
@pytest.mark.parity
@pytest.mark.parametrize("name", STRATEGIES)
def test_real_minutes(name: str, rounds: int, tmp_path: Path) -> None:
    """The same on minutes: the day of the crash, or the year 2020."""
    bars = (
        read_bars(REAL, start="2019-12-30", end="2021-01-01") if rounds >= LONG else read_bars(REAL, start="2020-03-11", end="2020-03-13")
    )
    start = "2020-01-01" if rounds >= LONG else "2020-03-12"
    total = compare(bars.bars, start, make_strategy(name, **STRATEGIES[name]), PROFILES["cfd-eet"], tmp_path)
    has_all(total, 50 if rounds >= LONG else 1, ("sl", "trailing"))


@pytest.mark.jit
@pytest.mark.parity
def test_each_difference_has_a_cause(rounds: int, tmp_path: Path) -> None:
    """Calls that fail, orders that are refused or half filled, wide spreads, jumps, clocks: nothing differs without a reason on record."""
    bars, total, names = synthetic_bars(3, utc_ms("2024-01-02"), utc_ms("2024-01-04")), Counter[str](), list(STRATEGIES)
    for seed in range(max(rounds // 10, 2)):
        profile = replace(list(PROFILES.values())[seed // 2 % len(PROFILES)], deposit=100_000.0)
        strategy = make_strategy(names[seed % 2], **FAULTY[names[seed % 2]])
        rate = (0.003, 0.01, 0.03)[seed % 3]
        parity = troubled(bars.round(profile.symbol.digits), profile, strategy, f"seed:{seed}:{rate}", tmp_path / str(seed))
        unknown = parity.differences[parity.differences["cause"] == "unknown"]
        assert unknown.empty, f"{profile.name}, {strategy}, seed {seed}, rate {rate}: {unknown.iloc[0].to_dict()}"
        total += Counter(parity.causes) + Counter({"decisions": parity.decisions, "deals": parity.deals})
    print(f"{max(rounds // 10, 2)} seeds: {said(total)}")
    assert {"late data", "revised bar", "state"} <= set(total)
    assert rounds < LONG or {"reject", "slippage", "partial fill", "spread"} <= set(total)


def troubled(bars: pd.DataFrame, profile: BrokerProfile, strategy: Strategy, faults: str, folder: Path) -> Parity:
    """Trade on a terminal that fails; return the differences."""
    folder.mkdir()
    twin = Twin(bars, profile, start="2024-01-02T12:00", faults=plan_from_text(faults))
    twin.initialize()
    with (
        CertificateFile(folder / "certificates.sqlite") as certificates,
        OrderJournal(folder / "orders.sqlite") as journal,
        DecisionLog(folder / "decisions.sqlite") as log,
    ):
        certificates.save(certify(strategy, bars.iloc[:600], cuts=50, stretch=50))
        while twin.account_info() is None:  # a fault at the very first call
            twin.initialize()

        def started() -> LiveLoop:
            trader = Trader(twin, strategy, profile, twin.clock, journal, certificates=certificates, decisions=log)
            trader.warm_up(bars[bars.index < pd.Timestamp(twin.now - 60_000, unit="ms", tz="UTC")])
            return LiveLoop(trader, KillSwitch(folder / "stop.json"), sleep=lambda _: None)

        loop: LiveLoop | None = started()
        loop.poll()
        while twin.advance(1, ())[0]:
            try:
                loop = loop or started()
                loop.poll()
            except BtcbotError:  # a clock that was wrong: a service manager starts the trader again
                loop = None
            if twin.account_info() is None:  # as a server does that finds its terminal gone
                twin.initialize()
        deals = None
        while deals is None:
            twin.initialize()
            deals = twin.history_deals_get(1, 2**31 - 1)
        return line_up(log, journal, deals, bars, strategy)


@needs_real
@pytest.mark.jit
@pytest.mark.parity
@pytest.mark.skipif(int(os.environ.get("BTCBOT_ROUNDS", "20")) < LONG, reason="two weeks over HTTP take minutes: make parity")
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_weeks_over_http(name: str, tmp_path: Path) -> None:
    """A server in a process of its own between the trader and the twin."""
    profile = replace(PROFILES["cfd-eet"], deposit=100_000.0)
    market = file_market(REAL, profile, tmp_path, "2020-02-20", "2020-03-20", live_bars=14 * 1440)
    session = Session(market, profile, make_strategy(name, **STRATEGIES[name]), tmp_path)
    try:
        session.backfill()
        live = session.trade()
        parity = session.parity(live)
    finally:
        session.close()
    print(f"{name}: {parity.compared} deals, {live.record.bars} bars, {live.record.requests} round trips, {live.seconds:.0f} s")
    assert parity.differing == 0, parity.rows.head(3).T.to_string()
    assert parity.compared >= 100
