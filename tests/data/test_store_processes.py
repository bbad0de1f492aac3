"""The store under killed writers, readers at work, several writers and a disk that fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from store_writer import BLOCK, CHANGED, HOUR, KEY, START, added, write_round

from btcbot.core.errors import BtcbotError
from btcbot.data.store import Store
from btcbot.market.bars import time_ms

KILLS = 20


class Writers:
    """The process that starts writers."""

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
        """Start a writer and return its process id."""
        return self.ask(role, str(folder), number, str(log))

    def kill(self, pid: int) -> None:
        """Kill a writer, and see that it was alive."""
        os.kill(pid, signal.SIGKILL)
        assert self.ask("wait", pid) == -signal.SIGKILL


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    """Start the process once; closing its input ends it."""
    made = Writers()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert made.process.wait(10) == 0


def check_rounds(store: Store, acknowledged: int) -> int:
    """Assert that each acknowledged round is there, once and whole; return the number of rounds begun."""
    bars = store.read(**KEY)
    times = time_ms(bars.index)
    assert (np.diff(times) > 0).all()
    values = dict(zip(times.tolist(), bars["close"].tolist(), strict=True))
    for number in range(acknowledged + 1):
        assert {values[at] for at in added(number).tolist()} == {float(number)}
    changed = {values[at] for at in CHANGED.tolist()}
    assert changed <= {acknowledged, acknowledged + 1}
    rest = len(bars) - len(CHANGED) - BLOCK * (acknowledged + 1)
    assert 0 <= rest <= BLOCK  # of the round that was killed
    return int(max(values.values())) + 1


def test_killed_writers_lose_nothing_acknowledged(writers: Writers, tmp_path: Path) -> None:
    chance, store, log = np.random.default_rng(7), Store(tmp_path / "store", lock_timeout_s=5), tmp_path / "log"
    write_round(store, 0)
    acknowledged = left_over = kills = 0
    pace = 0.12  # seconds to the first acknowledgement: of an idle machine at first, then as measured
    while kills < KILLS or (not (acknowledged and left_over) and kills < 20 * KILLS):
        pid, began = writers.start("write", store.folder, acknowledged + 1, log), time.monotonic()
        time.sleep(chance.uniform(0.0, pace))
        while kills == 0 and not (log.exists() and log.stat().st_size) and time.monotonic() < began + 30:
            time.sleep(0.01)
        pace = max(pace, time.monotonic() - began) if kills == 0 else pace
        writers.kill(pid)
        kills += 1
        acknowledged = max([acknowledged, *map(int, log.read_text().split())] if log.exists() else [0])
        left_over += len(list(store.folder.rglob("*.tmp")))
        check_rounds(store, acknowledged)
    assert acknowledged > 0, "no writer ever got to its first acknowledgement"
    assert left_over > 0, "no writer was killed in the middle of a file"
    write_round(store, acknowledged + 1)  # the lock of a dead writer is free, and its leftovers go
    check_rounds(store, acknowledged + 1)
    assert not list(store.folder.rglob("*.tmp"))
    assert {finding.level for finding in store.check()} == {"ok"}


def test_readers_see_whole_months_and_no_holes_while_a_writer_appends(writers: Writers, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    pid = writers.start("append", store.folder, 0, tmp_path / "log")
    deadline, counts = time.monotonic() + 10, list[int]()
    try:
        while len(set(counts)) < 25 and time.monotonic() < deadline:
            if not store.keys():
                continue
            bars = store.read(**KEY)
            times = time_ms(bars.index)
            assert times[0] == START and (np.diff(times) == HOUR).all()
            assert (bars["close"].to_numpy() == np.arange(len(bars)) // 500).all()
            counts.append(len(bars))
            if len(counts) % 5 == 0:
                assert store.query("SELECT count(*) AS n FROM bars")["n"][0] >= counts[-1]
    finally:
        writers.kill(pid)
    assert counts == sorted(counts)
    assert len(set(counts)) >= 5, "the writer hardly wrote"


def test_writers_wait_for_each_other(writers: Writers, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    pids = [writers.start("share", store.folder, number, tmp_path / "log") for number in range(4)]
    assert [writers.ask("wait", pid) for pid in pids] == [0, 0, 0, 0]
    bars = store.read(**KEY)
    assert time_ms(bars.index).tolist() == (START + np.arange(8000) * HOUR).tolist()
    assert (bars["close"].to_numpy() == np.arange(8000) % 4).all()


def test_a_full_disk_leaves_the_old_bars(writers: Writers, tmp_path: Path) -> None:
    store, log = Store(tmp_path / "store"), tmp_path / "log"
    write_round(store, 0)
    before = store.read(**KEY)
    assert writers.ask("wait", writers.start("limited", store.folder, 1, log)) == 0
    assert "nothing is stored, and no file is damaged" in log.read_text()
    assert store.read(**KEY).equals(before)
    assert not list(store.folder.rglob("*.tmp"))
    assert write_round(store, 1).updated == len(CHANGED)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_each_failing_call_leaves_old_or_new_months(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for failing in range(20):
        store = Store(tmp_path / f"{call}{failing}")
        write_round(store, 0)
        owner = Path if call == "replace" else os
        real, calls = getattr(owner, call), iter(range(1000))

        def fail(*arguments: object, failing: int = failing, real=real, calls=calls) -> object:
            if next(calls) == failing:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, fail)
            try:
                write_round(store, 1)
            except BtcbotError as error:
                assert "No space left on device" in str(error)
            else:
                break  # fewer calls than that
        check_rounds(store, 0)
        write_round(store, 1)
        check_rounds(store, 1)
        assert {finding.level for finding in store.check()} == {"ok"}
    assert failing >= 3, "a write makes more such calls"
