"""Momentum and oscillators: what they promise, laws of scale and shift, bounds, and TA-Lib."""

import numpy as np
import pytest
import talib
from checks import Columns, Factory, check_all, check_reference, check_stream, columns, market, run
from hypothesis import given, settings
from hypothesis import strategies as st

from btcbot.features.indicators.momentum import Cmo, Macd, Momentum, Ppo, Roc, Rsi, Trix
from btcbot.features.indicators.oscillators import Aroon, Cci, Stochastic, StochRsi, UltimateOscillator, WilliamsR

MAKES: dict[str, Factory] = {
    "momentum": lambda: Momentum(10),
    "roc": lambda: Roc(10),
    "rsi": lambda: Rsi(4),
    "cmo": lambda: Cmo(3),
    "trix": lambda: Trix(5),
    "ppo": lambda: Ppo(3, 8),
    "macd": lambda: Macd(3, 6, 4),
    "stochastic": lambda: Stochastic(9, 3, 3),
    "fast stochastic": lambda: Stochastic(5, 1, 3),
    "stoch_rsi": lambda: StochRsi(4, 5, 3),
    "williams_r": lambda: WilliamsR(14),
    "cci": lambda: Cci(20),
    "ultimate_oscillator": lambda: UltimateOscillator(3, 6, 12),
    "aroon": lambda: Aroon(14),
}
DEFAULTS = [Momentum, Roc, Rsi, Cmo, Trix, Ppo, Macd, Stochastic, StochRsi, WilliamsR, Cci, UltimateOscillator, Aroon]
each = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@each
def test_promises(make: Factory) -> None:
    """Batch = stream = split = later start, a NaN is forgotten, warm-up is exact."""
    check_all(make, columns(make, market(1200)))


@pytest.mark.jit
@pytest.mark.parametrize("make", DEFAULTS)
def test_promises_of_the_defaults(make: Factory) -> None:
    """The same for the default parameters, whose memory is longer."""
    check_all(make, columns(make, market(5000)))


@each
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 2**16))
def test_any_split(make: Factory, sizes: list[int], seed: int) -> None:
    """Any split into blocks gives the same bits."""
    check_stream(make, columns(make, market(350, seed)), sizes, bar_by_bar=0)


@each
@settings(max_examples=8, deadline=None)
@given(st.integers(-6, 6), st.floats(-100.0, 100.0), st.integers(0, 2**16))
def test_scale_and_shift(make: Factory, power: int, shift: float, seed: int) -> None:
    """Prices times a power of two change nothing, or that much; adding a constant changes no difference and no place in a range."""
    inputs, cold, scale = columns(make, market(350, seed)), make().warm_up, 2.0**power
    plain, name = run(make, inputs)[:, cold:], make().name()
    factor = scale if name in ("momentum", "macd") else 1.0
    np.testing.assert_array_equal(run(make, [scale * x for x in inputs])[:, cold:], factor * plain)
    if name not in ("roc", "ppo", "trix"):
        moved = run(make, [x + shift for x in inputs])[:, cold:]
        if name == "aroon":
            return  # rounding of the sums can make two extremes equal
        np.testing.assert_allclose(moved, plain, rtol=1e-6, atol=1e-6 * max(np.abs(plain).max(), 1.0))


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [(Rsi, 0, 100), (Cmo, -100, 100), (Stochastic, 0, 100), (StochRsi, 0, 100), (WilliamsR, -100, 0), (Aroon, -100, 100)],
)
def test_bounds(make: Factory, low: float, high: float) -> None:
    """Values stay in their range, up to rounding."""
    out = run(make, columns(make, market(1000, 9)))
    assert np.nanmin(out) >= low - 1e-9 and np.nanmax(out) <= high + 1e-9


@each
def test_flat_market(make: Factory) -> None:
    """Where nothing moves the value is the neutral one, exactly but for sums of shares."""
    neutral = {
        "rsi": [50],
        "stochastic": [50, 50],
        "stoch_rsi": [50, 50],
        "williams_r": [-50],
        "ultimate_oscillator": [50],
        "aroon": [100, 100, 0],
    }
    inputs = [np.full(200, 30_000.07)] * len(make().inputs)
    out = run(make, inputs)[:, make().warm_up :]
    wanted = np.array(neutral.get(make().name(), [0] * len(out)), float)[:, None]
    atol = 1e-10 if make().name() in ("trix", "ppo", "macd") else 1e-12
    np.testing.assert_allclose(out, np.broadcast_to(wanted, out.shape), atol=atol, rtol=1e-12)


@pytest.mark.jit
def test_ta_lib() -> None:
    """The same as TA-Lib once what it started with is forgotten."""
    bars = market(20_000, 3)
    high, low, close = bars["high"], bars["low"], bars["close"]

    def check(make: Factory, inputs: Columns, *expected: np.ndarray, rtol: float = 1e-9) -> None:
        check_reference(make, inputs, expected, rtol=rtol)

    check(lambda: Momentum(10), [close], talib.MOM(close, 10))
    check(lambda: Roc(10), [close], talib.ROC(close, 10))
    for n in (2, 5, 14):
        check(lambda n=n: Rsi(n), [close], talib.RSI(close, n))
        check(lambda n=n: Cmo(n), [close], talib.CMO(close, n))
    check(Trix, [close], talib.TRIX(close, 30))
    check(Ppo, [close], talib.PPO(close, 12, 26, 1))
    check(Macd, [close], *talib.MACD(close))
    check(lambda: Stochastic(5, 3, 3), [high, low, close], *talib.STOCH(high, low, close))
    check(lambda: Stochastic(14, 1, 3), [high, low, close], *talib.STOCHF(high, low, close, 14, 3))
    check(StochRsi, [close], *talib.STOCHRSI(close, 14, 5, 3))
    check(WilliamsR, [high, low, close], talib.WILLR(high, low, close))
    check(Cci, [high, low, close], talib.CCI(high, low, close, 20))
    check(UltimateOscillator, [high, low, close], talib.ULTOSC(high, low, close))
    down, up = talib.AROON(high, low, 14)
    check(Aroon, [high, low], up, down, talib.AROONOSC(high, low, 14))
