"""Auth in the whole server: every route has somebody it is for, and a grant's limits hold where orders are sent."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_terminal import FakeTwin, struct
from flask_openapi3.openapi import OpenAPI
from test_auth import Bot, World, refused
from werkzeug.test import TestResponse

from btcbot.security.keys import make_key
from btcbot.terminal.contract import TradePosition
from btcbot.terminal.journal import OrderJournal
from mt5_server.app import create_app
from mt5_server.assembly import assemble
from mt5_server.auth import OPEN, OPEN_RULES, POLICY
from mt5_server.gate import Gate


class Server(World):
    """The whole server around a terminal that executes everything."""

    def make_app(self) -> OpenAPI:
        """Return the real app."""
        self.terminal = FakeTwin()
        self.journal = OrderJournal(self.folder / "orders.sqlite3")
        gate = Gate.local(self.terminal, "NY+7")
        self.parts = assemble(gate, self.auth, self.journal, self.folder / "guard.sqlite3", streams=2, now_ms=lambda: self.now_ms)
        return create_app(self.parts)

    def close(self) -> None:
        """Stop it."""
        self.parts.hub.close()
        self.journal.close()
        self.auth.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a whole server with one person."""
    server = Server(tmp_path)
    yield server
    server.close()


def test_every_route_is_written_down_and_nothing_else(server: Server) -> None:
    routes = {
        (method, rule.rule)
        for rule in server.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith(OPEN_RULES)
    }
    assert routes == set(POLICY)


def test_no_route_answers_a_stranger(server: Server) -> None:
    for (method, rule), need in POLICY.items():
        if need is OPEN:
            continue
        path = rule.replace("<id>", "g-1").replace("<key>", "key-00000000")
        for headers in ({}, {"Authorization": "Bearer bts_wrong"}):
            answer = server.web.open(path, method=method, headers=headers, json={} if method == "POST" else None)
            assert answer.status_code == 401, (method, rule)
    assert not server.terminal.asked and not server.terminal.executed


def test_a_bot_orders_within_its_grant_and_not_beyond(server: Server, tmp_path: Path) -> None:
    bot = Bot(server, make_key(tmp_path / "bot.pem"))
    limits = {"account": 1001, "magics": ["7"], "volume": 0.5, "orders_a_day": 2}
    grant = server.grant(bot.key, **limits)
    assert bot.renew().status_code == 200
    epoch = str(bot.ask("POST", "/v1/guard/lease", json.dumps({"holder": "bot"}).encode()).get_json()["epoch"])

    def send(key: str, **changes: object) -> TestResponse:
        request = {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0, "magic": 7} | changes
        return bot.ask("POST", "/v1/order", json.dumps({"request": request}).encode(), {"Idempotency-Key": key, "Lease-Epoch": epoch})

    assert send("key-00000001").get_json()["outcome"] == "done"
    for key, changes in (("key-00000002", {"volume": 0.51}), ("key-00000003", {"magic": 8})):
        assert refused(send(key, **changes), 403, "grant-limit")["outcome"] == "not_done"
    assert send("key-00000001").get_json()["replayed"]
    assert send("key-00000004").status_code == 200
    assert refused(send("key-00000005"), 403, "grant-limit")["limit"] == "orders_a_day"
    assert len(server.terminal.executed) == 2
    others, own = (struct(TradePosition, ticket=t, identifier=t, symbol="BTCUSD", volume=2.0, magic=m) for t, m in ((90, 8), (91, 7)))
    server.terminal.positions = (others, own)
    assert refused(send("key-00000006", type=1, position=90, volume=2.0), 403, "grant-limit")["limit"] == "magics"
    assert send("key-00000007", type=1, position=91, volume=2.0).status_code == 200  # a close of its own, whatever its volume
    server.now_ms = grant["ends_ms"]
    bot.renew()
    refused(send("key-00000008"), 403, "reduce-only")
    assert send("key-00000009", type=1, position=91, volume=2.0).status_code == 200
    assert len(server.terminal.executed) == 4
    server.auth.grants.revoke(grant["id"])
    refused(send("key-00000010", type=1, position=91, volume=2.0), 401, "token-ended")


def test_a_person_needs_a_code_for_an_entry_and_none_for_a_close(server: Server) -> None:
    headers = server.session()
    epoch = server.web.post("/v1/guard/lease", json={"holder": "anna"}, headers=headers).get_json()["epoch"]
    server.later(301)

    def send(key: str, **changes: object) -> TestResponse:
        request = {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0, "magic": 7} | changes
        return server.web.post(
            "/v1/order", json={"request": request}, headers={**headers, "Idempotency-Key": key, "Lease-Epoch": str(epoch)}
        )

    refused(send("key-00000001"), 403, "second-factor-needed")
    server.terminal.positions = (struct(TradePosition, ticket=91, identifier=91, symbol="BTCUSD", volume=1.0, magic=7),)
    assert send("key-00000002", type=1, position=91).status_code == 200
    assert server.web.post("/v1/guard/halt", json={"reason": "enough"}, headers=headers).status_code == 200
    refused(server.web.post("/v1/guard/lift", json={}, headers=headers), 403, "second-factor-needed")
    assert server.web.post("/v1/login/code", json={"code": server.code()}, headers=headers).status_code == 200
    assert server.web.post("/v1/guard/lift", json={}, headers=headers).status_code == 200
