"""Who may trade, what may be lost, and what the guard does when nobody is at the wheel."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_broker import HEDGING, NETTING, START_MS, DirectGate, ModelBroker, Plan, but

from btcbot.core.errors import BtcbotError
from btcbot.terminal.contract import C
from btcbot.terminal.journal import OrderJournal
from mt5_server.guard import Guard, GuardSettings, read_settings
from mt5_server.limits import ANY_MAGIC, Limits, strategy_magics
from mt5_server.orders import OrderAnswer, Orders, Refusal, Submission

BUY = {"action": C.TRADE_ACTION_DEAL, "symbol": "BTCUSD", "volume": 0.1, "type": C.ORDER_TYPE_BUY, "magic": 7}
FLATTEN = GuardSettings(after_lapse="flatten", after_lapse_s=300, magics=((7, 7),), lease_s=60)


class Clock:
    """A monotonic clock that waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    """A server without HTTP."""

    def __init__(self, folder: Path, broker: ModelBroker, settings: GuardSettings | None = None):
        self.folder, self.broker, self.settings, self.clock, self.count = folder, broker, settings or GuardSettings(), Clock(), 0
        self.start()

    def start(self) -> None:
        """Start the server, also after it was killed."""
        self.gate, self.journal = DirectGate(self.broker), OrderJournal(self.folder / "orders.sqlite3")
        self.guard = Guard(self.gate, self.folder / "guard.sqlite3", self.settings, self.clock, now_ms=lambda: 5)
        self.orders = Orders(self.gate, self.journal, self.guard, monotonic=self.clock)

    def kill(self) -> None:
        """End the server without a good-bye."""
        self.journal.close()
        self.guard.close()

    def order(self, epoch: int | None, **fields: object) -> OrderAnswer:
        """Send an order with a new key."""
        self.count += 1
        return self.orders.send(Submission(key=f"key-{self.count:05}", request=BUY | fields, epoch=epoch, received=self.clock.now))

    def refused(self, epoch: int | None, **fields: object) -> str:
        """Send an order that must be refused; return the type."""
        with pytest.raises(Refusal) as caught:
            self.order(epoch, **fields)
        return caught.value.type

    def pass_time(self, seconds: float, step_s: float = 5.0) -> None:
        """Let time pass, with a step each time."""
        for _ in range(int(seconds / step_s)):
            self.broker.advance(int(step_s * 1000))
            self.clock.now += step_s
            self.orders.step()
            self.guard.step()

    @property
    def why(self) -> str:
        """Return why entries are blocked."""
        why: Any = self.guard.status()["why"]
        return "; ".join(why)


@pytest.fixture
def broker() -> ModelBroker:
    """Return a broker without bad habits."""
    return ModelBroker()


@pytest.fixture
def houses(tmp_path: Path, broker: ModelBroker) -> Iterator[list[House]]:
    """Return the servers that a test opens, and close them."""
    opened: list[House] = []
    yield opened
    for house in opened:
        house.kill()


