"""What every store promises, over each of them: files, PostgreSQL, and TimescaleDB where it is found."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import fresh_name
from psycopg import sql

from btcbot.core.errors import BtcbotError
from btcbot.data.embedded import EmbeddedStore
from btcbot.data.store import EXTRA_COLUMNS, NO_SERVER_TIME, Note, SeriesKey, Store, WriteResult
from btcbot.data.timescale import TimescaleStore
from btcbot.market.bars import BAR_COLUMNS, check_bars, time_index, time_ms
from btcbot.market.clock import utc_ms
from btcbot.market.ticks import TICK_COLUMNS, check_ticks

KINDS = ("embedded", "postgresql", "timescaledb")
START = utc_ms("2024-01-31T23:50")
Make = Callable[..., Store]
numbers = itertools.count()


def removed(address: str, names: list[str]) -> None:
    """Remove schemas."""
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        for name in names:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture(scope="module", params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Return a function that makes an empty store of one kind, or of the kind that it is given."""
    opened: list[tuple[TimescaleStore, str]] = []

    def made(kind: str = request.param) -> Store:
        if kind == "embedded":
            return EmbeddedStore(tmp_path_factory.mktemp("files") / "store")
        address = request.getfixturevalue("plain_server" if kind == "postgresql" else "timescale_server")
        opened.append((TimescaleStore(address, schema=fresh_name()), address))
        return opened[-1][0]

    yield made
    for store, _ in opened:
        store.close()
    for address in {address for _, address in opened}:
        removed(address, [store.schema for store, where in opened if where == address])


@pytest.fixture(scope="module")
def store(make: Make) -> Store:
    """Return the store that tests share, each with a series of its own."""
    return make()


@pytest.fixture
def key() -> SeriesKey:
    """Return a series that no other test has."""
    return SeriesKey("Demo-Server", f"BTCUSD{next(numbers)}", "M1")


def bars(count: int = 5, start: int = START, price: float = 100.0, step: int = 60_000) -> pd.DataFrame:
    """Return bars that tell in their prices where they belong."""
    close = price + np.arange(count) / 8
    data = {"open": close, "high": close + 1, "low": close - 1, "close": close, "tick_volume": 7, "spread": 150, "real_volume": 2**53 + 1}
    return check_bars(pd.DataFrame(data, index=time_index(start + step * np.arange(count))))


def ticks(times: list[int], bids: list[float]) -> pd.DataFrame:
    """Return ticks at milliseconds after the start."""
    data = {"bid": bids, "ask": np.add(bids, 0.5), "last": 0.0, "volume": 0.25, "flags": 6}
    return check_ticks(pd.DataFrame(data, index=time_index(START + np.array(times, np.int64))))


def known(store: Store, key: SeriesKey) -> list[int]:
    """Return when the rows of a series were written."""
    return store.read(*key, columns=["known_at"])["known_at"].tolist()


# Writing and reading


def test_what_is_written_is_read(store: Store, key: SeriesKey) -> None:
    written = bars(20)  # over the end of a month
    assert store.write(written, **key._asdict()) == WriteResult(20, 0)
    pd.testing.assert_frame_equal(store.read(*key), written, check_freq=False)
    assert [str(kind) for kind in store.read(*key).dtypes] == ["float64"] * 4 + ["int64", "int32", "int64"]
    assert str(store.read(*key).index.dtype) == "datetime64[ms, UTC]" and store.read(*key).index.name == "time"
    assert store.span(*key) == (START, START + 19 * 60_000)
    assert key in store.series() and store.series() == sorted(store.series())
    mine = store.read(*key)
    mine.iloc[0, 0] = 5.0  # what was read belongs to the caller
    assert store.read(*key).equals(written)


