"""What happens in one schedule of the trader: broker, link, disk, clocks, persons, and who is killed where. All of it from a seed."""

import json
import random
from dataclasses import asdict, dataclass, replace

from btcbot.market.profile import BrokerProfile, broker_profile
from btcbot.terminal.faults import CALL_KINDS, FAULT_KINDS, LOST_ANSWER, LOST_REQUEST, Fault, FaultKind, FaultPlan, plan_from_text
from tests.faults.schedules import COMMENT_RULES, DELAYS_MS, SERVER_POINTS, Kill, at_order, in_time

FAULTS_S, END_S = 18 * 60, 46 * 60  # market seconds in which things go wrong, and of a schedule
LIVE_FAULTS_S, LIVE_END_S = 9 * 60, 21 * 60 + 30  # the same over real processes; the day ends while the strategy holds something
PROFILES = ("crypto-24x7", "cfd-eet", "ecn-ny7", "netting-eet")
LINK_KINDS = ("lost_way", "lost_reply", "late", "slow", "twice", "replay", "refused", "silence")
MACHINE_KINDS = ("disk", "jump", "stripped", "by_hand", "switch")
IN_TIME_ALONE = ("stripped", "by_hand", "switch")  # what a person does: over real processes nobody is there to do it
KINDS = (*FAULT_KINDS, *LINK_KINDS, *MACHINE_KINDS)
# The trader asks a terminal that knows keys, so its journal never says `sent`.
TRADER_POINTS = tuple(point for point in SERVER_POINTS if not point.startswith("sent"))
POINTS = (*(("server", point) for point in SERVER_POINTS), *(("client", point) for point in TRADER_POINTS))
_TIMES = {("server", "adopt"): 3, ("client", "adopt"): 3, ("client", "again"): 3, ("server", "unknown"): 2}  # the rarest
_TARGETS = [
    (kind, process, name)
    for process, points in (("server", SERVER_POINTS), ("client", TRADER_POINTS))
    for name in dict.fromkeys(point.partition(".")[0] for point in points)
    for kind in KINDS * _TIMES.get((process, name), 1)
]
TARGETS = random.Random(0).sample(_TARGETS, len(_TARGETS))  # in an order in which a short campaign sees something of everything


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that goes wrong outside the terminal, from a moment of the market on."""

    kind: str  # one of LINK_KINDS or MACHINE_KINDS
    at_s: float
    for_s: float = 0.0
    size: float = 0.0
    where: str = ""  # server, client or both


@dataclass(frozen=True, slots=True)
class Schedule:
    """One seeded run."""

    seed: int
    profile: str
    is_netting: bool
    comment_rule: str
    stops_keep_magic: bool
    history_delay_ms: int
    faults: str = ""
    troubles: tuple[Trouble, ...] = ()
    kills: tuple[Kill, ...] = ()
    is_both: bool = False  # who is killed takes the other one along
    faults_s: float = FAULTS_S
    kind: str = "trader"
    is_cold: bool = False

    def text(self) -> str:
        """Write it for another process."""
        return json.dumps(asdict(self))

    def broker(self) -> BrokerProfile:
        """Return the broker with its habits."""
        return replace(
            broker_profile(self.profile),
            comment_rule=self.comment_rule,
            stops_keep_magic=self.stops_keep_magic,
            history_delay_ms=self.history_delay_ms,
            margin_mode="netting" if self.is_netting else "hedging",
            deposit=1_000_000.0,
        )

    def calm(self) -> "Schedule":
        """Return the same day without any fault."""
        habits = {"comment_rule": "keep", "stops_keep_magic": True, "history_delay_ms": 0}
        return replace(self, seed=-1, faults="", troubles=(), kills=(), is_both=False, **habits)

    @property
    def calm_from_s(self) -> float:
        """Return the moment from which nothing goes wrong any more."""
        ends = [trouble.at_s + trouble.for_s for trouble in self.troubles]
        return max([self.faults_s, *ends])

    def is_disturbed(self, begin_s: float, end_s: float) -> bool:
        """Tell whether something else may keep orders back for long between two moments, with a minute to get over it."""
        spans = [(one.at_s, one.at_s + one.for_s) for one in self.troubles if one.kind in ("refused", "silence", "disk", "late", "by_hand")]
        timed = [fault for fault in plan_from_text(self.faults).faults if not fault.call]
        spans += [(fault.at_ms / 1000, (fault.at_ms + fault.for_ms) / 1000) for fault in timed]
        return any(begin < end_s and end + 90.0 > begin_s for begin, end in spans)


def _trouble(kind: str, chance: random.Random, faults_s: float) -> Trouble:
    """Draw a trouble of `kind`."""
    at_s = chance.uniform(60, faults_s - 120)
    if kind in ("late", "slow"):  # beyond the client's patience, or within it
        return Trouble(kind, at_s, size=chance.choice((13.0, 20.0, 45.0)) if kind == "late" else chance.choice((0.5, 3.0, 8.0)))
    if kind == "replay":
        return Trouble(kind, at_s, size=chance.choice((5.0, 60.0, 200.0)))
    if kind in ("refused", "silence"):
        return Trouble(kind, at_s, for_s=chance.choice((5.0, 30.0, 100.0)))
    if kind == "disk":
        return Trouble(kind, at_s, for_s=chance.choice((2.0, 30.0, 100.0)), where=chance.choice(("server", "client")))
    if kind == "jump":
        return Trouble(kind, at_s, size=chance.choice((-3600.0, 3600.0, -5.0, 90.0)), where=chance.choice(("server", "client")))
    if kind == "switch":
        return Trouble(kind, at_s, for_s=chance.choice((30.0, 200.0)), where=chance.choice(("stop", "flatten")))
    return Trouble(kind, at_s)


def draw(seed: int, is_live: bool = False) -> Schedule:
    """Make the schedule of `seed`, for real processes where `is_live`: it aims at two cells of the table; the rest is drawn."""
    chance, faults_s = random.Random(seed), LIVE_FAULTS_S if is_live else FAULTS_S
    kinds = [one for one in KINDS if not is_live or one not in IN_TIME_ALONE]
    kind, process, name = TARGETS[seed % len(TARGETS)]
    profile = chance.choice(PROFILES)
    is_netting = profile.startswith("netting") or chance.random() < 0.25
    if kind == "by_hand" and is_netting:  # where a person closes what isn't told from the trader's own
        profile, is_netting = "ecn-ny7", False
    is_rare = name == "adopt" or (process, name) == ("client", "again")
    numbers = chance.sample(range(1, 9 if is_live else 13), 8 if is_live else 12)
    if is_rare:
        numbers = [number for number in numbers if number > 8]
    faults, troubles = list[Fault](), list[Trouble]()

    def strike(one: str) -> None:
        if one not in FAULT_KINDS:
            if one != "by_hand" or not is_netting:
                troubles.append(_trouble(one, chance, faults_s))
            return
        broken: FaultKind = one
        is_call = broken in CALL_KINDS[:8] or (broken in CALL_KINDS and chance.random() < 0.5)
        if is_call and broken == "ipc":
            faults.append(Fault("ipc", chance.choice(("positions_get", "account_info")), chance.randint(5, 60), size=-10005))
        elif is_call and numbers:
            faults.append(at_order(broken, numbers.pop(), chance))
        elif not is_call:
            faults.append(replace(in_time(broken, chance), at_ms=chance.randint(60_000, (faults_s - 90) * 1000)))

    if name == "unknown":
        strike("lost_answer")
    if name == "adopt":  # an entry that is executed when everybody has given it up
        faults.append(Fault("lost_answer", "order_send", 1, for_ms=chance.choice((60_000, 90_000)), size=chance.choice(LOST_ANSWER)))
    if name == "not_done":
        strike(chance.choice(("reject", "requote", "lost_request")))
    if (process, name) == ("server", "again"):
        strike("unclear")
        troubles.append(Trouble("lost_reply", chance.uniform(60, faults_s / 2)))
    if (process, name) == ("client", "again"):  # what closes all positions gets lost, and is asked for again under its key
        faults.append(Fault("lost_request", "order_send", 7, size=chance.choice(LOST_REQUEST)))
        if not is_live:  # the seventh order of the day is then the one that closes
            troubles.append(Trouble("switch", chance.uniform(302, 358), for_s=200.0, where="flatten"))
    if kind in kinds:
        strike(kind)
    for other in chance.sample([one for one in kinds if one != kind], chance.randint(3, 7)):
        strike(other)
    kills = [Kill(process, f"{name}.{side}", 1 if is_rare else chance.randint(1, 3)) for side in ("before", "after")]
    if chance.random() < 0.3:
        kills.reverse()
    if chance.random() < 0.5:
        kills.append(Kill(*chance.choice(POINTS), chance.randint(1, 4)))
    return Schedule(
        seed,
        profile,
        is_netting,
        chance.choice(COMMENT_RULES),
        chance.random() < 0.5,
        chance.choice(DELAYS_MS),
        str(FaultPlan.of(faults)),
        tuple(troubles),
        tuple(kills),
        chance.random() < 0.15,
        faults_s,
    )
