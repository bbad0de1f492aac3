"""The process that owns the terminal: `python -m mt5_server.worker`.

The MetaTrader5 package keeps the interpreter's lock for as long as a call takes, up to a minute while history is downloaded. In the
process of the web server that would stop everything, `/health` first. So the terminal lives here, alone, and the server talks to it
over a pipe (`multiprocessing.connection`: it is in every Python, authenticates both ends and knows Windows' named pipes).

A message is bytes. A request is JSON: `[kind, number, what]`. An answer is one line of JSON about the calls (how long each took, its
`last_error`), then the answers themselves in the format of `btcbot.terminal.wire`; they are ready for a client and the server passes
them on unread. Bars and ticks follow as they lie in memory, a message each, if the request says so.

Started by the server, the worker gets its key on standard input and ends, after the call that runs, when that input does. Started by
hand it outlives its server: the terminal, the simulated market and the steps of its clients are still there for the next one.
"""

import argparse
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from types import FrameType
from typing import Final, NamedTuple, cast

import numpy as np

from btcbot.core.errors import BtcbotError
from btcbot.core.log import configure_logging, register_secret
from btcbot.market.clock import server_clock
from btcbot.terminal.connect import connect
from btcbot.terminal.contract import FUNCTIONS, C, Rows, Terminal
from btcbot.terminal.wire import Answer, Call, Json, LockStep, answer_to_wire, ask, call_from_wire, dumps, loads

_log = logging.getLogger(__name__)
KEY_VARIABLE: Final = "MT5_WORKER_KEY"
CLIENTS: Final = 16  # clients of a lock-step terminal whose last answer is kept
ORPHAN_S: Final = 60.0  # how long a call may still run when the server is gone
RECONNECT_S: Final = 0.2  # between two attempts to connect to the terminal again
LOST: Final = frozenset(
    {C.RES_E_INTERNAL_FAIL_SEND, C.RES_E_INTERNAL_FAIL_RECEIVE, C.RES_E_INTERNAL_FAIL_INIT, C.RES_E_INTERNAL_FAIL_CONNECT}
)
ANY: Final = frozenset(FUNCTIONS)
Raw = memoryview | bytes


class Step(NamedTuple):
    """A request to move the clock: which client, its how manieth, and what it asked for."""

    client: str
    number: int
    bars: int
    calls: Sequence[Call]


class StepConflict(Exception):
    """A step that is out of order, or another one under the number of the last."""


@dataclass(slots=True)
class Reply:
    """What a worker says: about the calls, the answers as a list in JSON, and the rows that don't travel in it."""

    head: dict[str, Json]
    body: bytes
    rows: list[Raw]


