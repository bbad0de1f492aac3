"""The server clock against zoneinfo: every change from 2010 to 2030, round trips at any moment, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btcbot.core.errors import BtcbotError
from btcbot.market.bars import check_bars, time_ms
from btcbot.market.clock import clock_changes, offset_ms, server_clock, to_server, to_utc, utc_ms

MINUTE, HOUR = 60_000, 3_600_000
# Each rule with what it means by zoneinfo alone: zones, hours added, and the end of each.
RULES: dict[str, list[tuple[str, int, str]]] = {
    "UTC": [("UTC", 0, "2200-01-01")],
    "UTC+3": [("UTC", 3, "2200-01-01")],
    "NY+7": [("America/New_York", 7, "2200-01-01")],
    "EET": [("Europe/Athens", 0, "2200-01-01")],
    "Europe/London-1": [("Europe/London", -1, "2200-01-01")],
    "NY+7 until 2016-03-13T07:00:00Z, EET until 2022-12-12, UTC+2": [
        ("America/New_York", 7, "2016-03-13T07:00"),
        ("Europe/Athens", 0, "2022-12-12"),
        ("UTC", 2, "2200-01-01"),
    ],
}
CHANGES = {"UTC": 0, "UTC+3": 0, "NY+7": 42, "EET": 42, "Europe/London-1": 42}


def wall_offset(rule: str, ms: int) -> int:
    """Return server time minus UTC by zoneinfo alone."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    zone, hours, _ = next(part for part in RULES[rule] if moment < datetime.fromisoformat(part[2]).replace(tzinfo=UTC))
    offset = moment.astimezone(ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return offset // timedelta(milliseconds=1) + hours * HOUR


@pytest.mark.parametrize("rule", RULES)
def test_every_change_of_20_years(rule: str) -> None:
    clock, start, end = server_clock(rule), utc_ms("2010-01-01"), utc_ms("2031-01-01")
    hourly = np.arange(start, end, HOUR)
    truth = np.array([wall_offset(rule, ms) for ms in hourly.tolist()])
    assert np.array_equal(offset_ms(clock, hourly), truth)
    changes = clock_changes(clock, start, end)
    assert np.array_equal(changes, hourly[1:][np.diff(truth) != 0])  # every rule here changes on the hour
    assert len(changes) == CHANGES.get(rule, len(changes))
    for at in changes.tolist():
        before, after = offset_ms(clock, at - 1), offset_ms(clock, at)
        assert (before, after) == (wall_offset(rule, at - 1), wall_offset(rule, at))
        low, high = at + min(before, after), at + max(before, after)
        around = np.arange(low - MINUTE, high + MINUTE, MINUTE)
        inside = (around >= low) & (around < high)
        for shown, special in zip(around.tolist(), inside.tolist(), strict=True):
            if not special:
                assert to_server(clock, to_utc(clock, shown)) == shown
                continue
            with pytest.raises(BtcbotError, match="came twice" if after < before else "never came"):
                to_utc(clock, shown)
            if after < before:
                assert to_utc(clock, shown, "earliest") < at <= to_utc(clock, shown, "latest")


@given(rule=st.sampled_from(list(RULES)), ms=st.integers(utc_ms("2010-01-01"), utc_ms("2031-01-01")))
def test_there_and_back(rule: str, ms: int) -> None:
    clock = server_clock(rule)
    shown = to_server(clock, ms)
    early, late = to_utc(clock, shown, "earliest"), to_utc(clock, shown, "latest")
    assert ms in (early, late)
    assert to_server(clock, early) == to_server(clock, late) == shown
    if early == late:
        assert to_utc(clock, shown) == ms
    else:
        with pytest.raises(BtcbotError, match="came twice"):
            to_utc(clock, shown)


@given(ms=st.lists(st.integers(0, utc_ms("2100-01-01")), max_size=30), rule=st.sampled_from(list(RULES)))
def test_many_moments_are_as_many_single_ones(ms: list[int], rule: str) -> None:
    clock = server_clock(rule)
    assert to_server(clock, np.array(ms, np.int64)).tolist() == [to_server(clock, one) for one in ms]


def test_times_without_a_zone_are_refused() -> None:
    naive = datetime(2024, 1, 1)
    with pytest.raises(BtcbotError, match="has no time zone"):
        utc_ms(naive)
    with pytest.raises(BtcbotError, match="without a zone"):
        time_ms(pd.DatetimeIndex([naive]))
    with pytest.raises(BtcbotError, match="without a zone"):
        check_bars(pd.DataFrame({name: [1.0] for name in ("open", "high", "low", "close")}, index=[naive]))
