"""Whatever the labels, no fold of ours has a training label within reach of a test label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from btcbot.core.errors import BtcbotError
from btcbot.models.labels import Labels
from btcbot.models.splits import CombinatorialPurgedCV, PurgedKFold, WalkForward, check_splitter, leaking


@st.composite
def labels(draw: st.DrawFn) -> Labels:
    """Draw decisions at some bars, each label with its own interval."""
    first = np.array(sorted(draw(st.sets(st.integers(0, 150), min_size=12, max_size=60))))
    horizon = draw(st.integers(1, 12))
    last = first + np.array(draw(st.lists(st.integers(1, horizon), min_size=len(first), max_size=len(first))))
    nothing = np.zeros(len(first))
    return Labels(np.arange(200), first, last, nothing.astype(int), nothing, nothing, horizon)


def overlaps(of: Labels, train: int, test: int, embargo: int) -> bool:
    """Whether two intervals share a bar, the later one prolonged by the embargo."""
    told = set(range(of.first[train], of.last[train] + 1))
    return bool(told & set(range(of.first[test], of.last[test] + embargo + 1)))


@settings(max_examples=40)
@given(labels(), st.integers(0, 20), st.integers(2, 5), st.data())
def test_no_training_interval_meets_a_test_interval_and_its_embargo(of: Labels, convergence: int, parts: int, data: st.DataObject) -> None:
    """Each fold of each splitter, pair by pair; each row left out by `leaking` has a reason."""
    embargo = max(of.horizon, convergence)
    train = data.draw(st.integers(15, int(of.first[-1] - of.first[0]) - 1)) if of.first[-1] - of.first[0] > 16 else None
    splitters = [PurgedKFold(of, parts, convergence), CombinatorialPurgedCV(of, parts + 1, parts - 1, convergence)]
    splitters += [WalkForward(of, train, 10, is_anchored) for is_anchored in (False, True) if train]
    for splitter in splitters:
        try:
            folds = list(splitter.split(of.first))
        except BtcbotError as error:
            assert "keeps" in str(error)
            continue
        assert len(folds) == splitter.get_n_splits()
        for known, asked in folds:
            assert not any(overlaps(of, i, j, embargo) for i in known for j in asked)
        if not isinstance(splitter, WalkForward):
            everything = np.arange(len(of))
            for known, asked in folds:
                gone = np.setdiff1d(everything, np.union1d(known, asked))
                assert all(any(overlaps(of, i, j, embargo) for j in asked) for i in gone)
        check_splitter(splitter, of, convergence)


@settings(max_examples=40)
@given(labels(), st.integers(0, 15), st.data())
def test_leaking_rows_are_found_whatever_the_test_rows(of: Labels, embargo: int, data: st.DataObject) -> None:
    """Test rows in any order, with holes; every other row is asked for."""
    test = np.array(data.draw(st.permutations(sorted(data.draw(st.sets(st.integers(0, len(of) - 1), min_size=1))))))
    train = np.setdiff1d(np.arange(len(of)), test)
    expected = [any(overlaps(of, i, j, embargo) for j in test) for i in train]
    assert leaking(of, train, test, embargo).tolist() == expected


@given(labels())
def test_what_leaks_is_refused(of: Labels) -> None:
    """Plain folds of rows that lie close together."""
    near = Labels(of.known, np.arange(len(of)), np.arange(len(of)) + 1, of.value, of.move, of.cost, of.horizon)
    with pytest.raises(BtcbotError, match="KFold leaks: in fold 0"):
        check_splitter(KFold(3), near)
