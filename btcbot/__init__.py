"""Research and trade BTC/USD through MetaTrader 5, from notebooks, without fooling yourself."""

from __future__ import annotations

__version__ = "0.1.0"
