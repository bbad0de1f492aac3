"""Ledgers worked out by hand, through the backtester: each rule of the execution model, its arithmetic beside it.

Bars are minutes from Monday 2024-01-01 00:00 UTC; a deal's time is in seconds from there. Unless a test says otherwise a lot is one coin,
a point 0.01, nothing costs anything, and a lot at 100.00 holds 10.00 of margin.

| rule | tests that begin with |
| --- | --- |
| decided on a closed bar, filled at the next bar's first tick | `test_decision` |
| a late first tick, a closed market: entries lapse, exits go | `test_late`, `test_closed` |
| sides of the quote, the spread of column and model | `test_side`, `test_spread` |
| slippage | `test_slippage` |
| the four ticks of a bar, the adverse extreme first | `test_path` |
| SL and TP: from the entry on, gaps | `test_stops` |
| trailing, break-even, time limit, all together | `test_trailing`, `test_break_even`, `test_time`, `test_together` |
| reversal, the same side again, a part | `test_reversal`, `test_again`, `test_partial` |
| a position brought to a size | `test_scale` |
| several strategies on one account | `test_strategies` |
| commission, swap | `test_commission`, `test_swap` |
| volume: steps, bounds, share at risk, free margin | `test_volume`, `test_risk`, `test_margin` |
| stops level, freeze level | `test_level`, `test_freeze` |
| stop-out | `test_stop_out` |
| cents | `test_cents` |
| equity and its lowest value | `test_equity` |
| daily loss, drawdown, widest spread | `test_limit` |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scripted import DAY, HOUR, MINUTE, START, Book, Prices, flat, ledger, scale, terms, trade, trade_together, want

from btcbot.backtest.backtester import Result
from btcbot.core.errors import BtcbotError
from btcbot.engine.account import (
    DONE,
    FROZEN,
    INVALID_STOPS,
    INVALID_VOLUME,
    NO_MONEY,
    NOW,
    POSITION_VOLUME,
    PRICE_OPEN,
    SIDE,
    SL,
    SWAP,
    TICKET,
    TIME_OPEN,
)
from btcbot.engine.conditions import volume_steps
from btcbot.engine.limits import RiskLimits, moment
from btcbot.engine.risk import CHANGE_STOPS, TARGET_ID, RiskManager, no_positions

RANGE: Prices = (100, 102, 98, 100, 0)  # opens and closes in the middle


# --- when a decision happens


def test_decision_fills_at_the_first_tick_of_the_next_bar() -> None:
    run = trade([flat(100), (101, 105, 95, 104), (103, 105, 95, 96), flat(99)], want(0, 1), want(1, 0))
    # Decided after the bar at 100, bought at 101; decided after the close of 104, sold at 103.
    assert ledger(run) == ["60s buy 1 at 101.00 in", "120s sell 1 at 103.00 expert, profit 2.00"]


def test_decision_after_the_last_bar_does_nothing() -> None:
    assert ledger(trade([flat(100), flat(101)], want(1, 1))) == []


def test_decision_rests_on_bars_of_trading_hours_alone() -> None:
    # Minute 1 is outside the session: what the strategy wants from it on is known after minute 2, the next bar it sees.
    bars = [flat(100), flat(50), flat(101), flat(102)]
    run = trade(bars, want(1, 1), sessions=((1, 0, 1), (1, 2, 1440)))
    assert ledger(run) == ["180s buy 1 at 102.00 in"]


@pytest.mark.parametrize(("minute", "lines"), [(3, ["180s buy 1 at 101.00 in"]), (4, [])])
def test_late_first_tick_drops_an_entry(minute: int, lines: list[str]) -> None:
    # The bar closes at 60 s and may be 2 bars old: 180 s is just in time, 240 s is late. What was late is not made up for afterwards.
    run = trade({0: flat(100), minute: flat(101), minute + 1: flat(102)}, want(0, 1))
    assert ledger(run) == lines
    assert run.refusals["age"] == 1 - len(lines)


def test_late_first_tick_lets_an_exit_through() -> None:
    run = trade({0: flat(100), 1: flat(100), 9: flat(101)}, want(0, 1), want(1, -1))
    # The short that should follow has lapsed.
    assert ledger(run) == ["60s buy 1 at 100.00 in", "540s sell 1 at 101.00 expert, profit 1.00"]
    assert run.refusals["age"] == 1


def test_closed_market_keeps_an_exit_waiting_and_drops_an_entry() -> None:
    # Open until minute 3 and from minute 10 on: an exit wanted after minute 2 waits for 600 s, the reversal's entry lapses.
    bars = [flat(100 + minute) for minute in range(12)]
    run = trade(bars, want(0, 1), want(2, -1), sessions=((1, 0, 3), (1, 10, 1440)))
    assert ledger(run) == ["60s buy 1 at 101.00 in", "600s sell 1 at 110.00 expert, profit 9.00"]


def test_closed_market_triggers_no_stop() -> None:
    # The low of minute 3 lies in the pause; the stop at 96 fills at the first quote after it, 97 is above.
    bars = [flat(101), flat(101), flat(101), flat(90), flat(97), flat(95)]
    run = trade(bars, want(0, 1, stop=5.0), sessions=((1, 0, 3), (1, 4, 1440)))
    assert ledger(run) == ["60s buy 1 at 101.00 in", "300s sell 1 at 95.00 sl, profit -6.00"]


# --- sides and spread


def test_side_long_buys_at_ask_and_sells_at_bid() -> None:
    run = trade([flat(100), flat(100, 20), flat(101, 30)], want(0, 1), want(1, 0))
    assert ledger(run) == ["60s buy 1 at 100.20 in", "120s sell 1 at 101.00 expert, profit 0.80"]


def test_side_short_sells_at_bid_and_buys_at_ask() -> None:
    run = trade([flat(100), flat(100, 20), flat(99, 30)], want(0, -1), want(1, 0))
    assert ledger(run) == ["60s sell 1 at 100.00 in", "120s buy 1 at 99.30 expert, profit 0.70"]


@pytest.mark.parametrize(
    ("price", "column", "points", "bps", "ask"),
    [
        (100.01, 30, 7, 10, "100.31"),  # the column is the largest
        (100.01, 0, 7, 10, "100.12"),  # 10001 points * 0.001 = 10.001, up to 11
        (50.00, 0, 7, 10, "50.07"),  # 5000 * 0.001 = 5 < 7
        (50.00, 0, 0, 0, "50.00"),
    ],
)
def test_spread_is_the_largest_of_column_and_model(price: float, column: int, points: int, bps: float, ask: str) -> None:
    run = trade([flat(price), flat(price, column)], want(0, 1), spread_points=points, spread_bps=bps)
    assert ledger(run) == [f"60s buy 1 at {ask} in"]


def test_spread_of_the_open_holds_for_the_whole_bar() -> None:
    # 10 bps of the open of 100.00 are 10 points. At the high of 119.90 the ask is 120.00: the stop, 20.00 above the bid at the entry.
    run = trade([flat(100), (100, 119.90, 100, 100)], want(0, -1, stop=20.0), spread_bps=10)
    assert ledger(run) == ["60s sell 1 at 100.00 in", "80s buy 1 at 120.00 sl, profit -20.00"]


def test_spread_share_that_was_modelled_is_reported() -> None:
    run = trade([flat(100), flat(100, 30), flat(100)], want(0, 1), want(1, 0), spread_bps=10)
    assert run.modelled_spread == 0.5  # the entry's spread is the column's, the exit's the model's


# --- slippage


def test_slippage_is_against_a_long() -> None:
    run = trade([flat(100), (100, 102, 98, 101, 20)], want(0, 1, stop=1.2), slippage_bps=10)
    # Ask 100.20: slips by ceil(10020 * 0.001) = 11 points to 100.31. The stop at 99.00 sees 98.00 first: ceil(9.8) = 10 points, 97.90.
    assert ledger(run) == ["60s buy 1 at 100.31 in", "80s sell 1 at 97.90 sl, profit -2.41"]


def test_slippage_is_against_a_short() -> None:
    run = trade([flat(100), flat(100), flat(98, 10)], want(0, -1), want(1, 0), slippage_bps=10)
    # Sold at 100.00 - 0.10; bought at 98.10 + ceil(9.81) points.
    assert ledger(run) == ["60s sell 1 at 99.90 in", "120s buy 1 at 98.20 expert, profit 1.70"]


def test_slippage_leaves_a_target_alone() -> None:
    run = trade([flat(100), (100, 102, 100, 101)], want(0, 1, take=1.0), slippage_bps=10)
    assert ledger(run) == ["60s buy 1 at 100.10 in", "100s sell 1 at 101.00 tp, profit 0.90"]


# --- inside a bar


@pytest.mark.parametrize(("side", "line"), [(1, "80s sell 1 at 98.00 sl, profit -2.00"), (-1, "80s buy 1 at 102.00 sl, profit -2.00")])
def test_path_visits_the_adverse_extreme_first(side: int, line: str) -> None:
    # Stop and target, 1.00 away, both lie inside the bar: the stop counts, a third into the bar, and fills at the extreme.
    run = trade([flat(100), RANGE], want(0, side, stop=1.0, take=1.0))
    assert ledger(run)[1:] == [line]


@pytest.mark.parametrize(("side", "line"), [(1, "100s sell 1 at 101.00 tp, profit 1.00"), (-1, "100s buy 1 at 99.00 tp, profit 1.00")])
def test_path_visits_the_other_extreme_second(side: int, line: str) -> None:
    run = trade([flat(100), RANGE], want(0, side, stop=3.0, take=1.0))
    assert ledger(run)[1:] == [line]


def test_path_ends_with_the_close() -> None:
    book = Book().tick(100)
    book.open(1, 1)
    book.bar((100, 102, 98, 101))
    assert (book.account[NOW] - START, book.equity) == (59_999, 10_001.0)  # a millisecond before the next bar


# --- stop loss and take profit


@pytest.mark.parametrize(("low", "lines"), [(99.01, 1), (99.00, 2)])
def test_stops_are_live_in_the_bar_of_the_entry_and_reached_by_touch(low: float, lines: int) -> None:
    run = trade([flat(100), (100, 100, low, 100)], want(0, 1, stop=1.0))
    assert ledger(run) == ["60s buy 1 at 100.00 in", "80s sell 1 at 99.00 sl, profit -1.00"][:lines]


@pytest.mark.parametrize(("high", "lines"), [(100.99, 1), (101.00, 2)])
def test_stops_target_is_live_in_the_bar_of_the_entry_and_reached_by_touch(high: float, lines: int) -> None:
    run = trade([flat(100), (100, high, 100, 100)], want(0, 1, take=1.0))
    assert ledger(run) == ["60s buy 1 at 100.00 in", "100s sell 1 at 101.00 tp, profit 1.00"][:lines]


@pytest.mark.parametrize(("low", "lines"), [(98.91, 1), (98.90, 2)])
def test_stops_target_of_a_short_is_reached_by_the_ask(low: float, lines: int) -> None:
    run = trade([flat(100), (100, 100, low, 100, 10)], want(0, -1, take=1.0))
    assert ledger(run) == ["60s sell 1 at 100.00 in", "100s buy 1 at 99.00 tp, profit 1.00"][:lines]


@pytest.mark.parametrize(("high", "lines"), [(100.89, 1), (100.90, 2)])
def test_stops_of_a_short_are_reached_by_the_ask(high: float, lines: int) -> None:
    run = trade([flat(100), (100, high, 100, 100, 10)], want(0, -1, stop=1.0))
    assert ledger(run) == ["60s sell 1 at 100.00 in", "80s buy 1 at 101.00 sl, profit -1.00"][:lines]


def test_stops_gap_fills_at_the_gap() -> None:
    run = trade([flat(100), flat(100), (95, 100, 94, 99)], want(0, 1, stop=1.0), slippage_bps=10)
    # Bought at 100.10, the stop at 99.00. The first quote beyond it is 95.00; ceil(9.5) = 10 points of slippage.
    assert ledger(run)[1:] == ["120s sell 1 at 94.90 sl, profit -5.20"]


def test_stops_gap_beyond_a_target_fills_better() -> None:
    run = trade([flat(100), flat(100), flat(103)], want(0, 1, take=1.0))
    assert ledger(run)[1:] == ["120s sell 1 at 103.00 tp, profit 3.00"]
    run = trade([flat(100), flat(100), flat(97, 5)], want(0, -1, take=1.0))
    assert ledger(run)[1:] == ["120s buy 1 at 97.05 tp, profit 2.95"]


def test_stops_come_before_what_the_client_asks_at_the_same_tick() -> None:
    # At 120 s the quote is beyond the stop and the strategy wants out: the server was first.
    run = trade([flat(100), flat(100), flat(98)], want(0, 1, stop=1.0), want(1, 0))
    assert ledger(run)[1:] == ["120s sell 1 at 98.00 sl, profit -2.00"]


def test_stops_are_counted_from_the_side_that_the_entry_deals_at() -> None:
    # Bought at the ask of 100.10: stop 99.10, target 101.10. Sold at the bid of 100.00: stop 101.00, target 99.00.
    long = trade([flat(100), flat(100, 10), (100, 101.10, 99.11, 100)], want(0, 1, stop=1.0, take=1.0))
    assert ledger(long)[1:] == ["160s sell 1 at 101.10 tp, profit 1.00"]
    short = trade([flat(100), flat(100, 10), (100, 100.99, 99.00, 100)], want(0, -1, stop=1.0, take=1.0))
    assert ledger(short)[1:] == ["160s buy 1 at 99.00 tp, profit 1.00"]


# --- stops that follow


def test_trailing_uses_closed_bars_at_the_next_open() -> None:
    # The entry's bar has a high of 103.00, and after it a low of 101.50 that would hit 103.00 - 1.00. The stop comes at 120 s only.
    bars = [flat(100), (100, 103, 100, 101.5), (102.5, 102.6, 102.01, 102.5), (102.5, 102.5, 101.9, 102)]
    run = trade(bars, want(0, 1, trailing=1.0))
    assert ledger(run)[1:] == ["200s sell 1 at 101.90 sl, profit 1.90"]


def test_trailing_does_not_see_the_bar_that_decided() -> None:
    # Its high of 110.00 is older than the position: a stop at 109.00 would close at once.
    run = trade([(100, 110, 100, 100), flat(100), flat(100)], want(0, 1, trailing=1.0))
    assert ledger(run) == ["60s buy 1 at 100.00 in"]


def test_trailing_never_moves_away() -> None:
    # 103.00 gives a stop of 102.00; the next high, 102.50, would give 101.50.
    bars = [flat(100), (100, 103, 100, 102.5), (102.5, 102.5, 102.1, 102.4), (102.4, 102.4, 102.0, 102.2)]
    assert ledger(trade(bars, want(0, 1, trailing=1.0)))[1:] == ["200s sell 1 at 102.00 sl, profit 2.00"]


def test_trailing_closes_at_market_where_the_price_is_beyond() -> None:
    bars = [flat(100), (100, 103, 100, 101), flat(101)]  # the stop would be at 102.00
    assert ledger(trade(bars, want(0, 1, trailing=1.0)))[1:] == ["120s sell 1 at 101.00 expert, profit 1.00"]


def test_trailing_of_a_short_follows_the_ask() -> None:
    # The lowest ask is 97.00 + 0.10: the stop is at 98.10, reached by the ask when the bid is 98.00.
    bars = [flat(100), (100, 100, 97, 97.5, 10), (97.5, 97.99, 97.5, 97.8, 10), (97.8, 98.0, 97.8, 97.8, 10)]
    assert ledger(trade(bars, want(0, -1, trailing=1.0)))[1:] == ["200s buy 1 at 98.10 sl, profit 1.90"]


@pytest.mark.parametrize(("high", "lines"), [(101.99, 1), (102.00, 2)])
def test_break_even_moves_the_stop_to_the_entry(high: float, lines: int) -> None:
    bars = [flat(100), (100, high, 100, 101), (101, 101, 99.9, 100.5)]
    run = trade(bars, want(0, 1, break_even=2.0))
    assert ledger(run) == ["60s buy 1 at 100.00 in", "140s sell 1 at 99.90 sl, profit -0.10"][:lines]


def test_break_even_of_a_short() -> None:
    # Sold at 100.00; the lowest ask of 98.00 is 2.00 better. The stop is the entry: the ask reaches it at a bid of 99.90.
    bars = [flat(100), (100, 100, 97.9, 99, 10), (99, 99.9, 99, 99.5, 10)]
    run = trade(bars, want(0, -1, break_even=2.0))
    assert ledger(run) == ["60s sell 1 at 100.00 in", "140s buy 1 at 100.00 sl"]


@pytest.mark.parametrize(("minutes", "seconds"), [(3, 240), (2.5, 240), (2, 180)])
def test_time_limit_closes_at_the_first_tick_after_it(minutes: float, seconds: int) -> None:
    run = trade([flat(100)] * 6, want(0, 1, minutes=minutes))  # in since 60 s
    assert ledger(run)[1:] == [f"{seconds}s sell 1 at 100.00 expert"]


def test_time_limit_does_not_open_again() -> None:
    assert len(ledger(trade([flat(100)] * 9, want(0, 1, minutes=2)))) == 2


TOGETHER = want(0, 1, stop=5.0, take=20.0, trailing=6.0, break_even=3.0, minutes=5)


@pytest.mark.parametrize(
    ("bars", "line"),
    [
        # 95.00 is the first stop.
        ([(100, 101, 94.9, 99)], "80s sell 1 at 94.90 sl, profit -5.10"),
        # 103.00 is 3.00 over the entry: break-even, 100.00, is tighter than trailing, 97.00.
        ([(100, 103, 99, 102), (102, 103, 99.5, 101)], "140s sell 1 at 99.50 sl, profit -0.50"),
        # 107.00: trailing, 101.00, is tighter than break-even.
        ([(100, 107, 99, 106), (106, 106, 100.9, 102)], "140s sell 1 at 100.90 sl, profit 0.90"),
        # 120.00 is the target; before it the low, above the stop.
        ([(100, 107, 99, 106), (106, 121, 101.1, 120)], "160s sell 1 at 120.00 tp, profit 20.00"),
        # Nothing else for 5 minutes from 60 s on.
        ([flat(100)] * 6, "360s sell 1 at 100.00 expert"),
    ],
)
def test_together_the_first_that_is_reached_closes(bars: list[Prices], line: str) -> None:
    assert ledger(trade([flat(100), *bars], TOGETHER))[1:] == [line]


# --- requests


def test_reversal_closes_and_opens_at_one_tick() -> None:
    run = trade([flat(100), flat(100), flat(103, 10)], want(0, 1), want(1, -1, 2.0))
    assert ledger(run)[1:] == ["120s sell 1 at 103.00 expert, profit 3.00", "120s sell 2 at 103.00 in"]


def test_reversal_may_use_the_margin_of_what_it_closes() -> None:
    # Equity 100.00: 10 lots at 100.00 hold all of it, long as short.
    run = trade([flat(100)] * 3, want(0, 1, 10), want(1, -1, 10), deposit=100.0)
    assert ledger(run) == ["60s buy 10 at 100.00 in", "120s sell 10 at 100.00 expert", "120s sell 10 at 100.00 in"]


def test_again_the_same_side_keeps_the_position_and_tightens_its_stop() -> None:
    # First stop 97.00; the second target at 101.00 asks for 100.00, tighter: taken. No new deal.
    bars = [flat(100), flat(100), flat(101), (101, 101, 99.9, 100)]
    assert ledger(trade(bars, want(0, 1, stop=3.0), want(1, 1, 5, stop=1.0)))[1:] == ["200s sell 1 at 99.90 sl, profit -0.10"]
    # 101.00 - 9.00 is not tighter: 97.00 stays, where the next low, 96.90, finds it.
    bars = [flat(100), flat(100), flat(101), (101, 101, 96.9, 100)]
    assert ledger(trade(bars, want(0, 1, stop=3.0), want(1, 1, 5, stop=9.0)))[1:] == ["200s sell 1 at 96.90 sl, profit -3.10"]


def test_again_the_same_side_takes_the_new_target() -> None:
    bars = [flat(100), flat(100), flat(101), (101, 104, 101, 104)]
    assert ledger(trade(bars, want(0, 1, take=9.0), want(1, 1, take=2.0)))[1:] == ["220s sell 1 at 103.00 tp, profit 3.00"]


def test_partial_close_realises_profit_commission_and_swap_of_the_part() -> None:
    book = Book(nights=[(START + MINUTE, 1)], swap_long=-36, commission_per_lot=1.0).tick(100)
    assert book.open(1, 0.5) == DONE
    book.tick(110, second=60)  # 0.5 * 110 * 36 % / 360 = 0.055, half away from zero: -0.06
    assert book.positions[0, SWAP] == -6
    assert book.close(1, 0.2) == DONE  # swap -0.06 * 0.2 / 0.5 = -0.024; profit 0.2 * 10; commission 0.2
    assert book.held == [(1, 0.3)]
    assert book.margin == 3.0  # 0.3 * 100 / 10, from the price it was opened at
    assert book.close(1, 0.3) == DONE  # what is left of the swap
    assert book.lines == [
        "0s buy 0.5 at 100.00 in, commission -0.50",
        "60s sell 0.2 at 110.00 expert, profit 2.00, commission -0.20, swap -0.02",
        "60s sell 0.3 at 110.00 expert, profit 3.00, commission -0.30, swap -0.04",
    ]
    assert book.balance == 10_003.94  # 5.00 - 1.00 - 0.06


# --- a position brought to a size

RISING = [flat(100), flat(100), flat(102), flat(103), flat(104), flat(104)]


def test_scale_up_and_down_on_a_hedging_account() -> None:
    # 1 lot at 100.00, 2 more at 102.00. 1.5 are left of 3: the oldest goes whole (3.00), and 0.5 of the other (0.5 * 1.00).
    run = trade(RISING, scale(0, 1), scale(1, 3), scale(2, 1.5), scale(3, 0))
    assert ledger(run) == [
        "60s buy 1 at 100.00 in",
        "120s buy 2 at 102.00 in",
        "180s sell 1 at 103.00 expert, profit 3.00",
        "180s sell 0.5 at 103.00 expert, profit 0.50",
        "240s sell 1.5 at 104.00 expert, profit 3.00",
    ]
    # Two trades; the second sold 0.5 at 103.00 and 1.5 at 104.00, on average 103.75.
    assert run.trades[["volume", "open", "close", "net"]].to_numpy().tolist() == [[1, 100, 103, 3], [2, 102, 103.75, 3.5]]


def test_scale_up_and_down_on_a_netting_account() -> None:
    # (1 * 100 + 2 * 102) / 3 = 101.333...: 1.5 sold at 103.00 make 2.50, 1.5 at 104.00 make 4.00.
    # The entries cost 1.00 and 2.00, the exits 1.50 each.
    targets = scale(0, 1), scale(1, 3), scale(2, 1.5), scale(3, 0)
    run = trade(RISING, *targets, margin_mode="netting", commission_per_lot=1.0)
    assert ledger(run) == [
        "60s buy 1 at 100.00 in, commission -1.00",
        "120s buy 2 at 102.00 in, commission -2.00",
        "180s sell 1.5 at 103.00 expert, profit 2.50, commission -1.50",
        "240s sell 1.5 at 104.00 expert, profit 4.00, commission -1.50",
    ]
    # One trade: 6.50 less 6.00. At most it showed 2.50 and 1.5 * (104 - 101.333) = 4.00, at least the 0 of its entry.
    assert len(run.trades) == 1
    trade_ = run.trades.iloc[0]
    assert (trade_["volume"], trade_["open"], trade_["close"], trade_["net"]) == (3, 101.33333333, 103.5, 0.5)
    assert (trade_["mae"], trade_["mfe"], trade_["worst"], trade_["best"]) == (0, 6.5, 0.5, 0.5)


def test_scale_keeps_the_fraction_of_an_average_price() -> None:
    # 1 coin at 100.00 and 2 at 100.01 are held at 100.00666...; at 107.00 they make 3 * 6.99333 = 20.98. From 100.01, as shown, 20.97.
    bars = [flat(100), flat(100), flat(100.01), flat(107)]
    run = trade(bars, scale(0, 0.01), scale(1, 0.03), scale(2, 0), margin_mode="netting", contract_size=100)
    assert ledger(run)[2:] == ["180s sell 0.03 at 107.00 expert, profit 20.98"]


@pytest.mark.parametrize("mode", ["hedging", "netting"])
def test_scale_to_the_other_side_closes_all_and_opens_the_size(mode: str) -> None:
    run = trade(RISING, scale(0, 1), scale(1, 2), scale(2, -0.5), margin_mode=mode)
    held = run.deals.groupby("side")["volume"].sum()
    assert (held["buy"], held["sell"]) == (2, 2.5)
    assert ledger(run)[-1] == "180s sell 0.5 at 103.00 in"
    assert sum(run.deals["profit"]) == 4  # 3.00 of the first lot, 1.00 of the second


@pytest.mark.parametrize("mode", ["hedging", "netting"])
def test_scale_without_it_a_position_keeps_its_volume(mode: str) -> None:
    run = trade(RISING, want(0, 1), want(1, 1, 3), want(2, 1, 0.5), want(3, 0), margin_mode=mode)
    assert ledger(run) == ["60s buy 1 at 100.00 in", "240s sell 1 at 104.00 expert, profit 4.00"]


@pytest.mark.parametrize("mode", ["hedging", "netting"])
@pytest.mark.parametrize(("distance", "fill"), [(1.5, "100.40"), (9.0, "96.90")])
def test_scale_up_puts_one_stop_under_the_whole(mode: str, distance: float, fill: str) -> None:
    # The first stop is 97.00. At 102.00 the new target asks for 100.50, tighter: all takes it. It asks for 93.00: all keeps 97.00.
    low = float(fill)
    bars = [flat(100), flat(100), flat(102), (102, 102, low, low)]
    run = trade(bars, scale(0, 1, stop=3.0), scale(1, 2, stop=distance), margin_mode=mode)
    assert set(run.deals["reason"][2:]) == {"sl"}
    assert run.deals["volume"][2:].sum() == 2
    assert all(f"200s sell {2 if mode == 'netting' else 1} at {fill} sl" in line for line in ledger(run)[2:])


@pytest.mark.parametrize("mode", ["hedging", "netting"])
def test_scale_up_takes_the_new_target(mode: str) -> None:
    bars = [flat(100), flat(100), flat(102), (102, 104, 102, 104)]
    run = trade(bars, scale(0, 1, take=9.0), scale(1, 2, take=1.0), margin_mode=mode)
    assert set(run.deals["reason"][2:]) == {"tp"}
    assert run.deals["price"][2:].tolist() == [103.0] * (1 if mode == "netting" else 2)


def test_scale_down_leaves_the_stop() -> None:
    bars = [flat(100), flat(100), flat(102), (102, 102, 97, 97)]
    run = trade(bars, scale(0, 2, stop=3.0), scale(1, 1, stop=9.0))
    assert ledger(run)[1:] == ["120s sell 1 at 102.00 expert, profit 2.00", "200s sell 1 at 97.00 sl, profit -3.00"]


def test_scale_gives_each_position_its_own_time_and_a_netting_position_the_first() -> None:
    bars, targets = [flat(100)] * 7, (scale(0, 1, minutes=3), scale(1, 3, minutes=3))
    assert ledger(trade(bars, *targets))[2:] == ["240s sell 1 at 100.00 expert", "300s sell 2 at 100.00 expert"]
    assert ledger(trade(bars, *targets, margin_mode="netting"))[2:] == ["240s sell 3 at 100.00 expert"]


def test_scale_trails_each_position_and_breaks_even_at_its_own_price() -> None:
    # Positions at 100.00 and 102.00. The high of 103.10 is 3 above the first only: its stop goes to 100.00.
    # 104.90 is 2.9 above the second, so that has none.
    bars = [flat(100), flat(100), flat(102), (102, 103.1, 102, 103), (103, 104.9, 103, 104), (104, 104, 99.5, 99.5)]
    run = trade(bars, scale(0, 1, break_even=3.0), scale(1, 2, break_even=3.0), margin_mode="hedging")
    assert ledger(run)[2:] == ["320s sell 1 at 99.50 sl, profit -0.50"]
    # On average at 101.00: 104.00 is reached by the bar of 104.90, not by that of 103.10; then all goes at 99.50.
    run = trade(bars, scale(0, 1, break_even=3.0), scale(1, 2, break_even=3.0), margin_mode="netting")
    assert ledger(run)[2:] == ["320s sell 2 at 99.50 sl, profit -3.00"]


def test_scale_by_risk_counts_the_whole_from_the_quote_of_now() -> None:
    # 0.1 % of 10 000.00 is 10.00: 2 lots with a stop 5.00 away. At 110.00 the equity is 10 020.00: 10.02 / 2.50 = 4.008, so 2 more.
    # 10.02 / 10.00 = 1.002: 1 is left.
    bars = [flat(100), flat(100), flat(110), flat(110)]
    targets = (
        want(0, 1, risk=0.001, stop=5.0),
        want(1, 1, risk=0.001, stop=2.5, scaled=True),
        want(2, 1, risk=0.001, stop=10.0, scaled=True),
    )
    assert ledger(trade(bars, *targets)) == [
        "60s buy 2 at 100.00 in",
        "120s buy 2 at 110.00 in",
        "180s sell 2 at 110.00 expert, profit 20.00",
        "180s sell 1 at 110.00 expert",
    ]


def test_scale_deals_once_for_each_id() -> None:
    # 0.1 % of 10 000.00 over 1.00 are 10 lots. At 99.50 the equity is 9 995.00, which would be 9.99 lots: nobody asks.
    bars = [flat(100), flat(100), flat(100), flat(99.5), flat(99.5)]
    run = trade(bars, want(0, 1, risk=0.0005, stop=1.0, scaled=True), want(1, 1, risk=0.001, stop=1.0, scaled=True))
    assert ledger(run) == ["60s buy 5 at 100.00 in", "120s buy 5 at 100.00 in"]


def test_scale_then_a_plain_target_closes_all_parts() -> None:
    run = trade(RISING, scale(0, 1), scale(1, 2), want(2, 0))
    assert ledger(run)[2:] == ["180s sell 1 at 103.00 expert, profit 3.00", "180s sell 1 at 103.00 expert, profit 1.00"]


def test_scale_to_the_other_side_may_use_the_margin_of_what_it_closes() -> None:
    run = trade([flat(100)] * 4, scale(0, 4), scale(1, 10), scale(2, -10), deposit=100.0)
    assert ledger(run)[2:] == ["180s sell 4 at 100.00 expert", "180s sell 6 at 100.00 expert", "180s sell 10 at 100.00 in"]


def test_scale_is_within_the_limit_of_the_sum() -> None:
    run = trade(RISING, scale(0, 2), scale(1, 9), limits=RiskLimits(max_lots=3))
    assert ledger(run) == ["60s buy 2 at 100.00 in", "120s buy 1 at 102.00 in"]


def test_scale_limits_refuse_more_and_let_less_through() -> None:
    # 60 points of 100.00 are 60 bps, above 50.
    wide = [flat(100), flat(100), flat(100, 60), flat(100, 60)]
    run = trade(wide, scale(0, 2), scale(1, 3), scale(2, 1))
    assert ledger(run) == ["60s buy 2 at 100.00 in", "180s sell 1 at 100.00 expert"]
    assert run.refusals["spread"] == 1


def test_scale_is_within_the_free_margin() -> None:
    # Equity 100.00, a lot holds 10.00: after 6 lots 40.00 are free, which are 4 of the 6 more.
    run = trade([flat(100)] * 3, scale(0, 6), scale(1, 12), deposit=100.0, limits=RiskLimits(max_lots=50))
    assert ledger(run) == ["60s buy 6 at 100.00 in", "120s buy 4 at 100.00 in"]


def test_scale_rounds_down_and_deals_no_less_than_the_least_volume() -> None:
    # Steps of 0.01, at least 0.10: 1.119 is 1.11, and 0.11 are dealt; 1.15 would need 0.04, 1.06 would need 0.05; 1.00 needs 0.11.
    bars = [flat(100)] * 7
    run = trade(bars, scale(0, 1), scale(1, 1.119), scale(2, 1.15), scale(3, 1.06), scale(4, 1), scale(5, 0.09), volume_min=0.1)
    assert ledger(run) == [
        "60s buy 1 at 100.00 in",
        "120s buy 0.11 at 100.00 in",
        "300s sell 0.11 at 100.00 expert",
        "360s sell 0.89 at 100.00 expert",
        "360s sell 0.11 at 100.00 expert",
    ]
    assert run.refusals["size"] == 2  # the 0.04, and the position of 0.09 that can't be held: all is closed


def test_scale_swap_of_a_part_goes_with_it() -> None:
    # 36 % a year of 100.00 a lot and night: 2 lots pay 0.20. Half of it leaves with the first lot.
    bars = {0: flat(100), 1: flat(100), DAY: flat(100), DAY + 1: flat(100), DAY + 2: flat(100)}
    run = trade(bars, scale(0, 2), scale(DAY, 1), scale(DAY + 1, 0), swap_long=-36)
    assert [line.split("expert")[1] for line in ledger(run)[1:]] == [", swap -0.10", ", swap -0.10"]


# --- several strategies on one account


def owned(run: Result) -> list[str]:
    return [f"{name[-1]}: {line}" for name, line in zip(run.deals["strategy"], ledger(run), strict=True)]


def test_strategies_own_what_they_opened() -> None:
    # The first is long with a stop at 98.00, the second short: the stop takes the first alone, and each closes its own.
    bars = [flat(100), flat(100), (100, 100, 97.5, 99), flat(99), flat(99)]
    run = trade_together(bars, [want(0, 1, stop=2.0)], [want(0, -1, 2), want(2, 0)])
    assert owned(run) == [
        "1: 60s buy 1 at 100.00 in",
        "2: 60s sell 2 at 100.00 in",
        "1: 160s sell 1 at 97.50 sl, profit -2.50",
        "2: 180s buy 2 at 99.00 expert, profit 2.00",
    ]
    assert run.by_strategy[["deals", "trades", "net"]].to_numpy().tolist() == [[2, 1, -2.5], [2, 1, 2.0]]
    assert run.equity.iloc[-1] == 9_999.5


def test_strategies_exits_of_all_come_before_entries_of_any() -> None:
    # Equity 100.00 carries 10 lots. The second leaves at the tick at which the first enters: the first may use its margin.
    run = trade_together([flat(100)] * 3, [want(1, -1, 10)], [want(0, 1, 10), want(1, 0)], deposit=100.0)
    assert owned(run) == ["2: 60s buy 10 at 100.00 in", "2: 120s sell 10 at 100.00 expert", "1: 120s sell 10 at 100.00 in"]


def test_strategies_enter_in_their_order_on_what_margin_is_left() -> None:
    asked = [want(0, 1, 7)]
    run = trade_together([flat(100)] * 2, asked, asked, asked, deposit=100.0, limits=RiskLimits(max_lots=50))
    assert owned(run) == ["1: 60s buy 7 at 100.00 in", "2: 60s buy 3 at 100.00 in"]
    assert run.refusals["size"] == 1


def test_strategies_that_the_server_refuses_take_nothing_from_the_next() -> None:
    # The server allows 5 lots a side: the first is refused, so the second finds the whole margin.
    run = trade_together([flat(100)] * 2, [want(0, 1, 7)], [want(0, -1, 5)], deposit=100.0, volume_limit=5.0)
    assert owned(run) == ["2: 60s sell 5 at 100.00 in"]


def test_strategies_share_the_largest_volume() -> None:
    # At most 3 lots, long and short alike. What the first leaves is free for the second at once.
    run = trade_together([flat(100)] * 3, [want(0, 1, 2), want(1, 0)], [want(0, -1, 2), want(1, 1, 5)], limits=RiskLimits(max_lots=3))
    assert owned(run) == [
        "1: 60s buy 2 at 100.00 in",
        "2: 60s sell 1 at 100.00 in",
        "1: 120s sell 2 at 100.00 expert",
        "2: 120s buy 1 at 100.00 expert",
        "2: 120s buy 3 at 100.00 in",
    ]


def test_strategies_are_halted_together() -> None:
    # 60 lots lose 5.10 each of 10 000.00: 306.00 are more than 3 %, so the second may not enter any more.
    bars = [flat(100), flat(100), flat(94.9), flat(94.9)]
    run = trade_together(bars, [want(0, 1, 60)], [want(2, 1, 1)], limits=RiskLimits(max_lots=99, max_drawdown=0.03))
    assert owned(run) == ["1: 60s buy 60 at 100.00 in"]
    assert run.refusals["drawdown"] == 1
    assert str(run.halted_at)[:16] == "2024-01-01 00:02"


def test_strategies_may_scale() -> None:
    run = trade_together([flat(100), flat(100), flat(102), flat(103)], [scale(0, 1), scale(1, 2)], [scale(0, -2), scale(1, -1)])
    assert owned(run) == [
        "1: 60s buy 1 at 100.00 in",
        "2: 60s sell 2 at 100.00 in",
        "2: 120s buy 1 at 102.00 expert, profit -2.00",
        "1: 120s buy 1 at 102.00 in",
    ]


def test_strategies_need_a_hedging_account() -> None:
    with pytest.raises(BtcbotError, match="2 strategies on a netting account"):
        trade_together([flat(100)] * 2, [want(0, 1)], [want(0, 1)], margin_mode="netting")


# --- commission


@pytest.mark.parametrize(("sides", "paid"), [("both", (-0.65, -0.66)), ("entry", (-0.65, 0)), ("exit", (0, -0.66))])
def test_commission_by_lot_and_notional_is_rounded_once(sides: str, paid: tuple[float, float]) -> None:
    run = trade(
        [flat(101), flat(101), flat(120)],
        *(want(0, 1, 0.5), want(1, 0)),
        commission_per_lot=1.25,
        commission_bps=5,
        commission_sides=sides,
    )
    # In:  0.5 * 1.25 = 0.625; 0.5 * 101 * 0.0005 = 0.02525; sum 0.65025 -> 0.65 (rounded apart: 0.63 + 0.03)
    # Out: 0.625 + 0.5 * 120 * 0.0005 = 0.655 -> 0.66
    assert tuple(run.deals["commission"]) == paid
    assert run.equity.iloc[-1] == pytest.approx(10_009.50 + sum(paid), abs=1e-9)  # 0.5 * 19


def test_commission_is_paid_by_stops_too() -> None:
    run = trade([flat(100), (100, 100, 98, 100)], want(0, 1, stop=1.0), commission_per_lot=2, commission_sides="exit")
    assert ledger(run)[1:] == ["80s sell 1 at 98.00 sl, profit -2.00, commission -2.00"]


@pytest.mark.parametrize(("sides", "paid"), [("both", -3.0), ("entry", -1.0), ("exit", -2.0)])
def test_commission_of_a_netting_reversal(sides: str, paid: float) -> None:
    # A sale of 3 lots closes 2, which is an exit, and opens 1, which is an entry; 1.00 a lot.
    book = Book(margin_mode="netting", commission_per_lot=1.0, commission_sides=sides).tick(100)
    book.open(1, 2)
    book.tick(101).open(-1, 3)
    assert book.lines[1] == f"0s sell 3 at 101.00 expert, profit 2.00, commission {paid:.2f}"
    assert book.held == [(2, -1.0)]


# --- swap

TUESDAY, WEDNESDAY, THURSDAY = DAY, 2 * DAY, 3 * DAY


def test_swap_is_charged_at_the_first_tick_after_midnight_at_its_price() -> None:
    # Half a coin long from 60 s on. At Tuesday's first bid of 110.00: 0.5 * 110 * -36 % / 360 = -0.055 -> -0.06.
    run = trade({0: flat(100), 1: flat(100), TUESDAY: flat(110)}, want(0, 1, 0.5), want(1, 0), swap_long=-36)
    assert ledger(run)[1:] == ["86400s sell 0.5 at 110.00 expert, profit 5.00, swap -0.06"]


def test_swap_of_a_short_is_at_its_own_rate_and_the_ask() -> None:
    # 1 * (110.00 + 10.00) * 9 % / 360 = 0.03
    run = trade({0: flat(100), 1: flat(100), TUESDAY: flat(110, 1000)}, want(0, -1), want(1, 0), swap_long=-36, swap_short=9)
    assert ledger(run)[1:] == ["86400s buy 1 at 120.00 expert, profit -20.00, swap 0.03"]


def test_swap_of_the_triple_day() -> None:
    # A day costs 1 * 100 * 36 % / 360 = 0.10; the night that ends Wednesday counts three times: 0.10 + 0.10 + 0.30.
    bars = {0: flat(100), 1: flat(100), TUESDAY: flat(100), WEDNESDAY: flat(100), THURSDAY: flat(100), THURSDAY + 1: flat(100)}
    run = trade(bars, want(0, 1), want(THURSDAY, 0), swap_long=-36, swap_days=(1, 1, 1, 3, 1, 1, 1))
    assert ledger(run)[1:] == [f"{(THURSDAY + 1) * 60}s sell 1 at 100.00 expert, swap -0.50"]


def test_swap_of_each_midnight_of_a_weekend_gap_is_rounded_by_itself() -> None:
    # From Friday noon to Monday: Friday thrice, Saturday and Sunday once.
    # At 90.18 a day is 90.18 * 10 % / 360 = 0.02505: 0.08 + 0.03 + 0.03.
    friday, monday = 4 * DAY + 12 * HOUR, 7 * DAY
    bars = {friday: flat(90.18), friday + 1: flat(90.18), monday: flat(90.18)}
    run = trade(bars, want(friday, 1), want(friday + 1, 0), swap_long=-10, swap_days=(1, 1, 1, 1, 1, 3, 1))
    assert ledger(run)[1:] == [f"{monday * 60}s sell 1 at 90.18 expert, swap -0.14"]


def test_swap_midnight_is_the_brokers() -> None:
    # In winter Athens is two hours ahead: its midnight is 22:00 UTC.
    night = 22 * HOUR
    bars = {minute: flat(100) for minute in range(night - 3, night + 2)}
    before = trade(bars, want(night - 3, 1), want(night - 2, 0), swap_long=-36, clock="EET")
    assert ledger(before)[1:] == [f"{(night - 1) * 60}s sell 1 at 100.00 expert"]
    after = trade(bars, want(night - 3, 1), want(night - 1, 0), swap_long=-36, clock="EET")
    assert ledger(after)[1:] == [f"{night * 60}s sell 1 at 100.00 expert, swap -0.10"]


def test_swap_is_not_paid_by_an_entry_at_the_tick_of_midnight() -> None:
    bars = {DAY - 1: flat(100), DAY: flat(100), DAY + 1: flat(100), DAY + 2: flat(100)}
    run = trade(bars, want(DAY - 1, 1), want(DAY + 1, 0), swap_long=-36)
    assert ledger(run)[1:] == [f"{(DAY + 2) * 60}s sell 1 at 100.00 expert"]


def test_swap_comes_before_the_stop_of_the_same_tick() -> None:
    # 90 * 36 % / 360 = 0.09
    run = trade({DAY - 2: flat(100), DAY - 1: flat(100), DAY: flat(90)}, want(DAY - 2, 1, stop=5.0), swap_long=-36)
    assert ledger(run)[1:] == [f"{DAY * 60}s sell 1 at 90.00 sl, profit -10.00, swap -0.09"]


# --- volume


@pytest.mark.parametrize(
    ("lots", "filled"),
    [
        (0.379, 0.37),
        (0.29, 0.29),  # 0.29 / 0.01 is 28.999... in floats
        (0.01, 0.01),
        (0.0099, 0),
        (7.0, 5.0),  # no more than the symbol admits
    ],
)
def test_volume_is_rounded_down_to_steps_within_bounds(lots: float, filled: float) -> None:
    run = trade([flat(100)] * 2, want(0, 1, lots), volume_max=5.0)
    assert ledger(run) == ([f"60s buy {filled:g} at 100.00 in"] if filled else [])
    assert run.refusals["size"] == int(filled == 0)


def test_volume_below_the_least_is_no_order() -> None:
    run = trade([flat(100)] * 2, want(0, 1, 0.09), volume_min=0.1)
    assert (ledger(run), run.refusals["size"]) == ([], 1)


def test_volume_is_within_the_limit() -> None:
    assert ledger(trade([flat(100)] * 2, want(0, 1, 7), limits=RiskLimits(max_lots=2.5))) == ["60s buy 2.5 at 100.00 in"]


def test_volume_that_the_server_refuses() -> None:
    book = Book(volume_min=0.1, volume_max=5).tick(100)
    assert [book.open(1, lots) for lots in (0.09, 5.01, 0, 0.1, 5)] == [INVALID_VOLUME] * 3 + [DONE] * 2
    assert [volume_steps(lots, 0.01) for lots in (0.379, 0.29, 0.0099)] == [37, 29, 0]


@pytest.mark.parametrize(
    ("costs", "lots"),
    [
        ({}, 25.0),  # 0.5 % of 10 000.00 are 50.00; the stop is 2.00 away
        ({"commission_per_lot": 0.25}, 20.0),  # 2.00 + 0.25 in and 0.25 out
        ({"commission_per_lot": 0.5}, 16.66),  # 50 / 3.00 = 16.666...
        ({"commission_per_lot": 0.5, "commission_sides": "exit"}, 20.0),
        ({"commission_bps": 50, "commission_sides": "entry"}, 20.0),  # 100 * 0.005 = 0.50
        ({"slippage_bps": 100}, 12.56),  # in at 101.00, out at 98.00 - 0.98 = 97.02: 50 / 3.98 = 12.5628
        ({"spread_points": 100}, 25.0),  # in at 101.00, the stop at 99.00
    ],
)
def test_risk_share_counts_stop_slippage_and_commission(costs: dict[str, Any], lots: float) -> None:
    limits = RiskLimits(max_lots=100, max_spread_bps=200)
    assert trade([flat(100)] * 2, want(0, 1, risk=0.005, stop=2.0), limits=limits, **costs).deals["volume"].tolist() == [lots]


def test_risk_share_is_not_exceeded() -> None:
    # 25 lots, stopped at the level: exactly 50.00 of 10 000.00.
    run = trade([flat(100), (100, 100, 98, 99)], want(0, 1, risk=0.005, stop=2.0), limits=RiskLimits(max_lots=100))
    assert ledger(run)[1:] == ["80s sell 25 at 98.00 sl, profit -50.00"]


def test_risk_share_without_a_stop_is_no_order() -> None:
    run = trade([flat(100)] * 2, want(0, 1, risk=0.005))
    assert (ledger(run), run.refusals["no stop"]) == ([], 1)


# --- margin


@pytest.mark.parametrize(
    ("deposit", "conditions", "lots"),
    [
        (100.0, {}, 10.0),  # 100.00 / (100.00 / 10) a lot
        (99.99, {}, 9.99),
        (100.0, {"slippage_bps": 10}, 9.99),  # at 100.10: 10.01 a lot, 9.99000...
        (100.0, {"margin_rate": 0.5}, 20.0),
        (100.0, {"leverage": 5}, 5.0),
    ],
)
def test_margin_caps_the_volume(deposit: float, conditions: dict[str, Any], lots: float) -> None:
    run = trade([flat(100)] * 2, want(0, 1, 50), limits=RiskLimits(max_lots=100), deposit=deposit, **conditions)
    assert run.deals["volume"].tolist() == [lots]


def test_margin_for_less_than_the_least_volume_is_no_order() -> None:
    run = trade([flat(100)] * 2, want(0, 1), deposit=0.09)  # 0.01 lots hold 0.10
    assert (ledger(run), run.refusals["size"]) == ([], 1)


def test_margin_that_the_server_refuses() -> None:
    book = Book(deposit=100.0).tick(100)
    assert [book.open(1, lots) for lots in (10.01, 10, 0.01)] == [NO_MONEY, DONE, NO_MONEY]
    assert book.held == [(1, 10.0)]  # a refusal takes no ticket
    book.tick(101)  # equity 110, margin 100: 0.99 lots at 10.10 are 9.999
    assert [book.open(1, lots) for lots in (1.0, 0.99)] == [NO_MONEY, DONE]


def test_margin_is_held_at_the_price_of_the_entry() -> None:
    book = Book(slippage_bps=10).tick(100, 100.20)
    book.open(1, 2)  # at 100.20 + 0.11 = 100.31
    book.tick(150)
    assert book.margin == 20.06  # 2 * 100.31 / 10 = 20.062


# --- stops level and freeze level


def test_level_keeps_a_new_stop_and_target_away_from_the_price() -> None:
    # Stops live at least 0.50 from the bid, 100.00: not 99.90 and 100.30 but 99.50 and 100.50.
    near = want(0, 1, stop=0.2, take=0.2)
    run = trade([flat(100), (100, 100.49, 99.51, 100, 10), (100, 100.5, 100, 100)], near, stops_level=50)
    assert ledger(run)[1:] == ["160s sell 1 at 100.50 tp, profit 0.40"]
    run = trade([flat(100), (100, 100.49, 99.51, 100, 10), (100, 100.0, 99.5, 100)], near, stops_level=50)
    assert ledger(run)[1:] == ["140s sell 1 at 99.50 sl, profit -0.60"]


def test_level_keeps_a_trailing_stop_away_from_the_price() -> None:
    # The high of 101.00 asks for 100.90 at a bid of 101.00; 50 points away is 100.50.
    bars = [flat(100), (100, 101, 100, 101), (101, 101, 100.51, 101), (101, 101, 100.5, 101)]
    run = trade(bars, want(0, 1, trailing=0.1), stops_level=50)
    assert ledger(run)[1:] == ["200s sell 1 at 100.50 sl, profit 0.50"]


def test_level_that_the_server_refuses() -> None:
    book = Book(stops_level=50).tick(100, 100.10)
    tries = [(1, 99.51, 0), (1, 0, 100.49), (-1, 100.59, 0), (-1, 0, 99.61), (1, 99.50, 100.50), (-1, 100.60, 99.60)]
    assert [book.open(side, 1, sl, tp) for side, sl, tp in tries] == [INVALID_STOPS] * 4 + [DONE] * 2
    assert [book.modify(1, 99.51), book.modify(1, 99.0)] == [INVALID_STOPS, DONE]


@pytest.mark.parametrize(("bid", "line"), [(100.60, "200s sell 1 at 99.90 sl, profit -0.10"), (100.61, "200s sell 1 at 100.00 sl")])
def test_freeze_keeps_a_stop_that_is_near_the_price(bid: float, line: str) -> None:
    # Entry 100.00, stop 99.90. The high asks for a stop at 100.00; at a bid of 100.60 the old one is 70 points away: frozen. At 100.61 not.
    bars = [flat(100), (100, 101, 99.95, bid), flat(bid), (bid, bid, 99.9 if bid == 100.60 else 100, bid)]
    assert ledger(trade(bars, want(0, 1, stop=0.1, trailing=1.0), freeze_level=70))[1:] == [line]


@pytest.mark.parametrize(("bid", "asked"), [(10_060, []), (10_061, [[CHANGE_STOPS, 1, 1, 0, 10_000, 0]])])
def test_freeze_is_not_even_asked_for(bid: int, asked: list[list[int]]) -> None:
    # The position of the test above, in points: opened at 100.00, its stop at 99.90, and a closed bar with a high of 101.00.
    risk, positions = RiskManager(terms(freeze_level=70)), no_positions(1)
    positions[0, [TICKET, SIDE, POSITION_VOLUME, PRICE_OPEN, SL, TIME_OPEN]] = 1, 1, 100, 10_000, 9_990, START
    target, bar = want(-1, 1, trailing=1.0), np.array([START, 10_000, 10_100, 9_995, bid, 0])
    risk.state = risk.new_state(float(target[TARGET_ID]))
    at = moment(now=START + MINUTE, bid=bid, ask=bid, day=0, equity=1_000_000, used_margin=1_000)
    assert risk.decide(target, bar, at, positions).tolist() == asked


def test_freeze_that_the_server_refuses() -> None:
    book = Book(freeze_level=10).tick(100)
    book.open(1, 1, 99.90)
    book.open(1, 1, 99.89)
    assert [book.modify(1, 99.0), book.modify(2, 99.0)] == [FROZEN, DONE]


# --- stop-out


@pytest.mark.parametrize(("low", "lines"), [(95.00, 1), (94.99, 2)])
def test_stop_out_needs_less_than_its_level(low: float, lines: int) -> None:
    # Margin 100.00, equity at 95.00: 100 - 50 = 50.00, exactly 50 %; at 94.99: 49.90.
    run = trade([flat(100), (100, 100, low, 100)], want(0, 1, 10), deposit=100.0)
    assert ledger(run) == ["60s buy 10 at 100.00 in", "80s sell 10 at 94.99 so, profit -50.10"][:lines]


def test_stop_out_slips_and_comes_after_the_stops() -> None:
    run = trade([flat(100), flat(100), flat(90)], want(0, 1, 9), deposit=100.0, slippage_bps=10)
    # In at 100.10; equity at 90.00: 100 - 90.90 = 9.10 < 45.05. Out at 90.00 - 0.09.
    assert ledger(run)[1:] == ["120s sell 9 at 89.91 so, profit -91.71"]
    run = trade([flat(100), flat(100), flat(90)], want(0, 1, 9, stop=5.0), deposit=100.0)
    assert ledger(run)[1:] == ["120s sell 9 at 90.00 sl, profit -90.00"]


def test_stop_out_closes_the_worst_first_and_no_more_than_it_must() -> None:
    book = Book(deposit=150.0).tick(100)
    for lots in (1, 8, 6):
        assert book.open(1, lots) == DONE  # margin 10 + 80 + 60
    book.tick(94.90)
    # Equity 150 - 15 * 5.10 = 73.50 of 150.00: 49 %. The worst, -40.80, goes: 73.50 of 70.00.
    assert book.lines[3:] == ["0s sell 8 at 94.90 so, profit -40.80"]
    assert book.held == [(1, 1.0), (3, 6.0)]


def test_stop_out_counts_the_swap() -> None:
    book = Book(deposit=60.0, nights=[(START + MINUTE, 1)], swap_long=36).tick(100)
    book.open(1, 3)
    book.tick(100, second=60)  # 3 * 100 * 36 % / 360 = 0.30
    book.open(1, 3)
    book.tick(94.90, second=61)
    # -15.30 + 0.30 and -15.30: equity 60 + 0.30 - 30.60 = 29.70 of 60.00. The second is worse.
    assert book.lines[2:] == ["61s sell 3 at 94.90 so, profit -15.30"]


# --- cents


@pytest.mark.parametrize(
    ("side", "price", "profit"),
    [
        (1, 100.05, 0.03),  # 0.5 * 0.05 = 0.025
        (-1, 100.05, -0.03),
        (1, 99.95, -0.03),
        (-1, 99.95, 0.03),
        (1, 100.04, 0.02),
        (1, 100.00, 0.0),
    ],
)
def test_cents_round_half_away_from_zero(side: int, price: float, profit: float) -> None:
    run = trade([flat(100), flat(100), flat(price)], want(0, side, 0.5), want(1, 0))
    assert run.deals["profit"].tolist() == [0.0, profit]


# --- equity


def test_equity_is_marked_at_the_close_at_bid_or_ask() -> None:
    bars: list[Prices] = [flat(100), (100, 103, 99, 101, 10), flat(102, 30)]
    assert trade(bars, want(0, 1)).equity.tolist() == [10_000.0, 10_000.90, 10_001.90]  # bought at 100.10
    assert trade(bars, want(0, -1)).equity.tolist() == [10_000.0, 9_998.90, 9_997.70]  # ask 101.10, 102.30


def test_equity_lowest_is_that_of_the_adverse_extreme() -> None:
    bars: list[Prices] = [flat(100), (100, 103, 99, 101, 10), flat(102, 30)]
    assert trade(bars, want(0, 1)).low.tolist() == [10_000.0, 9_998.90, 10_001.90]  # 99.00 - 100.10
    assert trade(bars, want(0, -1)).low.tolist() == [10_000.0, 9_996.90, 9_997.70]  # 100.00 - 103.10


def test_equity_holds_swap_before_it_is_booked() -> None:
    bars = {DAY - 2: flat(100), DAY - 1: flat(100), DAY: flat(100), DAY + 1: flat(100)}
    assert trade(bars, want(DAY - 2, 1), swap_long=-36).equity.tolist() == [10_000.0, 10_000.0, 9_999.90, 9_999.90]


# --- limits


@pytest.mark.parametrize(("fall", "refused"), [(10.0, 0), (10.01, 1)])
def test_limit_of_a_day_refuses_entries_until_the_next(fall: float, refused: int) -> None:
    # 10 lots lose 100.00, exactly 1 % of the day's first equity of 10 000.00, or 10 cents more.
    bars = {0: flat(100), 1: flat(100), 2: flat(100 - fall), 3: flat(90), DAY - 1: flat(90), DAY: flat(90)}
    targets = want(0, 1, 10), want(1, 0), want(2, -1), want(3, 0), want(DAY - 1, 1)
    run = trade(bars, *targets, limits=RiskLimits(max_daily_loss=0.01))
    assert run.refusals["daily loss"] == refused
    assert ledger(run)[-1] == f"{DAY * 60}s buy 1 at 90.00 in"


def test_limit_of_a_day_starts_from_its_first_equity() -> None:
    # The day before ends with a loss of 150.00, the new day starts with 9 850.00: 90.00 more are 0.91 % of that.
    bars = {0: flat(100), 1: flat(100), 2: flat(85), DAY: flat(85), DAY + 1: flat(85), DAY + 2: flat(76), DAY + 3: flat(76)}
    targets = want(0, 1, 10), want(1, 0), want(DAY, 1, 10), want(DAY + 1, 0), want(DAY + 2, 1)
    run = trade(bars, *targets, limits=RiskLimits(max_daily_loss=0.01))
    assert run.refusals["daily loss"] == 0
    assert len(ledger(run)) == 5


def test_limit_of_a_day_is_the_brokers_day() -> None:
    # Athens' midnight is 22:00 UTC: the loss of 21:58 is yesterday's at 22:00.
    night = 22 * HOUR
    bars = {night - 4: flat(100), night - 3: flat(100), night - 2: flat(80), night - 1: flat(80), night: flat(80)}
    targets = want(night - 4, 1, 10), want(night - 3, 0), want(night - 2, 1), want(night - 1, 1)
    run = trade(bars, *targets, limits=RiskLimits(max_daily_loss=0.01), clock="EET")
    assert run.refusals["daily loss"] == 1
    assert ledger(run)[2:] == [f"{night * 60}s buy 1 at 80.00 in"]


@pytest.mark.parametrize(("fall", "halted"), [(10.1, None), (10.11, "2024-01-01 00:04")])
def test_limit_of_drawdown_halts_for_good(fall: float, halted: str | None) -> None:
    # The peak is 10 100.00: 10 lots from 100 to 110. From there 1 % is 101.00.
    bars = {0: flat(100), 1: flat(100), 2: flat(110), 3: flat(110), 4: flat(110 - fall), 5: flat(110 - fall), DAY: flat(130)}
    run = trade(bars, want(0, 1, 10), want(3, 0), want(4, 1), want(5, 1), limits=RiskLimits(max_drawdown=0.01))
    assert run.halted_at == (None if halted is None else pd.Timestamp(halted, tz="UTC"))
    assert len(ledger(run)) == (2 if halted else 3)
    assert run.refusals["drawdown"] == (1 if halted else 0)


def test_limit_of_drawdown_counts_open_positions() -> None:
    bars = [flat(100), flat(100), (120, 120, 109, 109), flat(108), flat(130), flat(130)]
    run = trade(bars, want(0, 1, 10), want(4, -1), limits=RiskLimits(max_drawdown=0.01))
    # From the open of 120.00 to that of 108.00, 10 200.00 to 10 080.00, is 1.2 %: halted at the tick of 180 s.
    # The exit goes, the entry doesn't, although the equity is at a new peak.
    assert run.halted_at == pd.Timestamp("2024-01-01 00:03", tz="UTC")
    assert ledger(run)[1:] == ["300s sell 10 at 130.00 expert, profit 300.00"]


@pytest.mark.parametrize(("spread", "lines"), [(50, 1), (51, 0)])
def test_limit_of_spread_refuses_entries(spread: int, lines: int) -> None:
    run = trade([flat(100), flat(100, spread)], want(0, 1))  # 50 bps of 100.00
    assert (len(ledger(run)), run.refusals["spread"]) == (lines, 1 - lines)


def test_limit_of_spread_lets_exits_through() -> None:
    run = trade([flat(100), flat(100), flat(100, 90)], want(0, -1), want(1, 0))
    assert ledger(run)[1:] == ["120s buy 1 at 100.90 expert, profit -0.90"]
