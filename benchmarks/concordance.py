"""The same decisions through four accounts, trade by trade: ours, the tests' plain reference, vectorbt and backtesting.py.

Real minutes, five simple strategies, one coin a trade, 5 bps of commission a deal. What peers can't model is switched off first, so that
each trade must be the same but for a rule that is named; then the broker's rules come back, and the reference alone has to follow.

`BTCBOT_VECTORBT` and `BTCBOT_BACKTESTING` name interpreters of environments that have those packages (default: this one). Prints tables
in Markdown; ends with 1 if a difference has no name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "bitfinex_btcusd_1m"
MONTH = ("2020-03-01", "2020-04-01")  # with the crash of the 12th
FEE_BPS = 5.0
CASH = 1_000_000.0
PEERS = {"vectorbt": "BTCBOT_VECTORBT", "backtesting.py": "BTCBOT_BACKTESTING"}
MINUTE = 60_000


# --- decisions: made once, from closed bars, and given to all


@dataclass(frozen=True)
class Decisions:
    """What one strategy wants from some bars on: a side each, and distances of stop and target."""

    name: str
    bars: Any  # Rows of the bars that decide
    sides: Any  # 1, -1, 0
    stop: float = np.nan
    take: float = np.nan


def changes(side: Any) -> tuple[Any, Any]:
    """Return where a row of sides changes, and to what."""
    at = np.flatnonzero(np.diff(side, prepend=0))
    return at, side[at]


def held_until(enter: Any, leave: Any) -> Any:
    """Return a row of sides: that of the last bar with an entry since which nothing told to leave."""
    out, now = np.zeros(len(enter), np.int64), 0
    for i, (begin, end) in enumerate(zip(enter.tolist(), leave.tolist(), strict=True)):
        now = begin or (0 if end else now)
        out[i] = now
    return out


def decide(times: Any, high: Any, low: Any, close: Any) -> list[Decisions]:
    """Return what the five strategies want."""
    import pandas as pd

    c, n = pd.Series(close), len(close)
    fast, slow = c.rolling(60).mean(), c.rolling(240).mean()
    top, bottom = pd.Series(high).rolling(240).max().shift(), pd.Series(low).rolling(120).min().shift()
    z = (c - c.rolling(180).mean()) / c.rolling(180).std()
    breakout = held_until((c > top).to_numpy().astype(int), (c < bottom).to_numpy())
    back = held_until(np.where(z > 2, -1, np.where(z < -2, 1, 0)), (z.abs() < 0.2).to_numpy())
    clock = times // MINUTE
    entries = np.flatnonzero(clock % 120 == 0)[1:]
    momentum = np.zeros(n, np.int64)
    for i in entries.tolist():
        momentum[i : i + 110] = 1 if close[i] > close[i - 60] else -1
    night = ((clock % 1440 >= 21 * 60) | (clock % 1440 < 3 * 60)).astype(np.int64)
    rows = [
        ("averages cross", np.where(slow.isna(), 0, np.sign(fast - slow)), np.nan, np.nan),
        ("breakout", breakout, np.nan, np.nan),
        ("reversion", back, np.nan, np.nan),
        ("momentum with stops", momentum, 40.0, 60.0),
        ("over night", night, np.nan, np.nan),
    ]
    out = []
    for name, side, stop, take in rows:
        side = np.asarray(side, np.float64)
        side[0] = side[n - 10 :] = 0  # backtesting.py asks from the second bar on; all trades end before the data does
        out.append(Decisions(name, *changes(side), stop, take))
    return out


# --- trades: entry row, exit row, side, entry price, exit price, net, and whether a stop ended it (nan: unknown)

COLUMNS = ("begin", "end", "side", "open", "close", "net")
BEGIN, END, SIDE, OPEN, CLOSE, NET = range(len(COLUMNS))


def with_vectorbt(data: Any, k: int) -> Any:
    """Return vectorbt's trades."""
    import vectorbt

    n, fee = len(data["close"]), float(data["fee"])
    at, sides = data[f"bars{k}"] + 1, data[f"sides{k}"]  # decided at a bar's close, done at the next one's open
    signals = {name: np.zeros(n, bool) for name in ("entries", "exits", "short_entries", "short_exits")}
    signals["entries"][at[sides > 0]] = signals["short_entries"][at[sides < 0]] = True
    signals["exits"][at[sides == 0]] = signals["short_exits"][at[sides == 0]] = True
    levels = {} if np.isnan(data[f"stop{k}"]) else {"sl_stop": data[f"stop{k}"] / data["open"], "tp_stop": data[f"take{k}"] / data["open"]}
    prices = {name: data[name] for name in ("open", "high", "low", "close")}
    book = vectorbt.Portfolio.from_signals(
        **prices,
        **signals,
        **levels,
        price=data["open"],
        size=1.0,
        fees=fee,
        init_cash=float(data["cash"]),
        upon_opposite_entry="reverse",
        stop_entry_price="fillprice",
    )
    found = book.trades.records
    side = np.where(found["direction"] == 0, 1, -1)
    return np.column_stack([found["entry_idx"], found["exit_idx"], side, found["entry_price"], found["exit_price"], found["pnl"]])


