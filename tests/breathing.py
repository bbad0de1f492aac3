"""A strategy that always asks for another size."""

from __future__ import annotations

from btcbot.core.jit import F8, I8, kernel
from btcbot.engine.lots import SCALED, SIZE_RISK
from btcbot.engine.risk import BREAK_EVEN, SIZE, SIZE_RULE, STOP, TAKE_PROFIT, TARGET_ID, TARGET_SIDE, TIME_LIMIT, TRAILING
from btcbot.market.bars import CLOSE, TIME
from btcbot.strategies.base import Strategy


@kernel
def breathing_nb(params: F8, state_f: F8, state_i: I8, block: F8, out: F8) -> None:
    """Hold one to four times a share at risk, another each half hour; the other side each five hours; nothing for half an hour a day."""
    for i in range(block.shape[0]):
        phase, distance = int(block[i, TIME]) // 1_800_000, params[1] * block[i, CLOSE]
        out[i, TARGET_ID], out[i, TARGET_SIDE] = phase, 0 if phase % 48 == 47 else 1 if phase // 10 % 2 == 0 else -1
        out[i, SIZE_RULE], out[i, SIZE] = SCALED + SIZE_RISK, params[0] * (1 + phase * 7 % 4)
        out[i, STOP], out[i, TAKE_PROFIT], out[i, TRAILING], out[i, BREAK_EVEN] = distance, 2 * distance, 1.5 * distance, distance
        out[i, TIME_LIMIT] = 12_000_000.0


def breathing(risk: float = 0.001, stop: float = 0.006) -> Strategy:
    """Return the strategy; `stop` is a share of the price."""
    return Strategy("breathing", breathing_nb, {"risk": risk, "stop": stop}, n_float=0, n_int=0, warm_up=0)
