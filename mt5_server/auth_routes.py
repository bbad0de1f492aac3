"""The endpoints of people, bots and their grants."""

import logging
from typing import Annotated, Literal

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, ConfigDict, Field

from btcbot.terminal.wire import Json, dumps
from mt5_server.auth import Auth, arrived_now, current, grant_to_wire
from mt5_server.grants import magic_ranges
from mt5_server.refusal import Refusal

_log = logging.getLogger(__name__)
_TAG = Tag(name="access", description="Who may call: people by password and code, bots by a grant and a proof of their key.")
_Ms = Annotated[int, Field(description="Milliseconds UTC")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoginBody(_Body):
    """A person's credentials."""

    user: str = Field(max_length=64)
    password: str = Field(max_length=1024)
    code: str = Field(max_length=64, description="Six digits of now, or a recovery code; each is taken once")


class CodeBody(_Body):
    """A code of now."""

    code: str = Field(max_length=64)


class TokenBody(_Body):
    """Which grant, where the key has several."""

    grant: str | None = Field(None, max_length=64)


class GrantBody(_Body):
    """What a bot may do."""

    name: str = Field(max_length=64, description="What you call the bot")
    public_key: str = Field(max_length=64, description="Its public key: ed25519: and 43 characters")
    account: int = Field(description="Login of the trading account", ge=1, lt=2**63)
    symbols: list[str] = Field(min_length=1, max_length=100)
    magics: list[str] = Field(min_length=1, max_length=100, description="Magics such as 7, or ranges such as 1000-1999")
    volume: float = Field(gt=0, le=1e6, allow_inf_nan=False, description="Largest of one order, in lots")
    orders_a_day: int = Field(ge=1, le=1_000_000, description="That raise risk, in a UTC day")
    days: float = Field(gt=0, le=366, allow_inf_nan=False)
    roles: list[Literal["read", "trade", "metrics"]] = Field(min_length=1, max_length=3)


class SessionAnswer(BaseModel):
    """A person's session."""

    token: str
    token_type: Literal["Bearer"]
    user: str
    roles: list[str]
    ends_ms: _Ms
    fresh_until_ms: _Ms
    recovery_codes_left: int


class FreshAnswer(BaseModel):
    """Until when the session may do what raises risk."""

    fresh_until_ms: _Ms


class GrantAnswer(BaseModel):
    """A grant."""

    id: str
    name: str
    public_key: str
    account: int
    symbols: list[str]
    magics: list[str]
    volume: float
    orders_a_day: int
    roles: list[str]
    issued_by: str
    starts_ms: _Ms
    ends_ms: _Ms
    reduce_until_ms: _Ms
    revoked_ms: _Ms | None


class GrantsAnswer(BaseModel):
    """Grants."""

    grants: list[GrantAnswer]


class TokenAnswer(BaseModel):
    """A bot's token, and the server's time and number of its run for the next proofs."""

    token: str
    token_type: Literal["DPoP"]
    ends_ms: _Ms
    time_ms: _Ms
    nonce: str
    grant: GrantAnswer
    is_reduce_only: bool
    warning: str | None = None


class CallerAnswer(BaseModel):
    """Who asks."""

    name: str
    kind: Literal["person", "bot", "owner", "metrics"]
    roles: list[str]
    is_second_factor_fresh: bool
    grant: GrantAnswer | None = None


class GrantPath(BaseModel):
    """Which grant."""

    id: str = Field(max_length=64)


def _json(value: dict[str, Json], status: int = 200) -> Response:
    return Response(dumps(value), status, content_type="application/json")


def _bearer() -> str:
    return request.headers.get("Authorization", "").partition(" ")[2].strip()


def _no_such_grant() -> Refusal:
    return Refusal(404, "no-such-grant", "There is no such grant: GET /v1/grants lists them.")


def register(app: OpenAPI, auth: Auth) -> None:
    """Add the endpoints to `app`."""
    api = APIBlueprint("access", __name__, abp_tags=[_TAG])

    @api.post("/v1/login", summary="Log in", responses={200: SessionAnswer})
    def login(body: LoginBody) -> Response:
        session = auth.login(body.user, body.password, body.code, request.remote_addr or "")
        answer: dict[str, Json] = {"token": session.token, "token_type": "Bearer", "user": session.name, "roles": [*sorted(session.roles)]}
        left = session.recovery_codes_left
        return _json(answer | {"ends_ms": session.ends_ms, "fresh_until_ms": session.fresh_until_ms, "recovery_codes_left": left})

    @api.post("/v1/login/code", summary="Give a code, before something that raises risk", responses={200: FreshAnswer})
    def step_up(body: CodeBody) -> Response:
        if current().kind != "person":
            raise Refusal(403, "role-missing", "Only a person who logged in gives a code.")
        return _json({"fresh_until_ms": auth.step_up(_bearer(), body.code, request.remote_addr or "").fresh_until_ms})

    @api.post("/v1/logout", summary="End the token that is sent", responses={204: None})
    def logout() -> Response:
        auth.end(current())
        return Response(status=204)

    @api.post("/v1/token", summary="Get a bot's token, by a proof of its key (header DPoP)", responses={200: TokenAnswer})
    def token(body: TokenBody) -> Response:
        return _json(auth.issue_token(arrived_now(auth), request.remote_addr or "", body.grant))

    @api.get("/v1/me", summary="Who asks", responses={200: CallerAnswer})
    def me() -> Response:
        caller = current()
        answer: dict[str, Json] = {"name": caller.name, "kind": caller.kind, "roles": [*sorted(caller.roles)]}
        answer["is_second_factor_fresh"] = caller.is_second_factor_fresh
        if caller.grant is not None:
            answer["grant"] = _shown(caller.grant.id)
        return _json(answer)

    def _shown(id: str) -> dict[str, Json]:
        held = auth.grants.one(id)
        assert held is not None  # a grant is revoked and never deleted
        return grant_to_wire(held)

    def _own_grant_or_admin(id: str) -> None:
        caller = current()
        if caller.grant is None or caller.grant.id != id:
            auth.require(caller, "admin")

    @api.get("/v1/grants", summary="All grants; a bot sees its own", responses={200: GrantsAnswer})
    def list_grants() -> Response:
        caller = current()
        if caller.grant is not None:
            return _json({"grants": [_shown(caller.grant.id)]})
        auth.require(caller, "admin")
        return _json({"grants": [grant_to_wire(held) for held in auth.grants.everything()]})

    @api.post("/v1/grants", summary="Issue a grant (a person, with a code of now)", responses={201: GrantAnswer})
    def issue_grant(body: GrantBody) -> Response:
        auth.require(current(), "admin", is_fresh=True)
        grant = auth.grants.issue(
            body.public_key,
            current().name,
            name=body.name,
            account=body.account,
            symbols=body.symbols,
            magics=magic_ranges(body.magics),
            volume=body.volume,
            orders_a_day=body.orders_a_day,
            days=body.days,
            roles=body.roles,
        )
        _log.warning("%s issued grant %s (%s) from %s, with a second factor", current().name, grant.id, grant.name, current().source)
        return _json(_shown(grant.id), 201)

    @api.delete("/v1/grants/<id>", summary="Revoke a grant at once", responses={204: None})
    def revoke_grant(path: GrantPath) -> Response:
        _own_grant_or_admin(path.id)
        if not auth.grants.revoke(path.id):
            raise _no_such_grant()
        _log.warning("%s revoked grant %s from %s", current().name, path.id, current().source)
        return Response(status=204)

    app.register_api(api)