def test_ranges_leave_out_their_end(store: Store, key: SeriesKey) -> None:
    written = bars(20)
    store.write(written, **key._asdict())
    for low, high in ((0, 20), (3, 4), (0, 1), (19, 20), (9, 11)):
        start, end = START + low * 60_000, START + high * 60_000
        assert store.read(*key, start, end).equals(written[low:high])
        assert store.read(*key, start - 1, end - 59_999).equals(written[low:high])
        assert store.read(*key, start + 1, end).equals(written[low + 1 : high])
    assert store.read(*key, start="2024-02-01").equals(written[10:])
    assert store.read(*key, end="2024-02-01").equals(written[:10])
    for empty in (store.read(*key, start="2030-01-01"), store.read(*key, end="2020-01-01"), store.read(*key, START + 1, START + 2)):
        assert empty.empty and empty.dtypes.equals(written.dtypes) and str(empty.index.dtype) == "datetime64[ms, UTC]"
    with pytest.raises(BtcbotError, match="is not after the start"):
        store.read(*key, START, START)


def test_writing_again_changes_nothing(store: Store, key: SeriesKey) -> None:
    store.write(bars(), **key._asdict(), known_at="2024-03-01")
    before = store.read(*key, columns=[*BAR_COLUMNS, *EXTRA_COLUMNS])
    assert store.write(bars(), **key._asdict(), known_at="2024-03-02") == WriteResult(0, 0)
    assert store.read(*key, columns=[*BAR_COLUMNS, *EXTRA_COLUMNS]).equals(before)
    assert store.revisions(*key).empty


def test_older_rows_go_in_front_and_holes_are_filled(store: Store, key: SeriesKey) -> None:
    written = bars(9)
    for part in (written[6:], written[:2], written[1:7]):
        store.write(part, **key._asdict())
    assert store.read(*key).equals(written)


def test_revisions_keep_what_was_known(store: Store, key: SeriesKey) -> None:
    moments = [utc_ms(f"2024-03-0{day}") for day in (1, 2, 3)]
    states = [bars(4), bars(4).assign(close=[100.0, 7.0, 7.0, 100.375]), bars(4).assign(close=[100.0, 7.0, 8.0, 100.375])]
    results = [store.write(state, **key._asdict(), known_at=moment) for state, moment in zip(states, moments, strict=True)]
    assert results == [WriteResult(4, 0), WriteResult(0, 2), WriteResult(0, 1)]
    for state, moment in zip(states, moments, strict=True):
        for at in (moment, moment + 1):
            assert store.read(*key, known_at=at).equals(state)
            assert store.read(*key, START + 60_000, START + 180_000, known_at=at).equals(state[1:3])
    assert store.read(*key, known_at=moments[0] - 1).empty
    assert store.read(*key).equals(states[-1])
    assert known(store, key) == [moments[0], moments[1], moments[2], moments[0]]
    found = store.revisions(*key)
    assert list(found.columns) == [*BAR_COLUMNS, "time_server", "known_at", "known_until"]
    assert found["close"].tolist() == [100.125, 7.0, 100.25, 7.0, 8.0]
    assert time_ms(found.index).tolist() == [START + 60_000 * k for k in (1, 1, 2, 2, 2)]
    assert time_ms(pd.DatetimeIndex(found["known_at"])).tolist() == [moments[k] for k in (0, 1, 0, 1, 2)]
    assert found["known_until"].isna().tolist() == [False, True, False, False, True]
    assert found["known_until"].iloc[[0, 2, 3]].tolist() == found["known_at"].iloc[[1, 3, 4]].tolist()
    assert store.revisions(*key, START + 120_000)["close"].tolist() == [100.25, 7.0, 8.0]
    assert store.revisions(*key, end=START + 60_000).empty
    assert list(store.revisions(*key, end=START + 60_000).dtypes) == list(found.dtypes)


def test_known_at_never_falls(store: Store, key: SeriesKey) -> None:
    at = utc_ms("2024-03-02")
    store.write(bars(2), **key._asdict(), known_at=at)
    store.write(bars(1, START + 120_000), **key._asdict(), known_at=at - 5)  # a clock that went back
    assert known(store, key) == [at, at, at]
    for price in (5.0, 6.0, 7.0):
        store.write(bars(1, price=price), **key._asdict(), known_at=at)  # a version ends after it begins
    assert known(store, key) == [at + 3, at, at]
    store.write(bars(1, START + 180_000), **key._asdict(), known_at=at)
    assert known(store, key) == [at + 3, at, at, at + 3]
    assert store.read(*key, known_at=at + 1)["close"].iloc[0] == 5.0
    before = utc_ms("2026-01-01")
    store.write(bars(1, START + 240_000), **key._asdict())
    assert known(store, key)[-1] > before


