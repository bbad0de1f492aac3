"""What only a store in a database has: secrets, a connection that breaks, migrations, plans, and what TimescaleDB adds."""

import json
import logging
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import psycopg
import pytest
from postgres import PASSWORD, fresh_name
from psycopg import sql
from test_store_contract import START, bars, removed, ticks

from btcbot.core.errors import BtcbotError
from btcbot.core.log import RedactingFormatter
from btcbot.data import tables
from btcbot.data.schema import MIGRATIONS, Migration, migrate, read_offer
from btcbot.data.store import SeriesKey, WriteResult
from btcbot.data.timescale import TimescaleStore
from btcbot.market.bars import check_bars
from btcbot.market.resample import resample_bars

KEY = SeriesKey("Demo-Server", "BTCUSD", "M1")


@contextmanager
def opened(address: str, **options: float) -> Iterator[TimescaleStore]:
    """Open a store in a schema of its own, and remove that afterwards."""
    store = TimescaleStore(address, schema=fresh_name(), **options)
    try:
        with store:
            yield store
    finally:
        removed(address, [store.schema])


@pytest.fixture(params=["plain_server", "timescale_server"])
def store(request: pytest.FixtureRequest) -> Iterator[TimescaleStore]:
    """Return an empty store, with TimescaleDB and without."""
    with opened(request.getfixturevalue(request.param)) as one:
        yield one


@pytest.fixture
def plain(plain_server: str) -> Iterator[TimescaleStore]:
    """Return an empty store without TimescaleDB."""
    with opened(plain_server) as one:
        yield one


@pytest.fixture
def timescale(timescale_server: str) -> Iterator[TimescaleStore]:
    """Return an empty store with TimescaleDB."""
    with opened(timescale_server) as one:
        yield one


@contextmanager
def by_hand(store: TimescaleStore) -> Iterator["psycopg.Connection"]:
    """Connect to the tables of a store behind its back."""
    with psycopg.connect(**store.address.parameters, autocommit=True) as connection:
        connection.execute("SELECT set_config('search_path', %s, false)", [store.schema])
        yield connection


def levels(store: TimescaleStore) -> list[str]:
    """Return the levels of what a check finds, apart from the checksums of a server that isn't ours."""
    return [finding.level for finding in store.check() if "checksums" not in finding.text]


# Secrets


def secrets_in(text: str) -> list[str]:
    """Return the parts of the password that stand in `text`."""
    return [part for part in (PASSWORD, quote(PASSWORD, safe=""), "p@ss:w", "p%40ss", "w/rd", "w%2Frd") if part in text]


def test_no_secret_is_in_what_a_store_says(plain: TimescaleStore, caplog: pytest.LogCaptureFixture) -> None:
    said = [repr(plain), str(plain.address), repr(plain.address)]
    address = plain.address.parameters
    unreachable = TimescaleStore(f"postgresql://tester:{quote(PASSWORD, safe='')}@127.0.0.1:9/postgres")
    unknown = TimescaleStore(f"postgresql://tester:{quote(PASSWORD, safe='')}@127.0.0.1:{address['port']}/nowhere")
    refused = TimescaleStore(f"postgresql://tester:{quote(PASSWORD[1:], safe='')}@127.0.0.1:{address['port']}/postgres")
    calls = {
        "refused": unreachable.series,
        "does not exist": unknown.series,
        "password authentication failed": refused.series,
        "can't answer": lambda: plain.query(f"SELECT $${PASSWORD}$$ AND {PASSWORD}"),
        "echoed": lambda: plain.query(f"SELECT ($${PASSWORD}$$ || 'echoed')::int"),
    }
    for sentence, call in calls.items():
        try:
            call()
        except BtcbotError as error:
            assert sentence in str(error)
            said += [str(error), traceback.format_exc()]
            with caplog.at_level(logging.DEBUG):
                logging.getLogger("btcbot").exception("failed %s", call)
        else:
            raise AssertionError(sentence)
    said += [RedactingFormatter().format(record) for record in caplog.records]
    assert [found for text in said if (found := secrets_in(text))] == []
    assert "psycopg.errors" not in "".join(said)  # the error that caused ours isn't shown
    assert [(finding.level, secrets_in(str(finding))) for finding in unreachable.check()] == [("fail", [])]


# The connection


def end_connections(store: TimescaleStore) -> None:
    """End all connections of btcbot from the side of the server."""
    with by_hand(store) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'btcbot'")


