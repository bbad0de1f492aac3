"""Features that see the future, and tricky ones that don't: what the certificate must tell apart.

Each case is a function of the bars that gives the subject of `certify`, and perhaps what was known when.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline
from scipy.signal import butter, detrend, filtfilt, hilbert, lfilter, savgol_filter
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from btcbot.core.jit import F8, I8, kernel
from btcbot.features.indicator import Indicator, Plan
from btcbot.features.stepwise import IndicatorStream
from btcbot.market.bars import time_ms
from btcbot.strategies.base import Strategy

Bars = pd.DataFrame
MINUTE = pd.Timedelta("1min")


@dataclass
class Case:
    """A subject, made for some bars."""

    make: Callable[[Bars], object]
    text: str = ""  # Part of the explanation
    part: Callable[[Bars], Bars] = field(default=lambda bars: bars)  # The bars that it is certified on
    arrivals: Callable[[Bars], Bars] | None = None
    cuts: int = 30  # Random ones
    stretch: int = 20


LEAKS: dict[str, Case] = {}
CLEAN: dict[str, Case] = {}


def leak(text: str = "", **options: Any) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Register a function of bars as a leak."""

    def put(function: Callable[..., object]) -> Callable[..., object]:
        LEAKS[function.__name__] = Case(lambda bars: function, text, **options)
        return function

    return put


def leak_made(text: str = "", **options: Any) -> Callable[[Callable[[Bars], object]], Callable[[Bars], object]]:
    """Register what makes a leak out of the bars."""

    def put(make: Callable[[Bars], object]) -> Callable[[Bars], object]:
        LEAKS[make.__name__] = Case(make, text, **options)
        return make

    return put


def clean(function: Callable[..., object]) -> Callable[..., object]:
    """Register a function of bars that sees no future."""
    CLEAN[function.__name__] = Case(lambda bars: function)
    return function


def clean_made(make: Callable[[Bars], object]) -> Callable[[Bars], object]:
    """Register what makes a clean subject out of the bars."""
    CLEAN[make.__name__] = Case(make)
    return make


# Shifts and their disguises


@leak("1 bar too early")
def shifted(bars: Bars) -> object:
    return bars["close"].shift(-1)


@leak("1 bar too early")
def filled_shift(bars: Bars) -> object:
    return bars["close"].pct_change().shift(-1).fillna(0.0)


@leak()
def diff_minus(bars: Bars) -> object:
    return bars["close"].diff(-1)


@leak()
def rolled_array(bars: Bars) -> object:
    return np.roll(bars["close"].to_numpy(), -1)


@leak()
def rolled_forward_by_mistake(bars: Bars) -> object:
    return np.roll(bars["close"].to_numpy(), 1)  # the first bar gets the last


@leak()
def negative_index(bars: Bars) -> object:
    close = bars["close"].to_numpy()
    return np.array([close[i - len(close) + 3] if i + 3 < len(close) else np.nan for i in range(len(close))])


@leak()
def slice_assignment(bars: Bars) -> object:
    out = np.full(len(bars), np.nan)
    out[:-5] = bars["close"].to_numpy()[5:]
    return out


@leak()
def label_as_feature(bars: Bars) -> object:
    return (bars["close"].shift(-15) > bars["close"]).astype(int)


@leak()
def freq_shift(bars: Bars) -> object:
    return bars["close"].shift(-1, freq="min").reindex(bars.index)


@leak()
def far_ahead(bars: Bars) -> object:
    return bars["close"].shift(-900)


# Windows


@leak()
def centred_mean(bars: Bars) -> object:
    return bars["close"].rolling(21, center=True).mean()


@leak()
def centred_with_edges(bars: Bars) -> object:
    return bars["close"].rolling(21, center=True, min_periods=1).mean()


@leak()
def forward_window(bars: Bars) -> object:
    return bars["high"].rolling(pd.api.indexers.FixedForwardWindowIndexer(window_size=10)).max()


@leak()
def future_low(bars: Bars) -> object:
    return bars["low"][::-1].rolling(30, min_periods=1).min()[::-1]


@leak()
def convolve_same(bars: Bars) -> object:
    return np.convolve(bars["close"].to_numpy(), np.ones(5) / 5, mode="same")


@leak()
def gradient(bars: Bars) -> object:
    return np.gradient(bars["close"].to_numpy())


@leak()
def savgol(bars: Bars) -> object:
    return savgol_filter(bars["close"].to_numpy(), 31, 3)


