"""One schedule over real processes and HTTP, on a market that runs a hundred times as fast as the clock on the wall."""

import json
import time
from dataclasses import replace
from functools import partial
from typing import Any, cast

from btcbot.terminal.faults import plan_from_text
from tests.chaos import processes
from tests.chaos.oracle import Case, verdict
from tests.chaos.schedules import LIVE_END_S, Schedule, draw
from tests.chaos.strategy import PHASE_MS, certified, held
from tests.faults import processes as others
from tests.faults.children import Child
from tests.faults.oracle import Row, all_rows
from tests.faults.play import Play, Report
from tests.faults.processes import START_MS
from tests.faults.schedules import SPEED, Kill

LOTS = 0.1  # of a unit of the strategy


class LivePlay(Play):
    """A schedule whose client is the whole trader."""

    program_s = 90.0  # a day takes thirteen; other schedules may take the processor

    def __init__(self, schedule: Schedule):
        super().__init__(cast(Any, schedule))
        self.said: dict[str, list[Any]] = {"struck": [], "ended": [], "broken": [], "halted": [], "answered": []}
        self._market_began = 0.0
        self._along = set[int]()  # processes that died with another one

    def _start(self, name: str, *details: object) -> Child:
        if name == "broker":
            return super()._start(name)
        *given, kill = details
        if isinstance(kill, Kill):  # not in the calm that follows
            kill = replace(kill, until=self._market_began + cast(Schedule, self.schedule).faults_s / SPEED)
        work = partial(getattr(processes, name), self.schedule, *given, kill)
        child = self._children[name] = Child(name, work, self.folder / f"{name}.log")
        return child

    def start_broker(self) -> None:
        """Start the broker, and write down when its market began."""
        super().start_broker()
        self._market_began = time.monotonic()
        (self.folder / processes.BEGAN).write_text(str(self._market_began))

    def start_server(self) -> None:
        """Start the server, again where its disk was full."""
        for _ in range(50):
            try:
                super().start_server()
            except RuntimeError as error:
                if "disk is full" not in str(error):
                    raise
                self.note("the server ended: its disk is full")
                time.sleep(0.05)
            else:
                return
        raise RuntimeError("the server's disk stays full")

    def _was_killed(self, child: Child) -> bool:
        if child.pid in self._along:
            self.note(f"{child.name} died with the other one")
            return True
        is_killed = super()._was_killed(child)
        if is_killed and cast(Schedule, self.schedule).is_both:
            other = self._children["client" if child.name == "server" else "server"]
            if other.is_alive:
                other.kill()
                self._along.add(other.pid)
        return is_killed

    def _hear(self, child: Child) -> None:
        for line in child.said():
            self.note(f"client: {line[:200]}")
            for name, what in json.loads(line).items():
                self.said[name].append(what)


def play_live(seed: int, _: str | None = None) -> Report:
    """Play the schedule of a seed and judge it."""
    began, schedule = time.monotonic(), draw(seed, is_live=True)
    one, report = LivePlay(schedule), Report(seed)
    try:
        one.start_broker()
        one.start_server()
        one.start_client()
        if one.run_client():
            one._hear(one._children["client"])
            one.settle()
        server = one._children["server"]
        server.kill()
        found = one.truth()
        rows = all_rows(one.folder, "server"), all_rows(one.folder, "client")
        case = Case(cast(Any, schedule), found, *rows, [], one.trouble)
        report.wrong = verdict(case, None) + [f"an invariant is broken: {text}" for texts in one.said["broken"] for text in texts]
        report.wrong += _end(case, schedule, one.said)
        report.struck, report.orders = dict(found.struck), len(found.executed)
        for kind in one.said["struck"]:
            report.struck[kind] = report.struck.get(kind, 0) + 1
        for row in case.client:
            report.states[row.state] = report.states.get(row.state, 0) + 1
        for line in found.executed:
            one.note(f"broker: {line}")
        for row in (*case.server, *case.client):
            one.note(f"journal: {row.state} {row.about} {row.context[:100]} {str(row.result)[:200]}")
    except (RuntimeError, OSError) as error:
        report.wrong.append(f"the harness failed: {error}")
    finally:
        report.killed, report.trace = one.killed, "\n".join(one.trace)
        one.close()
    report.seconds = time.monotonic() - began
    return report


def _end(case: Case, schedule: Schedule, said: dict[str, list[Any]]) -> list[str]:
    """The day ends with what the strategy wants, where the faults were over for two of its phases and nobody had to be asked."""
    faults = plan_from_text(schedule.faults).faults
    if any(fault.kind == "clock" and not fault.for_ms for fault in faults):  # for good: the strategy goes by another time
        return []
    calm_ms = START_MS + round(schedule.calm_from_s * 1000)
    if any("order-expired" in str(row.result) and json.loads(row.context)["bar"] > calm_ms for row in _known(case)):
        return []  # this machine was too slow for a market at such a speed
    last = max([fault.number for fault in faults if fault.call == "order_send"], default=0)
    is_over = bool(said["answered"]) and said["answered"][0] > last  # so many orders had been answered when calm was
    if any(said["halted"]) or not is_over or schedule.calm_from_s + 60.0 + 2 * PHASE_MS / 1000 > LIVE_END_S - 60.0:
        return []
    side, units = held(START_MS + (LIVE_END_S - 20) * 1000)
    own = [position for position in case.truth.positions if position["magic"]]
    lots = sum(position["volume"] * (1 if position["type"] == 0 else -1) for position in own)
    is_same = abs(lots - side * units * LOTS) < 1e-9
    return [] if is_same else [f"the day ends with {lots:g} lots, and the strategy wants {side * units * LOTS:g}"]


def _known(case: Case) -> list[Row]:
    """Return what the server knows of the trader's orders, with what the trader decided them on."""
    context = {row.key: row.context for row in case.client}
    return [replace(row, context=context[row.key]) for row in case.server if context.get(row.key)]


def warm() -> None:
    """Load and compile what the processes need."""
    certified(processes.FAR)
    others.warm()
