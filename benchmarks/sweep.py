"""Sweeps against vectorbt with its Rust engine, in turns; results are compared before any time is quoted.

Moving-average crossovers on a simple account, without stops and with trailing stops, targets and sizes by risk, equal in every figure;
the same under a broker's conditions; compiled strategies and Python functions; ten thousand combinations over three years.

Against vectorbt, seconds are those of the work of one core, so that a busy machine slows neither. `BTCBOT_VECTORBT` names the interpreter
of an environment that has vectorbt and vectorbt-rust (default: this one). Prints ratios.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 3
BARS = 525_600
FEE, CASH, UNITS = 0.0005, 1e6, 1.0
STOP, REACH, RISK = 8.0, 240, 0.02  # Trailing stop, in true ranges averaged over so many bars, and the share of the equity it may cost
REAL = Path(__file__).parents[2] / "shared" / "data" / "bitfinex_btcusd_1m"
FIGURES = ("net return", "trades", "win rate", "maximum drawdown", "Sharpe ratio", "profit factor")


def pairs(n: int) -> Any:
    """Return the first `n` pairs of windows from 20 bars up in tens, fast and slow, of as few windows as hold so many."""
    k = 2
    while k * (k - 1) // 2 < n:
        k += 1
    windows = np.arange(2, k + 2) * 10
    return np.array([(a, b) for i, a in enumerate(windows) for b in windows[i + 1 :]])[:n]


# The peer, in an interpreter of its own. It is given what makes it fast: contiguous arrays, chunks, its own compiled functions called
# directly, and only what the six figures need.


class Best:
    """Calls vectorbt's compiled functions on raw arrays, a few combinations at once."""

    def __init__(self, data: Any, chunk: int):
        from vectorbt.generic import dispatch as generic
        from vectorbt.portfolio import dispatch as portfolio
        from vectorbt.records import dispatch as records

        self.generic, self.portfolio, self.records, self.chunk = generic, portfolio, records, chunk
        self.close, self.open, self.high, self.low = (data[name].reshape(-1, 1) for name in ("close", "open", "high", "low"))
        self.stop, days = None, data["days"]
        self.ends = np.flatnonzero(np.append(days[1:] != days[:-1], True))
        self.sequences = {k: np.zeros((len(self.close), k), np.int64) for k in range(1, chunk + 1)}

    def averages(self, windows: Any) -> dict[int, Any]:
        """Return the moving averages."""
        return {int(n): np.asarray(self.generic.rolling_mean(self.close, int(n), engine="rust"))[:, 0] for n in windows}

    def run(self, points: Any) -> Any:
        """Return six figures for each combination."""
        rows = self.averages(np.unique(points))
        return np.vstack([self._chunk(points[a : a + self.chunk], rows) for a in range(0, len(points), self.chunk)])

    def _chunk(self, points: Any, rows: dict[int, Any]) -> Any:
        k, p, engine = len(points), self.portfolio, "rust"
        shape = (len(self.close), k)
        fast, slow = (np.stack([rows[n] for n in points[:, j]], axis=1) if k > 1 else rows[points[0, j]][:, None] for j in (0, 1))
        entries, exits = np.zeros(shape, bool), np.zeros(shape, bool)
        entries[1:] = self.generic.crossed_above(fast, slow, engine=engine)[:-1]  # Decided at a bar, filled at the next
        exits[1:] = self.generic.crossed_above(slow, fast, engine=engine)[:-1]
        cash, close = np.full(k, CASH), np.ascontiguousarray(np.broadcast_to(self.close, shape))
        orders, _ = p.simulate_from_signals(
            shape,
            np.ones(k, np.int64),
            cash,
            self.sequences[k],
            long_entries=entries,
            long_exits=exits,
            price=self.open,
            fees=np.asarray(FEE),
            close=self.close,
            use_stops=self.stop is not None,
            **(
                {}
                if self.stop is None
                else {
                    "size": np.minimum(RISK / self.stop, 1.0),
                    "size_type": np.asarray(2),  # A share of the cash
                    "open": self.open,
                    "high": self.high,
                    "low": self.low,
                    "sl_stop": self.stop,
                    "sl_trail": np.asarray(True),
                    "tp_stop": 3 * self.stop,
                    "stop_entry_price": np.asarray(2),
                }
            ),
            max_orders=len(self.close) // 16 * k,
            max_logs=1,
            flex_2d=True,
            engine=engine,
        )
        columns = self.records.col_map(orders["col"].astype(np.int64), k, engine=engine)
        trades = p.get_exit_trades(orders, close, columns, engine=engine)
        trades = trades[trades["status"] == 1]
        pnl, column = trades["pnl"], trades["col"]
        counts, wins, gains, losses = (np.bincount(column, w, k) for w in (None, pnl > 0, np.maximum(pnl, 0), np.maximum(-pnl, 0)))
        held = p.assets(p.asset_flow(shape, orders, columns, 2, engine=engine), engine=engine)
        purse = p.cash(p.cash_flow(shape, orders, columns, False, engine=engine), cash, engine=engine)
        value = np.asarray(p.value(purse, p.asset_value(close, held, engine=engine), engine=engine))
        depth = np.maximum.accumulate(value, axis=0)
        np.divide(value, depth, out=depth)
        marks = np.vstack([cash, value[self.ends]])
        daily = marks[1:] / marks[:-1] - 1
        sharpe = daily.mean(axis=0) / daily.std(axis=0, ddof=1) * 365**0.5
        return np.column_stack([value[-1] / CASH - 1, counts, wins / counts, depth.min(axis=0) - 1, sharpe, gains / losses])


