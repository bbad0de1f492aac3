"""What the routes work with."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from flask import Response, request

from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.wire import ARROW, Json, dumps
from mt5_server.auth import Auth
from mt5_server.gate import Gate
from mt5_server.guard import Guard
from mt5_server.metrics import ServerMetrics
from mt5_server.orders import Orders
from mt5_server.stream import Hub


def _utc_now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The terminal and everything around it."""

    gate: Gate
    auth: Auth
    journal: OrderJournal
    guard: Guard
    orders: Orders
    hub: Hub
    metrics: ServerMetrics
    now_ms: Callable[[], int] = _utc_now_ms


def answer(value: Json, status: int = 200) -> Response:
    """Return `value` as JSON."""
    return Response(dumps(value), status, content_type="application/json")


def wants_arrow() -> bool:
    """Say whether the client asked for Arrow."""
    return ARROW in request.headers.get("Accept", "")