def test_server_times(store: Store, key: SeriesKey) -> None:
    def write(at: int, **server: int) -> WriteResult:
        return store.write(bars(2).assign(**server), **key._asdict(), known_at=at)

    def extra() -> list[list[int]]:
        return store.read(*key, columns=EXTRA_COLUMNS).T.to_numpy().tolist()

    assert write(10) == (2, 0) and extra() == [[NO_SERVER_TIME] * 2, [10, 10]]
    assert write(20, time_server=5) == (0, 0) and extra() == [[5, 5], [10, 10]]  # what is learnt is no revision
    assert write(30) == (0, 0) and extra() == [[5, 5], [10, 10]]  # what isn't said is nothing new
    assert write(40, time_server=6) == (0, 2) and extra() == [[6, 6], [40, 40]]
    assert store.revisions(*key)["time_server"].tolist() == [5, 6, 5, 6]


def test_numbers_come_back_to_the_last_bit(store: Store, key: SeriesKey) -> None:
    odd = [np.nan, np.inf, -np.inf, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, -0.0, 1 / 3]
    edges = np.array([0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1, 7, 8])
    written = bars(8).assign(open=odd, close=odd[::-1], tick_volume=edges, real_volume=edges[::-1], spread=np.int32(2**31 - 1))
    assert store.write(written, **key._asdict()) == (8, 0)
    for name in written:
        assert store.read(*key)[name].to_numpy().tobytes() == written[name].to_numpy().tobytes()
    assert store.write(written, **key._asdict()) == (0, 0)  # NaN is no change
    assert store.write(written.assign(open=odd[1:] + odd[:1]), **key._asdict()) == (0, 8)


def test_ticks_of_one_millisecond(store: Store, key: SeriesKey) -> None:
    key = key._replace(timeframe="TICK")
    first = ticks([0, 5, 5, 5, 9], [1.0, 2.0, 3.0, 2.0, 4.0])
    assert store.write(first, **key._asdict(), known_at=10) == (5, 0)
    pd.testing.assert_frame_equal(store.read(*key), first)
    assert store.write(ticks([5, 5, 5], [2.0, 3.0, 2.0]), **key._asdict(), known_at=20) == (0, 0)
    assert store.write(ticks([5, 5, 5, 5], [2.0, 8.0, 2.0, 9.0]), **key._asdict(), known_at=30) == (1, 1)
    assert store.read(*key)["bid"].tolist() == [1.0, 2.0, 8.0, 2.0, 9.0, 4.0]
    assert store.read(*key, known_at=29).equals(first)
    assert store.read(*key, START + 5, START + 6, columns=["ask", "known_at"]).to_numpy().tolist() == [
        [2.5, 10],
        [8.5, 30],
        [2.5, 10],
        [9.5, 30],
    ]
    found = store.revisions(*key)
    assert list(found.columns) == ["sequence", *TICK_COLUMNS, "time_server", "known_at", "known_until"]
    assert found[["sequence", "bid"]].to_numpy().tolist() == [[1, 3.0], [1, 8.0]]


def test_columns_are_given_in_the_order_asked_for(store: Store, key: SeriesKey) -> None:
    store.write(bars(3), **key._asdict(), known_at=77)
    read = store.read(*key, columns=["spread", "known_at", "open"])
    assert list(read.columns) == ["spread", "known_at", "open"]
    assert read["known_at"].tolist() == [77] * 3 and [str(kind) for kind in read.dtypes] == ["int32", "int64", "float64"]
    assert store.read(*key, columns=[]).shape == (3, 0)
    with pytest.raises(BtcbotError, match="has no column bid: use open"):
        store.read(*key, columns=["bid"])


