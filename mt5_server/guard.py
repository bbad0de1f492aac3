"""The guard: who may trade, how much may be lost, and what happens when nobody is at the wheel.

A trader holds a *lease* and renews it. Its number, the epoch, rises each time and is kept in a file, so an order that carries an older one
is refused, whoever sends it and however late it wakes up. When the lease lapses, entries are blocked and the stops at the broker stay.
When a hard limit is hit, entries are blocked until a person lifts that. What goes further (tightening stops, or closing the positions of
declared magics) is done only where a person has chosen it, and its orders go through the same journal as all others.

The guard decides on nothing that it can't be sure of: an account that can't be read, shows zeros, or belongs to somebody else, a terminal
that is cut off from its broker, and prices that stand still are no reason to act. It takes two good reads in a row that say the same.
"""

import json
import logging
import math
import sqlite3
import threading
import time
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

from btcbot.core.database import open_database
from btcbot.core.errors import BtcbotError
from btcbot.terminal.contract import MQL, C, SymbolInfo, Tick, TradeOrder, TradePosition
from btcbot.terminal.evidence import DAY_MS, Look, Promise, look_calls, look_from
from btcbot.terminal.journal import magic_for, marker, order_key
from btcbot.terminal.wire import Call, Json
from mt5_server.limits import (
    THE_GUARD,
    Door,
    Limits,
    Magics,
    Refusal,
    Submission,
    exposure_after,
    exposure_lots,
    strategy_magics,
    tightened,
)

if TYPE_CHECKING:
    from mt5_server.orders import Orders

