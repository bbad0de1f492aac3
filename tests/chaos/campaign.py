"""The chaos campaign: the whole trader under everything that can go wrong at once, on a clock that jumps.

python -m tests.chaos.campaign --schedules 10000         all promises kept? and how often each fault met each write point
python -m tests.chaos.campaign --bugs                    plants bugs of the trader, one at a time: each has to be found
python -m tests.chaos.campaign --seed 1234 [--bug NAME]  one schedule again, with its trace
"""

import sys

from tests.chaos.bugs import BUGS
from tests.chaos.schedules import KINDS, POINTS, draw
from tests.chaos.world import calm_day, play
from tests.faults.campaign import Game, main
from tests.faults.play import Report


def play_seed(seed: int, bug: str | None) -> Report:
    """Play the schedule of a seed, and let its calm day be one without the bug."""
    schedule = draw(seed)
    calm_day(schedule.calm())
    if bug is not None:
        BUGS[bug].plant()
    return play(schedule)


def warm() -> None:
    """Compile what is needed, so that forks of this process start at once."""
    play(draw(0).calm())


GAME = Game(play_seed, warm, lambda seed: str(draw(seed)), KINDS, POINTS, tuple(BUGS))

if __name__ == "__main__":
    sys.exit(main(None, GAME, __doc__))
