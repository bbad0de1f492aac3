"""Markets without an edge, and markets with one whose size is known: what the bench of the statistics runs on."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from btcbot.backtest.rules import Above, Below, Crosses, Parameter, RuleStrategy

F8 = NDArray[np.float64]
YEARS = 4
RULES = 200
FEE = 0.0003  # Of the value of each fill: spread and slippage of a quiet market
HOURS = 24 * 365 * YEARS
START = "2020-01-01"

CROSSING = RuleStrategy(
    Crosses({"sma": {"n": Parameter("fast")}}, {"sma": {"n": Parameter("slow")}}), side="both", timeframe="H1", name="crossing"
)
GRID = {"fast": list(range(2, 42, 2)), "slow": list(range(50, 250, 20))}
# Rules that hardly resemble each other: long for a day if some day, so many days ago, rose, and short if it fell.
_DAY = {"roc": {"n": 1}, "on": "D1", "lag": Parameter("lag")}
APART = RuleStrategy(Above(_DAY, 0.0), Below(_DAY, 0.0), side="both", timeframe="H1", name="apart")
APART_GRID = {"lag": list(range(RULES))}
LAG = 6  # The one of them that has an edge, where there is one


def null_matrix(rng: np.random.Generator, days: int = 365 * YEARS, rules: int = RULES) -> F8:
    """Return daily returns of correlated rules with fat tails, quiet and wild times, and unequal costs; none has an edge."""
    wild = np.exp(volatility(rng, days, 0.97, 0.15))[:, None]
    shared, own = rng.standard_t(4, (days, 6)), rng.standard_t(4, (days, rules))
    likeness = rng.uniform(0.3, 0.95, rules)
    mixed = likeness * (shared @ rng.normal(size=(6, rules)) / np.sqrt(6)) + np.sqrt(1 - likeness**2) * own
    return 0.01 * wild * mixed - rng.choice([0.0, 0.00005, 0.0002, 0.001], rules)


def volatility(rng: np.random.Generator, n: int, memory: float, size: float) -> F8:
    """Return the logarithm of a volatility that wanders about its mean."""
    steps = rng.normal(0, size, n)
    out, now = np.empty(n), steps[0] / np.sqrt(1 - memory**2)
    for i in range(n):
        now = memory * now + steps[i]
        out[i] = now
    return out - 0.5 * size**2 / (1 - memory**2)


def null_returns(rng: np.random.Generator, hours: int = HOURS) -> F8:
    """Return simple returns of an hour: fat tails, clusters, a daily rhythm, jumps; symmetric about 0, independent but for size."""
    wild = np.exp(np.repeat(volatility(rng, -(-hours // 24), 0.97, 0.15), 24)[:hours])
    rhythm = 1 + 0.35 * np.sin(2 * np.pi * (np.arange(hours) - 8) / 24)
    moves = 0.0055 * wild * rhythm * rng.standard_t(4, hours) / np.sqrt(2)
    jumps = (rng.random(hours) < 1 / 700) * rng.normal(0, 0.03, hours)
    return np.asarray(np.clip(moves + jumps, -0.4, 0.4))


def as_bars(returns: F8, rng: np.random.Generator, start: float = 20_000.0) -> pd.DataFrame:
    """Return bars of an hour with these simple returns; each opens where the one before closed, and reaches beyond both ends."""
    close = start * np.cumprod(1 + returns)
    opened = np.append(start, close[:-1])
    beyond = 1 + np.abs(rng.normal(0, 0.4, (2, len(close)))) * np.abs(returns)
    data = {
        "open": opened,
        "high": np.maximum(opened, close) * beyond[0],
        "low": np.minimum(opened, close) / beyond[1],
        "close": close,
        "volume": np.full(len(close), 100.0),
        "spread": np.zeros(len(close), np.int64),
    }
    return pd.DataFrame(data, index=pd.date_range(START, periods=len(close), freq="h", tz="UTC", name="time"))


def flipped(real: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return real bars of an hour with the sign of each simple return drawn anew: sizes and clusters stay, direction means nothing."""
    size = real["close"].pct_change().fillna(0.0).clip(-0.4, 0.4).to_numpy(np.float64)
    return as_bars(size * rng.choice([-1.0, 1.0], len(size)), rng)


def trending(returns: F8, rng: np.random.Generator, size: float, length: float = 96.0) -> F8:
    """Return `returns` with a drift of +-`size` of the typical hour that keeps its sign for `length` hours on average."""
    turns = rng.random(len(returns)) < 1 / length
    signs = np.where(np.cumsum(turns) % 2 == 0, 1.0, -1.0) * rng.choice([-1.0, 1.0])
    return np.asarray(returns + size * 0.0055 * signs)


def echoing(returns: F8, size: float) -> F8:
    """Return `returns` with a drift of +-`size` of the typical hour, in the direction of the day `LAG` + 1 days before."""
    days = returns.reshape(-1, 24).copy()
    for k in range(LAG + 1, len(days)):
        days[k] += size * 0.0055 * np.sign(np.prod(1 + days[k - LAG - 1]) - 1)
    return days.ravel()
