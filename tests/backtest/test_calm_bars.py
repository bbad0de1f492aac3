"""A bar at which nothing happens is played at once: deals, equity and its lowest values are those of the long way."""

from dataclasses import replace

import numpy as np
import pytest

from btcbot.backtest import playback
from btcbot.backtest.backtester import Backtester
from btcbot.core.steps import IS_COMPILED
from btcbot.market.clock import utc_ms
from btcbot.market.profile import PROFILES
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.base import Strategy
from btcbot.strategies.rules import make_strategy


@pytest.mark.skipif(IS_COMPILED, reason="replaces a kernel, which compiled code wouldn't notice")
@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize(
    "strategy",
    [
        make_strategy("ma-crossover", fast=5, slow=20, risk=0.03),
        make_strategy("volatility-breakout", channel=20, atr=20, strength=0.5, risk=0.03, trailing=3.0, break_even=2.0, hold=90),
        make_strategy("volatility-breakout", channel=20, atr=20, strength=0.5, risk=0.03, trailing=np.nan, break_even=1.0, take_profit=4.0),
    ],
    ids=str,
)
def test_the_short_way_is_the_long_way(name: str, strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = replace(PROFILES[name], deposit=50_000.0)
    bars = synthetic_bars(4, utc_ms("2024-03-04"), utc_ms("2024-03-06"), digits=profile.symbol.digits)
    runs = []
    for is_short in (True, False):
        if not is_short:
            monkeypatch.setattr(playback, "is_waiting_nb", lambda *_: False)
        runs.append(Backtester(profile).run(strategy, bars))
    short, long = runs
    assert len(short.deals) > 4
    assert short.deals.equals(long.deals)
    assert short.equity.equals(long.equity)
    np.testing.assert_array_equal(short.low, long.low)
    assert (short.exposure, short.halted_at, short.refusals) == (long.exposure, long.halted_at, long.refusals)
