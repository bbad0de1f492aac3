"""The twin as a whole: the same run twice, no look into the future, a snapshot that another process continues, clocks that agree."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from btcbot.core.errors import BtcbotError
from btcbot.market.bars import time_index
from btcbot.market.clock import utc_ms
from btcbot.market.profile import PROFILES, broker_profile, profile_fields
from btcbot.market.sessions import in_sessions
from btcbot.market.synthetic import synthetic_bars
from btcbot.terminal.contract import FUNCTIONS, TIMEFRAMES, C
from btcbot.terminal.faults import plan_from_text
from btcbot.terminal.twin import Twin, TwinClient, twin_from_url

START = utc_ms("2024-03-05T10:00")


def market(seed: int = 4, hours: int = 8, minutes: int = 1) -> pd.DataFrame:
    """Bars from two hours before the start on."""
    return synthetic_bars(seed, START - 7_200_000, START + hours * 3_600_000, minutes * 60_000)


def recorded(seed: int = 4, n: int = 4_000) -> pd.DataFrame:
    """Ticks of about six seconds each, from an hour before the start on."""
    rng = np.random.default_rng(seed)
    times = START - 3_600_000 + np.cumsum(rng.integers(0, 12_000, n))
    bids = np.round(30_000 + np.cumsum(rng.normal(0, 3.0, n)), 2)
    return pd.DataFrame({"bid": bids, "ask": bids + np.round(rng.uniform(3, 9, n), 2)}, index=time_index(times))


def shown(value: object) -> bytes:
    """Write an answer so that equal answers, and no others, have equal bytes."""
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


class Program:
    """A random program: what it asks depends on the seed and on the answers, as that of a trader does."""

    def __init__(self, twin: TwinClient, seed: int):
        self.twin, self.rng, self.digest = twin, np.random.default_rng(seed), hashlib.sha256()
        spec = twin._twin.profile.symbol
        self.symbol, self.digits, self.least = spec.name, spec.digits, spec.stops_level * spec.point

    def ask(self, name: str, *arguments: object, **keywords: object) -> object:
        """Call a function and remember what came back."""
        value = getattr(self.twin, name)(*arguments, **keywords)
        error = self.twin.last_error()
        self.digest.update(name.encode() + shown(value) + repr(error).encode())
        if error[0] == C.RES_E_INTERNAL_FAIL_CONNECT:  # the terminal was away
            self.twin.initialize()
        return value

    def request(self) -> dict[str, object]:
        """Make up a request; many are refused."""
        rng, symbol = self.rng, self.symbol
        tick = self.twin.symbol_info_tick(symbol)
        bid, ask = (tick.bid, tick.ask) if tick else (30_000.0, 30_001.0)
        held = self.twin.positions_get() or ()
        kind, far, digits = int(rng.integers(0, 8)), self.least + float(rng.integers(5, 400)), self.digits
        side = 1 if kind % 2 == 0 else -1
        base = {
            "symbol": symbol,
            "magic": int(rng.integers(0, 9)),
            "comment": f"c{rng.integers(0, 99)}",
            "type_filling": C.ORDER_FILLING_IOC,
        }
        if held and rng.random() < 0.4:
            position = held[int(rng.integers(len(held)))]
            if rng.random() < 0.4:
                return base | {
                    "action": C.TRADE_ACTION_SLTP,
                    "position": position.ticket,
                    "sl": round(bid - far, digits),
                    "tp": round(ask + far, digits),
                }
            price = bid if position.type == 0 else ask
            return base | {
                **{"action": C.TRADE_ACTION_DEAL, "position": position.ticket, "type": 1 - position.type},
                **{"volume": position.volume, "price": price, "deviation": 1000},
            }
        volume = float(rng.choice([0.01, 0.05, 0.2]))
        if kind < 2:
            stop = round((bid if side > 0 else ask) - side * far, digits)
            price = ask if side > 0 else bid
            return base | {"action": C.TRADE_ACTION_DEAL, "type": kind, "volume": volume, "sl": stop, "price": price, "deviation": 1000}
        away = far if kind in (3, 4, 6) else -far  # sell limit, buy stop and buy stop-limit lie above
        price = round((ask if side > 0 else bid) + away, digits)
        limit = {"stoplimit": round(price - side * (self.least + 5), digits)} if kind >= 6 else {}
        pending = {"action": C.TRADE_ACTION_PENDING, "type": kind, "volume": volume, "price": price, "type_filling": C.ORDER_FILLING_RETURN}
        return base | pending | limit

    def step(self) -> None:
        """Ask for something, or send something, or let time pass."""
        rng, now = self.rng, int(self.twin._twin.now) // 1000
        choice = int(rng.integers(0, 10))
        if choice < 3:
            self.ask("order_send", self.request())
        elif choice == 3:
            self.ask("order_check", self.request())
        elif choice == 4:
            frame = int(rng.choice(list(TIMEFRAMES.values())))
            self.ask("copy_rates_from_pos", self.symbol, frame, int(rng.integers(0, 3)), int(rng.integers(1, 50)))
            self.ask("copy_rates_range", self.symbol, frame, now - int(rng.integers(0, 9_000)), now + 20_000)
        elif choice == 5:
            self.ask("copy_ticks_from", self.symbol, now - int(rng.integers(0, 3_000)), int(rng.integers(1, 300)), C.COPY_TICKS_ALL)
            self.ask("copy_ticks_range", self.symbol, now - 600, now + 20_000, C.COPY_TICKS_INFO)
        elif choice == 6:
            for name in ("account_info", "positions_get", "orders_get", "terminal_info", "symbols_get"):
                self.ask(name)
        elif choice == 7:
            self.ask("history_deals_get", 1, 2**31 - 1)
            self.ask("history_orders_get", 1, 2**31 - 1)
        elif choice == 8:
            self.ask("symbol_info", self.symbol)
            self.ask("symbol_info_tick", self.symbol)
            self.ask("market_book_add", self.symbol)
            self.ask("market_book_get", self.symbol)
        else:
            self.pause()

    def pause(self) -> None:
        """Let market time pass, in each of the ways."""
        twin, way = self.twin._twin, int(self.rng.integers(0, 4))
        if way == 0:
            self.digest.update(repr(self.twin.advance(int(self.rng.integers(0, 20)))).encode())
        elif way == 1:
            twin.advance_ticks(int(self.rng.integers(1, 9)))
        elif way == 2:
            twin.advance_to(twin.now + int(self.rng.integers(0, 200_000)))
        else:
            twin.advance(1)

    def run(self, steps: int) -> str:
        """Return the hash of all answers so far."""
        for _ in range(steps):
            self.step()
        return self.digest.hexdigest()


def program(twin: Twin, seed: int) -> Program:
    """Connect one."""
    twin.initialize()
    return Program(twin, seed)


@pytest.mark.parametrize("name", ["crypto-24x7", "exchange-ny7", "mini10-eet", "fiveday-eet", "netting-eet"])
def test_the_same_run_twice(name: str) -> None:
    """Same market, same program, same faults: every answer is the same to the last bit; another market gives another run."""
    profile, plan = replace(broker_profile(name), deposit=100_000.0), plan_from_text("seed:3:0.05")
    first, second, other = (program(Twin(market(seed), profile, start=START, faults=plan), 1).run(120) for seed in (4, 4, 5))
    assert first == second != other
    calm = program(Twin(market(), profile, start=START), 1)
    calm.run(120)
    assert len(calm.twin.history_deals_get(1, 2**31 - 1)) > 2


@pytest.mark.parametrize("source", ["bars", "ticks"])
def test_no_answer_depends_on_the_future(source: str) -> None:
    """Change all that comes after a moment: nothing that was answered until then changes."""
    frame = market() if source == "bars" else recorded()
    twin = program(Twin(frame, broker_profile("crypto-24x7"), start=START), 8)
    hashes, moments = [], []
    for _ in range(12):
        hashes.append(twin.run(10))
        moments.append(twin.twin.now)
    assert len(twin.twin.history_deals_get(1, 2**31 - 1)) > 2
    for k in (0, 4, 9):
        columns = ["bid", "ask"] if source == "ticks" else ["open", "high", "low", "close"]
        times = frame.index.as_unit("ms").asi8
        changed = frame.copy()
        after = times > moments[k] if source == "ticks" else times + 60_000 > moments[k]
        if source == "bars":  # of the bar that runs, what hasn't been seen: here all but its open
            running = np.flatnonzero(after)[0]
            seen = sum(moments[k] >= times[running] + part for part in (0, 20_000, 40_000, 59_999))
            after[running] = seen == 0
        changed.loc[after, columns] += 777.0
        again = program(Twin(changed, broker_profile("crypto-24x7"), start=START), 8)
        assert [again.run(10) for _ in range(k + 1)] == hashes[: k + 1], moments[k]


def test_the_rest_of_the_running_bar_is_unknown() -> None:
    """At a bar's first tick only its open is known, at the second one extreme more."""
    frame = market()
    bar = int(np.searchsorted(frame.index.as_unit("ms").asi8, START))
    wild = frame.copy()
    wild.iloc[bar, :5] = [frame["open"].iloc[bar], 99_999.0, 1.0, 50_000.0, 4_321]
    twins = [Twin(data, broker_profile("crypto-24x7"), start=START) for data in (frame, wild)]
    answers = []
    for twin in twins:
        made = program(twin, 3)
        for name, value in TIMEFRAMES.items():
            made.ask("copy_rates_from_pos", "BTCUSD", value, 0, 3 + len(name))
        made.ask("copy_ticks_range", "BTCUSD", 1, 2**31 - 1, -1)
        for name in ("symbol_info", "symbol_info_tick"):
            made.ask(name, "BTCUSD")
        answers.append(made.digest.hexdigest())
    assert answers[0] == answers[1]
    twins[1].advance_ticks(1)
    last = twins[1].copy_rates_from_pos("BTCUSD", 1, 0, 1)[0]
    assert (last["low"], last["high"], last["tick_volume"]) == (1.0, last["open"], 2)


