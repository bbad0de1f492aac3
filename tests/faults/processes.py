"""The three processes of a schedule: the broker, who outlives everybody; the server; and the trader.

`python -m tests.faults.processes ROLE JSON` is a cold start of one. None of the shipped code knows that it is being tested: the write
points of the journal are its own (`at_write`), and what is slow (looks once a second) is made quicker from outside.
"""

import functools
import gc
import inspect
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import requests

from btcbot.market.synthetic import synthetic_bars
from btcbot.terminal.contract import C, request_from
from btcbot.terminal.faults import Effect, Fault, FaultPlan, plan_from_text
from btcbot.terminal.faults import Quote as Prices
from btcbot.terminal.journal import Entry, OrderJournal, magic_for, marker, order_key
from btcbot.terminal.remote import RemoteTerminal
from tests.faults.schedules import SPEED, Kill, Schedule, Step

TOKEN = "a-token-of-the-fault-campaign-of-enough-length"
WORKER_KEY = "a-key-of-the-fault-campaign"
START_MS = 1_709_640_000_000  # Tuesday 2024-03-05 12:00 UTC, every session is open
STEP_S = 0.03  # between two looks of the server; three market seconds
LATE_S = 5.0  # longest wait for what the broker executes later than it answers
CHANGES = (C.TRADE_ACTION_SLTP, C.TRADE_ACTION_MODIFY, C.TRADE_ACTION_REMOVE)
SEND_S = 0.4  # longest wait for the terminal's answer to an order; forty market seconds


@functools.cache
def market() -> pd.DataFrame:
    """Return two hours of history and three to come."""
    return synthetic_bars(seed=11, start_ms=START_MS - 7_200_000, end_ms=START_MS + 10_800_000)


def arm(kill: Kill | None) -> None:
    """Make this process kill itself at a write point of its journal."""
    if kill is None:
        return
    passed = 0
    begin = OrderJournal.__init__

    def at_write(point: str, key: str) -> None:
        nonlocal passed
        passed += point == kill.point
        if passed == kill.nth and point == kill.point and time.monotonic() < kill.until:
            os.kill(os.getpid(), signal.SIGKILL)

    def armed(self: OrderJournal, *arguments: Any, **keywords: Any) -> None:
        begin(self, *arguments, **keywords)
        self.at_write = at_write

    OrderJournal.__init__ = armed


# ---- the broker


def count_faults(struck: Counter[str]) -> None:
    """Count the faults that strike, of each kind."""
    before, events, quote, clock_ms = FaultPlan.before, FaultPlan.events, FaultPlan.quote, FaultPlan.clock_ms

    def counted_before(self: FaultPlan, name: str, number: int, elapsed_ms: int) -> Effect | None:
        effect = before(self, name, number, elapsed_ms)
        if effect is not None:
            struck[effect.fault.kind] += 1
        return effect

    def counted_events(self: FaultPlan, after_ms: int, until_ms: int) -> tuple[Fault, ...]:
        found = events(self, after_ms, until_ms)
        struck.update(fault.kind for fault in found)
        return found

    def counted_quote(self: FaultPlan, elapsed_ms: int, bid: int, ask: int) -> Prices:
        for fault in self._now(elapsed_ms):
            if fault.kind != "clock":
                struck[fault.kind] += 1
        return quote(self, elapsed_ms, bid, ask)

    def counted_clock(self: FaultPlan, elapsed_ms: int) -> int:
        found = clock_ms(self, elapsed_ms)
        if found:
            struck["clock"] += 1
        return found

    FaultPlan.before, FaultPlan.events = counted_before, counted_events
    FaultPlan.quote, FaultPlan.clock_ms = counted_quote, counted_clock


def honest_changes() -> None:
    """See to it that no broker says of a change that it is done before it is: there is no deal that could follow."""
    from btcbot.terminal.twin import Twin

    struck_with = Twin._struck

    def possible(self: Twin, effect: Effect, client: Any, name: str, arguments: tuple[Any, ...], keywords: Any) -> object:
        is_change = name == "order_send" and arguments[0]["action"] in CHANGES
        is_early = is_change and effect.retcode == C.TRADE_RETCODE_DONE
        return struck_with(self, replace(effect, late_ms=0) if is_early else effect, client, name, arguments, keywords)

    Twin._struck = possible


def broker(schedule: Schedule) -> None:
    """Be the terminal and its broker, until standard input ends; a line of input asks for the truth."""
    from btcbot.terminal.twin import Twin
    from mt5_server import worker

    struck: Counter[str] = Counter()
    count_faults(struck)
    honest_changes()
    twin = Twin(market(), schedule.broker(), "M1", START_MS, speed=SPEED, faults=plan_from_text(schedule.faults))

    def listen() -> None:
        for _ in sys.stdin:
            print(truth(twin, struck), flush=True)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while not twin.initialize():  # a plan may begin with a terminal that is away
        time.sleep(0.005)
    os.environ[worker.KEY_VARIABLE] = WORKER_KEY
    worker.connect = lambda url: twin
    worker.main(["--terminal", "twin://", "--port", "0", "--log-level", "INFO"])


