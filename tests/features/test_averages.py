"""Moving averages: what they promise, laws of scale and shift, TA-Lib, and slow obvious references."""

from collections.abc import Callable

import numpy as np
import pytest
import talib
from checks import Factory, check_all, check_reference, check_stream, market, run
from hypothesis import given, settings
from hypothesis import strategies as st

from btcbot.core.jit import F8
from btcbot.features.indicators.averages import Dema, Ema, Hma, Kama, Sma, Tema, Wma

MAKES: dict[str, Factory] = {
    "sma": lambda: Sma(20),
    "wma": lambda: Wma(20),
    "hma": lambda: Hma(20),
    "ema": lambda: Ema(6),
    "dema": lambda: Dema(6),
    "tema": lambda: Tema(6),
    "kama": lambda: Kama(4, 1, 4),
}
DEFAULTS: dict[str, Factory] = {"sma": Sma, "wma": Wma, "hma": Hma, "ema": Ema, "dema": Dema, "tema": Tema, "kama": Kama}
each = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@each
def test_promises(make: Factory) -> None:
    """Batch = stream = split = later start, a NaN is forgotten, warm-up is exact."""
    check_all(make, [market(1300)["close"]])


@pytest.mark.jit
@pytest.mark.parametrize("make", DEFAULTS.values(), ids=DEFAULTS)
def test_promises_of_the_defaults(make: Factory) -> None:
    """The same for the default parameters, whose memory is longer."""
    check_all(make, [market(4000)["close"]])


@each
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 2**16))
def test_any_split(make: Factory, sizes: list[int], seed: int) -> None:
    """Any split into blocks gives the same bits."""
    check_stream(make, [market(400, seed)["close"]], sizes, bar_by_bar=0)


@each
@settings(max_examples=8, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-1e4, 1e4), st.integers(0, 2**16))
def test_scale_and_shift(make: Factory, scale: float, shift: float, seed: int) -> None:
    """An average of `scale * x + shift` is that of the average; doubling is exact."""
    x, cold = market(400, seed)["close"], make().warm_up
    plain = run(make, [x])[0, cold:]
    moved = run(make, [scale * x + shift])[0, cold:]
    np.testing.assert_allclose(moved, scale * plain + shift, rtol=1e-9, atol=1e-9 * scale * float(np.abs(x).max()))
    np.testing.assert_array_equal(run(make, [2.0 * x])[0, cold:], 2.0 * plain)


def kama_by_hand(x: F8) -> F8:
    """Return Kaufman's recursion as he wrote it."""
    y = x.copy()
    for t in range(10, len(x)):
        path = np.abs(np.diff(x[t - 10 : t + 1])).sum()
        share = (abs(x[t] - x[t - 10]) / path if path else 1.0) * (2 / 3 - 2 / 31) + 2 / 31
        y[t] = y[t - 1] + share**2 * (x[t] - y[t - 1])
    return y


def window_by_hand(weigh: Callable[[F8], float], n: int) -> Callable[[F8], F8]:
    """Return a function of each window of `n` values."""
    return lambda x: np.array([weigh(x[max(t - n + 1, 0) : t + 1]) for t in range(len(x))])


def test_obvious_references() -> None:
    """The definition, bar by bar; KAMA from its first value on, also past the reach of its tree."""
    x = market(2000, 5)["close"]
    ramp = np.arange(1, 21) / 210
    check_reference(Sma, [x], [window_by_hand(lambda w: float(w.mean()), 20)(x)])
    check_reference(Wma, [x], [window_by_hand(lambda w: float(w @ ramp[-len(w) :]), 20)(x)])
    weights = (19 / 21) ** np.arange(1999, -1, -1.0)
    check_reference(Ema, [x], [window_by_hand(lambda w: float(w @ weights[-len(w) :] / weights[-len(w) :].sum()), 2000)(x)], after=19)
    check_reference(Kama, [x], [kama_by_hand(x)], after=10, rtol=1e-12)


def test_kama_of_a_market_that_goes_nowhere() -> None:
    """The worst case: a ratio of zero; what the tree drops is at most 1.4 % of the distance between average and price."""
    x = np.concatenate([np.linspace(100.0, 101.0, 20), 101.0 + 0.01 * (np.arange(2200) % 2)])
    out = run(Kama, [x])[0, 10:]
    assert np.abs(out - kama_by_hand(x)[10:]).max() < 0.015 * 0.02


@pytest.mark.jit
@pytest.mark.parametrize("name", ["sma", "wma", "ema", "dema", "tema", "kama"])
@pytest.mark.parametrize("n", [2, 10, 33])
def test_ta_lib(name: str, n: int) -> None:
    """The same as TA-Lib once what it started with is forgotten."""
    x = market(20_000, n)["close"]
    make = {"sma": Sma, "wma": Wma, "ema": Ema, "dema": Dema, "tema": Tema, "kama": Kama}[name]
    check_reference(lambda: make(n), [x], [getattr(talib, name.upper())(x, n)])
