"""The application: who may call, what is answered, what is measured.

Flask does HTTP; flask-openapi3 reads the routes' signatures, checks what comes in against their models (pydantic) and writes the OpenAPI
document from them, so that the document can't disagree with the code. The routes are in `api_calls` (the MetaTrader5 contract, for the
client of btcbot), `api_orders` (orders and the guard), `api_reading` (for people and other languages) and `auth_routes`.
"""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from flask import Flask, Response, g, request
from flask.json.provider import DefaultJSONProvider
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI

from btcbot import __version__
from btcbot.terminal.wire import MAX_BODY, is_loopback, loads
from mt5_server import api_calls, api_orders, api_reading, auth_routes, document, problems
from mt5_server.audit import write_down
from mt5_server.auth import caller_or_none, identify
from mt5_server.parts import Parts
from mt5_server.refusal import Refusal

COMPRESSED: Final = frozenset({"application/json", "text/plain", "application/javascript", "text/javascript", "text/css", "text/html"})
COMPRESS_FROM: Final = 1400  # bytes: less fits into one packet anyway
IN_FLIGHT: Final = 24  # requests at a time that may wait for the terminal: fewer than the web server has threads
NEVER_WAITS: Final = frozenset({"/health", "/metrics", "/v1/stream", None})  # routes that don't, or have a limit of their own
ABOUT: Final = (
    "A MetaTrader 5 terminal over HTTP. Times named `time` are milliseconds UTC, those named `server_time` the same moment on the trade "
    "server's clock, whose rule is `clock`. Errors are problem details (RFC 9457)."
)


class _InFlight:
    """How many requests wait for the terminal. While it hangs they would otherwise take all threads, and `/health` would hang too."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(IN_FLIGHT)

    def enter(self) -> None:
        """Count a request, or refuse it."""
        rule = None if request.url_rule is None else request.url_rule.rule
        if rule in NEVER_WAITS or not (rule or "").startswith("/v1/"):
            return
        if not self._free.acquire(blocking=False):
            said = f"{IN_FLIGHT} requests wait for the terminal already: look at /health, and try again."
            raise Refusal(503, "server-busy", said, {"Retry-After": "1"})
        g.is_in_flight = True

    def leave(self, response: Response) -> None:
        """Keep on counting a request whose answer is read while it is sent."""
        if g.get("is_in_flight", False) and response.is_streamed:
            g.is_in_flight = False
            response.response = _Counted(response.iter_encoded(), self._free.release)

    def end(self) -> None:
        """Count a request no more."""
        if g.get("is_in_flight", False):
            g.is_in_flight = False
            self._free.release()


class _Counted(Iterator[bytes]):
    """A body that says once when it has ended, was closed, or was forgotten."""

    def __init__(self, body: Iterator[bytes], ended: Callable[[], None]):
        self._body, self._ended = body, ended
        self._said = threading.Lock()

    def __next__(self) -> bytes:
        try:
            return next(self._body)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Say it."""
        if self._said.acquire(blocking=False):
            self._ended()

    __del__ = close


class _Json(DefaultJSONProvider):
    """JSON as the wire has it: no NaN, and nothing so deep that reading it would exhaust the stack."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Read a body."""
        return loads(s.encode() if isinstance(s, str) else s)


def _check_body() -> None:
    """Refuse a body that isn't JSON before anything reads it."""
    if request.method in ("POST", "PUT", "PATCH") and request.content_length and request.mimetype != "application/json":
        raise Refusal(415, "not-json", "The body must be JSON: send Content-Type: application/json.")


def _compress(response: Response) -> Response:
    """Make an answer smaller where the network is slower than gzip: not on this machine."""
    if (
        response.mimetype in COMPRESSED
        and not response.is_streamed
        and "Content-Encoding" not in response.headers
        and "gzip" in request.headers.get("Accept-Encoding", "")
        and not is_loopback(request.remote_addr or "")
        and (response.content_length or 0) >= COMPRESS_FROM
    ):
        response.direct_passthrough = False
        response.set_data(gzip.compress(response.get_data(), 6))
        response.headers["Content-Encoding"] = "gzip"
        response.headers.add("Vary", "Accept-Encoding")
    return response


def _harden(app: Flask, response: Response) -> Response:
    is_page = document.is_open(app, request.endpoint)
    headers = response.headers
    headers["Cache-Control"] = "no-store"
    headers["Content-Security-Policy"] = document.PAGE_POLICY if is_page else "default-src 'none'; frame-ancestors 'none'"
    headers["Referrer-Policy"] = "no-referrer"
    headers["X-Content-Type-Options"] = "nosniff"
    return response


def create_app(parts: Parts) -> OpenAPI:
    """Return the application."""
    app = OpenAPI(
        "mt5_server",
        static_folder=None,
        info=Info(title="mt5-server", version=__version__, description=ABOUT),
        security_schemes=document.SCHEMES,
        validation_error_status=400,
        validation_error_model=problems.Problem,
        validation_error_callback=problems.invalid,
        doc_ui=False,
    )
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.json = _Json(app)

    in_flight = _InFlight()

    @app.before_request
    def arrive() -> None:
        g.began = time.perf_counter()
        identify(parts.auth)
        in_flight.enter()
        epoch, caller = request.headers.get("Lease-Epoch", ""), caller_or_none()
        if caller is not None and caller.has("trade") and epoch.isascii() and epoch.isdecimal() and len(epoch) < 16:
            parts.guard.touch(int(epoch))
        _check_body()

    @app.after_request
    def leave(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule is not None else "other"
        parts.metrics.observe_request(route, response.status_code, time.perf_counter() - g.get("began", time.perf_counter()))
        write_down(parts.auth, response)
        in_flight.leave(response)
        return _harden(app, _compress(response))

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        in_flight.end()

    problems.register(app)
    document.register(app)
    auth_routes.register(app, parts.auth)
    for module in (api_calls, api_orders, api_reading):
        module.register(app, parts)
    return app
