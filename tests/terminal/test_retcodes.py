"""Every return code that a client can provoke, provoked through the functions of the MetaTrader5 package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from btcbot.engine import orders as book
from btcbot.market.profile import PROFILES, BrokerProfile, SymbolSpec
from btcbot.terminal.broker import Broker
from btcbot.terminal.contract import CONSTANTS, MQL, RETCODES, C, OrderSendResult, checked_request
from btcbot.terminal.faults import plan_from_text
from btcbot.terminal.twin import Twin

MONDAY = 1_704_067_200_000  # 2024-01-01 00:00 UTC
MINUTE = 60_000
SPREAD = 1_000  # points
NIGHTS = np.column_stack([MONDAY + 86_400_000 * np.arange(1, 60), np.ones(59, np.int64)]).astype(np.int64)
SYMBOL = {field.name for field in fields(SymbolSpec)}
BUY, SELL, FOK, IOC, RETURN = 0, 1, 0, 1, 2


def conditions_of(changes: dict[str, object]) -> BrokerProfile:
    """Return a broker without slippage, where `changes` differ."""
    symbol = {name: value for name, value in changes.items() if name in SYMBOL}
    account = {name: value for name, value in changes.items() if name not in SYMBOL}
    plain = {"slippage_bps": 0.0, "spread_bps": 0.0, "filling": ("fok", "ioc", "boc")}
    return BrokerProfile("desk", "Twin-Desk", **({"deposit": 1_000_000.0} | account), symbol=SymbolSpec(**(plain | symbol)))


class Desk:
    """A twin with conditions of our choice and one price a minute, and requests that begin as a small buy."""

    def __init__(self, *prices: float, faults: str = "", **changes: object):
        bids = np.array(prices or (40_000.0, 40_000.0))
        index = pd.DatetimeIndex((MONDAY + MINUTE * np.arange(len(bids))).view("M8[ms]"), tz="UTC", name="time")
        columns = dict.fromkeys(("open", "high", "low", "close"), bids) | {"tick_volume": 1, "spread": SPREAD, "real_volume": 0}
        self.mt5 = Twin(pd.DataFrame(columns, index=index), conditions_of(changes), faults=plan_from_text(faults))
        assert self.mt5.initialize()

    def send(self, **changes: object) -> OrderSendResult:
        """Send a market buy of 0.1 lots, or what `changes` make of it."""
        return self.mt5.order_send({"action": C.TRADE_ACTION_DEAL, "symbol": "BTCUSD", "volume": 0.1} | changes)

    def pend(self, price: float, kind: int = C.ORDER_TYPE_BUY_LIMIT, **changes: object) -> OrderSendResult:
        """Place a pending order."""
        return self.send(**({"action": C.TRADE_ACTION_PENDING, "type": kind, "price": price, "type_filling": RETURN} | changes))

    def later(self, ms: int = MINUTE) -> None:
        """Go on in market time."""
        self.mt5.advance_to(self.mt5.now + ms)


def forced(fault: str) -> Callable[[], OrderSendResult]:
    """Return how a dealer or a broken link answers: only a fault plan can say so."""
    return lambda: Desk(faults=fault).send()


def switched(**switches: bool) -> Callable[[], OrderSendResult]:
    """Return a request that is sent with switches of the terminal or of the broker in another position."""

    def provoke() -> OrderSendResult:
        desk = Desk()
        for name, value in switches.items():
            setattr(desk.mt5.broker.switches, name, value)
        return desk.send()

    return provoke


def conditions(changes: dict[str, object], **request: object) -> Callable[[], OrderSendResult]:
    """Return a request to a broker whose conditions differ."""
    return lambda: Desk(**changes).send(**request)


def requote() -> OrderSendResult:
    desk = Desk(execution="instant")
    result = desk.send(price=39_980.0, deviation=100)
    assert (result.bid, result.ask, result.deal, result.request_id) == (40_000.0, 40_010.0, 0, 1)
    return result


def placed() -> OrderSendResult:
    desk = Desk(execution="exchange", margin_mode="exchange", liquidity=0.1)
    assert desk.send().retcode == C.TRADE_RETCODE_DONE  # takes all there is at this quote
    result = desk.send(type_filling=RETURN)
    assert (result.deal, [order.ticket for order in desk.mt5.orders_get()]) == (0, [result.order])
    desk.later()
    assert (desk.mt5.positions_get()[0].volume, desk.mt5.orders_total()) == (0.2, 0)
    return result


def placed_and_filled_later() -> OrderSendResult:
    desk = Desk(faults="unclear@order_send.1+5000~10008!")
    result = desk.send()
    assert (desk.mt5.positions_total(), desk.mt5.orders_get()[0].state) == (0, C.ORDER_STATE_STARTED)
    desk.later(5_000)
    assert (desk.mt5.positions_get()[0].ticket, desk.mt5.orders_total()) == (result.order, 0)
    return result


def partial() -> OrderSendResult:
    desk = Desk(liquidity=0.04)
    result = desk.send(type_filling=IOC)
    order = desk.mt5.history_orders_get(ticket=result.order)[0]
    assert (result.volume, order.state, order.volume_initial, order.volume_current) == (0.04, C.ORDER_STATE_PARTIAL, 0.1, 0.06)
    return result


def closed_market() -> OrderSendResult:
    desk = Desk(sessions=((1, 0, 1),))  # Mondays, the first minute
    assert desk.send().retcode == C.TRADE_RETCODE_DONE
    desk.later()
    assert desk.mt5.order_check({"action": C.TRADE_ACTION_DEAL, "symbol": "BTCUSD", "volume": 0.1}).retcode == 0
    return desk.send()


def order_changed() -> OrderSendResult:
    desk = Desk(40_000.0, 39_400.0, 39_400.0)
    ticket = desk.pend(39_500.0).order
    desk.later()
    assert desk.mt5.orders_total() == 0
    result = desk.send(action=C.TRADE_ACTION_REMOVE, order=ticket)
    desk.later()
    assert desk.send(action=C.TRADE_ACTION_REMOVE, order=ticket).retcode == C.TRADE_RETCODE_INVALID
    return result


def too_many_requests() -> OrderSendResult:
    desk = Desk(requests_per_minute=3)
    assert [desk.send().retcode for _ in range(3)] == [C.TRADE_RETCODE_DONE] * 3
    result = desk.send()
    desk.later()
    assert desk.send().retcode == C.TRADE_RETCODE_DONE
    return result


def no_changes() -> OrderSendResult:
    desk = Desk()
    stops = {"action": C.TRADE_ACTION_SLTP, "position": desk.send().order, "sl": 39_000.0, "tp": 0.0}
    assert desk.send(**stops).retcode == C.TRADE_RETCODE_DONE
    return desk.send(**stops)


def frozen() -> OrderSendResult:
    desk = Desk(freeze_level=5_000)
    ticket = desk.send(sl=39_960.0).order
    return desk.send(action=C.TRADE_ACTION_SLTP, position=ticket, sl=39_000.0)


def limit_orders() -> OrderSendResult:
    desk = Desk(limit_orders=1)
    assert desk.pend(39_000.0).retcode == C.TRADE_RETCODE_DONE
    return desk.pend(39_000.0)


def limit_volume() -> OrderSendResult:
    desk = Desk(volume_limit=0.15)
    assert desk.pend(39_000.0).retcode == C.TRADE_RETCODE_DONE
    assert desk.send(type=SELL).retcode == C.TRADE_RETCODE_DONE
    return desk.send()


def limit_positions() -> OrderSendResult:
    desk = Desk(limit_positions=1)
    assert desk.send().retcode == C.TRADE_RETCODE_DONE
    return desk.send()


def position_closed() -> OrderSendResult:
    desk = Desk()
    ticket = desk.send().order
    assert desk.send(type=SELL, position=ticket).retcode == C.TRADE_RETCODE_DONE
    return desk.send(type=SELL, position=ticket)


def close_volume() -> OrderSendResult:
    desk = Desk()
    return desk.send(type=SELL, position=desk.send().order, volume=0.2)


def close_order_exists() -> OrderSendResult:
    desk = Desk(execution="exchange", liquidity=0.1)
    first = desk.send().order
    desk.later()
    second = desk.send().order
    assert desk.send(type=SELL, position=first).retcode == C.TRADE_RETCODE_DONE  # takes what there is
    assert desk.send(type=SELL, position=second, type_filling=RETURN).retcode == C.TRADE_RETCODE_PLACED
    return desk.send(type=SELL, position=second)


def fifo() -> OrderSendResult:
    desk = Desk(is_fifo=True)
    desk.send()
    return desk.send(type=SELL, position=desk.send().order)


def hedge_prohibited() -> OrderSendResult:
    desk = Desk(is_hedge_prohibited=True)
    desk.send()
    return desk.send(type=SELL)


PROVOKED: dict[int, tuple[Callable[[], OrderSendResult], ...]] = {
    C.TRADE_RETCODE_REQUOTE: (requote,),
    C.TRADE_RETCODE_REJECT: (
        conditions({"liquidity": 0.05}),
        forced("reject@order_send.1~10006"),
    ),  # all or nothing, and there isn't enough
    C.TRADE_RETCODE_CANCEL: (forced("reject@order_send.1~10007"),),
    C.TRADE_RETCODE_PLACED: (placed, placed_and_filled_later),
    C.TRADE_RETCODE_DONE: (conditions({}),),
    C.TRADE_RETCODE_DONE_PARTIAL: (partial, forced("partial@order_send.1~50")),
    C.TRADE_RETCODE_ERROR: (forced("unclear@order_send.1~10011"),),
    C.TRADE_RETCODE_TIMEOUT: (forced("unclear@order_send.1~10012"),),
    C.TRADE_RETCODE_INVALID: (conditions({}, action=99), conditions({}, type=2), conditions({}, symbol="EURUSD")),
    C.TRADE_RETCODE_INVALID_VOLUME: (conditions({}, volume=0.015), conditions({}, volume=1_000.0), conditions({}, volume=float("nan"))),
    C.TRADE_RETCODE_INVALID_PRICE: (lambda: Desk().pend(41_000.0), conditions({"execution": "instant"})),
    C.TRADE_RETCODE_INVALID_STOPS: (conditions({}, sl=40_001.0), conditions({"stops_level": 5_000}, tp=40_020.0)),
    C.TRADE_RETCODE_TRADE_DISABLED: (conditions({"trade_mode": "disabled"}), switched(is_investor=True)),
    C.TRADE_RETCODE_MARKET_CLOSED: (closed_market, switched(is_halted=True)),
    C.TRADE_RETCODE_NO_MONEY: (conditions({"deposit": 100.0}),),
    C.TRADE_RETCODE_PRICE_CHANGED: (conditions({"execution": "request"}, price=39_000.0, deviation=10),),
    C.TRADE_RETCODE_PRICE_OFF: (switched(is_quoted=False),),
    C.TRADE_RETCODE_INVALID_EXPIRATION: (lambda: Desk().pend(39_000.0, type_time=2, expiration=MONDAY // 1000),),
    C.TRADE_RETCODE_ORDER_CHANGED: (order_changed,),
    C.TRADE_RETCODE_TOO_MANY_REQUESTS: (too_many_requests,),
    C.TRADE_RETCODE_NO_CHANGES: (no_changes,),
    C.TRADE_RETCODE_SERVER_DISABLES_AT: (switched(is_expert_allowed=False),),
    C.TRADE_RETCODE_CLIENT_DISABLES_AT: (switched(is_algo_trading=False),),
    C.TRADE_RETCODE_LOCKED: (forced("unclear@order_send.1~10028"),),
    C.TRADE_RETCODE_FROZEN: (frozen,),
    C.TRADE_RETCODE_INVALID_FILL: (conditions({}, type_filling=RETURN), conditions({"filling": ("ioc",)}, type_filling=FOK)),
    C.TRADE_RETCODE_CONNECTION: (forced("disconnect@order_send.1+5000"),),
    C.TRADE_RETCODE_ONLY_REAL: (switched(is_live_only=True),),
    C.TRADE_RETCODE_LIMIT_ORDERS: (limit_orders,),
    C.TRADE_RETCODE_LIMIT_VOLUME: (limit_volume,),
    C.TRADE_RETCODE_INVALID_ORDER: (conditions({"order_kinds": ("limit",)}), conditions({"order_kinds": ("market",)}, sl=39_000.0)),
    C.TRADE_RETCODE_POSITION_CLOSED: (position_closed,),
    C.TRADE_RETCODE_INVALID_CLOSE_VOLUME: (close_volume,),
    C.TRADE_RETCODE_CLOSE_ORDER_EXIST: (close_order_exists,),
    C.TRADE_RETCODE_LIMIT_POSITIONS: (limit_positions,),
    C.TRADE_RETCODE_REJECT_CANCEL: (forced("reject@order_send.1~10041"),),
    C.TRADE_RETCODE_LONG_ONLY: (conditions({"trade_mode": "long_only"}, type=SELL),),
    C.TRADE_RETCODE_SHORT_ONLY: (conditions({"trade_mode": "short_only"}),),
    C.TRADE_RETCODE_CLOSE_ONLY: (conditions({"trade_mode": "close_only"}),),
    C.TRADE_RETCODE_FIFO_CLOSE: (fifo,),
    MQL.TRADE_RETCODE_HEDGE_PROHIBITED: (hedge_prohibited,),
}
LOCAL = {10013, 10014, 10017, 10022, 10026, 10027, 10030, 10031, 10032, 10035, 10042, 10043, 10044}
CASES = [pytest.param(code, provoke, id=f"{code}-{k}") for code, ways in PROVOKED.items() for k, provoke in enumerate(ways)]


def test_no_return_code_is_missing() -> None:
    """Each of the package's return codes is in the table; 10046 is the one that it doesn't export."""
    exported = {number for name, number in CONSTANTS.items() if name.startswith("TRADE_RETCODE_")}
    assert set(PROVOKED) == exported | {MQL.TRADE_RETCODE_HEDGE_PROHIBITED} == set(RETCODES) - {0}


@pytest.mark.parametrize(("code", "provoke"), CASES)
def test_each_return_code(code: int, provoke: Callable[[], OrderSendResult]) -> None:
    """The code, its text, the echo of the request; a refusal shows no figures, and one of the terminal's own no number."""
    result = provoke()
    assert (result.retcode, result.comment) == (code, RETCODES[code])
    assert len(result.request) == 17
    if code not in (10004, 10008, 10009, 10010, 10020):
        assert result[1:7] == (0, 0, 0.0, 0.0, 0.0, 0.0)
    assert code not in LOCAL or result.request_id == 0


