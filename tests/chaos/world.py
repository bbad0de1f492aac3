"""One schedule in one process and in no time: the shipped trader, client, application, orders, guard and journals on a clock that jumps.

Nothing of what is shipped is replaced but its clock and the wire: requests reach the application through WSGI, and `tests.chaos.link`
decides which ones. A kill is an exception that nothing catches, at a write point of a journal; whoever it strikes is made anew from its
files. So the same seed gives the same run.
"""

import functools
import heapq
import io
import logging
import shutil
import sqlite3
import tempfile
import time as real_time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pandas as pd
import requests
from werkzeug.test import EnvironBuilder, run_wsgi_app

from btcbot.core.errors import BtcbotError
from btcbot.engine.limits import RiskLimits
from btcbot.terminal import evidence, remote, transport
from btcbot.terminal.contract import C, TradeRequest
from btcbot.terminal.faults import FaultPlan, plan_from_text
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.remote import RemoteTerminal
from btcbot.terminal.transport import Transport
from btcbot.terminal.twin import Twin
from btcbot.trading import live
from btcbot.trading.deployment import lift_halt
from btcbot.trading.live import KillSwitch, LiveLoop
from btcbot.trading.reconciliation import Difference
from btcbot.trading.trader import Trader
from mt5_server import worker
from mt5_server.admission import admission
from mt5_server.app import create_app
from mt5_server.auth import Auth, AuthSettings
from mt5_server.gate import Gate
from mt5_server.guard import Guard, GuardSettings
from mt5_server.metrics import ServerMetrics
from mt5_server.orders import Orders
from mt5_server.parts import Parts
from mt5_server.stream import Hub
from tests.chaos.link import Link, never_connected
from tests.chaos.oracle import Case, Day, verdict
from tests.chaos.schedules import END_S, Schedule
from tests.chaos.strategy import certified, past
from tests.faults.oracle import DONE, Fields, Truth, rows
from tests.faults.play import Report
from tests.faults.processes import START_MS, TOKEN, count_faults, honest_changes, market, told
from tests.faults.schedules import Kill

URL = "http://127.0.0.1:9"
MINUTE_S = 60.0
IDLE = 30  # looks of the server, of which all but one are left out while nothing is undecided: they would find nothing
AFTER_S = 0.4  # the trader looks so long after a bar has opened
GUARD = GuardSettings(lease_s=150.0)  # the trader looks once a minute
LIMITS = RiskLimits(max_lots=10_000, max_drawdown=1.0, max_daily_loss=1.0)


class Killed(BaseException):
    """SIGKILL of one of the processes."""

    def __init__(self, process: str):
        super().__init__(process)
        self.process = process


class Clock:
    """Virtual time for everybody: seconds since the start of the schedule, and what is due later."""

    def __init__(self) -> None:
        self._ms, self._busy, self._number = 0, 0, 0
        self._due: list[tuple[int, int, Callable[[], object]]] = []
        self.ahead_s = {"server": 0.0, "client": 0.0, "market": 0.0}  # of each machine's clock

    @property
    def now(self) -> float:
        """Return market seconds since the start."""
        return self._ms / 1000

    def elapsed(self) -> float:
        """Return market seconds since the start."""
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time pass; what is due meanwhile happens, unless somebody is in the middle of something."""
        until = self._ms + round(seconds * 1000)
        while not self._busy and self._due and self._due[0][0] <= until:
            at, _, what = heapq.heappop(self._due)
            self._ms = max(self._ms, at)
            with self.busy():
                what()
        self._ms = max(self._ms, until)

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        """Do something when so much time has passed."""
        self._number += 1
        heapq.heappush(self._due, (self._ms + round(seconds * 1000), self._number, what))

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let nothing else happen, though time may pass."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def utc_ms(self, machine: str) -> int:
        """Return what a machine's clock shows."""
        return START_MS + self._ms + round(self.ahead_s[machine] * 1000)

    def module(self, machine: str) -> Any:
        """Return what stands in for the module `time` on a machine."""
        return SimpleNamespace(
            monotonic=self.elapsed,
            sleep=self.wait,
            perf_counter=real_time.perf_counter,
            time=lambda: self.utc_ms(machine) / 1000,
            time_ns=lambda: self.utc_ms(machine) * 1_000_000,
        )


