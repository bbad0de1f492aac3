"""Who may call: people, bots and Prometheus, and everything that somebody else might try."""

import base64
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pyotp
import pytest
from flask import Response
from flask.testing import FlaskClient
from flask_openapi3.openapi import OpenAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from btcbot.core.errors import BtcbotError
from btcbot.security.grants import DAY_MS, REDUCE_MS
from btcbot.security.keys import BotKey, Prover, make_key
from btcbot.security.passwords import Cost
from btcbot.security.sealing import Sealer
from btcbot.security.users import Users
from btcbot.terminal.contract import AccountInfo, TradePosition
from btcbot.terminal.wire import Answer
from mt5_server import auth_routes, problems
from mt5_server.admission import admission
from mt5_server.auth import OPEN, POLICY, Auth, AuthSettings, Caller, current, hash_token, identify
from mt5_server.grants import Grants, magic_ranges
from mt5_server.refusal import Refusal

START_MS = 1_790_000_000_000
PASSWORD = "correct horse battery staple"
OWNER = "owner-token-of-enough-characters-0123456789"
HOME, AWAY, EVIL = "192.0.2.1", "198.51.100.7", "203.0.113.66"
ORDER: dict[str, object] = {"action": 1, "symbol": "BTCUSD", "magic": 7001, "volume": 0.5, "type": 0}
ACCOUNT = 5001


