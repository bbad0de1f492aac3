"""What happens in one schedule: the trader's steps, the broker's habits, the faults, and who is killed where. All of it from a seed."""

import json
import random
from dataclasses import asdict, dataclass, replace

from btcbot.market.profile import BrokerProfile, broker_profile
from btcbot.terminal.faults import (
    CALL_KINDS,
    FAULT_KINDS,
    LOST_ANSWER,
    LOST_REQUEST,
    REJECTS,
    REQUOTES,
    UNCLEAR,
    Fault,
    FaultKind,
    FaultPlan,
)
from btcbot.terminal.journal import WRITE_POINTS

SPEED = 100  # market seconds in a second
COMMENT_RULES = ("keep", "cut16", "replace", "empty")
DELAYS_MS = (0, 2_000, 20_000)
LOOKS = ("positions_get", "orders_get", "history_orders_get", "history_deals_get")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing the trader does; `on` is the step whose position or order it is about."""

    kind: str  # entry, pending, stops, close, modify, remove, takeover, stale
    side: int = 1
    steps: int = 1  # volume in steps
    on: int = -1


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL of a process when it passes a write point of its journal for the `nth` time."""

    process: str  # server or client
    point: str
    nth: int = 1
    until: float = float("inf")  # not from this moment of the monotonic clock on


