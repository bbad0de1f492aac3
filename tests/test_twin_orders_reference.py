"""Orders, netting, close-by, margin and swap modes of the twin, through the MT5 API, against the independent reference."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from reference import exact
from reference_orders import (
    BUY_LIMIT,
    BUY_STOP_LIMIT,
    CANCELED,
    DAY,
    DONE,
    EXPERT,
    EXPIRED,
    FILLED,
    GTC,
    INOUT,
    OUT_BY,
    SELL_LIMIT,
    SELL_STOP_LIMIT,
    SPECIFIED,
    SPECIFIED_DAY,
    Conditions,
    Holding,
    OrdersAccount,
    Pending,
    side_of,
)
from test_twin_reference import LENGTH, random_market

from btcbot.market.clock import midnight_weekdays, midnights, server_clock
from btcbot.market.profile import BrokerProfile, SymbolSpec
from btcbot.terminal.contract import C
from btcbot.terminal.twin import Twin

ONE_DAY = 86_400_000
FOREVER = 2**31 - 1
LIFETIMES = (GTC, DAY, SPECIFIED, SPECIFIED_DAY)
CALC_MODES = ("cfd_leverage", "cfd", "forex", "forex_no_leverage")
# The yearly percentages are as they come; a lot costs some money a day, or some hundred points.
SWAPS = {"interest_current": (-12.5, 1.75), "interest_open": (-12.5, 1.75), "points": (-62.5, 8.0), "deposit": (-2.37, 0.4)}


def random_conditions(rng: np.random.Generator) -> tuple[BrokerProfile, Conditions]:
    """The same conditions, in our words and in the reference's."""
    sides = str(rng.choice(["entry", "exit", "both"]))
    is_netting = bool(rng.random() < 0.4)
    chosen: dict[str, float] = {
        "contract_size": float(rng.choice([1, 10, 0.1])),
        "volume_step": float(rng.choice([0.01, 0.1])),
        "margin_initial": float(rng.choice([0, 0, 0, 350])),
        "margin_rate_short": float(rng.choice([1.0, 0.6])),
        "margin_rate_pending": float(rng.choice([0, 1.0, 0.25])),
        "commission_per_lot": float(rng.choice([0, 3.5])),
        "commission_bps": float(rng.choice([0, 1.25])),
    }
    levels = {
        "digits": int(rng.choice([0, 1, 2])),
        "stops_level": int(rng.choice([0, 50])),
        "freeze_level": int(rng.choice([0, 30])),
        "spread_points": int(rng.choice([0, 25])),
    }
    spread_bps, slippage_bps = float(rng.choice([0, 2.0])), float(rng.choice([0, 0.5, 1.33]))
    calc_mode, swap_mode = str(rng.choice(CALC_MODES)), str(rng.choice(list(SWAPS)))
    # Without leverage the rate makes the margin affordable.
    rate = float(rng.choice([1.0, 0.5])) * (1.0 if calc_mode in ("cfd_leverage", "forex") else 0.1)
    chosen["margin_rate_short"] *= rate
    chosen["margin_rate_pending"] *= rate
    swap_long, swap_short = (x * float(rng.choice([0, 1])) for x in SWAPS[swap_mode])
    hedged = None if rng.random() < 0.5 else float(rng.choice([0, 0.5, 1])) * chosen["contract_size"]
    uses_leg = bool(rng.random() < 0.2)
    days = tuple(int(d) for d in rng.choice([(1, 1, 1, 1, 1, 1, 1), (0, 1, 1, 1, 1, 3, 0), (0, 1, 1, 3, 1, 1, 0)]))
    volume_limit = float(rng.choice([0, 300 * chosen["volume_step"]], p=[0.8, 0.2]))
    gtc_mode = str(rng.choice(["gtc", "daily", "daily_no_stops"], p=[0.8, 0.1, 0.1]))
    symbol = SymbolSpec(
        volume_min=chosen["volume_step"],
        volume_max=50.0,
        spread_bps=spread_bps,
        slippage_bps=slippage_bps,
        commission_sides=sides,
        calc_mode=calc_mode,
        swap_mode=swap_mode,
        margin_rate=rate,
        margin_hedged=hedged,
        volume_limit=volume_limit,
        gtc_mode=gtc_mode,
        hedged_use_leg=uses_leg,
        swap_long=swap_long,
        swap_short=swap_short,
        swap_days=days,
        **chosen,
        **levels,
    )
    leverage, stop_out, deposit = int(rng.choice([2, 20, 400, 400])), int(rng.choice([20, 50, 80, 95])), float(rng.choice([2_000, 50_000]))
    in_money = bool(rng.random() < 0.15)
    if in_money:
        stop_out = int(deposit) // 2
    limit_orders, limit_positions = (int(n) for n in rng.choice([3, 200], size=2, p=[0.2, 0.8]))
    is_fifo, is_prohibited = (bool(x) for x in rng.random(2) < 0.08)
    ours = BrokerProfile(
        "random",
        "Twin-Random",
        str(rng.choice(["UTC", "EET", "NY+7"])),
        symbol,
        leverage=leverage,
        stop_out=float(stop_out),
        margin_call=float(max(100, stop_out)),
        stop_out_mode="money" if in_money else "percent",
        deposit=deposit,
        margin_mode="netting" if is_netting else "hedging",
        limit_orders=limit_orders,
        limit_positions=limit_positions,
        is_fifo=is_fifo,
        is_hedge_prohibited=is_prohibited,
    )
    theirs = Conditions(
        **{name: Decimal(str(value)) for name, value in chosen.items()},
        **levels,
        volume_min=Decimal(str(chosen["volume_step"])),
        volume_max=Decimal(50),
        calc_mode=calc_mode,
        leverage=Decimal(leverage),
        margin_rate_long=Decimal(str(rate)),
        margin_hedged=None if hedged is None else Decimal(str(hedged)),
        hedged_use_leg=uses_leg,
        stop_out_level=Decimal(stop_out),
        is_stop_out_in_money=in_money,
        volume_limit=Decimal(str(volume_limit)),
        gtc_mode=gtc_mode,
        commission_entry=sides != "exit",
        commission_exit=sides != "entry",
        swap_mode=swap_mode,
        swap_long=Decimal(str(swap_long)),
        swap_short=Decimal(str(swap_short)),
        swap_days=days,
        slippage_ppm=round(slippage_bps * 100),
        spread_ppm=round(spread_bps * 100),
        initial_deposit=Decimal(str(deposit)),
        is_netting=is_netting,
        limit_orders=limit_orders,
        limit_positions=limit_positions,
        is_fifo=is_fifo,
        is_hedge_prohibited=is_prohibited,
    )
    return ours, theirs


