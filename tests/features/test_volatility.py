"""Estimators of volatility against slow references, and their laws."""

import math
from functools import partial

import numpy as np
import pytest
from checks import Factory, check_all, columns, market
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from btcbot.core.errors import BtcbotError
from btcbot.core.jit import F8
from btcbot.features.indicator import INDICATORS, compute
from btcbot.features.indicators.volatility import (
    CloseVolatility,
    GarmanKlass,
    Parkinson,
    RogersSatchell,
    YangZhang,
    close_volatility,
    garman_klass,
    parkinson,
    rogers_satchell,
    yang_zhang,
)

CLASSES = [CloseVolatility, Parkinson, GarmanKlass, RogersSatchell, YangZhang]
MAKERS: list[Factory] = [partial(cls, n) for cls in CLASSES for n in (2, 20, 300)]
NAMES = [repr(make()) for make in MAKERS]


@pytest.mark.jit
@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_promises(make: Factory) -> None:
    check_all(make, columns(make, market(3000)))


@pytest.mark.parametrize("cls", CLASSES)
def test_parameters(cls: type[CloseVolatility]) -> None:
    assert INDICATORS[cls.name()] is cls
    lag = int(cls in (CloseVolatility, YangZhang))
    assert (cls(9).warm_up, cls(9).convergence) == (8 + lag, 9 + lag)
    for bad in (0.0, -5.0):
        with pytest.raises(BtcbotError, match=rf"{cls.name()}: bars_a_year must be above 0"):
            cls(9, bad)
    with pytest.raises(BtcbotError, match="from 2 to"):
        cls(1)


def prices(seed: int, n: int = 80) -> list[F8]:
    """Return opens, highs, lows and closes of a few bars."""
    bars = market(n, seed)
    return [np.asarray(bars[name], np.float64) for name in ("open", "high", "low", "close")]


def deviation(values: list[float]) -> float:
    """Return the sample variance."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@pytest.mark.parametrize("n", [2, 7, 30])
def test_by_hand(n: int) -> None:
    o, h, low, c = (x.tolist() for x in prices(n))
    ours = [
        close_volatility(np.array(c), n),
        parkinson(np.array(h), np.array(low), n),
        *(function(np.array(o), np.array(h), np.array(low), np.array(c), n) for function in (garman_klass, rogers_satchell, yang_zhang)),
    ]
    for i in range(n, len(c)):
        bars = range(i - n + 1, i + 1)
        wide, move = [math.log(h[j] / low[j]) for j in bars], [math.log(c[j] / o[j]) for j in bars]
        drift_free = (
            math.fsum(math.log(h[j] / o[j]) * math.log(h[j] / c[j]) + math.log(low[j] / o[j]) * math.log(low[j] / c[j]) for j in bars) / n
        )
        k = 0.34 / (1.34 + (n + 1) / (n - 1))
        expected = [
            deviation([math.log(c[j] / c[j - 1]) for j in bars]),
            math.fsum(x * x for x in wide) / n / (4 * math.log(2)),
            math.fsum(0.5 * x * x - (2 * math.log(2) - 1) * y * y for x, y in zip(wide, move, strict=True)) / n,
            drift_free,
            deviation([math.log(o[j] / c[j - 1]) for j in bars]) + k * deviation(move) + (1 - k) * drift_free,
        ]
        assert_allclose([row[i] for row in ours], np.sqrt(expected), rtol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(0.01, 100.0), st.floats(1.0, 1e6))
def test_laws(seed: int, factor: float, years: float) -> None:
    """The unit of the price doesn't matter, and a year is the root of its bars."""
    named = dict(zip(("open", "high", "low", "close"), prices(seed), strict=True))
    for cls in CLASSES:
        inputs = [named[name] for name in cls.inputs]
        plain = compute(cls(6), *inputs)
        assert_allclose(compute(cls(6), *(factor * x for x in inputs)), plain, rtol=1e-9, atol=1e-13)
        assert_allclose(compute(cls(6, years), *inputs), plain * math.sqrt(years), rtol=1e-12)
        warm = cls(6).warm_up
        assert (plain[warm:] >= 0.0).all()


@pytest.mark.jit
def test_true_volatility_is_found() -> None:
    """A random walk of many ticks with gaps and a drift: all that may see them find the volatility, the others what they say."""
    rng, n, ticks, sigma, gap, drift = np.random.default_rng(8), 8000, 400, 0.01, 0.005, 0.004
    steps = drift / ticks + rng.normal(size=(n, ticks)) * math.sqrt((sigma**2 - gap**2) / ticks)
    inside = np.concatenate([np.zeros((n, 1)), steps.cumsum(axis=1)], axis=1)
    start = np.cumsum(np.concatenate([[0.0], inside[:-1, -1]]) + rng.normal(size=n) * gap)
    path = np.exp(start[:, None] + inside)
    o, h, low, c = path[:, 0], path.max(axis=1), path.min(axis=1), path[:, -1]
    within = math.sqrt(sigma**2 - gap**2)
    assert abs(np.nanmean(close_volatility(c, 500)) / sigma - 1) < 0.02
    assert abs(np.nanmean(yang_zhang(o, h, low, c, 500)) / sigma - 1) < 0.05  # 400 ticks miss a little of the range
    assert abs(np.nanmean(rogers_satchell(o, h, low, c, 500)) / within - 1) < 0.06
    assert np.nanmean(parkinson(h, low, 500)) > 1.03 * np.nanmean(rogers_satchell(o, h, low, c, 500))  # To it a drift looks like volatility
    assert np.nanstd(garman_klass(o, h, low, c, 50)) < 0.6 * np.nanstd(close_volatility(c, 50))


def test_constant_prices() -> None:
    flat = np.full(40, 12_345.67)
    for cls in CLASSES:
        values = compute(cls(5), *([flat] * len(cls.inputs)))
        assert (values[cls(5).warm_up :] == 0.0).all()
