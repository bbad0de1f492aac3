"""scikit-learn's own estimator checks, and what they can't ask of a class that takes bars."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_transformer_get_feature_names_out,
    check_valid_tag_types,
    parametrize_with_checks,
)

from btcbot.core.errors import BtcbotError
from btcbot.features.engineering import FeatureEngineering
from btcbot.features.transformers import ExpandingScaler, FoldScaler, RollingScaler, Transformer
from btcbot.market.clock import utc_ms
from btcbot.market.synthetic import synthetic_bars

IN_TIME = {
    "check_methods_sample_order_invariance": "rows are in time: a value depends on the rows before it, so their order matters",
    "check_methods_subset_invariance": "rows are in time: a part of them alone has another past",
}
SPECIFICATIONS = [{"sma": {"n": 5}}, {"rsi": {"n": 14}, "on": "M15", "lag": 1}, "close"]


def exempted(estimator: Transformer) -> dict[str, str]:
    """Return the checks that can't hold, each with its reason; a fitted scaler treats each row alone and has none."""
    return {} if isinstance(estimator, FoldScaler) else IN_TIME


def thawed(estimator: Any) -> Any:
    """Return a pickled and unpickled copy."""
    return pickle.loads(pickle.dumps(estimator))  # noqa: S301 -- what this test has just written


@pytest.mark.filterwarnings("ignore:Estimator .* does not inherit")
@parametrize_with_checks([RollingScaler(5), ExpandingScaler(5), FoldScaler()], expected_failed_checks=exempted)
def test_scalers(estimator: Transformer, check: Any) -> None:
    """All checks that scikit-learn has for a transformer of rows."""
    check(estimator)


@pytest.mark.parametrize("scaler", [RollingScaler(5), ExpandingScaler(5), FoldScaler()], ids=repr)
def test_names_of_scalers(scaler: Transformer) -> None:
    """Names of columns follow scikit-learn's rules."""
    check_transformer_get_feature_names_out(type(scaler).__name__, scaler)


@pytest.mark.parametrize(
    "check",
    [
        check_estimator_cloneable,
        check_estimator_tags_renamed,
        check_valid_tag_types,
        check_estimator_repr,
        check_mixin_order,
        check_no_attributes_set_in_init,
        check_get_params_invariance,
    ],
    ids=lambda check: check.__name__,
)
def test_engineering(check: Any) -> None:
    """Run the checks that need no data.

    The others fit a matrix of random numbers, which has no times and no prices. Two that need no data are left out as well,
    `check_set_params` and `check_do_not_raise_errors_in_init_or_set_params`: they want `__init__` to accept anything, but a
    misspelt feature is refused where it is written, not at the first `fit`.
    """
    check("FeatureEngineering", FeatureEngineering(SPECIFICATIONS))


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    """Return a day of minutes."""
    return synthetic_bars(5, utc_ms("2024-01-02"), utc_ms("2024-01-03"))


def test_engineering_on_bars(bars: pd.DataFrame) -> None:
    """What the generic checks ask with a matrix, asked with bars: fit returns self and learns nothing, twice gives the same."""
    engineering = FeatureEngineering(SPECIFICATIONS)
    before, given = dict(vars(engineering)), bars.copy()
    assert engineering.fit(bars) is engineering
    assert vars(engineering) == before
    whole = engineering.transform(bars)
    for other in (
        engineering.transform(bars),
        clone(engineering).fit_transform(bars),
        thawed(engineering).transform(bars),
    ):
        pd.testing.assert_frame_equal(other, whole)
    pd.testing.assert_frame_equal(bars, given)
    assert list(engineering.get_feature_names_out()) == list(whole)
    with pytest.raises(TypeError, match="frame of bars"):
        engineering.fit(bars.to_numpy())


def test_engineering_parameters() -> None:
    """Parameters go in and come out; a refused one changes nothing."""
    engineering = FeatureEngineering(SPECIFICATIONS)
    assert engineering.set_params(timeframe="M5").get_params()["timeframe"] == "M5"
    for wrong in ({"specifications": [{"rssi": {}}]}, {"timeframe": "X3"}, {"clock": 3}, {"cach": None}):
        with pytest.raises(BtcbotError):
            engineering.set_params(**wrong)
    assert engineering.get_params() == FeatureEngineering(SPECIFICATIONS, "M5").get_params()


@pytest.mark.parametrize("scaler", [RollingScaler(50), ExpandingScaler(50), FoldScaler()], ids=repr)
def test_pipeline(scaler: Transformer, bars: pd.DataFrame) -> None:
    """A pipeline of features and a scaler is cloned, pickled, and names its columns."""
    pipeline = clone(make_pipeline(FeatureEngineering(SPECIFICATIONS), scaler)).set_output(transform="pandas").fit(bars[:700])
    values = pipeline.transform(bars)
    assert values.index.equals(bars.index)
    assert list(pipeline.get_feature_names_out()) == list(values)
    pd.testing.assert_frame_equal(thawed(pipeline).transform(bars), values)
    assert np.isfinite(values.iloc[-1]).all()
