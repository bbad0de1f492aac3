"""Protocol bugs of the trader, each planted into its running code: a campaign that doesn't find them proves nothing.

Those of the server and of the journal are in `tests.faults.bugs`, and are hunted there.
"""

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from btcbot.core.errors import OrderUnknown
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.remote import RemoteTerminal
from btcbot.trading import trader as traders
from btcbot.trading.execution import OrderExecution, told
from btcbot.trading.live import KillSwitch, LiveLoop
from btcbot.trading.trader import Trader


@dataclass(frozen=True, slots=True)
class Bug:
    """A change of the trader, and what is wrong with it."""

    what: str
    plant: Callable[[], None]


BUGS: dict[str, Bug] = {}
CLIENT = "orders.sqlite"  # name of the trader's journal; the server's has another one


def bug(what: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function that plants a bug."""

    def register(plant: Callable[[], None]) -> Callable[[], None]:
        BUGS[plant.__name__.replace("_", "-")] = Bug(what, functools.cache(plant))  # once in a process
        return plant

    return register


# ---- keys and attempts


@bug("an order that was left open is asked for with a body that is computed anew")
def body_computed_anew() -> None:
    send = RemoteTerminal.send

    def anew(self: RemoteTerminal, request: Mapping[str, object], key: str, **how: Any) -> Any:
        changed = dict(request) | {"deviation": 7} if how.get("is_again") else request
        return send(self, changed, key, **how)

    RemoteTerminal.send = anew


@bug("an order that was left open is asked for under a new key")
def new_key_after_restart() -> None:
    send = RemoteTerminal.send
    fresh = itertools.count()

    def other(self: RemoteTerminal, request: Mapping[str, object], key: str, **how: Any) -> Any:
        return send(self, request, f"{next(fresh):064d}" if how.get("is_again") else key, **how)

    RemoteTerminal.send = other


@bug("a new attempt is made before the one before is settled")
def attempt_before_settled() -> None:
    once = OrderExecution._once

    def hasty(self: OrderExecution, bar_time: int, intent: Any, leg: str, tick: Any, attempt: int) -> Any:
        try:
            return once(self, bar_time, intent, leg, tick, attempt)
        except OrderUnknown:
            return once(self, bar_time, intent, leg, tick, attempt + 1)

    OrderExecution._once = hasty


@bug("closing and opening on one bar have the same key")
def legs_share_a_key() -> None:
    key = OrderExecution.key

    def short(self: OrderExecution, bar_time: int, leg: str, ticket: int, attempt: int = 1) -> str:
        return key(self, bar_time, "", 0, attempt)

    OrderExecution.key = short


@bug("the key doesn't know the bar")
def key_without_bar() -> None:
    key = OrderExecution.key

    def short(self: OrderExecution, bar_time: int, leg: str, ticket: int, attempt: int = 1) -> str:
        return key(self, 0, leg, ticket, attempt)

    OrderExecution.key = short


@bug("the server isn't told that the order may have been sent before")
def not_told_again() -> None:
    send = RemoteTerminal.send

    def first(self: RemoteTerminal, request: Mapping[str, object], key: str, **how: Any) -> Any:
        return send(self, request, key, **(how | {"is_again": False}))

    RemoteTerminal.send = first


@bug("the rest of a partial fill is asked for in full")
def rest_in_full() -> None:
    attempts = OrderExecution._attempts
    asked = dict[tuple[int, str], int]()

    def full(self: OrderExecution, intent: Any, bar_time: int, leg: str, tick: Any, first: int) -> Any:
        name = bar_time, leg.partition(".")[0] + str(intent[1])
        intent[3] = asked.setdefault(name, int(intent[3]))
        return attempts(self, intent, bar_time, leg, tick, first)

    OrderExecution._attempts = full


# ---- the journal


@bug("an order is written down after it was sent")
def written_after_sent() -> None:
    once = OrderExecution._once

    def late(self: OrderExecution, bar_time: int, intent: Any, leg: str, tick: Any, attempt: int) -> Any:
        key = self.key(bar_time, leg, int(intent[1]), attempt)
        if self.journal.get(key) is not None:
            return once(self, bar_time, intent, leg, tick, attempt)
        request = self.request(intent, key, tick)
        sent = cast(Any, self.terminal).send(request, key)
        self.journal.begin(key, request, "{}")
        entry = self.journal.settle(key, sent.outcome, told(sent.result))
        if sent.outcome == "unknown":
            raise OrderUnknown(key)
        return self._fill(entry, intent, attempt, False)

    OrderExecution._once = late


@bug("an unknown outcome is taken for a refusal")
def unknown_is_refused() -> None:
    settle = OrderJournal.settle

    def gives_up(self: OrderJournal, key: str, outcome: Any, result: object = None) -> Any:
        is_given_up = outcome == "unknown" and self.path.name == CLIENT
        return settle(self, key, "not_done" if is_given_up else outcome, result)

    OrderJournal.settle = gives_up


@bug("orders that were left open are not looked after")
def left_open() -> None:
    OrderExecution.settle_open = lambda self: []


@bug("the journal doesn't survive the trader")
def forgets() -> None:
    begin = OrderJournal.__init__
    number = itertools.count()

    def forgetful(self: OrderJournal, path: Path, *arguments: Any, **keywords: Any) -> None:
        other = path.with_name(f"forgotten-{os.getpid()}-{next(number)}.sqlite")
        begin(self, other if path.name == CLIENT else path, *arguments, **keywords)
        self.path = path

    OrderJournal.__init__ = forgetful


@bug("an order that turns out to have been executed stays not done")
def never_adopts() -> None:
    traders.executed_after_all = lambda seen, entries: []


# ---- what the trader does


@bug("entries don't ask the kill switch")
def switch_ignored() -> None:
    KillSwitch.reason = lambda self: ""


@bug("a flatten closes nothing")
def never_flat() -> None:
    LiveLoop._flatten = lambda self: None


@bug("a lost stop isn't set again")
def stop_stays_lost() -> None:
    Trader._keep_stops = lambda self, answers: answers


@bug("what a person opened counts as the strategy's")
def takes_foreign() -> None:
    Trader.is_own = lambda self, position: True


@bug("a bar from the future makes the trader deaf until then")
def waits_for_the_future() -> None:
    Trader._heed_clock = lambda self, now: None