@leak()
def local_extremum(bars: Bars) -> object:
    high = bars["high"]
    return ((high > high.shift(1)) & (high > high.shift(-1))).astype(float)


@leak()
def zigzag(bars: Bars) -> object:
    close, out = bars["close"].to_numpy(), np.zeros(len(bars))
    at, up = 0, True
    for i in range(1, len(close)):
        if (close[i] > close[at]) == up:
            at = i
        elif abs(close[i] / close[at] - 1) > 0.002:
            out[at], at, up = 1.0 if up else -1.0, i, not up
    return out


@leak()
def window_starts_here(bars: Bars) -> object:
    close = bars["close"].to_numpy()
    return np.array([close[i : i + 5].std() for i in range(len(close))])


# Statistics of the whole series


@leak("statistic of the whole series")
def z_scored(bars: Bars) -> object:
    return (bars["close"] - bars["close"].mean()) / bars["close"].std()


@leak()
def min_max(bars: Bars) -> object:
    return (bars["close"] - bars["close"].min()) / (bars["close"].max() - bars["close"].min())


@leak()
def ranked(bars: Bars) -> object:
    return bars["tick_volume"].rank(pct=True)


@leak()
def by_quantile(bars: Bars) -> object:
    return bars["tick_volume"] > bars["tick_volume"].quantile(0.95)


@leak()
def quantile_bins(bars: Bars) -> object:
    return pd.qcut(bars["close"].pct_change().fillna(0.0), 10, labels=False, duplicates="drop")


@leak()
def demeaned_returns(bars: Bars) -> object:
    change = bars["close"].pct_change()
    return change - change.mean()


@leak()
def detrended(bars: Bars) -> object:
    return detrend(bars["close"].to_numpy())


@leak()
def winsorised(bars: Bars) -> object:
    change = bars["close"].pct_change()
    return change.clip(change.quantile(0.01), change.quantile(0.99))


@leak()
def filled_with_mean(bars: Bars) -> object:
    change = bars["close"].pct_change(30)
    return change.fillna(change.mean())


@leak()
def from_the_end(bars: Bars) -> object:
    return np.arange(len(bars))[::-1] / 1000.0


@leak()
def share_of_length(bars: Bars) -> object:
    return np.linspace(0.0, 1.0, len(bars))


@leak()
def divided_by_last(bars: Bars) -> object:
    return bars["close"] / bars["close"].iloc[-1]


@leak()
def expanding_from_the_end(bars: Bars) -> object:
    return bars["close"][::-1].expanding().mean()[::-1]


@leak()
def reverse_cumulated(bars: Bars) -> object:
    return np.cumsum(bars["tick_volume"].to_numpy()[::-1])[::-1]


@leak()
def adjusted_back(bars: Bars) -> object:
    change = bars["close"].pct_change().fillna(0.0)
    return 1.0 / (1 + change)[::-1].cumprod()[::-1]


