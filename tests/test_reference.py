"""Ledgers worked out by hand: each test holds one rule of the execution model, its arithmetic beside it."""

from dataclasses import replace
from decimal import Decimal as D
from fractions import Fraction
from typing import Any

import pytest
from reference import Deal, Profile, ReferenceAccount, cents
from reference_orders import Conditions, OrdersAccount

MINUTE = 60_000
PLAIN = Profile(
    digits=2,
    contract_size=D(1),
    volume_min=D("0.01"),
    volume_max=D(10),
    volume_step=D("0.01"),
    stops_level=0,
    freeze_level=0,
    leverage=D(10),
    margin_rate=D(1),
    stop_out_level=D(50),
    commission_per_lot=D(0),
    commission_bps=D(0),
    commission_entry=False,
    commission_exit=False,
    swap_long=D(0),
    swap_short=D(0),
    swap_days=(1, 1, 1, 1, 1, 1, 1),
    slippage_ppm=0,
    spread_points=0,
    spread_ppm=0,
    initial_deposit=D(10_000),
)
NONE = D(0)

BarPrices = tuple[str, str, str, str, int]


def account(*bars: BarPrices, midnights: tuple[tuple[int, int], ...] = (), max_positions: int = 200, **changes: Any) -> ReferenceAccount:
    """Return an account on consecutive minute bars (open, high, low, close, spread) from time 0, and the plain profile changed."""
    timed = [(i * MINUTE, *bar) for i, bar in enumerate(bars)]
    return ReferenceAccount(replace(PLAIN, **changes), timed, MINUTE, midnights, max_positions)


def flat(price: str, spread: int = 0) -> BarPrices:
    """Return a bar that stays at one price."""
    return price, price, price, price, spread


def test_entry_is_booked_at_the_ask_of_the_first_tick() -> None:
    run = account(("100.00", "101.00", "99.00", "100.50", 10))
    assert (run.time_ms, run.bid, run.ask) == (0, D("100.00"), D("100.10"))
    assert run.open(1, D("0.5"), NONE, NONE, 7) == (10009, 1)
    expected = Deal(1, 1, 0, 1, 0, 1, 3, D("0.5"), D("100.10"), NONE, NONE, NONE, 7)
    assert run.deals == [expected]
    assert run.balance == D(10_000)
    assert run.equity() == D("9999.95")  # 0.5 * (100.00 - 100.10) = -0.05
    assert run.margin() == D("5.01")  # 0.5 * 100.10 / 10 = 5.005, half away from zero
    assert run.positions[0].ticket == 1


def test_advance_visits_four_ticks_and_ends_at_the_last_close() -> None:
    run = account(("100.00", "101.00", "99.00", "100.50", 0), ("100.60", "100.60", "100.60", "100.60", 0))
    assert run.advance()
    assert (run.time_ms, run.bid) == (60_000, D("100.60"))
    assert not run.advance()
    assert run.time_ms == 60_000 + 59_999
    assert not run.advance()
    assert run.time_ms == 60_000 + 59_999


def test_long_sl_fills_at_the_tick_beyond_it_made_worse_by_slippage() -> None:
    run = account(("100.00", "102.00", "98.00", "101.00", 20), slippage_ppm=1000)
    # Buy: ask 100.20 = 10020 points, slippage ceil(10020 * 0.001) = ceil(10.02) = 11 points, fill 100.31.
    run.open(1, D(2), D("99.00"), NONE, 7)
    assert not run.advance()
    # Net long: the low comes first, at 60000 // 3 ms. Bid 98.00 <= 99.00; slippage ceil(9.8) = 10 points, fill 97.90.
    # 2 * (97.90 - 100.31) = -4.82
    assert run.deals[0].price == D("100.31")
    assert run.deals[1] == Deal(2, 2, 20_000, -1, 1, 1, 4, D(2), D("97.90"), NONE, NONE, D("-4.82"), 7)
    assert run.balance == D("9995.18")
    assert run.positions == []


def test_short_sl_triggers_and_fills_at_the_ask() -> None:
    run = account(("100.00", "100.90", "98.00", "99.00", 10))
    run.open(-1, D(1), D("101.00"), NONE, 7)
    run.advance()
    # Net short: the high comes first. Ask 100.90 + 0.10 = 101.00 touches the stop; -(101.00 - 100.00) = -1.00
    assert run.deals[1] == Deal(2, 2, 20_000, 1, 1, 1, 4, D(1), D("101.00"), NONE, NONE, D("-1.00"), 7)


def test_short_sl_is_not_reached_by_the_bid() -> None:
    run = account(("100.00", "100.95", "98.00", "99.00", 4))  # highest ask 100.99
    run.open(-1, D(1), D("101.00"), NONE, 7)
    run.advance()
    assert len(run.deals) == 1


def test_gap_through_a_stop_fills_at_the_gap() -> None:
    run = account(flat("100.00"), ("95.00", "100.00", "94.00", "99.00", 0))
    run.open(1, D(1), D("99.00"), NONE, 0)
    assert run.advance()
    # The first tick of the second bar, 95.00, is the first quote beyond 99.00: 95 - 100 = -5
    deal = run.deals[1]
    assert (deal.time_ms, deal.reason, deal.price, deal.profit) == (60_000, 4, D("95.00"), D("-5.00"))