_log = logging.getLogger(__name__)
GUARD_STRATEGY: Final = 2**31 - 1  # in the magic of the guard's own orders
_FLOWS: Final = (C.DEAL_TYPE_BALANCE, C.DEAL_TYPE_CREDIT, C.DEAL_TYPE_CORRECTION, C.DEAL_TYPE_BONUS)  # neither profit nor loss
_STEPS: Final = (("CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",),)
Action = Literal["block", "tighten", "flatten"]
Verb = Literal["close", "remove", "tighten"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """What a person has chosen."""

    limits: Limits = field(default_factory=Limits)
    lease_s: float = 60.0  # of a lease that asks for no other time
    lease_min_s: float = 5.0
    lease_max_s: float = 3600.0
    after_lapse: Action = "block"  # what is done when a lease has been lapsed for `after_lapse_s`; entries are blocked at once in any case
    after_lapse_s: float = 300.0
    after_limit: Literal["block", "flatten"] = "block"
    magics: Magics = ()  # whose positions and orders the guard may touch; ranges
    symbol: str = ""  # whose quotes are the broker's clock; found out from orders and positions where it isn't given
    tighten_points: float = 0.0  # distance from the price
    retry_ms: int = 5_000  # of the broker's time, doubled up to a minute
    explain_s: float = 60.0  # for how long a change of the balance may wait for its deal
    look_timeout_s: float = 30.0
    turn_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.after_lapse not in ("block", "tighten", "flatten") or self.after_limit not in ("block", "flatten"):
            raise BtcbotError(f"After a lapse {self.after_lapse!r}, after a limit {self.after_limit!r}: choose block, tighten or flatten.")
        if not 0 < self.lease_min_s <= self.lease_s <= self.lease_max_s:
            raise BtcbotError(f"A lease of {self.lease_s} s must lie between {self.lease_min_s} and {self.lease_max_s} s.")
        if self.after_lapse == "tighten" and self.tighten_points <= 0:
            raise BtcbotError(f"Stops can't be tightened to {self.tighten_points} points from the price: give tighten_points above 0.")
        if (self.after_lapse != "block" or self.after_limit != "block") and not self.magics:
            raise BtcbotError("The guard may act on declared magics alone: name them in magics, or choose block.")


def read_settings(path: Path) -> GuardSettings:
    """Read what a person has chosen from a TOML file: the fields of `GuardSettings`, and the limits in a table `[limits]`."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        limits = Limits(**found.pop("limits", {}))
        ranges = [(each, each) if isinstance(each, int) else (int(each[0]), int(each[1])) for each in found.pop("magics", [])]
        for strategy in found.pop("strategies", []):
            ranges += strategy_magics(strategy)
        return GuardSettings(**found, limits=limits, magics=tuple(ranges))
    except (OSError, TypeError, ValueError, IndexError) as error:
        raise BtcbotError(
            f"The guard's settings {path} can't be read ({error}): name fields of GuardSettings, and the limits in a table [limits]."
        ) from error


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to send entries, for a time."""

    epoch: int
    ttl_s: float
    holder: str


@dataclass(slots=True)
class _Read:
    """One good look at the account."""

    seen: Look
    at: float  # monotonic
    equity: float
    total: float  # balance and credit


@dataclass(slots=True)
class _State:
    """What is kept in the file."""

    epoch: int = 0
    holder: str = ""
    is_released: bool = True
    limits: dict[str, dict[str, float | None]] = field(default_factory=dict)
    floor_since_ms: int = 0  # server's clock; 0: from the first read on
    login: int = 0
    day: int = -1  # of the broker, days since 1970 on its clock
    day_equity: float = 0.0
    day_since_ms: int = 0
    flows: list[tuple[int, int, float]] = field(default_factory=list)  # deals on the balance: ticket, server's time, money
    halt: dict[str, Json] | None = None
    action: dict[str, Json] | None = None  # what the guard is doing: kind, reason, epoch


def _nowhere(point: str, what: str) -> None:
    """Do nothing at a write point."""


class Guard:
    """Lease, limits, and what follows when they end."""

    def __init__(
        self,
        gate: Door,
        path: Path,
        settings: GuardSettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        at_write: Callable[[str, str], None] = _nowhere,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ):
        """Read what was there; `at_write` is called before and after each write, as in the journal."""
        self.gate, self.path, self.settings, self.at_write = gate, path, settings or GuardSettings(), at_write
        self.turn, self.counters = threading.RLock(), Counter[str]()
        self._monotonic, self._now_ms, self._lock = monotonic, now_ms, threading.RLock()
        self.note: Callable[[str, str], None] = _nowhere  # takes what the guard does by itself
        try:
            self._connection = open_database(path, "guard", _STEPS, 5.0)
        except (OSError, sqlite3.Error) as error:
            raise BtcbotError(f"The guard's file {path} can't be opened ({error}): name a file in a folder that is yours.") from error
        self._state = _State()
        for name, value in self._connection.execute("SELECT name, value FROM state").fetchall():
            setattr(self._state, name, json.loads(value))
        self._limits = self._first_limits()
        self._orders: Orders | None = None
        self._expires: float | None = None  # of the present lease, monotonic
        self._lapsed: float | None = None if self._state.is_released else monotonic()  # whoever held it when the server stopped
        self._sent: deque[float] = deque()
        self._reads: list[_Read] = []  # the last two good ones
        self._unexplained: float | None = None
        self._symbol, self._server_ms = self.settings.symbol, 0
        self._tries: dict[str, int] = {}  # of an action: what was tried when, server's clock
        self._idle, self._left, self._ttl = 0, 0, self.settings.lease_s
        self._blind = ""  # why the last look was no good

    def attach(self, orders: "Orders") -> None:
        """Send the guard's own orders through `orders`."""
        self._orders = orders

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # ---- the lease

    def lease(self, holder: str, ttl_s: float | None = None, takeover: bool = False) -> Lease:
        """Give out the right to send entries; whoever had it before is refused from then on."""
        with self._alone():
            left = self._left_s()
            if left > 0 and holder != self._state.holder and not takeover:
                detail = f"{self._state.holder} holds the lease for another {left:.0f} s: stop it first, wait, or take over."
                raise Refusal(409, "lease-held", detail, holder=self._state.holder, expires_in_s=round(left, 1))
            wanted = self.settings.lease_s if ttl_s is None else ttl_s
            if not self.settings.lease_min_s <= wanted <= self.settings.lease_max_s:
                detail = f"A lease lasts {self.settings.lease_min_s:g} to {self.settings.lease_max_s:g} s, not {wanted:g}."
                raise Refusal(422, "lease-length", detail)
            self._write("lease", epoch=self._state.epoch + 1, holder=holder, is_released=False)
            self._expires, self._ttl, self._lapsed = self._monotonic() + wanted, wanted, None
            self._count("leases_total")
            _log.info("Lease %s to %s for %g s", self._state.epoch, holder, wanted)
            return Lease(self._state.epoch, wanted, holder)

    def renew(self, epoch: int) -> Lease:
        """Keep the lease."""
        with self._lock:
            self.fence(epoch)
            self._check_lease(epoch)
            self._expires = self._monotonic() + self._ttl
            return Lease(epoch, self._ttl, self._state.holder)

    def touch(self, epoch: int | None) -> None:
        """Keep the lease if `epoch` is the present one; any request of its holder does so."""
        with self._lock:
            if epoch == self._state.epoch and self._left_s() > 0:
                self._expires = self._monotonic() + self._ttl

    def release(self, epoch: int) -> None:
        """Give the lease back; nothing is done about it."""
        with self._alone():
            self.fence(epoch)
            self._write("lease", is_released=True)
            self._expires = self._lapsed = None

    def fence(self, epoch: int | None) -> None:
        """Refuse another epoch than the present one, whatever is asked for."""
        if epoch is not None and epoch != self._state.epoch:
            detail = f"The lease {epoch} is not the present one ({self._state.epoch}): another trader has taken over. Stop, and look."
            raise Refusal(409, "lease-fenced", detail, epoch=epoch, current=self._state.epoch)

    def _left_s(self) -> float:
        return 0.0 if self._expires is None else max(self._expires - self._monotonic(), 0.0)

    def _check_lease(self, epoch: int | None) -> None:
        if epoch is None or (self._expires is None and self._lapsed is None):
            detail = "No entry without a lease: ask for one at /v1/guard/lease, and send its epoch with every request."
            raise Refusal(409, "lease-required", detail)
        if not self._left_s():
            raise Refusal(409, "lease-lapsed", f"The lease {epoch} has lapsed: look at the account, then ask for a new one.", epoch=epoch)

    # ---- what an order must pass

    def check(self, submission: Submission, is_entry: bool, look: Look) -> None:
        """Refuse an order; what reduces exposure is refused for nothing but an old epoch."""
        self.fence(submission.epoch)
        with self._lock:
            self._symbol = self._symbol or str(submission.request.get("symbol", ""))
            now = self._monotonic()
            while self._sent and now - self._sent[0] >= 60:
                self._sent.popleft()
            self._sent.append(now)
            if is_entry:
                self._check_entry(submission, look)

    def _check_entry(self, submission: Submission, look: Look) -> None:
        if self._state.halt is not None:
            reason = str(self._state.halt["reason"])
            raise Refusal(403, "entries-halted", f"Entries are blocked until a person lifts that: {reason}.", reason=reason)
        self._check_lease(submission.epoch)
        limits, account = self._limits, look.account
        if limits.orders_a_minute is not None and len(self._sent) > limits.orders_a_minute:
            self.halt(f"more than {limits.orders_a_minute} orders a minute", "guard")
            detail = f"More than {limits.orders_a_minute} orders came within a minute: is the trader running wild? Entries are blocked."
            raise Refusal(429, "limit-rate", detail, limit=limits.orders_a_minute)
        if account is not None:
            for slug, is_hit, text in self._hits(account.equity):
                if is_hit:
                    raise Refusal(403, slug, f"No entry: {text}.", value=round(account.equity, 2))
        lots = exposure_after(Promise(submission.key, submission.request), look)
        if limits.exposure is not None and lots > limits.exposure + 1e-9:
            detail = f"With this order there would be {lots:g} lots of positions and orders, more than {limits.exposure:g}."
            raise Refusal(403, "limit-exposure", detail, value=lots, limit=limits.exposure)

    def _hits(self, equity: float) -> Iterator[tuple[str, bool, str]]:
        """Tell for each limit on money whether it is hit, and what to say."""
        limits, state = self._limits, self._state
        if limits.equity_floor is not None:
            floor = limits.equity_floor + self._flowed(state.floor_since_ms)
            yield "limit-equity", equity < floor, f"the equity is {equity:.2f}, under its floor of {floor:.2f}"
        if limits.daily_loss is not None and state.day >= 0:
            loss = self._daily_loss(equity)
            yield "limit-daily-loss", loss >= limits.daily_loss > 0, f"{loss:.2f} were lost today, of {limits.daily_loss:.2f} at most"

    def _flowed(self, since_ms: int) -> float:
        """Return what was paid in, less what was withdrawn, since then; before the first read nothing is known."""
        return sum(money for _, moment, money in self._state.flows if moment > since_ms) if since_ms else 0.0

    def _daily_loss(self, equity: float) -> float:
        return self._state.day_equity + self._flowed(self._state.day_since_ms) - equity

    # ---- limits and halts

    def _first_limits(self) -> Limits:
        """Return the limits that held when the server stopped; those of the settings if a person has changed these since."""
        known = self._state.limits
        if known.get("configured") == asdict(self.settings.limits):
            return self.settings.limits.changed(known["now"])[0]
        self._state.floor_since_ms = 0
        return self.settings.limits

    def set_limits(self, limits: Mapping[str, float | None], by: str, may_raise: bool) -> Limits:
        """Change hard limits; raising one takes a person."""
        with self._lock:
            after, looser = self._limits.changed(limits)
            if looser and not may_raise:
                detail = f"Only a person with a fresh code may raise {', '.join(looser)}; lowering is always allowed."
                raise Refusal(403, "limit-raise", detail, name=looser[0])
            changes: dict[str, object] = {"limits": {"configured": asdict(self.settings.limits), "now": asdict(after)}}
            if after.equity_floor != self._limits.equity_floor:
                changes["floor_since_ms"] = self._server_ms
            self._write("limits", **changes)
            self._limits = after
            _log.warning("Limits set by %s: %s", by, after)
            return after

    def halt(self, reason: str, by: str) -> None:
        """Block entries until a person lifts that."""
        with self._lock:
            if self._state.halt is None:
                self._write("halt", halt={"reason": reason, "by": by, "since_ms": self._now_ms()})
                self._count("halts_total")
                _log.error("ALARM: entries are blocked by %s: %s", by, reason)
                if by == "guard":
                    self.note("block entries", reason)

    def lift(self, person: str) -> None:
        """Allow entries again (with a lease); the guard stops what it was doing."""
        with self._lock:
            self._write("lift", halt=None, action=None)
            self._tries.clear()
            if self._lapsed is not None:
                self._lapsed = self._monotonic()
            _log.warning("%s lifted the block of entries", person)

    # ---- every second

    def step(self) -> None:
        """Look at the account, and do what has to be done; called once a second by one thread."""
        with self._lock:
            if self._expires is not None and not self._left_s():
                self._expires, self._lapsed = None, self._monotonic()
                self._count("lapses_total")
                _log.error("ALARM: the lease %s of %s has lapsed; entries are blocked", self._state.epoch, self._state.holder)
                self.note("lease lapsed", f"{self._state.epoch} of {self._state.holder}")
        read = self._read()
        with self._lock:
            if read is None:
                return
            self._keep_books(read)
            self._reads = [*self._reads[-1:], read]
            if self._agreed(lambda one: True):
                self._test_limits()
                self._test_lapse()
        if self._state.action is not None and self._agreed(lambda one: True):
            self._act(read.seen)

    def _read(self) -> _Read | None:
        """Look at the account; None where that shows nothing to rely on."""
        try:
            known_ms = self._server_ms or self._state.day_since_ms  # of the last good look; what came since has to be seen
            calls = look_calls(self._symbol, max(known_ms - DAY_MS // 8, 0), known_ms)
            seen = look_from(self.gate.batch(calls, self.settings.look_timeout_s))
        except Exception as error:
            seen = Look()
            _log.error("The guard can't look at the terminal", exc_info=error)
        if not self._symbol and (held := next((p.symbol for p in seen.positions or ()), "")):
            self._symbol = held
        account = seen.account
        self._blind = self._doubt(seen)
        if self._blind or account is None:
            self._count("blind_total")
            self._reads.clear()
            return None
        self._server_ms = seen.server_ms
        return self._explained(_Read(seen, self._monotonic(), account.equity, account.balance + account.credit))

    def _doubt(self, seen: Look) -> str:
        """Say why a look is nothing to act on."""
        account = seen.account
        if not seen.is_complete or account is None:
            return "the terminal can't be read, or isn't connected to its broker"
        if not all(map(math.isfinite, (account.balance, account.equity, account.credit))) or not account.equity:
            return "the account shows zeros"
        if self._state.login not in (0, account.login):
            self.halt("the terminal is on another account", "guard")
            return f"the terminal is on account {account.login}, not {self._state.login}"
        return ""

    def _explained(self, read: _Read) -> _Read | None:
        """Hold back a read whose balance changed with no deal that says why: a withdrawal may show before its deal does."""
        last = self._reads[-1] if self._reads else None
        known = {deal.ticket for deal in last.seen.deals or ()} if last is not None else set()
        new = [deal for deal in read.seen.deals or () if deal.ticket not in known]
        told = sum(deal.profit + deal.swap + deal.commission + deal.fee for deal in new)
        if last is None or abs(read.total - last.total - told) < 0.05:
            self._unexplained = None
            return read
        self._unexplained = self._unexplained if self._unexplained is not None else read.at
        if read.at - self._unexplained < self.settings.explain_s:
            self._blind = "the balance has changed, and no deal says yet why"
            return None
        self._count("unexplained_total")
        _log.error("The balance went from %.2f to %.2f, and the deals explain %.2f of that", last.total, read.total, told)
        self._unexplained = None
        return read

    def _keep_books(self, read: _Read) -> None:
        """Note what was paid in or withdrawn, and the equity at the start of the broker's day."""
        state, account = self._state, read.seen.account
        changes: dict[str, object] = {}
        known = {ticket for ticket, _, _ in state.flows}
        paid = [(d.ticket, d.time_msc, d.profit) for d in read.seen.deals or () if d.type in _FLOWS and d.ticket not in known]
        if paid:
            changes["flows"] = [*state.flows, *paid]
        if account is not None and not state.login:
            changes["login"] = account.login
        if self._limits.equity_floor is not None and not state.floor_since_ms:
            changes["floor_since_ms"] = read.seen.server_ms
        if (day := read.seen.server_ms // DAY_MS) > state.day:
            changes |= {"day": day, "day_equity": read.equity, "day_since_ms": read.seen.server_ms}
        if changes:
            self._write("day", **changes)

    def _agreed(self, test: Callable[[_Read], bool]) -> bool:
        """Tell whether the last two reads are of different moments of the market and pass `test` both."""
        return len(self._reads) == 2 and self._reads[0].seen.server_ms != self._reads[1].seen.server_ms and all(map(test, self._reads))

    def _test_limits(self) -> None:
        if self._state.halt is not None:
            return
        first, second = ({slug: text for slug, is_hit, text in self._hits(read.equity) if is_hit} for read in self._reads)
        limit = self._limits.exposure
        both = [second[slug] for slug in second if slug in first]
        if limit is not None and self._agreed(lambda read: exposure_lots(read.seen) > limit + 1e-9):
            both.append(f"there are {exposure_lots(self._reads[1].seen):g} lots of positions and orders, of {limit:g} at most")
        if both:
            self.halt(both[0], "guard")
            if self.settings.after_limit == "flatten":
                self._begin("flatten", "limit")

    def _test_lapse(self) -> None:
        if self.settings.after_lapse == "block" or self._lapsed is None or self._state.action is not None:
            return
        if self._monotonic() - self._lapsed >= self.settings.after_lapse_s and self._state.halt is None:
            self.halt(f"the lease of {self._state.holder} lapsed, and nobody has taken one since", "guard")
            self._begin(self.settings.after_lapse, "lapse")

    def _begin(self, kind: Action, reason: str) -> None:
        self._tries.clear()
        self._idle = 0
        self._write("action", action={"kind": kind, "reason": reason, "epoch": self._state.epoch, "is_done": False})
        self._count("actions_total", kind=kind)
        _log.error("ALARM: the guard begins to %s: %s", kind, reason)
        self.note(f"begin to {kind}", reason)

    # ---- acting

    def _is_ours(self, magic: int) -> bool:
        return any(low <= magic <= high for low, high in self.settings.magics)

    def _act(self, seen: Look) -> None:
        """Do the next step of what was begun; it is over when two looks in a row show nothing left to do."""
        action = self._state.action
        if action is None or action["is_done"] or self._orders is None:
            return
        positions = [position for position in seen.positions or () if self._is_ours(position.magic)]
        pending = [order for order in seen.orders or () if self._is_ours(order.magic) and order.type > C.ORDER_TYPE_SELL]
        if action["kind"] == "tighten":
            left = sum([self._try("tighten", position, seen) for position in positions])
        else:
            left = sum([self._try("remove", order, seen) for order in pending] + [self._try("close", held, seen) for held in positions])
        self._idle = 0 if left else self._idle + 1
        self._left = left
        if self._idle >= 2:
            self._write("action", action={**action, "is_done": True})
            _log.error("The guard is done: %s", action["kind"])
            self.note("done", str(action["kind"]))

    def _try(self, verb: Verb, about: TradePosition | TradeOrder, seen: Look) -> bool:
        """Send what has to be sent about one position or order; false if nothing is left to do about it.

        The keys are made from what is done to what, and from a count that goes on only when the order before has come to something. So a
        server that is started again in the middle finds its own orders in the journal, and doesn't send one twice.
        """
        action, orders = self._state.action, self._orders
        assert action is not None, "an action has begun"
        assert orders is not None, "orders were attached"
        ticket = about.identifier if isinstance(about, TradePosition) else about.ticket
        count, name = 0, f"{verb} {ticket}"
        while True:
            key = order_key("guard", str(action["reason"]), verb, ticket, cast(int, action["epoch"]), count)
            entry = orders.journal.get(key)
            if entry is None:
                break
            if entry.state in ("intent", "sent", "unknown"):
                return True
            if verb == "tighten" and entry.state == "done":
                return False
            count += 1
        last = self._tries.get(name)
        if last is None and count:  # the server was started again: first see what became of the last one
            self._tries[name] = seen.server_ms
            return True
        pause = min(self.settings.retry_ms << min(count - 1, 10), 60_000) if count else 0
        if last is not None and abs(seen.server_ms - last) < pause:
            return True
        if verb == "close" and seen.is_netting and any(promise.symbol == about.symbol for promise in orders.undecided()):
            return True  # it may have closed the position already, and a second close would open the opposite one
        request = self._request(verb, about, key)
        if request is None:
            return verb != "tighten"
        self._tries[name] = seen.server_ms
        self._count("guard_orders_total", verb=verb)
        try:
            answer = orders.send(Submission(key=key, request=request, received=self._monotonic()), THE_GUARD)
            _log.error("The guard: %s: %s", name, answer.outcome)
        except Refusal as refusal:
            _log.error("The guard: %s: refused: %s", name, refusal.detail)
        return True

    def _request(self, verb: Verb, about: TradePosition | TradeOrder, key: str) -> dict[str, object] | None:
        """Return what has to be sent, None if that can't be said now, or isn't needed."""
        if not isinstance(about, TradePosition):
            return {"action": C.TRADE_ACTION_REMOVE, "symbol": about.symbol, "order": about.ticket}
        calls: list[Call] = [("symbol_info", [about.symbol], {}), ("symbol_info_tick", [about.symbol], {})]
        symbol, tick = (answer.value for answer in self.gate.batch(calls, self.settings.look_timeout_s))
        if not isinstance(symbol, SymbolInfo) or not isinstance(tick, Tick) or not symbol.point:
            return None
        if verb == "tighten":
            level = tightened(about, tick.bid, tick.ask, self.settings.tighten_points * symbol.point)
            stop = {"action": C.TRADE_ACTION_SLTP, "symbol": about.symbol, "position": about.ticket}
            return None if level is None else stop | {"sl": round(level, symbol.digits), "tp": about.tp}
        is_long = about.type == C.POSITION_TYPE_BUY
        price = tick.bid if is_long else tick.ask
        modes = {MQL.SYMBOL_FILLING_FOK: C.ORDER_FILLING_FOK, MQL.SYMBOL_FILLING_IOC: C.ORDER_FILLING_IOC}
        filling = next((mode for flag, mode in modes.items() if symbol.filling_mode & flag), C.ORDER_FILLING_RETURN)
        return {
            "action": C.TRADE_ACTION_DEAL,
            "symbol": about.symbol,
            "position": about.ticket,
            "type": C.ORDER_TYPE_SELL if is_long else C.ORDER_TYPE_BUY,
            "volume": min(about.volume, symbol.volume_max or about.volume),
            "price": price,  # for brokers that want one, and with a deviation that no market exceeds
            "deviation": int(price / symbol.point / 10),
            "type_filling": filling,
            "magic": magic_for(GUARD_STRATEGY, key),
            "comment": marker(key),
        }

    # ---- what is going on

    def status(self) -> dict[str, Json]:
        """Return who may trade, what the limits are, and what the guard is doing."""
        with self._lock:
            state, left, why = self._state, self._left_s(), list[Json]()
            if state.halt is not None:
                why.append(f"halted: {state.halt['reason']}")
            if not left:
                why.append("the lease lapsed" if self._lapsed is not None else "nobody holds a lease")
            if self._blind:
                why.append(f"the guard sees nothing it can rely on: {self._blind}")
            holder: Json = {"holder": state.holder, "epoch": state.epoch, "expires_in_s": round(left, 3)} if left else None
            action = state.action or {}
            now = self._monotonic()
            return {
                "lease": holder,
                "epoch": state.epoch,
                "entries": "open" if left and state.halt is None else "blocked",
                "why": why,
                "halt": cast(Json, state.halt),
                "limits": cast(Json, asdict(self._limits)),
                "account": self._account(),
                "orders_last_minute": sum(now - moment < 60 for moment in self._sent),
                "action": {
                    "after_lapse": self.settings.after_lapse,
                    "after_limit": self.settings.after_limit,
                    "doing": action.get("kind"),
                    "reason": action.get("reason"),
                    "is_done": action.get("is_done"),
                    "left": self._left,
                },
                "magics": [[str(low), str(high)] for low, high in self.settings.magics],
            }

    def _account(self) -> Json:
        if not self._reads:
            return None
        read = self._reads[-1]
        return {
            "equity": round(read.equity, 2),
            "day_start": round(self._state.day_equity, 2),
            "daily_loss": round(self._daily_loss(read.equity), 2),
            "exposure_lots": exposure_lots(read.seen),
            "age_s": round(self._monotonic() - read.at, 3),
        }

    # ---- the file

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no order is between its checks and its answer."""
        if not self.turn.acquire(timeout=self.settings.turn_timeout_s):
            raise Refusal(503, "orders-busy", "An order has kept the terminal for too long: look at /health, then ask again.")
        try:
            with self._lock:
                yield
        finally:
            self.turn.release()

    def _write(self, point: str, **changes: object) -> None:
        """Write down what changed, then believe it."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                for name, value in changes.items():
                    text = json.dumps(value, allow_nan=False)
                    self._connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, text))
                self.at_write(f"{point}.before", self._state.holder)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                _log.error("The guard's file can't be written", exc_info=error)
                raise Refusal(503, "guard-failed", f"The guard's file can't be written ({error}): look at the server's disk.") from error
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            for name, value in changes.items():
                setattr(self._state, name, value)
        self.at_write(f"{point}.after", self._state.holder)

    def _count(self, name: str, **labels: str) -> None:
        inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
        with self._lock:
            self.counters[f"btcbot_server_{name}" + (f"{{{inside}}}" if inside else "")] += 1