class World:
    """A server's auth with a clock of its own, one admin, and an app with a few routes."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.now_ms, self.changes = folder, START_MS, changes
        self.orders: list[bytes] = []
        self.open()
        assert self.auth.users is not None
        enrolment = self.auth.users.enrol("anna")
        self.seed, self.recovery_codes = enrolment.seed, enrolment.recovery_codes
        self.auth.users.add(enrolment, PASSWORD, ["read", "trade", "admin"], self.code())
        self.later(30)

    def open(self) -> None:
        """Start the server, which reads its files."""

        def clock() -> int:
            return self.now_ms

        users = Users(self.folder / "people.sqlite3", Sealer(bytes(32)), Cost(4, 1, 1), now_ms=clock)
        grants = Grants(self.folder / "grants.sqlite3", clock)
        settings = AuthSettings(folder=self.folder, **self.changes)
        self.auth = Auth(grants, users, OWNER, settings, clock, lambda: self.now_ms / 1000)
        self.app = self.make_app()
        self.web: FlaskClient = self.app.test_client()

    def make_app(self) -> OpenAPI:
        """Return an app with the routes of auth and a few others."""
        app = OpenAPI("auth_test", validation_error_callback=problems.invalid)
        problems.register(app)
        app.before_request(lambda: identify(self.auth))
        auth_routes.register(app, self.auth)

        def order() -> Response:
            admit = admission(self.auth, FakeGate())
            from flask import request

            admit(SimpleNamespace(key=request.headers["Idempotency-Key"], request=request.get_json()["request"]), current(), True)
            self.orders.append(request.get_data())
            return Response("{}", content_type="application/json")

        def plain(**path: str) -> Response:
            return Response("{}", content_type="application/json")

        app.add_url_rule("/v1/order", "order", order, methods=["POST"])
        for method, rule in (
            ("GET", "/health"),
            ("GET", "/v1/account"),
            ("GET", "/metrics"),
            ("POST", "/v1/guard/lift"),
            ("GET", "/v1/secret"),
        ):
            app.add_url_rule(rule, rule, plain, methods=[method])
        app.add_url_rule("/v1/order/<key>", "look up", plain)
        return app

    def restart(self) -> None:
        """Stop the server and start it anew."""
        self.auth.close()
        self.open()

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.now_ms += round(seconds * 1000)

    def code(self) -> str:
        """Return what the phone shows."""
        return pyotp.TOTP(self.seed).at(self.now_ms // 1000)

    def login(self, user: str = "anna", password: str = PASSWORD, code: str | None = None, source: str = HOME) -> TestResponse:
        """Try to log in."""
        body = {"user": user, "password": password, "code": self.code() if code is None else code}
        return self.web.post("/v1/login", json=body, environ_base={"REMOTE_ADDR": source})

    def session(self) -> dict[str, str]:
        """Return the headers of a person who logged in right now."""
        self.later(30)
        answer = self.login()
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.get_json()['token']}"}

    def grant(self, key: BotKey, **changes: Any) -> dict[str, Any]:
        """Have a grant issued by the person."""
        body = {
            "name": "trend",
            "public_key": key.public,
            "account": ACCOUNT,
            "symbols": ["BTCUSD"],
            "magics": ["7000-7099"],
            "volume": 0.5,
        }
        body |= {"orders_a_day": 3, "days": 30, "roles": ["trade"]} | changes
        answer = self.web.post("/v1/grants", json=body, headers=self.session())
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.get_json()
        return found


class FakeGate:
    """A terminal with one position of another bot."""

    def batch(self, calls: Any, timeout_s: float | None = None) -> list[Answer]:
        """Answer what admission asks."""
        info = AccountInfo((ACCOUNT, *AccountInfo.__match_args__[1:]))
        return [Answer(info if name == "account_info" else (), (1, "Success")) for name, _, _ in calls]


class Bot:
    """A program with a key, which does what btcbot's client does."""

    def __init__(self, world: World, key: BotKey) -> None:
        self.world, self.key, self.token = world, key, ""
        self.prover = Prover(key, lambda: world.now_ms / 1000)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        proof: str | None = None,
    ) -> TestResponse:
        """Send one request with its proof."""
        token, headers = self.token if token is None else token, dict(headers or {})
        made = self.prover.proof(method, f"http://localhost{path}", body, token or None, headers) if proof is None else proof
        headers |= {"DPoP": made} | ({"Authorization": f"DPoP {token}"} if token else {})
        return self.world.web.open(path, method=method, data=body, headers=headers, content_type="application/json" if body else None)

    def renew(self, body: bytes = b"{}") -> TestResponse:
        """Get a token; the first time the server names its nonce."""
        answer = self.ask("POST", "/v1/token", body, token="")
        if answer.status_code == 401 and self.prover.adopt(answer.get_json()):
            answer = self.ask("POST", "/v1/token", body, token="")
        if answer.status_code == 200:
            self.token = answer.get_json()["token"]
        return answer

    def order(self, key: str = "key-1", **changes: Any) -> TestResponse:
        """Send an order."""
        return self.ask("POST", "/v1/order", json.dumps({"request": ORDER | changes}).encode(), {"Idempotency-Key": key})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return a server with one person."""
    world = World(tmp_path)
    yield world
    world.auth.close()


@pytest.fixture
def bot(world: World, tmp_path: Path) -> Bot:
    """Return a bot with a grant and a token."""
    bot = Bot(world, make_key(tmp_path / "bot.pem"))
    world.grant(bot.key)
    assert bot.renew().status_code == 200
    return bot


def refused(answer: TestResponse, status: int, slug: str) -> dict[str, Any]:
    """Check that an answer is a problem of that kind, and return it."""
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.get_json()
    assert found["type"].endswith(f":{slug}"), found
    return found


# ---- people


def test_a_person_logs_in_and_out(world: World) -> None:
    headers = world.session()
    me = world.web.get("/v1/me", headers=headers).get_json()
    assert (me["name"], me["kind"], me["roles"], me["is_second_factor_fresh"]) == ("anna", "person", ["admin", "read", "trade"], True)
    assert world.web.post("/v1/logout", headers=headers).status_code == 204
    refused(world.web.get("/v1/me", headers=headers), 401, "token-ended")


def test_each_code_is_taken_once_and_by_one_only(world: World) -> None:
    world.later(30)
    code = world.code()
    assert world.login(code=code).status_code == 200
    refused(world.login(code=code), 401, "login-refused")
    world.restart()
    refused(world.login(code=code), 401, "login-refused")


def test_a_phone_may_be_one_step_off(world: World) -> None:
    for late_s in (-60, -30, 0, 30, 60):
        world.later(300)
        answer = world.login(code=pyotp.TOTP(world.seed).at(world.now_ms // 1000 + late_s))
        assert answer.status_code == (200 if abs(late_s) <= 30 else 401)


def test_a_recovery_code_works_once_and_for_its_owner(world: World) -> None:
    code = world.recovery_codes[0]
    answer = world.login(code=code.upper().replace("-", " "))
    assert answer.get_json()["recovery_codes_left"] == 9
    refused(world.login(code=code), 401, "login-refused")
    world.restart()
    refused(world.login(code=code), 401, "login-refused")


def test_refusals_tell_nothing_apart(world: World) -> None:
    said = [world.login("nobody").get_json(), world.login(password="wrong password here").get_json(), world.login(code="000000").get_json()]
    assert said[0] == said[1] == said[2]


def test_an_unknown_name_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    users = Users(tmp_path / "people.sqlite3", Sealer(bytes(32)), Cost(10, 8, 1))
    enrolment = users.enrol("anna")
    users.add(enrolment, PASSWORD, ["read"], pyotp.TOTP(enrolment.seed).now())
    times: dict[str, list[float]] = {"anna": [], "nobody": []}
    for _ in range(15):
        for name, found in times.items():
            started = time.perf_counter()
            assert not users._is_right(name, "wrong password here", "000000", 1)
            found.append(time.perf_counter() - started)
    slow, fast = sorted(statistics.median(found) for found in times.values())
    assert fast > 0.4 * slow  # a name that isn't checked would be a hundred times faster
    users.close()


def test_guessing_locks_its_place_out_and_not_the_owner(world: World) -> None:
    world.later(30)
    for _ in range(5):
        refused(world.login(code="000000", source=EVIL), 401, "login-refused")
    answer = world.login(source=EVIL)
    refused(answer, 429, "throttled")
    assert int(answer.headers["Retry-After"]) == 60
    assert world.login(source=HOME).status_code == 200
    world.restart()
    world.later(30)
    refused(world.login(source=EVIL), 429, "throttled")
    world.later(60)
    assert world.login(source=EVIL).status_code == 200


def test_guessing_from_a_thousand_places_leaves_the_owners_own(world: World) -> None:
    world.session()  # the owner was here before
    for number in range(30):
        refused(world.login(code="000000", source=f"198.18.{number}.1"), 401, "login-refused")
    refused(world.login(source="198.18.99.1"), 429, "throttled")
    world.later(30)
    assert world.login(source=HOME).status_code == 200


def test_a_session_is_fresh_for_minutes_and_ends_with_the_day(world: World) -> None:
    headers = world.session()
    assert world.web.post("/v1/guard/lift", headers=headers).status_code == 200
    world.later(301)
    refused(world.web.post("/v1/guard/lift", headers=headers), 403, "second-factor-needed")
    assert world.web.get("/v1/account", headers=headers).status_code == 200
    answer = world.web.post("/v1/login/code", json={"code": world.code()}, headers=headers)
    assert answer.get_json() == {"fresh_until_ms": world.now_ms + 300_000}
    assert world.web.post("/v1/guard/lift", headers=headers).status_code == 200
    refused(world.web.post("/v1/login/code", json={"code": world.code()}, headers=headers), 401, "login-refused")
    world.later(8 * 3600)
    refused(world.web.get("/v1/account", headers=headers), 401, "token-ended")


def test_wrong_codes_end_a_stolen_session(world: World) -> None:
    headers = world.session()
    for _ in range(5):
        refused(
            world.web.post("/v1/login/code", json={"code": "000000"}, headers=headers, environ_base={"REMOTE_ADDR": EVIL}),
            401,
            "login-refused",
        )
    refused(world.web.get("/v1/account", headers=headers), 401, "token-ended")
    other = world.session()
    world.web.post("/v1/login/code", json={"code": "000000"}, headers=other, environ_base={"REMOTE_ADDR": EVIL})
    answer = world.web.post("/v1/login/code", json={"code": "000000"}, headers=other, environ_base={"REMOTE_ADDR": EVIL})
    refused(answer, 429, "throttled")


def test_sessions_live_through_a_restart_and_roles_change_at_once(world: World) -> None:
    headers = world.session()
    world.restart()
    assert world.web.get("/v1/account", headers=headers).status_code == 200
    assert world.auth.users is not None
    world.auth.users.remove("anna")
    refused(world.web.get("/v1/account", headers=headers), 401, "token-ended")


# ---- bots


def test_a_bot_renews_by_itself_and_trades_within_its_grant(world: World, bot: Bot) -> None:
    assert bot.ask("GET", "/v1/account?x=1").status_code == 200
    assert bot.order().status_code == 200
    me = bot.ask("GET", "/v1/me").get_json()
    assert me["kind"] == "bot" and me["name"] == f"grant {me['grant']['id']}" and me["roles"] == ["trade"]
    world.later(601)
    refused(bot.ask("GET", "/v1/account"), 401, "token-ended")
    assert bot.renew().status_code == 200
    assert bot.ask("GET", "/v1/account").status_code == 200
    assert bot.ask("POST", "/v1/logout").status_code == 204
    refused(bot.ask("GET", "/v1/account"), 401, "token-ended")


def test_a_stolen_token_is_worth_nothing_without_its_key(world: World, bot: Bot, tmp_path: Path) -> None:
    thief = Bot(world, make_key(tmp_path / "thief.pem"))
    thief.prover = Prover(thief.key, lambda: world.now_ms / 1000)
    thief.prover.adopt({"nonce": world.auth.nonce, "time_ms": world.now_ms})
    assert refused(thief.ask("GET", "/v1/account", token=bot.token), 401, "proof-refused")["reason"] == "key"
    refused(world.web.get("/v1/account", headers={"Authorization": f"Bearer {bot.token}"}), 401, "token-ended")
    answer = world.web.get("/v1/account", headers={"Authorization": f"DPoP {bot.token}"})
    assert refused(answer, 401, "proof-refused")["reason"] == "form"
    assert answer.headers["WWW-Authenticate"].startswith("DPoP")


def test_a_request_that_was_heard_can_t_be_sent_again_or_changed(world: World, bot: Bot) -> None:
    body = json.dumps({"request": ORDER}).encode()
    headers = {"Idempotency-Key": "key-1"}
    proof = bot.prover.proof("POST", "http://localhost/v1/order", body, bot.token, headers)
    assert bot.ask("POST", "/v1/order", body, headers, proof=proof).status_code == 200

    def again(method: str = "POST", path: str = "/v1/order", body: bytes = body, **changes: str) -> str:
        answer = bot.ask(method, path, body, {**headers, **{name.replace("_", "-"): value for name, value in changes.items()}}, proof=proof)
        return str(refused(answer, 401, "proof-refused")["reason"])

    assert again() == "replay"
    assert again(body=body.replace(b"0.5", b"0.4")) == "body"
    assert again(body=b"") == "body"
    assert again(path="/v1/guard/lift") == "url"
    assert again("GET", "/v1/account") == "method"
    assert again(Idempotency_Key="key-2") == "headers"
    assert again(Lease_Epoch="7") == "headers"
    world.restart()  # forgets what it saw, and takes no proof of its former self
    assert again() == "nonce"
    world.later(400)
    bot.prover.adopt({"nonce": world.auth.nonce, "time_ms": world.now_ms})
    assert bot.ask("GET", "/v1/account").status_code == 200
    assert len(world.orders) == 1


def test_a_clock_that_is_wrong_is_put_right_by_the_answer(world: World, bot: Bot) -> None:
    def off(seconds: float) -> float:
        return world.now_ms / 1000 + seconds

    for off_s in (-61, 61, 86_400 * 365):
        slow = Bot(world, bot.key)
        slow.prover = Prover(bot.key, partial(off, off_s))
        slow.prover._nonce = world.auth.nonce
        found = refused(slow.ask("POST", "/v1/token", b"{}", token=""), 401, "proof-refused")
        assert (found["reason"], found["time_ms"]) == ("clock", world.now_ms)
        assert slow.renew().status_code == 200
        assert slow.ask("GET", "/v1/account").status_code == 200


def test_a_clock_that_is_set_back_makes_no_old_proof_young(world: World, bot: Bot) -> None:
    proof = bot.prover.proof("GET", "http://localhost/v1/account", token=bot.token)
    assert bot.ask("GET", "/v1/account", proof=proof).status_code == 200
    nonce = world.auth.nonce
    world.auth._monotonic = lambda: START_MS / 1000 + 10_000  # hours later the clock says the same
    assert refused(bot.ask("GET", "/v1/account", proof=proof), 401, "proof-refused")["reason"] == "nonce"
    assert world.auth.nonce != nonce


def test_a_proof_for_another_server_is_worth_nothing_here(world: World, bot: Bot) -> None:
    world.auth.settings = replace(world.auth.settings, origins=frozenset({"https://mt5.example:8443"}))
    assert refused(bot.ask("GET", "/v1/account"), 401, "proof-refused")["reason"] == "url"
    proof = bot.prover.proof("GET", "https://mt5.example:8443/v1/account", token=bot.token)
    assert bot.ask("GET", "/v1/account", proof=proof).status_code == 200


def test_tokens_need_a_grant_of_the_key(world: World, tmp_path: Path) -> None:
    stranger = Bot(world, make_key(tmp_path / "stranger.pem"))
    refused(stranger.renew(), 401, "no-such-grant")
    refused(world.web.post("/v1/token", json={}), 401, "proof-refused")
    proof = stranger.prover.proof("POST", "http://localhost/v1/token", b"{}")
    forged = proof.rpartition(".")[0] + "." + base64.urlsafe_b64encode(bytes(64)).decode().rstrip("=")
    assert refused(stranger.ask("POST", "/v1/token", b"{}", proof=forged), 401, "proof-refused")["reason"] == "signature"
    first, second = world.grant(stranger.key), world.grant(stranger.key, name="other")
    answer = stranger.renew()
    refused(answer, 400, "bad-request")
    assert first["id"] in answer.text and second["id"] in answer.text
    assert stranger.renew(json.dumps({"grant": second["id"]}).encode()).get_json()["grant"]["id"] == second["id"]
    refused(stranger.renew(b'{"grant": "g-00000000"}'), 401, "no-such-grant")


def test_revoking_works_at_once_and_needs_no_code(world: World, bot: Bot) -> None:
    grant = bot.ask("GET", "/v1/grants").get_json()["grants"][0]
    headers = world.session()
    world.later(301)
    caller = world.auth.authenticate(
        "GET",
        "http://localhost/v1/me",
        {"Authorization": f"DPoP {bot.token}", "DPoP": bot.prover.proof("GET", "http://localhost/v1/me", token=bot.token)},
        b"",
        HOME,
    )
    assert world.auth.is_live(caller)
    assert world.web.delete(f"/v1/grants/{grant['id']}", headers=headers).status_code == 204
    assert not world.auth.is_live(caller)
    refused(bot.ask("GET", "/v1/account"), 401, "token-ended")
    refused(bot.renew(), 401, "grant-revoked")
    refused(world.web.delete("/v1/grants/g-00000000", headers=headers), 404, "no-such-grant")


def test_a_bot_may_give_its_own_grant_back_and_no_other(world: World, bot: Bot, tmp_path: Path) -> None:
    other = world.grant(make_key(tmp_path / "other.pem"))
    own = bot.ask("GET", "/v1/grants").get_json()["grants"]
    assert [grant["name"] for grant in own] == ["trend"] and own[0]["id"] != other["id"]
    refused(bot.ask("DELETE", f"/v1/grants/{other['id']}"), 403, "role-missing")
    assert bot.ask("DELETE", f"/v1/grants/{own[0]['id']}").status_code == 204
    refused(bot.renew(), 401, "grant-revoked")


def test_the_end_of_a_grant_is_announced_then_it_only_reduces_then_it_is_over(
    world: World, bot: Bot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mt5_server.auth")
    grant = world.auth.grants.everything()[0].grant
    assert "warning" not in bot.renew().get_json()
    world.now_ms = grant.ends_ms - DAY_MS
    for _ in range(3):
        answer = bot.renew().get_json()
        assert "ends on" in answer["warning"] and not answer["is_reduce_only"]
    assert sum("ends on" in record.getMessage() for record in caplog.records) == 1  # an hour between two lines of the log
    world.now_ms = grant.ends_ms
    answer = bot.renew().get_json()
    assert "only closes positions" in answer["warning"] and answer["is_reduce_only"]
    refused(bot.order(), 403, "reduce-only")
    assert bot.ask("GET", "/v1/account").status_code == 200
    world.now_ms = grant.ends_ms + REDUCE_MS - 1000
    answer = bot.renew().get_json()
    assert answer["ends_ms"] == grant.reduce_until_ms
    world.later(1)
    refused(bot.ask("GET", "/v1/account"), 401, "token-ended")
    refused(bot.renew(), 401, "grant-ended")


def test_orders_beyond_a_grant_are_refused(bot: Bot) -> None:
    beyond: list[tuple[dict[str, Any], str]] = [
        ({"volume": 0.51}, "volume"),
        ({"volume": None}, "volume"),
        ({"symbol": "ETHUSD"}, "symbols"),
    ]
    for changes, limit in (*beyond, ({"magic": 7100}, "magics"), ({"magic": 0}, "magics")):
        assert refused(bot.order("key-1", **changes), 403, "grant-limit")["limit"] == limit


def test_orders_of_a_day_are_counted_once_for_each_key_and_survive_a_restart(world: World, bot: Bot) -> None:
    world.now_ms = (world.now_ms // DAY_MS + 1) * DAY_MS + 3_600_000
    bot.renew()
    for number in range(3):
        assert bot.order(f"key-{number}").status_code == 200
    assert bot.order("key-1").status_code == 200  # sent again
    assert refused(bot.order("key-4"), 403, "grant-limit")["limit"] == "orders_a_day"
    world.restart()
    bot.prover.adopt({"nonce": world.auth.nonce, "time_ms": world.now_ms})
    refused(bot.order("key-4"), 403, "grant-limit")
    grant = world.auth.grants.everything()[0].grant
    caller = Caller(name="grant", kind="bot", roles=grant.roles, grant=grant)
    world.auth.check_order(caller, ORDER | {"volume": 99.0}, account=ACCOUNT, is_reducing=True, key="key-5")  # a close is never counted
    world.later(86_400)
    bot.renew()
    assert bot.order("key-4").status_code == 200


def test_what_an_order_names_by_its_ticket_must_be_the_bots_own(world: World, bot: Bot) -> None:
    held = world.auth.grants.everything()[0]
    caller = Caller(name="grant", kind="bot", roles=held.grant.roles, grant=held.grant)
    fields: dict[str, object] = dict.fromkeys(TradePosition.__match_args__, 0)

    def position(magic: int, symbol: str = "BTCUSD") -> TradePosition:
        return TradePosition(tuple((fields | {"magic": magic, "symbol": symbol, "comment": "", "external_id": ""}).values()))

    class Gate(FakeGate):
        found: tuple[object, ...] = ()
        account: object = None

        def batch(self, calls: Any, timeout_s: float | None = None) -> list[Answer]:
            first = super().batch(calls[:1])[0]
            assert all(call[0] in ("positions_get", "orders_get") and call[2]["ticket"] > 0 for call in calls[1:])
            return [
                first if self.account is None else Answer(None, (-10004, "No IPC connection")),
                *(Answer(self.found, (1, "")) for _ in calls[1:]),
            ]

    gate = Gate()
    admit = admission(world.auth, gate)

    def admitted(is_entry: bool = False, **changes: object) -> str | None:
        try:
            admit(SimpleNamespace(key="k", request=ORDER | changes), caller, is_entry)
        except Refusal as refusal:
            return refusal.type
        return None

    gate.found = (position(7001),)
    assert admitted(position=5, magic=0) is None
    gate.found = (position(1),)
    assert admitted(position=5) == admitted(action=10, position=5, position_by=6) == admitted(action=6, position=5) == "grant-limit"
    assert admitted(action=8, order=5, symbol="") == "grant-limit"
    gate.found = (position(7001, "ETHUSD"),)
    assert admitted(position=5) == "grant-limit"
    gate.found = ()
    assert admitted(action=8, order=5, symbol="") is None
    gate.account = False
    assert admitted(position=5) == "terminal-unreadable"
    person = Caller(name="anna", kind="person", roles=frozenset({"trade"}))
    with pytest.raises(Refusal, match="a code of now"):
        admit(SimpleNamespace(key="k", request=ORDER), person, True)
    admit(SimpleNamespace(key="k", request=ORDER), person, False)  # what lowers risk needs no code
    admit(SimpleNamespace(key="k", request=ORDER), replace(person, is_second_factor_fresh=True), True)


def test_a_grant_takes_a_person_with_a_code_of_now(world: World, bot: Bot, tmp_path: Path) -> None:
    body = {
        "name": "x",
        "public_key": bot.key.public,
        "account": 1,
        "symbols": ["A"],
        "magics": ["1"],
        "volume": 1,
        "orders_a_day": 1,
        "days": 1,
        "roles": ["read"],
    }
    raw = json.dumps(body).encode()
    refused(bot.ask("POST", "/v1/grants", raw), 403, "role-missing")  # a bot can't make itself another one
    headers = world.session()
    world.later(301)
    refused(world.web.post("/v1/grants", json=body, headers=headers), 403, "second-factor-needed")
    headers = world.session()
    wrong: list[dict[str, Any]] = [
        {"roles": ["admin"]},
        {"days": 0},
        {"volume": "x"},
        {"magics": ["x"]},
        {"public_key": "x"},
        {"symbols": []},
    ]
    for changes in (*wrong, {"more": 1}, {"volume": float("nan")}):
        assert world.web.post("/v1/grants", json=body | changes, headers=headers).status_code in (400, 422), changes
    assert world.web.post("/v1/grants", json=body, headers=headers).status_code == 201
    assert len(world.web.get("/v1/grants", headers=headers).get_json()["grants"]) == 2


# ---- the owner's token, Prometheus, and what everybody is


def test_metrics_have_a_token_of_their_own(world: World) -> None:
    token = world.auth.grants.new_reader("prometheus")
    headers = {"Authorization": f"Bearer {token}"}
    assert world.web.get("/metrics", headers=headers).status_code == 200
    for path in ("/v1/account", "/v1/grants"):
        refused(world.web.get(path, headers=headers), 403, "role-missing")
    caller = world.auth.authenticate("GET", "http://localhost/metrics", headers, b"", HOME)
    assert (caller.name, caller.kind, world.auth.is_live(caller)) == ("metrics prometheus", "metrics", True)
    with pytest.raises(BtcbotError, match="already"):
        world.auth.grants.new_reader("prometheus")
    with pytest.raises(BtcbotError, match="no name"):
        world.auth.grants.new_reader("Prometheus server")
    assert world.auth.grants.revoke_reader("prometheus") and not world.auth.grants.revoke_reader("prometheus")
    refused(world.web.get("/metrics", headers=headers), 401, "token-ended")
    assert not world.auth.is_live(caller)
    assert token.encode() not in b"".join(path.read_bytes() for path in world.folder.iterdir())


def test_the_owner_of_a_simulated_terminal_may_everything(world: World) -> None:
    headers = {"Authorization": f"Bearer {OWNER}"}
    assert world.web.get("/v1/me", headers=headers).get_json()["kind"] == "owner"
    assert world.web.post("/v1/guard/lift", headers=headers).status_code == 200
    refused(world.web.post("/v1/login/code", json={"code": "000000"}, headers=headers), 403, "role-missing")
    assert world.web.post("/v1/logout", headers=headers).status_code == 204  # the owner's token ends with the process
    assert world.auth.is_live(world.auth.authenticate("GET", "http://localhost/", headers, b"", HOME))
    with Auth.open(AuthSettings(), OWNER) as auth:
        assert not auth.has_people
        assert auth.authenticate("GET", "http://h/", headers, b"", HOME).kind == "owner"
        with pytest.raises(Refusal, match="no people"):
            auth.login("anna", PASSWORD, "000000", HOME)
        with pytest.raises(Refusal, match="no people"):
            auth.step_up("bts_x", "000000", HOME)
    with pytest.raises(BtcbotError, match="at least 32"):
        Auth.open(AuthSettings(), "short-token")


HEADERS = [None, "", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", f"Basic {OWNER}", f"Bearer {OWNER}x", f"Bearer {OWNER[:-1]}", OWNER]
HEADERS += ["DPoP btg_x", "Bearer bts_x", "Bearer btm_x", "DPoP bts_x", "Bearer \udce9"]


def test_nothing_without_credentials(world: World) -> None:
    for header in HEADERS:
        _nothing_with(world, {} if header is None else {"Authorization": header})
    assert world.web.get("/health").status_code == 200


def _nothing_with(world: World, headers: dict[str, str]) -> None:
    for rule in world.app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}:
            need = POLICY.get((method, rule.rule))
            if need is OPEN or rule.rule.startswith(("/openapi", "/static")):
                continue
            path = rule.rule.replace("<id>", "g-1").replace("<key>", "k")
            answer = world.web.open(path, method=method, headers=headers)
            assert answer.status_code == 401, (method, rule.rule)
            assert "WWW-Authenticate" in answer.headers
    assert world.web.get("/nothing", headers=headers).status_code == 401


def test_roles_open_what_they_should_and_nothing_else(world: World) -> None:
    """Walk every route that is written down, with each role."""
    every = {
        role: Caller(name=role, kind="person", roles=frozenset({role}), is_second_factor_fresh=fresh)
        for role in ("read", "trade", "admin", "metrics")
        for fresh in (True,)
    }
    opened = {role: set[tuple[str, str]]() for role in every}
    for route in POLICY:
        for role, caller in every.items():
            try:
                world.auth.authorise(caller, *route)
                opened[role].add(route)
            except Refusal as refusal:
                assert (refusal.status, refusal.type) == (403, "role-missing")
    assert opened["metrics"] == {route for route, need in POLICY.items() if need is OPEN or "metrics" in need.roles}
    assert ("POST", "/v1/order") in opened["trade"] - opened["admin"] - opened["read"]
    assert {("POST", "/v1/grants"), ("POST", "/v1/guard/lift")} <= opened["admin"] - opened["trade"] - opened["read"]
    assert ("POST", "/v1/guard/halt") in opened["trade"] & opened["admin"]
    assert not any(method in ("POST", "DELETE", "PUT") for method, rule in opened["read"] - opened["metrics"] if rule != "/v1/call")
    with pytest.raises(Refusal, match="Nobody"):
        world.auth.authorise(every["admin"], "GET", "/v1/secret")
    world.auth.authorise(every["read"], "HEAD", "/v1/account")


def test_a_route_that_nobody_wrote_down_is_for_nobody(world: World) -> None:
    headers = {"Authorization": f"Bearer {OWNER}"}
    refused(world.web.get("/v1/secret", headers=headers), 403, "role-missing")
    assert world.web.get("/nothing", headers=headers).status_code == 404


def test_requests_are_limited_for_each_caller(tmp_path: Path) -> None:
    world = World(tmp_path, rate=2.0, burst=5.0)
    headers = world.session()
    assert [world.web.get("/v1/account", headers=headers).status_code for _ in range(6)] == [200] * 5 + [429]
    answer = world.web.get("/v1/account", headers=headers)
    assert (refused(answer, 429, "throttled")["retry_s"], answer.headers["Retry-After"]) == (1, "1")
    assert world.web.get("/v1/account", headers=world.session()).status_code == 200
    world.auth.close()


def test_wrong_credentials_are_limited_by_source_and_right_ones_pass(tmp_path: Path) -> None:
    world = World(tmp_path, failures=3.0, failures_rate=1.0)
    headers = world.session()
    wrong = {"Authorization": "Bearer bts_wrong"}
    assert [world.web.get("/v1/account", headers=wrong).status_code for _ in range(5)] == [401] * 3 + [429] * 2
    assert world.web.get("/v1/account", headers=headers).status_code == 200
    assert world.web.get("/v1/account").status_code == 401
    assert world.web.get("/v1/account", headers=wrong, environ_base={"REMOTE_ADDR": EVIL}).status_code == 401
    world.auth.close()


def test_no_secret_in_logs_answers_or_files(world: World, bot: Bot, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    headers = world.session()
    session = headers["Authorization"].partition(" ")[2]
    code = world.recovery_codes[3]
    answers = [
        world.login(password="a wrong password"),
        world.login(code=code, password="a wrong password"),
        world.web.get("/v1/me", headers=headers),
        world.web.get("/v1/grants", headers=headers),
        bot.ask("GET", "/v1/me"),
        bot.order(volume=9.0),
        world.web.get("/v1/account", headers={"Authorization": f"DPoP {bot.token}", "DPoP": "x" * 50}),
        world.web.get(f"/{session}", headers={"Authorization": "Bearer " + session[:-1]}),
    ]
    text = caplog.text + "".join(answer.text for answer in answers)
    stored = b"".join(path.read_bytes() for path in world.folder.iterdir() if path.suffix != ".pem")
    for secret in (PASSWORD, "a wrong password", code, world.seed, session, bot.token, OWNER):
        assert secret not in text
        assert secret.encode() not in stored
    assert hashlib.sha256(session.encode()).digest() in stored


# ---- parts


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_magics_are_read_or_refused(text: str) -> None:
    try:
        (first, last) = magic_ranges([text])[0]
    except BtcbotError:
        return
    assert first >= 0 and last >= 0 and str(first).lstrip("0") in text


@given(
    header=st.text(max_size=200),
    proof=st.text(max_size=300) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()),
)
@settings(max_examples=150, deadline=None)
def test_no_header_breaks_anything(header: str, proof: str) -> None:
    auth = _AUTH
    for scheme in ("Bearer ", "DPoP btg_", "dpop ", ""):
        with pytest.raises(Refusal) as caught:
            auth.authenticate("POST", "http://h/v1/order", {"Authorization": scheme + header, "DPoP": proof}, b"", HOME)
        assert caught.value.status in (401, 429)


@given(
    path=st.sampled_from(["/v1/login", "/v1/token", "/v1/login/code", "/v1/grants"]),
    body=st.dictionaries(
        st.sampled_from(["user", "password", "code", "grant", "name", "public_key", "magics", "symbols", "days"]),
        st.text(st.characters(), max_size=9) | st.integers() | st.floats() | st.none() | st.lists(st.text(max_size=3), max_size=2),
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_breaks_anything(world: World, path: str, body: dict[str, Any]) -> None:
    for headers in ({}, {"Authorization": f"Bearer {OWNER}"}):
        answer = world.web.post(path, data=json.dumps(body), content_type="application/json", headers=headers)
        assert answer.status_code in (400, 401, 403, 422, 429), answer.text
    assert world.login("\ud800", "\ud800", "\ud800").status_code in (400, 401, 422)


_AUTH = Auth.open(AuthSettings(), OWNER)


def test_a_weak_owner_token_is_refused() -> None:
    for weak in ("", "x" * 31, "x" * 40 + " ", "ü" * 40, "x" * 40 + "\n"):
        with pytest.raises(BtcbotError, match="at least 32"):
            hash_token(weak)


def test_a_proof_costs_little(world: World, bot: Bot) -> None:
    url, count = "http://localhost/v1/account", 60
    proofs = [bot.prover.proof("GET", url, token=bot.token) for _ in range(count)]
    started = time.perf_counter()
    for proof in proofs:
        world.auth.authenticate("GET", url, {"Authorization": f"DPoP {bot.token}", "DPoP": proof}, b"", HOME)
    assert (time.perf_counter() - started) / count < 0.02  # about 0.4 ms; generous, since other programs run beside the tests


def test_admins_see_all_grants_and_others_none(world: World, bot: Bot) -> None:
    assert world.auth.users is not None
    world.auth.users._connection.execute("UPDATE people SET roles = 'trade'")
    headers = world.session()
    refused(world.web.get("/v1/grants", headers=headers), 403, "role-missing")
    refused(world.web.delete(f"/v1/grants/{world.auth.grants.everything()[0].grant.id}", headers=headers), 403, "role-missing")
    person = world.auth.authenticate("GET", "http://localhost/", headers, b"", HOME)
    assert world.auth.is_live(person)
    world.auth.end(person)
    assert not world.auth.is_live(person)
    assert not world.auth.is_live(replace(person, handle="nothing"))


def test_proofs_with_another_algorithm_are_refused(world: World, bot: Bot) -> None:
    claims = jwt.decode(bot.prover.proof("GET", "http://localhost/v1/account", token=bot.token), options={"verify_signature": False})
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": bot.key.public.partition(":")[2]}
    cases: list[tuple[Any, str]] = [("x" * 64, "HS256"), (None, "none")]
    for key, algorithm in cases:
        proof = jwt.encode(claims, key, algorithm, headers={"typ": "dpop+jwt", "jwk": jwk})
        assert refused(bot.ask("GET", "/v1/account", proof=proof), 401, "proof-refused")["reason"] == "form"