# ---- what all schedules of a process share


def bars_for(schedule: Schedule) -> pd.DataFrame:
    """Return the market with a broker's digits."""
    symbol = schedule.broker().symbol
    bars = market().round(symbol.digits)
    return bars.assign(spread=(bars["spread"] * 10.0 ** (symbol.digits - 2)).apply("ceil").astype("int32"))


class _Present:
    """Stands for a part of whichever server runs now."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(cast(Play, _World.play).server, self._name), name)


class _World:
    """The schedule that is played now, and the faults of the terminal that struck in it."""

    play: "Play | None" = None
    struck: ClassVar[Counter[str]] = Counter()


@functools.cache
def application() -> tuple[Callable[..., Any], Auth]:
    """Return the server's application; its parts are those of the present server."""
    auth = Auth.open(AuthSettings(rate=1e9, burst=10**9), TOKEN)
    names = ("gate", "journal", "guard", "orders")
    parts = {name: cast(Any, _Present(name)) for name in names}
    gate = Gate.local(Twin(market(), Schedule(0, "crypto-24x7", False, "keep", True, 0).broker(), start=START_MS))
    return create_app(Parts(**parts, auth=auth, hub=Hub(gate), metrics=ServerMetrics())).wsgi_app, auth


# ---- the server


class Server:
    """The server beside the terminal; killed, it is back after a while."""

    def __init__(self, play: "Play"):
        self.play, self.is_up, self._number, self._idle = play, False, 0, 0
        self.gate = Gate.local(play.twin, play.profile.clock)
        self.journal, self.guard, self.orders = cast(Any, None), cast(Any, None), cast(Any, None)

    def start(self, number: int = 0) -> None:
        """Start; it may be killed while it does."""
        play, clock = self.play, self.play.clock
        if number != self._number:  # it was killed again meanwhile
            return
        play.arm("server")
        try:
            now = functools.partial(clock.utc_ms, "server")
            self.journal = OrderJournal(play.folder / "server.sqlite3", now, functools.partial(play.at_write, "server"))
            self.guard = Guard(self.gate, play.folder / "guard.sqlite3", GUARD, monotonic=clock.elapsed, now_ms=now)
            admit = admission(application()[1], self.gate)
            self.orders = Orders(self.gate, self.journal, self.guard, monotonic=clock.elapsed, admit=admit, now_ms=now)
        except Killed:
            self.die()
        except sqlite3.OperationalError:  # the disk is full: the service manager tries again
            self.die()
        else:
            self.is_up = True
            clock.later(1.0, functools.partial(self._step, number))

    def _step(self, number: int) -> None:
        """Do what is due, more often while an order is undecided."""
        if number != self._number:
            return
        clock, self._idle = self.play.clock, self._idle + 1
        if self._idle < IDLE and not self.orders.undecided() and not self.orders.status()["unwritten"]:
            clock.later(2.0, functools.partial(self._step, number))
            return
        self._idle = 0
        try:
            for what in (self.gate.look, self.orders.step, self.guard.step):
                with suppress(sqlite3.OperationalError):  # the disk is full: it is tried again
                    what()
        except Killed as kill:
            self.play.kill(kill.process)
            return
        except Exception as error:
            self.play.trouble.append(f"the server failed: {type(error).__name__}: {error}")
        clock.later(2.0, functools.partial(self._step, number))

    def die(self, pause_s: float = 7.0) -> None:
        """Forget everything that isn't in a file."""
        self.is_up, self._number = False, self._number + 1
        for part in (self.journal, self.guard):
            with suppress(Exception):
                part.close()
        self.play.clock.later(pause_s, functools.partial(self.start, self._number))

    def carry(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        """Answer a request, if somebody is there to do it."""
        if not self.is_up:
            raise never_connected(request)
        environ = EnvironBuilder(
            path=(request.path_url or "/").partition("?")[0],
            query_string=(request.path_url or "").partition("?")[2],
            base_url=URL,
            method=request.method or "GET",
            headers=list(request.headers.items()),
            data=cast(bytes, request.body) or b"",
            environ_base={"REMOTE_ADDR": "127.0.0.1"},
        ).get_environ()
        self.play.saw(request)
        try:
            with self.play.clock.busy():
                body, status, headers = run_wsgi_app(application()[0], environ, buffered=True)
        except Killed as kill:
            self.play.kill(kill.process)
            raise requests.ConnectionError("the connection was reset", request=request) from None
        answer = requests.Response()
        answer.status_code, answer.url, answer.request = int(status.split()[0]), request.url or "", request
        answer.headers.update(dict(headers))
        answer.raw = io.BytesIO(b"".join(body))
        return answer


# ---- the trader


class Bot:
    """The trader's process; killed or ended, it is started again."""

    def __init__(self, play: "Play"):
        self.play = play
        self.journal = OrderJournal(play.folder / "orders.sqlite", functools.partial(play.clock.utc_ms, "client"))
        self.journal.at_write = functools.partial(play.at_write, "client")
        try:
            strategy, file = certified()
            self.terminal = RemoteTerminal(URL, TOKEN, holder="trader")
            if not self.terminal.initialize():
                raise BtcbotError(f"no terminal: {self.terminal.last_error()}")
            self.trader = Trader(
                cast(Any, self.terminal),
                strategy,
                play.profile,
                play.twin.clock,
                self.journal,
                limits=LIMITS,
                certificates=file,
                deployment="chaos",
                reconcile_every=7,
            )
            tick = self.terminal.symbol_info_tick(play.profile.symbol.name)
            self.trader.warm_up(past(play.bars, tick, play.twin.clock))
            self.loop = LiveLoop(self.trader, KillSwitch(play.folder / "stop.json"), 2.0, play.clock.elapsed, play.clock.wait)
            self.terminal.lease()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave nothing open."""
        self.journal.close()


# ---- one schedule


class Play:
    """One schedule while it is played."""

    def __init__(self, schedule: Schedule):
        self.schedule, self.clock, self.profile = schedule, Clock(), schedule.broker()
        shared = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=shared if shared.is_dir() else None))
        self.trace, self.trouble, self.struck = list[str](), list[str](), Counter[str]()
        self.killed, self.crashes = list[tuple[str, str]](), Counter[str]()
        self.switched, self._thrown, self._flatten_s = list[tuple[float, float]](), 0, float("inf")
        self.entries: dict[str, float] = {}  # when each entry was first sent
        self._armed: dict[str, Kill | None] = {"server": None, "client": None}
        self._kills = {name: [kill for kill in schedule.kills if kill.process == name] for name in ("server", "client")}
        self._passed = Counter[tuple[str, str]]()
        self._full: dict[str, tuple[float, float]] = {}
        self.hands, self._by_persons = list[int](), set[int]()
        self.bars = bars_for(schedule)
        faults = plan_from_text(schedule.faults)
        self.twin = Twin(
            self.bars, self.profile, start=START_MS, speed=1.0, faults=faults, monotonic=self.clock.elapsed, sleep=self.clock.wait
        )
        while not self.twin.initialize():  # a plan may begin with a terminal that is away
            self.clock.wait(0.5)
        self.server, self.bot = Server(self), cast(Bot | None, None)
        self.link = Link(self.clock, schedule.troubles, self.server.carry, self._strike, schedule.calm_from_s)

    @property
    def now_ms(self) -> int:
        """Return the market's time, UTC."""
        return self.clock.utc_ms("market")

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.clock.now:8.1f} s  {text}")

    def _strike(self, kind: str) -> None:
        self.struck[kind] += 1
        self.note(f"trouble: {kind}")

    def saw(self, request: requests.PreparedRequest) -> None:
        """Take note of an entry that reaches the server."""
        if (request.path_url or "") == "/v1/order" and b'"position":0' in cast(bytes, request.body).replace(b" ", b""):
            self.entries.setdefault(str(request.headers.get("Idempotency-Key")), self.clock.now)

    # ---- kills and full disks, at the write points of the journals

    def arm(self, process: str) -> None:
        """Let the next kill of a process be at hand."""
        kills = self._kills[process]
        self._armed[process] = kills.pop(0) if kills and self.clock.now < self.schedule.calm_from_s else None
        self._passed = Counter({point: count for point, count in self._passed.items() if point[0] != process})

    def at_write(self, process: str, point: str, key: str) -> None:
        """Stand at a write point of a journal."""
        begin, end = self._full.get(process, (0.0, 0.0))
        if begin <= self.clock.now < end and point.endswith("before"):
            self.struck["disk"] += 1
            raise sqlite3.OperationalError("database or disk is full")
        self._passed[process, point] += 1
        kill = self._armed[process]
        is_due = kill is not None and kill.point == point and self._passed[process, point] >= kill.nth
        if is_due and self.clock.now < self.schedule.calm_from_s:
            self._armed[process] = None
            self.killed.append((process, point))
            self.note(f"killed: {process} at {point} of {key[:8]}")
            raise Killed(process)

    def kill(self, process: str) -> None:
        """End the process that was struck; in some schedules the other one dies with it."""
        if process == "server" or self.schedule.is_both:
            self.server.die()
        if process == "server" and self.schedule.is_both and self.bot is not None:
            raise Killed("client")

    # ---- what persons and machines do

    def _plan(self) -> None:
        clock = self.clock
        for trouble in self.schedule.troubles:
            if trouble.kind == "disk":
                self._full[trouble.where] = trouble.at_s, trouble.at_s + trouble.for_s
            elif trouble.kind == "jump":
                clock.later(trouble.at_s, functools.partial(self._jump, trouble.where, trouble.size))
            elif trouble.kind == "switch":
                clock.later(trouble.at_s, functools.partial(self._throw, trouble.where))
                clock.later(trouble.at_s + trouble.for_s, self._clear)
            elif trouble.kind in ("stripped", "by_hand"):
                clock.later(trouble.at_s, getattr(self, f"_{trouble.kind}"))
        if self.schedule != self.schedule.calm():
            for after_s in (120.0, 300.0):  # what halts needs a person, who takes a while to be sure
                clock.later(self.schedule.calm_from_s + after_s, self._lift)

    def _jump(self, machine: str, seconds: float) -> None:
        self.clock.ahead_s[machine] += seconds
        self._strike("jump")

    def _throw(self, state: str) -> None:
        KillSwitch(self.folder / "stop.json").throw(cast(Any, state), "a person")
        if not self._thrown:
            self.switched.append((self.clock.now, float("inf")))
        self._thrown += 1
        if state == "flatten":
            self._flatten_s = min(self._flatten_s, self.clock.now)
        self._strike("switch")

    def _clear(self) -> None:
        self._thrown -= 1
        if self._thrown:
            return  # a second one was thrown meanwhile
        KillSwitch(self.folder / "stop.json").clear()
        self.switched[-1] = self.switched[-1][0], self.clock.now
        begin, end, self._flatten_s = self._flatten_s, self.clock.now, float("inf")
        own = [position.ticket for position in self.twin.broker.answer("positions_get", (), {}) if position.magic]
        if own and end - begin > 150.0 and not self.schedule.is_disturbed(begin, end):
            self.trouble.append(f"not flat after {end - begin:.0f} s: positions {own}")
        self.note("the switch is cleared")

    def _stripped(self) -> None:
        """Somebody takes the stop off a position in the terminal."""
        for position in self.twin.broker.answer("positions_get", (), {}):
            if position.sl:
                self._by_person({"action": C.TRADE_ACTION_SLTP, "position": position.ticket, "sl": 0.0, "tp": position.tp})
                self._strike("stripped")
                return

    def _by_hand(self) -> None:
        """Somebody opens a position of his own."""
        done = self._by_person({"action": C.TRADE_ACTION_DEAL, "volume": 0.1, "type": 0, "type_filling": 0, "comment": "by hand"})
        if done is not None and done.retcode == C.TRADE_RETCODE_DONE:
            self.hands.append(done.order)
            self._strike("by_hand")

    def _by_person(self, request: dict[str, Any]) -> Any:
        """Send an order past all faults, as from the terminal's own window."""
        twin = self.twin
        with twin.lock:
            twin._pass(self.now_ms)
            fields = dict.fromkeys(TradeRequest.__match_args__, 0) | {"comment": "", "symbol": self.profile.symbol.name}
            before = len(twin.broker.executed)
            done = twin.broker.order_send(fields | request)
            self._by_persons.update(range(before, len(twin.broker.executed)))
            return done

    def _lift(self) -> None:
        """Let a person look at what is halted, and lift it."""
        if self.bot is not None and (why := self.bot.journal.fact("halted")):
            self.note(f"a person lifts: {why}")
            if why.startswith("reconciliation"):
                self.trouble.append(f"an invariant was broken for long: {why}")
            lift_halt(self.folder, "a person")
        for said in self.server.orders.status()["undecided"] if self.server.is_up else ():
            if said["stuck"]:  # somebody's order looks like it; that person knows which is which
                ours = next(row for row in rows(self.folder / "server.sqlite3") if row.key == said["key"])
                is_done = any(request == ours.request and code in DONE for _, request, code, *_ in self._executed())
                self.server.orders.resolve(said["key"], "done" if is_done else "not_done", "a person")
        if self.server.is_up and self.server.guard.status()["entries"] != "open":
            with suppress(Exception):
                self.server.guard.lift("a person")

    # ---- the run

    def run(self) -> None:
        """Play to the end."""
        clock = self.clock
        self._plan()
        self.server.start()
        while clock.now < END_S:
            try:
                if self.bot is None:
                    self.arm("client")
                    self.bot = Bot(self)
                refused, is_running = self.bot.journal.count_by_outcome()["not_done"], self.bot.trader._has_started
                self.bot.loop.poll()
                is_clean = not self.bot.journal.open_entries() and not self.bot.loop._is_away
                if is_clean and self.bot.journal.count_by_outcome()["not_done"] == refused and is_running:
                    self._look_at_stops()
                clock.wait(self._pause(self.bot))
            except Killed as kill:
                self.kill(kill.process)
                self._end_bot(9.0)
            except (BtcbotError, sqlite3.OperationalError) as error:  # a service manager starts it again
                self.crashes[type(error).__name__] += 1
                self.note(f"the trader ended: {type(error).__name__}: {error}")
                self._end_bot(5.0)
            except Exception as error:
                self.trouble.append(f"the trader crashed: {type(error).__name__}: {error}")
                raise

    def _pause(self, bot: Bot) -> float:
        """Return how long the trader may sleep: to the next bar, if nothing is open before."""
        left = MINUTE_S - round(self.clock.now - AFTER_S, 3) % MINUTE_S
        is_calm = bot.loop._pause_s == bot.loop.poll_s and not bot.journal.open_entries() and not bot.loop.switch.state
        return left if is_calm else min(left, bot.loop._pause_s)

    def _end_bot(self, pause_s: float) -> None:
        if self.bot is not None:
            self.bot.close()
        self.bot = None
        self.clock.wait(pause_s)

    def case(self) -> Case:
        """Return all that is left."""
        self.struck.update(_World.struck)
        with self.twin.lock:
            self.twin._pass(self.now_ms)
        found = Truth.read(told(self.twin, _World.struck))
        found.executed = self._executed()
        return Case(
            self.schedule,
            found,
            rows(self.folder / "server.sqlite3"),
            rows(self.folder / "orders.sqlite"),
            [],
            self.trouble,
            self.entries,
            self.switched,
            self.hands,
            self._broken(),
            Day(self.profile, found),
        )

    def _executed(self) -> list[tuple[int, Fields, int, int, int]]:
        """Return what the broker was sent by the server."""
        lines = enumerate(self.twin.broker.executed)
        return [(now, tuple(request), *more) for number, (now, request, *more) in lines if number not in self._by_persons]

    def _broken(self) -> list[Difference]:
        """Return the invariants that don't hold."""
        if self.bot is None or not self.server.is_up:
            self.trouble.append("trader or server doesn't run in the end")
            return []
        return [difference for difference in self.bot.trader.reconcile() if difference.is_broken]

    def close(self) -> None:
        """Forget everything."""
        if self.bot is not None:
            self.bot.close()
        self.server.is_up = False
        for part in (self.server.journal, self.server.guard):
            with suppress(Exception):
                part.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _look_at_stops(self) -> None:
        """The trader has just looked, and nothing was refused or left open: each of its positions has its stop."""
        for position in self.twin.broker.answer("positions_get", (), {}):
            if position.magic and not position.sl:
                self.trouble.append(f"position {position.ticket} has no stop at {self.clock.now:.0f} s")


