"""Bars played on finer bars and on ticks: the same where they say the same, narrower bounds, and what the twin does with them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bounds import ALLOWANCE, FREE, PROFILE, SYMBOL, half_away, market, paid, path, truth
from test_properties import SEEDS, case, whole

from btcbot.backtest import backtester
from btcbot.backtest.backtester import Backtester, Result
from btcbot.data.certificates import CertificateFile
from btcbot.features.causality import certify
from btcbot.market.clock import utc_ms
from btcbot.market.profile import PROFILES
from btcbot.market.resample import resample_bars
from btcbot.market.synthetic import synthetic_bars
from btcbot.market.ticks import bars_from_ticks, check_ticks
from btcbot.strategies.arrays import Sizing, target_positions
from btcbot.strategies.base import Strategy
from btcbot.strategies.rules import make_strategy
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.twin import Twin
from btcbot.trading.parity import compare_deals
from btcbot.trading.trader import Trader, deals_frame


def same(one: Result, other: Result) -> None:
    """Compare all that a run gives, bit for bit."""
    assert one.deals.equals(other.deals)
    assert one.equity.equals(other.equity)
    assert one.low.tolist() == other.low.tolist()
    assert one.bounds.equals(other.bounds)
    names = ("exposure", "refusals", "halted_at", "dropped_bars", "modelled_spread", "data_hash")
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


@settings(max_examples=25)
@given(seed=SEEDS, size=st.integers(1, 90))
def test_the_bars_themselves_change_nothing(seed: int, size: int) -> None:
    given_ = case(seed)
    with pytest.MonkeyPatch.context() as patch:
        plain = given_.run()
        patch.setattr(backtester, "_CHUNK", size)
        run = Backtester(given_.profile).run(given_.strategy, given_.bars, finer=given_.bars)
    same(run, plain)
    assert run.finer is not None
    assert (run.finer.name, run.finer.bars, run.finer.missing, run.finer.differing) == ("M1", len(given_.bars), 0, 0)


def gift(trade: pd.Series, bars: pd.DataFrame, take: float) -> int:
    """Return by how many cents a target that a quote jumped over filled better: bounds don't count on that."""
    if trade["exit"] != "tp":
        return 0
    side, volume, first = 1 if trade["side"] == "long" else -1, round(trade["volume"] * 100), bars.loc[trade["opened"]]
    entry, price = round(trade["open"] * 100), round(trade["close"] * 100)
    level = round(first["open"] * 100) + (int(first["spread"]) if side > 0 else 0) + side * round(take * 100)
    at_price, at_level = (half_away(Fraction(side * (p - entry) * volume, 100)) + paid(volume, p) for p in (price, level))
    return at_price - at_level


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, stop=st.floats(1, 400), take=st.floats(1, 400), size=st.sampled_from([500.0, 8_000.0, 20_000.0]))
def test_what_is_known_better_is_bounded_more_narrowly(seed: int, stop: float, take: float, size: float) -> None:
    """Worst of the bar <= worst of the finer bar <= the ticks <= best of the finer bar <= best of the bar; and a plain loop agrees."""
    rng = np.random.default_rng(seed)
    bars = market(rng, 12, size)
    bars = bars.assign(spread=bars["spread"] + 1200)  # above the model, whatever the open of a finer bar
    paths = [path(rng, bars.iloc[k], int(bars.index[k].value // 1_000_000)) for k in range(len(bars))]
    times, bids = (np.array(column) for column in zip(*[tick for ticks in paths for tick in ticks], strict=True))
    asks = bids + np.repeat(bars["spread"].to_numpy(), [len(ticks) for ticks in paths])
    index = pd.DatetimeIndex(times.view("M8[ms]"), tz="UTC", name="time")
    ticks = check_ticks(pd.DataFrame({"bid": bids / 100, "ask": asks / 100}, index=index))
    profile = replace(PROFILE, symbol=SYMBOL, leverage=1000, deposit=1e7)
    sizing = Sizing(lots=float(rng.integers(1, 300)) / 100, stop=stop, take_profit=take)
    targets = target_positions(bars, np.repeat(rng.integers(-1, 2, len(bars)), 2)[: len(bars)], sizing=sizing, timeframe="H4")
    tester = Backtester(profile, FREE, ALLOWANCE)
    runs = [tester.run(targets, bars, "H4", finer=finer) for finer in (None, bars_from_ticks(ticks, "M30", 2), ticks)]
    coarse, fine, exact = (run.trades.sort_values("opened", ignore_index=True) for run in runs)
    for trades, name in ((coarse, "H4"), (fine, "M30"), (exact, "ticks")):
        assert trades["opened"].equals(coarse["opened"])
        assert set(trades["decided_on"]) <= {name}
    assert exact[["worst", "best"]].eq(exact["net"], axis=0).all(axis=None)
    assert not exact["is_ambiguous"].any()
    for k, trade in exact.iterrows():
        plain = truth(rng, bars, trade, stop, take, paths)
        assert plain <= round(trade["net"] * 100) if trade["exit"] == "tp" else plain == round(trade["net"] * 100)
        rows = [trades.loc[k] for trades in (coarse, fine, exact)]
        wide, narrow, point = (np.subtract(whole(row[["worst", "net", "best"]].to_numpy(float)), gift(row, bars, take)) for row in rows)
        assert wide[0] <= narrow[0] <= point[1] <= narrow[2] <= wide[2]
        assert narrow[0] <= narrow[1] <= narrow[2]


@settings(max_examples=15)
@given(seed=SEEDS)
def test_a_bar_without_finer_data_is_played_as_a_bar(seed: int) -> None:
    """With all but one finer bar taken away, only that bar may come out differently: here it can't, since it says the same."""
    given_ = case(seed)
    rest = [len(given_.bars) // 4, len(given_.bars) // 2, len(given_.bars) // 2 + 1, len(given_.bars) - 1]
    run = Backtester(given_.profile).run(given_.strategy, given_.bars, finer=minutes_apart(given_.bars.iloc[rest], given_.bars.index[0]))
    plain = given_.run()
    assert run.deals.equals(plain.deals)
    assert run.equity.equals(plain.equity)
    assert run.finer is not None
    assert run.finer.bars + run.finer.missing == len(given_.bars)


def minutes_apart(bars: pd.DataFrame, begin: pd.Timestamp) -> pd.DataFrame:
    """Return bars between which the commonest step is a minute: before the market began there were others."""
    early = pd.date_range(begin - pd.Timedelta(hours=2), periods=30, freq="1min", unit="ms")
    others = pd.DataFrame(np.ones((30, bars.shape[1])), index=early, columns=bars.columns).astype(bars.dtypes)
    return pd.concat([others, bars]).rename_axis("time")


def live(feed: pd.DataFrame, start: str, timeframe: str, profile_name: str, folder: Path) -> pd.DataFrame:
    """Trade on the twin, which plays `feed`; the strategy sees bars of `timeframe`."""
    profile = replace(PROFILES[profile_name], deposit=1_000_000.0)
    strategy = strategy_of(timeframe)
    twin = Twin(feed, profile, start=start)
    twin.initialize()
    is_ticks = "bid" in feed
    coarse = bars_from_ticks(feed, timeframe, profile.symbol.digits) if is_ticks else resample_bars(feed, timeframe)
    with OrderJournal(folder / f"{profile_name}-{is_ticks}.sqlite") as journal:
        with CertificateFile(folder / "certificates.sqlite") as certificates:
            if certificates.find(strategy.code_hash) is None:
                certificates.save(certify(strategy, coarse))
            trader = Trader(twin, strategy, profile, twin.clock, journal, timeframe, certificates=certificates)
        trader.warm_up(coarse[coarse.index < pd.Timestamp(start, tz="UTC")])
        trader.run()
    deals = deals_frame(twin.history_deals_get(1, 2**31 - 1) or (), twin.clock)
    result = Backtester(profile).run(strategy, coarse, timeframe, trade_from=start, finer=feed)
    parity = compare_deals(deals, result.deals)
    assert parity.differing == 0, parity.rows.head(3).T.to_string()
    assert trader.risk.refusals == result.refusals
    assert twin.account_info().equity == result.equity.iloc[-1]
    assert result.finer is not None
    assert (result.finer.missing, result.finer.differing) == (0, 0)
    return deals


def strategy_of(timeframe: str) -> Strategy:
    """Return a strategy whose stops and targets are near."""
    made = make_strategy("volatility-breakout", channel=10, atr=20, strength=0.5, hold=40, stop=2.0, take_profit=3.0, break_even=1.5)
    return replace(made, timeframe=timeframe)


@pytest.mark.jit
@pytest.mark.parametrize("profile", ["crypto-24x7", "ecn-ny7"])
def test_the_twin_on_minutes_and_a_trader_on_five(profile: str, tmp_path: Path) -> None:
    bars = synthetic_bars(21, utc_ms("2024-01-02"), utc_ms("2024-01-08"))
    bars = bars.assign(**bars[["open", "high", "low", "close"]].round(PROFILES[profile].symbol.digits))
    deals = live(bars, "2024-01-03", "M5", profile, tmp_path)
    assert {"sl", "tp"} <= set(deals["reason"])
    assert len(deals) > 40


@pytest.mark.jit
def test_the_twin_on_ticks_and_a_trader_on_five(tmp_path: Path) -> None:
    bars = synthetic_bars(22, utc_ms("2024-01-02"), utc_ms("2024-01-05"))
    rng = np.random.default_rng(3)
    prices = np.round(bars[["open", "low", "high", "close"]].to_numpy(), 2)
    times = bars.index.asi8[:, None] + np.sort(rng.integers(0, 60_000, (len(bars), 4)), axis=1)
    asks = prices + rng.integers(0, 900, prices.shape) / 100
    index = pd.DatetimeIndex(times.ravel().view("M8[ms]"), tz="UTC", name="time")
    ticks = check_ticks(pd.DataFrame({"bid": prices.ravel(), "ask": np.round(asks.ravel(), 2)}, index=index))
    deals = live(ticks, "2024-01-03", "M5", "crypto-24x7", tmp_path)
    assert {"sl", "tp"} <= set(deals["reason"])
    assert len(deals) > 10
