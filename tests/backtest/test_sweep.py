"""The sweep of comparison rules against loops over bars that nobody could misread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btcbot.backtest import masks
from btcbot.backtest.rules import Above, Below, Both, Crosses, Either, Parameter, Rule, RuleStrategy
from btcbot.backtest.simple import SIMPLE_METRICS, SimpleAccount, SimpleTier
from btcbot.backtest.statistics import key_figures
from btcbot.backtest.sweep import sweep
from btcbot.features.engineering import FeatureEngineering
from btcbot.market.bars import time_index

pytestmark = pytest.mark.jit
FAST, SLOW, LEVEL = Parameter("fast"), Parameter("slow"), Parameter("level")
SMA, SLOWER, RSI = {"sma": {"n": FAST}}, {"sma": {"n": SLOW}}, {"rsi": {"n": SLOW}}
CHANNEL = {"rolling_max": {"n": SLOW}, "of": "high", "lag": 1}
HOURLY = {"sma": {"n": 2}, "on": "H1"}
RULES: tuple[tuple[Rule, Rule | None], ...] = (
    (Crosses(SMA, SLOWER), None),
    (Above(SMA, SLOWER), None),
    (Below(RSI, LEVEL), Above(RSI, 60.0)),
    (Crosses("close", CHANNEL) & Above(RSI, LEVEL), Below("close", SMA) | Crosses(70.0, RSI)),
    (Above("close", HOURLY) & (Below(RSI, 70.0) | Crosses(SMA, "close")), Below("close", SLOWER)),
    (Above("high", SMA), Above(RSI, LEVEL)),
)


def market(seed: int, n: int, minutes: int, tick: float) -> pd.DataFrame:
    """Return bars of a random walk on coarse prices, so that values are often equal, some of them over a gap of days."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(np.where(rng.random(n) < 0.003, 3 * 86_400_000, minutes * 60_000))
    close = np.maximum(np.round(100 + rng.normal(0, tick, n).cumsum()), 5.0)
    opens = np.maximum(np.append(100.0, close[:-1]) + rng.integers(-1, 2, n), 5.0)
    high, low = np.maximum(opens, close) + rng.integers(0, 2, n), np.minimum(opens, close) - rng.integers(0, 2, n)
    return pd.DataFrame({"open": opens, "high": high, "low": low, "close": close}, time_index(steps.astype(np.int64)))


def filled(part: Any, point: dict[str, Any]) -> Any:
    """Return a side with its parameters."""
    if isinstance(part, Parameter):
        return point[part.name]
    return {key: filled(value, point) for key, value in part.items()} if isinstance(part, dict) else part


def column(side: Any, point: dict[str, Any], bars: pd.DataFrame, minutes: int) -> Any:
    """Return the values of a side at each bar, by the library's other way to compute features."""
    side = filled(side, point)
    if isinstance(side, str | dict):
        full = bars.assign(tick_volume=0, spread=0, real_volume=0)
        return FeatureEngineering([side], timeframe=f"M{minutes}").transform(full).iloc[:, 0].to_numpy(np.float64)
    return np.full(len(bars), float(side))


def truth(rule: Rule, point: dict[str, Any], bars: pd.DataFrame, minutes: int) -> Any:
    """Return where a rule holds."""
    if isinstance(rule, Both | Either):
        first, second = (truth(part, point, bars, minutes) for part in (rule.first, rule.second))
        return first & second if isinstance(rule, Both) else first | second
    assert isinstance(rule, Above | Below | Crosses)
    left, right = (column(side, point, bars, minutes) for side in (rule.left, rule.right))
    if isinstance(rule, Above):
        return left > right
    if isinstance(rule, Below):
        return left < right
    found, before = np.zeros(len(left), bool), 0
    for t, (a, b) in enumerate(zip(left, right, strict=True)):
        now = int(a > b) - int(a < b)
        found[t] = now > 0 and before < 0
        before = 0 if np.isnan(a + b) else now or before
    return found


@dataclass
class Book:
    """A purse with some units, marked at each close."""

    cash: float = 1.0
    units: float = 0.0
    paid: float = 1.0