def test_empty_frames(store: Store, key: SeriesKey) -> None:
    assert store.write(bars(0), **key._asdict()) == WriteResult(0, 0)
    assert store.write(ticks([], []), **key._replace(timeframe="TICK")._asdict()) == WriteResult(0, 0)
    assert key not in store.series() and store.span(*key) is None


# What is refused


def test_a_series_that_is_not_there_is_named_with_those_that_are(store: Store, key: SeriesKey) -> None:
    store.write(bars(), **key._asdict())
    other = key._replace(timeframe="H1")
    for call in (store.read, store.revisions):
        with pytest.raises(BtcbotError, match=r"has no rows of .* / H1\. It has") as caught:
            call(*other)
        assert str(key) in str(caught.value)
    with pytest.raises(BtcbotError, match="has no rows of"):
        store.drop_before(*other, before="2030-01-01")
    assert store.span(*other) is None and store.notes(*other) == []


def test_wrong_rows_are_refused_and_nothing_of_them_is_stored(store: Store, key: SeriesKey) -> None:
    wrong = {
        "must rise": bars()[::-1],
        "lack the columns close": bars().drop(columns="close"),
        "another unit": bars().set_axis(time_index(time_ms(bars().index) * 1000)),
        "without a zone": bars().tz_localize(None),
    }
    for sentence, rows in wrong.items():
        with pytest.raises(BtcbotError, match=sentence):
            store.write(rows, **key._asdict())
    with pytest.raises(BtcbotError, match="must not fall"):
        store.write(ticks([3, 5], [1.0, 2.0])[::-1], **key._replace(timeframe="TICK")._asdict())
    with pytest.raises(BtcbotError, match="M7"):
        store.write(bars(), **key._replace(timeframe="M7")._asdict())
    assert key not in store.series()


def test_names(store: Store, key: SeriesKey) -> None:
    odd = SeriesKey("file:a b/ü'\"; DROP TABLE series --%s{}", f"{key.symbol}#~..€", "M5")
    store.write(bars(), **odd._asdict())
    assert odd in store.series() and store.read(*odd).equals(bars())
    with pytest.raises(BtcbotError, match="in upper and lower case only"):
        store.write(bars(), **odd._replace(symbol=odd.symbol.lower())._asdict())
    for symbol in ("", "a\nb", "x" * 121):
        with pytest.raises(BtcbotError, match="can't be the symbol"):
            store.write(bars(), **key._replace(symbol=symbol)._asdict())


# Beside the rows


def test_notes(store: Store, key: SeriesKey) -> None:
    assert store.notes(*key) == []
    store.annotate(*key, {"clock": "NY+7", "clock_origin": "inferred"}, known_at=20)
    store.annotate(*key, {"clock": "NY+7", "clock_origin": "inferred"}, known_at=25)  # says nothing new
    store.annotate(*key, {"clock": "UTC", "odd": "ü'\"\\\n\t\0%s{}"}, known_at=15)
    assert store.notes(*key) == [
        Note(20, {"clock": "NY+7", "clock_origin": "inferred"}),
        Note(20, {"clock": "UTC", "odd": "ü'\"\\\n\t\0%s{}"}),
    ]
    assert key not in store.series()  # it has no rows
    store.write(bars(), **key._asdict())
    store.annotate(*key, {"digits": "2"})
    assert len(store.notes(*key)) == 3 and store.notes(*key)[-1].known_at > utc_ms("2026-01-01")
    with pytest.raises(BtcbotError, match="can't be the source"):
        store.annotate("", "x", "M1", {})


