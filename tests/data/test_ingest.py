"""Ingestion under killed processes, failing terminals and clocks that change."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from ingest_follower import MINUTES, SPEED, market
from market_terminal import BARS, MINUTE, NY7, START, TICK, Market, MemoryStore, TroubledTerminal, made_ticks

from btcbot.core.errors import BtcbotError
from btcbot.data.embedded import EmbeddedStore
from btcbot.data.gaps import GapLedger
from btcbot.data.grid import count_slots
from btcbot.data.ingest import DataIngestor
from btcbot.market.bars import time_ms
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars
from btcbot.terminal.connect import connect

SINCE = START + 2 * MINUTE  # so that a tick before the first one is there to be seen


def since(frame: pd.DataFrame, start: int = SINCE) -> pd.DataFrame:
    """Return the rows from `start` on."""
    return frame[time_ms(frame.index) >= start]


def same(store, known: Market, now: int) -> bool:
    """Tell whether a store has exactly what happened."""
    bars, ticks = (since(frame) for frame in known.finished(now))
    return bool(store.read("s", *BARS).equals(bars) and store.read("s", *TICK).equals(ticks))


# Followers that are killed


class Followers:
    """The process that starts followers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("ingest_follower.py")], text=True, bufsize=1, stdin=-1, stdout=-1
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def ask(self, **order: object) -> int:
        """Send one order and return the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def followers() -> Iterator[Followers]:
    """Start the process once; closing its input ends it."""
    made = Followers()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert made.process.wait(10) == 0


def lines(log: Path) -> list:
    """Return the whole lines of a log."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def acknowledged(log: Path) -> list[list]:
    """Return what was acknowledged."""
    return [line for line in lines(log) if isinstance(line, list)]