def with_backtesting(data: Any, k: int) -> Any:
    """Return the trades of backtesting.py."""
    import pandas as pd
    from backtesting import Backtest, Strategy

    fee, stop, take = float(data["fee"]), float(data[f"stop{k}"]), float(data[f"take{k}"])
    wanted, opens = dict(zip(data[f"bars{k}"].tolist(), data[f"sides{k}"].tolist(), strict=True)), data["open"]

    class Told(Strategy):
        """Does as decided."""

        def init(self) -> None:
            """Need nothing."""

        def next(self) -> None:
            """Send what is wanted after this bar; levels are relative to the price that the order will get."""
            row = len(self.data) - 1
            if (side := wanted.get(row)) is None:
                return
            self.position.close()
            if side != 0:
                entry = opens[row + 1]
                levels = {} if np.isnan(stop) else {"sl": entry - side * stop, "tp": entry + side * take}
                (self.buy if side > 0 else self.sell)(size=1, **levels)

    frame = pd.DataFrame({name.title(): data[name] for name in ("open", "high", "low", "close")})
    frame.index = pd.to_datetime(data["times"], unit="ms")
    trades = Backtest(frame, Told, cash=float(data["cash"]), commission=fee, margin=0.01).run()._trades
    side = np.sign(trades["Size"])
    return np.column_stack(
        [trades[name] for name in ("EntryBar", "ExitBar")] + [side, trades["EntryPrice"], trades["ExitPrice"], trades["PnL"]]
    )


def serve(peer: str, folder: Path) -> None:
    """Run a peer over all strategies; leave its trades in the folder."""
    data = dict(np.load(folder / "data.npz"))
    run = with_vectorbt if peer == "vectorbt" else with_backtesting
    np.savez(folder / f"{peer}.npz", **{f"trades{k}": run(data, k) for k in range(int(data["count"]))})


def ask(peer: str, folder: Path) -> dict[str, Any] | None:
    """Return a peer's trades, or say why there are none."""
    python = os.environ.get(PEERS[peer], sys.executable)
    module = peer.removesuffix(".py")
    if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
        print(f"{peer} is not installed in {Path(python).name}: not compared; {PEERS[peer]} names an interpreter that has it")
        return None
    done = subprocess.run([python, __file__, "--serve", peer, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-2000:]}")
    return dict(np.load(folder / f"{peer}.npz"))


# --- ours and the reference


def profiles() -> tuple[Any, dict[str, dict[str, Any]]]:
    """Return conditions that peers can model, and the broker's rules that they can't."""
    from btcbot.market.profile import BrokerProfile, SymbolSpec

    bare = BrokerProfile("bare", "Bare", symbol=SymbolSpec(commission_bps=FEE_BPS), leverage=100, deposit=CASH)
    rules = {"spread": {"spread_bps": 2.0}, "slippage": {"slippage_bps": 0.5}, "swap": {"swap_long": -20.0, "swap_short": -20.0}}
    return bare, rules


