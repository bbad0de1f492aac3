"""Returns, drawdown, fractional differences, Hurst exponent, entropy and CUSUM events; and time, spread and volume."""

import math

import numpy as np
import pandas as pd
import pytest
import talib
from checks import (
    Factory,
    check_all,
    check_edges,
    check_later_start,
    check_nan,
    check_reference,
    check_stream,
    check_warm_up,
    columns,
    market,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from btcbot.core.jit import F8
from btcbot.features.indicators.memory import (
    CusumEvent,
    FractionalDifference,
    HurstExponent,
    LogReturn,
    PermutationEntropy,
    RollingDrawdown,
    SimpleReturn,
    cusum_event,
    difference_weights,
    fractional_difference,
    hurst_exponent,
    log_return,
    permutation_entropy,
    rolling_drawdown,
    simple_return,
)
from btcbot.features.indicators.tape import (
    HourCircle,
    RelativeSpread,
    RelativeVolume,
    SpreadCost,
    VolumeZscore,
    WeekdayCircle,
    hour_circle,
    relative_spread,
    relative_volume,
    spread_cost,
    weekday_circle,
)

BARS = market(3_000)
CLOSE = np.asarray(BARS["close"], np.float64)
MAKES: dict[str, Factory] = {
    "simple return": lambda: SimpleReturn(60),
    "log return": lambda: LogReturn(1),
    "drawdown": lambda: RollingDrawdown(300),
    "fractional difference": lambda: FractionalDifference(0.4, 1e-3),
    "hurst": lambda: HurstExponent(120),
    "entropy": lambda: PermutationEntropy(120, 4),
    "hour": lambda: HourCircle(2.0),
    "weekday": lambda: WeekdayCircle(),
    "relative spread": lambda: RelativeSpread(60),
    "spread cost": lambda: SpreadCost(20),
    "relative volume": lambda: RelativeVolume(33),
    "volume zscore": lambda: VolumeZscore(60),
}


@pytest.mark.jit
@pytest.mark.parametrize("name", MAKES)
def test_the_promises_of_an_indicator(name: str) -> None:
    check_all(MAKES[name], columns(MAKES[name], BARS))


@pytest.mark.jit
@pytest.mark.parametrize("minutes", [60, 1440])
def test_the_promises_of_cusum_events(minutes: int) -> None:
    def make() -> CusumEvent:
        return CusumEvent(0.002, minutes)

    inputs = columns(make, market(5_000))
    check_warm_up(make, inputs)
    check_stream(make, inputs)
    check_later_start(make, inputs)
    check_nan(make, inputs, is_tight=False)
    check_edges(make, inputs)
    assert set(np.unique(make().extend(*inputs)[1:])) == {-1.0, 0.0, 1.0}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(500, 2000), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 3))
def test_any_split_gives_the_same_bits(values: list[int], cut: int, which: int) -> None:
    makes: list[Factory] = [
        lambda: SimpleReturn(3),
        lambda: HurstExponent(9, 2),
        lambda: PermutationEntropy(7),
        lambda: CusumEvent(0.1, 10),
    ]
    part, x = makes[which](), np.array(values, np.float64)
    inputs = [60_000.0 * np.arange(len(x)), x][-len(part.inputs) :]
    pieces = [part.extend(*(column[:cut] for column in inputs)), part.extend(*(column[cut:] for column in inputs))]
    assert_array_equal(np.concatenate(pieces), makes[which]().extend(*inputs))


# Returns and drawdown


@pytest.mark.jit
def test_talib_says_the_same() -> None:
    close = np.asarray(market(20_000)["close"], np.float64)
    for n in (1, 20):
        check_reference(lambda n=n: SimpleReturn(n), [close], [talib.ROCP(close, n)])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.5, 1e6), min_size=9, max_size=50), st.sampled_from([0.25, 2.0, 1024.0]))
def test_returns_know_no_scale_and_add_up(values: list[float], scale: float) -> None:
    x = np.array(values)
    for change in (simple_return, log_return):
        assert_array_equal(change(scale * x, 3), change(x, 3))
    assert_allclose(np.expm1(log_return(x, 3)), simple_return(x, 3), rtol=1e-9, atol=1e-12)
    single = pd.Series(log_return(x, 1)).rolling(3).sum().to_numpy()
    assert_allclose(log_return(x, 3)[3:], single[3:], atol=1e-12)
    down = rolling_drawdown(x, x, 5)[4:]
    assert (down <= 0).all()
    assert_array_equal(down == 0, x[4:] == pd.Series(x).rolling(5).max()[4:])


# Fractional differences


def test_weights_follow_from_the_gamma_function() -> None:
    for d in (0.1, 0.4, 0.9, 1.5):
        weights = difference_weights(d, 1e-3)
        k = np.arange(len(weights))
        exact = [math.gamma(i - d) / (math.gamma(-d) * math.gamma(i + 1)) for i in k[:100]]
        assert_allclose(weights[:100], exact, rtol=1e-10)


def test_two_differences_are_one_of_the_sum_of_their_orders() -> None:
    # The weights of d = 0.3 and of d = 0.7, convolved, are those of d = 1: 1, -1, 0, 0, ...
    a, b = difference_weights(0.3, 1e-6)[:500], difference_weights(0.7, 1e-6)[:500]
    assert_allclose(np.convolve(a, b)[:500], [1.0, -1.0, *[0.0] * 498], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=20, max_size=60), st.integers(-1000, 1000))
