"""The twin in virtual time: years of minutes in one call, with a position, stops and pending orders open. Prints a ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pandas as pd

from btcbot.market.clock import server_clock, utc_ms
from btcbot.market.profile import broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.terminal.contract import C
from btcbot.terminal.tape import Market, market_from_bars
from btcbot.terminal.twin import Twin

ROUNDS = 5
PROFILE = replace(broker_profile("crypto-24x7"), deposit=1_000_000.0)
HOUR = {"open": "first", "high": "max", "low": "min", "close": "last", "tick_volume": "sum", "spread": "min", "real_volume": "sum"}


def armed(market: Market) -> Twin:
    """Return a twin with a position with both stops and six pending orders, all too far away to be reached soon."""
    twin = Twin(market, PROFILE)
    twin.initialize()
    tick = twin.symbol_info_tick("BTCUSD")
    assert tick is not None
    bid, ask = round(tick.bid), round(tick.ask)
    base = {"symbol": "BTCUSD", "volume": 0.01, "sl": round(bid * 0.01, 2), "tp": bid * 90.0}
    sent = [twin.order_send(base | {"action": C.TRADE_ACTION_DEAL, "type": C.ORDER_TYPE_BUY})]
    pending = {"action": C.TRADE_ACTION_PENDING, "type_filling": C.ORDER_FILLING_RETURN, "symbol": "BTCUSD", "volume": 0.01}
    for k in range(3):
        sent.append(twin.order_send(pending | {"type": C.ORDER_TYPE_BUY_LIMIT, "price": round(bid * (0.002 + 0.001 * k), 2)}))
        sent.append(twin.order_send(pending | {"type": C.ORDER_TYPE_BUY_STOP, "price": round(ask * (50.0 + k), 2)}))
    assert all(answer is not None and answer.retcode == C.TRADE_RETCODE_DONE for answer in sent), sent
    return twin


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Time one call: by the clock on the wall and by the processor's."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def main() -> None:
    """Compare in turns, so that a busy machine slows both."""
    bars = synthetic_bars(1, utc_ms("2019-01-01"), utc_ms("2024-03-01"))
    market = market_from_bars(bars, "M1", 2, server_clock("UTC"))
    armed(market).advance(100)  # compiles, or loads what is compiled
    ours, peer = [], []
    for _ in range(ROUNDS):
        twin = armed(market)
        ours.append(seconds(partial(twin.advance, len(bars))))
        assert (twin.positions_total(), twin.orders_total()) == (1, 6)
        peer.append(seconds(lambda: bars.resample("1h").agg(HOUR)))
    wall, used = (statistics.median(times) for times in zip(*ours, strict=True))
    rate = f"{len(bars) / wall / 1e6:.1f} million bars/s, {len(bars) / used / 1e6:.1f} million in a second of the processor"
    print(f"twin, {len(bars):,} bars of 4 ticks in one call: {wall:.2f} s, {rate}")
    ratio = statistics.median(a[1] / b[1] for a, b in zip(ours, peer, strict=True))
    print(f"ratio to pandas {pd.__version__} joining the same bars to hours, in processor time: {ratio:.2f}")


if __name__ == "__main__":
    main()