def plain(strategy: RuleStrategy, account: SimpleAccount, point: dict[str, Any], bars: pd.DataFrame, minutes: int) -> dict[str, float]:
    """Return the figures of one combination, bar by bar."""
    enters, leaves = (truth(rule, point, bars, minutes) for rule in strategy.rules)
    opens, closes = bars["open"].to_numpy(), bars["close"].to_numpy()
    book, target, equity, trades, held = Book(), 0, [], [], 0
    for t in range(len(bars)):
        now = int(np.sign(book.units))
        if target != now:
            price = opens[t]
            if now:
                book.cash += book.units * price - abs(book.units) * price * account.fee
                book.units = 0.0
                trades.append(book.cash - book.paid)
            if target and book.cash > 0:
                book.paid, size = book.cash, account.fraction * book.cash / (price * (1 + account.fee))
                book.units = target * size
                book.cash -= book.units * price + size * price * account.fee
        equity.append(book.cash + book.units * closes[t])
        held += book.units != 0
        now = int(np.sign(book.units))
        target = now
        if enters[t] and not leaves[t]:
            target = 1 if strategy.side != "short" else -1
        elif leaves[t] and not enters[t]:
            target = -1 if strategy.side == "both" else 0
        if book.units == 0 and book.cash <= 0:
            target = 0
    series = pd.Series(equity, bars.index)
    figures = key_figures(series, series.to_numpy(np.float64), np.round(trades, 12), 1.0, held / len(bars))
    peak = np.maximum.accumulate(np.append(1.0, equity))[1:]
    return figures | {"maximum drawdown": min(float((np.array(equity) / peak).min()) - 1, 0.0)}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 700),
    minutes=st.sampled_from([1, 5, 15, 30]),
    tick=st.sampled_from([0.3, 1.0, 4.0]),
    rules=st.sampled_from(RULES),
    side=st.sampled_from(["long", "short", "both"]),
    fee=st.sampled_from([0.0, 0.001, 0.05]),
    fraction=st.sampled_from([1.0, 0.3]),
)
def test_equals_a_plain_loop(
    seed: int, n: int, minutes: int, tick: float, rules: tuple[Rule, Rule | None], side: str, fee: float, fraction: float
) -> None:
    """All figures of all combinations, whatever the rule, the side and the account."""
    bars = market(seed, n, minutes, tick)
    strategy = RuleStrategy(*rules, side=side, timeframe=f"M{minutes}")
    values = {"fast": [2, 3, 7], "slow": [3, 20], "level": [45.0, 50.0]}
    account = SimpleAccount(fee, fraction)
    table = sweep(strategy, {name: values[name] for name in strategy.parameters}, bars, account=account, workers=1).table
    for row in table.to_dict("records"):
        point = {name: row[name] for name in strategy.parameters}
        expected = plain(strategy, account, point, bars, minutes)
        assert row["trades"] == expected["trades"], point
        found, wanted = [row[name] for name in SIMPLE_METRICS], [expected[name] for name in SIMPLE_METRICS]
        if wanted[0] > -1:
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9, err_msg=str(point))
        else:
            np.testing.assert_allclose(np.delete(found, 4), np.delete(wanted, 4), rtol=1e-9, atol=1e-9, err_msg=str(point))


@pytest.mark.parametrize("side", ["long", "both"])
@pytest.mark.parametrize("rules", RULES[:4])
def test_same_bytes_however_the_work_is_cut(rules: tuple[Rule, Rule | None], side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, segments, tiles, chunks, order of combinations and threads change no bit."""
    bars = market(5, 5000, 1, 1.0)
    strategy = RuleStrategy(*rules, side=side)
    values = {"fast": range(2, 9), "slow": range(3, 60, 4), "level": [45.0, 50.0]}
    grid = {name: values[name] for name in strategy.parameters}
    whole = sweep(strategy, grid, bars, workers=1).table
    assert whole.equals(sweep(strategy, grid, bars, workers=3).table)
    order = np.random.default_rng(1).permutation(len(whole))
    shuffled = sweep(strategy, whole[strategy.parameters].iloc[order], bars, workers=2).table
    assert whole.iloc[order].reset_index(drop=True).equals(shuffled)
    assert whole.equals(sweep(strategy, grid, bars, workers=1, memory=1 << 14).table)
    for block, parts in ((64, 1), (128, 3), (1984, 1)):
        monkeypatch.setattr(SimpleTier, "shape", lambda self, rows, block=block, parts=parts: (block * parts, block))
        monkeypatch.setattr(masks, "TILE", parts)
        assert whole.equals(sweep(strategy, grid, bars, workers=1).table)


def test_memory_does_not_grow_with_the_grid() -> None:
    """A chunk's states and a segment's rows stay within the bound, whatever the number of features."""
    tier = SimpleTier(RuleStrategy(*RULES[0]), market(1, 10, 1, 1.0), SimpleAccount(), memory=64 << 20)
    for rows in (1, 48, 49, 1000):
        size, block = tier.shape(rows)
        assert size % block == 0
        assert size == block or size * (rows + 30) * 8 <= 16 << 20
    assert tier.chunk * 1024 <= 32 << 20


def test_a_short_that_loses_everything_ends() -> None:
    """Equity stays at what was left, and nothing is traded any more."""
    close = np.array([10.0, 10, 10, 30, 30, 10, 10, 30, 10, 10])
    bars = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), close), time_index(np.arange(10, dtype=np.int64) * 60_000))
    table = sweep(RuleStrategy(Below("close", 20.0), side="short"), {}, bars, account=SimpleAccount(0.0)).table
    assert table["trades"].tolist() == [1.0]
    assert table["net return"].tolist() == [-2.0]