def with_ours(bars: Any, decisions: Decisions, profile: Any, lots: float = 1.0) -> Any:
    """Return the backtester's result."""
    from btcbot.backtest.backtester import Backtester
    from btcbot.core.jit import kernel
    from btcbot.engine.limits import RiskLimits
    from btcbot.engine.lots import SIZE_LOTS
    from btcbot.engine.risk import SIZE, SIZE_RULE, STOP, TAKE_PROFIT, TARGET_ID, TARGET_SIDE
    from btcbot.market.bars import TIME, time_ms
    from btcbot.strategies.base import Strategy

    global told_nb
    if told_nb is None:

        def step(params: Any, state_f: Any, state_i: Any, block: Any, out: Any) -> None:
            for i in range(block.shape[0]):
                while 4 + 2 * state_i[0] < params.shape[0] and params[4 + 2 * state_i[0]] <= block[i, TIME]:
                    state_i[0] += 1
                if state_i[0] == 0:
                    out[i, TARGET_SIDE] = 0.0
                else:
                    out[i, TARGET_ID], out[i, TARGET_SIDE] = params[2 + 2 * state_i[0]], params[3 + 2 * state_i[0]]
                    out[i, SIZE_RULE], out[i, SIZE], out[i, STOP], out[i, TAKE_PROFIT] = SIZE_LOTS, params[0], params[1], params[2]

        told_nb = kernel(step)
    told = np.column_stack([time_ms(bars.index)[decisions.bars], decisions.sides]).ravel()
    values = np.concatenate([[lots, decisions.stop, decisions.take, 0.0], told])
    strategy = Strategy(decisions.name, told_nb, {str(i): float(value) for i, value in enumerate(values)}, 0, 1, 0)
    free = float("inf")
    limits = RiskLimits(max_lots=100, max_drawdown=free, max_daily_loss=free, max_spread_bps=free, max_decision_age=free)
    return Backtester(profile, limits).run(strategy, bars)


told_nb: Any = None


def with_reference(bars: Any, points: Any, decisions: Decisions, profile: Any) -> list[Any]:
    """Return the deals of the tests' reference."""
    sys.path.insert(0, str(ROOT / "tests"))
    from reference import Profile, ReferenceAccount

    from btcbot.market.clock import midnight_weekdays, midnights, server_clock

    symbol, clock = profile.symbol, server_clock(profile.clock)
    exact = {
        name: Decimal(str(getattr(symbol, name))) for name in ("contract_size", "volume_min", "volume_max", "volume_step", "margin_rate")
    }
    costs = {name: Decimal(str(getattr(symbol, name))) for name in ("commission_per_lot", "commission_bps", "swap_long", "swap_short")}
    theirs = Profile(
        **exact,
        **costs,
        digits=symbol.digits,
        stops_level=symbol.stops_level,
        freeze_level=symbol.freeze_level,
        leverage=Decimal(profile.leverage),
        stop_out_level=Decimal(str(profile.stop_out)),
        commission_entry=symbol.commission_sides != "exit",
        commission_exit=symbol.commission_sides != "entry",
        swap_days=symbol.swap_days,
        slippage_ppm=round(symbol.slippage_bps * 100),
        spread_points=symbol.spread_points,
        spread_ppm=round(symbol.spread_bps * 100),
        initial_deposit=Decimal(str(profile.deposit)),
    )
    rows = [(t, *(Decimal(p).scaleb(-symbol.digits) for p in prices), s) for t, *prices, s in points.tolist()]
    nights = midnights(clock, rows[0][0], rows[-1][0] + MINUTE)
    account = ReferenceAccount(theirs, rows, MINUTE, list(zip(nights.tolist(), midnight_weekdays(clock, nights).tolist(), strict=True)))
    wanted = dict(zip(decisions.bars.tolist(), decisions.sides.tolist(), strict=True))
    unit = Decimal(10) ** -symbol.digits
    for row in range(len(rows) - 1):
        account.advance()
        if (side := wanted.get(row)) is None:
            continue
        for position in list(account.positions):
            if position.side != side:
                account.close(position.ticket, position.lots)
        if side != 0 and not account.positions:
            quote, levels = (account.ask if side > 0 else account.bid), (Decimal(0), Decimal(0))
            if not np.isnan(decisions.stop):
                stop, take = (Decimal(str(x)).quantize(unit) for x in (decisions.stop, decisions.take))
                levels = (quote - int(side) * stop, quote + int(side) * take)
            account.open(int(side), Decimal(1), *levels)
    while account.advance():
        pass
    return account.deals