def test_a_lost_connection_is_made_again(plain: TimescaleStore) -> None:
    plain.write(bars(), **KEY._asdict())
    end_connections(plain)
    assert plain.read(*KEY).equals(bars())
    end_connections(plain)
    assert plain.write(bars(6), **KEY._asdict()) == (1, 0)


def test_a_connection_that_is_lost_at_work(plain: TimescaleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import btcbot.data.timescale as module

    plain.write(bars(), **KEY._asdict())
    real, cuts = module.series_number, iter([True, False, True, True])

    def cut(connection: "psycopg.Connection", key: SeriesKey) -> int | None:
        if next(cuts):
            end_connections(plain)
        return real(connection, key)

    monkeypatch.setattr(module, "series_number", cut)
    assert plain.read(*KEY).equals(bars())  # done once more, unnoticed
    with pytest.raises(BtcbotError, match="was lost while reading"):
        plain.read(*KEY)
    monkeypatch.undo()

    def cut_write(connection: "psycopg.Connection", *rest: object) -> WriteResult:
        end_connections(plain)
        return tables.upsert(connection, *rest)

    def cut_backup(connection: "psycopg.Connection", key: SeriesKey) -> Iterator[object]:
        end_connections(plain)
        return tables.all_versions(connection, key)

    monkeypatch.setattr(module, "all_versions", cut_backup)
    with pytest.raises(BtcbotError, match="was lost while backing up"):
        plain.backup(tmp_path / "backup")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(module, "upsert", cut_write)
    with pytest.raises(BtcbotError, match=r"was lost while writing .* Whether all of it was done isn't known: do it again"):
        plain.write(bars(9), **KEY._asdict())
    monkeypatch.undo()
    assert plain.write(bars(9), **KEY._asdict()) == (4, 0)


def test_a_writer_waits_for_another_one(plain: TimescaleStore) -> None:
    plain.write(bars(), **KEY._asdict())
    impatient = TimescaleStore(address_of(plain), schema=plain.schema, lock_timeout_s=0.05)
    with by_hand(plain) as connection, connection.transaction():
        connection.execute("SELECT FROM series FOR UPDATE")
        with impatient, pytest.raises(BtcbotError, match=r"has been writing to the series for over 0\.05 s"):
            impatient.write(bars(6), **KEY._asdict())
        assert impatient.read(*KEY).equals(bars())  # a reader doesn't
        impatient.close()
    assert plain.write(bars(6), **KEY._asdict()) == (1, 0)


def address_of(store: TimescaleStore, **changes: str) -> str:
    """Return the address of a store, perhaps with another user or password."""
    known = {**store.address.parameters, **changes}
    return f"postgresql://{known['user']}:{quote(known['password'], safe='')}@{known['host']}:{known['port']}/{known['dbname']}"


def test_an_interrupted_write_leaves_nothing(store: TimescaleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(bars(), **KEY._asdict())

    real = tables.copy_blocks

    def cut(columns: list[np.ndarray]) -> Iterator[bytes]:
        yield from list(real(columns))[:-1]
        raise KeyboardInterrupt

    monkeypatch.setattr("btcbot.data.tables.copy_blocks", cut)
    with pytest.raises(KeyboardInterrupt):
        store.write(bars(9, price=5.0), **KEY._asdict())
    monkeypatch.undo()
    assert store.read(*KEY).equals(bars()) and store.revisions(*KEY).empty
    assert store.write(bars(9, price=5.0), **KEY._asdict()) == (4, 5)


def test_pages(store: TimescaleStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("btcbot.data.tables.PAGE", 3)
    monkeypatch.setattr("btcbot.data.tables._LONG", 9)
    tick_key = KEY._replace(timeframe="TICK")
    for price in (1.0, 2.0):
        store.write(bars(9, price=price), **KEY._asdict())
        store.write(ticks([0, 1, 1, 1, 1, 1, 2, 3], np.arange(8) + price), **tick_key._asdict())
    assert store.read(*KEY).equals(bars(9, price=2.0))
    assert store.read(*tick_key)["bid"].tolist() == list(range(2, 10))
    found = [np.column_stack([rows["time"], rows["known_at"]]) for rows in store.versions(*tick_key)]
    assert len(np.concatenate(found)) == 16
    store.backup(tmp_path / "backup")
    with opened(address_of(store)) as other:
        other.restore(tmp_path / "backup")
        for key in (KEY, tick_key):
            assert other.revisions(*key).equals(store.revisions(*key)) and other.read(*key).equals(store.read(*key))


def test_a_store_adopts_from_another_one(store: TimescaleStore) -> None:
    store.write(bars(9), **KEY._asdict())
    other = KEY._replace(symbol="copy")
    store.adopt(*other, store.versions(*KEY))
    assert store.read(*other).equals(bars(9))
    with pytest.raises(BtcbotError, match="has rows already"):
        store.adopt(*other, store.versions(*KEY))
    with pytest.raises(BtcbotError, match="has no rows of"):
        list(store.versions("s", "x", "M1"))


# Questions


def test_a_question_can_only_read(store: TimescaleStore) -> None:
    store.write(bars(), **KEY._asdict())
    for question in (
        "DELETE FROM bar_rows",
        "WITH gone AS (DELETE FROM bar_rows RETURNING 1) SELECT * FROM gone",
        "SELECT 1; DELETE FROM bar_rows",
        "COPY bar_rows TO PROGRAM 'cat'",
        "COMMIT",
        "SET default_transaction_read_only = off",
        "SELECT setval('series_id_seq', 99)",
        "SELECT '\ud800'",
    ):
        with pytest.raises(BtcbotError, match="PostgreSQL can't answer"):
            store.query(question)
    assert store.read(*KEY).equals(bars())
    found = store.query(
        "SELECT 1.5::numeric AS n, NULL::int AS nothing, 'x' AS t, true AS b, date '2024-01-01' AS d, 2::smallint AS s, 7 AS n"
    )
    assert list(found.columns) == ["n", "nothing", "t", "b", "d", "s", "n"] and found.iloc[0, 0] == 1.5 and found.isna().sum().sum() == 1
    with opened(address_of(store), query_timeout_s=0.05) as hasty, pytest.raises(BtcbotError, match="statement timeout"):
        hasty.query("SELECT pg_sleep(5)")


# Migrations


def test_processes_that_start_at_once_make_the_tables_once(timescale_server: str) -> None:
    code = (
        "import sys; from btcbot.data.timescale import TimescaleStore; sys.stdin.readline(); "
        "print(TimescaleStore(sys.argv[1], schema=sys.argv[2]).series())"
    )
    schema = fresh_name()
    starters = [
        subprocess.Popen([sys.executable, "-c", code, timescale_server, schema], stdin=-1, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    try:
        for starter in starters:
            assert starter.stdin is not None
            starter.stdin.write("\n")
            starter.stdin.flush()
        assert [starter.communicate() for starter in starters] == [("[]\n", "")] * 2
        with TimescaleStore(timescale_server, schema=schema) as store, by_hand(store) as connection:
            assert store.series() == []
            rows = connection.execute("SELECT number, checksum FROM migrations ORDER BY number").fetchall()
            assert rows == [(step.number, step.checksum) for step in MIGRATIONS]
    finally:
        removed(timescale_server, [schema])


def test_threads_that_start_at_once(plain_server: str) -> None:
    schema, found = fresh_name(), list[object]()

    def start() -> None:
        with TimescaleStore(plain_server, schema=schema) as store:
            found.append(store.write(bars(), **KEY._asdict()))

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(0, 0)] * 4 + [(5, 0)]
    removed(plain_server, [schema])


def test_tables_of_another_version_are_refused(plain: TimescaleStore) -> None:
    plain.write(bars(), **KEY._asdict())
    with by_hand(plain) as connection:
        connection.execute("INSERT INTO migrations VALUES (99, 'later', 'x')")
        plain.close()
        with pytest.raises(BtcbotError, match=r"changed by a newer btcbot \(migration 99; this one knows 4\): update"):
            plain.series()
        connection.execute("DELETE FROM migrations WHERE number = 99")
        connection.execute("UPDATE migrations SET checksum = 'x'")
        with pytest.raises(BtcbotError, match="Migration 1 in the database is not the one of this btcbot"):
            plain.series()


def test_a_migration_that_fails_changes_nothing(plain: TimescaleStore) -> None:
    plain.series()
    steps = [*MIGRATIONS, Migration(5, "wrong", "postgresql", "CREATE TABLE half (a int); SELECT nothing")]
    with by_hand(plain) as connection:
        with pytest.raises(psycopg.Error):
            migrate(connection, plain.schema, steps)
        assert connection.execute("SELECT to_regclass('half'), max(number) FROM migrations").fetchone() == (None, 1)


def test_a_database_that_gets_the_extension_later_is_changed_over(timescale_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import btcbot.data.schema as module

    with opened(timescale_server) as store:
        monkeypatch.setattr(module, "read_offer", lambda connection: read_offer(connection)._replace(version="", is_community=False))
        store.write(bars(200), **KEY._asdict(), known_at=10)
        store.write(bars(2, price=5.0), **KEY._asdict(), known_at=20)
        before, versions = store.read(*KEY), store.revisions(*KEY)
        assert store.compact() == 0 and any(finding.level == "warn" for finding in store.check())
        monkeypatch.undo()
        store.close()
        assert store.read(*KEY).equals(before) and store.revisions(*KEY).equals(versions)
        with by_hand(store) as connection:
            count = "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_schema = %s"
            assert connection.execute(sql.SQL(count), [store.schema]).fetchone() == (1,)
        assert set(levels(store)) == {"ok"}


def test_who_may_only_read_reads(store: TimescaleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import btcbot.data.schema as module

    store.write(bars(), **KEY._asdict())
    store.annotate(*KEY, {"clock": "UTC"})
    reader = fresh_name()
    with by_hand(store) as connection:
        name, schema = sql.Identifier(reader), sql.Identifier(store.schema)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal("short")))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, name))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(schema, name))
        # Migrations that wait are left to the owner.
        connection.execute("DELETE FROM migrations WHERE number = 4")
        monkeypatch.setattr(module, "read_offer", lambda connection: read_offer(connection)._replace(version="9", is_community=True))
        try:
            with TimescaleStore(address_of(store, user=reader, password="short"), schema=store.schema) as reading:
                assert reading.read(*KEY).equals(bars()) and len(reading.notes(*KEY)) == 1 and len(reading.info()) == 1
                assert reading.query("SELECT count(*) AS n FROM bars")["n"].tolist() == [5]
                assert not [finding for finding in reading.check() if finding.level == "fail"]
                with pytest.raises(BtcbotError, match="permission denied"):
                    reading.write(bars(6), **KEY._asdict())
            elsewhere = TimescaleStore(address_of(store, user=reader, password="short"), schema=fresh_name())
            with pytest.raises(BtcbotError, match="sign in as a user who may create the schema"):
                elsewhere.series()
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(name))
            connection.execute(sql.SQL("DROP ROLE {}").format(name))


