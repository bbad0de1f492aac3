"""A long history is computed in parts on all cores: every indicator gives the same bits as at once."""

import threading
import time

import numpy as np
import pytest

from btcbot.features import indicator
from btcbot.features.indicator import Program, compute_all, make_indicator
from btcbot.features.indicators import INDICATORS
from btcbot.market.bars import bar_block
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars

COLUMNS = ("time", "open", "high", "low", "close", "volume", "spread")


@pytest.fixture(scope="module")
def bars() -> dict[str, np.ndarray]:
    """Return 200,000 minutes by column, with values that are missing."""
    frame = synthetic_bars(seed=5, start_ms=utc_ms("2022-01-01"), end_ms=utc_ms("2022-01-01") + 205_000 * 60_000)
    block = np.ascontiguousarray(bar_block(frame).T)
    rng = np.random.default_rng(1)
    for row in block[1:]:
        row[rng.integers(0, len(row), 5)] = np.nan
    block[1:, 130_000:130_100] = np.nan
    return dict(zip(COLUMNS, block, strict=True))


@pytest.mark.jit
@pytest.mark.parametrize("name", sorted(INDICATORS))
def test_parts_equal_the_whole(name: str, bars: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indicator, "WORTH_S", 1e-9)
    made = make_indicator(name)
    inputs = [bars.get(column, bars["close"]) for column in made.inputs]
    whole = make_indicator(name).extend_all(*inputs)
    for part, row in zip(compute_all(made, *inputs), whole, strict=True):
        np.testing.assert_array_equal(part, row)


@pytest.mark.jit
@pytest.mark.parametrize("fault", ["fails", "stands still", "is late"])
def test_the_first_core_does_what_another_leaves(fault: str, bars: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    here, run, waits, returned = threading.get_ident(), Program.run, threading.Event(), threading.Event()
    whole = make_indicator("sma", n=5).extend_all(bars["close"])[0]

    def breaks(self: Program, *args: np.ndarray) -> None:
        if threading.get_ident() == here:
            run(self, *args)
            if args[2] != indicator.PART:
                assert waits.wait(10)
            return
        waits.set()
        if fault == "fails":
            raise MemoryError("no room")
        if fault == "stands still":
            assert returned.wait(10)
        run(self, *args)

    monkeypatch.setattr(indicator, "WORTH_S", 1e-9)
    monkeypatch.setitem(indicator.numba.config.__dict__, "NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr(Program, "run", breaks)
    values = compute_all(make_indicator("sma", n=5), bars["close"])[0]
    np.testing.assert_array_equal(values, whole)
    values[:] = 0.0
    returned.set()
    time.sleep(0.05)
    assert not values.any(), "another thread wrote into a result that was handed out"