def same_deals(ours: Any, theirs: list[Any]) -> int:
    """Return how many deals differ from the reference's in time, side, volume, price or any amount."""
    import pandas as pd

    from btcbot.market.bars import time_ms

    columns = [ours[name].tolist() for name in ("volume", "price", "profit", "commission", "swap")]
    mine = list(
        zip(time_ms(pd.DatetimeIndex(ours["time"])).tolist(), [1 if s == "buy" else -1 for s in ours["side"]], *columns, strict=True)
    )
    other = [(d.time_ms, d.side, *(float(x) for x in (d.lots, d.price, d.profit, d.commission, d.swap))) for d in theirs]
    return sum(a != b for a, b in zip(mine, other, strict=False)) + abs(len(mine) - len(other))


def our_trades(result: Any, times: Any) -> tuple[Any, list[str]]:
    """Return our trades in the peers' columns, and what ended each."""
    import pandas as pd

    from btcbot.market.bars import time_ms

    trades = result.trades.sort_values("opened", kind="stable")
    rows = [np.searchsorted(times, time_ms(pd.DatetimeIndex(trades[name])), side="right") - 1 for name in ("opened", "closed")]
    side = np.where(trades["side"] == "long", 1, -1)
    return np.column_stack([*rows, side, trades["open"], trades["close"], trades["net"]]), trades["exit"].tolist()


# --- the comparison


def cents(money: float) -> float:
    """Round money that is not negative to cents, half up."""
    return float(Decimal(f"{money:.9f}").quantize(Decimal("0.01"), ROUND_HALF_UP))


def name_difference(mine: Any, reason: str, other: Any, data: Any, decisions: Decisions) -> str:
    """Return the rule that explains how two trades of one entry differ, or nothing."""
    side, level = mine[SIDE], mine[OPEN] - mine[SIDE] * decisions.stop
    extreme = (data["low"] if side > 0 else data["high"])[int(mine[END])]
    if (mine[[BEGIN, SIDE]] != other[[BEGIN, SIDE]]).any() or abs(mine[OPEN] - other[OPEN]) > 1e-9:
        return ""
    if mine[END] == other[END]:
        apart = abs(mine[CLOSE] - other[CLOSE])
        if apart < 1e-6:
            gain, fees = (other[CLOSE] - other[OPEN]) * side, (other[[OPEN, CLOSE]] * FEE_BPS / 1e4).tolist()
            if abs(other[NET] - (gain - sum(fees))) > 1e-6:
                return ""
            off = abs(mine[NET] - (gain - sum(map(cents, fees))))
            return "" if off > 1e-6 else "equal" if abs(mine[NET] - other[NET]) < 1e-6 else "commission in whole cents"
        if reason == "sl" and abs(other[CLOSE] - level) < 1e-6 and mine[CLOSE] == extreme:
            return "a stop fills at the extreme, not at its level"
        if reason == "sl" and (other[CLOSE] - mine[OPEN]) * side > 0:
            return "the adverse extreme comes first in a bar with both levels"
        return ""
    if reason in ("sl", "tp") and mine[BEGIN] == mine[END] and other[END] > mine[END]:
        return "stops live in the entry bar"
    return ""


def compare(result: Any, theirs: Any, data: Any, decisions: Decisions) -> tuple[Counter[str], list[str]]:
    """Count the rules that part two runs; return them, and what nobody can explain."""
    ours, reasons = our_trades(result, data["times"])
    others = {int(row[BEGIN]): row for row in theirs}
    names, strange = Counter[str](), []
    for mine, reason in zip(ours, reasons, strict=True):
        other = others.pop(int(mine[BEGIN]), None)
        name = "" if other is None else name_difference(mine, reason, other, data, decisions)
        names[name or "UNEXPLAINED"] += 1
        if not name:
            strange.append(f"{decisions.name}: {mine.tolist()} ({reason}) against {None if other is None else other.tolist()}")
    names["UNEXPLAINED"] += len(others)
    strange += [f"{decisions.name}: nothing against {row.tolist()}" for row in others.values()]
    return +names, strange


