"""The trader on the twin, one bar at a time, against the backtester over the same bars: every deal, to the cent."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
from breathing import breathing

from btcbot.backtest.backtester import Backtester
from btcbot.data.certificates import CertificateFile
from btcbot.data.files import read_bars
from btcbot.features.causality import certify
from btcbot.market.bars import time_ms
from btcbot.market.clock import utc_ms
from btcbot.market.profile import PROFILES, BrokerProfile
from btcbot.market.sessions import in_sessions
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.base import Strategy
from btcbot.strategies.rules import make_strategy
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.twin import Twin
from btcbot.trading.parity import compare_deals
from btcbot.trading.trader import Trader, deals_frame

REAL = Path(__file__).parents[2] / "shared" / "data" / "bitfinex_btcusd_1m"
STRATEGIES = {
    "ma-crossover": {"fast": 30, "slow": 120, "atr": 60, "break_even": 6.0},
    "volatility-breakout": {"channel": 30, "atr": 60, "strength": 0.5, "hold": 120},
}


def compare(bars: pd.DataFrame, start: str, strategy: Strategy, given: BrokerProfile, folder: Path) -> Counter[str]:
    """Trade and backtest; return how often each thing was compared."""
    profile = replace(given, deposit=1_000_000.0 if "mini" in given.name else 100_000.0)  # its least volume is 0.1 BTC
    bars = bars.assign(**bars[["open", "high", "low", "close"]].round(profile.symbol.digits))  # as they are stored on ingestion
    twin = Twin(bars, profile, start=start)
    twin.initialize()
    with OrderJournal(folder / f"{strategy.name}-{profile.name}-{profile.margin_mode}.sqlite") as journal:
        with CertificateFile(folder / "certificates.sqlite") as certificates:
            if certificates.find(strategy.code_hash) is None:
                certificates.save(certify(strategy, bars))
            trader = Trader(twin, strategy, profile, twin.clock, journal, certificates=certificates, reconcile_every=499)
        is_open = in_sessions(profile.symbol.sessions, twin.clock, time_ms(bars.index), 60_000)
        trader.warm_up(bars[is_open & (bars.index < pd.Timestamp(start, tz="UTC"))])
        record = trader.run()
        assert trader.execution.halted == ""  # reconciled every 499 bars: nothing was broken for long, whatever the broker's records lag
        counts = journal.count_by_outcome()
    live = deals_frame(twin.history_deals_get(1, 2**31 - 1), twin.clock)
    result = Backtester(profile).run(strategy, bars, trade_from=start)
    parity = compare_deals(live, result.deals)
    assert parity.differing == 0, parity.rows.head(3).T.to_string()
    assert twin.account_info().equity == result.equity.iloc[-1]
    assert trader.risk.refusals == result.refusals
    assert counts["unknown"] == counts["intent"] == 0
    seen = Counter(live["reason"])
    seen["deals"], seen["swap"], seen["bars"] = parity.compared, int((live["swap"] != 0).sum()), record.bars
    return seen


def compare_all(bars: pd.DataFrame, start: str, folder: Path) -> Counter[str]:
    """Compare both strategies under every shipped profile."""
    total: Counter[str] = Counter()
    for name, parameters in STRATEGIES.items():
        for profile in PROFILES.values():
            total += compare(bars, start, make_strategy(name, **parameters), profile, folder)
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(total.items())))
    for name in ("deals", "expert", "sl", "tp", "swap"):
        assert total[name] > 0, name
    return total


@pytest.mark.jit
@pytest.mark.parity
def test_synthetic_bars(rounds: int, tmp_path: Path) -> None:
    """A sample of days of the synthetic market; `make parity` takes more of them."""
    days = min(2 + rounds // 10, 60)
    bars = synthetic_bars(21, utc_ms("2024-01-02"), utc_ms("2024-01-05") + days * 86_400_000)
    assert compare_all(bars, "2024-01-05", tmp_path)["deals"] >= 100


@pytest.mark.jit
@pytest.mark.parity
@pytest.mark.parametrize("mode", ["hedging", "netting"])
def test_positions_brought_to_a_size(mode: Literal["hedging", "netting"], rounds: int, tmp_path: Path) -> None:
    """Additions and parts go through the terminal as the backtester books them, on both kinds of account."""
    bars, total = synthetic_bars(22, utc_ms("2024-01-02"), utc_ms("2024-01-05") + min(1 + rounds // 20, 30) * 86_400_000), Counter[str]()
    for profile in PROFILES.values():
        total += compare(bars, "2024-01-03", breathing(), replace(profile, margin_mode=mode), tmp_path)
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(total.items())))
    for name in ("expert", "sl", "tp", "swap"):
        assert total[name] > 0, name
    assert total["deals"] >= 200


@pytest.mark.jit
@pytest.mark.parity
@pytest.mark.skipif(not REAL.exists(), reason="the real bars are not beside this checkout")
def test_real_bars(rounds: int, tmp_path: Path) -> None:
    """The same on a wild stretch of real minutes with holes: the crash of March 2020 and the days after it."""
    end = pd.Timestamp("2020-03-13", tz="UTC") + pd.Timedelta(days=min(rounds // 20, 15))
    bars = read_bars(REAL, start="2020-03-11", end=str(end)).bars
    assert compare_all(bars, "2020-03-12", tmp_path)["deals"] >= 100
