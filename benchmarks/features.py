"""Indicators against TA-Lib over three years of minutes, and a matrix of a hundred columns over six timeframes. Prints ratios."""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import talib

from btcbot.features import indicator
from btcbot.features import indicators as ours
from btcbot.features.engineering import FeatureEngineering
from btcbot.market.bars import bar_block
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars

ROUNDS = 7
BARS = 1_576_800
TIMEFRAMES = ("M1", "M5", "M15", "H1", "H4", "D1")


def best(*runs: Callable[[], object]) -> list[float]:
    """Return the shortest time of each, taken in turns so that a busy moment hits all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in times]


def on_one_core(run: Callable[[], object]) -> None:
    """Run without other threads."""
    with patch.object(indicator, "WORTH_S", math.inf):
        run()


def pairs(bars: pd.DataFrame) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return what both libraries define alike: ours and TA-Lib's."""
    h, low, c = (bars[name].to_numpy(np.float64) for name in ("high", "low", "close"))
    v = bars["tick_volume"].to_numpy(np.float64)
    return {
        "SMA 30": (lambda: ours.sma(c, 30), lambda: talib.SMA(c, 30)),
        "EMA 30": (lambda: ours.ema(c, 30), lambda: talib.EMA(c, 30)),
        "WMA 30": (lambda: ours.wma(c, 30), lambda: talib.WMA(c, 30)),
        "DEMA 30": (lambda: ours.dema(c, 30), lambda: talib.DEMA(c, 30)),
        "TEMA 30": (lambda: ours.tema(c, 30), lambda: talib.TEMA(c, 30)),
        "KAMA 30": (lambda: ours.kama(c, 30), lambda: talib.KAMA(c, 30)),
        "RSI 14": (lambda: ours.rsi(c, 14), lambda: talib.RSI(c, 14)),
        "STOCHRSI 14 5 3": (lambda: ours.stoch_rsi(c, 14, 5, 3), lambda: talib.STOCHRSI(c, 14, 5, 3)),
        "CMO 14": (lambda: ours.cmo(c, 14), lambda: talib.CMO(c, 14)),
        "ROC 10": (lambda: ours.roc(c, 10), lambda: talib.ROC(c, 10)),
        "MOM 10": (lambda: ours.momentum(c, 10), lambda: talib.MOM(c, 10)),
        "TRIX 30": (lambda: ours.trix(c, 30), lambda: talib.TRIX(c, 30)),
        "ULTOSC 7 14 28": (lambda: ours.ultimate_oscillator(h, low, c, 7, 14, 28), lambda: talib.ULTOSC(h, low, c, 7, 14, 28)),
        "MACD 12 26 9": (lambda: ours.macd(c, 12, 26, 9), lambda: talib.MACD(c, 12, 26, 9)),
        "PPO 12 26": (lambda: ours.ppo(c, 12, 26), lambda: talib.PPO(c, 12, 26)),
        "BBANDS 20": (lambda: ours.bollinger(c, 20), lambda: talib.BBANDS(c, 20)),
        "ATR 14": (lambda: ours.atr(h, low, c, 14), lambda: talib.ATR(h, low, c, 14)),
        "NATR 14": (lambda: ours.natr(h, low, c, 14), lambda: talib.NATR(h, low, c, 14)),
        "TRANGE": (lambda: ours.true_range(h, low, c), lambda: talib.TRANGE(h, low, c)),
        "ADX 14 with DI": (
            lambda: ours.adx(h, low, c, 14),
            lambda: (talib.ADX(h, low, c, 14), talib.PLUS_DI(h, low, c, 14), talib.MINUS_DI(h, low, c, 14)),
        ),
        "AROON 14": (lambda: ours.aroon(h, low, 14), lambda: (talib.AROON(h, low, 14), talib.AROONOSC(h, low, 14))),
        "CCI 14": (lambda: ours.cci(h, low, c, 14), lambda: talib.CCI(h, low, c, 14)),
        "WILLR 14": (lambda: ours.williams_r(h, low, c, 14), lambda: talib.WILLR(h, low, c, 14)),
        "STOCH 5 3 3": (lambda: ours.stochastic(h, low, c, 5, 3, 3), lambda: talib.STOCH(h, low, c, 5, 3, 0, 3, 0)),
        "SAR": (lambda: ours.sar(h, low), lambda: talib.SAR(h, low)),
        "OBV": (lambda: ours.obv(c, v), lambda: talib.OBV(c, v)),
        "AD": (lambda: ours.ad(h, low, c, v), lambda: talib.AD(h, low, c, v)),
        "ADOSC 3 10": (lambda: ours.chaikin_oscillator(h, low, c, v, 3, 10), lambda: talib.ADOSC(h, low, c, v, 3, 10)),
        "MFI 14": (lambda: ours.mfi(h, low, c, v, 14), lambda: talib.MFI(h, low, c, v, 14)),
        "STDDEV 20": (lambda: ours.rolling_std(c, 20), lambda: talib.STDDEV(c, 20)),
        "VAR 20": (lambda: ours.rolling_var(c, 20), lambda: talib.VAR(c, 20)),
        "MAX 30": (lambda: ours.rolling_max(c, 30), lambda: talib.MAX(c, 30)),
        "MIN 30": (lambda: ours.rolling_min(c, 30), lambda: talib.MIN(c, 30)),
        "CORREL 30": (lambda: ours.rolling_correlation(c, v, 30), lambda: talib.CORREL(c, v, 30)),
    }


