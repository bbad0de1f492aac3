"""A process that starts followers of a known market on demand, by fork: the imports are paid for once, and each follower can be killed.

It reads one JSON object a line, forks a follower with it and answers with its process id, or reaps the one named by "wait".
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from market_terminal import BARS, NY7, START, TICK, Market, MarketTerminal, TroubledTerminal, made_ticks

from btcbot.data.embedded import EmbeddedStore
from btcbot.data.follow import FollowPolicy, stop_on_signals
from btcbot.data.gaps import GapLedger
from btcbot.data.ingest import DataIngestor
from btcbot.data.store import SeriesKey

MINUTES = 2 * 1440
SPEED = 400  # seconds of the market in a second
POLICY = FollowPolicy(poll_s=20.0, idle_s=60.0, flush_s=90.0, stall_s=1800.0, backoff_s=20.0, backoff_cap_s=200.0)


def market() -> Market:
    """Return the market that all followers see."""
    return Market(made_ticks(7, MINUTES))


def market_clock(epoch: float) -> int:
    """Return the market's time: it passes faster than ours, and ends."""
    return min(START + round((time.time() - epoch) * 1000 * SPEED), START + MINUTES * 60_000)


def follow(known: Market, folder: str, epoch: float, log: str, seed: int, share: float, flush_s: float) -> int:
    """Follow bars and ticks until told to stop; log what is acknowledged."""
    acknowledged = os.open(Path(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def stored(key: SeriesKey, frame: pd.DataFrame) -> None:
        first, last = frame.index[[0, -1]].astype("int64").tolist()
        os.write(acknowledged, json.dumps([key.timeframe, first, last, len(frame)]).encode() + b"\n")

    def connect() -> MarketTerminal:
        return TroubledTerminal(known, lambda: market_clock(epoch), np.random.default_rng(seed), share, dead=share / 20, maxbars=1000)

    ledger = GapLedger(Path(folder) / "gaps.sqlite")
    ingestor = DataIngestor(
        connect(),
        EmbeddedStore(Path(folder) / "store"),
        clock=NY7,
        source="s",
        ledger=ledger,
        page=2000,
        sleep=lambda seconds: time.sleep(seconds / SPEED),
    )
    policy = FollowPolicy(**{name: getattr(POLICY, name) for name in FollowPolicy.__slots__} | {"flush_s": flush_s})
    with stop_on_signals() as stop:
        os.write(acknowledged, b'"ready"\n')
        report = ingestor.follow(
            [BARS, TICK],
            stop,
            since_ms=START + 120_000,
            connect=connect,
            policy=policy,
            on_stored=stored,
            now=lambda: market_clock(epoch),
            rng=np.random.default_rng(seed),
            is_open=lambda key, at: False,
        )
    os.write(acknowledged, json.dumps({"rows": report.rows, "reconnects": report.reconnects}).encode() + b"\n")
    return 0


def main() -> None:
    """Serve the orders on stdin."""
    known = market()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                code = 1
                try:
                    code = follow(known, **order)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