class FairLock:
    """A lock that is given in the order in which it was asked for.

    An order that a server sent before it was killed must not be executed after the look that the next server takes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            self._last += 1
            number = self._last
            self._changed.wait_for(lambda: self._serving == number - 1)

    def __exit__(self, *ignored: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


class Host:
    """A terminal, and the answers to requests for it; one at a time."""

    def __init__(self, terminal: Terminal, clock_rule: str | None = None):
        self._terminal = terminal
        self._clock = terminal if isinstance(terminal, LockStep) else None
        self._lock = FairLock()
        self._is_lost, self._tried, self._reconnects = False, 0.0, 0
        self._steps: OrderedDict[str, tuple[int, bytes, Reply]] = OrderedDict()
        self.session = secrets.token_hex(16)
        self.clock_rule = clock_rule

    @property
    def about(self) -> dict[str, Json]:
        """Return what the server tells its clients of this terminal."""
        simulated = hasattr(self._terminal, "profile")
        return {
            "session": self.session,
            "clock": self.clock_rule,
            "lock_step": self._is_lock_step,
            "simulated": simulated,
            "pid": os.getpid(),
        }

    @property
    def _is_lock_step(self) -> bool:
        """Say whether the clock waits: a twin that plays by the wall clock has `advance` too, but isn't asked."""
        return self._clock is not None and getattr(self._clock, "is_lock_step", True) is True

    def handle(self, message: bytes) -> Reply:
        """Answer one request; never raises."""
        kind, number, what = cast(tuple[str, int, Json], loads(message))
        began = time.perf_counter()
        with self._lock:
            try:
                reply = self._handle(kind, cast(dict[str, Json], what))
            except StepConflict as error:
                reply = Reply({"conflict": str(error)}, b"[]", [])
            except Exception as error:  # the terminal failed in a way that the package never does
                _log.error("A call of the terminal failed", exc_info=error)
                reply = Reply({"failed": f"{type(error).__name__}: {error}"}, b"[]", [])
        reply.head |= {"number": number, "s": time.perf_counter() - began, "reconnects": self._reconnects}
        return reply

    def _handle(self, kind: str, what: dict[str, Json]) -> Reply:
        if kind == "hello":
            return Reply(self.about, b"[]", [])
        calls = [call_from_wire(call, ANY) for call in cast(list[Json], what["calls"])]
        if kind == "advance":
            step = Step(str(what["client"]), cast(int, what["step"]), cast(int, what["bars"]), calls)
            return self._advance(step, dumps([what["bars"], what["calls"]]))
        return self._answers(calls, what["raw"] is True)

    def _answers(self, calls: Sequence[Call], is_raw: bool) -> Reply:
        spent, codes, parts, rows = list[Json](), list[Json](), list[bytes](), list[Raw]()
        for call in calls:
            began = time.perf_counter()
            answer = self._ask(call)
            spent.append(time.perf_counter() - began)
            codes.append(answer.error[0])
            if is_raw and isinstance(answer.value, np.ndarray):
                rows.append(_bytes_of(answer.value))
                parts.append(b'{"rows":%d,"error":%s}' % (len(rows) - 1, json.dumps(answer.error).encode()))
            else:
                parts.append(dumps(answer_to_wire(answer)))
        return Reply({"spent": spent, "codes": codes, "rows": len(rows)}, b"[" + b",".join(parts) + b"]", rows)

    def _ask(self, call: Call) -> Answer:
        name, arguments, keywords = call
        if self._is_lost:
            self._connect_again()
        answer = ask(getattr(self._terminal, name), self._terminal.last_error, arguments, keywords)
        self._is_lost = answer.error[0] in LOST
        return answer

    def _connect_again(self) -> None:
        """Connect to a terminal that was closed or started anew: the package doesn't do that by itself."""
        now = time.monotonic()
        if now - self._tried < RECONNECT_S:
            return
        self._tried = now
        self._terminal.shutdown()
        if self._terminal.initialize():
            self._is_lost = False
            self._reconnects += 1
            _log.warning("Connected to the terminal again")

    def _advance(self, step: Step, asked: bytes) -> Reply:
        """Move the clock and answer there; the same step asked for again gets the same answer and moves nothing."""
        number, before, reply = self._steps.get(step.client, (0, b"", Reply({}, b"[]", [])))
        if step.number == number and asked != before:
            raise StepConflict(f"Step {number} was another request: ask for that one again, its answer may have been lost.")
        if step.number not in (number, number + 1):
            raise StepConflict(f"Step {step.number} can't follow step {number}: the steps of a client are counted from 1.")
        if step.number == number + 1:
            reply = self._stepped(step)
            self._steps[step.client] = step.number, asked, reply
            self._steps.move_to_end(step.client)
            while len(self._steps) > CLIENTS:
                self._steps.popitem(last=False)
        return Reply(dict(reply.head), reply.body, reply.rows)

    def _stepped(self, step: Step) -> Reply:
        """Return an error instead of raising it: the clock may have moved, so a step that failed isn't taken again either."""
        assert self._clock is not None
        try:
            moved, _ = self._clock.advance(step.bars)
            reply = self._answers(step.calls, False)
        except Exception as error:
            _log.error("A step of the clock failed", exc_info=error)
            return Reply({"failed": f"{type(error).__name__}: {error}"}, b"[]", [])
        reply.head["bars"] = moved
        return reply

    def close(self) -> None:
        """Leave the terminal."""
        with self._lock:
            self._terminal.shutdown()


def _bytes_of(rows: Rows) -> Raw:
    return np.ascontiguousarray(rows).view(np.uint8).data if rows.size else b""


def open_terminal(url: str, clock: str | None) -> Host:
    """Connect to the terminal at `url`, and find the rule of its clock."""
    rule = None if clock is None else server_clock(clock).rule
    terminal = connect(url)
    if not terminal.initialize():
        code, text = terminal.last_error()
        raise BtcbotError(f"The terminal {url} doesn't answer ({code}: {text}): start it, log in, and allow algorithmic trading.")
    profile = getattr(terminal, "profile", None)
    return Host(terminal, rule if profile is None else server_clock(str(profile.clock)).rule)