def test_info(store: Store, key: SeriesKey) -> None:
    store.write(bars(20), **key._asdict(), known_at=10)
    store.write(bars(2, price=5.0), **key._asdict(), known_at=20)
    store.write(bars(1, price=6.0), **key._asdict(), known_at=30)
    tick_key = key._replace(timeframe="TICK")
    store.write(ticks([0, 0, 3], [1.0, 2.0, 3.0]), **tick_key._asdict(), known_at=10)
    store.write(ticks([0, 0], [4.0, 5.0]), **tick_key._asdict(), known_at=20)
    table = store.info()
    assert list(table.columns) == ["source", "symbol", "timeframe", "rows", "revised", "first", "last", "bytes"]
    assert [SeriesKey(*row) for row in table[list(SeriesKey._fields)].itertuples(index=False)] == store.series()
    lines = table[table["symbol"] == key.symbol].to_dict("records")
    assert [(line["timeframe"], line["rows"], line["revised"]) for line in lines] == [("M1", 20, 2), ("TICK", 3, 2)]
    assert lines[0]["first"] == bars(20).index[0] and lines[0]["last"] == bars(20).index[-1]
    assert all(line["bytes"] > 0 for line in lines)


def test_query(store: Store, key: SeriesKey) -> None:
    store.write(bars(20), **key._asdict())
    store.write(bars(1, price=5.0), **key._asdict())
    store.write(ticks([0, 0, 3], [1.0, 2.0, 3.0]), **key._replace(timeframe="TICK")._asdict())

    def ask(question: str) -> pd.DataFrame:
        return store.query(question.replace("OURS", f"source = 'Demo-Server' AND symbol = '{key.symbol}'"))

    found = ask("SELECT * FROM bars WHERE OURS ORDER BY time")
    assert {*found.columns} == {"source", "symbol", "timeframe", "time", *BAR_COLUMNS}
    assert check_bars(found.set_index("time")).equals(store.read(*key))
    assert {*store.query("SELECT * FROM ticks LIMIT 1").columns} == {"source", "symbol", "timeframe", "time", *TICK_COLUMNS}
    assert ask("SELECT count(*) AS n, avg(bid) AS bid FROM ticks WHERE OURS").to_dict("records") == [{"n": 3, "bid": 2.0}]
    days = ask("SELECT date_trunc('day', time) AS day, count(*) AS n FROM bars WHERE OURS GROUP BY 1 ORDER BY 1")
    assert str(days["day"].dtype) == "datetime64[ms, UTC]" and days["n"].tolist() == [10, 10]
    assert store.query("SELECT time FROM bars WHERE false").empty
    for wrong in (
        "SELECT nothing FROM bars",
        "SELECT * FROM nowhere",
        "no SQL",
        "",
        "DELETE FROM bars",
        "SELECT 1; SELECT 2; DROP VIEW bars",
    ):
        if not (wrong.startswith("SELECT 1") and isinstance(store, EmbeddedStore)):
            with pytest.raises(BtcbotError):
                store.query(wrong)
    assert len(ask("SELECT * FROM bars WHERE OURS")) == 20


# Care


def test_compacting_keeps_the_rows(make: Make) -> None:
    store, key = make(), SeriesKey("s", "BTCUSD", "M1")
    store.write(bars(2000, step=3_600_000), **key._asdict(), known_at=10)
    for at in range(3):
        store.write(bars(1, START + 60_000 * (1 + at)), **key._asdict(), known_at=20 + at)
        store.write(bars(1, price=at + 5.0), **key._asdict(), known_at=30 + at)
    columns = [*BAR_COLUMNS, *EXTRA_COLUMNS]
    before, revisions = store.read(*key, columns=columns), store.revisions(*key)
    assert store.compact() >= 0
    assert store.read(*key, columns=columns).equals(before) and store.revisions(*key).equals(revisions)
    assert store.compact() == 0
    assert store.write(bars(2, START, price=9.0, step=30_000), **key._asdict(), known_at=50) == (1, 1)  # it can still be changed
    assert store.read(*key)["close"].tolist()[:2] == [9.0, 9.125] and len(store.read(*key)) == 2004
    assert not [finding for finding in store.check() if finding.level == "fail"]


