"""Errors as RFC 9457 problem details: a stable type, what went wrong and what to do about it, and never a traceback."""

import logging
from http import HTTPStatus
from typing import Final

from flask import Flask, Response, make_response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from werkzeug.exceptions import HTTPException

from btcbot.core.errors import BtcbotError
from btcbot.core.log import redact
from btcbot.terminal.contract import ERRORS, C
from btcbot.terminal.wire import Answer, Json, WireError, dumps
from mt5_server.gate import Gone, StepConflict, TerminalFailed
from mt5_server.refusal import Refusal

_log = logging.getLogger(__name__)
PROBLEM: Final = "application/problem+json"
TYPE: Final = "urn:btcbot:problem:"
_SLUGS: Final = {
    400: "bad-request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    411: "length-required",
    413: "too-large",
    415: "not-json",
}
_DOWN: Final = frozenset(
    {C.RES_E_INTERNAL_FAIL_SEND, C.RES_E_INTERNAL_FAIL_RECEIVE, C.RES_E_INTERNAL_FAIL_INIT, C.RES_E_INTERNAL_FAIL_CONNECT}
)


class Problem(BaseModel):
    """RFC 9457 problem details. `type` is stable and for programs, `detail` for people; some types have more members."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(description=f"{TYPE} and a slug")
    title: str
    status: int
    detail: str = Field(description="What was wrong, and the remedy")


def problem_response(status: int, slug: str, detail: str, more: dict[str, Json] | None = None) -> Response:
    """Return the problem document."""
    title = slug.replace("-", " ").capitalize()
    body: dict[str, Json] = {"type": TYPE + slug, "title": title, "status": status, "detail": redact(detail)}
    response = Response(dumps(body | (more or {})), status, content_type=PROBLEM)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="mt5_server"'
    return response


def terminal_refusal(call: str, code: int, text: str) -> Refusal:
    """Return what a route for people says when the terminal has no answer."""
    more: dict[str, Json] = {"call": call, "code": code, "text": text}
    if code == C.RES_E_INTERNAL_FAIL_TIMEOUT:
        said = f"The terminal did not answer {call} in time: try again, and look at /health."
        return Refusal(504, "terminal-timeout", said, None, **more)
    if code in _DOWN:
        said = f"The terminal is not there for {call} ({code}: {text}): look at it, it is tried again by itself."
        return Refusal(503, "terminal-down", said, {"Retry-After": "2"}, **more)
    if code == C.RES_E_INVALID_PARAMS:
        return Refusal(400, "invalid-call", f"The terminal refuses what {call} was asked for ({text}).", None, **more)
    return Refusal(502, "terminal-failed", f"The terminal answered {call} with {code}: {text}.", None, **more)


def taken(answer: Answer, call: str) -> object:
    """Return the value of an answer, or raise what a route for people says."""
    if answer.raised is not None:
        raise Refusal(400, "invalid-call", f"The terminal refuses the arguments of {call}: {answer.raised}.", call=call)
    if answer.value is None or answer.value is False:
        raise terminal_refusal(call, *answer.error)
    return answer.value


def invalid(error: ValidationError) -> Response:
    """Answer a request whose parameters or body don't fit."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    return problem_response(400, "bad-request", f"{where}: {first['msg']}. The document at /openapi.json says what is wanted.")


def register(app: Flask) -> None:
    """Answer every error of `app` with a problem document."""

    @app.errorhandler(Refusal)
    def refused(error: Refusal) -> Response:
        response = problem_response(error.status, error.type, error.detail, error.more)
        response.headers.update(error.headers)
        return response

    @app.errorhandler(WireError)
    def unreadable(error: WireError) -> Response:
        return problem_response(400, "invalid-call", str(error))

    @app.errorhandler(BtcbotError)
    def unusable(error: BtcbotError) -> Response:
        return problem_response(400, "bad-request", str(error))

    @app.errorhandler(StepConflict)
    def out_of_step(error: StepConflict) -> Response:
        return problem_response(409, "step", str(error), {"state": "step"})

    @app.errorhandler(Gone)
    def gone(error: Gone) -> Response:
        return refused(terminal_refusal("the call", error.code, ERRORS[error.code]))

    @app.errorhandler(TerminalFailed)
    def failed(error: TerminalFailed) -> Response:
        return problem_response(500, "internal", "The terminal failed to answer; the server's log says why.")

    @app.errorhandler(HTTPException)
    def by_http(error: HTTPException) -> Response:
        if error.response is not None:
            return make_response(error.response)
        status = error.code or 500
        slug = _SLUGS.get(status, HTTPStatus(status).phrase.lower().replace(" ", "-"))
        response = problem_response(status, slug, error.description or error.name)
        if allowed := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        _log.error("A request failed", exc_info=error)
        return problem_response(500, "internal", "The server failed to answer; its log says why.")
