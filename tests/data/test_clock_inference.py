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
from btcbot.market.synthetic import synthetic_bars

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
    assert export.origin == "inferred"
    assert export.rule is not None
    assert export.rule.startswith("unresolved until 2019-04-01, NY+4 until 2020-10-19, Europe/London-1 until 2022-12-09")
    assert export.rule.endswith(", UTC until 2025-06-30, unresolved")
    for year in (2019, 2020, 2021, 2022, 2023, 2024):
        assert offset_ms(export.clock, utc_ms(f"{year}-07-15")) == 0
        assert offset_ms(export.clock, utc_ms(f"{year}-11-20")) == (-HOUR if year < 2023 else 0)
    evidence = export.evidence[export.evidence["resolved"]]
    assert set(evidence.loc[:"2022-12-05", "offset_h"]) == {-1, 0}
    assert set(evidence.loc["2022-12-12":, "offset_h"]) == {0}
    assert any("Saturday and Sunday follow another offset" in finding for finding in export.findings)
    assert export.covered == (utc_ms("2019-04-01"), utc_ms("2025-06-30"))


def test_what_is_not_known_is_not_converted(export: ClockInference) -> None:
    open_ranges = [(start, end) for start, end in export.unresolved if end - start > 3 * HOUR]
    assert [start for start, _ in open_ranges] == [utc_ms("2019-01-01"), utc_ms("2025-06-30")]
    assert not export.evidence.loc[:"2019-03-25", "resolved"].any()
    for moment in ("2019-01-15", "2025-09-01"):
        with pytest.raises(BtcbotError, match="The server clock is unresolved"):
            to_utc(export.clock, utc_ms(moment))


@pytest.mark.parametrize("finer", [False, True])
def test_another_broker_follows_new_york(shared: Path, hourly: pd.DataFrame, finer: bool) -> None:
    bars = pd.read_csv(shared / "raw/mt5_python_btcusd_h1_mixed.csv")  # 1573 daily bars come first
    bars["time_server"] = pd.to_datetime(bars["time"])
    reference = read_bars(shared / "binance_btcusdt_5m_2022_2025.parquet").bars if finer else hourly
    found = infer_server_clock(bars, reference)
    assert found.rule is not None
    assert found.rule.endswith(", NY+7")
    assert found.rule.startswith("unresolved until 2022-07-3" if finer else "unresolved until 2017-08-1")
    assert len(found.unresolved) == 1


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
    assert 0.3 < found.candidates["confidence"].iloc[0] <= 0.5
    assert np.isin(found.evidence["resolved"], False).all()


def test_a_spike_that_is_fixed_in_server_time_is_no_opening(shared: Path) -> None:
    bars = pd.read_parquet(shared / "mt5_btcusd_h1_2019_2025.parquet")
    found = infer_server_clock(bars[bars["time_server"] < "2022-12-01"])
    assert found.candidates["rule"].iloc[0] in ("NY+4", "Europe/London-1")
    assert found.candidates["confidence"].max() < 0.3


# --- Made bars: any rule, any range, any noise: the answer may be open, it may not be wrong ---


@pytest.fixture(scope="module")
def market() -> dict[str, pd.DataFrame]:
    """Return two years of hours, and the six weeks around a change in minutes."""
    fine = synthetic_bars(22, utc_ms("2023-06-12"), utc_ms("2023-07-24"), 5 * 60_000)
    return {"H1": synthetic_bars(21, utc_ms("2022-06-01"), utc_ms("2024-06-01"), HOUR), "M5": fine}


