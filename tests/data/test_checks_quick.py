"""The quick checks of a cleaner say to the last bit what the plain ones say, which rank five windows at every bar."""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btcbot.core.jit import F8, I8, kernel
from btcbot.data import checks
from btcbot.data.arrived import receive, received_block
from btcbot.data.checks import (
    BAD_TIME,
    DEFAULTS,
    DUPLICATE,
    FIRST_RATIO,
    FIXED_SPREAD,
    FIXED_VOLUME,
    FLOOR,
    GAP,
    KEPT,
    LIMIT_BODY,
    LIMIT_GAP,
    LIMIT_STALE,
    LIMIT_WICK,
    LONG,
    LOOSE,
    MOST_ACTIVITY,
    MOST_RATIO,
    MOVE,
    NEAR,
    NO_NOTE,
    NO_TRADE,
    ORDER,
    RUNS,
    SHORT,
    SPIKE,
    STALE,
    fault_nb,
    push_nb,
    quantile_nb,
)
from btcbot.data.clean import DataCleaner
from btcbot.market.bars import CLOSE, HIGH, LOW, OPEN, SPREAD, TIME, VOLUME

SEED = int(os.environ.get("BTCBOT_SEED", "2024"))
WARM, MINUTE = 10, 60_000.0

# The checks as they were first written

# Places in the state: the last kept bar, then counters, then windows.
(S_TIME, S_OPEN, S_HIGH, S_LOW, S_CLOSE, S_VOLUME, S_SPREAD) = range(7)
(S_KEPT, S_EVIDENCE, S_REPEATS, S_EQUALS, S_PLACE, S_SEEN, N_SCALARS) = range(7, 14)
_W_RANGE = N_SCALARS
_W_SHORT = _W_RANGE + 2 + 2 * LONG
_W_VOLUME = _W_SHORT + 2 + 2 * SHORT
_W_SPREAD = _W_VOLUME + 2 + 2 * LONG
_W_STEP = _W_SPREAD + 2 + 2 * LONG
_W_RUNS = _W_STEP + 2 + 2 * LONG
_W_EQUAL = _W_RUNS + RUNS
_W_HIGHS = _W_EQUAL + RUNS
_W_LOWS = _W_HIGHS + NEAR
N_STATE = _W_LOWS + NEAR


@kernel
def usual_range_nb(state: F8, floor: float) -> float:
    """Return the usual true range, as a logarithm; NaN while too few bars are known."""
    if state[S_KEPT] < WARM:
        return np.nan
    usual = max(quantile_nb(state[_W_RANGE:_W_SHORT], 0.5), quantile_nb(state[_W_SHORT:_W_VOLUME], 0.5))
    return float(max(usual, floor * math.sqrt(max(quantile_nb(state[_W_STEP:_W_RUNS], 0.5) / MINUTE, 0.0))))


@kernel
def activity_nb(state: F8, volume: float, spread: float, most: float) -> tuple[float, float]:
    """Return how many times the usual volume (at least 1; 0 if nobody knows it) and the usual spread a bar has."""
    usual_volume, usual_spread = quantile_nb(state[_W_VOLUME:_W_SPREAD], 0.5), quantile_nb(state[_W_SPREAD:_W_STEP], 0.5)
    busier = min(max(volume / usual_volume, 1.0), most) if usual_volume > 0 else 0.0
    wider = min(max(spread / usual_spread, 1.0), math.sqrt(most)) if spread > 0 and usual_spread > 0 else 1.0
    return busier, wider


@kernel
def growth_nb(state: F8, time: float) -> float:
    """Return how much wider limits are after a hole: its root, doubled for each missing bar."""
    step = quantile_nb(state[_W_STEP:_W_RUNS], 0.9)
    missing = max((time - state[S_TIME]) / step - 1.0, 0.0) if step > 0 else 0.0
    if missing == 0.0:
        return 1.0
    return float(math.sqrt(1.0 + missing) * 2.0 ** min(missing, 50.0))


