"""What must be true of the trader in the end: the promises of `tests.faults.oracle`, and those that only a whole trader can break."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from btcbot.market.clock import server_clock, to_server
from btcbot.market.profile import BrokerProfile
from btcbot.terminal.contract import C
from btcbot.terminal.faults import plan_from_text
from btcbot.trading.reconciliation import Difference
from tests.chaos.schedules import END_S, Schedule
from tests.chaos.strategy import CYCLE, PHASE_MS
from tests.faults import oracle
from tests.faults.oracle import DONE, Fields, Row, Truth
from tests.faults.processes import START_MS

REACT_S = 0.5  # an entry that was on its way when the switch was thrown is seen by the server up to so much later


@dataclass(frozen=True, slots=True)
class Day:
    """What came of a day: the account at its end."""

    profile: BrokerProfile
    truth: Truth

    def positions(self) -> list[tuple[int, float, float, float]]:
        """Return side, lots, stop and target of the strategy's positions."""
        return sorted((int(p["type"]), p["volume"], p["sl"], p["tp"]) for p in self.truth.positions if p["magic"])

    def deals(self, since_ms: int, server_ms: int) -> list[tuple[float, ...]]:
        """Return what was dealt since a moment, without tickets; `server_ms` is the server's clock minus UTC."""
        names = ("time_msc", "type", "entry", "volume", "price", "profit", "commission", "reason")
        found = [deal for deal in self.truth.deals if deal["symbol"] and deal["comment"] != "by hand"]
        # The last ones: a clock that was wrong may have stamped an earlier one with a later time.
        late = list(itertools.takewhile(lambda deal: deal["time_msc"] - server_ms >= since_ms, reversed(found)))
        return [tuple(deal[name] for name in names) for deal in reversed(late)]


@dataclass(slots=True)
class Case(oracle.Case):
    """All that is left of one schedule."""

    entries: Mapping[str, float] = field(default_factory=dict)  # when an entry first reached the server, by key
    switched: Sequence[tuple[float, float]] = ()  # when the kill switch was thrown and cleared
    hands: Sequence[int] = ()  # positions that a person opened
    broken: Sequence[Difference] = ()  # invariants that don't hold in the end
    day: Day | None = None


def verdict(case: Case, calm: Day | None) -> list[str]:
    """Return what is wrong; nothing where all promises were kept."""
    return [
        *oracle.verdict(case),
        *_orphans(case),
        *_stopped(case),
        *_foreign(case),
        *_sizes(case),
        *_invariants(case),
        *_same_end(case, calm),
    ]


def _requests(rows: Sequence[Row]) -> dict[Fields, Row]:
    return {row.request: row for row in rows}


def _orphans(case: Case) -> list[str]:
    """Everything that the broker executed for the strategy is an order of the trader's own journal."""
    known, wrong = _requests(case.client), list[str]()
    magics = {row.request[1] for row in case.client}
    for _, request, code, order, _ in case.truth.executed:
        if code in DONE and request[1] and request not in known:
            wrong.append(f"executed without a line in the trader's journal: {request} -> order {order}")
    for position in case.truth.positions:
        if position["magic"] and position["magic"] not in magics:
            wrong.append(f"an orphan: position {position['ticket']} of nobody's order")
    open_rows = [row for row in case.client if row.state in ("intent", "sent", "unknown")]
    return wrong + [f"never settled in the trader's journal: {row.about}" for row in open_rows]


def _stopped(case: Case) -> list[str]:
    """No entry is sent while the kill switch is thrown."""
    return [
        f"entry {key[:8]} was sent at {at:.1f} s, while the kill switch was thrown since {begin:.1f} s"
        for key, at in case.entries.items()
        for begin, end in case.switched
        if begin + REACT_S < at < end and not _is_late(case, begin)
    ]


def _is_late(case: Case, begin: float) -> bool:
    """Tell whether the link may have kept a message back for longer than the switch was thrown."""
    schedule = cast(Schedule, case.schedule)
    kinds = ("late", "replay", "slow", "lost_way", "lost_reply", "refused", "silence", "twice")
    return any(trouble.kind in kinds and trouble.at_s <= begin + 400.0 for trouble in schedule.troubles)


def _foreign(case: Case) -> list[str]:
    """What a person opened is left alone: only the broker may have closed it."""
    wrong = []
    for ticket in case.hands:
        for _, request, code, _, _ in case.truth.executed:
            if request[15] == ticket and code in DONE:
                wrong.append(f"the trader touched position {ticket}, which a person had opened: {request}")
    return wrong


def _sizes(case: Case) -> list[str]:
    """What was executed for a decision, in all of its parts, is no more than was decided."""
    asked, made = Counter[tuple[int, str, object]](), Counter[tuple[int, str, object]]()
    volumes = Counter[object]()
    for deal in case.truth.deals:
        if deal["reason"] == C.DEAL_REASON_EXPERT:  # a stop keeps the magic of its position
            volumes[deal["magic"]] += round(deal["volume"] * 1e6)
    for row in case.client:
        said = json.loads(row.context or "{}")
        if row.request[0] == C.TRADE_ACTION_DEAL and "bar" in said:
            decision = said["bar"], said["leg"].partition(".")[0], row.request[15]
            asked[decision] = max(asked[decision], round(cast(float, row.request[4]) * 1e6))
            made[decision] += volumes[row.request[1]] if row.state == "done" else 0
    return [
        f"{made[decision] / 1e6:g} lots were dealt for {decision}, {asked[decision] / 1e6:g} were decided"
        for decision in asked
        if made[decision] > asked[decision]
    ]


def _invariants(case: Case) -> list[str]:
    """Quantity, average price, profit and identity hold in the end."""
    return [f"an invariant is broken: {found.kind} {found.ticket}: {found.text}" for found in case.broken]


def _same_end(case: Case, calm: Day | None) -> list[str]:
    """From the first moment on at which the strategy was flat after all faults, everything is as on a day without any."""
    if calm is None or case.day is None:
        return []
    since_ms = quiet_from(cast(Schedule, case.schedule))
    if since_ms is None:
        return []
    wrong = list[str]()
    if case.day.positions() != calm.positions():
        wrong.append(f"the day ends with the positions {case.day.positions()}, without faults with {calm.positions()}")
    server_ms = _offset(calm)
    ours, theirs = case.day.deals(since_ms, server_ms), calm.deals(since_ms, server_ms)
    if ours != theirs:
        odd = [deal for deal in (*ours, *theirs) if (deal in ours) != (deal in theirs)]
        wrong.append(f"{len(ours)} deals after the faults, {len(theirs)} without any; the first that differs: {odd[:1]}")
    return wrong


def _offset(day: Day) -> int:
    return int(to_server(server_clock(day.profile.clock), START_MS)) - START_MS


def quiet_from(schedule: Schedule) -> int | None:
    """Return the moment from which the day must equal one without faults; None where something of them stays for good."""
    faults = plan_from_text(schedule.faults).faults
    if any(fault.kind in ("gap", "clock") and not fault.call and not fault.for_ms for fault in faults):
        return None
    calm_ms = START_MS + round((schedule.calm_from_s + 360.0) * 1000)  # and a person has lifted what was halted
    end_ms = START_MS + END_S * 1000
    phase = -(-calm_ms // PHASE_MS)
    while CYCLE[phase % len(CYCLE)] or (phase - 1) * PHASE_MS < calm_ms:
        phase += 1
    since_ms = (phase + 1) * PHASE_MS
    return since_ms if since_ms + 3 * PHASE_MS < end_ms else None
