"""Writing and reading the embedded store, beside polars doing the same with one Parquet file. Prints figures; asserts no time.

Both write what they are given to the disk (fsync) and read it into NumPy. They take turns, so that a busy machine slows both.
Options: --seconds N, how long a reader runs beside a writer (default 6); --ticks N (default 10 million).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import polars as pl

from btcbot.data.embedded import EmbeddedStore
from btcbot.market.bars import check_bars, time_index, time_ms
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars
from btcbot.market.ticks import check_ticks

ROUNDS = 7
BARS = {"source": "synthetic:1", "symbol": "BTCUSD", "timeframe": "M1"}
TICKS = BARS | {"timeframe": "TICK"}
MINUTE = 60_000


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float, float]:
    """Return the median of both, and of their ratio, after one call of each that isn't counted."""
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def resident_mb(kind: str) -> float:
    """Return what the process holds in memory (`VmRSS`) or held at most (`VmHWM`); Linux only."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)).split()[1]) / 1024


def peak_mb(work: Callable[[], object]) -> float:
    """Return by how much `work` raises the memory of the process at most."""
    if not sys.platform.startswith("linux"):
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident_mb("VmRSS")
    work()
    return resident_mb("VmHWM") - before


def synthetic_ticks(count: int) -> pd.DataFrame:
    """Return ticks of a random walk, four a second, some in the same millisecond."""
    chance = np.random.default_rng(1)
    times = utc_ms("2024-01-01") + np.cumsum(chance.integers(0, 500, count))
    bid = np.rint(4_000_000 + np.cumsum(chance.integers(-60, 61, count))) / 100
    ask = np.rint(bid * 100 + chance.integers(500, 2000, count)) / 100
    ticks = pd.DataFrame({"bid": bid, "ask": ask, "flags": chance.choice([2, 4, 6], count)}, index=time_index(times))
    return check_ticks(ticks).assign(time_server=times + 7_200_000)


def as_polars(rows: pd.DataFrame) -> pl.DataFrame:
    """Return the same columns."""
    return pl.DataFrame({"time": time_ms(rows.index)} | {name: rows[name].to_numpy() for name in rows})


def write_polars(frame: pl.DataFrame, path: Path) -> None:
    """Write one file to the disk."""
    with path.open("wb") as file:
        frame.write_parquet(file)
        file.flush()
        os.fsync(file.fileno())


def writing(place: Path, rows: pd.DataFrame, key: dict[str, str], rounds: int) -> None:
    """Compare writing into a new store with writing one file, and measure memory."""
    frame, numbers = as_polars(rows), iter(range(1000))
    a, b, ratio = compare(
        lambda: EmbeddedStore(place / f"{key['timeframe']}{next(numbers)}").write(rows, **key),
        lambda: write_polars(frame, place / f"{key['timeframe']}.parquet"),
        rounds,
    )
    unit = "ticks" if key["timeframe"] == "TICK" else "bars"
    print(f"write {len(rows):,} {unit}: {a:.2f} s, {len(rows) / a / 1e6:.1f} million a second; polars {b:.2f} s, ratio {ratio:.2f}")
    for memory_mb in (256, 512):
        store = EmbeddedStore(place / f"{key['timeframe']}{next(numbers)}", memory_mb=memory_mb)
        written = peak_mb(lambda store=store: store.write(rows, **key))
        again = peak_mb(lambda store=store: store.write(rows, **key))
        revised = rows[::2].assign(**{rows.columns[0]: 1.0})
        merged = peak_mb(lambda store=store, revised=revised: store.write(revised, **key))
        size = rows.memory_usage().sum() / 2**20
        read = peak_mb(lambda store=store: store.read(**key)) - store.read(**key).memory_usage().sum() / 2**20
        print(
            f"  memory_mb={memory_mb}, beyond the rows ({size:.0f} MB): write {written:.0f} MB, the same again {again:.0f} MB, "
            f"half of them revised {merged:.0f} MB, read {read:.0f} MB"
        )


def reading(place: Path, bars: pd.DataFrame) -> None:
    """Compare reading everything into NumPy, and time one day of eight years."""
    store, single = EmbeddedStore(place / "M10"), place / "M1.parquet"
    as_polars(bars).write_parquet(single)

    def ours() -> list[np.ndarray]:
        read = store.read(**BARS)
        return [time_ms(read.index), *(read[name].to_numpy() for name in read)]

    def theirs() -> list[np.ndarray]:
        read = pl.read_parquet(single)
        return [read[name].to_numpy() for name in read.columns]

    assert all((a == b).all() for a, b in zip(ours(), theirs(), strict=True))
    a, b, ratio = compare(ours, theirs, 15)
    print(f"read {len(bars):,} bars into NumPy: {a:.3f} s; polars {pl.__version__}.read_parquet of one file {b:.3f} s, ratio {ratio:.2f}")

    years = synthetic_bars(1, utc_ms("2016-01-01"), utc_ms("2024-01-01"))
    store = EmbeddedStore(place / "years")
    store.write(years, **BARS)
    single = place / "years.parquet"
    as_polars(years).write_parquet(single)
    low, high = utc_ms("2020-03-04"), utc_ms("2020-03-05")
    a, b, ratio = compare(
        lambda: store.read(**BARS, start=low, end=high),
        lambda: pl.scan_parquet(single).filter((pl.col("time") >= low) & (pl.col("time") < high)).collect(),
        31,
    )
    print(f"one day of {len(years):,} bars: {a * 1000:.1f} ms; polars.scan_parquet of one file {b * 1000:.1f} ms, ratio {ratio:.2f}")


def appended(number: int) -> pd.DataFrame:
    """Return minute `number` since 2024."""
    times = np.array([utc_ms("2024-01-01") + number * MINUTE])
    return check_bars(pd.DataFrame({name: [float(number)] for name in ("open", "high", "low", "close")}, index=time_index(times)))


def append(folder: Path, is_started: threading.Event, stop: threading.Event, timings: list[float]) -> None:
    """Append a minute every 20 ms, each with the three before it, as one who follows a market does."""
    store, number = EmbeddedStore(folder), 20_000
    is_started.set()
    while not stop.is_set():
        rows = pd.concat([appended(k) for k in range(number - 3, number + 1)])
        timings.append(seconds(lambda rows=rows: store.write(rows, **BARS)))
        number += 1
        time.sleep(0.02)


def watch(folder: Path, duration_s: float, latencies: list[float]) -> None:
    """Read the last day over and over, and see that it only grows and has no hole."""
    store, known, until = EmbeddedStore(folder), 0, time.monotonic() + duration_s
    while time.monotonic() < until:
        began = time.perf_counter()
        read = store.read(**BARS, start=utc_ms("2024-01-14"), columns=["close"])
        latencies.append(time.perf_counter() - began)
        times = time_ms(read.index)
        assert len(read) >= known and (np.diff(times) == MINUTE).all(), "rows that were there are gone"
        known = len(read)


def side_by_side(place: Path, duration_s: float) -> None:
    """Compare the latency of a reader alone with that beside a writer, in processes of their own."""
    folder = place / "live"
    EmbeddedStore(folder).write(pd.concat([appended(k) for k in range(20_000)]), **BARS)
    processes = multiprocessing.get_context("spawn")
    manager = processes.Manager()
    lines = []
    for with_writer in (False, True):
        latencies, timings, is_started, stop = manager.list(), manager.list(), manager.Event(), manager.Event()
        reader = processes.Process(target=collect, args=(folder, duration_s, latencies))
        writer = processes.Process(target=append_all, args=(folder, is_started, stop, timings))
        if with_writer:
            writer.start()
            is_started.wait()
        reader.start()
        reader.join()
        assert reader.exitcode == 0, "the reader found an error"
        stop.set()
        if with_writer:
            writer.join()
            assert writer.exitcode == 0
        lines.append((np.array(latencies) * 1000, np.array(timings) * 1000))
    (alone, _), (beside, appends) = lines
    for name, values in (("reader alone", alone), ("beside a writer", beside), ("appending one bar and three known ones", appends)):
        median, high, most = np.percentile(values, [50, 99.9, 100])
        print(f"  {name}: {len(values):,} calls, median {median:.1f} ms, p99.9 {high:.1f} ms, longest {most:.1f} ms")
    print(f"  p99.9 beside a writer minus alone: {np.percentile(beside, 99.9) - np.percentile(alone, 99.9):.1f} ms")


def collect(folder: Path, duration_s: float, latencies: list[float]) -> None:
    """Run `watch`, and hand over what it measured at the end."""
    mine: list[float] = []
    watch(folder, duration_s, mine)
    latencies.extend(mine)


def append_all(folder: Path, is_started: threading.Event, stop: threading.Event, timings: list[float]) -> None:
    """Run `append`, and hand over what it measured at the end."""
    mine: list[float] = []
    append(folder, is_started, stop, mine)
    timings.extend(mine)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--ticks", type=int, default=10_000_000)
    chosen = parser.parse_args()
    print(f"{os.cpu_count()} cores, polars {pl.__version__}")
    with TemporaryDirectory() as folder:
        place = Path(folder)
        bars = synthetic_bars(1, utc_ms("2020-01-01"), utc_ms("2020-01-01") + 2_290_000 * MINUTE)
        writing(place, bars, BARS, ROUNDS)
        reading(place, bars)
        writing(place, synthetic_ticks(chosen.ticks), TICKS, 3)
        print(f"a reader and a writer, {chosen.seconds:g} s each:")
        side_by_side(place, chosen.seconds)


if __name__ == "__main__":
    main()
