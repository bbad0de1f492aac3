"""A history that is read in blocks: the same sweep to the bit, and a memory that doesn't grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from btcbot.backtest.ledger import TrialLedger
from btcbot.backtest.rules import Above, Crosses, Parameter, RuleStrategy
from btcbot.backtest.sweep import sweep
from btcbot.core.errors import BtcbotError
from btcbot.data.blocks import BarBlocks, stored_bars
from btcbot.data.embedded import EmbeddedStore
from btcbot.market.clock import utc_ms
from btcbot.market.profile import broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.rules import moving_average_crossover

FAST, SLOW = Parameter("fast"), Parameter("slow")
GRID = {"fast": [5, 20, 60], "slow": [90, 200]}
RULES = RuleStrategy(Crosses({"sma": {"n": FAST}}, {"sma": {"n": SLOW}}) & Above("close", {"sma": {"n": 3}, "on": "H1"}), lots=0.1)
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "simple account": (RULES, {}),
    "rules": (RULES, {"account": broker_profile("crypto-24x7"), "trade_from": "2024-02-03"}),
    "closed at weekends": (RULES, {"account": broker_profile("fiveday-eet")}),
    "steps": (lambda fast, slow: moving_average_crossover(fast=fast, slow=slow, atr=30), {"account": broker_profile("crypto-24x7")}),
}


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    """Return two months with dirty bars."""
    made = synthetic_bars(5, utc_ms("2024-01-20"), utc_ms("2024-03-04"))
    made.iloc[[700, 15_000], 1] *= 3.0
    return made


@pytest.mark.jit
@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_sweep_over_blocks_is_the_sweep(way: str, bars: pd.DataFrame, tmp_path: Path) -> None:
    strategy, options = WAYS[way]
    whole = sweep(strategy, GRID, bars, **options)
    with EmbeddedStore(tmp_path) as store:
        store.write(bars, source="made", symbol="BTCUSD", timeframe="M1")
        stored = stored_bars(store, "made", "BTCUSD", "M1")
        uneven = BarBlocks(lambda: (bars.iloc[a : a + 7_777] for a in range(0, len(bars), 7_777)))
        for blocks in (stored, uneven):
            found = sweep(strategy, GRID, blocks, **options)
            assert found.table.equals(whole.table)
            assert found.moments.tobytes() == whole.moments.tobytes()
            assert (found.tier, found.days) == (whole.tier, whole.days)
        assert repr(found) == repr(whole)
        if "account" in options:
            assert found.result(0).deals.equals(whole.result(0).deals)
        ledger = TrialLedger(tmp_path / "trials.sqlite")
        assert (whole.record(ledger), found.record(ledger)) == (6, 0), "the same trials"


@pytest.mark.jit
def test_a_part_that_was_kept_is_found_again(bars: pd.DataFrame, tmp_path: Path) -> None:
    blocks = BarBlocks(lambda: [bars])
    first = sweep(RULES, GRID, bars, resume=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert sweep(RULES, GRID, blocks, resume=tmp_path).table.equals(first.table)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == files


def test_a_function_of_the_bars_needs_them_whole(bars: pd.DataFrame) -> None:
    def momentum(bars: pd.DataFrame, n: int) -> Any:
        return np.sign(bars["close"].diff(n)).fillna(0)

    with pytest.raises(BtcbotError, match=r"give bars\.frame\(\)"):
        sweep(momentum, {"n": [5]}, BarBlocks(lambda: [bars]), account=broker_profile("crypto-24x7"))


PROGRAM = """
import sys
from pathlib import Path

from btcbot.backtest.rules import Crosses, Parameter, RuleStrategy
from btcbot.backtest.sweep import sweep
from btcbot.data.blocks import stored_bars
from btcbot.data.embedded import EmbeddedStore
from btcbot.market.profile import broker_profile
from btcbot.strategies.rules import moving_average_crossover

rules = RuleStrategy(Crosses({"sma": {"n": Parameter("fast")}}, {"sma": {"n": Parameter("slow")}}), lots=0.1)
steps = lambda fast, slow: moving_average_crossover(fast=fast, slow=slow, atr=30)
way, folder = sys.argv[1:]
options = {} if way == "simple" else {"account": broker_profile("crypto-24x7")}
options |= {"workers": 1, "memory": 2**24}
grid = {"fast": [5, 20, 60], "slow": [90, 200]}
# Of this program alone; ru_maxrss is inherited from the one that started it.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
with EmbeddedStore(folder) as store:
    def run(end):
        return sweep(steps if way == "steps" else rules, grid, stored_bars(store, "made", "BTCUSD", "M1", end=end), **options)
    run("2017-01-01")
    before = peak()
    found = run(None)
    print(len(found.asked.bars), before, peak())
"""


@pytest.fixture(scope="module")
def long_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store seven years of minutes, 3.6 million bars or 200 MB, a quarter at a time."""
    folder = tmp_path_factory.mktemp("store")
    edges = [utc_ms(str(edge)) for edge in pd.date_range("2016-01-01", "2023-01-01", freq="QS").tz_localize("UTC")]
    with EmbeddedStore(folder) as store:
        for k in range(len(edges) - 1):
            quarter = synthetic_bars(k, edges[k], edges[k + 1])
            store.write(quarter, source="made", symbol="BTCUSD", timeframe="M1")
    return folder


@pytest.mark.jit
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("way", ["simple", "rules", "steps"])
def test_memory_does_not_grow_with_history(way: str, long_history: Path) -> None:
    """After a year, which loads and compiles all, seven years take less than another `memory`, 16 MiB; as a frame they are 200 MB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, way, str(long_history)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    n, before, after = map(int, done.stdout.split())
    print(f"\n{way}: {n:,} bars, peak {before / 2**20:.0f} MiB after a year, {after / 2**20:.0f} MiB after all")
    assert n > 3_600_000
    assert after - before < 2**24