class Program:
    """One random program of requests, played on both sides at every bar."""

    def __init__(self, seed: int, n_bars: int):
        self.rng = np.random.default_rng(seed)
        ours, self.conditions = random_conditions(self.rng)
        self.unit, self.step = 10**self.conditions.digits, self.conditions.volume_step
        market = random_market(self.rng, n_bars, self.conditions.digits)
        rows = np.array(market, dtype=np.int64)
        index = pd.DatetimeIndex(rows[:, 0].view("M8[ms]"), tz="UTC", name="time")
        columns = {name: rows[:, k + 1] / self.unit for k, name in enumerate(("open", "high", "low", "close"))}
        frame = pd.DataFrame(columns | {"tick_volume": 1, "spread": rows[:, 5], "real_volume": 0}, index=index)
        self.twin = Twin(frame, ours)
        self.twin.initialize()
        clock = server_clock(ours.clock)
        nights = midnights(clock, market[0][0], market[-1][0] + 9 * ONE_DAY)
        weekdays = midnight_weekdays(clock, nights)
        self.before_gaps = set((rows[:-1, 0])[np.diff(rows[:, 0]) >= 100 * LENGTH].tolist())
        self.offset = -int(nights[0]) % ONE_DAY  # of the server's clock, ms; it doesn't change in these weeks of January
        self.reference = OrdersAccount(self.conditions, market, LENGTH, list(zip(nights.tolist(), weekdays.tolist(), strict=True)))
        self.codes: Counter[str] = Counter()
        self.log: list[tuple[object, ...]] = []
        self.placed: list[int] = []

    # --- choices

    def chance(self, share: float) -> bool:
        """Return True for a share of the calls."""
        return bool(self.rng.random() < share)

    def quote(self, side: int) -> int:
        """The side at which a deal of this direction is made."""
        return self.reference.ask if side > 0 else self.reference.bid

    def distance(self) -> int:
        """Points; sometimes on the wrong side."""
        return int(self.rng.choice([-20, 0, 1, 10, 60, 400, 2000], p=[0.02, 0.01, 0.07, 0.1, 0.3, 0.4, 0.1]))

    def levels(self, side: int, price: int) -> tuple[int, int]:
        """Return a stop and a target around `price`, each sometimes absent."""
        sl, tp = (0 if self.chance(0.4) else price + side * sign * self.distance() for sign in (-1, 1))
        return sl, tp

    def lots(self) -> Decimal:
        """Return a volume, now and then most of what the equity can carry, seldom one above the most."""
        if self.chance(0.3):
            one = self.reference.order_margin(int(self.rng.integers(2)), Decimal(1), self.reference.bid)
            free = max(Decimal(0), self.reference.equity() - self.reference.margin())
            return self.step * max(1, int(free / one / self.step * Decimal(str(self.rng.choice([0.2, 0.4, 0.6, 0.99])))))
        return self.step * int(self.rng.choice([1, 5, 30, 200, 1500, 60_000], p=[0.2, 0.2, 0.3, 0.2, 0.09, 0.01]))

    def pending_prices(self, kind: int) -> tuple[int, int]:
        """Return the price of an order and a stop-limit's limit."""
        side = side_of(kind)
        away = self.distance()
        price = self.quote(side) + side * (-away if kind <= SELL_LIMIT else away)
        return price, price - side * self.distance() if kind >= BUY_STOP_LIMIT else 0

    def lifetime(self) -> tuple[int, int]:
        """Return a kind of lifetime and its end, UTC ms on whole seconds."""
        kind = int(self.rng.choice(LIFETIMES, p=[0.5, 0.15, 0.25, 0.1]))
        ahead = int(self.rng.choice([-60_000, 0, 20_000, 40_000, 59_000, 60_000, 300_000, 3_600_000, ONE_DAY], p=[0.05, 0.04, *[0.13] * 7]))
        return kind, (self.reference.time_ms + ahead) // 1000 * 1000 if kind >= SPECIFIED else 0

    def position(self) -> Holding | None:
        """Return one of the open positions, or None."""
        held = self.reference.positions
        return held[int(self.rng.integers(len(held)))] if held and self.chance(0.97) else None

    # --- requests

    def act(self) -> None:
        """Send one random request to both and compare return code and order ticket."""
        actions = {"open": 0.2, "close": 0.1, "modify": 0.1, "place": 0.3, "change": 0.1, "remove": 0.07, "close_by": 0.13}
        action = str(self.rng.choice(list(actions), p=list(actions.values())))
        request, expected, order = getattr(self, f"_{action}")()
        self.log.append((self.reference.time_ms, action, request))
        checked = self.twin.order_check(request)
        sent = self.twin.order_send(request)
        assert checked.retcode == (0 if expected == DONE else expected), (action, request, checked)
        if expected == DONE:
            after = [Decimal(str(v)) for v in (checked.balance, checked.equity, checked.margin)]
            assert after == [self.reference.balance, self.reference.equity(), self.reference.margin()], ("order_check", action, request)
        self.codes[f"{action} {expected}"] += 1
        assert (sent.retcode, sent.order) == (expected, order if order is not None else sent.order), (action, request, sent)

    def _open(self) -> tuple[dict[str, float | int | str], int, int]:
        side, lots = int(self.rng.choice([-1, 1])), self.lots()
        sl, tp = self.levels(side, self.quote(-side))
        magic = int(self.rng.integers(4))
        expected, order = self.reference.open(side, lots, sl, tp, magic)
        return self._deal(side, lots, magic) | self._prices(sl=sl, tp=tp), expected, order

    def _close(self) -> tuple[dict[str, float | int | str], int, None]:
        position = self.position()
        whole = position.lots if position else self.step
        lots = self.step * max(1, int(whole / self.step * Decimal(str(self.rng.choice([0.3, 0.5, 1.0, 1.5])))))
        ticket, side = (position.ticket, -position.side) if position else (999_999, 1)
        expected = self.reference.close(ticket, lots, 6)
        return self._deal(side, lots, 6) | {"position": ticket}, expected, None

    def _modify(self) -> tuple[dict[str, float | int | str], int, None]:
        position = self.position()
        ticket, side = (position.ticket, position.side) if position else (999_999, 1)
        sl, tp = (position.sl, position.tp) if position and self.chance(0.1) else self.levels(side, self.quote(-side))
        expected = self.reference.modify(ticket, sl, tp)
        request = {"action": C.TRADE_ACTION_SLTP, "symbol": "BTCUSD"} | self._prices(sl=sl, tp=tp)
        by_symbol = self.conditions.is_netting and position is not None and self.chance(0.5)
        return request | ({} if by_symbol else {"position": ticket}), expected, None

    def _place(self) -> tuple[dict[str, float | int | str], int, int]:
        kind, lots = int(self.rng.integers(BUY_LIMIT, SELL_STOP_LIMIT + 1)), self.lots()
        price, limit = self.pending_prices(kind)
        sl, tp = self.levels(side_of(kind), limit or price)
        lifetime, until = self.lifetime()
        magic = int(self.rng.integers(4))
        expected, order = self.reference.place(kind, lots, price, limit, sl, tp, lifetime, until, magic)
        if order:
            self.placed.append(order)
        request = {"action": C.TRADE_ACTION_PENDING, "symbol": "BTCUSD", "volume": float(lots), "type": kind, "magic": magic}
        return request | self._prices(price=price, stoplimit=limit, sl=sl, tp=tp) | self._life(lifetime, until), expected, order

    def _change(self) -> tuple[dict[str, float | int | str], int, None]:
        ticket, order = self.some_order()
        if order is not None and self.chance(0.1):
            same = order.price, order.limit, order.sl, order.tp
            lifetime, until = (SPECIFIED, order.expiry) if order.expiry and order.expiry % 1000 == 0 else (GTC, 0)
        else:
            kind = order.kind if order is not None else BUY_LIMIT
            price, limit = self.pending_prices(kind)
            same = (price, limit, *self.levels(side_of(kind), limit or price))
            lifetime, until = self.lifetime()
        expected = self.reference.change(ticket, *same, lifetime, until)
        prices = dict(zip(("price", "stoplimit", "sl", "tp"), same, strict=True))
        return {"action": C.TRADE_ACTION_MODIFY, "order": ticket} | self._prices(**prices) | self._life(lifetime, until), expected, None

    def _remove(self) -> tuple[dict[str, float | int | str], int, None]:
        ticket, _ = self.some_order()
        return {"action": C.TRADE_ACTION_REMOVE, "order": ticket}, self.reference.remove(ticket), None

    def _close_by(self) -> tuple[dict[str, float | int | str], int, None]:
        first, second = self.position(), self.position()
        opposite = [p for p in self.reference.positions if first is not None and p.side != first.side]
        if opposite and self.chance(0.8):
            second = opposite[int(self.rng.integers(len(opposite)))]
        tickets = tuple(p.ticket if p else 999_999 for p in (first, second))
        request = {"action": C.TRADE_ACTION_CLOSE_BY, "position": tickets[0], "position_by": tickets[1], "magic": 6}
        return request, self.reference.close_by(*tickets, 6), None

    def some_order(self) -> tuple[int, Pending | None]:
        """Return the ticket of a pending order, now and then of one that is no more."""
        if self.reference.orders and self.chance(0.85):
            order = self.reference.orders[int(self.rng.integers(len(self.reference.orders)))]
            return order.ticket, order
        tickets = [ticket for ticket in self.placed if ticket in self.reference.finished]
        return (tickets[-1] if tickets and self.chance(0.9) else 999_999), None

    def _deal(self, side: int, lots: Decimal, magic: int) -> dict[str, float | int | str]:
        kind = C.ORDER_TYPE_BUY if side > 0 else C.ORDER_TYPE_SELL
        return {"action": C.TRADE_ACTION_DEAL, "symbol": "BTCUSD", "volume": float(lots), "type": kind, "magic": magic}

    def _prices(self, **points: int) -> dict[str, float | int | str]:
        return {name: value / self.unit for name, value in points.items()}

    def _life(self, lifetime: int, until: int) -> dict[str, float | int | str]:
        seconds = (until + self.offset) // 1000 if lifetime >= SPECIFIED else 0
        return {"type_time": lifetime, "expiration": seconds, "type_filling": C.ORDER_FILLING_RETURN}

    def move(self) -> bool:
        """Go to the next bar, the next tick or some moment before it; False at the end."""
        step, reference = self.rng.random(), self.reference
        if reference.time_ms // LENGTH * LENGTH in self.before_gaps:  # tick by tick, so that much is asked in the gap, too
            step = 0.8 if reference.next_ms() < reference.time_ms + LENGTH else 0.7 + 0.6 * step
        if step < 0.7:
            moved, _ = self.twin.advance()
            assert reference.advance() == bool(moved)
            return bool(moved)
        if step < 0.9 or reference.next_ms() <= reference.time_ms + 1:
            moved = self.twin.advance_ticks()
            assert reference.advance_tick() == bool(moved)
            return bool(moved)
        reference.wait(int(self.rng.integers(reference.time_ms, reference.next_ms())))
        self.twin.advance_to(reference.time_ms)
        return True

    def calculate(self) -> None:
        """Ask both what an order would hold and what a deal would bring."""
        kind, moved = int(self.rng.integers(SELL_STOP_LIMIT + 1)), self.distance()
        lots = min(self.lots(), self.conditions.volume_max)
        price = self.quote(side_of(kind)) + moved
        margin = self.twin.order_calc_margin(kind, "BTCUSD", float(lots), price / self.unit)
        assert Decimal(str(margin)) == self.reference.order_margin(kind, lots, price), ("order_calc_margin", kind, lots, price)
        side = side_of(kind)
        profit = self.twin.order_calc_profit(0 if side > 0 else 1, "BTCUSD", float(lots), price / self.unit, (price + moved) / self.unit)
        assert Decimal(str(profit)) == self.reference.order_profit(side, lots, price, price + moved), ("order_calc_profit", side, lots)

    # --- comparison

    def points(self, price: float) -> int:
        """Return a shown price in points."""
        points = exact(price) * self.unit
        assert points.denominator == 1
        return int(points)

    def compare(self) -> None:
        """Account, positions and orders must be equal, to the cent and the point."""
        account, reference = self.twin.account_info(), self.reference
        ours = [Decimal(str(v)) for v in (account.balance, account.equity, account.margin)]
        assert ours == [reference.balance, reference.equity(), reference.margin()], "account"
        held = [
            (
                p.time_msc - self.offset,
                p.ticket,
                p.identifier,
                p.magic,
                -1 if p.type else 1,
                p.volume,
                self.points(p.price_open),
                self.points(p.sl),
                self.points(p.tp),
                p.swap,
            )
            for p in self.twin.positions_get()
        ]
        assert held == [
            (p.time_ms, p.ticket, p.identifier, p.magic, p.side, float(p.lots), p.shown_price, p.sl, p.tp, float(p.swap))
            for p in reference.positions
        ]
        waiting = [
            (
                o.time_setup_msc - self.offset,
                o.ticket,
                o.type,
                o.volume_current,
                *map(self.points, (o.price_open, o.price_stoplimit, o.sl, o.tp)),
                o.magic,
            )
            for o in self.twin.orders_get()
        ]
        assert waiting == [(o.time_ms, o.ticket, o.kind, float(o.lots), o.price, o.limit, o.sl, o.tp, o.magic) for o in reference.orders]

    def compare_history(self) -> None:
        """All deals and all finished orders must be equal."""
        ours = [
            (
                d.order,
                d.time_msc - self.offset,
                -1 if d.type else 1,
                d.entry,
                d.position_id,
                d.reason,
                d.magic,
                self.points(d.price),
                *(Decimal(str(v)) for v in (d.volume, d.commission, d.swap, d.profit)),
            )
            for d in self.twin.history_deals_get(0, FOREVER)[1:]
        ]
        theirs = [
            (d.order, d.time_ms, d.side, d.entry, d.position_id, d.reason, d.magic, d.points, d.lots, d.commission, d.swap, d.profit)
            for d in self.reference.deals
        ]
        assert ours == theirs
        dealt = {d.order: d for d in reversed(self.reference.deals)}
        done = {o.ticket: o for o in self.twin.history_orders_get(0, FOREVER)}
        assert set(done) == set(dealt) | set(self.reference.finished)
        for ticket, o in done.items():
            ours_too = (o.state, o.time_done_msc - self.offset, o.position_id, Decimal(str(o.volume_initial)), o.magic, o.reason)
            finished = self.reference.finished.get(ticket)
            if finished is None:
                deal = dealt[ticket]
                assert ours_too == (FILLED, deal.time_ms, deal.position_id, deal.lots, deal.magic, deal.reason), ticket
                assert o.type == (C.ORDER_TYPE_CLOSE_BY if deal.entry == OUT_BY else int(deal.side < 0)), ticket
            else:
                order = finished.order
                assert ours_too == (finished.state, finished.time_ms, finished.position_id, order.lots, order.magic, EXPERT), ticket
                left = Decimal(0) if finished.state == FILLED else order.lots
                assert (o.type, Decimal(str(o.volume_current)), o.time_setup_msc - self.offset) == (order.kind, left, order.time_ms), ticket
                levels = tuple(self.points(price) for price in (o.price_open, o.price_stoplimit, o.sl, o.tp))
                assert levels == (order.price, order.limit, order.sl, order.tp), ticket

    def play(self) -> Counter[str]:
        """Run to the end; return how often each thing happened."""
        while True:
            for _ in range(int(self.rng.choice([0, 1, 2, 3]))):
                self.act()
                self.compare()
            self.calculate()
            moved = self.move()
            self.compare()
            if not moved:
                break
        self.compare_history()
        seen = self.codes + self.reference.seen + Counter(f"reason {d.reason}" for d in self.reference.deals)
        seen.update(f"state {f.state} of {f.order.kind}" for f in self.reference.finished.values())
        seen.update(f"entry {d.entry}" for d in self.reference.deals)
        seen["swap"] = sum(d.swap != 0 for d in self.reference.deals)
        return seen


