"""What the client of btcbot uses: the contract of the MetaTrader5 package over the wire, with the server's time as it is."""

import json
import re
from typing import Any, Final, Literal, cast

from flask import Response
from flask_openapi3.models.tag import Tag
from flask_openapi3.openapi import OpenAPI
from pydantic import Field, RootModel

from btcbot import __version__
from btcbot.terminal.contract import VERSION, Rows
from btcbot.terminal.wire import API_VERSION, ARROW, BULK, MAX_BODY, Json, answer_to_wire, call_from_wire, rows_to_arrow
from mt5_server.auth import caller_or_none, current
from mt5_server.document import media
from mt5_server.gate import Step
from mt5_server.model import Model
from mt5_server.parts import Parts, answer, wants_arrow
from mt5_server.problems import Problem
from mt5_server.refusal import Refusal

MAX_CALLS: Final = 256
MAX_BARS: Final = 10_000_000
SLOW_S: Final = 5.0  # a call that takes longer makes /health say so
_CLIENT: Final = re.compile(r"[0-9a-f]{32}")
TAG: Final = Tag(name="programs", description="The MetaTrader5 contract over the wire: raw values, the server's time as it is.")


class Health(Model):
    """Whether the server works; who sends credentials learns more."""

    status: Literal["ok", "busy", "down"]
    version: str | None = None
    busy_s: float | None = Field(None, description="For how long the present call has been running")
    worker: dict[str, Any] | None = None
    orders: dict[str, Any] | None = Field(None, description="Orders in the journal, by state")
    streams: int | None = None


class HealthQuery(Model):
    """How to ask for health."""

    probe: Literal["live", "ready"] = Field("live", description="ready: 503 when the terminal isn't there")


class Session(Model):
    """What the server says of itself."""

    api: int
    apis: list[int] = Field(description="Versions that it speaks")
    version: str
    contract: str = Field(description="Version of the MetaTrader5 package whose contract it keeps")
    session: str = Field(description="Changes when the market starts anew")
    server: str = Field(description="Changes when the server starts anew")
    clock: str | None = Field(description="Rule of the trade server's clock")
    lock_step: bool = Field(description="The clock waits for POST /v1/advance")
    simulated: bool
    time_ms: int = Field(description="UTC on the server's machine")
    caller: dict[str, Any]
    limits: dict[str, float]


class Calls(Model):
    """Functions to call, with nobody in between."""

    calls: list[list[Any]] = Field(
        description="Each `[name, [arguments], {keywords}]`, the last two may be left out", examples=[[["symbol_info_tick", ["BTCUSD"]]]]
    )


class CallAnswer(Model):
    """What the function returned, and what `last_error` said right after it."""

    value: Any
    error: list[Any] = Field(description="Code and text")
    raised: list[list[str]] | None = Field(None, description="What the function raised instead, and why")


class CallAnswers(RootModel[list[CallAnswer]]):
    """One for each call."""


class Advance(Model):
    """A step of a clock that waits."""

    session: str
    client: str = Field(description="32 hexadecimal digits that the client made up")
    step: int = Field(strict=True, description="Counted from 1 by each client; the same step again gets the same answer")
    bars: int = Field(strict=True, description="How many bars to move on")
    calls: list[list[Any]] = Field(description="Functions to call there")


class Advanced(Model):
    """Where the step led."""

    bars: int = Field(description="Bars moved; fewer at the end of the market")
    answers: list[CallAnswer]


def _checked(found: list[list[Any]]) -> list[tuple[str, Any, Any]]:
    if len(found) > MAX_CALLS:
        raise Refusal(400, "bad-request", f"{len(found)} calls are too many for one request: send at most {MAX_CALLS}.")
    return [call_from_wire(cast(Json, call)) for call in found]


def register(app: OpenAPI, parts: Parts) -> None:
    """Add the routes to `app`."""
    gate = parts.gate

    def health_of() -> Literal["ok", "busy", "down"]:
        if gate.state != "up":
            return "down"
        return "busy" if gate.busy_s > SLOW_S else "ok"

    @app.get("/health", tags=[TAG], responses={200: Health, 503: Problem})
    def health(query: HealthQuery) -> Response:
        """Say whether the server works, without asking the terminal."""
        status = health_of()
        if query.probe == "ready" and status == "down":
            raise Refusal(503, "terminal-down", "The process of the terminal isn't there.", {"Retry-After": "2"})
        if caller_or_none() is None:
            return answer({"status": status})
        worker: dict[str, Json] = {
            "state": gate.state,
            "restarts": gate.restarts,
            "reconnects": gate.reconnects,
            "pid": gate.worker_pid,
        }
        counts: dict[str, Json] = dict(parts.journal.count_by_outcome().items())
        more: dict[str, Json] = {"version": __version__, "busy_s": round(gate.busy_s, 3), "worker": worker, "orders": counts}
        return answer({"status": status, "streams": parts.hub.listeners} | more)

    @app.get("/v1/session", tags=[TAG], responses={200: Session})
    def session() -> Response:
        """Describe the server, its terminal and the caller."""
        caller = current()
        return answer(
            {
                "api": API_VERSION,
                "apis": [API_VERSION],
                "version": __version__,
                "contract": VERSION,
                "session": gate.session,
                "server": gate.server,
                "clock": gate.clock_rule,
                "lock_step": gate.is_lock_step,
                "simulated": gate.is_simulated,
                "time_ms": parts.now_ms(),
                "caller": {"name": caller.name, "kind": caller.kind, "roles": [*sorted(caller.roles)]},
                "limits": {"calls": MAX_CALLS, "body": MAX_BODY, "call_timeout_s": gate.call_timeout_s},
            }
        )

    @app.post("/v1/call", tags=[TAG], responses={200: CallAnswers})
    def call(body: Calls) -> Response:
        """Call functions that only read; one alone that returns bars or ticks answers in Arrow where that is accepted."""
        calls = _checked(body.calls)
        if len(calls) != 1 or calls[0][0] not in BULK or not wants_arrow():
            return Response(gate.relay(calls), content_type="application/json")
        found = gate.batch(calls)[0]
        if found.raised is not None or found.value is None:
            return answer([answer_to_wire(found)])
        headers = {"MT5-Last-Error": json.dumps(found.error)}
        return Response(rows_to_arrow(cast(Rows, found.value)), headers=headers, content_type=ARROW)

    @app.post("/v1/advance", tags=[TAG], responses={200: Advanced, 404: Problem, 409: Problem})
    def advance(body: Advance) -> Response:
        """Move the clock of a simulated terminal and call functions there."""
        if not gate.is_lock_step:
            said = "This terminal's clock doesn't wait for anybody: only a simulated one can be advanced."
            raise Refusal(404, "not-simulated", said)
        if body.session != gate.session:
            said = "The market was started anew: begin a new session."
            raise Refusal(409, "restarted", f"The server was started anew, and its market with it. {said}", state="restarted")
        if not (_CLIENT.fullmatch(body.client) and 0 < body.step < 2**53 and 0 <= body.bars <= MAX_BARS):
            said = f"A step needs a client of 32 hexadecimal digits, a number from 1, and 0 to {MAX_BARS} bars."
            raise Refusal(400, "bad-request", said)
        moved, answers = gate.relay_step(Step(body.client, body.step, body.bars, _checked(body.calls)))
        return Response(b'{"bars":%d,"answers":%s}' % (moved, answers), content_type="application/json")

    @app.get("/metrics", tags=[TAG], responses={200: media("text/plain", "Prometheus' text format")})
    def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(parts.metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")