@pytest.mark.parametrize("source", ["bars", "ticks"])
def test_one_call_or_many(source: str) -> None:
    """A market played in one call, bar by bar, tick by tick and by moments gives the same deals and the same state."""
    frame = market(hours=30) if source == "bars" else recorded()
    states = []
    for way in range(4):
        twin = Twin(frame, broker_profile("crypto-24x7"), start=START)
        made = program(twin, 11)
        for _ in range(12):
            made.ask("order_send", made.request())
        end = twin._end
        if way == 0:
            twin.advance(10**6)
        elif way == 1:
            while twin.advance()[0]:
                pass
        elif way == 2:
            while twin.advance_ticks(7):
                pass
        else:
            while twin.now < end:
                twin.advance_to(min(end, twin.now + 1_234_567))
        deals = twin.history_deals_get(1, 2**31 - 1)
        assert len(deals) > 5
        states.append((shown(deals), shown(twin.history_orders_get(1, 2**31 - 1)), twin.account_info(), twin.positions_get(), twin.now))
        states[-1] += (shown(twin.copy_ticks_range("BTCUSD", 1, 2**31 - 1, -1)),)
    assert all(state == states[0] for state in states)


def test_ticks_of_a_bar_are_those_that_were_traded_on() -> None:
    """Whichever extreme came first: a deal by a stop has its time and its price in copy_ticks."""
    twin = Twin(market(hours=60), replace(broker_profile("crypto-24x7"), deposit=1e6), start=START)
    twin.initialize()
    rng = np.random.default_rng(1)
    symbol = "BTCUSD"
    while twin.advance(int(rng.integers(1, 30)))[0]:
        tick, side = twin.symbol_info_tick(symbol), int(rng.choice([1, -1]))
        stop = round((tick.bid if side > 0 else tick.ask) - side * 40, 2)
        twin.order_send({"action": 1, "symbol": symbol, "volume": 0.01, "type": 0 if side > 0 else 1, "sl": stop})
    stopped = [deal for deal in twin.history_deals_get(1, 2**31 - 1) if deal.reason == C.DEAL_REASON_SL]
    assert len(stopped) > 50
    ticks = {int(tick["time_msc"]): tick for tick in twin.copy_ticks_range(symbol, 1, 2**31 - 1, -1)}
    for deal in stopped:
        tick = ticks[deal.time_msc]
        adverse = tick["bid"] - deal.price if deal.type == 1 else deal.price - tick["ask"]
        assert 0 <= adverse <= 0.00006 * deal.price + 0.01, deal  # slippage of 0.5 bp