def compare_many(seeds: range, n_bars: int) -> Counter[str]:
    """Play one program for each seed and add up what happened."""
    total: Counter[str] = Counter()
    for seed in seeds:
        program = Program(seed, n_bars)
        try:
            total += program.play()
        except AssertionError as error:
            raise AssertionError(f"program {seed} at {program.reference.time_ms}, last {program.log[-1:]}: {error}") from error
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(total.items())))
    return total


COMMON = {
    "open": (10014, 10016, 10019, 10040),
    "close": (10036, 10038),
    "modify": (10016, 10025, 10036),
    "close_by": (10013, 10036),
    "place": (10014, 10015, 10016, 10019, 10022, 10040),
    "change": (10013, 10015, 10016, 10022, 10023, 10025),
    "remove": (10013, 10023),
}
RARE = {
    "open": (10034, 10046),
    "close": (10045,),
    "modify": (10029,),
    "close_by": (10045,),
    "place": (10033, 10034, 10046),
    "change": (10029,),
    "remove": (10029,),
}


@pytest.mark.parity
def test_random_orders(rounds: int) -> None:
    """Compare every answer, account, order, position and deal of many programs; each rule must have come up."""
    total = compare_many(range(rounds), 100)
    wanted = {f"{action} {code}" for action, codes in COMMON.items() for code in (DONE, *codes)}
    wanted |= {"reason 4", "reason 5", "reason 6", f"entry {INOUT}", f"entry {OUT_BY}", "swap", "activation refused"}
    for kind in range(BUY_LIMIT, SELL_STOP_LIMIT + 1):
        states = (CANCELED, EXPIRED, *((FILLED,) if kind < BUY_STOP_LIMIT else ()))
        wanted |= {f"state {state} of {kind}" for state in states}
    if rounds >= 200:
        wanted |= {f"{action} {code}" for action, codes in RARE.items() for code in codes}
        wanted |= {"order dropped by stop-out", "order ended by the day"}
    assert sorted(name for name in wanted if total[name] == 0) == []
