"""A broker of few words: one symbol, simple fills, and every bad habit that a test asks for.

It is a model, not a twin: what it executed is written down in `executed`, apart from everything that it shows.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from btcbot.terminal.contract import (
    AccountInfo,
    C,
    OrderSendResult,
    SymbolInfo,
    TerminalInfo,
    Tick,
    TradeDeal,
    TradeOrder,
    TradePosition,
    TradeRequest,
    request_from,
)
from btcbot.terminal.wire import Answer, Call, ask

START_MS = 1_710_000_000_000
HEDGING, NETTING = C.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING, C.ACCOUNT_MARGIN_MODE_RETAIL_NETTING


def record(kind: type[Any], **fields: Any) -> Any:
    """Make a record; what isn't given is 0, or an empty text."""
    texts = ("symbol", "comment", "external_id")
    return kind(fields.get(name, "" if name in texts else 0) for name in kind.__match_args__)


def but(found: Any, **fields: Any) -> Any:
    """Return a record with other fields."""
    return type(found)({**found._asdict(), **fields}.values())


@dataclass
class Plan:
    """What happens to one order."""

    is_executed: bool = True
    late_ms: int = 0  # executed so much later
    error: int = 0  # answered None with this code
    retcode: int = 0  # answered instead of what the broker says
    share: float = 1.0  # of the volume that is filled
    hook: Callable[[], object] = lambda: None  # runs while the call does, after an order was executed


