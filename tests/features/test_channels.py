"""Ranges and channels against TA-Lib and slow references, and their laws."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import talib
from checks import Factory, check_all, check_reference, columns, market
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from btcbot.core.errors import BtcbotError
from btcbot.core.jit import F8
from btcbot.features.indicator import Indicator
from btcbot.features.indicators.channels import (
    Atr,
    Bollinger,
    Donchian,
    Keltner,
    MeanTrueRange,
    Natr,
    TrueRange,
    atr,
    bollinger,
    donchian,
    keltner,
    mean_true_range,
    natr,
    true_range,
)
from btcbot.features.windows import decay_length

MAKERS: list[Factory] = [
    lambda: TrueRange(),
    lambda: Atr(2),
    lambda: Atr(14),
    lambda: Natr(10),
    lambda: MeanTrueRange(1),
    lambda: MeanTrueRange(14),
    lambda: Bollinger(20),
    lambda: Bollinger(3, 0.5),
    lambda: Keltner(20, 10),
    lambda: Keltner(5, 30, 0.7),
    lambda: Donchian(1),
    lambda: Donchian(20),
    lambda: Donchian(300),
]
NAMES = [repr(make()) for make in MAKERS]


@pytest.mark.jit
@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_promises(make: Factory) -> None:
    check_all(make, columns(make, market(4000)))


def test_stated_bars() -> None:
    windows = TrueRange(), MeanTrueRange(9), Bollinger(9), Donchian(9)
    assert [(x.warm_up, x.convergence) for x in windows] == [(1, 2), (9, 10), (8, 9), (8, 9)]
    wilder, mean = decay_length(1 - 1 / 14), decay_length(1 - 2 / 21)
    assert (Atr(14).warm_up, Atr(14).convergence, Natr(14).convergence) == (14, wilder + 1, wilder + 1)
    keltners = Keltner(20, 14), Keltner(20, 30), Keltner(200, 2)
    assert [x.warm_up for x in keltners] == [19, 30, 199]
    assert keltners[0].convergence == max(mean, wilder + 1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Atr(1), "from 2 to"),
        (lambda: Natr(0), "from 2 to"),
        (lambda: MeanTrueRange(0), "from 1 to"),
        (lambda: Bollinger(20, 0.0), "bollinger: deviations must be above 0; got 0.0"),
        (lambda: Keltner(20, 10, -2.0), "keltner: multiple must be above 0; got -2.0"),
        (lambda: Keltner(1), "n must be a whole number from 2"),
        (lambda: Donchian(2.5), "whole number"),
    ],
)
def test_bad_parameters(make: Factory, text: str) -> None:
    with pytest.raises(BtcbotError, match=text):
        make()


@pytest.mark.jit
@pytest.mark.parametrize("n", [2, 5, 14, 50])
def test_talib(n: int) -> None:
    bars = market(20_000, seed=n)
    high, low, close = (np.asarray(bars[name]) for name in ("high", "low", "close"))
    check_reference(lambda: TrueRange(), [high, low, close], [talib.TRANGE(high, low, close)], rtol=1e-12)
    check_reference(lambda: Atr(n), [high, low, close], [talib.ATR(high, low, close, n)])
    check_reference(lambda: Natr(n), [high, low, close], [talib.NATR(high, low, close, n)])
    check_reference(lambda: MeanTrueRange(n), [high, low, close], [talib.SMA(talib.TRANGE(high, low, close), n)], after=n)
    upper, middle, lower = talib.BBANDS(close, n, 2.5, 2.5)
    check_reference(lambda: Donchian(n), [high, low], [talib.MAX(high, n), talib.MIDPRICE(high, low, n), talib.MIN(low, n)], rtol=1e-15)
    assert_allclose(np.array(bollinger(close, n, 2.5))[:3, n:], np.array([upper, middle, lower])[:, n:], rtol=1e-9)


def test_bollinger_of_a_flat_market_at_a_high_price() -> None:
    n, close = 10, 1e7 + np.round(np.random.default_rng(2).normal(size=60) * 0.02, 2)
    close[40:] = close[40]
    upper, middle, lower, width, place = np.array(bollinger(close, n, 2.0))
    for i in range(n - 1, len(close)):
        window = [Fraction(float(value)) for value in close[i - n + 1 : i + 1]]
        mean = sum(window) / n
        deviation = float(sum((value - mean) ** 2 for value in window) / n) ** 0.5
        assert_allclose([middle[i], upper[i] - middle[i]], [float(mean), 2 * deviation], rtol=1e-12, atol=4e-9)
        assert_allclose(width[i], 4 * deviation / float(mean), rtol=1e-11)
        expected = 0.5 + float(window[-1] - mean) / (4 * deviation) if deviation else 0.5
        assert_allclose(place[i], expected, rtol=1e-6)
    assert_array_equal(upper[n + 40 :], lower[n + 40 :])


def test_by_hand() -> None:
    bars = pd.DataFrame(market(300))
    high, low, close = bars["high"], bars["low"], bars["close"]
    ranges = [max(high[i] - low[i], abs(high[i] - close[i - 1]), abs(low[i] - close[i - 1])) for i in range(1, len(bars))]
    assert_array_equal(true_range(high, low, close)[1:], ranges)
    average, n = ranges[0], 3
    weights = 1.0
    for i, value in enumerate(ranges[1:], 1):
        weights = weights * (1 - 1 / n) + 1.0
        average += (value - average) / weights
        if i >= n - 1:
            assert abs(atr(high, low, close, n)[i + 1] - average) < 1e-9
    assert_allclose(mean_true_range(high, low, close, 7)[7:], pd.Series(ranges).rolling(7).mean()[6:], rtol=1e-12)
    upper, middle, lower = keltner(high, low, close, 8, 5, 1.5)
    half = 1.5 * atr(high, low, close, 5)[7:]
    assert_allclose(middle[7:], close.ewm(span=8).mean()[7:], rtol=1e-12)
    assert_allclose([(upper - middle)[7:], (middle - lower)[7:]], [half, half], rtol=1e-9)
    assert_array_equal(donchian(high, low, 6)[0][5:], [max(high[i - 5 : i + 1]) for i in range(5, len(bars))])
    assert_array_equal(donchian(high, low, 6)[2][5:], [min(low[i - 5 : i + 1]) for i in range(5, len(bars))])
    assert [row.name for row in bollinger(close)] == ["upper", "middle", "lower", "width", "percent_b"]


def prices(seed: int, n: int = 90) -> list[F8]:
    """Return highs, lows and closes of a few bars."""
    bars = market(n, seed)
    return [np.asarray(bars[name], np.float64) for name in ("high", "low", "close")]


# Makers, then what each output does when prices are multiplied: power of the factor.
LAWS: list[tuple[Indicator, list[int]]] = [
    (TrueRange(), [1]),
    (Atr(5), [1]),
    (Natr(5), [0]),
    (MeanTrueRange(5), [1]),
    (Bollinger(5), [1, 1, 1, 0, 0]),
    (Keltner(5, 4), [1, 1, 1]),
    (Donchian(5), [1, 1, 1]),
]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(0.01, 100.0), st.floats(-1000.0, 1000.0))
def test_scale_and_shift(seed: int, factor: float, shift: float) -> None:
    base = prices(seed)
    for indicator, powers in LAWS:
        inputs = [base[("high", "low", "close").index(name)] for name in indicator.inputs]
        plain = np.atleast_2d(replace(indicator).extend(*inputs))
        scaled = np.atleast_2d(replace(indicator).extend(*(factor * x for x in inputs)))
        for row, other, power in zip(plain, scaled, powers, strict=True):
            assert_allclose(other, row * factor**power, rtol=1e-9, atol=1e-9)
        if powers == [1]:
            moved = np.atleast_2d(replace(indicator).extend(*(x + shift for x in inputs)))
            assert_allclose(moved, plain, rtol=0.0, atol=1e-9)
        elif powers == [1, 1, 1]:
            moved = np.atleast_2d(replace(indicator).extend(*(x + shift for x in inputs)))
            assert_allclose(moved, plain + shift, rtol=1e-9)


def test_share_is_of_the_close() -> None:
    high, low, close = prices(4)
    assert_allclose(natr(high, low, close, 5)[5:], (100 * atr(high, low, close, 5) / close)[5:], rtol=1e-14)
