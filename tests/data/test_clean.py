"""The cleaner on real bars, where they are, and on faults that were put among them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btcbot.core.jit import F8, I8
from btcbot.data.arrived import receive, received_block
from btcbot.data.checks import REASONS
from btcbot.data.clean import CleanBars, DataCleaner
from btcbot.data.clean_ticks import TickCleaner, tick_block
from btcbot.market.bars import CLOSE, HIGH, LOW, OPEN, time_index

SEED = int(os.environ.get("BTCBOT_SEED", "2024"))
PRICES = slice(OPEN, CLOSE + 1)


@pytest.fixture(scope="module")
def shared() -> Path:
    """Return the folder of real market data."""
    folder = Path(__file__).resolve().parents[3] / "shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real market data, which is not part of the repository (shared/data beside it)")
    return folder


def parquet(path: Path) -> pd.DataFrame:
    """Read a file, whose times may be those of a server."""
    frame = pd.read_parquet(path)
    if "time" not in frame.columns:
        frame["time"] = frame["time_server"].dt.tz_localize("UTC")
    return frame.drop(columns="time_server", errors="ignore").set_index("time")


def minutes(shared: Path, *years: int) -> pd.DataFrame:
    """Return minutes of the exchange."""
    return pd.concat([parquet(shared / f"bitfinex_btcusd_1m/{year}.parquet") for year in years])


def at(bars: CleanBars, moment: str) -> str:
    """Return what was said of the bar of a moment."""
    return str(bars.quarantined["reason"].get(pd.Timestamp(moment, tz="UTC"), ""))


def bars_of(found: CleanBars, action: str) -> dict[str, int]:
    """Return the counts of an action that are not zero."""
    counts = found.report().loc[action, "bars"]
    return {reason: int(count) for reason, count in counts.items() if count}


# What stands in the description of the real data


@pytest.mark.jit
def test_the_outliers_of_the_first_years_are_caught(shared: Path) -> None:
    found = DataCleaner().clean(minutes(shared, 2013))
    assert at(found, "2013-04-16 04:38") and at(found, "2013-04-10 17:36")
    assert len(found.quarantined) < 0.003 * found.total
    assert found.timeframe == "M1"


@pytest.mark.jit
def test_four_years_of_minutes_keep_their_crashes(shared: Path) -> None:
    bars = minutes(shared, 2017, 2018, 2019, 2020)
    found = DataCleaner().clean(bars)
    assert found.total == 2_054_992
    assert len(found.quarantined) < 0.001 * found.total
    assert set(found.quarantined["reason"]) <= {"stale"}  # no bar for its prices
    close = bars["close"].to_numpy()
    wildest = bars.index[np.argsort(-np.abs(np.diff(np.log(close), prepend=np.log(close[0]))))[:300]]
    assert wildest.isin(found.bars.index).all()
    widest = (bars["high"] / bars["low"]).nlargest(300).index
    assert widest.isin(found.bars.index).all()
    for crash in ("2017-03-10", "2020-03-12", "2020-03-13"):
        day = bars[f"{crash} 00:00" : f"{crash} 23:59"].index
        assert day.isin(found.bars.index).all()
    assert "move" in bars_of(found, "flagged")


@pytest.mark.jit
def test_hours_and_days_of_exchanges(shared: Path) -> None:
    hours = DataCleaner().clean(parquet(shared / "binance_btcusdt_1h_2017_2025.parquet"))
    assert bars_of(hours, "quarantined") == {}
    assert bars_of(hours, "flagged")["no trade"] == 4  # bars with volume 0
    assert (int(hours.gaps["missing"].sum()), len(hours.gaps), int(hours.gaps["missing"].max())) == (128, 28, 33)
    assert (hours.gaps["kind"] == "lost").mean() > 0.8
    fives = DataCleaner().clean(parquet(shared / "binance_btcusdt_5m_2022_2025.parquet"))
    assert fives.gaps[["missing", "kind"]].to_numpy().tolist() == [[16, "lost"], [288, "lost"]]
    silent = fives.quarantined["reason"].tolist() + fives.notes.loc[fives.notes["reason"] == "no trade", "reason"].tolist()
    assert (len(silent), set(silent)) == (14, {"stale", "no trade"})  # the bars with volume 0 just before the outage
    days = DataCleaner().clean(parquet(shared / "bitstamp_coinbase_btcusd_1d_2011_2025.parquet"))
    assert (bars_of(days, "flagged")["no trade"], len(days.gaps)) == (33, 0)
    assert at(days, "2017-04-15") == "spike"  # low 0.06


@pytest.mark.jit
def test_the_thin_years_of_an_exchange_and_its_holes(shared: Path) -> None:
    found = DataCleaner().clean(minutes(shared, 2014, 2015, 2016))
    lost = found.gaps[found.gaps["kind"] == "lost"].nlargest(4, "missing").sort_values("first")
    assert [f"{moment:%Y-%m-%d %H:%M}" for moment in lost["first"]] == [
        "2014-11-21 23:04",
        "2015-05-01 04:00",
        "2016-04-01 00:01",
        "2016-08-02 18:03",
    ]
    quiet = found.gaps[found.gaps["kind"] == "no trade"]
    assert (len(quiet) > 0.99 * len(found.gaps), int(quiet["missing"].max()) < 120) == (True, True)


@pytest.mark.jit
@pytest.mark.parametrize(
    ("name", "closed", "lost"),
    [("mt5_ny7_btcusd_m1_2026", 0.8, 0.2), ("mt5_ny7_btcusd_m5_2025_2026", 0.6, 0.4), ("mt5_btcusd_h1_2019_2025", 0.0, 1.0)],
)
def test_pauses_of_a_broker_are_learned(shared: Path, name: str, closed: float, lost: float) -> None:
    found = DataCleaner().clean(parquet(shared / f"{name}.parquet"))
    assert bars_of(found, "quarantined") == {}
    missing = found.gaps.groupby(found.gaps["kind"].astype(str))["missing"].sum() / found.gaps["missing"].sum()
    assert missing.get("closed", 0.0) >= closed
    assert missing.get("lost", 0.0) <= lost


@pytest.mark.jit
def test_files_as_they_were_found(shared: Path) -> None:
    stamps = pd.read_csv(shared / "raw/cryptodatadownload_bitstamp_btcusd_1h.csv")
    newest_first = stamps.set_index(time_index(stamps["unix"].to_numpy() * 1_000)).drop(columns=["volume", "Volume USD"])
    coins = stamps[["volume", "Volume USD"]].min(axis=1).to_numpy()  # the headers are swapped in the older rows
    hours = DataCleaner().clean(newest_first.assign(volume=coins))
    assert "33,259 rows stood newest first: turned round." in hours.lines
    assert (bars_of(hours, "quarantined"), len(hours.gaps)) == ({}, 0)
    silent = hours.notes.index[hours.notes["reason"] == "no trade"]
    assert (len(silent), (silent.strftime("%Y-%m-%d") == "2020-04-25").sum()) == (5, 4)  # and one hour in 2022

    mixed = pd.read_csv(shared / "raw/mt5_python_btcusd_h1_mixed.csv", index_col=0)
    mixed["time"] = pd.to_datetime(mixed["time"], utc=True)
    found = DataCleaner().clean(mixed)
    assert at(found, "2018-03-17 00:00") == "price"  # low 0.0
    assert found.lines[-1] == "1,573 bars from 2011-03-24 00:00 to 2017-04-10 00:00 are D1 apart, not H1."
    assert len(found.quarantined) <= 5
    assert (found.gaps.loc[found.gaps["first"] > "2017-04-11", "missing"] > 0).sum() == 421

    export = pd.read_csv(shared / "raw/mt5_export_btcusd_h1.csv", sep="\t")
    export.columns = export.columns.str.strip("<>").str.lower()
    export["time"] = pd.to_datetime(export["date"] + " " + export["time"], format="%Y.%m.%d %H:%M:%S", utc=True)
    found = DataCleaner().clean(export.drop(columns="date").rename(columns={"tickvol": "tick_volume", "vol": "real_volume"}))
    hole = found.gaps.nlargest(1, "missing").iloc[0]
    assert (hole["kind"], hole["missing"] // 24, found.total) == ("lost", 146, 61_340)
    assert bars_of(found, "quarantined") == {}


@pytest.mark.jit
def test_real_ticks_are_kept(shared: Path) -> None:
    for name in ("exness_btcusdm_ticks_20210901_h00_h08", "mt5_vantage_btcusd_ticks_20260307"):
        ticks = parquet(shared / f"{name}.parquet").assign(flags=0)
        assert TickCleaner().clean(ticks).quarantined.empty


# Faults put among real bars

Fault = Callable[[F8, int, float, np.random.Generator], None]


def wick(block: F8, k: int, size: float, rng: np.random.Generator) -> None:
    """Move one extreme away."""
    if rng.random() < 0.5:
        block[k, HIGH] = block[k, [OPEN, CLOSE]].max() * (1 + size)
    else:
        block[k, LOW] = block[k, [OPEN, CLOSE]].min() / (1 + size)


def decimal(block: F8, k: int, size: float, rng: np.random.Generator) -> None:
    """Shift the point of one price or of all."""
    factor = size if rng.random() < 0.5 else 1 / size
    chosen = PRICES if rng.random() < 0.5 else int(rng.integers(OPEN, CLOSE + 1))
    block[k, chosen] *= factor


def impossible(block: F8, k: int, size: float, rng: np.random.Generator) -> None:
    """Put a price that can't be."""
    block[k, rng.integers(OPEN, CLOSE + 1)] = size


