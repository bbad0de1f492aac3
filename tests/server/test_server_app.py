"""The routes of the server, each with what it answers and what it refuses."""

import json
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import client_of, parts_of
from fake_terminal import ORDER, TOKEN, FakeTerminal, FakeTwin, struct
from flask.testing import FlaskClient

from btcbot.core.errors import BtcbotError
from btcbot.terminal.contract import OrderCheckResult, OrderSendResult, Tick, TradePosition, request_from
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.wire import ARROW, MAX_BODY, answer_from_wire, rows_from_arrow
from mt5_server.api_calls import MAX_CALLS
from mt5_server.auth import hash_token
from mt5_server.worker import CLIENTS

ROUTES = {
    "/health": "GET",
    "/v1/session": "GET",
    "/v1/call": "POST",
    "/v1/order": "POST",
    "/v1/order/check": "POST",
    "/v1/order/abcdefgh": "GET",
    "/v1/advance": "POST",
    "/v1/symbol?symbol=BTCUSD": "GET",
    "/v1/symbols": "GET",
    "/v1/account": "GET",
    "/v1/positions": "GET",
    "/v1/orders": "GET",
    "/v1/deals": "GET",
    "/v1/ohlcv?symbol=BTCUSD": "GET",
    "/v1/ticks?symbol=BTCUSD&from=0": "GET",
    "/v1/stream": "GET",
    "/v1/guard": "GET",
    "/v1/guard/lease": "POST",
    "/v1/guard/renew": "POST",
    "/v1/guard/release": "POST",
    "/v1/guard/limits": "POST",
    "/v1/guard/halt": "POST",
    "/v1/guard/lift": "POST",
    "/v1/grants": "GET",
    "/v1/me": "GET",
    "/metrics": "GET",
    "/v1/nothing": "GET",
    "/": "GET",
}
KEY = "a" * 64