@kernel
def spike_nb(state: F8, params: F8, row: F8) -> tuple[int, int]:
    """Return the verdict on the distances of a bar, and a note if its volume or spread is why it is believed."""
    if state[S_KEPT] == 0:
        return KEPT, NO_NOTE
    o, h, low, c = math.log(row[OPEN]), math.log(row[HIGH]), math.log(row[LOW]), math.log(row[CLOSE])
    known = min(int(state[S_KEPT]), NEAR)
    gap = max(o - math.log(state[_W_HIGHS : _W_HIGHS + known].max()), math.log(state[_W_LOWS : _W_LOWS + known].min()) - o)
    wick, body = max(h - max(o, c), min(o, c) - low), abs(c - o)
    grown = growth_nb(state, row[TIME])
    usual = usual_range_nb(state, params[FLOOR])
    if np.isnan(usual):
        limit = math.log(params[FIRST_RATIO]) * grown
        return (GAP, NO_NOTE) if gap > limit else ((SPIKE, NO_NOTE) if max(wick, body) > limit else (KEPT, NO_NOTE))
    busier, wider = activity_nb(state, row[VOLUME], row[SPREAD], params[MOST_ACTIVITY])
    loose = 1.0 if busier > 0 else params[LOOSE]
    believed, most = max(math.sqrt(busier), wider), math.log(params[MOST_RATIO])
    far_gap = params[LIMIT_GAP] * usual
    far_wick, far_body = params[LIMIT_WICK] * loose * usual, params[LIMIT_BODY] * loose * usual
    if gap > min(far_gap * wider, most) * grown:
        return GAP, NO_NOTE
    if wick > min(far_wick * believed, most) * grown or body > min(far_body * believed, most) * grown:
        return SPIKE, NO_NOTE
    is_wild = gap > far_gap * grown or wick > far_wick * grown or body > far_body * grown
    return KEPT, MOVE if is_wild else NO_NOTE


@kernel
def evidence_nb(state: F8, params: F8, row: F8) -> float:
    """Return the evidence that the feed is frozen after this bar, in powers of ten; 0 if the bar repeats nothing."""
    o, h, low, c = row[OPEN], row[HIGH], row[LOW], row[CLOSE]
    is_copy = o == state[S_OPEN] and h == state[S_HIGH] and low == state[S_LOW] and c == state[S_CLOSE]
    is_still = o == c and h == low and c == state[S_CLOSE]
    if not (is_copy or is_still):
        return 0.0
    seen = min(state[S_KEPT], float(RUNS))
    running = state[S_EVIDENCE]
    step = -math.log10((state[S_REPEATS] + 1.0) / (seen + 2.0))
    usual = usual_range_nb(state, params[FLOOR])
    is_wide = math.log(h / low) > 0.25 * usual  # False while `usual` is NaN
    step += 3.0 if is_wide else 0.0
    if row[VOLUME] > 0 and row[VOLUME] == state[S_VOLUME]:
        step -= math.log10((state[S_EQUALS] + 1.0) / (seen + 2.0))
        step += 5.0 if is_wide else 0.0
    return float(running + step)


@kernel
def keep_nb(state: F8, row: F8, evidence: float) -> None:
    """Remember a kept bar."""
    last = state[S_CLOSE] if state[S_KEPT] > 0 else row[OPEN]
    reach = math.log(max(row[HIGH], last) / min(row[LOW], last))
    push_nb(state[_W_RANGE:_W_SHORT], reach)
    push_nb(state[_W_SHORT:_W_VOLUME], reach)
    push_nb(state[_W_VOLUME:_W_SPREAD], row[VOLUME])
    if row[SPREAD] > 0:
        push_nb(state[_W_SPREAD:_W_STEP], row[SPREAD])
    if state[S_KEPT] > 0:
        push_nb(state[_W_STEP:_W_RUNS], row[TIME] - state[S_TIME])
    repeat, equal = 1.0 if evidence > 0 else 0.0, 1.0 if row[VOLUME] == state[S_VOLUME] else 0.0
    place = int(state[S_PLACE])
    state[S_REPEATS] += repeat - state[_W_RUNS + place]
    state[S_EQUALS] += equal - state[_W_EQUAL + place]
    state[_W_RUNS + place], state[_W_EQUAL + place] = repeat, equal
    near = int(state[S_KEPT]) % NEAR
    state[_W_HIGHS + near], state[_W_LOWS + near] = row[HIGH], row[LOW]
    state[S_PLACE] = (state[S_PLACE] + 1) % RUNS
    state[S_TIME], state[S_OPEN], state[S_HIGH], state[S_LOW] = row[TIME], row[OPEN], row[HIGH], row[LOW]
    state[S_CLOSE], state[S_VOLUME], state[S_SPREAD] = row[CLOSE], row[VOLUME], row[SPREAD]
    state[S_EVIDENCE] = evidence
    state[S_KEPT] += 1


