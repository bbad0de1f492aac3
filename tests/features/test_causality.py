"""The certificate: every planted leak is found, and nothing clean is accused."""

import pandas as pd
import pytest
from leaks import CLEAN, LEAKS, Case

from btcbot.features.causality import certify
from btcbot.features.certificate import Certificate
from btcbot.features.engineering import FeatureEngineering
from btcbot.features.indicators import INDICATORS
from btcbot.features.stepwise import COLUMNS
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars
from btcbot.strategies.rules import STRATEGIES, make_strategy


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    """Return two days of minutes around a weekend without bars, with single minutes missing."""
    made = synthetic_bars(11, utc_ms("2024-03-08"), utc_ms("2024-03-11T20:00"))
    is_open = (made.index < pd.Timestamp("2024-03-08T22:00Z")) | (made.index >= pd.Timestamp("2024-03-10T22:00Z"))
    made = made[is_open]
    return made.drop(made.index[[700, 701, 1_500, 2_450]])


def examined(case: Case, bars: pd.DataFrame, name: str) -> Certificate:
    """Certify a case with few cuts, as far as that finds a leak."""
    part = case.part(bars)
    arrivals = case.arrivals(part) if case.arrivals else None
    return certify(case.make(bars), part, arrivals=arrivals, cuts=case.cuts, stretch=case.stretch, name=name)


@pytest.mark.jit
@pytest.mark.parametrize("name", LEAKS)
def test_leak_is_found(name: str, bars: pd.DataFrame) -> None:
    """Each planted leak fails, with its cause and the first offending bar."""
    case = LEAKS[name]
    found = examined(case, bars, name)
    assert not found.passed, found
    assert case.text in found.explanation
    assert found.offending is not None


@pytest.mark.jit
@pytest.mark.parametrize("name", CLEAN)
def test_clean_is_not_accused(name: str, bars: pd.DataFrame) -> None:
    """No tricky but causal feature fails."""
    found = examined(CLEAN[name], bars, name)
    assert found.passed, found
    assert Certificate.from_json(found.to_json()) == found


@pytest.mark.jit
@pytest.mark.parametrize("name", INDICATORS)
def test_shipped_indicator(name: str, bars: pd.DataFrame) -> None:
    """Each indicator passes with its defaults, and keeps what it states about its convergence."""
    indicator = INDICATORS[name]()
    if set(indicator.inputs) <= set(COLUMNS):
        found = certify(indicator, bars).require()
        assert not any("still gives another" in note for note in found.notes), found.notes


@pytest.mark.jit
@pytest.mark.parametrize("name", STRATEGIES)
def test_shipped_strategy(name: str, bars: pd.DataFrame) -> None:
    """Each strategy passes."""
    assert certify(make_strategy(name), bars).require().kind == "strategy"


@pytest.mark.jit
def test_feature_engineering(bars: pd.DataFrame) -> None:
    """Columns on several timeframes, lagged, scaled and partial."""
    sma = {"sma": {"n": 5}}
    features = [sma, {"rsi": {"n": 14}, "on": "H1"}, sma | {"on": "M15", "lag": 2}, sma | {"on": "H4", "partial": True}, "close"]
    assert len(certify(FeatureEngineering(features), bars).require().columns) == 5


def test_there_are_enough() -> None:
    """At least 40 of each."""
    assert len(LEAKS) >= 40
    assert len(CLEAN) >= 40
