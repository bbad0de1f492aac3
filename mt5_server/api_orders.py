"""Orders, each with its key, and the guard over them."""

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from flask import Response, request
from flask_openapi3.models.tag import Tag
from flask_openapi3.openapi import OpenAPI
from pydantic import ConfigDict, Field

from btcbot.terminal.wire import Json, answer_to_wire, decode
from mt5_server.api_calls import CallAnswer
from mt5_server.auth import current
from mt5_server.model import Model
from mt5_server.orders import Quote, Submission
from mt5_server.parts import Parts, answer
from mt5_server.problems import Problem
from mt5_server.refusal import Refusal

KEY: Final = r"^[A-Za-z0-9._:-]{8,128}$"
_INTEGERS: Final = frozenset(
    {"action", "magic", "order", "deviation", "type", "type_filling", "type_time", "expiration", "position", "position_by"}
)
TRADING: Final = Tag(name="orders", description="Each order has a key: sent again, it is answered again and not executed again.")
GUARD: Final = Tag(name="guard", description="The lease that a trader holds, and the limits that hold without it.")
REQUEST: Final[dict[str, Any]] = {
    "description": "Fields of a trade request, as MqlTradeRequest has them. Prices and volumes are numbers with a decimal point; tickets "
    "and magic may be text.",
    "examples": [{"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0, "type_filling": 1}],
}


class Key(Model):
    """What makes an order this one."""

    key: str = Field(alias="Idempotency-Key", pattern=KEY, description="8 to 128 letters, digits or the characters . _ : -")


class KeyPath(Model):
    """The key of an order."""

    key: str = Field(pattern=KEY)


class Epoch(Model):
    """Of the lease."""

    epoch: int | None = Field(None, alias="Lease-Epoch", ge=0, lt=2**53, description="Of the lease that the sender holds")


class OrderHeaders(Epoch, Key):
    """What an order needs besides its body."""


class QuoteBody(Model):
    """The quote that the order was decided on, as the server gave it."""

    time_msc: int = Field(strict=True)
    bid: float
    ask: float


class OrderBody(Model):
    """A trade request, and until when and how far from its quote it may be sent."""

    request: dict[str, Any] = Field(json_schema_extra=REQUEST)
    quote: QuoteBody | None = None
    ttl_ms: int | None = Field(None, strict=True, ge=0, lt=2**53)
    max_distance: float | None = Field(None, ge=0, description="Points")


class CheckBody(Model):
    """A trade request."""

    request: dict[str, Any] = Field(json_schema_extra=REQUEST)


class OrderShown(Model):
    """What is known of an order."""

    model_config = ConfigDict(extra="allow")
    key: str
    state: Literal["intent", "sent", "done", "not_done", "unknown"]
    outcome: Literal["done", "not_done", "unknown"]
    replayed: bool
    value: Any = None
    error: list[Any] | None = None
    by: str = Field("", description="How the outcome is known")
    why: str = ""
    tickets: dict[str, Any] = Field(default_factory=dict)
    adopted: bool = False


class Resolution(Model):
    """What a person found out about an order."""

    outcome: Literal["done", "not_done"]


class LeaseBody(Model):
    """Who wants to trade."""

    holder: str = Field(min_length=1, max_length=100)
    ttl_s: float | None = Field(None, gt=0, le=86_400)
    takeover: bool = False


class LeaseShown(Model):
    """The right to send entries, for a time."""

    epoch: int
    ttl_s: float
    holder: str


class Reason(Model):
    """Why."""

    reason: str = Field("", max_length=500)


class GuardShown(Model):
    """What the guard sees and allows."""

    model_config = ConfigDict(extra="allow")
    entries: Literal["open", "blocked"]
    why: list[str]


def as_request(found: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a trade request, tickets and magic as numbers."""
    fields = decode(cast(Json, dict(found)))
    if not isinstance(fields, dict):
        raise Refusal(400, "bad-request", "The request must be an object of the fields of a trade request.")
    for name in _INTEGERS & fields.keys():
        text = fields[name]
        if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 20:
            fields[name] = int(text)
    return cast(dict[str, object], fields)


def register(app: OpenAPI, parts: Parts) -> None:
    """Add the routes to `app`."""
    gate, orders, guard, auth = parts.gate, parts.orders, parts.guard, parts.auth

    @app.post("/v1/order", tags=[TRADING], responses={200: OrderShown, 409: Problem, 422: Problem})
    def send(header: OrderHeaders, body: OrderBody) -> Response:
        """Send an order once, whatever happens to the answer."""
        quote = None if body.quote is None else Quote(body.quote.time_msc, body.quote.bid, body.quote.ask)
        submission = Submission(
            key=header.key,
            request=as_request(body.request),
            epoch=header.epoch,
            ttl_ms=body.ttl_ms,
            quote=quote,
            max_distance=body.max_distance,
        )
        return answer(orders.send(submission, current()).to_wire())

    @app.post("/v1/order/check", tags=[TRADING], responses={200: CallAnswer})
    def check(body: CheckBody) -> Response:
        """Ask the terminal whether an order would be accepted, without sending it."""
        found = gate.batch([("order_check", [as_request(body.request)], {})])[0]
        return answer(answer_to_wire(found))

    @app.get("/v1/order/<key>", tags=[TRADING], responses={200: OrderShown, 404: Problem})
    def look_up(path: KeyPath) -> Response:
        """Say what became of an order."""
        found = orders.get(path.key)
        if found is None:
            raise Refusal(404, "no-such-order", "No order with this key was ever sent to this server.", key=path.key)
        return answer(found.to_wire())

    @app.post("/v1/order/<key>/resolve", tags=[TRADING], responses={200: OrderShown, 404: Problem, 409: Problem})
    def resolve(path: KeyPath, body: Resolution) -> Response:
        """Decide an order whose outcome stays unknown: a person looked it up at the broker."""
        auth.require(current(), "admin", is_fresh=True)
        if orders.get(path.key) is None:
            raise Refusal(404, "no-such-order", "No order with this key was ever sent to this server.", key=path.key)
        return answer(orders.resolve(path.key, body.outcome, current().name).to_wire())

    # ---- the guard

    def lease_answer(lease: Any) -> Response:
        return answer({"epoch": lease.epoch, "ttl_s": lease.ttl_s, "holder": lease.holder})

    def holder() -> str:
        lease = guard.status().get("lease")
        return str(lease.get("holder")) if isinstance(lease, dict) else ""

    def epoch_of(header: Epoch) -> int:
        if header.epoch is None:
            raise Refusal(400, "bad-request", "Send the epoch of your lease in the header Lease-Epoch.")
        return header.epoch

    @app.get("/v1/guard", tags=[GUARD], responses={200: GuardShown})
    def show() -> Response:
        """Say who holds the lease, what the limits are, and whether entries are allowed."""
        return answer(guard.status())

    @app.post("/v1/guard/lease", tags=[GUARD], responses={200: LeaseShown, 409: Problem, 422: Problem})
    def lease(body: LeaseBody) -> Response:
        """Get the right to send entries; whoever had it before is refused from then on."""
        caller = current()
        if body.takeover and not (caller.has("admin") or holder().startswith(f"{caller.name}/")):
            said = f"{holder()} holds the lease: only its own account or a person with the role admin takes it over."
            raise Refusal(403, "role-missing", said)
        return lease_answer(guard.lease(f"{caller.name}/{body.holder}", body.ttl_s, body.takeover))

    @app.post("/v1/guard/renew", tags=[GUARD], responses={200: LeaseShown, 409: Problem, 422: Problem})
    def renew(header: Epoch) -> Response:
        """Keep the lease; every request with its epoch does so too."""
        return lease_answer(guard.renew(epoch_of(header)))

    @app.post("/v1/guard/release", tags=[GUARD], responses={204: None, 409: Problem})
    def release(header: Epoch) -> Response:
        """Give the lease back."""
        guard.release(epoch_of(header))
        return Response(status=204)

    @app.post("/v1/guard/limits", tags=[GUARD], responses={200: GuardShown, 422: Problem})
    def limits() -> Response:
        """Change hard limits: anybody who trades may lower them, a person with a fresh code may raise them."""
        found = request.get_json()
        if not isinstance(found, dict) or not all(value is None or type(value) in (int, float) for value in found.values()):
            raise Refusal(400, "bad-request", "The body must be an object of limits, each a number or null.")
        caller = current()
        may_raise = "admin" in caller.roles and (caller.kind == "owner" or (caller.kind == "person" and caller.is_second_factor_fresh))
        guard.set_limits(found, caller.name, may_raise)
        return answer(guard.status())

    @app.post("/v1/guard/halt", tags=[GUARD], responses={200: GuardShown})
    def halt(body: Reason) -> Response:
        """Block entries until a person lifts that."""
        guard.halt(body.reason or "asked for", current().name)
        return answer(guard.status())

    @app.post("/v1/guard/lift", tags=[GUARD], responses={200: GuardShown})
    def lift() -> Response:
        """Allow entries again; a person with a fresh code."""
        auth.require(current(), "admin", is_fresh=True)
        guard.lift(current().name)
        return answer(guard.status())
