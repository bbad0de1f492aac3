"""The trader of a schedule as a process, and what goes wrong on its machine and on the server's: a full disk, a clock that jumps.

Broker and server are those of `tests.faults.processes`.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter

from btcbot.core.errors import BtcbotError
from btcbot.engine.limits import RiskLimits
from btcbot.market.clock import server_clock
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.remote import RemoteTerminal
from btcbot.terminal.transport import Transport
from btcbot.trading.live import KillSwitch, LiveLoop
from btcbot.trading.trader import Trader
from tests.chaos.link import Link
from tests.chaos.schedules import LIVE_END_S, Schedule
from tests.chaos.strategy import certified, past
from tests.faults import processes
from tests.faults.processes import TOKEN, market, say
from tests.faults.schedules import SPEED, Kill

FAR = 0.03  # share of the price: no stop is reached, so that the end doesn't hang on the second of an entry
LIMITS = RiskLimits(max_lots=10_000, max_drawdown=1.0, max_daily_loss=1.0)
PATIENCE_S = 3.0  # five market minutes
BEGAN = "began"  # file with the moment at which the market began, on the clock that all processes share


class MarketTime:
    """Market seconds since the start of the schedule, on a clock that runs a hundred times as fast as ours."""

    def __init__(self, folder: Path):
        self._began = float((folder / BEGAN).read_text())

    def elapsed(self) -> float:
        """Return what it shows."""
        return (time.monotonic() - self._began) * SPEED

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(max(0.0, seconds) / SPEED)

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        """Do something when so much time has passed."""
        timer = threading.Timer(seconds / SPEED, what)
        timer.daemon = True
        timer.start()


def trouble_machine(machine: str, schedule: Schedule, clock: MarketTime) -> None:
    """Let this machine's disk be full and its clock jump when the schedule says so."""
    full = [(one.at_s, one.at_s + one.for_s) for one in schedule.troubles if one.kind == "disk" and one.where == machine]
    jumps = [(one.at_s, one.size) for one in schedule.troubles if one.kind == "jump" and one.where == machine]
    begin, wall_ns = OrderJournal.__init__, time.time_ns

    def crowded(self: OrderJournal, *arguments: Any, **keywords: Any) -> None:
        begin(self, *arguments, **keywords)
        at_write = self.at_write

        def checked(point: str, key: str) -> None:
            now = clock.elapsed()
            if point.endswith("before") and any(start <= now < end for start, end in full):
                note(machine, "disk")
                raise sqlite3.OperationalError("database or disk is full")
            at_write(point, key)

        self.at_write = checked

    def jumped() -> int:
        now = clock.elapsed()
        past = [size for at_s, size in jumps if at_s <= now]
        if past:
            note(machine, "jump")
        return wall_ns() + int(sum(past) * 1e9)

    if full:
        OrderJournal.__init__ = crowded
    if jumps:
        time.time_ns = jumped


_noted = set[str]()


def note(machine: str, kind: str) -> None:
    """Tell the harness that a trouble struck; the server's standard output belongs to itself."""
    if machine == "client" and kind not in _noted:
        _noted.add(kind)
        say({"struck": kind})


def server(schedule: Schedule, address: str, port: int, folder: Path, kill: Kill | None, change: Callable[[], None] | None = None) -> None:
    """Be the server."""
    trouble_machine("server", schedule, MarketTime(folder))
    processes.server(cast(Any, schedule), address, port, folder, kill, change)


def client(schedule: Schedule, url: str, folder: Path, kill: Kill | None, change: Callable[[], None] | None = None) -> None:
    """Be the trader, started again by a service manager where it ends, until the day is over."""
    clock = MarketTime(folder)
    processes.arm(kill)
    trouble_machine("client", schedule, clock)
    if change is not None:
        change()
    adapter = HTTPAdapter()
    link = Link(clock, schedule.troubles, adapter.send, lambda kind: say({"struck": kind}), schedule.calm_from_s, SPEED)
    begin = Transport.open

    def opened(self: Transport) -> requests.Session:
        session = begin(self)
        session.mount("http://", link)
        return session

    Transport.open = opened
    while clock.elapsed() < LIVE_END_S:
        journal = OrderJournal(folder / "client.sqlite3")
        try:
            trade(schedule, url, folder, clock, journal)
        except (BtcbotError, sqlite3.OperationalError) as error:
            say({"ended": f"{type(error).__name__}: {error}"[:300]})
            time.sleep(0.05)
        finally:
            journal.close()


def trade(schedule: Schedule, url: str, folder: Path, clock: MarketTime, journal: OrderJournal) -> None:
    """Trade until the day is over; then say whether every invariant holds."""
    profile, (strategy, file) = schedule.broker(), certified(FAR)
    terminal = RemoteTerminal(url, TOKEN, timeout_s=0.6, retry_s=0.3, holder="trader")
    if not terminal.initialize():
        raise BtcbotError(f"no terminal: {terminal.last_error()}")
    trader = Trader(
        cast(Any, terminal),
        strategy,
        profile,
        server_clock(profile.clock),
        journal,
        limits=LIMITS,
        certificates=file,
        deployment="chaos",
        reconcile_every=3,
    )
    tick = terminal.symbol_info_tick(profile.symbol.name)
    trader.warm_up(past(market().round(profile.symbol.digits), tick, server_clock(profile.clock)))
    loop = LiveLoop(trader, KillSwitch(folder / "stop.json"), 0.03)
    terminal.lease()
    lifted = False
    while clock.elapsed() < LIVE_END_S:
        loop.poll()
        if not lifted and clock.elapsed() > schedule.calm_from_s + 60.0:  # a person looks at what is halted
            lifted = True
            answered = [entry for entry in journal.recent(0) if isinstance(entry.result, dict) and entry.result.get("retcode")]
            say({"halted": journal.fact("halted") or "", "answered": len(answered)})
            journal.forget("halted")
        time.sleep(loop._pause_s if not loop._is_away else min(loop._pause_s, 0.3))
    until, broken = time.monotonic() + PATIENCE_S, ["nothing was compared"]
    while time.monotonic() < until and (broken or journal.open_entries()):  # no decision more: what is open is settled, records come late
        trader.execution.settle_open()
        broken = [f"{found.kind} {found.ticket}: {found.text}" for found in trader.reconcile() if found.is_broken]
        time.sleep(0.05)
    say({"broken": broken})
