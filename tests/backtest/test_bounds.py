"""For a trade with the same entry and levels: worst <= what happened on any path inside the bars <= best."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from btcbot.backtest.backtester import Backtester, Result
from btcbot.core.jit import I8
from btcbot.engine import account as engine
from btcbot.engine.bars import tick_nb
from btcbot.engine.conditions import account_params
from btcbot.engine.deals import open_nb
from btcbot.engine.limits import RiskLimits
from btcbot.market.clock import midnight_weekdays, midnights, server_clock
from btcbot.market.profile import broker_profile
from btcbot.strategies.arrays import Sizing, target_positions

LENGTH = 4 * 3_600_000
FREE = RiskLimits(max_lots=1e9, max_drawdown=1e9, max_daily_loss=1e9, max_spread_bps=1e9)
PROFILE = broker_profile("cfd-eet")
SYMBOL = replace(
    PROFILE.symbol,
    spread_bps=3.0,
    slippage_bps=0.7,
    commission_bps=2.5,
    swap_mode="deposit",
    swap_long=-7.3,
    swap_short=2.9,
    swap_days=(1, 1, 3, 1, 1, 0, 1),
    stops_level=0,
)
ALLOWANCE = 1.5


def market(rng: np.random.Generator, n: int, size: float) -> pd.DataFrame:
    """Return bars of four hours, whose midnights lie inside."""
    opens = 3_000_000 + rng.normal(0, size, n).cumsum().round()
    closes = opens + rng.normal(0, size, n).round()
    high = np.maximum(opens, closes) + np.abs(rng.normal(0, size, n)).round()
    low = np.minimum(opens, closes) - np.abs(rng.normal(0, size, n)).round()
    index = pd.date_range("2024-01-01", periods=n, freq="4h", tz="UTC", unit="ms", name="time")
    prices = {"open": opens / 100, "high": high / 100, "low": low / 100, "close": closes / 100}
    return pd.DataFrame(prices | {"spread": rng.integers(0, 1500, n)}, index=index)


def path(rng: np.random.Generator, bar: pd.Series, start: int) -> list[tuple[int, int]]:
    """Draw the ticks of a bar, (time, bid): from the open to the close, by both extremes in any order."""
    first, high, low, last = (round(bar[name] * 100) for name in ("open", "high", "low", "close"))
    bids = [first]
    for station in [*rng.permutation([high, low]).tolist(), last]:
        bids += [*rng.integers(low, high + 1, rng.integers(0, 4)).tolist(), station]
    times = np.sort(rng.integers(1, LENGTH, len(bids)))
    times[0], times[-1] = 0, LENGTH - 1
    return [(start + int(t), int(bid)) for t, bid in zip(times, bids, strict=True)]


def half_away(value: Fraction) -> int:
    """Round to whole cents."""
    return int(abs(value) + Fraction(1, 2)) * (1 if value >= 0 else -1)


def spread_of(bar: pd.Series) -> int:
    """Return the larger of the column and the model, in points."""
    return max(int(bar["spread"]), -(-round(bar["open"] * 100) * 300 // 1_000_000))


def slipped(side: int, price: int) -> int:
    """Return the price of a deal of `side`."""
    return price + side * -(-price * 70 // 1_000_000)


def paid(volume: int, price: int) -> int:
    """Return the commission of a deal, in cents."""
    return -half_away(Fraction(volume * price, 100) * Fraction(25, 100_000))


def truth(
    rng: np.random.Generator,
    bars: pd.DataFrame,
    trade: pd.Series,
    stop: float,
    take: float,
    paths: list[list[tuple[int, int]]] | None = None,
) -> int:
    """Play a trade of `result` on one path, drawn unless given, then with the bar's spread; return its net profit in cents."""
    side, volume = 1 if trade["side"] == "long" else -1, round(trade["volume"] * 100)
    start = int(trade["opened"].value // 1_000_000)
    first = int(bars.index.searchsorted(trade["opened"]))
    bid = round(bars["open"].iloc[first] * 100)
    spread = spread_of(bars.iloc[first])
    quote, protect = (bid + spread, bid) if side > 0 else (bid, bid + spread)
    entry = slipped(side, quote)
    assert entry == round(trade["open"] * 100)
    sl, tp = quote - side * round(stop * 100), quote + side * round(take * 100)
    sl = sl if side * (protect - sl) >= 1 else protect - side
    tp = tp if side * (tp - protect) >= 1 else protect + side
    clock = server_clock("EET")
    nights = midnights(clock, start, start + len(bars) * LENGTH)
    days = np.array(SYMBOL.swap_days)[midnight_weekdays(clock, nights)]
    a_night = Fraction(str(SYMBOL.swap_long if side > 0 else SYMBOL.swap_short)) * volume
    for k in range(first, len(bars)):
        spread = spread_of(bars.iloc[k])
        ticks = path(rng, bars.iloc[k], int(bars.index[k].value // 1_000_000)) if paths is None else paths[k]
        for number, (time, bid) in enumerate(ticks):
            if number == 0 and k == first:
                continue
            quote = bid if side > 0 else bid + spread
            price = 0
            if side * (quote - sl) <= 0:
                # Whether the stop is reached the bar's own spread says; when it is, the spread may be wider.
                wider = int(rng.integers(0, int(ALLOWANCE * spread) + 1)) if side < 0 and number and paths is None else 0
                price = slipped(-side, quote + wider)
            elif side * (quote - tp) >= 0:
                price = tp if number else quote
            elif number == 0 and trade["exit"] == "expert" and bars.index[k] == trade["closed"]:
                price = slipped(-side, quote)
            if price:
                swap = sum(
                    half_away(a_night * int(d)) for night, d in zip(nights.tolist(), days.tolist(), strict=True) if start < night <= time
                )
                profit = half_away(Fraction(side * (price - entry) * volume, 100))
                return profit + swap + paid(volume, entry) + paid(volume, price)
    raise AssertionError("the trade never ended")


def run(rng: np.random.Generator, bars: pd.DataFrame, sizing: Sizing, leverage: int, deposit: float) -> Result:
    """Trade at random."""
    profile = replace(PROFILE, symbol=SYMBOL, leverage=leverage, deposit=deposit)
    wanted = np.repeat(rng.integers(-1, 2, len(bars)), 2)[: len(bars)]
    targets = target_positions(bars, wanted, sizing=sizing, timeframe="H4")
    return Backtester(profile, FREE, ALLOWANCE).run(targets, bars, "H4")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), stop=st.floats(1, 400), take=st.floats(1, 400), size=st.sampled_from([500.0, 8_000.0, 20_000.0]))
def test_the_truth_lies_between_worst_and_best(seed: int, stop: float, take: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    bars = market(rng, 12, size)
    result = run(rng, bars, Sizing(lots=float(rng.integers(1, 300)) / 100, stop=stop, take_profit=take), 1000, 1e7)
    for _, trade in result.trades.iterrows():
        assert trade["worst"] <= trade["net"] <= trade["best"]
        for _ in range(4):
            cents = truth(rng, bars, trade, stop, take)
            assert round(trade["worst"] * 100) <= cents <= round(trade["best"] * 100), (trade.to_dict(), cents)


def played(rng: np.random.Generator, bars: pd.DataFrame, result: Result, levels: tuple[int, int]) -> int:
    """Play the first trade on one path through the account itself, stop-out included; return its net profit in cents."""
    params, trade = account_params(result.profile), result.trades.iloc[0]
    account, positions = engine.new_account(round(result.profile.deposit * 100))
    deals = engine.new_deals(4)
    side, start = 1 if trade["side"] == "long" else -1, int(trade["opened"].value // 1_000_000)
    clock = server_clock("EET")
    nights = midnights(clock, start, start + len(bars) * LENGTH)
    rollovers: I8 = np.column_stack([nights, np.array(SYMBOL.swap_days)[midnight_weekdays(clock, nights)]])
    for k in range(int(bars.index.searchsorted(trade["opened"])), len(bars)):
        spread = spread_of(bars.iloc[k])
        for number, (time, bid) in enumerate(path(rng, bars.iloc[k], int(bars.index[k].value // 1_000_000))):
            if number == 0 and bars.index[k] == trade["opened"]:
                engine.set_quote_nb(params, account, time, bid, bid + spread)
                assert open_nb(params, account, positions, deals, side, round(trade["volume"] * 100), *levels, 0) == engine.DONE
                continue
            tick_nb(params, account, positions, deals, rollovers, time, bid, bid + spread, number == 0)
            if account[engine.N_POSITIONS] == 0:
                return int(account[engine.BALANCE]) - round(result.profile.deposit * 100)
    raise AssertionError("the trade never ended")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), stop=st.floats(50, 3_000), take=st.floats(50, 3_000), lots=st.sampled_from([0.1, 1.0, 3.0, 3.2]))
def test_so_it_does_where_the_margin_may_give_out(seed: int, stop: float, take: float, lots: float) -> None:
    rng = np.random.default_rng(seed)
    bars = market(rng, 10, 40_000.0)
    result = run(rng, bars, Sizing(lots=lots, stop=stop, take_profit=take), 10, 10_000.0)
    trades = result.trades
    if len(trades) == 0 or trades["exit"].iloc[0] == "expert":
        return
    trade = trades.iloc[0]
    side, first = 1 if trade["side"] == "long" else -1, bars.loc[trade["opened"]]
    quote = round(first["open"] * 100) + (spread_of(first) if side > 0 else 0)
    for _ in range(6):
        cents = played(rng, bars, result, (quote - side * round(stop * 100), quote + side * round(take * 100)))
        assert round(trade["worst"] * 100) <= cents <= round(trade["best"] * 100), (trade.to_dict(), cents)