# ---- all of it


def play(schedule: Schedule) -> Report:
    """Play `schedule` and judge it against the same day without faults."""
    began = real_time.monotonic()
    one, report = Play(schedule), Report(schedule.seed)
    _install(one)
    try:
        one.run()
    except Exception as error:
        one.trouble.append(f"the harness failed: {type(error).__name__}: {error}")
        logging.getLogger(__name__).exception("seed %d", schedule.seed)
    try:
        case = one.case()
        report.wrong = verdict(case, calm_day(schedule.calm()))
        report.struck, report.killed, report.orders = dict(one.struck), one.killed, len(case.truth.executed)
        report.states = dict(Counter(row.state for row in case.client)) | {f"ended: {name}": n for name, n in one.crashes.items()}
        for line in case.truth.executed:
            one.note(f"broker: {line}")
        for row in (*case.server, *case.client):
            one.note(f"journal: {row.state} {row.about} {row.context[:120]} {str(row.result)[:200]}")
        report.trace = "\n".join(one.trace)
    finally:
        one.close()
    report.seconds = real_time.monotonic() - began
    return report


@functools.lru_cache(maxsize=64)
def calm_day(schedule: Schedule) -> Day:
    """Return what comes of a day on which nothing goes wrong."""
    one, before = Play(schedule), _World.play
    _install(one)
    try:
        one.run()
        case = one.case()
        assert not (wrong := verdict(case, None)), wrong
        return case.day
    finally:
        one.close()
        if before is not None:
            _install(before)


def _opened(self: Transport) -> requests.Session:
    session = _open(self)
    session.adapters.clear()
    session.mount("http://", cast(Play, _World.play).link)
    return session


_open = Transport.open


def _is_calm(elapsed_ms: int) -> bool:
    return elapsed_ms >= cast(Play, _World.play).schedule.calm_from_s * 1000


@functools.cache
def _once() -> None:
    Transport.open = _opened
    honest_changes()
    count_faults(_World.struck)
    before = FaultPlan.before
    FaultPlan.before = lambda plan, name, number, elapsed_ms: None if _is_calm(elapsed_ms) else before(plan, name, number, elapsed_ms)
    application()
    certified()
    logging.disable(logging.CRITICAL)


def _install(one: Play) -> None:
    """Let the shipped modules go by the clock and the link of a schedule."""
    _once()
    _World.play = one
    _World.struck.clear()
    for module, machine in ((remote, "client"), (transport, "client"), (live, "client"), (evidence, "server"), (worker, "server")):
        module.time = one.clock.module(machine)