@pytest.fixture
def house(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> House:
    """Return a server with the settings that nobody changed."""
    houses.append(House(tmp_path, broker))
    return houses[0]


@pytest.fixture
def flattening(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> House:
    """Return a server that closes positions five minutes after a lapse."""
    houses.append(House(tmp_path, broker, FLATTEN))
    return houses[0]


# ---- the lease


def test_entries_need_a_lease_and_closes_do_not(house: House) -> None:
    assert house.refused(None) == "lease-required"
    assert house.guard.status()["entries"] == "blocked"
    lease = house.guard.lease("bot")
    assert (lease.epoch, lease.ttl_s, lease.holder) == (1, 60.0, "bot")
    assert house.guard.status()["entries"] == "open"
    assert house.refused(None) == "lease-required"
    position = house.order(lease.epoch).tickets["order"]
    assert house.order(None, type=C.ORDER_TYPE_SELL, position=position).outcome == "done"


def test_an_older_epoch_is_refused_for_everything(house: House) -> None:
    first = house.guard.lease("bot")
    position = house.order(first.epoch).tickets["order"]
    second = house.guard.lease("bot")  # the same bot, started anew
    assert second.epoch == 2
    assert house.refused(first.epoch) == "lease-fenced"
    assert house.refused(first.epoch, type=C.ORDER_TYPE_SELL, position=position) == "lease-fenced"
    assert house.refused(9) == "lease-fenced"
    for refuse in (house.guard.renew, house.guard.release):
        with pytest.raises(Refusal, match="not the present one"):
            refuse(first.epoch)
    assert house.order(second.epoch).outcome == "done"


def test_a_lease_is_taken_over_only_on_purpose(house: House) -> None:
    house.guard.lease("ann")
    with pytest.raises(Refusal, match="ann holds the lease") as caught:
        house.guard.lease("bob")
    assert (caught.value.status, caught.value.type) == (409, "lease-held")
    assert house.guard.lease("bob", takeover=True).epoch == 2
    house.guard.release(2)
    assert house.refused(2) == "lease-required"
    assert house.guard.lease("ann").epoch == 3
    with pytest.raises(Refusal, match="not 1"):
        house.guard.lease("ann", 1)


def test_the_servers_clock_counts(house: House) -> None:
    lease = house.guard.lease("bot", 10)
    house.clock.now += 9
    house.guard.touch(lease.epoch)
    house.guard.touch(None)
    house.guard.touch(99)
    house.clock.now += 9
    assert house.guard.renew(lease.epoch).ttl_s == 10
    house.clock.now += 10
    assert house.refused(lease.epoch) == "lease-lapsed"
    house.guard.touch(lease.epoch)  # too late
    assert house.refused(lease.epoch) == "lease-lapsed"
    house.guard.step()
    assert "lapsed" in house.why
    with pytest.raises(Refusal, match="lapsed"):
        house.guard.renew(lease.epoch)
    assert house.guard.lease("other").epoch == 2  # nobody's any more


def test_a_link_blip_changes_nothing(flattening: House, broker: ModelBroker) -> None:
    lease = flattening.guard.lease("bot", 60)
    flattening.order(lease.epoch)
    flattening.pass_time(45)  # the bot is cut off for less than its lease
    flattening.guard.renew(lease.epoch)
    flattening.pass_time(120)  # and for more than that, but not for long
    assert flattening.refused(lease.epoch) == "lease-lapsed"
    again = flattening.guard.lease("bot", 3600)
    flattening.pass_time(600, 30)
    assert flattening.guard.status()["halt"] is None
    assert flattening.order(again.epoch).outcome == "done"
    assert len(broker.positions) == 2


def test_a_blip_of_the_servers_own_link_neither_flattens_nor_halts(flattening: House, broker: ModelBroker) -> None:
    lease = flattening.guard.lease("bot", 3600)
    flattening.order(lease.epoch)
    broker.is_connected = False
    flattening.pass_time(300)
    assert "isn't connected" in flattening.why
    broker.is_connected = True
    flattening.pass_time(10)
    assert flattening.guard.status()["why"] == []
    assert len(broker.positions) == 1


def test_after_a_restart_entries_wait_for_a_lease(house: House) -> None:
    lease = house.guard.lease("bot")
    house.order(lease.epoch)
    house.kill()
    house.start()
    assert house.guard.status()["entries"] == "blocked"
    assert house.refused(lease.epoch) == "lease-lapsed"
    with pytest.raises(Refusal):
        house.guard.renew(lease.epoch)
    assert house.guard.lease("bot").epoch == 2  # the number rises, also over a restart
    house.guard.release(2)
    house.kill()
    house.start()
    assert house.refused(2) == "lease-required"


def test_no_epoch_rises_while_an_order_is_on_its_way(house: House, broker: ModelBroker) -> None:
    lease, taken = house.guard.lease("bot"), threading.Event()
    seen: list[bool] = []

    def take_over() -> None:
        house.guard.lease("other", takeover=True)
        taken.set()

    thread = threading.Thread(target=take_over)

    def meanwhile() -> None:
        thread.start()
        seen.append(taken.wait(0.1))

    broker.plans.append(Plan(hook=meanwhile))
    assert house.order(lease.epoch).outcome == "done"
    thread.join()
    assert seen == [False]
    assert house.refused(lease.epoch) == "lease-fenced"


def test_a_lease_that_waits_too_long_for_an_order_is_refused(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    houses.append(house := House(tmp_path, broker, GuardSettings(turn_timeout_s=0.05)))
    lease = house.guard.lease("bot")
    found: list[str] = []

    def take_over() -> None:
        try:
            house.guard.lease("other", takeover=True)
        except Refusal as refusal:
            found.append(refusal.type)

    thread = threading.Thread(target=take_over)

    def meanwhile() -> None:
        thread.start()
        thread.join()

    broker.plans.append(Plan(hook=meanwhile))
    house.order(lease.epoch)
    assert found == ["orders-busy"]


# ---- limits


def limited(tmp_path: Path, broker: ModelBroker, houses: list[House], **limits: Any) -> tuple[House, int]:
    """Return a server with hard limits, and the epoch of a lease."""
    houses.append(House(tmp_path, broker, GuardSettings(limits=Limits(**limits))))
    epoch = houses[-1].guard.lease("bot", 3600).epoch
    houses[-1].guard._symbol = "BTCUSD"
    houses[-1].pass_time(10)
    return houses[-1], epoch


def test_the_equity_floor(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    house, epoch = limited(tmp_path, broker, houses, equity_floor=9_000)
    position = house.order(epoch).tickets["order"]
    broker.equity = 8_999.0
    assert house.refused(epoch) == "limit-equity"
    assert house.guard.status()["halt"] is None  # an order tests the limit, two reads of the guard decide
    house.pass_time(5)
    broker.equity = 9_500.0  # a spike
    house.pass_time(10)
    assert house.guard.status()["halt"] is None
    broker.equity = 8_999.0
    house.pass_time(10)
    assert "under its floor of 9000.00" in house.why
    broker.equity = 9_500.0
    house.pass_time(10)
    assert house.refused(epoch) == "entries-halted"  # until a person lifts it
    assert house.order(epoch, type=C.ORDER_TYPE_SELL, position=position).outcome == "done"
    house.guard.lift("ann")
    assert house.order(epoch).outcome == "done"
    assert len(broker.positions) == 1  # nobody asked for flattening
    house.guard._lapsed = 0.0
    house.guard.lift("ann")  # a lapse begins to count anew
    assert house.guard._lapsed == house.clock.now


@pytest.mark.parametrize("when", ["same", "deal first", "balance first"])
def test_a_withdrawal_is_no_loss(tmp_path: Path, broker: ModelBroker, houses: list[House], when: str) -> None:
    house, epoch = limited(tmp_path, broker, houses, equity_floor=9_000, daily_loss=500)
    broker.history_delay_ms = 20_000 if when == "balance first" else 0
    broker.pay(-3_000)
    house.pass_time(60)
    assert house.guard.status()["halt"] is None
    assert house.order(epoch).outcome == "done"
    account = house.guard.status()["account"]
    assert isinstance(account, dict)
    assert account["daily_loss"] == 0.0
    broker.equity = 6_400.0  # a loss of 600 of the 7000 that are left
    house.pass_time(10)
    assert "600.00 were lost today" in house.why


def test_a_balance_that_nothing_explains_counts_in_the_end(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    house, _ = limited(tmp_path, broker, houses, daily_loss=500)
    broker.balance -= 700.0
    house.pass_time(55)
    assert "no deal says yet why" in house.why
    house.pass_time(20)
    assert "700.00 were lost today" in house.why
    assert house.guard.counters["btcbot_server_unexplained_total"] == 1


def test_the_daily_loss_starts_anew_with_the_brokers_day(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    house, epoch = limited(tmp_path, broker, houses, daily_loss=500)
    broker.equity = 9_600.0
    house.pass_time(10)
    house.kill()
    house.start()  # the reference is in the file
    house.guard._symbol = "BTCUSD"
    epoch = house.guard.lease("bot", 3600).epoch
    house.pass_time(10)
    account = house.guard.status()["account"]
    assert isinstance(account, dict)
    assert account["daily_loss"] == 400.0
    broker.advance(86_400_000 - START_MS % 86_400_000)
    house.pass_time(10)
    broker.equity = 9_150.0
    house.pass_time(10)
    assert house.order(epoch).outcome == "done"
    broker.equity = 9_100.0
    assert house.refused(epoch) == "limit-daily-loss"
    house.pass_time(10)
    assert "500.00 were lost today" in house.why


def test_exposure(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    house, epoch = limited(tmp_path, broker, houses, exposure=0.25)
    position = house.order(epoch).tickets["order"]
    assert house.order(epoch).outcome == "done"
    assert house.refused(epoch) == "limit-exposure"
    assert house.guard.status()["halt"] is None
    assert house.order(epoch, type=C.ORDER_TYPE_SELL, position=position).outcome == "done"
    broker.positions[999] = but(next(iter(broker.positions.values())), ticket=999, identifier=999, volume=0.3)
    house.pass_time(10)
    assert "0.4 lots" in house.why


def test_orders_a_minute(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    house, epoch = limited(tmp_path, broker, houses, orders_a_minute=3)
    positions = [house.order(epoch).tickets["order"] for _ in range(3)]
    house.clock.now += 61
    assert house.order(epoch).outcome == "done"
    for position in positions[:2]:
        house.order(epoch, type=C.ORDER_TYPE_SELL, position=position)
    assert house.guard.status()["orders_last_minute"] == 3
    assert house.refused(epoch) == "limit-rate"
    assert house.order(epoch, type=C.ORDER_TYPE_SELL, position=positions[2]).outcome == "done"
    house.clock.now += 61
    assert house.refused(epoch) == "entries-halted"


def test_a_bot_lowers_limits_and_never_raises_them(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    house, _ = limited(tmp_path, broker, houses, equity_floor=9_000, exposure=1.0)
    lowered = house.guard.set_limits({"equity_floor": 9_500, "exposure": 0.5, "daily_loss": 100}, "bot", may_raise=False)
    assert (lowered.equity_floor, lowered.exposure, lowered.daily_loss) == (9_500, 0.5, 100)
    wider: dict[str, Any]
    for wider in ({"equity_floor": 9_400}, {"equity_floor": None}, {"exposure": 0.6}, {"daily_loss": None}):
        with pytest.raises(Refusal, match="may raise") as caught:
            house.guard.set_limits(wider, "bot", may_raise=False)
        assert caught.value.type == "limit-raise"
    for strange in ({"equity": 1}, {"exposure": -1}, {"exposure": float("nan")}):
        with pytest.raises(Refusal) as caught:
            house.guard.set_limits(strange, "ann", may_raise=True)
        assert caught.value.type == "limit-unknown"
    house.kill()
    house.start()
    assert house.guard.status()["limits"] == {"equity_floor": 9_500, "daily_loss": 100, "exposure": 0.5, "orders_a_minute": None}
    assert house.guard.set_limits({"exposure": 2.0, "daily_loss": None}, "ann", may_raise=True).exposure == 2.0
    house.kill()
    house.settings = GuardSettings(limits=Limits(exposure=3.0))  # a person has edited the settings
    house.start()
    assert house.guard.status()["limits"] == {"equity_floor": None, "daily_loss": None, "exposure": 3.0, "orders_a_minute": None}


@pytest.mark.parametrize("trouble", ["none", "zero", "nan", "frozen", "cut off", "other account", "raises"])
def test_nothing_is_done_about_an_account_that_cannot_be_trusted(
    tmp_path: Path, broker: ModelBroker, houses: list[House], trouble: str
) -> None:
    houses.append(
        house := House(tmp_path, broker, GuardSettings(limits=Limits(equity_floor=9_000), after_limit="flatten", magics=ANY_MAGIC))
    )
    epoch = house.guard.lease("bot", 3600).epoch
    house.order(epoch)
    house.pass_time(10)

    def fail(calls: object) -> None:
        raise RuntimeError("the worker is gone")

    broker.equity = {"zero": 0.0, "nan": float("nan")}.get(trouble, 8_000.0)
    broker.failing = {"account_info"} if trouble == "none" else set()
    broker.is_frozen, broker.is_connected = trouble == "frozen", trouble != "cut off"
    if trouble == "raises":
        house.gate.before = fail
    if trouble == "other account":
        house.guard._state.login = 8
    house.pass_time(120)
    assert len(broker.positions) == 1
    assert broker.sent == 1
    if trouble == "other account":
        assert "another account" in house.why
        return
    assert house.guard.status()["halt"] is None
    broker.equity, broker.failing, broker.is_frozen, broker.is_connected = 8_000.0, set(), False, True
    house.gate.before = lambda calls: None
    house.pass_time(20)
    assert not broker.positions
    assert "under its floor" in house.why


# ---- after a lapse


def test_a_lapse_blocks_entries_and_leaves_the_stops(house: House, broker: ModelBroker) -> None:
    lease = house.guard.lease("bot")
    house.order(lease.epoch, sl=49_000.0)
    house.pass_time(7200, 60)
    assert [p.sl for p in broker.positions.values()] == [49_000.0]
    assert broker.sent == 1
    assert house.refused(lease.epoch) == "lease-lapsed"
    assert house.order(house.guard.lease("bot").epoch).outcome == "done"  # a lapse alone needs no person


def test_flattening_is_chosen_and_touches_declared_magics_alone(flattening: House, broker: ModelBroker) -> None:
    epoch = flattening.guard.lease("bot").epoch
    flattening.order(epoch)
    flattening.order(epoch, type=C.ORDER_TYPE_SELL)
    other = flattening.order(epoch, magic=8).tickets["order"]
    flattening.order(epoch, action=C.TRADE_ACTION_PENDING, type=C.ORDER_TYPE_BUY_LIMIT, price=48_000.0)
    flattening.order(epoch, action=C.TRADE_ACTION_PENDING, type=C.ORDER_TYPE_BUY_LIMIT, price=47_000.0, magic=8)
    flattening.pass_time(340)
    assert len(broker.positions) == 3  # not yet
    flattening.pass_time(60)
    assert list(broker.positions) == [other]
    assert [order.magic for order in broker.orders.values()] == [8]
    action = flattening.guard.status()["action"]
    assert isinstance(action, dict)
    assert (action["doing"], action["reason"], action["is_done"]) == ("flatten", "lapse", True)
    epoch = flattening.guard.lease("bot", 3600).epoch
    assert flattening.refused(epoch) == "entries-halted"
    flattening.guard.lift("ann")
    assert flattening.order(epoch).outcome == "done"
    flattening.pass_time(600, 30)
    assert len(broker.positions) == 2


def test_a_lease_in_time_stops_the_countdown(flattening: House, broker: ModelBroker) -> None:
    flattening.order(flattening.guard.lease("bot").epoch)
    flattening.pass_time(300)
    flattening.guard.lease("bot", 3600)
    flattening.pass_time(600, 30)
    assert len(broker.positions) == 1


def test_a_weekend_lapse_is_acted_on_at_the_open(flattening: House, broker: ModelBroker) -> None:
    flattening.order(flattening.guard.lease("bot").epoch)
    broker.is_closed = broker.is_frozen = True  # no quotes, no trading
    flattening.pass_time(172_800, 3_600)
    assert broker.sent == 1
    broker.is_frozen = False  # quotes come before trading opens
    flattening.pass_time(300)
    assert len(broker.positions) == 1
    tries = broker.sent - 1
    assert 2 <= tries <= 10  # 10018 each time, at growing distances
    broker.is_closed = False
    flattening.pass_time(80)
    assert not broker.positions
    assert len(broker.executed) == 2


@pytest.mark.parametrize("point", ["begin.after", "sent.after", "done.before", "done.after"])
def test_a_restart_in_the_middle_closes_once(flattening: House, broker: ModelBroker, point: str) -> None:
    class Killed(BaseException):
        """As SIGKILL."""

    broker.margin_mode = HEDGING
    flattening.order(flattening.guard.lease("bot").epoch, volume=0.3)
    hit: list[str] = []

    def die(at: str, key: str) -> None:
        if at == point and not hit:
            hit.append(at)
            raise Killed

    flattening.journal.at_write = die
    with pytest.raises(Killed):
        flattening.pass_time(500)
    flattening.kill()
    flattening.start()
    flattening.pass_time(200)
    assert not broker.positions
    assert len(broker.executed) == 2
    assert flattening.guard.status()["halt"] is not None
    flattening.pass_time(400)
    assert len(broker.executed) == 2


def test_whoever_died_with_the_server_is_flattened_too(flattening: House, broker: ModelBroker) -> None:
    flattening.order(flattening.guard.lease("bot").epoch)
    flattening.kill()
    flattening.start()
    flattening.pass_time(280)
    assert len(broker.positions) == 1
    flattening.pass_time(60)
    assert not broker.positions


@pytest.mark.parametrize("mode", [HEDGING, NETTING])
@pytest.mark.parametrize("plan", [Plan(), Plan(error=-10005), Plan(error=-10005, late_ms=8_000), Plan(error=-10005, is_executed=False)])
def test_bot_and_guard_close_at_once(flattening: House, broker: ModelBroker, mode: int, plan: Plan) -> None:
    broker.margin_mode = mode
    epoch = flattening.guard.lease("bot").epoch
    position = flattening.order(epoch).tickets["order"]
    flattening.pass_time(355)
    broker.plans.append(Plan(**vars(plan)))
    flattening.order(epoch, type=C.ORDER_TYPE_SELL, position=position)  # its lease has lapsed, and closing is always allowed
    flattening.pass_time(120)
    assert not broker.positions
    assert len(broker.executed) == 2  # opened once, closed once


def test_guard_orders_with_ambiguous_answers_are_settled_before_another_try(flattening: House, broker: ModelBroker) -> None:
    flattening.order(flattening.guard.lease("bot").epoch)
    broker.plans.extend([Plan(error=-10005, is_executed=False), Plan(retcode=10006, is_executed=False), Plan(error=-10002)])
    flattening.pass_time(600)
    assert not broker.positions
    assert (len(broker.executed), broker.sent) == (2, 4)


def test_partial_fills_are_closed_to_the_end(flattening: House, broker: ModelBroker) -> None:
    flattening.order(flattening.guard.lease("bot").epoch, volume=1.0)
    broker.plans.extend([Plan(share=0.4), Plan(share=0.5)])
    flattening.pass_time(500)
    assert not broker.positions
    assert [request.volume for request in broker.executed] == [1.0, 1.0, 0.6, 0.3]


def test_a_close_without_a_quote_or_a_turn_waits(flattening: House, broker: ModelBroker) -> None:
    flattening.order(flattening.guard.lease("bot").epoch)
    flattening.pass_time(350)

    def no_quote(calls: Any) -> None:
        broker.failing = {"symbol_info"} if len(calls) == 2 else set()

    flattening.gate.before = no_quote
    flattening.pass_time(60)
    assert len(broker.positions) == 1
    flattening.gate.before = lambda calls: setattr(broker, "failing", set())
    flattening.orders.settings = type(flattening.orders.settings)(ttl_ms=-1)
    flattening.pass_time(60)
    assert len(broker.positions) == 1
    flattening.orders.settings = type(flattening.orders.settings)()
    flattening.pass_time(120)
    assert not broker.positions


def test_stops_are_only_tightened(tmp_path: Path, broker: ModelBroker, houses: list[House]) -> None:
    settings = GuardSettings(after_lapse="tighten", after_lapse_s=60, tighten_points=10_000, magics=strategy_magics(0))
    houses.append(house := House(tmp_path, broker, settings))
    epoch = house.guard.lease("bot").epoch
    house.order(epoch, sl=49_000.0, tp=60_000.0)
    house.order(epoch, sl=49_950.0)
    house.order(epoch, type=C.ORDER_TYPE_SELL)
    house.order(epoch, magic=2**40, sl=1.0)
    broker.plans.append(Plan(retcode=10006, is_executed=False))
    house.pass_time(300)
    assert [(p.sl, p.tp) for p in broker.positions.values()] == [(49_900.0, 60_000.0), (49_950.0, 0.0), (50_101.0, 0.0), (1.0, 0.0)]
    sent = broker.sent
    broker.bid = 50_500.0
    house.pass_time(100)
    assert (broker.sent, len(broker.positions)) == (sent, 4)  # once, and nothing is closed
    assert "lapsed" in house.why


def test_wrong_settings_are_refused(tmp_path: Path, broker: ModelBroker) -> None:
    wrong: dict[str, Any]
    for wrong in (
        {"lease_s": 1.0},
        {"after_lapse": "flatten"},
        {"after_limit": "flatten"},
        {"after_lapse": "tighten", "magics": ANY_MAGIC},
    ):
        with pytest.raises(BtcbotError):
            GuardSettings(**wrong)
    with pytest.raises(BtcbotError, match="exposure"):
        Limits(exposure=-1)
    (tmp_path / "file").write_text("no database, but long enough to be taken for one " * 30)
    with pytest.raises(BtcbotError, match="can't be opened"):
        Guard(DirectGate(broker), tmp_path / "file")


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "guard.toml"
    path.write_text(
        'after_lapse = "flatten"\nmagics = [7, [10, 12]]\nstrategies = [1]\n[limits]\nequity_floor = 9000.0\norders_a_minute = 20\n'
    )
    found = read_settings(path)
    assert found.magics == ((7, 7), (10, 12), (2**32, 2**33 - 1))
    assert found.limits == Limits(equity_floor=9000.0, orders_a_minute=20)
    for wrong in ('after_lapse = "run"', "unknown = 1", "magics = [[1]]", "[limits]\nequity = 1", "= 1", 'after_limit = "tighten"'):
        path.write_text(wrong)
        with pytest.raises(BtcbotError):
            read_settings(path)


def test_a_file_that_cannot_be_written(house: House) -> None:
    house.guard._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(Refusal, match="can't be written") as caught:
        house.guard.lease("bot")
    assert caught.value.status == 503
    house.guard._connection.execute("PRAGMA query_only = OFF")
    points: list[str] = []
    house.guard.at_write = lambda at, what: points.append(at)
    assert house.guard.lease("bot").epoch == 1
    assert points == ["lease.before", "lease.after"]
