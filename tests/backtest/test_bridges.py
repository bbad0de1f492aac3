"""A result in vectorbt and in plotly themselves, in an environment that has them: `BTCBOT_VECTORBT` names its interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_BOTH = find_spec("vectorbt") is not None and find_spec("plotly") is not None
PROGRAM = """
import numpy as np
import pandas as pd

from btcbot.backtest.backtester import Backtester
from btcbot.core.errors import BtcbotError
from btcbot.market.clock import utc_ms
from btcbot.market.profile import broker_profile
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.rules import make_strategy

bars = synthetic_bars(seed=12, start_ms=utc_ms("2024-01-01"), end_ms=utc_ms("2024-01-04"))
lively = make_strategy("volatility-breakout", channel=30, atr=30, strength=0.5, risk=0.0002)
result = Backtester(broker_profile("ecn-ny7")).run(lively, bars)
portfolio = result.to_vectorbt()
assert portfolio.orders.count() == len(result.deals) > 40
closed = portfolio.trades.closed.pnl.values
assert len(closed) == len(result.trades)
# vectorbt has no cents: each of the three amounts of a deal is rounded here.
assert np.abs(closed - result.trades["net"].to_numpy()).max() < 0.03
value = portfolio.value().reindex(result.equity.index + pd.Timedelta(59_999, "ms")).to_numpy()
spread = np.abs(result.bars["spread"].to_numpy()).max() / 100 * result.deals["volume"].max()
assert np.abs(value - result.equity.to_numpy()).max() < spread + 0.02 * len(result.deals)   # shorts are marked at the ask here
try:
    result.to_vectorbt(cash=10.0)
except BtcbotError as error:
    assert "give a larger cash=" in str(error)
else:
    raise AssertionError("ten dollars bought bitcoin")
figure = result.plot_interactive(columns=100)
price = figure.data[0]
assert (min(price.y), max(price.y)) == (bars["close"].min(), bars["close"].max()) and len(price.x) == 400
print("equal")
"""


@pytest.mark.skipif("BTCBOT_VECTORBT" not in os.environ and not HAS_BOTH, reason="needs vectorbt, an extra")
def test_vectorbt_and_plotly_take_a_result() -> None:
    python = os.environ.get("BTCBOT_VECTORBT", sys.executable)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([python, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr[-2000:]
