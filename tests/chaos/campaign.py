"""The chaos campaign: the whole trader under everything that can go wrong at once, on a clock that jumps.

python -m tests.chaos.campaign --schedules 10000         all promises kept? and how often each fault met each write point
python -m tests.chaos.campaign --bugs                    plants bugs of the trader, one at a time: each has to be found
python -m tests.chaos.campaign --seed 1234 [--bug NAME]  one schedule again, with its trace
python -m tests.chaos.campaign --live --schedules 1000   the same over real processes and HTTP, with SIGKILL; a market minute in 0.6 s
"""

import sys

from tests.chaos import live
from tests.chaos.bugs import BUGS
from tests.chaos.schedules import IN_TIME_ALONE, KINDS, POINTS, draw
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

LIVE_KINDS = [kind for kind in KINDS if kind not in IN_TIME_ALONE]
LIVE = Game(live.play_live, live.warm, lambda seed: str(draw(seed, is_live=True)), LIVE_KINDS, POINTS, ())

if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--live"]
    sys.exit(main(given, LIVE if "--live" in sys.argv else GAME, __doc__))
