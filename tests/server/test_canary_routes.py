"""Unique secrets wherever a caller can put one, every route driven into success and failure, and then a search for them.

What is searched: each answer, the log in both forms, the metrics, and every file of the server. The routes come from the application
itself, so that a new one is driven too. The commands have the same in tests/security/test_canary.py.
"""

import base64
import io
import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from test_auth import ORDER, PASSWORD, Bot, refused
from test_auth_app import Server

from btcbot.core import log
from btcbot.security.keys import make_key
from mt5_server.auth import OPEN, OPEN_RULES, POLICY

TYPED = {name: f"canary-{number}-{secrets.token_hex(12)}" for number, name in enumerate(("password", "code", "broker", "query", "extra"))}
HEADERS = {
    "Authorization": f"Bearer {secrets.token_urlsafe(32)}",
    "DPoP": f"{secrets.token_urlsafe(20)}.{secrets.token_urlsafe(20)}.{secrets.token_urlsafe(20)}",
    "Cookie": f"session={secrets.token_urlsafe(32)}",
    "Proxy-Authorization": f"Basic {secrets.token_urlsafe(32)}",
    "X-Api-Key": secrets.token_urlsafe(32),
}
BODIES: list[Any] = [
    {"user": "anna", "password": TYPED["password"], "code": TYPED["code"]},
    {"code": TYPED["code"]},
    {"calls": [["login", [1], {"password": TYPED["broker"]}]], "session": TYPED["extra"]},
    {"calls": [["symbol_info_tick", ["BTCUSD"]]]},
    {"request": ORDER | {"magic": 7, "volume": 0.1}},
    {"request": {"password": TYPED["broker"]}, "token": TYPED["extra"]},
    {"holder": "anna"},
    {"reason": "enough"},
    {"grant": TYPED["extra"]},
    [TYPED["password"]],
    TYPED["password"],
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a whole server with one person, that logs everything."""
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    yield made
    made.close()
    with redirect_stderr(io.StringIO()):
        log.configure_logging()


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_route_gives_a_secret_away(server: Server, tmp_path: Path, form: log.LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    with redirect_stderr(screen):
        log.configure_logging("DEBUG", tmp_path / "server.log", form)
    logging.getLogger("mt5_server").debug("begun")
    bot = Bot(server, make_key(tmp_path / "bot.pem"))
    grant = server.grant(bot.key, account=1001, magics=["7"], volume=0.5, orders_a_day=99)
    assert bot.renew().status_code == 200
    session = server.session()
    epoch = str(server.web.post("/v1/guard/lease", json={"holder": "anna"}, headers=session).get_json()["epoch"])
    statuses: dict[tuple[str, str], set[int]] = {}
    answers = ""
    rules = {
        (method, rule.rule)
        for rule in server.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith(OPEN_RULES)
    }
    late = ["/v1/guard/halt", "/v1/guard/lift", "/v1/guard/release", "/v1/grants/<id>", "/v1/logout"]
    for is_failing in (False, True):
        server.terminal.before_order = (lambda: 1 / 0) if is_failing else (lambda: None)
        order = sorted(rules, key=lambda route: (late.index(route[1]) if route[1] in late else -1, route))
        for method, rule in order if is_failing else order[:-3]:
            path = rule.replace("<id>", str(grant["id"])).replace("<key>", "key-00000001")
            path += f"?symbol=BTCUSD&from=0&token={TYPED['query']}&password={TYPED['query']}"
            more = {"Lease-Epoch": epoch, "Idempotency-Key": "key-00000001" if not is_failing else f"key-{secrets.randbelow(10**8):08}"}
            for body in BODIES if method == "POST" else [None]:
                raw = b"" if body is None else json.dumps(body).encode()
                kind = {"content_type": "application/json"} if raw else {}
                sent = [
                    server.web.open(path, method=method, data=raw, headers=HEADERS, **kind),
                    server.web.open(path, method=method, data=raw, headers={**session, **more}, **kind),
                ]
                if POLICY[method, rule] is not OPEN:
                    sent.append(bot.ask(method, path, raw, more))
                for answer in sent:
                    if rule == "/v1/guard/lease" and answer.status_code == 200:
                        epoch = str(answer.get_json()["epoch"])
                    statuses.setdefault((method, rule), set()).add(answer.status_code)
                    text = "" if answer.is_streamed else answer.text
                    answer.close()
                    answers += f"{answer.status_code} {answer.headers} {text}\n"
    wrong = server.login(password=TYPED["password"])
    refused(wrong, 401, "login-refused")
    answers += wrong.text + server.web.get(f"/v1/{TYPED['query']}", headers=session).text
    own = {"password of anna": PASSWORD, "seed": server.seed} | {f"recovery code {code}": code for code in server.recovery_codes}
    own |= {"session": session["Authorization"].split()[1], "token of the bot": bot.token}
    own |= {"key of the bot": (tmp_path / "bot.pem").read_text().splitlines()[1]}
    planted = TYPED | {name: value.split()[-1].removeprefix("session=") for name, value in HEADERS.items()} | own
    places = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "bot.pem"}
    assert places["server.log"] and "orders.sqlite3" in places
    places |= {"answers": answers.encode(), "screen": screen.getvalue().encode(), "metrics": server.parts.metrics.text()}
    leaks = [
        f"{name}: {kind}"
        for name, text in places.items()
        for kind, secret in planted.items()
        if secret.encode() in text or base64.b64encode(secret.encode()).rstrip(b"=") in text
    ]
    assert not leaks, "\n".join(sorted(leaks))
    assert statuses.keys() == POLICY.keys()
    good = {route for route, seen in statuses.items() if any(status < 300 for status in seen)}
    bad = {route for route, seen in statuses.items() if any(status >= 400 for status in seen)}
    print(f"\n{len(good)} routes succeeded, {len(bad)} failed of {len(POLICY)}; never: {sorted(POLICY.keys() - good)}")
    assert POLICY.keys() - bad <= {("GET", "/health")}
    assert {("POST", "/v1/order"), ("POST", "/v1/call"), ("GET", "/v1/account"), ("POST", "/v1/guard/lift"), ("GET", "/metrics")} <= good