class Worker:
    """The listening end of the pipe."""

    def __init__(self, host: Host, listener: Listener):
        self._host, self._listener = host, listener
        self._changed = threading.Condition()
        self._busy = 0  # requests that aren't answered yet
        self._is_alone = False  # whether the main thread itself serves
        self.stopping = threading.Event()

    def serve(self, connection: "Connection[bytes, bytes]") -> None:
        """Answer what comes over `connection` until its other end is closed."""
        with connection, suppress(EOFError, OSError):
            while not self.stopping.is_set():
                message = connection.recv_bytes()
                self._count(1)
                try:
                    reply = self._host.handle(message)
                    connection.send_bytes(json.dumps(reply.head).encode() + b"\n" + reply.body)
                    for rows in reply.rows:
                        connection.send_bytes(rows)
                finally:
                    self._count(-1)

    def _count(self, more: int) -> None:
        with self._changed:
            self._busy += more
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until what came is answered."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, ORPHAN_S)

    def serve_one(self) -> None:
        """Answer the one server that started this worker."""
        self._is_alone = True
        self.serve(self._listener.accept())

    def serve_all(self) -> None:
        """Answer one server after the other, or several at a time."""
        while not self.stopping.is_set():
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):
                _log.warning("Somebody without the key tried to connect")
                continue
            except OSError:
                return  # closed
            without_delay(connection)
            threading.Thread(target=self.serve, args=(connection,), name="front", daemon=True).start()

    def stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        """End after the call that runs."""
        self.stopping.set()
        if not (self._is_alone and self._busy):
            raise SystemExit(0)

    def end_with_input(self) -> None:
        """End this process soon after its standard input does: whoever holds the other end started it."""

        def watch() -> None:
            with suppress(OSError):
                while os.read(0, 4096):
                    pass
            self.stopping.set()
            self.wait()
            os._exit(0)

        threading.Thread(target=watch, name="parent watch", daemon=True).start()


def without_delay(connection: "Connection[bytes, bytes]") -> None:
    """Turn Nagle's algorithm off where `connection` is TCP: a request behind a large one would wait 40 ms."""
    import socket

    with suppress(OSError, ValueError):
        sock = socket.socket(fileno=connection.fileno())
        try:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        finally:
            sock.detach()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m mt5_server.worker", description="Own a terminal, for mt5-server to talk to.")
    parser.add_argument("--terminal", required=True, metavar="URL", help="mt5:// or twin://?...")
    parser.add_argument("--clock", metavar="RULE", help="rule of the trade server's clock (a twin states its own)")
    parser.add_argument("--port", type=int, help="of this machine's loopback, 0 for a free one (default: a pipe for one server)")
    parser.add_argument("--parent", action="store_true", help="read the key from standard input, and end when that does")
    parser.add_argument("--log-level", default="INFO")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Serve one terminal from start to stop."""
    key = sys.stdin.readline(4096).strip() if options.parent else os.environ.get(KEY_VARIABLE, "")
    if len(key) < 16:
        raise BtcbotError(f"The worker has no key: put one of at least 16 characters in the environment variable {KEY_VARIABLE}.")
    register_secret(key)
    configure_logging(options.log_level)
    host = open_terminal(options.terminal, options.clock)
    address = None if options.port is None else ("127.0.0.1", options.port)
    with Listener(address, authkey=key.encode()) as listener:
        worker = Worker(host, listener)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, worker.stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN if options.parent else worker.stop)
        where = listener.address
        shown = where if isinstance(where, str) else f"{where[0]}:{where[1]}"
        print(json.dumps({"address": shown, "pid": os.getpid(), **host.about}), flush=True)
        try:
            if options.parent:
                worker.end_with_input()
                worker.serve_one()
            else:
                worker.serve_all()
        except SystemExit:  # a signal said so
            pass
        finally:
            worker.wait()
            host.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse(arguments)
    try:
        run(options)
    except BtcbotError as error:
        if options.parent:  # which says it in its own words
            print(json.dumps({"error": str(error)}), flush=True)
        else:
            print(f"mt5-server: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
