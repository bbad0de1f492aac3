"""One full backtest with every rule of the account, against pandas computing the signals alone. Prints a ratio; asserts no time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from btcbot.backtest.backtester import Backtester
from btcbot.market.clock import utc_ms
from btcbot.market.profile import broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.rules import make_strategy

ROUNDS = 5


def signals(bars: pd.DataFrame) -> pd.Series:
    """Return what a vectorised script computes before it knows of any cost: crossings, and the average true range."""
    close = bars["close"]
    side = close.rolling(120).mean() > close.rolling(480).mean()
    previous = close.shift()
    reach = pd.concat([bars["high"] - bars["low"], (bars["high"] - previous).abs(), (bars["low"] - previous).abs()], axis=1).max(axis=1)
    return side.astype("int8").diff().abs() * reach.rolling(240).mean()


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Compare in turns, so that a busy machine slows both."""
    bars = synthetic_bars(1, utc_ms("2021-01-01"), utc_ms("2024-03-01"))
    backtester = Backtester(replace(broker_profile("crypto-24x7"), deposit=100_000.0))
    strategy = make_strategy("ma-crossover")
    result = backtester.run(strategy, bars)  # compiles, or loads what is compiled
    assert len(result.deals) > 1000
    ours, peer = [], []
    for _ in range(ROUNDS):
        peer.append(seconds(lambda: signals(bars)))
        ours.append(seconds(lambda: backtester.run(strategy, bars)))
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    each = statistics.median(ours) / len(bars) * 1e9
    print(f"backtest of {len(bars):,} bars, {len(result.deals):,} deals: {statistics.median(ours):.2f} s, {each:.0f} ns a bar")
    print(f"ratio to pandas {pd.__version__} computing the signals alone: {ratio:.2f}")


if __name__ == "__main__":
    main()
