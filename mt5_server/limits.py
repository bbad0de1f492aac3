"""What an order is, what it does to the risk of the account, and the hard limits on that."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Final, Literal, Protocol, Self

from btcbot.core.errors import BtcbotError
from btcbot.terminal.contract import C, TradePosition
from btcbot.terminal.evidence import Look, Promise
from btcbot.terminal.wire import Answer, Call
from mt5_server.refusal import Refusal

__all__ = [
    "ANY_MAGIC",
    "THE_GUARD",
    "Door",
    "Limits",
    "Magics",
    "Quote",
    "Refusal",
    "Submission",
    "adds_risk",
    "exposure_after",
    "exposure_lots",
    "strategy_magics",
    "tightened",
]

_EPS: Final = 1e-9
Magics = tuple[tuple[int, int], ...]  # ranges, both ends included
ANY_MAGIC: Final[Magics] = ((0, 2**64 - 1),)
THE_GUARD: Final = object()  # who sends the guard's own orders: nobody's grant covers them


def strategy_magics(strategy_id: int) -> Magics:
    """Return the magics that orders of our own `OrderExecution` have for a strategy."""
    return ((strategy_id << 32, (strategy_id << 32) + 2**32 - 1),)


class Door(Protocol):
    """What is needed of the gate."""

    def batch(self, calls: Sequence[Call], timeout_s: float | None = None) -> list[Answer]:
        """Answer `calls`, with nobody in between; one that has returned is never begun later."""
        ...


@dataclass(frozen=True, slots=True)
class Quote:
    """The quote that an order was decided on, as the server gave it (its raw time)."""

    time_msc: int
    bid: float
    ask: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """An order as it came in."""

    key: str
    request: Mapping[str, object]
    epoch: int | None = None
    ttl_ms: int | None = None
    quote: Quote | None = None
    max_distance: float | None = None  # points
    received: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Limits:
    """Hard limits of one account; None is no limit."""

    equity_floor: float | None = None  # account currency
    daily_loss: float | None = None  # account currency, in the broker's day
    exposure: float | None = None  # lots of all positions and pending orders together
    orders_a_minute: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise BtcbotError(f"The limit {name} can't be {value!r}: give a number from 0 on, or leave it out.")

    def changed(self, wanted: Mapping[str, float | None]) -> tuple[Self, list[str]]:
        """Return the limits with what is wanted, and the names of those that would be looser than now."""
        known = {found.name for found in fields(self)}
        if strange := sorted(set(wanted) - known):
            raise Refusal(422, "limit-unknown", f"There is no limit {strange[0]!r}: the limits are {', '.join(sorted(known))}.")
        now = asdict(self)
        try:
            after = type(self)(**{**now, **wanted})
        except BtcbotError as error:
            raise Refusal(422, "limit-unknown", str(error)) from None

        def is_looser(name: str) -> bool:
            old, new = now[name], wanted[name]
            if old is None or new is None:
                return old is not None
            return bool(new < old if name == "equity_floor" else new > old)

        return after, sorted(filter(is_looser, wanted))


def exposure_lots(seen: Look) -> float:
    """Return the lots of all positions and pending orders together."""
    held: Iterable[float] = (position.volume for position in seen.positions or ())
    waiting: Iterable[float] = (order.volume_current for order in seen.orders or ())
    return round(sum(held) + sum(waiting), 8)


def exposure_after(promise: Promise, seen: Look) -> float:
    """Return the lots that there would be once the order was executed."""
    now, volume = exposure_lots(seen), promise.value("volume")
    if promise.number("action") not in (C.TRADE_ACTION_DEAL, C.TRADE_ACTION_PENDING):
        return now
    held = seen.position(0, promise.symbol) if seen.is_netting and promise.number("action") == C.TRADE_ACTION_DEAL else None
    if held is None:
        return round(now + volume, 8)
    signed = held.volume if held.type == C.POSITION_TYPE_BUY else -held.volume
    after = signed + (volume if promise.number("type") == C.ORDER_TYPE_BUY else -volume)
    return round(now - held.volume + abs(after), 8)


def _loosens(position: TradePosition, level: float) -> bool:
    if not position.sl:
        return False
    is_further = level < position.sl if position.type == C.POSITION_TYPE_BUY else level > position.sl
    return not level or is_further


def adds_risk(promise: Promise, seen: Look) -> bool:
    """Say whether an order is an entry: whether it can add exposure, or takes protection away.

    Closing, removing a pending order, and setting or tightening a stop loss don't, and nothing ever blocks those. Where the positions
    can't be read, an order that names a position is believed to be what it says.
    """
    action, ticket = promise.number("action"), promise.number("position")
    if action in (C.TRADE_ACTION_REMOVE, C.TRADE_ACTION_CLOSE_BY):
        return False
    about = seen.position(ticket, promise.symbol)
    if action == C.TRADE_ACTION_SLTP:
        return seen.positions is None or (about is not None and _loosens(about, promise.value("sl")))
    if action != C.TRADE_ACTION_DEAL:
        return True
    if about is None:
        return not ticket or (seen.positions is not None and seen.is_netting)  # hedging: the broker answers that the position is gone
    is_opposite = promise.number("type") != about.type
    return not is_opposite or promise.value("volume") > about.volume + _EPS


def tightened(position: TradePosition, bid: float, ask: float, distance: float) -> float | None:
    """Return a stop loss at `distance` (in price) from the market if that is tighter than the present one, else None."""
    kind: Literal[1, -1] = 1 if position.type == C.POSITION_TYPE_BUY else -1
    level = (bid if kind > 0 else ask) - kind * distance
    return level if not position.sl or kind * (level - position.sl) > _EPS else None
