"""The clock of real bars, found against an exchange whose times are UTC."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from btcbot.core.errors import BtcbotError
from btcbot.data.files import read_bars
from btcbot.market.bars import time_ms
from btcbot.market.clock import ServerClock, offset_ms, server_clock, to_server, to_utc, utc_ms
from btcbot.market.inference import ClockInference, infer_server_clock

HOUR = 3_600_000


@pytest.fixture(scope="module")
def shared() -> Path:
    """Return the folder of real market data."""
    folder = Path(__file__).resolve().parents[3] / "shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real market data, which is not part of the repository (shared/data beside it)")
    return folder


@pytest.fixture(scope="module")
def hourly(shared: Path) -> pd.DataFrame:
    """Return eight years of the exchange."""
    return read_bars(shared / "binance_btcusdt_1h_2017_2025.parquet").bars


@pytest.fixture(scope="module")
def export(shared: Path, hourly: pd.DataFrame) -> ClockInference:
    """Return what the export of a terminal tells, with the exchange beside it."""
    return infer_server_clock(pd.read_parquet(shared / "mt5_btcusd_h1_2019_2025.parquet"), hourly)


def shifted(bars: pd.DataFrame, clock: ServerClock) -> pd.DataFrame:
    """Return bars with the wall clock of a server only; the hour that comes twice in autumn is left out."""
    server = to_server(clock, time_ms(bars.index))
    copy = bars.reset_index(drop=True).assign(time_server=pd.to_datetime(server, unit="ms"))
    return copy.drop_duplicates("time_server", keep=False)


def test_the_rules_of_the_export_are_found(export: ClockInference) -> None:
    assert export.rule == (
        "unresolved until 2019-04-01, NY+4 until 2020-10-26T01:00:00Z, Europe/London-1 until 2022-12-12, UTC until 2025-06-30, unresolved"
    )
    assert export.origin == "inferred"
    for year in (2019, 2020, 2021, 2022, 2023, 2024):
        assert offset_ms(export.clock, utc_ms(f"{year}-07-15")) == 0
        assert offset_ms(export.clock, utc_ms(f"{year}-11-20")) == (-HOUR if year < 2023 else 0)
    evidence = export.evidence[export.evidence["resolved"]]
    assert set(evidence.loc[:"2022-12-05", "offset_h"]) == {-1, 0}
    assert set(evidence.loc["2022-12-12":, "offset_h"]) == {0}
    assert any("Saturday and Sunday follow another offset" in finding for finding in export.findings)


def test_what_is_not_known_is_not_converted(export: ClockInference) -> None:
    assert [start for start, _ in export.unresolved] == [utc_ms("2019-01-01"), utc_ms("2025-06-30")]
    assert not export.evidence.loc[:"2019-03-25", "resolved"].any()
    for moment in ("2019-01-15", "2025-09-01"):
        with pytest.raises(BtcbotError, match="The server clock is unresolved"):
            to_utc(export.clock, utc_ms(moment))


@pytest.mark.parametrize("rule", ["NY+7", "EET", "UTC+2", "UTC"])
@pytest.mark.parametrize("name", ["binance_btcusdt_1h_2017_2025.parquet", "binance_btcusdt_5m_2022_2025.parquet"])
def test_the_clock_of_a_copy_is_found(shared: Path, hourly: pd.DataFrame, name: str, rule: str) -> None:
    bars = hourly if "1h" in name else read_bars(shared / name).bars
    found = infer_server_clock(shifted(bars, server_clock(rule)), bars)
    assert (found.rule, found.unresolved, found.findings) == (rule, (), ())
    assert found.evidence["resolved"].mean() > 0.98


@pytest.mark.parametrize("name", ["mt5_ny7_btcusd_m1_2026", "mt5_ny7_btcusd_m5_2025_2026"])
def test_the_opening_in_new_york_is_a_hint(shared: Path, name: str) -> None:
    found = infer_server_clock(pd.read_parquet(shared / f"{name}.parquet"))
    assert found.rule is None
    assert found.candidates["rule"].iloc[0] == "NY+7"
    assert 0.5 < found.candidates["confidence"].iloc[0] <= 1
    assert np.isin(found.evidence["resolved"], False).all()
