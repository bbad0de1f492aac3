"""Bootstrap intervals cover what they claim to, where days hang together; single days instead of blocks don't."""

from __future__ import annotations

import math

import numpy as np

from btcbot.backtest.bootstrap import block_length, bootstrap_intervals
from btcbot.backtest.statistics import DAYS_A_YEAR
from btcbot.core.jit import F8


def autoregression(rng: np.random.Generator, n: int, rho: float, mean: float) -> F8:
    """Return x(t) = rho x(t-1) + e(t) of standard deviation 1 %, shifted by its mean."""
    shocks, out = rng.normal(0, 0.01 * math.sqrt(1 - rho**2), n), np.empty(n)
    out[0] = rng.normal(0, 0.01)
    for t in range(1, n):
        out[t] = rho * out[t - 1] + shocks[t]
    return out + mean


def covered(rho: float, n: int, length: float | None, times: int = 200) -> float:
    """Return how often the 95 % interval holds the true Sharpe ratio of 1."""
    rng, mean, hits = np.random.default_rng(1), 0.01 / math.sqrt(DAYS_A_YEAR), 0
    for seed in range(times):
        low, high = bootstrap_intervals(autoregression(rng, n, rho, mean), 0.95, 300, seed, length)["Sharpe ratio"]
        hits += low <= 1.0 <= high
    return hits / times


def test_coverage_of_independent_days() -> None:
    assert 0.90 <= covered(0.0, 250, None) <= 0.98


def test_coverage_of_days_that_hang_together() -> None:
    by_blocks, by_days = covered(0.5, 500, None), covered(0.5, 500, 1.0)
    print(f"\nautocorrelation 0.5, 500 days: 95 % intervals cover {by_blocks:.1%} by blocks, {by_days:.1%} by single days")
    assert 0.87 <= by_blocks <= 0.98
    assert by_days < 0.82


def test_the_length_of_blocks_nears_its_formula() -> None:
    rng = np.random.default_rng(2)
    for rho in (0.2, 0.5, 0.8):
        found = np.mean([block_length(autoregression(rng, 4000, rho, 0.0)) for _ in range(20)])
        expected = (2 * rho / (1 - rho**2)) ** (2 / 3) * 4000 ** (1 / 3)
        assert 0.75 < found / expected < 1.35, (rho, found, expected)