def test_the_api_can_be_switched_off() -> None:
    """The terminal's option shuts programs out without any result; the toolbar's button is another switch."""
    desk = Desk()
    desk.mt5.broker.switches.is_api_disabled = True
    assert desk.send() is None
    assert desk.mt5.last_error()[0] == C.RES_E_AUTO_TRADING_DISABLED
    assert desk.mt5.terminal_info().tradeapi_disabled
    assert desk.mt5.terminal_info().trade_allowed
    assert desk.mt5.broker.trade_by_hand({"action": 1, "symbol": "BTCUSD", "volume": 0.1}).retcode == C.TRADE_RETCODE_DONE
    assert desk.mt5.positions_get()[0].reason == C.POSITION_REASON_CLIENT


def test_an_activation_that_fails() -> None:
    """A pending order that can't be paid for when its price comes is cancelled, and history says so: the terminal calls it 10041."""
    desk = Desk(40_000.0, 39_400.0, deposit=9_000.0)
    ticket = desk.pend(39_500.0, volume=1.0).order
    assert desk.send(volume=0.9).retcode == C.TRADE_RETCODE_DONE
    desk.later()
    order = desk.mt5.history_orders_get(ticket=ticket)[0]
    assert (order.state, order.volume_current, desk.mt5.positions_total()) == (C.ORDER_STATE_CANCELED, 1.0, 1)


