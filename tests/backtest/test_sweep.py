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
from btcbot.backtest.simple import SIMPLE_METRICS, SimpleAccount, SimpleRules, SimpleTier
from btcbot.backtest.statistics import key_figures
from btcbot.backtest.sweep import sweep
from btcbot.core.errors import BtcbotError
from btcbot.core.jit import F8, I8, kernel
from btcbot.engine.risk import BREAK_EVEN, TARGET_ID, TARGET_SIDE
from btcbot.features.engineering import FeatureEngineering
from btcbot.market.bars import bar_block, time_index, time_ms
from btcbot.strategies.arrays import TargetArrays
from btcbot.strategies.base import Strategy

pytestmark = pytest.mark.jit
FAST, SLOW, LEVEL, STOP = Parameter("fast"), Parameter("slow"), Parameter("level"), Parameter("stop")
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
RANGE = {"atr": {"n": 5}}
SHAPES: tuple[dict[str, Any], ...] = (
    {"unit": RANGE, "stop": STOP},
    {"unit": RANGE, "trailing": STOP, "take_profit": 6.0},
    {"unit": RANGE, "stop": STOP, "trailing": 2.0, "take_profit": 4.0, "risk": 0.02},
    {"take_profit": 2.0},
    {"stop": STOP, "risk": 0.01},
    {"unit": "close", "stop": 0.03, "trailing": 0.02},
)
VALUES: dict[str, Any] = {"level": [45.0, 50.0], "stop": [1.0, 3.0]}


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
    price: float = 0.0  # Of the entry
    best: float = 0.0  # Since the entry
    shares: tuple[float, float, float] = (np.nan, np.nan, np.nan)  # Stop, target and trailing stop, of the price

    @property
    def side(self) -> int:
        """Return the sign of the position."""
        return int(np.sign(self.units))

    def close(self, price: float, fee: float) -> float:
        """Sell or buy back; return what the trade made."""
        self.cash += self.units * price - abs(self.units) * price * fee
        self.units = 0.0
        return self.cash - self.paid

    def level(self, o: float, h: float, low: float) -> float:
        """Return where a bar ends the position, NaN if it doesn't."""
        stop, take, trail = self.shares
        side, reached = self.side, (low, h) if self.side > 0 else (h, low)
        for level in sorted((self.price * (1 - side * stop), self.best * (1 - side * trail)), key=lambda x: -side * x):
            if side * o <= side * level:
                return o
            if side * reached[0] <= side * level:
                return level
        level = self.price * (1 + side * take)
        if side * o >= side * level:
            return o
        if side * reached[1] >= side * level:
            return level
        self.best = max(self.best, h) if side > 0 else min(self.best, low)
        return np.nan


def plain(strategy: RuleStrategy, account: SimpleAccount, point: dict[str, Any], bars: pd.DataFrame, minutes: int) -> dict[str, float]:
    """Return the figures of one combination, bar by bar."""
    enters, leaves = (truth(rule, point, bars, minutes) for rule in strategy.rules)
    unit = column(strategy.unit, point, bars, minutes)
    size, *distances = (float(filled(value, point)) for value in strategy.plan[:4])
    opens, highs, lows, closes = (bars[name].to_numpy() for name in ("open", "high", "low", "close"))
    book, wanted, order, entered = Book(), 0, 0, 0
    equity, trades, held = list[Any](), list[Any](), 0
    for t in range(len(bars)):
        price, exit_price = opens[t], book.level(opens[t], highs[t], lows[t]) if book.units and t > entered else np.nan
        if not np.isnan(exit_price):
            trades.append(book.close(exit_price, account.fee))
        elif order != wanted:
            if book.units:
                trades.append(book.close(price, account.fee))
            if order and book.cash > 0:
                book.shares = tuple(distance * unit[t - 1] / price for distance in distances)
                part = account.fraction if strategy.risk is None else min(account.fraction, size / book.shares[0])
                book.paid, units = book.cash, part * book.cash / (price * (1 + account.fee))
                book.units, book.price, book.best, entered = order * units, price, price, t
                book.cash -= book.units * price + units * price * account.fee
        wanted = order
        equity.append(book.cash + book.units * closes[t])
        held += book.units != 0
        if enters[t] and not leaves[t]:
            order = 1 if strategy.side != "short" else -1
        elif leaves[t] and not enters[t]:
            order = -1 if strategy.side == "both" else 0
        if book.units == 0 and book.cash <= 0:
            order = wanted
    series = pd.Series(equity, bars.index)
    figures = key_figures(series, series.to_numpy(np.float64), np.round(trades, 12), 1.0, held / len(bars))
    peak = np.maximum.accumulate(np.append(1.0, equity))[1:]
    return figures | {"maximum drawdown": min(float((np.array(equity) / peak).min()) - 1, 0.0)}


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 700),
    minutes=st.sampled_from([1, 5, 15, 30]),
    tick=st.sampled_from([0.3, 1.0, 4.0]),
    rules=st.sampled_from(RULES),
    side=st.sampled_from(["long", "short", "both"]),
    fee=st.sampled_from([0.0, 0.001, 0.05]),
    fraction=st.sampled_from([1.0, 0.3]),
    shape=st.sampled_from(({}, *SHAPES)),
)
def test_equals_a_plain_loop(
    seed: int,
    n: int,
    minutes: int,
    tick: float,
    rules: tuple[Rule, Rule | None],
    side: str,
    fee: float,
    fraction: float,
    shape: dict[str, Any],
) -> None:
    """All figures of all combinations, whatever the rule, the side, the stops and the account."""
    bars = market(seed, n, minutes, tick)
    strategy = RuleStrategy(*rules, side=side, timeframe=f"M{minutes}", **shape)
    values = VALUES | {"fast": [2, 3, 7], "slow": [3, 20]}
    account = SimpleAccount(fee, fraction)
    found = sweep(strategy, {name: values[name] for name in strategy.parameters}, bars, account=account, workers=1)
    table = found.table
    np.testing.assert_allclose(found.returns.sum(axis=1), found.moments[:, 0], rtol=1e-5, atol=1e-5)
    for row in table.to_dict("records"):
        point = {name: row[name] for name in strategy.parameters}
        expected = plain(strategy, account, point, bars, minutes)
        assert row["trades"] == expected["trades"], point
        figures, wanted = [row[name] for name in SIMPLE_METRICS], [expected[name] for name in SIMPLE_METRICS]
        if wanted[0] > -1:
            # A sweep's variance is a difference of sums: a huge Sharpe ratio takes its last digits.
            near = 1e-9 + 1e-15 * wanted[4] ** 2 / 365
            np.testing.assert_allclose(np.delete(figures, 4), np.delete(wanted, 4), rtol=1e-9, atol=1e-9, err_msg=str(point))
            np.testing.assert_allclose(figures[4], wanted[4], rtol=near, atol=1e-9, err_msg=str(point))
        else:
            np.testing.assert_allclose(np.delete(figures, 4), np.delete(wanted, 4), rtol=1e-9, atol=1e-9, err_msg=str(point))


