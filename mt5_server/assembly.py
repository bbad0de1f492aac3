"""How the parts of a server are put together, started and stopped."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.wire import Json
from mt5_server.admission import admission
from mt5_server.auth import Auth
from mt5_server.gate import Gate
from mt5_server.guard import Guard, GuardSettings
from mt5_server.metrics import ServerMetrics
from mt5_server.orders import Orders
from mt5_server.parts import Parts
from mt5_server.stream import Hub

_log = logging.getLogger(__name__)
EVERY_S = 1.0


def assemble(
    gate: Gate,
    auth: Auth,
    journal: OrderJournal,
    guard_file: Path,
    *,
    guard_settings: GuardSettings | None = None,
    streams: int = 16,
    now_ms: Callable[[], int] | None = None,
) -> Parts:
    """Put the parts together."""
    metrics = ServerMetrics()
    gate.observe = metrics.observe_call
    guard = Guard(gate, guard_file, guard_settings)
    guard.note = partial(auth.note, "guard")
    orders = Orders(gate, journal, guard, admit=admission(auth, gate))
    hub = Hub(gate, streams, metrics.streams_dropped.inc)
    metrics.gauges(lambda: {**_gauges(gate, hub), **_watched(orders, guard)})
    metrics.counters(lambda: {**orders.counters, **guard.counters})
    return Parts(
        gate=gate,
        auth=auth,
        journal=journal,
        guard=guard,
        orders=orders,
        hub=hub,
        metrics=metrics,
        **({} if now_ms is None else {"now_ms": now_ms}),
    )


def _gauges(gate: Gate, hub: Hub) -> Mapping[str, tuple[str, float]]:
    return {
        "btcbot_server_worker_up": ("1 while the process of the terminal answers.", float(gate.state == "up")),
        "btcbot_server_worker_restarts": ("How often that process was started or found again.", gate.restarts),
        "btcbot_server_reconnects": ("How often it connected to its terminal again.", gate.reconnects),
        "btcbot_server_busy_seconds": ("For how long the present call of the terminal has been running.", gate.busy_s),
        "btcbot_server_streams": ("Streams that are open.", hub.listeners),
    }


def _watched(orders: Orders, guard: Guard) -> Mapping[str, tuple[str, float]]:
    status = guard.status()
    undecided, lease = cast("list[dict[str, Json]]", orders.status()["undecided"]), status.get("lease")
    left = cast(float, lease["expires_in_s"]) if isinstance(lease, dict) else 0.0
    return {
        "btcbot_server_orders_undecided": ("Orders whose outcome isn't known.", len(undecided)),
        "btcbot_server_orders_alarmed": ("Of those, the ones a person must look at.", sum(order["alarm"] is True for order in undecided)),
        "btcbot_server_entries_open": ("1 while the guard lets entries through.", float(status["entries"] == "open")),
        "btcbot_server_lease_epoch": ("Epoch of the newest lease.", cast(float, status.get("epoch", 0))),
        "btcbot_server_lease_left_seconds": ("How long the lease still lives, 0 without one.", left),
    }


class Background:
    """The thread that does what is due every second: settles orders, guards, looks after the worker."""

    def __init__(self, parts: Parts, every_s: float = EVERY_S):
        self._parts, self._every_s = parts, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic() - self._every_s) + self._every_s
            self.step()

    def step(self) -> None:
        """Do it once; what fails is tried again a second later."""
        for what in (self._parts.gate.look, self._parts.orders.step, self._parts.guard.step):
            try:
                what()
            except Exception as error:
                self._parts.metrics.background_failures.inc()
                _log.error("What is due every second failed", exc_info=error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(2.0)