@pytest.mark.parametrize("name", list(PROFILES))
def test_what_a_broker_makes_of_markers(name: str) -> None:
    """Comment, magic of the stop's deal and delay of the history: as each shipped profile says."""
    profile = replace(PROFILES[name], deposit=1_000_000.0)
    spec, start = profile.symbol, MONDAY + 12 * 60 * MINUTE
    bids = np.array([40_000.0, 40_000.0, 30_000.0, 30_000.0])
    index = pd.DatetimeIndex((start + MINUTE * np.arange(4)).view("M8[ms]"), tz="UTC", name="time")
    columns = dict.fromkeys(("open", "high", "low", "close"), bids) | {"tick_volume": 1, "spread": 0, "real_volume": 0}
    mt5 = Twin(pd.DataFrame(columns, index=index), profile)
    assert mt5.initialize()
    tick, info = mt5.symbol_info_tick(spec.name), mt5.symbol_info(spec.name)
    filling = FOK if info.filling_mode & 1 else IOC
    request = {"action": 1, "symbol": spec.name, "volume": 0.1, "type_filling": filling, "price": tick.ask, "deviation": 100}
    sent = mt5.order_send(request | {"sl": 35_000.0, "magic": 77, "comment": "strategy-7/order-00042"})
    assert sent.retcode == C.TRADE_RETCODE_DONE, sent
    kept = {"keep": "strategy-7/order-00042", "cut16": "strategy-7/order", "replace": "via API", "empty": ""}[profile.comment_rule]
    assert (mt5.positions_get(ticket=sent.order)[0].comment, mt5.positions_get(ticket=sent.order)[0].magic) == (kept, 77)
    delay = profile.history_delay_ms
    if delay:
        mt5.advance_to(mt5.now + delay - 1)
        assert mt5.history_deals_get(ticket=sent.order) == mt5.history_orders_get(ticket=sent.order) == ()
        mt5.advance_to(mt5.now + 1)
    assert mt5.history_deals_get(ticket=sent.order)[0].comment == mt5.history_orders_get(ticket=sent.order)[0].comment == kept
    mt5.advance_to(start + 2 * MINUTE + delay)
    _, stopped = mt5.history_deals_get(position=sent.order)
    assert (stopped.reason, stopped.magic) == (C.DEAL_REASON_SL, 77 if profile.stops_keep_magic else 0)
    assert stopped.comment == f"[sl {35_000.0:.{spec.digits}f}]"


