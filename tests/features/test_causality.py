"""The certificate: every planted leak is found, and nothing clean is accused."""

import pandas as pd
import pytest
from leaks import CLEAN, LEAKS, Case

from btcbot.features.causality import certify
from btcbot.features.certificate import Certificate
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars


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


def test_there_are_enough() -> None:
    """At least 40 of each."""
    assert len(LEAKS) >= 40
    assert len(CLEAN) >= 40
