"""How people see what the terminal returns: names instead of places, UTC beside the server's time, tickets as text."""

import math
from collections.abc import Sequence
from typing import Final, cast

import numpy as np

from btcbot.core.errors import BtcbotError
from btcbot.market.clock import ServerClock, readings, to_utc
from btcbot.terminal.contract import StructSequence
from btcbot.terminal.wire import Json
from mt5_server.refusal import Refusal

_OTHER_TIMES: Final = frozenset({"start_time", "expiration_time"})
_TICKETS: Final = frozenset({"ticket", "identifier", "magic", "order", "position", "position_id", "position_by", "position_by_id", "deal"})


def utc_list(clock: ServerClock, server_ms: Sequence[int]) -> list[int | None]:
    """Return UTC for each time of the server's clock, None for one that came twice: which of both it was can't be known."""
    times = np.array(server_ms, np.int64)
    if not times.size:
        return []
    try:
        return cast("list[int | None]", np.asarray(to_utc(clock, times)).tolist())
    except BtcbotError as error:
        try:
            to_utc(clock, times, "earliest")
        except BtcbotError:
            raise Refusal(409, "clock-unresolved", str(error), clock=clock.rule) from None
        first, second = readings(clock, times)
        return [int(one) if one == other else None for one, other in zip(first, second, strict=True)]


def finite(value: Json) -> Json:
    """Return what JSON can hold: no number that isn't one."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_time(name: str) -> bool:
    return name.startswith("time") or name in _OTHER_TIMES


def as_objects(clock: ServerClock, items: Sequence[StructSequence]) -> list[dict[str, Json]]:
    """Return structures of the terminal as objects; times of 0, which mean none, become null."""
    fields = [item._asdict() for item in items]
    times: list[tuple[int, str, int]] = []
    for number, found in enumerate(fields):
        for name in [name for name in found if _is_time(name) and not name.endswith("_msc")]:
            value = cast(int, found.get(f"{name}_msc") or cast(int, found[name]) * 1000)
            times.append((number, name, value))
    converted = iter(utc_list(clock, [value for _, _, value in times if value]))
    moments: dict[tuple[int, str], tuple[int | None, int | None]] = {}
    for number, name, value in times:
        moments[number, name] = (next(converted), value) if value else (None, None)
    shown: list[dict[str, Json]] = []
    for number, found in enumerate(fields):
        item: dict[str, Json] = {}
        for name, field in found.items():
            if (number, name) in moments:
                item[name], item[f"server_{name}"] = moments[number, name]
            elif not (name.endswith("_msc") and _is_time(name)):
                item[name] = _plain(name, field)
        shown.append(item)
    return shown


def _plain(name: str, value: object) -> Json:
    if name in _TICKETS and isinstance(value, int):
        return str(value)
    return finite(cast(Json, value))
