"""Who may call, and what: people by password and code, bots by a grant and a proof of their key, Prometheus by a token of its own.

Nothing is allowed that isn't written down here: a route that `POLICY` doesn't name is refused, whoever asks.
"""

import hashlib
import hmac
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple

from flask import g, request

from btcbot.core.errors import BtcbotError
from btcbot.core.log import register_secret
from btcbot.security.grants import HOLDS, WARN_MS, Grant, Role, breach, moment
from btcbot.security.proofs import Arrived, ProofError, Seen, check_proof, key_of
from btcbot.security.sealing import Sealer
from btcbot.security.throttle import RateLimit, Throttled, source_of
from btcbot.security.trail import Trail
from btcbot.security.unlocking import vault_key
from btcbot.security.users import SESSION_PREFIX, LoginRefused, Session, Users, token_hash
from btcbot.security.vault import KEY_VARIABLE, Vault
from btcbot.terminal.wire import Json
from mt5_server.grants import GRANT_PREFIX, METRICS_PREFIX, Grants, Held, magic_texts
from mt5_server.refusal import Refusal

_log = logging.getLogger(__name__)
MIN_TOKEN: Final = 32  # characters; `python -c "import secrets; print(secrets.token_urlsafe(32))"` gives 43
_WARN_EVERY_S: Final = 3600.0


class Need(NamedTuple):
    """Which roles open a route (any of them), and whether a person needs a fresh code as well."""

    roles: frozenset[Role]
    is_fresh: bool = False


READ: Final = Need(frozenset({"read"}))
TRADE: Final = Need(frozenset({"trade"}))
STEER: Final = Need(frozenset({"trade", "admin"}))  # what lowers risk, and what a route tells apart by itself
ADMIN: Final = Need(frozenset({"admin"}))
FRESH: Final = Need(frozenset({"admin"}), is_fresh=True)
METRICS: Final = Need(frozenset({"metrics", "read"}))
KNOWN: Final = Need(frozenset({"read", "trade", "admin", "metrics"}))
OPEN: Final = Need(frozenset())

POLICY: Final[dict[tuple[str, str], Need]] = {
    ("GET", "/health"): OPEN,
    ("POST", "/v1/login"): OPEN,
    ("POST", "/v1/token"): OPEN,
    ("POST", "/v1/login/code"): KNOWN,
    ("POST", "/v1/logout"): KNOWN,
    ("GET", "/v1/me"): KNOWN,
    ("GET", "/v1/grants"): READ,
    ("POST", "/v1/grants"): FRESH,
    ("DELETE", "/v1/grants/<id>"): KNOWN,  # a bot may give its own back
    ("GET", "/metrics"): METRICS,
    ("GET", "/v1/session"): READ,
    ("POST", "/v1/call"): READ,
    ("POST", "/v1/advance"): TRADE,
    ("GET", "/v1/ticks"): READ,
    ("GET", "/v1/ohlcv"): READ,
    ("GET", "/v1/symbol"): READ,
    ("GET", "/v1/symbols"): READ,
    ("GET", "/v1/account"): READ,
    ("GET", "/v1/orders"): READ,
    ("GET", "/v1/positions"): READ,
    ("GET", "/v1/deals"): READ,
    ("GET", "/v1/stream"): READ,
    ("POST", "/v1/order"): TRADE,
    ("POST", "/v1/order/check"): TRADE,
    ("GET", "/v1/order/<key>"): READ,
    ("POST", "/v1/order/<key>/resolve"): FRESH,
    ("GET", "/v1/guard"): READ,
    ("POST", "/v1/guard/lease"): TRADE,
    ("POST", "/v1/guard/renew"): TRADE,
    ("POST", "/v1/guard/release"): TRADE,
    ("POST", "/v1/guard/limits"): STEER,  # the route asks for a fresh code where a limit is raised
    ("POST", "/v1/guard/halt"): STEER,
    ("POST", "/v1/guard/lift"): FRESH,
}
OPEN_RULES: Final = ("/openapi.json", "/openapi/")  # what the API is, and the page to try it


