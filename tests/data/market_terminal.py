"""A terminal with ticks and bars that are known in advance, troubles on demand, and a store in memory."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd

from btcbot.data.store import Note, WriteResult, check_rows, series_key
from btcbot.market.bars import time_ms
from btcbot.market.clock import ServerClock, server_clock, to_server, utc_ms
from btcbot.market.ticks import bars_from_ticks, tick_sequence
from btcbot.terminal.contract import RATES_DTYPE, TICKS_DTYPE

START = utc_ms("2024-07-01")
MINUTE = 60_000
NY7 = server_clock("NY+7")
BARS, TICK = ("BTCUSD", "M1"), ("BTCUSD", "TICK")


def made_ticks(seed: int, minutes: int, per_minute: float = 6.0, start: int = START) -> pd.DataFrame:
    """Return ticks: quiet minutes, seconds with many ticks, several in one millisecond."""
    rng = np.random.default_rng(seed)
    busy = np.flatnonzero(rng.random(minutes) > 0.15)
    counts = rng.poisson(per_minute, len(busy)) + 1
    second = np.repeat(busy * 60, counts) + rng.integers(0, 60, counts.sum())
    times = np.sort(start + second * 1000 + rng.choice([0, 0, 250, 999], len(second)))
    bid = np.round(60_000 + rng.normal(0, 5, len(times)).cumsum(), 2)
    data = {
        "bid": bid,
        "ask": np.round(bid + rng.choice([1.0, 1.5], len(times)), 2),
        "last": 0.0,
        "volume": rng.integers(0, 3, len(times)) / 8,
    }
    return pd.DataFrame(data | {"flags": np.int32(6)}, index=pd.DatetimeIndex(times.view("M8[ms]"), tz="UTC", name="time"))


class Market:
    """What happened, on the server's clock, as a terminal would tell it."""

    def __init__(self, ticks: pd.DataFrame, clock: ServerClock = NY7) -> None:
        self.ticks, self.clock = ticks, clock
        self.bars = bars_from_ticks(ticks, "M1", 2)
        self.times, self.opened = time_ms(ticks.index), time_ms(self.bars.index)
        self.tick_rows = np.zeros(len(ticks), TICKS_DTYPE)
        self.tick_rows["time_msc"] = to_server(clock, time_ms(ticks.index))
        self.tick_rows["time"] = self.tick_rows["time_msc"] // 1000
        for name in ("bid", "ask", "last", "flags"):
            self.tick_rows[name] = ticks[name]
        self.tick_rows["volume_real"] = ticks["volume"]
        self.rates = np.zeros(len(self.bars), RATES_DTYPE)
        self.rates["time"] = to_server(clock, self.opened) // 1000
        for name in RATES_DTYPE.names[1:]:
            self.rates[name] = self.bars[name]

    def rates_at(self, now: int) -> np.ndarray:
        """Return all bars as they were at `now`, the last one unfinished."""
        many = int(np.searchsorted(self.times, now, side="right"))
        if not many:
            return self.rates[:0]
        opened = self.times[many - 1] // MINUTE * MINUTE
        closed = int(np.searchsorted(self.opened, opened))
        rates, now_rows = self.rates[: closed + 1].copy(), self.tick_rows[np.searchsorted(self.times, opened) : many]
        last, bids = rates[closed], now_rows["bid"]
        last["high"], last["low"], last["close"], last["tick_volume"] = bids.max(), bids.min(), bids[-1], len(bids)
        return rates

    def ticks_at(self, now: int) -> np.ndarray:
        """Return all ticks up to `now`."""
        return self.tick_rows[: int(np.searchsorted(self.times, now, side="right"))]

    def finished(self, now: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the bars that have closed, and the ticks of all seconds that are over, because something came after them."""
        last = self.times[self.times <= now][-1]
        return self.bars[self.opened < last // MINUTE * MINUTE], self.ticks[self.times < last // 1000 * 1000]


class MarketTerminal:
    """The functions that ingestion needs."""

    def __init__(self, market: Market, now: Callable[[], int], maxbars: int = 1000) -> None:
        self.market, self.now, self.maxbars = market, now, maxbars
        self.error, self.asked = (1, "Success"), 0

    def _answer(self, rows: np.ndarray) -> np.ndarray | None:
        """Let trouble happen to an answer."""
        self.asked += 1
        self.error = (1, "Success")
        return rows.copy()

    def _refuse(self, code: int, text: str) -> None:
        self.error = (code, text)

    def last_error(self):
        return self.error

    def initialize(self):
        return True

    def shutdown(self):
        return True

    def terminal_info(self):
        return SimpleNamespace(maxbars=self.maxbars, name="MetaTrader 5")

    def account_info(self):
        return SimpleNamespace(server="Demo-Server")

    def symbol_info(self, symbol):
        return SimpleNamespace(digits=2)

    def symbol_select(self, symbol, enable=True):
        return True

    def symbol_info_tick(self, symbol):
        rows = self.market.ticks_at(self.now())
        return SimpleNamespace(time=int(rows["time"][-1]) if len(rows) else 0)

    def copy_rates_from_pos(self, symbol, timeframe, start, count):
        rates = self.market.rates_at(self.now())
        return self._answer(rates[max(len(rates) - start - count, 0) : len(rates) - start])

    def copy_rates_from(self, symbol, timeframe, date, count):
        rates = self.market.rates_at(self.now())
        rates = rates[rates["time"] <= date]
        return self._answer(rates[max(len(rates) - count, 0) :])

    def copy_rates_range(self, symbol, timeframe, first, last):
        rates = self.market.rates_at(self.now())
        rates = rates[(rates["time"] >= first) & (rates["time"] <= last)]
        if len(rates) >= self.maxbars:
            return self._refuse(-2, "Terminal: Invalid params")
        return self._answer(rates)

    def copy_ticks_from(self, symbol, first, count, flags):
        rows = self.market.ticks_at(self.now())
        return self._answer(rows[rows["time"] >= first][:count])


class TroubledTerminal(MarketTerminal):
    """A terminal that fails, or gives a part of its answer, as chance will have it."""

    def __init__(
        self, market: Market, now: Callable[[], int], rng: np.random.Generator, share: float, dead: float = 0.0, **options
    ) -> None:
        super().__init__(market, now, **options)
        self.rng, self.share, self.dead = rng, share, dead

    def _answer(self, rows: np.ndarray) -> np.ndarray | None:
        rows = super()._answer(rows)
        if self.rng.random() < self.dead:
            return self._refuse(-10004, "No IPC connection")
        if self.rng.random() >= self.share:
            return rows
        trouble = self.rng.integers(4)
        if trouble == 0:
            return self._refuse(-1, "Terminal: Call failed")
        cut = int(self.rng.integers(len(rows) + 1))
        return (rows[:0], rows[:cut], rows[cut:])[trouble - 1]


class MemoryStore:
    """The methods of a store that ingestion needs, fast."""

    def __init__(self) -> None:
        self.frames: dict[object, pd.DataFrame] = {}
        self.noted: dict[object, list[Note]] = {}
        self.writes = 0

    def write(self, rows, *, source, symbol, timeframe, known_at=None):
        key = series_key(source, symbol, timeframe)
        frame, server = check_rows(rows, key)
        frame = frame.assign(time_server=server, sequence=tick_sequence(time_ms(frame.index)) if key.is_ticks else 0)
        frame = frame.set_index("sequence", append=True)
        old = self.frames.get(key)
        self.writes += 1
        if old is None:
            self.frames[key] = frame
            return WriteResult(len(frame), 0)
        fresh = ~frame.index.isin(old.index)
        common = frame[~fresh]
        updated = int((old.loc[common.index] != common).any(axis=1).sum())
        self.frames[key] = pd.concat([old[~old.index.isin(common.index)], frame]).sort_index()
        return WriteResult(int(fresh.sum()), updated)

    def read(self, source, symbol, timeframe, start=None, end=None, *, known_at=None, columns=None):
        key = series_key(source, symbol, timeframe)
        frame = self.frames[key].droplevel("sequence")
        times = time_ms(frame.index)
        low, high = np.searchsorted(times, [0 if start is None else start, 2**60 if end is None else end])
        return frame[low:high][list(columns or key.columns)]

    def span(self, source, symbol, timeframe):
        frame = self.frames.get(series_key(source, symbol, timeframe))
        return None if frame is None else tuple(time_ms(frame.index.get_level_values(0))[[0, -1]].tolist())

    def annotate(self, source, symbol, timeframe, values, *, known_at=None):
        self.noted.setdefault(series_key(source, symbol, timeframe), []).append(Note(0, dict(values)))

    def notes(self, source, symbol, timeframe):
        return self.noted.get(series_key(source, symbol, timeframe), [])