CONTINUE = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_twin import Program
from btcbot.terminal.twin import Twin
import numpy as np
twin = Twin.restore(Path({file!r}).read_bytes())
made = Program(twin, 1)
made.rng.bit_generator.state = json.loads({state!r})
print(made.run(60), twin.now, Path({file!r}).read_bytes() == Twin.restore(Path({file!r}).read_bytes()).snapshot())
"""


@pytest.mark.parametrize(("name", "source"), [("crypto-24x7", "bars"), ("exchange-ny7", "ticks"), ("fiveday-eet", "bars")])
def test_another_process_continues_a_snapshot(name: str, source: str, tmp_path: Path) -> None:
    """Every answer after a restore is the one that the twin itself gives."""
    frame = market() if source == "bars" else recorded()
    twin = Twin(frame, broker_profile(name), start=START, faults=plan_from_text("seed:9:0.03"))
    made = program(twin, 2)
    made.run(80)
    (tmp_path / "snapshot").write_bytes(twin.snapshot())
    assert twin.snapshot() == twin.snapshot()
    state = json.dumps(made.rng.bit_generator.state)
    made.digest = hashlib.sha256()
    expected = made.run(60)
    code = CONTINUE.format(tests=str(Path(__file__).parent), file=str(tmp_path / "snapshot"), state=state)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.split() == [expected, str(twin.now), "True"], done.stderr
    again = twin_from_url(f"twin://?restore={tmp_path / 'snapshot'}")
    assert again.profile == twin.profile


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    """Whatever byte is changed."""
    data = Twin(market(hours=1), broker_profile("crypto-24x7"), start=START).snapshot()
    for where in np.random.default_rng(0).integers(0, len(data), 30).tolist():
        with pytest.raises(BtcbotError, match=r"snapshot|version"):
            Twin.restore(data[:where] + bytes([data[where] ^ 0x41]) + data[where + 1 :])
    with pytest.raises(BtcbotError, match="damaged"):
        Twin.restore(data[:-9])


class Watch:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Pass, as sleeping does."""
        self.seconds += seconds