def contradiction(block: F8, k: int, size: float, rng: np.random.Generator) -> None:
    """Make high and low enclose nothing."""
    if rng.random() < 0.5:
        block[k, [HIGH, LOW]] = block[k, LOW] * (1 - size), block[k, HIGH] * (1 + size)
    else:
        block[k, HIGH] = block[k, [OPEN, CLOSE]].max() * (1 - size)


def level(block: F8, k: int, size: float, rng: np.random.Generator) -> None:
    """Move a whole bar."""
    block[k, PRICES] *= 1 + size if rng.random() < 0.5 else 1 / (1 + size)


def close_only(block: F8, k: int, size: float, rng: np.random.Generator) -> None:
    """Move the close, and with it the extreme."""
    block[k, CLOSE] *= 1 + size if rng.random() < 0.5 else 1 / (1 + size)
    block[k, HIGH], block[k, LOW] = block[k, PRICES].max(), block[k, PRICES].min()


KINDS: dict[str, tuple[Fault, tuple[float, ...]]] = {
    "wick": (wick, (0.02, 0.05, 0.1, 0.2, 0.5)),
    "decimal": (decimal, (10.0, 100.0, 1000.0)),
    "impossible": (impossible, (0.0, -1.0, np.nan, np.inf)),
    "contradiction": (contradiction, (0.0005, 0.01, 0.1)),
    "level": (level, (0.02, 0.05, 0.1, 0.2, 0.5)),
    "close": (close_only, (0.02, 0.05, 0.1, 0.2, 0.5)),
}


