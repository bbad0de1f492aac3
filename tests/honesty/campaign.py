"""Run the statistics on markets without an edge, and with one of known size: `make honesty SEED=…`."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from btcbot.backtest.ledger import TrialLedger
from btcbot.backtest.simple import SimpleAccount
from btcbot.backtest.statistics import probabilistic_sharpe_ratio
from btcbot.backtest.superiority import superiority
from btcbot.backtest.sweep import Sweep, sweep
from btcbot.backtest.verdict import verdict
from btcbot.models.networks import NETWORKS
from tests.honesty.learners import GIVEN, learned
from tests.honesty.markets import (
    APART,
    APART_GRID,
    CROSSING,
    F8,
    FEE,
    GRID,
    as_bars,
    echoing,
    flipped,
    null_matrix,
    null_returns,
    trending,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "bitfinex_btcusd_1m"
RULES = {"crossing": (CROSSING, GRID), "apart": (APART, APART_GRID)}


@dataclass(frozen=True)
class Judged:
    """What was said about one market."""

    level: str
    naive: bool  # What looks best, tested as if it were the only one: PSR of at least 95 %; of models on plain shuffled folds
    profit: bool  # It made money


def judge(bars: pd.DataFrame, rules: str = "crossing") -> Judged:
    """Sweep a market from its bars to its verdict, with a ledger of its own."""
    strategy, grid = RULES[rules]
    with tempfile.TemporaryDirectory() as folder:
        ledger = TrialLedger(Path(folder) / "trials.sqlite")
        found = verdict(sweep(strategy, grid, bars, account=SimpleAccount(fee=FEE), workers=1, ledger=ledger), ledger)
    trial = found.idea.trials.iloc[found.place]
    alone = probabilistic_sharpe_ratio(trial["sharpe_day"], trial["days"], trial["skewness"], trial["kurtosis"])
    return Judged(found.level, alone >= 0.95, found.net > 0)


def judge_models(bars: pd.DataFrame, families: tuple[str, ...] = tuple(GIVEN)) -> Judged:
    """Tune families of models on a market, and walk forward to one verdict over all of them."""
    found, naive = learned(bars, families)
    return Judged(found.level, naive, found.net > 0)


def null_p(seed: tuple[int, ...]) -> float:
    """Return the p-value of one matrix without an edge."""
    rng = np.random.default_rng(seed)
    return superiority(null_matrix(rng), seed=int(rng.integers(2**31))).p


def null_bars(seed: tuple[int, ...]) -> pd.DataFrame:
    """Return a market without an edge: a random walk, or, where the real bars are there, real ones with their signs drawn anew."""
    rng = np.random.default_rng(seed)
    if seed[-1] % 2 and REAL.exists():
        return flipped(real_hours(), rng)
    return as_bars(null_returns(rng), rng)


def null_market(seed: tuple[int, ...]) -> Judged:
    """Judge the rules on a market without an edge."""
    return judge(null_bars(seed))


def null_models(seed: tuple[int, ...]) -> Judged:
    """Judge three families of models on a market without an edge."""
    return judge_models(null_bars(seed))


def null_networks(seed: tuple[int, ...]) -> Judged:
    """Judge the networks on a market without an edge."""
    return judge_models(null_bars(seed), tuple(NETWORKS))


def real_hours() -> pd.DataFrame:
    """Return the real bars of four years, resampled to an hour; read once in each process."""
    if not _REAL:
        from btcbot.data.files import read_bars

        minutes = read_bars(REAL, start="2018-01-01", end="2022-01-01").bars
        _REAL.append(minutes[["close"]].resample("1h").last().ffill())
    return _REAL[0]


_REAL: list[pd.DataFrame] = []


def edge_market(given: tuple[tuple[int, ...], float, str]) -> Judged:
    """Judge a market with a planted drift."""
    _, _, rules = given
    return judge(planted(*given), rules)


def edge_models(given: tuple[tuple[int, ...], float, str]) -> Judged:
    """Judge three families of models on a market with a planted drift."""
    return judge_models(planted(*given))


def planted(seed: tuple[int, ...], size: float, rules: str) -> pd.DataFrame:
    """Return a market with an edge for the rules."""
    rng = np.random.default_rng(seed)
    returns = null_returns(rng)
    return as_bars(trending(returns, rng, size) if rules == "crossing" else echoing(returns, size), rng)


def daily(given: tuple[tuple[int, ...], float, str]) -> F8:
    """Return the daily net returns of all rules on four years of a planted market."""
    strategy, grid = RULES[given[-1]]
    found: Sweep = sweep(strategy, grid, planted(*given), account=SimpleAccount(fee=FEE), workers=1)
    assert found.returns is not None
    return found.returns.astype(np.float64)


def best_sharpe(seed: int, size: float, rules: str, years: int, pool: ProcessPoolExecutor) -> float:
    """Return the annual net Sharpe ratio of the grid's best rule over many years, its expected one."""
    pieces = list(pool.map(daily, [((seed, 77, k), size, rules) for k in range(years // 4)]))
    together = np.concatenate(pieces, axis=1)
    return float((together.mean(axis=1) / together.std(axis=1)).max() * np.sqrt(365))


def size_of(seed: int, wanted: float, rules: str, years: int, pool: ProcessPoolExecutor) -> float:
    """Return the planted drift with which the grid's best rule has that Sharpe ratio."""
    low, high = 0.0, 0.6
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if best_sharpe(seed, middle, rules, years, pool) < wanted else (low, middle)
    return (low + high) / 2


def main() -> int:
    """Print what was found; return 1 if more was found without an edge, or less with one, than may be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--matrices", type=int, default=10_000)
    parser.add_argument("--markets", type=int, default=400)
    parser.add_argument("--models", type=int, default=100, help="markets for three families of models, and half as many with an edge")
    parser.add_argument("--networks", type=int, default=0, help="markets for the networks: half a minute or more each")
    parser.add_argument("--power", type=int, default=200, help="markets a point")
    parser.add_argument("--years", type=int, default=200, help="of separate data that measure the size of an edge")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    given = parser.parse_args()
    failed, figures = list[str](), dict[str, object](vars(given) | {"out": None})
    with ProcessPoolExecutor(given.jobs) as pool:

        def timed(title: str, work: Callable[[], str]) -> None:
            began = time.monotonic()
            print(f"{title}: {work()} ({time.monotonic() - began:.0f} s)", flush=True)

        def matrices() -> str:
            p = np.array(list(pool.map(null_p, [(given.seed, 1, k) for k in range(given.matrices)], chunksize=16)))
            found, most = int((p <= 0.05).sum()), bound(given.matrices)
            if found > most:
                failed.append("matrices")
            figures["matrices found"] = found
            return f"{found:,} of {given.matrices:,} with p <= 0.05, {found / given.matrices:.2%} (at most {most:,})"

        def markets(what: str, number: int, place: int, judged_by: Callable[[tuple[int, ...]], Judged]) -> str:
            judged = list(pool.map(judged_by, [(given.seed, place, k) for k in range(number)]))
            found, most = sum(one.level == "evidence" for one in judged), bound(number)
            if found > most:
                failed.append(what)
            naive, profit = sum(one.naive for one in judged), sum(one.profit for one in judged)
            figures[what] = {"markets": number, "evidence": found, "at most": most, "naive": naive, "profit": profit}
            return (
                f"{found} of {number} with evidence (at most {most}); the best made money in {profit}, "
                f"and without any correction it would be found in {naive}"
            )

        timed("null matrices", matrices)
        timed("null markets, rules", lambda: markets("rules", given.markets, 2, null_market))
        if given.models:
            timed("null markets, models", lambda: markets("models", given.models, 4, null_models))
        if given.networks:
            timed("null markets, networks", lambda: markets("networks", given.networks, 5, null_networks))
        for rules in RULES if given.power else ():
            for wanted in (1.0, 2.0, 3.0):
                began = time.monotonic()
                size = size_of(given.seed, wanted, rules, given.years, pool)
                judged = list(pool.map(edge_market, [((given.seed, 3, k), size, rules) for k in range(given.power)]))
                share = sum(one.level == "evidence" for one in judged) / given.power
                figures[f"power {rules} {wanted:g}"] = {"drift": size, "share": share}
                if rules == "crossing" and wanted == 2 and share < 0.8:
                    failed.append("power at 2")
                print(
                    f"power, {rules}, Sharpe ratio {wanted:g} (drift {size:.3f}): {share:.1%} of {given.power} found "
                    f"({time.monotonic() - began:.0f} s)",
                    flush=True,
                )
                if rules == "crossing" and wanted == 3 and given.models:
                    judged = list(pool.map(edge_models, [((given.seed, 6, k), size, rules) for k in range(given.models // 2)]))
                    share = sum(one.level == "evidence" for one in judged) / len(judged)
                    figures["power models"] = {"drift": size, "share": share}
                    print(f"power, models, on markets of that drift: {share:.1%} of {len(judged)} found", flush=True)
    if given.out:
        given.out.write_text(json.dumps(figures | {"failed": failed}, indent=1) + "\n", encoding="utf-8")
    print("failed: " + ", ".join(failed) if failed else "as it should be")
    return int(bool(failed))


def bound(n: int) -> int:
    """Return how many of `n` a test of level 5 % rejects at most, but for one chance in a hundred."""
    from scipy.stats import binom

    return int(binom.ppf(0.99, n, 0.05))


if __name__ == "__main__":
    raise SystemExit(main())