@pytest.mark.parametrize("speed", [1.0, 60.0, 600.0])
def test_a_running_clock_is_a_virtual_one_moved_in_time(speed: float) -> None:
    """The accelerated and the wall clock give the answers of a virtual one that was advanced to the same moments."""
    watch = Watch()
    running = Twin(market(), broker_profile("crypto-24x7"), start=START, speed=speed, monotonic=watch, sleep=watch.sleep)
    virtual = Twin(market(), broker_profile("crypto-24x7"), start=START)
    one, two = program(running, 21), program(virtual, 21)
    one.pause = two.pause = lambda: None
    rng = np.random.default_rng(5)
    for _ in range(40):
        watch.seconds += float(rng.integers(0, 240_000)) / 1000 / speed
        virtual.advance_to(running.now)
        assert one.run(3) == two.run(3)
    assert running.now == virtual.now > START + 3_600_000
    with pytest.raises(BtcbotError, match="runs by itself"):
        running.advance()
    assert not running.is_lock_step


def test_two_clients_share_an_account_and_nothing_else() -> None:
    """Connection, last error and depth subscriptions belong to each; positions and Market Watch to all."""
    twin = Twin(market(), broker_profile("crypto-24x7"), start=START)
    one, two = twin.client(), twin.client()
    assert one.initialize()
    assert (two.account_info(), two.last_error()[0], one.last_error()[0]) == (None, -10004, 1)
    assert two.initialize(login=5) is False
    assert two.last_error()[0] == -6
    assert two.initialize(login=10_001, server="Twin-Crypto")
    one.market_book_add("BTCUSD")
    assert (len(one.market_book_get("BTCUSD")), two.market_book_get("BTCUSD")) == (20, None)
    one.order_send({"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0})
    assert two.positions_total() == 1
    assert two.symbol_select("BTCUSD", False) is False
    one.shutdown()
    assert (one.positions_total(), two.positions_total()) == (None, 1)


def test_a_lost_link_changes_what_is_seen_not_what_happens() -> None:
    """Deals behind a broken link are those of an unbroken one; meanwhile the terminal shows what it knew."""
    deals = []
    for text in ("", "disconnect@600000+1800000"):
        twin = Twin(market(), broker_profile("crypto-24x7"), start=START, faults=plan_from_text(text))
        twin.initialize()
        bid = twin.symbol_info_tick("BTCUSD").bid
        for far in (20, 40, 80, 160):
            twin.order_send(
                {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0, "sl": round(bid - far, 2), "tp": round(bid + far, 2)}
            )
        twin.advance(15)
        seen = twin.symbol_info_tick("BTCUSD"), twin.positions_get(), len(twin.copy_ticks_range("BTCUSD", 1, 2**31 - 1, -1))
        twin.advance(15)
        then = twin.symbol_info_tick("BTCUSD"), twin.positions_get(), len(twin.copy_ticks_range("BTCUSD", 1, 2**31 - 1, -1))
        assert (seen == then) == bool(text)
        assert twin.terminal_info().connected == (not text)
        sent = twin.order_send({"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0})
        if text:
            assert sent.retcode == C.TRADE_RETCODE_CONNECTION
        twin.advance(60)
        assert twin.terminal_info().connected
        deals.append([deal[2:5] + deal[9:14] for deal in twin.history_deals_get(1, 2**31 - 1) if deal.reason in (4, 5)])
    assert deals[0][: len(deals[1])] == deals[1]
    assert len(deals[1]) > 2


def test_a_restarted_terminal_forgets_its_clients() -> None:
    """Away: -10001; back: -10004 until each client connects again; the account is as it was."""
    twin = Twin(market(), broker_profile("crypto-24x7"), start=START, faults=plan_from_text("restart@60000+120000"))
    other = twin.client()
    assert twin.initialize()
    assert other.initialize()
    twin.order_send({"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0})
    twin.advance(2)
    assert (twin.positions_get(), twin.last_error()[0]) == (None, -10001)
    assert (other.initialize(), other.last_error()[0]) == (False, -10003)
    twin.advance(3)
    assert (twin.positions_get(), twin.last_error()[0]) == (None, -10004)
    assert twin.initialize()
    assert (twin.positions_total(), other.account_info()) == (1, None)


def test_server_clocks_with_a_change() -> None:
    """A broker on EET in the night of October: requests by raw times find what they name, nothing is lost."""
    bars = synthetic_bars(3, utc_ms("2024-10-26"), utc_ms("2024-10-28"))
    twin = Twin(bars, broker_profile("netting-eet"), start="2024-10-26T23:00")
    made = program(twin, 2)
    while twin.advance(7)[0]:
        made.step()
    days = twin.copy_rates_from_pos("BTCUSD", TIMEFRAMES["D1"], 0, 9)
    assert int(days["tick_volume"].sum()) == int(bars["tick_volume"].sum())
    assert len(days) == 3
    hours = twin.copy_rates_range("BTCUSD", TIMEFRAMES["H1"], utc_ms("2024-10-27") // 1000, utc_ms("2024-10-27T23:59") // 1000)
    assert len(hours) == 25


def test_urls(tmp_path: Path) -> None:
    """Every source and option; each mistake in one clear line."""
    bars, ticks = tmp_path / "bars.parquet", tmp_path / "ticks.parquet"
    market(hours=2).to_parquet(bars)
    recorded().to_parquet(ticks)
    profile = tmp_path / "mine.json"
    profile.write_text(json.dumps(profile_fields(replace(broker_profile("crypto-24x7"), name="mine", leverage=7))))
    twin = twin_from_url(f"twin://?data={bars}&profile={profile}&deposit=500&speed=2&faults=delay@order_send.1~5&login=7&maxbars=500")
    assert (twin.profile.leverage, twin.profile.deposit, twin.login_number, twin.is_lock_step) == (7, 500.0, 7, False)
    assert twin.initialize()
    assert twin.account_info().balance == 500.0
    assert twin.copy_rates_from_pos("BTCUSD", 1, 0, 500) is None
    taped = twin_from_url(f"twin://?ticks={ticks}&start=2024-03-05T10:00&from=2024-03-05T09:30&to=2024-03-05T12:00")
    assert taped.feed.market.has_ticks
    assert twin_from_url(f"twin://?data={ticks}").feed.market.has_ticks
    assert twin_from_url("twin://?seed=1&from=2024-01-02&to=2024-02-03&timeframe=H1&profile=cfd-eet").timeframe == "H1"
    bars.with_suffix(".json").write_text("[1]")
    for query, text in (
        ("", "exactly one"),
        ("seed=1&x=2", "unknown 'x'"),
        ("seed=1&data=b", "exactly one"),
        ("data=/no/such.parquet", "such"),
        ("seed=a", "invalid literal"),
        ("seed=1&profile=nope", "nope"),
        ("seed=1&profile=nope.json", "nope.json"),
        ("seed=1&speed=-1", "speed"),
        ("seed=1&faults=x", "no fault"),
        ("restore=/no/such", "such"),
        ("restore=x&seed=1", "exactly one"),
        ("restore=x&speed=1", "stands alone"),
        (f"restore={bars}", "no snapshot"),
        ("seed=1&from=2024-01-02&to=2024-01-03&start=2025-01-01", "none at or after"),
        ("seed=1&from=2024-01-02&to=2024-01-03&timeframe=M7", "M7"),
        (f"seed=1&profile={bars.with_suffix('.json')}", "no profile"),
    ):
        with pytest.raises(BtcbotError, match=text) as caught:
            twin_from_url(f"twin://?{query}")
        assert "\n" not in str(caught.value)


def test_a_broker_with_hours_has_no_bars_outside_them() -> None:
    """Nights and weekends of a five-day broker are gaps."""
    profile = PROFILES["fiveday-eet"]
    bars = synthetic_bars(2, utc_ms("2024-03-07"), utc_ms("2024-03-12"))
    twin = Twin(bars, profile)
    kept = in_sessions(profile.symbol.sessions, twin.clock, bars.index.as_unit("ms").asi8, 60_000)
    assert len(twin.feed.market.bars) == int(kept.sum()) < len(bars)


def test_all_functions_answer() -> None:
    """No function of the contract is left out."""
    twin = Twin(market(), broker_profile("crypto-24x7"), start=START)
    twin.initialize()
    tick, now = twin.symbol_info_tick("BTCUSD"), twin.now // 1000
    buy = {"action": 1, "symbol": "BTCUSD", "volume": 0.1, "type": 0}
    calls: dict[str, tuple[object, ...]] = {
        **dict.fromkeys(("symbol_info", "symbol_info_tick", "symbol_select"), ("BTCUSD",)),
        **dict.fromkeys(("market_book_add", "market_book_get", "market_book_release"), ("BTCUSD",)),
        **{
            "copy_rates_from": ("BTCUSD", 1, now, 5),
            "copy_rates_from_pos": ("BTCUSD", 1, 0, 5),
            "copy_rates_range": ("BTCUSD", 1, now - 99, now),
        },
        **{"copy_ticks_from": ("BTCUSD", now - 99, 5, -1), "copy_ticks_range": ("BTCUSD", now - 99, now, -1)},
        **{name: (1, now + 1) for name in FUNCTIONS if name.startswith("history_")},
        **{"order_check": (buy,), "order_send": (buy,), "login": (10_001,)},
        **{"order_calc_margin": (0, "BTCUSD", 0.1, tick.ask), "order_calc_profit": (0, "BTCUSD", 0.1, tick.ask, tick.bid)},
    }
    for name in FUNCTIONS:
        if name != "shutdown":
            assert getattr(twin, name)(*calls.get(name, ())) is not None, name
            assert twin.last_error() == (1, "Success"), name