@pytest.mark.parametrize(
    ("side", "tp", "time_ms", "profit"),
    [
        (1, "101.50", 40_000, "1.40"),  # low first, then the high; bought at 100.10: 101.50 - 100.10
        (-1, "99.00", 40_000, "1.00"),  # high first, then the low: ask 98.50 + 0.10 <= 99.00; sold at 100.00
    ],
)
def test_tp_inside_a_bar_fills_at_its_level_without_slippage(side: int, tp: str, time_ms: int, profit: str) -> None:
    run = account(("100.00", "102.00", "98.50", "100.00", 10))
    run.open(side, D(1), NONE, D(tp), 7)
    run.advance()
    assert run.deals[1] == Deal(2, 2, time_ms, -side, 1, 1, 5, D(1), D(tp), NONE, NONE, D(profit), 7)


def test_tp_fills_at_the_better_quote_of_a_gap() -> None:
    run = account(flat("100.00"), flat("103.00"), slippage_ppm=100)
    # Slippage of the entry: ceil(10000 * 0.0001) = 1 point; none at the take-profit: 103.00 - 100.01 = 2.99
    run.open(1, D(1), NONE, D("101.00"), 0)
    assert run.advance()
    deal = run.deals[1]
    assert (deal.time_ms, deal.reason, deal.price, deal.profit) == (60_000, 5, D("103.00"), D("2.99"))


@pytest.mark.parametrize(("side", "tp"), [(1, "101.00"), (-1, "99.00")])
@pytest.mark.parametrize("second", [False, True])
def test_tp_is_reached_by_touch(side: int, tp: str, second: bool) -> None:
    bars = [flat("100.00"), flat(tp)] if second else [("100.00", "101.00", "99.00", "100.00", 0)]
    run = account(*bars)
    run.open(side, D(1), NONE, D(tp), 0)
    run.advance()
    assert [(d.time_ms, d.price, d.profit) for d in run.deals[1:]] == [(60_000 if second else 40_000, D(tp), D("1.00"))]


def test_short_tp_fills_at_the_better_quote_of_a_gap() -> None:
    run = account(flat("100.00"), flat("97.00", 5))
    run.open(-1, D(1), NONE, D("99.00"), 0)
    assert run.advance()
    # Ask 97.05: 100.00 - 97.05 = 2.95
    assert (run.deals[1].price, run.deals[1].profit) == (D("97.05"), D("2.95"))


@pytest.mark.parametrize(("side", "sl", "tp", "profit"), [(1, "99.00", "101.00", "-2.00"), (-1, "101.00", "99.00", "-2.00")])
def test_the_adverse_extreme_comes_first_when_a_bar_holds_both_levels(side: int, sl: str, tp: str, profit: str) -> None:
    run = account(("100.00", "102.00", "98.00", "100.00", 0))
    run.open(side, D(1), D(sl), D(tp), 0)
    run.advance()
    assert [(d.time_ms, d.reason, d.profit) for d in run.deals[1:]] == [(20_000, 4, D(profit))]


def test_the_net_position_after_the_requests_orders_the_extremes() -> None:
    run = account(("100.00", "102.00", "98.00", "100.00", 0))
    run.open(1, D(1), D("99.00"), D("101.00"), 0)
    run.open(-1, D(2), NONE, NONE, 0)
    run.advance()
    # Net -1: the high comes first and is the long's target.
    assert [(d.time_ms, d.position_id, d.reason, d.profit) for d in run.deals[2:]] == [(20_000, 1, 5, D("1.00"))]


def test_a_flat_book_sees_the_low_first() -> None:
    run = account(("100.00", "102.00", "98.00", "100.00", 0))
    run.open(-1, D(1), D("101.00"), D("99.00"), 0)
    run.open(1, D(1), NONE, NONE, 0)
    run.advance()
    assert [(d.time_ms, d.position_id, d.reason, d.profit) for d in run.deals[2:]] == [(20_000, 1, 5, D("1.00"))]


def test_positions_are_served_in_ticket_order() -> None:
    # The second bar opens at bid 100.00 with 600 points of spread, ask 106.00: beyond both stops.
    run = account(flat("105.00"), flat("100.00", 600))
    run.open(-1, D(1), D("105.50"), D("100.50"), 0)
    run.open(1, D(1), D("104.00"), D("106.00"), 0)
    run.advance()
    # Short: 105 - 106 = -1; long: 100 - 105 = -5
    assert [(d.ticket, d.order, d.position_id, d.reason, d.price, d.profit) for d in run.deals[2:]] == [
        (3, 3, 1, 4, D("106.00"), D("-1.00")),
        (4, 4, 2, 4, D("100.00"), D("-5.00")),
    ]