def truth(twin: Any, struck: Counter[str]) -> str:
    """Return what the broker knows, whatever it tells its clients, once it has executed all that it was sent."""
    broker, until = twin.broker, time.monotonic() + LATE_S
    while time.monotonic() < until:
        with twin.lock:
            twin._pass(twin._clock.now())
            broker.drain()
            if broker.due is None:
                break
        time.sleep(0.005)
    return told(twin, struck)


def told(twin: Any, struck: Counter[str]) -> str:
    """Return what the broker knows at this moment."""
    broker = twin.broker
    account = broker.answer("account_info", (), {})
    deals = [deal._asdict() for deal in broker.all_deals()]
    positions = [position._asdict() for position in broker.answer("positions_get", (), {})]
    executed = [[now, list(request), code, order, deal] for now, request, code, order, deal in broker.executed]
    return json.dumps({"executed": executed, "struck": struck, "account": account._asdict(), "deals": deals, "positions": positions})


# ---- the server


def server(schedule: Schedule, address: str, port: int, folder: Path, kill: Kill | None, change: Callable[[], None] | None = None) -> None:
    """Be the server; it says where it listens."""
    from mt5_server import __main__ as program
    from mt5_server import worker
    from mt5_server.assembly import Background
    from mt5_server.config import Config
    from mt5_server.orders import OrderSettings

    Background.__init__.__defaults__ = (STEP_S,)
    OrderSettings.__init__.__kwdefaults__ |= {"send_timeout_s": SEND_S, "adopt_every_s": 4 * STEP_S}
    arm(kill)
    if change is not None:
        change()
    os.environ[worker.KEY_VARIABLE] = WORKER_KEY
    if not schedule.is_cold:  # reading options costs a twentieth of a second
        config = Config(terminal=f"worker://{address}", port=port, folder=folder, journal=folder / "server.sqlite3", is_token_on_stdin=True)
        program.parse = lambda arguments: config
    arguments = ["--terminal", f"worker://{address}", "--port", str(port), "--token-stdin", "--journal", str(folder / "server.sqlite3")]
    raise SystemExit(program.main(arguments))


# ---- the trader

IS_AGAIN = "is_again" in inspect.signature(RemoteTerminal.send).parameters


