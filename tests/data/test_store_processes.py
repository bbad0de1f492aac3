"""The embedded store under killed writers, readers at work, several writers and a disk that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from store_writer import BLOCK, CHANGED, HOUR, KEY, START, TICKS, added, append_round, write_round, write_ticks

from btcbot.core.errors import BtcbotError
from btcbot.data.embedded import EmbeddedStore
from btcbot.market.bars import time_ms


class Processes:
    """The process that starts writers and readers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("store_writer.py")], text=True, bufsize=1, stdin=-1, stdout=-1
        )

    def ask(self, *order: object) -> int:
        """Send one order and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, role: str, folder: Path, number: int, log: Path) -> int:
        """Start a process and return its id."""
        return self.ask(role, str(folder), number, str(log))

    def kill(self, pid: int) -> None:
        """Kill a process, and see that it was alive."""
        os.kill(pid, signal.SIGKILL)
        assert self.ask("wait", pid) == -signal.SIGKILL


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Start the process once; closing its input ends it."""
    made = Processes()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert made.process.wait(10) == 0


def left_over(store: EmbeddedStore) -> list[Path]:
    """Return the unfinished files."""
    return [path for path in store.folder.glob(".*.tmp/**/*") if path.is_file()]


def check_rounds(store: EmbeddedStore, acknowledged: int, *, with_ticks: bool = True) -> None:
    """Assert that each acknowledged round is there, once and whole."""
    bars = store.read(**KEY)
    times = time_ms(bars.index)
    assert (np.diff(times) > 0).all()
    values = dict(zip(times.tolist(), bars["close"].tolist(), strict=True))
    for number in range(acknowledged + 1):
        assert {values[at] for at in added(number).tolist()} == {float(number)}
    assert {values[at] for at in CHANGED.tolist()} <= {acknowledged, acknowledged + 1}
    rest = len(bars) - len(CHANGED) - BLOCK * (acknowledged + 1)
    assert 0 <= rest <= BLOCK  # of the round that was killed
    if with_ticks:
        bids = store.read(**TICKS)["bid"].to_numpy()
        pairs = np.arange(len(bids)) // 2
        last = BLOCK // 2 * (acknowledged + 1)  # the first pair of the round behind
        assert BLOCK * (acknowledged + 1) <= len(bids) <= BLOCK * (acknowledged + 2)
        expected = np.minimum((pairs + 10) // (BLOCK // 2), acknowledged)
        assert ((bids == expected) | ((pairs >= last - 10) & (bids == acknowledged + 1))).all()


@pytest.mark.parity
def test_killed_writers_lose_nothing_acknowledged(processes: Processes, tmp_path: Path, rounds: int) -> None:
    chance, store, log, seen = np.random.default_rng(7), EmbeddedStore(tmp_path / "store", 5), tmp_path / "log", tmp_path / "seen"
    write_round(store, 0)
    write_ticks(store, 0)
    watcher = processes.start("watch", store.folder, 0, seen)
    acknowledged = unfinished = kills = 0
    pace = 0.2  # seconds to the first acknowledgement: of an idle machine at first, then as measured
    while kills < rounds or (not (acknowledged and unfinished) and kills < 20 * rounds):
        pid, began = processes.start("write", store.folder, acknowledged + 1, log), time.monotonic()
        time.sleep(chance.uniform(0.0, pace))
        while kills == 0 and not (log.exists() and log.stat().st_size) and time.monotonic() < began + 30:
            time.sleep(0.01)
        pace = max(pace, time.monotonic() - began) if kills == 0 else pace
        processes.kill(pid)
        kills += 1
        acknowledged = max([acknowledged, *map(int, log.read_text().split())] if log.exists() else [0])
        unfinished += len(left_over(store))
        check_rounds(store, acknowledged)
    processes.kill(watcher)  # it would have ended with an error
    assert acknowledged > 0, "no writer ever got to its first acknowledgement"
    assert unfinished > 0, "no writer was killed in the middle of a file"
    write_round(store, acknowledged + 1)  # the lock of a dead writer is free, and its leftovers go
    write_ticks(store, acknowledged + 1)
    check_rounds(store, acknowledged + 1)
    assert not left_over(store)
    assert {finding.level for finding in store.check()} == {"ok"}
    readings = len(seen.read_text().split())
    print(f"{kills} kills, {unfinished} files cut short, {acknowledged} rounds acknowledged, {readings} readings meanwhile")
    assert readings >= kills


def test_readers_see_whole_months_and_no_holes_while_a_writer_appends(processes: Processes, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store")
    append_round(store, 0)
    pid = processes.start("append", store.folder, 1, tmp_path / "log")
    deadline, counts = time.monotonic() + 10, list[int]()
    try:
        while len(set(counts)) < 15 and time.monotonic() < deadline:
            bars = store.read(**KEY)
            times = time_ms(bars.index)
            assert times[0] == START and (np.diff(times) == HOUR).all()
            assert (bars["close"].to_numpy() == np.arange(len(bars)) // 500).all()
            counts.append(len(bars))
            if len(counts) % 5 == 0:
                assert store.query("SELECT count(*) AS n FROM bars")["n"][0] >= counts[-1]
    finally:
        processes.kill(pid)
    assert counts == sorted(counts)
    assert len(set(counts)) >= 5, "the writer hardly wrote"


def test_readers_find_no_hole_while_rows_are_dropped(processes: Processes, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store")
    for number in range(16):
        append_round(store, number)
    pid = processes.start("drop", store.folder, 0, tmp_path / "log")
    firsts = []
    while not firsts or (firsts[-1] < START + 19 * 300 * HOUR and len(firsts) < 10_000):
        times = time_ms(store.read(**KEY).index)
        assert times[-1] == START + 7999 * HOUR and (np.diff(times) == HOUR).all()
        firsts.append(int(times[0]))
    assert processes.ask("wait", pid) == 0
    assert firsts == sorted(firsts)


def test_writers_wait_for_each_other(processes: Processes, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store")
    pids = [processes.start("share", store.folder, number, tmp_path / "log") for number in range(4)]
    assert [processes.ask("wait", pid) for pid in pids] == [0, 0, 0, 0]
    bars = store.read(**KEY)
    assert time_ms(bars.index).tolist() == (START + np.arange(8000) * HOUR).tolist()
    assert (bars["close"].to_numpy() == np.arange(8000) % 4).all()


def test_a_backup_while_a_writer_is_at_work_is_of_one_moment(processes: Processes, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "store")
    append_round(store, 0)
    pid = processes.start("append", store.folder, 1, tmp_path / "log")
    try:
        for number in range(3):
            least = len(store.read(**KEY))
            store.backup(tmp_path / f"{number}.tar")
            most = len(store.read(**KEY))
            restored = EmbeddedStore(tmp_path / f"restored {number}")
            restored.restore(tmp_path / f"{number}.tar")
            bars = restored.read(**KEY)
            assert least <= len(bars) <= most and len(bars) % 500 == 0  # whole writes
            assert (bars["close"].to_numpy() == np.arange(len(bars)) // 500).all()
            assert {finding.level for finding in restored.check()} == {"ok"}
    finally:
        processes.kill(pid)


def test_a_full_disk_leaves_the_old_bars(processes: Processes, tmp_path: Path) -> None:
    store, log = EmbeddedStore(tmp_path / "store"), tmp_path / "log"
    write_round(store, 0)
    before = store.read(**KEY)
    assert processes.ask("wait", processes.start("limited", store.folder, 1, log)) == 0
    assert "nothing is stored, and no file is damaged" in log.read_text()
    assert store.read(**KEY).equals(before)
    assert not left_over(store)
    assert write_round(store, 1).updated == len(CHANGED)


@pytest.mark.parametrize("call", ["fsync", "replace", "open", "write_table"])
def test_each_failing_call_leaves_old_or_new_months(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for failing in range(30):
        store = EmbeddedStore(tmp_path / f"{call}{failing}")
        write_round(store, 0)
        owner = {"replace": Path, "write_table": pq.ParquetWriter}.get(call, os)
        real, calls = getattr(owner, call), iter(range(1000))

        def fail(*arguments: object, failing: int = failing, real=real, calls=calls, **options: object) -> object:
            if next(calls) == failing:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, fail)
            try:
                write_round(store, 1)
            except BtcbotError as error:
                assert "No space left on device" in str(error)
            else:
                break  # fewer calls than that
        check_rounds(store, 0, with_ticks=False)
        write_round(store, 1)
        check_rounds(store, 1, with_ticks=False)
        assert {finding.level for finding in store.check()} == {"ok"}
        assert not left_over(store)
    assert 3 <= failing < 29, "a write makes more such calls, but not so many"
