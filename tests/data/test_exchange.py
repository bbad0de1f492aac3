"""Exchanges through ccxt, without a network: the library as it is installed, and what it would answer."""

import importlib
from collections.abc import Sequence

import pytest

from btcbot.core.errors import BtcbotError
from btcbot.data.exchange import ExchangeHistory, open_exchange

START = 1_704_067_200_000  # 2024-01-01
HOUR = 3_600_000


def test_without_ccxt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BtcbotError, match=r"btcbot\[exchanges\]"):
        open_exchange("kraken")


@pytest.fixture(scope="module")
def ccxt() -> object:
    """Return the library."""
    return pytest.importorskip("ccxt", reason="needs ccxt (extra exchanges)")


@pytest.mark.usefixtures("ccxt")
def test_an_exchange_is_opened_without_keys_and_with_its_rate_limit() -> None:
    exchange = open_exchange("kraken")
    assert (exchange.id, exchange.enableRateLimit, bool(getattr(exchange, "apiKey", ""))) == ("kraken", True, False)
    with pytest.raises(BtcbotError, match="no exchange 'krakn': try kraken"):
        open_exchange("krakn")
    with pytest.raises(BtcbotError, match=r"see ccxt\.exchanges"):
        open_exchange("%")


@pytest.mark.usefixtures("ccxt")
@pytest.mark.parametrize(("name", "least"), [("binance", 1000), ("bitstamp", 1000), ("coinbase", 300), ("kraken", 720)])
def test_pages_are_as_long_as_the_exchange_allows(name: str, least: int) -> None:
    history = ExchangeHistory(name, "BTC/USD", "H1")
    assert 100 <= history.limit <= 10_000 and history.limit <= max(least, 100)
    with pytest.raises(BtcbotError, match=f"{name} has no bars of M10: use one of M1"):
        ExchangeHistory(name, "BTC/USD", "M10")


@pytest.mark.usefixtures("ccxt")
def test_the_errors_of_ccxt_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = importlib.import_module("ccxt")
    exchange, waits = open_exchange("bitstamp"), list[float]()
    answers: list[Exception | Sequence[Sequence[float]]] = []

    def answer(*_: object) -> Sequence[Sequence[float]]:
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(exchange, "fetch_ohlcv", answer)
    history = ExchangeHistory(exchange, "BTC/USD", "H1", sleep=waits.append)
    rows = [[START + k * HOUR, 100.0, 101.0, 99.0, 100.5, 0.5] for k in range(3)]
    answers += [errors.RateLimitExceeded("slow down"), errors.NullResponse("?"), rows]
    fetched = history.read(START, now=START + 2 * HOUR + 1)
    assert (len(fetched.bars), waits, fetched.source) == (2, [1.0, 2.0], "ccxt:bitstamp")  # the third is not finished
    for error, words in (
        (errors.BadSymbol("no"), "look up how ccxt spells it"),
        (errors.AuthenticationError("no"), "choose another exchange"),
        (errors.ExchangeError("no"), "try again"),
    ):
        answers[:] = [error]
        with pytest.raises(BtcbotError, match=words):
            history.read(START, now=START + 10 * HOUR)
    answers[:] = [errors.NetworkError("down")] * 6
    with pytest.raises(BtcbotError, match="bitstamp: NetworkError: down"):
        history.read(START, now=START + 10 * HOUR)
