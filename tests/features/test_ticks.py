"""Signs, imbalance and rate of ticks, and bars that follow the volume, against slow references."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from checks import Columns, Factory, check_all
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from btcbot.core.jit import F8
from btcbot.features.indicators.ticks import (
    TICK_BAR,
    FlowImbalance,
    SignedVolume,
    TickBars,
    TickRate,
    TickSign,
    bar_imbalance,
    dollar_bars,
    flow_imbalance,
    tick_rate,
    tick_sign,
    volume_bars,
)
from btcbot.market.bars import BAR_COLUMNS, check_bars, time_index, time_ms
from btcbot.market.ticks import bars_from_ticks, check_ticks

DAY_MS = 86_400_000


def tape(n: int, seed: int = 1) -> dict[str, F8]:
    """Return `n` trades by column: many at one price or in one millisecond, over several days when `n` is large."""
    rng = np.random.default_rng(seed)
    return {
        "time": np.floor(1_704_067_200_000 + (rng.exponential(30_000, n) * (rng.random(n) < 0.8)).cumsum()),
        "price": np.round(30_000 + rng.choice([-0.5, 0.0, 0.0, 0.0, 0.5], n).cumsum(), 1),
        "volume": rng.integers(1, 200, n) / 64.0,
        "spread": rng.integers(1, 9, n).astype(float),
    }


def frame(trades: dict[str, F8]) -> pd.DataFrame:
    """Return the same as ticks in the library's schema."""
    price = trades["price"]
    data = {"bid": price - trades["spread"] / 20, "ask": price + trades["spread"] / 20, "last": price, "volume": trades["volume"]}
    return check_ticks(pd.DataFrame(data, index=time_index(trades["time"].astype(np.int64))))


MAKES: dict[str, Factory] = {
    "sign": lambda: TickSign(30),
    "signed volume": lambda: SignedVolume(30),
    "imbalance": lambda: FlowImbalance(50, 30),
    "rate": lambda: TickRate(50),
}


@pytest.mark.jit
@pytest.mark.parametrize("name", MAKES)
def test_the_promises_of_an_indicator(name: str) -> None:
    trades = tape(3_000)
    inputs: Columns = [trades[column] for column in MAKES[name]().inputs]
    # A sign is remembered for all its patience only where the price stands still.
    check_all(MAKES[name], inputs, is_tight=name == "rate")


def slow_signs(price: Sequence[float], patience: int) -> list[float]:
    """By the definition: the sign of the last change among the last `patience` steps."""
    out = [0.0]
    for i in range(1, len(price)):
        moves = [price[k] - price[k - 1] for k in range(max(i - patience + 1, 1), i + 1)]
        out.append(next((math.copysign(1.0, move) for move in reversed(moves) if move), 0.0))
    return out


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(10, 13), min_size=2, max_size=40), st.integers(1, 6), st.integers(0, 40))
def test_the_tick_rule_by_the_definition(prices: list[int], patience: int, cut: int) -> None:
    price = np.array(prices, np.float64)
    assert_array_equal(tick_sign(price, patience)[1:], slow_signs(prices, patience)[1:])
    part = TickSign(patience)
    assert_array_equal(np.concatenate([part.extend(price[:cut]), part.extend(price[cut:])]), tick_sign(price, patience))
    assert_array_equal(tick_sign(100 - price, patience), -tick_sign(price, patience))


def test_imbalance_and_rate_by_pandas() -> None:
    trades = tape(600)
    signed = pd.Series(slow_signs(trades["price"].tolist(), 20) * trades["volume"])
    expected = signed.rolling(50).sum() / pd.Series(trades["volume"]).rolling(50).sum()
    assert_allclose(flow_imbalance(trades["price"], trades["volume"], 50, 20)[50:], expected[50:], atol=1e-12)
    spans = pd.Series(trades["time"]).diff(50)[50:]
    assert_allclose(tick_rate(trades["time"], 50)[50:], 50_000 / np.maximum(spans, 1.0))


# Bars that follow the volume


def slow_bars(trades: dict[str, F8], threshold: float, on: str, clock_ms: int, patience: int) -> list[dict[str, float]]:
    """By the definition, one tick at a time."""
    signs = slow_signs(trades["price"].tolist(), patience)
    bars: list[dict[str, float]] = []
    ticks: list[tuple[float, float, float, float, float]] = []

    def close_bar(known: float) -> None:
        time, price, volume, spread, sign = (list(column) for column in zip(*ticks, strict=True))
        bars.append(
            {
                "open_time": time[0],
                "close_time": time[-1],
                "known_time": known,
                "open": price[0],
                "high": max(price),
                "low": min(price),
                "close": price[-1],
                "tick_volume": len(ticks),
                "spread": min(spread),
                "volume": sum(volume),
                "value": sum(p * v for p, v in zip(price, volume, strict=True)),
                "signed_volume": sum(s * v for s, v in zip(sign, volume, strict=True)),
            }
        )
        ticks.clear()

    for tick in zip(trades["time"], trades["price"], trades["volume"], trades["spread"], signs, strict=True):
        if ticks and tick[0] // clock_ms != ticks[0][0] // clock_ms:
            close_bar(tick[0])
        ticks.append(tick)
        if sum(p * v if on == "value" else v for _, p, v, _, _ in ticks) >= threshold:
            close_bar(tick[0])
    return bars