def test_swap_is_charged_at_each_midnight_with_the_triple_day() -> None:
    # Sell 1 lot of 100 units at 200.00 and buy 0.5; -18 % a year paid by longs, 9 % earned by shorts; Wednesday (3) counts thrice.
    run = account(
        flat("200.00"),
        flat("200.00"),
        flat("210.00", 100),
        contract_size=D(100),
        swap_long=D(-18),
        swap_short=D(9),
        swap_days=(1, 1, 1, 3, 1, 0, 0),
        midnights=((60_000, 2), (120_000, 3)),
        stop_out_level=D(0),
        initial_deposit=D(100_000),
    )
    run.open(1, D("0.5"), NONE, NONE, 0)
    run.open(-1, D(1), NONE, NONE, 0)
    run.advance()
    # Tuesday, bid = ask = 200: long 50 * 200 * -18 / 100 / 360 = -5.00, short 100 * 200 * 9 / 100 / 360 = 5.00
    assert [p.swap for p in run.positions] == [D("-5.00"), D("5.00")]
    run.advance()
    # Wednesday, bid 210, ask 211: long 50 * 210 * -0.0005 * 3 = -15.75, short 100 * 211 * 0.00025 * 3 = 15.825 -> 15.83
    assert [p.swap for p in run.positions] == [D("-20.75"), D("20.83")]
    assert run.balance == D(100_000)
    # Floating: 50 * (210 - 200) = 500; -100 * (211 - 200) = -1100
    assert run.equity() == D(100_000) + D(500) - D(1100) + D("0.08")
    assert run.close(1, D("0.5"), 9) == 10009
    assert (run.deals[2].swap, run.deals[2].profit, run.deals[2].magic) == (D("-20.75"), D("500.00"), 9)
    assert run.balance == D("100479.25")


def test_each_midnight_of_a_gap_is_charged_and_rounded_apart() -> None:
    day = 86_400_000
    # From Friday to Monday without a bar: Friday (5) thrice, Saturday (6) and Sunday (0) once each, all at Monday's first bid.
    run = ReferenceAccount(
        replace(PLAIN, swap_long=D(-10), swap_days=(1, 1, 1, 1, 1, 3, 1)),
        [(0, 100, 100, 100, 100, 0), (3 * day, "90.18", "90.18", "90.18", "90.18", 0)],
        MINUTE,
        [(day, 5), (2 * day, 6), (3 * day, 0), (3 * day + MINUTE, 1)],
    )
    run.open(1, D(1), NONE, NONE, 0)
    assert run.advance()
    # One day: 90.18 * -10 / 100 / 360 = -0.02505 -> -0.03; thrice: -0.07515 -> -0.08. Sum -0.14 (unrounded: -0.12525).
    assert run.positions[0].swap == D("-0.14")
    run.advance()
    assert run.positions[0].swap == D("-0.14")  # the fourth midnight lies one millisecond after the last tick


def test_a_position_opened_on_the_midnight_tick_pays_nothing_for_it() -> None:
    run = account(flat("100.00"), flat("100.00"), swap_long=D(-36), midnights=((60_000, 1),))
    run.advance()
    run.open(1, D(1), NONE, NONE, 0)
    run.advance()
    assert run.positions[0].swap == 0


def test_swap_comes_before_sl_on_the_same_tick() -> None:
    run = account(flat("100.00"), flat("90.00"), swap_long=D(-36), midnights=((60_000, 1),))
    run.open(1, D(1), D("95.00"), NONE, 0)
    run.advance()
    # 90 * -36 / 100 / 360 = -0.09; 90 - 100 = -10
    assert (run.deals[1].swap, run.deals[1].profit, run.balance) == (D("-0.09"), D("-10.00"), D("9989.91"))


@pytest.mark.parametrize(
    ("entry", "exit_", "expected"),
    [(True, True, ["-0.65", "-0.66"]), (True, False, ["-0.65", "0"]), (False, True, ["0", "-0.66"])],
)
def test_commission_is_summed_exactly_and_rounded_once(entry: bool, exit_: bool, expected: list[str]) -> None:
    run = account(
        flat("101.00"),
        flat("120.00"),
        commission_per_lot=D("1.25"),
        commission_bps=D(5),
        commission_entry=entry,
        commission_exit=exit_,
    )
    run.open(1, D("0.5"), NONE, NONE, 0)
    run.advance()
    run.close(1, D("0.5"), 0)
    # In:  1.25 * 0.5 = 0.625; 0.5 * 101 * 0.0005 = 0.02525; sum 0.65025 -> 0.65 (rounded apart: 0.63 + 0.03 = 0.66)
    # Out: 0.625 + 0.5 * 120 * 0.0005 = 0.625 + 0.03 = 0.655 -> 0.66
    assert [d.commission for d in run.deals] == [D(x) for x in expected]
    assert run.balance == D("10009.50") + sum(D(x) for x in expected)  # 0.5 * (120 - 101) = 9.50


def test_an_exit_by_the_server_pays_the_exit_commission_too() -> None:
    run = account(flat("100.00"), flat("90.00"), commission_per_lot=D(2), commission_exit=True)
    run.open(1, D(1), D("95.00"), NONE, 0)
    run.advance()
    assert [(d.commission, d.profit) for d in run.deals] == [(NONE, NONE), (D("-2.00"), D("-10.00"))]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0.005", "0.01"), ("-0.005", "-0.01"), ("0.015", "0.02"), ("0.0149999999", "0.01"), ("-1.005", "-1.01"), ("-0.004", "0"), ("2", "2")],
)
def test_cents_round_half_away_from_zero(value: str, expected: str) -> None:
    assert cents(Fraction(value)) == D(expected)
    assert str(cents(Fraction(value))).lstrip("-").count("0.00") == (expected == "0")
    assert not str(cents(Fraction(value))).startswith("-0.00")


@pytest.mark.parametrize(("side", "profit"), [(1, "0.03"), (-1, "-0.03")])
def test_profit_rounds_half_away_from_zero(side: int, profit: str) -> None:
    run = account(flat("100.00"), flat("100.05"))
    run.open(side, D("0.5"), NONE, NONE, 0)
    run.advance()
    run.close(1, D("0.5"), 0)
    assert run.deals[1].profit == D(profit)  # 0.5 * 0.05 = 0.025


