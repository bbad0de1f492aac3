"""Research and trade BTC/USD through MetaTrader 5, from notebooks, without fooling yourself."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from btcbot.backtest.backtester import Backtester as Backtester
    from btcbot.backtest.ledger import TrialLedger as TrialLedger
    from btcbot.backtest.sweep import sweep as sweep
    from btcbot.backtest.verdict import verdict as verdict
    from btcbot.core.errors import BtcbotError as BtcbotError
    from btcbot.data.clean import DataCleaner as DataCleaner
    from btcbot.data.connect import open_store as open_store
    from btcbot.data.embedded import EmbeddedStore as EmbeddedStore
    from btcbot.data.ingest import DataIngestor as DataIngestor
    from btcbot.data.store import Store as Store
    from btcbot.data.timescale import TimescaleStore as TimescaleStore
    from btcbot.engine.limits import RiskLimits as RiskLimits
    from btcbot.engine.risk import RiskManager as RiskManager
    from btcbot.features.engineering import FeatureEngineering as FeatureEngineering
    from btcbot.models.pipeline import MLPipeline as MLPipeline
    from btcbot.strategies.base import Strategy as Strategy
    from btcbot.terminal.connect import connect as connect
    from btcbot.trading.execution import OrderExecution as OrderExecution
    from btcbot.trading.trader import Trader as Trader

__all__ = [
    "Backtester",
    "BtcbotError",
    "DataCleaner",
    "DataIngestor",
    "EmbeddedStore",
    "FeatureEngineering",
    "MLPipeline",
    "OrderExecution",
    "RiskLimits",
    "RiskManager",
    "Store",
    "Strategy",
    "TimescaleStore",
    "Trader",
    "TrialLedger",
    "__version__",
    "connect",
    "open_store",
    "sweep",
    "verdict",
]

# Where each public name lives. Its module, and numpy, pandas and numba with it, is loaded when the name is first used.
_HOMES = {
    "Backtester": "btcbot.backtest.backtester",
    "BtcbotError": "btcbot.core.errors",
    "DataCleaner": "btcbot.data.clean",
    "DataIngestor": "btcbot.data.ingest",
    "EmbeddedStore": "btcbot.data.embedded",
    "FeatureEngineering": "btcbot.features.engineering",
    "MLPipeline": "btcbot.models.pipeline",
    "OrderExecution": "btcbot.trading.execution",
    "RiskLimits": "btcbot.engine.limits",
    "RiskManager": "btcbot.engine.risk",
    "Store": "btcbot.data.store",
    "Strategy": "btcbot.strategies.base",
    "TimescaleStore": "btcbot.data.timescale",
    "Trader": "btcbot.trading.trader",
    "TrialLedger": "btcbot.backtest.ledger",
    "connect": "btcbot.terminal.connect",
    "open_store": "btcbot.data.connect",
    "sweep": "btcbot.backtest.sweep",
    "verdict": "btcbot.backtest.verdict",
}


def __getattr__(name: str) -> object:
    """Load the module of a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names beside what is loaded."""
    return sorted({*globals(), *_HOMES})
