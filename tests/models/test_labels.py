"""Labels and weights against plain loops that are written from their description."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from btcbot.models.labels import Labels, meta_labels, triple_barrier, uniqueness, volatility


def walk(seed: int, n: int, step: float) -> pd.DataFrame:
    """Make bars in whole dollars, so that levels are met exactly, passed inside a bar and jumped over."""
    rng = np.random.default_rng(seed)
    close = 1000 + np.cumsum(rng.integers(-3, 4, n) * step).round()
    opens = np.append(1000, close[:-1]) + rng.integers(-2, 3, n)
    high = np.maximum(opens, close) + rng.integers(0, 4, n)
    low = np.minimum(opens, close) - rng.integers(0, 4, n)
    index = pd.date_range("2024-01-01", periods=n, freq="min", tz="UTC", name="time").as_unit("ms")
    prices = pd.DataFrame({"open": opens, "high": high, "low": low, "close": close}, index=index, dtype=float)
    return prices.assign(tick_volume=1, spread=0, real_volume=0)


def trade(bars: pd.DataFrame, t: int, horizon: int, side: int, up: float, down: float) -> tuple[int, int, float]:
    """Follow one trade tick by tick: its last bar, what ended it (1 target, -1 stop, 2 both, 0 time) and its gain as a fraction."""
    entry = bars["open"].iloc[t + 1]
    for j in range(t + 1, t + horizon + 1):
        opened, *ends, close = ((bars[name].iloc[j] - entry) * side for name in ("open", "high", "low", "close"))
        if opened >= up * entry or opened <= -down * entry:
            return j, 1 if opened > 0 else -1, opened / entry
        is_up, is_down = max(ends) >= up * entry, min(ends) <= -down * entry
        if is_up and is_down:
            return j, 2, close / entry
        if is_up or is_down:
            return j, 1 if is_up else -1, up if is_up else -down
    return t + horizon, 0, close / entry


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(1, 8), st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([0.0, 0.001, 0.01]))
def test_barriers_are_those_of_a_plain_loop(seed: int, horizon: int, width: float, cost: float) -> None:
    """Two-sided labels and the trades of a rule, each followed alone."""
    bars = walk(seed, 40, 1.0)
    sides = np.random.default_rng(seed).integers(-1, 2, len(bars))
    size = volatility(bars, 5) * np.sqrt(horizon)
    both = triple_barrier(bars, horizon, width, cost, window=5)
    for t, last, value, move in zip(both.first, both.last, both.value, both.move, strict=True):
        far = width * size[t] + cost
        end, touch, gain = trade(bars, t, horizon, 1, far, far)
        by_time = int(gain > cost) - int(-gain > cost)
        assert (last, value) == (end, {0: by_time, 2: 0}.get(touch, touch))
        np.testing.assert_allclose(move, gain, atol=1e-15)
    followed = meta_labels(bars, sides, horizon, width, 2 * width, cost, window=5)
    assert set(followed.first) == {t for t in range(len(bars) - horizon) if sides[t] and size[t] > 0}
    for t, last, value, move in zip(followed.first, followed.last, followed.value, followed.move, strict=True):
        end, touch, gain = trade(bars, t, horizon, int(sides[t]), width * size[t] + cost, 2 * width * size[t])
        gain = -2 * width * size[t] if touch == 2 else gain
        assert (last, value) == (end, int(gain > cost))
        np.testing.assert_allclose(move, gain, atol=1e-15)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=30, unique_by=lambda pair: pair[0]))
def test_uniqueness_is_that_of_a_plain_loop(pairs: list[tuple[int, int]]) -> None:
    """One over the number of labels at each bar, averaged."""
    first = np.array([t for t, _ in sorted(pairs)])
    last = first + np.array([length for _, length in sorted(pairs)])
    nothing = np.zeros(len(first))
    found = uniqueness(Labels(np.arange(100), first, last, nothing.astype(int), nothing, nothing, 20))
    told = [set(range(a + 1, b + 1)) for a, b in zip(first, last, strict=True)]
    expected = [np.mean([1 / sum(j in other for other in told) for j in bars]) for bars in told]
    np.testing.assert_allclose(found, expected)
