"""An independent reference of pending orders, netting, close-by, margin modes and swap modes: plain Python, exact numbers.

It is written from the execution model and the facts of the MT5 API alone and imports the standard library and `reference` only. Prices are
whole points; a netting position's average price is an exact fraction. One symbol quoted in the account's currency, liquidity without end.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from reference import ZERO, ceil_ppm, cents, exact

DONE = 10009
INVALID = 10013
INVALID_VOLUME = 10014
INVALID_PRICE = 10015
INVALID_STOPS = 10016
NO_MONEY = 10019
INVALID_EXPIRATION = 10022
ORDER_CHANGED = 10023
NO_CHANGES = 10025
FROZEN = 10029
TOO_MANY_ORDERS = 10033
VOLUME_LIMIT = 10034
NO_POSITION = 10036
INVALID_CLOSE_VOLUME = 10038
TOO_MANY_POSITIONS = 10040
NOT_OLDEST = 10045
HEDGE_PROHIBITED = 10046

IN, OUT, INOUT, OUT_BY = 0, 1, 2, 3
EXPERT, SL, TP, STOP_OUT = 3, 4, 5, 6
BUY_LIMIT, SELL_LIMIT, BUY_STOP, SELL_STOP, BUY_STOP_LIMIT, SELL_STOP_LIMIT = range(2, 8)
GTC, DAY, SPECIFIED, SPECIFIED_DAY = range(4)
CANCELED, FILLED, EXPIRED = 2, 4, 6  # states of finished orders

BarPoints = tuple[int, int, int, int, int, int]  # time_ms, open, high, low, close, spread


@dataclass(frozen=True)
class Conditions:
    """What the broker declares about the symbol and the account."""

    digits: int
    contract_size: Decimal
    volume_min: Decimal
    volume_max: Decimal
    volume_step: Decimal
    stops_level: int  # points
    freeze_level: int  # points
    calc_mode: str  # forex, forex_no_leverage, cfd, cfd_leverage
    leverage: Decimal
    margin_initial: Decimal  # money a lot; above 0 it replaces the formula of the calc mode
    margin_rate_long: Decimal
    margin_rate_short: Decimal
    margin_rate_pending: Decimal
    margin_hedged: Decimal | None  # contract size (money where `margin_initial` is set) of a covered lot; None: both legs in full
    hedged_use_leg: bool
    stop_out_level: Decimal  # percent of margin, or money
    is_stop_out_in_money: bool
    commission_per_lot: Decimal  # money, positive is a cost
    commission_bps: Decimal  # of the deal's notional, positive is a cost
    commission_entry: bool
    commission_exit: bool
    swap_mode: str  # points, deposit, interest_current, interest_open
    swap_long: Decimal
    swap_short: Decimal
    swap_days: tuple[int, ...]  # multiplier by the weekday that ended, 0 is Sunday
    slippage_ppm: int
    spread_points: int
    spread_ppm: int
    initial_deposit: Decimal
    is_netting: bool
    limit_orders: int
    limit_positions: int
    volume_limit: Decimal  # lots of positions and orders in one direction; 0: none
    gtc_mode: str  # gtc, daily_no_stops (orders end at midnight), daily (orders and stops)
    is_fifo: bool  # only the oldest position may be closed
    is_hedge_prohibited: bool


@dataclass(frozen=True)
class Fill:
    """One deal of the account's history."""

    order: int
    time_ms: int
    side: int
    entry: int
    position_id: int
    reason: int
    lots: Decimal
    points: int
    commission: Decimal
    swap: Decimal
    profit: Decimal
    magic: int


