"""The routes of the server, each with what it answers and what it refuses."""

import json
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fake_terminal import ORDER, TOKEN, FakeTerminal, FakeTwin
from flask.testing import FlaskClient

from btcbot.core.errors import BtcbotError
from btcbot.terminal.contract import OrderSendResult, Tick
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.wire import ARROW, MAX_BODY, answer_from_wire, rows_from_arrow
from mt5_server.app import MAX_CALLS, create_app
from mt5_server.auth import hash_token
from mt5_server.gate import CLIENTS, Gate

ROUTES = {
    "/health": "GET",
    "/v1/session": "GET",
    "/v1/call": "POST",
    "/v1/rates": "POST",
    "/v1/order": "POST",
    "/v1/advance": "POST",
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
    """Send an order."""
    return web.post("/v1/order", json={"request": ORDER | changes}, headers={"Idempotency-Key": key})


# ---- who may call


def test_health_tells_a_stranger_only_that_it_runs(web: FlaskClient, journal: OrderJournal) -> None:
    del web.environ_base["HTTP_AUTHORIZATION"]
    assert web.get("/health").get_json() == {"status": "ok"}
    journal.begin("lost", 1)
    known = web.get("/health", headers={"Authorization": f"bearer {TOKEN}"}).get_json()
    assert known.keys() == {"status", "version", "busy_s", "orders"}
    assert known["orders"] == {"intent": 1, "done": 0, "not_done": 0, "unknown": 0}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \udce9"]
)
def test_nothing_without_the_token(web: FlaskClient, terminal: FakeTwin, path: str, header: str | None) -> None:
    if path == "/health" and header is None:
        return
    del web.environ_base["HTTP_AUTHORIZATION"]
    headers = {} if header is None else {"Authorization": header}
    answer = web.open(path, method=ROUTES[path], headers=headers, environ_overrides={})
    problem(answer, 401)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert not terminal.executed


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
    assert len(found.pop("session")) == 32
    assert found.pop("version")
    assert found == {"api": 1, "contract": "5.0.6231", "clock": "NY+7", "lock_step": True, "time_ms": 1_710_054_000_000}


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
        (b"[]", "'calls' is of type list"),
        (b'{"calls": 1}', "'calls' is of type list"),
        (b'{"calls": [1]}', "A call is a list"),
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
    answer = web.post("/v1/call", json={"calls": [["positions_total"]]})  # which the fake doesn't have
    assert "AttributeError" not in problem(answer, 500)["detail"]


def test_bars_in_bulk(web: FlaskClient) -> None:
    answer = web.post("/v1/rates", json={"call": ["copy_rates_from_pos", ["BTCUSD", 1, 0, 1000]]})
    assert answer.content_type == ARROW
    assert json.loads(answer.headers["MT5-Last-Error"]) == [1, "Success"]
    assert rows_from_arrow(answer.data, "copy_rates_from_pos")["close"][10] == 10 / 3
    none = answer_from_wire(web.post("/v1/rates", json={"call": ["copy_rates_from_pos", ["BTCUSD", 1, 0, 0]]}).get_json())
    assert (none.value, none.error) == (None, (-2, "Terminal: Invalid params"))
    raised = answer_from_wire(web.post("/v1/rates", json={"call": ["copy_rates_from_pos", ["BTCUSD", 1, 0, 1.5]]}).get_json())
    assert isinstance(raised.raised, SystemError)
    problem(web.post("/v1/rates", json={"call": ["symbol_info_tick", ["BTCUSD"]]}), 400)


# ---- orders