def test_stop_out_closes_the_worst_until_the_level_is_back() -> None:
    run = account(flat("100.00"), ("90.00", "90.00", "90.00", "90.00", 0), initial_deposit=D(150), swap_days=(0,) * 7)
    for lots in ("1", "9", "5"):
        assert run.open(1, D(lots), NONE, NONE, 0)[0] == 10009
    # Margin 10 + 90 + 50 = 150. At 90.00 profits are -10, -90, -50: equity 0, level 0 % < 50 %.
    # The worst, -90, goes: balance 60, floating -60, equity 0, margin 60: 0 %. Then -50: balance 10, equity 0, margin 10: 0 %.
    # Then -10: no position is left.
    run.advance()
    assert [(d.position_id, d.reason, d.time_ms, d.profit) for d in run.deals[3:]] == [
        (2, 6, 60_000, D("-90.00")),
        (3, 6, 60_000, D("-50.00")),
        (1, 6, 60_000, D("-10.00")),
    ]
    assert run.balance == 0


def test_stop_out_stops_at_the_level_and_slips() -> None:
    run = account(flat("100.00"), flat("94.00"), initial_deposit=D(150), slippage_ppm=1000, stop_out_level=D(60))
    # Entries slip ceil(10000 * 0.001) = 10 points: 100.10. Margins 6 * 10.01 = 60.06, 8 * 10.01 = 80.08, together 140.14.
    run.open(1, D(6), NONE, NONE, 0)
    run.open(1, D(8), NONE, NONE, 0)
    run.advance()
    # At 94.00: -36.60 and -48.80, equity 64.60, 64.60 / 140.14 = 46.1 % < 60 %.
    # The worst sells at 94.00 - ceil(9.4) points = 93.90: 8 * -6.20 = -49.60. Equity 150 - 49.60 - 36.60 = 63.80, / 60.06 = 106 %.
    assert run.deals[2] == Deal(3, 3, 60_000, -1, 1, 2, 6, D(8), D("93.90"), NONE, NONE, D("-49.60"), 0)
    assert [p.ticket for p in run.positions] == [1]
    assert (run.balance, run.equity(), run.margin()) == (D("100.40"), D("63.80"), D("60.06"))


@pytest.mark.parametrize(("price", "closed"), [("94.98", 0), ("94.97", 1)])
def test_stop_out_needs_less_than_the_level(price: str, closed: int) -> None:
    run = account(flat("100.00"), flat(price), initial_deposit=D("100.20"))
    run.open(1, D(10), NONE, NONE, 0)
    run.advance()
    # Margin 100. At 94.98: 100.20 - 50.20 = 50.00, exactly 50 %; at 94.97: 49.90.
    assert len(run.deals) == 1 + closed


def test_stop_out_takes_the_first_opened_on_a_tie_and_counts_swap() -> None:
    day_ends = ((60_000, 1),)
    run = account(flat("100.00"), flat("100.00"), flat("93.00"), initial_deposit=D(70), swap_long=D(36), midnights=day_ends)
    run.open(1, D(3), NONE, NONE, 0)
    run.advance()
    run.open(1, D(3), NONE, NONE, 0)
    run.advance()
    # The first earned 3 * 100 * 0.001 = 0.30. At 93.00: -20.70 and -21.00, equity 28.30, margin 60, 47.2 %.
    # After the second: 28.30 / 30 = 94 %.
    assert [(d.position_id, d.swap, d.profit) for d in run.deals[2:]] == [(2, NONE, D("-21.00"))]
    run = account(flat("100.00"), flat("93.00"), initial_deposit=D(100))
    for _ in range(2):
        run.open(1, D(5), NONE, NONE, 0)
    run.advance()
    # -35 and -35: equity 30, margin 100. After the first: 30 / 50 = 60 %.
    assert [d.position_id for d in run.deals[2:]] == [1]


def test_stop_out_is_tested_inside_the_bar_after_the_stops() -> None:
    run = account(("100.00", "100.00", "90.00", "100.00", 0), initial_deposit=D(100))
    run.open(1, D(5), D("95.00"), NONE, 0)
    run.open(1, D(5), NONE, NONE, 0)
    run.advance()
    # At 90.00 the stop goes first: -50, then equity 50 - 50 = 0 of margin 50: the other follows.
    assert [(d.position_id, d.reason, d.time_ms, d.profit) for d in run.deals[2:]] == [
        (1, 4, 20_000, D("-50.00")),
        (2, 6, 20_000, D("-50.00")),
    ]


def test_partial_close_realises_swap_in_proportion() -> None:
    run = account(flat("100.00"), flat("100.05"), swap_long=D("-35.982"), midnights=((60_000, 1),))
    run.open(1, D("0.5"), NONE, NONE, 1)
    run.advance()
    # 0.5 * 100.05 * -35.982 / 100 / 360 = -0.0499999... -> -0.05
    assert run.positions[0].swap == D("-0.05")
    assert run.close(1, D("0.1"), 2) == 10009
    # A fifth of -0.05 is -0.01; 0.1 * 0.05 = 0.005 -> 0.01. Left: 0.4 lots, -0.04.
    assert run.deals[1] == Deal(2, 2, 60_000, -1, 1, 1, 3, D("0.1"), D("100.05"), NONE, D("-0.01"), D("0.01"), 2)
    assert (run.positions[0].lots, run.positions[0].swap, run.positions[0].price) == (D("0.4"), D("-0.04"), D("100.00"))
    assert run.margin() == D("4.00")
    run.close(1, D("0.15"), 2)
    # -0.04 * 0.15 / 0.4 = -0.015 -> -0.02; 0.15 * 0.05 = 0.0075 -> 0.01
    assert (run.deals[2].swap, run.deals[2].profit, run.positions[0].swap) == (D("-0.02"), D("0.01"), D("-0.02"))
    run.close(1, D("0.25"), 2)
    # What is left: -0.02; 0.25 * 0.05 = 0.0125 -> 0.01
    assert (run.deals[3].swap, run.deals[3].profit, run.positions) == (D("-0.02"), D("0.01"), [])
    assert run.balance == D("9999.98")  # -0.05 + 0.03