@pytest.mark.parametrize("side", ["long", "short", "both"])
@pytest.mark.parametrize("shape", [{}, *SHAPES])
def test_the_same_strategy_said_in_three_ways(side: str, shape: dict[str, Any]) -> None:
    """Rules, the compiled strategy that they are, and its targets given as arrays: the same bytes, with one thread and with more."""
    bars = market(8, 3000, 5, 1.0).assign(tick_volume=0, spread=0, real_volume=0)
    strategy = RuleStrategy(*RULES[0], side=side, timeframe="M5", **shape)
    values = VALUES | {"fast": [2, 9], "slow": [20, 30]}
    grid = {name: values[name] for name in strategy.parameters}

    def compiled(**point: float) -> Strategy:
        return strategy.at(point)

    def arrays(bars: pd.DataFrame, **point: float) -> TargetArrays:
        return TargetArrays("arrays", time_ms(bars.index), strategy.at(point).streamed().update(bar_block(bars)), {}, "M5")

    account = SimpleAccount(0.001, 0.7)
    expected = sweep(strategy, grid, bars, account=account, workers=1)
    assert expected.table["trades"].min() > 20
    for way, workers in ((compiled, 1), (compiled, 3), (arrays, 1), (arrays, 2)):
        found = sweep(way, grid, bars, account=account, workers=workers, timeframe="M5", memory=1 << 20)
        assert expected.table.equals(found.table), found.tier
        assert (expected.moments == found.moments).all()


def test_stops_out_of_reach_change_nothing() -> None:
    """The kernel of stops and that of bare events agree to the last bit."""
    bars = market(3, 4000, 1, 1.0)
    grid = {"fast": [2, 3, 9], "slow": [20, 30]}
    for side in ("long", "short", "both"):
        bare, far = (sweep(RuleStrategy(*RULES[0], side=side, stop=stop), grid, bars).table for stop in (np.nan, 1e6))
        assert bare.equals(far)


@pytest.mark.parametrize("side", ["long", "both"])
@pytest.mark.parametrize(("rules", "shape"), [(rules, {}) for rules in RULES[:4]] + [(RULES[0], shape) for shape in SHAPES[1:3]])
def test_same_bytes_however_the_work_is_cut(
    rules: tuple[Rule, Rule | None], shape: dict[str, Any], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks, segments, tiles, chunks, order of combinations and threads change no bit."""
    bars = market(5, 5000, 1, 1.0)
    strategy = RuleStrategy(*rules, side=side, **shape)
    values = VALUES | {"fast": range(2, 9), "slow": range(3, 60, 4)}
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
    tier = SimpleRules(RuleStrategy(*RULES[0]), market(1, 10, 1, 1.0), SimpleAccount(), memory=64 << 20)
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


@kernel
def parity_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    """Ask each hour for the other side; the first target has a break-even, and where that wants no position, so have the last ones."""
    for i in range(block.shape[0]):
        k = state_i[0] // 60
        out[i, TARGET_ID], out[i, TARGET_SIDE] = k, params[0] if k == 0 else 1 - 2 * (k % 2) if k < 4 else 0.0
        if k == 0 or (k >= 4 and params[0] == 0):
            out[i, BREAK_EVEN] = 1.0
        state_i[0] += 1


@pytest.mark.parametrize("side", [1.0, 0.0])
def test_one_target_that_the_account_does_not_know_is_enough(side: float) -> None:
    """It is refused whatever follows it; where no position is wanted, there is nothing to know."""

    def make(side: float) -> Strategy:
        return Strategy("parity", parity_nb, {"side": side}, 0, 1, 0)

    def run() -> float:
        return float(sweep(make, {"side": [side]}, market(4, 400, 1, 1.0), account=SimpleAccount(0.0)).table["trades"].iloc[0])

    if side == 0:
        assert run() > 0
    else:
        with pytest.raises(BtcbotError, match="a break-even"):
            run()