@kernel
def judge_plainly_nb(state: F8, params: F8, block: F8, verdict: I8, note: I8) -> None:
    """Judge the bars of `block`."""
    for i in range(block.shape[0]):
        row = block[i]
        verdict[i], note[i] = KEPT, NO_NOTE
        if not 0 < row[TIME] < 2.0**53:
            verdict[i] = BAD_TIME
            continue
        if state[S_KEPT] > 0 and row[TIME] <= state[S_TIME]:
            verdict[i] = DUPLICATE if row[TIME] == state[S_TIME] else ORDER
            continue
        fault = fault_nb(row[OPEN], row[HIGH], row[LOW], row[CLOSE])
        if fault != KEPT:
            verdict[i] = fault
            continue
        if not 0 <= row[VOLUME] < np.inf:
            row[VOLUME], note[i] = 0.0, FIXED_VOLUME
        if not 0 <= row[SPREAD] < 2.0**31:
            row[SPREAD], note[i] = 0.0, FIXED_SPREAD
        spike, reason = spike_nb(state, params, row)
        if spike != KEPT:
            verdict[i] = spike
            continue
        evidence = evidence_nb(state, params, row)
        if evidence > params[LIMIT_STALE]:
            verdict[i] = STALE
            continue
        if reason == NO_NOTE and row[VOLUME] == 0 and quantile_nb(state[_W_VOLUME:_W_SPREAD], 0.5) > 0:
            reason = NO_TRADE
        if note[i] == NO_NOTE:
            note[i] = reason
        keep_nb(state, row, evidence)


class PlainCleaner:
    """A cleaner that ranks its windows at every bar."""

    def __init__(self, params: F8) -> None:
        self.params, self.memory = params, np.zeros(N_STATE)

    def judge(self, block: F8) -> tuple[I8, I8, F8]:
        """Return verdicts, notes and the bars as put right."""
        block, verdict, note = block.copy(), np.zeros(len(block), np.int64), np.zeros(len(block), np.int64)
        judge_plainly_nb(self.memory, self.params, block, verdict, note)
        return verdict, note, block

    def scales(self) -> list[float]:
        """Return what a bar that comes now is measured with."""
        later = self.memory[S_TIME] + 3e5
        volume, spread = (quantile_nb(self.memory[a:b], 0.5) for a, b in ((_W_VOLUME, _W_SPREAD), (_W_SPREAD, _W_STEP)))
        usual = usual_range_nb(self.memory, self.params[FLOOR])
        return [usual, growth_nb(self.memory, later), volume, spread, self.memory[S_REPEATS], self.memory[S_EVIDENCE]]


def scales(cleaner: DataCleaner) -> list[float]:
    """Return the same of the quick one."""
    memory, counts = cleaner._memory, cleaner._counts
    last = memory[:, (counts[checks.C_KEPT] - 1) % checks.RING]
    usual = checks.usual_range_nb(memory, counts, cleaner._params[FLOOR])
    grown, activity = checks.growth_nb(memory, counts, last[TIME] + 3e5), checks.usual_activity_nb(memory, counts)
    return [usual, grown, *activity, float(counts[checks.C_REPEATS]), last[checks.EVIDENCE]]


