"""Rows a second into and out of a store in PostgreSQL, with TimescaleDB where it is found: `timescale.py [rows]`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/data"))
from postgres import TIMESCALE, has_timescale, programs, server

from btcbot.data.timescale import TimescaleStore
from btcbot.market.bars import check_bars, time_index
from btcbot.market.clock import utc_ms
from btcbot.market.ticks import check_ticks


def rate(rows: int, work: Callable[[], object]) -> str:
    """Return how many rows a second `work` handled."""
    began = time.perf_counter()
    work()
    return f"{rows / (time.perf_counter() - began):>11,.0f}"


def made(rows: int) -> dict[str, pd.DataFrame]:
    """Return minutes, and ticks a quarter of a second apart."""
    random = np.random.default_rng(1)
    price = 30_000 + random.normal(size=rows).cumsum().round(2)
    bars = pd.DataFrame({"open": price, "high": price + 1, "low": price - 1, "close": price, "tick_volume": 9, "spread": 150})
    ticks = pd.DataFrame({"bid": price, "ask": price + 15, "flags": 6})
    start = utc_ms("2024-01-01")
    return {
        "M1": check_bars(bars.set_axis(time_index(start + 60_000 * np.arange(rows)))),
        "TICK": check_ticks(ticks.set_axis(time_index(start + 250 * np.arange(rows)))),
    }


def main() -> None:
    """Print a table for each server."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    frames = made(rows)
    for name, folder, settings in (
        ("PostgreSQL", next(iter(programs()), None), {}),
        ("TimescaleDB", next(filter(has_timescale, programs()), None), TIMESCALE),
    ):
        if folder is None:
            print(f"{name}: not found")
            continue
        print(f"{name}, {rows:,} rows, rows a second" + " " * 9 + "write  again, same        read  compacted    bytes a row")
        with server(folder, settings) as address, TimescaleStore(address) as store:
            for timeframe, frame in frames.items():
                key = {"source": "bench", "symbol": "BTCUSD", "timeframe": timeframe}
                times = [rate(rows, lambda frame=frame, key=key: store.write(frame, **key)) for _ in range(2)]
                times.append(rate(rows, lambda key=key: store.read(**key)))
                store.compact()
                times.append(rate(rows, lambda key=key: store.read(**key)))
                size = store.info().set_index("timeframe")["bytes"][timeframe] / rows
                print(f"{timeframe:>32}" + " ".join(times) + f"{size:>12.0f}")


if __name__ == "__main__":
    main()
