"""What people read: names, both clocks, pages, bulk."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import client_of, parts_of
from fake_terminal import FakeTerminal, FakeTwin, struct
from flask.testing import FlaskClient

from btcbot.market.clock import server_clock, to_server, utc_ms
from btcbot.terminal.contract import RATES_DTYPE, TICKS_DTYPE, TradeDeal, TradeOrder, TradePosition
from btcbot.terminal.journal import OrderJournal
from btcbot.terminal.wire import ARROW

if TYPE_CHECKING:
    from mt5_server.parts import Parts

START = utc_ms("2024-03-04")
NY = server_clock("NY+7")


def minutes(first: str, count: int, clock: str = "NY+7") -> np.ndarray:
    """Return bars of successive minutes."""
    utc = utc_ms(first) + 60_000 * np.arange(count, dtype=np.int64)
    rates = np.zeros(count, RATES_DTYPE)
    rates["time"] = to_server(server_clock(clock), utc) // 1000
    rates["close"] = np.arange(count)
    rates["spread"] = 5
    return rates


def quotes(times: list[int]) -> np.ndarray:
    """Return ticks at these server times (ms)."""
    ticks = np.zeros(len(times), TICKS_DTYPE)
    ticks["time_msc"], ticks["time"] = times, np.array(times) // 1000
    ticks["bid"] = np.arange(len(times))
    return ticks


def slug(answer: Any, status: int) -> str:
    """Return the kind of a problem."""
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    return str(answer.get_json()["type"]).removeprefix("urn:btcbot:problem:")


def pages(web: FlaskClient, path: str, name: str, **query: object) -> list[list[dict[str, Any]]]:
    """Return all pages of a list."""
    found, cursor = [], None
    for _ in range(50):
        answer = web.get(path, query_string={**query, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        body = answer.get_json()
        found.append(body[name])
        cursor = body["next"]
        if cursor is None:
            return found
    raise AssertionError("the list has no end")


def table(web: FlaskClient, path: str, **query: object) -> pa.Table:
    """Return an answer in Arrow."""
    answer = web.get(path, query_string=query, headers={"Accept": ARROW})
    assert answer.content_type == ARROW, answer.text
    return pa.ipc.open_stream(answer.data).read_all()


# ---- bars


def test_the_newest_bars(web: FlaskClient, terminal: FakeTwin) -> None:
    terminal.rates = minutes("2024-03-04", 10)
    body = web.get("/v1/ohlcv?symbol=BTCUSD&limit=2").get_json()
    assert (body["clock"], body["timeframe"], body["next"]) == ("NY+7", "M1", None)
    last = body["bars"][-1]
    assert last["time"] == START + 9 * 60_000
    assert last["server_time"] - last["time"] == 2 * 3_600_000
    assert (last["close"], last["spread"]) == (9.0, 5)
    assert len(table(web, "/v1/ohlcv", symbol="BTCUSD", limit=3)) == 3


@pytest.mark.parametrize("maxbars", [100_000, 7])
def test_bars_in_pages_and_in_bulk(web: FlaskClient, terminal: FakeTwin, maxbars: int) -> None:
    terminal.rates, terminal.maxbars = np.delete(minutes("2024-03-04", 100), range(30, 61)), maxbars
    query = {"symbol": "BTCUSD", "from": "2024-03-04T00:05", "to": "2024-03-04T01:35"}
    found = pages(web, "/v1/ohlcv", "bars", limit=10, **query)
    times = [bar["time"] for page in found for bar in page]
    expected = [START + 60_000 * number for number in range(5, 95) if not 30 <= number <= 60]
    assert times == expected
    assert [len(page) for page in found] == [10] * 5 + [9]
    bulk = table(web, "/v1/ohlcv", **query)
    assert bulk["time"].cast(pa.int64()).to_pylist() == expected
    assert bulk.schema.field("time").type == pa.timestamp("ms", "UTC")
    assert bulk.schema.metadata == {b"symbol": b"BTCUSD", b"timeframe": b"M1", b"clock": b"NY+7"}
    assert bulk["server_time"].cast(pa.int64()).to_pylist()[0] == expected[0] + 7_200_000
    assert len(table(web, "/v1/ohlcv", limit=12, **query)) == 12


def test_the_border_of_a_range_is_excluded(web: FlaskClient, terminal: FakeTwin) -> None:
    terminal.rates = minutes("2024-03-04", 10)
    body = web.get(f"/v1/ohlcv?symbol=BTCUSD&from={START + 60_000}&to={START + 180_000}").get_json()
    assert [bar["close"] for bar in body["bars"]] == [1.0, 2.0]
    assert web.get(f"/v1/ohlcv?symbol=BTCUSD&from={START + 3_600_000}").get_json()["bars"] == []


def test_the_day_on_which_the_clock_goes_forward(web: FlaskClient, terminal: FakeTwin) -> None:
    terminal.rates = minutes("2024-03-10T06:00", 120)
    bulk = table(web, "/v1/ohlcv", symbol="BTCUSD", **{"from": "2024-03-10T06:30", "to": "2024-03-10T07:30"})
    assert bulk["time"].cast(pa.int64()).to_pylist() == [utc_ms("2024-03-10T06:30") + 60_000 * number for number in range(60)]


def test_an_hour_that_came_twice(web: FlaskClient, terminal: FakeTwin) -> None:
    terminal.rates = minutes("2024-11-03T05:00", 90)[:90]
    query = {"symbol": "BTCUSD", "from": "2024-11-03T05:00", "to": "2024-11-03T07:00"}
    assert slug(web.get("/v1/ohlcv", query_string=query), 409) == "clock-ambiguous"
    assert slug(web.get("/v1/ohlcv", query_string=query, headers={"Accept": ARROW}), 409) == "clock-ambiguous"
    found = web.get("/v1/ohlcv", query_string=query | {"ambiguous": "earliest"}).get_json()["bars"]
    assert found[0]["time"] == utc_ms("2024-11-03T05:00")


def test_a_clock_that_nobody_knows(journal: OrderJournal) -> None:
    terminal = FakeTerminal()
    terminal.rates = minutes("2024-03-04", 10)
    for rule in (None, "unresolved until 2025-01-01, UTC"):
        web = client_of(parts_of(terminal, journal, rule))
        for path in ("/v1/ohlcv?symbol=BTCUSD", "/v1/ohlcv?symbol=BTCUSD&from=2024-03-04", "/v1/ticks?symbol=BTCUSD&from=2024-03-04"):
            assert slug(web.get(path), 409) == "clock-unresolved"
    assert web.get("/v1/account").status_code == 200


def test_a_terminal_that_is_still_loading(web: FlaskClient, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.rates = minutes("2024-03-04", 10)
    real, tries = terminal.copy_rates_range, []

    def later(*arguments: int) -> object:
        tries.append(1)
        if len(tries) < 3:
            terminal.error = (-1, "Terminal: Call failed")
            return None
        return real(*arguments)

    monkeypatch.setattr("mt5_server.history.PATIENCE", (0.0, 0.0, 0.0))
    terminal.copy_rates_range = later
    assert len(web.get("/v1/ohlcv?symbol=BTCUSD&from=2024-03-04").get_json()["bars"]) == 10
    terminal.silent["copy_rates_from_pos"] = (-1, "Terminal: Call failed")
    answer = web.get("/v1/ohlcv?symbol=BTCUSD&from=2024-03-04")
    assert slug(answer, 503) == "history-not-ready"
    assert answer.headers["Retry-After"] == "2"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        ((-10005, "IPC timeout"), 504, "terminal-timeout"),
        ((-10001, "IPC send failed"), 503, "terminal-down"),
        ((-10004, "No IPC connection"), 503, "terminal-down"),
        ((-2, "Terminal: Invalid params"), 400, "invalid-call"),
        ((-7, "Terminal: Unsupported function"), 502, "terminal-failed"),
    ],
)
def test_what_the_terminal_says_instead(web: FlaskClient, terminal: FakeTwin, error: tuple[int, str], status: int, kind: str) -> None:
    terminal.silent = dict.fromkeys(("account_info", "copy_ticks_from", "positions_get", "symbol_info"), error)
    for path in ("/v1/account", "/v1/positions"):
        answer = web.get(path)
        assert slug(answer, status) == kind
        assert answer.get_json()["code"] == error[0]
    if error[0] != -2:
        assert slug(web.get("/v1/symbol?symbol=BTCUSD"), status) == kind


def test_questions_that_make_no_sense(web: FlaskClient, terminal: FakeTwin) -> None:
    terminal.rates = minutes("2024-03-04", 10)
    good = web.get("/v1/ohlcv?symbol=BTCUSD&from=2024-03-04&limit=1").get_json()["next"]
    for path, status, kind in (
        ("/v1/ohlcv", 400, "bad-request"),
        ("/v1/ohlcv?symbol=XXX", 404, "no-such-symbol"),
        ("/v1/symbol?symbol=XXX", 404, "no-such-symbol"),
        ("/v1/ohlcv?symbol=BTCUSD&timeframe=M7", 400, "bad-request"),
        ("/v1/ohlcv?symbol=BTCUSD&from=yesterday", 400, "bad-request"),
        ("/v1/ohlcv?symbol=BTCUSD&from=-5", 400, "bad-request"),
        ("/v1/ohlcv?symbol=BTCUSD&from=99999999999999999", 400, "bad-request"),
        ("/v1/ohlcv?symbol=BTCUSD&from=2024-03-05&to=2024-03-04", 400, "bad-request"),
        ("/v1/ohlcv?symbol=BTCUSD&limit=10001", 400, "bad-request"),
        ("/v1/ohlcv?symbol=BTCUSD&limit=0", 400, "bad-request"),
        ("/v1/ohlcv?symbol=BTCUSD&from=2024-03-04&cursor=zzz", 400, "invalid-cursor"),
        ("/v1/ohlcv?symbol=BTCUSD&from=2024-03-04&cursor=%00", 400, "invalid-cursor"),
        (f"/v1/ohlcv?symbol=BTCUSD&from=2024-03-05&cursor={good}", 400, "invalid-cursor"),
        (f"/v1/positions?cursor={good}", 400, "invalid-cursor"),
        ("/v1/ticks?symbol=BTCUSD", 400, "bad-request"),
        ("/v1/stream?events=news", 400, "bad-request"),
        ("/v1/stream?symbols=XXX", 404, "no-such-symbol"),
        ("/v1/stream?symbols=" + ",".join(f"S{number}" for number in range(60)), 400, "bad-request"),
    ):
        assert slug(web.get(path), status) == kind, path


# ---- ticks


def test_ticks_in_pages_and_in_bulk(web: FlaskClient, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    base = int(to_server(NY, START))
    times = [base + offset for offset in (0, 0, 5, 5, 5, 5, 5, 5, 700, 999, 1000, 1000, 2500, 2500, 2500, 9000)]
    terminal.ticks = quotes([base - 1000, base - 1, *times, base + 20_000])
    query = {"symbol": "BTCUSD", "from": START, "to": START + 10_000}
    for limit, page in ((1, 2000), (1, 1), (2, 1), (3, 1), (5, 1), (100, 1)):
        monkeypatch.setattr("mt5_server.api_reading.LEAST_PAGE", page)
        found = pages(web, "/v1/ticks", "ticks", limit=limit, **query)
        assert [tick["server_time"] for page in found for tick in page] == times
        assert [tick["bid"] for page in found for tick in page] == [float(number) for number in range(2, 18)]
    monkeypatch.setattr("mt5_server.history.ticks.__defaults__", (None, 3))
    bulk = table(web, "/v1/ticks", **query)
    assert bulk["server_time"].cast(pa.int64()).to_pylist() == times
    assert bulk["time"].cast(pa.int64()).to_pylist() == [time - 7_200_000 for time in times]
    assert web.get("/v1/ticks", query_string={"symbol": "BTCUSD", "from": START + 3_600_000}).get_json()["ticks"] == []


def test_a_second_that_no_page_gets_past(web: FlaskClient, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt5_server.history.LARGEST_PAGE", 8)
    monkeypatch.setattr("mt5_server.api_reading.LEAST_PAGE", 1)
    terminal.ticks = quotes([int(to_server(NY, START))] * 20)
    query = {"symbol": "BTCUSD", "from": START, "limit": 5}
    cursor = web.get("/v1/ticks", query_string=query).get_json()["next"]
    assert slug(web.get("/v1/ticks", query_string={**query, "cursor": cursor}), 502) == "terminal-failed"


# ---- the account


def test_account_and_symbol(web: FlaskClient, terminal: FakeTwin) -> None:
    found = web.get("/v1/account").get_json()
    assert (found["account"]["login"], found["account"]["trade_mode_name"]) == (1001, "demo")
    assert found["terminal"]["connected"] is True
    symbol = web.get("/v1/symbol?symbol=BTCUSD").get_json()
    assert symbol["symbol"]["server_time"] == terminal.second * 1000
    assert symbol["symbol"]["time"] == terminal.second * 1000 - 7_200_000
    assert symbol["symbol"]["expiration_time"] is None
    assert symbol["tick"]["last"] is None  # no number
    assert pages(web, "/v1/symbols", "symbols", limit=2) == [["BTCUSD", "ETHUSD"], ["XRPUSD"]]
    assert pages(web, "/v1/symbols", "symbols", group="ETHUSD") == [["ETHUSD"]]


def test_lists(web: FlaskClient, terminal: FakeTwin) -> None:
    second = 1_710_000_000
    big = 2**60 + 1
    terminal.positions = tuple(
        struct(TradePosition, ticket=big + number, magic=big, time=second, time_msc=second * 1000 + 5, symbol="BTCUSD")
        for number in range(5)
    )
    found = pages(web, "/v1/positions", "positions", limit=2)
    assert [len(page) for page in found] == [2, 2, 1]
    first = found[0][0]
    assert (first["ticket"], first["magic"]) == (str(big), str(big))
    assert (first["server_time"], first["time"]) == (second * 1000 + 5, second * 1000 + 5 - 7_200_000)
    assert first["time_update"] is None
    assert "time_msc" not in first
    assert len(web.get(f"/v1/positions?ticket={big}").get_json()["positions"]) == 1
    assert len(web.get("/v1/positions?symbol=BTCUSD").get_json()["positions"]) == 5
    assert len(web.get("/v1/positions?group=*USD*").get_json()["positions"]) == 5
    terminal.orders = (struct(TradeOrder, ticket=9, symbol="BTCUSD", time_setup=second, time_expiration=second),)
    assert web.get("/v1/orders").get_json()["orders"][0]["server_time_expiration"] == second * 1000
    terminal.history = tuple(struct(TradeOrder, ticket=number, symbol=name) for number, name in enumerate(("BTCUSD", "X"), 1))
    assert len(web.get("/v1/orders?history=true").get_json()["orders"]) == 2
    assert len(web.get("/v1/orders?history=true&symbol=X&from=2024-01-01&to=2024-02-01").get_json()["orders"]) == 1
    assert len(web.get("/v1/orders?history=true&ticket=1").get_json()["orders"]) == 1
    terminal.deals = tuple(
        struct(TradeDeal, ticket=number, position_id=number % 2, time=second + number, symbol="BTCUSD") for number in range(1, 6)
    )
    assert [deal["ticket"] for page in pages(web, "/v1/deals", "deals", limit=2) for deal in page] == ["1", "2", "3", "4", "5"]
    assert len(web.get("/v1/deals?position=1").get_json()["deals"]) == 3
    assert web.get("/v1/deals?symbol=X").get_json()["deals"] == []
    asked = f"/v1/deals?from={(second - 7200) * 1000}&to={(second - 7200 + 3) * 1000}"
    assert {deal["ticket"] for deal in web.get(asked).get_json()["deals"]} >= {"1", "2"}


def test_a_time_that_came_twice_is_nobodys_guess(web: FlaskClient, terminal: FakeTwin) -> None:
    twice = int(to_server(NY, utc_ms("2024-11-03T05:30"))) // 1000
    terminal.deals = (struct(TradeDeal, ticket=1, time=twice), struct(TradeDeal, ticket=2, time=twice + 86_400))
    first, second = web.get("/v1/deals").get_json()["deals"]
    assert (first["time"], first["server_time"]) == (None, twice * 1000)
    assert second["time"] == utc_ms("2024-11-04T06:30")


# ---- the document and its page


def test_the_document_and_its_page(web: FlaskClient, parts: "Parts") -> None:
    del web.environ_base["HTTP_AUTHORIZATION"]
    document = web.get("/openapi.json").get_json()
    assert document["openapi"].startswith("3.1")
    operations = {(path, method): operation for path, item in document["paths"].items() for method, operation in item.items()}
    assert ("/v1/order", "post") in operations
    for (path, _), operation in operations.items():
        assert operation["summary"]
        assert operation["security"] == ([] if path in ("/health", "/v1/login", "/v1/token") else [{"bearer": []}, {"dpop": []}])
        for status, answer in operation["responses"].items():
            assert answer["description"]
            if int(status) >= 400:
                assert list(answer["content"]) == ["application/problem+json"]
    page = web.get("/openapi/swagger")
    assert page.status_code == 200
    assert "http" not in page.text.replace("<!DOCTYPE html>", "").replace("https://github.com", "")
    policy = page.headers["Content-Security-Policy"]
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    for name in ("js/swagger-ui-bundle.js", "js/swagger-ui-standalone-preset.js", "css/swagger-ui.css"):
        assert web.get(f"/openapi/swagger/{name}").status_code == 200


def test_metrics(web: FlaskClient, terminal: FakeTwin) -> None:
    web.get("/v1/account")
    terminal.silent["account_info"] = (-10005, "IPC timeout")
    web.get("/v1/account")
    text = web.get("/metrics").text
    for line in (
        'btcbot_server_call_seconds_count{function="account_info"} 2.0',
        'btcbot_server_call_errors_total{code="-10005",function="account_info"} 1.0',
        'btcbot_server_requests_total{route="/v1/account",status="504"} 1.0',
        "btcbot_server_worker_up 1.0",
        "btcbot_server_worker_restarts 0.0",
        "btcbot_server_busy_seconds 0.0",
    ):
        assert line in text, line


def test_what_is_small_or_near_is_not_compressed(web: FlaskClient, terminal: FakeTwin) -> None:
    terminal.rates = minutes("2024-03-04", 100)
    path, headers = "/v1/ohlcv?symbol=BTCUSD", {"Accept-Encoding": "gzip"}
    far: dict[str, Any] = {"REMOTE_ADDR": "203.0.113.5"}
    assert "Content-Encoding" not in web.get(path, headers=headers).headers
    assert "Content-Encoding" not in web.get("/health", headers=headers, environ_overrides=far).headers
    answer = web.get(path, headers=headers, environ_overrides=far)
    assert answer.headers["Content-Encoding"] == "gzip"
    import gzip

    assert len(json.loads(gzip.decompress(answer.data))["bars"]) == 100


def test_a_source_that_breaks_off(web: FlaskClient, terminal: FakeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second window fails: the stream has no end, and nobody takes it for the whole."""
    terminal.rates, terminal.maxbars = minutes("2024-03-04", 100), 11
    real: Callable[..., object] = terminal.copy_rates_range
    seen: list[int] = []

    def fail(*arguments: int) -> object:
        seen.append(1)
        if len(seen) > 2:
            terminal.error = (-10005, "IPC timeout")
            return None
        return real(*arguments)

    terminal.copy_rates_range = fail
    with pytest.raises(Exception, match="did not answer"):
        table(web, "/v1/ohlcv", symbol="BTCUSD", **{"from": "2024-03-04"})
