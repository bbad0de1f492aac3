"""Flows of volume and prices weighted by it, against TA-Lib and slow references, and their laws."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import talib
from checks import START_MS, Factory, check_all, check_edges, check_later_start, check_nan, check_reference, check_stream, columns, market
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from btcbot.core.errors import BtcbotError
from btcbot.core.jit import F8
from btcbot.features.indicator import NEVER, compute
from btcbot.features.indicators.volume import (
    Ad,
    ChaikinOscillator,
    Mfi,
    Obv,
    SessionVwap,
    Vwap,
    ad,
    chaikin_oscillator,
    mfi,
    obv,
    session_vwap,
    vwap,
)
from btcbot.features.windows import decay_length
from btcbot.market.clock import server_clock, to_server

MAKERS: list[Factory] = [
    lambda: Obv(1),
    lambda: Obv(50),
    lambda: Ad(1),
    lambda: Ad(300),
    lambda: ChaikinOscillator(),
    lambda: ChaikinOscillator(2, 40),
    lambda: Mfi(1),
    lambda: Mfi(14),
    lambda: Vwap(1),
    lambda: Vwap(60),
]
NAMES = [repr(make()) for make in MAKERS]


@pytest.mark.jit
@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_promises(make: Factory) -> None:
    check_all(make, columns(make, market(3000)))


@pytest.mark.jit
@pytest.mark.parametrize("make", [lambda: Obv(), lambda: Ad()])
def test_totals_since_the_start(make: Factory) -> None:
    inputs = columns(make, market(3000))
    check_stream(make, inputs)
    check_edges(make, inputs)
    assert (make().warm_up, make().convergence) == (0, NEVER)
    broken = [np.array(x, np.float64) for x in inputs]
    broken[0][70] = np.nan
    assert_array_equal(np.flatnonzero(np.isnan(make().extend(*broken))), np.arange(70, 3000))


@pytest.mark.jit
@pytest.mark.parametrize("offset", [0, 120, -300])
def test_session_promises(offset: int) -> None:
    bars = market(9000)
    inputs = columns(lambda: SessionVwap(offset), bars)
    check_stream(lambda: SessionVwap(offset), inputs)
    check_edges(lambda: SessionVwap(offset), inputs)
    check_later_start(lambda: SessionVwap(offset), inputs, cuts=range(1, 7000, 500))
    check_nan(lambda: SessionVwap(offset), inputs, at=4000, is_tight=False)


def test_stated_bars() -> None:
    assert [(x.warm_up, x.convergence) for x in (Obv(5), Ad(5), Mfi(5), Vwap(5))] == [(5, 6), (4, 5), (5, 6), (4, 5)]
    assert (ChaikinOscillator(3, 10).warm_up, ChaikinOscillator(3, 10).convergence) == (9, decay_length(1 - 2 / 11))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Obv(-1), "from 0 to"),
        (lambda: Ad(-1), "from 0 to"),
        (lambda: ChaikinOscillator(1, 10), "fast must be a whole number from 2"),
        (lambda: ChaikinOscillator(10, 3), "fast=10, slow=3"),
        (lambda: Mfi(0), "from 1 to"),
        (lambda: SessionVwap(1441), "offset_minutes must be from -1440 to 1440"),
        (lambda: SessionVwap(-1441), "from -1440"),
    ],
)
def test_bad_parameters(make: Factory, text: str) -> None:
    with pytest.raises(BtcbotError, match=text):
        make()


@pytest.mark.jit
@pytest.mark.parametrize("seed", [1, 2])
def test_talib(seed: int) -> None:
    bars = {name: np.asarray(row, np.float64) for name, row in market(20_000, seed).items()}
    all_four = [bars[name] for name in ("high", "low", "close", "volume")]
    close_volume = [bars["close"], bars["volume"]]
    check_reference(lambda: Obv(), close_volume, [talib.OBV(*close_volume)], after=0, rtol=0.0)
    check_reference(lambda: Ad(), all_four, [talib.AD(*all_four)], after=0)
    for n in (2, 14, 50):
        check_reference(lambda n=n: Mfi(n), all_four, [talib.MFI(*all_four, n)])
        check_reference(lambda n=n: ChaikinOscillator(n, 3 * n), all_four, [talib.ADOSC(*all_four, n, 3 * n)])


def bars_of(seed: int, n: int = 120) -> list[F8]:
    """Return highs, lows, closes and volumes of a few bars."""
    bars = market(n, seed)
    return [np.asarray(bars[name], np.float64) for name in ("high", "low", "close", "volume")]


@pytest.mark.parametrize("seed", range(3))
def test_by_hand(seed: int) -> None:
    high, low, close, volume = bars_of(seed)
    n, typical = 6, (high + low + close) / 3.0
    signs = [0.0, *(float(np.sign(b - a)) for a, b in pairwise(close))]
    flows = [((c - lo) - (h - c)) / (h - lo) * v if h > lo else 0.0 for h, lo, c, v in zip(high, low, close, volume, strict=True)]
    for i in range(n, len(close)):
        window = range(i - n + 1, i + 1)
        assert obv(close, volume, n)[i] == sum(signs[j] * volume[j] for j in window)
        assert_allclose(ad(high, low, close, volume, n)[i], sum(flows[j] for j in window), rtol=1e-9, atol=1e-9)
        rising = sum(typical[j] * volume[j] for j in window if typical[j] > typical[j - 1])
        falling = sum(typical[j] * volume[j] for j in window if typical[j] < typical[j - 1])
        assert_allclose(mfi(high, low, close, volume, n)[i], 100 * rising / (rising + falling), rtol=1e-12)
        price = sum(typical[j] * volume[j] for j in window) / sum(volume[j] for j in window)
        assert_allclose(vwap(high, low, close, volume, n)[i], price, rtol=1e-14)
    fast, slow = (sum((1 - 2 / (n + 1)) ** (k + 1) * flows[-1 - k] for k in range(len(flows))) for n in (3, 10))
    assert_allclose(chaikin_oscillator(high, low, close, volume)[-1], slow - fast, rtol=1e-9)


def test_oscillator_does_not_know_the_level_of_the_line() -> None:
    """It is the difference of averages of the line, with large totals in it, as everybody computes it."""
    high, low, close, volume = bars_of(9, 900)
    line = pd.Series(ad(high, low, close, volume)) + 1e7
    wanted = line.ewm(span=3, adjust=False).mean() - line.ewm(span=10, adjust=False).mean()
    assert_allclose(chaikin_oscillator(high, low, close, volume)[300:], wanted[300:], rtol=1e-6, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.integers(-3, 6), st.floats(0.01, 100.0))
def test_laws(seed: int, power: int, factor: float) -> None:
    """Prices are scaled by a power of two, so that equal typical prices stay equal; volumes by anything."""
    high, low, close, volume = bars_of(seed, 60)
    two = 2.0**power
    prices = two * high, two * low, two * close
    assert_allclose(obv(two * close, factor * volume, 5), factor * obv(close, volume, 5), rtol=1e-9, atol=1e-9)
    assert_allclose(ad(*prices, factor * volume, 5), factor * ad(high, low, close, volume, 5), rtol=1e-9, atol=1e-9)
    assert_allclose(
        chaikin_oscillator(*prices, factor * volume), factor * chaikin_oscillator(high, low, close, volume), rtol=1e-9, atol=1e-7
    )
    assert_allclose(mfi(*prices, factor * volume, 5), mfi(high, low, close, volume, 5), rtol=1e-9)
    assert_allclose(vwap(*prices, factor * volume, 5), two * vwap(high, low, close, volume, 5), rtol=1e-12)
    time = START_MS + 1_800_000.0 * np.arange(60)
    whole = session_vwap(time, high, low, close, volume)
    assert_allclose(session_vwap(time, *prices, factor * volume), two * whole, rtol=1e-12)
    assert ((whole >= low.min()) & (whole <= high.max())).all()


def test_nothing_moved_or_traded() -> None:
    flat, none = np.full(30, 100.0), np.zeros(30)
    assert (mfi(flat, flat, flat, flat, 5)[5:] == 50.0).all()
    assert (mfi(flat + 1, flat, flat, none, 5)[5:] == 50.0).all()
    assert np.isnan(vwap(flat, flat, flat, none, 5)).all()
    assert (compute(Ad(), flat, flat, flat, flat) == 0.0).all()
    assert (chaikin_oscillator(flat, flat, flat, flat)[9:] == 0.0).all()
    traded = none.copy()
    traded[3:] = 2.0
    time = START_MS + 60_000.0 * np.arange(30)
    assert_array_equal(session_vwap(time, flat, flat, flat, traded), np.where(np.arange(30) < 3, np.nan, 100.0))


@pytest.mark.parametrize("rule", ["UTC", "UTC+2", "NY+7", "EET"])
def test_sessions_follow_the_server(rule: str) -> None:
    """Hourly bars over the changes of daylight saving; the day of a bar is the server's, and the first one is not known."""
    for begin in ("2024-03-08T05:00", "2024-10-25T05:00"):
        index = pd.date_range(begin, periods=24 * 12, freq="h", tz="UTC")
        time = index.as_unit("ms").asi8
        high, low, close, volume = bars_of(3, len(time))
        server = to_server(server_clock(rule), time)
        ours = session_vwap(server, high, low, close, volume)
        day = pd.Series(server // 86_400_000)
        flow = pd.Series((high + low + close) / 3 * volume)
        wanted = (flow.groupby(day).cumsum() / pd.Series(volume).groupby(day).cumsum()).where(day > day[0])
        assert_allclose(ours, wanted, rtol=1e-13)
