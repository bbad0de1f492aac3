"""XGBoost walk-forward over two million bars and 60 features: 5 folds of 200 rounds, depth 6. Prints time and peak memory."""

from __future__ import annotations

import os
import resource
import sys
import time

import numpy as np

from btcbot.features.engineering import FeatureEngineering
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars
from btcbot.models.forward import walk_forward
from btcbot.models.labels import meta_labels
from btcbot.models.pipeline import MLPipeline
from btcbot.models.splits import WalkForward

BARS = 2_000_000
LENGTHS = (5, 8, 12, 20, 30, 50, 80, 120, 200, 300)
KINDS = ("rsi", "roc", "natr", "rolling_zscore", "cci", "williams_r")


def main() -> None:
    """Label every bar by whether following the last half hour paid, learn from all earlier labels, predict the next sixth."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else BARS
    start = utc_ms("2020-01-01")
    bars = synthetic_bars(seed=1, start_ms=start, end_ms=start + int(count * 1.02) * 60_000)[:count]
    features = FeatureEngineering([{kind: {"n": n}} for kind in KINDS for n in LENGTHS])
    pipeline = MLPipeline(features, "xgboost", {"n_estimators": 200, "max_depth": 6})
    begin = time.perf_counter()
    labels = meta_labels(bars, np.sign(bars["close"].diff(30).fillna(0)), 60, cost=0.0001)
    labelled = time.perf_counter() - begin
    ahead = WalkForward(labels, train=len(bars) // 6 + 1, test=len(bars) // 6 + 1, is_anchored=True)
    said = walk_forward(pipeline, bars, ahead, threshold=0.6, workers=os.cpu_count() or 1)
    taken = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    print(
        f"{len(bars):,} bars x {len(features.names)} features, {len(said.forecasts)} folds, {len(labels):,} labels made in {labelled:.1f} s"
    )
    print(said)
    print(f"{taken / 60:.1f} minutes on {os.cpu_count()} cores (limit 20), {peak:.1f} GiB at most (limit 6)")


if __name__ == "__main__":
    main()