class ModelBroker:
    """The functions of a terminal that orders and guard use."""

    def __init__(self, margin_mode: int = HEDGING, comment_rule: str = "keep", history_delay_ms: int = 0):
        self.margin_mode, self.comment_rule, self.history_delay_ms = margin_mode, comment_rule, history_delay_ms
        self.now, self.bid, self.balance, self.ticket = START_MS, 50_000.0, 10_000.0, 100
        self.is_connected, self.is_frozen, self.is_closed, self.keeps_magic = True, False, False, True
        self.failing: set[str] = set()
        self.plans: deque[Plan] = deque()
        self.queue: list[tuple[int, TradeRequest, int]] = []
        self.positions: dict[int, TradePosition] = {}
        self.orders: dict[int, TradeOrder] = {}
        self.history: list[tuple[int, TradeOrder]] = []
        self.deals: list[tuple[int, TradeDeal]] = []
        self.executed: list[TradeRequest] = []
        self.sent = 0
        self.error = (1, "Success")
        self.equity: float | None = None
        self.shown: dict[str, object] = {}
        self.tick_ms, self.unknown = self.now, ""

    # ---- time

    def advance(self, ms: int) -> None:
        """Let time pass."""
        self.now += ms
        for item in [item for item in self.queue if item[0] <= self.now]:
            self.queue.remove(item)
            self.orders.pop(item[2], None)
            self.execute(item[1], item[2])
        if not self.is_frozen and self.is_connected:
            self.tick_ms = self.now

    # ---- what the broker does

    def number(self) -> int:
        self.ticket += 1
        return self.ticket

    def comment(self, text: str) -> str:
        return {"keep": text, "cut16": text[:16], "replace": "broker", "empty": ""}[self.comment_rule]

    def deal(self, **fields: Any) -> int:
        ticket = self.number() + 100_000
        blank = {"symbol": "BTCUSD", "time_msc": self.now, "time": self.now // 1000, "price": self.bid, "ticket": ticket}
        self.deals.append((self.now, record(TradeDeal, **{**blank, **fields})))
        self.balance += float(fields.get("profit", 0.0))
        return ticket

    def past(self, ticket: int, request: TradeRequest, state: int, current: float, position: int, reason: int = 3) -> None:
        self.history.append(
            (
                self.now,
                record(
                    TradeOrder,
                    ticket=ticket,
                    symbol=request.symbol,
                    type=request.type,
                    state=state,
                    reason=reason,
                    volume_initial=request.volume,
                    volume_current=current,
                    magic=request.magic,
                    position_id=position,
                    comment=self.comment(request.comment),
                    time_setup_msc=self.now,
                    time_done_msc=self.now,
                    price_open=request.price or self.bid,
                    sl=request.sl,
                    tp=request.tp,
                ),
            )
        )

    def execute(self, request: TradeRequest, ticket: int = 0, share: float = 1.0) -> tuple[int, int, int, float]:
        """Do what is asked for; return code, order, deal, volume."""
        if self.is_closed:
            return 10018, 0, 0, 0.0
        if request.action == C.TRADE_ACTION_DEAL:
            return self.trade(request, ticket or self.number(), round(request.volume * share, 2))
        if request.action == C.TRADE_ACTION_PENDING:
            ticket = ticket or self.number()
            self.executed.append(request)
            self.orders[ticket] = record(
                TradeOrder,
                ticket=ticket,
                symbol=request.symbol,
                type=request.type,
                state=1,
                reason=3,
                volume_initial=request.volume,
                volume_current=request.volume,
                magic=request.magic,
                comment=self.comment(request.comment),
                price_open=request.price,
                time_setup_msc=self.now,
            )
            return 10009, ticket, 0, request.volume
        if request.action == C.TRADE_ACTION_REMOVE:
            order = self.orders.pop(request.order, None)
            if order is None:
                return 10035, 0, 0, 0.0
            self.executed.append(request)
            self.history.append((self.now, but(order, state=C.ORDER_STATE_CANCELED, time_done_msc=self.now)))
            return 10009, request.order, 0, 0.0
        if request.action == C.TRADE_ACTION_MODIFY:
            if request.order not in self.orders:
                return 10035, 0, 0, 0.0
            self.executed.append(request)
            fields = {"price_open": request.price, "sl": request.sl, "tp": request.tp}
            self.orders[request.order] = but(self.orders[request.order], **fields)
            return 10009, request.order, 0, 0.0
        position = self.positions.get(request.position)
        if position is None:
            return 10036, 0, 0, 0.0
        self.executed.append(request)
        if request.action == C.TRADE_ACTION_SLTP:
            self.positions[request.position] = but(position, sl=request.sl, tp=request.tp)
            return 10009, 0, 0, 0.0
        ticket = self.number()  # close by
        for name, other in ((request.position, request.position_by), (request.position_by, request.position)):
            self.deal(
                order=ticket, type=1, entry=C.DEAL_ENTRY_OUT_BY, reason=3, position_id=name, volume=position.volume, magic=position.magic
            )
            assert other in self.positions or other == request.position
        for name in (request.position, request.position_by):
            self.positions.pop(name)
        return 10009, ticket, 0, 0.0

    def trade(self, request: TradeRequest, ticket: int, volume: float) -> tuple[int, int, int, float]:
        held = self.positions.get(request.position)
        if self.margin_mode == NETTING:
            held = next(iter(self.positions.values()), None)
        elif request.position and held is None:
            return 10036, 0, 0, 0.0
        elif held is not None and volume > held.volume + 1e-9:
            return 10038, 0, 0, 0.0
        self.executed.append(request)
        same = {"order": ticket, "type": request.type, "reason": 3, "magic": request.magic, "volume": volume}
        told = {"comment": self.comment(request.comment)}
        if held is None or (self.margin_mode == NETTING and held.type == request.type):
            position = ticket if held is None else held.identifier
            total = volume if held is None else round(held.volume + volume, 2)
            self.positions[position] = record(
                TradePosition,
                ticket=position,
                identifier=position,
                symbol=request.symbol,
                type=request.type,
                volume=total,
                magic=request.magic,
                reason=3,
                sl=request.sl,
                tp=request.tp,
                time_msc=self.now,
                time_update_msc=self.now,
                price_open=self.bid,
                **told,
            )
            deal = self.deal(**same, **told, position_id=position, entry=C.DEAL_ENTRY_IN)
        else:
            position = held.identifier
            self.shrink(held.ticket, volume)
            deal = self.deal(**same, **told, position_id=position, entry=C.DEAL_ENTRY_OUT, profit=-1.0)
        self.past(
            ticket,
            request,
            C.ORDER_STATE_FILLED if volume == request.volume else C.ORDER_STATE_PARTIAL,
            round(request.volume - volume, 2),
            position,
        )
        return 10009 if volume == request.volume else 10010, ticket, deal, volume

    def shrink(self, ticket: int, volume: float) -> None:
        held = self.positions.pop(ticket)
        left = round(held.volume - volume, 2)
        if left > 0:
            self.positions[ticket] = but(held, volume=left, time_update_msc=self.now)
        elif left < 0:
            self.positions[ticket] = but(held, volume=-left, type=1 - held.type)

    def stop_out(self, ticket: int, reason: int = C.DEAL_REASON_SL) -> None:
        """Close a position at its stop."""
        held, order = self.positions.pop(ticket), self.number()
        magic = held.magic if self.keeps_magic else 0
        self.deal(
            order=order,
            type=1 - held.type,
            entry=C.DEAL_ENTRY_OUT,
            reason=reason,
            position_id=held.identifier,
            volume=held.volume,
            magic=magic,
            comment="[sl 1.00]",
            profit=-5.0,
        )

    def pay(self, money: float) -> None:
        """Pay money in, or draw it out."""
        self.deal(type=C.DEAL_TYPE_BALANCE, symbol="", profit=money, volume=0.0)

    # ---- what the terminal shows

    def last_error(self) -> tuple[int, str]:
        return self.error

    def show(self, name: str, value: object) -> object:
        self.error = (1, "Success")
        if name in self.failing:
            self.error = (-10005, "IPC timeout")
            return None
        if not self.is_connected:
            return self.shown.get(name)
        self.shown[name] = value
        return value

    def visible(self, items: Sequence[tuple[int, Any]]) -> tuple[Any, ...]:
        return tuple(item for at, item in items if self.now >= at + self.history_delay_ms)

    def terminal_info(self) -> object:
        self.error = (1, "Success")
        return None if "terminal_info" in self.failing else record(TerminalInfo, connected=self.is_connected)

    def account_info(self) -> object:
        equity = self.balance if self.equity is None else self.equity
        return self.show("account_info", record(AccountInfo, login=7, margin_mode=self.margin_mode, balance=self.balance, equity=equity))

    def symbol_info(self, symbol: str) -> object:
        found = self.show("symbol_info", record(SymbolInfo, point=0.01, digits=2, filling_mode=2, volume_max=100.0))
        if symbol in ("", self.unknown):
            self.error = (-4, "Terminal: Not found")
            return None
        return found

    def symbol_info_tick(self, symbol: str) -> object:
        tick = record(Tick, time_msc=self.tick_ms, time=self.tick_ms // 1000, bid=self.bid, ask=self.bid + 1.0)
        return self.show("tick", tick if symbol not in ("", self.unknown) else None)

    def positions_get(self, ticket: int = 0) -> object:
        return self.show("positions_get", tuple(p for p in self.positions.values() if ticket in (0, p.ticket)))

    def orders_get(self, ticket: int = 0) -> object:
        return self.show("orders_get", tuple(o for o in self.orders.values() if ticket in (0, o.ticket)))

    def history_orders_get(self, since: int, until: int) -> object:
        found = self.visible(self.history)
        return self.show("history_orders_get", tuple(o for o in found if since * 1000 <= o.time_done_msc <= until * 1000))

    def history_deals_get(self, since: int, until: int) -> object:
        found = self.visible(self.deals)
        return self.show("history_deals_get", tuple(d for d in found if since * 1000 <= d.time_msc <= until * 1000))

    def order_send(self, fields: dict[str, object]) -> OrderSendResult | None:
        self.error, self.sent = (1, "Success"), self.sent + 1
        request, plan = request_from(fields), self.plans.popleft() if self.plans else Plan()
        code, order, deal, volume = plan.retcode or 10009, 0, 0, 0.0
        if not self.is_connected:
            code, plan = 10031, Plan(is_executed=False)
        elif plan.late_ms:
            order = self.number()
            self.queue.append((self.now + plan.late_ms, request, order))
            if plan.retcode == C.TRADE_RETCODE_PLACED:
                self.orders[order] = record(
                    TradeOrder,
                    ticket=order,
                    symbol=request.symbol,
                    type=request.type,
                    state=0,
                    reason=3,
                    volume_initial=request.volume,
                    volume_current=request.volume,
                    magic=request.magic,
                )
            else:
                order = 0
        elif plan.is_executed:
            done, order, deal, volume = self.execute(request, share=plan.share)
            code = plan.retcode or done
            if plan.retcode:
                order = deal = 0
        plan.hook()
        if plan.error:
            self.error = (plan.error, "lost")
            return None
        return OrderSendResult((code, deal, order, volume, self.bid, self.bid, self.bid + 1, "", 1, 0, request))


class DirectGate:
    """The door to a terminal of this process; a hook runs before each batch."""

    def __init__(self, terminal: Any):
        self.terminal = terminal
        self.calls = 0
        self.before: Callable[[Sequence[Call]], object] = lambda calls: None

    def batch(self, calls: Sequence[Call], timeout_s: float | None = None) -> list[Answer]:
        self.calls += 1
        self.before(calls)
        last_error = self.terminal.last_error
        return [ask(getattr(self.terminal, name), last_error, arguments, keywords) for name, arguments, keywords in calls]