def problem(answer: Any, status: int) -> dict[str, Any]:
    """Return the problem document of `answer`."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    found: dict[str, Any] = answer.get_json()
    assert {"type", "title", "status", "detail"} <= found.keys()
    assert found["status"] == status
    assert "Traceback" not in answer.text
    assert TOKEN not in answer.text
    return found


def send(web: FlaskClient, key: str = KEY, **changes: object) -> Any:
    """Send an order, under a lease."""
    if "HTTP_LEASE_EPOCH" not in web.environ_base:
        web.environ_base["HTTP_LEASE_EPOCH"] = str(web.post("/v1/guard/lease", json={"holder": "test"}).get_json()["epoch"])
    return web.post("/v1/order", json={"request": ORDER | changes}, headers={"Idempotency-Key": key})


# ---- who may call


def test_health_tells_a_stranger_only_that_it_runs(web: FlaskClient, journal: OrderJournal) -> None:
    del web.environ_base["HTTP_AUTHORIZATION"]
    assert web.get("/health").get_json() == {"status": "ok"}
    journal.begin("lost", 1)
    known = web.get("/health", headers={"Authorization": f"bearer {TOKEN}"}).get_json()
    assert known.keys() == {"status", "version", "busy_s", "orders", "worker", "streams"}
    assert known["orders"] == {"intent": 1, "sent": 0, "done": 0, "not_done": 0, "unknown": 0}
    assert known["worker"]["state"] == "up"


STRANGERS = (None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \udce9")


@pytest.mark.parametrize("header", STRANGERS)
def test_nothing_without_the_token(web: FlaskClient, terminal: FakeTwin, header: str | None) -> None:
    del web.environ_base["HTTP_AUTHORIZATION"]
    headers = {} if header is None else {"Authorization": header}
    for path, method in ROUTES.items():
        if path == "/health" and header is None:
            continue
        answer = web.open(path, method=method, headers=headers)
        problem(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert not terminal.executed
    assert not terminal.asked


def test_every_route_is_in_the_list(web: FlaskClient) -> None:
    known = {path.partition("?")[0].replace("/abcdefgh", "/<key>") for path in ROUTES}
    for rule in web.application.url_map.iter_rules():
        is_auths = rule.rule.startswith(("/v1/login", "/v1/logout", "/v1/token", "/v1/grants/", "/openapi"))
        assert rule.rule in known or is_auths or rule.rule == "/v1/order/<key>/resolve", rule


def test_a_weak_token_is_refused() -> None:
    for weak in ("", "x" * 31, "x" * 40 + " ", "ü" * 40, "x" * 40 + "\n"):
        with pytest.raises(BtcbotError, match="at least 32") as caught:
            hash_token(weak)
        assert not weak or weak not in str(caught.value)


def test_every_answer_is_hardened(web: FlaskClient) -> None:
    for path in ("/health", "/v1/nothing"):
        headers = web.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_the_token_is_in_no_log(web: FlaskClient, terminal: FakeTwin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    send(web)
    web.get("/v1/session", headers={"Authorization": f"Bearer {TOKEN}x"})
    terminal.before_order = lambda: 1 / 0
    send(web, "b" * 64)
    assert "ZeroDivisionError" in caplog.text
    assert TOKEN not in caplog.text


# ---- reading


def test_session(web: FlaskClient) -> None:
    found = web.get("/v1/session").get_json()
    assert len(found.pop("session")) == len(found.pop("server")) == 32
    assert found.pop("version")
    assert found.pop("limits")["calls"] == MAX_CALLS
    assert found.pop("caller")["name"] == "owner"
    expected = {"api": 1, "apis": [1], "contract": "5.0.6231", "clock": "NY+7", "lock_step": True, "simulated": False}
    assert found == expected | {"time_ms": 1_710_054_000_000}


def test_calls_are_answered_in_order_each_with_its_error(web: FlaskClient) -> None:
    calls = [
        ["symbol_info_tick", ["BTCUSD"]],
        ["symbol_info_tick", ["X"], {}],
        ["copy_rates_from_pos", ["BTCUSD", 1, 0, 10.5]],
        ["last_error"],
    ]
    tick, missing, raised, last = map(answer_from_wire, web.post("/v1/call", json={"calls": calls}).get_json())
    assert isinstance(tick.value, Tick)
    assert tick.value.bid == 0.1 + 0.2
    assert math.isnan(tick.value.last)
    assert (missing.value, missing.error) == (None, (-4, "Terminal: Not found"))
    with pytest.raises(SystemError, match="copy_rates_from_pos") as caught:
        raised.take()
    assert isinstance(caught.value.__cause__, TypeError)
    assert last.value == (1, "Success")
    assert web.post("/v1/call", json={"calls": []}).get_json() == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "no JSON"),
        (b"", "no JSON"),
        (b"[" * 50_000, "no JSON"),
        (b"[]", "valid dictionary"),
        (b'{"calls": 1}', "calls: Input should be a valid list"),
        (b'{"calls": [1]}', "calls.0: Input should be a valid list"),
        (b'{"calls": [["version", 1]]}', "A call is a list"),
        (b'{"calls": [["order_send", [{}]]]}', "can't be called here"),
        (b'{"calls": [["shutdown"]]}', "can't be called here"),
        (b'{"calls": [["__class__"]]}', "can't be called here"),
        (b'{"calls": [["symbol_info_tick", [{"$Tick": [1]}]]]}', "content that doesn't fit"),
        (b'{"calls": [["symbol_info_tick", [NaN]]]}', "no JSON"),
        (json.dumps({"calls": [["version"]] * (MAX_CALLS + 1)}).encode(), "too many"),
    ],
)
def test_calls_that_make_no_sense(web: FlaskClient, body: bytes, word: str) -> None:
    assert word in problem(web.post("/v1/call", data=body, content_type="application/json"), 400)["detail"]


def test_what_http_itself_refuses(web: FlaskClient) -> None:
    problem(web.post("/v1/call", data=b"{}", content_type="text/plain"), 415)
    problem(web.get("/v1/nothing"), 404)
    answer = web.get("/v1/call")
    problem(answer, 405)
    assert "POST" in answer.headers["Allow"]
    large = b" " * (MAX_BODY + 1)
    problem(web.post("/v1/call", data=large, content_type="application/json"), 413)


def test_an_error_nobody_expected_shows_nothing_of_itself(web: FlaskClient) -> None:
    answer = web.post("/v1/call", json={"calls": [["market_book_add", ["X"]]]})  # which the fake doesn't have
    assert "AttributeError" not in problem(answer, 500)["detail"]


def bulk(web: FlaskClient, *calls: object) -> Any:
    """Ask for an answer in Arrow."""
    return web.post("/v1/call", json={"calls": calls}, headers={"Accept": ARROW})


def test_bars_in_bulk(web: FlaskClient) -> None:
    answer = bulk(web, ["copy_rates_from_pos", ["BTCUSD", 1, 0, 1000]])
    assert answer.content_type == ARROW
    assert json.loads(answer.headers["MT5-Last-Error"]) == [1, "Success"]
    assert rows_from_arrow(answer.data, "copy_rates_from_pos")["close"][10] == 10 / 3
    (none,) = bulk(web, ["copy_rates_from_pos", ["BTCUSD", 1, 0, 0]]).get_json()
    assert (answer_from_wire(none).value, answer_from_wire(none).error) == (None, (-2, "Terminal: Invalid params"))
    (raised,) = bulk(web, ["copy_rates_from_pos", ["BTCUSD", 1, 0, 1.5]]).get_json()
    assert isinstance(answer_from_wire(raised).raised, SystemError)
    for calls in ([["symbol_info_tick", ["BTCUSD"]]], [["copy_rates_from_pos", ["BTCUSD", 1, 0, 2]]] * 2):
        answer = bulk(web, *calls)
        assert answer.content_type == "application/json"
        assert len(answer.get_json()) == len(calls)


# ---- orders


def test_an_order_and_its_repetition(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    states = []
    terminal.before_order = lambda: states.append(journal.get(KEY).state)
    first, second = send(web).get_json(), send(web).get_json()
    assert states == ["sent"]  # written down before it was sent
    assert len(terminal.executed) == 1
    assert (first.pop("replayed"), second.pop("replayed")) == (False, True)
    assert first == second
    assert first["outcome"] == journal.get(KEY).state == "done"
    result = answer_from_wire({name: first[name] for name in ("value", "error")}).value
    assert isinstance(result, OrderSendResult)
    assert (result.deal, result.request.magic) == (1, 7)
    assert web.get(f"/v1/order/{KEY}").get_json()["state"] == "done"
    assert problem(web.get("/v1/order/another-key"), 404)["type"].endswith("no-such-order")


def test_the_same_key_for_another_order(web: FlaskClient, terminal: FakeTwin) -> None:
    send(web)
    assert problem(send(web, volume=0.2), 422)["key"] == KEY
    assert len(terminal.executed) == 1


@pytest.mark.parametrize(("retcode", "outcome"), [(10019, "not_done"), (10012, "unknown"), (10010, "done")])
def test_outcomes(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal, retcode: int, outcome: str) -> None:
    terminal.retcode = retcode
    assert send(web).get_json()["outcome"] == outcome
    if outcome == "unknown":
        assert problem(send(web), 409)["type"].endswith("order-undecided")
        assert web.get(f"/v1/order/{KEY}").get_json()["outcome"] == "unknown"
    else:
        assert send(web).get_json()["outcome"] == outcome
    assert journal.get(KEY).state == outcome
    assert len(terminal.executed) == 1


def test_a_stop_change_that_changes_nothing(web: FlaskClient, terminal: FakeTwin) -> None:
    terminal.retcode = 10025
    terminal.positions = (struct(TradePosition, ticket=3, identifier=3, symbol="BTCUSD", volume=0.1, price_open=1.0, sl=0.5),)
    assert send(web, action=6, position=3, sl=0.5).get_json()["outcome"] == "done"


def test_an_argument_the_package_chokes_on(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    assert send(web, magic=-1).get_json()["raised"][0][0] == "SystemError"
    assert journal.get(KEY).state == "not_done"
    assert not terminal.executed


def test_tickets_and_magic_may_be_text(web: FlaskClient, terminal: FakeTwin) -> None:
    assert send(web, magic=str(2**63 - 1)).get_json()["outcome"] == "done"
    assert terminal.executed[0]["magic"] == 2**63 - 1


@pytest.mark.parametrize("key", ["", "short", "x" * 129, "with blank", "naïve-key"])
def test_an_order_without_a_proper_key(web: FlaskClient, terminal: FakeTwin, key: str) -> None:
    assert "Idempotency-Key" in problem(send(web, key), 400)["detail"]
    assert not terminal.executed


def test_an_order_that_is_none(web: FlaskClient, journal: OrderJournal) -> None:
    headers = {"Idempotency-Key": KEY}
    for body in ({}, {"request": []}, {"request": {"$f": "nan"}}, {"request": {"$Tick": [1]}}, {"request": ORDER, "ttl_ms": 1.5}):
        problem(web.post("/v1/order", json=body, headers=headers), 400)
    assert journal.get(KEY) is None


def test_no_entry_without_a_lease(web: FlaskClient, terminal: FakeTwin) -> None:
    answer = web.post("/v1/order", json={"request": ORDER}, headers={"Idempotency-Key": KEY})
    assert problem(answer, 409)["type"].endswith("lease-required")
    assert not terminal.executed


def test_an_order_that_is_only_checked(web: FlaskClient, terminal: FakeTwin) -> None:
    found = answer_from_wire(web.post("/v1/order/check", json={"request": ORDER}).get_json())
    assert isinstance(found.value, OrderCheckResult)
    assert found.value.comment == "Done"
    assert not terminal.executed


def test_an_order_in_flight(web: FlaskClient, terminal: FakeTwin) -> None:
    started, finish, answers = threading.Event(), threading.Event(), []
    terminal.before_order = lambda: (started.set(), finish.wait(10))
    thread = threading.Thread(target=lambda: answers.append(send(web).get_json()))
    thread.start()
    assert started.wait(10)
    assert problem(send(web), 409)["state"] == "sent"  # at once, without waiting for the terminal
    assert web.get("/health").get_json()["busy_s"] > 0
    finish.set()
    thread.join()
    assert answers[0]["outcome"] == "done"
    assert send(web).get_json()["replayed"] is True
    assert web.get("/health").get_json()["busy_s"] == 0
    assert len(terminal.executed) == 1


def fields() -> dict[str, object]:
    """Return the order as the journal has it: all its fields."""
    return dict(request_from(ORDER)._asdict())


def test_an_order_left_by_a_crash(terminal: FakeTwin, journal: OrderJournal) -> None:
    journal.begin(KEY, fields())
    journal.begin("b" * 64, fields())
    journal.mark_sent("b" * 64, None)
    web = client_of(parts_of(terminal, journal))
    assert journal.get(KEY).state == "not_done"  # it was never handed to the terminal
    assert journal.get("b" * 64).state == "unknown"
    assert problem(send(web, "b" * 64), 409)["state"] == "unknown"
    assert not terminal.executed


def test_an_order_that_a_person_decides(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    terminal.retcode = 10012
    send(web)
    path = f"/v1/order/{KEY}/resolve"
    assert problem(web.post("/v1/order/another-key/resolve", json={"outcome": "done"}), 404)["type"].endswith("no-such-order")
    problem(web.post(path, json={"outcome": "perhaps"}), 400)
    assert web.post(path, json={"outcome": "not_done"}).get_json()["outcome"] == "not_done"
    assert journal.get(KEY).state == "not_done"


def test_a_terminal_that_fails_while_it_sends(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    terminal.after_order = lambda: 1 / 0
    assert send(web).get_json()["outcome"] == "unknown"
    terminal.after_order = lambda: None
    assert problem(send(web), 409)["state"] == "unknown"
    assert len(terminal.executed) == 1


def fail(*arguments: object) -> None:
    """Stand for a full disk."""
    raise OSError("no space left on device")


def test_no_order_without_a_journal(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "begin", fail)
    assert problem(send(web), 503)["outcome"] == "not_done"
    assert not terminal.executed


def test_an_answer_the_journal_cannot_take(web: FlaskClient, journal: OrderJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal, "settle", fail)
        assert send(web).get_json()["outcome"] == "done"  # it was executed, and the client must know


# ---- the guard


def test_the_guard_over_http(web: FlaskClient, terminal: FakeTwin) -> None:
    assert web.get("/v1/guard").get_json()["entries"] == "blocked"  # until a lease exists
    lease = web.post("/v1/guard/lease", json={"holder": "a"}).get_json()
    assert problem(web.post("/v1/guard/lease", json={"holder": "b"}), 409)["type"].endswith("lease-held")
    header = {"Lease-Epoch": str(lease["epoch"])}
    assert web.post("/v1/guard/renew", headers=header).get_json()["epoch"] == lease["epoch"]
    assert web.get("/v1/guard", headers=header).get_json()["lease"]["holder"] == "owner/a"
    assert web.post("/v1/guard/lease", json={"holder": "a", "takeover": True}).get_json()["epoch"] == lease["epoch"] + 1
    assert problem(web.post("/v1/guard/renew", headers=header), 409)["type"].endswith("lease-fenced")
    header = {"Lease-Epoch": str(lease["epoch"] + 1)}
    text = web.get("/metrics").text
    for line in ("btcbot_server_orders_undecided 0.0", f"btcbot_server_lease_epoch {lease['epoch'] + 1}.0", "btcbot_server_entries_open "):
        assert line in text
    problem(web.post("/v1/guard/renew"), 400)
    problem(web.post("/v1/guard/renew", headers={"Lease-Epoch": "x"}), 400)
    problem(web.post("/v1/guard/lease", json={"holder": ""}), 400)
    problem(web.post("/v1/guard/limits", json={"orders_a_minute": "many"}), 400)
    problem(web.post("/v1/guard/limits", json=[1]), 400)
    assert web.post("/v1/guard/release", headers=header).status_code == 204
    assert web.post("/v1/guard/halt", json={"reason": "a test"}).get_json()["halt"]["reason"] == "a test"
    assert problem(send(web), 403)["type"].endswith("entries-halted")
    assert web.post("/v1/guard/lift").get_json()["halt"] is None
    assert send(web, "b" * 64).get_json()["outcome"] == "done"


# ---- the clock that waits


@pytest.fixture
def step(web: FlaskClient) -> Callable[..., Any]:
    """Return a function that asks for a step."""
    session = web.get("/v1/session").get_json()["session"]

    def ask(number: object, client: object = "c" * 32, bars: object = 1, **changes: object) -> Any:
        body = {"session": session, "client": client, "step": number, "bars": bars, "calls": [["symbols_total"]]}
        return web.post("/v1/advance", json=body | changes)

    return ask


def test_a_step_and_its_repetition(step: Callable[..., Any], terminal: FakeTwin) -> None:
    first = step(1).get_json()
    assert first == {"bars": 1, "answers": [{"value": 1, "error": [1, "Success"]}]}
    assert step(1).get_json() == first
    assert terminal.now == 1
    assert step(2, bars=3).get_json()["answers"][0]["value"] == 4
    assert step(1, "d" * 32).get_json()["answers"][0]["value"] == 5  # another client counts its own


def test_steps_out_of_order(step: Callable[..., Any], terminal: FakeTwin) -> None:
    step(1)
    for answer in (step(3), step(1, bars=2), step(1, calls=[]), step(2, "d" * 32)):
        assert problem(answer, 409)["state"] == "step"
    assert problem(step(2, session="0" * 32), 409)["state"] == "restarted"
    assert terminal.now == 1


def test_a_step_that_fails_is_not_taken_again(step: Callable[..., Any], terminal: FakeTwin) -> None:
    for _ in range(2):
        problem(step(1, calls=[["market_book_add", ["X"]]]), 500)  # which the fake doesn't have
    assert terminal.now == 1
    assert step(2).get_json()["answers"][0]["value"] == 2


def test_steps_that_make_no_sense(step: Callable[..., Any], terminal: FakeTwin) -> None:
    for changes in (
        {"step": 0},
        {"step": -1},
        {"step": 2**60},
        {"step": 1.0},
        {"step": True},
        {"client": "x"},
        {"bars": -1},
        {"bars": 10**9},
    ):
        problem(step(1, **changes) if "step" not in changes else step(changes["step"]), 400)
    problem(step(1, calls=[["order_send", [ORDER]]]), 400)
    assert terminal.now == 0


def test_only_so_many_clients_are_remembered(step: Callable[..., Any], terminal: FakeTwin) -> None:
    for number in range(CLIENTS + 1):
        step(1, f"{number:032x}")
    problem(step(2, f"{0:032x}"), 409)
    assert step(2, f"{CLIENTS:032x}").status_code == 200
    assert terminal.now == CLIENTS + 2


def test_a_real_clock_waits_for_nobody(journal: OrderJournal) -> None:
    web = client_of(parts_of(FakeTerminal(), journal))
    assert web.get("/v1/session").get_json()["lock_step"] is False
    body = {"session": "x", "client": "c" * 32, "step": 1, "bars": 1, "calls": []}
    assert problem(web.post("/v1/advance", json=body), 404)["type"].endswith("not-simulated")
