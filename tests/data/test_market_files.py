"""Real files, where they are: what is read out of them is what their description says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from btcbot.core.errors import BtcbotError
from btcbot.data.files import longest_span, read_bars
from btcbot.data.store import Store
from btcbot.market.bars import time_index
from btcbot.market.clock import format_utc

ROWS = {
    "binance_btcusdt_5m_2022_2025.parquet": ("M5", 306_416, "2022-08-01T00:00:00Z", "2025-06-30T23:55:00Z"),
    "binance_btcusdt_1h_2017_2025.parquet": ("H1", 68_868, "2017-08-17T04:00:00Z", "2025-06-30T23:00:00Z"),
    "bitstamp_coinbase_btcusd_1d_2011_2025.parquet": ("D1", 5_152, "2011-08-18T00:00:00Z", "2025-09-24T00:00:00Z"),
    "mt5_ny7_btcusd_m1_2026.parquet": ("M1", 100_000, "2026-01-05T01:40:00Z", "2026-03-18T13:26:00Z"),
    "mt5_ny7_btcusd_m5_2025_2026.parquet": ("M5", 50_000, "2025-09-18T05:10:00Z", "2026-03-18T14:00:00Z"),
    "raw/cryptodatadownload_bitstamp_btcusd_1h.csv": ("H1", 33_259, "2018-05-15T06:00:00Z", "2022-03-01T00:00:00Z"),
}


@pytest.fixture(scope="module")
def shared() -> Path:
    """Return the folder of real market data."""
    folder = Path(__file__).resolve().parents[3] / "shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real market data, which is not part of the repository (shared/data beside it)")
    return folder


def span_of(bars: pd.DataFrame) -> list[str]:
    """Return the first and the last open time."""
    return [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in bars.index[[0, -1]]]


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_span_are_those_described(shared: Path, name: str) -> None:
    timeframe, rows, first, last = ROWS[name]
    read = read_bars(shared / name)
    assert (read.timeframe, len(read.bars), *span_of(read.bars)) == (timeframe, rows, first, last)
    assert read.bars["spread"].gt(0).any() == name.startswith("mt5")


@pytest.mark.parametrize("name", ["mt5_btcusd_h1_2019_2025.parquet", "raw/mt5_export_btcusd_h1.csv", "raw/mt5_python_btcusd_h1_mixed.csv"])
def test_server_time_is_asked_about(shared: Path, name: str) -> None:
    with pytest.raises(BtcbotError, match="does not say which clock it follows"):
        read_bars(shared / name)


def test_the_export_of_a_terminal_and_its_conversion_agree(shared: Path) -> None:
    export, converted = (
        read_bars(shared / name, zone="UTC") for name in ("raw/mt5_export_btcusd_h1.csv", "mt5_btcusd_h1_2019_2025.parquet")
    )
    chosen = longest_span(export.bars, "H1")
    assert len(export.bars) == 61_340
    assert export.bars.loc[: converted.bars.index[-1]].equals(converted.bars)
    assert format_utc(chosen.end) == "2025-12-30T11:00:00Z" and "17 bars" in chosen.finding  # the 17 rows behind a hole of 146 days


def test_years_of_minutes_reach_the_store_as_they_are(shared: Path, tmp_path: Path) -> None:
    read = read_bars(shared / "bitfinex_btcusd_1m")
    assert (len(read.bars), read.source, read.timeframe) == (3_260_339, "file:bitfinex_btcusd_1m", "M1")
    chosen = longest_span(read.bars, "M1")
    assert (format_utc(chosen.start), format_utc(chosen.end)) == ("2016-08-10T15:53:00Z", "2021-03-20T21:07:00Z")
    bars = read.bars[read.bars.index >= time_index(np.array([chosen.start]))[0]]
    assert len(bars) == 2_286_329
    store, key = Store(tmp_path), {"source": read.source, "symbol": "BTCUSD", "timeframe": "M1"}
    assert store.write(bars, **key).rows == 2_286_329
    assert store.read(**key).equals(bars)
    assert store.write(bars, **key).months == ()
    assert len(store.read(**key, start="2017-01-01", end="2021-01-01")) == 2_054_992
