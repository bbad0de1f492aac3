"""A stand-in for the package, for a worker process: it hangs, keeps the interpreter's lock, or dies where a test says so."""

import ctypes
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

STARTED = Path(os.environ["FAKE_MT5_FOLDER"])
(STARTED / f"{os.getpid()}").touch()
error = (1, "Success")
is_open = False
if os.environ.get("FAKE_MT5_SIMULATED"):
    profile = SimpleNamespace(clock="UTC")
RATES = np.dtype(
    [(name, "<f8" if name in ("open", "high", "low", "close") else "<i8") for name in ("time", "open", "high", "low", "close")]
    + [("tick_volume", "<u8"), ("spread", "<i4"), ("real_volume", "<u8")]
)


def initialize(*arguments: object, **options: object) -> bool:
    """Connect, unless the file `refuse` is there."""
    global is_open, error
    is_open = not (STARTED / "refuse").exists()
    error = (1, "Success") if is_open else (-10005, "IPC timeout")
    return is_open


def shutdown() -> bool:
    """Disconnect."""
    global is_open
    is_open = False
    return True


def last_error() -> tuple[int, str]:
    """Return the error of the last call."""
    return error


def symbols_total() -> int | None:
    """Return a number while connected."""
    global error
    error = (1, "Success") if is_open else (-10004, "No IPC connection")
    return 7 if is_open else None


def symbol_select(what: str, enable: bool = True) -> bool:
    """Do what the symbol's name says."""
    global is_open, error
    error = (1, "Success")
    verb, _, amount = what.partition(" ")
    if verb == "sleep":
        time.sleep(float(amount))
    elif verb == "hold":  # as the package does: no other thread of this process runs meanwhile
        ctypes.PyDLL(None).usleep(int(float(amount) * 1e6))
    elif verb == "die":
        os._exit(3)
    elif verb == "close":  # the terminal was closed
        is_open, error = False, (-10001, "IPC send failed")
        return False
    elif verb == "write":
        (STARTED / amount).touch()
    return True


def copy_rates_from_pos(symbol: str, timeframe: int, start: int, count: int) -> np.ndarray:
    """Return bars."""
    rates = np.zeros(count, RATES)
    rates["close"] = np.arange(count) / 3
    return rates


for _name in (
    "account_info",
    "terminal_info",
    "positions_get",
    "orders_get",
    "history_deals_get",
    "history_orders_get",
    "symbol_info_tick",
):
    setattr(sys.modules[__name__], _name, lambda *arguments, **keywords: None)