def effect(base: Any, ruled: Any) -> str:
    """Say what a rule of the broker's changed: money, of which the result's own bookkeeping explains so much, and trades."""
    money = sum(ruled.costs[name] - base.costs[name] for name in base.costs)
    net = ruled.trades["net"].sum() - base.trades["net"].sum()
    keys = ["opened", "closed", "exit"]
    common = base.trades[keys].merge(ruled.trades[keys], how="inner")
    moved = len(base.trades) - len(common)
    return f"{net:+,.2f} | {money:+,.2f} | {moved or ''}"


def main() -> int:
    """Compare everything."""
    if not REAL.exists():
        print("the real bars are not beside this checkout: nothing is compared")
        return 0
    from btcbot.data.files import read_bars
    from btcbot.market.bars import bar_block, check_bars, point_bars, time_ms

    bars = check_bars(read_bars(REAL, start=MONTH[0], end=MONTH[1]).bars)
    prices = ["open", "high", "low", "close"]
    bars = bars.assign(**bars[prices].round(2))
    points, times = point_bars(bar_block(bars), 2), time_ms(bars.index)
    every = decide(times, *(bars[name].to_numpy() for name in prices[1:]))
    data = {name: bars[name].to_numpy() for name in prices}
    data |= {"times": times, "fee": np.array(FEE_BPS / 1e4), "cash": np.array(CASH), "count": np.array(len(every))}
    for k, decisions in enumerate(every):
        data |= {f"bars{k}": decisions.bars, f"sides{k}": decisions.sides}
        data |= {f"stop{k}": np.array(decisions.stop), f"take{k}": np.array(decisions.take)}
    bare, rules = profiles()
    strange: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **data)
        peers = {peer: found for peer in PEERS if (found := ask(peer, Path(folder))) is not None}
    print(f"{len(bars):,} minutes of Bitfinex from {MONTH[0]}; one coin a trade, {FEE_BPS:g} bps a deal, nothing else\n")
    print("| strategy | against | trades | the same | what parts the others |\n| --- | --- | ---: | ---: | --- |")
    base = [with_ours(bars, decisions, bare) for decisions in every]
    for k, (decisions, run) in enumerate(zip(every, base, strict=True)):
        differ = same_deals(run.deals, with_reference(bars, points, decisions, bare))
        strange += [f"{decisions.name}: {differ} deals differ from the reference's"] * bool(differ)
        print(f"| {decisions.name} | the reference | {len(run.trades)} | {len(run.trades) if not differ else '?'} | |", flush=True)
        for peer, found in peers.items():
            names, unknown = compare(run, found[f"trades{k}"], data, decisions)
            strange += [f"{peer}: {line}" for line in unknown]
            parts = "; ".join(f"{count} {name}" for name, count in names.most_common() if name != "equal")
            print(f"| {decisions.name} | {peer} | {len(run.trades)} | {names['equal']} | {parts} |", flush=True)
    print("\nThe broker's rules, one at a time and together; only the reference follows. A spread is booked by halves, at entry and exit")
    print("(a long pays the entry's, a short the exit's), and its side of the quote may reach a stop earlier.\n")
    print("| strategy | rule | net | booked as its cost | trades that end otherwise | deals that differ from the reference |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for decisions, run in zip(every, base, strict=True):
        for rule, terms in (rules | {"all": {name: value for one in rules.values() for name, value in one.items()}}).items():
            profile = replace(bare, symbol=replace(bare.symbol, **terms))
            ruled = with_ours(bars, decisions, profile)
            followed = ""
            if rule == "all":
                differ = same_deals(ruled.deals, with_reference(bars, points, decisions, profile))
                strange += [f"{decisions.name}, {rule}: {differ} deals differ from the reference's"] * bool(differ)
                followed = f"{differ} of {len(ruled.deals)}"
            print(f"| {decisions.name} | {rule} | {effect(run, ruled)} | {followed} |", flush=True)
    print(f"\n{len(strange)} differences without a name", *strange[:20], sep="\n")
    return int(bool(strange))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve(sys.argv[-2], Path(sys.argv[-1]))
    else:
        sys.exit(main())
