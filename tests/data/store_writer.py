"""A process that starts writers and readers of a store on demand, by fork: the imports are paid for once, and each one can be killed.

It reads one JSON list a line, [role, folder, number, log], answers with the new process's id, and reaps it on ["wait", id].
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd

from btcbot.core.errors import BtcbotError
from btcbot.data.embedded import EmbeddedStore
from btcbot.data.store import WriteResult
from btcbot.market.bars import check_bars, time_index, time_ms
from btcbot.market.ticks import check_ticks

HOUR = 3_600_000
START = 1_704_067_200_000  # 2024-01-01
KEY = {"source": "test", "symbol": "BTCUSD", "timeframe": "H1"}
TICKS = KEY | {"timeframe": "TICK"}
BLOCK = 100  # rows that each round adds
CHANGED = np.arange(START + 700 * HOUR, START + 800 * HOUR, HOUR)  # times around the end of January that each round writes anew
STEP = 1_000_000  # milliseconds between two pairs of ticks: 86 pairs a day


def bars_at(times: np.ndarray, value: float) -> pd.DataFrame:
    """Return bars that all say `value`."""
    return check_bars(
        pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), np.full(len(times), float(value))), index=time_index(times))
    )


def ticks_at(first: int, last: int, value: float) -> pd.DataFrame:
    """Return ticks that all say `value`, two in each millisecond."""
    times = START + np.repeat(np.arange(first, last), 2) * STEP
    bid = np.full(len(times), float(value))
    return check_ticks(pd.DataFrame({"bid": bid, "ask": bid + np.tile([0.0, 1.0], last - first)}, index=time_index(times)))


def added(number: int) -> np.ndarray:
    """Return the times that only round `number` writes: hours after March, most rounds inside a month, some across two."""
    first = START + (2200 + number * BLOCK) * HOUR
    return np.arange(first, first + BLOCK * HOUR, HOUR)


def write_round(store: EmbeddedStore, number: int) -> WriteResult:
    """Write the bars that round `number` changes and adds, in one call."""
    return store.write(pd.concat([bars_at(CHANGED, number), bars_at(added(number), number)]), **KEY)


def write_ticks(store: EmbeddedStore, number: int) -> WriteResult:
    """Write 50 pairs of ticks, and the last ten of the round before anew."""
    first = number * BLOCK // 2
    return store.write(ticks_at(max(first - 10, 0), first + BLOCK // 2, number), **TICKS)


def append_round(store: EmbeddedStore, number: int) -> None:
    """Write 500 hours, three weeks, right after those of the round before."""
    store.write(bars_at(START + np.arange(number * 500, (number + 1) * 500) * HOUR, number), **KEY)


def until_orphaned(number: int) -> Iterator[int]:
    """Count from `number` on for as long as the process that was asked for this one lives."""
    parent = os.getppid()
    for k in count(number):
        if os.getppid() != parent:
            return
        yield k


def _write(store: EmbeddedStore, number: int, log: int) -> None:
    """Write rounds from `number` on until killed, on a disk that takes its time, and log each one when it is acknowledged."""
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.003)
        fsync(handle)

    os.fsync = slow
    for k in until_orphaned(number):
        write_round(store, k)
        write_ticks(store, k)
        os.write(log, f"{k}\n".encode())
        if k % 3 == 0:
            store.compact()


def _append(store: EmbeddedStore, number: int, log: int) -> None:
    """Append until killed."""
    for k in until_orphaned(number):
        append_round(store, k)


def _watch(store: EmbeddedStore, number: int, log: int) -> None:
    """Read what `_write` writes, over and over, and log a line for each reading; what is wrong is an error."""
    known = values = pairs = 0
    for _ in until_orphaned(0):
        try:
            bars, ticks = store.read(**KEY), store.read(**TICKS)
        except BtcbotError as error:
            if "has no rows" in str(error):  # not begun
                continue
            raise
        times = time_ms(bars.index)
        new = times[times > CHANGED[-1]]
        assert (times[: len(times) - len(new)] == CHANGED).all(), "a hole in the bars that change"
        assert (new == added(0)[0] + np.arange(len(new)) * HOUR).all(), "a hole in the bars that are added"
        assert (time_ms(ticks.index) == START + np.arange(len(ticks)) // 2 * STEP).all(), "a hole in the ticks"
        assert len(bars) >= known and int(bars["close"].max()) >= values and len(ticks) >= pairs, "rows that were there are not"
        known, values, pairs = len(bars), int(bars["close"].max()), len(ticks)
        os.write(log, f"{known}\n".encode())


def _share(store: EmbeddedStore, number: int, log: int) -> None:
    """Write each fourth bar of 8,000 hours, from the bar `number` on, in 20 calls; one of four merges and drops as well."""
    for k in range(20):
        store.write(bars_at(START + np.arange(k * 400 + number, (k + 1) * 400, 4) * HOUR, number), **KEY)
        if number == 0 and k % 5 == 0:
            store.compact()


def _drop(store: EmbeddedStore, number: int, log: int) -> None:
    """Drop the oldest 300 hours again and again, while others read and append."""
    for k in range(1, 20):
        store.drop_before(**KEY, before=START + k * 300 * HOUR)
        time.sleep(0.01)


def _limited(store: EmbeddedStore, number: int, log: int) -> None:
    """Write a round with no room for more than 800 bytes in a file, and log the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (800, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        write_round(store, number)
    except BtcbotError as error:
        os.write(log, str(error).encode())


ROLES: dict[str, Callable[[EmbeddedStore, int, int], None]] = {
    "write": _write,
    "append": _append,
    "watch": _watch,
    "share": _share,
    "drop": _drop,
    "limited": _limited,
}


def main() -> None:
    """Serve the orders on stdin."""
    for line in sys.stdin:
        role, *arguments = json.loads(line)
        if role == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(arguments[0], 0)[1])
        else:
            folder, number, log = arguments
            answer = os.fork()
            if answer == 0:
                try:
                    ROLES[role](EmbeddedStore(folder), number, os.open(Path(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
                except BaseException as error:
                    print(f"{role}: {error!r}", file=sys.stderr)
                    raise
                finally:
                    sys.stderr.flush()
                    os._exit(1 if sys.exc_info()[0] else 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
