"""The twin, through the MT5 API, against the independent reference: random markets, profiles and programs."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from reference import Profile, ReferenceAccount

from btcbot.market.clock import midnight_weekdays, midnights, server_clock
from btcbot.market.profile import BrokerProfile, SymbolSpec
from btcbot.terminal.contract import C
from btcbot.terminal.twin import Twin

LENGTH = 60_000
START = 1_704_067_200_000  # 2024-01-01, a Monday


def random_market(rng: np.random.Generator, n: int, digits: int) -> list[tuple[int, int, int, int, int, int]]:
    """Bars in points: wild, gappy, with quiet minutes missing and jumps over midnight."""
    price, time, out = int(rng.integers(80_000, 120_000)), START + int(rng.integers(0, 3)) * 43_200_000, []
    for _ in range(n):
        gap = rng.choice([1, 1, 1, 1, 2, 15, 400, 1500], p=[0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02])
        time += int(gap) * LENGTH
        scale = float(rng.choice([20, 150, 1200], p=[0.5, 0.4, 0.1]))
        open_ = max(10_000, price + int(rng.normal(0, scale)))
        close = max(10_000, open_ + int(rng.normal(0, scale)))
        high, low = max(open_, close) + int(abs(rng.normal(0, scale))), max(5_000, min(open_, close) - int(abs(rng.normal(0, scale))))
        out.append((time, open_, high, low, close, int(rng.choice([0, 0, 40, 300]))))
        price = close
    return out


def random_profiles(rng: np.random.Generator) -> tuple[BrokerProfile, Profile]:
    """The same conditions, in our words and in the reference's."""
    digits = int(rng.choice([0, 1, 2]))
    sides = str(rng.choice(["entry", "exit", "both"]))
    days = tuple(int(d) for d in rng.choice([(1, 1, 1, 1, 1, 1, 1), (0, 1, 1, 1, 1, 3, 0), (0, 1, 1, 3, 1, 1, 0)]))
    chosen = {
        "contract_size": float(rng.choice([1, 10, 0.1])),
        "volume_step": float(rng.choice([0.01, 0.1])),
        "stops_level": int(rng.choice([0, 50])),
        "freeze_level": int(rng.choice([0, 30])),
        "margin_rate": float(rng.choice([1.0, 0.5])),
        "commission_per_lot": float(rng.choice([0, 3.5])),
        "commission_bps": float(rng.choice([0, 1.25])),
        "swap_long": float(rng.choice([0, -12.5, 3.0])),
        "swap_short": float(rng.choice([0, -5.0, 1.75])),
        "spread_points": int(rng.choice([0, 25])),
        "spread_bps": float(rng.choice([0, 2.0])),
        "slippage_bps": float(rng.choice([0, 0.5, 1.33])),
    }
    symbol = SymbolSpec(digits=digits, volume_min=chosen["volume_step"], volume_max=50.0, commission_sides=sides, swap_days=days, **chosen)
    leverage, stop_out, deposit = int(rng.choice([2, 20, 400])), int(rng.choice([20, 50, 80])), float(rng.choice([2_000, 50_000]))
    ours = BrokerProfile("random", "Twin-Random", "UTC", symbol, leverage=leverage, stop_out=float(stop_out), deposit=deposit)
    exact = {name: Decimal(str(value)) for name, value in chosen.items() if isinstance(value, float)}
    theirs = Profile(
        digits=digits,
        contract_size=exact["contract_size"],
        volume_min=exact["volume_step"],
        volume_max=Decimal(50),
        volume_step=exact["volume_step"],
        stops_level=chosen["stops_level"],
        freeze_level=chosen["freeze_level"],
        leverage=Decimal(leverage),
        margin_rate=exact["margin_rate"],
        stop_out_level=Decimal(stop_out),
        commission_per_lot=exact["commission_per_lot"],
        commission_bps=exact["commission_bps"],
        commission_entry=sides != "exit",
        commission_exit=sides != "entry",
        swap_long=exact["swap_long"],
        swap_short=exact["swap_short"],
        swap_days=days,
        slippage_ppm=round(chosen["slippage_bps"] * 100),
        spread_points=chosen["spread_points"],
        spread_ppm=round(chosen["spread_bps"] * 100),
        initial_deposit=Decimal(str(deposit)),
    )
    return ours, theirs


