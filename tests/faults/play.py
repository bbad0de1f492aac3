"""Play one schedule: start the three processes, start again who was killed, wait until all is settled, and collect what is left."""

import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from btcbot.terminal.faults import plan_from_text
from btcbot.terminal.settlement import HORIZON_MS
from tests.faults import processes
from tests.faults.bugs import BUGS
from tests.faults.children import Child, wait_any
from tests.faults.oracle import Case, Fields, Truth, all_rows, rows, verdict
from tests.faults.schedules import SPEED, Kill, Schedule

START_S = 90.0  # longest start of a process: a cold one may have to compile
PROGRAM_S = 25.0  # longest run of the trader
ADOPT_S = 2.0  # longest adoption by a server that has started
SETTLE_S = 12.0  # longest settlement; 20 market minutes
TAKEN = 2  # exit of a server whose port isn't free
QUIET = ("done", "not_done")


@dataclass(slots=True)
class Report:
    """What came of one schedule."""

    seed: int
    wrong: list[str] = field(default_factory=list)
    struck: dict[str, int] = field(default_factory=dict)
    killed: list[tuple[str, str]] = field(default_factory=list)
    orders: int = 0
    states: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    trace: str = ""


class Play:
    """One schedule while it is played."""

    program_s = PROGRAM_S

    def __init__(self, schedule: Schedule, bug: str | None = None):
        self.schedule, self.bug = schedule, BUGS[bug] if bug else None
        shared = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="faults-", dir=shared if shared.is_dir() else None))
        self.trace, self.trouble, self.forbidden, self.killed = list[str](), list[str](), list[Fields](), list[tuple[str, str]]()
        self._kills = {name: deque(kill for kill in schedule.kills if kill.process == name) for name in ("server", "client")}
        self._armed: dict[str, Kill | None] = {"server": None, "client": None}
        self._began, self._port, self._url, self._address = time.monotonic(), free_port(), "", ""
        self._children: dict[str, Child] = {}

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{time.monotonic() - self._began:6.2f} s  {text}")

    def _start(self, name: str, *details: object) -> Child:
        """Start a process of this schedule: a fork, or a new interpreter where it is to be a cold start."""
        log = self.folder / f"{name}.log"
        if self.schedule.is_cold:
            said = json.dumps([self.schedule.text(), *(vars_of(detail) for detail in details)])
            child = Child(name, [sys.executable, "-m", "tests.faults.processes", name, said], log)
        else:
            change = None if self.bug is None or self.bug.where != name else self.bug.plant
            if name == "broker":
                child = Child(name, partial(processes.broker, self.schedule), log)
            else:
                child = Child(name, partial(getattr(processes, name), self.schedule, *details, change), log)
        self._children[name] = child
        return child

    def _first_line(self, child: Child) -> dict[str, str]:
        line = child.line(START_S)
        if line is None:
            child.kill()
            raise RuntimeError(f"{child.name} did not start (exit {child.status}): {self._tail(child.name)}")
        found: dict[str, str] = json.loads(line)
        return found

    def _tail(self, name: str) -> str:
        log = self.folder / f"{name}.log"
        return log.read_text(errors="replace")[-1500:] if log.exists() else ""

    def start_broker(self) -> None:
        """Start the broker."""
        self._address = self._first_line(self._start("broker"))["address"]

    def start_server(self) -> None:
        """Start the server, on the same port as before; it may be killed while it starts."""
        for _ in range(5):
            kill = self._armed["server"] = self._kills["server"].popleft() if self._kills["server"] else None
            child = self._start("server", self._address, self._port, self.folder, kill)
            child.tell(processes.TOKEN)
            line = child.line(START_S)
            if line is not None:
                self._url = json.loads(line)["url"]
                self.note(f"server listens at {self._url}" + (f", dies at {kill.point} #{kill.nth}" if kill else ""))
                return
            child.kill()
            if not self._url and child.status == TAKEN:  # another schedule was quicker
                self._port = free_port()
                self._kills["server"].extendleft([kill] if kill else [])
            elif not self._was_killed(child):
                raise RuntimeError(f"the server did not start (exit {child.status}): {self._tail('server')}")
        raise RuntimeError(f"the server did not start in five tries: {self._tail('server')}")

    def start_client(self) -> None:
        """Start the trader."""
        kill = self._armed["client"] = self._kills["client"].popleft() if self._kills["client"] else None
        self.note("client starts" + (f", dies at {kill.point} #{kill.nth}" if kill else ""))
        self._start("client", self._url, self.folder, kill)

    def _was_killed(self, child: Child) -> bool:
        """Note that a process ended, and tell whether it killed itself as it was told to."""
        kill = self._armed[child.name]
        is_killed = child.status == -signal.SIGKILL and kill is not None
        if is_killed and kill is not None:
            self.killed.append((child.name, kill.point))
        self.note(
            f"{child.name} ended with {child.status} after {child.cpu_s:.2f} s of work"
            + (f" at {kill.point}" if is_killed and kill else "")
        )
        return is_killed

    def _hear(self, child: Child) -> None:
        for line in child.said():
            found = json.loads(line)
            self.note(f"client: {line[:200]}")
            if "forbidden" in found:
                self.forbidden.append(tuple(found["forbidden"]))
            if "restart" in found:
                self._restart()
                child.tell("restarted")

    def _restart(self) -> None:
        """Kill the server from outside and start it again."""
        server = self._children["server"]
        if server.is_alive:
            server.kill()
            self.note("server killed from outside")
            server.close()
            self.start_server()
        else:
            self._keep_server()

    def _keep_server(self) -> bool:
        """Start the server again if it is gone; False where that was no kill of ours."""
        child = self._children["server"]
        if child.is_alive:
            return True
        if not self._was_killed(child):
            self.trouble.append(f"the server ended with {child.status}: {self._tail('server')}")
            return False
        child.close()
        self.start_server()
        return True

    def run_client(self) -> bool:
        """Run the trader to its end, however often it or the server is killed."""
        until = time.monotonic() + self.program_s * (8 if self.schedule.is_cold else 1)
        while time.monotonic() < until:
            client = self._children["client"]
            wait_any([client, self._children["server"]], min(0.02, until - time.monotonic()))
            if not self._keep_server():
                return False
            self._hear(client)
            if not client.is_alive:
                self._hear(client)
                is_killed = self._was_killed(client)
                if client.status == 0:
                    return True
                if not is_killed:
                    self.trouble.append(f"the client ended with {client.status}: {self._tail('client')}")
                    return False
                client.close()
                self.start_client()
        self.trouble.append(f"the client did not end within {self.program_s:g} s: {self._tail('client')}")
        return False

    def settle(self) -> None:
        """Wait until the server's journal has no open order, or nothing has changed for long."""
        path, until, before = self.folder / "server.sqlite3", time.monotonic() + SETTLE_S, None
        late_ms = max([fault.for_ms for fault in plan_from_text(self.schedule.faults).faults if fault.call == "order_send"], default=0)
        adopted_by = time.monotonic() + (late_ms / SPEED / 1000 + ADOPT_S) * (late_ms > HORIZON_MS)
        while time.monotonic() < until:
            before_it = self._children["server"]
            if not self._keep_server():
                return
            if self._children["server"] is not before_it:  # it was killed, perhaps while it adopted an order, and looks again
                adopted_by = max(adopted_by, time.monotonic() + ADOPT_S * (late_ms > HORIZON_MS))
            found = rows(path)
            now = {row.key: row.state for row in found}
            is_late = time.monotonic() > adopted_by or any(row.is_adopted for row in found)
            if is_late and all(state in QUIET for state in now.values()):
                break
            if now != before:
                before, until = now, time.monotonic() + SETTLE_S
            time.sleep(0.03)
        self.note(f"settled: {sorted(row.state for row in rows(path))}")

    def truth(self) -> Truth:
        """Ask the broker."""
        child = self._children["broker"]
        child.tell("truth")
        line = child.line(START_S)
        if line is None:
            raise RuntimeError(f"the broker did not answer (exit {child.status}): {self._tail('broker')}")
        return Truth.read(line)

    def close(self) -> None:
        """End all processes; forget the files."""
        for child in self._children.values():
            child.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """Return a port below those that outgoing connections take, so that a server finds it free when it starts again."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def vars_of(detail: object) -> object:
    """Make a detail fit for JSON."""
    if isinstance(detail, Kill):
        return {"process": detail.process, "point": detail.point, "nth": detail.nth}
    return str(detail) if isinstance(detail, Path) else detail


def play(schedule: Schedule, bug: str | None = None) -> Report:
    """Play `schedule` and judge it."""
    began = time.monotonic()
    one = Play(schedule, bug)
    report = Report(schedule.seed)
    try:
        one.start_broker()
        one.start_server()
        one.start_client()
        if one.run_client():
            one.settle()
            for _ in range(4 if schedule.kind == "trader" else 0):  # the trader hears what was settled meanwhile
                one._children["client"].close()
                one.start_client()
                if not one.run_client():
                    break
                one.settle()
                if all(row.state in QUIET for row in all_rows(one.folder, "client")):
                    break
        one._children["server"].kill(signal.SIGTERM if schedule.seed % 2 else signal.SIGKILL)
        found = one.truth()
        case = Case(schedule, found, all_rows(one.folder, "server"), all_rows(one.folder, "client"), one.forbidden, one.trouble)
        report.wrong = verdict(case)
        report.struck = dict(found.struck)
        report.orders = len(found.executed)
        for row in case.server:
            by = row.result.get("by") if isinstance(row.result, dict) else ""
            state = "adopted" if row.is_adopted else f"{row.state} (moot)" if by == "moot" else row.state
            report.states[state] = report.states.get(state, 0) + 1
        for line in found.executed:
            one.note(f"broker: {line}")
        for row in case.server:
            one.note(f"server's journal: {row.state} {'adopted ' * row.is_adopted}{row.about} {json.dumps(row.result)[:300]}")
        for row in case.client:
            one.note(f"client's journal: {row.state} {row.about}")
    except (RuntimeError, OSError) as error:
        report.wrong.append(f"the harness failed: {error}")
    finally:
        report.killed = one.killed
        report.trace = "\n".join(one.trace)
        one.close()
    report.seconds = time.monotonic() - began
    return report


assert os.name == "posix", "the campaign forks and kills: it needs a POSIX system"