class Books:
    """A broker alone, with a quote for each step."""

    def __init__(self, **changes: object):
        self.profile = conditions_of(changes)
        self.broker, self.time = Broker(self.profile, now_ms=MONDAY), MONDAY
        self.quote(40_000.0)

    def quote(self, price: float, after_ms: int = 1_000) -> None:
        """Let time pass, then show a new bid."""
        self.time += after_ms
        points = round(price * 10**self.profile.symbol.digits)
        book.tick_nb(*self.broker.engine_state(), NIGHTS, self.time, points, points + SPREAD, True)
        self.broker.step()

    def send(self, **changes: object) -> OrderSendResult:
        """Send a market buy of 0.1 lots, or what `changes` make of it."""
        fields = {"action": C.TRADE_ACTION_DEAL, "symbol": "BTCUSD", "volume": 0.1} | changes
        return self.broker.order_send(checked_request(fields)._asdict())


def check_books(desk: Books) -> None:
    """What must hold at any moment: the balance is the sum of the deals, equity and margin are those of the positions."""
    broker, deals = desk.broker, desk.broker.all_deals()
    account, positions = broker.answer("account_info"), broker.answer("positions_get")
    paid = sum(round(100 * (d.profit + d.swap + d.commission + d.fee)) for d in deals if d.type != C.DEAL_TYPE_CREDIT)
    assert paid == round(100 * account.balance)
    assert round(100 * account.credit) == sum(round(100 * d.profit) for d in deals if d.type == C.DEAL_TYPE_CREDIT)
    floating = sum(round(100 * p.profit) + round(100 * p.swap) for p in positions)
    assert round(100 * account.equity) == paid + floating + round(100 * account.credit)
    assert round(100 * account.margin_free) == round(100 * account.equity) - round(100 * account.margin)
    level = account.equity / account.margin * 100 if account.margin else 0.0
    assert abs(account.margin_level - level) < 1e-9
    legs = [broker.answer("order_calc_margin", (p.type, p.symbol, p.volume, p.price_open)) for p in positions]
    assert abs(account.margin - sum(legs)) <= 0.01 * len(legs) + 1e-9  # pending orders hold none here; an average has a rest
    volumes: dict[int, int] = {}
    for deal in deals:
        if deal.type in (C.DEAL_TYPE_BUY, C.DEAL_TYPE_SELL):
            side = 1 if deal.type == C.DEAL_TYPE_BUY else -1
            volumes[deal.position_id] = volumes.get(deal.position_id, 0) + side * round(100 * deal.volume)
    held = {p.identifier: round(100 * p.volume) * (1 if p.type == C.POSITION_TYPE_BUY else -1) for p in positions}
    assert {number: volume for number, volume in volumes.items() if volume} == held
    assert len({d.ticket for d in deals}) == len(deals)


