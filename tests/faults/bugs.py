"""Protocol bugs, each planted into the running server or trader of a schedule: a campaign that doesn't find them proves nothing."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from btcbot.market.clock import server_clock, to_utc
from btcbot.terminal import evidence, journal, settlement
from btcbot.terminal.evidence import Look, Promise
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.settlement import Claims, Verdict


@dataclass(frozen=True, slots=True)
class Bug:
    """A change of one process, and what is wrong with it."""

    where: Literal["server", "client"]
    what: str
    plant: Callable[[], None]


BUGS: dict[str, Bug] = {}


def bug(where: Literal["server", "client"], what: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function that plants a bug."""

    def register(plant: Callable[[], None]) -> Callable[[], None]:
        BUGS[plant.__name__.replace("_", "-")] = Bug(where, what, plant)
        return plant

    return register


def everywhere(name: str, value: object) -> None:
    """Replace a function of `btcbot.terminal.journal`, `.evidence` or `.settlement` wherever it was imported to."""
    from mt5_server import guard, orders

    modules = [module for module in (journal, evidence, settlement, orders, guard) if hasattr(module, name)]
    assert modules, f"nothing is called {name}: the bug isn't planted"
    for module in modules:
        setattr(module, name, value)


# ---- the journal


@bug("server", "the journal doesn't survive the server")
def no_journal() -> None:
    begin = OrderJournal.__init__

    def forgetful(self: OrderJournal, path: Path, *arguments: Any, **keywords: Any) -> None:
        begin(self, path.with_name(f"{path.stem}-{os.getpid()}.sqlite3"), *arguments, **keywords)

    OrderJournal.__init__ = forgetful


@bug("server", "a key is free again when the terminal didn't answer in time")
def key_freed_on_timeout() -> None:
    settle = OrderJournal.settle

    def freed(self: OrderJournal, key: str, outcome: Any, result: object = None) -> Any:
        entry = settle(self, key, outcome, result)
        if outcome == "unknown":
            self._connection.execute("DELETE FROM orders WHERE key = ?", (key,))
        return entry

    OrderJournal.settle = freed


@bug("server", "a key that is known is sent again")
def replay_sends_again() -> None:
    begin = OrderJournal.begin

    def again(self: OrderJournal, key: str, body: object, *arguments: Any, **keywords: Any) -> Any:
        entry = begin(self, key, body, *arguments, **keywords)
        if entry.is_new:
            return entry
        self._connection.execute("UPDATE orders SET state = 'intent', attempts = 1 WHERE key = ?", (key,))
        return self.get(key)

    OrderJournal.begin = again


# ---- answers


@bug("server", "a time-out is taken for a refusal")
def early_not_done() -> None:
    classify = journal.classify

    def hasty(*arguments: Any, **keywords: Any) -> Any:
        found = classify(*arguments, **keywords)
        return "not_done" if found == "unknown" else found

    everywhere("classify", hasty)


# ---- looks


@bug("server", "an order that isn't found at once was not done")
def empty_look_is_proof() -> None:
    everywhere("waited_ms", lambda looks, horizon_ms=settlement.HORIZON_MS: horizon_ms)


@bug("server", "a look that failed is taken for an empty one")
def none_is_empty() -> None:
    look_from = evidence.look_from

    def careless(answers: Sequence[Any]) -> Look:
        seen = look_from(answers)
        lists = {name: getattr(seen, name) or () for name in ("positions", "orders", "history", "deals")}
        return replace(seen, is_connected=True, **lists)

    everywhere("look_from", careless)
    Look.is_complete = property(lambda self: self.tick is not None)


@bug("server", "an order is looked for by its comment alone")
def comment_only() -> None:
    Promise.magic = property(lambda self: 0)
    Promise.is_marked = property(lambda self: bool(self.mark))


@bug("server", "the history is read up to now in UTC, not on the server's clock")
def window_ends_now() -> None:
    look_calls = evidence.look_calls

    def short(symbol: str, since_ms: int = 0, server_ms: int = 0, utc_ms: int | None = None) -> list[Any]:
        calls = look_calls(symbol, since_ms, server_ms, utc_ms)
        now = to_utc(server_clock("EET"), server_ms, ambiguous="earliest") if server_ms else 0
        span = (max(since_ms // 1000, 1), now // 1000 or 2)
        return [(name, span if name.startswith("history") else given, words) for name, given, words in calls]

    everywhere("look_calls", short)


@bug("server", "an order is looked for among the positions, by their magic")
def positions_only() -> None:
    found = evidence.traces

    def blind(seen: Look) -> Any:
        return found(replace(seen, orders=(), history=(), deals=()))

    everywhere("traces", blind)
    everywhere("_shrank", lambda promise, seen: False)
    everywhere("_moved", lambda promise, seen: False)


@bug("server", "of two orders that look alike the first is taken")
def guesses() -> None:
    others = settlement._others

    def guess(promise: Promise, every: Any, claimed: Claims, rivals: int) -> Any:
        verdict = others(promise, every, Claims(), 0)
        if isinstance(verdict, Verdict):
            return [
                trace for trace in settlement._new(promise, every, Claims()) if settlement._alike(promise, trace, promise.number("magic"))
            ][:1]
        return verdict

    settlement._others = guess


# ---- the trader


@bug("client", "an answer that got lost is asked for again under a new key")
def new_key_on_retry() -> None:
    from btcbot.terminal.remote import RemoteTerminal

    send = RemoteTerminal.send

    @functools.wraps(send)
    def again(self: RemoteTerminal, request: Any, key: str, **conditions: Any) -> Any:
        sent = send(self, request, key, **conditions)
        return send(self, request, os.urandom(32).hex(), **conditions) if sent.outcome == "unknown" else sent

    RemoteTerminal.send = again


@bug("client", "the trader takes an unknown outcome for a refusal")
def trader_gives_up() -> None:
    settle = OrderJournal.settle

    def gives_up(self: OrderJournal, key: str, outcome: Any, result: object = None) -> Any:
        return settle(self, key, "not_done" if outcome == "unknown" else outcome, result)

    OrderJournal.settle = gives_up


# ---- the lease, and the way of an order


@bug("server", "an old epoch is let through")
def missing_fence() -> None:
    from mt5_server.guard import Guard

    Guard.fence = lambda self, epoch: None


@bug("server", "the epoch begins anew with the server")
def epoch_not_persisted() -> None:
    from mt5_server.guard import Guard

    begin = Guard.__init__

    def forgetful(self: Guard, *arguments: Any, **keywords: Any) -> None:
        begin(self, *arguments, **keywords)
        self._state.epoch = 0

    Guard.__init__ = forgetful


@bug("server", "an order that was being sent when the server stopped counts as never sent")
def never_sent_after_restart() -> None:
    from mt5_server.orders import Orders

    begin = Orders.__init__

    def hasty(self: Orders, gate: Any, journal: OrderJournal, *arguments: Any, **keywords: Any) -> None:
        for entry in journal.open_entries():
            if entry.state == "sent":
                journal.settle(entry.key, "not_done", {"by": "stopped"})
        begin(self, gate, journal, *arguments, **keywords)

    Orders.__init__ = hasty


@bug("server", "an order is sent however old its quote is, and however far away")
def stale_quote_is_sent() -> None:
    from mt5_server.orders import Orders

    Orders._check_age = lambda self, submission, seen: None
    Orders._check_conditions = lambda self, submission, asked, seen, is_entry: None
