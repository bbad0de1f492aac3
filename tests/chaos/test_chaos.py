"""A sample of the chaos campaign (`python -m tests.chaos.campaign`), and planted bugs that it must find.

Each runs in a process of its own: the campaign replaces the clock and the wire of the whole process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="forks processes")
SAMPLE = os.environ.get("BTCBOT_SCHEDULES", "16")


def campaign(*arguments: str) -> None:
    """Run the command, and show what it said where it failed."""
    command = [sys.executable, "-m", "tests.chaos.campaign", "--jobs", "2", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]


@POSIX
@pytest.mark.jit
def test_a_sample_of_schedules_keeps_every_promise() -> None:
    campaign("--schedules", SAMPLE)


@POSIX
@pytest.mark.jit
@pytest.mark.parametrize("bug", ["forgets", "attempt-before-settled"])
def test_a_planted_bug_is_found(bug: str) -> None:
    campaign("--bug", bug, "--schedules", "30")
