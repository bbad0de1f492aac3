"""What must be true in the end: the broker's own record against what both journals say."""

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from btcbot.terminal.contract import C, request_from
from btcbot.terminal.faults import plan_from_text
from btcbot.terminal.settlement import HORIZON_MS
from tests.faults.schedules import Schedule

DONE = (C.TRADE_RETCODE_PLACED, C.TRADE_RETCODE_DONE, C.TRADE_RETCODE_DONE_PARTIAL)
Fields = tuple[object, ...]  # the 17 of a request


@dataclass(slots=True)
class Row:
    """An order in a journal."""

    key: str
    request: Fields
    state: str
    result: object
    context: str
    is_adopted: bool = False

    @property
    def about(self) -> str:
        """Say which order it is."""
        action, magic, order, _, volume, *_ = self.request
        return f"{self.key[:8]} action {action} magic {magic} order {order} volume {volume} comment {self.request[14]!r}"


@dataclass(slots=True)
class Truth:
    """What the broker knows."""

    executed: list[tuple[int, Fields, int, int, int]] = field(default_factory=list)  # time, request, retcode, order, deal
    struck: Counter[str] = field(default_factory=Counter)
    account: dict[str, float] = field(default_factory=dict)
    deals: list[dict[str, float]] = field(default_factory=list)
    positions: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def read(cls, text: str) -> "Truth":
        """Read what the broker's process wrote."""
        given = json.loads(text)
        executed = [(now, tuple(request), code, order, deal) for now, request, code, order, deal in given["executed"]]
        return cls(executed, Counter(given["struck"]), given["account"], given["deals"], given["positions"])


def rows(path: Path) -> list[Row]:
    """Read the orders of a journal."""
    if not path.exists():
        return []
    with sqlite3.connect(path, timeout=10.0) as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("SELECT * FROM orders ORDER BY created_ms, key").fetchall()
    connection.close()
    return [
        Row(
            row["key"],
            _fields(json.loads(row["body"])),
            row["state"],
            json.loads(row["result"] or "null"),
            row["context"],
            "is_adopted" in list(row.keys()) and bool(row["is_adopted"]),
        )
        for row in found
    ]


def all_rows(folder: Path, name: str) -> list[Row]:
    """Read the orders of all journals of one process."""
    found: dict[str, Row] = {}
    paths = [path for path in folder.glob(f"{name}*.sqlite3") if "guard" not in path.name]
    for path in sorted(paths, key=lambda one: one.stat().st_mtime_ns):
        found |= {row.key: row for row in rows(path)}
    return list(found.values())


def _fields(body: dict[str, object]) -> Fields:
    request = body.get("request", body)
    assert isinstance(request, dict)
    return tuple(request_from(request))


@dataclass(slots=True)
class Case:
    """All that is left of one schedule."""

    schedule: Schedule
    truth: Truth
    server: list[Row]
    client: list[Row]
    forbidden: list[Fields]  # requests that nobody may execute: of a trader that was fenced off, or decided on an old quote
    trouble: list[str]  # what the run itself found: a process that failed, a settlement that took too long


def verdict(case: Case) -> list[str]:
    """Return what is wrong; nothing where all promises were kept."""
    return [*case.trouble, *_once(case), *_settled(case), *_agreed(case), *_fenced(case), *_accounted(case.truth)]


def _effects(case: Case) -> dict[Fields, list[tuple[int, int, int]]]:
    """Return for each request how the broker answered it: retcode, order, deal."""
    found: dict[Fields, list[tuple[int, int, int]]] = {}
    for _, request, code, order, deal in case.truth.executed:
        found.setdefault(request, []).append((code, order, deal))
    return found


def _once(case: Case) -> list[str]:
    """No order reaches the broker twice; a change of stops may be asked for anew, under another key."""
    known = Counter(row.request for row in case.server)
    return [
        f"sent {len(answers)} times: {request} -> {answers}"
        for request, answers in _effects(case).items()
        if len(answers) > (max(1, known[request]) if request[0] == C.TRADE_ACTION_SLTP else 1)
    ]


def _settled(case: Case) -> list[str]:
    """Every key is settled, and says what the broker did."""
    effects, wrong = _effects(case), list[str]()
    known = Counter(row.request for row in case.server)
    wrong += [
        f"{times} keys for one order: {request}" for request, times in known.items() if times > 1 and request[0] != C.TRADE_ACTION_SLTP
    ]
    for request, answers in effects.items():
        if request not in known:
            wrong.append(f"executed without a line in the server's journal: {request} -> {answers}")
    for row in case.server:
        answers = effects.get(row.request, [])
        if row.is_adopted and not _may_adopt(case):
            wrong.append(f"settled as not done before it was known: {row.about} {answers}")
        is_done = any(code in DONE for code, _, _ in answers)
        is_satisfied = any(code == C.TRADE_RETCODE_NO_CHANGES for code, _, _ in answers)
        removed = {other[2] for other in effects if other[0] == C.TRADE_ACTION_REMOVE}
        is_satisfied = is_satisfied or (row.request[0] == C.TRADE_ACTION_REMOVE and row.request[2] in removed)  # by another request
        is_placed = row.request[0] == C.TRADE_ACTION_PENDING and f"[{C.TRADE_RETCODE_PLACED}, 0," in json.dumps(row.result)
        own = {order for code, order, _ in answers if code in DONE}
        named = int(row.result.get("order") or 0) if isinstance(row.result, dict) else 0
        if _is_late_twin(case, row):
            continue
        if row.state == "done" and row.request[0] in (C.TRADE_ACTION_DEAL, C.TRADE_ACTION_PENDING) and named and own and named not in own:
            wrong.append(f"done, but by another order ({named}): {row.about} {answers}")
        if row.state == "done" and not (
            is_done or is_satisfied or is_placed
        ):  # placed, with a ticket; what it dies of later is another thing
            wrong.append(f"done, but the broker did nothing: {row.about} {answers}")
        elif row.state == "not_done" and is_done and not _is_moot(case, row) and not _is_other_change(case, row, answers):
            wrong.append(f"not done, but the broker executed it: {row.about} {answers}")
        elif row.state in ("intent", "sent"):
            wrong.append(f"never settled ({row.state}): {row.about} {answers}")
        elif row.state == "unknown" and not _may_halt(case, row):
            wrong.append(f"stays unknown: {row.about} {answers}")
    return wrong