def test_the_spread_of_a_bar_is_the_largest_of_column_floor_and_model() -> None:
    # 1000 ppm of the open in points, rounded up: 100.01 -> ceil(10.001) = 11; 50.00 -> 5; and a floor of 7 points.
    run = account(("100.01", "120.00", "100.01", "120.00", 0), flat("50.00"), flat("50.00", 30), spread_points=7, spread_ppm=1000)
    assert run.ask - run.bid == D("0.11")
    run.advance()
    assert run.ask - run.bid == D("0.07")
    run.advance()
    assert run.ask - run.bid == D("0.30")
    run = account(("100.01", "120.00", "100.01", "120.00", 0), spread_ppm=1000)
    run.advance()
    assert (run.bid, run.ask) == (D("120.00"), D("120.11"))  # the open's spread, at the close too


@pytest.mark.parametrize(
    ("lots", "retcode"),
    [("0.01", 10009), ("10", 10009), ("0", 10014), ("-1", 10014), ("0.005", 10014), ("0.015", 10014), ("10.01", 10014)],
)
def test_open_checks_the_volume(lots: str, retcode: int) -> None:
    run = account(flat("100.00"))
    code, order = run.open(1, D(lots), NONE, NONE, 0)
    assert (code, order) == (retcode, int(retcode == 10009))
    assert len(run.deals) == len(run.positions) == order


@pytest.mark.parametrize(
    ("side", "sl", "tp", "level", "retcode"),
    [
        # Long, from bid 100.00; without a level one point is the least.
        (1, "99.99", "100.01", 0, 10009),
        (1, "100.00", "0", 0, 10016),
        (1, "101.00", "0", 0, 10016),
        (1, "0", "100.00", 0, 10016),
        (1, "0", "99.00", 0, 10016),
        (1, "99.90", "100.10", 10, 10009),
        (1, "99.91", "0", 10, 10016),
        (1, "0", "100.09", 10, 10016),
        # Short, from ask 100.05.
        (-1, "100.06", "100.04", 0, 10009),
        (-1, "100.05", "0", 0, 10016),
        (-1, "0", "100.05", 0, 10016),
        (-1, "100.15", "99.95", 10, 10009),
        (-1, "100.14", "0", 10, 10016),
        (-1, "0", "99.96", 10, 10016),
    ],
)
def test_open_checks_the_stops(side: int, sl: str, tp: str, level: int, retcode: int) -> None:
    run = account(flat("100.00", 5), stops_level=level)
    assert run.open(side, D(1), D(sl), D(tp), 0)[0] == retcode


def test_open_checks_volume_stops_count_and_money_in_this_order() -> None:
    run = account(flat("100.00"), max_positions=1, initial_deposit=D(10))
    assert run.open(1, D("1.01"), NONE, NONE, 0) == (10019, 0)  # margin 10.10 > 10.00
    assert run.open(1, D(1), NONE, NONE, 0) == (10009, 1)  # margin 10.00, not above equity
    assert run.open(1, D("0.001"), D(200), NONE, 0) == (10014, 0)
    assert run.open(1, D(5), D(200), NONE, 0) == (10016, 0)
    assert run.open(1, D(5), NONE, NONE, 0) == (10040, 0)
    assert run.close(1, D(1), 0) == 10009
    assert run.open(1, D(5), NONE, NONE, 0) == (10019, 0)
    assert run.open(1, D(1), NONE, NONE, 0) == (10009, 3)  # the refused took no order ticket


def test_open_asks_money_for_the_fill_and_from_equity() -> None:
    run = account(flat("100.00"), slippage_ppm=1, initial_deposit=D(100))
    assert run.open(1, D(10), NONE, NONE, 0)[0] == 10019  # 10 * 100.01 / 10 = 100.01
    run = account(flat("100.00"), flat("110.00"), initial_deposit=D(100))
    run.open(1, D(5), NONE, NONE, 0)
    run.advance()
    # Equity 100 + 50 = 150, margin 50: 100 are free, 9.09 lots at 11 each are 99.99, 9.10 are 100.10.
    assert run.open(1, D("9.10"), NONE, NONE, 0)[0] == 10019
    assert run.open(1, D("9.09"), NONE, NONE, 0)[0] == 10009


def test_margin_takes_the_rate_and_rounds_each_position() -> None:
    run = account(flat("100.00"), leverage=D(3), margin_rate=D("0.5"))
    for _ in range(2):
        run.open(1, D("0.1"), NONE, NONE, 0)
    assert run.margin() == D("3.34")  # 0.1 * 100 / 3 * 0.5 = 1.6667 -> 1.67, twice