def against_talib(bars: pd.DataFrame) -> None:
    """Print nanoseconds a bar for both, and the ratio: ours as users call it, on all cores, and on one. TA-Lib has one way to run."""
    together: dict[str, float] = {}
    alone: dict[str, float] = {}
    print(f"{'':18}{'ours':>8}{'1 core':>8}{'TA-Lib':>8}{'ratio':>7}{'1 core':>8}   ns a bar, best of {ROUNDS}, {len(bars):,} bars")
    for name, (run, peer) in pairs(bars).items():
        mine, one, theirs = best(run, lambda run=run: on_one_core(run), peer)
        together[name], alone[name] = mine / theirs, one / theirs
        figures = "".join(f"{taken / len(bars) * 1e9:8.2f}" for taken in (mine, one, theirs))
        print(f"{name:18}{figures}{together[name]:7.2f}{alone[name]:8.2f}")
    for ratios, what in ((together, "all cores"), (alone, "one core")):
        worst = max(ratios, key=lambda name: ratios[name])
        median = statistics.median(ratios.values())
        print(f"{what}: median ratio {median:.2f} (limit 1.0), largest {ratios[worst]:.2f} by {worst} (limit 2.0)")


def against_vectorbt(bars: pd.DataFrame) -> None:
    """Print the ratio for the indicators that vectorbt has, where it is installed."""
    try:
        import vectorbt as vbt
    except ImportError:
        print("vectorbt is not installed: not compared (pip install btcbot[vectorbt])")
        return
    h, low, c = bars["high"], bars["low"], bars["close"]
    runs = {
        "MA 30": (lambda: ours.sma(c, 30), lambda: vbt.MA.run(c, 30, ewm=False).ma),
        "MSTD 20": (lambda: ours.rolling_std(c, 20), lambda: vbt.MSTD.run(c, 20).mstd),
        "RSI 14": (lambda: ours.rsi(c, 14), lambda: vbt.RSI.run(c, 14, ewm=True).rsi),
        "ATR 14": (lambda: ours.atr(h, low, c, 14), lambda: vbt.ATR.run(h, low, c, 14, ewm=True).atr),
        "MACD 12 26 9": (lambda: ours.macd(c, 12, 26, 9), lambda: vbt.MACD.run(c, 12, 26, 9, macd_ewm=True, signal_ewm=True).hist),
    }
    for name, (mine, theirs) in runs.items():
        taken = best(mine, theirs)
        print(f"{name:18}{taken[0] / len(bars) * 1e9:8.2f}{taken[1] / len(bars) * 1e9:8.2f}{taken[0] / taken[1]:7.2f}   against vectorbt")


def hundred() -> list[dict[str, Any]]:
    """Return specifications of at least a hundred columns over six timeframes."""
    each: Sequence[dict[str, Any]] = (
        {"sma": {"n": 20}},
        {"ema": {"n": 50}},
        {"rsi": {"n": 14}},
        {"macd": {}},
        {"bollinger": {"n": 20}},
        {"atr": {"n": 14}},
        {"adx": {"n": 14}},
        {"stochastic": {}},
        {"rolling_zscore": {"n": 100}},
        {"log_return": {"n": 5}},
    )
    return [spec | ({} if timeframe == "M1" else {"on": timeframe}) for timeframe in TIMEFRAMES for spec in each]


def matrix(bars: pd.DataFrame) -> None:
    """Print the time and memory of the matrix, and the time of one live update of its columns."""
    engineering = FeatureEngineering(hundred())
    columns = engineering.transform(bars.iloc[:20_000]).shape[1]
    start = time.perf_counter()
    # A virtual machine may have to ask its host for memory, which can take longer than the whole run: that is timed here, and freed for it.
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.full({columns * len(bars)}, 1.0)"], check=True)
    supply = time.perf_counter() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time(), time.perf_counter()
    frame = engineering.transform(bars)
    cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    size = frame.to_numpy().nbytes
    print(
        f"{frame.shape[1]} columns over {len(TIMEFRAMES)} timeframes, {len(bars):,} bars: {wall:.2f} s, {cpu:.2f} s of one core (limit 4), "
        f"{cpu / frame.size * 1e9:.1f} ns a value; memory {grown / size:.2f} x the result (limit 1.5); "
        f"filling so much new memory with ones took {supply:.2f} s before"
    )
    block = bar_block(bars.iloc[:22_000])
    live = FeatureEngineering(hundred())
    live.update(block[:20_000])
    taken = []
    for i in range(20_000, len(block)):
        started = time.perf_counter()
        live.update(block[i : i + 1])
        taken.append(time.perf_counter() - started)
    ordered = sorted(taken)
    median, tail = statistics.median(taken) * 1e6, ordered[int(0.99 * len(ordered))] * 1e6
    print(f"one live update: median {median:.0f} us (limit 200), 99 % under {tail:.0f} us")


def main() -> None:
    """Run all of it."""
    bars = synthetic_bars(seed=1, start_ms=utc_ms("2021-01-01"), end_ms=utc_ms("2021-01-01") + BARS * 60_000)
    against_talib(bars)
    against_vectorbt(bars)
    long = synthetic_bars(seed=2, start_ms=utc_ms("2019-01-01"), end_ms=utc_ms("2019-01-01") + 2_290_000 * 60_000)
    matrix(long)


if __name__ == "__main__":
    main()
