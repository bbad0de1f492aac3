"""From a closed bar to the order on the wire, over HTTP with 100 features; and the memory of a trader through hours of ticks.

`python benchmarks/trading.py [HOURS]`: so many simulated hours at a hundred times the speed of the world (default 2).
"""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import requests

from btcbot.core.jit import F8, I8, kernel
from btcbot.data.certificates import CertificateFile
from btcbot.engine.limits import RiskLimits
from btcbot.engine.risk import SIZE, SIZE_RULE, STOP, TARGET_ID, TARGET_SIDE
from btcbot.features.causality import certify
from btcbot.market.bars import CLOSE, TIME, time_ms
from btcbot.market.clock import utc_ms
from btcbot.market.profile import broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.ops.session import Session, synthetic_market
from btcbot.strategies.base import Strategy
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.twin import Twin
from btcbot.trading.decisions import DecisionLog
from btcbot.trading.live import KillSwitch, LiveLoop
from btcbot.trading.trader import Trader

SPEED, BARS, ORDERS = 100.0, 1440, 200
PROFILE = replace(broker_profile("crypto-24x7"), deposit=1_000_000.0)
KINDS = ("sma", "ema", "wma", "rsi", "roc", "momentum", "cmo", "mean_true_range", "rolling_std", "rolling_max")
FEATURES = tuple({kind: {"n": n}} for kind in KINDS for n in range(10, 60, 5))


@kernel
def flip_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    """Change sides with every seventh bar, whatever the hundred columns say; read them all."""
    for i in range(block.shape[0]):
        phase, seen = int(block[i, TIME]) // 420_000, 0.0
        for c in range(7, block.shape[1]):
            seen += block[i, c]
        out[i, TARGET_ID], out[i, TARGET_SIDE] = phase, 1 if phase % 2 == 0 else -1
        out[i, SIZE_RULE], out[i, SIZE], out[i, STOP] = 0.0, 0.01 + 0.0 * seen, 0.05 * block[i, CLOSE]


def flipping() -> Strategy:
    """Return a strategy that reads a hundred features."""
    return Strategy("flip", flip_nb, {}, 0, 0, 120, FEATURES)


def latency(folder: Path) -> None:
    """Time decisions against a server in a process of its own, beside bare requests to it."""
    market = synthetic_market(1, PROFILE, "2024-01-02", "2024-01-06", BARS)
    session = Session(market, PROFILE, flipping(), folder)
    try:
        session.backfill()
        session.certify(session.history().iloc[-600:])
        send, sent, began = session.terminal.send, list[float](), [0.0]

        def timed(*given: object, **options: object) -> object:
            if began[0]:
                sent.append((time.perf_counter() - began[0]) * 1000)
                began[0] = 0.0
            return send(*given, **options)  # type: ignore[arg-type] # handed through

        with CertificateFile(folder / "certificates.sqlite") as certificates, DecisionLog(folder / "decisions.sqlite") as log:
            trader = Trader(
                session.terminal,
                session.strategy,
                PROFILE,
                session.clock,
                session.journal,
                "M1",
                RiskLimits(),
                session.metrics,
                certificates=certificates,
                decisions=log,
            )
            trader.warm_up(session.history())
            session.terminal.lease()
            session.terminal.send = timed  # type: ignore[assignment,method-assign] # the same function, timed
            trader.on_tick(session.terminal.batch(trader.calls))
            for _ in range(BARS - 2):
                _, answers = session.terminal.advance(1, trader.calls)
                began[0] = time.perf_counter()
                trader.on_tick(answers)
        url, bare = str(session.server.ready["url"]), list[float]()
        with requests.Session() as web:
            for _ in range(300):
                start = time.perf_counter()
                web.get(f"{url}/v1/health", timeout=5)
                bare.append((time.perf_counter() - start) * 1000)
    finally:
        session.close()
    assert len(sent) >= ORDERS, len(sent)
    (median, high), peer = np.percentile(sent, [50, 99]), float(np.median(bare))
    whole = np.percentile(trader.record.decided_ms, [50, 99])
    print(
        f"bar closed to order on the wire, {len(FEATURES)} features, {len(sent)} decisions: median {median:.2f} ms (limit 5), "
        f"99th percentile {high:.2f} ms (limit 20), {median / peer:.2f} x a bare request to the same server ({peer:.2f} ms)"
    )
    print(f"until the last order of the bar was answered: median {whole[0]:.1f} ms, 99th percentile {whole[1]:.1f} ms")


def resident_mb() -> float:
    """Return what this process holds in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux: the most it ever held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return pages * resource.getpagesize() / 2**20


def soak(folder: Path, hours: int) -> None:
    """Trade on a clock a hundred times as fast as the world's, tick by tick, and watch the memory."""
    bars = synthetic_bars(1, utc_ms("2024-01-02"), utc_ms("2024-01-04") + (hours + 2) * 3_600_000)
    strategy = flipping()
    twin = Twin(bars, PROFILE, start="2024-01-03", speed=SPEED)
    twin.initialize()
    with (
        CertificateFile(folder / "certificates.sqlite") as certificates,
        OrderJournal(folder / "orders.sqlite") as journal,
        DecisionLog(folder / "decisions.sqlite") as log,
    ):
        certificates.save(certify(strategy, bars.iloc[:600]))
        trader = Trader(twin, strategy, PROFILE, twin.clock, journal, certificates=certificates, decisions=log)
        trader.warm_up(bars[time_ms(bars.index) < utc_ms("2024-01-03") - 60_000])
        loop, began, held = LiveLoop(trader, KillSwitch(folder / "stop.json"), 0.05), time.monotonic(), list[float]()
        while len(held) <= hours:
            loop.poll()
            if (time.monotonic() - began) * SPEED >= len(held) * 3600:
                held.append(resident_mb())
            time.sleep(0.05)
    warm = max(1, hours // 6)
    slope = float(np.polyfit(np.arange(warm, len(held)), held[warm:], 1)[0]) if len(held) > warm + 1 else float("nan")
    print(
        f"{hours} simulated hours at {SPEED:g} x, {trader.record.bars} bars, {sum(trader.record.orders.values())} orders: "
        f"memory {held[warm]:.1f} MB after {warm} h, {held[-1]:.1f} MB at the end, {slope:+.3f} MB an hour (limit 1)"
    )


def main() -> None:
    """Run both."""
    logging.disable(logging.WARNING)
    hours = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as here:
        (Path(here) / "latency").mkdir()
        latency(Path(here) / "latency")
        (Path(here) / "soak").mkdir()
        soak(Path(here) / "soak", hours)


if __name__ == "__main__":
    main()
