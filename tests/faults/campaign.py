"""The fault campaign: seeded schedules over real HTTP, with SIGKILL at the write points of the journals.

python -m tests.faults.campaign --schedules 2000          all promises kept? and how often each fault met each write point
python -m tests.faults.campaign --bugs                    plants protocol bugs, one at a time: each has to be found within 500 schedules
python -m tests.faults.campaign --seed 1234 [--bug NAME]  one schedule again, with its trace
"""

import argparse
import gc
import json
import multiprocessing
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from btcbot.terminal.faults import FAULT_KINDS
from tests.faults import processes
from tests.faults.bugs import BUGS
from tests.faults.play import Report, play
from tests.faults.schedules import POINTS, draw

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

COLD = 20  # every so many schedules start their processes anew
JOBS = 5  # schedules at a time: most of their time they wait for the market


@dataclass(frozen=True, slots=True)
class Game:
    """What is played: the schedule of a seed, perhaps with a planted bug; and what the table counts."""

    play: Callable[[int, str | None], Report]
    warm: Callable[[], object]
    text: Callable[[int], str]  # the schedule, for whoever reads its trace
    kinds: Sequence[str]
    points: Sequence[tuple[str, str]]
    bugs: Sequence[str]


def play_seed(seed: int, bug: str | None) -> Report:
    """Play the schedule of a seed over real processes; every twentieth starts them anew."""
    return play(draw(seed, is_cold=bug is None and seed % COLD == COLD - 1), bug)


ORDERS = Game(play_seed, processes.warm, lambda seed: str(draw(seed)), FAULT_KINDS, POINTS, tuple(BUGS))


def play_all(seeds: Sequence[tuple[int, str | None]], jobs: int = JOBS, game: Game = ORDERS) -> Iterator[tuple[str | None, Report]]:
    """Play many schedules on a few processes, forked from this warm one; yield reports as they come."""
    game.warm()
    gc.collect()
    gc.freeze()  # forked children don't touch the pages of what they never free
    pipes: dict[int, tuple[int, int, bytearray]] = {}
    following = multiprocessing.get_context("fork").Value("i", 0)  # number of the next schedule, for whichever process is free
    for job in range(min(jobs, len(seeds))):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _work(game, seeds, following, write)
        os.close(write)
        pipes[read] = pid, job, bytearray()
    try:
        while pipes:
            for read in select.select(list(pipes), [], [], 1.0)[0]:
                pid, _, rest = pipes[read]
                got = os.read(read, 1 << 20)
                rest += got
                *lines, tail = bytes(rest).split(b"\n")
                rest[:] = tail
                for line in lines:
                    yield read_report(line)
                if not got:
                    os.close(read)
                    os.waitpid(pid, 0)
                    del pipes[read]
    finally:
        for read, (pid, _, _) in pipes.items():
            os.kill(pid, signal.SIGKILL)  # its children end with their standard input
            os.waitpid(pid, 0)
            os.close(read)


def read_report(line: str | bytes) -> tuple[str | None, Report]:
    """Read what `_work` wrote: the planted bug, and what came of the schedule."""
    bug, fields = json.loads(line)
    fields["killed"] = [tuple(kill) for kill in fields["killed"]]
    return bug, Report(**fields)


def _played(game: Game, seeds: Sequence[int], jobs: int, kept: Path | None) -> Iterator[Report]:
    """Yield the reports of schedules; those in the file `kept` aren't played again, and new ones are added to it."""
    found = [read_report(line)[1] for line in kept.read_text().splitlines()] if kept is not None and kept.exists() else []
    known = {report.seed for report in found}
    yield from (report for report in found if report.seed in seeds)
    for _, report in play_all([(seed, None) for seed in seeds if seed not in known], jobs, game):
        if kept is not None:
            with kept.open("a") as file:
                file.write(json.dumps([None, asdict(report)]) + "\n")
        yield report


def _work(game: Game, seeds: Sequence[tuple[int, str | None]], following: "Synchronized[int]", write: int) -> None:
    """Play schedules that nobody else has begun, one after the other, and report each in a line."""
    code = 1
    try:
        while True:
            with following.get_lock():
                number, following.value = following.value, following.value + 1
            if number >= len(seeds):
                break
            seed, bug = seeds[number]
            report = game.play(seed, bug)
            line = json.dumps([bug, asdict(report)]).encode() + b"\n"
            while line:
                line = line[os.write(write, line) :]
        code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