# Plans


def interleaved(store: TimescaleStore) -> SeriesKey:
    """Fill a store with 20 series side by side, as a recorder does, and return one of them."""
    for number in range(20):
        store.write(bars(1), **KEY._replace(symbol=f"S{number}")._asdict())
    with by_hand(store) as connection:
        connection.execute("""
            INSERT INTO bar_rows (time, open, high, low, close, tick_volume, real_volume, time_server, known_at, spread, series)
            SELECT r.time + n * interval '1 minute', n, n, n, n, 1, 1, -1, r.known_at, 1, r.series
            FROM generate_series(1, 3000) n, (SELECT * FROM bar_rows) r ORDER BY n, r.series""")
        connection.execute("ANALYZE bar_rows")
    return KEY._replace(symbol="S7")


AN_HOUR = "SELECT * FROM {table} WHERE series = {series} AND time >= '2024-02-01' AND time < '2024-02-01 01:00' ORDER BY time"
LAST_ROW = "SELECT max(time) FROM {table} WHERE series = {series}"


def buffers(connection: "psycopg.Connection", question: sql.Composed) -> tuple[int, str]:
    """Return how many pages a question reads, and its plan."""
    row = connection.execute(sql.SQL("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) ") + question).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], json.dumps(plan)


def test_index_choice(plain: TimescaleStore) -> None:
    key = interleaved(plain)
    pages: dict[tuple[str, str, str], int] = {}
    with by_hand(plain) as connection:
        found = connection.execute("SELECT id FROM series WHERE symbol = %s", [key.symbol]).fetchone()
        assert found is not None
        for layout, order in (("side by side", "time, series"), ("one after the other", "series, time")):
            for index, columns in (("btree", "btree (series, time)"), ("brin", "brin (time) WITH (pages_per_range = 16)")):
                table = f"{index} {layout}"
                given = {
                    "table": sql.Identifier(table),
                    "series": sql.Literal(found[0]),
                    "order": sql.SQL(order),
                    "index": sql.SQL(columns),
                }
                connection.execute(sql.SQL("CREATE TABLE {table} AS SELECT * FROM bar_rows ORDER BY {order}").format(**given))
                connection.execute(sql.SQL("CREATE INDEX ON {table} USING {index}").format(**given))
                connection.execute(sql.SQL("ANALYZE {table}").format(**given))
                for what, question in (("an hour", AN_HOUR), ("the last row", LAST_ROW)):
                    pages[index, layout, what], plan = buffers(connection, sql.SQL(question).format(**given))
                    assert ("Seq Scan" in plan) == (index == "brin" and what == "the last row")
    print(pages)
    assert pages["btree", "side by side", "an hour"] < pages["brin", "side by side", "an hour"]
    for layout in ("side by side", "one after the other"):
        assert pages["btree", layout, "the last row"] * 20 < pages["brin", layout, "the last row"]
    assert pages["btree", "one after the other", "an hour"] * 20 < pages["brin", "one after the other", "an hour"]