@dataclass
class Holding:
    """One open position."""

    ticket: int
    identifier: int
    side: int
    lots: Decimal
    price: Fraction  # points
    sl: int
    tp: int
    time_ms: int
    magic: int
    swap: Decimal = Decimal("0.00")

    @property
    def shown_price(self) -> int:
        """The open price in whole points, half up."""
        return int((2 * self.price + 1) // 2)


@dataclass
class Pending:
    """One waiting order."""

    ticket: int
    kind: int  # MT5's order type, 2..7
    lots: Decimal
    price: int  # of a stop-limit: the trigger
    limit: int  # of a stop-limit, else 0
    sl: int
    tp: int
    expiry: int  # last millisecond at which it may fill, 0: none
    time_ms: int
    magic: int
    margin: Decimal

    @property
    def side(self) -> int:
        """The direction of its deal."""
        return side_of(self.kind)


@dataclass(frozen=True)
class Finished:
    """A waiting order that waits no more."""

    state: int
    time_ms: int
    position_id: int
    order: Pending


def side_of(kind: int) -> int:
    """Return +1 for the order types that buy, -1 for those that sell."""
    return 1 if kind % 2 == 0 else -1


class OrdersAccount:
    """Run one account over bid bars; it is born at the first tick of the first bar. Ask it between ticks."""

    def __init__(
        self,
        conditions: Conditions,
        bars: Sequence[BarPoints],
        timeframe_ms: int,
        midnights: Sequence[tuple[int, int]],  # utc_ms of a server midnight, weekday that it ended; some days beyond the last bar
    ) -> None:
        self.conditions, self.timeframe_ms = conditions, timeframe_ms
        self.balance = cents(exact(conditions.initial_deposit))
        self.deals: list[Fill] = []
        self.positions: list[Holding] = []
        self.orders: list[Pending] = []
        self.finished: dict[int, Finished] = {}
        self.seen: Counter[str] = Counter()  # what the return codes, deals and states of orders don't tell
        self._bars, self._midnights = list(bars), sorted(midnights)
        self._last_order, self._index, self._ticks = 0, 0, 1  # the bar, and how many of its ticks were played
        self._extremes = (0, 0)
        self.time_ms = self._tick_ms = self._bars[0][0]
        self.bid, self.ask = self._bars[0][1], self._bars[0][1] + self._spread(0)

    # --- what the client sees

    def profit(self, position: Holding) -> Decimal:
        """Return the floating profit of `position`, without swap."""
        return self._profit(position, position.lots, Fraction(self.bid if position.side > 0 else self.ask))

    def equity(self) -> Decimal:
        """Return the balance with the floating profit and swap of all positions."""
        return self.balance + sum((self.profit(p) + p.swap for p in self.positions), ZERO)

    def margin(self) -> Decimal:
        """Return the margin held by positions and orders."""
        return self._positions_margin(self.positions) + sum((o.margin for o in self.orders), ZERO)

    # --- requests

    def open(self, side: int, lots: Decimal, sl: int, tp: int, magic: int) -> tuple[int, int]:
        """Send a market order without a position; return its return code and its order ticket, 0 where refused."""
        if not self._is_volume(lots):
            return INVALID_VOLUME, 0
        if not self._are_stops(side, self.bid if side > 0 else self.ask, sl, tp):
            return INVALID_STOPS, 0
        if self._is_prohibited(side):
            return HEDGE_PROHIBITED, 0
        if self._is_full():
            return TOO_MANY_POSITIONS, 0
        if self._is_above_limit(side, lots):
            return VOLUME_LIMIT, 0
        points = self._market(side)
        if not self._has_money(side, lots, points, ZERO):
            return NO_MONEY, 0
        ticket = self._next_order()
        self._enter(ticket, side, lots, points, sl, tp, magic)
        return DONE, ticket

    def close(self, ticket: int, lots: Decimal, magic: int) -> int:
        """Close `lots` of the position `ticket` at market."""
        position = self._find(ticket)
        if lots <= 0 or self._is_off_step(lots):
            return INVALID_VOLUME
        if position is None:
            return NO_POSITION
        if lots > position.lots:
            return INVALID_CLOSE_VOLUME
        if self.conditions.is_fifo and position is not self.positions[0]:
            return NOT_OLDEST
        self._exit(self._next_order(), position, lots, self._market(-position.side), EXPERT, magic)
        return DONE

    def modify(self, ticket: int, sl: int, tp: int) -> int:
        """Replace both levels of the position `ticket`."""
        position = self._find(ticket)
        if position is None:
            return NO_POSITION
        if (sl, tp) == (position.sl, position.tp):
            return NO_CHANGES
        quote, freeze = self.bid if position.side > 0 else self.ask, self.conditions.freeze_level
        if freeze > 0 and any(level > 0 and abs(quote - level) <= freeze for level in (position.sl, position.tp)):
            return FROZEN
        if not self._are_stops(position.side, quote, sl, tp):
            return INVALID_STOPS
        position.sl, position.tp = sl, tp
        return DONE

    def close_by(self, ticket: int, by: int, magic: int) -> int:
        """Close the position `ticket` by the opposite one `by`: both deals at the open price of `by`."""
        first, second = self._find(ticket), self._find(by)
        if self.conditions.is_netting:
            return INVALID
        if first is None or second is None:
            return NO_POSITION
        if first.side == second.side:
            return INVALID
        if self.conditions.is_fifo and self.positions[0] not in (first, second):
            return NOT_OLDEST
        order, lots = self._next_order(), min(first.lots, second.lots)
        for position in (first, second):
            self._exit(order, position, lots, int(second.price), EXPERT, magic, OUT_BY)
        return DONE

    def place(
        self, kind: int, lots: Decimal, price: int, limit: int, sl: int, tp: int, lifetime: int, until_ms: int, magic: int
    ) -> tuple[int, int]:
        """Place a pending order; return the return code and the ticket, 0 where refused."""
        if lifetime in (SPECIFIED, SPECIFIED_DAY) and self._expiry(lifetime, until_ms) <= self.time_ms:
            return INVALID_EXPIRATION, 0
        if not self._is_volume(lots):
            return INVALID_VOLUME, 0
        if not self._is_price(kind, price, limit):
            return INVALID_PRICE, 0
        if not self._are_stops(side_of(kind), limit or price, sl, tp):
            return INVALID_STOPS, 0
        if self._is_prohibited(side_of(kind)):
            return HEDGE_PROHIBITED, 0
        if len(self.orders) >= self.conditions.limit_orders:
            return TOO_MANY_ORDERS, 0
        if self._is_full():
            return TOO_MANY_POSITIONS, 0
        if self._is_above_limit(side_of(kind), lots):
            return VOLUME_LIMIT, 0
        margin = self._margin(lots, Fraction(price), self.conditions.margin_rate_pending)
        if margin > 0 and self.margin() + margin > self.equity():
            return NO_MONEY, 0
        ticket = self._next_order()
        expiry = self._expiry(lifetime, until_ms)
        self.orders.append(Pending(ticket, kind, lots, price, limit, sl, tp, expiry, self.time_ms, magic, margin))
        return DONE, ticket

    def change(self, ticket: int, price: int, limit: int, sl: int, tp: int, lifetime: int, until_ms: int) -> int:
        """Replace prices, levels and expiration of a pending order."""
        order = next((o for o in self.orders if o.ticket == ticket), None)
        if lifetime in (SPECIFIED, SPECIFIED_DAY) and self._expiry(lifetime, until_ms) <= self.time_ms:
            return INVALID_EXPIRATION
        if order is None:
            return self._gone(ticket)
        expiry = self._expiry(lifetime, until_ms)
        if (price, limit, sl, tp, expiry) == (order.price, order.limit, order.sl, order.tp, order.expiry):
            return NO_CHANGES
        if self._is_frozen(order):
            return FROZEN
        if not self._is_price(order.kind, price, limit):
            return INVALID_PRICE
        if not self._are_stops(order.side, limit or price, sl, tp):
            return INVALID_STOPS
        margin = self._margin(order.lots, Fraction(price), self.conditions.margin_rate_pending)
        if margin > order.margin and self.margin() + margin - order.margin > self.equity():
            return NO_MONEY
        order.price, order.limit, order.sl, order.tp, order.expiry, order.margin = price, limit, sl, tp, expiry, margin
        return DONE

    def remove(self, ticket: int) -> int:
        """Take a pending order back."""
        order = next((o for o in self.orders if o.ticket == ticket), None)
        if order is None:
            return self._gone(ticket)
        if self._is_frozen(order):
            return FROZEN
        self._finish(order, CANCELED)
        return DONE

    # --- time

    def advance(self) -> bool:
        """Play the rest of the current bar, then go to the first tick of the next; False where there is none."""
        while self.advance_tick():
            if self._ticks == 1:
                return True
        return False

    def advance_tick(self) -> bool:
        """Go to the next tick; False where there is none."""
        if self._ticks == 4 and self._index + 1 == len(self._bars):
            return False
        self._index, self._ticks = (self._index + 1, 0) if self._ticks == 4 else (self._index, self._ticks)
        _, open_, high, low, close, _ = self._bars[self._index]
        if self._ticks == 1:
            net = sum((p.side * p.lots for p in self.positions), ZERO)
            self._extremes = (high, low) if net < 0 else (low, high)
        bid = (open_, *self._extremes, close)[self._ticks]
        self._tick(self.next_ms(), bid, self._spread(self._index), is_real=self._ticks == 0)
        self._ticks += 1
        return True

    def next_ms(self) -> int:
        """Return the time of the next tick; after the last one, that of the last."""
        index, ticks, length = self._index, self._ticks, self.timeframe_ms
        if ticks == 4:
            index, ticks = (index + 1, 0) if index + 1 < len(self._bars) else (index, 3)
        return self._bars[index][0] + (0, length // 3, 2 * length // 3, length - 1)[ticks]

    def wait(self, time_ms: int) -> None:
        """Let time pass without a tick."""
        if not self.time_ms <= time_ms < self.next_ms():
            raise ValueError(f"{time_ms} is not between now and the next tick")
        self.time_ms = time_ms

    def _tick(self, time_ms: int, bid: int, spread: int, is_real: bool) -> None:
        """Do the server's work of one tick: swap; orders, SL and TP; stop-out; expirations."""
        before, self._tick_ms, self.time_ms, self.bid, self.ask = self._tick_ms, time_ms, time_ms, bid, bid + spread
        for midnight, weekday in self._midnights:
            if before < midnight <= time_ms:
                self._roll_over(midnight, weekday)
        for order in [o for o in self.orders if not 0 < o.expiry < time_ms]:  # once its last moment has passed, no tick can fill it
            self._activate(order, is_real)
        for position in list(self.positions):
            self._trigger(position, is_real)
        self._stop_out()
        for order in [o for o in self.orders if 0 < o.expiry <= time_ms]:
            self._finish(order, EXPIRED)

    def _roll_over(self, midnight: int, weekday: int) -> None:
        """Do the work of one server midnight for what was there before it."""
        conditions = self.conditions
        for order in [o for o in self.orders if o.time_ms < midnight] if conditions.gtc_mode != "gtc" else []:
            self.seen["order ended by the day"] += 1
            self._finish(order, EXPIRED)
        for position in [p for p in self.positions if p.time_ms < midnight]:
            rate = exact(conditions.swap_long if position.side > 0 else conditions.swap_short)
            quote = Fraction(self.bid if position.side > 0 else self.ask)
            day = {
                "points": self._notional(position.lots, rate),
                "deposit": exact(position.lots) * rate,
                "interest_current": self._notional(position.lots, quote) * rate / 36_000,
                "interest_open": self._notional(position.lots, position.price) * rate / 36_000,
            }[conditions.swap_mode]
            position.swap += cents(day * conditions.swap_days[weekday])
            if conditions.gtc_mode == "daily":
                position.sl = position.tp = 0

    def _activate(self, order: Pending, is_real: bool) -> None:
        side = order.side
        quote = self.ask if side > 0 else self.bid
        if order.kind >= BUY_STOP_LIMIT:
            if side * (quote - order.price) >= 0:
                order.kind, order.price, order.limit = order.kind - 4, order.limit, 0
                order.margin = self._margin(order.lots, Fraction(order.price), self.conditions.margin_rate_pending)
            return
        is_limit = order.kind <= SELL_LIMIT
        if side * (quote - order.price) * (-1 if is_limit else 1) < 0:
            return
        # A bar's first tick is a real quote and may have gapped beyond the limit; the path to the others went through it.
        points = self._market(side) if not is_limit else quote if is_real else order.price
        if self._is_prohibited(side) or not self._has_money(side, order.lots, points, order.margin):
            self.seen["activation refused"] += 1
            self._finish(order, CANCELED)
            return
        self.orders.remove(order)
        identifier = self._enter(order.ticket, side, order.lots, points, order.sl, order.tp, order.magic)
        self.finished[order.ticket] = Finished(FILLED, self.time_ms, identifier, order)

    def _trigger(self, position: Holding, is_real: bool) -> None:
        side, quote = position.side, self.bid if position.side > 0 else self.ask
        if position.sl > 0 and side * (quote - position.sl) <= 0:
            self._exit(self._next_order(), position, position.lots, self._market(-side), SL, position.magic)
        elif position.tp > 0 and side * (quote - position.tp) >= 0:
            self._exit(self._next_order(), position, position.lots, quote if is_real else position.tp, TP, position.magic)

    def _stop_out(self) -> None:
        while self._is_stopped_out():
            holding = [o for o in self.orders if o.margin > 0]
            if holding:
                self.seen["order dropped by stop-out"] += 1
                self._finish(max(holding, key=lambda o: (o.margin, -o.ticket)), CANCELED)
            elif self.positions:
                worst = min(self.positions, key=lambda p: (self.profit(p) + p.swap, p.ticket))
                self._exit(self._next_order(), worst, worst.lots, self._market(-worst.side), STOP_OUT, worst.magic)
            else:
                return

    def _is_stopped_out(self) -> bool:
        equity, margin, level = exact(self.equity()), exact(self.margin()), exact(self.conditions.stop_out_level)
        return margin > 0 and (equity < level if self.conditions.is_stop_out_in_money else equity * 100 < level * margin)

    # --- positions

    def _enter(self, order: int, side: int, lots: Decimal, points: int, sl: int, tp: int, magic: int) -> int:
        """Book an order's fill; return the identifier of its position."""
        conditions = self.conditions
        held = self.positions[0] if conditions.is_netting and self.positions else None
        if held is not None and held.side != side and lots <= held.lots:
            identifier = held.identifier
            self._exit(order, held, lots, points, EXPERT, magic)
            return identifier
        entry, commission, swap, profit = IN, Fraction(0), ZERO, ZERO
        if held is None:
            held = Holding(order, order, side, lots, Fraction(points), sl, tp, self.time_ms, magic)
            self.positions.append(held)
            opened = lots
        elif held.side == side:
            held.price = (held.price * exact(held.lots) + points * exact(lots)) / exact(held.lots + lots)
            held.lots, held.sl, held.tp = held.lots + lots, sl, tp
            opened = lots
        else:
            entry, swap, profit, opened = INOUT, held.swap, self._profit(held, held.lots, Fraction(points)), lots - held.lots
            if conditions.commission_exit:
                commission += self._commission(held.lots, points)
            held.ticket, held.side, held.lots, held.price = order, side, opened, Fraction(points)
            held.sl, held.tp, held.swap, held.magic, held.time_ms = sl, tp, Decimal("0.00"), magic, self.time_ms
        if conditions.commission_entry:
            commission += self._commission(opened, points)
        fill = Fill(order, self.time_ms, side, entry, held.identifier, EXPERT, lots, points, cents(commission), swap, profit, magic)
        self._book(fill)
        return held.identifier

    def _exit(
        self,
        order: int,
        position: Holding,
        lots: Decimal,
        points: int,
        reason: int,
        magic: int,
        entry: int = OUT,
    ) -> None:
        swap = cents(exact(position.swap) * exact(lots) / exact(position.lots))
        profit = self._profit(position, lots, Fraction(points))
        commission = cents(self._commission(lots, points)) if self.conditions.commission_exit else ZERO
        position.swap -= swap
        position.lots -= lots
        if position.lots == 0:
            self.positions.remove(position)
        side, identifier = -position.side, position.identifier
        self._book(Fill(order, self.time_ms, side, entry, identifier, reason, lots, points, commission, swap, profit, magic))

    def _book(self, fill: Fill) -> None:
        self.deals.append(fill)
        self.balance += fill.commission + fill.swap + fill.profit

    def _find(self, ticket: int) -> Holding | None:
        return next((p for p in self.positions if p.ticket == ticket), None)

    def _next_order(self) -> int:
        self._last_order += 1
        return self._last_order

    # --- orders

    def _finish(self, order: Pending, state: int) -> None:
        self.orders.remove(order)
        self.finished[order.ticket] = Finished(state, self.time_ms, 0, order)

    def _gone(self, ticket: int) -> int:
        """Return why an order can't be changed: its state did just now, or there is none."""
        finished = self.finished.get(ticket)
        return ORDER_CHANGED if finished is not None and self.time_ms - finished.time_ms < 1000 else INVALID

    def _expiry(self, lifetime: int, until_ms: int) -> int:
        """Return the last millisecond at which an order may fill; days end one millisecond before the server's midnight."""
        if lifetime in (DAY, SPECIFIED_DAY):
            moment = self.time_ms if lifetime == DAY else until_ms
            return min(midnight for midnight, _ in self._midnights if midnight > moment) - 1
        return until_ms if lifetime == SPECIFIED else 0

    def _is_frozen(self, order: Pending) -> bool:
        quote, freeze = self.ask if order.side > 0 else self.bid, self.conditions.freeze_level
        return freeze > 0 and abs(quote - order.price) <= freeze

    def _is_price(self, kind: int, price: int, limit: int) -> bool:
        side, least = side_of(kind), max(self.conditions.stops_level, 1)
        quote = self.ask if side > 0 else self.bid
        if kind <= SELL_LIMIT:
            return side * (quote - price) >= least
        return side * (price - quote) >= least and (kind < BUY_STOP_LIMIT or side * (price - limit) >= self.conditions.stops_level)

    def _are_stops(self, side: int, price: int, sl: int, tp: int) -> bool:
        least = max(self.conditions.stops_level, 1)
        return (sl == 0 or side * (price - sl) >= least) and (tp == 0 or side * (tp - price) >= least)

    def _is_volume(self, lots: Decimal) -> bool:
        return self.conditions.volume_min <= lots <= self.conditions.volume_max and not self._is_off_step(lots)

    def _is_off_step(self, lots: Decimal) -> bool:
        return (exact(lots) / exact(self.conditions.volume_step)).denominator != 1

    def _is_full(self) -> bool:
        """Hedging counts positions and pending orders; netting has one position of the symbol."""
        return not self.conditions.is_netting and len(self.positions) + len(self.orders) >= self.conditions.limit_positions

    def _is_prohibited(self, side: int) -> bool:
        conditions = self.conditions
        return conditions.is_hedge_prohibited and not conditions.is_netting and any(p.side != side for p in self.positions)

    def _is_above_limit(self, side: int, lots: Decimal) -> bool:
        held = sum((p.side * p.lots for p in self.positions if self.conditions.is_netting or p.side == side), ZERO) * side
        waiting = sum((o.lots for o in self.orders if o.side == side), ZERO)
        return 0 < self.conditions.volume_limit < held + waiting + lots

    # --- arithmetic

    def order_margin(self, kind: int, lots: Decimal, price: int) -> Decimal:
        """Return the margin of an order of any type at `price`."""
        conditions = self.conditions
        market = conditions.margin_rate_long if kind == 0 else conditions.margin_rate_short
        return self._margin(lots, Fraction(price), market if kind < BUY_LIMIT else conditions.margin_rate_pending)

    def order_profit(self, side: int, lots: Decimal, opened: int, closed: int) -> Decimal:
        """Return the profit between two prices."""
        return cents(side * self._notional(lots, Fraction(closed - opened)))

    def _spread(self, index: int) -> int:
        _, open_, _, _, _, spread = self._bars[index]
        return max(spread, self.conditions.spread_points, ceil_ppm(open_, self.conditions.spread_ppm))

    def _market(self, side: int) -> int:
        quote = self.ask if side > 0 else self.bid
        return quote + side * ceil_ppm(quote, self.conditions.slippage_ppm)

    def _notional(self, lots: Decimal, points: Fraction) -> Fraction:
        return exact(lots) * exact(self.conditions.contract_size) * points / 10**self.conditions.digits

    def _profit(self, position: Holding, lots: Decimal, points: Fraction) -> Decimal:
        return cents(position.side * self._notional(lots, points - position.price))

    def _commission(self, lots: Decimal, points: int) -> Fraction:
        per_lot = exact(self.conditions.commission_per_lot) * exact(lots)
        return -(per_lot + exact(self.conditions.commission_bps) / 10_000 * self._notional(lots, Fraction(points)))

    def _margin(self, lots: Decimal, points: Fraction, rate: Decimal) -> Decimal:
        return cents(self._exact_margin(exact(lots), points, exact(self.conditions.contract_size)) * exact(rate))

    def _exact_margin(self, lots: Fraction, points: Fraction, contract: Fraction) -> Fraction:
        conditions = self.conditions
        if conditions.margin_initial > 0:
            return lots * exact(conditions.margin_initial)
        has_leverage = conditions.calc_mode in ("forex", "cfd_leverage")
        return lots * contract * points / 10**conditions.digits / (exact(conditions.leverage) if has_leverage else 1)

    def _positions_margin(self, positions: Sequence[Holding]) -> Decimal:
        """Return the margin of positions: each from its shown open price, or, where a hedged margin is declared, by legs rounded once."""
        conditions = self.conditions
        rates = {1: exact(conditions.margin_rate_long), -1: exact(conditions.margin_rate_short)}
        contract = exact(conditions.contract_size)
        held = [(p.side, exact(p.lots), Fraction(p.shown_price)) for p in positions]
        charged = [(side, self._exact_margin(lots, price, contract) * rates[side]) for side, lots, price in held]
        if not conditions.hedged_use_leg and conditions.margin_hedged is None:
            return sum((cents(margin) for _, margin in charged), ZERO)
        legs = {side: sum((margin for its, margin in charged if its == side), Fraction(0)) for side in (1, -1)}
        if conditions.hedged_use_leg:
            return cents(max(legs.values()))
        volume = {side: sum((lots for its, lots, _ in held if its == side), Fraction(0)) for side in (1, -1)}
        larger, covered, total = 1 if volume[1] >= volume[-1] else -1, min(volume.values()), sum(volume.values())
        if covered == 0:
            return cents(legs[larger])
        # The rest of the larger leg at this leg's average; what is covered at the average of all positions, each at its price and rate.
        rest = legs[larger] * (volume[larger] - covered) / volume[larger]
        size = exact(conditions.margin_hedged or ZERO)
        if conditions.margin_initial > 0:
            hedged = [lots * size * rates[side] for side, lots, _ in held]
        else:
            hedged = [self._exact_margin(lots, price, size) * rates[side] for side, lots, price in held]
        return cents(rest) + cents(sum(hedged) * covered / total)

    def _has_money(self, side: int, lots: Decimal, points: int, released: Decimal) -> bool:
        """Say whether the margin after a fill is covered by the equity; what lowers the margin always is."""
        before = self.margin()
        after = self._positions_margin(self._after(side, lots, points)) + before - self._positions_margin(self.positions) - released
        return after <= before - released or after <= self.equity()

    def _after(self, side: int, lots: Decimal, points: int) -> list[Holding]:
        new = Holding(0, 0, side, lots, Fraction(points), 0, 0, 0, 0)
        if not self.conditions.is_netting or not self.positions:
            return [*self.positions, new]
        held = self.positions[0]
        if held.side == side:
            new.price = (held.price * exact(held.lots) + points * exact(lots)) / exact(held.lots + lots)
            new.lots += held.lots
            return [new]
        if lots > held.lots:
            new.lots -= held.lots
            return [new]
        new.side, new.lots, new.price = held.side, held.lots - lots, held.price
        return [new] if new.lots else []