def test_close_retcodes() -> None:
    run = account(flat("100.00"))
    run.open(1, D("0.5"), NONE, NONE, 0)
    assert run.close(2, D("0.5"), 0) == 10036
    assert run.close(1, D(0), 0) == 10014
    assert run.close(1, D("-0.1"), 0) == 10014
    assert run.close(1, D("0.005"), 0) == 10014
    assert run.close(1, D("0.515"), 0) == 10014
    assert run.close(1, D("0.51"), 0) == 10038
    assert len(run.deals) == 1
    assert run.close(1, D("0.5"), 0) == 10009
    assert run.close(1, D("0.5"), 0) == 10036


def test_modify_retcodes() -> None:
    run = account(flat("100.00"), flat("100.50"), freeze_level=20, stops_level=30)
    run.open(1, D(1), D("99.00"), D("100.70"), 0)
    assert run.modify(2, D("99.00"), D("100.70")) == 10036
    assert run.modify(1, D("99.00"), D("100.70")) == 10025
    assert run.modify(1, D("99.71"), D("100.70")) == 10016  # 29 points from the bid
    assert run.modify(1, D("99.70"), D("100.70")) == 10009
    run.advance()
    # The target is 100.70 - 100.50 = 20 points away: frozen, even for a change that is wrong, but not for no change.
    assert run.modify(1, D("99.70"), D("100.70")) == 10025
    assert run.modify(1, D("99.70"), NONE) == 10029
    assert run.modify(1, D("101.00"), NONE) == 10029
    assert (run.positions[0].sl, run.positions[0].tp) == (D("99.70"), D("100.70"))


def test_the_freeze_level_looks_at_the_existing_levels_and_at_the_ask_of_a_short() -> None:
    run = account(flat("100.00", 5), freeze_level=10)
    run.open(-1, D(1), D("100.15"), NONE, 0)  # 10 points above the ask
    assert run.modify(1, D("101.00"), NONE) == 10029
    run = account(flat("100.00", 5), freeze_level=10)
    run.open(-1, D(1), D("100.16"), NONE, 0)
    assert run.modify(1, D("100.06"), NONE) == 10009  # a new level may lie inside; the next change may not follow
    assert run.modify(1, D("101.00"), NONE) == 10029
    run = account(flat("100.00"))
    run.open(1, D(1), D("99.99"), NONE, 0)
    assert run.modify(1, NONE, D("100.01")) == 10009  # no freeze level; the stop is replaced by nothing
    assert (run.positions[0].sl, run.positions[0].tp) == (NONE, D("100.01"))


def test_a_changed_stop_lives_from_the_same_bar_on() -> None:
    run = account(("100.00", "100.00", "98.00", "99.00", 0))
    run.open(1, D(1), D("90.00"), NONE, 0)
    run.modify(1, D("98.50"), NONE)
    run.advance()
    assert (run.deals[1].time_ms, run.deals[1].price) == (20_000, D("98.00"))


def test_prices_may_come_as_floats_and_must_lie_on_the_grid() -> None:
    bars = [(0, 0.3, 0.35, 0.29, 0.31, 0)]
    assert ReferenceAccount(PLAIN, bars, MINUTE, []).bid == D("0.30")
    with pytest.raises(ValueError, match="not a price of 2 digits"):
        ReferenceAccount(PLAIN, [(0, 0.1 + 0.2, 0.35, 0.29, 0.31, 0)], MINUTE, [])
    with pytest.raises(ValueError, match="between low and high"):
        ReferenceAccount(PLAIN, [(0, 1, 2, 1, 3, 0)], MINUTE, [])
    with pytest.raises(ValueError, match="before bar 0 has ended"):
        ReferenceAccount(PLAIN, [*bars, (59_999, *bars[0][1:])], MINUTE, [])
    with pytest.raises(ValueError, match="at least one bar"):
        ReferenceAccount(PLAIN, [], MINUTE, [])
    with pytest.raises(ValueError, match="side must be"):
        ReferenceAccount(PLAIN, bars, MINUTE, []).open(0, D(1), NONE, NONE, 0)


# --- pending orders, netting, close-by, margin and swap modes (reference_orders)

CONDITIONS = Conditions(
    digits=2,
    contract_size=D(1),
    volume_min=D("0.01"),
    volume_max=D(10),
    volume_step=D("0.01"),
    stops_level=0,
    freeze_level=0,
    calc_mode="cfd_leverage",
    leverage=D(10),
    margin_initial=D(0),
    margin_rate_long=D(1),
    margin_rate_short=D(1),
    margin_rate_pending=D(0),
    margin_hedged=None,
    hedged_use_leg=False,
    stop_out_level=D(50),
    is_stop_out_in_money=False,
    commission_per_lot=D(0),
    commission_bps=D(0),
    commission_entry=False,
    commission_exit=False,
    swap_mode="points",
    swap_long=D(0),
    swap_short=D(0),
    swap_days=(1, 1, 1, 1, 1, 1, 1),
    slippage_ppm=0,
    spread_points=0,
    spread_ppm=0,
    initial_deposit=D(10_000),
    is_netting=False,
    limit_orders=200,
    limit_positions=200,
    volume_limit=D(0),
    gtc_mode="gtc",
    is_fifo=False,
    is_hedge_prohibited=False,
)
Prices = tuple[int, int, int, int, int]
GTC, DAY, SPECIFIED = 0, 1, 2