class Trader:
    """A program that keeps a journal of its own, with a key for each order; killed at any point it begins anew and goes on."""

    def __init__(self, schedule: Schedule, url: str, folder: Path):
        self.schedule, self.folder, self.epoch = schedule, folder, cast(int | None, None)
        self.mt5 = RemoteTerminal(url, TOKEN, timeout_s=3.0, retry_s=1.0, holder="trader")
        self.journal = OrderJournal(folder / "client.sqlite3")
        self.symbol = schedule.broker().symbol
        self.base = float(market()["close"].iloc[119])
        self.known: dict[int, int] = {}  # step -> ticket
        self.is_fenced = False

    def request(self, number: int, step: Step, key: str, attempt: int = 0) -> dict[str, Any] | None:
        """Return the request of a step; None where what it is about isn't there."""
        far = {"sl": self.base * (1 - 0.2 * step.side), "tp": self.base * (1 + 0.2 * step.side)}
        near = {"sl": self.base * (1 - 0.02 * step.side), "tp": self.base * (1 + 0.03 * step.side)}
        about = self.known.get(step.on, 0)
        symbol, marks = self.symbol.name, {"magic": magic_for(7, key), "comment": marker(key)}
        volume = round(step.steps * self.symbol.volume_step, 8)
        if step.kind in ("entry", "stale"):
            levels = near if number % 2 else far
            return {
                "action": 1,
                "symbol": symbol,
                "volume": volume,
                "type": 0 if step.side > 0 else 1,
                "type_filling": 1,
                **marks,
                **self._levels(levels),
            }
        if step.kind == "pending":
            price = self._price(self.base * (1 - 0.02 * step.side))
            return {
                "action": 5,
                "symbol": symbol,
                "volume": volume,
                "type": 2 if step.side > 0 else 3,
                "type_filling": 2,
                "price": price,
                **marks,
            }
        if not about:
            return None
        if step.kind == "stops":
            side = self.schedule.steps[step.on].side
            away = 0.1 + number / 100 + attempt / 1000
            return {
                "action": 6,
                "symbol": symbol,
                "position": about,
                **self._levels({"sl": self.base * (1 - away * side), "tp": self.base * (1 + away * side)}),
            }
        if step.kind == "close":
            opened = self.schedule.steps[step.on]
            volume = round(opened.steps * self.symbol.volume_step, 8)
            return {
                "action": 1,
                "symbol": symbol,
                "volume": volume,
                "type": 1 if opened.side > 0 else 0,
                "type_filling": 1,
                "position": about,
                **marks,
            }
        if step.kind == "modify":
            side = self.schedule.steps[step.on].side
            return {
                "action": 7,
                "symbol": symbol,
                "order": about,
                "price": self._price(self.base * (1 - (0.03 + number / 1000 + attempt / 10_000) * side)),
            }
        return {"action": 8, "symbol": symbol, "order": about}

    def _price(self, value: float) -> float:
        return round(value, self.symbol.digits)

    def _levels(self, levels: dict[str, float]) -> dict[str, float]:
        return {name: self._price(value) for name, value in levels.items()}

    # ---- the run

    def connect(self) -> None:
        """Connect; the server may be away for a moment."""
        until = time.monotonic() + 10.0
        while not self.mt5.initialize():
            if time.monotonic() > until:
                raise SystemExit(f"no connection: {self.mt5.last_error()}")
            time.sleep(0.02)

    def run(self) -> None:
        """Take all steps, then wait until nothing is open."""
        self.connect()
        for number, step in enumerate(self.schedule.steps):
            if step.kind == "takeover":
                self.take_over()
            elif step.kind == "stale":
                self.order(number, step, **self.stale(number))
            else:
                self.order(number, step)
        until = time.monotonic() + 4.0
        while self.journal.open_entries() and time.monotonic() < until:
            for entry in self.journal.open_entries():
                assert isinstance(entry.body, dict)
                self.submit(entry.key, entry.body)
            time.sleep(0.05)
        say({"open": [entry.key[:8] for entry in self.journal.open_entries()]})

    def order(self, number: int, step: Step, **conditions: Any) -> None:
        """Decide on an order, and once more where the server let no entry through at the moment."""
        for attempt in range(1 if conditions or self.is_fenced else 3):
            entry = self.decide(number, step, attempt, **conditions)
            known = entry.result if entry is not None and isinstance(entry.result, dict) else {}
            if known.get("order"):
                self.known[number] = int(known["order"])
            is_refused = entry is not None and entry.state == "not_done" and "retcode" not in known
            if not is_refused or known.get("problem") in ("lease-held", "entries-halted"):
                return
            time.sleep(0.1 if known["problem"] == "symbol-blocked" else 0.0)

    def decide(self, number: int, step: Step, attempt: int, **conditions: Any) -> Entry | None:
        """Write an order down, send it under its key, write down what came of it."""
        key = order_key("faults", self.schedule.seed, number, attempt)
        known = self.journal.get(key)
        request = cast(dict[str, Any], known.body) if known else self.request(number, step, key, attempt)
        if request is None:
            return None
        request["deviation"] = 10_000 + 10 * number + attempt  # seen by the broker alone: tells the harness one order from another
        if conditions or (self.is_fenced and self.mt5.epoch is not None and self.mt5.epoch == self.epoch):
            say({"forbidden": list(request_from(request))})
        is_patient = self.schedule.seed % 3 > 0
        until = time.monotonic() + 2.0
        outcome = self.submit(key, request, **conditions)
        while outcome == "unknown" and is_patient and time.monotonic() < until:
            time.sleep(0.03)
            outcome = self.submit(key, request)
        return self.journal.get(key)

    def submit(self, key: str, request: dict[str, Any], **conditions: Any) -> str:
        """Send an order once more, or for the first time, under the conditions of the first time; the key makes it one."""
        entry = self.journal.begin(key, request, json.dumps(conditions))
        if entry.state in ("done", "not_done"):
            return entry.state
        conditions = json.loads(entry.context)
        if IS_AGAIN:
            conditions["is_again"] = not entry.is_new
        sent = self.mt5.send(request, key, **conditions)
        result = {} if sent.result is None else {"order": sent.result.order, "retcode": sent.result.retcode}
        self.journal.settle(key, sent.outcome, result | {"problem": sent.problem})
        return sent.outcome

    def stale(self, number: int) -> dict[str, Any]:
        """Return the conditions of an order that is decided on a quote long gone, or far from the price."""
        tick = self.mt5.symbol_info_tick(self.symbol.name)
        if tick is None or number % 2:
            price = self.base * 0.9
            moment = int(START_MS if tick is None else tick.time_msc)
            return {"quote": {"time_msc": moment, "bid": price, "ask": price}, "max_distance": 100.0}
        return {"quote": {"time_msc": tick.time_msc - 600_000, "bid": tick.bid, "ask": tick.ask}, "ttl_ms": 5_000}

    def take_over(self) -> None:
        """Let somebody else trade instead: from here on, what this trader sends under its lease is refused."""
        done = self.folder / "taken"
        if done.exists():
            return
        if self.schedule.seed % 2:  # the server is started anew first, and so is whatever it keeps in memory only
            say({"restart": True})
            sys.stdin.readline()
        self.epoch, self.is_fenced = self.mt5.epoch, True
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            with suppress(requests.RequestException):
                lease = {"holder": "somebody else", "takeover": True}
                answer = requests.post(
                    f"{self.mt5.url}/v1/guard/lease", json=lease, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=3.0
                )
                if answer.status_code == 200:
                    done.touch()
                    return
            time.sleep(0.05)
        self.is_fenced = False