class Table:
    """How often each kind of fault was struck in a schedule in which a process was killed at each write point."""

    def __init__(self, game: Game) -> None:
        self._kinds, self._points = game.kinds, game.points
        self.cells: Counter[tuple[str, str, str]] = Counter()

    def add(self, report: Report) -> None:
        """Count one schedule."""
        for kind in report.struck:
            self.cells.update({(kind, *point): 1 for point in set(report.killed)})

    @property
    def least(self) -> tuple[int, tuple[str, str, str]]:
        """Return the smallest count and its cell."""
        return min((self.cells[kind, *point], (kind, *point)) for kind in self._kinds for point in self._points)

    def __str__(self) -> str:
        lines = ["killed at            " + "".join(f"{kind[:9]:>10}" for kind in self._kinds)]
        lines += [
            f"{process:<7}{point:<16}" + "".join(f"{self.cells[kind, process, point]:>8}  " for kind in self._kinds)
            for process, point in self._points
        ]
        return "\n".join(lines)


def _progress(done: int, count: int, began: float, more: str = "") -> None:
    spent = time.monotonic() - began
    left = spent / max(done, 1) * (count - done)
    text = f"{done}/{count} schedules, {spent:.0f} s, {left:.0f} s to go {more}"
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="" if done < count else "\n", file=sys.stderr, flush=True)
    elif done == count or done % max(count // 20, 1) == 0:
        print(text, file=sys.stderr, flush=True)


def campaign(game: Game, first: int, count: int, jobs: int, traces: Path | None = None, kept: Path | None = None) -> int:
    """Play `count` schedules, print the table; return the number of those that broke a promise."""
    table, wrong, began, states = Table(game), list[Report](), time.monotonic(), Counter[str]()
    orders, seconds = 0, 0.0
    for done, report in enumerate(_played(game, range(first, first + count), jobs, kept), 1):
        table.add(report)
        states.update(report.states)
        orders, seconds = orders + report.orders, seconds + report.seconds
        if report.wrong:
            wrong.append(report)
            print(f"\nseed {report.seed}: " + "\n    ".join(report.wrong), flush=True)
            if traces is not None:
                traces.mkdir(exist_ok=True)
                said = f"{game.text(report.seed)}\n\n{report.trace}\n\n{report.killed} {report.struck}\n" + "\n".join(report.wrong)
                (traces / f"{report.seed}.txt").write_text(said)
        _progress(done, count, began, f"({len(wrong)} broke a promise)")
    least, cell = table.least
    print(table)
    print(f"{count} schedules, {orders} requests reached the broker, kills: {sum(table.cells.values())} pairs")
    print(f"the emptiest cell: {' x '.join(cell)} {least}; outcomes in the servers' journals: {dict(states)}")
    print(f"{seconds / count:.2f} s a schedule, {time.monotonic() - began:.0f} s in all; {len(wrong)} broke a promise")
    return len(wrong)


def hunt(names: Sequence[str], count: int, jobs: int, first: int = 0, game: Game = ORDERS) -> int:
    """Plant each bug and play until it is found; return how many were not."""
    missed = 0
    for name in names:
        began, found, played = time.monotonic(), None, 0
        seeds = range(first, first + count)
        for _, report in play_all([(seed, name) for seed in seeds], jobs, game):
            played += 1
            is_harness = any(said.startswith("the harness") for said in report.wrong)
            if report.wrong and not is_harness and not game.play(report.seed, None).wrong:
                found = report
                break
        missed += found is None
        said = f"found by schedule {played} (seed {found.seed}): {found.wrong[0][:150]}" if found else f"NOT FOUND in {played} schedules"
        print(f"{name:<32}{time.monotonic() - began:5.0f} s  {said}", flush=True)
    return missed


def main(arguments: Sequence[str] | None = None, game: Game = ORDERS, about: str | None = __doc__) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--bugs", action="store_true", help="hunt the planted bugs")
    parser.add_argument("--bug", choices=game.bugs, help="plant one of them")
    parser.add_argument("--seed", type=int, help="one schedule, with its trace")
    parser.add_argument("--traces", type=Path, help="folder for the traces of schedules that broke a promise")
    parser.add_argument("--reports", type=Path, help="file of reports: a campaign that was stopped goes on where it was")
    given = parser.parse_args(arguments)
    if given.seed is not None:
        game.warm()
        report = game.play(given.seed, given.bug)
        said = "\n".join(report.wrong) or "all promises kept"
        print(f"{game.text(given.seed)}\n\n{report.trace}\n\n{report.killed} {report.struck}\n{said}")
        return bool(report.wrong)
    if given.bugs or given.bug:
        return hunt([given.bug] if given.bug else game.bugs, min(given.schedules, 500), given.jobs, given.first, game)
    return bool(campaign(game, given.first, given.schedules, given.jobs, given.traces, given.reports))


if __name__ == "__main__":
    sys.exit(main())