@pytest.mark.parametrize("mode", ["hedging", "netting", "exchange"])
def test_books_of_random_programs(mode: str, rounds: int) -> None:
    """Random requests of every action on each kind of account: the books agree after each of them, and a snapshot continues the same."""
    for seed in range(max(3, rounds // 5)):
        rng = np.random.default_rng(seed)
        changes = {"liquidity": 0.3, "execution": "exchange"} if seed % 2 else {}
        desk = Books(margin_mode=mode, deposit=20_000.0, commission_bps=1.0, swap_long=-5.0, limit_orders=5, **changes)
        twin = Books(margin_mode=mode, deposit=20_000.0, commission_bps=1.0, swap_long=-5.0, limit_orders=5, **changes)
        price = 40_000.0
        for step in range(120):
            tickets = [p.ticket for p in desk.broker.answer("positions_get")] + [0, 12_345]
            orders = [o.ticket for o in desk.broker.answer("orders_get")] + [12_345]
            request = {
                "action": int(rng.choice([1, 1, 1, 5, 5, 6, 7, 8, 10])),
                "type": int(rng.integers(0, 8)),
                "type_filling": int(rng.integers(0, 3)),
                "volume": float(rng.choice([0.1, 0.2, 0.5])),
                "price": round(price + float(rng.integers(-300, 300)), 2),
                "stoplimit": round(price + float(rng.integers(-300, 300)), 2),
                "sl": round(float(rng.choice([0, price - 400, price + 400])), 2),
                "position": int(rng.choice(tickets)),
                "position_by": int(rng.choice(tickets)),
                "order": int(rng.choice(orders)),
            }
            if request["action"] == 1:
                request["type"] %= 2
            result = desk.send(**request)
            assert result.retcode in RETCODES
            check_books(desk)
            assert twin.send(**request) == result
            if step == 60:  # the other one goes on from a snapshot
                saved = twin.broker.state()
                twin.broker = Broker(twin.profile, now_ms=MONDAY)
                twin.broker.load(*saved)
            price = max(1_000.0, round(price + float(rng.normal(0, 150)), 2))
            after = int(rng.choice([1_000, 60_000, 90_000_000], p=[0.6, 0.35, 0.05]))
            desk.quote(price, after)
            twin.quote(price, after)
            check_books(desk)
        for name in ("positions_get", "orders_get"):
            assert desk.broker.answer(name) == twin.broker.answer(name)
        assert desk.broker.all_deals() == twin.broker.all_deals()
        assert desk.broker.order_history.rows == twin.broker.order_history.rows
