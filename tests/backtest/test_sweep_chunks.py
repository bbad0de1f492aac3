"""Chunks of a sweep in other processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pandas as pd
import pytest
from test_sweep import LEVEL, RULES, SLOW, market

from btcbot.backtest.rules import RuleStrategy
from btcbot.backtest.simple import SimpleAccount
from btcbot.backtest.sweep import sweep
from btcbot.market.profile import BrokerProfile, broker_profile

READ = partial(market, 3, 500, 5, 1.0)


@pytest.mark.parametrize("account", [SimpleAccount(), broker_profile("crypto-24x7")], ids=["simple", "broker"])
@pytest.mark.parametrize("travels", [True, False], ids=["bars", "reader"])
def test_processes_give_the_bytes_of_one(account: SimpleAccount | BrokerProfile, travels: bool) -> None:
    """Nothing but what `pickle` carries reaches a fresh interpreter."""
    rules = RuleStrategy(*RULES[2], timeframe="M5")
    grid: dict[str, list[float]] = {SLOW.name: [4, 9], LEVEL.name: [40.0, 45.0]}
    bars: pd.DataFrame | Callable[[], pd.DataFrame] = full() if travels else full
    here = sweep(rules, grid, full(), account=account, workers=1)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        there = sweep(rules, grid, bars, account=account, map=pool.map, parts=3)
    assert here.figures["trades"].max() > 0
    assert here.figures.to_numpy().tobytes() == there.figures.to_numpy().tobytes()
    assert here.moments.tobytes() == there.moments.tobytes()


def full() -> pd.DataFrame:
    """Return bars with all their columns."""
    return READ().assign(tick_volume=0, spread=0, real_volume=0)