def test_check_reads_the_plans(store: TimescaleStore) -> None:
    interleaved(store)
    assert not [str(finding) for finding in store.check() if finding.level == "fail"]
    with by_hand(store) as connection:
        connection.execute("ALTER TABLE bar_rows DROP CONSTRAINT bar_rows_pkey")
    slow = [finding for finding in store.check() if finding.level == "fail"]
    assert len(slow) >= 2 and all("Slow: " in finding.text and "run ANALYZE" in finding.remedy for finding in slow)
    assert any("reading a range of" in finding.text and "Seq Scan" in finding.text for finding in slow)


def test_check_finds_rows_that_somebody_changed(plain: TimescaleStore) -> None:
    plain.write(bars(), **KEY._asdict(), known_at=10)
    plain.write(bars(3, price=5.0), **KEY._asdict(), known_at=20)
    with by_hand(plain) as connection:
        connection.execute("UPDATE bar_revisions SET known_until = known_at WHERE time = (SELECT min(time) FROM bar_rows)")
        connection.execute("DELETE FROM bar_rows WHERE time = (SELECT max(time) FROM bar_revisions)")
        connection.execute("UPDATE bar_rows SET series = 99 WHERE time = (SELECT max(time) FROM bar_rows)")
    found = [finding.text for finding in plain.check() if finding.level == "fail"]
    assert found == [
        "bar_revisions has 1 versions that end before they begin.",
        "bar_revisions has 1 versions whose successor is missing.",
        "bar_rows has 1 rows of no series.",
    ]


