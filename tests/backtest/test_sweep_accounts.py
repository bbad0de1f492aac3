"""Each row of a sweep under a broker's conditions is that combination's backtest: deals, money to the cent, figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from breathing import breathing

from btcbot.backtest.backtester import Result
from btcbot.backtest.rules import Above, Below, Crosses, Parameter, RuleStrategy
from btcbot.backtest.statistics import daily_returns
from btcbot.backtest.sweep import Sweep, sweep
from btcbot.core.errors import BtcbotError
from btcbot.engine.limits import RiskLimits
from btcbot.market.clock import utc_ms
from btcbot.market.profile import PROFILES
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.rules import moving_average_crossover, volatility_breakout

pytestmark = pytest.mark.jit
FAST, SLOW, LEVEL, STOP = (Parameter(name) for name in ("fast", "slow", "level", "stop"))
SMA, SLOWER, RSI, ATR = {"sma": {"n": FAST}}, {"sma": {"n": SLOW}}, {"rsi": {"n": FAST}}, {"atr": {"n": 14}}
HOURLY = {"sma": {"n": 3}, "on": "H1"}
WAYS: dict[str, Any] = {
    "crossover": RuleStrategy(Crosses(SMA, SLOWER), lots=0.5),
    "reversing, all exits": RuleStrategy(
        Crosses(SMA, SLOWER), side="both", unit=ATR, stop=STOP, take_profit=4.0, trailing=2.5, break_even=1.0, hold=90.0, risk=0.02
    ),
    "short, percent": RuleStrategy(
        Above(RSI, LEVEL) & Below("close", HOURLY), Below(RSI, 50.0) | Above("close", SLOWER), "short", unit="close", stop=0.004, lots=2.0
    ),
    "long without limits": RuleStrategy(Below(RSI, LEVEL), Above(RSI, 60.0), lots=9.0),
    "compiled crossover": lambda fast, slow, stop: moving_average_crossover(fast=fast, slow=slow, atr=30, stop=stop, risk=0.02),
    "compiled breakout": lambda fast, slow: volatility_breakout(channel=fast, atr=slow, strength=0.5, hold=60, risk=0.02),
}
VALUES = {"fast": [3, 8, 21], "slow": [34, 55, 89], "level": [35.0, 48.0, 61.0], "stop": [1.5, 3.0, 6.0]}


def check(found: Sweep, row: int) -> Result:
    """Compare one row with its backtest."""
    result, has = found.result(row), found.table.loc[row]
    deals, figures = result.deals, result.figures
    assert has["trades"] == figures["trades"]
    end = round(result.equity.iloc[-1] * 100)
    assert round((1 + has["net return"]) * result.profile.deposit * 100, 4) == end
    np.testing.assert_allclose(found.returns[row], daily_returns(result.equity, result.profile.deposit), rtol=1e-6, atol=1e-9)
    assert round(has["commission and swap"], 4) == round(float(deals[["commission", "swap"]].to_numpy().sum()), 2)
    for name in ("win rate", "maximum drawdown", "Sharpe ratio", "profit factor", "exposure", "expectancy"):
        np.testing.assert_allclose(has[name], figures[name], rtol=1e-9, atol=1e-12, err_msg=name)
    return result


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_row_is_its_backtest(name: str) -> None:
    """Under each profile, all ways, points at random, dirty bars; more than 200 in all."""
    rng = np.random.default_rng(sorted(PROFILES).index(name))
    profile = replace(PROFILES[name], deposit=float(rng.choice([400.0, 20_000.0, 300_000.0])))
    bars = synthetic_bars(int(rng.integers(99)), utc_ms("2024-03-06"), utc_ms("2024-03-13"), digits=profile.symbol.digits)
    bars.iloc[[500, 3000], 1] *= 3.0  # Spikes that features don't see
    limits = RiskLimits(max_drawdown=0.6, max_daily_loss=0.2)
    seen, trades = 0, 0
    for strategy in WAYS.values():
        names = strategy.parameters if isinstance(strategy, RuleStrategy) else list(strategy.__code__.co_varnames)
        points = pd.DataFrame({key: rng.choice(VALUES[key], 5) for key in names})
        found = sweep(strategy, points, bars, account=profile, limits=limits, trade_from="2024-03-07", workers=2)
        assert found.tier == ("comparison rules" if isinstance(strategy, RuleStrategy) else "compiled steps")
        for row in range(len(points)):
            trades += len(check(found, row).trades)
            seen += 1
    assert seen == 30
    assert trades > 100


def test_positions_brought_to_a_size() -> None:
    """On a netting account a row is its backtest; on a hedging account, where a row would hold several positions, it is refused."""
    bars = synthetic_bars(8, utc_ms("2024-03-06"), utc_ms("2024-03-09"))
    points = {"risk": [0.0005, 0.002], "stop": [0.003, 0.01]}
    hedging, netting = (replace(PROFILES["crypto-24x7"], deposit=100_000.0, margin_mode=mode) for mode in ("hedging", "netting"))
    found = sweep(breathing, points, bars, account=netting)
    for row in range(4):
        deals = check(found, row).deals
        assert deals.groupby("position").size().max() > 3
    with pytest.raises(BtcbotError, match="bring a position to a size"):
        sweep(breathing, points, bars, account=hedging)


def test_same_bytes_however_the_work_is_cut() -> None:
    """Pieces of history, batches and threads change no bit."""
    bars = synthetic_bars(4, utc_ms("2024-03-06"), utc_ms("2024-03-10"))
    for name in ("reversing, all exits", "compiled crossover"):
        grid = {key: VALUES[key] for key in ("fast", "slow", "stop")}
        tables = [
            sweep(WAYS[name], grid, bars, account=PROFILES["crypto-24x7"], workers=workers, memory=memory).table
            for workers, memory in ((1, 1 << 28), (3, 1 << 28), (2, 1 << 15))
        ]
        assert tables[0].equals(tables[1])
        assert tables[0].equals(tables[2])


def test_overfitting_and_deflation_are_those_of_the_daily_returns() -> None:
    """The sums that a sweep keeps give what the returns themselves give."""
    from btcbot.backtest.overfitting import probability_of_overfitting
    from btcbot.backtest.statistics import expected_maximum_sharpe, probabilistic_sharpe_ratio

    bars = synthetic_bars(4, utc_ms("2024-01-01"), utc_ms("2024-02-20"), timeframe_ms=900_000)
    strategy = replace(WAYS["crossover"], timeframe="M15")
    found = sweep(strategy, {"fast": [3, 8, 21], "slow": [34, 55]}, bars, account=PROFILES["crypto-24x7"])
    results = [found.result(row) for row in range(len(found.table))]
    returns = np.column_stack([daily_returns(r.equity, r.profile.deposit) for r in results])
    np.testing.assert_allclose(found.returns.T, returns, rtol=1e-6, atol=1e-9)
    expected, measured = probability_of_overfitting(returns), found.overfitting()
    assert measured.probability == expected.probability
    np.testing.assert_allclose(measured.outside, expected.outside, rtol=1e-9, atol=1e-12)
    daily = returns.mean(axis=0) / returns.std(axis=0, ddof=1)
    best = int(daily.argmax())
    chosen = returns[:, best]
    skewness, kurtosis = (float(((chosen - chosen.mean()) ** k).mean() / chosen.std() ** k) for k in (3, 4))
    hurdle = expected_maximum_sharpe(len(daily) + 7, float(daily.var(ddof=1)))
    wanted = probabilistic_sharpe_ratio(float(daily[best]), len(chosen), skewness, kurtosis, hurdle)
    assert found.deflated_sharpe(trials=7) == pytest.approx(wanted, rel=1e-9)
