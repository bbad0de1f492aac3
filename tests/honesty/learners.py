"""Families of models on one market: tuned on its first half, judged by a walk-forward over the second."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold

from btcbot.backtest.backtester import Backtester
from btcbot.backtest.ledger import TrialLedger
from btcbot.backtest.statistics import probabilistic_sharpe_ratio, sharpe_ratio
from btcbot.backtest.verdict import Verdict, verdict
from btcbot.core.jit import F8
from btcbot.features.engineering import FeatureEngineering
from btcbot.market.profile import broker_profile
from btcbot.market.resample import resample_bars
from btcbot.models.forward import best_threshold, gains, out_of_fold, sides, walk_forward
from btcbot.models.labels import Labels, round_trip_cost, triple_barrier
from btcbot.models.networks import NETWORKS, known_windows
from btcbot.models.pipeline import MLPipeline
from btcbot.models.splits import PurgedKFold, WalkForward
from btcbot.models.tuning import Tuned, grid_search
from btcbot.strategies.arrays import Sizing
from tests.honesty.markets import FEE

TIMEFRAME, HORIZON, FOLDS = "H4", 12, 4
YEAR = 365 * 6  # bars
BROKER = broker_profile("crypto-24x7")
FEATURES = [
    {"roc": {"n": 1}},
    {"roc": {"n": 6}},
    {"roc": {"n": 42}},
    {"rsi": {"n": 14}},
    {"rolling_zscore": {"n": 42}},
    {"natr": {"n": 14}},
]
GIVEN = {"linear": {}, "random_forest": {"n_estimators": 30}, "xgboost": {"n_estimators": 40, "learning_rate": 0.1}}
GRIDS = {
    "linear": {"C": [1e-4, 1e-3, 1e-2, 0.1, 1.0]},
    "random_forest": {"max_depth": [2, 3, 4, 6, 8]},
    "xgboost": {"max_depth": [1, 2, 3, 4, 6]},
    **{family: {"units": [4, 8, 16, 32, 64]} for family in NETWORKS},
}


def with_costs(bars: pd.DataFrame) -> pd.DataFrame:
    """Return four-hour bars whose spread costs what the rules pay."""
    whole = bars.rename(columns={"volume": "tick_volume"}).assign(real_volume=0).astype({"tick_volume": np.int64})
    made = resample_bars(whole, TIMEFRAME)
    return made.assign(spread=np.rint(2 * FEE * made["close"] * 10**BROKER.symbol.digits).astype(np.int64))


def learned(bars: pd.DataFrame, families: tuple[str, ...] = tuple(GIVEN)) -> tuple[Verdict, bool]:
    """Return the verdict over all families, and whether plain folds without any correction would have found something."""
    bars = with_costs(bars)
    labels = triple_barrier(bars, HORIZON, 0.5, round_trip_cost(bars, BROKER))
    features, ahead = FeatureEngineering(FEATURES, TIMEFRAME), WalkForward(labels, 2 * YEAR, YEAR)
    rows = features.transform(bars).to_numpy(np.float64)
    results, naive = [], []
    with tempfile.TemporaryDirectory() as folder:
        ledger = TrialLedger(Path(folder) / "trials.sqlite")
        for family in families:
            pipeline = MLPipeline(features, family, GIVEN.get(family, {"epochs": 3}))
            known = labels[ahead.known_rows(int(ahead.begins[0]))]
            known = known[np.flatnonzero(known_windows(rows, pipeline.steps)[known.first])]
            splitter = PurgedKFold(known, FOLDS, pipeline.convergence)
            tuned = grid_search(pipeline, bars, known, splitter, GRIDS[family], ledger, rows=rows)
            said = walk_forward(tuned.best, bars, ahead, inner=FOLDS)
            result = Backtester(BROKER).run(said.targets(Sizing(fraction=1.0), TIMEFRAME), bars, TIMEFRAME, trade_from=said.start)
            ledger.record(result)
            results.append(result)
            naive += plain(tuned, rows, known)
        best = max(results, key=lambda result: float(result.figures["net return"]))
        return verdict(best, ledger), max(naive) >= 0.95


def plain(tuned: Tuned, rows: F8, known: Labels) -> list[float]:
    """Return what many a notebook would say of each trial: shuffled folds, the best threshold on the very same predictions, and its PSR."""
    classes, found = np.unique(known.value), []
    folds = list(KFold(FOLDS, shuffle=True, random_state=0).split(known.first))
    for attempt in tuned.attempts:
        said = out_of_fold(tuned.best.fresh(**attempt.settings), rows, known, folds, classes)
        threshold = best_threshold(known, said, classes, least=0.0)
        days = pd.Series(gains(known, sides(said, classes, threshold))).groupby(known.first // 6).mean().to_numpy(np.float64)
        is_flat = not np.ptp(days)
        found.append(0.0 if is_flat else probabilistic_sharpe_ratio(sharpe_ratio(days) / 365**0.5, len(days), 0.0, 3.0))
    return found