@pytest.mark.parametrize(("threshold", "on"), [(20.0, "volume"), (5e5, "value"), (1.0, "volume"), (1e9, "volume")])
def test_bars_by_the_definition(threshold: float, on: str) -> None:
    trades = tape(500)
    expected = slow_bars(trades, threshold, on, 3_600_000, 20)
    made = TickBars(threshold, "value" if on == "value" else "volume", "H1", 20).extend(*trades.values())
    assert_array_equal(made.T, [[bar[name] for name in TICK_BAR] for bar in expected])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=4), st.floats(0.5, 60.0), st.integers(0, 5))
def test_any_split_gives_the_same_bars(cuts: list[int], threshold: float, seed: int) -> None:
    trades = list(tape(120, seed).values())
    whole, parts, pieces = TickBars(threshold).extend(*trades), TickBars(threshold), []
    for low, high in zip([0, *sorted(cuts)], [*sorted(cuts), 120], strict=True):
        pieces.append(parts.extend(*(x[low:high] for x in trades)))
        saved, parts = parts.state, TickBars(threshold)
        parts.state = saved
    assert_array_equal(np.concatenate(pieces, axis=1), whole)
    parts = TickBars(threshold)
    assert_array_equal(np.concatenate([parts.update(*tick) for tick in zip(*trades, strict=True)], axis=1), whole)


def test_nothing_is_lost_and_days_agree_whatever_the_start() -> None:
    trades = tape(9_000)
    whole = dict(zip(TICK_BAR, TickBars(20.0, patience=50).extend(*trades.values()), strict=True))
    last = whole["close_time"][-1]
    assert whole["volume"].sum() + trades["volume"][trades["time"] > last].sum() == trades["volume"].sum()
    assert (whole["known_time"] >= whole["close_time"]).all()
    assert (np.diff(whole["open_time"]) >= 0).all()
    by_clock = whole["volume"] < 20.0
    assert 0 < by_clock.sum() <= 3
    assert_array_equal(whole["known_time"][~by_clock], whole["close_time"][~by_clock])
    assert (whole["open_time"] // DAY_MS == whole["close_time"] // DAY_MS).all()
    later = dict(zip(TICK_BAR, TickBars(20.0, patience=50).extend(*(x[777:] for x in trades.values())), strict=True))
    day = (trades["time"][777] // DAY_MS + 1) * DAY_MS
    for name in TICK_BAR:
        assert_array_equal(later[name][later["open_time"] >= day], whole[name][whole["open_time"] >= day])


def test_frames() -> None:
    ticks = frame(tape(900))
    bars = volume_bars(ticks, 20.0, digits=1)
    assert list(bars.columns) == [*BAR_COLUMNS, "volume", "value", "signed_volume", "close_time", "known_time"]
    assert bars.index.name == "time"
    assert (bars["volume"] >= 20.0).sum() >= len(bars) - 1
    rising = bars[~bars.index.duplicated()]
    assert_array_equal(check_bars(rising)["spread"], rising["spread"])
    dollars = dollar_bars(ticks, 6e5, digits=1, price="mid")
    assert ((dollars["value"] >= 6e5) | (dollars["known_time"] > dollars["close_time"])).all()


@pytest.mark.parametrize("timeframe", ["M5", "H1"])
def test_bars_of_the_clock_are_the_library_s(timeframe: str) -> None:
    ticks = frame(tape(900))
    imbalance, bars = bar_imbalance(ticks, timeframe), bars_from_ticks(ticks, timeframe, 1)
    assert imbalance.index.equals(bars.index[:-1])
    signs = np.array(slow_signs(ticks["last"].tolist(), 1000))
    groups = pd.DataFrame({"signed": signs * ticks["volume"].to_numpy(), "volume": ticks["volume"].to_numpy()}).groupby(
        time_ms(ticks.index) // {"M5": 300_000, "H1": 3_600_000}[timeframe]
    )
    sums = groups.sum()[:-1]
    assert_allclose(imbalance, sums["signed"] / sums["volume"], atol=1e-12)