def hash_token(token: str) -> bytes:
    """Return what the server keeps of the owner's `token`, after a check that it can't be guessed.

    A plain SHA-256 is enough for a random token of this length; it would not be for a password.
    """
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise BtcbotError(
            f"The server's token has {len(token)} characters: it takes at least {MIN_TOKEN} printable ASCII characters without blanks, "
            'made by chance, for example by python -c "import secrets; print(secrets.token_urlsafe(32))".'
        )
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request."""

    name: str
    kind: Literal["person", "bot", "owner", "metrics"]
    roles: frozenset[Role]
    grant: Grant | None = None
    is_second_factor_fresh: bool = False
    source: str = ""
    handle: str = ""  # names the token without being it

    def has(self, role: Role) -> bool:
        """Say whether one of the caller's roles includes `role`."""
        return any(role in HOLDS[own] for own in self.roles)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    """What can be chosen."""

    folder: Path | None = None  # of people.sqlite3, grants.sqlite3 and vault.json; None: the owner's token and nobody else
    vault_key: str | None = None  # env:NAME, file:PATH, keyring:NAME or passphrase-env:NAME
    origins: frozenset[str] = frozenset()  # what clients may call this server; empty: as the request says
    token_s: float = 600.0
    skew_s: float = 60.0
    rate: float = 500.0  # requests a second of a caller
    burst: float = 1000.0
    failures_rate: float = 20.0  # refused credentials a second of a source
    failures: float = 200.0


def key_source(settings: AuthSettings) -> str:
    """Return where the vault's key is."""
    assert settings.folder is not None
    return settings.vault_key or (f"env:{KEY_VARIABLE}" if os.environ.get(KEY_VARIABLE) else f"file:{settings.folder / 'vault.key'}")


def open_sealer(settings: AuthSettings) -> Sealer:
    """Return what opens the seeds of people, from the vault; both are made at the first start."""
    assert settings.folder is not None
    is_new = not (settings.folder / "people.sqlite3").exists()
    key = vault_key(key_source(settings), make=is_new)
    return Vault(settings.folder / "vault.json", key, make=is_new).sealer("people/seeds", make=is_new)


def _throttled(error: Throttled) -> Refusal:
    return Refusal(429, "throttled", str(error), {"Retry-After": str(error.retry_s)}, retry_s=error.retry_s)