@dataclass(frozen=True, slots=True)
class Schedule:
    """One seeded run."""

    seed: int
    kind: str  # trader: OrderExecution and keys; foreign: order_send without marks
    profile: str
    comment_rule: str
    stops_keep_magic: bool
    history_delay_ms: int
    steps: tuple[Step, ...]
    faults: str
    kills: tuple[Kill, ...]
    is_cold: bool = False

    def text(self) -> str:
        """Write it for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Schedule":
        """Read what `text` wrote."""
        given = json.loads(text)
        given["steps"] = tuple(Step(**step) for step in given["steps"])
        given["kills"] = tuple(Kill(**kill) for kill in given["kills"])
        return cls(**given)

    def broker(self) -> BrokerProfile:
        """Return the broker with its habits."""
        habits = {
            "comment_rule": self.comment_rule,
            "stops_keep_magic": self.stops_keep_magic,
            "history_delay_ms": self.history_delay_ms,
        }
        return replace(broker_profile(self.profile), **habits)


PROFILES = ("crypto-24x7", "cfd-eet", "ecn-ny7", "netting-eet")
SERVER_POINTS = tuple(f"{name}.{side}" for name in WRITE_POINTS for side in ("before", "after"))
CLIENT_POINTS = tuple(point for point in SERVER_POINTS if not point.startswith(("sent", "adopt")))
POINTS = (*(("server", point) for point in SERVER_POINTS), *(("client", point) for point in CLIENT_POINTS))
TARGETS = tuple(
    (kind, process, name)
    for process, points in (("server", SERVER_POINTS), ("client", CLIENT_POINTS))
    for name in dict.fromkeys(point.partition(".")[0] for point in points)
    for kind in FAULT_KINDS * {"adopt": 3, "sent": 2}.get(name, 1)  # the rarest
)
_ABOUT = {"stops": "entry", "close": "entry", "modify": "pending", "remove": "pending"}
ORDERS = ("entry", "pending", "stops", "close", "modify", "remove")


def _steps(chance: random.Random, is_foreign: bool, is_netting: bool) -> tuple[Step, ...]:
    """Draw what the trader does: always an entry first, later mostly something about what is there."""
    steps = [Step("entry", chance.choice((1, -1)), chance.choice((1, 2, 5)))]
    for _ in range(chance.randint(3, 5)):
        kind = chance.choices(ORDERS, (5, 3, 4, 4, 1, 2))[0]
        about = _ABOUT.get(kind)
        on = [number for number, step in enumerate(steps) if step.kind == about]
        if about and not on:
            kind, about = "entry", None
        if is_netting and kind == "entry":  # one direction: the net position of a symbol belongs to one strategy
            steps.append(Step("entry", steps[0].side, chance.choice((1, 2, 5))))
        elif about:
            steps.append(Step(kind, 1, 1, chance.choice(on)))
        else:
            steps.append(Step(kind, chance.choice((1, -1)), chance.choice((1, 2, 5))))
    if is_foreign and chance.random() < 0.3:  # twice the same: nobody can tell them apart but by their tickets
        steps.append(replace(steps[0]))
    if not is_foreign and chance.random() < 0.25:
        steps.insert(chance.randint(1, len(steps)), Step("stale"))
        steps = [_shifted(step, steps) for step in steps]
    if not is_foreign and chance.random() < 0.2:
        steps += [Step("takeover"), Step("entry", 1, 1), Step("entry", -1, 2)]
    return tuple(steps)


def _shifted(step: Step, steps: list[Step]) -> Step:
    """Count the `stale` step in."""
    place = next(number for number, one in enumerate(steps) if one.kind == "stale")
    return replace(step, on=step.on + 1) if step.on >= place else step


def at_order(kind: FaultKind, number: int, chance: random.Random) -> Fault:
    """Draw a fault of `kind` at the `number`th order."""
    late = chance.choice((0, 0, 3_000, 12_000, 20_000))
    if kind == "delay":
        return Fault(kind, "order_send", number, size=chance.choice((300, 2_000, 60_000)), is_executed=chance.random() < 0.5)
    if kind == "lost_answer":
        return Fault(kind, "order_send", number, for_ms=late, size=chance.choice(LOST_ANSWER))
    if kind == "lost_request":
        return Fault(kind, "order_send", number, size=chance.choice(LOST_REQUEST))
    if kind == "unclear":
        size = chance.choice(UNCLEAR)
        is_executed = size == 10009 or chance.random() < 0.6  # a broker that says "done" has done it
        return Fault(kind, "order_send", number, for_ms=late * is_executed, size=size, is_executed=is_executed)
    if kind in ("disconnect", "restart"):
        return Fault(kind, "order_send", number, for_ms=chance.choice((1_000, 5_000, 15_000)))
    sizes: dict[str, tuple[int, ...]] = {"requote": REQUOTES, "reject": REJECTS, "partial": (30, 50, 80)}
    return Fault(kind, "order_send", number, size=chance.choice(sizes.get(kind, (0,))))


def in_time(kind: FaultKind, chance: random.Random) -> Fault:
    """Draw a fault of `kind` at a moment of the first minute."""
    at_ms, length = chance.randint(10_000, 45_000), chance.choice((5_000, 20_000, 60_000))
    size = {
        "spread": chance.randint(1_000, 20_000),
        "gap": chance.choice((-150_000, -20_000, 20_000, 150_000)),
        "clock": chance.choice((-3_600_000, 3_600_000, 7_000)),
    }
    return Fault(kind, "", 0, at_ms, 0 if kind in ("gap", "clock") and chance.random() < 0.5 else length, size.get(kind, 0))


def draw(seed: int, is_cold: bool = False) -> Schedule:
    """Make the schedule of `seed`: it aims at two cells of the table, and what else happens is drawn."""
    chance = random.Random(seed)
    kind, process, name = TARGETS[seed % len(TARGETS)]
    is_foreign = process == "server" and chance.random() < 0.25
    profile = chance.choice(PROFILES)
    steps = _steps(chance, is_foreign, profile == "netting-eet")
    numbers = chance.sample((1, 2), 2) + chance.sample((3, 4, 5), 3)  # orders that get that far
    faults = list[Fault]()

    def strike(fault_kind: FaultKind) -> None:
        is_call = fault_kind in CALL_KINDS[:8] or (fault_kind in CALL_KINDS and chance.random() < 0.5)
        if not is_call:
            faults.append(in_time(fault_kind, chance))
        elif numbers:
            faults.append(at_order(fault_kind, numbers.pop(0), chance))

    needs: dict[str, FaultKind] = {"not_done": "reject", "unknown": "lost_answer", "adopt": "lost_answer"}
    need = needs.get(name)
    wanted = [kind] if not need or (kind in ("requote", "reject", need) and name != "adopt") else [kind, need]
    if name == "adopt":  # the first one is an entry
        numbers.sort()
        wanted = list(dict.fromkeys((need or kind, kind)))
    for one in wanted:
        strike(one)
    if name == "adopt":
        late = chance.choice((60_000, 90_000))
        faults = [replace(fault, for_ms=late) if fault.kind == "lost_answer" else fault for fault in faults]
    for other in chance.sample([one for one in FAULT_KINDS if one not in (kind, need)], chance.randint(2, 5)):
        strike(other)
    if chance.random() < 0.12:  # nothing can be looked at for longer than anybody has to wait
        first = chance.randint(3, 40)
        faults += [Fault("ipc", look, first + more, size=-10005) for look in LOOKS for more in range(40)]
    elif chance.random() < 0.4:  # the looks fail, too
        for look in chance.sample(LOOKS, chance.randint(1, 4)):
            first, code = chance.randint(1, 6), chance.choice((-10001, -10002, -10005))
            faults += [Fault("ipc", look, first + more, size=code) for more in range(chance.randint(1, 6))]
    kills = [Kill(process, f"{name}.before"), Kill(process, f"{name}.after")]
    if chance.random() < 0.3:
        kills.reverse()
    if name == "again":  # a key is seen again after somebody was killed
        kills.insert(0, Kill(process, chance.choice(("begin.after", "done.before", "done.after"))))
    elif not need:
        kills = [replace(kill, nth=chance.choice((1, 1, 2))) for kill in kills]
    others = [one for one in POINTS if not one[1].startswith("adopt") and (not is_foreign or one[0] == "server")]
    weights = [4 if one[0] == "client" and one[1].startswith(("unknown", "not_done")) else 1 for one in others]
    for other_process, other_point in chance.choices(others, weights, k=chance.randint(0, 2)):
        kills.append(Kill(other_process, other_point, chance.choice((1, 1, 2))))
    delay_ms = DELAYS_MS[seed // 5 % 3]
    if is_foreign and chance.random() < 0.25:  # of some that look alike one is lost, and the history shows the one before it too late
        profile, delay_ms, steps = "netting-eet", 20_000, (steps[0], steps[0], steps[0], Step("close", on=0), Step("entry", steps[0].side))
        faults = [Fault("lost_request", "order_send", 3, size=chance.choice(LOST_REQUEST)), *(fault for fault in faults if not fault.call)]
        kills = [replace(one, nth=one.nth + 3 * (not one.point.startswith(("unknown", "not_done", "adopt")))) for one in kills]
    return Schedule(
        seed,
        "foreign" if is_foreign else "trader",
        profile,
        COMMENT_RULES[seed // 7 % 4],
        bool(seed // 3 % 2),
        delay_ms,
        steps,
        str(FaultPlan.of(faults)),
        tuple(kills),
        is_cold,
    )