def test_fractional_differences_are_linear(values: list[int], shift: int) -> None:
    x, weights = np.array(values, np.float64), difference_weights(0.5, 0.01)
    out = fractional_difference(x, 0.5, 0.01)
    assert_allclose(fractional_difference(3 * x + shift, 0.5, 0.01), 3 * out + shift * weights.sum(), atol=1e-9)


# Hurst exponent and entropy


def slow_hurst(x: F8, scales: int) -> float:
    """By the definition."""
    squares = [np.mean((x[2**k :] - x[: -(2**k)]) ** 2) for k in range(scales)]
    return float(np.polyfit(np.arange(scales) * np.log(2), np.log(squares), 1)[0] / 2)


def test_the_hurst_exponent_by_the_definition() -> None:
    x = np.log(CLOSE[:300])
    expected = [min(max(slow_hurst(x[i - 99 : i + 1], 5), 0.0), 1.0) for i in range(99, 300)]
    assert_allclose(hurst_exponent(x, 100)[99:], expected, rtol=1e-8)
    assert_allclose(hurst_exponent(7 * x + 3, 100)[99:], expected, rtol=1e-8)


@pytest.mark.jit
@pytest.mark.parametrize(("n", "mean", "deviation"), [(60, 0.469, 0.112), (240, 0.492, 0.053), (960, 0.498, 0.026)])
def test_the_bias_of_the_hurst_exponent(n: int, mean: float, deviation: float) -> None:
    walks = np.random.default_rng(5).normal(size=(1000, n)).cumsum(axis=1)
    found = np.array([hurst_exponent(walk, n)[-1] for walk in walks])
    assert abs(found.mean() - mean) < 4 * deviation / 1000**0.5
    assert abs(found.std() / deviation - 1) < 0.1


@pytest.mark.jit
@pytest.mark.parametrize(("h", "tolerance"), [(0.3, 0.02), (0.5, 0.02), (0.7, 0.03)])
def test_the_hurst_exponent_of_fractional_noise(h: float, tolerance: float) -> None:
    # Fractional Brownian motion from the square root of its covariance.
    t = np.arange(1, 1001)
    covariance = 0.5 * (t[:, None] ** (2 * h) + t[None, :] ** (2 * h) - np.abs(t[:, None] - t[None, :]) ** (2 * h))
    walks = np.linalg.cholesky(covariance) @ np.random.default_rng(6).normal(size=(1000, 100))
    assert abs(np.mean([hurst_exponent(np.ascontiguousarray(walk), 1000)[-1] for walk in walks.T]) - h) < tolerance


def slow_entropy(x: F8, order: int) -> float:
    """By the definition."""
    patterns = [tuple(np.argsort(x[i : i + order], kind="stable")) for i in range(len(x) - order + 1)]
    shares = np.unique(patterns, axis=0, return_counts=True)[1] / len(patterns)
    return float(-(shares * np.log(shares)).sum() / math.log(math.factorial(order)))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_entropy_by_the_definition(order: int) -> None:
    steps = np.round(CLOSE[:200] / 20)
    expected = [slow_entropy(steps[i - 29 - order + 1 : i + 1], order) for i in range(29 + order - 1, 200)]
    assert_allclose(permutation_entropy(steps, 30, order)[28 + order :], expected, atol=1e-12)
    assert_array_equal(permutation_entropy(np.exp(steps / 100), 30, order), permutation_entropy(steps, 30, order))


@pytest.mark.jit
def test_the_bias_of_the_entropy() -> None:
    noise = np.random.default_rng(8).normal(size=200_000)
    assert abs(np.nanmean(permutation_entropy(noise, 120, 3)) - 0.992) < 5e-4
    assert abs(np.nanmean(permutation_entropy(noise, 120, 4)) - 0.972) < 5e-4


# CUSUM events


def test_cusum_events_by_the_book() -> None:
    close, time = CLOSE[:400], 345_600_000.0 + 60_000.0 * np.arange(400)
    events, up, down = [0.0], 0.0, 0.0
    for bar in range(1, 400):
        move = math.log(close[bar] / close[bar - 1])
        if bar % 90 == 0:
            up = down = 0.0
        up, down, event = max(0.0, up + move), min(0.0, down + move), 0.0
        if down < -0.002:
            down, event = 0.0, -1.0
        elif up > 0.002:
            up, event = 0.0, 1.0
        events.append(event)
    assert_array_equal(cusum_event(time, close, 0.002, 90)[1:], events[1:])
    assert 10 < np.abs(events).sum() < 200


# Time, spread, volume


def test_the_clock_is_that_of_pandas() -> None:
    time = np.asarray(market(2_000)["time"], np.float64)
    for offset in (-5.0, 0.0, 2.5):
        stamps = pd.to_datetime(time, unit="ms") + pd.Timedelta(hours=offset)
        sine, cosine = hour_circle(time, offset)
        assert_allclose(np.arctan2(sine, cosine) / (2 * np.pi) % 1 * 1440, stamps.hour * 60 + stamps.minute, atol=1e-6)
        sine, cosine = weekday_circle(time, offset)
        assert_allclose(np.arctan2(sine, cosine) / (2 * np.pi) % 1 * 7, stamps.day_of_week, atol=1e-9)


def test_spread_and_volume_by_pandas() -> None:
    bars = pd.DataFrame(market(500))
    assert_allclose(relative_spread(bars["spread"], 30), bars["spread"] / bars["spread"].rolling(30).median())
    assert_allclose(relative_volume(bars["volume"], 30), bars["volume"] / bars["volume"].rolling(30).mean())
    tall = (bars["high"] - bars["low"]).rolling(30).mean()
    assert_allclose(spread_cost(bars["high"], bars["low"], bars["spread"], 30), 0.01 * bars["spread"] / tall, rtol=1e-9)
