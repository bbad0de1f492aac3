"""Reading the store, against pandas reading one Parquet file that holds the same rows. Prints ratios; asserts no time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from btcbot.data.store import Store
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars

ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Compare in turns, so that a busy machine slows both."""
    bars = synthetic_bars(1, utc_ms("2020-01-01"), utc_ms("2024-06-01"))
    key = {"source": "synthetic:1", "symbol": "BTCUSD", "timeframe": "M1"}
    with TemporaryDirectory() as folder:
        single = Path(folder) / "one.parquet"
        store = Store(Path(folder) / "store")
        written = seconds(lambda: store.write(bars, **key))
        by_pandas = seconds(lambda: bars.to_parquet(single, compression="zstd"))
        print(f"write {len(bars):,} bars: {written:.2f} s, ratio to pandas {pd.__version__}.to_parquet {written / by_pandas:.2f}")
        pd.testing.assert_frame_equal(store.read(**key), pd.read_parquet(single), check_freq=False)
        whole, day, peer = [], [], []
        for _ in range(ROUNDS):
            peer.append(seconds(lambda: pd.read_parquet(single)))
            whole.append(seconds(lambda: store.read(**key)))
            day.append(seconds(lambda: store.read(**key, start="2022-03-04", end="2022-03-05")))
        ratio = statistics.median(a / b for a, b in zip(whole, peer, strict=True))
        print(f"read them all: {statistics.median(whole):.3f} s, ratio to pandas.read_parquet of one file {ratio:.2f}")
        print(f"read one day: {statistics.median(day) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
