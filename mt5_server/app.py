"""The routes of API version 1.

`/v1/call` and `/v1/rates` read, `/v1/order` trades, `/v1/advance` moves the clock of a simulated terminal. What a value looks
like on the wire is written down in `btcbot.terminal.wire`, which the client uses as well.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import cast

from flask import Flask, Response, request

from btcbot import __version__
from btcbot.terminal.contract import VERSION, OrderSendResult, Rows, Terminal
from btcbot.terminal.journal import Entry, JournalConflict, OrderJournal, Outcome, State, classify, outcome
from btcbot.terminal.wire import (
    API_VERSION,
    ARROW,
    BULK,
    MAX_BODY,
    Answer,
    Call,
    Json,
    answer_to_wire,
    call_from_wire,
    decode,
    dumps,
    encode,
    loads,
    rows_to_arrow,
)
from mt5_server import problems
from mt5_server.auth import is_authorised
from mt5_server.gate import Gate, Step, StepConflict
from mt5_server.problems import Problem

_log = logging.getLogger(__name__)
_KEY = re.compile(r"[A-Za-z0-9._:-]{8,128}")
_CLIENT = re.compile(r"[0-9a-f]{32}")
MAX_CALLS = 256
MAX_BARS = 10_000_000


def _json(value: Json) -> Response:
    return Response(dumps(value), content_type="application/json")


def _fields(**kinds: type) -> dict[str, Json]:
    """Return the members of the body, each of the kind it must have."""
    if request.mimetype != "application/json":
        raise Problem(415, "The body must be JSON: send Content-Type: application/json.")
    body = loads(request.get_data(cache=False))
    found = body if isinstance(body, dict) else {}
    for name, kind in kinds.items():
        if type(found.get(name)) is not kind:
            raise Problem(400, f"The body must be an object in which {name!r} is of type {kind.__name__}.")
    return found


def _calls(found: Json) -> list[Call]:
    assert isinstance(found, list)
    if len(found) > MAX_CALLS:
        raise Problem(400, f"{len(found)} calls are too many for one request: send at most {MAX_CALLS}.")
    return [call_from_wire(call) for call in found]


def _order_answer(key: str, found: State, answer: dict[str, Json], *, is_replay: bool) -> Response:
    head: dict[str, Json] = {"key": key, "outcome": found, "replayed": is_replay}
    return _json(head | answer)


def _known(entry: Entry) -> Response:
    """Answer for an order that was begun before."""
    if isinstance(entry.result, dict) and "error" in entry.result:
        return _order_answer(entry.key, entry.state, entry.result, is_replay=True)
    detail = {
        "intent": "The order is being sent: ask again with the same key.",
        "unknown": "Its outcome is unknown, since something failed while it was being sent: look for it in deals and orders.",
    }.get(entry.state, f"The order was found to be {entry.state}, by other means than its answer.")
    raise Problem(409, detail, state=entry.state, key=entry.key)


def _begin(journal: OrderJournal, key: str, body: Json) -> Entry:
    try:
        return journal.begin(key, body)
    except JournalConflict:
        raise Problem(422, "This Idempotency-Key was used for another order: give each order its own key.", key=key) from None
    except Exception as error:
        _log.error("The journal refused an order", exc_info=error)
        raise Problem(503, "The order was not sent, because it could not be written to the journal.", outcome="not_done") from None


def _settle(journal: OrderJournal, key: str, found: Outcome, result: Json = None) -> None:
    """Record an outcome; a full disk must not keep the answer from the client, which has a journal of its own."""
    try:
        journal.settle(key, found, result)
    except Exception as error:
        _log.error("Order %s: its outcome %s can't be recorded", key[:16], found, exc_info=error)


def _outcome_of(answer: Answer) -> Outcome:
    if answer.raised is not None:  # the package raises while it reads its arguments, before it sends anything
        return "not_done"
    return outcome(classify(answer.value if isinstance(answer.value, OrderSendResult) else None, answer.error[0]))


def _brief(answer: Answer) -> str:
    if isinstance(answer.value, OrderSendResult):
        return f"retcode {answer.value.retcode}, order {answer.value.order}, deal {answer.value.deal}"
    return str(answer.raised or answer.error)


def create_app(
    terminal: Terminal,
    token_hash: bytes,
    journal: OrderJournal,
    clock_rule: str | None = None,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> Flask:
    """Return the app that serves `terminal` to whoever holds the token; `clock_rule` is that of the trade server's clock."""
    app = Flask("mt5_server", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    gate, session = Gate(terminal), secrets.token_hex(16)
    problems.register(app)
    for entry in journal.open_entries():
        if entry.state == "intent":  # of a server that didn't live to see the answer
            journal.settle(entry.key, "unknown")
            _log.warning("Order %s: the server stopped while it was being sent; its outcome is unknown", entry.key[:16])

    def is_caller() -> bool:
        return is_authorised(request.headers.get("Authorization"), token_hash)

    @app.before_request
    def authorise() -> None:
        is_open = request.path == "/health" and "Authorization" not in request.headers
        if not is_open and not is_caller():
            raise Problem(401, "This server wants its token: send it as Authorization: Bearer TOKEN.")

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/health")
    def health() -> Response:
        if not is_caller():
            return _json({"status": "ok"})
        orders: dict[str, Json] = dict(journal.count_by_outcome().items())
        return _json({"status": "ok", "version": __version__, "busy_s": round(gate.busy_s, 3), "orders": orders})

    @app.get("/v1/session")
    def describe() -> Response:
        return _json(
            {
                "api": API_VERSION,
                "version": __version__,
                "contract": VERSION,
                "session": session,
                "clock": clock_rule,
                "lock_step": gate.is_lock_step,
                "time_ms": now_ms(),
            }
        )

    @app.post("/v1/call")
    def call() -> Response:
        calls = _calls(_fields(calls=list)["calls"])
        return _json([answer_to_wire(answer) for answer in gate.batch(calls)])

    @app.post("/v1/rates")
    def rates() -> Response:
        answer = gate.batch([call_from_wire(_fields(call=list)["call"], BULK)])[0]
        if answer.raised is not None or answer.value is None:
            return _json(answer_to_wire(answer))
        headers = {"MT5-Last-Error": json.dumps(answer.error)}
        return Response(rows_to_arrow(cast(Rows, answer.value)), headers=headers, content_type=ARROW)

    @app.post("/v1/order")
    def order() -> Response:
        key = request.headers.get("Idempotency-Key", "")
        if not _KEY.fullmatch(key):
            raise Problem(400, "An order needs a key: send Idempotency-Key with 8 to 128 letters, digits or the characters . _ : -")
        wanted = decode(_fields(request=dict)["request"])
        if not isinstance(wanted, dict):
            raise Problem(400, "The request must be an object of the fields of a trade request.")
        entry = _begin(journal, key, encode(wanted))
        if not entry.is_new:
            return _known(entry)
        try:
            answer = gate.batch([("order_send", [wanted], {})])[0]
        except Exception as error:
            _log.error("Order %s: the terminal failed", key[:16], exc_info=error)
            _settle(journal, key, "unknown")
            raise Problem(500, "The terminal failed while the order was being sent.", outcome="unknown", key=key) from None
        found, wire = _outcome_of(answer), answer_to_wire(answer)
        _log.info("Order %s: %s, %s", key[:16], found, _brief(answer))
        _settle(journal, key, found, wire)
        return _order_answer(key, found, wire, is_replay=False)

    @app.post("/v1/advance")
    def advance() -> Response:
        if not gate.is_lock_step:
            raise Problem(404, "This terminal's clock doesn't wait for anybody: only a simulated one can be advanced.")
        fields = _fields(session=str, client=str, step=int, bars=int, calls=list)
        if fields["session"] != session:
            raise Problem(409, "The server was started anew, and its market with it.", state="restarted")
        client, number, bars = str(fields["client"]), int(str(fields["step"])), int(str(fields["bars"]))
        if not (_CLIENT.fullmatch(client) and 0 < number < 2**53 and 0 <= bars <= MAX_BARS):
            raise Problem(400, f"A step needs a client of 32 hexadecimal digits, a number from 1, and 0 to {MAX_BARS} bars.")
        asked = dumps([bars, fields["calls"]])
        try:
            moved, answers = gate.advance(Step(client, number, asked, bars, _calls(fields["calls"])))
        except StepConflict as error:
            raise Problem(409, str(error), state="step") from None
        return _json({"bars": moved, "answers": [answer_to_wire(answer) for answer in answers]})

    return app