def orders(*bars: Prices, midnights: tuple[tuple[int, int], ...] = ((10 * MINUTE, 1),), **changes: Any) -> OrdersAccount:
    """Return an account on consecutive minute bars in points from time 0, and the conditions changed."""
    return OrdersAccount(replace(CONDITIONS, **changes), [(i * MINUTE, *bar) for i, bar in enumerate(bars)], MINUTE, midnights)


def still(points: int, spread: int = 0) -> Prices:
    """Return a bar that stays at one price."""
    return points, points, points, points, spread


def deals(run: OrdersAccount) -> list[tuple[int, int, int, int, int, D, int, D]]:
    """Return time, side, entry, position, reason, lots, price and profit of each deal."""
    return [(d.time_ms, d.side, d.entry, d.position_id, d.reason, d.lots, d.points, d.profit) for d in run.deals]


@pytest.mark.parametrize(
    ("kind", "price", "time_ms", "fill"),
    [
        (2, 9950, 20_000, 9950),  # buy limit: the ask comes down to 99.00 + 0.10 through 99.50
        (3, 10_050, 40_000, 10_050),  # sell limit: the bid goes up to 101.00
        (4, 10_060, 40_000, 10_110),  # buy stop: the first ask beyond it is 101.00 + 0.10
        (5, 9950, 20_000, 9900),  # sell stop: the first bid beyond it is 99.00
    ],
)
def test_pending_order_fills_inside_a_bar(kind: int, price: int, time_ms: int, fill: int) -> None:
    run = orders((10_000, 10_100, 9900, 10_000, 10))
    assert run.place(kind, D(1), price, 0, 0, 0, GTC, 0, 3) == (10009, 1)
    run.advance()
    assert deals(run) == [(time_ms, 1 if kind % 2 == 0 else -1, 0, 1, 3, D(1), fill, NONE)]
    assert (run.orders, run.finished[1].state, run.positions[0].ticket) == ([], 4, 1)


@pytest.mark.parametrize(("kind", "price", "fill"), [(2, 9900, 9510), (4, 10_050, 10_521)])
def test_gap_fills_a_limit_better_and_a_stop_worse(kind: int, price: int, fill: int) -> None:
    # The second bar opens at 95 (ask 95.10) or 105 (ask 105.10; slippage ceil(10510 * 0.001) = 11 points for the stop alone).
    run = orders(still(10_000, 10), still(9500 if kind == 2 else 10_500, 10), slippage_ppm=1000)
    run.place(kind, D(1), price, 0, 0, 0, GTC, 0, 0)
    run.advance()
    assert [(d.time_ms, d.points) for d in run.deals] == [(60_000, fill)]


def test_stop_limit_becomes_a_limit_and_fills_when_the_price_comes_back() -> None:
    run = orders((10_000, 10_100, 9990, 10_100, 0), (10_100, 10_100, 10_020, 10_080, 0))
    assert run.place(6, D(1), 10_050, 10_030, 0, 0, GTC, 0, 0) == (10009, 1)
    run.advance()
    assert [(o.kind, o.price, o.limit) for o in run.orders] == [(2, 10_030, 0)]
    run.advance()
    assert deals(run) == [(80_000, 1, 0, 1, 3, D(1), 10_030, NONE)]


def test_attached_stop_works_in_the_bar_of_the_fill() -> None:
    run = orders((10_000, 10_100, 9900, 9950, 0))
    run.place(5, D(1), 9990, 0, 10_040, 0, GTC, 0, 7)  # sold at the low, 99.00; then the high, 101.00, is beyond the stop
    run.advance()
    assert deals(run) == [(20_000, -1, 0, 1, 3, D(1), 9900, NONE), (40_000, 1, 1, 1, 4, D(1), 10_100, D("-2.00"))]
    assert [d.magic for d in run.deals] == [7, 7]


def test_order_fills_at_its_last_moment_and_not_after() -> None:
    bars = [still(10_000), still(9900)]
    for until, state in ((60_000, 4), (59_000, 6)):
        run = orders(*bars)
        run.place(2, D(1), 9950, 0, 0, 0, SPECIFIED, until, 0)
        run.advance()
        assert run.finished[1].state == state
    run = orders(*bars)
    assert run.place(2, D(1), 9950, 0, 0, 0, SPECIFIED, 0, 0) == (10022, 0)


def test_day_order_ends_one_millisecond_before_midnight() -> None:
    run = orders(still(10_000), still(9900), midnights=((MINUTE, 1), (9 * MINUTE, 2)))
    run.place(2, D(1), 9950, 0, 0, 0, DAY, 0, 0)
    assert run.orders[0].expiry == 59_999
    run.advance()
    assert (run.finished[1].state, run.finished[1].time_ms, run.deals) == (6, 59_999, [])


def test_activation_without_money_cancels_the_order() -> None:
    run = orders((10_000, 10_100, 9900, 10_000, 0), initial_deposit=D(90))
    run.place(3, D(10), 10_050, 0, 0, 0, GTC, 0, 0)  # 10 * 100.50 / 10 = 100.50 of margin
    run.advance()
    assert (run.finished[1].state, run.deals) == (2, [])


