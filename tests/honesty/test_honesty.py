"""A sample of `make honesty`, and that its markets without an edge have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from btcbot.backtest.ledger import TrialLedger, Tried
from btcbot.backtest.superiority import superiority
from tests.honesty.campaign import bound, judge, judge_models, null_p, planted
from tests.honesty.markets import as_bars, flipped, null_matrix, null_returns

Walk = Callable[[np.random.Generator], pd.DataFrame]


def walk(rng: np.random.Generator) -> pd.DataFrame:
    """Return a random walk."""
    return as_bars(null_returns(rng), rng)


def mirrored(rng: np.random.Generator) -> pd.DataFrame:
    """Return a market that trends, with its signs drawn anew."""
    return flipped(as_bars(null_returns(rng) + 0.002, rng), rng)


@pytest.mark.parametrize("market", [walk, mirrored])
def test_markets_without_an_edge_have_none(market: Walk) -> None:
    """No drift in the simple return, none after a rise or a fall, none at an hour of the day; but quiet and wild times."""
    tested, sizes = [], []
    for seed in range(12):
        bars = market(np.random.default_rng(seed))
        returns = bars["close"].pct_change().iloc[1:].to_numpy()
        assert (bars["open"].iloc[1:].to_numpy() == bars["close"].iloc[:-1].to_numpy()).all()
        assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all() and (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
        held = [np.ones(len(returns))]
        held += [np.sign(pd.Series(returns).rolling(n).sum().shift(1).fillna(0.0).to_numpy()) for n in (1, 2, 24, 120)]
        held += [np.where(np.arange(len(returns)) % 24 == hour, 1.0, 0.0) for hour in (0, 8, 16)]
        tested += [float((side * returns).mean() / (side * returns).std() * np.sqrt(len(returns))) for side in held]
        absolute = np.abs(returns) - np.abs(returns).mean()
        sizes.append(float((absolute[24:] * absolute[:-24]).mean() / absolute.var()))
    assert np.abs(tested).max() < 3.9 and abs(float(np.mean(tested))) < 0.3 and 0.8 < float(np.std(tested)) < 1.2
    assert min(sizes) > 0.05


def test_its_level_is_right(rounds: int) -> None:
    """Where nothing has an edge the test finds one in hardly more than one of twenty."""
    n = max(rounds, 40)
    assert sum(null_p((3, 1, k)) <= 0.05 for k in range(n)) <= bound(n)


@pytest.mark.jit
def test_from_bars_to_verdict() -> None:
    """Nothing is found on walks; a planted edge is."""
    assert [judge(walk(np.random.default_rng((5, k)))).level == "evidence" for k in range(4)] == [False] * 4
    assert [judge(planted((6, k), 0.15, "crossing")).level for k in range(2)] == ["evidence"] * 2
    assert judge(planted((6, 0), 0.1, "apart"), "apart").level == "evidence"


@pytest.mark.jit
def test_from_bars_to_the_verdict_over_models() -> None:
    """A model finds nothing on a walk, where shuffled folds find something; it finds a planted edge."""
    null, edge = (judge_models(bars, ("xgboost",)) for bars in (walk(np.random.default_rng(5)), planted((6, 0), 0.15, "crossing")))
    assert (null.level == "evidence", null.naive, edge.level) == (False, True, "evidence")


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_arch(seed: int) -> None:
    """The p-values of the package `arch`; its version 8 doesn't divide by the deviations, so it is given divided returns."""
    from arch.bootstrap import SPA

    rng = np.random.default_rng(seed)
    returns = null_matrix(rng, 400, 30) + rng.uniform(-0.002, 0.0015, 30)
    found = superiority(returns, histories=4_000, length=3.0)
    deviation = returns.mean(axis=0) / found.statistics  # of each mean
    divided = SPA(np.zeros(len(returns)), -returns / deviation, block_size=3, reps=4_000, seed=seed, studentize=False)
    plain = SPA(np.zeros(len(returns)), -returns, block_size=3, reps=4_000, seed=seed, studentize=False)
    divided.compute()
    plain.compute()
    ours = (found.lower, found.p, found.upper, found.reality_check)
    theirs = (*divided.pvalues, plain.pvalues["upper"])
    assert np.abs(np.subtract(ours, theirs)).max() < 0.035  # three deviations of both drawings
    assert set(found.superior(0.05).tolist()) >= set(np.flatnonzero(found.adjusted <= 0.03).tolist())


def test_false_discovery_rates_are_those_of_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ideas` corrects as Benjamini and Hochberg do."""
    import btcbot.backtest.verdict as module

    values = iter(np.random.default_rng(1).random(30) ** 3)
    ledger = TrialLedger(tmp_path / "trials.sqlite")
    days = np.zeros(25, np.float32)
    ledger.record_all(
        Tried(f"{k}", "", {}, "H1", "", {}, {}, "", 0, 25 * 86_400_000 - 1, 25, 0.0, 0.0, 3.0, 0.0, f"{k}", days) for k in range(30)
    )
    monkeypatch.setattr(module, "superiority", lambda *given: SimpleNamespace(p=next(values), best=0))
    found = module.ideas(ledger)
    assert len(found) == 30
    np.testing.assert_allclose(found["q"], false_discovery_control(found["p"]), rtol=1e-12)