class Auth:
    """The one who decides."""

    def __init__(
        self,
        grants: Grants,
        users: Users | None = None,
        owner_token: str | None = None,
        settings: AuthSettings = AuthSettings(),
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
        trail: Trail | None = None,
    ):
        if owner_token is not None:
            register_secret(owner_token)
        self._owner = None if owner_token is None else hash_token(owner_token)
        self.grants, self.users, self.settings, self.trail = grants, users, settings, trail
        self._now_ms, self._monotonic = now_ms, monotonic
        self.nonce = secrets.token_urlsafe(16)  # of this run: a proof made for an earlier one is worth nothing
        self._offset_s = now_ms() / 1000 - monotonic()
        self._seen = Seen(life_s=2 * settings.skew_s + 1)
        self._rates = RateLimit(settings.rate, settings.burst)
        self._failures = RateLimit(settings.failures_rate, settings.failures)
        self._warned: dict[str, float] = {}

    @classmethod
    def open(
        cls, settings: AuthSettings, owner_token: str | None = None, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> "Auth":
        """Open the files of `settings`; without a folder there is nobody but the owner."""
        if settings.folder is None:
            return cls(Grants(Path(":memory:"), now_ms), None, owner_token, settings, now_ms)
        users = Users(settings.folder / "people.sqlite3", open_sealer(settings), now_ms=now_ms)
        grants, trail = Grants(settings.folder / "grants.sqlite3", now_ms), Trail(settings.folder / "trail.sqlite3", now_ms)
        return cls(grants, users, owner_token, settings, now_ms, trail=trail)

    def note(self, who: str, what: str, detail: str = "", place: str = "local", is_confirmed: bool = False) -> None:
        """Write a line into the audit trail; a disk that is full must not keep anybody from stopping a bot."""
        if self.trail is None:
            return
        try:
            self.trail.write(who, what, detail, place, is_confirmed)
        except (OSError, sqlite3.Error) as error:
            _log.error("The audit trail can't be written; it lacks: %s, %s", who, what, exc_info=error)

    def close(self) -> None:
        """Close the files."""
        if self.trail is not None:
            self.trail.close()
        self.grants.close()
        if self.users is not None:
            self.users.close()

    def __enter__(self) -> "Auth":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def has_people(self) -> bool:
        """Say whether anybody can log in."""
        return self.users is not None and bool(self.users.people())

    # -- who is it

    def authenticate(self, method: str, url: str, headers: Mapping[str, str], body: bytes, source: str) -> Caller:
        """Return who sent a request, or raise a `Refusal`; `url` is in full."""
        place = source_of(source)
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if not token:
            raise self._unauthenticated("This server wants to know who asks: send Authorization, with a token from /v1/login or /v1/token.")
        arrived = Arrived(method=method, url=url, headers=headers, body=body, origins=self.settings.origins)
        try:
            caller = self._identified(scheme.lower(), token.strip(), arrived, place)
        except Refusal as refusal:
            self._count_failure(place, refusal)
            raise
        self._count(caller)
        return caller

    def _count(self, caller: Caller) -> None:
        if caller.kind == "owner":
            return
        now_s = self._monotonic()
        try:
            self._rates.check(caller.name, now_s)
        except Throttled as error:
            raise _throttled(error) from None
        self._rates.spend(caller.name, now_s)

    def _count_failure(self, place: str, refusal: Refusal) -> None:
        """Count wrong credentials by their source; right ones from there pass all the same, so nobody can lock a neighbour out."""
        now_s = self._monotonic()
        try:
            self._failures.check(place, now_s)
        except Throttled as error:
            raise _throttled(error) from refusal
        self._failures.spend(place, now_s)

    def _identified(self, scheme: str, token: str, arrived: Arrived, place: str) -> Caller:
        hashed = token_hash(token)
        if scheme == "dpop" and token.startswith(GRANT_PREFIX):
            return self._bot(token, hashed, arrived, place)
        if scheme == "bearer":
            if self._owner is not None and hmac.compare_digest(hashed, self._owner):
                roles: frozenset[Role] = frozenset({"read", "trade", "admin", "metrics"})
                return Caller(name="owner", kind="owner", roles=roles, is_second_factor_fresh=True, source=place, handle="owner")
            if token.startswith(SESSION_PREFIX) and self.users is not None and (session := self.users.find(token)):
                return self._person(session, place)
            if token.startswith(METRICS_PREFIX) and (name := self.grants.reader(hashed)):
                return Caller(
                    name=f"metrics {name}", kind="metrics", roles=frozenset({"metrics"}), source=place, handle=f"reader {hashed.hex()}"
                )
        raise self._unauthenticated("The token is wrong or has ended: get a new one from /v1/login or /v1/token.", "token-ended")

    def _person(self, session: Session, place: str) -> Caller:
        is_fresh = session.fresh_until_ms > 0
        handle = f"session {session.handle}"
        return Caller(name=session.name, kind="person", roles=session.roles, is_second_factor_fresh=is_fresh, source=place, handle=handle)

    def _bot(self, token: str, hashed: bytes, arrived: Arrived, place: str) -> Caller:
        held = self.grants.of_token(hashed)
        if held is None:
            raise self._unauthenticated("The token is wrong or has ended: get a new one from /v1/token.", "token-ended")
        self._proven(held.public, arrived, token)
        self._check_held(held)
        grant = held.grant
        return Caller(name=f"grant {grant.id}", kind="bot", roles=grant.roles, grant=grant, source=place, handle=f"token {hashed.hex()}")

    def _watch_clock(self) -> None:
        """Begin a new run of proofs when the clock was set back: old ones would be young again."""
        offset_s = self._now_ms() / 1000 - self._monotonic()
        if offset_s < self._offset_s - 1:
            self.nonce = secrets.token_urlsafe(16)
        self._offset_s = offset_s

    def _proven(self, public: str, arrived: Arrived, token: str | None, *, is_granted: bool = True) -> None:
        proof = _proof_of(arrived)
        self._watch_clock()
        try:
            proven = check_proof(proof, public, arrived, token, self.nonce, self._now_ms() / 1000, self.settings.skew_s)
            if is_granted:
                self._seen.take(proven, self._monotonic())
        except ProofError as error:
            raise self._unproven(error) from None

    def _unproven(self, error: ProofError) -> Refusal:
        kind = "use_dpop_nonce" if error.reason == "nonce" else "invalid_dpop_proof"
        headers = {"WWW-Authenticate": f'DPoP error="{kind}", algs="EdDSA"', "DPoP-Nonce": self.nonce}
        more: dict[str, Json] = {"reason": error.reason, "nonce": self.nonce, "time_ms": self._now_ms()}
        return Refusal(401, "proof-refused", error.detail, headers, **more)

    def _check_held(self, held: Held) -> None:
        grant = held.grant
        if held.revoked_ms is not None:
            raise self._unauthenticated(f"Grant {grant.id} was revoked: ask the person who did.", "grant-revoked")
        if grant.is_over(self._now_ms()):
            said = f"Grant {grant.id} ended on {moment(grant.ends_ms)}, and the time to close positions is over: have another one issued."
            raise self._unauthenticated(said, "grant-ended")

    @staticmethod
    def _unauthenticated(detail: str, slug: str = "unauthenticated") -> Refusal:
        return Refusal(401, slug, detail, {"WWW-Authenticate": 'Bearer realm="mt5_server", DPoP algs="EdDSA"'})

    # -- tokens

    def login(self, name: str, password: str, code: str, source: str) -> Session:
        """Start a person's session."""
        if self.users is None:
            raise Refusal(401, "login-refused", "This server has its owner's token and no people.")
        try:
            session = self.users.login(name, password, code, source)
        except Throttled as error:
            _log.warning("A login from %s was refused: too many tries", source_of(source))
            raise _throttled(error) from None
        except LoginRefused as error:
            _log.warning("A login from %s was refused", source_of(source))
            raise self._unauthenticated(str(error), "login-refused") from None
        _log.info("%s logged in from %s; %d recovery codes left", session.name, source_of(source), session.recovery_codes_left)
        return session

    def step_up(self, token: str, code: str, source: str) -> Session:
        """Make a person's session fresh."""
        if self.users is None:
            raise Refusal(401, "login-refused", "This server has its owner's token and no people.")
        try:
            session = self.users.step_up(token, code, source)
        except Throttled as error:
            raise _throttled(error) from None
        except LoginRefused as error:
            _log.warning("A code from %s was refused", source_of(source))
            raise self._unauthenticated(str(error), "login-refused") from None
        _log.info("%s gave a code from %s", session.name, source_of(source))
        return session

    def end(self, caller: Caller) -> None:
        """End the token with which `caller` came."""
        kind, _, hashed = caller.handle.partition(" ")
        if kind == "session" and self.users is not None:
            self.users.end(hashed)
        elif kind == "token":
            self.grants.end_token(bytes.fromhex(hashed))

    def issue_token(self, arrived: Arrived, source: str, grant_id: str | None) -> dict[str, Json]:
        """Return a token of a grant to whoever proves to hold its key."""
        place = source_of(source)
        try:
            held = self._held_by_key(arrived, grant_id)
            self._check_held(held)
        except Refusal as refusal:
            self._count_failure(place, refusal)
            raise
        grant, now_ms = held.grant, self._now_ms()
        token, ends_ms = self.grants.new_token(grant, round(self.settings.token_s * 1000))
        answer: dict[str, Json] = {"token": token, "token_type": "DPoP", "ends_ms": ends_ms, "time_ms": now_ms, "nonce": self.nonce}
        answer |= {"grant": grant_to_wire(held), "is_reduce_only": grant.is_reduce_only(now_ms)}
        if warning := self._warning(grant, now_ms):
            answer["warning"] = warning
        return answer

    def _held_by_key(self, arrived: Arrived, grant_id: str | None) -> Held:
        try:
            public = key_of(_proof_of(arrived))
        except ProofError as error:
            raise self._unproven(error) from None
        found = self.grants.of_key(public)
        self._proven(public, arrived, None, is_granted=bool(found))
        wanted = [held for held in found if held.grant.id == grant_id] if grant_id else found
        live = [held for held in wanted if held.revoked_ms is None and not held.grant.is_over(self._now_ms())] or wanted[-1:]
        if not live:
            raise self._unauthenticated("No grant belongs to this key: have one issued to its public half.", "no-such-grant")
        if len(live) > 1:
            names = ", ".join(held.grant.id for held in live)
            raise Refusal(400, "bad-request", f"This key has several grants ({names}): say which one, as grant.")
        return live[0]

    def _warning(self, grant: Grant, now_ms: int) -> str | None:
        if grant.is_reduce_only(now_ms):
            said = f"Grant {grant.id} ended on {moment(grant.ends_ms)}: it only closes positions, until {moment(grant.reduce_until_ms)}."
        elif now_ms >= grant.ends_ms - WARN_MS:
            said = (
                f"Grant {grant.id} ends on {moment(grant.ends_ms)}: have another one issued before, after it positions can only be closed."
            )
        else:
            return None
        now_s = self._monotonic()
        if now_s - self._warned.get(grant.id, -_WARN_EVERY_S) >= _WARN_EVERY_S:
            self._warned[grant.id] = now_s
            _log.warning("%s", said)
        return said

    def is_live(self, caller: Caller) -> bool:
        """Say whether the token with which `caller` came is still good; for answers that go on for minutes."""
        kind, _, hashed = caller.handle.partition(" ")
        if kind == "token":
            held = self.grants.of_token(bytes.fromhex(hashed))
            return held is not None and held.revoked_ms is None and not held.grant.is_over(self._now_ms())
        if kind == "session":
            return self.users is not None and self.users.is_live(hashed)
        if kind == "reader":
            return self.grants.reader(bytes.fromhex(hashed)) is not None
        return kind == "owner"

    # -- may they

    def authorise(self, caller: Caller, method: str, rule: str) -> None:
        """Refuse a route that isn't for `caller`; a route that nobody wrote down is for nobody."""
        need = POLICY.get(("GET" if method == "HEAD" else method, rule))
        if need is None:
            raise Refusal(403, "role-missing", "Nobody may use this route.")
        if need is OPEN:
            return
        if not any(caller.has(role) for role in need.roles):
            wanted = " or ".join(sorted(need.roles))
            raise Refusal(403, "role-missing", f"This takes the role {wanted}; {caller.name} has {', '.join(sorted(caller.roles))}.")
        if need.is_fresh:
            self.require_fresh(caller)

    def require(self, caller: Caller, role: Role, *, is_fresh: bool = False) -> None:
        """Refuse a caller without `role`, or one whose second factor isn't fresh where that is asked for."""
        if not caller.has(role):
            raise Refusal(403, "role-missing", f"This takes the role {role}; {caller.name} has {', '.join(sorted(caller.roles))}.")
        if is_fresh:
            self.require_fresh(caller)

    def require_fresh(self, caller: Caller) -> None:
        """Refuse whoever gave no code lately; a bot never did."""
        if not caller.is_second_factor_fresh:
            raise Refusal(403, "second-factor-needed", "This takes a person and a code of now: POST /v1/login/code, then send it again.")

    def check_order(
        self,
        caller: Caller,
        request: Mapping[str, object],
        *,
        account: int,
        is_reducing: bool,
        key: str,
        target_magic: int | None = None,
        target_symbol: str | None = None,
    ) -> None:
        """Refuse an order that `caller` may not send; count it if it isn't one that only reduces."""
        self.require(caller, "trade")
        if caller.kind == "person" and not is_reducing:
            self.require_fresh(caller)
        if caller.grant is None:
            return
        found = breach(caller.grant, request, account, self._now_ms(), is_reducing, target_magic, target_symbol)
        if found is not None:
            _log.warning("An order of %s was refused: %s", caller.name, found.detail)
            raise Refusal(403, found.kind, found.detail, limit=found.limit)
        if not is_reducing and not self.grants.count_order(caller.grant, key):
            said = f"Grant {caller.grant.id} allows {caller.grant.orders_a_day} orders a day: the next one after midnight UTC."
            _log.warning("An order of %s was refused: %s", caller.name, said)
            raise Refusal(403, "grant-limit", said, limit="orders_a_day")


def _proof_of(arrived: Arrived) -> str:
    return {name.lower(): value for name, value in arrived.headers.items()}.get("dpop", "")


def grant_to_wire(held: Held) -> dict[str, Json]:
    """Return what may be shown of a grant."""
    grant = held.grant
    return {
        "id": grant.id,
        "name": grant.name,
        "public_key": held.public,
        "account": grant.account,
        "symbols": list(grant.symbols),
        "magics": [*magic_texts(grant)],
        "volume": grant.volume,
        "orders_a_day": grant.orders_a_day,
        "roles": [*sorted(grant.roles)],
        "issued_by": grant.issued_by,
        "starts_ms": grant.starts_ms,
        "ends_ms": grant.ends_ms,
        "reduce_until_ms": grant.reduce_until_ms,
        "revoked_ms": held.revoked_ms,
    }


# -- in a request


def caller_or_none() -> Caller | None:
    """Return who sent the present request, None on an open route without credentials."""
    found = g.get("caller")
    assert found is None or isinstance(found, Caller)
    return found


def current() -> Caller:
    """Return who sent the present request."""
    found = caller_or_none()
    assert found is not None
    return found


def arrived_now(auth: Auth) -> Arrived:
    """Return the present request as a proof must describe it."""
    headers = dict(request.headers.items())
    return Arrived(
        method=request.method, url=request.url, headers=headers, body=request.get_data(cache=True), origins=auth.settings.origins
    )


def identify(auth: Auth) -> None:
    """Find out who sent the present request and whether they may; for `before_request`."""
    rule = None if request.url_rule is None else request.url_rule.rule
    g.caller = None
    is_open = rule is not None and (POLICY.get((request.method, rule)) is OPEN or rule.startswith(OPEN_RULES))
    if is_open and (rule != "/health" or "Authorization" not in request.headers):
        return
    arrived = arrived_now(auth)
    g.caller = auth.authenticate(arrived.method, arrived.url, arrived.headers, arrived.body, request.remote_addr or "")
    if rule is not None and request.method != "OPTIONS":
        auth.authorise(g.caller, request.method, rule)