@leak()
def category_codes(bars: Bars) -> object:
    return (bars["close"] // 25).astype("category").cat.codes


@leak()
def dense_codes(bars: Bars) -> object:
    return np.unique(bars["tick_volume"].to_numpy(), return_inverse=True)[1]


@leak()
def histogram_share(bars: Bars) -> object:
    counts = bars["spread"].value_counts(normalize=True)
    return bars["spread"].map(counts)


# Spectra, splines, interpolation


@leak()
def fft_filter(bars: Bars) -> object:
    spectrum = np.fft.rfft(bars["close"].to_numpy())
    spectrum[len(spectrum) // 20 :] = 0
    return np.fft.irfft(spectrum, len(bars))


@leak()
def zero_phase(bars: Bars) -> object:
    return filtfilt(*butter(2, 0.1), bars["close"].to_numpy())


@leak()
def analytic_phase(bars: Bars) -> object:
    return np.angle(hilbert(bars["close"].to_numpy() - 30_000.0))


@leak()
def spline(bars: Bars) -> object:
    at = np.arange(0, len(bars), 20)
    return CubicSpline(at, bars["close"].to_numpy()[at])(np.arange(len(bars)))


@leak()
def interpolated(bars: Bars) -> object:
    return bars["close"].where(np.arange(len(bars)) % 7 == 0).interpolate()


@leak()
def interpolated_spread(bars: Bars) -> object:
    spread = bars["spread"].astype(float)
    return spread.where(spread < spread.rolling(50).quantile(0.9)).interpolate()


@leak()
def backfilled(bars: Bars) -> object:
    return bars["close"].where(bars["tick_volume"] % 3 == 0).bfill()


@leak()
def polynomial(bars: Bars) -> object:
    at = np.arange(len(bars)) / 1000.0
    return np.polyval(np.polyfit(at, bars["close"].to_numpy(), 2), at)


# Higher timeframes


@leak("that hour has closed")
def hour_on_open_time(bars: Bars) -> object:
    return bars["close"].resample("1h").last().reindex(bars.index, method="ffill")


@leak()
def day_high_transform(bars: Bars) -> object:
    return bars["high"].groupby(bars.index.floor("1D")).transform("max")


@leak()
def asof_nearest(bars: Bars) -> object:
    hourly = bars["close"].resample("1h", label="right", closed="left").last().rename("hour").dropna().reset_index()
    return pd.merge_asof(bars.reset_index(), hourly, on="time", direction="nearest")["hour"].to_numpy()


@leak()
def asof_forward(bars: Bars) -> object:
    hourly = bars["close"].resample("1h", label="right", closed="left").last().rename("hour").dropna().reset_index()
    return pd.merge_asof(bars.reset_index(), hourly, on="time", direction="forward")["hour"].to_numpy()


@leak()
def quarter_with_wrong_closing(bars: Bars) -> object:
    rows = bars["close"].resample("15min", label="left", closed="right").last()
    return rows.reindex(bars.index, method="ffill")


@leak()
def hourly_rows_themselves(bars: Bars) -> object:
    return bars["close"].resample("1h").last()


@leak()
def day_range_by_map(bars: Bars) -> object:
    day = pd.Series(bars.index.floor("4h"), bars.index)
    wide = bars.groupby(day.to_numpy()).agg(high=("high", "max"), low=("low", "min"))
    return day.map(wide["high"] - wide["low"])


# Order


@leak()
def sorted_values(bars: Bars) -> object:
    return np.sort(bars["close"].to_numpy())


@leak()
def reversed_time(bars: Bars) -> object:
    return bars["close"].to_numpy()[::-1]


@leak()
def sorted_descending_diff(bars: Bars) -> object:
    return bars.sort_index(ascending=False)["close"].diff()


@leak()
def dedupe_keep_last(bars: Bars) -> object:
    last = ~pd.Series(bars.index.floor("5min"), bars.index).duplicated(keep="last")
    return bars["close"].where(last.to_numpy())


# Fits


@leak()
def scaler_in_function(bars: Bars) -> object:
    return StandardScaler().fit_transform(bars[["close", "tick_volume"]])


@leak()
def components(bars: Bars) -> object:
    x = np.column_stack([bars["close"].pct_change(n).fillna(0.0) for n in (1, 5, 15)])
    return PCA(1).fit_transform(x)[:, 0]


@leak()
def regressed(bars: Bars) -> object:
    x = bars[["open", "tick_volume"]].to_numpy(float)
    return LinearRegression().fit(x, bars["close"]).predict(x) - bars["close"]


@leak()
def quantile_transformed(bars: Bars) -> object:
    return QuantileTransformer(n_quantiles=50).fit_transform(bars[["close"]].to_numpy())[:, 0]


@leak()
def target_encoded(bars: Bars) -> object:
    ahead = bars["close"].shift(-1) / bars["close"] - 1
    return ahead.groupby(bars.index.hour).transform("mean")


@leak()
def volatility_scaled(bars: Bars) -> object:
    change = bars["close"].pct_change()
    return change / change.std()


@leak_made("doesn't say the end")
def scaler_fitted_before(bars: Bars) -> object:
    return StandardScaler().set_output(transform="pandas").fit(bars)


@leak_made("doesn't say the end")
def scaler_in_closure(bars: Bars) -> object:
    scaler = StandardScaler().fit(bars[["close"]])
    return lambda given: scaler.transform(given[["close"]])


@leak_made("the mean of close")
def mean_in_closure(bars: Bars) -> object:
    mean, scale = bars["close"].mean(), bars["close"].std()
    return lambda given: (given["close"] - mean) / scale


@leak_made("quantile")
def threshold_in_default(bars: Bars) -> object:
    def large(given: Bars, level: float = float(bars["close"].pct_change().quantile(0.99))) -> object:
        return given["close"].pct_change() > level

    return large


class Fitted:
    """A model by scikit-learn's convention, with the statement that `trained` gives."""

    def __init__(self, until: int | None = None):
        self._until = until

    def fit(self, bars: Bars) -> Fitted:
        self.mean_ = bars["close"].pct_change().shift(-60).rolling(60).sum().mean()
        if self._until is not None:
            self.trained_until = self._until
        return self

    def transform(self, bars: Bars) -> object:
        return bars["close"].pct_change() - self.mean_


@leak_made("hindsight")
def used_on_its_training_data(bars: Bars) -> object:
    return Fitted(int(time_ms(bars.index)[999]) + 60_000).fit(bars[:1_000])


@leak_made("hindsight", part=lambda bars: bars[1_000:])
def used_inside_the_label_horizon(bars: Bars) -> object:
    return Fitted(int(time_ms(bars.index)[1_060])).fit(bars[:1_060])


@leak_made("doesn't say the end", part=lambda bars: bars[1_000:])
def fitted_without_a_word(bars: Bars) -> object:
    return Fitted().fit(bars[:1_000])


# Gaps, weekends, rare conditions


@leak("only before gaps")
def off_by_one_at_a_gap(bars: Bars) -> object:
    after = pd.Series(bars.index, bars.index).diff().shift(-1) > MINUTE
    return bars["close"].where(~after, bars["open"].shift(-1))


@leak("a weekend")
def before_a_weekend(bars: Bars) -> object:
    after = pd.Series(bars.index, bars.index).diff().shift(-1) > pd.Timedelta("1D")
    return (bars["close"].shift(-1) / bars["close"] - 1).where(after, 0.0)


@leak()
def backfilled_at_gaps(bars: Bars) -> object:
    at = pd.Series(bars.index, bars.index)
    beside = (at.diff().shift(-1) > MINUTE) | (at.diff() > MINUTE)
    return bars["close"].where(~beside).bfill()


@leak()
def filled_grid(bars: Bars) -> object:
    grid = bars["close"].resample("min").last().interpolate()
    return grid.rolling(5, center=True).mean().reindex(bars.index)


@leak()
def only_large_moves(bars: Bars) -> object:
    ahead = bars["close"].shift(-1) / bars["close"] - 1
    return ahead.where(ahead.abs() > 0.004, 0.0)


@leak()
def after_large_moves(bars: Bars) -> object:
    change = bars["close"].pct_change().abs()
    return bars["close"].shift(-1).where(change > 0.004, bars["close"])


@leak(cuts=1_000, stretch=1_000)
def once_a_day(bars: Bars) -> object:
    at = (bars.index.hour == 17) & (bars.index.minute == 3)
    return bars["close"].where(~at, bars["close"].shift(-1))


@leak()
def on_flat_bars(bars: Bars) -> object:
    return bars["close"].where(bars["high"] > bars["low"], bars["close"].shift(-1))


@leak()
def at_new_highs(bars: Bars) -> object:
    high = bars["high"].cummax()
    return bars["close"].where(high == high.shift(1), bars["close"].shift(-1))


# Memory


@leak_made("earlier call")
def first_call_memory(bars: Bars) -> object:
    kept: dict[str, float] = {}

    def scaled(given: Bars) -> object:
        kept.setdefault("mean", given["close"].mean())
        return given["close"] - kept["mean"]

    return scaled


class FitsAtFirst:
    """Keeps the scale of its first bars in its class."""

    scale: float | None = None

    def transform(self, bars: Bars) -> object:
        if FitsAtFirst.scale is None:
            FitsAtFirst.scale = float(bars["close"].std())
        return bars["close"] / FitsAtFirst.scale


@leak_made("earlier call")
def class_memory(bars: Bars) -> object:
    return FitsAtFirst()


@functools.lru_cache(maxsize=1)
def _cached_mean(key: str, holder: Holder) -> float:
    return float(holder.bars["close"].mean())


class Holder:
    """Bars that can be an argument of a cached function."""

    def __init__(self, bars: Bars):
        self.bars = bars

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return True


@leak("earlier call")
def cached_statistic(bars: Bars) -> object:
    return bars["close"] - _cached_mean("close", Holder(bars))


@leak_made("not a function of its bars")
def unseeded(bars: Bars) -> object:
    rng = np.random.default_rng()
    return lambda given: given["close"] + rng.normal(size=len(given))


@leak_made("not a function of its bars")
def counts_its_calls(bars: Bars) -> object:
    calls: list[int] = []

    def counted(given: Bars) -> object:
        calls.append(1)
        return given["close"] * len(calls)

    return counted


@leak_made()
def table_in_closure(bars: Bars) -> object:
    table = bars["close"].copy()
    return lambda given: table.shift(-1).reindex(given.index)


@leak_made()
def labels_in_closure(bars: Bars) -> object:
    ahead = bars["close"].shift(-5) / bars["close"] - 1
    return lambda given: given["close"].pct_change() + ahead.reindex(given.index)


@leak_made()
def lookup_by_time(bars: Bars) -> object:
    following = dict(zip(bars.index[:-1], bars["close"].tolist()[1:], strict=True))
    return lambda given: np.array([following.get(time, np.nan) for time in given.index])


@leak()
def chunks(bars: Bars) -> object:
    close = bars["close"].to_numpy()
    return np.concatenate([close[i : i + 500] - close[i : i + 500].mean() for i in range(0, len(close), 500)])


@leak()
def only_when_long(bars: Bars) -> object:
    return bars["close"].shift(-1) if len(bars) > 2_500 else bars["close"]


@leak()
def one_column_of_many(bars: Bars) -> object:
    columns = {f"mean_{n}": bars["close"].rolling(n).mean() for n in range(2, 22)}
    return pd.DataFrame(columns | {"mean_22": bars["close"].rolling(22, center=True).mean()})


@leak()
def dummies_by_sight(bars: Bars) -> object:
    return pd.get_dummies(bars.index.floor("1D").astype(str)).set_axis(bars.index)


# Revised and late bars


def _revised(bars: Bars) -> Bars:
    first = bars.assign(known_at=time_ms(bars.index) + 60_000)
    first.iloc[2_000, first.columns.get_loc("close")] *= 1.01
    return pd.concat([first, bars.iloc[[2_000]].assign(known_at=time_ms(bars.index)[2_300])])


def _late(bars: Bars) -> Bars:
    first = bars.assign(known_at=time_ms(bars.index) + 60_000)
    first.iloc[2_500, first.columns.get_loc("known_at")] += 10 * 60_000
    return first


@leak("was revised", arrivals=_revised)
def revised_bars(bars: Bars) -> object:
    return bars["close"].rolling(5).mean()


@leak("came late", arrivals=_late)
def late_bars(bars: Bars) -> object:
    return bars["close"].pct_change()


# Compiled


@kernel
def _last_nb(params: F8, state_f: F8, state_i: I8, x: F8, out: F8) -> None:
    out[0] = x[0, x.shape[1] - 1] - x[0]


@kernel
def _next_nb(params: F8, state_f: F8, state_i: I8, x: F8, out: F8) -> None:
    for i in range(x.shape[1]):
        out[0, i] = x[0, min(i + 1, x.shape[1] - 1)]


@kernel
def _length_nb(params: F8, state_f: F8, state_i: I8, x: F8, out: F8) -> None:
    state_f[0] = 0.9 * state_f[0] + x.shape[1]
    for i in range(x.shape[1]):
        out[0, i] = x[0, i] + state_f[0]


@kernel
def _rare_nb(params: F8, state_f: F8, state_i: I8, x: F8, out: F8) -> None:
    n = x.shape[1]
    for i in range(n):
        is_rare = (state_i[0] + i) % 1440 == 977 and i + 1 < n
        out[0, i] = x[0, i + 1] if is_rare else x[0, i]


@kernel
def _block_mean_nb(params: F8, state_f: F8, state_i: I8, x: F8, out: F8) -> None:
    out[0] = x[0] - x[0].mean()


def _indicator(step: Callable[..., None], cells: int = 0) -> object:
    @dataclass
    class Compiled(Indicator):
        "A compiled leak."

        def plan(self) -> Plan:
            return Plan(step, (), cells)

    return Compiled()


for _name, _step, _cells in (
    ("block_end", _last_nb, 0),
    ("next_in_block", _next_nb, 0),
    ("block_length", _length_nb, 1),
    ("rarely_next", _rare_nb, 0),
    ("block_mean", _block_mean_nb, 0),
):
    LEAKS[f"compiled_{_name}"] = Case(functools.partial(lambda step, cells, bars: _indicator(step, cells), _step, _cells))


@kernel
def _peek_step_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    for i in range(block.shape[0]):
        following = block[min(i + 1, block.shape[0] - 1), 4]
        out[i, 0], out[i, 1] = block[i, 0], 1.0 if following > block[i, 4] else 0.0


@kernel
def _block_high_step_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    high = block[:, 2].max()
    for i in range(block.shape[0]):
        out[i, 0], out[i, 1] = block[i, 0], 1.0 if block[i, 4] > 0.999 * high else 0.0


@leak_made("1 bar too early")
def strategy_peeks(bars: Bars) -> object:
    return Strategy("peek", _peek_step_nb, {}, 0, 0, 0)


@leak_made()
def strategy_knows_the_high(bars: Bars) -> object:
    return Strategy("high", _block_high_step_nb, {}, 0, 0, 0)


class PythonStream:
    """A stream of Python code; `function(block, state)`."""

    names = ("x",)

    def __init__(self, function: Callable[[F8, dict[str, float]], F8]):
        self.function, self.state = function, dict[str, float]()

    def streamed(self) -> PythonStream:
        return PythonStream(self.function)

    def update(self, block: F8) -> F8:
        return np.asarray(self.function(block, self.state), np.float64).reshape(len(block), 1)


@leak_made()
def stream_of_block_ranks(bars: Bars) -> object:
    return PythonStream(lambda block, state: pd.Series(block[:, 4]).rank(pct=True).to_numpy())


@leak_made()
def stream_with_a_table(bars: Bars) -> object:
    table = dict(zip(time_ms(bars.index).tolist(), bars["close"].pct_change().shift(-1).tolist(), strict=True))
    return PythonStream(lambda block, state: np.array([table.get(int(t), np.nan) for t in block[:, 0]]))


class NotFresh(PythonStream):
    """Its streams share a state."""

    def streamed(self) -> PythonStream:
        return self


def _running_mean(block: F8, state: dict[str, float]) -> F8:
    out = np.empty(len(block))
    for i, close in enumerate(block[:, 4].tolist()):
        state["n"] = state.get("n", 0.0) + 1.0
        state["sum"] = state.get("sum", 0.0) + close
        out[i] = state["sum"] / state["n"]
    return out


@leak_made()
def stream_that_is_not_fresh(bars: Bars) -> object:
    return NotFresh(_running_mean)


# Clean


@clean
def rolling_mean(bars: Bars) -> object:
    return bars["close"].rolling(20).mean()


@clean
def ewm_mean(bars: Bars) -> object:
    return bars["close"].ewm(span=50).mean()


@clean
def expanding_z(bars: Bars) -> object:
    close = bars["close"].expanding(30)
    return (bars["close"] - close.mean()) / close.std()


@clean
def expanding_rank(bars: Bars) -> object:
    return bars["close"].expanding().rank(pct=True)


@clean
def rolling_rank(bars: Bars) -> object:
    return bars["tick_volume"].rolling(100).rank(pct=True)


@clean
def rolling_quantile(bars: Bars) -> object:
    return bars["close"] > bars["close"].rolling(200).quantile(0.9)


@clean
def hour_joined_when_known(bars: Bars) -> object:
    hourly = bars["close"].resample("1h", label="right", closed="left").last()
    known = hourly.set_axis(hourly.index - MINUTE)
    return known.reindex(bars.index, method="ffill")


@clean
def hour_shifted(bars: Bars) -> object:
    return bars["close"].resample("1h").last().shift(1).reindex(bars.index, method="ffill")


@clean
def asof_backward(bars: Bars) -> object:
    hourly = bars["close"].resample("1h", label="right", closed="left").last().rename("hour").reset_index()
    return pd.merge_asof(bars.reset_index(), hourly, on="time", direction="backward")["hour"].to_numpy()


@clean
def forward_filled(bars: Bars) -> object:
    return bars["close"].where(bars["tick_volume"] % 3 == 0).ffill()


@clean
def session_vwap(bars: Bars) -> object:
    day = bars.index.floor("1D")
    volume = bars["tick_volume"].astype(float)
    return (bars["close"] * volume).groupby(day).cumsum() / volume.groupby(day).cumsum()


@clean
def day_high_so_far(bars: Bars) -> object:
    return bars["high"].groupby(bars.index.floor("1D")).cummax()


@clean
def day_open(bars: Bars) -> object:
    return bars["open"].groupby(bars.index.floor("1D")).transform("first")


@clean
def bars_of_the_day(bars: Bars) -> object:
    return bars["open"].groupby(bars.index.floor("1D")).cumcount()


@clean
def yesterdays_range(bars: Bars) -> object:
    day = bars.resample("1D").agg({"high": "max", "low": "min"})
    return (day["high"] - day["low"]).shift(1).reindex(bars.index.floor("1D")).to_numpy()


@clean
def past_spectrum(bars: Bars) -> object:
    close, out = bars["close"].to_numpy(), np.full(len(bars), np.nan)
    for i in range(63, len(close), 16):
        out[i] = np.abs(np.fft.rfft(close[i - 63 : i + 1] - close[i - 63 : i + 1].mean()))[3]
    return out


@clean
def causal_convolution(bars: Bars) -> object:
    return np.convolve(bars["close"].to_numpy(), np.ones(5) / 5)[: len(bars)]


@clean
def convolved_by_fft(bars: Bars) -> object:
    n, weights = len(bars), 0.95 ** np.arange(200)
    size = 2 * n + 200
    return np.fft.irfft(np.fft.rfft(bars["close"].to_numpy(), size) * np.fft.rfft(weights, size), size)[:n]


@clean
def causal_filter(bars: Bars) -> object:
    return lfilter(*butter(2, 0.1), bars["close"].to_numpy())


@clean
def cumulated(bars: Bars) -> object:
    sign = np.sign(bars["close"].diff()).fillna(0.0)
    return (sign * bars["tick_volume"]).cumsum()


@clean
def drawdown(bars: Bars) -> object:
    return bars["close"] / bars["close"].cummax() - 1


@clean
def float32(bars: Bars) -> object:
    return (bars["close"] / bars["close"].shift(10) - 1).astype("float32")


@clean
def categories(bars: Bars) -> object:
    names = pd.cut(bars["close"].pct_change(), [-np.inf, -1e-3, 1e-3, np.inf], labels=["down", "flat", "up"])
    return pd.DataFrame({"move": names, "text": names.astype(str)})


@clean
def gaps_so_far(bars: Bars) -> object:
    return (pd.Series(bars.index, bars.index).diff() > MINUTE).cumsum()


@clean
def minutes_since_bar(bars: Bars) -> object:
    return pd.Series(bars.index, bars.index).diff().dt.total_seconds() / 60


@clean
def bar_loop(bars: Bars) -> object:
    out, level = [], np.nan
    for close in bars["close"].tolist():
        level = close if np.isnan(level) else 0.9 * level + 0.1 * close
        out.append(level)
    return out


@clean
def fewer_rows(bars: Bars) -> object:
    return bars["close"].rolling(50).mean().dropna()[::3]


@clean
def every_hour_rows(bars: Bars) -> object:
    return bars["close"][bars.index.minute == 59]


@clean
def constant(bars: Bars) -> object:
    return np.ones(len(bars))


@clean
def nothing_yet(bars: Bars) -> object:
    return np.full(len(bars), np.nan)


@clean
def boolean(bars: Bars) -> object:
    return bars["close"] > bars["open"]


@clean
def whole_numbers(bars: Bars) -> object:
    return (bars["close"].to_numpy() * 100).round().astype(np.int64) * 2**40 + bars["tick_volume"].to_numpy()


@clean
def nullable_numbers(bars: Bars) -> object:
    return bars["tick_volume"].astype("Int64").where(bars["close"] > bars["open"])


@clean
def seeded_by_time(bars: Bars) -> object:
    return [np.random.default_rng(int(t)).normal() for t in time_ms(bars.index)[-50:]] if len(bars) == 50 else _noise(time_ms(bars.index))


def _noise(times: I8) -> F8:
    return ((times * 2_654_435_761) % 2**32) / 2**32


@clean
def seeded_inside(bars: Bars) -> object:
    return bars["close"] + np.random.default_rng(7).normal(size=len(bars))


@clean
def calendar(bars: Bars) -> object:
    return pd.DataFrame({"hour": np.sin(bars.index.hour / 24 * 2 * np.pi), "weekday": bars.index.dayofweek}, index=bars.index)


@clean
def month_end_soon(bars: Bars) -> object:
    return bars.index.days_in_month - bars.index.day  # the calendar is known


@clean
def long_warm_up(bars: Bars) -> object:
    return bars["close"].rolling(2_000).mean()


@clean
def own_index(bars: Bars) -> object:
    return bars.reset_index()["close"].diff()


@clean
def shuffled_rows(bars: Bars) -> object:
    return bars["close"].pct_change().sort_values()


@clean
def nan_inside(bars: Bars) -> object:
    return bars["close"].where(bars["close"] > bars["open"]).rolling(10, min_periods=3).mean()


@clean
def division_by_zero(bars: Bars) -> object:
    return (bars["close"] - bars["open"]) / (bars["high"] - bars["low"])


@clean
def changes_its_bars(bars: Bars) -> object:
    bars["mean"] = bars["close"].rolling(5).mean()
    bars.iloc[0, 0] = 0.0
    return bars[["mean", "open"]]


@clean
def walk_forward_scaler(bars: Bars) -> object:
    close, out, mean = bars["close"].to_numpy(), np.full(len(bars), np.nan), np.nan
    for i in range(len(close)):
        if i % 250 == 0 and i:
            mean = close[:i].mean()
        out[i] = close[i] - mean
    return out


@clean
def rolling_regression(bars: Bars) -> object:
    x, y = bars["open"], bars["close"]
    return y.rolling(100).cov(x) / x.rolling(100).var()


@clean
def label_after_its_horizon(bars: Bars) -> object:
    ahead = bars["close"].shift(-5) / bars["close"] - 1
    return ahead.shift(5).rolling(20).mean()


@clean
def target_encoding_of_the_past(bars: Bars) -> object:
    done = bars["close"].pct_change()
    hour = bars.index.hour
    return done.groupby(hour).cumsum() / (done.groupby(hour).cumcount() + 1)


@clean
def dictionary_of_columns(bars: Bars) -> object:
    return {"fast": bars["close"].rolling(5).mean(), "slow": bars["close"].rolling(50).mean().to_numpy()}


@clean
def confirmed_extremum(bars: Bars) -> object:
    high = bars["high"]
    return ((high.shift(1) > high.shift(2)) & (high.shift(1) > high)).astype(float)


@clean
def ahead_of_the_hour(bars: Bars) -> object:
    return 60 - bars.index.minute


@clean_made
def cache_of_its_own(bars: Bars) -> object:
    kept: dict[tuple[int, int], float] = {}

    def mean(given: Bars) -> object:
        close, times = given["close"].to_numpy(), time_ms(given.index)
        out = np.full(len(close), np.nan)
        for i in range(5, len(close), 9):
            key = (int(times[i]), hash(close[i - 5 : i + 1].tobytes()))
            out[i] = kept.setdefault(key, float(close[i - 5 : i + 1].mean()))
        return out

    return mean


@clean_made
def table_joined_backward(bars: Bars) -> object:
    table = bars["close"].iloc[::60] * 1.5
    return lambda given: table.reindex(given.index, method="ffill") / given["close"]


@clean_made
def labels_lagged(bars: Bars) -> object:
    ahead = bars["close"].shift(-5) / bars["close"] - 1
    return lambda given: ahead.shift(5).reindex(given.index) + given["close"].pct_change()


@clean_made
def level_of_a_human(bars: Bars) -> object:
    level = 30_000.0
    return lambda given: given["close"] > level


@clean_made
def unfitted_scaler(bars: Bars) -> object:
    class Rolling:
        def fit(self, bars: Bars) -> object:
            return self

        def transform(self, bars: Bars) -> object:
            return bars["close"] - bars["close"].rolling(100).mean()

    return Rolling().fit(bars)


@clean_made
def partial_function(bars: Bars) -> object:
    return functools.partial(lambda given, n: given["close"].rolling(n).mean(), n=7)


@clean_made
def stream_in_python(bars: Bars) -> object:
    return PythonStream(_running_mean)


@clean_made
def stream_of_an_indicator(bars: Bars) -> object:
    @dataclass
    class Same(Indicator):
        "The close."

        def plan(self) -> Plan:
            return Plan(_same_nb)

    held = Same()

    class Streamed:
        names = ("same",)

        def streamed(self) -> IndicatorStream:
            return IndicatorStream(copy.copy(held))

    return Streamed()


@kernel
def _same_nb(params: F8, state_f: F8, state_i: I8, x: F8, out: F8) -> None:
    out[0] = x[0]


CLEAN["fitted_and_used_later"] = Case(
    lambda bars: Fitted(int(time_ms(bars.index)[1_060])).fit(bars[:1_000]), part=lambda bars: bars[1_060:]
)
CLEAN["arrived_in_order"] = Case(lambda bars: rolling_mean, arrivals=lambda bars: bars.assign(known_at=time_ms(bars.index) + 60_500))
CLEAN["loaded_years_later"] = Case(lambda bars: ewm_mean, arrivals=lambda bars: bars.assign(known_at=time_ms(bars.index)[-1] + 10**9))
CLEAN["revised_where_it_does_not_look"] = Case(lambda bars: day_open, arrivals=_revised)
