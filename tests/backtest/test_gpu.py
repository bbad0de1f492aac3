"""Sweeps on a GPU against those on the CPU: in the CUDA simulator, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import cuda
from test_sweep import FAST, LEVEL, RSI, SLOWER, SMA, market

from btcbot.backtest.rules import Above, Below, Crosses, RuleStrategy
from btcbot.backtest.simple import SimpleAccount
from btcbot.backtest.sweep import sweep

RULES = RuleStrategy(Crosses(SMA, SLOWER) & Above(RSI, LEVEL), Below(SMA, SLOWER), timeframe="M5")


def compare(n: int, fast: range, side: str) -> str:
    """Sweep on both devices, demand equal bytes, and return the tier that ran on the GPU."""
    bars, grid = market(3, n, 5, 1.0), {FAST.name: fast, SLOWER["sma"]["n"].name: [10, 20], LEVEL.name: [40.0, 50.0]}
    rules = RuleStrategy(RULES.entry, RULES.exit, side, timeframe="M5")
    on_cpu, on_gpu = (sweep(rules, grid, bars, account=SimpleAccount(), device=device, workers=1) for device in ("cpu", "gpu"))
    assert on_cpu.figures["trades"].max() > 0
    assert on_cpu.figures.to_numpy().tobytes() == on_gpu.figures.to_numpy().tobytes()
    assert on_cpu.moments.tobytes() == on_gpu.moments.tobytes()
    return on_gpu.tier


def test_a_simulated_gpu_gives_the_same_bytes() -> None:
    """The simulator has to be chosen before numba is loaded, and runs kernels as plain Python."""
    program = "import test_gpu; [print(test_gpu.compare(300, range(2, 4), side)) for side in ('long', 'both')]"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    paths = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["comparison rules on a simple account, on a GPU"] * 2


@pytest.mark.jit
@pytest.mark.parametrize("side", ["long", "short", "both"])
def test_a_gpu_gives_the_same_bytes(side: str) -> None:
    """Every operation is IEEE's on both, since nothing is fused."""
    if not cuda.is_available():
        pytest.skip("no NVIDIA GPU with its driver here")
    compare(20_000, range(2, 60), side)
