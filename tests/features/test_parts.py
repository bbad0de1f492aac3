"""A long history is computed in parts on all cores: every indicator gives the same bits as at once."""

import threading

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
def test_an_error_in_another_thread_reaches_the_caller(bars: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    here, run, failed = threading.get_ident(), Program.run, threading.Event()

    def breaks(self: Program, *args: np.ndarray) -> None:
        if threading.get_ident() != here:
            failed.set()
            raise MemoryError("no room")
        run(self, *args)
        if args[2] != indicator.PART:
            failed.wait(10)

    monkeypatch.setattr(indicator, "WORTH_S", 1e-9)
    monkeypatch.setitem(indicator.numba.config.__dict__, "NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr(Program, "run", breaks)
    with pytest.raises(MemoryError, match="no room"):
        compute_all(make_indicator("sma", n=5), bars["close"])