def places(rng: np.random.Generator, n: int, count: int) -> Iterator[int]:
    """Yield places that are at least 25 bars apart, at random otherwise."""
    slots = rng.choice(np.arange(100, n // 50 - 1), count, replace=False)
    yield from (slots * 50 + rng.integers(0, 25, count)).tolist()


@pytest.mark.jit
def test_injected_faults_are_found_and_nothing_else(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = received_block(receive(minutes(shared, 2017, 2018, 2019, 2020)))
    rng = np.random.default_rng(SEED)
    chosen = places(rng, len(block), 300 * len(KINDS))
    rows: dict[str, dict[float, list[int]]] = {}
    for kind, (fault, sizes) in KINDS.items():
        rows[kind] = {size: [] for size in sizes}
        for n in range(300):
            k, size = next(chosen), sizes[n % len(sizes)]
            fault(block, k, size, rng)
            rows[kind][size].append(k)
    verdict = DataCleaner().update(block)
    is_injected = np.zeros(len(block), np.bool_)
    is_injected[[k for sizes in rows.values() for places_ in sizes.values() for k in places_]] = True
    wrong = int(((verdict > 0) & ~is_injected).sum())
    recalls, precisions, lines = [], [], []
    for kind, by_size in rows.items():
        found = {size: float((verdict[at_] > 0).mean()) for size, at_ in by_size.items()}
        hits = sum(int((verdict[at_] > 0).sum()) for at_ in by_size.values())
        recalls.append(hits / 300)
        precisions.append(hits / (hits + wrong))  # each wrong row counts against every kind
        by = ", ".join(f"{size:g}: {100 * share:.0f}" for size, share in found.items())
        lines.append(f"{kind:14} recall {100 * recalls[-1]:5.1f} %   precision {100 * precisions[-1]:5.1f} %   recall by size, %: {by}")
    with capsys.disabled():
        print(f"\n300 faults of each kind in {len(block):,} minutes, seed {SEED}; {wrong} other bars set aside", *lines, sep="\n")
    assert np.median(recalls) >= 0.95
    assert np.median(precisions) >= 0.95
    assert min(recalls[:5]) >= 0.88


@pytest.mark.jit
def test_a_frozen_feed_is_found(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = received_block(receive(minutes(shared, 2018)))
    rng = np.random.default_rng(SEED)
    runs = {"whole rows": slice(OPEN, None), "prices only": PRICES}
    starts: dict[str, list[int]] = {name: [] for name in runs}
    chosen = places(rng, len(block), 300)
    for n, start in enumerate(chosen):
        name = list(runs)[n % 2]
        block[start : start + 20, runs[name]] = block[start - 1, runs[name]]
        starts[name].append(start)
    verdict = DataCleaner().update(block)
    is_frozen = np.zeros(len(block), np.bool_)
    for start in starts["whole rows"] + starts["prices only"]:
        is_frozen[start : start + 20] = True
    found = {name: np.mean([(verdict[k : k + 20] > 0).any() for k in at_]) for name, at_ in starts.items()}
    rows = {name: np.mean([(verdict[k : k + 20] > 0).mean() for k in at_]) for name, at_ in starts.items()}
    precision = (verdict[is_frozen] > 0).sum() / (verdict > 0).sum()
    with capsys.disabled():
        said = "; ".join(f"{name}: {100 * found[name]:.0f} % of the runs, {100 * rows[name]:.0f} % of their rows" for name in runs)
        print(f"\n300 frozen runs of 20 minutes in 2018: {said}; precision {100 * precision:.1f} %")
    assert min(found.values()) >= 0.95 and precision >= 0.95
    assert rows["whole rows"] >= 0.85


@pytest.mark.jit
def test_duplicates_and_disorder(shared: Path) -> None:
    bars = minutes(shared, 2019)[:20_000]
    rng = np.random.default_rng(SEED)
    twice = rng.choice(len(bars), 100, replace=False)
    dirty = pd.concat([bars, bars.iloc[twice]])
    clean, found = DataCleaner().clean(bars), DataCleaner().clean(dirty)
    assert found.bars.equals(clean.bars)
    assert found.quarantined["reason"].value_counts().to_dict() == {"duplicate": 100}
    order = np.arange(len(bars))
    late = rng.choice(np.arange(50, len(bars) - 1, 7), 100, replace=False)
    order[late], order[late + 1] = order[late + 1], order[late]
    found = DataCleaner().clean(bars.iloc[order])
    assert found.bars.equals(clean.bars)
    assert bars_of(found, "corrected") == {"order": 100}


# What holds for all bars


def dirty_block(block: F8, rng: np.random.Generator, count: int) -> F8:
    """Put faults of all kinds, NaN rows and unknown volumes among bars."""
    block = block.copy()
    for k in rng.integers(20, len(block), count):
        fault, sizes = KINDS[str(rng.choice(list(KINDS)))]
        fault(block, int(k), float(rng.choice(sizes)), rng)
    for k in rng.integers(0, len(block), count // 2):
        block[k, rng.integers(0, 7)] = np.nan
    return block


@pytest.mark.jit
@pytest.mark.parametrize("anomalies", [False, True])
def test_a_stream_cut_anywhere_says_what_the_batch_says(shared: Path, anomalies: bool) -> None:
    if anomalies:
        pytest.importorskip("sklearn", reason="anomalies need scikit-learn, which the base set leaves out")
    rng = np.random.default_rng(SEED)
    block = dirty_block(received_block(receive(minutes(shared, 2017)))[:20_000], rng, 200)

    def make() -> DataCleaner:
        return DataCleaner(anomalies, refit=6_000)

    whole = make().judge(block)
    assert len(np.unique(whole.verdict)) >= 6
    for _ in range(2):
        cleaner, pieces = make(), []
        cuts = np.sort(rng.integers(0, len(block), 40))
        for n, piece in enumerate(np.split(block, cuts)):
            pieces.append(cleaner.judge(piece))
            if n % 7 == 0:
                cleaner = DataCleaner.restore(cleaner.state())
        for name in ("verdict", "note", "block"):
            together = np.concatenate([getattr(piece, name) for piece in pieces])
            assert np.array_equal(together, getattr(whole, name), equal_nan=True)
    one_by_one = make()
    assert np.concatenate([one_by_one.update(block[k : k + 1]) for k in range(9_000)]).tolist() == whole.verdict[:9_000].tolist()


@pytest.mark.jit
def test_the_future_changes_nothing(shared: Path) -> None:
    rng = np.random.default_rng(SEED)
    block = dirty_block(received_block(receive(minutes(shared, 2020)))[:20_000], rng, 200)
    whole = DataCleaner().judge(block)
    for cut in rng.integers(1, len(block), 10):
        other = block.copy()
        other[cut:, PRICES] *= rng.lognormal(0, 1, (len(block) - cut, 1))
        judged = DataCleaner().judge(other)
        assert np.array_equal(judged.verdict[:cut], whole.verdict[:cut]) and np.array_equal(judged.note[:cut], whole.note[:cut])


@st.composite
def dirty_frames(draw: st.DrawFn) -> pd.DataFrame:
    """Make short frames with every fault there is, in any order of time."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = rng.choice([0, 1, 1, 1, 1, 1, 2, 9, -3], n)
    close = 100 * np.exp(rng.normal(0, draw(st.sampled_from([0.0, 1e-4, 0.01, 0.3])), n).cumsum())
    opens = np.where(rng.random(n) < 0.8, np.append(close[:1], close[:-1]), close)
    block = np.column_stack([opens, np.maximum(opens, close) * 1.0001, np.minimum(opens, close), close])
    bad = rng.random(block.shape) < draw(st.sampled_from([0.0, 0.02, 0.2]))
    block[bad] = rng.choice([0, -1, np.nan, np.inf, 1e-9, 1e9, 101.0], bad.sum())
    frame = pd.DataFrame(block, columns=["open", "high", "low", "close"], index=time_index(10**12 + 60_000 * np.cumsum(steps)))
    frame["tick_volume"] = rng.choice([0, 1, 5, 5, 5, 900, -1, np.nan, np.inf], n)
    frame["spread"] = rng.choice([0, 1, 1, 40, -1, np.nan, 3e9], n)
    again = rng.random(n) < 0.1
    return pd.concat([frame, frame[again]])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(dirty_frames())
def test_cleaning_twice_is_cleaning_once(frame: pd.DataFrame) -> None:
    once = DataCleaner().clean(frame)
    assert len(once.bars) + len(once.quarantined) == len(frame)
    again = DataCleaner().clean(once.bars)
    assert again.bars.equals(once.bars)
    assert again.quarantined.empty
    assert set(once.quarantined["reason"]) <= set(REASONS[1:])


@pytest.mark.jit
def test_cleaning_dirty_years_twice_is_cleaning_once(shared: Path) -> None:
    bars = receive(minutes(shared, 2013, 2014))
    block = dirty_block(received_block(bars), np.random.default_rng(SEED), 5_000)
    first = DataCleaner().judge(block)
    kept = first.block[first.verdict == 0]
    second = DataCleaner().judge(kept)
    assert not second.verdict.any()
    assert np.array_equal(second.block, kept)


@pytest.mark.jit
def test_ticks_in_a_stream_and_twice(shared: Path) -> None:
    ticks = parquet(shared / "exness_btcusdm_ticks_20210901_h00_h08.parquet")
    rng = np.random.default_rng(SEED)
    block = tick_block(ticks)
    bad = rng.choice(np.arange(100, len(block), 11), 500, replace=False)
    block[bad[:100], 1] = block[bad[:100], 2] + 1
    block[bad[100:200], 1:3] *= 10
    block[bad[200:300], 2] *= 1.2
    block[bad[300:400], 1] = 0
    block[bad[400:], 1] = np.nan
    verdict: I8 = TickCleaner().update(block)
    is_bad = np.zeros(len(block), np.bool_)
    is_bad[bad] = True
    assert (verdict[is_bad] > 0).mean() == 1.0
    assert (verdict[~is_bad] > 0).sum() == 0
    cleaner = TickCleaner()
    assert np.concatenate([cleaner.update(piece) for piece in np.array_split(block, 97)]).tolist() == verdict.tolist()
    assert not TickCleaner().update(block[verdict == 0]).any()