def test_dropping_removes_all_versions(store: Store, key: SeriesKey) -> None:
    store.write(bars(20), **key._asdict(), known_at=10)
    store.write(bars(2, price=5.0), **key._asdict(), known_at=20)
    store.write(bars(1, START + 600_000, price=6.0), **key._asdict(), known_at=30)
    other = key._replace(source="other")
    store.write(bars(20), **other._asdict())
    assert store.drop_before(*key, before=START) == 0
    assert store.drop_before(*key, before=START + 600_000) == 10
    assert store.span(*key) == (START + 600_000, START + 19 * 60_000)
    assert store.read(*key, known_at=10).equals(bars(20)[10:])
    assert len(store.revisions(*key)) == 2
    assert store.drop_before(*key, before="2025-01-01") == 10
    assert key not in store.series() and store.span(*key) is None
    with pytest.raises(BtcbotError, match="has no rows of"):
        store.read(*key)
    assert store.read(*other).equals(bars(20))
    assert store.write(bars(20), **key._asdict()) == (20, 0)


def test_nothing_is_wrong_with_a_store(store: Store, key: SeriesKey) -> None:
    store.write(bars(), **key._asdict())
    findings = store.check()
    assert findings and not [str(finding) for finding in findings if finding.level == "fail"]


def filled(store: Store) -> Store:
    """Return a store with everything that there is to lose."""
    for number, price in enumerate((100.0, 5.0, 6.0)):
        rows = bars(40 - 8 * number, price=price, step=3_600_000).assign(time_server=START + number)
        store.write(rows, source="Demo-Server", symbol="BTC/USD#", timeframe="H1", known_at=10 * number + 10)
    store.annotate("Demo-Server", "BTC/USD#", "H1", {"clock": "NY+7"}, known_at=15)
    store.annotate("Demo-Server", "BTC/USD#", "H1", {"clock": "UTC"}, known_at=25)
    for number, bids in enumerate(([1.0, 2.0, np.nan, 4.0], [1.0, 7.0, 3.0, 8.0])):
        store.write(ticks([0, 5, 5, 9], bids), source="file:a b", symbol="BTCUSD", timeframe="TICK", known_at=20 + number)
    store.annotate("only", "noted", "M1", {"digits": "2"}, known_at=5)
    return store


def everything(store: Store) -> dict[str, object]:
    """Return all that a store holds."""
    held: dict[str, object] = {"info": store.info().drop(columns="bytes").to_csv(), "noted": store.notes("only", "noted", "M1")}
    for key in store.series():
        held[f"{key} rows"] = store.read(*key, columns=[*key.columns, *EXTRA_COLUMNS]).to_csv()
        held[f"{key} versions"], held[f"{key} notes"] = store.revisions(*key).to_csv(), store.notes(*key)
        held |= {f"{key} at {at}": store.read(*key, known_at=at).to_csv() for at in (10, 20, 25)}
    return held


@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_of_any_store_restores_into_any_other(make: Make, kind: str, tmp_path: Path) -> None:
    source, target, path = filled(make()), make(kind), tmp_path / "backup"
    source.backup(path)
    target.restore(path)
    assert everything(target) == everything(source)
    assert not [finding for finding in target.check() if finding.level == "fail"]
    at = SeriesKey("Demo-Server", "BTC/USD#", "H1")
    assert target.write(bars(1, price=-1.0), **at._asdict(), known_at=1) == (0, 1)
    assert known(target, at)[0] == 31  # it goes on where it was
    with pytest.raises(BtcbotError, match="is not empty"):
        target.restore(path)
    with pytest.raises(BtcbotError, match="exists already"):
        source.backup(path)


def test_a_damaged_backup_restores_nothing(make: Make, tmp_path: Path) -> None:
    source, target, path = filled(make()), make(), tmp_path / "backup"
    source.backup(path)
    source.backup(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BtcbotError, match="Nothing was restored"):
        target.restore(path)
    assert target.series() == []
    target.write(bars(), source="s", symbol="x", timeframe="M1")


def test_closing_and_going_on(make: Make) -> None:
    with make() as store:
        assert store.series() == [] and store.info().empty and store.query("SELECT * FROM bars").empty
        with pytest.raises(BtcbotError, match="It has nothing"):
            store.read("s", "x", "M1")
        store.write(bars(), source="s", symbol="x", timeframe="M1")
    assert store.read("s", "x", "M1").equals(bars())  # it opens again
    store.close()
    store.close()


