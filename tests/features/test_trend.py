"""ADX, Parabolic SAR, Supertrend and Ichimoku against TA-Lib and slow references, and their laws."""

import numpy as np
import pandas as pd
import pytest
import talib
from checks import Factory, check_all, check_later_start, check_reference, columns, market
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from btcbot.core.errors import BtcbotError
from btcbot.core.jit import F8
from btcbot.features.indicators.channels import atr
from btcbot.features.indicators.trend import Adx, Ichimoku, Sar, Supertrend, adx, ichimoku, sar, supertrend
from btcbot.features.windows import decay_length

MAKERS: list[Factory] = [
    lambda: Adx(2),
    lambda: Adx(14),
    lambda: Sar(),
    lambda: Sar(0.1, 0.1),
    lambda: Supertrend(),
    lambda: Supertrend(3, 1.0),
    lambda: Ichimoku(),
    lambda: Ichimoku(1, 2, 3, 1),
    lambda: Ichimoku(300, 26, 5, 300),
]
NAMES = [repr(make()) for make in MAKERS]


@pytest.mark.jit
@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_promises(make: Factory) -> None:
    check_all(make, columns(make, market(4000)))


def test_stated_bars() -> None:
    wilder = decay_length(1 - 1 / 14)
    assert (Adx(14).warm_up, Adx(14).convergence) == (27, 2 * wilder)
    assert (Sar().warm_up, Sar().convergence) == (1, 325)
    assert (Supertrend(14, 2.0).warm_up, Supertrend(14, 2.0).convergence) == (14, wilder + 1 + 150)
    assert (Ichimoku().warm_up, Ichimoku().convergence) == (77, 78)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Adx(1), "from 2 to"),
        (lambda: Sar(0.0), "0 < acceleration"),
        (lambda: Sar(0.3, 0.2), "got 0.3 and 0.2"),
        (lambda: Sar(0.3, 2.0), "<= 1"),
        (lambda: Supertrend(1), "from 2 to"),
        (lambda: Supertrend(10, 0.0), "multiple must be above 0; got 0.0"),
        (lambda: Ichimoku(displacement=0), "displacement must be a whole number from 1"),
    ],
)
def test_bad_parameters(make: Factory, text: str) -> None:
    with pytest.raises(BtcbotError, match=text):
        make()


@pytest.mark.jit
@pytest.mark.parametrize("n", [2, 5, 14, 50])
def test_talib_adx(n: int) -> None:
    bars = market(20_000, seed=n)
    prices = [np.asarray(bars[name]) for name in ("high", "low", "close")]
    expected = [function(*prices, n) for function in (talib.ADX, talib.PLUS_DI, talib.MINUS_DI)]
    check_reference(lambda: Adx(n), prices, expected)


@pytest.mark.jit
@pytest.mark.parametrize(("acceleration", "maximum"), [(0.02, 0.2), (0.1, 0.1), (0.005, 0.5), (1.0, 1.0)])
def test_talib_sar(acceleration: float, maximum: float) -> None:
    bars = market(20_000, seed=3)
    prices = [np.asarray(bars[name]) for name in ("high", "low")]
    for sign in (1.0, -1.0):  # The other way round the first trade is the other one
        high, low = (sign * x for x in prices[:: int(sign)])
        check_reference(lambda: Sar(acceleration, maximum), [high, low], [talib.SAR(high, low, acceleration, maximum)], after=1)


@pytest.mark.jit
@pytest.mark.parametrize(
    "make", [lambda: Sar(), lambda: Sar(0.02, 0.02), lambda: Sar(0.2, 0.2), lambda: Supertrend(), lambda: Supertrend(14, 1.0)]
)
@pytest.mark.parametrize("seed", [11, 12])
def test_machines_that_start_later_become_one(make: Factory, seed: int) -> None:
    """The convergence of these is measured: here again, on bars with jumps, one-tick bars and gaps."""
    check_later_start(make, columns(make, market(30_000, seed)), cuts=range(1, 25_000, 211))


def wilder_adx(high: F8, low: F8, close: F8, n: int) -> F8:
    """Return ADX, +DI and -DI with all weights from the start, by recursion."""
    sums, rows, mean, weight = np.zeros(3), [[np.nan] * 3], 0.0, 0.0
    for i in range(1, len(high)):
        up, down = high[i] - high[i - 1], low[i - 1] - low[i]
        moves = [up if up > max(down, 0) else 0.0, down if down > max(up, 0) else 0.0]
        sums = sums * (1 - 1 / n) + [*moves, max(high[i], close[i - 1]) - min(low[i], close[i - 1])]
        both = sums[0] + sums[1]
        if i >= n:
            weight = weight * (1 - 1 / n) + 1
            mean += ((100 * abs(sums[0] - sums[1]) / both if both else 0.0) - mean) / weight
        rows.append([mean, *(100 * sums[:2] / sums[2] if sums[2] else (0.0, 0.0))])
    return np.array(rows).T


def supertrend_by_hand(high: F8, low: F8, close: F8, n: int, multiple: float) -> F8:
    """Return line and direction, as TradingView's manual writes them."""
    rows, ranges = [], np.asarray(atr(high, low, close, n))
    upper = lower = side = np.nan
    for i in range(len(close)):
        top, bottom = (high[i] + low[i]) / 2 + multiple * ranges[i], (high[i] + low[i]) / 2 - multiple * ranges[i]
        if i <= n:
            upper, lower, side = top, bottom, -1.0
        else:
            upper = top if top < upper or close[i - 1] > upper else upper
            lower = bottom if bottom > lower or close[i - 1] < lower else lower
            was_up = side == 1.0
            side = 1.0 if (close[i] >= lower if was_up else close[i] > upper) else -1.0
        rows.append([lower if side == 1.0 else upper, side] if i >= n else [np.nan, np.nan])
    return np.array(rows).T