class Program:
    """One random program of requests, played on both sides at every bar."""

    def __init__(self, seed: int, n_bars: int):
        self.rng = np.random.default_rng(seed)
        ours, theirs = random_profiles(self.rng)
        self.digits, self.step = ours.symbol.digits, Decimal(str(ours.symbol.volume_step))
        market = random_market(self.rng, n_bars, self.digits)
        unit = 10**self.digits
        rows = np.array(market, dtype=np.int64)
        index = pd.DatetimeIndex(rows[:, 0].view("M8[ms]"), tz="UTC", name="time")
        columns = {name: rows[:, k + 1] / unit for k, name in enumerate(("open", "high", "low", "close"))}
        frame = pd.DataFrame(columns | {"tick_volume": 1, "spread": rows[:, 5], "real_volume": 0}, index=index)
        self.twin = Twin(frame, ours)
        self.twin.initialize()
        clock = server_clock("UTC")
        nights = midnights(clock, market[0][0], market[-1][0] + LENGTH)
        weekdays = midnight_weekdays(clock, nights)
        bars = [(t, *(Decimal(p) / unit for p in (o, h, low, c)), s) for t, o, h, low, c, s in market]
        self.reference = ReferenceAccount(theirs, bars, LENGTH, list(zip(nights.tolist(), weekdays.tolist(), strict=True)))
        self.codes: Counter[int] = Counter()
        self.compared_s = 0

    def level(self, side: int, sign: int) -> Decimal:
        """Return a stop (sign -1) or a target (sign 1), sometimes none, sometimes on the wrong side."""
        if self.rng.random() < 0.3:
            return Decimal(0)
        distance = int(self.rng.choice([-20, 1, 10, 60, 400, 2000], p=[0.03, 0.07, 0.1, 0.3, 0.4, 0.1]))
        quote = self.reference.bid if side > 0 else self.reference.ask
        return max(Decimal(0), quote + side * sign * Decimal(distance) / 10**self.digits)

    def act(self) -> None:
        """Send one random request to both and compare the return codes."""
        kind, side = self.rng.choice(["open", "close", "modify", "nothing"], p=[0.35, 0.2, 0.2, 0.25]), int(self.rng.choice([-1, 1]))
        held = self.reference.positions
        ticket = int(self.rng.choice([p.ticket for p in held])) if held and self.rng.random() < 0.95 else 999_999
        if kind == "open":
            lots = self.step * int(self.rng.choice([1, 5, 30, 200, 1500, 60_000], p=[0.2, 0.2, 0.2, 0.2, 0.18, 0.02]))
            sl, tp = self.level(side, -1), self.level(side, 1)
            expected, order = self.reference.open(side, lots, sl, tp, 5)
            sent = self.send(side, lots, sl=float(sl), tp=float(tp))
            assert sent.order == order
        elif kind == "close":
            position = next((p for p in held if p.ticket == ticket), None)
            whole = position.lots if position else self.step
            lots = self.step * max(1, int(whole / self.step * Decimal(str(self.rng.choice([0.3, 0.5, 1.0, 1.5])))))
            side = -position.side if position else side
            expected = self.reference.close(ticket, lots, 6)
            sent = self.send(side, lots, position=ticket, magic=6)
        elif kind == "modify":
            position = next((p for p in held if p.ticket == ticket), None)
            same = position is not None and self.rng.random() < 0.1
            sl, tp = (position.sl, position.tp) if same else (self.level(position.side if position else 1, s) for s in (-1, 1))
            expected = self.reference.modify(ticket, sl, tp)
            request = {"action": C.TRADE_ACTION_SLTP, "position": ticket, "sl": float(sl), "tp": float(tp)}
            sent = self.twin.order_send(request)
        else:
            return
        self.codes[expected] += 1
        assert sent.retcode == expected, (kind, sent)

    def send(self, side: int, lots: Decimal, **fields: float | int):
        """Send a market order to the twin."""
        kind = C.ORDER_TYPE_BUY if side > 0 else C.ORDER_TYPE_SELL
        request = {"action": C.TRADE_ACTION_DEAL, "symbol": "BTCUSD", "volume": float(lots), "type": kind, "magic": 5}
        return self.twin.order_send(request | fields)

    def compare(self) -> None:
        """Account, positions and new deals must be equal, to the cent and the point."""
        account, reference = self.twin.account_info(), self.reference
        equity, margin = reference.equity(), reference.margin()
        ours = [account.balance, account.equity, account.margin, account.margin_free, account.profit]
        assert [Decimal(str(v)) for v in ours] == [reference.balance, equity, margin, equity - margin, equity - reference.balance]
        assert account.margin_level == pytest.approx(float(100 * equity / margin) if margin else 0.0, rel=1e-12)
        tick = self.twin.symbol_info_tick("BTCUSD")
        assert (Decimal(str(tick.bid)), Decimal(str(tick.ask)), tick.time_msc) == (reference.bid, reference.ask, reference.time_ms)
        held = [(p.ticket, p.volume, p.price_open, p.sl, p.tp, p.swap, p.time_msc) for p in self.twin.positions_get()]
        assert held == [(p.ticket, *map(float, (p.lots, p.price, p.sl, p.tp, p.swap)), p.time_ms) for p in reference.positions]
        self.compare_deals(self.compared_s)
        self.compared_s = reference.time_ms // 1000

    def compare_deals(self, since: int) -> None:
        """All deals from that second on must be equal."""
        ours = [
            (
                *(d.ticket - 1, d.order, d.time_msc, 1 if d.type == 0 else -1, d.entry, d.position_id, d.reason, d.magic),
                *(Decimal(str(v)) for v in (d.volume, d.price, d.commission, d.swap, d.profit)),
            )
            for d in self.twin.history_deals_get(since, 2**31 - 1)
            if d.type != C.DEAL_TYPE_BALANCE
        ]
        theirs = [
            (
                *(d.ticket, d.order, d.time_ms, d.side, d.entry, d.position_id, d.reason, d.magic),
                *(d.lots, d.price, d.commission, d.swap, d.profit),
            )
            for d in self.reference.deals
            if d.time_ms // 1000 >= since
        ]
        assert ours == theirs

    def play(self) -> Counter[str]:
        """Run to the end; return how often each thing happened."""
        while True:
            for _ in range(int(self.rng.choice([0, 1, 2]))):
                self.act()
            self.compare()
            moved, _ = self.twin.advance()
            assert self.reference.advance() == bool(moved)
            if not moved:
                break
        self.compare()
        self.compare_deals(0)
        seen = Counter(f"retcode {code}" for code in self.codes.elements())
        seen.update({3: "expert", 4: "stop loss", 5: "take profit", 6: "stop out"}[d.reason] for d in self.reference.deals)
        seen["swap"] = sum(d.swap != 0 for d in self.reference.deals)
        return seen


def compare_many(seeds: range, n_bars: int) -> Counter[str]:
    """Play one program for each seed and add up what happened."""
    total: Counter[str] = Counter()
    for seed in seeds:
        try:
            total += Program(seed, n_bars).play()
        except AssertionError as error:
            raise AssertionError(f"program {seed}: {error}") from error
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(total.items())))
    return total


@pytest.mark.jit
@pytest.mark.parity
def test_random_programs(rounds: int) -> None:
    """Compare every answer, account and deal of many programs; each rule must have come up."""
    total = compare_many(range(rounds * 6), 150)
    for name in ("stop loss", "take profit", "stop out", "expert", "swap"):
        assert total[name] >= rounds, name
    for code in (10009, 10014, 10016, 10019, 10025, 10029, 10036, 10038):
        assert total[f"retcode {code}"] >= 1, code


def test_random_programs_in_plain_python() -> None:
    """A few of the same without the JIT, where the engine's lines are counted."""
    compare_many(range(90_000, 90_005), 80)