def usual(data: Any, points: Any) -> Any:
    """Return the figures as vectorbt's documentation computes them; its Sharpe ratio is that of minutes."""
    import pandas as pd
    import vectorbt as vbt

    index = pd.date_range("2023-01-01", periods=len(data["close"]), freq="min")
    close, opens = pd.Series(data["close"], index), pd.Series(data["open"], index)
    fast, slow = (vbt.MA.run(close, list(points[:, j]), short_name=name) for j, name in enumerate(("fast", "slow")))
    entries, exits = fast.ma_crossed_above(slow), fast.ma_crossed_below(slow)
    entries, exits = entries.vbt.signals.fshift(1), exits.vbt.signals.fshift(1)
    book = vbt.Portfolio.from_signals(close, entries, exits, price=opens, fees=FEE, init_cash=CASH, freq="1min")
    closed = book.trades.closed
    columns = (book.total_return(), closed.count(), closed.win_rate(), book.max_drawdown(), book.sharpe_ratio(), closed.profit_factor())
    return np.column_stack([np.asarray(column, np.float64) for column in columns])


def serve(folder: Path) -> None:
    """Answer each line `way n` with the seconds it took; leave the results in the folder."""
    data, best = {}, None
    for line in sys.stdin:
        way, *numbers = line.split()
        points = pairs(int(numbers[0]))
        began = time.process_time()
        if way == "read":
            data, best, found = dict(np.load(folder / "data.npz")), None, np.zeros(0)
        elif way == "usual":
            found = usual(data, points)
        else:
            best = best or Best(data, 1)
            best.stop = data["stop"].reshape(-1, 1) if way == "guarded" else None
            found = np.stack(list(best.averages(map(int, numbers)).values())) if way == "averages" else best.run(points)
        taken = time.process_time() - began
        np.save(folder / "found.npy", found)
        print(f"= {taken!r}", flush=True)


