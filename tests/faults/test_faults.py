"""A sample of the fault campaign (`python -m tests.faults.campaign`), and two planted bugs that it must find."""

import os
import sys

import pytest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="forks and kills processes")
SAMPLE = int(os.environ.get("BTCBOT_SCHEDULES", "16"))


@POSIX
@pytest.mark.jit
def test_a_sample_of_schedules_keeps_every_promise() -> None:
    from tests.faults.campaign import play_all

    seeds = [(number * 43, None) for number in range(SAMPLE)]
    wrong = [(report.seed, report.wrong) for _, report in play_all(seeds) if report.wrong]
    assert not wrong, "python -m tests.faults.campaign --seed N shows the trace"


@POSIX
@pytest.mark.jit
@pytest.mark.parametrize("bug", ["early-not-done", "replay-sends-again"])
def test_a_planted_bug_is_found(bug: str) -> None:
    from tests.faults.campaign import hunt

    assert hunt([bug], count=60, jobs=4) == 0
