"""Errors as RFC 9457 problem details: what went wrong and what to do about it, and never a traceback."""

import logging

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from btcbot.terminal.wire import Json, WireError, dumps

_log = logging.getLogger(__name__)
_TITLES = {
    400: "Bad request",
    401: "Not authorised",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Body too large",
    415: "Not JSON",
    422: "The key stands for another request",
    500: "Internal error",
    503: "Not available",
}


class Problem(Exception):
    """An answer other than 200; `more` are further members of the problem document."""

    def __init__(self, status: int, detail: str, **more: Json):
        super().__init__(detail)
        self.status, self.detail, self.more = status, detail, more


def problem_response(status: int, detail: str, more: dict[str, Json] | None = None) -> Response:
    """Return the problem document."""
    body: dict[str, Json] = {"type": "about:blank", "title": _TITLES.get(status, "Error"), "status": status, "detail": detail}
    response = Response(dumps(body | (more or {})), status, content_type="application/problem+json")
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="mt5_server"'
    return response


def register(app: Flask) -> None:
    """Answer every error of `app` with a problem document."""

    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        return problem_response(error.status, error.detail, error.more)

    @app.errorhandler(WireError)
    def unreadable(error: WireError) -> Response:
        return problem_response(400, str(error))

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        response = problem_response(error.code or 500, error.description or error.name)
        if allowed := getattr(error, "valid_methods", None):
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        _log.error("A request failed", exc_info=error)
        return problem_response(500, "The server failed to answer; its log says why.")
