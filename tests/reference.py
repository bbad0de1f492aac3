"""An independent reference of the account: plain Python, exact numbers, written from the execution model's text alone.

It imports only the standard library, so that it shares no line, and no mistake, with the compiled engine. Prices are whole
points, money is made from exact fractions and rounded once to cents, half away from zero. It covers one symbol quoted in the
account's currency, a hedging account, and market orders with SL and TP. Where the rules are silent it raises `ValueError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

Number = Decimal | Fraction | str | int | float

DONE = 10009
INVALID_VOLUME = 10014
INVALID_STOPS = 10016
NO_MONEY = 10019
NO_CHANGES = 10025
FROZEN = 10029
NO_POSITION = 10036
INVALID_CLOSE_VOLUME = 10038
TOO_MANY_POSITIONS = 10040

ENTRY_IN, ENTRY_OUT = 0, 1
REASON_EXPERT, REASON_SL, REASON_TP, REASON_STOP_OUT = 3, 4, 5, 6

ZERO = Decimal(0)


@dataclass(frozen=True)
class Profile:
    """What the broker declares about the symbol and the account."""

    digits: int
    contract_size: Decimal
    volume_min: Decimal
    volume_max: Decimal
    volume_step: Decimal
    stops_level: int  # points
    freeze_level: int  # points
    leverage: Decimal
    margin_rate: Decimal
    stop_out_level: Decimal  # percent of margin
    commission_per_lot: Decimal  # money, positive is a cost
    commission_bps: Decimal  # of the deal's notional, positive is a cost
    commission_entry: bool
    commission_exit: bool
    swap_long: Decimal  # percent a year of the current price, negative is paid
    swap_short: Decimal
    swap_days: tuple[int, ...]  # multiplier by the weekday that ended, 0 is Sunday
    slippage_ppm: int
    spread_points: int
    spread_ppm: int
    initial_deposit: Decimal


@dataclass(frozen=True)
class Deal:
    """One line of the account's history."""

    ticket: int
    order: int
    time_ms: int
    side: int  # of the deal: a long position is closed by -1
    entry: int  # 0 in, 1 out
    position_id: int
    reason: int  # 3 expert, 4 SL, 5 TP, 6 stop-out
    lots: Decimal
    price: Decimal
    commission: Decimal  # negative is a cost
    swap: Decimal
    profit: Decimal
    magic: int  # the closing request's, or the position's where the server closed


@dataclass
class Position:
    """One open position; its ticket is the opening order's."""

    ticket: int
    side: int
    lots: Decimal
    price: Decimal
    sl: Decimal
    tp: Decimal
    time_ms: int
    swap: Decimal
    magic: int


@dataclass(frozen=True)
class _Bar:
    time_ms: int
    open: int
    high: int
    low: int
    close: int
    spread: int  # effective, after the model's floor


def exact(value: Number) -> Fraction:
    """Return `value` as it is written in decimal, so that a float 0.1 is one tenth."""
    return Fraction(value) if isinstance(value, Decimal | Fraction) else Fraction(str(value))


def cents(value: Fraction) -> Decimal:
    """Round `value` to cents, half away from zero."""
    size = (abs(value) * 200 + 1) // 2  # floor(|value| * 100 + 1/2)
    return Decimal(int(size) if value >= 0 else -int(size)).scaleb(-2)


