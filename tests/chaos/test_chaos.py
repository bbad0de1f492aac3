"""A sample of the chaos campaign (`python -m tests.chaos.campaign`), and planted bugs that it must find."""

import os
import sys

import pytest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="forks processes")
SAMPLE = int(os.environ.get("BTCBOT_SCHEDULES", "16"))


@POSIX
@pytest.mark.jit
def test_a_sample_of_schedules_keeps_every_promise() -> None:
    from tests.chaos.campaign import GAME
    from tests.faults.campaign import play_all

    wrong = [(report.seed, report.wrong) for _, report in play_all([(seed, None) for seed in range(SAMPLE)], 2, GAME) if report.wrong]
    assert not wrong, "python -m tests.chaos.campaign --seed N shows the trace"


@POSIX
@pytest.mark.jit
@pytest.mark.parametrize("bug", ["forgets", "attempt-before-settled"])
def test_a_planted_bug_is_found(bug: str) -> None:
    from tests.chaos.campaign import GAME
    from tests.faults.campaign import hunt

    assert hunt([bug], count=30, jobs=2, game=GAME) == 0
