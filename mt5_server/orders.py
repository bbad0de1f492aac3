"""Orders: each is written down, sent once, and settled, whatever happens to the answer.

The way of an order: it is written down (`intent`); it waits for its turn, because one order at a time is what makes the broker's
records tell which is which; the terminal is looked at; the lease, the limits and its own conditions are checked; it is written down
again with what the terminal showed (`sent`); the terminal is called; what came of it is written down. An order that is refused on the
way is settled as not done and its key is used up. One whose answer is ambiguous is settled by `step` from the broker's records, and until
then no entry on its symbol is let through. The file is never locked while the terminal works.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Literal, Protocol, cast

from btcbot.terminal.contract import C, InvalidArgument, OrderSendResult, TradeRequest, request_from
from btcbot.terminal.evidence import (
    DAY_MS,
    LEAVE_TICKETS,
    Look,
    Promise,
    Tickets,
    baseline_from,
    history_since,
    look_calls,
    look_from,
    promise_from,
)
from btcbot.terminal.journal import Entry, JournalConflict, OrderJournal, Outcome, State, classify, outcome
from btcbot.terminal.settlement import HORIZON_MS, Claims, Verdict, already_there, claims_of, settle
from btcbot.terminal.wire import Answer, Call, Json, answer_from_wire, answer_to_wire, encode
from mt5_server.limits import THE_GUARD, Door, Quote, Refusal, Submission, adds_risk

__all__ = ["OrderAnswer", "OrderSettings", "Orders", "Quote", "Refusal", "Submission"]

_log = logging.getLogger(__name__)
_UNDECIDED: Final = ("intent", "sent", "unknown")
_CHANGES: Final = (C.TRADE_ACTION_SLTP, C.TRADE_ACTION_MODIFY, C.TRADE_ACTION_REMOVE)
_ACTIONS: Final = (*LEAVE_TICKETS, *_CHANGES)
_HOUR_MS: Final = 3_600_000
MAX_LOOKS: Final = 400
How = Literal["", "answer", "looks", "moot", "found", "refusal", "stopped", "person"]


class Watchman(Protocol):
    """What is needed of the guard."""

    turn: threading.RLock

    def attach(self, orders: "Orders") -> None: ...
    def fence(self, epoch: int | None) -> None: ...
    def check(self, submission: Submission, is_entry: bool, look: Look) -> None: ...
    def halt(self, reason: str, by: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSettings:
    """How long things may take."""

    ttl_ms: int = 15_000  # of an order that states none
    max_distance: float | None = None  # points, of an entry that states none
    send_timeout_s: float = 60.0
    look_timeout_s: float = 30.0
    turn_timeout_s: float = 30.0
    horizon_ms: int = HORIZON_MS
    alarm_after_s: float = 60.0
    adopt_for_ms: int = DAY_MS
    adopt_every_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderAnswer:
    """What is known of an order."""

    key: str
    state: State
    is_replay: bool = False
    answer: Answer | None = None  # the terminal's, or one made up from what was found
    by: How = ""
    why: str = ""
    tickets: dict[str, Json] = field(default_factory=dict)
    is_adopted: bool = False

    @property
    def outcome(self) -> Outcome:
        """Return done, not_done or unknown."""
        return self.state if self.state in ("done", "not_done") else "unknown"

    def to_wire(self) -> dict[str, Json]:
        """Return the body of the HTTP answer."""
        told: dict[str, Json] = {"value": None, "error": [1, "Success"]} if self.answer is None else answer_to_wire(self.answer)
        head: dict[str, Json] = {"key": self.key, "state": self.state, "outcome": self.outcome, "replayed": self.is_replay}
        return head | told | {"by": self.by, "why": self.why, "tickets": self.tickets, "adopted": self.is_adopted}


@dataclass(slots=True)
class _Watch:
    """An order whose outcome isn't known."""

    promise: Promise
    since: float  # monotonic
    begun_ms: int  # UTC
    looks: list[Look] = field(default_factory=list)
    verdict: Verdict = field(default_factory=lambda: settle(Promise("", {}), []))
    is_alarmed: bool = False

    def keep(self, seen: Look) -> None:
        """Remember that the broker's clock went on; a clock that stands still adds nothing, and a very long wait needs no more detail."""
        if seen.is_complete and (not self.looks or self.looks[-1].server_ms != seen.server_ms):
            self.looks.append(seen.thin())
            if len(self.looks) > MAX_LOOKS:
                del self.looks[2 : MAX_LOOKS // 2]


def canonical(request: Mapping[str, object]) -> dict[str, int | float | str] | Answer:
    """Return all 17 fields of a request in plain types, or what the package answers to a malformed one (it sends nothing then)."""
    try:
        return cast(dict[str, int | float | str], dict(zip(TradeRequest.__match_args__, request_from(request), strict=True)))
    except InvalidArgument as error:
        return Answer(None, (C.RES_E_INVALID_PARAMS, str(error)))
    except SystemError as error:
        return Answer(None, (1, "Success"), error)


def _made_up(entry: Entry, verdict: Verdict) -> Answer:
    """Return the answer that the terminal would have given, from what was found."""
    first = _told(entry)
    if verdict.outcome != "done":
        return Answer(None, first.error if first is not None and first.error[0] != 1 else (C.RES_E_INTERNAL_FAIL_TIMEOUT, "IPC timeout"))
    found = verdict.tickets or Tickets()
    request = request_from(cast(dict[str, object], promise_from(entry).request))
    numbers = (C.TRADE_RETCODE_DONE, found.deal, found.order, found.volume, found.price, 0.0, 0.0, "Request executed", 0, 0, request)
    return Answer(OrderSendResult(numbers), (1, "Success"))


def _told(entry: Entry) -> Answer | None:
    """Return what the terminal said to an order, as the journal has it."""
    result = entry.result if isinstance(entry.result, dict) else {}
    return answer_from_wire(result["answer"]) if "answer" in result else None


def _rivals(promise: Promise, entries: Sequence[Entry]) -> tuple[Claims, int]:
    """Return the tickets of other orders, and how many undecided ones can't be told from this one."""
    others = [entry for entry in entries if entry.key != promise.key]
    undecided = [promise_from(entry) for entry in others if entry.state in ("sent", "unknown")]
    return claims_of(others), sum(not other.is_marked and other.shape == promise.shape for other in undecided)


class Orders:
    """Every order of this server."""

    def __init__(
        self,
        gate: Door,
        journal: OrderJournal,
        guard: Watchman,
        settings: OrderSettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        admit: Callable[[Submission, object, bool], None] | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ):
        """Take over what an earlier process left open; `admit` says whether a caller may send an order, or raises a `Refusal`."""
        self.gate, self.journal, self.guard, self.settings = gate, journal, guard, settings or OrderSettings()
        self.counters: Counter[str] = Counter()
        self._monotonic, self._admit, self._now_ms = monotonic, admit, now_ms
        self._lock = threading.RLock()
        self._active: Counter[str] = Counter()
        self._watches: dict[str, _Watch] = {}
        self._unwritten: dict[str, tuple[Outcome, dict[str, Json]]] = {}
        self._adopted_at, self._server_ms = -self.settings.adopt_every_s, 0
        for entry in journal.open_entries():
            if entry.state == "intent":
                self._give_up(entry)
            else:
                left = entry if entry.state == "unknown" else journal.settle(entry.key, "unknown", {"by": "stopped"})
                _log.warning("Order %s: the server stopped while it was being sent; looking for it", entry.key[:16])
                self._watch(left)
        guard.attach(self)

    # ---- sending

    def send(self, submission: Submission, caller: object = None) -> OrderAnswer:
        """Send an order once; the same key again gets the first answer."""
        key, fields = submission.key, canonical(submission.request)
        with self._working_at(key):
            entry = self._begin(submission, encode(dict(submission.request) if isinstance(fields, Answer) else fields))
            if not entry.is_new:
                return self._known(entry)
            try:
                if isinstance(fields, Answer):
                    return self._settled(entry, fields)
                self.guard.fence(submission.epoch)
                with self._turn():
                    return self._submit(submission, Promise(key, fields), caller)
            except Refusal as refusal:
                raise self._refused(key, refusal) from None

    def _submit(self, submission: Submission, asked: Promise, caller: object) -> OrderAnswer:
        symbol = asked.symbol or self._symbol_of(asked)
        seen = self._look(symbol, history_since(self._server_ms))
        self._learn(seen)
        is_entry = adds_risk(asked, seen)
        if (there := already_there(asked, seen)) is not None:
            _log.error("Order %s: %s It was sent before, and this journal doesn't know of it", asked.key[:16], there.why)
            return self._conclude(self._written(asked.key), there, "found")
        self.guard.check(submission, is_entry, seen)
        self._check_symbol(symbol, is_entry)
        if self._admit is not None and caller is not THE_GUARD:
            self._admit(submission, caller, is_entry)
        self._check_conditions(submission, asked, seen, is_entry)
        self._check_age(submission, seen)
        entry = self._mark_sent(asked.key, baseline_from(seen, asked.request, symbol).to_json())
        if entry.state != "sent":
            return self._known(entry)
        try:
            self._check_age(submission, seen)  # the disk may have taken its time
            answer = self.gate.batch([("order_send", [dict(asked.request)], {})], self.settings.send_timeout_s)[0]
        except Refusal:
            raise
        except Exception as error:
            _log.error("Order %s: the terminal failed", asked.key[:16], exc_info=error)
            answer = Answer(None, (C.RES_E_INTERNAL_FAIL, f"{type(error).__name__}: {error}"))
        return self._settled(entry, answer)

    def _settled(self, entry: Entry, answer: Answer) -> OrderAnswer:
        """Write down what the terminal answered."""
        value = answer.value if isinstance(answer.value, OrderSendResult) else None
        found = "not_done" if answer.raised is not None else outcome(classify(value, answer.error[0]))
        numbers = {"order": value.order, "deal": value.deal, "volume": value.volume, "price": value.price} if value is not None else {}
        result: dict[str, Json] = {"by": "answer", "answer": answer_to_wire(answer), "tickets": encode(numbers)}
        if value is not None:
            result |= {"order": value.order, "deal": value.deal}
        said = answer.raised or (answer.error if value is None else f"retcode {value.retcode}, order {value.order}, deal {value.deal}")
        _log.info("Order %s: %s, %s", entry.key[:16], found, said)
        after = self._write(entry, found, result)
        if found == "unknown":
            self._watch(after)
        return self._shown(after)

    def _write(self, entry: Entry, found: Outcome, result: dict[str, Json]) -> Entry:
        """Record an outcome; a full disk must not keep the answer from the client, which has a journal of its own."""
        self._count("orders_total", outcome=found)
        try:
            return self.journal.settle(entry.key, found, result)
        except JournalConflict as error:  # another process settled it, while this one stood still
            _log.error("ALARM: order %s: %s", entry.key[:16], error)
            self._count("order_alarms_total")
            if found == "done":
                self._count("orders_adopted_total")
                return self.journal.adopt(entry.key, result)
            return self._written(entry.key)
        except Exception as error:
            _log.error("Order %s: its outcome %s can't be recorded yet", entry.key[:16], found, exc_info=error)
            with self._lock:
                self._unwritten[entry.key] = found, result
            return replace(entry, state=found, result=result)

    def _begin(self, submission: Submission, body: Json) -> Entry:
        try:
            return self.journal.begin(submission.key, body, epoch=submission.epoch)
        except JournalConflict:
            detail = "This Idempotency-Key was used for another order: give each order its own key."
            raise Refusal(422, "key-conflict", detail, key=submission.key) from None
        except Exception as error:
            _log.error("The journal refused an order", exc_info=error)
            raise self._no_journal() from None

    def _mark_sent(self, key: str, baseline: object) -> Entry:
        try:
            return self.journal.mark_sent(key, baseline)
        except JournalConflict:  # this process stood still, and another one settled the order as never sent
            return self._written(key)
        except Exception as error:
            _log.error("The journal refused a baseline", exc_info=error)
            raise self._no_journal() from None

    @staticmethod
    def _no_journal() -> Refusal:
        detail = "The order was not sent, because it could not be written to the journal: look at the server's disk."
        return Refusal(503, "journal-failed", detail, outcome="not_done")

    def _refused(self, key: str, refusal: Refusal) -> Refusal:
        """Write down a refusal, so that the same key gets it again."""
        self._count("order_refusals_total", type=refusal.type)
        told: dict[str, Json] = {"status": refusal.status, "type": refusal.type, "detail": refusal.detail, "more": dict(refusal.more)}
        _log.info("Order %s refused: %s", key[:16], refusal.detail)
        self._write(self._written(key), "not_done", {"by": "refusal", "refusal": told})
        refusal.more.setdefault("outcome", "not_done")
        return refusal

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other order is between its checks and its answer; no epoch rises meanwhile either."""
        if not self.guard.turn.acquire(timeout=self.settings.turn_timeout_s):
            detail = "Another order has kept the terminal for too long, so this one was not sent: look at /health, then use a new key."
            raise Refusal(503, "orders-busy", detail)
        try:
            yield
        finally:
            self.guard.turn.release()

    @contextmanager
    def _working_at(self, key: str) -> Iterator[None]:
        """Note that a thread is at work on a key."""
        with self._lock:
            self._active[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._active[key] -= 1
                if not self._active[key]:
                    del self._active[key]

    # ---- conditions

    def _check_symbol(self, symbol: str, is_entry: bool) -> None:
        if is_entry and (key := self._blocker(symbol)):
            detail = f"An earlier order on {symbol} is undecided: no entry there until it is known what became of it."
            raise Refusal(409, "symbol-blocked", detail, symbol=symbol, key=key)

    def _check_age(self, submission: Submission, seen: Look) -> None:
        ttl = self.settings.ttl_ms if submission.ttl_ms is None else submission.ttl_ms
        ages = [(self._monotonic() - submission.received) * 1000]
        if submission.quote is not None and seen.tick is not None:
            ages.append(seen.tick.time_msc - submission.quote.time_msc)
        if max(ages) > ttl:
            detail = f"The order is {max(ages):.0f} ms old, more than its {ttl} ms: decide anew, and send that with a new key."
            raise Refusal(409, "order-expired", detail, age_ms=round(max(ages)), ttl_ms=ttl)

    def _check_conditions(self, submission: Submission, asked: Promise, seen: Look, is_entry: bool) -> None:
        if not seen.is_known or asked.number("action") not in _ACTIONS:
            return  # no broker can execute it, so the terminal may as well say what it thinks of it
        if is_entry and not (seen.is_complete and seen.symbol is not None):
            names = ("account", "symbol", "tick", "positions", "orders", "history", "deals")
            what: list[Json] = [name for name in names if getattr(seen, name) is None] or ["connection"]
            missing = ", ".join(map(str, what))
            detail = (
                f"The terminal doesn't show {missing}, so it couldn't be found out what became of an entry: not sent. Select the symbol."
            )
            raise Refusal(503, "terminal-unreadable", detail, what=what)
        limit = submission.max_distance if submission.max_distance is not None else self.settings.max_distance if is_entry else None
        quote, tick = submission.quote, seen.tick
        if limit is None or quote is None:
            return
        if tick is None or seen.symbol is None or not seen.symbol.point:
            detail = "The terminal shows no quote, so the distance from the order's can't be told: not sent. Select the symbol."
            raise Refusal(503, "terminal-unreadable", detail, what=["tick"])
        sides = {C.ORDER_TYPE_BUY: (tick.ask - quote.ask,), C.ORDER_TYPE_SELL: (tick.bid - quote.bid,)}
        is_deal = asked.number("action") == C.TRADE_ACTION_DEAL
        moves = sides.get(asked.number("type") if is_deal else -1, (tick.ask - quote.ask, tick.bid - quote.bid))
        points = max(abs(move) for move in moves) / seen.symbol.point
        if not points <= limit + 1e-6:  # NaN is too far as well
            detail = f"The price has moved {points:.0f} points from the order's quote, more than {limit:g}: decide anew, with a new key."
            raise Refusal(409, "order-distance", detail, points=round(points, 1), max_distance=limit)

    # ---- looking

    def _look(self, symbol: str, since_ms: int) -> Look:
        try:
            seen = look_from(self.gate.batch(look_calls(symbol, since_ms, self._server_ms), self.settings.look_timeout_s))
        except Exception as error:
            _log.error("The terminal could not be looked at", exc_info=error)
            return Look()
        if seen.tick is not None:
            self._server_ms = seen.tick.time_msc
        return seen

    def _symbol_of(self, asked: Promise) -> str:
        """Find the symbol of a request that names only a ticket."""
        calls: list[Call] = [("positions_get", [], {}), ("orders_get", [], {})]
        try:
            answers = self.gate.batch(calls, self.settings.look_timeout_s)
        except Exception:
            return ""
        tickets = {asked.number("position"), asked.number("order")} - {0}
        found = (item for answer in answers if isinstance(answer.value, tuple) for item in answer.value)
        return next((item.symbol for item in found if item.ticket in tickets), "")

    # ---- looking up

    def get(self, key: str) -> OrderAnswer | None:
        """Return what is known of an order."""
        entry = self.journal.get(key)
        return None if entry is None else self._shown(entry, is_replay=True)

    def _written(self, key: str) -> Entry:
        entry = self.journal.get(key)
        assert entry is not None, "it was begun"
        return entry

    def _known(self, entry: Entry) -> OrderAnswer:
        """Answer for an order that was begun before."""
        self._count("orders_replayed_total")
        if entry.state == "intent" and self._active[entry.key] == 1:  # nobody else is at it: given up between two writes, so never sent
            entry = self._give_up(entry)
        if entry.state in _UNDECIDED:
            detail = {
                "intent": "The order is waiting for its turn: ask again with the same key.",
                "sent": "The order is being sent: ask again with the same key.",
            }.get(entry.state, "It isn't known yet whether the order was executed; that is being found out. Ask again with the same key.")
            watch = self._watches.get(entry.key)
            age = 0.0 if watch is None else round(self._monotonic() - watch.since, 3)
            more: dict[str, Json] = {"key": entry.key, "state": entry.state, "outcome": "unknown", "age_s": age}
            raise Refusal(409, "order-undecided", detail, {"Retry-After": "1"}, **more)
        result = entry.result if isinstance(entry.result, dict) else {}
        if "refusal" in result:
            told = result["refusal"]
            raise Refusal(told["status"], told["type"], told["detail"], **(told["more"] | {"outcome": "not_done", "replayed": True}))
        return self._shown(entry, is_replay=True)

    def _shown(self, entry: Entry, *, is_replay: bool = False) -> OrderAnswer:
        result = entry.result if isinstance(entry.result, dict) else {}
        tickets = result.get("tickets", {})
        why = str(result.get("why", "")) or str(result.get("refusal", {}).get("detail", ""))
        if (watch := self._watches.get(entry.key)) is not None:
            why = watch.verdict.why
        return OrderAnswer(
            key=entry.key,
            state=entry.state,
            is_replay=is_replay,
            answer=_told(entry),
            by=result.get("by", ""),
            why=why,
            tickets=tickets if isinstance(tickets, dict) else {},
            is_adopted=entry.is_adopted,
        )

    def _give_up(self, entry: Entry) -> Entry:
        """Settle an intent that nobody will send; whoever still holds it finds out when it wants to write `sent`."""
        _log.warning("Order %s: it was written down and never sent", entry.key[:16])
        self._count("orders_total", outcome="not_done")
        return self.journal.settle(entry.key, "not_done", {"by": "stopped", "why": "The server stopped before the order was sent."})

    # ---- settling

    def step(self) -> None:
        """Look for what became of the orders that are undecided; called once a second by one thread."""
        self._write_late()
        with self._lock:
            watches = dict(self._watches)
        for symbol in sorted({watch.promise.symbol for watch in watches.values()}):
            mine = {key: watch for key, watch in watches.items() if watch.promise.symbol == symbol}
            seen = self._look(symbol, min(self._since(watch.promise) for watch in mine.values()))
            others = self._others(min(watch.begun_ms for watch in mine.values()))  # after the look: what it shows is in the journal by then
            for key, watch in mine.items():
                self._judge(key, watch, seen, others)
        if self._monotonic() - self._adopted_at >= self.settings.adopt_every_s:
            self._adopted_at = self._monotonic()
            self._adopt()

    def _learn(self, seen: Look) -> None:
        """Settle the changes that a look shows to be in force: the order that is sent next may be what hides them."""
        with self._lock:
            changes = {key: watch for key, watch in self._watches.items() if watch.promise.number("action") in _CHANGES}
        for key, watch in changes.items():
            verdict = settle(watch.promise, [seen])
            if verdict.outcome == "done":
                self._count("orders_settled_total", outcome="done")
                self._conclude(self._written(key), verdict, "looks")

    @staticmethod
    def _since(promise: Promise) -> int:
        return promise.baseline.since_ms if promise.baseline else 0

    def _judge(self, key: str, watch: _Watch, seen: Look, others: Sequence[Entry]) -> None:
        claimed, rivals = _rivals(watch.promise, others)
        verdict = watch.verdict = settle(watch.promise, [*watch.looks, seen], claimed, rivals, self.settings.horizon_ms)
        if verdict.is_working:
            watch.looks.clear()
        watch.keep(seen)
        if verdict.halts:
            self.guard.halt(f"Order {key[:16]}: {verdict.why}", "server")
        if verdict.outcome != "unknown":
            self._count("orders_settled_total", outcome=verdict.outcome)
            self._conclude(self._written(key), verdict, "moot" if verdict.is_moot else "looks")
        elif not watch.is_alarmed and self._monotonic() - watch.since >= self.settings.alarm_after_s:
            watch.is_alarmed = True
            self._count("order_alarms_total")
            _log.error("ALARM: order %s has been undecided for %.0f s: %s", key[:16], self._monotonic() - watch.since, verdict.why)

    def _others(self, since_ms: int) -> list[Entry]:
        """Return the orders whose tickets could be mistaken for those of an order that was begun at `since_ms`."""
        found = (*self.journal.recent(since_ms - _HOUR_MS), *self.journal.open_entries())
        return list({entry.key: entry for entry in found}.values())

    def _conclude(self, entry: Entry, verdict: Verdict, by: How) -> OrderAnswer:
        """Write down a verdict."""
        found = verdict.tickets or Tickets()
        result: dict[str, Json] = {
            "by": by,
            "why": verdict.why,
            "tickets": cast(Json, asdict(found)),
            "order": found.order,
            "deal": found.deal,
            "answer": answer_to_wire(_made_up(entry, verdict)),
        }
        _log.warning("Order %s: %s. %s", entry.key[:16], verdict.outcome, verdict.why)
        after = self._write(entry, verdict.outcome, result)
        with self._lock:
            self._watches.pop(entry.key, None)
        if after.state == "unknown":
            self._watch(after)
        return self._shown(after)

    def _watch(self, entry: Entry) -> None:
        with self._lock:
            self._watches[entry.key] = _Watch(promise_from(entry), self._monotonic(), entry.created_ms)

    def _write_late(self) -> None:
        """Write down outcomes for which the disk had no room."""
        with self._lock:
            late = dict(self._unwritten)
        for key, (found, result) in late.items():
            try:
                self.journal.settle(key, found, result)
            except JournalConflict as error:
                _log.error("Order %s: %s", key[:16], error)
            except Exception as error:
                _log.error("Order %s: its outcome still can't be recorded: %s", key[:16], error)
                continue
            with self._lock:
                self._unwritten.pop(key, None)

    def _adopt(self) -> None:
        """Look for orders that were settled as not done for want of a trace, and were executed after all."""
        missed: dict[str, list[tuple[Promise, int]]] = {}
        for entry in self.journal.recent(self._now_ms() - self.settings.adopt_for_ms):
            by = entry.result.get("by") if isinstance(entry.result, dict) else None
            if entry.state == "not_done" and entry.sent_ms is not None and by == "looks":
                promise = promise_from(entry)
                if promise.number("action") in LEAVE_TICKETS:
                    missed.setdefault(promise.symbol, []).append((promise, entry.created_ms))
        for symbol, promises in missed.items():
            seen = self._look(symbol, min(self._since(promise) for promise, _ in promises))
            others = self._others(min(begun_ms for _, begun_ms in promises))
            for promise, _ in promises:
                verdict = settle(promise, [seen], *_rivals(promise, others), self.settings.horizon_ms)
                if verdict.outcome == "done":
                    self._adopted(self._written(promise.key), verdict)

    def _adopted(self, entry: Entry, verdict: Verdict) -> None:
        found = verdict.tickets or Tickets()
        result: dict[str, Json] = {
            "by": "looks",
            "why": f"Found after it had been settled as not done. {verdict.why}",
            "tickets": cast(Json, asdict(found)),
            "order": found.order,
            "deal": found.deal,
            "answer": answer_to_wire(_made_up(entry, verdict)),
        }
        self.journal.adopt(entry.key, result)
        self._count("orders_adopted_total")
        self._count("order_alarms_total")
        _log.error("ALARM: order %s was settled as not done, and was executed: order %s, deal %s", entry.key[:16], found.order, found.deal)

    # ---- what is going on

    def _blocker(self, symbol: str) -> str | None:
        with self._lock:
            return next((key for key, watch in self._watches.items() if watch.promise.symbol in ("", symbol)), None)

    def is_blocked(self, symbol: str) -> bool:
        """Say whether an undecided order keeps entries on a symbol back."""
        return self._blocker(symbol) is not None

    def undecided(self) -> list[Promise]:
        """Return the orders whose outcome isn't known."""
        with self._lock:
            return [watch.promise for watch in self._watches.values()]

    def resolve(self, key: str, outcome: Literal["done", "not_done"], person: str) -> OrderAnswer:
        """Let a person decide an order that nothing else can."""
        entry = self.journal.get(key)
        if entry is None or entry.state != "unknown":
            state = "not known here" if entry is None else f"{entry.state}, not unknown"
            raise Refusal(409, "order-decided", f"The order {key} is {state}: there is nothing to decide.", key=key)
        _log.warning("Order %s: %s says that it is %s", key[:16], person, outcome)
        return self._conclude(entry, Verdict(outcome, f"{person} decided it."), "person")

    def status(self) -> dict[str, Json]:
        """Return what is undecided."""
        with self._lock:
            open_orders: list[Json] = [
                {
                    "key": key,
                    "symbol": watch.promise.symbol,
                    "age_s": round(self._monotonic() - watch.since, 3),
                    "why": watch.verdict.why,
                    "stuck": watch.verdict.is_stuck,
                    "alarm": watch.is_alarmed,
                }
                for key, watch in self._watches.items()
            ]
            return {"undecided": open_orders, "unwritten": len(self._unwritten)}

    def _count(self, name: str, **labels: str) -> None:
        inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
        with self._lock:
            self.counters[f"btcbot_server_{name}" + (f"{{{inside}}}" if inside else "")] += 1
