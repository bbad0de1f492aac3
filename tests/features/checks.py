"""What every indicator promises, as checks that take a factory of fresh ones: `lambda: Rsi(14)`."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.testing import assert_array_equal
from numpy.typing import ArrayLike, NDArray

from btcbot.core.jit import F8
from btcbot.features.indicator import NEVER, Indicator

Factory = Callable[[], Indicator]
Columns = Sequence[NDArray[np.float64] | NDArray[np.int64]]
SPLIT = (1, 2, 256, 1, 100, 3, 257, 64, 5)  # block lengths, repeated as long as there are bars
MINUTE_MS, START_MS = 60_000, 1_704_067_200_000  # 2024-01-01 UTC


def market(n: int, seed: int = 1, price: float = 30_000.0) -> dict[str, F8 | NDArray[np.int64]]:
    """Return `n` one-minute bars by column: prices to the cent, jumps, minutes and weekends without a bar, bars of one tick."""
    rng = np.random.default_rng(seed)
    moves = rng.standard_t(4, size=(n, 8)) * 1e-4 * np.exp(0.5 * np.sin(np.arange(n) / 200.0))[:, None]
    moves[:, 0] += np.where(rng.random(n) < 0.01, rng.normal(size=n) * 5e-3, 0.0)  # a jump comes before the first tick
    moves[rng.random(n) < 0.02, 1:] = 0.0  # one tick
    ticks = np.round(price * np.exp(moves.ravel().cumsum()).reshape(n, 8), 2)
    day = 1440
    minutes = np.arange(4 * n + 10 * day)
    is_open = (minutes // day % 7 < 5) & (rng.random(len(minutes)) < 0.97)
    return {
        "time": START_MS + MINUTE_MS * minutes[is_open][:n].astype(np.int64),
        "open": ticks[:, 0].copy(),
        "high": ticks.max(axis=1),
        "low": ticks.min(axis=1),
        "close": ticks[:, -1].copy(),
        "volume": 1.0 + rng.poisson(rng.gamma(2.0, 40.0, n)),
        "spread": np.round(rng.gamma(4.0, 40.0, n)),
    }


def columns(make: Factory, bars: dict[str, F8 | NDArray[np.int64]]) -> list[F8 | NDArray[np.int64]]:
    """Return the columns of `bars` that the indicator takes, in its order."""
    return [bars[name] for name in make().inputs]


def run(make: Factory, inputs: Columns) -> F8:
    """Return the outputs of a fresh indicator over whole arrays, shape (outputs, n)."""
    return np.atleast_2d(make().extend(*inputs))


def check_warm_up(make: Factory, inputs: Columns) -> None:
    """Exactly the first `warm_up` outputs are NaN, in all rows."""
    out, cold = run(make, inputs), make().warm_up
    assert out.shape[1] > cold, "give more bars"
    assert np.isnan(out[:, :cold]).all()
    assert np.isfinite(out[:, cold:]).all(), f"not finite at (output, bar after warm-up) {np.argwhere(~np.isfinite(out[:, cold:]))[:5]}"


def check_stream(make: Factory, inputs: Columns, sizes: Sequence[int] = SPLIT, bar_by_bar: int = 700) -> None:
    """Batch = any split = bar by bar = across a saved state, bit for bit."""
    whole = run(make, inputs)
    parts, start, k, indicator = [], 0, 0, make()
    while start < len(inputs[0]):
        stop = start + sizes[k % len(sizes)]
        parts.append(np.atleast_2d(indicator.extend(*(x[start:stop] for x in inputs))))
        if k == 2:  # goes on in a fresh one
            saved, indicator = indicator.state, make()
            indicator.state = saved
        start, k = stop, k + 1
    assert_array_equal(np.concatenate(parts, axis=1), whole)
    indicator = make()
    streamed = [indicator.update(*bar) for bar in zip(*(x[:bar_by_bar].tolist() for x in inputs), strict=True)]
    assert_array_equal(np.array(streamed).reshape(-1, len(whole)).T, whole[:, :bar_by_bar])
    assert_array_equal(np.atleast_2d(make().extend(*inputs, block=7)), whole)


def check_later_start(make: Factory, inputs: Columns, cuts: Sequence[int] = (1, 77, 300)) -> None:
    """A history that starts later gives the same bits once `convergence` bars are known."""
    convergence = make().convergence
    assert convergence < NEVER
    whole, same = run(make, inputs), max(convergence - 1, make().warm_up)
    for cut in cuts:
        assert whole.shape[1] > cut + same, "give more bars"
        assert_array_equal(run(make, [x[cut:] for x in inputs])[:, same:], whole[:, cut + same :])


def check_nan(make: Factory, inputs: Columns, at: int | None = None, is_tight: bool = True) -> None:
    """A NaN in any column: outputs are NaN or unchanged, never something else, and all is forgotten after `convergence` bars.

    `is_tight`: some column's NaN is still seen at the last of these bars, so the stated convergence is not too long.
    """
    whole, last = run(make, inputs), 0
    at = make().warm_up + 50 if at is None else at
    convergence = make().convergence
    assert whole.shape[1] > at + convergence, "give more bars"
    for j in range(len(inputs)):
        broken = [np.array(x, np.float64) for x in inputs]
        broken[j][at] = np.nan
        out = run(make, broken)
        assert np.isnan(out[:, at]).any(), f"input {j}: a NaN is swallowed"
        lost = np.isnan(out) & ~np.isnan(whole)
        assert_array_equal(np.where(lost, whole, out), whole)
        assert not lost[:, :at].any()
        assert not lost[:, at + convergence :].any(), f"input {j}: remembered for {np.flatnonzero(lost.any(axis=0)).max() - at + 1} bars"
        last = max(last, int(np.flatnonzero(lost.any(axis=0)).max()) - at + 1)
    assert not is_tight or last == convergence, f"forgotten after {last} bars, not {convergence}"


def check_edges(make: Factory, inputs: Columns) -> None:
    """No bar, one bar, nothing but NaN, NaN before the first bar."""
    rows, whole = max(len(make().outputs), 1), run(make, inputs)
    assert run(make, [x[:0] for x in inputs]).shape == (rows, 0)
    assert_array_equal(run(make, [x[:1] for x in inputs]), whole[:, :1])
    assert np.isnan(run(make, [np.full(300, np.nan)] * len(inputs))).all()
    for lead in (1, 40, 300):
        late = [np.concatenate([np.full(lead, np.nan), x]) for x in inputs]
        assert_array_equal(run(make, late), np.concatenate([np.full((rows, lead), np.nan), whole], axis=1))


def check_all(make: Factory, inputs: Columns, is_tight: bool = True) -> None:
    """Check all of the above, for an indicator that states an exact convergence and is always finite on real bars."""
    check_warm_up(make, inputs)
    check_stream(make, inputs)
    check_later_start(make, inputs)
    check_nan(make, inputs, is_tight=is_tight)
    check_edges(make, inputs)


def check_reference(
    make: Factory, inputs: Columns, expected: Sequence[ArrayLike], after: int | None = None, rtol: float = 1e-9, scale: float = 0.0
) -> None:
    """From bar `after` on (default: max of warm-up and convergence) the outputs are `expected`, relative to their size or to `scale`."""
    out = run(make, inputs)
    after = max(make().warm_up, make().convergence) if after is None else after
    assert len(expected) == len(out)
    assert out.shape[1] > after, "give more bars"
    for k, (row, reference) in enumerate(zip(out, expected, strict=True)):
        wanted = np.asarray(reference, np.float64)[after:]
        gap = np.abs(row[after:] - wanted) / np.maximum(np.abs(wanted), scale if scale else np.abs(wanted).mean())
        assert np.isfinite(wanted).all(), f"output {k}: the reference is not finite"
        assert np.nanmax(gap) <= rtol and np.isfinite(gap).all(), f"output {k}: off by {np.nanmax(gap):.2e} at {after + np.nanargmax(gap)}"
