"""Real files, where they are: what is read out of them is what their description says, and what they are worth is said."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from btcbot.core.errors import BtcbotError
from btcbot.data.embedded import EmbeddedStore
from btcbot.data.files import FileBars, FileTicks, longest_span, read_bars, read_series, read_ticks
from btcbot.market.bars import BAR_COLUMNS, time_index, time_ms
from btcbot.market.clock import format_utc, utc_ms
from btcbot.market.inference import infer_server_clock

ROWS = {
    "binance_btcusdt_5m_2022_2025.parquet": ("M5", 306_416, "2022-08-01T00:00:00Z", "2025-06-30T23:55:00Z"),
    "binance_btcusdt_1h_2017_2025.parquet": ("H1", 68_868, "2017-08-17T04:00:00Z", "2025-06-30T23:00:00Z"),
    "bitstamp_coinbase_btcusd_1d_2011_2025.parquet": ("D1", 5_152, "2011-08-18T00:00:00Z", "2025-09-24T00:00:00Z"),
    "mt5_ny7_btcusd_m1_2026.parquet": ("M1", 100_000, "2026-01-05T01:40:00Z", "2026-03-18T13:26:00Z"),
    "mt5_ny7_btcusd_m5_2025_2026.parquet": ("M5", 50_000, "2025-09-18T05:10:00Z", "2026-03-18T14:00:00Z"),
    "raw/cryptodatadownload_bitstamp_btcusd_1h.csv": ("H1", 33_259, "2018-05-15T06:00:00Z", "2022-03-01T00:00:00Z"),
}
FACTS = {
    "binance_btcusdt_5m_2022_2025.parquet": {"gaps": "2", "missing bars": "304", "longest gap": "288 bars", "real_volume 0": "14 bars"},
    "binance_btcusdt_1h_2017_2025.parquet": {"gaps": "28", "missing bars": "128", "longest gap": "33 bars", "real_volume 0": "4 bars"},
    "bitstamp_coinbase_btcusd_1d_2011_2025.parquet": {"gaps": "0", "real_volume 0": "33 bars", "clock": "UTC"},
    "mt5_ny7_btcusd_m1_2026.parquet": {
        **{"gaps": "130", "longest gap": "600 bars", "spread 0": "37 bars, 0.04%", "clock": "NY+7", "clock origin": "file"},
        "commonest spread": "100 in 99,962 bars; 100 to 166",
    },
    "mt5_ny7_btcusd_m5_2025_2026.parquet": {"spread 0": "140 bars, 0.28%", "clock": "NY+7", "clock origin": "file"},
    "raw/cryptodatadownload_bitstamp_btcusd_1h.csv": {"gaps": "0", "real_volume 0": "5 bars", "symbol": "BTC/USD"},
}
EXPORT, MIXED = "raw/mt5_export_btcusd_h1.csv", "raw/mt5_python_btcusd_h1_mixed.csv"
RECORDED = "raw/mt5_vantage_btcusd_ticks_20260307.json"


@pytest.fixture(scope="module")
def shared() -> Path:
    """Return the folder of real market data."""
    folder = Path(__file__).resolve().parents[3] / "shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real market data, which is not part of the repository (shared/data beside it)")
    return folder


@pytest.fixture(scope="module")
def bitfinex(shared: Path) -> FileBars:
    """Return eight years of minutes."""
    return read_bars(shared / "bitfinex_btcusd_1m")


def span_of(bars: pd.DataFrame) -> list[str]:
    """Return the first and the last open time."""
    return [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in bars.index[[0, -1]]]


@pytest.mark.parametrize("name", ROWS)
def test_rows_and_span_are_those_described(shared: Path, name: str) -> None:
    timeframe, rows, first, last = ROWS[name]
    read = read_series(shared / name)
    assert isinstance(read, FileBars)
    assert (read.timeframe, len(read.bars), *span_of(read.bars)) == (timeframe, rows, first, last)
    assert read.bars["spread"].gt(0).any() == name.startswith("mt5")
    assert {fact: read.facts[fact] for fact in FACTS[name]} == FACTS[name]
    assert (len(read.left_out), read.others) == (0, {})
    assert list(read.report()["what"])[: len(read.facts)] == list(read.facts)


@pytest.mark.parametrize("name", ["mt5_ny7_btcusd_m1_2026.parquet", "mt5_ny7_btcusd_m5_2025_2026.parquet"])
def test_server_time_is_kept_beside_utc(shared: Path, name: str) -> None:
    raw = pd.read_parquet(shared / name)
    server = raw["time_server"].to_numpy().astype("M8[ms]").astype(np.int64)
    assert read_bars(shared / name).bars["time_server"].to_numpy().tolist() == server.tolist()


def test_long_gaps_of_minutes_lie_at_weekends(shared: Path) -> None:
    read = read_bars(shared / "mt5_ny7_btcusd_m1_2026.parquet")
    assert read.findings[-1].startswith("130 gaps, 22 of more than 10 bars; ")
    assert "600 bars from 2026-03-07T04:59:00Z" in read.findings[-1]


def test_the_volume_of_an_exchange_is_kept_in_coins(shared: Path) -> None:
    name = "binance_btcusdt_1h_2017_2025.parquet"
    coins = pd.read_parquet(shared / name)["volume"].to_numpy()
    np.testing.assert_allclose(read_bars(shared / name).bars["real_volume"] / 1e8, coins, atol=1e-8)


def test_swapped_volumes_are_told_by_their_values(shared: Path) -> None:
    read = read_bars(shared / "raw/cryptodatadownload_bitstamp_btcusd_1h.csv")
    said = " ".join(read.findings)
    assert "swapped in 20,143 rows from 2018-05-15T06:00:00Z to 2020-10-12T08:00:00Z" in said
    assert "Both volumes are 0 in 5 rows (4 on 2020-04-25, 1 on 2022-01-05)" in said
    assert "The rows run from the newest to the oldest: turned round." in read.findings
    assert "No bar is missing between the first and the last." in read.findings
    assert "The column date shows the same times as unix." in read.findings
    coins = read.bars["real_volume"] / 1e8
    assert coins.max() < 10_000  # in dollars it would be millions
    raw = pd.read_csv(shared / "raw/cryptodatadownload_bitstamp_btcusd_1h.csv").iloc[::-1]
    np.testing.assert_allclose(coins, raw[["volume", "Volume USD"]].min(axis=1), atol=1e-8)


@pytest.mark.parametrize("name", ["mt5_btcusd_h1_2019_2025.parquet", EXPORT, MIXED, RECORDED])
def test_server_time_is_asked_about(shared: Path, name: str) -> None:
    with pytest.raises(BtcbotError, match="does not say which clock it follows"):
        read_series(shared / name)


def test_the_export_of_a_terminal_and_its_conversion_agree(shared: Path) -> None:
    export, converted = (read_bars(shared / name, zone="UTC") for name in (EXPORT, "mt5_btcusd_h1_2019_2025.parquet"))
    chosen = longest_span(export.bars, "H1")
    assert (len(export.bars), len(converted.bars), span_of(converted.bars)[1]) == (61_340, 61_323, "2025-12-30T10:00:00Z")
    assert export.bars.loc[: converted.bars.index[-1]].equals(converted.bars)
    assert format_utc(chosen.end) == "2025-12-30T11:00:00Z" and "17 bars" in chosen.finding  # the 17 rows behind a hole of 146 days
    assert "3,517 bars from 2025-12-30T10:00:00Z to 2026-05-26T00:00:00Z, 17 rows behind it" in export.findings[-1]
    assert (converted.facts["gaps"], converted.facts["missing bars"]) == ("3", "8")
    years = converted.by_year()
    assert years["spread 0"].to_dict() == {"2019": 8089, "2020": 4758, "2021": 1992, "2022": 0, "2023": 0, "2024": 0, "2025": 0}
    assert years["median spread"].loc["2022":].tolist() == [386.0, 829.0, 1950.0, 1512.0]
    assert (converted.bars["time_server"] == time_ms(converted.bars.index)).all()


def test_an_inferred_clock_is_taken_and_its_doubts_are_told(shared: Path) -> None:
    reference = read_bars(shared / "binance_btcusdt_1h_2017_2025.parquet").bars
    path = shared / "mt5_btcusd_h1_2019_2025.parquet"
    found = infer_server_clock(pd.read_parquet(path), reference)
    with pytest.raises(BtcbotError, match="unresolved until 2019-"):
        read_bars(path, zone=found)
    read = read_bars(path, zone=found, start=found.unresolved[0][1], end=found.unresolved[-1][0])
    assert (read.clock, read.clock_origin) == (found.rule, "inferred")
    assert any("the bars of Saturday and Sunday follow another offset" in finding for finding in read.findings)
    winter = read.bars.loc["2021-01-05"]
    assert set(time_ms(winter.index) - winter["time_server"]) == {3_600_000}
    assert 0 < len(read.left_out) < 20 and read.left_out["reason"].str.fullmatch("(came twice|never came) on the server's clock").all()


def test_days_in_an_hourly_file_are_kept_apart(shared: Path) -> None:
    read = read_bars(shared / MIXED, zone="NY+7")
    days = read.others["D1"]
    # The row of 2017-04-10 00:00 is no day: its high and low do not hold those of the hours that follow.
    assert (read.timeframe, len(days), set(read.others)) == ("H1", 1572, {"D1"})
    assert "1,572 rows are bars of D1, from 2011-03-24T00:00:00 to 2017-04-07T00:00:00 (server time)" in " ".join(read.findings)
    assert int(read.bars["time_server"].iloc[0]) == utc_ms("2017-04-10")
    assert len(read.bars) + len(days) + len(read.left_out) == 52_778
    assert "A column without a name numbers the rows: left out." in read.findings
    assert read.facts["with a price of 0 or below"] == "1"
    assert (read.bars["low"] == 0).sum() == 1 and read.bars.index[read.bars["low"] == 0][0].strftime("%Y-%m-%d") == "2018-03-16"
    raw = "On the server's own clock: 421 gaps, 198 of more than 10 bars"
    assert any(finding.startswith(raw) and "The longest: 75 bars" in finding for finding in read.findings)
    assert read.left_out["time_server"].between(utc_ms("2017-01-01"), utc_ms("2024-12-31")).all() and 0 < len(read.left_out) < 10


def test_ticks_of_the_recorder_and_their_conversion_agree(shared: Path) -> None:
    recorded = read_ticks(shared / RECORDED, zone="UTC+2")
    converted = read_ticks(shared / "mt5_vantage_btcusd_ticks_20260307.parquet")
    assert recorded.ticks.equals(converted.ticks) and len(recorded.ticks) == 694
    assert (recorded.clock, recorded.clock_origin, recorded.symbol) == ("UTC+2", "declared", "BTCUSD")
    assert (converted.clock, converted.clock_origin) == ("UTC+2", "file")
    assert converted.ticks["flags"].value_counts().to_dict() == {6: 677, 4: 9, 2: 8}
    said = " ".join(recorded.findings)
    assert "broker_utc_offset_hours = 0, but on the clock UTC+2 it is 2 hours at 2026-03-07T07:03:42.978Z" in said
    assert "677 BID ASK, 9 ASK, 8 BID" in said and "time_server shows the same" in said
    with pytest.raises(BtcbotError, match=r"broker_utc_offset_hours = 0, which is not believed"):
        read_ticks(shared / RECORDED)


def test_ticks_of_an_archive(shared: Path) -> None:
    read = read_series(shared / "exness_btcusdm_ticks_20210901_h00_h08.parquet")
    assert isinstance(read, FileTicks)
    assert (len(read.ticks), read.facts["bid above ask"], read.clock_origin) == (32_063, "0", "file")
    assert (read.ticks["ask"] > read.ticks["bid"]).all()


def test_years_of_minutes_are_those_described(bitfinex: FileBars) -> None:
    assert (len(bitfinex.bars), bitfinex.source, bitfinex.timeframe) == (3_260_339, "file:bitfinex_btcusd_1m", "M1")
    years = bitfinex.by_year()
    assert years["bars"].tolist() == [148_055, 283_787, 366_710, 293_230, 505_209, 520_499, 512_727, 516_557, 113_565]
    described = [0.37, 0.54, 0.70, 0.56, 0.961, 0.990, 0.976, 0.980, 0.9998]
    assert np.abs(years["share"] - described).max() < 0.005
    chosen = longest_span(bitfinex.bars, "M1")
    assert (format_utc(chosen.start), format_utc(chosen.end)) == ("2016-08-10T15:53:00Z", "2021-03-20T21:07:00Z")


def test_years_of_minutes_reach_the_store_as_they_are(bitfinex: FileBars, tmp_path: Path) -> None:
    bars = bitfinex.bars[bitfinex.bars.index >= time_index(np.array([utc_ms("2020-06-01")]))[0]]
    with EmbeddedStore(tmp_path) as store:
        key = {"source": bitfinex.source, "symbol": "BTCUSD", "timeframe": "M1"}
        assert store.write(bars, **key).rows == len(bars)
        assert store.read(**key).equals(bars[list(BAR_COLUMNS)])
        assert tuple(store.write(bars, **key)) == (0, 0)
