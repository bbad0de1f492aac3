"""What a pipeline learned is the same in another process, which has only the files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from btcbot.features.engineering import FeatureEngineering
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars
from btcbot.models.families import FAMILIES, ROUNDS
from btcbot.models.labels import triple_barrier
from btcbot.models.networks import NETWORKS
from btcbot.models.pipeline import MLPipeline

READ = """
import sys
import numpy as np
from btcbot.models.pipeline import MLPipeline

rows = np.load(sys.argv[1])
for folder in sys.argv[2:]:
    np.save(folder + "/said.npy", MLPipeline.load(folder).predict_rows(rows))
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, MLPipeline], np.ndarray]:
    """Return a folder with a pipeline of each family, the pipelines, and rows to ask about."""
    bars = synthetic_bars(seed=2, start_ms=utc_ms("2024-01-01"), end_ms=utc_ms("2024-01-20"), timeframe_ms=900_000)
    features = FeatureEngineering([{"rsi": {"n": 14}}, {"atr": {"n": 14}}, {"sma": {"n": 5}}], "M15")
    labels, folder = triple_barrier(bars, 8, 0.5, 0.0004), tmp_path_factory.mktemp("models")
    rows, made = MLPipeline(features).matrix(bars), {}
    for family in FAMILIES:
        parameters = {} if family == "linear" else {ROUNDS.get(family, "n_estimators"): 8}
        if family in NETWORKS:
            parameters = {"epochs": 1, "units": 4, "steps": 1 if family == "dnn" else 8}
        calibration = 0 if family == "transformer" else 2
        made[family] = MLPipeline(features, family, parameters, calibration=calibration, is_balanced=True).fit_rows(rows, labels)
        made[family].save(folder / family)
    np.save(folder / "rows.npy", rows)
    return folder, made, rows


def test_a_clean_process_predicts_the_same(fitted: tuple[Path, dict[str, MLPipeline], np.ndarray]) -> None:
    """Every family, to the last bit."""
    folder, made, rows = fitted
    subprocess.run([sys.executable, "-c", READ, folder / "rows.npy", *(str(folder / family) for family in made)], check=True, timeout=300)
    for family, pipeline in made.items():
        assert np.isfinite(pipeline.predict_rows(rows)[100:]).all()
        np.testing.assert_array_equal(np.load(folder / family / "said.npy"), pipeline.predict_rows(rows))


def test_no_file_is_a_pickle(fitted: tuple[Path, dict[str, MLPipeline], np.ndarray]) -> None:
    """The first bytes of a pickle are its protocol."""
    folder, made, _ = fitted
    for family in made:
        files = [path for path in (folder / family).iterdir() if path.suffix != ".npy"]
        assert {path.suffix for path in files} <= {".json", ".ubj", ".skops", ".keras"} and len(files) == 2
        assert not any(path.read_bytes()[:1] == b"\x80" for path in files)
