"""A process that starts writers to a store on demand, by fork: the imports are paid for once, and each writer can be killed.

It reads one JSON list a line, [role, folder, number, log], answers with the writer's process id, and reaps it on ["wait", id].
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd

from btcbot.core.errors import BtcbotError
from btcbot.data.store import Store, WriteResult
from btcbot.market.bars import check_bars, time_index

HOUR = 3_600_000
START = 1_704_067_200_000  # 2024-01-01
KEY = {"source": "test", "symbol": "BTCUSD", "timeframe": "H1"}
BLOCK = 100  # bars that each round adds
CHANGED = np.arange(START + 700 * HOUR, START + 800 * HOUR, HOUR)  # times around the end of January that each round writes anew


def bars_at(times: np.ndarray, value: float) -> pd.DataFrame:
    """Return bars that all say `value`."""
    return check_bars(
        pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), np.full(len(times), float(value))), index=time_index(times))
    )


def added(number: int) -> np.ndarray:
    """Return the times that only round `number` writes: hours after March, most rounds inside a month, some across two."""
    first = START + (2200 + number * BLOCK) * HOUR
    return np.arange(first, first + BLOCK * HOUR, HOUR)


def write_round(store: Store, number: int) -> WriteResult:
    """Write what round `number` changes and adds, in one call."""
    return store.write(pd.concat([bars_at(CHANGED, number), bars_at(added(number), number)]), **KEY)


def append_round(store: Store, number: int) -> None:
    """Write 500 hours, three weeks, right after those of the round before."""
    store.write(bars_at(START + np.arange(number * 500, (number + 1) * 500) * HOUR, number), **KEY)


def _write(store: Store, number: int, log: int) -> None:
    """Write rounds from `number` on until killed, on a disk that takes its time, and log each one when it is acknowledged."""
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.003)
        fsync(handle)

    os.fsync = slow
    for k in count(number):
        write_round(store, k)
        os.write(log, f"{k}\n".encode())


def _append(store: Store, number: int, log: int) -> None:
    """Append until killed."""
    for k in count(number):
        append_round(store, k)


def _share(store: Store, number: int, log: int) -> None:
    """Write each fourth bar of 8,000 hours, from the bar `number` on, in 20 calls."""
    for k in range(20):
        store.write(bars_at(START + np.arange(k * 400 + number, (k + 1) * 400, 4) * HOUR, number), **KEY)


def _limited(store: Store, number: int, log: int) -> None:
    """Write a round with no room for more than 1,500 bytes in a file, and log the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        write_round(store, number)
    except BtcbotError as error:
        os.write(log, str(error).encode())


ROLES: dict[str, Callable[[Store, int, int], None]] = {"write": _write, "append": _append, "share": _share, "limited": _limited}


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
                    ROLES[role](Store(folder), number, os.open(Path(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND))
                finally:
                    sys.stderr.flush()
                    os._exit(1 if sys.exc_info()[0] else 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