def wait_for(true, seconds: float = 60.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parity
def test_killed_followers_lose_nothing_and_store_nothing_twice(followers: Followers, tmp_path: Path, rounds: int) -> None:
    most = 15 if rounds <= 20 else 100
    chance, store, log, epoch = np.random.default_rng(5), EmbeddedStore(tmp_path / "store"), tmp_path / "log", time.time() - 2.0
    kills = seen = 0
    while kills < most or (seen < most and kills < 4 * most):
        began = time.monotonic()
        pid = followers.ask(folder=str(tmp_path), epoch=epoch, log=str(log), seed=kills, share=0.05, flush_s=90.0)
        if kills == 0:
            wait_for(lambda: acknowledged(log))
            pace = 2.0 * (time.monotonic() - began)  # of this machine: by then some more writes are under way
        time.sleep(chance.uniform(0.0, pace))
        os.kill(pid, signal.SIGKILL)
        assert followers.ask(wait=pid) == -signal.SIGKILL
        kills += 1
        for timeframe, first, last, rows in acknowledged(log)[seen:]:
            assert len(store.read("s", "BTCUSD", timeframe, first, last + 1)) == rows
        seen = len(acknowledged(log))
    assert seen >= most, "the followers hardly wrote"
    known, end = market(), START + MINUTES * MINUTE
    pid = followers.ask(folder=str(tmp_path), epoch=epoch - MINUTES * 60 / SPEED, log=str(log), seed=1, share=0.0, flush_s=90.0)
    wait_for(lambda: store.span("s", *TICK)[1] == time_ms(known.finished(end)[1].index)[-1])
    os.kill(pid, signal.SIGTERM)
    assert followers.ask(wait=pid) == 0
    assert same(store, known, end)
    ledger = GapLedger(tmp_path / "gaps.sqlite")
    assert {gap.reason for gap in ledger.open()} <= {"empty"}, ledger.open()


def test_a_terminated_follower_writes_what_it_holds(followers: Followers, tmp_path: Path) -> None:
    store, log, epoch = EmbeddedStore(tmp_path / "store"), tmp_path / "log", time.time() - 2.0
    pid = followers.ask(folder=str(tmp_path), epoch=epoch, log=str(log), seed=1, share=0.0, flush_s=1e9)
    wait_for(lambda: len(acknowledged(log)) == 2)  # what it caught up with
    time.sleep(1.0)  # polls that hold what they get
    assert len(acknowledged(log)) == 2
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert followers.ask(wait=pid) == 0
    assert time.monotonic() - began < 2.0
    bars, ticks = store.read("s", *BARS), store.read("s", *TICK)
    assert [timeframe for timeframe, *_ in acknowledged(log)] == ["M1", "TICK"] * 2
    assert len(bars) + len(ticks) == lines(log)[-1]["rows"]
    known = market()
    assert bars.equals(since(known.bars)[: len(bars)]) and ticks.equals(since(known.ticks)[: len(ticks)])


def test_the_twin_is_followed_bar_by_bar_over_a_change_of_its_clock(tmp_path: Path) -> None:
    twin = connect("twin://?seed=3&from=2024-03-08&to=2024-03-11&start=2024-03-10T05:00&profile=ecn-ny7")
    assert twin.initialize()
    end, store, ledger = utc_ms("2024-03-10T09:00"), EmbeddedStore(tmp_path / "store"), GapLedger(tmp_path / "gaps.sqlite")

    def sleep(seconds: float) -> None:  # so long sleeps the follower until a new bar opens
        twin.advance(1)

    ingestor = DataIngestor(twin, store, clock=twin.clock, source="twin", ledger=ledger, sleep=sleep)
    report = ingestor.follow(
        [("BTCUSD", "M1")],
        lambda: twin.now >= end + MINUTE,
        since_ms=utc_ms("2024-03-08"),
        now=lambda: twin.now,
        is_open=lambda key, at: True,
    )
    expected = synthetic_bars(3, utc_ms("2024-03-08"), utc_ms("2024-03-11"))
    bars = store.read("twin", "BTCUSD", "M1")
    last = time_ms(bars.index)[-1]
    assert end - 2 * MINUTE <= last <= end + MINUTE
    assert bars[["open", "high", "low", "close"]].equals(expected[["open", "high", "low", "close"]][: len(bars)])
    assert report.rows == len(bars) and not report.reconnects
    assert {gap.reason for gap in ledger.open()} <= {"empty"}


# Terminals that fail

# The second and the third change their clocks at the 11th and the 10th hour.
STARTS = [START, utc_ms("2024-11-02T19:00"), utc_ms("2024-03-09T21:00")]
TWICE = utc_ms("2024-11-03T05:00"), utc_ms("2024-11-03T07:00")


@cache
def known_from(start: int) -> Market:
    """Return a market of 25 hours."""
    return Market(made_ticks(1, 1500, per_minute=3.0, start=start))


@pytest.mark.parity
@settings(max_examples=int(os.environ.get("BTCBOT_ROUNDS", "8")), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    dead=st.sampled_from([0.0, 0.02]),
    timeframe=st.sampled_from(["M1", "TICK"]),
    begin=st.sampled_from(STARTS),
)
def test_whatever_fails_the_store_becomes_the_truth_and_the_numbers_add_up(
    seed: int, share: float, dead: float, timeframe: str, begin: int
) -> None:
    chance, store, now, clock = np.random.default_rng(seed), MemoryStore(), begin + 900 * MINUTE, [0]
    known, first = known_from(begin), begin + 2 * MINUTE
    ledger = GapLedger(":memory:", now_ms=lambda: clock[0])
    terminal = TroubledTerminal(known, lambda: now, chance, share, dead, maxbars=int(chance.integers(200, 1000)))
    for run in range(80):
        clock[0] += 50_000_000
        now = min(now + 100 * MINUTE, begin + 1500 * MINUTE)
        ingestor = DataIngestor(
            terminal, store, clock=NY7, source="s", ledger=ledger, sleep=lambda s: None, page=int(chance.integers(5, 400))
        )
        start = first if run else first + int(chance.integers(0, 600)) * MINUTE  # older ones are wanted later
        try:
            report = ingestor.backfill("BTCUSD", timeframe, start, now + 5 * MINUTE, resume=bool(run and chance.random() < 0.9))
        except BtcbotError as error:
            assert "failed" in str(error)
        else:
            assert report.is_accounted, report
            if timeframe == "M1" and run and report.until > begin + 1000 * MINUTE:
                key = ingestor.key_of("BTCUSD", "M1")
                missing = sum(ledger.totals(key, first, report.until, ingestor._count(key)).values())
                assert len(store.frames[key]) + missing == count_slots(NY7, "M1", first, report.until)
        truth = since(known.finished(now)[timeframe == "TICK"], first)
        truth = truth[(time_ms(truth.index) < TWICE[0]) | (time_ms(truth.index) >= TWICE[1])]
        is_over = run and now == begin + 1500 * MINUTE
        if is_over and not ledger.open() and store.read("s", "BTCUSD", timeframe).equals(truth):
            return
    raise AssertionError(ledger.open())
