"""A model from its bars to its orders: learned, certified, traded on the twin, told about, and the same as its backtest."""

from dataclasses import replace
from pathlib import Path

import pytest

from btcbot.core.errors import BtcbotError
from btcbot.data.certificates import CertificateFile
from btcbot.features.causality import certify
from btcbot.features.engineering import FeatureEngineering
from btcbot.market.clock import utc_ms
from btcbot.market.profile import broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.models.labels import triple_barrier
from btcbot.models.pipeline import MLPipeline
from btcbot.models.registry import strategy_named
from btcbot.models.strategy import model_strategy
from btcbot.strategies.arrays import Sizing
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.twin import Twin
from btcbot.trading.decisions import DecisionLog
from btcbot.trading.parity import line_up
from btcbot.trading.story import story
from btcbot.trading.trader import Trader

FEATURES = [{"rsi": {"n": 14}}, {"roc": {"n": 5}}, {"roc": {"n": 20}}]
FAMILIES = {"xgboost": {"n_estimators": 10}, "cnn1d": {"steps": 6, "units": 4, "layers": 1, "epochs": 3}}


@pytest.mark.parametrize("family", FAMILIES)
def test_live_is_the_backtest(family: str, tmp_path: Path) -> None:
    """Deals and decisions on the twin equal those of the backtest, and each order says what spoke for it."""
    bars = synthetic_bars(seed=3, start_ms=utc_ms("2024-01-01"), end_ms=utc_ms("2024-01-02T16:00"))
    known, profile = bars[:"2024-01-01T23:00"], replace(broker_profile("crypto-24x7"), deposit=100_000.0)
    pipeline = MLPipeline(FeatureEngineering(FEATURES, "M1"), family, FAMILIES[family]).fit(known, triple_barrier(known, 20, 0.5, 0.0002))
    made = model_strategy(pipeline, 0.3, Sizing(risk=0.0005, stop=6.0, take_profit=9.0), horizon=10)
    strategy = strategy_named(str(made.save(tmp_path / "model")))
    with (
        CertificateFile(tmp_path / "certificates.sqlite") as certificates,
        OrderJournal(tmp_path / "orders.sqlite") as journal,
        DecisionLog(tmp_path / "decisions.sqlite") as log,
    ):
        twin = Twin(bars, profile, start="2024-01-02T12:00")
        twin.initialize()
        certificates.save(certify(made, known))
        with pytest.raises(BtcbotError, match="hindsight"):
            Trader(twin, strategy, profile, twin.clock, journal, certificates=certificates, decisions=log)
        certificates.save(certify(made, bars["2024-01-02":]))
        trader = Trader(twin, strategy, profile, twin.clock, journal, certificates=certificates, decisions=log)
        trader.warm_up(bars["2024-01-01T06:00":"2024-01-02T11:58"])
        trader.run()
        deals = twin.history_deals_get(1, 2**31 - 1)
        found = line_up(log, journal, deals, bars["2024-01-01T06:00":], strategy)
        assert found.differences.empty, found.differences
        told = story(log, journal, deals[1].order, strategy)
        assert len(deals) > 5 and "features  rsi_14 " in told and "p(up) 0." in told
        assert "\nreasons   for " in told and "; base " in told
        assert "reasons" not in story(log, journal, deals[1].order, model_strategy(pipeline, 0.5, Sizing(lots=0.1)))