def claims(found: ClockInference, bars: pd.DataFrame, clock: ServerClock) -> tuple[float, int]:
    """Return the share of the bars whose wall time is converted right, and the number that is converted wrong."""
    utc = time_ms(bars.index)
    if found.rule is None:
        return 0.0, 0
    server = to_server(clock, utc)
    once = pd.Series(server).duplicated(keep=False).to_numpy() == np.False_
    utc, server = utc[once], server[once]

    def converted(rows: slice) -> tuple[int, int]:
        try:
            early, late = (to_utc(found.clock, server[rows], which) for which in ("earliest", "latest"))
        except BtcbotError:
            halves = (slice(rows.start, (rows.start + rows.stop) // 2), slice((rows.start + rows.stop) // 2, rows.stop))
            parts = [converted(half) for half in halves] if rows.stop - rows.start > 1 else [(0, 0)]
            return sum(right for right, _ in parts), sum(wrong for _, wrong in parts)
        right = int(((early == utc[rows]) | (late == utc[rows])).sum())
        return right, rows.stop - rows.start - right

    right, wrong = converted(slice(0, len(utc)))
    return right / len(bars), wrong


RULES = [
    "NY+7",
    "EET",
    "UTC-3:30",
    "Europe/London",
    "Australia/Sydney",
    "NY+7 until 2023-07-06T10:00Z, UTC",
    "EET until 2023-07-15, NY+7",
    "UTC+2 until 2023-01-18T12:00Z, UTC+5",
    "UTC+2 until 2023-03-24, UTC+3",
]
RANGES = {
    "year": ("2022-11-03", "2023-11-02"),
    "summer": ("2023-05-02", "2023-09-29"),
    "winter": ("2022-12-06", "2023-02-20"),
    "two weeks": ("2023-06-28", "2023-07-12"),
    "three days": ("2023-07-03", "2023-07-05"),
    "a change": ("2023-03-08", "2023-03-30"),
}


@pytest.mark.parametrize("months", RANGES)
@pytest.mark.parametrize("rule", RULES)
def test_no_range_of_any_rule_is_converted_wrong(market: dict[str, pd.DataFrame], rule: str, months: str) -> None:
    first, last = RANGES[months]
    bars, clock = market["H1"][first:last], server_clock(rule)
    found = infer_server_clock(shifted(bars, clock), market["H1"])
    right, wrong = claims(found, bars, clock)
    assert wrong == 0
    assert right > (0.5 if months == "a change" and rule == "UTC+2 until 2023-03-24, UTC+3" else 0.95)
    if months == "winter" and rule in ("NY+7", "EET"):
        assert "UTC+2, NY+7, EET" in found.findings[0]
        with pytest.raises(BtcbotError, match="unresolved"):
            offset_ms(found.clock, utc_ms("2023-07-01"))
    if months == "year" and rule in RULES[:5]:
        assert found.rule == rule


def noisy(bars: pd.DataFrame, noise: str) -> pd.DataFrame:
    """Return the bars as a worse feed would give them."""
    rng = np.random.default_rng(23)
    close = bars["close"].to_numpy().copy()
    if noise == "missing":
        return bars[rng.random(len(bars)) > 0.3]
    if noise == "weekends":
        return bars[pd.DatetimeIndex(bars.index).day_of_week < 5]
    if noise == "twice":
        return pd.concat([bars, bars])
    if noise == "flat":
        for start in rng.integers(0, len(bars), len(bars) // 200):
            close[start : start + 30] = close[start]
    if noise == "outliers":
        close[rng.integers(0, len(bars), len(bars) // 100)] *= 1.5
    if noise == "spread":
        close *= 1 - np.abs(rng.normal(0, 5e-4, len(bars)))
    if noise == "scale":
        close = np.round(close * 0.01)
    return bars.assign(close=close)


@pytest.mark.parametrize("noise", ["missing", "weekends", "twice", "flat", "outliers", "spread", "scale"])
@pytest.mark.parametrize("rule", ["NY+7", "UTC+5:30", "EET until 2023-07-08, UTC"])
def test_no_noise_makes_it_wrong(market: dict[str, pd.DataFrame], rule: str, noise: str) -> None:
    bars, clock = noisy(market["H1"]["2022-11-03":"2023-11-02"], noise), server_clock(rule)
    server = to_server(clock, time_ms(bars.index))
    found = infer_server_clock(bars.reset_index(drop=True).assign(time_server=server), market["H1"])
    right, wrong = claims(found, bars[~bars.index.duplicated()], clock)
    assert wrong == 0
    assert right > 0.9


@pytest.mark.parametrize("rule", ["NY+7", "UTC+5:30", "EET until 2023-07-06T10:00Z, UTC"])
@pytest.mark.parametrize("sides", ["M5 M5", "M5 H1", "H1 M5"])
def test_other_timeframes(market: dict[str, pd.DataFrame], sides: str, rule: str) -> None:
    fine = market["M5"]
    last = fine[pd.DatetimeIndex(fine.index).minute == 55]
    frames = {"M5": fine, "H1": last.set_axis(pd.DatetimeIndex(last.index) - pd.Timedelta(minutes=55), axis=0)}
    bars, reference = (frames[name] for name in sides.split())
    right, wrong = claims(infer_server_clock(shifted(bars, server_clock(rule)), reference), bars, server_clock(rule))
    assert wrong == 0
    assert right > 0.97


@pytest.mark.parametrize(
    "gap", [("2023-02-15", "2023-04-02"), ("2023-06-15", "2023-09-15"), ("2022-01-01", "2023-02-01"), ("2023-05-17", "2025-01-01")]
)
def test_a_reference_with_a_hole(market: dict[str, pd.DataFrame], gap: tuple[str, str]) -> None:
    bars, clock = market["H1"]["2022-11-03":"2023-11-02"], server_clock("EET")
    reference = market["H1"].drop(market["H1"][gap[0] : gap[1]].index)
    found = infer_server_clock(shifted(bars, clock), reference)
    right, wrong = claims(found, bars, clock)
    assert wrong == 0
    assert right > 0.4
    assert found.unresolved


def test_nothing_in_common_is_nothing_known(market: dict[str, pd.DataFrame]) -> None:
    bars, clock = market["H1"]["2022-11-03":"2023-03-02"], server_clock("EET")
    spiky = bars.assign(close=np.where(np.arange(len(bars)) % 500 < 250, 100.0, 101.0))
    for changed, reference, says in (
        (bars, market["H1"]["2023-06-01":], "do not overlap"),
        (bars.assign(close=7.0), market["H1"], "At most 0 returns"),
        (spiky, market["H1"], "At most 1 returns"),
        (bars[:20], market["H1"], "are needed"),
        (bars, bars.assign(close=bars["close"].to_numpy()[::-1]), "No range agrees"),
    ):
        found = infer_server_clock(shifted(changed, clock), reference)
        assert found.rule is None
        assert says in found.findings[0]
        with pytest.raises(BtcbotError, match="unresolved"):
            _ = found.clock
    with pytest.raises(BtcbotError, match="The reference has a bar each 1440 minutes"):
        infer_server_clock(shifted(bars, clock), bars[::24])
