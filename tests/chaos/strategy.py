"""A strategy that does everything within an hour: opens, adds, takes off, turns round, trails its stop, and is flat for a while."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from btcbot.core.errors import BtcbotError
from btcbot.core.jit import F8, I8, kernel
from btcbot.data.certificates import CertificateFile
from btcbot.engine.lots import SCALED, SIZE_LOTS
from btcbot.engine.risk import SIZE, SIZE_RULE, STOP, TAKE_PROFIT, TARGET_ID, TARGET_SIDE, TRAILING
from btcbot.features.causality import certify
from btcbot.market.bars import CLOSE, TIME
from btcbot.market.clock import ServerClock, to_utc
from btcbot.strategies.base import Strategy
from btcbot.terminal.contract import Tick
from tests.faults.processes import market

PHASE_MS = 120_000
CYCLE = (1, 3, 2, -2, -1, 0)  # signed size of each phase, in units; from flat to flat in 12 minutes


@kernel
def pulse_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    """Hold so many units in each phase; a stop at a share of the price, which follows it in every other phase."""
    for i in range(block.shape[0]):
        phase = int(block[i, TIME]) // PHASE_MS
        units, distance = CYCLE[phase % len(CYCLE)], params[1] * block[i, CLOSE]
        out[i, TARGET_ID], out[i, TARGET_SIDE] = phase, (units > 0) - (units < 0)
        out[i, SIZE_RULE], out[i, SIZE] = SCALED + SIZE_LOTS, params[0] * abs(units)
        out[i, STOP], out[i, TAKE_PROFIT] = distance, 3.0 * distance
        out[i, TRAILING] = 0.8 * distance if phase % 2 else np.nan  # where nothing is trailed, a stop that is lost stays lost


def pulse(unit: float = 0.1, stop: float = 0.004) -> Strategy:
    """Return the strategy; `unit` in lots, `stop` a share of the price."""
    return Strategy("pulse", pulse_nb, {"unit": unit, "stop": stop}, n_float=0, n_int=0, warm_up=0)


def past(bars: pd.DataFrame, tick: Tick | None, clock: ServerClock) -> pd.DataFrame:
    """Return the bars that have closed by the server's clock, right or wrong: the history that a trader asks for."""
    if tick is None:
        raise BtcbotError("The terminal has no quote.")
    now = int(to_utc(clock, tick.time_msc, "earliest")) // 60_000 * 60_000
    return bars[bars.index < pd.Timestamp(now, unit="ms", tz="UTC")]


def held(utc_ms: int) -> tuple[int, int]:
    """Return side and units that the strategy wants at a moment, after the bar that closed then."""
    units = CYCLE[(utc_ms // 60_000 * 60_000 - 60_000) // PHASE_MS % len(CYCLE)]
    return (units > 0) - (units < 0), abs(units)


def certified(stop: float = 0.004) -> tuple[Strategy, CertificateFile]:
    """Return the strategy and a file with its certificate, which this process has opened."""
    return pulse(stop=stop), _opened(stop, os.getpid())


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="chaos-")


@functools.cache
def _written(stop: float) -> Path:
    path = Path(_folder().name) / f"{stop}.sqlite"
    with CertificateFile(path) as file:
        file.save(certify(pulse(stop=stop), market(), cuts=20, stretch=30))
    return path


@functools.cache
def _opened(stop: float, pid: int) -> CertificateFile:
    return CertificateFile(_written(stop))
