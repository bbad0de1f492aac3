"""What the server writes into the audit trail: what people and bots did, what was refused, and what the guard did by itself."""

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_auth import EVIL, HOME, Bot
from test_auth_app import Server

from btcbot.cli import main
from btcbot.core.errors import BtcbotError
from btcbot.security.keys import make_key
from btcbot.security.passwords import Cost
from btcbot.security.trail import Trail
from mt5_server import auth_cli
from mt5_server.audit import WRITTEN
from mt5_server.auth import OPEN, POLICY, READ, Auth, AuthSettings


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a whole server with one person and a trail."""
    server = Server(tmp_path)
    server.auth.trail = Trail(tmp_path / "trail.sqlite3", lambda: server.now_ms)
    yield server
    server.close()


def lines(server: Server) -> list[tuple[str, str, bool, str]]:
    """Return who did what, with a second factor or not, and from where."""
    assert server.auth.trail is not None
    server.auth.trail.verify()
    return [(entry.who, entry.what, entry.is_confirmed, entry.place) for entry in server.auth.trail.entries()]


def test_who_did_what_from_where_and_with_a_second_factor_or_not(server: Server, tmp_path: Path) -> None:
    password = "typed into the wrong field"
    server.login(user=password, source=EVIL)
    headers = server.session()
    bot = Bot(server, make_key(tmp_path / "bot.pem"))
    grant = server.grant(bot.key)
    bot.renew()
    bot.ask("POST", "/v1/guard/halt", b'{"reason": "by itself"}')
    bot.ask("POST", "/v1/guard/lift", b"{}")
    server.web.post("/v1/guard/lift", json={}, headers=headers)
    server.later(301)
    server.web.post("/v1/guard/limits", json={"orders_a_minute": 1}, headers=headers)
    server.web.post("/v1/guard/lift", json={}, headers=headers)
    server.web.post("/v1/login/code", json={"code": server.code()}, headers=headers)
    server.web.delete(f"/v1/grants/{grant['id']}", headers=headers)
    server.web.post("/v1/guard/halt", json={})  # a stranger
    server.web.post("/v1/login", data=b"[" * 9_000_000, content_type="application/json")
    server.web.post("/v1/logout", headers=headers)
    near, name = "127.0.0.1", f"grant {grant['id']}"
    assert lines(server) == [
        ("somebody", "log in refused (401)", False, EVIL),
        ("anna", "log in", True, HOME),
        ("anna", "log in", True, HOME),
        ("anna", "grant issue", True, near),
        (name, "block entries", False, near),
        (name, "allow entries refused (403)", False, near),
        ("anna", "allow entries", True, near),
        ("anna", "change limits", False, near),
        ("anna", "allow entries refused (403)", False, near),
        ("anna", "give a code", True, near),
        ("anna", "grant revoke", True, near),
        ("somebody", "log in refused (413)", False, near),
        ("anna", "log out", True, near),
    ]
    assert server.auth.trail is not None
    details = [entry.detail for entry in server.auth.trail.entries()]
    assert grant["id"] in details[10] and "by itself" in details[4] and "orders_a_minute" in details[7]
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("trail.sqlite3*"))
    assert password.encode() not in stored and server.code().encode() not in stored


def test_the_guard_writes_down_what_it_does_by_itself(server: Server) -> None:
    server.parts.guard.halt("the equity is below its floor", "guard")
    server.parts.guard._begin("flatten", "limit")
    assert [line[:2] for line in lines(server)] == [("guard", "block entries"), ("guard", "begin to flatten")]


def test_a_trail_that_can_t_be_written_keeps_nobody_from_stopping(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    headers = server.session()
    assert server.auth.trail is not None
    server.auth.trail._connection.execute("DROP TABLE entries")
    with caplog.at_level(logging.ERROR):
        assert server.web.post("/v1/guard/halt", json={"reason": "enough"}, headers=headers).status_code == 200
    assert "The audit trail can't be written; it lacks: anna, block entries" in caplog.text


def test_every_route_that_changes_something_is_written_down_or_left_out_on_purpose() -> None:
    frequent = {"/v1/token", "/v1/advance", "/v1/order", "/v1/order/check", "/v1/guard/lease", "/v1/guard/renew", "/v1/guard/release"}
    changing = {route for route, need in POLICY.items() if route[0] != "GET" and need is not READ}
    assert changing - WRITTEN.keys() == {("POST", rule) for rule in frequent}  # orders have their journal
    assert WRITTEN.keys() <= changing and POLICY[next(iter(WRITTEN))] is OPEN


def test_commands_at_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("btcbot.security.users.DEFAULT_COST", Cost(4, 1, 1))
    monkeypatch.setenv("BTCBOT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(auth_cli, "confirmed", lambda users: "anna")
    folder = ("--folder", str(tmp_path))
    assert auth_cli.main(["token", "metrics", "prometheus", *folder]) == 0
    assert auth_cli.main(["token", "list", *folder]) == 0
    assert auth_cli.main(["grant", "revoke", "g-none", *folder]) == 2
    assert auth_cli.main(["token", "revoke", "prometheus", *folder]) == 0
    with Auth.open(AuthSettings(folder=tmp_path)) as auth:
        assert auth.trail is not None
        found = [(entry.who, entry.what, entry.is_confirmed) for entry in auth.trail.entries()]
        last = auth.trail.verify()
    assert found == [("anna", "token metrics", True), ("machine", "grant revoke refused", False), ("machine", "token revoke", False)]
    capsys.readouterr()
    assert main(["audit", "verify", "--file", str(tmp_path / "trail.sqlite3"), "--hash", last]) == 0
    assert f"3 entries, unbroken; last hash: {last}" in capsys.readouterr().out
    with sqlite3.connect(tmp_path / "trail.sqlite3") as connection:
        connection.execute("UPDATE entries SET who = 'bert' WHERE number = 1")
    connection.close()
    with pytest.raises(BtcbotError, match="entry 1"), Auth.open(AuthSettings(folder=tmp_path)) as auth:
        assert auth.trail is not None
        auth.trail.verify()
