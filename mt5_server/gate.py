"""The one door to the terminal: calls go through it one at a time, each with its `last_error`."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from btcbot.terminal.contract import Terminal
from btcbot.terminal.wire import Answer, Call, LockStep, ask

CLIENTS = 16  # clients of a lock-step terminal whose last answer is kept


class Step(NamedTuple):
    """A request to move the clock: which client, its how manieth, and what it asked for."""

    client: str
    number: int
    asked: bytes
    bars: int
    calls: Sequence[Call]


class StepConflict(Exception):
    """A step that is out of order, or another one under the number of the last."""


class Gate:
    """Serialise all calls of `terminal`, because its state and its last error belong to the process and not to a caller."""

    def __init__(self, terminal: Terminal):
        self._terminal = terminal
        self._clock = terminal if isinstance(terminal, LockStep) else None
        self._lock = threading.Lock()
        self._since: float | None = None
        self._steps: OrderedDict[str, tuple[int, bytes, tuple[int, list[Answer]] | Exception]] = OrderedDict()

    @property
    def is_lock_step(self) -> bool:
        """Say whether the terminal's clock waits for `advance`."""
        return self._clock is not None

    @property
    def busy_s(self) -> float:
        """Return for how long the present call has been running, 0 if there is none; never waits."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._lock:
            self._since = time.monotonic()
            try:
                yield
            finally:
                self._since = None

    def _ask(self, call: Call) -> Answer:
        name, arguments, keywords = call
        return ask(getattr(self._terminal, name), self._terminal.last_error, arguments, keywords)

    def batch(self, calls: Sequence[Call]) -> list[Answer]:
        """Answer `calls`, with nobody in between."""
        with self._alone():
            return [self._ask(call) for call in calls]

    def advance(self, step: Step) -> tuple[int, list[Answer]]:
        """Move the clock and answer there; the same step asked for again gets the same answer and moves nothing."""
        with self._alone():
            number, asked, answer = self._steps.get(step.client, (0, b"", (0, [])))
            if step.number == number and step.asked != asked:
                raise StepConflict(f"Step {number} was another request: ask for that one again, its answer may have been lost.")
            if step.number not in (number, number + 1):
                raise StepConflict(f"Step {step.number} can't follow step {number}: the steps of a client are counted from 1.")
            if step.number == number + 1:
                answer = self._stepped(step)
                self._steps[step.client] = step.number, step.asked, answer
                self._steps.move_to_end(step.client)
                while len(self._steps) > CLIENTS:
                    self._steps.popitem(last=False)
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _stepped(self, step: Step) -> tuple[int, list[Answer]] | Exception:
        """Return an error instead of raising it: the clock may have moved, so a step that failed isn't taken again either."""
        assert self._clock is not None
        try:
            moved, _ = self._clock.advance(step.bars)
            return moved, [self._ask(call) for call in step.calls]
        except Exception as error:
            return error