class Foreign(Trader):
    """A program that knows nothing of keys and marks: it calls `order_send` and believes what it says."""

    def run(self) -> None:
        """Take all steps; one that was under way when the program died isn't taken again."""
        self.connect()
        diary = self.folder / "diary.json"
        begun, self.known = json.loads(diary.read_text(), object_hook=numbers) if diary.exists() else (0, {})
        for number, step in enumerate(self.schedule.steps):
            if number < begun or (request := self.request(number, step, "0" * 64)) is None:
                continue
            diary.write_text(json.dumps([number + 1, self.known]))
            marks = {"magic": 99, "comment": "robot"} if "magic" in request else {}
            result = self.mt5.order_send(request | marks | {"deviation": 10_000 + number})
            if result is not None and result.order:
                self.known[number] = result.order
            elif positions := self.mt5.positions_get():
                self.known[number] = positions[-1].ticket
            diary.write_text(json.dumps([number + 1, self.known]))


def numbers(given: dict[str, int]) -> dict[int, int]:
    """Read the numbers of steps, which JSON makes text of."""
    return {int(number): ticket for number, ticket in given.items()}


def say(what: dict[str, Any]) -> None:
    """Tell the harness."""
    print(json.dumps(what), flush=True)


def client(schedule: Schedule, url: str, folder: Path, kill: Kill | None, change: Callable[[], None] | None = None) -> None:
    """Be the trader."""
    arm(kill)
    if change is not None:
        change()
    (Trader if schedule.kind == "trader" else Foreign)(schedule, url, folder).run()


# ---- warm and cold starts


def warm() -> None:
    """Load and compile all that the processes need, and build a server once, so that forks of this one start at once."""
    import mt5_server.__main__
    import mt5_server.server
    from btcbot.terminal.twin import Twin
    from mt5_server.app import create_app
    from mt5_server.assembly import assemble
    from mt5_server.auth import Auth, AuthSettings
    from mt5_server.gate import Gate

    assert mt5_server.__main__ and mt5_server.server
    schedule = Schedule(0, "trader", "crypto-24x7", "keep", True, 0, (), "", ())
    for faults in ("", "spread@0+1000"):
        twin = Twin(market(), schedule.broker(), "M1", START_MS, faults=plan_from_text(faults))
        twin.initialize()
        kinds = ({"action": 1, "type": 0}, {"action": 5, "type": 2, "price": 1000.0}, {"action": 6, "position": 1, "sl": 1000.0})
        changes = ({"action": 7, "order": 2, "price": 1001.0}, {"action": 8, "order": 2}, {"action": 1, "type": 1, "position": 1})
        for fields in (*kinds, *changes):  # what isn't compiled now would be in each broker, while somebody waits for it
            volume = {"volume": 0.01, "type_filling": 2 if fields["action"] == 5 else 1} if fields["action"] in (1, 5) else {}
            sent = twin.order_send({"symbol": "BTCUSD", **fields, **volume})
            assert sent is not None and sent.retcode == C.TRADE_RETCODE_DONE, sent
            twin.advance(2)
    with (
        tempfile.TemporaryDirectory() as folder,
        OrderJournal(Path(folder) / "j.sqlite3") as journal,
        Auth.open(AuthSettings(), TOKEN) as auth,
    ):
        parts = assemble(Gate.local(twin), auth, journal, Path(folder) / "g.sqlite3")
        create_app(parts)
        parts.hub.close()
        parts.guard.close()
    del parts
    gc.collect()  # nothing is left that would close, in a fork, a file which isn't its own any more
    assert threading.active_count() == 1, threading.enumerate()


def main(arguments: list[str]) -> None:
    """Be one of the processes, from a cold start."""
    role, (text, *details) = arguments[0], json.loads(arguments[1])
    schedule = Schedule.read(text)
    if role == "broker":
        broker(schedule)
        return
    *details, kill = details
    armed = Kill(**kill) if kill else None
    if role == "server":
        address, port, folder = details
        server(schedule, address, port, Path(folder), armed)
    else:
        url, folder = details
        client(schedule, url, Path(folder), armed)


if __name__ == "__main__":
    main(sys.argv[1:])