def test_an_order_and_its_repetition(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    states = []
    terminal.before_order = lambda: states.append(journal.get(KEY).state)
    first, second = send(web).get_json(), send(web).get_json()
    assert states == ["intent"]  # written down before it was sent
    assert len(terminal.executed) == 1
    assert (first.pop("replayed"), second.pop("replayed")) == (False, True)
    assert first == second
    assert first["outcome"] == journal.get(KEY).state == "done"
    result = answer_from_wire({name: first[name] for name in ("value", "error")}).value
    assert isinstance(result, OrderSendResult)
    assert (result.deal, result.request.magic) == (1, 7)


def test_the_same_key_for_another_order(web: FlaskClient, terminal: FakeTwin) -> None:
    send(web)
    assert problem(send(web, volume=0.2), 422)["key"] == KEY
    assert len(terminal.executed) == 1


@pytest.mark.parametrize(("retcode", "outcome"), [(10019, "not_done"), (10012, "unknown"), (10010, "done"), (10025, "done")])
def test_outcomes(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal, retcode: int, outcome: str) -> None:
    terminal.retcode = retcode
    assert [send(web).get_json()["outcome"] for _ in range(2)] == [outcome] * 2
    assert journal.get(KEY).state == outcome
    assert len(terminal.executed) == 1


def test_an_argument_the_package_chokes_on(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    assert send(web, magic=-1).get_json()["raised"][0][0] == "SystemError"
    assert journal.get(KEY).state == "not_done"
    assert not terminal.executed


@pytest.mark.parametrize("key", ["", "short", "x" * 129, "with blank", "naïve-key"])
def test_an_order_without_a_proper_key(web: FlaskClient, terminal: FakeTwin, key: str) -> None:
    assert "Idempotency-Key" in problem(send(web, key), 400)["detail"]
    assert not terminal.executed


def test_an_order_that_is_none(web: FlaskClient, journal: OrderJournal) -> None:
    headers = {"Idempotency-Key": KEY}
    for body in ({}, {"request": []}, {"request": {"$f": "nan"}}, {"request": {"$Tick": [1]}}):
        problem(web.post("/v1/order", json=body, headers=headers), 400)
    assert journal.get(KEY) is None


def test_an_order_in_flight(web: FlaskClient, terminal: FakeTwin) -> None:
    started, finish, answers = threading.Event(), threading.Event(), []
    terminal.before_order = lambda: (started.set(), finish.wait(10))
    thread = threading.Thread(target=lambda: answers.append(send(web).get_json()))
    thread.start()
    assert started.wait(10)
    assert problem(send(web), 409)["state"] == "intent"  # at once, without waiting for the terminal
    assert web.get("/health").get_json()["busy_s"] > 0
    finish.set()
    thread.join()
    assert answers[0]["outcome"] == "done"
    assert send(web).get_json()["replayed"] is True
    assert web.get("/health").get_json()["busy_s"] == 0
    assert len(terminal.executed) == 1


def test_an_order_left_by_a_crash(terminal: FakeTwin, journal: OrderJournal) -> None:
    journal.begin(KEY, ORDER)
    web = create_app(terminal, hash_token(TOKEN), journal).test_client()
    web.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    assert journal.get(KEY).state == "unknown"
    assert problem(send(web), 409)["state"] == "unknown"
    assert not terminal.executed


def test_an_order_that_was_settled_by_other_means(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    journal.begin(KEY, ORDER)
    journal.settle(KEY, "done", {"deal": 5})
    assert problem(send(web), 409)["state"] == "done"
    assert not terminal.executed


def test_a_terminal_that_fails_while_it_sends(web: FlaskClient, terminal: FakeTwin, journal: OrderJournal) -> None:
    terminal.after_order = lambda: 1 / 0
    assert problem(send(web), 500)["outcome"] == "unknown"
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
    assert problem(send(web), 409)["state"] == "intent"


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
        problem(step(1, calls=[["positions_total"]]), 500)  # which the fake doesn't have
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
    web = create_app(FakeTerminal(), hash_token(TOKEN), journal).test_client()
    web.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    assert web.get("/v1/session").get_json()["lock_step"] is False
    problem(web.post("/v1/advance", json={}), 404)


def test_one_call_at_a_time() -> None:
    terminal, inside, seen = FakeTerminal(), threading.Lock(), []

    def tick(symbol: str) -> None:
        seen.append(inside.acquire(blocking=False))
        terminal.error = (-4, symbol)
        threading.Event().wait(0.002)
        inside.release()

    terminal.symbol_info_tick = tick
    gate, errors = Gate(terminal), []

    def work(name: str) -> None:
        errors.extend((name, gate.batch([("symbol_info_tick", [name], {})])[0].error[1]) for _ in range(10))

    threads = [threading.Thread(target=work, args=(f"symbol {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40
    assert all(seen)
    assert all(name == error for name, error in errors)  # nobody got the error of another one's call