def test_netting_adds_reduces_and_reverses() -> None:
    run = orders(still(10_000), still(10_100), still(10_300), is_netting=True, commission_per_lot=D(2), commission_exit=True)
    run.open(1, D(1), 9000, 0, 1)
    run.advance()
    run.open(1, D(2), 0, 12_000, 2)
    held = run.positions[0]
    # (1 * 100 + 2 * 101) / 3 = 100.666..., shown 100.67; the later order's levels count.
    assert (held.ticket, held.lots, held.price, held.shown_price, held.sl, held.tp) == (1, D(3), Fraction(30_200, 3), 10_067, 0, 12_000)
    run.advance()
    run.open(-1, D(1), 0, 0, 3)  # 103 - 100.666... = 2.333...
    assert (held.lots, held.price, held.tp) == (D(2), Fraction(30_200, 3), 12_000)
    run.open(-1, D(5), 0, 0, 4)  # closes 2: 2 * 2.333... = 4.67; opens 3 at 103.00
    assert (held.ticket, held.identifier, held.side, held.lots, held.price, held.tp) == (4, 1, -1, D(3), 10_300, 0)
    assert [(d.entry, d.position_id, d.profit, d.commission) for d in run.deals[2:]] == [
        (1, 1, D("2.33"), D("-2.00")),
        (2, 1, D("4.67"), D("-4.00")),  # only the two lots that it closed pay the exit commission
    ]


def test_close_by_books_both_deals_at_the_other_positions_price() -> None:
    run = orders(still(10_000, 50), commission_per_lot=D(1), commission_exit=True)
    run.open(1, D(3), 0, 0, 0)  # 100.50
    run.open(-1, D(2), 0, 0, 0)  # 100.00
    assert run.close_by(1, 2, 9) == 10009
    assert deals(run)[2:] == [(0, -1, 3, 1, 3, D(2), 10_000, D("-1.00")), (0, 1, 3, 2, 3, D(2), 10_000, NONE)]
    assert [(d.order, d.commission, d.magic) for d in run.deals[2:]] == [(3, D("-2.00"), 9)] * 2
    assert [(p.ticket, p.lots) for p in run.positions] == [(1, D(1))]


@pytest.mark.parametrize(
    ("calc_mode", "margin"), [("cfd_leverage", "20.00"), ("forex", "20.00"), ("cfd", "200.00"), ("forex_no_leverage", "200.00")]
)
def test_calc_modes(calc_mode: str, margin: str) -> None:
    run = orders(still(10_000), calc_mode=calc_mode)
    run.open(1, D(2), 0, 0, 0)
    assert run.margin() == D(margin)


@pytest.mark.parametrize(
    ("changes", "margin"),
    [
        ({}, "40.00"),  # 3 * 100 / 10 + 1 * 100 / 10
        ({"hedged_use_leg": True}, "30.00"),
        ({"margin_hedged": D(0)}, "20.00"),  # two lots uncovered
        ({"margin_hedged": D("0.5")}, "25.00"),  # and one covered lot of half a contract
        ({"margin_hedged": D(7), "margin_initial": D(50)}, "107.00"),  # money: 2 * 50 + 1 * 7
        ({"margin_rate_short": D("0.5")}, "35.00"),
    ],
)
def test_hedged_margin(changes: dict[str, Any], margin: str) -> None:
    run = orders(still(10_000), **changes)
    run.open(1, D(3), 0, 0, 0)
    run.open(-1, D(1), 0, 0, 0)
    assert run.margin() == D(margin)


@pytest.mark.parametrize(
    ("swap_mode", "swap"),
    [
        ("points", "-0.75"),  # 3 lots * 25 points of 0.01
        ("deposit", "-75.00"),  # 3 lots * 25
        ("interest_current", "-0.23"),  # 3 * 110 * 25 % / 360 = 0.229
        ("interest_open", "-0.21"),  # 3 * 100 * 25 % / 360 = 0.208
    ],
)
def test_swap_modes(swap_mode: str, swap: str) -> None:
    run = orders(still(10_000), still(11_000), midnights=((MINUTE, 1),), swap_mode=swap_mode, swap_long=D(-25))
    run.open(1, D(3), 0, 0, 0)
    run.advance()
    assert run.positions[0].swap == D(swap)


def test_stop_out_drops_orders_before_positions() -> None:
    # 8 lots hold 80.00, the orders 12.00 and 6.00; at 94.50 the equity is 100 - 44 = 56, under 60 % of 98 (58.80) but not of 86 (51.60).
    run = orders(still(10_000), still(9450), initial_deposit=D(100), margin_rate_pending=D(1), stop_out_level=D(60))
    run.open(1, D(8), 0, 0, 0)
    assert run.place(4, D("0.5"), 12_000, 0, 0, 0, GTC, 0, 0) == (10009, 2)
    assert run.place(4, D(1), 12_000, 0, 0, 0, GTC, 0, 0) == (10009, 3)
    assert run.margin() == D("98.00")
    run.advance()
    assert [o.ticket for o in run.orders] == [2]
    assert (run.finished[3].state, len(run.positions)) == (2, 1)


def test_a_position_opened_after_midnight_does_not_pay_that_night() -> None:
    run = OrdersAccount(
        replace(CONDITIONS, swap_long=D(-25)), [(0, *still(10_000)), (10 * MINUTE, *still(10_000))], MINUTE, ((5 * MINUTE, 1),)
    )
    while run.next_ms() < MINUTE:
        run.advance_tick()
    run.open(1, D(1), 0, 0, 0)
    run.wait(6 * MINUTE)
    run.open(1, D(1), 0, 0, 0)
    run.advance()
    assert [p.swap for p in run.positions] == [D("-0.25"), NONE]
