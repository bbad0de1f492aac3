"""Whatever comes in, the API answers as its document says: schemathesis makes requests from the document, good ones and bad ones.

Each is sent with the owner's token and again without: no 5xx, no status, header, kind or shape of answer that isn't documented, and
nothing without credentials. `make test` runs a few for each operation, `BTCBOT_ROUNDS=500` more than 5,000.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fake_terminal import TOKEN
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from btcbot.terminal.connect import connect
from btcbot.terminal.journal import OrderJournal
from mt5_server.app import create_app
from mt5_server.assembly import assemble
from mt5_server.auth import Auth, AuthSettings
from mt5_server.document import OPEN
from mt5_server.gate import Gate

TWIN = "twin://?seed=1&from=2024-03-04&to=2024-03-06&start=2024-03-05"
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
FIXED = {"symbol": "BTCUSD", "symbols": "BTCUSD", "from": "2024-03-04", "to": "2024-03-05T01:00"}
ORDERS: list[dict[str, Any]] = [
    {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0, "type_filling": 1},
    {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 1, "type_filling": 1, "magic": "9007199254740993"},
    {"action": 5, "symbol": "BTCUSD", "volume": 0.1, "type": 2, "price": 10_000.0, "type_filling": 2},
    {"action": 8, "order": 2},
    {"action": 1},
]
CALLS: list[list[Any]] = [
    ["symbol_info_tick", ["BTCUSD"]],
    ["copy_rates_from_pos", ["BTCUSD", 1, 0, 10]],
    ["orders_get", [], {"ticket": 1}],
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return the whole server around a twin, with streams that end at once and no limit on how often one may ask."""
    folder: Path = tmp_path_factory.mktemp("fuzz")
    patch = pytest.MonkeyPatch()
    patch.setattr("mt5_server.stream.LONGEST_S", -1.0)
    patch.setattr("mt5_server.stream.WAIT_S", 0.001)
    patch.setattr("mt5_server.history.PATIENCE", (0.0,))
    terminal = connect(TWIN)
    assert terminal.initialize()
    with (
        OrderJournal(folder / "orders.sqlite3") as journal,
        Auth.open(AuthSettings(rate=1e9, burst=1e9, failures=10**9, failures_rate=1e9), TOKEN) as auth,
    ):
        parts = assemble(Gate.local(terminal, "UTC"), auth, journal, folder / "guard.sqlite3")
        yield create_app(parts)
        parts.hub.close()
    patch.undo()


def likely(case: Any, data: st.DataObject, session: str) -> None:
    """Make some requests mean something: what is made up finds no symbol, no market and no order."""
    if not data.draw(st.booleans(), "as it is"):
        for name in FIXED.keys() & dict(case.query or {}).keys():
            case.query[name] = FIXED[name]
        if isinstance(case.body, dict):
            if "session" in case.body:
                case.body |= {"session": session, "client": "c" * 32, "step": data.draw(st.integers(1, 3)), "bars": 1}
            if "request" in case.body:
                case.body["request"] = data.draw(st.sampled_from(ORDERS))
            if "calls" in case.body:
                case.body["calls"] = data.draw(st.lists(st.sampled_from(CALLS), max_size=3))
    if isinstance(case.body, dict) and isinstance(case.body.get("bars"), int):
        case.body["bars"] = min(case.body["bars"], 100)


@pytest.mark.parity
def test_the_api_answers_as_its_document_says(app: Any, rounds: int) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    web = app.test_client()
    session = web.get("/v1/session", headers={"Authorization": f"Bearer {TOKEN}"}).get_json()["session"]
    owner = {"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "identity"}
    statuses: Counter[str] = Counter()
    failures: list[str] = []
    examples = max(3, rounds // 5)
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/v1/logout":  # ends the session: tried where sessions are
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Exception:  # an operation without parameters can't be asked wrongly
                if mode is GenerationMode.POSITIVE:
                    raise
                continue
            if strategy.is_empty:
                continue

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy, data=st.data())
            def run(case: Any, data: st.DataObject) -> None:
                likely(case, data, session)
                answer = case.call(headers=owner)
                statuses[f"{answer.status_code // 100}xx"] += 1
                case.validate_response(answer, checks=CHECKS)
                if case.operation.path not in OPEN:
                    stranger = case.call()
                    statuses["without credentials"] += 1
                    assert stranger.status_code == 401, (case.operation.label, stranger.status_code, stranger.text)

            try:
                run()
            except Exception as error:
                failures.append(f"{operation.label}, {mode.name}: {error}")
    assert not failures, "\n\n".join(failures)
    print(f"\n{sum(statuses.values())} requests: {dict(statuses)}")
    assert statuses["2xx"]
    assert not statuses["5xx"]
    if rounds >= 500:
        assert sum(statuses.values()) - statuses["without credentials"] >= 5_000
