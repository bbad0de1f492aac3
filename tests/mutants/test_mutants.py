"""Every planted fault fits its place, and a few of them are found (`python -m tests.mutants.campaign` plants all)."""

from pathlib import Path

import pytest

from tests.mutants.campaign import judge, mutated, prepare
from tests.mutants.engine import MUTANTS

SAMPLE = ("look-ahead", "sl-fills-at-its-level", "size-with-one-commission")


@pytest.mark.parametrize("path", sorted({mutant.path for mutant in MUTANTS.values()}))
def test_each_fault_fits_one_place(path: str) -> None:
    for mutant in MUTANTS.values():
        if mutant.path == path:
            assert mutated(mutant)


def test_a_sample_of_faults_is_found(tmp_path: Path) -> None:
    master = prepare(tmp_path)
    verdicts = [judge(name, master) for name in SAMPLE]
    assert [verdict.caught_by.split("::")[0] for verdict in verdicts] == ["test_ledgers.py"] * 3, [verdict.said for verdict in verdicts]