def test_check_looks_at_the_way_to_the_server(plain: TimescaleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btcbot.data.tables_care.ip_address", lambda host: type("Far", (), {"is_loopback": False}))
    monkeypatch.setattr("btcbot.data.tables_care._CHECKSUMS", "SELECT 'off'")
    found = [str(finding) for finding in plain.check() if finding.level == "warn"]
    assert any("is not encrypted" in text for text in found) and any("no checksums" in text for text in found)


# TimescaleDB


def chunks(store: TimescaleStore, table: str = "bar_rows") -> list[bool]:
    """Return for each chunk whether it is compressed, oldest first."""
    asked = """SELECT is_compressed FROM timescaledb_information.chunks
        WHERE hypertable_schema = %s AND hypertable_name = %s ORDER BY range_start"""
    with by_hand(store) as connection:
        return [row[0] for row in connection.execute(sql.SQL(asked), [store.schema, table])]


def test_chunks_are_compressed_and_can_still_be_changed(timescale: TimescaleStore) -> None:
    rows = bars(400, step=86_400_000)
    timescale.write(rows, **KEY._asdict(), known_at=10)
    timescale.write(ticks([0, 5, 5], [1.0, 2.0, 3.0]), **KEY._replace(timeframe="TICK")._asdict())
    assert chunks(timescale) == [False] * 5
    assert timescale.compact() == 4 and chunks(timescale) == [True] * 4 + [False]
    assert timescale.compact() == 0
    assert timescale.read(*KEY).equals(rows)
    assert timescale.write(rows, **KEY._asdict()) == (0, 0)
    assert timescale.compact() == 0  # what changed nothing touched no chunk
    assert timescale.write(rows[5:7] + 1, **KEY._asdict(), known_at=20) == (0, 2)
    assert timescale.write(bars(3, START + 3_600_000), **KEY._asdict(), known_at=30) == (3, 0)
    assert len(timescale.revisions(*KEY)) == 4 and len(timescale.read(*KEY)) == 403
    assert timescale.compact() == 1
    assert set(levels(timescale)) == {"ok"}
    assert timescale.drop_before(*KEY, before=rows.index[200]) == 203
    assert len(chunks(timescale)) == 3 and timescale.read(*KEY).equals(rows[200:])


def test_a_chunk_with_rows_of_another_series_stays(timescale: TimescaleStore) -> None:
    rows = bars(400, step=86_400_000)
    timescale.write(rows, **KEY._asdict())
    timescale.write(rows[150:], **KEY._replace(symbol="other")._asdict())
    assert timescale.drop_before(*KEY, before=rows.index[399]) == 399
    assert len(chunks(timescale)) == 3 and timescale.read(*KEY._replace(symbol="other")).equals(rows[150:])


def test_aggregates_are_what_resampling_gives(timescale: TimescaleStore) -> None:
    random = np.random.default_rng(5)
    count = 5 * 1440
    prices = 100 + random.normal(size=count).cumsum()
    spread = random.integers(0, 4, count)
    rows = bars(count).assign(
        open=prices,
        high=prices + 1,
        low=prices - 1,
        close=prices[::-1],
        spread=spread,
        tick_volume=random.integers(0, 9, count),
        real_volume=10**12,
    )
    for name in ("open", "high", "low", "close"):
        rows.loc[random.random(count) < 0.2, name] = np.nan
    rows.iloc[1440:1460, :4] = np.nan  # intervals without any price
    rows = check_bars(rows[random.random(count) < 0.8])
    timescale.write(rows, **KEY._asdict(), known_at=10)
    timescale.write(bars(50), **KEY._replace(timeframe="M5")._asdict())  # no part of them

    def aggregated(timeframe: str) -> pd.DataFrame:
        found = timescale.query(sql.SQL("SELECT * FROM {} ORDER BY time").format(sql.Identifier(f"bars_{timeframe.lower()}")).as_string())
        assert set(found["timeframe"]) == {timeframe} and set(found["symbol"]) == {KEY.symbol}
        return check_bars(found.set_index("time"))

    for refreshed in (False, True):
        for timeframe in ("M5", "H1", "D1"):
            pd.testing.assert_frame_equal(aggregated(timeframe), resample_bars(rows, timeframe), check_exact=True, check_freq=False)
        if not refreshed:
            timescale.compact()
    timescale.write(rows[100:103] + 1, **KEY._asdict(), known_at=20)  # old ones, revised
    later = check_bars(bars(30, int(rows.index.asi8[-1]) + 60_000))
    timescale.write(later, **KEY._asdict())
    timescale.compact()
    now = timescale.read(*KEY)
    for timeframe in ("M5", "H1", "D1"):
        assert aggregated(timeframe).equals(resample_bars(now, timeframe))
    timescale.drop_before(*KEY, before="2024-02-03")
    now = timescale.read(*KEY)
    assert aggregated("D1").equals(resample_bars(now, "D1"))


def test_jobs_wait_and_take_changes_in_one_go(timescale: TimescaleStore) -> None:
    timescale.series()
    with by_hand(timescale) as connection:
        asked = (
            "SELECT proc_name, config->>'buckets_per_batch', next_start > now() + interval '50 minutes' FROM timescaledb_information.jobs"
        )
        rows = connection.execute(
            sql.SQL(asked + " WHERE proc_name LIKE 'policy%%' AND job_id >= 1000 ORDER BY job_id DESC LIMIT 5")
        ).fetchall()
    assert {row[:2] for row in rows} == {("policy_compression", None), ("policy_refresh_continuous_aggregate", "0")}


def test_the_apache_edition_does_without(timescale_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import btcbot.data.schema as module

    monkeypatch.setattr(module, "read_offer", lambda connection: read_offer(connection)._replace(is_community=False))
    with opened(timescale_server) as store:
        store.write(bars(400, step=86_400_000), **KEY._asdict())
        assert store.compact() == 0 and chunks(store) == [False] * 5
        assert store.drop_before(*KEY, before="2025-01-01") > 300 and len(chunks(store)) == 1
        assert levels(store) == ["ok", "warn", "ok"]
