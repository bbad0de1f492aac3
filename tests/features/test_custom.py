"""Features that a user writes: the same promises, and errors that say what to do."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from checks import check_all, check_later_start, check_stream, columns, market
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from btcbot.core.errors import BtcbotError
from btcbot.core.jit import F8, kernel
from btcbot.features.hashing import function_hash
from btcbot.features.indicator import INDICATORS, make_indicator
from btcbot.features.indicators.custom import Feature, feature

FACTOR = 2.0
TABLE = np.array([1.0, 2.0, 3.0])


@pytest.fixture(autouse=True)
def shipped() -> Iterator[None]:
    """Leave the registry as it was."""
    before = dict(INDICATORS)
    yield
    INDICATORS.clear()
    INDICATORS.update(before)


def range_share(high: F8, low: F8, close: F8, n: int = 20, power: float = 1.0) -> float:
    """Where the close stands in the range of the last bars."""
    top, bottom = high.max(), low.min()
    return float(((close[-1] - bottom) / (top - bottom)) ** power)


@pytest.mark.jit
@pytest.mark.parametrize("n", [1, 2, 20, 300])
def test_the_promises_of_an_indicator(n: int) -> None:
    made = feature(range_share)
    inputs = columns(made.indicator, market(3_000))
    if n == 1:  # A bar of one tick has no range: 0 / 0.
        check_stream(lambda: made.indicator(n=n), inputs)
        check_later_start(lambda: made.indicator(n=n), inputs)
    else:
        check_all(lambda: made.indicator(n=n), inputs)


def test_the_value_is_that_of_the_function() -> None:
    made, bars = feature(range_share), market(200)
    high, low, close = (np.asarray(bars[name], np.float64) for name in ("high", "low", "close"))
    values = made(high, low, close, n=30, power=2.0)
    assert_array_equal(values[29:], [range_share(*(x[i - 29 : i + 1] for x in (high, low, close)), 30, 2.0) for i in range(29, 200)])
    assert np.isnan(values[:29]).all()
    series = made(pd.Series(high), close=pd.Series(close), low=pd.Series(low), n=30, power=2.0)
    assert series.name == "range_share"
    assert_array_equal(series, values)
    stream = make_indicator("range_share", n=30, power=2.0)
    assert_array_equal([stream.update(*bar) for bar in zip(high, low, close, strict=True)], values)


def test_a_function_may_change_its_window() -> None:
    @feature
    def spoiled(close: F8, n: int = 5) -> float:
        close[:] = close[::-1].copy()
        return float(close[0])

    close = np.arange(20.0)
    assert_array_equal(spoiled(close)[4:], close[4:])


def test_a_nan_is_never_swallowed() -> None:
    @feature
    def rising(close: F8, n: int = 5) -> float:
        return float(np.sum(np.diff(close) > 0))

    close = np.arange(40.0)
    close[20] = np.nan
    assert_array_equal(np.flatnonzero(np.isnan(rising(close))), [*range(4), *range(20, 25)])


def test_an_error_of_the_function_comes_through() -> None:
    @feature
    def picky(close: F8, n: int = 3) -> float:
        if close[-1] > 8.0:
            raise ValueError("too high")
        return float(close[-1])

    with pytest.raises(ValueError, match="too high"):
        picky(np.arange(10.0))


# The hash of the code


def hash_of(function: Callable[..., object]) -> str:
    return feature(function).indicator(n=3).code_hash


def test_the_hash_follows_the_function() -> None:
    def first(close: F8, n: int = 3) -> float:
        return float(close[0] * FACTOR)

    def second(close: F8, n: int = 3) -> float:
        return float(close[0] * TABLE[1])

    def third(close: F8, n: int = 3) -> float:
        return float(close[0] * 3.0)

    for function in (first, second, third):
        function.__name__ = "same"
    hashes = [hash_of(function) for function in (first, second, third)]
    assert len(set(hashes)) == 3
    assert [hash_of(function) for function in (first, second, third)] == hashes


def test_the_hash_follows_what_the_function_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    @kernel
    def scaled(x: float) -> float:
        return x * FACTOR

    def reads_array(close: F8, n: int = 3) -> float:
        return float(close[0] * TABLE[0])

    def calls(close: F8, n: int = 3) -> float:
        return scaled(close[0])

    before = hash_of(reads_array), hash_of(calls)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    monkeypatch.setitem(globals(), "TABLE", np.array([1.0, 2.0, 4.0]))
    assert before[0] != hash_of(reads_array)
    assert before[1] != hash_of(calls)
    made = feature(calls)
    assert_array_equal(made(np.arange(1.0, 6.0))[2:], [3.0, 6.0, 9.0])


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "from btcbot.features.hashing import function_hash\n"
        "def f(close, n=3):\n    return sum([x for x in close if x in {1, 2}]) + (lambda y: y + 1)(n)\n"
        "print(function_hash(f))"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop().strip()) == 16


# Errors


def test_mistakes_are_named() -> None:
    def no_window(close: F8) -> float:
        return 1.0

    def no_default(close: F8, length: int, n: int = 3) -> float:
        return 1.0

    def typing_error(clsoe: F8, n: int = 3) -> float:
        return 1.0

    for function, says in (
        (no_window, "needs the argument n"),
        (no_default, "'length' is no column"),
        (typing_error, "did you mean 'close'"),
    ):
        with pytest.raises(BtcbotError, match=says):
            feature(function)
    assert not {"no_window", "no_default", "typing_error"} & INDICATORS.keys()


def test_a_shipped_name_is_refused_and_an_own_one_replaced() -> None:
    importlib.import_module("btcbot.features.indicators.statistics")

    def rolling_max(close: F8, n: int = 3) -> float:
        return 1.0

    def mine(close: F8, n: int = 3) -> float:
        return 1.0

    with pytest.raises(BtcbotError, match="rolling_max is taken by a feature of btcbot"):
        feature(rolling_max)
    first, second = feature(mine), feature(mine)
    assert INDICATORS["mine"] is second.indicator is not first.indicator


@pytest.mark.jit
def test_the_line_that_cannot_be_compiled_is_named() -> None:
    def spoiled(close: F8, n: int = 3) -> float:
        total = 0.0
        for i in range(n):
            total += close[i].resample("1h")
        return total

    with pytest.raises(BtcbotError, match=r"spoiled can't be compiled, line 4, `total \+= close\[i\]\.resample\(\"1h\"\)`"):
        feature(spoiled)


@pytest.mark.jit
def test_one_compilation_serves_every_parameter() -> None:
    made = feature(range_share)
    bars = market(400)
    inputs = [np.asarray(bars[name], np.float64) for name in made.indicator.inputs]
    for n in (3, 9, 50):
        made(*inputs, n=n)
    assert len(made.indicator.step.signatures) == 1


def typed() -> Feature:
    @feature
    def kinds(close: F8, time: NDArray[np.float64], n: int = 4, lag: int = 0, weight: float = 1) -> float:
        return float(close[n - 1 - lag] * weight + 0.0 * time[0])

    return kinds


def test_parameters_keep_their_kind() -> None:
    made = typed()
    close = np.arange(10.0)
    assert_allclose(made(close, close, lag=2, weight=0.5)[3:], 0.5 * (close[3:] - 2))
    assert repr(made.indicator()) == "Kinds(n=4, lag=0, weight=1.0)"
    with pytest.raises(BtcbotError, match="lag must be a whole number"):
        made(close, close, lag=1.5)
    assert function_hash(made.function) == function_hash(typed().function)