def ceil_ppm(points: int, ppm: int) -> int:
    """Return `ppm` millionths of `points`, rounded up."""
    return -(-points * ppm // 1_000_000)


class ReferenceAccount:
    """Run one account over bid bars; it is born at the first tick of the first bar.

    At each first tick of a bar the server's work is already done when the client is asked: call `open`, `close` and `modify`,
    then `advance`.
    """

    def __init__(
        self,
        profile: Profile,
        bars: Sequence[tuple[int, Number, Number, Number, Number, int]],  # time_ms, open, high, low, close, spread points
        timeframe_ms: int,
        midnights: Sequence[tuple[int, int]] = (),  # utc_ms of a server midnight, weekday that it ended
        max_positions: int = 200,
    ) -> None:
        self.profile = profile
        self.timeframe_ms = timeframe_ms
        self.max_positions = max_positions
        self.balance = cents(exact(profile.initial_deposit))
        self.deals: list[Deal] = []
        self.positions: list[Position] = []
        self._bars = [self._read_bar(*bar) for bar in bars]
        self._midnights = sorted((int(time), int(day)) for time, day in midnights)
        self._orders = 0
        self._index = 0
        if not self._bars:
            raise ValueError("at least one bar is needed")
        for before, after in zip(self._bars, self._bars[1:], strict=False):
            if after.time_ms < before.time_ms + timeframe_ms:
                raise ValueError(f"bar {after.time_ms} starts before bar {before.time_ms} has ended")
        first = self._bars[0]
        self.time_ms = first.time_ms
        self._bid, self._ask = first.open, first.open + first.spread

    def _read_bar(self, time_ms: int, open_: Number, high: Number, low: Number, close: Number, spread: int) -> _Bar:
        first, highest, lowest, last = (self._points(price) for price in (open_, high, low, close))
        if not lowest <= min(first, last) <= max(first, last) <= highest:
            raise ValueError(f"bar {time_ms}: open and close must lie between low and high")
        floor = max(self.profile.spread_points, ceil_ppm(first, self.profile.spread_ppm))
        return _Bar(int(time_ms), first, highest, lowest, last, max(int(spread), floor))

    # --- what the client sees

    @property
    def bid(self) -> Decimal:
        """The current bid."""
        return self._price(self._bid)

    @property
    def ask(self) -> Decimal:
        """The current ask."""
        return self._price(self._ask)

    def profit(self, position: Position) -> Decimal:
        """Return the floating profit of `position`, without swap and commission."""
        return self._profit(position, position.lots, self._bid if position.side > 0 else self._ask)

    def equity(self) -> Decimal:
        """Return the balance with the floating profit and swap of all positions."""
        return self.balance + sum((self.profit(p) + p.swap for p in self.positions), ZERO)

    def margin(self) -> Decimal:
        """Return the margin held by all positions, each from its open price."""
        return sum((self._margin(p.lots, self._points(p.price)) for p in self.positions), ZERO)

    # --- the client's requests

    def open(self, side: int, lots: Decimal, sl: Decimal = ZERO, tp: Decimal = ZERO, magic: int = 0) -> tuple[int, int]:
        """Send a market order; return its return code and its order ticket, 0 where refused."""
        if side not in (1, -1):
            raise ValueError(f"side must be +1 or -1, not {side}")
        profile = self.profile
        if not profile.volume_min <= lots <= profile.volume_max or self._off_step(lots):
            return INVALID_VOLUME, 0
        if not self._stops_are_valid(side, sl, tp):
            return INVALID_STOPS, 0
        if len(self.positions) >= self.max_positions:
            return TOO_MANY_POSITIONS, 0
        fill = self._market_fill(side)
        if self._margin(lots, fill) + self.margin() > self.equity():
            return NO_MONEY, 0
        self._orders += 1
        ticket = self._orders
        self.positions.append(
            Position(
                ticket=ticket,
                side=side,
                lots=lots,
                price=self._price(fill),
                sl=self._price(self._points(sl)),
                tp=self._price(self._points(tp)),
                time_ms=self.time_ms,
                swap=cents(Fraction(0)),
                magic=magic,
            )
        )
        commission = self._commission(lots, fill) if profile.commission_entry else cents(Fraction(0))
        self._book(ticket, side, ENTRY_IN, ticket, REASON_EXPERT, lots, fill, commission, ZERO, ZERO, magic)
        return DONE, ticket

    def close(self, ticket: int, lots: Decimal, magic: int = 0) -> int:
        """Close `lots` of the position `ticket` at market; return the return code."""
        position = self._find(ticket)
        if position is None:
            return NO_POSITION
        if lots <= 0 or self._off_step(lots):
            return INVALID_VOLUME
        if lots > position.lots:
            return INVALID_CLOSE_VOLUME
        self._close(position, lots, self._market_fill(-position.side), REASON_EXPERT, magic)
        return DONE

    def modify(self, ticket: int, sl: Decimal, tp: Decimal) -> int:
        """Replace both levels of the position `ticket`; return the return code."""
        position = self._find(ticket)
        if position is None:
            return NO_POSITION
        if (sl, tp) == (position.sl, position.tp):
            return NO_CHANGES
        if self._is_frozen(position):
            return FROZEN
        if not self._stops_are_valid(position.side, sl, tp):
            return INVALID_STOPS
        position.sl, position.tp = self._price(self._points(sl)), self._price(self._points(tp))
        return DONE

    # --- time

    def advance(self) -> bool:
        """Play the rest of the current bar, then go to the first tick of the next; False where there is none."""
        if self._index == len(self._bars):
            return False
        bar = self._bars[self._index]
        net = sum((p.side * p.lots for p in self.positions), ZERO)
        extremes = (bar.high, bar.low) if net < 0 else (bar.low, bar.high)
        offsets = (self.timeframe_ms // 3, 2 * self.timeframe_ms // 3, self.timeframe_ms - 1)
        for offset, bid in zip(offsets, (*extremes, bar.close), strict=True):
            self._tick(bar.time_ms + offset, bid, bar.spread, is_real=False)
        self._index += 1
        if self._index == len(self._bars):
            return False
        bar = self._bars[self._index]
        self._tick(bar.time_ms, bar.open, bar.spread, is_real=True)
        return True

    def _tick(self, time_ms: int, bid: int, spread: int, is_real: bool) -> None:
        """Do the server's work of one tick: swap, then SL and TP, then stop-out."""
        before, self.time_ms = self.time_ms, time_ms
        self._bid, self._ask = bid, bid + spread
        for midnight, weekday in self._midnights:
            if before < midnight <= time_ms:
                self._roll_over(weekday)
        for position in list(self.positions):
            self._trigger(position, is_real)
        self._stop_out()

    def _roll_over(self, weekday: int) -> None:
        profile = self.profile
        for position in self.positions:
            rate, quote = (profile.swap_long, self._bid) if position.side > 0 else (profile.swap_short, self._ask)
            year = self._notional(position.lots, quote) * exact(rate) / 100
            position.swap += cents(year / 360 * profile.swap_days[weekday])

    def _trigger(self, position: Position, is_real: bool) -> None:
        side, sl, tp = position.side, self._points(position.sl), self._points(position.tp)
        quote = self._bid if side > 0 else self._ask
        if sl > 0 and side * (quote - sl) <= 0:
            self._close(position, position.lots, self._market_fill(-side), REASON_SL, position.magic)
        elif tp > 0 and side * (quote - tp) >= 0:
            # A bar's first tick is a real quote and may have gapped beyond the level; the path to the others went through it.
            self._close(position, position.lots, quote if is_real else tp, REASON_TP, position.magic)

    def _stop_out(self) -> None:
        while self.margin() > 0 and exact(self.equity()) * 100 < exact(self.profile.stop_out_level) * exact(self.margin()):
            worst = min(self.positions, key=lambda p: (self.profit(p) + p.swap, p.ticket))
            self._close(worst, worst.lots, self._market_fill(-worst.side), REASON_STOP_OUT, worst.magic)

    # --- arithmetic

    def _points(self, price: Number) -> int:
        points = exact(price) * 10**self.profile.digits
        if points.denominator != 1 or points < 0:
            raise ValueError(f"{price} is not a price of {self.profile.digits} digits")
        return int(points)

    def _price(self, points: int) -> Decimal:
        return Decimal(points).scaleb(-self.profile.digits)

    def _market_fill(self, side: int) -> int:
        quote = self._ask if side > 0 else self._bid
        return quote + side * ceil_ppm(quote, self.profile.slippage_ppm)

    def _notional(self, lots: Decimal, points: int) -> Fraction:
        return exact(lots) * exact(self.profile.contract_size) * Fraction(points, 10**self.profile.digits)

    def _profit(self, position: Position, lots: Decimal, points: int) -> Decimal:
        return cents(position.side * self._notional(lots, points - self._points(position.price)))

    def _margin(self, lots: Decimal, points: int) -> Decimal:
        return cents(self._notional(lots, points) / exact(self.profile.leverage) * exact(self.profile.margin_rate))

    def _commission(self, lots: Decimal, points: int) -> Decimal:
        per_lot = exact(self.profile.commission_per_lot) * exact(lots)
        return cents(-(per_lot + exact(self.profile.commission_bps) / 10_000 * self._notional(lots, points)))

    def _off_step(self, lots: Decimal) -> bool:
        return (exact(lots) / exact(self.profile.volume_step)).denominator != 1

    def _stops_are_valid(self, side: int, sl: Decimal, tp: Decimal) -> bool:
        quote, least = self._bid if side > 0 else self._ask, max(self.profile.stops_level, 1)
        stop, target = self._points(sl), self._points(tp)
        return (stop == 0 or side * (quote - stop) >= least) and (target == 0 or side * (target - quote) >= least)

    def _is_frozen(self, position: Position) -> bool:
        quote, freeze = self._bid if position.side > 0 else self._ask, self.profile.freeze_level
        levels = [self._points(level) for level in (position.sl, position.tp) if level > 0]
        return freeze > 0 and any(abs(quote - level) <= freeze for level in levels)

    def _find(self, ticket: int) -> Position | None:
        return next((p for p in self.positions if p.ticket == ticket), None)

    def _close(self, position: Position, lots: Decimal, points: int, reason: int, magic: int) -> None:
        self._orders += 1
        swap = cents(exact(position.swap) * exact(lots) / exact(position.lots))
        profit = self._profit(position, lots, points)
        commission = self._commission(lots, points) if self.profile.commission_exit else cents(Fraction(0))
        position.swap -= swap
        position.lots -= lots
        if position.lots == 0:
            self.positions.remove(position)
        self._book(self._orders, -position.side, ENTRY_OUT, position.ticket, reason, lots, points, commission, swap, profit, magic)

    def _book(
        self,
        order: int,
        side: int,
        entry: int,
        position_id: int,
        reason: int,
        lots: Decimal,
        points: int,
        commission: Decimal,
        swap: Decimal,
        profit: Decimal,
        magic: int,
    ) -> None:
        deal = Deal(
            ticket=len(self.deals) + 1,
            order=order,
            time_ms=self.time_ms,
            side=side,
            entry=entry,
            position_id=position_id,
            reason=reason,
            lots=lots,
            price=self._price(points),
            commission=commission,
            swap=swap,
            profit=profit,
            magic=magic,
        )
        self.deals.append(deal)
        self.balance += commission + swap + profit