class Peer:
    """The process that runs vectorbt."""

    def __init__(self, python: str, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [python, __file__, "--serve", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, line: str) -> tuple[float, Any]:
        """Return seconds and result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        for answer in self.process.stdout:
            if answer.startswith("= "):
                return float(answer[2:]), np.load(self.folder / "found.npy")
        raise SystemExit(f"the peer's process ended with {self.process.wait()} at {line!r}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# Ours.


def market(bars: int) -> Any:
    """Return synthetic minutes."""
    from btcbot.market.clock import utc_ms
    from btcbot.market.synthetic import synthetic_bars

    return synthetic_bars(1, utc_ms("2021-01-01"), utc_ms("2021-01-01") + bars * 60_000)


def markets() -> dict[str, Any]:
    """Return a year of synthetic minutes, and of real ones where they lie beside this checkout."""
    from btcbot.data.files import read_bars

    found = {"synthetic": market(BARS)}
    if REAL.exists():
        real = read_bars(REAL).bars
        found["real"] = real.iloc[-BARS:]
    return found


def ours(bars: Any, points: Any, workers: int) -> tuple[float, Any]:
    """Return seconds (of work with one thread, on the clock with more) from parameters to the table of figures, and the table."""
    import pandas as pd

    from btcbot.backtest.rules import Crosses, Parameter, RuleStrategy
    from btcbot.backtest.simple import SimpleAccount
    from btcbot.backtest.sweep import sweep

    fast, slow = ({"sma": {"n": Parameter(name)}} for name in ("fast", "slow"))
    clock = time.process_time if workers == 1 else time.perf_counter
    began = clock()
    grid = pd.DataFrame(points, columns=["fast", "slow"])
    found = sweep(RuleStrategy(Crosses(fast, slow)), grid, bars, account=SimpleAccount(FEE), workers=workers)
    return clock() - began, found.table[list(FIGURES)].to_numpy(np.float64)


def check(bars: Any, points: Any, mine: Any, theirs: Any, peer: Peer) -> str:
    """Compare all figures of all combinations; where trades differ, every bar that decides otherwise must be an exact tie."""
    from btcbot.features.indicators import sma

    limits = np.array([1e-10, 0, 1e-12, 1e-10, 1e-6, 1e-8])
    apart = np.abs(mine - theirs)
    is_same = (apart <= limits).all(axis=1)
    close = bars["close"].to_numpy(np.float64)
    sums = np.append(0, np.cumsum(np.rint(close * 1e5).astype(np.int64)))  # Exact
    ties = 0
    for index in np.flatnonzero(~is_same):
        fast, slow = points[index]
        _, (a, b) = peer.ask(f"averages {fast} {slow}")
        differ = np.flatnonzero(np.sign(a - b)[slow - 1 :] != np.sign(sma(close, int(fast)) - sma(close, int(slow)))[slow - 1 :]) + slow
        exact = (sums[differ] - sums[differ - fast]) * slow - (sums[differ] - sums[differ - slow]) * fast
        if len(differ) == 0 or exact.any():
            raise SystemExit(f"{fast}/{slow} differs without a tie, by {mine[index] - theirs[index]}: nothing is timed")
        ties += len(differ)
    most = apart[is_same].max(axis=0)
    unequal = (apart[:, 1] > 0).sum()
    return (
        f"{is_same.sum()} of {len(points)} equal in every figure, returns within {most[0]:.1e}; {ties} bars of exact ties part the others, "
        f"of which {unequal} differ in trades"
    )


def against_vectorbt(python: str) -> None:
    """Print ratios on one core."""
    from btcbot.features.indicators import mean_true_range

    with contextlib.suppress(AttributeError, OSError):  # One core for both, where the system lets a process choose
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(python, Path(folder))
        for name, bars in markets().items():
            days = bars.index.as_unit("ms").asi8 // 86_400_000
            prices = {column: bars[column].to_numpy(np.float64) for column in ("open", "high", "low", "close")}
            stop = STOP * mean_true_range(*(prices[column] for column in ("high", "low", "close")), REACH)
            stop = np.append(np.nan, stop[:-1]) / prices["open"]  # Decided at a bar, a share of the price at which the next one opens
            np.savez(Path(folder) / "data.npz", days=days, stop=stop, **prices)
            compare(name, bars, peer)
            guarded(name, bars, peer)
        peer.close()


def compare(name: str, bars: Any, peer: Peer) -> None:
    """Print ratios on the bars of one market."""
    print(f"{name}, {len(bars):,} bars, one core", flush=True)
    peer.ask("read 0")
    peer.ask("best 2")
    ours(bars.iloc[:20_000], pairs(10), 1)
    quoted = 0.0
    for n, rounds in ((100, ROUNDS + 2), (1000, ROUNDS)):
        points, mine, theirs = pairs(n), [], []
        for k in range(rounds if name == "synthetic" else 1):
            fast, table = ours(bars, points, 1)
            slow, found = peer.ask(f"best {n}")
            if k == 0:
                print(f"{n} combinations: {check(bars, points, table, found, peer)}", flush=True)
            mine.append(fast)
            theirs.append(slow)
        work = n * len(bars) / 1e9
        quoted, each = statistics.median(mine) / work, statistics.median(theirs) / work
        ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
        print(
            f"{n} combinations: {quoted * work:.3f} s, {quoted:.2f} ns a bar and combination; vectorbt at its best {each:.1f} ns: "
            f"{ratio:.0f} times (goal {40 if n == 100 else 100})",
            flush=True,
        )
    each = peer.ask("usual 10")[0] / 10 / len(bars) * 1e9
    print(f"vectorbt's usual calls, 10 combinations: {each:.0f} ns, {each / quoted:.0f} times ours at 1000 (goal 400)")


def timed(strategy: Any, grid: Any, bars: Any, profile: Any) -> tuple[float, Any]:
    """Return seconds of work with one thread, and the sweep."""
    from btcbot.backtest.sweep import sweep

    sweep(strategy, grid.iloc[:2], bars.iloc[:20_000], account=profile, workers=1)  # Compiles
    began = time.process_time()
    found = sweep(strategy, grid, bars, account=profile, workers=1)
    return time.process_time() - began, found


def plain_profile() -> Any:
    """Return conditions as near to a fee alone as a broker's can be: no spread, no swap, hardly any margin, much money."""
    from dataclasses import replace

    from btcbot.market.profile import broker_profile

    base = broker_profile("crypto-24x7")
    symbol = replace(base.symbol, spread_bps=0.0, slippage_bps=0.0, commission_bps=1e4 * FEE, swap_mode="disabled", volume_max=1e6)
    return replace(base, symbol=symbol, leverage=500, stop_out=0.0, margin_call=0.0, deposit=CASH)


def guarded(name: str, bars: Any, peer: Peer) -> None:
    """Print the ratio with a trailing stop, a target and sizes by risk, and our time under a broker's conditions."""
    import pandas as pd

    from btcbot.backtest.rules import Crosses, Parameter, RuleStrategy
    from btcbot.backtest.simple import SimpleAccount
    from btcbot.market.profile import broker_profile

    fast, slow = ({"sma": {"n": Parameter(name)}} for name in ("fast", "slow"))
    shape: dict[str, Any] = {"unit": {"mean_true_range": {"n": REACH}}, "stop": STOP, "trailing": STOP, "take_profit": 3 * STOP}
    rule = RuleStrategy(Crosses(fast, slow), risk=RISK, **shape)
    points = pairs(100)
    grid, work = pd.DataFrame(points, columns=["fast", "slow"]), len(points) * len(bars) / 1e9
    mine, theirs = list[float](), list[float]()
    for k in range(ROUNDS + 2):
        quick, table = timed(rule, grid, bars, SimpleAccount(FEE))
        late, found = peer.ask(f"guarded {len(points)}")
        if k == 0:
            same = check(bars, points, table.table[list(FIGURES)].to_numpy(np.float64), found, peer)
            print(f"{name}, {len(points)} combinations with a trailing stop, a target and sizes by risk: {same}")
        mine.append(quick)
        theirs.append(late)
    ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
    full, _ = timed(RuleStrategy(Crosses(fast, slow), lots=UNITS, **shape), grid, bars, plain_profile())
    print(
        f"{table.table['trades'].mean():.0f} trades each: {statistics.median(mine) / work:.2f} ns a bar and combination (limit 2), "
        f"vectorbt at its best {statistics.median(theirs) / work:.1f}: {ratio:.0f} times (limit 15, goal 40); under a broker's conditions, "
        f"one unit each, {full / work:.1f} ns",
        flush=True,
    )
    real = broker_profile("crypto-24x7")
    for what, strategy in (("no stops", RuleStrategy(Crosses(fast, slow), lots=0.01)), ("stops, sized by risk", None)):
        some = strategy or RuleStrategy(Crosses(fast, slow), side="both", risk=0.0005, **shape)
        for n in (100, 1000):
            grid = pd.DataFrame(pairs(n), columns=["fast", "slow"])
            taken, table = timed(some, grid, bars, real)
            each, count = taken / n / len(bars) * 1e9, table.table["trades"].mean()
            print(f"{name}, a broker's conditions, {what}, {n} combinations: {each:.2f} ns a bar and combination, {count:.0f} trades each")


def momentum(bars: Any, n: int) -> Any:
    """Return positions: long while the close is above that of `n` bars ago."""
    return bars["close"].diff(n).gt(0).astype(int)


def plain_momentum(bars: Any, n: int) -> tuple[float, float, float]:
    """Return what a vectorised script makes of it, net return, daily deviation and drawdown: positions times returns, less a fee."""
    position = bars["close"].diff(n).gt(0).astype(int).shift(fill_value=0)
    change = bars["close"].pct_change().fillna(0)
    curve = (1 + position * change - position.diff().abs().fillna(0) * FEE).cumprod()
    daily = curve.resample("1D").last().pct_change().dropna()
    return float(curve.iloc[-1] - 1), float(daily.std()), float((curve / curve.cummax()).min())


def other_tiers() -> None:
    """Print what compiled strategies and Python functions take, on a simple account and under a broker's conditions."""
    import pandas as pd

    from btcbot.backtest.simple import SimpleAccount
    from btcbot.market.profile import broker_profile
    from btcbot.strategies.rules import moving_average_crossover

    bars, some = market(BARS), pd.DataFrame({"n": np.arange(60, 660, 60)})
    grid = pd.DataFrame(pairs(100), columns=["fast", "slow"])
    began = time.process_time()
    for n in some["n"]:
        plain_momentum(bars, int(n))
    plain = time.process_time() - began
    accounts: dict[str, tuple[Any, float]] = {
        "a simple account": (SimpleAccount(FEE), 8),
        "a broker's conditions": (broker_profile("crypto-24x7"), 20),
    }
    for where, (account, limit) in accounts.items():
        for what, more in (("stops", {"trailing": float("nan")}), ("stops, targets and trailing", {})):

            def make(fast: int, slow: int, more: dict[str, Any] = more) -> Any:
                return moving_average_crossover(fast=fast, slow=slow, **more)

            mine, table = timed(make, grid, bars, account)
            each, count = mine / len(grid) / len(bars) * 1e9, table.table["trades"].mean()
            print(f"compiled strategy with {what}, {where}: {each:.1f} ns a bar and combination (limit {limit}), {count:.0f} trades each")
        mine, _ = timed(momentum, some, bars, account)
        print(f"Python function, {where}: {mine:.2f} s; with pandas alone {plain:.2f} s: {mine / plain:.2f} times (limit 1)")


def cold() -> None:
    """Print the time of a fresh process to the first result of ten combinations over a year, with and without compiled code."""
    with tempfile.TemporaryDirectory() as folder:
        for what in ("empty cache", "warm"):
            began = time.perf_counter()
            subprocess.run([sys.executable, __file__, "--first"], check=True, env=os.environ | {"BTCBOT_CACHE": folder})
            print(f"first result of a fresh process, {what}: {time.perf_counter() - began:.1f} s, the bars of a year included")


def large() -> None:
    """Print the time and memory of ten thousand combinations over three years."""
    bars, points = market(3 * BARS), pairs(10_000)
    ours(bars.iloc[:20_000], pairs(10), 2)
    import pandas as pd

    from btcbot.backtest.rules import Crosses, Parameter, RuleStrategy
    from btcbot.backtest.simple import SimpleAccount
    from btcbot.backtest.sweep import sweep

    fast, slow = ({"sma": {"n": Parameter(name)}} for name in ("fast", "slow"))
    grid = pd.DataFrame(points, columns=["fast", "slow"])
    began = time.perf_counter()
    found = sweep(RuleStrategy(Crosses(fast, slow)), grid, bars, account=SimpleAccount(FEE), workers=2)
    swept = time.perf_counter() - began
    probability, deflated = found.overfitting().probability, found.deflated_sharpe()
    taken = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    each = taken / len(points) / len(bars) * 1e9
    done = f"{len(points):,} combinations, {len(bars):,} bars, two threads"
    print(
        f"{done}: {taken:.1f} s (limit 12), of which PBO ({probability:.2f}) and deflated Sharpe ({deflated:.3f}) {taken - swept:.1f} s; "
        f"{each:.2f} ns a bar and combination; {memory:.2f} GiB (limit 1)"
    )


def main() -> None:
    """Run all of it."""
    cold()
    for part in ("--large", "--tiers"):
        subprocess.run([sys.executable, __file__, part], check=True)
    python = os.environ.get("BTCBOT_VECTORBT", sys.executable)
    probe = "import vectorbt, sys; from vectorbt._engine import is_rust_available as r; sys.exit(0 if r() else 3)"
    answer = subprocess.run([python, "-c", probe], capture_output=True).returncode
    if answer:
        what = "has no Rust engine (pip install vectorbt-rust)" if answer == 3 else "is not installed"
        print(f"vectorbt {what} in {Path(python).name}: not compared; BTCBOT_VECTORBT names an interpreter that has it")
        return
    against_vectorbt(python)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve(Path(sys.argv[-1]))
    elif "--large" in sys.argv:
        large()
    elif "--tiers" in sys.argv:
        other_tiers()
    elif "--first" in sys.argv:
        ours(market(BARS), pairs(10), 2)
    else:
        main()