def test_threads_share_a_store(store: Store, key: SeriesKey) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(5):
                part = bars(3, START + 180_000 * (5 * number + step), price=number)
                store.write(part, **key._asdict())
                assert len(store.read(*key)) >= 3
                assert store.write(part, **key._asdict()) == (0, 0)
        except BaseException as error:  # told below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert store.read(*key)["open"].tolist() == [number + k / 8 for number in range(4) for _ in range(5) for k in range(3)]


# Against a model in plain Python

Version = tuple[int, float, int]  # When it was written, its price, its server time
ROWS = st.dictionaries(st.integers(0, 12), st.tuples(st.sampled_from([1.0, 2.0, np.nan]), st.sampled_from([-1, 5, 6])), min_size=1)
WRITES = st.lists(st.tuples(ROWS, st.integers(0, 2)), min_size=1, max_size=6)


def modelled(model: dict[int, list[Version]], rows: dict[int, tuple[float, int]], at: int) -> WriteResult:
    """Write into the model as a store must."""
    now, new, updated = max([at, *(version[0] for versions in model.values() for version in versions)]), 0, 0
    for place, (price, server) in rows.items():
        versions = model.setdefault(place, [])
        if not versions:
            versions.append((now, price, server))
            new += 1
            continue
        then, old_price, old_server = versions[-1]
        if repr(price) != repr(old_price) or (-1 not in (server, old_server) and server != old_server):
            versions.append((max(now, then + 1), price, server))
            updated += 1
        elif old_server == -1:
            versions[-1] = (then, old_price, server)
    return WriteResult(new, updated)


@settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(writes=WRITES, is_ticks=st.booleans(), cut=st.integers(0, 14))
def test_a_store_is_what_its_model_is(
    store: Store, writes: list[tuple[dict[int, tuple[float, int]], int]], is_ticks: bool, cut: int
) -> None:
    key, model, at = SeriesKey("model", f"S{next(numbers)}", "TICK" if is_ticks else "M1"), dict[int, list[Version]](), 100
    name = "bid" if is_ticks else "open"
    for rows, later in writes:
        at += later
        rows = dict(sorted(rows.items()))
        prices, server = [price for price, _ in rows.values()], [time for _, time in rows.values()]
        times = time_index(START + 60_000 * np.array(list(rows)))
        columns = ("bid", "ask") if is_ticks else ("open", "high", "low", "close")
        frame = pd.DataFrame(dict.fromkeys(columns, prices) | {"time_server": server}, index=times)
        assert store.write(frame, **key._asdict(), known_at=at) == modelled(model, rows, at)
    for moment in (None, *range(99, at + 8)):
        found = store.read(*key, known_at=moment, columns=[name, *EXTRA_COLUMNS])
        held = {place: [v for v in versions if moment is None or v[0] <= moment] for place, versions in sorted(model.items())}
        expected = [(START + 60_000 * place, *held[place][-1]) for place in held if held[place]]
        lines = zip(time_ms(found.index), found["known_at"], found[name], found["time_server"], strict=True)
        assert [*map(repr, map(plain, lines))] == [*map(repr, expected)]
    revised = [(START + 60_000 * place, *version) for place, all_of in sorted(model.items()) if len(all_of) > 1 for version in all_of]
    found = store.revisions(*key)
    lines = zip(time_ms(found.index), time_ms(pd.DatetimeIndex(found["known_at"])), found[name], found["time_server"], strict=True)
    assert [*map(repr, map(plain, lines))] == [*map(repr, revised)]
    gone = [place for place in model if place < cut]
    assert store.drop_before(*key, before=START + 60_000 * cut) == len(gone)
    assert store.span(*key) == (
        (START + 60_000 * min(model.keys() - gone), START + 60_000 * max(model.keys() - gone)) if model.keys() - gone else None
    )


def plain(line: tuple[int, int, float, int]) -> Version | tuple[int, int, float, int]:
    """Return the numbers as Python's own."""
    time, known_at, price, server = line
    return int(time), int(known_at), float(price), int(server)
