"""Real hours through every family: learn, predict ahead, save, load, and a backtest that goes to a ledger of its own."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from btcbot.backtest.backtester import Backtester
from btcbot.backtest.ledger import TrialLedger
from btcbot.features.engineering import FeatureEngineering
from btcbot.market.bars import check_bars
from btcbot.market.profile import broker_profile
from btcbot.models.families import FAMILIES
from btcbot.models.forward import walk_forward
from btcbot.models.labels import round_trip_cost, triple_barrier
from btcbot.models.networks import NETWORKS
from btcbot.models.pipeline import MLPipeline
from btcbot.models.splits import WalkForward
from btcbot.strategies.arrays import Sizing

HOURS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "binance_btcusdt_1h_2017_2025.parquet"
FEATURES = [{"rsi": {"n": 14}}, {"roc": {"n": 6}}, {"roc": {"n": 24}}, {"natr": {"n": 14}}]


@pytest.mark.jit
@pytest.mark.parametrize("family", [*FAMILIES[: -len(NETWORKS)], "dnn"])  # one network: test_pipeline.py has each, on fewer bars
def test_real_hours(family: str, tmp_path: Path) -> None:
    """A year of hours, small models; what it earned is not the point, that each step holds is."""
    if not HOURS.exists():
        pytest.skip("needs the real market data, which is not part of the repository (shared/data beside it)")
    table = pd.read_parquet(HOURS)
    bars = check_bars(table.set_index("time") if "time" in table else table)["2023":"2023"]
    profile = broker_profile("crypto-24x7")
    labels = triple_barrier(bars, 12, 0.5, round_trip_cost(bars, profile))
    parameters = {"units": 4, "steps": 4, "epochs": 1} if family in NETWORKS else {} if family == "linear" else {"n_estimators": 20}
    pipeline = MLPipeline(FeatureEngineering(FEATURES, "H1"), family, parameters)
    one, two = (walk_forward(pipeline, bars, WalkForward(labels, 4000, 2000), workers=workers) for workers in (1, 2))
    np.testing.assert_array_equal(one.probability, two.probability)
    assert -0.2 < one.skill < 0.2
    result = Backtester(profile).run(one.targets(Sizing(lots=0.01), "H1"), bars, "H1", trade_from=one.start)
    ledger = TrialLedger(tmp_path / "trials.db")
    assert ledger.record(result).id == ledger.count() == 1
    fitted = pipeline.fit(bars, labels)
    again = MLPipeline.load(fitted.save(tmp_path / family))
    np.testing.assert_array_equal(again.predict_proba(bars), fitted.predict_proba(bars))
    assert fitted.explain(bars, 3).notna().all(axis=None)
