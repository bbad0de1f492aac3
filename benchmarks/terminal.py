"""The server and its client, over loopback: a million bars into a frame, and the time of a small call.

The million bars are compared with pandas reading the same bars from one Parquet file, in the same run. Small calls are printed as they
are: a median of one client, and of eight that ask at once from processes of their own.
"""

import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd

from btcbot.core.process import Child
from btcbot.market.clock import format_utc
from btcbot.market.synthetic import synthetic_bars
from btcbot.terminal.remote import RemoteTerminal

TOKEN = secrets.token_urlsafe(32)
BARS, MINUTE, START = 1_050_000, 60_000, 1_577_836_800_000  # a million and more, without the quiet minutes
CALLS, CLIENTS = 2_000, 8


def best_of(count: int, work: Callable[[], object]) -> float:
    """Return the least seconds that `work` took."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def small_calls(url: str, token: str, count: int) -> list[float]:
    """Return the seconds of each call of one client."""
    terminal = RemoteTerminal(url, token)
    assert terminal.initialize(), terminal.last_error()
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        tick = terminal.symbol_info_tick("BTCUSD")
        taken.append(time.perf_counter() - began)
        assert tick is not None, terminal.last_error()
    return taken


def shown(what: str, taken: list[float]) -> str:
    """Describe the seconds of many calls."""
    ordered = [second * 1000 for second in sorted(taken)]
    return f"{what}: median {statistics.median(ordered):.2f} ms, 99 % {ordered[int(0.99 * len(ordered))]:.2f} ms"


def measure(folder: Path) -> None:
    """Print the figures."""
    file, end = folder / "bars.parquet", START + BARS * MINUTE
    synthetic_bars(1, START, end).to_parquet(file, compression="zstd")
    url = f"twin://?data={file}&start={format_utc(end - 60 * MINUTE)}"
    command = [sys.executable, "-m", "mt5_server", "--terminal", url, "--port", "0", "--token-stdin"]
    with Child([*command, "--journal", str(folder / "server.sqlite")], TOKEN, 120.0, folder / "log") as server:
        address = str(server.ready["url"])
        terminal = RemoteTerminal(address, TOKEN, timeout_s=60.0)
        assert terminal.initialize(), terminal.last_error()
        frame = terminal.ohlcv("BTCUSD", "M1", START, end)
        stored = pd.read_parquet(file).loc[frame.index[0] : frame.index[-2]]
        pd.testing.assert_frame_equal(frame.iloc[:-1], stored, check_freq=False, check_dtype=False)
        over_http = best_of(7, lambda: terminal.ohlcv("BTCUSD", "M1", START, end))
        from_file = best_of(7, lambda: pd.read_parquet(file))
        ratio = f"{over_http / from_file:.1f} x pandas.read_parquet ({from_file:.3f} s)"
        print(f"/v1/ohlcv, {len(frame):,} bars into a frame: {over_http:.3f} s, {ratio}")
        print(shown("symbol_info_tick, 1 client", small_calls(address, TOKEN, CALLS)))
        with ProcessPoolExecutor(CLIENTS) as pool:
            many = [
                second
                for taken in pool.map(small_calls, [address] * CLIENTS, [TOKEN] * CLIENTS, [CALLS // 4] * CLIENTS)
                for second in taken
            ]
        print(shown(f"symbol_info_tick, {CLIENTS} clients on {os.cpu_count()} cores", many))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name))
