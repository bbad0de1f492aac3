"""The one door to the terminal: calls go through it one at a time, each with its `last_error`, each bounded in time and measured.

Behind it is the worker process (`mt5_server.worker`). A call that takes longer than the bound is answered -10005, `IPC timeout`, which
is what the package says when the terminal doesn't answer; the late answer is waited for by a thread and thrown away, and until it is
there the door stays shut. A worker that dies is answered -10002 for what was in it, -10001 for what came after, as if the terminal had
been closed. A worker with the real terminal is then started again. One with a simulated market is not: its market is gone, and to trade
on as if nothing had happened would be a lie.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from btcbot.terminal.contract import ERRORS, RATES_DTYPE, TICKS_DTYPE, Rows, Terminal
from btcbot.terminal.wire import Answer, Call, Json, answer_from_wire, call_to_wire, dumps, loads
from mt5_server.channel import Channel, Gone, LocalChannel, PipeChannel, State
from mt5_server.worker import Host, Reply, Step, StepConflict

__all__ = ["Gate", "Gone", "Step", "StepConflict", "TerminalFailed"]

Observer = Callable[[str, float, int], object]  # function, seconds, code of last_error
CALL_TIMEOUT_S = 60.0
STEP_TIMEOUT_S = 600.0  # a step may play years of a market


class TerminalFailed(Exception):
    """A call failed in a way that no terminal should: what it did is unknown."""


class Gate:
    """Serialise all calls of a terminal, because its state and its last error belong to a process and not to a caller."""

    def __init__(self, channel: Channel, call_timeout_s: float = CALL_TIMEOUT_S, observe: Observer | None = None):
        self._channel = channel
        self.call_timeout_s = call_timeout_s
        self.observe: Observer = observe or (lambda name, seconds, code: None)
        self.server = secrets.token_hex(16)

    @classmethod
    def open(cls, terminal: str, clock: str | None = None, call_timeout_s: float = CALL_TIMEOUT_S, log_level: str = "INFO") -> "Gate":
        """Return the door to the terminal at a URL, in a process of its own."""
        return cls(PipeChannel(terminal, clock, log_level), call_timeout_s)

    @classmethod
    def local(cls, terminal: Terminal, clock_rule: str | None = None) -> "Gate":
        """Return the door to a terminal of this process."""
        return cls(LocalChannel(Host(terminal, clock_rule)))

    # ---- what it is

    @property
    def is_lock_step(self) -> bool:
        """Say whether the terminal's clock waits for `advance`."""
        return self._channel.about.get("lock_step") is True

    @property
    def is_simulated(self) -> bool:
        """Say whether the terminal is a twin."""
        return self._channel.about.get("simulated") is True

    @property
    def session(self) -> str:
        """Return what changes when the market starts anew."""
        return str(self._channel.about.get("session", ""))

    @property
    def clock_rule(self) -> str | None:
        """Return the rule of the trade server's clock, None where nobody said it."""
        found = self._channel.about.get("clock")
        return None if found is None else str(found)

    @property
    def worker_pid(self) -> int:
        """Return the process id of the worker."""
        return cast(int, self._channel.about.get("pid", 0))

    @property
    def busy_s(self) -> float:
        """Return for how long the present call has been running, 0 if there is none; never waits."""
        return self._channel.busy_s

    @property
    def state(self) -> State:
        """Say whether calls are answered."""
        return self._channel.state

    @property
    def restarts(self) -> int:
        """Return how often the worker was started or found again."""
        return self._channel.restarts

    @property
    def reconnects(self) -> int:
        """Return how often the worker connected to its terminal again."""
        return cast(int, self._channel.about.get("reconnects", 0))

    # ---- calls

    def relay(self, calls: Sequence[Call], timeout_s: float | None = None) -> bytes:
        """Answer `calls`, with nobody in between, as a list in the wire's JSON."""
        return self._call(calls, False, timeout_s).body

    def batch(self, calls: Sequence[Call], timeout_s: float | None = None) -> list[Answer]:
        """Answer `calls`, with nobody in between."""
        reply = self._call(calls, True, timeout_s)
        return [_answer(found, call, reply.rows) for found, call in zip(cast(list[Json], loads(reply.body)), calls, strict=True)]

    def _call(self, calls: Sequence[Call], is_raw: bool, timeout_s: float | None) -> Reply:
        if not calls:
            return Reply({}, b"[]", [])
        what = b'{"raw":%s,"calls":%s}' % (b"true" if is_raw else b"false", dumps([call_to_wire(call) for call in calls]))
        try:
            reply = self._exchange("calls", what, timeout_s or self.call_timeout_s)
        except Gone as gone:
            for name, _, _ in calls:
                self.observe(name, 0.0, gone.code)
            answer = b'{"value":null,"error":%s}' % json.dumps([gone.code, ERRORS[gone.code]]).encode()
            return Reply({}, b"[" + b",".join([answer] * len(calls)) + b"]", [])
        self._measure(calls, reply)
        return reply

    def advance(self, step: Step) -> tuple[int, list[Answer]]:
        """Move the clock and answer there; the same step asked for again gets the same answer and moves nothing."""
        moved, body = self.relay_step(step)
        return moved, [answer_from_wire(found) for found in cast(list[Json], loads(body))]

    def relay_step(self, step: Step) -> tuple[int, bytes]:
        """Move the clock and return the answers as a list in the wire's JSON."""
        what: dict[str, Json] = {
            "client": step.client,
            "step": step.number,
            "bars": step.bars,
            "calls": [cast(Json, call_to_wire(call)) for call in step.calls],
        }
        reply = self._exchange("advance", dumps(what), STEP_TIMEOUT_S)
        self._measure(step.calls, reply)
        return cast(int, reply.head["bars"]), reply.body

    def _exchange(self, kind: str, what: bytes, timeout_s: float) -> Reply:
        reply = self._channel.exchange(kind, what, timeout_s)
        if "conflict" in reply.head:
            raise StepConflict(str(reply.head["conflict"]))
        if "failed" in reply.head:
            raise TerminalFailed(str(reply.head["failed"]))
        self._channel.about["reconnects"] = reply.head["reconnects"]
        return reply

    def _measure(self, calls: Sequence[Call], reply: Reply) -> None:
        for call, seconds, code in zip(calls, cast(list[float], reply.head["spent"]), cast(list[int], reply.head["codes"]), strict=True):
            self.observe(call[0], seconds, code)

    def look(self) -> None:
        """Do what is due; called every second."""
        self._channel.look()

    def close(self) -> None:
        """Leave the terminal."""
        self._channel.close()


def _answer(found: Json, call: Call, rows: Sequence[object]) -> Answer:
    if isinstance(found, dict) and "rows" in found:
        code, text = cast(list[object], found["error"])
        dtype = TICKS_DTYPE if call[0].startswith("copy_ticks") else RATES_DTYPE
        read: Rows = np.frombuffer(cast(bytes, rows[cast(int, found["rows"])]), dtype)
        return Answer(read, (cast(int, code), str(text)))
    return answer_from_wire(found)