def compare(block: F8, params: F8, cuts: list[int]) -> tuple[I8, I8]:
    """Judge a market both ways, the quick one in pieces and restored between them; return verdicts and notes."""
    plain, quick = PlainCleaner(params), DataCleaner()
    quick._params = params
    verdicts, notes = [], []
    for piece in np.split(block, cuts):
        verdict, note, corrected = plain.judge(piece)
        judged = quick.judge(piece)
        np.testing.assert_array_equal(judged.verdict, verdict)
        np.testing.assert_array_equal(judged.note, note)
        np.testing.assert_array_equal(judged.block, corrected)
        np.testing.assert_array_equal(scales(quick), plain.scales())
        quick = DataCleaner.restore(quick.state())
        verdicts.append(verdict)
        notes.append(note)
    return np.concatenate(verdicts), np.concatenate(notes)


# Markets of every kind


@st.composite
def markets(draw: st.DrawFn) -> tuple[F8, F8, list[int]]:
    """Make a market with faults, the settings of a cleaner, and where to cut."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.sampled_from([1, 9, 12, 70, 300, 700]))
    length = draw(st.sampled_from([1.0, 60_000.0, 86_400_000.0]))
    steps = draw(st.sampled_from([[1], [1, 1, 1, 1, 2, 30], [0.001, 1, 1, 60], [0, 1, 1, 1, -3, 0.5]]))
    wildness = draw(st.sampled_from([0.0, 1e-5, 2e-4, 1e-3, 5e-3, 0.1]))
    level = draw(st.sampled_from([1.0, 3e4, 3e4, 1e-279, 1e-300, 1e279, 1e290, 5e-324]))
    tick = draw(st.sampled_from([0.0, 0.0, 1e-4, 5e-3]))

    moods = np.repeat(rng.choice(draw(st.sampled_from([[1], [1, 30]])), 14), 50)[:n]
    log_close = np.cumsum(rng.normal(0, wildness, n) * rng.choice([1, 1, 1, 8], n) * moods)
    log_open = np.where(rng.random(n) < 0.8, np.append(0.0, log_close[:-1]), log_close)
    reach = rng.exponential(wildness / 2, (2, n)) * moods * (rng.random((2, n)) < 0.7)
    prices = np.exp([log_open, np.maximum(log_open, log_close) + reach[0], np.minimum(log_open, log_close) - reach[1], log_close])
    if tick:
        prices = np.maximum(np.rint(prices / tick), 1) * tick
    block = np.empty((n, 7))
    block[:, TIME] = 1e12 + length * np.cumsum(rng.choice(steps, n))
    with np.errstate(over="ignore"):
        block[:, OPEN:VOLUME] = level * prices.T
    block[:, VOLUME] = rng.choice(draw(st.sampled_from([[0], [5], [1, 2, 9, 40], [0, 0, 3], [0.0, 7, 7, 1e4, -1, np.nan, np.inf]])), n)
    block[:, SPREAD] = rng.choice(draw(st.sampled_from([[0], [3], [0, 0, 0, 2, 9], [1, 2, 3, 400], [-1, 0, 5, np.nan, 3e9]])), n)

    often = draw(st.sampled_from([0.0, 0.02, 0.2]))
    stale = np.flatnonzero(rng.random(n) < often / 4)
    for k in stale:  # a feed that stands still, with its volume or without
        copied = slice(OPEN, VOLUME + int(rng.integers(0, 2)))
        block[k : k + rng.integers(2, 40), copied] = block[k, copied]
    edge = DEFAULTS[FLOOR] * math.sqrt(length / MINUTE)
    for k in np.flatnonzero(rng.random(n) < often):  # distances at the very limits
        far = edge * rng.choice([10, 13, 26, 97.5, 195]) * (1 + rng.choice([0.0, 1e-15, -1e-15, 1e-9, -1e-9, 1e-3, -1e-3, 0.05]))
        far = float(np.exp(far)) if rng.random() < 0.5 else 1 + far
        column = rng.integers(OPEN, VOLUME)
        block[k, column] = block[k, rng.integers(OPEN, VOLUME)] * (far if rng.random() < 0.5 else 1 / far)
        if rng.random() < 0.7:
            block[k, HIGH], block[k, LOW] = block[k, OPEN:VOLUME].max(), block[k, OPEN:VOLUME].min()
    for k in np.flatnonzero(rng.random(n) < often):  # wicks that only the usual range tells from a market's
        block[k, HIGH] *= np.exp(min(wildness, 5e-3) * rng.choice([5, 20, 60, 200]))
    for k in np.flatnonzero(rng.random(n) < often / 4):  # a level that stays, and its own contradictions
        with np.errstate(over="ignore"):
            block[k:, OPEN:VOLUME] *= rng.choice([0.5, 0.9, 1.02, 1.6])
        block[k, rng.integers(0, 7)] = rng.choice([np.nan, np.inf, -1.0, 0.0, 1e308])

    params = np.array(DEFAULTS)
    if draw(st.booleans()):
        for name in (LIMIT_GAP, LIMIT_WICK, LIMIT_BODY, LOOSE, LIMIT_STALE):
            params[name] *= draw(st.sampled_from([1.0, 1.0, 0.01, 0.3, 4.0, 1e9, math.inf]))
        params[FLOOR] *= draw(st.sampled_from([1.0, 1.0, 0.0, 0.1, 30.0]))
        params[MOST_RATIO] = draw(st.sampled_from([3.0, 3.0, 1.001, 1.0]))
        params[MOST_ACTIVITY] = draw(st.sampled_from([2500.0, 2500.0, 4.0, 0.25]))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=20)))
    return block, params, cuts


@settings(max_examples=int(os.environ.get("BTCBOT_EXAMPLES", "150")), deadline=None, derandomize="BTCBOT_EXAMPLES" not in os.environ)
@given(markets())
def test_quick_checks_say_what_plain_ones_say(market: tuple[F8, F8, list[int]]) -> None:
    with np.errstate(all="ignore"):
        compare(*market)


@pytest.mark.jit
def test_a_wild_hour_is_forgotten_in_time() -> None:
    found = set()
    for calm in range(80):
        reach = np.r_[np.full(LONG, 0.02), 0.2, np.full(calm, 1e-4), 0.0]
        block = np.full((len(reach), 7), 100.0)
        block[:, TIME] = MINUTE * np.arange(1, len(reach) + 1)
        block[:, HIGH] += 100 * reach
        for wick in (0.005, 0.02, 0.1, 0.2):
            block[-1, HIGH] = 100 * (1 + wick)
            verdict, _ = compare(block, np.array(DEFAULTS), [])
            found.add((wick, int(verdict[-1])))
    assert {(0.005, KEPT), (0.02, KEPT), (0.02, SPIKE), (0.1, KEPT), (0.1, SPIKE), (0.2, KEPT), (0.2, SPIKE)} == found


# The markets there were


def frame(path: Path) -> pd.DataFrame:
    """Read a file, whose times may be those of a server."""
    rows = pd.read_parquet(path)
    if "time" not in rows.columns:
        rows["time"] = rows["time_server"].dt.tz_localize("UTC")
    return rows.drop(columns="time_server", errors="ignore").set_index("time")


@pytest.mark.jit
def test_quick_checks_on_all_real_bars() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real market data, which is not part of the repository (shared/data beside it)")
    paths = [path for path in sorted(folder.glob("*.parquet")) if "ticks" not in path.name]
    blocks = [received_block(receive(frame(path))) for path in paths]
    years = [received_block(receive(frame(path))) for path in sorted(folder.glob("bitfinex_btcusd_1m/*.parquet"))]
    for block in [*blocks, np.concatenate(years)]:
        verdict, note = compare(block, np.array(DEFAULTS), [len(block) // 3])
        assert (verdict == KEPT).mean() > 0.999
        assert np.isin(note, [NO_NOTE, NO_TRADE, MOVE]).all()
