"""Rolling statistics against pandas, TA-Lib and exact arithmetic, and their laws on any series."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import talib
from checks import Factory, check_all, check_reference, columns, market
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from btcbot.core.jit import F8
from btcbot.features.indicator import Indicator
from btcbot.features.indicators.statistics import (
    RollingAutocorrelation,
    RollingCorrelation,
    RollingKurtosis,
    RollingMax,
    RollingMaxAge,
    RollingMean,
    RollingMin,
    RollingMinAge,
    RollingQuantile,
    RollingRank,
    RollingSkew,
    RollingStd,
    RollingVar,
    RollingZscore,
    rolling_autocorrelation,
    rolling_correlation,
    rolling_kurtosis,
    rolling_max,
    rolling_max_age,
    rolling_mean,
    rolling_min,
    rolling_min_age,
    rolling_quantile,
    rolling_rank,
    rolling_skew,
    rolling_std,
    rolling_var,
    rolling_zscore,
)

BARS = market(3_000)
CLOSE = np.asarray(BARS["close"], np.float64)
MAKES: dict[str, Factory] = {
    "mean": lambda: RollingMean(20),
    "std": lambda: RollingStd(20),
    "std of a sample": lambda: RollingStd(33, 1),
    "var": lambda: RollingVar(7),
    "zscore": lambda: RollingZscore(20),
    "skew": lambda: RollingSkew(60),
    "kurtosis": lambda: RollingKurtosis(60),
    "rank": lambda: RollingRank(60),
    "quantile": lambda: RollingQuantile(60, 0.3),
    "correlation": lambda: RollingCorrelation(60),
    "autocorrelation": lambda: RollingAutocorrelation(60, 5),
    "max": lambda: RollingMax(20),
    "min": lambda: RollingMin(33),
    "age of the max": lambda: RollingMaxAge(20),
    "age of the min": lambda: RollingMinAge(33),
}


@pytest.mark.jit
@pytest.mark.parametrize("name", MAKES)
def test_the_promises_of_an_indicator(name: str) -> None:
    check_all(MAKES[name], columns(MAKES[name], BARS))


@pytest.mark.parametrize("name", MAKES)
def test_the_promises_of_an_indicator_in_short(name: str) -> None:
    whole = MAKES[name]().extend(*columns(MAKES[name], market(300)))
    part, later = MAKES[name](), MAKES[name]()
    inputs = columns(MAKES[name], market(300))
    assert_array_equal(np.concatenate([part.extend(*(x[:101] for x in inputs)), part.extend(*(x[101:] for x in inputs))]), whole)
    same = later.convergence - 1
    assert_array_equal(later.extend(*(x[50:] for x in inputs))[same:], whole[50 + same :])


# Against others


@pytest.mark.jit
@pytest.mark.parametrize("n", [2, 5, 20, 64, 200])
def test_talib_says_the_same(n: int) -> None:
    bars = market(20_000)
    close, volume = np.asarray(bars["close"], np.float64), np.asarray(bars["volume"], np.float64)
    check_reference(lambda: RollingMean(n), [close], [talib.SMA(close, n)])
    check_reference(lambda: RollingMax(n), [close], [talib.MAX(close, n)], rtol=0)
    check_reference(lambda: RollingMin(n), [close], [talib.MIN(close, n)], rtol=0)
    # Its running sums of squares lose digits at this price, so it gets returns; and it calls a variance below 1e-8 zero.
    moves = np.diff(np.log(close)) * 1e3
    for k, make in enumerate((RollingVar, RollingStd)):
        check_reference(lambda make=make: make(n), [moves], [(talib.VAR, talib.STDDEV)[k](moves, n)])
    if n > 2:  # The correlation of two pairs is 1 or -1; the running sums miss it by 3e-9.
        check_reference(lambda: RollingCorrelation(n), [moves, volume[1:]], [talib.CORREL(moves, volume[1:], n)], scale=1.0)
    distinct = np.random.default_rng(n).permutation(20_000).astype(float)
    bar = np.arange(20_000.0)
    check_reference(lambda: RollingMaxAge(n), [distinct], [bar - talib.MAXINDEX(distinct, n)], rtol=0)
    check_reference(lambda: RollingMinAge(n), [distinct], [bar - talib.MININDEX(distinct, n)], rtol=0)


@pytest.mark.parametrize("n", [2, 9, 60])
def test_pandas_says_the_same(n: int) -> None:
    close = CLOSE[:600]
    window, moves = pd.Series(close).rolling(n), pd.Series(np.diff(close))
    assert_allclose(rolling_mean(close, n), window.mean(), rtol=1e-12)
    for ddof in (0, 1):
        # Ours are exact to 1e-13 (see the test with fractions below); these are the errors of pandas' running sums.
        assert_allclose(rolling_var(close, n, ddof), window.var(ddof=ddof), rtol=1e-9, atol=1e-7)
        assert_allclose(rolling_zscore(close, n, ddof), (close - window.mean()) / window.std(ddof=ddof), rtol=1e-5, atol=1e-5)
    assert_array_equal(rolling_rank(close, n), (window.rank() - 1) / (n - 1))
    for q in (0.0, 0.1, 0.5, 0.77, 1.0):
        assert_allclose(rolling_quantile(close, n, q), window.quantile(q), rtol=1e-14)
    assert_array_equal(rolling_max(close, n), window.max())
    assert_array_equal(rolling_min(close, n), window.min())
    for lag in (1, 4):
        expected = moves.rolling(n).corr(moves.shift(lag))
        assert_allclose(rolling_autocorrelation(moves.to_numpy(), n, lag), expected, atol=1e-6)
    if n > 3:
        skew, kurtosis = rolling_skew(close, n)[n:], rolling_kurtosis(close, n)[n:]
        assert_allclose(skew * np.sqrt(n * (n - 1)) / (n - 2), window.skew()[n:], rtol=1e-6, atol=1e-6)
        assert_allclose((n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * kurtosis + 6), window.kurt()[n:], rtol=1e-6, atol=1e-6)


def test_an_age_points_at_the_newest_extreme() -> None:
    steps = np.round(CLOSE[:400] / 100)
    window = pd.Series(steps).rolling(13)
    assert_array_equal(rolling_max_age(steps, 13), window.apply(lambda w: np.argmax(w[::-1]), raw=True))
    assert_array_equal(rolling_min_age(steps, 13), window.apply(lambda w: np.argmin(w[::-1]), raw=True))


@pytest.mark.jit
def test_a_deviation_does_not_decay_over_ten_million_bars() -> None:
    n, bars, rng = 20, 10_000_000, np.random.default_rng(7)
    walk = np.round(30_000 + rng.normal(size=bars).cumsum() * 0.5, 2)
    std = rolling_std(walk, n)
    assert np.isfinite(std[n - 1 :]).all()
    for at in [*rng.integers(n, bars, 300), *range(bars - 200, bars)]:
        window = [Fraction(float(value)) for value in walk[at - n + 1 : at + 1]]
        mean = sum(window) / n
        exact = float(sum((value - mean) ** 2 for value in window) / n) ** 0.5
        assert abs(std[at] / exact - 1) < 1e-13


# Laws

SERIES = st.lists(st.integers(-2000, 2000), min_size=1, max_size=60).map(lambda values: np.array(values) / 8.0)
LEVEL: tuple[Callable[[F8], F8], ...] = (
    lambda x: rolling_mean(x, 7),
    lambda x: rolling_max(x, 7),
    lambda x: rolling_min(x, 7),
    lambda x: rolling_quantile(x, 7, 0.3),
)
WIDTH: tuple[Callable[[F8], F8], ...] = (lambda x: rolling_std(x, 7), lambda x: rolling_std(x, 7, 1))
PURE: tuple[Callable[[F8], F8], ...] = (
    lambda x: rolling_zscore(x, 7),
    lambda x: rolling_skew(x, 7),
    lambda x: rolling_kurtosis(x, 7),
    lambda x: rolling_rank(x, 7),
    lambda x: rolling_max_age(x, 7),
    lambda x: rolling_min_age(x, 7),
    lambda x: rolling_autocorrelation(x, 5, 2),
)


@settings(max_examples=25, deadline=None)
@given(SERIES, st.integers(-400, 400), st.sampled_from([0.25, 2.0, 64.0]))
def test_a_shift_and_a_scale(x: F8, shift: float, scale: float) -> None:
    # Powers of two and eighths: all is exact, so the laws hold to the last bits.
    y = scale * (x + shift)
    for level in LEVEL:
        assert_allclose(level(y), scale * (level(x) + shift), rtol=1e-9, atol=1e-9)
    for width in WIDTH:
        assert_allclose(width(y), scale * width(x), rtol=1e-9, atol=1e-9)
    for pure in PURE:
        assert_allclose(pure(y), pure(x), rtol=1e-9, atol=1e-9)
    assert_array_equal(rolling_max(-x, 7), -rolling_min(x, 7))
    assert_allclose(rolling_rank(-x, 7), 1 - rolling_rank(x, 7), atol=1e-15)
    assert_allclose(rolling_correlation(x, -3 * x, 7), -rolling_correlation(x, x, 7), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(SERIES, st.integers(0, 60), st.sampled_from(sorted(MAKES)))
def test_any_split_gives_the_same_bits(x: F8, cut: int, name: str) -> None:
    part: Indicator = MAKES[name]()
    columns = [x] * len(part.inputs)
    pieces = [part.extend(*(column[:cut] for column in columns)), part.extend(*(column[cut:] for column in columns))]
    assert_array_equal(np.concatenate(pieces), MAKES[name]().extend(*columns))