def _may_halt(case: Case, row: Row) -> bool:
    """Tell whether nobody can know: a program without marks that has a twin of this order."""
    same = [other for other in case.server if _look(other.request) == _look(row.request)]
    return case.schedule.kind == "foreign" and len(same) > 1


def _is_late_twin(case: Case, row: Row) -> bool:
    """Tell whether the broker executed one of several unmarked orders that look alike later than anybody has to wait for it.

    Nothing tells which of them it was. As many must be done as were executed, or one is left for a person to decide.
    """
    same = [other for other in case.server if _look(other.request) == _look(row.request)]
    if case.schedule.kind != "foreign" or not _may_adopt(case) or len(same) < 2 or row.state not in ("done", "not_done"):
        return False
    done = {request for _, request, code, _, _ in case.truth.executed if code in DONE}
    executed, told = sum(other.request in done for other in same), sum(other.state == "done" for other in same)
    return executed == told or (executed > told and any(other.state == "unknown" for other in same))


def _is_moot(case: Case, row: Row) -> bool:
    """Tell whether the server says that nobody can know what became of a change, and its object is gone or was changed again indeed."""
    if not isinstance(row.result, dict) or row.result.get("by") != "moot":
        return False
    place = 15 if row.request[0] == C.TRADE_ACTION_SLTP else 2  # position or order
    about = row.request[place]
    if place == 15 and all(position["ticket"] != about for position in case.truth.positions):
        return True
    changes = [
        request
        for _, request, code, _, _ in case.truth.executed
        if request[0] == row.request[0] and request[place] == about and code in DONE
    ]
    return changes[-1] != row.request


def _is_other_change(case: Case, row: Row, answers: Sequence[tuple[int, int, int]]) -> bool:
    """Tell whether the broker executed other changes of stops that ask for the same, or this one later than anybody has to wait.

    Nothing is lost with a change that counts as not done: the trader compares the stops with what it wants, and asks again.
    """
    if row.request[0] != C.TRADE_ACTION_SLTP:
        return False
    same = [other.state for other in case.server if other.request == row.request]
    return _may_adopt(case) or sum(code in DONE for code, _, _ in answers) <= same.count("done")


def _may_adopt(case: Case) -> bool:
    """Tell whether the broker executes an order later than anybody has to wait for it."""
    return any(fault.call == "order_send" and fault.for_ms >= HORIZON_MS for fault in plan_from_text(case.schedule.faults).faults)


def _look(request: Fields) -> tuple[object, ...]:
    """Return what the terminal shows of an order without marks: symbol, volume, type, position."""
    return request[3], request[4], request[10], request[15]


def _agreed(case: Case) -> list[str]:
    """The trader's journal agrees with the broker; what it doesn't know, the server doesn't either."""
    effects, server, wrong = _effects(case), {row.key: row for row in case.server}, list[str]()
    for row in case.client:
        is_done = any(code in DONE for code, _, _ in effects.get(row.request, []))
        theirs = server.get(row.key)
        is_settled = theirs is not None and (theirs.is_adopted or _is_moot(case, theirs))
        is_known = is_settled or _is_other_change(case, row, effects.get(row.request, []))
        if row.state == "not_done" and is_done and not is_known:
            wrong.append(f"the trader believes not done, the broker executed it: {row.about}")
        elif row.state == "done" and (theirs is None or theirs.state != "done"):
            wrong.append(f"the trader believes done, the server {theirs.state if theirs else 'never heard of it'}: {row.about}")
        elif row.state in ("intent", "sent", "unknown") and (theirs is None or theirs.state in ("done", "not_done")):
            wrong.append(f"the trader has {row.state}, the server {theirs.state if theirs else 'never heard of it'}: {row.about}")
    return wrong


def _fenced(case: Case) -> list[str]:
    """Nothing is executed for a trader that was fenced off, or on an old quote."""
    effects = _effects(case)
    return [f"must never be executed: {request} -> {effects[request]}" for request in case.forbidden if request in effects]


def _accounted(truth: Truth) -> list[str]:
    """Balance and positions are the sum of the deals."""
    wrong = list[str]()
    money = sum(deal[name] for deal in truth.deals for name in ("profit", "commission", "swap", "fee"))
    if abs(money - truth.account["balance"]) > 0.005:
        wrong.append(f"the balance is {truth.account['balance']}, the deals add up to {money:.2f}")
    volumes: Counter[int] = Counter()
    for deal in truth.deals:
        if deal["type"] in (C.DEAL_TYPE_BUY, C.DEAL_TYPE_SELL):
            volumes[int(deal["position_id"])] += round(deal["volume"] * 1e6) * (1 if deal["type"] == C.DEAL_TYPE_BUY else -1)
    for position in truth.positions:
        volumes[int(position["identifier"])] -= round(position["volume"] * 1e6) * (1 if position["type"] == 0 else -1)
    wrong += [f"the deals of position {ticket} leave {left / 1e6:g} lots too much" for ticket, left in volumes.items() if left]
    return wrong