def sar_by_hand(high: F8, low: F8, acceleration: float, maximum: float) -> list[float]:
    """Return Wilder's stops, with both sides written out."""
    is_long = not (low[0] - low[1] > max(high[1] - high[0], 0))
    stop, best, share = (low[0], high[1], acceleration) if is_long else (high[0], low[1], acceleration)
    out, before = [np.nan], 1
    for i in range(1, len(high)):
        if (low[i] <= stop) if is_long else (high[i] >= stop):
            out.append(max(best, high[before], high[i]) if is_long else min(best, low[before], low[i]))
            is_long, stop, best, share = not is_long, out[-1], low[i] if is_long else high[i], acceleration
            stop += share * (best - stop)
            stop = min(stop, low[before], low[i]) if is_long else max(stop, high[before], high[i])
        else:
            out.append(stop)
            if (high[i] > best) if is_long else (low[i] < best):
                best, share = high[i] if is_long else low[i], min(share + acceleration, maximum)
            stop += share * (best - stop)
            stop = min(stop, low[before], low[i]) if is_long else max(stop, high[before], high[i])
        before = i
    return out


def prices(seed: int, n: int = 200) -> list[F8]:
    """Return highs, lows and closes of a few bars."""
    bars = market(n, seed)
    return [np.asarray(bars[name], np.float64) for name in ("high", "low", "close")]


@pytest.mark.parametrize("seed", range(4))
def test_by_hand(seed: int) -> None:
    high, low, close = prices(seed)
    assert_allclose(np.array(adx(high, low, close, 5))[:, 9:], wilder_adx(high, low, close, 5)[:, 9:], rtol=1e-9, atol=1e-9)
    assert_allclose(sar(high, low, 0.05, 0.3), sar_by_hand(high, low, 0.05, 0.3), rtol=1e-13)
    assert_allclose(np.array(supertrend(high, low, close, 4, 1.2)), supertrend_by_hand(high, low, close, 4, 1.2), rtol=1e-12)
    frame = pd.DataFrame({"high": high, "low": low})

    def middle(n: int) -> "pd.Series[float]":
        return (frame["high"].rolling(n).max() + frame["low"].rolling(n).min()) / 2

    expected = [middle(4), middle(7), ((middle(4) + middle(7)) / 2).shift(6), middle(11).shift(6)]
    assert_array_equal(np.array(ichimoku(high, low, 4, 7, 11, 6))[:, 16:], np.array(expected)[:, 16:])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.integers(-6, 6), st.floats(0.01, 100.0))
def test_laws(seed: int, power: int, factor: float) -> None:
    """Machines decide at a touch, so their prices are scaled by a power of two, which rounds nothing."""
    high, low, close = prices(seed, 90)
    two = 2.0**power
    assert_array_equal(sar(two * high, two * low), two * sar(high, low))
    line, direction = supertrend(high, low, close, 3, 1.0)
    assert_array_equal(np.array(supertrend(two * high, two * low, two * close, 3, 1.0)), [two * line, direction])
    assert_allclose(np.array(ichimoku(factor * high, factor * low, 3, 5, 9, 4)), factor * np.array(ichimoku(high, low, 3, 5, 9, 4)))
    assert_allclose(np.array(adx(two * high, two * low, two * close, 4)), np.array(adx(high, low, close, 4)), atol=1e-7)
    one, other = np.array(adx(high, low, close, 4)), np.array(adx(-low, -high, -close, 4))
    assert_allclose(other, one[[0, 2, 1]], atol=1e-9)  # Upside down, the directions change places
    if low[0] - low[1] != high[1] - high[0]:  # At equal moves the first trade is a long one
        is_turned = max(low[0] - low[1], high[1] - high[0]) > 0
        assert not is_turned or np.array_equal(sar(-low, -high)[1:], -sar(high, low)[1:])


def test_machines_start_anew_after_a_nan() -> None:
    """Hidden as long as the convergence says; then what a history that begins after the NaN has."""
    high, low, close = prices(5, 400)
    machines: list[tuple[Factory, list[F8]]] = [
        (lambda: Sar(0.5, 0.5), [high, low]),
        (lambda: Supertrend(2, 0.5), [high, low, close]),
    ]
    for make, inputs in machines:
        for column in range(len(inputs)):
            broken = [x.copy() for x in inputs]
            broken[column][60] = np.nan
            whole, lost = np.atleast_2d(make().extend(*inputs)), np.atleast_2d(make().extend(*broken))
            gone = np.flatnonzero(np.isnan(lost).any(axis=0))[make().warm_up :]
            last = 60 + make().convergence - (len(inputs) == 3 and column < 2)
            assert_array_equal(gone, np.arange(60, last))
            assert_array_equal(lost[:, last:], whole[:, last:])


def test_cloud_is_not_of_the_future() -> None:
    high, low, _ = prices(6, 120)
    changed = high.copy()
    changed[100:] *= 2.0
    before, after = np.array(ichimoku(high, low, 3, 5, 9, 10)), np.array(ichimoku(changed, low, 3, 5, 9, 10))
    assert_array_equal(before[:, :100], after[:, :100])
    assert_array_equal(before[2:, :110], after[2:, :110])
    assert (before[2:, 110:] != after[2:, 110:]).all()
